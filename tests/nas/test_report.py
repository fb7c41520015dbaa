"""`nas report` and what runs write of themselves: folders made by hand, one real search and training, wrong input."""

import itertools
import json
import math
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import pytest

import nas
from nas.cli.main import run
from nas.reporting import live
from nas.reporting.facts import duration
from nas.reporting.live import CURVES, HEAT_MAP, NETWORK, Events, Pictures, draw_run, shown_live
from nas.reporting.page import page, run_names
from nas.reporting.runs import read_run
from predictor.trials import Trials
from search_spaces import zoo
from search_spaces.variables import Range, VariableSet

SPACE = str(Path(__file__).with_name("tiny_space.yaml"))
XHTML, SVG = "{http://www.w3.org/1999/xhtml}", "{http://www.w3.org/2000/svg}"
MINE = VariableSet([Range("width", tuple(range(8))), Range("depth", (1, 2))])
HOSTILE = "<img src=x onerror=alert(1)> & \"q\" 'a' <script>"


def search_folder(path: Path, *, epochs: int = 3, planned: int = 3, seed: int = 0, **config: Any) -> Path:
    """A search as `nas search` leaves it, ended iff all planned epochs are done."""
    path.mkdir(parents=True)
    settings = {
        "kind": "search",
        "space": {"name": "digits", "slots": {"layer1": {"stride": 2}}},
        "data": "digits",
        "budget": {"quantity": "flops", "limit": {"high": 200000.0, "low": 0.0}},
        "search": {"epochs": planned, "lr": 0.1},
        **config,
    }
    command = ["search", "--space", "digits", "--data", "digits", "--flops", "0.2M", "--out", str(path)]
    stored = {"config": settings, "seed": seed, "command": command, "versions": {"python": "3.11.7", "torch": "2.15.0"}}
    (path / "config.json").write_text(json.dumps(stored))
    columns = (
        "epoch,weights_loss,weights_accuracy,alpha_loss,alpha_accuracy,tau,cost_weight,expected_flops,argmax_flops"
    )
    rows = [
        f"{e},{2 - e / 9},{10.0 + e},nan,{20.5 + e},{5 * 0.9**e},1.0,{150e3 + e},{140e3},2.5" for e in range(epochs)
    ]
    (path / "metrics.csv").write_text("\n".join([f"{columns},seconds", *rows]) + "\n")
    alpha = [f"{e},0.0,{e},{-e}" for e in range(epochs)]
    (path / "alpha.csv").write_text("\n".join(["epoch,width=8,width=16,width=24", *alpha]) + "\n")
    if epochs >= planned:
        zoo.load("fbnetv2_f1").save(path / "architecture.json")
        cost = {"flops": 190000, "params": 30000, "params_all": 31000}
        result = {"schema": 1, "cost": cost, "argmax_cost": {**cost, "flops": 210000}, "repaired": True}
        (path / "result.json").write_text(json.dumps(result))
    return path


def train_folder(path: Path, accuracy: float = 98.0) -> Path:
    """A training as `nas train` leaves it."""
    path.mkdir(parents=True)
    config = {"kind": "train", "architecture": "torchvision:resnet18", "recipe": {"name": "digits", "epochs": 2, "lr": 0.1},
              "data": "digits", "resolution": 32}  # fmt: skip
    (path / "config.json").write_text(json.dumps({"config": config, "seed": 1, "command": [], "versions": {}}))
    (path / "metrics.csv").write_text(
        "epoch,lr,train_loss,test_loss,test_accuracy,seconds\n0,0.1,2,1.9,50,60\n1,0.05,1,0.8,98,65\n"
    )
    result = {"accuracy": accuracy, "standard_error": 0.74, "correct": 353, "total": 360, "loss": 0.1, "flops": 1234567}
    (path / "result.json").write_text(json.dumps(result))
    return path


