"""Reads networks written as lines of facts, see the head of `networks.yaml`, into Architectures."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from search_spaces.architecture import Activation, Architecture, Block
from search_spaces.errors import UserError, closest
from search_spaces.scaling import low_resolution
from search_spaces.serialisation import from_plain, require
from search_spaces.space import round_channels

FILE = Path(__file__).with_name("networks.yaml")
ALIASES = {"fbnetv2_f5": "fbnetv2_l2"}  # the published name of the same network
LOW_RESOLUTION = re.compile(r"(.+)_low(\d{1,4})")
ACTIVATIONS: dict[str, Activation] = {"re": "relu", "hs": "hswish"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Rules of a family of networks: channel rounding, squeeze-and-excite width, which convolutions have biases."""

    divisor: int
    threshold: float
    squeeze: str
    round_squeeze: bool
    block_bias: bool
    head_bias: bool

    def round(self, channels: float) -> int:
        """R of the published networks; fractions are cut where the divisor is 1 and the width a whole number."""
        return round_channels(channels, self.divisor, self.threshold)

    def squeeze_channels(self, mid_channels: int, expansion: float) -> int:
        """A quarter of the middle width, or of the width before expansion."""
        share = 0.25 if self.squeeze == "mid" else 0.25 / expansion
        channels = int(share * mid_channels)
        return self.round(channels) if self.round_squeeze else channels


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """Published figures at the own resolution: millions of multiply-adds and weights, ImageNet top-1 in percent."""

    flops_m: float
    params_m: float
    top1: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One network of a file."""

    architecture: Architecture
    published: Published | None


def load_networks(path: str | Path = FILE) -> dict[str, Entry]:
    """All networks of a file in the format of `networks.yaml`, by name.

    The key ``families`` may be left out: those of `networks.yaml` are known. Other keys of the file and of a network's
    ``published`` are ignored. Lines may also come in groups, under ``stages``, and networks under ``nets``.

    Raises:
        UserError: missing file, not the format; the message names the network and the line of facts.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    data = data if isinstance(data, dict) else {}
    networks, rules = data.get("networks", data.get("nets")), data.get("families", {})
    if not isinstance(networks, dict) or not isinstance(rules, dict):
        raise UserError(f"{path}: expected the key networks, and perhaps families, with a mapping each")
    families = {} if path == FILE else dict(_families())
    for name, given in rules.items():
        families[str(name)] = _family(given, f"{path}: family {name}")
    return {str(name): _entry(str(name), facts, families, f"{path}: {name}") for name, facts in networks.items()}


@cache
def _families() -> Mapping[str, Family]:
    """Those of `networks.yaml`."""
    rules = yaml.safe_load(FILE.read_text(encoding="utf-8"))["families"]
    return {str(name): _family(given, f"{FILE}: family {name}") for name, given in rules.items()}


def _family(given: Any, where: str) -> Family:
    """A family by our keys, or by those of the facts as they were first written down: d, t, and the rule of se in words."""
    if not (isinstance(given, dict) and {"d", "t"} <= set(given)):
        return from_plain(Family, given, where)
    rule = str(given.get("se") or "sq = int(0.25 * mid)")  # null: no block squeezes
    match = re.match(r"sq = (R\()?int\(0\.25(/e)? \* mid\)", rule)
    if match is None:
        raise UserError(
            f"{where}: se must begin with sq = int(0.25 * mid), /e after 0.25 or R(...) around, got {rule!r}"
        )
    plain = {
        "divisor": given["d"],
        "threshold": given["t"],
        "squeeze": "in" if match[2] else "mid",
        "round_squeeze": bool(match[1]),
        "block_bias": given.get("mb_conv_bias", False),
        "head_bias": given.get("pool_head_bias", given.get("mb_conv_bias", False)),
    }
    return from_plain(Family, plain, where)


def _entry(name: str, facts: Any, families: dict[str, Family], where: str) -> Entry:
    require(isinstance(facts, dict), f"{where}: expected a mapping")
    family = families.get(str(facts.get("family")))
    if family is None:
        raise UserError(f"{where}: unknown family {facts.get('family')!r}{closest(str(facts.get('family')), families)}")
    lines, stages, side = facts.get("lines"), facts.get("stages"), facts.get("input")
    if lines is None and isinstance(stages, list) and all(isinstance(stage, list) for stage in stages):
        lines = [line for stage in stages for line in stage]
    if not isinstance(lines, list) or not isinstance(side, int):
        raise UserError(f"{where}: input must be a number of pixels and lines a list")
    blocks: list[Block] = []
    channels = 0
    for number, line in enumerate(lines, start=1):
        for block in _blocks(line, channels, family, f"{where}, line {number}"):
            blocks.append(block)
            channels = block.out_channels
    architecture = Architecture(name=name, resolution=side, blocks=tuple(blocks))
    return Entry(architecture=architecture, published=_published(facts.get("published"), where))


