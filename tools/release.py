"""Publish the pretrained weights, pin them, and check that a release takes no others. For whoever makes a release.

    python tools/release.py publish            # put all six on the Hub; print what they are pinned to
    python tools/release.py publish --write    # and write the pins into timm_mobilenext/mobilenext.py
    python tools/release.py verify             # have each classify a photograph of which the answers are known
    python tools/release.py verify --data-dir imagenet --scripts pytorch-image-models  # and all images of validation
    python tools/release.py check              # fail if a pin is missing, or its weights are not those of the source
    python tools/release.py check --tag v1.0.0 # and if the tag is not that of the package and its changelog

Whoever registers a name on the Hub first decides what `pretrained=True` takes from there. So a release pins every
`hf_hub_id` to a commit, whose `model.safetensors` equals the converted file of the authors bit by bit. No digest of
PaddleClas's file is known; what `publish` took is named in the header of what it published. `publish` can be run again:
weights that are on the Hub already stay.
"""
import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import timm
import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from PIL import Image
from safetensors import safe_open
from timm.data import create_transform, resolve_model_data_config
from timm.models._hub import hf_split

from timm_mobilenext import __version__
from timm_mobilenext.cli import clear_errors
from timm_mobilenext.weights.authors import HUB_OWNER, REPRODUCTIONS, SOURCES, find_source
from timm_mobilenext.weights.convert import convert
from timm_mobilenext.weights.download import WEIGHTS_NAME, git_blob_id
from timm_mobilenext.weights.publish import publish, push

ROOT = Path(__file__).parent.parent
MODELS = ROOT / 'timm_mobilenext' / 'mobilenext.py'
CHANGELOG = ROOT / 'CHANGELOG.md'
# A photograph of a Weimaraner, class 178, from ImageNet's validation images. ANSWERS has what flytocc's README reports
# for `.paddle_in1k` (predict.py in mixed precision; in float32 the first is 0.8507).
PHOTOGRAPH = ('https://github.com/flytocc/MobileNeXt-paddle/raw/5868f1558961ccac476ad426fac5b5c8b19c19db/demo/'
              'ILSVRC2012_val_00020010.JPEG')
PHOTOGRAPH_BLOB = '9c6f877956aba468f6519dd197cfd8d26cb7249f'
WEIMARANER = 178
ANSWERS = {'mobilenext_100.paddle_in1k': {178: 0.8502, 211: 0.0157, 246: 0.0134, 236: 0.0036, 209: 0.0035}}
TOLERANCE = 0.002


def content(path: Path) -> tuple[str | None, dict[str, tuple[torch.dtype, torch.Size, bytes]]]:
    """Return the git blob id in the header of a converted file, and its weights to the bit."""
    with safe_open(path, 'pt') as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
        blob = (file.metadata() or {}).get('git_blob_id')
    return blob, {key: (w.dtype, w.shape, w.numpy().tobytes()) for key, w in weights.items()}


def difference(repo_id: str, revision: str, converted: Path) -> str:
    """Return how the weights of a revision on the Hub differ from a converted file, '' if they are equal.

    Raises:
        OSError, HTTPError: If they cannot be downloaded.
        SafetensorError: If they are damaged.
    """
    with tempfile.TemporaryDirectory() as cache:  # the user's may have a file from elsewhere
        blob, weights = content(Path(hf_hub_download(repo_id, WEIGHTS_NAME, revision=revision, cache_dir=cache)))
    expected_blob, expected = content(converted)
    if blob != expected_blob:
        return f'the header says git blob id {blob}, expected {expected_blob}'
    other = [key for key in weights.keys() | expected.keys() if weights.get(key) != expected.get(key)]
    return f'{len(other)} of {len(expected)} tensors differ, e.g. {min(other)}' if other else ''


def published(repo_id: str, converted: Path) -> str | None:
    """Return the newest commit of a repository on the Hub if it has the weights of a converted file."""
    try:
        revision = HfApi().model_info(repo_id).sha
        return revision if revision and not difference(repo_id, revision, converted) else None
    except (RepositoryNotFoundError, EntryNotFoundError):
        return None


