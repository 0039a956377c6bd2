"""Publish the weights of the authors, pin them, and check that a release takes no others: for who makes a release.

    python tools/release.py publish            # all five onto the Hub; prints what they are pinned to
    python tools/release.py publish --write    # and writes it into timm_mobilenext/mobilenext.py
    python tools/release.py check              # fails while a pin is missing, or its weights are not the authors'
    python tools/release.py check --tag v1.0.0 # and while the tag is not that of the package and its changelog

The Hub gives a name to whoever asks first, and what has the name reaches everyone who says `pretrained=True`. So every
`hf_hub_id` of a release is pinned to a commit whose `model.safetensors` equals, bit by bit, what the authors' file, of
the known git blob id, is converted to here. `publish` can be run again: what is on the Hub already stays as it is.
"""
import argparse
import re
import sys
import tempfile
from pathlib import Path

import timm
import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from safetensors import safe_open
from timm.models._hub import hf_split

from timm_mobilenext import __version__
from timm_mobilenext.cli import clear_errors
from timm_mobilenext.weights.authors import HUB_OWNER, SOURCES
from timm_mobilenext.weights.convert import convert
from timm_mobilenext.weights.download import WEIGHTS_NAME
from timm_mobilenext.weights.publish import publish, push

ROOT = Path(__file__).parent.parent
MODELS = ROOT / 'timm_mobilenext' / 'mobilenext.py'
CHANGELOG = ROOT / 'CHANGELOG.md'


def content(path: Path) -> tuple[str | None, dict[str, tuple[torch.dtype, torch.Size, bytes]]]:
    """Return the git blob id that a converted file says it comes from, and its weights to the bit."""
    with safe_open(path, 'pt') as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
        blob = (file.metadata() or {}).get('git_blob_id')
    return blob, {key: (w.dtype, w.shape, w.numpy().tobytes()) for key, w in weights.items()}


def difference(repo_id: str, revision: str, ours: Path) -> str:
    """Return in what the weights of a revision on the Hub differ from a converted file, '' if in nothing.

    Args:
        repo_id: Name of the repository.
        revision: Commit in it.
        ours: The file.

    Raises:
        OSError, HTTPError: If they cannot be downloaded.
        SafetensorError: If they are damaged.
    """
    with tempfile.TemporaryDirectory() as cache:  # not the user's, which may have the file from elsewhere
        theirs = Path(hf_hub_download(repo_id, WEIGHTS_NAME, revision=revision, cache_dir=cache))
        if theirs.parent.name != revision:  # where the client puts what the Hub says is of this commit
            return f'the Hub takes {revision} for a name of {theirs.parent.name}'
        (blob, weights), (our_blob, our_weights) = content(theirs), content(ours)
    if blob != our_blob:
        return f"the header says git blob id {blob}, expected {our_blob}, that of the authors' file"
    if weights.keys() != our_weights.keys():
        return f'other tensors: {", ".join(sorted(weights.keys() ^ our_weights.keys()))}'
    other = [key for key in weights if weights[key] != our_weights[key]]
    return f'other values in {len(other)} of {len(weights)} tensors, e.g. {other[0]}' if other else ''


def published(repo_id: str, ours: Path) -> str | None:
    """Return the newest commit of a repository on the Hub if it has the weights of a converted file."""
    try:
        revision = HfApi().model_info(repo_id).sha
        return revision if revision and not difference(repo_id, revision, ours) else None
    except (RepositoryNotFoundError, EntryNotFoundError):
        return None


def publish_all() -> dict[str, str]:
    """Have the weights of all authors' files on the Hub.

    Returns:
        The pin of each model name: the repository, `@` and the commit.

    Raises:
        OSError, HTTPError, RuntimeError: If a file cannot be had or is not the authors', or the Hub refuses.
    """
    pins = {}
    for name in SOURCES:
        repo_id = f'{HUB_OWNER}/{name}.in1k'
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work, name)
            publish(name, folder, repo_id)
            revision = published(repo_id, folder / WEIGHTS_NAME)
            print(f'{repo_id}: {"is there" if revision else "uploading"}', flush=True)
            # an upload of the same weights would be a new commit: the header has no fixed order
            pins[name] = f'{repo_id}@{revision or push(folder, repo_id)}'
    return pins


def write(pins: dict[str, str]) -> None:
    """Write the pins into the source of the models, in the place of those that are there."""
    text = MODELS.read_text(encoding='utf-8')
    for name, pin in pins.items():
        text, count = re.subn(rf"('{name}\.in1k': _in1k_cfg\([^)]*hf_hub_id=)'[^']*'", rf"\1'{pin}'", text)
        if count != 1:
            raise RuntimeError(f'{MODELS} has {name}.in1k {count} times, expected once. Write {pin} there by hand.')
    MODELS.write_text(text, encoding='utf-8', newline='\n')


def problem(tag: str) -> str:
    """Return what is wrong with the pretrained weights of a model name with tag, '' if nothing is."""
    hub_id = timm.get_pretrained_cfg(tag).hf_hub_id
    repo_id, revision = hf_split(hub_id) if hub_id else ('', None)
    if not re.fullmatch('[0-9a-f]{40}', revision or ''):
        return f'{hub_id or tag} is not pinned to a commit (`python tools/release.py publish --write`)'
    try:
        with tempfile.TemporaryDirectory() as work:
            ours = convert(tag, Path(work, tag)) / WEIGHTS_NAME
            found = difference(repo_id, revision, ours)
    except Exception as error:  # whatever it is, nothing can be released
        found = f'{type(error).__name__}: {" ".join(str(error).split())}'
    return f'{hub_id}: {found}' if found else ''


def check(release: str | None) -> list[str]:
    """Return what speaks against a release.

    Args:
        release: Its tag in git, None for the weights alone.
    """
    problems = []
    if release and release != f'v{__version__}':
        problems.append(f'the tag is {release}, but the package is v{__version__}')
    if release and not re.search(
            rf'^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$', CHANGELOG.read_text(encoding='utf-8'), re.M):
        problems.append(f'{CHANGELOG.name} has no `## [{__version__}] - YYYY-MM-DD`')
    return problems + [found for tag in timm.list_pretrained('mobilenext*') if (found := problem(tag))]


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    commands.add_parser('publish').add_argument('--write', action='store_true', help='write the pins into the package')
    commands.add_parser('check').add_argument('--tag', help='the tag in git, v and the version')
    args = parser.parse_args()
    if args.command == 'check':
        problems = check(args.tag)
        for found in problems:
            print(f'no release: {found}')
        if not problems:
            print(f"{len(timm.list_pretrained('mobilenext*'))} pins, their weights are the authors'")
        return bool(problems)
    with clear_errors():
        pins = publish_all()
        if args.write:
            write(pins)
    for pin in pins.values():
        print(f"hf_hub_id='{pin}'")
    return 0


if __name__ == '__main__':
    sys.exit(main())
