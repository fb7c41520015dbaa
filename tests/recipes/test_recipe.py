import dataclasses
import json
import re

import pytest

from recipes.recipe import RECIPES, Recipe, load_recipe
from recipes.schedules import lr_factor
from search_spaces.errors import UserError

PLAIN = Recipe(name="plain", epochs=10, batch_size=8, lr=0.1)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=str)
def test_round_trip(recipe, tmp_path):
    recipe.save(tmp_path / "recipe.json")
    assert Recipe.load(tmp_path / "recipe.json") == recipe
    assert load_recipe(tmp_path / "recipe.json") == recipe
    assert load_recipe(recipe.name) is recipe


def test_optional_fields_round_trip():
    recipe = PLAIN.replace(clip_grad_norm=1.5, early_stop_epoch=3, milestones=(0.25, 0.5, 0.9))
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize("name", ["nars", "fbnetv3", "fbnetv3-distilled", "fbnetv3-large", "fbnetv3-large-distilled"])
def test_published_recipes_are_table_4_9(name):
    recipe = RECIPES[name]
    assert (recipe.lr, recipe.optimizer, recipe.ema, recipe.weight_decay) == (0.026, "rmsprop", True, 7e-6)
    assert (recipe.dropout, recipe.mixup) == (0.17, 0.19)
    assert recipe.stochastic_depth == (0.2 if "large" in name else 0.09)
    assert recipe.distillation == (0.8 if "distilled" in name else 0.0)
    assert (recipe.epochs, recipe.decay_per_epoch, recipe.batch_size) == (400, 0.9875, 256)
    assert recipe.augment and recipe.auto_augment and recipe.label_smoothing and not recipe.weight_decay_norm
    assert recipe.ema_decay == 0.99985


def test_rates_of_the_final_training():
    """5 epochs of warm-up, then 0.026 x 0.9875 ** epoch, whatever the number of epochs trained."""
    recipe = RECIPES["fbnetv3"]
    for epoch in (5, 100, 399):
        assert lr_factor(recipe, epoch / 400) == pytest.approx(0.9875**epoch)
    assert lr_factor(recipe, 2.5 / 400) < 0.51
    assert lr_factor(recipe.with_epochs(40), 0.25) == pytest.approx(0.9875**100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, "lr must be in (0, 1e+06], got 0.0"),
        ({"lr": float("nan")}, "lr must be a finite number, got nan"),
        ({"lr": "0.1"}, "lr must be a plain number, got '0.1'"),
        ({"epochs": 2.0}, "epochs must be a plain whole number, got 2.0"),
        ({"epochs": 0}, "epochs must be in [1, 100000], got 0"),
        ({"batch_size": 1}, "batch_size must be in [2, 1.04858e+06], got 1"),
        ({"amp": 1}, "amp must be true or false, got 1"),
        ({"optimizer": "adam"}, "optimizer must be one of 'sgd', 'rmsprop', got 'adam'"),
        ({"schedule": "poly"}, "schedule must be one of 'step', "),
        ({"dropout": 1.0}, "dropout must be in [0, 1), got 1.0"),
        ({"mixup": -0.1}, "mixup must be in [0, 100], got -0.1"),
        ({"warmup_epochs": 10.0}, "warmup_epochs must be in [0, 10), got 10.0"),
        ({"early_stop_epoch": 11}, "early_stop_epoch must be in [1, 10], got 11"),
        ({"early_stop_epoch": 1.5}, "early_stop_epoch must be a plain whole number, got 1.5"),
        ({"clip_grad_norm": 0.0}, "clip_grad_norm must be in (0, 1e+06], got 0.0"),
        ({"milestones": (0.5, 0.5)}, "milestones must ascend inside (0, 1), got (0.5, 0.5)"),
        ({"milestones": (0.5, 1.0)}, "milestones must ascend inside (0, 1)"),
        ({"milestones": [0.5]}, "milestones must be a tuple of numbers, got [0.5]"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs optimizer 'sgd' and momentum > 0, got 'sgd' and 0.0"),
        ({"distillation": 1.5}, "distillation must be in [0, 1], got 1.5"),
        ({"distillation_temperature": 0.0}, "distillation_temperature must be in (0, 1e+06], got 0.0"),
        ({"auto_augment": True}, "auto_augment true needs augment true"),
        ({"name": ""}, "name must be a non-empty text"),
        ({"weight_decai": 0.0}, "unknown key 'weight_decai'; did you mean 'weight_decay'?"),
    ],
)
def test_bad_values_are_named(change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        PLAIN.replace(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema must be 1, got 2"),
        ({"lr": "fast"}, "recipe.lr must be float, got 'fast'"),
        ({"lr": -1.0}, "recipe: lr must be in (0, 1e+06], got -1.0"),
        ({"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'?"),
    ],
)
def test_bad_json_is_named(change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Recipe.from_json(PLAIN.to_json() | change)


def test_unknown_name_and_missing_file(tmp_path):
    with pytest.raises(UserError, match="unknown recipe 'digit'; did you mean 'digits'"):
        load_recipe("digit")
    with pytest.raises(UserError, match="cannot read"):
        load_recipe(tmp_path / "none.json")


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.lr = 1.0  # type: ignore[misc]


def test_with_epochs_keeps_shares():
    recipe = PLAIN.replace(warmup_epochs=2.0, early_stop_epoch=5).with_epochs(4)
    assert (recipe.epochs, recipe.warmup_epochs, recipe.early_stop_epoch, recipe.last_epoch) == (4, 0.8, 2, 2)
    with pytest.raises(UserError, match="epochs must be a whole number >= 1, got 0"):
        PLAIN.with_epochs(0)
