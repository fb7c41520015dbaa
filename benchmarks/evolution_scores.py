"""Made-up scores and spaces on which the evolutionary search is measured (`benchmarks.evolution`).

Three kinds of scores: ``network``, a random network over the options of a row, of a predictor's width; ``rugged``, the same
plus random pairwise terms; and ``predictor``, a real `Predictor` fitted to made-up accuracies.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from predictor.fit import fit
from predictor.pool import POOL_FLOPS, sobol_pool
from predictor.predictor import Predictor
from predictor.pretrain import pretrain
from predictor.quantities import SpaceQuantities
from recipes.space import JointSpace, load_joint
from search_spaces.sampling import uniform_rows
from search_spaces.variables import Choice, Range, Rows, Variable, VariableSet

Scores = npt.NDArray[np.float64]
RowFunction = Callable[[Rows], npt.ArrayLike]
KINDS = ("network", "rugged", "predictor")
LABELS = 240  # five rounds of 48
NUM_CLASSES = 1000
MOST_ROWS = 1_000_000  # of a space that is enumerated
CHUNK = 1 << 16


class RandomScore:
    """A two-layer network over embeddings of the options, summed table by table; plus pairwise terms where rugged.

    Args:
        variables: of the rows.
        seed: of all weights.
        rugged: size of the pairwise terms beside the network's.
        width: of both layers.
    """

    def __init__(self, variables: VariableSet, seed: int, *, rugged: float = 0.0, width: int = 24) -> None:
        rng, d = np.random.default_rng(seed), len(variables)
        tables = [
            rng.normal(size=(len(v.options), width))
            if isinstance(v, Choice)
            else 2.0 * np.linspace(0, 1, len(v.options))[:, None] * rng.normal(size=width)
            for v in variables.variables
        ]
        self.table = (np.concatenate(tables) * (2.0 / np.sqrt(d))).astype(np.float32)
        self.offsets = np.cumsum([0, *variables.option_counts[:-1]])
        self.hidden = rng.normal(0, 1.5 / np.sqrt(width), size=(width, width)).astype(np.float32)
        self.biases = rng.normal(0, 0.3, size=(2, width)).astype(np.float32)
        self.out = rng.normal(0, 1.5 / np.sqrt(width), size=width).astype(np.float32)
        pairs = [(i, j) for i in range(d) for j in range(i)]
        chosen = [pairs[k] for k in rng.permutation(len(pairs))[: 150 if rugged else 0]]
        counts, scale = variables.option_counts, rugged / np.sqrt(max(1, len(chosen)))
        self.pairs = [(i, j, rng.normal(0, scale, size=(counts[i], counts[j]))) for i, j in chosen]

    def __call__(self, rows: Rows) -> Scores:
        """`(n, d)` to `(n,)`."""
        index = rows + self.offsets
        embedded = self.table.take(index[:, 0], axis=0) + self.biases[0]
        for column in range(1, index.shape[1]):
            embedded += self.table.take(index[:, column], axis=0)
        hidden = np.maximum(embedded, 0, out=embedded) @ self.hidden + self.biases[1]
        total: Scores = (np.maximum(hidden, 0, out=hidden) @ self.out).astype(np.float64)
        for i, j, table in self.pairs:
            total += table[rows[:, i], rows[:, j]]
        return total


def random_score(variables: VariableSet, kind: str, seed: int) -> RandomScore:
    """A score of the kind ``network`` or ``rugged``; pairs weigh more where few variables are."""
    rugged = 0.0 if kind == "network" else 1.5 if len(variables) < 20 else 1.0
    return RandomScore(variables, seed, rugged=rugged)


class JointFBNetV3:
    """The joint space of thesis Table 4.2 with 1000 classes; FLOPs and canonical rows by look-up, as in a query."""

    def __init__(self) -> None:
        self.space: JointSpace = load_joint("fbnetv3")
        quantities = SpaceQuantities(self.space, num_classes=NUM_CLASSES)
        assert quantities.canonical is not None
        self.quantities, self.canonical = quantities, quantities.canonical
        self.flops, self.params = quantities.functions["flops"], quantities.functions["params"]

    def random_rows(self, n: int) -> Rows:
        """`(n, d)` canonical."""
        return self.canonical(uniform_rows(self.space, n, np.random.default_rng(0)))

    def spread(self, score: RowFunction) -> float:
        """Largest minus smallest score of 20000 random rows."""
        scores = np.asarray(score(self.random_rows(20_000)))
        return float(scores.max() - scores.min())

    def predict(self, predictor: Predictor, rows: Rows) -> Scores:
        """Predicted accuracies `(n,)`; FLOPs and parameters, which the predictor reads, are counted once for each row."""
        return predictor.predict(rows, {"flops": self.flops(rows), "params": self.params(rows)})

    def score(self, kind: str, seed: int) -> Callable[[Rows], Scores]:
        """A score of any kind."""
        if kind != "predictor":
            return random_score(self.space, kind, seed)
        predictor = self.predictor(seed)
        return lambda rows: self.predict(predictor, rows)

    def predictor(self, seed: int) -> Predictor:
        """A predictor at default settings, pretrained, then fitted to made-up accuracies of 240 candidates of a Sobol pool."""
        pretrained = pretrain(self.space, flops=POOL_FLOPS, num_classes=NUM_CLASSES, seed=seed)
        rows = sobol_pool(self.space, LABELS, {"flops": POOL_FLOPS}, num_classes=NUM_CLASSES, seed=seed + 1)
        return fit(self.space, rows, self.made_up_accuracies(rows, seed), seed=seed, pretrained=pretrained)

    def made_up_accuracies(self, rows: Rows, seed: int) -> Scores:
        """Percent `(n,)`: 3 points for twice the FLOPs at first, some for every option, a best recipe that moves with FLOPs.

        The standard deviation of the noise is 0.15 points.
        """
        rng, encoded = np.random.default_rng(seed), self.space.encode(rows).astype(np.float64)
        doublings = np.log2(np.asarray(self.flops(rows)) / 550e6)
        options = (encoded - encoded.mean(axis=0)) @ rng.normal(0, 0.08, size=encoded.shape[1])
        recipe = encoded[:, -4:]  # dropout, stochastic depth, mixup, weight decay
        best = rng.uniform(0.2, 0.6, size=4) + np.outer(doublings, rng.uniform(0, 0.5, size=4))
        accuracy = 78 + 3 * doublings - doublings**2 + options - ((recipe - best) ** 2).sum(axis=1)
        return np.asarray(accuracy + rng.normal(0, 0.15, size=len(rows)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Enumerated:
    """A search whose every candidate can be looked at.

    Attributes:
        kind: of the score; ``fbnetv3`` for a predictor of the joint space of which few variables are free.
        variables: of a row.
        score: rows `(n, d)` to scores `(n,)`.
        cost: rows to the limited quantity `(n,)`.
        rows: `(m, d)` all of them, at most a million.
        canonical: rows to rows; None where every row stands for itself.
        fixed: option index by variable name.
    """

    kind: str
    variables: VariableSet
    score: RowFunction
    cost: RowFunction
    rows: Rows
    canonical: Callable[[Rows], Rows] | None = None
    fixed: dict[str, int] = field(default_factory=dict)

    def everything(self) -> tuple[Scores, Scores]:
        """Scores and costs `(m,)` of all rows."""
        chunks = [self.rows[start : start + CHUNK] for start in range(0, len(self.rows), CHUNK)]
        scores, costs = ([np.asarray(f(chunk), dtype=np.float64) for chunk in chunks] for f in (self.score, self.cost))
        return np.concatenate(scores), np.concatenate(costs)


def small_space(kind: str, seed: int) -> Enumerated:
    """Variables of 2 to 12 options, choices and ranges, with a score and an additive cost that rises with every option."""
    rng, size = np.random.default_rng(seed), 1
    made: list[Variable] = []
    while size * (count := int(rng.choice([2, 3, 4, 5, 8, 12]))) <= MOST_ROWS:
        made.append((Choice if rng.random() < 0.5 else Range)(f"v{len(made)}", tuple(range(count))))
        size *= count
    variables = VariableSet(made)
    costs = [1e3 * np.sort(rng.integers(1, 1000, size=count)) for count in variables.option_counts]

    def cost(rows: Rows) -> Scores:
        return np.asarray(np.sum([own[rows[:, column]] for column, own in enumerate(costs)], axis=0))

    rows = np.indices([*map(int, variables.option_counts)]).reshape(len(variables), -1).T.astype(np.int64)
    score: RowFunction = random_score(variables, "rugged" if kind == "predictor" else kind, seed)
    if kind == "predictor":
        score = _fitted(variables, score, seed).predict
    return Enumerated(kind=kind, variables=variables, score=score, cost=cost, rows=rows)


def _fitted(variables: VariableSet, score: RowFunction, seed: int) -> Predictor:
    """A predictor fitted to 240 values of a score: mean 75 percent, standard deviation 2, noise 0.15."""
    rng = np.random.default_rng(seed)
    rows = np.unique(uniform_rows(variables, 2 * LABELS, rng), axis=0)
    rows = rng.permutation(rows)[:LABELS]
    values = np.asarray(score(rows))
    accuracies = 75 + 2 * (values - values.mean()) / values.std() + rng.normal(0, 0.15, size=len(rows))
    return fit(variables, rows, accuracies, seed=seed)


def part_of_fbnetv3(joint: JointFBNetV3, seed: int) -> Enumerated:
    """A random candidate of which as many random variables are free as leave a million rows at most; a real predictor."""
    rng, space, predictor = np.random.default_rng(seed), joint.space, joint.predictor(seed)
    row, free, size = rng.integers(0, space.option_counts), list[int](), 1
    for column in rng.permutation(len(space)):
        if size * space.option_counts[column] <= MOST_ROWS:
            free.append(int(column))
            size *= int(space.option_counts[column])
    rows = np.repeat(row[None], size, axis=0)
    rows[:, free] = np.indices([int(space.option_counts[column]) for column in free]).reshape(len(free), -1).T
    fixed = {v.name: int(row[column]) for column, v in enumerate(space.variables) if column not in free}
    return Enumerated(
        kind="fbnetv3", variables=space, score=lambda rows: joint.predict(predictor, rows), cost=joint.flops,
        rows=joint.canonical(rows), canonical=joint.canonical, fixed=fixed,
    )  # fmt: skip
