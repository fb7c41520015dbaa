import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest

from search_spaces.architecture import Architecture, Block
from search_spaces.errors import UserError
from search_spaces.network import build
from search_spaces.sampling import uniform_rows
from search_spaces.spaces import SPACES

NETWORK = Architecture(
    name="small",
    resolution=11,
    blocks=(
        Block(kind="conv", out_channels=6, kernel=3, stride=2, activation="hswish"),
        Block(kind="ir", out_channels=6, kernel=5, mid_channels=6, pointwise=False),
        Block(kind="skip", out_channels=9, stride=2),
        Block(kind="ir", out_channels=9, kernel=3, mid_channels=20, squeeze_channels=4, activation="hswish"),
        Block(kind="pool_head", out_channels=12, mid_channels=18),
    ),
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out_channels": 0}, "out_channels of a ir block must be in 1..65536, got 0"),
        ({"out_channels": 1 << 17}, "out_channels of a ir block must be in 1..65536, got 131072"),
        ({"stride": 0}, "stride of a ir block must be in"),
        ({"kernel": 4}, "kernel of a ir block must be odd, got 4"),
        ({"kernel": -1}, "kernel of a ir block must be in"),
        ({"kernel": 33}, "kernel of a ir block must be in 1..31, got 33"),
        ({"stride": 9}, "stride of a ir block must be in 1..8, got 9"),
        ({"mid_channels": -8}, "mid_channels of a ir block must be in 0..65536, got -8"),
        ({"mid_channels": 0}, "mid_channels of a ir block must be > 0, got 0"),
        ({"squeeze_channels": -1}, "squeeze_channels of a ir block must be in"),
        ({"kind": "conv"}, "mid_channels of a conv block must be 0, got 16"),
        (
            {"kind": "conv", "mid_channels": 0, "squeeze_channels": 4},
            "squeeze_channels of a conv block must be 0, got 4",
        ),
        ({"kind": "conv", "mid_channels": 0, "pointwise": False}, "pointwise of a conv block must be true"),
        ({"kind": "skip", "mid_channels": 0, "kernel": 3}, "kernel of a skip block must be 1, got 3"),
        ({"kind": "pool_head", "kernel": 1, "stride": 2}, "stride of a pool_head block must be 1, got 2"),
        ({"kind": "pool_head", "kernel": 5}, "kernel of a pool_head block must be 1, got 5"),
    ],
)
def test_block_names_the_field_its_value_and_what_is_allowed(change: dict, message: str) -> None:
    good = {"kind": "ir", "out_channels": 8, "kernel": 3, "mid_channels": 16}
    assert Block(**good).kernel == 3
    with pytest.raises(UserError) as failure:
        Block(**(good | change))
    assert message in str(failure.value)


def test_networks_that_no_machine_holds_are_not_built() -> None:
    wide = [Block(kind="conv", out_channels=1 << 16, kernel=1) for _ in range(4)]
    network = Architecture(name="wide", resolution=8, blocks=tuple(wide))  # 3 x 4.3e9 weights and more
    with pytest.raises(UserError, match=r"at most 1e\+10 parameters, got 1\.29e\+10"):
        build(network, 10)


def test_architecture_checks_how_blocks_fit_together() -> None:
    blocks = NETWORK.blocks
    with pytest.raises(UserError, match=r"block 0 \(pool_head\) must be the last block"):
        replace(NETWORK, blocks=(blocks[4], blocks[0]))
    with pytest.raises(UserError, match=r"block 0 \(ir\) has no pointwise convolution and cannot be the first block"):
        replace(NETWORK, blocks=blocks[1:])
    with pytest.raises(
        UserError, match=r"block 3 \(ir\) has no pointwise convolution, so mid_channels must be 9, got 20"
    ):
        replace(NETWORK, blocks=(*blocks[:3], replace(blocks[3], pointwise=False)))
    with pytest.raises(UserError, match=r"blocks must number 1..1000, got 0"):
        replace(NETWORK, blocks=())
    with pytest.raises(UserError, match=r"blocks must number 1..1000, got 1001"):
        replace(NETWORK, blocks=blocks[:1] * 1001)
    for resolution in (0, -3, 1 << 15):
        with pytest.raises(UserError, match=f"resolution must be in 1..4096, got {resolution}"):
            replace(NETWORK, resolution=resolution)


