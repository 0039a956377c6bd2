"""Mutation testing: whether a test fails when the package is wrong in one place.

    python tools/mutation.py                    # every module; hours
    python tools/mutation.py _layers convert    # these
    python tools/mutation.py --again _layers    # those of it that survived without a reason, after a test was added
    python tools/mutation.py --sample 20        # 20 of each, drawn with seed 0
    python tools/mutation.py --write            # benchmarks/results/mutation*.csv, of what has been measured

cosmic-ray makes the mutants, each a copy of the package with one operator, number, condition, exception, loop or
decorator changed (`OPERATORS`), annotations and texts aside. A mutant meets the tests that run the function it is in,
as coverage has recorded it, and those that start processes, the fastest first; the first that fails has killed it.
They run in forks of a process that has imported PyTorch and timm. Results are kept in build/mutation, so a run can be
cut short and taken up again. `pip install cosmic-ray coverage hypothesis` brings what it needs beside the tests.
"""
import argparse
import ast
import contextlib
import csv
import difflib
import functools
import hashlib
import importlib
import inspect
import json
import os
import pickle
import random
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

# as tests/conftest.py has them: read when PyTorch and timm are imported
os.environ |= {'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1', 'PYTEST_DISABLE_PLUGIN_AUTOLOAD': '1'}

import coverage
import parso  # before cosmic-ray, which imports a part of it that cannot be imported first
import pytest
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.provider import OperatorProvider

ROOT = Path(__file__).parent.parent
WORK = ROOT / 'build' / 'mutation'
RESULTS = ROOT / 'benchmarks' / 'results'
SURVIVORS = RESULTS / 'mutation_survivors.csv'
KEY = ('module', 'function', 'before', 'after', 'nth')
FIELDS = ('module', 'function', 'line', 'operator', 'before', 'after', 'nth', 'outcome', 'seconds', 'by')
# one replacement a place: of operators the opposite, of comparisons the boundary
_BINARY = {
    'Add': 'Sub', 'Sub': 'Add', 'Mul': 'Div', 'Div': 'Mul', 'FloorDiv': 'Mul', 'Mod': 'Mul', 'Pow': 'Mul',
    'LShift': 'RShift', 'RShift': 'LShift', 'BitOr': 'BitAnd', 'BitAnd': 'BitOr', 'BitXor': 'BitAnd'}
_COMPARISON = {
    'Eq': 'NotEq', 'NotEq': 'Eq', 'Lt': 'LtE', 'LtE': 'Lt', 'Gt': 'GtE', 'GtE': 'Gt', 'Is': 'IsNot', 'IsNot': 'Is'}
OPERATORS = (
    *(f'ReplaceBinaryOperator_{old}_{new}' for old, new in _BINARY.items()),
    *(f'ReplaceComparisonOperator_{old}_{new}' for old, new in _COMPARISON.items()),
    'ReplaceUnaryOperator_USub_UAdd', 'ReplaceUnaryOperator_Delete_Not', 'AddNot', 'ReplaceTrueWithFalse',
    'ReplaceFalseWithTrue', 'ReplaceAndWithOr', 'ReplaceOrWithAnd', 'ReplaceBreakWithContinue',
    'ReplaceContinueWithBreak', 'ExceptionReplacer', 'NumberReplacer', 'RemoveDecorator', 'ZeroIterationForLoop')
# module -> the files of tests that its mutants meet
TESTS = {
    '__init__': ('hook', 'main', 'package'),
    '__main__': ('main', 'properties'),
    '_authors': ('authors', 'pretrained', 'builder', 'detection', 'properties'),
    '_builder': ('builder', 'pretrained'),
    '_end_with_parent': ('main',),
    '_layers': ('layers', 'mobilenext', 'properties'),
    'autoload': ('autoload', 'main'),
    'convert': ('convert', 'publish', 'properties'),
    'detection': ('detection',),
    'doctor': ('doctor',),
    'export': ('export', 'runtimes', 'properties'),
    'hook': ('hook', 'main', 'autoload'),
    'mobilenext': ('mobilenext', 'layers', 'authors', 'builder', 'properties'),
    'pretrained': ('pretrained', 'builder', 'doctor', 'properties'),
    'publish': ('publish', 'export'),
    'runtimes': ('runtimes', 'export'),
    'web/__init__': ('web/web',),
}
PRELOADED = (
    'torch', 'torchvision', 'timm', 'torch._dynamo', 'torch.onnx', 'sklearn.datasets', 'PIL.Image', 'torch.optim',
    'safetensors.torch', 'hypothesis')


