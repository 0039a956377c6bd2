"""What is true of any input: a checkpoint of any bytes, any arguments of a network, any command line.

hypothesis makes the inputs, the same few in each run. `EXAMPLES=2000 pytest -n0 tests/test_properties.py` makes that
many for each property, different ones in each run.
"""
import argparse
import contextlib
import functools
import io
import os
import pickle
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
from networks import ARCHITECTURES, SHORT, SMALL
from safetensors.torch import save as save_safetensors

from timm_mobilenext import __main__ as launcher
from timm_mobilenext import doctor
from timm_mobilenext.__main__ import COMMANDS
from timm_mobilenext.deploy import web

EXAMPLES = int(os.environ.get('EXAMPLES', '0'))
floats = functools.partial(st.floats, allow_subnormal=False)  # PyTorch may have the processor flush them
# no folder of hypothesis in the tree: neither its examples nor its tables of characters
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
    """Check that a file is loaded or refused with a message, and that nothing else is left.

    Returns:
        Whether `create_model` loaded it, and whether `convert` did.
    """
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
    """Small checkpoints in each format that there is."""
    state = OrderedDict(timm.create_model(SMALL, num_classes=3, **TINY).state_dict())
    args = argparse.Namespace(model=SMALL, model_kwargs=TINY, num_classes=3, mean=[0.5] * 3, img_size=32, gp='avg')
    run = dict(epoch=3, arch=SMALL, state_dict=state, state_dict_ema=state, args=args, version=2, metric=87.5)
    run |= dict(optimizer=dict(state={0: dict(step=1)}, param_groups=[dict(lr=0.1, params=[0])]))
    return {
        'zip': saved(state), 'legacy': saved(state, True), 'run': saved(run), 'legacy run': saved(run, True),
        'safetensors': save_safetensors(state, {'format': 'pt', 'license': 'mit'}),
    }


def test_checkpoints_load(checkpoints):
    """The checkpoints that are damaged below load while they are whole."""
    for name, content in checkpoints.items():
        assert check_loads(content, '.safetensors' if name == 'safetensors' else '.pth') == (True, True), name


@examples(40)
@given(
    st.binary(max_size=300) | st.tuples(
        st.sampled_from([
            b'PK\3\4', b'PK\5\6', b'\x80\2', b'\x80\5', pickle.dumps(0x1950a86a20f9469cfc6c, 2), b'\x93NUMPY',
            b'\x7fELF', b'GIF89a', b'{}', b'\x08\0\0\0\0\0\0\0{}      ', b'ustar', b'\0' * 512]),
        st.binary(max_size=300)).map(b''.join),
    st.sampled_from(SUFFIXES))
def test_any_bytes(content, suffix):
    """Bytes that are no checkpoint are refused with a message."""
    assert check_loads(content, suffix) == (False, False)


@examples(40)
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
    if data.draw(st.booleans()):
        place = data.draw(places)
        content[place:place] = data.draw(st.binary(max_size=20))
    suffix = '.safetensors' if name == 'safetensors' else '.pth'
    check_loads(bytes(content), data.draw(st.sampled_from([suffix] * 4 + SUFFIXES)))


# -- arguments of a network

@examples(30)
@given(name=st.sampled_from([n for n in ARCHITECTURES if 'ghost' not in n]), kwargs=st.fixed_dictionaries(
    dict(stages=st.sampled_from([TINY['stages'], SHORT['stages']]), width_mult=floats(0.2, 1.4)),
    optional=dict(
        depth_mult=floats(0.1, 2), identity_ratio=floats(0, 1), in_chans=st.integers(1, 8),
        num_classes=st.integers(0, 20), output_stride=st.sampled_from([8, 16, 32]), se_ratio=floats(0, 2),
        drop_rate=floats(0, 0.9), drop_path_rate=floats(0, 0.9), keep_3x3=st.booleans(), recompute_act=st.booleans(),
        global_pool=st.sampled_from(['avg', 'max', 'avgmax', 'catavgmax', 'fast']),
        act_layer=st.sampled_from(['relu6', 'silu', 'gelu', 'hard_swish', 'leaky_relu']),
        norm_layer=st.sampled_from(['batchnorm2d', 'groupnorm1', torch.nn.BatchNorm2d]))))
def test_any_arguments(name, kwargs):
    """Any combination of the usual arguments makes a network that answers and learns, with finite values."""
    model = timm.create_model(name, **kwargs)
    out = model(torch.randn(2, model.in_chans, 32, 32))
    assert out.shape == (2, model.num_classes or model.head_hidden_size)
    assert out.isfinite().all()
    out.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# -- command lines

WORDS = st.text(max_size=6) | st.binary(max_size=6).map(lambda name: name.decode('utf-8', 'surrogateescape'))
MODULES = WORDS | st.sampled_from([
    '', '.', '..', 'a.b', '.a', 'a.', 'os.path.x', 'sys', 'builtins', 'xml', 'timm_mobilenext.nothing', 'a-b'])
VALUES = WORDS | st.sampled_from([
    '', '0', '-1', '1e999', 'nan', '99999', '-', '--', '\0', '.', '..', '/', '~', 'a/b/c', '/dev/null', 'missing.py',
    'x' * 5000, 'onnx', 'litert', 'int8', 'width_mult=x', 'stages=1', 'a=b=c', '=', 'device=meta', 'a={[]: 1}',
    'resnet18', 'hf-hub:me/mine', 'hf-hub:', 'local-dir:', 'local-dir:x', 'x:y', *ARCHITECTURES, '../junk',
    '../junk/x', '../names', '../folder', 'x=../junk', *COMMANDS])
OPTIONS = st.sampled_from([
    '-h', '--help', '-o', '--output', '--output=', '--format', '--format=onnx', '--model', '--model-kwargs',
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
    """Start in an empty folder, beside files that are no checkpoints, with what takes seconds left out."""
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
        assert err.startswith(('usage: ', 'timm_mobilenext: ', 'error: '))
    assert os.listdir() == []
