"""tools/release.py: publishing weights, their pins, the check before a release, and the answers of the weights."""
import json
import pickle
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import official
import pytest
import timm
import torch
from client import REPO
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import timm_mobilenext
from timm_mobilenext.weights.authors import REPRODUCTIONS, SOURCES
from timm_mobilenext.weights.download import git_blob_id

ROOT = Path(__file__).parent.parent
VERSION = timm_mobilenext.__version__
NAMES = [*(f'{name}.in1k' for name in SOURCES), *REPRODUCTIONS]  # in the order in which they are published
TOOL = runpy.run_path(str(ROOT / 'tools' / 'release.py'))
RUN = """
import runpy, sys
sys.argv = ['release.py', *{}]
runpy.run_path('checkout/tools/release.py', run_name='__main__')"""


@pytest.fixture
def checkout(client) -> Path:
    """The files of a checkout that the tool needs."""
    folder = client.folder / 'checkout'
    for source in (ROOT / 'tools' / 'release.py', Path(timm_mobilenext.__file__).with_name('mobilenext.py')):
        (folder / source.parent.name).mkdir(parents=True)
        shutil.copy(source, folder / source.parent.name)
    (folder / 'CHANGELOG.md').write_text(f'# Changelog\n\n## [{VERSION}] - 2026-01-31\n')
    return folder


@pytest.fixture
def release(client, checkout):
    """A function that runs the tool with arguments and pins, and returns its exit code and the lines it prints."""
    def run(*args: str, pins: dict[str, str] | None = None) -> tuple[int, list[str]]:
        code = client.wait(client.start(RUN.format(list(args)), PINS=json.dumps(pins or {})))
        return code, client.stdout.splitlines()
    return run


def commits(server) -> list[str]:
    """The repositories that were committed to, in order."""
    return [request.split('/')[4] for request in server.log if '/commit/' in request]


@pytest.mark.slow  # converts and uploads all five, twice
def test_publish_then_check(server, client, checkout, release):
    """One command puts all six on the Hub and pins them, again after a failure, and only then the check passes."""
    models = checkout / 'timm_mobilenext' / 'mobilenext.py'
    before = models.read_text()
    foreign = server.hub / 'timm-mobilenext' / 'mobilenext_s.in1k'  # of someone who was there first
    foreign.mkdir(parents=True)
    save_file({'weight': torch.zeros(1)}, foreign / 'model.safetensors')
    code, _ = release('publish', '--write')
    assert code == 1
    assert 'error: timm-mobilenext/mobilenext_s.in1k has other weights' in client.stderr
    assert commits(server) == ['mobilenext_100.in1k', 'mobilenext_100_id050.in1k']
    assert models.read_text() == before

    shutil.rmtree(foreign)
    code, lines = release('publish', '--write')
    assert code == 0, client.stderr
    assert commits(server) == NAMES
    found = re.findall(r"'([\w.]+)': '([0-9a-f]{40})'", models.read_text())
    pins = {name.removesuffix('.in1k'): f'timm-mobilenext/{name}@{revision}' for name, revision in found}
    assert pins.keys() == {*SOURCES, *REPRODUCTIONS}
    assert set(lines[-6:]) == {f"hf_hub_id='{pin}'" for pin in pins.values()}
    assert re.sub("'[0-9a-f]{40}'", "''", models.read_text()) == before
    assert release('check', '--tag', f'v{VERSION}', pins=pins) == (
        0, ['6 pins, their weights are those of their sources'])
    card = (server.hub / 'timm-mobilenext' / 'mobilenext_100.paddle_in1k' / 'README.md').read_text()
    assert 'license: apache-2.0' in card
    assert 'not verified: no digest of the file is known' in card

    assert release('publish', pins=pins)[1][-6:] == lines[-6:]
    assert len(commits(server)) == 6


