"""examples/compare.py: equal multiply-adds, and the committed results are of these models."""
import csv
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_results_are_of_equal_multiply_adds():
    """The committed results have three seeds a model, and their multiply-adds, counted again, differ by under 3 %."""
    compare = runpy.run_path(str(ROOT / 'examples' / 'compare.py'))
    rows = list(csv.DictReader((ROOT / 'docs' / 'compare.csv').open()))
    assert sorted((row['label'], row['seed']) for row in rows) == sorted(
        (label, str(seed)) for label in compare['MODELS'] for seed in range(3))
    counts = {label: compare['count'](name, **kwargs) for label, (name, kwargs) in compare['MODELS'].items()}
    assert {(row['label'], int(row['params']), int(row['madds'])) for row in rows} == {
        (label, *count) for label, count in counts.items()}
    madds = [madds for _, madds in counts.values()]
    assert max(madds) <= 1.03 * min(madds)
