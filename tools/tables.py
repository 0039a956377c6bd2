"""Print the tables of architectures of the README and docs/models.md; with --write, put them there.

Parameters and multiply-adds are counted on the registered models, latencies come from benchmarks/results/family.csv.
The other numbers are claims of the authors, in their paper, their README and the training logs of the models whose
weights they published.
"""
import csv
import functools
import sys
from pathlib import Path

import timm

from timm_mobilenext import mobilenext
from timm_mobilenext.weights.authors import CLAIMS, SOURCES, Claim
from timm_mobilenext.doctor import count

ROOT = Path(__file__).parent.parent
FAMILY = ROOT / 'benchmarks' / 'results' / 'family.csv'
RUNTIMES = {
    'pytorch': 'PyTorch', 'onnx': 'ONNX Runtime', 'openvino': 'OpenVINO', 'executorch': 'ExecuTorch', 'ncnn': 'ncnn'}
START, END = '<!-- models: made by tools/tables.py -->\n', '<!-- end of models -->\n'


def architectures() -> list[str]:
    """Return the names of the architectures, in the order of mobilenext.py."""
    return [name for name in mobilenext.__all__ if timm.is_model(name)]  # the others are classes


@functools.cache
def size(name: str) -> tuple[float, float]:
    """Return the parameters and the multiply-adds of an architecture, in millions."""
    params, madds, _ = count(timm.create_model(name, device='meta'))
    return params / 1e6, madds / 1e6


def overview() -> str:
    """Return the table of the README, in Markdown."""
    lines = ['| architecture | top-1 (%) | weights | params (M) | MAdds (M) |', '|---|---:|---|---:|---:|']
    for name in architectures():
        params, madds = size(name)
        lines.append(
            f'| `{name}` | {CLAIMS.get(name, Claim()).top1} | {"yes" if name in SOURCES else "none"} '
            f'| {params:.2f} | {madds:.0f} |')
    return '\n'.join(lines) + '\n'


def choice() -> str:
    """Return the table to choose by, with what the authors claim of sizes in parentheses, in Markdown."""
    rows = list(csv.DictReader(FAMILY.open(newline='')))
    medians = {(row['runtime'], row['model']): float(row['median']) for row in rows}
    reported = {row['model']: row['reported_top1'] for row in rows}
    lines = [
        f'| architecture | params (M) | MAdds (M) | top-1 (%) | {" | ".join(RUNTIMES.values())} |',
        f'|---|{"---:|" * (3 + len(RUNTIMES))}',
    ]
    for name in (*architectures(), 'mobilenetv2_100'):
        (params, madds), claim = size(name), CLAIMS.get(name, Claim())
        sizes = [number + f' ({claimed})' * bool(claimed) for number, claimed in (
            (f'{params:.2f}', claim.params), (f'{madds:.0f}', claim.madds))]
        ratios = [f'{medians[runtime, name] / medians[runtime, "mobilenext_100"]:.2f}' for runtime in RUNTIMES]
        lines.append(f'| `{name}` | {" | ".join([*sizes, reported[name], *ratios])} |')
    return '\n'.join(lines) + '\n'


PAGES = {ROOT / 'README.md': overview, ROOT / 'docs' / 'models.md': choice}

if __name__ == '__main__':
    for page, render in PAGES.items():
        if '--write' in sys.argv:
            before, rest = page.read_text().split(START)
            page.write_text(before + START + render() + END + rest.split(END)[1])
        else:
            print(page.name, render(), sep='\n')
