"""Where pretrained weights come from: `locate` decides, `_builder` takes them from there, and `doctor` prints it.

What the user names is left to timm. For registered weights the Hub is asked only for the commit that a release pins. A
file of the paper's authors is verified against its git blob id before it is read. PaddleClas's has no known digest.
"""
import hashlib
import http.client
import logging
import pickle
import re
import shutil
import tempfile
import threading
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import numpy as np
import torch
from huggingface_hub import constants
from tqdm import tqdm

from timm.models import PretrainedCfg, get_arch_pretrained_cfgs
from timm.models._helpers import load_state_dict
from timm.models._hub import hf_split

from timm_mobilenext.weights.authors import Source, find_source

_logger = logging.getLogger(__name__)

WEIGHTS_NAME = 'model.safetensors'  # the only weight file that is taken from the Hub
CONNECT_SECONDS = 4.  # for each of the two servers, enough for a packet that is lost twice


class Place(NamedTuple):
    """Where the weights of a model come from."""

    text: str  # the place in words
    # Returns the state dict, downloaded if need be, or raises an error that says what to do. None where timm does it:
    # for weights that the user names, and where there are none.
    read: Callable[[], dict[str, Any]] | None = None


def locate(cfg: PretrainedCfg, cache_dir: str | Path | None = None) -> Place:
    """Decide where the weights of a model come from.

    Caches come first. Then the Hub, if a release pins the weights. Then the authors' file, which has the same weights.

    Args:
        cfg: The config of the pretrained weights.
        cache_dir: Folder of the caches, by default those of the Hub's client and of torch.hub.
    """
    if cfg.file and not cfg.source and not cfg.state_dict:
        return Place(f'file ({cfg.file})', partial(read, cfg.file))
    name = f'{cfg.architecture}.{cfg.tag}'
    registered = get_arch_pretrained_cfgs(cfg.architecture or '').get(name)
    if cfg.source or cfg.state_dict or registered is None or (
            cfg.url, cfg.hf_hub_id) != (registered.url, registered.hf_hub_id):
        return Place('named by the user')
    source, repo = find_source(name), cfg.hf_hub_id
    if source is None:
        return Place('none')
    from_authors = partial(_from_authors, source, cache_dir)
    whose = f'{source.owner.removeprefix("the ")} file{"" if source.blob else ", no digest known"}'
    repo_id, revision = hf_split(repo) if repo else ('', None)
    cached = repo and huggingface_hub.try_to_load_from_cache(repo_id, WEIGHTS_NAME, cache_dir, revision)
    if isinstance(cached, str) and cached:
        return Place(f'cache of the Hub ({repo})', partial(read, cached))
    if cached_file(source, cache_dir).exists():
        return Place(f'cache of torch.hub, {whose} ({source.name})', from_authors)
    if constants.HF_HUB_OFFLINE:
        return Place('not cached, and HF_HUB_OFFLINE is set', from_authors)
    host = source.url.split('/')[2]
    if not repo:
        return Place(f'{whose} ({host})', from_authors)
    problem = _hub_problem(repo_id, revision)
    if problem:
        reason = f', as the Hub does not give {repo} ({problem})'
        return Place(f'{whose} ({host}{reason})', partial(from_authors, reason))
    return Place(f'Hub ({repo})', lambda: read(
        huggingface_hub.hf_hub_download(repo_id, WEIGHTS_NAME, revision=revision, cache_dir=cache_dir)))


def _from_authors(source: Source, cache_dir: str | Path | None, reason: str = '') -> dict[str, Any]:
    if source.blob is None:
        reason = f', of which no digest is known{reason}'
    if reason:
        _logger.warning(f'Taking {source.owner} file {source.url}{reason}.')
    return read(fetch(source, cache_dir), use_ema=source.ema)


def _hub_problem(repo_id: str, revision: str | None) -> str:
    """Return why the Hub does not give the weights of a commit within `CONNECT_SECONDS`, '' if it does.

    Its client tries the addresses of a server one after another, so it asks in a thread that can be left behind.
    """
    found = ['no answer']

    def ask() -> None:
        url = huggingface_hub.hf_hub_url(repo_id, WEIGHTS_NAME, revision=revision)
        try:
            metadata = huggingface_hub.get_hf_file_metadata(url, timeout=CONNECT_SECONDS / 2)
            found[0] = '' if metadata.commit_hash == revision else 'not the answer of a Hub'
        except Exception as error:  # of the client, of the HTTP library under it, of the system
            found[0] = type(error).__name__

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return found[0]


def git_blob_id(path: Path) -> str:
    """Return the id that git gives to the content of a file, as `git hash-object` prints it."""
    digest = hashlib.sha1(b'blob %d\0' % path.stat().st_size)
    digest.update(path.read_bytes())
    return digest.hexdigest()


