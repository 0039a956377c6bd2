"""docs/ecosystem.md has a row of every test of another library, as tools/ecosystem.py writes it."""
import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_rows():
    """What the page says is done are the docstrings of the tests, and every outcome on it is a pass."""
    expected = []
    for path in sorted((ROOT / 'tests' / 'downstream').glob('test_*.py')):
        library = path.stem.removeprefix('test_').replace('torch_hub', 'torch.hub')
        expected += [
            (library, ast.get_docstring(node)) for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and node.name.startswith('test_')]
    text = (ROOT / 'docs' / 'ecosystem.md').read_text()
    rows = re.findall(r'^\| (\S+) \| (\S+) \| (.*) \| (.*) \|$', text, re.MULTILINE)
    assert [(library, does) for library, _, does, _ in rows[1:]] == expected
    assert all(re.fullmatch(r'(\d+ )?passed', outcome) for *_, outcome in rows[1:])
