"""Make a static page that runs models in the visitor's browser.

    python -m timm_mobilenext web mobilenext_100 mobilenetv2_100 --output site --serve
    python -m timm_mobilenext web 'Flowers=model_best.pth.tar' --label-names names.txt --output site
    python -m timm_mobilenext web --output site --serve         # serves a site that was made before

The page shows the first SOURCE, and the second to compare it with. docs/web.md says where the site can be put.
"""
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
from typing import Any

from timm.data import resolve_data_config

from timm_mobilenext.cli import SOURCES, clear_errors, new_folder, parser, read_label_names
from timm_mobilenext.deploy.export import USES, chosen, options, write
from timm_mobilenext.doctor import count
from timm_mobilenext.weights.authors import LICENSE
from timm_mobilenext.weights.convert import Converted, load
from timm_mobilenext.weights.publish import LICENSE_TEXT

HERE = Path(__file__).parent
PAGE = HERE / 'page'
PACKAGE = 'onnxruntime-web'
VERSION = '1.30.0'
LOADERS = ('ort.wasm.min.mjs', 'ort-wasm-simd-threaded.mjs')
BINARY = 'ort-wasm-simd-threaded.wasm'
TITLE = 'MobileNeXt on this device'
HEADERS = {  # that a host should send
    'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp',
    'Content-Security-Policy': re.findall(r'Policy" content="([^"]*)"', (PAGE / 'index.html').read_text())[0],
    'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer'}
FOREVER = 'public, max-age=31536000, immutable'  # Cache-Control of files/, which are named by their content
TYPES = {  # machines have tables of their own; a browser refuses modules of another type
    '.css': 'text/css', '.html': 'text/html; charset=utf-8', '.js': 'text/javascript', '.json': 'application/json',
    '.md': 'text/markdown; charset=utf-8', '.mjs': 'text/javascript', '.svg': 'image/svg+xml'}
KNOWN = {'interpolation': ('bicubic', 'bilinear'), 'crop_mode': ('center', 'squash', 'border')}  # by preprocess.js


def _find_runtime(given: str | Path | None) -> Path:
    """Return the folder of onnxruntime-web's files, of the version that the page was made for."""
    nearest = [parent / 'node_modules' / PACKAGE for parent in (Path.cwd() / 'node_modules').parents]
    for folder in [Path(given)] if given else nearest:
        about = folder / 'package.json'
        if about.is_file() and json.loads(about.read_text())['version'] == VERSION:
            return folder / 'dist'
    raise FileNotFoundError(
        f'The npm package {PACKAGE} {VERSION} is not in {given or "node_modules here or in a folder above"}. '
        f'Run npm install {PACKAGE}@{VERSION}, or give its folder (--runtime).')


def _load(sources: Sequence[str], model: str | None, model_kwargs: dict[str, Any] | None) -> dict[str, Converted]:
    """Return the networks by their names on the page; a network that the page cannot run is an error."""
    networks: dict[str, Converted] = {}
    for source in sources:
        name, _, rest = source.partition('=')
        if not rest or Path(source).exists():
            name, rest = '', source
        is_file = Path(rest).is_file()
        converted = load(rest, model if is_file else None, model_kwargs)
        place = Path(rest.rpartition(':')[2]).resolve().name  # of a folder, a repository or a model
        name = name or (converted.provenance['architecture'] if is_file else place)
        if name in networks:
            raise ValueError(f'Two networks are called {name!r}: give one of them another name, NAME={rest}.')
        if not converted.model.num_classes:
            raise ValueError(f'{name} has no classifier: expected a network that answers with classes.')
        config = resolve_data_config({}, model=converted.model)
        for key, known in KNOWN.items():
            if config[key] not in known:
                raise ValueError(f'{name} has {key} {config[key]!r}: the page knows {", ".join(known)}.')
        networks[name] = converted
    return networks


def _pack(content: bytes, name: str, suffix: str, folder: Path) -> dict[str, Any]:
    """Compress a file, name it by its content so that it never changes, and return its entry of models.json.

    The page itself unpacks it: not every host compresses what it sends, and the runtime shrinks to a quarter.
    """
    packed = gzip.compress(content, 9, mtime=0)
    stem = re.sub(r'[^A-Za-z0-9._-]+', '-', name)
    path = folder / 'files' / f'{stem}-{hashlib.sha256(content).hexdigest()[:12]}{suffix}.gz'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(packed)
    return dict(path=f'files/{path.name}', bytes=len(packed), size=len(content))


