"""timm_mobilenext.detection: the authors' features to the unit, torchvision's conventions, one line for bad input."""
import contextlib
import copy
import csv
import importlib
import importlib.util
import json
import runpy
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import official
import pytest
import timm
import torch
from networks import ARCHITECTURES, FAMILIES, SMALL
from PIL import Image, ImageDraw
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from timm_mobilenext.weights.authors import SOURCES
from timm_mobilenext.detection import SSDLiteFeatureExtractor, check_targets, ssdlite320
from timm_mobilenext.mobilenext import SandGlass
from timm_mobilenext.weights.download import cached_file

ROOT = Path(__file__).parent.parent
RECORDED = json.loads(Path(__file__).with_name('data').joinpath('ssdlite.json').read_text())


def authors_weights() -> dict[str, torch.Tensor]:
    """Return a state dict of the authors' SSDLite backbone, values by formula."""
    classifier = {k: v for k, v in official.state_dict('mnext_100').items() if not k.startswith('classifier')}
    gain = official.OFFICIAL['models']['mnext_100']['weight_gain']
    return classifier | {key: official.fill(key, shape, gain) for key, shape in RECORDED['extras'].items()}


def drawn(count: int) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Return images (3, 240, 320) of one square of its own brightness each, label 1 for bright and 2 for dark."""
    random = torch.Generator().manual_seed(0)
    images, targets = [], []
    for i in range(count):
        x, y = (torch.randint(limit, (), generator=random).item() for limit in (200, 120))
        image = torch.full((3, 240, 320), 0.5) + 0.02 * torch.randn(3, 240, 320, generator=random)  # against ties
        image[:, y:y + 100, x:x + 100] = 0.95 if i % 2 else 0.05
        images.append(image.clamp(0, 1))
        targets.append(dict(boxes=torch.tensor([[x, y, x + 100., y + 100.]]), labels=torch.tensor([2 - i % 2])))
    return images, targets


@pytest.fixture(scope='module')
def trained_detector() -> SSD:
    """A narrow detector that has learned some drawn squares, in evaluation mode."""
    torch.manual_seed(0)
    model = ssdlite320(SMALL, num_classes=3, score_thresh=0.05, backbone_kwargs=dict(width_mult=0.1))
    images, targets = drawn(4)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=80)
    for _ in range(80):
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        optimizer.step()
        scheduler.step()
    return model.eval()


def test_authors_counts():
    """Parameters, multiply-adds and maps of backbone and extra blocks at 320 px are the authors', to the unit."""
    model = SSDLiteFeatureExtractor(timm.create_model('mobilenext_100', num_classes=0)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        maps = model(torch.zeros(1, 3, 320, 320))
    assert (sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2) == (2_955_088, 645_786_624)
    assert (RECORDED['params'], RECORDED['madds']) == (2_955_088, 645_786_624)
    assert [list(m.shape[1:]) for m in maps.values()] == RECORDED['shapes_320']
    assert model.out_channels == [576, 1280, 512, 256, 256, 128]


@pytest.mark.parametrize('place', ['state dict', 'file'])
def test_authors_weights(place, tmp_path):
    """The keys of the authors' SSDLite load, as they are or in a checkpoint file, and the six maps are theirs."""
    weights = authors_weights()
    if place == 'file':
        torch.save(dict(model=weights, iteration=1), tmp_path / 'model.pth')
        weights = tmp_path / 'model.pth'
    model = ssdlite320('mobilenext_100', weights_backbone=weights).eval()
    with torch.no_grad():
        maps = model.backbone(official.images()).values()
    for got, want in zip(maps, RECORDED['maps'], strict=True):
        assert abs(got.mean() - want['mean']) < 2e-3 * want['std']
        assert abs(got.std(unbiased=False) - want['std']) < 2e-3 * want['std']
        assert (got.flatten()[:8] - torch.tensor(want['first8'])).abs().max() < 2e-3 * want['std']


def test_authors_weights_that_do_not_fit():
    """A key that neither network nor extra blocks have a place for is named, and so is a missing one."""
    weights = authors_weights()
    with pytest.raises(RuntimeError, match=r'it has extras\.0\.8\.weight, which the model does not have'):
        ssdlite320(weights_backbone=weights | {'extras.0.8.weight': torch.zeros(1)})
    del weights['extras.3.4.bias']
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "3\.1\.1\.bias"'):
        ssdlite320(weights_backbone=weights)


@pytest.mark.parametrize('source', ['pretrained', 'fine-tuned file', 'state dict of timm'])
def test_classifier_weights(source, known_files, tmp_path, monkeypatch):
    """Weights of the classifier load: those of ImageNet, a fine-tuned checkpoint, a state dict with any classes."""
    if source == 'pretrained':
        cached = cached_file(SOURCES['mobilenext_100'], tmp_path / 'hub' / 'checkpoints')
        cached.parent.mkdir(parents=True)
        cached.symlink_to(known_files['mobilenext_100'])
        monkeypatch.setenv('TORCH_HOME', str(tmp_path))
        classifier = timm.create_model('mobilenext_100', pretrained=True)
        arguments = dict(pretrained_backbone=True)
    else:
        torch.manual_seed(0)
        classifier = timm.create_model('mobilenext_100', num_classes=7)
        torch.save(dict(state_dict=classifier.state_dict(), epoch=3), tmp_path / 'model_best.pth.tar')
        arguments = dict(
            weights_backbone=classifier.state_dict() if 'dict' in source else tmp_path / 'model_best.pth.tar')
    body = ssdlite320('mobilenext_100', **arguments).backbone.body.state_dict()
    expected = classifier.state_dict()
    assert {key for key in expected if not key.startswith('classifier.')} == {*body}
    assert all(torch.equal(value, expected[key]) for key, value in body.items())


@pytest.mark.parametrize('name', FAMILIES)
def test_taps(name, calibrated):
    """The taps are what enters the last depthwise conv of the block that strides to 32 and of the last block."""
    model = calibrated(name, num_classes=0).float()
    blocks = [m for m in model.modules() if isinstance(m, SandGlass)]
    strided = [m for m in blocks if not isinstance(m.dw_end, torch.nn.Identity) and m.dw_end.conv.stride[0] == 2][-1]
    expected = []
    hooks = [block.dw_end.register_forward_pre_hook(lambda _, args: expected.append(args[0].clone()))
             for block in (strided, blocks[-1])]
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        end = model(images)
        for hook in hooks:
            hook.remove()
        features = SSDLiteFeatureExtractor(model).eval()
        maps = features(images)
        assert [tuple(m.shape[-2:]) for m in maps.values()] == [(6, 4), (3, 2), (2, 1), (1, 1), (1, 1), (1, 1)]
        for got, want in zip((maps['0'], maps['1']), expected, strict=True):
            torch.testing.assert_close(got, want)
        torch.testing.assert_close(features.body(images)['2'].mean((2, 3)), end)


@pytest.mark.parametrize(('name', 'channels'), [
    *((name, None) for name in ARCHITECTURES if name not in FAMILIES),
    ('mobilenetv2_035', [32 * 6, 1280]),  # of torchvision's convention, the expansion of the block that strides
    ('mobilenetv3_small_050', [24 * 6, 288]),
    ('mobilenetv4_conv_small_050', [48, 480]),  # of features_only: its blocks are universal
    ('resnet18', [256, 512]),  # where no block expands
])
def test_backbones(name, channels):
    """Every architecture and timm's other networks make a detector, whose gradients reach all parameters."""
    model = ssdlite320(name, num_classes=3)
    assert model.backbone.out_channels[:2] == (channels or [timm.create_model(
        name, device='meta').blocks[5][0].out_chs, model.backbone.out_channels[1]])
    assert model.backbone.out_channels[2:] == [512, 256, 256, 128]
    sum(model(*drawn(2)).values()).backward()
    missing = {name for name, p in model.named_parameters() if p.grad is None}
    # what torchvision's networks leave out of a detector too: blocks behind the last tap have none
    assert not missing


def test_defaults_are_torchvisions():
    """Classes, size, default boxes, heads and post-processing are those of torchvision's SSDLite unless given."""
    theirs = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    ours = ssdlite320(SMALL)
    for name in ('score_thresh', 'nms_thresh', 'detections_per_img', 'topk_candidates'):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.transform.min_size, ours.transform.max_size) == (theirs.transform.min_size, theirs.transform.max_size)
    assert ours.transform.fixed_size == theirs.transform.fixed_size
    for name in ('aspect_ratios', 'scales'):
        assert getattr(ours.anchor_generator, name) == getattr(theirs.anchor_generator, name)
    assert ours.head.classification_head.num_columns == theirs.head.classification_head.num_columns == 91
    norms = [{(m.eps, m.momentum) for m in model.head.modules() if isinstance(m, torch.nn.BatchNorm2d)}
             for model in (ours, theirs)]
    assert norms[0] == norms[1]
    boxes = DefaultBoxGenerator([[2]] * 6)
    mine = ssdlite320(SMALL, num_classes=2, norm_layer=partial(torch.nn.BatchNorm2d, eps=0.5), anchor_generator=boxes)
    assert mine.anchor_generator is boxes
    assert mine.head.classification_head.num_columns == 2
    assert {m.eps for part in (mine.head, mine.backbone.extra) for m in part.modules() if hasattr(m, 'eps')} == {0.5}


