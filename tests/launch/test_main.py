"""The launcher, `python -m timm_mobilenext`: what runs under it runs as under Python, with the models registered."""
import importlib.metadata
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from timm_mobilenext import doctor
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
    if sys.argv[1] == 'runpy':
        import runpy
        runpy.run_module('no_such_module')
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


@pytest.mark.parametrize('end', ['exit', 'raise', 'interrupt', 'terminate', 'runpy', 'message'])
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


@pytest.mark.skipif(sys.version_info < (3, 11), reason='Python 3.10 has no -P')
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


@pytest.mark.slow  # three processes that import PyTorch
@pytest.mark.parametrize('method', sorted({'spawn', 'forkserver'} & {*multiprocessing.get_all_start_methods()}))
def test_data_workers(tmp_path, method):
    """Data workers that start in a Python of their own find the script's dataset."""
    (tmp_path / 'script.py').write_text(
        'import sys\nclass Squares(list): pass\nif __name__ == "__main__":\n'
        '    from torch.utils.data import DataLoader\n'
        '    loader = DataLoader(Squares([0, 1, 4]), num_workers=1, multiprocessing_context=sys.argv[1])\n'
        '    print([int(x) for x in loader])')
    assert python('-m', 'timm_mobilenext', 'script.py', method, cwd=tmp_path).stdout == '[0, 1, 4]\n'


@pytest.mark.parametrize(('args', 'said'), [
    (['missing.py'], "'missing.py' is not a command, and there is no file missing.py in {}. Give a command"),
    (['scripts/missing.py'], 'and there is no file missing.py in {}/scripts. Give'),
    (['conver', 'x'], f'Did you mean convert? Give a command ({", ".join(COMMANDS)}), the path of a script, or'),
    (['--versoin'], "'--versoin' is not an option. Did you mean --version? Give"),
    (['-m'], '-m needs a module: -m MODULE [ARGS].'),
    (['-m', 'missing.module'], "No module named 'missing'"),
    (['--resume-newest', 'run'], '--resume-newest needs a folder and a script: --resume-newest DIR SCRIPT.py [ARGS].'),
    (['--resume-newest', 'run', 'missing.py'], 'there is no file missing.py in {}. Give'),
])
def test_wrong_arguments(tmp_path, args, said):
    """What cannot be run is answered by one line that says what is wrong and what to give instead."""
    result = python('-m', 'timm_mobilenext', *args, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, '')
    line, = result.stderr.splitlines()
    assert line.startswith('timm_mobilenext: ')
    assert said.format(tmp_path) in line.replace(os.sep, '/')


@pytest.mark.skipif(not Path('/proc/self/mem').is_file(), reason='/proc has a file that cannot be read')
def test_script_that_cannot_be_read(tmp_path):
    """A script that cannot be read is answered by one line."""
    result = python('-m', 'timm_mobilenext', '/proc/self/mem', cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == 'timm_mobilenext: /proc/self/mem cannot be read: Input/output error.\n'


@pytest.mark.parametrize('args', [('--help',), ()])
def test_help(tmp_path, args):
    """--help, and no argument at all, say how to run it and list the commands, without the import of PyTorch."""
    result = python('-X', 'importtime', '-m', 'timm_mobilenext', *args, cwd=tmp_path)
    assert 'python -m timm_mobilenext SCRIPT.py [ARGS]' in result.stdout
    for name, (_, text) in COMMANDS.items():
        assert re.search(rf'^ +{name} +{re.escape(text)}$', result.stdout, re.MULTILINE)
    assert result.returncode == 0
    assert 'torch' not in result.stderr


def test_version(tmp_path):
    """--version prints that of the distribution."""
    expected = f'timm-mobilenext {importlib.metadata.version("timm-mobilenext")}\n'
    assert python('-m', 'timm_mobilenext', '--version', cwd=tmp_path).stdout == expected


@pytest.mark.parametrize('command', COMMANDS)
def test_commands(command, monkeypatch, capsys):
    """Each command has its own help, under the name that it is called by."""
    monkeypatch.setattr(sys, 'argv', ['', command, '--help'])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert f'python -m timm_mobilenext {command}' in capsys.readouterr().out


def test_interrupted_command(monkeypatch, capsys):
    """Ctrl-C ends a command with one line."""
    def interrupt(args: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, 'main', interrupt)
    monkeypatch.setattr(sys, 'argv', ['', 'doctor'])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == 'timm_mobilenext: interrupted.\n'


def test_resume_newest(tmp_path):
    """The script is given the newest whole checkpoint of the end of an epoch, and those that are skipped are named."""
    (tmp_path / 'script.py').write_text('import sys\nprint(sys.argv)')
    command = ('-m', 'timm_mobilenext', '--resume-newest', 'run')
    none = python(*command, 'script.py', '--flag', cwd=tmp_path)
    assert none.stdout == "['script.py', '--flag']\n"
    assert none.stderr == 'timm_mobilenext: starts from the beginning, no checkpoint in run\n'

    folder = tmp_path / 'run'
    folder.mkdir()
    torch.save({'state_dict': {'weight': torch.ones(100)}}, folder / 'whole')
    whole = (folder / 'whole').read_bytes()
    newest_first = {
        'recovery-2-7': whole, 'cut': whole[:-9], 'empty': b'', 'changed': whole.replace(b'\x80\x3f', b'\x81\x3f'),
        'last': whole, 'checkpoint-0': whole}
    for age, (name, content) in enumerate(newest_first.items()):
        (folder / f'{name}.pth.tar').write_bytes(content)
        os.utime(folder / f'{name}.pth.tar', (0, 100 - age))
    result = python(*command, '-m', 'script', '--flag', cwd=tmp_path)
    newest = os.path.join('run', 'last.pth.tar')
    assert result.stdout == f'{[str(tmp_path / "script.py"), "--flag", "--resume", newest]}\n'
    *skipped, last = result.stderr.splitlines()
    assert skipped == [
        f'timm_mobilenext: skips {os.path.join("run", name)}.pth.tar, which is damaged or incomplete'
        for name in ('cut', 'empty', 'changed')]
    assert last == f'timm_mobilenext: resumes from {newest}'
