"""Line charts and scatter plots as SVG, side by side. No torch here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.reporting.svg import FRAME, GRID, INK, Figure, polyline, shortened, text_width, words
from search_spaces.limits import format_quantity
from search_spaces.serialisation import write_text_atomic

COLOURS = ("#2f7ed8", "#d9622b", "#2f9e5f", "#8f63c9", "#a8861a", "#c8528e", "#1f9aa0", "#808794")  # on light and dark
SIDE, HEIGHT, GAP, MARGIN = 340, 240, 80, 60
ROW = 20  # pixels between lines of the legend
LONGEST = 44  # characters of a name in the legend
MOST_LABELS = 10  # values of x that are all written below the axis
MOST_CIRCLES = 30  # points of a line that get a circle each
TOO_LARGE = 1e100  # what differs by more cannot be drawn


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart.

    Attributes:
        name: in the legend, once for all panels; not there where the panel has that title.
        x: `(n,)`.
        y: `(n,)`; NaN where there is no point.
        low: `(n,)` lower ends of error bars; none where empty.
        high: upper ends.
        dashed: how it is drawn.
        group: lines of one group have one colour; the name where empty.
        scattered: points that no line connects.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False
    group: str = ""
    scattered: bool = False

    @property
    def points(self) -> list[tuple[float, float]]:
        """That there are."""
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if _drawable(x, y)]

    @property
    def bars(self) -> list[tuple[float, float, float]]:
        """Place and ends of the error bars that there are."""
        bars = zip(self.x, self.low, self.high, strict=False)
        return [bar for bar in bars if _drawable(*bar)]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart.

    Attributes:
        title: above it.
        x_label: below it.
        lines: see `Line`.
        level: height of a horizontal line, if any.
        level_name: what stands at it.
        amounts: whether y is written as 450M.
        x_amounts: whether x is.
        from_zero: whether the y axis begins at 0, as that of an amount should.
    """

    title: str
    x_label: str
    lines: Sequence[Line]
    level: float | None = None
    level_name: str = ""
    amounts: bool = False
    x_amounts: bool = False
    from_zero: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(line.points for line in self.lines)


