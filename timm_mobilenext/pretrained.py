"""Pretrained weights: from the Hugging Face Hub, or from the files that the authors committed to their repository.

timm loads from the Hub. This module is what happens when the Hub has no such repository: the authors' own file is
downloaded, verified against its git blob id before anything of it is unpickled, and handed to timm as a state dict.
"""
import argparse
import hashlib
import http.client
import logging
import os
import pickle
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, HTTPError, \
    LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file

from timm.models import get_pretrained_cfg, resolve_pretrained_cfg

_logger = logging.getLogger(__name__)

WEIGHTS_NAME = 'model.safetensors'  # the one weight file that is taken from the Hub
_ATTEMPTS = 3
_AUTHORS_TREE = 'https://github.com/zhoudaquan/rethinking_bottleneck_design/raw/195ee737952e2f8d729a14b51651748caf35794c'


@dataclass(frozen=True)
class Source:
    """A checkpoint file of the authors.

    Attributes:
        url: Address, pinned to a commit.
        blob: Git blob id, SHA-1 of the content behind git's header, as the trees of both their repositories record it.
        top1: Top-1 accuracy on ImageNet-1k in %, of the best epoch in the summary.csv beside the file.
        top5: Top-5 accuracy in %, of the same epoch.
        ema: Whether the accuracies are those of the weights' exponential moving average.
    """

    url: str
    blob: str
    top1: float
    top5: float
    ema: bool = False

    @property
    def name(self) -> str:
        """Name of the file in a cache, where the authors' `model_best.pth.tar` would be all five."""
        return f'mobilenext-{self.url.split("/")[-2]}-{self.blob[:8]}.pth.tar'


# The summary.csv of the first two is of the raw weights (model_ema: false in args.yaml), of the others of the EMA's.
SOURCES = {
    'mobilenext_100': Source(
        f'{_AUTHORS_TREE}/mobilenext/output/74_02_full_id_tensor/model_best.pth.tar',
        'e0a567e52c86ab4a66863745162c758f3fd27d84', 74.022, 91.646),
    'mobilenext_100_id050': Source(
        f'{_AUTHORS_TREE}/mobilenext/output/74_09_i2rnetv3_half_id/model_best.pth.tar',
        '03f9b1b59f67ccd2191f7846ff9ad7e8647c753d', 74.092, 91.812),
    'mobilenext_s': Source(
        f'{_AUTHORS_TREE}/mobilenext/output/76_05_3_94_model/model_best.pth.tar',
        'ca388f33536dba371e82807553042a938e082e4c', 76.056, 92.744, ema=True),
    'mobilenext_l': Source(
        f'{_AUTHORS_TREE}/mobilenext/output/4_29M_76_6/model_best.pth.tar',
        '41e94c826600560a08675c9ffa7bf4d1df60fc69', 76.586, 92.934, ema=True),
    'mobilenext_l_ghost': Source(
        f'{_AUTHORS_TREE}/mobilenext/output/5_68M_76_8/model_best.pth.tar',
        '2a7772ab796a0b6598068e1755ce3378a0c10f1d', 76.788, 93.178, ema=True),
}


def git_blob_id(path: Path) -> str:
    """Return the id that git gives to the content of a file, as `git hash-object` prints it."""
    digest = hashlib.sha1(b'blob %d\0' % path.stat().st_size)
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def cached_file(source: Source, cache_dir: str | Path | None = None) -> Path:
    """Return where the authors' file is kept, whether it is there or not: `cache_dir` or the cache of torch.hub."""
    return Path(cache_dir or Path(torch.hub.get_dir()) / 'checkpoints').expanduser() / source.name


