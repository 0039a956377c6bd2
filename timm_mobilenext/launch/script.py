"""Run a program as Python would run it, with the models registered as soon as it imports timm."""
import os
import runpy
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType
from typing import NoReturn

# the files of the functions that a program is called by
LAUNCHER = {__file__, str(Path(__file__).parents[1] / '__main__.py'), runpy.run_module.__code__.co_filename}


def fail(message: str) -> NoReturn:
    """End the launcher with one line that says what is wrong, and the exit code of wrong usage."""
    print(f'error: {message}', file=sys.stderr)
    sys.exit(2)


def _program_part(traceback: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the first frame of the program on; None if the launcher itself raised the error."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename in LAUNCHER:
        traceback = traceback.tb_next
    return traceback


def _excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print the traceback that Python prints of the program without a launcher."""
    traceback = _program_part(traceback)
    sys.__excepthook__(kind, error.with_traceback(traceback), traceback)


def run_script(path: str, args: list[str]) -> None:
    """Run a script as `python path args` does.

    Not by `runpy.run_path`, which changes `sys.argv[0]`, and removes `__main__` before exit handlers and threads end.
    """
    # like Python, keep a ./ or ../ in the name (except on Windows)
    name = os.path.abspath(path) if os.name == 'nt' else os.path.join(os.getcwd(), path)
    loader = SourceFileLoader('__main__', name)
    source = loader.get_data(name)
    if not getattr(sys.flags, 'safe_path', sys.flags.isolated):  # safe_path: since Python 3.11
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    sys.argv = [path, *args]
    sys.excepthook = _excepthook
    module = ModuleType('__main__')
    vars(module).update(__file__=name, __loader__=loader, __cached__=None)
    sys.modules['__main__'] = module
    exec(compile(source, name, 'exec', dont_inherit=True), vars(module))


def run_module(module: str, args: list[str]) -> None:
    """Run a module as `python -m module args` does."""
    sys.argv = ['-m', *args]
    sys.excepthook = _excepthook
    try:
        runpy.run_module(module, run_name='__main__', alter_sys=True)
    except ImportError as error:
        if _program_part(error.__traceback__) is None:  # no such module
            fail(f'{error}.')
        raise
