"""Accuracy that int8 costs networks trained here, and what other settings than the toolkit's would cost.

Of each network all test images are classified in float32 (PyTorch) and in int8 (onnxruntime); 512 training images calibrate.
The networks are trained for a few epochs only: the drop is what is measured, not the accuracy.

    python -m benchmarks.int8_accuracy --data-dir DIR
"""

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import CalibrationMethod, QuantType

from benchmarks.tables import parser, write_table
from benchmarks.trained_networks import low_resolution_fbnetv3, sampled_cifar, searched_digits
from nas.exporting.comparison import measure
from nas.exporting.export import CALIBRATION_BATCH, CALIBRATION_IMAGES
from nas.exporting.formats import INPUT, Task, load_onnx, make_onnx, quiet
from nas.exporting.images import calibration_batches
from nas.exporting.int8 import quantise
from nas.exporting.source import load_source
from recipes.datasets import load_dataset

Exclude = Callable[[onnx.ModelProto], list[str]]


def nothing(model: onnx.ModelProto) -> list[str]:
    """Every node is quantised."""
    return []


def ends(model: onnx.ModelProto) -> list[str]:
    """The first and the last layer."""
    layers = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    return [layers[0], layers[-1]]


def gates(model: onnx.ModelProto) -> list[str]:
    """Squeeze-and-excite: from each average of a feature map to the product with it."""
    found = []
    for start in model.graph.node:
        if start.op_type not in ("ReduceMean", "GlobalAveragePool"):
            continue
        branch, made = [start.name], set(start.output)
        for node in model.graph.node:
            if node.name == start.name or not made & set(node.input):
                continue
            branch.append(node.name)
            made |= set(node.output)
            if node.op_type == "Mul" and set(node.input) - made:  # times the feature map
                found += branch
                break
    return found


SETTINGS: dict[str, tuple[dict[str, Any], Exclude]] = {
    "default": ({}, nothing),
    "one weight scale a tensor": ({"per_channel": False}, nothing),
    "7-bit weights": ({"reduce_range": True}, nothing),
    "symmetric int8 activations": (
        {"activation_type": QuantType.QInt8, "extra_options": {"ActivationSymmetric": True}},
        nothing,
    ),
    "percentile 99.999": (
        {"calibrate_method": CalibrationMethod.Percentile, "extra_options": {"CalibPercentile": 99.999}},
        nothing,
    ),
    "percentile 99.9": (
        {"calibrate_method": CalibrationMethod.Percentile, "extra_options": {"CalibPercentile": 99.9}},
        nothing,
    ),
    "entropy": ({"calibrate_method": CalibrationMethod.Entropy}, nothing),
    "squeeze-and-excite in float32": ({}, gates),
    "first and last layer in float32": ({}, ends),
}


def rows_of(name: str, run: Path, data_dir: Path | None, seed: int) -> list[dict[str, Any]]:
    """One row for every setting."""
    source = load_source(run)
    dataset = load_dataset(str(source.data), data_dir)
    with quiet():
        shape = (source.in_channels, source.resolution, source.resolution)
        plain = make_onnx(Task(network=source.network, shape=shape)).content
    rows = []
    for setting, (changes, exclude) in SETTINGS.items():
        batches = calibration_batches(source, dataset, CALIBRATION_IMAGES, CALIBRATION_BATCH)
        with quiet(), contextlib.redirect_stdout(io.StringIO()):  # the calibrators print
            content = quantise(plain, batches, INPUT, changes=changes, exclude=exclude)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            path.write_bytes(content)
            got = measure(source.network, load_onnx(path), dataset.test, resolution=source.resolution, batch=None)
        rows.append(
            {
                "network": name,
                "data": dataset.name,
                "setting": setting,
                "float32_accuracy_percent": got.float32,
                "int8_accuracy_percent": got.exported,
                "drop_points": got.drop,
                "drop_standard_error": got.drop_standard_error,
                "same_class_percent": 100 * got.same_class / got.total,
                "test_images": got.total,
                "float32_bytes": len(plain),
                "int8_bytes": len(content),
                "seed": seed,
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Print and write the table."""
    options = parser(__doc__)
    options.add_argument("--data-dir", type=Path, default=None)
    options.add_argument("--runs", type=Path, default=Path("runs/trained_networks"))
    arguments = options.parse_args()
    torch.set_num_threads(1)
    runs, data_dir, seed = arguments.runs, arguments.data_dir, arguments.seed
    rows = rows_of("digits, searched", searched_digits(runs, seed), data_dir, seed)
    rows += rows_of("cifar, random", sampled_cifar(runs, data_dir, seed), data_dir, seed)
    rows += rows_of("fbnetv3_a_low32", low_resolution_fbnetv3(runs, data_dir, seed), data_dir, seed)
    write_table(rows, arguments.out / "int8_accuracy.csv")


if __name__ == "__main__":
    main()
