"""Files for mobile runtimes: their graphs, what they compute in, what they say of themselves."""
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import official
import pytest
import timm
import torch
from networks import ARCHITECTURES, OFFICIAL_NAME, need, needs_exporter

from timm_mobilenext.deploy import export, runtimes
from timm_mobilenext.deploy.export import Exported
from timm_mobilenext.mobilenext import checkpoint_filter_fn
from timm_mobilenext.deploy.runtimes import RUNTIMES


def graph(path: Path) -> dict[str, int]:
    """Return how many there are of each operator in a file."""
    if path.suffix == '.onnx':
        import onnx
        kinds = [node.op_type for node in onnx.load(path).graph.node]
    elif path.suffix == '.xml':
        import openvino
        kinds = [op.get_type_name() for op in openvino.Core().read_model(path).get_ops()]
    else:
        from executorch.exir._serialize._program import deserialize_pte_binary
        plan, = deserialize_pte_binary(path.read_bytes()).program.execution_plan
        calls = [instruction.instr_args for chain in plan.chains for instruction in chain.instructions]
        kinds = [plan.delegates[call.delegate_index].id if type(call).__name__ == 'DelegateCall' else
                 plan.operators[call.op_index].name for call in calls]
    return {kind: n for kind, n in sorted(Counter(kinds).items()) if kind not in ('Constant', 'Parameter', 'Result')}


PLAIN = dict(Add=12, Clip=36, Conv=74, Gemm=1, ReduceMean=1, Reshape=1)
HALF = PLAIN | dict(Concat=12, Slice=36)  # the shortcut takes two slices of x and one of the identity, and joins them
GRAPHS = {
    'mobilenext_035': PLAIN, 'mobilenext_050': PLAIN, 'mobilenext_075': PLAIN, 'mobilenext_100': PLAIN,
    'mobilenext_140': PLAIN, 'mobilenext_100_id050': HALF, 'mobilenext_100_id033': HALF, 'mobilenext_100_id025': HALF,
    'mobilenext_s': dict(Add=12, Conv=111, Gemm=1, Mul=74, ReduceMean=21, Reshape=1, Sigmoid=74),
    'mobilenext_l': dict(Add=19, Conv=159, Gemm=1, Mul=106, ReduceMean=29, Reshape=1, Sigmoid=106),
    'mobilenext_l_ghost': dict(
        Add=19, Concat=21, Conv=159, Gemm=1, Mul=106, ReduceMean=29, Reshape=1, Sigmoid=106, Slice=42),
}


@needs_exporter
@pytest.mark.parametrize('runtime', ['onnx', 'openvino', 'executorch'])
@pytest.mark.parametrize('name', ARCHITECTURES)
def test_graph(name, runtime, tmp_path):
    """Every batch norm is folded, nothing is written, scattered or transposed, and XNNPACK takes all in one piece."""
    need(runtime)
    model = timm.create_model(name).eval()
    model.load_state_dict(checkpoint_filter_fn(official.state_dict(OFFICIAL_NAME[name]), model))
    folder = tmp_path / 'model'
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    path = tmp_path / f'model{RUNTIMES[runtime].suffixes[0]}'
    RUNTIMES[runtime].convert(folder, path, (3, 64, 64))
    found = graph(path)
    if runtime == 'onnx':
        assert found == GRAPHS[name]
    elif runtime == 'openvino':
        assert found.get('Convolution', 0) + found.get('GroupConvolution', 0) == GRAPHS[name]['Conv']
        activations = found.get('Clamp', 0) + found.get('Swish', 0) + found.get('Sigmoid', 0)
        assert activations == GRAPHS[name].get('Clip', 0) + GRAPHS[name].get('Sigmoid', 0)
        assert found.keys() <= {
            'Add', 'Clamp', 'Concat', 'Convolution', 'GroupConvolution', 'MatMul', 'Multiply', 'Pad', 'ReduceMean',
            'Reshape', 'Sigmoid', 'Slice', 'Swish'}
    else:
        assert found == {'XnnpackBackend': 1}
    _, difference = export.check(model, runtimes.load(path, threads=1), torch.randn(2, 3, 64, 64).numpy())
    assert difference < 1e-3  # these weights blow rounding up: PyTorch's own fp32 is 1e-4 off its float64


@pytest.fixture(scope='module')
def calibrated_files(trained, digits, tmp_path_factory) -> tuple[Path, list[Exported]]:
    """The files of ONNX and OpenVINO."""
    need('onnx', int8=True)
    need('openvino', int8=True)
    folder = tmp_path_factory.mktemp('files') / 'files'
    return folder, export.export(
        trained, ['onnx', 'openvino'], folder, model='mobilenext_100', int8=True, weights=['int8', 'fp16'],
        calibration=digits / 'validation')


