"""``nas.distill_tree``: a network's probabilities as targets of a soft decision tree (arXiv:1711.09784, document 003)."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.loading import load_model, trained_folder
from nas.training import train
from nas.trees.soft.loss import SoftTreeLoss
from nas.trees.soft.teaching import Teacher, probabilities, refusals, require_logits, require_temperature
from nas.trees.soft.training import (
    RESULT,
    TREE,
    VERSION,
    TrainedTree,
    checked_classes,
    checked_tries,
    fresh_tree,
    numbers,
    train_soft_tree,
    tree_numbers,
    tree_recipe,
)
from nas.trees.soft.tree import WINDOW
from recipes.datasets import Dataset, load_dataset
from recipes.evaluation import Evaluation, network_outputs
from recipes.recipe import Recipe
from recipes.run_folder import RunFolder
from recipes.sources import Source
from recipes.trainer import Callback, checked_device
from search_spaces.architecture import Architecture, Block
from search_spaces.serialisation import require, to_plain, write_json

DATA = "mnist"  # where neither data nor a trained teacher says otherwise
TEACHER, LABELS, SOFT_LABELS = "teacher", "labels", "soft_labels"  # folders in the run folder, and keys of results
FOLDER = "soft_tree"

_NO_TEACHER = "teacher {!r} is no run folder of nas train; leave it out to have one trained"

# Ours. No label smoothing: it takes away what soft labels tell of the classes besides the right one (arXiv:1906.02629).
TEACHER_RECIPE = Recipe(
    name="tree-teacher", epochs=6, batch_size=128, lr=0.1, nesterov=True, weight_decay=3e-4, schedule="linear",
    warmup_epochs=1.2, augment=True,
)  # fmt: skip


def teacher_network(resolution: int) -> Architecture:
    """The small convolutional network that is trained where no teacher is given: 1.6 MFLOPs for MNIST.

    Args:
        resolution: side of the images in pixels.
    """
    blocks = (
        Block(kind="conv", out_channels=16, kernel=3, stride=2),
        Block(kind="conv", out_channels=32, kernel=3, stride=2),
        Block(kind="conv", out_channels=64, kernel=3),
        Block(kind="pool_head", mid_channels=128, out_channels=128),
    )
    return Architecture(name="tree_teacher", resolution=resolution, blocks=blocks)


@dataclass(frozen=True, kw_only=True)
class DistilledTrees:
    """A teacher and its trees.

    Attributes:
        teacher: on the test images.
        trees: by what they learned from: ``labels`` and ``soft_labels``.
        agreement_percent: of each tree, test images for which it predicts what the teacher does.
        out: run folder; None where nothing was written.
    """

    teacher: Evaluation
    trees: Mapping[str, TrainedTree]
    agreement_percent: Mapping[str, float]
    out: Path | None


def distill_tree(
    teacher: str | Path | nn.Module | None = None,
    data: str | Dataset | None = None,
    *,
    depth: int = 4,
    beta: float = 1.0,
    window: int = WINDOW,
    loss: SoftTreeLoss | None = None,
    tries: int | None = None,
    temperature: float = 1.0,
    recipe: str | Path | Recipe | None = None,
    teacher_epochs: int | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    command: Sequence[str] = (),
    **changes: Any,
) -> DistilledTrees:
    """Train a soft decision tree on labels, and the same tree on a network's probabilities for the same images.

    Where the recipe augments, both trees see the same augmented images: one with their labels, the other with what the network
    says of the images as they are then.

    Args:
        teacher: run folder of `nas train` or `nas demo`, a model.pt, or a module that gives logits; None trains
            `teacher_network` first.
        data: name of a data set, or a Dataset; default the one that the teacher was trained on, or MNIST.
        depth: as `train_soft_tree`, like all that is not said here.
        beta: inverse temperature of the decisions.
        window: batches of the running averages.
        loss: of the trees.
        tries: trees that are trained side by side for each of the two, of which one is kept.
        temperature: divides the teacher's logits; the paper has none, that is 1.
        recipe: of the trees.
        teacher_epochs: of the teacher that is trained, instead of its recipe's.
        out: run folder; None keeps nothing on disk. Each training has a run folder of its own in it.
        seed: of all randomness.
        data_dir: where data sets are.
        device: ``"cpu"`` or ``"cuda"``.
        resume: continue the run in ``out``.
        callbacks: see `recipes.trainer.Callback`.
        command: recorded in the run folder.
        **changes: fields of the trees' recipe that differ.

    Raises:
        UserError: anything wrong with the input, in one line.
    """
    require_temperature(temperature)
    require(not resume or out is not None, "resume needs a run folder")
    require(teacher is None or teacher_epochs is None, "teacher_epochs are of a teacher that is trained; one was given")
    where, loss = checked_device(device), loss or SoftTreeLoss()
    dataset, network, side = _teacher_and_data(teacher, data, data_dir)
    recipe = tree_recipe(recipe, len(dataset.train), **changes)
    checked_classes(dataset)
    tries = checked_tries(dataset, depth, tries)
    fresh_tree(dataset, depth, beta=beta, window=window, seed=seed)  # refuses wrong numbers before anything is trained
    teacher_recipe = TEACHER_RECIPE if teacher_epochs is None else TEACHER_RECIPE.with_epochs(teacher_epochs)
    recorded = {
        "kind": "distill-tree",
        "version": VERSION,
        "data": dataset.name,
        "teacher": teacher_recipe.to_json() if teacher is None else _name(teacher),
        "depth": depth,
        "beta": float(beta),
        "window": window,
        "loss": to_plain(loss),
        "temperature": float(temperature),
        "recipe": recipe.to_json(),
        "device": device,
        "tries": tries,
        "threads": torch.get_num_threads(),
    }
    folder: RunFolder | nullcontext[None] = nullcontext()
    if out is not None:
        folder = RunFolder(out, recorded, seed=seed, command=command, resume=resume)
    with folder as run:

        def inside(name: str) -> Path | None:
            return None if run is None else run.path / name

        if network is None:
            network = train(
                teacher_network(dataset.resolution), dataset, recipe=teacher_recipe, seed=seed, device=device,
                out=inside(TEACHER), resume=resume, callbacks=callbacks, command=command,
            ).model  # fmt: skip
        network = network.to(where)
        evaluation, taught = _test(network, dataset, side, device)
        targets = {
            LABELS: None,
            SOFT_LABELS: taught_targets(network, dataset, side, recipe, temperature=temperature, device=device),
        }
        trees = {
            name: train_soft_tree(
                dataset, targets=given, depth=depth, beta=beta, window=window, loss=loss, tries=tries, recipe=recipe,
                out=inside(name), seed=seed, device=device, resume=resume, callbacks=callbacks, command=command,
            )
            for name, given in targets.items()
        }  # fmt: skip
        agreement = {name: 100.0 * float((tree.predicted == taught).double().mean()) for name, tree in trees.items()}
        result = DistilledTrees(
            teacher=evaluation, trees=trees, agreement_percent=agreement, out=None if run is None else run.path
        )
        if run is not None:
            rows = {name: {**tree_numbers(tree), "agreement_percent": agreement[name]} for name, tree in trees.items()}
            write_json(run.path / RESULT, {TEACHER: numbers(evaluation), **rows})
    return result


def taught_targets(
    network: nn.Module,
    dataset: Dataset,
    resolution: int,
    recipe: Recipe,
    *,
    temperature: float = 1.0,
    device: str = "cpu",
) -> Tensor | Teacher:
    """What a tree learns from a network: its `soft_labels`, or where the recipe augments the network itself.

    Images that change from epoch to epoch have no soft labels that could be made once; the network is asked batch by batch.

    Args:
        network: as `soft_labels`, like all that is not said here.
        dataset: with training images.
        resolution: side in pixels at which images go through the network.
        recipe: of the tree.
        temperature: divides the logits.
        device: where to compute.
    """
    if recipe.augment:
        return Teacher(network=network, resolution=resolution, temperature=temperature)
    return soft_labels(network, dataset, resolution, temperature=temperature, device=device)


def soft_labels(
    network: nn.Module, dataset: Dataset, resolution: int, *, temperature: float = 1.0, device: str = "cpu"
) -> Tensor:
    """A network's probabilities for the training images, as they are without augmentation.

    Args:
        network: images to logits `(b, K)`, on ``device``.
        dataset: n training images of K classes.
        resolution: side in pixels at which images go through the network.
        temperature: divides the logits.
        device: where to compute.

    Returns:
        `(n, K)` float32, rows sum to 1.

    Raises:
        UserError: a network that does not take the images, or gives something else than K finite numbers for each.
    """
    logits, _ = _logits(network, dataset.train, resolution, device, dataset)
    return probabilities(logits, temperature)


def default_out(teacher: str | Path | None) -> Path:
    """Where the trees of a trained teacher go: the folder ``soft_tree`` in its run folder.

    Raises:
        UserError: there is no such teacher.
    """
    require(teacher is not None, "without a trained teacher a run folder is needed: --out")
    folder = trained_folder(teacher or "")
    require(folder.exists(), _NO_TEACHER.format(str(teacher)))
    return (folder if folder.is_dir() else folder.parent) / FOLDER


def _teacher_and_data(
    teacher: str | Path | nn.Module | None, data: str | Dataset | None, data_dir: str | Path | None
) -> tuple[Dataset, nn.Module | None, int]:
    """Data, the teacher if there is one yet, and the side of its images in pixels."""
    if teacher is None or isinstance(teacher, nn.Module):
        dataset = data if isinstance(data, Dataset) else load_dataset(data or DATA, data_dir)
        return dataset, teacher, dataset.resolution
    folder = trained_folder(teacher)
    require(folder.exists(), _NO_TEACHER.format(str(teacher)))
    tree = folder / TREE if folder.is_dir() else folder
    require(
        tree.name != TREE or not tree.exists(),
        f"{teacher} is a soft tree and cannot teach: give a network's run folder",
    )
    require(not (folder / TEACHER).is_dir(), f"{teacher} holds trees; give their teacher: {folder / TEACHER}")
    trained = load_model(folder)
    facts = trained.facts
    dataset = data if isinstance(data, Dataset) else load_dataset(data or facts.data, data_dir)
    has, wanted = (facts.num_classes, facts.in_channels), (dataset.num_classes, dataset.in_channels)
    require(
        has == wanted,
        f"teacher {teacher} has {has[0]} classes and {has[1]} channels, {dataset.name} has {wanted[0]} and {wanted[1]}",
    )
    return dataset, trained.network, facts.resolution


def _test(network: nn.Module, dataset: Dataset, side: int, device: str) -> tuple[Evaluation, Tensor]:
    """The teacher on the test images, and its predictions `(n,)`."""
    logits, labels = _logits(network, dataset.test, side, device, dataset)
    predicted = logits.argmax(1)
    loss = float(functional.cross_entropy(logits, labels))
    return Evaluation(correct=int((predicted == labels).sum()), total=len(labels), loss=loss), predicted


def _logits(network: nn.Module, source: Source, side: int, device: str, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The teacher's logits `(n, K)` and the labels `(n,)`."""
    with refusals(dataset, side):
        logits, labels = network_outputs(network, source, resolution=side, device=device)
    require_logits(logits, dataset)
    return logits, labels


def _name(teacher: str | Path | nn.Module) -> str:
    return type(teacher).__name__ if isinstance(teacher, nn.Module) else str(teacher)
