"""The recipes: options that timm's train.py has, and the authors' schedules."""
import itertools
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from timm_mobilenext.launch import recipe

ROOT = Path(__file__).parent.parent
RECIPES = {name: yaml.safe_load(path.read_text()) for name, path in recipe.RECIPES.items()}
# What the authors' training logs print in each epoch, mobilenext/output/{4_29M_76_6,5_68M_76_8}/*-logger.log
LEARNING_RATES = json.loads((ROOT / 'tests' / 'data' / 'learning_rates.json').read_text())


def learning_rates(recipe: dict) -> list[str]:
    """Return the learning rate of a recipe in each epoch, as the authors' code prints it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe['lr_base'])
    scheduler, num_epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(Namespace(**recipe)))
    printed = []
    for epoch in range(num_epochs):
        printed.append(f'{optimizer.param_groups[0]["lr"]:.3e}')
        scheduler.step(epoch + 1)
    return printed


def optimizer_of(recipe: dict) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe at the learning rate of its own batch size."""
    args = Namespace(**{'lr': recipe['lr_base'], 'momentum': 0.9, **recipe})
    return create_optimizer_v2(timm.create_model(args.model, num_classes=2), **optimizer_kwargs(cfg=args))


@pytest.mark.parametrize('name', LEARNING_RATES)
def test_learning_rates_of_the_authors(name):
    """The recipe has the epochs of the authors' log, and in each the learning rate that the log prints."""
    assert learning_rates(RECIPES[name]) == LEARNING_RATES[name]


def test_learning_rates_of_relu6_family():
    """The recipe has the 210 epochs of the authors' summary.csv, and in 198 what a log that resumes from it prints."""
    printed = learning_rates(RECIPES['mobilenext_100'])
    assert len(printed) == 210
    assert printed[198] == '3.467e-05'  # mobilenext/output/mnext_mbv2/log/b4e2ad803408-20200708-024243-*-logger.log


@pytest.mark.parametrize(('name', 'optimizer', 'settings'), [
    ('mobilenext_100', 'SGD', dict(lr=0.1, momentum=0.9, nesterov=True)),
    ('mobilenext_s', 'RMSpropTF', dict(lr=0.12, momentum=0.9, eps=1e-3, alpha=0.9)),
    ('mobilenext_l', 'RMSpropTF', dict(lr=0.12, momentum=0.9, eps=1e-3, alpha=0.9)),
    ('mobilenext_l_ghost', 'RMSpropTF', dict(lr=0.048, momentum=0.9, eps=1e-3, alpha=0.9)),
])
def test_optimizers_of_the_authors(name, optimizer, settings):
    """The optimizer has the authors' settings, and weight decay on all but biases and norms."""
    made = optimizer_of(RECIPES[name])
    assert type(made).__name__ == optimizer
    assert {key: made.defaults[key] for key in settings} == settings
    assert {
        (group['weight_decay'], p.ndim > 1) for group in made.param_groups for p in group['params']
    } == {(0., False), (RECIPES[name]['weight_decay'], True)}


def test_layer_decay_of_fine_tuning():
    """Fine-tuning gives the classifier the whole learning rate, and less to every layer before it."""
    groups = optimizer_of({**RECIPES['finetune'], 'model': 'mobilenext_035'}).param_groups
    scales = sorted({group['lr_scale'] for group in groups})
    assert len(scales) == 22  # stem, 20 blocks, classifier
    assert scales[-1] == 1
    assert all(low / high == pytest.approx(0.95) for low, high in itertools.pairwise(scales))


def test_start_and_norm_of_the_authors():
    """The authors' recipes train from their start, with their batch norm momentum; the others with PyTorch's."""
    for name, found in RECIPES.items():
        model = timm.create_model(
            found['model'], **found.get('model_kwargs', {}), **{k: v for k, v in found.items() if k == 'bn_momentum'})
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert any((norm.weight == 0).any() for norm in norms) == (name != found['model'])
        momentum = 0.01 if name in ('mobilenext_s', 'mobilenext_l', 'mobilenext_l_ghost') else 0.1
        assert {norm.momentum for norm in norms} == {momentum}


def test_page_lists_all_recipes():
    """docs/training.md says what each recipe is for."""
    section = (ROOT / 'docs' / 'training.md').read_text().partition('## Recipes')[2].partition('\n## ')[0]
    assert [name for name in RECIPES if f'`{name}`' not in section] == []


def test_recipe_is_written(tmp_path, monkeypatch):
    """The command writes a recipe into the current folder, and does not overwrite a file."""
    monkeypatch.chdir(tmp_path)
    assert recipe.main(['scratch']) == 0
    assert yaml.safe_load(Path('scratch.yaml').read_text()) == RECIPES['scratch']
    Path('scratch.yaml').write_text('mine')
    with pytest.raises(SystemExit, match=r'^error: scratch.yaml exists already. Give the name of a new file'):
        recipe.main(['scratch'])
    assert Path('scratch.yaml').read_text() == 'mine'


def test_options_are_those_of_train(timm_scripts):
    """The train.py of timm has every option of every recipe."""
    code = 'import json, train; print(json.dumps([action.dest for action in train.parser._actions]))'
    options = json.loads(subprocess.run(
        [sys.executable, '-c', code], cwd=timm_scripts, capture_output=True, text=True, check=True, timeout=120).stdout)
    for name, found in RECIPES.items():
        assert set(found) <= {*options}, name
