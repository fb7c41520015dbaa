"""WordNet 3.0's nouns: lemmas and hypernyms of synsets, by WNID ("n" and the 8 digits of the offset in data.noun).

A part of them is shipped: all kinds of physical things and all synsets of ImageNet-22k, with everything above them. A whole
WordNet 3.0 is read where a user has one, as Debian's wordnet-base or nltk's corpus. Nothing in these files is run.
"""

import lzma
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from search_spaces.errors import UserError
from search_spaces.serialisation import require

SHIPPED = Path(__file__).with_name("data") / "nouns.xz"
HEAD = "WordNet 3.0 nouns, format 1"
TOP = "-"  # instead of hypernyms
WNID = re.compile(r"n[0-9]{8}")
MAX_BYTES = 64_000_000  # of one file, unpacked; WordNet 3.0's data.noun has 15 million
MAX_SYNSETS = 200_000  # WordNet 3.0 has 82,115
DAMAGED = "is damaged: it is not a whole file of WordNet 3.0's nouns"
VERSION = "WordNet 3.0 Copyright"  # in the licence on top of data.noun: WNIDs are offsets of this version only
BY_ENVIRONMENT = ("WNSEARCHDIR", "NLTK_DATA")
DEBIAN = "/usr/share/wordnet"


@dataclass(frozen=True, eq=False)
class WordNet:
    """Nouns.

    Attributes:
        lemmas: words of each synset by WNID, the first is its name; "_" stands for a space.
        hypernyms: WNIDs of the synsets right above, in WordNet's order; none for entity.
        instances: WNIDs of single things (Paris), of which the hypernym is the kind (city).
        senses: by key (see `key`) of a word: number of the sense, counted from 1 by frequency, and WNID, ascending.
    """

    lemmas: Mapping[str, tuple[str, ...]]
    hypernyms: Mapping[str, tuple[str, ...]]
    instances: frozenset[str]
    senses: Mapping[str, tuple[tuple[int, str], ...]]

    def name(self, wnid: str) -> str:
        """The first lemma: ``domestic cat``."""
        return self.lemmas[wnid][0].replace("_", " ")

    def sense(self, word: str, wnid: str) -> int:
        """Number of the sense of a word that the synset is."""
        return next(number for number, found in self.senses[key(word)] if found == wnid)

    def above(self, wnid: str) -> frozenset[str]:
        """A synset and all above it, on every path."""
        found, waiting = {wnid}, [wnid]
        while waiting:
            new = [upper for upper in self.hypernyms[waiting.pop()] if upper not in found]
            found.update(new)
            waiting += new
        return frozenset(found)

    @cached_property
    def depth(self) -> Mapping[str, int]:
        """Edges on the longest path from the top to each synset; 0 for entity.

        Raises:
            UserError: a cycle.
        """
        below: dict[str, list[str]] = {wnid: [] for wnid in self.hypernyms}
        for wnid, uppers in self.hypernyms.items():
            for upper in uppers:
                below[upper].append(wnid)
        left = {wnid: len(uppers) for wnid, uppers in self.hypernyms.items()}
        depth = {wnid: 0 for wnid, count in left.items() if not count}
        waiting = list(depth)
        while waiting:
            upper = waiting.pop()
            for wnid in below[upper]:
                depth[wnid] = max(depth.get(wnid, 0), depth[upper] + 1)
                left[wnid] -= 1
                if not left[wnid]:
                    waiting.append(wnid)
        require(not any(left.values()), f"WordNet {DAMAGED}: synsets above each other in a cycle")
        return depth

    def hypernym_paths(self, wnid: str) -> tuple[tuple[str, ...], ...]:
        """All paths from the top to a synset, both included; the longest first, equally long ones in WordNet's order."""
        self._check(wnid)
        paths: list[tuple[str, ...]] = [(wnid,)]
        ended: list[tuple[str, ...]] = []
        while paths:
            path = paths.pop(0)
            uppers = self.hypernyms[path[0]]
            paths += [(upper, *path) for upper in uppers]
            ended += [] if uppers else [path]
        return tuple(sorted(ended, key=len, reverse=True))

    def hypernym_path(self, wnid: str) -> tuple[str, ...]:
        """The path up by the deepest hypernym, the first of equally deep ones; such paths of all synsets form a tree."""
        self._check(wnid)
        path = [wnid]
        while uppers := self.hypernyms[path[-1]]:
            path.append(max(uppers, key=self.depth.__getitem__))
        return tuple(reversed(path))

    def _check(self, wnid: str) -> None:
        require(wnid in self.lemmas, f"WordNet 3.0 has no noun {wnid!r} here")
        assert self.depth  # no cycles: every walk upwards ends


