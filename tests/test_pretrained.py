"""Having a file: what a connection is, a download that fails in each way, and reading without running code."""
import json
import os
import pickle
import signal
from pathlib import Path

import pytest
from client import CREATE, golden, weights_in

from timm_mobilenext.pretrained import read


def test_proxy(server, client, black_hole):
    """Where there is a proxy to the servers it is the proxy that has to take the connection."""
    answers = (
        'from timm_mobilenext import pretrained; pretrained.CONNECT_SECONDS = 0.5\n'
        'print(pretrained.answering(["http://nobody.invalid"]))')
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


@pytest.mark.parametrize('name', ['a.safetensors', 'a.pth.tar'])
@pytest.mark.parametrize('content', [b'', b'weights', b'PK\3\4'])
def test_read_damaged(name, content, tmp_path):
    """A file that is no checkpoint is refused with its name."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=f'{name} was not loaded: '):
        read(path)
