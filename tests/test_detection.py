"""timm_mobilenext.detection and its examples: the authors' features, torchvision's conventions, nothing lost."""
import copy
import importlib
import json
import runpy
import sys
import types
from pathlib import Path

import official
import pytest
import timm
import torch
from networks import FAMILIES, SMALL
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.ops import box_iou

from timm_mobilenext.detection import SSDLiteFeatureExtractor, load, save, ssdlite320
from timm_mobilenext.mobilenext import SandGlass

ROOT = Path(__file__).parent.parent
RECORDED = json.loads(Path(__file__).with_name('data').joinpath('ssdlite.json').read_text())


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


def test_authors_features():
    """The keys of the authors' SSDLite load; parameters, multiply-adds and the six maps are those of their code."""
    gain = official.OFFICIAL['models']['mnext_100']['weight_gain']
    weights = {k: v for k, v in official.state_dict('mnext_100').items() if not k.startswith('classifier')}
    weights |= {key: official.fill(key, shape, gain) for key, shape in RECORDED['extras'].items()}
    model = ssdlite320('mobilenext_100', weights_backbone=weights).backbone.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes = [list(features.shape[1:]) for features in model(torch.zeros(1, 3, 320, 320)).values()]
    assert shapes == RECORDED['shapes_320']
    assert sum(p.numel() for p in model.parameters()) == RECORDED['params'] == 2_955_088
    assert counter.get_total_flops() // 2 == RECORDED['madds'] == 645_786_624
    with torch.no_grad():
        maps = model(official.images()).values()
    for got, want in zip(maps, RECORDED['maps'], strict=True):
        assert abs(got.mean() - want['mean']) < 2e-3 * want['std']
        assert abs(got.std(unbiased=False) - want['std']) < 2e-3 * want['std']
        assert (got.flatten()[:8] - torch.tensor(want['first8'])).abs().max() < 2e-3 * want['std']


def test_classifier_file(tmp_path):
    """A checkpoint of a classifier of any number of classes loads into the backbone."""
    weights = timm.create_model(SMALL, num_classes=7).state_dict()
    torch.save(dict(state_dict=weights, epoch=3), tmp_path / 'best.pth.tar')
    body = ssdlite320(SMALL, weights_backbone=tmp_path / 'best.pth.tar').backbone.body
    assert all(torch.equal(value, weights[key]) for key, value in body.state_dict().items())


@pytest.mark.parametrize('name', FAMILIES)
def test_taps(name, calibrated):
    """The taps are what enters the last depthwise conv of the block that strides to 32 and of the last block."""
    model = calibrated(name, num_classes=0).float()
    blocks = [m for m in model.modules() if isinstance(m, SandGlass)]
    images, expected = torch.randn(2, 3, 96, 64), []
    with torch.no_grad():
        for block in (model.blocks[model.feature_info[-2]['stage']][0], blocks[-1]):
            hook = block.dw_end.register_forward_pre_hook(lambda _, args: expected.append(args[0].clone()))
            end = model(images)
            hook.remove()
        features = SSDLiteFeatureExtractor(model).eval()
        maps = features(images)
        assert [tuple(m.shape[-2:]) for m in maps.values()] == [(6, 4), (3, 2), (2, 1), (1, 1), (1, 1), (1, 1)]
        torch.testing.assert_close([maps['0'], maps['1']], expected)
        torch.testing.assert_close(features.body(images)[2].mean((2, 3)), end)


@pytest.mark.parametrize(('name', 'channels'), [
    (SMALL, [200, 1280]),
    ('mobilenetv2_035', [32 * 6, 1280]),  # of torchvision's convention, the expansion of the block that strides
    ('mobilenetv4_conv_small_050', [48, 480]),  # of features_only: its blocks are universal
    ('resnet18', [256, 512]),  # where no block expands
])
def test_backbones(name, channels):
    """MobileNeXt and timm's other networks make a detector, whose gradients reach all parameters."""
    model = ssdlite320(name, num_classes=3)
    assert model.backbone.out_channels == [*channels, 512, 256, 256, 128]
    sum(model(*drawn(2)).values()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_defaults_are_torchvisions():
    """Size, default boxes, heads and post-processing are those of torchvision's SSDLite unless given."""
    expected, model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None), ssdlite320(SMALL)
    for name in ('score_thresh', 'nms_thresh', 'detections_per_img', 'topk_candidates'):
        assert getattr(model, name) == getattr(expected, name)
    assert model.transform.fixed_size == expected.transform.fixed_size
    assert model.transform.image_mean == [0.485, 0.456, 0.406]  # the backbone's, not 0.5 as in torchvision's
    assert str(model.anchor_generator) == str(expected.anchor_generator)
    assert str(model.head.classification_head.module_list[2]) == str(expected.head.classification_head.module_list[2])


