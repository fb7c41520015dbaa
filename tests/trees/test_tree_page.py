"""The page of a tree: what is in it, that nothing can be smuggled into it, its size, and how it behaves in a real browser."""

import base64
import json
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import Browser, chromium

from nas.trees.hierarchy import Hierarchy
from nas.trees.page import DecidedImage, embedded, hierarchy_page, label, png
from search_spaces.errors import UserError

XHTML = "{http://www.w3.org/1999/xhtml}"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"q\" 'a' <!-- ]]>"
# root 6 = (vehicle 4, 5); vehicle = (ship, truck), 5 = (cat, dog) has no name
TREE = Hierarchy(("cat", "ship", "dog", "truck"), ((1, 3), (0, 2), (4, 5)), ("vehicle", "", "thing"))
FREQUENCIES = np.array(
    [[8, 1, 1, 0, 1, 9, 10], [0, 4, 0, 1, 5, 0, 5], [0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 2, 2, 1, 3]], dtype=np.int64
)
PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
JPEG = b"\xff\xd8\xff\xe0 and so on"


@dataclass(frozen=True)
class Choice:
    child: int
    probability: float


@dataclass(frozen=True)
class Decision:
    predicted: int
    choices: tuple[Choice, ...]


RIGHT = DecidedImage(
    decision=Decision(0, (Choice(5, 0.9), Choice(0, 0.8))), title="image 1", label=0, picture=png(PICTURE)
)
WRONG = DecidedImage(decision=Decision(2, (Choice(5, 0.75), Choice(2, 0.5))), title="image 2", label=1)

THUMBNAILS = {0: png(PICTURE), 1: [png(PICTURE), png(PICTURE[::-1])], 2: []}


def small_page(**changed: Any) -> str:
    """All parts on four classes."""
    parts: dict[str, Any] = {
        "title": "Four classes", "frequencies": FREQUENCIES, "thumbnails": THUMBNAILS, "decisions": [RIGHT, WRONG],
        "facts": {"NBDT-S": "95.12 %"},
    }  # fmt: skip
    return hierarchy_page(TREE, **{**parts, **changed})


