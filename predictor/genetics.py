"""Operators of the adaptive genetic algorithm on rows of option indices, vectorised over candidates.

Probabilities of Srinivas and Patnaik, "Adaptive probabilities of crossover and mutation in genetic algorithms", IEEE
Transactions on Systems, Man and Cybernetics 24(4), 1994: both fall to 0 for the best candidate of a population and stay high
for those below the average, so good candidates are kept while poor ones are used to explore.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.variables import Range, VariableSet

Scores = npt.NDArray[np.float64]
Options = npt.NDArray[np.integer[Any]]  # rows, of any integer type


def adaptive_probability(
    fitness: Scores, best: Scores | float, average: Scores | float, above: float, below: float
) -> Scores:
    """Crossover or mutation probability of each candidate.

    ``above * (f_max - f) / (f_max - f_avg)`` where f >= f_avg, else ``below`` (Srinivas & Patnaik 1994): for crossover with
    k1, k3 and the fitter parent's f', for mutation with k2, k4 and the candidate's own f. Where f_max = f_avg the quotient has
    no value; it is taken as 1, as for a candidate of average fitness.

    Args:
        fitness: `(n,)` f, higher is better.
        best: f_max of the population; `(n,)` where candidates belong to different ones.
        average: f_avg of the population; likewise.
        above: k1 or k2, for candidates not below the average.
        below: k3 or k4, for the others.

    Returns:
        `(n,)` in [0, max(above, below)].
    """
    width = np.asarray(best - average, dtype=np.float64)
    flat = width <= 0
    quotient = np.where(flat, 1.0, (best - fitness) / np.where(flat, 1.0, width))
    falling = above * np.minimum(np.maximum(quotient, 0.0), 1.0)
    return np.where((fitness >= average) | flat, falling, below)


def crossover(first: Options, second: Options, probability: Scores, rng: np.random.Generator) -> Options:
    """Uniform crossover: with its probability a pair is mixed, every variable then coming from either parent alike.

    Args:
        first: `(n, d)` what the children are without crossover.
        second: `(n, d)` the mates.
        probability: `(n,)`.
        rng: of the draws.

    Returns:
        `(n, d)`, a new array.
    """
    mixed = (rng.random(len(first)) < probability).view(np.uint8)
    bits = np.frombuffer(rng.bytes(-(-first.size // 8)), dtype=np.uint8)
    from_second = np.unpackbits(bits, count=first.size).reshape(first.shape)
    from_second &= mixed[:, None]
    child = first ^ second
    child *= from_second
    child ^= first  # a third of np.where's time
    return child


class Mutation:
    """Changes of single variables: a `Choice` jumps to any other option, a `Range` also steps to a neighbour.

    Args:
        variables: of the rows.
        free: `(d,)` bool, which variables may change.
    """

    def __init__(self, variables: VariableSet, free: npt.NDArray[np.bool_]) -> None:
        self.counts = variables.option_counts
        ordered = [isinstance(variable, Range) and len(variable.options) > 2 for variable in variables.variables]
        self.draws_end = np.where(ordered, 2.0, 1.0)
        self.columns = np.flatnonzero(free & (self.counts > 1))

    def __call__(self, rows: Options, probability: Scores, rng: np.random.Generator, *, at_least_one: bool) -> Options:
        """Every free variable changes with its row's probability.

        Args:
            rows: `(n, d)`.
            probability: `(n,)` of each single variable.
            rng: of the draws.
            at_least_one: whether a row left alone has one variable changed after all.

        Returns:
            `(n, d)`, a new array.
        """
        mutated = np.array(rows, order="C")
        d, k = len(self.counts), len(self.columns)
        if not k:
            return mutated
        # 16-bit draws are faster than floats; a probability is off by less than 2^-16.
        draws = rng.integers(0, 1 << 16, size=(len(rows), k), dtype=np.uint16)
        threshold = np.minimum(np.ceil(probability * (1 << 16)), (1 << 16) - 1).astype(np.uint16)
        place = np.flatnonzero(draws < threshold[:, None])  # among the columns that may change
        if at_least_one:
            alone = np.flatnonzero(np.bincount(place // k, minlength=len(rows)) == 0)
            place = np.concatenate([place, alone * k + rng.integers(0, k, size=len(alone))])
        column = self.columns[place % k]
        if k < d:
            place = place // k * d + column
        flat = mutated.reshape(-1)
        flat[place] = self.another(flat[place].astype(np.int64), column, rng)
        return mutated

    def another(
        self, option: npt.NDArray[np.int64], column: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        """Another option than ``option`` `(m,)` of the variables ``column`` `(m,)`.

        Half of the changes of an ordered variable go one step up or down, all others to any other option alike.
        """
        last = self.counts[column] - 1
        draw = rng.random(len(option)) * self.draws_end[column]
        steps = np.flatnonzero(draw >= 1.0)
        draw[steps] -= 1.0
        other = (draw * last).astype(np.int64)
        other += other >= option
        here = option[steps]
        down = (draw[steps] < 0.5) & (here > 0) | (here == last[steps])
        other[steps] = np.where(down, here - 1, here + 1)
        return other
