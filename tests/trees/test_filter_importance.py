"""Scores, gains and rankings against hand-worked cases and loops."""

import numpy as np
import pytest
import torch
from torch import nn

from nas.lenet import LeNet5, build_lenet5
from nas.trees.filters.importance import (
    boosted_trees,
    decision_tree,
    filter_scores,
    map_scores,
    pruning_order,
    random_importance,
    split_gain,
    tree_depth,
    weight_norms,
)
from recipes.tensor_source import TensorSource
from search_spaces.errors import UserError


def test_gain_of_a_known_split() -> None:
    # 1/2 [2^2/(3+1) + (-4)^2/(5+1) - (-2)^2/(8+1)] - 0.5 = 1/2 [1 + 8/3 - 4/9] - 0.5
    assert split_gain(2, 3, -4, 5, reg_lambda=1, gamma=0.5) == pytest.approx(29 / 18 - 0.5, rel=1e-12)
    assert split_gain([2, 1], [3, 2], [-4, 1], [5, 2]) == pytest.approx([0.5 * (4 / 3 + 16 / 5 - 4 / 8), 0.0])


def test_gain_of_a_tree_with_one_split() -> None:
    # four images of class 0, two of class 1, two of class 2; the second score separates class 0
    values = np.array([[5, 0], [1, 0], [5, 0], [1, 0], [5, 1], [1, 1], [5, 1], [1, 1]], dtype=np.float32)
    labels = np.array([0, 0, 0, 0, 1, 2, 1, 2])
    tree = decision_tree(values, labels, depth=1)
    # before: 1/2 (4^2 + 2^2 + 2^2)/8 = 1.5; after: 1/2 4^2/4 + 1/2 (2^2 + 2^2)/4 = 3
    assert tree.importance().tolist() == pytest.approx([0, 1.5])
    assert tree.splits.tolist() == [0, 1]
    # half of 8 images times the fall of Gini impurity, 5/8 - (1/2) 0 - (1/2) (1/2)
    assert tree.importance()[1] == pytest.approx(0.5 * 8 * (5 / 8 - 1 / 4))
    deeper = decision_tree(values, labels, depth=2)  # the right child: 1/2 (2^2 + 2^2)/4 = 1 before, 2 after
    assert deeper.importance().tolist() == pytest.approx([1, 1.5])
    assert deeper.accuracy(values, labels) == 100
    assert tree.accuracy(values, labels) == 75


def gain_by_loop(values: np.ndarray, labels: np.ndarray, feature: int, threshold: float) -> float:
    total = 0.0
    for label in np.unique(labels):
        sums = []
        for part in (values[:, feature] <= threshold, values[:, feature] > threshold, np.ones(len(values), dtype=bool)):
            count = int(part.sum())
            hits = sum(1 for inside, own in zip(part, labels, strict=True) if inside and own == label)
            sums.append(hits * hits / count)
        total += 0.5 * (sums[0] + sums[1] - sums[2])
    return total


def test_the_root_is_the_split_of_the_largest_gain() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(60, 4)).astype(np.float32)
    labels = ((values[:, 2] + 0.5 * rng.normal(size=60) > 0.3) + 2 * (values[:, 0] > 0.9)).astype(np.int64)
    best = 0.0, -1
    for feature in range(4):
        ordered = np.sort(values[:, feature])
        for threshold in (ordered[1:] + ordered[:-1]) / 2:
            best = max(best, (gain_by_loop(values, labels, feature, threshold), feature))
    tree = decision_tree(values, labels, depth=1)
    assert tree.splits.argmax() == best[1]
    assert tree.total_gain[best[1]] == pytest.approx(best[0], rel=1e-6)
    grown = decision_tree(values, labels, depth=4)
    used = grown.splits > 0
    assert grown.importance("gain")[used] == pytest.approx(grown.total_gain[used] / grown.splits[used])
    leaves = 0.5 * len(labels) * (1 - sum((labels == k).mean() ** 2 for k in np.unique(labels)))
    assert grown.total_gain.sum() <= leaves + 1e-9, "no tree gains more than all impurity"


def test_xgboosts_gain_is_twice_ours() -> None:
    pytest.importorskip("xgboost")
    values = np.array([[0]] * 6 + [[1]] * 4, dtype=np.float32)
    labels = np.array([0, 0, 0, 0, 1, 1, 0, 1, 1, 1])
    forest = boosted_trees(values, labels, estimators=1, depth=1)
    # softmax of two equal logits: G = 1/2 - y, H = 2 p (1 - p) = 1/2 (XGBoost's factor 2), one tree a class, λ = 1
    one = split_gain(6 / 2 - 2, 6 / 2, 4 / 2 - 3, 4 / 2, reg_lambda=1)
    zero = split_gain(6 / 2 - 4, 6 / 2, 4 / 2 - 1, 4 / 2, reg_lambda=1)
    assert one == zero == pytest.approx(7 / 24)
    assert forest.splits.tolist() == [2]
    assert forest.total_gain[0] == pytest.approx(2 * (one + zero), rel=1e-5)
    assert forest.importance()[0] == pytest.approx(one + zero, rel=1e-5)
    assert forest.accuracy(values, labels) == 70