def test_conventions(trained_detector):
    """A list of images of any size in, losses in training; else a list of boxes in their pixels, labels, scores."""
    model = copy.deepcopy(trained_detector)
    images, targets = drawn(4)
    sizes = [(240, 320), (480, 640), (720, 960), (480, 320)]
    images = [torch.nn.functional.interpolate(image[None], size)[0] for image, size in zip(images, sizes, strict=True)]
    found = model(images)
    assert [{*boxes} for boxes in found] == [{'boxes', 'labels', 'scores'}] * 4
    for boxes, target, (height, width) in zip(found, targets, sizes, strict=True):
        expected = target['boxes'] * torch.tensor([width / 320, height / 240] * 2)
        best = boxes['scores'].argmax()
        assert box_iou(boxes['boxes'][best][None], expected).item() > 0.5
        assert boxes['labels'][best] == target['labels'].item()
    losses = model.train()(images, targets)
    assert {*losses} == {'bbox_regression', 'classification'}
    assert all(loss.requires_grad for loss in losses.values())
    transform = model.transform
    assert transform.image_mean == [0.485, 0.456, 0.406]  # the backbone's, not 0.5 as in torchvision's


def test_scripted(trained_detector, tmp_path):
    """TorchScript gives equal boxes, from a file too."""
    images, _ = drawn(3)
    torch.jit.script(trained_detector).save(tmp_path / 'model.pt')
    _, found = torch.jit.load(tmp_path / 'model.pt')(images)
    for got, want in zip(found, trained_detector(images), strict=True):
        assert len(want['boxes']) > 0
        for key in want:
            torch.testing.assert_close(got[key], want[key])


