"""Train SSDLite on a MobileNeXt on any folder in the layout of PASCAL VOC, from scratch on a CPU if need be.

    pip install '.[detection]' && python examples/detect.py --data-dir BCCD --train trainval --test test

The folder has JPEGImages, Annotations and ImageSets/Main, as that of https://github.com/Shenggan/BCCD_Dataset, 364
photographs of blood cells. mAP is torchmetrics', a picture shows what is found. docs/detection.md has what came out.
"""
import argparse
import csv
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import torch
from PIL import Image
from timm.optim import create_optimizer_v2
from timm.utils import ParseKwargs, random_seed
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.detection import MeanAveragePrecision
from torchvision import tv_tensors
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.transforms import v2
from torchvision.utils import draw_bounding_boxes, make_grid, save_image
from tqdm import tqdm

from timm_mobilenext.detection import check_targets, ssdlite320

SIZE = (320, 320)  # pixels, of SSDLite


class VOC(Dataset):
    """Images, (3, 320, 320) from 0 to 1, and their targets as torchvision's detectors take them.

    Everything but the pixels is read and checked at once, so that an error comes before the training.
    """

    def __init__(self, root: Path, split: str, classes: list[str] | None = None, transform: v2.Transform | None = None):
        """
        Args:
            root: Folder with JPEGImages, Annotations and ImageSets/Main.
            split: Name of a file in ImageSets/Main, without its suffix.
            classes: Names of the classes, of which the first is label 1; by default those in the annotations, sorted.
            transform: Augmentation of image and target.

        Raises:
            ValueError: If a file is missing or cannot be trained on, naming the file.
        """
        listing = root / 'ImageSets' / 'Main' / f'{split}.txt'
        if not listing.exists():
            raise ValueError(
                f'{listing} does not exist: expected a folder in the layout of PASCAL VOC and a split of it, of which '
                f'there are {", ".join(sorted(path.stem for path in listing.parent.glob("*.txt"))) or "none"}.')
        names = [line.split()[0] for line in listing.read_text().splitlines() if line.strip()]
        annotations = [root / 'Annotations' / f'{name}.xml' for name in names]
        self.images, objects, flat = [], [], []
        for path in annotations:
            image, boxes = self.read(path)
            self.images.append(root / 'JPEGImages' / image)
            if not self.images[-1].is_file():
                raise ValueError(
                    f'{path} names the image {image}, which is not in {root / "JPEGImages"}: add it, or take '
                    f'{path.stem} out of {listing}.')
            objects.append([(name, box) for name, box in boxes if box[0] < box[2] and box[1] < box[3]])
            flat += [path] * (len(boxes) - len(objects[-1]))
        if flat:
            print(f'{split}: {len(flat)} boxes have no area and are left out, the first in {flat[0]}')
        if not all(objects):
            print(f'{split}: {objects.count([])} of {len(objects)} images have no boxes, from which SSD learns nothing')
        self.classes = classes or sorted({name for boxes in objects for name, _ in boxes})
        self.targets = []
        for path, boxes in zip(annotations, objects, strict=True):
            unknown = {name for name, _ in boxes} - {*self.classes}
            if unknown:
                raise ValueError(
                    f'{path} has the class {unknown.pop()!r}, expected one of {", ".join(self.classes)}: correct the '
                    'name, or name all classes with --classes.')
            self.targets.append(dict(
                boxes=torch.tensor([box for _, box in boxes], dtype=torch.float32).reshape(-1, 4),
                labels=torch.tensor([self.classes.index(name) + 1 for name, _ in boxes], dtype=torch.long)))
        check_targets(self.targets, len(self.classes) + 1, [*map(str, annotations)])
        self.transform = transform

    @staticmethod
    def read(path: Path) -> tuple[str, list[tuple[str, list[float]]]]:
        """Return the image file of an annotation, and the class and the box of each of its objects."""
        try:
            root = ElementTree.parse(path).getroot()
            return root.findtext('filename') or '', [
                (node.findtext('name') or '', [
                    float(node.find('bndbox').findtext(side)) for side in ('xmin', 'ymin', 'xmax', 'ymax')])
                for node in root.iter('object')]
        except (OSError, ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f'{path} cannot be read as an annotation of PASCAL VOC: {error}.') from error

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return an image and its target."""
        image = tv_tensors.Image(Image.open(self.images[i]).convert('RGB'))
        boxes = tv_tensors.BoundingBoxes(self.targets[i]['boxes'], format='XYXY', canvas_size=image.shape[-2:])
        target = dict(self.targets[i], boxes=boxes)
        image, target = v2.Resize(SIZE)(image, target)
        if self.transform:
            image, target = self.transform(image, target)
        return image.as_subclass(torch.Tensor) / 255, {k: v.as_subclass(torch.Tensor) for k, v in target.items()}


def collate(samples: list) -> tuple:
    """Return lists of images and targets, as torchvision's detectors take them."""
    return tuple(map(list, zip(*samples, strict=True)))


def train(model: torch.nn.Module, data: Dataset, args: argparse.Namespace) -> None:
    """Train the model with AdamW and one cycle of the learning rate."""
    loader = DataLoader(
        data, args.batch_size, shuffle=True, drop_last=len(data) >= args.batch_size, collate_fn=collate,
        num_workers=args.workers, persistent_workers=args.workers > 0)
    steps = args.epochs * len(loader)
    optimizer = create_optimizer_v2(model, opt='adamw', lr=args.lr, weight_decay=args.weight_decay)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=args.lr, total_steps=steps)
    model.train()
    with tqdm(total=steps, unit='step') as progress:
        for epoch in range(args.epochs):
            for images, targets in loader:
                losses = model(images, targets)
                loss = sum(losses.values())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                progress.set_description(f'epoch {epoch + 1}/{args.epochs}, loss {loss.item():.3f}')
                progress.update()


