"""Export by the command and its function: sources, the check, what is published, bad input."""
import argparse
import contextlib
import importlib.util
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from networks import SHORT, SMALL, need, needs_exporter
from PIL import Image
from torch.optim.swa_utils import update_bn

from timm_mobilenext.deploy import export, runtimes
from timm_mobilenext.weights.convert import Converted
from timm_mobilenext.deploy.runtimes import RUNTIMES

INT8 = [runtime.name for runtime in RUNTIMES.values() if runtime.int8_modules is not None]


@pytest.fixture
def untrained(tmp_path) -> Path:
    """A folder with a network whose weights nobody trained, with 3 channels."""
    folder = tmp_path / 'untrained'
    torch.manual_seed(0)
    model = timm.create_model(SMALL, num_classes=10, **SHORT)
    update_bn([torch.randn(8, 3, 32, 32)], model)
    model.pretrained_cfg['input_size'] = (3, 32, 32)
    timm.models.save_for_hf(model, folder, safe_serialization=True, model_args=SHORT)
    return folder


def command(*args: object, **kwargs) -> subprocess.CompletedProcess:
    """Run `python -m timm_mobilenext export`."""
    return subprocess.run(
        [sys.executable, '-m', 'timm_mobilenext', 'export', *map(str, args)], capture_output=True, text=True,
        timeout=300, **kwargs)


