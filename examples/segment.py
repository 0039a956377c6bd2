"""Segment blood cells with segmentation_models_pytorch on a MobileNeXt, from scratch on a CPU if need be.

    pip install '.[segmentation]' && python examples/segment.py --data-dir BCCD --train trainval --test test

The photographs and boxes are those of examples/detect.py. The masks are derived from the boxes, they are not labelled
by hand: each cell is the ellipse in its box, larger cells under smaller ones. docs/detection.md has what came out.
"""
import argparse
import csv
import time
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from detect import SIZE, VOC
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.optim import create_optimizer_v2
from timm.utils import ParseKwargs, random_seed
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.classification import MulticlassJaccardIndex
from torchvision.transforms import Normalize
from torchvision.utils import draw_segmentation_masks, make_grid, save_image
from tqdm import tqdm

import timm_mobilenext  # noqa: F401 - registers the models

IMAGE_SIZE = 192  # pixels
COLORS = ['crimson', 'royalblue', 'limegreen', 'darkorange', 'purple', 'teal', 'gold', 'magenta']


class Masks(Dataset):
    """Images (3, 192, 192), normalized, and masks (192, 192) of the ellipses in their boxes, 0 for what is in none."""

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


def train(model: torch.nn.Module, data: Dataset, args: argparse.Namespace) -> None:
    """Train the model with AdamW and one cycle of the learning rate."""
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


@torch.inference_mode()
def evaluate(model: torch.nn.Module, data: Masks, classes: list[str]) -> dict[str, float]:
    """Return the intersection over union of each class and their mean without the background, in percent."""
    model.eval()
    metric = MulticlassJaccardIndex(len(classes) + 1, average=None)
    for images, masks in DataLoader(data, 16):
        metric.update(model(images), masks)
    iou = 100 * metric.compute()[1:]
    return {'iou': iou.mean().item()} | {f'iou_{name}': value.item() for name, value in zip(classes, iou, strict=True)}


@torch.inference_mode()
def draw(model: torch.nn.Module, data: Masks, path: Path, count: int = 3) -> None:
    """Write a picture of the first images with their masks above and with what the model finds below."""
    model.eval()
    above, below = [], []
    for i in range(min(count, len(data))):
        image, mask = data[i]
        found = model(image[None])[0].argmax(0)
        picture, _ = data.data[i]
        picture = F.interpolate(picture[None], mask.shape, mode='bilinear', antialias=True)[0]
        for row, labels in ((above, mask), (below, found)):
            present = [label for label in labels.unique().tolist() if label]
            row.append(draw_segmentation_masks(
                picture, torch.stack([labels == label for label in present]), alpha=0.5,
                colors=[COLORS[label % len(COLORS)] for label in present]) if present else picture)
    save_image(make_grid(above + below, nrow=len(above), padding=4, pad_value=1.), path)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--data-dir', type=Path, required=True, help='folder with JPEGImages, Annotations and ImageSets')
    add('--train', default='trainval', metavar='SPLIT', help='split to train on (default: %(default)s)')
    add('--test', default='test', metavar='SPLIT', help='split to evaluate on (default: %(default)s)')
    add('--backbone', default='mobilenext_035', help='any of timm (default: %(default)s)')
    add('--backbone-kwargs', nargs='*', default={}, action=ParseKwargs, help='e.g. width_mult=0.46')
    add('--epochs', type=int, default=10, help='(default: %(default)s)')
    add('--batch-size', type=int, default=8, help='(default: %(default)s)')
    add('--lr', type=float, default=5e-3, help='highest learning rate (default: %(default)s)')
    add('--seed', type=int, default=0, help='(default: %(default)s)')
    add('--output', type=Path, default=Path('segment'), help='folder for what comes out (default: %(default)s)')
    args = parser.parse_args()

    random_seed(args.seed)
    data = VOC(args.data_dir, args.train)
    test = VOC(args.data_dir, args.test, data.classes)
    model = smp.FPN(
        f'tu-{args.backbone}', encoder_weights=None, decoder_pyramid_channels=64, decoder_segmentation_channels=32,
        classes=len(data.classes) + 1, **args.backbone_kwargs)
    params = sum(p.numel() for p in model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))
    madds = counter.get_total_flops() // 2
    print(f'FPN on {args.backbone}: {params / 1e6:.2f} M parameters, {madds / 1e6:.1f} M multiply-adds')

    model.to(memory_format=torch.channels_last)
    cpu = time.process_time()
    train(model, Masks(data, flip=True), args)
    cpu = time.process_time() - cpu
    metrics = evaluate(model, Masks(test), data.classes)
    args.output.mkdir(parents=True, exist_ok=True)
    draw(model, Masks(test), args.output / 'found.jpg')
    model.save_pretrained(args.output / 'model')
    row = dict(
        backbone=args.backbone, **args.backbone_kwargs, params=params, madds=madds, epochs=args.epochs, seed=args.seed,
        cpu_seconds=round(cpu), **{name: f'{value:.2f}' for name, value in metrics.items()})
    with (args.output / 'results.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, row, lineterminator='\n')
        writer.writeheader()
        writer.writerow(row)
    print(f'mean IoU of {", ".join(data.classes)}: {metrics["iou"]:.1f} % after {cpu / 60:.1f} CPU-minutes; picture, '
          f'model and results in {args.output}')


if __name__ == '__main__':
    main()