@cache
def load_wordnet(folder: str | Path | None = None) -> WordNet:
    """The shipped nouns, or all of them.

    Args:
        folder: with WordNet 3.0's data.noun and index.noun; default: the shipped part.

    Raises:
        UserError: there are no such files in it, or they are damaged.
    """
    return shipped_nouns() if folder is None else read_folder(Path(folder).expanduser())


def whole_wordnet() -> WordNet | None:
    """All nouns, where Debian's or nltk's WordNet 3.0 is installed."""
    place = installed()
    return None if place is None else load_wordnet(place)


def installed() -> Path | None:
    """Folder, or nltk's zip file, of a whole WordNet 3.0 on this machine."""
    return next(filter(_is_whole, _places()), None)


def _places() -> Iterator[Path]:
    """Where a WordNet may lie: named by the environment, Debian's folder, nltk's folders."""
    named = os.environ.get(BY_ENVIRONMENT[0])
    if named:
        yield Path(named)
    yield Path(DEBIAN)
    given = [Path(one) for one in os.environ.get(BY_ENVIRONMENT[1], "").split(os.pathsep) if one]
    prefixes = [Path(sys.prefix) / part for part in ("", "share", "lib")]
    system = [Path("/usr") / part for part in ("share", "local/share", "lib", "local/lib")]
    home = [Path(os.path.expanduser("~"))]  # noqa: PTH111  # Path.home() fails where there is none
    for folder in (*given, *(one / "nltk_data" for one in (*home, *prefixes, *system))):
        yield folder / "corpora" / "wordnet"
        yield folder / "corpora" / "wordnet.zip"


def _is_whole(place: Path) -> bool:
    try:
        if place.suffix == ".zip":
            return place.is_file() and VERSION in next(_lines_of(place, "data.noun"))
        return (place / "index.noun").is_file() and VERSION in next(_lines_of(place, "data.noun"))
    except (UserError, OSError, StopIteration):
        return False


