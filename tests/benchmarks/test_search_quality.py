"""Parts of the study of search quality, by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nas
from benchmarks.ledger import Ledger
from benchmarks.scaled_networks import BASELINES, scaled_to, small_image_network
from benchmarks.search_quality import CASES, RANDOM, Study, accuracies, correlations, panel, standard_error, summary_of
from benchmarks.search_quality_pieces import (
    BLIND,
    PART,
    SEARCHED,
    SEARCHES,
    TWO_SAMPLED,
    Case,
    fewer_images,
    recalibrate,
    training_images,
)
from recipes.datasets import load_dataset
from recipes.tensor_source import TensorSource
from search_spaces.counting import fvcore_cost
from search_spaces.limits import Limit
from supernets.budget import Budget
from supernets.config import SearchConfig
from supernets.search import Searching

TINY = Path(__file__).parents[1] / "nas" / "tiny_space.yaml"
COUNTING = {"num_classes": 10, "in_channels": 3}


def images(n: int = 40, classes: int = 4) -> TensorSource:
    x = torch.randint(0, 256, (n, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return TensorSource(x, torch.arange(n) % classes, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize("name", BASELINES)
def test_scaled_networks_fill_the_budget(name: str) -> None:
    scaled = scaled_to(name, 6e6, resolution=32, **COUNTING)
    assert scaled is not None and 0.85 * 6e6 < scaled.cost.flops <= 6e6
    network = small_image_network(name, scaled.width, **COUNTING)
    assert fvcore_cost(network, in_channels=3, resolution=scaled.resolution) == scaled.cost
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert scaled_to(name, 1e3, resolution=32, **COUNTING) is None


def test_scaled_networks_are_seeded() -> None:
    first, again, other = (small_image_network("mobilenet_v3_small", 0.3, seed=seed, **COUNTING) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_recalibrated_norms_have_the_statistics_of_the_images() -> None:
    source, norm = images(), nn.BatchNorm2d(3)
    norm.running_mean += 7.0
    recalibrate(nn.Sequential(norm).eval(), source, 8)
    (everything, _), *_ = source.batches(40, resolution=8)
    assert norm.running_mean is not None and not norm.training
    torch.testing.assert_close(norm.running_mean, everything.mean(dim=(0, 2, 3)), atol=1e-5, rtol=0)


def test_correlations() -> None:
    assert correlations([1, 2, 3], [10, 20, 30]) == pytest.approx({"kendall_tau": 1.0, "spearman": 1.0})
    assert correlations([1, 2, 3], [30, 20, 10])["kendall_tau"] == pytest.approx(-1.0)
    assert correlations([1, 1, 1], [1, 2, 3]) == {"kendall_tau": 0.0, "spearman": 0.0}


def test_parts_of_the_images_are_balanced() -> None:
    part = training_images(images(), 20)
    assert torch.bincount(torch.as_tensor(part.labels)).tolist() == [5] * 4
    assert len(training_images(images(), None)) == 40


def test_a_blind_alpha_is_the_same_on_a_part_of_the_images() -> None:
    """And it is not when cross entropy moves alpha."""

    def alphas(config: SearchConfig) -> torch.Tensor:
        searching = Searching(
            space, dataset.train, budget, config, num_classes=10, in_channels=1, device=torch.device("cpu")
        )
        searching.attach(None, resume=False)
        for epoch in range(config.epochs):
            searching.epoch(epoch, None, ())
        return torch.stack(searching.learned.alpha_history)

    space, dataset, budget = (
        nas.load_space(str(TINY)),
        load_dataset("digits"),
        Budget(quantity="flops", limit=Limit(high=3e4)),
    )
    config = SearchConfig(epochs=4, images=160, batch_size=32, alpha_batch_size=16, weights_share=0.5, alpha_loss=False)
    part = replace(config, **fewer_images(config))
    assert (config.images, config.batch_size, config.alpha_batch_size) == (160, 32, 16)
    assert (part.images, part.batch_size, part.alpha_batch_size) == (160 // PART, 32 // PART, 16 // PART)
    assert torch.equal(alphas(config), alphas(part)) and alphas(part).diff(dim=0).any()
    config, part = replace(config, alpha_loss=True), replace(part, alpha_loss=True)
    assert not torch.equal(alphas(config), alphas(part))


def test_images_of_a_blind_search_are_all_where_parts_do_not_fit() -> None:
    assert fewer_images(SearchConfig(batch_size=96, alpha_batch_size=64)) == {}  # as many as there are
    assert fewer_images(SearchConfig(images=160, batch_size=36, alpha_batch_size=16)) == {}
    assert fewer_images(SearchConfig(images=160, batch_size=32, alpha_batch_size=8)) == {}  # one image a step
    case = CASES["cifar10"]
    assert case.settings(BLIND) == {"alpha_loss": False, "images": 1500, "batch_size": 8, "alpha_batch_size": 4}
    assert case.settings(SEARCHED) == {}
    assert case.kinds("4M") == [SEARCHED, BLIND, TWO_SAMPLED] and case.kinds("8M") == [SEARCHED, BLIND]


def line(kind: str, *found: float) -> dict[str, object]:
    return {"budget": "1M", "kind": kind, "seeds": "[0, 1]", "accuracies": json.dumps(found)}


LINES = [
    line("searched", 69.0, 71.0), line("searched", 81.0, 79.0), line("blind", 60.0, 61.0),
    line(RANDOM, 71.0, 72.0), line(RANDOM, 65.0, 66.0),
]  # fmt: skip


def test_standard_errors_are_over_networks_or_over_the_trainings_of_one() -> None:
    np.testing.assert_array_equal(accuracies(LINES, RANDOM), [[71.0, 72.0], [65.0, 66.0]])
    assert standard_error(accuracies(LINES, "searched")) == pytest.approx(5.0)  # of 70 and 80
    assert standard_error(accuracies(LINES, "blind")) == pytest.approx(0.5)
    assert np.isnan(standard_error(np.array([[60.0]])))


def test_summary_of_a_budget() -> None:
    found = summary_of("1M", LINES)
    assert found["searched"] == 75.0 and found["rank"] == "[2, 1]" and found["of"] == 3
    assert found["gain_over_random"] == pytest.approx(75 - 68.5)
    assert found["gain_over_blind"] == pytest.approx(75 - 60.5)
    assert found["gain_over_blind_se"] == pytest.approx((5**2 + 0.5**2) ** 0.5)
    assert found["best_random"] == 71.5


def test_a_study_goes_on_where_it_was_on_another_machine(tmp_path: Path) -> None:
    """Only the ledger is needed: with another work folder nothing is done twice, and the tables are the same."""
    case = Case(
        data="digits", space=str(TINY), budgets=("0.03M",), beside={TWO_SAMPLED: ("0.03M",)},
        recipe="digits", epochs=1, images=40,
        search={"epochs": 1, "images": 40, "batch_size": 16, "alpha_batch_size": 8},
    )  # fmt: skip

    def study(work: str) -> Study:
        return Study(
            case=case, seeds=(0, 1), randoms=2, ledger=Ledger(tmp_path / "pieces.jsonl"), work=tmp_path / work,
            data_dir=None, processes=1,
        )  # fmt: skip

    assert not study("first").run(minutes=0)  # nothing may be started
    assert study("first").run()
    networks, summary, rankings = study("first").tables()
    kinds = {line["kind"] for line in networks}
    assert kinds >= {"searched", "two sampled", "blind", RANDOM}
    assert {line["seeds"] for line in networks} == {"[0, 1]"}
    assert [line["name"] for line in networks if line["kind"] == "searched"] == [f"searched-0.03M-{i}" for i in (0, 1)]
    assert sum(line["kind"] == "blind" for line in networks) == 1  # one search for all seeds
    assert sum(line["kind"] == "two sampled" for line in networks) == 2
    assert all((line["search_cpu_seconds"] > 0) == (line["kind"] in SEARCHES) for line in networks)
    assert all(line["flops"] <= 0.03e6 for line in networks)
    assert summary[0]["of"] == 3 and rankings[0]["networks"] == 2
    (found, drawn) = next((x, x.points) for x in panel("0.03M", networks).lines if x.name == "blind")
    blind = next(line for line in networks if line["kind"] == "blind")
    assert drawn == [(blind["flops"], blind["accuracy_mean"])]
    assert [*found.low, *found.high] == sorted(json.loads(blind["accuracies"]))
    assert study("second").run() and not (tmp_path / "second").exists()
    assert repr(study("second").tables()) == repr((networks, summary, rankings))  # NaN is not equal to itself
