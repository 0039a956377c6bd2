"""Having a file: what a connection is, a download that fails in each way, and reading without running code."""
import http.client
import json
import os
import pickle
import shutil
import signal
import socket
import threading
import urllib.error
from pathlib import Path
from unittest import mock

import pytest
import torch
from client import CREATE, golden, weights_in
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, LocalEntryNotFoundError, \
    RepositoryNotFoundError, RevisionNotFoundError

from timm_mobilenext.weights import download
from timm_mobilenext.weights.authors import SOURCES
from timm_mobilenext.weights.download import fetch, read


@pytest.mark.parametrize(('content', 'blob'), [
    (b'', 'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'), (b'hello\n', 'ce013625030ba8dba906f756967f9e9ca394464a'),
    (b'\0' * 3_000_000, '73e77f405a9ff5ab6f54695cf10e7be6d23c9a4b')])
def test_git_blob_id(content, blob, tmp_path):
    """The id of a file is that which `git hash-object` prints."""
    path = tmp_path / 'file'
    path.write_bytes(content)
    assert download.git_blob_id(path) == blob


def test_places_of_files(monkeypatch):
    """An authors' file lies in the folder that the user gives or in torch.hub's; a mirror's name is in the Hub's id."""
    source = SOURCES['mobilenext_100']
    assert download.cached_file(source, '~/mine') == Path.home() / 'mine' / source.name
    assert download.cached_file(source) == Path(torch.hub.get_dir()) / 'checkpoints' / source.name
    monkeypatch.delenv('TIMM_MOBILENEXT_HUB_OWNER', raising=False)
    ids = [download.hub_id(name) for name in ('mobilenext_100', 'mobilenext_035', 'no_such_network')]
    assert ids == ['timm-mobilenext/mobilenext_100.in1k', None, None]
    monkeypatch.setenv('TIMM_MOBILENEXT_HUB_OWNER', 'mirror')
    assert download.hub_id('mobilenext_100') == 'mirror/mobilenext_100.in1k'


def test_revision_in_the_cache(tmp_path):
    """A revision of a Hub repository is in the cache where that revision is, not where another is."""
    weights = tmp_path / 'models--me--mine' / 'snapshots' / 'abc' / 'model.safetensors'
    (tmp_path / 'models--me--mine' / 'refs').mkdir(parents=True)
    (tmp_path / 'models--me--mine' / 'refs' / 'v2').write_text('abc')
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert download.hub_cache('me/mine@v2', tmp_path) == weights
    assert download.hub_cache('me/mine', tmp_path) is download.hub_cache('me/mine@v1', tmp_path) is None


@pytest.mark.parametrize(('proxies', 'addresses'), [
    ({}, [('a.invalid', 443), ('b.invalid', 80), ('c.invalid', 81)]),
    (dict(https_proxy='http://p.invalid:3128'), [('p.invalid', 3128), ('b.invalid', 80), ('c.invalid', 81)]),
    (dict(http_proxy='p.invalid:3128'), [('a.invalid', 443), ('p.invalid', 3128), ('p.invalid', 3128)]),
    (dict(all_proxy='p.invalid', no_proxy='a.invalid'), [('a.invalid', 443), ('p.invalid', 80), ('p.invalid', 80)]),
])
def test_whom_a_connection_is_to(proxies, addresses, monkeypatch):
    """A server is called at the port of its address or its scheme, or its proxy is where there is one."""
    for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    called = []
    monkeypatch.setattr(socket, 'create_connection', lambda address, timeout: called.append(address) or mock.Mock())
    urls = ['https://a.invalid/x', 'http://b.invalid', 'http://c.invalid:81/x/y']
    assert download.answering(urls) == {*urls}
    assert sorted(called) == sorted(addresses)


def test_refused_connection(monkeypatch):
    """A server that is not there is no answer, and nothing is printed."""
    failures: list[object] = []
    monkeypatch.setattr(threading, 'excepthook', failures.append)
    assert download.answering(['http://127.0.0.1:1']) == set()
    assert failures == []


