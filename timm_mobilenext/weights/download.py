"""Where pretrained weights are: in caches, on the Hugging Face Hub, in the files that the authors committed.

An authors' file is downloaded, and verified against its git blob id before anything of it is unpickled. _builder.py
decides which of the places weights are taken from.
"""
import argparse
import contextlib
import hashlib
import http.client
import logging
import os
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

from timm_mobilenext.weights.authors import SOURCES, Source

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
    if not answering([source.url]):  # PyTorch's download waits for a server as long as the system does, each time
        raise ConnectionError(
            f"The authors' file {source.url} is not in the cache, and there is no connection to its server. {remedy}")
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
        OSError: If the file is not there or not to be read.
        RuntimeError: If the file is damaged or asks for code.
    """
    path = Path(path)
    path.open('rb').close()  # below, an OSError is that of a place which a damaged file points to
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        _check_size(path)
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
            f'{path} was not loaded: {found}. Expected a safetensors file or a PyTorch checkpoint of tensors and plain '
            'values; get it anew, or save its state dict alone with safetensors.') from error


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
                    if operation.name == 'GLOBAL' and re.search(r' bytearray$|\wTensor$', str(argument)):
                        raise RuntimeError(f'it has the GLOBAL {argument}, which may be of any size')


def hub_owner() -> str | None:
    """Return the owner that the user has mirrors of the Hub repositories under, None for the registered one."""
    return os.environ.get('TIMM_MOBILENEXT_HUB_OWNER') or None


def hub_id(variant: str) -> str | None:
    """Return the Hub repository of an architecture's weights, `owner/name@revision` where it is pinned.

    A mirror of another owner has commits of its own: under its name there is no pin.

    Args:
        variant: Name of the architecture.
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
        variant: Name of the architecture.
        timeout: Longest wait for each of two servers, in seconds.
    """
    repo = hub_id(variant)
    if repo is None:
        return 'none'
    source = None if hub_owner() else SOURCES.get(variant)
    if hub_cache(repo):
        return f'cached, from the Hub ({repo})'
    if source and cached_file(source).exists():
        is_whole = git_blob_id(cached_file(source)) == source.blob
        return f"cached, authors' file ({source.name}{'' if is_whole else ', damaged: will be downloaded again'})"
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
    try:
        if source:
            with urllib.request.urlopen(urllib.request.Request(source.url, method='HEAD'), timeout=timeout):
                return f"authors' file ({source.url.split('/')[2]})"
    except OSError as error:
        reason += f", the server of the authors' file {type(error).__name__}"
    return f'out of reach ({reason})'