@pytest.mark.parametrize(('tag', 'changelog', 'said'), [
    (f'v{VERSION}', f'## [{VERSION}] - 2026-01-31\n', []),
    ('v0.0.0', f'## [{VERSION}] - 2026-01-31\n', [f'no release: the tag is v0.0.0, but the package is v{VERSION}']),
    (f'v{VERSION}', '## [Unreleased]\n', [f'no release: CHANGELOG.md has no `## [{VERSION}] - YYYY-MM-DD`']),
])
def test_check_before_publishing(tag, changelog, said, checkout, server, release):
    """The check fails for each name without a pin, for another tag and for a changelog without the version's date."""
    (checkout / 'CHANGELOG.md').write_text(changelog)
    assert release('check', '--tag', tag) == (1, said + [
        f'no release: {name} is not pinned to a commit (`python tools/release.py publish --write`)'
        for name in sorted(NAMES)])
    assert server.log == []


@pytest.mark.slow  # a process for each fault
@pytest.mark.parametrize(('fault', 'said'), [
    ('branch', f'{REPO}@main is not pinned to a commit'),
    ('no such commit', 'RevisionNotFoundError: '),
    ('one bit', r'1 of \d+ tensors differ, e.g. classifier.bias'),
    ('another origin', f'the header says git blob id {"0" * 40}, expected '),
    ("authors' file", r'RuntimeError: \S+/files/mobilenext_100/model_best.pth.tar gave a file with git blob id'),
])
def test_check_of_one_pin(fault, said, on_hub, server, client, release):
    """A pin is refused that is not a commit, or whose weights or header are not those of the authors' file."""
    file = server.hub / REPO / 'model.safetensors'
    with safe_open(file, 'pt') as opened:
        metadata = opened.metadata()
        weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it is no dictionary
    if fault == 'one bit':
        weights['classifier.bias'].view(torch.int32)[0] ^= 1
    elif fault == 'another origin':
        metadata['git_blob_id'] = '0' * 40
    elif fault == "authors' file":
        served = server.files / 'mobilenext_100'
        served.unlink()
        served.mkdir()
        (served / 'model_best.pth.tar').write_bytes(b'x')
    save_file(weights, file, metadata=metadata)
    revision = {'branch': 'main', 'no such commit': '0' * 40}.get(fault, server.revision(REPO))
    code, lines = release('check', pins={'mobilenext_100': f'{REPO}@{revision}'})
    assert code == 1
    found, = (line for line in lines if 'mobilenext_100.in1k' in line)
    assert re.search(said, found), found


def answering(name: str, probabilities: dict[int, float]) -> dict[str, torch.Tensor]:
    """Return weights of a network that gives some classes these probabilities, whatever the image."""
    model = timm.create_model(name)
    rest = (1 - sum(probabilities.values())) / (model.num_classes - len(probabilities))
    torch.nn.init.zeros_(model.classifier.weight)
    for i in range(model.num_classes):
        model.classifier.bias.data[i] = probabilities.get(i, rest)
    model.classifier.bias.data.log_()
    return model.state_dict()


@pytest.fixture
def photograph(checkout, server) -> Path:
    """A picture in place of the photograph, which the tool knows by its blob id and address."""
    path = server.files / 'photograph.png'
    Image.new('RGB', (300, 260), 'grey').save(path)
    tool = checkout / 'tools' / 'release.py'
    text = tool.read_text().replace(TOOL['PHOTOGRAPH_BLOB'], git_blob_id(path))
    before, after = text.index('PHOTOGRAPH = ('), text.index('PHOTOGRAPH_BLOB = ')
    tool.write_text(f'{text[:before]}PHOTOGRAPH = {f"{server.url}/files/{path.name}"!r}\n{text[after:]}')
    return path


