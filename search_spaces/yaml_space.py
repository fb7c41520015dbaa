"""A user's own space: a YAML file with the rows of the FBNetV2 tables.

    name: my-space
    resolutions: [24, 28, 32]          # brackets: these options
    stem: 16
    rows:
      - block: TBS                     # all nine block types; or a list such as [ir_k3, ir_k5_se_hs, skip]
        expansion: 1
        width: (12, 16, 4)             # parentheses: low, high, step, closed, as in the papers
      - block: TBS
        expansion: (0.75, 4.5, 0.75)
        width: (16, 40, 8)
        n: 2                           # layers; each chooses for itself
        stride: 2                      # of the first
    head: 480                          # width of the last stage, or {width: 480, expansion: 6}

Only YAML's safe subset is read. Errors name the file and the line.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from search_spaces.architecture import MAX_RESOLUTION, require_name
from search_spaces.errors import UserError, closest, first_line
from search_spaces.rows import TBS, Row, space_of_rows
from search_spaces.space import BLOCK_TYPES, SearchSpace
from search_spaces.variables import Range, span

T = TypeVar("T")
MAX_BYTES = 1 << 16  # the scanner takes quadratic time on nested brackets
_TUPLE = re.compile(r"\(\s*([^,()]+)\s*,\s*([^,()]+)\s*,\s*([^,()]+)\s*\)")
_KEYS = {"name", "description", "resolutions", "stem", "rows", "head"}
_ROW_KEYS = {"block", "expansion", "width", "n", "stride"}


def load_yaml_space(path: str | Path) -> SearchSpace:
    """The space of a YAML file.

    Raises:
        UserError: missing file, not YAML, or not a space; the message names file and line.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES} bytes; that is no space file")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read space {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8") from error
    return _Reader(str(path)).space(text)


