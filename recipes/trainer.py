"""The one training loop: retraining, candidate evaluation and tree fine-tuning all pass through `fit`.

Inside a process group (`recipes.distributed`) the processes share each batch, average their gradients and stay equal:
weights after every step, running statistics after every epoch. Process 0 alone writes.

Randomness: the order and augmentation of an epoch come from the stream "batches" of (seed, epoch), mixup from "mixup"
of (seed, epoch, step), and what layers draw themselves (dropout, stochastic depth) from torch's generator, set for each
step by `_seeded`. Nothing depends on what was drawn before, so a resumed run repeats an uninterrupted one bit for bit
(same machine, versions, number of threads and of processes). Several processes have streams of their own for mixup and
layers; the images of a batch are the same ones for any number.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from recipes.checkpoint import load_checkpoint, save_checkpoint
from recipes.distributed import (
    Ranks,
    SharedError,
    average_buffers,
    from_main,
    joined,
    mean_over_ranks,
    share_gradients,
    shared_errors,
)
from recipes.evaluation import Evaluation, evaluate, evaluation_mode
from recipes.interruption import Interruption
from recipes.optim import build_ema, build_optimizer, set_lr
from recipes.recipe import Recipe
from recipes.regularisation import CrossEntropy, draw_mixup, mixup
from recipes.run_folder import RunFolder
from recipes.schedules import lr_factor
from recipes.sources import Source
from search_spaces.errors import Stopped, UserError, first_line
from search_spaces.seeding import numpy_rng, stream_seed
from search_spaces.serialisation import require

logger = logging.getLogger(__name__)

SCHEMA = 1  # of the checkpoint


class Loss(Protocol):
    """What is minimised: the model itself is passed, so that a loss may ask it, or a teacher, for more than logits."""

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, progress: float, /) -> Tensor:
        """Scalar loss of a batch.

        Args:
            model: in training mode.
            images: `(b, c, r, r)` float32.
            targets: `(b,)` int64 labels; with mixup `(b, k)` float32, rows sum to 1.
            progress: of the whole run, in [0, 1).
        """
        ...


@dataclass(kw_only=True)
class TrainState:
    """What callbacks see. They may set `stop`: training then ends with the present epoch."""

    model: nn.Module
    recipe: Recipe
    steps: int  # an epoch
    epoch: int = 0  # counted from 0
    step: int = 0  # within the epoch, counted from 0
    lr: float = 0.0
    loss: float = math.nan  # of the last step
    row: dict[str, float] = field(default_factory=dict)  # of the last finished epoch, as in metrics.csv
    stop: bool = False


class Callback(Protocol):
    """Called during training; subclass it and override what is needed."""

    def on_step_end(self, state: TrainState) -> None:
        """After every optimizer step."""

    def on_epoch_end(self, state: TrainState) -> None:
        """After every epoch, before its checkpoint is written."""


@runtime_checkable
class Stateful(Protocol):
    """A callback whose state belongs to the run: it is kept in the checkpoint, and set before a resumed run's first step."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Inverse of `state_dict`; tensors come on the CPU. A ValueError says what does not fit."""
        ...


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What `fit` returns."""

    history: tuple[dict[str, float], ...]  # one row an epoch, as in metrics.csv
    evaluation: Evaluation | None  # on the test source, after the last epoch
    model: nn.Module  # the model given, trained, in evaluation mode; averaged weights if the recipe has ema
    stopped_epoch: int  # number of epochs trained


def fit(
    model: nn.Module,
    train: Source,
    test: Source | None,
    recipe: Recipe,
    *,
    resolution: int,
    seed: int,
    run: RunFolder | None = None,
    loss: Loss | None = None,
    callbacks: Sequence[Callback] = (),
    device: torch.device | str = "cpu",
    resume: bool = False,
) -> FitResult:
    """Train `model` in place by the recipe.

    Args:
        model: images `(b, c, r, r)` to logits `(b, k)`. It is moved to `device` in channels_last. Dropout and
            stochastic depth are the model's own: build it with the recipe's.
        train: training images, shuffled each epoch; the last incomplete batch is left out.
        test: evaluated after every epoch, if given.
        recipe: how to train.
        resolution: r, side of the images in pixels.
        seed: of all randomness in training (not of the initial weights), >= 0.
        run: folder that gets `recipe.json`, a row of `metrics.csv` and `checkpoint.pt` an epoch; of process 0 only.
        loss: replaces the cross entropy, and with it the recipe's label smoothing.
        callbacks: called in order; of several processes the first decides whether to stop. Those that are `Stateful` are
            kept in the checkpoint; of several processes each needs the first one's, in order, or the first few of them.
        device: where to train.
        resume: continue from the run's checkpoint where there is one.

    Several processes need the same arguments in each, but for `run`, and a device of their own.

    Returns:
        History, final evaluation and the model.

    Raises:
        UserError: input that does not fit together, a loss that is not finite, a checkpoint of another run.
        Stopped: a SIGTERM came; with a run, the epochs before are saved.
    """
    device, place = checked_device(device), joined()
    require(seed >= 0, f"seed must be >= 0, got {seed}")
    images_a_step = recipe.batch_size * place.nodes
    needed, some = 2 * place.world, min(len(train), images_a_step)  # a batch norm needs two in each process
    require(some >= needed, f"training needs at least {needed} images a step, got {some}")
    if resume and run is None and place.main:
        raise UserError("resume needs a run folder")
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, _ = next(_epoch_batches(train, recipe, resolution, seed, 0, place))
    classes = _count_outputs(model, images[:1].to(device), train.labels)
    training = _Training(
        model=model, recipe=recipe, seed=int(seed), resolution=int(resolution), device=device, classes=classes,
        loss=loss or CrossEntropy(label_smoothing=recipe.label_smoothing), callbacks=callbacks,
        steps=max(1, len(train) // images_a_step), place=place,
    )  # fmt: skip
    training.attach(run, resume=resume)
    evaluation = None
    with training.interruption:
        for epoch in range(training.epochs_done, recipe.last_epoch):
            if training.state.stop:
                break
            evaluation = training.epoch(epoch, train, test, run)
    if training.ema is not None:
        model.load_state_dict(training.ema.module.state_dict())
    if evaluation is None and test is not None:  # resumed after its last epoch
        evaluation = evaluate(model, test, resolution=resolution, device=device)
    return FitResult(
        history=tuple(training.history), evaluation=evaluation, model=model.eval(), stopped_epoch=training.epochs_done
    )


class _Training:
    """What changes during a run: the content of a checkpoint, and the steps that change it."""

    def __init__(
        self, *, model: nn.Module, recipe: Recipe, seed: int, resolution: int, device: torch.device, classes: int,
        loss: Loss, callbacks: Sequence[Callback], steps: int, place: Ranks,
    ) -> None:  # fmt: skip
        self.model, self.recipe, self.seed, self.resolution = model, recipe, seed, resolution
        self.device, self.classes, self.loss, self.callbacks, self.place = device, classes, loss, callbacks, place
        self.amp = recipe.amp and device.type == "cuda"
        if recipe.sync_batch_norm and place.world > 1 and device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # torch: not on CPUs
        self.optimizer = build_optimizer(model, recipe)
        self.ema = build_ema(model, recipe.ema_decay) if recipe.ema else None
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.amp)
        self.state = TrainState(model=model, recipe=recipe, steps=steps)
        self.history: list[dict[str, float]] = []
        self.parallel = share_gradients(model, place)
        self.interruption, self.stopping = Interruption(), False

    @property
    def stateful(self) -> list[Stateful]:
        return [callback for callback in self.callbacks if isinstance(callback, Stateful)]

    @property
    def epochs_done(self) -> int:
        return len(self.history)

    def attach(self, run: RunFolder | None, *, resume: bool) -> None:
        """Restore the run's checkpoint where there is one, and bring its other files to the same epoch."""
        stored = None
        if run is not None and run.checkpoint.exists():
            require(resume, f"{run.path} already holds a checkpoint; resume it or choose another folder")
            stored = load_checkpoint(run.checkpoint)
        stored = from_main(stored, self.place)
        if stored is not None:
            with shared_errors():
                self.restore(stored, "the checkpoint" if run is None else str(run.checkpoint))
        if run is not None:
            if stored is not None:
                logger.info("resuming %s after epoch %d", run.path, self.epochs_done)
            run.truncate_metrics(self.epochs_done)
            self.recipe.save(run.recipe)

    def epoch(self, epoch: int, train: Source, test: Source | None, run: RunFolder | None) -> Evaluation | None:
        """One epoch: steps, evaluation, metrics, callbacks, checkpoint, in this order."""
        started, state = time.process_time(), self.state
        self.model.train()
        state.epoch, losses = epoch, 0.0
        batches = _epoch_batches(train, self.recipe, self.resolution, self.seed, epoch, self.place)
        of_all = min(self.recipe.batch_size * self.place.nodes, len(train))  # images a step
        for state.step, (images, labels) in enumerate(batches):
            self.step(images, labels, share=len(labels) * self.place.world / of_all)
            losses += state.loss
            for callback in self.callbacks:
                callback.on_step_end(state)
            if self.stopping if self.place.world > 1 else self.interruption.asked:
                raise Stopped(f"stopped in epoch {epoch + 1} of {self.recipe.last_epoch}")
        row: dict[str, float] = {"epoch": epoch, "lr": state.lr, "train_loss": losses / state.steps}
        evaluation = None
        for averaged in (self.model, self.ema):
            if averaged is not None:
                average_buffers(averaged, self.place)
        if test is not None:
            reported = self.model if self.ema is None else self.ema.module
            evaluation = evaluate(reported, test, resolution=self.resolution, device=self.device)
            row |= {"test_loss": evaluation.loss, "test_accuracy": evaluation.accuracy}
        self.require_finite_weights()
        state.row = row | {"seconds": round(time.process_time() - started, 3)}
        self.history.append(state.row)
        if run is not None:
            run.append_metrics(state.row)
        for callback in self.callbacks:
            callback.on_epoch_end(state)
        state.stop = from_main(state.stop, self.place)
        if run is not None:
            save_checkpoint(run.checkpoint, self.checkpoint())
        return evaluation

    def step(self, images: Tensor, labels: Tensor, *, share: float) -> None:
        """One optimizer step on images `(b, c, r, r)` and labels `(b,)`; all processes learn whether one was asked to stop.

        Args:
            images: of this process.
            labels: theirs.
            share: of the step's images, relative to as many for each process: their mean weighs all processes alike.
        """
        state, recipe = self.state, self.recipe
        progress = (state.epoch + state.step / state.steps) / recipe.epochs
        state.lr = recipe.lr * self.place.nodes * lr_factor(recipe, progress)
        set_lr(self.optimizer, state.lr)
        images, targets = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        if recipe.mixup > 0:
            rng = numpy_rng(self.seed, "mixup", state.epoch, state.step, *self.place.key())
            weight, partners = draw_mixup(rng, len(labels), recipe.mixup)
            images, targets = mixup(images, targets, self.classes, weight, torch.as_tensor(partners).to(self.device))
        with _seeded(stream_seed(self.seed, "torch", state.epoch, state.step, *self.place.key()), self.device):
            with torch.autocast(self.device.type, enabled=self.amp):
                loss = share * self.loss(self.parallel, images, targets, progress)
            told = torch.stack([loss.detach(), loss.new_tensor(float(self.interruption.asked))])
            state.loss, asked = mean_over_ranks(told, self.place).tolist()  # not finite on one is so on all
            self.stopping = asked > 0
            if not math.isfinite(state.loss):
                self.diverged(f"the loss is {state.loss}")
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(self.scaler.scale(loss))
        if recipe.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def require_finite_weights(self) -> None:
        """The last step of an epoch has no next loss to show that it diverged; a checkpoint must not keep that."""
        for name, tensor in self.model.state_dict().items():  # running statistics too
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                self.diverged(f"weights are not finite ({name})")

    def diverged(self, what: str) -> NoReturn:
        state = self.state
        raise SharedError(
            f"{what} at epoch {state.epoch}, step {state.step}, learning rate {state.lr:.3g}; "
            "try a lower lr, a longer warmup_epochs or clip_grad_norm"
        )

    def identity(self) -> dict[str, Any]:
        """What must agree between a checkpoint and the run that resumes from it."""
        return {
            "schema": SCHEMA, "recipe": self.recipe.to_json(), "seed": self.seed, "resolution": self.resolution,
            "machines": self.place.nodes,
        }  # fmt: skip

    def checkpoint(self) -> dict[str, Any]:
        """Everything that resuming needs: plain values and tensors."""
        return self.identity() | {
            "history": self.history,
            "stop": self.state.stop,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": self.scaler.state_dict(),
            "callbacks": [callback.state_dict() for callback in self.stateful],
        }

    def restore(self, stored: dict[str, Any], where: str) -> None:
        """Inverse of `checkpoint`.

        Raises:
            UserError: it belongs to another run or network.
        """
        for key, value in self.identity().items():
            plain = stored.get(key)
            if key == "recipe" and plain is not None:
                plain = Recipe.from_json(plain, f"{where}: recipe").to_json()
            require(plain == value, f"{where} is of another run: its {key} is {plain!r}, not {value!r}")
        try:
            self.model.load_state_dict(stored["model"])
            own = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(stored["optimizer"])
            for group, settings in zip(self.optimizer.param_groups, own, strict=True):
                group.update(settings)  # of the recipe, which is the same one
            self.scaler.load_state_dict(stored["scaler"])
            if self.ema is not None:
                self.ema.load_state_dict(stored["ema"])
            self.history = [dict(row) for row in stored["history"]]
            self.state.stop = bool(stored["stop"])
            require_optimizer_state(self.optimizer, started=bool(self.history))
            self._restore_callbacks(stored.get("callbacks", []))  # absent before they were kept
        except KeyError as error:
            raise UserError(f"{where} is damaged: key {error} is missing") from error
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"{where} does not fit this network: {first_line(error)}") from error

    def _restore_callbacks(self, kept: list[dict[str, Any]]) -> None:
        own = self.stateful
        fits = len(own) == len(kept) if self.place.main else len(own) <= len(kept)
        require(fits, f"it holds the state of {len(kept)} callbacks, here are {len(own)}")
        for callback, state in zip(own, kept, strict=False):
            callback.load_state_dict(state)


