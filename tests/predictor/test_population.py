import numpy as np
import pytest

from predictor.candidates import Candidates
from predictor.population import EvolutionConfig, breed
from search_spaces.variables import Choice, Range, VariableSet

VARIABLES = VariableSet([(Choice if i % 2 else Range)(f"v{i}", tuple(range(2 + i % 6))) for i in range(20)])
BEST, AVERAGE = 10.0, 4.0


@pytest.mark.parametrize(
    ("fitness", "changes", "expected"),
    [
        (1.0, 3.0, 3.0),  # below the average: k4 x changes / k4
        (AVERAGE, 3.0, 3.0),  # the quotient (f_max - f) / (f_max - f_avg) is 1
        (7.0, 3.0, 1.5),  # half of it
        (BEST, 3.0, 1.0),  # 0 of it, and one variable is expected to change at least
        (9.0, 3.0, 1.0),  # 0.5, likewise
        (1.0, None, 10.0),  # k4 = 0.5 for every single variable
        (7.0, None, 5.0),
    ],
)
def test_expected_number_of_changes(fitness: float, changes: float | None, expected: float) -> None:
    """X, a binomial of d = 20 and p = expected / d, of which 0 becomes 1; bounds are 4 standard errors.

    With q = (1 - p)^d the mean is d p + q and the mean square d p (1 - p) + (d p)^2 + q: 3.039 changes for parents below the
    average and 1.358 for the best one.
    """
    d, n = len(VARIABLES), 20_000
    rng = np.random.default_rng(1)
    candidates = Candidates(VARIABLES, np.zeros_like, quantities={}, limits={}, fixed=None, canonical=None, seed=0)
    row = rng.integers(0, VARIABLES.option_counts)
    config = EvolutionConfig(changes=changes, k1=0.0, k3=0.0)  # no crossover
    rows = np.stack([row, (row + 1) % VARIABLES.option_counts])
    parent, mate = np.zeros(n, dtype=np.int64), np.ones(n, dtype=np.int64)
    children = breed(candidates, rows, np.array([fitness, 5.0]), BEST, AVERAGE, parent, mate, config, rng)
    changed = (children != row).sum(axis=1)
    p = expected / d
    none = (1 - p) ** d
    mean = d * p + none
    variance = d * p * (1 - p) + (d * p) ** 2 + none - mean**2
    assert abs(changed.mean() - mean) < 4 * (variance / n) ** 0.5
    assert changed.min() >= 1
