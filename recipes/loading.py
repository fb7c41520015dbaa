"""Any space by name: networks, recipes, both, or bare variables. No torch here."""

from pathlib import Path

from recipes.space import JOINT_SPACES
from search_spaces.errors import UserError, closest
from search_spaces.loading import call_by_name
from search_spaces.spaces import SPACES
from search_spaces.variables import VariableSet
from search_spaces.yaml_variables import load_yaml


def load_variables(space: str | Path | VariableSet) -> VariableSet:
    """A space by name, from a YAML file, or from a function written as ``module:function``.

    Args:
        space: a joint space's name, else an architecture space's (``fbnetv3`` is both, and means the joint one); a YAML file
            with network rows or bare variables; a function that returns a SearchSpace, JointSpace, RecipeSpace or any other
            VariableSet; or such a set itself, which is returned as it is.

    Raises:
        UserError: nothing of that name, an invalid file, or a function that fails or returns no space.
    """
    if isinstance(space, VariableSet):
        return space
    text = str(space)
    if text in JOINT_SPACES:
        return JOINT_SPACES[text]()
    if text in SPACES:
        return SPACES[text]()
    if Path(text).suffix in (".yaml", ".yml"):
        return load_yaml(text)
    if ":" in text:
        made = call_by_name(text)
        if not isinstance(made, VariableSet):
            raise UserError(f"space {text}: the function returned {type(made).__name__}, not a space or a VariableSet")
        return made
    names = {*JOINT_SPACES, *SPACES}
    raise UserError(f"unknown space {text!r}{closest(text, names)} (or a .yaml file, or module:function)")
