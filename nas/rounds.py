"""``nas.nars``: stages 1 and 2 of NARS in a run folder: pretrain, train candidates round by round, fit the predictor."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas.candidate import CANDIDATES, search_images, train_candidate
from nas.designs import Design, design_cost, design_to_json
from nas.loading import load_design
from nas.reporting.live import shown_live
from predictor.config import PredictorConfig, load_preset
from predictor.fit import fit
from predictor.iterate import IterationConfig, Scores, bin_indices, iterate, rank_correlations
from predictor.parallel import Job, Resources, run_jobs
from predictor.pool import POOL_SIZE, sobol_pool
from predictor.predictor import Predictor
from predictor.pretrain import pretrain
from predictor.trials import Trial, Trials
from recipes.datasets import Dataset, load_dataset, resolve_data_dir
from recipes.recipe import Recipe, load_recipe
from recipes.run_folder import RunFolder
from recipes.space import JointSpace, load_joint
from search_spaces.architecture import MAX_RESOLUTION
from search_spaces.limits import Limit
from search_spaces.serialisation import require, to_plain, write_json, write_text_atomic
from search_spaces.variables import Rows

logger = logging.getLogger(__name__)

TRIALS, TABLE, PREDICTOR, RESULT, RAY = "trials.db", "trials.csv", "predictor.npz", "result.json", "ray"
HELD_OUT = 0.1  # of the training images, where no number is given


@dataclass(frozen=True, kw_only=True)
class NarsResult:
    """What the rounds gave.

    Attributes:
        predictor: fitted to all candidates.
        trials: all candidates with their accuracies.
        stop_epoch: after which later rounds ended their trainings; None: there was no early stop.
    """

    predictor: Predictor
    trials: list[Trial]
    stop_epoch: int | None


def nars(
    space: str | JointSpace,
    data: str,
    *,
    out: str | Path,
    flops: Limit | None = None,
    network: str | Path | Design | None = None,
    recipe: str | Path | Recipe | None = None,
    resolution: int | None = None,
    rounds: int = 5,
    candidates: int = 48,
    pool: int = POOL_SIZE,
    epochs: int | None = None,
    images: int | None = None,
    held_out: int | None = None,
    threshold: float = 0.92,
    preset: str | PredictorConfig = "default",
    resources: Resources | None = None,
    device: str = "cpu",
    seed: int = 0,
    data_dir: str | Path | None = None,
    settled: Callable[[Trial], object] = lambda trial: None,
    command: Sequence[str] = (),
) -> NarsResult:
    """Collect a table of trained candidates and fit a predictor to it. Called again, it goes on where it was.

    Args:
        space: joint space by name, or one of your own.
        data: name of a data set. Candidates see training images only: some to train on, others to be compared on.
        out: run folder.
        flops: range of the candidates' FLOPs; None for a space without networks.
        network: the fixed network of a recipe-only space, as `nas.train` takes it.
        recipe: the fixed recipe of a space without recipes, as `nas.train` takes it.
        resolution: side of the images for the fixed network; default the network's.
        rounds: T; called again with more, it goes on with the same table.
        candidates: m of a round.
        pool: n, candidates to choose from.
        epochs: of a whole training; default the recipe's.
        images: training images for candidates; default all that are not held out.
        held_out: training images to compare candidates on; default a tenth.
        threshold: rank correlation from which on an epoch's accuracies will do.
        preset: of the predictor, see `predictor.config`.
        resources: of one training, and where; default one core of this machine each.
        device: that candidates train on.
        seed: of everything random.
        data_dir: where data sets are.
        settled: called with every candidate that is done or has failed.
        command: recorded in the run folder.

    Raises:
        UserError: anything wrong with the input, in one line; a Ray that does not answer; a folder of another search.
    """
    joint, dataset = load_joint(space), load_dataset(data, data_dir)
    config = IterationConfig(rounds=rounds, candidates=candidates, threshold=threshold)
    resources = resources or Resources()
    counting = {"num_classes": dataset.num_classes, "in_channels": dataset.in_channels}
    fixed = _Fixed.of(joint, network, recipe, resolution, counting)
    withheld = max(1, round(HELD_OUT * len(dataset.train))) if held_out is None else held_out
    search_images(dataset.train, images, withheld, seed)  # shows early that there are enough
    needed = rounds * candidates
    require(pool >= needed, f"{rounds} rounds of {candidates} need a pool of {needed}, got {pool}")
    require((joint.architecture is not None) == (flops is not None), _flops_rule(joint))
    rows = sobol_pool(joint, pool, {} if flops is None else {"flops": flops}, seed=seed, **counting)
    statistics = joint.statistics(rows, **counting)
    bins = None if flops is None else bin_indices(statistics["flops"], _low(flops, statistics), flops.high, candidates)
    recorded = {
        "kind": "nars", "space": joint.name, "data": dataset.name, "flops": None if flops is None else to_plain(flops),
        "network": fixed.network, "recipe": fixed.recipe, "candidates": candidates, "threshold": threshold,
        "pool": pool, "epochs": epochs, "images": images, "held_out": withheld,
        "predictor": to_plain(load_preset(preset)), "device": device,
    } | fixed.images  # fmt: skip
    with RunFolder(out, recorded, seed=seed, command=command, resume=True) as run, shown_live(run.path):
        trials = Trials(run.path / TRIALS, joint, recorded)
        pretrained = None
        if joint.architecture is not None:
            pretrained = pretrain(joint, flops=flops, **counting, config=preset, pool=pool, seed=seed)
        fitted: list[Predictor] = []

        def fit_table(known: Rows, accuracies: Any) -> Scores:
            fitted[:] = [
                fit(
                    joint, known, accuracies, seed=seed, config=preset, pretrained=pretrained, rounds=rounds,
                    num_classes=dataset.num_classes, in_channels=dataset.in_channels, command=" ".join(command),
                )
            ]  # fmt: skip
            return fitted[0].predict

        def evaluate(waiting: Sequence[Trial], stop: int | None) -> None:
            constant = {
                "epochs": stop, "data": dataset.name, "data_dir": str(resolve_data_dir(data_dir).absolute()),
                "images": images, "held_out": withheld, "split_seed": seed, "folder": str(run.path.absolute()),
                "threads": max(1, int(resources.cpus_per_trial)), "device": device,
            }  # fmt: skip
            jobs = [{**fixed.job(joint, trial, epochs), **constant} for trial in waiting]
            _train_all(jobs, trials, resources, run.path, settled)

        _, stop = iterate(
            rows, bins, trials, evaluate=evaluate, fit=fit_table, config=config, seed=seed, statistics=statistics
        )
        (predictor,) = fitted
        _save(run, trials, predictor, stop, dataset)
        return NarsResult(predictor=predictor, trials=trials.read(), stop_epoch=stop)


@dataclass(frozen=True, slots=True)
class _Fixed:
    """What does not change from candidate to candidate, as plain values."""

    network: Any
    recipe: Any
    resolution: int | None

    @property
    def images(self) -> dict[str, int]:
        """What jobs and the run's configuration say of the images' side: nothing where it is the network's own."""
        return {} if self.resolution is None else {"resolution": self.resolution}

    @classmethod
    def of(
        cls,
        joint: JointSpace,
        network: str | Path | Design | None,
        recipe: str | Path | Recipe | None,
        resolution: int | None,
        counting: Mapping[str, int],
    ) -> "_Fixed":
        """Checked against what the space searches and the images of the data set.

        Raises:
            UserError: a part that is neither searched nor given, or both; a network that does not take the images.
        """
        for name, part, given in (("network", joint.architecture, network), ("recipe", joint.recipe, recipe)):
            require(part is None or given is None, f"space {joint.name} searches the {name}; leave out --{name}")
            require(part is not None or given is not None, f"space {joint.name} has no {name}; give --{name}")
        plain = None
        if resolution is not None:
            require(network is not None, f"space {joint.name} chooses the resolution itself; leave out --resolution")
            require(1 <= resolution <= MAX_RESOLUTION, f"resolution must be in 1..{MAX_RESOLUTION}, got {resolution}")
        if network is not None:
            design = load_design(network)
            design_cost(design, resolution=resolution, **counting)  # refuses here what no candidate could be trained on
            plain = design_to_json(design)
        if recipe is not None and not isinstance(recipe, Recipe):
            recipe = load_recipe(recipe)
        return cls(plain, None if recipe is None else recipe.to_json(), resolution)

    def job(self, joint: JointSpace, trial: Trial, epochs: int | None) -> dict[str, Any]:
        """What one training is told of its candidate."""
        architecture, recipe = joint.decode(trial.row)
        recipe = Recipe.from_json(self.recipe) if recipe is None else recipe
        return {
            "id": trial.id,
            "seed": trial.seed,
            "architecture": self.network if architecture is None else architecture.to_json(),
            "recipe": (recipe if epochs is None else recipe.with_epochs(epochs)).to_json(),
            **self.images,
        }


