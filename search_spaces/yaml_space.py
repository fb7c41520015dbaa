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

from pathlib import Path

import yaml

from search_spaces.architecture import MAX_RESOLUTION
from search_spaces.errors import closest
from search_spaces.rows import TBS, Row, space_of_rows
from search_spaces.space import BLOCK_TYPES, SearchSpace
from search_spaces.variables import Range
from search_spaces.yaml_reader import MAX_BYTES as MAX_BYTES
from search_spaces.yaml_reader import YamlReader

_KEYS = {"name", "description", "resolutions", "stem", "rows", "head"}
_ROW_KEYS = {"block", "expansion", "width", "n", "stride"}


def load_yaml_space(path: str | Path) -> SearchSpace:
    """The space of a YAML file.

    Raises:
        UserError: missing file, not YAML, or not a space; the message names file and line.
    """
    return space_of_document(YamlReader.open(path))


def space_of_document(reader: YamlReader) -> SearchSpace:
    """The space of a document with network rows.

    Raises:
        UserError: not a space; the message names file and line.
    """
    root = reader.root
    if reader.has_key("variables"):
        raise reader.fail(root, "these are bare variables; networks are needed here (rows of blocks)")
    fields = reader.mapping(root, _KEYS, required={"resolutions", "stem", "rows", "head"})
    rows_node = fields["rows"]
    if not isinstance(rows_node, yaml.SequenceNode) or not rows_node.value:
        raise reader.fail(rows_node, "rows must be a list of rows")
    head_width, head_expansion = _head(reader, fields["head"])
    resolutions, stem = reader.numbers(fields["resolutions"]), reader.integer(fields["stem"])
    name = reader.name(fields)
    if not all(isinstance(side, int) and 1 <= side <= MAX_RESOLUTION for side in resolutions):
        message = f"resolutions must be whole numbers of pixels in 1..{MAX_RESOLUTION}, got {resolutions}"
        raise reader.fail(fields["resolutions"], message)
    _check_increasing(reader, "resolutions", fields["resolutions"], resolutions)
    description = reader.scalar(fields["description"]) if "description" in fields else reader.path
    rows = [_row(reader, node) for node in rows_node.value]
    space = reader.checked(
        root,
        lambda: space_of_rows(
            name,
            rows,
            resolutions=tuple(int(side) for side in resolutions),
            stem_width=stem,
            head_width=head_width,
            head_expansion=head_expansion,
            description=description,
        ),
    )
    reader.checked(root, lambda: space.decode(_widest(space)))  # widths multiply: refuse here what no row could build
    return space


def _head(reader: YamlReader, node: yaml.Node) -> tuple[int, float]:
    """Width and expansion of the last stage."""
    if not isinstance(node, yaml.MappingNode):
        return reader.integer(node), 6.0
    fields, expansion = reader.mapping(node, {"width", "expansion"}, required={"width"}), 6.0
    if "expansion" in fields:
        expansion = reader.number(fields["expansion"])
        if not 0 < expansion <= 64:
            raise reader.fail(fields["expansion"], f"expansion must be > 0 and <= 64, got {expansion}")
    return reader.integer(fields["width"]), expansion


def _row(reader: YamlReader, node: yaml.Node) -> Row:
    fields = reader.mapping(node, _ROW_KEYS, required={"expansion", "width"})
    blocks = _blocks(reader, fields["block"]) if "block" in fields else TBS
    widths = reader.numbers(fields["width"])
    if not all(isinstance(width, int) for width in widths):
        raise reader.fail(fields["width"], f"width must be whole numbers, got {widths}")
    n = reader.integer(fields["n"]) if "n" in fields else 1
    stride = reader.integer(fields["stride"]) if "stride" in fields else 1
    expansion = reader.numbers(fields["expansion"])
    for key, values in (("width", widths), ("expansion", expansion)):
        _check_increasing(reader, key, fields[key], values)
    return reader.checked(
        node, lambda: Row(block=blocks, expansion=expansion, width=tuple(map(int, widths)), n=n, stride=stride)
    )


def _check_increasing(reader: YamlReader, key: str, node: yaml.Node, values: tuple[float, ...]) -> None:
    if not values or list(values) != sorted(set(values)):
        raise reader.fail(node, f"options of {key} must increase, got {values}")


def _blocks(reader: YamlReader, node: yaml.Node) -> tuple[str, ...]:
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    names: list[str] = []
    for item in nodes:
        name = reader.scalar(item)
        if name != "TBS" and name not in BLOCK_TYPES:
            raise reader.fail(item, f"unknown block {name!r}{closest(name, [*BLOCK_TYPES, 'TBS'])}")
        names += TBS if name == "TBS" else (name,)
    if len(set(names)) != len(names):
        raise reader.fail(node, "a block is named twice")
    return tuple(names)


def _widest(space: SearchSpace) -> list[int]:
    """The row with the last option of every number and no skip where there is a choice."""
    return [
        len(variable.options) - 1
        if isinstance(variable, Range)
        else next((i for i, block in enumerate(variable.options) if not block.is_skip), 0)
        for variable in space.variables
    ]