@dataclass
class Mutant:
    """A change of a module.

    Attributes:
        module: Name of the module, a path below the package without its ending.
        function: Name of the function it is in, '' for none.
        operator: Operator of cosmic-ray.
        line: Where.
        before: The lines that change, without their indents.
        after: What becomes of them.
        nth: Which of the mutants that are equal so far.
        code: The module with the change.
        runs: Whether it shows where the function runs; else, in a default or a decorator, where the module is imported.
    """

    module: str
    function: str
    operator: str
    line: int
    before: str
    after: str
    nth: int
    code: str
    runs: bool

    @property
    def key(self) -> tuple[str, ...]:
        """What it is, whatever else of the module changes."""
        return self.module, self.function, self.before, self.after, str(self.nth)


def test_file(name: str) -> str:
    """Return the path of a file of tests."""
    folder, _, stem = name.rpartition('/')
    return str(Path('tests', folder, f'test_{stem}.py'))


def function_of(node: Any) -> Any:
    """Return the outermost function that a node is in or decorates, None if it is in none."""
    found = None
    while node.parent is not None:
        node = node.parent
        last = node.children[-1] if node.type == 'decorated' else node
        found = last if last.type == 'funcdef' else found
    return found


def is_body(position: tuple[int, int], function: Any) -> bool:
    """Return whether a place in a function comes after its colon: what is before runs where it is defined."""
    return position > function.children[-2].start_pos


def is_annotation(node: Any) -> bool:
    """Return whether a node is part of an annotation, which says nothing to the program."""
    while node.parent is not None:
        parent = node.parent
        annotation = (
            parent.children[2] if parent.type == 'tfpdef' else parent.annotation if parent.type == 'funcdef'
            else parent.children[1] if parent.type == 'annassign' else None)
        if annotation is node:
            return True
        node = parent
    return False


def is_mutated_anyway(condition: Any) -> bool:
    """Return whether another operator negates a condition too."""
    if condition.type != 'comparison':
        return condition.type == 'not_test'
    return [child.get_code().strip() for child in condition.children[1::2]] in (['=='], ['!='], ['is'], ['is not'])


def mutants(module: str) -> list[Mutant]:
    """Return the mutants of a module, made anew where it has changed."""
    source = (ROOT / 'timm_mobilenext' / f'{module}.py').read_text()
    digest = hashlib.sha256((source + Path(__file__).read_text()).encode()).hexdigest()
    path = WORK / f'mutants-{digest[:16]}.json'
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(mutant) for mutant in _mutants(module, source)]))
    return [Mutant(**values) for values in json.loads(path.read_text())]


def _mutants(module: str, source: str) -> Iterator[Mutant]:
    tree = parso.parse(source)
    seen: dict[tuple[str, ...], int] = {}
    for name in OPERATORS:
        operator = OperatorProvider()[name]()
        nodes = [node for node in ast_nodes(tree) for _ in operator.mutation_positions(node)]
        for occurrence, node in enumerate(nodes):
            if is_annotation(node) or (node.parent and node.parent.type == 'parameters'):  # the * of def f(*, x)
                continue
            if name == 'NumberReplacer' and occurrence % 2:  # the second is one less
                continue
            if name == 'NumberReplacer' and abs(ast.literal_eval(node.value)) >= 1e6:  # one more does not show
                continue
            if name == 'AddNot' and is_mutated_anyway(node.children[2 if node.type == 'test' else 1]):
                continue
            try:
                code = mutate_code(source, operator, occurrence)
                compile(code, module, 'exec')
            except (AttributeError, SyntaxError):  # an exception with a dot in its name, the stars of {**mapping}
                continue
            changed = [*difflib.unified_diff(source.splitlines(), code.splitlines(), n=0, lineterm='')][2:]
            before, after = (' '.join(line[1:].strip() for line in changed if line[0] == sign) for sign in '-+')
            function = function_of(node)
            same = (function.name.value if function else '', before, after)
            seen[same] = seen.get(same, -1) + 1
            runs = function is not None and is_body(node.start_pos, function)
            yield Mutant(module, same[0], name, node.start_pos[0], before, after, seen[same], code, runs)


