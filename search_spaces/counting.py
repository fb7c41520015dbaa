"""Independent count of a built network by fvcore, in the convention of the published numbers."""

import logging
import warnings

import torch
from torch import nn

from search_spaces.cost import Cost


def fvcore_cost(module: nn.Module, *, in_channels: int, resolution: int) -> Cost:
    """What fvcore counts: conv + linear + adaptive average pools; parameters read from the module.

    Args:
        module: a network of `build`; it is put in eval mode.
        in_channels: channels of the image.
        resolution: side of the image in pixels.
    """
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    image = torch.zeros(1, in_channels, resolution, resolution)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated.*")  # fvcore calls the tracer
        from fvcore.nn import FlopCountAnalysis  # slow import

        counts = FlopCountAnalysis(module.eval(), image).by_operator()
    weights = sum(m.weight.numel() for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    flops = sum(int(counts.get(operator, 0)) for operator in ("conv", "linear", "adaptive_avg_pool2d"))
    return Cost(flops, weights, sum(parameter.numel() for parameter in module.parameters()))
