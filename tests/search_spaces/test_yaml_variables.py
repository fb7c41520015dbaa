import time
from pathlib import Path

import numpy as np
import pytest

from search_spaces.errors import UserError
from search_spaces.space import SearchSpace
from search_spaces.variables import Choice, Range, VariableSet
from search_spaces.yaml_space import load_yaml_space
from search_spaces.yaml_variables import load_yaml

TABLE = """\
name: my-table
variables:
  op1: [none, skip, conv1x1]       # choices
  lr: (0.01, 0.05, 0.01)           # a range
  width: {range: [8, 16, 32]}      # written out
  flag: [true, False]
"""
ROWS = "resolutions: 32\nstem: 16\nrows: [{expansion: [1, 2], width: 24}]\nhead: 480\n"


def load(tmp_path: Path, text: str) -> VariableSet:
    (tmp_path / "space.yaml").write_text(text, encoding="utf-8")
    return load_yaml(tmp_path / "space.yaml")


def options(tmp_path: Path, text: str) -> tuple[object, ...]:
    """Options of one variable written as ``text``."""
    (variable,) = load(tmp_path, f"variables:\n  x: {text}\n").variables
    return variable.options


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(UserError) as failure:
        load(tmp_path, text)
    message = str(failure.value)
    assert "\n" not in message
    assert message.count(str(tmp_path / "space.yaml")) == 1
    return message.removeprefix(str(tmp_path / "space.yaml"))


def test_three_ways_to_write_a_variable(tmp_path: Path) -> None:
    found = load(tmp_path, TABLE)
    assert type(found) is VariableSet and found.name == "my-table"
    assert found.variables == (
        Choice("op1", ("none", "skip", "conv1x1")),
        Range("lr", (0.01, 0.02, 0.03, 0.04, 0.05)),
        Range("width", (8, 16, 32)),
        Choice("flag", (True, False)),
    )
    assert (found.size, found.feature_count) == (3 * 5 * 3 * 2, 3 + 1 + 1 + 2)
    row = found.row({"op1": "skip", "lr": 0.02, "width": 32, "flag": False})
    assert row.tolist() == [1, 1, 2, 1]
    assert found.encode(row) == pytest.approx(np.array([[0, 1, 0, 0.25, 1, 0, 1]]))