@needs_exporter
def test_metadata(calibrated_files):
    """ONNX and OpenVINO files run, and say in themselves how images are prepared and what the classes are."""
    import onnx
    import openvino

    folder, exported = calibrated_files
    for row in exported:
        if row.format == 'onnx':
            said = {entry.key: entry.value for entry in onnx.load(row.path).metadata_props}
        else:
            model = openvino.Core().read_model(row.path)
            said = {key: model.get_rt_info(['model_info', key]).astype(str) for key in ('architecture', 'mean', 'std')}
        assert said['architecture'] == 'mobilenext_100'
        assert json.loads(said['mean']) == [0.3]
        assert json.loads(said['std']) == [0.4]
        assert runtimes.load(row.path)(np.zeros((1, 1, 32, 32), np.float32)).shape == (1, 10)
    assert {path.name for path in folder.iterdir()} >= {row.path.name for row in exported} | {'model.json', 'model.bin'}


@needs_exporter
@pytest.mark.parametrize('runtime', ['litert', 'coreml', 'torch-export', 'torchscript'])
def test_metadata_of_other_formats(runtime, trained, tmp_path):
    """So do LiteRT, Core ML and PyTorch's two."""
    need(runtime)
    row, = export.export(trained, [runtime], tmp_path / 'files', model='mobilenext_100')
    extra = {'timm_mobilenext.json': ''}
    if runtime == 'litert':
        from ai_edge_litert import schema_py_generated as schema
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(row.path.read_bytes()))
        entry, = (entry for entry in model.metadata if entry.name == b'timm_mobilenext')
        said = json.loads(bytes(model.buffers[entry.buffer].data))
    elif runtime == 'coreml':
        import coremltools
        said = coremltools.models.MLModel(str(row.path), skip_model_load=True).user_defined_metadata
    else:
        load = torch.export.load if runtime == 'torch-export' else torch.jit.load
        load(row.path, **{'extra_files' if runtime == 'torch-export' else '_extra_files': extra})
        said = json.loads(extra['timm_mobilenext.json'])
    assert said['architecture'] == 'mobilenext_100'
    assert json.loads(said['mean']) == [0.3]


def test_litert_weights_behind_the_flatbuffer(tmp_path):
    """Weights that a LiteRT file has behind its flatbuffer, as one of 2 GB has to, come into it with more metadata."""
    need('litert')
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    inside, behind = schema.BufferT(), schema.BufferT()
    inside.data, inside.offset = np.array([4, 5], np.uint8), 1  # 1 says nothing of a place
    model = schema.ModelT()
    model.buffers, behind.size = [schema.BufferT(), inside, behind], 3
    entry = schema.MetadataT()
    entry.name, entry.buffer, model.metadata = 'theirs', 1, [entry]

    def packed() -> bytes:
        builder = flatbuffers.Builder()
        builder.Finish(model.Pack(builder), b'TFL3')
        return bytes(builder.Output())

    behind.offset = 9  # any place takes as many bytes to name
    behind.offset = len(packed())
    path = tmp_path / 'model.tflite'
    path.write_bytes(packed() + bytes([1, 2, 3]))
    RUNTIMES['litert'].describe(path, {'source': 'mine'})
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes()))
    buffers = model.buffers
    assert [(entry.name, entry.buffer) for entry in model.metadata] == [(b'theirs', 1), (b'timm_mobilenext', 3)]
    assert [bytes(buffer.data) for buffer in buffers[1:]] == [bytes([4, 5]), bytes([1, 2, 3]), b'{"source": "mine"}']
    assert buffers[2].offset == buffers[2].size == 0


@needs_exporter
@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='Linux alone lists the threads of a process so')
@pytest.mark.parametrize('runtime', ['onnx', 'ncnn'])  # OpenVINO takes no more than there are processors
def test_threads(runtime, trained, tmp_path):
    """A file runs on as many threads as it is told."""
    need(runtime)
    row, = export.export(trained, [runtime], tmp_path / 'files', model='mobilenext_100')
    counts = []
    for threads in (1, 3):
        code = f"""
import os
import numpy as np
from timm_mobilenext.deploy import runtimes
before = len(os.listdir('/proc/self/task'))
run = runtimes.load({str(row.path)!r}, threads={threads})
run(np.zeros((1, 1, 32, 32), np.float32))
print(len(os.listdir('/proc/self/task')) - before)
"""
        counts.append(int(subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=120).stdout))
    assert counts[1] == counts[0] + 2


@needs_exporter
def test_int8_is_int8(calibrated_files):
    """int8 files compute in int8, per channel; those whose weights alone are int8 compute in fp32."""
    folder, _ = calibrated_files
    import onnx

    quantized = graph(folder / 'model.int8.onnx')
    assert quantized['QuantizeLinear'] > 20
    weights = onnx.load(folder / 'model.int8.onnx').graph.initializer
    assert any(t.name.endswith('_scale') and list(t.dims) == [10] for t in weights)  # one for each class
    assert graph(folder / 'model.int8.xml')['FakeQuantize'] > 20
    stored = graph(folder / 'model.weights_int8.onnx')
    assert stored['DequantizeLinear'] == stored['Conv'] + stored['Gemm']
    assert 'QuantizeLinear' not in stored


