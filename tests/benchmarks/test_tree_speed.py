"""The comparison with the package nbdt: on a hand tree without it, equal results on its trees where it is installed."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.tree_speed import (
    HARD,
    LOSS,
    SHIPPED,
    SOFT,
    OurTree,
    TheirTree,
    compare,
    differences,
    limit_of,
    load_nbdt,
    loss_and_gradient,
    random_batch,
    read_tree,
    share_rows,
    tree_files,
    tree_rows,
)
from nas.trees.hierarchy import Hierarchy
from nas.trees.induced import flat_hierarchy, random_hierarchy

HAND = Hierarchy(("plane", "cat", "car", "dog", "bird"), ((1, 3), (0, 4, 2), (5, 6)), ("", "", ""))


def package_probabilities(tree: Hierarchy, logits: Tensor) -> Tensor:
    """As nbdt computes them: node by node, softmax of the mean logits below the children, multiplied into every leaf."""
    found = torch.ones_like(logits)
    for children in tree.children:
        leaves = [torch.as_tensor(tree.leaves_of(child)) for child in children]
        chances = torch.stack([logits[:, below].mean(1) for below in leaves], 1).softmax(1)
        for child, below in enumerate(leaves):
            found[:, below] = found[:, below] * chances[:, child : child + 1]
    return found


@pytest.mark.parametrize("tree", [HAND, random_hierarchy([str(i) for i in range(40)], 3)], ids=["hand", "binary"])
def test_what_is_timed_is_what_the_package_computes(tree: Hierarchy) -> None:
    ours, (logits, labels) = OurTree(tree), random_batch(len(tree.classes), 6, 1)
    torch.testing.assert_close(ours.soft(logits), package_probabilities(tree, logits), rtol=0, atol=1e-6)
    loss, gradient = loss_and_gradient(ours, logits, labels)
    given, criterion = logits.clone().requires_grad_(), nn.CrossEntropyLoss()
    expected = criterion(given, labels) + criterion(package_probabilities(tree, given), labels)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, given.grad, rtol=0, atol=1e-6)
    assert ours.hard(logits).exp().sum(1).tolist() == [1.0] * 6


def test_times_and_ratios() -> None:
    def work(times: int) -> None:
        for _ in range(times):
            torch.ones(200, 200).sum()

    found = compare(lambda: work(2), lambda: work(60), rounds=3)
    assert 3 < found["ratio_worst"] <= found["ratio_median"] < 300
    assert 0 < found["ours_ms"] < found["theirs_ms"]


def test_share_of_a_network() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    lines = share_rows(HAND, network, side=8, batches=(1, 3), rounds=2, seed=0)
    assert [(line["batch"], line["what"], line["limit"]) for line in lines] == [
        (1, SOFT, 2.0), (1, HARD, None), (3, SOFT, None), (3, HARD, None),
    ]  # fmt: skip
    assert all(0 < line["percent_median"] <= line["percent_worst"] for line in lines)
    assert len({line["layout"] for line in lines}) == 1


def test_limits_are_those_of_the_trees_size_and_kind() -> None:
    ten, wide = random_hierarchy([str(i) for i in range(10)], 0), flat_hierarchy([str(i) for i in range(10)])
    assert (limit_of(SOFT, "induced", ten), limit_of(LOSS, "wordnet", ten), limit_of(SOFT, "induced", HAND)) == (
        10,
        7,
        None,
    )
    assert (limit_of(HARD, "induced-x", ten), limit_of(HARD, "wordnet", wide), limit_of(HARD, "wordnet", ten)) == (
        30, 19, None,
    )  # fmt: skip


@pytest.mark.parametrize(("dataset", "name"), SHIPPED[:-1])
def test_results_are_those_of_the_package(dataset: str, name: str) -> None:
    pytest.importorskip("nbdt", reason="nbdt is not installed", exc_type=ImportError)
    peer = load_nbdt()
    if peer is None:
        pytest.skip("something that nbdt needs is not installed")
    files = tree_files(peer, dataset, name)
    ours, theirs = OurTree(read_tree(*files)), TheirTree(peer, *files)
    apart = differences(ours, theirs, *random_batch(len(ours.tree.classes), 32, 4))
    assert apart[SOFT] <= 1e-6 and apart[LOSS] <= 1e-6 and apart[HARD] == 0


def test_a_tiny_trial() -> None:
    peer = load_nbdt()
    if peer is None:
        pytest.skip("nbdt is not installed")
    lines = tree_rows(peer, *SHIPPED[0], batch=4, rounds=2, seed=0)
    assert [line["classes"] for line in lines] == [10] * 4 and all(line["ratio_median"] > 0 for line in lines)
