"""Does the cross entropy say the same about alpha in supergraphs that differ by their initial weights alone?

Only what two supergraphs agree about can be a property of the networks. For every setting (temperatures, shared weights),
supergraphs of several seeds are trained with alpha at zero and the resolution decided; then the gradient of alpha is averaged
over batches of other images. alpha_agreement.csv has a line a setting and kind of choice: ``t``, the mean |gradient| in
standard errors (0.8: noise); ``correlation`` of two supergraphs' gradients, the mean of each choice taken out, averaged over
pairs of seeds; ``seconds``, CPU-seconds that the weights had.

Every finished supergraph is a line of alpha_agreement_pieces.jsonl beside the table; started again, the script goes on.

    python -m benchmarks.alpha_agreement --data-dir DIR
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nas
from benchmarks.ledger import Ledger
from benchmarks.tables import parser, write_table
from nas.process import tune_process
from recipes.datasets import Dataset, load_dataset
from recipes.sources import Source
from search_spaces.seeding import numpy_rng, stream_seed
from search_spaces.space import SearchSpace
from supernets.config import SearchConfig, preset
from supernets.gumbel import gumbel_noise
from supernets.supergraph import Supergraph

SPACE, DATA = "cifar", "cifar10"
# Changes to the configuration of a search, and steps of the weights: about as many CPU-seconds for each setting.
SETTINGS: dict[str, tuple[dict[str, Any], int]] = {
    "warm": ({"tau_start": 4.0, "share_blocks": False}, 250),
    "cold masks": ({"tau_start": 4.0, "mask_tau": 0.7, "share_blocks": False}, 250),
    "cold": ({"tau_start": 0.7, "share_blocks": False}, 250),
    "cold, shared blocks": ({"tau_start": 0.7, "share_blocks": True}, 1000),
}
KINDS = ("block", "expansion", "width")
Floats = npt.NDArray[np.float64]


class Trial:
    """A supergraph whose alpha stays at zero, and its images: one part for the weights, another for alpha's gradient."""

    def __init__(self, space: SearchSpace, dataset: Dataset, config: SearchConfig) -> None:
        self.space, self.config = space, config
        self.supergraph = Supergraph(
            space, dataset.num_classes, dataset.in_channels, seed=config.seed, share_blocks=config.share_blocks
        )
        self.supergraph.to(memory_format=torch.channels_last)
        order = numpy_rng(0, "alpha agreement").permutation(len(dataset.train))
        first = round(config.weights_share * (config.images or len(order)))
        self.weights_images = dataset.train.subset(order[:first])
        self.alpha_images = dataset.train.subset(order[first : 2 * first])
        self.generator = torch.Generator().manual_seed(stream_seed(config.seed, "noise"))

    def train(self, steps: int) -> float:
        """So many steps of the weights; the mean loss of the last tenth."""
        self.supergraph.alpha.requires_grad_(False)
        parameters = self.supergraph.network_parameters()
        config, losses = self.config, list[float]()
        optimizer = torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        for images, labels in itertools.islice(self._batches(self.weights_images, "weights"), steps):
            loss = self._loss(images, labels)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(parameters, config.clip_grad_norm)
            optimizer.step()
            losses.append(float(loss.detach()))
        return float(np.mean(losses[-max(1, steps // 10) :]))

    def gradients(self, batches: int) -> Floats:
        """Of alpha in so many batches, `(batches, sum of options)`."""
        for parameter in self.supergraph.network_parameters():
            parameter.requires_grad_(False)
        alpha = self.supergraph.alpha.requires_grad_(True)
        found = []
        for images, labels in itertools.islice(self._batches(self.alpha_images, "alpha"), batches):
            (gradient,) = torch.autograd.grad(self._loss(images, labels), alpha)
            found.append(gradient.double().numpy())
        return np.stack(found)

    def _batches(self, source: Source, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        side = int(max(self.space.resolution.options))
        for epoch in itertools.count():
            rng = numpy_rng(self.config.seed, f"{name} batches", epoch)
            yield from source.batches(self.config.batch_size, resolution=side, rng=rng, augment=True, drop_last=True)

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        resolution = self.space.resolution
        weights = self.supergraph.weights(
            self.config.tau_start,
            gumbel_noise(len(self.supergraph.alpha), self.generator),
            committed={resolution.name: len(resolution.options) - 1},
            mask_tau=self.config.mask_tau,
        )
        return F.cross_entropy(self.supergraph(images, weights), labels)


def by_kind(space: SearchSpace, values: npt.ArrayLike) -> dict[str, list[Floats]]:
    """Entries of a vector as long as alpha, a part for every choice, by kind of choice."""
    parts = np.split(np.asarray(values, dtype=np.float64), np.cumsum(space.option_counts)[:-1])
    found: dict[str, list[Floats]] = {kind: [] for kind in KINDS}
    for variable, part in zip(space.variables, parts, strict=True):
        kind = variable.name.split(".")[-1]
        if kind in found:
            found[kind].append(part)
    return found


def agreement(space: SearchSpace, gradients: Iterable[npt.ArrayLike]) -> dict[str, float]:
    """By kind of choice: correlation of two supergraphs' mean gradients, averaged over pairs of ``gradients`` `(options,)`.

    Of every choice the mean is taken out: no choice sees it, as softmax does not.
    """
    centred = [
        {kind: np.concatenate([part - part.mean() for part in parts]) for kind, parts in by_kind(space, one).items()}
        for one in gradients
    ]
    pairs = list(itertools.combinations(centred, 2))
    return {kind: float(np.mean([np.corrcoef(a[kind], b[kind])[0, 1] for a, b in pairs])) for kind in KINDS}


def table(space: SearchSpace, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Lines of the table, of the pieces of every setting."""
    lines = []
    for setting, pieces in found.items():
        agreed = agreement(space, [piece["gradient"] for piece in pieces])
        for kind in KINDS:
            t = [
                abs(np.concatenate(by_kind(space, piece["gradient"])[kind]))
                / np.concatenate(by_kind(space, piece["error"])[kind])
                for piece in pieces
            ]
            lines.append({
                "setting": setting, "choice": kind, "t": np.mean(t), "correlation": agreed[kind],
                "loss": np.mean([piece["loss"] for piece in pieces]),
                "seconds": np.mean([piece["seconds"] for piece in pieces]), "supergraphs": len(pieces),
            })  # fmt: skip
    return lines


def main() -> None:
    """Train supergraphs, print and write the table."""
    options = parser(__doc__)
    options.add_argument("--data-dir", type=Path, default=None)
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--batches", type=int, default=60, help="of alpha's gradient")
    arguments = options.parse_args()
    tune_process()
    torch.set_num_threads(1)
    space, dataset = nas.load_space(SPACE), load_dataset(DATA, arguments.data_dir)
    ledger = Ledger(arguments.out / "alpha_agreement_pieces.jsonl")
    found: dict[str, list[Any]] = {setting: [] for setting in SETTINGS}
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    for (setting, (changes, steps)), seed in itertools.product(SETTINGS.items(), seeds):
        key = {**changes, "seed": seed, "steps": steps, "batches": arguments.batches}
        if key not in ledger:
            trial = Trial(space, dataset, preset(DATA, **changes, seed=seed))
            started = time.process_time()
            loss, seconds = trial.train(steps), time.process_time() - started
            gradients = trial.gradients(arguments.batches)
            error = gradients.std(axis=0, ddof=1) / len(gradients) ** 0.5
            gradient = gradients.mean(axis=0).tolist()
            ledger.add(key, {"loss": loss, "seconds": seconds, "gradient": gradient, "error": error.tolist()})
            print(f"{len(ledger)} supergraphs done", flush=True)
        found[setting].append(ledger[key])
    write_table(table(space, found), arguments.out / "alpha_agreement.csv")


if __name__ == "__main__":
    main()
