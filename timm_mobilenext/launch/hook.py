"""Register the models with timm: at once if timm has been imported, otherwise as soon as `timm.models` is.

Importing the package installs this hook. The launcher imports the package and leaves the import of timm to the script.
"""
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

TARGET = 'timm.models'


class Hook:
    """Finder that has `timm.models` found by the finders behind it, and registers the models when it was imported."""

    def find_spec(
            self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec that a finder behind this one finds, with a loader that registers the models."""
        if name != TARGET:
            return None
        behind = sys.meta_path[sys.meta_path.index(self) + 1:]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in behind)), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                import timm_mobilenext.mobilenext  # noqa: F401 - registers

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Register the models, now or when timm is imported."""
    if TARGET in sys.modules:
        import timm_mobilenext.mobilenext  # noqa: F401 - registers
    elif not any(isinstance(finder, Hook) for finder in sys.meta_path):
        sys.meta_path.insert(0, Hook())
