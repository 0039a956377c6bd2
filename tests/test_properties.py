"""What holds for any input: a checkpoint of any bytes, any arguments of a network, any command line.

hypothesis makes the inputs, the same few at each run. `EXAMPLES=2000 pytest -n0 tests/test_properties.py` makes so many
for each property, others at each run.
"""
import argparse
import contextlib
import functools
import io
import json
import math
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import timm
import torch
import torch.nn as nn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import ARCHITECTURES, SHORT, SMALL
from safetensors.torch import save as save_safetensors

from timm_mobilenext import __main__ as launcher
from timm_mobilenext import doctor, mobilenext
from timm_mobilenext.deploy import export, web
from timm_mobilenext.weights import authors, convert, download
from timm_mobilenext.__main__ import COMMANDS

EXAMPLES = int(os.environ.get('EXAMPLES', '0'))
floats = functools.partial(st.floats, allow_subnormal=False)  # PyTorch may have the processor flush them
# no folder of hypothesis in the tree: neither its examples nor its tables of characters
hypothesis.configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / 'hypothesis')


def examples(count: int) -> Callable:
    """Return the settings of a property: how many examples it has in a usual run, always the same ones."""
    return settings(
        max_examples=EXAMPLES or count, derandomize=not EXAMPLES, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture])


# -- checkpoints

TINY: dict[str, Any] = dict(stages=((2, 16, 1, 2, 3), (6, 16, 2, 1, 3)))
SUFFIXES = ['.pth.tar', '.pth', '.bin', '.safetensors', '']
WATCHED = {
    'os.system', 'os.exec', 'os.fork', 'os.forkpty', 'os.posix_spawn', 'os.spawn', 'subprocess.Popen', 'socket.connect',
    'ctypes.dlopen', 'os.kill', 'os.putenv', 'builtins.input', 'pty.spawn'}
CANARY = 'timm-mobilenext-canary'  # in all that a file asks for that would do harm
events: list[str] | None = None  # what an audit hook saw, while somebody looks


def _audit(event: str, args: tuple) -> None:
    if events is not None and (event in WATCHED or CANARY in str(args)):
        events.append(f'{event} {args}')


sys.addaudithook(_audit)


@contextlib.contextmanager
def no_code_runs() -> Iterator[None]:
    """Fail if what is done meanwhile starts a program or does what a file asks for."""
    global events
    events = []
    try:
        yield
        assert events == []
    finally:
        events = None


def refusal(call: Callable[[], Any], *errors: type[BaseException]) -> str:
    """Return what an error of one of these types says, of no type that is derived from them, '' if there is none."""
    try:
        call()
    except (Exception, SystemExit) as error:
        if type(error) not in errors or not str(error):
            raise
        return str(error)
    return ''


def check_doors(content: bytes, suffix: str) -> dict[str, str]:
    """Have a file loaded in each way that a user has, and check that it is loaded or refused as documented.

    Returns:
        What each way came to, '' where it loaded the file.
    """
    with tempfile.TemporaryDirectory() as work, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        path = Path(work) / f'checkpoint{suffix}'
        path.write_bytes(content)
        with no_code_runs():
            read = refusal(lambda: download.read(path), RuntimeError)
        assert read == '' or read.startswith(f'{path} was not loaded: ')
        assert read == '' or 'Expected a safetensors file or a PyTorch checkpoint' in read
        created = refusal(lambda: timm.create_model(
            SMALL, pretrained=True, pretrained_cfg_overlay=dict(file=str(path), num_classes=3), num_classes=3, **TINY,
        ), RuntimeError)
        converted = refusal(lambda: convert.main(
            [SMALL, str(path), '-o', f'{work}/out', '--model-kwargs', f'stages={TINY["stages"]}']), SystemExit)
        assert converted.startswith('error: ') or (converted == '' and Path(work, 'out').is_dir())
        shutil.rmtree(Path(work, 'out'), ignore_errors=True)
        exported = refusal(lambda: export.load(path, SMALL, TINY), RuntimeError, ValueError)
        assert os.listdir(work) == [path.name]
        assert read == '' or all((created, converted, exported))
    return dict(read=read, create_model=created, convert=converted, export=exported)


def tiny_state(**kwargs: Any) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict(timm.create_model(SMALL, num_classes=3, **TINY, **kwargs).state_dict())