def test_recompute_act():
    """With `recompute_act` a detector keeps less for the backward pass too, and the loss is the same."""
    kept, losses = {}, []
    for recompute_act in (False, True):
        torch.manual_seed(0)
        model, sizes = ssdlite320(SMALL, 3, backbone_kwargs=dict(recompute_act=recompute_act)), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.nbytes) or x, lambda x: x):
            losses.append(sum(model(*drawn(2)).values()))
        kept[recompute_act] = sum(sizes)
    assert kept[True] < 0.8 * kept[False]
    torch.testing.assert_close(*losses)


def test_file(tmp_path):
    """From its file a detector of any default boxes, backbone and channels is built again, with its classes."""
    boxes = DefaultBoxGenerator([[2]] * 6, scales=[0.08, 0.4, 0.5, 0.65, 0.8, 0.95, 1.], clip=False)
    model = ssdlite320('mobilenext_050', 2, backbone_kwargs=dict(in_chans=1, identity_ratio=0.5, width_mult=0.1),
                       anchor_generator=boxes, topk_candidates=7).to(memory_format=torch.channels_last).eval()
    path = tmp_path / 'model.safetensors'
    save(model, path, ['background', 'cell'])
    (again, classes), images = load(path), [torch.rand(1, 50, 60)]
    assert classes == ['background', 'cell']
    for same in (again, copy.deepcopy(model)):  # timm's EMA makes such a copy
        torch.testing.assert_close(same(images), model(images))
    assert again(images)[0]['boxes'].shape == (7, 4)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "anchor_generator.scales"'):
        model.load_state_dict(load_file(path))  # which does not know the default boxes
    with pytest.raises(TypeError, match='type is not JSON serializable'):
        save(ssdlite320(SMALL, 2, norm_layer=torch.nn.BatchNorm2d), tmp_path / 'other.safetensors', ['no', 'yes'])
    assert [path.name for path in tmp_path.iterdir()] == ['model.safetensors']
    torch.save(model.state_dict(), path)
    with pytest.raises(ValueError, match=r'model\.safetensors is not a detector: give a file that'):
        load(path)


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(backbone='vit_tiny_patch16_224'), r'VisionTransformer has feature maps of strides \[16\], SSDLite needs'),
    (dict(backbone_kwargs=dict(features_only=True)), 'give features_only=False in backbone_kwargs'),
    (dict(trainable_backbone_layers=3), "trainable_backbone_layers is not an argument of torchvision's SSD. Its"),
    (dict(num_classes=1), 'num_classes=1 leaves no class to detect: give at least 2'),
])
def test_bad_arguments(arguments, message):
    """A backbone without the taps, or an argument that torchvision would ignore, is an error that says what to give."""
    with pytest.raises(ValueError, match=message):
        ssdlite320(**arguments)


@pytest.mark.slow
def test_docs_code(tmp_path, monkeypatch):
    """The Python of docs/detection.md runs as it stands: it finds an object, ONNX and TorchScript the same boxes."""
    runtime = pytest.importorskip('onnxruntime', reason="onnxruntime is not installed, which 'export' brings")
    torch.manual_seed(0)
    model = ssdlite320(SMALL, num_classes=3, size=(160, 160), score_thresh=0.05, backbone_kwargs=dict(width_mult=0.1))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=80)
    for _ in range(80):
        optimizer.zero_grad()
        sum(model(*drawn(4)).values()).backward()
        optimizer.step()
        scheduler.step()
    model.eval().requires_grad_(False)
    monkeypatch.chdir(tmp_path)
    Path('detect').mkdir()
    save(model, 'detect/ssdlite320.safetensors', ['background', 'bright', 'dark'])
    images, targets = drawn(3)
    Image.fromarray((images[0] * 255).byte().permute(1, 2, 0).numpy()).save('photograph.jpg', 'png')
    blocks, printed = (ROOT / 'docs' / 'detection.md').read_text().split('```python\n'), []
    use, export, loop, _ = (block.split('```')[0] for block in blocks[1:])
    exec(use, namespace := dict(print=lambda *args: printed.append(args)))
    assert printed[0][0] == 'dark'
    assert box_iou(torch.tensor([printed[0][2]]), targets[0]['boxes']).item() > 0.5
    exec(export, namespace)
    session = runtime.InferenceSession('ssdlite320.onnx')
    for image in [*images, torch.nn.functional.interpolate(images[1][None], (200, 300))[0]]:
        want = model([image])[0]
        boxes, scores, _ = map(torch.from_numpy, session.run(['boxes', 'scores', 'labels'], {'image': image.numpy()}))
        torch.testing.assert_close(scores, want['scores'], rtol=1e-3, atol=1e-3)  # in order
        # rounding differs by processor, and boxes change places where scores are nearly equal
        order = torch.cdist(boxes, want['boxes'], compute_mode='donot_use_mm_for_euclid_dist').argmin(1)
        torch.testing.assert_close(boxes, want['boxes'][order], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.jit.script(namespace['model'])(images)[1], model(images))
    exec(loop, namespace)
    assert load('mine.safetensors')[1] == ['background', 'red', 'white', 'platelet']


