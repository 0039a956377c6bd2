"""What timm's layers lack for this network: a conv unit that folds, and a ReLU6 and checkpoints that save memory."""
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.forward_ad import unpack_dual
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from timm.layers import ConvNormAct, FrozenBatchNormAct2d, LayerType, is_exportable, is_scriptable


@torch.jit.unused
def is_eager(x: torch.Tensor) -> bool:
    """Return whether operators on `x`, the input of a layer, just run: `autograd.Function` is safe only there.

    False while operators are recorded or rewritten: by jit.trace, torch.compile, torch.export, torch.fx, a tensor
    subclass, a TorchFunctionMode, torch.func or forward-mode differentiation. PyTorch has no single check for these.
    """
    return (
        type(x) is torch.Tensor
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()  # has no public name; autograd.Function calls it too
        and not torch._C._len_torch_function_stack()  # has no public name either
        and unpack_dual(x).tangent is None
    )


class _ReLU6Function(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, inplace: bool) -> torch.Tensor:
        out = F.hardtanh(x, 0., 6., inplace)
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        # 0 where x <= 0 or x >= 6, which is where the output is 0 or 6
        return torch.ops.aten.hardtanh_backward(grad, ctx.saved_tensors[0], 0., 6.), None


class ReLU6(nn.ReLU6):
    """ReLU6 that keeps only its output for the backward pass, which the next layer keeps anyway.

    PyTorch's keeps its input, and copies it if it works in place. The gradients are equal to the bit. Can be removed
    when PyTorch differentiates hardtanh by its output, as it does ReLU.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Clamp x, of any shape, to 0 and 6."""
        if not torch.jit.is_scripting() and (torch.is_grad_enabled() and is_eager(x)):
            return _ReLU6Function.apply(x, self.inplace)
        return F.hardtanh(x, 0., 6., self.inplace)


def split_channels(x: torch.Tensor, chs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Split x, (B, C, H, W), into its first `chs` channels and the others.

    In eager mode by `split`, since the gradient of a slice is never channels_last: with slices, `mobilenext_l_ghost`
    trains 1.28 times as long in that layout. Elsewhere by slices, since ExecuTorch's XNNPACK delegate takes no split.
    """
    if not torch.jit.is_scripting() and is_eager(x):
        first, second = x.split([chs, x.shape[1] - chs], dim=1)
        return first, second
    return x[:, :chs], x[:, chs:]


class ConvNorm(ConvNormAct):
    """timm's ConvNormAct with the ReLU6 above, which `timm.utils.reparameterize_model` folds."""

    def __init__(self, *args: Any, act_layer: LayerType | None = 'relu6', **kwargs: Any) -> None:
        """
        Args:
            *args: Positional arguments of ConvNormAct.
            act_layer: Activation. 'relu6' is the one above, unless the model is created as scriptable or exportable, as
                timm does with its own activations.
            **kwargs: Other arguments of ConvNormAct.
        """
        if act_layer == 'relu6' and not (is_exportable() or is_scriptable()):
            act_layer = ReLU6
        super().__init__(*args, act_layer=act_layer, **kwargs)  # type: ignore[misc]

    def has_plain_conv(self) -> bool:
        """Return whether the conv owns its weight: it is not pruned, parametrized or wrapped by an adapter."""
        return isinstance(self.conv, nn.Conv2d) and 'weight' in self.conv._parameters

    def fuse(self) -> nn.Module:
        """Return the conv with the batch norm folded in, followed by the activation and the anti-aliasing if any.

        In training mode too, as timm's scripts reparameterize a model before they call `eval()`. A unit stays as it is
        if its norm is not a batch norm with statistics, or its conv not plain.
        """
        norm: Any = self.bn
        is_batch_norm = isinstance(norm, (nn.modules.batchnorm._BatchNorm, FrozenBatchNormAct2d))
        if not (is_batch_norm and self.has_plain_conv()) or norm.running_mean is None:
            return self
        conv = copy.deepcopy(self.conv)
        with torch.no_grad():
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
        for name, layer in (('act', getattr(norm, 'act', None)), ('aa', self.aa)):
            if layer is not None and not isinstance(layer, nn.Identity):
                layers[name] = layer
        return nn.Sequential(layers) if len(layers) > 1 else conv


@contextmanager
def _buffers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let modules write to copies of their buffers, which are the running statistics of their norms."""
    buffers = [
        (m, name, buffer) for module in modules for m in module.modules()
        for name, buffer in m.named_buffers(recurse=False)]
    for m, name, buffer in buffers:
        setattr(m, name, buffer.clone())
    try:
        yield
    finally:
        for m, name, buffer in buffers:
            setattr(m, name, buffer)


def checkpoint(function: Callable, modules: Iterable[nn.Module], x: torch.Tensor) -> torch.Tensor:
    """Call function(x) and keep only x for the backward pass, which calls it again.

    Like PyTorch's checkpoint, but the second call does not update the running statistics of `modules` again (except
    under torch.compile, which does not support that).
    """
    if torch.compiler.is_compiling():
        return torch_checkpoint(function, x, use_reentrant=False)
    return torch_checkpoint(
        function, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _buffers_kept(modules)))


def checkpoint_seq(blocks: Any, x: torch.Tensor) -> torch.Tensor:
    """Call the blocks, any iterable of modules, one after the other on x, each with `checkpoint`."""
    for block in blocks:
        x = checkpoint(block, [block], x)
    return x


def _is_plain(unit: nn.Module) -> bool:
    """Return whether a unit is as it was created: not replaced, wrapped or rewritten, and no hook watches it."""
    return type(unit) is ConvNorm and unit.has_plain_conv() and not any(
        'forward' in vars(m) or any(
            getattr(m, f'_{kind}_hooks') or getattr(nn.modules.module, f'_global_{kind}_hooks')
            for kind in ('forward_pre', 'forward', 'backward_pre', 'backward'))
        for m in unit.modules())


def recompute_act(convs: Callable, units: Iterable[Any], x: torch.Tensor) -> torch.Tensor:
    """Call convs(x) and keep what the convs return for the backward pass, not what norms and activations return.

    If anything watches, wraps, replaces or rewrites a layer, this is a plain call. If the units do not follow each
    other, as in a ghost block, only x is kept.

    Args:
        convs: Calls the units, from the first to the last.
        units: The ConvNorms, and `nn.Identity` in the place of one that a block does not have.
        x: Input, (B, C, H, W).
    """
    units = [unit for unit in units if type(unit) is not nn.Identity]
    if not (torch.is_grad_enabled() and is_eager(x) and all(map(_is_plain, units))):
        return convs(x)
    if any(unit.out_channels != following.in_channels for unit, following in pairwise(units)):
        return checkpoint(convs, units, x)
    x = units[0].conv(x)
    for unit, following in pairwise(units):
        x = checkpoint(nn.Sequential(unit.bn, following.conv), [unit], x)
    x = units[-1].bn(x)
    return x if units[-1].aa is None else units[-1].aa(x)  # in a block only the last conv, which strides, has one
