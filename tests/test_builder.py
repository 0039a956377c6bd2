"""What `pretrained=True` takes, in which order, and what a user reads where that fails."""
import json
import os
import shutil

import pytest
import timm
import torch
from client import CREATE, REPO, golden, weights_in
from networks import SMALL

from timm_mobilenext.weights import download
from timm_mobilenext.weights.authors import SOURCES
from timm_mobilenext.weights.convert import convert
from timm_mobilenext.weights.download import git_blob_id, read

LOCATE = """
from timm_mobilenext.weights.download import locate
print(locate(timm.get_pretrained_cfg('mobilenext_100')).text)"""


@pytest.mark.slow
def test_from_authors_file_to_hub_to_golden_logits(server, client):
    """Downloaded, verified, converted, published, pinned and created anew, all five answer as the authors' code did."""
    client.run(f"""
from timm_mobilenext.weights.publish import main
for name in {list(SOURCES)}:
    assert main([name, '--output', name, '--push']) == 0""")
    repos = {name: f'timm-mobilenext/{name}.in1k' for name in SOURCES}
    client.env['PINS'] = json.dumps({name: f'{repo}@{server.revision(repo)}' for name, repo in repos.items()})
    shutil.rmtree(client.hub_cache, ignore_errors=True)
    shutil.rmtree(client.torch_cache)
    server.log.clear()
    first = client.run(golden(*SOURCES))
    assert client.stderr == ''
    assert not any('/files/' in request for request in server.log)
    server.shutdown()
    server.server_close()
    assert client.run(golden(*SOURCES)) == first
    assert client.stderr == ''


@pytest.mark.slow
def test_authors_file(server, client):
    """Of what is not pinned the authors' file is loaded, raw weights or EMA; from then on it needs no network."""
    names = ['mobilenext_100', 'mobilenext_s']
    foreign = server.hub / REPO  # of whoever registered the name
    foreign.mkdir(parents=True)
    (foreign / 'model.safetensors').write_text('weights')
    first = client.run(golden(*names))
    assert '100%' in client.stderr  # the progress bar
    assert server.log == [f'GET /files/{name}/model_best.pth.tar' for name in names]
    assert weights_in(client.torch_cache) == [
        f'mobilenext-{name}-{git_blob_id(server.files / name / "model_best.pth.tar")[:8]}.pth.tar' for name in names]
    server.log.clear()
    assert client.run(golden(*names), HF_HUB_OFFLINE='1') == first
    assert server.log == []


def test_arguments(server, client):
    """Arguments of timm work as with its own networks: classes, channels, features, cache, config."""
    client.run("""
def create(**kwargs):
    return timm.create_model('mobilenext_100', pretrained=True, cache_dir='cache', **kwargs)

weights = official.state_dict('mnext_100')
model = create(num_classes=50, in_chans=1, drop_path_rate=0.1)
assert 0.009 < model.classifier.weight.std() < 0.011  # as the authors initialize it
assert torch.allclose(model.stem.conv.weight, weights['features.0.0.weight'].sum(1, keepdim=True))
for kwargs in (dict(), dict(feature_cls='getter'), dict(feature_cls='hook')):
    features = create(features_only=True, out_indices=(1, 4), **kwargs)
    assert [f.shape[1] for f in features(torch.zeros(1, 3, 64, 64))] == [144, 1280]
    assert torch.equal(features.state_dict()[next(iter(features.state_dict()))], weights['features.0.0.weight'])
    assert not any('state_dict' in getattr(m, 'pretrained_cfg', {}) for m in features.modules())
model = create(pretrained_cfg_overlay=dict(crop_pct=1.0))
assert model.pretrained_cfg['crop_pct'] == 1.0 and 'state_dict' not in model.pretrained_cfg
""")
    assert weights_in(client.folder / 'cache')
    assert not weights_in(client.torch_cache)


@pytest.mark.slow
def test_pinned_commit(on_hub, server, client):
    """A pinned commit is taken of the Hub, and offline from its cache, whatever the repository has now."""
    assert client.run(LOCATE) == f'Hub ({on_hub})'
    first = client.run(golden('mobilenext_100'))
    assert client.stderr == ''
    assert f'GET /{on_hub.replace("@", "/resolve/")}/model.safetensors' in server.log
    assert client.run(LOCATE) == f'cache of the Hub ({on_hub})'
    weights = server.hub / REPO / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1] + b'x')
    assert client.run(golden('mobilenext_100'), HF_HUB_OFFLINE='1') == first
    shutil.rmtree(client.hub_cache)
    assert client.run(golden('mobilenext_100')) == first
    assert f"Taking the authors' file {server.url}/files/mobilenext_100/" in client.stderr
    assert f'as the Hub does not give {on_hub} (RevisionNotFoundError)' in client.stderr


