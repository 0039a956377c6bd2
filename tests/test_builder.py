"""What `pretrained=True` takes, in which order, and what a user reads where that fails."""
import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from client import CREATE, REPO, golden, weights_in
from huggingface_hub import constants

from timm_mobilenext import MobileNeXt
from timm_mobilenext.weights import download
from timm_mobilenext.weights.authors import REPRODUCTIONS, SOURCES
from timm_mobilenext.weights.convert import convert
from timm_mobilenext.weights.download import cached_file, git_blob_id, read

NOT_SYS = pytest.mark.skipif(not Path('/sys').is_dir(), reason='/sys stands for a folder that root cannot write to')


def authors_at(url: str, client) -> dict[str, str]:
    """The environment in which the authors' files are on another server."""
    files = json.loads(client.env['AUTHORS_FILES'])
    return {'AUTHORS_FILES': json.dumps({name: (f'{url}/{name}/x.pth', blob) for name, (_, blob) in files.items()})}


def test_from_authors_file_to_hub_to_golden_logits(server, client):
    """Downloaded, verified, converted, published and created anew, all five answer as the authors' code did."""
    client.run(f"""
from timm_mobilenext.weights.publish import main
for name in {list(SOURCES)}:
    assert main([name, '--push']) == 0""")
    assert sorted(f.name for f in server.hub.iterdir()) == ['timm-mobilenext']
    shutil.rmtree(client.hub_cache)
    shutil.rmtree(client.torch_cache)
    server.log.clear()

    first = client.run(golden(*SOURCES))
    assert client.stderr == ''
    assert not any('/files/' in request for request in server.log)
    assert not client.torch_cache.exists()
    server.log.clear()
    assert client.run(golden(*SOURCES), HF_HUB_OFFLINE='1') == first
    assert server.log == []
    server.shutdown()
    server.server_close()
    assert client.run(golden(*SOURCES)) == first
    assert client.stderr == ''


@pytest.mark.parametrize('fault', ['refused', 'black hole', 'no such name'])
def test_no_network(fault, request, client):
    """Where no server takes a connection that is the error, in one line with the remedy under it, and nothing else."""
    url = {'refused': 'http://127.0.0.1:9', 'no such name': 'http://nobody.invalid'}.get(fault)
    url = url or request.getfixturevalue('black_hole')
    env = {'HF_ENDPOINT': url, **authors_at(url, client)}
    host = url.split('//')[1].split(':')[0]
    hurry = 'from timm_mobilenext.weights import download; download.CONNECT_SECONDS = 0.5; '
    message = client.fail(hurry + CREATE.format(''), **env)
    first, remedy = message.splitlines()
    assert first == (
        'ConnectionError: No weights of mobilenext_100 are in the caches, and there is no connection to '
        f'{host} or {host}.')
    assert 'pretrained_cfg_overlay=dict(file=PATH)' in remedy
    assert client.stderr == ''
    mine = client.fail(hurry + CREATE.format(", pretrained_cfg_overlay=dict(hf_hub_id='me/mine')"), **env)
    assert f'and there is no connection to {host}.\nThis is about me/mine' in mine
    converted = client.fail(
        hurry + "__import__('timm_mobilenext.weights.convert').convert.main(['mobilenext_100'])", **env)
    assert converted.startswith(f"SystemExit: error: The authors' file {url}/mobilenext_100/x.pth is not in the cache")
    assert client.stderr == ''
    assert not client.torch_cache.exists()
    assert not client.hub_cache.exists()


def test_slow_hub_is_waited_for(on_hub, server, client):
    """A Hub that takes its time to answer, longer than the wait for a connection, gives the weights."""
    server.faults['hub'] = 'late'
    client.run(
        'from timm_mobilenext.weights import download\ndownload.CONNECT_SECONDS = 0.5\n' + golden('mobilenext_100'))
    assert client.stderr == ''
    assert not any('/files/' in request for request in server.log)


def test_authors_file_where_hub_has_none(server, client):
    """Without a repository the authors' file is loaded, said in one line; from then on it needs no network."""
    names = ['mobilenext_100', 'mobilenext_100_id050', 'mobilenext_s']
    first = client.run(golden(*names))
    lines = [line for line in client.stderr.splitlines() if 'cannot be had from the Hub' in line]
    assert lines[0] == (
        f"{REPO} cannot be had from the Hub (RepositoryNotFoundError). Taking the authors' own file, "
        f'{server.url}/files/mobilenext_100/model_best.pth.tar')
    assert len(lines) == len(names)
    assert '100%' in client.stderr  # the progress bar
    assert [request for request in server.log if '/files/' in request] == [
        f'GET /files/{name}/model_best.pth.tar' for name in names]
    assert weights_in(client.torch_cache) == sorted(
        f'mobilenext-{name}-{git_blob_id(server.files / name / "model_best.pth.tar")[:8]}.pth.tar' for name in names)
    server.log.clear()
    assert client.run(golden(*names), HF_HUB_OFFLINE='1') == first
    assert client.run(golden(*names)) == first
    assert client.stderr == ''
    assert server.log == []