def test_onnx(trained_detector, tmp_path):
    """Exported to ONNX as docs/detection.md has it, ONNX Runtime gives equal boxes on images of any size."""
    pytest.importorskip('onnx', reason="onnx is not installed, which the extra 'export' brings")
    runtime = pytest.importorskip('onnxruntime', reason="onnxruntime is not installed, which 'export' brings")
    images, _ = drawn(3)
    images.append(torch.nn.functional.interpolate(images[1][None], (200, 300))[0])
    code = (ROOT / 'docs' / 'detection.md').read_text().split('```python\n')[2].split('```')[0]
    with contextlib.chdir(tmp_path):
        exec(code, dict(torch=torch, model=trained_detector, images=images))
    session = runtime.InferenceSession(str(tmp_path / 'ssdlite320.onnx'))
    for image in images:
        want = trained_detector([image])[0]
        assert len(want['boxes']) > 0
        names = ('boxes', 'scores', 'labels')
        got = map(torch.from_numpy, session.run(names, {'image': image.numpy()}))
        found, expected = (
            torch.cat([boxes, scores[:, None], labels[:, None]], 1).detach()
            for boxes, scores, labels in (got, [want[name] for name in names]))
        # rounding differs by processor, and changes places where scores are nearly equal
        order = torch.cdist(found, expected, compute_mode='donot_use_mm_for_euclid_dist').argmin(1)
        assert sorted(order.tolist()) == [*range(len(expected))]
        torch.testing.assert_close(found, expected[order], rtol=1e-3, atol=1e-3)
        assert (found[:, 4].diff() <= 0).all()


