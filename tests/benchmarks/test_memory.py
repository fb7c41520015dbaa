import torch
from torch import nn

from benchmarks.memory import peak_bytes, saved_bytes, storage_bytes

FLOATS = 1 << 18  # of one tensor, 1 MiB


def test_saved_bytes_are_those_of_the_two_results_that_exp_keeps() -> None:
    module = nn.Linear(FLOATS, 1, bias=False)  # its product keeps its weight, which does not count, and its input
    x = torch.zeros(FLOATS, requires_grad=True)
    assert saved_bytes(lambda: module((x.exp() + 1).exp()), module) == 2 * 4 * FLOATS


def test_a_storage_counts_once() -> None:
    x = torch.zeros(6)
    assert storage_bytes([x, x[2:], x.view(2, 3), torch.zeros(2)]) == 4 * 6 + 4 * 2


def test_peak_is_of_what_lives_at_a_time() -> None:
    kept = [torch.zeros(FLOATS)]

    def step() -> None:
        first, second = torch.zeros(FLOATS), torch.zeros(FLOATS)
        del first
        third = torch.zeros(FLOATS)
        kept.append(second + third)  # three at a time

    found = peak_bytes(step, torch.device("cpu"))
    assert 3 * 4 * FLOATS <= found < 3.1 * 4 * FLOATS
