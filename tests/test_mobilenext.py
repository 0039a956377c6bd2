"""What a user of timm can rely on. timm's own tests of the contract run beside these, see tools/timm_suite.py."""
import argparse
import copy
import pickle
import re
import shutil

import official
import pytest
import timm
import torch
import torch.nn as nn
from timm.data import create_transform, resolve_model_data_config
from timm.layers import DropPath, convert_sync_batchnorm, freeze_batch_norm_2d
from timm.layers.norm_act import FrozenBatchNormAct2d
from timm.optim import create_optimizer_v2
from timm.utils import freeze, reparameterize_model
from torch.autograd import forward_ad
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import timm_mobilenext
from timm_mobilenext import MobileNeXt, SandGlass
from timm_mobilenext.mobilenext import checkpoint_filter_fn

ARCHITECTURES = timm.list_models(module='mobilenext')
SMALL = 'mobilenext_035'
FAMILIES = [SMALL, 'mobilenext_100_id050', 'mobilenext_s', 'mobilenext_l', 'mobilenext_l_ghost']
# architecture -> the authors' network with the same parameters
OFFICIAL_NAME = {name: 'mnext' + name.removeprefix('mobilenext').split('_id')[0] for name in ARCHITECTURES}
# the identity tensor multiplier as the authors write it, a divisor
DIVISOR = {'mobilenext_100_id050': 2, 'mobilenext_100_id033': 3, 'mobilenext_100_id025': 4}


def count_madds(model: nn.Module, size: int = 224) -> int:
    """Multiply-adds of the convolutions and linear layers, counted by PyTorch."""
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device='meta'))
    return counter.get_total_flops() // 2


def sand_glasses(model: nn.Module) -> list[SandGlass]:
    return [m for m in model.modules() if isinstance(m, SandGlass)]


# -- the registry

def test_architectures():
    """Importing the package registers the eleven architectures, each also importable by its name."""
    assert sorted(ARCHITECTURES) == sorted([
        'mobilenext_035', 'mobilenext_050', 'mobilenext_075', 'mobilenext_100', 'mobilenext_140',
        'mobilenext_100_id050', 'mobilenext_100_id033', 'mobilenext_100_id025',
        'mobilenext_s', 'mobilenext_l', 'mobilenext_l_ghost',
    ])
    for name in ARCHITECTURES:
        entrypoint = getattr(timm_mobilenext, name)
        assert pickle.loads(pickle.dumps(entrypoint)) is entrypoint
        assert (entrypoint.__name__, bool(entrypoint.__doc__)) == (name, True)


def test_weights_are_registered():
    """The five architectures whose weights the authors published have a repository of safetensors on the Hub."""
    tags = timm.list_pretrained('mobilenext*')
    assert sorted(tags) == sorted(f'mobilenext_{name}.in1k' for name in ('100', '100_id050', 's', 'l', 'l_ghost'))
    for tag in tags:
        cfg = timm.get_pretrained_cfg(tag)
        assert (cfg.hf_hub_id, cfg.hf_hub_filename) == (f'timm-mobilenext/{tag}', 'model.safetensors')


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_evaluation_transform(name):
    """The data config of timm is the authors' evaluation transform: bicubic 256, centre 224, ImageNet mean and std."""
    config = resolve_model_data_config(timm.create_model(name, device='meta'))
    assert config == dict(
        input_size=(3, 224, 224), interpolation='bicubic', crop_pct=0.875, crop_mode='center',
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    resize, crop = create_transform(**config).transforms[:2]
    assert (resize.size, resize.interpolation.value, tuple(crop.size)) == (256, 'bicubic', (224, 224))


def test_cfg_metadata():
    """Every cfg names paper and origin, and the licence of the authors' weights exactly where there are any."""
    for name in ARCHITECTURES:
        cfg = timm.get_pretrained_cfg(name)
        assert (cfg.paper_ids, cfg.origin_url) == (
            'arXiv:2007.02269', 'https://github.com/zhoudaquan/rethinking_bottleneck_design')
        assert (cfg.tag, cfg.license) in [('in1k', 'bsd-3-clause-clear'), ('untrained', None)]


# -- the authors' network

@pytest.mark.parametrize('name', ARCHITECTURES)
def test_parameters_and_madds(name):
    """Parameters and multiply-adds at 224 px are those of the authors' network, to the unit."""
    model = timm.create_model(name, device='meta').eval()
    expected = official.OFFICIAL['models'][OFFICIAL_NAME[name]]
    assert sum(p.numel() for p in model.parameters()) == expected['params']
    assert count_madds(model) == expected['madds']


@pytest.mark.parametrize(('width_mult', 'params', 'madds'), [
    (0.1, 1_627_316, 28.085), (0.25, 1_764_336, 48.010), (1.1, 4_170_720, 392.428), (1.3, 5_424_192, 536.569)])
def test_other_widths(width_mult, params, madds):
    """Any width multiplier gives the authors' network of that width, as measured from their code."""
    model = timm.create_model('mobilenext_100', width_mult=width_mult, device='meta').eval()
    assert sum(p.numel() for p in model.parameters()) == params
    assert round(count_madds(model) / 1e6, 3) == madds


@pytest.mark.parametrize('case', official.GOLDEN['cases'])
def test_golden(case):
    """With the authors' weights the model answers as their code did: float64 within 1e-9, float32 within 2e-3."""
    theirs, divisor, dtype = case.split('/')
    name = theirs.replace('mnext', 'mobilenext')
    if (theirs, divisor) == ('mnext_100', 'div2'):
        name, kwargs = 'mobilenext_100_id050', {}
    else:
        kwargs = dict(identity_ratio=1 / int(divisor.removeprefix('div')))
    model = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=dict(state_dict=official.state_dict(theirs)), **kwargs)
    dtype = getattr(torch, dtype)
    with torch.no_grad():
        logits = model.eval().to(dtype)(official.images().to(dtype))
    assert official.golden_error(logits, case) < (1e-9 if dtype == torch.float64 else 2e-3)


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_identity_is_the_authors_slice(name):
    """Every shortcut adds exactly the first C // divisor input channels to the same output channels."""
    blocks = sand_glasses(timm.create_model(name))
    shortcuts = [b for b in blocks if b.identity_chs]
    assert len(shortcuts) == {'mobilenext_l': 19, 'mobilenext_l_ghost': 19}.get(name, 12)
    for block in shortcuts[::4]:
        assert block.identity_chs == block.out_chs // DIVISOR.get(name, 1)
        x = torch.randn(1, block.out_chs, 7, 7)
        out = block.eval()(x)
        chs, block.identity_chs = block.identity_chs, 0
        branch = block(x)
        assert torch.equal(out[:, :chs], branch[:, :chs] + x[:, :chs])
        assert torch.equal(out[:, chs:], branch[:, chs:])


