"""The launcher, `python -m timm_mobilenext`: what runs under it runs as under Python, with the models registered."""
import contextlib
import importlib
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from timm_mobilenext.__main__ import COMMANDS, main

SCRIPT = """
import os, signal, sys
if __name__ == '__main__':
    print([str(x) for x in sys.argv], sys.path[0], __name__, __file__, __package__, sys.modules['__main__'].__file__)
    print('timm' in sys.modules, 'torch' in sys.modules, sys.stdin.read(), flush=True)
    if sys.argv[1] == 'raise':
        raise ValueError('of the script')
    if sys.argv[1] == 'interrupt':
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    if sys.argv[1] == 'terminate':
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    if sys.argv[1] == 'message':
        sys.exit('a last word')
    sys.exit(7)
"""


def python(*args: object, cwd: Path) -> subprocess.CompletedProcess:
    """Run this Python on the arguments."""
    return subprocess.run(
        [sys.executable, *map(str, args)], cwd=cwd, capture_output=True, text=True, input='stdin', timeout=120)


def same(alone: subprocess.CompletedProcess, launched: subprocess.CompletedProcess) -> bool:
    return (alone.returncode, alone.stdout, alone.stderr) == (
        launched.returncode, launched.stdout, launched.stderr)


@pytest.mark.parametrize('end', ['exit', 'raise', 'interrupt', 'terminate', 'message'])
def test_script_runs_as_under_python(tmp_path, end):
    """A script gets the argv, path, file and stdin, and leaves the exit code, signal and traceback, of plain Python."""
    folder = tmp_path / 'scripts'
    folder.mkdir()
    (folder / 'script.py').write_text(SCRIPT)
    args = ('./scripts/script.py', end, '-m', '--flag')
    alone = python(*args, cwd=tmp_path)
    assert f'{folder} __main__ ' in alone.stdout
    assert alone.returncode
    assert same(alone, python('-m', 'timm_mobilenext', *args, cwd=tmp_path))


def test_module_runs_as_under_python(tmp_path):
    """A module of a package gets and leaves the same as under `python -m`."""
    package = tmp_path / 'package'
    package.mkdir()
    (package / '__init__.py').write_text('import sys; print(sys.argv)')
    (package / 'module.py').write_text(SCRIPT)
    alone = python('-m', 'package.module', 'raise', '-m', cwd=tmp_path)
    launched = python('-m', 'timm_mobilenext', '-m', 'package.module', 'raise', '-m', cwd=tmp_path)
    assert 'package' in alone.stdout
    assert alone.stdout == launched.stdout
    assert alone.returncode == launched.returncode == 1
    title, *traceback = launched.stderr.splitlines(keepends=True)
    assert alone.stderr.startswith(title)
    assert alone.stderr.endswith(''.join(traceback))  # between the two it has Python's own runpy


def test_import_error_of_a_module(tmp_path):
    """A module that is there and imports what is not has its traceback, as under `python -m`."""
    (tmp_path / 'module.py').write_text('import no_such_module')
    result = python('-m', 'timm_mobilenext', '-m', 'module', cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, '')
    title, *traceback = result.stderr.splitlines()
    assert title.startswith('Traceback')
    assert f'File "{tmp_path / "module.py"}", line 1, in <module>' in traceback[0]
    assert traceback[-1] == "ModuleNotFoundError: No module named 'no_such_module'"


@pytest.mark.skipif(sys.version_info < (3, 11), reason='safe_path came with Python 3.11')
def test_safe_path(tmp_path):
    """Under -P the folder of the script stays off the path, as under plain Python."""
    (tmp_path / 'script.py').write_text(SCRIPT)
    alone = python('-P', 'script.py', 'exit', cwd=tmp_path)
    assert f' {tmp_path} ' not in alone.stdout
    assert same(alone, python('-P', '-m', 'timm_mobilenext', 'script.py', 'exit', cwd=tmp_path))


def test_syntax_error(tmp_path):
    """A script that does not compile is reported as by plain Python."""
    (tmp_path / 'script.py').write_text('x = (')
    alone = python('script.py', cwd=tmp_path)
    assert same(alone, python('-m', 'timm_mobilenext', 'script.py', cwd=tmp_path))


