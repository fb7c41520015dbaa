"""One grammar of limits for every command: ``450M`` (at most), ``400M:450M`` (range), ``450M,550M`` (several answers)."""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search_spaces.errors import UserError
from search_spaces.serialisation import require

SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
_NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([KMG]?)\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Limit:
    """A closed range of one quantity; ``low`` is 0 where only an upper limit was given."""

    high: float
    low: float = 0.0

    def __post_init__(self) -> None:
        require(self.high > 0, f"a limit must be > 0, got {format_quantity(self.high)}")
        require(
            0 <= self.low <= self.high,
            f"a range must run from low to high, got {format_quantity(self.low)}:{format_quantity(self.high)}",
        )

    def holds(self, values: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Element-wise, whether the values lie inside."""
        array = np.asarray(values)
        return (array >= self.low) & (array <= self.high)

    def __str__(self) -> str:
        low, high = format_quantity(self.low), format_quantity(self.high)
        if low == high:  # a range narrower than four digits show
            return f"{self.low:.10g}:{self.high:.10g}"
        return f"{low}:{high}" if self.low else f"at most {high}"


def parse_quantity(text: str) -> float:
    """A number with an optional suffix K, M or G: ``450M`` is 450e6, ``7.5`` is 7.5.

    Raises:
        UserError: anything else.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise UserError(f"{text!r} is not a quantity; write a number such as 450M, 0.5M, 1.2G or 8.5, without exponent")
    return float(match[1]) * SUFFIXES[match[2].upper()]


def parse_limits(text: str) -> list[Limit]:
    """All limits of one option, in the order written.

    Raises:
        UserError: not the grammar, zero, or a range whose ends are exchanged.
    """
    limits = []
    for part in text.split(","):
        ends = part.split(":")
        require(len(ends) <= 2, f"{part!r} is not a limit; write 450M, 400M:450M or 450M,550M")
        low = parse_quantity(ends[0]) if len(ends) == 2 else 0.0
        limits.append(Limit(high=parse_quantity(ends[-1]), low=low))
    return limits


def format_quantity(value: float) -> str:
    """Short text with four significant digits: 461550136 is ``461.6M``."""
    for suffix in ("G", "M", "K"):
        if abs(value) >= SUFFIXES[suffix]:
            return f"{value / SUFFIXES[suffix]:.4g}{suffix}"
    return f"{value:.4g}"
