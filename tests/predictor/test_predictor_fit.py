from collections.abc import Callable

import numpy as np
import pytest
import torch
from mixed_variables import MIXED, mixed_scores

from predictor.config import PredictorConfig
from predictor.fit import dropout_factors, fit, huber
from predictor.metrics import report
from predictor.pool import first_of_each, sobol_pool
from predictor.pretrain import pretrain
from predictor.table import Table
from predictor.validation import BoostedTrees, held_out_report, tree_features
from recipes.space import load_joint
from search_spaces.errors import UserError
from search_spaces.limits import Limit
from search_spaces.sampling import sobol_rows
from search_spaces.variables import Rows

QUICK = PredictorConfig(members=2, epochs=20)
DIGITS = {"num_classes": 10, "in_channels": 1}
LIMITS = {"flops": Limit(high=0.4e6, low=0.1e6)}


def mixed_rows(n: int) -> Rows:
    return first_of_each(sobol_rows(MIXED, 4 * n, seed=1))[:n]


def digits_table(n: int, seed: int) -> tuple[Rows, np.ndarray]:
    """Candidates of the joint space with made-up accuracies: more FLOPs help, and a best rate for each optimizer."""
    space = load_joint("digits-joint")
    rows = sobol_pool(space, n, LIMITS, seed=seed, **DIGITS)
    values = [space.values(row) for row in rows]
    flops = space.statistics(rows, **DIGITS)["flops"]
    rate = np.array([(v["lr"] - (0.006 if v["optimizer"] == "sgd" else 0.004)) / 0.004 for v in values])
    return rows, 95 + 2 * np.log(flops / 2e5) - 1.5 * rate**2 - np.array([5 * v["dropout"] for v in values])


# loss -------------------------------------------------------------------------------------------------------------------


def test_huber_by_hand() -> None:
    """Thesis 4.3 with the threshold at 1: 0.5 e^2 below, |e| - 0.5 above; at 2: 0.5 e^2 below, 2 |e| - 2 above."""
    error = torch.tensor([0.0, 0.5, -0.8, 1.0, -3.0, 10.0])
    assert huber(error).tolist() == pytest.approx([0.0, 0.125, 0.32, 0.5, 2.5, 9.5])
    assert huber(error, 2.0).tolist() == pytest.approx([0.0, 0.125, 0.32, 0.5, 4.0, 18.0])


def test_an_outlier_pulls_less_than_with_squares() -> None:
    """Of forty rows of one score one is 40 points off: squares drag the others along."""
    rows, labels = mixed_rows(40), np.full(40, 70.0)
    labels[7] = 30.0
    found = {
        delta: fit(MIXED, rows, labels, seed=0, config=QUICK.replace(epochs=60, weight_decay=0.0, huber_delta=delta))
        for delta in (1.0, 1000.0)
    }
    others = np.delete(np.arange(40), 7)
    off = {delta: np.abs(made.predict(rows)[others] - 70).mean() for delta, made in found.items()}
    assert off[1.0] < 0.5 * off[1000.0]


# fitting ----------------------------------------------------------------------------------------------------------------


def test_fit_learns_a_table_without_networks() -> None:
    rows = mixed_rows(260)
    scores = mixed_scores(rows)
    made = fit(MIXED, rows[:200], scores[:200], seed=0)
    facts = report(made.predict(rows[200:]), scores[200:])
    assert facts["kendall_tau"] > 0.9 and facts["r2"] > 0.97
    assert made.shape.statistics == 0 and made.statistics == ()
    assert made.facts.rows == 200 and made.facts.metrics["train_mse"] < 0.1


def test_fit_learns_networks_and_recipes_jointly() -> None:
    space = load_joint("digits-joint")
    rows, labels = digits_table(400, seed=2)
    pretrained = pretrain(space, flops=LIMITS["flops"], pool=1000, epochs=10, config=QUICK, seed=0, **DIGITS)
    made = fit(space, rows[:200], labels[:200], seed=0, config=QUICK.replace(epochs=150), pretrained=pretrained)
    assert report(made.predict(rows[200:]), labels[200:])["kendall_tau"] > 0.8
    assert made.statistics == ("flops", "params") and made.scaling == pretrained.scaling
    assert (made.num_classes, made.in_channels) == (10, 1)
    assert made.facts.metrics["pretraining_r2_flops"] == pretrained.r2["flops"]


