"""Soft and hard inference against a walk through the tree, node by node, in float64."""

import copy
import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nas.trees.hierarchy import Hierarchy
from nas.trees.induced import flat_hierarchy, random_hierarchy
from nas.trees.nbdt import NBDT
from nas.trees.rules import RULES, HardRule, SoftRule
from search_spaces.errors import UserError

HAND = Hierarchy(("plane", "cat", "car", "dog", "bird"), ((1, 3), (0, 4, 2), (5, 6)), ("pet", "", "all"))


def wide_tree(classes: int, seed: int, most: int = 4) -> Hierarchy:
    """Inner nodes of 2..most children, paths of unequal length."""
    rng, loose, children = np.random.default_rng(seed), list(range(classes)), []
    while len(loose) > 1:
        size = min(len(loose), int(rng.integers(2, most + 1)))
        children.append(tuple(loose.pop(int(rng.integers(len(loose)))) for _ in range(size)))
        loose.append(classes + len(children) - 1)
    return Hierarchy(tuple(map(str, range(classes))), tuple(children), ("",) * len(children))


def chain(classes: int) -> Hierarchy:
    children = ((0, 1), *((i + 1, classes + i - 1) for i in range(1, classes - 1)))
    return Hierarchy(tuple(map(str, range(classes))), children, ("",) * (classes - 1))


def uneven(broad: int, long: int) -> Hierarchy:
    """One node of many leaves below a chain."""
    classes = broad + long
    children = (tuple(range(broad)), *((broad + i, classes + i) for i in range(long)))
    return Hierarchy(tuple(map(str, range(classes))), children, ("",) * (long + 1))


TREES = {
    "hand": HAND, "wide": wide_tree(23, 0), "binary": random_hierarchy([str(i) for i in range(17)], 5),
    "chain": chain(9), "flat": flat_hierarchy("abcdef"), "two": flat_hierarchy("ab"),
    "uneven": uneven(20, 10),
}  # fmt: skip


def walk(tree: Hierarchy, logits: np.ndarray) -> tuple[np.ndarray, int]:
    """log p(k) of one sample by recursion over children, and the leaf that a hard walk ends in."""
    score = {node: float(np.mean(logits[tree.leaves_of(node)])) for node in range(tree.nodes)}
    log_p = np.zeros(len(tree.classes))

    def down(node: int, so_far: float) -> None:
        children = tree.children_of(node)
        if not children:
            log_p[node] = so_far
            return
        largest = max(score[child] for child in children)
        total = largest + math.log(sum(math.exp(score[child] - largest) for child in children))
        for child in children:
            down(child, so_far + score[child] - total)

    down(tree.root, 0.0)
    node = tree.root
    while tree.children_of(node):
        node = max(tree.children_of(node), key=lambda child: score[child])
    return log_p, node


