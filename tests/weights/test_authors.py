"""What is known of the authors' files: their layouts load, other files are refused, their figures are told apart."""
import re
from functools import partial

import official
import pytest
import timm
import torch
from networks import ARCHITECTURES, FAMILIES, OFFICIAL_NAME, SMALL

from timm_mobilenext.weights.authors import CLAIMS, SOURCES, check_fit, split_ssdlite
from timm_mobilenext.mobilenext import checkpoint_filter_fn


@pytest.mark.parametrize('name', FAMILIES)
def test_filter_maps_every_key(name):
    """Every official key but the five unused ones has its place, and a mapped dict passes the filter untouched."""
    model = timm.create_model(name, device='meta')
    theirs = official.state_dict(OFFICIAL_NAME[name])
    mapped = checkpoint_filter_fn(theirs, model)
    assert mapped.keys() == model.state_dict().keys()
    assert len(theirs) - len(mapped) == (0 if name in (SMALL, 'mobilenext_100_id050') else 5)
    assert checkpoint_filter_fn(mapped, model) is mapped


def test_filter_takes_headless_and_adapted():
    """A checkpoint fits whatever the model's classes and input channels, and without a classifier."""
    theirs = official.state_dict('mnext_035')
    overlay = dict(state_dict=theirs)
    model = timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, in_chans=1)
    assert torch.equal(model.blocks[7][0].dw_end.conv.weight, theirs['features.20.conv.8.weight'])
    torch.testing.assert_close(model.stem.conv.weight, theirs['features.0.0.weight'].sum(1, keepdim=True))
    headless = {k: v for k, v in timm.create_model(SMALL).state_dict().items() if not k.startswith('classifier')}
    assert checkpoint_filter_fn(headless, model) is headless
    features = timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True)
    assert torch.equal(features.stem.conv.weight, theirs['features.0.0.weight'])


@pytest.mark.parametrize('kwargs', [{}, dict(num_classes=7)])
def test_foreign_checkpoint(kwargs):
    """A checkpoint of another network is refused by its first keys, also where timm loads without strictness."""
    foreign = timm.create_model('resnet18').state_dict()
    overlay = dict(state_dict=foreign)
    with pytest.raises(RuntimeError, match=r'it has conv1\.weight, bn1.* and \d+ more.*it lacks stem\.conv\.weight'):
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
    """The keys of Efficientmnext, which pads and normalizes differently, load only into a model that does so."""
    names = {'dw_start.conv': 'dwise_conv1', 'dw_start.bn': 'bn1', 'pw_reduce.conv': 'project_layer',
             'pw_reduce.bn': 'bn2', 'pw_expand.conv': 'expand_layer', 'pw_expand.bn': 'bn3',
             'dw_end.conv': 'dwise_conv2', 'dw_end.bn': 'bn4', 'se.fc1': 'se.conv_reduce', 'se.fc2': 'se.conv_expand'}
    stem = {'stem.conv': 'conv_stem', 'stem.bn': 'bn1'}
    native = timm.create_model('mobilenext_s').state_dict()
    theirs = {}
    for key, value in native.items():
        match = re.fullmatch(r'(blocks\.\d+\.\d+)\.(\w+\.\w+)(\..*)', key)
        module, _, leaf = key.rpartition('.')
        key = f'{stem.get(module, module)}.{leaf}'
        theirs[f'{match[1]}.{names[match[2]]}{match[3]}' if match else key] = value
    for kwargs in ({}, dict(pad_type=''), dict(bn_eps=1e-5)):  # one of the two is as wrong as both
        other = timm.create_model('mobilenext_s', device='meta', **kwargs)
        with pytest.raises(RuntimeError, match=r"class Efficientmnext.* pad_type='', bn_eps=1e-5 and bn_momentum=0\.1"):
            checkpoint_filter_fn(theirs, other)
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
    with pytest.raises(RuntimeError, match=r'stem\.conv\.weight has shape \(32, 3, 3, 3\), expected \(16, 3, 3, 3\)'):
        timm.create_model(
            name, num_classes=7, pretrained=True,
            pretrained_cfg_overlay=dict(state_dict=official.state_dict('mnext_100')))


