import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score as sklearn_r2

from predictor.config import PredictorConfig
from predictor.features import STATISTICS, encoder_inputs
from predictor.metrics import r2_score, report
from predictor.model import predict_statistics
from predictor.pool import POOL_FLOPS, POOL_SIZE, first_of_each, row_keys, sobol_pool
from predictor.pretrain import pretrain, unscaled_encoder
from predictor.training import batches, cosine, train_phase
from recipes.space import JointSpace, load_joint
from search_spaces.errors import UserError
from search_spaces.limits import Limit
from search_spaces.spaces import SPACES
from search_spaces.tables import SpaceTables

SMALL = Limit(high=0.4e6, low=0.1e6)
DIGITS = {"num_classes": 10, "in_channels": 1}


# pool -------------------------------------------------------------------------------------------------------------------


def test_pool_lies_inside_and_has_no_twins() -> None:
    space = load_joint("digits-joint")
    limits = {"flops": SMALL, "params": Limit(high=60_000)}
    rows = sobol_pool(space, 3000, limits, seed=0, **DIGITS)
    assert rows.shape == (3000, 24) and rows.dtype == np.int64
    assert (space.canonical(rows) == rows).all()
    assert len({tuple(row) for row in rows}) == 3000
    cost = SpaceTables(space.architecture, **DIGITS).cost(rows[:, :19])
    assert cost.flops.min() >= 1e5 and cost.flops.max() <= 4e5 and cost.params.max() <= 60_000


def test_pool_is_the_seeds_alone_and_a_longer_one_begins_alike() -> None:
    space = load_joint("digits-joint")
    first = sobol_pool(space, 300, {"flops": SMALL}, seed=3, **DIGITS)
    assert (sobol_pool(space, 300, {"flops": SMALL}, seed=3, **DIGITS) == first).all()
    assert (sobol_pool(space, 300, {"flops": SMALL}, seed=4, **DIGITS) != first).any()
    assert (sobol_pool(space, 900, {"flops": SMALL}, seed=3, **DIGITS)[:300] == first).all()


def test_pool_of_recipes_alone() -> None:
    rows = sobol_pool(load_joint("fbnetv3-recipe"), 1024, {}, seed=0)
    counts = [np.bincount(column).astype(float) for column in rows.T]
    assert all(abs(count / 1024 - 1 / len(count)).max() < 0.01 for count in counts)  # Sobol points are balanced


def test_pool_refuses() -> None:
    space = load_joint("digits-joint")
    with pytest.raises(
        UserError, match=r"0 of 512 points of digits-joint differ and have flops at most 1K.*the sample had"
    ):
        sobol_pool(space, 10, {"flops": Limit(high=1000)}, seed=0, max_tries=500, **DIGITS)
    with pytest.raises(UserError, match="unknown quantity 'flop'; did you mean 'flops'"):
        sobol_pool(space, 10, {"flop": SMALL}, seed=0, **DIGITS)
    with pytest.raises(UserError, match="fbnetv3-recipe has no networks whose flops could be limited"):
        sobol_pool(load_joint("fbnetv3-recipe"), 10, {"flops": SMALL}, seed=0)
    recipes = JointSpace("few", None, space.recipe)
    assert len(sobol_pool(recipes, 270, {}, seed=0)) == 270  # all of them, though they come many times
    with pytest.raises(UserError, match="few has only 270 different candidates, 271 asked for"):
        sobol_pool(recipes, 271, {}, seed=0)


def test_first_of_each_keeps_the_order() -> None:
    rows = np.array([[3, 1], [0, 2], [3, 1], [1, 3], [0, 2], [2, 0]])
    assert first_of_each(rows).tolist() == [[3, 1], [0, 2], [1, 3], [2, 0]]
    assert len(set(row_keys(rows).tolist())) == 4


# metrics ----------------------------------------------------------------------------------------------------------------


def test_r2_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=50) * 3 + 7
    for found in (true, true + rng.normal(size=50), np.full(50, true.mean()), -true):
        assert r2_score(found, true) == pytest.approx(sklearn_r2(true, found), rel=1e-12, abs=1e-12)
    assert r2_score([2.0, 2.0], [2.0, 2.0]) == 1 and r2_score([2.0, 3.0], [2.0, 2.0]) == 0


def test_report_against_pairs() -> None:
    """Kendall's tau by counting pairs, Spearman's rho by the formula for ranks without ties."""
    true, found = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([1.5, 1.0, 3.5, 6.0, 5.0])
    signs = [np.sign(true[i] - true[j]) * np.sign(found[i] - found[j]) for i in range(5) for j in range(i)]
    ranks = np.array([2, 1, 3, 5, 4])
    facts = report(found, true)
    assert facts["kendall_tau"] == pytest.approx(sum(signs) / 10)
    assert facts["spearman"] == pytest.approx(1 - 6 * ((ranks - true) ** 2).sum() / (5 * 24))
    assert facts["mse"] == pytest.approx((0.25 + 1 + 0.25 + 4 + 0) / 5)
    assert np.isnan(report([1.0, 1.0], [1.0, 2.0])["kendall_tau"])
    with pytest.raises(UserError, match="two arrays of one length >= 2"):
        report([1.0], [1.0])


