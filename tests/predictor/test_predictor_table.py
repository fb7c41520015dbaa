from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mixed_variables import MIXED, mixed_scores

from predictor.table import read_curves, read_table
from recipes.space import load_joint
from search_spaces.errors import UserError
from search_spaces.sampling import sobol_rows, uniform_rows
from search_spaces.variables import VariableSet


def frame_of(variables: VariableSet, rows: np.ndarray) -> pd.DataFrame:
    """Values of rows, written by a loop; block types by name."""
    lines = [{name: getattr(v, "name", v) for name, v in variables.values(row).items()} for row in rows]
    return pd.DataFrame(lines)


def rows_of(n: int) -> np.ndarray:
    rows = uniform_rows(MIXED, 5 * n, np.random.default_rng(0))
    return np.unique(rows, axis=0)[:n]


@pytest.fixture
def good() -> pd.DataFrame:
    rows = rows_of(30)
    return frame_of(MIXED, rows).assign(acc=mixed_scores(rows), flops=1e6 + rows[:, 1], note="free text")


@pytest.mark.parametrize("kind", ["frame", "csv", "parquet", "csv with BOM"])
def test_a_table_comes_back_as_rows(kind: str, good: pd.DataFrame, tmp_path: Path) -> None:
    source: pd.DataFrame | Path = good
    if kind == "parquet":
        source = tmp_path / "t.parquet"
        good.to_parquet(source)
    elif kind.startswith("csv"):
        source = tmp_path / "t.csv"
        good.to_csv(source, index=False, encoding="utf-8-sig" if "BOM" in kind else "utf-8")
    table = read_table(source, MIXED, score="acc")
    assert (table.rows == rows_of(30)).all() and table.rows.dtype == np.int64
    assert table.scores == pytest.approx(mixed_scores(rows_of(30)), rel=1e-12)
    assert (table.weights == 1).all() and list(table.statistics) == ["flops"]
    assert table.statistics["flops"] == pytest.approx(1e6 + rows_of(30)[:, 1])


@pytest.mark.parametrize("name", ["fbnetv3", "digits-joint"])
def test_block_types_and_recipes_round_trip(name: str, tmp_path: Path) -> None:
    space = load_joint(name)
    rows = uniform_rows(space, 50, np.random.default_rng(1))
    frame = frame_of(space, rows).assign(score=np.arange(50.0))
    frame.to_csv(tmp_path / "t.csv", index=False, float_format="%.9g")
    table = read_table(tmp_path / "t.csv", space, score="score")
    assert (table.rows == space.canonical(rows)).all() and (table.scores == np.arange(50)).all()


def test_values_may_be_written_differently(good: pd.DataFrame) -> None:
    """0.10000000001 and "1e-1" are 0.1; TRUE, "true" and 1 are true; 8.0 is 8."""
    line = good.iloc[:1].astype(object)
    line["op"], line["width"], line["depth"] = "Conv", 8.0, "3"
    expected = {"op": "conv", "width": 8, "flag": True, "rate": 0.1, "constant": "only", "depth": 3}
    for rate, flag in ((0.10000000001, "TRUE"), ("1e-1", 1), (np.float32(0.1), np.True_), ("0.100", "true")):
        table = read_table(line.assign(rate=[rate], flag=[flag]), MIXED, score="acc")
        assert MIXED.values(table.rows[0]) == expected
    assert MIXED.values(read_table(line.assign(rate=0.1, flag="false"), MIXED, score="acc").rows[0])["flag"] is False


def test_a_variable_with_one_option_may_be_missing(good: pd.DataFrame) -> None:
    assert (read_table(good.drop(columns="constant"), MIXED, score="acc").rows == rows_of(30)).all()