def test_name_server_that_never_answers(monkeypatch):
    """A look-up that hangs is not waited for, neither by the question nor by the end of the program."""
    ended, end, before = [], threading.Event(), threading.enumerate()

    def look_up(address: tuple[str, int], timeout: float) -> None:
        end.wait(30)
        ended.append(address)
        raise OSError

    monkeypatch.setattr(download, 'CONNECT_SECONDS', 0.1)
    monkeypatch.setattr(socket, 'create_connection', look_up)
    try:
        assert download.answering(['http://nobody.invalid']) == set()
        assert ended == []
        assert [thread.daemon for thread in threading.enumerate() if thread not in before] == [True]
    finally:
        end.set()


def http_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    return kind('of the Hub', response=mock.Mock(status_code=status, headers={}))


@pytest.mark.parametrize(('error', 'is_out_of_reach'), [
    (http_error(RepositoryNotFoundError, 401), True), (http_error(GatedRepoError, 403), False),
    (http_error(HfHubHTTPError, 500), True), (http_error(HfHubHTTPError, 499), False),
    (http_error(RevisionNotFoundError, 404), True),
    (LocalEntryNotFoundError('not in the cache'), True), (HTTPError('broken'), True), (OSError('disk'), False)])
def test_out_of_reach(error, is_out_of_reach, monkeypatch):
    """The Hub is out of reach where it is down, silent or lacks the repository; refusals and offline mode stand."""
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    assert download.is_out_of_reach(error) == is_out_of_reach
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert not download.is_out_of_reach(error)


@pytest.mark.parametrize('failures', [2, 3])
@pytest.mark.parametrize('error', [
    ConnectionResetError('reset'), TimeoutError('silent'), http.client.IncompleteRead(b''), urllib.error.URLError('x')])
def test_broken_connections(error, failures, tmp_path, known_files, monkeypatch):
    """A download whose connection breaks is made again, twice at most, whatever the library calls it."""
    source, calls = SOURCES['mobilenext_100'], []

    def download(url: str, path: str) -> None:
        calls.append(url)
        if len(calls) <= failures:
            raise error
        shutil.copy(known_files['mobilenext_100'], path)

    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(download, 'answering', set)
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    if failures == 2:
        assert fetch(source, tmp_path / 'cache') == tmp_path / 'cache' / source.name
    else:
        with pytest.raises(OSError, match=f'{source.url} could not be stored as {tmp_path}/cache/.*: '):
            fetch(source, tmp_path / 'cache')
    assert calls == [source.url] * 3
    assert len(list((tmp_path / 'cache').iterdir())) == 3 - failures


def test_proxy(server, client, black_hole):
    """Where there is a proxy to the servers it is the proxy that has to take the connection."""
    answers = (
        'from timm_mobilenext.weights import download; download.CONNECT_SECONDS = 0.5\n'
        'print(download.answering(["http://nobody.invalid"]))')
    for proxy, answer in ((server.url, "{'http://nobody.invalid'}"), (black_hole, 'set()')):
        assert client.run(answers, http_proxy=proxy) == answer
    assert client.run(answers, http_proxy=server.url, no_proxy='nobody.invalid') == 'set()'


@pytest.mark.parametrize(('fault', 'message'), [
    ('cut', 'RuntimeError: {url} gave {half} bytes with git blob id'),
    ('changed', 'RuntimeError: {url} gave {size} bytes with git blob id'),
    ('code', 'RuntimeError: {url} gave'),
    ('down', "OSError: The authors' file {url} could not be stored as {path}: HTTP Error 503"),
    ('missing', "OSError: The authors' file {url} could not be stored as {path}: HTTP Error 404"),
])
def test_authors_file_not_to_be_had(fault, message, tmp_path, server, client):
    """A file that is cut short, changed, full of code or not there is an error with a remedy, and leaves nothing."""
    folder = server.files / 'mobilenext_100'
    content = (folder / 'model_best.pth.tar').read_bytes()
    server.faults['files'] = fault
    folder.unlink()
    folder.mkdir()
    if fault != 'missing':
        served = {'changed': content[:-1] + b'x', 'code': code_that_makes(tmp_path / 'trace')}.get(fault, content)
        (folder / 'model_best.pth.tar').write_bytes(served)
    error = client.fail(CREATE.format(''))
    blob = json.loads(client.env['AUTHORS_FILES'])['mobilenext_100'][1]
    assert error.startswith(message.format(
        url=f'{server.url}/files/mobilenext_100/model_best.pth.tar', size=len(content), half=len(content) // 2,
        path=client.torch_cache / f'mobilenext-mobilenext_100-{blob[:8]}.pth.tar'))
    assert 'pretrained_cfg_overlay=dict(file=PATH)' in error
    assert list(client.torch_cache.iterdir()) == []
    assert not (tmp_path / 'trace').exists()
    downloads = [request for request in server.log if '/files/' in request]
    assert len(downloads) == (1 if fault in ('down', 'missing') else 3)  # what breaks off is tried again


