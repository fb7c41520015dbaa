"""``nas tree-reg data``: classifiers of images in the one training loop, penalised for the path of a tree over pixels."""
# n training images, N of them that the tree sees, c channels, r side in pixels, k classes

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.designs import Design, design_to_json
from nas.loading import MODEL, load_design, save_model
from nas.models import build_pretrained
from nas.reporting.charts import draw
from nas.reporting.live import shown_live
from nas.training import default_recipe
from nas.trees.regularisation.path_length import predicted_classes, rows_of
from nas.trees.regularisation.penalty import TreePenalty, TreeRegularisation, stored_bytes
from nas.trees.regularisation.tasks import (
    CURVES,
    RESULT,
    TREE,
    WEIGHTS,
    mimic_text,
    plain_numbers,
    tracking_panel,
)
from nas.trees.regularisation.training import (
    CLIPPED,
    PENALTIES,
    Regularised,
    check_labels,
    perceptron,
    weight_norm,
)
from recipes.checkpoint import require_room, save_checkpoint
from recipes.datasets import Dataset, load_dataset
from recipes.distributed import ranks
from recipes.evaluation import evaluate, evaluation_mode
from recipes.recipe import Recipe, load_recipe
from recipes.run_folder import RunFolder
from recipes.sources import Source, split_indices
from recipes.trainer import Callback, Loss, checked_device, fit
from search_spaces.architecture import MAX_RESOLUTION, Architecture
from search_spaces.errors import UserError, closest, first_line
from search_spaces.seeding import numpy_rng, stream_seed
from search_spaces.serialisation import require, require_finite, to_plain, write_json, write_text_atomic

HISTORY = "path_length.csv"
PERCEPTRON = "perceptron"
INPUTS = 1000  # N where none is given
WARMUP, RAMP = 6, 3  # a sixth and a third of the epochs where none are given

Network = str | Path | Design | nn.Module


@dataclass(frozen=True, kw_only=True)
class RegularisedImages:
    """What training gave.

    Attributes:
        name: of data and network.
        result: network, tree and numbers; its tree is fitted to the N training images.
        standard_error: binomial, of the accuracy on the test images, in points.
        tree: as indented text.
    """

    name: str
    result: Regularised
    standard_error: float
    tree: str


