"""Make a repository for the Hugging Face Hub: a converted folder with a model card and the text of the licence.

    python -m timm_mobilenext publish model_best.pth.tar --repo-id me/mine --label-names names.txt --output mine
    python -m timm_mobilenext publish model_best.pth.tar --repo-id me/mine --license apache-2.0 --output mine --push
    python -m timm_mobilenext publish model_best.pth.tar --repo-id me/mine --output mine --format onnx --weights int8

SOURCE is a model name with weights, a checkpoint, a converted folder, or hf-hub:OWNER/NAME. Nothing is uploaded without
--push.
"""
import json
import re
import shutil
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path
from string import Template
from typing import Any

import torch
from huggingface_hub import EvalResult, HfApi, ModelCardData, hf_hub_download
from safetensors.torch import load_file

from timm_mobilenext import __version__, cli
from timm_mobilenext.deploy import export
from timm_mobilenext.doctor import count
from timm_mobilenext.mobilenext import MobileNeXt
from timm_mobilenext.weights.authors import HUB_OWNER, LICENSE
from timm_mobilenext.weights.convert import Converted, load, save
from timm_mobilenext.weights.download import WEIGHTS_NAME

LICENSE_TEXT = Path(__file__).with_name('LICENSE')


def card(
        converted: Converted, repo_id: str, dataset: str | None = None, exported: Sequence[export.Exported] = (),
) -> str:
    """Return the model card of a repository, in Markdown under its YAML front matter.

    Args:
        converted: A MobileNeXt and where it comes from.
        repo_id: Name of the repository on the Hub.
        dataset: Name of the training data on the Hub; for the authors' weights it is ImageNet-1k.
        exported: Files for mobile runtimes in the repository.
    """
    model, source, origin = converted.model, converted.source, converted.provenance
    params, madds, activations = count(model)
    in_chans, height, width = model.pretrained_cfg['input_size']
    names, license = model.pretrained_cfg.get('label_names'), origin.get('license')
    labels, label_code = 'not named', 'range(model.num_classes)'
    reported, verified, derived_from, files = 'not stated', '', '', ''
    if source:
        labels, label_code = 'those of ImageNet-1k', 'timm.data.ImageNetInfo().label_descriptions()'
        reported = f'top-1 {source.top1} %' + (f', top-5 {source.top5} %' if source.top5 else '') + (
            f', on ImageNet-1k validation at 224 px; reported {source.reported}, not measured again')
        verified = ', verified before the file was read' if source.blob else (
            ', not verified: no digest of the file is known')
    elif converted.top1 is not None:
        reported = f'top-1 {converted.top1:.2f} %, as the training run reports it for its validation data'
    if names:
        labels = ', '.join(names[:20]) + (', ... (all in config.json)' if len(names) > 20 else '')
        label_code = "model.pretrained_cfg['label_names']"
    if 'derived_from' in origin:
        whose = "weights of the paper's authors, " if license == LICENSE else ''
        derived_from = f'\n- **Derived from:** {whose}{origin["derived_from"]}'
    if exported:
        files = _template('card_files.md').substitute(
            repo_id=repo_id, shape=(1, *exported[0].input_size), first=exported[0].path.name, rows='\n'.join(
                f'| `{f.path.name}` | {f.precision} | {f.bytes / 1e6:.2f} | {f.check()} |' for f in exported))
    return _template('card.md').substitute(
        origin, front=_front_matter(converted, repo_id, dataset).to_yaml(), name=repo_id.rpartition('/')[2],
        repo_id=repo_id, num_classes=model.num_classes, labels=labels, label_code=label_code, in_chans=in_chans,
        height=height, width=width, mode='L' if in_chans == 1 else 'RGB', num_features=model.head_hidden_size,
        trained_on='ImageNet-1k' if source else dataset or 'not stated', reported=reported, install=_install(repo_id),
        params=f'{params / 1e6:.2f}', madds=f'{madds / 1e9:.2f}', activations=f'{activations / 1e6:.2f}',
        license='The Clear BSD License, text in LICENSE' if license == LICENSE else license or (
            'not stated, so nobody else may use these weights'),
        blob=f'{origin.get("git_blob_id", "none")}{verified}', derived_from=derived_from, files=files)


