"""What is installed and where weights would come from: `python -m timm_mobilenext doctor`, fit for a bug report."""
import argparse
import platform
import threading
import time
from typing import Any

import huggingface_hub
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from timm_mobilenext import __version__
from timm_mobilenext.weights.authors import CLAIMS, Claim
from timm_mobilenext.weights.download import locate

_NETWORK_SECONDS = 4.


def count(model: Any) -> tuple[int, int, int]:
    """Return the parameters of a model and its multiply-adds and activations at the size of its images.

    Multiply-adds are those of convolutions and linear layers, activations the elements that these put out, as in
    timm's tables; both for one image.

    Args:
        model: A model that timm created.
    """
    activations = 0

    def add(module: torch.nn.Module, args: object, out: torch.Tensor) -> None:
        nonlocal activations
        activations += out.numel()

    layers = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    parameter = next(model.parameters())
    image = torch.zeros(1, *model.pretrained_cfg['input_size'], device=parameter.device, dtype=parameter.dtype)
    training = model.training
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(image)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2, activations


def report() -> str:
    """Return the versions, the architectures and where the weights of each would come from now."""
    names = timm.list_models(module='mobilenext')
    places = dict.fromkeys(names, f'no answer within {_NETWORK_SECONDS:g} seconds')
    # Daemons: a name server that does not answer holds its thread far longer than any timeout set here.
    threads = [
        threading.Thread(target=lambda name=name: places.update({name: locate(name, _NETWORK_SECONDS)}), daemon=True)
        for name in names
    ]
    deadline = time.monotonic() + _NETWORK_SECONDS
    for thread in threads:
        thread.start()
    rows = []
    for name in names:
        params, madds, _ = count(timm.create_model(name, device='meta'))
        rows.append(f'{name:<22}{params / 1e6:>10.3f}{madds / 1e6:>11.1f}{CLAIMS.get(name, Claim()).top1:>11}  ')
    for thread in threads:
        thread.join(max(0., deadline - time.monotonic()))
    versions = {
        'timm-mobilenext': __version__, 'timm': timm.__version__, 'torch': torch.__version__,
        'huggingface_hub': huggingface_hub.__version__, 'Python': platform.python_version(),
    }
    return '\n'.join([
        ', '.join(f'{name} {version}' for name, version in versions.items()) + f', {platform.platform()}',
        '',
        f'{"architecture":<22}{"params (M)":>10}{"MAdds (M)":>11}{"top-1 (%)":>11}  weights',
        *(row + places[name] for name, row in zip(names, rows, strict=True)),
        '',
        'Params and MAdds (multiply-adds at 224 px) are counted. Top-1, on ImageNet-1k, is as the authors report it.',
        '',
        'import timm_mobilenext  # this line registers the models with timm',
    ])


def main(args: list[str]) -> int:
    """Run `python -m timm_mobilenext doctor`, which takes no arguments: print the report."""
    argparse.ArgumentParser('python -m timm_mobilenext doctor', description=__doc__).parse_args(args)
    print(report())
    return 0
