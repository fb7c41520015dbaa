"""Options as text: how they stand in tables and on the command line."""

import math
from typing import Any

import numpy as np

TOLERANCE = 1e-6  # relative, of numbers that went through a text file


def option_text(option: Any) -> str:
    """How an option stands in a table: block types by name, true and false in small letters."""
    if isinstance(option, (bool, np.bool_)):
        return "true" if option else "false"
    return str(getattr(option, "name", option))


def option_index(value: Any, options: tuple[Any, ...]) -> int:
    """Index of the option that a value means, -1 where there is none: by text, else by number (1 and 0 are true and false)."""
    text, texts = option_text(value).strip(), [option_text(option) for option in options]
    if text in texts:
        return texts.index(text)
    if text.lower() in (lower := [option.lower() for option in texts]):
        return lower.index(text.lower())
    number = as_number(text)
    for index, option in enumerate(options):
        if isinstance(option, (bool, int, float)) and math.isclose(number, option, rel_tol=TOLERANCE, abs_tol=1e-15):
            return index
    return -1


def as_number(value: Any) -> float:
    """A value as a number; NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
