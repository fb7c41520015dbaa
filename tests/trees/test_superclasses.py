"""What nodes mean to unseen classes: hypotheses by WordNet, their test, and Table 5.6, by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from nas.trees.hierarchy import Hierarchy
from nas.trees.superclasses import (
    node_hypothesis,
    posit_hypothesis,
    superclass_accuracy,
    superclasses,
    wilson_interval,
)
from search_spaces.errors import UserError

# root 6 = (4, 5): carnivores and motor vehicles
TREE = Hierarchy(
    ("cat", "dog", "automobile", "truck"), ((0, 1), (2, 3), (4, 5)), ("carnivore", "motor vehicle", "whole")
)
ANIMAL, VEHICLE = [1.0, 1, 0, 0], [0.0, 0, 1, 1]  # logits that go left, right at the root


def test_hypotheses_by_wordnet() -> None:
    names = ("lion", "motorcycle", "chair", "dog", "poodle", "zzyx")
    assert posit_hypothesis(TREE, 6, names) == {"lion": 4, "motorcycle": 5, "poodle": 4}, (
        "a dog was seen, a poodle was not"
    )
    assert posit_hypothesis(TREE, 4, names) == {"poodle": 1}
    more = ("lion", "goldfish", "canoe", "chair")
    assert posit_hypothesis(TREE, 6, more, means=["animal", "vehicle"]) == {"lion": 4, "goldfish": 4, "canoe": 5}
    assert posit_hypothesis(TREE, 6, more, means=["vertebrate", "placental"]) == {"lion": 5, "goldfish": 4}, (
        "the deepest"
    )
    assert posit_hypothesis(TREE, 6, ("sky", "x"), expect={"sky": 5, "x": 4}) == {"sky": 5, "x": 4}
    assert posit_hypothesis(TREE, 6, ("x", "Hund"), synsets={"x": "lion", "Hund": "dog"}) == {"x": 4}, (
        "seen under another name"
    )


def test_superclasses_of_all_nodes() -> None:
    found = superclasses(TREE, ["n02129165", "n03790512", None, "n02084071"])  # lion, motorcycle, nothing, dog
    assert found.tolist() == [[-1, -1, 4], [-1, -1, 5], [-1, -1, -1], [1, -1, 4]]


def images(*groups: tuple[int, list[float], int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels: of each group so many equal rows of a class."""
    logits = [row for _, row, count in groups for _ in range(count)]
    return torch.tensor(logits), torch.tensor([label for label, _, count in groups for _ in range(count)])


def test_a_hypothesis_by_hand() -> None:
    """Of lions 9 of 10, of motorcycles 6 of 10 go where they should; Wilson's intervals by scipy."""
    logits, labels = images((0, ANIMAL, 9), (0, VEHICLE, 1), (1, VEHICLE, 6), (1, ANIMAL, 4), (2, ANIMAL, 50))
    names, expected = ("lion", "motorcycle", "chair", "none"), {"motorcycle": 5, "lion": 4, "none": 4}
    frame = node_hypothesis(TREE, 6, logits, labels, names, expected)
    assert frame["level"].tolist() == ["class", "class", "child", "child", "node"]
    assert frame["class"].tolist() == ["lion", "motorcycle", "", "", ""]
    assert frame["child"].tolist() == [4, 5, 4, 5, -1]
    assert frame["means"].tolist() == ["carnivore", "motor vehicle", "carnivore", "motor vehicle", "whole"]
    assert frame["correct"].tolist() == [9, 6, 9, 6, 15] and frame["images"].tolist() == [10, 10, 10, 10, 20]
    assert frame["accuracy"].tolist() == [90, 60, 90, 60, 75]
    np.testing.assert_allclose(frame["low"][:2], [59.584, 31.267], atol=1e-3)
    np.testing.assert_allclose(frame["high"][:2], [98.212, 83.182], atol=1e-3)
    assert frame["accepted"].tolist() == [True, False, True, False, False], "6 of 10 may be guessing"
    assert frame["children"].tolist() == [2] * 5
    assert node_hypothesis(TREE, 6, logits, labels, names, expected, threshold=0.3)["accepted"].all()
    one = node_hypothesis(TREE, 6, logits, labels, names, {"lion": 4})
    assert one["accepted"].tolist() == [True, True, False], "one child alone decides nothing"
    assert one["children"].tolist() == [1, 1, 1]
    assert node_hypothesis(TREE, 4, logits, labels, names, {"chair": 0})["correct"].tolist() == [50] * 3, (
        "cat comes first"
    )


def test_a_node_that_sends_everything_one_way_is_refused() -> None:
    logits, labels = images((0, ANIMAL, 200), (1, ANIMAL, 10))
    frame = node_hypothesis(TREE, 6, logits, labels, ("lion", "motorcycle"), {"lion": 4, "motorcycle": 5})
    assert frame["accuracy"].iloc[-1] == pytest.approx(100 * 200 / 210) and not frame["accepted"].iloc[-1]


