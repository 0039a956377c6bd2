"""What PyTorch and timm lack for this network: layers, then what saves memory in training, then what checkpoints need.

Each piece works without the others and without the network, and says what would make it superfluous.
"""
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.forward_ad import unpack_dual
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from timm.layers import DropPath, FrozenBatchNormAct2d, LayerType, PadType, create_aa, create_act_layer, \
    create_conv2d, drop_path, get_norm_act_layer, get_norm_layer, is_exportable, is_scriptable
from torchvision.ops.misc import FrozenBatchNorm2d  # what timm freezes batch norms with


@torch.jit.unused
def is_eager(x: torch.Tensor) -> bool:
    """Return whether operators on `x` just run, where forms that write in place or have their own backward are best.

    What records operators gets plain ones: jit.trace, torch.compile and export, torch.fx and what else hands the layers
    something that is no plain tensor. So do the transforms of torch.func and forward-mode differentiation, for which
    such backwards have no rules. PyTorch has a question for each of these; superfluous once it has one for all.

    Args:
        x: What a layer was called with.
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
    Superfluous once PyTorch differentiates hardtanh by its output, as it does ReLU.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Clamp x, of any shape, to 0 and 6."""
        if not torch.jit.is_scripting() and (torch.is_grad_enabled() and is_eager(x)):
            return _ReLU6Function.apply(x, self.inplace)
        return F.relu6(x, self.inplace)


class _PartialIdentity(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shortcut: torch.Tensor, chs: int) -> torch.Tensor:
        ctx.chs = chs
        ctx.mark_dirty(x)
        x[:, :chs].add_(shortcut[:, :chs])
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        return grad, F.pad(grad[:, :ctx.chs], (0, 0, 0, 0, 0, grad.shape[1] - ctx.chs)), None


def add_identity(x: torch.Tensor, shortcut: torch.Tensor, chs: int | None = None, inplace: bool = True) -> torch.Tensor:
    """Add the shortcut to the first channels of x, in the form that is best where it runs.

    In eager mode that is in place, with a gradient that does without the copy of all of it that autograd makes for a
    write to a slice. Where operators are recorded it is a form without writes, which every compiler and exporter takes.
    Superfluous once autograd has a gradient for writes to slices that copies nothing.

    Args:
        x: Output of the branch, (B, C, H, W).
        shortcut: Input of the branch, of the same shape.
        chs: Number of channels, counted from the first, that the shortcut is added to; None for all.
        inplace: Whether x may be written to: no backward pass needs its values.

    Returns:
        The sum, (B, C, H, W), which is x itself if it was written to.
    """
    if not torch.jit.is_scripting() and (inplace and is_eager(x) and x.dtype == shortcut.dtype):
        if chs is None:
            return x.add_(shortcut)
        if torch.is_grad_enabled():
            return _PartialIdentity.apply(x, shortcut, chs)
        x[:, :chs].add_(shortcut[:, :chs])
        return x
    if chs is None:
        return x + shortcut
    return torch.cat([x[:, :chs] + shortcut[:, :chs], x[:, chs:]], dim=1)