def publish_all() -> dict[str, str]:
    """Have the weights of all authors' files, and of PaddleClas's, on the Hub.

    Returns:
        The pin of each model name: the repository, `@` and the commit.

    Raises:
        OSError, HTTPError, RuntimeError: If a file is unavailable or not the authors', or the Hub refuses.
    """
    pins = {}
    for name in (*(f'{name}.in1k' for name in SOURCES), *REPRODUCTIONS):
        repo_id = f'{HUB_OWNER}/{name}'
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work, name)
            publish(name, folder, repo_id)
            revision = published(repo_id, folder / WEIGHTS_NAME)
            print(f'{repo_id}: {"is there" if revision else "uploading"}', flush=True)
            # the same weights again would be a new commit, since the header has no fixed order
            pins[name] = f'{repo_id}@{revision or push(folder, repo_id)}'
    return pins


def write(pins: dict[str, str]) -> None:
    """Write the pins into the source of the models."""
    text = MODELS.read_text(encoding='utf-8')
    for name, pin in pins.items():
        revision = pin.rpartition('@')[2]
        text, count = re.subn(rf"('{re.escape(name)}': )'[0-9a-f]*'", rf"\1'{revision}'", text)
        if count != 1:
            raise RuntimeError(f'{MODELS} has {name} {count} times, expected once. Write {pin} there by hand.')
    MODELS.write_text(text, encoding='utf-8', newline='\n')


def problem(tag: str) -> str:
    """Return what is wrong with the pretrained weights of a name with a tag, '' if nothing is."""
    hub_id = timm.get_pretrained_cfg(tag).hf_hub_id
    repo_id, revision = hf_split(hub_id) if hub_id else ('', None)
    if not re.fullmatch('[0-9a-f]{40}', revision or ''):
        return f'{hub_id or tag} is not pinned to a commit (`python tools/release.py publish --write`)'
    try:
        with tempfile.TemporaryDirectory() as work:
            found = difference(repo_id, revision, convert(tag, Path(work, tag)) / WEIGHTS_NAME)
    except Exception as error:  # whatever it is, nothing can be released
        found = f'{type(error).__name__}: {" ".join(str(error).split())}'
    return f'{hub_id}: {found}' if found else ''


def check(release: str | None) -> list[str]:
    """Return what prevents a release; `release` is its tag in git, None to check only the weights."""
    problems = []
    if release and release != f'v{__version__}':
        problems.append(f'the tag is {release}, but the package is v{__version__}')
    if release and not re.search(
            rf'^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$', CHANGELOG.read_text(encoding='utf-8'), re.M):
        problems.append(f'{CHANGELOG.name} has no `## [{__version__}] - YYYY-MM-DD`')
    return problems + [found for tag in timm.list_pretrained('mobilenext*') if (found := problem(tag))]


