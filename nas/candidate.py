"""Training of one candidate, in a worker process. Nothing heavy is imported before the process is set up."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nas.process import tune_process

CANDIDATES = "candidates"


def train_candidate(job: Mapping[str, Any], report: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """Build the candidate's network, train it by its recipe on the search images, and measure it on those held out.

    Its run folder is ``folder``/candidates/``id``: a training that was killed goes on after its last epoch.

    Args:
        job: plain values: ``id``, ``seed``, ``architecture`` (JSON, or ``torchvision:NAME``), ``recipe`` (JSON), ``epochs``
            (early stop, or None), ``data``, ``data_dir``, ``images``, ``held_out``, ``split_seed``, ``folder``, ``threads``,
            ``device``; ``resolution`` where it is not the network's.
        report: called after every epoch with the epoch and the accuracy in percent.

    Returns:
        ``curve``: accuracy in percent on the images held out, after every epoch; ``seconds``: CPU time.

    Raises:
        UserError: a recipe whose training diverges, or data that is gone.
    """
    tune_process()
    import torch

    from nas.designs import build_design, design_from_json
    from recipes.datasets import load_dataset
    from recipes.recipe import Recipe
    from recipes.run_folder import RunFolder
    from recipes.trainer import TrainState, fit
    from search_spaces.seeding import stream_seed

    class Reporter:
        """Tells the accuracy after every epoch."""

        def on_step_end(self, state: TrainState) -> None: ...

        def on_epoch_end(self, state: TrainState) -> None:
            report({"epoch": state.epoch, "accuracy": state.row["test_accuracy"]})

    torch.set_num_threads(job["threads"])
    design = design_from_json(job["architecture"], f"candidate {job['id']}")
    recipe = Recipe.from_json(job["recipe"], f"candidate {job['id']}").replace(early_stop_epoch=job["epochs"])
    dataset = load_dataset(job["data"], job["data_dir"])
    train, held_out = search_images(dataset.train, job["images"], job["held_out"], job["split_seed"])
    network = build_design(
        design, dataset.num_classes, dataset.in_channels, dropout=recipe.dropout,
        stochastic_depth=recipe.stochastic_depth, seed=stream_seed(job["seed"], "weights"),
    )  # fmt: skip
    config = {key: value for key, value in job.items() if key not in ("folder", "data_dir")}
    folder = Path(job["folder"]) / CANDIDATES / str(job["id"])
    with RunFolder(folder, config, seed=job["seed"], resume=True) as run:
        result = fit(
            network, train, held_out, recipe, resolution=job.get("resolution") or design.resolution, seed=job["seed"],
            run=run, callbacks=[Reporter()], device=job["device"], resume=True,
        )  # fmt: skip
    curve = [row["test_accuracy"] for row in result.history]
    return {"curve": curve, "seconds": sum(row["seconds"] for row in result.history)}


def search_images(train: Any, images: int | None, held_out: int, seed: int) -> tuple[Any, Any]:
    """Images to train candidates on and images to compare them on, both out of the training images.

    Args:
        train: a `recipes.sources.Source`.
        images: to train on; None for all that are not held out.
        held_out: to compare on; never trained on by any candidate.
        seed: of the choice, the same for all candidates.

    Returns:
        Two sources, each class in proportion.

    Raises:
        UserError: more images than there are.
    """
    from recipes.sources import split_indices
    from search_spaces.seeding import numpy_rng
    from search_spaces.serialisation import require

    n = len(train)
    left = n - held_out
    require(0 < held_out < n, f"held-out images must be in 1..{n - 1}, got {held_out}")
    require(images is None or 0 < images <= left, f"images must be in 1..{left}, got {images}")
    rng = numpy_rng(seed, "held out")
    compared, rest = split_indices(train.labels, held_out / n, rng)
    if images is not None and images < left:
        chosen, _ = split_indices(train.labels[rest], images / left, rng)
        rest = rest[chosen]
    return train.subset(rest), train.subset(compared)