def parsed(page: str) -> tuple[ElementTree.Element, dict[str, Any]]:
    """The page, which must be well-formed and need nothing else, and the data in it."""
    root = ElementTree.fromstring(page)
    data, script = root.findall(f".//{XHTML}script")
    assert data.get("type") == "application/json" and script.get("type") is None
    for element in root.iter():
        assert element.tag.rsplit("}")[-1] not in ("iframe", "object", "embed", "link", "base", "form", "image", "use")
        assert not any(name.startswith("on") or name in ("src", "srcset", "style", "action") for name in element.attrib)
    policy = next(m.attrib["content"] for m in root.iter(f"{XHTML}meta") if "http-equiv" in m.attrib)
    source = page[page.rindex("<script>") + 8 : page.rindex("</script>")]
    digest = base64.b64encode(sha256(source.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    assert set(re.findall(r"https?://[^\"' <)]+", page)) <= {
        "http://www.w3.org/1999/xhtml",
        "http://www.w3.org/2000/svg",
    }
    return root, json.loads("".join(data.itertext()))


def test_what_the_page_holds() -> None:
    page = small_page()
    root, data = parsed(page)
    assert page == small_page(), "the same arguments give the same page"
    assert root.findtext(f".//{XHTML}h1") == root.findtext(f".//{XHTML}title") == "Four classes"
    assert data["classes"] == list(TREE.classes) and data["root"] == 6
    assert data["children"] == [[1, 3], [0, 2], [4, 5]] and data["names"] == ["vehicle", "", "thing"]
    facts = {
        d.findtext(f"{XHTML}dt"): d.findtext(f"{XHTML}dd")
        for d in root.iter(f"{XHTML}div")
        if d.find(f"{XHTML}dt") is not None
    }
    assert facts == {"classes": "4", "decisions": "3", "depth": "2", "NBDT-S": "95.12 %"}
    assert data["frequencies"]["0"] == {"images": 10, "shares": [0, 0.8, 1, 0.1, 2, 0.1, 4, 0.1, 5, 0.9]}
    assert data["frequencies"]["3"] == {"images": 3, "shares": [0, 0.3333, 3, 0.6667, 4, 0.6667, 5, 0.3333]}
    assert set(data["frequencies"]) == {"0", "1", "3"}, "class 2 has no images"
    options = {o.get("value"): o.text for s in root.iter(f"{XHTML}select") if s.get("id") == "class" for o in s}
    assert options == {"": "none", "0": "cat", "1": "ship", "3": "truck"}
    assert data["images"][0]["path"] == [6, 5, 0] and data["images"][0]["probabilities"] == [0.9, 0.8]
    assert data["images"][1]["label"] == 1 and data["images"][1]["picture"] is None
    assert {leaf: len(files) for leaf, files in data["thumbnails"].items()} == {"0": 1, "1": 2}
    for leaf, place, picture in (("0", 0, PICTURE), ("1", 1, PICTURE[::-1])):
        assert base64.b64decode(data["thumbnails"][leaf][place].removeprefix("data:image/png;base64,")) == png(picture)
    _, data = parsed(small_page(thumbnails={3: JPEG}))
    assert data["thumbnails"] == {"3": ["data:image/jpeg;base64," + base64.b64encode(JPEG).decode()]}
    text = next(e.text for e in root.iter(f"{XHTML}pre"))
    assert text == "thing (4)\n  vehicle (2)\n    ship\n    truck\n  cat, dog (2)\n    cat\n    dog"


def test_parts_that_are_not_given_are_left_out() -> None:
    root, data = parsed(hierarchy_page(TREE, title="t"))
    assert [s.get("id") for s in root.iter(f"{XHTML}select")] == []
    assert data["frequencies"] == {} and data["images"] == [] and data["thumbnails"] == {}


def test_readable_by_ear_and_keyboard() -> None:
    root, _ = parsed(small_page())
    anchors = {e.attrib["id"]: e for e in root.iter() if "id" in e.attrib}
    tree = anchors["tree"]
    assert tree.get("role") == "tree" and tree.get("aria-label") and tree.get("aria-describedby") in anchors
    assert next(root.iter(f"{XHTML}a")).get("href") == "#tree"
    assert root.get("lang") == "en" and anchors["said"].get("role") == "status"
    for control in (*root.iter(f"{XHTML}select"), *root.iter(f"{XHTML}input")):
        named = [label for label in root.iter(f"{XHTML}label") if control in list(label.iter())]
        assert len(named) == 1 and named[0].findtext(f"{XHTML}span")
    assert all(button.get("aria-label") for button in root.iter(f"{XHTML}button"))


def test_hostile_names_are_only_text() -> None:
    tree = Hierarchy((HOSTILE, "b\x00\u2028"), ((0, 1),), (HOSTILE,))
    image = DecidedImage(decision=Decision(0, (Choice(0, 1.0),)), title=HOSTILE)
    page = hierarchy_page(
        tree, title=HOSTILE, decisions=[image], facts={HOSTILE: HOSTILE}, frequencies=np.array([[1, 0, 1], [0, 2, 2]])
    )
    root, data = parsed(page)
    assert data["classes"] == [HOSTILE, "b\ufffd\ufffd"] and data["names"] == [HOSTILE]
    assert data["images"][0]["title"] == HOSTILE and root.findtext(f".//{XHTML}h1") == HOSTILE
    assert page.lower().count("</script") == page.lower().count("<script") == 2 and "<img" not in page
    assert set("<>&").isdisjoint(embedded([HOSTILE])) and json.loads(embedded([HOSTILE])) == [HOSTILE]


def test_png() -> None:
    """Read back by hand: signature, size, colour type, and rows that start with filter 0."""
    for image, colours in ((PICTURE, 2), (PICTURE[..., 0], 0), (PICTURE[..., :1], 0)):
        made = png(image)
        assert made[:8] == b"\x89PNG\r\n\x1a\n" and made[12:16] == b"IHDR"
        assert struct.unpack(">IIBBBBB", made[16:29]) == (4, 4, 8, colours, 0, 0, 0)
        assert struct.unpack(">I", made[29:33])[0] == zlib.crc32(made[12:29])
        start = made.index(b"IDAT")
        rows = np.frombuffer(zlib.decompress(made[start + 4 : -16]), dtype=np.uint8).reshape(4, -1)
        assert not rows[:, 0].any() and np.array_equal(rows[:, 1:].ravel(), image.ravel())
    for wrong in (PICTURE.astype(float), PICTURE[None], PICTURE[:, :, :2], np.zeros((0, 4), dtype=np.uint8)):
        with pytest.raises(UserError, match="uint8"):
            png(wrong)


def test_nodes_without_a_name_are_called_by_their_classes() -> None:
    five = Hierarchy(tuple("abcde"), ((4, 1, 0), (5, 2, 3)), ("", "all"))
    assert [label(five, node) for node in (0, 5, 6)] == ["a", "a, b, +1", "all"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"frequencies": FREQUENCIES.T}, r"frequencies must be \(4, 7\)"),
        ({"frequencies": -FREQUENCIES}, "not negative"),
        ({"frequencies": FREQUENCIES * np.nan}, "finite"),
        ({"frequencies": FREQUENCIES.astype(str)}, "numbers"),
        ({"thumbnails": {4: png(PICTURE)}}, r"classes 0\.\.3, got 4"),
        ({"thumbnails": {1: b"GIF89a"}}, "thumbnail of class 1 must be a PNG or JPEG"),
        ({"thumbnails": {1: [png(PICTURE), b""]}}, "thumbnail of class 1 must be a PNG or JPEG"),
        ({"decisions": [replace(RIGHT, decision=Decision(0, (Choice(0, 1.0),)))]}, "not a path"),
        ({"decisions": [replace(RIGHT, decision=Decision(0, (Choice(5, 1.0),)))]}, "not a path"),
        ({"decisions": [replace(RIGHT, decision=Decision(99, (Choice(99, 1.0),)))]}, "not a path"),
        ({"decisions": [replace(RIGHT, decision=Decision(0, (Choice(5, 1.5), Choice(0, 1.0))))]}, r"in \[0, 1\]"),
        (
            {"decisions": [replace(RIGHT, decision=Decision(0, (Choice(5, float("nan")), Choice(0, 1.0))))]},
            r"in \[0, 1\]",
        ),
        ({"decisions": [replace(RIGHT, label=4)]}, r"class 0\.\.3, got 4"),
        ({"decisions": [replace(RIGHT, picture=b"x")]}, "picture of 'image 1'"),
    ],
)
def test_wrong_input(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        small_page(**changed)
    assert "\n" not in str(caught.value)


def large_tree(classes: int = 1000) -> Hierarchy:
    """A binary tree as balanced as can be."""
    level, children = list(range(classes)), []
    while len(level) > 1:
        pairs = [tuple(level[i : i + 2]) for i in range(0, len(level) - 1, 2)]
        rest = level[2 * len(pairs) :]
        level = [*range(classes + len(children), classes + len(children) + len(pairs)), *rest]
        children += pairs
    return Hierarchy(tuple(f"class {i}" for i in range(classes)), tuple(children), ("",) * len(children))


def chain(classes: int) -> Hierarchy:
    """As deep as can be."""
    children = ((0, 1), *((i + 1, classes + i - 1) for i in range(1, classes - 1)))
    return Hierarchy(tuple(f"class {i}" for i in range(classes)), children, ("",) * (classes - 1))


def test_size_of_pages() -> None:
    assert len(small_page()) < 60_000
    tree = large_tree()
    counts = np.zeros((1000, tree.nodes), dtype=np.int64)
    for leaf in range(1000):
        counts[leaf, tree.paths[leaf][tree.paths[leaf] >= 0]] = 50
    assert len(hierarchy_page(tree, title="large", frequencies=counts)) < 600_000
    assert len(hierarchy_page(chain(3000), title="deep")) < 1_000_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("no Chromium here; name one by CHROMIUM")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def opened(browser: Browser, path: Path, page: str, **how: Any) -> None:
    path.write_text(page, encoding="utf-8")
    browser.problems.clear()
    browser.open(path, how.pop("width", 1280), how.pop("height", 800), **how)
    assert browser.value("document.documentElement.dataset.ready") == "yes"


def names(browser: Browser, chosen: str = ".node") -> list[str]:
    """Labels of nodes, from top to bottom."""
    return list(browser.value(f"[...document.querySelectorAll('{chosen} .name')].map((one) => one.textContent)"))


def choose(browser: Browser, control: str, value: str) -> None:
    event = f"s.value = {json.dumps(value)}; s.dispatchEvent(new Event('change'))"
    browser.value(f"(() => {{ const s = document.getElementById({json.dumps(control)}); {event} }})()")


def test_page_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path / "tree.html", small_page())
    everything = ["thing", "vehicle", "ship", "truck", "cat, dog", "cat", "dog"]
    assert names(browser) == everything
    corner = browser.value(
        "(({x, y, width, height}) => [x + width / 2, y + height / 2])"
        "(document.getElementById('node-4').getBoundingClientRect())"
    )
    browser.click(*corner)
    assert names(browser) == ["thing", "vehicle", "cat, dog", "cat", "dog"], "a click closes a node"
    assert browser.value("document.getElementById('node-4').getAttribute('aria-expanded')") == "false"
    assert browser.value("document.activeElement.id") == "node-4"
    browser.press("ArrowRight")
    assert names(browser) == everything
    choose(browser, "image", "0")
    assert names(browser, ".lit") == ["thing", "cat, dog", "cat"], "the path lights up"
    assert browser.value("[...document.querySelectorAll('.lit .share')].map((one) => one.textContent)") == [
        "90 %",
        "80 %",
    ]
    assert browser.value("document.querySelectorAll('#links path.lit').length") == 2
    panel = browser.value("document.getElementById('panel').innerText")
    assert "Predicted cat with 72 %" in panel and "as labelled" in panel
    assert "cat, dog 90 %, cat 80 %" in browser.value("document.getElementById('said').textContent")
    choose(browser, "image", "1")
    assert names(browser, ".truth") == ["vehicle", "ship"]
    assert "labelled ship" in browser.value("document.getElementById('panel').innerText")
    choose(browser, "class", "0")
    assert browser.value("document.getElementById('image').value") == ""
    assert names(browser, ".lit") == ["thing", "cat, dog", "cat"] and names(browser, ".node.aside") == [
        "vehicle",
        "ship",
        "dog",
    ]
    assert browser.value("document.querySelector('#node-0 .share').textContent") == "80 %"
    choose(browser, "class", "")
    assert names(browser, ".lit") == [] and browser.problems == []
    for leaf, count in ((0, 1), (1, 2)):
        browser.value(f"document.getElementById('node-{leaf}').click()")
        shown = browser.value("[...document.querySelectorAll('#panel .gallery img')].map((one) => one.naturalWidth)")
        assert shown == [4] * count, "all thumbnails of the class, and they can be drawn"
    assert browser.value("document.querySelectorAll('#node-1 .thumb').length") == 1
    assert browser.problems == []


