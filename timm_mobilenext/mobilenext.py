"""MobileNeXt

Paper: `Rethinking Bottleneck Structure for Efficient Mobile Network Design` (ECCV 2020) -
https://arxiv.org/abs/2007.02269

The authors' code, which this is numerically equal to: https://github.com/zhoudaquan/rethinking_bottleneck_design at
195ee737952e2f8d729a14b51651748caf35794c, below cited as `mnext.py` (mobilenext/codebase/models/mnext.py, the ReLU6
family) and `model.py` (mobilenext/codebase/models/efficient_mnext/model.py, the SiLU and squeeze-excite family).
No code of theirs is kept. docs/models.md lists what differs from the paper and from the authors' code, and why.
"""
import copy
import math
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.forward_ad import unpack_dual
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.checkpoint import checkpoint

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Conv2dSame, DropPath, FrozenBatchNormAct2d, LayerType, PadType, SqueezeExcite, \
    create_aa, create_act_layer, create_classifier, create_conv2d, get_act_layer, get_norm_act_layer, get_norm_layer, \
    is_exportable, is_scriptable, make_divisible
from timm.models import build_model_with_cfg, clean_state_dict, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices  # the one private import, timm exports no public name for it
from torchvision.ops.misc import FrozenBatchNorm2d  # what timm freezes batch norms with

__all__ = ['MobileNeXt', 'SandGlass']

# The paper's architecture table, one row a stage, the same in mnext.py:153-163. The arXiv version prints n = 2 for the
# 960 row, the authors call that a typo (their issue #2).
_STAGES = (
    # t: reduction ratio, c: output channels at width 1.0, n: repeats, s: stride, k: depthwise kernel size
    (2, 96, 1, 2, 3),
    (6, 144, 1, 1, 3),
    (6, 192, 3, 2, 3),
    (6, 288, 3, 2, 3),
    (6, 384, 4, 1, 3),
    (6, 576, 4, 2, 3),
    (6, 960, 3, 1, 3),
    (6, 1280, 1, 1, 3),
)
# utils_i2rnet.py:245-251 beside model.py: the strides of the first two rows change places, three rows have 5x5 kernels
_STAGES_SE = (
    (2, 96, 1, 1, 3),
    (6, 144, 1, 2, 3),
    (6, 192, 3, 2, 5),
    (6, 288, 3, 2, 3),
    (6, 384, 4, 1, 5),
    (6, 576, 4, 2, 5),
    (6, 960, 3, 1, 3),
    (6, 1280, 1, 1, 3),
)


def _round_chs(chs: int, width_mult: float) -> int:
    """Scale channels as the authors do, mnext.py:167-173."""
    if not chs * width_mult >= 1:
        raise ValueError(
            f'width_mult={width_mult} leaves {chs * width_mult:g} of {chs} channels: expected a positive number that '
            'leaves at least one (the paper uses 0.35 to 1.4).')
    return make_divisible(chs * width_mult, 4 if width_mult == 0.1 else 8)


def _round_repeats(repeats: int, depth_mult: float) -> int:
    """Scale repeats as the authors do, utils_i2rnet.py, round_repeats."""
    if not depth_mult > 0:
        raise ValueError(f'depth_mult={depth_mult} leaves no blocks: expected a positive number.')
    return math.ceil(repeats * depth_mult)


@torch.jit.unused
def _is_eager(x: torch.Tensor) -> bool:
    """Whether operators on `x` just run, where forms that write in place or have a backward of their own are cheapest.

    What records operators gets plain ones: jit.trace, torch.compile and export, torch.fx and what else hands the layers
    something that is no plain tensor. So do the transforms of torch.func and forward-mode differentiation, for which
    such backwards have no rules.
    """
    return (
        type(x) is torch.Tensor
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()  # no public name; autograd.Function asks the same
        and unpack_dual(x).tangent is None
    )


class _ReLU6Function(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, inplace: bool) -> torch.Tensor:
        out = F.relu6(x, inplace)
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        # 0 where x <= 0 or x >= 6, which is where the output is 0 or 6
        return torch.ops.aten.hardtanh_backward(grad, ctx.saved_tensors[0], 0., 6.), None


class ReLU6(nn.ReLU6):
    """ReLU6 that keeps for the backward pass its output alone, which the next layer keeps in any case.

    PyTorch's keeps its input, of which it makes a copy where it writes in place. The gradients are equal to the bit.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Clamp x, of any shape, to 0 and 6."""
        if not torch.jit.is_scripting() and (torch.is_grad_enabled() and _is_eager(x)):
            return _ReLU6Function.apply(x, self.inplace)
        return F.relu6(x, self.inplace)


def _get_act_layer(act_layer: LayerType) -> Any:
    """Look up an activation as timm does: the form that saves memory unless the model is to be scripted or exported."""
    if act_layer == 'relu6' and not (is_exportable() or is_scriptable()):
        return ReLU6
    return get_act_layer(act_layer)


class _PartialIdentity(torch.autograd.Function):
    """Add the first channels of the shortcut to x in place. Autograd's own way to do so copies the whole gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shortcut: torch.Tensor, chs: int) -> torch.Tensor:
        ctx.chs = chs
        ctx.mark_dirty(x)
        x[:, :chs].add_(shortcut[:, :chs])
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        return grad, F.pad(grad[:, :ctx.chs], (0, 0, 0, 0, 0, grad.shape[1] - ctx.chs)), None


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Let `module` write to copies of its buffers, which are the running statistics of its norms."""
    buffers = [(m, name, buffer) for m in module.modules() for name, buffer in m.named_buffers(recurse=False)]
    for m, name, buffer in buffers:
        setattr(m, name, buffer.clone())
    try:
        yield
    finally:
        for m, name, buffer in buffers:
            setattr(m, name, buffer)


