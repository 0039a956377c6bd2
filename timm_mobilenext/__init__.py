"""MobileNeXt for timm: importing this package registers the models, `timm.create_model('mobilenext_100')` works.

This import itself loads neither timm nor PyTorch. The models are registered when timm is imported, before or after it.
"""
from typing import TYPE_CHECKING, Any

from timm_mobilenext.launch import hook

__version__ = '0.1.0'

if TYPE_CHECKING:  # what static tools see
    from timm_mobilenext.mobilenext import MobileNeXt as MobileNeXt, SandGlass as SandGlass


def __getattr__(name: str) -> Any:
    """Return a class or an architecture, importing timm if nobody has."""
    if name in ('MobileNeXt', 'SandGlass') or name.startswith('mobilenext_'):
        from timm_mobilenext import mobilenext
        if name in mobilenext.__all__:
            return getattr(mobilenext, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


hook.install()
