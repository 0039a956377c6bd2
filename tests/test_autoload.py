"""Autoload, `python -m timm_mobilenext autoload on`: each test in a virtual environment of its own."""
import importlib.metadata
import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
import timm

import timm_mobilenext

NAME = '_timm_mobilenext_autoload'
# PyTorch 2.5 leaves a temporary folder to be cleaned up with a warning when Python ends
NO_RESOURCE_WARNING = ('-W', 'ignore::ResourceWarning')
# the garbage collector takes a third of the time of the import
COUNT = 'import gc; gc.disable(); import timm; print(len(timm.list_models("mobilenext*")))'


class Environment:
    """A virtual environment with what is installed here, linked, and timm_mobilenext."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.site_packages = Path(sysconfig.get_path('purelib', vars=dict(base=str(folder))))
        for installed in {sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}:
            for path in Path(installed).iterdir():
                if path.suffix != '.pth' and path.name not in ('__pycache__', 'timm_mobilenext'):
                    (self.site_packages / path.name).symlink_to(path)
        self.package = self.site_packages / 'timm_mobilenext'
        self.package.symlink_to(Path(timm_mobilenext.__file__).parent)
        self.executable = Path(sysconfig.get_path('scripts', vars=dict(base=str(folder)))) / (
            'python' + sysconfig.get_config_var('EXE'))

    def run(self, *args: str, prefix: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess:
        """Run its Python."""
        return subprocess.run(
            [*prefix, str(self.executable), *args], cwd=self.site_packages.parent, capture_output=True, text=True,
            env={**os.environ, **env}, timeout=120)

    def autoload(self, command: str, **kwargs) -> subprocess.CompletedProcess:
        """Run the command."""
        return self.run('-m', 'timm_mobilenext', 'autoload', command, **kwargs)

    def files(self) -> list[Path]:
        """Return all files of autoload."""
        return sorted(self.site_packages.rglob(f'{NAME}*'))


@pytest.fixture
def environment(tmp_path) -> Environment:
    return Environment(tmp_path / 'env')


def test_on_and_off(environment):
    """Once on, every program of the environment finds the models; once off, nothing is left and none does."""
    assert environment.files() == []
    assert environment.autoload('status').stdout == 'autoload is off\n'

    assert environment.autoload('on').stdout.startswith('autoload is on')
    assert environment.autoload('status').stdout.startswith('autoload is on: ')
    result = environment.run('-W', 'error', *NO_RESOURCE_WARNING, '-c', COUNT)
    assert (result.stdout, result.stderr) == (f'{len(timm.list_models("mobilenext*"))}\n', '')
    assert NAME in ' '.join(map(str, environment.files()))

    assert environment.autoload('off').returncode == 0
    assert environment.run('-c', COUNT).stdout == '0\n'
    assert environment.files() == []
    assert environment.autoload('off').returncode == 0  # off it is


def test_launcher_with_autoload_on(environment):
    """Launcher and autoload together register the models once."""
    environment.autoload('on')
    (environment.site_packages.parent / 'script.py').write_text(COUNT)
    result = environment.run('-W', 'error::UserWarning', '-m', 'timm_mobilenext', 'script.py')
    assert (result.stdout, result.stderr) == (f'{len(timm.list_models("mobilenext*"))}\n', '')


def test_start_of_python_loads_the_hook_alone(environment):
    """At the start of Python autoload imports its hook, which imports nothing."""
    code = 'import sys; print(*sys.modules)'
    (environment.site_packages / 'other.pth').write_text('# Python 3.13 imports a codec for the first of these files\n')
    before = set(environment.run('-c', code).stdout.split())
    environment.autoload('on')
    assert set(environment.run('-c', code).stdout.split()) - before == {NAME}


def test_start_file(environment):
    """The .start file, which Python 3.15 reads in the place of the .pth, names the function that the .pth calls."""
    environment.autoload('on')
    line, = (environment.site_packages / f'{NAME}.start').read_text().splitlines()
    call = (environment.site_packages / f'{NAME}.pth').read_text()
    assert call == f'import {NAME}; {line.replace(":", ".")}()\n'
    code = f'import pkgutil; pkgutil.resolve_name({line!r})(); {COUNT}'
    assert environment.run('-c', code).stdout != '0\n'


def test_uninstalled_package(environment):
    """With the package gone and autoload left on, Python starts and timm imports in silence."""
    environment.autoload('on')
    environment.package.unlink()
    result = environment.run('-W', 'error', *NO_RESOURCE_WARNING, '-c', COUNT)
    assert (result.stdout, result.stderr) == ('0\n', '')
    assert 'timm_mobilenext' not in environment.run('-W', 'default', '-c', COUNT).stderr


@pytest.mark.parametrize('filter', ['default', 'error'])
def test_broken_package(environment, filter):
    """An error in the package is one warning with the remedies, under -W error nothing, and timm works."""
    environment.autoload('on')
    environment.package.unlink()
    environment.package.mkdir()
    (environment.package / '__init__.py').write_text('raise RuntimeError("torn")')
    result = environment.run('-W', filter, *NO_RESOURCE_WARNING, '-c', COUNT)
    assert result.stdout == '0\n'
    warnings = [line for line in result.stderr.splitlines() if 'Warning: ' in line]
    if filter == 'error':
        assert result.stderr == ''
    else:
        assert len(warnings) == 1
        assert 'RuntimeError: torn' in warnings[0]
        assert 'autoload off' in warnings[0]


def test_files_of_another_version(environment):
    """Status tells start-up files that are not this version's or not all there, and on renews them."""
    hook = environment.site_packages / f'{NAME}.py'
    start = environment.site_packages / f'{NAME}.start'
    for damage in (lambda: hook.write_text(hook.read_text() + '# older\n'), hook.unlink, start.unlink):
        environment.autoload('on')
        damage()
        assert 'another version' in environment.autoload('status').stdout
    environment.autoload('on')
    assert environment.autoload('status').stdout.startswith('autoload is on: ')


