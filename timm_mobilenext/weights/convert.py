"""Convert weights to a folder that timm and transformers load.

    python -m timm_mobilenext convert mobilenext_100 --output folder           # the authors' file, verified
    python -m timm_mobilenext convert model_best.pth.tar --output folder       # a checkpoint of train.py
    python -m timm_mobilenext convert weights.pth --model mobilenext_050 --output folder

SOURCE is a model name with weights, a checkpoint, a converted folder, or hf-hub:OWNER/NAME.
"""
import argparse
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.data import resolve_data_config
from timm.models import is_model, parse_model_name, split_model_name_tag
from timm.models._hub import load_model_config_from_hf, load_model_config_from_path, save_config_for_hf

from timm_mobilenext import __version__, cli
from timm_mobilenext.mobilenext import checkpoint_filter_fn
from timm_mobilenext.weights.authors import HUB_OWNER, REPRODUCTIONS, SOURCES, Source, find_source
from timm_mobilenext.weights.download import WEIGHTS_NAME, fetch, git_blob_id, read


@dataclass
class Converted:
    """A model with weights, and where they come from."""

    model: Any  # in evaluation mode
    model_args: dict[str, Any]  # arguments of the model that are not the architecture's
    provenance: dict[str, str]  # where the weights come from, as the header of the converted file says it
    source: Source | None = None  # the file of the authors or of PaddleClas, None for other weights
    top1: float | None = None  # accuracy in % that the authors or the training run report, None where they do not


def load(
        source: str | Path,
        model: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        license: str | None = None,
        cache_dir: str | Path | None = None,
) -> Converted:
    """Load what a command names, with weights.

    Args:
        source: A checkpoint of train.py for any model of timm, or a state dict; a converted folder; hf-hub:OWNER/NAME;
            or the name of a model with weights. For those of the paper's authors it is their file, verified.
        model: Name of the architecture of a checkpoint that does not name its own. With the tag of PaddleClas's
            weights, a .pdparams file counts as one of them.
        model_kwargs: Arguments of the model that are not the architecture's, such as `width_mult`.
        license: Licence of the weights, as the Hub spells it, where the source does not say it.
        cache_dir: Folder of the caches, by default those of the Hub's client and of torch.hub.

    Raises:
        OSError: If a file is unavailable.
        ValueError: If there is no such source, or its architecture is unknown or another one.
        RuntimeError: If there are no weights, or they are damaged, unsafe or of another model.
    """
    name, model_kwargs = str(source), dict(model_kwargs or {})
    if Path(source).is_file():
        return _load_checkpoint(Path(source), model, model_kwargs, license)
    if model:
        raise ValueError(f'Checkpoint {name} does not exist, and --model {model} names the architecture of one.')
    if Path(source, 'config.json').is_file():
        name = f'local-dir:{name}'
    if not name.startswith(('hf-hub:', 'local-dir:')) and not is_model(name):
        raise ValueError(
            f'{name} is not a model, a file or a converted folder.{_did_you_mean(name)} Give a {cli.SOURCES}.')
    known = find_source(name)
    if known:
        return _load_checkpoint(fetch(known, cache_dir), name, model_kwargs)
    kind, place = parse_model_name(name)
    network: Any = timm.create_model(name, pretrained=True, cache_dir=cache_dir, **model_kwargs).eval()
    origin = {'source': name, 'license': network.pretrained_cfg.get('license')}
    if kind == 'hf-hub':
        model_kwargs = load_model_config_from_hf(place, cache_dir=cache_dir)[2] | model_kwargs
    elif kind == 'local-dir':
        model_kwargs = load_model_config_from_path(place)[2] | model_kwargs
        origin['source'] = Path(place).resolve().name  # without the folders above it, since the files are passed on
        file = Path(place, WEIGHTS_NAME)
        if file.is_file():
            origin |= {'git_blob_id': git_blob_id(file), **_origin(_metadata(file))}
    return Converted(network, model_kwargs, _provenance(
        network.pretrained_cfg['architecture'], **origin | ({'license': license} if license else {})))


def _did_you_mean(name: str) -> str:
    near = difflib.get_close_matches(name, timm.list_models(), 1)
    return f' Did you mean {near[0]}?' if near else ''