def _drawable(*values: float) -> bool:
    return all(math.isfinite(value) and abs(value) < TOO_LARGE for value in values)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About so many round numbers inside [low, high], low < high: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.75 * rough)
    digits = 10 - min(0, math.floor(math.log10(step)))  # so that small steps are not rounded away
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, digits) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def draw(panels: Sequence[Panel], path: Path, label: str) -> None:
    """Write the panels as one SVG file.

    Args:
        panels: from left to right.
        path: of the file; its folder is created.
        label: what the figure shows, for readers who do not see it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, chart(panels, label).file())


def chart(panels: Sequence[Panel], title: str, description: str = "", *, columns: int | None = None) -> Figure:
    """The panels as one figure with one legend.

    Args:
        panels: in order of reading; those with nothing to draw are left out.
        title: what the figure shows.
        description: more of it.
        columns: panels in a row; None: all.
    """
    panels = [panel for panel in panels if not panel.empty]
    columns = max(1, min(columns or len(panels), len(panels)))
    named = {line.name: line for panel in panels for line in panel.lines if line.points}
    groups = list(dict.fromkeys(line.group or line.name for line in named.values()))
    colours = {
        name: COLOURS[groups.index(line.group or line.name) % len(COLOURS)] for name, line in named.items()
    }  # fmt: skip
    width = columns * (SIDE + GAP) + MARGIN // 2
    tall = HEIGHT + MARGIN + 40
    drawn = []
    for index, panel in enumerate(panels):
        left, top = MARGIN + index % columns * (SIDE + GAP), MARGIN // 2 + index // columns * tall
        drawn += _panel(panel, left, top, colours)
    titles = {panel.title for panel in panels}
    explained = {name: line for name, line in named.items() if name not in titles}
    legend, height = _legend(explained, colours, width, MARGIN // 2 + math.ceil(len(panels) / columns) * tall - 14)
    return Figure(width=width, height=height, drawn=(*drawn, *legend), title=title, description=description)


def _legend(named: dict[str, Line], colours: dict[str, str], width: float, top: float) -> tuple[list[str], float]:
    """Names of the lines in as many rows as they need, from ``top`` on; and where they end."""
    if not named:
        return [], top - ROW
    drawn, x, y = [], float(MARGIN), top
    for name, line in named.items():
        shown = shortened(name, LONGEST)
        needed = 30 + text_width(shown, 12) + 20
        if x > MARGIN and x + needed > width:
            x, y = MARGIN, y + ROW
        if line.scattered:
            drawn.append(_circle(x + 12, y - 4, colours[name], 4))
        else:
            drawn.append(polyline([(x, y - 4), (x + 24, y - 4)], colours[name], dashed=line.dashed))
        drawn.append(words(x + 30, y, 12, "start", shown))
        x += needed
    return drawn, y + ROW


def _panel(panel: Panel, left: float, top: float, colours: dict[str, str]) -> list[str]:
    """Axes from the smallest value, or 0, to the largest, a twentieth of the range added above and below the values."""
    points = [point for line in panel.lines for point in line.points]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    ys += [end for line in panel.lines for _, *ends in line.bars for end in ends]
    ys += [] if panel.level is None else [panel.level]
    ys += [0.0] if panel.from_zero else []
    x_low, x_high = min(xs), max(xs)
    margin = 0.05 * (max(ys) - min(ys) or abs(max(ys)) or 1.0)
    y_low, y_high = min(ys) - (0.0 if panel.from_zero else margin), max(ys) + margin
    bottom = top + HEIGHT

    def at(x: float, y: float) -> tuple[float, float]:
        across = 0.04 + 0.92 * ((x - x_low) / (x_high - x_low) if x_high > x_low else 0.5)
        return left + SIDE * across, bottom - HEIGHT * (y - y_low) / (y_high - y_low)

    drawn = [words(left, top - 12, 13, "start", panel.title, bold=True)]
    for tick in ticks(y_low, y_high):
        _, y = at(x_low, tick)
        drawn.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{left + SIDE:.1f}" stroke="{GRID}"/>')
        drawn.append(words(left - 6, y + 4, 11, "end", _tick(tick, amount=panel.amounts), faint=True))
    for tick in _x_ticks(panel, xs):
        x, _ = at(tick, y_low)
        drawn.append(words(x, bottom + 16, 11, "middle", _tick(tick, amount=panel.x_amounts), faint=True))
    size = f'width="{SIDE}" height="{HEIGHT}"'
    drawn.append(f'<rect class="frame" x="{left}" y="{top}" {size} fill="none" stroke="{FRAME}"/>')
    drawn.append(words(left + SIDE / 2, bottom + 34, 12, "middle", panel.x_label, faint=True))
    if panel.level is not None:
        _, y = at(x_low, panel.level)
        across = f'd="M{left:.1f} {y:.1f}H{left + SIDE:.1f}"'
        drawn.append(f'<path class="mark" {across} stroke="{INK}" stroke-dasharray="2 3"/>')
        drawn.append(words(left + 6, y - 5 if y - top > 16 else y + 13, 11, "start", panel.level_name))
    for line in panel.lines:
        drawn += _line(
            line, [at(x, y) for x, y in line.points], [(at(x, a), at(x, b)) for x, a, b in line.bars], colours
        )
    return drawn


def _line(
    line: Line,
    points: Sequence[tuple[float, float]],
    bars: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    colours: dict[str, str],
) -> list[str]:
    """Error bars, the line, and a circle a point where these are few."""
    if not points:
        return []
    colour = colours[line.name]
    drawn = [polyline(bar, colour, thickness=1) for bar in bars]
    if len(points) > 1 and not line.scattered:
        drawn.append(polyline(points, colour, dashed=line.dashed))
    if line.scattered or len(points) <= MOST_CIRCLES:
        drawn += [_circle(x, y, colour, 3) for x, y in points]
    return drawn


def _x_ticks(panel: Panel, xs: Sequence[float]) -> list[float]:
    """All values where they are few and lines are drawn through them, else round ones."""
    different = sorted(set(xs))
    scattered = any(line.scattered for line in panel.lines)
    if len(different) == 1 or (len(different) <= MOST_LABELS and not scattered):
        return different
    return ticks(different[0], different[-1])


def _tick(value: float, *, amount: bool) -> str:
    return format_quantity(value) if amount else f"{value:g}"


def _circle(x: float, y: float, colour: str, radius: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}"/>'
