"""WordNet's nouns, synsets of classes, names of nodes and WordNet's own tree: by hand, and on well-known classes."""

import io
import json
import lzma
import zipfile
from pathlib import Path

import pytest

from nas.trees import nouns
from nas.trees.hierarchy import Hierarchy
from nas.trees.nouns import SHIPPED, load_wordnet, pack, read_folder, shipped_nouns
from nas.trees.wordnet import (
    CIFAR100,
    class_synsets,
    imagenet_wnids,
    name_nodes,
    node_synsets,
    read_synsets,
    wordnet_hierarchy,
)
from recipes.datasets import DOWNLOADS
from search_spaces.errors import UserError

CIFAR10 = DOWNLOADS["cifar10"].class_names
CIFAR10_WNIDS = (  # as in the authors' package
    "n02691156", "n02958343", "n01503061", "n02121620", "n02430045", "n02084071", "n01639765", "n02374451", "n04194289",
    "n04490091",
)  # fmt: skip
CAT, DOG, SHIP, TRUCK, OAK = "n02121620", "n02084071", "n04194289", "n04490091", "n12268246"

LICENCE = "  1 This software ...  \n  2 WordNet 3.0 Copyright 2006 by Princeton University.\n"
DATA = """\
00000001 03 n 01 entity 0 001 ~ 00000002 n 0000 | all
00000002 03 n 02 physical_entity 0 thing 1 002 @ 00000001 n 0000 + 00000009 v 0101 | a thing
00000003 06 n 01 X-ray 0 001 @ 00000002 n 0000 | a picture
00000004 15 n 01 Paris 0 002 @i 00000003 n 0000 %p 00000001 n 0000 | a town
00000005 15 n 01 thing 0 002 @ 00000003 n 0000 @ 00000002 n 0000 | something | else
"""
INDEX = """\
entity n 1 1 ~ 1 1 00000001
physical_entity n 1 2 @ + 1 0 00000002
thing n 2 2 @ + 2 1 00000005 00000002
x-ray n 1 1 @ 1 0 00000003
paris n 1 1 @i 1 0 00000004
"""


def small_folder(path: Path, data: str = LICENCE + DATA, index: str = LICENCE + INDEX) -> Path:
    """A WordNet of five nouns."""
    path.mkdir(parents=True)
    (path / "data.noun").write_text(data)
    (path / "index.noun").write_text(index)
    return path


def tree(children: tuple[tuple[int, ...], ...], classes: tuple[str, ...]) -> Hierarchy:
    return Hierarchy(classes, children, ("",) * len(children))


def test_files_of_wordnet_are_read(tmp_path: Path) -> None:
    small = read_folder(small_folder(tmp_path / "wordnet"))
    assert small.lemmas["n00000002"] == ("physical_entity", "thing")
    assert small.hypernyms["n00000005"] == ("n00000003", "n00000002")
    assert small.instances == {"n00000004"}
    assert small.senses["thing"] == ((1, "n00000005"), (2, "n00000002"))
    assert small.senses["x_ray"] == ((1, "n00000003"),)
    assert small.name("n00000002") == "physical entity"
    assert dict(small.depth) == {"n00000001": 0, "n00000002": 1, "n00000003": 2, "n00000004": 3, "n00000005": 3}
    long, short = ("n00000001", "n00000002", "n00000003", "n00000005"), ("n00000001", "n00000002", "n00000005")
    assert small.hypernym_paths("n00000005") == (long, short)
    assert small.hypernym_path("n00000005") == long
    assert small.above("n00000005") == set(long)


def test_packed_nouns_are_read_back(tmp_path: Path) -> None:
    small = read_folder(small_folder(tmp_path / "wordnet"))
    path = tmp_path / "nouns.xz"
    path.write_bytes(pack(small, ["n00000004", "n00000005"]))
    again = shipped_nouns(path)
    assert again.lemmas == small.lemmas and again.hypernyms == small.hypernyms
    assert again.instances == small.instances and again.senses == small.senses
    path.write_bytes(pack(small, ["n00000002"]))
    part = shipped_nouns(path)
    assert set(part.lemmas) == {"n00000001", "n00000002"}
    assert part.senses["thing"] == ((2, "n00000002"),), "the number of a sense is kept"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("WordNet 3.0", "WordNet 3.1"),
        ("@ 00000001 n", "@ 00000077 n"),  # a synset that is not there
        ("01 entity", "zz entity"),
        ("entity 0 001", "entity 0 009"),
        ("00000005 15", "5 15"),
        ("001 ~ 00000002", "001 @ 00000002"),  # a cycle
    ],
)
def test_damaged_files_of_wordnet(old: str, new: str, tmp_path: Path) -> None:
    assert old in LICENCE + DATA
    folder = small_folder(tmp_path / "wordnet", data=(LICENCE + DATA).replace(old, new))
    with pytest.raises(UserError, match=r"WordNet 3\.0|damaged") as caught:
        assert read_folder(folder).depth
    assert "\n" not in str(caught.value)


