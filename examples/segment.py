"""Segment blood cells with segmentation_models_pytorch on a MobileNeXt, from scratch, also on a CPU.

    pip install '.[segmentation]' && python examples/segment.py --data-dir BCCD --train trainval --test test

The photographs and boxes are those of examples/detect.py. The masks are derived from the boxes, nobody labelled
them: each cell is the ellipse in its box, larger cells under smaller ones. docs/detection.md has the result.
"""
import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import segmentation_models_pytorch as smp
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed: run pip install '.[segmentation]' in this repository")
import torch
import torch.nn.functional as F
from detect import COLORS, SIZE, VOC, save_pairs, write_label, write_row
from PIL import ImageDraw, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.optim import create_optimizer_v2
from timm.utils import ParseKwargs, random_seed
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.classification import MulticlassJaccardIndex
from torchvision.transforms import Normalize
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_segmentation_masks
from tqdm import tqdm

import timm_mobilenext  # noqa: F401 - registers the models

IMAGE_SIZE = 192  # pixels


class Masks(Dataset):
    """Images (3, 192, 192), normalized, and masks (192, 192) of the ellipses in their boxes, 0 outside of them."""

    def __init__(self, data: VOC, flip: bool = False) -> None:
        """
        Args:
            data: The images and boxes.
            flip: Flip half of the images to each side, and half upside down.
        """
        self.data, self.flip = data, flip
        self.normalize = Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an image and its mask."""
        image, target = self.data[i]
        image = F.interpolate(image[None], (IMAGE_SIZE, IMAGE_SIZE), mode='bilinear', antialias=True)[0]
        mask = torch.zeros(IMAGE_SIZE, IMAGE_SIZE, dtype=torch.long)
        pixel = torch.arange(IMAGE_SIZE) + 0.5
        boxes = target['boxes'] * (IMAGE_SIZE / SIZE[0])
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        for k in areas.argsort(descending=True).tolist():
            x1, y1, x2, y2 = boxes[k].tolist()
            x, y = (2 * pixel - x1 - x2) / (x2 - x1), (2 * pixel - y1 - y2) / (y2 - y1)  # -1 to 1 in the box
            mask[x[None] ** 2 + y[:, None] ** 2 <= 1] = target['labels'][k]
        image = self.normalize(image)
        if self.flip:
            dims = [dim for dim in (-1, -2) if torch.rand(()) < 0.5]
            image, mask = image.flip(dims), mask.flip(dims)
        return image, mask


def train(model: torch.nn.Module, data: Dataset, args: argparse.Namespace) -> Iterator[int]:
    """Train the model with AdamW and one cycle of the learning rate, and yield the number of each finished epoch."""
    loader = DataLoader(data, args.batch_size, shuffle=True, drop_last=len(data) >= args.batch_size)
    steps = args.epochs * len(loader)
    optimizer = create_optimizer_v2(model, opt='adamw', lr=args.lr, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=args.lr, total_steps=steps)
    dice = smp.losses.DiceLoss('multiclass')
    model.train()
    with tqdm(total=steps, unit='step') as progress:
        for epoch in range(args.epochs):
            for images, masks in loader:
                logits = model(images)
                loss = F.cross_entropy(logits, masks) + dice(logits, masks)  # Dice for the small class
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                progress.set_description(f'epoch {epoch + 1}/{args.epochs}, loss {loss.item():.3f}')
                progress.update()
            yield epoch + 1


@torch.inference_mode()
def evaluate(model: torch.nn.Module, data: Masks, classes: list[str]) -> dict[str, float]:
    """Return the intersection over union of each class and their mean without the background, in percent."""
    model.eval()
    metric = MulticlassJaccardIndex(len(classes), average=None)
    for images, masks in DataLoader(data, 16):
        metric.update(model(images), masks)
    present = metric.confmat.sum(1)[1:] > 0  # in the masks
    iou = 100 * metric.compute()[1:]
    return {'iou': iou[present].mean().item()} | {
        f'iou_{name}': value.item() for name, value, there in zip(classes[1:], iou, present, strict=True) if there}


@torch.inference_mode()
def draw(model: torch.nn.Module, data: Masks, path: Path, count: int = 3) -> None:
    """Write a picture of the first images, with their masks on the left and with what the model finds on the right."""
    model.eval()
    pairs = []
    for i in range(min(count, len(data))):
        image, mask = data[i]
        photograph = pil_to_tensor(ImageOps.contain(data.data.photograph(i), (480, 480)))
        pair = []
        for labels in (mask, model(image[None])[0].argmax(0)):
            labels = F.interpolate(labels[None, None].byte(), photograph.shape[-2:])[0]
            present = [label for label in labels.unique().tolist() if label]
            picture = to_pil_image(draw_segmentation_masks(
                photograph, torch.cat([labels == label for label in present]), alpha=0.5,
                colors=[COLORS[label % len(COLORS)] for label in present]) if present else photograph)
            for k, label in enumerate(present):
                color = COLORS[label % len(COLORS)]
                write_label(ImageDraw.Draw(picture), (4, 4 + 20 * k), data.data.classes[label], color)
            pair.append(picture)
        pairs.append(pair)
    save_pairs(pairs, ('masks, from the boxes', 'found'), path)


def save(model: torch.nn.Module, folder: Path, classes: list[str]) -> None:
    """Write the model and the names of its classes to a folder, each file once it is whole."""
    part = folder.with_name('model.part')
    model.save_pretrained(part)
    (part / 'classes.txt').write_text('\n'.join(classes) + '\n')
    folder.mkdir(exist_ok=True)
    for path in part.iterdir():
        path.replace(folder / path.name)
    part.rmdir()


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--data-dir', type=Path, required=True, help='folder, as examples/detect.py takes it')
    add('--train', default='trainval', metavar='SPLIT', help='split to train on (default: %(default)s)')
    add('--test', default='test', metavar='SPLIT', help='split to evaluate on (default: %(default)s)')
    add('--backbone', default='mobilenext_035', help='network of timm (default: %(default)s)')
    add('--backbone-kwargs', nargs='*', default={}, action=ParseKwargs, help='e.g. width_mult=0.46')
    add('--epochs', type=int, default=10, help='(default: %(default)s)')
    add('--batch-size', type=int, default=8, help='(default: %(default)s)')
    add('--lr', type=float, default=5e-3, help='highest learning rate (default: %(default)s)')
    add('--seed', type=int, default=0, help='(default: %(default)s)')
    add('--output', type=Path, default=Path('segment'), help='folder for the results (default: %(default)s)')
    args = parser.parse_args()

    random_seed(args.seed)
    try:
        data = VOC(args.data_dir, args.train)
        test = VOC(args.data_dir, args.test, data.classes)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    model = smp.FPN(
        f'tu-{args.backbone}', encoder_weights=None, decoder_pyramid_channels=64, decoder_segmentation_channels=32,
        classes=len(data.classes), **args.backbone_kwargs)
    params = sum(p.numel() for p in model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))
    madds = counter.get_total_flops() // 2
    print(f'FPN on {args.backbone}: {params / 1e6:.2f} M parameters, {madds / 1e6:.1f} M multiply-adds')

    model.to(memory_format=torch.channels_last)
    args.output.mkdir(parents=True, exist_ok=True)
    folder = args.output / 'model'
    last, cpu = 'no epoch is finished', time.process_time()
    try:
        for epoch in train(model, Masks(data, flip=True), args):
            save(model, folder, data.classes)
            last = f'{folder} is of epoch {epoch}'
    except KeyboardInterrupt:
        sys.exit(f'interrupted: {last}')
    cpu = time.process_time() - cpu
    metrics = evaluate(model, Masks(test), data.classes)
    write_row(dict(
        backbone=args.backbone, **args.backbone_kwargs, params=params, madds=madds, epochs=args.epochs, seed=args.seed,
        cpu_seconds=round(cpu), **{name: f'{value:.2f}' for name, value in metrics.items()}),
        args.output / 'results.csv')
    draw(model, Masks(test), args.output / 'found.jpg')
    print(f'mean IoU {metrics["iou"]:.1f} % after {cpu / 60:.1f} CPU-minutes; picture, results and model in '
          f"{args.output}. To use it: segmentation_models_pytorch.from_pretrained('{folder}')")


if __name__ == '__main__':
    main()
