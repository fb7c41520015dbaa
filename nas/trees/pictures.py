"""Images for the page of a tree: a few of each class, and some whose decisions are worth a look."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nas.reporting.svg import shortened
from nas.trees.analyses import PathEntropies, path_entropies
from nas.trees.hierarchy import Ints
from nas.trees.nbdt import NBDT
from nas.trees.page import DecidedImage, png
from recipes.datasets import Dataset
from recipes.pixels import resize_images
from recipes.sources import Source
from search_spaces.serialisation import require

THUMBNAILS = 4  # of each class by default
MOST = 1000  # thumbnails on a page: at 32 pixels some 2 MB of photographs, 0.7 MB of grey images
SMALL, LARGE = 32, 96  # pixels: thumbnails, and images whose decisions are shown
EACH = 4  # images right, wrong and ambiguous whose decisions are shown
QUALITY = 85  # of JPEG
CHANNELS = (1, 3)  # of images that can be shown
SHEET, GAP = 2000, 4  # images on a contact sheet, pixels between them


@dataclass(frozen=True, slots=True)
class PageImages:
    """What `nas.trees.page.hierarchy_page` takes.

    Attributes:
        thumbnails: PNG or JPEG files by class.
        decisions: images with their way.
    """

    thumbnails: dict[int, list[bytes]]
    decisions: list[DecidedImage]


def page_images(
    model: NBDT,
    dataset: Dataset,
    logits: Tensor,
    labels: Tensor,
    *,
    resolution: int,
    thumbnails: int = THUMBNAILS,
    device: torch.device | str = "cpu",
) -> PageImages:
    """The first test images of each class, and the decisions of a dozen others.

    Four that are right, four that are wrong, of the surest of each class first; and the four with the highest path entropy
    (`path_entropy`) among the rest.

    Args:
        model: the tree, on ``device``.
        dataset: its data.
        logits: `(n, K)` of the network for the test images.
        labels: `(n,)`.
        resolution: side in pixels at which images go through the network.
        thumbnails: of each class; at most 1000 in all, so 4 up to 250 classes, 1 up to 1000, then none. 0: no images at all,
            decisions without their picture.
        device: where the model is.
    """
    chosen = worth_a_look(path_entropies(model.hierarchy, logits), labels.numpy())
    indices = np.array([index for index, _ in chosen], dtype=np.int64)
    images, _ = next(dataset.test.subset(indices).batches(len(indices), resolution=resolution))
    decisions = model.decisions(images.to(device))
    shown = thumbnails > 0 and dataset.in_channels in CHANNELS
    files = pictures(dataset.test.subset(indices), dataset.resolution, LARGE) if shown else [None] * len(indices)
    decided = [
        DecidedImage(decision=decision, title=title, picture=picture, label=int(labels[index]))
        for (index, title), decision, picture in zip(
            _titled(chosen, labels, dataset.class_names), decisions, files, strict=True
        )
    ]
    return PageImages(class_thumbnails(dataset, thumbnails) if shown else {}, decided)


def class_thumbnails(dataset: Dataset, count: int, most: int = MOST) -> dict[int, list[bytes]]:
    """The first test images of each class as files, by class.

    Args:
        dataset: of grey or colour images.
        count: images of each class.
        most: images in all.
    """
    each = min(count, most // dataset.num_classes)
    labels = dataset.test.labels.numpy()
    order = np.argsort(labels, kind="stable")
    start = np.searchsorted(labels[order], labels[order])  # where the class of each begins
    indices = order[np.arange(len(order)) - start < each]
    if not len(indices):
        return {}
    found: dict[int, list[bytes]] = {}
    files = pictures(dataset.test.subset(indices), dataset.resolution, SMALL)
    for leaf, file in zip(labels[indices].tolist(), files, strict=True):
        found.setdefault(leaf, []).append(file)
    return found


def pictures(source: Source, resolution: int, largest: int) -> list[bytes]:
    """Images as files: PNG for grey ones, JPEG for colour, as they were before they were normalised.

    Args:
        source: the images, grey or in colour.
        resolution: side in pixels at which to ask for them; their own, so that nothing is resized twice.
        largest: side in pixels of a file; smaller images stay as they are.
    """
    require(len(source) > 0, "there are no images to show")
    files = []
    for images, _ in source.batches(64, resolution=resolution):
        pixels = source.pixels(images)
        pixels = resize_images(pixels, largest) if resolution > largest else pixels
        files += [_file(one) for one in pixels.numpy()]
    return files


def worth_a_look(found: PathEntropies, labels: Ints, each: int = EACH) -> list[tuple[int, str]]:
    """Numbers of images and what they stand for: ``right``, ``wrong`` or ``ambiguous``.

    Right and wrong ones are the surest (p(k), Eq. 5.1) of different classes as long as there are such; ambiguous ones have
    the highest path entropy of the rest.

    Args:
        found: of all images.
        labels: `(n,)`.
        each: how many of each kind at most.
    """
    right = found.predicted == labels
    sure = np.lexsort((np.arange(len(labels)), -found.probability))
    chosen = [
        (index, kind)
        for kind, those in (("right", right), ("wrong", ~right))
        for index in _of_different_classes(sure[those[sure]], labels, each)
    ]
    taken = {index for index, _ in chosen}
    unsure = np.lexsort((np.arange(len(labels)), -found.path_entropy))
    rest = [index for index in unsure[: each + len(taken)].tolist() if index not in taken]
    return [*chosen, *((index, "ambiguous") for index in rest[:each] if found.path_entropy[index] > 0)]


def _of_different_classes(order: Ints, labels: Ints, count: int) -> list[int]:
    """The first images of an order, no class for the second time before every class was there once."""
    kinds = labels[order]
    _, first = np.unique(kinds, return_index=True)
    again = np.ones(len(order), dtype=bool)
    again[first] = False
    return [int(index) for index in order[np.argsort(again, kind="stable")][:count]]


def _titled(chosen: Sequence[tuple[int, str]], labels: Tensor, names: Sequence[str]) -> list[tuple[int, str]]:
    return [(index, f"{kind}: image {index}, {shortened(names[int(labels[index])], 40)}") for index, kind in chosen]


def _file(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    """`(h, w, 1)` or `(h, w, 3)`."""
    if pixels.shape[2] == 1:
        return png(pixels)
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=QUALITY)
    return file.getvalue()


def contact_sheet(source: Source, indices: Ints, columns: int, resolution: int) -> bytes:
    """Images in rows as one PNG, white between them; small ones are enlarged by a whole number.

    Args:
        source: grey or colour images.
        indices: `(n,)`, which of them, row by row.
        columns: images in a row.
        resolution: side in pixels at which to ask for them.

    Raises:
        UserError: no images, more than 2,000, or neither grey nor in colour.
    """
    require(0 < len(indices) <= SHEET, f"a sheet holds 1..{SHEET} images, got {len(indices)}")
    different, places = np.unique(indices, return_inverse=True)
    parts = [source.pixels(images) for images, _ in source.subset(different).batches(64, resolution=resolution)]
    tiles = torch.cat(parts)
    channels = tiles.shape[3]
    require(channels in CHANNELS, f"images have {channels} channels; grey or colour ones can be shown")
    tiles = resize_images(tiles, LARGE) if resolution > LARGE else tiles
    times = LARGE // tiles.shape[1]
    large = tiles.numpy()[places].repeat(times, axis=1).repeat(times, axis=2)
    rows, side, gap = -(-len(large) // columns), large.shape[1], GAP
    sheet = np.full((rows * columns, side + gap, side + gap, channels), 255, dtype=np.uint8)
    sheet[: len(large), :side, :side] = large
    grid = sheet.reshape(rows, columns, side + gap, side + gap, channels).swapaxes(1, 2)
    return png(np.ascontiguousarray(grid.reshape(rows * (side + gap), columns * (side + gap), channels)))
