"""timm's `build_model_with_cfg`, with the authors' files, and that of PaddleClas, behind the Hub.

timm takes pretrained weights from the Hub or from one address, and has no place for another source. In timm's own
package this module has the same name and one function of the same arguments, so that mobilenext.py works in both.
"""
import logging
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HTTPError
from safetensors import SafetensorError

from timm.models import _builder, get_pretrained_cfg, resolve_pretrained_cfg

from timm_mobilenext import _layers
from timm_mobilenext.weights import download as places
from timm_mobilenext.weights.authors import SOURCES, Source, find_source

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
    """Build a model as timm does, with weights from the authors' file where the Hub has no repository.

    The authors' file stands in for the registered repository alone: what the user named (another owner, a revision,
    a file, a state dict) is taken or fails. A gated repository and offline mode fail too, with a remedy under the
    Hub's own message. An authors' file that is in the cache already is used without asking the Hub, unless the Hub's
    cache has the weights: it is as good as theirs, and works without a network.

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
        OSError: If the weights cannot be had; the Hub's own errors but for a connection that breaks are of this type.
        RuntimeError: If there are no weights, or they are damaged or of another model.
    """
    overlay = pretrained_cfg_overlay or {}

    def build(pretrained: bool = True, **more: Any) -> Any:
        return _builder.build_model_with_cfg(
            model_cls, variant, pretrained, pretrained_cfg=pretrained_cfg, cache_dir=cache_dir,
            pretrained_cfg_overlay={**overlay, **more} or None, **kwargs)

    if not pretrained:
        return build(pretrained=False)
    if not overlay and all(kwargs.get(arg) is None for arg in ('num_classes', 'in_chans')):
        kwargs.setdefault('weight_init', 'skip')  # every parameter is loaded; takes a fifth off the time
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay)

    def build_with(checkpoint: dict[str, Any]) -> Any:
        model = build(state_dict=checkpoint)
        for module in model.modules():  # a wrapper for features and the model in it
            getattr(module, 'pretrained_cfg', {}).pop('state_dict', None)
        return model

    if cfg.file and not (cfg.source or cfg.state_dict or cfg.custom_load):
        # of a damaged file timm's reader raises an error of any type; it, too, keeps nothing but the state dict
        return build_with(_layers.weights(places.read(cfg.file)))
    if cfg.source or cfg.state_dict or cfg.file:  # at hand, timm's matter alone
        return build()
    if not cfg.has_weights:
        try:
            return build()
        except RuntimeError as error:
            raise _with_remedy(
                error, f'There are weights of {", ".join(SOURCES)}, by the authors. To train this one, start from the '
                'recipes of the project (folder recipes/, docs/training.md).') from None

    repo, source = cfg.hf_hub_id or '', None
    name = f'{variant}.{cfg.tag}' if cfg.tag else variant
    registered = get_pretrained_cfg(name)
    if registered is not None and repo == registered.hf_hub_id:
        repo = places.hub_id(name) or ''
        overlay = {**overlay, 'hf_hub_id': repo}
        source = None if places.hub_owner() else find_source(name)

    def build_from_authors(source: Source, reason: str = '') -> Any:
        if reason:
            _logger.warning(
                f'{repo} cannot be had from the Hub ({reason}). Taking {source.owner} own file, {source.url}'
                + ('' if source.blob else ', of which no digest is known'))
        return build_with(source.weights(places.read(places.fetch(source, cache_dir))))

    if repo and not places.hub_cache(repo, cache_dir):
        if source and places.cached_file(source, cache_dir).exists():
            return build_from_authors(source)
        if not constants.HF_HUB_OFFLINE:
            urls = [constants.ENDPOINT, *([source.url] if source else [])]
            answering = places.answering(urls)
            if source and answering == {source.url}:
                return build_from_authors(source, 'no connection')
            if not answering:
                raise ConnectionError(
                    f'No weights of {name} are in the caches, and there is no connection to '
                    f'{" or ".join(str(urlsplit(url).hostname) for url in urls)}.\n{_remedy(None, name, repo)}')
    try:
        return build()
    except SafetensorError as error:
        damaged = places.hub_cache(repo, cache_dir)
        if not damaged:
            raise
        raise RuntimeError(
            f'{damaged.resolve()}, the cached {places.WEIGHTS_NAME} of {repo}, is damaged: {error}. '
            'Delete this file, then the next call downloads it again.') from error
    except (OSError, HTTPError, EntryNotFoundError) as error:
        if source and places.is_out_of_reach(error):
            return build_from_authors(source, type(error).__name__)
        raise _with_remedy(error, _remedy(error, name, repo)) from error.__cause__


def _remedy(error: Exception | None, name: str, repo_id: str) -> str:
    """Say what to do about an error of the Hub."""
    if isinstance(error, GatedRepoError):
        remedy = f'Accept the conditions of {repo_id} on its page and log in with `hf auth login`.'
    elif constants.HF_HUB_OFFLINE:
        remedy = f'HF_HUB_OFFLINE is set and {repo_id} is not in the cache: run once without it.'
    else:
        remedy = f'This is about {repo_id}; check the name, the network and the cache (`cache_dir=`, HF_HOME).'
    remedy += ' A file you have is loaded with `pretrained_cfg_overlay=dict(file=PATH)`'
    source = find_source(name)
    if source:
        remedy += f', and `python -m timm_mobilenext convert {name}` makes one of {source.owner} checkpoint'
    return remedy + '.'


def _with_remedy(error: Exception, remedy: str) -> Exception:
    """Return the error with a remedy under its message."""
    if isinstance(error, OSError) and error.errno is not None:  # its message is not made of its arguments
        return type(error)(f'{error}\n{remedy}')
    error.args = (f'{error}\n{remedy}', *error.args[1:])
    return error