def cached_file(source: Source, cache_dir: str | Path | None = None) -> Path:
    """Return where a file of others is cached, if it is: in `cache_dir` or the cache of torch.hub."""
    return Path(cache_dir or Path(torch.hub.get_dir()) / 'checkpoints').expanduser() / source.name


def fetch(source: Source, cache_dir: str | Path | None = None) -> Path:
    """Return a file of others from the cache, verified, and download it first if it is not there.

    A download has another name until it is verified, also for processes that start at once. A failed one is removed.

    Args:
        source: The file.
        cache_dir: Folder of the cache, by default that of torch.hub.

    Raises:
        OSError: If the file cannot be downloaded or written.
        RuntimeError: If another file came.
    """
    path = cached_file(source, cache_dir)
    remedy = (
        'Download it by other means and pass `pretrained_cfg_overlay=dict(file=PATH)`. To move the cache from '
        f'{path.parent}, use `cache_dir=` or TORCH_HOME.')
    if path.exists():
        if source.blob in (None, git_blob_id(path)):
            return path
        _logger.warning(f'{path} is damaged, its git blob id is not {source.blob}. Downloading it again.')
    if constants.HF_HUB_OFFLINE:
        raise OSError(f'{source.url} is not in the cache, and HF_HUB_OFFLINE is set. {remedy}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.timm-mobilenext-', dir=path.parent) as folder:
            download = Path(folder, source.name)
            _download(source.url, download)
            blob = git_blob_id(download)
            if source.blob in (None, blob):
                return download.replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f'{source.url} could not be downloaded to {path}: {error}. {remedy}') from error
    raise RuntimeError(
        f'{source.url} gave a file with git blob id {blob}, expected {source.blob}. It was not read. {remedy}')


def _download(url: str, path: Path) -> None:
    """Download a file, again if the connection breaks off in the middle, each time with more patience."""
    for seconds in (CONNECT_SECONDS, 4 * CONNECT_SECONDS, 16 * CONNECT_SECONDS):
        try:
            with urllib.request.urlopen(url, timeout=seconds) as body, path.open('wb') as file:
                size = int(body.headers.get('Content-Length') or 0)
                with tqdm.wrapattr(body, 'read', total=size or None, desc=path.name) as chunks:
                    shutil.copyfileobj(chunks, file)
            if path.stat().st_size < size:  # read() takes a body that ends early for a whole one
                raise ConnectionError(f'{path.stat().st_size} of {size} bytes came')
            return
        except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
            failure = error
    raise failure


def read(path: str | Path, use_ema: bool = True) -> dict[str, Any]:
    """Read the state dict of a checkpoint with timm's reader, which runs no code of the file.

    Args:
        path: A safetensors file, a file that `torch.save` wrote, such as a training checkpoint, or a `.pdparams` file,
            a state dict that `paddle.save` wrote.
        use_ema: Take the exponential moving average of the weights where the file has it.

    Raises:
        OSError: If the file is not there or cannot be read.
        RuntimeError: If the file is damaged or asks for code.
    """
    open(path, 'rb').close()  # an OSError below is about a damaged file
    try:
        if Path(path).suffix == '.pdparams':
            return _read_paddle(Path(path))
        return load_state_dict(str(path), use_ema=use_ema)
    except Exception as error:  # damage makes the libraries raise almost anything
        cause = error.__cause__ or error
        code = re.search(r'GLOBAL (\S+)', str(cause))  # the rest advises to load the file unsafely
        found = f'it asks for the code of {code[1]}' if code else type(cause).__name__
        raise RuntimeError(
            f'{path} was not loaded ({found}). It is damaged, or not a checkpoint. Give a safetensors file, or a '
            'PyTorch checkpoint of tensors and plain values.') from error


# numpy.core is of NumPy 1; _codecs.encode makes bytes in pickle's protocol 2; a tuple is Paddle's name and the array
_NUMPY_GLOBALS = {
    'numpy.core.multiarray._reconstruct', 'numpy._core.multiarray._reconstruct', 'numpy.ndarray', 'numpy.dtype',
    '_codecs.encode', 'builtins.tuple', '__builtin__.tuple'}


class _ArrayUnpickler(pickle.Unpickler):

    def find_class(self, module: str, name: str) -> Any:
        if f'{module}.{name}' not in _NUMPY_GLOBALS:
            raise pickle.UnpicklingError(f'GLOBAL {module}.{name}')
        return super().find_class(module, name)


def _read_paddle(path: Path) -> dict[str, Any]:
    """Return the tensors of a state dict that `paddle.save` wrote: a pickle of NumPy arrays by name."""
    with path.open('rb') as file:
        content = _ArrayUnpickler(file).load()
    arrays = {key: value[1] if isinstance(value, tuple) else value for key, value in content.items()}
    # PaddlePaddle saves bfloat16 as integers. They are left out here, and loading the model reports them as missing.
    return {
        key: torch.from_numpy(array) for key, array in arrays.items()
        if isinstance(array, np.ndarray) and array.dtype.kind == 'f'}
