"""The one door of the package: its commands, and a launcher for programs that do not know it.

    python -m timm_mobilenext COMMAND [ARGS]       a command of the package
{commands}
    python -m timm_mobilenext SCRIPT.py [ARGS]     run a script, timm's train.py for one, with the models registered
    python -m timm_mobilenext -m MODULE [ARGS]     run a module so
    torchrun --nproc-per-node N -m timm_mobilenext SCRIPT.py [ARGS]
    torchrun ... -m timm_mobilenext --resume-newest DIR SCRIPT.py [ARGS]

A program runs as Python alone would run it. timm is imported by it and not before, so a checkout's own timm beside the
script is the one that it gets; when it has imported timm.models, the models are registered.

--resume-newest DIR makes one command of the first start of a training and of all after it: the program is given
--resume FILE, the newest whole checkpoint of timm in DIR, if there is one, and on Linux it ends with its torchrun.
"""
import importlib
import multiprocessing
import os
import runpy
import sys
import zipfile
from importlib.machinery import SourceFileLoader
from types import ModuleType, TracebackType

# Each is a module of its name, with a function `main` that takes the arguments and returns the exit code.
COMMANDS = {
    'convert': "a checkpoint, the authors' or of train.py, to a folder that timm and transformers load",
    'export': 'a model to the files of mobile runtimes, int8 too, each checked against PyTorch',
    'web': 'models to a static page that runs them in the browser, on the device of whoever opens it',
    'publish': 'the same with a model card, and onto the Hugging Face Hub',
    'autoload': 'on|off|status: let every program of this environment find the models, with no launcher',
    'doctor': 'what is installed, and where the weights of each architecture would come from',
}


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
    # as Python has it, which leaves a ./ and a ../ in it, but on Windows
    name = os.path.abspath(path) if os.name == 'nt' else os.path.join(os.getcwd(), path)
    loader = SourceFileLoader('__main__', name)
    try:
        source = loader.get_data(loader.path)
    except OSError as error:
        sys.exit(_error(f'{path!r} cannot be read: {error.strerror}.', 2))
    module = ModuleType('__main__')
    vars(module).update(__file__=loader.path, __loader__=loader, __cached__=None)
    sys.modules['__main__'] = module
    exec(compile(source, loader.path, 'exec', dont_inherit=True), vars(module))


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


def _is_whole(path: str) -> bool:
    try:
        with zipfile.ZipFile(path) as file:  # as torch.save writes them, a sum of each tensor in it
            return file.testzip() is None
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def _newest_checkpoint(folder: str) -> str | None:
    """Return the newest file of timm's CheckpointSaver that is whole, after one killed while writing or a power cut."""
    paths = []
    if os.path.isdir(folder):
        # not those of the middle of an epoch: timm goes on from them with the next, and leaves out the rest of theirs
        paths = [entry.path for entry in os.scandir(folder)
                 if entry.name.endswith('.pth.tar') and not entry.name.startswith('recovery')]
    lines = []
    newest = None
    for path in sorted(sorted(paths), key=os.path.getmtime, reverse=True):
        if _is_whole(path):
            newest = path
            break
        lines.append(f'passes over {path}, which is not whole')
    lines.append(f'goes on from {newest}' if newest else f'starts from the beginning, with no checkpoint in {folder}')
    if os.environ.get('RANK', '0') == '0':
        for line in lines:
            print(f'timm_mobilenext: {line}', file=sys.stderr)
    return newest


def _end_with_torchrun() -> None:
    """Have the kernel kill this process when its torchrun dies, where it would go on beside the one started next."""
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        from timm_mobilenext import _end_with_parent
        # Data workers look whether their parent lives. That is a server where they are forked by one, which is Python's
        # way since 3.14, and it would wait for them: have it end with this process.
        multiprocessing.set_forkserver_preload(['__main__', _end_with_parent.__name__])


def main() -> int:
    """Run the command or the program."""
    args = sys.argv[1:]
    if not args or args[0] in ('-h', '--help'):
        commands = '\n'.join(f'      {name:<10}{text}' for name, text in COMMANDS.items())
        print((__doc__ or '').format(commands=commands).strip())
        return 0
    if args[0] in COMMANDS:
        return importlib.import_module(f'timm_mobilenext.{args[0]}').main(args[1:])
    if args[0] == '--resume-newest' and len(args) > 2:
        _end_with_torchrun()
        checkpoint = _newest_checkpoint(args[1])
        args = args[2:] + (['--resume', checkpoint] if checkpoint else [])

    is_module = args[0] == '-m' and len(args) > 1
    program = args[is_module]
    if not is_module and (program.startswith('-') or not os.path.isfile(program)):
        return _error(
            f'{program!r} is neither a command nor a script: expected {", ".join(COMMANDS)}, the path of a script or '
            '-m MODULE (--help explains).', 2)

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
