"""What a network says of images, kept for analyses: ``nas.tree_outputs``."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from nas.loading import TrainedModel
from nas.trees.hierarchy import Hierarchy
from nas.trees.nbdt import NBDT
from nas.trees.wrapping import load_tree
from recipes.datasets import Dataset, load_dataset
from recipes.evaluation import network_outputs
from recipes.sources import Source
from search_spaces.errors import closest
from search_spaces.serialisation import require

PARTS = ("test", "train")


@dataclass(frozen=True, kw_only=True)
class TreeOutputs:
    """A tree over a network, and the network's logits for the images of a data set.

    Attributes:
        model: the tree with soft inference, in eval mode.
        logits: `(n, K)`, on the CPU.
        labels: `(n,)` int64, places in ``class_names``.
        class_names: C names: the tree's classes, or others for images of unseen classes.
        source: the n images.
        resolution: side in pixels at which they went through the network.
    """

    model: NBDT
    logits: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    source: Source
    resolution: int

    @property
    def hierarchy(self) -> Hierarchy:
        """The tree, with names."""
        return self.model.hierarchy


def tree_outputs(
    model: str | Path | TrainedModel | nn.Module,
    data: str | Dataset | None = None,
    *,
    unseen: str | Dataset | None = None,
    part: str = "test",
    tree: str | Path | Hierarchy | None = None,
    names: bool = True,
    head: str | None = None,
    pretrained: str | Path | None = None,
    resolution: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    device: str = "cpu",
) -> TreeOutputs:
    """Run images through a network with a tree, once for all analyses.

    Args:
        model: as `nas.nbdt` takes.
        data: as `nas.nbdt` takes: the data of the network's classes.
        unseen: images of other classes to run instead, prepared as ``data`` is (size and normalisation).
        part: ``test`` or ``train``: which images of the data set.
        tree: as `nas.nbdt` takes.
        names: name the inner nodes by WordNet.
        head: as `nas.nbdt` takes.
        pretrained: weights of a network given by name.
        resolution: side of the images in pixels; default that of training.
        seed: as `nas.nbdt` takes.
        data_dir: where data sets are.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        UserError: anything wrong with the input, in one line.
    """
    require(part in PARTS, f"unknown part {part!r}{closest(part, PARTS)}")
    found = load_tree(
        model,
        data,
        tree=tree,
        names=names,
        head=head,
        pretrained=pretrained,
        resolution=resolution,
        seed=seed,
        data_dir=data_dir,
        device=device,
    )
    images = found.dataset
    if unseen is not None:
        images = unseen if isinstance(unseen, Dataset) else load_dataset(unseen, data_dir)
        has, wanted = images.in_channels, found.dataset.in_channels
        require(has == wanted, f"images of {images.name} have {has} channels, the network takes {wanted}")
    source = images.test if part == "test" else images.train
    logits, labels = network_outputs(
        found.model.model,
        source,
        resolution=found.resolution,
        device=device,
        prepared_as=None if unseen is None else found.dataset.test,
    )
    return TreeOutputs(
        model=found.model, logits=logits, labels=labels, class_names=images.class_names, source=source,
        resolution=found.resolution,
    )  # fmt: skip