def saved(value: Any, is_legacy: bool = False) -> bytes:
    """Return what `torch.save` writes."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not is_legacy)
    return file.getvalue()


@pytest.fixture(scope='module')
def checkpoints() -> dict[str, bytes]:
    """Small checkpoints in each format that there is."""
    state = tiny_state()
    args = argparse.Namespace(model=SMALL, model_kwargs=TINY, num_classes=3, mean=[0.5] * 3, img_size=32, gp='avg')
    run = dict(epoch=3, arch=SMALL, state_dict=state, state_dict_ema=state, args=args, version=2, metric=87.5)
    run |= dict(optimizer=dict(state={0: dict(step=1)}, param_groups=[dict(lr=0.1, params=[0])]))
    return {
        'zip': saved(state), 'legacy': saved(state, True), 'run': saved(run), 'legacy run': saved(run, True),
        'safetensors': save_safetensors(state, {'format': 'pt', 'license': 'mit'}),
    }


def test_checkpoints_load(checkpoints):
    """The checkpoints that are damaged below are loaded in each way when they are whole."""
    for name, content in checkpoints.items():
        suffix = '.safetensors' if name == 'safetensors' else '.pth'
        assert check_doors(content, suffix) == dict.fromkeys(['read', 'create_model', 'convert', 'export'], '')


@examples(40)
@given(
    st.binary(max_size=300) | st.tuples(
        st.sampled_from([
            b'PK\3\4', b'PK\5\6', b'\x80\2', b'\x80\5', pickle.dumps(0x1950a86a20f9469cfc6c, 2), b'\x93NUMPY',
            b'\x7fELF', b'GIF89a', b'{}', b'\x08\0\0\0\0\0\0\0{}      ', b'ustar', b'\0' * 512]),
        st.binary(max_size=300)).map(b''.join),
    st.sampled_from(SUFFIXES))
def test_any_bytes(content, suffix):
    """Any bytes are refused, or hold nothing that a model takes."""
    assert check_doors(content, suffix)['create_model']


@examples(40)
@given(data=st.data(), name=st.sampled_from(['zip', 'legacy', 'run', 'legacy run', 'safetensors']))
def test_damaged_checkpoints(checkpoints, data, name):
    """A checkpoint that was cut, or in which some bytes are others, is loaded or refused."""
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
    check_doors(bytes(content), data.draw(st.sampled_from([suffix] * 4 + SUFFIXES)))


@dataclass
class Op:
    """An operation of a pickle and what it is done with."""

    name: str
    parts: tuple = ()


def pickled(value: Any) -> bytes:
    """Return the operations that make a value, as pickle's protocol 2 writes them."""
    if not isinstance(value, (Op, tuple, list, dict)):
        return pickle.dumps(value, 2)[2:-1]
    if isinstance(value, list):
        return b'](' + b''.join(map(pickled, value)) + b'e'
    if isinstance(value, tuple):
        return b'(' + b''.join(map(pickled, value)) + b't'
    if isinstance(value, dict):
        return b'}(' + b''.join(pickled(part) for item in value.items() for part in item) + b'u'
    if value.name == 'GLOBAL':
        return b'c%b\n%b\n' % tuple(part.encode('utf-8', 'surrogatepass') for part in value.parts)
    codes = {
        'REDUCE': b'R', 'BUILD': b'b', 'NEWOBJ': b'\x81', 'PERSID': b'Q', 'POP': b'0', 'STOP': b'.', 'DUP': b'2',
        'PUT': b'q\0', 'GET': b'h\0', 'SETITEM': b's', 'APPEND': b'a', 'SET': b'\x8f'}
    return b''.join(map(pickled, value.parts)) + codes[value.name]


DANGEROUS = [
    ('os', 'system'), ('posix', 'system'), ('nt', 'system'), ('subprocess', 'Popen'), ('subprocess', 'check_output'),
    ('builtins', 'eval'), ('builtins', 'exec'), ('builtins', '__import__'), ('builtins', 'getattr'),
    ('builtins', 'open'), ('__builtin__', 'eval'), ('__builtin__', 'execfile'), ('commands', 'getoutput'),
    ('runpy', 'run_path'), ('shutil', 'rmtree'), ('importlib', 'import_module'), ('pickle', 'loads'),
    ('torch', 'load'), ('torch.hub', 'load'), ('torch.jit', 'load'), ('torch.serialization', 'add_safe_globals'),
    ('torch.serialization', 'load'), ('torch._utils', '_rebuild_tensor.__globals__'), ('torch', 'ops.aten.relu'),
    ('torch.utils._config_module', 'ConfigModule.load_config'), ('torch.storage', '_load_from_bytes'),
    ('numpy', 'load'), ('numpy.testing._private.utils', 'runstring'), ('timm.models', 'load_checkpoint'),
    ('argparse', 'FileType'), ('argparse', 'Namespace.__init__.__globals__'),
    ('timm_mobilenext.weights.convert', 'main')]
ALLOWED = [
    ('argparse', 'Namespace'), ('collections', 'OrderedDict'), ('collections', 'Counter'), ('torch', 'Tensor'),
    ('torch', 'FloatTensor'), ('torch', 'FloatStorage'), ('torch', 'UntypedStorage'), ('torch.storage', 'TypedStorage'),
    ('torch.storage', 'UntypedStorage'), ('torch', 'Size'), ('torch', 'device'), ('torch', 'float32'),
    ('torch.nn.parameter', 'Parameter'), ('_codecs', 'encode'), ('__builtin__', 'bytearray'), ('__builtin__', 'set'),
    ('__builtin__', 'complex'), ('torch.serialization', '_get_layout'), ('torch.sparse', 'FloatTensor'),
    ('torch._tensor', '_rebuild_from_type_v2'),
    *(('torch._utils', f'_rebuild_{name}') for name in (
        'tensor', 'tensor_v2', 'tensor_v3', 'parameter', 'parameter_with_state', 'qtensor', 'sparse_tensor',
        'meta_tensor_no_storage', 'nested_tensor', 'wrapper_subclass', 'device_tensor_from_numpy',
        'device_tensor_from_cpu_tensor'))]
CODE = f"__import__('os').mkdir('{CANARY}')"
NAMES = [*tiny_state()]


def called(name: tuple[str, str], *args: Any) -> Op:
    return Op('REDUCE', (Op('GLOBAL', name), args))


def storage(kind: str = 'FloatStorage', key: str = '0', numel: int = 16, device: str = 'cpu') -> Op:
    return Op('PERSID', (('storage', Op('GLOBAL', ('torch', kind)), key, device, numel),))


def stored_tensor(size: tuple[int, ...], stride: tuple[int, ...], *, offset: int = 0, **kwargs: Any) -> Op:
    return called(('torch._utils', '_rebuild_tensor_v2'), storage(**kwargs), offset, size, stride, False,
                  called(('collections', 'OrderedDict')))


integers = st.integers(-3, 40) | st.sampled_from([2 ** 31 - 1, 2 ** 31, 2 ** 40, 2 ** 62, 2 ** 63 - 1, -2 ** 63])
sizes = st.lists(integers, max_size=4).map(tuple)
texts = st.text(st.characters(exclude_characters='\n\r'), max_size=8) | st.sampled_from(
    ['state_dict', 'state_dict_ema', 'model', 'args', 'items', 'keys', 'get', '__class__', 'cpu', 'meta', 'cuda:0', '0',
     'storage', CODE, f'touch {CANARY}', CANARY, *NAMES])
names = st.sampled_from(DANGEROUS + ALLOWED * 2).map(lambda name: Op('GLOBAL', name)) | st.tuples(texts, texts).map(
    lambda name: Op('GLOBAL', name))
