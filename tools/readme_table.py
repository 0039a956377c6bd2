"""Print the README's table of architectures; with --write, put it there.

Parameters and multiply-adds are counted on the registered models. The other numbers are claims of the authors: their
paper and README, and the best epoch in the training logs of the models whose weights they published.
"""
import sys
from pathlib import Path

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import timm_mobilenext  # noqa: F401 - registers the models

README = Path(__file__).parent.parent / 'README.md'
START, END = '<!-- models: made by tools/readme_table.py -->\n', '<!-- end of models -->\n'

# architecture -> parameters (M), multiply-adds (M) and top-1 (%) as the authors state them
CLAIMS = {
    'mobilenext_035': ('1.8', '80', '64.7'),
    'mobilenext_050': ('2.1', '110', '67.7'),
    'mobilenext_075': ('2.5', '210', '72.0'),
    'mobilenext_100': ('3.4', '300', '74.02'),
    'mobilenext_140': ('6.1', '590', '76.1'),
    'mobilenext_100_id050': ('', '300', '74.09'),
    'mobilenext_100_id033': ('', '300', '73.91'),
    'mobilenext_100_id025': ('', '300', '73.68'),
    'mobilenext_s': ('', '', '76.05'),
    'mobilenext_l': ('', '', '76.6'),
    'mobilenext_l_ghost': ('', '', '76.8'),
}


def count(name: str) -> tuple[int, int]:
    """Return the parameters of an architecture and its multiply-adds (convolutions, linear) at 224 px."""
    model = timm.create_model(name, device='meta').eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device='meta'))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def render() -> str:
    """Return the table in Markdown."""
    lines = [
        "| architecture | params (M) | MAdds (M) | claimed: params | MAdds | top-1 | authors' weights |",
        '|---|---:|---:|---:|---:|---:|---|',
    ]
    for name, claims in CLAIMS.items():
        params, madds = count(name)
        weights = 'yes' if timm.get_pretrained_cfg(name).tag == 'in1k' else 'none'
        lines.append(f'| `{name}` | {params / 1e6:.3f} | {madds / 1e6:.1f} | {" | ".join(claims)} | {weights} |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    table = render()
    if '--write' in sys.argv:
        before, rest = README.read_text().split(START)
        README.write_text(before + START + table + END + rest.split(END)[1])
    else:
        print(table, end='')
