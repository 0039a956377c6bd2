"""All that this package knows of others' files: what was published, what is claimed of it, and how layers are named.

Their repository: https://github.com/zhoudaquan/rethinking_bottleneck_design at `COMMIT`. `mnext.py` is
mobilenext/codebase/models/mnext.py there, the ReLU6 family, `model.py` is
mobilenext/codebase/models/efficient_mnext/model.py, the SiLU and squeeze-excite family. No code of theirs is kept.

PaddleClas (https://github.com/PaddlePaddle/PaddleClas at d178931, ppcls/arch/backbone/model_zoo/mobilenext.py) has the
ReLU6 family in PaddlePaddle, and serves weights of width 1.0. No code of it is kept either.
"""
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn

LICENSE = 'bsd-3-clause-clear'  # of the weights; the text is in the file LICENSE
HUB_OWNER = 'timm-mobilenext'  # of the repositories on the Hub that a release publishes
COMMIT = '195ee737952e2f8d729a14b51651748caf35794c'
_TREE = f'https://github.com/zhoudaquan/rethinking_bottleneck_design/raw/{COMMIT}'


@dataclass(frozen=True)
class Source:
    """A checkpoint file that others published.

    Attributes:
        url: Address, of the authors' files pinned to a commit.
        blob: Git blob id, SHA-1 of the content behind git's header, as the trees of both the authors' repositories
            record it; None if no digest of the file is known.
        top1: Top-1 accuracy on ImageNet-1k in %, of the best epoch in the summary.csv beside the authors' file.
        top5: Top-5 accuracy in %, of the same epoch; None where none is reported.
        ema: Whether the accuracies are those of the weights' exponential moving average.
        owner: Whose file it is, in the genitive.
        license: Licence of the weights, as the Hub spells it.
        reported: By whom the accuracies are reported, and of what.
        page: Address of that report, by default the folder of the file.
    """

    url: str
    blob: str | None
    top1: float
    top5: float | None
    ema: bool = False
    owner: str = "the authors'"
    license: str = LICENSE
    reported: str = "by the authors' training log"
    page: str = ''

    @property
    def report(self) -> str:
        """Address of the page that reports the accuracies."""
        return self.page or self.url.replace('/raw/', '/tree/').rpartition('/')[0]

    @property
    def name(self) -> str:
        """Name of the file in a cache, where the authors' `model_best.pth.tar` would be all five."""
        if self.blob is None:
            return self.url.split('/')[-1]
        return f'mobilenext-{self.url.split("/")[-2]}-{self.blob[:8]}.pth.tar'


# The summary.csv of the first two is of the raw weights (model_ema: false in args.yaml), of the others of the EMA's.
SOURCES = {
    'mobilenext_100': Source(
        f'{_TREE}/mobilenext/output/74_02_full_id_tensor/model_best.pth.tar',
        'e0a567e52c86ab4a66863745162c758f3fd27d84', 74.022, 91.646),
    'mobilenext_100_id050': Source(
        f'{_TREE}/mobilenext/output/74_09_i2rnetv3_half_id/model_best.pth.tar',
        '03f9b1b59f67ccd2191f7846ff9ad7e8647c753d', 74.092, 91.812),
    'mobilenext_s': Source(
        f'{_TREE}/mobilenext/output/76_05_3_94_model/model_best.pth.tar',
        'ca388f33536dba371e82807553042a938e082e4c', 76.056, 92.744, ema=True),
    'mobilenext_l': Source(
        f'{_TREE}/mobilenext/output/4_29M_76_6/model_best.pth.tar',
        '41e94c826600560a08675c9ffa7bf4d1df60fc69', 76.586, 92.934, ema=True),
    'mobilenext_l_ghost': Source(
        f'{_TREE}/mobilenext/output/5_68M_76_8/model_best.pth.tar',
        '2a7772ab796a0b6598068e1755ce3378a0c10f1d', 76.788, 93.178, ema=True),
}


