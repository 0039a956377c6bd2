"""The command that makes and serves a site: what is in it, what it weighs, what it says."""
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
import torch
import yaml
from pages import DOCS, commands

from timm_mobilenext.deploy import web
from timm_mobilenext.weights.authors import LICENSE

pytestmark = pytest.mark.usefixtures('exporter')


def fails(*args: object) -> str:
    """Run the command, which has to fail without a site, and return what it says."""
    with pytest.raises(SystemExit) as error:
        web.main([*map(str, args), '--output', 'nothing'])
    assert not Path('nothing').exists()
    return str(error.value)


@pytest.fixture
def runtime(npm) -> Path:
    return npm / 'onnxruntime-web'


@pytest.mark.slow
def test_site(trained_folders, trained, npm, tmp_path, monkeypatch, capsys):
    """One command makes a site of a folder and a checkpoint, says what comes next, and keeps this machine out of it."""
    (tmp_path / 'names.txt').write_text('\n'.join(f'class no. {i}' for i in range(10)))
    (tmp_path / 'node_modules').symlink_to(npm)
    monkeypatch.chdir(tmp_path)
    web.main([f'Meine Blumen={trained_folders[0]}', str(trained), '--label-names', 'names.txt',
              '--title', 'Blumen & <Wiesen>', '--output', 'site'])
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r'Meine Blumen: 0\.\d\d MB to download, weights in 8 bits, computes in fp32; matches PyTorch on noise: largest '
        r'logit difference 0\.\d+ standard deviations', lines[0])
    assert lines[1].startswith('mobilenext_100: ')
    assert lines[3].startswith('Next: python -m timm_mobilenext web --output site --serve shows it on this machine.')

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
    assert '64 \u00d7 64 pixels' in first['facts'][1]
    downloads = [*(site / 'files').glob('*'), *(site / 'onnxruntime-web').glob('*.mjs'), *(
        site / path.name for path in web.PAGE.iterdir())]
    first_visit = sum(path.stat().st_size for path in downloads) - second['file']['bytes']
    assert lines[2].startswith(f'site: a first visit downloads {first_visit / 1e6:.2f} MB (runtime ')
    for path in site.rglob('*'):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path
    assert 'Blumen &amp; &lt;Wiesen&gt;' in (site / 'index.html').read_text()
    front, _, text = (site / 'README.md').read_text().removeprefix('---\n').partition('\n---\n')
    card = yaml.safe_load(front)
    assert (card['sdk'], card['title']) == ('static', 'Blumen & <Wiesen>')
    assert card['custom_headers']['cross-origin-embedder-policy'] == 'require-corp'
    assert f'| Meine Blumen | {first["params"] / 1e6:.2f} M | {first["madds"] / 1e6:.0f} M at 64 x 64 px | ' in text
    assert 'MIT License' in (site / 'onnxruntime-web' / 'LICENSE').read_text()
    assert (site / '.nojekyll').exists()


def test_weight(sites):
    """The page is under 40 kB, and nothing but it, the runtime and the models is needed to start."""
    site, page = sites['int8'], {path.name for path in web.PAGE.iterdir()} - {'sw.js'}
    assert sum((site / name).stat().st_size for name in page) < 40_000
    worker = (site / 'sw.js').read_text()
    kept = re.findall(r"'([^']+)'", worker.partition('const FILES = [')[2].partition(']')[0])
    assert {*page, 'models.json', *(
        f'onnxruntime-web/{name}' for name in web.LOADERS)} - {'index.html'} == {*kept} - {'./'}
    assert all((site / name).exists() for name in kept)
    assert not re.search(r'https?://(?!www\.w3\.org)', ''.join((site / name).read_text() for name in (*page, 'sw.js')))
    versions = {re.search(r"VERSION = '([0-9a-f]{12})';", (site / 'sw.js').read_text())[1] for site in sites.values()}
    assert len(versions) == len(sites)  # browsers take a changed site for new


@pytest.mark.slow
def test_pretrained_name(client, on_hub, runtime):
    """A model name becomes a site of its pretrained weights, at most 4 MB, with ImageNet's classes and the licence."""
    client.run("__import__('timm_mobilenext.deploy.web').deploy.web.main(['mobilenext_100', '--img-size', '64', "
               f"'--keep', '--output', 'site', '--runtime', {str(runtime)!r}])")
    site = client.folder / 'site'
    about = json.loads((site / 'models.json').read_text())
    model, = about['models']
    assert (model['name'], model['license'], model['input_size']) == ('mobilenext_100', LICENSE, [3, 64, 64])
    assert model['madds'] < 311e6 / 9
    assert model['file']['size'] < 4e6
    assert len(about['labels'][0]) == 1000
    assert 'The Clear BSD License' in (site / 'LICENSE.weights').read_text()
    assert f'license: {LICENSE}\n' in (site / 'README.md').read_text()