@pytest.mark.parametrize('fault', ['private', 'down', 'foreign', 'late', 'refused'])
def test_hub_out_of_reach(fault, on_hub, server, client):
    """A Hub that hides the repository, is down, is not a Hub, or gives no answer gives way to the authors' file."""
    server.faults['hub'] = fault
    env = {'HF_ENDPOINT': 'http://127.0.0.1:9'} if fault == 'refused' else {}
    client.run(
        'from timm_mobilenext.weights import download; download.CONNECT_SECONDS = 0.5\n' + golden('mobilenext_100'),
        HF_TOKEN='', HF_HUB_DISABLE_IMPLICIT_TOKEN='1', **env)
    assert "Taking the authors' file" in client.stderr
    assert not weights_in(client.hub_cache)


def test_what_the_user_names(on_hub, server, client, monkeypatch):
    """A repository, file, folder or state dict that the user names is taken or fails; nothing else is looked for."""
    message = client.fail(CREATE.format(", pretrained_cfg_overlay=dict(hf_hub_id='me/mine')"))
    assert message.startswith('RepositoryNotFoundError: ')
    assert not any('/files/' in request for request in server.log)
    monkeypatch.setattr(download, 'find_source', None)
    state = timm.create_model(SMALL).state_dict()
    model = timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay=dict(state_dict=state))
    assert torch.equal(model.classifier.weight, state['classifier.weight'])


@pytest.mark.slow
def test_damaged_hub_cache(on_hub, client):
    """A cached file of the Hub that lost its end is not loaded; the error names it, and without it all is well."""
    client.run(CREATE.format(''))
    file, = client.hub_cache.glob('*/snapshots/*/model.safetensors')
    os.truncate(file.resolve(), 10_000_000)
    message = client.fail(CREATE.format(''))
    assert message.startswith(f'RuntimeError: {file} was not loaded (SafetensorError)')
    file.resolve().unlink()
    client.run(golden('mobilenext_100'))


def test_architectures_without_weights():
    """An architecture without published weights is an error of timm."""
    for name in set(timm.list_models(module='mobilenext')) - set(SOURCES):
        with pytest.raises(RuntimeError, match=f'No pretrained weights exist for {name}. '):
            timm.create_model(name, pretrained=True)
    assert timm.get_pretrained_cfg('mobilenext_100').tag == 'in1k'


@pytest.mark.slow
def test_local_files(tmp_path, known_files):
    """docs/weights.md has a table of what goes with which file; the authors' kind of file and a converted one do it."""
    theirs = known_files['mobilenext_s']
    folder = convert(theirs, tmp_path / 'converted')
    converted = folder / 'model.safetensors'
    with_theirs = tmp_path / 'theirs'
    with_theirs.mkdir()
    shutil.copy(folder / 'config.json', with_theirs)
    (with_theirs / theirs.name).symlink_to(theirs)
    expected = read(converted)

    def check(model: torch.nn.Module, count: int = len(expected)) -> None:
        assert len(model.state_dict()) == count
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())

    for place in (dict(file=str(theirs)), dict(file=str(converted)), folder, with_theirs):
        name = 'mobilenext_s' if isinstance(place, dict) else f'local-dir:{place}'
        kwargs = dict(pretrained=True, pretrained_cfg_overlay=place if isinstance(place, dict) else None)
        check(timm.create_model(name, **kwargs))
        check(timm.create_model(name, num_classes=0, **kwargs), len(expected) - 2)
        features = timm.create_model(name, features_only=True, **kwargs)
        assert torch.equal(features.stem.conv.weight, expected['stem.conv.weight'])
    check(timm.create_model('mobilenext_s', checkpoint_path=str(converted)))
    for kwargs in (dict(num_classes=0), dict(features_only=True)):
        with pytest.raises(RuntimeError, match=r'Error.s. in loading state_dict'):
            timm.create_model('mobilenext_s', checkpoint_path=str(converted), **kwargs)
