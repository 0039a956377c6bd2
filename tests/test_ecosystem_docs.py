"""docs/ecosystem.md and, of docs/verified.md, the outcomes that tools/ecosystem.py writes."""
import ast
import re
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import timm_mobilenext  # noqa: F401 - registers the models
from timm_mobilenext.weights.convert import convert

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / 'docs' / 'ecosystem.md').read_text()
SECTIONS = re.findall(r'^## (.*?)\n(.*?)(?=^## |\Z)', PAGE, re.MULTILINE | re.DOTALL)


def test_rows():
    """The page lists the docstrings of the tests, each with a pass as its outcome."""
    expected = []
    for path in sorted((ROOT / 'tests' / 'downstream').glob('test_*.py')):
        library = path.stem.removeprefix('test_').replace('torch_hub', 'torch.hub')
        expected += [
            (library, ast.get_docstring(node)) for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and node.name.startswith('test_')]
    text = (ROOT / 'docs' / 'verified.md').read_text().partition('## Other libraries')[2]
    rows = re.findall(r'^\| (\S+) \| (\S+) \| (.*) \| (.*) \|$', text, re.MULTILINE)
    assert [(library, does) for library, _, does, _ in rows[1:]] == expected
    assert all(re.fullmatch(r'(\d+ )?passed', outcome) for *_, outcome in rows[1:])


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """A folder as the page has it: a checkpoint, what `convert` made of it, photos, the checkout."""
    folder = tmp_path_factory.mktemp('ecosystem')
    torch.save(timm.create_model('mobilenext_100', num_classes=3).state_dict(), folder / 'model_best.pth.tar')
    convert(folder / 'model_best.pth.tar', folder / 'flowers', model='mobilenext_100')
    for split in ('train', 'validation'):
        for name in ('rose', 'tulip'):
            (folder / 'images' / split / name).mkdir(parents=True)
            Image.effect_noise((80, 80), 64).convert('RGB').save(folder / 'images' / split / name / '1.jpg')
    Image.effect_noise((80, 80), 64).convert('RGB').save(folder / 'photo.jpg')
    (folder / 'timm-mobilenext').symlink_to(ROOT)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('text', [pytest.param(text, id=library) for library, text in SECTIONS])
def test_section(text, folder, monkeypatch):
    """The Python of a section runs, and what it builds has the weights of the folder."""
    monkeypatch.chdir(folder)
    code = ''.join(re.findall(r'```python\n(.*?)```', text, re.DOTALL))
    for library in re.findall(r'^(?:import|from) (\w+)', code, re.MULTILINE):
        pytest.importorskip(library, reason=f'{library}, of an extra, is not installed')
    names: dict = {}
    exec(code, names)
    model = names['model'] if 'model' in names else names['learner'].model
    stem = next(p for name, p in model.named_parameters() if name.endswith('stem.conv.weight'))
    expected = timm.create_model('local-dir:flowers', pretrained=True).stem.conv.weight
    assert torch.equal(stem.cpu(), expected)  # fastai has too few images here for a step