def test_wilson_interval_is_scipys() -> None:
    for correct, total, confidence in ((0, 5, 0.95), (5, 5, 0.9), (37, 120, 0.99)):
        low, high = wilson_interval([correct], [total], confidence)
        expected = binomtest(correct, total).proportion_ci(confidence, method="wilson")
        assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_superclass_accuracy_by_hand() -> None:
    """The tree is right for both lions and one motorcycle of two, the network for one lion only."""
    logits, labels = images(
        (1, [2, 2, 3, -3], 1),  # left; the network says automobile
        (1, [5, 0, 0, 0], 1),  # left; cat
        (3, [3, -3, 2, 2], 1),  # right; cat
        (3, [4, 0, 1, 2], 1),  # left, wrongly; cat
        (0, [9, 0, 0, 0], 7),  # a dog is no unseen class, a chair no superclass
        (2, [9, 0, 0, 0], 5),
    )
    names = ("dog", "lion", "chair", "motorcycle")
    frame = superclass_accuracy(TREE, logits, labels, names)
    assert frame.to_dict("records") == [
        {
            "node": 6, "superclasses": "carnivore vs. motor vehicle", "classes": 2, "images": 4, "network": 25.0, "tree": 75.0,
            "difference": 50.0, "majority": 50.0,
        }
    ]  # fmt: skip
    other = superclass_accuracy(TREE, logits, labels, names, network_logits=logits.flip(1), nodes=[6])
    assert other["network"].tolist() == [75.0] and other["tree"].tolist() == [75.0]


def test_superclasses_that_are_leaves() -> None:
    """Poodles and tabbies below the node of dogs and cats; rows by the number of classes."""
    names = ("poodle", "tabby", "minivan")
    logits, labels = images((0, [0, 5, 0, 0], 3), (1, [0, 5, 0, 0], 1), (2, [0, 0, 1, 0], 2))
    frame = superclass_accuracy(TREE, logits, labels, names)
    assert frame["node"].tolist() == [6, 4] and frame["superclasses"].tolist()[1] == "cat vs. dog"
    assert frame["tree"].tolist() == [100.0, 75.0] and frame["majority"].tolist() == [pytest.approx(400 / 6), 75.0]


LOGITS, LABELS = images((0, ANIMAL, 2), (1, VEHICLE, 2))
PAIR = ("lion", "motorcycle")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: posit_hypothesis(TREE, 0, PAIR), r"node 0 is no inner node; those are 4\.\.6"),
        (lambda: posit_hypothesis(TREE, 6, ("cat", "dog")), "no unseen classes: all 2"),
        (
            lambda: posit_hypothesis(TREE, 6, ("zzyx", "qqv", "cat")),
            "none of the 2 unseen classes is in WordNet, such as 'zzyx'",
        ),
        (
            lambda: posit_hypothesis(TREE, 6, ("chair",)),
            "none of the 1 unseen classes.*they mean carnivore, motor vehicle",
        ),
        (lambda: posit_hypothesis(TREE, 6, ("lion",), means=["animal", "animal"]), "they mean animal, animal"),
        (lambda: posit_hypothesis(TREE, 6, PAIR, means=["animal"]), "2 children, got 1"),
        (lambda: posit_hypothesis(TREE, 6, PAIR, means=["animal", "zzyx"]), "WordNet has no noun 'zzyx'"),
        (lambda: posit_hypothesis(TREE, 6, PAIR, expect={"lon": 4}), "did you mean 'lion'"),
        (lambda: posit_hypothesis(TREE, 6, PAIR, expect={"lion": 0}), r"children of node 6 are 4 \(carnivore\), 5"),
        (lambda: posit_hypothesis(TREE, 6, (*PAIR, "dog"), expect={"dog": 4}), "'dog' is a class of the tree"),
        (lambda: node_hypothesis(TREE, 2, LOGITS, LABELS, PAIR, {"lion": 4}), "no inner node"),
        (lambda: node_hypothesis(TREE, 6, LOGITS, LABELS, PAIR, {"tiger": 4}), "'tiger' is none"),
        (lambda: node_hypothesis(TREE, 6, LOGITS, LABELS, PAIR, {"lion": 0}), "no child of node 6"),
        (lambda: node_hypothesis(TREE, 6, LOGITS, LABELS, (*PAIR, "fox"), {"fox": 4}), "no images of the classes"),
        (lambda: node_hypothesis(TREE, 6, LOGITS, LABELS, PAIR, {"lion": 4}, threshold=1.0), "threshold"),
        (lambda: node_hypothesis(TREE, 6, LOGITS, LABELS, PAIR, {"lion": 4}, confidence=1.0), "confidence"),
        (lambda: superclass_accuracy(TREE, LOGITS, LABELS, ("cat", "dog")), "no unseen classes"),
        (lambda: superclass_accuracy(TREE, LOGITS, LABELS, ("zzyx", "qqv")), "is in WordNet"),
        (lambda: superclass_accuracy(TREE, LOGITS, LABELS, ("lion", "chair")), "below two of its children"),
        (lambda: superclass_accuracy(TREE, LOGITS, LABELS, PAIR, nodes=[4]), "of those asked for"),
        (lambda: superclass_accuracy(TREE, LOGITS, LABELS, PAIR, nodes=[1]), "no inner node"),
    ],
)
def test_wrong_input(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
