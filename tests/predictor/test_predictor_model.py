"""The torch module, the embedding bag and the numpy path, each against loops or against one another."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from mixed_variables import MIXED

from predictor.bag import make_bag
from predictor.config import ModelShape, PredictorConfig, load_preset
from predictor.features import Scaling, encoder_inputs, network_columns, recipe_inputs
from predictor.model import PredictorModel, predict_accuracy, predict_statistics
from predictor.predictor import Predictor, hardswish
from recipes.space import load_joint
from search_spaces.errors import UserError
from search_spaces.sampling import uniform_rows
from search_spaces.spaces import SPACES
from search_spaces.variables import VariableSet

SPACES_TRIED = {"fbnetv3": load_joint, "fbnetv3-recipe": load_joint, "digits-joint": load_joint}


def random_rows(variables: VariableSet, n: int, seed: int = 0) -> np.ndarray:
    return uniform_rows(variables, n, np.random.default_rng(seed))


def shape_of(variables: VariableSet, members: int, statistics: int, **changes: int) -> ModelShape:
    sizes = {
        "members": members,
        "architecture": encoder_inputs(variables).feature_count,
        "recipe": recipe_inputs(variables).feature_count,
        "statistics": statistics,
        "proxies": 2,
        "embedding": 24,
        "hidden": 7,
    }
    return ModelShape(**{**sizes, **changes})


def model_of(shape: ModelShape, seed: int = 0) -> PredictorModel:
    """With weights large enough for h-swish to bend on both sides."""
    model = PredictorModel(shape, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for values in model.values.values():
            values.mul_(4)
    return model


# features ---------------------------------------------------------------------------------------------------------------


def test_columns_are_split_between_network_and_recipe() -> None:
    joint = load_joint("fbnetv3")
    assert [network_columns(v) for v in (joint, joint.architecture, joint.recipe, MIXED)] == [36, 36, 0, 6]
    assert [v.name for v in recipe_inputs(joint).variables] == [v.name for v in joint.recipe.variables]


def test_the_resolution_is_one_hot_and_nothing_else_changes() -> None:
    joint = load_joint("fbnetv3")
    rows = random_rows(joint, 30)
    found = encoder_inputs(joint).encode(rows[:, :36])
    assert joint.variables[0].name == "resolution"
    assert (found[:, :7] == np.eye(7)[rows[:, 0]]).all()
    assert (found[:, 7:] == joint.encode(rows)[:, 1 : 1 + found.shape[1] - 7]).all()


def test_scaling_is_of_logarithms_and_is_undone() -> None:
    scaling = Scaling(("flops",), (np.log(4e8),), (0.5,))
    found = scaling.standardise({"flops": [4e8, 4e8 * np.exp(0.5), 4e8 * np.exp(-1)]}, 3)
    assert found == pytest.approx(np.array([[0], [1], [-2]]), abs=1e-6)
    assert scaling.restore(found)[:, 0] == pytest.approx(4e8 * np.exp([0, 0.5, -1]), rel=1e-6)
    with pytest.raises(UserError, match="flops must be a number > 0, got 0 in row 1"):
        scaling.standardise({"flops": [1, 0]}, 2)
    with pytest.raises(UserError, match="the predictor reads flops, which is not given"):
        scaling.standardise({"params": [1]}, 1)


# the module -------------------------------------------------------------------------------------------------------------


def loop(model: PredictorModel, member: int, a: np.ndarray, r: np.ndarray, s: np.ndarray) -> tuple[float, np.ndarray]:
    """Accuracy and statistics of one candidate by one member, number by number in float64."""
    p = {name: values.detach().numpy()[member].astype(np.float64) for name, values in model.values.items()}

    def swish(x: float) -> float:
        return x * min(max(x + 3, 0), 6) / 6

    def layer(x: list[float], name: str) -> list[float]:
        weight, bias = p[f"{name}_weight"], p[f"{name}_bias"]
        return [sum(x[i] * weight[i, o] for i in range(len(x))) + bias[o] for o in range(len(bias))]

    embedding = [swish(x) for x in layer(list(a), "encoder")]
    hidden = [swish(x) for x in layer([*embedding, *r, *s], "hidden")]
    return layer(hidden, "accuracy")[0], np.array(layer(embedding, "proxy"))


def test_the_module_is_the_network_of_figure_4_3() -> None:
    model = model_of(ModelShape(members=3, architecture=5, recipe=4, statistics=2, proxies=2, embedding=6, hidden=7))
    rng = np.random.default_rng(0)
    a, r, s = (rng.normal(size=(8, width)).astype(np.float32) for width in (5, 4, 2))
    tensors = [torch.from_numpy(x) for x in (a, r, s)]
    accuracy = model(*tensors).detach().numpy()
    statistics = predict_statistics(model.values, tensors[0]).detach().numpy()
    assert accuracy.shape == (3, 8) and statistics.shape == (3, 8, 2)
    for member in range(3):
        for row in range(8):
            expected = loop(model, member, a[row], r[row], s[row])
            np.testing.assert_allclose(accuracy[member, row], expected[0], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(statistics[member, row], expected[1], rtol=1e-4, atol=1e-4)


def test_a_batch_for_each_member_gives_what_the_members_give_alone() -> None:
    model = model_of(ModelShape(members=3, architecture=5, recipe=4, statistics=0, proxies=0, embedding=6, hidden=7))
    rng = np.random.default_rng(1)
    a, r, s = (torch.from_numpy(rng.normal(size=(3, 8, width)).astype(np.float32)) for width in (5, 4, 0))
    together = predict_accuracy(model.values, a, r, s)
    for member in range(3):
        alone = predict_accuracy(model.values, a[member], r[member], s[member])[member]
        torch.testing.assert_close(together[member], alone, rtol=1e-5, atol=1e-5)


# bag --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_options", [1, 7, 256, 100_000])
@pytest.mark.parametrize("name", ["mixed", *SPACES_TRIED])
def test_the_bag_is_the_linear_layer_of_encoded_rows(name: str, max_options: int) -> None:
    variables = MIXED if name == "mixed" else load_joint(name)
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(variables.feature_count, 5)).astype(np.float32)
    bias = rng.normal(size=5).astype(np.float32)
    bag = make_bag(variables.variables, weight, bias, max_options=max_options)
    rows = random_rows(variables, 200, seed=3)
    dense = variables.encode(rows).astype(np.float64) @ weight + bias
    np.testing.assert_allclose(bag(rows), dense, rtol=1e-5, atol=1e-5)
    assert all(len(table) <= max(max_options, variables.option_counts.max()) for table in bag.tables)


def test_the_bag_of_no_variables_is_the_bias() -> None:
    bag = make_bag([], np.zeros((0, 3), dtype=np.float32), np.arange(3, dtype=np.float32))
    assert (bag(np.zeros((4, 0), dtype=np.int64)) == np.arange(3)).all()


def test_hardswish_is_torchs_and_in_place() -> None:
    x = np.linspace(-5, 5, 101, dtype=np.float32)
    expected = torch.nn.functional.hardswish(torch.from_numpy(x.copy())).numpy()
    assert hardswish(x) is x
    np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-6)


# numpy ------------------------------------------------------------------------------------------------------------------


def predictor_of(variables: VariableSet, members: int, statistics: int) -> tuple[PredictorModel, Predictor]:
    model = model_of(shape_of(variables, members, statistics))
    scaling = Scaling(("flops", "params")[:statistics], (13.0, 11.0)[:statistics], (0.4, 0.3)[:statistics])
    arrays = model.arrays("encoder", "hidden", "accuracy")
    return model, Predictor(variables, model.shape, arrays, scaling, target=(75.5, 2.5), num_classes=10, in_channels=1)


@pytest.mark.parametrize("members", [1, 5])
@pytest.mark.parametrize("name", ["mixed", *SPACES_TRIED, "digits"])
def test_numpy_predicts_what_torch_does(name: str, members: int) -> None:
    variables = {"mixed": MIXED, "digits": SPACES["digits"]()}.get(name) or load_joint(name)
    statistics = 2 if name.startswith("digits") else 0
    model, predictor = predictor_of(variables, members, statistics)
    rows, columns = random_rows(variables, 1500, seed=4), network_columns(variables)
    counted = predictor.count(rows) if statistics else {}
    with torch.no_grad():
        inputs = (
            encoder_inputs(variables).encode(rows[:, :columns]),
            recipe_inputs(variables).encode(rows[:, columns:]),
            predictor.scaling.standardise(counted, len(rows)),
        )
        expected = model(*map(torch.from_numpy, inputs)).numpy().astype(np.float64).T * 2.5 + 75.5
    found = predictor.members(rows)
    assert found.shape == (1500, members) and found.dtype == np.float64
    assert np.abs(expected - 75.5).max() > 1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(predictor.predict(rows), expected.mean(axis=1), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(predictor.spread(rows), expected.std(axis=1), rtol=1e-3, atol=1e-3)
    if statistics:
        assert (predictor.predict(rows, counted) == predictor.predict(rows)).all()


def test_a_rows_prediction_does_not_depend_on_its_neighbours() -> None:
    """Bit for bit, whatever the number and order of rows: searches compare scores of the same row for equality."""
    joint = load_joint("digits-joint")
    _, predictor = predictor_of(joint, 5, 2)
    rows = random_rows(joint, 2500, seed=5)
    whole = predictor.predict(rows)
    order = np.random.default_rng(0).permutation(len(rows))
    assert (predictor.predict(rows[order]) == whole[order]).all()
    for n in (1, 2, 63, 64, 65, 1000, 1025):
        assert (predictor.predict(rows[:n]) == whole[:n]).all()
    assert predictor.predict(rows[:0]).shape == (0,)


def test_predictor_refuses_what_does_not_fit() -> None:
    joint = load_joint("digits-joint")
    model, predictor = predictor_of(joint, 1, 0)
    arrays = dict(predictor.arrays)
    keywords = {"target": (0.0, 1.0), "num_classes": 10, "in_channels": 1}
    with pytest.raises(UserError, match=r"rows must have 24 columns, got 3"):
        predictor.predict([[0, 0, 0]])
    with pytest.raises(UserError, match="network, recipe and statistics features, the space has"):
        Predictor(MIXED, model.shape, arrays, Scaling(), **keywords)
    with pytest.raises(UserError, match="array hidden_bias must have shape"):
        Predictor(joint, model.shape, {**arrays, "hidden_bias": arrays["hidden_bias"][:, 1:]}, Scaling(), **keywords)
    with pytest.raises(UserError, match="array accuracy_bias has numbers that are not finite"):
        Predictor(
            joint, model.shape, {**arrays, "accuracy_bias": arrays["accuracy_bias"] * np.inf}, Scaling(), **keywords
        )
    _, blind = predictor_of(MIXED, 1, 2)
    with pytest.raises(UserError, match="this predictor reads flops, params, which must be given with the rows"):
        blind.predict(random_rows(MIXED, 2))
    given = {"flops": np.array([1e5, 2e5]), "params": np.array([1e4, 3e4])}
    assert np.isfinite(blind.predict(random_rows(MIXED, 2), given)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": 0}, "members must be in 1..100, got 0"),
        ({"epochs": 1.0}, "epochs must be in 1..1000000, got 1.0"),
        ({"lr": 0.0}, "lr and huber_delta must be > 0"),
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"reduced": 1.5}, r"reduced must be in \(0, 1\], got 1.5"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0"),
        ({"member": 3}, "predictor: unknown key 'member'; did you mean 'members'"),
    ],
)
def test_config_refuses(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PredictorConfig().replace(**change)


def test_presets() -> None:
    thesis = load_preset("thesis")
    assert (thesis.members, thesis.embedding_width, thesis.frozen_epochs, thesis.epochs) == (1, 24, 50, 50)
    assert thesis.huber_delta == 1.0 and not thesis.statistics_as_inputs and thesis.reduced < 1
    default = load_preset("default")
    assert (default.members, default.statistics_as_inputs, default.frozen_epochs) == (5, False, 0)
    assert load_preset(default) is default
    with pytest.raises(UserError, match="unknown preset 'thesiss'; did you mean 'thesis'"):
        load_preset("thesiss")


def test_a_query_needs_no_torch(fresh_python: Callable[[str], str]) -> None:
    code = "import sys, predictor.predictor, predictor.files, predictor.pool, predictor.table, predictor.metrics\n"
    assert fresh_python(code + "print('torch' in sys.modules, 'ray' in sys.modules)").split() == ["False", "False"]