@pytest.mark.parametrize('is_on_hub', [True, False])
def test_arguments(is_on_hub, request, server, client):
    """Arguments of timm work the same whether weights come from the Hub or from the authors' file."""
    if is_on_hub:
        request.getfixturevalue('on_hub')
    client.run("""
def create(**kwargs):
    return timm.create_model('mobilenext_100', pretrained=True, cache_dir='cache', **kwargs)

weights = official.state_dict('mnext_100')
model = create(num_classes=7, in_chans=1, drop_path_rate=0.1)
assert model.classifier.weight.shape == (7, 1280)
assert torch.allclose(model.stem.conv.weight, weights['features.0.0.weight'].sum(1, keepdim=True))
for kwargs in (dict(), dict(feature_cls='getter'), dict(feature_cls='hook')):
    features = create(features_only=True, out_indices=(1, 4), **kwargs)
    assert [f.shape[1] for f in features(torch.zeros(1, 3, 64, 64))] == [144, 1280]
    assert torch.equal(features.state_dict()[next(iter(features.state_dict()))], weights['features.0.0.weight'])
    assert not any('state_dict' in getattr(m, 'pretrained_cfg', {}) for m in features.modules())
model = create(pretrained_cfg_overlay=dict(crop_pct=1.0))
assert model.pretrained_cfg['crop_pct'] == 1.0 and 'state_dict' not in model.pretrained_cfg
assert model.pretrained_cfg['hf_hub_id'] == 'timm-mobilenext/mobilenext_100.in1k'
""")
    assert weights_in(client.folder / 'cache')
    assert not weights_in(client.torch_cache)
    assert not weights_in(client.hub_cache)


@pytest.mark.parametrize('fault', ['private', 'down', 'foreign', 'cut', 'refused'])
def test_hub_out_of_reach(fault, on_hub, server, client):
    """A Hub that hides the repository, does not answer, is no Hub or breaks off gives way to the authors' file."""
    server.faults['hub'] = fault
    env = {'HF_ENDPOINT': 'http://127.0.0.1:9'} if fault == 'refused' else {}
    client.run(golden('mobilenext_100'), HF_TOKEN='', HF_HUB_DISABLE_IMPLICIT_TOKEN='1', **env)
    assert "Taking the authors' own file" in client.stderr
    assert 'model.safetensors' not in weights_in(client.hub_cache)


@pytest.mark.parametrize(('fault', 'kwargs', 'env', 'error', 'remedy'), [
    ('gated', '', {}, 'GatedRepoError', 'log in with `hf auth login`'),
    ('', '', {'HF_HUB_OFFLINE': '1'}, 'LocalEntryNotFoundError', 'HF_HUB_OFFLINE is set and timm-mobilenext/'),
    ('', ", pretrained_cfg_overlay=dict(hf_hub_id='timm-mobilenext/mobilenext_100.in1k@v9')", {},
     'RevisionNotFoundError', 'check the name'),
    ('', ", pretrained_cfg_overlay=dict(hf_hub_id='me/mine')", {}, 'RepositoryNotFoundError', 'This is about me/mine'),
    ('', '', {'TIMM_MOBILENEXT_HUB_OWNER': 'mirror'}, 'RepositoryNotFoundError', 'mirror/mobilenext_100.in1k'),
    ('no weights', '', {}, 'RemoteEntryNotFoundError', 'check the name'),
    pytest.param('', ", cache_dir='/sys/cache'", {}, 'PermissionError', 'HF_HOME', marks=NOT_SYS),
])
def test_hub_error_stands(fault, kwargs, env, error, remedy, on_hub, server, client):
    """What the user named, a gated repository, offline mode and a cache without access stay errors, with a remedy."""
    server.faults['hub'] = fault
    if fault == 'no weights':
        (server.hub / REPO / 'model.safetensors').rename(server.hub / REPO / 'pytorch_model.bin')
    message = client.fail(CREATE.format(kwargs), **env)
    assert message.startswith(f'{error}: ')
    assert remedy in message
    assert 'python -m timm_mobilenext convert mobilenext_100' in message
    assert not any('/files/' in request for request in server.log)
    assert not weights_in(client.hub_cache)


@pytest.mark.parametrize('pin', ['', '@' + '0' * 40])
def test_hub_of_another_owner(pin, on_hub, server, client):
    """A mirror of the repositories under another owner takes one environment variable, pinned or not."""
    (server.hub / 'timm-mobilenext').rename(server.hub / 'mirror')
    ids = json.dumps({'mobilenext_100': REPO + pin})
    client.run(golden('mobilenext_100'), TIMM_MOBILENEXT_HUB_OWNER='mirror', HUB_IDS=ids)
    assert client.stderr == ''


