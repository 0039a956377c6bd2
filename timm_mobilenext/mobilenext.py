"""MobileNeXt

Paper: `Rethinking Bottleneck Structure for Efficient Mobile Network Design`, ECCV 2020, https://arxiv.org/abs/2007.02269

Numerically equal to the authors' code, https://github.com/zhoudaquan/rethinking_bottleneck_design. Cited below are its
`mnext.py`, the ReLU6 family, and `model.py`, the family with SiLU and squeeze-excite (paths: weights/authors.py).
docs/models.md lists what differs from the paper and from the authors' code, and why.
"""
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn as nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, LayerType, PadType, SqueezeExcite, create_classifier, get_norm_layer, make_divisible
from timm.models._efficientnet_builder import resolve_bn_args
from timm.models._features import feature_take_indices
from timm.models._registry import generate_default_cfgs, register_model

# In timm: `from . import _builder, _layers` and `from . import _authors as authors`. Import modules, not their names:
# importing timm registers the models, while one of these modules may be half imported.
from timm_mobilenext import _builder, _layers
from timm_mobilenext.weights import authors

__all__ = ['MobileNeXt', 'SandGlass']

# The paper's architecture table, a row per stage, as in mnext.py:153-163. The arXiv version has n = 2 in the 960 row,
# which the authors call a typo (issue #2 of their repository).
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
# utils_i2rnet.py:245-251 beside model.py: the second row strides instead of the first, three rows have 5x5 kernels
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
        raise ValueError(f'width_mult={width_mult} leaves no channel of {chs}. Expected e.g. 0.35 to 1.4.')
    return make_divisible(chs * width_mult, 4 if width_mult == 0.1 else 8)


def _block_form(in_chs: int, out_chs: int, stride: int, reduction_ratio: int, keep_dws: bool) -> tuple[bool, ...]:
    """Return whether a block of the network has a first depthwise conv, a last one, and a shortcut.

    The rule of mnext.py:75-134 and of MBConvBlockV1 in model.py: a block that changes its channels has no first
    depthwise conv, and a last one only to stride. Neither a row with reduction ratio 2 nor a block with `keep_dws`
    (`keep_3x3`, mnext.py:184) has a shortcut.
    """
    is_full = reduction_ratio == 2 or in_chs == out_chs or keep_dws
    has_shortcut = in_chs == out_chs and stride == 1 and reduction_ratio != 2 and not keep_dws
    return is_full, is_full or stride > 1, has_shortcut