@torch.inference_mode()
def evaluate(model: torch.nn.Module, data: VOC, batch_size: int) -> tuple[dict[str, float], list[dict]]:
    """Return the metrics in percent, as COCO defines them, and what the model found in each image."""
    model.eval()
    metric, found = MeanAveragePrecision(class_metrics=True), []
    for images, targets in tqdm(DataLoader(data, batch_size, collate_fn=collate), desc='evaluating', leave=False):
        found += model(images)
        metric.update(found[-len(images):], targets)
    result = metric.compute()
    metrics = {'map': result['map'], 'map_50': result['map_50']}
    metrics |= {f'map_{data.classes[label - 1]}': value for label, value in zip(
        result['classes'].tolist(), result['map_per_class'], strict=True)}
    return {name: 100 * value.item() for name, value in metrics.items()}, found


def draw(data: VOC, found: list[dict], path: Path, count: int = 6, score: float = 0.5) -> None:
    """Write a picture of the first images with what was found in them, each class in a color of its own."""
    colors = ['crimson', 'royalblue', 'limegreen', 'darkorange', 'purple', 'teal', 'gold', 'magenta']
    pictures = []
    for (image, _), boxes in zip((data[i] for i in range(min(count, len(data)))), found, strict=False):
        keep = boxes['scores'] > score
        labels = boxes['labels'][keep].tolist()
        pictures.append(draw_bounding_boxes(
            image, boxes['boxes'][keep], [data.classes[label - 1] for label in labels],
            colors=[colors[label % len(colors)] for label in labels] or None, width=2))
    save_image(make_grid(pictures, nrow=3, padding=4, pad_value=1.), path)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--data-dir', type=Path, required=True, help='folder with JPEGImages, Annotations and ImageSets')
    add('--train', default='trainval', metavar='SPLIT', help='split to train on (default: %(default)s)')
    add('--test', default='test', metavar='SPLIT', help='split to evaluate on (default: %(default)s)')
    add('--classes', nargs='+', help='names of the classes (default: those of the training annotations)')
    add('--backbone', default='mobilenext_035', help='any of timm with taps (default: %(default)s)')
    add('--backbone-kwargs', nargs='*', default={}, action=ParseKwargs, help='e.g. width_mult=0.46')
    add('--pretrained', action='store_true', help='start from pretrained weights of the backbone')
    add('--epochs', type=int, default=20, help='(default: %(default)s)')
    add('--batch-size', type=int, default=8, help='(default: %(default)s)')
    add('--lr', type=float, default=2e-3, help='highest learning rate (default: %(default)s)')
    add('--weight-decay', type=float, default=0.05, help='(default: %(default)s)')
    add('--scales', nargs=7, type=float, default=[0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.], metavar='SHARE',
        help='sizes of the default boxes of the six maps and one more, shares of the image (default: %(default)s)')
    add('--iou-thresh', type=float, default=0.5, help='overlap of a default box with its box (default: %(default)s)')
    add('--vflip', type=float, default=0., help='probability of a vertical flip (default: %(default)s)')
    add('--workers', type=int, default=0, help='processes that load images (default: %(default)s)')
    add('--seed', type=int, default=0, help='(default: %(default)s)')
    add('--output', type=Path, default=Path('detect'), help='folder for what comes out (default: %(default)s)')
    args = parser.parse_args()

    random_seed(args.seed)
    try:
        augment = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(args.vflip)])
        data = VOC(args.data_dir, args.train, args.classes, augment)
        test = VOC(args.data_dir, args.test, data.classes)
        model = ssdlite320(
            args.backbone, len(data.classes) + 1, pretrained_backbone=args.pretrained,
            backbone_kwargs=args.backbone_kwargs, iou_thresh=args.iou_thresh,
            anchor_generator=DefaultBoxGenerator([[2, 3]] * 6, scales=args.scales))
    except ValueError as error:
        sys.exit(f'error: {error}')
    model.to(memory_format=torch.channels_last)
    params = sum(p.numel() for p in model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()([torch.zeros(3, *SIZE)])
    madds = counter.get_total_flops() // 2
    print(f'SSDLite on {args.backbone}: {params / 1e6:.2f} M parameters, {madds / 1e6:.1f} M multiply-adds; '
          f'{len(data)} images to train on, {len(test)} to test on, classes {", ".join(data.classes)}')

    cpu = time.process_time()
    train(model, data, args)
    cpu = time.process_time() - cpu
    metrics, found = evaluate(model, test, args.batch_size)
    args.output.mkdir(parents=True, exist_ok=True)
    draw(test, found, args.output / 'found.jpg')
    torch.save(model.state_dict(), args.output / 'ssdlite320.pth')
    row = dict(
        backbone=args.backbone, **args.backbone_kwargs, params=params, madds=madds, epochs=args.epochs, seed=args.seed,
        cpu_seconds=round(cpu), **{name: f'{value:.2f}' for name, value in metrics.items()})
    with (args.output / 'results.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, row, lineterminator='\n')
        writer.writeheader()
        writer.writerow(row)
    print(f'mAP {metrics["map"]:.1f} %, mAP50 {metrics["map_50"]:.1f} % after {cpu / 60:.1f} CPU-minutes; '
          f'picture, weights and results in {args.output}')


if __name__ == '__main__':
    main()
