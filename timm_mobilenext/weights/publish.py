"""Make a Hugging Face Hub repository of a checkpoint: the converted folder, a model card and the licence text.

    python -m timm_mobilenext publish mobilenext_100                                          # a folder to look at
    python -m timm_mobilenext publish mobilenext_100 --push                                   # and onto the Hub
    python -m timm_mobilenext publish mobilenext_035 model_best.pth.tar --repo-id me/mine --label-names names.txt --push
    python -m timm_mobilenext publish mobilenext_100 --formats onnx executorch --weights int8    # with files for phones

What else there is to say: --help.
"""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import EvalResult, HfApi, ModelCardData, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HTTPError
from safetensors.torch import load_file
from timm.models._hub import hf_split

from timm_mobilenext import __version__
from timm_mobilenext.cli import clear_errors, new_folder
from timm_mobilenext.weights.authors import LICENSE, SOURCES
from timm_mobilenext.weights.convert import Converted, arguments, load, parser, save
from timm_mobilenext.doctor import count
from timm_mobilenext.deploy.export import Exported, chosen, options, write
from timm_mobilenext.weights.download import WEIGHTS_NAME, hub_id

LICENSE_TEXT = Path(__file__).with_name('LICENSE')

_USAGE = """## Usage

`pip install timm-mobilenext`. The import registers the architecture with timm; everything behind it is timm's and
transformers' own.

### Image classification

```python
import timm_mobilenext  # registers the models
import timm
import torch
from PIL import Image

image = Image.open('image.jpg').convert('RGB')
model = timm.create_model('hf-hub:{repo_id}', pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.no_grad():
    probabilities = model(transform(image).unsqueeze(0)).softmax(dim=1)
top5 = probabilities.topk(min(5, model.num_classes))
```

### Feature maps

```python
import timm_mobilenext  # registers the models
import timm
import torch

model = timm.create_model('hf-hub:{repo_id}', pretrained=True, features_only=True).eval()
with torch.no_grad():
    features = model(torch.randn(1, {in_chans}, {size}, {size}))  # at reductions 2, 4, 8, 16, 32
```

### Image embeddings

```python
import timm_mobilenext  # registers the models
import timm
import torch

model = timm.create_model('hf-hub:{repo_id}', pretrained=True, num_classes=0).eval()
with torch.no_grad():
    embedding = model(torch.randn(1, {in_chans}, {size}, {size}))  # (1, {num_features})
```

### transformers

```python
import timm_mobilenext  # registers the models
from transformers import pipeline

classifier = pipeline('image-classification', model='{repo_id}')
classifier('image.jpg')
```
"""

_FILES = """### Files for mobile runtimes

| file | precision | size (MB) | checked against PyTorch |
|---|---|---:|---|
{rows}

They take an image as timm's transform makes it, {shape}, and return logits; `model.json` says how images are prepared
and what the classes are.

```python
import numpy as np
from huggingface_hub import hf_hub_download
from timm_mobilenext.deploy.runtimes import load  # or the runtime itself

run = load(hf_hub_download('{repo_id}', '{first}'))
logits = run(np.zeros({shape}, np.float32))
```

A file that ends in `.xml` or `.param` needs the one in `.bin` beside it.
"""

_CITATION = """## Citation

```bibtex
@inproceedings{zhou2020rethinking,
  title={Rethinking Bottleneck Structure for Efficient Mobile Network Design},
  author={Zhou, Daquan and Hou, Qibin and Chen, Yunpeng and Feng, Jiashi and Yan, Shuicheng},
  booktitle={European Conference on Computer Vision (ECCV)},
  year={2020}
}
```

```bibtex
@misc{rw2019timm,
  author={Ross Wightman},
  title={PyTorch Image Models},
  year={2019},
  publisher={GitHub},
  doi={10.5281/zenodo.4414861},
  howpublished={\\url{https://github.com/huggingface/pytorch-image-models}}
}
```
"""


