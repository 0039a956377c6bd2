"""What is true of any input: a checkpoint of any bytes, any command line.

hypothesis makes the inputs, the same few in each run. To have more of them, different in each run, use
`EXAMPLES=2000 pytest -n0 tests/test_properties.py`.
"""
import argparse
import contextlib
import io
import os
import sys
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import SMALL
from safetensors.torch import save as save_safetensors

from timm_mobilenext import __main__ as launcher
from timm_mobilenext import doctor
from timm_mobilenext.__main__ import COMMANDS
from timm_mobilenext.deploy import web

EXAMPLES = int(os.environ.get('EXAMPLES', '0'))
# keep the examples and tables of hypothesis out of the tree
hypothesis.configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / 'hypothesis')


def examples(count: int) -> Callable:
    """Return the settings of a property: how many examples it has in a usual run, always the same ones."""
    return settings(
        max_examples=EXAMPLES or count, derandomize=not EXAMPLES, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture])


def launch(*args: str) -> tuple[object, str, str]:
    """Run `python -m timm_mobilenext` in this process; return the exit code, the output and the errors."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out, \
            contextlib.redirect_stderr(io.StringIO()) as err:
        patch.setattr(sys, 'argv', ['timm_mobilenext', *args])
        patch.setattr(sys, 'path', [*sys.path])
        patch.setattr(sys, 'excepthook', sys.excepthook)
        patch.setitem(sys.modules, '__main__', sys.modules['__main__'])
        try:
            code: object = launcher.main()
        except SystemExit as error:
            code = error.code
            if isinstance(code, str):
                print(code, file=err)
    return code, out.getvalue(), err.getvalue()


# -- checkpoints

TINY: dict[str, Any] = dict(stages=((2, 16, 1, 2, 3), (6, 16, 2, 1, 3)))
SUFFIXES = ['.pth.tar', '.pth', '.bin', '.safetensors', '']


def check_loads(content: bytes, suffix: str) -> tuple[bool, bool]:
    """Check that a file is loaded or refused with a message; return whether `create_model` and `convert` loaded it."""
    with tempfile.TemporaryDirectory() as work, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        path = Path(work) / f'checkpoint{suffix}'
        path.write_bytes(content)
        try:
            timm.create_model(
                SMALL, pretrained=True, pretrained_cfg_overlay=dict(file=str(path), num_classes=3), num_classes=3,
                **TINY)
            is_created = True
        except RuntimeError:
            is_created = False
        code, _, err = launch('convert', str(path), '--model', SMALL, '-o', f'{work}/out', '--model-kwargs',
                              f'stages={TINY["stages"]}')
        assert not code or err.startswith('error: ')
        assert set(os.listdir(work)) == {path.name, *(() if code else ['out'])}
    return is_created, not code


def saved(value: Any, is_legacy: bool = False) -> bytes:
    """Return what `torch.save` writes."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not is_legacy)
    return file.getvalue()


@pytest.fixture(scope='module')
def checkpoints() -> dict[str, bytes]:
    """Small checkpoints in each format."""
    state = OrderedDict(timm.create_model(SMALL, num_classes=3, **TINY).state_dict())
    args = argparse.Namespace(model=SMALL, model_kwargs=TINY, num_classes=3, mean=[0.5] * 3, img_size=32, gp='avg')
    run = dict(epoch=3, arch=SMALL, state_dict=state, state_dict_ema=state, args=args, optimizer=dict(state={}))
    return {
        'zip': saved(state), 'legacy': saved(state, True), 'run': saved(run), 'legacy run': saved(run, True),
        'safetensors': save_safetensors(state, {'format': 'pt', 'license': 'mit'}),
    }


def test_checkpoints_load(checkpoints):
    """The checkpoints that are damaged below load while they are whole, and bytes that are not one do not."""
    for name, content in checkpoints.items():
        assert check_loads(content, '.safetensors' if name == 'safetensors' else '.pth') == (True, True), name
    for content in (b'', b'PK\3\4', b'\x80\2junk', b'\x93NUMPY', b'{}', b'\x08\0\0\0\0\0\0\0{}      ', b'\0' * 512):
        for suffix in SUFFIXES:
            assert check_loads(content, suffix) == (False, False)


