"""examples/compare.py: equal multiply-adds and starts, trainings that resume, and docs/compare.md says what was run."""
import csv
import runpy
import signal
import struct
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import torch
from timm.models._efficientnet_blocks import InvertedResidual

from timm_mobilenext import SandGlass

ROOT = Path(__file__).parent.parent
COMPARE = runpy.run_path(str(ROOT / 'examples' / 'compare.py'))
QUESTIONS, create = COMPARE['QUESTIONS'], COMPARE['create']


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
    """All inverted residuals have given way to SandGlass blocks of the same strides and shortcuts."""
    plain, exchanged = (
        create(label, num_classes=10, in_chans=1) for label in ('MobileNetV2', 'MobileNetV2 of SandGlass'))
    names = [name for name, module in plain.named_modules() if isinstance(module, InvertedResidual)]
    assert names == [name for name, module in exchanged.named_modules() if isinstance(module, SandGlass)]
    x = torch.randn(2, 1, 64, 64)
    sizes, others = ([f.shape[-2:] for f in model.forward_intermediates(x, intermediates_only=True)] for model in (
        plain, exchanged))
    assert sizes == others
    assert all(
        exchanged.get_submodule(name).identity_chs == exchanged.get_submodule(name).out_chs
        for name in names if plain.get_submodule(name).has_skip)


@pytest.mark.parametrize('label', COMPARE['MODELS'])
def test_same_start(label):
    """At the start a block does not change the channels that have a shortcut, in MobileNetV2 either."""
    blocks = [m for m in create(label).modules() if isinstance(m, (InvertedResidual, SandGlass))]
    skips = [
        (block, block.identity_chs if isinstance(block, SandGlass) else block.conv_pw.in_channels) for block in blocks
        if (block.identity_chs if isinstance(block, SandGlass) else block.has_skip)]
    assert bool(skips) == (label != 'identity 0')
    for block, chs in skips:
        first = block.dw_start.conv if hasattr(block, 'dw_start') else block.conv_pw
        x = torch.randn(2, first.in_channels, 8, 8)
        torch.testing.assert_close(block(x)[:, :chs], x[:, :chs])


@pytest.fixture
def command(digits, tmp_path) -> list[str]:
    """Return a command that compares two blocks on Fashion-MNIST's files, of noise, and on digits as photographs."""
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
    return [
        sys.executable, str(ROOT / 'examples' / 'compare.py'), '--data-dir', str(tmp_path / 'data'), '--photographs',
        str(colour), '--questions', 'block', '--batch-size', '32', '--epochs', '2', '--seeds', '0', '1']


@pytest.mark.slow
def test_comparison_resumes(command, tmp_path):
    """Each network is trained on each set with each seed, once; killed and resumed it ends with the same figures."""
    pytest.importorskip('matplotlib', reason="the extra 'compare' is not installed")

    def figures(output: Path) -> list[dict[str, str]]:
        return [{**row, 'cpu_seconds': ''} for row in results(output / 'block.csv')]

    printed = subprocess.run(
        [*command, '--output', str(tmp_path / 'once')], check=True, capture_output=True, text=True, timeout=600).stdout
    rows = figures(tmp_path / 'once')
    assert Counter((row['set'], row['label'], row['seed']) for row in rows) == Counter(
        (name, label, seed) for name in ('Fashion-MNIST', 'digits') for label in QUESTIONS['block']
        for seed in '01' for _ in range(2))
    assert COMPARE['table']('block', results(tmp_path / 'once' / 'block.csv')) in printed
    assert (tmp_path / 'once' / 'block.png').read_bytes().startswith(b'\x89PNG')

    command += ['--output', str(tmp_path / 'twice')]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        next(line for line in process.stdout if 'seed 1, epoch 1 of 2' in line)
        process.send_signal(signal.SIGKILL)
    again = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
    assert 0 < again.count('epoch 2 of 2') < printed.count('epoch 2 of 2')
    assert figures(tmp_path / 'twice') == rows


@pytest.mark.parametrize('question', QUESTIONS)
def test_committed_results(question):
    """The page has the table of the CSV: three seeds of each network on both sets, with its true counts."""
    rows = results(ROOT / 'docs' / f'compare-{question}.csv')
    assert {(row['set'], row['label'], row['seed']) for row in rows} == set(
        product(('CIFAR-10-JPEG', 'Fashion-MNIST'), QUESTIONS[question], '012'))
    for key in {(row['set'], row['label'], row['params'], row['madds']) for row in rows}:
        name, label, *counts = key
        assert [*map(int, counts)] == [*COMPARE['count'](label, 1 if name == 'Fashion-MNIST' else 3)]
    assert COMPARE['table'](question, rows) in (ROOT / 'docs' / 'compare.md').read_text()