def test_without_a_name_it_is_the_files(tmp_path: Path) -> None:
    assert load(tmp_path, "variables: {a: [1]}\n").name == "space"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, -2, +3, 007]", (1, -2, 3, 7)),
        ("[0.5, .25, 1., -1.5e-3, 2e3]", (0.5, 0.25, 1.0, -0.0015, 2000.0)),
        ("[true, FALSE, no, off, null, ~]", (True, False, "no", "off", "null", "~")),
        ("['1', \"true\", 1, 3x3, 1_000, nan, inf]", None),
        ("['12', 3x3, 1_000, nan, .inf, 0x1F, 2026-01-01]", ("12", "3x3", "1_000", "nan", ".inf", "0x1F", "2026-01-01")),
        ("[only]", ("only",)),
        ("\n    - a b\n    - c", ("a b", "c")),
        ("(-5, 5, 5)", (-5, 0, 5)),
        ("'(1, 2, 0.5)'", (1.0, 1.5, 2.0)),
        ("{range: [-0.5, 0, 2]}", (-0.5, 0, 2)),
        ("\n    range: (1, 3, 1)", (1, 2, 3)),
        ("{range: [1000000000000000]}", (10**15,)),
    ],
)  # fmt: skip
def test_values(tmp_path: Path, text: str, expected: tuple[object, ...] | None) -> None:
    if expected is None:  # 1 and '1' would be the same text in a table
        assert "two options of x are both written '1' in a table" in refused(tmp_path, f"variables:\n  x: {text}")
        return
    found = options(tmp_path, text)
    assert found == expected and [type(value) for value in found] == [type(value) for value in expected]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("name: my-table", "nam: my-table", 1, "unknown key 'nam'; did you mean 'name'?"),
        ("name: my-table", "rows: []", 1, "unknown key 'rows'"),
        ("name: my-table", "name: [my-table]", 1, "expected a single value"),
        ("name: my-table", 'name: "two\\nlines"', 1, "name must be one printable line"),
        ("name: my-table", "name: my-table\nvariables: {a: [1]}", 3, "key 'variables' stands twice"),
        ("  lr:", "  op1:", 4, "variable 'op1' stands twice"),
        ("  lr:", "  [a, b]:", 4, "expected a single value"),
        ("  lr:", "  '':", 4, "name must be one printable line of 1.."),
        ("  lr:", "  'lr ':", 4, "variable 'lr ' has blanks at an end"),
        ("[none, skip, conv1x1]", "[]", 3, "op1 has no options"),
        ("[none, skip, conv1x1]", "", 3, "op1 must be [options], (low, high, step) or {range: [numbers]}, got ''"),
        ("[none, skip, conv1x1]", "none", 3, "op1 must be [options], (low, high, step) or {range: [numbers]}, got 'none'"),
        ("[none, skip, conv1x1]", "3", 3, "op1 must be [options]"),
        ("[none, skip, conv1x1]", "[none, none]", 3, "options of op1 must differ"),
        ("[none, skip, conv1x1]", "[1, true]", 3, "options of op1 must differ"),
        ("[none, skip, conv1x1]", "[1.1, 1.10]", 3, "options of op1 must differ"),
        ("[none, skip, conv1x1]", "[true, 'true']", 3, "two options of op1 are both written 'true' in a table"),
        ("[none, skip, conv1x1]", "[a, ' b']", 3, "option ' b' of op1 has blanks at an end"),
        ("[none, skip, conv1x1]", "[a, [b]]", 3, "expected a single value"),
        ("[none, skip, conv1x1]", "[1e16]", 3, "numbers must be at most 1e+15, got '1e16'"),
        ("[none, skip, conv1x1]", "[1000000000000001]", 3, "numbers must be at most 1e+15, got '1000000000000001'"),
        ("[none, skip, conv1x1]", f"[{'9' * 5000}]", 3, "expected a number, got '" + "9" * 77 + "...'"),
        ("[none, skip, conv1x1]", "[!!python/name:os.system a]", 3, "tags and aliases are not allowed"),
        ("[none, skip, conv1x1]", "[&a b, *a]", 3, "tags and aliases are not allowed"),
        ("(0.01, 0.05, 0.01)", "(0.01, 0.05)", 4, "lr must be [options], (low, high, step) or {range: [numbers]}, got"),
        ("(0.01, 0.05, 0.01)", "(0.01, 0.055, 0.01)", 4, "does not reach 0.055 in whole steps"),
        ("(0.01, 0.05, 0.01)", "(0.05, 0.01, 0.01)", 4, "a range needs low <= high"),
        ("(0.01, 0.05, 0.01)", "(a, b, c)", 4, "expected a number, got 'a'"),
        ("(0.01, 0.05, 0.01)", "(0, 20000, 1)", 4, "more than 10000 options"),
        ("{range: [8, 16, 32]}", "{range: [8, 32, 16]}", 5, "options of width must increase, got (8, 32, 16)"),
        ("{range: [8, 16, 32]}", "{range: [8, 8]}", 5, "options of width must differ"),
        ("{range: [8, 16, 32]}", "{range: []}", 5, "width has no options"),
        ("{range: [8, 16, 32]}", "{range: [8, wide]}", 5, "expected a number, got 'wide'"),
        ("{range: [8, 16, 32]}", "{rang: [8]}", 5, "unknown key 'rang'; did you mean 'range'?"),
        ("{range: [8, 16, 32]}", "{}", 5, "key 'range' is missing"),
        ("[true, False]", "[true, False", 7, "not valid YAML"),
    ],
)  # fmt: skip
def test_every_error_names_file_and_line(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    assert TABLE.count(old) == 1
    found = refused(tmp_path, TABLE.replace(old, new))
    assert found.startswith(f", line {line}: "), found
    assert message in found


@pytest.mark.parametrize("text", ["variables:\n", "variables: []\n", "variables: {}\n", "variables: lr\n"])
def test_variables_must_be_lines_of_names(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, text).startswith(", line 1: variables must be lines of a name and its options: [options]")


def test_files_of_neither_kind(tmp_path: Path) -> None:
    wanted = "expected networks (key 'rows') or bare variables (key 'variables')"
    for text in ("lr: [1, 2]\n", "- 1\n", "text\n"):
        assert refused(tmp_path, text) == f", line 1: {wanted}"
    assert refused(tmp_path, "") == " is empty"
    with pytest.raises(UserError, match=r"cannot read space .*missing.yaml: No such file"):
        load_yaml(tmp_path / "missing.yaml")
    (tmp_path / "space.yaml").write_bytes(bytes(range(128, 256)))
    with pytest.raises(UserError, match="is not a text file in UTF-8"):
        load_yaml(tmp_path / "space.yaml")


def test_network_rows_are_read_too_and_only_they_make_networks(tmp_path: Path) -> None:
    found = load(tmp_path, ROWS)
    assert isinstance(found, SearchSpace) and found.variables == load_yaml_space(tmp_path / "space.yaml").variables
    assert refused(tmp_path, ROWS.replace("stem: 16", "stem: x")).startswith(", line 2: expected a number")
    (tmp_path / "space.yaml").write_text(TABLE)
    with pytest.raises(UserError, match="line 1: these are bare variables; networks are needed here"):
        load_yaml_space(tmp_path / "space.yaml")


def test_small_files_of_many_options_are_refused_at_once(tmp_path: Path) -> None:
    start = time.perf_counter()
    assert len(options(tmp_path, "(0, 9999, 1)")) == 10_000
    many = "variables:\n" + "".join(f"  v{i}: (0, 9999, 1)\n" for i in range(3000))
    assert refused(tmp_path, many) == ", line 12: all variables together must have at most 100000 options"
    assert time.perf_counter() - start < 10
