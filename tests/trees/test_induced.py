"""Trees from weights against clusterings by hand, and the head of any classifier."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from nas.designs import torchvision_names
from nas.trees.hierarchy import Hierarchy
from nas.trees.induced import (
    METHODS,
    find_head,
    flat_hierarchy,
    head_weights,
    induced_hierarchy,
    model_hierarchy,
    random_hierarchy,
)
from nas.trees.nbdt import NBDT
from search_spaces.errors import UserError


def clades(tree: Hierarchy) -> set[frozenset[int]]:
    return {frozenset(tree.leaves_of(node).tolist()) for node in range(len(tree.classes), tree.nodes)}


def merged_by_hand(rows: np.ndarray, linkage: str) -> set[frozenset[int]]:
    """Agglomerative clustering as in a textbook: join the pair of least cost, all pairs tried each time."""
    groups, made = [frozenset([i]) for i in range(len(rows))], set()

    def cost(a: frozenset[int], b: frozenset[int]) -> float:
        x, y = rows[sorted(a)], rows[sorted(b)]
        if linkage == "average":
            return float(np.mean([np.linalg.norm(u - v) for u in x for v in y]))
        gap = x.mean(0) - y.mean(0)  # Ward: growth of the sum of squares
        return float(len(a) * len(b) / (len(a) + len(b)) * gap @ gap)

    while len(groups) > 1:
        a, b = min(itertools.combinations(groups, 2), key=lambda pair: cost(*pair))
        groups = [group for group in groups if group not in (a, b)] + [a | b]
        made.add(a | b)
    return made


@pytest.mark.parametrize("method", METHODS)
def test_induced_trees_are_the_clusterings_of_a_textbook(method: str) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(11, 5)) * rng.uniform(0.3, 3, size=(11, 1))
    used = rows / np.linalg.norm(rows, axis=1, keepdims=True) if method.startswith("unit") else rows
    tree = induced_hierarchy(rows, [str(i) for i in range(11)], method)  # type: ignore[arg-type]
    assert clades(tree) == merged_by_hand(used, method.partition("-")[2])
    assert all(len(children) == 2 for children in tree.children)


def test_length_of_the_rows_counts_for_raw_rows_only() -> None:
    """Directions 0, 10, 90 and 100 degrees; lengths 1, 10, 1, 10."""
    rows = np.array([[math.cos(a), math.sin(a)] for a in np.radians([0, 10, 90, 100])])
    rows *= np.array([[1.0], [10.0], [1.0], [10.0]])
    classes = list("abcd")
    assert {frozenset([0, 1]), frozenset([2, 3])} <= clades(induced_hierarchy(rows, classes))
    assert {frozenset([0, 1]), frozenset([2, 3])} <= clades(induced_hierarchy(rows, classes, "unit-average"))
    assert frozenset([0, 2]) in clades(induced_hierarchy(rows, classes, "raw-ward"))
    assert clades(induced_hierarchy(torch.tensor(rows), classes)) == clades(induced_hierarchy(rows, classes))


def test_a_class_without_weights_gets_its_place() -> None:
    rows = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.1]])
    assert frozenset([1, 2]) in clades(induced_hierarchy(rows, ["a", "b", "c"]))


@pytest.mark.parametrize(
    ("rows", "method", "message"),
    [
        (np.ones((3, 2)), "unit-ward", "3 rows, there are 2 classes"),
        (np.ones(2), "unit-ward", "1 dimension"),
        (np.array([[1.0], [np.nan]]), "unit-ward", "finite"),
        (np.ones((2, 2)), "unit-wards", "did you mean 'unit-ward'"),
    ],
)
def test_wrong_weights(rows: np.ndarray, method: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        induced_hierarchy(rows, ["a", "b"], method)  # type: ignore[arg-type]


def test_random_and_flat_trees() -> None:
    classes = [str(i) for i in range(9)]
    assert random_hierarchy(classes, 3).children == random_hierarchy(classes, 3).children
    assert clades(random_hierarchy(classes, 3)) != clades(random_hierarchy(classes, 4))
    assert flat_hierarchy(classes).children == (tuple(range(9)),)
    for few in ([], ["a"]):
        for make in (lambda c: random_hierarchy(c, 0), flat_hierarchy):
            with pytest.raises(UserError):
                make(few)


class Squeezed(nn.Module):
    """A convolution with as many outputs as classes, as squeeze-and-excite layers can have."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(8, 10, 1)
        self.spatial = nn.Conv2d(8, 10, 3)
        self.grouped = nn.Conv2d(10, 10, 1, groups=2)
        self.aux = nn.Linear(8, 10)
        self.fc = nn.Linear(8, 10)


def test_the_head_is_found_by_rule() -> None:
    model = Squeezed()
    assert find_head(model, 10) == ("fc", model.fc)
    assert find_head(model, 10, "squeeze") == ("squeeze", model.squeeze)
    assert head_weights(model, 10, "squeeze").shape == (10, 8)
    all_convolutions = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert find_head(all_convolutions, 5)[0] == "1"
    assert find_head(nn.Linear(3, 2), 2)[0] == ""
    expected = clades(induced_hierarchy(model.fc.weight, [str(i) for i in range(10)]))
    assert clades(model_hierarchy(model, [str(i) for i in range(10)])) == expected


@pytest.mark.parametrize(
    ("classes", "head", "message"),
    [
        (7, None, r"7 outputs; the last ones are squeeze \(10\), aux \(10\), fc \(10\)"),
        (10, "fcc", "did you mean 'fc'"),
        (10, "spatial", "no linear layer"),
        (9, "fc", "head 'fc' has 10 outputs, there are 9 classes"),
    ],
)
def test_heads_that_are_not_there(classes: int, head: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_head(Squeezed(), classes, head)


def test_several_heads_are_named() -> None:
    with pytest.raises(UserError, match="several layers have 4 outputs: 0, 1; name the head"):
        find_head(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 4)
    with pytest.raises(UserError, match="none at all"):
        find_head(nn.Sequential(nn.Conv2d(3, 4, 3)), 4)


SIDES = {"inception_v3": 75}  # the smallest that it takes; 64 for others, 224 for transformers
SMALL = ("shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5", "mobilenet_v3_small")  # one of each kind of head


def wraps(name: str) -> None:
    """A network of torchvision with random weights becomes a tree whose probabilities sum to one."""
    from torchvision import models

    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    model = models.get_model(name, weights=None, **options).eval()
    found, layer = find_head(model, 1000)
    last = [n for n, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    assert (found, layer.weight.shape[0]) == (last, 1000), name
    classes = tuple(f"class {number}" for number in range(1000))
    wrapped = NBDT(model, model_hierarchy(model, classes)).eval()
    side = SIDES.get(name, 224 if name.startswith(("vit", "swin", "maxvit")) else 64)
    with torch.no_grad():
        log_probabilities = wrapped(torch.randn(1, 3, side, side))
    assert log_probabilities.shape == (1, 1000), name
    assert float(log_probabilities.double().exp().sum()) == pytest.approx(1.0, abs=1e-5), name


@pytest.mark.parametrize("name", SMALL)
def test_networks_of_torchvision_wrap(name: str) -> None:
    wraps(name)


@pytest.mark.slow  # minutes on one core, up to 6 GB
def test_every_classifier_of_torchvision_wraps() -> None:
    names = torchvision_names()
    assert len(names) >= 80
    for name in names:
        wraps(name)