@pytest.mark.parametrize('divisor', [1, 2, 3, 4, 5, 6, 7, 12])
def test_identity_channels_are_exact(divisor):
    """The share 1 / divisor of any number of channels is C // divisor, free of float rounding."""
    for chs in range(8, 1793, 8):
        assert SandGlass(chs, chs, identity_ratio=1 / divisor, device='meta').identity_chs == chs // divisor
    assert SandGlass(96, 96, identity_ratio=0, device='meta').identity_chs == 0


def test_shortcuts():
    """The shortcut exists in the repeats of rows 2 to 6 and nowhere else, whatever the output stride."""
    for output_stride in (8, 16, 32):
        model = timm.create_model('mobilenext_100', output_stride=output_stride, device='meta')
        for row, blocks in enumerate(model.blocks):
            for repeat, block in enumerate(blocks):
                assert bool(block.identity_chs) == (2 <= row <= 6 and repeat > 0)


def test_drop_path_schedule():
    """Block i of n is dropped with probability drop_path_rate * i / n, where there is a shortcut."""
    blocks = sand_glasses(timm.create_model('mobilenext_s', drop_path_rate=0.2, device='meta'))
    for i, block in enumerate(blocks):
        if block.identity_chs:
            assert block.drop_path.drop_prob == pytest.approx(0.2 * i / 20)
        else:
            assert not isinstance(block.drop_path, DropPath)


def test_drop_path_keeps_channels_without_shortcut():
    """A dropped block is the identity on the channels of the shortcut and unchanged on the others."""
    block = SandGlass(8, 8, identity_ratio=0.5, drop_path_rate=0.999)
    x = torch.randn(64, 8, 7, 7)
    out = block.train()(x)
    kept = copy.deepcopy(block)
    kept.drop_path = nn.Identity()
    expected = kept(x)
    dropped = [i for i in range(64) if torch.equal(out[i, :4], x[i, :4])]
    assert len(dropped) > 50
    torch.testing.assert_close(out[:, 4:], expected[:, 4:])


def test_init():
    """Convolutions start as the authors', the depthwise fan-out not divided by groups; no dropout unless asked for."""
    torch.manual_seed(0)
    model = timm.create_model('mobilenext_100')
    block = model.blocks[6][1]
    assert block.dw_start.conv.weight.detach().std() == pytest.approx((2 / (9 * 960)) ** 0.5, rel=0.05)
    assert block.pw_expand.conv.weight.detach().std() == pytest.approx((2 / 960) ** 0.5, rel=0.05)
    assert model.classifier.weight.detach().std() == pytest.approx(0.01, rel=0.05)
    assert not model.classifier.bias.any()
    assert model.drop_rate == 0
    efficient = timm.create_model('mobilenext_s').blocks[6][1]  # PyTorch's: uniform, standard deviation sqrt(1 / 3 / 9)
    assert efficient.dw_start.conv.weight.detach().std() == pytest.approx((1 / 27) ** 0.5, rel=0.05)


@pytest.mark.parametrize(('name', 'eps', 'momentum'), [(SMALL, 1e-5, 0.1), ('mobilenext_s', 1e-3, 0.01)])
def test_batch_norm_arguments(name, eps, momentum):
    """Batch norm has the family's eps and momentum, and train.py's --bn-eps and --bn-momentum override them."""
    for kwargs, expected in (({}, (eps, momentum)), (dict(bn_eps=0.5, bn_momentum=0.25), (0.5, 0.25))):
        norms = [m for m in timm.create_model(name, **kwargs).modules() if isinstance(m, nn.BatchNorm2d)]
        assert {(m.eps, m.momentum) for m in norms} == {expected}


