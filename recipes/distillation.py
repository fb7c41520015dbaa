"""Learning from a trained network besides the labels (arXiv:1503.02531)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross entropy of the student with the teacher's probabilities, both softened, times temperature squared.

    The square keeps the size of the gradient (arXiv:1503.02531, section 2). FBNetV3 prints no temperature; 1 is ours.

    Args:
        student: logits `(b, k)`.
        teacher: logits `(b, k)`.
        temperature: > 0, logits are divided by it.

    Returns:
        Mean over the batch, a scalar; smallest where both agree, then the teacher's entropy.
    """
    targets = functional.softmax(teacher / temperature, dim=1)
    return functional.cross_entropy(student / temperature, targets) * temperature**2


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Loss of `recipes.trainer.fit`: weight x distillation + (1 - weight) x cross entropy (thesis 4.4: 0.8 and 0.2).

    The teacher sees the images that the student sees, mixed ones included, in evaluation mode.
    """

    teacher: nn.Module  # images (b, c, r, r) to logits (b, k), in evaluation mode
    weight: float
    temperature: float = 1.0
    label_smoothing: float = 0.0  # of the labels, not of the teacher

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, progress: float, /) -> Tensor:
        """See `recipes.trainer.Loss`."""
        with torch.no_grad():
            taught = self.teacher(images)
        logits = model(images)
        labelled = functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        return self.weight * distillation_loss(logits, taught, self.temperature) + (1.0 - self.weight) * labelled