def test_recipes_alone() -> None:
    space = load_joint("fbnetv3-recipe")
    rows = sobol_pool(space, 120, {}, seed=0)
    labels = 79 + 3 * space.encode(rows)[:, 0].astype(float) - 2 * space.encode(rows)[:, -1].astype(float)
    for preset in ("thesis", QUICK):
        made = fit(space, rows[:90], labels[:90], seed=0, config=preset)
        assert made.arrays["encoder_weight"].size == 0 and made.statistics == ()
        assert report(made.predict(rows[90:]), labels[90:])["kendall_tau"] > 0.8


def test_the_thesis_preset_keeps_the_encoder_for_fifty_epochs() -> None:
    """With a second phase of a vanishing rate the encoder stays the pretrained one; with the preset's, it moves."""
    space = load_joint("digits-joint")
    rows, labels = digits_table(40, seed=3)
    thesis = PredictorConfig(members=1, statistics_as_inputs=False, frozen_epochs=50, epochs=1, reduced=1e-12)
    pretrained = pretrain(space, flops=LIMITS["flops"], pool=300, epochs=2, config=thesis, seed=0, **DIGITS)
    still = fit(space, rows, labels, seed=0, config=thesis, pretrained=pretrained)
    moved = fit(space, rows, labels, seed=0, config="thesis", pretrained=pretrained)
    assert np.abs(still.arrays["encoder_weight"] - pretrained.arrays["encoder_weight"]).max() < 1e-9
    assert np.abs(moved.arrays["encoder_weight"] - pretrained.arrays["encoder_weight"]).max() > 1e-3
    assert still.facts.metrics["train_mse"] < labels.var()
    assert still.statistics == moved.statistics == () and still.shape.members == moved.shape.members == 1


def test_every_member_learns_something_of_its_own() -> None:
    rows, scores = mixed_rows(48), mixed_scores(mixed_rows(48))
    both = fit(MIXED, rows, scores, seed=0, config=QUICK)
    assert (both.spread(rows) > 0).all()
    members = both.members(rows)
    assert all(report(members[:, k], scores)["kendall_tau"] > 0.5 for k in range(2))
    np.testing.assert_allclose(both.predict(rows), members.mean(axis=1), rtol=1e-12)


def test_given_statistics_become_inputs_only_if_asked_for() -> None:
    rows, scores = mixed_rows(60), mixed_scores(mixed_rows(60))
    statistics = {"flops": np.exp(scores / 10), "latency_ms": np.ones(60)}
    made = fit(MIXED, rows, scores, seed=0, config=QUICK, statistics=statistics)
    assert made.statistics == ("flops",)
    with pytest.raises(UserError, match="this predictor reads flops, which must be given"):
        made.predict(rows)
    assert report(made.predict(rows, statistics), scores)["kendall_tau"] > 0.8
    blind = fit(MIXED, rows, scores, seed=0, config=QUICK.replace(statistics_as_inputs=False), statistics=statistics)
    assert blind.statistics == () and np.isfinite(blind.predict(rows)).all()


def test_weights_say_which_rows_matter() -> None:
    rows = mixed_rows(40)
    labels = np.where(
        np.arange(40) % 2, 60.0, 80.0
    )  # not to be learnt by so short a fit: it ends near a weighted middle
    weights = np.where(np.arange(40) % 2, 100.0, 1.0)
    config = QUICK.replace(epochs=5, huber_delta=100.0)
    heavy = fit(MIXED, rows, labels, seed=0, config=config, weights=weights).predict(rows).mean()
    light = fit(MIXED, rows, labels, seed=0, config=config, weights=1 / weights).predict(rows).mean()
    assert heavy < light - 3
    same = [fit(MIXED, rows, labels, seed=0, config=config, weights=w).predict(rows) for w in (None, np.full(40, 7.0))]
    np.testing.assert_allclose(*same, rtol=1e-6)


def test_same_seed_same_predictor_in_another_process(fresh_python: Callable[[str], str]) -> None:
    code = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, 'tests/predictor')