# training loop ----------------------------------------------------------------------------------------------------------


def test_batches_visit_every_candidate_once() -> None:
    rng = np.random.default_rng(0)
    parts = list(batches(10, 4, rng))
    assert [len(part) for part in parts] == [4, 4, 2]
    assert sorted(torch.cat(parts).tolist()) == list(range(10))
    each = torch.cat(list(batches(10, 4, rng, members=3)), dim=1)
    assert each.shape == (3, 10) and all(sorted(row) == list(range(10)) for row in each.tolist())
    assert each[0].tolist() != each[1].tolist()


def test_the_rate_falls_along_a_half_cosine() -> None:
    assert [cosine(p) for p in (0, 1 / 3, 0.5, 1)] == pytest.approx([1, 0.75, 0.5, 0])


def test_weights_decay_and_biases_do_not() -> None:
    """With no gradient a weight shrinks by (1 - rate x decay) a step."""
    values = {name: torch.nn.Parameter(torch.ones(1)) for name in ("a_weight", "a_bias")}
    train_phase(
        values,
        lambda _: sum(value.sum() for value in values.values()) * 0.0,
        lambda _: [torch.zeros(1)] * 2,
        epochs=2,
        steps_per_epoch=2,
        lr=0.1,
        weight_decay=0.5,
    )
    expected = np.prod([1 - 0.1 * 0.5 * cosine(step / 4) for step in range(4)])
    assert values["a_weight"].item() == pytest.approx(expected, rel=1e-6) and values["a_bias"].item() == 1


# pretraining ------------------------------------------------------------------------------------------------------------


def test_scaled_features_are_folded_into_the_encoder() -> None:
    rng = np.random.default_rng(0)
    x, mean, std = rng.normal(size=(9, 4)), rng.normal(size=4), rng.uniform(0.5, 2, 4)
    arrays = {"encoder_weight": rng.normal(size=(2, 4, 3)), "encoder_bias": rng.normal(size=(2, 3))}
    folded = unscaled_encoder(arrays, mean, std)
    for member in range(2):
        expected = (x - mean) / std @ arrays["encoder_weight"][member] + arrays["encoder_bias"][member]
        found = x @ folded["encoder_weight"][member] + folded["encoder_bias"][member]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_pretraining_explains_flops_and_parameters() -> None:
    """R2 >= 0.99 of FLOPs and parameters themselves, on networks that were not trained on; measured again on fresh ones."""
    space = load_joint("digits-joint")
    config = PredictorConfig(members=2)
    found = pretrain(space, flops=SMALL, config=config, pool=4000, epochs=60, batch_size=128, seed=0, **DIGITS)
    assert min(found.r2.values()) > 0.99 and set(found.r2) == set(STATISTICS)
    rows = sobol_pool(space, 500, {"flops": SMALL}, seed=99, **DIGITS)
    values = {name: torch.from_numpy(array) for name, array in found.arrays.items()}
    features = torch.from_numpy(encoder_inputs(space).encode(rows[:, :19]))
    guessed = found.scaling.restore(predict_statistics(values, features).mean(dim=0).numpy())
    counted = space.statistics(rows, **DIGITS)
    for column, name in enumerate(STATISTICS):
        assert sklearn_r2(counted[name], guessed[:, column]) > 0.985


def test_pretraining_is_the_seeds_alone() -> None:
    arguments = {"flops": SMALL, "config": "thesis", "pool": 300, "epochs": 2, **DIGITS}
    first, again, other = (pretrain(SPACES["digits"](), seed=seed, **arguments) for seed in (1, 1, 2))
    assert first.r2 == again.r2
    assert all((first.arrays[name] == again.arrays[name]).all() for name in first.arrays)
    assert any((first.arrays[name] != other.arrays[name]).any() for name in first.arrays)


def test_pretraining_refuses() -> None:
    with pytest.raises(UserError, match="fbnetv3-recipe has no networks to pretrain on"):
        pretrain(load_joint("fbnetv3-recipe"), flops=None, num_classes=10, seed=0)
    with pytest.raises(UserError, match="pool must be >= 10, got 9"):
        pretrain(load_joint("digits-joint"), flops=None, num_classes=10, pool=9, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["default", "thesis"])
def test_pretraining_as_in_the_thesis(preset: str) -> None:
    """20,000 points between 400M and 800M (4.4, 4.6)."""
    found = pretrain(load_joint("fbnetv3"), flops=POOL_FLOPS, num_classes=200, config=preset, pool=POOL_SIZE, seed=0)
    assert min(found.r2.values()) > 0.99
