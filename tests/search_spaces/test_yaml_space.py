import time
from pathlib import Path

import numpy as np
import pytest

from search_spaces.errors import UserError
from search_spaces.rows import TBS, Row, space_of_rows
from search_spaces.sampling import uniform_rows
from search_spaces.space import SearchSpace
from search_spaces.yaml_space import MAX_BYTES, load_yaml_space

SPACE = """\
name: my-space
description: two stages
resolutions: [24, 28, 32]
stem: 16
rows:
  - block: TBS
    expansion: 1
    width: (12, 16, 4)
  - block: [ir_k3, ir_k5_se_hs, skip]
    expansion: (0.75, 2.25, 0.75)
    width: [16, 24, 40]
    n: 2
    stride: 2
head: {width: 480, expansion: 3}
"""


def load(tmp_path: Path, text: str) -> SearchSpace:
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return load_yaml_space(path)


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(UserError) as failure:
        load(tmp_path, text)
    message = str(failure.value)
    assert "\n" not in message
    assert message.count(str(tmp_path / "space.yaml")) == 1
    return message.removeprefix(str(tmp_path / "space.yaml"))


def test_yaml_rows_make_the_space_of_the_same_python_rows(tmp_path: Path) -> None:
    found = load(tmp_path, SPACE)
    expected = space_of_rows(
        "my-space",
        [
            Row(block=TBS, expansion=(1,), width=(12, 16)),
            Row(block=("ir_k3", "ir_k5_se_hs", "skip"), expansion=(0.75, 1.5, 2.25), width=(16, 24, 40), n=2, stride=2),
        ],
        resolutions=(24, 28, 32),
        stem_width=16,
        head_width=480,
        head_expansion=3.0,
    )
    assert (found.name, found.description) == ("my-space", "two stages")
    assert found.variables == expected.variables
    assert found.slots == expected.slots
    assert found.size == 3 * 9 * 2 * (3 * 3 * 3) ** 2
    for row in uniform_rows(expected, 200, np.random.default_rng(0)):
        assert found.decode(row) == expected.decode(row)


