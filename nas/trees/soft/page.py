"""A soft decision tree as one HTML text: its filters, its leaves, and the ways of some images. No script, nothing fetched.

Orange pixels of a filter speak for going right where they are bright, blue ones for going left; each filter has its own scale.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nas.reporting.page import text
from nas.reporting.style import STYLE
from nas.reporting.svg import FAINT, FRAME, GRID, Figure, polyline, printable, shortened, words
from nas.trees.page import png
from nas.trees.soft.tree import SoftDecisionTree, TreePaths
from recipes.datasets import Dataset
from search_spaces.serialisation import require, write_text_atomic

PAGE = "page.html"
LEVELS = 8  # that are drawn; deeper trees are cut there, their leaves averaged
LEFT, RIGHT = (47, 126, 216), (217, 98, 43)  # colours of going left and right; those of charts
LARGEST, SMALLEST = 64, 20  # side of a filter in pixels
LEAF = 84  # width of a leaf in a small tree, in pixels
NARROW = 24  # the same in a large one
SMALL_TREES = 5  # levels of a small one
BARS = 44  # height of a leaf's bars
GAP = 30  # between two levels
STEP = 92  # width of a step of a way
MARGIN = 14
EACH = 3  # images that are right and wrong
NAME = 9  # characters of a class below a leaf

_MORE = (
    "figure{overflow-x:auto;margin:0 0 18px}figure svg{max-width:none}"
    "dl{display:flex;flex-wrap:wrap;gap:2px 20px;margin:0 0 14px}"
    "dl div{display:flex;gap:6px}dt{color:var(--faint)}dd{margin:0;font-weight:600}"
)
_LEGEND = (
    "Each picture is the filter of a decision: where its <b>orange</b> pixels are bright in an image the image goes right, "
    "where its <b>blue</b> ones are it goes left; each filter has its own scale. The thicker a line, the more training images "
    "go along it. Bars below are the leaves' distributions over the classes"
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownImage:
    """An image whose way is drawn.

    Attributes:
        title: what it is called.
        values: `(C, r, r)`, as the tree sees it.
        pixels: `(r, r, C)` uint8.
    """

    title: str
    values: Tensor
    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What figures are made of.

    Attributes:
        tree: the tree.
        names: of the classes.
        shape: (C, r, r) of an image.
        filters: data URI of every inner node that is drawn.
        through: `(I,)`, share of the training images that come to each inner node.
        leaves: `(2^levels, K)` and ``ends`` `(2^levels,)`: distributions at the lowest level drawn, shares of images.
        levels: that are drawn.
    """

    tree: SoftDecisionTree
    names: Sequence[str]
    shape: tuple[int, int, int]
    filters: list[str]
    through: npt.NDArray[np.float64]
    leaves: npt.NDArray[np.float64]
    ends: npt.NDArray[np.float64]
    levels: int

    @property
    def leaf_width(self) -> float:
        return LEAF if self.levels <= SMALL_TREES else NARROW

    @property
    def width(self) -> float:
        return 2 * MARGIN + self.leaf_width * float(2**self.levels)

    def side(self, level: int) -> float:
        """Of the filters at a level, in pixels."""
        return min(LARGEST, max(SMALLEST, self.leaf_width * float(2 ** (self.levels - level)) - 8))

    def top(self, level: int) -> float:
        return MARGIN + sum(self.side(above) + GAP for above in range(level))

    def centre(self, level: int, place: int) -> float:
        return MARGIN + self.leaf_width * float(2 ** (self.levels - level)) * (place + 0.5)


