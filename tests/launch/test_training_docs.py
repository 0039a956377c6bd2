"""docs/training.md: its commands run, in order, in one folder; those for a GPU or the network say so."""
import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm
from pages import DOCS, commands

from timm_mobilenext.launch import recipe

ROOT = Path(__file__).parents[2]
TEXT = (DOCS / 'training.md').read_text()
SCRIPTS = 'pytorch-image-models'
# what makes the commands short enough for a test, behind the options that they have
SHORT = {
    'train.py': '--model mobilenext_035 --epochs 1 --warmup-epochs 0 -b 128 -j 1',
    'validate.py': '--model mobilenext_035 -j 1',
    'inference.py': '--model mobilenext_035 -j 1',
}
NEEDS = {'inference.py': 'pandas', 'wds/': 'webdataset'}
COMMANDS = commands(TEXT)


@pytest.fixture(scope='module')
def folder(digits, tmp_path_factory) -> Path:
    """A folder as the page has it: the recipes, images, shards and a teacher; the scripts where there is a checkout."""
    folder = tmp_path_factory.mktemp('training')
    (folder / 'examples').symlink_to(ROOT / 'examples')
    for name in ('scratch', 'finetune'):
        assert recipe.main([name, '--output', str(folder / f'{name}.yaml')]) == 0
    (folder / 'images').symlink_to(digits)
    (folder / 'shards').mkdir()
    for name, split, part in (
            ('train-0000', 'train', 0), ('train-0001', 'train', 1), ('validation-0000', 'validation', None)):
        with tarfile.open(folder / 'shards' / f'{name}.tar', 'w') as tar:
            for i, path in enumerate(sorted((digits / split).rglob('*.png'))):
                if part in (None, i % 2):
                    tar.add(path, f'{path.stem}.png')
                    label = path.with_suffix('.cls')
                    label.write_text(path.parent.name)
                    tar.add(label, f'{path.stem}.cls')
                    label.unlink()
    teacher = timm.create_model('test_efficientnet', num_classes=10)
    timm.models.save_for_hf(teacher, str(folder / 'teacher'))
    return folder


def test_marks():
    """The marks of commands that no test runs are the network and GPUs."""
    assert set(re.findall(r'# needs (.*)', TEXT)) == {'the network', 'GPUs'}
    assert len(COMMANDS) > 8


@pytest.mark.parametrize('command', COMMANDS, ids=lambda text: ' '.join(re.findall(r'\w+\.py', text)))
def test_command(command, folder, tmp_path, request):
    """The command runs, shortened."""
    words = shlex.split(command, comments=True)
    for key, module in NEEDS.items():
        if any(key in word for word in words) and not importlib.util.find_spec(module):
            pytest.skip(f'{module} is not installed')
    if words[0] == 'torchrun' and sys.platform == 'win32':
        pytest.skip('torchrun asks for libuv, without which PyTorch is built here')
    if SCRIPTS in command and not (folder / SCRIPTS).exists():
        (folder / SCRIPTS).symlink_to(request.getfixturevalue('timm_scripts'))
    programs = {'python': [sys.executable], 'torchrun': [sys.executable, '-m', 'torch.distributed.run']}
    script = [Path(word).name for word in words if word.endswith('.py') or word == 'recipe'][-1]
    short = SHORT.get(script, '')
    variables = dict(word.split('=') for word in itertools.takewhile(lambda word: '=' in word, words))
    program, *args = words[len(variables):]
    result = subprocess.run(
        [*programs[program], *args, *short.split()], cwd=tmp_path if script == 'recipe' else folder,
        capture_output=True, text=True, timeout=600, env={**os.environ, 'OMP_NUM_THREADS': '1', **variables})
    assert result.returncode == 0, result.stderr
