"""LeNet-5 as document 004 prints it, with widths that may be narrowed (LeCun et al. 1998: 6, 16, 120 and 84)."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search_spaces.architecture import MAX_CHANNELS
from search_spaces.errors import UserError
from search_spaces.serialisation import require

LENET5 = "lenet5"
WIDTHS = (6, 16, 120, 84)  # of c1, c3, c5 and f6


@dataclass(frozen=True, slots=True)
class LeNet5:
    """The network as data; `widths` are the outputs of c1, c3, c5 and f6.

    Raises:
        UserError: a width out of range.
    """

    widths: tuple[int, int, int, int] = WIDTHS

    def __post_init__(self) -> None:
        require(
            len(self.widths) == len(WIDTHS) and all(0 < width <= MAX_CHANNELS for width in self.widths),
            f"widths of {LENET5} must be {len(WIDTHS)} numbers in 1..{MAX_CHANNELS}, got {self.widths}",
        )

    @property
    def name(self) -> str:
        """``lenet5``, or ``lenet5:6-16-12-84`` with other widths."""
        return LENET5 if self.widths == WIDTHS else f"{LENET5}:{'-'.join(map(str, self.widths))}"

    @property
    def resolution(self) -> int:
        """Side of the image in pixels; the maps after c5 are then 1x1."""
        return 32

    @classmethod
    def parse(cls, name: str) -> "LeNet5":
        """Inverse of `name`.

        Raises:
            UserError: another name, or widths that are no such numbers.
        """
        base, _, widths = name.partition(":")
        numbers = widths.split("-") if widths else [str(width) for width in WIDTHS]
        if base != LENET5 or not all(number.isdecimal() and len(number) < 9 for number in numbers):
            raise UserError(f"{LENET5} is written {LENET5} or {LENET5}:6-16-120-84, got {name[:60]!r}")
        return cls(tuple(int(number) for number in numbers))  # type: ignore[arg-type]  # its length is checked


def is_lenet5(name: str) -> bool:
    """Whether a text means this network."""
    return name.partition(":")[0] == LENET5


class LeNet5Network(nn.Module):
    """Names of layers as printed in document 004: three 5x5 convolutions, two maximum pools, two linear layers.

    Args:
        design: its widths.
        num_classes: outputs.
        in_channels: channels of the image.
    """

    def __init__(self, design: LeNet5, num_classes: int, in_channels: int = 1) -> None:
        super().__init__()
        c1, c3, c5, f6 = design.widths
        self.convnet = nn.Sequential(
            OrderedDict[str, nn.Module](
                c1=nn.Conv2d(in_channels, c1, 5), relu1=nn.ReLU(), s2=nn.MaxPool2d(2),
                c3=nn.Conv2d(c1, c3, 5), relu3=nn.ReLU(), s4=nn.MaxPool2d(2),
                c5=nn.Conv2d(c3, c5, 5), relu5=nn.ReLU(),
            )
        )  # fmt: skip
        self.fc = nn.Sequential(
            OrderedDict[str, nn.Module](
                f6=nn.Linear(c5, f6), relu6=nn.ReLU(), f7=nn.Linear(f6, num_classes), sig7=nn.LogSoftmax(dim=-1)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, in_channels, 32, 32)` to log-probabilities `(B, num_classes)`."""
        out: Tensor = self.fc(self.convnet(x).flatten(1))
        return out


def build_lenet5(design: LeNet5, num_classes: int, in_channels: int, seed: int) -> LeNet5Network:
    """A fresh network with PyTorch's own initial weights; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return LeNet5Network(design, num_classes, in_channels)