@needs_exporter
@pytest.mark.parametrize('runtime', RUNTIMES)
def test_export(runtime, trained, digits, tmp_path):
    """A checkpoint of train.py becomes every file of a format, which answer as it does and say what they are."""
    need(runtime, int8=True)
    engine = RUNTIMES[runtime]
    (tmp_path / 'names.txt').write_text('zero one two three four five six seven eight nine'.replace(' ', '\n'))
    options = (['--weights', *engine.weights] if engine.weights else []) + ['--int8'] * (runtime in INT8)
    result = command(
        trained, '--model', 'mobilenext_100', '--format', runtime, '--output', 'files', '--num-images', 360,
        '--calibration', digits / 'train', '--check', digits / 'validation', '--label-names', 'names.txt', *options,
        cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    about = json.loads((tmp_path / 'files' / 'model.json').read_text())
    written = {file['precision']: file for file in about['files']}
    assert set(written) == {
        engine.precision, *(f'weights_{p}' for p in engine.weights), *(['int8'] if runtime in INT8 else [])}
    assert about['architecture'] == 'mobilenext_100'
    assert about['label_names'][7] == 'seven'
    assert (about['input_size'], about['mean'], about['input']) == ([1, 32, 32], [0.3], 'L')
    lines = result.stdout.splitlines()
    assert [line.split(': ')[0] for line in lines] == [f'files/{file["path"]}' for file in about['files']]
    if runtime == 'coreml' and sys.platform != 'darwin':
        assert all(line.endswith('not checked: Core ML runs on macOS and iOS alone') for line in lines)
        assert written['weights_int8']['bytes'] < 0.7 * written['fp16']['bytes']
        return
    assert written['fp32']['largest_difference'] < 1e-4
    assert all(file['images'] == 360 and file['top1_agreement'] > 0.97 for file in about['files'])
    if 'int8' in written:  # of which no tolerance is asked; a zero point that is wrong shifts them by more
        assert written['int8']['largest_difference'] < 0.75
    if 'weights_fp16' in written:
        assert written['weights_fp16']['bytes'] < 0.7 * written['fp32']['bytes']
    if 'int8' in written and runtime != 'openvino':  # OpenVINO's graph, in XML, outweighs such a small network
        assert written['int8']['bytes'] < 0.5 * written['fp32']['bytes']


@needs_exporter
def test_sources(untrained, tmp_path, server, client):
    """A folder and a repository on the Hub give the same file; arguments of the model are taken."""
    need('torchscript')
    x = torch.randn(1, 3, 32, 32).numpy()
    expected = timm.create_model(f'local-dir:{untrained}', pretrained=True).eval()(torch.from_numpy(x)).detach().numpy()
    (server.hub / 'me').mkdir(parents=True, exist_ok=True)
    (server.hub / 'me' / 'mine').symlink_to(untrained)
    client.run("__import__('timm_mobilenext.deploy.export').deploy.export.main(['hf-hub:me/mine', "
               f"'--format', 'torchscript', '--output', '{tmp_path / 'repository'}'])")
    for source, folder in ((untrained, 'folder'), (f'local-dir:{untrained}', 'named')):
        export.export(source, ['torchscript'], tmp_path / folder)
    for folder in ('repository', 'folder', 'named'):
        np.testing.assert_allclose(
            runtimes.load(tmp_path / folder / 'model.pt')(x), expected, atol=1e-4 * expected.std())
        about = json.loads((tmp_path / folder / 'model.json').read_text())
        assert about['source'] == ('hf-hub:me/mine' if folder == 'repository' else 'untrained')
    row, = export.export(untrained, ['torchscript'], tmp_path / 'wide', model_kwargs=dict(num_classes=3))
    assert runtimes.load(row.path)(x).shape == (1, 3)
    assert row.check().endswith('on noise')


@needs_exporter
def test_pretrained_name(client, on_hub):
    """A model name is exported with its pretrained weights, and ImageNet's classes by name."""
    client.run("__import__('timm_mobilenext.deploy.export').deploy.export.main("
               "['mobilenext_100', '--format', 'torchscript', '--img-size', '64', '--output', 'out', '--keep'])")
    about = json.loads((client.folder / 'out' / 'model.json').read_text())
    assert about['license'] == 'bsd-3-clause-clear'
    assert len(about['label_names']) == about['num_classes'] == 1000
    assert about['label_names'][0] == 'tench, Tinca tinca'
    assert about['files'][0]['input_size'] == [3, 64, 64]
    assert about['files'][0]['largest_difference'] < 1e-3  # weights by formula, see test_graph


def test_check():
    """The check counts classes that agree and takes the largest difference of a logit over their deviation."""
    model = torch.nn.Flatten()
    images = np.eye(4, dtype=np.float32)[:, None, None]
    assert export.check(model, lambda image: image.reshape(1, -1), images) == (1, 0)
    agreement, difference = export.check(model, lambda image: image.reshape(1, -1)[:, ::-1], images[:3])
    assert agreement == 0
    assert difference == pytest.approx(1 / images[:3].std())


def test_check_in_words():
    """What the check found is said in words: the classes that agree, the logits, and why it was not checked."""
    row = export.Exported(Path('model.onnx'), 'onnx', 'fp32', (3, 8, 8), 100)
    row.note = 'not checked: no phone'
    assert row.check() == 'not checked: no phone'
    row.largest_difference, row.note = 0.0012, ''
    assert row.check() == 'logits within 1.2e-03 of their standard deviation, on noise'
    row.images, row.top1_agreement = 8, 0.875
    assert row.check() == 'top-1 of 87.5% of 8 images, logits within 1.2e-03 of their standard deviation'


@pytest.mark.parametrize(('count', 'taken'), [(1, [0]), (2, [0, 2]), (3, [0, 1, 3]), (5, range(5)), (9, range(5))])
@pytest.mark.parametrize('channels', [1, 3])
def test_read_images(channels, count, taken, tmp_path):
    """Images are picked evenly from a folder and those in it, as many as there are, in the channels of the network."""
    (tmp_path / 'b').mkdir()
    for i, name in enumerate(('a.png', 'b/1.JPEG', 'b/2.bmp', 'c.webp', 'd.tif')):
        Image.new('RGB', (8, 8), (50 * i,) * 3).save(tmp_path / name)
    config = dict(input_size=(channels, 8, 8), mean=(0.,) * channels, std=(1.,) * channels, crop_pct=1.)
    images = export.read_images(tmp_path, config, count)
    assert images.shape == (len(taken), channels, 8, 8)
    assert (images[:, 0, 4, 4] * 255 / 50).round().tolist() == [*taken]
    with pytest.raises(ValueError, match='The network takes 2 channels, expected 1 or 3, which images have'):
        export.read_images(tmp_path, config | dict(input_size=(2, 8, 8)), count)


def test_describe():
    """A file says how its images are made and what its classes are: those given, of the config, or ImageNet's."""
    model = timm.create_model(SMALL, device='meta', num_classes=2)
    converted = Converted(model, {}, {'source': 'mine'})
    config = dict(input_size=(1, 8, 8), crop_pct=1.)
    about = export.describe(converted, config)
    assert (about['source'], about['input'], about['input_size'], about['crop_pct'], about['num_classes']) == (
        'mine', 'L', [1, 8, 8], 1., 2)
    assert 'label_names' not in about
    model.pretrained_cfg['label_names'] = ('a', 'b')
    assert export.describe(converted, config)['label_names'] == ['a', 'b']
    assert export.describe(converted, config, ['c', 'd'])['label_names'] == ['c', 'd']
    imagenet = export.describe(
        Converted(timm.create_model(SMALL, device='meta'), {}, {}), config | dict(input_size=(3, 8, 8)))
    assert (imagenet['input'], len(imagenet['label_names'])) == ('RGB', 1000)


def test_options_are_those_of_the_function():
    """What is not said to a command is what the function takes where it is not told."""
    command = argparse.ArgumentParser()
    export.options(command)
    defaults = {name: parameter.default for name, parameter in inspect.signature(export.write).parameters.items()}
    chosen = export.chosen(command.parse_args([]))
    assert len(chosen) == 10
    assert chosen | dict(weights=()) == {name: defaults[name] for name in chosen}


@needs_exporter
@pytest.mark.parametrize(('found', 'is_on_images', 'error'), [
    ((0.9, 1e-4), True, ''), ((0.5, 1e-4), False, ''), ((1., float('nan')), False, 'the logits differ by nan'),
    ((0.75, 0.), True, r'75\.0% of 4 images get the same class as in PyTorch, expected at least 90\.0%')])
def test_what_the_check_is_held_to(found, is_on_images, error, untrained, tmp_path, monkeypatch):
    """Nine of ten images have to get PyTorch's class, and all logits to be numbers; of noise the logits alone count."""
    monkeypatch.setattr(export, 'check', lambda *args: found)
    converted, folder = export.load(untrained), tmp_path / 'files'
    folder.mkdir()
    options = dict(check_on=np.zeros((4, 3, 1, 1), np.float32)) if is_on_images else {}
    with pytest.raises(RuntimeError, match=f'model.pt: {error}') if error else contextlib.nullcontext():
        row, = export.write(converted, ['torchscript', 'torchscript'], folder, img_size=1, num_images=1, **options)
        assert (row.images, row.top1_agreement) == ((4, found[0]) if is_on_images else (0, None))
        assert row.bytes == (folder / 'model.pt').stat().st_size
        assert json.loads((folder / 'model.json').read_text())['files'][0]['input_size'] == [3, 1, 1]


@needs_exporter
@pytest.mark.parametrize(('precision', 'most'), [('fp32', 1e-4), ('weights_fp16', 0.01), ('weights_int8', 0.25)])
def test_tolerances(precision, most, untrained, tmp_path, monkeypatch):
    """Logits may differ by 1e-4 of their deviation, with weights stored in fp16 by 0.01, in int8 by 0.25."""
    need('onnx')
    name = 'model.onnx' if precision == 'fp32' else f'model.{precision}.onnx'
    options = {} if precision == 'fp32' else dict(weights=[precision.removeprefix('weights_')])
    for difference in (most, 1.01 * most):
        monkeypatch.setattr(
            export, 'check', lambda *args, found=difference: (1., found if args[-1] == f'checking {name}' else 0.))
        with contextlib.nullcontext() if difference == most else pytest.raises(RuntimeError, match=(
                f'^{name}: the logits differ by .* of their standard deviation, expected at most {most}')):
            export.export(untrained, ['onnx'], tmp_path / f'{difference}', img_size=16, **options)


@needs_exporter
def test_int8_where_it_is_asked_for(untrained, tmp_path):
    """Files compute in int8 where that is asked for and the format can; images to calibrate by ask for nothing."""
    need('onnx', int8=True)
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    for int8, expected in ((False, [('onnx', 'fp32')]), (True, [('onnx', 'int8'), ('onnx', 'fp32')])):
        rows = export.export(
            untrained, ['onnx', 'torchscript'], tmp_path / f'{int8}', calibration=images, int8=int8, keep=True)
        assert [(row.format, row.precision) for row in rows] == [*expected, ('torchscript', 'fp32')]
        assert {row.images for row in rows} == {2}


@needs_exporter
def test_a_file_that_answers_otherwise_is_not_left_behind(untrained, tmp_path, digits, monkeypatch, capsys):
    """A file beyond its tolerance is an error and leaves nothing; --keep keeps it, and says so and how large it is."""
    monkeypatch.setitem(export.TOLERANCES, 'fp32', 1e-12)
    args = [str(untrained), '--format', 'torch-export', '--output', str(tmp_path / 'files')]
    with pytest.raises(SystemExit, match=r'model.pt2: the logits differ by .* expected at most 1e-12. Look at it with'):
        export.main(args)
    assert os.listdir(tmp_path) == ['untrained']
    export.main([*args, '--keep'])
    about = json.loads((tmp_path / 'files' / 'model.json').read_text())
    assert about['files'][0]['note'].startswith('the logits differ by')
    path = tmp_path / 'files' / 'model.pt2'
    printed = f'{path}: {path.stat().st_size / 1e6:.2f} MB, as PyTorch: logits within '
    assert capsys.readouterr().out.startswith(printed)


@needs_exporter
def test_publish_adds_files(trained, digits, tmp_path, server, client):
    """`publish --format` pushes the files that are asked for, and the code of the card runs them."""
    need('onnx', int8=True)
    args = [str(trained), '--repo-id', 'me/mine', '--output', 'mine', '--license', 'mit', '--push',
            '--format', 'onnx', '--weights', 'int8', 'fp16', '--int8', '--calibration', str(digits / 'validation')]
    client.run(f"__import__('timm_mobilenext.weights.publish').weights.publish.main({args})")
    files = {path.name: path.stat().st_size for path in (server.hub / 'me' / 'mine').iterdir()}
    assert {'model.onnx', 'model.int8.onnx', 'model.weights_int8.onnx', 'model.weights_fp16.onnx', 'model.json'} <= set(
        files)
    assert files['model.weights_int8.onnx'] < 0.4 * files['model.onnx']
    text = (server.hub / 'me' / 'mine' / 'README.md').read_text()
    block = text.split('### Files for mobile runtimes')[1].split('```python\n')[1].split('```')[0]
    assert client.run(block + '\nprint(logits.shape)') == '(1, 10)'


# -- bad input: a line each, and nothing left behind

def fails(args: list[object], tmp_path: Path) -> str:
    """Run the command, which has to end with an error and leave nothing, and return what it says."""
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(SystemExit) as error:
        export.main([*map(str, args), '--output', str(tmp_path / 'out')])
    assert sorted(tmp_path.rglob('*')) == before
    assert str(error.value).startswith('error: ')
    return str(error.value)


def test_unknown_format(tmp_path, untrained):
    """An unknown format is named, with those that there are."""
    assert fails([untrained, '--format', 'tflite'], tmp_path) == (
        f'error: There is no format tflite: expected some of {", ".join(RUNTIMES)}.')


@pytest.mark.parametrize(('runtime', 'module'), [
    ('onnx', 'onnxruntime'), ('openvino', 'nncf'), ('litert', 'litert_torch')])
def test_missing_runtime(runtime, module, tmp_path, untrained, monkeypatch):
    """A runtime that is not installed is named with the extra that brings it, before anything is converted."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == module else find_spec('os'))
    said = fails([untrained, '--format', runtime, '--int8', '--calibration', tmp_path], tmp_path)
    assert said == (f'error: {runtime} needs {module}, which is not installed: pip install '
                    f"'timm-mobilenext[{RUNTIMES[runtime].extra}]'.")


@pytest.mark.parametrize('given', ['--format', '--output'])
def test_what_has_to_be_said(given, capsys):
    """Without formats or a folder, the command says which of the two is missing."""
    with pytest.raises(SystemExit, match='2'):
        export.main([SMALL, given, 'onnx'])
    missing = '--output/-o' if given == '--format' else '--format'
    assert f'the following arguments are required: {missing}' in capsys.readouterr().err


@pytest.mark.parametrize(('args', 'message'), [
    (['--format', 'torchscript', '--int8', '--calibration', '.'],
     f'None of torchscript has an int8 form: expected one of {", ".join(INT8)}.'),
    (['--format', 'torchscript', '--weights', 'int8'],
     'None of torchscript stores weights in int8: expected one of onnx, coreml.'),
    (['--format', 'torchscript', '--img-size', '0'], 'Images of 0 px: expected 1 or more, 224 for most models.'),
    (['--format', 'torchscript', '--num-images', '0'], '0 images to calibrate by or check on: expected 1 or more.'),
    (['--format', 'torchscript', '--mean', '1', '2'], 'mean must have one value or 3 values, got 2.'),
    (['--format', 'torchscript', '--check', 'nowhere'], 'There is no folder nowhere: expected one of images.'),
    (['--format', 'torchscript', '--model', SMALL], 'is no file.'),
])
@needs_exporter
def test_bad_options(args, message, untrained, tmp_path):
    """Options that do not fit are an error."""
    assert message in fails([untrained, *args], tmp_path)


@needs_exporter
def test_bad_sources(untrained, trained, tmp_path):
    """A name, a folder or a checkpoint that is none is an error, and so is one of another architecture."""
    (tmp_path / 'empty').mkdir()
    bare, other = tmp_path / 'bare.pth', tmp_path / 'other.pth'
    torch.save({'x': torch.zeros(1)}, bare)
    torch.save({'state_dict': {'x': torch.zeros(1)}, 'args': argparse.Namespace(model='mobilenetv2_100')}, other)
    for source, message in (
            ('mobilenext_999', "'mobilenext_999' is no model name, folder or file: expected one of mobilenext_035, "),
            (tmp_path / 'empty', 'empty is no converted folder: there is no config.json in it.'),
            (SMALL, 'No pretrained weights exist for mobilenext_035'),
            (bare, 'bare.pth does not say of which architecture it is: expected one of mobilenext_035, '),
            (other, "other.pth is of 'mobilenetv2_100': expected one of mobilenext_035, ")):
        assert message in fails([source, '--format', 'torchscript'], tmp_path)
    assert 'holds mobilenext_100, which mobilenext_035 may load' in fails(
        [trained, '--model', SMALL, '--format', 'torchscript'], tmp_path)


@needs_exporter
def test_bad_images(untrained, tmp_path):
    """A folder without images, and an image that cannot be read, are an error before anything is converted."""
    images = tmp_path / 'images'
    images.mkdir()
    args = [untrained, '--format', 'torchscript', '--check', images]
    (images / 'notes.txt').write_text('no image')
    assert f'There are no images in {images}: expected files that end in' in fails(args, tmp_path)
    Image.new('RGB', (40, 40)).save(images / 'a.png')
    (images / 'b.jpg').write_text('no image either')
    assert f'{images / "b.jpg"} cannot be read (' in fails(args, tmp_path)


@needs_exporter
def test_bad_output(untrained, tmp_path):
    """An output that exists, or cannot be made, is an error."""
    (tmp_path / 'out').mkdir()
    assert f'{tmp_path / "out"} exists: expected a new folder.' in fails([untrained, '--format', 'onnx'], tmp_path)
    (tmp_path / 'out').rmdir()
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit, match=r'^error: .*file'):
        export.main([str(untrained), '--format', 'onnx', '--output', str(tmp_path / 'file' / 'out')])


@needs_exporter
def test_ctrl_c(untrained, tmp_path):
    """Ctrl-C in the middle of a conversion is a line, and leaves nothing."""
    need('executorch')
    process = subprocess.Popen(
        [sys.executable, '-m', 'timm_mobilenext', 'export', untrained, '--format', 'executorch', '--output', 'out'],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob('.timm-mobilenext-*')):
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert stderr.splitlines()[-1].endswith('error: interrupted')
    assert os.listdir(tmp_path) == ['untrained']
