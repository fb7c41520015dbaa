"""``nas.train_soft_tree``: a soft decision tree on labels, or on any distributions over the classes."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.trees.soft.loss import SoftTreeLoss
from nas.trees.soft.page import PAGE, write_tree_page
from nas.trees.soft.teaching import TaughtTreeLoss, Teacher, checked_teacher
from nas.trees.soft.tree import WINDOW, SoftDecisionTree, SoftDecisionTrees, require_depth
from recipes.datasets import Dataset, load_dataset
from recipes.distributed import ranks
from recipes.evaluation import Evaluation, evaluate, network_outputs
from recipes.recipe import Recipe, load_recipe
from recipes.run_folder import RunFolder
from recipes.sources import Source
from recipes.tensor_source import TensorSource
from recipes.trainer import Callback, checked_device, fit
from search_spaces.errors import UserError
from search_spaces.seeding import stream_seed
from search_spaces.serialisation import require, to_plain, write_json

TREE, RESULT = "tree.pt", "result.json"
VERSION = 2  # of the training: runs of another one cannot go on. 2: trees side by side
MAX_WEIGHTS = 1 << 26  # of all trees that are tried together; 32 of depth 4 on MNIST have 0.4 M

# Ours. RMSProp stands for the Adam of the code that document 003 describes. Without momentum: 0.9 costs depth 8
# 1.7 points of held-out images (benchmarks.soft_tree_settings).
TREE_RECIPE = Recipe(
    name="soft-tree", epochs=20, batch_size=256, lr=5e-3, optimizer="rmsprop", momentum=0.0, rmsprop_eps=1e-8,
    schedule="linear", warmup_epochs=1.5,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainedTree:
    """A soft decision tree and how well it does on the test images.

    Attributes:
        tree: in evaluation mode, on the CPU.
        evaluation: by the leaf with the greatest path probability.
        mixed: by all leaves together.
        predicted: `(n,)` int64, its classes for the test images.
        training_percent: accuracy on the training images of each tree that was tried; the tree is the first of the best.
    """

    tree: SoftDecisionTree
    evaluation: Evaluation
    mixed: Evaluation
    predicted: Tensor
    training_percent: tuple[float, ...]


def train_soft_tree(
    data: str | Dataset,
    *,
    targets: Tensor | Teacher | None = None,
    depth: int = 4,
    beta: float = 1.0,
    window: int = WINDOW,
    loss: SoftTreeLoss | None = None,
    tries: int | None = None,
    recipe: str | Path | Recipe | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    command: Sequence[str] = (),
    **changes: Any,
) -> TrainedTree:
    """Train a soft decision tree and evaluate it.

    Args:
        data: name of a data set, or a Dataset.
        targets: `(n, K)`, distributions over the classes for the training images, in their order; or a network that gives
            them for the images of each batch, as augmented; None for the labels.
        depth: decisions on every way, 1..12; 2^depth leaves.
        beta: inverse temperature of the decisions.
        window: batches of the running averages; see `SoftDecisionTree`.
        loss: default `SoftTreeLoss()`.
        tries: trees that are trained side by side, of which the one that is right for most training images is kept, as they
            are without augmentation. Which classes share a leaf is settled by the first epochs, and no later one mends it;
            default `default_tries(depth)`, fewer where images are so large that they have no room.
        recipe: name, file or Recipe; default `TREE_RECIPE`. Its label smoothing does nothing; images that it augments keep
            their targets, unless a `Teacher` gives them.
        out: run folder, gets tree.pt, result.json and page.html besides; None keeps nothing on disk.
        seed: of all randomness.
        data_dir: where data sets are.
        device: ``"cpu"`` or ``"cuda"``.
        resume: continue the training in ``out``.
        callbacks: see `recipes.trainer.Callback`.
        command: recorded in the run folder.
        **changes: fields of the recipe that differ; None for the recipe's.

    Raises:
        UserError: anything wrong with the input, in one line.
    """
    require(ranks().world == 1, "soft trees are trained in one process; start this command without torchrun")
    require(not resume or out is not None, "resume needs a run folder")
    where, loss = checked_device(device), loss or SoftTreeLoss()
    dataset = data if isinstance(data, Dataset) else load_dataset(data, data_dir)
    recipe = tree_recipe(recipe, len(dataset.train), **changes)
    checked_classes(dataset)
    tries = checked_tries(dataset, depth, tries)
    trees = SoftDecisionTrees([
        fresh_tree(dataset, depth, beta=beta, window=window, seed=seed, index=index) for index in range(tries)
    ])  # fmt: skip
    source: Source = dataset.train
    if isinstance(targets, Teacher):
        checked_teacher(targets, dataset, where)
    elif targets is not None:
        require(
            targets.shape == (len(source), dataset.num_classes) and bool((targets >= 0).all())
            and bool(((targets.sum(1) - 1).abs() < 1e-3).all()),
            f"targets must be ({len(source)}, {dataset.num_classes}), rows >= 0 that sum to 1, got {tuple(targets.shape)}",
        )  # fmt: skip
        source = SoftLabelled(source, targets.float().cpu())
    recorded = {
        "kind": "soft-tree",
        "version": VERSION,
        "data": dataset.name,
        "targets": _told(targets, device),
        "depth": depth,
        "beta": float(beta),
        "window": window,
        "loss": to_plain(loss),
        "recipe": recipe.to_json(),
        "device": device,
        "tries": tries,
        "threads": torch.get_num_threads(),
    }
    folder: RunFolder | nullcontext[None] = nullcontext()
    if out is not None:
        folder = RunFolder(out, recorded, seed=seed, command=command, resume=resume)

    with folder as run:
        fit(
            trees, source, None, recipe, resolution=dataset.resolution, seed=seed, run=run,
            loss=TaughtTreeLoss(loss=loss, teacher=targets) if isinstance(targets, Teacher) else loss,
            callbacks=callbacks, device=where, resume=resume,
        )  # fmt: skip
        result = _best(trees, dataset, where)
        if run is not None:
            _save(run.path, result, dataset, "labels" if targets is None else "soft labels")
    return result


def default_tries(depth: int) -> int:
    """Trees that are tried where nothing else is said: as many as have 512 leaves together, in 1..32.

    Deep trees, which cost more, depend less on where they start.
    """
    return min(32, max(1, 512 >> depth))


def checked_tries(dataset: Dataset, depth: int, tries: int | None) -> int:
    """How many trees are tried; where ``tries`` is None `default_tries`, or what of them has room side by side.

    Raises:
        UserError: no depth or number of trees, or several with more weights than trees side by side may have.
    """
    require_depth(depth)
    of_one = ((1 << depth) - 1) * dataset.in_channels * dataset.resolution**2
    if tries is None:
        return min(default_tries(depth), max(1, MAX_WEIGHTS // of_one))
    require(type(tries) is int and tries >= 1, f"tries must be a whole number >= 1, got {tries!r}")
    require(
        tries == 1 or tries * of_one <= MAX_WEIGHTS,
        f"{tries} tries of depth {depth} on {dataset.name} have {tries * of_one:,} weights, at most {MAX_WEIGHTS:,} are"
        " possible; try fewer",
    )
    return tries


def fresh_tree(
    dataset: Dataset, depth: int, *, beta: float, window: int, seed: int, index: int = 0
) -> SoftDecisionTree:
    """Tree ``index`` of those that `train_soft_tree` starts from.

    Raises:
        UserError: a number out of its range.
    """
    require_depth(depth)
    require(seed >= 0, f"seed must be >= 0, got {seed}")
    inputs = dataset.in_channels * dataset.resolution**2
    return SoftDecisionTree(
        inputs, dataset.num_classes, depth, beta=beta, window=window, seed=stream_seed(seed, "soft tree", index)
    )


def _told(targets: Tensor | Teacher | None, device: str) -> str:
    """What tells targets from others in config.json; those that a network gives on a GPU differ in their last bits."""
    if targets is None:
        return "labels"
    if isinstance(targets, Teacher):
        return targets.fingerprint()
    return sha256(targets.float().cpu().numpy().tobytes()).hexdigest() if device == "cpu" else "distributions"


def tree_recipe(recipe: str | Path | Recipe | None, images: int, **changes: Any) -> Recipe:
    """A recipe for soft trees with some fields changed; None leaves a field as it is.

    Args:
        recipe: name, file or Recipe; None for `TREE_RECIPE`, with smaller batches for few images: about a hundred steps an
            epoch, or batches of 32.
        images: training images.
        **changes: fields that differ.

    Raises:
        UserError: no such recipe or field, or one that mixes targets or clips gradients.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    if recipe is None:
        found = TREE_RECIPE.replace(batch_size=min(TREE_RECIPE.batch_size, max(32, images // 100)))
    else:
        found = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if "epochs" in given:
        found = found.with_epochs(given.pop("epochs"))
    found = found.replace(**given)
    for name in ("mixup", "distillation"):
        value = getattr(found, name)
        require(value == 0, f"{name} of a soft tree's recipe must be 0, got {value}: its targets are soft already")
    clip = found.clip_grad_norm
    require(
        clip is None, f"clip_grad_norm of a soft tree's recipe must be null, got {clip}: it would tie trees together"
    )
    return found


def checked_classes(dataset: Dataset) -> None:
    """Refuse data that leave nothing to decide.

    Raises:
        UserError: fewer than two classes, or training images of one class only.
    """
    there = len(torch.unique(dataset.train.labels))
    require(
        dataset.num_classes >= 2 and there >= 2,
        f"a tree needs images of at least 2 classes, {dataset.name} has training images of {min(there, dataset.num_classes)}",
    )


class SoftLabelled:
    """A source whose targets are distributions over the classes instead of labels; see `recipes.sources.Source`."""

    def __init__(self, source: Source, targets: Tensor) -> None:
        """Put targets beside images.

        Args:
            source: n images.
            targets: `(n, K)` float32, rows sum to 1, in the source's order.

        Raises:
            UserError: another number of targets.
        """
        require(
            targets.ndim == 2 and len(targets) == len(source),
            f"{len(source)} images need a row of targets each, got {tuple(targets.shape)}",
        )
        self._source, self._targets = source, targets
        places = torch.arange(len(source))
        self._places = TensorSource(torch.zeros(len(source), 1, 1, 1, dtype=torch.uint8), places, mean=[0.0], std=[1.0])

    def __len__(self) -> int:
        return len(self._source)

    @property
    def labels(self) -> Tensor:
        """`(n,)` int64, the labels that there are besides."""
        return self._source.labels

    def subset(self, indices: npt.NDArray[np.int64]) -> "SoftLabelled":
        """See `Source.subset`."""
        return SoftLabelled(self._source.subset(indices), self._targets[torch.from_numpy(np.asarray(indices))])

    def of_classes(self, classes: Sequence[int]) -> "SoftLabelled":
        """Refused: the targets are over all classes.

        Raises:
            UserError: always.
        """
        raise UserError("soft labels are over all classes; choose classes before they are made")

    def normalise(self, pixels: Tensor) -> Tensor:
        """See `Source.normalise`."""
        return self._source.normalise(pixels)

    def pixels(self, images: Tensor) -> Tensor:
        """See `Source.pixels`."""
        return self._source.pixels(images)

    def batches(
        self,
        batch_size: int,
        *,
        resolution: int,
        rng: np.random.Generator | None = None,
        augment: bool = False,
        auto_augment: bool = False,
        drop_last: bool = False,
        part: tuple[int, int] = (0, 1),
        start: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `Source.batches`, with targets `(b, K)` for labels.

        Every source draws the order first, so that a copy of the generator gives the places of the images.
        """
        order = copy.deepcopy(rng)
        images = self._source.batches(
            batch_size, resolution=resolution, rng=rng, augment=augment, auto_augment=auto_augment, drop_last=drop_last,
            part=part, start=start,
        )  # fmt: skip
        places = self._places.batches(
            batch_size, resolution=1, rng=order, drop_last=drop_last, part=part, start=start
        )  # fmt: skip
        for (shown, labels), (_, chosen) in zip(images, places, strict=True):
            assert torch.equal(labels, self.labels[chosen]), "a source draws its order first"
            yield shown, self._targets[chosen]


def _best(trees: SoftDecisionTrees, dataset: Dataset, device: torch.device) -> TrainedTree:
    """The tree that does best on the training images, and how it does on the test images."""
    train, side = dataset.train, dataset.resolution
    correct = sum(
        (trees.predictions(images.to(device)) == labels.to(device)[:, None]).sum(0)
        for images, labels in train.batches(512, resolution=side)
    )
    assert isinstance(correct, Tensor)
    tree = trees.tree(int(correct.argmax())).to(device).eval()
    outputs, labels = network_outputs(tree, dataset.test, resolution=side, device=device)
    predicted = outputs.argmax(1)
    right, loss = int((predicted == labels).sum()), float(functional.cross_entropy(outputs, labels))
    mixed = evaluate(_Mixture(tree), dataset.test, resolution=side, device=device)
    return TrainedTree(
        tree=tree.cpu(), evaluation=Evaluation(correct=right, total=len(labels), loss=loss), mixed=mixed,
        predicted=predicted, training_percent=tuple(100 * count / len(train) for count in correct.tolist()),
    )  # fmt: skip


class _Mixture(nn.Module):
    """A tree that predicts by all its leaves."""

    def __init__(self, tree: SoftDecisionTree) -> None:
        super().__init__()
        self.tree = tree

    def forward(self, images: Tensor) -> Tensor:
        return self.tree.mixture(images)


def _save(folder: Path, trained: TrainedTree, dataset: Dataset, learned: str) -> None:
    """tree.pt, result.json and page.html."""
    tree, evaluation = trained.tree, trained.evaluation
    tree.save(
        folder / TREE, data=dataset.name, class_names=list(dataset.class_names), resolution=dataset.resolution,
        in_channels=dataset.in_channels,
    )  # fmt: skip
    write_json(folder / RESULT, tree_numbers(trained))
    facts = {
        "depth": str(tree.depth),
        "leaves": str(2**tree.depth),
        "test images": f"{evaluation.accuracy:.2f} % ± {evaluation.standard_error:.2f}",
    }
    title = f"Soft decision tree on {dataset.name}, from {learned}"
    write_tree_page(folder / PAGE, tree, dataset, title=title, facts=facts)


def tree_numbers(trained: TrainedTree) -> dict[str, Any]:
    """Plain values of result.json."""
    return {
        **numbers(trained.evaluation),
        "mixed_accuracy": trained.mixed.accuracy,
        "training_accuracies": list(trained.training_percent),
    }


def numbers(evaluation: Evaluation) -> dict[str, float]:
    """Plain values of an evaluation."""
    return {
        "accuracy": evaluation.accuracy,
        "standard_error": evaluation.standard_error,
        "correct": evaluation.correct,
        "total": evaluation.total,
        "loss": evaluation.loss,
    }
