"""Ask the article's questions on small images: same images, same recipe, same start, three seeds each.

    pip install '.[compare]' && python examples/compare.py --data-dir DIR

Three questions, in QUESTIONS: MobileNeXt or MobileNetV2, how much of the tensor should take the shortcut, and SandGlass
or inverted residual in the same network. All networks of a question have equal multiply-adds and are trained from
scratch on Fashion-MNIST and CIFAR-10, which are downloaded into DIR unless they are there. Any colour images can take
the place of CIFAR-10: --photographs FOLDER, with train/<class>/ and test/<class>/ in it.

A training that is interrupted resumes from its last epoch when the command is given again. Several of these commands
with different --seeds can run beside each other; the command for all seeds then makes the tables. docs/compare.md has
what came out.
"""
import argparse
import csv
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.layers import make_divisible
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models._efficientnet_builder import efficientnet_init_weights
from timm.optim import create_optimizer_v2
from torchvision.datasets import CIFAR10, FashionMNIST, ImageFolder
from tqdm import tqdm

from timm_mobilenext import SandGlass, doctor

IMAGE_SIZE = 64  # pixels, to which the 28 and 32 pixels of the images are enlarged: the networks divide them by 32
LR, WEIGHT_DECAY, SMOOTHING, SHIFT = 3e-3, 0.05, 0.1, 4  # SHIFT: of the crops, in pixels of the image
HALF = dict(width_mult=0.46)  # for the multiply-adds of mobilenetv2_050
# label -> arguments of `create`
MODELS: dict[str, dict[str, Any]] = {
    'MobileNeXt': HALF,
    'MobileNetV2': {},
    'identity 1/2': {**HALF, 'identity_ratio': 1 / 2},
    'identity 0': {**HALF, 'identity_ratio': 0.},
    'MobileNetV2 of SandGlass': {'sandglass_width': 4.4},
}
# question -> label -> what the authors report of the networks of width 1.0, top-1 on ImageNet in %. Sources: of the
# first the introduction of the paper; of the second the README of their repository, which has no multiplier 0.
QUESTIONS = {
    'mobilenetv2': {'MobileNeXt': '74.0', 'MobileNetV2': '72.3'},
    'identity': {'MobileNeXt': '74.02', 'identity 1/2': '74.09', 'identity 0': ''},
    'block': {'MobileNetV2 of SandGlass': '', 'MobileNetV2': ''},
}
# channels -> mean and standard deviation of such images: those of Fashion-MNIST and of CIFAR-10
CHANNELS = {
    3: ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    1: ((0.286,), (0.353,)),
}
EPOCHS = {3: 15, 1: 6}  # channels -> epochs; docs/compare.md says what the last one still adds
KEY = ('set', 'label', 'seed', 'batch_size', 'epochs')  # what tells one training from all others


def create(label: str, **kwargs: Any) -> torch.nn.Module:
    """Create a network: a MobileNeXt, or timm's MobileNetV2 with the same start, on request of SandGlass blocks.

    The residual branches of all networks start at zero, and the classifiers as MobileNeXt's does, N(0, 0.01); timm's
    MobileNetV2 starts it in a range that fits 1000 classes.

    With a `sandglass_width` all inverted residuals are exchanged; stem, first block, head and classifier stay. The
    first SandGlass block has the input and the last the output of those that they replace. Between the blocks, where
    inverted residuals are thin and SandGlass blocks are not, there are `sandglass_width` times the channels.

    Args:
        label: One of MODELS.
        **kwargs: Arguments of timm's `create_model`.
    """
    options = MODELS[label]
    if 'width_mult' in options:
        return timm.create_model('mobilenext_050', **{'zero_init_last': True, **options, **kwargs})
    model = timm.create_model('mobilenetv2_050', **kwargs)
    if options:
        places = [(stage, i) for stage in model.blocks[1:] for i in range(len(stage))]
        chs = model.blocks[1][0].conv_pw.in_channels
        for left, (stage, i) in zip(reversed(range(len(places))), places, strict=True):
            out_chs = stage[i].conv_pwl.out_channels
            if left:
                out_chs = make_divisible(options['sandglass_width'] * out_chs)
            stage[i] = SandGlass(
                chs, out_chs, stride=stage[i].conv_dw.stride[0], device=kwargs.get('device'), dtype=kwargs.get('dtype'))
            chs = out_chs
        efficientnet_init_weights(model)  # as the blocks that were there
    for block in model.modules():
        if isinstance(block, InvertedResidual) and block.has_skip:
            torch.nn.init.zeros_(block.bn3.weight)
        elif isinstance(block, SandGlass) and block.identity_chs:
            torch.nn.init.zeros_(block.dw_end.bn.weight[:block.identity_chs])
    torch.nn.init.normal_(model.classifier.weight, std=0.01)
    return model


