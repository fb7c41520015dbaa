import csv
import logging
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from recipes.checkpoint import load_checkpoint, save_checkpoint
from recipes.evaluation import Evaluation, evaluate
from recipes.recipe import Recipe
from recipes.run_folder import RunFolder
from recipes.schedules import lr_factor
from recipes.trainer import Callback, TrainState, fit
from search_spaces.errors import Stopped, UserError

PLAIN = Recipe(name="plain", epochs=4, batch_size=16, lr=0.1, schedule="linear")
EVERYTHING = PLAIN.replace(
    mixup=0.5, dropout=0.3, label_smoothing=0.1, ema=True, ema_decay=0.9, augment=True, nesterov=True,
    weight_decay=1e-3, clip_grad_norm=1.0, warmup_epochs=1.0,
)  # fmt: skip


class Memory:
    """A source of random images whose mean brightness tells the class."""

    def __init__(self, n=70, seed=0, images=None, labels=None):
        rng = np.random.default_rng(seed)
        self.y = torch.as_tensor(rng.integers(0, 3, n)) if labels is None else labels
        noise = torch.as_tensor(rng.normal(size=(n, 2, 8, 8)), dtype=torch.float32) if images is None else None
        self.x = images if noise is None else noise + self.y.view(-1, 1, 1, 1)

    def __len__(self):
        return len(self.x)

    @property
    def labels(self):
        return self.y

    def subset(self, indices):
        return Memory(images=self.x[indices], labels=self.y[indices])

    def batches(
        self, batch_size, *, resolution, rng=None, augment=False, auto_augment=False, drop_last=False, part=(0, 1)
    ):
        order = np.arange(len(self)) if rng is None else rng.permutation(len(self))
        for start in range(0, len(self), batch_size):
            picked = order[start : start + batch_size]
            if drop_last and len(picked) < batch_size:
                return
            picked = picked[part[0] :: part[1]]
            images = self.x[picked, :, :resolution, :resolution].to(memory_format=torch.channels_last)
            if augment:
                images = images.roll(int(rng.integers(8)), dims=3)
            yield images, self.y[picked]


class Net(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6))
        self.drop = StochasticDepth(dropout, mode="row")
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.drop(self.branch(x))
        return self.classifier(self.dropout(x.mean((2, 3))))


def new_net(dropout=0.0):
    net = Net(dropout)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        for norm in (net.stem[1], net.branch[1]):
            norm.weight.fill_(1.0)
    return net


def train(recipe=PLAIN, net=None, test=None, **options):
    net = new_net(recipe.dropout) if net is None else net
    options = {"resolution": 8, "seed": 5} | options
    return fit(net, options.pop("source", Memory()), test or Memory(40, seed=1), recipe, **options)


def without_seconds(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def same_weights(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Kill(Callback):
    """Ends training in the middle of an epoch, or between its row of metrics and its checkpoint."""

    def __init__(self, epoch, between):
        self.epoch, self.between = epoch, between

    def on_step_end(self, state):
        if (state.epoch, state.step) == (self.epoch, 1) and not self.between:
            raise KeyboardInterrupt

    def on_epoch_end(self, state):
        if state.epoch == self.epoch:
            raise KeyboardInterrupt


def test_plain_sgd_against_a_loop_by_hand():
    recipe = PLAIN.replace(epochs=2, momentum=0.0, weight_decay=0.01)
    seen = []
    source = Memory()
    original = source.batches

    def recorded(*args, **options):
        for images, labels in original(*args, **options):
            if options.get("rng") is not None:
                seen.append((images, labels))
            yield images, labels

    source.batches = recorded
    result = train(recipe, source=source)
    net = new_net().train()
    del seen[0]  # one batch is looked at before training starts
    assert len(seen) == 8  # 70 images: four whole batches of 16 in each of two epochs
    for index, (images, labels) in enumerate(seen):
        lr = 0.1 * (1 - index / 8)
        net.zero_grad()
        functional.cross_entropy(net(images), labels).backward()
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                decay = 0.01 if name.endswith("weight") and parameter.ndim > 1 else 0.0
                parameter -= lr * (parameter.grad + decay * parameter)
    for (name, ours), expected in zip(result.model.state_dict().items(), net.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5, msg=name)
    assert not torch.equal(seen[0][1], seen[4][1])  # another order in the second epoch
    assert [row["lr"] for row in result.history] == pytest.approx([0.1 * 5 / 8, 0.1 * 1 / 8])


def test_it_learns():
    result = train(PLAIN.replace(epochs=8))
    assert result.evaluation.accuracy > 90
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert not result.model.training


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_resume_is_bit_identical(tmp_path, optimizer):
    recipe = EVERYTHING.replace(optimizer=optimizer, nesterov=optimizer == "sgd", lr=0.01)
    whole = train(recipe)
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path / "run", {}, seed=5) as run:
        train(recipe, run=run, callbacks=[Kill(2, between=optimizer == "rmsprop")])
    with RunFolder(tmp_path / "run", {}, seed=5, resume=True) as run:
        resumed = train(recipe, run=run, resume=True)
        again = train(recipe, run=run, resume=True)  # nothing left to do
    assert without_seconds(resumed.history) == without_seconds(whole.history)
    for other in (resumed, again):
        assert same_weights(whole.model, other.model)
        assert (other.evaluation, other.stopped_epoch) == (whole.evaluation, 4)
    with run.metrics.open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert rows == list(resumed.history)
    assert Recipe.load(run.recipe) == recipe


def test_every_stream_matters_and_the_seed_decides():
    first = train(EVERYTHING)
    torch.manual_seed(99)
    assert same_weights(first.model, train(EVERYTHING).model)
    assert not same_weights(first.model, train(EVERYTHING, seed=6).model)


def test_dropout_changes_from_step_to_step():
    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 3)
            self.masks = []

        def forward(self, x):
            if self.training:
                self.masks.append(functional.dropout(torch.ones(20), 0.5))
            return self.linear(x.mean((2, 3)))

    net = Same()
    train(PLAIN, net=net)
    assert len({tuple(mask.tolist()) for mask in net.masks}) == len(net.masks) == 16


