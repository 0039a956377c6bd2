"""SSDLite on MobileNeXt: torchvision's detector on the feature maps that the authors chose.

torchvision's ssdlite.py with another backbone: its `SSD`, `SSDLiteHead` and `DefaultBoxGenerator`, so its losses and
its post-processing. The taps and the extra blocks are those of the authors' detector, which `authors.py` names.
"""
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn as nn
from timm.models import EfficientNet, create_feature_extractor
from timm.models._efficientnet_blocks import InvertedResidual
from torchvision.models.detection._utils import retrieve_out_channels
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead, _normal_init
from torchvision.models.feature_extraction import DualGraphModule
from torchvision.ops import Conv2dNormActivation

from timm_mobilenext.weights import authors
from timm_mobilenext.mobilenext import MobileNeXt
from timm_mobilenext.weights.download import read

# The authors' extra blocks: output channels, ratio of the bottleneck to the input channels
_EXTRA = ((512, 0.2), (256, 0.25), (256, 0.5), (128, 0.5))


def feature_nodes(model: Any) -> list[str]:
    """Return the names of the nodes, in the graph of torch.fx, that SSDLite takes from a model.

    They are the tap at stride 16, the tap at stride 32 and, unless that is the second tap, the end of the network,
    where the extra blocks start. In a MobileNeXt the taps are behind the expansion of the block that strides from 16 to
    32 and of the last block, before their last depthwise conv, as in the authors' detector. In timm's networks of
    inverted residuals they are behind the expansion of the block that strides and at the end, as in torchvision's. In
    any other network they are the features of these strides that `features_only` has.

    Args:
        model: A model that timm created.

    Raises:
        ValueError: If the model has no feature maps of strides 16 and 32.
    """
    info = {tap['reduction']: tap for tap in getattr(model, 'feature_info', [])}  # the last of each reduction
    if not {16, 32} <= info.keys():
        raise ValueError(
            f'{type(model).__name__} has feature maps of strides {[*info]}, expected 16 and 32 among them: choose a '
            'backbone that has them, for example mobilenext_100, mobilenetv2_100 or resnet18.')
    strided = f'blocks.{info[16]["stage"]}.0' if 'stage' in info[16] else ''  # the rows follow the stem, stage 0
    if isinstance(model, MobileNeXt):
        rows: Any = model.blocks
        last = f'blocks.{len(rows) - 1}.{len(rows[-1]) - 1}'
        # in a ghost block what passes the bottleneck by is part of the expansion
        ends = ['cat' if model.get_submodule(name).bypass_chs else 'pw_expand' for name in (strided, last)]
        return [f'{strided}.{ends[0]}', f'{last}.{ends[1]}', 'blocks']
    end = 'bn2' if isinstance(model, EfficientNet) else info[32]['module']  # behind its last 1x1 conv
    if strided and isinstance(dict(model.named_modules()).get(strided), InvertedResidual):
        return [f'{strided}.bn1', end]
    return [info[16]['module'], end]


class SSDLiteFeatureExtractor(nn.Module):
    """The six feature maps of SSDLite: the two taps of a backbone, and the authors' four extra blocks behind it."""

    def __init__(self, model: nn.Module, norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d) -> None:
        """
        Args:
            model: A model that timm created, without a classifier.
            norm_layer: Normalization of the extra blocks.
        """
        super().__init__()
        nodes = feature_nodes(model)
        self.body = create_feature_extractor(model, {node: str(i) for i, node in enumerate(nodes)})
        *taps, in_chs = retrieve_out_channels(self.body, (64, 64))
        self.out_channels = [*(taps if len(nodes) == 3 else [*taps, in_chs]), *(out_chs for out_chs, _ in _EXTRA)]
        self.extra = nn.ModuleList()
        for out_chs, ratio in _EXTRA:
            self.extra.append(_extra_block(in_chs, out_chs, ratio, norm_layer))
            in_chs = out_chs
        _normal_init(self.extra)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images (B, 3, H, W) to six maps (B, C, h, w), of strides 16 and 32 and four times the half of these."""
        maps = list(self.body(x).values())
        x = maps[-1]
        out = {'0': maps[0], '1': maps[1]}
        for i, block in enumerate(self.extra):
            x = block(x)
            out[str(i + 2)] = x
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> 'SSDLiteFeatureExtractor':
        """Copy `body` in its mode: torchvision's copy of it is in training mode, in torchvision 0.20 it fails."""
        root = nn.Module()
        for name in ('_modules', '_parameters', '_buffers'):
            setattr(root, name, deepcopy(getattr(self.body, name), memo))
        body = memo[id(self.body)] = DualGraphModule(
            root, deepcopy(self.body.train_graph), deepcopy(self.body.eval_graph), type(self.body).__name__)
        body.train(self.body.training)
        copied = memo[id(self)] = self.__new__(type(self))
        copied.__dict__ = deepcopy(self.__dict__, memo)
        return copied


def _extra_block(
        in_chs: int,
        out_chs: int,
        ratio: float,
        norm_layer: Callable[..., nn.Module],
) -> nn.Sequential:
    """Return the authors' extra block: a depthwise conv that strides, then the two pointwise of a SandGlass."""
    mid_chs = int(in_chs * ratio)
    return nn.Sequential(
        Conv2dNormActivation(
            in_chs, in_chs, 3, stride=2, groups=in_chs, norm_layer=norm_layer, activation_layer=nn.ReLU6),
        Conv2dNormActivation(in_chs, mid_chs, 1, norm_layer=norm_layer, activation_layer=None),
        Conv2dNormActivation(mid_chs, out_chs, 1, norm_layer=norm_layer, activation_layer=nn.ReLU6),
    )


