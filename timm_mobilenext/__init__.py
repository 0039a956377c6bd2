"""MobileNeXt for timm: importing this package registers the models, `timm.create_model('mobilenext_100')` works.

This import itself loads neither timm nor PyTorch. The models are registered when timm is imported, before or after it.
"""
from typing import TYPE_CHECKING, Any

from timm_mobilenext.launch import hook

__version__ = '0.1.0'

if TYPE_CHECKING:  # what static tools see
    from timm_mobilenext.mobilenext import (
        MobileNeXt as MobileNeXt,
        SandGlass as SandGlass,
        mobilenext_035 as mobilenext_035,
        mobilenext_050 as mobilenext_050,
        mobilenext_075 as mobilenext_075,
        mobilenext_100 as mobilenext_100,
        mobilenext_100_id025 as mobilenext_100_id025,
        mobilenext_100_id033 as mobilenext_100_id033,
        mobilenext_100_id050 as mobilenext_100_id050,
        mobilenext_140 as mobilenext_140,
        mobilenext_l as mobilenext_l,
        mobilenext_l_ghost as mobilenext_l_ghost,
        mobilenext_s as mobilenext_s,
    )
else:
    def __getattr__(name: str) -> Any:
        """Return a class or an architecture, and import timm for it if nobody has."""
        if name in ('MobileNeXt', 'SandGlass') or name.startswith('mobilenext_'):
            from timm_mobilenext import mobilenext
            if name in mobilenext.__all__:
                return getattr(mobilenext, name)
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


hook.install()
