"""Started by torchrun in test_distributed.py: trains in every process and stores what each ends with."""

import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from recipes.distributed import process_group, ranks
from recipes.recipe import Recipe
from recipes.run_folder import RunFolder
from recipes.tensor_source import TensorSource
from recipes.trainer import FitResult, TrainState, fit
from search_spaces.errors import Stopped

RECIPE = Recipe(
    name="both", epochs=3, batch_size=16, lr=0.05, schedule="cosine", weight_decay=1e-3, ema=True, ema_decay=0.9,
    label_smoothing=0.1, augment=True,
)  # fmt: skip
NOISY = RECIPE.replace(mixup=0.4)


def source(n: int, seed: int) -> TensorSource:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (n,), generator=generator)
    images = torch.randint(0, 120, (n, 8, 8, 1), generator=generator) + 60 * labels.view(-1, 1, 1, 1)
    return TensorSource(images.to(torch.uint8), labels, mean=(0.5,), std=(0.3,), flip=True, crop_padding=1)


def plain_network() -> nn.Module:
    """No batch norm and no dropout: several processes compute what one does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.Hardswish(), nn.Flatten(), nn.Linear(64, 3))


def norm_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3)]
        return nn.Sequential(*layers, nn.Linear(64, 3))


class StopAfter:
    """Ends training as a kill between two epochs would."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_step_end(self, state: TrainState) -> None: ...

    def on_epoch_end(self, state: TrainState) -> None:
        if state.epoch + 1 == self.epochs and not state.stop:
            raise KeyboardInterrupt


class StopWell(StopAfter):
    """Asks for the end, in the one process that has it."""

    def __init__(self) -> None:
        super().__init__(1)

    def on_epoch_end(self, state: TrainState) -> None:
        state.stop = True


class AskOne:
    """A SIGTERM to the second process alone, after the third step."""

    def __init__(self, rank: int) -> None:
        self.rank, self.seen = rank, (-1, -1)

    def on_step_end(self, state: TrainState) -> None:
        self.seen = (state.epoch, state.step)
        if self.rank == 1 and self.seen == (0, 2):
            signal.raise_signal(signal.SIGTERM)

    def on_epoch_end(self, state: TrainState) -> None: ...


class InDouble(TensorSource):
    """Images in float64, so that the order of summation does not show."""

    def batches(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        for images, labels in super().batches(*args, **kwargs):
            yield images.double(), labels


def in_double(n: int, seed: int) -> TensorSource:
    made = source(n, seed)
    made.__class__ = InDouble
    return made


def train_plain(batch_size: int = 16) -> FitResult:
    """In float64 on 100 images: an uneven last batch in evaluation, 6 steps an epoch."""
    recipe = RECIPE.replace(batch_size=batch_size)
    return fit(plain_network().double(), in_double(100, 1), in_double(33, 2), recipe, resolution=8, seed=3)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    place = ranks()
    stored = {}
    with process_group(torch.device("cpu"), place):
        result = train_plain()
        stored["plain"] = (result.model.state_dict(), list(result.history))
        result = train_plain(batch_size=15)  # one process has an image more
        stored["odd"] = (result.model.state_dict(), list(result.history))
        asked = AskOne(place.rank)
        with suppress(Stopped):
            fit(plain_network(), source(100, 1), None, RECIPE, resolution=8, seed=3, callbacks=[asked])
        stored["asked"] = asked.seen
        result = fit(norm_network(), source(100, 1), source(33, 2), NOISY, resolution=8, seed=3)
        stored["norm"] = (result.model.state_dict(), list(result.history))
        run = RunFolder(folder / "run", {"a": 1}, seed=3, resume=True) if place.main else None
        if run is not None:
            run.__enter__()
        options = {"resolution": 8, "seed": 3, "run": run, "resume": True}
        with suppress(KeyboardInterrupt):  # the second epoch has no checkpoint yet
            fit(norm_network(), source(100, 1), source(33, 2), NOISY, callbacks=[StopAfter(2)], **options)
        result = fit(norm_network(), source(100, 1), source(33, 2), NOISY, **options)
        stored["resumed"] = (result.model.state_dict(), list(result.history))
        if run is not None:
            run.__exit__(None, None, None)
        stopping = [StopWell()] if place.main else []
        result = fit(norm_network(), source(100, 1), None, NOISY, resolution=8, seed=3, callbacks=stopping)
        stored["stopped"] = (result.model.state_dict(), list(result.history))
    torch.save(stored, folder / f"{place.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