def _export(name: str, converted: Converted, weights: str, folder: Path, **options: Any) -> dict[str, Any]:
    """Export a network into the site, and return its entry of models.json."""
    with tempfile.TemporaryDirectory() as work:
        row = write(converted, ['onnx'], Path(work), weights=[weights] * (weights != 'fp32'), **options)[0]
        about = json.loads((Path(work) / 'model.json').read_text(encoding='utf-8'))
        file = _pack(row.path.read_bytes(), name, '.onnx', folder)
    del about['files']
    network = copy.copy(converted.model)
    network.pretrained_cfg = network.pretrained_cfg | dict(input_size=about['input_size'])
    params, madds, _ = count(network)
    _, height, width = about['input_size']
    facts = [
        f'{params / 1e6:.2f} million parameters',
        f'{madds / 1e6:.0f} million multiply-adds at {width} \u00d7 {height} pixels',
        f'{file["size"] / 1e6:.2f} MB, {file["bytes"] / 1e6:.2f} MB to download, {USES[row.precision]}',
        f'from {about["source"]}, licence {about.get("license") or "not stated"}', row.check()]
    return dict(name=name, **about, params=params, madds=madds, file=file, facts=facts)


def make(
        sources: Sequence[str],
        output: str | Path,
        *,
        title: str = TITLE,
        weights: str = 'int8',
        runtime: str | Path | None = None,
        label_names: list[str] | None = None,
        model: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        **options: Any,
) -> dict[str, Any]:
    """Write a site that runs models in the browser.

    Args:
        sources: What `convert.load` takes, each with `NAME=` before it to give it that name on the page.
        output: The folder, a new one.
        title: Title of the page.
        weights: How the weights are stored: int8, fp16 or fp32. The arithmetic stays in fp32, as in WebAssembly int8
            takes twice as long.
        runtime: Folder of the npm package onnxruntime-web. None for the nearest `node_modules` from here upwards.
        label_names: Names of the classes, for each network that has as many.
        model: Name of the architecture of checkpoints that do not name their own.
        model_kwargs: Arguments of the models that are not the architecture's.
        **options: See `export.Options`, for all models.

    Returns:
        The content of models.json: the models, the lists of class names, the runtime.

    Raises:
        FileNotFoundError: If onnxruntime-web is not there, in the version that the page was made for.
        ImportError, OSError, ValueError, RuntimeError: See `convert.load` and `export.write`; nothing is left behind.
    """
    dist = _find_runtime(runtime)
    networks = _load(sources, model, model_kwargs)
    classes = {name: converted.model.num_classes for name, converted in networks.items()}
    if label_names and len(label_names) not in classes.values():
        have = ' and '.join(f'{name} has {n} classes' for name, n in classes.items())
        raise ValueError(f'There are {len(label_names)} label names, but {have}: give one name for each class.')
    with new_folder(output) as folder:
        models: list[dict[str, Any]] = []
        labels: list[list[str]] = []  # models often share them
        for name, converted in networks.items():
            names = label_names if label_names and len(label_names) == classes[name] else None
            about = _export(name, converted, weights, folder, label_names=names, **options)
            found = about.pop('label_names', None)
            labels += [found] if found and found not in labels else []
            models.append({**about, 'labels': labels.index(found) if found else None})
        engine = dict(version=VERSION, **_pack((dist / BINARY).read_bytes(), 'ort-wasm', '.wasm', folder))
        site = dict(title=title, models=models, labels=labels, runtime=engine)
        (folder / 'models.json').write_text(json.dumps(site, ensure_ascii=False), encoding='utf-8')
        _write_page(site, folder, dist)
    return site


