"""Register the models with timm: at once where timm is imported already, else as soon as `timm.models` has been.

This is the one way in which the models are registered. The import of the package installs the hook, and so the launcher
does, which leaves timm to the script; `autoload on` copies this file to site-packages, where every start of Python
installs it. So it imports nothing but `sys`, and what it does must neither break nor slow any program.
"""
import sys

TYPE_CHECKING = False  # typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

TARGET = 'timm.models'


class Hook:
    """Finder that leaves `timm.models` to the finders behind it, and registers the models when the module has run."""

    def find_spec(
            self,
            name: str,
            path: 'Sequence[str] | None' = None,
            target: 'ModuleType | None' = None,
    ) -> 'ModuleSpec | None':
        """Return the spec that a finder behind this one finds, with a loader that registers the models."""
        if name != TARGET:
            return None
        behind = sys.meta_path[sys.meta_path.index(self) + 1:]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in behind)), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: 'ModuleType') -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                _register_or_warn()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Register the models, now or when timm is imported."""
    if TARGET in sys.modules:
        import timm_mobilenext.mobilenext  # noqa: F401 - registers
    elif not any(isinstance(finder, Hook) for finder in sys.meta_path):
        sys.meta_path.insert(0, Hook())


def _register_or_warn() -> None:
    """Register the models. Where the package is not installed nothing happens, another failure is one warning."""
    try:
        import timm_mobilenext.mobilenext  # noqa: F401 - registers
    except Exception as error:  # whatever it is, the import of timm goes on
        if isinstance(error, ModuleNotFoundError) and error.name == 'timm_mobilenext':
            return  # uninstalled with autoload left on
        import contextlib
        import warnings
        with contextlib.suppress(RuntimeWarning):  # under python -W error
            warnings.warn(
                f'timm_mobilenext could not register its models with timm: {type(error).__name__}: {error}. Repair it '
                'with `pip install --force-reinstall timm-mobilenext`, or remove its start-up files with `python -m '
                'timm_mobilenext autoload off`.', RuntimeWarning, stacklevel=2)
