"""``nas.nbdt``: a trained network becomes a decision tree, compared with the network on the test images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.loading import TrainedModel, trained_folder
from nas.trees.analyses import confusion, path_frequencies
from nas.trees.hierarchy import Hierarchy, Ints
from nas.trees.induced import METHODS, flat_hierarchy, model_hierarchy, random_hierarchy
from nas.trees.nbdt import NBDT
from nas.trees.page import hierarchy_page
from nas.trees.pictures import THUMBNAILS, PageImages, page_images
from nas.trees.rules import RULES
from nas.trees.sources import load_classifier
from nas.trees.split_hierarchies import SPLIT_METHODS, model_split_hierarchy
from nas.trees.wordnet import class_synsets, name_nodes, read_synsets, wordnet_hierarchy
from recipes.datasets import Dataset
from recipes.evaluation import Evaluation, network_outputs
from recipes.sources import Source
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
    synsets: str | Path | Mapping[str, str | None] | None = None,
    head: str | None = None,
    pretrained: str | Path | None = None,
    resolution: int | None = None,
    out: str | Path | None = None,
    thumbnails: int = THUMBNAILS,
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
        synsets: of classes whose names do not tell: a file as `read_synsets` takes, or by class.
        head: name of the last layer, where `find_head` needs it.
        pretrained: weights of a network given by name.
        resolution: side of the images in pixels; default that of training.
        out: folder for hierarchy.json, nbdt.json and page.html; None writes nothing.
        thumbnails: test images of each class on the page, fewer where there are many classes (`page_images`); 0: no images.
        seed: of a random tree, and of trees from splits.
        data_dir: where data sets are.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        UserError: anything wrong with the input, in one line.
    """
    require(thumbnails >= 0, f"thumbnails must be >= 0, got {thumbnails}")
    found = load_tree(
        model,
        data,
        tree=tree,
        names=names,
        synsets=synsets,
        head=head,
        pretrained=pretrained,
        resolution=resolution,
        seed=seed,
        data_dir=data_dir,
        device=device,
    )
    wrapped, dataset, side = found.model, found.dataset, found.resolution
    logits, labels = network_outputs(wrapped.model, dataset.test, resolution=side, batch_size=BATCH, device=device)
    evaluations, predictions = compare_outputs(wrapped.hierarchy, logits, labels)
    result = NBDTResult(
        model=wrapped, evaluations=evaluations, predictions=predictions, out=None if out is None else Path(out)
    )
    if result.out is not None:
        shown = page_images(wrapped, dataset, logits, labels, resolution=side, thumbnails=thumbnails, device=device)
        _write(result.out, result, dataset.name, shown)
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedTree:
    """A network with a tree, and the data of its classes.

    Attributes:
        model: the tree with soft inference, in eval mode, on its device.
        dataset: whose classes are the tree's.
        resolution: side of the images in pixels.
    """

    model: NBDT
    dataset: Dataset
    resolution: int


def load_tree(
    model: str | Path | TrainedModel | nn.Module,
    data: str | Dataset | None = None,
    *,
    tree: str | Path | Hierarchy | None = None,
    names: bool = True,
    synsets: str | Path | Mapping[str, str | None] | None = None,
    head: str | None = None,
    pretrained: str | Path | None = None,
    resolution: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    device: str = "cpu",
) -> LoadedTree:
    """The tree that `nbdt` evaluates; arguments and errors are its, and those of `load_classifier`."""
    found = load_classifier(model, data, pretrained=pretrained, resolution=resolution, data_dir=data_dir, device=device)
    given = synsets_of(synsets, found.dataset.class_names)
    if tree is None:
        stored = None if isinstance(model, (nn.Module, TrainedModel)) else trained_folder(model) / TREE
        tree = stored if stored is not None and stored.is_file() else METHODS[0]
    hierarchy = tree_of(
        tree, found.dataset.class_names, found.network, synsets=given, head=head, seed=seed,
        source=found.dataset.train, resolution=found.resolution, device=device,
    )  # fmt: skip
    if names and not any(hierarchy.names):
        hierarchy = named(hierarchy, given)
    wrapped = NBDT(found.network, hierarchy).eval()
    return LoadedTree(model=wrapped, dataset=found.dataset, resolution=found.resolution)


