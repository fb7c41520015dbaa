"""Reading YAML files that users write: every error knows its file and line.

Only YAML's safe subset is read: no tags, no aliases, nothing is constructed. What is inside a file is for the readers of
`yaml_space` and `yaml_variables`.
"""

import math
import re
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Self, TypeVar

import yaml

from search_spaces.architecture import require_name
from search_spaces.errors import UserError, closest, first_line
from search_spaces.variables import span

T = TypeVar("T")
MAX_BYTES = 1 << 16  # the scanner takes quadratic time on nested brackets
LARGEST = 1e15  # numbers; whole ones up to here are exact as floats too
_WHOLE = re.compile(r"\s*[+-]?\d+\s*")
_TUPLE = re.compile(r"\(\s*([^,()]+)\s*,\s*([^,()]+)\s*,\s*([^,()]+)\s*\)")


class YamlReader:
    """Walks the nodes of one document.

    Args:
        path: named in messages.
        text: the document.

    Raises:
        UserError: not YAML, a tag or an alias, or an empty document.
    """

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.root = self._compose(text)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The document of a file.

        Raises:
            UserError: a missing, large or unreadable file, or what the constructor refuses.
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
        return cls(str(path), text)

    def _compose(self, text: str) -> yaml.Node:
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
        return root

    def fail(self, node: yaml.Node, message: str) -> UserError:
        """An error placed at ``node``."""
        return UserError(f"{self.path}, line {node.start_mark.line + 1}: {message}")

    def checked(self, node: yaml.Node, make: Callable[[], T]) -> T:
        """``make()``, its errors placed at ``node``."""
        try:
            return make()
        except UserError as error:
            raise self.fail(node, str(error)) from error

    def has_key(self, name: str) -> bool:
        """Whether ``name`` is a key at the top of the document."""
        pairs = self.root.value if isinstance(self.root, yaml.MappingNode) else []
        return any(isinstance(key, yaml.ScalarNode) and key.value == name for key, _ in pairs)

    def mapping(self, node: yaml.Node, allowed: Set[str], required: Set[str]) -> dict[str, yaml.Node]:
        """Values of a mapping by key, all of them known."""
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, f"expected a mapping with the keys {', '.join(sorted(allowed))}")
        fields: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = self.scalar(key_node)
            if key not in allowed:
                raise self.fail(key_node, f"unknown key {key!r}{closest(key, allowed)}")
            if key in fields:
                raise self.fail(key_node, f"key {key!r} stands twice")
            fields[key] = value
        for key in sorted(required - set(fields)):
            raise self.fail(node, f"key {key!r} is missing")
        return fields

    def name(self, fields: Mapping[str, yaml.Node]) -> str:
        """What stands under ``name``, else the file's own name."""
        name = self.scalar(fields["name"]) if "name" in fields else Path(self.path).stem
        self.checked(fields.get("name", self.root), lambda: require_name(name))
        return name

    def scalar(self, node: yaml.Node) -> str:
        """A single value as text."""
        if not isinstance(node, yaml.ScalarNode):
            raise self.fail(node, "expected a single value")
        return str(node.value)

    def number(self, node: yaml.Node) -> float:
        """A single finite number; whole ones are int."""
        return self._number(node, self.scalar(node))

    def _number(self, node: yaml.Node, text: str) -> float:
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        try:
            value = int(text) if _WHOLE.fullmatch(text) else float(text)
        except ValueError as error:  # also a whole number of more than 4300 digits
            raise self.fail(node, f"expected a number, got {shown!r}") from error
        if not isinstance(value, int) and not math.isfinite(value):
            raise self.fail(node, f"expected a number, got {shown!r}")
        if abs(value) > LARGEST:
            raise self.fail(node, f"numbers must be at most {LARGEST:g}, got {shown!r}")
        return value

    def integer(self, node: yaml.Node) -> int:
        """A whole number of 1 to 65536."""
        value = self.number(node)
        if not isinstance(value, int) or not 0 < value <= 1 << 16:
            raise self.fail(node, f"expected a whole number in 1..{1 << 16}, got {value}")
        return value

    def numbers(self, node: yaml.Node) -> tuple[float, ...]:
        """``16``, ``[12, 16]`` or ``(low, high, step)``."""
        if isinstance(node, yaml.SequenceNode):
            return tuple(self.number(item) for item in node.value)
        text = self.scalar(node)
        match = _TUPLE.fullmatch(text.strip())
        if match is None:
            return (self._number(node, text),)
        low, high, step = (self._number(node, part) for part in match.groups())
        return self.checked(node, lambda: span(low, high, step))
