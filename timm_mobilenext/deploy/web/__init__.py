"""Make a static page that runs models in the browser, on the device of whoever opens it.

    python -m timm_mobilenext web mobilenext_100 mobilenetv2_100 --output site --serve
    python -m timm_mobilenext web model_best.pth.tar --label-names names.txt --title 'My flowers' --output site
    python -m timm_mobilenext web --output site --serve         # serves a site that was made before

MODEL is a model name of timm with pretrained weights, a converted folder, hf-hub:OWNER/NAME, or a checkpoint of
train.py; NAME=MODEL gives it a name on the page. The first answers first, the second beside it. docs/web.md says where
the site can be put.
"""
import argparse
import contextlib
import copy
import functools
import gzip
import hashlib
import html
import http.server
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from timm.data import resolve_data_config

from timm_mobilenext.weights.authors import LICENSE
from timm_mobilenext.cli import clear_errors, new_folder, read_label_names
from timm_mobilenext.doctor import count
from timm_mobilenext.deploy.export import chosen, load, options_of_images, write
from timm_mobilenext.weights.publish import LICENSE_TEXT
from timm_mobilenext.deploy.runtimes import RUNTIMES

PAGE = Path(__file__).parent / 'page'
PACKAGE = 'onnxruntime-web'
VERSION = '1.30.0'
LOADERS = ('ort.wasm.min.mjs', 'ort-wasm-simd-threaded.mjs')
BINARY = 'ort-wasm-simd-threaded.wasm'
PRECISIONS = {
    'int8': 'weights in 8 bits, arithmetic in 32', 'fp16': 'weights in 16 bits, arithmetic in 32', 'fp32': '32 bits'}
# What preprocess.js knows.
INTERPOLATIONS = ('bicubic', 'bilinear')
CROP_MODES = ('center', 'squash', 'border')

TITLE = 'MobileNeXt on this device'

