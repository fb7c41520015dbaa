"""``nas.export``: a trained run becomes an ONNX file, checked against the PyTorch outputs before it appears."""

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nas.loading import load_model
from search_spaces.errors import UserError
from search_spaces.serialisation import require

FORMATS = ("onnx",)
TOLERANCE = 1e-4  # largest allowed difference of any logit


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was written: the file, its size in bytes, and the largest difference of a logit from PyTorch's."""

    path: Path
    size_bytes: int
    max_difference: float


def export(source: str | Path, *, out: str | Path | None = None, format: str = "onnx") -> ExportResult:
    """Export a trained network with dynamic batch size, and compare both outputs.

    Args:
        source: run folder of ``nas train``, or its model.pt.
        out: file to write; default ``model.onnx`` beside the weights.
        format: ``"onnx"``.

    Raises:
        UserError: an unknown format, a run without weights, an unwritable place, or outputs that differ by more than 1e-4.
    """
    require(format in FORMATS, f"unknown format {format!r}; allowed: {', '.join(FORMATS)}")
    model = load_model(source)
    network, facts = model.network, model.facts
    source = Path(source)
    path = Path(out) if out is not None else (source if source.is_dir() else source.parent) / "model.onnx"
    require(path.parent.is_dir(), f"cannot write {path}: folder {path.parent} does not exist")
    require(not path.is_dir(), f"cannot write {path}: it is a folder; name a file")
    side = facts.resolution
    shape = (facts.in_channels, side, side)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write_onnx(network, shape, temporary)
        difference = onnx_difference(network, temporary, shape)
        require(
            difference <= TOLERANCE, f"ONNX outputs differ from PyTorch's by {difference:.2g}, more than {TOLERANCE:g}"
        )
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return ExportResult(path, path.stat().st_size, difference)


def _write_onnx(network: nn.Module, shape: tuple[int, int, int], path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its internals
        torch.onnx.export(
            network,
            (torch.zeros(2, *shape),),
            path,
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1)}},
        )


def onnx_difference(network: nn.Module, path: Path, shape: tuple[int, int, int]) -> float:
    """Largest difference of any logit between PyTorch and ONNX Runtime, over batches of 1, 3 and 8 random images.

    Raises:
        UserError: a logit of either is not finite, so that there is nothing to compare.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch in (1, 3, 8):
        images: Tensor = torch.randn(batch, *shape, generator=generator)
        (logits,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            expected: Tensor = network(images)
        found = torch.from_numpy(logits)
        for name, values in (("PyTorch", expected), ("ONNX Runtime", found)):
            require(bool(values.isfinite().all()), f"the network is not usable: logits of {name} are not finite")
        worst = max(worst, float((expected - found).abs().max()))
    return worst
