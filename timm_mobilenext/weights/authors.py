"""The files that others published: their addresses, the results reported for them, and their names of layers.

The paper authors' repository is https://github.com/zhoudaquan/rethinking_bottleneck_design at `COMMIT`. The ReLU6
family is in mobilenext/codebase/models/mnext.py there (`mnext.py` below), the SiLU and squeeze-excite family in
mobilenext/codebase/models/efficient_mnext/model.py (`model.py`). PaddleClas has the ReLU6 family in PaddlePaddle and
serves weights of width 1.0: https://github.com/PaddlePaddle/PaddleClas at d178931,
ppcls/arch/backbone/model_zoo/mobilenext.py. No code of either is kept here.
"""
import re
from dataclasses import dataclass
from typing import Any

import torch.nn as nn

LICENSE = 'bsd-3-clause-clear'  # of the weights; the text is in the file LICENSE
HUB_OWNER = 'timm-mobilenext'  # of the repositories on the Hub that a release publishes
COMMIT = '195ee737952e2f8d729a14b51651748caf35794c'
_REPOSITORY = 'https://github.com/zhoudaquan/rethinking_bottleneck_design'
_OUTPUT = f'{COMMIT}/mobilenext/output'


@dataclass(frozen=True)
class Source:
    """A checkpoint file that others published."""

    url: str  # address of the file, for the authors' files at a commit
    blob: str | None  # git blob id, as the authors' repository records it; None if no digest of the file is known
    top1: float  # on ImageNet-1k in %, of the best epoch in the summary.csv beside the authors' file
    top5: float | None  # of the same epoch in %, None where none is reported
    ema: bool = False  # whether the accuracies are those of the weights' exponential moving average
    owner: str = "the authors'"  # whose file it is, in the genitive
    license: str = LICENSE  # of the weights, as the Hub spells it
    reported: str = "by the authors' training log"  # who reports the accuracies, and of what
    page: str = ''  # address of that report

    @property
    def name(self) -> str:
        """Name of the file in a cache. The authors call all five `model_best.pth.tar`."""
        *_, folder, file = self.url.split('/')
        return f'mobilenext-{folder}-{self.blob[:8]}.pth.tar' if self.blob else file


# The summary.csv of the first two has the accuracies of the raw weights (model_ema: false in args.yaml), those of the
# others of the EMA.
SOURCES = {
    name: Source(f'{_REPOSITORY}/raw/{_OUTPUT}/{folder}/model_best.pth.tar', blob, top1, top5, ema,
                 page=f'{_REPOSITORY}/tree/{_OUTPUT}/{folder}')
    for name, folder, blob, top1, top5, ema in (
        ('mobilenext_100', '74_02_full_id_tensor', 'e0a567e52c86ab4a66863745162c758f3fd27d84', 74.022, 91.646, False),
        ('mobilenext_100_id050', '74_09_i2rnetv3_half_id', '03f9b1b59f67ccd2191f7846ff9ad7e8647c753d', 74.092, 91.812,
         False),
        ('mobilenext_s', '76_05_3_94_model', 'ca388f33536dba371e82807553042a938e082e4c', 76.056, 92.744, True),
        ('mobilenext_l', '4_29M_76_6', '41e94c826600560a08675c9ffa7bf4d1df60fc69', 76.586, 92.934, True),
        ('mobilenext_l_ghost', '5_68M_76_8', '2a7772ab796a0b6598068e1755ce3378a0c10f1d', 76.788, 93.178, True),
    )
}

