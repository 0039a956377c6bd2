"""Print the README's table of architectures; with --write, put it there.

Parameters and multiply-adds are counted on the registered models. The other numbers are claims of the authors: their
paper and README, and the best epoch in the training logs of the models whose weights they published.
"""
import sys
from pathlib import Path

import timm

from timm_mobilenext import mobilenext
from timm_mobilenext._authors import CLAIMS, SOURCES, Claim
from timm_mobilenext.doctor import count

README = Path(__file__).parent.parent / 'README.md'
START, END = '<!-- models: made by tools/readme_table.py -->\n', '<!-- end of models -->\n'

def render() -> str:
    """Return the table in Markdown."""
    lines = [
        "| architecture | params (M) | MAdds (M) | claimed: params | MAdds | top-1 | authors' weights |",
        '|---|---:|---:|---:|---:|---:|---|',
    ]
    for name in mobilenext.__all__:
        if not timm.is_model(name):  # the classes
            continue
        claim = CLAIMS.get(name, Claim())
        params, madds, _ = count(timm.create_model(name, device='meta'))
        weights = 'yes' if name in SOURCES else 'none'
        lines.append(
            f'| `{name}` | {params / 1e6:.3f} | {madds / 1e6:.1f} | {claim.params} | {claim.madds} | {claim.top1} '
            f'| {weights} |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    table = render()
    if '--write' in sys.argv:
        before, rest = README.read_text().split(START)
        README.write_text(before + START + table + END + rest.split(END)[1])
    else:
        print(table, end='')
