"""Compare MobileNeXt and MobileNetV2 at equal multiply-adds, in SSDLite and in an FPN: same recipe, three seeds each.

Each network is trained twice: with the last norm of each residual branch at zero, which is MobileNeXt's start here, and
at one, as the authors of the two papers have it.

    pip install '.[detection,segmentation]' && python benchmarks/detection.py --data-dir BCCD_Dataset/BCCD

It runs examples/detect.py and examples/segment.py, and writes results/detection.csv and results/segmentation.csv beside
this file. A second call skips the runs whose results are in the output folder. docs/detection.md has what came out.
"""
import argparse
import csv
import runpy
import statistics
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.efficientnet import _gen_mobilenet_v2

HERE = Path(__file__).parent
# example -> label -> the backbone of the same multiply-adds, those of decoder or heads included
NETWORKS = {
    'detect': {
        'MobileNeXt': ['--backbone', 'mobilenext_035', '--backbone-kwargs', 'width_mult=0.38'],
        "MobileNeXt, authors' start": [
            '--backbone', 'mobilenext_035', '--backbone-kwargs', 'width_mult=0.38', 'zero_init_last=False'],
        'MobileNetV2': ['--backbone', 'mobilenetv2_040_zero_init_last'],
        "MobileNetV2, authors' start": ['--backbone', 'mobilenetv2_040'],
    },
    'segment': {
        'MobileNeXt': ['--backbone', 'mobilenext_035'],
        "MobileNeXt, authors' start": ['--backbone', 'mobilenext_035', '--backbone-kwargs', 'zero_init_last=False'],
        'MobileNetV2': ['--backbone', 'mobilenetv2_050_zero_init_last'],
        "MobileNetV2, authors' start": ['--backbone', 'mobilenetv2_050'],
    },
}
RECIPES = {
    # default boxes for platelets of 20, red cells of 60 and white cells of 110 pixels
    'detect': ['--epochs', '12', '--lr', '4e-3', '--vflip', '0.5', '--iou-thresh', '0.4',
               '--scales', '0.08', '0.4', '0.5', '0.65', '0.8', '0.95', '1'],
    'segment': ['--epochs', '5'],
}
RESULTS = {'detect': 'detection.csv', 'segment': 'segmentation.csv'}


@timm.models.register_model
def mobilenetv2_040(pretrained: bool = False, **kwargs: Any) -> timm.models.EfficientNet:
    """MobileNetV2 at a width between those that timm has names for."""
    return _gen_mobilenet_v2('mobilenetv2_050', 0.40, pretrained=pretrained, **kwargs)


@timm.models.register_model
def mobilenetv2_040_zero_init_last(pretrained: bool = False, **kwargs: Any) -> timm.models.EfficientNet:
    """The same with MobileNeXt's start."""
    return start_at_zero(mobilenetv2_040(pretrained, **kwargs))


@timm.models.register_model
def mobilenetv2_050_zero_init_last(pretrained: bool = False, **kwargs: Any) -> timm.models.EfficientNet:
    """Create timm's network with MobileNeXt's start."""
    return start_at_zero(timm.models.mobilenetv2_050(pretrained, **kwargs))


def start_at_zero(model: timm.models.EfficientNet) -> timm.models.EfficientNet:
    """Return the network, with the last norm of each residual branch at zero."""
    for module in model.modules():
        if getattr(module, 'has_skip', False):
            torch.nn.init.zeros_(module.bn3.weight)
    return model


def run(example: str, label: str, seed: int, data_dir: Path, output: Path) -> dict[str, str]:
    """Run an example with one network and one seed unless that was done, and return its row of the results."""
    sys.argv = [
        f'{example}.py', '--data-dir', str(data_dir), '--seed', str(seed), '--output', str(output), *RECIPES[example],
        *NETWORKS[example][label]]
    sys.path.insert(0, str(HERE.parent / 'examples'))
    if not (output / 'results.csv').exists():
        runpy.run_path(str(HERE.parent / 'examples' / f'{example}.py'), run_name='__main__')
    with (output / 'results.csv').open() as file:
        return {'label': label, **next(csv.DictReader(file))}


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data-dir', type=Path, required=True, help='the folder BCCD of Shenggan/BCCD_Dataset')
    parser.add_argument('--examples', nargs='+', choices=[*NETWORKS], default=[*NETWORKS])
    parser.add_argument('--seeds', type=int, default=3, help='at least 2 (default: %(default)s)')
    parser.add_argument('--output', type=Path, default=Path('compare'), help='folder (default: %(default)s)')
    args = parser.parse_args()
    for example in args.examples:
        rows = [
            run(example, label, seed, args.data_dir, args.output / f'{example}-{label}-{seed}')
            for seed in range(args.seeds) for label in NETWORKS[example]]
        with (HERE / 'results' / RESULTS[example]).open('w', newline='') as file:
            names = [*dict.fromkeys(key for row in rows for key in row)]
            writer = csv.DictWriter(file, names, lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)
        metrics = ('map', 'map_50') if example == 'detect' else ('iou',)
        for label in NETWORKS[example]:
            for metric in metrics:
                values = [float(row[metric]) for row in rows if row['label'] == label]
                print(f'{label}: {metric} {statistics.mean(values):.1f} +- {statistics.stdev(values):.1f} %')


if __name__ == '__main__':
    main()
