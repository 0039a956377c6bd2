"""examples/ddp.py under the launcher: the calls of timm's train.py, on one process and on two under torchrun."""
import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

ROOT = Path(__file__).parent.parent
EPOCHS, UPDATES = 3, 44  # updates an epoch: 1437 images in batches of 32
RECIPE = """
opt: adamw
lr_base: 8.0e-3
lr_base_size: 32
sched: cosine
sched_on_updates: true
warmup_epochs: 1
model_ema: true
model_ema_decay: 0.9
model_ema_warmup: true
scale: [0.9, 1.0]
hflip: 0.0
color_jitter: 0.0
channels_last: true
clip_grad: 5.0
"""


def command(digits: Path, output: Path, processes: int = 1, **options) -> list[str]:
    """Return the command that trains on the digits in batches of 32 altogether."""
    output.mkdir(exist_ok=True)
    (output / 'recipe.yaml').write_text(RECIPE)
    python = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(processes)]
    options = {
        'config': output / 'recipe.yaml', 'data-dir': digits, 'output': output, 'model': 'mobilenext_035',
        'num-classes': 10, 'img-size': 48, 'epochs': EPOCHS, 'batch-size': 32 // processes, **options}
    return [
        *(python if processes > 1 else python[:1]), '-m', 'timm_mobilenext', str(ROOT / 'examples' / 'ddp.py'),
        *(f'--{key}={value}' for key, value in options.items())]


def run(*args, **kwargs) -> str:
    """Run the command and return what it printed."""
    result = subprocess.run(command(*args, **kwargs), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope='module')
def alone(digits, tmp_path_factory) -> tuple[Path, str]:
    """Train on one process with data workers that are spawned; return the folder and what was printed."""
    output = tmp_path_factory.mktemp('alone')
    return output, run(digits, output, **{'start-method': 'spawn'})


def top1(output: Path) -> float:
    """Return the accuracy after the last epoch."""
    *_, last = csv.DictReader((output / 'summary.csv').open())
    assert int(last['epoch']) == EPOCHS - 1
    return float(last['eval_top1'])


def test_one_process(alone):
    """A MobileNeXt learns the digits on one process, and its checkpoint is one of timm's."""
    output, printed = alone
    assert f'rank 0 of 1: {EPOCHS * UPDATES} updates' in printed
    assert top1(output) > 80
    timm.create_model('mobilenext_035', num_classes=10, checkpoint_path=output / 'model_best.pth.tar')


@pytest.mark.skipif(sys.platform == 'win32', reason='torchrun asks for libuv, without which PyTorch is built here')
def test_two_processes_stopped_and_resumed(alone, digits, tmp_path):
    """Two gloo processes under torchrun, stopped and resumed, end with equal weights and the accuracy of one process.

    The resumed run goes on with the next epoch, the learning rate of the schedule and the optimizer's state.
    """
    options = dict(processes=2)
    with subprocess.Popen(
            command(digits, tmp_path, **options), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True) as process:
        first = next(line for line in process.stdout if line.startswith('epoch 0'))
        process.terminate()
    printed = first + run(digits, tmp_path, resume=tmp_path / 'last.pth.tar', **options)

    ranks = dict(re.findall(r'rank (\d) of 2: (.*)', printed))
    assert sorted(ranks) == ['0', '1']
    assert len(set(ranks.values())) == 1
    schedule = re.compile(r'(epoch \d: lr \S+),')
    assert schedule.findall(printed) == schedule.findall(alone[1])
    checkpoint = torch.load(tmp_path / 'last.pth.tar', weights_only=True)
    assert checkpoint['epoch'] == EPOCHS - 1
    assert {int(state['step']) for state in checkpoint['optimizer']['state'].values()} == {EPOCHS * UPDATES}
    assert top1(tmp_path) == pytest.approx(top1(alone[0]), abs=15)