def test_claims():
    """The authors claim a top-1 of eleven architectures, where their weights are known that of the file, rounded."""
    assert len([name for name in ARCHITECTURES if name in CLAIMS and CLAIMS[name].top1]) == 11
    assert {name: CLAIMS[name].top1 for name in SOURCES} == {
        name: f'{source.top1:.2f}' for name, source in SOURCES.items()}
    assert len({source.blob for source in SOURCES.values()}) == len({source.name for source in SOURCES.values()}) == 5
    assert SOURCES['mobilenext_100'].name == 'mobilenext-74_02_full_id_tensor-e0a567e5.pth.tar'


def test_split_ssdlite():
    """Of the authors' detector the extra blocks are told by their keys; what they have no place for is left in."""
    network, extra = split_ssdlite({
        'features.0.0.weight': 1, 'extras.0.0.weight': 2, 'extras.2.4.bias': 3, 'extras.1.6.running_mean': 4,
        'extras.0.2.weight': 5, 'extras.0': 6})
    assert network == {'features.0.0.weight': 1, 'extras.0.2.weight': 5, 'extras.0': 6}
    assert extra == {'0.0.0.weight': 2, '2.1.1.bias': 3, '1.2.1.running_mean': 4}


def test_check_fit():
    """Any model's state dict fits, except for classes, input channels and counters; other keys and shapes are named."""
    model = timm.create_model('resnet18', device='meta')
    check = partial(check_fit, model=model, first_conv='conv1', classifier='fc')
    check(timm.create_model('resnet18', device='meta', num_classes=3, in_chans=1).state_dict())
    check({key: value for key, value in model.state_dict().items() if not key.endswith('num_batches_tracked')})
    with pytest.raises(RuntimeError, match=r'ResNet: it lacks bn1\.weight; expected the keys'):
        check({key: value for key, value in model.state_dict().items() if key != 'bn1.weight'})
    with pytest.raises(RuntimeError, match=r'not of this ResNet: it has layer1\.0\.conv3\.weight, .* and 195 more'):
        check(timm.create_model('resnet50', device='meta').state_dict())
    more = {f'more.{i}': torch.zeros(1) for i in range(4)}
    with pytest.raises(RuntimeError, match=r'ResNet: it has more\.0, more\.1, more\.2 and 1 more, which the model'):
        check(model.state_dict() | more)
    del more['more.3']
    with pytest.raises(RuntimeError, match=r'ResNet: it has more\.0, more\.1, more\.2, which .* have; expected'):
        check(model.state_dict() | more)
    with pytest.raises(RuntimeError, match=r'conv1\.weight has shape \(64, 3, 3, 7\), expected \(64, 3, 7, 7\)'):
        check(model.state_dict() | {'conv1.weight': torch.empty(64, 3, 3, 7)})


@pytest.mark.parametrize('prefix', ['model.', 'net.backbone.'])
def test_prefix_of_a_wrapper(prefix):
    """The prefix that a wrapper gave to the keys is named, on the model's keys as on the authors'."""
    model = timm.create_model(SMALL, device='meta')
    for state in (model.state_dict(), official.state_dict('mnext_035')):
        with pytest.raises(RuntimeError, match=rf"checkpoint begin with '{re.escape(prefix)}', which a wrapper"):
            checkpoint_filter_fn({f'{prefix}{key}': value for key, value in state.items()}, model)


def test_folded_checkpoint():
    """A checkpoint of a folded network is told by its biases."""
    folded = timm.utils.reparameterize_model(timm.create_model(SMALL)).state_dict()
    with pytest.raises(RuntimeError, match=r'is of a folded network \(timm\.utils\.reparameterize_model\)'):
        checkpoint_filter_fn(folded, timm.create_model(SMALL, device='meta'))
