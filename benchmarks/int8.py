"""Measure what 8-bit post-training quantization costs MobileNeXt and MobileNetV2, in each runtime.

    pip install '.[compare,export]'
    python examples/compare.py --data-dir fashion --questions mobilenetv2 --channels 1 --images 60000 10000 --epochs 10
    python benchmarks/int8.py --data-dir fashion

Takes the networks of examples/compare.py (equal multiply-adds, the same recipe, three seeds each), quantizes each in
the same way, calibrated on training images, and counts the right answers on all 10,000 test images. Writes a CSV and a
plot. Rows of other runtimes and seeds stay in the CSV, as LiteRT needs an environment of its own. The committed results
are of networks from an earlier recipe of the example, in batches of 128 and with colours jittered.
"""
import argparse
import csv
import itertools
import runpy
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from timm.data import create_transform
from torchvision.datasets import FashionMNIST
from tqdm import tqdm

import timm_mobilenext  # noqa: F401 - registers the models
from timm_mobilenext.deploy.runtimes import RUNTIMES

compare = runpy.run_path(str(Path(__file__).parent.parent / 'examples' / 'compare.py'))
DATA = dict(input_size=(1, compare['IMAGE_SIZE'], compare['IMAGE_SIZE']), mean=(0.286,), std=(0.353,), crop_pct=0.875,
            interpolation='bicubic')
LABELS = list(compare['QUESTIONS']['mobilenetv2'])


def load(checkpoint: Path, label: str) -> torch.nn.Module:
    """Return a network that examples/compare.py trained, with the averaged weights that it was validated with."""
    name, kwargs = compare['MODELS'][label]
    model = timm.create_model(name, num_classes=10, in_chans=1, **kwargs).eval()
    timm.models.load_checkpoint(model, str(checkpoint), use_ema=True)
    model.pretrained_cfg.update(DATA)
    return model


def images(root: Path, train: bool, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first images as the networks take them, (N, 1, H, W), and their classes."""
    dataset = FashionMNIST(root, train=train, transform=create_transform(**DATA))
    chosen = [dataset[i] for i in tqdm(range(count), desc='reading', unit='image', leave=False)]
    return np.stack([image.numpy() for image, _ in chosen]), np.array([label for _, label in chosen])


def top1(run: Callable[[np.ndarray], np.ndarray], test: tuple[np.ndarray, np.ndarray], title: str) -> float:
    """Return the share of right answers, in %."""
    progress = tqdm(zip(*test, strict=True), total=len(test[1]), desc=title, unit='image', leave=False)
    return 100 * sum(run(image[None]).argmax() == label for image, label in progress) / len(test[1])


def measure(label: str, seed: str, args: argparse.Namespace, calibration: np.ndarray, test: tuple) -> list[dict]:
    """Return a row for each runtime and each way to quantize."""
    key = dict(set='Fashion-MNIST', label=label, seed=seed, images=60_000, test_images=10_000, epochs=10)
    model = load(compare['checkpoints'](args.checkpoints, key) / 'last.pth.tar', label)
    with torch.inference_mode():
        answers = [model(torch.from_numpy(batch)).argmax(1) for batch in np.array_split(test[0], 100)]
    eager = 100 * (torch.cat(answers).numpy() == test[1]).mean()
    rows = [dict(runtime='pytorch', label=label, seed=seed, form='fp32', calibration='', top1=f'{eager:.2f}', lost='')]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        timm.models.save_for_hf(
            model, str(folder), safe_serialization=True,
            model_args=dict(in_chans=1, num_classes=10, **compare['MODELS'][label][1]))
        for runtime in args.runtimes:
            engine = RUNTIMES[runtime]
            plain = folder / f'model{engine.suffixes[0]}'
            engine.convert(folder, plain, DATA['input_size'])
            forms = {'fp32': plain}
            for form, per_channel in (('int8 per channel', True), ('int8 per tensor', False)):
                forms[form] = folder / f'{form.replace(" ", "_")}{engine.suffixes[0]}'
                engine.quantize(folder, plain, forms[form], calibration, per_channel)
            for form, path in forms.items():
                share = top1(engine.load(path, threads=1), test, f'{label} {seed}, {runtime}, {form}')
                rows.append(dict(
                    runtime=runtime, label=label, seed=seed, form=form, calibration=len(calibration),
                    top1=f'{share:.2f}', lost=f'{eager - share:.2f}'))
                print(rows[-1], flush=True)
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """Plot the points that each network loses, mean and every seed."""
    import matplotlib
    matplotlib.use('agg')  # draws without a screen
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4), layout='constrained')
    keys = list(dict.fromkeys((row['runtime'], row['form']) for row in rows if 'int8' in row['form']))
    for (place, key), (side, label) in itertools.product(enumerate(keys), enumerate(LABELS)):
        lost = [float(row['lost']) for row in rows if (row['runtime'], row['form'], row['label']) == (*key, label)]
        axes.bar(place + 0.4 * side, statistics.mean(lost), 0.36, color=f'C{side}', label='' if place else label)
        axes.plot([place + 0.4 * side] * len(lost), lost, '.', color='black')
    axes.axhline(0, color='black', linewidth=0.8)
    axes.set_xticks(
        [place + 0.2 for place in range(len(keys))],
        [f'{runtime}\n{form.removeprefix("int8 ")}' for runtime, form in keys])
    axes.set_ylabel('top-1 points lost by int8')
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, and write the results."""
    can = [runtime.name for runtime in RUNTIMES.values() if 'int8' in runtime.precisions]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data-dir', type=Path, help='root of Fashion-MNIST')
    parser.add_argument('--checkpoints', type=Path, default=Path('compare'), help='what examples/compare.py wrote')
    parser.add_argument('--runtimes', nargs='+', choices=can, default=can[:3], help='(default: %(default)s)')
    parser.add_argument('--seeds', nargs='+', default=['0', '1', '2'], help='(default: %(default)s)')
    parser.add_argument('--images', type=int, default=128, help='for calibration (default: %(default)s)')
    parser.add_argument('--output', type=Path, default=Path(__file__).parent / 'results', help='folder of the results')
    parser.add_argument('--plot-only', action='store_true', help='draw the plot from the existing CSV')
    args = parser.parse_args()
    if not (args.data_dir or args.plot_only):
        parser.error('give the folder of Fashion-MNIST with --data-dir')

    path = args.output / 'int8.csv'
    rows = list(csv.DictReader(path.open(newline=''))) if path.exists() else []
    if not args.plot_only:
        anew = (*args.runtimes, 'pytorch')
        rows = [row for row in rows if row['runtime'] not in anew or row['seed'] not in args.seeds]
        calibration, _ = images(args.data_dir, True, args.images)
        test = images(args.data_dir, False, 10_000)
        for seed, label in itertools.product(args.seeds, LABELS):
            rows += measure(label, seed, args, calibration, test)
        with path.open('w', newline='') as file:
            writer = csv.DictWriter(file, rows[0], lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)
    draw(rows, path.with_suffix('.png'))
    for key, group in itertools.groupby(
            sorted(rows, key=lambda r: (r['runtime'], r['form'], r['label'])),
            lambda r: (r['runtime'], r['form'], r['label'])):
        group = list(group)
        tops = [float(row['top1']) for row in group]
        lost = [float(row['lost'] or 0) for row in group]
        print(*key, f'top-1 {statistics.mean(tops):.2f} %, lost {statistics.mean(lost):.2f}', sep=', ')


if __name__ == '__main__':
    main()