def test_global_state_is_left_alone():
    net = new_net(0.3)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 the user's own
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    train(EVERYTHING, net=net)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


def test_a_killed_process_resumes(tmp_path):
    script = """
import sys
sys.path.insert(0, sys.argv[2])
from test_trainer import EVERYTHING, Callback, RunFolder, torch, train
torch.set_num_threads(int(sys.argv[3]))
class Tell(Callback):
    def on_step_end(self, state):
        print(state.epoch, flush=True)
        if state.epoch == 2:
            sys.stdin.read()
with RunFolder(sys.argv[1], {}, seed=5) as run:
    train(EVERYTHING, run=run, callbacks=[Tell()])
"""
    here = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run"), here, str(torch.get_num_threads())],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.stdout.readline() != "2\n":
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with RunFolder(tmp_path / "run", {}, seed=5, resume=True) as run:
        assert len(load_checkpoint(run.checkpoint)["history"]) == 2
        resumed = train(EVERYTHING, run=run, resume=True)
    assert same_weights(resumed.model, train(EVERYTHING).model)


def test_a_sigterm_ends_the_training_after_the_step_and_it_goes_on(tmp_path):
    steps = []

    class Terminate(Callback):
        def on_step_end(self, state):
            steps.append((state.epoch, state.step))
            if state.epoch == 2 and state.step == 1:
                signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="epoch 3 of 4"), RunFolder(tmp_path / "run", {}, seed=5) as run:
        train(EVERYTHING, run=run, callbacks=[Terminate()])
    assert steps[-1] == (2, 1) and signal.getsignal(signal.SIGTERM) is before
    with RunFolder(tmp_path / "run", {}, seed=5, resume=True) as run:
        resumed = train(EVERYTHING, run=run, resume=True)
    assert same_weights(resumed.model, train(EVERYTHING).model)


def test_ema_is_what_is_reported_and_returned(tmp_path):
    test = Memory(40, seed=1)
    with RunFolder(tmp_path / "run", {}, seed=5) as run:
        result = train(PLAIN.replace(ema=True, ema_decay=0.9), test=test, run=run)
    stored = load_checkpoint(run.checkpoint)
    averaged, raw = new_net(), new_net()
    averaged.load_state_dict({k.removeprefix("module."): v for k, v in stored["ema"].items() if k != "n_averaged"})
    raw.load_state_dict(stored["model"])
    assert same_weights(result.model, averaged)
    assert same_weights(raw, train(PLAIN).model)  # averaging does not touch training
    assert not same_weights(raw, averaged)
    assert result.evaluation == evaluate(averaged, test, resolution=8)
    assert result.history[-1]["test_loss"] == result.evaluation.loss


