"""Parts of the study of what supergraphs agree about, by hand."""

import numpy as np
import pytest
import torch

from benchmarks.alpha_agreement import KINDS, Trial, agreement, by_kind, table
from nas.loading import load_space
from recipes.datasets import load_dataset
from supernets.config import SearchConfig


def gradients(seed: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    space = load_space("digits")
    return np.random.default_rng(seed).normal(size=int(space.option_counts.sum()))


def test_agreement_is_the_correlation_of_what_choices_see() -> None:
    space, one = load_space("digits"), gradients(0)
    level = np.repeat(np.arange(len(space)), space.option_counts)  # the same for all options of a choice: none sees it
    same, opposite = (agreement(space, [one, sign * one + level]) for sign in (1, -1))
    assert same == pytest.approx(dict.fromkeys(KINDS, 1.0)) and opposite == pytest.approx(dict.fromkeys(KINDS, -1.0))
    three = agreement(space, [one, one, -one])
    assert three == pytest.approx(dict.fromkeys(KINDS, -1 / 3))  # pairs: 1, -1, -1


def test_parts_of_a_kind() -> None:
    space = load_space("digits")
    parts = by_kind(space, np.arange(space.option_counts.sum()))
    for kind in KINDS:
        names = [name for name in space.column if name.endswith(f".{kind}")]
        assert len(parts[kind]) == len(names) > 0
        first = sum(int(count) for count in space.option_counts[: space.column[names[0]]])
        assert parts[kind][0][0] == first


def test_lines_of_the_table() -> None:
    one = gradients(1)
    pieces = [
        {"gradient": (sign * one).tolist(), "error": (abs(one) / 2).tolist(), "loss": 1.5, "seconds": 2.0}
        for sign in (1, -1)
    ]
    lines = table(load_space("digits"), {"cold": pieces})
    assert [line["choice"] for line in lines] == list(KINDS)
    for line in lines:
        assert line["t"] == pytest.approx(2.0) and line["correlation"] == pytest.approx(-1.0)
        assert line["setting"] == "cold" and line["seconds"] == 2.0
        assert line["loss"] == 1.5 and line["supergraphs"] == 2


@pytest.mark.parametrize("shared", [False, True])
def test_a_trial_trains_weights_and_then_asks_alpha(shared: bool) -> None:
    space = load_space("digits")
    config = SearchConfig(
        epochs=1, batch_size=16, images=64, weights_share=0.5, warmup=0.0, tau_start=0.7, share_blocks=shared
    )
    trial = Trial(space, load_dataset("digits", None), config)
    before = [parameter.detach().clone() for parameter in trial.supergraph.network_parameters()]
    assert trial.train(3) > 0
    after = [parameter.detach().clone() for parameter in trial.supergraph.network_parameters()]
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    found = trial.gradients(2)
    assert found.shape == (2, space.option_counts.sum()) and abs(found).max() > 0
    assert all(torch.equal(a, b) for a, b in zip(after, trial.supergraph.network_parameters(), strict=True))
    assert not trial.supergraph.alpha.any()
    resolution = np.split(found, np.cumsum(space.option_counts)[:-1], axis=1)[space.column["resolution"]]
    assert not resolution.any()  # it is decided
