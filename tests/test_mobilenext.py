"""What a user of timm can rely on. timm's own tests of the contract run beside these, see tools/timm_suite.py."""
import copy
import pickle
import re
from functools import partial

import official
import pytest
import timm
import torch
import torch.nn as nn
from networks import ARCHITECTURES, FAMILIES, OFFICIAL_NAME, SHORT, SMALL
from timm.data import create_transform, resolve_model_data_config
from timm.layers import DropPath

import timm_mobilenext
from timm_mobilenext import MobileNeXt, SandGlass
from timm_mobilenext.doctor import count
from timm_mobilenext.weights.authors import find_source

def sand_glasses(model: nn.Module) -> list[SandGlass]:
    return [m for m in model.modules() if isinstance(m, SandGlass)]


# -- the registry

def test_architectures():
    """The eleven architectures are registered, and each can be imported and pickled by its name."""
    assert sorted(ARCHITECTURES) == [
        'mobilenext_035', 'mobilenext_050', 'mobilenext_075', 'mobilenext_100', 'mobilenext_100_id025',
        'mobilenext_100_id033', 'mobilenext_100_id050', 'mobilenext_140', 'mobilenext_l', 'mobilenext_l_ghost',
        'mobilenext_s']
    for name in ARCHITECTURES:
        entrypoint = getattr(timm_mobilenext, name)
        assert pickle.loads(pickle.dumps(entrypoint)) is entrypoint
        assert (entrypoint.__name__, bool(entrypoint.__doc__)) == (name, True)


def test_cfgs():
    """The weights have an address, and a repository if it is pinned; every cfg names paper, origin and the licence."""
    tags = timm.list_pretrained('mobilenext*')
    names = '100.in1k', '100.paddle_in1k', '100_id050.in1k', 's.in1k', 'l.in1k', 'l_ghost.in1k'
    assert sorted(tags) == sorted(f'mobilenext_{name}' for name in names)
    for tag in tags:
        cfg = timm.get_pretrained_cfg(tag)
        assert (cfg.url, cfg.hf_hub_filename) == (find_source(tag).url, 'model.safetensors')
        assert re.fullmatch(f'(timm-mobilenext/{tag}@[0-9a-f]{{40}})?', cfg.hf_hub_id or '')
    for name in ARCHITECTURES:
        cfg = timm.get_pretrained_cfg(name)
        assert (cfg.paper_ids, cfg.origin_url) == (
            'arXiv:2007.02269', 'https://github.com/zhoudaquan/rethinking_bottleneck_design')
        assert (cfg.tag, cfg.license) in [('in1k', 'bsd-3-clause-clear'), ('untrained', None)]


def test_evaluation_transform():
    """The data config of timm is the authors' evaluation transform: bicubic 256, centre 224, ImageNet mean and std."""
    for name in ARCHITECTURES:
        config = resolve_model_data_config(timm.create_model(name, device='meta'))
        assert config == dict(
            input_size=(3, 224, 224), interpolation='bicubic', crop_pct=0.875, crop_mode='center',
            mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        assert (timm.get_pretrained_cfg(name).pool_size, timm.get_pretrained_cfg(name).num_classes) == ((7, 7), 1000)
    resize, crop = create_transform(**config).transforms[:2]
    assert (resize.size, resize.interpolation.value, tuple(crop.size)) == (256, 'bicubic', (224, 224))


# -- the authors' network

@pytest.mark.parametrize('name', ARCHITECTURES)
def test_parameters_and_madds(name):
    """Parameters and multiply-adds at 224 px are those of the authors' network, to the unit."""
    expected = official.OFFICIAL['models'][OFFICIAL_NAME[name]]
    assert count(timm.create_model(name, device='meta'))[:2] == (expected['params'], expected['madds'])


@pytest.mark.parametrize(('width_mult', 'params', 'madds'), [
    (0.1, 1_627_316, 28.085), (0.25, 1_764_336, 48.010), (1.1, 4_170_720, 392.428), (1.3, 5_424_192, 536.569)])
def test_other_widths(width_mult, params, madds):
    """Any width multiplier gives the authors' network of that width, as measured from their code."""
    counted = count(timm.create_model('mobilenext_100', width_mult=width_mult, device='meta'))
    assert (counted[0], round(counted[1] / 1e6, 3)) == (params, madds)


@pytest.mark.parametrize('case', official.GOLDEN['cases'])
def test_golden(case):
    """With the same weights the model answers as the authors' code: float64 within 1e-9, float32 within 2e-3."""
    official_name, divisor, dtype = case.split('/')
    name = official_name.replace('mnext', 'mobilenext')
    if (official_name, divisor) == ('mnext_100', 'div2'):
        name, kwargs = 'mobilenext_100_id050', {}
    else:
        kwargs = dict(identity_ratio=1 / int(divisor.removeprefix('div')))
    model = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=dict(state_dict=official.state_dict(official_name)), **kwargs)
    dtype = getattr(torch, dtype)
    with torch.no_grad():
        logits = model.eval().to(dtype)(official.images().to(dtype))
    assert official.golden_error(logits, case) < (1e-9 if dtype == torch.float64 else 2e-3)