def _template(name: str) -> Template:
    return Template(Path(__file__).with_name(name).read_text(encoding='utf-8'))


def _front_matter(converted: Converted, repo_id: str, dataset: str | None) -> ModelCardData:
    """Return what the Hub reads of a card. It shows the accuracy beside the model."""
    source, results = converted.source, []
    metrics = {'Top 1 Accuracy': converted.top1, 'Top 5 Accuracy': source.top5 if source else None}
    for metric, value in metrics.items():
        if value is not None:
            results.append(EvalResult(
                task_type='image-classification', task_name='Image Classification', dataset_split='validation',
                dataset_type='imagenet-1k' if source else dataset or 'imagefolder',  # transformers' name of own images
                dataset_name='ImageNet-1k' if source else dataset or 'validation images of the training run',
                metric_type='accuracy', metric_name=metric, metric_value=value,
                source_name=f'reported {source.reported}, not measured again' if source else None,
                source_url=source.page if source else None))
    dataset = 'imagenet-1k' if source else dataset
    return ModelCardData(
        library_name='timm', license=converted.provenance.get('license'), pipeline_tag='image-classification',
        tags=['image-classification', 'timm', 'transformers', 'mobilenext'], datasets=[dataset] if dataset else None,
        metrics=['accuracy'], model_name=repo_id.rpartition('/')[2] if results else None, eval_results=results or None)


def _install(repo_id: str) -> str:
    """Return how a reader installs this package: as this copy was installed, if that works for others."""
    direct_url = distribution('timm-mobilenext').read_text('direct_url.json')  # None if it came from an index
    if direct_url is None or repo_id.startswith(f'{HUB_OWNER}/'):  # which a release publishes, with the package
        return '```sh\npip install timm-mobilenext\n```'
    origin = json.loads(direct_url)
    if 'vcs_info' in origin:
        return f"```sh\npip install 'git+{origin['url']}@{origin['vcs_info']['commit_id']}'\n```"
    return (
        f'The code below needs the Python package `timm-mobilenext` {__version__}. The copy that wrote this card did '
        'not come from a package index.')


def push(folder: Path, repo_id: str, *, private: bool = False, overwrite: bool = False) -> str:
    """Upload a folder to a model repository on the Hub in one commit. The repository is created if there is none.

    Args:
        folder: A converted folder with its card.
        repo_id: Name of the repository, `owner/name`.
        private: Whether a new repository is private.
        overwrite: Replace other weights and the card in the repository.

    Returns:
        The revision of the commit.

    Raises:
        RuntimeError: If the repository has other weights, unless `overwrite` is set.
        OSError: If the Hub refuses; HfHubHTTPError says why.
    """
    api = HfApi(library_name='timm-mobilenext', library_version=__version__)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if not overwrite and api.file_exists(repo_id, WEIGHTS_NAME):
        there, here = load_file(hf_hub_download(repo_id, WEIGHTS_NAME)), load_file(folder / WEIGHTS_NAME)
        if there.keys() != here.keys() or not all(torch.equal(there[key], here[key]) for key in here):
            raise RuntimeError(
                f'{repo_id} has other weights than {folder}, nothing was uploaded. Name another repository, or replace '
                'the weights with --overwrite.')
    keep_card = not overwrite and api.file_exists(repo_id, 'README.md')  # it may have been edited; timm keeps it too
    return api.upload_folder(
        repo_id=repo_id, folder_path=folder, commit_message='Add model',
        ignore_patterns=['README.md'] if keep_card else None,
    ).oid


