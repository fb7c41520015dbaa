"""MobileNetV2 and MobileNetV3-Small of torchvision, scaled in width to a budget, for small images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torchvision.models import mobilenet_v2, mobilenet_v3_small

from search_spaces.cost import Cost
from search_spaces.counting import fvcore_cost

BASELINES: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_small": mobilenet_v3_small,
}
WIDTHS = tuple(number / 100 for number in range(5, 301, 5))
SIDES = (1.0, 0.875)  # of the images: widths are multiples of 8, so width alone meets few budgets


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaled:
    """A network of torchvision at a width and resolution.

    Attributes:
        name: of `BASELINES`.
        width: multiplier of all widths.
        resolution: side of the images in pixels.
        cost: exact.
    """

    name: str
    width: float
    resolution: int
    cost: Cost


def small_image_network(name: str, width: float, *, num_classes: int, in_channels: int, seed: int = 0) -> nn.Module:
    """The network with a stem for small images: its first convolution keeps the side and takes ``in_channels``.

    Args:
        name: of `BASELINES`.
        width: multiplier of all widths.
        num_classes: outputs.
        in_channels: of the images.
        seed: of the initial weights, which are torchvision's own otherwise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = BASELINES[name](weights=None, num_classes=num_classes, width_mult=width)
        stem: Any = network.get_submodule("features.0.0")
        first = nn.Conv2d(in_channels, stem.out_channels, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(first.weight, mode="fan_out")
        network.get_submodule("features.0").register_module("0", first)
    return network


@cache  # a second or more: it builds and counts a dozen networks
def scaled_to(name: str, flops: float, *, num_classes: int, in_channels: int, resolution: int) -> Scaled | None:
    """The one with the most FLOPs inside a budget, over widths in steps of 0.05 and the two largest resolutions.

    Args:
        name: of `BASELINES`.
        flops: budget in multiply-adds.
        num_classes: outputs.
        in_channels: of the images.
        resolution: their full side in pixels.

    Returns:
        None where even the narrowest is too large.
    """
    found = []
    for side in (round(share * resolution) for share in SIDES):
        low, high = -1, len(WIDTHS)  # the first is inside, the second is not
        while high - low > 1:
            middle = (low + high) // 2
            cost = _cost(name, WIDTHS[middle], side, num_classes, in_channels)
            low, high = (middle, high) if cost.flops <= flops else (low, middle)
            if low == middle:
                best = Scaled(name=name, width=WIDTHS[low], resolution=side, cost=cost)
        if low >= 0:
            found.append(best)
    return max(found, key=lambda scaled: scaled.cost.flops, default=None)


def _cost(name: str, width: float, side: int, num_classes: int, in_channels: int) -> Cost:
    network = small_image_network(name, width, num_classes=num_classes, in_channels=in_channels)
    return fvcore_cost(network, in_channels=in_channels, resolution=side)
