"""Stages 1 and 2 of NARS on digits: candidates really trained, in this process; Ray itself is tested in test_parallel.py."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import nas.rounds
from nas.candidate import search_images, train_candidate
from nas.rounds import nars
from predictor.predictor import Predictor
from recipes.datasets import load_dataset
from recipes.space import load_joint
from search_spaces.errors import UserError
from search_spaces.limits import Limit

SMALL: dict[str, Any] = {
    "flops": Limit(high=0.3e6, low=0.1e6), "rounds": 2, "candidates": 3, "pool": 200, "epochs": 1, "images": 200,
    "held_out": 100,
}  # fmt: skip


class Inline:
    """Does jobs one after the other in this process; can be interrupted after some of them."""

    def __init__(self, interrupt: int = 10**6) -> None:
        self.interrupt, self.trained = interrupt, list[int]()

    def __call__(
        self, jobs: Sequence[Mapping[str, Any]], work: Callable[..., Any], *, done: Any, failed: Any, **options: Any
    ) -> None:
        for job in jobs:
            if len(self.trained) == self.interrupt:
                raise KeyboardInterrupt
            result = work(json.loads(json.dumps(job)), lambda progress: None)
            self.trained.append(job["id"])
            done(job, result)


@pytest.fixture(autouse=True)
def one_thread_afterwards() -> Any:
    yield
    torch.set_num_threads(1)


def test_a_killed_search_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {"whole": [Inline()], "killed": [Inline(2), Inline()]}
    for name, tries in ways.items():
        for attempt in tries:
            monkeypatch.setattr(nas.rounds, "run_jobs", attempt)
            try:
                result = nars("digits-joint", "digits", out=tmp_path / name, **SMALL)
            except KeyboardInterrupt:
                continue
    assert ways["killed"][0].trained + ways["killed"][1].trained == ways["whole"][0].trained == [1, 2, 3, 4, 5, 6]
    assert {trial.status for trial in result.trials} == {"done"} and result.stop_epoch is None
    space = load_joint("digits-joint")
    rows = np.array([trial.row for trial in result.trials])
    predicted = []
    for name in ways:
        loaded = Predictor.load(tmp_path / name / "predictor.npz", space)
        predicted.append(loaded.predict(rows))
        table = (tmp_path / name / "trials.csv").read_text().splitlines()
        assert len(table) == 7 and "accuracy" in table[0] and "flops" in table[0]
    assert np.array_equal(*predicted)
    flops = space.statistics(rows, num_classes=10, in_channels=1)["flops"]
    assert ((flops >= 0.1e6) & (flops <= 0.3e6)).all()
    with pytest.raises(UserError, match="epochs was 1, now 2"):
        nars("digits-joint", "digits", out=tmp_path / "whole", **{**SMALL, "epochs": 2})


def test_candidates_never_see_the_images_they_are_compared_on() -> None:
    train = load_dataset("digits").train
    used, compared = search_images(train, 300, 200, 5)
    again, _ = search_images(train, 300, 200, 5)
    assert (len(used), len(compared)) == (300, 200)

    def pixels(source: Any) -> set[bytes]:
        return {image.numpy().tobytes() for images, _ in source.batches(500, resolution=16) for image in images}

    assert not pixels(used) & pixels(compared) and pixels(used) == pixels(again)
    assert len(search_images(train, None, 200, 5)[0]) == len(train) - 200
    for images, held_out in ((0, 100), (1300, 200), (100, 0), (100, 1437)):
        with pytest.raises(UserError, match=r"must be in 1\.\."):
            search_images(train, images, held_out, 5)


def test_a_candidate_goes_on_after_its_last_epoch(tmp_path: Path) -> None:
    space = load_joint("digits-joint")
    architecture, recipe = space.decode([0] * len(space))
    assert architecture is not None and recipe is not None
    job = {
        "id": 7, "seed": 3, "architecture": architecture.to_json(), "recipe": recipe.with_epochs(3).to_json(),
        "epochs": 2, "data": "digits", "data_dir": None, "images": 200, "held_out": 100, "split_seed": 0,
        "folder": str(tmp_path), "threads": 1, "device": "cpu",
    }  # fmt: skip
    reports: list[Mapping[str, Any]] = []
    result = train_candidate(job, reports.append)
    assert [report["accuracy"] for report in reports] == result["curve"] and len(result["curve"]) == 2
    assert (tmp_path / "candidates" / "7" / "checkpoint.pt").is_file()
    again = train_candidate(job, reports.append)
    assert again["curve"] == result["curve"] and len(reports) == 2, "nothing is trained twice"


def test_a_candidate_is_trained_at_the_resolution_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def fit(*_: object, resolution: int, **__: object) -> Any:
        seen.append(resolution)
        return SimpleNamespace(history=[{"test_accuracy": 10.0, "seconds": 1.0}])

    monkeypatch.setattr(nas.rounds, "run_jobs", Inline())
    monkeypatch.setattr("recipes.trainer.fit", fit)
    settings = {**SMALL, "network": "fbnetv3_a_low32", "flops": None, "resolution": 40}
    nars("fbnetv3-recipe", "digits", out=tmp_path / "run", **settings)
    assert set(seen) == {40}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"space": "digits-joined"}, "unknown joint space 'digits-joined'"),
        ({"flops": None}, "digits-joint needs the range of its candidates"),
        ({"flops": Limit(high=1e3)}, "points of digits-joint differ and have flops at most 1K"),
        ({"network": "fbnetv3_a"}, "digits-joint searches the network; leave out --network"),
        ({"space": "fbnetv3-recipe"}, "fbnetv3-recipe has no network; give --network"),
        ({"resolution": 16}, "digits-joint chooses the resolution itself; leave out --resolution"),
        (
            {"space": "fbnetv3-recipe", "network": "fbnetv3_a", "flops": None, "resolution": 0},
            "resolution must be in 1..",
        ),
        ({"rounds": 100}, "100 rounds of 3 need a pool of 300, got 200"),
        ({"held_out": 5000}, "held-out images must be in 1..1436, got 5000"),
        ({"preset": "thesys"}, "unknown preset 'thesys'; did you mean 'thesis'?"),
    ],
)
def test_wrong_searches(change: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nas.rounds, "run_jobs", Inline())
    given = {"space": "digits-joint", **SMALL, **change}
    with pytest.raises(UserError) as caught:
        nars(given.pop("space"), "digits", out=tmp_path / "run", **given)
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()