def require_optimizer_state(optimizer: torch.optim.Optimizer, *, started: bool) -> None:
    """Refuse what the next step would fail on, or silently start anew from.

    Args:
        optimizer: SGD or RMSProp, its state just loaded.
        started: whether it has made steps.

    Raises:
        UserError: a buffer is missing or has another shape than its parameter.
    """
    needed = 0
    for group in optimizer.param_groups:
        names = ["momentum_buffer"] if group["momentum"] else []
        names += ["step", "square_avg"] if isinstance(optimizer, torch.optim.RMSprop) else []
        needed += len(names)
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if state is None:
                continue  # it never had a gradient
            for name in names:
                value = state.get(name)
                require(isinstance(value, Tensor), f"the optimizer's {name} is missing for a parameter")
                shape = () if name == "step" else tuple(parameter.shape)
                require(
                    tuple(value.shape) == shape,
                    f"the optimizer's {name} has shape {tuple(value.shape)}, its parameter needs {shape}",
                )
    require(bool(optimizer.state) or not needed or not started, "the optimizer's state is missing")


@contextmanager
def _seeded(number: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators set to a number, and left as found: layers draw from them and take no other."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(number)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield


def checked_device(device: torch.device | str) -> torch.device:
    """The device, if there is one.

    Raises:
        UserError: an unknown name, or CUDA where torch sees none, or not so many.
    """
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"unknown device {device!r}; for example cpu or cuda") from error
    require(
        device.type != "cuda" or torch.cuda.is_available(), f"device {device}: torch sees no CUDA device here; use cpu"
    )
    if device.type == "cuda" and device.index is not None:
        there = torch.cuda.device_count()
        require(device.index < there, f"device {device}: torch sees {there} CUDA devices here, the first is cuda:0")
    return device


def _epoch_batches(
    train: Source, recipe: Recipe, resolution: int, seed: int, epoch: int, place: Ranks
) -> Iterator[tuple[Tensor, Tensor]]:
    batch_size = recipe.batch_size * place.nodes
    return train.batches(
        batch_size, resolution=resolution, rng=numpy_rng(seed, "batches", epoch), augment=recipe.augment,
        auto_augment=recipe.auto_augment, drop_last=len(train) >= batch_size, part=(place.rank, place.world),
    )  # fmt: skip


def _count_outputs(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """k of the model's logits, from one image; shows early that network, images and labels fit together."""
    try:
        with evaluation_mode(model), torch.no_grad():
            logits: Tensor = model(images)
    except RuntimeError as error:
        shape = tuple(images.shape[1:])
        raise UserError(f"the network does not take images of shape {shape}: {first_line(error)}") from error
    require(logits.ndim == 2, f"the network must return logits of shape (batch, classes), got {tuple(logits.shape)}")
    classes, top = logits.shape[1], int(labels.max())
    require(top < classes, f"the network has {classes} outputs, but labels go up to {top}")
    return classes
