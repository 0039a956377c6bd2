"""Train SSDLite on a MobileNeXt to find objects in photographs of your own, from scratch, also on a CPU.

    pip install '.[detection]'
    python examples/detect.py --data-dir photographs --train train --test test

photographs/train and photographs/test have the photographs with their annotations beside them, as labelImg writes
them; or photographs has the layout of PASCAL VOC. docs/detection.md draws both and shows how to use the result.
"""
import argparse
import csv
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps
from timm.optim import create_optimizer_v2
from timm.utils import ParseKwargs, random_seed
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import tv_tensors
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.transforms import v2

try:
    import pycocotools  # noqa: F401 - torchmetrics needs it to evaluate
    from torchmetrics.detection import MeanAveragePrecision
    from tqdm import tqdm

    from timm_mobilenext.detection import save, ssdlite320
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed: run pip install '.[detection]' in this repository")

SIZE = (320, 320)  # pixels, of SSDLite
COLORS = ['crimson', 'royalblue', 'green', 'chocolate', 'purple', 'teal', 'deeppink', 'saddlebrown']


def find_annotations(root: Path, split: str) -> tuple[list[Path], Path]:
    """Return the annotations of a split and the folder of its images.

    ImageSets/Main lists them, in the layout of PASCAL VOC; otherwise they are in the folder of the split's name.
    """
    if not root.is_dir():
        raise ValueError(f'Folder {root} does not exist.')
    listing, folder = root / 'ImageSets' / 'Main' / f'{split}.txt', root / split
    if listing.is_file():
        names = [line.split()[0] for line in listing.read_text().splitlines() if line.strip()]
        return [root / 'Annotations' / f'{name}.xml' for name in names], root / 'JPEGImages'
    if any(folder.glob('*.xml')):
        return sorted(folder.glob('*.xml')), folder
    splits = sorted({path.stem for path in listing.parent.glob('*.txt')} or {
        path.parent.name for path in root.glob('*/*.xml') if path.parent.name != 'Annotations'})
    raise ValueError(
        f'{root} has no split {split!r}: expected {listing}, or a folder {folder} of images and their annotations. ' + (
            f'It has {", ".join(splits)}: choose with --train and --test.' if splits else
            'Move the images and annotations into two such folders, one to train on and one to test on.'))


class Sample(NamedTuple):
    """An image and its objects."""

    image: Path
    is_turned: bool  # whether the boxes are of the image as viewers turn it by its EXIF data, or as it lies in the file
    objects: list[tuple[str, list[float]]]  # class and box, x1, y1, x2, y2 in pixels


def read_annotation(path: Path, images: dict[str, Path]) -> Sample:
    """Read an annotation, and check that its boxes belong to its image.

    Args:
        path: The annotation.
        images: The images of the folder, by name without suffix.
    """
    try:
        root = ElementTree.parse(path).getroot()
        size = tuple(int(root.findtext(f'size/{side}') or 0) for side in ('width', 'height'))
        objects = [
            (node.findtext('name').strip(), [
                float(node.findtext(f'bndbox/{side}')) for side in ('xmin', 'ymin', 'xmax', 'ymax')])
            for node in root.iter('object')]
    except (OSError, ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} cannot be read as an annotation of PASCAL VOC: expected XML in which each object has a name, and '
            f'a bndbox of the numbers xmin, ymin, xmax and ymax ({error}).') from error
    # PASCAL VOC and labelImg give an annotation the name of its image; `filename` may be older than the image
    name = root.findtext('filename') or path.stem
    image = images.get(path.stem) or images.get(PureWindowsPath(name).stem)
    if image is None:
        raise ValueError(f'{path} needs image {name!r}, which does not exist: expected e.g. {path.stem}.jpg.')
    with Image.open(image) as file:
        stored, mode = file.size, file.mode
        shown = stored[::-1] if file.getexif().get(ExifTags.Base.Orientation, 1) > 4 else stored
    if mode == 'F':
        raise ValueError(f'{image} has floating-point numbers: give an image of 8 or 16 bits, such as PNG or JPEG.')
    if all(size) and size not in (shown, stored):
        raise ValueError(
            f'{path} is of an image of {size[0]} x {size[1]} pixels, {image} has {shown[0]} x {shown[1]}: expected '
            'equal sizes, since the boxes are in pixels.')
    is_turned = not all(size) or size == shown
    width, height = shown if is_turned else stored
    return Sample(image, is_turned, [
        (label, [max(x1, 0.), max(y1, 0.), min(x2, width), min(y2, height)]) for label, (x1, y1, x2, y2) in objects])


