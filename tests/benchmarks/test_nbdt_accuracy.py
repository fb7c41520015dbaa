"""The study of a tree's accuracy: its summary and the epochs of rebuilt trees, by hand."""

import math

import pytest

from benchmarks.nbdt_accuracy import VARIANTS, _epochs, summary


def test_the_summary_compares_a_tree_with_its_own_network() -> None:
    lines = [
        {"training": "a", "tree": "t", "nn": 90.0, "soft": 89.0, "hard": 88.0, "soft_minus_nn": -1.0},
        {"training": "a", "tree": "t", "nn": 80.0, "soft": 81.0, "hard": 78.0, "soft_minus_nn": 1.0},
        {"training": "b", "tree": "t", "nn": 70.0, "soft": 70.0, "hard": 60.0, "soft_minus_nn": 0.0},
    ]
    both, one = summary(lines)
    assert (both["nn"], both["soft"], both["hard"], both["soft_minus_nn"], both["seeds"]) == (85.0, 85.0, 83.0, 0.0, 2)
    assert both["standard_error"] == pytest.approx(1.0)  # of -1 and 1: standard deviation sqrt 2, over sqrt 2
    assert one["training"] == "b" and math.isnan(one["standard_error"])


@pytest.mark.parametrize(("epochs", "when"), [(200, (67, 120, 10)), (10, (3, 6, 1)), (2, (1, 1, 1))])
def test_trees_are_rebuilt_at_the_same_shares_of_any_training(epochs: int, when: tuple[int, int, int]) -> None:
    assert _epochs(VARIANTS["rebuilt"].rebuild, epochs) == when
    assert _epochs(None, epochs) is None
