"""The promises of the package as a whole: import, README, files."""
import ast
import configparser
import importlib.metadata
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import timm_mobilenext
from timm_mobilenext.weights.authors import SOURCES
from timm_mobilenext.weights.download import cached_file

ROOT = Path(__file__).parent.parent
PACKAGE = Path(timm_mobilenext.__file__).parent


# The rooms of the package from the ground up. A room imports from those above its line, never from one below it, and
# besides these from the libraries named here: what else it may touch is in the standard library.
ROOMS = {
    '_authors': {'re', 'dataclasses', 'typing', 'torch'},
    '_layers': {'copy', 'collections', 'contextlib', 'itertools', 'typing', 'torch', 'torchvision', 'timm'},
    'pretrained': {
        'argparse', 'collections', 'contextlib', 'hashlib', 'http', 'huggingface_hub', 'logging', 'os', 'pathlib',
        'pickletools', 're', 'safetensors', 'socket', 'tempfile', 'threading', 'time', 'timm', 'torch', 'typing',
        'urllib', 'zipfile'},
    '_builder': {'logging', 'pathlib', 'typing', 'urllib', 'huggingface_hub', 'safetensors', 'timm'},
    'mobilenext': {'math', 'collections', 'functools', 'typing', 'torch', 'timm'},
    'hook': {'sys', 'contextlib', 'warnings', 'collections', 'importlib', 'types'},
    'detection': {'collections', 'copy', 'functools', 'pathlib', 'typing', 'timm', 'torch', 'torchvision'},
    'doctor': {'argparse', 'platform', 'threading', 'time', 'typing', 'huggingface_hub', 'timm', 'torch'},
    'convert': {
        'argparse', 'contextlib', 'json', 'math', 'os', 'sys', 'tempfile', 'collections', 'dataclasses', 'pathlib',
        'typing', 'huggingface_hub', 'safetensors', 'timm', 'torch'},
    'runtimes': {
        'contextlib', 'importlib', 'json', 'os', 'platform', 'sys', 'tempfile', 'collections', 'pathlib', 'typing',
        'numpy', 'torch', 'tqdm', 'timmx',
        'onnx', 'onnxruntime', 'openvino', 'nncf', 'executorch', 'ai_edge_litert', 'flatbuffers', 'coremltools',
        'ncnn'},
    'export': {
        'argparse', 'copy', 'json', 'math', 'tempfile', 'collections', 'dataclasses', 'pathlib', 'typing',
        'numpy', 'PIL', 'timm', 'torch', 'tqdm'},
    'publish': {'collections', 'pathlib', 'typing', 'huggingface_hub', 'safetensors', 'timm', 'torch'},
    'web': {
        'argparse', 'contextlib', 'copy', 'functools', 'gzip', 'hashlib', 'html', 'http', 'json', 're', 'shutil',
        'tempfile', 'collections', 'pathlib', 'typing', 'timm'},
    'autoload': {'py_compile', 'sys', 'sysconfig', 'pathlib'},
    '_end_with_parent': {'ctypes', 'signal', 'sys'},
    '__main__': {'importlib', 'multiprocessing', 'os', 'runpy', 'sys', 'types', 'zipfile'},
    '__init__': {'typing'},
}
# What only these may call: files, the command line's streams, and code from text.
CALLERS = {
    'open': {'pretrained', 'runtimes', 'export'}, 'input': set(),
    'print': {'doctor', 'convert', 'export', 'publish', 'web', 'autoload', '__main__'},
    'exec': {'__main__'}, 'compile': {'__main__'}, 'eval': set(), '__import__': set(),
}


def imports(tree: ast.AST) -> set[str]:
    """Return what a module imports, at its top or in a function, as absolute names."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = '.'.join(filter(None, ['timm_mobilenext' if node.level else '', node.module]))
            is_package = module == 'timm_mobilenext'
            found |= {f'{module}.{alias.name}' for alias in node.names} if is_package else {module}
    return found


@pytest.mark.parametrize('room', ROOMS)
def test_rooms(room):
    """A room imports from the rooms under it, touches no library but its own, and one door starts them."""
    files = {path.stem: path for path in PACKAGE.glob('*.py')}
    files |= {path.parent.name: path for path in PACKAGE.glob('*/__init__.py')}  # a room with more than code in it
    assert files.keys() == set(ROOMS)
    source = files[room].read_text()
    tree = ast.parse(source)
    ours = {name.split('.')[1] for name in imports(tree) if name.startswith('timm_mobilenext.')}
    under = [*ROOMS][:[*ROOMS].index(room)]
    assert ours - {'__version__'} <= set(under)
    others = {name.split('.')[0] for name in imports(tree)} - {'timm_mobilenext'}
    assert others == ROOMS[room]
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    called |= {node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(
        node.func, ast.Attribute) and node.func.attr == 'open'}
    assert not [name for name, callers in CALLERS.items() if name in called and room not in callers]
    assert ("if __name__ == '__main__'" in source) == (room == '__main__')


def test_model_file_works_in_timm(tmp_path):
    """mobilenext.py and the two rooms it stands on work in timm's own models/ as they are, without this package."""
    theirs = Path(timm.__file__).parent
    models = tmp_path / 'timm' / 'models'
    models.mkdir(parents=True)
    for folder in (theirs, theirs / 'models'):
        for path in folder.iterdir():
            target = tmp_path / 'timm' / path.relative_to(theirs)
            if not target.exists() and path.name != '__pycache__':
                target.symlink_to(path)
    for name in ('mobilenext.py', 'authors.py', '_layers.py'):
        shutil.copy(PACKAGE / name, models)
    init = (models / '__init__.py').read_text()
    (models / '__init__.py').unlink()
    (models / '__init__.py').write_text(init.replace(
        'from .mobilenetv5 import *\n', 'from .mobilenetv5 import *\nfrom .mobilenext import *\n'))
    (tmp_path / 'check.py').write_text("""
import sys
sys.modules['timm_mobilenext'] = None
import timm, torch, official
print(timm.__file__, len(timm.list_models('mobilenext*')))
overlay = dict(state_dict=official.state_dict('mnext_100'))
model = timm.create_model('mobilenext_100', pretrained=True, pretrained_cfg_overlay=overlay).eval()
error = official.golden_error(model(official.images()).detach(), official.case('mobilenext_100'))
print(type(model).__module__, error < 2e-3)
""")
    result = subprocess.run(
        [sys.executable, 'check.py'], capture_output=True, text=True, cwd=tmp_path, timeout=120,
        env={**os.environ, 'PYTHONPATH': str(ROOT / 'tests')})
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [
        str(tmp_path / 'timm' / '__init__.py'), '11', 'timm.models.mobilenext', 'True']