def some_logits(tree: Hierarchy, rows: int = 7, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(len(tree.classes))
    return scale * torch.randn(rows, len(tree.classes), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("name", TREES)
def test_probabilities_are_those_of_a_walk(name: str, dense: bool) -> None:
    tree, logits = TREES[name], some_logits(TREES[name])
    soft, hard = SoftRule(tree, dense=dense)(logits), HardRule(tree, dense=dense)(logits)
    assert soft.dtype == torch.float64
    for row in range(len(logits)):
        log_p, leaf = walk(tree, logits[row].numpy())
        torch.testing.assert_close(soft[row], torch.from_numpy(log_p), rtol=1e-12, atol=1e-12)
        assert int(hard[row].argmax()) == leaf
    one = torch.ones(len(logits), dtype=torch.float64)
    torch.testing.assert_close(soft.exp().sum(1), one, rtol=1e-12, atol=0)
    torch.testing.assert_close(hard.exp().sum(1), one, rtol=0, atol=0)
    assert (hard.softmax(1).max(1).values == 1).all()


def test_which_trees_are_padded() -> None:
    padded = {name for name, tree in TREES.items() if SoftRule(tree, dense=False).padded}
    assert padded == {"hand", "wide", "flat"}  # not the binary ones, nor one broad node among many narrow ones


def test_the_example_of_figure_5_1() -> None:
    """A mistake at the root that soft inference makes good and hard inference does not."""
    tree = Hierarchy(tuple("abcd"), ((0, 1), (2, 3), (4, 5)), ("", "", ""))
    logits = torch.tensor([[1.1, 1.0, -3.0, 5.0]])  # means 1.05 and 1.0
    root = 1 / (1 + math.exp(-0.05))
    expected = [root / (1 + math.exp(-0.1)), root / (1 + math.exp(0.1)), (1 - root) / (1 + math.exp(8)), 0.0]
    expected[3] = 1 - sum(expected)
    torch.testing.assert_close(SoftRule(tree)(logits).exp(), torch.tensor([expected]), rtol=1e-6, atol=1e-7)
    assert (int(SoftRule(tree)(logits).argmax()), int(HardRule(tree)(logits).argmax())) == (3, 0)


@pytest.mark.parametrize("dense", [True, False])
def test_the_flat_tree_is_the_classifier(dense: bool) -> None:
    tree, logits = TREES["flat"], some_logits(TREES["flat"])
    torch.testing.assert_close(SoftRule(tree, dense=dense)(logits), logits.log_softmax(1), rtol=1e-12, atol=1e-12)
    assert (HardRule(tree, dense=dense)(logits).argmax(1) == logits.argmax(1)).all()


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("name", ["wide", "binary"])
def test_scores_are_those_of_averaged_rows(name: str, dense: bool) -> None:
    """Eq. 5.5: the mean of the outputs is the output of the mean weight, with the mean bias."""
    tree = TREES[name]
    layer = nn.Linear(6, len(tree.classes)).double()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = SoftRule(tree, dense=dense).scores(layer(x))
    children = [child for children in tree.children for child in children]
    for row, child in zip(scores, children, strict=True):
        leaves = torch.as_tensor(tree.leaves_of(child))
        expected = x @ layer.weight[leaves].mean(0) + layer.bias[leaves].mean()
        torch.testing.assert_close(row, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("name", TREES)
def test_gradients_against_finite_differences(name: str, dense: bool) -> None:
    logits = some_logits(TREES[name], rows=2, scale=1.0).requires_grad_()
    assert torch.autograd.gradcheck(SoftRule(TREES[name], dense=dense), (logits,))


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("name", ["wide", "binary"])
def test_extreme_logits_stay_finite(name: str, dense: bool) -> None:
    logits = some_logits(TREES[name], scale=3e3).float().requires_grad_()
    out = SoftRule(TREES[name], dense=dense)(logits)
    out.sum().backward()
    assert out.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert out.exp().sum(1).sub(1).abs().max() < 1e-5


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("name", TREES)
def test_among_equals_a_hard_tree_takes_the_first_child(name: str, dense: bool) -> None:
    tree = TREES[name]
    node = tree.root
    while tree.children_of(node):
        node = tree.children_of(node)[0]
    assert int(HardRule(tree, dense=dense)(torch.zeros(1, len(tree.classes))).argmax()) == node


@pytest.mark.parametrize("dense", [True, False])
def test_order_behind_the_leaf_reached_is_that_of_soft_inference(dense: bool) -> None:
    logits = some_logits(HAND)
    soft, hard = SoftRule(HAND, dense=dense)(logits), HardRule(HAND, dense=dense)(logits)
    for s, h in zip(soft, hard, strict=True):
        behind = [k for k in s.argsort(descending=True).tolist() if k != int(h.argmax())]
        assert h.argsort(descending=True).tolist() == [int(h.argmax()), *behind]


def test_wrong_logits_and_rules_are_one_line() -> None:
    with pytest.raises(UserError, match=r"5 classes needs logits \(batch, 5\), got \(2, 4\)"):
        SoftRule(HAND)(torch.zeros(2, 4))
    with pytest.raises(UserError, match="did you mean 'soft'"):
        NBDT(nn.Linear(3, 5), HAND, "sofd")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="one tensor, got tuple"):
        NBDT(Tuples(), HAND)(torch.zeros(1, 3))


class Tuples(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x, x)


def network(classes: int) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, classes))