def ssdlite320(
        backbone: str = 'mobilenext_100',
        num_classes: int = 91,
        pretrained_backbone: bool = False,
        weights_backbone: str | Path | Mapping[str, Any] | None = None,
        backbone_kwargs: Mapping[str, Any] | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
        anchor_generator: DefaultBoxGenerator | None = None,
        **kwargs: Any,
) -> SSD:
    """Build SSDLite at 320 x 320 pixels on a MobileNeXt or any other network of timm.

    As torchvision's `ssdlite320_mobilenet_v3_large`: it takes a list of images (3, H, W) with values from 0 to 1, in
    training a list of targets with `boxes` (N, 4) and `labels` (N,) too, and returns losses in training, else a list of
    `boxes`, `labels` and `scores`. Other than there the backbone keeps the norms and the initialization that timm gives
    it, and images are normalized with its mean and standard deviation.

    Args:
        backbone: Name of the backbone in timm.
        num_classes: Number of classes, the background, which is label 0, among them.
        pretrained_backbone: Take pretrained weights of the classifier, from where timm has them.
        weights_backbone: Weights of the backbone, a state dict or a file of them: a classifier's of any number of
            classes, or those of the authors' detector, which have the extra blocks too.
        backbone_kwargs: More arguments of `timm.create_model`.
        norm_layer: Normalization of the extra blocks and the heads; by default a batch norm with the authors' eps and
            momentum, which are PyTorch's, in the blocks and with torchvision's in the heads.
        anchor_generator: Default boxes on the six maps, by default torchvision's, from 0.2 to 0.95 of the image.
        **kwargs: Arguments of torchvision's `SSD`.

    Raises:
        ValueError: If the backbone has no feature maps of strides 16 and 32, or there is no class but the background.
        RuntimeError: If the weights are not of the MobileNeXt. Those of other networks are timm's to check.
    """
    if num_classes < 2:
        raise ValueError(
            f'num_classes={num_classes} leaves no class to detect: expected at least 2, the background is one of them.')
    arguments: dict[str, Any] = dict(backbone_kwargs or {})
    extra: dict[str, Any] = {}
    if weights_backbone is not None:
        weights = weights_backbone if isinstance(weights_backbone, Mapping) else read(weights_backbone)
        network, extra = authors.split_ssdlite(dict(weights))
        arguments['pretrained_cfg_overlay'] = dict(state_dict=network)
    model: Any = timm.create_model(
        backbone, pretrained=pretrained_backbone or weights_backbone is not None, num_classes=0, **arguments)
    features = SSDLiteFeatureExtractor(model, norm_layer or nn.BatchNorm2d)
    if extra:
        features.extra.load_state_dict(extra)

    # from here on the numbers are those of torchvision's ssdlite.py
    if anchor_generator is None:
        anchor_generator = DefaultBoxGenerator([[2, 3] for _ in features.out_channels], min_ratio=0.2, max_ratio=0.95)
    head = SSDLiteHead(
        features.out_channels, anchor_generator.num_anchors_per_location(), num_classes,
        norm_layer or partial(nn.BatchNorm2d, eps=0.001, momentum=0.03))
    defaults: dict[str, Any] = dict(
        score_thresh=0.001, nms_thresh=0.55, detections_per_img=300, topk_candidates=300,
        image_mean=[*model.pretrained_cfg['mean']], image_std=[*model.pretrained_cfg['std']])
    return SSD(features, anchor_generator, (320, 320), num_classes, head=head, **{**defaults, **kwargs})


def check_targets(
        targets: Sequence[Mapping[str, torch.Tensor]],
        num_classes: int,
        names: Sequence[str] | None = None,
) -> None:
    """Raise an error unless an SSD of so many classes can be trained on all targets.

    The network finds a box of no area when it comes to it, which may be in the second hour, and says of a label outside
    the classes no more than that it is out of bounds.

    Args:
        targets: What the network is given with the images: `boxes` (N, 4), as x1, y1, x2, y2, and `labels` (N,). An
            image without boxes has boxes (0, 4); it teaches nothing, since SSD takes background by the number of boxes.
        num_classes: Number of classes, the background among them.
        names: What to call the targets in an error, by default their numbers.

    Raises:
        ValueError: If boxes and labels do not go together, a box has no area, a label is not of the classes, or there
            are no boxes at all.
    """
    for i, target in enumerate(targets):
        name = names[i] if names else f'target {i}'
        boxes, labels = target['boxes'], target['labels']
        if boxes.shape != (len(labels), 4):
            raise ValueError(
                f'{name} has boxes of shape {tuple(boxes.shape)} and {len(labels)} labels: expected (N, 4) and N, for '
                'an image without boxes (0, 4) and 0.')
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            if not (x1 < x2 and y1 < y2):
                raise ValueError(
                    f'{name} has the box ({x1:g}, {y1:g}, {x2:g}, {y2:g}), which has no area: expected x1 < x2 and '
                    'y1 < y2. Correct the box or take it out.')
            if not 0 < label < num_classes:
                raise ValueError(
                    f'{name} has the label {label}: expected 1 to {num_classes - 1}, since num_classes={num_classes} '
                    'counts the background, which is 0.')
    if not any(len(target['labels']) for target in targets):
        raise ValueError(f'There are no boxes in {len(targets)} targets: expected some to learn from.')