def test_damaged_packed_nouns(tmp_path: Path) -> None:
    path = tmp_path / "nouns.xz"
    whole = SHIPPED.read_bytes()
    bomb = lzma.compress(bytes(nouns.MAX_BYTES + 1_000_000))
    wrong = lzma.compress(b"WordNet 3.0 nouns, format 1\n\n1\n1\n\na\nb\n\n-\n5")
    for content in (b"", b"text", whole[: len(whole) // 2], bomb, wrong, lzma.compress("é".encode())):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            shipped_nouns(path)
    with pytest.raises(UserError, match="cannot read"):
        load_wordnet(tmp_path / "nowhere")


def test_installed_wordnet_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's tools and nltk name their folders in the environment; nltk keeps a zip file."""
    monkeypatch.setattr(nouns, "DEBIAN", str(tmp_path / "none"))
    monkeypatch.setattr(nouns.sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WNSEARCHDIR", raising=False)
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "nltk"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("wordnet/data.noun", LICENCE + DATA)
        archive.writestr("wordnet/index.noun", LICENCE + INDEX)
    place = tmp_path / "nltk" / "corpora" / "wordnet.zip"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"no zip file")
    assert nouns.installed() != place
    place.write_bytes(packed.getvalue())
    assert nouns.installed() == place
    assert read_folder(place).name("n00000003") == "X-ray"
    debian = small_folder(tmp_path / "debian")
    monkeypatch.setenv("WNSEARCHDIR", str(debian))
    assert nouns.installed() == debian
    assert class_synsets(["cat", "Paris", "qwertz"]) == (CAT, "n00000004", None), (
        "what is not shipped is looked up there"
    )


def test_shipped_nouns_hold_the_well_known_classes() -> None:
    shipped = load_wordnet()
    assert SHIPPED.stat().st_size < 450_000
    assert len(shipped.lemmas) > 40_000 and max(shipped.depth.values()) < 25
    assert [wnid for wnid, uppers in shipped.hypernyms.items() if not uppers] == ["n00001740"]
    assert set(imagenet_wnids()) <= set(shipped.lemmas) and len(imagenet_wnids()) == 1000
    path = "entity/physical entity/object/whole/living thing/organism/animal/chordate/vertebrate/mammal/placental"
    assert [shipped.name(wnid) for wnid in shipped.hypernym_path(DOG)] == [
        *path.split("/"),
        "carnivore",
        "canine",
        "dog",
    ]
    assert len(shipped.hypernym_paths(DOG)) == 2, "a canine and a domestic animal"


def test_synsets_of_classes() -> None:
    assert class_synsets(CIFAR10) == CIFAR10_WNIDS
    assert class_synsets(("n02084071", "dogs", "Tabby cats", "dog.n.01", "no such qwertz", "")) == (
        DOG, DOG, "n02123045", DOG, None, None,
    )  # fmt: skip
    fashion = [load_wordnet().name(synset or "") for synset in class_synsets(DOWNLOADS["fashion-mnist"].class_names)]
    assert fashion[1] == "trouser" and fashion[-1] == "boot"
    assert [load_wordnet().name(synset or "") for synset in class_synsets("0123456789")][:3] == ["zero", "one", "two"]


@pytest.mark.parametrize(
    ("word", "name", "above"),
    [
        ("shrew", "shrew", "mammal"),  # not a quarrelsome person
        ("lobster", "lobster", "animal"),  # not its flesh
        ("beaver", "beaver", "rodent"),  # not its fur
        ("man", "man", "person"),  # not the genus
        ("baby", "baby", "person"),
        ("orange", "orange", "fruit"),
        ("wolves", "wolf", "canine"),
        ("berries", "berry", "fruit"),
        ("glass", "glass", "matter"),
    ],
)
def test_likely_sense(word: str, name: str, above: str) -> None:
    (synset,) = class_synsets([word])
    wordnet = load_wordnet()
    assert synset is not None and wordnet.name(synset) == name
    assert above in {lemma for wnid in wordnet.above(synset) for lemma in wordnet.lemmas[wnid]}


def test_well_known_lists_are_recognised() -> None:
    wordnet = load_wordnet()
    lemmas = [", ".join(wordnet.lemmas[wnid]).replace("_", " ") for wnid in imagenet_wnids()]
    firsts = [wordnet.name(wnid) for wnid in imagenet_wnids()]
    assert len(set(firsts)) < 1000, "crane is two classes"
    assert class_synsets(lemmas) == class_synsets(firsts) == imagenet_wnids()
    assert class_synsets(imagenet_wnids()) == imagenet_wnids()
    assert class_synsets(list(reversed(firsts)))[999] == imagenet_wnids()[0], "tench, by its name"
    names = [*CIFAR100, "cat", "dog"]
    assert dict(zip(names, class_synsets(names), strict=True))["ray"] == "n01495701"
    assert wordnet.name(class_synsets(["ray"])[0] or "") == "beam"


def test_synsets_given_by_the_user(tmp_path: Path) -> None:
    classes = ("tank", "Meise", "blob")
    assert class_synsets(classes, {"Meise": "titmouse", "blob": None}) == ("n04389033", "n01591697", None)
    assert class_synsets(["crane"], {"crane": "crane.n.05"}) == ("n02012849",)
    path = tmp_path / "synsets"
    for content in ('{"Meise": "titmouse", "blob": null}', "Meise\ttitmouse\n\nblob\tn01591697\n"):
        path.write_text(content)
        assert class_synsets(classes, read_synsets(path, classes))[1] == "n01591697"
    path.write_text("n04389033\nn01591697\nn02084071")
    assert class_synsets(classes, read_synsets(path, classes)) == ("n04389033", "n01591697", DOG)
    for given, message in (
        ({"tnak": "n04389033"}, "tank"),
        ({"tank": "n99999999"}, "n99999999"),
        ({"tank": "qq"}, "WNID"),
    ):
        with pytest.raises(UserError, match=message):
            class_synsets(classes, given)
    for content, message in (
        ("a\nb", "2 synsets for 3"), ("a\tb\tc\n", "line 1"), ("{", "JSON"), ('{"a": 3}', "object"), ("\udcff", "text"),
    ):  # fmt: skip
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match=message):
            read_synsets(path, classes)
    with pytest.raises(UserError, match="cannot read"):
        read_synsets(tmp_path / "none", classes)


def test_names_by_hand() -> None:
    """((cat, dog), (ship, truck)): carnivores, vehicles, and what both are, a whole."""
    pairs = tree(((0, 1), (2, 3), (4, 5)), ("cat", "dog", "ship", "truck"))
    assert name_nodes(pairs, (CAT, DOG, SHIP, TRUCK)).names == ("carnivore", "vehicle", "whole")
    assert node_synsets(pairs, (CAT, DOG, SHIP, TRUCK))[0] == "n02075296"
    assert name_nodes(pairs, (CAT, CAT, DOG, "n02085374")).names == ("cat", "dog", "carnivore"), "a class above another"


def test_share_of_the_leaves() -> None:
    """Four carnivores and an oak: living things all, carnivores 80 % of them."""
    flat = tree(((0, 1, 2, 3, 4),), ("cat", "dog", "bear", "fox", "oak"))
    synsets = (CAT, DOG, "n02131653", "n02118333", OAK)
    assert name_nodes(flat, synsets).names == ("carnivore",)
    assert name_nodes(flat, synsets, share=0.81).names == name_nodes(flat, synsets, share=1).names == ("organism",)
    assert name_nodes(flat, synsets, share=0.4).names == ("canine",)
    for share in (0, -1, 1.01, float("nan")):
        with pytest.raises(UserError, match=r"share must be in \(0, 1\]"):
            name_nodes(flat, synsets, share=share)


def test_classes_without_a_synset_count_as_not_covered() -> None:
    flat = tree(((0, 1, 2), (3, 4), (5, 6)), ("cat", "dog", "?", "??", "fox"))
    synsets = (CAT, DOG, None, None, "n02118333")
    assert name_nodes(flat, synsets).names == ("", "", "")
    assert name_nodes(flat, synsets, share=0.6).names == ("carnivore", "", "carnivore")


def test_ties_go_to_what_covers_more_then_to_the_lower_wnid(tmp_path: Path) -> None:
    data = (LICENCE + DATA).replace("@i 00000003 n", "@ 00000003 n")
    small = read_folder(small_folder(tmp_path / "wordnet", data=data))
    three = tree(((0, 1, 2),), ("a", "b", "c"))
    assert node_synsets(three, ("n00000004", "n00000005", "n00000005"), 0.3, small) == ("n00000005",)
    assert node_synsets(three, ("n00000005", "n00000004", "n00000003"), 0.3, small) == ("n00000004",)


def test_users_name_nodes() -> None:
    pairs = tree(((0, 1), (2, 3), (4, 5)), ("cat", "dog", "ship", "truck"))
    synsets = (CAT, DOG, SHIP, TRUCK)
    assert name_nodes(pairs, synsets, names={5: "machines", ("dog", "cat"): "pets"}).names == (
        "pets",
        "machines",
        "whole",
    )
    for names, message in (
        ({("dog", "ship"): "x"}, "dog, ship"),
        ({0: "x"}, "no inner node"),
        ({("dog",): "x"}, "dog"),
    ):
        with pytest.raises(UserError, match=message):
            name_nodes(pairs, synsets, names=names)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="one for each of 4"):
        name_nodes(pairs, synsets[:3])
    with pytest.raises(UserError, match="class 'dog': synset 'n00000000'"):
        name_nodes(pairs, (CAT, "n00000000", SHIP, TRUCK))