tensors = st.builds(
    stored_tensor, sizes, sizes, offset=integers, numel=integers, key=st.sampled_from(['0', '1', '2', '../x', '']),
    kind=st.sampled_from(['FloatStorage', 'HalfStorage', 'LongStorage', 'ComplexFloatStorage', 'QInt8Storage']),
    device=st.sampled_from(['cpu', 'meta', 'cuda:0', 'no']))
leaves = (
    st.none() | st.booleans() | integers | floats() | texts | st.binary(max_size=8) | names | tensors
    | st.just(CODE))
values = st.recursive(leaves, lambda inner: (
    st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple)
    | st.dictionaries(texts | integers, inner, max_size=4)
    | st.tuples(names | inner, st.lists(inner, max_size=5).map(tuple)).map(lambda parts: Op('REDUCE', parts))
    | st.tuples(names, st.lists(inner, max_size=3).map(tuple)).map(lambda parts: Op('NEWOBJ', parts))
    | st.tuples(inner, inner).map(lambda parts: Op('BUILD', parts))
    | st.tuples(st.builds(called, st.sampled_from([('collections', 'OrderedDict'), ('argparse', 'Namespace')])),
                st.dictionaries(texts, inner, max_size=4)).map(lambda parts: Op('BUILD', parts))
    | st.tuples(inner).map(lambda parts: Op('PERSID', parts))
    | st.tuples(inner, st.sampled_from(['POP', 'STOP', 'DUP', 'PUT', 'GET', 'SETITEM', 'APPEND', 'SET'])).map(
        lambda parts: Op(parts[1], parts[:1]))), max_leaves=12)
state_dicts = st.dictionaries(st.sampled_from(NAMES) | texts | integers, values, max_size=6)
contents = values | state_dicts | st.dictionaries(
    st.sampled_from(['state_dict', 'state_dict_ema', 'model', 'model_ema', 'args', 'metric', 'arch']),
    state_dicts | values, max_size=4)
ZIP_NAMES = [
    'archive/data.pkl', 'archive/data/0', 'archive/data/1', 'archive/version', 'archive/byteorder', 'data.pkl',
    'archive/.data/serialization_id', 'archive/.format_version', 'archive/.storage_alignment', 'archive/constants.pkl',
    '../data.pkl', '/data.pkl', 'archive\\data.pkl', 'archive/data/../../data/0', 'other/data.pkl', 'x' * 300,
    'archive/']


def archive(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compression) as target, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # two entries of a name
        for name, content in entries:
            target.writestr(name, content)
    return file.getvalue()


def contained(content: Any, container: str, entries: list[tuple[str, bytes]] = (), compression: int = 0) -> bytes:
    """Return a pickle of operations in one of the containers of `torch.save`."""
    stream = b'\x80\2' + pickled(content) + b'.'
    if container == 'pickle':
        return stream
    data = struct.pack('<16f', *range(16))
    if container == 'legacy':
        stream = stream.replace(b'tQ', b'NtQ')  # a storage is a view of no other
        head = [0x1950a86a20f9469cfc6c, 1001, dict(protocol_version=1001, little_endian=True, type_sizes={})]
        return b''.join(pickle.dumps(part, 2) for part in head) + stream + pickle.dumps(['0'], 2) + struct.pack(
            '<q', 16) + data
    return archive([
        ('archive/data.pkl', stream), *entries, ('archive/data/0', data), ('archive/version', b'3\n'),
        ('archive/byteorder', b'little')], compression)


@examples(80)
@given(contents, st.sampled_from(['zip', 'zip', 'legacy', 'pickle']),
       st.lists(st.tuples(st.sampled_from(ZIP_NAMES), st.binary(max_size=40)), max_size=2),
       st.sampled_from([zipfile.ZIP_STORED] * 3 + [zipfile.ZIP_DEFLATED]), st.sampled_from(SUFFIXES))
def test_crafted_pickles(content, container, entries, compression, suffix):
    """A pickle of any operations, in any container of PyTorch, runs no code and is loaded or refused."""
    check_doors(contained(content, container, entries, compression), suffix)


def test_canary():
    """What the pickles below ask for would be seen if it ran."""
    for call in (lambda: eval(CODE.replace('mkdir', 'stat')), lambda: os.system(':')):
        with pytest.raises((AssertionError, OSError)), no_code_runs():
            call()


def stretched(*size: int) -> torch.Tensor:
    return torch.zeros(1).expand(size)


TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    'none': lambda t: None, 'number': lambda t: 5, 'text': lambda t: 'text', 'list': lambda t: [t],
    'dict': lambda t: {'a': t}, 'deep': lambda t: functools.reduce(lambda inner, _: [inner], range(200), t),
    'size': lambda t: t.shape,
    'dtype': lambda t: t.dtype, 'set': lambda t: {1, 2}, 'storage': lambda t: t.untyped_storage(),
    'scalar': lambda t: torch.tensor(1.), 'empty': lambda t: torch.zeros(0), 'no rows': lambda t: t[:0],
    'flat': lambda t: t.flatten(), 'more': lambda t: torch.cat([t, t]) if t.ndim else t, 'wide': lambda t: t[None],
    'transposed': lambda t: t.transpose(0, -1) if t.ndim else t, 'strided': lambda t: torch.stack([t, t], -1)[..., 0],
    'nan': lambda t: t * math.nan if t.is_floating_point() else t, 'infinite': lambda t: t + math.inf,
    'stretched': lambda t: t.flatten()[:1].expand(t.shape), 'huge': lambda t: stretched(1 << 40, *t.shape[1:]),
    'channels': lambda t: stretched(t.shape[0], 1 << 40, *t.shape[2:]) if t.ndim > 1 else t,
    'meta': lambda t: t.to('meta'), 'parameter': lambda t: torch.nn.Parameter(t) if t.is_floating_point() else t,
    'sparse': lambda t: t.to_sparse() if t.ndim else t, 'csr': lambda t: torch.eye(3).to_sparse_csr(),
    'complex': lambda t: t.to(torch.complex64), 'double': lambda t: t.double(), 'half': lambda t: t.half(),
    'bfloat16': lambda t: t.bfloat16(), 'float8': lambda t: t.to(torch.float8_e4m3fn),
    'int8': lambda t: t.to(torch.int8), 'bool': lambda t: t > 0,
    'nested': lambda t: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    'quantized': lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    'conjugate': lambda t: t.to(torch.complex64).conj(), 'negative': lambda t: torch._neg_view(t.float()),
}
KEYS = [
    *NAMES, *(f'module.{name}' for name in NAMES[:3]), *sorted(authors._SIGNS), 'features.1.conv.0.weight',
    '_metadata', '_blocks.0._se_reduce.weight', '_fc.weight', '', '.', 'module.', 'epoch', 3, None, (1, 2), b'x', 2.5]
