"""Distillation against its definition, and in the training loop."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from recipes.distillation import Distillation, distillation_loss


def random_logits(seed: int) -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng(seed).normal(size=(5, 3)), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
def test_distillation_against_a_loop(temperature: float) -> None:
    student, teacher = random_logits(0), random_logits(1)
    expected = 0.0
    for own, taught in zip(student.tolist(), teacher.tolist(), strict=True):
        weights = [math.exp(value / temperature) for value in taught]
        total = sum(math.exp(value / temperature) for value in own)
        for k in range(3):
            log_p = own[k] / temperature - math.log(total)
            expected -= weights[k] / sum(weights) * log_p * temperature**2 / 5
    assert float(distillation_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-12)


def test_a_student_that_agrees_has_no_gradient() -> None:
    student = random_logits(0).requires_grad_()
    distillation_loss(student, student.detach() + 3.0, 2.0).backward()
    assert student.grad is not None and float(student.grad.abs().max()) < 1e-15


@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_is_the_weighted_sum(soft: bool) -> None:
    """0.8 of one and 0.2 of the other (thesis 4.4); labels are smoothed, the teacher's probabilities are not."""
    model, teacher = nn.Linear(4, 3).double(), nn.Linear(4, 3).double().eval()
    images = torch.as_tensor(np.random.default_rng(2).normal(size=(5, 4)))
    labels = torch.tensor([0, 2, 1, 1, 0])
    targets = functional.one_hot(labels, 3).double() if soft else labels
    loss = Distillation(teacher=teacher, weight=0.8, temperature=2.0, label_smoothing=0.1)(model, images, targets, 0.5)
    logits = model(images)
    smoothed = 0.9 * functional.one_hot(labels, 3).double() + 0.1 / 3
    labelled = -(smoothed * functional.log_softmax(logits, 1)).sum(1).mean()
    expected = 0.8 * distillation_loss(logits, teacher(images), 2.0) + 0.2 * labelled
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