@examples(50)
@given(data=st.data(), name=st.sampled_from(['zip', 'legacy', 'run', 'legacy run', 'safetensors']))
def test_damaged_checkpoints(checkpoints, data, name):
    """A checkpoint that was cut, or in which some bytes were changed, is loaded or refused with a message."""
    content = bytearray(checkpoints[name])
    end = len(content) - 1
    # most bytes are weights: look where the structure is
    places = st.integers(0, min(end, 3000)) | st.integers(max(0, end - 3000), end) | st.integers(0, end)
    for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=4)):
        content[place] = byte
    if data.draw(st.booleans()):
        content = content[:data.draw(places)]
    suffix = '.safetensors' if name == 'safetensors' else '.pth'
    check_loads(bytes(content), data.draw(st.sampled_from([suffix] * 4 + SUFFIXES)))


# -- command lines

WORDS = st.text(max_size=6) | st.binary(max_size=6).map(lambda name: name.decode('utf-8', 'surrogateescape'))
MODULES = WORDS | st.sampled_from(['', '.', 'a.b', '.a', 'a.', 'os.path.x', 'sys', 'xml', 'timm_mobilenext.nothing'])
VALUES = WORDS | st.sampled_from([
    '', '0', '-1', 'nan', '99999', '--', '\0', '.', '/', 'a/b/c', '/dev/null', 'missing.py', 'x' * 5000, 'onnx', 'int8',
    'width_mult=x', 'stages=1', 'a=b=c', '=', 'device=meta', 'a={[]: 1}', 'resnet18', 'hf-hub:me/mine', 'hf-hub:',
    'local-dir:x', 'x:y', SMALL, '../junk', '../junk/x', '../names', '../folder', 'x=../junk', *COMMANDS])
OPTIONS = st.sampled_from([
    '--help', '-o', '--output', '--output=', '--format', '--format=onnx', '--model', '--model-kwargs',
    '--label-names', '--license', '--cache-dir', '--calibration', '--check', '--num-images', '--img-size', '--mean',
    '--std', '--weights', '--int8', '--keep', '--repo-id', '--dataset', '--private', '--overwrite', '--title',
    '--serve', '--port', '--runtime', '--push', '--min-agreement'])
SOME = st.lists(st.tuples(OPTIONS, VALUES) | st.tuples(VALUES), max_size=3).map(lambda parts: [*sum(parts, ())])
LINES = st.one_of(
    st.lists(WORDS | VALUES | OPTIONS, max_size=4),
    st.tuples(st.just('-m'), MODULES).map(list),
    st.tuples(st.sampled_from([*COMMANDS]), SOME).map(lambda line: [line[0], *line[1]]),
    st.tuples(
        st.sampled_from(['convert', 'publish', 'export', 'web']),
        st.sampled_from([SMALL, '../junk', '../folder']) | VALUES, SOME,
    ).map(lambda line: [*line[:2], '--output', 'x', *line[2]]))


@pytest.fixture
def empty_folder(tmp_path, monkeypatch) -> None:
    """Start in an empty folder, beside files that are not checkpoints, without what takes seconds."""
    for folder in ('work', 'folder'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'junk').write_bytes(b'\xff no weights')
    (tmp_path / 'names').write_bytes(b'\xff')
    (tmp_path / 'folder' / 'models.json').write_text('{}')  # which `web` would serve
    monkeypatch.setattr(web.http.server.ThreadingHTTPServer, 'serve_forever', lambda self: None)
    monkeypatch.setattr(doctor, 'report', lambda: 'report')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.chdir(tmp_path / 'work')


@examples(200)
@given(line=LINES)
def test_any_command_line(empty_folder, line):
    """Any command line ends with an exit code and a message, without a traceback; where it fails it leaves nothing."""
    if line[:1] in (['../junk'], ['../names'], ['/dev/null']):  # they would run as scripts
        line = ['convert', *line]
    code, out, err = launch(*line)
    assert 'Traceback' not in err
    if code in (None, 0):
        assert out
        for file in os.listdir():  # of `recipe`
            os.remove(file)
    else:
        assert err.startswith('error: ')
    assert os.listdir() == []
