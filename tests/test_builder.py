"""What `pretrained=True` loads, in which order, and what a user reads if that fails."""
import os
import shutil

import pytest
import timm
import torch
from client import CREATE, REPO, golden, weights_in

from timm_mobilenext.weights.authors import SOURCES
from timm_mobilenext.weights.convert import convert
from timm_mobilenext.weights.download import git_blob_id, read

LOCATE = """
from timm_mobilenext.weights.download import locate
print(locate(timm.get_pretrained_cfg('mobilenext_100')).text)"""


@pytest.mark.slow
def test_authors_file(server, client):
    """Without a pin the authors' file is loaded, raw weights or EMA; after that it needs no network."""
    names = sorted(SOURCES)
    foreign = server.hub / REPO  # of whoever registered the name
    foreign.mkdir(parents=True)
    (foreign / 'model.safetensors').write_text('weights')
    first = client.run(golden(*names))
    assert '100%' in client.stderr  # of the progress bar
    assert server.log == [f'GET /files/{name}/model_best.pth.tar' for name in names]
    assert weights_in(client.torch_cache) == [
        f'mobilenext-{name}-{git_blob_id(server.files / name / "model_best.pth.tar")[:8]}.pth.tar' for name in names]
    server.log.clear()
    assert client.run(golden(*names), HF_HUB_OFFLINE='1') == first
    assert server.log == []


def test_arguments(server, client):
    """The arguments of timm for classes, channels, features, caches and config work as with its own networks."""
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
    """A pinned commit is loaded from the Hub, and offline from its cache, even if the repository has changed."""
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
    """If the Hub hides the repository, is down, is not a Hub, or does not answer, the authors' file is loaded."""
    server.faults['hub'] = fault
    env = {'HF_ENDPOINT': 'http://127.0.0.1:9'} if fault == 'refused' else {}
    client.run(
        'from timm_mobilenext.weights import download; download.CONNECT_SECONDS = 0.5\n' + golden('mobilenext_100'),
        HF_TOKEN='', HF_HUB_DISABLE_IMPLICIT_TOKEN='1', **env)
    assert "Taking the authors' file" in client.stderr
    assert not weights_in(client.hub_cache)


def test_what_the_user_names(on_hub, server, client):
    """If a repository that the user names is missing, that is an error; nothing else is loaded."""
    message = client.fail(CREATE.format(", pretrained_cfg_overlay=dict(hf_hub_id='me/mine')"))
    assert message.startswith('RepositoryNotFoundError: ')
    assert not any('/files/' in request for request in server.log)


@pytest.mark.slow
def test_damaged_hub_cache(on_hub, client):
    """A cached file of the Hub that lost its end is not loaded, and the error names it."""
    client.run(CREATE.format(''))
    file, = client.hub_cache.glob('*/snapshots/*/model.safetensors')
    os.truncate(file.resolve(), 10_000_000)
    message = client.fail(CREATE.format(''))
    assert message.startswith(f'RuntimeError: {file} was not loaded (SafetensorError)')


def test_architectures_without_weights():
    """Architectures without published weights say so as timm does, and say what a user can do."""
    for name in set(timm.list_models(module='mobilenext')) - set(SOURCES):
        with pytest.raises(RuntimeError, match=f'No pretrained weights exist for {name}. '):
            timm.create_model(name, pretrained=True)
    assert timm.get_pretrained_cfg('mobilenext_100').tag == 'in1k'


@pytest.mark.slow
def test_local_files(tmp_path, known_files):
    """The authors' kind of file and a converted one work with the arguments that docs/weights.md lists for them."""
    official_file = known_files['mobilenext_s']
    folder = convert(official_file, tmp_path / 'converted')
    converted = folder / 'model.safetensors'
    with_official = tmp_path / 'official'
    with_official.mkdir()
    shutil.copy(folder / 'config.json', with_official)
    (with_official / official_file.name).symlink_to(official_file)
    expected = read(converted)

    def check(model: torch.nn.Module, count: int = len(expected)) -> None:
        assert len(model.state_dict()) == count
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())

    for place in (dict(file=str(official_file)), dict(file=str(converted)), folder, with_official):
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
