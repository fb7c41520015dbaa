import numpy as np
import pytest

from search_spaces.errors import UserError
from search_spaces.limits import Limit, format_quantity, parse_limits, parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("450M", 450e6),
        ("0.5M", 5e5),
        (".5k", 500),
        ("1.2G", 1.2e9),
        ("8.5", 8.5),
        ("7.", 7),
        (" 3 m ", 3e6),
        ("12345", 12345),
    ],
)
def test_quantities(text: str, value: float) -> None:
    assert parse_quantity(text) == pytest.approx(value, rel=1e-15, abs=0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "M",
        "-3M",
        "+3",
        "1e6",
        "3MB",
        "3 M M",
        "3T",
        "1,5M",
        "0x10",
        "nan",
        "inf",
        "1..2",
        ".",
        "3M\x00",
        "1_000",
        "4 5",
    ],
)
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(UserError, match="is not a quantity; write a number such as 450M"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("450M", [(0, 450e6)]),
        ("400M:450M", [(400e6, 450e6)]),
        ("450M,550M", [(0, 450e6), (0, 550e6)]),
        ("1K:2K, 5M ,0:3", [(1e3, 2e3), (0, 5e6), (0, 3)]),
        ("7:7", [(7, 7)]),
    ],
)
def test_grammar_of_limits(text: str, expected: list) -> None:
    assert [(limit.low, limit.high) for limit in parse_limits(text)] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1:2:3", "'1:2:3' is not a limit; write 450M, 400M:450M or 450M,550M"),
        ("", "'' is not a quantity"),
        ("450M,", "'' is not a quantity"),
        (",", "'' is not a quantity"),
        (":450M", "'' is not a quantity"),
        ("450M:", "'' is not a quantity"),
        ("450M;500M", "'450M;500M' is not a quantity"),
        ("450M-500M", "'450M-500M' is not a quantity"),
        ("<450M", "'<450M' is not a quantity"),
        ("0", "a limit must be > 0, got 0"),
        ("0:0", "a limit must be > 0, got 0"),
        ("450M:400M", "a range must run from low to high, got 450M:400M"),
    ],
)
def test_bad_limits_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UserError) as failure:
        parse_limits(text)
    assert message in str(failure.value)


def test_limits_are_closed_on_both_ends() -> None:
    assert Limit(low=2, high=4).holds([1, 2, 3, 4, 5]).tolist() == [False, True, True, True, False]
    assert Limit(high=4).holds(np.array([0, 4, 5])).tolist() == [True, True, False]
    assert Limit(high=4).holds(4).tolist() is True
    for high, low in ((0.0, 0.0), (-1.0, 0.0), (1.0, 2.0), (1.0, -1.0), (float("nan"), 0.0), (1.0, float("nan"))):
        with pytest.raises(UserError):
            Limit(high=high, low=low)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (461550136, "461.6M"),
        (520.0e6, "520M"),
        (1.2e9, "1.2G"),
        (999, "999"),
        (1000, "1K"),
        (0.25, "0.25"),
        (0, "0"),
        (-2e6, "-2M"),
    ],
)
def test_format(value: float, text: str) -> None:
    assert format_quantity(value) == text


def test_limits_print_in_their_own_grammar() -> None:
    assert str(Limit(high=450e6)) == "at most 450M"
    assert str(Limit(high=450e6, low=400e6)) == "400M:450M"
    (again,) = parse_limits(str(Limit(high=450e6, low=400e6)))
    assert again == Limit(high=450e6, low=400e6)