@pytest.mark.parametrize('divisor', [1, 2, 3, 4, 5, 6, 7, 12])
def test_identity_channels_are_exact(divisor):
    """The share 1 / divisor of any number of channels is C // divisor, free of float rounding."""
    for chs in range(8, 1793, 8):
        assert SandGlass(chs, chs, identity_ratio=1 / divisor, device='meta').identity_chs == chs // divisor
    assert SandGlass(96, 96, identity_ratio=0, device='meta').identity_chs == 0
    assert SandGlass(96, 96, device='meta').identity_chs == 96


def test_shortcuts():
    """Repeats have the shortcut, except in row 0, on the share of the channels that the architecture's name says."""
    for name in ARCHITECTURES:
        share = {'50': 1 / 2, '33': 1 / 3, '25': 1 / 4}.get(name.partition('_id0')[2], 1)
        for row, blocks in enumerate(timm.create_model(name, device='meta').blocks):
            for repeat, block in enumerate(blocks):
                assert block.identity_chs == round(block.out_chs * share * (row > 0 and repeat > 0))


def test_drop_path_schedule():
    """Block i of n is dropped with probability drop_path_rate * i / n, where there is a shortcut."""
    blocks = sand_glasses(timm.create_model('mobilenext_s', drop_path_rate=0.2, device='meta'))
    for i, block in enumerate(blocks):
        if block.identity_chs:
            assert block.drop_path.drop_prob == pytest.approx(0.2 * i / 20)
        else:
            assert not isinstance(block.drop_path, DropPath)


def test_init():
    """Convolutions start as the authors', the depthwise fan-out not divided by groups; no dropout by default."""
    torch.manual_seed(0)
    model = timm.create_model('mobilenext_100')
    block = model.blocks[6][1]
    assert block.dw_start.conv.weight.detach().std() == pytest.approx((2 / (9 * 960)) ** 0.5, rel=0.05)
    assert block.pw_expand.conv.weight.detach().std() == pytest.approx((2 / 960) ** 0.5, rel=0.05)
    assert model.classifier.weight.detach().std() == pytest.approx(0.01, rel=0.05)
    assert model.classifier.weight.detach().mean().abs() < 1e-3
    assert not model.classifier.bias.any()
    assert model.drop_rate == 0
    efficient = timm.create_model('mobilenext_s').blocks[6][1]  # PyTorch's: uniform, standard deviation sqrt(1 / 3 / 9)
    assert efficient.dw_start.conv.weight.detach().std() == pytest.approx((1 / 27) ** 0.5, rel=0.05)


@pytest.mark.parametrize('name', ['mobilenext_100_id050', 'mobilenext_s'])
def test_zero_init_last(name):
    """A block starts as its shortcut, its last norm zero on the channels that have one, by default."""
    for zero_init_last in (True, False):
        model = timm.create_model(name, zero_init_last=zero_init_last)
        for block in sand_glasses(model):
            chs = block.identity_chs if zero_init_last else 0
            norms = block.dw_start, block.pw_reduce, block.pw_expand, block.dw_end
            weights = [unit.bn.weight for unit in norms if not isinstance(unit, nn.Identity)]
            assert not weights[-1][:chs].any()
            assert all((weight == 1).all() for weight in [*weights[:-1], weights[-1][chs:]])
    block = SandGlass(8, 8, dw_end=False, norm_layer='groupnorm1')
    assert block.pw_expand.bn.weight.all()  # on its own it starts as in PyTorch
    block.zero_init_last()
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(block(x), x)
    timm.create_model(SMALL, norm_layer=partial(nn.BatchNorm2d, affine=False))  # norms without a weight


