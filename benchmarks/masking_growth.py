"""Step time and saved-activation bytes of the supergraph against the number of channel options (thesis Fig. 3.7).

As in the thesis, k options of a convolution with c channels are c/k, 2c/k, ..., c. All variants are measured in turn in one
run; ratios are to the variant with one option in the same round, and their median is reported.

    python -m benchmarks.masking_growth
"""

import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.memory import saved_bytes
from benchmarks.tables import parser, write_table
from search_spaces.rows import Row, space_of_rows
from search_spaces.space import SearchSpace
from supernets.gumbel import gumbel_noise
from supernets.supergraph import Supergraph

OPTIONS = (1, 2, 4, 8, 16, 32)
CHANNELS = 64


def space_with(options: int) -> SearchSpace:
    """Four searched layers of nine block types; every width has so many options up to 64 channels."""
    widths = tuple(CHANNELS * (index + 1) // options for index in range(options))
    rows = [
        Row(expansion=(3.0,), width=widths, stride=1),
        Row(expansion=(3.0,), width=widths, stride=2),
        Row(expansion=(3.0,), width=widths, n=2),
    ]
    return space_of_rows(f"{options} options", rows, resolutions=(32,), stem_width=32, head_width=256)


class Step:
    """One training step of weights and alpha together, as in a search."""

    def __init__(self, options: int, batch: int, seed: int) -> None:
        self.supergraph = Supergraph(space_with(options), 10, seed=seed).to(memory_format=torch.channels_last)
        self.generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(batch, 3, 32, 32, generator=self.generator).to(memory_format=torch.channels_last)
        self.labels = torch.randint(10, (batch,), generator=self.generator)
        self.optimizer = torch.optim.SGD(self.supergraph.parameters(), lr=0.01, momentum=0.9)

    def loss(self) -> Tensor:
        """Cross entropy plus cost, on a fresh draw."""
        noise = gumbel_noise(len(self.supergraph.alpha), self.generator)
        weights = self.supergraph.weights(1.0, noise)
        cost: Tensor = self.supergraph.cost(weights).flops / 1e7
        return F.cross_entropy(self.supergraph(self.images, weights), self.labels) + cost

    def run(self) -> float:
        """CPU seconds of one step."""
        started = time.process_time()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.loss())
        self.optimizer.step()
        return time.process_time() - started


def main() -> None:
    """Print and write the table."""
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--rounds", type=int, default=20)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    steps = {count: Step(count, arguments.batch, arguments.seed) for count in OPTIONS}
    saved = {count: saved_bytes(step.loss, step.supergraph) for count, step in steps.items()}
    for step in steps.values():
        step.run()
    seconds: dict[int, list[float]] = {count: [] for count in OPTIONS}
    for _ in range(arguments.rounds):
        for count, step in steps.items():
            seconds[count].append(step.run())
    rows = [
        {
            "options": count,
            "saved_mib": saved[count] / 2**20,
            "saved_ratio": saved[count] / saved[1],
            "step_ms_median": 1e3 * statistics.median(seconds[count]),
            "step_ratio_median": statistics.median(a / b for a, b in zip(seconds[count], seconds[1], strict=True)),
            "batch": arguments.batch,
            "rounds": arguments.rounds,
            "seed": arguments.seed,
        }
        for count in OPTIONS
    ]
    write_table(rows, arguments.out / "masking_growth.csv")


if __name__ == "__main__":
    main()
