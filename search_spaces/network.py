"""`build`: an Architecture becomes a plain `torch.nn.Module`, without masks."""

import torch
from torch import Tensor, nn

from search_spaces.architecture import Architecture
from search_spaces.blocks import InvertedResidual, build_block
from search_spaces.cost import cost
from search_spaces.serialisation import require

MAX_PARAMS = 10**10  # guards memory against a damaged or hostile file


class Network(nn.Module):
    """Image classifier: blocks in order, average pool, dropout, linear classifier.

    Args:
        architecture: what to build.
        num_classes: outputs.
        in_channels: channels of the image.
        dropout: probability before the classifier.
        stochastic_depth: drop probability of the last residual branch; it grows linearly from 0 with depth.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int,
        in_channels: int = 3,
        *,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__()
        last = max(1, len(architecture.blocks) - 1)
        self.blocks = nn.ModuleList(
            build_block(block, channels, stochastic_depth * index / last)
            for index, (channels, block) in enumerate(architecture.layers(in_channels))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(architecture.out_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, in_channels, H, W)` to logits `(B, num_classes)`."""
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.dropout(self.pool(x).flatten(1)))  # type: ignore[no-any-return]


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Kaiming normal (fan out) for convolutions, as published; norms to one and zero; a small normal classifier.

    The last norm of a residual branch starts at zero, so that every residual block starts as the identity.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.Linear):
            nn.init.normal_(child.weight, std=0.01, generator=generator)
            nn.init.zeros_(child.bias)
        elif isinstance(child, InvertedResidual) and child.residual:
            nn.init.zeros_(child.pwl.get_parameter("1.weight"))


def build(
    architecture: Architecture,
    num_classes: int,
    in_channels: int = 3,
    *,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    seed: int = 0,
) -> Network:
    """A freshly initialised network of plain modules.

    Args:
        architecture: what to build.
        num_classes: outputs, >= 1.
        in_channels: channels of the image, >= 1.
        dropout: probability before the classifier, in [0, 1).
        stochastic_depth: drop probability of the deepest residual branch, in [0, 1).
        seed: of the initial weights; the global random state is left alone.

    Raises:
        UserError: a number out of its range.
    """
    params = cost(architecture, num_classes=num_classes, in_channels=in_channels).params
    require(params <= MAX_PARAMS, f"a network must have at most {MAX_PARAMS:.0e} parameters, got {params:.3g}")
    for name, value in (("dropout", dropout), ("stochastic_depth", stochastic_depth)):
        require(0 <= value < 1, f"{name} must be in [0, 1), got {value}")
    with torch.random.fork_rng(devices=[]):  # constructors draw weights that `initialise` replaces
        network = Network(architecture, num_classes, in_channels, dropout=dropout, stochastic_depth=stochastic_depth)
    initialise(network, torch.Generator().manual_seed(seed))
    return network
