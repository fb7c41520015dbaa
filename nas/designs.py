"""What can be trained, exported and measured: a network of ours as data, LeNet-5, or one of torchvision's by name."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.lenet import LeNet5, build_lenet5, is_lenet5
from search_spaces.architecture import Architecture
from search_spaces.cost import Cost, check_image_and_classes, cost
from search_spaces.errors import UserError, closest, first_line
from search_spaces.network import build
from search_spaces.serialisation import require

TORCHVISION = "torchvision:"
TORCHVISION_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class TorchvisionModel:
    """A classifier of torchvision; `model` is its name there.

    Raises:
        UserError: torchvision has no classifier of that name.
    """

    model: str

    def __post_init__(self) -> None:
        known = torchvision_names()
        require(self.model in known, f"torchvision has no classifier {self.model!r}{closest(self.model, known)}")

    @property
    def name(self) -> str:
        """As written on the command line."""
        return f"{TORCHVISION}{self.model}"

    @property
    def resolution(self) -> int:
        """Side of the image in pixels where none is given: ImageNet's usual one."""
        return 299 if self.model == "inception_v3" else 224


Design = Architecture | TorchvisionModel | LeNet5


def torchvision_names() -> list[str]:
    """Names of torchvision's image classifiers."""
    from torchvision import models  # 2 s to import

    return list(models.list_models(module=models))


def build_design(
    design: Design,
    num_classes: int,
    in_channels: int = 3,
    *,
    dropout: float | None = None,
    stochastic_depth: float | None = None,
    seed: int = 0,
) -> nn.Module:
    """A fresh network.

    torchvision's are taken as they are (thesis 4.6); dropout goes to the dropout layers that they have, or before the
    classifier; stochastic depth to the layers that they have, rising linearly with depth, or to the residual branches of
    ResNets. Where neither exists (VGG has no residuals) it does nothing. Names of weights stay torchvision's.

    Args:
        design: what to build.
        num_classes: outputs, >= 1.
        in_channels: channels of the image, >= 1; torchvision's classifiers take 3.
        dropout: probability before the classifier, in [0, 1); None for the design's own (ours have none).
        stochastic_depth: drop probability of the deepest residual branch, in [0, 1); None for the design's own.
        seed: of the weights; the global random state is left alone.

    Raises:
        UserError: a number out of its range.
    """
    if isinstance(design, Architecture):
        return build(
            design,
            num_classes,
            in_channels,
            dropout=dropout or 0.0,
            stochastic_depth=stochastic_depth or 0.0,
            seed=seed,
        )
    check_image_and_classes(num_classes, in_channels)
    for name, value in (("dropout", dropout), ("stochastic_depth", stochastic_depth)):
        require(value is None or 0 <= value < 1, f"{name} must be in [0, 1), got {value}")
    network: nn.Module
    if isinstance(design, LeNet5):
        network = build_lenet5(design, num_classes, in_channels, seed)
    else:
        require(
            in_channels == TORCHVISION_CHANNELS,
            f"{design.name} takes images of {TORCHVISION_CHANNELS} channels, the data has {in_channels}",
        )
        network = _build_torchvision(design.model, num_classes, seed)
    if dropout is not None:
        _set_dropout(network, dropout)
    if stochastic_depth is not None:
        _set_stochastic_depth(network, stochastic_depth)
    return network


def design_cost(design: Design, *, num_classes: int, in_channels: int = 3, resolution: int | None = None) -> Cost:
    """FLOPs and parameters: of an Architecture by the formulas, of others as fvcore counts the module.

    Raises:
        UserError: a number out of its range, or images too small for the network.
    """
    side = design.resolution if resolution is None else resolution
    if isinstance(design, Architecture):
        return cost(design, num_classes=num_classes, in_channels=in_channels, resolution=side)
    from search_spaces.counting import fvcore_cost

    network = build_design(design, num_classes, in_channels)
    try:
        return fvcore_cost(network, in_channels=in_channels, resolution=side)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"{design.name} does not take images of {side} pixels: {first_line(error)}") from error


def design_to_json(design: Design) -> Any:
    """Plain values; inverse of `design_from_json`."""
    return design.to_json() if isinstance(design, Architecture) else design.name


def design_from_json(data: Any, where: str) -> Design:
    """Inverse of `design_to_json`.

    Raises:
        UserError: neither an architecture nor a name of LeNet-5 or torchvision.
    """
    if isinstance(data, str) and is_lenet5(data):
        return LeNet5.parse(data)
    if isinstance(data, str):
        require(data.startswith(TORCHVISION), f"{where}: expected an architecture or {TORCHVISION}NAME, got {data!r}")
        return TorchvisionModel(data.removeprefix(TORCHVISION))
    return Architecture.from_json(data, where)


def _build_torchvision(model: str, num_classes: int, seed: int) -> nn.Module:
    import warnings

    from torchvision import models

    options: dict[str, Any] = {"aux_logits": False} if model in ("googlenet", "inception_v3") else {}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that initialising takes long
        torch.default_generator.manual_seed(seed)
        network: nn.Module = models.get_model(model, weights=None, num_classes=num_classes, **options)
    return network


def _set_dropout(network: nn.Module, p: float) -> None:
    """Probability of the dropout layers that are in use; without any, of the input of the last linear layer."""
    own = [module for module in network.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    for module in own:
        module.p = p
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if p > 0 and not own and linear:
        linear[-1].register_forward_pre_hook(partial(_dropped_input, p))


def _set_stochastic_depth(network: nn.Module, p: float) -> None:
    """Drop probabilities of residual branches, from 0 at the first to p at the last."""
    from torchvision.models.resnet import BasicBlock, Bottleneck
    from torchvision.ops import StochasticDepth

    own = [module for module in network.modules() if isinstance(module, StochasticDepth)]
    for index, module in enumerate(own):
        module.p = p * index / max(1, len(own) - 1)
    residual = [module for module in network.modules() if isinstance(module, (BasicBlock, Bottleneck))]
    for index, block in enumerate(residual if p > 0 else []):
        last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
        last.register_forward_hook(partial(_dropped_branch, p * index / max(1, len(residual) - 1)))


def _dropped_input(p: float, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (functional.dropout(inputs[0], p, module.training), *inputs[1:])


def _dropped_branch(p: float, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    from torchvision.ops import stochastic_depth

    dropped: Tensor = stochastic_depth(output, p, "row", module.training)
    return dropped
