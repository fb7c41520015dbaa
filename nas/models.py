"""Published networks as modules, with published weights."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from recipes.checkpoint import load_checkpoint
from search_spaces import zoo
from search_spaces.errors import UserError, closest
from search_spaces.network import Network, build
from search_spaces.zoo.weights import is_timm, read_published

logger = logging.getLogger(__name__)

Paddings = Literal["published", "normal"]


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    pretrained: str | Path | None = None,
    paddings: Paddings | None = None,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    seed: int = 0,
) -> Network:
    """A published network, in training mode, with fresh weights or those of a checkpoint.

    With another number of classes than the checkpoint's the classifier is left fresh, and one line of the log says so.

    Args:
        name: of `nas zoo`.
        num_classes: outputs, >= 1.
        in_channels: channels of the image, >= 1.
        pretrained: a checkpoint of mobile-vision's or timm's layout; only tensors and plain values in it are read.
        paddings: ``published``, or ``normal`` for kernel // 2 everywhere. FBNetV3-A, B, C, E and F were published with
            one or two smaller depthwise paddings; timm trained its FBNetV3-B without. By default a checkpoint with
            timm's names gets ``normal``, everything else ``published``.
        dropout: probability before the classifier, in [0, 1).
        stochastic_depth: drop probability of the deepest residual branch, in [0, 1).
        seed: of the fresh weights.

    Raises:
        UserError: an unknown name (the closest is suggested), a number out of its range, or a checkpoint that is missing,
            damaged or of another network.
    """
    architecture = zoo.load(name)
    if paddings is not None and paddings not in get_args(Paddings):
        raise UserError(f"unknown paddings {paddings!r}{closest(str(paddings), get_args(Paddings))}")
    state = None if pretrained is None else load_checkpoint(pretrained)
    where = str(pretrained)
    if paddings is None:
        paddings = "normal" if state is not None and is_timm(state, where=where) else "published"
    if paddings == "normal":
        blocks = tuple(replace(block, padding=None) for block in architecture.blocks)
        architecture = replace(architecture, blocks=blocks)
    network = build(
        architecture, num_classes, in_channels, dropout=dropout, stochastic_depth=stochastic_depth, seed=seed
    )
    if state is not None:
        note = read_published(network, state, where=where)
        if note is not None:
            logger.warning(note)
    return network
