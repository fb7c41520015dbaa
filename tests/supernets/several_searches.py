"""Started by torchrun in test_distributed_search.py: searches in every process and stores what each ends with."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from recipes.distributed import process_group, ranks
from recipes.run_folder import RunFolder
from recipes.tensor_source import TensorSource
from search_spaces.limits import Limit
from search_spaces.rows import Row, space_of_rows
from search_spaces.space import SearchSpace
from supernets.budget import Budget
from supernets.config import SearchConfig
from supernets.progress import SearchState
from supernets.search import Searching, search
from supernets.supergraph import Supergraph

SETTINGS: dict[str, Any] = {"epochs": 4, "batch_size": 24, "alpha_batch_size": 12, "lr": 0.05}
BUDGET = Budget("flops", Limit(high=1e5))
COUNTING = {"num_classes": 4, "in_channels": 3}


def tiny() -> SearchSpace:
    """Three block types, squeeze and skip among them, two resolutions."""
    rows = [
        Row(block=("ir_k3_hs", "ir_k5_se_hs"), expansion=(1, 2), width=(8, 12)),
        Row(block=("ir_k3_se_hs", "ir_k5_hs", "skip"), expansion=(1, 2), width=(8, 12)),
    ]
    return space_of_rows("tiny", rows, resolutions=(10, 16), stem_width=8, head_width=16, head_expansion=2.0)


def images(n: int = 120) -> TensorSource:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 16, 16, 3), dtype=torch.uint8, generator=generator)
    return TensorSource(x, torch.arange(n) % 4, mean=(0.5,) * 3, std=(0.25,) * 3)


class InDouble(TensorSource):
    """Images in float64, so that the order of summation does not show."""

    def batches(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        for x, y in super().batches(*args, **kwargs):
            yield x.double(), y


class Frozen(Searching):
    """Batch norms keep the statistics that they begin with."""

    def _train_only(self, phase: str) -> None:
        super()._train_only(phase)
        for module in self.supergraph.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


class Stop(Exception):
    pass


class StopAt:
    """Ends a search as a kill would."""

    def __init__(self, epoch: int, step: int) -> None:
        self.at = (epoch, step)

    def on_step_end(self, state: SearchState) -> None:
        if (state.epoch, state.step) == self.at:
            raise Stop

    def on_epoch_end(self, state: SearchState) -> None: ...


def whole_batch(
    kind: type[Searching], dtype: torch.dtype, steps: int | None, **changes: Any
) -> dict[str, torch.Tensor]:
    """Weights and alpha after some steps, or after all 24, with the same noise in every process unless a change says else."""
    config = SearchConfig(**{**SETTINGS, "noise_per_rank": False, **changes})
    source = images()
    if dtype == torch.float64:
        source.__class__ = InDouble
        source.subset = lambda indices: _in_double(TensorSource.subset(source, indices))  # type: ignore[method-assign]

    def made(*args: Any, **options: Any) -> Supergraph:
        return Supergraph(*args, **options).to(dtype)

    with patch("supernets.search.Supergraph", made):
        searching = kind(tiny(), source, BUDGET, config, **COUNTING, device=torch.device("cpu"))
    callbacks = [] if steps is None else [StopAt(0, steps - 1)]
    with suppress(Stop):
        for epoch in range(config.epochs):
            searching.epoch(epoch, None, callbacks)
    return searching.supergraph.state_dict()


def _in_double(source: TensorSource) -> TensorSource:
    source.__class__ = InDouble
    return source


MACHINES, OWN_NOISE = "a machine each, frozen, float64", "own noise, frozen, float64"
UNEVEN = "an image more in one process, frozen, float64"
VARIANTS: dict[str, tuple[Any, ...]] = {
    "frozen, float64": (Frozen, torch.float64, None),
    "frozen, float32, one step": (Frozen, torch.float32, 1),
    "synchronised, float64": (Searching, torch.float64, None),
    "synchronised, recomputed, float64": (Searching, torch.float64, None),
    "two sampled, frozen, float64": (Frozen, torch.float64, None),
    "shared blocks, frozen, float64": (Frozen, torch.float64, None),
    MACHINES: (Frozen, torch.float64, None),
    OWN_NOISE: (Frozen, torch.float64, None),
    UNEVEN: (Frozen, torch.float64, None),
}


def sampling(name: str) -> dict[str, Any]:
    """What a variant changes in one process too."""
    odd = {"batch_size": 23, "alpha_batch_size": 11} if name == UNEVEN else {}
    return {
        "sample": "two" if name.startswith("two") else "all",
        "share_blocks": name.startswith("shared blocks"),
        **odd,
    }


def together(name: str) -> dict[str, Any]:
    """What a variant changes in several processes; each of two machines has half the batch at half the rate."""
    halved = {"batch_size": SETTINGS["batch_size"] // 2, "alpha_batch_size": SETTINGS["alpha_batch_size"] // 2}
    return {
        "sync_batch_norm": name.startswith("sync"),
        "recompute_resolutions": "recomputed" in name,
        "noise_per_rank": name == OWN_NOISE,
        **({**halved, "lr": SETTINGS["lr"] / 2} if name == MACHINES else {}),
    }


# Minutes between checkpoints of a search that is killed in its second epoch: one goes on from the end of the first, one from
# the step before.
KILLS: dict[str, float | None] = {"undisturbed": None, "killed": 10.0, "killed within an epoch": 1e-9}


def own_noise(run: RunFolder | None = None, **options: Any) -> dict[str, Any]:
    """Result of a search in which every process draws for itself."""
    config = SearchConfig(**{**SETTINGS, "epochs": 2})
    found = search(tiny(), images(), BUDGET, config, **COUNTING, run=run, **options)
    return {"architecture": found.architecture.to_json(), "flops": found.cost.flops}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    place = ranks()
    stored: dict[str, Any] = {}
    with process_group(torch.device("cpu"), place):
        for name, (kind, dtype, steps) in list(VARIANTS.items())[: len(VARIANTS) if place.world == 2 else 2]:
            of_a_machine = {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"} if name == MACHINES else {}
            with patch.dict(os.environ, of_a_machine):
                stored[name] = whole_batch(kind, dtype, steps, **together(name), **sampling(name))
        for name, minutes in KILLS.items():
            run = RunFolder(folder / name, {"a": 1}, seed=0, resume=True) if place.main else None
            if run is not None:
                run.__enter__()
            if minutes is not None:
                with suppress(Stop):
                    own_noise(run, callbacks=[StopAt(1, 3)], checkpoint_minutes=minutes)
            stored[name] = own_noise(run, resume=True)
            if run is not None:
                run.__exit__(None, None, None)
    torch.save(stored, folder / f"{place.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