def test_pinned_revision(on_hub, server, client):
    """What is pinned to a commit is taken of that commit, works offline, and gives way when the commit is gone."""
    pinned = f'{REPO}@{server.revision(REPO)}'
    ids = {'HUB_IDS': json.dumps({'mobilenext_100': pinned})}
    place = "from timm_mobilenext.weights.download import locate\nprint(locate('mobilenext_100', 4.))"
    assert client.run(place, **ids) == f'Hub ({pinned})'
    first = client.run(golden('mobilenext_100'), **ids)
    assert client.stderr == ''
    assert f'GET /{pinned.replace("@", "/resolve/")}/model.safetensors' in server.log
    assert client.run(place, **ids) == f'cached, from the Hub ({pinned})'

    weights = server.hub / REPO / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1] + b'x')  # whoever has the name now
    server.log.clear()
    assert client.run(golden('mobilenext_100'), HF_HUB_OFFLINE='1', **ids) == first
    assert client.run(golden('mobilenext_100'), **ids) == first
    assert not any('/resolve/' in request for request in server.log)
    shutil.rmtree(client.hub_cache)
    assert client.run(golden('mobilenext_100'), **ids) == first
    assert f"{pinned} cannot be had from the Hub (RevisionNotFoundError). Taking the authors' own file" in client.stderr


def test_damaged_hub_cache(on_hub, client):
    """A cached file of the Hub that lost its end is not loaded; the error names it, and without it all is well."""
    client.run(CREATE.format(''))
    file, = client.hub_cache.glob('*/snapshots/*/model.safetensors')
    blob = file.resolve()
    os.truncate(blob, 10_000_000)
    message = client.fail(CREATE.format(''))
    assert message.startswith(f'RuntimeError: {blob}, the cached model.safetensors of {REPO}, is damaged')
    assert 'Delete this file' in message
    blob.unlink()
    client.run(golden('mobilenext_100'))


def test_damaged_authors_file_in_cache(server, client):
    """A cached file of the authors that lost its end is downloaded again, and in offline mode not loaded."""
    client.run(CREATE.format(''))
    file, = client.torch_cache.iterdir()
    os.truncate(file, 10_000_000)
    assert 'HF_HUB_OFFLINE is set' in client.fail(CREATE.format(''), HF_HUB_OFFLINE='1')
    client.run(golden('mobilenext_100'))
    assert f'{file} is damaged' in client.stderr


def test_architectures_without_weights():
    """Those the authors published no weights of say so as timm does, and what a user can do."""
    for name in set(timm.list_models(module='mobilenext')) - set(SOURCES):
        with pytest.raises(RuntimeError, match=f'No pretrained weights exist for {name}') as error:
            timm.create_model(name, pretrained=True)
        assert all(other in str(error.value) for other in SOURCES)
        assert 'docs/training.md' in str(error.value)
    names = [*(f'{name}.in1k' for name in SOURCES), *REPRODUCTIONS]
    assert sorted(timm.list_pretrained('mobilenext*')) == sorted(names)
    assert timm.get_pretrained_cfg('mobilenext_100').tag == 'in1k'


def test_what_is_initialized(tmp_path, known_files, monkeypatch):
    """A classifier that no weights are loaded for is initialized as the authors', and nothing where all are loaded."""
    cached_file(SOURCES['mobilenext_100'], tmp_path).symlink_to(known_files['mobilenext_100'])
    create = partial(timm.create_model, 'mobilenext_100', pretrained=True, cache_dir=tmp_path)
    assert create(num_classes=50).classifier.weight.detach().std() == pytest.approx(0.01, rel=0.05)
    initialized = []
    monkeypatch.setattr(MobileNeXt, 'init_weights', lambda self, **kwargs: initialized.append(self))
    assert 'state_dict' not in create().pretrained_cfg
    assert initialized == []
    create(num_classes=50)
    create(in_chans=1)
    assert len(initialized) == 2


def test_local_files(tmp_path, known_files):
    """The authors' file and the converted one load by `file=` and from a folder, the converted one by path too."""
    theirs = known_files['mobilenext_s']
    folder = convert('mobilenext_s', theirs, tmp_path / 'converted')
    converted = folder / 'model.safetensors'
    with_theirs = tmp_path / 'theirs'
    with_theirs.mkdir()
    shutil.copy(folder / 'config.json', with_theirs)
    (with_theirs / theirs.name).symlink_to(theirs)
    expected = read(converted)
    models = [
        timm.create_model('mobilenext_s', pretrained=True, pretrained_cfg_overlay=dict(file=str(theirs))),
        timm.create_model('mobilenext_s', pretrained=True, pretrained_cfg_overlay=dict(file=str(converted))),
        timm.create_model(f'local-dir:{folder}', pretrained=True),
        timm.create_model(f'local-dir:{with_theirs}', pretrained=True),
        timm.create_model('mobilenext_s', checkpoint_path=str(converted)),
    ]
    for model in models:
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_state_dict_at_hand(tmp_path, monkeypatch):
    """Weights that are given are taken, and no server is asked."""
    def answering(urls: object) -> set[str]:
        raise AssertionError(f'{urls} were asked')

    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(download, 'answering', answering)
    monkeypatch.setattr(download, 'hub_cache', lambda *args: None)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    state = timm.create_model('mobilenext_100').state_dict()
    model = timm.create_model('mobilenext_100', pretrained=True, pretrained_cfg_overlay=dict(state_dict=state))
    assert torch.equal(model.classifier.weight, state['classifier.weight'])
