"""Spaces and modules that the supernet tests share."""

import torch
from torch import nn

from search_spaces.rows import Row, space_of_rows
from search_spaces.space import SearchSpace


def three_layers() -> SearchSpace:
    """Nine block types, three widths and expansions a layer, three resolutions, one of them of a non-integer ratio."""
    rows = [
        Row(expansion=(1,), width=(8, 12, 16)),
        Row(expansion=(0.75, 1.5, 3.0), width=(8, 16, 24), stride=2),
        Row(expansion=(0.75, 1.5, 3.0), width=(8, 16, 24)),
    ]
    return space_of_rows("three", rows, resolutions=(10, 13, 16), stem_width=8, head_width=24, head_expansion=3.0)


def randomise(module: nn.Module, seed: int) -> None:
    """Random norms (affine vectors and statistics) and biases: fresh ones hide leaks through masked channels."""
    generator = torch.Generator().manual_seed(seed)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            assert child.running_mean is not None and child.running_var is not None
            for tensor, low, high in (
                (child.weight, 0.5, 1.5),
                (child.bias, -0.5, 0.5),
                (child.running_mean, -0.5, 0.5),
                (child.running_var, 0.5, 2.0),
            ):
                tensor.data.uniform_(low, high, generator=generator)
        elif isinstance(child, (nn.Conv2d, nn.Linear)):
            if child.bias is not None:
                child.bias.data.uniform_(-0.5, 0.5, generator=generator)
            if isinstance(child, nn.Linear):
                child.weight.data.normal_(generator=generator)
