"""`Backbone`: a network without its classifier, as detectors and segmenters use it (thesis 4.4)."""

# B batch, C channels, H/W feature map

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from search_spaces.architecture import Architecture, Block
from search_spaces.blocks import build_block
from search_spaces.errors import UserError
from search_spaces.network import Network, initialise
from search_spaces.scaling import is_head
from search_spaces.serialisation import require

STRIDES = (4, 8, 16, 32)


class Stage(nn.Sequential):
    """Blocks in order; ``out_channels`` of the last one, which is where torchvision's detectors look for it."""

    def __init__(self, blocks: Iterable[nn.Module], out_channels: int) -> None:
        super().__init__(*blocks)
        self.out_channels = out_channels


class Backbone(nn.Module):
    """Feature maps of a network: the last map at each of the strides 4, 8, 16 and 32 that the network has.

    The pool head (in the first FBNets the last 1x1 convolution) and the classifier are dropped. A stride here is the product of
    the blocks' strides; sides are those of the image over the stride, rounded up, but for the networks whose depthwise paddings
    are smaller than usual (FBNetV3-A, B, C, E, F): their last maps are a pixel or two smaller, which tells on small images.

    Parameters have the names they have in `Network` (``blocks.0...``).

    Attributes:
        out_channels: channels of each level, by name (``stride4``, ``stride8``, ...), finest first.
        channels: the same numbers in order, as ``torchvision.ops.FeaturePyramidNetwork`` takes them.

    Args:
        architecture: the network.
        in_channels: channels of the image.

    Raises:
        UserError: a network that has none of the four strides.
    """

    def __init__(self, architecture: Architecture, in_channels: int = 3) -> None:
        super().__init__()
        layers = _body(architecture, in_channels)
        self.blocks = nn.ModuleList(build_block(block, channels) for channels, block in layers)
        self.block_channels = [block.out_channels for _, block in layers]
        self.levels = _levels([block.stride for _, block in layers])
        require(
            len(self.levels) > 0, f"{architecture.name} has no map at a stride of {', '.join(map(str, STRIDES))} pixels"
        )
        self.out_channels = {name: self.block_channels[index] for index, name in self.levels.items()}
        self.channels = tuple(self.out_channels.values())

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Images `(B, in_channels, H, W)` to maps `(B, C, H / stride, W / stride)` by name, finest first."""
        maps = OrderedDict()
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.levels:
                maps[self.levels[index]] = x
        return maps

    def split(self, stride: int = 16) -> tuple[Stage, Stage]:
        """Two halves that share this module's weights: up to the last map at ``stride``, and all blocks after it.

        With stride 16 these are the trunk and the box head of a C4 detector (thesis 4.4): proposals come from the map at
        stride 16, and what was stride 32 runs on each pooled region.

        Raises:
            UserError: no level of that stride, or no block after it.
        """
        ends = {name: index + 1 for index, name in self.levels.items()}
        require(f"stride{stride}" in ends, f"stride must be that of a level ({', '.join(ends)}), got {stride}")
        end = ends[f"stride{stride}"]
        require(end < len(self.blocks), f"stride {stride} is the last level, so no block is left for the second half")
        first = Stage(self.blocks[:end], self.block_channels[end - 1])
        return first, Stage(self.blocks[end:], self.block_channels[-1])

    @classmethod
    def from_network(cls, architecture: Architecture, network: Network) -> "Backbone":
        """A backbone with a copy of a classifier's weights and statistics, on its device and in its mode.

        Stochastic depth is not carried over.

        Raises:
            UserError: another number of blocks, or a tensor of another shape; the message names the first.
        """
        count = len(network.blocks)
        require(
            count == len(architecture.blocks),
            f"{architecture.name} has {len(architecture.blocks)} blocks, the network {count}",
        )
        given = network.blocks.state_dict()
        image_channels = next((tensor.shape[1] for tensor in given.values() if tensor.dim() == 4), 3)
        backbone = build_backbone(architecture, image_channels)
        wanted = backbone.blocks.state_dict()
        for name, tensor in wanted.items():
            found = tuple(given[name].shape) if name in given else None
            if found != tuple(tensor.shape):
                has = "has no such tensor" if found is None else f"has {found}"
                raise UserError(f"blocks.{name} of {architecture.name} is {tuple(tensor.shape)}, the network {has}")
        backbone.blocks.load_state_dict({name: given[name] for name in wanted})
        like = next(network.parameters())
        return backbone.to(device=like.device, dtype=like.dtype).train(network.training)


def _body(architecture: Architecture, in_channels: int) -> list[tuple[int, Block]]:
    """Layers without the classifier's last stage."""
    layers = list(architecture.layers(in_channels))
    return layers[:-1] if len(layers) > 1 and is_head(layers[-1][1]) else layers


def _levels(strides: list[int]) -> dict[int, str]:
    """Index of the last block at each of `STRIDES`, and the level's name."""
    last: dict[int, int] = {}
    total = 1
    for index, stride in enumerate(strides):
        total *= stride
        last[total] = index
    return {last[stride]: f"stride{stride}" for stride in STRIDES if stride in last}


def build_backbone(architecture: Architecture, in_channels: int = 3, seed: int = 0) -> Backbone:
    """A freshly initialised backbone.

    Args:
        architecture: the network; its classifier is not built.
        in_channels: channels of the image, >= 1.
        seed: of the initial weights; the global random state is left alone.

    Raises:
        UserError: ``in_channels`` out of range, or a network without maps at strides 4, 8, 16 or 32.
    """
    require(in_channels >= 1, f"in_channels must be >= 1, got {in_channels}")
    with torch.random.fork_rng(devices=[]):  # constructors draw weights that `initialise` replaces
        backbone = Backbone(architecture, in_channels)
    initialise(backbone, torch.Generator().manual_seed(seed))
    return backbone