# Weights that others trained, by the names that they have in timm. The address is PaddleClas's; flytocc, who trained
# this architecture in PaddlePaddle and gave it to PaddleClas (pull request 2734), reports the accuracy of a file that
# lies elsewhere, and neither says that it is the same. The licence is that of PaddleClas, whose file it is;
# flytocc's repository has The Clear BSD License.
REPRODUCTIONS = {
    'mobilenext_100.paddle_in1k': Source(
        'https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/MobileNeXt_x1_0_pretrained.pdparams',
        None, 74.022, None, owner="PaddleClas's", license='apache-2.0',
        reported='by flytocc, of a file that PaddleClas does not say is this one',
        page='https://github.com/flytocc/MobileNeXt-paddle'),
}


def find_source(name: str) -> Source | None:
    """Return the file that pretrained weights come from, None if there is none.

    Args:
        name: Name of a model, with the tag of the weights or without.
    """
    architecture, _, tag = name.partition('.')
    return SOURCES.get(architecture) if tag in ('', 'in1k') else REPRODUCTIONS.get(name)


@dataclass(frozen=True)
class Claim:
    """What the authors state of an architecture, digits as they print them; nothing of it was measured here.

    Attributes:
        params: Millions of parameters.
        madds: Millions of multiply-adds at 224 px.
        top1: Top-1 accuracy on ImageNet-1k in %.
    """

    params: str = ''
    madds: str = ''
    top1: str = ''


# Their paper and README; `_s`, `_l` and `_l_ghost`, which these do not have, are in their training logs alone.
CLAIMS = {
    'mobilenext_035': Claim('1.8', '80', '64.7'),
    'mobilenext_050': Claim('2.1', '110', '67.7'),
    'mobilenext_075': Claim('2.5', '210', '72.0'),
    'mobilenext_100': Claim('3.4', '300', '74.02'),
    'mobilenext_140': Claim('6.1', '590', '76.1'),
    'mobilenext_100_id050': Claim('', '300', '74.09'),
    'mobilenext_100_id033': Claim('', '300', '73.91'),
    'mobilenext_100_id025': Claim('', '300', '73.68'),
    'mobilenext_s': Claim('', '', '76.06'),
    'mobilenext_l': Claim('', '', '76.59'),
    'mobilenext_l_ghost': Claim('', '', '76.79'),
}

# Their names of layers. A block of mnext.py and MBConvBlockV1 is a Sequential, so the name of a layer depends on
# whether the block starts with a depthwise conv; the others have names.
_STEM_AND_HEAD = {
    'features.0.0': 'stem.conv', 'features.0.1': 'stem.bn', 'classifier.1': 'classifier',  # mnext.py
    '_conv_stem': 'stem.conv', '_bn0': 'stem.bn', '_fc': 'classifier',  # model.py
    'conv_stem': 'stem.conv', 'bn1': 'stem.bn',  # Efficientmnext
}
_FULL = {
    '0': 'dw_start.conv', '1': 'dw_start.bn', '3': 'pw_reduce.conv', '4': 'pw_reduce.bn',
    '5': 'pw_expand.conv', '6': 'pw_expand.bn', '8': 'dw_end.conv', '9': 'dw_end.bn',
}
_TRANSITION = {
    '0': 'pw_reduce.conv', '1': 'pw_reduce.bn', '2': 'pw_expand.conv', '3': 'pw_expand.bn',
    '5': 'dw_end.conv', '6': 'dw_end.bn',
}
_NAMED = {
    # GhostI2RBlock, and I2RBlock of the authors' efficientnet_blocks.py
    'dwise_conv1': 'dw_start.conv', 'bn1': 'dw_start.bn', 'project_layer': 'pw_reduce.conv', 'bn2': 'pw_reduce.bn',
    'expand_layer': 'pw_expand.conv', 'bn3': 'pw_expand.bn', 'dwise_conv2': 'dw_end.conv', 'bn4': 'dw_end.bn',
    # I2RConvBlock
    '_project_conv': 'dw_start.conv', '_bn0': 'dw_start.bn', '_linear1': 'pw_reduce.conv', '_bn1': 'pw_reduce.bn',
    '_linear2': 'pw_expand.conv', '_bn2': 'pw_expand.bn', '_expand_conv': 'dw_end.conv', '_bn3': 'dw_end.bn',
    # squeeze-excite of model.py and of efficientnet_blocks.py
    '_se_reduce': 'se.fc1', '_se_expand': 'se.fc2', 'se.conv_reduce': 'se.fc1', 'se.conv_expand': 'se.fc2',
}
_BLOCK = re.compile(r'(features\.\d+|_blocks\.\d+|blocks\.\d+\.\d+)\.(?:conv\.|features\.)?((?:se\.)?\w+)')
_EFFICIENTMNEXT_KEY = 'blocks.0.0.project_layer.weight'
# PaddlePaddle's names of what batch norms count; it has the weights of a linear layer as (in, out).
_PADDLE = {'_mean': 'running_mean', '_variance': 'running_var'}
_PADDLE_KEY = 'features.0.1._mean'
# a key that each of their layouts has and no other; PaddleClas names the layers as mnext.py does
_SIGNS = {'features.0.0.weight', '_conv_stem.weight', _EFFICIENTMNEXT_KEY}


