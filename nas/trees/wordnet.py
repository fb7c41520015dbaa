"""WordNet as names: of classes to synsets, of inner nodes by the synsets of their leaves; and as a tree over classes.

Synsets go by WNID, "n" and 8 digits, as the classes of ImageNet do.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

from nas.trees.hierarchy import Hierarchy
from nas.trees.nouns import WNID, WordNet, key, load_wordnet, whole_wordnet
from search_spaces.errors import UserError, closest
from search_spaces.serialisation import read_json, require

Synsets = Sequence[str | None]  # WNID of each class, None where it has none
PHYSICAL, ANIMAL, PERSON, MATTER = "n00001930", "n00015388", "n00007846", "n00020827"
NOT_MEANT = ("n02471762", "n01459791", "n01321579")  # hominid, fetus, young: senses of man and baby, animals to WordNet
SHARE = 0.8  # of a node's leaves that its name must cover
CIFAR100 = {
    "aquarium_fish": "n02512053", "castle": "n02980441", "maple_tree": "n12752205",
    "plate": "n03959485", "ray": "n01495701", "seal": "n02076196", "turtle": "n01662784",
}  # its classes of which the first sense of the word is not what the images show  # fmt: skip
ALIKE = 0.6  # of ImageNet's 1000 classes, in order: a list whose names can mean that many of them is ImageNet's
ENDINGS = (
    ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("ies", "y"), ("ves", "f"), ("ves", "fe"),
    ("men", "man"), ("s", ""),
)  # of plurals  # fmt: skip
MAX_FILE_BYTES = 20_000_000


def class_synsets(
    classes: Sequence[str], given: Mapping[str, str | None] | None = None, wordnet: WordNet | None = None
) -> tuple[str | None, ...]:
    """The synset of each class.

    A class that is a WNID is that synset. ImageNet's 1000 classes, under any names, are recognised by their order. Any
    other class is looked up by its name (``lawn_mower``, ``Tabby cats``, ``tench, Tinca tinca``), failing that by its last
    words (``ankle boot`` is a boot): the first sense that is a physical thing, but an animal before a person (``shrew``) and
    before food or fur (``lobster``).

    Args:
        classes: names of the classes.
        given: synsets of some of them, for instance where the wrong sense was chosen: a WNID, a sense as ``crane.n.05``,
            another word, or None for a class that has no synset.
        wordnet: default: the shipped nouns; for classes that are not in them, the whole WordNet where one is installed.

    Raises:
        UserError: ``given`` names no class or no synset.
    """
    given = given or {}
    for name in given:
        require(name in classes, f"{name!r} is none of the {len(classes)} classes{closest(name, list(classes)[:1000])}")
    found = _found(classes, given, wordnet or load_wordnet())
    missing = [name for name, synset in zip(classes, found, strict=True) if synset is None and given.get(name, "")]
    if wordnet is None and None in found:
        whole = whole_wordnet()
        more = _found(classes, given, whole) if whole else found
        found = [old or new for old, new in zip(found, more, strict=True)]
        missing = [name for name, synset in zip(classes, found, strict=True) if synset is None and given.get(name, "")]
    for name in missing:
        raise UserError(f"class {name!r}: WordNet has no noun {given[name]!r} here; give a WNID such as n02084071")
    return tuple(found)


def read_synsets(path: str | Path, classes: Sequence[str]) -> dict[str, str | None]:
    """Synsets of classes from a file, for `class_synsets`.

    Args:
        path: JSON, an object from class to synset; or text, a line a class: the class, a tab, its synset; or only synsets,
            one for each class in order, as the authors' package has them.
        classes: names of the classes.

    Raises:
        UserError: missing, too large, or nothing of that kind.
    """
    path = Path(path)
    try:
        require(path.stat().st_size <= MAX_FILE_BYTES, f"{path} is too large for a file of synsets")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text") from error
    if text.lstrip().startswith("{"):
        stored = read_json(path)
        plain = all(value is None or isinstance(value, str) for value in stored.values())
        require(plain, f"{path} must be an object from class to synset, both as text")
        return dict(stored)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not any("\t" in line for line in lines):
        require(
            len(lines) == len(classes),
            f"{path} has {len(lines)} synsets for {len(classes)} classes; otherwise each line is a class, a tab, a synset",
        )
        return dict(zip(classes, lines, strict=True))
    pairs = [line.split("\t") for line in lines]
    for number, pair in enumerate(pairs, start=1):
        require(len(pair) == 2, f"{path}, line {number}: a class, a tab and a synset are needed")
    return {name.strip(): synset.strip() for name, synset in pairs}


def node_synsets(
    hierarchy: Hierarchy, synsets: Synsets, share: float = SHARE, wordnet: WordNet | None = None
) -> tuple[str | None, ...]:
    """For each inner node the deepest synset that covers enough of its leaves.

    A synset covers a leaf whose synset it is or is above. Of equally deep ones that which covers most leaves is taken, then
    that with the lowest WNID.

    Args:
        hierarchy: the tree.
        synsets: of each class; see `class_synsets`.
        share: in (0, 1], of all leaves of the node, those without a synset among them.
        wordnet: default: the shipped nouns, or the whole WordNet where they do not hold all synsets.

    Returns:
        WNIDs; None for a node too many of whose leaves have no synset.

    Raises:
        UserError: a wrong share, number of synsets, or an unknown synset.
    """
    require(0 < share <= 1, f"share must be in (0, 1], got {share}")
    leaves = len(hierarchy.classes)
    require(len(synsets) == leaves, f"synsets must be one for each of {leaves} classes, got {len(synsets)}")
    wordnet = wordnet or holding(synsets)
    covered: dict[int, Counter[str]] = {}
    for leaf, synset in enumerate(synsets):
        _check(synset, wordnet, hierarchy.classes[leaf])
        covered[leaf] = Counter(wordnet.above(synset) if synset else ())
    named: dict[int, str | None] = {}
    for node in map(int, hierarchy.preorder[::-1]):
        if node < leaves:
            continue
        counts = [covered.pop(child) for child in hierarchy.children_of(node)]
        total = max(counts, key=len)
        for other in counts:
            if other is not total:
                total.update(other)
        covered[node] = total
        needed = math.ceil(share * int(hierarchy.leaf_counts[node]) - 1e-9)
        enough = ((wordnet.depth[wnid], count, -int(wnid[1:])) for wnid, count in total.items() if count >= needed)
        best = max(enough, default=None)
        named[node] = best and f"n{-best[2]:08d}"
    return tuple(named[node] for node in range(leaves, hierarchy.nodes))


def name_nodes(
    hierarchy: Hierarchy,
    synsets: Synsets,
    share: float = SHARE,
    names: Mapping[int | tuple[str, ...], str] | None = None,
    wordnet: WordNet | None = None,
) -> Hierarchy:
    """The same tree with every inner node named by WordNet; see `node_synsets`. Nodes without a synset have no name.

    Args:
        hierarchy: the tree.
        synsets: of each class; see `class_synsets`.
        share: in (0, 1], of a node's leaves that its name must cover.
        names: of one's own for some nodes, by number or by the classes below them, in any order.
        wordnet: see `node_synsets`.

    Raises:
        UserError: as in `node_synsets`, or ``names`` names no inner node.
    """
    wordnet = wordnet or holding(synsets)
    found = node_synsets(hierarchy, synsets, share, wordnet)
    named = hierarchy.with_names([wordnet.name(wnid) if wnid else "" for wnid in found])
    return named.with_names({_node(hierarchy, key): name for key, name in (names or {}).items()})


def wordnet_hierarchy(classes: Sequence[str], synsets: Synsets, wordnet: WordNet | None = None) -> Hierarchy:
    """WordNet's own tree over the classes: hypernym paths merged, nodes with one child contracted, names kept.

    Where a synset has several hypernyms the deepest is its parent, so that it is a tree. A class above another class (dog,
    poodle) becomes a leaf below the node of that name; classes of one synset become siblings.

    Args:
        classes: names of the classes, at least two.
        synsets: of each class; see `class_synsets`.
        wordnet: see `node_synsets`.

    Raises:
        UserError: a class has no synset.
    """
    require(len(synsets) == len(classes), f"synsets must be one for each of {len(classes)} classes, got {len(synsets)}")
    lost = [name for name, synset in zip(classes, synsets, strict=True) if synset is None]
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    require(
        not lost,
        f"class {lost[0]!r}{more}: not in WordNet; give a synset for each class, such as n02084071" if lost else "",
    )
    wordnet = wordnet or holding(synsets)
    below: dict[str, list[str | int]] = {}
    for leaf, synset in enumerate(synsets):
        assert synset is not None
        _check(synset, wordnet, classes[leaf])
        path: list[str | int] = [*wordnet.hypernym_path(synset), leaf]
        for upper, lower in pairwise(path):
            into = below.setdefault(str(upper), [])
            if lower not in into:
                into.append(lower)
    top = next(iter(below))
    order: list[str] = []
    waiting = [top]
    while waiting:
        node = waiting.pop()
        order.append(node)
        waiting += [child for child in reversed(below[node]) if isinstance(child, str)]
    for node in reversed(order):
        below[node] = [below[one][0] if isinstance(one, str) and len(below[one]) == 1 else one for one in below[node]]
    kept = [node for node in order if len(below[node]) > 1]
    number = {node: i for i, node in enumerate(kept, start=len(classes))}
    return Hierarchy(
        classes=tuple(classes),
        children=tuple(tuple(number[one] if isinstance(one, str) else one for one in below[node]) for node in kept),
        names=tuple(wordnet.name(node) for node in kept),
    )


def _node(hierarchy: Hierarchy, given: int | tuple[str, ...]) -> int:
    """Number of an inner node given by number or by the classes below it."""
    if isinstance(given, int):
        return given
    wanted = set(given)
    for node in range(len(hierarchy.classes), hierarchy.nodes):
        if {hierarchy.classes[leaf] for leaf in hierarchy.leaves_of(node)} == wanted:
            return node
    raise UserError(f"no inner node has just the classes {', '.join(given):.200} below it")


def holding(synsets: Synsets) -> WordNet:
    """The shipped nouns if they hold all synsets, else the whole WordNet where one is installed."""
    shipped = load_wordnet()
    return shipped if all(one is None or one in shipped.lemmas for one in synsets) else whole_wordnet() or shipped


def _check(synset: str | None, wordnet: WordNet, name: str) -> None:
    known = synset is None or synset in wordnet.lemmas
    require(
        known,
        f"class {name!r}: synset {synset!r} is not among WordNet's nouns here; with a whole WordNet 3.0 installed it may be",
    )


def _found(classes: Sequence[str], given: Mapping[str, str | None], wordnet: WordNet) -> list[str | None]:
    known = _recognised(classes, wordnet)
    found: list[str | None] = []
    for i, name in enumerate(classes):
        if name in given:
            found.append(_synset(given[name] or "", wordnet))
        else:
            found.append(known[i] if known else _synset(name, wordnet))
    return found


def _recognised(classes: Sequence[str], wordnet: WordNet) -> list[str] | None:
    """Synsets of a well-known list of classes, whose names alone do not say everything."""
    if set(CIFAR100) <= set(classes):
        plain = [CIFAR100.get(name) or _synset(name, wordnet) for name in classes]
        return [one for one in plain if one] if all(plain) else None
    if len(classes) != 1000:
        return None
    imagenet = imagenet_wnids()
    meant = sum(
        any(wnid in _senses(word, wordnet) for word in _words(name))
        for name, wnid in zip(classes, imagenet, strict=True)
    )  # fmt: skip
    return list(imagenet) if meant >= ALIKE * len(classes) else None


def imagenet_wnids() -> tuple[str, ...]:
    """WNIDs of ImageNet's 1000 classes (ILSVRC 2012), in order."""
    return tuple((files("nas.trees") / "data" / "imagenet_wnids.txt").read_text(encoding="ascii").split())


