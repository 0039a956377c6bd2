"""The promises of the package as a whole: modules, import, README, files."""
import ast
import graphlib
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from PIL import Image

import timm_mobilenext
from timm_mobilenext.weights.authors import SOURCES
from timm_mobilenext.weights.download import cached_file

ROOT = Path(__file__).parent.parent
PACKAGE = Path(timm_mobilenext.__file__).parent
# what changes in mobilenext.py when it moves into timm, beside files of these names
MOVE_INTO_TIMM = {
    'from timm_mobilenext import _builder, _layers\n': 'from . import _builder, _layers\n',
    'from timm_mobilenext.weights import authors\n': 'from . import _authors as authors\n',
}


def test_imports_go_one_way():
    """No modules of the package import each other in a circle, and none imports the command line."""
    graph = {}
    for path in PACKAGE.rglob('*.py'):
        name = '.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts).removesuffix('.__init__')
        imported = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                imported |= {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
        graph[name] = imported - {'timm_mobilenext'}
    assert 'timm_mobilenext.mobilenext' in {*graphlib.TopologicalSorter(graph).static_order()}
    assert not [name for name, imported in graph.items() if 'timm_mobilenext.__main__' in imported]


def test_few_entries_at_the_top():
    """A reader who opens the package meets at most ten modules and folders."""
    entries = {path.name for path in PACKAGE.iterdir()} - {'__init__.py', '__pycache__', 'py.typed'}
    assert len(entries) <= 10


@pytest.mark.slow  # compiles timm once more
def test_model_file_works_in_timm(tmp_path):
    """With the imports that its comment names, mobilenext.py works in timm's own models/."""
    models = tmp_path / 'timm' / 'models'
    shutil.copytree(Path(timm.__file__).parent, models.parent)
    source = (PACKAGE / 'mobilenext.py').read_text()
    for ours, theirs in MOVE_INTO_TIMM.items():
        assert ours in source
        source = source.replace(ours, theirs)
    (models / 'mobilenext.py').write_text(source)
    shutil.copy(PACKAGE / '_layers.py', models)
    shutil.copy(PACKAGE / 'weights' / 'authors.py', models / '_authors.py')
    with (models / '__init__.py').open('a') as file:
        file.write('from .mobilenext import *\n')
    (tmp_path / 'check.py').write_text("""
import sys
sys.modules['timm_mobilenext'] = None
import timm, official
assert len(timm.list_models('mobilenext*')) == 11
weights = official.state_dict('mnext_100')
model = timm.create_model('mobilenext_100', pretrained=True, pretrained_cfg_overlay=dict(state_dict=weights))
assert model.stem.conv.weight.equal(weights['features.0.0.weight'])
print(timm.__file__, type(model).__module__)
""")
    result = subprocess.run(
        [sys.executable, 'check.py'], capture_output=True, text=True, cwd=tmp_path, timeout=120,
        env={**os.environ, 'PYTHONPATH': str(ROOT / 'tests')})
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(models.parent / '__init__.py'), 'timm.models.mobilenext']


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
    """hubconf.py has every architecture for torch.hub."""
    entrypoints = {k for k, v in runpy.run_path(str(ROOT / 'hubconf.py')).items() if callable(v) and k[0] != '_'}
    assert entrypoints == set(timm.list_models(module='mobilenext'))


@pytest.mark.slow  # an epoch of training
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
