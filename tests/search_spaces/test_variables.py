import itertools

import numpy as np
import pytest

from search_spaces.errors import UserError
from search_spaces.variables import Choice, Range, VariableSet, span

VARIABLES = VariableSet(
    [
        Choice("block", ("k3", "k5", "skip")),
        Range("width", (8, 12, 20)),
        Range("rate", (0.25, 1.5)),
        Choice("on", (True, False)),
    ]
)


def every_row(variables: VariableSet) -> np.ndarray:
    return np.array(list(itertools.product(*(range(len(v.options)) for v in variables.variables))))


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((16, 24, 4), (16, 20, 24)),
        ((16, 16, 4), (16,)),
        ((0.75, 4.5, 0.75), (0.75, 1.5, 2.25, 3.0, 3.75, 4.5)),
        ((0.75, 3.25, 0.5), (0.75, 1.25, 1.75, 2.25, 2.75, 3.25)),
        ((1, 2, 0.5), (1.0, 1.5, 2.0)),
    ],
)
def test_span_is_closed(ends: tuple, expected: tuple) -> None:
    found = span(*ends)
    assert found == expected
    assert {type(value) for value in found} == {type(value) for value in expected}


def test_span_of_tenths_has_no_rounding_dust() -> None:
    assert span(0.1, 0.7, 0.1) == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ((16, 25, 4), r"range \(16, 25, 4\) does not reach 25 in whole steps"),
        ((24, 16, 4), "a range needs low <= high and step > 0"),
        ((16, 24, 0), "a range needs low <= high and step > 0"),
        ((16, 24, -4), "a range needs low <= high and step > 0"),
        ((0, 10_000, 1), "more than 10000 options"),
    ],
)
def test_span_refuses_what_is_no_range(ends: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        span(*ends)


def test_options_must_exist_differ_and_increase() -> None:
    with pytest.raises(UserError, match="a has no options"):
        Choice("a", ())
    with pytest.raises(UserError, match="options of a must differ"):
        Choice("a", (1, 2, 1))
    with pytest.raises(UserError, match="options of a must increase"):
        Range("a", (1, 3, 2))
    with pytest.raises(UserError, match="options of a must differ"):
        Range("a", (1, 1))
    with pytest.raises(UserError, match="two variables have the same name"):
        VariableSet([Choice("a", (1, 2)), Range("a", (3, 4))])


def test_size_counts_rows_exactly() -> None:
    assert VARIABLES.size == 36 == len(every_row(VARIABLES))
    assert VariableSet([Range(f"v{i}", (0, 1, 2)) for i in range(100)]).size == 3**100  # beyond 64 bits
    assert len(VARIABLES) == 4 and VARIABLES.option_counts.tolist() == [3, 3, 2, 2]


def test_values_and_row_are_inverse() -> None:
    for row in every_row(VARIABLES):
        values = VARIABLES.values(row)
        expected = {v.name: v.options[index] for v, index in zip(VARIABLES.variables, row, strict=True)}
        assert values == expected
        assert (VARIABLES.row(values) == row).all()


def test_row_refuses_by_name() -> None:
    good = VARIABLES.values([0, 0, 0, 0])
    with pytest.raises(UserError, match=r"unknown variable 'widht'; did you mean 'width'\?"):
        VARIABLES.row(good | {"widht": 8})
    with pytest.raises(UserError, match="variable 'rate' is missing"):
        VARIABLES.row({name: value for name, value in good.items() if name != "rate"})
    with pytest.raises(UserError, match=r"width must be one of \(8, 12, 20\), got 16"):
        VARIABLES.row(good | {"width": 16})


def test_encode_is_one_hot_for_choices_and_min_max_for_ranges() -> None:
    rows = every_row(VARIABLES)
    found = VARIABLES.encode(rows)
    assert found.dtype == np.float32 and found.shape == (36, VARIABLES.feature_count) == (36, 3 + 1 + 1 + 2)
    for features, row in zip(found, rows, strict=True):
        expected = [float(row[0] == i) for i in range(3)]
        expected += [((8, 12, 20)[row[1]] - 8) / 12, ((0.25, 1.5)[row[2]] - 0.25) / 1.25]
        expected += [float(row[3] == i) for i in range(2)]
        np.testing.assert_allclose(features, expected, rtol=1e-7, atol=0)
    assert len(np.unique(found, axis=0)) == 36


def test_encode_of_a_range_with_one_option_is_finite() -> None:
    found = VariableSet([Range("only", (3.0,))]).encode([[0], [0]])
    assert found.tolist() == [[0.0], [0.0]]
    nothing = VariableSet([])
    assert nothing.encode(np.zeros((2, 0), dtype=int)).shape == (2, 0)
    assert nothing.check_rows([]).shape == (1, 0) and nothing.size == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 0, 0]], "rows must have 4 columns, got 3"),
        ([[0.0, 0.0, 0.0, 0.0]], "rows must hold integers, got float64"),
        ([[True] * 4], "rows must hold integers, got bool"),
        ([[0, 0, 0, 0], [0, 3, 0, 0]], "row 1: option 3 of width is not in 0..2"),
        ([[0, 0, -1, 0]], "row 0: option -1 of rate is not in 0..1"),
    ],
)
def test_check_rows_names_row_and_variable(rows: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        VARIABLES.check_rows(rows)


def test_check_rows_takes_one_row_and_small_integers() -> None:
    found = VARIABLES.check_rows(np.array([2, 1, 0, 1], dtype=np.uint8))
    assert found.shape == (1, 4) and found.dtype == np.int64
