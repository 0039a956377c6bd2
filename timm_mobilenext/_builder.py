"""timm's `build_model_with_cfg`, with pretrained weights from where `weights.download.locate` finds them.

timm takes them from the Hub or from one address, and cannot verify a file or fall back to another source.
"""
import logging
from pathlib import Path
from typing import Any

from timm.models import _builder, resolve_pretrained_cfg

from timm_mobilenext.weights import download  # a module, see mobilenext.py

_logger = logging.getLogger(__name__)


def build_model_with_cfg(
        model_cls: Any,
        variant: str,
        pretrained: bool,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: str | Path | None = None,
        **kwargs: Any,
) -> Any:
    """Build a model as timm does.

    Args:
        model_cls: Class of the model.
        variant: Name of the architecture.
        pretrained: Whether to load weights.
        pretrained_cfg: See timm.
        pretrained_cfg_overlay: See timm.
        cache_dir: Folder of the caches, by default those of the Hub's client and of torch.hub.
        **kwargs: The other arguments of timm's function, and those of the model.

    Returns:
        The model.

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
    for module in model.modules():  # a wrapper for features and the model in it keep a copy of all weights
        getattr(module, 'pretrained_cfg', {}).pop('state_dict', None)
    return model