# Weights that others trained, by name and tag. PaddleClas serves this file, so the licence is that of PaddleClas.
# flytocc, who trained the architecture in PaddlePaddle and gave it to PaddleClas (pull request 2734), reports the
# accuracy of a file in another place, under The Clear BSD License. Nobody says that the two files are the same.
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
        name: Name of an architecture, with or without the tag of the weights.
    """
    architecture, _, tag = name.partition('.')
    return SOURCES.get(architecture) if tag in ('', 'in1k') else REPRODUCTIONS.get(name)


@dataclass(frozen=True)
class Claim:
    """What the authors state of an architecture, in the digits that they print. It was not measured here."""

    params: str = ''  # millions of parameters
    madds: str = ''  # millions of multiply-adds at 224 px
    top1: str = ''  # accuracy on ImageNet-1k in %


# From the paper and the authors' README; of `_s`, `_l` and `_l_ghost` from the training logs, the only source.
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

# The authors' names of layers. The blocks of mnext.py and MBConvBlockV1 are Sequentials, where the number of a layer
# depends on whether the block starts with a depthwise conv. In the other blocks the layers have names.
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
_EFFICIENTMNEXT_KEY = 'blocks.0.0.project_layer.weight'
# PaddlePaddle's names of batch norm statistics. It also saves the weights of a linear layer transposed.
_PADDLE = {'_mean': 'running_mean', '_variance': 'running_var'}
_PADDLE_KEY = 'features.0.1._mean'
# one key of each of the authors' layouts, which no other layout has; PaddleClas names the layers as mnext.py does
_SIGNS = {'features.0.0.weight', '_conv_stem.weight', _EFFICIENTMNEXT_KEY}


def from_official(state_dict: dict[str, Any], model: Any) -> dict[str, Any]:
    """Map a state dict with the authors' or PaddleClas's keys to the model's, by name.

    The authors' `_bn1.*` are dropped: model.py builds and saves them but never uses them. Unknown keys are kept.

    Args:
        state_dict: The state dict.
        model: The MobileNeXt that it is for.

    Returns:
        The state dict in the model's layout. If it is in none of these layouts, the given one.

    Raises:
        RuntimeError: If the weights are of a network that pads or normalizes differently from the model.
    """
    if not _SIGNS & state_dict.keys():
        return state_dict
    is_same_padded = type(model.stem.conv) is not nn.Conv2d  # timm has a class of its own for TensorFlow's padding
    if _EFFICIENTMNEXT_KEY in state_dict and (is_same_padded or model.stem.bn.eps != 1e-5):
        raise RuntimeError(
            "The checkpoint is of the authors' class Efficientmnext, which pads symmetrically and has batch norms with "
            'eps 1e-5. This model does not, and would answer wrongly without an error. Create the model with '
            "pad_type='', bn_eps=1e-5 and bn_momentum=0.1.")
    names, count = dict(_STEM_AND_HEAD), 0
    for row, blocks in enumerate(model.blocks):
        for i, block in enumerate(blocks):
            layers = {**(_TRANSITION if isinstance(block.dw_start, nn.Identity) else _FULL), **_NAMED}
            for prefix in (  # mnext.py, which counts the stem as first feature; model.py; efficientnet_blocks.py
                    f'features.{count + 1}.conv', f'_blocks.{count}.features', f'_blocks.{count}', f'blocks.{row}.{i}'):
                names |= {f'{prefix}.{layer}': f'blocks.{row}.{i}.{ours}' for layer, ours in layers.items()}
            count += 1
    out = {}
    for key, value in state_dict.items():
        module, _, leaf = key.rpartition('.')
        if names.get(module) == 'classifier' and leaf == 'weight' and _PADDLE_KEY in state_dict:
            value = value.t()
        if module in names:
            key = f'{names[module]}.{_PADDLE.get(leaf, leaf)}'
        if module != '_bn1':
            out[key] = value
    return out


def check_keys(state_dict: dict[str, Any], model: nn.Module) -> None:
    """Raise an error unless a state dict has the model's keys, except for the classifier's.

    timm loads with strict=False where classes or features differ, which takes any checkpoint without a word. Can be
    removed when timm's `load_pretrained` checks all keys but the classifier's. PyTorch checks the shapes.

    Args:
        state_dict: A state dict in the model's layout.
        model: The MobileNeXt.

    Raises:
        RuntimeError: If keys are missing or unknown.
    """
    def some(keys: list[str]) -> str:
        return f'{", ".join(keys[:3])} ({len(keys)} in all)' if keys else 'none'

    expected = model.state_dict()
    unknown, missing = (
        [key for key in state if key not in other and not key.startswith('classifier.')]
        for state, other in ((state_dict, expected), (expected, state_dict)))
    missing = [key for key in missing if not key.endswith('num_batches_tracked')]
    if unknown or missing:
        raise RuntimeError(
            f'The checkpoint is not of this {type(model).__name__}. Unknown keys: {some(unknown)}. Missing keys: '
            f'{some(missing)}. Create the architecture that the checkpoint was made from. If a wrapper put a prefix '
            'such as "model." before the keys, remove the prefix. If the network was folded '
            '(timm.utils.reparameterize_model), load the checkpoint from before: folding cannot be undone.')


# The authors' detector: https://github.com/houqb/ssdlite-pytorch-mobilenext, ssd/modeling/backbone/mobilenext.py. Its
# backbone is the ReLU6 family with the keys of mnext.py. Each extra block is a Sequential of convs, norms, activations.
_EXTRA = {'0': '0.0', '1': '0.1', '3': '1.0', '4': '1.1', '5': '2.0', '6': '2.1'}
_EXTRA_KEY = re.compile(r'extras\.(\d+)\.(\d+)\.(\w+)')


def split_ssdlite(state_dict: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a state dict of the authors' SSDLite backbone into classifier and extra blocks.

    Args:
        state_dict: The state dict.

    Returns:
        The classifier's part with its keys unchanged, and the extra blocks with the keys of
        `detection.SSDLiteFeatureExtractor.extra`. Unknown keys are in the first part.
    """
    network, extra = {}, {}
    for key, value in state_dict.items():
        match = _EXTRA_KEY.fullmatch(key)
        if match and match[2] in _EXTRA:
            extra[f'{match[1]}.{_EXTRA[match[2]]}.{match[3]}'] = value
        else:
            network[key] = value
    return network, extra