@pytest.mark.parametrize('mode', [True, False])
def test_copies_keep_their_mode(trained_detector, mode):
    """A deep copy, as timm's EMA makes one, is in the mode of what it is of, and answers the same."""
    images, _ = drawn(1)
    copied = copy.deepcopy(trained_detector.train(mode))
    assert {module.training for module in copied.modules()} == {mode}
    trained_detector.eval()
    assert torch.equal(copied.eval()(images)[0]['boxes'], trained_detector(images)[0]['boxes'])


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(backbone='vit_tiny_patch16_224'), r'VisionTransformer has feature maps of strides \[16\], expected 16 and'),
    (dict(backbone=SMALL, backbone_kwargs=dict(output_stride=16)), r'strides \[2, 4, 8, 16\], expected 16 and 32'),
    (dict(backbone=SMALL, num_classes=1), 'num_classes=1 leaves no class to detect: expected at least 2'),
])
def test_bad_arguments(arguments, message):
    """A backbone without the taps, or no class at all, is one line that says what would do."""
    with pytest.raises(ValueError, match=message) as error:
        ssdlite320(**arguments)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('boxes', 'labels', 'message'), [
    ([[5, 5, 5, 9]], [1], r'image 1 has the box \(5, 5, 5, 9\), which has no area: expected x1 < x2 and y1 < y2'),
    ([[5, 9, 8, 2]], [1], r'image 1 has the box \(5, 9, 8, 2\), which has no area'),
    ([[5, 9, 8, 9]], [1], r'image 1 has the box \(5, 9, 8, 9\), which has no area'),
    ([[1, 2, 3, float('nan')]], [1], r'image 1 has the box \(1, 2, 3, nan\), which has no area'),
    ([[1, 2, 3, 4]], [3], 'image 1 has the label 3: expected 1 to 2, since num_classes=3 counts the background'),
    ([[1, 2, 3, 4]], [0], 'image 1 has the label 0: expected 1 to 2'),
    ([[1, 2, 3, 4]], [1, 1], r'image 1 has boxes of shape \(1, 4\) and 2 labels: expected \(N, 4\) and N'),
    ([], [], r'image 1 has boxes of shape \(0,\) and 0 labels: .* for an image without boxes \(0, 4\) and 0'),
])
def test_bad_targets(boxes, labels, message):
    """Targets that cannot be trained on are told apart before the training, in one line with a remedy."""
    good = dict(boxes=torch.tensor([[1., 2, 3, 4]]), labels=torch.tensor([2]))
    bad = dict(boxes=torch.tensor(boxes, dtype=torch.float32), labels=torch.tensor(labels, dtype=torch.long))
    with pytest.raises(ValueError, match=message) as error:
        check_targets([good, bad], 3, ['image 0', 'image 1'])
    assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match=message.replace('image 1 has', 'target 1 has')):
        check_targets([good | dict(labels=torch.tensor([1])), bad], 3)


def test_image_without_boxes(trained_detector):
    """An image without boxes is a good target beside others; none but such are refused."""
    images, targets = drawn(2)
    empty = dict(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    check_targets([targets[0], empty], 3)
    losses = copy.deepcopy(trained_detector).train()(images, [targets[0], empty])
    assert all(torch.isfinite(loss) for loss in losses.values())
    with pytest.raises(ValueError, match='There are no boxes in 2 targets: expected some to learn from'):
        check_targets([empty, empty], 3)


@pytest.fixture(scope='module')
def voc(tmp_path_factory) -> Path:
    """A folder in the layout of PASCAL VOC with a few drawn images."""
    root = tmp_path_factory.mktemp('voc')
    for name in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / name).mkdir(parents=True)
    for i in range(6):
        image = Image.new('RGB', (160, 120), 'gray')
        box = (10 * i, 20, 10 * i + 50, 70)
        ImageDraw.Draw(image).rectangle(box, fill='white' if i % 2 else 'black')
        image.save(root / 'JPEGImages' / f'{i}.jpg')
        write_annotation(root, f'{i}', [('bright' if i % 2 else 'dark', box)])
    for split, names in (('trainval', '0\n1\n2\n3\n'), ('test', '4\n5\n\n')):
        (root / 'ImageSets' / 'Main' / f'{split}.txt').write_text(names)
    return root


