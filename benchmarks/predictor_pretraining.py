"""How well the predictor's encoder knows FLOPs and parameters after pretraining (thesis 4.3, Fig. 4.4 a and b), and its speed.

R2 is of FLOPs and parameters themselves, on the fifth of the pool that was held out. Queries are timed with statistics at hand
(a search has counted them already) and without.

    python -m benchmarks.predictor_pretraining
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.tables import parser, write_table
from predictor.fit import fit
from predictor.pool import POOL_FLOPS, POOL_SIZE, sobol_pool
from predictor.pretrain import pretrain
from recipes.space import load_joint
from search_spaces.limits import Limit
from search_spaces.variables import Rows

SETTINGS = {  # by space: range of FLOPs, classes, channels of the images
    "fbnetv3": (POOL_FLOPS, 200, 3),
    "fbnetv3-cifar": (Limit(high=12e6, low=2e6), 10, 3),
    "digits-joint": (Limit(high=0.4e6, low=0.1e6), 10, 1),
}
LABELS = 240  # five rounds of 48


def rows_per_second(
    predict: Callable[[Rows, Mapping[str, npt.ArrayLike] | None], Any], rows: Rows, statistics: Mapping[str, Any] | None
) -> float:
    """The best of five, by CPU time."""
    seconds = []
    for _ in range(5):
        start = time.process_time()
        predict(rows, statistics)
        seconds.append(time.process_time() - start)
    return len(rows) / min(seconds)


def row(name: str, preset: str, pool: int, seed: int) -> dict[str, Any]:
    """One line of the table."""
    flops, num_classes, in_channels = SETTINGS[name]
    space, counting = load_joint(name), {"num_classes": num_classes, "in_channels": in_channels}
    start = time.process_time()
    pretrained = pretrain(space, flops=flops, config=preset, pool=pool, seed=seed, **counting)
    pretraining = time.process_time() - start
    rows = sobol_pool(space, pool, {"flops": flops}, seed=seed + 1, **counting)
    accuracies = np.random.default_rng(seed).normal(75, 1, LABELS)  # speed does not depend on them
    start = time.process_time()
    made = fit(space, rows[:LABELS], accuracies, seed=seed, config=preset, pretrained=pretrained)
    fitting = time.process_time() - start
    counted = made.count(rows) if made.statistics else None
    return {
        "space": name,
        "preset": preset,
        "pool": pool,
        "r2_flops": pretrained.r2["flops"],
        "r2_params": pretrained.r2["params"],
        "pretraining_cpu_seconds": pretraining,
        "fit_240_labels_cpu_seconds": fitting,
        "rows_per_second": rows_per_second(made.predict, rows, counted),
        "rows_per_second_with_counting": rows_per_second(made.predict, rows, None),
        "scale": "full" if pool == POOL_SIZE else "tiny",
        "seed": seed,
    }


def main() -> None:
    """Print and write the table."""
    options = parser(__doc__)
    options.add_argument("--pool", type=int, default=POOL_SIZE)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    rows = [row(name, preset, arguments.pool, arguments.seed) for name in SETTINGS for preset in ("default", "thesis")]
    write_table(rows, arguments.out / "predictor_pretraining.csv")


if __name__ == "__main__":
    main()
