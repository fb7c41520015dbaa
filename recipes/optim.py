"""Optimizer, parameter groups and the moving average of the weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from recipes.recipe import Recipe
from recipes.schedules import ema_decay
from search_spaces.serialisation import require


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: decayed, and not decayed (tensors of at most one axis: norms and biases).

    With `recipe.weight_decay_norm` all of them decay. Empty groups are left out; frozen parameters too.

    Raises:
        UserError: the model has nothing to train.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 or recipe.weight_decay_norm
            groups.setdefault(recipe.weight_decay if decays else 0.0, []).append(parameter)
    require(bool(groups), "the model has no trainable parameter")
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD or RMSProp as the recipe says, at its highest rate. The fused and multi-tensor forms: 2 to 5 times faster."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True)
    return torch.optim.RMSprop(
        groups, lr=recipe.lr, alpha=recipe.rmsprop_alpha, eps=recipe.rmsprop_eps, momentum=recipe.momentum, foreach=True
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def build_ema(model: nn.Module, decay: float) -> AveragedModel:
    """Moving average of parameters and floating buffers; `.update_parameters(model)` after every step.

    The first update copies; the one after t updates uses the decay min(decay, (1 + t) / (10 + t)). Batch-norm
    statistics are averaged like weights; integer and boolean buffers (counters, tables) are copied.
    """

    def average(averaged: Any, current: Any, updates: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1.0 - ema_decay(decay, int(updates)))
        else:
            torch._foreach_copy_(averaged, current)

    with torch.no_grad():
        return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