def _lines_of(place: Path, name: str) -> Iterator[str]:
    """First the head of the file, of which the licence is part, as one text, then its lines."""
    try:
        if place.suffix == ".zip":
            with zipfile.ZipFile(place) as archive:
                info = archive.getinfo(f"wordnet/{name}")
                require(info.file_size <= MAX_BYTES, f"{place}: {name} {DAMAGED}")
                whole = archive.read(info)
        else:
            path = place / name
            require(path.stat().st_size <= MAX_BYTES, f"{path} {DAMAGED}")
            whole = path.read_bytes()
    except (OSError, KeyError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {name} of WordNet 3.0 in {place}") from error
    lines = whole.decode("latin-1").splitlines()
    start = next((i for i, line in enumerate(lines) if not line.startswith("  ")), len(lines))
    yield "\n".join(lines[:start])
    yield from lines[start:]


def read_folder(place: Path) -> WordNet:
    """WordNet 3.0's own files, or nltk's zip file with them.

    Raises:
        UserError: missing, damaged, or of another version.
    """
    ranks: dict[tuple[str, str], int] = {}
    index, data = _lines_of(place, "index.noun"), _lines_of(place, "data.noun")
    next(index)
    require(VERSION in next(data), f"{place}: data.noun is not of WordNet 3.0, whose offsets class ids are")
    synsets = []
    try:
        for line in index:
            word, _, _, pointers, *rest = line.split()
            offsets = rest[int(pointers) + 2 :]
            word = key(word)
            for i, offset in enumerate(offsets, start=1):
                ranks[word, f"n{offset}"] = i
        for line in data:
            fields = line.partition(" | ")[0].split()
            wnid, words = f"n{fields[0]}", fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            start = 5 + 2 * len(words)
            links = [fields[i : i + 2] for i in range(start, start + 4 * int(fields[start - 1]), 4)]
            above = tuple(f"n{offset}" for kind, offset in links if kind in ("@", "@i"))
            senses = tuple((word, ranks.get((key(word), wnid), 99)) for word in words)
            synsets.append((wnid, senses, above, any(kind == "@i" for kind, _ in links)))
    except (ValueError, IndexError) as error:
        raise UserError(f"{place} {DAMAGED}") from error
    return _wordnet(synsets, str(place))


def shipped_nouns(path: Path = SHIPPED) -> WordNet:
    """The part that is shipped, as `pack` wrote it.

    Raises:
        UserError: it is damaged.
    """
    try:
        whole = lzma.LZMADecompressor(memlimit=256 << 20).decompress(path.read_bytes(), max_length=MAX_BYTES)
        head, offsets, words, links = whole.decode("ascii").split("\n\n")
        require(head == HEAD, f"{path} {DAMAGED}")
        columns = [column.split("\n") for column in (offsets, words, links)]
        require(len({len(column) for column in columns}) == 1, f"{path} {DAMAGED}")
        wnids, last = [], 0
        for gap in columns[0]:
            last += int(gap)
            wnids.append(f"n{last:08d}")
        synsets = []
        for i, (line, link) in enumerate(zip(*columns[1:], strict=True)):
            senses = tuple((word, int(rank or 1)) for word, _, rank in (one.partition("#") for one in line.split(" ")))
            back = [int(one.removeprefix("i")) for one in link.split() if one != TOP]
            require(all(0 <= i - step < len(wnids) for step in back), f"{path} {DAMAGED}")
            synsets.append((wnids[i], senses, tuple(wnids[i - step] for step in back), "i" in link))
    except (OSError, lzma.LZMAError, EOFError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path} {DAMAGED}") from error
    return _wordnet(synsets, str(path))


Synset = tuple[str, tuple[tuple[str, int], ...], tuple[str, ...], bool]  # WNID; lemma, rank; hypernyms; an instance


def _wordnet(synsets: Sequence[Synset], where: str) -> WordNet:
    require(0 < len(synsets) <= MAX_SYNSETS, f"{where} {DAMAGED}")
    hypernyms = {wnid: above for wnid, _, above, _ in synsets}
    require(all(WNID.fullmatch(wnid) for wnid in hypernyms), f"{where} {DAMAGED}")
    require(all(upper in hypernyms for above in hypernyms.values() for upper in above), f"{where} {DAMAGED}")
    ranked: dict[str, list[tuple[int, str]]] = {}
    for wnid, senses, _, _ in synsets:
        for word, rank in senses:
            ranked.setdefault(key(word), []).append((rank, wnid))
    return WordNet(
        lemmas={wnid: tuple(word for word, _ in senses) for wnid, senses, _, _ in synsets},
        hypernyms=hypernyms,
        instances=frozenset(wnid for wnid, _, _, instance in synsets if instance),
        senses={word: tuple(sorted(set(found))) for word, found in ranked.items()},
    )


def pack(wordnet: WordNet, wnids: Iterable[str]) -> bytes:
    """The shipped file: these synsets and all above them, ascending, in three columns.

    The columns are the offsets, each as the difference from the one before; the lemmas, each with "#" and the number of its
    sense where that is not 1; and the hypernyms, each as the difference between line numbers, "i" before that of an instance.
    """
    kept = sorted(frozenset().union(*map(wordnet.above, wnids)))
    line = {wnid: i for i, wnid in enumerate(kept)}
    offsets = [int(wnid[1:]) for wnid in kept]
    gaps = [str(new - old) for old, new in zip([0, *offsets], offsets, strict=False)]
    words, links = [], []
    for wnid in kept:
        ranks = [(lemma, wordnet.sense(lemma, wnid)) for lemma in wordnet.lemmas[wnid]]
        words.append(" ".join(lemma if rank == 1 else f"{lemma}#{rank}" for lemma, rank in ranks))
        kind = "i" if wnid in wordnet.instances else ""
        links.append(" ".join(f"{kind}{line[wnid] - line[upper]}" for upper in wordnet.hypernyms[wnid]) or TOP)
    text = "\n\n".join([HEAD, *("\n".join(column) for column in (gaps, words, links))])
    return lzma.compress(text.encode("ascii"), preset=9 | lzma.PRESET_EXTREME)


def key(word: str) -> str:
    """How words are compared: small letters, one "_" for any run of spaces, hyphens and underscores."""
    return "_".join(word.lower().replace("-", " ").replace("_", " ").split())
