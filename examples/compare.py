"""Ask the article's questions at a small scale: same images, same recipe, three seeds each, on two sets of images.

    pip install '.[compare]' && python examples/compare.py --data-dir DIR

Three questions, in QUESTIONS: MobileNeXt or MobileNetV2, how much of the tensor should take the shortcut, and SandGlass
or inverted residual in the same network. All networks of a question have equal multiply-adds and are trained from
scratch on parts of Fashion-MNIST and CIFAR-10, which are downloaded into DIR unless they are there. Any colour images
can take the place of CIFAR-10: --photographs FOLDER, with train/<class>/ and test/<class>/ in it.

What is interrupted goes on where it was when it is called again. docs/compare.md has what came out.
"""
import argparse
import csv
import multiprocessing
import os
import runpy
import signal
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from timm.layers import make_divisible
from timm.models import register_model
from timm.models._efficientnet_builder import efficientnet_init_weights
from torchvision.datasets import CIFAR10, FashionMNIST, ImageFolder
from tqdm import tqdm

from timm_mobilenext import SandGlass, doctor

HERE = Path(__file__).parent
IMAGE_SIZE = 32  # pixels, to which the 28 x 28 images are enlarged
HALF = dict(width_mult=0.46)  # for the multiply-adds of mobilenetv2_050
# label -> the model and its arguments
MODELS = {
    'MobileNeXt': ('mobilenext_050', HALF),
    'MobileNetV2': ('compare_mobilenetv2', {}),
    'identity 1/2': ('mobilenext_050', {**HALF, 'identity_ratio': 1 / 2}),
    'identity 1/3': ('mobilenext_050', {**HALF, 'identity_ratio': 1 / 3}),
    'identity 1/4': ('mobilenext_050', {**HALF, 'identity_ratio': 1 / 4}),
    'identity 0': ('mobilenext_050', {**HALF, 'identity_ratio': 0.}),
    'MobileNetV2 of SandGlass': ('compare_mobilenetv2', {'sandglass_width': 4.4}),
}
# question -> label -> what the authors report of the networks of width 1.0, top-1 on ImageNet in %. Sources: of the
# first the introduction of the paper; of the second the README of their repository, which has no multiplier 0.
QUESTIONS = {
    'mobilenetv2': {'MobileNeXt': '74.0', 'MobileNetV2': '72.3'},
    'identity': {
        'MobileNeXt': '74.02', 'identity 1/2': '74.09', 'identity 1/3': '73.91', 'identity 1/4': '73.68',
        'identity 0': ''},
    'block': {'MobileNetV2 of SandGlass': '', 'MobileNetV2': ''},
}
# The fine-tuning recipe, without what presumes pretrained weights, with more updates, and without a jitter of colours,
# which would take as long as the networks on images this small.
RECIPE = {
    **yaml.safe_load((HERE.parent / 'recipes' / 'finetune.yaml').read_text()), 'lr_base': 4e-3, 'layer_decay': 1,
    'batch_size': 64, 'scale': [0.8, 1], 'color_jitter': None, 'num_classes': 10, 'img_size': IMAGE_SIZE, 'workers': 0,
}
# channels -> mean and standard deviation of such images: those of Fashion-MNIST and of CIFAR-10
CHANNELS: dict[int, dict[str, Any]] = {
    1: dict(mean=[0.286], std=[0.353]),
    3: dict(mean=[0.491, 0.482, 0.447], std=[0.247, 0.243, 0.262]),
}
KEY = ('set', 'label', 'seed', 'images', 'test_images', 'epochs')  # what tells one training from all others


@register_model
def compare_mobilenetv2(pretrained: bool = False, sandglass_width: float = 0., **kwargs: Any) -> torch.nn.Module:
    """Create timm's mobilenetv2_050 with the classifier's start of MobileNeXt, on request of SandGlass blocks.

    The classifier's start of timm fits 1000 classes. With ten the first epoch's loss is 6, that of MobileNeXt 2.2.

    With a `sandglass_width` all inverted residuals are exchanged; stem, first block, head and classifier stay. The
    first SandGlass block has the input and the last the output of those that they replace. Between the blocks, where
    inverted residuals are thin and SandGlass blocks are not, there are `sandglass_width` times the channels.
    """
    model = timm.create_model('mobilenetv2_050', pretrained=pretrained, **kwargs)
    if sandglass_width:
        places = [(stage, i) for stage in model.blocks[1:] for i in range(len(stage))]
        chs = model.blocks[1][0].conv_pw.in_channels
        for left, (stage, i) in zip(reversed(range(len(places))), places, strict=True):
            out_chs = stage[i].conv_pwl.out_channels
            if left:
                out_chs = make_divisible(sandglass_width * out_chs)
            stage[i] = SandGlass(
                chs, out_chs, stride=stage[i].conv_dw.stride[0], device=kwargs.get('device'), dtype=kwargs.get('dtype'))
            chs = out_chs
        efficientnet_init_weights(model)  # as the blocks that were there
    torch.nn.init.normal_(model.classifier.weight, std=0.01)
    return model


