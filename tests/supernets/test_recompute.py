"""Resolutions whose maps are computed again: the memory of the largest alone, the same bits as without."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_spaces import three_layers
from torch import Tensor, nn

from benchmarks.memory import saved_bytes
from nas.searching import search
from recipes.checkpoint import load_checkpoint
from search_spaces.rows import Row, space_of_rows
from search_spaces.space import SearchSpace
from supernets.gumbel import gumbel_noise
from supernets.recompute import recomputed
from supernets.supergraph import Supergraph

PHASES = ["weights", "alpha"]


def at(*resolutions: int) -> SearchSpace:
    rows = [Row(expansion=(1, 2), width=(8, 12)), Row(expansion=(1, 2), width=(8, 16), stride=2, n=2)]
    return space_of_rows("small", rows, resolutions=resolutions, stem_width=8, head_width=24, head_expansion=3.0)


class Step:
    """A training step of one phase on a fresh supergraph."""

    def __init__(
        self, space: SearchSpace, phase: str, *, recompute: bool, fast: bool = False, one_block: bool = False
    ) -> None:
        supergraph = Supergraph(space, 10, share_pointwise=fast, share_blocks=one_block)
        self.supergraph = supergraph.to(memory_format=torch.channels_last)
        self.supergraph.recompute_resolutions, self.supergraph.sample_two = recompute, fast
        for parameter in self.supergraph.network_parameters():
            parameter.requires_grad_(phase == "weights")
        self.supergraph.alpha.requires_grad_(phase == "alpha")
        self.generator = torch.Generator().manual_seed(3)
        side = int(max(space.resolution.options))
        self.images = torch.randn(6, 3, side, side, generator=self.generator).to(memory_format=torch.channels_last)

    def loss(self) -> Tensor:
        weights = self.supergraph.weights(0.7, gumbel_noise(len(self.supergraph.alpha), self.generator))
        return F.cross_entropy(self.supergraph(self.images, weights), torch.arange(6))


def kept(step: Step) -> int:
    """Bytes that autograd keeps for the backward pass."""
    return saved_bytes(step.loss, step.supergraph)


@pytest.mark.parametrize(("fast", "one_block"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("phase", PHASES)
def test_gradients_and_statistics_have_the_same_bits(phase: str, fast: bool, one_block: bool) -> None:
    plain, again = (
        Step(three_layers(), phase, recompute=recompute, fast=fast, one_block=one_block) for recompute in (False, True)
    )
    for _ in range(2):  # the second step starts from the statistics of the first
        losses = [step.loss() for step in (plain, again)]
        assert torch.equal(*losses)
        for loss in losses:
            loss.backward()
    theirs = dict(again.supergraph.named_parameters())
    compared = 0
    for name, parameter in plain.supergraph.named_parameters():
        if parameter.requires_grad and (parameter.grad is not None or not fast):  # what is not drawn gets none
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, theirs[name].grad), name
            compared += 1
    assert compared == (1 if phase == "alpha" else len(theirs) - 1) or (fast and 0 < compared < len(theirs))
    counted = dict(again.supergraph.named_buffers())
    for name, buffer in plain.supergraph.named_buffers():
        assert torch.equal(buffer, counted[name]), name
        if name == "stem.conv.1.num_batches_tracked":
            assert int(buffer) == 2 * 3  # steps, resolutions


@pytest.mark.parametrize("phase", PHASES)
def test_four_resolutions_keep_what_the_largest_does(phase: str) -> None:
    alone = kept(Step(at(28), phase, recompute=False))
    plain, again = (kept(Step(at(16, 20, 24, 28), phase, recompute=recompute)) for recompute in (False, True))
    assert plain > 2 * alone
    assert again <= 1.15 * alone


def test_random_numbers_are_drawn_once() -> None:
    """Dropout in the second pass takes the first one's mask, and what is drawn later does not notice it."""
    dropout, generator = nn.Dropout(0.5), torch.Generator().manual_seed(0)
    x = torch.randn(40, generator=generator)

    def gradient(run: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(1)
            inputs = x.clone().requires_grad_()
            y = run(inputs)
            y.sum().backward()
            assert inputs.grad is not None
            return y.detach(), inputs.grad, torch.rand(3)

    expected = gradient(lambda inputs: dropout(inputs.exp()) ** 2)
    found = gradient(lambda inputs: recomputed(lambda t: dropout(t.exp()) ** 2, dropout, inputs))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_norms_track_again_after_an_error_in_the_second_pass() -> None:
    norm, passes = nn.BatchNorm2d(3), []

    def run(x: Tensor) -> Tensor:
        passes.append(norm.track_running_stats)
        if len(passes) == 2:
            raise RuntimeError("second pass")
        return norm(x).exp()

    y = recomputed(run, norm, torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(RuntimeError, match="second pass"):
        y.sum().backward()
    assert passes == [True, False] and norm.track_running_stats


def test_a_search_ends_with_the_same_bits_and_records_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def counted(*args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return recomputed(*args)

    monkeypatch.setattr("supernets.supergraph.recomputed", counted)
    stored = {}
    for recompute in (False, True):
        out = tmp_path / str(recompute)
        search("digits", "digits", flops="0.2M", epochs=1, images=60, recompute_resolutions=recompute, out=out)
        assert (calls > 0) is recompute
        assert json.loads((out / "config.json").read_text())["config"]["search"]["recompute_resolutions"] is recompute
        stored[recompute] = load_checkpoint(out / "checkpoint.pt")["supergraph"]
    assert all(torch.equal(stored[True][name], tensor) for name, tensor in stored[False].items())