def fetch(source: Source, cache_dir: str | Path | None = None) -> Path:
    """Return the authors' file in the cache, downloaded if it is not there; it has the expected git blob id.

    A download that is cut short starts again. It lies under another name until it is verified, and nothing is left
    of one that fails, so processes that start at once do not meet in a file.

    Args:
        source: The file.
        cache_dir: Folder to keep it in, by default the cache of torch.hub.

    Raises:
        OSError: If the file cannot be downloaded or written.
        RuntimeError: If what was downloaded is not the authors' file.
    """
    path = cached_file(source, cache_dir)
    remedy = (
        f'Download it by other means and pass `pretrained_cfg_overlay=dict(file=PATH)`; {path.parent} is the cache, '
        'which `cache_dir=` or TORCH_HOME moves.')
    if path.exists():
        if git_blob_id(path) == source.blob:
            return path
        _logger.warning(f'{path} is damaged, its git blob id is not {source.blob}. Downloading it again.')
    if constants.HF_HUB_OFFLINE:
        raise OSError(f"The authors' file {source.url} is not in the cache and HF_HUB_OFFLINE is set. {remedy}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.timm-mobilenext-', dir=path.parent) as folder:
            download = Path(folder) / source.name
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    torch.hub.download_url_to_file(source.url, str(download))
                except (ConnectionError, TimeoutError, http.client.HTTPException, urllib.error.URLError) as error:
                    if attempt == _ATTEMPTS or isinstance(error, urllib.error.HTTPError):
                        raise
                    continue
                # torch.hub takes a body that ends early for a whole one, the blob id tells
                if (blob := git_blob_id(download)) == source.blob:
                    os.replace(download, path)
                    return path
            raise RuntimeError(
                f'{source.url} gave {download.stat().st_size} bytes with git blob id {blob}, expected {source.blob}, '
                f'{_ATTEMPTS} times: it was cut short or changed on the way, and nothing of it was read. {remedy}')
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"The authors' file {source.url} could not be stored as {path}: {error}. {remedy}") from error


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of any origin without running code of its own.

    Args:
        path: A safetensors file, or one that `torch.save` wrote, training checkpoints with an `argparse.Namespace`
            and files from before torch 1.6 included.

    Raises:
        RuntimeError: If the file is damaged or asks for code.
    """
    path = Path(path)
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
        if not isinstance(checkpoint, dict):
            raise RuntimeError(f'it holds a {type(checkpoint).__name__}')
        return checkpoint
    except (EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        # what torch found is a line of its own between advice that includes loading it unsafely
        lines = [line for line in str(error).splitlines() if line]
        found = next((line for line in lines if 'GLOBAL' in line), lines[0] if lines else type(error).__name__)
        raise RuntimeError(
            f'{path} was not loaded: {found}. Expected a safetensors file or a PyTorch checkpoint of tensors and plain '
            'values; get it anew, or save its state dict alone with safetensors.') from error


def read_official(source: Source, path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict of an authors' file that the reported accuracy belongs to, with the authors' keys.

    Raises:
        RuntimeError: If the file does not hold it.
    """
    checkpoint = read(path)
    key = 'state_dict_ema' if source.ema else 'state_dict'
    if not isinstance(checkpoint.get(key), dict):
        raise RuntimeError(
            f'{path} has {", ".join(map(str, checkpoint))}, expected {key}: the reported {source.top1} % are of it. '
            'Please report this, with the names that it has.')
    return checkpoint[key]


def build_pretrained(build: Callable[..., Any], variant: str, **kwargs: Any) -> Any:
    """Build a model with pretrained weights as timm does, from the authors' file where the Hub has no repository.

    The authors' file stands in for the registered repository alone: what the user named (another owner, a revision,
    a file, a state dict) is taken or fails. A gated repository and offline mode fail too, with a remedy under the
    Hub's own message. An authors' file that is in the cache already is used without asking the Hub, unless the Hub's
    cache has the weights: it is as good as theirs, and works without a network.

    Args:
        build: `timm.models.build_model_with_cfg` with all of its arguments but `pretrained` and those below.
        variant: Name of the architecture.
        **kwargs: `pretrained_cfg`, `pretrained_cfg_overlay` and `cache_dir`, where timm passes them.

    Returns:
        What `build` returns.

    Raises:
        OSError: If the weights cannot be had; the Hub's own errors but for a connection that breaks are of this type.
        RuntimeError: If there are no weights, or they are damaged or of another model.
    """
    overlay, cache_dir = kwargs.get('pretrained_cfg_overlay') or {}, kwargs.get('cache_dir')
    cfg = resolve_pretrained_cfg(variant, kwargs.get('pretrained_cfg'), overlay)
    is_local = bool(cfg.source or cfg.state_dict or cfg.file)
    registered = get_pretrained_cfg(variant)
    is_registered = not is_local and registered is not None and cfg.hf_hub_id == registered.hf_hub_id
    source = SOURCES.get(variant) if is_registered and not os.environ.get('TIMM_MOBILENEXT_HUB_OWNER') else None
    repo_id, _, revision = (cfg.hf_hub_id or '').partition('@')

    def hub_cache() -> str | None:
        path = huggingface_hub.try_to_load_from_cache(repo_id, WEIGHTS_NAME, cache_dir, revision or None)
        return path if isinstance(path, str) else None

    def build_from_authors(source: Source) -> Any:
        weights = read_official(source, fetch(source, cache_dir))
        model = build(pretrained=True, **{**kwargs, 'pretrained_cfg_overlay': {**overlay, 'state_dict': weights}})
        for module in model.modules():  # a wrapper for features and the model in it
            getattr(module, 'pretrained_cfg', {}).pop('state_dict', None)
        return model

    if source and cached_file(source, cache_dir).exists() and not hub_cache():
        _logger.info(f"Loading the authors' own file {cached_file(source, cache_dir)}")
        return build_from_authors(source)
    try:
        return build(pretrained=True, **kwargs)
    except RuntimeError as error:
        if is_local or cfg.has_weights:
            raise
        raise _with_remedy(
            error, f'There are weights of {", ".join(SOURCES)}, by the authors. To train this one, start from the '
            'recipes of the project (folder recipes/, docs/training.md).') from None
    except SafetensorError as error:
        if is_local or not hub_cache():
            raise
        raise RuntimeError(
            f'{os.path.realpath(hub_cache() or "")}, the cached {WEIGHTS_NAME} of {repo_id}, is damaged: {error}. '
            'Delete this file, then the next call downloads it again.') from error
    except (OSError, HTTPError, EntryNotFoundError) as error:
        if is_local:
            raise
        if source and _is_out_of_reach(error):
            _logger.warning(
                f"{repo_id} cannot be had from the Hub ({type(error).__name__}). Taking the authors' own file, "
                f'{source.url}')
            return build_from_authors(source)
        raise _with_remedy(error, _remedy(error, variant, repo_id)) from error.__cause__


