"""timm's `build_model_with_cfg`, with pretrained weights from where `weights.download.locate` finds them.

timm itself loads them from the Hub or from one address, and can neither verify a file nor fall back to another source.
"""
import logging
from pathlib import Path
from typing import Any

from timm.models import _builder, resolve_pretrained_cfg

from timm_mobilenext.weights import download  # a module, not its names: see mobilenext.py

_logger = logging.getLogger(__name__)


def build_model_with_cfg(
        model_cls: Any, variant: str, pretrained: bool, pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None, cache_dir: str | Path | None = None, **kwargs: Any,
) -> Any:
    """Build a model as timm does, from its arguments.

    Raises:
        OSError: If the weights are unavailable.
        RuntimeError: If there are no weights, or they are damaged or of another model.
    """
    overlay = dict(pretrained_cfg_overlay or {})
    if pretrained:
        place = download.locate(resolve_pretrained_cfg(variant, pretrained_cfg, overlay), cache_dir)
        _logger.info(f'Pretrained weights of {variant}: {place.text}')
        if place.read:
            overlay['state_dict'] = place.read()
    model = _builder.build_model_with_cfg(
        model_cls, variant, pretrained, pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=overlay or None,
        cache_dir=cache_dir, **kwargs)
    for module in model.modules():  # a wrapper for features and the model in it would keep a copy of all weights
        getattr(module, 'pretrained_cfg', {}).pop('state_dict', None)
    return model