def fork(function: Callable[[], None], seconds: float, log: Path) -> int | None:
    """Call a function in a fork, and return its exit code, None if it took too long; nothing that it started is left.

    Args:
        function: What to call.
        seconds: How long it may take.
        log: File for what it prints.
    """
    pid = os.fork()
    if pid == 0:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            function()
        finally:
            os._exit(70)  # it has not ended by itself
    deadline, status = time.monotonic() + seconds, None
    while status is None and time.monotonic() < deadline:
        ended, code = os.waitpid(pid, os.WNOHANG)
        status = code if ended else None
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if status is None:
        os.waitpid(pid, 0)
        return None
    return os.waitstatus_to_exitcode(status)


def run_pytest(tree: Path, files: list[str], *args: str, plugins: Sequence[object] = ()) -> None:
    """Run tests of a copy of the project in this process, and end it."""
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    # the processes of tests/conftest.py fork from the server of the parent, and need not import this file
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
    vars(sys.modules['__main__']).pop('__file__')
    sys.argv = ['pytest']
    code = pytest.main(
        ['-q', '-p', 'no:cacheprovider', '-o', 'addopts=--import-mode=importlib', f'--rootdir={tree}',
         '-c', str(tree / 'pyproject.toml'), f'--basetemp={tree}-temp', *args, *files],
        plugins=[Shared(WORK / 'shared.pickle'), *plugins])
    sys.stdout.flush()
    os._exit(code)


class Shared:
    """Pytest plugin that makes some fixtures of the session once for all runs: no mutant of a module changes them."""

    names = ('authors_files', 'blobs', 'digits', 'trained', 'trained_folders')

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values = pickle.loads(path.read_bytes()) if path.exists() else {}

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Let processes find the copy; the tests of autoload have environments of their own, some without it."""
        os.environ['PYTHONPATH'] = '' if test_file('autoload') in item.nodeid else str(item.config.rootpath)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        """Take a value, or keep it."""
        name = fixturedef.argname
        if name in self.values:
            fixturedef.func, fixturedef.argnames = lambda: self.values[name], ()
        value = yield
        if name in self.names:
            self.values[name] = value
        return value

    def pytest_sessionfinish(self) -> None:
        """Write the values down."""
        if not self.path.exists():
            self.path.write_bytes(pickle.dumps(self.values))


def share(tree: Path) -> None:
    """Make the fixtures that all runs share."""
    path = WORK / 'shared.pickle'
    if path.exists():
        return
    test = tree / 'tests' / 'web' / 'test_shared.py'
    test.write_text(f'def test_shared({", ".join(Shared.names)}): pass\n')
    fork(lambda: run_pytest(tree, [str(test)], f'--basetemp={WORK / "shared"}'), 3600, path.with_suffix('.txt'))
    test.unlink()


class Recorder:
    """Pytest plugin that writes down of each test how long it takes, whether it passes, and which functions it runs."""

    def __init__(self, tree: Path, path: Path) -> None:
        self.package, self.path = tree / 'timm_mobilenext', path
        self.tests: dict[str, Any] = {}
        self.known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.coverage = coverage.Coverage(data_file=None, config_file=False, include=[f'{self.package}/*'])
        self.test = ''
        self.coverage.start()
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: object) -> None:
        if event == 'subprocess.Popen' and self.test:
            self.tests[self.test]['starts'] = True

    def pytest_sessionstart(self) -> None:
        """Attribute to all tests what has run so far: the import of the package."""
        self.coverage.switch_context('collection')

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leave out what has been measured and has not changed."""
        for item in items:
            fixtures = item.fixturenames
            self.tests[item.nodeid] = dict(
                digest=hashlib.sha256(inspect.getsource(item.function).encode()).hexdigest(), seconds=0., passed=True,
                fixtures=[*fixtures], starts='client' in fixtures)
        for name, test in self.tests.items():
            if self.known.get(name, {}).get('digest') == test['digest']:
                self.tests[name] = self.known[name]
        items[:] = [item for item in items if 'ran' not in self.tests[item.nodeid]]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Attribute lines to a test."""
        self.test = item.nodeid
        self.coverage.switch_context(self.test)
        result = yield
        self.test = ''
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        """Attribute the lines of a fixture that tests share to it."""
        if fixturedef.scope != 'function':
            self.coverage.switch_context(fixturedef.argname)
        result = yield
        self.coverage.switch_context(self.test)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up the phases of a test."""
        test = self.tests[report.nodeid]
        test['seconds'] += report.duration
        test['passed'] &= report.passed

    def pytest_sessionfinish(self) -> None:
        """Write it down."""
        self.coverage.stop()
        data = self.coverage.get_data()
        ran: dict[str, dict[str, set[str]]] = {}
        for file in data.measured_files():
            module = str(Path(file).relative_to(self.package).with_suffix(''))
            source = Path(file).read_text()
            tree, texts = parso.parse(source), source.splitlines()
            for line, contexts in data.contexts_by_lineno(file).items():
                indent = len(texts[line - 1]) - len(texts[line - 1].lstrip())
                function = function_of(tree.get_leaf_for_position((line, indent), include_prefixes=True))
                for context in contexts if function and is_body((line, indent), function) else ():
                    ran.setdefault(context, {}).setdefault(module, set()).add(function.name.value)
        for name, test in self.tests.items():
            functions: dict[str, set[str]] = {}
            for context in ('', name, *test.pop('fixtures', ())):
                for module, its in ran.get(context, {}).items():
                    functions.setdefault(module, set()).update(its)
            test.setdefault('ran', {module: sorted(its) for module, its in functions.items()})
        self.path.write_text(json.dumps(self.tests))