def test_evaluate_against_a_loop():
    net, source = new_net(0.5), Memory(41, seed=2)
    net.eval()
    net.drop.train()
    ours = evaluate(net, source, resolution=7, batch_size=8)
    assert not net.training and net.drop.training
    net.eval()
    correct, loss = 0, 0.0
    for image, label in zip(source.x, source.y, strict=True):
        logits = net(image[None, :, :7, :7])[0].detach()
        correct += int(logits.argmax() == label)
        loss -= float(logits.log_softmax(0)[label]) / 41
    assert (ours.correct, ours.total) == (correct, 41)
    assert ours.loss == pytest.approx(loss, rel=1e-5)
    share = correct / 41
    assert ours.accuracy == pytest.approx(100 * share)
    assert ours.standard_error == pytest.approx(100 * math.sqrt(share * (1 - share) / 41))
    with pytest.raises(UserError, match="holds no images"):
        evaluate(net, source.subset(np.arange(0)), resolution=8)


def test_clipping_bounds_the_gradient():
    norms = []

    class Norms(Callback):
        def on_step_end(self, state):
            gradients = [parameter.grad.flatten() for parameter in state.model.parameters()]
            norms.append(float(torch.cat(gradients).norm()))

    train(PLAIN, callbacks=[Norms()])
    assert max(norms) > 0.02
    norms.clear()
    train(PLAIN.replace(clip_grad_norm=0.02), callbacks=[Norms()])
    assert max(norms) <= 0.02 * (1 + 1e-5)


def test_early_stop_keeps_the_horizon():
    whole, stopped = train(PLAIN), train(PLAIN.replace(early_stop_epoch=2))
    assert stopped.stopped_epoch == 2
    assert without_seconds(stopped.history) == without_seconds(whole.history)[:2]
    assert stopped.history[-1]["lr"] == pytest.approx(0.1 * lr_factor(PLAIN, (1 + 3 / 4) / 4))


def test_callbacks_see_and_stop_training(tmp_path):
    seen = []

    class Stop(Callback):
        def on_step_end(self, state):
            seen.append((state.epoch, state.step, state.steps))

        def on_epoch_end(self, state):
            assert isinstance(state, TrainState)
            state.stop = state.row["epoch"] == 1

    with RunFolder(tmp_path / "run", {}, seed=5) as run:
        result = train(run=run, callbacks=[Stop()])
        assert seen == [(epoch, step, 4) for epoch in range(2) for step in range(4)]
        assert result.stopped_epoch == 2
        assert train(run=run, resume=True).stopped_epoch == 2  # stays stopped


def test_own_loss_gets_model_targets_and_progress():
    calls = []

    def loss(model, images, targets, progress):
        calls.append((targets, progress))
        return functional.cross_entropy(model(images), targets)

    train(PLAIN.replace(mixup=1.0), loss=loss)
    assert calls[0][0].dtype == torch.float32 and calls[0][0].shape == (16, 3)
    assert [progress for _, progress in calls] == pytest.approx([index / 16 for index in range(16)])
    weights = {float(targets[(targets > 0) & (targets < 1)].min()) for targets, _ in calls}
    assert len(weights) == 16  # every step of every epoch draws its own
    calls.clear()
    train(PLAIN, loss=loss)
    assert calls[0][0].dtype == torch.int64 and calls[0][0].shape == (16,)


def test_divergence_keeps_the_last_good_checkpoint(tmp_path):
    def loss(model, images, targets, progress):
        return functional.cross_entropy(model(images), targets) * (math.nan if progress >= 9 / 16 else 1.0)

    def bad_gradient(model, images, targets, progress):  # finite, but sends infinite gradients in the last step
        logits = model(images)
        extra = (logits.sum() * 0).sqrt() if progress >= 7 / 16 else 0.0
        return functional.cross_entropy(logits, targets) + extra

    in_loss = r"the loss is nan at epoch 2, step 1, learning rate 0\.0438; try a lower lr"
    in_weights = r"weights are not finite \(stem.0.weight\) at epoch 1, step 3"
    for index, (own, match) in enumerate([(loss, in_loss), (bad_gradient, in_weights)]):
        with pytest.raises(UserError, match=match), RunFolder(tmp_path / str(index), {}, seed=5) as run:
            train(PLAIN, run=run, loss=own)
        stored = load_checkpoint(run.checkpoint)
        assert len(stored["history"]) == (2, 1)[index]
        assert all(bool(value.isfinite().all()) for value in stored["model"].values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"source": Memory(1)}, "training needs at least 2 images a step, got 1"),
        ({"resume": True}, "resume needs a run folder"),
        ({"device": "gpu0"}, "unknown device 'gpu0'"),
        ({"net": nn.Conv2d(1, 3, 1)}, "the network does not take images of shape (2, 8, 8)"),
        ({"net": nn.Conv2d(2, 3, 1)}, "must return logits of shape (batch, classes), got (1, 3, 8, 8)"),
        ({"source": Memory(labels=torch.full((70,), 3))}, "the network has 3 outputs, but labels go up to 3"),
    ],
)
def test_input_that_does_not_fit(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        train(**options)


def test_bad_input_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="does not take"), RunFolder(tmp_path / "run", {}, seed=5) as run:
        train(net=nn.Conv2d(1, 3, 1), run=run)
    assert list(tmp_path.iterdir()) == []


