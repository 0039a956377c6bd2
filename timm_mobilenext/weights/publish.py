"""Make a repository for the Hugging Face Hub: a converted folder with a model card and the licence text.

    python -m timm_mobilenext publish model_best.pth.tar --repo-id me/mine --label-names names.txt --output mine
    python -m timm_mobilenext publish model_best.pth.tar --repo-id me/mine --license apache-2.0 --output mine --push
    python -m timm_mobilenext publish model_best.pth.tar --repo-id me/mine --output mine --format onnx --weights int8

SOURCE is a model name with weights, a checkpoint, a converted folder, or hf-hub:OWNER/NAME. Without --push the folder is
for you to look at.
"""
import json
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from string import Template
from typing import Any

import timm
import torch
from huggingface_hub import EvalResult, HfApi, ModelCardData, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HTTPError
from safetensors.torch import load_file

from timm_mobilenext import __version__, cli
from timm_mobilenext.deploy.export import Exported, options, write
from timm_mobilenext.deploy.export import chosen as chosen_for_files
from timm_mobilenext.doctor import count
from timm_mobilenext.mobilenext import MobileNeXt
from timm_mobilenext.weights.authors import HUB_OWNER, LICENSE, SOURCES
from timm_mobilenext.weights.convert import Converted, add_options, chosen, load, save
from timm_mobilenext.weights.download import WEIGHTS_NAME

CARD = Path(__file__).with_name('card.md')
LICENSE_TEXT = Path(__file__).with_name('LICENSE')

_FILES = Template("""
### Files for mobile runtimes

| file | precision | size (MB) | checked against PyTorch |
|---|---|---:|---|
$rows

They take an image as timm's transform makes it, $shape, and return logits. `model.json` says how to prepare images and
what the classes are. A file that ends in `.xml` or `.param` needs the `.bin` file beside it.

```python
import numpy as np
from huggingface_hub import hf_hub_download
from timm_mobilenext.deploy.runtimes import load  # or the runtime itself

run = load(hf_hub_download('$repo_id', '$first'))
logits = run(np.zeros($shape, np.float32))
```
""")


def card(converted: Converted, repo_id: str, dataset: str | None = None, exported: Sequence[Exported] = (),
         label_names: Sequence[str] | None = None) -> str:
    """Return the model card of a repository, in Markdown under its YAML front matter.

    Args:
        converted: A MobileNeXt and where it comes from.
        repo_id: Name of the repository on the Hub.
        dataset: Name of the training data on the Hub; the authors' weights are of ImageNet-1k.
        exported: Files for mobile runtimes in it.
        label_names: Names of the classes.
    """
    model, source, provenance = converted.model, converted.source, converted.provenance
    params, madds, activations = count(model)
    in_chans, height, width = model.pretrained_cfg['input_size']
    license = provenance.get('license')
    label_code = 'range(model.num_classes)'
    labels = classes = f'{model.num_classes} classes' if model.num_classes else 'no classes, features only'
    if label_names:
        labels = ', '.join(label_names[:20]) + (f', ... {len(label_names)} in all, in config.json' * (len(label_names) > 20))
        label_code = "model.pretrained_cfg['label_names']"
    elif source:
        labels, label_code = 'the 1000 of ImageNet-1k', 'timm.data.ImageNetInfo().label_descriptions()'
    shape = f'(1, {", ".join(map(str, exported[0].input_size))})' if exported else ''
    return Template(CARD.read_text(encoding='utf-8')).substitute(
        front=_front_matter(converted, repo_id, dataset).to_yaml(), name=repo_id.rpartition('/')[2], repo_id=repo_id,
        classes=classes, architecture=provenance['architecture'], height=height, width=width, in_chans=in_chans,
        mode='L' if in_chans == 1 else 'RGB', num_features=model.head_hidden_size, labels=labels, label_code=label_code,
        trained_on='ImageNet-1k' if source else f'https://huggingface.co/datasets/{dataset}' if dataset else 'not stated',
        params=f'{params / 1e6:.2f}', madds=f'{madds / 1e9:.2f}', activations=f'{activations / 1e6:.2f}',
        license='The Clear BSD License, text in LICENSE' if license == LICENSE else license or (
            'not stated, so nobody else may use these weights'),
        install=_install(repo_id), results=_results(converted), provenance=_provenance(converted),
        files=_FILES.substitute(
            rows='\n'.join(f'| `{f.path.name}` | {f.precision} | {f.bytes / 1e6:.2f} | {f.check()} |' for f in exported),
            repo_id=repo_id, shape=shape, first=exported[0].path.name) if exported else '')