def card(converted: Converted, repo_id: str, dataset: str | None = None, exported: Sequence[Exported] = ()) -> str:
    """Return the model card of a repository, in Markdown under its YAML front matter.

    Args:
        converted: The model and where it comes from.
        repo_id: Name of the repository on the Hub.
        dataset: Name of the training data on the Hub; the authors' weights are of ImageNet-1k.
        exported: Files for mobile runtimes in it.
    """
    model, source, provenance = converted.model, converted.source, converted.provenance
    architecture = provenance['architecture']
    name = repo_id.rpartition('/')[2]
    license, derived_from = provenance.get('license'), provenance.get('derived_from')
    dataset = 'imagenet-1k' if source else dataset
    reported = {}
    if converted.top1 is not None:
        reported['Top 1 Accuracy'] = converted.top1
    if source and source.top5 is not None:
        reported['Top 5 Accuracy'] = source.top5
    data = ModelCardData(
        library_name='timm',
        license=license,
        tags=['image-classification', 'timm', 'transformers', 'mobilenext'],
        pipeline_tag='image-classification',
        datasets=[dataset] if dataset else None,
        metrics=['accuracy'],
        model_name=name if reported and dataset else None,
        eval_results=[
            EvalResult(
                task_type='image-classification', task_name='Image Classification', dataset_type=dataset,
                dataset_name='ImageNet-1k' if source else dataset, dataset_split='validation',
                metric_type='accuracy', metric_name=metric, metric_value=value,
                source_name=f'reported by {source.reported}, not measured again' if source else None,
                source_url=source.report if source else None)
            for metric, value in reported.items()
        ] if reported and dataset else None,
    )
    params, madds, activations = count(model)
    in_chans, height, width = model.pretrained_cfg['input_size']
    lines = [
        f'# Model card for {name}', '',
        f'A MobileNeXt image classification model, the network of SandGlass blocks, as `{architecture}` of',
        '[timm](https://github.com/huggingface/pytorch-image-models) with the package `timm-mobilenext`.', '',
        '## Model details', '',
        '- **Model type:** image classification, feature backbone',
        '- **Model stats:**',
        f'  - Params (M): {params / 1e6:.2f}',
        f'  - GMACs: {madds / 1e9:.2f}',
        f'  - Activations (M): {activations / 1e6:.2f}',
        f'  - Image size: {height} x {width}',
        '- **Papers:**',
        '  - Rethinking Bottleneck Structure for Efficient Mobile Network Design: https://arxiv.org/abs/2007.02269',
        '- **Original:** https://github.com/zhoudaquan/rethinking_bottleneck_design',
        *([f'- **Dataset:** {"ImageNet-1k" if source else dataset}'] if dataset else []), '',
        _USAGE.format(
            repo_id=repo_id, in_chans=in_chans, size=max(height, width), num_features=model.head_hidden_size),
    ]
    if exported:
        rows = [f'| `{f.path.name}` | {f.precision} | {f.bytes / 1e6:.2f} | {f.check()} |' for f in exported]
        lines.append(_FILES.format(
            repo_id=repo_id, rows='\n'.join(rows), shape=(1, *exported[0].input_size),
            first=exported[0].path.name))
    if source or reported:
        lines += ['## Results', '']
    if source:
        lines += [
            f'ImageNet-1k validation at 224 px, as reported by {source.reported}. Not measured again.', '',
            '| model | params (M) | GMACs | top-1 (%) | top-5 (%) |', '|---|---:|---:|---:|---:|',
        ]
        for other, its in (SOURCES if source in SOURCES.values() else {architecture: source}).items():
            params, madds, _ = count(timm.create_model(other, device='meta'))
            top5 = '' if its.top5 is None else f'{its.top5:.3f}'
            cells = f'{params / 1e6:.2f} | {madds / 1e9:.2f} | {its.top1:.3f} | {top5}'
            lines.append(f'| **{other}** | {cells} |' if other == architecture else f'| {other} | {cells} |')
        lines.append('')
    elif reported:
        lines += [f'Top-1 accuracy {converted.top1:.2f} %, as the training run reports it for its validation data.', '']
    lines += [
        '## Provenance', '',
        f'- **Source:** {provenance["source"]}',
        f'- **Git blob id of the source:** {provenance["git_blob_id"]}' + (
            '' if not source else ', verified before it was read' if source.blob else
            ', of the file that was there; none was known to compare it with'),
        f'- **Converted by:** {provenance["converter"]}, names of the weights changed, values not',
        *([f'- **Derived from:** weights of the authors, {derived_from}'] if derived_from else []),
        f'- **Licence:** {license or "not stated"}' + (
            ', The Clear BSD License, text in LICENSE' if license == LICENSE else ''), '',
        _CITATION,
    ]
    return f'---\n{data.to_yaml()}\n---\n\n' + '\n'.join(lines)


def authors_repository(architecture: str) -> str:
    """Return the name of the repository of an architecture's authors' weights, without the revision it is pinned to.

    Args:
        architecture: Name of the architecture, with the tag of other weights for theirs.
    """
    return hf_split(hub_id(architecture) or '')[0]


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
            theirs = load_file(hf_hub_download(repo_id, WEIGHTS_NAME))
        except EntryNotFoundError:
            theirs = None
        ours = load_file(folder / WEIGHTS_NAME)
        if theirs is not None and not (
                theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)):
            raise RuntimeError(
                f'{repo_id} has other weights than {folder}, nothing was uploaded. Name another repository, or replace '
                'them with --overwrite.')
    keep_card = not overwrite and api.file_exists(repo_id, 'README.md')  # it may have been edited, as timm keeps it
    return api.upload_folder(
        repo_id=repo_id, folder_path=folder, commit_message='Add model',
        ignore_patterns=['README.md'] if keep_card else None,
    ).oid


