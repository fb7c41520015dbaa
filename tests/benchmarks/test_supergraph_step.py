"""The measurement of a supergraph step: what is run, on the smallest space."""

import math

import torch

from benchmarks.supergraph_step import (
    ALL,
    BLOCKS,
    LARGEST,
    MORE_RESOLUTIONS,
    SETTINGS,
    at_resolutions,
    blocks_alone,
    measure,
    operators,
    prepared_steps,
    widest_row,
)
from search_spaces.small import digits

SPACE = at_resolutions(digits(), (8, 12))


def test_the_space_keeps_all_but_its_resolutions() -> None:
    assert SPACE.resolution.options == (8, 12)
    assert [slot.width for slot in SPACE.slots] == [slot.width for slot in digits().slots]


def test_widest_rows_have_the_last_options_and_one_block_type() -> None:
    row = widest_row(SPACE, block=1)
    for variable, option in zip(SPACE.variables, row, strict=True):
        blocks = {slot.block.name for slot in SPACE.slots}
        assert option == (1 if variable.name in blocks else len(variable.options) - 1)


def test_every_candidate_block_runs_once_at_every_resolution() -> None:
    expected = 2 * (2 + sum(len(slot.block.options) for slot in SPACE.slots))
    assert len(list(blocks_alone(SPACE, 2, torch.device("cpu")))) == expected


def test_a_line_a_setting_and_reference() -> None:
    settings = {**SETTINGS, **MORE_RESOLUTIONS}
    cpu = torch.device("cpu")
    steps, network_step = prepared_steps(SPACE, settings, 2, cpu, seed=0)
    measured = measure(steps, network_step, list(blocks_alone(SPACE, 2, cpu)), 1, cpu)
    lines = {line["what"]: line for line in measured}
    assert set(lines) == {*settings, BLOCKS, LARGEST}
    assert lines[BLOCKS]["over_blocks_alone"] == lines[LARGEST]["over_largest_network"] == lines[ALL]["over_all"] == 1
    assert all(math.isfinite(lines[name]["alpha_over_weights"]) for name in settings)
    saved = {name: lines[name]["saved_mib"] for name in settings}
    assert saved["two sampled"] < saved["shared pointwise"] < saved[ALL]
    assert saved["recomputed resolutions"] < saved[ALL]


def test_operators_are_those_of_a_step() -> None:
    cpu = torch.device("cpu")
    steps, _ = prepared_steps(SPACE, {ALL: SETTINGS[ALL]}, 2, cpu, seed=0)
    lines = operators(steps[ALL], cpu, most=100_000)
    shares = [line["share"] for line in lines]
    assert shares == sorted(shares, reverse=True) and math.isclose(sum(shares), 1)
    assert {"aten::convolution_backward", "aten::native_batch_norm_backward"} <= {line["operator"] for line in lines}
    assert len(operators(steps[ALL], cpu, most=3)) == 3
