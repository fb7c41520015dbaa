"""Low-resolution rule and compound scaling: hand-worked blocks, and the published networks they should give."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from search_spaces.architecture import Architecture, Block
from search_spaces.cost import cost
from search_spaces.counting import fvcore_cost
from search_spaces.errors import UserError
from search_spaces.network import build
from search_spaces.scaling import low_resolution, scale
from search_spaces.zoo import load, names


def ir(out: int, mid: int, squeeze: int = 0, **rules: object) -> Block:
    return Block(kind="ir", out_channels=out, mid_channels=mid, squeeze_channels=squeeze, kernel=3, **rules)  # type: ignore[arg-type]


SMALL = Architecture(
    name="small",
    resolution=64,
    blocks=(
        Block(kind="conv", out_channels=16, kernel=3, stride=2),
        Block(kind="skip", out_channels=16),
        ir(24, 64, stride=2, padding=0),
        ir(24, 72, 8),
        ir(24, 72, 8),
        ir(40, 48, 8, stride=2),
        ir(64, 200, 16),
        Block(kind="pool_head", out_channels=100, mid_channels=384),
    ),
)


def test_low_resolution_takes_out_the_second_stride_and_odd_paddings() -> None:
    expected = list(SMALL.blocks)
    expected[2] = ir(24, 64, stride=1)
    assert low_resolution(SMALL) == Architecture(name="small_low32", resolution=32, blocks=tuple(expected))
    later = replace(SMALL, blocks=(*SMALL.blocks[:5], ir(40, 48, 8, stride=2, padding=0), *SMALL.blocks[6:]))
    assert low_resolution(later, 48) == replace(low_resolution(SMALL), resolution=48, name="small_low48")


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        (SMALL.blocks[3:5], "small: the first block must have stride 2, got 1"),
        (SMALL.blocks[:2], "small: no block after the first has stride 2"),
    ],
)
def test_low_resolution_refuses_what_the_rule_does_not_fit(blocks: tuple[Block, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        low_resolution(replace(SMALL, blocks=blocks))


@pytest.mark.parametrize("name", names())
def test_cifar_variant_of_every_published_network(name: str) -> None:
    """Costs what fvcore counts, ends at stride 16 on 2x2 maps, and gives finite logits."""
    variant = low_resolution(load(name))
    network = build(variant, 10)
    assert fvcore_cost(network, in_channels=3, resolution=32) == cost(variant, num_classes=10)
    sides = []
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.isfinite(network.train()(x)).all()
        network.eval()
        for block in network.blocks:
            x = block(x)
            sides.append(x.shape[-1])
    assert list(dict.fromkeys(side for side in sides if side > 1)) == [16, 8, 4, 2]
    assert math.prod(block.stride for block in variant.blocks) == 16


def test_published_weights_fit_the_cifar_variant() -> None:
    published, variant = (build(a, 10).state_dict() for a in (load("fbnetv2_f1"), low_resolution(load("fbnetv2_f1"))))
    assert {name: t.shape for name, t in published.items()} == {name: t.shape for name, t in variant.items()}


def test_width_by_hand() -> None:
    """Width 1.3: 16 -> 20.8 -> 24; 24 -> 31.2 -> 32; 40 -> 52 -> 56; 64 -> 83.2 -> 80.

    Middles: 64 x 24/16 = 96; 72 x 32/24 = 96; 48 x 32/24 = 64; 200 x 56/40 = 280; 384 x 80/64 = 480. The squeezes are no
    quarter of anything in all blocks, so they keep their ratio: 8 x 96/72 = 10.7 -> 16 (8 is below 0.95 x 10.7).
    """
    odd = replace(SMALL, blocks=(*SMALL.blocks[:6], ir(64, 200, 24), SMALL.blocks[7]))
    assert scale(odd, width=1.3).blocks == (
        Block(kind="conv", out_channels=24, kernel=3, stride=2),
        Block(kind="skip", out_channels=24),
        ir(32, 96, stride=2, padding=0),
        ir(32, 96, 16),
        ir(32, 96, 16),
        ir(56, 64, 16, stride=2),
        ir(80, 280, 32),  # 24 x 280/200 = 33.6 -> 32
        Block(kind="pool_head", out_channels=100, mid_channels=480),
    )


@pytest.mark.parametrize(
    ("squeezes", "expected"),
    [
        ((8, 8, 16), (8, 8, 16)),  # R of a quarter of the input: 24 and 40 -> 32 and 56: 8 and R(14) = 16
        (
            (24, 16, 48),
            (24, 16, 72),
        ),  # R of a quarter of the middle: 72, 48, 200 (R(18) = 24) -> 96, 64, 280 (R(70) = 72)
        ((18, 12, 50), (24, 16, 70)),  # the same, not rounded
    ],
)
def test_squeeze_follows_the_rule_of_the_family(squeezes: tuple[int, ...], expected: tuple[int, ...]) -> None:
    first, second, third = squeezes
    blocks = (*SMALL.blocks[:3], ir(24, 72, first), ir(40, 48, second, stride=2), ir(64, 200, third))
    scaled = scale(replace(SMALL, blocks=blocks), width=1.3)
    assert tuple(block.squeeze_channels for block in scaled.blocks[3:]) == expected
    assert tuple(block.mid_channels for block in scaled.blocks[3:]) == (96, 64, 280)


def test_stem_rounds_to_nearest_and_an_identity_follows_it() -> None:
    """16 x 1.1 = 17.6: the stem stays 16, where R gives 24 (16 < 0.95 x 17.6)."""
    blocks = (*SMALL.blocks[:2], ir(16, 48), ir(16, 48))
    scaled = scale(replace(SMALL, blocks=blocks), width=1.1).blocks
    assert [block.out_channels for block in scaled] == [16, 16, 24, 24]
    assert [block.mid_channels for block in scaled[2:]] == [48, 72]


def test_divisor_and_blocks_without_first_convolution() -> None:
    blocks = (SMALL.blocks[0], ir(20, 16, pointwise=False), ir(20, 20, pointwise=False))
    scaled = scale(replace(SMALL, blocks=blocks), width=1.5, divisor=2).blocks
    assert [(block.mid_channels, block.out_channels) for block in scaled] == [(0, 24), (24, 30), (30, 30)]


@pytest.mark.parametrize(
    ("depth", "repeats"),
    [(0.3, (1, 1)), (1.0, (2, 1)), (1.24, (2, 1)), (1.25, (3, 1)), (1.5, (3, 2)), (2.6, (5, 3))],
)
def test_depth_repeats_runs_only(depth: float, repeats: tuple[int, int]) -> None:
    """Two blocks at 24 channels are a run, and so is the one at 64; its copies are entered by 64: middle 200 x 64/40 = 320."""
    head = SMALL.blocks[7]
    tail = [ir(64, 200, 16), *[ir(64, 320, 16)] * 9][: repeats[1]]
    expected = (*SMALL.blocks[:3], *[ir(24, 72, 8)] * repeats[0], SMALL.blocks[5], *tail, head)
    scaled = scale(SMALL, depth=depth)
    assert scaled.blocks == expected
    assert fvcore_cost(build(scaled, 7), in_channels=3, resolution=64) == cost(scaled, num_classes=7)


def test_expansions_that_differ_are_runs_of_their_own() -> None:
    """Each of the two becomes two at 1.5; one run of two would become three."""
    blocks = (*SMALL.blocks[:3], ir(24, 72), ir(24, 48))
    scaled = scale(replace(SMALL, blocks=blocks), depth=1.5).blocks
    assert scaled[3:] == (ir(24, 72), ir(24, 72), ir(24, 48), ir(24, 48))


def test_only_the_last_convolution_keeps_its_width() -> None:
    final = Block(kind="conv", out_channels=64)
    scaled = scale(replace(SMALL, blocks=(*SMALL.blocks[:2], final, final)), width=1.5).blocks
    assert [block.out_channels for block in scaled] == [24, 24, 96, 64]


def test_copies_without_first_convolution_take_what_enters() -> None:
    blocks = (SMALL.blocks[0], ir(20, 16, pointwise=False), ir(20, 60), ir(20, 60, 8))
    scaled = scale(replace(SMALL, blocks=blocks), depth=1.5).blocks
    assert scaled[1:] == (
        ir(20, 16, pointwise=False),
        ir(20, 20, pointwise=False),
        *[ir(20, 60)] * 2,
        *[ir(20, 60, 8)] * 2,
    )


def test_a_run_may_start_with_another_width() -> None:
    """FBNetV3-E's first row, 24 -> 16 -> 16 -> 16, is one run of three: 3.6 gives four, where 1 and 2 would stay."""
    scaled = scale(load("fbnetv3_e"), depth=1.2)
    assert [(b.mid_channels, b.out_channels, b.stride) for b in scaled.blocks[1:6]] == [
        (24, 16, 1), *[(16, 16, 1)] * 3, (64, 24, 2),
    ]  # fmt: skip


