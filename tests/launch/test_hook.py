"""Registering: the import of the package, before timm or after it, is all that it takes, and it takes little."""
import ast
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

import timm_mobilenext
from timm_mobilenext import mobilenext
from timm_mobilenext.launch import hook

# imports the package, and lets no warning and no line of a log pass unseen
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
    """The import is silent, loads the rooms that registration needs and nothing that timm does not, and registers."""
    loaded = run_python(f"""
import sys, timm
{IMPORT}
print(*new)
assert len(timm.list_models(module='mobilenext')) == 11""")
    assert {name for name in loaded.split() if not name.startswith('torch.')} == {
        'timm_mobilenext', *(f'timm_mobilenext.{room}' for room in (
            'hook', 'mobilenext', '_authors', '_builder', '_layers', 'pretrained'))}


def test_import_before_timm():
    """The import alone is silent and brings nothing along; that of timm registers, and so does a name of ours."""
    printed = run_python(f"""
import sys, typing
{IMPORT}
assert new == {{'timm_mobilenext', 'timm_mobilenext.launch.hook'}}, new
assert not hasattr(timm_mobilenext, 'mobilenet') and 'timm' not in sys.modules
logging.disable()  # packages that PyTorch imports where they are installed, as pydot, write to the log
from timm_mobilenext import mobilenext_035
import timm
assert timm.model_entrypoint('mobilenext_035') is mobilenext_035
assert len(timm.list_models(module='mobilenext')) == 11
assert not [finder for finder in sys.meta_path if type(finder).__name__ == 'Hook']""")
    assert printed == ''


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='takes a fork for each room')
def test_every_room_may_be_first():
    """Whichever module of the package a program imports first, timm knows the models, said without a warning."""
    rooms = [path.stem for path in Path(timm_mobilenext.__file__).parent.glob('*.py') if path.stem != '__main__']
    printed = run_python(f"""
import importlib, os, sys, warnings
import torch, torchvision
for room in {rooms}:
    if os.fork() == 0:
        warnings.simplefilter('error', RuntimeWarning)
        importlib.import_module('timm_mobilenext.' + room)
        import timm
        print(room, len(timm.list_models(module='mobilenext')), flush=True)
        os._exit(0)
    os.wait()""")
    assert printed.splitlines() == [f'{room} 11' for room in rooms]


def test_names_for_static_tools():
    """What a type checker sees of the package is what there is: the classes and the architectures."""
    tree = ast.parse(Path(timm_mobilenext.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert block.test.id == 'TYPE_CHECKING'
    assert [alias.asname for alias in block.body[0].names] == sorted(
        mobilenext.__all__, key=lambda name: (name.islower(), name))
    for name in mobilenext.__all__:
        assert getattr(timm_mobilenext, name) is getattr(mobilenext, name)
    with pytest.raises(AttributeError, match="module 'timm_mobilenext' has no attribute 'mobilenext_999'"):
        timm_mobilenext.mobilenext_999  # noqa: B018


def test_what_is_found_behind(monkeypatch):
    """The hook gives what the finders behind it find, and nothing where they find nothing."""
    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec:
            return ModuleSpec(name, None)  # as of a package that is a folder alone

    first = hook.Hook()
    monkeypatch.setattr(sys, 'meta_path', [first])
    assert first.find_spec(hook.TARGET) is None
    monkeypatch.setattr(sys, 'meta_path', [first, Finder])
    assert first.find_spec(hook.TARGET).name == hook.TARGET
