"""tools/release.py: the authors' weights onto the Hub, the pins, and the check that a release takes no others."""
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from client import REPO
from safetensors import safe_open
from safetensors.torch import save_file

import timm_mobilenext
from timm_mobilenext.weights.authors import SOURCES

ROOT = Path(__file__).parent.parent
VERSION = timm_mobilenext.__version__
RUN = """
import runpy, sys
sys.argv = ['release.py', *{}]
runpy.run_path('checkout/tools/release.py', run_name='__main__')"""


@pytest.fixture
def checkout(client) -> Path:
    """What the tool needs of a checkout that is about to be released."""
    folder = client.folder / 'checkout'
    for source in (ROOT / 'tools' / 'release.py', Path(timm_mobilenext.__file__).with_name('mobilenext.py')):
        target = folder / source.parent.name / source.name
        target.parent.mkdir(parents=True)
        shutil.copy(source, target)
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


def test_publish_then_check(server, client, checkout, release):
    """One command puts all five on the Hub and pins them, again after a failure, and then alone the check passes."""
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
    assert commits(server) == [f'{name}.in1k' for name in SOURCES]
    found = re.findall(r"hf_hub_id='(timm-mobilenext/(\w+)\.in1k@[0-9a-f]{40})'", models.read_text())
    pins = {name: pin for pin, name in found}
    assert pins.keys() == SOURCES.keys()
    assert lines[-5:] == [f"hf_hub_id='{pin}'" for pin in pins.values()]
    assert re.sub(r'@[0-9a-f]{40}', '', models.read_text()) == re.sub(r'@[0-9a-f]{40}', '', before)
    assert release('check', '--tag', f'v{VERSION}', pins=pins) == (0, ["5 pins, their weights are the authors'"])

    assert release('publish', pins=pins)[1][-5:] == lines[-5:]
    assert len(commits(server)) == 5


def test_check_before_publishing(server, release):
    """While nothing is pinned the check fails, with a line for each, and asks nobody."""
    code, lines = release('check')
    assert code == 1
    assert lines == [
        f'no release: {name}.in1k is not pinned to a commit (`python tools/release.py publish --write`)'
        for name in sorted(SOURCES)]
    assert server.log == []


@pytest.mark.parametrize(('fault', 'said'), [
    ('none', None),
    ('branch', f'{REPO}@main is not pinned to a commit'),
    ('no such commit', 'RevisionNotFoundError: '),
    ('branch like a commit', f'the Hub takes {"0" * 40} for a name of '),
    ('one bit', r'other values in 1 of \d+ tensors, e.g. classifier.bias'),
    ('one tensor less', 'other tensors: classifier.bias'),
    ('another origin', f'the header says git blob id {"0" * 40}, expected '),
    ("authors' file", r'RuntimeError: \S+/files/mobilenext_100/model_best.pth.tar gave \d+ bytes with git blob id'),
])
def test_check_of_one_pin(fault, said, on_hub, server, client, release):
    """A pin is refused that is no commit, or whose weights differ by a bit, or in what their header says of them."""
    file = server.hub / REPO / 'model.safetensors'
    with safe_open(file, 'pt') as opened:
        metadata = opened.metadata()
        weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it is no dictionary
    if fault == 'one bit':
        weights['classifier.bias'].view(torch.int32)[0] ^= 1
    elif fault == 'one tensor less':
        del weights['classifier.bias']
    elif fault == 'another origin':
        metadata['git_blob_id'] = '0' * 40
    elif fault == 'branch like a commit':
        server.branches.add('0' * 40)
    elif fault == "authors' file":
        served = server.files / 'mobilenext_100'
        content = (served / 'model_best.pth.tar').read_bytes()
        served.unlink()
        served.mkdir()
        (served / 'model_best.pth.tar').write_bytes(content[:-1] + b'x')
    save_file(weights, file, metadata=metadata)
    commit = server.revision(REPO)
    revision = {'branch': 'main', 'no such commit': '0' * 40, 'branch like a commit': '0' * 40}.get(fault, commit)
    code, lines = release('check', pins={'mobilenext_100': f'{REPO}@{revision}'})
    assert code == 1
    others = [line for line in lines if 'mobilenext_100.in1k' not in line]
    assert len(others) == 4  # which are not pinned
    assert len(lines) == 4 + bool(said)
    if said:
        found, = set(lines) - set(others)
        assert re.search(said, found), found


@pytest.mark.parametrize(('tag', 'changelog', 'said'), [
    ('v0.0.0', f'## [{VERSION}] - 2026-01-31\n', f'the tag is v0.0.0, but the package is v{VERSION}'),
    (VERSION, f'## [{VERSION}] - 2026-01-31\n', f'the tag is {VERSION}, but the package is v{VERSION}'),
    (f'v{VERSION}', '## [Unreleased]\n', f'CHANGELOG.md has no `## [{VERSION}] - YYYY-MM-DD`'),
    (f'v{VERSION}', f'## [{VERSION}] - 2026-01-31\n', None),
])
def test_check_of_tag(tag, changelog, said, checkout, release):
    """A release is of the version of the package, which its changelog has with a date."""
    (checkout / 'CHANGELOG.md').write_text(changelog)
    code, lines = release('check', '--tag', tag)
    assert code == 1
    assert [line for line in lines if 'is not pinned' not in line] == ([f'no release: {said}'] if said else [])
