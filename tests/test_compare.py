"""examples/compare.py: equal multiply-adds, trainings that go on, and docs/compare.md says what its CSV files say."""
import csv
import os
import re
import runpy
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
from timm.models._efficientnet_blocks import InvertedResidual

from timm_mobilenext import SandGlass

ROOT = Path(__file__).parent.parent
COMPARE = runpy.run_path(str(ROOT / 'examples' / 'compare.py'))
QUESTIONS = COMPARE['QUESTIONS']


def results(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('question', QUESTIONS)
def test_equal_multiply_adds(question, channels):
    """The multiply-adds of the networks of a question differ by under 1.5 %."""
    madds = [COMPARE['count'](label, channels)[1] for label in QUESTIONS[question]]
    assert max(madds) < 1.015 * min(madds)


def test_exchanged_network():
    """All inverted residuals, and nothing else, have given way to SandGlass blocks of the same strides."""
    plain, exchanged = (
        timm.create_model(name, num_classes=10, in_chans=1, **kwargs) for name, kwargs in (
            ('mobilenetv2_050', {}), COMPARE['MODELS']['MobileNetV2 of SandGlass']))
    names = [name for name, module in plain.named_modules() if isinstance(module, InvertedResidual)]
    assert names == [name for name, module in exchanged.named_modules() if isinstance(module, SandGlass)]
    assert not any(isinstance(module, InvertedResidual) for module in exchanged.modules())
    places = re.compile('|'.join(rf'{re.escape(name)}\.' for name in names))
    shapes, others = (
        {key: value.shape for key, value in model.state_dict().items() if not places.match(key)}
        for model in (plain, exchanged))
    assert shapes == others
    x = torch.randn(2, 1, 64, 64)
    sizes, others = ([f.shape[-2:] for f in model.forward_intermediates(x, intermediates_only=True)] for model in (
        plain, exchanged))
    assert sizes == others
    # where an inverted residual has a shortcut so has what took its place, but for the channels of the first and last
    assert all(
        exchanged.get_submodule(name).identity_chs == exchanged.get_submodule(name).out_chs
        for name in names if plain.get_submodule(name).has_skip)


def test_identity_ratios():
    """The networks of the second question differ in nothing but the share of the channels that takes the shortcuts."""
    models = {
        label: timm.create_model(COMPARE['MODELS'][label][0], device='meta', **COMPARE['MODELS'][label][1])
        for label in QUESTIONS['identity']}
    shares = {
        label: {block.identity_chs / block.out_chs for block in model.modules()
                if isinstance(block, SandGlass) and block.identity_chs}
        for label, model in models.items()}
    assert shares['MobileNeXt'] == {1.}
    assert shares['identity 1/2'] == {0.5}
    assert all(0.3 < share <= 1 / 3 for share in shares['identity 1/3'])
    assert all(0.22 < share <= 1 / 4 for share in shares['identity 1/4'])
    assert shares['identity 0'] == set()
    assert len({tuple((k, v.shape) for k, v in model.state_dict().items()) for model in models.values()}) == 1


@pytest.fixture
def folders(digits, tmp_path) -> list[str]:
    """Return options: Fashion-MNIST's files with few images, of noise, and the digits as photographs."""
    raw = tmp_path / 'data' / 'FashionMNIST' / 'raw'
    raw.mkdir(parents=True)
    for name, images in (('train', 80), ('t10k', 20)):
        pixels = torch.randint(256, (images, 28, 28), dtype=torch.uint8).numpy().tobytes()
        (raw / f'{name}-images-idx3-ubyte').write_bytes(struct.pack('>4i', 0x803, images, 28, 28) + pixels)
        labels = bytes(i % 10 for i in range(images))
        (raw / f'{name}-labels-idx1-ubyte').write_bytes(struct.pack('>2i', 0x801, images) + labels)
    colour = tmp_path / 'digits'
    colour.mkdir()
    (colour / 'train').symlink_to(digits / 'train')
    (colour / 'test').symlink_to(digits / 'validation')
    return ['--data-dir', str(tmp_path / 'data'), '--photographs', str(colour), '--images', '70', '20']


def test_comparison_goes_on_where_it_was(folders, tmp_path):
    """Each network is trained on each set with each seed, once, Ctrl-C or not; a row that is lost comes back alike."""
    pytest.importorskip('matplotlib', reason="the extra 'compare' is not installed")
    path = tmp_path / 'output' / 'trainings.csv'

    def start() -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, str(ROOT / 'examples' / 'compare.py'), *folders, '--questions', 'block', '--epochs', '1',
             '--seeds', '2', '--output', str(tmp_path / 'output')], start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})

    def finish() -> str:
        with start() as process:
            printed, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        return printed

    with start() as process:
        while not path.exists() and process.poll() is None:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        _, errors = process.communicate(timeout=60)
    assert 'KeyboardInterrupt' in errors
    before = results(path)
    assert 1 <= len(before) < 8

    printed = finish()
    rows = results(path)
    assert rows[:len(before)] == before
    assert Counter((row['set'], row['label'], row['seed']) for row in rows) == Counter(
        (name, label, seed) for name in ('Fashion-MNIST', 'digits') for label in QUESTIONS['block'] for seed in '01')
    for name in ('Fashion-MNIST', 'digits'):
        images = [p.parent for p in (tmp_path / 'output' / 'images' / f'{name}-70-20').glob('*/*/*.png')]
        assert sorted(Counter(images).values()) == [2] * 10 + [7] * 10
    assert COMPARE['table']('block', results(tmp_path / 'output' / 'block.csv')) in printed
    assert (tmp_path / 'output' / 'block.png').read_bytes().startswith(b'\x89PNG')

    lines = path.read_text().splitlines(keepends=True)
    path.write_text(''.join(lines[:-1]))
    finish()
    again = results(path)
    for row in (rows[-1], again[-1]):
        del row['cpu_seconds']
    assert again == rows


@pytest.mark.parametrize('question', QUESTIONS)
def test_committed_results(question):
    """The page has the table of the CSV: every network on both sets with three seeds, and true counts."""
    rows = results(ROOT / 'docs' / f'compare-{question}.csv')
    page = (ROOT / 'docs' / 'compare.md').read_text()
    names = {row['set'] for row in rows}
    assert len(names) == 2
    assert Counter((row['set'], row['label'], row['seed']) for row in rows) == Counter(
        (name, label, seed) for name in names for label in QUESTIONS[question] for seed in '012')
    for row in rows:
        channels = 1 if row['set'] == 'Fashion-MNIST' else 3
        assert (int(row['params']), int(row['madds'])) == COMPARE['count'](row['label'], channels)
    assert COMPARE['table'](question, rows) in page
