"""The layers of `benchmarks.flat_memory` under the Gumbel strategy of NNI 3.0, where that is installed."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


def nni_stack(widths: Sequence[int], layers: int, num_classes: int) -> nn.Module | None:
    """Convolution, norm and ReLU several times, every width a choice of ``widths``; None where NNI cannot be imported.

    Images `(B, 3, H, W)` to logits `(B, num_classes)`; every forward pass draws its own Gumbel noise.
    """
    try:
        import nni
        import nni.nas.nn.pytorch as nni_nn
        from nni.nas.strategy import GumbelDARTS
    except ImportError:
        return None

    class Stack(nni_nn.ModelSpace):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            width: Any = 3
            self.layers = nn.Sequential()
            for index in range(layers):
                before, width = width, nni.choice(f"width{index}", list(widths))
                self.layers.append(nni_nn.MutableConv2d(before, width, 3, padding=1, bias=False))
                self.layers.append(nni_nn.MutableBatchNorm2d(width))
                self.layers.append(nn.ReLU(inplace=True))
            self.classifier = nn.Linear(max(widths), num_classes)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.layers(images).mean((2, 3)))
            return logits

    mutated: nn.Module = GumbelDARTS().mutate_model(Stack())
    return mutated
