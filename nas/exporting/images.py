"""Real images: to compare outputs on, to calibrate int8 with, to measure accuracy on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nas.exporting.source import ExportSource
from recipes.datasets import DIGITS_MEAN, DIGITS_STD, DOWNLOADS, FOLDER_PREFIX, Dataset, load_dataset
from recipes.pixels import IMAGENET_MEAN, IMAGENET_STD, resize_images
from recipes.sources import Source
from recipes.tensor_source import TensorSource
from search_spaces.errors import UserError
from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import require

GREY, COLOUR = 1, 3
SMALLEST_CROP = 160  # pixels of the photographs, which are 427 high


@dataclass(frozen=True, slots=True)
class Images:
    """Real images `(n, c, r, r)` float32, contiguous and normalised, and what they are in words."""

    pixels: Tensor
    words: str


def normalisation(data: str) -> tuple[Sequence[float], Sequence[float]] | None:
    """Mean and standard deviation of each channel, of pixels in [0, 1]; None for a data set that is not known by name."""
    if data == "digits":
        return (DIGITS_MEAN,), (DIGITS_STD,)
    if data in DOWNLOADS:
        return DOWNLOADS[data].mean, DOWNLOADS[data].std
    return (IMAGENET_MEAN, IMAGENET_STD) if data.startswith(FOLDER_PREFIX) else None


def find_dataset(
    source: ExportSource, data: str | Dataset | None, data_dir: str | Path | None, *, needed: bool = False
) -> tuple[Dataset | None, str]:
    """The data set that was asked for, else the one that the network was trained on.

    Args:
        source: the network.
        data: asked for, by name or loaded.
        data_dir: folder of downloaded sets.
        needed: an error where there is none.

    Returns:
        The data set, or None and why there is none, in words.

    Raises:
        UserError: it does not fit the network; or it cannot be loaded and was asked for or is needed.
    """
    name = source.data if data is None else data
    if name is None:
        require(not needed, "int8 needs images to calibrate with: give --data")
        return None, ""
    try:
        dataset = name if isinstance(name, Dataset) else load_dataset(name, data_dir)
        require(
            dataset.in_channels == source.in_channels,
            f"{dataset.name} has images of {dataset.in_channels} channels, the network takes {source.in_channels}",
        )
    except UserError as error:
        if data is not None:
            raise
        if needed:
            raise UserError(f"int8 needs images to calibrate with: {error}; or give --data") from error
        return None, f"; {name} could not be loaded"
    return dataset, ""


def comparison_images(source: ExportSource, dataset: Dataset | None, count: int, note: str = "") -> Images:
    """Images of the network's size: test images, else scikit-learn's photographs or, for grey images, its digits.

    Args:
        source: the network.
        dataset: whose test images to take, evenly spaced.
        count: n; images come again where there are fewer.
        note: added to the words.
    """
    if dataset is None and source.in_channels == GREY:
        dataset = load_dataset("digits")
    if dataset is None:
        return Images(_photographs(source, count), f"{count} crops of scikit-learn's two photographs{note}")
    places = np.linspace(0, len(dataset.test) - 1, min(count, len(dataset.test))).astype(np.int64)
    pixels = next(_contiguous(dataset.test.subset(np.resize(places, count)), count, source.resolution))
    return Images(pixels, f"{count} test images of {dataset.name}{note}")


def calibration_batches(source: ExportSource, dataset: Dataset, count: int, batch: int) -> Iterator[Tensor]:
    """Training images without augmentation, the same choice always, in whole batches; the last is filled up with its first.

    Args:
        source: the network.
        dataset: whose training images to take.
        count: images to choose.
        batch: images at a time.

    Returns:
        Iterator over tensors `(batch, c, r, r)` float32.

    Raises:
        UserError: the set has fewer images.
    """
    have = len(dataset.train)
    require(
        1 <= count <= have,
        f"calibration images must be in 1..{have}, the training images of {dataset.name}; got {count}",
    )
    chosen = np.sort(numpy_rng(0, "calibration").permutation(have)[:count])
    whole = np.concatenate([chosen, np.resize(chosen, -count % batch)])
    return _contiguous(dataset.train.subset(whole), batch, source.resolution)


def _contiguous(images: Source, batch: int, resolution: int) -> Iterator[Tensor]:
    return (pixels.contiguous() for pixels, _ in images.batches(batch, resolution=resolution))


def _photographs(source: ExportSource, count: int) -> Tensor:
    """Square crops of the photographs that come with scikit-learn, resized, with ImageNet's normalisation.

    Networks of other than three channels see red, green and blue in turn.
    """
    from sklearn.datasets import load_sample_images

    rng = numpy_rng(0, "crops of photographs")
    photographs = load_sample_images().images  # two of (427, 640, 3) uint8
    crops = []
    for index in range(count):
        photograph = torch.from_numpy(np.array(photographs[index % len(photographs)]))
        height, width = photograph.shape[:2]
        side = int(rng.integers(SMALLEST_CROP, min(height, width) + 1))
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        crops.append(resize_images(photograph[None, top : top + side, left : left + side], source.resolution))
    channels = torch.arange(source.in_channels) % COLOUR
    images = TensorSource(
        torch.cat(crops)[..., channels],
        torch.zeros(count, dtype=torch.int64),
        mean=[IMAGENET_MEAN[channel] for channel in channels],
        std=[IMAGENET_STD[channel] for channel in channels],
    )
    return next(_contiguous(images, count, source.resolution))