def test_download_starts_again(server, client):
    """A download that breaks off once is made again, without the user noticing more than the progress bar."""
    server.faults['files'] = 'cut once'
    client.run(golden('mobilenext_100'))
    assert len([request for request in server.log if '/files/' in request]) == 2
    assert len(list(client.torch_cache.iterdir())) == 1


@pytest.mark.parametrize('is_on_hub', [True, False])
def test_disk_full(is_on_hub, request, server, client):
    """A disk that takes no more is an error with a remedy, and leaves nothing that would be loaded."""
    pytest.importorskip('resource', reason='no limit can be set to the size of files here')
    if is_on_hub:
        request.getfixturevalue('on_hub')
    # the kernel refuses to let a file grow, as it does on a full disk
    limit = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); '
    error = client.fail(limit + CREATE.format(''))
    assert error.startswith('OSError: ')
    assert 'File too large' in error
    assert ('HF_HOME' if is_on_hub else 'TORCH_HOME') in error
    assert not list(client.folder.rglob('model.safetensors'))
    assert not weights_in(client.torch_cache)
    client.run(golden('mobilenext_100'))


@pytest.mark.skipif(not Path('/sys').is_dir(), reason='/sys stands for a folder that root cannot write to')
def test_cache_without_access(server, client):
    """A cache that cannot be written is an error that names it and the ways to move it."""
    error = client.fail(CREATE.format(''), TORCH_HOME='/sys/cache')
    assert error.startswith("OSError: The authors' file")
    assert '/sys/cache/hub/checkpoints' in error
    assert '`cache_dir=` or TORCH_HOME' in error


def test_two_at_once(server, client):
    """Two processes that start at once both get the weights, and one file stays."""
    processes = [client.start(golden('mobilenext_100')) for _ in range(2)]
    outputs = set()
    for process in processes:
        assert client.wait(process) == 0, client.stderr
        outputs.add(client.stdout)
    assert len(outputs) == 1
    assert len(list(client.torch_cache.iterdir())) == 1


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='a process that is sent SIGINT ends at once here')
@pytest.mark.parametrize('is_on_hub', [True, False])
def test_ctrl_c(is_on_hub, request, server, client):
    """Ctrl-C in the middle of a download leaves nothing that would be loaded, and the next start is as the first."""
    if is_on_hub:
        request.getfixturevalue('on_hub')
    server.faults['hub' if is_on_hub else 'files'] = 'slow'
    process = client.start(CREATE.format(''))
    assert server.half_sent.wait(timeout=120)
    os.kill(process.pid, signal.SIGINT)
    assert client.wait(process) != 0
    assert 'KeyboardInterrupt' in client.stderr
    assert not list(client.folder.rglob('model.safetensors'))
    assert not client.torch_cache.exists() or list(client.torch_cache.iterdir()) == []
    server.faults.clear()
    client.run(golden('mobilenext_100'))


def test_cached_file_is_verified(tmp_path, known_files, monkeypatch, caplog):
    """A file in the cache is taken if it is whole, else downloaded again, which offline or unconnected is an error."""
    source, calls, theirs = SOURCES['mobilenext_100'], [], known_files['mobilenext_100']
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(download, 'answering', set)
    monkeypatch.setattr(
        torch.hub, 'download_url_to_file', lambda url, path: calls.append(url) or shutil.copy(theirs, path))
    path = fetch(source, tmp_path)
    assert fetch(source, tmp_path) == path
    assert (len(calls), caplog.text) == (1, '')
    os.truncate(path, 1000)
    assert download.git_blob_id(fetch(source, tmp_path)) == source.blob
    assert len(calls) == 2
    assert f'{path} is damaged, its git blob id is not {source.blob}. Downloading it again.' in caplog.text
    path.unlink()
    monkeypatch.setattr(download, 'answering', lambda urls: set())
    with pytest.raises(ConnectionError, match='is not in the cache, and there is no connection to its server'):
        fetch(source, tmp_path)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(OSError, match='is not in the cache and HF_HUB_OFFLINE is set'):
        fetch(source, tmp_path)
    assert len(calls) == 2


