"""The soft decision tree against hand-worked trees and loops over nodes; its file; its page."""

import copy
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nas.trees.soft.loss import SoftTreeLoss
from nas.trees.soft.page import ShownImage, diverging, soft_tree_page
from nas.trees.soft.paths import (
    FORMS,
    Form,
    balance_penalty,
    leaf_loss,
    log_path_probabilities,
    node_depths,
    node_flows,
    running_mean,
)
from nas.trees.soft.training import SoftLabelled
from nas.trees.soft.tree import SoftDecisionTree, SoftDecisionTrees
from recipes.tensor_source import TensorSource
from search_spaces.errors import UserError

LOG_3 = math.log(3.0)  # sigmoid is 3/4


def tree_of(depth: int, inputs: int = 5, classes: int = 3, **options: float) -> SoftDecisionTree:
    """Weights of order 1, so that decisions differ."""
    tree = SoftDecisionTree(inputs, classes, depth, seed=3, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tree.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return tree


def images_of(count: int, inputs: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(seed))


def paths_by_loops(tree: SoftDecisionTree, image: Tensor) -> tuple[list[float], list[float], list[float]]:
    """Of one image: P of every leaf from left to right, P and p of every inner node; node by node from the root."""
    inner = 2**tree.depth - 1
    arriving = {0: 1.0}
    through, right = [], []
    for node in range(inner):
        weights, bias = tree.filters.weight[node].tolist(), tree.filters.bias[node].item()
        z = tree.beta * (sum(w * x for w, x in zip(weights, image.tolist(), strict=True)) + bias)
        p = 1 / (1 + math.exp(-z))
        through.append(arriving[node])
        right.append(p)
        arriving[2 * node + 1] = arriving[node] * (1 - p)
        arriving[2 * node + 2] = arriving[node] * p
    return [arriving[inner + leaf] for leaf in range(2**tree.depth)], through, right


def test_path_probabilities_of_depth_2_by_hand() -> None:
    """Root goes right with 3/4, its left child with 1/2, its right child with 1/4."""
    paths = log_path_probabilities(torch.tensor([[LOG_3, 0.0, -LOG_3]]), 2).exp()
    assert paths[0].tolist() == pytest.approx([1 / 8, 1 / 8, 9 / 16, 3 / 16], abs=1e-7)


def test_path_probabilities_are_those_of_a_walk_over_the_nodes() -> None:
    tree = tree_of(4, beta=0.7)
    images = images_of(6)
    expected = [paths_by_loops(tree, image)[0] for image in images]
    assert torch.allclose(tree(images, paths=True).exp(), torch.tensor(expected), atol=1e-6)


def test_decisions_that_are_certain_lose_nothing() -> None:
    paths = log_path_probabilities(torch.tensor([[200.0, 0.0, 200.0]]), 2)
    assert paths[0].tolist() == pytest.approx([-200 - math.log(2), -200 - math.log(2), -200, 0])


def test_flows_and_balance_by_loops() -> None:
    """Eq. 4: alpha_i = sum_x P^i(x) p_i(x) / sum_x P^i(x); of the first batch the averages are its own sums."""
    tree, images = tree_of(3), images_of(7)
    walked = [paths_by_loops(tree, image) for image in images]
    through = np.mean([P for _, P, _ in walked], axis=0)
    right = np.mean([np.multiply(P, p) for _, P, p in walked], axis=0)
    log_paths = tree(images, paths=True)
    found = node_flows(log_paths.exp().mean(0), 3)
    assert found[0].tolist() == pytest.approx(through.tolist(), rel=1e-5)
    assert found[1].tolist() == pytest.approx(right.tolist(), rel=1e-5)
    assert tree.balance(log_paths, update=False).tolist() == pytest.approx((right / through).tolist(), rel=1e-4)
    assert int(tree.batches) == 0


def test_penalty_of_depth_2_by_hand() -> None:
    """-0.5 (log a + log(1 - a)): log 2 at 1/2; 0.5 log(16/3) at 1/4 and 3/4, the lower level's times decay."""
    unbalanced = 0.5 * math.log(16 / 3)
    found = balance_penalty(torch.tensor([0.5, 0.25, 0.75]), decay=0.25)
    assert float(found) == pytest.approx(math.log(2) + 0.25 * 2 * unbalanced, rel=1e-6)
    assert node_depths(3).tolist() == [0, 1, 1, 2, 2, 2, 2]


def test_averages_over_batches_of_different_sizes_by_loops() -> None:
    """Means of all batches at first, exponential over window 2^d batches then."""
    tree = tree_of(2, window=2)
    through, right = np.zeros(3), np.zeros(3)
    windows = np.array([2.0, 4.0, 4.0])
    for count, size in enumerate((4, 1, 6, 3, 5)):
        log_paths = tree(images_of(size, seed=count), paths=True)
        new_through, new_right = (flow.detach().numpy() for flow in node_flows(log_paths.exp().mean(0), 2))
        weight = np.maximum(1 / windows, 1 / (count + 1))
        through += weight * (new_through - through)
        right += weight * (new_right - right)
        alpha = tree.balance(log_paths, update=True)
    assert alpha.tolist() == pytest.approx((right / through).tolist(), rel=1e-5)
    assert int(tree.batches) == 5


@pytest.mark.parametrize("window", [1, 1000])
def test_running_averages_send_the_batch_s_gradient(window: int) -> None:
    """The linked code's averages send none, plain ones a gradient that is the window's length too small."""
    tree, images = tree_of(2, window=window), images_of(8)
    for _ in range(3):  # averages of this very batch: the gradient must be that without averages
        tree.balance(tree(images, paths=True), update=True)
    balance_penalty(tree.balance(tree(images, paths=True), update=False)).backward()
    found = tree.filters.weight.grad
    tree.zero_grad()
    through, right = node_flows(tree(images, paths=True).exp().mean(0), 2)
    balance_penalty(right / through).backward()
    assert found is not None and tree.filters.weight.grad is not None
    assert float(found.abs().max()) > 1e-3
    assert torch.allclose(found, tree.filters.weight.grad, rtol=1e-4, atol=1e-6)


def test_running_mean_by_hand() -> None:
    value = torch.tensor([3.0], requires_grad=True)
    found = running_mean(torch.tensor([1.0]), value, torch.tensor([0.25]))
    found.backward()
    assert found.item() == 1.5 and value.grad is not None and float(value.grad) == 1.0


def test_a_node_that_sends_all_to_one_side_still_learns() -> None:
    tree = SoftDecisionTree(1, 2, 1)
    with torch.no_grad():
        tree.filters.bias.fill_(12.0)
    alpha = tree.balance(tree(torch.ones(4, 1), paths=True), update=True)
    assert alpha.item() == pytest.approx(0.999)
    balance_penalty(alpha).backward()
    assert tree.filters.bias.grad is not None and float(tree.filters.bias.grad) > 0


def test_losses_by_loops() -> None:
    tree, images = tree_of(3), images_of(4)
    targets = torch.softmax(images_of(4, 3, seed=5), dim=1)
    log_paths, log_leaves = tree(images, paths=True), tree.log_leaves()
    for row in range(4):
        P = log_paths[row].exp().tolist()
        Q = [torch.softmax(phi, 0).tolist() for phi in tree.leaves]
        T = targets[row].tolist()
        expected = sum(P[leaf] * -sum(T[k] * math.log(Q[leaf][k]) for k in range(3)) for leaf in range(8))
        mixed = -sum(T[k] * math.log(sum(P[leaf] * Q[leaf][k] for leaf in range(8))) for k in range(3))
        for form, value in (("expected", expected), ("log", math.log(expected)), ("mixture", mixed)):
            found = leaf_loss(log_paths, log_leaves, targets, form)  # type: ignore[arg-type]
            assert float(found[row]) == pytest.approx(value, rel=1e-4)


def test_the_loss_takes_labels_and_distributions_and_adds_the_penalty() -> None:
    tree, images, labels = tree_of(2), images_of(6), torch.tensor([0, 1, 2, 2, 1, 0])
    one_hot = torch.nn.functional.one_hot(labels, 3).float()
    plain = SoftTreeLoss(penalty=0.0)(tree, images, labels, 0.0)
    assert float(plain) == pytest.approx(float(SoftTreeLoss(penalty=0.0)(tree, images, one_hot, 0.0)), rel=1e-6)
    assert int(tree.batches) == 0
    penalty = balance_penalty(tree.balance(tree(images, paths=True), update=False), 0.3)
    both = SoftTreeLoss(penalty=0.2, decay=0.3)(tree, images, labels, 0.0)
    assert float(both) == pytest.approx(float(plain + 0.2 * penalty), rel=1e-5)
    assert int(tree.batches) == 1
    tree.eval()
    SoftTreeLoss()(tree, images, labels, 0.0)
    assert int(tree.batches) == 1  # only training moves the averages


@pytest.mark.parametrize("form", FORMS)
def test_trees_side_by_side_learn_as_each_would_alone(form: Form) -> None:
    """In float64: losses, gradients, running averages and predictions over three steps of plain gradient descent."""
    alone = [SoftDecisionTree(5, 3, 3, beta=0.7, window=2, seed=seed).double() for seed in range(4)]
    together = SoftDecisionTrees(alone).double()
    loss, labels = SoftTreeLoss(penalty=0.3, form=form), torch.tensor([0, 1, 2, 2, 1, 0])
    for step in range(3):
        images = images_of(6, seed=step).double()
        losses = []
        for model in (together, *alone):
            model.zero_grad()
            losses.append(loss(model, images, labels, 0.0))
            losses[-1].backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None and float(parameter.grad.abs().max()) > 1e-6
                    parameter -= 0.5 * parameter.grad
        assert float(losses[0]) == pytest.approx(sum(float(value) for value in losses[1:]) / 4, rel=1e-12)
    images = images_of(50).double()
    said = torch.stack([tree(images) for tree in alone], dim=1)
    assert torch.equal(together.predictions(images), said.argmax(2))
    assert torch.allclose(together(images), said.exp().mean(1).log())
    for index, tree in enumerate(alone):
        taken = together.tree(index).state_dict()
        assert taken.keys() == tree.state_dict().keys()
        for name, tensor in tree.state_dict().items():
            assert torch.allclose(taken[name].double(), tensor.double(), atol=1e-6), name


def test_trees_that_differ_cannot_stand_side_by_side() -> None:
    with pytest.raises(UserError, match="alike"):
        SoftDecisionTrees([tree_of(2), tree_of(2, beta=2.0)])
    with pytest.raises(UserError, match="at least one"):
        SoftDecisionTrees([])


def test_the_prediction_is_the_leaf_with_the_greatest_path_probability() -> None:
    """Going to the likelier side at each node would end at another leaf: .4 x .9 > .6 x .5."""
    tree = SoftDecisionTree(1, 4, 2)
    with torch.no_grad():
        tree.filters.weight.zero_()
        tree.filters.bias.copy_(torch.logit(torch.tensor([0.6, 0.1, 0.5])))
        tree.leaves.copy_(4 * torch.eye(4))
    paths = tree.path(torch.zeros(1, 1))
    assert tree(torch.zeros(1, 1)).argmax(1).tolist() == [0]
    assert (paths.nodes.tolist(), paths.right.tolist(), paths.leaf.tolist()) == ([[0, 1]], [[False, False]], [0])
    assert paths.probabilities[0].tolist() == pytest.approx([0.4, 0.9])
    assert paths.distribution[0].tolist() == pytest.approx(torch.softmax(4 * torch.eye(4)[0], 0).tolist())


def test_paths_multiply_to_the_path_probability_and_outputs_are_distributions() -> None:
    tree, images = tree_of(5), images_of(50)
    paths, log_paths = tree.path(images), tree(images, paths=True)
    assert torch.allclose(paths.probabilities.prod(1), log_paths.exp().max(1).values, rtol=1e-4)
    steps = torch.where(paths.right, 2 * paths.nodes + 2, 2 * paths.nodes + 1)
    assert torch.equal(steps[:, :-1], paths.nodes[:, 1:])
    assert torch.equal(steps[:, -1] - (2**5 - 1), paths.leaf)
    assert torch.allclose(tree(images).exp(), paths.distribution, atol=1e-6)
    mixed = (log_paths.exp() @ tree.log_leaves().exp()).log()
    assert torch.allclose(tree.mixture(images), mixed, atol=1e-5)


def test_a_seed_gives_one_tree_and_leaves_the_global_state_alone() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (SoftDecisionTree(6, 3, 2, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.filters.weight, other.filters.weight)
    copy.deepcopy(first)


def test_a_file_gives_the_tree_back(tmp_path: Path) -> None:
    tree = tree_of(3, beta=0.5, window=7)
    tree.balance(tree(images_of(9), paths=True), update=True)
    tree.save(tmp_path / "tree.pt", data="digits")
    loaded = SoftDecisionTree.load(tmp_path / "tree.pt")
    assert (loaded.beta, loaded.window, loaded.depth, loaded.training) == (0.5, 7, 3, False)
    assert torch.equal(loaded.through, tree.through) and int(loaded.batches) == 1
    assert torch.equal(loaded(images_of(4)), tree(images_of(4)))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tree.pt"
    tree_of(2).save(path)
    stored = torch.load(path, weights_only=True)
    state = stored["state"]
    nan = state | {"leaves": torch.full_like(state["leaves"], math.nan)}
    for change in ({"kind": "net"}, {"depth": 30}, {"depth": 3}, {"inputs": 1 << 40}, {"beta": 0.0}, {"state": nan},
                   {"state": {}}, {"state": 3}, {"window": "x"}):  # fmt: skip
        torch.save({**stored, **change}, path)
        with pytest.raises(UserError):
            SoftDecisionTree.load(path)
    path.write_bytes(b"no tree")
    with pytest.raises(UserError, match="damaged"):
        SoftDecisionTree.load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "depth must be in 1..12, got 0"),
        ({"depth": 30}, "depth must be in 1..12, got 30"),
        ({"classes": 1}, "a tree needs 2.."),
        ({"beta": -1.0}, "beta must be > 0"),
        ({"beta": math.nan}, "beta must be > 0"),
        ({"window": 0}, "window must be >= 1"),
    ],
)
def test_impossible_trees_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SoftDecisionTree(**{"inputs": 4, "classes": 3, "depth": 2, **arguments})  # type: ignore[arg-type]


