"""Files for mobile runtimes: their graphs, what they compute in, how they are loaded."""
import os
from collections import Counter
from pathlib import Path

import numpy as np
import official
import pytest
import timm
import torch
from networks import FAMILIES, OFFICIAL_NAME, need, needs_exporter

from timm_mobilenext.deploy import export, runtimes
from timm_mobilenext.deploy.runtimes import RUNTIMES
from timm_mobilenext.mobilenext import checkpoint_filter_fn


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
    return dict(Counter(kinds))


PLAIN = dict(Add=12, Clip=36, Conv=74, Gemm=1, ReduceMean=1, Reshape=1)
GRAPHS = {
    'mobilenext_035': PLAIN,
    'mobilenext_100_id050': PLAIN | dict(Concat=12, Slice=36),  # two slices of x and one of the shortcut, joined
    'mobilenext_s': dict(Add=12, Conv=111, Gemm=1, Mul=74, ReduceMean=21, Reshape=1, Sigmoid=74),
    'mobilenext_l': dict(Add=19, Conv=159, Gemm=1, Mul=106, ReduceMean=29, Reshape=1, Sigmoid=106),
    'mobilenext_l_ghost': dict(
        Add=19, Concat=21, Conv=159, Gemm=1, Mul=106, ReduceMean=29, Reshape=1, Sigmoid=106, Slice=42),
}


@needs_exporter
@pytest.mark.slow
@pytest.mark.parametrize(('name', 'runtime'), [
    *((name, 'onnx') for name in FAMILIES), ('mobilenext_l_ghost', 'openvino'),
    ('mobilenext_100_id050', 'executorch'), ('mobilenext_l_ghost', 'executorch')])
def test_graph(name, runtime, tmp_path):
    """Every batch norm is folded, nothing is written, scattered or transposed, and XNNPACK takes all in one piece."""
    need(runtime)
    model = timm.create_model(name).eval()
    model.load_state_dict(checkpoint_filter_fn(official.state_dict(OFFICIAL_NAME[name]), model))
    timm.models.save_for_hf(model, tmp_path / 'model', safe_serialization=True)
    path = tmp_path / f'model{RUNTIMES[runtime].suffixes[0]}'
    RUNTIMES[runtime].convert(tmp_path / 'model', path, (3, 64, 64))
    found = graph(path)
    if runtime == 'onnx':
        assert found == GRAPHS[name]
    elif runtime == 'openvino':
        assert found['Convolution'] + found['GroupConvolution'] == GRAPHS[name]['Conv']
        assert not {'BatchNormInference', 'ScatterUpdate', 'ScatterNDUpdate', 'Transpose'} & found.keys()
    else:
        assert found == {'XnnpackBackend': 1}
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(image).numpy()
    answer = runtimes.load(path, threads=1)(image.numpy())
    assert np.abs(answer - expected).max() < 1e-3 * expected.std()  # in fp32 PyTorch itself is 1e-4 off its float64


@pytest.fixture(scope='module')
def folder(trained, digits, tmp_path_factory) -> Path:
    """A folder of the files of ONNX and OpenVINO."""
    need('onnx', int8=True)
    need('openvino', int8=True)
    folder = tmp_path_factory.mktemp('files') / 'files'
    export.export(trained, ['onnx', 'openvino'], folder, int8=True, weights=['int8', 'fp16'],
                  calibration=digits / 'validation')
    return folder


@needs_exporter
@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='only Linux lists the threads of a process there')
def test_threads(folder):
    """A file runs on as many threads as it is told."""
    before = len(os.listdir('/proc/self/task'))
    run = runtimes.load(folder / 'model.onnx', threads=3)
    assert len(os.listdir('/proc/self/task')) == before + 2
    assert run(np.zeros((1, 1, 32, 32), np.float32)).shape == (1, 10)


@needs_exporter
@pytest.mark.slow
def test_int8(folder):
    """int8 files compute in int8, in ONNX with a scale for each class."""
    import onnx

    assert graph(folder / 'model.int8.onnx')['QuantizeLinear'] > 20
    assert graph(folder / 'model.int8.xml')['FakeQuantize'] > 20
    weights = onnx.load(folder / 'model.int8.onnx').graph.initializer
    assert any(t.name.endswith('_scale') and list(t.dims) == [10] for t in weights)


@needs_exporter
@pytest.mark.slow
def test_stored_weights(folder):
    """ONNX weights are stored in int8 by the largest of each output channel or in fp16; the rest stays in fp32."""
    from onnx import load, numpy_helper

    plain, int8, fp16 = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in load(folder / name).graph.initializer}
        for name in ('model.onnx', 'model.weights_int8.onnx', 'model.weights_fp16.onnx'))
    assert 'QuantizeLinear' not in graph(folder / 'model.weights_int8.onnx')
    for name, array in plain.items():
        if array.ndim < 2:
            np.testing.assert_array_equal(int8[name], array)
            continue
        np.testing.assert_array_equal(fp16[f'{name}_weights_fp16'], array.astype(np.float16))
        scale, rounded = int8[f'{name}_weights_int8_scale'], int8[f'{name}_weights_int8']
        assert rounded.dtype == np.int8
        np.testing.assert_allclose(scale, np.abs(array).reshape(len(scale), -1).max(1) / 127, rtol=1e-6)
        widened = rounded * scale.reshape(-1, *[1] * (array.ndim - 1))
        np.testing.assert_allclose(widened, array, atol=0.51 * scale.max())


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_quiet(error, capfd):
    """What converters print stays unseen, and what comes after an error or Ctrl-C does not."""
    def convert() -> None:
        with runtimes.quiet():
            print('from Python')
            os.write(2, b'from below')
            raise error

    with pytest.raises(error):
        convert()
    print('heard again')
    assert capfd.readouterr() == ('heard again\n', '')


@needs_exporter
def test_what_cannot_be_converted(tmp_path):
    """What the converter says of a model that it cannot take is an error of one kind, which names the format."""
    with pytest.raises(RuntimeError, match=r'^torchscript: .*config.json'):
        RUNTIMES['torchscript'].convert(tmp_path / 'empty', tmp_path / 'model.pt', (3, 32, 32))


def test_files_that_cannot_be_loaded(tmp_path):
    """A file of an unknown format, and an ncnn file without its weights, are an error."""
    with pytest.raises(ValueError, match=r'model.bin has an unknown format: .* ends in one of .onnx, .xml, .pte, '):
        runtimes.load('model.bin')
    need('ncnn')
    path = tmp_path / 'model.ncnn.param'
    path.write_text('7767517\n1 1\nInput in0 0 1 in0\n')
    with pytest.raises(RuntimeError, match=f'^ncnn cannot load {path} and model.ncnn.bin beside it.$'):
        runtimes.load(path)
