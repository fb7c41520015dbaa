"""``nas predictor``: anybody's space and table in, a predictor's file and an honest report out."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nas.cli.main import run
from nas.predictors import fit_predictor
from predictor.config import PRESETS, PredictorConfig
from predictor.predictor import Predictor
from recipes.loading import load_variables
from search_spaces.errors import UserError
from search_spaces.limits import Limit
from search_spaces.sampling import uniform_rows
from search_spaces.space import SearchSpace
from search_spaces.tables import SpaceTables
from search_spaces.variables import Choice, Range, VariableSet

TINY = Path(__file__).with_name("tiny_space.yaml")
FAST = PRESETS["table"].replace(members=2, epochs=100, batch_size=8)
QUICK = PredictorConfig(members=1, epochs=5)
SPACE = """\
name: bench
variables:
  op1: [none, skip, conv1x1, conv3x3]
  op2: [none, skip, conv1x1, conv3x3]
  lr: (0.01, 0.05, 0.01)
  width: {range: [8, 16, 32]}
  flag: [true, false]
"""
WORTH = {"none": -4.0, "skip": -1.0, "conv1x1": 1.0, "conv3x3": 3.0}


def true_score(values: dict[str, Any]) -> float:
    """Percent, of any row of SPACE."""
    score = 70 + WORTH[values["op1"]] + 0.5 * WORTH[values["op2"]] + 2 * math.log2(values["width"] / 8)
    return score - 3 * ((values["lr"] - 0.03) / 0.02) ** 2 + (0.5 if values["flag"] else 0.0)


def table_of(variables: VariableSet, n: int, score: Callable[[dict[str, Any]], float], seed: int = 0) -> pd.DataFrame:
    """``n`` different random candidates with their scores."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.unique(uniform_rows(variables, 4 * n, rng), axis=0))[:n]
    lines = [variables.values(row) for row in rows]
    named = [{name: getattr(value, "name", value) for name, value in line.items()} for line in lines]
    return pd.DataFrame(named).assign(accuracy=[score(line) for line in lines])


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A folder with space and table."""
    (tmp_path / "bench.yaml").write_text(SPACE)
    table_of(load_variables(tmp_path / "bench.yaml"), 120, true_score).to_csv(tmp_path / "table.csv", index=False)
    return tmp_path


def test_any_table_is_learnt(bench: Path) -> None:
    """The bound, 0.75: one in eight pairs of 24 held-out scores may be in the wrong order."""
    found = fit_predictor(bench / "bench.yaml", bench / "table.csv", out=bench / "my.npz", preset=FAST)
    assert (found.candidates, found.held_out) == (120, 24)
    for who in ("predictor", "boosted trees"):
        assert found.report[who].keys() == {"mse", "kendall_tau", "spearman", "r2"}
    assert found.report["predictor"]["kendall_tau"] > 0.75 < found.report["predictor"]["spearman"]
    assert found.report["predictor"]["mse"] < 2 and found.report["predictor"]["r2"] > 0.8
    facts = found.predictor.facts
    assert facts.rows == 120 and facts.metrics["held_out_kendall_tau"] == found.report["predictor"]["kendall_tau"]
    assert facts.metrics["held_out_boosted_trees_mse"] == found.report["boosted trees"]["mse"]

    loaded = Predictor.load(bench / "my.npz")  # the file knows its space
    space = load_variables(bench / "bench.yaml")
    assert (loaded.variables.name, loaded.variables.variables) == ("bench", space.variables)
    new = table_of(space, 200, true_score, seed=1)
    rows = np.array([space.row(line) for line in new.drop(columns="accuracy").to_dict("records")])
    predicted = loaded.predict(rows)
    assert np.array_equal(predicted, found.predictor.predict(rows))
    assert np.corrcoef(predicted, new["accuracy"])[0, 1] > 0.95
    Predictor.load(bench / "my.npz", space)  # and is the same as the YAML file's
    (bench / "other.yaml").write_text(SPACE.replace("none, skip", "skip, none", 1))
    with pytest.raises(UserError, match="is a predictor of another space: options of op1"):
        Predictor.load(bench / "my.npz", load_variables(bench / "other.yaml"))


def test_noise_is_not_said_to_be_learnt(bench: Path) -> None:
    """Of scores drawn at random the fit knows its own by heart and none of the others: tau within 4 standard errors of 0."""
    space, rng = load_variables(bench / "bench.yaml"), np.random.default_rng(0)
    table = table_of(space, 120, lambda values: float(rng.normal(70, 3)))
    found = fit_predictor(space, table, preset=FAST.replace(members=1, epochs=80, weight_decay=0.0), share=0.4)
    n = found.held_out
    assert n == 48 and found.predictor.facts.metrics["train_mse"] < 6  # of a variance of 9
    for who in ("predictor", "boosted trees"):
        assert abs(found.report[who]["kendall_tau"]) < 4 * math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))
        assert found.report[who]["r2"] < 0.2


def test_command(bench: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(bench)
    monkeypatch.setattr("predictor.config.PRESETS", {"table": QUICK})
    arguments = ["predictor", "fit", "--space", "bench.yaml", "--table", "table.csv", "--out"]
    monkeypatch.setattr("sys.argv", ["nas", *arguments, "my.npz"])
    assert run([*arguments, "my.npz", "--held-out", "0.25", "--seed", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["fitting to 90 candidates, to be compared on 30 others", "fitting to all 120 candidates"]
    assert lines[2].split() == ["30", "held", "out", "MSE", "Kendall", "tau", "Spearman", "R2"]
    printed = {line[:13].strip(): [float(cell) for cell in line[13:].split()] for line in lines[3:5]}
    assert printed.keys() == {"predictor", "boosted trees"} and lines[5:] == ["written to my.npz"]
    metrics = Predictor.load("my.npz").facts.metrics
    names = ("mse", "kendall_tau", "spearman", "r2")
    for who, prefix in (("predictor", "held_out_"), ("boosted trees", "held_out_boosted_trees_")):
        assert printed[who] == pytest.approx([metrics[prefix + name] for name in names], rel=1e-3, abs=6e-4)

    assert run(["predictor", "show", "my.npz"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["space"] == "bench (table)" and shown["reads"] == "5 variables" and shown["candidates"] == "120"
    assert (shown["rounds"], shown["seed"]) == ("0", "3") and shown["command"] == " ".join([*arguments, "my.npz"])
    assert float(shown["held_out_kendall_tau"]) == pytest.approx(metrics["held_out_kendall_tau"], rel=1e-3)

    before = (bench / "my.npz").read_bytes()
    assert run([*arguments, "my.npz"]) == 2
    assert capsys.readouterr().err == "nas: my.npz is there already; choose another file\n"
    assert run([*arguments, "again.npz", "--held-out", "0.25", "--seed", "3"]) == 0
    assert (bench / "again.npz").read_bytes() == before, "the same arguments, the same bytes"


@pytest.mark.parametrize("preset", [None, "table"])
def test_the_unit_of_scores_does_not_matter(preset: str | None, bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Powers of two, by which floats scale without rounding."""
    monkeypatch.setattr("predictor.config.PRESETS", {"table": PRESETS["table"].replace(members=1, epochs=3)})
    table, rows = pd.read_csv(bench / "table.csv"), np.eye(5, dtype=np.int64)
    found = [
        fit_predictor(bench / "bench.yaml", table.assign(accuracy=table["accuracy"] * factor), preset=preset)
        for factor in (1.0, 2.0**-40, 2.0**20)
    ]
    assert found[0].predictor.predict(rows).std() > 0.1
    for other, factor in zip(found[1:], (2.0**-40, 2.0**20), strict=True):
        assert np.array_equal(other.predictor.predict(rows), found[0].predictor.predict(rows) * factor)
        assert other.predictor.facts.metrics["train_mse"] == found[0].predictor.facts.metrics["train_mse"] * factor**2
        for who, values in found[0].report.items():
            assert other.report[who]["mse"] == pytest.approx(values["mse"] * factor**2, rel=1e-9)
            assert other.report[who]["kendall_tau"] == values["kendall_tau"]


