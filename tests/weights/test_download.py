"""Files: where they are looked for, downloads that fail in each way, and reading without running code."""
import json
import os
import pickle
import shutil
import signal
import socket
from pathlib import Path

import pytest
import timm
import torch
from client import CREATE, golden, weights_in
from huggingface_hub import constants

from timm_mobilenext.weights import download
from timm_mobilenext.weights.authors import SOURCES
from timm_mobilenext.weights.download import fetch, read

HURRY = 'from timm_mobilenext.weights import download; download.CONNECT_SECONDS = 1; '
# Makes the name both.invalid have two addresses: {}, a server that never takes a connection, and {}, one that does.
TWO_ADDRESSES = """
import socket
look_up = socket.getaddrinfo
socket.getaddrinfo = lambda host, *args, **kwargs: [
    (socket.AF_INET, socket.SOCK_STREAM, 6, '', ('127.0.0.1', port)) for port in ({}, {})
] if host in ('both.invalid', b'both.invalid') else look_up(host, *args, **kwargs)
"""


def authors_at(url: str, client) -> dict[str, str]:
    """Return the environment in which the authors' files are on another server."""
    files = json.loads(client.env['AUTHORS_FILES'])
    return {'NO_PROXY': '*', 'AUTHORS_FILES': json.dumps({
        name: (f'{url}/files/{name}/model_best.pth.tar', blob) for name, (_, blob) in files.items()})}


def test_git_blob_id(tmp_path):
    """The id of a file is the one that `git hash-object` prints."""
    path = tmp_path / 'file'
    path.write_bytes(b'hello\n')
    assert download.git_blob_id(path) == 'ce013625030ba8dba906f756967f9e9ca394464a'


def test_place(tmp_path, monkeypatch):
    """Without a pin the Hub is not asked, and what the user names is left to timm."""
    def place(**changes: object) -> str:
        return download.locate(timm.models.resolve_pretrained_cfg('mobilenext_100', None, changes), tmp_path).text

    assert place() == 'not cached, and HF_HUB_OFFLINE is set'
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    assert place() == "authors' file (github.com)"
    assert place(file='mine.pth') == 'file (mine.pth)'
    named = (dict(state_dict={'a': 1}), dict(hf_hub_id='me/mine'), dict(source='hf-hub'), dict(url='https://me.invalid'))
    assert {place(**changes) for changes in named} == {'named by the user'}


@pytest.mark.parametrize('fault', ['refused', 'black hole', 'no such name'])
def test_no_network(fault, request, on_hub, client):
    """Where no server takes a connection the error names the file and what to do without; nothing is left."""
    url = {'refused': 'http://127.0.0.1:9', 'no such name': 'http://nobody.invalid'}.get(fault)
    url = url or request.getfixturevalue('black_hole')
    env = {'HF_ENDPOINT': url, **authors_at(url, client)}
    message = client.fail(HURRY + CREATE.format(''), **env)
    assert message.startswith(f'OSError: {url}/files/mobilenext_100/model_best.pth.tar could not be downloaded to ')
    assert 'urlopen error' in message
    assert 'pretrained_cfg_overlay=dict(file=PATH)' in message
    assert not weights_in(client.folder / 'torch')
    assert not client.hub_cache.exists()


@pytest.mark.parametrize('is_on_hub', [True, False])
def test_address_that_never_answers(is_on_hub, request, server, client, black_hole):
    """A server that does not answer at one of its addresses, such as a dead IPv6 route, is reached at another."""
    url = f'http://both.invalid:{server.url.rpartition(":")[2]}'
    code = TWO_ADDRESSES.format(*(address.rpartition(':')[2] for address in (black_hole, server.url)))
    if is_on_hub:
        request.getfixturevalue('on_hub')
    client.run(code + HURRY + golden('mobilenext_100'), HF_ENDPOINT=url, **authors_at(url, client))
    assert any('/files/' in request for request in server.log) or is_on_hub


def test_name_server_that_never_answers(monkeypatch):
    """A look-up that hangs delays neither the answer about the Hub nor the end of the program."""
    with socket.socket() as end:
        monkeypatch.setattr(download, 'CONNECT_SECONDS', 0.1)
        monkeypatch.setattr('huggingface_hub.get_hf_file_metadata', lambda *args, **kwargs: end.accept())
        end.bind(('127.0.0.1', 0))
        end.listen()
        assert download._hub_problem('me/mine', 'abc') == 'no answer'


