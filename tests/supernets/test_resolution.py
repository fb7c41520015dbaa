import pytest
import torch

from supernets.resolution import scatter_add, scatter_back, subsample, subsample_index

CASES = [(8, 8), (8, 4), (9, 4), (11, 7), (16, 13), (5, 1)]


@pytest.mark.parametrize(("full", "reduced"), CASES)
def test_index_is_floor_of_i_times_ratio(full: int, reduced: int) -> None:
    index = subsample_index(full, reduced).tolist()
    assert index == [int(i * full / reduced + 1e-9) for i in range(reduced)]
    assert len(set(index)) == reduced


@pytest.mark.parametrize("reduced", [0, 9])
def test_index_refuses_impossible_sides(reduced: int) -> None:
    with pytest.raises(ValueError, match="no subsample"):
        subsample_index(8, reduced)


@pytest.mark.parametrize(("full", "reduced"), CASES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_subsample_and_scatter_match_loops(full: int, reduced: int, memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 3, full, full).to(memory_format=memory_format)
    small, back, total = torch.zeros(2, 3, reduced, reduced), torch.zeros(2, 3, full, full), x.clone()
    for i in range(reduced):
        for j in range(reduced):
            row, column = i * full // reduced, j * full // reduced
            small[:, :, i, j] = x[:, :, row, column]
            back[:, :, row, column] = 2 * small[:, :, i, j]
            total[:, :, row, column] += 2 * small[:, :, i, j]
    assert torch.equal(subsample(x, reduced), small)
    assert torch.equal(scatter_back(2 * subsample(x, reduced), full), back)
    torch.testing.assert_close(scatter_add(x, 2 * subsample(x, reduced)), total)


def test_fig_3_5_only_common_pixels_are_contaminated() -> None:
    """An 8x8 map's 4x4 and 2x2 subsamples meet in the four corners of the 2x2 grid only."""
    four, two = torch.ones(1, 1, 4, 4), torch.full((1, 1, 2, 2), 10.0)
    both = scatter_add(scatter_back(four, 8), two)[0, 0]
    assert (both == 11).sum() == 4
    assert (both == 1).sum() == 12
    assert (both == 0).sum() == 48
    assert both[0, 0] == both[0, 4] == both[4, 0] == both[4, 4] == 11


def test_gradients_pass_through_both_ways() -> None:
    x = torch.randn(1, 2, 7, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: scatter_add(t, subsample(t, 5) ** 2), (x,))
