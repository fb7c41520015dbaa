import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from recipes.recipe import RECIPES
from recipes.space import CANDIDATE, JOINT_SPACES, JointSpace, RecipeSpace, load_joint, nars_recipes
from search_spaces.cost import cost
from search_spaces.errors import UserError
from search_spaces.sampling import uniform_rows
from search_spaces.space import SearchSpace, Stem
from search_spaces.spaces import SPACES
from search_spaces.tables import SpaceTables
from search_spaces.variables import Choice, Range


def random_rows(space, n, seed=0):
    return uniform_rows(space, n, np.random.default_rng(seed))


# recipes ----------------------------------------------------------------------------------------------------------------


def test_recipe_options_are_those_of_table_4_2():
    """Thesis Table 4.2, last row, walked in whole steps of its units; d by the reading (0, 31) x 1e-2."""
    options = {v.name: v.options for v in nars_recipes(search_ema=True).variables}
    for name, low, high, unit in (
        ("lr", 20, 30, 1e-3),
        ("dropout", 1, 31, 1e-2),
        ("stochastic_depth", 0, 31, 1e-2),
        ("mixup", 0, 41, 1e-2),
        ("weight_decay", 7, 21, 1e-6),
    ):
        assert options.pop(name) == pytest.approx([step * unit for step in range(low, high + 1)], rel=1e-12)
    assert set(options.pop("optimizer")) == {"rmsprop", "sgd"} and set(options.pop("ema")) == {True, False}
    assert not options
    assert "ema" not in nars_recipes(search_ema=False).column


def test_sizes():
    """11 rates x 2 optimizers x 31 x 32 x 42 x 15; the thesis says 10^7 recipes and 10^17 architectures."""
    recipes = 11 * 2 * 31 * 32 * 42 * 15
    assert load_joint("fbnetv3").recipe.size == recipes and load_joint("fbnetv3-recipe").size == 2 * recipes
    assert 7 < math.log10(recipes) < 7.5
    assert load_joint("fbnetv3").size == recipes * SPACES["fbnetv3"]().size


def test_sgd_trains_at_four_times_the_rate():
    """By hand: 0.026 with RMSProp is Table 4.9's, 4 x 0.026 = 0.104 and 4 x 0.03 = 0.12 with SGD."""
    space = nars_recipes(search_ema=False)
    values = {"lr": 0.026, "optimizer": "rmsprop", "dropout": 0.17, "stochastic_depth": 0.09, "mixup": 0.19}
    found = space.decode(space.row({**values, "weight_decay": 7e-6}))
    assert (
        dataclasses.replace(RECIPES["nars"], name=found.name, epochs=150, decay_per_epoch=0.963, decay_epochs=150)
        == found
    )
    sgd = space.decode(space.row({**values, "optimizer": "sgd", "weight_decay": 7e-6}))
    assert sgd == found.replace(optimizer="sgd", lr=0.104)
    assert space.decode(space.row({**values, "lr": 0.03, "optimizer": "sgd", "weight_decay": 7e-6})).lr == 0.12


def test_the_candidates_recipe_is_that_of_thesis_4_4():
    assert (CANDIDATE.epochs, CANDIDATE.decay_per_epoch, CANDIDATE.decay_epochs) == (150, 0.963, 150.0)
    assert CANDIDATE.ema and CANDIDATE.schedule == "exponential" and CANDIDATE.label_smoothing == 0.1


