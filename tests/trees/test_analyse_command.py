"""`nas nbdt analyse`: five commands on a small network over four classes, with images of others."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import nas
from nas.cli.main import run
from nas.trees.hierarchy import Hierarchy

SEEN = ("automobile", "cat", "dog", "truck")
UNSEEN = ("chair", "lion", "motorcycle", "zzyx")


def folder(path: Path, names: tuple[str, ...], size: int = 3) -> str:
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for number, name in enumerate(names):
            (path / part / name).mkdir(parents=True)
            for index in range(size):
                pixels = rng.integers(0, 90, (20, 20, 3)) + 40 * number
                Image.fromarray(pixels.astype(np.uint8)).save(path / part / name / f"{index}.png")
    return f"imagefolder:{path}"


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """RUN: trained for TREE, whose root 6 tells carnivores from motor vehicles; data sets SEEN, UNSEEN and ODD."""
    path = tmp_path_factory.mktemp("analyse")
    seen = folder(path / "seen", SEEN)
    assert run(["spaces", "sample", "digits", "--flops", "0.1M:0.3M", "--out", str(path / "arch"), "--classes", "4",
                "--in-channels", "3"]) == 0  # fmt: skip
    (architecture,) = (path / "arch").glob("*.json")
    nas.train(architecture, seen, out=path / "run", epochs=1, batch_size=6)
    Hierarchy(SEEN, ((1, 2), (0, 3), (4, 5)), ("carnivore", "motor vehicle", "whole")).save(
        path / "run" / "hierarchy.json"
    )
    return {
        "RUN": str(path / "run"), "SEEN": seen, "UNSEEN": folder(path / "unseen", UNSEEN),
        "ODD": folder(path / "odd", ("qqv", "zzyx"), 1), "OUT": str(path / "table.csv"), "SHEET": str(path / "sheet.png"),
    }  # fmt: skip


def call(where: dict[str, str], *arguments: str) -> int:
    given = [where.get(argument, argument) for argument in arguments]
    return run(["nbdt", "analyse", *given, "--threads", "1"])


def table(where: dict[str, str], *arguments: str) -> pd.DataFrame:
    assert call(where, *arguments, "--out", "OUT") == 0
    return pd.read_csv(where["OUT"])


def test_entropy(where: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    frame = table(where, "entropy", "RUN", "--top", "2")
    found = nas.tree_outputs(where["RUN"])
    expected = nas.path_entropy(found.hierarchy, found.logits, found.labels)
    pd.testing.assert_frame_equal(frame, expected, check_dtype=False, rtol=1e-6)
    printed = capsys.readouterr().out
    assert "2 of 12 lines" in printed and f"written to {where['OUT']}" in printed
    assert len(table(where, "entropy", "RUN", "--unseen", "UNSEEN", "--part", "train")) == 12


def test_unseen_images_are_prepared_as_those_of_training(where: dict[str, str]) -> None:
    """The same pixels give the same logits, whatever their own source normalises with."""
    found = nas.tree_outputs(where["RUN"], unseen=where["SEEN"])
    assert found.class_names == SEEN
    np.testing.assert_allclose(found.logits, nas.tree_outputs(where["RUN"]).logits, atol=1e-4)


def test_node(where: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    frame = table(where, "node", "RUN", "root", "--unseen", "UNSEEN")
    assert frame["class"].fillna("").tolist() == ["lion", "motorcycle", "", "", ""]
    assert frame["images"].tolist() == [3, 3, 3, 3, 6] and frame["child"].tolist() == [4, 5, 4, 5, -1]
    printed = capsys.readouterr().out
    assert "node 6, whole: 2 unseen classes" in printed and "the hypothesis is" in printed
    more = table(
        where, "node", "RUN", "whole", "--unseen", "UNSEEN", "--means", "animal,artifact", "--expect", "zzyx=carnivore"
    )
    assert more["class"].dropna().tolist() == ["lion", "zzyx", "chair", "motorcycle"]
    assert call(where, "node", "RUN", "4", "--unseen", "UNSEEN", "--expect", "lion=cat", "--threshold", "0") == 0
    assert "only 1 of 2 children tested" in capsys.readouterr().out


def test_superclasses(where: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    frame = table(where, "superclasses", "RUN", "--unseen", "UNSEEN", "--node", "root", "--baseline", "RUN")
    assert frame["superclasses"].tolist() == ["carnivore vs. motor vehicle"] and frame["images"].tolist() == [6]
    assert "carnivore vs. motor vehicle" in capsys.readouterr().out
    nodes = table(where, "node", "RUN", "root", "--unseen", "UNSEEN")
    assert frame["tree"][0] == pytest.approx(nodes["accuracy"].iloc[-1])


def test_similar_and_paths(where: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    frame = table(where, "similar", "RUN", "root", "cat", "--unseen", "UNSEEN", "--count", "5", "--sheet", "SHEET")
    assert frame["node"].tolist() == [6] * 5 + [1] * 5 and not frame["seen"].any()
    assert Image.open(where["SHEET"]).size[0] == 5 * (Image.open(where["SHEET"]).size[1] // 2)
    assert "whole: " in capsys.readouterr().out
    paths = table(where, "paths", "RUN", "dog", "cat")
    assert set(paths["label"]) == {"dog", "cat"} and (paths[paths["node"] == 6]["images"] == 3).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["node", "RUN", "root", "--unseen", "SEEN"], "no unseen classes: all 4"),
        (["node", "RUN", "carnivor", "--unseen", "UNSEEN"], "did you mean 'carnivore'"),
        (["node", "RUN", "cat", "--unseen", "UNSEEN"], "node 1 is no inner node"),
        (["node", "RUN", "root", "--unseen", "ODD"], "is in WordNet, such as 'qqv'"),
        (["node", "RUN", "root", "--unseen", "UNSEEN", "--means", "zzyx,vehicle"], "WordNet has no noun 'zzyx'"),
        (["node", "RUN", "root", "--unseen", "UNSEEN", "--expect", "lion"], "CLASS=CHILD"),
        (["node", "RUN", "root", "--unseen", "UNSEEN", "--expect", "lon=4"], "did you mean 'lion'"),
        (["superclasses", "RUN", "--unseen", "ODD"], "is in WordNet"),
        (["superclasses", "RUN", "--unseen", "digits"], "have 1 channels, the network takes 3"),
        (["superclasses", "RUN"], "--unseen"),
        (["similar", "RUN", "99"], "0..6"),
        (["similar", "RUN", "--count", "0"], "count must be >= 1"),
        (["paths", "RUN", "dogg"], "did you mean 'dog'"),
        (["entropy", "RUN", "--part", "tst"], "did you mean 'test'"),
        (["entropy", "RUN", "--out", "/nowhere/at/all.csv"], "cannot write /nowhere/at/all.csv"),
        (["entropi", "RUN"], "entropi"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], words: str, where: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert call(where, *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
