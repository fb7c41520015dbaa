import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from published_networks import MEMBERS, published_architecture, rounded
from tiny_spaces import TINY, all_rows, tiny_rows, tiny_stages

from search_spaces.architecture import Architecture, Block
from search_spaces.cost import cost
from search_spaces.errors import UserError
from search_spaces.membership import row_of
from search_spaces.rows import Row, space_of_rows
from search_spaces.sampling import uniform_rows
from search_spaces.space import BLOCK_TYPES, PoolHead, SearchSpace, Slot, Stem, constant, round_channels
from search_spaces.spaces import SPACES
from search_spaces.variables import Choice, Range


def random_rows(space: SearchSpace, n: int, seed: int = 0) -> np.ndarray:
    return uniform_rows(space, n, np.random.default_rng(seed))


# sizes ------------------------------------------------------------------------------------------------------------------


def without_resolution(name: str) -> float:
    space = SPACES[name]()
    return math.log10(space.size // len(space.resolution.options))


@pytest.mark.parametrize(("name", "exponent"), [("fbnetv2-l", 45.3), ("fbnetv2-f", 40.6), ("fbnetv2-p", 49.2)])
def test_sizes_of_the_fbnetv2_spaces_are_those_of_the_reading(name: str, exponent: float) -> None:
    assert without_resolution(name) == pytest.approx(exponent, abs=0.05)  # one decimal is known
    assert without_resolution(name) > 35  # the claim "more than 10^35"


FINE, MIDDLE, COARSE = (0.75, 3.25, 0.5), (0.75, 3.75, 0.5), (0.75, 4.5, 0.75)
ROWS_OF_TABLES = {  # expansion, width, layers, stride; three-value tuples are low, high, step, closed
    "fbnetv2-f": (
        ((1, 1, 1), (12, 16, 4), 1, 1),
        (COARSE, (16, 24, 4), 1, 2),
        (COARSE, (16, 24, 4), 2, 1),
        (COARSE, (16, 40, 8), 1, 2),
        (COARSE, (16, 40, 8), 2, 1),
        (COARSE, (48, 80, 8), 1, 2),
        (COARSE, (48, 80, 8), 2, 1),
        (COARSE, (72, 112, 8), 3, 1),
        (COARSE, (112, 184, 8), 1, 2),
        (COARSE, (112, 184, 8), 3, 1),
    ),
    "fbnetv2-p": (
        ((1, 1, 1), (16, 28, 4), 1, 1),
        (COARSE, (16, 40, 4), 1, 2),
        (COARSE, (16, 40, 4), 2, 1),
        (COARSE, (16, 48, 8), 1, 2),
        (COARSE, (16, 48, 8), 2, 1),
        (COARSE, (48, 96, 8), 1, 2),
        (COARSE, (48, 96, 8), 2, 1),
        (COARSE, (72, 128, 8), 4, 1),
        (COARSE, (112, 216, 8), 1, 2),
        (COARSE, (112, 216, 8), 3, 1),
        (COARSE, (112, 216, 8), 1, 1),
    ),
    "fbnetv2-l": (
        ((1, 1, 1), (12, 16, 4), 1, 1),
        (FINE, (16, 28, 4), 1, 2),
        (FINE, (16, 28, 4), 2, 1),
        (FINE, (16, 40, 8), 1, 2),
        (FINE, (16, 40, 8), 2, 1),
        (MIDDLE, (48, 96, 8), 1, 2),
        (MIDDLE, (48, 96, 8), 2, 1),
        (COARSE, (72, 128, 8), 4, 1),
        (COARSE, (112, 216, 8), 1, 2),
        (COARSE, (112, 216, 8), 3, 1),
    ),
}


@pytest.mark.parametrize("name", ROWS_OF_TABLES)
def test_fbnetv2_layers_have_the_options_of_their_tables(name: str) -> None:
    """Thesis Tables 3.8, 3.9 and 3.7, walked in whole steps; 17, 19 and 18 searched layers."""
    space = SPACES[name]()
    layers = [
        (expansion, width, stride if layer == 0 else 1)
        for expansion, width, n, stride in ROWS_OF_TABLES[name]
        for layer in range(n)
    ]
    assert len(space.slots) == len(layers) == {"fbnetv2-f": 17, "fbnetv2-p": 19, "fbnetv2-l": 18}[name]
    for slot, (*ranges, stride) in zip(space.slots, layers, strict=True):
        assert slot.stride == stride
        for found, (low, high, step) in zip((slot.expansion.options, slot.width.options), ranges, strict=True):
            walked = [low]
            while walked[-1] < high:
                walked.append(walked[-1] + step)
            assert list(found) == walked  # exact: all steps are binary fractions
        assert [block.name for block in slot.block_types] == list(BLOCK_TYPES)
    assert space.stem.width.options == (16,)
    assert space.head.out_channels == (1280 if name == "fbnetv2-p" else 1984)


def test_size_of_the_fbnetv3_space_is_the_product_of_table_4_2() -> None:
    widths = (5, 5, 4, 7, 8, 13, 12, 16)  # stem, then seven stages; the last goes to 240
    depths = (4, 4, 4, 5, 5, 5)
    kernels = 4**6 * 2  # first and rest of six stages, the one block of the last
    expansions = 16 * 16 * 16 * 16  # stages 2, 3, 4 with 5, 6: first and rest, four options each
    assert SPACES["fbnetv3"]().size == 7 * math.prod(widths) * math.prod(depths) * kernels * expansions
    assert without_resolution("fbnetv3") > 17


def test_size_is_the_number_of_rows() -> None:
    for make in TINY.values():
        space = make()
        assert space.size == len(all_rows(space))


# decoding ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_decode_reads_the_chosen_options(name: str) -> None:
    """A loop over the slots, with the options looked up by variable name."""
    space = SPACES[name]()
    for row in random_rows(space, 20, seed=3):
        values = space.values(row)
        network = space.decode(row)

        def option(variable: Choice | Range, values: dict = values) -> object:
            return values.get(variable.name, variable.options[0])

        assert network.resolution == option(space.resolution)
        blocks = list(network.layers())[1:-1]
        assert network.blocks[0].kind == "conv" and network.blocks[0].stride == 2
        for slot in space.slots:
            if slot.depth is not None and option(slot.depth) <= slot.position:
                continue
            channels, block = blocks.pop(0)
            width = option(slot.width)
            assert block.out_channels == (rounded(width, 8) if name.startswith("fbnetv3") else width)
            assert block.stride == slot.stride
            kind, expansion = option(slot.block), option(slot.expansion)
            if kind.name == "skip":
                assert block.kind == "skip"
                continue
            assert (block.kind, block.kernel, block.activation) == ("ir", kind.kernel, kind.activation)
            constant_one = slot.expansion.options == (1,)
            assert block.pointwise != constant_one
            assert block.mid_channels == (channels if constant_one else rounded(channels * expansion, 8))
            share = 0.25 / expansion if name.startswith("fbnetv3") else 0.25
            squeeze = rounded(int(share * block.mid_channels), 8) if kind.squeeze else 0
            assert block.squeeze_channels == squeeze
        assert not blocks
        head = network.blocks[-1]
        expansion = 3 if name == "digits" else 6
        assert head.mid_channels == rounded(expansion * network.blocks[-2].out_channels, 8)


def test_block_types_are_those_of_table_3_3() -> None:
    assert len(BLOCK_TYPES) == 9
    for name, block in BLOCK_TYPES.items():
        if name == "skip":
            assert block.is_skip
            continue
        kernel, *flags = name.removeprefix("ir_k").split("_")
        assert (block.kernel, block.squeeze, block.activation) == (
            int(kernel),
            "se" in flags,
            "hswish" if "hs" in flags else "relu",
        )


def test_rounding_rule() -> None:
    for channels in (1, 7.9, 8, 11.9, 12, 13.4, 18, 20, 22, 24, 27.3, 84, 100, 180, 204, 1000.5):
        assert round_channels(channels) == rounded(channels, 8)
        assert round_channels(channels) % 8 == 0
        assert round_channels(channels) >= 0.95 * channels
    assert [round_channels(w) for w in (18, 20, 22, 24, 84)] == [24, 24, 24, 24, 88]  # thesis Table 4.2, as published
    assert round_channels(10, divisor=4) == 12 and round_channels(16.3, divisor=1) == 16


def test_decode_refuses_bad_rows() -> None:
    space = tiny_rows()
    with pytest.raises(UserError, match=r"rows must have 7 columns, got 6"):
        space.decode([0] * 6)
    with pytest.raises(UserError, match=r"option 3 of layer1.block is not in 0..2"):
        space.decode(space.option_counts * 0 + [0, 3, 0, 0, 0, 0, 0])
    with pytest.raises(UserError, match="decode takes one row, got 2"):
        space.decode(np.zeros((2, 7), dtype=int))
    with pytest.raises(UserError, match="rows must hold integers"):
        space.decode(np.zeros(7))


# canonical rows ---------------------------------------------------------------------------------------------------------


def built(architecture: Architecture) -> tuple[int, tuple[Block, ...]]:
    return architecture.resolution, architecture.blocks


@pytest.mark.parametrize("name", TINY)
def test_two_rows_build_the_same_network_iff_their_canonical_rows_are_equal(name: str) -> None:
    """Over all rows of a space small enough; decode, which knows nothing of canonical rows, is the reference."""
    space = TINY[name]()
    rows = all_rows(space)
    canonical = [tuple(row) for row in space.canonical(rows)]
    by_network, by_row = defaultdict(set), defaultdict(set)
    for row, form in zip(rows, canonical, strict=True):
        network = built(space.decode(row))
        by_network[network].add(form)
        by_row[form].add(network)
    assert all(len(forms) == 1 for forms in by_network.values())
    assert all(len(networks) == 1 for networks in by_row.values())
    assert len(by_network) < 0.75 * len(rows)  # many rows do build one network
    forms = np.array(sorted(by_row))
    assert (space.canonical(forms) == forms).all()
    for form in forms:  # the canonical row builds its own network
        assert by_row[tuple(form)] == {built(space.decode(form))}


@pytest.mark.parametrize("name", SPACES)
def test_canonical_rows_build_the_same_networks(name: str) -> None:
    space = SPACES[name]()
    rows = random_rows(space, 100, seed=1)
    canonical = space.canonical(rows)
    assert (space.canonical(canonical) == canonical).all()
    assert (canonical != rows).any()
    for row, form in zip(rows, canonical, strict=True):
        assert space.decode(row) == space.decode(form)


def test_canonical_leaves_its_argument_alone() -> None:
    space = tiny_rows()
    rows = random_rows(space, 50)
    before = rows.copy()
    space.canonical(rows)
    assert (rows == before).all()


def test_widths_that_round_alike_become_one() -> None:
    space = SPACES["fbnetv3"]()
    base = space.row({v.name: v.options[0] for v in space.variables})
    forms = []
    for width in (16, 18, 20, 22, 24):
        row = base.copy()
        row[space.column["stem.width"]] = (16, 18, 20, 22, 24).index(width)
        forms.append(space.canonical(row)[0][space.column["stem.width"]])
    assert forms == [0, 1, 1, 1, 1]


def test_expansion_of_a_skip_is_set_to_its_first_option() -> None:
    space = tiny_rows()
    values = {"resolution": 14, "layer1.block": BLOCK_TYPES["skip"], "layer1.expansion": 1.25, "layer1.width": 12}
    values |= {"layer2.block": BLOCK_TYPES["ir_k5"], "layer2.expansion": 1.5, "layer2.width": 20}
    form = space.values(space.canonical(space.row(values))[0])
    assert form == values | {"layer1.expansion": 0.75}


# membership -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SPACES, *TINY])
def test_row_of_inverts_decode_up_to_canonical_rows(name: str) -> None:
    space = (SPACES | TINY)[name]()
    for row in random_rows(space, 60, seed=2):
        found = row_of(space, space.decode(row))
        assert found.shape == (len(space),)
        assert (found == space.canonical(row)[0]).all()


@pytest.mark.parametrize("name", MEMBERS)
def test_released_fbnetv3_networks_are_members_with_normal_paddings(name: str) -> None:
    space = SPACES["fbnetv3"]()
    resolution, lines = MEMBERS[name]
    network = published_architecture(name, "v3", resolution, lines)
    row = row_of(space, network)
    assert built(space.decode(row)) == built(network)
    assert (space.canonical(row)[0] == row).all()


def test_fbnetv3_b_with_normal_paddings_costs_520_million() -> None:
    """Convolutions and linear layers of timm's fbnetv3_b at 248: 520.022M multiply-adds; 8,598,464 parameters."""
    network = published_architecture("B", "v3", *MEMBERS["B"])
    pools, side, channels = 0, 248, 3
    for block in network.blocks:
        if block.stride == 2:
            side = -(-side // 2)
        if block.squeeze_channels or block.kind == "pool_head":
            pools += block.mid_channels * side * side
        channels = block.out_channels
    pools += channels  # the final pool sees one pixel
    found = cost(network)
    assert round((found.flops - pools) / 1e6, 3) == 520.022
    assert found.params_all == 8_598_464
    assert found.params == 8_542_224


def test_the_wrong_network_is_no_member() -> None:
    space = SPACES["fbnetv3"]()
    network = published_architecture("D", "v3", *MEMBERS["D"])
    with pytest.raises(UserError, match="resolution 250 is not in space fbnetv3"):
        row_of(space, replace(network, resolution=250))
    wrong = (*network.blocks[:7], replace(network.blocks[7], kernel=7), *network.blocks[8:])
    with pytest.raises(UserError, match=r"block 7 is built by no choice of space fbnetv3: .*kernel=7"):
        row_of(space, replace(network, blocks=wrong))
    with pytest.raises(UserError, match="is built by no choice"):
        row_of(space, replace(network, blocks=network.blocks[:-1]))
    with pytest.raises(UserError, match="is built by no choice"):
        row_of(space, replace(network, blocks=(*network.blocks[:-1], replace(network.blocks[-1], out_channels=1000))))
    with pytest.raises(UserError, match="block 0 is built by no choice"):
        row_of(space, replace(network, blocks=(replace(network.blocks[0], kernel=5), *network.blocks[1:])))


def test_a_skip_with_another_stride_is_no_member() -> None:
    space = tiny_rows()
    network = space.decode([1, 0, 0, 0, 1, 0, 0])
    assert network.blocks[2] == Block(kind="skip", out_channels=12, stride=2)
    wrong = (*network.blocks[:2], replace(network.blocks[2], stride=1), network.blocks[3])
    with pytest.raises(UserError, match="block 2 is built by no choice of space tiny-rows"):
        row_of(space, replace(network, blocks=wrong))


def test_shared_expansions_are_honoured_by_membership() -> None:
    """FBNetV3's stages 4 and 5 share their expansions; two different ones make a network outside the space."""
    space = SPACES["fbnetv3"]()
    row = space.row({v.name: v.options[-1] for v in space.variables})
    network = space.decode(row)
    first_squeezed_112 = next(
        i for i, (channels, b) in enumerate(network.layers()) if channels == 88 and b.out_channels == 144
    )
    block = network.blocks[first_squeezed_112]
    assert block.mid_channels == 7 * 88
    other = replace(block, mid_channels=4 * 88, squeeze_channels=24)
    changed = (*network.blocks[:first_squeezed_112], other, *network.blocks[first_squeezed_112 + 1 :])
    with pytest.raises(UserError, match="is built by no choice"):
        row_of(space, replace(network, blocks=changed))


# construction -----------------------------------------------------------------------------------------------------------


def test_rows_make_one_choice_per_layer_and_stride_the_first() -> None:
    space = space_of_rows(
        "rows", [Row(expansion=(2, 3), width=(16, 24), n=3, stride=2)], resolutions=(32,), stem_width=8, head_width=64
    )
    assert [slot.stride for slot in space.slots] == [2, 1, 1]
    assert {v.name for v in space.variables} == {
        f"layer{i}.{k}" for i in (1, 2, 3) for k in ("block", "expansion", "width")
    }
    assert space.size == (9 * 2 * 2) ** 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": ("ir_k7",)}, "block must be among ir_k3"),
        ({"block": ()}, "block has no options"),
        ({"n": 0}, "n must be >= 1, got 0"),
        ({"n": 101}, "n must be <= 100, got 101"),
        ({"stride": 3}, "stride must be 1 or 2, got 3"),
        ({"expansion": (0, 1)}, "expansion must be > 0"),
        ({"expansion": (65,)}, "expansion must be <= 64"),
        ({"width": (12.5,)}, "width must be whole numbers"),
        ({"width": (0, 8)}, "width must be whole numbers"),
        ({"width": (10_000,)}, "width must be whole numbers"),
    ],
)
def test_rows_refuse_what_no_table_can_mean(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Row(**({"expansion": (1, 2), "width": (8, 16)} | change))


def test_space_refuses_two_variables_of_one_name_and_no_layers() -> None:
    parts = {
        "resolution": Range("resolution", (8, 16)),
        "stem": Stem(width=constant("w", 8)),
        "head": PoolHead(out_channels=8),
    }
    with pytest.raises(UserError, match="space empty has no searched layers"):
        SearchSpace("empty", slots=[], **parts)
    slots = [
        Slot(
            block=Choice("b", (BLOCK_TYPES["ir_k3"],)),
            expansion=Range("e", (1, e)),
            width=Range("f", (8, 16)),
            stride=1,
        )
        for e in (2, 3)
    ]
    with pytest.raises(UserError, match="two different variables are called 'e'"):
        SearchSpace("twice", slots=slots, **parts)


def test_depth_removes_the_last_blocks_of_a_stage() -> None:
    space = tiny_stages()
    column = space.column["stage2.depth"]
    row = np.zeros(len(space), dtype=np.int64)
    assert [len(space.decode([*row[:column], d, *row[column + 1 :]]).blocks) for d in (0, 1)] == [4, 6]