def highest(name: str, image: Image.Image) -> dict[int, float]:
    """Return the five most probable classes of an image and their probabilities, by the weights of a name."""
    model = timm.create_model(name, pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        probabilities, classes = model(transform(image)[None]).softmax(1).topk(5)
    return dict(zip(classes[0].tolist(), probabilities[0].tolist(), strict=True))


def mistake(name: str, found: dict[int, float]) -> str:
    """Return how the classes of the photograph differ from the published ones, '' if they do not."""
    expected = ANSWERS.get(name, {})
    if expected and [*found] != [*expected]:
        return f'expected the classes {", ".join(map(str, expected))}'
    if any(abs(found[i] - p) > TOLERANCE for i, p in expected.items()):
        return f'expected {", ".join(f"{p:.4f}" for p in expected.values())}, within {TOLERANCE}'
    return '' if next(iter(found)) == WEIMARANER else f'expected class {WEIMARANER} first'


def validate(name: str, scripts: Path, data_dir: Path, options: list[str]) -> dict[str, float]:
    """Return what timm's validate.py measures for the weights of a name: `top1` and `top5` in %.

    Args:
        name: Name of the architecture, with a tag.
        scripts: Folder with validate.py.
        data_dir: Folder of ImageNet, or of its validation images.
        options: Further options of validate.py.

    Raises:
        CalledProcessError: If validate.py fails.
    """
    with tempfile.TemporaryDirectory() as work:
        results = Path(work, 'results.json')
        subprocess.run(
            [sys.executable, '-m', 'timm_mobilenext', str(scripts / 'validate.py'), '--data-dir', str(data_dir),
             '--model', name, '--pretrained', *options, '--results-file', str(results), '--results-format', 'json'],
            stdout=subprocess.DEVNULL, check=True)
        return json.loads(results.read_text())


def open_photograph(path: Path | None) -> Image.Image:
    """Return the photograph, from a file or downloaded.

    Raises:
        OSError: If it is unavailable.
        ValueError: If it is another photograph.
    """
    with tempfile.TemporaryDirectory() as work:
        if path is None:
            path = Path(work, 'photograph.jpeg')
            torch.hub.download_url_to_file(PHOTOGRAPH, str(path), progress=False)
        if git_blob_id(path) != PHOTOGRAPH_BLOB:
            raise ValueError(f'{path} is not {PHOTOGRAPH}: its git blob id is not {PHOTOGRAPH_BLOB}.')
        return Image.open(path).convert('RGB')


def verify(
        names: list[str], photograph: Path | None, data_dir: Path | None, scripts: Path, options: list[str],
) -> list[str]:
    """Print the classes of the photograph and the accuracy of weights; return what differs from what was published.

    Args:
        names: Names of architectures, with tags.
        photograph: See `open_photograph`.
        data_dir: See `validate`, as for the rest; None for no accuracies.
    """
    image, mistakes = open_photograph(photograph), []
    print('| weights | five most probable classes |\n|---|---|')
    for name in names:
        found = highest(name, image)
        answer = ', '.join(f'{i} {p:.4f}' for i, p in found.items())
        print(f'| {name} | {answer} |', flush=True)
        if wrong := mistake(name, found):
            mistakes.append(f'{name} answers {answer}: {wrong}')
    if data_dir:
        print('\n| weights | top-1 (%) | reported | top-5 (%) | reported |\n|---|---:|---:|---:|---:|')
        for name in names:
            measured, source = validate(name, scripts, data_dir, options), find_source(name)
            top5 = '' if source.top5 is None else f'{source.top5:.3f}'
            cells = f'{measured["top1"]:.3f} | {source.top1:.3f} | {measured["top5"]:.3f} | {top5}'
            print(f'| {name} | {cells} |', flush=True)
    return mistakes


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    commands.add_parser('publish').add_argument('--write', action='store_true', help='write the pins into the package')
    commands.add_parser('check').add_argument('--tag', help='tag in git, v and the version')
    command = commands.add_parser('verify')
    command.add_argument('names', nargs='*', metavar='NAME', help='architecture.tag (default: all with weights)')
    command.add_argument('--photograph', type=Path, metavar='FILE', help='the photograph, if it was downloaded already')
    command.add_argument('--data-dir', type=Path, metavar='DIR', help='ImageNet, for the accuracies')
    command.add_argument('--scripts', type=Path, metavar='DIR', default=Path('pytorch-image-models'),
                         help="timm's repository, for its validate.py (default: %(default)s)")
    command.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='of validate.py')
    command.add_argument('--batch-size', default='256', metavar='N', help='of validate.py (default: %(default)s)')
    args = parser.parse_args()
    names, problems = timm.list_pretrained('mobilenext*'), []
    with clear_errors():
        if args.command == 'publish':
            pins = publish_all()
            if args.write:
                write(pins)
            print(*(f"hf_hub_id='{pin}'" for pin in pins.values()), sep='\n')
        elif args.command == 'verify':
            options = ['--device', args.device, '--batch-size', args.batch_size]
            problems = verify(args.names or names, args.photograph, args.data_dir, args.scripts, options)
        else:
            problems = check(args.tag)
            if not problems:
                print(f'{len(names)} pins, their weights are those of their sources')
    for found in problems:
        print(f'{"not verified" if args.command == "verify" else "no release"}: {found}')
    return bool(problems)


if __name__ == '__main__':
    sys.exit(main())
