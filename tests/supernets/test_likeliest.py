import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from small_spaces import three_layers

from nas.loading import load_space
from search_spaces.blocks import InvertedResidual
from search_spaces.network import build
from search_spaces.rows import Row, space_of_rows
from search_spaces.sampling import sobol_rows
from search_spaces.space import BLOCK_TYPES, PoolHead, SearchSpace, Slot, Stem, constant
from search_spaces.variables import Choice, Range, Rows
from supernets.likeliest import count_residuals, likeliest_row, smoothed


def random_logits(space: SearchSpace, seed: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=int(space.option_counts.sum()))


def parts(space: SearchSpace, alpha: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
    return np.split(alpha, np.cumsum(space.option_counts)[:-1])


def plain_argmax(space: SearchSpace, alpha: npt.NDArray[np.float64]) -> Rows:
    return np.array([part.argmax() for part in parts(space, alpha)])


def residuals(space: SearchSpace, row: Rows) -> int:
    """As the built network has them."""
    blocks = build(space.decode(row), num_classes=4, in_channels=3).blocks
    return sum(isinstance(block, InvertedResidual) and block.residual for block in blocks)


def brute_force(space: SearchSpace, alpha: npt.NDArray[np.float64], residual: float) -> tuple[float, Rows]:
    """The best value and row of all that differ from the plain argmax in widths alone."""
    free = {slot.width.name for slot in space.slots} | {space.stem.width.name}
    best, chosen = -np.inf, plain_argmax(space, alpha)
    options = [
        range(count) if variable.name in free else [int(chosen[column])]
        for column, (variable, count) in enumerate(zip(space.variables, space.option_counts, strict=True))
    ]
    for row in map(np.array, itertools.product(*options)):
        logits = sum(part[option] for part, option in zip(parts(space, alpha), row, strict=True))
        value = logits + residual * residuals(space, row)
        if value > best + 1e-9:
            best, chosen = value, row
    return best, chosen


def in_a_row() -> SearchSpace:
    """Three layers of one width choice between two others, a stem that has a choice, and widths that build alike."""
    middle = Choice("middle", (15, 16, 24))
    first, last = Choice("first", (8, 16)), Choice("last", (16, 24, 32))
    block = [Choice(f"block{i}", (BLOCK_TYPES["ir_k3"], BLOCK_TYPES["skip"])) for i in range(5)]
    expansion = constant("expansion", 2.0)
    widths = (first, middle, middle, middle, last)
    slots = [
        Slot(block=own, expansion=expansion, width=width, stride=2 if i == 2 else 1)
        for i, (own, width) in enumerate(zip(block, widths, strict=True))
    ]
    return SearchSpace(
        "in a row", resolution=Range("resolution", (16,)), stem=Stem(width=Choice("stem", (8, 16))), slots=slots,
        head=PoolHead(out_channels=16), round_widths=True,
    )  # fmt: skip


@pytest.mark.parametrize("make", [three_layers, in_a_row])
@pytest.mark.parametrize("residual", [0.0, 0.4, 3.0])
def test_widths_are_the_best_of_all(make: Callable[[], SearchSpace], residual: float) -> None:
    space = make()
    for seed in range(4):
        alpha = random_logits(space, seed)
        value, row = brute_force(space, alpha, residual)
        found = likeliest_row(space, alpha, residual=residual)
        logits = sum(part[option] for part, option in zip(parts(space, alpha), found, strict=True))
        assert logits + residual * residuals(space, found) == pytest.approx(value, abs=1e-9)
        assert found.tolist() == row.tolist()


def test_nothing_for_residuals_is_the_plain_argmax() -> None:
    for space in (three_layers(), in_a_row()):
        alpha = random_logits(space, 5)
        assert likeliest_row(space, alpha).tolist() == plain_argmax(space, alpha).tolist()


def test_hand_worked_case() -> None:
    """Widths 8, 8, then 24 for 0.5 more than 8: worth it against 0.4 for a residual, not against 0.6."""
    layer = Row(block=("ir_k3",), expansion=(2.0,), width=(8, 24))
    space = space_of_rows("hand", [layer, layer], resolutions=(16,), stem_width=8, head_width=8)
    alpha = np.array([1.0, 0.0, 0.0, 0.5])
    assert likeliest_row(space, alpha, residual=0.4).tolist() == [0, 1]
    assert likeliest_row(space, alpha, residual=0.6).tolist() == [0, 0]


def test_sizes_are_read_by_their_mean() -> None:
    """The largest smoothed logit is the option next to the mean; block types keep theirs."""
    space = load_space("fbnetv3-cifar")
    alpha = random_logits(space, 0)
    for variable, own, found in zip(
        space.variables, parts(space, alpha), parts(space, smoothed(space, alpha)), strict=True
    ):
        if variable.options[0] in BLOCK_TYPES.values():
            assert found.tolist() == own.tolist()
        else:
            weights = [math.exp(logit) for logit in own]
            mean = sum(place * weight for place, weight in enumerate(weights)) / sum(weights)
            assert found.argmax() == min(range(len(own)), key=lambda place: abs(place - mean))


def test_smoothed_logits_are_those_of_a_normal_distribution_with_the_same_moments() -> None:
    space = space_of_rows(
        "hand", [Row(block=("ir_k3",), expansion=(2.0,), width=(8, 16, 24))], resolutions=(16,), stem_width=8, head_width=8
    )  # fmt: skip
    for alpha, mean, variance in (
        ([0.0, 0.0, 0.0], 1.0, 2 / 3), ([math.log(2), 0.0, 0.0], 0.75, 11 / 16), ([0.0, 0.0, 800.0], 2.0, 0.0)
    ):  # fmt: skip
        expected = [-((place - mean) ** 2) / (2 * (variance + 1 / 12)) for place in range(3)]
        np.testing.assert_allclose(smoothed(space, alpha), expected, atol=1e-9)


def test_sizes_are_smoothed_in_their_order() -> None:
    """However options are listed, the middle one of three alike is the middle size."""
    slot = Slot(
        block=constant("block", BLOCK_TYPES["ir_k3"]), expansion=constant("e", 2.0), width=Choice("w", (24, 8, 16)), stride=1
    )  # fmt: skip
    space = SearchSpace(
        "listed", resolution=Range("resolution", (16,)), stem=Stem(width=constant("stem", 8)), slots=[slot],
        head=PoolHead(out_channels=16),
    )  # fmt: skip
    assert smoothed(space, [0.0, 0.0, 0.0]).argmax() == 2


def test_a_width_that_comes_back_keeps_its_largest_logit() -> None:
    wide, own = Choice("wide", (8, 16)), Choice("own", (8, 16))
    slots = [
        Slot(block=constant("block", BLOCK_TYPES["ir_k3"]), expansion=constant("e", 2.0), width=width, stride=1)
        for width in (wide, own, wide)
    ]
    space = SearchSpace(
        "back", resolution=Range("resolution", (16,)), stem=Stem(width=constant("stem", 8)), slots=slots,
        head=PoolHead(out_channels=16),
    )  # fmt: skip
    row = likeliest_row(space, [0.0, 0.1, 1.0, 0.0], residual=1.0)  # wide: 16 by a little; own: 8 by 1
    assert dict(zip(space.column, row.tolist(), strict=True)) == {"wide": 1, "own": 1}  # two residuals for 1


@pytest.mark.parametrize("name", ["fbnetv3-cifar", "cifar"])
def test_no_other_width_is_better_in_the_spaces_that_ship(name: str) -> None:
    """Shared blocks, depths and rounded widths; every width variable by itself, and pairs of neighbours."""
    space = load_space(name)
    alpha = random_logits(space, 0)
    logits, found = parts(space, alpha), likeliest_row(space, alpha, residual=0.7)
    widths = list(dict.fromkeys(space.column[slot.width.name] for slot in space.slots if len(slot.width.options) > 1))
    rows = []
    for first, second in itertools.pairwise(widths):
        for options in itertools.product(range(len(logits[first])), range(len(logits[second]))):
            rows.append(found.copy())
            rows[-1][[first, second]] = options
    changed = np.array([found, *rows])
    values = sum(part[changed[:, column]] for column, part in enumerate(logits))
    values = values + 0.7 * count_residuals(space, changed)
    assert values[0] == pytest.approx(values.max(), abs=1e-9)
    plain = plain_argmax(space, alpha)
    assert count_residuals(space, found[None])[0] > count_residuals(space, plain[None])[0]


@pytest.mark.parametrize("name", ["fbnetv3-cifar", "cifar", "digits"])
def test_residuals_are_those_of_the_built_network(name: str) -> None:
    space = load_space(name)
    rows = sobol_rows(space, 8, seed=0)
    counted = count_residuals(space, rows)
    assert counted.tolist() == [residuals(space, row) for row in rows]
    assert len(set(counted.tolist())) > 1


def test_what_is_not_a_row_of_logits_is_refused() -> None:
    space = three_layers()
    alpha = random_logits(space, 0)
    for wrong in (alpha[:-1], alpha[None]):
        for read in (smoothed, likeliest_row):
            with pytest.raises(ValueError, match=r"alpha must have \d+ logits, got \("):
                read(space, wrong)
    for residual in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="residual must be finite and >= 0, got"):
            likeliest_row(space, alpha, residual=residual)
