"""A space in plain values, complete enough to tell two spaces apart, and to say where they differ."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from predictor.features import STATISTICS, as_joint
from recipes.space import JOINT_SPACES, JointSpace, RecipeSpace, load_joint
from search_spaces.errors import UserError
from search_spaces.serialisation import require, to_plain
from search_spaces.space import SearchSpace
from search_spaces.spaces import SPACES
from search_spaces.variables import Choice, Range, Variable, VariableSet

Kind = Literal["joint", "architecture", "recipe", "table"]


def describe(variables: VariableSet, num_classes: int | None = None, in_channels: int = 3) -> dict[str, Any]:
    """Name, kind, every variable with its options, the base recipe, and the cost of two networks.

    The networks are those of the first and of the last options: they tell strides, last stages and rounding rules apart.

    Raises:
        UserError: an option that is neither a plain value nor a block type.
    """
    recipe = variables.recipe if isinstance(variables, JointSpace) else variables
    base: dict[str, Any] = {}
    if isinstance(recipe, RecipeSpace):
        base = {**recipe.base.to_json(), "lr_factors": dict(recipe.lr_factors)}
        base.pop("name")
    return {
        "name": variables.name,
        "kind": _kind(variables),
        "variables": [_describe_variable(variable) for variable in variables.variables],
        "base": to_plain(base),
        "networks": _corner_costs(variables, num_classes, in_channels),
    }


def _kind(variables: VariableSet) -> Kind:
    if isinstance(variables, JointSpace):
        return "joint"
    if isinstance(variables, SearchSpace):
        return "architecture"
    return "recipe" if isinstance(variables, RecipeSpace) else "table"


def _describe_variable(variable: Variable) -> dict[str, Any]:
    kind = "choice" if isinstance(variable, Choice) else "range"
    return {
        "name": variable.name,
        "kind": kind,
        "options": [_plain(variable.name, option) for option in variable.options],
    }


def _plain(name: str, option: Any) -> Any:
    """An option as JSON keeps it; NumPy's numbers become Python's."""
    value = to_plain(option.item() if isinstance(option, np.generic) else option)
    if not isinstance(value, (str, bool, int, float, type(None), dict, list)):
        raise UserError(f"option {option!r} of {name} cannot be written as JSON; use numbers, texts or block types")
    return value


def _corner_costs(variables: VariableSet, num_classes: int | None, in_channels: int) -> list[dict[str, int]]:
    joint = as_joint(variables)
    if joint is None or num_classes is None:
        return []
    corners = np.stack([np.zeros(len(joint), dtype=np.int64), joint.option_counts - 1])
    counted = joint.statistics(corners, num_classes=num_classes, in_channels=in_channels)
    return [{name: int(counted[name][corner]) for name in STATISTICS} for corner in range(2)]


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The first thing in which two descriptions differ, in words ("here" is the second one's); empty where none does."""
    for key in ("name", "kind"):
        if first.get(key) != second[key]:
            return f"its {key} is {first.get(key)!r}, here {second[key]!r}"
    theirs, ours = first.get("variables"), second["variables"]
    if not isinstance(theirs, list) or not all(isinstance(variable, dict) for variable in theirs):
        return "it has no list of variables"
    for index, (old, new) in enumerate(zip(theirs, ours, strict=False), start=1):
        if old.get("name") != new["name"]:
            return f"variable {index} is {old.get('name')!r}, here {new['name']!r}"
        for key in ("kind", "options"):
            if not _same(old.get(key), new[key]):
                return f"{key} of {new['name']}: {_short(old.get(key))}, here {_short(new[key])}"
    if len(theirs) != len(ours):
        return f"it has {len(theirs)} variables, here {len(ours)}"
    return _other_difference(first, second)


def _other_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    base, ours = first.get("base"), second["base"]
    if not isinstance(base, dict):
        return "it has no base recipe"
    for key in [*ours, *base]:
        if not _same(base.get(key), ours.get(key)):
            return f"{key} of the base recipe is {_short(base.get(key))}, here {_short(ours.get(key))}"
    if first.get("networks") != second["networks"]:
        return f"its smallest and largest networks cost {first.get('networks')}, here {second['networks']}"
    return ""


def _same(first: Any, second: Any) -> bool:
    """Equality that tells true from 1 and 1 from 1.0."""
    if type(first) is not type(second):
        return False
    if isinstance(first, list):
        return len(first) == len(second) and all(_same(a, b) for a, b in zip(first, second, strict=True))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    return bool(first == second)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def space_of(description: Mapping[str, Any]) -> VariableSet:
    """The space of a description: one of the toolkit's by its name, or bare variables.

    Raises:
        UserError: a space that only its owner has, or no description.
    """
    name, kind = description.get("name"), description.get("kind")
    if kind == "joint" and name in JOINT_SPACES:
        return load_joint(str(name))
    if kind == "architecture" and name in SPACES:
        return SPACES[str(name)]()
    require(kind == "table", f"the space {name!r} is none of the toolkit's; give it with the file")
    variables: list[Variable] = []
    entries = description.get("variables")
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("options"), list):
            raise UserError("a variable has no list of options")
        options = tuple(entry["options"])
        plain = all(isinstance(option, (str, bool, int, float)) for option in options)
        require(plain, f"options of {entry.get('name')!r} are no plain values; give the space with the file")
        if entry.get("kind") == "range":
            numbers = all(isinstance(option, (int, float)) for option in options)
            require(numbers, f"options of {entry.get('name')!r} are no numbers")
        variables.append((Range if entry.get("kind") == "range" else Choice)(str(entry.get("name")), options))
    return VariableSet(variables, name=str(name or ""))
