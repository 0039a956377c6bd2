"""Run timm's own tests, unedited, on the models of this package.

    python tools/timm_suite.py                              # every architecture
    python tools/timm_suite.py mobilenext_035 mobilenext_s  # these
    python tools/timm_suite.py mobilenext_035 -- -x         # what follows -- goes to pytest

The tests come from the source distribution of the installed timm, which pip downloads once into the user's cache.
`timm_suite_plugin.py` beside this file points them at our models.
"""
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

# the test files about models in general; older versions have fewer
FILES = ('test_models.py', 'test_model_input.py', 'test_input_conv.py', 'test_prune.py')


def fetch_tests(version: str) -> Path:
    """Return the archive of timm's source distribution, downloaded by pip unless it is cached.

    Args:
        version: Version of timm.
    """
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'timm-mobilenext'
    archive = cache / f'timm-{version}.tar.gz'
    if not archive.exists():
        subprocess.run(
            [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary', 'timm',
             '--dest', str(cache), f'timm=={version}'],
            check=True,
        )
    return archive


def main() -> int:
    """Run the tests and return pytest's exit code."""
    args = sys.argv[1:]
    split = args.index('--') if '--' in args else len(args)
    models, pytest_args = args[:split], args[split + 1:]
    version = importlib.metadata.version('timm')
    archive = fetch_tests(version)
    with tempfile.TemporaryDirectory(prefix='timm-suite-') as work:
        # only tests/: with timm/ beside it pytest would import the archive's timm, not the installed one
        with tarfile.open(archive) as tar:
            prefix = f'timm-{version}/'
            for member in tar.getmembers():
                if member.name.startswith(f'{prefix}tests/'):
                    member.name = member.name.removeprefix(prefix)
                    tar.extract(member, work, filter='data')
        Path(work, 'pytest.ini').write_text('[pytest]\n')  # so that pytest uses no file of a folder above
        env = {'OMP_NUM_THREADS': '2', **os.environ, 'HF_HUB_OFFLINE': '1', 'TIMM_SUITE_MODELS': ','.join(models)}
        env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get('PYTHONPATH')]))
        env.pop('GITHUB_ACTIONS', None)  # timm leaves tests out where it is set
        command = [sys.executable, '-m', 'pytest', '-p', 'timm_suite_plugin', '-p', 'no:cacheprovider', '-W', 'ignore',
                   '-q', *pytest_args, *(f'tests/{name}' for name in FILES if Path(work, 'tests', name).exists())]
        return subprocess.run(command, cwd=work, env=env).returncode


if __name__ == '__main__':
    sys.exit(main())
