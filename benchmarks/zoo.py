"""Published networks beside what was published: FLOPs and parameters by our formulas and as fvcore counts the module.

python -m benchmarks.zoo
"""

import torch

from benchmarks.tables import parser, write_table
from search_spaces.cost import cost
from search_spaces.counting import fvcore_cost
from search_spaces.network import build
from search_spaces.zoo import load_networks


def digits(value: float) -> int:
    """Number of printed decimals."""
    return len(repr(value).partition(".")[2])


def main() -> None:
    """Print and write the table."""
    options = parser(__doc__)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, entry in load_networks().items():
        architecture, published = entry.architecture, entry.published
        ours = cost(architecture)
        counted = fvcore_cost(build(architecture, 1000), in_channels=3, resolution=architecture.resolution)
        row = {
            "network": name,
            "resolution": architecture.resolution,
            "flops_m": f"{ours.flops / 1e6:.6f}",
            "fvcore_flops_m": f"{counted.flops / 1e6:.6f}",
            "published_flops_m": "" if published is None else repr(published.flops_m),
            "params_m": f"{ours.params / 1e6:.6f}",
            "fvcore_params_m": f"{counted.params / 1e6:.6f}",
            "published_params_m": "" if published is None else repr(published.params_m),
            "params_all_m": f"{ours.params_all / 1e6:.6f}",
            "published_top1": "" if published is None else f"{published.top1:.2f}",
            "formulas_equal_fvcore": ours == counted,
            "equal_to_last_printed_digit": "",
        }
        if published is not None:
            pairs = ((ours.flops, published.flops_m), (ours.params, published.params_m))
            row["equal_to_last_printed_digit"] = all(
                round(exact / 1e6, digits(printed)) == printed for exact, printed in pairs
            )
        rows.append(row)
    write_table(rows, arguments.out / "zoo.csv")
    compared = [row["equal_to_last_printed_digit"] for row in rows if row["published_flops_m"]]
    agree = sum(bool(row["formulas_equal_fvcore"]) for row in rows)
    exact = f"{sum(map(bool, compared))} of {len(compared)}"
    print(f"formulas equal fvcore: {agree} of {len(rows)}; equal to the last printed digit: {exact}")


if __name__ == "__main__":
    main()