def test_defaults_and_short_forms(tmp_path: Path) -> None:
    found = load(tmp_path, "resolutions: 32\nstem: 16\nrows: [{expansion: 2, width: 24}]\nhead: 480\n")
    assert found.name == "space"  # of the file
    (slot,) = found.slots
    assert [block.name for block in slot.block_types] == list(TBS)
    assert (slot.stride, slot.pointwise, found.head.expansion) == (1, True, 6.0)
    assert found.decode([0]).blocks[1].mid_channels == 32


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("stem: 16", "stem: sixteen", 4, "expected a number, got 'sixteen'"),
        ("stem: 16", "stem: 16.5", 4, "expected a whole number in 1..65536, got 16.5"),
        ("stem: 16", "stem: 0", 4, "expected a whole number in 1..65536, got 0"),
        ("stem: 16", "stem: -16", 4, "expected a whole number in 1..65536, got -16"),
        ("stem: 16", "stem: [16]", 4, "expected a single value"),
        ("stem: 16", "stem: 99999999999999999999", 4, "numbers must be at most 1e+15"),
        ("stem: 16", "stam: 16", 4, "unknown key 'stam'; did you mean 'stem'?"),
        ("stem: 16", "stem: 16\nstem: 8", 5, "key 'stem' stands twice"),
        ("stem: 16\n", "", 1, "key 'stem' is missing"),
        ("stem: 16", "stem: 16\n[a, b]: 3", 5, "expected a single value"),
        ("stem: 16", "stem: 16\n<<: {a: 3}", 5, "unknown key '<<'"),
        ("description: two stages", "description: [two]", 2, "expected a single value"),
        ("[24, 28, 32]", "[32, 24]", 3, "options of resolutions must increase, got (32, 24)"),
        ("[24, 28, 32]", "[24, 24]", 3, "options of resolutions must increase"),
        ("[24, 28, 32]", "[]", 3, "options of resolutions must increase, got ()"),
        ("[24, 28, 32]", "[24.5]", 3, "resolutions must be whole numbers of pixels in 1..4096, got (24.5,)"),
        ("[24, 28, 32]", "[0]", 3, "resolutions must be whole numbers of pixels"),
        ("[24, 28, 32]", "20000", 3, "resolutions must be whole numbers of pixels in 1..4096, got (20000,)"),
        ("[24, 28, 32]", "{a: 3}", 3, "expected a single value"),
        ("block: TBS", "block: TBA", 6, "unknown block 'TBA'; did you mean 'TBS'?"),
        ("block: TBS", "blok: TBS", 6, "unknown key 'blok'; did you mean 'block'?"),
        ("ir_k5_se_hs, skip]", "ir_k5_se_h]", 9, "unknown block 'ir_k5_se_h'; did you mean 'ir_k5_se_hs'?"),
        ("ir_k5_se_hs, skip]", "ir_k3]", 9, "a block is named twice"),
        ("ir_k5_se_hs, skip]", "TBS]", 9, "a block is named twice"),
        ("ir_k5_se_hs, skip]", "[skip]]", 9, "expected a single value"),
        ("[ir_k3, ir_k5_se_hs, skip]", "[]", 9, "block has no options"),
        ("(0.75, 2.25, 0.75)", "(0.75, 2.5, 0.75)", 10, "does not reach 2.5 in whole steps"),
        ("(0.75, 2.25, 0.75)", "(0.75, 2.25)", 10, "expected a number, got '(0.75, 2.25)'"),
        ("(0.75, 2.25, 0.75)", "(0.75, 2.25, 0)", 10, "step > 0"),
        ("(0.75, 2.25, 0.75)", "(0, 9e8, 1)", 10, "more than 10000 options"),
        ("(0.75, 2.25, 0.75)", "(0.75, .inf, 0.75)", 10, "expected a number, got '.inf'"),
        ("(0.75, 2.25, 0.75)", "nan", 10, "expected a number, got 'nan'"),
        ("(0.75, 2.25, 0.75)", "1e400", 10, "expected a number, got '1e400'"),
        ("(0.75, 2.25, 0.75)", "[2, 1]", 10, "options of expansion must increase, got (2, 1)"),
        ("(0.75, 2.25, 0.75)", "[]", 10, "options of expansion must increase, got ()"),
        ("(0.75, 2.25, 0.75)", "-1", 9, "expansion must be > 0"),
        ("(0.75, 2.25, 0.75)", "65", 9, "expansion must be <= 64"),
        ("(0.75, 2.25, 0.75)", "~", 10, "expected a number, got '~'"),
        ("[16, 24, 40]", "[16, 24.5]", 11, "width must be whole numbers, got (16, 24.5)"),
        ("[16, 24, 40]", "[16, 16]", 11, "options of width must increase"),
        ("[16, 24, 40]", "9000", 9, "width must be whole numbers in 1..8192"),
        ("    n: 2", "    n: 1.5", 12, "expected a whole number"),
        ("    n: 2", "    n: 101", 9, "n must be <= 100, got 101"),
        ("    n: 2", "    n: true", 12, "expected a number, got 'true'"),
        ("    stride: 2", "    stride: 3", 9, "stride must be 1 or 2, got 3"),
        ("    width: (12, 16, 4)\n", "", 6, "key 'width' is missing"),
        ("{width: 480, expansion: 3}", "{width: 480, expansion: 0}", 14, "expansion must be > 0 and <= 64, got 0"),
        ("{width: 480, expansion: 3}", "{width: 480, expansion: -2}", 14, "expansion must be > 0 and <= 64, got -2"),
        ("{width: 480, expansion: 3}", "{expansion: 3}", 14, "key 'width' is missing"),
        (
            "{width: 480, expansion: 3}",
            "{width: 480, expand: 3}",
            14,
            "unknown key 'expand'; did you mean 'expansion'?",
        ),
        ("{width: 480, expansion: 3}", "[480]", 14, "expected a single value"),
        ("stem: 16", "stem: &a 16", 0, ""),  # an anchor nobody uses does no harm
        ("stem: 16", "stem: !!int 16", 4, "tags and aliases are not allowed"),
        ("stem: 16", "stem: [16", 5, "not valid YAML"),
        ("stem: 16", "stem: 16: 8", 4, "not valid YAML: mapping values are not allowed here"),
        ("stem: 16", "stem: \x07", 4, "not valid YAML: special characters are not allowed"),
        ("stem: 16", "stem: 16\n---\nstem: 16", 5, "not valid YAML"),
        ("stem: 16", "\tstem: 16", 4, "not valid YAML"),
    ],
)
def test_every_error_names_file_and_line(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    assert SPACE.count(old) == 1
    text = SPACE.replace(old, new)
    if not line:
        load(tmp_path, text)
        return
    found = refused(tmp_path, text)
    assert found.startswith(f", line {line}: "), found
    assert message in found


@pytest.mark.parametrize("text", ["- 1\n- 2", "text", "3"])
def test_a_document_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, text).startswith(", line 1: expected a mapping with the keys")