# -- checkpoints

def test_training_checkpoint_file(tmp_path):
    """The authors' kind of file loads by `file=`: old container, optimizer, Namespace, EMA weights first."""
    weights = official.state_dict('mnext_s')
    path = tmp_path / 'model_best.pth.tar'
    torch.save(
        dict(epoch=497, arch='efficienti2rnet_b0', state_dict={k: v * 0 for k, v in weights.items()},
             state_dict_ema={f'module.{k}': v for k, v in weights.items()}, optimizer={}, version=2, metric=76.056,
             args=argparse.Namespace(model='efficienti2rnet_b0')),
        path, _use_new_zipfile_serialization=False)
    model = timm.create_model('mobilenext_s', pretrained=True, pretrained_cfg_overlay=dict(file=str(path))).eval()
    with torch.no_grad():
        assert official.golden_error(model(official.images()), 'mnext_s/div1/float32') < 2e-3


@pytest.mark.parametrize('name', FAMILIES)
def test_filter_maps_every_key(name):
    """Every official key but the five unused ones has its place, and a mapped dict passes the filter untouched."""
    model = timm.create_model(name, device='meta')
    theirs = official.state_dict(OFFICIAL_NAME[name])
    mapped = checkpoint_filter_fn({'state_dict': {f'module.{k}': v for k, v in theirs.items()}}, model)
    assert mapped.keys() == model.state_dict().keys()
    assert len(theirs) - len(mapped) == (0 if name in (SMALL, 'mobilenext_100_id050') else 5)
    assert checkpoint_filter_fn(mapped, model) is mapped


def test_filter_takes_headless_and_adapted():
    """A checkpoint fits whatever the model's classes and input channels, and without a classifier."""
    theirs = official.state_dict('mnext_035')
    overlay = dict(state_dict=theirs)
    model = timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, in_chans=1)
    assert torch.equal(model.blocks[7][0].dw_end.conv.weight, theirs['features.20.conv.8.weight'])
    torch.testing.assert_close(model.conv_stem.weight, theirs['features.0.0.weight'].sum(1, keepdim=True))
    headless = {k: v for k, v in timm.create_model(SMALL).state_dict().items() if not k.startswith('classifier')}
    assert checkpoint_filter_fn(headless, model) is headless
    features = timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True)
    assert torch.equal(features.conv_stem.weight, theirs['features.0.0.weight'])


@pytest.mark.parametrize('kwargs', [{}, dict(num_classes=7)])
def test_foreign_checkpoint(kwargs):
    """A checkpoint of another network is refused by its first keys, also where timm loads without strictness."""
    foreign = timm.create_model('resnet18').state_dict()
    overlay = dict(state_dict=foreign)
    with pytest.raises(RuntimeError, match=r'it has conv1\.weight, layer1.* and \d+ more.*it lacks conv_stem\.weight'):
        timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def test_other_layouts_of_the_same_network():
    """The layers of I2RConvBlock, which is MBConvBlockV1 under other names, are taken for what they are."""
    theirs = official.state_dict('mnext_s')
    full, transition = ['0', '1', '3', '4', '5', '6', '8', '9'], ['-', '-', '0', '1', '2', '3', '5', '6']
    names = ['_project_conv', '_bn0', '_linear1', '_bn1', '_linear2', '_bn2', '_expand_conv', '_bn3']
    renamed = {}
    for key, value in theirs.items():
        match = re.fullmatch(r'(_blocks\.\d+\.)features\.(\d+)(\..*)', key)
        if match:
            is_full = f'{match[1]}features.9.weight' in theirs
            key = match[1] + dict(zip(full if is_full else transition, names, strict=True))[match[2]] + match[3]
        renamed[key] = value
    assert sum('_linear1' in key for key in renamed) == 20
    model = timm.create_model('mobilenext_s', device='meta')
    expected, mapped = checkpoint_filter_fn(theirs, model), checkpoint_filter_fn(renamed, model)
    assert mapped.keys() == expected.keys()
    assert all(mapped[key] is expected[key] for key in expected)


def test_layout_of_another_padding():
    """The keys of Efficientmnext, which pads and normalizes differently, load into a model that does so alone."""
    names = {'dw_start.conv': 'dwise_conv1', 'dw_start.bn': 'bn1', 'pw_reduce.conv': 'project_layer',
             'pw_reduce.bn': 'bn2', 'pw_expand.conv': 'expand_layer', 'pw_expand.bn': 'bn3',
             'dw_end.conv': 'dwise_conv2', 'dw_end.bn': 'bn4', 'se.fc1': 'se.conv_reduce', 'se.fc2': 'se.conv_expand'}
    native = timm.create_model('mobilenext_s').state_dict()
    theirs = {}
    for key, value in native.items():
        match = re.fullmatch(r'(blocks\.\d+\.\d+)\.(\w+\.\w+)(\..*)', key)
        theirs[f'{match[1]}.{names[match[2]]}{match[3]}' if match else key] = value
    with pytest.raises(RuntimeError, match=r"class Efficientmnext.* pad_type='', bn_eps=1e-5 and bn_momentum=0\.1"):
        checkpoint_filter_fn(theirs, timm.create_model('mobilenext_s', device='meta'))
    model = timm.create_model('mobilenext_s', device='meta', pad_type='', bn_eps=1e-5, bn_momentum=0.1)
    mapped = checkpoint_filter_fn(theirs, model)
    assert mapped.keys() == native.keys()
    assert all(mapped[key] is native[key] for key in native)


