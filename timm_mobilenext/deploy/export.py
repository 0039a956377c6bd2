"""Export a model to the files of mobile runtimes, and check that they answer as PyTorch does.

    python -m timm_mobilenext export mobilenext_100 --format onnx executorch --output files
    python -m timm_mobilenext export hf-hub:me/mine --format onnx openvino --int8 --calibration images --output files
    python -m timm_mobilenext export model_best.pth.tar --model mobilenext_035 --format litert --output files

SOURCE is a model name of timm with pretrained weights, a converted folder, hf-hub:OWNER/NAME, or a checkpoint of
train.py. docs/mobile.md says which format is for what, and how to load it on a device.
"""
import argparse
import copy
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset
from tqdm import tqdm

from timm_mobilenext import __version__
from timm_mobilenext.cli import ModelKwargs, clear_errors, new_folder, read_label_names
from timm_mobilenext.weights.convert import Converted, load, save
from timm_mobilenext.deploy.runtimes import RUNTIMES, Run, Runtime

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
# precision -> largest difference of a logit to PyTorch's, over the standard deviation of all logits. A file that
# computes in int8 is judged by its answers alone.
TOLERANCES = {'fp32': 1e-4, 'fp16': 1e-2, 'weights_fp16': 1e-2, 'weights_int8': 0.25, 'int8': math.inf}


@dataclass
class Exported:
    """A file that was written, and what its check found.

    Attributes:
        path: The file, the first where there are two.
        format: Its format, one of `RUNTIMES`.
        precision: What it computes in, fp32, fp16 or int8; weights_int8 or weights_fp16 where it only stores them so.
        input_size: (C, H, W) of an image.
        bytes: Its size, with that of a second file.
        images: Number of images that it was checked on, 0 for none: noise.
        top1_agreement: Share of these that get PyTorch's class.
        largest_difference: Of a logit to PyTorch's, over the standard deviation of the logits; None if not checked.
        note: Why it was not checked or missed what it should meet, else empty.
    """

    path: Path
    format: str
    precision: str
    input_size: tuple[int, int, int]
    bytes: int
    images: int = 0
    top1_agreement: float | None = None
    largest_difference: float | None = None
    note: str = ''

    def check(self) -> str:
        """Return in words what the check found."""
        found = []
        if self.top1_agreement is not None:
            found.append(f'top-1 of {self.top1_agreement:.1%} of {self.images} images')
        if self.largest_difference is not None:
            found.append(f'logits within {self.largest_difference:.1e} of their standard deviation')
            found += [] if self.images else ['on noise']
        return ', '.join(found + [self.note] * bool(self.note))