def test_keyboard_and_roles_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path / "tree.html", small_page())
    nodes = browser.value(
        "[...document.querySelectorAll('#tree > *')].map((n) => ['role', 'aria-level', 'aria-setsize', 'aria-posinset',"
        " 'aria-expanded', 'tabindex'].map((a) => n.getAttribute(a)))"
    )
    assert nodes[0] == ["treeitem", "1", "1", "1", "true", "0"]
    assert nodes[1] == ["treeitem", "2", "2", "1", "true", "-1"] and nodes[3] == ["treeitem", "3", "2", "2", None, "-1"]
    browser.value("document.getElementById('node-6').focus()")
    walk = [
        ("ArrowDown", "node-4"), ("ArrowRight", "node-1"), ("ArrowRight", "node-1"), ("ArrowDown", "node-3"),
        ("ArrowLeft", "node-4"), ("ArrowLeft", "node-4"), ("ArrowDown", "node-5"), ("End", "node-2"), ("Home", "node-6"),
        ("c", "node-5"), ("*", "node-5"), ("v", "node-4"), ("ArrowUp", "node-6"), ("ArrowUp", "node-6"),
    ]  # fmt: skip
    for key, expected in walk:
        browser.press(key)
        assert browser.value("document.activeElement.id") == expected, key
        assert browser.value("document.querySelectorAll('#tree [tabindex=\"0\"]').length") == 1
    assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    scale = float(browser.value("document.getElementById('stage').dataset.scale"))
    browser.press("-")
    assert float(browser.value("document.getElementById('stage').dataset.scale")) == pytest.approx(0.8 * scale)
    before = browser.value("document.getElementById('node-6').getBoundingClientRect().y")
    browser.mouse("mouseWheel", 400, 400, deltaX=0, deltaY=50)
    assert browser.value("document.getElementById('node-6').getBoundingClientRect().y") == pytest.approx(
        before - 50, abs=1
    )
    browser.mouse("mousePressed", 400, 300, button="left", clickCount=1)
    browser.mouse("mouseMoved", 440, 350, button="left", buttons=1)
    browser.mouse("mouseReleased", 440, 350, button="left", clickCount=1)
    assert browser.value("document.getElementById('node-6').getBoundingClientRect().y") == pytest.approx(before, abs=1)
    assert browser.problems == []