def _published(given: Any, where: str) -> Published | None:
    """Published figures, where all three are there."""
    wanted = [field.name for field in fields(Published)]
    if not isinstance(given, dict) or not set(wanted) <= set(given):
        return None
    return from_plain(Published, {name: given[name] for name in wanted}, where)


_PREFIXED = {"kernel": "k", "expansion": "e", "out_channels": "c", "stride": "s", "se": "se"}


def _number(text: Any, field: str, where: str) -> float:
    prefix = _PREFIXED[field]
    match = re.fullmatch(rf"{prefix}(\d+(?:\.\d+)?)", str(text))
    if match is None:
        raise UserError(f"{where}: {field} must be {prefix} and a number, got {text!r}")
    return float(match[1])


def _blocks(line: Any, in_channels: int, family: Family, where: str) -> list[Block]:
    """The blocks of one line, entered by ``in_channels`` (0 for the image)."""
    if not isinstance(line, list) or len(line) < 8:
        raise UserError(
            f"{where}: expected [type, kernel, expansion, out_channels, stride, repeats, se, activation, ...]"
        )
    kind, kernel, expansion, out, stride, repeats, se, activation, *extras = line
    same = out == "csame"
    if not isinstance(repeats, int) or not 1 <= repeats <= 100:
        raise UserError(f"{where}: repeats must be in 1..100, got {repeats!r}")
    out_channels = in_channels if same else int(_number(out, "out_channels", where))
    first_stride = int(_number(stride, "stride", where))
    known: dict[str, int] = {}
    for extra in extras:
        match = re.fullmatch(r"(g|dwg|p)(\d+)", str(extra))
        if match is None:
            raise UserError(f"{where}: unknown extra {extra!r}; allowed: gN, dwgN, pN")
        known[match[1]] = int(match[2])
    blocks = []
    for repeat in range(repeats):
        common: dict[str, Any] = {"out_channels": out_channels, "stride": 1 if repeat else first_stride}
        if kind == "skip":
            blocks.append(Block(kind="skip", **common))
            continue
        if activation not in ACTIVATIONS:
            raise UserError(f"{where}: activation must be re or hs, got {activation!r}")
        common["activation"] = ACTIVATIONS[activation]
        if kind == "conv":
            side = int(_number(kernel, "kernel", where))
            blocks.append(Block(kind="conv", kernel=side, padding=known.get("p"), bias=True, **common))
            continue
        if kind not in ("mb", "pool_head"):
            raise UserError(f"{where}: type must be conv, mb, skip or pool_head, got {kind!r}")
        ratio = _number(expansion, "expansion", where)
        mid = family.round(in_channels * ratio)
        if kind == "pool_head":
            blocks.append(Block(kind="pool_head", mid_channels=mid, bias=family.head_bias, **common))
        else:
            blocks.append(
                Block(
                    kind="ir",
                    kernel=int(_number(kernel, "kernel", where)),
                    mid_channels=mid,
                    squeeze_channels=family.squeeze_channels(mid, ratio) if _number(se, "se", where) else 0,
                    pointwise=mid != in_channels,
                    bias=family.block_bias,
                    groups=known.get("g", 1),
                    group_width=known.get("dwg", 1),
                    padding=known.get("p"),
                    **common,
                )
            )
        in_channels = out_channels
    return blocks


@cache
def _published_networks() -> dict[str, Entry]:
    return load_networks()


def names() -> list[str]:
    """Names of all published networks, in the file's order."""
    return list(_published_networks())


def find(name: str, networks: Mapping[str, Entry]) -> Entry:
    """The network of that name, or its variant for small images: ``NAME_low32`` is `low_resolution` at 32 pixels.

    Args:
        name: upper case and dashes are accepted (``FBNetV3-B``).
        networks: what `load_networks` gave.

    Raises:
        UserError: nothing of that name; the closest is suggested.
    """
    wanted = name.lower().replace("-", "_")
    variant = LOW_RESOLUTION.fullmatch(wanted)
    base, side = (wanted, None) if variant is None else variant.groups()
    known = {key.lower().replace("-", "_"): key for key in networks}
    base = ALIASES.get(base, base)
    if base not in known:
        raise UserError(f"unknown network {name!r}{closest(base, networks)}")
    entry = networks[known[base]]
    if side is None:
        return entry
    return Entry(architecture=low_resolution(entry.architecture, int(side)), published=None)


def load(name: str) -> Architecture:
    """A published network by name, as `find` reads it.

    Raises:
        UserError: nothing of that name; the closest is suggested.
    """
    return find(name, _published_networks()).architecture


def published(name: str) -> Published | None:
    """Published figures of a network, where there are any."""
    return find(name, _published_networks()).published
