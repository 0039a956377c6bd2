"""Convert a checkpoint to a folder that timm and transformers load: the authors' files, and what train.py wrote.

    python -m timm_mobilenext convert mobilenext_100                           # downloads the authors' file
    python -m timm_mobilenext convert mobilenext_100 model_best.pth.tar        # theirs or one of your own

What else there is to say: --help.
"""
import argparse
import contextlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.data import resolve_data_config
from timm.models import split_model_name_tag

from timm_mobilenext import __version__
from timm_mobilenext.cli import ModelKwargs, clear_errors, new_folder, read_label_names
from timm_mobilenext.weights.authors import LICENSE, SOURCES, Source, find_source
from timm_mobilenext.mobilenext import MobileNeXt, checkpoint_filter_fn
from timm_mobilenext.weights.download import WEIGHTS_NAME, fetch, git_blob_id, read


@dataclass
class Converted:
    """A checkpoint as a model, and where it comes from.

    Attributes:
        model: The MobileNeXt with the checkpoint's weights, in evaluation mode.
        model_args: Arguments of the model that are not the architecture's.
        provenance: What the header of the converted file says of its origin.
        source: The authors' file, None if it is none of theirs.
        top1: Top-1 accuracy in % that the authors or the training run report, where they do.
    """

    model: Any
    model_args: dict[str, Any]
    provenance: dict[str, str]
    source: Source | None = None
    top1: float | None = None


_MODEL_KWARGS = sorted({*MobileNeXt.__init__.__annotations__, 'bn_eps', 'bn_momentum'} - {'return', 'device', 'dtype'})


def _plain(args: object) -> dict[str, Any]:
    """Return those arguments of train.py that are plain values, none if there are no such arguments."""
    plain = {}
    for key, value in vars(args).items() if isinstance(args, argparse.Namespace) else ():
        with contextlib.suppress(RecursionError, TypeError, ValueError):
            json.dumps(value)
            plain[key] = value
    return plain


def _origin(path: Path, args: dict[str, Any]) -> dict[str, str]:
    """Return what a checkpoint says of its licence, and of the authors' file that its weights come from.

    Args:
        path: The file. A converted one says it in its header.
        args: The arguments of train.py in it. That started from the authors' weights if it was told to take pretrained
            ones, by the name that they are registered under and from no other file.
    """
    header: dict[str, str] = {}
    if path.suffix == '.safetensors':
        with safe_open(path, 'pt') as file:
            header = file.metadata() or {}
    model = str(args.get('model') or '').removeprefix('hf-hub:').removeprefix('timm-mobilenext/')
    started_from = SOURCES.get(split_model_name_tag(model)[0])
    urls = {source.url for source in SOURCES.values()}
    if args.get('pretrained') and started_from and not (args.get('pretrained_path') or args.get('initial_checkpoint')):
        derived_from: str | None = started_from.url
    else:
        derived_from = next((header[key] for key in ('derived_from', 'source') if header.get(key) in urls), None)
    license = header.get('license') or (LICENSE if derived_from else None)
    return {key: text for key, text in (('derived_from', derived_from), ('license', license)) if text}