def test_main_module_outlives_the_script(tmp_path):
    """Exit handlers still find the script as __main__, as pickle and spawned processes need it."""
    (tmp_path / 'script.py').write_text(
        'import atexit, pickle\nclass C: pass\natexit.register(lambda: print(pickle.loads(pickle.dumps(C)) is C))')
    result = python('-m', 'timm_mobilenext', 'script.py', cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, 'True\n')


def test_models_are_registered_with_the_timm_of_the_script(tmp_path):
    """The timm beside the script wins, the models are in it, and the package imports as anywhere else."""
    (tmp_path / 'timm').symlink_to(Path(timm.__file__).parent)
    (tmp_path / 'script.py').write_text(
        'import timm\nprint(timm.__file__)\nprint(len(timm.list_models("mobilenext*")))\n'
        'from timm_mobilenext import MobileNeXt\nprint(MobileNeXt.__module__)\n'
        'timm.create_model("mobilenext_999")')
    result = python('-W', 'error::UserWarning', '-m', 'timm_mobilenext', 'script.py', cwd=tmp_path)
    assert result.stdout.split() == [
        str(tmp_path / 'timm' / '__init__.py'), str(len(timm.list_models('mobilenext*'))), 'timm_mobilenext.mobilenext']
    assert result.stderr.splitlines()[-1] == 'RuntimeError: Unknown model (mobilenext_999)'
    assert str(tmp_path / 'script.py') in result.stderr.splitlines()[1]


@pytest.mark.parametrize('method', sorted({'spawn', 'forkserver'} & {*multiprocessing.get_all_start_methods()}))
def test_data_workers(tmp_path, method):
    """Data workers that start in a Python of their own find the script's dataset."""
    (tmp_path / 'script.py').write_text(
        'import sys\nclass Squares(list): pass\nif __name__ == "__main__":\n'
        '    from torch.utils.data import DataLoader\n'
        '    loader = DataLoader(Squares([0, 1, 4]), num_workers=1, multiprocessing_context=sys.argv[1])\n'
        '    print([int(x) for x in loader])')
    assert python('-m', 'timm_mobilenext', 'script.py', method, cwd=tmp_path).stdout == '[0, 1, 4]\n'


@pytest.mark.parametrize('args', [
    ('missing.py',), ('-m', 'missing.module'), ('-m',), ('--flag',), ('autoload', 'maybe'), ('autoload',), ('conver',),
    ('autoload', 'status', 'status'), ('--resume-newest', 'run')])
def test_bad_input(tmp_path, args):
    """What cannot be run is answered by one line that names it and says what was expected, with Python's exit codes."""
    result = python('-m', 'timm_mobilenext', *args, cwd=tmp_path)
    assert result.returncode == (1 if args == ('-m', 'missing.module') else 2)
    assert result.stdout == ''
    line, = result.stderr.splitlines()
    assert line.startswith('timm_mobilenext: ')
    assert args[0 if args[0] == '--resume-newest' else -1] in line
    if args[0] not in ('autoload', '-m') or args == ('-m',):
        assert line.endswith(
            'is neither a command nor a script: expected convert, export, web, publish, autoload, doctor, the path of '
            'a script or -m MODULE (--help explains).')


@pytest.mark.parametrize('args', [('--help',), ('-h',), ()])
def test_help(tmp_path, args):
    """--help, and no argument at all, say how to run it and list the commands, without the import of PyTorch."""
    result = python('-X', 'importtime', '-m', 'timm_mobilenext', *args, cwd=tmp_path)
    assert 'python -m timm_mobilenext SCRIPT.py [ARGS]' in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines() if line[:6].isspace()] == list(COMMANDS)
    assert result.returncode == 0
    assert 'torch' not in result.stderr


@pytest.mark.parametrize('command', COMMANDS)
def test_commands(command, monkeypatch, capsys):
    """Each command has its own help, under the name that it is called by and with what its module says of itself."""
    monkeypatch.setattr(sys, 'argv', ['', command, '--help'])
    with contextlib.suppress(SystemExit):
        assert main() == 0
    said = ' '.join(capsys.readouterr().out.split())
    assert f'python -m timm_mobilenext {command}' in said
    assert importlib.import_module(f'timm_mobilenext.{command}').__doc__.partition('\n')[0] in said


