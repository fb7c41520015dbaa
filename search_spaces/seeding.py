"""Independent random streams derived by name from one seed, so that resuming needs no replay.

Every consumer of randomness names its stream; the same (seed, stream, indices) always gives the same numbers, whatever
was drawn elsewhere before.
"""

import zlib

import numpy as np


def _sequence(seed: int, stream: str, *indices: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(zlib.crc32(stream.encode()), *indices))


def numpy_rng(seed: int, stream: str, *indices: int) -> np.random.Generator:
    """Generator of the stream ``stream`` at ``indices`` (for example epoch, step, rank)."""
    return np.random.default_rng(_sequence(seed, stream, *indices))


def stream_seed(seed: int, stream: str, *indices: int) -> int:
    """A 63-bit integer seed of the stream, for libraries that take an integer (``torch.Generator.manual_seed``)."""
    return int(_sequence(seed, stream, *indices).generate_state(1, np.uint64)[0] >> np.uint64(1))
