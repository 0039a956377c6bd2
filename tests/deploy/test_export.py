"""Export by the command and its function: sources, the check, what is published, bad input."""
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from networks import SHORT, SMALL, need, needs_exporter
from PIL import Image
from torch.optim.swa_utils import update_bn

from timm_mobilenext.deploy import export
from timm_mobilenext.deploy.runtimes import RUNTIMES, Onnx

INT8 = [runtime.name for runtime in RUNTIMES.values() if 'int8' in runtime.precisions]


@pytest.fixture
def untrained(tmp_path) -> Path:
    """A converted folder of a short network with untrained weights, for 3 channels."""
    folder = tmp_path / 'untrained'
    torch.manual_seed(0)
    model = timm.create_model(SMALL, num_classes=10, **SHORT)
    update_bn([torch.randn(8, 3, 32, 32)], model)
    model.pretrained_cfg['input_size'] = (3, 32, 32)
    timm.models.save_for_hf(model, folder, safe_serialization=True, model_args=SHORT)
    return folder


def metadata(path: Path) -> dict[str, str] | None:
    """Return what a file says of itself, in the formats whose viewers show it."""
    if path.suffix == '.onnx':
        import onnx
        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    if path.suffix == '.mlpackage':
        import coremltools
        return coremltools.models.MLModel(str(path), skip_model_load=True).user_defined_metadata
    return None


@needs_exporter
@pytest.mark.slow
@pytest.mark.parametrize('runtime', RUNTIMES)
def test_export(runtime, trained, digits, tmp_path, monkeypatch, capsys):
    """A checkpoint of train.py becomes every file of a format, which answer as it does and say what they are."""
    need(runtime, int8=True)
    engine = RUNTIMES[runtime]
    monkeypatch.chdir(tmp_path)
    Path('names.txt').write_text('zero one two three four five six seven eight nine'.replace(' ', '\n'))
    weights = [more.removeprefix('weights_') for more in engine.precisions if more != 'int8']
    options = ['--weights', *weights] * bool(weights) + ['--int8'] * (runtime in INT8)
    export.main([str(trained), '--format', runtime, '--output', 'files', '--label-names', 'names.txt', *options,
                 '--calibration', str(digits / 'train'), '--check', str(digits / 'validation')])
    about = json.loads(Path('files/model.json').read_text())
    written = {file['precision']: file for file in about['files']}
    assert set(written) == {engine.precision, *engine.precisions}
    assert about['architecture'] == 'mobilenext_100'
    assert about['label_names'][7] == 'seven'
    assert (about['input_size'], about['mean'], about['input']) == ([1, 32, 32], [0.3], 'L')
    *lines, described, following = capsys.readouterr().out.splitlines()
    assert [line.split(': ')[0] for line in lines] == [f'files/{file["path"]}' for file in about['files']]
    assert described.startswith('files/model.json: ')
    assert f"runtimes.load('files/{about['files'][-1]['path']}')" in following
    for file in about['files']:
        said = metadata(Path('files', file['path']))
        assert said is None or (said['architecture'], json.loads(said['mean'])) == ('mobilenext_100', [0.3])
    if runtime == 'coreml' and sys.platform != 'darwin':
        assert all(line.endswith('not checked: Core ML runs only on macOS and iOS') for line in lines)
        assert written['weights_int8']['bytes'] < 0.7 * written['fp16']['bytes']
        return
    assert 'computes in fp32; matches PyTorch: same class on 128 of 128 images, largest logit' in lines[-1]
    assert written['fp32']['largest_difference'] < 1e-4
    assert all(file['images'] == 128 and file['top1_agreement'] > 0.97 for file in about['files'])
    if 'int8' in written:  # of which no tolerance is asked; a zero point that is wrong shifts them by more
        assert written['int8']['largest_difference'] < 0.75
    if 'weights_fp16' in written:
        assert written['weights_fp16']['bytes'] < 0.7 * written['fp32']['bytes']
    if 'int8' in written and runtime != 'openvino':  # OpenVINO's graph, in XML, outweighs such a small network
        assert written['int8']['bytes'] < 0.5 * written['fp32']['bytes']


@needs_exporter
@pytest.mark.slow
def test_publish_adds_files(trained, digits, server, client):
    """`publish` pushes the files that are asked for, and the code of the card runs them."""
    need('onnx', int8=True)
    args = [str(trained), '--repo-id', 'me/mine', '--output', 'mine', '--license', 'mit', '--push',
            '--format', 'onnx', '--weights', 'int8', '--int8', '--calibration', str(digits / 'validation')]
    client.run(f"__import__('timm_mobilenext.weights.publish').weights.publish.main({args})")
    files = {path.name: path.stat().st_size for path in (server.hub / 'me' / 'mine').iterdir()}
    assert {'model.onnx', 'model.int8.onnx', 'model.weights_int8.onnx', 'model.json'} <= set(files)
    text = (server.hub / 'me' / 'mine' / 'README.md').read_text()
    block = text.split('### Files for mobile runtimes')[1].split('```python\n')[1].split('```')[0]
    assert client.run(block + '\nprint(logits.shape)') == '(1, 10)'


def test_compare():
    """A comparison counts the classes that agree, and divides the largest difference of a logit by their deviation."""
    images = np.eye(4, dtype=np.float32)[:3, None, None]
    agreement, difference = export._compare(
        torch.nn.Flatten(), lambda image: image.reshape(1, -1)[:, ::-1], images, 'title')
    assert (agreement, difference) == (0, pytest.approx(1 / images.std()))


