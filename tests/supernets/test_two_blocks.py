"""Two sampled block types a layer: which ones, with what weights, and that nothing else runs or learns."""

import math
from collections import Counter
from itertools import permutations

import pytest
import torch

from search_spaces.errors import UserError
from search_spaces.rows import Row, space_of_rows
from search_spaces.space import SearchSpace
from supernets.config import SearchConfig
from supernets.gumbel import gumbel_noise, gumbel_weights, keep_two
from supernets.supergraph import Supergraph

TYPES = ("ir_k3_hs", "ir_k5_hs", "ir_k3_se_hs", "skip")


def space() -> SearchSpace:
    rows = [Row(block=TYPES, expansion=(1, 2), width=(8, 12)) for _ in range(2)]
    return space_of_rows("four types", rows, resolutions=(10, 16), stem_width=8, head_width=16, head_expansion=2.0)


def test_the_two_largest_are_made_to_sum_to_one() -> None:
    kept = keep_two(torch.tensor([0.1, 0.5, 0.1, 0.3]))
    torch.testing.assert_close(kept, torch.tensor([0.0, 0.625, 0.0, 0.375]))
    few = torch.tensor([0.3, 0.7])
    assert keep_two(few) is few


def test_pairs_are_draws_without_replacement() -> None:
    """Against p_i p_j / (1 - p_i), summed over both orders."""
    alpha, n = torch.tensor([0.5, 0.0, -0.5, 1.0], dtype=torch.float64), 6000
    p = torch.softmax(alpha, 0).tolist()
    noise = gumbel_noise(4 * n, torch.Generator().manual_seed(0)).view(n, 4)
    drawn = Counter(frozenset(keep_two(gumbel_weights(alpha, 5.0, e)).nonzero()[:, 0].tolist()) for e in noise)
    expected: Counter[frozenset[int]] = Counter()
    for i, j in permutations(range(4), 2):
        expected[frozenset((i, j))] += p[i] * p[j] / (1 - p[i])  # type: ignore[assignment]
    for pair, share in expected.items():
        assert abs(drawn[pair] / n - share) < 4 * math.sqrt(share * (1 - share) / n)


def test_only_two_types_run_and_learn() -> None:
    supergraph = Supergraph(space(), 5).double()
    supergraph.sample_two = True
    supergraph.alpha.requires_grad_(True)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noise = gumbel_noise(len(supergraph.alpha), torch.Generator().manual_seed(2))
    weights = supergraph.weights(2.0, noise)
    ran: list[tuple[int, int]] = []
    for number, layer in enumerate(supergraph.layers):
        for index, branch in enumerate(layer.branches):
            branch.register_forward_hook(lambda *_, at=(number, index): ran.append(at))
    supergraph(images, weights).square().sum().backward()
    parts = dict(
        zip(supergraph.space.column, torch.split(supergraph.alpha.grad, supergraph.option_counts), strict=True)  # type: ignore[arg-type]
    )
    for number, slot in enumerate(supergraph.space.slots):
        chosen = set(weights[slot.block.name].detach().topk(2).indices.tolist())
        assert {index for at, index in ran if at == number} == chosen - {TYPES.index("skip")}  # which is no call
        gradient = parts[slot.block.name]
        assert gradient.abs().max() > 0
        assert gradient.sum().abs() < 1e-12  # what one gains the other loses
        assert {index for index, value in enumerate(gradient.tolist()) if abs(value) > 1e-12} == chosen


@pytest.mark.parametrize("shared", [{}, {"share_pointwise": True}, {"share_blocks": True}])
def test_the_mixture_is_that_of_the_renormalised_weights(shared: dict[str, bool]) -> None:
    supergraph = Supergraph(space(), 5, **shared).double().eval()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noise = gumbel_noise(len(supergraph.alpha), torch.Generator().manual_seed(2))
    with torch.no_grad():
        weights = supergraph.weights(2.0, noise)
        blocks = {slot.block.name for slot in supergraph.space.slots}
        plain = supergraph(images, {k: keep_two(w) if k in blocks else w for k, w in weights.items()})
        supergraph.sample_two = True
        torch.testing.assert_close(supergraph(images, weights), plain, rtol=0, atol=0)
        supergraph.sample_two = False
        assert not torch.allclose(supergraph(images, weights), plain)


def test_norms_that_wait_for_other_processes_need_the_same_draws() -> None:
    with pytest.raises(UserError, match="needs --same-noise"):
        SearchConfig(sample="two", sync_batch_norm=True)
    SearchConfig(sample="two", sync_batch_norm=True, noise_per_rank=False)