@pytest.mark.parametrize("rule", ["soft", "hard"])
@pytest.mark.parametrize("name", ["wide", "binary", "chain"])
def test_decisions_multiply_to_the_probability_of_the_class(name: str, rule: Any) -> None:
    tree = TREES[name]
    tree = tree.with_names([f"node {j}" for j in range(len(tree.children))])
    model = NBDT(network(len(tree.classes)), tree, rule)  # in training mode: dropout must not show
    x = 5 * torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    decided = model.decisions(x)
    assert model.training
    model.eval()
    p = SoftRule(tree)(model.model(x)).exp().detach()
    for row, decision in enumerate(decided):
        leaf = decision.predicted
        assert leaf == int(model(x)[row].argmax())
        assert decision.class_name == tree.classes[leaf]
        path = [int(node) for node in tree.paths[leaf] if node >= 0]
        assert [(c.node, c.child) for c in decision.choices] == list(itertools.pairwise(path))
        assert decision.choices[0].name == f"node {tree.root - len(tree.classes)}"
        assert decision.choices[-1].child_name == tree.classes[leaf]
        assert math.prod(c.probability for c in decision.choices) == pytest.approx(float(p[row, leaf]), rel=1e-5)
        assert decision.probability == pytest.approx(float(p[row, leaf]), rel=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tree", [HAND, TREES["binary"], wide_tree(130, 2)], ids=["hand", "binary", "sparse"])
def test_copies_and_files_give_the_same(tree: Hierarchy, rule: Any) -> None:
    model = NBDT(network(len(tree.classes)), tree, rule).eval()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for again in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(again(x), model(x))
    assert set(model.state_dict()) == {f"model.{name}" for name in model.model.state_dict()}


@pytest.mark.parametrize("tree", [HAND, TREES["binary"], wide_tree(130, 2)], ids=["hand", "binary", "sparse"])
def test_lower_precision_is_computed_in_float32(tree: Hierarchy) -> None:
    logits = some_logits(tree)
    for dtype in (torch.bfloat16, torch.float16):
        rule = SoftRule(tree).to(dtype)
        low = logits.to(dtype)
        assert torch.equal(rule(low), SoftRule(tree)(low.float()))
        assert rule(low).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = SoftRule(tree)(logits.float())
    assert torch.equal(mixed, SoftRule(tree)(logits.float()))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tree", [HAND, TREES["binary"], wide_tree(130, 2)], ids=["hand", "binary", "sparse"])
def test_torch_export_takes_any_batch(tree: Hierarchy, rule: Any) -> None:
    model = NBDT(network(len(tree.classes)), tree, rule).eval()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(model, (x[:4],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    for rows in (1, 5):
        torch.testing.assert_close(exported(x[:rows]), model(x[:rows]), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tree", [HAND, wide_tree(130, 2)], ids=["hand", "sparse"])
def test_onnx_takes_any_batch(tree: Hierarchy, rule: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = NBDT(network(len(tree.classes)), tree, rule).eval()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(model, (x[:4],), dynamo=True, dynamic_shapes=batch, verbose=False)
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for rows in (1, 5):
        (out,) = session.run(None, {session.get_inputs()[0].name: x[:rows].numpy()})
        torch.testing.assert_close(torch.from_numpy(out), model(x[:rows]), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("tree", [HAND, wide_tree(130, 2)], ids=["hand", "sparse"])
def test_torch_compile_in_one_graph_with_gradients(tree: Hierarchy) -> None:
    """By the ahead-of-time backend: what is traced is checked, no C compiler is needed."""
    for rule in (SoftRule(tree), HardRule(tree)):
        compiled = torch.compile(rule, backend="aot_eager", fullgraph=True)
        ours, theirs = (some_logits(tree).requires_grad_() for _ in range(2))
        torch.testing.assert_close(compiled(ours), rule(theirs), rtol=1e-12, atol=1e-12)
        compiled(ours).logsumexp(1).sum().backward()
        rule(theirs).logsumexp(1).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tree", [HAND, wide_tree(130, 2)], ids=["hand", "sparse"])
def test_distributed_data_parallel(tree: Hierarchy, tmp_path: Path) -> None:
    """Buffers can be broadcast, gradients come back."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        model = NBDT(network(len(tree.classes)).eval(), tree)
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        model(x)[:, 0].sum().backward()
        expected = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        parallel = nn.parallel.DistributedDataParallel(model)
        parallel(x)[:, 0].sum().backward()
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
    finally:
        torch.distributed.destroy_process_group()
