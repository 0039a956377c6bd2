"""MobileNeXt for timm: importing this package registers the models, `timm.create_model('mobilenext_100')` works."""
import sys

__version__ = '0.1.0'

# Not under `python -m timm_mobilenext SCRIPT`, which imports this package before the script can say which timm it uses
# (__main__.py imports the models when it has). Python documents that sys.argv[0] is '-m' until the module is found.
if sys.argv[:1] != ['-m'] or sys.orig_argv[-len(sys.argv):][:1] not in ([__name__], [f'-m{__name__}']):
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
