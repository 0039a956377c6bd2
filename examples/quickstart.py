"""Fine-tune a MobileNeXt on handwritten digits, on any CPU, in about a minute.

    python examples/quickstart.py [--model mobilenext_100] [--epochs 4] [--output quickstart.png]

The images are the 1,797 real digits of scikit-learn (8 x 8 pixels, enlarged to 64 x 64). A fifth of them is held out:
the example prints the top-1 accuracy on these, and draws some of them with the predictions.
"""
import argparse
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.optim import create_optimizer_v2
from tqdm import tqdm

import timm_mobilenext  # noqa: F401 - registers the models

IMAGE_SIZE = 64
BATCH_SIZE = 32


def load_data() -> list[torch.Tensor]:
    """Return training images (B, 3, 64, 64), held-out images, and the labels (B,) of both."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1  # 0..16 -> -1..1
    images = F.interpolate(images, size=IMAGE_SIZE, mode='bilinear').expand(-1, 3, -1, -1)
    labels = torch.from_numpy(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=digits.target, random_state=0)
    return [images[train], images[test], labels[train], labels[test]]


def create_model(name: str) -> torch.nn.Module:
    """Return the model, with pretrained weights if they are available."""
    try:
        model = timm.create_model(name, pretrained=True, num_classes=10)
        print(f'Fine-tuning the pretrained {name}.')
    except Exception as error:  # without weights, for whatever reason, the example trains from scratch
        print(f'Training {name} from scratch: {str(error).splitlines()[0]}')
        model = timm.create_model(name, num_classes=10)
    return model.to(memory_format=torch.channels_last)


def train(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    """Train the model with AdamW and one cycle of the learning rate."""
    steps = len(labels) // BATCH_SIZE
    optimizer = create_optimizer_v2(model, opt='adamw', lr=4e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=epochs * steps)
    model.train()
    with tqdm(total=epochs * steps, unit='step') as progress:
        for epoch in range(epochs):
            order = torch.randperm(len(labels))
            for batch in order[:steps * BATCH_SIZE].split(BATCH_SIZE):
                loss = F.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                progress.set_description(f'epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}')
                progress.update()


def predict(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the predicted classes (B,) of images (B, 3, H, W)."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(batch).argmax(1) for batch in images.split(256)])


def draw(images: torch.Tensor, labels: torch.Tensor, predictions: torch.Tensor, path: Path) -> None:
    """Write a picture of images under their predictions, the mistakes first, in red and with the right label."""
    columns, rows, cell, font = 10, 4, IMAGE_SIZE + 36, ImageFont.load_default(20)
    first = (predictions == labels).long().argsort(stable=True)[:columns * rows]
    sheet = Image.new('RGB', (columns * cell, rows * cell), 'white')
    pen = ImageDraw.Draw(sheet)
    for place, i in enumerate(first.tolist()):
        x, y = place % columns * cell + 18, place // columns * cell + 30
        sheet.paste(Image.fromarray(((images[i, 0] + 1) * 127.5).byte().numpy()), (x, y))
        right = predictions[i] == labels[i]
        text = f'{predictions[i]}' if right else f'{predictions[i]} ({labels[i]})'
        pen.text((x, y - 26), text, 'green' if right else 'red', font=font)
    sheet.save(path)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='mobilenext_100', help='architecture (default: %(default)s)')
    parser.add_argument('--epochs', type=int, default=4, help='epochs to train (default: %(default)s)')
    parser.add_argument('--output', type=Path, default=Path('quickstart.png'), help='picture (default: %(default)s)')
    args = parser.parse_args()

    torch.manual_seed(0)
    start = time.perf_counter()
    train_images, test_images, train_labels, test_labels = load_data()
    model = create_model(args.model)
    train(model, train_images, train_labels, args.epochs)
    predictions = predict(model, test_images)
    top1 = (predictions == test_labels).float().mean().item() * 100
    draw(test_images, test_labels, predictions, args.output)
    print(f'top-1 on {len(test_labels)} held-out images: {top1:.1f} % after {time.perf_counter() - start:.0f} s')
    print(f'predictions drawn in {args.output}')


if __name__ == '__main__':
    main()
