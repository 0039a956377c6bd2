"""The architectures for `torch.hub.load`, e.g. `torch.hub.load(CHECKOUT, 'mobilenext_100', source='local')`."""
dependencies = ['torch', 'timm']

import timm as _timm  # noqa: E402 - torch.hub reads the dependencies first

import timm_mobilenext as _timm_mobilenext  # noqa: E402

globals().update({name: getattr(_timm_mobilenext, name) for name in _timm.list_models(module='mobilenext')})