def test_unknown_official_keys():
    """A key that the authors' layout has no place for is named as it stands in the file."""
    theirs = official.state_dict('mnext_035')
    theirs |= {f'features.{place}.weight': torch.zeros(1) for place in ('20.conv.12', '99.conv.0', '0.2')}
    with pytest.raises(RuntimeError, match=r'it has features\.20\.conv\.12\.weight, features\.99.*, features\.0\.2'):
        checkpoint_filter_fn(theirs, timm.create_model(SMALL, device='meta'))


@pytest.mark.parametrize('name', [SMALL, 'mobilenext_050'])
def test_checkpoint_of_another_width(name):
    """A checkpoint of another width is refused by the first shape that differs."""
    with pytest.raises(RuntimeError, match=r'conv_stem\.weight has shape \(32, 3, 3, 3\), expected \(16, 3, 3, 3\)'):
        timm.create_model(
            name, num_classes=7, pretrained=True,
            pretrained_cfg_overlay=dict(state_dict=official.state_dict('mnext_100')))


def test_architecture_survives_export(tmp_path, calibrated):
    """A model of arguments of its own comes back from `save_for_hf` with equal answers."""
    model = calibrated(SMALL, width_mult=0.5, identity_ratio=0.5, num_classes=3, act_layer='hard_swish').float()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True, model_args=dict(
        width_mult=0.5, identity_ratio=0.5, act_layer='hard_swish'))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()(x), model(x))


# -- SandGlass

