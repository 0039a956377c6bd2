"""A pytest plugin that points timm's own tests at the models of this package; `timm_suite.py` runs it.

It registers the models before timm's tests ask for the list, adds them to the tests that timm parametrizes with names
of its own models, and deselects every test that is not about ours. No file of timm's is changed.

A new model gets batch norm statistics from one forward pass. Without them an untrained MobileNeXt, as the authors
initialize it, answers about 1e-11 in evaluation mode, and timm's comparisons (atol 1e-8 and more) find any two answers
equal.

Tests on models that ours are not added to, with the reason:
    test_model_inference: about outputs that are recorded in timm's own repositories on the Hub
    test_model_load_pretrained, test_model_features_pretrained: need the network; tests/test_builder.py makes their
        calls, and more of the kind, on loopback
    test_catavgmax_unsupported: for families that cannot concatenate pooled features; this one can
    test_pruned_*: about timm's models that have a pruning recipe inside timm
    tests of set_input_size, class tokens, attention: about transformers
"""
import collections
import os
from pathlib import Path

import pytest
import timm
import torch
from torch.optim.swa_utils import update_bn

import timm_mobilenext

# Tests that timm parametrizes with names of its own models, and what each of our models is given beside its name there.
BY_HAND = {
    'test_reset_classifier_keeps_pool': [()],
    'test_features_only_grad_checkpointing_backward': [()],
    'test_feature_getter_stage_ends_torchscript': [()],
    'test_prune_intermediate_layers_params_used': [()],
    'test_features_only_feature_cls_class': [()],
    'test_forward_after_prune_intermediate_layers': [()],
    'test_prune_to_stem_feature': [()],
    'test_prune_extra_blocks_stem_width': [()],
    'test_model_features_output_stride': [()],
    'test_prune_intermediate_layers_last_feature': [(True,)],
    'test_head_hidden_size': [({},)],
    'test_model_init_weights_after_to_empty': [({},)],
    'test_mobile_model_fusion_features': [({},)],
    'test_export_tracks_reset_pool_in_head': [(3, 'max'), (0, '')],
    'test_export_tracks_reset_classifier_structure': [({}, None, None), ({}, 'max', None)],
}
# Tests with the name of a model of timm in their body. They run with our model in its place.
IN_BODY = {
    'test_create_model_transfers_multispectral_checkpoint': 'test_resnet',
    'test_resnet_pruned_grad_checkpointing': 'test_resnet',
    'test_export_data_config_test_size_roundtrip': 'test_resnet',
    'test_script_resolution_defaults_to_multispectral_source': 'resnet18',
    'test_conv_model_image_size_is_preprocessing_only': 'resnet18',
}

NEED_NETWORK = ('test_model_load_pretrained', 'test_model_features_pretrained')

OURS = timm.list_models(module='mobilenext')
MODELS = [name for name in os.environ.get('TIMM_SUITE_MODELS', '').split(',') if name] or OURS
_unknown = sorted(set(MODELS) - set(OURS))
if _unknown:
    raise pytest.UsageError(f'Architecture {", ".join(_unknown)} does not exist. Give some of {", ".join(OURS)}.')

_list_models = timm.list_models


def _list_models_with_ours(filter='', module='', *args, **kwargs):
    """Add this package to the modules that timm's tests name, of models with `forward_intermediates`."""
    if isinstance(module, (list, tuple)) and 'efficientnet' in module:
        module = [*module, 'mobilenext']
    return _list_models(filter, module, *args, **kwargs)


timm.list_models = _list_models_with_ours

_create_model = timm.create_model


def _create_model_calibrated(model_name, *args, **kwargs):
    """Create a model, one of ours with batch norm statistics that fit its weights."""
    model = _create_model(model_name, *args, **kwargs)
    stem = next(model.parameters())
    if str(model_name).split('.')[0] in OURS and not kwargs.get('pretrained') and not stem.is_meta:
        with torch.random.fork_rng():
            update_bn([torch.randn(4, stem.shape[1], 64, 64, dtype=stem.dtype)], model)
    return model


timm.create_model = _create_model_calibrated


def _model_of(item):
    """Return the model of ours that a collected test is about, None if it is about another or is left out."""
    if item.originalname in NEED_NETWORK:
        return None
    params = item.callspec.params if hasattr(item, 'callspec') else {}
    return next((str(p).split('.')[0] for p in params.values() if str(p).split('.')[0] in MODELS), None)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc):
    name = metafunc.function.__name__
    if name in BY_HAND:
        for mark in metafunc.definition.iter_markers('parametrize'):
            if str(mark.args[0]).startswith('model_name'):
                mark.args[1].extend((model, *rest) if rest else model for model in MODELS for rest in BY_HAND[name])
    if name in IN_BODY:
        metafunc.fixturenames.append('model_in_body')
        metafunc.parametrize('model_in_body', MODELS, indirect=True)


@pytest.fixture
def model_in_body(request, monkeypatch):
    """Let the test create our model where it names timm's."""
    replaced = IN_BODY[request.function.__name__]

    def swap(function):
        def swapped(model_name, *args, **kwargs):
            return function(request.param if model_name == replaced else model_name, *args, **kwargs)
        return swapped

    for owner, name in (
            (timm, 'create_model'), (request.module, 'create_model'), (request.module, 'resolve_model_input_args')):
        if hasattr(owner, name):
            monkeypatch.setattr(owner, name, swap(getattr(owner, name)))


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if _model_of(item) is None]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if _model_of(item) is not None]
    for item in items:
        item.user_properties.append(('model', _model_of(item)))


def pytest_report_header():
    return f'timm {timm.__version__} from {Path(timm.__file__).parent}, models from {timm_mobilenext.__file__}'


def pytest_terminal_summary(terminalreporter):
    """Count the tests of each architecture by their outcome."""
    counts = {model: collections.Counter() for model in MODELS}
    for outcome in ('passed', 'failed', 'skipped'):
        for report in terminalreporter.stats.get(outcome, []):
            model = dict(report.user_properties).get('model')
            if model and (report.when == 'call' or outcome != 'passed'):
                counts[model][outcome] += 1
    for model, count in counts.items():
        terminalreporter.write_line(f'{model}: {count.total()} tests of timm, ' + ', '.join(
            f'{count[outcome]} {outcome}' for outcome in ('passed', 'failed', 'skipped')))
