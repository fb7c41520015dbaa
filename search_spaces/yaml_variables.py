"""Anybody's variables: a YAML file that names them with their options, for tables of other people's experiments.

    name: my-table
    variables:
      op1: [none, skip, conv1x1, conv3x3]    # brackets: choices without an order
      lr: (0.01, 0.05, 0.01)                 # parentheses: low, high, step, closed; one ordered number
      width: {range: [8, 16, 32]}            # ordered numbers, written out

In brackets numbers are numbers, true and false are booleans, and all else is text; quotes make text of anything. Errors name
the file and the line.
"""

import re
from pathlib import Path

import yaml

from search_spaces.architecture import require_name
from search_spaces.options import option_text
from search_spaces.serialisation import require
from search_spaces.variables import Choice, Range, Variable, VariableSet
from search_spaces.yaml_reader import YamlReader
from search_spaces.yaml_space import space_of_document

Option = str | bool | int | float
MAX_OPTIONS = 100_000  # of all variables together; a range of few letters can have 10,000
FORMS = "[options], (low, high, step) or {range: [numbers]}"
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def load_yaml(path: str | Path) -> VariableSet:
    """What a YAML file describes: a `SearchSpace` of network rows, or bare variables.

    Raises:
        UserError: missing file, not YAML, or neither; the message names file and line.
    """
    reader = YamlReader.open(path)
    if reader.has_key("variables"):
        return variables_of_document(reader)
    if not reader.has_key("rows"):
        raise reader.fail(reader.root, "expected networks (key 'rows') or bare variables (key 'variables')")
    return space_of_document(reader)


def variables_of_document(reader: YamlReader) -> VariableSet:
    """The variables of a document with the key ``variables``, in its order.

    Raises:
        UserError: not variables; the message names file and line.
    """
    fields = reader.mapping(reader.root, {"name", "variables"}, required={"variables"})
    name, node = reader.name(fields), fields["variables"]
    if not isinstance(node, yaml.MappingNode) or not node.value:
        raise reader.fail(node, f"variables must be lines of a name and its options: {FORMS}")
    found: dict[str, Variable] = {}
    options = 0
    for key_node, value in node.value:
        variable = _variable(reader, key_node, value)
        if variable.name in found:
            raise reader.fail(key_node, f"variable {variable.name!r} stands twice")
        found[variable.name] = variable
        options += len(variable.options)
        if options > MAX_OPTIONS:
            raise reader.fail(key_node, f"all variables together must have at most {MAX_OPTIONS} options")
    return VariableSet(list(found.values()), name=name)


def _variable(reader: YamlReader, key_node: yaml.Node, node: yaml.Node) -> Variable:
    name = reader.scalar(key_node)
    reader.checked(key_node, lambda: require_name(name))
    if name != name.strip():
        raise reader.fail(key_node, f"variable {name!r} has blanks at an end, which tables lose")
    if isinstance(node, yaml.SequenceNode):
        choices = tuple(_option(reader, item) for item in node.value)
        variable: Variable = reader.checked(node, lambda: Choice(name, choices))
    else:
        numbers = _ordered(reader, name, node)
        variable = reader.checked(node, lambda: Range(name, numbers))
    reader.checked(node, lambda: _check_told_apart(variable))
    return variable


def _ordered(reader: YamlReader, name: str, node: yaml.Node) -> tuple[float, ...]:
    """Numbers of ``(low, high, step)`` or of ``{range: ...}``."""
    if isinstance(node, yaml.MappingNode):
        node = reader.mapping(node, {"range"}, required={"range"})["range"]
    elif not reader.scalar(node).strip().startswith("(") or node.value.count(",") != 2:
        raise reader.fail(node, f"{name} must be {FORMS}, got {node.value[:80]!r}")
    return reader.numbers(node)


def _option(reader: YamlReader, node: yaml.Node) -> Option:
    """A value in brackets."""
    text = reader.scalar(node)
    if isinstance(node, yaml.ScalarNode) and node.style is not None:  # in quotes
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if not _NUMBER.fullmatch(text):
        return text
    return reader.number(node)


def _check_told_apart(variable: Variable) -> None:
    """Options must differ as text too: tables hold text, without blanks at its ends."""
    seen: set[str] = set()
    for text in map(option_text, variable.options):
        require(text == text.strip(), f"option {text!r} of {variable.name} has blanks at an end, which tables lose")
        require(text not in seen, f"two options of {variable.name} are both written {text!r} in a table")
        seen.add(text)
