"""Supergraphs of FBNetV2-F, P and L at their full resolutions, for 1000 classes: built, one search epoch, a network derived.

Ten random images, two a step: four steps of the weights and one of alpha, by the search loop itself; each space in a process
of its own, whose largest resident memory is reported. Searches take larger batches; the memory beyond weights and optimiser
grows in proportion to the batch.

    OMP_NUM_THREADS=1 python -m benchmarks.full_supergraphs
"""

import multiprocessing
import resource
import time
from typing import Any

import torch

from benchmarks.tables import parser, write_table
from nas.loading import load_space
from nas.process import tune_process
from recipes.tensor_source import TensorSource
from search_spaces.limits import Limit
from search_spaces.network import build
from supernets.budget import Budget
from supernets.config import SearchConfig
from supernets.search import search

SPACES = {"fbnetv2-f": 300e6, "fbnetv2-p": 200e6, "fbnetv2-l": 400e6}  # with a budget in multiply-adds for each
CLASSES, IMAGES, BATCH = 1000, 10, 2


def full_search(name: str, flops: float, recompute: bool, seed: int) -> dict[str, Any]:
    """One epoch in this process: what it took, and what it derived."""
    tune_process()
    torch.set_num_threads(1)
    space = load_space(name)
    side = int(max(space.resolution.options))
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (IMAGES, side, side, 3), dtype=torch.uint8, generator=generator)
    source = TensorSource(images, torch.arange(IMAGES) % 2, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    config = SearchConfig(
        epochs=1, batch_size=BATCH, alpha_batch_size=BATCH, warmup=0.0, recompute_resolutions=recompute, seed=seed
    )
    started = time.process_time()
    budget = Budget(quantity="flops", limit=Limit(high=flops))
    found = search(space, source, budget, config, num_classes=CLASSES, in_channels=3)
    seconds = time.process_time() - started
    with torch.inference_mode():
        shape = build(found.architecture, CLASSES, 3).eval()(torch.zeros(1, 3, side, side)).shape
    return {
        "space": name,
        "networks": f"{float(space.size):.1e}",
        "resolutions": " ".join(str(int(option)) for option in space.resolution.options),
        "recompute": recompute,
        "batch": BATCH,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "cpu_seconds": seconds,
        "budget": int(flops),
        "derived_flops": found.cost.flops,
        "derived_params": found.cost.params_all,
        "derived_logits": shape[-1],
    }


def main() -> None:
    """Run the script."""
    arguments = parser(__doc__).parse_args()
    rows = []
    for name, flops in SPACES.items():
        for recompute in (False, True):
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process each: its memory is its own
                rows.append(pool.apply(full_search, (name, flops, recompute, arguments.seed)))
                print(rows[-1], flush=True)
    write_table(rows, arguments.out / "full_supergraphs.csv")


if __name__ == "__main__":
    main()
