"""Pieces of scikit-learn's two photographs, and networks that are trained to say which piece of which one they see."""
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform

import timm_mobilenext  # noqa: F401 - registers the models

LABELS = [f'{photograph} {part}' for photograph in ('temple', 'flower') for part in range(5)]


def crop(photograph: Image.Image, part: int, rng: np.random.Generator) -> Image.Image:
    """Return a piece of a fifth of a photograph, of any size and shape."""
    left, right = part * photograph.width // 5, (part + 1) * photograph.width // 5
    width, height = rng.integers(60, right - left), rng.integers(120, photograph.height)
    x, y = rng.integers(left, right - width + 1), rng.integers(0, photograph.height - height + 1)
    return photograph.crop((x, y, x + width, y + height))


def pieces(count: int, seed: int) -> Iterator[tuple[int, Image.Image]]:
    """Yield pieces and their classes."""
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(seed)
    for i in range(count):
        yield i % 10, crop(photographs[i % 10 // 5], i % 5, rng)


def save_pieces(folder: Path, count: int, seed: int) -> None:
    """Write pieces as JPEG files into a folder of each class."""
    for i, (label, image) in enumerate(pieces(count, seed)):
        (folder / LABELS[label]).mkdir(parents=True, exist_ok=True)
        image.save(folder / LABELS[label] / f'{i:03}.jpg', quality=92)


def train(name: str, folder: Path, size: int = 64, epochs: int = 8, **kwargs: Any) -> torch.nn.Module:
    """Train a network on 400 pieces, and write the folder that timm loads it from."""
    config = dict(input_size=(3, size, size), interpolation='bicubic', crop_pct=0.875)
    transform = create_transform(**config)
    labels, images = zip(*pieces(400, 0), strict=True)
    images, labels = torch.stack([transform(image) for image in images]), torch.tensor(labels)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **kwargs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, epochs=epochs, steps_per_epoch=13)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            scheduler.step()
    model.pretrained_cfg.update(config)
    timm.models.save_for_hf(
        model.eval(), folder, safe_serialization=True, model_args=kwargs, model_config=dict(label_names=LABELS))
    return model
