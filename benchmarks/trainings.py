"""Trainings beside a collected table: candidates trained again with other seeds, networks that a query found, other recipes.

What is asked for is data, and a training is called after its content: the same training is done once, whichever script asks
for it, and after a kill the same command goes on where it was.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nas.candidate import CANDIDATES, train_candidate
from nas.rounds import PREDICTOR, RAY, TRIALS
from predictor.iterate import early_stop_epoch
from predictor.parallel import Job, Resources, run_jobs
from predictor.predictor import Predictor
from predictor.query import Answer, query
from predictor.trials import Trial, Trials
from recipes.datasets import resolve_data_dir
from recipes.recipe import Recipe
from recipes.run_folder import RunFolder, read_config
from recipes.space import JointSpace, load_joint
from search_spaces.architecture import Architecture
from search_spaces.errors import UserError
from search_spaces.limits import Limit
from search_spaces.serialisation import from_plain, read_json, require, write_json

SETTINGS = ("data", "images", "held_out", "device")
RESULTS = "results"
INHERITED = 50  # best candidates of the table that a query starts from (thesis 4.6)


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder of `nas nars`, for reading.

    Attributes:
        path: the folder.
        config: its settings.
        seed: of everything random.
        space: that was searched.
        trials: table of candidates.
    """

    path: Path
    config: Mapping[str, Any]
    seed: int
    space: JointSpace
    trials: Trials

    @cached_property
    def done(self) -> list[Trial]:
        """Trained candidates in the order of choosing."""
        return self.trials.read(status="done")

    @cached_property
    def stop_epoch(self) -> int | None:
        """After which trainings of later rounds ended; None: there was no early stop, or round 1 is not done."""
        first = self.trials.read(round=1)
        if not first or any(trial.status == "waiting" for trial in first):
            return None
        curves = np.array([trial.curve for trial in first if trial.status == "done"])
        return early_stop_epoch(curves, self.config["threshold"])

    @cached_property
    def common_epoch(self) -> int:
        """Epochs that all trained candidates have: the accuracies after them are the labels."""
        return min(len(trial.curve) for trial in self.done)

    @cached_property
    def predictor(self) -> Predictor:
        """That the run fitted to all its candidates."""
        return Predictor.load(self.path / PREDICTOR, self.space)

    def best(self, limit: Limit | None = None, count: int = 1) -> list[Trial]:
        """The best candidates inside a range of FLOPs, by the labels.

        Raises:
            UserError: there is none.
        """
        inside = [trial for trial in self.done if limit is None or limit.holds(self.flops[trial.id])]
        require(len(inside) > 0, f"no trained candidate of {self.path} has FLOPs {limit}")
        return sorted(inside, key=lambda trial: -self.accuracy(trial))[:count]

    def ask(self, limit: Limit, fixed: Mapping[str, Any] | None = None) -> Answer:
        """What the run's predictor thinks is best, as `query`.

        Args:
            limit: of the FLOPs; the run's lower end holds too.
            fixed: option by variable name, for variables that may not change.
        """
        start = np.array([trial.row for trial in self.best(count=INHERITED)])
        inside = Limit(high=limit.high, low=max(limit.low, self.flops_range.low))
        return query(self.predictor, limits={"flops": inside}, fixed=fixed, seed=self.seed, start=start).answers[0]

    @property
    def flops_range(self) -> Limit:
        """Of all candidates."""
        return from_plain(Limit, self.config["flops"], "flops")

    @property
    def settings(self) -> dict[str, Any]:
        """What every training of the run had alike: data, images, held-out images, their choice, device."""
        return {**{name: self.config[name] for name in SETTINGS}, "split_seed": self.seed}

    @cached_property
    def flops(self) -> dict[int, int]:
        """Multiply-adds of every candidate's network, by id."""
        frame = self.trials.frame()
        return {int(id): int(flops) for id, flops in zip(frame["id"], frame["flops"], strict=True)}

    def accuracy(self, trial: Trial) -> float:
        """Percent after as many epochs as all have."""
        return trial.accuracy(self.common_epoch)

    def training(
        self, row: npt.ArrayLike, *, seed: int, stop: int | None = None, recipe: Recipe | None = None
    ) -> "Training":
        """A training of the candidate `(d,)` as the run would do it.

        Args:
            row: option indices.
            seed: of the training.
            stop: epoch after which it ends; None: all epochs.
            recipe: in place of the candidate's own; it gets the run's epochs as well.
        """
        network, own = self.space.decode(row)
        assert network is not None and own is not None, "read_run refuses other spaces"
        recipe, epochs = own if recipe is None else recipe, self.config["epochs"]
        recipe = recipe if epochs is None else recipe.with_epochs(epochs)
        return Training(architecture=network, recipe=recipe, stop=stop, seed=seed, settings=self.settings)


