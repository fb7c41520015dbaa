"""Pictures of networks, heat maps and charts: drawn from known numbers and read back from the SVG."""

import itertools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from nas.reporting.architecture_picture import KERNELS, architecture_picture, drawn_blocks
from nas.reporting.charts import Line, Panel, chart
from nas.reporting.heatmap import CELL, LEVELS, MOST_COLUMNS, heat_cells, heat_map, histories, marks, softmax
from nas.reporting.svg import DARK, Figure, printable, shortened, text_width
from search_spaces import zoo
from search_spaces.architecture import Architecture, Block
from search_spaces.cost import out_size
from search_spaces.spaces import SPACES

SVG = "{http://www.w3.org/2000/svg}"
HAND_MADE = Architecture(
    name="by hand",
    resolution=31,
    blocks=(
        Block(kind="conv", out_channels=16, kernel=3, stride=2, activation="hswish"),
        Block(kind="ir", out_channels=16, kernel=3, mid_channels=16, pointwise=False),
        Block(
            kind="ir", out_channels=32, kernel=5, stride=2, mid_channels=64, squeeze_channels=16, activation="hswish"
        ),
        Block(kind="skip", out_channels=32),
        Block(kind="ir", out_channels=64, kernel=7, mid_channels=192),
        Block(kind="pool_head", out_channels=256, mid_channels=128, activation="hswish"),
    ),
)


def parsed(figure: Figure) -> ElementTree.Element:
    """The figure's file, which must be well-formed; its text inline too."""
    ElementTree.fromstring(figure.inline())
    return ElementTree.fromstring(figure.file())


