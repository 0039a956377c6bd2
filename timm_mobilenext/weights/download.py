"""Where pretrained weights are: in caches, on the Hugging Face Hub, in the files that the authors committed.

An authors' file is downloaded, and verified against its git blob id before anything of it is unpickled; of PaddleClas's
no digest is known. _builder.py decides which of the places weights are taken from.
"""
import argparse
import contextlib
import hashlib
import http.client
import logging
import os
import pickle
import pickletools
import re
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, LocalEntryNotFoundError, \
    RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file

from timm.models import get_pretrained_cfg
from timm.models._hub import hf_split

from timm_mobilenext.weights.authors import Source, find_source

_logger = logging.getLogger(__name__)

WEIGHTS_NAME = 'model.safetensors'  # the one weight file that is taken from the Hub
# Longest wait for a sign of life of a server: enough for a first packet that has to be sent three times. What a server
# then takes to answer is another matter, and no matter for this.
CONNECT_SECONDS = 4.
_ATTEMPTS = 3


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

    Where no digest is known, the file is one that `read` takes, which one that was cut short is not.

    A download that is cut short starts again. It lies under another name until it is verified, and nothing is left
    of one that fails, so processes that start at once do not meet in a file.

    Args:
        source: The file.
        cache_dir: Folder to keep it in, by default the cache of torch.hub.

    Raises:
        OSError: If the file cannot be downloaded or written.
        RuntimeError: If what was downloaded is not that file.
    """
    path = cached_file(source, cache_dir)
    remedy = (
        f'Download it by other means and pass `pretrained_cfg_overlay=dict(file=PATH)`; {path.parent} is the cache, '
        'which `cache_dir=` or TORCH_HOME moves.')
    if path.exists():
        if is_whole(source, path):
            return path
        expected = f', its git blob id is not {source.blob}' if source.blob else ''
        _logger.warning(f'{path} is damaged{expected}. Downloading it again.')
    if constants.HF_HUB_OFFLINE:
        raise OSError(f'{source} is not in the cache and HF_HUB_OFFLINE is set. {remedy}')
    if not answering([source.url]):  # PyTorch's download waits for a server as long as the system does, each time
        raise ConnectionError(
            f'{source} is not in the cache, and there is no connection to its server. {remedy}')
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
                if is_whole(source, download):
                    os.replace(download, path)
                    return path
            raise RuntimeError(
                f'{source.url} gave {download.stat().st_size} bytes with git blob id {git_blob_id(download)}, expected '
                f'{source.blob or "a pickle of arrays"}, {_ATTEMPTS} times: it was cut short or changed on the way, '
                f'and nothing of it was taken. {remedy}')
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f'{source} could not be stored as {path}: {error}. {remedy}') from error


def is_whole(source: Source, path: Path) -> bool:
    """Return whether a file has the git blob id of its source or, where no digest is known, can be read to its end."""
    if source.blob:
        return git_blob_id(path) == source.blob
    try:
        read(path)
    except RuntimeError:
        return False
    return True


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of any origin without running code of its own.

    Args:
        path: A safetensors file, one that `torch.save` wrote, training checkpoints with an `argparse.Namespace` and
            files from before torch 1.6 included, or a state dict that `paddle.save` wrote, by its suffix `.pdparams`.

    Raises:
        OSError: If the file is not there or not to be read.
        RuntimeError: If the file is damaged or asks for code.
    """
    path = Path(path)
    path.open('rb').close()  # below, an OSError is that of a place which a damaged file points to
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        _check_size(path)
        if path.suffix == '.pdparams':
            return _read_paddle(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
        if not isinstance(checkpoint, dict):
            raise RuntimeError(f'it holds a {type(checkpoint).__name__}')
        # plain ones: a file may give an OrderedDict attributes of the names of its methods
        return {
            key: dict(dict.items(value)) if isinstance(value, dict) else value for key, value in dict.items(checkpoint)}
    except Exception as error:  # there is hardly one that no damage makes the libraries raise
        # what torch found is a line of its own between advice that includes loading it unsafely
        lines = [line for line in str(error).splitlines() if line]
        found = next((line for line in lines if 'GLOBAL' in line), lines[0] if lines else type(error).__name__)
        raise RuntimeError(
            f'{path} was not loaded: {found}. Expected a safetensors file, a PyTorch checkpoint of tensors and plain '
            'values, or arrays of PaddlePaddle in a .pdparams file; get it anew, or save its state dict alone with '
            'safetensors.') from error


def _check_size(path: Path) -> None:
    """Raise an error if a file is not what `torch.save` writes but a small one that fills the memory when it is read.

    `torch.save` packs nothing, and needs neither a bytearray nor a tensor by a size, as torch.FloatTensor makes it; in
    what is left a size is that of bytes in the file. PyTorch guards against code in a file, not against this.
    """
    with contextlib.ExitStack() as stack:
        stream: IO[bytes] = stack.enter_context(path.open('rb'))
        pickles = [stream] * 5  # before torch 1.6 that many came one after the other
        if stream.read(4) == b'PK\3\4':  # by which PyTorch knows a zip file
            archive = stack.enter_context(zipfile.ZipFile(path))
            size = sum(entry.file_size for entry in archive.infolist())
            if size > path.stat().st_size:
                raise RuntimeError(f'it is packed, and comes to {size} bytes')
            names = [name for name in archive.namelist() if name.lower().endswith('data.pkl')]
            pickles = [stack.enter_context(archive.open(name)) for name in names]
        stream.seek(0)
        for file in pickles:
            with contextlib.suppress(ValueError):  # the end, or damaged: PyTorch says what there is
                for operation, argument, _ in pickletools.genops(file):
                    # the number of an object, which pickle has a list of
                    if operation.name == 'LONG_BINPUT' and int(argument or 0) > path.stat().st_size:
                        raise RuntimeError(f'it numbers an object {argument}, more than it has bytes')
                    if operation.name == 'GLOBAL' and re.search(r' bytearray$|\wTensor$', str(argument)):
                        raise RuntimeError(f'it has the GLOBAL {argument}, which may be of any size')


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
        if dtype.name not in types:
            raise RuntimeError(f'it has an array of type {dtype.name}, expected one of {", ".join(types)}')
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
            raise RuntimeError(f'it has the GLOBAL {module} {name}')
        return _PICKLED[f'{module} {name}']


def _read_paddle(path: Path) -> dict[str, Any]:
    """Return the tensors of a state dict that `paddle.save` wrote, NumPy's arrays by name in a plain pickle.

    Args:
        path: The file. What else is in it, as the table of Paddle's own names of the parameters, is left out.
    """
    with path.open('rb') as file:
        content = _ArrayUnpickler(file).load()
    if not isinstance(content, dict):
        raise RuntimeError(f'it holds a {type(content).__name__}')
    values = {key: value[1] if isinstance(value, tuple) else value for key, value in content.items()}
    return {key: value.tensor() for key, value in values.items() if isinstance(value, _PickledArray)}


def hub_owner() -> str | None:
    """Return the owner that the user has mirrors of the Hub repositories under, None for the registered one."""
    return os.environ.get('TIMM_MOBILENEXT_HUB_OWNER') or None


def hub_id(variant: str) -> str | None:
    """Return the Hub repository of an architecture's weights, `owner/name@revision` where it is pinned.

    A mirror of another owner has commits of its own: under its name there is no pin.

    Args:
        variant: Name of the architecture, with a tag where other weights than the default are meant.
    """
    cfg = get_pretrained_cfg(variant)
    if cfg is None or not cfg.hf_hub_id:
        return None
    return f'{hub_owner()}/{hf_split(cfg.hf_hub_id)[0].rpartition("/")[2]}' if hub_owner() else cfg.hf_hub_id


def hub_cache(repo: str, cache_dir: str | Path | None = None) -> Path | None:
    """Return the weights of a Hub repository in the cache, None if they are not there.

    Args:
        repo: `owner/name` or `owner/name@revision`.
        cache_dir: Folder of the cache, by default that of the Hub's client.
    """
    repo_id, revision = hf_split(repo)
    path = huggingface_hub.try_to_load_from_cache(repo_id, WEIGHTS_NAME, cache_dir, revision)
    return Path(path) if isinstance(path, str) else None


def answering(urls: Iterable[str]) -> set[str]:
    """Return the addresses whose servers, or the proxies to them, take a connection within `CONNECT_SECONDS`.

    All are asked at once. The Hub's client tries for 23 seconds and says so in twelve lines before it believes that a
    server is not there, and the download of PyTorch waits for as long as the system does.

    Args:
        urls: Addresses.
    """
    def connect(url: str) -> None:
        parts = urlsplit(url)
        if not urllib.request.proxy_bypass(parts.hostname or ''):
            proxies = urllib.request.getproxies()
            proxy = proxies.get(parts.scheme) or proxies.get('all')
            parts = urlsplit(proxy if '//' in proxy else f'//{proxy}') if proxy else parts
        port = parts.port or {'https': 443}.get(parts.scheme, 80)
        try:
            socket.create_connection((parts.hostname or '', port), timeout=CONNECT_SECONDS).close()
        except OSError:  # a name that is not found, too
            return
        found.add(url)

    found: set[str] = set()
    # Daemons, since a name server that does not answer holds its thread far longer than any timeout set here.
    threads = [threading.Thread(target=connect, args=(url,), daemon=True) for url in urls]
    deadline = time.monotonic() + CONNECT_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0., deadline - time.monotonic()))
    return set(found)