@pytest.mark.parametrize(("width", "phone"), [(1280, False), (390, True)])
def test_a_thousand_classes_in_a_browser(browser: Browser, tmp_path: Path, width: int, phone: bool) -> None:
    """It starts closed below a depth, fits, and stays quick with everything open."""
    tree = large_tree()
    path = [int(node) for node in tree.paths[777] if node >= 0]
    decision = Decision(777, tuple(Choice(node, 0.9) for node in path[1:]))
    page = hierarchy_page(tree, title="large", decisions=[DecidedImage(decision=decision, title="an image", label=778)])
    opened(browser, tmp_path / "large.html", page, width=width, phone=phone)
    inside = (
        "(() => { const s = document.getElementById('stage').getBoundingClientRect();"
        " return [...document.querySelectorAll('.node')].every((n) => { const r = n.getBoundingClientRect();"
        " return r.x >= s.x - 1 && r.right <= s.right + 1 && r.y >= s.y - 1 && r.bottom <= s.bottom + 1; }); })()"
    )
    assert 5 <= len(names(browser)) <= 60 and browser.value(inside)
    assert browser.value("document.documentElement.scrollWidth") <= width, (
        "the page itself is never wider than the window"
    )
    choose(browser, "image", "0")
    assert names(browser, ".lit")[-1] == "class 777" and len(names(browser, ".lit")) == len(path)
    choose(browser, "find", "class 4")
    assert browser.value("document.querySelector('[aria-selected=true]').id") == "node-4"
    browser.value("document.getElementById('open').click()")
    assert browser.value("document.querySelectorAll('.node').length") == tree.nodes
    browser.value("document.getElementById('fit').click()")
    assert browser.value(inside)
    assert browser.problems == []


def test_deep_trees_and_hostile_names_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path / "deep.html", hierarchy_page(chain(1500), title="deep"))
    browser.value("document.getElementById('open').click()")
    assert browser.value("document.querySelectorAll('.node').length") == 2999 and browser.problems == []
    tree = Hierarchy((HOSTILE, "b"), ((0, 1),), (HOSTILE,))
    opened(browser, tmp_path / "hostile.html", hierarchy_page(tree, title=HOSTILE), dark=True)
    assert names(browser) == [HOSTILE, HOSTILE, "b"] and browser.problems == []
