"""The one exception that means "the input is wrong": it becomes one line on the terminal and exit code 2."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, which value, what is allowed."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the kind of error where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def closest(name: str, allowed: Iterable[str]) -> str:
    """A hint such as ``; did you mean 'digits'?``, or the whole list of ``allowed`` where nothing is close."""
    options = sorted(allowed)
    near = difflib.get_close_matches(name, options, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; allowed: {', '.join(options)}"
