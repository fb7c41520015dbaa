"""Parts of networks and of spaces, sums over a table, pools of rows, and the file."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_spaces import TINY, all_rows, tiny_rows, tiny_stages

from search_spaces.architecture import Architecture, Block
from search_spaces.errors import UserError
from search_spaces.fbnetv3 import fbnetv3
from search_spaces.latency import Conditions, LatencyTable, SpaceLatency, Timing
from search_spaces.latency_parts import CALL, Part, network_parts, placed, seams_of, space_parts
from search_spaces.small import cifar, digits
from search_spaces.space import BLOCK_TYPES, PoolHead, SearchSpace, Slot, Stem
from search_spaces.variables import Choice, Range
from search_spaces.zoo import load

CONDITIONS = Conditions(backend="onnxruntime", device="a processor", versions={"torch": "2"})
CONV = Block(kind="conv", out_channels=8, kernel=3, stride=2, activation="hswish")
IR = Block(kind="ir", out_channels=16, kernel=5, stride=2, mid_channels=24, squeeze_channels=8, activation="relu")
SKIP = Block(kind="skip", out_channels=16)
HEAD = Block(kind="pool_head", out_channels=32, mid_channels=48, activation="hswish")
NET = Architecture(name="net", resolution=21, blocks=(CONV, IR, SKIP, HEAD))


def table_of(
    space: SearchSpace, *, in_channels: int = 3, seams: bool = True, resolutions: tuple[int, ...] | None = None
) -> LatencyTable:
    """Random times for everything in a space."""
    blocks = space_parts(space, in_channels, resolutions)
    parts = [*blocks, *(seams_of(blocks) if seams else ())]
    rng = np.random.default_rng(0)
    return LatencyTable(
        space=space.name,
        num_classes=10,
        in_channels=in_channels,
        resolutions=resolutions or tuple(int(side) for side in space.resolution.options),
        conditions=CONDITIONS,
        turns=3,
        turns_done=3,
        timings={part: Timing(*(float(f"{v:.4g}") for v in rng.uniform(0.01, 0.1, 2))) for part in parts},
    )


# parts ----------------------------------------------------------------------------------------------------------------


def test_parts_of_a_network_are_its_blocks_where_they_stand() -> None:
    assert network_parts(NET, in_channels=1) == [  # 21 -> 11 -> 6; the skip computes nothing
        Part(21, 1, CONV, first=True),
        Part(11, 8, IR),
        Part(6, 16, HEAD),
        Part(1, 32, "classifier"),
    ]
    assert [part.side for part in network_parts(NET, resolution=9)] == [9, 5, 3, 1]


def test_a_skip_that_changes_the_shape_is_a_part() -> None:
    wider, halved = replace(SKIP, out_channels=24), replace(SKIP, stride=2)
    for skip in (wider, halved):
        parts = network_parts(Architecture(name="net", resolution=21, blocks=(CONV, IR, skip, HEAD)))
        assert Part(6, 16, skip) in parts and len(parts) == 5


def test_equal_modules_are_equal_parts() -> None:
    assert placed(11, 8, replace(IR, padding=2)) == placed(11, 8, IR)
    assert placed(11, 8, replace(IR, padding=1)) != placed(11, 8, IR)
    assert placed(11, 8, replace(IR, padding=1)).out_side == 5  # (11 + 2 - 5) // 2 + 1


@pytest.mark.parametrize("resolution", [0, 5000])
def test_resolutions_out_of_range_are_refused(resolution: int) -> None:
    with pytest.raises(UserError, match=f"got {resolution}"):
        network_parts(NET, resolution=resolution)


def test_an_image_that_is_too_small_names_the_block() -> None:
    narrow = Architecture(name="net", resolution=3, blocks=(CONV, replace(IR, padding=0), HEAD))
    with pytest.raises(UserError, match="an image of side 3 is too small: the ir 5x5 block of 8 to 16 channels on 2x2"):
        network_parts(narrow)


@pytest.mark.parametrize("make", TINY.values(), ids=TINY)
def test_parts_of_a_space_are_those_of_all_its_networks(make: Callable[[], SearchSpace]) -> None:
    space = make()
    rows = all_rows(space)
    rows = rows if len(rows) <= 30_000 else np.random.default_rng(0).permutation(rows)[:30_000]
    expected = {
        part for row in np.unique(space.canonical(rows), axis=0) for part in network_parts(space.decode(row), 1)
    }
    found = space_parts(space, 1)
    assert len(found) == len(set(found))
    assert set(found) == expected


def tied_and_not() -> SearchSpace:
    """Two layers with the same options on the same map; widths of the first are one choice, of the second are two."""
    widths = [Range(name, (8, 16)) for name in ("stem and first", "second")]
    slots = [
        Slot(
            block=Choice(f"block{i}", (BLOCK_TYPES["ir_k3"],)), expansion=Range(f"e{i}", (2, 3)), width=width, stride=1
        )
        for i, width in enumerate(widths)
    ]
    return SearchSpace(
        "tied", resolution=Range("resolution", (9,)), stem=Stem(width=widths[0]), slots=slots,
        head=PoolHead(out_channels=16, expansion=2.0),
    )  # fmt: skip


def test_widths_that_are_one_choice_agree() -> None:
    space = tied_and_not()
    table = table_of(space)
    channels = {
        (p.in_channels, p.what.out_channels) for p in table.timings if isinstance(p.what, Block) and p.side == 5
    }
    assert {(8, 16), (16, 8)} < channels  # the second layer's; equal layers share one grid, these must not
    rows = all_rows(space)
    assert list(SpaceLatency(space, table).latency_ms(rows)) == [table.latency_ms(space.decode(row)) for row in rows]


@pytest.mark.parametrize(("make", "count"), [(digits, 3539), (cifar, 15286), (fbnetv3, 5467)])
def test_how_many_parts_the_spaces_have(make: Callable[[], SearchSpace], count: int) -> None:
    assert len(space_parts(make(), 3)) == count  # docs/latency.md prints these


def test_a_resolution_that_the_space_does_not_have_is_refused() -> None:
    with pytest.raises(UserError, match="cifar has no resolution 24; it has 20, 26, 32"):
        space_parts(cifar(), 3, [24])


# sums -----------------------------------------------------------------------------------------------------------------


def test_a_sum_without_seams_is_the_plain_sum() -> None:
    parts = network_parts(NET)
    timings = {part: Timing(ms, 0.0) for part, ms in zip(parts, (1.0, 2.0, 4.0, 8.0), strict=True)}
    table = replace(table_of(tiny_rows()), timings=timings)
    assert table.latency_ms(NET) == 15.0


def test_half_of_the_seam_on_either_side_is_taken_off() -> None:
    parts = network_parts(NET)
    timings = {part: Timing(ms, 0.0) for part, ms in zip(parts, (1.0, 2.0, 4.0, 8.0), strict=True)}
    seams = {Part(11, 8, "seam"): 0.1, Part(6, 16, "seam"): 0.2, Part(1, 32, "seam"): 0.4, CALL: 0.05}
    assert seams_of(parts) == [CALL, Part(11, 8, "seam"), Part(6, 16, "seam"), Part(1, 32, "seam")]
    table = replace(table_of(tiny_rows()), timings=timings | {part: Timing(ms, 0.0) for part, ms in seams.items()})
    # three inner maps, each the end of one part and the start of the next; image and logits have the call
    assert table.latency_ms(NET) == pytest.approx(15.0 - 0.1 - 0.2 - 0.4 - 0.05 + 0.05, abs=1e-12)
    assert table.part_ms(parts[0]) == pytest.approx(1.0 - 0.05 / 2 - 0.1 / 2, abs=1e-12)


def test_the_two_convolutions_of_seams_cancel() -> None:
    """Times made up as call + A of the map that enters + block + B of the map that leaves give call + blocks."""
    rng = np.random.default_rng(1)
    maps = ((11, 8), (6, 16), (1, 32))
    a, b = (dict(zip(maps, rng.uniform(1, 2, 3), strict=True)) for _ in "ab")
    call, blocks = 0.5, rng.uniform(1, 2, 4)
    timings = {CALL: Timing(call, 0.0)}
    timings |= {Part(*key, "seam"): Timing(call + a[key] + b[key], 0.0) for key in a}
    ends: list[tuple[float, float]] = [(0, b[11, 8]), (a[11, 8], b[6, 16]), (a[6, 16], b[1, 32]), (a[1, 32], 0)]
    for part, block, (before, after) in zip(network_parts(NET), blocks, ends, strict=True):
        timings[part] = Timing(call + before + block + after, 0.0)
    table = replace(table_of(tiny_rows()), timings=timings)
    assert table.latency_ms(NET) == pytest.approx(call + blocks.sum(), rel=1e-12)


def test_a_block_that_was_not_measured_is_named() -> None:
    table = replace(table_of(cifar(), resolutions=(20,)), where="table.json")
    with pytest.raises(UserError) as caught:
        table.latency_ms(load("fbnetv3_a"))
    message = str(caught.value)
    assert message.startswith(
        "table.json has no time of the conv 3x3 block of 3 to 16 channels on 224x224 (hswish, stride 2, bias True)"
    )
    assert message.endswith("measured for space cifar, 10 classes, 3 image channels, resolution 20")


# pools ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seams", [True, False])
@pytest.mark.parametrize("make", TINY.values(), ids=TINY)
def test_a_pool_has_exactly_the_latencies_of_its_networks(make: Callable[[], SearchSpace], seams: bool) -> None:
    space = make()
    table = table_of(space, in_channels=1, seams=seams)
    rows = np.random.default_rng(0).permutation(all_rows(space))[:500]
    found = SpaceLatency(space, table).latency_ms(rows)
    assert found.dtype == np.float64 and found.shape == (len(rows),)
    assert list(found) == [table.latency_ms(space.decode(row)) for row in rows]
    assert len(np.unique(found)) > 5


def test_a_pool_of_a_large_space() -> None:
    space = fbnetv3()
    table = table_of(space, resolutions=(240,))
    rows = np.random.default_rng(0).integers(0, space.option_counts, size=(50, len(space)))
    rows[:, space.column["resolution"]] = space.resolution.options.index(240)
    found = SpaceLatency(space, table).latency_ms(rows)
    assert list(found) == [table.latency_ms(space.decode(row)) for row in rows]


def test_a_pool_with_a_block_that_was_not_measured() -> None:
    space = tiny_stages()
    table = table_of(space)
    rows = all_rows(space)
    row = space.decode(rows[-1])
    gone = network_parts(row)[-3]
    lacking = SpaceLatency(space, replace(table, timings={p: t for p, t in table.timings.items() if p != gone}))
    uses = np.array([gone in network_parts(space.decode(row)) for row in rows[-200:]])
    assert uses.any() and not uses.all()
    with pytest.raises(UserError, match="no time of the ir"):
        lacking.latency_ms(rows[-200:])
    expected = SpaceLatency(space, table).latency_ms(rows[-200:])[~uses]
    assert list(lacking.latency_ms(rows[-200:][~uses])) == list(expected)  # what is not asked for may be missing


def test_a_pool_at_a_resolution_that_was_not_measured() -> None:
    space = cifar()
    latency = SpaceLatency(space, table_of(space, resolutions=(20,)))
    assert latency.latency_ms(np.zeros((1, len(space)), dtype=np.int64)).shape == (1,)
    with pytest.raises(UserError, match="no time of the conv 3x3 block of 3 to 16 channels on 32x32"):
        latency.latency_ms(space.option_counts - 1)


def test_rows_of_another_space_are_refused() -> None:
    space = tiny_rows()
    with pytest.raises(UserError, match="columns"):
        SpaceLatency(space, table_of(space)).latency_ms([[0, 0]])


# the file -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seams", [True, False])
def test_the_file_holds_everything(tmp_path: Path, seams: bool) -> None:
    blocks = network_parts(NET) + network_parts(load("fbnetv3_b")) + network_parts(load("fbnet_a"))
    timings = {part: Timing(0.125 * (1 + i), 0.001 * i) for i, part in enumerate(dict.fromkeys(blocks))}
    table = table_of(tiny_stages(), seams=seams)
    table = replace(table, timings={**table.timings, **timings})
    table.save(tmp_path / "table.json")
    loaded = LatencyTable.load(tmp_path / "table.json")
    assert replace(loaded, where=table.where) == table
    assert loaded.where == str(tmp_path / "table.json")
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "table.json").read_bytes()


def test_a_measurement_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    replace(table_of(tiny_rows()), turns_done=2).save(path)
    with pytest.raises(UserError, match=r"not complete \(2 of 3 turns\); go on with: nas latency --space .* --resume"):
        LatencyTable.load(path)
    assert LatencyTable.load(path, partial=True).turns_done == 2


def broken(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key, value in changes.items():
            where, (*path, last) = data, key.split("__")
            for step in path:
                where = where[int(step) if step.isdigit() else step]  # type: ignore[call-overload]
            where[int(last) if last.isdigit() else last] = value  # type: ignore[call-overload]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (broken(schema=2), "schema must be 1, got 2"),
        (broken(extra=1), "unknown key 'extra'"),
        (broken(conditions__backend="tvm"), "conditions.backend must be one of 'eager', 'onnxruntime', got 'tvm'"),
        (broken(conditions__threads=0), "threads must be in 1..1024, got 0"),
        (broken(num_classes=0), "num_classes must be in"),
        (broken(turns_done=4), "turns_done must be in 0..3, got 4"),
        (broken(blocks__0__latency_ms__0=0.0), "must be > 0, got 0.0"),
        (broken(blocks__0__latency_ms__0="1"), "latency_ms[0]"),
        (broken(blocks__0__latency_ms=[]), "columns of blocks[0] must be equally long"),
        (broken(blocks__0__shared__kind="mix"), "kind must be one of"),
        (broken(blocks__0__shared__colour=3), "unknown key 'colour'"),
        (broken(blocks__0__shared__out_channels=8), "blocks[0].shared must not hold out_channels"),
        (broken(blocks__0__shared__kernel=4), "kernel of a conv block must be odd"),
        (broken(call__side=[0, 0], call__in_channels=[0, 0], call__latency_ms=[1, 1], call__spread_ms=[0, 0]), "twice"),
    ],
)
def test_damaged_files_are_refused_in_one_line(
    change: Callable[[dict[str, Any]], None], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    table_of(tiny_rows()).save(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        LatencyTable.load(path)
    assert words in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{", '{"schema":1}', '{"schema":1,"name":"net","resolution":32,"blocks":[]}']
)
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"table\.json"):
        LatencyTable.load(path)
    with pytest.raises(UserError, match="cannot read"):
        LatencyTable.load(tmp_path / "none.json")


def test_the_committed_table_is_whole() -> None:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "latency_cifar_onnxruntime.json"
    table, space = LatencyTable.load(path), cifar()
    assert set(table.timings) == {*(blocks := space_parts(space, 3)), *seams_of(blocks)}
    assert path.stat().st_size < 1_000_000