@dataclass(frozen=True, kw_only=True)
class NormPenalty:
    """Loss plus strength x L1 or L2 norm of the weights, from an epoch on; a loss of `recipes.trainer.fit`.

    Attributes:
        loss: of outputs and targets.
        weights: penalised.
        penalty: ``l1`` or ``l2``.
        strength: lambda.
        warmup: epochs without the penalty.
        epochs: of the recipe.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    weights: Sequence[Tensor]
    penalty: str
    strength: float
    warmup: int
    epochs: int

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, progress: float, /) -> Tensor:
        """See `recipes.trainer.Loss`."""
        loss = self.loss(model(images), targets)
        epoch = int(progress * self.epochs + 1e-9)  # the trainer's progress is (epoch + step / steps) / epochs
        return loss if epoch < self.warmup else loss + self.strength * weight_norm(self.weights, self.penalty)


def regularise_images(
    data: str | Dataset,
    network: Network | None = None,
    *,
    penalty: str = "tree",
    strength: float = 0.1,
    tree: TreePenalty | None = None,
    warmup: int | None = None,
    ramp: int | None = None,
    inputs: int = INPUTS,
    layers: Sequence[str] | None = None,
    recipe: str | Path | Recipe | None = None,
    resolution: int | None = None,
    pretrained: str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    command: Sequence[str] = (),
    **changes: Any,
) -> RegularisedImages:
    """Train a classifier of images with a penalty, in `recipes.trainer.fit`; measure the tree over pixels that mimics it.

    The tree sees the pixels of N training images as the network gets them, normalised and without augmentation. A recipe
    that does not clip gradients clips them at 2 here, with every penalty: surrogates can be steep.

    Args:
        data: name of a data set, or a Dataset.
        network: as `nas.train` takes; a module of one's own, images `(b, c, r, r)` to logits `(b, k)`; or None for the
            perceptron of document 002's toy, c r r - 100 - 100 - 10 - k.
        penalty: ``none``, ``l1``, ``l2`` or ``tree``.
        strength: lambda, >= 0.
        tree: of the penalty but for strength, warm-up and ramp; default a surrogate every epoch.
        warmup: epochs without penalty, >= 1; default a sixth of the recipe's.
        ramp: epochs after these over which the tree penalty grows, >= 0; default a third.
        inputs: N, each class in proportion; all images where there are fewer.
        layers: names of the penalised layers; None for all. The path length is of the whole network in any case.
        recipe: name, file or Recipe; None for what suits the data set.
        resolution: side of the images in pixels; default the network's, or of the perceptron and a module the data set's.
        pretrained: weights to start from, see `nas.train`; not of the perceptron or a module.
        out: run folder; of a network that is no module of one's own it holds `model.pt` as that of `nas train`.
        seed: of initial weights, of the N images, of training and of the penalty.
        data_dir: where data sets are.
        device: ``"cpu"`` or ``"cuda"``.
        resume: continue the run in ``out``.
        callbacks: see `recipes.trainer.Callback`.
        command: recorded in the run folder.
        **changes: fields of the recipe that differ; None for the recipe's.

    Raises:
        UserError: anything wrong with the input, in one line.
    """
    require(ranks().world == 1, "tree regularisation trains in one process; start this command without torchrun")
    require(not resume or out is not None, "resume needs a run folder")
    require(seed >= 0, f"seed must be >= 0, got {seed}")
    dataset = data if isinstance(data, Dataset) else load_dataset(data, data_dir)
    check_labels(dataset.train.labels)
    recipe = _recipe(recipe, dataset, changes)
    config = _penalty(penalty, strength, tree, recipe, warmup, ramp)
    where = checked_device(device)
    design, model, name = _network(network, dataset, recipe, pretrained, seed)
    side = resolution or (dataset.resolution if design is None else design.resolution)
    require(1 <= side <= MAX_RESOLUTION, f"resolution must be in 1..{MAX_RESOLUTION}, got {side}")
    if model is None:
        model = nn.Sequential(nn.Flatten(), *perceptron(dataset.in_channels * side**2, dataset.num_classes, seed))
    model.to(device=where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    seen = _images(dataset.train, inputs, side, seed).to(where)
    smoothed = partial(functional.cross_entropy, label_smoothing=recipe.label_smoothing)
    try:
        watched = TreeRegularisation(model, seen, config, seed=seed, layers=layers, loss=smoothed)
    except RuntimeError as error:
        raise UserError(
            f"{name} does not take {dataset.name}'s images of {side} pixels: {first_line(error)}"
        ) from error
    recorded = {
        "kind": "tree-reg", "task": "data", "data": dataset.name,
        "architecture": name if design is None else design_to_json(design), "resolution": side, "inputs": len(seen),
        "layers": None if layers is None else list(layers), "penalty": penalty, "strength": float(strength),
        "tree": to_plain(config), "recipe": recipe.to_json(), "pretrained": None if pretrained is None else str(pretrained),
        "device": device, "threads": torch.get_num_threads(),
    }  # fmt: skip
    folder: RunFolder | nullcontext[None] = nullcontext()
    if out is not None:
        folder = RunFolder(out, recorded, seed=seed, command=command, resume=resume)
    with folder as run, shown_live(None if run is None else run.path) as shown:
        if run is not None:
            _prepare(run, design, watched, penalty)
        fitted = fit(
            model, dataset.train, dataset.test, recipe, resolution=side, seed=seed, run=run, device=where, resume=resume,
            loss=_loss(penalty, strength, watched, smoothed, recipe),
            callbacks=[*([watched] if penalty == "tree" else []), *callbacks, *shown],
        )  # fmt: skip
        assert fitted.evaluation is not None, "there is a test source"
        result = _measured(watched, dataset, side, fitted.history, fitted.evaluation.accuracy)
        text = mimic_text(result.mimic, _pixel_names(dataset.in_channels, side), dataset.class_names)
        found = RegularisedImages(
            name=f"{dataset.name}, {name}", result=result, standard_error=fitted.evaluation.standard_error, tree=text
        )
        if run is not None:
            _save(run, found, dataset, design, side)
    return found


def _recipe(given: str | Path | Recipe | None, dataset: Dataset, changes: dict[str, Any]) -> Recipe:
    recipe = given if isinstance(given, Recipe) else load_recipe(str(given or default_recipe(dataset.name)))
    changes = {key: value for key, value in changes.items() if value is not None}
    if "epochs" in changes:
        recipe = recipe.with_epochs(changes.pop("epochs"))
    recipe = recipe.replace(**changes)
    require(recipe.distillation == 0, f"recipe {recipe.name} learns from a teacher; tree regularisation has none")
    return recipe if recipe.clip_grad_norm is not None else recipe.replace(clip_grad_norm=CLIPPED)


def _penalty(
    penalty: str, strength: float, tree: TreePenalty | None, recipe: Recipe, warmup: int | None, ramp: int | None
) -> TreePenalty:
    """The penalty with all that was left open."""
    require(penalty in PENALTIES, f"unknown penalty {penalty!r}{closest(penalty, PENALTIES)}")
    require_finite(strength=strength)
    warmup = max(1, recipe.epochs // WARMUP) if warmup is None else warmup
    ramp = recipe.epochs // RAMP if ramp is None else ramp
    require(strength >= 0, f"strength must be >= 0, got {strength}")
    used = float(strength) if penalty == "tree" else 0.0  # others need its tree alone
    config = replace(tree or TreePenalty(every=1), strength=used, warmup=warmup, ramp=ramp)
    require(
        penalty == "none" or warmup < recipe.last_epoch,
        f"warmup must be below the {recipe.last_epoch} epochs of training, got {warmup}: the penalty would never act",
    )
    return config


def _network(
    network: Network | None, dataset: Dataset, recipe: Recipe, pretrained: str | Path | None, seed: int
) -> tuple[Design | None, nn.Module | None, str]:
    """Design and fresh module of a network, each where there is one yet, and its name."""
    if network is None or isinstance(network, nn.Module):
        require(pretrained is None, "pretrained weights are of a network by name or file, not of the perceptron")
        return None, network, PERCEPTRON if network is None else type(network).__name__
    design = load_design(network)
    design, model = build_pretrained(
        design, num_classes=dataset.num_classes, in_channels=dataset.in_channels, pretrained=pretrained,
        dropout=recipe.dropout, stochastic_depth=recipe.stochastic_depth, seed=stream_seed(seed, "weights"),
    )  # fmt: skip
    return design, model, design.name


def _images(source: Source, count: int, side: int, seed: int) -> Tensor:
    """Training images `(N, c, r, r)` for the tree, each class in proportion."""
    require(count >= 2, f"inputs must be >= 2, got {count}")
    if count < len(source):
        source = source.subset(split_indices(source.labels, count / len(source), numpy_rng(seed, "tree inputs"))[0])
    return torch.cat([images for images, _ in source.batches(512, resolution=side)])


def _loss(
    penalty: str, strength: float, watched: TreeRegularisation, loss: Callable[[Tensor, Tensor], Tensor], recipe: Recipe
) -> Loss | None:
    if penalty == "tree":
        return watched
    if penalty == "none":
        return None
    return NormPenalty(
        loss=loss, weights=list(watched.parameters.values()), penalty=penalty, strength=strength,
        warmup=watched.config.warmup, epochs=recipe.epochs,
    )  # fmt: skip


def _prepare(run: RunFolder, design: Design | None, watched: TreeRegularisation, penalty: str) -> None:
    if isinstance(design, Architecture):
        design.save(run.architecture)
    if penalty == "tree":
        require_room(run.checkpoint, stored_bytes(len(watched.weights()), watched.config))


def _measured(
    watched: TreeRegularisation, dataset: Dataset, side: int, history: Sequence[dict[str, float]], accuracy: float
) -> Regularised:
    found, model, device = watched.mimic(), watched.model, watched.inputs.device
    agreed = 0
    with torch.no_grad(), evaluation_mode(model):
        for images, _ in dataset.test.batches(512, resolution=side):
            outputs = model(images.to(device))
            agreed += int((found.tree.predict(rows_of(images, outputs)) == predicted_classes(outputs)).sum())
    train = evaluate(model, dataset.train, resolution=side, device=device)
    costs = watched.costs
    return Regularised(
        model=model, mimic=found, accuracy=accuracy, auc=float("nan"), train_accuracy=train.accuracy,
        test_fidelity=agreed / len(dataset.test), history=tuple(watched.history), costs=costs,
        seconds=sum(row["seconds"] for row in history) + costs.trees + costs.surrogates,
    )  # fmt: skip


def _pixel_names(channels: int, side: int) -> list[str]:
    """Names of a row's c r r numbers: row and column of the pixel from the upper left, with several channels its number."""
    colours = [""] if channels == 1 else [f"channel {channel} " for channel in range(channels)]
    return [f"{colour}pixel {row},{column}" for colour in colours for row in range(side) for column in range(side)]


def _save(run: RunFolder, found: RegularisedImages, dataset: Dataset, design: Design | None, side: int) -> None:
    result = found.result
    if design is None:
        save_checkpoint(run.path / WEIGHTS, {"model": result.model.cpu().state_dict()})
    else:
        facts = {
            "data": dataset.name, "num_classes": dataset.num_classes, "in_channels": dataset.in_channels,
            "class_names": list(dataset.class_names), "resolution": side,
        }  # fmt: skip
        save_model(run.path / MODEL, result.model.cpu(), design, facts)
    write_text_atomic(run.path / TREE, found.tree)
    if result.history:
        table = pd.DataFrame([{**asdict(seen), "epoch": seen.epoch - 1} for seen in result.history])
        write_text_atomic(run.path / HISTORY, table.to_csv(index=False))
        draw([tracking_panel(result)], run.path / CURVES, "Path length by epoch, and what the surrogate foretold.")
    numbers = plain_numbers(result) | {"standard_error": found.standard_error, "total": len(dataset.test)}
    write_json(run.path / RESULT, {"classes": list(dataset.class_names), **numbers})
