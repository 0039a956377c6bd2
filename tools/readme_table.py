"""Print the README's table of architectures; with --write, put it there.

Parameters and multiply-adds are counted on the registered models. The other numbers are claims of the authors: their
paper and README, and the best epoch in the training logs of the models whose weights they published.
"""
import sys
from pathlib import Path

import timm

from timm_mobilenext.doctor import count, top1

README = Path(__file__).parent.parent / 'README.md'
START, END = '<!-- models: made by tools/readme_table.py -->\n', '<!-- end of models -->\n'

# architecture -> parameters (M) and multiply-adds (M) as the authors state them
CLAIMS = {
    'mobilenext_035': ('1.8', '80'),
    'mobilenext_050': ('2.1', '110'),
    'mobilenext_075': ('2.5', '210'),
    'mobilenext_100': ('3.4', '300'),
    'mobilenext_140': ('6.1', '590'),
    'mobilenext_100_id050': ('', '300'),
    'mobilenext_100_id033': ('', '300'),
    'mobilenext_100_id025': ('', '300'),
    'mobilenext_s': ('', ''),
    'mobilenext_l': ('', ''),
    'mobilenext_l_ghost': ('', ''),
}


def render() -> str:
    """Return the table in Markdown."""
    lines = [
        "| architecture | params (M) | MAdds (M) | claimed: params | MAdds | top-1 | authors' weights |",
        '|---|---:|---:|---:|---:|---:|---|',
    ]
    for name, claims in CLAIMS.items():
        params, madds, _ = count(timm.create_model(name, device='meta'))
        weights = 'yes' if timm.get_pretrained_cfg(name).hf_hub_id else 'none'
        lines.append(
            f'| `{name}` | {params / 1e6:.3f} | {madds / 1e6:.1f} | {" | ".join(claims)} | {top1(name)} | {weights} |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    table = render()
    if '--write' in sys.argv:
        before, rest = README.read_text().split(START)
        README.write_text(before + START + table + END + rest.split(END)[1])
    else:
        print(table, end='')