def test_repeated_candidates_become_their_mean(good: pd.DataFrame) -> None:
    again = good.iloc[[4, 4, 9]].assign(acc=[50.0, 60.0, 10.0])
    table = read_table(pd.concat([good, again]), MIXED, score="acc")
    assert len(table) == 30 and (table.rows == rows_of(30)).all()
    assert table.scores[4] == pytest.approx((good["acc"][4] + 110) / 3) and table.weights[4] == 3
    assert table.scores[9] == pytest.approx((good["acc"][9] + 10) / 2) and table.weights[9] == 2
    assert table.weights.sum() == 33


def test_rows_that_build_the_same_network_are_one_candidate() -> None:
    space = load_joint("fbnetv3")
    row = uniform_rows(space, 1, np.random.default_rng(0))
    both = np.repeat(row, 2, axis=0)
    both[:, space.column["stem.width"]] = [1, 2]  # 18 and 20 are both built as 24
    table = read_table(frame_of(space, both).assign(s=[70.0, 72.0]), space, score="s")
    assert len(table) == 1 and table.scores[0] == 71 and (table.rows == space.canonical(row * 0 + both[:1])).all()


def test_lines_of_one_epoch_count(good: pd.DataFrame) -> None:
    curves = pd.concat([good.assign(epoch=epoch, acc=good["acc"] + epoch) for epoch in (1, 5, 10)])
    table = read_table(curves, MIXED, score="acc", epoch=5)
    assert len(table) == 30 and table.scores == pytest.approx(good["acc"] + 5)
    with pytest.raises(UserError, match="table has lines of 3 epochs, 1 to 10; say which one counts"):
        read_table(curves, MIXED, score="acc")
    with pytest.raises(UserError, match="table has no lines of epoch 7"):
        read_table(curves, MIXED, score="acc", epoch=7)
    with pytest.raises(UserError, match="no column 'epoch'"):
        read_table(good, MIXED, score="acc", epoch=5)
    assert len(read_table(good.assign(epoch=3), MIXED, score="acc")) == 30


def test_curves_may_have_different_lengths(good: pd.DataFrame) -> None:
    texts = ["50 60.5 70.25", " 40  45.5", "", float("nan"), "1e1 20 30"]
    table = read_curves(good.iloc[:5].assign(curve=texts, round=[1, 2, 2, 2, 1]), MIXED)
    assert (table.rows == rows_of(30)[[0, 1, 4]]).all() and len(table) == 3 and table.curves.shape == (3, 3)
    assert table.epochs.tolist() == [3, 2, 3] and table.facts["round"].tolist() == [1, 2, 1]
    assert table.accuracies().tolist() == [60.5, 45.5, 20.0] and table.accuracies(1).tolist() == [50.0, 40.0, 10.0]
    for epoch in (0, 3):
        with pytest.raises(UserError, match=rf"epoch must be in 1\.\.2, which all trainings had, got {epoch}"):
            table.accuracies(epoch)
    with pytest.raises(UserError, match="table, line 2: curve must be numbers with blanks between"):
        read_curves(good.iloc[:2].assign(curve=["50 60", "50 nan"]), MIXED)
    with pytest.raises(UserError, match="table has no lines with a curve"):
        read_curves(good.assign(curve=""), MIXED)
    with pytest.raises(UserError, match="table has no column 'curve'"):
        read_curves(good, MIXED)
    with pytest.raises(UserError, match="table, line 2: width must be one of"):
        read_curves(good.iloc[:2].assign(curve="50", width=["8", "9"]), MIXED)


def test_split_is_random_and_complete(good: pd.DataFrame) -> None:
    table = read_table(good, MIXED, score="acc")
    train, test = table.split(0.2, seed=0)
    assert (len(train), len(test)) == (24, 6)
    assert sorted([*train.scores, *test.scores]) == sorted(table.scores)
    assert (table.split(0.2, seed=0)[1].rows == test.rows).all() and (
        table.split(0.2, seed=1)[1].rows != test.rows
    ).any()
    assert set(test.statistics) == {"flops"} and len(test.statistics["flops"]) == 6
    assert len(table.take(np.arange(2)).split(0.01, seed=0)[1]) == 1
    with pytest.raises(UserError, match=r"share must be in \(0, 1\), got 1"):
        table.split(1, seed=0)
    with pytest.raises(UserError, match="a table of 1 candidates cannot be split"):
        table.take(np.arange(1)).split(0.5, seed=0)


