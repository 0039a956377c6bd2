"""examples/train.py under the launcher: the calls of timm's train.py, on one process and on two under torchrun."""
import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

ROOT = Path(__file__).parents[2]
# trainings of half a minute each, with signals that only Linux and macOS have
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group('ddp'), pytest.mark.skipif(
    sys.platform == 'win32', reason='torchrun asks for libuv, without which PyTorch is built here')]
EPOCHS, UPDATES = 2, 44  # updates an epoch: 1437 images in batches of 32
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
# Runs the script that follows it, and kills, by the count of updates and of what was written, not by the clock: first
# rank 1 in the middle of the second epoch, then rank 0 half-way through the checkpoint of that epoch.
KILLER = """
import os, runpy, signal, sys
from pathlib import Path
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

kills = Path(__file__).with_name('kills')
killed = len(kills.read_text()) if kills.exists() else 0
rank = int(os.environ['RANK'])
updates = 0

def kill():
    with kills.open('a') as file:
        file.write('x')
    os.kill(os.getpid(), signal.SIGKILL)

def count_updates(*args):
    global updates
    updates += 1
    if updates == 66:
        kill()

class Half:
    def __init__(self, path):
        self.file = open(path, 'wb', buffering=0)
        self.half = path.with_name('checkpoint-0.pth.tar').stat().st_size // 2

    def write(self, data):
        self.file.write(data)
        if self.file.tell() > self.half:
            kill()

def save(state, path):
    real_save(state, Half(Path(path)) if state['epoch'] == 1 else path)

if rank == 1 and killed == 0:
    register_optimizer_step_post_hook(count_updates)
if rank == 0 and killed == 1:
    real_save, torch.save = torch.save, save
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def command(digits: Path, output: Path, processes: int = 1, killer: Path | None = None, **options) -> list[str]:
    """Return the command that trains on the digits in batches of 32 altogether, from the newest checkpoint on."""
    output.mkdir(exist_ok=True)
    (output / 'recipe.yaml').write_text(RECIPE)
    python = [sys.executable]
    if processes > 1:
        python += ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}', '--max-restarts=6']
    options = {
        'config': output / 'recipe.yaml', 'data-dir': digits, 'output': output, 'model': 'mobilenext_035',
        'num-classes': 10, 'img-size': 48, 'epochs': EPOCHS, 'batch-size': 32 // processes, **options}
    return [
        *python, '-m', 'timm_mobilenext', '--resume-newest', output, *filter(None, [killer]),
        ROOT / 'examples' / 'train.py',
        *(f'--{key}={value}' for key, value in options.items())]


def run(*args, **kwargs) -> tuple[str, str]:
    """Run the command and return what it printed, and what it said on stderr."""
    result = subprocess.run(
        command(*args, **kwargs), capture_output=True, text=True, timeout=1800,
        env={**os.environ, 'TORCH_DISABLE_SHARE_RDZV_TCP_STORE': '1'})
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


@pytest.fixture(scope='module')
def alone(digits, tmp_path_factory) -> tuple[Path, str]:
    """Train on one process with data workers that are spawned; return the folder and what was printed."""
    output = tmp_path_factory.mktemp('alone')
    return output, run(digits, output, **{'start-method': 'spawn'})[0]


def top1(output: Path) -> float:
    """Return the accuracy after the last epoch."""
    *_, last = csv.DictReader((output / 'summary.csv').open())
    assert int(last['epoch']) == EPOCHS - 1
    return float(last['eval_top1'])


def weights(printed: str) -> list[str]:
    """Return what the ranks print of their weights at the end."""
    return sorted(re.findall(r'^rank .*', printed, re.MULTILINE))


def assert_same_files(output: Path, expected: Path) -> None:
    """Check that two trainings wrote the same summary, and the same weights, average and optimizer in checkpoints."""
    assert {path.name for path in output.iterdir()} == {path.name for path in expected.iterdir()}
    assert (output / 'summary.csv').read_text() == (expected / 'summary.csv').read_text()
    for path in expected.glob('*.pth.tar'):
        ours, theirs = (torch.load(folder / path.name, weights_only=True) for folder in (output, expected))
        assert [ours[key] for key in ('epoch', 'metric')] == [theirs[key] for key in ('epoch', 'metric')]
        for key in ('state_dict', 'state_dict_ema'):
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0)
        torch.testing.assert_close(ours['optimizer']['state'], theirs['optimizer']['state'], rtol=0, atol=0)


def test_one_process(alone):
    """A MobileNeXt learns the digits on one process, and its checkpoint is one of timm's."""
    output, printed = alone
    assert f'rank 0 of 1: {EPOCHS * UPDATES} updates' in printed
    assert top1(output) > 40  # chance is 10
    timm.create_model('mobilenext_035', num_classes=10, checkpoint_path=output / 'model_best.pth.tar')


def test_one_process_resumed(alone, digits, tmp_path):
    """Resumed from an epoch before, one process ends with the same weights and files, however its workers start."""
    output = tmp_path / 'resumed'
    output.mkdir()
    first, *_ = sorted(alone[0].glob('checkpoint-*.pth.tar'))
    shutil.copy(first, output)
    shutil.copy(alone[0] / 'summary.csv', output)
    assert weights(run(digits, output)[0]) == weights(alone[1])
    assert_same_files(output, alone[0])


def test_killed(alone, digits, tmp_path):
    """Killed and started again by torchrun, two gloo processes end with the weights and files of an undisturbed run."""
    undisturbed, output = tmp_path / 'undisturbed', tmp_path / 'killed'
    # A rank has threads, beside which a fork can hang. Its own children end with it; a server of processes keeps them.
    spawn = {'start-method': 'spawn'}
    expected, _ = run(digits, undisturbed, processes=2, **spawn)
    schedule = re.compile(r'(epoch \d: lr \S+),')
    assert schedule.findall(expected) == schedule.findall(alone[1])
    assert len(weights(expected)) == 2
    assert len({line.partition(': ')[2] for line in weights(expected)}) == 1
    assert top1(undisturbed) == pytest.approx(top1(alone[0]), abs=15)

    (tmp_path / 'killer.py').write_text(KILLER)
    printed, stderr = run(digits, output, processes=2, killer=tmp_path / 'killer.py', **spawn)
    assert (tmp_path / 'kills').read_text() == 'xx'
    assert set(re.findall('timm_mobilenext: (.*)', stderr)) == {
        f'starts from the beginning, no checkpoint in {output}',
        f'resumes from {output / "checkpoint-0.pth.tar"}',
        f'skips {output / "tmp.pth.tar"}, which is damaged or incomplete'}
    assert {*weights(printed)} == {*weights(expected)}  # rank 1 says it twice if it was done when rank 0 was killed
    assert_same_files(output, undisturbed)