plain = st.none() | st.booleans() | integers | floats() | texts
nested = st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple)
                      | st.dictionaries(texts | integers, inner, max_size=3), max_leaves=5)
arguments = st.fixed_dictionaries({}, optional={
    'model': st.sampled_from([SMALL, 'mobilenext_100', 'hf-hub:me/mobilenext_035', 'resnet18', '/', 'a.b']) | nested,
    'model_kwargs': st.just(TINY) | st.dictionaries(st.sampled_from(
        ['width_mult', 'stages', 'num_classes', 'device', 'pretrained', 'features_only', 'checkpoint_path', 'foo',
         'pretrained_cfg_overlay', 'norm_layer']) | texts | integers, nested, max_size=2) | nested,
    **dict.fromkeys([
        'gp', 'mean', 'std', 'crop_pct', 'interpolation', 'in_chans', 'pretrained', 'pretrained_path', 'crop_mode',
        'initial_checkpoint', 'eval_metric'], nested),
    'img_size': nested, 'input_size': nested | st.tuples(st.just(3), integers, integers)})
namespaces = arguments.map(lambda args: argparse.Namespace(**args)) | arguments | nested | st.just(argparse.Namespace)


@examples(50)
@given(
    changes=st.lists(
        st.tuples(st.sampled_from(KEYS), st.sampled_from(sorted(TENSORS))), max_size=2, unique_by=lambda pair: pair[0]),
    lost=st.lists(st.sampled_from(NAMES), max_size=1), wrapper=st.sampled_from(
        ['', 'state_dict', 'state_dict_ema', 'model', 'model_ema', 'net']),
    more=st.dictionaries(st.sampled_from(['args', 'metric', 'state_dict', 'model', 'arch', 'epoch']) | integers,
                         nested | namespaces, max_size=2),
    form=st.sampled_from(['zip', 'legacy', 'loop', 'prefix']))
def test_wrong_contents(changes, lost, wrapper, more, form):
    """A checkpoint that PyTorch reads, of other things than a model's weights, is loaded or refused."""
    state = tiny_state()
    for key in lost:
        del state[key]
    some = torch.arange(4.).reshape(2, 2)
    for key, kind in changes:
        with contextlib.suppress(IndexError, NotImplementedError, RuntimeError):  # not every tensor comes in every kind
            state[key] = TENSORS[kind](state.get(key, some))
    if form == 'prefix':
        state = OrderedDict((f'module.{key}', value) for key, value in state.items())
    checkpoint = {**more, wrapper: state} if wrapper else {**state, **more}
    if form == 'loop':
        checkpoint['loop'] = [checkpoint]
        state['loop'] = state
    try:
        content = saved(checkpoint, form == 'legacy')
    except (NotImplementedError, RuntimeError):  # there are tensors that only one of the formats has a place for
        content = saved(checkpoint)
    check_doors(content, '.pth')


BIG = st.sampled_from([2 ** exponent for exponent in (32, 36, 40, 44, 50, 62, 63)])


@functools.cache
def packed() -> bytes:
    """Return a checkpoint of 300 MB of zeros in 300 kB."""
    content = {'a': stored_tensor((75 << 20,), (1,), numel=75 << 20)}
    return contained(content, 'zip', [('archive/data/0', bytes(300 << 20))], zipfile.ZIP_DEFLATED)


