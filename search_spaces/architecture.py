"""A network as data: what every search returns and what `build`, `cost` and `export` read.

Every width is stated as built (rounding happens where a space or a family is decoded), so an Architecture needs no rules
to be understood. No torch here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from search_spaces.serialisation import from_versioned, read_json, require, to_plain, write_json

SCHEMA = 1
MAX_CHANNELS = 1 << 16  # guards memory against a damaged or hostile file
MAX_KERNEL = 31
MAX_STRIDE = 8
MAX_RESOLUTION = 4096
MAX_BLOCKS = 1000
MAX_NAME = 200  # characters

Activation = Literal["relu", "hswish"]
BlockKind = Literal["conv", "ir", "skip", "pool_head"]


def require_name(name: str) -> None:
    """Refuse a name that would not fit on one line of a listing.

    Raises:
        UserError: an empty or long name, or one with characters that cannot be printed.
    """
    fits = 0 < len(name) <= MAX_NAME and name.isprintable()
    require(fits, f"name must be one printable line of 1..{MAX_NAME} characters, got {name[:40]!r} ({len(name)})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One block; the channels that enter it are those that leave the block before.

    - ``conv``: kernel x kernel convolution, batch norm, activation.
    - ``ir``: inverted residual (FBNetV2, thesis Table 3.3): 1x1 convolution to ``mid_channels`` (left out when
      ``pointwise`` is false; ``mid_channels`` is then the number of channels that enter), depthwise kernel x kernel with
      the stride, squeeze-and-excite when ``squeeze_channels > 0``, 1x1 projection; residual iff stride 1 and channels agree.
    - ``skip``: identity when stride is 1 and channels agree, else 1x1 convolution, batch norm, ReLU.
    - ``pool_head``: 1x1 convolution to ``mid_channels``, batch norm, activation, global average pool, 1x1 convolution
      without norm, activation (the efficient last stage of the published networks).

    Facts of some published networks: ``bias`` gives the block's convolutions biases besides their norms; ``groups`` divides
    both 1x1 convolutions of an ``ir`` block, with a channel shuffle after the first; ``group_width`` is the number of
    channels in a group of its kernel convolution, 1 where that is depthwise; ``padding`` of the kernel in pixels replaces
    kernel // 2.
    """

    kind: BlockKind
    out_channels: int
    kernel: int = 1
    stride: int = 1
    mid_channels: int = 0
    squeeze_channels: int = 0
    activation: Activation = "relu"
    pointwise: bool = True
    bias: bool = False
    groups: int = 1
    group_width: int = 1
    padding: int | None = None

    def __post_init__(self) -> None:
        for name, largest in (("out_channels", MAX_CHANNELS), ("kernel", MAX_KERNEL), ("stride", MAX_STRIDE)):
            value = getattr(self, name)
            require(0 < value <= largest, f"{name} of a {self.kind} block must be in 1..{largest}, got {value}")
        for name in ("mid_channels", "squeeze_channels"):
            value = getattr(self, name)
            require(
                0 <= value <= MAX_CHANNELS, f"{name} of a {self.kind} block must be in 0..{MAX_CHANNELS}, got {value}"
            )
        require(self.kernel % 2 == 1, f"kernel of a {self.kind} block must be odd, got {self.kernel}")
        has_middle = self.kind in ("ir", "pool_head")
        require(
            (self.mid_channels > 0) == has_middle,
            f"mid_channels of a {self.kind} block must be {'> 0' if has_middle else '0'}, got {self.mid_channels}",
        )
        require(
            self.squeeze_channels == 0 or self.kind == "ir",
            f"squeeze_channels of a {self.kind} block must be 0, got {self.squeeze_channels}",
        )
        require(self.pointwise or self.kind == "ir", f"pointwise of a {self.kind} block must be true")
        require(
            1 <= self.groups <= MAX_CHANNELS,
            f"groups of a {self.kind} block must be in 1..{MAX_CHANNELS}, got {self.groups}",
        )
        require(self.groups == 1 or self.kind == "ir", f"groups of a {self.kind} block must be 1, got {self.groups}")
        require(
            self.mid_channels % self.groups == 0 and (self.groups == 1 or self.out_channels % self.groups == 0),
            f"groups must divide mid_channels {self.mid_channels} and out_channels {self.out_channels}, got {self.groups}",
        )
        fits = self.group_width == 1 or (self.kind == "ir" and 1 < self.group_width <= self.mid_channels)
        require(
            fits and self.mid_channels % self.group_width == 0,
            f"group_width of a {self.kind} block must be {'a divisor of mid_channels' if self.kind == 'ir' else '1'},"
            f" got {self.group_width}",
        )
        require(not self.bias or self.kind != "skip", "bias of a skip block must be false")
        if self.padding is not None:
            kernelled = self.kind in ("conv", "ir")
            require(
                kernelled and 0 <= self.padding <= self.kernel // 2,
                f"padding must be in 0..kernel // 2, got {self.padding}",
            )
        if self.kind in ("skip", "pool_head"):
            require(self.kernel == 1, f"kernel of a {self.kind} block must be 1, got {self.kernel}")
        if self.kind == "pool_head":
            require(self.stride == 1, f"stride of a pool_head block must be 1, got {self.stride}")

    @property
    def pad(self) -> int:
        """Padding of the kernel in pixels."""
        return self.kernel // 2 if self.padding is None else self.padding

    def keeps_shape(self, in_channels: int) -> bool:
        """Whether output and input have the same shape, so that an identity or a residual exists."""
        return self.stride == 1 and in_channels == self.out_channels and self.pad == self.kernel // 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A whole network up to its classifier: blocks in order and the side of the square input image in pixels."""

    name: str
    resolution: int
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        require_name(self.name)
        require(
            0 < self.resolution <= MAX_RESOLUTION, f"resolution must be in 1..{MAX_RESOLUTION}, got {self.resolution}"
        )
        require(0 < len(self.blocks) <= MAX_BLOCKS, f"blocks must number 1..{MAX_BLOCKS}, got {len(self.blocks)}")
        for index, block in enumerate(self.blocks):
            where = f"block {index} ({block.kind})"
            entering = self.blocks[index - 1].out_channels if index else None
            require(
                block.groups == 1 or not block.pointwise or (entering is not None and entering % block.groups == 0),
                f"{where}: groups must divide the {entering} channels that enter, got {block.groups}",
            )
            last = index == len(self.blocks) - 1
            require(block.kind != "pool_head" or last, f"{where} must be the last block: it pools to 1x1")
            if not block.pointwise:
                require(index > 0, f"{where} has no pointwise convolution and cannot be the first block")
                before = self.blocks[index - 1].out_channels
                require(
                    block.mid_channels == before,
                    f"{where} has no pointwise convolution, so mid_channels must be {before}, got {block.mid_channels}",
                )

    def layers(self, in_channels: int = 3) -> Iterator[tuple[int, Block]]:
        """Pairs of (channels that enter, block), for an image of ``in_channels``."""
        for block in self.blocks:
            yield in_channels, block
            in_channels = block.out_channels

    @property
    def out_channels(self) -> int:
        """Channels that reach the classifier."""
        return self.blocks[-1].out_channels

    def to_json(self) -> dict[str, Any]:
        """Plain values with the schema version."""
        return {"schema": SCHEMA, **to_plain(self)}

    @classmethod
    def from_json(cls, data: Any, where: str = "architecture") -> "Architecture":
        """Inverse of `to_json`.

        Raises:
            UserError: another schema, an unknown key, a wrong type or a value out of range.
        """
        return from_versioned(cls, data, SCHEMA, where)

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Architecture":
        """Read what `save` wrote."""
        return cls.from_json(read_json(path), where=str(path))