@pytest.mark.parametrize("name", JOINT_SPACES)
def test_every_recipe_row_is_another_recipe_and_reads_its_options(name):
    space = load_joint(name).recipe
    rows = np.unique(random_rows(space, 200), axis=0)
    recipes = [space.decode(row) for row in rows]
    assert len(set(recipes)) == len(rows)
    factor = {"fbnetv3": 4, "fbnetv3-recipe": 4, "fbnetv3-cifar": 80, "digits-joint": 20}[name]
    for row, recipe in zip(rows, recipes, strict=True):
        values = space.values(row)
        values["lr"] *= factor if recipe.optimizer == "sgd" else 1
        assert {key: getattr(recipe, key) for key in values} == pytest.approx(values)
        assert recipe.nesterov == (space.base.nesterov and recipe.optimizer == "sgd")
        assert recipe.ema or name == "fbnetv3-recipe"
        fixed = {f.name for f in dataclasses.fields(recipe)} - {*values, "nesterov"}
        assert all(getattr(recipe, key) == getattr(space.base, key) for key in fixed)


def test_rates_of_sgd_in_the_small_spaces():
    for name, low, high in (("fbnetv3-cifar", 0.08, 0.48), ("digits-joint", 0.04, 0.2)):
        space = load_joint(name).recipe
        row = np.zeros(len(space), dtype=int)
        row[space.column["optimizer"]] = space.variables[space.column["optimizer"]].options.index("sgd")
        rates = []
        for option in (0, space.option_counts[space.column["lr"]] - 1):
            row[space.column["lr"]] = option
            rates.append(space.decode(row).lr)
        assert rates == pytest.approx([low, high])


@pytest.mark.parametrize(
    ("variables", "factors", "message"),
    [
        ([Range("learning_rate", (1, 2))], {}, "no recipe has 'learning_rate'"),
        ([Range("name", (1, 2))], {}, "no recipe has 'name'"),
        ([Range("dropout", (0.0, 1.0))], {}, r"recipe space r: dropout must be in \[0, 1\), got 1.0"),
        ([Choice("optimizer", ("sgd", "adam"))], {}, "recipe space r: optimizer must be one of"),
        ([Range("lr", (0.1, 0.2))], {"adam": 2.0}, "unknown optimizer 'adam' in lr_factors"),
    ],
)
def test_recipe_space_refuses(variables, factors, message):
    with pytest.raises(UserError, match=message):
        RecipeSpace("r", RECIPES["digits"], variables, lr_factors=factors)


def test_a_rate_that_is_not_searched_is_the_bases():
    space = RecipeSpace("r", RECIPES["digits"], [Choice("optimizer", ("sgd", "rmsprop"))], lr_factors={"sgd": 4.0})
    assert [space.decode([i]).lr for i in (0, 1)] == [0.1, 0.1]


# joint spaces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", JOINT_SPACES)
def test_rows_decode_to_both_parts(name):
    space = load_joint(name)
    for row in random_rows(space, 20):
        network, recipe = space.decode(row)
        first, second = space.split(row)
        assert first.shape[1] + second.shape[1] == len(space)
        assert recipe == space.recipe.decode(second[0])
        if space.architecture is None:
            assert network is None and first.shape == (1, 0)
        else:
            assert network == space.architecture.decode(first[0])
        assert (space.row(space.values(row)) == row).all()


def test_columns_of_the_network_come_first():
    space = load_joint("fbnetv3")
    assert space.architecture_columns == 36 and space.variables[:36] == SPACES["fbnetv3"]().variables
    assert [v.name for v in space.variables[36:]] == [
        "lr", "optimizer", "dropout", "stochastic_depth", "mixup", "weight_decay"
    ]  # fmt: skip
    first = SPACES["digits"]()
    assert JointSpace("networks", first, None).decode(np.zeros(len(first), dtype=int))[1] is None


def test_canonical_rows_keep_network_and_recipe():
    space = load_joint("fbnetv3")
    rows = random_rows(space, 60)
    canonical = space.canonical(rows)
    assert (canonical != rows).any() and (space.canonical(canonical) == canonical).all()
    assert (canonical[:, 36:] == rows[:, 36:]).all()
    for row, form in zip(rows, canonical, strict=True):
        assert space.decode(row) == space.decode(form)


