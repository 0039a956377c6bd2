"""The command that makes and serves a site: what is in it, what it weighs, what it says."""
import argparse
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
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


@pytest.fixture
def runtime(npm) -> str:
    return str(npm / 'onnxruntime-web')


def fails(*args: object) -> str:
    """Run the command, which has to fail without a site, and return what it says."""
    with pytest.raises(SystemExit) as error:
        web.main([*map(str, args), '--output', 'nothing'])
    assert not Path('nothing').exists()
    return str(error.value)


@pytest.mark.slow
def test_site(trained, digits, npm, tmp_path, monkeypatch, capsys):
    """The command of docs/web.md makes a site, says what comes next, and keeps this machine out of it."""
    text = (DOCS / 'web.md').read_text()
    for page in (text, (DOCS.parent / 'README.md').read_text()):
        assert set(re.findall(r'onnxruntime-web@([\d.]+)', page)) == {web.VERSION}
    for name, target in (('model_best.pth.tar', trained), ('images', digits / 'validation'), ('node_modules', npm)):
        (tmp_path / name).symlink_to(target)
    (tmp_path / 'names.txt').write_text('\n'.join(f'class no. {i}' for i in range(10)))
    monkeypatch.chdir(tmp_path)
    command, = (shlex.split(command) for command in commands(text) if 'model_best.pth.tar' in command)
    web.main([*command[4:], '--title', 'Blumen & <Wiesen>'])
    network, site_line, following = capsys.readouterr().out.splitlines()
    assert re.match(r'Flowers: 0\.\d\d MB to download; matches PyTorch: same class on 1\d\d of 128 images,', network)
    assert re.match(r'flowers: a first visit downloads the first network, 3\.\d\d MB of runtime and 4\d kB', site_line)
    assert following.startswith('Next: python -m timm_mobilenext web --output flowers --serve shows it on this machine')

    site = tmp_path / 'flowers'
    about = json.loads((site / 'models.json').read_text())
    model, = about['models']
    assert (model['name'], model['source'], model['labels']) == ('Flowers', 'model_best.pth.tar', 0)
    assert about['labels'] == [[f'class no. {i}' for i in range(10)]]
    assert (model['input'], model['input_size'], model['mean']) == ('L', [1, 32, 32], [0.3])
    for path in site.rglob('*'):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path
    assert 'Blumen &amp; &lt;Wiesen&gt;' in (site / 'index.html').read_text()
    front, _, readme = (site / 'README.md').read_text().removeprefix('---\n').partition('\n---\n')
    card = yaml.safe_load(front)
    assert (card['sdk'], card['title']) == ('static', 'Blumen & <Wiesen>')
    assert card['custom_headers']['cross-origin-embedder-policy'] == 'require-corp'
    assert f'- **Flowers**: {"; ".join(model["facts"])}\n' in readme
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
               f"'--keep', '--output', 'site', '--runtime', {runtime!r}])")
    site = client.folder / 'site'
    about = json.loads((site / 'models.json').read_text())
    model, = about['models']
    assert (model['name'], model['license'], model['input_size']) == ('mobilenext_100', LICENSE, [3, 64, 64])
    assert model['madds'] < 311e6 / 9
    assert model['file']['size'] < 4e6
    assert (len(about['labels'][0]), about['labels'][0][0]) == (1000, 'tench, Tinca tinca')
    assert 'The Clear BSD License' in (site / 'LICENSE.weights').read_text()
    assert f'license: {LICENSE}\n' in (site / 'README.md').read_text()


@pytest.mark.slow
def test_whose_names(trained, runtime, tmp_path, monkeypatch):
    """Names go to the networks with as many classes, of which a checkpoint of any model of timm may be one."""
    monkeypatch.chdir(tmp_path)
    args = argparse.Namespace(model='mobilenetv2_035', num_classes=7, img_size=32)
    model = timm.create_model('mobilenetv2_035', num_classes=7)
    torch.save(dict(state_dict=model.state_dict(), args=args), 'other.pth.tar')
    Path('names.txt').write_text('\n'.join('abcdefghij'))
    sources = [str(trained), 'B=other.pth.tar', '--runtime', runtime, '--label-names', 'names.txt']
    web.main([*sources, '--keep', '--output', 'site'])
    about = json.loads(Path('site/models.json').read_text())
    assert about['labels'] == [[*'abcdefghij']]
    assert [(model['name'], model['labels'], model['num_classes']) for model in about['models']] == [
        ('mobilenext_100', 0, 10), ('B', None, 7)]
    Path('names.txt').write_text('a\nb')
    said = 'error: There are 2 label names, but mobilenext_100 has 10 classes and B has 7 classes: give one name for'
    assert fails(*sources).startswith(said)


@pytest.mark.slow
def test_serve(sites):
    """--serve serves a site with the types and headers that browsers want, until Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'timm_mobilenext', 'web', '--output', str(sites['int8']), '--serve', '--port', '0'],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = re.fullmatch(r'Serving at (\S+) \(Ctrl-C to stop\)\n', process.stdout.readline())[1]
    for name, kind in (('', 'text/html; charset=utf-8'), ('onnxruntime-web/ort.wasm.min.mjs', 'text/javascript')):
        with urllib.request.urlopen(url + name) as response:
            assert response.headers['Content-Type'] == kind
            assert response.headers['Cross-Origin-Embedder-Policy'] == 'require-corp'
            assert response.headers['Cache-Control'] == 'no-cache'
    path, = (sites['int8'] / 'files').glob('ort-wasm*')
    with urllib.request.urlopen(f'{url}files/{path.name}') as response:
        assert 'immutable' in response.headers['Cache-Control']
        assert response.read() == path.read_bytes()
    policy = response.headers['Content-Security-Policy']
    assert policy.startswith("default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self';")
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
    said = (f'error: The npm package onnxruntime-web {web.VERSION} is not in {{}}. '
            f'Run npm install onnxruntime-web@{web.VERSION}, or give its folder (--runtime).')
    assert fails(trained_folders[0], '--runtime', 'elsewhere') == said.format('elsewhere')
    package = tmp_path / 'node_modules' / 'onnxruntime-web'
    package.mkdir(parents=True)
    (package / 'package.json').write_text('{"version": "1.0.0"}')
    assert fails(trained_folders[0]) == said.format('node_modules here or in a folder above')


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