def test_version():
    """The version of the module is that of the distribution."""
    assert importlib.metadata.version('timm-mobilenext') == timm_mobilenext.__version__


def test_distribution_has_licences_and_types():
    """The installed distribution ships the licence, the notice of the authors' weights and its types."""
    files = {Path(f).name for f in importlib.metadata.files('timm-mobilenext')}
    if Path(timm_mobilenext.__file__).parent.parent == ROOT:
        pytest.skip('installed in editable mode, which ships no files')
    assert {'LICENSE', 'NOTICE', 'py.typed'} <= files
    metadata = importlib.metadata.metadata('timm-mobilenext')
    assert metadata['License-Expression'] == 'Apache-2.0'


def test_tables():
    """The tables of architectures, in the README and docs/models.md, are those that tools/tables.py makes."""
    tool = runpy.run_path(str(ROOT / 'tools' / 'tables.py'))
    for page, render in tool['PAGES'].items():
        table = render()
        assert all(f'| `{name}` |' in table for name in timm.list_models(module='mobilenext'))
        assert tool['START'] + table + tool['END'] in page.read_text()


def test_drawings():
    """The drawings in docs/img are those that tools/drawings.py makes."""
    tool = runpy.run_path(str(ROOT / 'tools' / 'drawings.py'))
    for draw in tool['DRAWINGS']:
        assert draw() == (tool['IMAGES'] / f'{draw.__name__}.svg').read_text(encoding='utf-8'), draw.__name__


@pytest.mark.parametrize('page', ['README.md', 'docs/models.md'])
def test_code(page, tmp_path, monkeypatch, known_files, capsys):
    """The Python of the page runs, with a photo and a file of the authors' layout in the cache."""
    cached = cached_file(SOURCES['mobilenext_100'], tmp_path / 'hub' / 'checkpoints')
    cached.parent.mkdir(parents=True)
    cached.symlink_to(known_files['mobilenext_100'])
    Image.effect_noise((320, 240), 64).save(tmp_path / 'photo.jpg')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code, = [block.split('```')[0] for block in (ROOT / page).read_text().split('```python\n')[1:]]
    exec(code, {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    if page == 'README.md':
        assert all(line[:6].strip().endswith('%') and line[8:].strip() for line in printed)


def test_hubconf():
    """Every architecture loads through torch.hub from a checkout."""
    entrypoints = {k for k, v in runpy.run_path(str(ROOT / 'hubconf.py')).items() if callable(v) and k[0] != '_'}
    assert entrypoints == set(timm.list_models(module='mobilenext'))
    model = torch.hub.load(str(ROOT), 'mobilenext_035', source='local', pretrained=False, num_classes=7)
    assert model.classifier.out_features == 7


def test_no_fact_in_both_config_files():
    """setup.cfg configures pycodestyle, which cannot read pyproject.toml, and nothing else."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    assert config.sections() == ['pycodestyle']
    assert '[tool.pycodestyle' not in (ROOT / 'pyproject.toml').read_text()


def test_quickstart_draws_and_reports(tmp_path):
    """The quickstart trains any architecture, says where its weights come from, prints top-1 and writes a picture."""
    picture = tmp_path / 'picture.png'
    result = subprocess.run(
        [sys.executable, str(ROOT / 'examples' / 'quickstart.py'), '--model', 'mobilenext_035', '--epochs', '1',
         '--output', str(picture)],
        capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr
    assert 'Training mobilenext_035 from scratch: No pretrained weights exist' in result.stdout
    assert 'top-1 on 360 held-out images: ' in result.stdout
    assert picture.read_bytes().startswith(b'\x89PNG')