BOX = (40, 20, 90, 70)
PHOTOGRAPH = Image.new('RGB', (160, 120), 'gray')
ImageDraw.Draw(PHOTOGRAPH).rectangle(BOX, fill='white')


def write_sample(name: str, labels: list, image: Image.Image = PHOTOGRAPH, box: tuple = BOX, **parts: str) -> None:
    """Write an image, and beside it an annotation with a box for each label."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(f'{path}.jpg' if image.mode in ('RGB', 'CMYK') else f'{path}.png', exif=image.getexif())
    box = '<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>'.format(*box)
    nodes = ''.join(f'<object><name>{label}</name>{box}</object>' for label in labels)
    nodes += ''.join(f'<{key}>{value}</{key}>' for key, value in parts.items())
    path.with_suffix('.xml').write_text(f'<annotation>{nodes}</annotation>')


@pytest.fixture(params=['detect', 'segment'])
def example(request, tmp_path, monkeypatch) -> types.ModuleType:
    """An example, whose `run` starts it on the folder `data` of a folder of the test's own."""
    needed = {'detect': 'pycocotools', 'segment': 'segmentation_models_pytorch'}[request.param]
    pytest.importorskip(needed, reason=f'{needed} is not installed, which an extra brings')
    monkeypatch.syspath_prepend(str(ROOT / 'examples'))
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(request.param)
    arguments = ['--data-dir=data', '--train=train', '--epochs=2', '--batch-size=2', '--output=out']
    module.run = lambda *args: (monkeypatch.setattr('sys.argv', [
        'example', *arguments, '--backbone-kwargs', 'width_mult=0.1', *args]), module.main())
    return module


only_detect = pytest.mark.parametrize('example', ['detect'], indirect=True)


def classes_written() -> list[str]:
    """Return the classes of the model that an example wrote, which has to load."""
    if Path('out/model').exists():
        importlib.import_module('segmentation_models_pytorch').from_pretrained('out/model')
        return Path('out/model/classes.txt').read_text().split()
    return load('out/ssdlite320.safetensors')[1]


@pytest.mark.slow
@pytest.mark.parametrize('labels', [['bright'], ['bright', 'dark']])
def test_examples_end(labels, example, capsys):
    """One class, one box of a class, none in the test split, no boxes, one test image: all end with a result."""
    for name, boxes in (('train/0', labels), ('train/1', ['bright']), ('train/2', []), ('test/0', ['bright'])):
        write_sample(f'data/{name}', boxes)
    example.run()
    assert ('test: no boxes of dark' in capsys.readouterr().out) == ('dark' in labels)
    names, values = (line.split(',') for line in Path('out/results.csv').read_text().splitlines())
    metrics = {name: float(value) for name, value in zip(names, values, strict=True) if name[:3] in ('map', 'iou')}
    assert {*metrics} in ({'map', 'map_50', 'map_bright'}, {'iou', 'iou_bright'})
    assert all(0 <= value <= 100 for value in metrics.values())
    assert classes_written() == ['__background__', *labels]
    with Image.open('out/found.jpg') as picture:
        assert picture.size == (2 * 480 + 8, 24 + 360 + 8)  # in the proportions of the photograph