@pytest.mark.parametrize(('name', 'eps', 'momentum'), [(SMALL, 1e-5, 0.1), ('mobilenext_s', 1e-3, 0.1)])
def test_batch_norm_arguments(name, eps, momentum):
    """Batch norm has the family's eps and momentum, and train.py's --bn-eps and --bn-momentum override each."""
    for kwargs, expected in (
            (dict(bn_eps=None, bn_momentum=None), (eps, momentum)), (dict(bn_momentum=0.25), (eps, 0.25))):
        norms = [m for m in timm.create_model(name, **kwargs).modules() if isinstance(m, nn.BatchNorm2d)]
        assert {(m.eps, m.momentum) for m in norms} == {expected}


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


# -- timm's contract, beyond timm's tests

@pytest.mark.parametrize(('name', 'kwargs'), [
    *((name, {}) for name in FAMILIES),
    ('mobilenext_100', dict(width_mult=0.125))])  # where row 2 strides and keeps its channels; the authors' does not
def test_feature_reductions(name, kwargs):
    """The argument features_only gives the outputs before each stride: reductions 2, 4, 8, 16, 32."""
    model = timm.create_model(name, features_only=True, **kwargs)
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]
    with torch.no_grad():
        shapes = [tuple(f.shape[1:]) for f in model(torch.randn(2, 3, 64, 96))]
    assert shapes == [
        (chs, 64 // r, 96 // r) for chs, r in zip(model.feature_info.channels(), (2, 4, 8, 16, 32), strict=True)]


@pytest.mark.parametrize('indices', [None, 2, [0, -1], [1]])
def test_forward_intermediates(indices, calibrated):
    """All arguments of forward_intermediates agree with the features that `feature_info` describes."""
    model = calibrated(SMALL)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    taken = range(5) if indices is None else range(3, 5) if indices == 2 else [i % 5 for i in indices]
    with torch.no_grad():
        final, features = model.forward_intermediates(x, indices=indices)
        early = model.forward_intermediates(x, indices=indices, stop_early=True, intermediates_only=True)
        rows = model.forward_intermediates(x, extra_blocks=True, intermediates_only=True)
        torch.testing.assert_close(final, model.forward_features(x))
    assert [f.shape[1] for f in features] == [model.feature_info[i]['num_chs'] for i in taken]
    torch.testing.assert_close(features, early)
    torch.testing.assert_close([rows[model.stage_ends[i]] for i in taken], features)
    assert len(rows) == 9
    model.blocks[-1] = None  # layers behind the last feature in `indices` do not run
    assert len(model.forward_intermediates(x, [1], stop_early=True, intermediates_only=True)) == 1


@pytest.mark.parametrize(('name', 'feature_cls'), [
    ('mobilenext_s', 'list'), (SMALL, 'dict'), (SMALL, 'hook'), (SMALL, 'getter'), (SMALL, 'fx')])
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


@pytest.mark.parametrize(('name', 'output_stride'), [(SMALL, 8), ('mobilenext_100_id050', 16)])
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
def test_ways_to_run(name, calibrated):
    """Scripted, traced, exported, compiled, copied, pickled and channels_last models answer as the model does."""
    model = calibrated(name, **SHORT)
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


@pytest.mark.parametrize(('name', 'mode'), [
    ('mobilenext_100_id050', 'eval'), (SMALL, 'train'), (SMALL, 'recompute_act'), (SMALL, 'checkpointed')])
def test_compiles_for_all_sizes(name, mode):
    """torch.compile makes one graph for all batches of square images, and at most one more for all others."""
    torch.compiler.reset()  # the graphs of other tests count in its limit
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = timm.create_model(name, num_classes=3, recompute_act=mode == 'recompute_act', **SHORT)
    model.set_grad_checkpointing(mode == 'checkpointed')
    compiled = torch.compile(model.train(mode != 'eval'), backend=backend, fullgraph=True, dynamic=True)
    for shape in ((2, 3, 64, 64), (3, 3, 96, 96), (2, 3, 96, 64), (4, 3, 72, 120), (5, 3, 120, 72)):
        with torch.set_grad_enabled(mode != 'eval'):
            compiled(torch.randn(shape))
    assert len(graphs) <= 2


@pytest.mark.parametrize(('indices', 'rows', 'chs'), [([0], 0, 16), ([1], 2, 48), ([0, 2], 3, 64), (1, 8, 1280)])
def test_prune_intermediate_layers(indices, rows, chs):
    """Layers behind the last feature in `indices` are removed, with the head; the features do not change."""
    model = timm.create_model(SMALL).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=indices, intermediates_only=True)
        pruned, kept = copy.deepcopy(model), copy.deepcopy(model)
        assert pruned.prune_intermediate_layers(indices) == ([4] if indices == 1 else indices)
        assert torch.equal(pruned(x), expected[-1])
    assert (len(pruned.blocks), pruned.num_features, pruned.num_classes) == (rows, chs, 0)
    kept.prune_intermediate_layers(indices, prune_head=False)
    assert kept.num_classes == (1000 if rows == 8 else 0)
    assert model.prune_intermediate_layers([rows], extra_blocks=True) == [rows]
    assert len(model.blocks) == rows


def test_head():
    """The head drops features only in training, with the given probability, and returns them with pre_logits."""
    model = timm.create_model(SMALL, drop_rate=0.25)
    features = torch.ones(4, 1280, 2, 2)
    dropped = model.forward_head(features, pre_logits=True)
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.05)
    assert torch.equal(model.eval().forward_head(features, pre_logits=True), features.mean((2, 3)))