def write_annotation(root: Path, name: str, objects: list, image: str | None = None) -> None:
    """Write the annotation of an image, its classes and boxes."""
    nodes = ''.join(
        f'<object><name>{label}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>'
        '</bndbox></object>' for label, (x1, y1, x2, y2) in objects)
    (root / 'Annotations' / f'{name}.xml').write_text(
        f'<annotation><filename>{image or name + ".jpg"}</filename>{nodes}</annotation>')


@pytest.fixture(scope='module')
def example() -> types.ModuleType:
    """examples/detect.py as a module."""
    pytest.importorskip('torchmetrics', reason="torchmetrics is not installed, which the extra 'detection' brings")
    pytest.importorskip('pycocotools', reason="pycocotools is not installed, which the extra 'detection' brings")
    spec = importlib.util.spec_from_file_location('detect', ROOT / 'examples' / 'detect.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def detect(example, voc, tmp_path, monkeypatch) -> Callable[..., None]:
    """A function that runs the example with these arguments on the folder."""
    def run(*args: str) -> None:
        monkeypatch.setattr('sys.argv', [
            'detect.py', '--data-dir', str(voc), '--output', str(tmp_path / 'out'), '--epochs', '2', '--batch-size',
            '2', *args])
        example.main()
    return run


@pytest.mark.parametrize(('args', 'arguments'), [
    (['--vflip', '0.5', '--scales', '0.1', '0.4', '0.5', '0.65', '0.8', '0.95', '1'], dict(backbone=SMALL)),
    (['--backbone', 'mobilenetv2_035'], dict(backbone='mobilenetv2_035')),
    (['--backbone-kwargs', 'width_mult=0.1'], dict(backbone=SMALL, backbone_kwargs=dict(width_mult=0.1)))])
def test_example(args, arguments, detect, tmp_path, capsys):
    """The example trains for a few steps on a VOC folder, reports mAP, writes a picture, weights and a row."""
    detect(*args)
    printed = capsys.readouterr()
    assert 'classes bright, dark' in printed.out
    assert 'mAP ' in printed.out
    assert 'epoch 2/2' in printed.err
    with Image.open(tmp_path / 'out' / 'found.jpg') as picture:
        assert picture.size == (2 * 324 + 4, 328)
    header, row = (tmp_path / 'out' / 'results.csv').read_text().splitlines()
    values = dict(zip(header.split(','), row.split(','), strict=True))
    assert (values['seed'], values['epochs']) == ('0', '2')
    assert 0 <= float(values['map']) <= float(values['map_50']) <= 100
    model = ssdlite320(num_classes=3, **arguments)
    model.load_state_dict(torch.load(tmp_path / 'out' / 'ssdlite320.pth', weights_only=True))
    assert sum(p.numel() for p in model.parameters()) == int(values['params'])


def test_example_leaves_out(detect, voc, capsys):
    """A box of no area is left out and an image without boxes stays, and one line says so of each."""
    write_annotation(voc, 'flat', [('dark', (5, 5, 5, 9))], image='0.jpg')
    (voc / 'ImageSets' / 'Main' / 'flat.txt').write_text('flat\n1\n')
    detect('--train', 'flat', '--classes', 'bright', 'dark')
    printed = capsys.readouterr().out
    assert f'flat: 1 boxes have no area and are left out, the first in {voc}/Annotations/flat.xml\n' in printed
    assert 'flat: 1 of 2 images have no boxes, from which SSD learns nothing\n' in printed


@pytest.mark.parametrize(('objects', 'image', 'args', 'message'), [
    ([('dark', (1, 2, 30, 40))], 'gone.jpg', [], r'names the image gone.jpg, which is not in '),
    ([('blue', (1, 2, 30, 40))], '0.jpg', ['--classes', 'bright', 'dark'],
     "has the class 'blue', expected one of bright, dark"),
    ([('dark', (1, 2, 'x', 40))], '0.jpg', [], 'cannot be read as an annotation of PASCAL VOC: could not convert'),
    ([], '0.jpg', [], 'There are no boxes in 1 targets'),
    ([('dark', (1, 2, 30, 40))], '0.jpg', ['--test', 'val'], 'val.txt does not exist: expected a folder in the layout'),
    ([('dark', (1, 2, 30, 40))], '0.jpg', ['--backbone', 'vit_tiny_patch16_224', '--test', 'bad'],
     'expected 16 and 32 among them'),
])
def test_example_bad_input(objects, image, args, message, detect, voc, tmp_path, capsys):
    """What cannot be trained on ends in one line before any training, which names the file."""
    write_annotation(voc, 'bad', objects, image)
    (voc / 'ImageSets' / 'Main' / 'bad.txt').write_text('bad\n')
    with pytest.raises(SystemExit) as error:
        detect('--train', 'bad', *args)
    assert error.value.code.startswith('error: ')
    assert message in error.value.code
    assert '\n' not in error.value.code
    assert 'epoch' not in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_segmentation_example(voc, tmp_path, monkeypatch, capsys):
    """examples/segment.py trains on ellipses in the boxes, reports IoU, writes a picture, a model and a row."""
    pytest.importorskip('torchmetrics', reason="torchmetrics is not installed, which the extra 'segmentation' brings")
    smp = pytest.importorskip('segmentation_models_pytorch', reason="the extra 'smp' is not installed")
    monkeypatch.syspath_prepend(str(ROOT / 'examples'))
    segment = importlib.import_module('segment')
    monkeypatch.setattr('sys.argv', [
        'segment.py', '--data-dir', str(voc), '--output', str(tmp_path / 'out'), '--epochs', '2', '--batch-size', '2'])
    segment.main()
    assert 'mean IoU of bright, dark: ' in capsys.readouterr().out
    with Image.open(tmp_path / 'out' / 'found.jpg') as picture:
        assert picture.size == (2 * 196 + 4, 2 * 196 + 4)
    header, row = (tmp_path / 'out' / 'results.csv').read_text().splitlines()
    values = dict(zip(header.split(','), row.split(','), strict=True))
    assert 0 <= float(values['iou']) <= 100
    assert sum(p.numel() for p in smp.from_pretrained(tmp_path / 'out' / 'model').parameters()) == int(values['params'])
    # the mask is the ellipse in the box, which covers pi / 4 of it
    _, mask = segment.Masks(segment.VOC(voc, 'trainval'))[1]
    assert mask.unique().tolist() == [0, 1]
    ys, xs = mask.nonzero().unbind(1)
    assert (xs.min() - 10 * 1.2).abs() < 1
    assert (ys.max() - 70 * 1.6).abs() < 1.5
    assert (mask > 0).sum().item() == pytest.approx(torch.pi / 4 * 60 * 80, rel=0.02)


def test_docs_code():
    """The first Python of docs/detection.md runs."""
    code = (ROOT / 'docs' / 'detection.md').read_text().split('```python\n')[1].split('```')[0]
    namespace: dict = {}
    exec(code, namespace)
    assert {*namespace['losses']} == {'bbox_regression', 'classification'}
    assert [{*found} for found in namespace['found']] == [{'boxes', 'labels', 'scores'}] * 2


@pytest.mark.parametrize('example', ['detect', 'segment'])
def test_results_are_of_equal_multiply_adds(example):
    """The committed results have three seeds a network, whose multiply-adds, counted again, differ by under 3 %."""
    benchmark = runpy.run_path(str(ROOT / 'benchmarks' / 'detection.py'))
    with (ROOT / 'benchmarks' / 'results' / benchmark['RESULTS'][example]).open() as file:
        rows = list(csv.DictReader(file))
    assert sorted((row['label'], row['seed']) for row in rows) == sorted(
        (label, str(seed)) for label in benchmark['NETWORKS'][example] for seed in range(3))
    madds = []
    for label, args in benchmark['NETWORKS'][example].items():
        backbone_kwargs = {'width_mult': 0.38} if 'width_mult=0.38' in args else {}
        if example == 'detect':
            model = ssdlite320(args[1], num_classes=4, backbone_kwargs=backbone_kwargs)
            images = [torch.zeros(3, 320, 320)]
        else:
            smp = pytest.importorskip('segmentation_models_pytorch', reason="the extra 'smp' is not installed")
            model = smp.FPN(
                f'tu-{args[1]}', encoder_weights=None, decoder_pyramid_channels=64, decoder_segmentation_channels=32,
                classes=4)
            images = torch.zeros(1, 3, 192, 192)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(images)
        madds.append(counter.get_total_flops() // 2)
        assert {(int(row['params']), int(row['madds'])) for row in rows if row['label'] == label} == {
            (sum(p.numel() for p in model.parameters()), madds[-1])}
    assert max(madds) <= 1.03 * min(madds)
