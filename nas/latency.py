"""``nas.measure_latency`` and ``nas.measure_space``: milliseconds of networks, and of every distinct block of a space.

Measured in *passes*: within one, a network (or a turn of blocks) is warmed up and then called again and again; between two of
them everything else is measured. The latency is the median of the quietest pass: other work on the machine comes and goes over
seconds and only ever adds. A call during which the system gave the processor to other work is made again.

Blocks are measured in *turns* of as many as a network of the space has, one call of each after the other, so that every block
finds the caches and the branch predictor as other blocks left them, which is how it finds them inside a network.
"""
# b images of a batch, c channels, r resolution

import os
import platform
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nas.designs import Design, build_design, design_cost
from nas.latency_backends import Backend, Call, Eager, OnnxRuntime, noise, seeded
from nas.loading import MODEL, TrainedModel, load_design, load_model, load_space
from search_spaces.architecture import MAX_RESOLUTION
from search_spaces.cost import check_image_and_classes
from search_spaces.errors import UserError, closest, first_line
from search_spaces.latency import BackendName, Conditions, LatencyTable, Timing
from search_spaces.latency_parts import Part, check_resolutions, seams_of, space_parts
from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import require, to_plain, write_json
from search_spaces.space import SearchSpace

BACKENDS: tuple[BackendName, ...] = ("eager", "onnxruntime")
SAVE_SECONDS = 30.0
TRIES = 10  # of a call that is interrupted
MODEL_SCHEMA = 1  # of the file with the figures of a model

Milliseconds = npt.NDArray[np.float64]


# timing ---------------------------------------------------------------------------------------------------------------


