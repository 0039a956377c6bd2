"""What is installed and where weights would come from: `python -m timm_mobilenext doctor`, e.g. for a bug report."""
import platform
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import huggingface_hub
import timm
import torch
from timm.models import resolve_pretrained_cfg
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from timm_mobilenext import __version__
from timm_mobilenext.cli import Parser, clear_errors
from timm_mobilenext.weights.authors import CLAIMS, Claim
from timm_mobilenext.weights.download import locate


def count(model: Any) -> tuple[int, int, int]:
    """Return the parameters of a model and its multiply-adds and activations at the size of its images.

    Multiply-adds are those of convolutions and linear layers for one image, activations the elements that these
    return, as in timm's tables. The model, which timm created, is in evaluation mode afterwards.
    """
    activations = 0

    def add(module: torch.nn.Module, args: object, out: torch.Tensor) -> None:
        nonlocal activations
        activations += out.numel() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) else 0

    parameter = next(model.parameters())
    image = torch.zeros(1, *model.pretrained_cfg['input_size'], device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad(), register_module_forward_hook(add), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2, activations


def report() -> str:
    """Return the versions, the architectures and where the weights of each would come from now."""
    names = timm.list_models(module='mobilenext')
    with ThreadPoolExecutor(len(names)) as pool:  # all at once, since each may wait some seconds for the Hub
        places = list(pool.map(lambda name: locate(resolve_pretrained_cfg(name)).text, names))
    rows = []
    for name, place in zip(names, places, strict=True):
        params, madds, _ = count(timm.create_model(name, device='meta'))
        top1 = CLAIMS.get(name, Claim()).top1
        rows.append(f'{name:<22}{params / 1e6:>10.3f}{madds / 1e6:>11.1f}{top1:>11}  {place}')
    return '\n'.join([
        f'timm-mobilenext {__version__}, timm {timm.__version__}, torch {torch.__version__}, huggingface_hub '
        f'{huggingface_hub.__version__}, Python {platform.python_version()}, {platform.platform()}',
        '',
        f'{"architecture":<22}{"params (M)":>10}{"MAdds (M)":>11}{"top-1 (%)":>11}  weights',
        *rows,
        '',
        'Params and MAdds (multiply-adds at 224 px) are counted. Top-1, on ImageNet-1k, is as the authors report it.',
        '',
        'import timm_mobilenext  # this line registers the models with timm',
    ])


def main(args: list[str]) -> int:
    """Run `python -m timm_mobilenext doctor`, which takes no arguments: print the report."""
    Parser('python -m timm_mobilenext doctor', description=__doc__).parse_args(args)
    with clear_errors():
        print(report())
    return 0