def _front_matter(converted: Converted, repo_id: str, dataset: str | None) -> ModelCardData:
    """Return what the Hub reads of a card; it shows the accuracy beside the model."""
    source = converted.source
    reported = {} if converted.top1 is None else {'Top 1 Accuracy': converted.top1}
    if source:
        dataset, reported['Top 5 Accuracy'] = 'imagenet-1k', source.top5
    return ModelCardData(
        library_name='timm',
        license=converted.provenance.get('license'),
        tags=['image-classification', 'timm', 'transformers', 'mobilenext'],
        pipeline_tag='image-classification',
        datasets=[dataset] if dataset else None,
        metrics=['accuracy'],
        model_name=repo_id.rpartition('/')[2] if reported else None,
        eval_results=[
            EvalResult(
                task_type='image-classification', task_name='Image Classification',
                dataset_type=dataset or 'imagefolder',  # as transformers calls images of one's own
                dataset_name='ImageNet-1k' if source else dataset or 'validation images of the training run',
                dataset_split='validation', metric_type='accuracy', metric_name=metric, metric_value=value,
                source_name="reported by the authors' training log, not measured again" if source else None,
                source_url=source.url.replace('/raw/', '/tree/').rpartition('/')[0] if source else None)
            for metric, value in reported.items()
        ] or None,
    )


def _install(repo_id: str) -> str:
    """Return how a reader of a card installs this package: as this copy of it was, where that is public.

    Repositories of `HUB_OWNER` are published with a release of the package, which is on PyPI.
    """
    try:
        said = distribution('timm-mobilenext').read_text('direct_url.json')  # pip writes it unless an index had the package
    except PackageNotFoundError:
        said = '{}'
    origin = json.loads(said or '{}')
    if said is None or repo_id.startswith(f'{HUB_OWNER}/'):
        return '```sh\npip install timm-mobilenext\n```'
    if 'vcs_info' in origin:
        return f"```sh\npip install 'git+{origin['url']}@{origin['vcs_info']['commit_id']}'\n```"
    return f'This needs the Python package `timm-mobilenext` {__version__}, in a copy that no package index has yet.'


def _results(converted: Converted) -> str:
    if converted.source is None:
        return 'Not stated.' if converted.top1 is None else (
            f'Top-1 accuracy {converted.top1:.2f} %, as the training run reports it for its validation data.')
    lines = [
        "ImageNet-1k validation at 224 px, as the training logs of the paper's authors report it (means over their",
        'processes). Not measured again.', '',
        '| model | params (M) | GMACs | top-1 (%) | top-5 (%) |', '|---|---:|---:|---:|---:|']
    for name, its in SOURCES.items():
        params, madds, _ = count(timm.create_model(name, device='meta'))
        bold = '**' if name == converted.provenance['architecture'] else ''
        lines.append(
            f'| {bold}{name}{bold} | {params / 1e6:.2f} | {madds / 1e9:.2f} | {its.top1:.3f} | {its.top5:.3f} |')
    return '\n'.join(lines)


def _provenance(converted: Converted) -> str:
    provenance, source = converted.provenance, converted.source
    said = {
        'Source': provenance['source'],
        'Git blob id of the source': provenance.get('git_blob_id', '') + (', verified before it was read' if source else ''),
        'Converted by': f'{provenance["converter"]}, names of the weights changed, values not',
        'Derived from': 'derived_from' in provenance and f"weights of the paper's authors, {provenance['derived_from']}",
    }
    return '\n'.join(f'- **{key}:** {text}' for key, text in said.items() if text)


