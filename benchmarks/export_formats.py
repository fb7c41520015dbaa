"""Every export format of FBNetV3-A and of a searched digits network: size, and outputs beside PyTorch's.

FBNetV3-A has fresh weights; its norms, zero weights and classifier are randomised, and the norms' statistics taken from
photographs, so that every layer and the image show in the logits. It is compared on photographs or, where int8 needs a
data set to calibrate with, on CIFAR-10 at 224 pixels. ExecuTorch is left out where it is not installed.

    python -m benchmarks.export_formats --data-dir DIR
"""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.tables import parser, write_table
from benchmarks.trained_networks import searched_digits
from nas.exporting import FORMATS, ExportSource, export_all
from nas.exporting.images import comparison_images
from nas.exporting.source import load_source

CALIBRATION = {"fbnetv3_a": 64}  # images; elsewhere the default


def randomise(source: ExportSource, generator: torch.Generator) -> None:
    """Norms, zero weights and the classifier at random, then statistics of norms from photographs.

    Without the latter the maps shrink from layer to layer until the logits no longer depend on the image.
    """
    norms = []
    for module in source.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            norms.append(module)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
        elif isinstance(module, nn.Conv2d) and not bool(module.weight.any()):
            nn.init.normal_(module.weight, 0, 0.1, generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.3, generator=generator)
    for norm in norms:
        norm.momentum = None  # the plain average
    with torch.no_grad():
        source.network.train()(comparison_images(source, None, 16).pixels)
    source.network.eval()


def rows_of(
    name: str, source: ExportSource, formats: list[str], data_dir: Path | None, seed: int
) -> list[dict[str, Any]]:
    """One row for every format and kind of batch size."""
    rows = []
    for batch in (None, 1):
        for form in formats:
            if batch is None and not FORMATS[form].free_batch:
                continue
            int8 = not FORMATS[form].exact
            with tempfile.TemporaryDirectory() as folder:
                (result,) = export_all(
                    source,
                    [form],
                    out=folder,
                    batch=batch,
                    data="cifar10" if int8 and source.data is None else None,
                    data_dir=data_dir,
                    calibration_images=CALIBRATION.get(name) if int8 else None,
                )
            rows.append(
                {
                    "network": name,
                    "format": form,
                    "batch": "any" if result.batch is None else result.batch,
                    "size_bytes": result.size_bytes,
                    "largest_difference": result.max_difference,
                    "largest_logit": result.comparison.largest_logit,
                    "relative_difference": result.comparison.relative,
                    "same_class": f"{result.comparison.same_class}/{result.comparison.images}",
                    "images": result.images,
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
    formats = [name for name in FORMATS if name != "executorch" or importlib.util.find_spec("executorch")]
    source = load_source("fbnetv3_a")
    randomise(source, torch.Generator().manual_seed(arguments.seed))
    rows = rows_of("fbnetv3_a", source, formats, arguments.data_dir, arguments.seed)
    digits = load_source(searched_digits(arguments.runs, arguments.seed))
    rows += rows_of("digits, searched", digits, formats, arguments.data_dir, arguments.seed)
    write_table(rows, arguments.out / "export_formats.csv")


if __name__ == "__main__":
    main()