def read_run(path: Path) -> Run:
    """A run folder of `nas nars`, finished or not.

    Raises:
        UserError: another folder, one of a space that fixes the network or the recipe, or no trained candidate.
    """
    stored = read_config(path)
    config = stored["config"]
    require(config.get("kind") == "nars", f"{path} is no run of nas nars")
    require((path / TRIALS).is_file(), f"{path} has no {TRIALS}")
    space = load_joint(config["space"])
    require(
        space.architecture is not None and space.recipe is not None,
        f"{path} searched {space.name}; needed is a space of networks and recipes",
    )
    run = Run(path, config, stored["seed"], space, Trials(path / TRIALS, space, config))
    require(len(run.done) > 0, f"{path} has no trained candidate yet")
    return run


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, and how: plain values that decide the result.

    Attributes:
        architecture: the network.
        recipe: with its epochs.
        stop: epoch after which training ends, with the schedules of the whole; None: the whole.
        seed: of weights, order of images and augmentation.
        settings: see `Run.settings`.
    """

    architecture: Architecture
    recipe: Recipe
    stop: int | None
    seed: int
    settings: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """All of it as JSON takes it; names are left out, they decide nothing."""
        architecture, recipe = self.architecture.to_json(), self.recipe.to_json()
        stop = None if self.stop is None or self.stop >= self.recipe.epochs else self.stop
        return {
            "architecture": {**architecture, "name": "network"}, "recipe": {**recipe, "name": "recipe"}, "epochs": stop,
            "seed": self.seed, **self.settings,
        }  # fmt: skip

    @cached_property
    def id(self) -> str:
        """What it is called: a digest of its content."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()[:16]


def train_all(
    trainings: Sequence[Training], folder: Path, *, data_dir: Path | None, resources: Resources
) -> dict[str, Mapping[str, Any]]:
    """Train what has not been trained yet. Killed at any moment, the same call goes on where it was.

    Args:
        trainings: what to train; the same one may stand there several times.
        folder: keeps results, and what is under way; may be shared by several scripts, one at a time.
        data_dir: where data sets are.
        resources: of one training.

    Returns:
        By `Training.id`: ``curve``, accuracy in percent after every epoch, and ``seconds``, CPU time.

    Raises:
        UserError: trainings that failed, after all others are done; the same call tries them again.
    """
    wanted = {training.id: training for training in trainings}
    with RunFolder(folder, {"kind": "trainings"}, seed=0, resume=True) as run:
        results = run.path / RESULTS
        results.mkdir(exist_ok=True)
        known = {path.stem for path in results.glob("*.json")}
        jobs: list[Job] = [
            {
                **training.plain(), "id": id, "data_dir": str(resolve_data_dir(data_dir).absolute()),
                "folder": str(run.path.absolute()), "threads": max(1, int(resources.cpus_per_trial)),
            }
            for id, training in wanted.items()
            if id not in known
        ]  # fmt: skip
        print(f"{len(jobs)} of {len(wanted)} trainings to do", flush=True)
        _train(jobs, run.path, resources)
        return {id: read_json(results / f"{id}.json") for id in wanted}


def add_training_options(options: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Options of the scripts that train."""
    options.add_argument("--run", type=Path, required=True, help="run folder of nas nars")
    options.add_argument("--work", type=Path, default=Path("runs/table_studies"), help="keeps what has been trained")
    options.add_argument("--data-dir", type=Path, default=None)
    options.add_argument("--seeds", type=int, default=3, help="new seeds, none of them the table's")
    options.add_argument("--gpus-per-trial", type=float, default=0.0)
    options.add_argument("--concurrent", type=int, default=None, help="trainings at a time; default as many as fit")
    return options


def new_seeds(run: Run, count: int) -> list[int]:
    """Seeds that follow the table's."""
    return [run.seed + 1 + index for index in range(count)]


def train_by_options(trainings: Sequence[Training], arguments: argparse.Namespace) -> dict[str, Mapping[str, Any]]:
    """`train_all` as the command line asks for it."""
    resources = Resources(gpus_per_trial=arguments.gpus_per_trial, concurrent=arguments.concurrent)
    return train_all(trainings, arguments.work, data_dir=arguments.data_dir, resources=resources)


def over_seeds(found: Sequence[float]) -> dict[str, float]:
    """``mean`` of a measurement over seeds, ``std`` of one seed and ``standard_error`` of the mean (NaN for a single seed)."""
    std = float(np.std(found, ddof=1)) if len(found) > 1 else float("nan")
    return {"mean": float(np.mean(found)), "std": std, "standard_error": std / len(found) ** 0.5}


def difference(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """``difference`` of the means of two measurements with the same seeds, and its ``difference_standard_error``."""
    found = over_seeds(np.subtract(first, second).tolist())
    return {"difference": found["mean"], "difference_standard_error": found["standard_error"]}


def _train(jobs: Sequence[Job], folder: Path, resources: Resources) -> None:
    failures: list[str] = []
    told = 0

    def done(job: Job, result: Mapping[str, Any]) -> None:
        write_json(folder / RESULTS / f"{job['id']}.json", {"curve": result["curve"], "seconds": result["seconds"]})
        (folder / CANDIDATES / job["id"] / "checkpoint.pt").unlink(missing_ok=True)
        tell(f"{result['curve'][-1]:.2f} % in {result['seconds']:.0f} CPU-s")

    def failed(job: Job, error: str) -> None:
        failures.append(error)
        tell(f"failed: {error}")

    def tell(what: str) -> None:
        nonlocal told
        told += 1
        print(f"training {told} of {len(jobs)}: {what}", flush=True)

    run_jobs(jobs, train_candidate, resources=resources, folder=folder, done=done, failed=failed)
    shutil.rmtree(folder / RAY, ignore_errors=True)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(jobs)} trainings failed; the same command tries them again; the first: {failures[0]}"
        )