def test_a_configuration_means_what_it_says(bench: Path) -> None:
    """Huber's delta of one's own is in the scores' unit: so large a one gives the squared error at any scale."""
    asked: list[PredictorConfig] = []
    table, space = pd.read_csv(bench / "table.csv"), load_variables(bench / "bench.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("predictor.fit.fit", lambda *given, config, **options: asked.append(config) or 1 / 0)
        for preset in (QUICK.replace(huber_delta=2.0), "thesis", None):
            with pytest.raises(ZeroDivisionError):
                fit_predictor(space, table[:9], preset=preset)
    deviation = float(table["accuracy"][:9].to_numpy().std())
    assert [config.huber_delta for config in asked] == pytest.approx([2.0 * 3 / deviation, 1.0, 1.0])
    assert asked[2] == PRESETS["table"]


def test_small_tables_have_no_report(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd.read_csv(bench / "table.csv")[:9].to_csv(bench / "nine.csv", index=False)
    paths = [str(bench / name) for name in ("bench.yaml", "nine.csv", "my.npz")]
    assert run(["predictor", "fit", "--space", paths[0], "--table", paths[1], "--out", paths[2]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fitting to all 9 candidates" and lines[1] == "no comparison: 9 candidates, 10 are needed"
    facts = Predictor.load(paths[2]).facts
    assert facts.rows == 9 and facts.metrics.keys() == {"train_mse"}
    one = fit_predictor(paths[0], pd.read_csv(paths[1])[:1], preset=QUICK)
    assert (one.candidates, one.held_out, one.report) == (1, 0, {})


def test_constant_scores_are_told(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd.read_csv(bench / "table.csv")[:20].assign(accuracy=71.1).to_csv(bench / "flat.csv", index=False)
    paths = [str(bench / name) for name in ("bench.yaml", "flat.csv", "my.npz")]
    assert run(["predictor", "fit", "--space", paths[0], "--table", paths[1], "--out", paths[2]]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("predictor ")]
    assert line.split()[2:4] == ["-", "-"]
    assert "- where scores or predictions are all the same and nothing can be ranked" in lines
    loaded = Predictor.load(paths[2])
    assert "held_out_kendall_tau" not in loaded.facts.metrics and "held_out_mse" in loaded.facts.metrics
    assert loaded.predict(np.zeros((1, 5), dtype=np.int64)) == pytest.approx(71.1, abs=0.5)


def flops_of(space: SearchSpace) -> Callable[[dict[str, Any]], float]:
    """Score of a network's values: ten times the decimal logarithm of its FLOPs."""
    tables = SpaceTables(space, num_classes=10, in_channels=1)
    return lambda values: 10 * math.log10(int(tables.cost(space.row(values)).flops[0]))


def test_networks_are_counted_and_pretrained_on() -> None:
    space = load_variables(TINY)
    assert isinstance(space, SearchSpace)
    table, said = table_of(space, 60, flops_of(space)), list[str]()
    preset = QUICK.replace(epochs=60)
    found = fit_predictor(TINY, table, num_classes=10, in_channels=1, preset=preset, pool=300, log=said.append)
    assert said[0].startswith("pretraining on 300 networks of ") and said[0].endswith(" FLOPs")
    assert found.predictor.statistics == ("flops", "params") and found.predictor.num_classes == 10
    assert found.predictor.facts.metrics["pretraining_r2_flops"] > 0.9
    assert found.report["predictor"]["kendall_tau"] > 0.9  # FLOPs are an input
    rows = uniform_rows(space, 50, np.random.default_rng(5))
    true = [flops_of(space)(space.values(row)) for row in rows]
    assert np.corrcoef(found.predictor.predict(space.canonical(rows)), true)[0, 1] > 0.95


def test_the_range_of_pretraining(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("predictor.pretrain.pretrain", lambda joint, **options: asked.append(options))
    space = load_variables(TINY)
    assert isinstance(space, SearchSpace)
    table = table_of(space, 40, flops_of(space)).sort_values("accuracy")
    flops = 10 ** (table["accuracy"].to_numpy() / 10)
    fast: dict[str, Any] = {"num_classes": 10, "in_channels": 1, "preset": PredictorConfig(members=1, epochs=1)}

    fit_predictor(space, table, **fast)
    limit = asked[-1]["flops"]
    assert (limit.low, limit.high) == (pytest.approx(flops.min()), pytest.approx(flops.max()))
    assert asked[-1]["num_classes"] == 10 and asked[-1]["in_channels"] == 1 and 500 <= asked[-1]["pool"] <= 1728
    fit_predictor(space, table[:12], **fast)  # too narrow: all networks
    assert asked[-1]["flops"] is None and asked[-1]["pool"] > 500
    fit_predictor(space, table[:12], flops=Limit(high=2e4, low=1e4), **fast)
    assert asked[-1]["flops"] == Limit(high=2e4, low=1e4) and asked[-1]["pool"] < 500
    said = list[str]()
    fit_predictor(space, table[:12], flops=Limit(high=10.0), **fast, log=said.append)
    assert len(asked) == 3 and said[0] == "no pretraining: 0 networks of tiny were found in the range"


def test_flops_of_the_table_will_do() -> None:
    space, said = load_variables(TINY), list[str]()
    table = table_of(space, 40, lambda values: 70 + values["resolution"]).assign(flops=np.arange(40) + 1e6)
    found = fit_predictor(space, table, preset=QUICK, log=said.append)
    assert found.predictor.statistics == ("flops",) and found.predictor.num_classes is None
    assert "flops stand in the table only: ask about candidates whose numbers you give" in said
    bare = VariableSet([Range("x", tuple(range(30))), Choice("flops", (1, 2))])
    lines = pd.DataFrame({"x": np.arange(30), "flops": 1, "params": 5.0, "accuracy": np.arange(30.0)})
    assert fit_predictor(bare, lines, preset=QUICK).predictor.statistics == ("params",)  # flops is a variable here
    assert fit_predictor(bare, lines, preset=QUICK, columns=False).predictor.statistics == ()


def test_joint_and_recipe_spaces() -> None:
    def by_lr(values: dict[str, Any]) -> float:
        return 70 + 100 * values["lr"] + (1 if values["optimizer"] == "sgd" else 0)

    recipes = load_variables("fbnetv3-recipe")
    found = fit_predictor("fbnetv3-recipe", table_of(recipes, 60, by_lr), preset=QUICK.replace(epochs=60))
    assert found.predictor.statistics == () and found.report["predictor"]["kendall_tau"] > 0.6
    joint = load_variables("digits-joint")
    found = fit_predictor(
        "digits-joint", table_of(joint, 20, by_lr), preset="thesis", num_classes=10, in_channels=1, pool=20
    )
    assert len(found.predictor.variables) == len(joint) and found.held_out == 4


NO_TABLE = "op1,op2,lr,width,flag,accuracy\n"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--space": "bnch.yaml"}, "cannot read space bnch.yaml: No such file or directory"),
        ({"--space": "digts"}, "unknown space 'digts'; did you mean 'digits'? (or a .yaml file, or module:function)"),
        ({"--space": "broken.yaml"}, "broken.yaml, line 4: lr must be [options], (low, high, step) or {range: [numbers]}, got"),
        ({"--space": "os:getcwd"}, "space os:getcwd: the function returned str, not a space or a VariableSet"),
        ({"--space": "digits-joint", "--classes": "10"}, "table.csv has no column 'resolution'"),
        ({"--space": str(TINY)}, "table.csv has no column 'resolution'"),
        ({"--space": "wider.yaml"}, "table.csv, line 3: width must be one of 8, 16, 64, got '32'"),
        ({"--table": "nothing.csv"}, "cannot read nothing.csv: No such file or directory"),
        ({"--table": "."}, ". must be a .csv or .parquet file"),
        ({"--table": "bench.yaml"}, "bench.yaml must be a .csv or .parquet file"),
        ({"--table": "empty.csv"}, "empty.csv is empty"),
        ({"--table": "heading.csv"}, "heading.csv has no lines"),
        ({"--table": "junk.csv"}, "junk.csv is not a readable csv table"),
        ({"--table": "junk.parquet"}, "junk.parquet"),
        ({"--table": "close.csv"}, "scores must vary by 1e-05 of their size, or not at all; column 'accuracy' has"),
        ({"--table": "huge.csv"}, "scores must be at most 1e+15, got 1e+20 in column 'accuracy'"),
        ({"--score": "acuracy"}, "table.csv has no column 'acuracy'; did you mean 'accuracy'?"),
        ({"--score": "lr"}, "column 'lr' is the score, but also a variable of the space"),
        ({"--score": "op1"}, "column 'op1' is the score, but also a variable of the space"),
        ({"--epoch": "3"}, "table.csv has no column 'epoch' to look for epoch 3"),
        ({"--classes": "10"}, "bench has no networks to count; leave out the number of classes"),
        ({"--flops": "1M:2M"}, "a range of FLOPs is of no use to bench where none are counted"),
        ({"--flops": "1M,2M"}, "--flops must be one range, got 1M,2M"),
        ({"--flops": "many"}, "'many' is not a quantity"),
        ({"--held-out": "0"}, "share must be in (0, 1), got 0.0"),
        ({"--held-out": "nan"}, "share must be in (0, 1), got nan"),
        ({"--held-out": "0.01"}, "a share of 0.01 holds out 1 of 120 candidates; a comparison needs 2"),
        ({"--preset": "thesys"}, "unknown preset 'thesys'; did you mean 'thesis'?"),
        ({"--seed": "-1"}, "seed must be >= 0, got -1"),
        ({"--out": "table.csv"}, "table.csv is there already; choose another file"),
        ({"--out": "."}, ". is there already; choose another file"),
        ({"--out": "no/my.npz"}, "cannot write no/my.npz: there is no folder no"),
        ({"--classes": "ten"}, "(got 'ten')"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(
    changes: dict[str, str],
    words: str,
    bench: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(bench)
    Path("broken.yaml").write_text("name: broken\nvariables:\n  op: [a]\n  lr: (0.01, 0.05)\n")
    Path("wider.yaml").write_text(SPACE.replace("32", "64"))
    Path("empty.csv").write_bytes(b"")
    Path("heading.csv").write_text(NO_TABLE)
    for name in ("junk.csv", "junk.parquet"):
        Path(name).write_bytes(np.random.default_rng(0).bytes(5000))
    good = pd.read_csv("table.csv")
    good.assign(accuracy=1e7 + good["accuracy"]).to_csv("close.csv", index=False)
    good.assign(accuracy=1e20).to_csv("huge.csv", index=False)
    before = sorted(path.name for path in bench.iterdir())
    given = {"--space": "bench.yaml", "--table": "table.csv", "--out": "my.npz", **changes}
    assert run(["predictor", "fit", *(part for pair in given.items() for part in pair)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("nas: ") and words in line
    assert sorted(path.name for path in bench.iterdir()) == before


def test_networks_need_classes_or_columns() -> None:
    space = load_variables(TINY)
    table = table_of(space, 20, lambda values: float(values["resolution"]))
    for given in (table, table.assign(flops=1e6)):
        with pytest.raises(UserError, match=r"tiny has networks: give the number of classes \(--classes\)"):
            fit_predictor(space, given, columns=False)
    with pytest.raises(UserError, match=r"num_classes must be in 1\.\.1000000, got 0"):
        fit_predictor(space, table, num_classes=0)
    with pytest.raises(UserError, match=r"flops must be a number > 0, got 0 in row 0"):
        fit_predictor(space, table.assign(flops=0), preset=QUICK)


def test_a_variable_called_epoch_is_refused() -> None:
    space = VariableSet([Range("epoch", (1, 2, 3))])
    with pytest.raises(UserError, match="column 'epoch' is the epoch of a line, but also a variable of the space"):
        fit_predictor(space, pd.DataFrame({"epoch": [1, 2], "accuracy": [1.0, 2.0]}))


def test_files_of_own_spaces_are_shown_without_them(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = load_variables(TINY)
    table = table_of(space, 9, lambda values: float(values["resolution"])).assign(flops=np.arange(9) + 1e6)
    fit_predictor(space, table, out=bench / "tiny.npz", preset=QUICK, command=["two\nlines"])
    with pytest.raises(UserError, match="the space 'tiny' is none of the toolkit's; give it with the file"):
        Predictor.load(bench / "tiny.npz")
    assert run(["predictor", "show", str(bench / "tiny.npz")]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["space"] == "tiny (architecture)" and shown["reads"] == f"{len(space)} variables, flops"
    assert shown["command"] == r"'two\nlines'"
    content = (bench / "tiny.npz").read_bytes()
    for name, damaged in (("cut.npz", content[: len(content) // 2]), ("junk.npz", b"junk"), ("empty.npz", b"")):
        (bench / name).write_bytes(damaged)
        assert run(["predictor", "show", str(bench / name)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"{name} is damaged or no predictor of this toolkit" in line
    assert run(["predictor", "show", str(bench / "no.npz")]) == 2
    assert "no.npz: No such file or directory" in capsys.readouterr().err


def test_torch_comes_with_the_first_fit_only(fresh_python: Callable[[str], str]) -> None:
    code = "import sys, nas\nnas.fit_predictor, nas.load_variables, nas.Predictor\nprint('torch' in sys.modules)"
    assert fresh_python(code).strip() == "False"