def write_tree_page(
    path: Path, tree: SoftDecisionTree, dataset: Dataset, *, title: str, facts: Mapping[str, str]
) -> None:
    """Write the page of a tree with the ways of some test images: the first ones of different classes, right and wrong.

    Args:
        path: of the file.
        tree: trained on the data, at its own resolution.
        dataset: whose classes are the tree's.
        title: of the page.
        facts: what to say above, by name.
    """
    images, labels = next(dataset.test.batches(min(1000, len(dataset.test)), resolution=dataset.resolution))
    predicted = tree(images).argmax(1)
    right = (predicted == labels).numpy()
    shown = []
    for kind, those in (("right", right), ("wrong", ~right)):
        places = np.flatnonzero(those)
        _, first = np.unique(labels.numpy()[places], return_index=True)
        for place in places[np.sort(first)][:EACH].tolist():
            name = shortened(dataset.class_names[int(labels[place])], 40)
            pixels = dataset.test.pixels(images[place : place + 1])[0].numpy()
            title_of = f"{kind}: test image {place}, {name}"
            shown.append(ShownImage(title=title_of, values=images[place], pixels=pixels))
    shape = (dataset.in_channels, dataset.resolution, dataset.resolution)
    page = soft_tree_page(tree, dataset.class_names, shape, title=title, images=shown, facts=facts)
    write_text_atomic(path, page)


def soft_tree_page(
    tree: SoftDecisionTree,
    class_names: Sequence[str],
    shape: tuple[int, int, int],
    *,
    title: str,
    images: Sequence[ShownImage] = (),
    facts: Mapping[str, str] | None = None,
) -> str:
    """The whole page.

    Args:
        tree: the tree.
        class_names: of its K classes.
        shape: (C, r, r) of an image; filters of other than 1 or 3 channels are shown as the sum over channels.
        title: of the page.
        images: whose ways are drawn.
        facts: what to say above, by name.

    Raises:
        UserError: names or a shape that are not the tree's.
    """
    require(len(class_names) == tree.classes, f"the tree has {tree.classes} classes, got {len(class_names)} names")
    values = shape[0] * shape[1] * shape[2]
    require(values == tree.inputs, f"the tree takes {tree.inputs} values an image, shape {shape} has {values}")
    drawn = _drawn(tree, class_names, shape)
    said = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in (facts or {}).items())
    cut = f" The upper {drawn.levels} of {tree.depth} levels are drawn." if drawn.levels < tree.depth else ""
    parts = [
        f"<section><h2>The tree</h2><p>{_LEGEND} ({text(', '.join(map(printable, class_names[:20])))}"
        f"{' …' if len(class_names) > 20 else ''}).{cut}</p>"
        f"<figure>{_tree_figure(drawn).inline()}</figure></section>"
    ]
    if images:
        paths = tree.path(torch.stack([image.values for image in images]))
        figures = "".join(
            f"<figure><figcaption>{text(image.title)}</figcaption>{_way(drawn, image, paths, index).inline()}</figure>"
            for index, image in enumerate(images)
        )
        parts.append(
            "<section><h2>Ways of images</h2><p>At every decision: the filter, and below it the filter times the image, whose "
            "sum decides; then the probability of the side taken, and the distribution of the leaf.</p>"
            f"{figures}</section>"
        )
    return (
        '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>'
        f'<meta name="color-scheme" content="light dark"/><title>{text(title)}</title><style>{STYLE}{_MORE}</style></head>'
        f'<body><a class="jump" href="#main">To the content</a><header><h1>{text(title)}</h1><dl>{said}</dl></header>'
        f'<main id="main">{"".join(parts)}</main></body></html>\n'
    )


def tree_figure(tree: SoftDecisionTree, class_names: Sequence[str], shape: tuple[int, int, int]) -> Figure:
    """The filters of all inner nodes and the leaves' distributions as a drawing.

    Args:
        tree: the tree; the upper 8 levels are drawn.
        class_names: of its K classes.
        shape: (C, r, r) of an image.
    """
    return _tree_figure(_drawn(tree, class_names, shape))


def way_figure(
    tree: SoftDecisionTree, class_names: Sequence[str], shape: tuple[int, int, int], image: ShownImage
) -> Figure:
    """The way of one image to its leaf as a drawing; arguments as `tree_figure`, and the image."""
    return _way(_drawn(tree, class_names, shape), image, tree.path(image.values[None]), 0)