def nars_folder(path: Path) -> Path:
    """Two rounds of `nas nars`: two done in each, then one failed and one waiting."""
    path.mkdir(parents=True)
    config = {"kind": "nars", "space": "digits-joint", "data": "digits", "threshold": 0.92}
    (path / "config.json").write_text(
        json.dumps({"config": config, "seed": 0, "command": ["nars", "--out", str(path)]})
    )
    trials = Trials(path / "trials.db", MINE, {"space": "mine"})
    for number, (depth, epochs) in enumerate(((0, 3), (1, 2)), start=1):
        rows = np.array([[width, depth] for width in range(4)])
        trials.add(number, rows, 0, {"flops": [1e6, 2e6, 3e6, 4e6], "params": [1, 2, 3, 4]})
        first = 4 * (number - 1) + 1
        for place in range(2 if number == 2 else 4):
            trials.record(first + place, [10.0 * number + place + epoch for epoch in range(epochs)], 6.0)
        if number == 2:
            trials.fail(first + 2, "it diverged")
    return path


def query_folder(path: Path, answers: int = 2) -> Path:
    """What `nas query` writes."""
    path.mkdir(parents=True)
    lines = ["answer,predicted,spread,flops,params,resolution,lr"]
    for number in range(1, answers + 1):
        lines.append(f"{number},{75 + number}.25,0.5,{number}000000,1000,32,0.1")
        folder = path if answers == 1 else path / str(number)
        folder.mkdir(exist_ok=True)
        zoo.load("fbnetv2_f1").save(folder / "architecture.json")
        (folder / "recipe.json").write_text("{}")
        (folder / "answer.json").write_text(
            json.dumps({"predicted": 75.25 + number, "spread": 0.5, "flops": number * 1e6, "values": {"lr": "0.1"}})
        )
    (path / "answers.csv").write_text("\n".join(lines) + "\n")
    return path


def parsed(path: Path) -> ElementTree.Element:
    """The page, which must be well-formed, need nothing else, and be readable by ear and keyboard."""
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    known = {"http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg"}
    assert set(re.findall(r"https?://[^\"' <)]+", text)) <= known
    anchors = {element.attrib["id"] for element in root.iter() if "id" in element.attrib}
    for element in root.iter():
        tag = element.tag.rsplit("}")[-1]
        assert tag not in ("script", "img", "iframe", "object", "embed", "link", "image", "use")
        names = set(element.attrib)
        assert not names & {"src", "srcset", "style"} and not any(name.startswith("on") for name in names)
        if "href" in element.attrib:
            assert element.attrib["href"][0] == "#" and element.attrib["href"][1:] in anchors
        if tag == "table":
            assert element.findtext(f"{XHTML}caption")
            assert all(cell.get("scope") for cell in element.iter(f"{XHTML}th"))
        if tag == "svg":
            assert element.get("role") == "img" and element.findtext(f"{SVG}title") and element.get("aria-label")
    levels = [int(e.tag[-1]) for e in root.iter() if re.fullmatch(r"h\d", e.tag.rsplit("}")[-1])]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels)), "no level is left out"
    return root


def words(root: ElementTree.Element) -> str:
    """All text of the page."""
    return " ".join(" ".join(root.itertext()).split())