@pytest.mark.parametrize("rows", ["rows: []", "rows: {}", "rows: 3", "rows:"])
def test_rows_must_be_a_list(tmp_path: Path, rows: str) -> None:
    text = f"resolutions: 32\nstem: 16\n{rows}\nhead: 480\n"
    assert refused(tmp_path, text) == ", line 3: rows must be a list of rows"


def test_numbers_of_options_are_bounded(tmp_path: Path) -> None:
    for key, options in (("width", "(1, 257, 1)"), ("expansion", "(1, 33, 0.125)")):
        row = {"width": "8", "expansion": "2"} | {key: options}
        text = f"resolutions: 32\nstem: 16\nrows:\n  - {{width: {row['width']!r}, expansion: {row['expansion']!r}}}\n"
        assert refused(tmp_path, text + "head: 480\n") == f", line 4: {key} must have at most 256 options, got 257"
    text = "resolutions: (1, 257, 1)\nstem: 16\nrows: [{width: 8, expansion: 2}]\nhead: 480\n"
    assert "resolutions must have at most 256 options, got 257" in refused(tmp_path, text)


def test_names_fit_on_a_line(tmp_path: Path) -> None:
    text = 'name: "two\\nlines"\nresolutions: 32\nstem: 16\nrows: [{width: 8, expansion: 2}]\nhead: 480\n'
    assert refused(tmp_path, text).startswith(", line 1: name must be one printable line")


def test_widths_that_multiply_beyond_reason_are_refused_when_read(tmp_path: Path) -> None:
    text = "resolutions: 32\nstem: 16\nrows: [{expansion: 64, width: 8192, n: 2}]\nhead: 480\n"
    assert "mid_channels of a ir block must be in 0..65536, got 524288" in refused(tmp_path, text)
    many = (
        "resolutions: 32\nstem: 16\nrows:\n"
        + "  - {block: skip, expansion: 2, width: 8, n: 100}\n" * 11
        + "head: 480\n"
    )
    assert "blocks must number 1..1000, got 1102" in refused(tmp_path, many)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert refused(tmp_path, "") == " is empty"
    assert refused(tmp_path, "# nothing\n") == " is empty"
    with pytest.raises(UserError, match=r"cannot read space .*missing.yaml: No such file or directory"):
        load_yaml_space(tmp_path / "missing.yaml")
    with pytest.raises(UserError, match="cannot read space"):
        load_yaml_space(tmp_path)
    (tmp_path / "space.yaml").write_bytes(b"stem: \xff\xfe")
    with pytest.raises(UserError, match="is not a text file in UTF-8"):
        load_yaml_space(tmp_path / "space.yaml")
    assert "is larger than" in refused(tmp_path, "#" * (MAX_BYTES + 1))


def test_code_in_yaml_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for tag in (
        "!!python/object/apply:os.system",
        "!!python/object/new:os.system",
        "!<tag:yaml.org,2002:python/object/apply:os.system>",
    ):
        for place in ("stem", "name", "head"):
            text = SPACE.replace(f"{place}: ", f"{place}: {tag} ['touch {mark}'] #", 1)
            assert "tags and aliases are not allowed" in refused(tmp_path, text)
    assert "tags and aliases are not allowed" in refused(tmp_path, f"!!python/object/apply:os.system ['touch {mark}']")
    assert not mark.exists()


def test_alias_bombs_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]  # 9^12 entries
    start = time.perf_counter()
    assert refused(tmp_path, "\n".join(lines) + "\n").startswith(", line 2: tags and aliases are not allowed")
    assert "tags and aliases" in refused(tmp_path, "a: &a [*a]\n")  # a loop
    assert time.perf_counter() - start < 5


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    for text in ("[" * 1200, "x: " + "[1," * 1200 + "]" * 1200, "\n".join(" " * i + f"a{i}:" for i in range(300))):
        refused(tmp_path, text)
