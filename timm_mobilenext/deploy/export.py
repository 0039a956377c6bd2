"""Export a model to the files of mobile runtimes, and check that they answer as PyTorch does.

    python -m timm_mobilenext export mobilenext_100 --format onnx executorch --output files
    python -m timm_mobilenext export model_best.pth.tar --format onnx --int8 --calibration images --output files
    python -m timm_mobilenext export hf-hub:me/mine --format litert --output files

docs/mobile.md says which format is for what, and how to load it on a device.
"""
import argparse
import copy
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import ImageDataset, ImageNetInfo, create_transform, infer_imagenet_subset
from tqdm import tqdm

from timm_mobilenext import __version__
from timm_mobilenext.cli import SOURCES, clear_errors, new_folder, parser, read_label_names
from timm_mobilenext.deploy.runtimes import RUNTIMES, Run, Runtime
from timm_mobilenext.weights.convert import Converted, load, save

IMAGE_SUFFIXES = '.bmp;.jpeg;.jpg;.png;.tif;.tiff;.webp'  # as timm's reader takes them
# precision -> largest difference of a logit to PyTorch's, in standard deviations of all logits
TOLERANCES = {'fp32': 1e-4, 'fp16': 1e-2, 'weights_fp16': 1e-2, 'weights_int8': 0.25, 'int8': math.inf}
USES = {
    'fp32': 'computes in fp32', 'fp16': 'computes in fp16',
    'weights_fp16': 'weights in 16 bits, computes in fp32', 'weights_int8': 'weights in 8 bits, computes in fp32',
    'int8': 'computes in int8, for processors with instructions for it'}
REMEDIES = {  # for a file that does not match PyTorch
    'weights_int8': 'store the weights in 16 bits (--weights fp16), ',
    'int8': 'calibrate it on more images (--num-images N), '}


@dataclass
class Options:
    """Which files to write besides the plain ones, for which images, and how to check them; see the help of each."""

    weights: Sequence[str] = field(default=(), metadata=dict(
        nargs='+', choices=['int8', 'fp16'], metavar='PRECISION',
        help='write more files with weights stored in int8 or fp16, if the format can: small, and nearly as exact'))
    int8: bool = field(default=False, metadata=dict(
        action='store_true', help='write more files that compute in int8, if the format can'))
    calibration: str | Path | None = field(default=None, metadata=dict(
        metavar='DIR', help='folder of images to calibrate int8 and check all files on'))
    check: str | Path | None = field(default=None, metadata=dict(
        metavar='DIR', help='folder of images to check all files on (default: those for calibration, else noise)'))
    num_images: int = field(default=128, metadata=dict(
        type=int, metavar='N', help='how many images of a folder to take, evenly picked (default: %(default)s)'))
    img_size: int | None = field(default=None, metadata=dict(
        type=int, metavar='N', help="height and width in pixels (default: the model's)"))
    mean: Sequence[float] | None = field(default=None, metadata=dict(
        type=float, nargs='+', metavar='X', help="mean of the pixels, per channel or for all (default: the model's)"))
    std: Sequence[float] | None = field(default=None, metadata=dict(
        type=float, nargs='+', metavar='X', help="standard deviation of the pixels (default: the model's)"))
    min_agreement: float = field(default=0.9, metadata=dict(
        type=float, metavar='SHARE',
        help='share of the images that have to get the same class as in PyTorch (default: %(default)s)'))
    keep: bool = field(default=False, metadata=dict(
        action='store_true', help='keep files that do not match PyTorch, with a note'))

    def more(self) -> dict[str, str]:
        """Return the precisions of files beside the plain ones, with what a runtime has to do for each."""
        stored = {f'weights_{precision}': f'store weights in {precision}' for precision in self.weights}
        return stored | ({'int8': 'compute in int8'} if self.int8 else {})


@dataclass
class Exported:
    """A file that was written, and the result of its check."""

    path: Path  # the file, the first if there are two
    format: str  # one of `RUNTIMES`
    precision: str  # fp32, fp16 or int8, if it computes so; weights_int8 or weights_fp16, if only its weights are so
    input_size: tuple[int, int, int]  # (C, H, W) of an image
    bytes: int  # its size, with that of a second file
    images: int = 0  # number of images for the check, 0 for noise
    top1_agreement: float | None = None  # share of them that get PyTorch's class
    largest_difference: float | None = None  # of a logit to PyTorch's, in standard deviations of all; None if unchecked
    note: str = ''  # why it was not checked, or what was expected of it and is not so

    def check(self) -> str:
        """Return the result of the check in words."""
        if self.largest_difference is None:
            return self.note
        verdict = 'differs from' if self.note else 'matches'
        same = round((self.top1_agreement or 0) * self.images)
        found = f': same class on {same} of {self.images} images,' if self.images else ' on noise:'
        size = 'below 0.001' if self.largest_difference < 1e-3 and not self.note else f'{self.largest_difference:.2g}'
        note = f' ({self.note})' if self.note else ''
        return f'{verdict} PyTorch{found} largest logit difference {size} standard deviations{note}'


