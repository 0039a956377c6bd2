"""Run the tests of other libraries, tests/downstream, and print what came out; with --write, into docs/verified.md.

Every row is a test, with its docstring and the version of the library.
"""
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / 'docs' / 'verified.md'
START, END = '<!-- outcomes: made by tools/ecosystem.py -->\n', '<!-- end of outcomes -->\n'
# name of a test file -> distribution, where they differ
DISTRIBUTIONS = {'torch_hub': 'torch'}


class Recorder:
    """A plugin of pytest that keeps what each test does and how it went."""

    def __init__(self) -> None:
        self.tests: dict[str, tuple[str, str]] = {}  # id -> file and docstring
        self.outcomes: dict[tuple[str, str], list[str]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep the file and the docstring of each test."""
        for item in items:
            test = item.path.stem.removeprefix('test_'), item.function.__doc__.splitlines()[0]
            self.tests[item.nodeid] = test
            self.outcomes.setdefault(test, [])

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep how a test went, or why it was skipped."""
        if report.when == 'call' or report.outcome != 'passed':
            reason = report.longrepr[2].removeprefix('Skipped: ') if report.skipped else ''
            self.outcomes[self.tests[report.nodeid]].append(f'{report.outcome} {reason}'.strip())

    def pytest_collectreport(self, report: Any) -> None:
        """Keep why a file was skipped."""
        if report.skipped:
            reason = report.longrepr[2].removeprefix('Skipped: ')
            self.outcomes[Path(report.nodeid).stem.removeprefix('test_'), 'everything'] = [f'skipped {reason}']


def render(outcomes: dict[tuple[str, str], list[str]]) -> str:
    """Return the table in Markdown."""
    names = ['torch', 'torchvision', 'timm', 'timm-mobilenext']
    lines = [
        'Run with ' + ', '.join(f'{name} {importlib.metadata.version(name)}' for name in names) + '.', '',
        '| library | version | what is done | outcome |', '|---|---|---|---|']
    for (file, does), results in outcomes.items():
        name = DISTRIBUTIONS.get(file, file)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = 'not installed'
        outcome = ', '.join(
            result if results.count(result) == 1 else f'{results.count(result)} {result}'
            for result in dict.fromkeys(results))
        lines.append(f'| {file.replace("torch_hub", "torch.hub")} | {version} | {does} | {outcome} |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    recorder = Recorder()
    code = pytest.main(['-n0', '-q', '--disable-warnings', str(ROOT / 'tests' / 'downstream')], plugins=[recorder])
    table = render(recorder.outcomes)
    if '--write' in sys.argv:
        before, rest = PAGE.read_text().split(START)
        PAGE.write_text(before + START + table + END + rest.split(END)[1])
    else:
        print(table, end='')
    sys.exit(code)