def _synset(name: str, wordnet: WordNet) -> str | None:
    """Synset that a text means; see `class_synsets`."""
    text = name.strip()
    if WNID.fullmatch(text):
        return text if text in wordnet.lemmas else None
    sense = re.fullmatch(r"(.+)\.n\.([0-9]{1,2})", text)
    if sense:
        numbered = dict(wordnet.senses.get(key(sense[1]), ()))
        return numbered.get(int(sense[2]))
    for word in _words(text):
        senses = _senses(word, wordnet)
        if senses:
            return _likely(senses, wordnet)
    return None


def _words(name: str) -> Iterator[str]:
    """What to look up for a class's name, as keys: its alternatives as they are and in the singular, then their last words."""
    parts = [key(part) for part in re.split(r"[,/;]", re.sub(r"\([^)]*\)", " ", name))]
    whole = [part for part in parts if part]
    shorter = [
        "_".join(part.split("_")[start:]) for part in whole for start in range(1, len(part.split("_")))
    ]  # fmt: skip
    for word in [*whole, *shorter]:
        yield word
        for ending, instead in ENDINGS:
            if word.endswith(ending) and len(word) > len(ending) + 1 and not word.endswith("ss"):
                yield word[: len(word) - len(ending)] + instead


def _senses(word: str, wordnet: WordNet) -> list[str]:
    return [wnid for _, wnid in wordnet.senses.get(word, ())]


def _likely(senses: Sequence[str], wordnet: WordNet) -> str:
    """The sense that images of a class most likely show: kinds before single things, physical ones before others."""
    kinds = [wnid for wnid in senses if wnid not in wordnet.instances] or list(senses)
    physical = [wnid for wnid in kinds if PHYSICAL in wordnet.above(wnid)] or kinds
    first = wordnet.above(physical[0])
    if PERSON in first or MATTER in first:
        above = {wnid: wordnet.above(wnid) for wnid in physical}
        return next(
            (one for one in physical if ANIMAL in above[one] and not above[one].intersection(NOT_MEANT)), physical[0]
        )
    return physical[0]