from test_predictor_fit import *
print(fit(MIXED, mixed_rows(20), mixed_scores(mixed_rows(20)), seed=0, config=QUICK).members(mixed_rows(20)).tobytes().hex())
"""
    rows = mixed_rows(20)
    own = [
        fit(MIXED, rows, mixed_scores(rows), seed=seed, config=QUICK).members(rows).tobytes().hex()
        for seed in (0, 0, 1)
    ]
    assert own[0] == own[1] != own[2]
    assert fresh_python(code).strip() == own[0]


def test_dropout_leaves_out_a_share_and_keeps_the_mean() -> None:
    factors = dropout_factors((100, 200), 0.3, torch.Generator().manual_seed(0))
    assert factors is not None and factors.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert (factors == 0).float().mean().item() == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 20_000) ** 0.5)
    assert dropout_factors((2, 2), 0.0, torch.Generator()) is None


@pytest.mark.parametrize(
    ("rows", "labels", "keywords", "message"),
    [
        (np.zeros((0, 6), dtype=int), [], {}, "there are no rows to fit a predictor to"),
        ([[0] * 6, [1] + [0] * 5], [70.0, np.nan], {}, "accuracies must be finite numbers, got nan in row 1"),
        ([[0] * 6, [1] + [0] * 5], [70.0], {}, r"accuracies must have shape \(2,\), got \(1,\)"),
        ([[0] * 6, [0] * 6], [70.0, 71.0], {}, "1 of 2 rows repeat another one"),
        ([[9] + [0] * 5], [70.0], {}, "option 9 of op is not in 0..2"),
        ([[0] * 6], [70.0], {"weights": [0.0]}, "weights must be > 0, got 0.0"),
        ([[0] * 6], [70.0], {"statistics": {"flops": [-1.0]}, "config": "table"}, "flops must be a number > 0"),
        ([[0] * 6], [70.0], {"config": "best"}, "unknown preset 'best'"),
    ],
)
def test_fit_refuses(rows: object, labels: list, keywords: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fit(MIXED, rows, labels, seed=0, **keywords)
    assert "\n" not in str(caught.value)


def test_fit_refuses_twins_and_encoders_of_another_shape() -> None:
    space = load_joint("digits-joint")
    rows, labels = digits_table(12, seed=0)
    with pytest.raises(UserError, match="num_classes is needed to count FLOPs"):
        fit(space, rows, labels, seed=0, config=QUICK)
    skips = [next(i for i, o in enumerate(v.options) if o.is_skip) for v in space.variables if v.name == "layer1.block"]
    twins = np.repeat(rows[:1], 2, axis=0)
    twins[:, space.column["layer1.block"]] = skips[0]
    twins[:, space.column["layer1.expansion"]] = [0, 1]  # of a skip: builds the same network
    with pytest.raises(UserError, match="1 of 2 rows repeat another one; give each candidate once"):
        fit(space, twins, labels[:2], seed=0, config=QUICK, num_classes=10)
    pretrained = pretrain(space, flops=None, pool=50, epochs=1, config=QUICK, seed=0, **DIGITS)
    with pytest.raises(UserError, match=r"encoder is .* \(2, \d+, 24\), this predictor's \(3, \d+, 24\)"):
        fit(space, rows, labels, seed=0, config=QUICK.replace(members=3), pretrained=pretrained)


def test_one_row_is_enough() -> None:
    made = fit(MIXED, [[0] * 6], [71.25], seed=0, config=QUICK)
    assert made.predict([[0] * 6]) == pytest.approx([71.25], abs=1.0)


# validation -------------------------------------------------------------------------------------------------------------


def test_trees_see_options_and_logarithms() -> None:
    rows = mixed_rows(5)
    features = tree_features(MIXED, rows, {"flops": np.full(5, np.e**2), "other": np.ones(5)})
    assert (features[:, :-1] == MIXED.encode(rows)).all() and features[:, -1] == pytest.approx(2)
    scores = mixed_scores(mixed_rows(100))
    trees = BoostedTrees(MIXED, mixed_rows(100), scores, statistics={}, seed=0)
    assert report(trees.predict(mixed_rows(100), {}), scores)["kendall_tau"] > 0.8


def test_held_out_report_compares_with_trees() -> None:
    space = load_joint("digits-joint")
    rows, labels = digits_table(100, seed=5)
    table = Table(rows=rows, scores=labels, weights=np.ones(100), statistics={})
    found = held_out_report(space, table, seed=0, config=QUICK, **DIGITS)
    assert list(found) == ["predictor", "boosted trees"]
    assert all(set(facts) == {"mse", "kendall_tau", "spearman", "r2"} for facts in found.values())
    assert found == held_out_report(space, table, seed=0, config=QUICK, **DIGITS)
    with pytest.raises(UserError, match="needs 10 candidates or more, the table has 9"):
        held_out_report(space, table.take(np.arange(9)), seed=0)