def read_image(path: Path, is_turned: bool = True) -> Image.Image:
    """Return an image in RGB, 8 bits a channel, turned as its EXIF data says or as it lies in the file."""
    image = Image.open(path)
    if is_turned:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I'):  # 16 bits of grey, which PIL's conversion cuts off at 255
        image = image.convert('I').point(lambda value: value / 257).convert('L')
    return image.convert('RGB')


class VOC(Dataset):
    """Images, (3, 320, 320) from 0 to 1, and their targets as torchvision's detectors take them.

    All except the pixels is read and checked at once, so that an error comes before the training.
    """

    def __init__(self, root: Path, split: str, classes: list[str] | None = None, transform: v2.Transform | None = None):
        """
        Args:
            root: Folder in the layout of PASCAL VOC, or of folders of images with their annotations beside them.
            split: Name of a file in ImageSets/Main, without its suffix, or of one of these folders.
            classes: Names of the labels, of which 0 is the background; by default those in the annotations, sorted.
            transform: Augmentation of image and target.

        Raises:
            ValueError: If a file is missing or cannot be trained on, naming the file.
        """
        annotations, folder = find_annotations(root, split)
        suffixes = Image.registered_extensions()
        images = {path.stem: path for path in sorted(folder.glob('*')) if path.suffix.lower() in suffixes}
        self.samples, flat, present = [], [], {}
        for path in annotations:
            sample = read_annotation(path, images)
            objects = [(name, box) for name, box in sample.objects if box[0] < box[2] and box[1] < box[3]]
            flat += [path] * (len(sample.objects) - len(objects))
            self.samples.append(sample._replace(objects=objects))
            present |= {name: path for name, _ in objects}
        if flat:
            print(f'{split}: {len(flat)} boxes have no area and are left out, the first in {flat[0]}')
        if not present:
            raise ValueError(f'The split {split!r} of {root} has no boxes in {len(annotations)} images: expected some.')
        empty = sum(not sample.objects for sample in self.samples)
        if empty:
            print(f'{split}: {empty} of {len(annotations)} images have no boxes, from which SSD learns nothing')
        self.classes = classes or ['__background__', *sorted(present)]
        for name in present.keys() - self.classes[1:]:
            raise ValueError(
                f'{present[name]} has the class {name!r}, expected one of {", ".join(self.classes[1:])}: correct the '
                'name, or name all classes with --classes.')
        absent = [name for name in self.classes[1:] if name not in present]
        if absent:
            print(f'{split}: no boxes of {", ".join(absent)}')
        self.targets = [dict(
            boxes=torch.tensor([box for _, box in sample.objects], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor([self.classes.index(name) for name, _ in sample.objects], dtype=torch.long),
        ) for sample in self.samples]
        self.transform = transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def photograph(self, i: int) -> Image.Image:
        """Return an image in its own size."""
        return read_image(*self.samples[i][:2])

    def __getitem__(self, i: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return an image and its target."""
        image = tv_tensors.Image(self.photograph(i))
        boxes = tv_tensors.BoundingBoxes(self.targets[i]['boxes'], format='XYXY', canvas_size=image.shape[-2:])
        target = dict(self.targets[i], boxes=boxes)
        image, target = v2.Resize(SIZE)(image, target)
        if self.transform:
            image, target = self.transform(image, target)
        return image.as_subclass(torch.Tensor) / 255, {k: v.as_subclass(torch.Tensor) for k, v in target.items()}


def collate(samples: list) -> tuple:
    """Return lists of images and targets, as torchvision's detectors take them."""
    return tuple(map(list, zip(*samples, strict=True)))


def train(model: torch.nn.Module, data: Dataset, args: argparse.Namespace) -> Iterator[int]:
    """Train the model with AdamW and one cycle of the learning rate, and yield the number of each finished epoch."""
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
            yield epoch + 1


@torch.inference_mode()
def evaluate(model: torch.nn.Module, data: VOC, batch_size: int) -> tuple[dict[str, float], list[dict]]:
    """Return the metrics in percent, as COCO defines them, and what the model found in each image."""
    model.eval()
    metric, found = MeanAveragePrecision(class_metrics=True), []
    metric.warn_on_many_detections = False  # COCO counts only the 100 best of an image
    for images, targets in tqdm(DataLoader(data, batch_size, collate_fn=collate), desc='evaluating', leave=False):
        found += model(images)
        metric.update(found[-len(images):], targets)
    result = metric.compute()
    metrics = {'map': result['map'], 'map_50': result['map_50']}
    labels, values = (result[name].reshape(-1) for name in ('classes', 'map_per_class'))  # numbers if there is one
    metrics |= {f'map_{data.classes[label]}': value for label, value in zip(labels.tolist(), values, strict=True)}
    return {name: 100 * value.item() for name, value in metrics.items() if value >= 0}, found  # -1: no boxes of a class


def write_label(draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, color: str) -> None:
    """Write a text on white, its corner at x and y."""
    font = ImageFont.load_default(14)
    draw.rectangle(draw.textbbox(xy, text, font), fill='white', outline='white', width=2)
    draw.text(xy, text, color, font)


def draw_boxes(image: Image.Image, target: dict[str, torch.Tensor], classes: list[str]) -> None:
    """Draw boxes, in shares of the image, with their classes and scores, the best score on top."""
    draw = ImageDraw.Draw(image)
    scores = target.get('scores', torch.ones(len(target['labels'])))
    order = scores.argsort()
    boxes = (target['boxes'][order] * torch.tensor(image.size * 2)).tolist()
    colors = [COLORS[label % len(COLORS)] for label in target['labels'][order].tolist()]
    for box, color in zip(boxes, colors, strict=True):
        draw.rectangle(box, outline=color, width=2)
    for i, box, color in zip(order.tolist(), boxes, colors, strict=True):
        name = classes[target['labels'][i]]
        write_label(draw, (box[0] + 3, box[1] + 3), f'{name} {scores[i]:.2f}' if 'scores' in target else name, color)


def save_pairs(pairs: list[tuple[Image.Image, Image.Image]], titles: tuple[str, str], path: Path) -> None:
    """Write a picture of pairs of images of equal size, one below the other, under two titles."""
    width = max(image.width for image, _ in pairs)
    page = Image.new('RGB', (2 * width + 8, sum(image.height + 8 for image, _ in pairs) + 24), 'white')
    for i, title in enumerate(titles):
        write_label(ImageDraw.Draw(page), (i * (width + 8), 4), title, 'black')
    y = 24
    for pair in pairs:
        for i, image in enumerate(pair):
            page.paste(image, (i * (width + 8), y))
        y += pair[0].height + 8
    page.save(path, quality=80)


def draw(data: VOC, found: list[dict], path: Path, count: int = 3, score: float = 0.5) -> None:
    """Write a picture of the first images, with their boxes on the left and what was found in them on the right."""
    pairs = []
    for i in range(min(count, len(data))):
        photograph = data.photograph(i)
        left = ImageOps.contain(photograph, (480, 480))
        right = left.copy()
        target = data.targets[i]
        draw_boxes(left, dict(target, boxes=target['boxes'] / torch.tensor(photograph.size * 2)), data.classes)
        keep = found[i]['scores'] > score
        boxes = {name: value[keep] for name, value in found[i].items()}
        draw_boxes(right, dict(boxes, boxes=boxes['boxes'] / torch.tensor(SIZE * 2)), data.classes)
        pairs.append((left, right))
    save_pairs(pairs, ('annotated', f'found, scores above {score}'), path)


def write_row(row: dict[str, Any], path: Path) -> None:
    """Write a CSV file of one row."""
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, row, lineterminator='\n')
        writer.writeheader()
        writer.writerow(row)


def parse_args() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--data-dir', type=Path, required=True, help='folder of folders of images and annotations, or of PASCAL VOC')
    add('--train', default='trainval', metavar='SPLIT', help='split to train on (default: %(default)s)')
    add('--test', default='test', metavar='SPLIT', help='split to evaluate on (default: %(default)s)')
    add('--classes', nargs='+', help='names of the classes (default: those of the training annotations)')
    add('--backbone', default='mobilenext_035', help='network of timm with strides 16 and 32 (default: %(default)s)')
    add('--backbone-kwargs', nargs='*', default={}, action=ParseKwargs, help='e.g. width_mult=0.46')
    add('--pretrained', action='store_true', help='start from pretrained weights of the backbone')
    add('--weights-backbone', type=Path, metavar='FILE', help='start from a classifier that you trained')
    add('--epochs', type=int, default=20, help='(default: %(default)s)')
    add('--batch-size', type=int, default=8, help='(default: %(default)s)')
    add('--lr', type=float, default=2e-3, help='highest learning rate (default: %(default)s)')
    add('--weight-decay', type=float, default=0.05, help='(default: %(default)s)')
    add('--scales', nargs=7, type=float, default=[0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.], metavar='SHARE',
        help='sizes of the default boxes of the six maps and one more, shares of the image (default: %(default)s)')
    add('--iou-thresh', type=float, default=0.5, help='overlap of a default box with a true box (default: %(default)s)')
    add('--vflip', type=float, default=0., help='probability of a vertical flip (default: %(default)s)')
    add('--workers', type=int, default=0, help='processes that load images (default: %(default)s)')
    add('--seed', type=int, default=0, help='(default: %(default)s)')
    add('--output', type=Path, default=Path('detect'), help='folder for the results (default: %(default)s)')
    args = parser.parse_args()
    if args.weights_backbone and not args.weights_backbone.is_file():
        parser.error(f'--weights-backbone: file {args.weights_backbone} does not exist')
    return args


def main() -> None:
    """Run the example."""
    args = parse_args()
    random_seed(args.seed)
    try:
        augment = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(args.vflip)])
        data = VOC(args.data_dir, args.train, args.classes and ['__background__', *args.classes], augment)
        test = VOC(args.data_dir, args.test, data.classes)
        model = ssdlite320(
            args.backbone, len(data.classes), args.pretrained, args.weights_backbone, args.backbone_kwargs,
            iou_thresh=args.iou_thresh, anchor_generator=DefaultBoxGenerator([[2, 3]] * 6, scales=args.scales))
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f'error: {error}')
    model.to(memory_format=torch.channels_last)
    params = sum(p.numel() for p in model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()([torch.zeros(3, *SIZE)])
    madds = counter.get_total_flops() // 2
    print(f'SSDLite on {args.backbone}: {params / 1e6:.2f} M parameters, {madds / 1e6:.1f} M multiply-adds; '
          f'{len(data)} images to train on, {len(test)} to test on, classes {", ".join(data.classes[1:])}')

    args.output.mkdir(parents=True, exist_ok=True)
    weights = args.output / 'ssdlite320.safetensors'
    last, cpu = 'no epoch is finished', time.process_time()
    try:
        for epoch in train(model, data, args):
            save(model, weights, data.classes)
            last = f'{weights} is of epoch {epoch}'
    except KeyboardInterrupt:
        sys.exit(f'interrupted: {last}')
    cpu = time.process_time() - cpu
    metrics, found = evaluate(model, test, args.batch_size)
    write_row(dict(
        backbone=args.backbone, **args.backbone_kwargs, params=params, madds=madds, epochs=args.epochs, seed=args.seed,
        cpu_seconds=round(cpu), **{name: f'{value:.2f}' for name, value in metrics.items()}),
        args.output / 'results.csv')
    draw(test, found, args.output / 'found.jpg')
    print(f'mAP {metrics["map"]:.1f} %, mAP50 {metrics["map_50"]:.1f} % after {cpu / 60:.1f} CPU-minutes; picture, '
          f"results and weights in {args.output}. To use them: timm_mobilenext.detection.load('{weights}')")


if __name__ == '__main__':
    main()
