"""The search loop of DMaskingNAS (thesis 3.4): in each epoch first the weights learn, then alpha.

What the steps change is in `supernets.learned`, what callbacks see in `supernets.progress`.

All randomness is drawn from streams named by (seed, epoch, step), so a search that was killed and resumed from its last epoch
ends with the same bits as one that was not.
"""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.checkpoint import load_latest_checkpoint, require_room, save_checkpoint
from recipes.distributed import (
    SharedError,
    average_buffers,
    from_main,
    gathered_buffers,
    joined,
    mean_over_ranks,
    put_own_buffers,
    require_equal,
    share_gradients,
    shared_errors,
    sum_over_ranks,
)
from recipes.interruption import Interruption
from recipes.run_folder import RunFolder
from recipes.sources import Source, split_indices
from search_spaces.errors import Stopped, UserError, first_line
from search_spaces.seeding import numpy_rng, stream_seed
from search_spaces.serialisation import require
from search_spaces.space import SearchSpace
from supernets.budget import Budget
from supernets.config import SearchConfig
from supernets.gumbel import gumbel_noise, temperature
from supernets.learned import Learned
from supernets.masking import synchronise_norms
from supernets.progress import Partial, SearchCallback, SearchState, write_alpha
from supernets.result import SearchResult, write_result
from supernets.supergraph import Supergraph

logger = logging.getLogger(__name__)

LANDING = 0.87  # share of the upper limit above which an argmax network is inside for good
LANDING_RATE = 2.5  # factor on alpha's rate while the argmax network is outside in the last part of a search


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
    with shared_errors():
        require(checkpoint_minutes > 0, f"checkpoint_minutes must be > 0, got {checkpoint_minutes}")
    searching = Searching(
        space, train, budget, config, num_classes=num_classes, in_channels=in_channels, counted_classes=counted_classes,
        device=torch.device(device),
    )  # fmt: skip
    searching.checkpoint_seconds = 60 * checkpoint_minutes
    searching.attach(run, resume=resume)
    with searching.interruption:
        for epoch in range(searching.learned.epochs_done, config.epochs):
            searching.epoch(epoch, run, callbacks)
    result = searching.learned.result()
    if run is not None:
        write_result(run, result, budget)
    return result


def _gradient(parameter: Tensor) -> Tensor:
    """The gradient that a backward pass has left."""
    assert parameter.grad is not None
    return parameter.grad