def count(label: str, channels: int) -> tuple[int, int]:
    """Return the parameters of a network and its multiply-adds (convolutions, linear) for one image."""
    image = dict(input_size=(channels, IMAGE_SIZE, IMAGE_SIZE))
    model = create(label, num_classes=10, in_chans=channels, device='meta', pretrained_cfg_overlay=image)
    return doctor.count(model)[:2]


def load(channels: int, args: argparse.Namespace) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the images (B, C, H, W), as bytes, and the labels (B,) for training and for testing."""
    sets = []
    for train in (True, False):
        if channels == 1:
            data: Any = FashionMNIST(args.data_dir, train=train, download=True)
            images, labels = data.data[:, None], data.targets
        elif args.photographs:
            data = ImageFolder(args.photographs / ('train' if train else 'test'))
            images = torch.stack([
                torch.from_numpy(np.array(image.resize((min(image.width, IMAGE_SIZE),) * 2)))
                for image, _ in tqdm(data, unit='image')]).permute(0, 3, 1, 2)
            labels = torch.tensor(data.targets)
        else:
            data = CIFAR10(args.data_dir, train=train, download=True)
            images, labels = torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets)
        sets.append((images.contiguous(), labels.long()))
    return sets


def prepare(images: torch.Tensor) -> torch.Tensor:
    """Return images (B, C, H, W), bytes, normalized and of the networks' size."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in CHANNELS[images.shape[1]])
    images = F.interpolate(images / 255, size=IMAGE_SIZE, mode='bilinear')
    return ((images - mean) / std).to(memory_format=torch.channels_last)


def augment(images: torch.Tensor) -> torch.Tensor:
    """Return images (B, C, H, W), each shifted by up to SHIFT pixels, half of them flipped."""
    height, width = images.shape[-2:]
    padded = F.pad(images, [SHIFT] * 4)
    tops, lefts = torch.randint(2 * SHIFT + 1, (2, len(images))).tolist()
    images = torch.stack([
        image[:, top:top + height, left:left + width] for image, top, left in zip(padded, tops, lefts, strict=True)])
    flipped = torch.rand(len(images)) < 0.5
    images[flipped] = images[flipped].flip(-1)
    return images