@pytest.mark.parametrize(('of_hub', 'of_authors', 'place'), [
    (None, None, 'Hub (timm-mobilenext/mobilenext_100.in1k)'),
    (http_error(GatedRepoError, 403), None,
     'Hub (timm-mobilenext/mobilenext_100.in1k), gated: accept its conditions there'),
    (http_error(RepositoryNotFoundError, 401), None, "authors' file (github.com)"),
    (HTTPError('broken'), None, "authors' file (github.com)"),
    (http_error(RepositoryNotFoundError, 401), TimeoutError(),
     "out of reach (the Hub says RepositoryNotFoundError, the server of the authors' file TimeoutError)"),
    (http_error(RevisionNotFoundError, 404), None, "authors' file (github.com)"),
    (OSError('disk'), None, 'out of reach (the Hub says OSError)')])
def test_locate(of_hub, of_authors, place, tmp_path, monkeypatch):
    """Weights that are in no cache are where the first server that has them is; one that refuses them is the last."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(download, 'hub_cache', lambda repo: None)
    monkeypatch.setattr('huggingface_hub.get_hf_file_metadata', mock.Mock(side_effect=of_hub))
    monkeypatch.setattr('urllib.request.urlopen', mock.MagicMock(side_effect=of_authors))
    assert download.locate('mobilenext_100', 1) == place
    assert download.locate('mobilenext_035', 1) == 'none'
    monkeypatch.setenv('TIMM_MOBILENEXT_HUB_OWNER', 'mirror')  # who has no files of the authors
    assert "authors' file" not in download.locate('mobilenext_100', 1)


def test_locate_in_caches(tmp_path, known_files, monkeypatch):
    """Weights in a cache are there, those of the Hub first; a damaged file of the authors is said to be one."""
    source = SOURCES['mobilenext_100']
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(download, 'hub_cache', lambda repo: None)
    assert download.locate('mobilenext_100', 1) == 'not cached, and HF_HUB_OFFLINE is set'
    path = download.cached_file(source)
    path.parent.mkdir()
    shutil.copy(known_files['mobilenext_100'], path)
    assert download.locate('mobilenext_100', 1) == f"cached, authors' file ({source.name})"
    os.truncate(path, 1000)
    assert download.locate('mobilenext_100', 1) == (
        f"cached, authors' file ({source.name}, damaged: will be downloaded again)")
    monkeypatch.setattr(download, 'hub_cache', lambda repo: tmp_path)
    assert download.locate('mobilenext_100', 1) == 'cached, from the Hub (timm-mobilenext/mobilenext_100.in1k)'


def code_that_makes(folder: Path) -> bytes:
    """Return a pickle that makes a folder when it is loaded."""
    class Code:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(folder),)
    return pickle.dumps({'state_dict': Code()}, protocol=2)


def test_read_runs_no_code(tmp_path):
    """A checkpoint that asks for code is refused by the name of what it asks for, and the code does not run."""
    path = tmp_path / 'checkpoint.pth.tar'
    path.write_bytes(code_that_makes(tmp_path / 'trace'))
    with pytest.raises(RuntimeError, match=rf'was not loaded: .*{os.mkdir.__module__}\.mkdir.*Expected'):
        read(path)
    assert not (tmp_path / 'trace').exists()


@pytest.mark.parametrize(('name', 'content', 'found'), [
    ('a.safetensors', b'', 'Error while deserializing'), ('a.safetensors', b'PK\3\4', 'Error while deserializing'),
    ('a.pth.tar', b'', 'EOFError'), ('a.pth.tar', b'weights', 'Weights only load failed'),
    ('a.pth.tar', b'PK\3\4', 'File is not a zip file')])
def test_read_damaged(name, content, found, tmp_path):
    """A file that is no checkpoint is refused with its name and what was found."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=rf'{name} was not loaded: {found}.*\. Expected a safetensors file'):
        read(path)


def test_read_other_objects(tmp_path):
    """A file that holds no state dict is refused by what it holds."""
    torch.save([1], tmp_path / 'list.pth')
    with pytest.raises(RuntimeError, match=r'list\.pth was not loaded: it holds a list\. Expected'):
        read(tmp_path / 'list.pth')
