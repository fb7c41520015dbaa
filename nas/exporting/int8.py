"""Static quantisation of an ONNX file by onnxruntime: int8 weights, one scale a channel; uint8 activations.

The settings were chosen by measurement: `python -m benchmarks.int8_accuracy`.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "quant_format": QuantFormat.QDQ,
        "per_channel": True,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "calibrate_method": CalibrationMethod.MinMax,
    }
)
WORDS: Mapping[str, str] = MappingProxyType(
    {
        "weights": "int8, one scale a channel",
        "activations": "uint8, one scale a tensor",
        "calibration": "smallest and largest value",
    }
)
NODES = Callable[[onnx.ModelProto], list[str]]


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """What onnxruntime wants to be given."""

    def __init__(self, batches: Iterator[Tensor], name: str) -> None:
        self.batches, self.name = batches, name

    def get_next(self) -> dict[str, Any] | None:
        images = next(self.batches, None)
        return None if images is None else {self.name: images.numpy()}


def quantise(
    content: bytes,
    batches: Iterator[Tensor],
    name: str,
    *,
    changes: Mapping[str, Any] = MappingProxyType({}),
    exclude: NODES = lambda model: [],
) -> bytes:
    """The same network in int8.

    Args:
        content: ONNX, float32.
        batches: images `(b, c, r, r)` float32 to find the ranges of activations with.
        name: of the input.
        changes: arguments of onnxruntime's quantize_static that differ from `SETTINGS`, for benchmarks.
        exclude: names of the nodes of the prepared network that stay float32, for benchmarks.

    Returns:
        ONNX with QuantizeLinear and DequantizeLinear nodes.
    """
    with tempfile.TemporaryDirectory(prefix="nas-int8-") as folder:
        plain, prepared, made = (Path(folder) / f"{part}.onnx" for part in ("plain", "prepared", "int8"))
        plain.write_bytes(content)
        quant_pre_process(plain, prepared)
        model = onnx.load(prepared)
        for index, node in enumerate(model.graph.node):
            node.name = (
                node.name or f"{node.op_type}_{index}"
            )  # parts of h-swish have none, yet nodes are chosen by name
        onnx.save(model, prepared)
        excluded = exclude(model)
        quantize_static(prepared, made, _Batches(batches, name), nodes_to_exclude=excluded, **{**SETTINGS, **changes})
        return made.read_bytes()