def _checkpoint(
        function: Callable[[torch.Tensor], torch.Tensor], module: nn.Module, x: torch.Tensor, **kwargs: Any,
) -> torch.Tensor:
    """Call function(x) and keep x alone for backward, which calls it again.

    The second call leaves the running statistics of `module` as they are. torch.compile knows no such contexts.
    """
    if not torch.compiler.is_compiling():
        kwargs['context_fn'] = lambda: (nullcontext(), _buffers_kept(module))
    return checkpoint(function, x, use_reentrant=False, **kwargs)


def _checkpoint_seq(blocks: Any, x: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        x = _checkpoint(block, block, x)
    return x


def _fold(conv: nn.Conv2d, norm: Any) -> nn.Conv2d:
    """Return a copy of `conv` that does what `conv` then the batch norm `norm` do in evaluation mode."""
    conv = copy.deepcopy(conv)
    with torch.no_grad():
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    return conv


def _is_foldable(norm: Any) -> bool:
    is_batch_norm = isinstance(norm, (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d, FrozenBatchNormAct2d))
    return is_batch_norm and norm.running_mean is not None


class ConvNorm(nn.Sequential):
    """Convolution `conv`, norm `bn`, activation `act` and anti-aliasing `aa`, the last two where asked for.

    It has the keys of timm's ConvNormAct and does what that does, without the modules that do nothing: in eager mode at
    batch size 1 to call those took 3 % of a network's time. `timm.utils.reparameterize_model` can fold it.
    """

    def __init__(
            self,
            in_chs: int,
            out_chs: int,
            kernel_size: int = 1,
            stride: int = 1,
            dilation: int = 1,
            groups: int = 1,
            padding: PadType = '',
            apply_act: bool = True,
            norm_layer: LayerType = 'batchnorm2d',
            act_layer: LayerType = 'relu6',
            aa_layer: LayerType | None = None,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            in_chs: Number of input channels.
            out_chs: Number of output channels.
            kernel_size: Kernel size of the conv, in pixels.
            stride: Stride of the conv, or of the anti-aliasing in its place.
            dilation: Dilation of the conv.
            groups: Groups of the conv.
            padding: Padding of the conv, '' symmetric or 'same' as TensorFlow's.
            apply_act: Whether there is an activation.
            norm_layer: Normalization.
            act_layer: Activation.
            aa_layer: Anti-aliasing layer, where there is a stride.
            device: Device of the parameters.
            dtype: Type of the parameters.
        """
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        super().__init__()
        if stride == 1:
            aa_layer = None
        self.conv = create_conv2d(
            in_chs, out_chs, kernel_size, stride=1 if aa_layer else stride, dilation=dilation, groups=groups,
            padding=padding, **dd)
        if getattr(norm_layer, 'func', norm_layer) in ('batchnorm2d', nn.BatchNorm2d):
            self.bn = get_norm_layer(norm_layer)(out_chs, **dd)
            if apply_act:
                self.act = create_act_layer(act_layer, inplace=True) or nn.Identity()
        else:  # some have an activation in them
            self.bn = get_norm_act_layer(norm_layer, act_layer)(out_chs, apply_act=apply_act, **dd)
        if aa_layer:
            self.aa = create_aa(aa_layer, out_chs, stride=stride, **dd)

    def after_conv(self, x: torch.Tensor) -> torch.Tensor:
        """Map what the conv returned, (B, out_chs, H, W), to the output of the unit."""
        for layer in list(self)[1:]:
            x = layer(x)
        return x

    def fuse(self) -> nn.Module:
        """Return the convolution with the batch norm folded in, followed by what else there is.

        The running statistics are folded whatever the training mode, as timm's scripts reparameterize a model before
        they call `eval()`. A unit whose norm is no batch norm is returned as it is.
        """
        if not _is_foldable(self.bn):
            return self
        layers = OrderedDict(self.named_children(), conv=_fold(self.conv, self.bn))
        del layers['bn']
        return nn.Sequential(layers) if len(layers) > 1 else layers['conv']


class _StemFusion:
    """Let `timm.utils.reparameterize_model` fold the stem, whose conv and norm are two children of the model.

    timm asks one child at a time for its fused form. The conv is asked first and leaves a copy of itself here, then
    the norm folds itself into that copy. Where one of the two was replaced since (a stem for other inputs, a
    synchronized or frozen norm) the other finds no partner and stays what it is, so the answer stays right.
    """

    def __init__(self, conv: nn.Conv2d, norm: Any) -> None:
        self.conv, self.norm = conv, norm
        self.taken: nn.Conv2d | None = None
        # instance attributes: bound methods follow `copy.deepcopy` and pickle to the copies of conv and norm
        vars(conv)['fuse'], vars(norm)['fuse'] = self.fuse_conv, self.fuse_norm

    def fuse_conv(self) -> nn.Module:
        self.taken = copy.deepcopy(self.conv)
        del vars(self.taken)['fuse']
        return self.taken

    def fuse_norm(self) -> nn.Module:
        if self.taken is None or not _is_foldable(self.norm):
            return self.norm
        folded = _fold(self.taken, self.norm)
        self.taken.weight, self.taken.bias = folded.weight, folded.bias
        return self.norm.act


class SandGlass(nn.Module):
    """SandGlass block: spatial convolutions and the shortcut at the wide ends, the bottleneck between them.

        x (B, in_chs, H, W)
          dw_start   depthwise k x k, act                in_chs
          pw_reduce  pointwise, linear                   in_chs // reduction_ratio
          pw_expand  pointwise, act                      out_chs
          dw_end     depthwise k x k, stride, linear     out_chs
          se         squeeze-excite, where asked for     out_chs
          + x        on the first identity_ratio of the channels
        (B, out_chs, ceil(H / stride), ceil(W / stride))

    It takes the place of an inverted residual in other networks: same input and output, and a shortcut where the
    shapes allow one. Source: the paper; mnext.py:62-147; model.py, MBConvBlockV1 and GhostI2RBlock.
    """

    def __init__(
            self,
            in_chs: int,
            out_chs: int,
            stride: int = 1,
            dilation: int = 1,
            reduction_ratio: int = 6,
            identity_ratio: float = 1.0,
            noskip: bool = False,
            dw_kernel_size: int = 3,
            dw_start: bool = True,
            dw_end: bool = True,
            max_expand_ratio: int = 6,
            pw_groups: int = 1,
            ghost: bool = False,
            se_chs: int = 0,
            pad_type: PadType = '',
            act_layer: LayerType = 'relu6',
            norm_layer: LayerType = 'batchnorm2d',
            aa_layer: LayerType | None = None,
            drop_path_rate: float = 0.,
            recompute_act: bool = False,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            in_chs: Number of input channels.
            out_chs: Number of output channels.
            stride: Stride of the last depthwise conv.
            dilation: Dilation of the depthwise convs.
            reduction_ratio: Ratio of input channels to those of the bottleneck.
            identity_ratio: Identity tensor multiplier: the share of the channels, counted from the first, that takes
                the shortcut.
            noskip: Leave the shortcut out. Without it there is one where in_chs == out_chs and stride == 1.
            dw_kernel_size: Kernel size of the depthwise convs, in pixels.
            dw_start: Whether the block starts with a depthwise conv.
            dw_end: Whether the block ends with a depthwise conv. A block that strides needs it.
            max_expand_ratio: Steepest ratio of output channels to those of the bottleneck, 0 for no limit. A narrower
                bottleneck is widened to the next multiple of 16.
            pw_groups: Groups of the two pointwise convs.
            ghost: Send only the first half of the channels through the bottleneck, the second half is concatenated
                behind its output (the authors' GhostI2RBlock).
            se_chs: Width of the squeeze-excite bottleneck, 0 for no squeeze-excite.
            pad_type: Padding of the depthwise convs, '' symmetric or 'same' as TensorFlow's.
            act_layer: Activation after the first depthwise conv, the expansion and in the squeeze-excite.
            norm_layer: Normalization after every conv.
            aa_layer: Anti-aliasing layer behind a depthwise conv that strides.
            drop_path_rate: Probability to drop the block, per sample, where its output is added to the shortcut.
            recompute_act: Recompute norms and activations between the convs in the backward pass, to save memory.
            device: Device of the parameters.
            dtype: Type of the parameters.

        Raises:
            ValueError: If `identity_ratio` is outside [0, 1], the block strides without a last depthwise conv, or a
                ghost block has fewer output channels than pass the bottleneck by.
        """
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        super().__init__()
        if not 0 <= identity_ratio <= 1:
            raise ValueError(
                f'identity_ratio={identity_ratio} is not a share of the channels: expected a number from 0 (no '
                'shortcut) to 1 (all channels), e.g. 0.5 for the first half.')
        if stride > 1 and not dw_end:
            raise ValueError(f'stride={stride} needs the last depthwise conv: set dw_end=True, or stride=1.')
        self.out_chs = out_chs
        self.recompute_act = recompute_act
        has_skip = in_chs == out_chs and stride == 1 and not noskip
        # The authors' C // divisor, exactly: 1/3 of a multiple of three must not fall below it by float rounding.
        self.identity_chs = math.floor(out_chs * identity_ratio + 1e-6) if has_skip else 0
        # number of channels that enter the bottleneck, and of those that pass it by
        self.pw_chs = in_chs // 2 if ghost else in_chs
        self.bypass_chs = in_chs - self.pw_chs
        pw_out_chs = out_chs - self.bypass_chs
        if pw_out_chs < 1:
            raise ValueError(
                f'ghost=True lets {self.bypass_chs} of in_chs={in_chs} channels pass the bottleneck by: expected '
                f'more than that in out_chs={out_chs}, or ghost=False.')

        mid_chs = in_chs // reduction_ratio
        if max_expand_ratio and mid_chs < out_chs / max_expand_ratio:
            mid_chs = make_divisible(math.ceil(out_chs / max_expand_ratio), 16)  # mnext.py:66-69
        mid_chs = make_divisible(mid_chs, 2)  # model.py; changes nothing where the line above applies

        act: Any = _get_act_layer(act_layer)
        layers: dict[str, Any] = dict(norm_layer=norm_layer, act_layer=act, **dd)
        dw: dict[str, Any] = dict(kernel_size=dw_kernel_size, dilation=dilation, padding=pad_type, **layers)
        self.dw_start = ConvNorm(in_chs, in_chs, groups=in_chs, **dw) if dw_start else nn.Identity()
        self.pw_reduce = ConvNorm(self.pw_chs, mid_chs, groups=pw_groups, apply_act=False, **layers)
        self.pw_expand = ConvNorm(mid_chs, pw_out_chs, groups=pw_groups, **layers)
        self.dw_end = ConvNorm(
            out_chs, out_chs, stride=stride, groups=out_chs, apply_act=False, aa_layer=aa_layer, **dw,
        ) if dw_end else nn.Identity()
        self.se = SqueezeExcite(out_chs, rd_channels=se_chs, act_layer=act, **dd) if se_chs else nn.Identity()
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate and self.identity_chs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_chs, H, W) to (B, out_chs, ceil(H / stride), ceil(W / stride))."""
        shortcut = x
        if not torch.jit.is_scripting() and (self.recompute_act and torch.is_grad_enabled() and _is_eager(x)):
            x = self._recomputed_convs(x)
        else:
            x = self._convs(x)
        return self._add_identity(self.se(x), shortcut)

    def _convs(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dw_start(x)
        if self.bypass_chs > 0:
            # split, since the gradient of a slice is never channels_last
            x, bypass = x.split([self.pw_chs, self.bypass_chs], dim=1)
            x = torch.cat([self.pw_expand(self.pw_reduce(x)), bypass], dim=1)
        else:
            x = self.pw_expand(self.pw_reduce(x))
        return self.dw_end(x)

    def _recomputed_convs(self, x: torch.Tensor) -> torch.Tensor:
        """Run `_convs` and keep for the backward pass what the convs return, not what norms and activations do.

        Where half of the channels pass some convs by, or not all are a ConvNorm any more, the input alone is kept.
        """
        units: list[Any] = [
            m for m in (self.dw_start, self.pw_reduce, self.pw_expand, self.dw_end) if not isinstance(m, nn.Identity)]
        if self.bypass_chs or not all(isinstance(unit, ConvNorm) for unit in units):
            return _checkpoint(self._convs, self, x)
        x = units[0].conv(x)
        for unit, following in pairwise(units):
            def norm_to_conv(x: torch.Tensor, unit: Any = unit, following: Any = following) -> torch.Tensor:
                return following.conv(unit.after_conv(x))
            x = _checkpoint(norm_to_conv, unit, x, preserve_rng_state=False)
        return units[-1].after_conv(x)

    def _add_identity(self, x: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """Add the shortcut to the first channels of x, in the form that is best where it runs.

        In eager mode that is in place, as x is the output of a norm, a conv or a product, which all keep their inputs
        for the backward pass and not their output. (Without `dw_end` it is that of an activation, which is kept.)
        Where operators are recorded it is a form without writes, which every compiler and exporter takes.
        """
        chs = self.identity_chs
        if chs == 0:
            return x
        if chs == self.out_chs:
            x = self.drop_path(x)
        elif self.training and not isinstance(self.drop_path, nn.Identity):
            # Channels without a shortcut have no other path, so they are never dropped.
            scale = self.drop_path(torch.ones_like(x[:, :chs, :1, :1]))
            x = x * F.pad(scale, (0, 0, 0, 0, 0, self.out_chs - chs), value=1.)
        if not torch.jit.is_scripting() and (
                _is_eager(x) and x.dtype == shortcut.dtype and not isinstance(self.dw_end, nn.Identity)):
            if chs == self.out_chs:
                return x.add_(shortcut)
            if torch.is_grad_enabled():
                return _PartialIdentity.apply(x, shortcut, chs)
            x[:, :chs].add_(shortcut[:, :chs])
            return x
        if chs == self.out_chs:
            return x + shortcut
        return torch.cat([x[:, :chs] + shortcut[:, :chs], x[:, chs:]], dim=1)


class MobileNeXt(nn.Module):
    """MobileNeXt, the network of SandGlass blocks.

    Stem, rows of the architecture table (`blocks.<row>.<repeat>`), global pooling, classifier; no conv head.
    """

    def __init__(
            self,
            stages: Sequence[tuple[int, int, int, int, int]] = _STAGES,
            num_classes: int = 1000,
            in_chans: int = 3,
            global_pool: str = 'avg',
            output_stride: int = 32,
            width_mult: float = 1.0,
            depth_mult: float = 1.0,
            identity_ratio: float = 1.0,
            keep_3x3: bool = True,
            max_expand_ratio: int = 6,
            pw_groups: int = 1,
            ghost: bool = False,
            se_ratio: float = 0.,
            pad_type: PadType = '',
            act_layer: LayerType = 'relu6',
            norm_layer: LayerType = 'batchnorm2d',
            aa_layer: LayerType | None = None,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            recompute_act: bool = False,
            weight_init: str = 'fan_out',
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            stages: Architecture table, rows of reduction ratio, output channels, repeats, stride, dw kernel size.
            num_classes: Number of classes, 0 for no classifier.
            in_chans: Number of input image channels.
            global_pool: Global pooling type: 'avg', 'max', 'avgmax', 'catavgmax' or '' for none.
            output_stride: Ratio of input to output resolution, 8, 16 or 32. Below 32 strides become dilation.
            width_mult: Width multiplier of all channels; the last row does not shrink below its own (mnext.py:170).
            depth_mult: Multiplier of the repeats, rounded up.
            identity_ratio: Identity tensor multiplier: the share of the channels that takes the shortcuts.
            keep_3x3: Keep both depthwise convs in rows of a single block with stride 1 (mnext.py:184).
            max_expand_ratio: Steepest expansion of a bottleneck, 0 for no limit (see SandGlass).
            pw_groups: Groups of the pointwise convs in blocks with both depthwise convs.
            ghost: Let half of the channels pass the bottleneck by in blocks with both depthwise convs.
            se_ratio: Width of the squeeze-excite bottlenecks, 0 for no squeeze-excite. A share of the output channels
                over the reduction ratio or, in a ghost network, of half the input channels (model.py).
            pad_type: Padding of convs, '' symmetric or 'same' as TensorFlow's.
            act_layer: Activation layer.
            norm_layer: Normalization layer.
            aa_layer: Anti-aliasing layer behind the depthwise convs that stride.
            drop_rate: Dropout probability before the classifier.
            drop_path_rate: Stochastic depth. Block i of n is dropped with probability drop_path_rate * i / n, as in
                the authors' code (model.py, extract_features) and timm's EfficientNet.
            recompute_act: Recompute norms and activations between the convs of the blocks in the backward pass, to
                train in half the memory.
            weight_init: 'fan_out' for the init of mnext.py, 'torch' for PyTorch's, which model.py leaves in place,
                'skip' for none yet, where weights are going to be loaded.
            device: Device of the parameters.
            dtype: Type of the parameters.

        Raises:
            ValueError: If a multiplier leaves no channel or block, or an argument is not one of the values above.
        """
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f'output_stride={output_stride} is not supported: expected 8, 16 or 32.')
        if weight_init not in ('fan_out', 'torch', 'skip'):
            raise ValueError(f"weight_init={weight_init!r} is not supported: expected 'fan_out', 'torch' or 'skip'.")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.weight_init = weight_init
        self.grad_checkpointing = False

        stem_chs = _round_chs(32, width_mult)
        act_layer = _get_act_layer(act_layer)
        self.conv_stem = create_conv2d(in_chans, stem_chs, 3, stride=2, padding=pad_type, **dd)
        self.bn1 = get_norm_act_layer(norm_layer, act_layer)(stem_chs, inplace=True, **dd)
        _StemFusion(self.conv_stem, self.bn1)

        depths = [_round_repeats(n, depth_mult) for _, _, n, _, _ in stages]
        rows: list[Any] = []
        # taps of the outputs before each stride, the stem's among them unless the first row keeps its resolution
        feature_info: list[dict[str, Any]] = []
        if stages[0][3] > 1:
            feature_info.append(dict(num_chs=stem_chs, reduction=2, module='bn1', stage=0))
        in_chs, reduction, dilation, block_idx = stem_chs, 2, 1, 0
        for row, (ratio, chs, repeats, row_stride, kernel_size) in enumerate(stages):
            is_last = row == len(stages) - 1
            out_chs = _round_chs(chs, max(width_mult, 1) if is_last else width_mult)
            keep_dws = keep_3x3 and repeats == 1 and row_stride == 1
            blocks = []
            for repeat in range(depths[row]):
                stride = row_stride if repeat == 0 else 1
                # Which depthwise convs a block has and whether a shortcut, mnext.py:75-134 and MBConvBlockV1 alike;
                # they ignore the stride of a row that keeps its channels (row 2 at widths 0.124 to 0.138), we do not.
                is_full = ratio == 2 or in_chs == out_chs or (keep_dws and repeat == 0)
                has_skip = ratio != 2 and in_chs == out_chs and stride == 1 and not (keep_dws and repeat == 0)
                if ghost:
                    se_chs = max(1, int(in_chs * se_ratio * 0.5)) if se_ratio else 0
                else:
                    se_chs = max(1, int(out_chs / ratio * se_ratio)) if se_ratio else 0
                # A stride that would pass output_stride becomes dilation of what comes after it.
                dilate = stride if reduction * stride > output_stride else 1
                blocks.append(SandGlass(
                    in_chs,
                    out_chs,
                    stride=stride // dilate,
                    dilation=dilation,
                    reduction_ratio=ratio,
                    identity_ratio=identity_ratio,
                    noskip=not has_skip,
                    dw_kernel_size=kernel_size,
                    dw_start=is_full,
                    dw_end=is_full or stride > 1,
                    max_expand_ratio=max_expand_ratio,
                    pw_groups=pw_groups if is_full else 1,
                    ghost=ghost and is_full,
                    se_chs=se_chs,
                    pad_type=pad_type,
                    act_layer=act_layer,
                    norm_layer=norm_layer,
                    aa_layer=aa_layer,
                    drop_path_rate=drop_path_rate * block_idx / sum(depths),
                    recompute_act=recompute_act,
                    **dd,
                ))
                dilation *= dilate
                reduction *= stride // dilate
                in_chs = out_chs
                block_idx += 1
            rows.append(nn.Sequential(*blocks))
            if is_last or stages[row + 1][3] > 1:
                feature_info.append(
                    dict(num_chs=out_chs, reduction=reduction, module=f'blocks.{row}', stage=row + 1))
        self.blocks = nn.Sequential(*rows)
        self.feature_info = feature_info
        self.stage_ends = [info['stage'] for info in feature_info]

        self.num_features = in_chs
        self.global_pool, self.classifier = create_classifier(in_chs, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

        if weight_init != 'skip' and not self.conv_stem.weight.is_meta:  # no values there, and half of the time
            self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialize the weights as the authors do.

        Args:
            needs_reset: Reset all parameters and buffers first, as a model needs it after `to_empty()`.
        """
        m: Any
        for m in self.modules():
            if needs_reset and hasattr(m, 'reset_parameters'):
                m.reset_parameters()
            if self.weight_init != 'torch':  # mnext.py:203-216
                if isinstance(m, nn.Conv2d):
                    # fan-out of the whole layer: the authors do not divide it by the groups of a depthwise conv
                    nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')
                    if m.bias is not None:
                        nn.init.zeros_(m.bias)
                elif isinstance(m, nn.Linear):
                    nn.init.normal_(m.weight, 0, 0.01)
                    nn.init.zeros_(m.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters to keep from weight decay: none beside norms and biases, timm's rule."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the patterns that group parameters by depth, for layer decay.

        Args:
            coarse: One group per row of the table, otherwise one per block.
        """
        return dict(stem=r'^conv_stem|bn1', blocks=r'^blocks\.(\d+)' if coarse else r'^blocks\.(\d+)\.(\d+)')

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations.

        The running statistics are updated once a step, by the forward pass, unlike those of timm's other networks with
        batch norm. The checkpoints are the non-reentrant ones of PyTorch, whatever timm is set to.

        Args:
            enable: Whether to enable it.
        """
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier, `nn.Identity` where there is none."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier.

        Args:
            num_classes: Number of classes, 0 for no classifier.
            global_pool: Global pooling type, the current one is kept if None.
        """
        param = next(self.parameters())
        self.num_classes = num_classes
        if global_pool is None:
            global_pool = self.global_pool.pool_type
        self.global_pool, self.classifier = create_classifier(
            self.num_features, num_classes, pool_type=global_pool, device=param.device, dtype=param.dtype)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.classifier.train(self.training)

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: int | list[int] | None = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
            extra_blocks: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the final features together with intermediate ones.

        Args:
            x: Images, (B, in_chans, H, W).
            indices: Take the last n taps if int, all if None, the given ones if a list.
            norm: Without effect, all taps are the outputs of whole blocks.
            stop_early: Stop at the last tap that is asked for.
            output_fmt: Layout of the features, 'NCHW' only.
            intermediates_only: Return the intermediate features alone.
            extra_blocks: Let `indices` count the stem and every row of the table, not the taps of `feature_info`.

        Returns:
            The intermediate features, each (B, C, H', W'), behind the final ones unless `intermediates_only`.
        """
        assert output_fmt in ('NCHW',), 'Output shape must be NCHW.'
        intermediates = []
        if extra_blocks:
            take_indices, max_index = feature_take_indices(len(self.blocks) + 1, indices)
        else:
            take_indices, max_index = feature_take_indices(len(self.stage_ends), indices)
            take_indices = [self.stage_ends[i] for i in take_indices]
            max_index = self.stage_ends[max_index]

        x = self.bn1(self.conv_stem(x))  # index 0
        if 0 in take_indices:
            intermediates.append(x)
        if torch.jit.is_scripting() or not stop_early:  # can't slice blocks in torchscript
            blocks = self.blocks
        else:
            blocks = self.blocks[:max_index]
        for row, block in enumerate(blocks, start=1):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = _checkpoint_seq(block, x)
            else:
                x = block(x)
            if row in take_indices:
                intermediates.append(x)

        if intermediates_only:
            return intermediates
        return x, intermediates

    def prune_intermediate_layers(
            self,
            indices: int | list[int] = 1,
            prune_norm: bool = False,
            prune_head: bool = True,
            extra_blocks: bool = False,
    ) -> list[int]:
        """Remove the layers behind the last intermediate feature that is asked for.

        Args:
            indices: As in `forward_intermediates`.
            prune_norm: Without effect, there is no norm behind the last block.
            prune_head: Remove the classifier and the pooling too; they go in any case if blocks do.
            extra_blocks: As in `forward_intermediates`.

        Returns:
            The indices that were asked for, as non-negative numbers.
        """
        if extra_blocks:
            take_indices, max_index = feature_take_indices(len(self.blocks) + 1, indices)
        else:
            take_indices, max_index = feature_take_indices(len(self.stage_ends), indices)
            max_index = self.stage_ends[max_index]
        prune_end = max_index < len(self.blocks)
        rows: Any = self.blocks[:max_index]
        self.blocks = rows
        self.num_features = rows[-1][-1].out_chs if max_index else self.conv_stem.out_channels
        if prune_head or prune_end:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, in_chans, H, W) to features (B, num_features, H / 32, W / 32)."""
        x = self.bn1(self.conv_stem(x))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for row in self.blocks:
                x = _checkpoint_seq(row, x)
        else:
            x = self.blocks(x)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Map features (B, num_features, H, W) to logits (B, num_classes).

        Args:
            x: Output of `forward_features`.
            pre_logits: Return what goes into the classifier, (B, head_hidden_size).
        """
        x = self.global_pool(x)
        if self.drop_rate > 0.:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, in_chans, H, W) to logits (B, num_classes)."""
        x = self.forward_features(x)
        x = self.forward_head(x)
        return x


# The authors' module names, all that this package knows of their layouts. A block of mnext.py and MBConvBlockV1 is a
# Sequential, so the name of a layer depends on whether the block starts with a depthwise conv; the others have names.
_OFFICIAL_STEM_AND_HEAD = {
    'features.0.0': 'conv_stem', 'features.0.1': 'bn1', 'classifier.1': 'classifier',  # mnext.py
    '_conv_stem': 'conv_stem', '_bn0': 'bn1', '_fc': 'classifier',  # model.py
}
_OFFICIAL_FULL = {
    '0': 'dw_start.conv', '1': 'dw_start.bn', '3': 'pw_reduce.conv', '4': 'pw_reduce.bn',
    '5': 'pw_expand.conv', '6': 'pw_expand.bn', '8': 'dw_end.conv', '9': 'dw_end.bn',
}
_OFFICIAL_TRANSITION = {
    '0': 'pw_reduce.conv', '1': 'pw_reduce.bn', '2': 'pw_expand.conv', '3': 'pw_expand.bn',
    '5': 'dw_end.conv', '6': 'dw_end.bn',
}
_OFFICIAL_NAMED = {
    # GhostI2RBlock, and I2RBlock of the authors' efficientnet_blocks.py
    'dwise_conv1': 'dw_start.conv', 'bn1': 'dw_start.bn', 'project_layer': 'pw_reduce.conv', 'bn2': 'pw_reduce.bn',
    'expand_layer': 'pw_expand.conv', 'bn3': 'pw_expand.bn', 'dwise_conv2': 'dw_end.conv', 'bn4': 'dw_end.bn',
    # I2RConvBlock
    '_project_conv': 'dw_start.conv', '_bn0': 'dw_start.bn', '_linear1': 'pw_reduce.conv', '_bn1': 'pw_reduce.bn',
    '_linear2': 'pw_expand.conv', '_bn2': 'pw_expand.bn', '_expand_conv': 'dw_end.conv', '_bn3': 'dw_end.bn',
    # squeeze-excite of model.py and of efficientnet_blocks.py
    '_se_reduce': 'se.fc1', '_se_expand': 'se.fc2', 'se.conv_reduce': 'se.fc1', 'se.conv_expand': 'se.fc2',
}
_OFFICIAL_BLOCK = re.compile(r'(features\.\d+|_blocks\.\d+|blocks\.\d+\.\d+)\.(?:conv\.|features\.)?((?:se\.)?\w+)')
_EFFICIENTMNEXT_KEY = 'blocks.0.0.project_layer.weight'  # of efficientnet.py, where stem and head have our names


def checkpoint_filter_fn(state_dict: dict[str, Any], model: MobileNeXt) -> dict[str, Any]:
    """Map a checkpoint in the authors' layout to the model's, by name; a checkpoint in the model's layout passes.

    Takes a training checkpoint apart (its EMA weights where it has them, as timm's loader) and drops the authors'
    `_bn1.*`, which model.py builds and saves but never uses. The identity tensor multiplier is not in a file: it is
    part of the architecture, `mobilenext_100` for the authors' 74.02 file and `mobilenext_100_id050` for 74.09.

    Args:
        state_dict: A state dict or a training checkpoint that holds one.
        model: The MobileNeXt to load it into.

    Returns:
        The state dict in the model's layout, the given one itself if that is what it was.

    Raises:
        RuntimeError: If keys or shapes are not the model's, but for what timm adapts: classifier and input channels.
    """
    for key in ('state_dict_ema', 'model_ema', 'state_dict', 'model'):
        if isinstance(state_dict.get(key), dict):
            state_dict = state_dict[key]
            break
    if any(key.startswith(('module.', '_orig_mod.')) for key in state_dict):  # DDP and torch.compile
        state_dict = clean_state_dict(state_dict)
    if {'features.0.0.weight', '_conv_stem.weight', _EFFICIENTMNEXT_KEY} & state_dict.keys():
        state_dict = _from_official(state_dict, model)
    _check_fit(state_dict, model)
    return state_dict


def _from_official(state_dict: dict[str, Any], model: MobileNeXt) -> dict[str, Any]:
    if _EFFICIENTMNEXT_KEY in state_dict and (isinstance(model.conv_stem, Conv2dSame) or model.bn1.eps != 1e-5):
        raise RuntimeError(
            "The checkpoint has the keys of the authors' class Efficientmnext, which pads symmetrically and has batch "
            'norms of eps 1e-05 (efficientnet.py); this model does not, and would answer wrongly without an error. '
            "Create the model with pad_type='', bn_eps=1e-5 and bn_momentum=0.1.")
    rows: Any = model.blocks
    places = {f'blocks.{row}.{i}': block for row, blocks in enumerate(rows) for i, block in enumerate(blocks)}
    prefixes = {prefix: prefix for prefix in places}
    for i, prefix in enumerate(places):
        prefixes[f'_blocks.{i}'] = prefixes[f'features.{i + 1}'] = prefix  # mnext.py counts the stem as first feature
    out = {}
    for key, value in state_dict.items():
        if key.startswith('_bn1.'):
            continue
        module, _, leaf = key.rpartition('.')
        name = _OFFICIAL_STEM_AND_HEAD.get(module)
        match = _OFFICIAL_BLOCK.fullmatch(module)
        if match and match[1] in prefixes:
            prefix = prefixes[match[1]]
            is_full = isinstance(places[prefix].dw_start, ConvNorm)
            layers = {**(_OFFICIAL_FULL if is_full else _OFFICIAL_TRANSITION), **_OFFICIAL_NAMED}
            name = f'{prefix}.{layers[match[2]]}' if match[2] in layers else None
        out[key if name is None else f'{name}.{leaf}'] = value  # an unknown key is kept for _check_fit to report
    return out


def _check_fit(state_dict: dict[str, Any], model: MobileNeXt) -> None:
    """Raise RuntimeError unless `state_dict` has the model's keys and shapes, classifier and input channels aside.

    timm loads with strict=False when classes or features differ, which would take any checkpoint at all in silence.
    """
    def first(keys: list[str]) -> str:
        return ', '.join(keys[:3]) + (f' and {len(keys) - 3} more' if len(keys) > 3 else '')

    def shape(key: str, tensor: torch.Tensor) -> tuple[int, ...]:
        full = tuple(tensor.shape)
        return full[:1] + full[2:] if key == 'conv_stem.weight' else full

    expected = model.state_dict()
    unknown = [k for k in state_dict if k not in expected and not k.startswith('classifier.')]
    missing = [
        k for k in expected
        if k not in state_dict and not k.startswith('classifier.') and not k.endswith('num_batches_tracked')
    ]
    if unknown or missing:
        raise RuntimeError(
            'The checkpoint is not of this MobileNeXt:'
            + (f' it has {first(unknown)}, which the model does not have;' if unknown else '')
            + (f' it lacks {first(missing)};' if missing else '')
            + " expected the keys of the authors' files or of this package for the same architecture. Create the"
              ' architecture that the checkpoint was made from.')
    for key in (k for k in expected if k in state_dict and not k.startswith('classifier.')):
        if shape(key, state_dict[key]) != shape(key, expected[key]):
            raise RuntimeError(
                f'The checkpoint is of another width or architecture: {key} has shape {tuple(state_dict[key].shape)},'
                f' expected {tuple(expected[key].shape)}. Create the architecture or width_mult that the checkpoint was'
                ' made from.')


def _cfg(url: str = '', **kwargs: Any) -> dict[str, Any]:
    return {
        'url': url, 'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': (7, 7),
        'crop_pct': 0.875, 'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'conv_stem', 'classifier': 'classifier',
        'paper_ids': 'arXiv:2007.02269',
        'paper_name': 'Rethinking Bottleneck Structure for Efficient Mobile Network Design',
        'origin_url': 'https://github.com/zhoudaquan/rethinking_bottleneck_design',
        **kwargs,
    }


# Owner of the repositories on the Hub; a mirror under another name is set in the environment, before the import.
HUB_OWNER = os.environ.get('TIMM_MOBILENEXT_HUB_OWNER') or 'timm-mobilenext'

# The file name keeps timm from taking a pickle where a repository has no safetensors. The licence is that of the
# authors' weights. All other architectures get the tag `untrained`.
_in1k_cfg = partial(_cfg, hf_hub_filename='model.safetensors', license='bsd-3-clause-clear')
default_cfgs = generate_default_cfgs({
    'mobilenext_100.in1k': _in1k_cfg(hf_hub_id=f'{HUB_OWNER}/mobilenext_100.in1k'),
    'mobilenext_100_id050.in1k': _in1k_cfg(hf_hub_id=f'{HUB_OWNER}/mobilenext_100_id050.in1k'),
    'mobilenext_s.in1k': _in1k_cfg(hf_hub_id=f'{HUB_OWNER}/mobilenext_s.in1k'),
    'mobilenext_l.in1k': _in1k_cfg(hf_hub_id=f'{HUB_OWNER}/mobilenext_l.in1k'),
    'mobilenext_l_ghost.in1k': _in1k_cfg(hf_hub_id=f'{HUB_OWNER}/mobilenext_l_ghost.in1k'),
})


def _create_mobilenext(variant: str, pretrained: bool = False, **kwargs: Any) -> MobileNeXt:
    norm_args = {arg: kwargs.pop(f'bn_{arg}') for arg in ('eps', 'momentum') if f'bn_{arg}' in kwargs}
    if norm_args:  # train.py's --bn-eps and --bn-momentum
        kwargs['norm_layer'] = partial(get_norm_layer(kwargs.get('norm_layer', 'batchnorm2d')), **norm_args)
    build = partial(
        build_model_with_cfg,
        MobileNeXt,
        variant,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=kwargs.pop('out_indices', (0, 1, 2, 3, 4)), flatten_sequential=True),
    )
    if not pretrained:
        return build(pretrained=False, **kwargs)
    if all(kwargs.get(arg) is None for arg in ('num_classes', 'in_chans', 'pretrained_cfg_overlay')):
        kwargs.setdefault('weight_init', 'skip')  # every parameter is loaded; takes a fifth off the time
    from timm_mobilenext.pretrained import build_pretrained  # here, it is nothing that an untrained model needs
    return build_pretrained(build, variant, **kwargs)


