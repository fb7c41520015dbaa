"""The picture of a network in the manner of thesis Fig. 3.6: a box a block, from the image to the classifier. No torch here.

Colour is the kernel, height the expansion (middle channels by channels that enter, as a number above), width the channels that
leave (as a number below). Runs of blocks with one size of feature map lie on a band with that size on top.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from nas.reporting.svg import FAINT, FRAME, GRID, Figure, printable, shortened, text_width, words
from search_spaces.architecture import Architecture, Block
from search_spaces.cost import out_size

KERNELS = {
    1: "#68717f",
    3: "#2a6cb8",
    5: "#b4531c",
    7: "#2b7a4b",
    9: "#7a4bb3",
    11: "#a83a66",
}  # white text reads on all
OTHER_KERNEL = "#7d6410"
SQUEEZE = "#f4c430"
WIDTH, GAP, BETWEEN = 960, 5, 12  # pixels: of the picture, between boxes, between bands
TOP, TALLEST, BELOW = 40, 96, 34  # of a row: above the boxes, the tallest box, below the boxes
ENDS = 62  # width of the box of the image and of that of the classifier
SMALL = 10  # font size of numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A block and where it stands.

    Attributes:
        index: counted from 0.
        block: what is drawn.
        in_channels: that enter; 0 where the picture does not know the image's.
        size: side of the feature map that leaves, in pixels.
    """

    index: int
    block: Block
    in_channels: int
    size: int

    @property
    def expansion(self) -> float:
        """Middle channels by channels that enter; 1 for blocks without a middle, 0 for a skip."""
        if self.block.kind == "skip":
            return 0.0
        return self.block.mid_channels / self.in_channels if self.block.mid_channels and self.in_channels else 1.0

    @property
    def width(self) -> float:
        """Of the box in pixels: it grows by as much for every doubling of the channels."""
        return 22 + 6.5 * max(0.0, math.log2(self.block.out_channels / 8))

    @property
    def in_words(self) -> str:
        """Everything about the block on one line."""
        block = self.block
        if block.kind == "skip":
            plain = block.stride == 1 and self.in_channels == block.out_channels
            parts = ["skip" if plain else f"skip by a 1x1 convolution, stride {block.stride}"]
        else:
            parts = [{"conv": "convolution", "ir": "inverted residual", "pool_head": "last stage"}[block.kind]]
            parts += [f"kernel {block.kernel}", f"stride {block.stride}"]
            parts += [f"{block.mid_channels} middle channels"] if block.mid_channels else []
            parts += [f"squeeze-and-excite to {block.squeeze_channels}"] if block.squeeze_channels else []
            parts += [{"relu": "ReLU", "hswish": "h-swish"}[block.activation]]
            parts += [f"groups {block.groups}"] if block.groups > 1 else []
            parts += [f"kernel groups of {block.group_width}"] if block.group_width > 1 else []
        entering = f"{self.in_channels} to " if self.in_channels else ""
        return (
            f"block {self.index}: {', '.join(parts)}, {entering}{block.out_channels} channels, {self.size}x{self.size}"
        )


def drawn_blocks(architecture: Architecture, *, in_channels: int = 0, resolution: int | None = None) -> list[Drawn]:
    """The blocks with what enters them and the size of what leaves.

    Args:
        architecture: the network.
        in_channels: of the image, 0 where unknown.
        resolution: side of the image in pixels; default the network's.
    """
    size, found = resolution or architecture.resolution, []
    for index, (entering, block) in enumerate(architecture.layers(in_channels)):
        pooled = block.kind == "pool_head"
        size = 1 if pooled else max(1, out_size(size, block.stride, block.kernel - 1 - 2 * block.pad))
        found.append(Drawn(index=index, block=block, in_channels=entering, size=size))
    return found


def architecture_picture(
    architecture: Architecture, *, in_channels: int = 0, resolution: int | None = None, width: float = WIDTH
) -> Figure:
    """Draw a network of any space.

    Args:
        architecture: the network.
        in_channels: of the image, 0 where unknown.
        resolution: side of the image in pixels; default the network's.
        width: of the picture in pixels, at least 300; rows are broken to fit.
    """
    side = resolution or architecture.resolution
    blocks = drawn_blocks(architecture, in_channels=in_channels, resolution=side)
    unit = min(12.0, (TALLEST - 16) / max(1.0, *(block.expansion for block in blocks)))
    title = shortened(printable(architecture.name), int((width - 24) / (0.66 * 14)))
    drawn, top = [words(12, 22, 14, "start", title, bold=True)], 34.0
    for row in _rows(blocks, width - 24):
        drawn += _row(row, top, unit, side, last=blocks[-1])
        top += TOP + TALLEST + BELOW + 8
    legend, bottom = _legend(blocks, width, top + 12)
    return Figure(
        width=width, height=bottom, drawn=(*drawn, *legend), title=f"Network {architecture.name}",
        description=f"{len(blocks)} blocks for images of {side} pixels. " + "; ".join(b.in_words for b in blocks) + ".",
    )  # fmt: skip


def _rows(blocks: Sequence[Drawn], width: float) -> Iterator[list[Drawn]]:
    """Blocks row by row: a row ends where the next block has no room."""
    row: list[Drawn] = []
    used = float(ENDS + BETWEEN)
    for block in blocks:
        apart = GAP if row and row[-1].size == block.size else BETWEEN
        needed = block.width + apart + (ENDS + BETWEEN if block is blocks[-1] else 0)
        if row and used + needed > width:
            yield row
            row, used = [], 0.0
        row.append(block)
        used += block.width + apart
    yield row