def locate(variant: str, timeout: float) -> str:
    """Say where `build_pretrained` would take the weights of an architecture from now, without taking them.

    Args:
        variant: Name of the architecture.
        timeout: Longest wait for each of two servers, in seconds.
    """
    cfg, source = get_pretrained_cfg(variant), SOURCES.get(variant)
    if cfg is None or not cfg.hf_hub_id:
        return 'none'
    if isinstance(huggingface_hub.try_to_load_from_cache(cfg.hf_hub_id, WEIGHTS_NAME), str):
        return f'cached, from the Hub ({cfg.hf_hub_id})'
    if os.environ.get('TIMM_MOBILENEXT_HUB_OWNER'):
        source = None
    if source and cached_file(source).exists():
        is_whole = git_blob_id(cached_file(source)) == source.blob
        return f"cached, authors' file ({source.name}{'' if is_whole else ', damaged: will be downloaded again'})"
    if constants.HF_HUB_OFFLINE:
        return 'not cached, and HF_HUB_OFFLINE is set'
    try:
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(cfg.hf_hub_id, WEIGHTS_NAME), timeout=timeout)
        return f'Hub ({cfg.hf_hub_id})'
    except GatedRepoError:
        return f'Hub ({cfg.hf_hub_id}), gated: accept its conditions there'
    except (OSError, HTTPError) as error:
        reason = f'the Hub says {type(error).__name__}'
        if not _is_out_of_reach(error):
            source = None
    try:
        if source:
            with urllib.request.urlopen(urllib.request.Request(source.url, method='HEAD'), timeout=timeout):
                return f"authors' file ({source.url.split('/')[2]})"
    except OSError as error:
        reason += f", the server of the authors' file {type(error).__name__}"
    return f'out of reach ({reason})'


def _is_out_of_reach(error: Exception) -> bool:
    """Return whether the Hub has no such repository for this user, or does not answer and its cache is empty."""
    if constants.HF_HUB_OFFLINE or isinstance(error, GatedRepoError):
        return False
    if isinstance(error, HfHubHTTPError):  # other than these: no such revision or file, a disabled repository
        return isinstance(error, RepositoryNotFoundError) or error.response.status_code >= 500
    return isinstance(error, (LocalEntryNotFoundError, HTTPError))  # HTTPError: the connection broke


def _remedy(error: Exception, variant: str, repo_id: str) -> str:
    """Say what to do about an error of the Hub."""
    if isinstance(error, GatedRepoError):
        remedy = f'Accept the conditions of {repo_id} on its page and log in with `hf auth login`.'
    elif constants.HF_HUB_OFFLINE:
        remedy = f'HF_HUB_OFFLINE is set and {repo_id} is not in the cache: run once without it.'
    else:
        remedy = f'This is about {repo_id}; check the name, the network and the cache (`cache_dir=`, HF_HOME).'
    remedy += ' A file you have is loaded with `pretrained_cfg_overlay=dict(file=PATH)`'
    if variant in SOURCES:
        remedy += f", and `python -m timm_mobilenext.convert {variant}` makes one of the authors' checkpoint"
    return remedy + '.'


def _with_remedy(error: Exception, remedy: str) -> Exception:
    """Return the error with a remedy under its message."""
    if isinstance(error, OSError) and error.errno is not None:  # its message is not made of its arguments
        return type(error)(f'{error}\n{remedy}')
    error.args = (f'{error}\n{remedy}', *error.args[1:])
    return error