def bomb(kind: str, size: int) -> tuple[bytes, str]:
    """Return a small file that says it comes to a size, and its suffix."""
    entry = dict(dtype='F32', shape=[size // 4], data_offsets=[0, size])
    safetensors = json.dumps({'stem.conv.weight': entry}).encode()
    if kind == 'header':
        return struct.pack('<Q', size) + b'{}', '.safetensors'
    if kind == 'safetensors':
        return struct.pack('<Q', len(safetensors)) + safetensors, '.safetensors'
    if kind == 'packed':
        return packed(), '.pth'
    if kind == 'layers':  # many lists in one list, many times over
        layers = functools.reduce(lambda inner, _: inner + b'q\0](' + b'h\0' * 10 + b'e', range(20), b']')
        return b'\x80\2' + layers + b'.', '.pth'
    content = {
        'storage': lambda: {'a': stored_tensor((size // 4,), (1,), numel=size // 4)},
        'stretched': lambda: {'stem.conv.weight': stored_tensor((size // 4,), (0,))},
        'bytearray': lambda: {'a': called(('__builtin__', 'bytearray'), size)},
        'untyped': lambda: {'a': called(('torch.storage', 'UntypedStorage'), size)},
        'tensor': lambda: {'a': called(('torch', 'FloatTensor'), size // 4)},
        'meta': lambda: {'a': called(('torch._utils', '_rebuild_meta_tensor_no_storage'), Op('GLOBAL', (
            'torch', 'float32')), (size // 4,), (1,), False)},
    }[kind.removesuffix(' legacy')]()
    return contained(content, 'legacy' if kind.endswith(' legacy') else 'zip'), '.pth'


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='Linux alone tells the peak of the memory')
@examples(30)
@given(st.sampled_from([
    'header', 'safetensors', 'packed', 'layers', 'storage', 'storage legacy', 'stretched', 'stretched legacy',
    'bytearray', 'untyped', 'tensor', 'meta']), BIG)
def test_bombs(kind, size):
    """A small file that says it comes to terabytes is refused, and takes no memory."""
    content, suffix = bomb(kind, size)
    Path('/proc/self/clear_refs').write_text('5')  # the peak is what is used now
    before = memory('VmRSS')
    answers = check_doors(content, suffix)
    assert answers['create_model']
    assert memory('VmHWM') - before < 200 << 20


def memory(field: str) -> int:
    """Return a figure of this process in bytes."""
    return int(re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) << 10


def small_checkpoint(**changes: Any) -> dict[str, Any]:
    return {**tiny_state(), **changes}


def loop() -> dict[str, Any]:
    state: dict[str, Any] = small_checkpoint()
    state['loop'] = state
    return state


@pytest.mark.parametrize(('content', 'message'), [
    (b'\x80\2c\xff\n\n.', "can't decode byte 0xff"), (b'\x80\2h\0.', 'was not loaded: 0'), (b'\x80\2R.', 'empty list'),
    (lambda: bomb('bytearray', 1 << 40)[0], 'it has the GLOBAL __builtin__ bytearray'),
    (lambda: bomb('bytearray legacy', 1 << 40)[0], 'it has the GLOBAL __builtin__ bytearray'),
    (lambda: bomb('tensor', 1 << 32)[0], 'it has the GLOBAL torch FloatTensor'),
    (lambda: bomb('packed', 0)[0], 'it is packed'), (lambda: saved([1]), 'it holds a list'),
])
def test_files_that_are_no_checkpoints(content, message):
    """What Python and PyTorch have errors of other types for, or run out of memory by, is refused like other damage."""
    for door, answer in check_doors(content if isinstance(content, bytes) else content(), '.pth').items():
        assert message in answer, door


@pytest.mark.parametrize(('checkpoint', 'message'), [
    (lambda: small_checkpoint(**{'classifier.weight': stretched(1 << 40, 16)}), "'classifier.weight' a Tensor that is"),
    (lambda: small_checkpoint(**{'stem.conv.weight': torch.zeros(16, 3, 3, 3) * 1j}), "'stem.conv.weight' a Tensor"),
    (lambda: small_checkpoint(**{'stem.bn.weight': stretched(16)}), "'stem.bn.weight' a Tensor"),
    *((lambda kind=kind: small_checkpoint(**{'stem.conv.weight': TENSORS[kind](torch.zeros(16, 3, 3, 3))}),
       "'stem.conv.weight' a Tensor") for kind in ('meta', 'nested', 'quantized', 'sparse')),
    (lambda: {**tiny_state(), 3: torch.ones(1)}, 'has under 3 a Tensor'),
    (lambda: small_checkpoint(epoch=None), "has under 'epoch' a NoneType that is no weight: expected names, each of"),
    (loop, "has under 'loop' a dict"),
])
def test_tensors_that_are_no_weights(checkpoint, message):
    """A checkpoint of more or other things than dense tensors of real numbers is refused with the name of the first."""
    answers = check_doors(saved(checkpoint()), '.pth')
    assert answers.pop('read') == ''
    assert all(message in answer for answer in answers.values())


def test_hidden_methods():
    """A file cannot hide the methods of the dict that it holds."""
    hidden = Op('BUILD', (called(('collections', 'OrderedDict')), {'items': 3, 'keys': 'keys', 'get': None}))
    for content in (hidden, {'state_dict': hidden}):
        answers = check_doors(contained(content, 'zip'), '.pth')
        assert answers.pop('read') == ''
        assert all('The checkpoint is empty' in answer for answer in answers.values())


@pytest.mark.parametrize(('args', 'message'), [
    (dict(model=SMALL), ''), (5, ''), (argparse.Namespace(model_kwargs=[1], model=torch.ones(2)), ''),
    (argparse.Namespace(model_kwargs=dict(pretrained_cfg_overlay=dict(url='http://localhost'))),
     "pretrained_cfg_overlay={'url': 'http://localhost'} is no argument of a model: expected some of aa_layer, "),
    (argparse.Namespace(model_kwargs=dict(width_mult='wide')), "width_mult='wide' is not supported: expected a"),
    (argparse.Namespace(in_chans=2 ** 40, mean=[0.5]), ''),  # channels are those of the weights
    (argparse.Namespace(input_size=[2 ** 40, 32, 32], std=[0.5]), ''),
    *((argparse.Namespace(**images), f'says of its images what train.py does not: {error}: ') for images, error in (
        (dict(mean=[0.5, 0.5]), 'AssertionError'), (dict(mean='grey'), 'AssertionError'), (dict(std=1), 'TypeError'),
        (dict(mean=['grey']), 'TypeError'), (dict(crop_pct='all'), 'TypeError'),
        (dict(crop_pct=10 ** 400), 'OverflowError'), (dict(mean=[math.inf, -math.inf, 0]), 'ValueError'))),
])
def test_arguments_in_a_checkpoint(args, message):
    """Arguments in a checkpoint are taken if they are train.py's, and refused by name where no model takes them."""
    answers = check_doors(saved(dict(state_dict=tiny_state(), args=args)), '.pth')
    assert answers['create_model'] == ''
    assert message in answers['export']
    assert bool(answers['export']) == bool(message)


# -- arguments of a network

anything = st.sampled_from([
    0, -1, 0.5, 1, 2, 3, 1e-9, 1e9, math.nan, math.inf, -math.inf, True, 'x', '', '1', [], [1], (), {}, 1j, b'x',
    2 ** 31, 2 ** 63, 10 ** 30, torch.ones(2), torch.tensor(1.), object])
layer_names = st.sampled_from([
    'relu6', 'relu', 'silu', 'gelu', 'prelu', 'hard_swish', 'identity', 'batchnorm2d', 'groupnorm1', 'groupnorm',
    'torch', 'layernorm', 'layernorm2d', 'rmsnorm', 'frozenbatchnorm2d', 'evonorms0', 'blur', 'blurpc', 'avg', 'ReLU6',
    'same', 'valid', 'max', nn.ReLU, nn.BatchNorm2d, nn.Identity, nn.Conv2d]) | anything
tables = st.sampled_from([TINY['stages'], SHORT['stages'], mobilenext._STAGES, mobilenext._STAGES_SE])
rows = st.lists(st.lists(anything, min_size=4, max_size=6) | st.tuples(
    st.integers(1, 8), st.integers(1, 40), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3, 5, 4])),
    max_size=4)
GOOD = {
    'width_mult': floats(0.2, 1.4), 'depth_mult': floats(0.1, 2), 'identity_ratio': floats(0, 1),
    'in_chans': st.integers(1, 8), 'num_classes': st.integers(0, 20), 'output_stride': st.sampled_from([8, 16, 32]),
    'max_expand_ratio': st.integers(0, 8), 'pw_groups': st.sampled_from([1, 2, 4]), 'se_ratio': floats(0, 2),
    'drop_rate': floats(0, 1), 'drop_path_rate': floats(0, 1), 'bn_eps': floats(1e-6, 1),
    'bn_momentum': floats(0, 1), 'global_pool': st.sampled_from(['avg', 'max', 'avgmax', 'catavgmax', 'fast']),
    'act_layer': st.sampled_from(['relu6', 'silu', 'gelu', 'prelu', 'hard_swish', 'leaky_relu', 'mish', 'identity']),
    'norm_layer': st.sampled_from(['batchnorm2d', 'batchnorm', 'groupnorm1', 'layernorm2d', nn.BatchNorm2d]),
    'aa_layer': st.sampled_from(['blurpc', 'avg']), 'pad_type': st.sampled_from(['', 'same']),
    'weight_init': st.sampled_from(['fan_out', 'torch', 'skip']), 'ghost': st.booleans(), 'keep_3x3': st.booleans(),
    'recompute_act': st.booleans(), 'stages': tables,
}
ANY = {
    **dict.fromkeys(GOOD, anything), 'stages': rows | anything,
    **dict.fromkeys(['global_pool', 'act_layer', 'norm_layer', 'aa_layer', 'pad_type', 'weight_init'], layer_names),
}


@examples(40)
@given(
    name=st.sampled_from(ARCHITECTURES), device=st.sampled_from(['cpu', 'meta']),
    good=st.fixed_dictionaries({}, optional=GOOD),
    wrong=st.lists(st.sampled_from(sorted(ANY)), max_size=2, unique=True).flatmap(
        lambda keys: st.fixed_dictionaries({key: ANY[key] for key in keys})))
def test_any_arguments(name, device, good, wrong):
    """Any arguments make a network that answers and learns, or a ValueError that names one with its value."""
    kwargs = {**good, **wrong}
    if device == 'cpu':  # small ones alone
        kwargs = {'stages': TINY['stages'], 'width_mult': 0.35, **kwargs}
    if kwargs.get('global_pool') == '':  # feature maps, which no classifier of timm takes
        kwargs['num_classes'] = 0
    if any(isinstance(kwargs.get(key), int) and 1000 < kwargs[key] < 2 ** 31 for key in ('in_chans', 'num_classes')):
        device = 'meta'  # there may be no memory for so many, which PyTorch says
    message = refusal(lambda: timm.create_model(name, device='meta', **kwargs), ValueError)
    if message:
        named = [key for key in (*GOOD, 'momentum') if re.search(rf'\b{key}=', message)]
        assert any(key not in kwargs or str(kwargs[key]) in message or repr(kwargs[key]) in message for key in named)
        return
    model = timm.create_model(name, device=device, **kwargs)
    out = model.eval()(torch.randn(2, model.in_chans, 32, 32, device=device))
    assert out.shape[:2] == (2, model.num_classes or model.head_hidden_size)
    if device == 'cpu' and kwargs.get('weight_init') != 'skip':  # 'skip' leaves a ConvNorm as PyTorch made it
        assert out.isfinite().all()
        out.square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@examples(15)
@given(kwargs=st.fixed_dictionaries(
    dict(features_only=st.just(True)), optional=dict(
        feature_cls=st.sampled_from(['list', 'dict', 'hook', 'getter', 'fx', 'x', 3]),
        output_stride=st.sampled_from([8, 16]),
        dtype=st.sampled_from([torch.float64, torch.bfloat16, torch.int32, 'x', 3]),
        device=st.sampled_from(['meta', 'x', 3]),
        foo=st.none() | st.integers())))
def test_arguments_of_timm(kwargs):
    """What is timm's to take or refuse, features and devices, is taken or refused as by a network of timm's own."""
    def made(name: str) -> object:
        try:
            model = timm.create_model(name, **{'device': 'meta', **kwargs})
            return len(model(torch.empty(1, 3, 32, 32, device='meta', dtype=kwargs.get('dtype'))))
        except Exception:  # of the type that its wrapper for features raises
            return 'refused'
    assert made(SMALL) == made('resnet18')


@pytest.mark.parametrize(('kwargs', 'message'), [
    (dict(width_mult='wide'), "width_mult='wide' is not supported: expected a positive number up to 100"),
    (dict(width_mult=math.inf), 'width_mult=inf'), (dict(depth_mult=100), 'depth_mult=100 makes 2000 blocks'),
    (dict(identity_ratio='all'), "identity_ratio='all' is not supported: expected a number"),
    (dict(in_chans=0), 'in_chans=0 is not supported: expected a whole number from 1'),
    (dict(in_chans=3.), r'in_chans=3\.0'), (dict(in_chans=2 ** 31), 'in_chans=2147483648'),
    (dict(num_classes=-1), 'num_classes=-1'), (dict(num_classes=True), 'num_classes=True'),
    (dict(in_chans=True), 'in_chans=True'), (dict(pw_groups=True), 'pw_groups=True'),
    (dict(stages=[(True, 16, 1, 1, 3)]), 'stages=.* whole numbers from 1'),
    (dict(num_classes=2 ** 31), 'num_classes=2147483648'),
    (dict(drop_rate=1.1), r'drop_rate=1\.1'), (dict(drop_path_rate=-0.1), r'drop_path_rate=-0\.1'),
    (dict(width_mult=100.1), r'width_mult=100\.1'), (dict(se_ratio=math.nan), 'se_ratio=nan'),
    (dict(se_ratio=100.1), r'se_ratio=100\.1'), (dict(max_expand_ratio=101), 'max_expand_ratio=101'),
    (dict(pw_groups=5), 'pw_groups=5 does not divide the channels'), (dict(bn_eps=-1), 'bn_eps=-1'),
    (dict(bn_momentum=1.1), r'bn_momentum=1\.1'), (dict(global_pool='mean'), "global_pool='mean'"),
    (dict(pad_type='valid'), "pad_type='valid'"),
    (dict(act_layer='relu7'), "act_layer='relu7' is not supported: expected a class, or a name of timm's"),
    (dict(norm_layer='layernorm'), "norm_layer='layernorm'"), (dict(aa_layer='x'), "aa_layer='x' is not supported"),
    (dict(norm_layer='groupnorm'), r"norm_layer='groupnorm'.* makes no layer here \(ValueError: num_channels"),
    (dict(norm_layer='x', bn_eps=1e-3), "norm_layer='x' makes no layer here"),
    (dict(stages=()), r'stages=\(\) is not supported'), (dict(stages=[(2, 8, 1001, 1, 3)]), r'makes 1001 blocks'),
    (dict(stages=[(6, 16, 1, 1, 4)]), 'stages=.* kernel size, odd'),
])
def test_arguments_that_make_no_network(kwargs, message):
    """An argument that no layer can be made by, or that the network could not run with, is named with its value."""
    with pytest.raises(ValueError, match=message):
        timm.create_model('mobilenext_100', device='meta', **kwargs)


@pytest.mark.parametrize('kwargs', [
    dict(in_chans=1, num_classes=0, drop_rate=0, drop_path_rate=0, bn_eps=0, bn_momentum=0, se_ratio=0, pw_groups=1),
    dict(drop_rate=1, drop_path_rate=1, bn_eps=1, bn_momentum=1, se_ratio=100, max_expand_ratio=100),
    dict(max_expand_ratio=0, stages=[(1, 1, 1, 1, 1)]), dict(stages=[(2, 8, 1000, 1, 3)]), dict(width_mult=100),
    dict(aa_layer='blurpc', act_layer='relu', norm_layer='groupnorm1', pad_type='same', global_pool='max'),
    dict(in_chans=2 ** 31 - 1), dict(num_classes=2 ** 31 - 1)])
def test_the_ends_of_what_arguments_may_be(kwargs):
    """The smallest and the largest value that is documented of each argument makes a network."""
    model = timm.create_model(SMALL, device='meta', **kwargs)
    assert model.num_classes == kwargs.get('num_classes', 1000)


def test_checks_leave_the_random_numbers():
    """The same seed makes the same weights whether or not names of layers are tried first."""
    made = []
    for kwargs in ({}, dict(act_layer=nn.ReLU6, norm_layer=nn.BatchNorm2d)):  # classes are not tried
        torch.manual_seed(0)
        made.append(timm.create_model(SMALL, **TINY, **kwargs).classifier.weight)
    assert torch.equal(*made)


# -- command lines

WORDS = st.text(max_size=6) | st.binary(max_size=6).map(lambda name: name.decode('utf-8', 'surrogateescape'))
MODULES = WORDS | st.sampled_from([
    '', '.', '..', 'a.b', '.a', 'a.', 'os.path.x', 'sys', 'builtins', 'xml', 'timm_mobilenext.nothing', 'a-b',
    'x' * 5000])
VALUES = WORDS | st.sampled_from([
    '', '0', '-1', '1e999', 'nan', '99999', '-', '--', '\0', '.', '..', '/', '~', 'a/b/c', '/dev/null', 'missing.py',
    'x' * 5000, 'onnx', 'litert', 'int8', 'fp16', 'width_mult=x', 'stages=1', 'a=b=c', '=', 'device=meta', '[' * 300,
    'a=' + '(' * 300, 'a={[]: 1}', 'on', 'off', 'status', 'resnet18', 'hf-hub:me/mine', 'hf-hub:', 'local-dir:',
    'local-dir:x', 'x:y', *ARCHITECTURES, '../junk', '../junk/x', '../names', '../folder', 'x=../junk', *COMMANDS])
OPTIONS = st.sampled_from([
    '-h', '--help', '-o', '--output', '--output=', '--format', '--format=onnx', '--model', '--model-kwargs',
    '--label-names', '--license', '--cache-dir', '--calibration', '--check', '--num-images', '--img-size', '--mean',
    '--std', '--weights', '--int8', '--keep', '--repo-id', '--dataset', '--private', '--overwrite', '--formats',
    '--title', '--serve', '--port', '--runtime', '--push', '--min-agreement'])
SOME = st.lists(st.tuples(OPTIONS, VALUES) | st.tuples(VALUES), max_size=3).map(lambda parts: [*sum(parts, ())])
LINES = st.one_of(
    st.lists(WORDS | VALUES | OPTIONS, max_size=4),
    st.tuples(st.just('-m'), MODULES).map(list),
    st.tuples(st.sampled_from([*COMMANDS]), SOME).map(lambda line: [line[0], *line[1]]),
    st.tuples(st.sampled_from(['convert', 'publish']), st.sampled_from([SMALL, 'mobilenext_100', 'x']), SOME).map(
        lambda line: [*line[:2], *line[2]]),
    st.tuples(st.sampled_from([SMALL, '../junk', '../folder']) | VALUES, SOME).map(
        lambda line: ['export', line[0], '--format', 'onnx', '--output', 'x', *line[1]]))


@pytest.fixture
def launch(tmp_path, monkeypatch) -> Callable[[list[str]], tuple[object, str, str]]:
    """A function that runs the launcher in an empty folder and returns the exit code, the output and the errors."""
    for folder in ('site', 'work', 'folder'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'junk').write_bytes(b'\xff no weights')
    (tmp_path / 'names').write_bytes(b'\xff')
    (tmp_path / 'folder' / 'models.json').write_text('{}')  # which `web` would serve
    monkeypatch.setattr(web.http.server.ThreadingHTTPServer, 'serve_forever', lambda self: None)
    monkeypatch.setattr(doctor, 'report', lambda: 'report')  # takes seconds
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.chdir(tmp_path / 'work')

    def run(args: list[str]) -> tuple[object, str, str]:
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
    return run


@examples(200)
@given(line=LINES)
def test_any_command_line(launch, line):
    """Any command line ends with an exit code and a message, without a traceback, and leaves nothing."""
    if '../junk' in line[:1] or '../names' in line[:1]:
        line = ['convert', *line]  # they would be scripts, which are below
    code, out, err = launch(line)
    assert 'Traceback' not in err
    if code in (None, 0):
        assert out
    else:
        assert code in (1, 2) or code.startswith('error: ')
        if not err.startswith('usage: '):
            assert err.startswith(('timm_mobilenext: ', 'error: '))
    assert os.listdir() == []


SCRIPT = """
import os, signal, sys
print([os.fsencode(arg) for arg in sys.argv], __name__, flush=True)
{}
"""
ENDS = st.sampled_from([
    'sys.exit(None)', "sys.exit('')", 'sys.exit("\xe4\\udcff")', 'sys.exit([1])', 'sys.exit(1.5)', 'sys.exit(True)',
    'os._exit(9)', 'raise KeyboardInterrupt', 'raise SystemExit', 'raise GeneratorExit("x")',
    'raise BaseException("x\\ny")',
    'os.kill(os.getpid(), signal.SIGKILL)', 'os.kill(os.getpid(), signal.SIGTERM)', 'os.abort()', 'x = (', 'return',
    'def f(): f()\nf()', 'print(missing)', 'import missing', 'from . import x', 'sys.stdout.close()',
    'sys.argv.clear()', 'del sys.modules["__main__"]', 'import atexit\natexit.register(sys.exit, 3)',
    'print(__file__, __doc__)', 'print(sorted(globals().keys() - {"__annotations__"}))',  # before 3.14 there unasked
    'import threading\nthreading.Thread(target=sys.exit, args=(3,)).start()', 'print(sys.stdin.read())',
    'sys.excepthook = lambda *args: print("hook")\nraise ValueError', '# \xe4\nprint("\xe4")',
]) | st.integers(-2 ** 40, 2 ** 40).map('sys.exit({})'.format) | st.integers(0, 255).map('os._exit({})'.format)


@examples(6)
@given(
    script=ENDS.map(lambda end: SCRIPT.format(end).encode()) | st.binary(max_size=40),
    args=st.lists(st.binary(max_size=8).map(lambda arg: os.fsdecode(arg.replace(b'\0', b''))) | st.sampled_from(
        ['-m', '--', '-', '', '-h', '--help', 'convert', '-c']), max_size=4),
    name=st.sampled_from(['script.py', './convert', '\xe4 b.txt', './-m', 'a/../script']))
def test_any_script(tmp_path, script, args, name):
    """A script of any content leaves under the launcher the exit code and the output that it leaves under Python."""
    (tmp_path / 'a').mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(script)
    alone, launched = (subprocess.run(
        [sys.executable, *launcher_args, name, *args], cwd=tmp_path, capture_output=True, input=b'stdin', timeout=300)
        for launcher_args in ([], ['-m', 'timm_mobilenext']))
    assert (launched.returncode, launched.stdout) == (alone.returncode, alone.stdout), launched.stderr
    assert b'timm_mobilenext' not in launched.stderr


@pytest.mark.parametrize(('line', 'message'), [
    (['convert', SMALL, '--model-kwargs', 'wide'], 'error: --model-kwargs wide: expected KEY=VALUE, width_mult=1.1 '),
    (['convert', SMALL, '--model-kwargs', 'a={[]: 1}'], 'error: --model-kwargs a={[]: 1}: expected KEY=VALUE, '),
    (['export', SMALL, '--format', 'onnx', '-o', 'x', '--model-kwargs', 'wide'], 'error: --model-kwargs wide: exp'),
    (['convert', SMALL, '../junk', '--model-kwargs', 'device=cuda'], 'error: ../junk was not loaded'),
    (['convert', 'mobilenext_100', '--output', 'a/b/c'], "error: The authors' file"),
    (['web', '--output', '../folder', '--serve', '--port', '99999'], 'Port 99999 cannot be listened on'),
    (['web', '../junk', '--output', 'a/b', '--runtime', 'a/../x'], 'error: '),
])
def test_command_lines_that_fail(launch, line, message):
    """A command that fails says so in a message, and leaves no folder that it would have put its own into."""
    code, _, err = launch(line)
    assert code not in (None, 0)
    assert message in err
    assert 'Traceback' not in err
    assert os.listdir() == []


@pytest.mark.parametrize('error', [MemoryError, RecursionError, TypeError, ValueError])
def test_values_that_python_does_not_read(launch, monkeypatch, error):
    """Whatever Python has against a value, by its version and its limits, the argument is named in a message."""
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(convert.ParseKwargs, '__call__', fail)
    code, _, err = launch(['convert', SMALL, '--model-kwargs', 'a=' + '-' * 100])
    assert code == 2
    assert f'--model-kwargs a={"-" * 78}: expected KEY=VALUE' in err


@pytest.mark.skipif(not Path('/proc/self/mem').is_file(), reason='/proc stands for a file that cannot be read')
def test_script_that_cannot_be_read(launch):
    """A script that cannot be read is answered by one line."""
    assert launch(['/proc/self/mem']) == (
        2, '', "timm_mobilenext: '/proc/self/mem' cannot be read: Input/output error.\n")
