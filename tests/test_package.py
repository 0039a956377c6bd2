"""The promises of the package as a whole: import, README, files."""
import configparser
import importlib.metadata
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import timm_mobilenext
from timm_mobilenext._authors import SOURCES
from timm_mobilenext.pretrained import cached_file

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


def run_python(code: str) -> str:
    """Run code in a new interpreter and return all that it prints."""
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT / 'tests', timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_import_is_silent():
    """Importing the package prints nothing, warns of nothing and logs nothing."""
    assert run_python(
        'import timm, warnings, logging\nlogging.basicConfig(level=0)\n'
        'with warnings.catch_warnings():\n    warnings.simplefilter("error"); import timm_mobilenext') == ''


def test_import_is_light():
    """The import loads no module beside those of timm but the package's own and PyTorch's conv and norm folding."""
    loaded = run_python(
        'import sys, timm; before = set(sys.modules); import timm_mobilenext; print(*set(sys.modules) - before)')
    assert {name for name in loaded.split() if not name.startswith('torch.')} == {
        'timm_mobilenext', *(f'timm_mobilenext.{room}' for room in (
            'hook', 'mobilenext', '_authors', '_builder', '_layers', 'pretrained'))}


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


def test_readme_table():
    """The table of the README is the one that tools/readme_table.py makes from the registry."""
    tool = runpy.run_path(str(ROOT / 'tools' / 'readme_table.py'))
    assert sorted(tool['CLAIMS']) == sorted(timm.list_models(module='mobilenext'))
    assert tool['START'] + tool['render']() + tool['END'] in README


def test_readme_code(tmp_path, monkeypatch, known_files):
    """The Python of the README runs, with a file of the authors' layout in the cache and where it names one."""
    (tmp_path / 'model_best.pth.tar').symlink_to(known_files['mobilenext_100'])
    cached = cached_file(SOURCES['mobilenext_100'], tmp_path / 'hub' / 'checkpoints')
    cached.parent.mkdir(parents=True)
    cached.symlink_to(known_files['mobilenext_100'])
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    blocks = [block.split('```')[0] for block in README.split('```python\n')[1:]]
    assert len(blocks) == 4
    for block in blocks:
        exec(block, {})


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
