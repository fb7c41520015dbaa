"""Exceptions that become one line on the terminal: wrong input (exit code 2), and a run that was stopped (75)."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, which value, what is allowed."""


class Stopped(Exception):
    """A run that was asked to stop or lost its other processes, and goes on where it was. The message is one line: why."""


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