class Chosen:
    """Pytest plugin that runs tests in an order, and writes down the first that fails."""

    def __init__(self, tests: list[str], path: Path) -> None:
        self.places, self.path = {test: i for i, test in enumerate(tests)}, path

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Choose and sort them."""
        items[:] = sorted(
            (item for item in items if item.nodeid in self.places), key=lambda item: self.places[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write down a failure."""
        if report.failed:
            self.path.write_text(report.nodeid)


def measured(tree: Path, name: str) -> dict[str, Any]:
    """Return what the tests of a file take and run, measured of those that are new or have changed.

    Args:
        tree: Copy of the project.
        name: The file.
    """
    path = WORK / 'baseline' / f'{name.replace("/", "-")}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    fork(
        lambda: run_pytest(tree, [test_file(name)], plugins=[Recorder(tree, path)]), 3600, path.with_suffix('.txt'))
    tests = json.loads(path.read_text())
    failed = [test for test in tests if not tests[test]['passed']]
    print(f'{test_file(name)}: {len(tests)} tests, {time.monotonic() - begin:.0f} s, left out: {failed}', flush=True)
    return tests


def choose(mutant: Mutant, baseline: dict[str, Any], budget: float) -> list[str]:
    """Return the tests that a mutant has to pass, the fastest first and those that have killed others before that.

    Args:
        mutant: The mutant.
        baseline: What the tests take and run.
        budget: How long they may take in all, in seconds.
    """
    chosen, total = [], 0.
    kills = Counter(row['by'] for row in results().values())
    for name, test in sorted(baseline.items(), key=lambda item: item[1]['seconds'] / (1 + kills[item[0]])):
        ran = not mutant.runs or test['starts'] or mutant.function in test['ran'].get(mutant.module, ())
        total += test['seconds'] if ran and test['passed'] else 0
        if ran and test['passed'] and total < budget:
            chosen.append(name)
    return chosen


def results() -> dict[tuple[str, ...], dict[str, str]]:
    """Return what has been measured, the latest of each mutant."""
    path = WORK / 'mutants.csv'
    if not path.exists():
        return {}
    with path.open(newline='') as file:
        return {tuple(row[field] for field in KEY): row for row in csv.DictReader(file)}


