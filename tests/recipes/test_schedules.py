import math

import numpy as np
import pytest
import torch
from torch import nn

from recipes.optim import build_ema, build_optimizer, parameter_groups
from recipes.recipe import Recipe
from recipes.regularisation import CrossEntropy, draw_mixup, mixup
from recipes.schedules import ema_decay, lr_factor
from search_spaces.errors import UserError

PLAIN = Recipe(name="plain", epochs=20, batch_size=8, lr=0.1)


def small_net():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net


@pytest.mark.parametrize(
    ("change", "points"),
    [
        ({"schedule": "constant"}, {0: 1, 0.3: 1, 1: 1}),
        ({"schedule": "linear"}, {0: 1, 0.25: 0.75, 1: 0}),
        ({"schedule": "cosine"}, {0: 1, 0.25: 0.853553390593, 0.5: 0.5, 1: 0}),
        (
            {"schedule": "step", "milestones": (0.5, 0.75), "step_factor": 0.2},
            {0.49: 1, 0.5: 0.2, 0.74: 0.2, 0.75: 0.04, 1: 0.04},
        ),
        # one epoch of 150 multiplies by 0.963; a run of 20 epochs ends at the same 0.963 ** 150 = 0.003499
        ({"schedule": "exponential"}, {0: 1, 1 / 150: 0.963, 2 / 150: 0.927369, 1: 0.0034990}),
        # warm-up over 4 of 20 epochs, from 0.01: half-way 0.505; then 1 down to 0 over the remaining 0.8
        ({"schedule": "linear", "warmup_epochs": 4.0}, {0: 0.01, 0.1: 0.505, 0.2: 1, 0.6: 0.5, 1: 0}),
        ({"schedule": "cosine", "warmup_epochs": 4.0}, {0: 0.01, 0.2: 1, 0.6: 0.5, 1: 0}),
        (
            {"schedule": "exponential", "decay_per_epoch": 0.5, "decay_epochs": 10.0, "warmup_epochs": 4.0},
            {0.1: 0.505 * 0.5, 0.2: 0.25, 0.3: 0.125},
        ),
    ],
)
def test_lr_factor(change, points):
    recipe = PLAIN.replace(**change)
    for progress, expected in points.items():
        assert lr_factor(recipe, progress) == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_ema_decay():
    assert [ema_decay(0.5, t) for t in (0, 2, 8, 100)] == [0.1, 0.25, 0.5, 0.5]


def test_norms_and_biases_do_not_decay():
    net = small_net()
    net[3].bias.requires_grad_(False)
    recipe = PLAIN.replace(weight_decay=0.5)
    groups = {group["weight_decay"]: group["params"] for group in parameter_groups(net, recipe)}
    assert [p.shape for p in groups[0.5]] == [net[0].weight.shape, net[3].weight.shape]
    assert [id(p) for p in groups[0.0]] == [id(net[1].weight), id(net[1].bias)]
    (everything,) = parameter_groups(net, recipe.replace(weight_decay_norm=True))
    assert len(everything["params"]) == 4
    with pytest.raises(UserError, match="no trainable parameter"):
        parameter_groups(nn.ReLU(), recipe)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_against_hand(nesterov):
    weight = nn.Parameter(torch.tensor([[2.0]]))
    net = nn.Module()
    net.weight = weight
    optimizer = build_optimizer(net, PLAIN.replace(momentum=0.5, nesterov=nesterov, weight_decay=0.25, lr=0.1))
    value, velocity = 2.0, 0.0
    for _ in range(3):
        weight.grad = torch.tensor([[1.0]])
        optimizer.step()
        gradient = 1.0 + 0.25 * value
        velocity = 0.5 * velocity + gradient
        value -= 0.1 * (gradient + 0.5 * velocity if nesterov else velocity)
        assert weight.item() == pytest.approx(value, rel=1e-6)


def test_rmsprop_against_hand():
    weight = nn.Parameter(torch.tensor([[2.0]]))
    net = nn.Module()
    net.weight = weight
    recipe = PLAIN.replace(optimizer="rmsprop", rmsprop_alpha=0.8, rmsprop_eps=0.1, momentum=0.5, weight_decay=0.25)
    optimizer = build_optimizer(net, recipe)
    value, velocity, square = 2.0, 0.0, 0.0
    for _ in range(3):
        weight.grad = torch.tensor([[1.0]])
        optimizer.step()
        gradient = 1.0 + 0.25 * value
        square = 0.8 * square + 0.2 * gradient**2
        velocity = 0.5 * velocity + gradient / (math.sqrt(square) + 0.1)
        value -= 0.1 * velocity
        assert weight.item() == pytest.approx(value, rel=1e-6)


def test_ema_averages_statistics_and_copies_counters():
    net = small_net()
    average = build_ema(net, 0.2)
    expected = {}
    generator = torch.Generator().manual_seed(1)
    for t in range(4):
        net(torch.randn(5, 1, 4, 4, generator=generator))  # moves the batch-norm statistics
        with torch.no_grad():
            net[0].weight += 1
        average.update_parameters(net)
        decay = 0.0 if t == 0 else min(0.2, (1 + t) / (10 + t))
        for name, value in net.state_dict().items():
            before = expected.get(name, value.clone())
            expected[name] = decay * before + (1 - decay) * value if value.is_floating_point() else value.clone()
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert average.module[1].num_batches_tracked.item() == 4


def test_mixup_and_smoothing_against_brute_force():
    rng = np.random.default_rng(0)
    images = torch.as_tensor(rng.normal(size=(5, 2, 3, 3)), dtype=torch.float32).to(memory_format=torch.channels_last)
    labels = torch.tensor([0, 3, 1, 1, 2])
    logits = torch.as_tensor(rng.normal(size=(5, 4)), dtype=torch.float64)
    weight, partners = draw_mixup(rng, 5, 0.7)
    mixed, targets = mixup(images, labels, 4, weight, torch.as_tensor(partners))
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    smoothing, loss = 0.1, 0.0
    for i in range(5):
        j = int(partners[i])
        torch.testing.assert_close(mixed[i], weight * images[i] + (1 - weight) * images[j])
        log_total = math.log(sum(math.exp(value) for value in logits[i].tolist()))
        for k in range(4):
            target = weight * (labels[i] == k).item() + (1 - weight) * (labels[j] == k).item()
            assert targets[i, k].item() == pytest.approx(target, abs=1e-6)
            loss -= ((1 - smoothing) * target + smoothing / 4) * (logits[i, k].item() - log_total) / 5
    ours = CrossEntropy(label_smoothing=smoothing)(lambda _: logits, mixed, targets.double(), 0.0)
    assert ours.item() == pytest.approx(loss, rel=1e-6)


def test_mixup_weight_follows_beta():
    rng = np.random.default_rng(3)
    draws = np.array([draw_mixup(rng, 2, 0.5)[0] for _ in range(4000)])
    variance = 1 / (4 * (2 * 0.5 + 1))  # of Beta(m, m)
    fourth = np.mean((draws - 0.5) ** 4)
    assert abs(draws.mean() - 0.5) < 4 * math.sqrt(variance / 4000)
    assert abs(draws.var() - variance) < 4 * math.sqrt((fourth - variance**2) / 4000)