def test_tree_of_wordnet_by_hand() -> None:
    """Cat and dog are carnivores; ship and truck vehicles; paths between with one child are gone."""
    found = wordnet_hierarchy(("ship", "cat", "truck", "dog"), (SHIP, CAT, TRUCK, DOG))
    assert found.names == ("whole", "vehicle", "carnivore")
    assert found.children == ((5, 6), (0, 2), (1, 3))
    nested = wordnet_hierarchy(("dog", "pug", "cat", "Katze"), (DOG, "n02110958", CAT, CAT))
    assert nested.names == ("carnivore", "dog", "cat")
    assert [sorted(children) for children in nested.children] == [[5, 6], [0, 1], [2, 3]]
    with pytest.raises(UserError, match=r"class 'blob' and 1 more: not in WordNet"):
        wordnet_hierarchy(("blob", "cat", "blub"), (None, CAT, None))
    with pytest.raises(UserError, match="needs 2"):
        wordnet_hierarchy(("cat",), (CAT,))


def test_cifar10_end_to_end(tmp_path: Path) -> None:
    """The 8 inner nodes of the authors' file, named; through a file and back."""
    made = wordnet_hierarchy(CIFAR10, class_synsets(CIFAR10))
    assert (len(made.children), int(made.depth.max()), max(map(len, made.children))) == (8, 4, 3)
    below = {
        name: {CIFAR10[leaf] for leaf in made.leaves_of(node)} for node, name in enumerate(made.names, len(CIFAR10))
    }  # fmt: skip
    assert below["carnivore"] == {"cat", "dog"} and below["ungulate"] == {"deer", "horse"}
    assert below["placental"] == below["carnivore"] | below["ungulate"]
    assert below["vertebrate"] == below["placental"] | {"bird", "frog"}
    assert below["motor vehicle"] == {"automobile", "truck"} and below["craft"] == {"airplane", "ship"}
    assert below["vehicle"] == below["motor vehicle"] | below["craft"] and below["whole"] == set(CIFAR10)
    assert name_nodes(made, class_synsets(CIFAR10), share=1).names == made.names
    made.save(tmp_path / "tree.json", ids=CIFAR10_WNIDS)
    assert Hierarchy.load(tmp_path / "tree.json", ids=CIFAR10_WNIDS).names == made.names
    assert json.loads((tmp_path / "tree.json").read_text())["nodes"][3] == {"id": CAT, "label": "cat"}


def test_tree_of_imagenet() -> None:
    """All of ImageNet's classes in one tree, none of whose nodes is without a name."""
    made = wordnet_hierarchy([str(i) for i in range(1000)], imagenet_wnids())
    assert min(map(len, made.children)) > 1 and all(made.names)
    wordnet = load_wordnet()
    dogs = next(node for node in range(1000, made.nodes) if made.name_of(node) == "dog")
    assert {int(leaf) for leaf in made.leaves_of(dogs)} == {
        i for i, wnid in enumerate(imagenet_wnids()) if DOG in wordnet.above(wnid)
    }
