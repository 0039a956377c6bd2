"""Registering: importing the package, before timm or after it, is enough, and is quick."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

import timm_mobilenext

# imports the package, and shows every warning and every line of a log
IMPORT = """
import logging, warnings
logging.basicConfig(level=0)
before = set(sys.modules)
with warnings.catch_warnings():
    warnings.simplefilter('error')
    import timm_mobilenext
new = set(sys.modules) - before
"""


def run_python(code: str) -> str:
    """Run code in a new interpreter, without the garbage collector, and return all that it prints."""
    result = subprocess.run(
        [sys.executable, '-c', f'import gc; gc.disable()\n{code}'], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_import_after_timm():
    """The import is silent, registers the models, and loads only what they need, nothing that timm does not load."""
    loaded = run_python(f"""
import sys, timm
{IMPORT}
print(*new)
assert len(timm.list_models(module='mobilenext')) == 11""")
    names = {name for name in loaded.split() if not name.startswith('torch.')}
    assert all(name.startswith('timm_mobilenext') for name in names), names
    assert 'timm_mobilenext.mobilenext' in names
    assert not {f'timm_mobilenext.{name}' for name in ('deploy', 'detection', 'doctor', 'cli')} & names


def test_import_before_timm():
    """The import itself is silent and loads nothing; importing timm registers, and so does a name of the package."""
    printed = run_python(f"""
import importlib.machinery, sys, typing
{IMPORT}
assert new == {{'timm_mobilenext', 'timm_mobilenext.launch', 'timm_mobilenext.launch.hook'}}, new
assert not hasattr(timm_mobilenext, 'mobilenet') and 'timm' not in sys.modules
logging.disable()  # packages that PyTorch imports if they are installed, e.g. pydot, write to the log
from timm_mobilenext import mobilenext_035
import timm
assert timm.model_entrypoint('mobilenext_035') is mobilenext_035
assert len(timm.list_models(module='mobilenext')) == 11
assert not [finder for finder in sys.meta_path if type(finder).__name__ == 'Hook']""")
    assert printed == ''


@pytest.mark.slow  # imports timm once for each module
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs a fork for each module')
def test_any_module_may_be_imported_first():
    """Whichever module of the package a program imports first, timm has the models, without a warning."""
    root = Path(timm_mobilenext.__file__).parent
    modules = sorted(path.relative_to(root.parent).with_suffix('').as_posix().replace('/', '.')
                     for path in root.rglob('*.py') if path.stem not in ('__init__', '__main__'))
    printed = run_python(f"""
import importlib, os, sys, warnings
import torch, torchvision
for module in {modules}:
    if os.fork() == 0:
        warnings.simplefilter('error', RuntimeWarning)
        importlib.import_module(module)
        import timm
        print(module, len(timm.list_models(module='mobilenext')), flush=True)
        os._exit(0)
    os.wait()""")
    assert printed.splitlines() == [f'{module} 11' for module in modules]