def table(root: ElementTree.Element, caption: str) -> dict[str, list[str]]:
    """Cells of the first table of that name, by the head of its row."""
    found = next(t for t in root.iter(f"{XHTML}table") if t.findtext(f"{XHTML}caption") == caption)
    rows = [["".join(cell.itertext()) for cell in row] for row in found.iter(f"{XHTML}tr")]
    return {first: rest for first, *rest in rows}


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], *expected: str) -> str:
    """Exit code 2 and one line on stderr that holds all words."""
    capsys.readouterr()
    assert run(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    for word in expected:
        assert word in lines[0]
    return lines[0]


def test_page_of_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = search_folder(tmp_path / "a")
    assert run(["report", str(folder)]) == 0
    assert str(folder / "report.html") in capsys.readouterr().out
    root = parsed(folder / "report.html")
    result = table(root, "Result")
    assert result["FLOPs (multiply-adds)"] == ["190,000, 0.950 of the budget"]
    assert result["before the repair"] == ["210,000 FLOPs (multiply-adds) of the argmax network"]
    assert result["network"] == ["fbnetv2_f1, 23 blocks"] or result["network"][0].startswith("fbnetv2_f1, ")
    assert result["state"] == ["ended"] and result["CPU time"] == ["7.5 s"]
    assert result["accuracy of alpha's images"] == ["22.50 % at the last epoch"]
    blocks = [e for e in root.iter(f"{SVG}rect") if "block" in e.get("class", "").split()]
    assert len(blocks) == 2 * len(zoo.load("fbnetv2_f1").blocks), "a wide picture and a narrow one"
    titles = [e.findtext(f"{SVG}title") for e in root.iter(f"{SVG}svg")]
    tau = next(e for e in root.iter(f"{SVG}svg") if e.findtext(f"{SVG}title") == "temperature tau")
    assert {"1", "2", "3"} <= {label.text for label in tau.iter(f"{SVG}text")}, "epochs are counted from 1"
    assert {"cross entropy", "accuracy, %", "temperature tau", "alpha of width", "FLOPs (multiply-adds)"} <= set(titles)
    assert table(root, "Settings")["search.lr"] == ["0.1"] and table(root, "Settings")["space"] == ["digits"]
    assert table(root, "Versions")["torch version"] == ["2.15.0"]
    assert f"nas search --space digits --data digits --flops 0.2M --out {folder}" in words(root)
    assert f"nas train {folder} --data digits --out {folder}-trained" in words(root)
    assert len(table(root, "Blocks")) == 1 + len(zoo.load("fbnetv2_f1").blocks)


def test_run_that_has_not_ended(tmp_path: Path) -> None:
    folder = search_folder(tmp_path / "a", epochs=2, planned=90)
    with (folder / "metrics.csv").open("a") as file:
        file.write("2,1.0,nan,")  # a process is writing it, or was when it was killed
    root = parsed(nas.report(folder))
    assert table(root, "Result")["state"] == ["not ended: 2 of 90 epochs done"]
    assert "This run has not ended" in words(root) and "--out " + str(folder) + " --resume" in words(root)
    assert "Export the network" not in words(root) and "Train the network" not in words(root)
    for name in ("metrics.csv", "alpha.csv"):
        (folder / name).unlink()
    assert "not ended: 0 of 90 epochs done" in words(parsed(nas.report(folder)))


def test_several_runs_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = search_folder(tmp_path / "one"), search_folder(tmp_path / "two", seed=7, device="cuda")
    third = train_folder(tmp_path / "deep" / "one")
    monkeypatch.chdir(tmp_path)
    assert nas.report([first, second, third, first]) == Path("report.html")
    root = parsed(tmp_path / "report.html")
    results = table(root, "Results")
    assert results["what"] == [str(first), "two", str(third)], (
        "runs of one name are told apart; none stands there twice"
    )
    assert results["seed"] == ["0", "7", "1"]
    assert results["test accuracy"] == ["", "", "98.00 % ± 0.74 (353 of 360 test images)"]
    differing = table(root, "Settings that differ")
    assert differing["device"] == ["", "cuda", ""] and differing["seed"] == ["0", "7", "1"] and "data" not in differing
    headings = [(e.tag[-1], e.text) for e in root.iter() if re.fullmatch(r"h[123]", e.tag.rsplit("}")[-1])]
    assert headings[:3] == [("1", "Report on 3 runs"), ("2", "Comparison"), ("3", "Curves side by side")]
    charts = [e for e in root.iter(f"{SVG}svg") if e.findtext(f"{SVG}title") == "accuracy of alpha's images, %"]
    assert len(charts) == 1 and "two" in {label.text for label in charts[0].iter(f"{SVG}text")}
    assert "Networks side by side" in words(root)


def test_folder_of_runs_stands_for_all_of_them(tmp_path: Path) -> None:
    for name in ("random0", "train"):
        train_folder(tmp_path / "demo" / name)
    search_folder(tmp_path / "demo" / "search")
    (tmp_path / "demo" / "other").mkdir()
    path = nas.report(tmp_path / "demo")
    assert path == tmp_path / "demo" / "report.html"
    assert table(parsed(path), "Results")["what"] == ["search", "random0", "train"]
    assert nas.report(tmp_path / "demo") == path, "a report is written over an older one"


def test_rounds_of_candidates(tmp_path: Path) -> None:
    """Later rounds train two epochs, so accuracies of all are those after two."""
    folder = nars_folder(tmp_path / "nars")
    before = (folder / "trials.db").read_bytes()
    root = parsed(nas.report(folder))
    assert (folder / "trials.db").read_bytes() == before
    rounds = table(root, "Rounds")
    assert rounds["1"] == ["4", "0", "0", "14.00", "4M", "12.50"]
    assert rounds["2"] == ["2", "1", "1", "22.00", "2M", "21.50"]
    result = table(root, "Result")
    assert result["best candidate"] == ["number 6: 22.00 % with 2M FLOPs"] and result["early stop"] == ["after epoch 2"]
    assert result["state"] == ["not ended: 7 of 8 candidates chosen so far are done"]
    assert result["CPU time"] == ["36.0 s"]
    scatter = next(e for e in root.iter(f"{SVG}svg") if "after epoch 2" in (e.findtext(f"{SVG}title") or ""))
    assert len(list(scatter.iter(f"{SVG}circle"))) == 6 + 2, "and two in the legend"
    assert [path.name for path in draw_run(folder)] == [CURVES]
    (folder / "result.json").write_text('{"stop_epoch": 2, "rank_correlations": [0.1, 0.95, 1.0]}')
    assert not read_run(folder).ended, "more rounds were asked for"
    Trials(folder / "trials.db", MINE, {"space": "mine"}).record(8, [20.0, 21.0], 1.0)
    assert read_run(folder).ended
    titles = [e.findtext(f"{SVG}title") for e in parsed(nas.report(folder)).iter(f"{SVG}svg")]
    assert "rank correlation with the final accuracy" in titles


def test_answers_of_a_query(tmp_path: Path) -> None:
    root = parsed(nas.report(query_folder(tmp_path / "two")))
    assert table(root, "Answers")["2"] == ["77.25 ± 0.50", "2M", "1K", "32"]
    blocks = [e for e in root.iter(f"{SVG}rect") if "block" in e.get("class", "").split()]
    assert len(blocks) == 2 * len(zoo.load("fbnetv2_f1").blocks)
    assert f"nas train {tmp_path}/two/1 --recipe {tmp_path}/two/1/recipe.json" in words(root)
    for folder in (query_folder(tmp_path / "one", answers=1), tmp_path / "two" / "1"):
        assert table(parsed(nas.report(folder)), "Result")["predicted accuracy"] == ["76.25 ± 0.50"]


def test_candidates_and_runs_of_other_loops(tmp_path: Path) -> None:
    """A candidate's network stands in its configuration only; a loop of one's own may write any numbers."""
    folder = train_folder(tmp_path / "1")
    network = zoo.load("fbnetv2_f1")
    config = {"id": 1, "seed": 0, "architecture": network.to_json(), "recipe": {"epochs": 9}, "epochs": 2}
    (folder / "config.json").write_text(json.dumps({"config": config}))
    assert read_run(folder).ended and read_run(folder).architecture == network
    (folder / "config.json").write_text(json.dumps({"config": {"mine": [1, 2.5, None, True]}}))
    (folder / "metrics.csv").write_text("epoch,my number\n0,1\n5,2\n")
    (folder / "result.json").unlink()
    root = parsed(nas.report(folder))
    assert "my number" in [e.findtext(f"{SVG}title") for e in root.iter(f"{SVG}svg")]
    assert table(root, "Settings")["mine"] == ["1, 2.5, none, yes"]


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "")
    folder = search_folder(tmp_path / name, data=HOSTILE, **{f"</td>{HOSTILE}": "</script><script>alert(2)</script>"})
    stored = json.loads((folder / "config.json").read_text())
    stored["command"] = ["search", "</pre><script>alert(3)</script>\x1b[31m\x00"]
    stored["versions"] = {HOSTILE: HOSTILE}
    (folder / "config.json").write_text(json.dumps(stored))
    (folder / "alpha.csv").write_text(f"epoch,</svg>{'<script>'}=1,</svg>{'<script>'}=2\n0,0,0\n")
    root = parsed(nas.report([folder, train_folder(tmp_path / "b\udcff")], out=tmp_path / "page.html"))
    assert name in words(root).replace("\n", " ") and HOSTILE in words(root) and "\ufffd[31m\ufffd" in words(root)
    assert draw_run(folder)
    for file in folder.glob("*.svg"):
        assert not list(ElementTree.parse(file).getroot().iter(f"{SVG}script"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("metrics.csv", b"epoch,loss\n0,1\n1\n", "line 3: it has 1 values, the header 2"),
        ("metrics.csv", b"epoch,loss\n0,one\n", "line 2"),
        ("metrics.csv", b"epoch,loss\n1,2\n0,3\n", "epochs must be whole numbers and rise"),
        ("metrics.csv", b"epoch,loss\n1,2\n1,3\n", "epochs must be whole numbers and rise"),
        ("metrics.csv", b"epoch,loss\nnan,2\n", "epochs must be whole numbers"),
        ("metrics.csv", b"epoch,loss\n1e300,2\n", "epochs must be whole numbers"),
        ("metrics.csv", b"loss,epoch\n1,2\n", "first column must be 'epoch'"),
        ("metrics.csv", b"epoch,a,a\n1,2,3\n", "same name"),
        ("metrics.csv", b"\xff\xfe\n\n", "no text"),
        ("alpha.csv", b"epoch,a=1\n0\n", "line 2"),
        ("config.json", b"{", "not valid JSON"),
        ("config.json", b"[]", "damaged"),
        ("config.json", b'{"config": {}, "command": 3}', "command"),
        ("config.json", b'{"config": {}, "versions": 3}', "versions"),
        ("result.json", b"[1]", "mapping"),
        ("result.json", b'{"cost": {"flops": "many"}}', "cost.flops must be a number, got 'many'"),
        ("config.json", b'{"config": {"a":' + b"[" * 600 + b"]" * 600 + b"}}", "nested too deeply"),
        ("result.json", b'{"choices": ["ir_k3"]}', "choices must be a mapping"),
        ("result.json", b"\xff", "not valid JSON"),
        ("architecture.json", b'{"schema": 9}', "schema"),
        ("trials.db", b"no database", "no table of candidates"),
        ("trials.db", b"", "no table of candidates"),
    ],
)
def test_damaged_files(
    name: str, content: bytes, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = search_folder(tmp_path / "a")
    (folder / "report.html").write_text("older")
    (folder / name).write_bytes(content)
    line = refused(capsys, ["report", str(folder)], expected)
    assert str(folder / name) in line or "nested" in line
    assert (folder / "report.html").read_text() == "older" and not list(folder.glob(".*"))


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = search_folder(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "x.html").mkdir()
    refused(capsys, ["report", str(tmp_path / "none")], "none: there is no such folder")
    refused(capsys, ["report", str(tmp_path / "empty")], "is not a run folder", "config.json")
    refused(capsys, ["report", str(tmp_path / "file")], "is a file")
    refused(capsys, ["report", str(folder), str(tmp_path / "none")], "no such folder")
    refused(capsys, ["report", str(folder), "--out", str(tmp_path / "model.pt")], ".html")
    refused(capsys, ["report", str(folder), "--out", str(tmp_path / "x.html")], "is a folder")
    refused(capsys, ["report", str(folder), "--out", str(tmp_path / "no" / "x.html")], "there is no folder")
    refused(capsys, ["report"], "RUN")
    broken = query_folder(tmp_path / "q")
    (broken / "answers.csv").write_text("answer,predicted\n1\n")
    refused(capsys, ["report", str(broken)], "answers.csv is damaged")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "empty", "file", "x.html", "q"}
    assert not list(folder.glob("*.html"))