def put_on_hub(server, name: str, probabilities: dict[int, float]) -> str:
    """Put weights that answer so on the Hub, and return the pin of their commit."""
    repo = f'timm-mobilenext/{name}'
    (server.hub / repo).mkdir(parents=True, exist_ok=True)
    save_file(answering(name.partition('.')[0], probabilities), server.hub / repo / 'model.safetensors')
    return f'{repo}@{server.revision(repo)}'


@pytest.mark.slow
def test_verify(server, client, photograph, release):
    """All weights classify one photograph, and the command fails if one of them does not answer as published."""
    usual = {178: 0.5, 3: 0.25, 4: 0.125, 5: 0.0625, 6: 0.03125}
    pins = {name.removesuffix('.in1k'): put_on_hub(server, name, TOOL['ANSWERS'].get(name, usual)) for name in NAMES}
    code, lines = release('verify', pins=pins)
    assert code == 0, client.stderr
    rows = [f'| {name} | 178 0.5000, 3 0.2500, 4 0.1250, 5 0.0625, 6 0.0312 |' for name in NAMES]
    rows[-1] = f'| {NAMES[-1]} | 178 0.8502, 211 0.0157, 246 0.0134, 236 0.0036, 209 0.0035 |'
    assert lines == ['| weights | five most probable classes |', '|---|---|', *sorted(rows)]

    pins['mobilenext_s'] = put_on_hub(server, 'mobilenext_s.in1k', {177: 0.5, 178: 0.25})
    code, lines = release('verify', 'mobilenext_s.in1k', '--photograph', str(photograph), pins=pins)
    assert code == 1
    said = r'not verified: mobilenext_s\.in1k answers 177 0\.5000, .*: expected class 178 first'
    assert re.fullmatch(said, lines[-1])
    photograph.write_bytes(photograph.read_bytes() + b'x')
    assert release('verify')[0] == 1
    assert f' is not {server.url}/files/photograph.png: its git blob id ' in client.stderr


@pytest.mark.parametrize(('changed', 'said'), [
    ({}, ''),
    ({178: 0.8507}, ''),  # in float32, by flytocc's README
    ({178: 0.8525}, 'expected 0.8502, 0.0157, 0.0134, 0.0036, 0.0035, within 0.002'),
    ({209: 0.0037}, 'expected the classes 178, 211, 246, 236, 209'),
])
def test_answers_to_the_photograph(changed, said):
    """PaddleClas's weights give five classes in one order, with probabilities within 0.002."""
    found = TOOL['ANSWERS']['mobilenext_100.paddle_in1k'] | changed
    highest = dict(sorted(found.items(), key=lambda item: -item[1])[:5])
    assert TOOL['mistake']('mobilenext_100.paddle_in1k', highest) == said


@pytest.mark.slow
def test_accuracies(client, photograph, release, timm_scripts):
    """With ImageNet's folder the accuracies of timm's validate.py are printed beside the reported ones."""
    bias = answering('mobilenext_100', {3: 0.5, 1: 0.25, 5: 0.125, 6: 0.0625, 7: 0.03125})['classifier.bias'].numpy()
    weight = np.zeros((1280, 1000), np.float32)
    weights = official.pdparams() | {'classifier.1.weight': weight, 'classifier.1.bias': bias}
    client.torch_cache.mkdir(parents=True)
    (client.torch_cache / REPRODUCTIONS[NAMES[-1]].name).write_bytes(pickle.dumps(weights, 4))
    classes = client.folder / 'imagenet' / 'validation'
    for i in range(5):
        (classes / f'n{i}').mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(classes / f'n{i}' / 'a.png')
    code, lines = release(
        'verify', NAMES[-1], '--photograph', str(photograph), '--data-dir', str(classes.parent),
        '--scripts', str(timm_scripts), '--device', 'cpu', '--batch-size', '5')
    assert lines[-2] == f'| {NAMES[-1]} | 20.000 | 74.022 | 40.000 |  |', client.stderr
    assert code == 1  # it does not see what the photograph shows
    assert lines[-1].startswith('not verified: ')