@pytest.mark.slow
def test_examples_leave_the_last_epoch(example, monkeypatch):
    """Ctrl-C leaves the model of the last finished epoch, and says so."""
    for name in ('train/0', 'train/1', 'test/0'):
        write_sample(f'data/{name}', ['bright'])

    def train(*args, original=example.train):
        yield next(original(*args))
        raise KeyboardInterrupt
    monkeypatch.setattr(example, 'train', train)
    with pytest.raises(SystemExit, match=r'interrupted: out/.* is of epoch 1'):
        example.run()
    assert classes_written() == ['__background__', 'bright']


@only_detect
@pytest.mark.parametrize(('kind', 'filename'), [
    ('RGB', ''), ('turned', 'a.jpg'), ('lying', 'a'), ('L', 'a.jpg'), ('P', r'C:\photos\a.png'), ('CMYK', '/b/c.jpg'),
    ('I;16', 'b.png')])
def test_any_image(kind, filename, example):
    """The box is where the object is in photographs of all kinds, whatever `filename` says of suffix and path."""
    image = PHOTOGRAPH.copy()
    if kind in ('turned', 'lying'):  # it lies in the file turned, and the boxes are of what is shown, or of the file
        image = image.transpose(Image.Transpose.ROTATE_90) if kind == 'turned' else image
        image.getexif()[0x0112] = 6
    elif kind == 'I;16':
        image = Image.frombytes(kind, image.size, b''.join(bytes((0, x)) for x in image.convert('L').tobytes()))
    else:
        image = image.quantize() if kind == 'P' else image.convert(kind)
    write_sample('data/train/a', ['bright'], image, filename=filename, size='<width>160</width><height>120</height>')
    image, target = example.VOC(Path('data'), 'train')[0]
    x1, y1, x2, y2 = target['boxes'][0].round().int().tolist()
    assert (x1, y1, x2, y2) == (80, 53, 180, 187)
    assert image[:, y1 + 6:y2 - 6, x1 + 6:x2 - 6].min() > 0.95
    image[:, y1 - 6:y2 + 6, x1 - 6:x2 + 6] = 0.5
    assert 0.45 < image.min() <= image.max() < 0.55


@only_detect
def test_layout_of_pascal_voc(example, capsys):
    """A folder of PASCAL VOC has lists of its splits; a box is cut at the edge, and left out without area."""
    for name, box in (('a', (40, 20, 200, 70)), ('b', (5, 5, 5, 9))):
        write_sample(f'data/JPEGImages/{name}', ['bright'], box=box, filename=f'{name}.jpg')
        Path('data/Annotations').mkdir(exist_ok=True)  # beside the images, and not all of their names
        Path(f'data/JPEGImages/{name}.xml').rename(f'data/Annotations/of_{name}.xml')
    Path('data/ImageSets/Main').mkdir(parents=True)
    Path('data/ImageSets/Main/val.txt').write_text('of_a  1\nof_b\n\n')
    assert example.VOC(Path('data'), 'val').targets[0]['boxes'].tolist() == [[40, 20, 160, 70]]
    assert 'val: 1 boxes have no area and are left out, the first in data/Annotations/of_b' in capsys.readouterr().out


@only_detect
@pytest.mark.parametrize(('labels', 'parts', 'args', 'message'), [
    (['bright'], {}, ['--test', 'val'], "data has no split 'val': expected data/ImageSets/Main/val.txt, or a folder"),
    (['bright'], dict(size='<width>9</width><height>9</height>'), [], 'train/0.xml is of an image of 9 x 9 pixels, '),
    (['blue'], {}, ['--classes', 'bright', 'dark'], "has the class 'blue', expected one of bright, dark"),
    (['bright'], dict(box=(1, 2, 'x', 40)), [], '0.xml cannot be read as an annotation of PASCAL VOC: expected XML'),
    ([], {}, [], "The split 'train' of data has no boxes in 1 images"),
])
def test_bad_folder(labels, parts, args, message, example):
    """Data that cannot be trained on is an error before the training, in one line that names the file."""
    write_sample('data/train/0', labels, **parts)
    write_sample('data/test/0', ['bright'])
    with pytest.raises(SystemExit, match=f'^error: .*{message}'):
        example.run(*args)
    assert not Path('out').exists()


@pytest.mark.parametrize(('name', 'package', 'extra'), [
    ('detect', 'pycocotools', 'detection'), ('segment', 'segmentation_models_pytorch', 'segmentation')])
def test_examples_name_their_extra(name, package, extra, monkeypatch):
    """An example without its extra names it before anything is computed."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match=rf"error: {package} is not installed: run pip install '\.\[{extra}\]'"):
        runpy.run_path(str(ROOT / 'examples' / f'{name}.py'))
