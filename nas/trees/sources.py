"""A trained classifier with its data, by name: what trees over it and analyses of its insides start from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nas.designs import Design
from nas.exporting.source import load_source
from nas.loading import TrainedModel, trained_folder
from recipes.datasets import Dataset, load_dataset
from recipes.evaluation import evaluation_mode
from recipes.trainer import checked_device
from search_spaces.architecture import MAX_RESOLUTION
from search_spaces.errors import UserError, first_line
from search_spaces.serialisation import require


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained network and its data.

    Attributes:
        design: what it is; None for a module that was given as one.
        network: images to logits `(b, K)`, in eval mode, on its device.
        dataset: of its K classes.
        resolution: side of the images in pixels.
    """

    design: Design | None
    network: nn.Module
    dataset: Dataset
    resolution: int


def load_classifier(
    model: str | Path | TrainedModel | nn.Module,
    data: str | Dataset | None = None,
    *,
    pretrained: str | Path | None = None,
    resolution: int | None = None,
    data_dir: str | Path | None = None,
    device: str = "cpu",
) -> Classifier:
    """A network with weights and the data of its classes, checked to fit together.

    Args:
        model: run folder of `nas train` or `nas demo`, a model.pt, a network by name with ``pretrained``, or a module.
        data: name of a data set, or a Dataset; default the one that the network was trained on.
        pretrained: weights of a network given by name.
        resolution: side of the images in pixels; default that of training, of the data for a module.
        data_dir: where data sets are.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        UserError: nothing of that name, no weights, images or classes that do not fit, a network that is no classifier.
    """
    where = checked_device(device)
    design: Design | None = None
    if isinstance(model, nn.Module):
        require(data is not None, "a module needs data: the name of a data set, or a Dataset")
        dataset = _dataset(data, data_dir)
        network, side = model, dataset.resolution
    elif pretrained is not None:
        require(data is not None, "a network given by name needs data")
        dataset = _dataset(data, data_dir)
        source = load_source(
            str(model), pretrained=pretrained, num_classes=dataset.num_classes, in_channels=dataset.in_channels
        )
        design, network, side = source.design, source.network, source.resolution
    else:
        source = load_source(model if isinstance(model, TrainedModel) else _folder(model))
        require(not source.fresh, f"{model} has no trained weights; give --pretrained, or a run folder of nas train")
        require(data is not None or source.data is not None, f"{model} does not say what it was trained on; give data")
        dataset = _dataset(data if data is not None else source.data, data_dir)
        has, wanted = (source.num_classes, source.in_channels), (dataset.num_classes, dataset.in_channels)
        require(
            has == wanted,
            f"the network has {has[0]} classes and {has[1]} channels, {dataset.name} has {wanted[0]} and {wanted[1]}",
        )
        require_same_classes(source.class_names or dataset.class_names, dataset)
        design, network, side = source.design, source.network, source.resolution
    side = side if resolution is None else resolution
    require(1 <= side <= MAX_RESOLUTION, f"resolution must be in 1..{MAX_RESOLUTION}, got {side}")
    network = network.to(where).eval()
    _check_outputs(network, dataset, side, where)
    return Classifier(design=design, network=network, dataset=dataset, resolution=side)


def require_same_classes(trained_on: Sequence[str], dataset: Dataset) -> None:
    """Refuse data of other classes than a network's, or in another order: names would stand at the wrong outputs.

    Args:
        trained_on: names of the network's classes, in the order of its outputs.
        dataset: whose classes they must be.

    Raises:
        UserError: their number, names or order differ.
    """
    has, given = len(trained_on), len(dataset.class_names)
    require(has == given, f"the network has {has} classes, {dataset.name} has {given}")
    for output, (name, other) in enumerate(zip(trained_on, dataset.class_names, strict=True)):
        require(
            name == other,
            f"output {output} of the network was trained for class {name!r}, class {output} of {dataset.name} is {other!r}",
        )


def _dataset(data: str | Dataset | None, data_dir: str | Path | None) -> Dataset:
    assert data is not None, "checked by the caller"
    return data if isinstance(data, Dataset) else load_dataset(data, data_dir)


def _folder(model: str | Path) -> str:
    folder = trained_folder(model)
    return str(folder) if folder.exists() else str(model)


def _check_outputs(network: nn.Module, dataset: Dataset, resolution: int, device: torch.device) -> None:
    """Refuse a network that gives anything but a score for each of two or more classes, regressions for one."""
    for name, source in (("training", dataset.train), ("test", dataset.test)):
        require(len(source) > 0, f"{dataset.name} has no {name} images")
        require(
            bool((source.labels != source.labels[0]).any()), f"the {name} images of {dataset.name} are all of one class"
        )
    images, _ = next(dataset.test.subset(np.arange(1)).batches(1, resolution=resolution))  # no others are decoded
    with evaluation_mode(network), torch.no_grad():
        try:
            out = network(images.to(device))
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            shape = tuple(images.shape[1:])
            raise UserError(f"the network does not take images of shape {shape}: {first_line(error)}") from error
    given = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
    require(
        isinstance(out, torch.Tensor) and out.ndim == 2 and out.shape[1] == dataset.num_classes >= 2,
        f"a classifier is needed, one output for each of the {dataset.num_classes} classes; for one image the network"
        f" gives {given}",
    )
