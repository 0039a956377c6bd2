"""Let every program of this environment find the models, with no import and no launcher.

`python -m timm_mobilenext autoload on` writes three files into site-packages: the import hook (hook.py) and the pair of
start-up files that Python reads at each start, a `.pth` and, since Python 3.15, a `.start` (PEP 829). The hook waits
for `timm.models`. Nothing of it is in the wheel, `autoload off` removes all.
"""
import py_compile
import sys
import sysconfig
from pathlib import Path

from timm_mobilenext import hook

NAME = '_timm_mobilenext_autoload'
# Python runs the `import` line of a .pth; since 3.15 it calls what the .start beside it names instead.
START_UP_FILES = {
    f'{NAME}.pth': f'import {NAME}; {NAME}.install()\n',
    f'{NAME}.start': f'{NAME}:install\n',
}


def _site_packages() -> Path:
    return Path(sysconfig.get_path('purelib'))


def _hook_source() -> str:
    return Path(hook.__file__).read_text()


def _check_site() -> None:
    if sys.flags.no_site:
        raise RuntimeError('this Python was started with -S and reads no start-up files. Start it without -S.')


def on() -> str:
    """Write the start-up files, and return what to tell the user.

    Raises:
        RuntimeError: If Python was started with -S, which reads no start-up files, or site-packages is read-only.
    """
    _check_site()
    folder = _site_packages()
    try:
        # the hook first and last to go, so that no start of Python meets a start-up file without it
        for name, text in {f'{NAME}.py': _hook_source(), **START_UP_FILES}.items():
            (folder / name).write_text(text)
        # Python itself would not where PYTHONDONTWRITEBYTECODE is set, and compile it at each start
        py_compile.compile(str(folder / f'{NAME}.py'))
    except OSError as error:
        off()
        raise RuntimeError(
            f'cannot write to {folder} ({error.strerror}). Use a virtual environment of yours, or the launcher: python '
            '-m timm_mobilenext SCRIPT.py.') from error
    return f'autoload is on: {folder / NAME}.{{pth,start,py}}'


def off() -> str:
    """Remove the start-up files, and return what to tell the user.

    Raises:
        OSError: If site-packages cannot be written to.
    """
    folder = _site_packages()
    compiled = (folder / '__pycache__').glob(f'{NAME}.*.pyc')
    for file in (*(folder / name for name in START_UP_FILES), folder / f'{NAME}.py', *compiled):
        file.unlink(missing_ok=True)
    return 'autoload is off'


def status() -> str:
    """Return whether autoload is on, and what keeps it from working.

    Raises:
        RuntimeError: If Python was started with -S, which reads no start-up files.
    """
    _check_site()
    folder = _site_packages()
    found = [name for name in START_UP_FILES if (folder / name).exists()]
    if not found:
        return 'autoload is off'
    hook_file = folder / f'{NAME}.py'
    if len(found) < len(START_UP_FILES) or not hook_file.exists() or hook_file.read_text() != _hook_source():
        return f'autoload is on, by files of another version in {folder}: switch it on again to renew them.'
    if NAME not in sys.modules:
        return f'autoload is on, but this Python did not read its start-up files in {folder}.'
    return f'autoload is on: {folder / NAME}.{{pth,start,py}}'


def main(args: list[str]) -> int:
    """Run `python -m timm_mobilenext autoload` with these arguments, one of `on`, `off` and `status`."""
    if args in (['-h'], ['--help']):
        print((__doc__ or '').strip())
        return 0
    commands = {'on': on, 'off': off, 'status': status}
    if len(args) != 1 or args[0] not in commands:
        print(f'timm_mobilenext: autoload {" ".join(args)}: expected on, off or status.', file=sys.stderr)
        return 2
    try:
        print(commands[args[0]]())
    except (OSError, RuntimeError) as error:
        print(f'timm_mobilenext: autoload {args[0]} failed: {error}', file=sys.stderr)
        return 1
    return 0
