"""The command that makes and serves a site: what is in it, what it weighs, what it says."""
import gzip
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import timm
import yaml
from pages import DOCS, commands

from timm_mobilenext.deploy import web
from timm_mobilenext.weights.authors import LICENSE

pytestmark = pytest.mark.usefixtures('exporter')
PAGE = ('index.html', 'style.css', 'app.js', 'camera.js', 'download.js', 'formats.js', 'preprocess.js', 'worker.js')


def command(*args: object, **kwargs) -> subprocess.CompletedProcess:
    """Run `python -m timm_mobilenext web`."""
    return subprocess.run(
        [sys.executable, '-m', 'timm_mobilenext', 'web', *map(str, args)], capture_output=True, text=True, timeout=120,
        **kwargs)


def fails(*args: object, **kwargs) -> str:
    """Run the command, which has to fail without a site, and return what it says."""
    with pytest.raises(SystemExit) as error:
        web.main([*map(str, args), '--output', 'nothing'])
    assert not Path('nothing').exists()
    return str(error.value)


@pytest.fixture
def runtime(npm) -> Path:
    return npm / 'onnxruntime-web'


def test_site(trained_folders, trained, runtime, npm, tmp_path):
    """One command makes a site of a folder and a checkpoint, says what it weighs, and keeps this machine out of it."""
    (tmp_path / 'names.txt').write_text('\n'.join(f'class no. {i}' for i in range(10)))
    (tmp_path / 'node_modules').symlink_to(npm)
    result = command(
        f'Meine Blumen={trained_folders[0]}', trained, '--model', 'mobilenext_100', '--label-names', 'names.txt',
        '--title', 'Blumen & <Wiesen>', '--output', 'site', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert re.fullmatch(
        r'Meine Blumen: 0\.\d\d MB, 0\.\d\d to download; as PyTorch: logits within .* on noise', lines[0])
    assert lines[1].startswith('mobilenext_100: ')

    site = tmp_path / 'site'
    about = json.loads((site / 'models.json').read_text())
    first, second = about['models']
    assert (first['name'], first['source'], second['source']) == (
        'Meine Blumen', 'mobilenext_100', 'model_best.pth.tar')
    assert (first['labels'], second['labels']) == (0, 0)
    assert about['labels'] == [[f'class no. {i}' for i in range(10)]]
    assert (second['input'], second['input_size'], second['mean']) == ('L', [1, 32, 32], [0.3])
    assert first['params'] == sum(
        p.numel() for p in timm.create_model(f'local-dir:{trained_folders[0]}', pretrained=True).parameters())
    for file in (first['file'], second['file'], about['runtime']):
        packed = (site / file['path']).read_bytes()
        assert (len(packed), len(gzip.decompress(packed))) == (file['bytes'], file['size'])
    page, runtime, total = (sum(path.stat().st_size for path in paths) for paths in (
        [site / path.name for path in web.PAGE.iterdir()],
        [*(site / 'files').glob('ort-wasm-*'), *(site / 'onnxruntime-web').glob('*.mjs')],
        [path for path in site.rglob('*') if path.is_file()]))
    assert lines[2] == (
        f'site: {total / 1e6:.2f} MB; page {page / 1e3:.0f} kB, runtime {runtime / 1e6:.2f} MB. A first visit '
        f'downloads {(page + runtime + first["file"]["bytes"]) / 1e6:.2f} MB until it answers.')
    for path in site.rglob('*'):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path
    assert 'Blumen &amp; &lt;Wiesen&gt;' in (site / 'index.html').read_text()
    front, _, text = (site / 'README.md').read_text().removeprefix('---\n').partition('\n---\n')
    card = yaml.safe_load(front)
    assert (card['sdk'], card['title']) == ('static', 'Blumen & <Wiesen>')
    assert card['custom_headers'].keys() == {
        'cross-origin-embedder-policy', 'cross-origin-opener-policy', 'cross-origin-resource-policy'}
    for model in (first, second):
        size = ' x '.join(map(str, model['input_size'][1:]))
        assert (f'| {model["name"]} | {model["params"] / 1e6:.2f} M | {model["madds"] / 1e6:.0f} M at {size} px | '
                f'{model["file"]["bytes"] / 1e6:.1f} MB | {model.get("license", "not stated")} | {model["source"]} |\n'
                ) in text
    assert (site / '.nojekyll').exists()


def test_weight(sites):
    """The page is under 40 kB, and nothing but it, the runtime and the models is needed to start."""
    site = sites['int8']
    assert sum((site / name).stat().st_size for name in PAGE) < 40_000
    worker = (site / 'sw.js').read_text()
    kept = re.findall(r"'([^']+)'", worker.partition('const FILES = [')[2].partition(']')[0])
    assert {*PAGE, 'icon.svg', 'models.json', *(
        f'onnxruntime-web/{name}' for name in web.LOADERS)} - {'index.html'} == {*kept} - {'./'}
    assert all((site / name).exists() for name in kept)
    assert re.search(r"VERSION = '[0-9a-f]{12}';", worker)
    assert not re.search(r'https?://(?!www\.w3\.org)', ''.join((site / name).read_text() for name in (*PAGE, 'sw.js')))


def test_version_follows_the_content(sites):
    """Another site has another version, so that browsers take it for new."""
    versions = {re.search(r"VERSION = '(\w+)'", (site / 'sw.js').read_text())[1] for site in sites.values()}
    assert len(versions) == 2


def test_headers(sites):
    """The policy that the page states is that which hosts are told to send, and it lets nothing in from elsewhere."""
    text = (sites['int8'] / '_headers').read_text()
    policy = re.search(r'content="(default-src[^"]*)"', (sites['int8'] / 'index.html').read_text())[1]
    assert f'Content-Security-Policy: {policy}' in text
    assert policy.startswith("default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self';")
    assert 'http' not in policy
    assert 'Cross-Origin-Opener-Policy: same-origin' in text


def test_pretrained_name(client, on_hub, runtime):
    """A model name becomes a site of its pretrained weights, at most 4 MB, with ImageNet's classes and the licence."""
    said = client.run(
        "__import__('timm_mobilenext.deploy.web').web.main(['mobilenext_100', '--img-size', '64', '--keep', "
        f"'--output', 'site', '--runtime', {str(runtime)!r}])")
    site = client.folder / 'site'
    about = json.loads((site / 'models.json').read_text())
    model, = about['models']
    assert (model['name'], model['license'], model['input_size']) == ('mobilenext_100', LICENSE, [3, 64, 64])
    assert model['madds'] < 311e6 / 9
    assert model['file']['size'] < 4e6
    assert len(about['labels'][0]) == 1000
    assert 'The Clear BSD License' in (site / 'LICENSE.weights').read_text()
    assert f'license: {LICENSE}\n' in (site / 'README.md').read_text()
    assert 'mobilenext_100: 3.78 MB' in said


def test_serve(sites):
    """--serve serves a site with the types and headers that browsers want, until Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'timm_mobilenext', 'web', '--output', str(sites['int8']), '--serve', '--port', '0'],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = process.stdout.readline().split()[0]
    for name, kind in (
            ('', 'text/html; charset=utf-8'), ('app.js', 'text/javascript'), ('models.json', 'application/json'),
            ('onnxruntime-web/ort.wasm.min.mjs', 'text/javascript'), ('style.css', 'text/css')):
        with urllib.request.urlopen(url + name) as response:
            assert response.headers['Content-Type'] == kind
            assert response.headers['Cross-Origin-Embedder-Policy'] == 'require-corp'
            assert response.headers['Cache-Control'] == 'no-cache'
    path, = (sites['int8'] / 'files').glob('ort-wasm*')
    with urllib.request.urlopen(f'{url}files/{path.name}') as response:
        assert 'immutable' in response.headers['Cache-Control']
        assert response.read() == path.read_bytes()
    with pytest.raises(urllib.error.HTTPError, match='404'):
        urllib.request.urlopen(url + '../conftest.py')
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 0
    assert process.stderr.read() == ''
    with web.server(sites['int8']) as one, web.server(sites['int8']) as other:  # any port that is free
        assert one.server_address != other.server_address


def test_nothing_to_serve(tmp_path, sites, monkeypatch):
    """A folder without a site, a port that is taken, and no model at all are an error."""
    monkeypatch.chdir(tmp_path)
    assert fails('--serve') == 'error: There is no site in nothing: expected one that this command made (--output).'
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
                SystemExit, match=f'^error: Port {port} cannot be listened on .*: give another with --port.$'):
            web.main(['--serve', '--port', str(port), '--output', str(sites['int8'])])
    for args in (['--output', 'site'], ['--serve']):
        with pytest.raises(SystemExit, match='2'):
            web.main(args)


def test_no_runtime(trained_folders, tmp_path, monkeypatch):
    """Where npm's package is not there, or another version is, the error has the command that brings it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(web, 'HERE', tmp_path)
    remedy = f'npm install onnxruntime-web@{web.VERSION} brings it'
    assert fails(trained_folders[0]) == (
        "error: npm's package onnxruntime-web is not in node_modules here or in a folder above: "
        f'{remedy}, --runtime names it elsewhere.')
    package = tmp_path / 'node_modules' / 'onnxruntime-web'
    package.mkdir(parents=True)
    (package / 'package.json').write_text('{"version": "1.0.0"}')
    assert fails(trained_folders[0]) == f'error: {package} is onnxruntime-web 1.0.0, expected {web.VERSION}: {remedy}.'
    assert 'is not in elsewhere: ' in fails(trained_folders[0], '--runtime', 'elsewhere')


def test_bad_models(trained_folders, runtime, tmp_path, monkeypatch):
    """Two models of a name, a config that the page does not know, and a network without classes, are an error."""
    monkeypatch.chdir(tmp_path)
    folder = trained_folders[0]
    assert f"Two models are called 'mobilenext_100': name one of them, NAME={folder}." in fails(
        folder, folder, '--runtime', runtime)
    for name, model, config, said in (
            ('lanczos', timm.create_model('mobilenext_035'), dict(interpolation='lanczos', input_size=(3, 32, 32)),
             "lanczos has interpolation 'lanczos', which the page does not know: expected bicubic, bilinear."),
            ('headless', timm.create_model('mobilenext_035', num_classes=0), {},
             'headless has no classifier: expected a network that answers with classes.')):
        model.pretrained_cfg.update(config)
        timm.models.save_for_hf(model, name, safe_serialization=True)
        assert said in fails(name, '--keep', '--runtime', runtime)
    (tmp_path / 'site').mkdir()
    with pytest.raises(SystemExit, match=r'^error: site exists: expected a new folder'):
        web.main([str(folder), '--output', 'site', '--runtime', str(runtime)])


def test_docs(trained, npm, tmp_path):
    """The page about it and the README name the version of the runtime that is pinned, and its commands run."""
    text = (DOCS / 'web.md').read_text()
    for page in (text, (DOCS.parent / 'README.md').read_text()):
        assert set(re.findall(r'onnxruntime-web@([\d.]+)', page)) == {web.VERSION}
    (tmp_path / 'names.txt').write_text('\n'.join('abcdefghij'))
    (tmp_path / 'model_best.pth.tar').symlink_to(trained)
    (tmp_path / 'node_modules').symlink_to(npm)
    install, pretrained, own = commands(text)
    assert install.startswith('npm install ')
    assert shlex.split(pretrained)[:4] == ['python', '-m', 'timm_mobilenext', 'web']  # test_pretrained_name runs it
    result = command(*shlex.split(own)[4:], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    about = json.loads((tmp_path / 'flowers' / 'models.json').read_text())
    first, = about['models']
    assert (about['title'], first['name'], about['labels'][0][2]) == ('Which flower is it?', 'Flowers', 'c')


def test_without_exporter(trained_folders, runtime, monkeypatch, tmp_path):
    """Where the exporter is not installed, the error names the extra that brings it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(type(web.RUNTIMES['onnx']), 'missing', lambda self: ['timmx'])
    assert fails(trained_folders[0], '--runtime', runtime) == (
        "error: The site needs timmx, which is not installed: pip install 'timm-mobilenext[web]'.")
