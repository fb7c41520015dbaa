"""`nas latency`: what is timed, how turns and passes go, resuming, and wrong input. No test looks at a real time."""

import json
import math
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from nas.block_graphs import INPUT, BlockGraph
from nas.cli.main import run
from nas.latency import (
    TRIES,
    Clock,
    conditions_here,
    device_name,
    fresh_network,
    measure_latency,
    measure_space,
    quietest,
    time_in_turn,
)
from nas.latency_backends import part_graph
from nas.loading import load_space, save_model
from search_spaces.architecture import Architecture, Block
from search_spaces.blocks import build_block
from search_spaces.errors import UserError
from search_spaces.latency import LatencyTable, Timing
from search_spaces.latency_parts import CALL, Part, network_parts, seams_of, space_parts
from search_spaces.network import Network

SPACE = str(Path(__file__).with_name("tiny_space.yaml"))


def run_onnx(model: bytes, images: torch.Tensor) -> torch.Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(output)


def randomised(module: nn.Module) -> nn.Module:
    """Every weight, bias and statistic is random, so that nothing that is left out goes unnoticed."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            scale = 0.5 + noise if "var" in name else (noise - 0.5)
            tensor.data.copy_(scale)
    return module.eval()


def ir(**changes: Any) -> Block:
    facts: dict[str, Any] = {"out_channels": 16, "kernel": 3, "mid_channels": 24, "activation": "relu", **changes}
    return Block(kind="ir", **facts)


BLOCKS = {
    "conv": Block(kind="conv", out_channels=12, kernel=3, stride=2, activation="hswish"),
    "conv 1x1 with bias": Block(kind="conv", out_channels=12, kernel=1, activation="relu", bias=True),
    "residual": ir(),
    "stride": ir(kernel=5, stride=2, activation="hswish"),
    "squeeze": ir(kernel=5, squeeze_channels=8, activation="hswish"),
    "squeeze with relu": ir(squeeze_channels=8, out_channels=20),
    "no expansion": ir(mid_channels=16, pointwise=False),
    "odd widths": ir(mid_channels=21, out_channels=9),
    "bias": ir(bias=True, squeeze_channels=8),
    "padding": ir(kernel=5, padding=1),
    "groups": ir(groups=4, mid_channels=32),
    "group width": ir(group_width=8),
    "skip with stride": Block(kind="skip", out_channels=16, stride=2),
    "skip to other channels": Block(kind="skip", out_channels=24),
    "pool head": Block(kind="pool_head", out_channels=40, mid_channels=24, activation="hswish"),
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("batch", [1, 2])
def test_graphs_of_blocks_compute_what_pytorch_computes(block: Block, batch: int) -> None:
    module, side = randomised(build_block(block, 16)), 9
    images = torch.randn(batch, 16, side, side, generator=torch.Generator().manual_seed(2))
    graph = BlockGraph()
    model = graph.serialised(tuple(images.shape), graph.block(INPUT, module, side))
    with torch.no_grad():
        expected = module(images)
    torch.testing.assert_close(run_onnx(model, images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def exported(block: Block, side: int) -> tuple[Counter[str], Counter[str]]:
    """Operators of a network of one block as `nas export` writes it, and of our graph of its parts."""
    from nas.exporting.formats import Task, make_onnx, quiet

    stem = Block(kind="conv", out_channels=16, kernel=3, stride=2, activation="hswish")
    head = Block(kind="pool_head", out_channels=40, mid_channels=24, activation="relu")
    architecture = Architecture(name="net", resolution=side, blocks=(stem, block, head))
    network = randomised(Network(architecture, 5))
    assert isinstance(network, Network)
    with quiet():
        content = make_onnx(Task(network=network, shape=(3, side, side), batch=1)).content
    graph, x = BlockGraph(), INPUT
    *parts, _ = network_parts(architecture)
    for module, part in zip(network.blocks, parts, strict=True):
        x = graph.block(x, module, part.side)
    ours = graph.serialised((1, 3, side, side), graph.classifier(x, network.classifier))
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(run_onnx(ours, images), run_onnx(content, images), rtol=1e-4, atol=1e-4)
    of = lambda model: Counter(node.op_type for node in onnx.load_from_string(model).graph.node)  # noqa: E731
    return of(content), of(ours)


def test_graphs_have_the_nodes_of_the_exporter() -> None:
    theirs, ours = exported(ir(squeeze_channels=8, activation="hswish"), 18)
    assert ours == theirs and ours["Conv"] == 1 + 5 + 2


def test_parts_stand_between_two_convolutions() -> None:
    def shapes(part: Part, module: nn.Module | None) -> tuple[tuple[int, ...], Counter[str]]:
        model, shape = part_graph(part, module, 2)
        assert run_onnx(model, torch.ones(shape)).isfinite().all()
        return shape, Counter(node.op_type for node in onnx.load_from_string(model).graph.node)

    block = ir(stride=2)
    alone = Counter(Conv=3, Relu=2)
    assert shapes(Part(9, 16, block), build_block(block, 16).eval()) == ((2, 4, 9, 9), alone + Counter(Conv=2))
    stem = BLOCKS["conv"]
    assert shapes(Part(9, 3, stem, first=True), build_block(stem, 3).eval()) == (
        (2, 3, 9, 9),
        Counter(Conv=2, HardSwish=1),
    )
    assert shapes(Part(9, 16, "seam"), None) == ((2, 4, 9, 9), Counter(Conv=2))
    assert shapes(CALL, None) == ((1, 1, 1, 1), Counter(Relu=1))
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(16, 5))
    assert shapes(Part(1, 16, "classifier"), classifier)[1] == Counter(Conv=1, ReduceMean=1, Reshape=1, Gemm=1)


def test_maps_of_fresh_networks_keep_their_size() -> None:
    deep = Architecture(
        name="deep",
        resolution=16,
        blocks=tuple(ir(out_channels=width, activation="hswish") for width in (16, 16, 24) * 14),
    )
    network = fresh_network(deep, 5, 3, 16)
    assert not network.training
    assert all(
        bool(m.weight.all()) for m in network.modules() if isinstance(m, nn.BatchNorm2d)
    )  # residual branches too
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for block in network.blocks:  # type: ignore[union-attr]
            x = block(x)
            assert 0.05 < float(x.std()) < 50


# turns and passes -----------------------------------------------------------------------------------------------------


class FakeBackend:
    """Calls that take made-up time on a made-up clock; ``slow`` multiplies it in chosen passes."""

    name = "onnxruntime"
    has_seams = True

    def __init__(self, passes: int = 1) -> None:
        self.now, self.made, self.calls = 0.0, Counter[Part](), 0
        self.stop_after = math.inf
        self.passes = passes

    @property
    def clock(self) -> Clock:
        return Clock(seconds=lambda: self.now, interruptions=lambda: 0)

    @staticmethod
    def milliseconds(part: Part) -> float:
        """Different for most parts, and such that the clock adds up without rounding."""
        return 1000 * (1 + zlib.crc32(repr(part).encode()) % 8192) / 2**20

    def part(self, part: Part, num_classes: int, batch: int) -> Callable[[], object]:
        self.made[part] += 1
        slow = 1.0 if self.made[part] == (self.passes + 1) // 2 else 1.5  # only the middle pass is quiet

        def call() -> None:
            self.calls += 1
            if self.calls > self.stop_after:
                raise KeyboardInterrupt
            self.now += slow * (self.milliseconds(part) / 1000)

        return call

    def network(self, module: nn.Module, shape: tuple[int, ...]) -> Callable[[], object]:
        raise NotImplementedError


def test_calls_take_turns_and_warm_up_untimed() -> None:
    now, log = 0.0, []

    def call(name: str, seconds: float) -> Callable[[], None]:
        def work() -> None:
            nonlocal now
            now += seconds * (10 if log.count(name) < 2 else 1)  # cold at first
            log.append(name)

        return work

    conditions = replace(conditions_here("eager"), warmup=2, repeats=3)
    clock = Clock(seconds=lambda: now, interruptions=lambda: 0)
    times = time_in_turn([call("a", 0.5), call("b", 0.25)], conditions, clock)
    assert "".join(log) == "aabb" + "ab" * 3
    assert times.tolist() == [[500.0] * 3, [250.0] * 3]


@pytest.mark.parametrize(("interrupted", "calls", "expected"), [(0, 1, 90.0), (1, 2, 80.0), (1000, TRIES, 0.0)])
def test_calls_that_were_interrupted_are_made_again(interrupted: int, calls: int, expected: float) -> None:
    """Every call is 10 ms shorter than the one before."""
    now = made = count = 0

    def call() -> None:
        nonlocal now, made, count
        made += 1
        now += 100 - 10 * made
        count += made <= interrupted

    clock = Clock(seconds=lambda: now / 1000, interruptions=lambda: count)
    assert clock.milliseconds(call) == pytest.approx(expected, abs=1e-9)
    assert made == calls


def test_the_quietest_pass_counts() -> None:
    times = np.array([[9.0, 9, 9, 9, 9], [1, 2, 3, 4, 50], [3, 3, 3.5, 4, 4]])
    assert quietest(times) == Timing(3.0, 2.0)  # of the second pass: quartiles 2 and 4


def measured(tmp_path: Path, backend: FakeBackend, *, resume: bool = False, **numbers: Any) -> LatencyTable:
    numbers = {"passes": 3, "repeats": 2, "warmup": 1, "num_classes": 3, "in_channels": 1, **numbers}
    backend.passes = numbers["passes"]
    return measure_space(
        SPACE, out=tmp_path / "table.json", backend=backend, clock=backend.clock, resume=resume, **numbers  # type: ignore[arg-type]
    )  # fmt: skip


def test_every_part_is_measured_once_a_pass(tmp_path: Path) -> None:
    backend, states = FakeBackend(), []
    table = measured(tmp_path, backend, progress=states.append)
    blocks = space_parts(load_space(SPACE), 1)
    expected = {*blocks, *seams_of(blocks)}
    assert set(backend.made) == expected and set(backend.made.values()) == {3}
    assert backend.calls == len(expected) * 3 * (1 + 2)
    assert {part: timing.latency_ms for part, timing in table.timings.items()} == {
        part: pytest.approx(backend.milliseconds(part), rel=1e-3) for part in expected
    }
    assert replace(LatencyTable.load(tmp_path / "table.json"), where=table.where) == table
    assert (states[0].turns_done, states[0].blocks, states[0].others) == (0, len(blocks), len(expected) - len(blocks))
    assert [state.turns_done for state in states] == list(range(table.turns + 1))
    assert states[-1].seconds_left == 0


def test_a_backend_without_seams(tmp_path: Path) -> None:
    backend = FakeBackend()
    backend.has_seams = False
    table = measured(tmp_path, backend)
    assert set(table.timings) == set(space_parts(load_space(SPACE), 1)) and table.call_ms == 0


def test_a_stopped_measurement_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = measured(tmp_path, FakeBackend(), passes=1)
    (tmp_path / "table.json").unlink()
    backend = FakeBackend()
    backend.stop_after = 100  # somewhere in a turn
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, backend, passes=1)
    held = LatencyTable.load(tmp_path / "table.json", partial=True)
    assert 0 < held.turns_done < held.turns and set(held.timings) < set(whole.timings)
    rest = FakeBackend()
    table = measured(tmp_path, rest, passes=1, resume=True)
    assert table == whole
    assert set(rest.made) == set(whole.timings) - set(held.timings)
    again = FakeBackend()
    assert measured(tmp_path, again, passes=1, resume=True).timings == whole.timings and not again.made


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"repeats": 5}, "was begun with repeats 2, not 5"),
        ({"num_classes": 5}, "was begun with num_classes 3, not 5"),
        ({"resolutions": [8]}, "was begun with resolutions (8, 12), not (8,)"),
    ],
)
def test_another_measurement_is_not_gone_on_with(numbers: dict[str, Any], words: str, tmp_path: Path) -> None:
    measured(tmp_path, FakeBackend())
    before = (tmp_path / "table.json").read_bytes()
    with pytest.raises(UserError) as caught:
        measured(tmp_path, FakeBackend(), resume=True, **numbers)
    assert words in str(caught.value)
    with pytest.raises(UserError, match="is there already; go on with it by --resume"):
        measured(tmp_path, FakeBackend())
    assert (tmp_path / "table.json").read_bytes() == before


# the command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def architecture(tmp_path: Path) -> Path:
    space = load_space(SPACE)
    space.decode([1] * len(space)).save(tmp_path / "architecture.json")
    return tmp_path / "architecture.json"


def test_the_command_measures_a_network(architecture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--classes",
        "3",
        "--batch",
        "2",
        "--resolution",
        "11",
        "--repeats",
        "2",
        "--warmup",
        "0",
        "--passes",
        "2",
    ]
    assert run(["latency", str(architecture), *arguments, "--json", str(tmp_path / "out.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny: images of 3x11x11, 3 classes, ")
    assert [line.split()[0] for line in lines[2:4]] == ["eager", "onnxruntime"]
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["schema"] == 1
    eager, other = written["results"]
    assert (eager["conditions"]["backend"], other["conditions"]["backend"]) == ("eager", "onnxruntime")
    for result in (eager, other):
        assert (result["resolution"], result["num_classes"], result["in_channels"]) == (11, 3, 3)
        assert result["conditions"]["batch"] == 2 and result["conditions"]["versions"]["torch"] == str(
            torch.__version__
        )
        assert 0 < result["p10_ms"] <= result["median_ms"] <= result["p90_ms"]


def test_a_trained_network_is_measured_as_it_was_trained(tmp_path: Path) -> None:
    space = load_space(SPACE)
    design = space.decode([0] * len(space))
    facts = {"data": "digits", "num_classes": 3, "in_channels": 1, "resolution": 8, "class_names": ["a", "b", "c"]}
    design.save(tmp_path / "architecture.json")
    save_model(tmp_path / "model.pt", Network(design, 3, 1), design, facts)
    (result,) = measure_latency(tmp_path, backends=["eager"], repeats=1, passes=1, warmup=0)
    assert (result.num_classes, result.in_channels, result.resolution) == (3, 1, 8)
    with pytest.raises(UserError, match="--classes is for networks given by name; tiny has been trained"):
        measure_latency(tmp_path / "model.pt", num_classes=3)


def test_measuring_leaves_the_process_as_it_was(architecture: Path) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    measure_latency(architecture, backends=["eager"], threads=2, repeats=1, passes=1)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


@pytest.mark.parametrize("backend", ["onnxruntime", "eager"])
def test_the_command_measures_a_space(backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.json"
    few = [
        "--repeats",
        "1",
        "--warmup",
        "0",
        "--passes",
        "1",
        "--classes",
        "3",
        "--in-channels",
        "1",
        "--resolution",
        "12",
    ]
    assert run(["latency", "--space", SPACE, "--out", str(out), "--backend", backend, *few]) == 0
    captured = capsys.readouterr()
    assert f"{out}: " in captured.out and "distinct blocks and classifiers" in captured.err
    table, space = LatencyTable.load(out), load_space(SPACE)
    assert table.resolutions == (12,) and table.conditions.backend == backend
    row = [0] * len(space)
    row[space.column["resolution"]] = 1
    assert math.isfinite(table.latency_ms(space.decode(row)))


WRONG: list[tuple[list[str], str]] = [
    ([], "give a MODEL or --space, one of them"),
    (["fbnetv3_a", "--space", "cifar"], "give a MODEL or --space, one of them"),
    (["fbnetv3_aa"], "did you mean 'fbnetv3_a'?"),
    (["torchvision:resnet19"], "did you mean 'resnet18'?"),
    (["nowhere/architecture.json"], "cannot read nowhere/architecture.json"),
    (["nowhere/model.pt"], "nowhere/model.pt"),
    (["fbnetv3_a", "--backend", "onnx"], "unknown backend 'onnx'; allowed: eager, onnxruntime"),
    (["fbnetv3_a", "--repeats", "0"], "repeats must be in 1..100000, got 0"),
    (["fbnetv3_a", "--passes", "0"], "passes must be in 1..1000, got 0"),
    (["fbnetv3_a", "--warmup", "-1"], "warmup must be in 0..10000, got -1"),
    (["fbnetv3_a", "--batch", "0"], "batch must be in 1..4096, got 0"),
    (["fbnetv3_a", "--threads", "0"], "threads must be in 1..1024, got 0"),
    (["fbnetv3_a", "--threads", "100000"], "four for each core"),
    (["fbnetv3_a", "--classes", "0"], "num_classes must be in 1..1000000, got 0"),
    (["fbnetv3_a", "--in-channels", "0"], "in_channels must be in 1..1024, got 0"),
    (["fbnetv3_a", "--resolution", "0"], "resolution must be in 1..4096, got 0"),
    (["fbnetv3_a", "--resolution", "224,256"], "--resolution of a model must be one number, got 224,256"),
    (["fbnetv3_a", "--resolution", "big"], "--resolution must be whole numbers such as 224 or 192,224, got 'big'"),
    (["fbnetv3_a", "--out", "table.json"], "--out and --resume are for --space"),
    (["fbnetv3_a", "--json", "nowhere/out.json"], "cannot write nowhere/out.json"),
    (["--space", "cifarr", "--out", "table.json"], "unknown space 'cifarr'; did you mean 'cifar'?"),
    (["--space", "cifar"], "--out is missing"),
    (["--space", "cifar", "--out", "table.json", "--backend", "both"], "a latency table is of one backend"),
    (["--space", "cifar", "--out", "table.json", "--backend", "egaer"], "did you mean 'eager'?"),
    (
        ["--space", "cifar", "--out", "table.json", "--resolution", "24"],
        "cifar has no resolution 24; it has 20, 26, 32",
    ),
    (["--space", "cifar", "--out", "table.json", "--json", "out.json"], "--json is for a MODEL"),
    (["--space", "cifar", "--out", "table.json", "--resume"], "cannot read table.json"),
    (["--space", "cifar", "--out", "nowhere/table.json"], "folder nowhere does not exist"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_wrong_input_is_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["latency", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_images_that_torchvision_does_not_take(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["latency", "torchvision:alexnet", "--resolution", "16"]) == 2
    assert "torchvision:alexnet does not take images of 16 pixels" in capsys.readouterr().err


def test_the_name_of_the_processor(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: x\n", encoding="utf-8"
    )
    assert device_name(tmp_path / "cpuinfo").startswith("Some CPU @ 2 GHz (")
    assert device_name(tmp_path / "none").startswith("unknown processor (")