def read_images(folder: str | Path, data_config: dict[str, Any], count: int) -> np.ndarray:
    """Return images of a folder and those in it as the network takes them, evenly picked from all, (N, C, H, W).

    Args:
        folder: The folder.
        data_config: As `timm.data.resolve_input_data_config` returns it.
        count: How many at most.

    Raises:
        OSError: If there is no such folder.
        ValueError: If there are no images in it, or one cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'There is no folder {folder}: expected one of images.')
    paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f'There are no images in {folder}: expected files that end in {", ".join(IMAGE_SUFFIXES)}.')
    channels = data_config['input_size'][0]
    if channels not in (1, 3):
        raise ValueError(f'The network takes {channels} channels, expected 1 or 3, which images have.')
    paths = [paths[i * len(paths) // min(count, len(paths))] for i in range(min(count, len(paths)))]
    transform = create_transform(**data_config)
    images = []
    for path in tqdm(paths, desc=f'reading {folder}', unit='image', leave=False):
        try:
            with Image.open(path) as image:
                images.append(transform(image.convert('RGB' if channels == 3 else 'L')).numpy())
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f'{path} cannot be read ({error}): mend it, or take it out of {folder}.') from error
    return np.stack(images)


def describe(converted: Converted, data_config: dict[str, Any], label_names: list[str] | None = None) -> dict[str, Any]:
    """Return what a user of a file has to know: the network, its images, its classes.

    Args:
        converted: The model.
        data_config: As `timm.data.resolve_input_data_config` returns it.
        label_names: Names of the classes in the order of the logits; None for those of the model's config, or of
            ImageNet's classes where it has as many.
    """
    model = converted.model
    subset = infer_imagenet_subset(model)
    labels: Any = label_names or model.pretrained_cfg.get('label_names') or (
        ImageNetInfo(subset).label_descriptions() if subset else None)
    return {
        **converted.provenance,
        'exporter': f'timm-mobilenext {__version__}',
        'input': 'RGB' if data_config['input_size'][0] == 3 else 'L',
        **{key: list(value) if isinstance(value, tuple) else value for key, value in data_config.items()},
        'num_classes': model.num_classes,
        **({'label_names': list(labels)} if labels else {}),
    }


@torch.inference_mode()
def check(model: torch.nn.Module, run: Run, images: np.ndarray, title: str = 'checking') -> tuple[float, float]:
    """Compare a file's answers with those of the model in PyTorch.

    Args:
        model: The model, in evaluation mode.
        run: The file, as `runtimes.load` returns it.
        images: Images as the network takes them, (N, C, H, W).
        title: What the progress bar says.

    Returns:
        The share of images that get the same class, and the largest difference of a logit over the standard deviation
        of all logits.
    """
    expected, found = [], []
    for image in tqdm(images, desc=title, unit='image', leave=False):
        expected.append(model(torch.from_numpy(image[None])).flatten().numpy())
        found.append(run(image[None]).flatten())
    theirs, ours = np.stack(found), np.stack(expected)
    agreement = float((theirs.argmax(1) == ours.argmax(1)).mean())
    return agreement, float(np.abs(theirs - ours).max() / ours.std())


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, *path.rglob('*')) if file.is_file())


def write(
        converted: Converted,
        formats: Sequence[str],
        folder: Path,
        *,
        label_names: list[str] | None = None,
        img_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        weights: Sequence[str] = (),
        int8: bool = False,
        per_channel: bool = True,
        calibration: str | Path | np.ndarray | None = None,
        check_on: str | Path | np.ndarray | None = None,
        num_images: int = 128,
        min_agreement: float = 0.9,
        keep: bool = False,
) -> list[Exported]:
    """Write the files of a model, check each, and `model.json` which says what they are.

    Args:
        converted: The model.
        formats: Names of formats, of `runtimes.RUNTIMES`.
        folder: Where they are written, named `model` and the precision where it is not the format's own.
        label_names: See `describe`.
        img_size: Height and width of an image in pixels, None for those of the model's config.
        mean: Of the pixels, a value for each channel or one for all, None for those of the config.
        std: The same of their standard deviation.
        weights: Write more files, whose weights are stored in these precisions, int8 and fp16, where the format can.
        int8: Write more files that compute in int8, where the format can.
        per_channel: A scale for each output channel of int8 weights, not one for all.
        calibration: Images to quantize by: a folder, or as the network takes them, (N, C, H, W).
        check_on: Images to check the files on; by default those for calibration, else noise.
        num_images: How many of a folder's images to take.
        min_agreement: Share of images that have to get PyTorch's class.
        keep: Keep files that answer otherwise than PyTorch, with a note.

    Returns:
        What was written.

    Raises:
        ImportError: If a runtime is not installed.
        OSError, ValueError: If a format is unknown, images are missing or cannot be read.
        RuntimeError: If a file cannot be made, or answers otherwise than PyTorch.
    """
    unknown = [name for name in formats if name not in RUNTIMES]
    if unknown or not formats:
        raise ValueError(f'There is no format {", ".join(unknown) or "given"}: expected some of {", ".join(RUNTIMES)}.')
    runtimes = [RUNTIMES[name] for name in dict.fromkeys(formats)]
    for runtime in runtimes:
        missing = runtime.missing(int8)
        if missing:
            raise ImportError(
                f"{runtime.name} needs {', '.join(missing)}, which is not installed: pip install "
                f"'timm-mobilenext[{runtime.extra}]'.")
    if int8 and all(runtime.int8_modules is None for runtime in runtimes):
        can = [runtime.name for runtime in RUNTIMES.values() if runtime.int8_modules is not None]
        raise ValueError(f'None of {", ".join(formats)} has an int8 form: expected one of {", ".join(can)}.')
    if int8 and calibration is None:
        raise ValueError('int8 is calibrated on images: give a folder of some like those it will see (--calibration).')
    for precision in weights:
        can = [runtime.name for runtime in RUNTIMES.values() if precision in runtime.weights]
        if not {runtime.name for runtime in runtimes} & {*can}:
            raise ValueError(
                f'None of {", ".join(formats)} stores weights in {precision}: expected one of {", ".join(can)}.')
    if img_size is not None and img_size < 1:
        raise ValueError(f'Images of {img_size} px: expected 1 or more, 224 for most models.')
    if num_images < 1:
        raise ValueError(f'{num_images} images to calibrate by or check on: expected 1 or more.')
    from timm.data import resolve_input_data_config  # of timm 1.0.31, which the extra brings

    model = copy.copy(converted.model)  # with a config of its own
    data_config = resolve_input_data_config(model, dict(img_size=img_size, mean=mean, std=std))
    model.pretrained_cfg = model.pretrained_cfg | data_config
    converted = replace(converted, model=model)

    def images_of(given: str | Path | np.ndarray) -> np.ndarray:
        return given if isinstance(given, np.ndarray) else read_images(given, data_config, num_images)

    images = calibrating = None if calibration is None else images_of(calibration)
    if check_on is not None:
        images = images_of(check_on)
    on_noise = images is None
    if images is None:
        images = torch.randn(8, *data_config['input_size'], generator=torch.Generator().manual_seed(0)).numpy()

    about = describe(converted, data_config, label_names)
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    exported = []
    with tempfile.TemporaryDirectory() as work:
        source = Path(work)
        save(converted, source, label_names)

        def finish(runtime: Runtime, precision: str, path: Path) -> None:
            runtime.describe(path, metadata)
            stem = path.name.removesuffix(runtime.suffixes[0])
            row = Exported(path, runtime.name, precision, data_config['input_size'], sum(
                _size(path.with_name(stem + suffix)) for suffix in runtime.suffixes))
            try:
                run = runtime.load(path, threads=1)
            except NotImplementedError as error:
                row.note = f'not checked: {error}'
            else:
                agreement, row.largest_difference = check(model, run, images, f'checking {path.name}')
                if not on_noise:
                    row.images, row.top1_agreement = len(images), agreement
                if not row.largest_difference <= TOLERANCES[precision]:  # nor is it a number
                    row.note = (
                        f'the logits differ by {row.largest_difference:.2g} of their standard deviation, expected at '
                        f'most {TOLERANCES[precision]}')
                elif agreement < min_agreement and not on_noise:
                    row.note = (
                        f'{agreement:.1%} of {len(images)} images get the same class as in PyTorch, expected at least '
                        f'{min_agreement:.1%}')
                if row.note and not keep:
                    raise RuntimeError(f'{path.name}: {row.note}. Look at it with --keep.')
            exported.append(row)

        progress = tqdm(runtimes, unit='format', leave=False)
        for runtime in progress:
            progress.set_description(runtime.name)
            plain = folder / f'model{runtime.suffixes[0]}'
            runtime.convert(source, plain, data_config['input_size'])
            for precision in [p for p in weights if p in runtime.weights]:
                path = folder / f'model.weights_{precision}{runtime.suffixes[0]}'
                runtime.store_weights(source, plain, path, data_config['input_size'], precision)
                finish(runtime, f'weights_{precision}', path)
            if int8 and runtime.int8_modules is not None and calibrating is not None:
                path = folder / f'model.int8{runtime.suffixes[0]}'
                runtime.quantize(source, plain, path, calibrating, per_channel)
                finish(runtime, 'int8', path)
            finish(runtime, runtime.precision, plain)  # last, as it is what the others are made of
    files = [{**asdict(row), 'path': row.path.name} for row in exported]
    (folder / 'model.json').write_text(json.dumps({**about, 'files': files}, indent=2) + '\n')
    return exported


def export(
        source: str | Path,
        formats: Sequence[str],
        output: str | Path,
        *,
        model: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
) -> list[Exported]:
    """Export a model to files of mobile runtimes, and check that they answer as PyTorch does.

    Args:
        source: See `load`.
        formats: Names of formats, of `runtimes.RUNTIMES`.
        output: The folder, a new one.
        model: See `load`.
        model_kwargs: See `load`.
        **kwargs: See `write`.

    Returns:
        What was written.

    Raises:
        ImportError, OSError, ValueError, RuntimeError: See `load` and `write`; nothing is left behind then.
    """
    output = Path(output)
    with new_folder(output) as folder:
        exported = write(load(source, model, model_kwargs), formats, folder, **kwargs)
    for row in exported:
        row.path = output / row.path.name
    return exported


def options(command: argparse.ArgumentParser) -> None:
    """Add the options of a command that writes files of formats."""
    command.add_argument('--weights', nargs='+', default=[], choices=['int8', 'fp16'], metavar='PRECISION', help=(
        'write more files, whose weights are stored in int8 or fp16: small, and as exact as fp32 or nearly so'))
    command.add_argument('--int8', action='store_true', help='write more files that compute in int8')
    command.add_argument('--calibration', metavar='DIR', help='images to quantize by, and to check the files on')
    options_of_images(command)


def options_of_images(command: argparse.ArgumentParser) -> None:
    """Add the options of a command that are about the images of a model, and the check of its files on some."""
    command.add_argument('--check', metavar='DIR', dest='check_on', help=(
        'images to check the files on (default: those to quantize by, else noise)'))
    command.add_argument('--num-images', type=int, default=128, metavar='N', help='how many (default: %(default)s)')
    command.add_argument('--img-size', type=int, metavar='N', help="pixels (default: the model's)")
    command.add_argument('--mean', type=float, nargs='+', metavar='X', help="of the pixels (default: the model's)")
    command.add_argument('--std', type=float, nargs='+', metavar='X', help="of the pixels (default: the model's)")
    command.add_argument('--min-agreement', type=float, default=0.9, metavar='SHARE', help=(
        'of the images that have to get the same class as in PyTorch (default: %(default)s)'))
    command.add_argument('--keep', action='store_true', help='keep files that answer otherwise than PyTorch')


def chosen(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was said with `options` or `options_of_images`, as the arguments of `write`."""
    of_images = ('check_on', 'num_images', 'img_size', 'mean', 'std', 'min_agreement', 'keep')
    return {key: vars(args)[key] for key in ('weights', 'int8', 'calibration', *of_images) if key in args}


def main(argv: list[str]) -> int:
    """Run `python -m timm_mobilenext export` with these arguments."""
    command = argparse.ArgumentParser(
        'python -m timm_mobilenext export', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument('source', help='model name with weights, converted folder, hf-hub:OWNER/NAME, checkpoint')
    command.add_argument('--format', nargs='+', required=True, metavar='FORMAT', help=f'some of {", ".join(RUNTIMES)}')
    command.add_argument('--output', '-o', required=True, metavar='DIR', help='new folder')
    command.add_argument('--model', metavar='NAME', help='architecture of a checkpoint that does not say it')
    command.add_argument('--model-kwargs', nargs='*', default={}, action=ModelKwargs, metavar='KEY=VALUE',
                         help='arguments of the model, such as width_mult=1.1')
    command.add_argument('--label-names', metavar='FILE', help='text file with the names of the classes, one a line')
    options(command)
    args = command.parse_args(argv)
    with clear_errors():
        exported = export(
            args.source, args.format, args.output, model=args.model, model_kwargs=args.model_kwargs,
            label_names=read_label_names(args.label_names), **chosen(args))
        for row in exported:
            print(f'{row.path}: {row.bytes / 1e6:.2f} MB, as PyTorch: {row.check()}')
    return 0
