"""docs/mobile.md: its commands run, and its Python loads and runs the files that they make."""
import contextlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import need, needs_exporter
from pages import DOCS, commands
from PIL import Image

from timm_mobilenext.deploy import runtimes

TEXT = (DOCS / 'mobile.md').read_text()
SCRIPT = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)[0]
SECTIONS = dict(re.findall(r'^### (.*?)\n(.*?)(?=^##)', TEXT, re.MULTILINE | re.DOTALL))
COMMANDS = {shlex.split(command)[-1]: command for command in commands(TEXT, marked=True)}  # by the folder of the files
# section -> the file that its Python runs
RUNS = {'ONNX Runtime': 'files/model.int8.onnx', 'OpenVINO': 'files/model.xml', 'ExecuTorch': 'files/model.pte',
        'LiteRT': 'tflite/model.tflite', 'ncnn': 'more/model.ncnn.param', 'PyTorch': 'more/model.pt2'}
pytestmark = [needs_exporter, pytest.mark.slow]


@pytest.fixture(scope='module')
def folder(trained, digits, tmp_path_factory) -> Path:
    """A folder as the page has it: a checkpoint, names of classes, images, one image."""
    folder = tmp_path_factory.mktemp('mobile')
    (folder / 'model_best.pth.tar').symlink_to(trained)
    (folder / 'images').symlink_to(digits / 'validation')
    (folder / 'labels.txt').write_text(''.join(f'digit {i}\n' for i in range(10)))
    with Image.open(next((digits / 'validation' / '3').iterdir())) as image:
        image.save(folder / 'image.jpg')
    return folder


def run(output: str, folder: Path) -> None:
    """Run the command of the page that writes a folder, unless another test has run it."""
    words = shlex.split(COMMANDS[output])
    for runtime in set(words) & runtimes.RUNTIMES.keys():
        need(runtime, int8='--int8' in words)
    if not (folder / output).exists():
        subprocess.run([sys.executable, *words[1:]], cwd=folder, check=True, timeout=600)


def test_small(folder):
    """The command that stores only the weights in fewer bits runs; those of the other files run below."""
    run('small', folder)


def test_sections():
    """What runs in Python here is run, and what runs elsewhere says that nobody has run it."""
    assert {title for title, text in SECTIONS.items() if '```python' in text} == RUNS.keys() - {'ONNX Runtime'}
    for language in ('kotlin', 'swift'):
        assert len(re.findall(f'not run:\n\n```{language}', TEXT)) == TEXT.count(f'```{language}') > 0


@pytest.mark.parametrize('section', RUNS)
def test_code(section, folder, capsys):
    """The script, with the lines of a section, prints the label, and gives the answer of `runtimes.load`."""
    output = RUNS[section].partition('/')[0]
    run(output, folder)
    start, session, end = SCRIPT.rsplit('\n\n', 2)
    if section != 'ONNX Runtime':  # whose lines stand in the script
        start = start.replace('import onnxruntime\n', '').replace('files/', f'{output}/')
        session, = re.findall(r'```python\n(.*?)```', SECTIONS[section], re.DOTALL)
    namespace: dict = {}
    with contextlib.chdir(folder):
        exec('\n\n'.join([start, session, end]), namespace)
        expected = runtimes.load(RUNS[section], threads=1)(namespace['image']).flatten()
    logits = namespace['logits']
    logits = np.asarray(logits.detach() if hasattr(logits, 'detach') else logits).flatten()
    np.testing.assert_allclose(logits, expected, atol=1e-2 * expected.std())  # ncnn computes in less than fp32
    assert logits.argmax() == 3
    assert capsys.readouterr().out.endswith('digit 3\n')