def test_names_and_untouched_networks() -> None:
    assert scale(SMALL, width=1.25, depth=2, resolution=80).name == "small_w1.25_d2_r80"
    for name in names():
        assert scale(load(name)) == load(name)


def test_grouped_networks_scale_and_build() -> None:
    scaled = scale(load("fbnet_a"), width=0.5, depth=0.5, resolution=64)
    assert {block.groups for block in scaled.blocks} == {1, 2}
    assert scaled.out_channels == 1504
    assert fvcore_cost(build(scaled, 10), in_channels=3, resolution=64) == cost(scaled, num_classes=10)


def test_fbnetv3_a_is_b_at_224() -> None:
    assert scale(load("fbnetv3_b"), resolution=224) == replace(load("fbnetv3_a"), name="fbnetv3_b_r224")


@pytest.mark.parametrize(("width", "depth"), [(1.13, 1.1), (1.14, 1.12), (1.149, 1.124)])
def test_fbnetv3_f_is_e_scaled_but_for_two_paddings(width: float, depth: float) -> None:
    scaled, published = scale(load("fbnetv3_e"), width=width, depth=depth, resolution=272), load("fbnetv3_f")
    assert scaled.resolution == published.resolution
    pairs = list(zip(scaled.blocks, published.blocks, strict=True))
    assert [replace(ours, padding=theirs.padding) for ours, theirs in pairs] == list(published.blocks)
    odd = [(a.out_channels, a.padding, b.padding) for a, b in pairs if a != b]
    assert odd == [(88, 1, None), (248, None, 0)]
    assert cost(scaled)[1:] == cost(published)[1:]
    assert (cost(scaled).flops, cost(published).flops) == (1130722880, 1181644520)