@pytest.mark.slow
@pytest.mark.parametrize(('fault', 'message', 'requests'), [
    ('cut', 'OSError: {url} could not be downloaded to {path}: {half} of {size} bytes came', 3),
    ('code', 'RuntimeError: {url} gave a file with git blob id ', 1),
    ('down', 'OSError: {url} could not be downloaded to {path}: HTTP Error 503', 1),
])
def test_authors_file_unavailable(fault, message, requests, tmp_path, server, client):
    """A file that is cut short, replaced or not there is an error that says what to do, and leaves nothing behind."""
    folder = server.files / 'mobilenext_100'
    size = (folder / 'model_best.pth.tar').stat().st_size
    server.faults['files'] = fault
    if fault == 'code':
        folder.unlink()
        folder.mkdir()
        (folder / 'model_best.pth.tar').write_bytes(code_that_makes(tmp_path / 'trace'))
    error = client.fail(CREATE.format(''))
    blob = json.loads(client.env['AUTHORS_FILES'])['mobilenext_100'][1]
    assert error.startswith(message.format(
        url=f'{server.url}/files/mobilenext_100/model_best.pth.tar', size=size, half=size // 2,
        path=client.torch_cache / f'mobilenext-mobilenext_100-{blob[:8]}.pth.tar'))
    assert 'pretrained_cfg_overlay=dict(file=PATH)' in error
    assert list(client.torch_cache.iterdir()) == []
    assert not (tmp_path / 'trace').exists()
    assert len(server.log) == requests  # what breaks off is tried again


def test_download_starts_again(server, client):
    """A download that breaks off once starts again by itself."""
    server.faults['files'] = 'cut once'
    client.run(CREATE.format(''))
    assert len(server.log) == 2
    assert len(list(client.torch_cache.iterdir())) == 1


@pytest.mark.skipif(not Path('/sys').is_dir(), reason='/sys stands for a folder that root cannot write to')
def test_cache_without_access(server, client):
    """A cache that cannot be written is an error that names it and the ways to move it."""
    error = client.fail(CREATE.format(''), TORCH_HOME='/sys/cache')
    assert error.startswith('OSError: ')
    assert 'To move the cache from /sys/cache/hub/checkpoints, use `cache_dir=` or TORCH_HOME.' in error


@pytest.mark.slow
def test_two_at_once(server, client):
    """Two processes that start at once both get the weights, and one file stays."""
    processes = [client.start(golden('mobilenext_100')) for _ in range(2)]
    outputs = set()
    for process in processes:
        assert client.wait(process) == 0, client.stderr
        outputs.add(client.stdout)
    assert len(outputs) == 1
    assert len(list(client.torch_cache.iterdir())) == 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='a process that is sent SIGINT ends at once here')
def test_ctrl_c(server, client):
    """Ctrl-C in the middle of a download leaves nothing behind, and the next start downloads the file."""
    server.faults['files'] = 'slow'
    process = client.start(CREATE.format(''))
    assert server.half_sent.wait(timeout=120)
    os.kill(process.pid, signal.SIGINT)
    assert client.wait(process) != 0
    assert 'KeyboardInterrupt' in client.stderr
    assert list(client.torch_cache.iterdir()) == []
    server.faults.clear()
    client.run(CREATE.format(''))


def test_cached_file_is_verified(tmp_path, known_files, monkeypatch, caplog):
    """A file in the cache is taken if it is whole, else downloaded again, which offline is an error."""
    source, calls, served = SOURCES['mobilenext_100'], [], known_files['mobilenext_100']
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(download, '_download', lambda url, path: calls.append(url) or shutil.copy(served, path))
    path = fetch(source, tmp_path)
    assert fetch(source, tmp_path) == path
    assert (len(calls), caplog.text) == (1, '')
    os.truncate(path, 1000)
    assert download.git_blob_id(fetch(source, tmp_path)) == source.blob
    assert len(calls) == 2
    assert f'{path} is damaged, its git blob id is not {source.blob}. Downloading it again.' in caplog.text
    path.unlink()
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(OSError, match='is not in the cache, and HF_HUB_OFFLINE is set'):
        fetch(source, tmp_path)


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
    with pytest.raises(RuntimeError, match=rf'was not loaded \(it asks for the code of {os.mkdir.__module__}\.mkdir\)'):
        read(path)
    assert not (tmp_path / 'trace').exists()


@pytest.mark.parametrize(('name', 'content'), [
    ('a.safetensors', b''), ('a.safetensors', b'PK\3\4'), ('a.pth.tar', b''), ('a.pth.tar', b'PK\3\4'),
    ('a.pth.tar', b'# Read me\n'), ('a.pth.tar', [1])])
def test_read_damaged(name, content, tmp_path):
    """A file that is not a checkpoint is refused by name, with a message that does not advise to load it unsafely."""
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    end = r'or not a checkpoint\. Give a safetensors file, or a PyTorch checkpoint of tensors and plain values\.$'
    with pytest.raises(RuntimeError, match=rf'{name} was not loaded \(\w+\)\. It is damaged, {end}'):
        read(path)