def split_channels(x: torch.Tensor, chs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the channels of x in two, in the form that is best where it runs.

    In eager mode that is a split, since the gradient of a slice is never channels_last. Where operators are recorded it
    is slices, which ExecuTorch's XNNPACK delegate takes; a split cuts its graph in parts. Superfluous once it takes
    splits.

    Args:
        x: (B, C, H, W).
        chs: Number of channels of the first part.

    Returns:
        The parts, (B, chs, H, W) and (B, C - chs, H, W).
    """
    if not torch.jit.is_scripting() and is_eager(x):
        first, second = x.split([chs, x.shape[1] - chs], dim=1)
        return first, second
    return x[:, :chs], x[:, chs:]


class PartialDropPath(DropPath):
    """Stochastic depth of a branch whose shortcut is added to its first channels alone, as by `add_identity`.

    A branch is dropped on these channels: the others have no other path. timm's DropPath, which this is where they are
    all channels, drops all. Superfluous once that can be told which.
    """

    def __init__(self, drop_prob: float, chs: int) -> None:
        """
        Args:
            drop_prob: Probability to drop the branch, per sample.
            chs: Number of channels, counted from the first, that have a shortcut.
        """
        super().__init__(drop_prob)
        self.chs = chs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop the first channels of samples of x, (B, C, H, W), in training."""
        if not self.training:
            return x
        scale = drop_path(torch.ones_like(x[:, :self.chs, :1, :1]), self.drop_prob, self.training, self.scale_by_keep)
        return x * F.pad(scale, (0, 0, 0, 0, 0, x.shape[1] - self.chs), value=1.)


@contextmanager
def naming(**arguments: Any) -> Iterator[None]:
    """Name the arguments that a layer is made by in the error, of whatever type, where timm cannot make it by them."""
    try:
        yield
    except Exception as error:
        named = ', '.join(f'{name}={value!r}' for name, value in arguments.items())
        raise ValueError(
            f'{named} makes no layer here ({type(error).__name__}: {error}): expected what timm takes for it, for '
            'feature maps (B, C, H, W) of all the numbers of channels in the network.') from error


class ConvNorm(nn.Module):
    """Convolution `conv`, norm `bn`, activation `act` and anti-aliasing `aa`, the last two where asked for.

    It has the keys of timm's ConvNormAct and does what that does. Beyond that, `timm.utils.reparameterize_model` folds
    it; there is nothing in it that does nothing, which took 3 % of a network's time in eager mode at batch size 1; and
    its ReLU6 is the one above. Superfluous once timm's has a `fuse` and no empty layers.
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
            act_layer: Activation. 'relu6' is the one that saves memory unless the model is to be scripted or exported,
                as timm has it of its own activations.
            aa_layer: Anti-aliasing layer, where there is a stride.
            device: Device of the parameters.
            dtype: Type of the parameters.
        """
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        super().__init__()
        if stride == 1:
            aa_layer = None
        if act_layer == 'relu6' and not (is_exportable() or is_scriptable()):
            act_layer = ReLU6
        self.conv = create_conv2d(
            in_chs, out_chs, kernel_size, stride=1 if aa_layer else stride, dilation=dilation, groups=groups,
            padding=padding, **dd)
        self.act = None
        with naming(norm_layer=norm_layer, act_layer=act_layer, aa_layer=aa_layer):  # not every norm takes any channels
            if getattr(norm_layer, 'func', norm_layer) in ('batchnorm2d', nn.BatchNorm2d):
                self.bn = get_norm_layer(norm_layer)(out_chs, **dd)
                if apply_act:
                    self.act = create_act_layer(act_layer, inplace=True)
            else:  # these have the activation in them
                self.bn = get_norm_act_layer(norm_layer, act_layer)(out_chs, apply_act=apply_act, **dd)
            self.aa = create_aa(aa_layer, out_chs, stride=stride, noop=None, **dd) if aa_layer else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_chs, H, W) to (B, out_chs, ceil(H / stride), ceil(W / stride))."""
        if torch.jit.is_scripting():
            x = self.after_conv(self.conv(x))
        else:  # to look them up by name takes 1.5 % of a network's time at batch size 1
            for layer in self._modules.values():
                x = layer(x)  # type: ignore[misc]
        return x

    def after_conv(self, x: torch.Tensor) -> torch.Tensor:
        """Map what the conv returned, (B, out_chs, H, W), to the output of the unit."""
        x = self.bn(x)
        if self.act is not None:
            x = self.act(x)
        if self.aa is not None:
            x = self.aa(x)
        return x

    def fuse(self) -> nn.Module:
        """Return the convolution with the batch norm folded in, followed by what else there is.

        The running statistics are folded whatever the training mode, as timm's scripts reparameterize a model before
        they call `eval()`. A unit whose norm is no batch norm is returned as it is.
        """
        norm: Any = self.bn
        is_batch_norm = isinstance(norm, (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d, FrozenBatchNormAct2d))
        if not is_batch_norm or norm.running_mean is None:
            return self
        conv = copy.deepcopy(self.conv)
        with torch.no_grad():
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        layers = OrderedDict(conv=conv, act=getattr(norm, 'act', self.act), aa=self.aa)
        layers = OrderedDict((name, m) for name, m in layers.items() if not isinstance(m, (nn.Identity, type(None))))
        return nn.Sequential(layers) if len(layers) > 1 else conv


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


def checkpoint(
        function: Callable[[torch.Tensor], torch.Tensor], module: nn.Module, x: torch.Tensor, **kwargs: Any,
) -> torch.Tensor:
    """Call function(x) and keep x alone for the backward pass, which calls it again.

    PyTorch's checkpoint, but that the second call leaves the running statistics as they are. torch.compile knows no
    such contexts. Superfluous once batch norm, or PyTorch's checkpoint, knows that it runs for the second time.

    Args:
        function: What is called, of `module` or of parts of it.
        module: The module whose buffers the second call may not change.
        x: The input, of any shape.
        **kwargs: Arguments of `torch.utils.checkpoint.checkpoint`.
    """
    if not torch.compiler.is_compiling():
        kwargs['context_fn'] = lambda: (nullcontext(), _buffers_kept(module))
    return torch_checkpoint(function, x, use_reentrant=False, **kwargs)


def checkpoint_seq(blocks: Any, x: torch.Tensor) -> torch.Tensor:
    """Call the blocks one after the other, each with `checkpoint`: timm's checkpoint_seq for networks with norms.

    Superfluous with `checkpoint`.

    Args:
        blocks: The modules, `nn.Sequential` or any iterable of them.
        x: Input of the first, of any shape.
    """
    for block in blocks:
        x = checkpoint(block, block, x)
    return x


def recompute_norm_act(units: Sequence[ConvNorm], x: torch.Tensor) -> torch.Tensor:
    """Call the units one after the other and keep what the convs return, not what norms and activations do.

    PyTorch's checkpoint is for the call of a module, this for what lies between the convs of two. Superfluous once
    PyTorch's selective checkpointing, which goes by operators, is for eager mode as cheap as this.

    Args:
        units: The units, at least one.
        x: Input of the first, (B, C, H, W).

    Returns:
        Output of the last, (B, C', H', W').
    """
    x = units[0].conv(x)
    for unit, following in pairwise(units):
        def norm_to_conv(x: torch.Tensor, unit: ConvNorm = unit, following: ConvNorm = following) -> torch.Tensor:
            return following.conv(unit.after_conv(x))
        x = checkpoint(norm_to_conv, unit, x, preserve_rng_state=False)
    return units[-1].after_conv(x)
