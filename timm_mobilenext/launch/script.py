"""Run a program as Python would run it, with the models registered as soon as it imports timm."""
import os
import runpy
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType, TracebackType


def _is_launcher(traceback: TracebackType) -> bool:
    return traceback.tb_frame.f_globals.get('__name__') in (__name__, 'timm_mobilenext.__main__', 'runpy') or \
        traceback.tb_frame.f_globals.get('__package__') == 'timm_mobilenext'


def _excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print a traceback that starts with the program, without the frames of the launcher on top."""
    while traceback is not None and _is_launcher(traceback):
        traceback = traceback.tb_next
    sys.__excepthook__(kind, error.with_traceback(traceback), traceback)


def run_script(path: str, args: list[str]) -> None:
    """Run a script as `python path args` does.

    Not by `runpy.run_path`, which changes `sys.argv[0]`, and removes `__main__` before exit handlers and threads end.

    Raises:
        OSError: If the file cannot be read.
    """
    # as Python does, keep a ./ or ../ in the name (except on Windows)
    name = os.path.abspath(path) if os.name == 'nt' else os.path.join(os.getcwd(), path)
    loader = SourceFileLoader('__main__', name)
    source = loader.get_data(loader.path)
    if not getattr(sys.flags, 'safe_path', sys.flags.isolated):  # safe_path: since Python 3.11
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    sys.argv = [path, *args]
    sys.excepthook = _excepthook
    module = ModuleType('__main__')
    vars(module).update(__file__=loader.path, __loader__=loader, __cached__=None)
    sys.modules['__main__'] = module
    exec(compile(source, loader.path, 'exec', dont_inherit=True), vars(module))


def run_module(module: str, args: list[str]) -> None:
    """Run a module as `python -m module args` does.

    Raises:
        ImportError: If there is no such module, without a traceback of the program's.
    """
    sys.argv = ['-m', *args]
    sys.excepthook = _excepthook
    try:
        runpy.run_module(module, run_name='__main__', alter_sys=True)
    except ImportError as error:
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        if last is not None and _is_launcher(last):  # runpy's own: no such module
            sys.exit(f'timm_mobilenext: {error}')
        raise
