"""What is known of the authors' files: their layouts load, other files are refused, their figures are told apart."""
import re

import official
import pytest
import timm
import torch
from networks import ARCHITECTURES, FAMILIES, OFFICIAL_NAME, SMALL

from timm_mobilenext.mobilenext import checkpoint_filter_fn
from timm_mobilenext.weights.authors import CLAIMS, SOURCES


@pytest.mark.parametrize('name', FAMILIES)
def test_filter_maps_every_key(name):
    """Every official key but the five unused ones is mapped, and a mapped dict passes the filter unchanged."""
    model = timm.create_model(name, device='meta')
    official_state = official.state_dict(OFFICIAL_NAME[name])
    mapped = checkpoint_filter_fn(official_state, model)
    assert mapped.keys() == model.state_dict().keys()
    assert len(official_state) - len(mapped) == (0 if name in (SMALL, 'mobilenext_100_id050') else 5)
    assert checkpoint_filter_fn(mapped, model) is mapped


def test_filter_takes_headless_and_adapted():
    """A checkpoint fits whatever the model's classes and input channels, and without a classifier."""
    official_state = official.state_dict('mnext_035')
    overlay = dict(state_dict=official_state)
    model = timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, in_chans=1)
    assert torch.equal(model.blocks[7][0].dw_end.conv.weight, official_state['features.20.conv.8.weight'])
    torch.testing.assert_close(model.stem.conv.weight, official_state['features.0.0.weight'].sum(1, keepdim=True))
    headless = {k: v for k, v in timm.create_model(SMALL).state_dict().items() if not k.startswith('classifier')}
    assert checkpoint_filter_fn(headless, model) is headless


@pytest.mark.parametrize('kwargs', [{}, dict(num_classes=7)])
def test_foreign_checkpoint(kwargs):
    """A checkpoint of another network is refused by its first keys, also where timm loads without strictness."""
    overlay = dict(state_dict=timm.create_model('resnet18').state_dict())
    with pytest.raises(RuntimeError, match=r'Unknown keys: conv1\.weight, bn1.* \(122 in all\)\. Missing keys: stem\.'):
        timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def test_missing_keys():
    """The counters of batch norms may be missing, other keys not."""
    model = timm.create_model(SMALL, device='meta')
    state = {key: value for key, value in model.state_dict().items() if not key.endswith('num_batches_tracked')}
    assert checkpoint_filter_fn(state, model) is state
    del state['stem.bn.weight']
    with pytest.raises(RuntimeError, match=r'Unknown keys: none\. Missing keys: stem\.bn\.weight \(1 in all\)\.'):
        checkpoint_filter_fn(state, model)


def test_unknown_official_keys():
    """A key that the authors' layout does not have is named as it stands in the file."""
    state = official.state_dict('mnext_035')
    state |= {f'features.{place}.weight': torch.zeros(1) for place in ('20.conv.12', '99.conv.0', '0.2')}
    with pytest.raises(RuntimeError, match=r'keys: features\.20\.conv\.12\.weight, features\.99.*, features\.0\.2'):
        checkpoint_filter_fn(state, timm.create_model(SMALL, device='meta'))


def test_checkpoint_of_another_width():
    """A checkpoint of another width is refused, also where timm loads without strictness: PyTorch checks shapes."""
    overlay = dict(state_dict=official.state_dict('mnext_100'))
    with pytest.raises(RuntimeError, match=r'size mismatch for stem\.conv\.weight'):
        timm.create_model(SMALL, num_classes=7, pretrained=True, pretrained_cfg_overlay=overlay)


def test_other_layouts_of_the_same_network():
    """The layers of I2RConvBlock, which is MBConvBlockV1 under other names, are mapped like those."""
    state = official.state_dict('mnext_s')
    full, transition = ['0', '1', '3', '4', '5', '6', '8', '9'], ['-', '-', '0', '1', '2', '3', '5', '6']
    names = ['_project_conv', '_bn0', '_linear1', '_bn1', '_linear2', '_bn2', '_expand_conv', '_bn3']
    renamed = {}
    for key, value in state.items():
        match = re.fullmatch(r'(_blocks\.\d+\.)features\.(\d+)(\..*)', key)
        if match:
            is_full = f'{match[1]}features.9.weight' in state
            key = match[1] + dict(zip(full if is_full else transition, names, strict=True))[match[2]] + match[3]
        renamed[key] = value
    assert sum('_linear1' in key for key in renamed) == 20
    model = timm.create_model('mobilenext_s', device='meta')
    expected, mapped = checkpoint_filter_fn(state, model), checkpoint_filter_fn(renamed, model)
    assert mapped.keys() == expected.keys()
    assert all(mapped[key] is expected[key] for key in expected)


def test_layout_of_another_padding():
    """The keys of Efficientmnext, which pads and normalizes differently, load only into a model that does so."""
    names = {'dw_start.conv': 'dwise_conv1', 'dw_start.bn': 'bn1', 'pw_reduce.conv': 'project_layer',
             'pw_reduce.bn': 'bn2', 'pw_expand.conv': 'expand_layer', 'pw_expand.bn': 'bn3',
             'dw_end.conv': 'dwise_conv2', 'dw_end.bn': 'bn4', 'se.fc1': 'se.conv_reduce', 'se.fc2': 'se.conv_expand'}
    stem = {'stem.conv': 'conv_stem', 'stem.bn': 'bn1'}
    native = timm.create_model('mobilenext_s').state_dict()
    state = {}
    for key, value in native.items():
        match = re.fullmatch(r'(blocks\.\d+\.\d+)\.(\w+\.\w+)(\..*)', key)
        module, _, leaf = key.rpartition('.')
        key = f'{stem.get(module, module)}.{leaf}'
        state[f'{match[1]}.{names[match[2]]}{match[3]}' if match else key] = value
    for kwargs in ({}, dict(pad_type=''), dict(bn_eps=1e-5)):  # one of the two is as wrong as both
        other = timm.create_model('mobilenext_s', device='meta', **kwargs)
        with pytest.raises(RuntimeError, match=r"class Efficientmnext.* pad_type='', bn_eps=1e-5 and bn_momentum=0\.1"):
            checkpoint_filter_fn(state, other)
    model = timm.create_model('mobilenext_s', device='meta', pad_type='', bn_eps=1e-5, bn_momentum=0.1)
    mapped = checkpoint_filter_fn(state, model)
    assert mapped.keys() == native.keys()
    assert all(mapped[key] is native[key] for key in native)


def test_claims():
    """The authors claim a top-1 of eleven architectures, where weights are known that of the file, rounded."""
    assert len([name for name in ARCHITECTURES if name in CLAIMS and CLAIMS[name].top1]) == 11
    assert {name: CLAIMS[name].top1 for name in SOURCES} == {
        name: f'{source.top1:.2f}' for name, source in SOURCES.items()}
    assert len({source.blob for source in SOURCES.values()}) == len({source.name for source in SOURCES.values()}) == 5
    assert SOURCES['mobilenext_100'].name == 'mobilenext-74_02_full_id_tensor-e0a567e5.pth.tar'