class Searching:
    """The steps of a search; `search` drives it.

    Attributes:
        learned: what the steps change.
        supergraph: the one of ``learned``.
        state: what callbacks see.
        interruption: to be entered while the search runs; a SIGTERM stops it after the step.
        checkpoint_seconds: between checkpoints at most.
    """

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
        with shared_errors():
            require(min(len(first), len(rest)) >= 2, f"a search needs at least 10 images, got {len(train)}")
        self.weights_source, self.alpha_source = train.subset(first), train.subset(rest)
        self.space, self.budget, self.config, self.device, self.place = space, budget, config, device, place
        needed = 2 * place.world  # a batch norm needs two images in each process
        for name in ("batch_size", "alpha_batch_size"):
            images = min(getattr(config, name) * place.nodes, len(rest if name == "alpha_batch_size" else first))
            with shared_errors():
                require(images >= needed, f"{place.world} processes need {needed} images a step, {name} gives {images}")
        self.supergraph = Supergraph(
            space, num_classes, in_channels, seed=stream_seed(config.seed, "init"), mask_position=config.mask_position,
            counted_classes=counted_classes, share_pointwise=config.share_pointwise, share_blocks=config.share_blocks,
        )  # fmt: skip
        witness = budget.witness(self.supergraph.tables)
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
        self.learned = Learned(
            self.supergraph, budget, config, witness=witness,
            alpha_steps=self.alpha_steps * (config.epochs - config.warmup_epochs),
        )  # fmt: skip
        self.state = SearchState(config=config, steps=self.weights_steps)
        self.interruption, self.stopping, self.due = Interruption(), False, False
        self.checkpoint_seconds, self.saved_at = math.inf, time.monotonic()
        self.share = 1.0  # this process's images of a step, relative to as many for each

    def epoch(self, epoch: int, run: RunFolder | None, callbacks: Sequence[SearchCallback]) -> None:
        """One epoch, or what is left of it: weights, then alpha (after the warm-up), then log and checkpoint."""
        state, config, learned = self.state, self.config, self.learned
        started = time.process_time() - learned.partial.seconds
        learns = epoch >= config.warmup_epochs
        state.epoch, state.steps = epoch, self.weights_steps + (self.alpha_steps if learns else 0)
        if learned.partial.phase == "weights":
            self._phase(run, callbacks, started)
            learned.partial = Partial(phase="alpha", row=learned.partial.row | learned.partial.means())
        if learns:
            self._phase(run, callbacks, started)
        row = {"epoch": epoch, **learned.partial.row, **learned.partial.means()}
        learned.partial = Partial()
        average_buffers(self.supergraph, self.place)
        if not all(bool(tensor.isfinite().all()) for tensor in self.supergraph.state_dict().values()):
            self._diverged("weights are not finite")  # a checkpoint must not keep that
        require_equal(self.supergraph, self.place, f"epoch {epoch}")
        state.tau = temperature(self._progress(state.steps - 1), config.tau_start, config.tau_decay)
        row |= {"tau": state.tau, "cost_weight": learned.current_lambda, **learned.costs()}
        state.expected = row[f"expected_{self.budget.quantity}"]
        state.row = row | {"seconds": round(time.process_time() - started, 3)}
        learned.history.append(state.row)
        learned.alpha_history.append(self.supergraph.alpha.detach().cpu().clone())
        if run is not None:
            run.append_metrics(state.row)
            write_alpha(run.path, self.space, learned.alpha_history)
        for callback in callbacks:
            callback.on_epoch_end(state)
        self._save(run)

    def _phase(self, run: RunFolder | None, callbacks: Sequence[SearchCallback], started: float) -> None:
        """The steps that are left of the present phase; ``learned.partial`` counts them."""
        config, state, partial = self.config, self.state, self.learned.partial
        weights_phase = partial.phase == "weights"
        source = self.weights_source if weights_phase else self.alpha_source
        batch_size = (config.batch_size if weights_phase else config.alpha_batch_size) * self.place.nodes
        images_a_step = min(batch_size, len(source))
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
            # The mean over processes weighs all alike, and one may have an image more than another.
            self.share = len(labels) * self.place.world / images_a_step
            (self._weights_step if weights_phase else self._alpha_step)(images, labels, noise, progress)
            partial.steps += 1
            state.accuracy = 100 * partial.correct / partial.seen
            for callback in callbacks:
                callback.on_step_end(state)
            partial.seconds = time.process_time() - started
            if self.stopping or self.due:
                self._save(run)
            if self.stopping:
                raise Stopped(f"stopped in epoch {state.epoch + 1} of {config.epochs}")

    def _progress(self, step: int) -> float:
        """Share of the search that is behind at a step of the present epoch, in [0, 1)."""
        return (self.state.epoch + step / self.state.steps) / self.config.epochs

    def _save(self, run: RunFolder | None) -> None:
        """Write a checkpoint; all processes come here at the same step, each with its own running statistics."""
        own = {"machines": self.place.nodes, "buffers": gathered_buffers(self.supergraph, self.place)}
        if run is not None:
            save_checkpoint(run.checkpoint, {**self.learned.checkpoint(), **own}, keep_previous=True)
        self.saved_at = time.monotonic()

    def _train_only(self, phase: str) -> None:
        """Gradients for the phase's own parameters only: the other half of the backward pass is not run."""
        self.supergraph.train()
        for parameter in self.supergraph.network_parameters():
            parameter.requires_grad_(phase == "weights")
        self.supergraph.alpha.requires_grad_(phase == "alpha")

    def _cross_entropy(self, images: Tensor, labels: Tensor, noise: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Loss and logits of this process's images; ``model`` is the supergraph, or that which shares its gradients."""
        committed = self.learned.committed
        weights = self.supergraph.weights(self.state.tau, noise, committed=committed, mask_tau=self.config.mask_tau)
        # Synchronised norms wait for all processes: none may leave out a resolution whose weight is 0 in its draw alone.
        together = self.config.sync_batch_norm and self.place.world > 1
        self.supergraph.run_all_resolutions = together and self.space.resolution.name not in committed
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp and self.device.type == "cuda"):
            logits = model(images, weights)
        logits = logits.to(self.supergraph.alpha.dtype)
        return F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing), logits.detach()

    def _weights_step(self, images: Tensor, labels: Tensor, noise: Tensor, progress: float) -> None:
        optimizer = self.learned.weights_optimizer
        for group in optimizer.param_groups:
            group["lr"] = self.config.lr * self.place.nodes * (1 + math.cos(math.pi * progress)) / 2
        loss, logits = self._cross_entropy(images, labels, noise, self.parallel)
        self._count(loss, logits, labels)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.share * loss)
        nn.utils.clip_grad_norm_(self.supergraph.network_parameters(), self.config.clip_grad_norm)
        optimizer.step()

    def _alpha_step(self, images: Tensor, labels: Tensor, noise: Tensor, progress: float) -> None:
        """One step on cross entropy + lambda x (expected cost / budget)."""
        learned = self.learned
        learned.commit(progress)
        derived = learned.row_cost(learned.argmax_row())
        limit = self.budget.limit
        landing = progress >= self.config.land and self.config.adapt_cost_weight
        if landing and max(limit.low, LANDING * limit.high) <= derived <= limit.high:
            with torch.no_grad():
                loss, logits = self._cross_entropy(images, labels, noise, self.supergraph)
            self._count(loss, logits, labels)
            return
        learned.alpha_optimizer.param_groups[0]["lr"] = learned.alpha_lr * (LANDING_RATE if landing else 1)
        with torch.set_grad_enabled(self.config.alpha_loss):
            loss, logits = self._cross_entropy(images, labels, noise, self.supergraph)
        self._count(loss, logits, labels)
        expected = learned.expected_cost()
        self.state.expected = float(expected.detach())
        decided = min(1.0, progress / 0.7)  # towards the end the argmax network counts, not the mean over draws
        measured = math.exp((1 - decided) * math.log(self.state.expected) + decided * math.log(derived))
        learned.current_lambda = learned.cost_weight.update(measured, self.budget.target)
        learned.alpha_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.share * loss + learned.current_lambda * expected / limit.high)
        self.supergraph.alpha.grad = mean_over_ranks(_gradient(self.supergraph.alpha), self.place)
        decided_logits = {name: learned.logits(name).clone() for name in learned.committed}
        learned.alpha_optimizer.step()
        for name, kept in decided_logits.items():  # Adam's momentum would move them on without a gradient
            learned.logits(name).copy_(kept)

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add up what all processes have seen, whether one was asked to stop, and whether the first one's checkpoint is due.

        A loss that is not finite in one is so in all.
        """
        partial = self.learned.partial
        found, count = float(loss.detach()), len(labels)
        right = int((logits.argmax(1) == labels).sum())
        due = self.place.main and time.monotonic() - self.saved_at >= self.checkpoint_seconds
        sums = torch.tensor(
            [found * count, right, count, self.interruption.asked, due], dtype=torch.float64, device=self.device
        )
        total, right, seen, asked, saves = sum_over_ranks(sums, self.place).tolist()
        self.state.loss = found if self.place.world == 1 else total / seen
        if not math.isfinite(self.state.loss):
            self._diverged(f"the loss is {self.state.loss}")
        partial.loss += total
        partial.correct += int(right)
        partial.seen += int(seen)
        self.stopping, self.due = asked > 0, saves > 0

    def _diverged(self, what: str) -> NoReturn:
        state = self.state
        raise SharedError(
            f"{what} at epoch {state.epoch}, step {state.step} ({state.phase});"
            f" try a lower --lr than {self.config.lr:g}"
        )

    def attach(self, run: RunFolder | None, *, resume: bool) -> None:
        """Restore the run's checkpoint where there is one, and bring its other files to the same epoch."""
        stored = None
        if run is not None and run.checkpoint.exists():
            require(resume, f"{run.path} already holds a checkpoint; resume it or choose another folder")
            stored = load_latest_checkpoint(run.checkpoint)
        stored = from_main(stored, self.place)
        if stored is not None:
            with shared_errors():
                self._restore(stored, "the checkpoint" if run is None else str(run.checkpoint))
        if run is not None:
            run.truncate_metrics(self.learned.epochs_done)
            require_room(
                run.checkpoint, 2 * sum(t.numel() * t.element_size() for t in self.supergraph.state_dict().values())
            )

    def _restore(self, stored: dict[str, Any], where: str) -> None:
        """Go on from a checkpoint, with the running statistics that were this process's."""
        self.learned.restore(stored, where)
        before, now = stored.get("machines"), self.place.nodes
        require(
            before == now,
            f"{where} is of a search on {before} machines, now {now}: its batches and rates would change",
        )
        try:
            put_own_buffers(self.supergraph, stored["buffers"], self.place)
            processes = len(stored["buffers"])
        except (RuntimeError, KeyError, AttributeError, TypeError, IndexError) as error:
            raise UserError(f"{where} does not fit this search: {first_line(error)}") from error
        if processes != self.place.world and self.place.main:
            logger.warning(
                "%s is of a search in %d processes, now %d: numbers will differ", where, processes, self.place.world
            )