def diverging(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Colours of numbers: white for 0, blue below, orange above, full at each picture's largest absolute value.

    Args:
        values: `(n, r, r)`.

    Returns:
        `(n, r, r, 3)` RGB.
    """
    largest = np.abs(values).max(axis=(1, 2), keepdims=True)
    strength = (values / np.where(largest > 0, largest, 1.0))[..., None]
    full = np.where(strength > 0, np.array(RIGHT, dtype=np.float64), np.array(LEFT, dtype=np.float64))
    coloured: npt.NDArray[np.float64] = 255 + np.abs(strength) * (full - 255)
    return np.rint(coloured).astype(np.uint8)


def _drawn(tree: SoftDecisionTree, names: Sequence[str], shape: tuple[int, int, int]) -> _Drawn:
    levels = min(tree.depth, LEVELS)
    inner = 2**levels - 1
    weights = tree.filters.weight.detach()[:inner].double().cpu().numpy().reshape(inner, *shape).sum(1)
    # The lowest inner nodes' averages give each leaf's share of the training images; all alike in an untrained tree.
    last = slice(2 ** (tree.depth - 1) - 1, None)
    through, right = (getattr(tree, name).detach().double().cpu() for name in ("through", "right"))
    ends = torch.stack((through[last] - right[last], right[last]), dim=1).flatten().clamp(min=0)
    ends = ends if float(ends.sum()) > 0 else torch.ones(2**tree.depth, dtype=torch.float64)
    ends = (ends / ends.sum()).view(2**levels, -1)
    weight = (ends + 1e-12) / (ends + 1e-12).sum(1, keepdim=True)
    leaves = tree.log_leaves().detach().double().exp().cpu().view(2**levels, -1, tree.classes)
    halves = [ends.sum(1).view(2**level, -1).sum(1) for level in range(levels)]
    return _Drawn(
        tree=tree,
        names=[printable(name) for name in names],
        shape=shape,
        filters=[_uri(png(picture)) for picture in diverging(weights)],
        through=torch.cat(halves).numpy(),
        leaves=(weight[:, :, None] * leaves).sum(1).numpy(),
        ends=ends.sum(1).numpy(),
        levels=levels,
    )


def _tree_figure(drawn: _Drawn) -> Figure:
    """All levels from the root down, and the leaves' bars."""
    lines, pictures = [], []
    for level in range(drawn.levels):
        side, top, below = drawn.side(level), drawn.top(level), drawn.top(level + 1)
        shares = drawn.ends if level + 1 == drawn.levels else drawn.through[2 ** (level + 1) - 1 : 2 ** (level + 2) - 1]
        for place in range(2**level):
            node, x = 2**level - 1 + place, drawn.centre(level, place)
            for child in (2 * place, 2 * place + 1):
                end = (drawn.centre(level + 1, child), below)
                lines.append(polyline([(x, top + side), end], FRAME, thickness=0.5 + 6 * float(shares[child])))
            said = f"decision {node}: {100 * drawn.through[node]:.1f} % of the training images come here"
            pictures.append(_image(drawn.filters[node], x - side / 2, top, side, said))
    bottom = drawn.top(drawn.levels)
    for place in range(2**drawn.levels):
        left = drawn.centre(drawn.levels, place) - drawn.leaf_width / 2 + 3
        pictures += _bars(drawn, drawn.leaves[place], left, bottom, drawn.leaf_width - 6, float(drawn.ends[place]))
    return Figure(
        width=drawn.width,
        height=bottom + BARS + 20 + MARGIN,
        drawn=(*lines, *pictures),
        title="Filters and leaves of the tree",
    )


def _way(drawn: _Drawn, image: ShownImage, paths: TreePaths, index: int) -> Figure:
    """The image, its decisions from left to right, the leaf; above them where in the tree the way goes."""
    nodes, right = paths.nodes[index].tolist(), paths.right[index].tolist()
    probabilities, leaf = paths.probabilities[index].tolist(), int(paths.leaf[index])
    side, top = float(LARGEST), MARGIN + 16.0
    weights = drawn.tree.filters.weight.detach()[paths.nodes[index]].double().cpu()
    products = (weights.view(len(nodes), *drawn.shape) * image.values.double().cpu()).sum(1).numpy()
    filters = weights.view(len(nodes), *drawn.shape).sum(1).numpy()
    grey_or_colour = image.pixels.shape[2] in (1, 3)
    parts = [_image(_uri(png(image.pixels)), MARGIN, top, side, image.title)] if grey_or_colour else []
    steps = zip(nodes, right, probabilities, diverging(filters), diverging(products), strict=True)
    for step, (node, goes_right, probability, filter_, product) in enumerate(steps, start=1):
        x = MARGIN + step * STEP
        parts.append(words(x, top - 5, 11, "start", f"decision {node}", faint=True))
        parts.append(_image(_uri(png(filter_)), x, top, side, f"filter of decision {node}"))
        parts.append(_image(_uri(png(product)), x, top + side + 6, side, f"filter times image at decision {node}"))
        way = f"right {probability:.3f}" if goes_right else f"left {probability:.3f}"
        parts.append(words(x, top + 2 * side + 22, 12, "start", way, bold=True))
    x = MARGIN + (len(nodes) + 1) * STEP
    distribution = paths.distribution[index].double().cpu().numpy()
    said = f"leaf {leaf}: {shortened(drawn.names[int(distribution.argmax())], 20)} {distribution.max():.3f}"
    parts.append(words(x, top - 5, 11, "start", said, bold=True))
    parts += _bars(drawn, distribution, x, top, LEAF + 40, None)
    product_of = float(np.prod(probabilities))
    parts.append(words(x, top + BARS + 36, 12, "start", f"path {product_of:.3f}"))
    parts += _map(drawn.tree.depth, leaf, x, top + BARS + 46)
    return Figure(width=x + 2 * LEAF + MARGIN, height=top + 2 * side + 34, drawn=tuple(parts), title=image.title)


def _map(depth: int, leaf: int, left: float, top: float) -> list[str]:
    """Where in the tree a way goes: a fine line in a small triangle."""
    width, height = 110.0, 34.0
    centre = [(left + width * ((leaf >> (depth - level)) + 0.5) / 2**level, level) for level in range(depth + 1)]
    points = [(x, top + height * level / depth) for x, level in centre]
    outline = [(left + width / 2, top), (left, top + height), (left + width, top + height), (left + width / 2, top)]
    return [polyline(outline, GRID, thickness=1), polyline(points, f"rgb{RIGHT}".replace(" ", ""), thickness=2)]


def _bars(
    drawn: _Drawn, distribution: npt.NDArray[np.float64], left: float, top: float, width: float, share: float | None
) -> list[str]:
    """A distribution over the classes as bars, the likeliest class below."""
    each, likeliest = width / len(distribution), int(distribution.argmax())
    came = "" if share is None else f"; {100 * share:.1f} % of the training images"
    said = f"{drawn.names[likeliest]} {distribution[likeliest]:.3f}{came}"
    parts = [f"<g><title>{text(said)}</title>"]
    parts.append(f'<path class="grid" d="M{left:.1f} {top + BARS:.1f}h{width:.1f}" stroke="{GRID}"/>')
    for place, probability in enumerate(distribution.tolist()):
        height = BARS * probability
        colour = f"rgb{RIGHT}".replace(" ", "") if place == likeliest else FAINT
        if height >= 0.25:
            box = f'x="{left + place * each:.1f}" y="{top + BARS - height:.1f}" width="{0.85 * each:.2f}"'
            parts.append(f'<rect {box} height="{height:.1f}" fill="{colour}"/>')
    name = shortened(drawn.names[likeliest], NAME if width > NARROW else 3)
    parts.append(words(left + width / 2, top + BARS + 15, 12, "middle", name))
    return [*parts, "</g>"]


def _image(uri: str, x: float, y: float, side: float, said: str) -> str:
    box = f'x="{x:.1f}" y="{y:.1f}" width="{side:.0f}" height="{side:.0f}"'
    frame = f'<rect {box} fill="none" stroke="{GRID}" class="grid"/>'
    picture = f'<image {box} href="{uri}" image-rendering="pixelated" role="img" aria-label="{text(said)}"/>'
    return f"<g><title>{text(said)}</title>{picture}{frame}</g>"


def _uri(picture: bytes) -> str:
    return f"data:image/png;base64,{b64encode(picture).decode()}"