def count(label: str, channels: int) -> tuple[int, int]:
    """Return the parameters of a network and its multiply-adds (convolutions, linear) for one image."""
    name, kwargs = MODELS[label]
    image = dict(input_size=(channels, IMAGE_SIZE, IMAGE_SIZE))
    model = timm.create_model(
        name, num_classes=10, in_chans=channels, device='meta', pretrained_cfg_overlay=image, **kwargs)
    return doctor.count(model)[:2]


def write_images(folder: Path, splits: dict[str, tuple[Any, int]]) -> None:
    """Write the first images of each class to folder/<split>/<class>/, lossless.

    Args:
        folder: Folder to make; if it is there, it has the images.
        splits: A torchvision dataset for each split, and how many images to take of it.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        for split, (dataset, images) in splits.items():
            of_class: dict[int, list[int]] = {}
            for i, target in enumerate(dataset.targets):
                of_class.setdefault(int(target), []).append(i)
            chosen = [i for places in of_class.values() for i in places[:images // len(of_class)]]
            for i in tqdm(chosen, desc=f'{folder.name}, {split}', unit='image'):
                image, target = dataset[i]
                path = Path(unfinished, 'images', split, str(target), f'{i:05}.png')
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
        Path(unfinished, 'images').rename(folder)


def prepare(args: argparse.Namespace) -> dict[str, tuple[int, Path]]:
    """Write the images of each set, and return their channels and folder by the name of the set."""
    sets = {}
    for channels in args.channels:
        datasets: list[Any]
        if channels == 1:
            name = 'Fashion-MNIST'
            datasets = [FashionMNIST(args.data_dir, train=train, download=True) for train in (True, False)]
        elif args.photographs:
            name = args.photographs.name
            datasets = [ImageFolder(args.photographs / split) for split in ('train', 'test')]
        else:
            name = 'CIFAR-10'
            datasets = [CIFAR10(args.data_dir, train=train, download=True) for train in (True, False)]
        folder = args.output / 'images' / '-'.join([name, *map(str, args.images)])
        write_images(folder, dict(zip(
            ('train', 'validation'), zip(datasets, args.images, strict=True), strict=True)))
        sets[name] = channels, folder
    return sets


def start(threads: int) -> None:
    """Prepare a process for trainings: so many threads, and an end by Ctrl-C or with the process that started it."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def train(key: dict[str, Any], channels: int, images: Path, folder: Path) -> dict[str, Any]:
    """Train one network on one set of images with one seed, and return its row of the results."""
    name, kwargs = MODELS[key['label']]
    params, madds = count(key['label'], channels)
    output = checkpoints(folder, key)
    output.mkdir(parents=True, exist_ok=True)
    summary = output / 'summary.csv'
    summary.unlink(missing_ok=True)  # of a training that was interrupted
    options = dict(
        model=name, model_kwargs=kwargs, in_chans=channels, epochs=int(key['epochs']), seed=int(key['seed']),
        output=str(output))
    recipe = output / 'recipe.yaml'
    recipe.write_text(yaml.safe_dump({**RECIPE, **CHANNELS[channels], **options}))
    sys.argv = [str(HERE / 'ddp.py'), '--config', str(recipe), '--data-dir', str(images)]
    start = time.process_time()
    with (output / 'log.txt').open('w') as log, redirect_stdout(log):
        runpy.run_path(sys.argv[0], run_name='__main__')
    *_, last = csv.DictReader(summary.open())
    return dict(
        **key, model=name, **{'width_mult': '', 'identity_ratio': '', 'sandglass_width': '', **kwargs},
        params=params, madds=madds, image_size=IMAGE_SIZE, cpu_seconds=round(time.process_time() - start),
        train_loss=f'{float(last["train_loss"]):.4f}', top1=f'{float(last["eval_top1"]):.2f}')


def checkpoints(folder: Path, key: dict[str, Any]) -> Path:
    """Return the folder of a training."""
    return folder / '-'.join(str(part).replace('/', '_') for part in key.values())


def write(path: Path, rows: list[dict[str, Any]], mode: str = 'w') -> None:
    """Write rows to a CSV file, or append them to it."""
    with path.open(mode, newline='') as file:
        writer = csv.DictWriter(file, rows[0], lineterminator='\n')
        if not file.tell():
            writer.writeheader()
        writer.writerows(rows)


def top1(rows: list[dict[str, Any]], name: str, label: str) -> list[float]:
    """Return the accuracies of a network on a set of images, one a seed."""
    return [float(row['top1']) for row in rows if (row['set'], row['label']) == (name, label)]


def table(question: str, rows: list[dict[str, Any]]) -> str:
    """Return the results of a question as a table in Markdown."""
    sets = list(dict.fromkeys(row['set'] for row in rows))
    lines = [
        '| network | MAdds (M) | parameters (M) | ' + ''.join(f'{name} | ' for name in sets) + 'ImageNet, reported |',
        '|---|' + '---:|' * (3 + len(sets))]
    for label, reported in QUESTIONS[question].items():
        row = next(row for row in rows if row['label'] == label)
        cells = [label, *(f'{int(row[column]) / 1e6:.2f}' for column in ('madds', 'params'))]
        for name in sets:
            found = top1(rows, name, label)
            spread = f' +- {statistics.stdev(found):.2f}' if len(found) > 1 else ''
            cells.append(f'{statistics.mean(found):.2f}{spread}')
        lines.append(f'| {" | ".join([*cells, reported])} |')
    return '\n'.join(lines)


