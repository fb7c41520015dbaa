import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from search_spaces import serialisation
from search_spaces.errors import UserError, closest
from search_spaces.serialisation import from_plain, read_json, require_finite, to_plain, write_json, write_text_atomic


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    rate: float
    kind: Literal["a", "b", 3] = "a"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    name: str
    count: int
    on: bool
    inner: Inner
    many: tuple[Inner, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    maybe: float | None = None
    table: dict[str, int] = None  # type: ignore[assignment]
    free: Any = None


OUTER = Outer(
    name="n",
    count=3,
    on=True,
    inner=Inner(rate=0.5, kind="b"),
    many=(Inner(rate=1.0), Inner(rate=-2.5e-8, kind=3)),
    pair=(4, 0.25),
    maybe=None,
    table={"x": 1},
    free=[1, {"y": None}],
)


def test_round_trip_through_json_text() -> None:
    assert from_plain(Outer, json.loads(json.dumps(to_plain(OUTER)))) == OUTER


def test_plain_values_are_nested_lists_and_mappings() -> None:
    assert to_plain(OUTER)["many"][1] == {"rate": -2.5e-8, "kind": 3}
    assert to_plain((1, [Inner(rate=2.0)])) == [1, [{"rate": 2.0, "kind": "a"}]]


def test_missing_keys_take_the_default() -> None:
    assert from_plain(Inner, {"rate": 1.0}) == Inner(rate=1.0, kind="a")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("cuont",), 3, "Outer: unknown key 'cuont'; did you mean 'count'?"),
        (("zzz",), 3, "Outer: unknown key 'zzz'; allowed: count, free, inner, many, maybe, name, on, pair, table"),
        (("inner", "rat"), 3, "Outer.inner: unknown key 'rat'; did you mean 'rate'?"),
        (("name",), 3, "Outer.name must be str, got 3"),
        (("name",), None, "Outer.name must be str, got None"),
        (("count",), 3.0, "Outer.count must be int, got 3.0"),
        (("count",), True, "Outer.count must be int, got True"),
        (("count",), "3", "Outer.count must be int, got '3'"),
        (("on",), 1, "Outer.on must be bool, got 1"),
        (("on",), "true", "Outer.on must be bool, got 'true'"),
        (("inner",), [1], "Outer.inner: expected a mapping, got list"),
        (("inner", "rate"), "0.5", "Outer.inner.rate must be float, got '0.5'"),
        (("inner", "rate"), True, "Outer.inner.rate must be float, got True"),
        (("inner", "rate"), float("nan"), "Outer.inner.rate must be a finite number, got nan"),
        (("inner", "rate"), float("inf"), "Outer.inner.rate must be a finite number, got inf"),
        (("inner", "rate"), 10**400, "Outer.inner.rate must be a finite number, got inf"),
        (("inner", "kind"), "c", "Outer.inner.kind must be one of 'a', 'b', 3, got 'c'"),
        (("inner", "kind"), 3.0, "Outer.inner.kind must be one of 'a', 'b', 3, got 3.0"),
        (("inner", "kind"), {}, "Outer.inner.kind must be one of"),
        (("many",), "ab", "Outer.many must be a list, got 'ab'"),
        (("many", 1), None, "Outer.many[1]: expected a mapping, got NoneType"),
        (("many", 1, "rate"), [], "Outer.many[1].rate must be float, got []"),
        (("pair",), [1], "Outer.pair must have 2 entries, got 1"),
        (("pair",), [1, 2, 3], "Outer.pair must have 2 entries, got 3"),
        (("pair",), [1.5, 2], "Outer.pair[0] must be int, got 1.5"),
        (("maybe",), "x", "Outer.maybe must be float, got 'x'"),
        (("table",), [], "Outer.table must be a mapping, got []"),
        (("table", "x"), "1", "Outer.table.x must be int, got '1'"),
    ],
)
def test_bad_values_are_refused_with_their_place(path: tuple, value: object, message: str) -> None:
    data = json.loads(json.dumps(to_plain(OUTER)))
    target = data
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(UserError) as failure:
        from_plain(Outer, data)
    assert message in str(failure.value)


def test_missing_keys_without_default_are_named() -> None:
    with pytest.raises(UserError, match=r"run.json: key 'rate' is missing"):
        from_plain(Inner, {}, where="run.json")
    with pytest.raises(UserError, match="Inner: expected a mapping, got NoneType"):
        from_plain(Inner, None)


def test_float_fields_take_integers_and_nothing_else_is_converted() -> None:
    found = from_plain(Inner, {"rate": 2})
    assert found.rate == 2.0 and type(found.rate) is float


def test_closest() -> None:
    assert closest("digit", ["digits", "cifar"]) == "; did you mean 'digits'?"
    assert closest("qqq", ["b", "a"]) == "; allowed: a, b"


def test_require_finite_names_the_field() -> None:
    require_finite(a=1.0, b=-2)
    for value in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(UserError, match="b must be a finite number"):
            require_finite(a=1.0, b=value)


# files --------------------------------------------------------------------------------------------------------------------


def test_files_round_trip_and_are_readable(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_json(path, OUTER)
    assert from_plain(Outer, read_json(path)) == OUTER
    assert path.read_text().endswith("}\n") and '\n  "name": "n"' in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b'{"a": 1,}', "is not valid JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"[Infinity]", "Infinity is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b'"\xff"', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON: nested too deeply"),
        (b'{"a":' * 100_000, "is not valid JSON: nested too deeply"),
        (b"1" * 10_000, "is not valid JSON"),
    ],
)
def test_bad_files_are_user_errors_of_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as failure:
        read_json(path)
    assert message in str(failure.value) and str(path) in str(failure.value) and "\n" not in str(failure.value)


def test_numbers_too_large_for_a_float_are_refused_where_they_are_used(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    path.write_text('{"rate": 1e999}')
    with pytest.raises(UserError, match="rate must be a finite number"):
        from_plain(Inner, read_json(path))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none.json: No such file or directory"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        read_json(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_is_no_json_is_not_written(tmp_path: Path, value: object) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises((ValueError, TypeError)):
        write_json(path, {"x": value})
    assert read_json(path) == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "fsync":
        monkeypatch.setattr(serialisation.os, "fsync", full)
    elif step == "replace":
        monkeypatch.setattr(Path, "replace", full)
    else:
        real_open = Path.open

        def open_and_fill(self: Path, *args: Any, **kwargs: Any) -> Any:
            file = real_open(self, *args, **kwargs)
            file.write("half of it")
            file.flush()
            full()

        monkeypatch.setattr(Path, "open", open_and_fill)
    with pytest.raises(UserError, match=r"cannot write .*a.txt: No space left on device"):
        write_text_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_an_interrupt_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_paths_that_cannot_be_written_are_user_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "none" / "a.json", tmp_path / "file" / "a.json", tmp_path / ("n" * 300), tmp_path):
        with pytest.raises(UserError, match="cannot write"):
            write_json(path, 1)
    assert (tmp_path / "file").read_text() == "x"