def test_names_and_times() -> None:
    assert [duration(s) for s in (2.34, 59.99, 61, 3599.6, 7380)] == [
        "2.3 s", "60.0 s", "1 min 01 s", "1 h 00 min", "2 h 03 min"
    ]  # fmt: skip
    runs = [SimpleNamespace(name=n, path=Path(p)) for n, p in (("a", "x/a"), ("b", "x/b"), ("a", "y/a"))]
    assert run_names(runs) == ["x/a", "b", "y/a"]  # type: ignore[arg-type]


def test_same_run_same_page(tmp_path: Path) -> None:
    read = read_run(search_folder(tmp_path / "a"))
    assert page([read]) == page([read])


def test_pictures_take_a_hundredth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes 2 s here, so the next one is due 200 s after it."""
    now, drawn = [0.0], []

    def draw(path: Path) -> None:
        drawn.append(now[0])
        now[0] += 2

    monkeypatch.setattr(live, "draw_run", draw)
    pictures = Pictures(tmp_path, clock=lambda: now[0])
    for _ in range(100):
        now[0] += 30
        pictures.on_epoch_end(SimpleNamespace(row={}))
    assert all(b - a >= 200 for a, b in itertools.pairwise(drawn)) and len(drawn) == 15


def test_pictures_never_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = search_folder(tmp_path / "a")
    (folder / "metrics.csv").write_text("nonsense\n")
    with shown_live(folder) as shown:
        for callback in shown:
            callback.on_step_end(SimpleNamespace())
            callback.on_epoch_end(SimpleNamespace(row={"loss": 1.0}, epoch=0))
        shutil.rmtree(folder)
    assert "pictures of" in caplog.text and "not written" in caplog.text
    with shown_live(None) as shown:
        assert shown == []


def test_an_error_in_the_run_is_not_hidden(tmp_path: Path) -> None:
    folder = search_folder(tmp_path / "a")
    with pytest.raises(KeyError), shown_live(folder):
        raise KeyError("mine")
    assert not list(folder.glob("*.svg"))


class Writer:
    """Stands for TensorBoard's; keeps what it is told."""

    made: ClassVar[list["Writer"]] = []

    def __init__(self, path: str, purge_step: int) -> None:
        self.path, self.purge_step, self.closed = path, purge_step, False
        self.scalars: list[tuple[str, float, int]] = []
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if name == "full":
            raise OSError("no space left on device")
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Writer]]:
    """TensorBoard as if it were installed, with our writer."""
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(live, "has_tensorboard", lambda: True)
    Writer.made = []
    yield Writer.made


