"""SSDLite on MobileNeXt: torchvision's detector on the feature maps that the authors chose.

torchvision's ssdlite.py with another backbone: its `SSD`, `SSDLiteHead` and `DefaultBoxGenerator`, so its losses and
its post-processing. The taps and the extra blocks are those of the authors' detector, which `authors.py` names.
"""
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.models import clean_state_dict, load_state_dict
from torch import fx
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import Conv2dNormActivation

from timm_mobilenext.mobilenext import MobileNeXt
from timm_mobilenext.weights import authors

# The authors' extra blocks: output channels, ratio of the bottleneck to the input channels
_EXTRA = ((512, 0.2), (256, 0.25), (256, 0.5), (128, 0.5))
_SCALES = 'anchor_generator.scales'  # key in a file


class _Tracer(fx.Tracer):
    """Traces into the modules that contain one of the named ones, and calls all others whole, with their hooks."""

    def __init__(self, names: Sequence[str] = ()) -> None:  # a copy is made without names
        super().__init__()
        self.names = names

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is called whole."""
        return not any(name.startswith(f'{module_qualified_name}.') for name in self.names)


def _body(model: Any) -> fx.GraphModule:
    """Return the model without its head, as a graph that returns the maps that SSDLite needs.

    They are the taps at strides 16 and 32, and the end, where the extra blocks start. In a MobileNeXt the taps are what
    enters the last depthwise conv of the block that strides from 16 to 32 and of the last block, as in the authors'
    detector. In timm's networks of inverted residuals they are what enters the depthwise conv that strides and the
    pooling, as in torchvision's, in any other network the features that `features_only` has.
    """
    info = {tap['reduction']: tap for tap in getattr(model, 'feature_info', [])}  # the last of each reduction
    if not {16, 32} <= info.keys():
        raise ValueError(
            f'{type(model).__name__} has feature maps of strides {[*info]}, SSDLite needs 16 and 32: choose another '
            'backbone, e.g. mobilenext_100, mobilenetv2_100 or resnet18.')
    is_ours = isinstance(model, MobileNeXt)
    strided = f'blocks.{info[16].get("stage")}.0.{"dw_end" if is_ours else "conv_dw"}'  # the rows follow the stem, 0
    last = f'blocks.{len(model.blocks) - 1}.{len(model.blocks[-1]) - 1}.dw_end' if is_ours else info[32]['module']
    is_there = strided in dict(model.named_modules())

    graph = _Tracer([strided if is_there else info[16]['module'], last]).trace(model)
    calls: dict[Any, Any] = {node.target: node for node in graph.nodes if node.op == 'call_module'}
    end = calls['global_pool'].args[0] if 'global_pool' in calls else calls[last]
    first = calls[strided].args[0] if is_there else calls[info[16]['module']]
    second = calls[last].args[0] if is_ours else end
    *nodes, output = graph.nodes
    output.args, output.type = ((first, second, end),), None
    for node in reversed(nodes):
        if not node.users and node.op != 'placeholder':
            graph.erase_node(node)
    return fx.GraphModule(model, graph)


class SSDLiteFeatureExtractor(nn.Module):
    """The six feature maps of SSDLite: the two taps of a backbone, and the authors' four extra blocks behind it."""

    def __init__(
            self, model: nn.Module, norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d, in_chans: int = 3) -> None:
        """
        Args:
            model: A model that timm created, without a classifier.
            norm_layer: Normalization of the extra blocks.
            in_chans: Number of input channels of the model.

        Raises:
            ValueError: If the model has no feature maps of strides 16 and 32.
        """
        super().__init__()
        self.body = _body(model).eval()
        with torch.no_grad():
            maps = self.body(torch.zeros(1, in_chans, 64, 64, device=next(model.parameters()).device))
        self.body.train()
        *taps, in_chs = (features.shape[1] for features in maps)
        self.out_channels = [*taps, *(out_chs for out_chs, _ in _EXTRA)]
        self.extra = nn.ModuleList()
        for out_chs, ratio in _EXTRA:
            self.extra.append(_extra_block(in_chs, out_chs, ratio, norm_layer))
            in_chs = out_chs

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images (B, C, H, W) to six maps (B, C', h, w) of strides 16, 32, 64, 128, 256 and 512."""
        first, second, x = self.body(x)
        out = {'0': first, '1': second}
        for i, block in enumerate(self.extra):
            x = block(x)
            out[str(i + 2)] = x
        return out


def _extra_block(in_chs: int, out_chs: int, ratio: float, norm_layer: Callable[..., nn.Module]) -> nn.Sequential:
    """Return the authors' extra block: a depthwise conv that strides, then the two pointwise of a SandGlass."""
    mid_chs = int(in_chs * ratio)
    block = nn.Sequential(
        Conv2dNormActivation(
            in_chs, in_chs, 3, stride=2, groups=in_chs, norm_layer=norm_layer, activation_layer=nn.ReLU6),
        Conv2dNormActivation(in_chs, mid_chs, 1, norm_layer=norm_layer, activation_layer=None),
        Conv2dNormActivation(mid_chs, out_chs, 1, norm_layer=norm_layer, activation_layer=nn.ReLU6),
    )
    for m in block.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.normal_(m.weight, std=0.03)  # torchvision's ssdlite.py, _normal_init
    return block


def _create_backbone(
        name: str, pretrained: bool, weights: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Create the backbone, and return it with the weights of the extra blocks if they are the authors' detector's."""
    if arguments.get('features_only'):
        raise ValueError('SSDLite needs the whole network: give features_only=False in backbone_kwargs.')
    extra: dict[str, Any] = {}
    overlay: dict[str, Any] = {}
    if weights is not None:
        weights = load_state_dict(str(weights)) if isinstance(weights, (str, Path)) else clean_state_dict(weights)
        network, extra = authors.split_ssdlite(weights)
        pretrained, overlay = True, dict(pretrained_cfg_overlay=dict(state_dict=network))
    return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments, **overlay), extra


def ssdlite320(
        backbone: str = 'mobilenext_100', num_classes: int = 91, pretrained_backbone: bool = False,
        weights_backbone: str | Path | Mapping[str, Any] | None = None,
        backbone_kwargs: Mapping[str, Any] | None = None, norm_layer: Callable[..., nn.Module] | None = None,
        anchor_generator: DefaultBoxGenerator | None = None, **kwargs: Any,
) -> SSD:
    """Build SSDLite at 320 x 320 pixels on a MobileNeXt or any other network of timm.

    Use it like torchvision's `ssdlite320_mobilenet_v3_large`. It takes a list of images (3, H, W) with values from 0 to
    1, in training also a list of targets with `boxes` (N, 4) and `labels` (N,). It returns losses in training, and
    otherwise a list of `boxes`, `labels` and `scores`. The backbone keeps the norms and the initialization that timm
    gives it, and images are normalized with its mean and standard deviation.

    Args:
        backbone: Name of the backbone in timm.
        num_classes: Number of classes, including the background, which is label 0.
        pretrained_backbone: Load the pretrained weights of the classifier, as `timm.create_model` does.
        weights_backbone: Weights of the backbone, a state dict or a file of them: a classifier's of any number of
            classes, or those of the authors' detector, which include the extra blocks.
        backbone_kwargs: More arguments of `timm.create_model`. With `in_chans` other than 3 the images have that many
            channels, each normalized with the average of the three means and standard deviations.
        norm_layer: Normalization of the extra blocks and the heads; by default batch norm, in the blocks with PyTorch's
            eps and momentum, as the authors have it, in the heads with torchvision's.
        anchor_generator: Default boxes on the six maps, by default torchvision's, from 0.2 to 0.95 of the image.
        **kwargs: Arguments of torchvision's `SSD`, `size` and `head` among them.

    Raises:
        ValueError: If the backbone has no feature maps of strides 16 and 32, is to be `features_only`, the
            background is the only class, or torchvision's `SSD` does not have an argument.
        RuntimeError: If the weights do not fit the MobileNeXt. timm checks those of other networks.
    """
    if num_classes < 2:
        raise ValueError(f'num_classes={num_classes} leaves no class to detect: give at least 2, with the background.')
    known = [name for name in inspect.signature(SSD).parameters if name != 'kwargs']
    for name in kwargs.keys() - known:  # torchvision ignores it without a word
        raise ValueError(f"{name} is not an argument of torchvision's SSD. Its arguments are {', '.join(known)}.")
    arguments: dict[str, Any] = dict(backbone_kwargs or {})
    config = dict(backbone=backbone, num_classes=num_classes, backbone_kwargs=arguments, norm_layer=norm_layer)
    model, extra = _create_backbone(backbone, pretrained_backbone, weights_backbone, arguments)
    in_chans = arguments.get('in_chans', 3)
    features = SSDLiteFeatureExtractor(model, norm_layer or nn.BatchNorm2d, in_chans)
    if extra:
        features.extra.load_state_dict(extra)
    mean, std = (model.pretrained_cfg[name] for name in ('mean', 'std'))
    if in_chans != 3:
        mean, std = ([sum(values) / len(values)] * in_chans for values in (mean, std))

    # from here on, the numbers are those of torchvision's ssdlite.py
    if anchor_generator is None:
        anchor_generator = DefaultBoxGenerator([[2, 3] for _ in features.out_channels], min_ratio=0.2, max_ratio=0.95)
    defaults: dict[str, Any] = dict(
        score_thresh=0.001, nms_thresh=0.55, detections_per_img=300, topk_candidates=300,
        image_mean=[*mean], image_std=[*std])
    head = SSDLiteHead(
        features.out_channels, anchor_generator.num_anchors_per_location(), num_classes,
        norm_layer or partial(nn.BatchNorm2d, eps=0.001, momentum=0.03))
    size = tuple(kwargs.pop('size', (320, 320)))  # a list in a file, which TorchScript does not take
    detector = SSD(features, anchor_generator, size, num_classes, **{'head': head, **defaults, **kwargs})
    detector.config = config | defaults | kwargs | dict(size=size)  # what `save` writes
    return detector


def save(model: SSD, path: str | Path, classes: Sequence[str]) -> None:
    """Write a detector to a safetensors file, with all that `load` needs to build it again.

    The scales of the default boxes are a tensor of the file. So `load_state_dict` refuses the file: it would load the
    weights into a detector of other default boxes.

    Args:
        model: What `ssdlite320` or `load` returned.
        path: The file, which is replaced when the new one is complete.
        classes: Name of each label, first that of the background.

    Raises:
        ValueError: If there are more or fewer names than classes.
        TypeError: If the model was built with an argument that JSON cannot hold, such as a `norm_layer`.
    """
    boxes, config = model.anchor_generator, model.config
    if len(classes) != config['num_classes']:
        raise ValueError(f'There are {len(classes)} class names: give {config["num_classes"]}, with the background.')
    anchors = dict(aspect_ratios=boxes.aspect_ratios, steps=boxes.steps, clip=boxes.clip)
    description = json.dumps(dict(config=config, classes=[*classes], anchors=anchors))
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    tensors[_SCALES] = torch.tensor(boxes.scales, dtype=torch.float64)
    part = Path(f'{path}.part')
    save_file(tensors, part, {'ssdlite320': description})
    part.replace(path)


def load(path: str | Path) -> tuple[SSD, list[str]]:
    """Build a detector from a file of `save`.

    Args:
        path: The file.

    Returns:
        The detector, in evaluation mode, and the name of each label, first that of the background.

    Raises:
        ValueError: If the file is not one of `save`.
    """
    try:
        with safe_open(path, 'pt') as file:
            description = json.loads(file.metadata()['ssdlite320'])
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(f'{path} is not a detector: give a file that timm_mobilenext.detection.save wrote.') from error
    tensors = load_file(path)
    boxes = DefaultBoxGenerator(scales=tensors.pop(_SCALES).tolist(), **description['anchors'])
    model = ssdlite320(anchor_generator=boxes, **description['config'])
    model.load_state_dict(tensors)
    return model.eval(), description['classes']