@pytest.mark.slow
def test_whose_names(trained, digits, runtime, tmp_path, monkeypatch):
    """Names go to the networks with as many classes, of which a checkpoint of any model of timm may be one."""
    monkeypatch.chdir(tmp_path)
    other = timm.create_model('mobilenetv2_035', num_classes=7).eval()
    args = dict(model='mobilenetv2_035', num_classes=7, img_size=32)
    torch.save(dict(state_dict=other.state_dict(), args=__import__('argparse').Namespace(**args)), 'other.pth.tar')
    Path('names.txt').write_text('\n'.join('abcdefghij'))
    sources = [trained, 'B=other.pth.tar', '--runtime', runtime, '--label-names', 'names.txt']
    web.main([*map(str, sources), '--keep', '--output', 'site'])
    about = json.loads(Path('site/models.json').read_text())
    assert about['labels'] == [[*'abcdefghij']]
    assert [(model['name'], model['labels'], model['num_classes']) for model in about['models']] == [
        ('mobilenext_100', 0, 10), ('B', None, 7)]
    Path('names.txt').write_text('a\nb')
    assert fails(*sources) == 'error: There are 2 label names, but mobilenext_100 has 10 classes and B has 7 classes.'
    monkeypatch.setattr('timm_mobilenext.deploy.export.check', lambda *args: (1., 0.5))
    said = fails('A=other.pth.tar', '--runtime', runtime)
    assert said.startswith('error: A: mobilenetv2_035 as model.weights_int8.onnx differs from PyTorch on noise: ')
    assert '(--check DIR)' in said
    assert said.endswith('--weights fp32 keeps the weights as they are.')


@pytest.mark.slow
def test_serve(sites):
    """--serve serves a site with the types and headers that browsers want, until Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'timm_mobilenext', 'web', '--output', str(sites['int8']), '--serve', '--port', '0'],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = re.fullmatch(r'Serving at (\S+) \(Ctrl-C to stop\)\n', process.stdout.readline())[1]
    for name, kind in (
            ('', 'text/html; charset=utf-8'), ('app.js', 'text/javascript'), ('style.css', 'text/css'),
            ('onnxruntime-web/ort.wasm.min.mjs', 'text/javascript'), ('example.svg', 'image/svg+xml')):
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
    policy = response.headers['Content-Security-Policy']
    assert policy.startswith("default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self';")
    assert 'http' not in policy
    assert f'  Content-Security-Policy: {policy}\n' in (sites['int8'] / '_headers').read_text()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == ''


def test_nothing_to_serve(tmp_path, sites, monkeypatch):
    """A folder without a site, a port that is taken, and no model at all are an error."""
    monkeypatch.chdir(tmp_path)
    assert fails('--serve') == 'error: Folder nothing has no site: expected one that this command made (--output).'
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f'^error: Port {port} is unavailable .* Give another with --port.$'):
            web.main(['--serve', '--port', str(port), '--output', str(sites['int8'])])
    with pytest.raises(SystemExit, match='2'):
        web.main(['--output', 'site'])


def test_no_runtime(trained_folders, tmp_path, monkeypatch):
    """Where the npm package is missing, or another version is there, the error has the command that brings it."""
    monkeypatch.chdir(tmp_path)
    remedy = f'Run npm install onnxruntime-web@{web.VERSION}'
    assert fails(trained_folders[0], '--runtime', 'elsewhere') == (
        f'error: The npm package onnxruntime-web is not in elsewhere. {remedy}, or give its folder (--runtime).')
    package = tmp_path / 'node_modules' / 'onnxruntime-web'
    package.mkdir(parents=True)
    (package / 'package.json').write_text('{"version": "1.0.0"}')
    assert fails(trained_folders[0]) == f'error: {package} is onnxruntime-web 1.0.0: expected {web.VERSION}. {remedy}.'


@pytest.mark.slow
def test_bad_models(trained_folders, runtime, tmp_path, monkeypatch):
    """Two models of a name, a config that the page does not know, and a network without classes, are an error."""
    monkeypatch.chdir(tmp_path)
    folder = trained_folders[0]
    assert f"Two networks are called 'mobilenext_100': give one of them another name, NAME={folder}." in fails(
        folder, folder, '--runtime', runtime)
    for name, kwargs, said in (
            ('lanczos', dict(pretrained_cfg_overlay=dict(interpolation='lanczos')),
             "lanczos has interpolation 'lanczos': the page knows bicubic, bilinear."),
            ('headless', dict(num_classes=0),
             'headless has no classifier: expected a network that answers with classes.')):
        timm.models.save_for_hf(timm.create_model('mobilenext_035', **kwargs), name, safe_serialization=True)
        assert said in fails(name, '--keep', '--runtime', runtime)


@pytest.mark.slow
def test_docs(trained, npm, digits, tmp_path):
    """The commands of docs/web.md run, with the pinned version of the runtime."""
    text = (DOCS / 'web.md').read_text()
    for page in (text, (DOCS.parent / 'README.md').read_text()):
        assert set(re.findall(r'onnxruntime-web@([\d.]+)', page)) == {web.VERSION}
    (tmp_path / 'names.txt').write_text('\n'.join('abcdefghij'))
    (tmp_path / 'model_best.pth.tar').symlink_to(trained)
    (tmp_path / 'images').symlink_to(digits / 'validation')
    (tmp_path / 'node_modules').symlink_to(npm)
    own = [shlex.split(command) for command in commands(text) if 'model_best.pth.tar' in command]
    assert own
    for command in own:
        subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True, timeout=120)
    about = json.loads((tmp_path / 'flowers' / 'models.json').read_text())
    first, = about['models']
    assert (about['title'], first['name'], about['labels'][0][2]) == ('Which flower is it?', 'Flowers', 'c')
