"""The formats: how a file of each is made, and how it is run again."""
# b images of a batch, c channels, r resolution, k classes

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from search_spaces.serialisation import require

INPUT, OUTPUT = "images", "logits"
ANY_BATCH = 2  # images to trace with where the batch size is free; torch takes 1 for a constant
PHONE_BATCH = 1  # of formats whose batch size cannot be free

Run = Callable[[Tensor], Tensor]  # (b, c, r, r) float32 to (b, k)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What to write.

    Attributes:
        network: in eval mode.
        shape: `(c, r, r)` of an image.
        batch: fixed number of images, or None where any number may come.
        calibration: for int8, batches of normalised images `(b, c, r, r)`, to be read once.
    """

    network: nn.Module
    shape: tuple[int, int, int]
    batch: int | None = None
    calibration: Iterator[Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes of a file, and facts about it for the model card."""

    content: bytes
    details: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One format.

    Attributes:
        words: what it is.
        suffix: every file of it must have.
        ending: of the default file name, after its stem.
        make: network to bytes.
        load: a file of these bytes to something that runs it.
        exact: whether the outputs must equal PyTorch's.
        free_batch: whether the number of images can be left open.
    """

    words: str
    suffix: str
    ending: str
    make: Callable[[Task], Content]
    load: Callable[[Path], Run]
    exact: bool = True
    free_batch: bool = True


def traced(task: Task) -> ExportedProgram:
    """The network as torch.export sees it."""
    images = torch.zeros(task.batch or ANY_BATCH, *task.shape)
    shapes = None if task.batch else ({0: torch.export.Dim("batch", min=1)},)
    return torch.export.export(task.network, (images,), dynamic_shapes=shapes)


def make_onnx(task: Task) -> Content:
    """ONNX in float32, by torch's exporter."""
    program = torch.onnx.export(
        traced(task),
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=None if task.batch else ({0: torch.export.Dim("batch", min=1)},),
    )
    assert program is not None, "given with dynamo=True"
    model = program.model_proto
    return Content(model.SerializeToString(), {"opset": model.opset_import[0].version, "onnx_ir": model.ir_version})


def make_onnx_int8(task: Task) -> Content:
    """ONNX in int8, by onnxruntime's static quantisation."""
    from nas.exporting.int8 import WORDS, quantise  # onnx and onnxruntime take a second to import

    assert task.calibration is not None, "checked before"
    plain = make_onnx(task)
    return Content(quantise(plain.content, task.calibration, INPUT), {**plain.details, **WORDS})


def load_onnx(path: Path) -> Run:
    """Runs an ONNX file in onnxruntime on the CPU, with as many threads as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(logits)

    return run


def make_pt2(task: Task) -> Content:
    """A program of torch.export."""
    file = io.BytesIO()
    torch.export.save(traced(task), file)
    return Content(file.getvalue(), {"torch": torch.__version__})


def load_pt2(path: Path) -> Run:
    """Runs a file that `make_pt2` has just made. Others' may hold pickles, which torch.export.load would run."""
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(images)
        return logits

    return run


def require_executorch() -> None:
    """Refuse where ExecuTorch is not there.

    Raises:
        UserError: with the command that installs it.
    """
    found = importlib.util.find_spec("executorch") is not None
    require(found, "ExecuTorch is not installed; pip install 'nas-toolkit[executorch]'")


def make_executorch(task: Task) -> Content:
    """An ExecuTorch program for XNNPACK, which computes on the CPUs of phones."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.version import __version__

    lowered = to_edge_transform_and_lower(traced(task), partitioner=[XnnpackPartitioner()])
    outside = [
        node.target.__name__
        for node in lowered.exported_program().graph.nodes
        if node.op == "call_function" and node.target.__name__ not in ("executorch_call_delegate", "getitem", "alloc")
    ]
    details = {"executorch": __version__, "backend": "XNNPACK", "operators_outside_the_backend": len(outside)}
    return Content(bytes(lowered.to_executorch().buffer), details)


def load_executorch(path: Path) -> Run:
    """Runs an ExecuTorch file on this machine."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    assert method is not None, "every program of make_executorch has it"

    def run(images: Tensor) -> Tensor:
        logits: Tensor = method.execute([images])[0]
        return logits.clone()  # it lives in the program's own memory

    return run


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "onnx": Format(words="ONNX, float32", suffix=".onnx", ending=".onnx", make=make_onnx, load=load_onnx),
        "onnx-int8": Format(
            words="ONNX, int8", suffix=".onnx", ending="-int8.onnx", make=make_onnx_int8, load=load_onnx, exact=False
        ),
        "pt2": Format(words="torch.export, float32", suffix=".pt2", ending=".pt2", make=make_pt2, load=load_pt2),
        "executorch": Format(
            words="ExecuTorch with XNNPACK, float32", suffix=".pte", ending=".pte", make=make_executorch,
            load=load_executorch, free_batch=False,
        ),
    }
)  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that the exporters give about their own internals."""
    names = ("", "torch", "torch.onnx", "torchao", "executorch", "onnxruntime", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    silent = logging.NullHandler()  # without any handler logging.warning() would install one for good
    loggers[0].addHandler(silent)
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        loggers[0].removeHandler(silent)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