@pytest.mark.parametrize(("width", "depth"), [(1.12, 1.1), (1.15, 1.1), (1.14, 1.09), (1.14, 1.13)])
def test_factors_outside_the_stated_range_do_not_give_f(width: float, depth: float) -> None:
    scaled, published = scale(load("fbnetv3_e"), width=width, depth=depth), load("fbnetv3_f")
    assert [b.out_channels for b in scaled.blocks] != [b.out_channels for b in published.blocks]


def rows(architecture: Architecture) -> list[tuple[int, int]]:
    """(output width, number of blocks) of neighbours of one width, without the head."""
    found: list[tuple[int, int]] = []
    for block in architecture.blocks[:-1]:
        if found and found[-1][0] == block.out_channels:
            found[-1] = (block.out_channels, found[-1][1] + 1)
        else:
            found.append((block.out_channels, 1))
    return found


def test_fbnetv3_g_is_near_e_scaled() -> None:
    """What one factor reaches and what not, as the docstring of `scale` states."""
    scaled, published = scale(load("fbnetv3_e"), width=1.22, depth=1.1, resolution=320), load("fbnetv3_g")
    assert scaled.resolution == published.resolution
    assert rows(published) == [(32, 1), (24, 3), (40, 5), (56, 5), (104, 5), (160, 9), (264, 7), (288, 2)]
    assert rows(scaled) == [(32, 1), (24, 3), (32, 5), (56, 5), (96, 5), (160, 9), (264, 7), (296, 1)]


def test_no_factor_comes_nearer_to_g() -> None:
    """Of the eight widths, each read at the row's first block, five agree at 1.22 and nowhere more."""
    first_of_rows = (0, 1, 4, 9, 14, 19, 27, 33)
    published = (32, 24, 40, 56, 104, 160, 264, 288)

    def agreeing(width: float) -> int:
        blocks = scale(load("fbnetv3_e"), width=width).blocks
        return sum(blocks[i].out_channels == wanted for i, wanted in zip(first_of_rows, published, strict=True))

    assert max(agreeing(step / 100) for step in range(100, 171)) == agreeing(1.22) == 5


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ({"width": 0.0}, "width must be in (0, 64], got 0.0"),
        ({"depth": float("nan")}, "depth must be in (0, 64], got nan"),
        ({"width": float("inf")}, "width must be in (0, 64], got inf"),
        ({"divisor": 0}, "divisor must be >= 1, got 0"),
        ({"resolution": 0}, "resolution must be in 1.."),
        ({"depth": 60.0}, "blocks must number 1..1000"),
    ],
)
def test_wrong_factors_are_one_line(factors: dict[str, float], words: str) -> None:
    with pytest.raises(UserError) as caught:
        scale(load("fbnetv3_e"), **factors)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scaling_needs_no_torch(fresh_python: Callable[[str], str]) -> None:
    assert fresh_python("import sys, search_spaces.scaling\nprint('torch' in sys.modules)").strip() == "False"