@pytest.mark.skipif(not hasattr(os, 'geteuid'), reason='the mode of a folder keeps nobody from writing into it here')
def test_read_only_environment(environment):
    """Where site-packages cannot be written to, on and off say so, on leaves nothing and names the other ways."""
    root = os.geteuid() == 0
    if root and not shutil.which('setpriv'):
        pytest.skip('root may write anywhere, and there is no setpriv to take that right away')
    prefix = ('setpriv', '--bounding-set=-dac_override', '--inh-caps=-dac_override') if root else ()
    environment.site_packages.chmod(0o555)
    try:
        result = environment.autoload('on', prefix=prefix)
    finally:
        environment.site_packages.chmod(0o755)
    assert result.returncode == 1
    line, = result.stderr.splitlines()
    assert f'cannot write to {environment.site_packages}' in line
    assert 'virtual environment' in line
    assert environment.files() == []
    environment.autoload('on')
    environment.site_packages.chmod(0o555)
    try:
        result = environment.autoload('off', prefix=prefix)
    finally:
        environment.site_packages.chmod(0o755)
    assert (result.returncode, result.stdout) == (1, '')
    assert result.stderr.startswith('timm_mobilenext: autoload off failed: ')


def test_no_site(environment):
    """Under -S, which reads no start-up files, on and status say that autoload cannot work."""
    for command in ('on', 'status'):
        result = environment.run(
            '-S', '-m', 'timm_mobilenext', 'autoload', command, PYTHONPATH=str(environment.site_packages))
        assert result.returncode == 1
        line, = result.stderr.splitlines()
        assert 'started with -S' in line


def test_distribution_has_no_start_up_files():
    """The installed distribution brings no start-up file: autoload is for those who ask for it."""
    files = [str(path) for path in importlib.metadata.files('timm-mobilenext')]
    if Path(timm_mobilenext.__file__).parent.parent == Path(__file__).parent.parent:
        pytest.skip('installed in editable mode, which is a start-up file')
    assert not [path for path in files if path.endswith(('.pth', '.start'))]