def _read_images(folder: str | Path, mode: str, data_config: dict[str, Any], count: int) -> np.ndarray:
    """Return at most `count` images below a folder, evenly picked, as the network takes them, (N, C, H, W)."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f'Folder {folder} does not exist.')
    images = ImageDataset(
        str(folder), input_key=IMAGE_SUFFIXES, input_img_mode=mode, transform=create_transform(**data_config))
    count = min(count, len(images))
    progress = tqdm(range(count), desc=f'reading {folder}', unit='image', leave=False)
    return np.stack([images[i * len(images) // count][0].numpy() for i in progress])


def _describe(converted: Converted, data_config: dict[str, Any], label_names: list[str] | None) -> dict[str, Any]:
    """Return what a user of a file has to know: the network, its images, its classes."""
    model = converted.model
    subset = infer_imagenet_subset(model)
    labels = label_names or model.pretrained_cfg.get('label_names') or (
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
def _compare(model: torch.nn.Module, run: Run, images: np.ndarray, title: str) -> tuple[float, float]:
    """Return the share of images that get PyTorch's class, and the largest difference of a logit in deviations."""
    expected, found = [], []
    for image in tqdm(images, desc=title, unit='image', leave=False):
        expected.append(model(torch.from_numpy(image[None])).flatten().numpy())
        found.append(run(image[None]).flatten())
    right, answers = np.stack(expected), np.stack(found)
    agreement = float((answers.argmax(1) == right.argmax(1)).mean())
    return agreement, float(np.abs(answers - right).max() / right.std())


def _check(row: Exported, model: Any, images: np.ndarray | None, options: Options) -> None:
    """Compare a file with PyTorch on images, or on noise without any, and write what was found into its row."""
    try:
        run = RUNTIMES[row.format].load(row.path, threads=1)
    except NotImplementedError as error:
        row.note = f'not checked: {error}'
        return
    noise = torch.randn(8, *row.input_size, generator=torch.Generator().manual_seed(0)).numpy()
    agreement, row.largest_difference = _compare(
        model, run, noise if images is None else images, f'checking {row.path.name}')
    most = TOLERANCES[row.precision]
    if images is not None:
        row.images, row.top1_agreement = len(images), agreement
        if row.precision.startswith('weights_'):
            most = math.inf  # that is for noise; on images the classes count, as in int8
        if agreement < options.min_agreement:
            row.note = f'expected the same class on at least {options.min_agreement:.0%}'
    if not row.largest_difference <= most:  # also if it is nan
        row.note = f'expected at most {most}'
    if row.note and not options.keep:
        ways = '' if row.images else 'check it on images like those it will see (--check DIR), '
        ways += REMEDIES.get(row.precision, '') + 'keep it to look at it (--keep)'
        raise RuntimeError(f'{model.pretrained_cfg["architecture"]} as {row.path.name} {row.check()}. You can {ways}.')


def _runtimes(formats: Sequence[str], options: Options) -> list[Runtime]:
    """Return the runtimes of the formats, if they are installed and can do what is asked for."""
    unknown = [name for name in formats if name not in RUNTIMES]
    if unknown:
        raise ValueError(f'Unknown format {", ".join(unknown)}: expected some of {", ".join(RUNTIMES)}.')
    runtimes = [RUNTIMES[name] for name in dict.fromkeys(formats)]
    for runtime in runtimes:
        missing = runtime.missing(options.int8)
        if missing:
            raise ImportError(
                f'{runtime.name} needs packages that are not installed ({", ".join(missing)}): '
                f"pip install 'timm-mobilenext[{runtime.extra}]'.")
    for precision, what in options.more().items():
        able = [runtime.name for runtime in RUNTIMES.values() if precision in runtime.precisions]
        if not {*formats} & {*able}:
            raise ValueError(f'{", ".join(formats)} cannot {what}: expected one of {", ".join(able)}.')
    if options.int8 and options.calibration is None:
        raise ValueError('--int8 needs sample images: pass --calibration DIR.')
    return runtimes