@pytest.mark.parametrize(('mode', 'count', 'taken'), [('L', 2, [0, 2]), ('RGB', 3, [0, 1, 3]), ('RGB', 9, range(5))])
def test_read_images(mode, count, taken, tmp_path):
    """Images are picked evenly from a folder and those in it, as many as there are, in the channels of the network."""
    (tmp_path / 'b').mkdir()
    for i, name in enumerate(('a.png', 'b/1.JPEG', 'b/2.bmp', 'c.webp', 'd.tif')):
        Image.new('RGB', (8, 8), (50 * i,) * 3).save(tmp_path / name)
    config = dict(input_size=(len(mode), 8, 8), mean=(0.,) * len(mode), std=(1.,) * len(mode), crop_pct=1.)
    images = export._read_images(tmp_path, mode, config, count)
    assert images.shape == (len(taken), len(mode), 8, 8)
    assert (images[:, 0, 4, 4] * 255 / 50).round().tolist() == [*taken]


@needs_exporter
@pytest.mark.parametrize(('precision', 'on_images', 'found', 'error'), [
    ('fp32', False, (0.5, 1e-4), ''),
    ('fp32', False, (1., 1.01e-4), 'expected at most 0.0001'),
    ('fp32', False, (1., float('nan')), 'expected at most 0.0001'),
    ('fp32', True, (0.9, 1e-4), ''),
    ('fp32', True, (0.75, 0.), 'expected the same class on at least 90%'),
    ('fp32', True, (1., 0.01), 'expected at most 0.0001'),
    ('weights_int8', False, (1., 0.25), ''),
    ('weights_int8', False, (1., 0.26), 'check it on images like those it will see .* store the weights in 16 bits'),
    ('weights_int8', True, (1., 0.26), ''),
    ('int8', True, (0.9, 3.), ''),
    ('int8', True, (0.8, 0.), 'calibrate it on more images'),
])
def test_what_the_check_asks_for(precision, on_images, found, error, untrained, tmp_path, monkeypatch):
    """On images the classes count, on noise the logits, of plain files both; the error has the way out."""
    for name in ('convert', 'store_weights', 'quantize', 'describe', 'load'):
        monkeypatch.setattr(Onnx, name, lambda *args, **kwargs: None)
    monkeypatch.setattr(Onnx, 'size', lambda *args: 0)
    monkeypatch.setattr(Onnx, 'missing', lambda *args: [])
    file = 'model.onnx' if precision == 'fp32' else f'model.{precision}.onnx'
    monkeypatch.setattr(export, '_compare', lambda *args: found if args[-1] == f'checking {file}' else (1., 0.))
    Image.new('RGB', (40, 40)).save(tmp_path / 'a.png')
    options = dict(check=tmp_path, calibration=tmp_path) if on_images else {}
    options |= {'fp32': {}, 'weights_int8': dict(weights=['int8']), 'int8': dict(int8=True)}[precision]
    if error:
        seen = f': same class on {found[0]:.0f} of 1 images,' if on_images else ' on noise:'
        said = f'^{SMALL} as {file} differs from PyTorch{seen} largest logit difference .*{error}.*--keep'
        with pytest.raises(RuntimeError, match=said):
            export.export(untrained, ['onnx'], tmp_path / 'files', **options)
        assert not (tmp_path / 'files').exists()
    rows = export.export(untrained, ['onnx', 'onnx'], tmp_path / 'files', keep=bool(error), **options)
    row = next(row for row in rows if row.precision == precision)
    assert (row.images, row.top1_agreement) == ((1, found[0]) if on_images else (0, None))
    assert bool(error) == bool(row.note)
    assert row.note in (tmp_path / 'files' / 'model.json').read_text()


# -- bad input: a line each, and nothing left behind

def fails(args: list[object], tmp_path: Path) -> str:
    """Run the command, which has to end with an error and leave nothing, and return what it says."""
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(SystemExit) as error:
        export.main([*map(str, args), '--output', str(tmp_path / 'out')])
    assert sorted(tmp_path.rglob('*')) == before
    assert str(error.value).startswith('error: ')
    return str(error.value)


def test_missing_runtime(tmp_path, untrained, monkeypatch):
    """A runtime that is not installed is named with the extra that brings it, before anything is converted."""
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name in ('litert_torch', 'nncf') else name)
    for args, said in (
            (['litert'], "(litert_torch): pip install 'timm-mobilenext[litert]'."),
            (['openvino', '--int8'], "(nncf): pip install 'timm-mobilenext[export]'.")):
        said = f'error: {args[0]} needs packages that are not installed {said}'
        assert fails([untrained, '--format', *args], tmp_path) == said


@pytest.mark.parametrize(('args', 'message'), [
    (['tflite'], f'Unknown format tflite: expected some of {", ".join(RUNTIMES)}.'),
    (['torchscript', '--int8', '--calibration', '.'],
     f'torchscript cannot compute in int8: expected one of {", ".join(INT8)}.'),
    (['onnx', '--int8'], '--int8 needs sample images: pass --calibration DIR.'),
    (['torchscript', '--weights', 'int8'], 'torchscript cannot store weights in int8: expected one of onnx, coreml.'),
    (['torchscript', '--mean', '1', '2'], 'mean must have one value or 3 values, got 2.'),
    (['torchscript', '--check', 'nowhere'], 'Folder nowhere does not exist.'),
])
@needs_exporter
def test_bad_options(args, message, untrained, tmp_path):
    """Options that do not fit, and a folder of images that does not exist, are an error before a conversion starts."""
    need('onnx')
    assert message in fails([untrained, '--format', *args], tmp_path)
