"""The memory of masked channels: what the table of `benchmarks.masking_growth` says, held by a test."""

from benchmarks.masking_growth import Step
from benchmarks.memory import saved_bytes


def test_32_channel_options_keep_at_most_a_hundredth_more_than_one() -> None:
    one, many = (Step(options, batch=16, seed=0) for options in (1, 32))
    assert len(many.supergraph.space) > len(one.supergraph.space)
    assert saved_bytes(many.loss, many.supergraph) <= 1.01 * saved_bytes(one.loss, one.supergraph)