def publish(
        architecture: str,
        checkpoint: str | Path | None = None,
        output: str | Path | None = None,
        *,
        repo_id: str | None = None,
        dataset: str | None = None,
        label_names: list[str] | None = None,
        needs_license: bool = False,
        formats: Sequence[str] = (),
        export_options: dict[str, Any] | None = None,
        **kwargs: Any,
) -> Path:
    """Convert a checkpoint to a folder that is fit to be a repository on the Hub; `push` uploads it.

    Args:
        architecture: Name of the architecture.
        checkpoint: The file, None for the authors' own, which is downloaded.
        output: The folder, by default the architecture's name.
        repo_id: Name of the repository, which the card uses; by default that of the authors' weights.
        dataset: Name of the training data on the Hub.
        label_names: See `convert.save`.
        needs_license: Fail where the licence of the weights is neither given nor known, before anything is written.
        formats: Formats of files for mobile runtimes to add, see `export.write`.
        export_options: Its other arguments.
        **kwargs: See `convert.load`.

    Returns:
        The folder, with `model.safetensors`, `config.json`, `README.md` and, under the authors' licence, `LICENSE`.

    Raises:
        ImportError, OSError, ValueError, RuntimeError: See `convert.load`, `convert.save` and `export.write`; nothing
            is left behind then.
    """
    output = Path(output or architecture)
    with new_folder(output) as folder:
        converted = load(architecture, checkpoint, **kwargs)
        if repo_id is None and converted.source is None:
            raise ValueError(
                f"{checkpoint} is none of the authors' files: name its repository, owner/name (--repo-id).")
        if needs_license and 'license' not in converted.provenance:
            raise ValueError(
                f'Under which licence are the weights of {checkpoint}? It does not say that they come from those of '
                f'the authors, under {LICENSE}. Name it as the Hub spells it, apache-2.0 for one (--license).')
        repo_id = repo_id or authors_repository(architecture)
        save(converted, folder, label_names)
        exported = write(
            converted, formats, folder, label_names=label_names, **(export_options or {})) if formats else []
        (folder / 'README.md').write_text(card(converted, repo_id, dataset, exported), encoding='utf-8')
        if converted.provenance.get('license') == LICENSE:
            (folder / 'LICENSE').write_text(LICENSE_TEXT.read_text(encoding='utf-8'), encoding='utf-8')
    return output


def main(argv: list[str]) -> int:
    """Run `python -m timm_mobilenext publish` with these arguments."""
    command = parser('publish', __doc__ or '')
    command.add_argument('--repo-id', metavar='OWNER/NAME', help=(
        "name of the repository (default, for the authors' files alone: that of their weights)"))
    command.add_argument('--dataset', metavar='ID', help='training data, by its name on the Hub')
    command.add_argument('--push', action='store_true', help='upload the folder')
    command.add_argument('--private', action='store_true', help='create a private repository')
    command.add_argument('--overwrite', action='store_true', help='replace other weights and the card there')
    command.add_argument('--formats', nargs='+', default=[], metavar='FORMAT', help=(
        'add files for mobile runtimes, as export writes them, with its options'))
    options(command)
    args = command.parse_args(argv)
    if (args.int8 or args.weights) and not args.formats:
        command.error('--int8 and --weights are about files for mobile runtimes: name their --formats.')
    with clear_errors():
        folder = publish(
            **arguments(args), repo_id=args.repo_id, dataset=args.dataset, needs_license=args.push,
            formats=args.formats, export_options=chosen(args))
        print(f'{folder}: {", ".join(sorted(file.name for file in folder.iterdir()))}')
        if args.push:
            repo_id = args.repo_id or authors_repository(args.architecture)
            try:
                revision = push(folder, repo_id, private=args.private, overwrite=args.overwrite)
            except (OSError, HTTPError) as error:
                raise OSError(
                    f'{error}\n{folder} was not uploaded to {repo_id}. If the Hub does not know you, log in with '
                    f'`hf auth login`; `hf upload {repo_id} {folder}` uploads the folder as it is.') from error
            print(f"timm.create_model('hf-hub:{repo_id}@{revision}', pretrained=True)")
        else:
            print('Nothing was uploaded: --push does it.')
    return 0