_CARD = """---
title: {quoted}
emoji: 📷
colorFrom: blue
colorTo: gray
sdk: static
app_file: index.html
pinned: false
tags: [timm, image-classification, mobilenext, onnx]{license}
custom_headers:
  cross-origin-embedder-policy: require-corp
  cross-origin-opener-policy: same-origin
  cross-origin-resource-policy: cross-origin
---

# {title}

A page that classifies pictures on the device that opens it, in WebAssembly. No picture is sent anywhere. Made by
`python -m timm_mobilenext web`; it is complete, and works on any host of static files, below any path.

| network | parameters | multiply-adds | to download | licence | from |
|---|---:|---:|---:|---|---|
{rows}

The runtime, onnxruntime-web {version}, is under the MIT License (`onnxruntime-web/LICENSE`), the page under the Apache
License 2.0.

## Put it on a host

- **This machine**: `python -m timm_mobilenext web --output . --serve`, in this folder.
- **A Space of the Hugging Face Hub**: `hf repo create OWNER/NAME --repo-type space --space-sdk static`, then
  `hf upload OWNER/NAME . . --repo-type space`.
- **GitHub Pages**: commit this folder to the branch that is published. It sends no headers of isolation; from the
  second visit on the page adds them itself.
- **Netlify, Cloudflare Pages**: publish this folder; `_headers` is for them.

Browsers give the camera, and keep the page for visits without a network, only where it comes by https.
"""
_MIT = """MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def find_runtime(given: str | Path | None = None) -> Path:
    """Return the folder of onnxruntime-web's files, of the version that the page was made for.

    Args:
        given: The folder of the npm package. None for the nearest `node_modules` from here upwards.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is another version.
    """
    here = Path.cwd()
    folders = [Path(given)] if given else [
        parent / 'node_modules' / PACKAGE for parent in (here, *here.parents)]
    found = next((folder for folder in folders if (folder / 'package.json').is_file()), None)
    remedy = f'npm install {PACKAGE}@{VERSION}'
    if found is None:
        where = f'in {given}' if given else 'in node_modules here or in a folder above'
        raise FileNotFoundError(
            f"npm's package {PACKAGE} is not {where}: {remedy} brings it, --runtime names it elsewhere.")
    version = json.loads((found / 'package.json').read_text())['version']
    if version != VERSION:
        raise ValueError(f'{found} is {PACKAGE} {version}, expected {VERSION}: {remedy} brings it.')
    return found / 'dist'


def _pack(content: bytes, name: str, suffix: str, folder: Path) -> dict[str, Any]:
    """Write a file packed, named by its content so that it never changes, and return what the page needs to know.

    The page unpacks it itself, as not every host packs what it sends, and the runtime is four times as large unpacked.
    """
    packed = gzip.compress(content, 9, mtime=0)
    name = re.sub(r'[^A-Za-z0-9._-]+', '-', name)
    path = folder / 'files' / f'{name}-{hashlib.sha256(content).hexdigest()[:12]}{suffix}.gz'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(packed)
    return dict(path=f'files/{path.name}', bytes=len(packed), size=len(content))


def _export(
        source: str,
        weights: str,
        folder: Path,
        model: str | None = None,
        **kwargs: Any,
) -> tuple[dict[str, Any], list[str]]:
    """Export a model into the site, and return its entry of models.json and the names of its classes, if it has any."""
    name, _, rest = source.partition('=')
    if not rest or Path(source).exists():
        name, rest = '', source
    is_file = Path(rest).is_file()
    converted = load(rest, model if is_file else None)
    if not converted.model.num_classes:
        raise ValueError(f'{rest} has no classifier: expected a network that answers with classes.')
    config = resolve_data_config({}, model=converted.model)
    for key, value, known in (
            ('interpolation', config['interpolation'], INTERPOLATIONS), ('crop_mode', config['crop_mode'], CROP_MODES),
            ('channels', config['input_size'][0], (1, 3))):
        if value not in known:
            raise ValueError(
                f'{rest} has {key} {value!r}, which the page does not know: expected {", ".join(map(str, known))}.')
    provenance = converted.provenance
    name = name or provenance['architecture' if is_file else 'source'].removeprefix('hf-hub:')
    with tempfile.TemporaryDirectory() as work:
        exported = write(converted, ['onnx'], Path(work), weights=[] if weights == 'fp32' else [weights], **kwargs)
        row = next(row for row in exported if row.precision in (weights, f'weights_{weights}'))
        about = json.loads((Path(work) / 'model.json').read_text(encoding='utf-8'))
        file = _pack(row.path.read_bytes(), name, '.onnx', folder)
    del about['files']
    label_names = about.pop('label_names', [])
    network = copy.copy(converted.model)
    network.pretrained_cfg = network.pretrained_cfg | dict(input_size=about['input_size'])
    params, madds, _ = count(network)
    return {
        'name': name, **about, 'params': params, 'madds': madds, 'precision': row.precision,
        'precision_in_words': PRECISIONS[weights], 'file': file, 'check': row.check(),
    }, label_names


def make(
        sources: Sequence[str],
        output: str | Path,
        *,
        title: str = TITLE,
        weights: str = 'int8',
        runtime: str | Path | None = None,
        **kwargs: Any,
) -> dict[str, Any]:
    """Write a site that runs models in the browser.

    Args:
        sources: What `export.load` takes, each with `NAME=` before it if it is to have another name on the page.
        output: The folder, a new one.
        title: What the page calls itself.
        weights: How the weights are stored: int8, fp16 or fp32. The arithmetic is in fp32: int8's takes twice as long
            in WebAssembly.
        runtime: See `find_runtime`.
        **kwargs: `model` of `export.load`, and the arguments of `export.write`, for all of them.

    Returns:
        What models.json holds: the models, the lists of class names, the runtime.

    Raises:
        ImportError, OSError, ValueError, RuntimeError: See `find_runtime`, `export.load` and `export.write`; nothing is
            left behind then.
    """
    missing = RUNTIMES['onnx'].missing()
    if missing:
        raise ImportError(
            f"The site needs {', '.join(missing)}, which is not installed: pip install 'timm-mobilenext[web]'.")
    dist = find_runtime(runtime)
    with new_folder(output) as folder:
        models: list[dict[str, Any]] = []
        labels: list[list[str]] = []  # of several models, most have the same
        for source in sources:
            about, label_names = _export(source, weights, folder, **kwargs)
            if about['name'] in [other['name'] for other in models]:
                raise ValueError(f'Two models are called {about["name"]!r}: name one of them, NAME={source}.')
            if label_names and label_names not in labels:
                labels.append(label_names)
            models.append({**about, 'labels': labels.index(label_names) if label_names else None})
        engine = dict(version=VERSION, **_pack((dist / BINARY).read_bytes(), 'ort-wasm', '.wasm', folder))
        site = dict(title=title, models=models, labels=labels, runtime=engine)
        (folder / 'models.json').write_text(json.dumps(site, ensure_ascii=False), encoding='utf-8')
        _write_page(site, folder)
        for file in LOADERS:
            shutil.copy(dist / file, folder / PACKAGE)
        worker = (folder / 'sw.js').read_text(encoding='utf-8')  # last, as it has a digest of all the others
        files = sorted(path for path in folder.rglob('*') if path.is_file())
        digest = hashlib.sha256(b''.join(path.read_bytes() for path in files)).hexdigest()[:12]
        (folder / 'sw.js').write_text(worker.replace("'development'", f"'{digest}'"), encoding='utf-8')
    return site


def _write_page(site: dict[str, Any], folder: Path) -> None:
    """Write the page, and what hosts and readers want to know of the site."""
    for path in PAGE.iterdir():
        shutil.copyfile(path, folder / path.name)
    index = (folder / 'index.html').read_text(encoding='utf-8')
    (folder / 'index.html').write_text(index.replace(TITLE, html.escape(site['title'])), encoding='utf-8')
    (folder / PACKAGE).mkdir()
    (folder / PACKAGE / 'LICENSE').write_text(_MIT)
    licences = {model.get('license') for model in site['models']}
    if LICENSE in licences:
        shutil.copyfile(LICENSE_TEXT, folder / 'LICENSE.weights')
    rows = [
        f'| {model["name"]} | {model["params"] / 1e6:.2f} M | {model["madds"] / 1e6:.0f} M at '
        f'{" x ".join(map(str, model["input_size"][1:]))} px | {model["file"]["bytes"] / 1e6:.1f} MB | '
        f'{model.get("license") or "not stated"} | {model["source"]} |' for model in site['models']]
    only = licences.pop() if len(licences) == 1 else None
    (folder / 'README.md').write_text(_CARD.format(
        title=site['title'], quoted=json.dumps(site['title'], ensure_ascii=False), rows='\n'.join(rows),
        version=VERSION, license=f'\nlicense: {only}' if only else ''), encoding='utf-8')
    forever = headers('files/')
    cache = forever.pop('Cache-Control')
    lines = [f'  {key}: {value}' for key, value in forever.items()]
    (folder / '_headers').write_text('\n'.join(['/*', *lines, '/files/*', f'  Cache-Control: {cache}', '']))
    (folder / '.nojekyll').touch()  # GitHub Pages then publishes the files as they are


def headers(path: str) -> dict[str, str]:
    """Return the headers that a host should send with a file of the site.

    Args:
        path: Of the file, below the site.
    """
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', (PAGE / 'index.html').read_text())
    assert policy
    return {
        'Cross-Origin-Opener-Policy': 'same-origin',
        'Cross-Origin-Embedder-Policy': 'require-corp',
        'Content-Security-Policy': policy[1],
        'X-Content-Type-Options': 'nosniff',
        'Referrer-Policy': 'no-referrer',
        'Cache-Control': 'public, max-age=31536000, immutable' if path.startswith('files/') else 'no-cache',
    }


class _Handler(http.server.SimpleHTTPRequestHandler):
    # What a machine's own tables say of these differs; a browser refuses modules of another type.
    types: ClassVar = {
        '.css': 'text/css', '.gz': 'application/gzip', '.html': 'text/html; charset=utf-8', '.js': 'text/javascript',
        '.json': 'application/json', '.md': 'text/markdown; charset=utf-8', '.mjs': 'text/javascript',
        '.svg': 'image/svg+xml'}

    def guess_type(self, path: Any) -> str:
        return self.types.get(Path(path).suffix, 'application/octet-stream')

    def end_headers(self) -> None:
        for key, value in headers(self.path.lstrip('/')).items():
            self.send_header(key, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


def server(folder: str | Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """Return a server of a site for this machine alone, with the types and headers that browsers want.

    Args:
        folder: The site.
        port: Where it listens, 0 for any that is free.

    Raises:
        FileNotFoundError: If there is no site in the folder.
        OSError: If another program listens there.
    """
    if not Path(folder, 'models.json').is_file():
        raise FileNotFoundError(f'There is no site in {folder}: expected one that this command made (--output).')
    try:
        return http.server.ThreadingHTTPServer(('127.0.0.1', port), functools.partial(_Handler, directory=str(folder)))
    except (OSError, OverflowError) as error:
        reason = getattr(error, 'strerror', error)
        raise OSError(f'Port {port} cannot be listened on ({reason}): give another with --port.') from error


def main(argv: list[str]) -> int:
    """Run `python -m timm_mobilenext web` with these arguments."""
    command = argparse.ArgumentParser(
        'python -m timm_mobilenext web', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument('models', nargs='*', metavar='MODEL', help=(
        'model name with weights, converted folder, hf-hub:OWNER/NAME, checkpoint; NAME=MODEL to call it so'))
    command.add_argument('--output', '-o', required=True, metavar='DIR', help=(
        'new folder; without MODEL the one to serve'))
    command.add_argument('--title', default=TITLE, help='what the page calls itself (default: %(default)s)')
    command.add_argument('--model', metavar='NAME', help='architecture of checkpoints that do not say it')
    command.add_argument('--label-names', metavar='FILE', help='text file with the names of the classes, one a line')
    command.add_argument('--weights', choices=[*PRECISIONS], default='int8', help=(
        'how they are stored; the arithmetic is in fp32 (default: %(default)s)'))
    command.add_argument('--runtime', metavar='DIR', help=(
        f"npm's package {PACKAGE} {VERSION} (default: the nearest in node_modules)"))
    command.add_argument('--serve', action='store_true', help='serve the site on this machine until Ctrl-C')
    command.add_argument('--port', type=int, default=8000, metavar='N', help='for --serve (default: %(default)s)')
    options_of_images(command)
    args = command.parse_args(argv)
    if not (args.models or args.serve):
        command.error('Which models? Without one, --serve serves a site that is there.')
    with clear_errors():
        if args.models:
            site = make(
                args.models, args.output, title=args.title, runtime=args.runtime, model=args.model,
                label_names=read_label_names(args.label_names), **chosen(args))
            _report(site, Path(args.output))
        if args.serve:
            with server(args.output, args.port) as web:
                print(f'http://127.0.0.1:{web.server_address[1]}/ until Ctrl-C', flush=True)
                with contextlib.suppress(KeyboardInterrupt):
                    web.serve_forever()
    return 0


def _report(site: dict[str, Any], output: Path) -> None:
    """Say what the site weighs."""
    for model in site['models']:
        print(f'{model["name"]}: {model["file"]["size"] / 1e6:.2f} MB, {model["file"]["bytes"] / 1e6:.2f} to download; '
              f'as PyTorch: {model["check"]}')
    page = sum((output / path.name).stat().st_size for path in PAGE.iterdir())
    runtime = site['runtime']['bytes'] + sum((output / PACKAGE / file).stat().st_size for file in LOADERS)
    total = sum(path.stat().st_size for path in output.rglob('*') if path.is_file())
    first = page + runtime + site['models'][0]['file']['bytes']
    print(f'{output}: {total / 1e6:.2f} MB; page {page / 1e3:.0f} kB, runtime {runtime / 1e6:.2f} MB. A first visit '
          f'downloads {first / 1e6:.2f} MB until it answers.')