def run(module: str, sample: int, again: bool, budget: float) -> None:
    """Run the mutants of a module that have not been run.

    Args:
        module: The module.
        sample: How many of them, a random sample that a larger one includes; 0 for all.
        again: Run those that survived without a reason, in the place of those that have not been run.
        budget: Seconds of tests a mutant.
    """
    every = mutants(module)
    random.Random(0).shuffle(every)
    every = every[:sample or None]
    known = results()
    wanted = ('survived', 'timeout') if again else (None,)
    explained = reasons()
    todo = [
        mutant for mutant in every
        if known.get(mutant.key, {}).get('outcome') in wanted and not (again and explained.get(mutant.key))]
    print(f'{module}: {len(todo)} of {len(every)} mutants to run', flush=True)
    if not todo:
        return
    tree = WORK / f'tree-{os.getpid()}'
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns('.git', 'build', 'node_modules', '__pycache__'))
    share(tree)
    baseline: dict[str, Any] = {}
    for name in TESTS[module]:
        baseline |= measured(tree, name)
    path = tree / 'timm_mobilenext' / f'{module}.py'
    source, times = path.read_bytes(), path.stat()
    sys.dont_write_bytecode = True  # of mutants; what the baseline has written is of other times, and holds
    os.environ['PYTHONDONTWRITEBYTECODE'] = '1'
    log = WORK / 'mutants.csv'
    if not log.exists():
        log.write_text(','.join(FIELDS) + '\n')
    for mutant in todo:
        tests = choose(mutant, baseline, budget)
        files = list(dict.fromkeys(test.partition('::')[0] for test in tests))
        limit = 120 + 6 * sum(baseline[test]['seconds'] for test in tests)
        first = WORK / f'first-{os.getpid()}'
        first.write_text('')
        path.write_text(mutant.code)
        begin = time.monotonic()
        test = functools.partial(run_pytest, tree, files, '-x', plugins=[Chosen(tests, first)])
        code = fork(test, limit, WORK / f'log-{os.getpid()}.txt') if tests else 0
        outcome = 'timeout' if code is None else 'survived' if code in (0, 5) else 'killed'  # 5: there is no such test
        path.write_bytes(source)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        row = (mutant.module, mutant.function, mutant.line, mutant.operator, mutant.before, mutant.after, mutant.nth,
               outcome, f'{time.monotonic() - begin:.1f}', first.read_text() or ('' if outcome == 'survived' else code))
        with log.open('a', newline='') as file:
            csv.writer(file).writerow(row)
        if outcome != 'killed':
            print(f'{outcome} {len(tests)} tests: {module}:{mutant.line} {mutant.before} -> {mutant.after}', flush=True)
    for path in (tree, Path(f'{tree}-temp')):
        shutil.rmtree(path, ignore_errors=True)


def reasons() -> dict[tuple[str, ...], str]:
    """Return what has been said of why mutants may survive."""
    if not SURVIVORS.exists():
        return {}
    with SURVIVORS.open(newline='') as file:
        return {tuple(row[field] for field in KEY): row['reason'] for row in csv.DictReader(file)}


def write() -> None:
    """Write how many mutants of each module tests have killed, and those that survived, with what was said of why."""
    explained, known, lived, rows = reasons(), results(), [], []
    for module in TESTS:
        every = [mutant.key for mutant in mutants(module)]
        outcomes = {key: known[key]['outcome'] for key in every if key in known}
        count = Counter(outcomes.values())
        of_module = [(*key, explained.get(key, '')) for key, outcome in outcomes.items() if outcome == 'survived']
        lived += of_module
        rows.append((
            module, len(every), len(outcomes), count['killed'], count['timeout'], count['survived'],
            sum(bool(row[-1]) for row in of_module),
            f'{100 * (count["killed"] + count["timeout"]) / max(1, len(outcomes)):.1f}'))
    for path, header, content in (
            (RESULTS / 'mutation.csv',
             ('module', 'mutants', 'run', 'killed', 'timeout', 'survived', 'explained', 'score'), rows),
            (SURVIVORS, (*KEY, 'reason'), lived)):
        with path.open('w', newline='') as file:
            csv.writer(file, lineterminator='\n').writerows([header, *content])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('modules', nargs='*', default=[*TESTS])
    parser.add_argument('--sample', type=int, default=0, metavar='N', help='run N mutants of a module that has more')
    parser.add_argument('--again', action='store_true', help='run those that survived')
    parser.add_argument('--seconds', type=float, default=60, help='of tests a mutant, at most (default: 60)')
    parser.add_argument('--write', action='store_true', help='write the results')
    args = parser.parse_args()
    if args.write:
        write()
        return
    warnings.simplefilter('ignore')
    for name in PRELOADED:
        importlib.import_module(name)
    assert 'timm_mobilenext' not in sys.modules
    forkserver.set_forkserver_preload(['torch', 'torchvision'])  # as tests/conftest.py has it
    forkserver.ensure_running()
    for module in args.modules:
        run(module, args.sample, args.again, args.seconds)


if __name__ == '__main__':
    main()
