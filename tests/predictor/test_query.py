"""The query: answers against enumeration, limits against the exact count of the built network, and wrong questions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixed_variables import MIXED, mixed_scores

from predictor.config import PredictorConfig
from predictor.evolve import EvolutionConfig
from predictor.fit import fit
from predictor.pool import first_of_each, sobol_pool
from predictor.predictor import Predictor
from predictor.quantities import SpaceQuantities
from predictor.query import fixed_options, query, query_among, query_front
from predictor.table import read_table
from recipes.space import JointSpace, digits_recipes, load_joint
from search_spaces.cost import cost
from search_spaces.errors import UserError
from search_spaces.latency import LatencyTable, SpaceLatency
from search_spaces.limits import Limit
from search_spaces.sampling import sobol_rows
from search_spaces.variables import Rows

QUICK = PredictorConfig(members=2, epochs=20)
SMALL = EvolutionConfig(restarts=1)
LATENCIES = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "latency_digits_onnxruntime.json"


@pytest.fixture(scope="module")
def digits() -> Predictor:
    """More FLOPs and little dropout are better."""
    space, counting = load_joint("digits-joint"), {"num_classes": 10, "in_channels": 1}
    rows = sobol_pool(space, 60, {"flops": Limit(high=0.5e6, low=0.1e6)}, seed=0, **counting)
    dropout = np.array([space.values(row)["dropout"] for row in rows])
    flops = space.statistics(rows, **counting)["flops"]
    return fit(space, rows, 95 + 2 * np.log(flops / 2e5) - 5 * dropout, seed=0, config=QUICK, **counting)


@pytest.fixture(scope="module")
def bare() -> Predictor:
    rows = first_of_each(sobol_rows(MIXED, 200, seed=1))[:100]
    return fit(MIXED, rows, mixed_scores(rows), seed=0, config=QUICK)


def all_mixed() -> Rows:
    return np.indices([*map(int, MIXED.option_counts)]).reshape(len(MIXED), -1).T.astype(np.int64)


def test_the_answer_is_the_best_of_all_rows(bare: Predictor) -> None:
    everything = all_mixed()
    scores = bare.predict(everything)
    found = query(bare)
    assert found.answers[0].row == tuple(everything[scores.argmax()])
    assert found.answers[0].predicted == pytest.approx(scores.max(), abs=1e-9)
    assert found.answers[0].spread == pytest.approx(float(bare.spread(everything)[scores.argmax()]), abs=1e-6)
    assert found.answers[0].architecture is None and found.answers[0].recipe is None and not found.answers[0].quantities
    with_skip = everything[(everything[:, 0] == 1) & (everything[:, 3] == 0)]
    fixed = query(bare, fixed={"op": "skip", "rate": "0.001"})
    assert fixed.answers[0].row == tuple(with_skip[bare.predict(with_skip).argmax()])


def test_several_answers_differ_in_three_variables_and_come_best_first(bare: Predictor) -> None:
    found = query(bare, top=4).answers
    rows = np.array([answer.row for answer in found])
    distances = [np.count_nonzero(a != b) for i, a in enumerate(rows) for b in rows[:i]]
    assert len(distances) == 6 and min(distances) >= 3
    predicted = [answer.predicted for answer in found]
    assert predicted == sorted(predicted, reverse=True)
    assert query(bare, top=2, min_distance=1).answers[1].predicted >= predicted[1]


@pytest.mark.parametrize(
    "limits",
    [
        {"flops": Limit(high=0.25e6)},
        {"flops": Limit(high=0.3e6, low=0.29e6), "params": Limit(high=20_000)},
        {"params": Limit(high=30_000, low=25_000), "resolution": Limit(high=12)},
        {"flops": Limit(high=0.5e6), "resolution": Limit(high=8)},
    ],
)
@pytest.mark.parametrize("preset", ["default", "thesis"])
def test_every_answer_is_inside_the_limits_by_the_exact_count(
    digits: Predictor, limits: dict[str, Limit], preset: str
) -> None:
    for answer in query(digits, limits=limits, top=2, preset=preset).answers:
        assert answer.architecture is not None and answer.recipe is not None
        exact = cost(answer.architecture, num_classes=10, in_channels=1)
        counted = {"flops": exact.flops, "params": exact.params, "resolution": answer.architecture.resolution}
        assert answer.quantities == counted
        assert all(limit.holds(counted[name]) for name, limit in limits.items())
        assert answer.values["dropout"] == answer.recipe.dropout


def test_the_same_seed_gives_the_same_answers_and_thesis_looks_at_fewer(digits: Predictor) -> None:
    limits = {"flops": Limit(high=0.25e6)}
    assert query(digits, limits=limits, seed=3) == query(digits, limits=limits, seed=3)
    thesis, default = (query(digits, limits=limits, preset=preset) for preset in ("thesis", "default"))
    assert thesis.scored < default.scored and thesis.answers[0].predicted <= default.answers[0].predicted + 1e-9


def test_limits_of_another_classifier(digits: Predictor) -> None:
    """The predictor reads what it was trained on; limits count the classifier that is asked for."""
    wide = SpaceQuantities(digits.variables, num_classes=100, in_channels=1)
    (answer,) = query(digits, limits={"flops": Limit(high=0.2e6)}, quantities=wide, preset=SMALL).answers
    assert answer.architecture is not None
    assert answer.quantities["flops"] == cost(answer.architecture, num_classes=100, in_channels=1).flops <= 0.2e6
    assert answer.predicted == pytest.approx(float(digits.predict([answer.row])[0]), abs=1e-5)


def test_latency_is_a_limit_too(digits: Predictor) -> None:
    table = LatencyTable.load(LATENCIES)
    assert isinstance(digits.variables, JointSpace) and digits.variables.architecture is not None
    quantities = SpaceQuantities(
        digits.variables, num_classes=10, in_channels=1, latency=SpaceLatency(digits.variables.architecture, table)
    )
    free = query(digits, quantities=quantities, preset=SMALL).answers[0]
    limit = Limit(high=0.7 * free.quantities["latency_ms"])
    (fast,) = query(digits, limits={"latency_ms": limit}, quantities=quantities, preset=SMALL).answers
    assert fast.architecture is not None
    assert table.latency_ms(fast.architecture) == pytest.approx(fast.quantities["latency_ms"])
    assert fast.quantities["latency_ms"] <= limit.high < free.quantities["latency_ms"]
    with pytest.raises(UserError, match="needs a latency table"):
        query(digits, limits={"latency_ms": limit})


def test_a_front_rises_and_its_points_are_as_good_as_single_queries(digits: Predictor) -> None:
    whole = Limit(high=0.4e6, low=0.1e6)
    front = query_front(digits, "flops", whole, points=6).answers
    flops, predicted = ([getattr_or(answer, name) for answer in front] for name in ("flops", "predicted"))
    assert len(front) == 6
    assert flops == sorted(flops) and predicted == sorted(predicted)
    parts = np.minimum((np.array(flops) - 0.1e6) // 0.05e6, 5)
    assert parts.tolist() == [0, 1, 2, 3, 4, 5]
    for part in (2, 5):
        alone = query(digits, limits={"flops": Limit(high=0.15e6 + part * 0.05e6)}).answers[0].predicted
        assert predicted[part] == pytest.approx(alone, abs=0.1)
    assert (
        query_front(digits, "flops", Limit(high=0.1e6), points=3, preset=SMALL).answers[-1].quantities["flops"] <= 0.1e6
    )


def getattr_or(answer: Any, name: str) -> float:
    return float(answer.predicted if name == "predicted" else answer.quantities[name])


def test_wrong_questions_say_what_is_possible(digits: Predictor, bare: Predictor) -> None:
    asked: list[tuple[dict[str, Any], str]] = [
        ({"limits": {"flops": Limit(high=1000)}}, r"networks of digits-joint have flops from 14.\d+K to 7\d\d\.?\dK"),
        ({"limits": {"flops": Limit(high=9e9, low=8e9)}}, r"largest flops was"),
        (
            {"limits": {"params": Limit(high=1e6)}, "fixed": {"resolution": 9}},
            "resolution must be one of 8, 12, 16, got '9'",
        ),
        (
            {"limits": {"flop": Limit(high=1e6)}},
            "flop of digits-joint cannot be limited; known are: flops, params, resolution",
        ),
        ({"fixed": {"drop": 0.1}}, "unknown variable 'drop'; did you mean 'dropout'"),
        ({"preset": "fast"}, "unknown preset 'fast'"),
        ({"top": 0}, "top must be at least 1"),
    ]
    for arguments, message in asked:
        with pytest.raises(UserError, match=message):
            query(digits, **arguments)
    with pytest.raises(UserError, match="cannot be limited; known are: nothing"):
        query(bare, limits={"flops": Limit(high=1e6)})
    with pytest.raises(UserError, match="needs both ends"):
        query_front(digits, "resolution", Limit(high=16))
    fixed = {variable.name: variable.options[0] for variable in MIXED.variables[:-1]}
    with pytest.raises(UserError, match="only 1 variables may change"):
        query(bare, fixed=fixed, top=2, min_distance=2)


def test_recipes_alone_for_a_fixed_network() -> None:
    space = JointSpace("recipes", None, digits_recipes())
    rows = sobol_rows(space, 64, seed=0)
    rates = np.array([space.values(row)["weight_decay"] for row in rows])
    answer = query(fit(space, rows[:40], 90 - 1e3 * rates[:40], seed=0, config=QUICK)).answers[0]
    assert answer.architecture is None and answer.recipe is not None and answer.recipe.weight_decay == 1e-4


def test_among_given_candidates_by_brute_force() -> None:
    """A table whose FLOPs cannot be counted: only its own candidates can be answers."""
    rows = first_of_each(sobol_rows(MIXED, 400, seed=1))
    given = {"flops": 1e6 * (1.0 + rows[:, 1] + 0.1 * rows[:, 5]), "params": np.full(len(rows), 1e5)}
    known = {name: values[:80] for name, values in given.items()}
    predictor = fit(MIXED, rows[:80], mixed_scores(rows[:80]), seed=0, config=QUICK, statistics=known)
    with pytest.raises(UserError, match="reads flops and params, which cannot be counted"):
        query(predictor)
    limits = {"flops": Limit(high=3e6, low=2e6)}
    found = query_among(predictor, rows, given, limits=limits, fixed={"flag": "true"}, top=3)
    inside = np.flatnonzero((given["flops"] <= 3e6) & (given["flops"] >= 2e6) & (rows[:, 2] == 0))
    scores = predictor.predict(rows[inside], {name: values[inside] for name, values in given.items()})
    assert found.answers[0].row == tuple(rows[inside[scores.argmax()]])
    assert found.answers[0].predicted == pytest.approx(scores.max())
    assert (found.scored, found.checked) == (len(inside), len(rows))
    picked = np.array([answer.row for answer in found.answers])
    assert all(np.count_nonzero(a != b) >= 3 for i, a in enumerate(picked) for b in picked[:i])
    with pytest.raises(UserError, match=r"none of \d+ candidates has flops at most 1K; they have flops from 1M to"):
        query_among(predictor, rows, given, limits={"flops": Limit(high=1e3)})
    with pytest.raises(UserError, match="have no latency_ms to limit"):
        query_among(predictor, rows, given, limits={"latency_ms": Limit(high=1)})
    with pytest.raises(UserError, match="answers differ in so many variables"):
        query_among(predictor, rows[:3], {name: v[:3] for name, v in given.items()}, top=3, min_distance=5)


def test_the_frame_of_a_result_is_a_table_of_candidates(digits: Predictor) -> None:
    found = query(digits, limits={"flops": Limit(high=0.25e6)}, top=3, preset=SMALL)
    table = read_table(found.frame(), digits.variables, score="predicted")
    assert [tuple(row) for row in table.rows] == [answer.row for answer in found.answers]
    assert table.statistics["flops"].tolist() == [answer.quantities["flops"] for answer in found.answers]


def test_quantities_are_the_spaces_own(digits: Predictor) -> None:
    space, rows = load_joint("digits-joint"), sobol_rows(load_joint("digits-joint"), 300, seed=5)
    quantities = SpaceQuantities(space, num_classes=10, in_channels=1)
    assert quantities.canonical is not None
    canonical = quantities.canonical(rows.copy())
    assert (canonical == space.canonical(rows)).all()
    exact = space.statistics(canonical, num_classes=10, in_channels=1)
    for name, function in quantities.functions.items():
        assert np.array_equal(np.asarray(function(canonical)), exact[name])
    assert digits.quantities is digits.quantities
    assert SpaceQuantities(MIXED, num_classes=None).functions == {}


def test_fixed_options_read_values_and_texts() -> None:
    assert fixed_options(MIXED, {"op": "POOL", "width": "12", "flag": False, "rate": 0.01}) == {
        "op": 2, "width": 1, "flag": 1, "rate": 1,
    }  # fmt: skip