def test_events_hold_the_numbers_of_metrics(tmp_path: Path, writers: list[Writer]) -> None:
    folder = search_folder(tmp_path / "a")
    with shown_live(folder) as shown:
        for epoch in (4, 5):  # a resumed run: what an earlier process wrote from epoch 4 on is replaced
            state = SimpleNamespace(epoch=epoch, row={"epoch": epoch, "loss": 1.5, "alpha_loss": math.nan, "tau": 5.0})
            for callback in shown:
                callback.on_epoch_end(state)
    (writer,) = writers
    assert writer.path == str(folder) and writer.purge_step == 4 and writer.closed
    assert writer.scalars == [("loss", 1.5, 4), ("tau", 5.0, 4), ("loss", 1.5, 5), ("tau", 5.0, 5)]


def test_a_full_disk_is_told_once(tmp_path: Path, writers: list[Writer], caplog: pytest.LogCaptureFixture) -> None:
    events = Events(tmp_path)
    for epoch in range(5):
        events.on_epoch_end(SimpleNamespace(epoch=epoch, row={"epoch": epoch, "full": 1.0}))
    assert caplog.text.count("no space left") == 1


def test_real_events_can_be_read(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = Events(tmp_path)
    for epoch in range(3):
        events.on_epoch_end(SimpleNamespace(epoch=epoch, row={"epoch": epoch, "loss": 2.0 - epoch}))
    events.close()
    read = EventAccumulator(str(tmp_path)).Reload()  # type: ignore[no-untyped-call]
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(0, 2.0), (1, 1.0), (2, 0.0)]