def test_impossible_losses_and_images_are_refused() -> None:
    for wrong in ({"penalty": -0.1}, {"decay": 1.5}, {"form": "expcted"}, {"penalty": math.nan}):
        with pytest.raises(UserError):
            SoftTreeLoss(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="takes 5 values an image, got 4"):
        tree_of(2)(torch.zeros(3, 2, 2))


def numbered_source(count: int) -> TensorSource:
    """Images whose pixel is their number."""
    pixels = torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1)
    return TensorSource(pixels.expand(count, 2, 2, 1), torch.arange(count) % 3, mean=[0.0], std=[1.0], crop_padding=1)


def test_soft_labels_stay_with_their_images() -> None:
    source = numbered_source(23)
    targets = torch.arange(23.0)[:, None].repeat(1, 3)
    soft = SoftLabelled(source, targets)
    part = soft.subset(np.array([5, 2, 22, 7, 9]))
    for view, options in (
        (soft, {}), (soft, {"rng": 1}), (soft, {"rng": 2, "drop_last": True}), (soft, {"rng": 3, "start": 2}),
        (soft, {"rng": 4, "part": (1, 2)}), (soft, {"rng": 5, "augment": True}), (part, {"rng": 6}),
    ):  # fmt: skip
        rng = np.random.default_rng(options["rng"]) if "rng" in options else None
        for images, rows in view.batches(4, resolution=2, **(options | {"rng": rng})):
            if not options.get("augment"):
                assert torch.equal(rows[:, 0], (images[:, 0, 0, 0] * 255).round())
            assert torch.equal(rows[:, 0], rows[:, 2])
    assert torch.equal(part.labels, source.labels[[5, 2, 22, 7, 9]])
    with pytest.raises(UserError, match="need a row of targets each"):
        SoftLabelled(source, targets[:4])


