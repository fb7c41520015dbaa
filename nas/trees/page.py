"""A tree over classes as one HTML text with everything in it: nothing is fetched, and only its own script runs. No torch here.

The style starts from that of reports; script and style lie in data/page.js and data/page.css. What the script draws comes
from one block of JSON in which no character can end the block, and is put into the page as text only, never as HTML.
"""

import json
import struct
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nas.reporting.page import text
from nas.reporting.style import STYLE
from nas.reporting.svg import printable, shortened
from nas.trees.hierarchy import Hierarchy
from search_spaces.serialisation import require

PNG = b"\x89PNG\r\n\x1a\n"
KINDS = {PNG: "png", b"\xff\xd8\xff": "jpeg"}  # of pictures, by their first bytes
MAX_PICTURE = 1_000_000  # bytes of one picture
DEEPEST = 40  # levels by which the tree as text is indented; deeper ones are numbered


class ChosenChild(Protocol):
    """One step down the tree, such as `nas.trees.nbdt.Choice`."""

    @property
    def child(self) -> int:
        """The node gone to."""

    @property
    def probability(self) -> float:
        """p(child | node)."""


class PathTaken(Protocol):
    """How an image came to its class, such as `nas.trees.nbdt.Decision`."""

    @property
    def predicted(self) -> int:
        """The leaf."""

    @property
    def choices(self) -> Sequence[ChosenChild]:
        """From the root to the leaf."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecidedImage:
    """An image whose way through the tree the page can show.

    Attributes:
        decision: the way.
        title: what the image is called in the list of images.
        picture: a PNG or JPEG; see `png`.
        label: the class it is labelled with; None where that is not known.
    """

    decision: PathTaken
    title: str
    picture: bytes | None = None
    label: int | None = None


def hierarchy_page(
    hierarchy: Hierarchy,
    *,
    title: str,
    frequencies: npt.ArrayLike | None = None,
    thumbnails: Mapping[int, bytes | Sequence[bytes]] | None = None,
    decisions: Sequence[DecidedImage] | None = None,
    facts: Mapping[str, str] | None = None,
) -> str:
    """The whole page.

    Args:
        hierarchy: the tree.
        title: of the page.
        frequencies: `(K, nodes)`, how many images of each class went through each node (thesis Fig. 5.11); a class's own
            total stands at the root.
        thumbnails: PNG or JPEG files by leaf, one or several, at most 1 MB each; square ones of about 32 pixels look best.
            The first stands in the tree.
        decisions: images whose way can be shown.
        facts: what to say above the tree, such as accuracies, by name.

    Raises:
        UserError: frequencies of another shape, negative or not finite; a picture that is neither PNG nor JPEG; a decision
            that is no path of the tree.
    """
    data = {
        "classes": [printable(name) for name in hierarchy.classes],
        "names": [printable(name) for name in hierarchy.names],
        "children": hierarchy.children,
        "root": hierarchy.root,
        "thumbnails": _thumbnails(hierarchy, thumbnails or {}),
        "frequencies": {} if frequencies is None else _frequencies(hierarchy, np.asarray(frequencies)),
        "images": [_image(hierarchy, one) for one in decisions or ()],
    }
    script = f"/*<![CDATA[*/{_part('page.js')}/*]]>*/"
    digest = b64encode(sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return (
        '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>'
        f'<meta name="color-scheme" content="light dark"/><title>{text(title)}</title>'
        f"<style>{STYLE}{_part('page.css')}</style></head>"
        f'<body><a class="jump" href="#tree">To the tree</a><header><h1>{text(title)}</h1>{_facts(hierarchy, facts)}</header>'
        f"<main>{_controls(hierarchy, data)}{_STAGE}{_as_text(hierarchy)}</main>"
        f'<script type="application/json" id="data">{embedded(data)}</script><script>{script}</script></body></html>\n'
    )


def embedded(data: Any) -> str:
    """JSON that cannot end the element it stands in, nor begin a comment or an entity."""
    plain = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return plain.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """A PNG file of an image.

    Args:
        image: `(H, W)`, `(H, W, 1)` grey or `(H, W, 3)` RGB, uint8.

    Raises:
        UserError: another shape or type.
    """
    array = np.asarray(image)
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    good = array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) and array.size > 0
    require(good, f"an image must be uint8 (H, W), (H, W, 1) or (H, W, 3), got {array.dtype} {array.shape}")
    height, width = array.shape[:2]
    rows = np.zeros((height, 1 + array[0].size), dtype=np.uint8)  # a row starts with its filter, 0: none
    rows[:, 1:] = array.reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if array.ndim == 2 else 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return PNG + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def label(hierarchy: Hierarchy, node: int) -> str:
    """What a node is called: its name, or its first classes where it has none."""
    name = hierarchy.name_of(node)
    if name or node < len(hierarchy.classes):
        return name
    leaves = hierarchy.leaves_of(node)
    first = ", ".join(hierarchy.classes[leaf] for leaf in leaves[:2])
    return f"{first}, +{len(leaves) - 2}" if len(leaves) > 2 else first


def _part(name: str) -> str:
    return (files("nas.trees") / "data" / name).read_text(encoding="utf-8").strip()


def _picture(picture: bytes, what: str) -> str:
    """As the address of an image element."""
    kinds = [kind for start, kind in KINDS.items() if isinstance(picture, bytes) and picture.startswith(start)]
    good = bool(kinds) and len(picture) <= MAX_PICTURE
    require(good, f"{what} must be a PNG or JPEG file of at most {MAX_PICTURE} bytes")
    return f"data:image/{kinds[0]};base64,{b64encode(picture).decode()}"


def _thumbnails(hierarchy: Hierarchy, thumbnails: Mapping[int, bytes | Sequence[bytes]]) -> dict[int, list[str]]:
    most = len(hierarchy.classes) - 1
    found = {}
    for leaf, given in thumbnails.items():
        require(0 <= leaf <= most, f"thumbnails are of classes 0..{most}, got {leaf}")
        files = [given] if isinstance(given, bytes) else list(given)
        found[int(leaf)] = [_picture(one, f"thumbnail of class {leaf}") for one in files]
    return {leaf: files for leaf, files in found.items() if files}


def _frequencies(hierarchy: Hierarchy, counts: npt.NDArray[Any]) -> dict[int, dict[str, Any]]:
    """Of each class with images: how many, and [node, share of them, ...] of all nodes they went through but the root."""
    shape = (len(hierarchy.classes), hierarchy.nodes)
    require(counts.shape == shape, f"frequencies must be {shape}: classes by nodes, got {counts.shape}")
    require(counts.dtype.kind in "iuf", f"frequencies must be numbers, got {counts.dtype}")
    require(bool(np.isfinite(counts).all() and (counts >= 0).all()), "frequencies must be finite and not negative")
    found = {}
    for leaf in np.flatnonzero(counts[:, hierarchy.root] > 0):
        total = float(counts[leaf, hierarchy.root])
        shares: list[float] = []
        for node in np.flatnonzero(counts[leaf]):
            if node != hierarchy.root:
                shares += [int(node), round(float(counts[leaf, node]) / total, 4)]
        found[int(leaf)] = {"images": round(total, 4), "shares": shares}
    return found


def _image(hierarchy: Hierarchy, image: DecidedImage) -> dict[str, Any]:
    decision, name = image.decision, printable(image.title)
    path = [hierarchy.root, *(choice.child for choice in decision.choices)]
    inside = all(0 <= node < hierarchy.nodes for node in path)
    joined = inside and all(child in hierarchy.children_of(node) for node, child in pairwise(path))
    require(joined and path[-1] == decision.predicted, f"decisions of {name!r}: not a path from the root to a class")
    known = image.label is None or 0 <= image.label < len(hierarchy.classes)
    require(known, f"decisions of {name!r}: label must be a class 0..{len(hierarchy.classes) - 1}, got {image.label}")
    probabilities = [float(choice.probability) for choice in decision.choices]
    right = all(0 <= one <= 1 + 1e-6 for one in probabilities)  # false for NaN
    require(right, f"decisions of {name!r}: probabilities must be in [0, 1], got {probabilities}")
    return {
        "title": name,
        "picture": None if image.picture is None else _picture(image.picture, f"picture of {name!r}"),
        "leaf": int(decision.predicted),
        "label": image.label,
        "path": [int(node) for node in path],
        "probabilities": [float(f"{min(1.0, one):.6g}") for one in probabilities],
    }


def _facts(hierarchy: Hierarchy, facts: Mapping[str, str] | None) -> str:
    depth = int(hierarchy.depth.max())
    said = {"classes": len(hierarchy.classes), "decisions": len(hierarchy.children), "depth": depth, **(facts or {})}
    return (
        f"<dl>{''.join(f'<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>' for name, value in said.items())}</dl>"
    )


def _controls(hierarchy: Hierarchy, data: Mapping[str, Any]) -> str:
    """What to find, which class's frequencies and which image's decisions to show; lists that are empty are left out."""
    names = "".join(f'<option value="{text(name)}"></option>' for name in hierarchy.classes)
    parts = [
        '<label class="find"><span>Find a class</span>'
        f'<input id="find" type="search" list="names" autocomplete="off"/></label><datalist id="names">{names}</datalist>'
    ]
    order = sorted(data["frequencies"], key=lambda leaf: hierarchy.classes[leaf].casefold())
    if order:
        options = "".join(f'<option value="{leaf}">{text(hierarchy.classes[leaf])}</option>' for leaf in order)
        parts.append(_select("class", "Images of class", options))
    if data["images"]:
        options = "".join(
            f'<option value="{i}">{text(shortened(image["title"], 60))}</option>'
            for i, image in enumerate(data["images"])
        )
        parts.append(_select("image", "Decisions of image", options))
    return f'<div class="bar">{"".join(parts)}</div>'


def _select(name: str, words: str, options: str) -> str:
    none = '<option value="">none</option>'
    return f'<label><span>{text(words)}</span><select id="{name}">{none}{options}</select></label>'


def _as_text(hierarchy: Hierarchy) -> str:
    """The tree as indented lines: for readers without script, for searching and for copying."""
    lines = []
    for node in map(int, hierarchy.preorder):
        depth = int(hierarchy.depth[node])
        inset = "  " * min(depth, DEEPEST) + (f"({depth}) " if depth > DEEPEST else "")
        count = "" if node < len(hierarchy.classes) else f" ({hierarchy.leaf_counts[node]})"
        lines.append(f"{inset}{text(shortened(label(hierarchy, node), 120))}{count}")
    return (
        '<details><summary>The tree as text</summary><pre tabindex="0" aria-label="The tree as text">'
        f"{chr(10).join(lines)}</pre></details>"
    )


def _button(name: str, label: str, sign: str) -> str:
    return f'<button type="button" id="{name}" aria-label="{label}" title="{label}">{sign}</button>'


_STAGE = (
    '<div class="work"><div id="stage"><div id="canvas"><svg id="links" aria-hidden="true" focusable="false"></svg>'
    '<div id="tree" role="tree" aria-label="Tree of classes" aria-describedby="help"></div></div>'
    '<div class="buttons" role="group" aria-label="View">'
    + _button("fit", "Show the whole tree", "Fit")
    + _button("nearer", "Nearer", "+")
    + _button("farther", "Farther", "−")
    + _button("open", "Open all nodes", "Open all")
    + _button("close", "Close to the first levels", "Close")
    + '</div><noscript><p class="note">Without its script this page shows the tree as text only, below.</p></noscript></div>'
    '<aside id="panel" aria-label="Details"></aside></div><p id="said" role="status" class="unseen"></p>'
    '<p id="help" class="help">Drag, or turn the wheel, to move; Ctrl and wheel, two fingers, or <kbd>+</kbd> and <kbd>−</kbd> '
    "to zoom. A click opens and closes a node. With the keyboard: arrows go through the tree, right opens, left closes, "
    "<kbd>Home</kbd> and <kbd>End</kbd> go to the ends, <kbd>*</kbd> opens all siblings, <kbd>0</kbd> shows everything, "
    "letters find a name.</p>"
)
