"""MobileNeXt

Paper: `Rethinking Bottleneck Structure for Efficient Mobile Network Design` (ECCV 2020) -
https://arxiv.org/abs/2007.02269

Numerically equal to the authors' code, https://github.com/zhoudaquan/rethinking_bottleneck_design, below cited as
`mnext.py`, the ReLU6 family, and `model.py`, the SiLU and squeeze-excite family (commit and paths are in
weights/authors.py). No code of theirs is kept. docs/models.md lists what differs from the paper and from the authors'
code, and why.
"""
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerType, PadType, SqueezeExcite, create_classifier, get_norm_layer, make_divisible
from timm.models._features import feature_take_indices
from timm.models._registry import generate_default_cfgs, register_model

# As modules, for names that are looked up when they are called: whichever room of the package is imported first is
# half-way when its own import of timm registers the models. Where this file lies in timm `_builder` is timm's.
from timm_mobilenext import _builder, _layers
from timm_mobilenext.weights import authors

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


def _check(expected: str, is_fine: Callable[[Any], Any], **arguments: Any) -> None:
    """Raise an error that names the first of the arguments which is not as expected, of a wrong type for one."""
    for name, value in arguments.items():
        try:
            fine = bool(is_fine(value))
        except Exception:  # of a comparison with what is no number, or of a layer of timm that there is not
            fine = False
        if not fine:
            raise ValueError(f'{name}={value!r} is not supported: expected {expected}.')


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
            ValueError: If `identity_ratio` is outside [0, 1], the block strides without a last depthwise conv, a ghost
                block has fewer output channels than pass the bottleneck by, or `pw_groups` does not divide channels.
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
        if any(chs % pw_groups for chs in (self.pw_chs, mid_chs, pw_out_chs)):
            raise ValueError(
                f'pw_groups={pw_groups} does not divide the channels of the pointwise convs, {self.pw_chs}, {mid_chs} '
                f'and {pw_out_chs}: expected a number that divides them all.')

        act: Any = act_layer
        layers: dict[str, Any] = dict(norm_layer=norm_layer, act_layer=act, **dd)
        dw: dict[str, Any] = dict(kernel_size=dw_kernel_size, dilation=dilation, padding=pad_type, **layers)
        self.dw_start = _layers.ConvNorm(in_chs, in_chs, groups=in_chs, **dw) if dw_start else nn.Identity()
        self.pw_reduce = _layers.ConvNorm(self.pw_chs, mid_chs, groups=pw_groups, apply_act=False, **layers)
        self.pw_expand = _layers.ConvNorm(mid_chs, pw_out_chs, groups=pw_groups, **layers)
        self.dw_end = _layers.ConvNorm(
            out_chs, out_chs, stride=stride, groups=out_chs, apply_act=False, aa_layer=aa_layer, **dw,
        ) if dw_end else nn.Identity()
        self.se = SqueezeExcite(out_chs, rd_channels=se_chs, act_layer=act, **dd) if se_chs else nn.Identity()
        self.drop_path = _layers.PartialDropPath(
            drop_path_rate, self.identity_chs) if drop_path_rate and self.identity_chs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_chs, H, W) to (B, out_chs, ceil(H / stride), ceil(W / stride))."""
        shortcut = x
        if not torch.jit.is_scripting() and (self.recompute_act and torch.is_grad_enabled() and _layers.is_eager(x)):
            x = self._recomputed_convs(x)
        else:
            x = self._convs(x)
        x = self.se(x)
        if self.identity_chs == 0:
            return x
        # In place, since x is the output of a norm, a conv or a product, which all keep their inputs for the backward
        # pass and not their output; without `dw_end` it is that of an activation, which is kept.
        inplace = not isinstance(self.dw_end, nn.Identity)
        if self.identity_chs == self.out_chs:
            return _layers.add_identity(self.drop_path(x), shortcut, inplace=inplace)
        return _layers.add_identity(self.drop_path(x), shortcut, self.identity_chs, inplace=inplace)

    def _convs(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dw_start(x)
        if self.bypass_chs > 0:
            x, bypass = _layers.split_channels(x, self.pw_chs)
            x = torch.cat([self.pw_expand(self.pw_reduce(x)), bypass], dim=1)
        else:
            x = self.pw_expand(self.pw_reduce(x))
        return self.dw_end(x)

    def _recomputed_convs(self, x: torch.Tensor) -> torch.Tensor:
        units: list[Any] = [
            m for m in (self.dw_start, self.pw_reduce, self.pw_expand, self.dw_end) if not isinstance(m, nn.Identity)]
        # where half of the channels pass some convs by, or not all are a ConvNorm any more, the input alone is kept
        if self.bypass_chs or not all(isinstance(unit, _layers.ConvNorm) for unit in units):
            return _layers.checkpoint(self._convs, self, x)
        return _layers.recompute_norm_act(units, x)


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
        # range() takes whole numbers alone, and is empty below 1; what is True it takes for 1, layers do not
        _check('rows of five whole numbers from 1, the last, a kernel size, odd', lambda rows: len(rows) and all(
            len(row) == 5 and all(x is not True and range(x) for x in row) and row[4] % 2 for row in rows),
            stages=stages)
        _check('a whole number from 1', lambda x: x is not True and range(x) and x < 2 ** 31,
               in_chans=in_chans, pw_groups=pw_groups)
        _check('a whole number from 0', lambda x: x is not True and range(x + 1) and x < 2 ** 31,
               num_classes=num_classes)
        _check('a number from 0 to 1', lambda x: 0 <= x <= 1, drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        _check('a number from 0 to 100', lambda x: 0 <= x <= 100, max_expand_ratio=max_expand_ratio, se_ratio=se_ratio)
        _check('a positive number up to 100', lambda x: not x > 100, width_mult=width_mult, depth_mult=depth_mult)
        _check('a number', lambda x: [x >= 0 or True], identity_ratio=identity_ratio)
        _check('a bool', lambda x: x in (True, False), keep_3x3=keep_3x3, ghost=ghost, recompute_act=recompute_act)
        _check('8, 16 or 32', lambda x: x in (8, 16, 32), output_stride=output_stride)
        _check("'' or 'same'", lambda x: x in ('', 'same'), pad_type=pad_type)
        _check("'avg', 'max', 'avgmax', 'catavgmax' or ''", lambda x: create_classifier(
            1, 0, pool_type=x), global_pool=global_pool)
        # not all that timm has a name for is a layer of maps
        def takes_maps(**layer: Any) -> bool:
            unit = _layers.ConvNorm(32, 32, stride=2, device='meta', **layer).eval()
            return unit(torch.empty(1, 32, 8, 8, device='meta')).shape[1] == 32

        layers = "a class, or a name of timm's for a layer of maps (B, C, H, W), as batchnorm2d, relu6 and blurpc are"
        _check(layers, lambda x: not isinstance(x, str) or takes_maps(norm_layer=x), norm_layer=norm_layer)
        _check(layers, lambda x: not isinstance(x, str) or takes_maps(act_layer=x), act_layer=act_layer)
        _check(layers, lambda x: not isinstance(x, str) or takes_maps(aa_layer=x), aa_layer=aa_layer)
        _check("'fan_out', 'torch' or 'skip'", lambda x: x in ('fan_out', 'torch', 'skip'), weight_init=weight_init)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.weight_init = weight_init
        self.grad_checkpointing = False

        stem_chs = _round_chs(32, width_mult)
        self.stem = _layers.ConvNorm(
            in_chans, stem_chs, 3, stride=2, padding=pad_type, norm_layer=norm_layer, act_layer=act_layer, **dd)

        block_args: dict[str, Any] = dict(
            pad_type=pad_type, act_layer=act_layer, norm_layer=norm_layer, aa_layer=aa_layer,
            recompute_act=recompute_act, **dd)
        depths = [_round_repeats(n, depth_mult) for _, _, n, _, _ in stages]
        if sum(depths) > 1000:
            raise ValueError(
                f'depth_mult={depth_mult} makes {sum(depths)} blocks of stages={stages}: expected at most 1000.')
        rows: list[Any] = []
        # taps of the outputs before each stride, the stem's among them unless the first row keeps its resolution
        feature_info: list[dict[str, Any]] = []
        if stages[0][3] > 1:
            feature_info.append(dict(num_chs=stem_chs, reduction=2, module='stem', stage=0))
        in_chs, reduction, dilation, block_idx = stem_chs, 2, 1, 0
        for row, (ratio, chs, repeats, row_stride, kernel_size) in enumerate(stages):
            is_last = row == len(stages) - 1
            out_chs = _round_chs(chs, max(width_mult, 1) if is_last else width_mult)
            blocks = []
            for repeat in range(depths[row]):
                stride = row_stride if repeat == 0 else 1
                keep_dws = keep_3x3 and repeats == 1 and row_stride == 1 and repeat == 0
                # Which depthwise convs a block has and whether a shortcut, mnext.py:75-134 and MBConvBlockV1 alike;
                # they ignore the stride of a row that keeps its channels (row 2 at widths 0.124 to 0.138), we do not.
                is_full = ratio == 2 or in_chs == out_chs or keep_dws
                has_skip = ratio != 2 and in_chs == out_chs and stride == 1 and not keep_dws
                se_chs = max(1, int((in_chs / 2 if ghost else out_chs / ratio) * se_ratio)) if se_ratio else 0
                # A stride that would pass output_stride becomes dilation of what comes after it.
                dilate = stride if reduction * stride > output_stride else 1
                blocks.append(SandGlass(
                    in_chs, out_chs, stride=stride // dilate, dilation=dilation, reduction_ratio=ratio,
                    identity_ratio=identity_ratio, noskip=not has_skip, dw_kernel_size=kernel_size, dw_start=is_full,
                    dw_end=is_full or stride > 1, max_expand_ratio=max_expand_ratio,
                    pw_groups=pw_groups if is_full else 1, ghost=ghost and is_full, se_chs=se_chs,
                    drop_path_rate=drop_path_rate * block_idx / sum(depths), **block_args))
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

        if weight_init != 'skip' and not self.stem.conv.weight.is_meta:  # no values there, and half of the time
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
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the patterns that group parameters by depth, for layer decay.

        Args:
            coarse: One group per row of the table, otherwise one per block.
        """
        return dict(stem=r'^stem', blocks=r'^blocks\.(\d+)' if coarse else r'^blocks\.(\d+)\.(\d+)')

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
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.classifier = create_classifier(
            self.num_features, num_classes, pool_type=pool_type, device=param.device, dtype=param.dtype)
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
        ends = list(range(len(self.blocks) + 1)) if extra_blocks else self.stage_ends
        take_indices, max_index = feature_take_indices(len(ends), indices)
        take_indices, max_index = [ends[i] for i in take_indices], ends[max_index]

        x = self.stem(x)  # index 0
        if 0 in take_indices:
            intermediates.append(x)
        if torch.jit.is_scripting() or not stop_early:  # can't slice blocks in torchscript
            blocks = self.blocks
        else:
            blocks = self.blocks[:max_index]
        for row, block in enumerate(blocks, start=1):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = _layers.checkpoint_seq(block, x)
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
        ends = list(range(len(self.blocks) + 1)) if extra_blocks else self.stage_ends
        take_indices, max_index = feature_take_indices(len(ends), indices)
        prune_end = ends[max_index] < len(self.blocks)
        rows: Any = self.blocks[:ends[max_index]]
        self.blocks = rows
        self.num_features = rows[-1][-1].out_chs if len(rows) else self.stem.conv.out_channels
        if prune_head or prune_end:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, in_chans, H, W) to features (B, num_features, H / 32, W / 32)."""
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for row in self.blocks:
                x = _layers.checkpoint_seq(row, x)
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
        return self.forward_head(self.forward_features(x))


def checkpoint_filter_fn(state_dict: dict[str, Any], model: MobileNeXt) -> dict[str, Any]:
    """Map a checkpoint in the authors' layout to the model's, by name; a checkpoint in the model's layout passes.

    The identity tensor multiplier is not in a file: it is part of the architecture, `mobilenext_100` for the authors'
    74.02 file and `mobilenext_100_id050` for 74.09.

    Args:
        state_dict: A state dict.
        model: The MobileNeXt to load it into.

    Returns:
        The state dict in the model's layout, the given one itself if that is what it was.

    Raises:
        RuntimeError: If keys or shapes are not the model's, but for what timm adapts, the classifier and the input
            channels, or if the weights are of a network that pads in another way.
    """
    state_dict = authors.from_official(state_dict, model)
    authors.check_fit(state_dict, model, first_conv='stem.conv', classifier='classifier')
    return state_dict


def _cfg(url: str = '', **kwargs: Any) -> dict[str, Any]:
    return {
        'url': url, 'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': (7, 7),
        'crop_pct': 0.875, 'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'stem.conv', 'classifier': 'classifier',
        'paper_ids': 'arXiv:2007.02269',
        'paper_name': 'Rethinking Bottleneck Structure for Efficient Mobile Network Design',
        'origin_url': 'https://github.com/zhoudaquan/rethinking_bottleneck_design',
        **kwargs,
    }


# The address is that of the file of the authors, or of PaddleClas. tools/release.py adds the repository on the Hub,
# pinned to a commit: without one, whoever registers the name chooses the weights. The file name keeps timm from taking
# a pickle. Architectures without weights get the tag `untrained`, see _entrypoint.
_in1k_cfg = partial(_cfg, hf_hub_filename='model.safetensors', license=authors.LICENSE)
default_cfgs = generate_default_cfgs({
    'mobilenext_100.in1k': _in1k_cfg(
        url=authors.SOURCES['mobilenext_100'].url,
        hf_hub_id=''),
    # trained in PaddlePaddle, with the images prepared as for the authors' weights
    'mobilenext_100.paddle_in1k': _in1k_cfg(
        url=authors.REPRODUCTIONS['mobilenext_100.paddle_in1k'].url,
        hf_hub_id='',
        license=authors.REPRODUCTIONS['mobilenext_100.paddle_in1k'].license,
        origin_url='https://github.com/PaddlePaddle/PaddleClas'),
    'mobilenext_100_id050.in1k': _in1k_cfg(
        url=authors.SOURCES['mobilenext_100_id050'].url,
        hf_hub_id=''),
    'mobilenext_s.in1k': _in1k_cfg(
        url=authors.SOURCES['mobilenext_s'].url,
        hf_hub_id=''),
    'mobilenext_l.in1k': _in1k_cfg(
        url=authors.SOURCES['mobilenext_l'].url,
        hf_hub_id=''),
    'mobilenext_l_ghost.in1k': _in1k_cfg(
        url=authors.SOURCES['mobilenext_l_ghost'].url,
        hf_hub_id=''),
})


def _create_mobilenext(variant: str, pretrained: bool = False, **kwargs: Any) -> MobileNeXt:
    norm_args = {arg: kwargs.pop(f'bn_{arg}') for arg in ('eps', 'momentum') if f'bn_{arg}' in kwargs}
    if norm_args:  # train.py's --bn-eps and --bn-momentum
        _check('a number from 0 to 1', lambda x: 0 <= x <= 1, **{f'bn_{arg}': x for arg, x in norm_args.items()})
        norm_layer = kwargs.get('norm_layer', 'batchnorm2d')
        with _layers.naming(norm_layer=norm_layer):
            kwargs['norm_layer'] = partial(get_norm_layer(norm_layer), **norm_args)
    feature_cfg = dict(out_indices=kwargs.pop('out_indices', (0, 1, 2, 3, 4)), flatten_sequential=True)
    return _builder.build_model_with_cfg(
        MobileNeXt, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, feature_cfg=feature_cfg, **kwargs)


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
