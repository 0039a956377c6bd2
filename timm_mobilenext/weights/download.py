"""Where pretrained weights come from: `locate` decides, `_builder` takes them from there, and `doctor` prints it.

What a user names is timm's matter. For the registered weights the Hub is asked only for the commit that a release pins,
and a file of the paper's authors is verified against its git blob id before anything of it is read. Of PaddleClas's
file no digest is known.
"""
import hashlib
import http.client
import logging
import os
import pickle
import re
import tempfile
import threading
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import torch
from huggingface_hub import constants
from tqdm import tqdm

from timm.models import PretrainedCfg, get_arch_pretrained_cfgs
from timm.models._helpers import load_state_dict
from timm.models._hub import hf_split

from timm_mobilenext.weights.authors import SOURCES, Source, find_source

_logger = logging.getLogger(__name__)

WEIGHTS_NAME = 'model.safetensors'  # the one weight file that is taken from the Hub
CONNECT_SECONDS = 4.  # wait for a connection to each of the two servers: a packet that is lost twice still arrives
_ATTEMPTS = 3


class Place(NamedTuple):
    """Where the weights of a model come from.

    Attributes:
        text: In words.
        read: Returns the state dict, after a download if need be, or raises what a user can do without it. None where
            timm finds the weights: what the user named.
    """

    text: str
    read: Callable[[], dict[str, Any]] | None = None


def locate(cfg: PretrainedCfg, cache_dir: str | Path | None = None) -> Place:
    """Decide where the weights of a model come from.

    What a release has pinned is on the Hub; if the Hub does not give it, and for what is not pinned, the authors' file
    has the same weights. What is in a cache comes first.

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
        return Place(f'Hub ({repo})') if repo else Place('none', partial(_no_weights, str(cfg.architecture)))
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


def _no_weights(architecture: str) -> dict[str, Any]:
    raise RuntimeError(
        f'No pretrained weights exist for {architecture}, only for {", ".join(SOURCES)}. Use `pretrained=False` and a '
        'recipe of the project (docs/training.md).')


def _from_authors(source: Source, cache_dir: str | Path | None, reason: str = '') -> dict[str, Any]:
    if source.blob is None:
        reason = f', of which no digest is known{reason}'
    if reason:
        _logger.warning(f'Taking {source.owner} file {source.url}{reason}.')
    return read(fetch(source, cache_dir), use_ema=source.ema)


def _hub_problem(repo_id: str, revision: str | None) -> str:
    """Return why the Hub does not give the weights of a commit within `CONNECT_SECONDS`, '' if it does.

    In a thread that nobody waits for: the Hub's client tries the addresses of a server one after another, and a name
    server may hold it longer than any timeout.
    """
    found = ['no answer']

    def ask() -> None:
        url = huggingface_hub.hf_hub_url(repo_id, WEIGHTS_NAME, revision=revision)
        try:
            metadata = huggingface_hub.get_hf_file_metadata(url, timeout=CONNECT_SECONDS / 2)
            found[0] = '' if metadata.commit_hash == revision else 'no answer of a Hub'
        except Exception as error:  # of the client, of the HTTP library under it, of the system
            found[0] = type(error).__name__

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return found[0]


def git_blob_id(path: Path) -> str:
    """Return the id that git gives to the content of a file, as `git hash-object` prints it."""
    with path.open('rb') as file:
        digest = hashlib.sha1(b'blob %d\0' % os.fstat(file.fileno()).st_size)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def cached_file(source: Source, cache_dir: str | Path | None = None) -> Path:
    """Return where a file of others is kept, whether it is there or not: `cache_dir` or the cache of torch.hub."""
    return Path(cache_dir or Path(torch.hub.get_dir()) / 'checkpoints').expanduser() / source.name


def fetch(source: Source, cache_dir: str | Path | None = None) -> Path:
    """Return a file of others in the cache, downloaded if it is not there; it has the expected git blob id.

    A download that is cut short starts again. It lies under another name until it is verified, and nothing is left
    of one that fails, so processes that start at once do not meet in a file.

    Args:
        source: The file.
        cache_dir: Folder to keep it in, by default the cache of torch.hub.

    Raises:
        OSError: If the file cannot be downloaded or written.
        RuntimeError: If what was downloaded is not that file.
    """
    path, owner = cached_file(source, cache_dir), f'{source.owner[0].upper()}{source.owner[1:]}'
    remedy = (
        f'Download it by other means and pass `pretrained_cfg_overlay=dict(file=PATH)`; {path.parent} is the cache, '
        'which `cache_dir=` or TORCH_HOME moves.')
    if path.exists():
        if source.blob in (None, git_blob_id(path)):
            return path
        _logger.warning(f'{path} is damaged, its git blob id is not {source.blob}. Downloading it again.')
    if constants.HF_HUB_OFFLINE:
        raise OSError(f'{owner} file {source.url} is not in the cache and HF_HUB_OFFLINE is set. {remedy}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.timm-mobilenext-', dir=path.parent) as folder:
            download = Path(folder) / source.name
            _download(source.url, download)
            blob, size = git_blob_id(download), download.stat().st_size
            if source.blob in (None, blob):
                os.replace(download, path)
                return path
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f'{owner} file {source.url} could not be downloaded to {path}: {error}. {remedy}') from error
    raise RuntimeError(
        f'{source.url} gave {size} bytes with git blob id {blob}, expected {source.blob}: it was changed on the way. '
        f'Nothing of it was read. {remedy}')


def _download(url: str, path: Path) -> None:
    """Download a file, three times at most if the connection breaks off in the middle; later attempts wait longer."""
    for attempt in range(_ATTEMPTS):
        try:
            with urllib.request.urlopen(url, timeout=CONNECT_SECONDS * 4 ** attempt) as body, path.open('wb') as file:
                size = int(body.headers.get('Content-Length') or 0)
                with tqdm(total=size or None, unit='B', unit_scale=True, desc=path.name) as bar:
                    while chunk := body.read(1 << 16):
                        bar.update(file.write(chunk))
            if bar.n < size:  # read() takes a body that ends early for a whole one
                raise ConnectionError(f'{bar.n} of {size} bytes came')
            return
        except (ConnectionError, TimeoutError, http.client.HTTPException):
            if attempt == _ATTEMPTS - 1:
                raise


def read(path: str | Path, use_ema: bool = True) -> dict[str, Any]:
    """Read the state dict of a checkpoint of any origin, by timm's reader, which runs no code of the file.

    Args:
        path: A safetensors file, one that `torch.save` wrote, training checkpoints included, or a state dict that
            `paddle.save` wrote, by its suffix `.pdparams`.
        use_ema: Take the exponential moving average of the weights where the file has it.

    Raises:
        OSError: If the file is not there or cannot be read.
        RuntimeError: If the file is damaged or asks for code.
    """
    open(path, 'rb').close()  # an OSError below is of a damaged file, which names another
    try:
        if Path(path).suffix == '.pdparams':
            return _read_paddle(Path(path))
        return load_state_dict(str(path), use_ema=use_ema)
    except Exception as error:  # damage makes the libraries raise almost anything
        cause = error.__cause__ or error
        code = re.search(r'GLOBAL (\S+)', str(cause))  # the rest advises to load the file unsafely
        found = f'it asks for the code of {code[1]}' if code else type(cause).__name__
        raise RuntimeError(
            f'{path} was not loaded ({found}). It is damaged, or not a checkpoint: give a safetensors file or a '
            'PyTorch checkpoint of tensors and plain values.') from error


class _PickledType:
    """The type of an array in a pickle."""

    def __init__(self, name: str, *args: object) -> None:
        self.name = name

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.name = f'{state[1]}{self.name}'  # the order of its bytes


class _PickledArray:
    """An array in a pickle: its shape, type and bytes."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def tensor(self) -> torch.Tensor:
        """Return the values, in the memory that the bytes have and no more."""
        _, shape, dtype, is_fortran, content = self.state
        types = {'<f2': torch.float16, '<f4': torch.float32, '<f8': torch.float64}  # as NumPy spells them
        values = torch.frombuffer(bytearray(memoryview(content)), dtype=types[dtype.name])
        if is_fortran:  # the first dimension is the fastest
            return values.reshape(shape[::-1]).permute(*reversed(range(len(shape))))
        return values.reshape(shape)