def _load_checkpoint(
        path: Path, model: str | None, model_kwargs: dict[str, Any], license: str | None = None) -> Converted:
    """Load a checkpoint: its weights, and what train.py saved about the model and the images."""
    blob = git_blob_id(path)
    known, source = next(((name, its) for name, its in SOURCES.items() if its.blob == blob), (None, None))
    if path.suffix == '.pdparams' and model in REPRODUCTIONS:  # of which there is no digest
        known, source = model, REPRODUCTIONS[model]
    weights = read(path, use_ema=source is None or source.ema)
    saved = {} if source else _metadata(path)
    args = saved.get('args', {})
    architecture = _architecture(path, known or saved.get('architecture') or args.get('model'), model)
    renamed = {'global_pool': 'gp', 'bn_eps': 'bn_eps', 'bn_momentum': 'bn_momentum'}
    saved_kwargs = {key: args[arg] for key, arg in renamed.items() if args.get(arg) is not None}
    model_kwargs = {**(args.get('model_kwargs') or {}), **saved_kwargs, **model_kwargs}
    network = _build(known or architecture, weights, args, model_kwargs)
    if source:
        provenance = _provenance(architecture, source=source.url, git_blob_id=blob, license=source.license)
        return Converted(network, model_kwargs, provenance, source, source.top1)
    origin = _origin(saved) | ({'license': license} if license else {})
    images = resolve_data_config({**args, 'in_chans': model_kwargs['in_chans']}, model=network)
    network.pretrained_cfg.update(images, license=origin.get('license'))
    network.pretrained_cfg.pop('tag', None)
    is_top1 = isinstance(saved.get('metric'), float) and args.get('eval_metric', 'top1') == 'top1'
    provenance = _provenance(architecture, source=path.name, git_blob_id=blob, **origin)
    return Converted(network, model_kwargs, provenance, top1=saved['metric'] if is_top1 else None)


def _metadata(path: Path) -> dict[str, Any]:
    """Return what a checkpoint has beside its weights: the header of a safetensors file, or what train.py saved."""
    if path.suffix == '.pdparams':
        return {}
    if path.suffix == '.safetensors':
        with safe_open(path, 'pt') as file:
            return file.metadata() or {}
    with torch.serialization.safe_globals([argparse.Namespace]):
        saved = torch.load(path, map_location='cpu', weights_only=True)
    return {**saved, 'args': vars(saved['args']) if isinstance(saved.get('args'), argparse.Namespace) else {}}


def _architecture(path: Path, trained: str | None, model: str | None) -> str:
    """Return the architecture of a checkpoint that names `trained`, for which the user names `model`."""
    trained, model = (split_model_name_tag(str(name or '').rpartition('/')[2])[0] for name in (trained, model))
    if model and not is_model(model):
        raise ValueError(f'{model} is not a model (--model).{_did_you_mean(model)}')
    if not is_model(trained):
        trained = model
    if not trained:
        raise ValueError(f'{path} does not say which architecture it is of. Name it, e.g. --model mobilenext_050.')
    if model and model != trained:
        raise ValueError(f'{path} is of {trained}, not of {model}: give --model {trained}.')
    return trained


def _build(architecture: str, weights: dict[str, Any], args: dict[str, Any], model_kwargs: dict[str, Any]) -> Any:
    """Create the model of a checkpoint and load it; add the input channels and classes to `model_kwargs`."""
    if split_model_name_tag(architecture)[0] in timm.list_models(module='mobilenext'):  # others: timm's own layout
        empty: Any = timm.create_model(architecture, device='meta', **model_kwargs)
        weights = checkpoint_filter_fn(weights, empty)
    cfg: Any = timm.get_pretrained_cfg(architecture)
    stem, classifier = (weights.get(f'{layer}.weight') for layer in (cfg.first_conv, cfg.classifier))
    in_chans = args.get('in_chans') or next(iter(args.get('input_size') or ()), None)  # as train.py decides it
    model_kwargs['in_chans'] = in_chans or (3 if 'in_chans' in args or stem is None else stem.shape[1])
    num_classes = 0 if classifier is None else len(classifier)
    model_kwargs['num_classes'] = num_classes if args.get('num_classes') is None else args['num_classes']
    network: Any = timm.create_model(architecture, **model_kwargs).eval()
    network.load_state_dict(weights)
    network.pretrained_cfg['input_size'] = (model_kwargs['in_chans'], *network.pretrained_cfg['input_size'][1:])
    return network