def publish(
        source: str | Path,
        output: str | Path,
        repo_id: str | None = None,
        *,
        dataset: str | None = None,
        label_names: list[str] | None = None,
        needs_license: bool = False,
        formats: Sequence[str] = (),
        export_options: dict[str, Any] | None = None,
        **kwargs: Any,
) -> str:
    """Convert weights to a folder that can be a repository on the Hub; `push` uploads it.

    Args:
        source: See `convert.load`.
        output: The folder, a new one. It has `model.safetensors`, `config.json`, `README.md` and, under the authors'
            licence, `LICENSE`.
        repo_id: Name of the repository, `owner/name`, for the card; None for that of the authors' weights.
        dataset: Name of the training data on the Hub.
        label_names: See `convert.save`.
        needs_license: Fail where the licence of the weights is neither given nor known.
        formats: Formats of files for mobile runtimes to add, see `export.write`.
        export_options: The other arguments of `export.write`.
        **kwargs: The other arguments of `convert.load`.

    Returns:
        Name of the repository.

    Raises:
        ImportError, OSError, ValueError, RuntimeError: See `convert.load`, `convert.save` and `export.write`. Nothing
            is left behind then.
    """
    if repo_id is not None and not re.fullmatch(r'[\w.-]+/[\w.-]+', repo_id):
        raise ValueError(f'{repo_id} is not the name of a repository on the Hub: give OWNER/NAME (--repo-id).')
    with cli.new_folder(output) as folder:
        converted = load(source, **kwargs)
        if not isinstance(converted.model, MobileNeXt):
            raise ValueError(f'{source} is not a MobileNeXt: publish other models with timm.models.push_to_hf_hub.')
        if repo_id is None and converted.source is None:
            raise ValueError('The card needs the name of a repository: --repo-id OWNER/NAME.')
        if needs_license and 'license' not in converted.provenance:
            raise ValueError(
                f'The licence of the weights of {source} is unknown. Name it, e.g. --license apache-2.0, or --license '
                f"{LICENSE} if you fine-tuned weights of the paper's authors.")
        cfg: Any = converted.model.pretrained_cfg
        repo_id = repo_id or f'{HUB_OWNER}/{cfg["architecture"]}.{cfg["tag"]}'
        save(converted, folder, label_names)
        exported = export.write(
            converted, formats, folder, label_names=label_names, **(export_options or {})) if formats else []
        (folder / 'README.md').write_text(card(converted, repo_id, dataset, exported), encoding='utf-8')
        if converted.provenance.get('license') == LICENSE:
            shutil.copyfile(LICENSE_TEXT, folder / 'LICENSE')
    return repo_id


def main(argv: list[str]) -> int:
    """Run `python -m timm_mobilenext publish` with these arguments."""
    command = cli.parser('publish', __doc__)
    cli.add_weights(command)
    command.add_argument('--repo-id', metavar='OWNER/NAME', help=(
        "name of the repository (default, only for the authors' weights: timm-mobilenext/NAME.in1k)"))
    command.add_argument('--dataset', metavar='ID', help='training data, by its name on the Hub')
    command.add_argument('--push', action='store_true', help='upload the folder')
    command.add_argument('--private', action='store_true', help='create a private repository')
    command.add_argument('--overwrite', action='store_true', help='replace other weights and the card on the Hub')
    command.add_argument('--format', nargs='+', default=[], metavar='FORMAT', help=(
        'add files for mobile runtimes, as export writes them, with its options'))
    export.options(command)
    args = command.parse_args(argv)
    if (args.int8 or args.weights) and not args.format:
        command.error('--int8 and --weights are for files for mobile runtimes: name their --format')
    with cli.clear_errors():
        repo_id = publish(
            repo_id=args.repo_id, dataset=args.dataset, needs_license=args.push, formats=args.format,
            export_options=export.chosen(args), **cli.chosen(args))
        folder = Path(args.output)
        print(f'{folder}: {", ".join(sorted(file.name for file in folder.iterdir()))}')
        if not args.push:
            print('Nothing was uploaded. Upload it with --push.')
            return 0
        print(f'Uploading. If it fails, log in with `hf auth login`, then run `hf upload {repo_id} {folder}`.')
        revision = push(folder, repo_id, private=args.private, overwrite=args.overwrite)
        print(f"timm.create_model('hf-hub:{repo_id}@{revision}', pretrained=True)")
    return 0