def test_reset_classifier():
    """A new classifier keeps the pooling unless another is given, and knows its inputs."""
    model = timm.create_model(SMALL, global_pool='max').eval()
    model.reset_classifier(5)
    assert (model.num_classes, model.classifier.out_features, model.global_pool.pool_type) == (5, 5, 'max')
    model.reset_classifier(3, 'catavgmax')
    assert model.head_hidden_size == model.classifier.in_features == 2 * 1280
    assert not model.classifier.training


def test_group_matcher():
    """Parameters are grouped by block or, coarsely, by row."""
    model = timm.create_model(SMALL, device='meta')
    for coarse, groups in (({}, ('5', '3')), (dict(coarse=True), ('5',))):
        assert re.match(model.group_matcher(**coarse)['blocks'], 'blocks.5.3.dw_end.conv.weight').groups() == groups


def test_meta_device():
    """A model on the meta device gets the values of its state from `init_weights`, once it has memory."""
    model = timm.create_model('mobilenext_100', device='meta').to_empty(device='cpu')
    for value in model.state_dict().values():
        value.fill_(7)
    torch.manual_seed(0)
    model.init_weights()
    assert model.blocks[6][1].pw_expand.conv.weight.detach().std() == pytest.approx((2 / 960) ** 0.5, rel=0.05)
    expected = timm.create_model('mobilenext_100').state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items() if value.ndim < 2)


# -- bad input

@pytest.mark.parametrize(('kwargs', 'message'), [
    (dict(width_mult=0.01), r'width_mult=0\.01 leaves no channel of 32\. Expected e\.g\. 0\.35'),
    (dict(width_mult=float('nan')), 'width_mult=nan'),
    (dict(depth_mult=0), 'depth_mult=0 leaves no blocks'),
    (dict(identity_ratio=1.5), r'identity_ratio=1\.5 is not a share of the channels\. Expected 0 '),
    (dict(identity_ratio=-0.1, depth_mult=0.1), r'identity_ratio=-0\.1'),  # none of its blocks has a shortcut
])
def test_bad_arguments(kwargs, message):
    """An argument that would build another network without an error is named, with its value and what to give."""
    with pytest.raises(ValueError, match=message):
        timm.create_model('mobilenext_100', **kwargs)


def test_unknown_weight_init():
    """An unknown start of the weights is refused, as by timm, where PyTorch's would be taken in silence."""
    with pytest.raises(AssertionError):
        timm.create_model(SMALL, weight_init='fan_in')


def test_block_that_cannot_stride():
    """A block that is to stride without the last depthwise conv is an error that says what to give."""
    with pytest.raises(ValueError, match='stride=2 needs the last depthwise conv: set dw_end=True'):
        SandGlass(8, 16, stride=2, dw_end=False)


def test_class_is_public():
    """The classes can be used without timm's factory, with its defaults."""
    factory = timm.create_model('mobilenext_100', device='meta')
    assert [(name, p.shape) for name, p in MobileNeXt(device='meta').named_parameters()] == [
        (name, p.shape) for name, p in factory.named_parameters()]
    made = timm_mobilenext.mobilenext.mobilenext_100(device='meta')  # an entry point, without weights
    assert made.state_dict().keys() == factory.state_dict().keys()
    assert MobileNeXt(num_classes=5, width_mult=0.35)(torch.randn(2, 3, 32, 32)).shape == (2, 5)