def test_sand_glass_shapes():
    """The block maps (B, in_chs, H, W) to (B, out_chs, ceil(H / stride), ceil(W / stride)) in each of its forms."""
    x = torch.randn(2, 24, 9, 14)
    for kwargs in (
            {}, dict(dw_start=False), dict(dw_start=False, dw_end=False), dict(ghost=True), dict(se_chs=4),
            dict(pw_groups=2), dict(pad_type='same', dw_kernel_size=5), dict(dilation=2), dict(aa_layer='blurpc'),
            dict(act_layer='silu', norm_layer='groupnorm1')):
        for stride in (1, 2) if kwargs.get('dw_end', True) else (1,):
            out = SandGlass(24, 32, stride=stride, **kwargs)(x)
            assert out.shape == (2, 32, -(-9 // stride), -(-14 // stride))


def test_sand_glass_bottleneck():
    """The bottleneck is the input over the reduction ratio, at least a sixth of the output, to a multiple of 16."""
    for in_chs, out_chs, mid_chs in ((96, 96, 16), (96, 192, 32), (960, 1280, 208), (64, 64, 16), (336, 336, 56)):
        assert SandGlass(in_chs, out_chs).pw_reduce.conv.out_channels == mid_chs
    assert SandGlass(1280, 1280, max_expand_ratio=0).pw_reduce.conv.out_channels == 214


def test_sand_glass_in_a_foreign_network():
    """It takes the place of the inverted residuals of a timm MobileNetV2, which then trains."""
    torch.manual_seed(0)
    model = timm.create_model('mobilenetv2_050', num_classes=2)
    replaced = 0
    for stage in model.blocks:
        for i, block in enumerate(stage):
            if type(block).__name__ == 'InvertedResidual':
                in_chs, out_chs = block.conv_pw.in_channels, block.conv_pwl.out_channels
                stage[i] = SandGlass(in_chs, out_chs, stride=block.conv_dw.stride[0])
                replaced += 1
    assert replaced == 16
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = torch.randn(8, 3, 64, 64), torch.arange(8) % 2
    losses = []
    for _ in range(10):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in model.parameters())
    assert losses[-1] < losses[0] / 2


# -- timm's contract, beyond timm's tests

@pytest.mark.parametrize('name', ARCHITECTURES)
def test_feature_reductions(name):
    """features_only gives the outputs before each stride: reductions 2, 4, 8, 16, 32."""
    model = timm.create_model(name, features_only=True)
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]
    with torch.no_grad():
        shapes = [tuple(f.shape[1:]) for f in model(torch.randn(2, 3, 64, 96))]
    assert shapes == [
        (chs, 64 // r, 96 // r) for chs, r in zip(model.feature_info.channels(), (2, 4, 8, 16, 32), strict=True)]


def test_width_with_a_striding_row_that_keeps_its_channels():
    """Where the authors' code ignores a stride (row 2 at width 0.125) the reductions still are 2, 4, 8, 16, 32."""
    model = timm.create_model('mobilenext_100', width_mult=0.125, features_only=True)
    assert model.feature_info.channels()[1:3] == [24, 24]
    with torch.no_grad():
        assert [64 // f.shape[-1] for f in model(torch.randn(2, 3, 64, 64))] == model.feature_info.reduction()
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]


@pytest.mark.parametrize('feature_cls', ['list', 'dict', 'hook', 'getter', 'fx'])
@pytest.mark.parametrize('name', [SMALL, 'mobilenext_s'])
def test_feature_classes(name, feature_cls, calibrated):
    """Every feature wrapper of timm returns the intermediates of the model itself."""
    model = calibrated(name)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    wrapper = timm.create_model(
        name, features_only=True, feature_cls=feature_cls, out_indices=(1, 3, 4), dtype=torch.float64).eval()
    state = {k.replace('.', '_'): v for k, v in model.state_dict().items()}
    keys = {k: re.sub(r'^(graph_module|model)\.', '', k).replace('.', '_') for k in wrapper.state_dict()}
    wrapper.load_state_dict({k: state[key] for k, key in keys.items()})
    with torch.no_grad():
        out = wrapper(x)
        expected = model.forward_intermediates(x, indices=[1, 3, 4], intermediates_only=True)
    for a, b in zip(out.values() if isinstance(out, dict) else out, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('output_stride', [8, 16])
@pytest.mark.parametrize('name', [SMALL, 'mobilenext_100_id050'])
def test_output_stride(name, output_stride, calibrated):
    """Below 32 strides become dilation: the dilated features contain the strided ones, on their grid."""
    model = calibrated(name)
    dilated = timm.create_model(name, output_stride=output_stride, dtype=torch.float64).eval()
    dilated.load_state_dict(model.state_dict())
    step = 32 // output_stride
    x = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    with torch.no_grad():
        features = dilated.forward_features(x)
        assert features.shape[-2:] == (96 // output_stride, 64 // output_stride)
        torch.testing.assert_close(features[..., ::step, ::step], model.forward_features(x))
    info = timm.create_model(name, output_stride=output_stride, features_only=True).feature_info
    assert info.reduction() == [min(r, output_stride) for r in (2, 4, 8, 16, 32)]


@pytest.mark.parametrize('name', FAMILIES)
def test_reparameterize(name, calibrated):
    """The reparameterize_model of timm folds all batch norms away, idempotently and with equal answers."""
    model = calibrated(name).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    fused = reparameterize_model(model)
    assert not [m for m in fused.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert fused.conv_stem.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
        torch.testing.assert_close(reparameterize_model(fused)(x), fused(x), rtol=0, atol=0)
        torch.testing.assert_close(torch.jit.script(fused)(x), fused(x))


@pytest.mark.parametrize('change', ['stem', 'sync', 'freeze', 'groupnorm', 'pickle', 'features'])
def test_reparameterize_after_changes(change, calibrated):
    """Folding keeps the answers of a model whose layers were replaced, copied or wrapped before."""
    model = calibrated(SMALL)
    if change == 'stem':
        model.conv_stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False, dtype=torch.float64)
    elif change == 'sync':
        model = convert_sync_batchnorm(model).eval()
    elif change == 'freeze':
        freeze(model)
        assert any(isinstance(m, FrozenBatchNormAct2d) for m in model.modules())
    elif change == 'groupnorm':
        model = timm.create_model(SMALL, norm_layer='groupnorm1', dtype=torch.float64).eval()
    elif change == 'pickle':
        model = pickle.loads(pickle.dumps(model))
    elif change == 'features':
        model = calibrated(SMALL, features_only=True)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected, answer = model(x), reparameterize_model(model)(x)
    torch.testing.assert_close(answer, expected)


@pytest.mark.parametrize('name', FAMILIES)
def test_ways_to_run(name, calibrated):
    """Scripted, traced, exported, compiled, copied, pickled and channels_last models answer as the model does."""
    model = calibrated(name, depth_mult=0.5)  # blocks of every kind, half as many to compile
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        ways = dict(
            script=torch.jit.script(model),
            trace=torch.jit.trace(model, x),
            export=torch.export.export(model, (x,)).module(),
            compile=torch.compile(model, backend='aot_eager', fullgraph=True),  # fullgraph: raises at a graph break
            copy=copy.deepcopy(model),
            pickle=pickle.loads(pickle.dumps(model)),
            channels_last=copy.deepcopy(model).to(memory_format=torch.channels_last),
        )
        for way, run in ways.items():
            torch.testing.assert_close(run(x), expected, msg=lambda m, way=way: f'{way}: {m}')
        with torch.autocast('cpu', torch.bfloat16):
            low = model.float()(x.float())
    assert low.dtype == torch.bfloat16
    assert torch.cosine_similarity(low.double().flatten(), expected.flatten(), dim=0) > 0.9


@pytest.mark.parametrize('name', FAMILIES)
def test_compiles_for_training(name):
    """A training step compiles to one graph with the gradients of the eager model, blocks of every kind in it."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, depth_mult=0.5, dtype=torch.float64)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    grads = []
    for run in (model, torch.compile(model, backend='aot_eager', fullgraph=True)):
        model.zero_grad()
        run(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('indices', [None, 2, [0, -1], [1]])
def test_forward_intermediates(indices, calibrated):
    """All arguments of forward_intermediates agree with the features that `feature_info` describes."""
    model = calibrated(SMALL)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    taken = range(5) if indices is None else range(3, 5) if indices == 2 else [i % 5 for i in indices]
    with torch.no_grad():
        final, features = model.forward_intermediates(x, indices=indices)
        early = model.forward_intermediates(x, indices=indices, stop_early=True, intermediates_only=True)
        blocks = model.forward_intermediates(x, extra_blocks=True, intermediates_only=True)
        torch.testing.assert_close(final, model.forward_features(x))
    assert [f.shape[1] for f in features] == [model.feature_info[i]['num_chs'] for i in taken]
    torch.testing.assert_close(features, early)
    torch.testing.assert_close([blocks[model.stage_ends[i]] for i in taken], features)
    assert len(blocks) == 9
    with pytest.raises(AssertionError, match='NCHW'):
        model.forward_intermediates(x, output_fmt='NLC')


def test_layer_decay():
    """Layer decay gives the stem the smallest and the classifier the full learning rate, 22 groups by block."""
    optimizer = create_optimizer_v2(timm.create_model('mobilenext_100'), 'sgd', lr=1., layer_decay=0.5)
    scales = sorted({group['lr_scale'] for group in optimizer.param_groups})
    assert scales == [0.5 ** i for i in range(21, -1, -1)]


@pytest.mark.parametrize('name', FAMILIES)
def test_grad_checkpointing(name):
    """Gradient checkpointing leaves gradients and running statistics as they are, of `forward_intermediates` too."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    checkpointed = copy.deepcopy(model)
    checkpointed.set_grad_checkpointing()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(step(checkpointed, x), step(model, x), rtol=0, atol=0)
    torch.testing.assert_close(
        *(step(m, x, run=lambda x, m=m: m.forward_intermediates(x)[0]) for m in (checkpointed, model)), rtol=0, atol=0)


def test_arguments_of_train_py():
    """The arguments that timm's train.py passes build a model that trains."""
    model = timm.create_model(
        SMALL, pretrained=False, in_chans=1, num_classes=10, drop_rate=0.2, drop_path_rate=0.1, global_pool='catavgmax',
        bn_momentum=0.3, bn_eps=1e-4, scriptable=False, checkpoint_path='')
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 10)
    assert model.head_hidden_size == 2 * model.num_features == 2560


# -- the forms for speed and memory

def kept_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """Bytes that a forward pass allocates and does not free: what it keeps for the backward pass, and its output."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        out = model(x)
    assert out.requires_grad
    return sum(event.self_cpu_memory_usage for event in prof.key_averages())


def step(model: nn.Module, x: torch.Tensor, run=None) -> dict[str, torch.Tensor]:
    """Take a training step without an optimizer; return the output, gradients and running statistics."""
    model.zero_grad()
    out = (run or model)(x)
    out.square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return dict(out=out.detach(), **grads, **{name: b.clone() for name, b in model.named_buffers()})


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('identity_ratio', [1, 0.5])
def test_shortcut_in_every_mode(identity_ratio, train):
    """The shortcut has equal answers and gradients in eager mode, compiled, exported, scripted, traced, under fx."""
    torch.manual_seed(0)
    block = SandGlass(16, 16, identity_ratio=identity_ratio, dtype=torch.float64).train(train)
    x = torch.randn(2, 16, 6, 6, dtype=torch.float64, requires_grad=True)
    branch = copy.deepcopy(block)
    branch.identity_chs = 0

    def expected(x):
        chs = int(16 * identity_ratio)
        out = branch(x)
        return torch.cat([out[:, :chs] + x[:, :chs], out[:, chs:]], dim=1)

    def answers(run):
        for m in (block, branch):
            m.zero_grad()
        out = run(x)
        grad_x, = torch.autograd.grad(out.pow(3).sum(), x)
        with torch.no_grad():
            return out.detach(), grad_x, run(x)

    ways = dict(
        eager=block,
        compile=torch.compile(block, backend='aot_eager', fullgraph=True),
        script=torch.jit.script(block),
        trace=torch.jit.trace(block, x.detach()),
        fx=torch.fx.symbolic_trace(block),
        channels_last=lambda x: block(x.contiguous(memory_format=torch.channels_last)),
        recompute=copy.deepcopy(block),
    )
    ways['recompute'].recompute_act = True
    if not train:  # what PyTorch 2.5 exports in training mode has no backward pass
        ways['export'] = torch.export.export(block, (x.detach(),)).module()
    for way, run in ways.items():
        torch.testing.assert_close(answers(run), answers(expected), msg=lambda m, way=way: f'{way}: {m}')
    if not train:  # batch norm in training mode writes to its statistics, which torch.func refuses
        params, buffers = dict(block.named_parameters()), dict(block.named_buffers())

        def loss(x):
            return torch.func.functional_call(block, (params, buffers), (x[None],)).pow(3).sum()

        torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(x.detach()), answers(expected)[1])
        with forward_ad.dual_level():
            dual = block(forward_ad.make_dual(x.detach(), torch.ones_like(x)))
            tangent = forward_ad.unpack_dual(dual).tangent
        torch.testing.assert_close(torch.func.jvp(expected, (x.detach(),), (torch.ones_like(x),))[1], tangent)
        assert torch.autograd.gradgradcheck(block, (x,), fast_mode=True)


@pytest.mark.parametrize('identity_ratio', [1, 0.5])
def test_form_of_the_shortcut(identity_ratio):
    """In eager mode the backward graph has no copy of a slice, and where operators are recorded nothing is written."""
    block = SandGlass(16, 16, identity_ratio=identity_ratio)
    x = torch.randn(2, 16, 6, 6, requires_grad=True)
    out = block(x)  # which the graph lives as long as
    seen, nodes = set(), [out.grad_fn]
    while nodes:
        node = nodes.pop()
        seen.add(type(node).__name__)
        nodes += [following for following, _ in node.next_functions if following]
    assert not {'CopySlices', 'SliceBackward0', 'CatBackward0'} & seen
    assert ('_PartialIdentityBackward' in seen) == (identity_ratio < 1)
    exported = torch.export.export(block.eval(), (x.detach(),))
    calls = {str(node.target) for node in exported.graph.nodes if node.op == 'call_function'}
    assert 'aten.add.Tensor' in calls
    assert not [call for call in calls if 'add_' in call or 'scatter' in call or 'copy' in call]
    assert ('aten.cat.default' in calls) == (identity_ratio < 1)


def test_block_without_last_depthwise_conv():
    """Where the shortcut meets an activation, whose output is kept for backward, that output is not written to."""
    block = SandGlass(16, 16, dw_end=False, dtype=torch.float64)
    x = torch.randn(2, 16, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,), fast_mode=True)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('name', [SMALL, 'mobilenext_100_id050'])
def test_relu6(name, memory_format):
    """The default ReLU6 keeps at most 0.76 of the memory of PyTorch's, the authors', with equal bits throughout."""
    torch.manual_seed(0)
    default = timm.create_model(name, num_classes=3).to(memory_format=memory_format)
    plain = timm.create_model(name, num_classes=3, act_layer=nn.ReLU6).to(memory_format=memory_format)
    plain.load_state_dict(default.state_dict())
    x = torch.randn(4, 3, 96, 96).contiguous(memory_format=memory_format)
    torch.testing.assert_close(step(default, x), step(plain, x), rtol=0, atol=0)
    assert kept_bytes(default, x) < 0.76 * kept_bytes(plain, x)


@pytest.mark.parametrize('flag', ['scriptable', 'exportable'])
def test_plain_relu6(flag):
    """Models created to be scripted or exported have PyTorch's ReLU6, as timm has it of its own activations."""
    model = timm.create_model(SMALL, **{flag: True})
    assert {type(m) for m in model.modules() if isinstance(m, nn.ReLU6)} == {nn.ReLU6}


@pytest.mark.parametrize('change', ['', 'channels_last', 'frozen', 'half frozen', 'autocast', 'folded', 'checkpointed'])
@pytest.mark.parametrize('name', FAMILIES)
def test_recompute_act(name, change):
    """With `recompute_act` gradients agree to 1e-6 and running statistics to the bit, whatever else is changed."""
    steps = []
    for recompute_act in (False, True):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=3, depth_mult=0.5, recompute_act=recompute_act)
        x = torch.randn(4, 3, 64, 64)
        if change == 'channels_last':
            model, x = (v.to(memory_format=torch.channels_last) for v in (model, x))
        elif change == 'frozen':
            model = freeze_batch_norm_2d(model)
        elif change == 'half frozen':
            freeze(model, ['conv_stem', 'bn1', 'blocks.0', 'blocks.1', 'blocks.2'])
        elif change == 'folded':
            model = reparameterize_model(model)
        elif change == 'checkpointed':
            model.set_grad_checkpointing(recompute_act)
        with torch.autocast('cpu', torch.bfloat16, enabled=change == 'autocast'):
            steps.append(step(model, x))
    expected, got = steps
    scale = max(value.abs().max() for key, value in expected.items() if 'running' not in key)
    assert expected.keys() == got.keys()
    for key in expected:
        if 'running' in key or 'tracked' in key:
            assert torch.equal(got[key], expected[key]), key
        else:
            assert (got[key] - expected[key]).abs().max() <= 1e-6 * scale, key


@pytest.mark.parametrize('name', [SMALL, 'mobilenext_100_id050'])
def test_memory_of_recompute_act(name):
    """`recompute_act` keeps at most 0.55 of the memory that PyTorch's ReLU6 does, a checkpoint per block a fifth."""
    x = torch.randn(4, 3, 96, 96)
    plain = kept_bytes(timm.create_model(name, act_layer=nn.ReLU6), x)
    assert kept_bytes(timm.create_model(name, recompute_act=True), x) < 0.55 * plain
    checkpointed = timm.create_model(name)
    checkpointed.set_grad_checkpointing()
    assert kept_bytes(checkpointed, x) < 0.2 * plain


@pytest.mark.parametrize('memory', ['default', 'recompute_act', 'checkpointed'])
def test_distributed_data_parallel(memory, tmp_path):
    """DistributedDataParallel gives the gradients and statistics of the model alone, however memory is saved."""
    torch.manual_seed(0)
    model = timm.create_model('mobilenext_100_id050', num_classes=3, recompute_act=memory == 'recompute_act')
    model.set_grad_checkpointing(memory == 'checkpointed')
    alone = copy.deepcopy(model)
    x = torch.randn(2, 3, 64, 64)
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        torch.testing.assert_close(
            step(model, x, run=nn.parallel.DistributedDataParallel(model)), step(alone, x), rtol=0, atol=0)
    finally:
        torch.distributed.destroy_process_group()


class Layouts(TorchDispatchMode):
    """Notes the operators that return new features in another layout than channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.others = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for out in results if isinstance(results, (tuple, list)) else [results]:
            if not isinstance(out, torch.Tensor) or out.ndim != 4 or out.shape[2] == 1:
                continue
            memory = out.untyped_storage().data_ptr()
            is_view = any(isinstance(a, torch.Tensor) and a.untyped_storage().data_ptr() == memory for a in args)
            if not is_view and not out.is_contiguous(memory_format=torch.channels_last):
                self.others.add(func.__name__.split('.')[0])
        return results


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_channels_last(name):
    """In channels_last no layer returns another layout; in the backward pass of ReLU6 networks the pooling alone."""
    model = timm.create_model(name).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    for inference in (model, reparameterize_model(model)):
        with torch.no_grad(), Layouts() as layouts:
            inference.eval()(x)
        assert layouts.others == set()
    with Layouts() as layouts:
        out = model.train()(x)
    assert layouts.others == set()
    with Layouts() as layouts:
        out.sum().backward()
    if not name.startswith(('mobilenext_s', 'mobilenext_l')):  # theirs pool in each squeeze-excite
        assert layouts.others == {'div'}  # PyTorch's mean: a 1280 x 7 x 7 gradient, in timm's networks too
    weights = [p for p in model.parameters() if p.ndim == 4]
    assert all(w.grad.is_contiguous(memory_format=torch.channels_last) for w in weights)


@pytest.mark.parametrize(('name', 'mode'), [
    ('mobilenext_100_id050', 'eval'), (SMALL, 'train'), (SMALL, 'recompute_act'), (SMALL, 'checkpointed')])
def test_compiles_for_all_sizes(name, mode):
    """torch.compile makes one graph for all batches of square images, and at most one more for all others."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = timm.create_model(name, num_classes=3, depth_mult=0.5, recompute_act=mode == 'recompute_act')
    model.set_grad_checkpointing(mode == 'checkpointed')
    compiled = torch.compile(model.train(mode != 'eval'), backend=backend, fullgraph=True, dynamic=True)
    for shape in ((2, 3, 64, 64), (3, 3, 96, 96), (2, 3, 96, 64), (4, 3, 72, 120), (5, 3, 120, 72)):
        with torch.set_grad_enabled(mode != 'eval'):
            compiled(torch.randn(shape))
    assert len(graphs) <= 2


@pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile compiles with g++ on a CPU, which is not installed')
def test_freezing(calibrated):
    """torch.compile with freezing, in channels_last and with a partial shortcut, answers as the model does."""
    model = calibrated('mobilenext_100_id050', width_mult=0.35, depth_mult=0.5).float()
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-3, atol=1e-4)


def test_meta_device():
    """A model on the meta device gets the values of its parameters from `init_weights`, once it has memory."""
    model = timm.create_model('mobilenext_100', device='meta').to_empty(device='cpu')
    torch.manual_seed(0)
    model.init_weights()
    assert model.blocks[6][1].pw_expand.conv.weight.detach().std() == pytest.approx((2 / 960) ** 0.5, rel=0.05)



# -- bad input

@pytest.mark.parametrize(('kwargs', 'message'), [
    (dict(width_mult=0), 'width_mult=0 leaves 0 of 32 channels: expected a positive number'),
    (dict(width_mult=0.01), r'width_mult=0\.01 leaves 0\.32 of 32 channels'),
    (dict(width_mult=float('nan')), 'width_mult=nan'),
    (dict(depth_mult=0), 'depth_mult=0 leaves no blocks: expected a positive number'),
    (dict(identity_ratio=1.5), r'identity_ratio=1\.5 is not a share of the channels: expected a number from 0'),
    (dict(identity_ratio=-0.1), r'identity_ratio=-0\.1'),
    (dict(identity_ratio=2, depth_mult=0.1), 'identity_ratio=2'),  # no block left that has a shortcut
    (dict(output_stride=4), 'output_stride=4 is not supported: expected 8, 16 or 32'),
    (dict(weight_init='jax'), "weight_init='jax' is not supported: expected 'fan_out', 'torch' or 'skip'"),
])
def test_bad_arguments(kwargs, message):
    """A bad argument is named with its value, what was expected and the remedy."""
    with pytest.raises(ValueError, match=message):
        timm.create_model('mobilenext_100', **kwargs)


def test_bad_block():
    """A block says so if it cannot stride or has no channels left to compute."""
    with pytest.raises(ValueError, match='stride=2 needs the last depthwise conv: set dw_end=True'):
        SandGlass(8, 16, stride=2, dw_end=False)
    with pytest.raises(ValueError, match=r'ghost=True lets 32 of in_chs=64 channels pass.*out_chs=16, or ghost=False'):
        SandGlass(64, 16, ghost=True)


def test_class_is_public():
    """The classes can be used without timm's factory."""
    assert MobileNeXt(num_classes=5, width_mult=0.35)(torch.randn(2, 3, 32, 32)).shape == (2, 5)
