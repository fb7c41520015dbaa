"""``nas.train``: train an Architecture with a Recipe in a run folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nas.designs import Design, build_design, design_cost, design_to_json, load_design
from nas.loading import MODEL, save_model
from recipes.datasets import Dataset, load_dataset
from recipes.recipe import Recipe, load_recipe
from recipes.run_folder import RunFolder
from recipes.trainer import Callback, Evaluation, checked_device, fit
from search_spaces.architecture import Architecture
from search_spaces.cost import Cost
from search_spaces.seeding import stream_seed
from search_spaces.serialisation import require, write_json

RESULT = "result.json"
DEFAULT_RECIPES = {"digits": "digits", "imagefolder": "fbnetv3"}  # everything else: "cifar10-small"


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training gave.

    Attributes:
        design: the network, an Architecture or one of torchvision's by name.
        model: trained, in eval mode.
        evaluation: on the test images.
        cost: exact cost of the network.
    """

    design: Design
    model: torch.nn.Module
    evaluation: Evaluation
    cost: Cost


def default_recipe(data: str) -> str:
    """Name of the recipe that suits a data set."""
    return DEFAULT_RECIPES.get(data.partition(":")[0], "cifar10-small")


def train(
    network: str | Path | Design,
    data: str | Dataset,
    *,
    recipe: str | Path | Recipe | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    resolution: int | None = None,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    command: Sequence[str] = (),
    **changes: Any,
) -> TrainResult:
    """Train a network from scratch and evaluate it.

    Args:
        network: architecture file, run folder of a search, published network (`nas zoo`), ``torchvision:NAME``, or a Design.
        data: name of a data set, or a Dataset.
        recipe: name, file or Recipe; None for what suits the data set.
        out: run folder; None keeps nothing on disk.
        seed: of initial weights and of all randomness in training.
        resolution: side of the images in pixels; default the network's.
        data_dir: where data sets are.
        device: ``"cpu"`` or ``"cuda"``.
        resume: continue the training in ``out``.
        callbacks: see `recipes.trainer.Callback`.
        command: recorded in the run folder.
        **changes: fields of the recipe that differ; ``epochs`` keeps the shape of its schedules.

    Raises:
        UserError: anything wrong with the input, in one line.
    """
    design = load_design(network)
    dataset = data if isinstance(data, Dataset) else load_dataset(data, data_dir)
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe or default_recipe(dataset.name)))
    given = {key: value for key, value in changes.items() if value is not None}
    if "epochs" in given:
        recipe = recipe.with_epochs(given.pop("epochs"))
    recipe = recipe.replace(**given)
    side = resolution or design.resolution
    require(seed >= 0, f"seed must be >= 0, got {seed}")
    checked_device(device)
    model = build_design(
        design,
        dataset.num_classes,
        dataset.in_channels,
        dropout=recipe.dropout,
        stochastic_depth=recipe.stochastic_depth,
        seed=stream_seed(seed, "weights"),
    )

    def run_training(run: RunFolder | None) -> TrainResult:
        fitted = fit(
            model, dataset.train, dataset.test, recipe, resolution=side, seed=seed, run=run, callbacks=callbacks,
            device=device, resume=resume,
        )  # fmt: skip
        assert fitted.evaluation is not None, "there is a test source"
        exact = design_cost(design, num_classes=dataset.num_classes, in_channels=dataset.in_channels, resolution=side)
        return TrainResult(design=design, model=fitted.model, evaluation=fitted.evaluation, cost=exact)

    if out is None:
        require(not resume, "resume needs a run folder")
        return run_training(None)
    recorded = {
        "kind": "train",
        "architecture": design_to_json(design),
        "recipe": recipe.to_json(),
        "data": dataset.name,
        "resolution": side,
        "device": device,
        "threads": torch.get_num_threads(),
    }
    with RunFolder(out, recorded, seed=seed, command=command, resume=resume) as run:
        if isinstance(design, Architecture):
            design.save(run.architecture)
        result = run_training(run)
        facts = {
            "data": dataset.name,
            "num_classes": dataset.num_classes,
            "in_channels": dataset.in_channels,
            "class_names": list(dataset.class_names),
            "resolution": side,
        }
        save_model(run.path / MODEL, model.cpu(), design, facts)
        evaluation = result.evaluation
        write_json(
            run.path / RESULT,
            {
                "accuracy": evaluation.accuracy,
                "standard_error": evaluation.standard_error,
                "correct": evaluation.correct,
                "total": evaluation.total,
                "loss": evaluation.loss,
                **result.cost._asdict(),
            },
        )
        return result