def test_a_search_and_a_training_draw_themselves(tmp_path: Path) -> None:
    found = nas.search(SPACE, "digits", flops="30K", out=tmp_path / "search", epochs=3, images=200)
    nas.train(found.architecture, "digits", out=tmp_path / "train", epochs=1)
    assert {CURVES, NETWORK, HEAT_MAP} <= {path.name for path in (tmp_path / "search").iterdir()}
    assert {CURVES, NETWORK} <= {path.name for path in (tmp_path / "train").iterdir()}
    for path in tmp_path.glob("*/*.svg"):
        ElementTree.parse(path)
    root = ElementTree.parse(tmp_path / "search" / NETWORK).getroot()
    boxes = [e for e in root.iter() if "block" in e.get("class", "").split()]
    assert len(boxes) == len(found.architecture.blocks)
    root = parsed(nas.report(tmp_path))
    assert table(root, "Results")["what"] == ["search", "train"]
    assert "test images" in table(root, "Results")["test accuracy"][1]


def test_a_report_needs_no_torch(tmp_path: Path, fresh_python: Callable[[str], str]) -> None:
    folder = search_folder(tmp_path / "a")
    heavy = fresh_python(
        f"import sys, nas\nnas.report({str(folder)!r})\n"
        "print([m for m in ('torch', 'torchvision', 'ray', 'pandas', 'scipy', 'rich') if m in sys.modules])"
    )
    assert heavy.strip() == "[]"