def test_colours_of_a_filter() -> None:
    found = diverging(np.array([[[1.0, 0.0], [-0.4, -1.0]], [[0.0, 0.0], [0.0, 0.0]]]))
    assert found[0].tolist() == [[[217, 98, 43], [255, 255, 255]], [[172, 203, 239], [47, 126, 216]]]
    assert (found[1] == 255).all()


@pytest.mark.parametrize("depth", [1, 3, 9])
def test_the_page_shows_every_filter_leaf_and_way_and_no_markup_of_others(depth: int) -> None:
    tree = tree_of(depth, inputs=9)
    values = images_of(2, 9).view(2, 1, 3, 3)
    shown = [
        ShownImage(title=f"<b>{index}</b>", values=value, pixels=np.zeros((3, 3, 1), dtype=np.uint8))
        for index, value in enumerate(values)
    ]
    page = soft_tree_page(tree, ["<i>a", "b&c", "d\n"], (1, 3, 3), title="T<x>", images=shown, facts={"a<": "b>"})
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    space = "{http://www.w3.org/2000/svg}"
    first, *ways = root.iter(f"{space}svg")
    levels = min(depth, 8)
    assert len(list(first.iter(f"{space}image"))) == 2**levels - 1
    assert len(list(first.iter(f"{space}g"))) == 2**levels - 1 + 2**levels
    assert [len(list(way.iter(f"{space}image"))) for way in ways] == [1 + 2 * depth] * 2
    assert "<i>" not in page and "<b>0" not in page and "T<x>" not in page
    assert "http" not in page.replace("http://www.w3.org/", "").replace("http-equiv", "")
    probabilities = tree.path(values).probabilities[1].tolist()
    for probability in probabilities:
        assert f" {probability:.3f}<" in page
    with pytest.raises(UserError, match="got 2 names"):
        soft_tree_page(tree, ["a", "b"], (1, 3, 3), title="")