@torch.inference_mode()
def evaluate(model: torch.nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return the top-1 accuracy in percent."""
    model.eval()
    correct = sum((model(prepare(images)).argmax(1) == labels).sum() for images, labels in zip(
        *(part.split(256) for part in data), strict=True))
    return 100 * float(correct) / len(data[1])


def train(key: dict[str, Any], sets: list[tuple[torch.Tensor, torch.Tensor]], folder: Path) -> None:
    """Train one network on one set of images with one seed, and write a row for each epoch into a CSV file."""
    (images, labels), test = sets
    batch_size, epochs = key['batch_size'], key['epochs']
    steps = len(labels) // batch_size
    torch.manual_seed(key['seed'])
    model = create(key['label'], num_classes=10, in_chans=images.shape[1]).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt='adamw', lr=LR, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=epochs * steps)
    parts: dict[str, Any] = dict(model=model, optimizer=optimizer, scheduler=scheduler)
    params, madds = count(key['label'], images.shape[1])

    rows: list[dict[str, Any]] = []
    checkpoint = path_of(key, folder, '.pth')
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        rows = state['rows']
        for part, value in parts.items():
            value.load_state_dict(state[part])
    for epoch in range(len(rows), epochs):
        start = time.process_time()
        torch.manual_seed(1000 * key['seed'] + epoch)  # so that a training that is resumed sees the same images
        model.train()
        for batch in torch.randperm(len(labels))[:steps * batch_size].split(batch_size):
            logits = model(prepare(augment(images[batch])))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        seconds = time.process_time() - start + (rows[-1]['cpu_seconds'] if rows else 0)
        rows.append(dict(
            **key, params=params, madds=madds, epoch=epoch + 1, cpu_seconds=seconds,
            top1=round(evaluate(model, test), 2)))
        print(f'{key["set"]}, {key["label"]}, seed {key["seed"]}, epoch {epoch + 1} of {epochs}: {rows[-1]["top1"]} %',
              flush=True)
        torch.save({part: value.state_dict() for part, value in parts.items()} | {'rows': rows}, f'{checkpoint}.tmp')
        os.replace(f'{checkpoint}.tmp', checkpoint)
    write(path_of(key, folder, '.csv'), [{**row, 'cpu_seconds': round(row['cpu_seconds'])} for row in rows])
    checkpoint.unlink()


def path_of(key: dict[str, Any], folder: Path, suffix: str) -> Path:
    """Return the file of a training."""
    return folder / ('-'.join(str(part).replace('/', '_') for part in key.values()) + suffix)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows to a CSV file, which is there as a whole or not at all."""
    with Path(f'{path}.tmp').open('w', newline='') as file:
        writer = csv.DictWriter(file, rows[0], lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    os.replace(f'{path}.tmp', path)


def trainings(rows: list[dict[str, str]], name: str, label: str) -> list[list[dict[str, str]]]:
    """Return the rows of a network on a set of images, a list for each seed."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if (row['set'], row['label']) == (name, label):
            found.setdefault(row['seed'], []).append(row)
    return list(found.values())


def minutes_to_90(training: list[dict[str, str]]) -> float:
    """Return the CPU-minutes until an epoch reached 90 % of the final accuracy."""
    return min(float(row['cpu_seconds']) for row in training if float(
        row['top1']) >= 0.9 * float(training[-1]['top1'])) / 60


def table(question: str, rows: list[dict[str, str]]) -> str:
    """Return the results of a question as a table in Markdown."""
    lines = [
        '| images | network | MAdds (M) | parameters (M) | top-1, mean +- standard deviation (%) | each seed | '
        'CPU-minutes | to 90 % of the final top-1 | ImageNet, reported |', '|---|---|' + '---:|' * 7]
    for name in dict.fromkeys(row['set'] for row in rows):
        for label, reported in QUESTIONS[question].items():
            found = trainings(rows, name, label)
            final = [training[-1] for training in found]
            top1 = [float(row['top1']) for row in final]
            spread = f' +- {statistics.stdev(top1):.2f}' if len(top1) > 1 else ''
            lines.append('| ' + ' | '.join([
                name, label, f'{int(final[0]["madds"]) / 1e6:.2f}', f'{int(final[0]["params"]) / 1e6:.2f}',
                f'{statistics.mean(top1):.2f}{spread}', ', '.join(f'{x:.2f}' for x in top1),
                f'{statistics.mean(float(row["cpu_seconds"]) for row in final) / 60:.1f}',
                f'{statistics.mean(map(minutes_to_90, found)):.1f}', reported]) + ' |')
    return '\n'.join(lines)


def draw(question: str, rows: list[dict[str, str]], path: Path) -> None:
    """Plot top-1 over CPU-minutes, a line a training."""
    import matplotlib
    matplotlib.use('agg')  # draws without a screen
    import matplotlib.pyplot as plt

    sets = list(dict.fromkeys(row['set'] for row in rows))
    figure, (axes,) = plt.subplots(1, len(sets), figsize=(5.5 * len(sets), 4), layout='constrained', squeeze=False)
    for axis, name in zip(axes, sets, strict=True):
        for color, label in enumerate(QUESTIONS[question]):
            for i, training in enumerate(trainings(rows, name, label)):
                axis.plot(
                    [float(row['cpu_seconds']) / 60 for row in training], [float(row['top1']) for row in training],
                    '.-', color=f'C{color}', label=None if i else label)
        axis.set_title(name)
        axis.set_xlabel('CPU-minutes')
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_ylabel('top-1 (%)')
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--data-dir', type=Path, required=True, help='root of the downloaded data sets')
    add('--photographs', type=Path, metavar='FOLDER', help='colour images in the place of CIFAR-10')
    add('--channels', type=int, nargs='+', choices=CHANNELS, default=list(CHANNELS),
        help='sets to train on, by their channels: 1 is Fashion-MNIST, 3 the photographs (default: both)')
    add('--questions', nargs='+', choices=QUESTIONS, default=list(QUESTIONS), help='(default: all)')
    add('--batch-size', type=int, default=64, help='(default: %(default)s)')
    add('--epochs', type=int, help=f'(default: {EPOCHS[3]} on CIFAR-10, {EPOCHS[1]} on Fashion-MNIST)')
    add('--seeds', type=int, nargs='+', default=[0, 1, 2], help='(default: %(default)s)')
    add('--output', type=Path, default=Path('compare'), help='folder (default: %(default)s)')
    args = parser.parse_args()

    labels = list(dict.fromkeys(label for question in args.questions for label in QUESTIONS[question]))
    madds = {label: count(label, 3)[1] for label in labels}
    if max(madds.values()) > 1.03 * min(madds.values()):
        sys.exit(f'The multiply-adds differ by more than 3 %: {madds}. Change the widths in MODELS.')
    folder = args.output / 'trainings'
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    for channels in args.channels:
        photographs = args.photographs.name if args.photographs else 'CIFAR-10'
        name = 'Fashion-MNIST' if channels == 1 else photographs
        keys = [
            dict(zip(KEY, (name, label, seed, args.batch_size, args.epochs or EPOCHS[channels]), strict=True))
            for seed in args.seeds for label in labels]
        missing = [key for key in keys if not path_of(key, folder, '.csv').exists()]
        sets = load(channels, args) if missing else []
        for key in missing:
            train(key, sets, folder)
        for key in keys:
            with path_of(key, folder, '.csv').open() as file:
                rows += csv.DictReader(file)
    for question in args.questions:
        of_question = [row for row in rows if row['label'] in QUESTIONS[question]]
        write(args.output / f'{question}.csv', of_question)
        draw(question, of_question, args.output / f'{question}.png')
        print(f'\n{question}\n\n{table(question, of_question)}')


if __name__ == '__main__':
    main()
