"""The search loop of DMaskingNAS (thesis 3.4): in each epoch first the weights learn, then alpha.

All randomness is drawn from streams named by (seed, epoch, step), so a search that was killed and resumed from its last epoch
ends with the same bits as one that was not.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.checkpoint import load_latest_checkpoint, require_room, save_checkpoint
from recipes.distributed import (
    SharedError,
    average_buffers,
    from_main,
    joined,
    mean_over_ranks,
    require_equal,
    share_gradients,
    sum_over_ranks,
)
from recipes.interruption import Interruption
from recipes.run_folder import RunFolder
from recipes.sources import Source, split_indices
from search_spaces.architecture import Architecture
from search_spaces.cost import Cost
from search_spaces.errors import Stopped, UserError, first_line
from search_spaces.limits import format_quantity
from search_spaces.seeding import numpy_rng, stream_seed
from search_spaces.serialisation import from_plain, require, to_plain, write_text_atomic
from search_spaces.space import SearchSpace
from search_spaces.variables import Rows
from supernets.budget import Budget, CostWeight, repaired_row
from supernets.config import SearchConfig
from supernets.gumbel import gumbel_noise, temperature
from supernets.masking import synchronise_norms
from supernets.result import SearchResult, write_result
from supernets.supergraph import Supergraph

SCHEMA = 1  # of the checkpoint
ALPHA = "alpha.csv"
LANDING = 0.87  # share of the upper limit above which an argmax network is inside for good
LANDING_RATE = 2.5  # factor on alpha's rate while the argmax network is outside in the last part of a search


@dataclass(kw_only=True)
class SearchState:
    """What callbacks see."""

    config: SearchConfig
    steps: int  # an epoch: of the weights, and of alpha once it learns
    epoch: int = 0  # counted from 0
    step: int = 0  # within the epoch, counted from 0
    phase: str = "weights"
    loss: float = math.nan  # cross entropy of the last step
    accuracy: float = math.nan  # in percent, of the phase so far
    tau: float = math.nan
    expected: float = math.nan  # expected cost in the budget's quantity
    row: dict[str, float] = field(default_factory=dict)  # of the last finished epoch, as in metrics.csv


class SearchCallback(Protocol):
    """Called during a search; subclass it and override what is needed."""

    def on_step_end(self, state: SearchState) -> None:
        """After every step."""

    def on_epoch_end(self, state: SearchState) -> None:
        """After every epoch, before its checkpoint is written."""


def search(
    space: SearchSpace,
    train: Source,
    budget: Budget,
    config: SearchConfig,
    *,
    num_classes: int,
    in_channels: int,
    counted_classes: int | None = None,
    run: RunFolder | None = None,
    callbacks: Sequence[SearchCallback] = (),
    device: torch.device | str = "cpu",
    resume: bool = False,
    checkpoint_minutes: float = 10.0,
) -> SearchResult:
    """Search a space for the best network inside a budget.

    Args:
        space: what can be chosen.
        train: training images; split into a part for the weights and one for alpha.
        budget: what the derived network must meet.
        config: how to search.
        num_classes: classes of ``train``.
        in_channels: channels of its images.
        counted_classes: of the classifier that the budget counts, where ``train`` has a part of the classes only.
        run: folder that gets `metrics.csv`, `alpha.csv` and `checkpoint.pt` an epoch, and the result at the end; of process 0
            only, where several processes (`recipes.distributed`) search together, each with the same other arguments.
        callbacks: called in order.
        device: where to compute.
        resume: continue from the run's checkpoint where there is one.
        checkpoint_minutes: between checkpoints at most; one is written after every epoch anyway.

    Raises:
        UserError: a budget outside the space, too few images, a loss that is not finite, a checkpoint of another search, or
            a disk too full for checkpoints.
        Stopped: a SIGTERM came; with a run, everything is saved.
    """
    require(checkpoint_minutes > 0, f"checkpoint_minutes must be > 0, got {checkpoint_minutes}")
    searching = Searching(
        space, train, budget, config, num_classes=num_classes, in_channels=in_channels, counted_classes=counted_classes,
        device=torch.device(device),
    )  # fmt: skip
    searching.checkpoint_seconds = 60 * checkpoint_minutes
    searching.attach(run, resume=resume)
    with searching.interruption:
        for epoch in range(searching.epochs_done, config.epochs):
            searching.epoch(epoch, run, callbacks)
    result = searching.result()
    if run is not None:
        write_result(run, result, budget)
    return result


def _gradient(parameter: Tensor) -> Tensor:
    """The gradient that a backward pass has left."""
    assert parameter.grad is not None
    return parameter.grad


@dataclass(kw_only=True, slots=True)
class _Partial:
    """How far an epoch is.

    Attributes:
        phase: ``"weights"`` or ``"alpha"``.
        steps: done in the phase.
        loss: sum of the cross entropy over the images of the phase.
        correct: of these.
        seen: images.
        row: of the phase before, as in metrics.csv.
        seconds: CPU time of the epoch so far.
    """

    phase: str = "weights"
    steps: int = 0
    loss: float = 0.0
    correct: int = 0
    seen: int = 0
    row: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def means(self) -> dict[str, float]:
        """Mean cross entropy and accuracy in percent of the phase; NaN where it had no steps."""
        loss, accuracy = (self.loss / self.seen, 100 * self.correct / self.seen) if self.seen else (math.nan, math.nan)
        return {f"{self.phase}_loss": loss, f"{self.phase}_accuracy": accuracy}


class Searching:
    """What changes during a search, and the steps that change it; `search` drives it."""

    def __init__(
        self,
        space: SearchSpace,
        train: Source,
        budget: Budget,
        config: SearchConfig,
        *,
        num_classes: int,
        in_channels: int,
        counted_classes: int | None = None,
        device: torch.device,
    ) -> None:
        place = joined()
        if config.images is not None and config.images < len(train):
            share = config.images / len(train)
            train = train.subset(split_indices(train.labels, share, numpy_rng(config.seed, "images"))[0])
        first, rest = split_indices(train.labels, config.weights_share, numpy_rng(config.seed, "split"))
        require(min(len(first), len(rest)) >= 2, f"a search needs at least 10 images, got {len(train)}")
        self.weights_source, self.alpha_source = train.subset(first), train.subset(rest)
        self.space, self.budget, self.config, self.device, self.place = space, budget, config, device, place
        needed = 2 * place.world  # a batch norm needs two images in each process
        for name in ("batch_size", "alpha_batch_size"):
            images = min(getattr(config, name) * place.nodes, len(rest if name == "alpha_batch_size" else first))
            require(
                images >= needed, f"{place.world} processes need {needed} images a step or more, {name} gives {images}"
            )
        self.supergraph = Supergraph(
            space, num_classes, in_channels, seed=stream_seed(config.seed, "init"), mask_position=config.mask_position,
            counted_classes=counted_classes, share_pointwise=config.share_pointwise,
        )  # fmt: skip
        self.witness = budget.witness(self.supergraph.tables)
        self.supergraph.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.sync_batch_norm and place.world > 1:
            synchronise_norms(self.supergraph)
        self.supergraph.sample_two = sampled = config.sample == "two"
        # DistributedDataParallel waits for every gradient
        self.supergraph.run_all_blocks = place.world > 1 and not sampled
        self.supergraph.recompute_resolutions = config.recompute_resolutions
        self.supergraph.alpha.requires_grad_(False)  # so that DistributedDataParallel leaves it alone
        self.parallel = share_gradients(self.supergraph, place, some=sampled)
        self.weights_steps = max(1, len(first) // (config.batch_size * place.nodes))
        self.alpha_steps = max(1, len(rest) // (config.alpha_batch_size * place.nodes))
        self.weights_optimizer = self._weights_optimizer()
        total = self.alpha_steps * (config.epochs - config.warmup_epochs)
        self.alpha_lr = config.alpha_lr or min(0.2, max(0.005, 12 / total))
        self.alpha_optimizer = torch.optim.Adam([self.supergraph.alpha], lr=self.alpha_lr, betas=(0.5, 0.99))
        self.cost_weight = CostWeight(
            integral=config.cost_weight, adapt=config.adapt_cost_weight, rate=min(0.2, 16 / total)
        )
        self.current_lambda = config.cost_weight
        self.committed: dict[str, int] = {}
        self.history: list[dict[str, float]] = []
        self.alpha_history: list[Tensor] = []
        self.state = SearchState(config=config, steps=self.weights_steps)
        self.partial = _Partial()
        self.interruption, self.stopping = Interruption(), False
        self.checkpoint_seconds, self.saved_at = math.inf, time.monotonic()

    def _weights_optimizer(self) -> torch.optim.Optimizer:
        parameters, config = self.supergraph.network_parameters(), self.config
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)

    @property
    def epochs_done(self) -> int:
        """Whole epochs behind us."""
        return len(self.history)

    def epoch(self, epoch: int, run: RunFolder | None, callbacks: Sequence[SearchCallback]) -> None:
        """One epoch, or what is left of it: weights, then alpha (after the warm-up), then log and checkpoint."""
        started, state, config = time.process_time() - self.partial.seconds, self.state, self.config
        learns = epoch >= config.warmup_epochs
        state.epoch, state.steps = epoch, self.weights_steps + (self.alpha_steps if learns else 0)
        if self.partial.phase == "weights":
            self._phase(run, callbacks, started)
            self.partial = _Partial(phase="alpha", row=self.partial.row | self.partial.means())
        if learns:
            self._phase(run, callbacks, started)
        row = {"epoch": epoch, **self.partial.row, **self.partial.means()}
        self.partial = _Partial()
        average_buffers(self.supergraph, self.place)
        if not all(bool(tensor.isfinite().all()) for tensor in self.supergraph.state_dict().values()):
            self._diverged("weights are not finite")  # a checkpoint must not keep that
        require_equal(self.supergraph, self.place, f"epoch {epoch}")
        state.tau = temperature(self._progress(state.steps - 1), config.tau_start, config.tau_decay)
        row |= {"tau": state.tau, "cost_weight": self.current_lambda, **self._costs()}
        state.row = row | {"seconds": round(time.process_time() - started, 3)}
        self.history.append(state.row)
        self.alpha_history.append(self.supergraph.alpha.detach().cpu().clone())
        if run is not None:
            run.append_metrics(state.row)
            self._write_alpha(run)
        for callback in callbacks:
            callback.on_epoch_end(state)
        self._save(run)

    def _phase(self, run: RunFolder | None, callbacks: Sequence[SearchCallback], started: float) -> None:
        """The steps that are left of the present phase; `partial` counts them."""
        config, state, partial = self.config, self.state, self.partial
        weights_phase = partial.phase == "weights"
        source = self.weights_source if weights_phase else self.alpha_source
        batch_size = (config.batch_size if weights_phase else config.alpha_batch_size) * self.place.nodes
        done = 0 if weights_phase else self.weights_steps
        batches = source.batches(
            batch_size,
            resolution=int(max(self.space.resolution.options)),
            rng=numpy_rng(config.seed, f"{partial.phase} batches", state.epoch),
            augment=config.augment,
            drop_last=len(source) >= batch_size,
            part=(self.place.rank, self.place.world),
            start=partial.steps,
        )
        self._train_only(partial.phase)
        own = self.place.key() if config.noise_per_rank else ()
        for images, labels in batches:
            index = partial.steps
            state.phase, state.step = partial.phase, done + index
            progress = self._progress(state.step)
            state.tau = temperature(progress, config.tau_start, config.tau_decay)
            generator = torch.Generator().manual_seed(
                stream_seed(config.seed, f"{partial.phase} noise", state.epoch, index, *own)
            )
            noise = gumbel_noise(len(self.supergraph.alpha), generator).to(self.device)
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            (self._weights_step if weights_phase else self._alpha_step)(images, labels, noise, progress)
            partial.steps += 1
            state.accuracy = 100 * partial.correct / partial.seen
            for callback in callbacks:
                callback.on_step_end(state)
            partial.seconds = time.process_time() - started
            if self.stopping or time.monotonic() - self.saved_at >= self.checkpoint_seconds:
                self._save(run)
            if self.stopping:
                raise Stopped(f"stopped in epoch {state.epoch + 1} of {config.epochs}")

    def _progress(self, step: int) -> float:
        """Share of the search that is behind at a step of the present epoch, in [0, 1)."""
        return (self.state.epoch + step / self.state.steps) / self.config.epochs

    def _save(self, run: RunFolder | None) -> None:
        if run is not None:
            save_checkpoint(run.checkpoint, self.checkpoint(), keep_previous=True)
        self.saved_at = time.monotonic()

    def _train_only(self, phase: str) -> None:
        """Gradients for the phase's own parameters only: the other half of the backward pass is not run."""
        self.supergraph.train()
        for parameter in self.supergraph.network_parameters():
            parameter.requires_grad_(phase == "weights")
        self.supergraph.alpha.requires_grad_(phase == "alpha")

    def _cross_entropy(self, images: Tensor, labels: Tensor, noise: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Loss and logits of this process's images; ``model`` is the supergraph, or that which shares its gradients."""
        weights = self.supergraph.weights(self.state.tau, noise, committed=self.committed)
        # Synchronised norms wait for all processes: none may leave out a resolution whose weight is 0 in its draw alone.
        together = self.config.sync_batch_norm and self.place.world > 1
        self.supergraph.run_all_resolutions = together and self.space.resolution.name not in self.committed
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp and self.device.type == "cuda"):
            logits = model(images, weights)
        logits = logits.to(self.supergraph.alpha.dtype)
        return F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing), logits.detach()

    def _weights_step(self, images: Tensor, labels: Tensor, noise: Tensor, progress: float) -> None:
        for group in self.weights_optimizer.param_groups:
            group["lr"] = self.config.lr * self.place.nodes * (1 + math.cos(math.pi * progress)) / 2
        loss, logits = self._cross_entropy(images, labels, noise, self.parallel)
        self._count(loss, logits, labels)
        self.weights_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.supergraph.network_parameters(), self.config.clip_grad_norm)
        self.weights_optimizer.step()

    def _alpha_step(self, images: Tensor, labels: Tensor, noise: Tensor, progress: float) -> None:
        """One step on cross entropy + lambda x (expected cost / budget)."""
        self._commit(progress)
        row = self.supergraph.argmax_row(self.committed)
        derived = self._row_cost(row)
        limit = self.budget.limit
        landing = progress >= self.config.land and self.config.adapt_cost_weight
        if landing and max(limit.low, LANDING * limit.high) <= derived <= limit.high:
            with torch.no_grad():
                loss, logits = self._cross_entropy(images, labels, noise, self.supergraph)
            self._count(loss, logits, labels)
            return
        self.alpha_optimizer.param_groups[0]["lr"] = self.alpha_lr * (LANDING_RATE if landing else 1)
        with torch.set_grad_enabled(self.config.alpha_loss):
            loss, logits = self._cross_entropy(images, labels, noise, self.supergraph)
        self._count(loss, logits, labels)
        expected = self.expected_cost()
        self.state.expected = float(expected.detach())
        decided = min(1.0, progress / 0.7)  # towards the end the argmax network counts, not the mean over draws
        measured = math.exp((1 - decided) * math.log(self.state.expected) + decided * math.log(derived))
        self.current_lambda = self.cost_weight.update(measured, self.budget.target)
        self.alpha_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss + self.current_lambda * expected / limit.high)
        self.supergraph.alpha.grad = mean_over_ranks(_gradient(self.supergraph.alpha), self.place)
        decided_logits = {name: self._logits(name).clone() for name in self.committed}
        self.alpha_optimizer.step()
        for name, kept in decided_logits.items():  # Adam's momentum would move them on without a gradient
            self._logits(name).copy_(kept)

    def _logits(self, variable: str) -> Tensor:
        """View of the logits `(n_options,)` of one variable."""
        parts = torch.split(self.supergraph.alpha.detach(), self.supergraph.option_counts)
        return parts[self.space.column[variable]]

    def _commit(self, progress: float) -> None:
        """Decide the resolution: it moves the cost of every layer at once, so the finer choices settle after it."""
        variable = self.space.resolution
        if variable.name not in self.space.column or variable.name in self.committed:
            return
        if progress >= self.config.commit_resolution:
            self.committed[variable.name] = int(self.supergraph.argmax_row()[self.space.column[variable.name]])

    def expected_cost(self) -> Tensor:
        """Expected cost of a draw, in the budget's quantity: the effective cost at softmax(alpha), a float64 scalar."""
        cost: Cost = self.supergraph.cost(self.supergraph.weights(1.0, committed=self.committed))
        return cost._asdict()[self.budget.quantity]  # type: ignore[no-any-return]

    def _row_cost(self, row: Rows) -> int:
        return int(self.supergraph.tables.cost(row)._asdict()[self.budget.quantity][0])

    def _costs(self) -> dict[str, float]:
        """Expected cost and cost of the argmax network, for the log."""
        with torch.no_grad():
            cost: Cost = self.supergraph.cost(self.supergraph.weights(1.0, committed=self.committed))
        derived = self.supergraph.tables.cost(self.supergraph.argmax_row(self.committed))
        self.state.expected = float(cost._asdict()[self.budget.quantity])
        return {
            "expected_flops": float(cost.flops),
            "expected_params": float(cost.params),
            "argmax_flops": int(derived.flops[0]),
            "argmax_params": int(derived.params[0]),
        }

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add up what all processes have seen, and whether one was asked to stop; a loss not finite on one is so on all."""
        found, count = float(loss.detach()), len(labels)
        right = int((logits.argmax(1) == labels).sum())
        sums = torch.tensor(
            [found * count, right, count, self.interruption.asked], dtype=torch.float64, device=self.device
        )
        total, right, seen, asked = sum_over_ranks(sums, self.place).tolist()
        self.state.loss = found if self.place.world == 1 else total / seen
        if not math.isfinite(self.state.loss):
            self._diverged(f"the loss is {self.state.loss}")
        self.partial.loss += total
        self.partial.correct += int(right)
        self.partial.seen += int(seen)
        self.stopping = asked > 0

    def _diverged(self, what: str) -> NoReturn:
        state = self.state
        raise SharedError(
            f"{what} at epoch {state.epoch}, step {state.step} ({state.phase});"
            f" try a lower --lr than {self.config.lr:g}"
        )

    def result(self) -> SearchResult:
        """The derived network: argmax, and a repair where that misses the budget."""
        tables = self.supergraph.tables
        argmax = self.supergraph.argmax_row(self.committed)
        row = argmax
        if not self.budget.limit.holds(self._row_cost(argmax)):
            alpha = self.supergraph.alpha.detach().double().cpu().numpy()
            row = repaired_row(tables, self.budget, alpha, argmax, self.witness)
        canonical = self.space.canonical(row)[0]
        architecture = self.space.decode(canonical)
        cost = Cost(*(int(entry[0]) for entry in tables.cost(canonical)))
        named = Architecture(
            name=f"{self.space.name}-{format_quantity(cost.flops)}",
            resolution=architecture.resolution,
            blocks=architecture.blocks,
        )
        return SearchResult(
            architecture=named,
            cost=cost,
            argmax_cost=Cost(*(int(entry[0]) for entry in tables.cost(argmax))),
            repaired=bool((row != argmax).any()),
        )

    def attach(self, run: RunFolder | None, *, resume: bool) -> None:
        """Restore the run's checkpoint where there is one, and bring its other files to the same epoch."""
        stored = None
        if run is not None and run.checkpoint.exists():
            require(resume, f"{run.path} already holds a checkpoint; resume it or choose another folder")
            stored = load_latest_checkpoint(run.checkpoint)
        stored = from_main(stored, self.place)
        if stored is not None:
            self.restore(stored, "the checkpoint" if run is None else str(run.checkpoint))
        if run is not None:
            run.truncate_metrics(self.epochs_done)
            require_room(run.path, 2 * sum(t.numel() * t.element_size() for t in self.supergraph.state_dict().values()))

    def checkpoint(self) -> dict[str, Any]:
        """Everything that resuming needs: plain values and tensors."""
        return {
            "schema": SCHEMA,
            "space": self.space.name,
            "supergraph": self.supergraph.state_dict(),
            "weights_optimizer": self.weights_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "cost_weight_integral": self.cost_weight.integral,
            "current_lambda": self.current_lambda,
            "committed": self.committed,
            "history": self.history,
            "alpha_history": torch.stack(self.alpha_history) if self.alpha_history else torch.zeros(0),
            "partial": to_plain(self.partial),
        }

    def restore(self, stored: dict[str, Any], where: str) -> None:
        """Inverse of `checkpoint`.

        Raises:
            UserError: it belongs to another search.
        """
        for key, value in (("schema", SCHEMA), ("space", self.space.name)):
            require(
                stored.get(key) == value,
                f"{where} is of another search: its {key} is {stored.get(key)!r}, not {value!r}",
            )
        try:
            self.supergraph.load_state_dict(stored["supergraph"])
            self.weights_optimizer.load_state_dict(stored["weights_optimizer"])
            self.alpha_optimizer.load_state_dict(stored["alpha_optimizer"])
            self.cost_weight.integral = float(stored["cost_weight_integral"])
            self.current_lambda = float(stored["current_lambda"])
            self.committed = {str(name): int(option) for name, option in stored["committed"].items()}
            self.history = [dict(row) for row in stored["history"]]
            self.alpha_history = list(stored["alpha_history"].unbind())
            self.partial = from_plain(_Partial, stored["partial"], "partial")
            self._check_restored()
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{where} does not fit this search: {first_line(error)}") from error

    def _check_restored(self) -> None:
        """Raise ValueError for a checkpoint that is readable but not of a search that went well."""
        tensors = [*self.supergraph.state_dict().values(), *self.alpha_history]
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise ValueError("it holds numbers that are not finite")
        if not (math.isfinite(self.cost_weight.integral) and math.isfinite(self.current_lambda)):
            raise ValueError("its cost weight is not finite")
        if not len(self.history) == len(self.alpha_history) <= self.config.epochs:
            raise ValueError(f"it has {len(self.history)} epochs of {self.config.epochs}")
        if self.partial.phase not in ("weights", "alpha") or self.partial.steps < 0:
            raise ValueError(f"it is at step {self.partial.steps} of phase {self.partial.phase!r}")
        if any(alpha.shape != self.supergraph.alpha.shape for alpha in self.alpha_history):
            raise ValueError("its alpha has another length")
        for optimizer in (self.weights_optimizer, self.alpha_optimizer):
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    if name != "step" and isinstance(value, Tensor) and value.shape != parameter.shape:
                        raise ValueError(f"its optimizer's {name} has another shape")

    def _write_alpha(self, run: RunFolder) -> None:
        """`alpha.csv`: one row an epoch, one column an option."""
        names = [
            f"{variable.name}={getattr(option, 'name', option)}"
            for variable in self.space.variables
            for option in variable.options
        ]
        table = np.stack([alpha.numpy() for alpha in self.alpha_history])
        lines = [",".join(["epoch", *names])]
        lines += [",".join([str(epoch), *(repr(float(x)) for x in row)]) for epoch, row in enumerate(table)]
        write_text_atomic(run.path / ALPHA, "\n".join(lines) + "\n")