class SandGlass(nn.Module):
    """SandGlass block: spatial convolutions and the shortcut at the wide ends, the bottleneck between them.

        x (B, in_chs, H, W)
          dw_start   depthwise k x k, act                in_chs
          pw_reduce  pointwise, linear                   in_chs // reduction_ratio
          pw_expand  pointwise, act                      out_chs
          dw_end     depthwise k x k, stride, linear     out_chs
          se         squeeze-excite, optional            out_chs
          + x        on the first identity_ratio of the channels
        (B, out_chs, ceil(H / stride), ceil(W / stride))

    It can replace an inverted residual in other networks: same input and output, and a shortcut where the shapes allow
    one. Source: the paper; mnext.py:62-147; model.py, MBConvBlockV1 and GhostI2RBlock.
    """

    def __init__(  # noqa: PLR0913 - every block of the paper and of the authors' code
            self, in_chs: int, out_chs: int, stride: int = 1, dilation: int = 1,
            reduction_ratio: int = 6, identity_ratio: float = 1.0, noskip: bool = False,
            dw_kernel_size: int = 3, dw_start: bool = True, dw_end: bool = True,
            max_expand_ratio: int = 6, pw_groups: int = 1, ghost: bool = False, se_chs: int = 0,
            pad_type: PadType = '', act_layer: LayerType = 'relu6', norm_layer: LayerType = 'batchnorm2d',
            aa_layer: LayerType | None = None, drop_path_rate: float = 0., recompute_act: bool = False,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            in_chs, out_chs: Number of input and output channels.
            stride, dilation: Stride of the last depthwise conv, dilation of both.
            reduction_ratio: Ratio of the input channels to those of the bottleneck.
            identity_ratio: Identity tensor multiplier: the share of the channels, from the first, with a shortcut.
            noskip: No shortcut. Otherwise there is one if in_chs == out_chs and stride == 1.
            dw_kernel_size: Kernel size of the depthwise convs, in pixels.
            dw_start, dw_end: Whether the block starts and ends with a depthwise conv.
            max_expand_ratio: Largest ratio of the output channels to those of the bottleneck, 0 for no limit.
            pw_groups: Groups of the two pointwise convs.
            ghost: Send only the first half of the channels through the bottleneck and concatenate the second half.
            se_chs: Width of the squeeze-excite bottleneck, 0 for no squeeze-excite.
            pad_type: Padding of the depthwise convs, '' symmetric or 'same' like TensorFlow's.
            act_layer: Activation after the first depthwise conv, the expansion and in the squeeze-excite.
            norm_layer, aa_layer: Normalization after every conv, anti-aliasing after a depthwise conv that strides.
            drop_path_rate: Probability to drop the branch, per sample, on the channels with a shortcut.
            recompute_act: Recompute norms and activations between the convs in the backward pass, to save memory.

        Raises:
            ValueError: If `identity_ratio` is outside [0, 1], or the block strides without a last depthwise conv.
        """
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        super().__init__()
        if not 0 <= identity_ratio <= 1:
            raise ValueError(
                f'identity_ratio={identity_ratio} is not a share of the channels. Expected 0 (none) to 1 (all).')
        if stride > 1 and not dw_end:
            raise ValueError(f'stride={stride} needs the last depthwise conv: set dw_end=True, or stride=1.')
        has_skip = in_chs == out_chs and stride == 1 and not noskip
        self.out_chs = out_chs
        # The authors' C // divisor: 1e-6 so that a third of 96 does not become 31 by float rounding
        self.identity_chs = math.floor(out_chs * identity_ratio + 1e-6) if has_skip else 0
        self.ghost = ghost
        self.pw_chs = in_chs // 2 if ghost else in_chs  # channels that enter the bottleneck
        self.recompute_act = recompute_act
        mid_chs = in_chs // reduction_ratio
        if max_expand_ratio and mid_chs < out_chs / max_expand_ratio:
            mid_chs = make_divisible(math.ceil(out_chs / max_expand_ratio), 16)  # mnext.py:66-69
        mid_chs = make_divisible(mid_chs, 2)  # model.py; changes nothing where the line above applies

        conv: Any = partial(_layers.ConvNorm, norm_layer=norm_layer, act_layer=act_layer, **dd)
        dw = partial(conv, kernel_size=dw_kernel_size, dilation=dilation, padding=pad_type)
        self.dw_start = dw(in_chs, in_chs, groups=in_chs) if dw_start else nn.Identity()
        self.pw_reduce = conv(self.pw_chs, mid_chs, groups=pw_groups, apply_act=False)
        self.pw_expand = conv(mid_chs, out_chs - (in_chs - self.pw_chs), groups=pw_groups)
        self.dw_end = nn.Identity()
        if dw_end:
            self.dw_end = dw(out_chs, out_chs, stride=stride, groups=out_chs, apply_act=False, aa_layer=aa_layer)
        act: Any = act_layer
        self.se = SqueezeExcite(out_chs, rd_channels=se_chs, act_layer=act, **dd) if se_chs else nn.Identity()
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate and self.identity_chs else nn.Identity()

    def zero_init_last(self) -> None:
        """Start as the shortcut: zero the weight of the last norm on the channels that have one."""
        last: Any = self.pw_expand if isinstance(self.dw_end, nn.Identity) else self.dw_end
        if getattr(last.bn, 'weight', None) is not None:
            nn.init.zeros_(last.bn.weight[:self.identity_chs])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_chs, H, W) to (B, out_chs, ceil(H / stride), ceil(W / stride))."""
        shortcut = x
        if self.recompute_act and not torch.jit.is_scripting():
            x = _layers.recompute_act(self._convs, (self.dw_start, self.pw_reduce, self.pw_expand, self.dw_end), x)
        else:
            x = self._convs(x)
        x = self.se(x)
        if self.identity_chs == 0:
            return x
        if self.identity_chs == self.out_chs:
            return self.drop_path(x) + shortcut
        x, rest = _layers.split_channels(x, self.identity_chs)
        return torch.cat([self.drop_path(x) + shortcut[:, :self.identity_chs], rest], dim=1)

    def _convs(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dw_start(x)
        if self.ghost:
            x, bypass = _layers.split_channels(x, self.pw_chs)
            x = torch.cat([self.pw_expand(self.pw_reduce(x)), bypass], dim=1)
        else:
            x = self.pw_expand(self.pw_reduce(x))
        return self.dw_end(x)


class MobileNeXt(nn.Module):
    """MobileNeXt: stem, rows of SandGlass blocks (`blocks.<row>.<repeat>`), global pooling and a linear classifier."""

    def __init__(  # noqa: PLR0913, PLR0915 - every network of the paper and of the authors' code
            self, stages: Sequence[tuple[int, int, int, int, int]] = _STAGES,
            num_classes: int = 1000, in_chans: int = 3, global_pool: str = 'avg', output_stride: int = 32,
            width_mult: float = 1.0, depth_mult: float = 1.0, identity_ratio: float = 1.0, keep_3x3: bool = True,
            max_expand_ratio: int = 6, pw_groups: int = 1, ghost: bool = False, se_ratio: float = 0.,
            pad_type: PadType = '', act_layer: LayerType = 'relu6', norm_layer: LayerType = 'batchnorm2d',
            aa_layer: LayerType | None = None, drop_rate: float = 0., drop_path_rate: float = 0.,
            recompute_act: bool = False,
            zero_init_last: bool = True, weight_init: str = 'fan_out',
            device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            stages: Architecture table, rows of reduction ratio, output channels, repeats, stride, dw kernel size.
            num_classes, in_chans: Number of classes, 0 for no classifier, and of input image channels.
            global_pool: Global pooling type.
            output_stride: Ratio of input to output resolution, 8, 16 or 32. Below 32 strides become dilation.
            width_mult: Width multiplier of all channels; the last row does not shrink below its own (mnext.py:170).
            depth_mult: Multiplier of the repeats, rounded up.
            keep_3x3: Keep both depthwise convs in rows of a single block with stride 1 (mnext.py:184).
            pw_groups, ghost: See SandGlass, for blocks with both depthwise convs.
            se_ratio: Width of the squeeze-excite, a share of out_chs / ratio, of in_chs / 2 with `ghost` (model.py).
            drop_rate: Dropout probability before the classifier.
            drop_path_rate: Stochastic depth: drop block i of n with probability drop_path_rate * i / n (model.py).
            zero_init_last: Start each block as its shortcut, unlike the authors: from scratch it trains faster.
            weight_init: 'fan_out' for the init of mnext.py, 'torch' for PyTorch's, which model.py leaves in place.
            identity_ratio, max_expand_ratio, pad_type, act_layer, norm_layer, aa_layer, recompute_act: See SandGlass.

        Raises:
            ValueError: If a multiplier leaves no channel or block, or `identity_ratio` is outside [0, 1].
        """
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        super().__init__()
        assert output_stride in (8, 16, 32)
        assert weight_init in ('fan_out', 'torch')
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.zero_init_last = zero_init_last
        self.weight_init = weight_init
        self.grad_checkpointing = False

        in_chs = _round_chs(32, width_mult)
        layers: dict[str, Any] = dict(norm_layer=norm_layer, act_layer=act_layer, **dd)
        self.stem = _layers.ConvNorm(in_chans, in_chs, kernel_size=3, stride=2, padding=pad_type, **layers)

        if not depth_mult > 0:
            raise ValueError(f'depth_mult={depth_mult} leaves no blocks. Expected a positive number.')
        depths = [math.ceil(n * depth_mult) for _, _, n, _, _ in stages]  # utils_i2rnet.py, round_repeats
        rows: list[nn.Module] = []
        taps: list[tuple[int, int, int]] = []  # number of rows before the tap, channels, reduction
        reduction, dilation, block_idx = 2, 1, 0
        for (ratio, chs, repeats, row_stride, kernel_size), depth in zip(stages, depths, strict=True):
            if row_stride > 1:
                taps.append((len(rows), in_chs, reduction))
            out_chs = _round_chs(chs, width_mult if len(rows) < len(stages) - 1 else max(width_mult, 1))
            blocks = []
            for repeat in range(depth):
                stride = row_stride if repeat == 0 else 1
                keep_dws = keep_3x3 and repeats == 1 and row_stride == 1 and repeat == 0
                dw_start, dw_end, has_shortcut = _block_form(in_chs, out_chs, stride, ratio, keep_dws)
                se_chs = max(1, int((in_chs / 2 if ghost else out_chs / ratio) * se_ratio)) if se_ratio else 0
                # A stride that would exceed output_stride becomes dilation of what comes after it.
                dilate = stride if reduction * stride > output_stride else 1
                blocks.append(SandGlass(
                    in_chs, out_chs, stride=stride // dilate, dilation=dilation, reduction_ratio=ratio,
                    identity_ratio=identity_ratio, noskip=not has_shortcut, dw_kernel_size=kernel_size,
                    dw_start=dw_start, dw_end=dw_end, max_expand_ratio=max_expand_ratio,
                    pw_groups=pw_groups if dw_start else 1, ghost=ghost and dw_start, se_chs=se_chs, pad_type=pad_type,
                    aa_layer=aa_layer, drop_path_rate=drop_path_rate * block_idx / sum(depths),
                    recompute_act=recompute_act, **layers))
                dilation *= dilate
                reduction *= stride // dilate
                in_chs = out_chs
                block_idx += 1
            rows.append(nn.Sequential(*blocks))
        taps.append((len(rows), in_chs, reduction))
        self.blocks = nn.Sequential(*rows)
        self.feature_info = [
            dict(num_chs=tap_chs, reduction=tap_reduction, module=f'blocks.{end - 1}' if end else 'stem', stage=end)
            for end, tap_chs, tap_reduction in taps]
        self.stage_ends = [end for end, _, _ in taps]

        self.num_features = in_chs
        self.global_pool, self.classifier = create_classifier(in_chs, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        if not self.stem.conv.weight.is_meta:
            self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialize the weights; with `needs_reset` all values, for a model from the meta device."""
        m: Any
        for m in self.modules():
            if needs_reset and hasattr(m, 'reset_parameters'):
                m.reset_parameters()
            if self.weight_init == 'fan_out' and isinstance(m, nn.Conv2d):  # mnext.py:203-216
                # the fan-out of a depthwise conv is not divided by its groups
                nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')
            elif self.weight_init == 'fan_out' and isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, 0, 0.01)
                nn.init.zeros_(m.bias)
        for m in self.modules():
            if self.zero_init_last and isinstance(m, SandGlass):
                m.zero_init_last()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the patterns that group parameters by depth, one group per block or, if `coarse`, per row."""
        return dict(stem=r'^stem', blocks=r'^blocks\.(\d+)' if coarse else r'^blocks\.(\d+)\.(\d+)')

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations; statistics move once per step."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier, `nn.Identity` if there is none."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, with 0 classes by none, and the pooling unless it is None."""
        param = next(self.parameters())
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        self.global_pool, self.classifier = create_classifier(
            self.num_features, num_classes, pool_type=pool_type, device=param.device, dtype=param.dtype)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        for m in (self.global_pool, self.classifier):
            m.train(self.training)

    def forward_intermediates(
            self, x: torch.Tensor, indices: int | list[int] | None = None, norm: bool = False, stop_early: bool = False,
            output_fmt: str = 'NCHW', intermediates_only: bool = False, extra_blocks: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the final features and intermediate ones, (B, C, H', W') each.

        Args:
            x: Images, (B, in_chans, H, W).
            indices: Take the last n taps if int, all if None, the given ones if a list.
            norm, output_fmt: As timm passes them; there is no norm after the last block, and only 'NCHW'.
            stop_early, intermediates_only: Stop at the last tap in `indices`, return only the intermediate features.
            extra_blocks: Let `indices` count the stem and every row of the table, not the taps of `feature_info`.
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
            self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True,
            extra_blocks: bool = False,
    ) -> list[int]:
        """Remove the layers behind the last tap in `indices`, and return the taps as non-negative numbers.

        The head is removed too, unless all blocks stay and `prune_head` is False. See `forward_intermediates`.
        """
        ends = list(range(len(self.blocks) + 1)) if extra_blocks else self.stage_ends
        take_indices, max_index = feature_take_indices(len(ends), indices)
        prune_end = ends[max_index] < len(self.blocks)
        rows: Any = self.blocks[:ends[max_index]]
        self.blocks = rows
        self.num_features = rows[-1][-1].out_chs if len(rows) else self.stem.out_channels
        if prune_head or prune_end:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, in_chans, H, W) to features (B, num_features, H / 32, W / 32)."""
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for row in self.blocks:
                x = _layers.checkpoint_seq(row, x)
            return x
        return self.blocks(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Map features (B, num_features, H, W) to logits (B, num_classes) or pre-logits (B, head_hidden_size)."""
        x = self.global_pool(x)
        if self.drop_rate > 0.:
            x = nn.functional.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, in_chans, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def checkpoint_filter_fn(state_dict: dict[str, Any], model: MobileNeXt) -> dict[str, Any]:
    """Map a state dict in a foreign layout to the model's, by name; one in the model's layout passes unchanged.

    Raises:
        RuntimeError: If keys (apart from the classifier's) or the padding are not the model's.
    """
    state_dict = authors.from_official(state_dict, model)
    authors.check_keys(state_dict, model)
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


def _pretrained_cfg(name: str, revision: str) -> dict[str, Any]:
    source: Any = authors.find_source(name)
    hub_id = f'{authors.HUB_OWNER}/{name}@{revision}' if revision else None
    return _cfg(source.url, license=source.license, hf_hub_id=hub_id, hf_hub_filename='model.safetensors')


# Weights -> commit of their repository on the Hub, which tools/release.py writes. Without one the Hub is not
# used: anyone may have registered the name. Other architectures get the tag `untrained`, see _entrypoint.
_WEIGHTS = {
    'mobilenext_100.in1k': '',
    'mobilenext_100.paddle_in1k': '',  # of PaddleClas, with the images prepared as for the authors' weights
    'mobilenext_100_id050.in1k': '',
    'mobilenext_s.in1k': '',
    'mobilenext_l.in1k': '',
    'mobilenext_l_ghost.in1k': '',
}
default_cfgs = generate_default_cfgs({name: _pretrained_cfg(name, revision) for name, revision in _WEIGHTS.items()})


def _create_mobilenext(variant: str, pretrained: bool = False, **kwargs: Any) -> MobileNeXt:
    bn_args = resolve_bn_args(kwargs)  # train.py's --bn-eps and --bn-momentum
    if bn_args:
        kwargs['norm_layer'] = partial(get_norm_layer(kwargs.get('norm_layer', 'batchnorm2d')), **bn_args)
    return _builder.build_model_with_cfg(
        MobileNeXt, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(flatten_sequential=True), **kwargs)


def _entrypoint(variant: str, **model_args: Any) -> Callable[..., MobileNeXt]:
    """Register an architecture with timm: its name, and what differs from the width 1.0 network."""
    def create(pretrained: bool = False, **kwargs: Any) -> MobileNeXt:
        return _create_mobilenext(variant, pretrained, **{**model_args, **kwargs})

    create.__name__ = create.__qualname__ = variant
    create.__doc__ = f'Create {variant}: timm arguments, and those of MobileNeXt.'
    if variant not in default_cfgs:
        default_cfgs.update(generate_default_cfgs({f'{variant}.untrained': _cfg()}))
    return register_model(create)


# model.py: SiLU, squeeze-excite in every block, TensorFlow's padding and eps. Only the recipes have its batch norm
# momentum of 0.01: in a short training the running statistics would never catch up.
_SE_ARGS: dict[str, Any] = dict(
    stages=_STAGES_SE, keep_3x3=False, max_expand_ratio=0, se_ratio=0.25, pad_type='same', act_layer='silu',
    norm_layer=partial(nn.BatchNorm2d, eps=1e-3), weight_init='torch')

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