def spoiled(frame: pd.DataFrame, column: str, value: object) -> pd.DataFrame:
    frame = frame.astype({column: object})
    frame.iloc[6, frame.columns.get_loc(column)] = value
    return frame


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("width", 9, "line 7: width must be one of 8, 12, 20, 32, got '?9'?"),
        ("op", "conv2", "line 7: op must be one of conv, skip, pool, got 'conv2'"),
        ("op", "", "line 7: op must be one of conv, skip, pool, got ''"),
        ("flag", "maybe", "line 7: flag must be one of true, false, got 'maybe'"),
        ("rate", "nan", "line 7: rate must be one of 0.001, 0.01, 0.1, got 'nan'"),
        ("depth", 30, "line 7: depth must be one of 1, 2, 3, .*, got '?30'?"),
        ("acc", "nan", "line 7: acc must be a number, got 'nan'"),
        ("acc", "", "line 7: acc must be a number, got ''"),
        ("acc", "inf", "line 7: acc must be a number, got 'inf'"),
        ("flops", "many", "line 7: flops must be a number, got 'many'"),
    ],
)
def test_bad_cells_are_named(column: str, value: object, message: str, good: pd.DataFrame, tmp_path: Path) -> None:
    frame = spoiled(good, column, value)
    frame.to_csv(tmp_path / "t.csv", index=False)
    for source, label in ((frame, "table"), (tmp_path / "t.csv", "t.csv")):
        with pytest.raises(UserError, match=f"{label}, {message}") as caught:
            read_table(source, MIXED, score="acc")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_bad_tables_are_refused_in_one_line(good: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="table has no column 'width'"):
        read_table(good.rename(columns={"width": "wide"}), MIXED, score="acc")
    with pytest.raises(UserError, match="table has no column 'accuracy'"):
        read_table(good, MIXED, score="accuracy")
    with pytest.raises(UserError, match="table has no lines"):
        read_table(good.iloc[:0], MIXED, score="acc")
    with pytest.raises(UserError, match="table: column 'op' stands twice"):
        read_table(pd.concat([good, good[["op"]]], axis=1), MIXED, score="acc")
    cases = {
        "empty.csv": (b"", "is empty"),
        "heading.csv": (b"op,width,flag,rate,constant,depth,acc\n", "has no lines"),
        "twice.csv": (b"op,op\nconv,conv\n", "column 'op' stands twice"),
        "ragged.csv": (b"a,b\n1,2\n1,2,3\n", "is not a readable csv table"),
        "binary.csv": (bytes(range(128, 256)), "is not a readable csv table"),
        "text.parquet": (b"not parquet", "text.parquet"),
        "table.pkl": (b"", "must be a .csv or .parquet file"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            read_table(tmp_path / name, MIXED, score="acc")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"cannot read .*nothing.csv"):
        read_table(tmp_path / "nothing.csv", MIXED, score="acc")


def test_candidates_that_failed_or_wait_are_left_out() -> None:
    frame = pd.DataFrame([MIXED.values(row) for row in sobol_rows(MIXED, 4, seed=0)])
    frame["accuracy"] = [80.0, float("nan"), 82.0, float("nan")]
    frame["status"] = ["done", "failed", "done", "waiting"]
    assert read_table(frame, MIXED, score="accuracy").scores.tolist() == [80.0, 82.0]
    frame["status"] = ["good", "bad", "good", "ugly"]  # of somebody else's table
    with pytest.raises(UserError, match="line 2: accuracy must be a number"):
        read_table(frame, MIXED, score="accuracy")