def tree_of(
    tree: str | Path | Hierarchy,
    classes: Sequence[str],
    network: nn.Module | None = None,
    *,
    synsets: Mapping[str, str | None] | None = None,
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
            ``flat``; a hierarchy file, or a folder that holds one; or a Hierarchy.
        classes: names, in the order of the classifier's outputs.
        network: whose weights or features give the tree.
        synsets: of classes whose names do not tell, for ``wordnet``.
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
        return wordnet_hierarchy(classes, class_synsets(classes, synsets))
    if kind == "random":
        return random_hierarchy(classes, seed)
    if kind == "flat":
        return flat_hierarchy(classes)
    path = Path(kind) / TREE if Path(kind).is_dir() else Path(kind)
    require(path.is_file(), f"no tree file {kind!r}, and no kind of tree{closest(kind, KINDS)}")
    return Hierarchy.load(path, classes)


def named(hierarchy: Hierarchy, synsets: Mapping[str, str | None] | None = None) -> Hierarchy:
    """The tree with inner nodes named by WordNet, as far as it has its classes; ``synsets`` of those that do not tell."""
    found = class_synsets(hierarchy.classes, synsets)
    return name_nodes(hierarchy, found) if any(found) else hierarchy


def synsets_of(
    given: str | Path | Mapping[str, str | None] | None, classes: Sequence[str]
) -> Mapping[str, str | None] | None:
    """Synsets by class, from a file where one is given."""
    return given if given is None or isinstance(given, Mapping) else read_synsets(given, classes)


def compare(
    model: NBDT, source: Source, *, resolution: int, batch_size: int = BATCH, device: torch.device | str = "cpu"
) -> tuple[dict[str, Evaluation], Ints]:
    """Accuracy of network, soft and hard inference from one pass over the images; see `compare_outputs`.

    Args:
        model: whose network and tree are compared; already on ``device``.
        source: what to evaluate on.
        resolution: side of the images in pixels.
        batch_size: images at a time.
        device: where to compute.

    Returns:
        As `compare_outputs`.

    Raises:
        UserError: the source is empty.
    """
    logits, labels = network_outputs(model.model, source, resolution=resolution, batch_size=batch_size, device=device)
    return compare_outputs(model.hierarchy, logits, labels)


def compare_outputs(hierarchy: Hierarchy, logits: Tensor, labels: Tensor) -> tuple[dict[str, Evaluation], Ints]:
    """Accuracy of network, soft and hard inference.

    The loss of hard inference is that of probabilities 0 and 1, about 10^4 for each image that it gets wrong.

    Args:
        hierarchy: the tree.
        logits: `(n, K)`, finite.
        labels: `(n,)`.

    Returns:
        Evaluations by name, and the predictions of soft inference as in `NBDTResult`.

    Raises:
        UserError: logits that are not finite.
    """
    broken = int((~logits.isfinite().all(1)).sum())
    require(broken == 0, f"the network's outputs for {broken} of {len(logits)} images are not finite numbers")
    rules: dict[str, nn.Module] = {
        NETWORK: nn.Identity(), SOFT: RULES["soft"](hierarchy), HARD: RULES["hard"](hierarchy),
    }  # fmt: skip
    correct, losses = dict.fromkeys(rules, 0), dict.fromkeys(rules, 0.0)
    predicted = torch.empty_like(labels)
    for start in range(0, len(logits), BATCH):
        part = slice(start, start + BATCH)
        for name, rule in rules.items():
            out: Tensor = rule(logits[part])
            correct[name] += int((out.argmax(1) == labels[part]).sum())
            losses[name] += float(functional.cross_entropy(out, labels[part], reduction="sum"))
            if name == SOFT:
                predicted[part] = out.argmax(1)
    n, leaves = len(logits), len(hierarchy.classes)
    evaluations = {name: Evaluation(correct=correct[name], total=n, loss=losses[name] / n) for name in rules}
    return evaluations, confusion(labels, predicted, leaves, leaves)


def default_out(model: str | Path) -> Path:
    """Where the tree of a trained network goes: the folder ``nbdt`` in its run folder."""
    path = trained_folder(model)
    require(
        path.exists(), f"{path} is no run folder of nas train; a network given by name needs --pretrained and --out"
    )
    return (path if path.is_dir() else path.parent) / FOLDER


def _write(folder: Path, result: NBDTResult, data: str, shown: PageImages) -> None:
    require(not folder.exists() or folder.is_dir(), f"{folder} is a file; a folder is needed")
    page = _page(result, data, shown)  # nothing is written before everything is there
    folder.mkdir(parents=True, exist_ok=True)
    result.hierarchy.save(folder / TREE)
    rows = {
        name: {"accuracy": e.accuracy, "standard_error": e.standard_error, "correct": e.correct, "total": e.total}
        for name, e in result.evaluations.items()
    }
    write_json(folder / RESULT, {"data": data, **rows})
    write_text_atomic(folder / PAGE, page)


def _page(result: NBDTResult, data: str, shown: PageImages) -> str:
    facts = {name: f"{e.accuracy:.2f} % ± {e.standard_error:.2f}" for name, e in result.evaluations.items()}
    return hierarchy_page(
        result.hierarchy,
        title=f"Decision tree over {data.rpartition('/')[2] or data}",  # of a folder its name: pages are passed on
        frequencies=path_frequencies(result.hierarchy, result.predictions),
        thumbnails=shown.thumbnails,
        decisions=shown.decisions,
        facts=facts,
    )