def _train_all(
    jobs: Sequence[Job],
    trials: Trials,
    resources: Resources,
    folder: Path,
    settled: Callable[[Trial], object],
) -> None:
    def done(job: Job, result: Mapping[str, Any]) -> None:
        trials.record(job["id"], result["curve"], result["seconds"])
        tell(job)

    def failed(job: Job, error: str) -> None:
        logger.warning("candidate %d failed: %s", job["id"], error)
        trials.fail(job["id"], error)
        tell(job)

    def tell(job: Job) -> None:
        settled(next(trial for trial in trials.read() if trial.id == job["id"]))
        checkpoint = folder / CANDIDATES / str(job["id"]) / "checkpoint.pt"
        checkpoint.unlink(missing_ok=True)  # of no more use; the table holds what it led to

    run_jobs(jobs, train_candidate, resources=resources, folder=folder, done=done, failed=failed)
    shutil.rmtree(folder / RAY, ignore_errors=True)


def _save(run: RunFolder, trials: Trials, predictor: Predictor, stop: int | None, dataset: Dataset) -> None:
    """Table, predictor and result."""
    frame = trials.frame(stop)
    write_text_atomic(run.path / TABLE, frame.to_csv(index=False, lineterminator="\n"))
    predictor.save(run.path / PREDICTOR)
    whole = [trial.curve for trial in trials.read(round=1, status="done")]
    correlations = rank_correlations(np.array(whole)) if len(whole) > 1 else np.array([])
    write_json(
        run.path / RESULT,
        {
            "candidates": len(frame),
            "done": int((frame["status"] == "done").sum()),
            "stop_epoch": stop,
            "rank_correlations": [round(float(value), 6) for value in correlations],
            "data": dataset.name,
            "cpu_seconds": round(float(frame["seconds"].sum()), 3),
        },
    )


def _low(flops: Limit, statistics: Mapping[str, Any]) -> float:
    """Lower end of the bins: the limit's, or where it has none the smallest of the pool."""
    return flops.low or float(statistics["flops"].min())


def _flops_rule(joint: JointSpace) -> str:
    if joint.architecture is None:
        return f"space {joint.name} has no networks; leave out --flops"
    return f"space {joint.name} needs the range of its candidates: --flops, for example 2M:12M"
