"""Loss of soft decision trees for the one training loop."""

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from nas.trees.soft.paths import FORMS, Form, balance_penalty, leaf_loss
from nas.trees.soft.tree import SoftTrees
from search_spaces.errors import closest
from search_spaces.serialisation import require


@dataclass(frozen=True, kw_only=True)
class SoftTreeLoss:
    """Loss of soft trees for `recipes.trainer.fit`: `leaf_loss` and lambda times `balance_penalty`; of several the mean.

    Attributes:
        penalty: lambda, strength of the penalty.
        decay: its factor of one level.
        form: see `leaf_loss`.

    Raises:
        UserError: a number out of its range, an unknown form.
    """

    penalty: float = 0.1
    decay: float = 0.5
    form: Form = "expected"

    def __post_init__(self) -> None:
        require(0 <= self.penalty < math.inf, f"penalty must be >= 0, got {self.penalty}")
        require(0 <= self.decay <= 1, f"decay must be in [0, 1], got {self.decay}")
        require(self.form in FORMS, f"unknown form {self.form!r}{closest(str(self.form), FORMS)}")

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, progress: float, /) -> Tensor:
        """See `recipes.trainer.Loss`; targets are labels `(B,)` or distributions `(B, K)`."""
        trees = getattr(model, "module", model)  # under several processes the gradients go through the wrapper
        assert isinstance(trees, SoftTrees), "the loss is of soft decision trees"
        log_paths: Tensor = model(images, paths=True)
        if targets.ndim == 1:
            targets = functional.one_hot(targets, trees.classes).to(log_paths.dtype)
        losses = leaf_loss(log_paths, trees.log_leaves(), targets, self.form).mean(0)
        if self.penalty > 0:
            alpha = trees.balance(log_paths, update=trees.training)
            losses = losses + self.penalty * balance_penalty(alpha, self.decay)
        return _mean_of_own_gradients(losses)


def _mean_of_own_gradients(losses: Tensor) -> Tensor:
    """The mean; its gradient is that of the sum, so that no tree learns more slowly for having others beside it."""
    total = losses.sum()
    return losses.detach().mean() + (total - total.detach())