def _origin(saved: dict[str, Any]) -> dict[str, str]:
    """Return the licence of a checkpoint's weights and the known file that they were fine-tuned from.

    A converted file names both. A checkpoint of train.py started from a known file if it was trained with --pretrained,
    under a registered name and without another file.
    """
    args = saved.get('args', {})
    name = str(args.get('model') or '').removeprefix('hf-hub:').removeprefix(f'{HUB_OWNER}/').partition('@')[0]
    started_from = find_source(name)
    licenses = {its.url: its.license for its in (*SOURCES.values(), *REPRODUCTIONS.values())}
    derived_from = next((saved[key] for key in ('derived_from', 'source') if saved.get(key) in licenses), '')
    if args.get('pretrained') and started_from and not (args.get('pretrained_path') or args.get('initial_checkpoint')):
        derived_from = started_from.url
    license = saved.get('license') or licenses.get(derived_from)
    return {key: text for key, text in (('derived_from', derived_from), ('license', license)) if text}


def _provenance(architecture: str, **origin: str | None) -> dict[str, str]:
    known = {key: text for key, text in origin.items() if text}
    return {'architecture': architecture, 'converter': f'timm-mobilenext {__version__}', **known}


def save(converted: Converted, folder: Path, label_names: list[str] | None = None) -> None:
    """Write `model.safetensors` and `config.json`.

    Args:
        converted: The model and its provenance.
        folder: An empty folder.
        label_names: Names of the classes in the order of the logits; None for those of the model's config. timm and
            transformers know the names of ImageNet-1k.

    Raises:
        ValueError: If there are not as many names as classes.
    """
    model = converted.model
    if label_names is not None:
        if len(label_names) != model.num_classes:
            raise ValueError(f'{len(label_names)} label names for {model.num_classes} classes: give one name for each.')
        model.pretrained_cfg['label_names'] = label_names
    weights, config_file = folder / WEIGHTS_NAME, folder / 'config.json'
    save_config_for_hf(
        model, config_file,  # type: ignore[arg-type] # timm says str, and its oldest takes only a Path
        model_config={'label_names': model.pretrained_cfg.get('label_names')}, model_args=converted.model_args)
    config = json.loads(config_file.read_text())
    # timm repeats here what the config has elsewhere; transformers passes it on and fails: num_classes is given twice
    defaults = dict(num_classes=model.num_classes, in_chans=3, global_pool='avg')
    kept = {k: v for k, v in config.pop('model_args', {}).items() if k not in defaults or v != defaults[k]}
    config_file.write_text(json.dumps(config | ({'model_args': kept} if kept else {}), indent=2) + '\n')
    save_file(model.state_dict(), weights, metadata={'format': 'pt', **converted.provenance})  # transformers reads `pt`
    weights.chmod(config_file.stat().st_mode)  # safetensors writes files that other users cannot read


def convert(
        source: str | Path, output: str | Path, *, label_names: list[str] | None = None, **kwargs: Any) -> Path:
    """Convert weights to a folder with `model.safetensors` and `config.json`.

    Args:
        source: See `load`.
        output: The folder, a new one.
        label_names: See `save`.
        **kwargs: The other arguments of `load`.

    Returns:
        The folder. timm loads it as `local-dir:FOLDER`, or its weights alone with `checkpoint_path=`.

    Raises:
        OSError, ValueError, RuntimeError: See `load` and `save`; nothing is left behind then.
    """
    with cli.new_folder(output) as folder:
        save(load(source, **kwargs), folder, label_names)
    return Path(output)


def main(argv: list[str]) -> int:
    """Run `python -m timm_mobilenext convert` with these arguments."""
    command = cli.parser('convert', __doc__)
    cli.add_weights(command)
    args = command.parse_args(argv)
    with cli.clear_errors():
        folder = convert(**cli.chosen(args))
        print(f"{folder}: timm.create_model('local-dir:{folder}', pretrained=True), or "
              f"checkpoint_path='{folder / WEIGHTS_NAME}' where a script takes a file")
    return 0