def draw(question: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Plot mean and standard deviation of the top-1 accuracies, every seed, and what the authors report."""
    import matplotlib
    matplotlib.use('agg')  # draws without a screen
    import matplotlib.pyplot as plt

    networks = QUESTIONS[question]
    sets = list(dict.fromkeys(row['set'] for row in rows))
    has_claims = any(networks.values())
    panels = len(sets) + has_claims
    figure, (axes,) = plt.subplots(1, panels, figsize=(4.5 * panels, 4), layout='constrained', squeeze=False)
    for axis, name in zip(axes, sets, strict=False):
        for place, label in enumerate(networks):
            found = top1(rows, name, label)
            spread = statistics.stdev(found) if len(found) > 1 else None
            axis.errorbar(place, statistics.mean(found), spread, fmt='o', capsize=8, color='C0')
            axis.plot([place + 0.15] * len(found), found, '.', color='gray')
        axis.set_title(f'{name}, {rows[0]["images"]} images, {rows[0]["epochs"]} epochs')
    if has_claims:
        axes[-1].plot(
            [place for place, claim in enumerate(networks.values()) if claim],
            [float(claim) for claim in networks.values() if claim], 'x', color='C1')
        axes[-1].set_title('ImageNet, width 1.0, reported by the authors')
    for axis in axes:
        axis.set_xticks(range(len(networks)), [label.replace(' ', '\n', 1) for label in networks])
        axis.set_xlim(-0.5, len(networks) - 0.5)
    limits = [axis.get_ylim() for axis in axes]
    span = max(5, *(high - low for low, high in limits))
    for axis, (low, high) in zip(axes, limits, strict=True):  # a point is as high in all panels
        axis.set_ylim((low + high - span) / 2, (low + high + span) / 2)
    axes[0].set_ylabel('top-1 (%), mean and standard deviation')
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data-dir', type=Path, required=True, help='root of the downloaded data sets')
    parser.add_argument('--photographs', type=Path, metavar='FOLDER', help='colour images to take (default: CIFAR-10)')
    parser.add_argument(
        '--channels', type=int, nargs='+', choices=CHANNELS, default=list(CHANNELS),
        help='sets to train on, by their channels: 1 is Fashion-MNIST, 3 the photographs (default: both)')
    parser.add_argument('--questions', nargs='+', choices=QUESTIONS, default=list(QUESTIONS), help='(default: all)')
    parser.add_argument(
        '--images', type=int, nargs=2, default=[7500, 2000], metavar=('TRAIN', 'TEST'),
        help='how many of each set (default: 7500 2000)')
    parser.add_argument('--epochs', type=int, default=8, help='(default: %(default)s)')
    parser.add_argument('--seeds', type=int, default=3, help='(default: %(default)s)')
    parser.add_argument('--jobs', type=int, default=1, help='trainings at a time (default: %(default)s)')
    parser.add_argument('--output', type=Path, default=Path('compare'), help='folder (default: %(default)s)')
    args = parser.parse_args()

    labels = list(dict.fromkeys(label for question in args.questions for label in QUESTIONS[question]))
    for channels in args.channels:
        madds = {label: count(label, channels)[1] for label in labels}
        if max(madds.values()) > 1.03 * min(madds.values()):
            sys.exit(f'The multiply-adds differ by more than 3 %: {madds}. Change the widths in MODELS.')
    sets = prepare(args)

    path = args.output / 'trainings.csv'
    rows: list[dict[str, Any]] = list(csv.DictReader(path.open())) if path.exists() else []
    keys = [
        dict(zip(KEY, key, strict=True)) for key in (
            (name, label, str(seed), *map(str, args.images), str(args.epochs))
            for seed in range(args.seeds) for name in sets for label in labels)]
    finished = [{part: row[part] for part in KEY} for row in rows]
    # One process for many trainings: to import PyTorch takes as long as some epochs. Spawned, as threads do not fork.
    pool = ProcessPoolExecutor(
        args.jobs, multiprocessing.get_context('spawn'), start, (max(1, torch.get_num_threads() // args.jobs),))
    try:
        futures = [pool.submit(train, key, *sets[key['set']], args.output) for key in keys if key not in finished]
        for future in tqdm(as_completed(futures), total=len(futures), unit='training'):
            rows.append(future.result())
            write(path, rows[-1:], 'a')  # at once, for when this is interrupted
    finally:
        pool.shutdown(cancel_futures=True)

    rows = [row for row in rows if {part: row[part] for part in KEY} in keys]
    for question in args.questions:
        of_question = [row for row in rows if row['label'] in QUESTIONS[question]]
        write(args.output / f'{question}.csv', of_question)
        draw(question, of_question, args.output / f'{question}.png')
        print(f'\n{question}\n\n{table(question, of_question)}')


if __name__ == '__main__':
    main()