def push(folder: Path, repo_id: str, *, private: bool = False, overwrite: bool = False) -> str:
    """Upload a folder to a model repository on the Hub in one commit; the repository is created if there is none.

    Args:
        folder: A converted folder with its card.
        repo_id: Name of the repository, `owner/name`.
        private: Whether a repository that is created is private.
        overwrite: Replace other weights and the card that the repository has.

    Returns:
        The revision of the commit.

    Raises:
        RuntimeError: If the repository has other weights, unless `overwrite` is set.
        OSError: If the Hub refuses; HfHubHTTPError says why.
    """
    api = HfApi(library_name='timm-mobilenext', library_version=__version__)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if not overwrite:
        try:
            there = load_file(hf_hub_download(repo_id, WEIGHTS_NAME))
        except EntryNotFoundError:
            there = None
        here = load_file(folder / WEIGHTS_NAME)
        if there is not None and not (
                there.keys() == here.keys() and all(torch.equal(there[key], here[key]) for key in here)):
            raise RuntimeError(
                f'{repo_id} has other weights than {folder}, nothing was uploaded. Name another repository, or replace '
                'them with --overwrite.')
    keep_card = not overwrite and api.file_exists(repo_id, 'README.md')  # it may have been edited, as timm keeps it
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
    """Convert weights to a folder that is fit to be a repository on the Hub; `push` uploads it.

    Args:
        source: See `convert.load`.
        output: The folder, a new one. It has `model.safetensors`, `config.json`, `README.md` and, under the authors'
            licence, `LICENSE`.
        repo_id: Name of the repository, `owner/name`, which the card uses; None for that of the authors' weights.
        dataset: Name of the training data on the Hub.
        label_names: See `convert.save`.
        needs_license: Fail where the licence of the weights is neither given nor known.
        formats: Formats of files for mobile runtimes to add, see `export.write`.
        export_options: Its other arguments.
        **kwargs: The other arguments of `convert.load`.

    Returns:
        Name of the repository.

    Raises:
        ImportError, OSError, ValueError, RuntimeError: See `convert.load`, `convert.save` and `export.write`; nothing
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
        repo_id = repo_id or f'{HUB_OWNER}/{converted.provenance["architecture"]}.in1k'
        save(converted, folder, label_names)
        exported = write(
            converted, formats, folder, label_names=label_names, **(export_options or {})) if formats else []
        names = label_names or converted.model.pretrained_cfg.get('label_names')
        (folder / 'README.md').write_text(card(converted, repo_id, dataset, exported, names), encoding='utf-8')
        if converted.provenance.get('license') == LICENSE:
            (folder / 'LICENSE').write_text(LICENSE_TEXT.read_text(encoding='utf-8'), encoding='utf-8')
    return repo_id


def main(argv: list[str]) -> int:
    """Run `python -m timm_mobilenext publish` with these arguments."""
    command = cli.parser('publish', __doc__)
    add_options(command)
    command.add_argument('--repo-id', metavar='OWNER/NAME', help=(
        "name of the repository (default, only for the authors' weights: timm-mobilenext/NAME.in1k)"))
    command.add_argument('--dataset', metavar='ID', help='training data, by its name on the Hub')
    command.add_argument('--push', action='store_true', help='upload the folder')
    command.add_argument('--private', action='store_true', help='create a private repository')
    command.add_argument('--overwrite', action='store_true', help='replace other weights and the card there')
    command.add_argument('--format', nargs='+', default=[], metavar='FORMAT', help=(
        'add files for mobile runtimes, as export writes them, with its options'))
    options(command)
    args = command.parse_args(argv)
    if (args.int8 or args.weights) and not args.format:
        command.error('--int8 and --weights are about files for mobile runtimes: name their --format')
    with cli.clear_errors():
        repo_id = publish(
            **chosen(args), repo_id=args.repo_id, dataset=args.dataset, needs_license=args.push, formats=args.format,
            export_options=chosen_for_files(args))
        folder = Path(args.output)
        print(f'{folder}: {", ".join(sorted(file.name for file in folder.iterdir()))}')
        if not args.push:
            print('Nothing was uploaded. Upload it with --push.')
            return 0
        try:
            revision = push(folder, repo_id, private=args.private, overwrite=args.overwrite)
        except (OSError, HTTPError) as error:
            raise OSError(
                f'{error}\n{folder} was not uploaded to {repo_id}. If the Hub does not know you, log in with '
                f'`hf auth login`; `hf upload {repo_id} {folder}` uploads the folder as it is.') from error
        print(f"timm.create_model('hf-hub:{repo_id}@{revision}', pretrained=True)")
    return 0