def test_layers_pair_every_block_with_the_channels_that_enter() -> None:
    assert [channels for channels, _ in NETWORK.layers(1)] == [1, 6, 6, 9, 9]
    assert [block for _, block in NETWORK.layers()] == list(NETWORK.blocks)
    assert NETWORK.out_channels == 12


def test_shape_is_kept_only_with_stride_one_and_equal_channels() -> None:
    assert NETWORK.blocks[1].keeps_shape(6)
    assert not NETWORK.blocks[1].keeps_shape(7)
    assert not NETWORK.blocks[2].keeps_shape(9)


def test_architectures_are_frozen_and_compare_by_value() -> None:
    with pytest.raises(FrozenInstanceError):
        NETWORK.resolution = 12  # type: ignore[misc]
    assert replace(NETWORK) == NETWORK and hash(replace(NETWORK)) == hash(NETWORK)
    assert replace(NETWORK, resolution=12) != NETWORK


@pytest.mark.parametrize("name", SPACES)
def test_networks_of_every_space_survive_json(name: str, tmp_path: Path) -> None:
    space = SPACES[name]()
    for row in uniform_rows(space, 5, np.random.default_rng(0)):
        network = space.decode(row)
        assert Architecture.from_json(json.loads(json.dumps(network.to_json()))) == network
        network.save(tmp_path / "architecture.json")
        assert Architecture.load(tmp_path / "architecture.json") == network


def test_json_holds_plain_values_and_the_schema() -> None:
    data = NETWORK.to_json()
    assert data["schema"] == 1 and list(data) == ["schema", "name", "resolution", "blocks"]
    assert data["blocks"][2] == {
        "kind": "skip",
        "out_channels": 9,
        "kernel": 1,
        "stride": 2,
        "mid_channels": 0,
        "squeeze_channels": 0,
        "activation": "relu",
        "pointwise": True,
        "bias": False,
        "groups": 1,
        "group_width": 1,
        "padding": None,
    }


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "schema must be 1, got 2"),
        (("schema",), None, "schema must be 1, got None"),
        (("resolution",), "11", "resolution must be int, got '11'"),
        (("resolution",), 11.0, "resolution must be int, got 11.0"),
        (("resolution",), True, "resolution must be int, got True"),
        (("resolution",), 0, "resolution must be in 1..4096, got 0"),
        (("name",), 3, "name must be str, got 3"),
        (("name",), "two\nlines", r"name must be one printable line of 1..200 characters, got 'two\nlines' (9)"),
        (("name",), "\x1b[2J", "name must be one printable line"),
        (("name",), "x" * 201, "x' (201)"),
        (("name",), "", "name must be one printable line of 1..200 characters, got '' (0)"),
        (("blocks",), {}, "blocks must be a list, got {}"),
        (("blocks",), [], "blocks must number 1..1000, got 0"),
        (("blocks", 1), 5, "blocks[1]: expected a mapping, got int"),
        (("blocks", 1, "kind"), "irf", "blocks[1].kind must be one of 'conv', 'ir', 'skip', 'pool_head', got 'irf'"),
        (("blocks", 1, "kind"), ["ir"], "blocks[1].kind must be one of"),
        (("blocks", 1, "activation"), None, "activation must be one of 'relu', 'hswish', got None"),
        (("blocks", 1, "kernal"), 3, "unknown key 'kernal'; did you mean 'kernel'?"),
        (("blocks", 1, "kernel"), 4, "kernel of a ir block must be odd, got 4"),
        (("blocks", 1, "pointwise"), 1, "pointwise must be bool, got 1"),
        (("resolutoin",), 3, "unknown key 'resolutoin'; did you mean 'resolution'?"),
    ],
)
def test_bad_json_is_refused_by_name(path: tuple, value: object, message: str) -> None:
    data = json.loads(json.dumps(NETWORK.to_json()))
    target = data
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(UserError) as failure:
        Architecture.from_json(data, where="net.json")
    assert message in str(failure.value)
    assert str(failure.value).startswith("net.json") and str(failure.value).count("net.json") == 1


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_json_that_is_no_mapping_is_refused(data: object) -> None:
    with pytest.raises(UserError, match="schema must be 1, got "):
        Architecture.from_json(data)


def test_missing_keys_are_named() -> None:
    data = NETWORK.to_json()
    del data["blocks"][2]["out_channels"]
    with pytest.raises(UserError, match=r"blocks\[2\]: key 'out_channels' is missing"):
        Architecture.from_json(data)