def _entrypoint(variant: str, **model_args: Any) -> Callable[..., MobileNeXt]:
    """Register an architecture with timm: its name, and what differs from the width 1.0 network."""
    def create(pretrained: bool = False, **kwargs: Any) -> MobileNeXt:
        return _create_mobilenext(variant, pretrained, **{**model_args, **kwargs})

    create.__name__ = create.__qualname__ = variant
    create.__doc__ = f'Create {variant}: timm arguments, and those of MobileNeXt.'
    if variant not in default_cfgs:
        default_cfgs.update(generate_default_cfgs({f'{variant}.untrained': _cfg()}))
    return register_model(create)


# model.py: SiLU, squeeze-excite in every block, TensorFlow's padding and batch norm
_SE_ARGS: dict[str, Any] = dict(
    stages=_STAGES_SE, keep_3x3=False, max_expand_ratio=0, se_ratio=0.25, pad_type='same', act_layer='silu',
    norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01), weight_init='torch')

mobilenext_035 = _entrypoint('mobilenext_035', width_mult=0.35)
mobilenext_050 = _entrypoint('mobilenext_050', width_mult=0.5)
mobilenext_075 = _entrypoint('mobilenext_075', width_mult=0.75)
mobilenext_100 = _entrypoint('mobilenext_100')
mobilenext_140 = _entrypoint('mobilenext_140', width_mult=1.4)
mobilenext_100_id050 = _entrypoint('mobilenext_100_id050', identity_ratio=1 / 2)
mobilenext_100_id033 = _entrypoint('mobilenext_100_id033', identity_ratio=1 / 3)
mobilenext_100_id025 = _entrypoint('mobilenext_100_id025', identity_ratio=1 / 4)
mobilenext_s = _entrypoint('mobilenext_s', **_SE_ARGS)
mobilenext_l = _entrypoint('mobilenext_l', depth_mult=1.1, pw_groups=2, **_SE_ARGS)
mobilenext_l_ghost = _entrypoint('mobilenext_l_ghost', depth_mult=1.1, ghost=True, **_SE_ARGS)
