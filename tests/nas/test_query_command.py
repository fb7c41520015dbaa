"""`nas query` and `nas.query`: files that `nas train` takes, all or none of them, and one line for wrong input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import nas
from nas.cli.main import run
from nas.querying import query, write_answers
from predictor.config import PredictorConfig
from predictor.fit import fit
from predictor.pool import sobol_pool
from predictor.predictor import Predictor
from predictor.shipped import shipped_predictor
from predictor.trials import Trials
from recipes.recipe import Recipe
from recipes.space import load_joint
from search_spaces.architecture import Architecture
from search_spaces.cost import cost
from search_spaces.errors import UserError
from search_spaces.limits import Limit
from search_spaces.variables import Choice, Range, VariableSet

LATENCIES = str(Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "latency_digits_onnxruntime.json")
COUNTING = {"num_classes": 10, "in_channels": 1}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A predictor of the digits' joint space."""
    space = load_joint("digits-joint")
    rows = sobol_pool(space, 40, {"flops": Limit(high=0.5e6, low=0.1e6)}, seed=0, **COUNTING)
    flops = space.statistics(rows, **COUNTING)["flops"]
    made = fit(
        space, rows, 95 + 2 * np.log(flops / 2e5), seed=0, config=PredictorConfig(members=2, epochs=10), **COUNTING
    )
    path = tmp_path_factory.mktemp("predictor") / "digits.npz"
    made.save(path)
    return path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that ends with code 2."""
    assert run(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("nas: ")
    return lines[0]


def test_answers_are_written_and_one_trains(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "answers"
    asked = [
        "query",
        "--predictor",
        str(file),
        "--space",
        "digits-joint",
        "--flops",
        "0.2M,0.1M:0.15M",
        "--params",
        "40K",
    ]
    assert run([*asked, "--top", "2", "--fix", "resolution=12", "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 7 and f"nas train {out / '1'} --recipe {out / '1' / 'recipe.json'}" in printed[-1]
    table = pd.read_csv(out / "answers.csv")
    assert table["answer"].tolist() == [1, 2, 3, 4] and table["resolution"].unique().tolist() == [12]
    for number, limit in enumerate([Limit(high=0.2e6)] * 2 + [Limit(high=0.15e6, low=0.1e6)] * 2, start=1):
        architecture = Architecture.load(out / str(number) / "architecture.json")
        exact = cost(architecture, **COUNTING)
        stored = json.loads((out / str(number) / "answer.json").read_text())
        assert exact.flops == stored["flops"] == table["flops"][number - 1] and limit.holds(exact.flops)
        assert exact.params == stored["params"] <= 40_000
        recipe = Recipe.load(out / str(number) / "recipe.json")
        assert stored["values"]["optimizer"] == recipe.optimizer == table["optimizer"][number - 1]
        assert architecture.name == recipe.name and architecture.name.startswith("digits-joint-1")
    assert not [path for path in out.parent.iterdir() if path != out]
    first = out / "1"
    trained = ["train", str(first), "--recipe", str(first / "recipe.json"), "--data", "digits", "--epochs", "1"]
    assert run([*trained, "--out", str(tmp_path / "trained")]) == 0


def test_one_answer_lies_in_the_folder_itself(file: Path, tmp_path: Path) -> None:
    (result,) = nas.query(file, flops="0.2M", out=tmp_path / "one")
    assert Architecture.load(tmp_path / "one" / "architecture.json") == result.answers[0].architecture
    assert not (tmp_path / "one" / "1").exists()


def test_nothing_is_half_written(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = query(file, flops="0.2M")

    def full(self: Recipe, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Recipe, "save", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left"):
        write_answers(results, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_fronts_latency_and_classes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["query", "--predictor", str(file)]
    assert run([*asked, "--pareto", "0.1M:0.3M", "--points", "4", "--latency-table", LATENCIES]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and "latency_ms" in lines[0]
    (result,) = query(file, latency_ms="0.09", latency_table=LATENCIES, classes=20, pareto="params=10K:30K", points=3)
    assert all(answer.quantities["latency_ms"] <= 0.09 for answer in result.answers)
    for answer in result.answers:
        assert answer.architecture is not None
        assert answer.quantities["params"] == cost(answer.architecture, num_classes=20, in_channels=1).params


def test_a_run_folder_starts_from_its_best_candidates(file: Path, tmp_path: Path) -> None:
    space = load_joint("digits-joint")
    rows = sobol_pool(space, 4, {"flops": Limit(high=0.2e6, low=0.1e6)}, seed=9, **COUNTING)
    trials = Trials(tmp_path / "trials.db", space, {})
    trials.add(1, rows, 0)
    for trial in trials.read()[:3]:
        trials.record(trial.id, [90.0 + trial.id], 1.0)
    trials.fail(4, "diverged")
    shutil.copy(file, tmp_path / "predictor.npz")
    trials.frame().to_csv(tmp_path / "trials.csv", index=False)
    (result,) = query(tmp_path, flops="0.2M")
    assert result.answers[0].predicted >= Predictor.load(file).predict(rows).max()
    from nas.querying import _best_rows

    assert _best_rows(tmp_path / "trials.csv", space).tolist() == rows[[2, 1, 0]].tolist()


def test_a_tabular_benchmark_answers_from_its_own_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = VariableSet([Choice("op", ("a", "b", "c")), Range("width", tuple(range(1, 21)))])
    rows = np.indices((3, 20)).reshape(2, -1).T.astype(np.int64)
    flops = 1e6 * (rows[:, 1] + 1.0)
    scores = 60 + rows[:, 1] + 3.0 * (rows[:, 0] == 1)
    made = fit(space, rows, scores, seed=0, statistics={"flops": flops}, config=PredictorConfig(members=1, epochs=60))
    made.save(tmp_path / "bare.npz")
    lines = pd.DataFrame(
        {"op": [space.variables[0].options[i] for i in rows[:, 0]], "width": rows[:, 1] + 1, "flops": flops}
    )
    lines.to_csv(tmp_path / "all.csv", index=False)
    asked = ["query", "--predictor", str(tmp_path / "bare.npz")]
    assert "ask it about a table of candidates" in refused([*asked, "--flops", "5M"], capsys)
    assert (
        run([*asked, "--candidates", str(tmp_path / "all.csv"), "--flops", "5M", "--out", str(tmp_path / "out")]) == 0
    )
    printed = capsys.readouterr().out
    assert "op=b width=5" in printed
    stored = json.loads((tmp_path / "out" / "answer.json").read_text())
    assert stored["values"] == {"op": "b", "width": "5"} and stored["flops"] == 5e6


def test_wrong_input_is_one_line(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "damaged.npz").write_bytes(file.read_bytes()[:500])
    asked = ["query", "--predictor", str(file)]
    for arguments, message in [
        ([*asked, "--flops", "1K"], "networks of digits-joint have flops from"),
        ([*asked, "--flops", "lots"], "'lots' is not a quantity"),
        ([*asked, "--flops", "0.1M,0.2M", "--params", "1K,2K"], "only one limit may have several values"),
        ([*asked, "--fix", "resolution"], "--fix takes NAME=VALUE"),
        ([*asked, "--fix", "resolution=9"], "resolution must be one of 8, 12, 16"),
        ([*asked, "--fix", "resolution=8", "--fix", "resolution=12"], "given twice"),
        ([*asked, "--space", "fbnetv3"], "is a predictor of another space"),
        ([*asked, "--space", "fbnetv9"], "unknown space 'fbnetv9'"),
        ([*asked, "--latency-ms", "3"], "needs a latency table"),
        ([*asked, "--latency-table", str(tmp_path / "none.json")], "none.json"),
        ([*asked, "--pareto", "1M,2M"], "a front has one range"),
        ([*asked, "--pareto", "0.1M:0.2M", "--top", "2"], "leave out top"),
        ([*asked, "--pareto", "0.1M:0.2M", "--flops", "0.2M"], "leave out its limit"),
        ([*asked, "--preset", "best"], "unknown preset 'best'"),
        ([*asked, "--out", str(tmp_path / "there")], "is there already"),
        ([*asked, "--top", "0"], "top must be at least 1"),
        ([*asked, "--points", "0", "--pareto", "0.1M:0.2M"], "points must be at least 1"),
        (["query", "--predictor", str(tmp_path / "none.npz")], "cannot read"),
        (["query", "--predictor", str(tmp_path / "damaged.npz")], "is damaged"),
        (["query", "--predictor", str(tmp_path)], "holds no predictor.npz"),
        (["query", "--space", "digits-joint"], "no predictor of space 'digits-joint' comes with the toolkit"),
        ([*asked, "--candidates", str(tmp_path / "none.csv")], "cannot read"),
    ]:
        assert message in refused(arguments, capsys), arguments


def test_the_predictor_that_comes_with_the_toolkit_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = shipped_predictor("fbnetv3-cifar")
    assert file.stat().st_size < 1_000_000
    facts = Predictor.load(file).facts
    assert facts.rows > 0 and facts.command.startswith(
        "predictor fit --space fbnetv3-cifar --table benchmarks/results/"
    )
    assert run(["query", "--flops", "6M", "--out", str(tmp_path / "q")]) == 0
    architecture = Architecture.load(tmp_path / "q" / "architecture.json")
    assert cost(architecture, num_classes=10, in_channels=3).flops <= 6e6
    assert "nas train" in capsys.readouterr().out
