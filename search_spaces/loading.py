"""A user's own function by name, written as ``module:function``."""

import importlib
import sys
from pathlib import Path

from search_spaces.errors import UserError, first_line


def call_by_name(text: str) -> object:
    """What the function ``module:function`` returns; modules in the current folder are found too.

    Raises:
        UserError: the module or function is not there, or it fails; the message is the first line of its own.
    """
    module_name, _, function_name = text.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return getattr(importlib.import_module(module_name), function_name)()
    except (Exception, SystemExit) as error:  # somebody else's code may raise anything at all
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"space {text}: {kind}{first_line(error)}") from error
