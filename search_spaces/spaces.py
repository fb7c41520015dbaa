"""Spaces by name."""

from collections.abc import Callable

from search_spaces.fbnetv2 import fbnetv2_f, fbnetv2_l, fbnetv2_p
from search_spaces.fbnetv3 import fbnetv3
from search_spaces.small import cifar, digits, fbnetv3_cifar
from search_spaces.space import SearchSpace

SPACES: dict[str, Callable[[], SearchSpace]] = {
    "digits": digits,
    "cifar": cifar,
    "fbnetv2-f": fbnetv2_f,
    "fbnetv2-p": fbnetv2_p,
    "fbnetv2-l": fbnetv2_l,
    "fbnetv3": fbnetv3,
    "fbnetv3-cifar": fbnetv3_cifar,
}
