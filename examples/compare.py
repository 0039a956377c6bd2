"""Compare MobileNeXt and MobileNetV2 at equal multiply-adds: same images, same recipe, three seeds each.

    pip install '.[compare]' && python examples/compare.py --data-dir DIR

Both train from scratch on Fashion-MNIST, which is downloaded into DIR unless it is there. The width of MobileNeXt is
such that its multiply-adds are those of timm's mobilenetv2_050. docs/training.md has what came out.
"""
import argparse
import csv
import statistics
import subprocess
import sys
from pathlib import Path

import timm
from torchvision.datasets import FashionMNIST

from timm_mobilenext import doctor

HERE = Path(__file__).parent
IMAGE_SIZE = 32  # pixels, to which the 28 x 28 images are enlarged
# label -> the model and its arguments
MODELS = {
    'MobileNeXt': ('mobilenext_050', dict(width_mult=0.46)),
    'MobileNetV2': ('mobilenetv2_050', {}),
}
RECIPE = [  # the fine-tuning recipe, without what presumes pretrained weights
    '--config', HERE.parent / 'recipes' / 'finetune.yaml', '--layer-decay', 1, '--lr', 4e-3, '--scale', 0.8, 1,
    '--dataset', 'torch/fashion_mnist', '--num-classes', 10, '--in-chans', 1, '--img-size', IMAGE_SIZE,
    '--mean', 0.286, '--std', 0.353,
]


def count(name: str, **kwargs) -> tuple[int, int]:
    """Return the parameters of a model and its multiply-adds (convolutions, linear) for one image."""
    image = dict(input_size=(1, IMAGE_SIZE, IMAGE_SIZE))
    model = timm.create_model(name, num_classes=10, device='meta', pretrained_cfg_overlay=image, **kwargs)
    return doctor.count(model)[:2]


def train(label: str, seed: int, args: argparse.Namespace, output: Path) -> dict[str, object]:
    """Train one model with one seed, and return its row of the results."""
    name, kwargs = MODELS[label]
    params, madds = count(name, **kwargs)
    subprocess.run([str(part) for part in (
        sys.executable, '-m', 'timm_mobilenext', HERE / 'ddp.py', *RECIPE, '--data-dir', args.data_dir, '--model', name,
        '--epochs', args.epochs, '--seed', seed, '--output', output,
        *(['--model-kwargs', *(f'{k}={v}' for k, v in kwargs.items())] if kwargs else []),
    )], check=True)
    *_, last = csv.DictReader((output / 'summary.csv').open())
    return dict(
        label=label, model=name, **{'width_mult': '', **kwargs}, params=params, madds=madds, image_size=IMAGE_SIZE,
        epochs=args.epochs, seed=seed, train_loss=f'{float(last["train_loss"]):.4f}',
        top1=f'{float(last["eval_top1"]):.2f}')


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """Plot mean and standard deviation of the top-1 accuracies, and every seed."""
    import matplotlib
    matplotlib.use('agg')  # draws without a screen
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 4), layout='constrained')
    ticks = []
    for place, label in enumerate(MODELS):
        of_label = [row for row in rows if row['label'] == label]
        top1 = [float(row['top1']) for row in of_label]
        axes.errorbar(place, statistics.mean(top1), statistics.stdev(top1), fmt='o', capsize=8)
        axes.plot([place + 0.1] * len(top1), top1, '.', color='gray')
        madds, params = (int(of_label[0][key]) / 1e6 for key in ('madds', 'params'))
        ticks.append(f'{label}\n{madds:.2f} M MAdds\n{params:.2f} M parameters')
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.5, len(MODELS) - 0.5)
    axes.set_ylabel('top-1 (%), mean and standard deviation')
    axes.set_title(f'Fashion-MNIST at {IMAGE_SIZE} px, {rows[0]["epochs"]} epochs')
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data-dir', type=Path, required=True, help='root of Fashion-MNIST')
    parser.add_argument('--epochs', type=int, default=3, help='(default: %(default)s)')
    parser.add_argument('--seeds', type=int, default=3, help='at least 2 (default: %(default)s)')
    parser.add_argument('--output', type=Path, default=Path('compare'), help='folder (default: %(default)s)')
    args = parser.parse_args()

    madds = {label: count(name, **kwargs)[1] for label, (name, kwargs) in MODELS.items()}
    if max(madds.values()) > 1.03 * min(madds.values()):
        sys.exit(f'The multiply-adds differ by more than 3 %: {madds}. Change width_mult in MODELS.')
    FashionMNIST(args.data_dir, download=True)
    rows = [
        train(label, seed, args, args.output / f'{label}-{seed}') for seed in range(args.seeds) for label in MODELS]
    with (args.output / 'compare.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, rows[0], lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, args.output / 'compare.png')
    for label in MODELS:
        top1 = [float(row['top1']) for row in rows if row['label'] == label]
        print(f'{label}: top-1 {statistics.mean(top1):.2f} +- {statistics.stdev(top1):.2f} % ({len(top1)} seeds)')


if __name__ == '__main__':
    main()