# What a pickle of NumPy's arrays asks for, and what it gets: nothing of NumPy runs, which builds an array of any size,
# and of objects, if a file says so. numpy.core is of NumPy 1.
_PICKLED: dict[str, Any] = {
    'numpy.core.multiarray _reconstruct': _PickledArray, 'numpy._core.multiarray _reconstruct': _PickledArray,
    'numpy ndarray': _PickledArray, 'numpy dtype': _PickledType,
    '_codecs encode': lambda text, encoding: text.encode('latin-1'),  # bytes, in the second protocol of pickle
    'builtins tuple': tuple, '__builtin__ tuple': tuple,  # a tensor, saved by itself: its name and the array
}


class _ArrayUnpickler(pickle.Unpickler):
    """A reader of NumPy's arrays and plain values, which runs nothing that a file names."""

    def find_class(self, module: str, name: str) -> Any:
        if f'{module} {name}' not in _PICKLED:
            raise pickle.UnpicklingError(f'GLOBAL {module}.{name}')
        return _PICKLED[f'{module} {name}']


def _read_paddle(path: Path) -> dict[str, Any]:
    """Return the tensors of a state dict that `paddle.save` wrote, NumPy's arrays by name in a plain pickle.

    Args:
        path: The file. What else is in it, as the table of Paddle's own names of the parameters, is left out.
    """
    with path.open('rb') as file:
        content = _ArrayUnpickler(file).load()
    values = {key: value[1] if isinstance(value, tuple) else value for key, value in content.items()}
    return {key: value.tensor() for key, value in values.items() if isinstance(value, _PickledArray)}