def is_out_of_reach(error: Exception) -> bool:
    """Return whether the Hub has no such repository or revision for this user, or does not answer, with an empty cache.

    Args:
        error: What the Hub's client raised.
    """
    if constants.HF_HUB_OFFLINE or isinstance(error, GatedRepoError):
        return False
    if isinstance(error, HfHubHTTPError):  # other than these: no such file, a disabled repository
        is_missing = isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError))
        return is_missing or error.response.status_code >= 500
    return isinstance(error, (LocalEntryNotFoundError, HTTPError))  # HTTPError: the connection broke


def locate(variant: str, timeout: float) -> str:
    """Say where the weights of an architecture would be taken from now, without taking them.

    Args:
        variant: Name of the architecture, with a tag where other weights than the default are meant.
        timeout: Longest wait for each of two servers, in seconds.
    """
    repo = hub_id(variant)
    if repo is None:
        return 'none'
    source = None if hub_owner() else find_source(variant)
    if hub_cache(repo):
        return f'cached, from the Hub ({repo})'
    if source and cached_file(source).exists():
        damaged = '' if is_whole(source, cached_file(source)) else ', damaged: will be downloaded again'
        return f'cached, {source.owner.removeprefix("the ")} file ({source.name}{damaged})'
    if constants.HF_HUB_OFFLINE:
        return 'not cached, and HF_HUB_OFFLINE is set'
    try:
        repo_id, revision = hf_split(repo)
        url = huggingface_hub.hf_hub_url(repo_id, WEIGHTS_NAME, revision=revision)
        huggingface_hub.get_hf_file_metadata(url, timeout=timeout)
        return f'Hub ({repo})'
    except GatedRepoError:
        return f'Hub ({repo}), gated: accept its conditions there'
    except (OSError, HTTPError) as error:
        reason = f'the Hub says {type(error).__name__}'
        if not is_out_of_reach(error):
            source = None
    if source:
        try:
            with urllib.request.urlopen(urllib.request.Request(source.url, method='HEAD'), timeout=timeout):
                return f'{source.owner.removeprefix("the ")} file ({source.url.split("/")[2]})'
        except OSError as error:
            reason += f', the server of {source.owner} file {type(error).__name__}'
    return f'out of reach ({reason})'