def of_class(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [element for element in root.iter() if name in element.get("class", "").split()]


def number(element: ElementTree.Element, key: str) -> float:
    return float(element.attrib[key])


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def networks() -> dict[str, Architecture]:
    """All published ones, and one of every space."""
    found = {name: zoo.load(name) for name in zoo.names()}
    for name, space in SPACES.items():
        made = space()
        found[f"space {name}"] = made.decode(np.random.default_rng(0).integers(0, made.option_counts))
    return found


@pytest.mark.parametrize("width", [960, 340])
@pytest.mark.parametrize("name", networks())
def test_every_network_has_a_box_a_block_inside_its_picture(name: str, width: float) -> None:
    architecture = networks()[name]
    root = parsed(architecture_picture(architecture, width=width))
    boxes = of_class(root, "block")
    assert len(boxes) == len(architecture.blocks)
    rows: dict[float, list[tuple[float, float]]] = {}
    for box in boxes:
        left, top, wide, high = (number(box, key) for key in ("x", "y", "width", "height"))
        assert left >= 0 and left + wide <= number(root, "width") and top >= 0 and high >= 10
        rows.setdefault(round(top + high), []).append((left, left + wide))
    for ends in rows.values():
        assert all(a[1] < b[0] for a, b in itertools.pairwise(ends)), "boxes of a row do not overlap"
    for element in root.iter(f"{SVG}text"):  # nothing is cut off, by our estimate of widths
        size = text_width(element.text or "", number(element, "font-size"))
        share = {"start": 1.0, "middle": 0.5, "end": 0.0}[element.attrib["text-anchor"]]
        assert number(element, "x") + share * size <= number(root, "width") + 1, element.text
        assert number(element, "y") <= number(root, "height")


def test_picture_says_what_the_network_is() -> None:
    root = parsed(architecture_picture(HAND_MADE, width=960))
    boxes = of_class(root, "block")
    stem, plain, squeezed, skip, wide, head = boxes
    assert [box.attrib["fill"] for box in boxes] == [KERNELS[k] for k in (3, 3, 5)] + ["none", KERNELS[7], KERNELS[1]]
    heights = [number(box, "height") for box in boxes]
    assert heights[0] == heights[1] > heights[3]
    for place, expansion in ((0, 1), (2, 4), (4, 6), (5, 2)):
        assert (heights[place] - 16) / (heights[1] - 16) == pytest.approx(expansion, abs=0.05), "in proportion"
    widths = [number(box, "width") for box in boxes]
    assert widths[2] - widths[1] == pytest.approx(widths[4] - widths[2], abs=0.11), "the same for every doubling"
    assert widths[0] == widths[1] and widths[2] == widths[3]
    assert "stroke-dasharray" in skip.attrib
    assert number(squeezed, "rx") > 0 and number(plain, "rx") == number(wide, "rx") == 0, (
        "h-swish is round, ReLU is not"
    )
    assert len(of_class(root, "squeeze")) == 1
    assert texts(root).count("31x31") == 1
    assert texts(root).count("16") == 3 and texts(root).count("8") == 1  # a band and two widths; a band
    assert [shown.size for shown in drawn_blocks(HAND_MADE)] == [16, 16, 8, 8, 8, 1]
    assert [text for text in texts(root) if text in ("conv", "skip", "head")] == [
        "conv",
        "skip",
        "head",
        "skip",
    ]  # the last in the legend
    assert {"kernel 3x3", "kernel 5x5", "kernel 7x7", "h-swish", "ReLU", "squeeze-and-excite"} <= set(texts(root))
    assert "kernel 9x9" not in texts(root)
    assert (head.findtext(f"{SVG}title") or "").startswith(
        "block 5: last stage, kernel 1, stride 1, 128 middle channels"
    )
    assert (stem.findtext(f"{SVG}title") or "").endswith("h-swish, 16 channels, 16x16")
    assert squeezed.findtext(f"{SVG}title") == (
        "block 2: inverted residual, kernel 5, stride 2, 64 middle channels, squeeze-and-excite to 16, h-swish, "
        "16 to 32 channels, 8x8"
    )


@pytest.mark.parametrize("side", [7, 224, 225])
def test_sizes_of_maps_are_those_of_the_network(side: int) -> None:
    network = zoo.load("fbnetv3_b")  # odd paddings
    size = side
    for shown in drawn_blocks(network, resolution=side):
        block = shown.block
        size = (
            1 if block.kind == "pool_head" else max(1, out_size(size, block.stride, block.kernel - 1 - 2 * block.pad))
        )
        assert shown.size == size


def test_any_name_and_many_blocks() -> None:
    hostile = "</title><script>alert(1)</script>&\"'"
    many = Architecture(name=hostile, resolution=4096, blocks=(Block(kind="conv", out_channels=65536),) * 1000)
    root = parsed(architecture_picture(many, width=340))
    assert not list(root.iter(f"{SVG}script")) and len(of_class(root, "block")) == 1000
    assert root.attrib["aria-label"] == f"Network {hostile}" and root.attrib["role"] == "img"


def test_softmax_by_hand() -> None:
    weights = softmax(np.log([[1.0, 3.0], [4.0, 1.0]]) + 1000)  # a common shift changes nothing, and nothing overflows
    np.testing.assert_allclose(weights, [[0.25, 0.75], [0.8, 0.2]], rtol=1e-12)


def test_histories_by_hand() -> None:
    log = math.log
    alpha = {
        "epoch": (0.0, 1.0),
        "layer1.block=ir_k3": (0.0, log(1)),
        "layer1.block=skip": (0.0, log(3)),
        "resolution=8": (log(2), log(5)),
        "resolution=12": (log(3), log(2)),
        "resolution=16": (log(5), log(3)),
        "broken=1": (0.0, math.nan),
    }
    block, resolution = histories(alpha)
    assert (block.name, block.options, block.epochs, block.marked) == ("layer1.block", ("ir_k3", "skip"), (0, 1), 1)
    np.testing.assert_allclose(block.weights, [[0.5, 0.5], [0.25, 0.75]])
    np.testing.assert_allclose(resolution.weights, [[0.2, 0.3, 0.5], [0.5, 0.2, 0.3]])
    assert resolution.marked == 0 and marks([block, resolution]) == "the likeliest option at the last epoch"
    assert histories({}) == []
    block, resolution = histories(alpha, {"layer1.block": "ir_k3", "resolution": "16"})
    assert (block.marked, resolution.marked) == (0, 2) and marks(
        [block, resolution]
    ) == "the option of the network found"
    (_, unknown) = histories(alpha, {"layer1.block": "ir_k3", "resolution": "20"})
    assert unknown.marked == 0 and marks([block, unknown]) == "the likeliest option at the last epoch"


def shades(
    paths: list[ElementTree.Element], left: float, top: float, wide: float, shape: tuple[int, int]
) -> np.ndarray:
    """Shade of every cell `(n, n_options)`, read back from the rectangles; each cell is covered once at most."""
    found = np.zeros(shape)
    for path in paths:
        for x, y, across in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v\d+h-[\d.]+z", path.attrib["d"]):
            start, option = round((float(x) - left) / wide), round((float(y) - top) / CELL)
            for epoch in range(start, start + round(float(across) / wide)):
                assert found[epoch, option] == 0
                found[epoch, option] = float(path.attrib["fill-opacity"])
    return found


def test_every_cell_of_a_map_has_its_shade() -> None:
    weights = np.random.default_rng(1).dirichlet([0.3] * 5, size=17)
    weights[4:9] = weights[4]  # epochs of the same shade become one rectangle
    drawn = ElementTree.fromstring(f"<svg>{''.join(heat_cells(weights, 100.0, 20.0, 7.5))}</svg>")
    expected = np.array([[round(float(w) * LEVELS) / LEVELS for w in row] for row in weights])
    np.testing.assert_allclose(shades(list(drawn), 100.0, 20.0, 7.5, weights.shape), expected, atol=1e-9)


@pytest.mark.parametrize("epochs", [1, 2, MOST_COLUMNS, MOST_COLUMNS + 1, 1000])
def test_long_searches_are_thinned_out(epochs: int) -> None:
    alpha = {"epoch": tuple(map(float, range(epochs))), "a=1": (0.0,) * epochs, "a=2": tuple(range(epochs))}
    (history,) = histories(alpha)
    assert len(history.epochs) <= MOST_COLUMNS + 1
    assert history.epochs[0] == 0 and history.epochs[-1] == epochs - 1, "first and last are shown"
    root = parsed(heat_map([history], "alpha"))
    assert str(epochs) in texts(root) or epochs == 1


def test_maps_of_a_large_space_do_not_overlap() -> None:
    space = SPACES["fbnetv2-f"]()
    alpha = {"epoch": (0.0, 1.0)} | {
        f"{variable.name}={getattr(option, 'name', option)}": (0.0, 0.1)
        for variable in space.variables
        for option in variable.options
    }
    found = histories(alpha)
    assert len(found) == len(space.variables)
    root = parsed(heat_map(found, "alpha"))
    frames = [[number(f, k) for k in ("x", "y", "width", "height")] for f in of_class(root, "frame")][1:]  # the scale's
    assert len(frames) == len(found)
    for i, (x, y, wide, high) in enumerate(frames):
        assert x + wide <= number(root, "width") and y + high <= number(root, "height")
        for other_x, other_y, _, other_high in frames[:i]:
            assert x != other_x or y >= other_y + other_high or other_y >= y + high


def test_scatter_has_points_only_and_titles_need_no_legend() -> None:
    cloud = Line(name="round 1", x=[2e6, 3e6, 9e6], y=[50.0, 52.0, math.nan], scattered=True)
    line = Line(name="tau", x=range(1, 91), y=[5 * 0.956**p for p in range(90)])
    scatter = Panel(title="accuracy", x_label="FLOPs", lines=[cloud], x_amounts=True)
    root = parsed(chart([scatter], "scatter"))
    assert len(list(root.iter(f"{SVG}circle"))) == 2 + 1  # one in the legend
    assert [p for p in root.iter(f"{SVG}path") if p.get("stroke-width") == "2"] == []
    assert any(text.endswith("M") for text in texts(root)) and "round 1" in texts(root)
    root = parsed(chart([Panel(title="tau", x_label="epoch", lines=[line])], "tau"))
    assert texts(root).count("tau") == 1 and not list(root.iter(f"{SVG}circle"))
    shown = [text for text in texts(root) if text in {"20", "40", "60", "80"}]
    assert shown == ["20", "40", "60", "80"]


def test_panels_stand_in_rows() -> None:
    panels = [Panel(title=str(i), x_label="x", lines=[Line(name="a", x=[1, 2], y=[i, 2])]) for i in range(5)]
    root = parsed(chart(panels, "five", columns=3))
    frames = [(number(f, "x"), number(f, "y")) for f in of_class(root, "frame")]
    assert len({x for x, _ in frames}) == 3 and len({y for _, y in frames}) == 2 and len(set(frames)) == 5
    empty = Panel(title="empty", x_label="x", lines=[Line(name="b", x=[1], y=[math.nan])])
    assert len(of_class(parsed(chart([empty, panels[0]], "one")), "frame")) == 1


@pytest.mark.parametrize(
    "y", [(math.inf, -math.inf, 1.0), (1e308, -1e308, 3.0), (1e99, -1e99, 0.0), (0.0, 0.0, 0.0), (1e16, 1e16, 1e16),
          (1e-300, 2e-300, 0.0), (7.0, math.nan, 7.0), (1e16, 1e16 + 2, 1e16)]
)  # fmt: skip
def test_any_numbers_can_be_drawn(y: tuple[float, ...]) -> None:
    drawing = chart([Panel(title="t", x_label="x", lines=[Line(name="a", x=[1, 2, 3], y=y)], amounts=True)], "any")
    assert not re.search(r"\b(nan|inf)\b", drawing.file())
    for circle in parsed(drawing).iter(f"{SVG}circle"):
        assert 0 <= number(circle, "cy") <= drawing.height


def test_dark_grounds_change_text_and_ground() -> None:
    file = architecture_picture(HAND_MADE).file()
    assert "prefers-color-scheme: dark" in file
    for name in ("ground", "ink", "faint", "grid", "frame"):
        assert f".{name}{{" in DARK and of_class(ElementTree.fromstring(file), name), name
    assert "prefers-color-scheme" not in architecture_picture(HAND_MADE).inline(), "the page says it once"


def test_text_helpers() -> None:
    assert printable("a\x00b\udcff\nc") == "a\ufffdb\ufffd\ufffdc"
    assert shortened("abcdefghij", 5) == "ab…ij" and shortened("abc", 5) == "abc"


def test_axes_of_amounts_begin_at_zero() -> None:
    line = Line(name="kept", x=[1.0, 2.0], y=[260.0, 265.0])
    for from_zero in (False, True):
        drawn = chart([Panel(title="bytes", x_label="k", lines=[line], from_zero=from_zero)], "bytes").file()
        assert (">0<" in drawn) is from_zero
