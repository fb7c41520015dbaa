"""``nas.nbdt``: a trained network becomes a decision tree, compared with the network on the test images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.exporting.source import load_source
from nas.loading import MODEL, TrainedModel
from nas.trees.hierarchy import Hierarchy, Ints
from nas.trees.induced import METHODS, flat_hierarchy, model_hierarchy, random_hierarchy
from nas.trees.nbdt import NBDT
from nas.trees.page import hierarchy_page
from nas.trees.rules import RULES
from nas.trees.split_hierarchies import SPLIT_METHODS, model_split_hierarchy
from nas.trees.wordnet import class_synsets, name_nodes, wordnet_hierarchy
from recipes.datasets import Dataset, load_dataset
from recipes.evaluation import Evaluation, evaluation_mode
from recipes.sources import Source
from recipes.trainer import checked_device
from search_spaces.errors import UserError, closest
from search_spaces.serialisation import require, write_json, write_text_atomic

TREE, RESULT, PAGE, FOLDER = "hierarchy.json", "nbdt.json", "page.html", "nbdt"
NETWORK, SOFT, HARD = "NN", "NBDT-S", "NBDT-H"  # as in the thesis's tables
KINDS = (*METHODS, *SPLIT_METHODS, "wordnet", "random", "flat")
BATCH = 256


@dataclass(frozen=True, kw_only=True)
class NBDTResult:
    """A network as a tree.

    Attributes:
        model: the tree with soft inference, in eval mode.
        evaluations: of the network (``NN``), soft (``NBDT-S``) and hard inference (``NBDT-H``) on the test images.
        predictions: `(K, K)` int64: of the images of class i, how many soft inference took for class j.
        out: where hierarchy.json and nbdt.json are; None where nothing was written.
    """

    model: NBDT
    evaluations: Mapping[str, Evaluation]
    predictions: Ints
    out: Path | None

    @property
    def hierarchy(self) -> Hierarchy:
        """The tree, with names."""
        return self.model.hierarchy


def nbdt(
    model: str | Path | TrainedModel | nn.Module,
    data: str | Dataset | None = None,
    *,
    tree: str | Path | Hierarchy | None = None,
    names: bool = True,
    head: str | None = None,
    pretrained: str | Path | None = None,
    resolution: int | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    device: str = "cpu",
) -> NBDTResult:
    """Put a tree behind a trained network and evaluate both.

    Args:
        model: run folder of `nas train`, of `nas nbdt train` or of `nas demo`, a model.pt, a network by name with
            ``pretrained``, or a module that gives logits.
        data: name of a data set, or a Dataset; default the one that the network was trained on.
        tree: kind of tree (`tree_of`), a hierarchy file, or a Hierarchy; default the one that the network was trained with,
            ``unit-ward`` where there was none.
        names: name the inner nodes by WordNet where its nouns cover the classes.
        head: name of the last layer, where `find_head` needs it.
        pretrained: weights of a network given by name.
        resolution: side of the images in pixels; default that of training.
        out: folder for hierarchy.json, nbdt.json and page.html; None writes nothing.
        seed: of a random tree, and of trees from splits.
        data_dir: where data sets are.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        UserError: anything wrong with the input, in one line.
    """
    where = checked_device(device)
    if isinstance(model, nn.Module):
        require(data is not None, "a module needs data to be evaluated on")
        dataset = _dataset(data or "", data_dir)
        network, side = model.eval(), dataset.resolution
    else:
        network, dataset, side = _from_source(model, data, pretrained, data_dir)
    network = network.to(where)
    if tree is None:
        stored = None if isinstance(model, (nn.Module, TrainedModel)) else trained_folder(model) / TREE
        tree = stored if stored is not None and stored.is_file() else METHODS[0]
    hierarchy = tree_of(
        tree, dataset.class_names, network, head=head, seed=seed,
        source=dataset.train, resolution=resolution or side, device=where,
    )  # fmt: skip
    if names and not any(hierarchy.names):
        hierarchy = named(hierarchy)
    wrapped = NBDT(network, hierarchy).eval()
    evaluations, predictions = compare(wrapped, dataset.test, resolution=resolution or side, device=where)
    result = NBDTResult(
        model=wrapped, evaluations=evaluations, predictions=predictions, out=None if out is None else Path(out)
    )
    if result.out is not None:
        _write(result.out, result, dataset.name)
    return result


def tree_of(
    tree: str | Path | Hierarchy,
    classes: Sequence[str],
    network: nn.Module | None = None,
    *,
    head: str | None = None,
    seed: int = 0,
    source: Source | None = None,
    resolution: int | None = None,
    device: torch.device | str = "cpu",
) -> Hierarchy:
    """A tree over the classes.

    Args:
        tree: ``unit-ward``, ``unit-average`` or ``raw-ward`` (see `induced_hierarchy`) from the network's weights;
            ``info-gain`` or ``oc1`` (see `split_hierarchy`) from its features of training images; ``wordnet``, ``random``,
            ``flat``; a hierarchy file; or a Hierarchy.
        classes: names, in the order of the classifier's outputs.
        network: whose weights or features give the tree.
        head: name of its last layer, where `find_head` needs it.
        seed: of a random tree and of splits.
        source: training images.
        resolution: side of the images in pixels; needed with ``source``.
        device: where the network is.

    Raises:
        UserError: no such kind or file, or a tree whose leaves are not the classes.
    """
    if isinstance(tree, Hierarchy):
        require(
            len(tree.classes) == len(classes),
            f"the tree has {len(tree.classes)} leaves, the data {len(classes)} classes",
        )
        wrong = next((pair for pair in zip(tree.classes, classes, strict=True) if pair[0] != pair[1]), None)
        require(
            wrong is None,
            f"leaves of the tree and classes differ, first {wrong[0]!r} and {wrong[1]!r}" if wrong else "",
        )
        return tree
    kind = str(tree)
    if kind in METHODS:
        require(network is not None, f"a tree of kind {kind} needs a trained network")
        assert network is not None
        return model_hierarchy(network, classes, kind, head)
    if kind in SPLIT_METHODS:
        if network is None or source is None or resolution is None:
            raise UserError(f"a tree of kind {kind} needs a trained network and images; give nas nbdt's hierarchy file")
        return model_split_hierarchy(
            network, source, classes, kind, seed=seed, resolution=resolution, head=head, device=device
        )
    if kind == "wordnet":
        return wordnet_hierarchy(classes, class_synsets(classes))
    if kind == "random":
        return random_hierarchy(classes, seed)
    if kind == "flat":
        return flat_hierarchy(classes)
    require(Path(kind).exists(), f"no tree file {kind!r}, and no kind of tree{closest(kind, KINDS)}")
    return Hierarchy.load(kind, classes)


def named(hierarchy: Hierarchy) -> Hierarchy:
    """The tree with inner nodes named by WordNet, as far as it has its classes."""
    synsets = class_synsets(hierarchy.classes)
    return name_nodes(hierarchy, synsets) if any(synsets) else hierarchy


def compare(
    model: NBDT, source: Source, *, resolution: int, batch_size: int = BATCH, device: torch.device | str = "cpu"
) -> tuple[dict[str, Evaluation], Ints]:
    """Accuracy of network, soft and hard inference from one pass over the images.

    The loss of hard inference is that of probabilities 0 and 1, about 10^4 for each image that it gets wrong.

    Args:
        model: whose network and tree are compared; already on ``device``.
        source: what to evaluate on.
        resolution: side of the images in pixels.
        batch_size: images at a time.
        device: where to compute.

    Returns:
        Evaluations by name, and the predictions of soft inference as in `NBDTResult`.

    Raises:
        UserError: the source is empty.
    """
    require(len(source) > 0, "there is nothing to evaluate on: the source holds no images")
    rules: dict[str, nn.Module] = {
        NETWORK: nn.Identity(),
        SOFT: RULES["soft"](model.hierarchy).to(device),
        HARD: RULES["hard"](model.hierarchy).to(device),
    }
    correct, losses = dict.fromkeys(rules, 0), dict.fromkeys(rules, 0.0)
    classes = len(model.hierarchy.classes)
    predictions = np.zeros((classes, classes), dtype=np.int64)
    with evaluation_mode(model), torch.no_grad():
        for images, labels in source.batches(batch_size, resolution=resolution):
            labels = labels.to(device)
            logits: Tensor = model.model(images.to(device))
            for name, rule in rules.items():
                out: Tensor = rule(logits)
                correct[name] += int((out.argmax(1) == labels).sum())
                losses[name] += float(functional.cross_entropy(out, labels, reduction="sum"))
                if name == SOFT:
                    np.add.at(predictions, (labels.cpu().numpy(), out.argmax(1).cpu().numpy()), 1)
    total = len(source)
    evaluations = {name: Evaluation(correct=correct[name], total=total, loss=losses[name] / total) for name in rules}
    return evaluations, predictions


def path_frequencies(hierarchy: Hierarchy, predictions: Ints) -> Ints:
    """How many images of each class went through each node (thesis, Figure 5.11).

    Args:
        hierarchy: the tree.
        predictions: `(K, K)`, of the images of class i, how many ended in leaf j.

    Returns:
        `(K, nodes)`; at the root all of the class.
    """
    paths = hierarchy.paths
    frequencies = np.zeros((hierarchy.nodes, len(predictions)), dtype=np.int64)
    leaf, step = np.nonzero(paths >= 0)
    np.add.at(frequencies, paths[leaf, step], predictions.T[leaf])
    return frequencies.T


def trained_folder(model: str | Path) -> Path:
    """The folder that holds model.pt: the one given, or that of the training inside a `nas demo` folder."""
    path = Path(model)
    inside = path / "train"
    return inside if not (path / MODEL).is_file() and (inside / MODEL).is_file() else path


def default_out(model: str | Path) -> Path:
    """Where the tree of a trained network goes: the folder ``nbdt`` in its run folder."""
    path = trained_folder(model)
    require(
        path.exists(), f"{path} is no run folder of nas train; a network given by name needs --pretrained and --out"
    )
    return (path if path.is_dir() else path.parent) / FOLDER


def _dataset(data: str | Dataset, data_dir: str | Path | None) -> Dataset:
    return data if isinstance(data, Dataset) else load_dataset(data, data_dir)


def _from_source(
    model: str | Path | TrainedModel,
    data: str | Dataset | None,
    pretrained: str | Path | None,
    data_dir: str | Path | None,
) -> tuple[nn.Module, Dataset, int]:
    """Network, data and side of the images of a trained network, or of one by name with its weights."""
    if pretrained is not None:
        require(data is not None, "a network given by name needs data")
        dataset = _dataset(data or "", data_dir)
        found = load_source(
            str(model), pretrained=pretrained, num_classes=dataset.num_classes, in_channels=dataset.in_channels
        )
    else:
        found = load_source(model if isinstance(model, TrainedModel) else _text(model))
        require(
            not found.fresh, f"{model} has no trained weights; give them (pretrained), or a run folder of nas train"
        )
        require(data is not None or found.data is not None, f"{model} does not say what it was trained on; give data")
        dataset = _dataset(data or found.data or "", data_dir)
    has, wanted = (found.num_classes, found.in_channels), (dataset.num_classes, dataset.in_channels)
    require(
        has == wanted,
        f"the network has {has[0]} classes and {has[1]} channels, {dataset.name} has {wanted[0]} and {wanted[1]}",
    )
    return found.network, dataset, found.resolution


def _text(model: str | Path) -> str:
    folder = trained_folder(model)
    return str(folder) if folder.exists() else str(model)


def _write(folder: Path, result: NBDTResult, data: str) -> None:
    require(not folder.exists() or folder.is_dir(), f"{folder} is a file; a folder is needed")
    folder.mkdir(parents=True, exist_ok=True)
    result.hierarchy.save(folder / TREE)
    rows = {
        name: {"accuracy": e.accuracy, "standard_error": e.standard_error, "correct": e.correct, "total": e.total}
        for name, e in result.evaluations.items()
    }
    write_json(folder / RESULT, {"data": data, **rows})
    write_text_atomic(folder / PAGE, _page(result, data))


def _page(result: NBDTResult, data: str) -> str:
    facts = {name: f"{e.accuracy:.2f} % ± {e.standard_error:.2f}" for name, e in result.evaluations.items()}
    return hierarchy_page(
        result.hierarchy,
        title=f"Decision tree over {data}",
        frequencies=path_frequencies(result.hierarchy, result.predictions),
        facts=facts,
    )