def _write_page(site: dict[str, Any], folder: Path, dist: Path) -> None:
    """Write the page, the loaders of the runtime, and the files for hosts and readers."""
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    index = (folder / 'index.html').read_text(encoding='utf-8')
    (folder / 'index.html').write_text(index.replace(TITLE, html.escape(site['title'])), encoding='utf-8')
    (folder / PACKAGE).mkdir()
    for file in LOADERS:
        shutil.copyfile(dist / file, folder / PACKAGE / file)
    shutil.copyfile(HERE / 'LICENSE.onnxruntime-web', folder / PACKAGE / 'LICENSE')  # npm's package has none
    licences = {model.get('license') for model in site['models']}
    if LICENSE in licences:
        shutil.copyfile(LICENSE_TEXT, folder / 'LICENSE.weights')
    only = licences.pop() if len(licences) == 1 else None
    (folder / 'README.md').write_text((HERE / 'card.md').read_text(encoding='utf-8').format(
        title=site['title'], quoted_title=json.dumps(site['title'], ensure_ascii=False),
        networks='\n'.join(f'- **{model["name"]}**: {"; ".join(model["facts"])}' for model in site['models']),
        version=VERSION, license=f'\nlicense: {only}' if only else ''), encoding='utf-8')
    lines = ['/*', *(f'  {key}: {value}' for key, value in HEADERS.items()), '/files/*', f'  Cache-Control: {FOREVER}']
    (folder / '_headers').write_text('\n'.join([*lines, '']))
    (folder / '.nojekyll').touch()  # GitHub Pages then publishes the files as they are
    worker = (folder / 'sw.js').read_text(encoding='utf-8')  # last, as it has a digest of all the others
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    digest = hashlib.sha256(b''.join(path.read_bytes() for path in files)).hexdigest()[:12]
    (folder / 'sw.js').write_text(worker.replace("'development'", f"'{digest}'"), encoding='utf-8')


class _Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = TYPES

    def end_headers(self) -> None:
        cache = FOREVER if self.path.startswith('/files/') else 'no-cache'
        for key, value in {**HEADERS, 'Cache-Control': cache}.items():
            self.send_header(key, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing about requests."""


def server(folder: str | Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """Return a server of a site, reachable only from this machine, with the types and headers that browsers want.

    Args:
        folder: The site.
        port: Where it listens, 0 for any free port.

    Raises:
        FileNotFoundError: If the folder has no site.
        OSError: If the port is taken.
    """
    if not Path(folder, 'models.json').is_file():
        raise FileNotFoundError(f'Folder {folder} has no site: expected one that this command made (--output).')
    try:
        return http.server.ThreadingHTTPServer(('127.0.0.1', port), functools.partial(_Handler, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise OSError(f'Port {port} is unavailable ({error}). Give another with --port.') from error


def main(argv: list[str]) -> int:
    """Run `python -m timm_mobilenext web` with these arguments."""
    command = parser('web', __doc__)
    command.usage = 'python -m timm_mobilenext web SOURCE [SOURCE ...] --output DIR [OPTIONS]'
    command.add_argument('sources', nargs='*', metavar='SOURCE', help=f'{SOURCES}; NAME=SOURCE to name it on the page')
    command.add_argument('--title', default=TITLE, help='title of the page (default: %(default)s)')
    command.add_argument('--weights', choices=['int8', 'fp16', 'fp32'], default='int8', help=(
        'precision of the stored weights; the arithmetic is in fp32 (default: %(default)s)'))
    command.add_argument('--runtime', metavar='DIR', help=(
        f'folder of the npm package {PACKAGE} {VERSION} (default: the nearest in node_modules)'))
    command.add_argument('--serve', action='store_true', help='serve the site on this machine until Ctrl-C')
    command.add_argument('--port', type=int, default=8000, metavar='N', help='port of --serve (default: %(default)s)')
    options(command, without=('weights', 'int8', 'calibration'))
    args = command.parse_args(argv)
    if not (args.sources or args.serve):
        command.error('give one or more SOURCEs to make a site, or --serve to serve the one in --output')
    with clear_errors():
        if args.sources:
            site = make(
                args.sources, args.output, title=args.title, runtime=args.runtime, model=args.model,
                model_kwargs=args.model_kwargs, label_names=read_label_names(args.label_names), **chosen(args))
            _report(site, Path(args.output))
        if args.serve:
            with server(args.output, args.port) as web:
                print(f'Serving at http://127.0.0.1:{web.server_address[1]}/ (Ctrl-C to stop)', flush=True)
                with contextlib.suppress(KeyboardInterrupt):
                    web.serve_forever()
    return 0


def _report(site: dict[str, Any], output: Path) -> None:
    """Say what the site has, what a visit downloads, and what comes next."""
    for model in site['models']:
        print(f'{model["name"]}: {model["file"]["bytes"] / 1e6:.2f} MB to download; {model["facts"][-1]}')
    page = sum((output / path.name).stat().st_size for path in PAGE.iterdir())
    runtime = site['runtime']['bytes'] + sum((output / PACKAGE / file).stat().st_size for file in LOADERS)
    print(f'{output}: a first visit downloads the first network, {runtime / 1e6:.2f} MB of runtime and '
          f'{page / 1e3:.0f} kB of page; later visits download nothing')
    print(f'Next: python -m timm_mobilenext web --output {output} --serve shows it on this machine. '
          f'{output / "README.md"} says how to put it on a host.')