def from_official(state_dict: dict[str, Any], model: Any) -> dict[str, Any]:
    """Map a state dict with the authors' or PaddleClas's keys to the model's, by name; one with other keys passes.

    Drops their `_bn1.*`, which model.py builds and saves but never uses. A key that none of their layouts has a place
    for is kept as it is.

    Args:
        state_dict: The state dict.
        model: The MobileNeXt that it is for, which says which blocks start with a depthwise conv.

    Returns:
        The state dict in the model's layout, the given one itself if it has no keys of theirs.

    Raises:
        RuntimeError: If the weights are of a network that pads and normalizes in another way than the model.
    """
    if not _SIGNS & state_dict.keys():
        return state_dict
    is_same_padded = type(model.stem.conv) is not nn.Conv2d  # timm has a class of its own for TensorFlow's padding
    if _EFFICIENTMNEXT_KEY in state_dict and (is_same_padded or model.stem.bn.eps != 1e-5):
        raise RuntimeError(
            "The checkpoint has the keys of the authors' class Efficientmnext, which pads symmetrically and has batch "
            'norms of eps 1e-05 (efficientnet.py); this model does not, and would answer wrongly without an error. '
            "Create the model with pad_type='', bn_eps=1e-5 and bn_momentum=0.1.")
    places = {f'blocks.{row}.{i}': block for row, blocks in enumerate(model.blocks) for i, block in enumerate(blocks)}
    prefixes = {prefix: prefix for prefix in places}
    for i, prefix in enumerate(places):
        prefixes[f'_blocks.{i}'] = prefixes[f'features.{i + 1}'] = prefix  # mnext.py counts the stem as first feature
    out = {}
    for key, value in state_dict.items():
        if key.startswith('_bn1.'):
            continue
        module, _, leaf = key.rpartition('.')
        name = _STEM_AND_HEAD.get(module)
        match = _BLOCK.fullmatch(module)
        if match and match[1] in prefixes:
            prefix = prefixes[match[1]]
            is_full = not isinstance(places[prefix].dw_start, nn.Identity)
            layers = {**(_FULL if is_full else _TRANSITION), **_NAMED}
            name = f'{prefix}.{layers[match[2]]}' if match[2] in layers else None
        if name == 'classifier' and leaf == 'weight' and _PADDLE_KEY in state_dict:
            value = value.t()
        out[key if name is None else f'{name}.{_PADDLE.get(leaf, leaf)}'] = value
    return out