def _row(row: Sequence[Drawn], top: float, unit: float, side: int, *, last: Drawn) -> list[str]:
    """Bands, boxes and numbers of one row; the image before the first block, the classifier after the last."""
    drawn: list[str] = []
    base, x = top + TOP + TALLEST, 12.0
    if row[0].index == 0:
        drawn += _end(x, base, ("image", f"{side}x{side}"))
        x += ENDS + BETWEEN
    bands: list[tuple[int, float, float]] = []  # size, left, right
    boxes: list[str] = []
    for number, block in enumerate(row):
        fresh = number == 0 or row[number - 1].size != block.size
        if number:
            x += BETWEEN if fresh else GAP
        start = x if fresh else bands.pop()[1]
        boxes += _box(block, x, base, unit)
        x += block.width
        bands.append((block.size, start, x))
    for size, left, right in bands:
        area = f'x="{left - 4:.1f}" y="{top:.1f}" width="{right - left + 8:.1f}" height="{TOP + TALLEST + BELOW:.1f}"'
        drawn.append(f'<rect class="grid" {area} rx="5" fill="none" stroke="{GRID}"/>')
        drawn.append(words((left + right) / 2, top + 15, 11, "middle", size, faint=True))
    drawn += boxes
    if row[-1] is last:
        drawn += _end(x + BETWEEN, base, ("classifier",))
    return drawn


def _end(x: float, base: float, lines: Sequence[str]) -> list[str]:
    """What stands before the first block and after the last."""
    size = f'x="{x:.1f}" y="{base - 38:.1f}" width="{ENDS}" height="38"'
    drawn = [f'<rect class="frame" {size} rx="3" fill="none" stroke="{FRAME}"/>']
    first = base - 19 + 4 - 6 * (len(lines) - 1)
    return drawn + [words(x + ENDS / 2, first + 13 * i, SMALL, "middle", line) for i, line in enumerate(lines)]


def _box(shown: Drawn, x: float, base: float, unit: float) -> list[str]:
    """One block; its element of class ``block`` holds everything about it in words."""
    block, width, middle = shown.block, shown.width, x + shown.width / 2
    drawn: list[str] = []
    if block.kind == "skip":
        height, look = 14.0, f'class="block frame" rx="3" fill="none" stroke="{FAINT}" stroke-dasharray="3 2"'
    else:
        height = 16 + unit * shown.expansion
        corner = 8 if block.activation == "hswish" else 0
        look = f'class="block" rx="{corner}" fill="{KERNELS.get(block.kernel, OTHER_KERNEL)}"'
    area = f'x="{x:.1f}" y="{base - height:.1f}" width="{width:.1f}" height="{height:.1f}"'
    drawn.append(f"<rect {area} {look}><title>{escape(shown.in_words)}</title></rect>")
    if block.squeeze_channels:
        inset = 5 if block.activation == "hswish" else 2
        band = f'x="{x + inset:.1f}" y="{base - height + 3:.1f}" width="{width - 2 * inset:.1f}" height="4"'
        drawn.append(f'<rect class="squeeze" {band} rx="2" fill="{SQUEEZE}"/>')
    if block.kind != "skip":
        number = f'x="{middle:.1f}" y="{base - 5:.1f}" font-size="11" text-anchor="middle" fill="#ffffff"'
        drawn.append(f'<text {number} font-family="sans-serif" font-weight="bold">{block.kernel}</text>')
    if block.mid_channels:
        drawn.append(words(middle, base - height - 5, SMALL, "middle", f"{shown.expansion:.2g}", faint=True))
    drawn.append(words(middle, base + 14, SMALL, "middle", block.out_channels))
    kind = {"conv": "conv", "pool_head": "head", "skip": "skip", "ir": ""}[block.kind]
    return drawn + ([words(middle, base + 27, 9, "middle", kind, faint=True)] if kind else [])


def _legend(blocks: Sequence[Drawn], width: float, top: float) -> tuple[list[str], float]:
    """What colours and marks mean, of those that occur; and where it ends."""
    real = [shown.block for shown in blocks if shown.block.kind != "skip"]
    entries: list[tuple[str, str]] = []  # element at (0, 0) of 16 x 12 pixels, words
    for kernel in sorted({block.kernel for block in real}):
        fill = KERNELS.get(kernel, OTHER_KERNEL)
        entries.append((f'<rect width="16" height="12" fill="{fill}"/>', f"kernel {kernel}x{kernel}"))
    for activation, name, corner in (("hswish", "h-swish", 6), ("relu", "ReLU", 0)):
        if any(block.activation == activation for block in real):
            box = f'<rect class="frame" width="16" height="12" rx="{corner}" fill="none" stroke="{FAINT}"/>'
            entries.append((box, name))
    if any(block.squeeze_channels for block in real):
        entries.append((f'<rect y="4" width="16" height="4" rx="2" fill="{SQUEEZE}"/>', "squeeze-and-excite"))
    if len(real) < len(blocks):
        dashes = f'fill="none" stroke="{FAINT}" stroke-dasharray="3 2"'
        entries.append((f'<rect class="frame" width="16" height="12" rx="3" {dashes}/>', "skip"))
    drawn, x, y = [], 12.0, top
    for element, text in entries:
        needed = 22 + text_width(text, 11) + 14
        if x > 12 and x + needed > width:
            x, y = 12.0, y + 20
        drawn += [f'<g transform="translate({x:.1f} {y - 10:.1f})">{element}</g>', words(x + 22, y, 11, "start", text)]
        x += needed
    notes = ("height, number above: expansion", "width, number below: channels", "on top: feature map in pixels")
    x, y = 12.0, y + 20
    for note in notes:
        needed = text_width(note, 11) + 18
        if x > 12 and x + needed > width:
            x, y = 12.0, y + 16
        drawn.append(words(x, y, 11, "start", note, faint=True))
        x += needed
    return drawn, y + 14