def write(
        converted: Converted,
        formats: Sequence[str],
        folder: Path,
        label_names: list[str] | None = None,
        **options: Any,
) -> list[Exported]:
    """Write the files of a model, check each, and `model.json` which says what they are.

    Args:
        converted: The model.
        formats: Names of formats, of `runtimes.RUNTIMES`.
        folder: Where to write `model` with the suffix of each format, and with the precision if not the format's own.
        label_names: Names of the classes in the order of the logits; None for those of the model's config, or of
            ImageNet if it has as many classes.
        **options: See `Options`.

    Raises:
        ImportError: If a runtime is not installed.
        OSError, ValueError: If a format is unknown, or a folder of images does not exist.
        RuntimeError: If there are no images, a file cannot be made, or it does not match PyTorch.
    """
    chosen = Options(**options)
    runtimes = _runtimes(formats, chosen)
    from timm.data import resolve_input_data_config  # of timm 1.0.31, which the extra brings

    model = copy.copy(converted.model)  # to change its config
    data_config = resolve_input_data_config(model, dict(img_size=chosen.img_size, mean=chosen.mean, std=chosen.std))
    model.pretrained_cfg = model.pretrained_cfg | data_config
    about = _describe(converted, data_config, label_names)
    calibration, images = (
        None if given is None else _read_images(given, about['input'], data_config, chosen.num_images)
        for given in (chosen.calibration, chosen.check))
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    exported = []
    with tempfile.TemporaryDirectory() as work:
        save(replace(converted, model=model), Path(work), label_names)
        for runtime in tqdm(runtimes, unit='format', leave=False):
            plain, input_size = folder / f'model{runtime.suffixes[0]}', data_config['input_size']
            runtime.convert(Path(work), plain, input_size)
            for precision in [*(more for more in chosen.more() if more in runtime.precisions), runtime.precision]:
                path = plain.with_name(f'model.{precision}{runtime.suffixes[0]}')
                if precision == runtime.precision:  # the last, as the others are made of it
                    path = plain
                elif precision == 'int8':
                    runtime.quantize(Path(work), plain, path, calibration)
                else:
                    runtime.store_weights(Path(work), plain, path, input_size, precision)
                runtime.describe(path, metadata)
                exported.append(Exported(path, runtime.name, precision, input_size, runtime.size(path)))
                _check(exported[-1], model, calibration if images is None else images, chosen)
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
        source: See `convert.load`, as for `model` and `model_kwargs`.
        formats: Names of formats, of `runtimes.RUNTIMES`.
        output: The folder, a new one.
        model: Name of the architecture of a checkpoint that does not name its own.
        model_kwargs: Arguments of the model that are not the architecture's, such as `width_mult`.
        **kwargs: See `write` and `Options`.

    Returns:
        What was written.

    Raises:
        ImportError, OSError, ValueError, RuntimeError: See `convert.load` and `write`; nothing is left behind then.
    """
    output = Path(output)
    with new_folder(output) as folder:
        exported = write(load(source, model, model_kwargs), formats, folder, **kwargs)
    return [replace(row, path=output / row.path.name) for row in exported]


def options(command: argparse.ArgumentParser, without: Sequence[str] = ()) -> None:
    """Add `Options` to a command, without some by name."""
    for option in fields(Options):  # their metadata is argparse's
        if option.name not in without:
            command.add_argument(f'--{option.name.replace("_", "-")}', default=option.default, **option.metadata)


def chosen(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was given for `options`, as the options of `write`."""
    return {field.name: vars(args)[field.name] for field in fields(Options) if field.name in args}


def main(argv: list[str]) -> int:
    """Run `python -m timm_mobilenext export` with these arguments."""
    command = parser('export', __doc__)
    command.add_argument('source', metavar='SOURCE', help=SOURCES)
    command.add_argument('--format', nargs='+', required=True, metavar='FORMAT', help=f'some of {", ".join(RUNTIMES)}')
    options(command)
    args = command.parse_args(argv)
    with clear_errors():
        exported = export(
            args.source, args.format, args.output, model=args.model, model_kwargs=args.model_kwargs,
            label_names=read_label_names(args.label_names), **chosen(args))
    for row in exported:
        print(f'{row.path}: {row.bytes / 1e6:.2f} MB, {USES[row.precision]}; {row.check()}')
    print(f'{Path(args.output) / "model.json"}: how to prepare an image, and the names of the classes')
    print(f"Next: docs/mobile.md has the code for each runtime. In Python, timm_mobilenext.deploy.runtimes.load("
          f"'{exported[-1].path}') is a function of an image to its logits.")
    return 0