def _known_misfit(state_dict: dict[str, Any], model: nn.Module, first_conv: str) -> str:
    """Return why the keys of a state dict are not the model's, '' if that is not one of the two usual reasons."""
    for sign in (f'{first_conv}.weight', *_SIGNS):
        prefix = next((key.removesuffix(sign) for key in state_dict if key.endswith(f'.{sign}')), '')
        if prefix and sign not in state_dict:
            return (
                f'The keys of the checkpoint begin with {prefix!r}, which a wrapper of the model added. Load '
                f'{{key.removeprefix({prefix!r}): value for key, value in state_dict.items()}}.')
    if f'{first_conv}.bias' in state_dict and f'{first_conv}.bias' not in model.state_dict():
        return (
            'The checkpoint is of a folded network (timm.utils.reparameterize_model): its batch norms are part of the '
            'convs, which cannot be undone. Load the checkpoint from before, or fold a new model and load it there.')
    return ''


def check_fit(state_dict: dict[str, Any], model: nn.Module, first_conv: str, classifier: str) -> None:
    """Raise an error unless a state dict has the model's keys and shapes, except for what timm adapts.

    timm loads with strict=False where classes or features differ, which would take any checkpoint at all in silence.
    Can be removed when timm's `load_pretrained` checks all but the classifier and the input channels.

    Args:
        state_dict: A state dict in the model's layout.
        model: The model.
        first_conv: Name of the conv whose input channels timm adapts.
        classifier: Name of the layer whose classes timm adapts.

    Raises:
        RuntimeError: If other keys or shapes differ.
    """
    def first(keys: list[str]) -> str:
        return ', '.join(keys[:3]) + (f' and {len(keys) - 3} more' if len(keys) > 3 else '')

    def shape(key: str, tensor: torch.Tensor) -> tuple[int, ...]:
        full = tuple(tensor.shape)
        return full[:1] + full[2:] if key == f'{first_conv}.weight' else full

    def rest(state: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in state.items() if not key.startswith(f'{classifier}.')}

    expected, found = rest(model.state_dict()), rest(state_dict)
    unknown = [key for key in found if key not in expected]
    missing = [key for key in expected if key not in found and not key.endswith('num_batches_tracked')]
    if unknown or missing:
        raise RuntimeError(_known_misfit(state_dict, model, first_conv) or (
            f'The checkpoint is not of this {type(model).__name__}:'
            + (f' it has {first(unknown)}, which the model does not have;' if unknown else '')
            + (f' it lacks {first(missing)};' if missing else '')
            + ' expected the keys of the same architecture. Create the one that the checkpoint was made from.'))
    for key, value in found.items():
        if shape(key, value) != shape(key, expected[key]):
            raise RuntimeError(
                f'The checkpoint is of another width or architecture: {key} has shape {tuple(value.shape)}, expected '
                f'{tuple(expected[key].shape)}. Create the architecture or width that the checkpoint was made from.')


# Their detector: https://github.com/houqb/ssdlite-pytorch-mobilenext, ssd/modeling/backbone/mobilenext.py. Its backbone
# is the ReLU6 family with the keys of mnext.py and, of each extra block, a Sequential of convs, norms and activations.
_EXTRA = {'0': '0.0', '1': '0.1', '3': '1.0', '4': '1.1', '5': '2.0', '6': '2.1'}
_EXTRA_KEY = re.compile(r'extras\.(\d+)\.(\d+)\.(\w+)')


def split_ssdlite(state_dict: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a state dict of the authors' SSDLite backbone; one of a classifier has only the first part.

    Args:
        state_dict: The state dict.

    Returns:
        The part that a classifier has, with its keys as they are, and the extra blocks with the keys of
        `detection.SSDLiteFeatureExtractor.extra`. A key that an extra block has no place for is in the first part.
    """
    network, extra = {}, {}
    for key, value in state_dict.items():
        match = _EXTRA_KEY.fullmatch(key)
        if match and match[2] in _EXTRA:
            extra[f'{match[1]}.{_EXTRA[match[2]]}.{match[3]}'] = value
        else:
            network[key] = value
    return network, extra
