"""Run a program with the models of timm_mobilenext registered.

    python -m timm_mobilenext SCRIPT.py [ARGS]           a script, timm's train.py for one
    python -m timm_mobilenext -m MODULE [ARGS]           a module
    torchrun --nproc-per-node N -m timm_mobilenext SCRIPT.py [ARGS]
    python -m timm_mobilenext autoload on|off|status     no launcher needed in this environment any more
    python -m timm_mobilenext                            what is installed, and where weights would come from

The program runs as Python alone would run it. timm is imported by it and not before, so a checkout's own timm beside
the script is the one that it gets; when it has imported timm.models, the models are registered.
"""
import os
import runpy
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType, TracebackType

from timm_mobilenext import autoload, hook


def _error(message: str, code: int) -> int:
    print(f'timm_mobilenext: {message}', file=sys.stderr)
    return code


def _is_ours(traceback: TracebackType) -> bool:
    module_globals = traceback.tb_frame.f_globals
    return module_globals is globals() or module_globals.get('__name__') == 'runpy'


def _excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print a traceback that starts with the program, without the frames of the launcher on top."""
    while traceback is not None and _is_ours(traceback):
        traceback = traceback.tb_next
    sys.__excepthook__(kind, error.with_traceback(traceback), traceback)


def _run_script(path: str) -> None:
    # Not runpy.run_path: it changes sys.argv[0], and takes __main__ away before threads and exit handlers are done.
    loader = SourceFileLoader('__main__', os.path.abspath(path))
    module = ModuleType('__main__')
    vars(module).update(__file__=loader.path, __loader__=loader, __cached__=None)
    sys.modules['__main__'] = module
    exec(compile(loader.get_data(loader.path), loader.path, 'exec', dont_inherit=True), vars(module))


def _run_module(module: str) -> None:
    try:
        runpy.run_module(module, run_name='__main__', alter_sys=True)
    except ImportError as error:
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        if last is not None and _is_ours(last):  # runpy's own: no such module
            sys.exit(_error(str(error), 1))
        raise


def main() -> int:
    """Run the command."""
    args = sys.argv[1:]
    if args[:1] == ['autoload']:
        return autoload.main(args[1:])
    if 'timm_mobilenext.mobilenext' not in sys.modules:  # see __init__.py: from here on its import is the real one
        del sys.modules['timm_mobilenext']
    if not args:
        from timm_mobilenext import doctor  # here, it imports PyTorch
        return doctor.main()
    if args[0] in ('-h', '--help'):
        print((__doc__ or '').strip())
        return 0

    is_module = args[0] == '-m'
    if args[0].startswith('-') and not (is_module and len(args) > 1):
        return _error(f'{args[0]}: expected SCRIPT.py, -m MODULE or autoload on|off|status (--help explains).', 2)
    program = args[is_module]
    if not (is_module or os.path.isfile(program)):
        return _error(f"can't open {program!r}: no such file. Expected the path of a script, or -m MODULE.", 2)

    hook.install()
    sys.excepthook = _excepthook
    sys.argv = ['-m' if is_module else program, *args[1 + is_module:]]  # what Python alone would have put there
    if is_module:
        _run_module(program)
    else:
        if not getattr(sys.flags, 'safe_path', sys.flags.isolated):  # safe_path: since Python 3.11
            sys.path[0] = os.path.dirname(os.path.realpath(program))
        _run_script(program)
    return 0


if __name__ == '__main__':
    sys.exit(main())
