import random
from collections.abc import Callable

import numpy as np
import pytest

from search_spaces.seeding import numpy_rng, stream_seed

CODE = """
import random
import numpy as np
from search_spaces.seeding import numpy_rng, stream_seed
np.random.seed(5)
random.seed(5)
print(numpy_rng(3, "weights", 2, 1).integers(0, 2**62, 4).tolist(), stream_seed(3, "weights", 2, 1), hash("weights"))
"""


def test_streams_are_the_same_in_other_processes(fresh_python: Callable[[str], str]) -> None:
    here = f"{numpy_rng(3, 'weights', 2, 1).integers(0, 2**62, 4).tolist()} {stream_seed(3, 'weights', 2, 1)}"
    outputs = [fresh_python(CODE).rsplit(maxsplit=1) for _ in range(2)]
    assert [numbers for numbers, _ in outputs] == [here, here]
    assert outputs[0][1] != outputs[1][1]  # string hashes do differ, so a stream must not hang on them


def test_sobol_pools_are_the_same_in_other_processes(fresh_python: Callable[[str], str]) -> None:
    from search_spaces.sampling import sobol_rows
    from search_spaces.spaces import SPACES

    code = (
        "from search_spaces.sampling import sobol_rows; from search_spaces.spaces import SPACES; "
        "print(sobol_rows(SPACES['digits'](), 9, seed=2).tolist())"
    )
    assert fresh_python(code).strip() == str(sobol_rows(SPACES["digits"](), 9, seed=2).tolist())


def test_streams_differ_by_seed_name_and_index() -> None:
    keys = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)]
    assert len({stream_seed(*key) for key in keys}) == len(keys)
    assert len({tuple(numpy_rng(*key).integers(0, 2**62, 2)) for key in keys}) == len(keys)


def test_stream_seeds_fit_63_bits_and_use_them() -> None:
    seeds = [stream_seed(seed, "x") for seed in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62  # misses with probability 2^-200


def test_global_random_state_is_neither_read_nor_written() -> None:
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    first, states = stream_seed(4, "y"), (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    numpy_rng(4, "y").random(10)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert stream_seed(4, "y") == first


def test_negative_seeds_are_refused() -> None:
    with pytest.raises(ValueError):
        numpy_rng(-1, "x")
