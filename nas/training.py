"""``nas.train``: train a network with a Recipe in a run folder, in one process or in those of `torchrun`."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas.designs import Design, design_cost, design_to_json
from nas.loading import MODEL, load_design, load_model, save_model
from nas.models import build_pretrained
from nas.reporting.live import shown_live
from recipes.datasets import Dataset, load_dataset
from recipes.distillation import Distillation
from recipes.distributed import own_device, process_group, ranks
from recipes.evaluation import Evaluation
from recipes.recipe import Recipe, load_recipe
from recipes.run_folder import RunFolder
from recipes.trainer import Callback, Loss, checked_device, fit
from search_spaces.architecture import MAX_RESOLUTION, Architecture
from search_spaces.cost import Cost
from search_spaces.seeding import stream_seed
from search_spaces.serialisation import require, write_json

logger = logging.getLogger(__name__)

RESULT = "result.json"
DEFAULT_RECIPES = {"digits": "digits", "imagefolder": "fbnetv3"}  # everything else: "cifar10-small"
DISTILLATION = 0.8  # weight of a teacher that the recipe gives none (thesis 4.4)

LossOf = Callable[[Recipe, nn.Module | None], Loss | None]  # makes the loss of a recipe and a teacher


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
    model: nn.Module
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
    pretrained: str | Path | None = None,
    teacher: str | Path | nn.Module | None = None,
    teacher_weights: str | Path | None = None,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    loss: LossOf | None = None,
    loss_callbacks: Sequence[Callback] = (),
    recorded_loss: Any = None,
    command: Sequence[str] = (),
    **changes: Any,
) -> TrainResult:
    """Train a network and evaluate it.

    Under `torchrun` the processes train one model together (`recipes.distributed`): each calls this with the same arguments,
    process 0 writes, all return the same.

    Args:
        network: architecture file, run folder of a search, published network (`nas zoo`), ``torchvision:NAME``, or a Design.
        data: name of a data set, or a Dataset.
        recipe: name, file or Recipe; None for what suits the data set.
        out: run folder; None keeps nothing on disk.
        seed: of initial weights and of all randomness in training.
        resolution: side of the images in pixels; default the network's.
        pretrained: weights to start from instead of fresh ones: a checkpoint as `nas.create_model` takes, or a run folder.
        teacher: network to learn from besides the labels: run folder of `nas train`, a name with ``teacher_weights``, or a
            module that gives logits. The recipe's ``distillation`` is its weight; 0.8 where that is 0.
        teacher_weights: checkpoint of the teacher that is given by name.
        data_dir: where data sets are.
        device: ``"cpu"`` or ``"cuda"``.
        resume: continue the training in ``out``.
        callbacks: see `recipes.trainer.Callback`; those of process 0 are called.
        loss: makes the loss from the recipe, as changed, and the teacher, if any; default cross entropy or `Distillation`.
        loss_callbacks: what the loss needs to be told; called in every process, before ``callbacks``.
        recorded_loss: plain values for config.json that tell the loss from others.
        command: recorded in the run folder.
        **changes: fields of the recipe that differ; ``epochs`` keeps the shape of its schedules.

    Raises:
        UserError: anything wrong with the input, in one line.
    """
    place = ranks()
    design = load_design(network)
    dataset = data if isinstance(data, Dataset) else load_dataset(data, data_dir)
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe or default_recipe(dataset.name)))
    recipe = _changed(recipe, changes, has_teacher=teacher is not None)
    side = design.resolution if resolution is None else resolution
    require(1 <= side <= MAX_RESOLUTION, f"resolution must be in 1..{MAX_RESOLUTION}, got {side}")
    require(seed >= 0, f"seed must be >= 0, got {seed}")
    require(not resume or out is not None, "resume needs a run folder")
    where = own_device(checked_device(device), place)
    design, model = build_pretrained(
        design, num_classes=dataset.num_classes, in_channels=dataset.in_channels, pretrained=pretrained,
        dropout=recipe.dropout, stochastic_depth=recipe.stochastic_depth, seed=stream_seed(seed, "weights"),
    )  # fmt: skip
    exact = design_cost(design, num_classes=dataset.num_classes, in_channels=dataset.in_channels, resolution=side)
    taught_by = None if teacher is None else load_teacher(teacher, teacher_weights, dataset).to(where)
    recorded = {
        "kind": "train",
        "architecture": design_to_json(design),
        "recipe": recipe.to_json(),
        "data": dataset.name,
        "resolution": side,
        "pretrained": None if pretrained is None else str(pretrained),
        "teacher": None if teacher is None else _teacher_name(teacher, teacher_weights),
        "device": device,
        "threads": torch.get_num_threads(),
    } | ({} if recorded_loss is None else {"loss": recorded_loss})
    folder: RunFolder | nullcontext[None] = nullcontext()
    if out is not None and place.main:
        folder = RunFolder(out, recorded, seed=seed, command=command, resume=resume)
    with folder as run, process_group(where, place), shown_live(None if run is None else run.path) as shown:
        if run is not None and isinstance(design, Architecture):
            design.save(run.architecture)
        fitted = fit(
            model, dataset.train, dataset.test, recipe, resolution=side, seed=seed, run=run, device=where, resume=resume,
            loss=(loss or _own_loss)(recipe, taught_by),
            callbacks=[*loss_callbacks, *(callbacks if place.main else ()), *(shown if place.main else ())],
        )  # fmt: skip
        assert fitted.evaluation is not None, "there is a test source"
        result = TrainResult(design=design, model=fitted.model, evaluation=fitted.evaluation, cost=exact)
        if run is not None:
            _save_result(run, result, dataset, side)
    return result


def _own_loss(recipe: Recipe, teacher: nn.Module | None) -> Loss | None:
    """What `train` minimises by itself; None leaves it to `fit`."""
    if teacher is None:
        return None
    return Distillation(
        teacher=teacher, weight=recipe.distillation, temperature=recipe.distillation_temperature,
        label_smoothing=recipe.label_smoothing,
    )  # fmt: skip


def load_teacher(teacher: str | Path | nn.Module, weights: str | Path | None, dataset: Dataset) -> nn.Module:
    """A trained network in evaluation mode whose classes are the data set's.

    Args:
        teacher: run folder of `nas train` or its model.pt, a name as `nas train` takes, or a module.
        weights: checkpoint of a network given by name.
        dataset: what is trained on.

    Raises:
        UserError: nothing of that name, a missing or damaged checkpoint, other classes or channels.
    """
    if isinstance(teacher, nn.Module):
        return teacher.eval().requires_grad_(False)
    wanted = (dataset.num_classes, dataset.in_channels)
    if weights is None:
        require(
            Path(teacher).exists(),
            f"teacher {str(teacher)!r} is no run folder of nas train; a teacher given by name needs teacher weights",
        )
        trained = load_model(teacher)
        network, has = trained.network, (trained.facts.num_classes, trained.facts.in_channels)
        require(
            has == wanted,
            f"teacher {teacher} has {has[0]} classes and {has[1]} channels, {dataset.name} has {wanted[0]} and {wanted[1]}",
        )
    else:
        _, network = build_pretrained(
            load_design(teacher), num_classes=wanted[0], in_channels=wanted[1], pretrained=weights, complete=True
        )
    return network.eval().requires_grad_(False)


def _changed(recipe: Recipe, changes: dict[str, Any], *, has_teacher: bool) -> Recipe:
    given = {key: value for key, value in changes.items() if value is not None}
    if "epochs" in given:
        recipe = recipe.with_epochs(given.pop("epochs"))
    recipe = recipe.replace(**given)
    require(
        has_teacher or recipe.distillation == 0,
        f"recipe {recipe.name} learns from a teacher (distillation {recipe.distillation:g}); give one, or distillation 0",
    )
    return recipe.replace(distillation=DISTILLATION) if has_teacher and recipe.distillation == 0 else recipe


def _teacher_name(teacher: str | Path | nn.Module, weights: str | Path | None) -> str:
    name = type(teacher).__name__ if isinstance(teacher, nn.Module) else str(teacher)
    return name if weights is None else f"{name} with {weights}"


def _save_result(run: RunFolder, result: TrainResult, dataset: Dataset, resolution: int) -> None:
    """model.pt and result.json."""
    facts = {
        "data": dataset.name,
        "num_classes": dataset.num_classes,
        "in_channels": dataset.in_channels,
        "class_names": list(dataset.class_names),
        "resolution": resolution,
    }
    save_model(run.path / MODEL, result.model.cpu(), result.design, facts)
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