def interruptions() -> int:
    """How often the system has taken the processor from this process to run something else."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


@dataclass(frozen=True, slots=True)
class Clock:
    """What times are taken with: ``seconds``, and `interruptions`."""

    seconds: Callable[[], float] = time.perf_counter
    interruptions: Callable[[], int] = interruptions

    def milliseconds(self, call: Call) -> float:
        """Of one call. One that is interrupted is made again, up to `TRIES` times in all; then the shortest counts."""
        shortest = float("inf")
        for _ in range(TRIES):
            before, started = self.interruptions(), self.seconds()
            call()
            shortest = min(shortest, 1e3 * (self.seconds() - started))
            if self.interruptions() == before:
                break
        return shortest


CLOCK = Clock()


def time_in_turn(calls: Sequence[Call], conditions: Conditions, clock: Clock = CLOCK) -> Milliseconds:
    """One pass: warm-up calls, then timed calls, of each of ``calls`` one after the other.

    Args:
        calls: what to time.
        conditions: numbers of warm-up and timed calls.
        clock: takes the time.

    Returns:
        `(n_calls, repeats)`.
    """
    times = np.empty((len(calls), conditions.repeats))
    with torch.inference_mode():
        for call in calls:
            for _ in range(conditions.warmup):
                call()
        for repeat in range(conditions.repeats):
            for index, call in enumerate(calls):
                times[index, repeat] = clock.milliseconds(call)
    return times


def quietest(times: Milliseconds) -> Timing:
    """Median and distance of the quartiles in the pass with the smallest median, of times `(passes, repeats)`."""
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75), axis=1)
    best = int(median.argmin())
    return Timing(float(median[best]), float(high[best] - low[best]))


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def conditions_here(backend: BackendName, **numbers: int) -> Conditions:
    """Conditions of a measurement on this machine.

    Args:
        backend: ``"eager"`` or ``"onnxruntime"``.
        numbers: threads, batch, warmup, repeats, passes; defaults where not given.

    Raises:
        UserError: an unknown backend, a number out of range, or more than four threads for each core.
    """
    require(backend in BACKENDS, f"unknown backend {backend!r}{closest(backend, BACKENDS)}")
    most = 4 * (os.cpu_count() or 1)
    threads = numbers.get("threads", 1)
    require(threads <= most, f"threads must be in 1..{most} (four for each core), got {threads}")
    versions = {"torch": str(torch.__version__)}
    if backend == "onnxruntime":
        import onnxruntime

        versions["onnxruntime"] = onnxruntime.__version__
    return Conditions(backend=backend, **numbers, device=device_name(), versions=versions)


def device_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model of the processor, as Linux tells it, and its architecture."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == "model name"]
    return f"{models[0] if models and models[0] else 'unknown processor'} ({platform.machine()})"


def make_backend(conditions: Conditions) -> Backend:
    """The backend that ``conditions`` name."""
    return Eager() if conditions.backend == "eager" else OnnxRuntime(conditions.threads)


# networks --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelLatency:
    """Latency of one network in one backend, in milliseconds of one call.

    Attributes:
        model: name of the network.
        resolution: side of the images in pixels.
        num_classes: outputs.
        in_channels: channels of the image.
        flops: multiply-adds of one image.
        conditions: how it was measured.
        median_ms: of all calls.
        p10_ms: a tenth of all calls were faster.
        p90_ms: a tenth of all calls were slower.
        quietest_ms: median of the quietest pass; what tables and predictions are about.
        interruptions: times that other work took the processor while either backend was measured; such calls are made again.
    """

    model: str
    resolution: int
    num_classes: int
    in_channels: int
    flops: int
    conditions: Conditions
    median_ms: float
    p10_ms: float
    p90_ms: float
    quietest_ms: float
    interruptions: int


def measure_latency(
    model: str | Path | Design | TrainedModel,
    *,
    backends: Sequence[BackendName] = BACKENDS,
    num_classes: int | None = None,
    in_channels: int | None = None,
    resolution: int | None = None,
    threads: int = 1,
    batch: int = 1,
    warmup: int = 5,
    repeats: int = 20,
    passes: int = 5,
    clock: Clock = CLOCK,
) -> list[ModelLatency]:
    """Measure one network; the backends take turns.

    Args:
        model: run folder or model.pt of `nas train`; architecture file, run folder of a search, published network or
            ``torchvision:NAME``, with random weights.
        backends: in this order.
        num_classes: outputs, default 1000; not for trained networks.
        in_channels: channels of the image, default 3; not for trained networks.
        resolution: side of the images in pixels; default the network's own.
        threads: CPU threads of either backend.
        batch: images in one call.
        warmup: calls before every pass that are not timed.
        repeats: timed calls in every pass.
        passes: how often every backend has its turn.
        clock: takes the time.

    Returns:
        One result a backend.

    Raises:
        UserError: nothing of that name, a number out of range, or images that the network does not take.
    """
    numbers = {"threads": threads, "batch": batch, "warmup": warmup, "repeats": repeats, "passes": passes}
    require(len(backends) > 0, "backends must be at least one")
    conditions = [conditions_here(backend, **numbers) for backend in backends]
    design, network, classes, channels, side = _load(model, num_classes, in_channels, resolution)
    flops = int(design_cost(design, num_classes=classes, in_channels=channels, resolution=side).flops)
    shape = (channels, side, side)
    if network is None:
        network = fresh_network(design, classes, channels, side)
    with _threads(threads):
        calls = [make_backend(each).network(network, (batch, *shape)) for each in conditions]
        before = clock.interruptions()
        times = np.stack([[time_in_turn([c], conditions[0], clock)[0] for c in calls] for _ in range(passes)], axis=1)
    interrupted, results = clock.interruptions() - before, []
    for each, taken in zip(conditions, times, strict=True):
        p10, median, p90 = (float(value) for value in np.quantile(taken, (0.1, 0.5, 0.9)))
        results.append(
            ModelLatency(
                model=design.name,
                resolution=side,
                num_classes=classes,
                in_channels=channels,
                flops=flops,
                conditions=each,
                median_ms=median,
                p10_ms=p10,
                p90_ms=p90,
                quietest_ms=quietest(taken).latency_ms,
                interruptions=interrupted,
            )
        )
    return results


def save_latencies(path: str | Path, results: Sequence[ModelLatency]) -> None:
    """Write as JSON with a schema version, atomically."""
    write_json(path, {"schema": MODEL_SCHEMA, "results": to_plain(list(results))})


def _load(
    model: str | Path | Design | TrainedModel, num_classes: int | None, in_channels: int | None, resolution: int | None
) -> tuple[Design, nn.Module | None, int, int, int]:
    """Design, network if it is trained, classes, channels and resolution."""
    require(
        resolution is None or 1 <= resolution <= MAX_RESOLUTION,
        f"resolution must be in 1..{MAX_RESOLUTION}, got {resolution}",
    )
    if isinstance(model, (str, Path)) and (Path(model).suffix == ".pt" or (Path(model) / MODEL).is_file()):
        model = load_model(model)
    if isinstance(model, TrainedModel):
        for name, given in (("classes", num_classes), ("in-channels", in_channels)):
            require(given is None, f"--{name} is for networks given by name; {model.design.name} has been trained")
        facts = model.facts
        side = resolution or facts.resolution
        return model.design, model.network, facts.num_classes, facts.in_channels, side
    design = load_design(model)
    classes, channels = num_classes if num_classes is not None else 1000, in_channels if in_channels is not None else 3
    check_image_and_classes(classes, channels)
    return design, None, classes, channels, resolution or design.resolution


def fresh_network(design: Design, num_classes: int, in_channels: int, resolution: int) -> nn.Module:
    """A network with random weights whose maps are of a usual size, in eval mode.

    Without the statistics that training gives to batch norms, maps shrink from block to block, at worst to numbers so small
    that processors compute them slowly.

    Raises:
        UserError: images that the network does not take.
    """
    network = build_design(design, num_classes, in_channels)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # fresh residual branches end in zeros
            module.momentum = None  # plain average
    try:
        with seeded(), torch.no_grad():
            network.train()(noise((4, in_channels, resolution, resolution)))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"{design.name} does not take images of {resolution} pixels: {first_line(error)}") from error
    return network.eval()


# spaces ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceProgress:
    """How far `measure_space` is."""

    blocks: int
    others: int  # classifiers, seams, the call
    turns: int
    turns_done: int
    seconds: float  # since this process began to measure
    turns_here: int  # done by this process

    @property
    def seconds_left(self) -> float:
        """Estimate from the turns so far."""
        return (self.turns - self.turns_done) * self.seconds / max(1, self.turns_here)


def measure_space(
    space: str | Path | SearchSpace,
    *,
    out: str | Path,
    backend: BackendName | Backend = "onnxruntime",
    num_classes: int = 1000,
    in_channels: int = 3,
    resolutions: Sequence[int] | None = None,
    threads: int = 1,
    batch: int = 1,
    warmup: int = 3,
    repeats: int = 5,
    passes: int = 10,
    resume: bool = False,
    progress: Callable[[SpaceProgress], object] = lambda state: None,
    clock: Clock = CLOCK,
) -> LatencyTable:
    """Measure every distinct block of a space, in turns and passes, into a table that predicts its networks.

    The file is written every half minute and at the end, whole or not at all; a killed measurement goes on with ``resume``.

    Args:
        space: name, YAML file, ``module:function`` or a space.
        out: file to write.
        backend: ``"eager"``, ``"onnxruntime"`` or your own.
        num_classes: outputs of the classifier.
        in_channels: channels of the image.
        resolutions: sides of the images in pixels; default all of the space.
        threads: CPU threads of the backend.
        batch: images in one call.
        warmup: calls of a part before it is timed, in every pass.
        repeats: timed calls of every part in every pass.
        passes: how often every part is measured.
        resume: go on with the measurement in ``out``.
        progress: called before the first turn and after every turn.
        clock: takes the time.

    Raises:
        UserError: an unknown space or backend, a number out of range, a file that is there already (or, to resume, is not,
            or was measured in another way).
    """
    space, path = load_space(space), Path(out)
    name = backend if isinstance(backend, str) else backend.name
    numbers = {"threads": threads, "batch": batch, "warmup": warmup, "repeats": repeats, "passes": passes}
    conditions = conditions_here(name, **numbers)
    maker = make_backend(conditions) if isinstance(backend, str) else backend
    check_image_and_classes(num_classes, in_channels)
    sides = check_resolutions(space, resolutions)
    blocks = space_parts(space, in_channels, sides)
    parts = [*blocks, *(seams_of(blocks) if maker.has_seams else ())]
    size = len(space.slots) + 3  # stem, slots, head, classifier
    turns_of_pass = -(-len(parts) // size)
    table = LatencyTable(
        space=space.name,
        num_classes=num_classes,
        in_channels=in_channels,
        resolutions=sides,
        conditions=conditions,
        turns=passes * turns_of_pass,
        turns_done=0,
        timings={},
    )
    if not resume:
        _check_new(path)
    done = _begun(path, table, parts) if resume else None
    timings, first = dict(done.timings) if done else {}, done.turns_done if done else 0
    started = saved = clock.seconds()

    def save(turns_done: int) -> LatencyTable:
        ordered = {part: timings[part] for part in parts if part in timings}
        held = replace(table, timings=ordered, turns_done=turns_done)
        held.save(path)
        return held

    def report(turns_done: int) -> None:
        progress(
            SpaceProgress(
                blocks=len(blocks),
                others=len(parts) - len(blocks),
                turns=table.turns,
                turns_done=turns_done,
                seconds=clock.seconds() - started,
                turns_here=turns_done - first,
            )
        )

    turn = first
    if done is None:
        save(turn)  # a place that cannot be written is found out now
    report(turn)
    with _threads(threads):
        try:
            while turn < table.turns:
                index, at = divmod(turn, turns_of_pass)
                order = numpy_rng(0, "latency", index).permutation(len(parts))[at * size : (at + 1) * size]
                chosen = [parts[i] for i in order]
                times = time_in_turn([maker.part(part, num_classes, batch) for part in chosen], conditions, clock)
                for part, taken in zip(chosen, times, strict=True):
                    timing = Timing(*(float(f"{value:.4g}") for value in quietest(taken[None])))
                    timings[part] = min(timings.get(part, timing), timing)
                turn += 1
                report(turn)
                if clock.seconds() - saved > SAVE_SECONDS:
                    save(turn)
                    saved = clock.seconds()
        finally:
            held = save(turn)
    return held


def _check_new(path: Path) -> None:
    require(not path.exists(), f"{path} is there already; go on with it by --resume, or choose another file")
    require(path.parent.is_dir(), f"cannot write {path}: folder {path.parent} does not exist")


def _begun(path: Path, table: LatencyTable, parts: Sequence[Part]) -> LatencyTable:
    """The measurement in a file, which must be the one that ``table`` describes."""
    held = LatencyTable.load(path, partial=True)
    for name in ("space", "num_classes", "in_channels", "resolutions"):
        before, now = getattr(held, name), getattr(table, name)
        require(before == now, f"{path} was begun with {name} {before}, not {now}; it goes on as it began")
    before, now = asdict(held.conditions), asdict(table.conditions)
    for name, value in now.items():
        require(
            before[name] == value, f"{path} was begun with {name} {before[name]}, not {value}; it goes on as it began"
        )
    same = held.turns == table.turns and held.timings.keys() <= set(parts)
    require(same, f"{path} was begun with other blocks; has space {table.space} changed since?")
    return held
