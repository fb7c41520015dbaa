"""Cost formulas against fvcore on built networks, 200 random candidates of every space.

python -m benchmarks.cost_exactness
"""

import torch

from benchmarks.tables import parser, write_table
from search_spaces.cost import cost
from search_spaces.counting import fvcore_cost
from search_spaces.network import build
from search_spaces.sampling import uniform_rows
from search_spaces.seeding import numpy_rng
from search_spaces.spaces import SPACES
from search_spaces.tables import SpaceTables


def main() -> None:
    """Print and write the table."""
    options = parser(__doc__)
    options.add_argument("--candidates", type=int, default=200)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, make in SPACES.items():
        space = make()
        candidates = uniform_rows(space, arguments.candidates, numpy_rng(arguments.seed, name))
        pool = SpaceTables(space, num_classes=1000, in_channels=3).cost(candidates)
        equal = dict.fromkeys(("flops", "params", "params_all", "pool"), 0)
        for index, row in enumerate(candidates):
            architecture = space.decode(row)
            ours = cost(architecture)
            counted = fvcore_cost(build(architecture, 1000), in_channels=3, resolution=architecture.resolution)
            for quantity in ("flops", "params", "params_all"):
                equal[quantity] += getattr(ours, quantity) == getattr(counted, quantity)
            equal["pool"] += tuple(int(entry[index]) for entry in pool) == tuple(ours)
        rows.append(
            {
                "space": name,
                "candidates": len(candidates),
                **{f"equal_{key}": count for key, count in equal.items()},
                "min_mflops": float(pool.flops.min() / 1e6),
                "max_mflops": float(pool.flops.max() / 1e6),
                "seed": arguments.seed,
            }
        )
        print(rows[-1], flush=True)
    write_table(rows, arguments.out / "cost_exactness.csv")


if __name__ == "__main__":
    main()