@pytest.mark.parametrize('precision', ['int8', 'fp16'])
def test_stored_weights(precision, tmp_path):
    """ONNX weights are stored in int8 by the largest of each output channel or in fp16, biases as they are."""
    need('onnx')
    from onnx import TensorProto, checker, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    arrays = {'conv': rng.normal(size=(4, 3, 1, 1)), 'linear': rng.normal(size=(2, 16)), 'bias': rng.normal(size=2)}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    graph = helper.make_graph(
        [helper.make_node('Conv', ['input', 'conv'], ['x']), helper.make_node('Flatten', ['x'], ['y']),
         helper.make_node('Gemm', ['y', 'linear', 'bias'], ['output'], transB=1)], 'graph',
        [helper.make_tensor_value_info('input', TensorProto.FLOAT, [1, 3, 2, 2])],
        [helper.make_tensor_value_info('output', TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()])
    plain, path = tmp_path / 'plain.onnx', tmp_path / 'stored.onnx'
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    checker.check_model(model)
    save(model, plain)
    RUNTIMES['onnx'].store_weights(tmp_path, plain, path, (3, 2, 2), precision)
    import onnx
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    np.testing.assert_array_equal(stored.pop('bias'), arrays['bias'])
    for name in ('conv', 'linear'):
        if precision == 'fp16':
            np.testing.assert_array_equal(stored.pop(f'{name}_fp16'), arrays[name].astype(np.float16))
            continue
        scale, rounded = stored.pop(f'{name}_int8_scale'), stored.pop(f'{name}_int8')
        np.testing.assert_allclose(scale, np.abs(arrays[name]).reshape(len(scale), -1).max(1) / 127, rtol=1e-6)
        assert rounded.dtype == np.int8
        assert np.abs(rounded.reshape(len(scale), -1) * scale[:, None] - arrays[name].reshape(len(scale), -1)).max() < (
            0.51 * scale.max())
    assert stored == {}
    image = rng.normal(size=(1, 3, 2, 2)).astype(np.float32)
    expected, answer = (runtimes.load(file, threads=1)(image) for file in (plain, path))
    assert answer.shape == (1, 2)
    np.testing.assert_allclose(answer, expected, atol=0.05)


@pytest.mark.parametrize('printed', ['said', 'x' * 3000])
def test_quiet(printed, capfd):
    """What converters print stays unseen, but for a progress bar; its end is a note to the error where one fails."""
    def convert(error: Exception | None = None) -> None:
        with runtimes.quiet() as terminal:
            print(printed, flush=True)
            os.write(2, b'from below')
            print('progress', file=terminal, flush=True)
            if error:
                raise error

    convert()
    with pytest.raises(ValueError, match='failed') as error:
        convert(ValueError('failed'))
    print('heard again')
    if sys.version_info >= (3, 11):  # which exceptions have notes since
        assert error.value.__notes__ == [f'{printed}\nfrom below'[-2000:]]
    assert capfd.readouterr() == ('heard again\n', 'progress\n' * 2)


def test_missing(monkeypatch):
    """Of what is not installed a format names its own modules, and those of int8 where that is asked for."""
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert RUNTIMES['openvino'].missing() == ['timmx', 'openvino']
    assert RUNTIMES['openvino'].missing(int8=True) == ['timmx', 'openvino', 'nncf']
    assert RUNTIMES['torchscript'].missing(int8=True) == ['timmx']


@needs_exporter
def test_what_cannot_be_converted(tmp_path):
    """What the converter says of a model that it cannot take is an error of one kind, which names the format."""
    with pytest.raises(RuntimeError, match=r'^torchscript: .*config.json'):
        RUNTIMES['torchscript'].convert(tmp_path / 'empty', tmp_path / 'model.pt', (3, 32, 32))


@pytest.mark.parametrize('graph', ['7767517\n1 1\nInput in0 0 1 in0\n', 'no graph'])
def test_ncnn_file_that_lacks_a_half(graph, tmp_path):
    """An ncnn file of which the weights are missing, or the graph is none, is an error that names it."""
    need('ncnn')
    path = tmp_path / 'model.ncnn.param'
    path.write_text(graph)
    with pytest.raises(RuntimeError, match=f'^ncnn does not load {path}$'):
        runtimes.load(path)


def test_load():
    """A file of no known format is an error that lists the formats."""
    with pytest.raises(ValueError, match=r'model.bin is of no format .* ends in one of .onnx, .xml, .pte, .tflite, '):
        runtimes.load('model.bin')