def load(
        architecture: str | None,
        checkpoint: str | Path | None = None,
        *,
        model_kwargs: dict[str, Any] | None = None,
        license: str | None = None,
        cache_dir: str | Path | None = None,
) -> Converted:
    """Load a checkpoint of any supported layout into a model.

    Number of classes and input channels are those of the weights. Of a checkpoint of train.py the EMA weights are
    taken where it has them, and its arguments for the model and the images.

    Args:
        architecture: Name of the architecture, None for the one that the checkpoint says it is of. With the tag of
            weights that are not the authors', the file is taken for those.
        checkpoint: The file, None for the authors' own, or that of the tag, which is downloaded.
        model_kwargs: Arguments of the model that are not the architecture's, such as `width_mult`.
        license: Licence of the weights, where they are not the authors' own file. None for what the checkpoint says:
            the authors' if its weights were fine-tuned from theirs, that of a converted file, else none.
        cache_dir: Where downloads are kept, by default in the cache of torch.hub.

    Raises:
        OSError: If the file is not there or cannot be downloaded.
        ValueError: If there is no such architecture, the checkpoint is of another, or of which is not known.
        RuntimeError: If the file is damaged, unsafe, or does not fit the model.
    """
    architectures = timm.list_models(module='mobilenext')
    named = find_source(architecture) if architecture is not None else None
    tag = None
    if architecture is not None:
        architecture, tag = split_model_name_tag(architecture)
        if architecture not in architectures:
            raise ValueError(f'There is no {architecture!r}: expected one of {", ".join(architectures)}.')
    if checkpoint is not None:
        path = Path(checkpoint)
    elif named:
        path = fetch(named, cache_dir)
    else:
        wanted = f'{architecture}.{tag}' if tag else architecture
        raise ValueError(
            f'The authors published no weights of {wanted}, only of {", ".join(SOURCES)}: give a checkpoint.')
    blob = git_blob_id(path)
    theirs = {source.blob: name for name, source in SOURCES.items()}.get(blob)
    source = SOURCES[theirs] if theirs else None
    if named and named.blob is None and path.suffix == '.pdparams':  # there is nothing to know the file by
        source, theirs = named, architecture
    args: dict[str, Any] = {}
    top1 = None
    weights = read(path)
    if source:
        weights, trained = source.weights(weights), theirs
        top1 = source.top1
        origin = dict(license=source.license)
    else:
        args = _plain(weights.get('args'))
        origin = _origin(path, args) | (dict(license=license) if license else {})
        trained = split_model_name_tag(str(args.get('model') or '').rpartition('/')[2])[0]
        if isinstance(weights.get('metric'), float) and args.get('eval_metric', 'top1') == 'top1':
            top1 = weights['metric']
    if architecture is None:
        if trained is None or trained not in architectures:
            said = f'is of {trained!r}' if trained else 'does not say of which architecture it is'
            raise ValueError(f'{path} {said}: expected one of {", ".join(architectures)}. Name it (--model).')
        architecture = trained
    elif trained in architectures and trained != architecture:
        raise ValueError(
            f'{path} holds {trained}, which {architecture} may load without an error and answer wrongly. Convert it as '
            f'{trained}.')

    trained_kwargs = args.get('model_kwargs')
    model_kwargs = {**(trained_kwargs if isinstance(trained_kwargs, dict) else {}), **(model_kwargs or {})}
    if args.get('gp'):
        model_kwargs.setdefault('global_pool', args['gp'])
    for key in model_kwargs:
        if key not in _MODEL_KWARGS:  # of create_model's own arguments, some name files and addresses
            raise ValueError(f'{key}={model_kwargs[key]!r} is no argument of a model: expected some of '
                             f'{", ".join(_MODEL_KWARGS)}.')
    model: Any = timm.create_model(architecture, device='meta', **model_kwargs)
    weights = checkpoint_filter_fn(weights, model)
    model_kwargs['in_chans'] = weights['stem.conv.weight'].shape[1]
    classifier = weights.get('classifier.weight')
    if classifier is not None and classifier.ndim != 2:
        raise RuntimeError(
            f'{path} has a classifier of weights {tuple(classifier.shape)}: expected a row of them for each class.')
    model_kwargs['num_classes'] = 0 if classifier is None else len(classifier)
    model = timm.create_model(f'{architecture}.{tag}' if source and tag else architecture, **model_kwargs).eval()
    model.load_state_dict(weights)
    model.pretrained_cfg['input_size'] = (model_kwargs['in_chans'], *model.pretrained_cfg['input_size'][1:])
    if source is None:
        # timm repeats one value of mean or std for as many channels as the arguments say
        args['in_chans'] = model.in_chans
        if isinstance(args.get('input_size'), (list, tuple)):
            args['input_size'] = [model.in_chans, *args['input_size'][1:]]
        try:
            images = resolve_data_config(args, model=model)
            math.fsum((*images['input_size'], *images['mean'], *images['std'], images['crop_pct']))  # or a TypeError
        except (AssertionError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(
                f'{path} says of its images what train.py does not: {type(error).__name__}: {error}. Expected numbers '
                'under img_size, input_size, mean, std and crop_pct. Save the checkpoint without its args.') from error
        model.pretrained_cfg.update(images, license=origin.get('license'))
        model.pretrained_cfg.pop('tag', None)
    provenance = {
        'architecture': architecture,
        'source': source.url if source else path.name,
        'git_blob_id': blob,
        'converter': f'timm-mobilenext {__version__}',
        **origin,
    }
    return Converted(model, model_kwargs, provenance, source, top1)


def save(converted: Converted, folder: Path, label_names: list[str] | None = None) -> None:
    """Write `model.safetensors` and `config.json` and check that timm reads the same weights back.

    Args:
        converted: The model and its provenance.
        folder: An empty folder.
        label_names: Names of the classes in the order of the logits; None for ImageNet-1k, whose names timm and
            transformers know.

    Raises:
        ValueError: If there are not as many names as classes.
        RuntimeError: If timm does not read the same weights back.
    """
    model = converted.model
    if label_names is not None and len(label_names) != model.num_classes:
        raise ValueError(f'There are {len(label_names)} label names, expected {model.num_classes}, one for each class.')
    labels = dict(label_names=label_names) if label_names else None
    timm.models.save_for_hf(
        model, str(folder), safe_serialization=True, model_config=labels, model_args=converted.model_args)
    # once more, with the provenance that timm has no place for; transformers asks for the format
    save_file(model.state_dict(), folder / WEIGHTS_NAME, metadata={'format': 'pt', **converted.provenance})
    config_file = folder / 'config.json'
    config = json.loads(config_file.read_text())
    # timm repeats here what the config says elsewhere; transformers passes it on and fails over num_classes given twice
    defaults = dict(num_classes=model.num_classes, in_chans=3, global_pool='avg')
    kept = {k: v for k, v in config.pop('model_args', {}).items() if k not in defaults or v != defaults[k]}
    if kept:
        config['model_args'] = kept
    config_file.write_text(json.dumps(config, indent=2) + '\n')
    os.chmod(folder / WEIGHTS_NAME, config_file.stat().st_mode)  # safetensors lets nobody else read what it writes

    expected, found = model.state_dict(), timm.create_model(f'local-dir:{folder}', pretrained=True).state_dict()
    if found.keys() != expected.keys() or not all(torch.equal(found[k], expected[k]) for k in expected):
        raise RuntimeError(f'timm does not read the weights back that were written to {folder}. Please report this.')


def convert(
        architecture: str,
        checkpoint: str | Path | None = None,
        output: str | Path | None = None,
        *,
        label_names: list[str] | None = None,
        **kwargs: Any,
) -> Path:
    """Convert a checkpoint to a folder with `model.safetensors` and `config.json`.

    Args:
        architecture: Name of the architecture.
        checkpoint: The file, None for the authors' own, which is downloaded.
        output: The folder, by default the architecture's name.
        label_names: See `save`.
        **kwargs: See `load`.

    Returns:
        The folder. timm loads it as `local-dir:FOLDER`, and its weights with `checkpoint_path=`.

    Raises:
        OSError, ValueError, RuntimeError: See `load` and `save`; nothing is left behind then.
    """
    output = Path(output or architecture)
    with new_folder(output) as folder:
        save(load(architecture, checkpoint, **kwargs), folder, label_names)
    return output


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """Return a command line parser with the arguments of all conversions.

    Args:
        command: Name of the command.
        description: What it does.
    """
    parser = argparse.ArgumentParser(
        f'python -m timm_mobilenext {command}', description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('architecture', help='name of the architecture')
    parser.add_argument('checkpoint', nargs='?', help="checkpoint file; without it the authors' own is downloaded")
    parser.add_argument('--output', '-o', metavar='DIR', help="new folder (default: the architecture's name)")
    parser.add_argument('--label-names', metavar='FILE', help='text file with the names of the classes, one a line')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ModelKwargs, metavar='KEY=VALUE',
                        help='arguments of the model, such as width_mult=1.1')
    parser.add_argument('--license', metavar='ID', help=(
        'licence of the weights, as the Hub spells it (default: that of the authors where the checkpoint is theirs or '
        'says that it was fine-tuned from theirs, else none)'))
    parser.add_argument('--cache-dir', metavar='DIR', help='where downloads are kept')
    return parser


def arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the parser of all conversions read, as the arguments of `convert`."""
    return dict(
        architecture=args.architecture, checkpoint=args.checkpoint, output=args.output, model_kwargs=args.model_kwargs,
        license=args.license, cache_dir=args.cache_dir, label_names=read_label_names(args.label_names))


def main(argv: list[str]) -> int:
    """Run `python -m timm_mobilenext convert` with these arguments."""
    args = parser('convert', __doc__ or '').parse_args(argv)
    with clear_errors():
        folder = convert(**arguments(args))
    print(f"{folder}: timm.create_model('local-dir:{folder}', pretrained=True), or "
          f"checkpoint_path='{folder / WEIGHTS_NAME}' where a script takes a file")
    return 0