def test_attached_module_option(tmp_path):
    """`python -mtimm_mobilenext` is the launcher too."""
    (tmp_path / 'script.py').write_text(SCRIPT)
    assert 'False False stdin' in python('-mtimm_mobilenext', 'script.py', 'exit', cwd=tmp_path).stdout


def test_modules_of_the_package_import_the_models(tmp_path):
    """A module that imports the package before timm finds all of it, whatever it is called by and with."""
    (tmp_path / 'module.py').write_text('')
    (tmp_path / 'package').mkdir()
    (tmp_path / 'package' / '__init__.py').write_text('from timm_mobilenext import MobileNeXt; print(MobileNeXt)')
    (tmp_path / 'package' / '__main__.py').write_text('')
    assert 'MobileNeXt' in python('-m', 'package', 'timm_mobilenext', cwd=tmp_path).stdout


@pytest.mark.parametrize('damage', ['cut', 'changed', 'empty'])
def test_resume_newest(tmp_path, damage):
    """The script is given the newest whole checkpoint of the end of an epoch, and what is passed over is named."""
    (tmp_path / 'script.py').write_text('import sys\nprint(sys.argv)')
    command = ('-m', 'timm_mobilenext', '--resume-newest', 'run', 'script.py', '--flag')
    none = python(*command, cwd=tmp_path)
    assert none.stdout == "['script.py', '--flag']\n"
    assert none.stderr == 'timm_mobilenext: starts from the beginning, with no checkpoint in run\n'

    (tmp_path / 'run').mkdir()
    for age, name in enumerate(['recovery-2-7', 'tmp', 'last', 'checkpoint-0']):
        path = tmp_path / 'run' / f'{name}.pth.tar'
        torch.save({'state_dict': {'weight': torch.ones(100)}}, path)
        os.utime(path, (0, 100 - age))
    tmp, whole = tmp_path / 'run' / 'tmp.pth.tar', tmp_path / 'run' / 'last.pth.tar'
    data = tmp.read_bytes()
    tmp.write_bytes({'cut': data[:-9], 'empty': b'', 'changed': data.replace(b'\x80\x3f', b'\x81\x3f')}[damage])
    os.utime(tmp, (0, 99))
    result = python(*command, cwd=tmp_path)
    assert result.stdout == "['script.py', '--flag', '--resume', 'run/last.pth.tar']\n"
    assert result.stderr == (
        'timm_mobilenext: passes over run/tmp.pth.tar, which is not whole\n'
        'timm_mobilenext: goes on from run/last.pth.tar\n')
    whole.rename(tmp_path / 'run' / 'recovery-2-9.pth.tar')
    module = python(*command[:4], '-m', 'script', cwd=tmp_path)
    assert module.stdout == f"['{tmp_path / 'script.py'}', '--resume', 'run/checkpoint-0.pth.tar']\n"


@pytest.mark.skipif(sys.platform != 'linux', reason='the kernel of Linux alone does that')
@pytest.mark.parametrize('torchrun', [True, False])
def test_process_ends_with_its_torchrun(tmp_path, torchrun):
    """With --resume-newest no rank outlives a torchrun that was killed; a process of another parent does."""
    (tmp_path / 'script.py').write_text(
        'import os, time\nprint("started", flush=True)\nend = time.monotonic() + 30\n'
        'while not os.path.exists("go") and time.monotonic() < end:\n    time.sleep(0.05)\nprint("alive")')
    (tmp_path / 'parent.py').write_text('import subprocess, sys\nsubprocess.run([sys.executable, *sys.argv[1:]])')
    env = {key: value for key, value in os.environ.items() if key != 'TORCHELASTIC_RUN_ID'}
    with subprocess.Popen(
            [sys.executable, 'parent.py', '-m', 'timm_mobilenext', '--resume-newest', 'run', 'script.py'],
            env=env | ({'TORCHELASTIC_RUN_ID': 'run'} if torchrun else {}), cwd=tmp_path, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout.readline() == 'started\n'
        parent.kill()
        parent.wait()
        if not torchrun:
            (tmp_path / 'go').touch()
        assert parent.stdout.read() == ('' if torchrun else 'alive\n')  # returns when nobody is left that could write
