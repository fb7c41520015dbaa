"""Networks as modules, with the weights of checkpoints."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nas.designs import Design, build_design
from nas.loading import MODEL
from recipes.checkpoint import load_checkpoint
from search_spaces import zoo
from search_spaces.architecture import Architecture
from search_spaces.errors import UserError, closest
from search_spaces.network import Network
from search_spaces.serialisation import require
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
        pretrained: a checkpoint of mobile-vision's or timm's layout, or a run folder of `nas train`; only tensors and plain
            values in it are read.
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
    _, network = build_pretrained(
        zoo.load(name), num_classes=num_classes, in_channels=in_channels, pretrained=pretrained, paddings=paddings,
        dropout=dropout, stochastic_depth=stochastic_depth, seed=seed,
    )  # fmt: skip
    assert isinstance(network, Network), "a published network is an Architecture"
    return network


def build_pretrained(
    design: Design,
    *,
    num_classes: int,
    in_channels: int,
    pretrained: str | Path | None = None,
    paddings: Paddings | None = None,
    dropout: float | None = None,
    stochastic_depth: float | None = None,
    seed: int = 0,
    complete: bool = False,
) -> tuple[Design, nn.Module]:
    """Any network with the weights of a checkpoint; see `create_model` and `nas.designs.build_design`.

    Args besides theirs:
        complete: refuse a checkpoint of another number of classes.

    Returns:
        The design, with normal paddings where those were asked for or the weights need them; and the network.
    """
    if paddings is not None and paddings not in get_args(Paddings):
        raise UserError(f"unknown paddings {paddings!r}{closest(str(paddings), get_args(Paddings))}")
    state = None if pretrained is None else _read(pretrained)
    where = str(pretrained)
    if isinstance(design, Architecture):
        if paddings is None:
            paddings = "normal" if state is not None and is_timm(state, where=where) else "published"
        if paddings == "normal":
            design = replace(design, blocks=tuple(replace(block, padding=None) for block in design.blocks))
    network = build_design(
        design, num_classes, in_channels, dropout=dropout, stochastic_depth=stochastic_depth, seed=seed
    )
    if state is not None:
        if isinstance(network, Network):
            note = read_published(network, state, where=where)
        else:
            note = _read_by_name(network, state, where)
        if note is not None:
            require(not complete, f"{note}, but all weights are needed here")
            logger.warning(note)
    return design, network


def _read(pretrained: str | Path) -> dict[str, Any]:
    """What a checkpoint holds; of a model of `nas train` the weights alone."""
    path = Path(pretrained)
    stored = load_checkpoint(path / MODEL if path.is_dir() else path)
    return {"state_dict": stored["state"]} if {"architecture", "state"} <= set(stored) else stored


def _read_by_name(network: nn.Module, state: Mapping[str, Any], where: str) -> str | None:
    """Load weights that have the network's own names; a classifier of another number of classes is left fresh.

    Returns:
        A line to show when it was.

    Raises:
        UserError: a tensor missing, left over, not finite or of another shape.
    """
    given = state.get("state_dict", state)
    require(isinstance(given, Mapping), f"{where}: expected tensors by name")
    own = network.state_dict()
    given = {str(name).removeprefix("module."): value for name, value in given.items()}
    classifier = [name for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    merged, fresh = {}, []
    for name, tensor in own.items():
        value = given.pop(name, None)
        require(isinstance(value, Tensor), f"{where} is of another network: {name} is missing")
        assert isinstance(value, Tensor)
        if name.startswith(f"{classifier}.") and value.shape[1:] == tensor.shape[1:] and len(value) != len(tensor):
            fresh.append(len(value))
            merged[name] = tensor
            continue
        shapes = f"has shape {tuple(value.shape)}, the network needs {tuple(tensor.shape)}"
        require(value.shape == tensor.shape, f"{where} is of another network: {name} {shapes}")
        finite = not value.is_floating_point() or bool(torch.isfinite(value).all())
        require(finite, f"{where}: {name} holds values that are not finite")
        merged[name] = value
    left = next((name for name in given if not name.startswith(("aux", "AuxLogits"))), None)  # heads for training only
    require(left is None, f"{where} is of another network: {left} is left over")
    network.load_state_dict(merged)
    if not fresh:
        return None
    return f"{where} is of {fresh[0]} classes, not {len(own[f'{classifier}.weight'])}: the classifier is left fresh"
