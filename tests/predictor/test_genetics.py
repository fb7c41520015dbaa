import numpy as np
import pytest

from predictor.genetics import Mutation, adaptive_probability, crossover
from predictor.row_memory import RowMemory
from search_spaces.variables import Choice, Range, VariableSet


def test_adaptive_probabilities_by_hand() -> None:
    """f_max = 10, f_avg = 4: at 7 half of the way, at 4 the whole factor, at 10 nothing, below the average the constant."""
    fitness = np.array([10.0, 8.5, 7.0, 4.0, 3.9, 0.0])
    found = adaptive_probability(fitness, 10.0, 4.0, 0.5, 0.45)
    np.testing.assert_allclose(found, [0.0, 0.125, 0.25, 0.5, 0.45, 0.45], rtol=1e-15)
    np.testing.assert_allclose(adaptive_probability(fitness, 10.0, 4.0, 1.0, 1.0)[:3], [0, 0.25, 0.5], rtol=1e-15)


def test_adaptive_probabilities_where_all_are_equal() -> None:
    assert adaptive_probability(np.full(3, -2.0), -2.0, -2.0, 0.5, 0.3).tolist() == [0.5] * 3


def test_adaptive_probabilities_of_several_populations() -> None:
    found = adaptive_probability(np.array([3.0, 3.0]), np.array([4.0, 3.0]), np.array([2.0, 1.0]), 1.0, 1.0)
    np.testing.assert_allclose(found, [0.5, 0.0])


def test_crossover_takes_each_variable_from_either_parent() -> None:
    """4 standard errors of 0.5 over 40000 entries are 0.01."""
    rng = np.random.default_rng(0)
    first, second = np.zeros((4000, 20), dtype=np.int64), np.ones((4000, 20), dtype=np.int64)
    probability = np.repeat([1.0, 0.0], 2000)
    children = crossover(first, second, probability, rng)
    assert abs(children[:2000].mean() - 0.5) < 0.01
    assert (children[2000:] == 0).all()
    assert np.abs(np.corrcoef(children[:2000].T) - np.eye(20)).max() < 0.12  # independent: 4 / sqrt(2000) is 0.09


def test_mutation_rate_and_targets() -> None:
    variables = VariableSet(
        [Choice("c", tuple(range(5))), Range("r", tuple(range(9))), Range("one", (3,)), Choice("f", (0, 1))]
    )
    mutation = Mutation(variables, np.array([True, True, True, False]))
    rows = np.tile([1, 4, 0, 1], (200_000, 1))
    changed = mutation(rows, np.full(len(rows), 0.25), np.random.default_rng(1), at_least_one=False)
    for column in (0, 1):  # 4 standard errors of 0.25 over 200000 are 0.004
        assert abs((changed[:, column] != rows[:, column]).mean() - 0.25) < 0.004
    assert (changed[:, 2:] == rows[:, 2:]).all()
    assert (rows == [1, 4, 0, 1]).all()
    jumps = np.bincount(changed[:, 0], minlength=5)[[0, 2, 3, 4]] / 50_000
    assert np.abs(jumps - 0.25).max() < 0.01
    steps = np.bincount(changed[:, 1], minlength=9) / 50_000
    expected = np.full(9, 0.5 / 8)  # half of the changes go anywhere else, half to a neighbour
    expected[[3, 5]] += 0.25
    expected[4] = 3.0
    assert np.abs(steps - expected)[[0, 1, 2, 3, 5, 6, 7, 8]].max() < 0.01


@pytest.mark.parametrize("option", [0, 8])
def test_mutation_steps_inwards_from_the_ends(option: int) -> None:
    variables = VariableSet([Range("r", tuple(range(9)))])
    rows = np.full((40_000, 1), option)
    changed = Mutation(variables, np.array([True]))(rows, np.ones(40_000), np.random.default_rng(2), at_least_one=True)
    assert changed.min() >= 0 and changed.max() <= 8
    share = (changed == (1 if option == 0 else 7)).mean()
    assert abs(share - (0.5 + 0.5 / 8)) < 0.01


def test_at_least_one_variable_changes() -> None:
    variables = VariableSet([Range(f"r{i}", tuple(range(4))) for i in range(6)])
    mutation, rows = Mutation(variables, np.ones(6, dtype=bool)), np.zeros((1000, 6), dtype=np.int64)
    changed = mutation(rows, np.zeros(1000), np.random.default_rng(3), at_least_one=True)
    assert ((changed != rows).sum(axis=1) == 1).all()
    assert (mutation(rows, np.zeros(1000), np.random.default_rng(3), at_least_one=False) == rows).all()


def test_memory_is_a_dictionary() -> None:
    """Against one, with repetitions inside and between batches, through several growths."""
    rng = np.random.default_rng(4)
    memory, known = RowMemory(7, rng, capacity=16), {}
    for _ in range(60):
        rows = rng.integers(0, 4, size=(500, 7))
        places, new = memory.add(memory.keys(rows))
        tuples = [tuple(row) for row in rows.tolist()]
        assert {row for row, first in zip(tuples, new, strict=True) if first} == set(tuples) - set(known)
        assert new.sum() == len(set(tuples) - set(known))
        values = rows @ 4.0 ** np.arange(7)
        assert np.isnan(memory.get(places[new])[0]).all()
        memory.put_scores(places[new], values[new])
        memory.put_violations(places[new], -values[new])
        known |= dict(zip(tuples, values, strict=True))
        assert memory.count == len(known)
        scores, violations = memory.get(places)
        assert (scores == values).all() and (violations == -values).all()