class _Reader:
    """Walks the nodes of the document, so that every error knows its line."""

    def __init__(self, path: str) -> None:
        self.path = path

    def fail(self, node: yaml.Node, message: str) -> UserError:
        return UserError(f"{self.path}, line {node.start_mark.line + 1}: {message}")

    def checked(self, node: yaml.Node, make: Callable[[], T]) -> T:
        """``make()``, its errors placed at ``node``."""
        try:
            return make()
        except UserError as error:
            raise self.fail(node, str(error)) from error

    def space(self, text: str) -> SearchSpace:
        try:
            for token in yaml.scan(text, Loader=yaml.SafeLoader):
                if isinstance(token, (yaml.AliasToken, yaml.TagToken)):
                    raise UserError(f"{self.path}, line {token.start_mark.line + 1}: tags and aliases are not allowed")
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise UserError(f"{self.path}, line {line}: not valid YAML: {error.problem}") from error
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise UserError(f"{self.path}, line {line}: not valid YAML: {error.reason}") from error
        except (yaml.YAMLError, RecursionError) as error:
            raise UserError(f"{self.path}: not valid YAML: {first_line(error)}") from error
        if root is None:
            raise UserError(f"{self.path} is empty")
        fields = self.mapping(root, _KEYS, required={"resolutions", "stem", "rows", "head"})
        rows_node = fields["rows"]
        if not isinstance(rows_node, yaml.SequenceNode) or not rows_node.value:
            raise self.fail(rows_node, "rows must be a list of rows")
        head_node, head_expansion = fields["head"], 6.0
        if isinstance(head_node, yaml.MappingNode):
            head = self.mapping(head_node, {"width", "expansion"}, required={"width"})
            if "expansion" in head:
                head_expansion = self.number(head["expansion"])
                if not 0 < head_expansion <= 64:
                    raise self.fail(head["expansion"], f"expansion must be > 0 and <= 64, got {head_expansion}")
            head_node = head["width"]
        name = self.scalar(fields["name"]) if "name" in fields else Path(self.path).stem
        resolutions, stem, width = (
            self.numbers(fields["resolutions"]),
            self.integer(fields["stem"]),
            self.integer(head_node),
        )
        self.checked(fields.get("name", root), lambda: require_name(str(name)))
        if not all(isinstance(side, int) and 1 <= side <= MAX_RESOLUTION for side in resolutions):
            message = f"resolutions must be whole numbers of pixels in 1..{MAX_RESOLUTION}, got {resolutions}"
            raise self.fail(fields["resolutions"], message)
        self.check_increasing("resolutions", fields["resolutions"], resolutions)
        description = str(self.scalar(fields["description"])) if "description" in fields else self.path
        rows = [self.row(node) for node in rows_node.value]
        space = self.checked(
            root,
            lambda: space_of_rows(
                str(name),
                rows,
                resolutions=tuple(int(side) for side in resolutions),
                stem_width=stem,
                head_width=width,
                head_expansion=head_expansion,
                description=description,
            ),
        )
        self.checked(root, lambda: space.decode(_widest(space)))  # widths multiply: refuse here what no row could build
        return space

    def row(self, node: yaml.Node) -> Row:
        fields = self.mapping(node, _ROW_KEYS, required={"expansion", "width"})
        blocks = self.blocks(fields["block"]) if "block" in fields else TBS
        widths = self.numbers(fields["width"])
        if not all(isinstance(width, int) for width in widths):
            raise self.fail(fields["width"], f"width must be whole numbers, got {widths}")
        n = self.integer(fields["n"]) if "n" in fields else 1
        stride = self.integer(fields["stride"]) if "stride" in fields else 1
        expansion = self.numbers(fields["expansion"])
        for key, values in (("width", widths), ("expansion", expansion)):
            self.check_increasing(key, fields[key], values)
        return self.checked(
            node, lambda: Row(block=blocks, expansion=expansion, width=tuple(map(int, widths)), n=n, stride=stride)
        )

    def check_increasing(self, key: str, node: yaml.Node, values: tuple[float, ...]) -> None:
        if not values or list(values) != sorted(set(values)):
            raise self.fail(node, f"options of {key} must increase, got {values}")

    def blocks(self, node: yaml.Node) -> tuple[str, ...]:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        names: list[str] = []
        for item in nodes:
            name = str(self.scalar(item))
            if name != "TBS" and name not in BLOCK_TYPES:
                raise self.fail(item, f"unknown block {name!r}{closest(name, [*BLOCK_TYPES, 'TBS'])}")
            names += TBS if name == "TBS" else (name,)
        if len(set(names)) != len(names):
            raise self.fail(node, "a block is named twice")
        return tuple(names)

    def mapping(self, node: yaml.Node, allowed: set[str], required: set[str]) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, f"expected a mapping with the keys {', '.join(sorted(allowed))}")
        fields: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = str(self.scalar(key_node))
            if key not in allowed:
                raise self.fail(key_node, f"unknown key {key!r}{closest(key, allowed)}")
            if key in fields:
                raise self.fail(key_node, f"key {key!r} stands twice")
            fields[key] = value
        for key in sorted(required - set(fields)):
            raise self.fail(node, f"key {key!r} is missing")
        return fields

    def scalar(self, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise self.fail(node, "expected a single value")
        return node.value

    def number(self, node: yaml.Node) -> float:
        return self._number(node, str(self.scalar(node)))

    def _number(self, node: yaml.Node, text: str) -> float:
        try:
            return int(text) if re.fullmatch(r"\s*\d+\s*", text) else _finite(text)
        except (ValueError, OverflowError) as error:
            raise self.fail(node, f"expected a number, got {text!r}") from error

    def integer(self, node: yaml.Node) -> int:
        value = self.number(node)
        if not isinstance(value, int) or not 0 < value <= 1 << 16:
            raise self.fail(node, f"expected a whole number in 1..{1 << 16}, got {value}")
        return value

    def numbers(self, node: yaml.Node) -> tuple[float, ...]:
        """``16``, ``[12, 16]`` or ``(low, high, step)``."""
        if isinstance(node, yaml.SequenceNode):
            return tuple(self.number(item) for item in node.value)
        text = str(self.scalar(node))
        match = _TUPLE.fullmatch(text.strip())
        if match is None:
            return (self._number(node, text),)
        low, high, step = (self._number(node, part) for part in match.groups())
        return self.checked(node, lambda: span(low, high, step))


def _widest(space: SearchSpace) -> list[int]:
    """The row with the last option of every number and no skip where there is a choice."""
    return [
        len(variable.options) - 1
        if isinstance(variable, Range)
        else next((i for i, block in enumerate(variable.options) if not block.is_skip), 0)
        for variable in space.variables
    ]


def _finite(text: str) -> float:
    value = float(text)
    if abs(value) > 1e9 or value != value:
        raise ValueError(text)
    return value