@pytest.mark.parametrize("name", ["fbnetv3", "fbnetv3-cifar", "digits-joint"])
def test_statistics_are_those_of_the_decoded_networks(name):
    space = load_joint(name)
    rows = random_rows(space, 15, seed=2)
    found = space.statistics(rows, num_classes=13, in_channels=2)
    assert list(found) == ["flops", "params", "params_all", "resolution"]
    for index, row in enumerate(rows):
        network, _ = space.decode(row)
        exact = cost(network, num_classes=13, in_channels=2)
        assert {key: int(values[index]) for key, values in found.items()} == {
            **exact._asdict(), "resolution": network.resolution
        }  # fmt: skip


def test_recipe_only_has_no_statistics_and_no_tables():
    space = load_joint("fbnetv3-recipe")
    assert space.statistics(random_rows(space, 3), num_classes=10, in_channels=3) == {}
    with pytest.raises(UserError, match="fbnetv3-recipe has no networks to count"):
        space.tables(num_classes=10, in_channels=3)


def test_tables_are_built_once_a_task():
    space = load_joint("digits-joint")
    first = space.tables(num_classes=10, in_channels=1)
    assert space.tables(num_classes=10, in_channels=1) is first
    assert space.tables(num_classes=11, in_channels=1) is not first


def test_joint_space_refuses():
    with pytest.raises(UserError, match="neither networks nor recipes"):
        JointSpace("empty", None, None)
    digits = SPACES["digits"]()
    stem = Stem(width=Range("dropout", (8, 16)))
    network = SearchSpace("odd", resolution=digits.resolution, stem=stem, slots=digits.slots, head=digits.head)
    with pytest.raises(UserError, match="joint space clash: networks and recipes both have a variable dropout"):
        JointSpace("clash", network, RecipeSpace("r", RECIPES["digits"], [Range("dropout", (0.0, 0.1))]))
    with pytest.raises(UserError, match="unknown joint space 'fbnetv4'; did you mean 'fbnetv3'"):
        load_joint("fbnetv4")
    with pytest.raises(UserError, match="rows must have 24 columns, got 3"):
        load_joint("digits-joint").decode([0, 0, 0])
    assert load_joint(space := load_joint("digits-joint")) is space


# the CIFAR-sized space --------------------------------------------------------------------------------------------------


def test_fbnetv3_cifar_shares_what_fbnetv3_shares():
    small, large = SPACES["fbnetv3-cifar"](), SPACES["fbnetv3"]()
    assert [v.name for v in small.variables] == [v.name for v in large.variables]
    for name in small.column:
        if "kernel" in name or "expansion" in name:
            assert small.variables[small.column[name]] == large.variables[large.column[name]]
    assert all(
        slot.expansion.name.startswith("stage4_5")
        for slot in small.slots
        if slot.width.name[:6] in ("stage4", "stage5")
    )


def test_fbnetv3_cifar_follows_the_low_resolution_rule():
    """Thesis 4.4: the stem keeps stride 2, the second stride-two layer gets 1; total stride 16."""
    small = SPACES["fbnetv3-cifar"]()
    strides = {slot.width.name: slot.stride for slot in small.slots if slot.position == 0}
    assert list(strides.values()) == [1, 1, 2, 2, 1, 2, 1]
    assert small.stem.stride == 2 and math.prod(strides.values()) * 2 == 16


def test_most_of_fbnetv3_cifar_has_two_to_twelve_million_flops():
    space = SPACES["fbnetv3-cifar"]()
    flops = SpaceTables(space, num_classes=10, in_channels=3).cost(random_rows(space, 4000)).flops
    assert ((flops >= 2e6) & (flops <= 12e6)).mean() > 0.94
    assert (flops < 4e6).mean() > 0.1 and (flops > 9e6).mean() > 0.1  # both ends are there


def test_joint_spaces_need_no_torch(fresh_python: Callable[[str], str]):
    code = "import sys, recipes.space\nrecipes.space.load_joint('fbnetv3')\nprint('torch' in sys.modules, 'ray' in sys.modules)"
    assert fresh_python(code).split() == ["False", "False"]
