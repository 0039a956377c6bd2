"""The launcher, `python -m timm_mobilenext`: what runs under it runs as under Python, with the models registered."""
import importlib.metadata
import os
import re
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


@pytest.mark.parametrize('end', ['exit', 'raise', 'interrupt', 'terminate', 'runpy', 'message', 'syntax error', 'safe'])
def test_script_runs_as_under_python(tmp_path, end):
    """A script gets the argv, path, file and stdin, and leaves the exit code, signal and traceback, of plain Python."""
    folder = tmp_path / 'scripts'
    folder.mkdir()
    (folder / 'script.py').write_text('x = (' if end == 'syntax error' else SCRIPT)
    args = ('./scripts/script.py', end, '-m', '--flag')
    flags = ['-P'] if end == 'safe' and sys.version_info >= (3, 11) else []  # the folder is not on the path
    alone = python(*flags, *args, cwd=tmp_path)
    assert (f'{folder} __main__ ' in alone.stdout) == (end != 'syntax error' and not flags)
    assert alone.returncode
    launched = python(*flags, '-m', 'timm_mobilenext', *args, cwd=tmp_path)
    assert (alone.returncode, alone.stdout, alone.stderr) == (launched.returncode, launched.stdout, launched.stderr)


@pytest.mark.parametrize('code', [SCRIPT, 'import no_such_module'])
def test_module_runs_as_under_python(tmp_path, code):
    """A module of a package gets and leaves the same as under `python -m`, an import error too."""
    package = tmp_path / 'package'
    package.mkdir()
    (package / '__init__.py').write_text('import sys; print(sys.argv)')
    (package / 'module.py').write_text(code)
    alone = python('-m', 'package.module', 'raise', '-m', cwd=tmp_path)
    launched = python('-m', 'timm_mobilenext', '-m', 'package.module', 'raise', '-m', cwd=tmp_path)
    assert "'raise', '-m']" in alone.stdout
    assert alone.stdout == launched.stdout
    assert alone.returncode == launched.returncode == 1
    title, *traceback = launched.stderr.splitlines(keepends=True)
    assert alone.stderr.startswith(title)
    assert alone.stderr.endswith(''.join(traceback))  # between the two it has Python's own runpy


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


@pytest.mark.parametrize(('args', 'said'), [
    (['missing.py'], "'missing.py' is not a command, and file {}/missing.py does not exist. Give a command"),
    (['conver', 'x'], f'Did you mean convert? Give a command ({", ".join(COMMANDS)}), the path of a script, or'),
    (['--versoin'], "'--versoin' is not an option. Did you mean --version? Give"),
    (['-m'], '-m needs a module: -m MODULE [ARGS].'),
    (['-m', 'missing.module'], "No module named 'missing'"),
    (['--resume-newest', 'run'], '--resume-newest needs a folder and a script: --resume-newest DIR SCRIPT.py [ARGS].'),
    (['--resume-newest', 'run', 'missing.py'], 'file {}/missing.py does not exist. Give'),
])
def test_wrong_arguments(tmp_path, args, said):
    """If there is nothing to run, one line says what is wrong and what to give instead."""
    result = python('-m', 'timm_mobilenext', *args, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, '')
    line, = result.stderr.splitlines()
    assert line.startswith('error: ')
    assert said.format(tmp_path) in line.replace(os.sep, '/')


@pytest.mark.parametrize('args', [('--help',), ()])
def test_help(tmp_path, args):
    """The help, which no argument at all prints too, lists the commands, without the import of PyTorch."""
    result = python('-X', 'importtime', '-m', 'timm_mobilenext', *args, cwd=tmp_path)
    assert 'python -m timm_mobilenext SCRIPT.py [ARGS]' in result.stdout
    for name, (_, text) in COMMANDS.items():
        assert re.search(rf'^ +{name} +{re.escape(text)}$', result.stdout, re.MULTILINE)
    assert result.returncode == 0
    assert 'torch' not in result.stderr


def test_version(tmp_path):
    """The option --version prints the version of the distribution."""
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
