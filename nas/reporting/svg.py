"""Small pieces of SVG as text: what charts, pictures of networks and heat maps are made of. No torch here.

Colours stand as attributes, for light grounds and for programs without style sheets; `DARK` says what changes on dark ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

INK, FAINT, GRID, FRAME, GROUND = "#1c2330", "#5b6472", "#dde1e7", "#98a1ae", "#ffffff"
DARK = (
    "@media (prefers-color-scheme: dark){.ground{fill:#14181f}.ink{fill:#e6e9ee}.faint{fill:#a3adba}"
    ".grid{stroke:#2c333d}.frame{stroke:#5d6876}.mark{stroke:#e6e9ee}}"
)
WIDE = 0.58  # mean width of a character in sans-serif, as a share of the font size; a little more than most fonts need


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A drawing.

    Attributes:
        width: in pixels.
        height: in pixels.
        drawn: its elements.
        title: its name, for readers who do not see it.
        description: what it shows, for the same.
    """

    width: float
    height: float
    drawn: tuple[str, ...]
    title: str
    description: str = ""

    def file(self) -> str:
        """As a file of its own, on its own ground."""
        ground = f'<rect class="ground" width="100%" height="100%" fill="{GROUND}"/>'
        return self._element(f"<style>{DARK}</style>{ground}") + "\n"

    def inline(self) -> str:
        """As part of a page that holds `DARK`."""
        return self._element("")

    def _element(self, first: str) -> str:
        size = f'viewBox="0 0 {self.width:.0f} {self.height:.0f}" width="{self.width:.0f}" height="{self.height:.0f}"'
        title = escape(printable(self.title))
        words = f"<title>{title}</title>"
        if self.description:
            words += f"<desc>{escape(printable(self.description))}</desc>"
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{title}">'
        return f"{head}{words}{first}{''.join(self.drawn)}</svg>"


def printable(text: object) -> str:
    """Text on one line that any file can hold: what cannot be printed becomes a replacement character."""
    return "".join(character if character.isprintable() else "\ufffd" for character in str(text))


def shortened(text: str, most: int) -> str:
    """At most so many characters; what is left out of the middle is marked."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def text_width(text: str, size: float) -> float:
    """About how many pixels a text takes."""
    return WIDE * size * len(text)


def words(
    x: float, y: float, size: float, anchor: str, text: object, *, faint: bool = False, bold: bool = False
) -> str:
    """One line of text; ``anchor`` is start, middle or end."""
    kind, colour = ("faint", FAINT) if faint else ("ink", INK)
    weight = ' font-weight="bold"' if bold else ""
    style = (
        f'class="{kind}" fill="{colour}" font-size="{size:g}" text-anchor="{anchor}"{weight} font-family="sans-serif"'
    )
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(printable(text))}</text>'


def polyline(points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False, thickness: float = 2) -> str:
    """A line through points `(n, 2)`, n > 0."""
    corners = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="6 4"' if dashed else ""
    return f'<path d="M{corners}" fill="none" stroke="{colour}" stroke-width="{thickness:g}"{dashes}/>'
