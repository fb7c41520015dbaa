"""Line charts as SVG, side by side, for figures of the documentation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

COLOURS = ("#1f6fb2", "#d1622b", "#3a9a5b", "#7a4fb3", "#777777")
SIDE, HEIGHT, GAP, MARGIN = 340, 240, 80, 60
COLUMNS = 3  # of the legend
INK, GRID = "#222", "#ddd"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart.

    Attributes:
        name: in the legend, once for all panels.
        x: `(n,)`.
        y: `(n,)`; NaN where there is no point.
        low: `(n,)` lower ends of error bars; none where empty.
        high: upper ends.
        dashed: how it is drawn.
        group: lines of one group have one colour; the name where empty.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False
    group: str = ""

    @property
    def points(self) -> list[tuple[float, float]]:
        """That there are."""
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if math.isfinite(y)]

    @property
    def bars(self) -> list[tuple[float, float, float]]:
        """Place and ends of the error bars that there are."""
        bars = zip(self.x, self.low, self.high, strict=False)
        return [bar for bar in bars if math.isfinite(bar[1]) and math.isfinite(bar[2])]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart.

    Attributes:
        title: above it.
        x_label: below it.
        lines: see `Line`.
        level: height of a horizontal line, if any.
        level_name: what stands at it.
    """

    title: str
    x_label: str
    lines: Sequence[Line]
    level: float | None = None
    level_name: str = ""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About so many round numbers inside [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.75 * rough)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def draw(panels: Sequence[Panel], path: Path, label: str) -> None:
    """Write the panels as one SVG file.

    Args:
        panels: from left to right.
        path: of the file; its folder is created.
        label: what the figure shows, for readers who do not see it.
    """
    named = {line.name: line for panel in panels for line in panel.lines}
    groups = list(dict.fromkeys(line.group or line.name for line in named.values()))
    colours = {
        name: COLOURS[groups.index(line.group or line.name) % len(COLOURS)] for name, line in named.items()
    }  # fmt: skip
    width = len(panels) * (SIDE + GAP) + MARGIN // 2
    bottom = MARGIN + HEIGHT + 50
    height = bottom + 20 * (math.ceil(len(named) / COLUMNS) + 1)
    drawn = [f'<rect width="{width}" height="{height}" fill="#ffffff"/>']
    for index, panel in enumerate(panels):
        drawn += _panel(panel, MARGIN + index * (SIDE + GAP), colours)
    for index, (name, line) in enumerate(named.items()):
        x, y = MARGIN + 240 * (index % COLUMNS), bottom + 10 + 20 * (index // COLUMNS)
        drawn.append(_path([(x, y - 4), (x + 24, y - 4)], colours[name], dashed=line.dashed))
        drawn.append(_words(x + 30, y, 12, "start", name))
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(label)}">{"".join(drawn)}</svg>\n',
        encoding="utf-8",
    )


def _panel(panel: Panel, left: float, colours: dict[str, str]) -> list[str]:
    """Axes from the smallest to the largest value, a twentieth of the range added above and below."""
    xs = [x for line in panel.lines for x in line.x]
    ys = [y for line in panel.lines for _, y in line.points]
    ys += [end for line in panel.lines for _, *ends in line.bars for end in ends]
    ys += [] if panel.level is None else [panel.level]
    x_low, x_high = min(xs), max(xs)
    margin = 0.05 * (max(ys) - min(ys) or 1.0)
    y_low, y_high = min(ys) - margin, max(ys) + margin
    top, bottom = MARGIN, MARGIN + HEIGHT

    def at(x: float, y: float) -> tuple[float, float]:
        across = 0.04 + 0.92 * (x - x_low) / (x_high - x_low or 1.0)
        return left + SIDE * across, bottom - HEIGHT * (y - y_low) / (y_high - y_low)

    drawn = [_words(left, top - 14, 13, "start", panel.title)]
    for tick in ticks(y_low, y_high):
        _, y = at(x_low, tick)
        drawn.append(f'<path d="M{left:.1f} {y:.1f}H{left + SIDE:.1f}" stroke="{GRID}"/>')
        drawn.append(_words(left - 6, y + 4, 11, "end", f"{tick:g}"))
    for tick in sorted(set(xs)):
        x, _ = at(tick, y_low)
        drawn.append(_words(x, bottom + 16, 11, "middle", f"{tick:g}"))
    drawn.append(f'<rect x="{left}" y="{top}" width="{SIDE}" height="{HEIGHT}" fill="none" stroke="#999"/>')
    drawn.append(_words(left + SIDE / 2, bottom + 36, 12, "middle", panel.x_label))
    if panel.level is not None:
        _, y = at(x_low, panel.level)
        drawn.append(f'<path d="M{left:.1f} {y:.1f}H{left + SIDE:.1f}" stroke="{INK}" stroke-dasharray="2 3"/>')
        drawn.append(_words(left + 6, y - 5, 11, "start", panel.level_name))
    for line in panel.lines:
        colour = colours[line.name]
        points = [at(x, y) for x, y in line.points]
        drawn += [_path([at(x, low), at(x, high)], colour, thickness=1) for x, low, high in line.bars]
        drawn += [_path(points, colour, dashed=line.dashed)] if len(points) > 1 else []
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    return drawn


def _path(points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False, thickness: int = 2) -> str:
    corners = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="6 4"' if dashed else ""
    return f'<path d="M{corners}" fill="none" stroke="{colour}" stroke-width="{thickness}"{dashes}/>'


def _words(x: float, y: float, size: int, anchor: str, text: str) -> str:
    style = f'font-size="{size}" text-anchor="{anchor}" fill="{INK}" font-family="sans-serif"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