def test_boosting_repeats_and_keeps_class_numbers() -> None:
    pytest.importorskip("xgboost")
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 5)).astype(np.float32)
    labels = np.where(values[:, 1] > 0, 7, 4)
    first, again = (boosted_trees(values, labels, estimators=5) for _ in range(2))
    assert first.total_gain.tolist() == again.total_gain.tolist()
    assert set(first.predict(values).tolist()) == {4, 7}
    assert pruning_order(first.total_gain)[-1] == 1


def test_scores_by_hand() -> None:
    maps = torch.tensor([[[[1.0, -2.0], [3.0, 0.0]], [[4.0, 4.0], [4.0, 4.0]]]])
    assert map_scores(maps, "mean").tolist() == [[0.5, 4.0]]
    assert map_scores(maps, "max").tolist() == [[3.0, 4.0]]
    assert map_scores(maps, "topk", 2).tolist() == [[2.5, 4.0]]  # magnitudes 3 and 2
    assert map_scores(maps, "topk", 9).tolist() == [[1.5, 4.0]]


def source(count: int = 7, classes: int = 3) -> TensorSource:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 28, 28, 1), generator=generator, dtype=torch.uint8)
    return TensorSource(pixels, torch.arange(count) % classes, mean=(0.1,), std=(0.3,))


def test_scores_of_images_are_those_of_a_loop() -> None:
    network = build_lenet5(LeNet5((3, 4, 5, 6)), 3, 1, seed=0).train()
    found = filter_scores(
        network, ["convnet.c5", "convnet.c1"], source(), resolution=32, scores=("mean", "topk"), top_k=5, batch_size=3
    )
    assert network.training, "modes are left as found"
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    images = torch.cat([batch for batch, _ in source().batches(7, resolution=32)])
    network.eval()
    for row in range(7):
        with torch.no_grad():
            first = network.convnet[:2](images[row : row + 1])[0]
            last = network.convnet(images[row : row + 1])[0]
        for c in range(3):
            pixels = sorted(first[c].flatten().tolist(), reverse=True)
            assert found.values["convnet.c1", "mean"][row, c] == pytest.approx(sum(pixels) / len(pixels), rel=1e-4)
            assert found.values["convnet.c1", "topk"][row, c] == pytest.approx(sum(pixels[:5]) / 5, rel=1e-5)
        assert found.values["convnet.c5", "mean"][row] == pytest.approx(last.flatten().numpy(), abs=1e-6)


def test_rankings() -> None:
    assert pruning_order([0.5, 0, 2, 0]).tolist() == [1, 3, 0, 2]
    layer = nn.Conv2d(1, 2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([-3.0, 2.0]).reshape(2, 1, 1, 1))
    assert weight_norms(nn.Sequential(layer), "0").tolist() == [3, 2]
    drawn = random_importance(8, "a", 0)
    assert drawn.tolist() == random_importance(8, "a", 0).tolist() != random_importance(8, "b", 0).tolist()
    assert [tree_depth(filters) for filters in (1, 2, 6, 16, 120)] == [1, 1, 3, 4, 7]


def test_bad_input_is_one_line() -> None:
    values, labels = np.zeros((4, 2), dtype=np.float32), np.array([0, 1, 0, 1])
    for depth in (0, 30):
        with pytest.raises(UserError, match=rf"depth must be in 1..20 decisions, got {depth}"):
            decision_tree(values, labels, depth=depth)
    with pytest.raises(UserError, match="at least 2 classes, got 1"):
        decision_tree(values, np.zeros(4, dtype=np.int64))
    with pytest.raises(UserError, match="scores must be finite"):
        decision_tree(np.full((4, 2), np.nan, dtype=np.float32), labels)
    with pytest.raises(UserError, match="labels must be 4 whole numbers"):
        decision_tree(values, np.array([0.5, 1, 2, 3]))
    with pytest.raises(UserError, match="unknown importance 'gian'; did you mean 'gain'"):
        decision_tree(values, labels).importance("gian")  # type: ignore[arg-type]
    network = build_lenet5(LeNet5((2, 2, 2, 2)), 3, 1, seed=0)
    empty = source().subset(np.array([], dtype=np.int64))
    for layers, images, message in (
        (["convnet.c2"], source(), "no layer 'convnet.c2'.*did you mean 'convnet.c"),
        (["convnet.c1", "convnet.c1"], source(), "a layer stands twice"),
        ([], source(), "name at least one convolution"),
        (["convnet.c1"], empty, "the source holds no images"),
    ):
        with pytest.raises(UserError, match=message):
            filter_scores(network, layers, images, resolution=32)
    with pytest.raises(UserError, match=r"does not take images of shape \(1, 4, 4\)"):
        filter_scores(network, ["convnet.c5"], source(), resolution=4)


def test_without_xgboost_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "xgboost", None)
    with pytest.raises(UserError, match=r"boosted trees need XGBoost: pip install 'nas-toolkit\[xgboost\]'"):
        boosted_trees(np.zeros((2, 1), dtype=np.float32), np.array([0, 1]))