def test_resume_refuses_another_run(tmp_path, caplog):
    with RunFolder(tmp_path / "run", {}, seed=5) as run:
        train(PLAIN.replace(early_stop_epoch=1), run=run)
        with pytest.raises(UserError, match="already holds a checkpoint"):
            train(run=run)
        for options, message in [
            ({"seed": 6}, "is of another run: its seed is 5, not 6"),
            ({"resolution": 6}, "its resolution is 8, not 6"),
            ({"recipe": PLAIN}, "is of another run: its recipe is "),
            ({"net": nn.Sequential(nn.Flatten(), nn.Linear(128, 3))}, "does not fit this network: Error"),
        ]:
            options = {"recipe": PLAIN.replace(early_stop_epoch=1)} | options
            with pytest.raises(UserError, match=message):
                train(run=run, resume=True, **options)
        run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:500])
        with pytest.raises(UserError, match=r"checkpoint\.pt is damaged"):
            train(PLAIN.replace(early_stop_epoch=1), run=run, resume=True)


def missing_buffer(stored):
    del next(iter(stored["optimizer"]["state"].values()))["momentum_buffer"]


def missing_square_average(stored):
    del next(iter(stored["optimizer"]["state"].values()))["square_avg"]


def other_shape(stored):
    next(iter(stored["optimizer"]["state"].values()))["momentum_buffer"] = torch.ones(7)


def no_state(stored):
    stored["optimizer"]["state"] = {}


def no_groups(stored):
    stored["optimizer"]["param_groups"] = []


def no_history(stored):
    stored["history"] = [3]


@pytest.mark.parametrize(
    ("optimizer", "damage", "words"),
    [
        ("sgd", missing_buffer, "the optimizer's momentum_buffer is missing"),
        ("rmsprop", missing_square_average, "the optimizer's square_avg is missing"),
        ("sgd", other_shape, r"momentum_buffer has shape \(7,\), its parameter needs \(6, 2, 3, 3\)"),
        ("sgd", no_state, "the optimizer's state is missing"),
        ("sgd", no_groups, "does not fit this network"),
        ("sgd", no_history, "does not fit this network"),
    ],
)
def test_damaged_optimizer_state_is_refused(tmp_path, optimizer, damage, words):
    recipe = PLAIN.replace(early_stop_epoch=1, optimizer=optimizer, momentum=0.9)
    with RunFolder(tmp_path / "run", {}, seed=5) as run:
        train(recipe, run=run)
        stored = load_checkpoint(run.checkpoint)
        damage(stored)
        save_checkpoint(run.checkpoint, stored)
        with pytest.raises(UserError, match=words):
            train(recipe, run=run, resume=True)


def test_running_statistics_that_are_not_finite_are_divergence(tmp_path):
    class Spoil(Callback):
        def on_step_end(self, state):
            state.model.stem[1].running_var[0] = math.nan

    with pytest.raises(UserError, match=r"stem\.1\.running_var"):
        train(callbacks=[Spoil()])


def test_fewer_images_than_a_batch_and_no_test_source():
    result = fit(new_net(), Memory(10), None, PLAIN, resolution=8, seed=0)
    assert result.evaluation is None
    assert set(result.history[0]) == {"epoch", "lr", "train_loss", "seconds"}
    assert len(result.history) == 4


def test_logging_is_quiet(caplog, capsys):
    with caplog.at_level(logging.WARNING):
        started = time.process_time()
        result = train(PLAIN)
    assert caplog.text == "" and capsys.readouterr() == ("", "")
    assert 0 < sum(row["seconds"] for row in result.history) <= time.process_time() - started + 0.01


def test_evaluation_numbers():
    evaluation = Evaluation(correct=90, total=100, loss=0.5)
    assert (evaluation.accuracy, evaluation.standard_error) == (90.0, pytest.approx(3.0))
