"""What a network's last layer sees: features of images, their labels, and what the network makes of them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nas.trees.induced import find_head
from recipes.evaluation import evaluation_mode
from recipes.sources import Source
from search_spaces.errors import UserError
from search_spaces.serialisation import require

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
BATCH = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Images as the last layer sees them, in the order of the source.

    Attributes:
        values: `(n, D)` float32, what comes into the last layer.
        labels: `(n,)` int64.
        predicted: `(n,)` int64, the class of the network's largest logit.
    """

    values: Floats
    labels: Ints
    predicted: Ints


def features_of(
    model: nn.Module,
    source: Source,
    num_classes: int,
    *,
    resolution: int,
    head: str | None = None,
    batch_size: int = BATCH,
    device: torch.device | str = "cpu",
) -> Features:
    """Features of all images of a source, from one pass in evaluation mode; nothing of the model is changed.

    A head that is a 1x1 convolution gives the mean of its input over positions, one that is a linear layer over more than
    two axes the mean over those in the middle.

    Args:
        model: images `(b, c, r, r)` to logits `(b, K)`; already on ``device``.
        source: images in order, not augmented.
        num_classes: K.
        resolution: r, side of the images in pixels.
        head: name of the last layer, where `find_head` needs it.
        batch_size: b, images at a time.
        device: where to compute.

    Raises:
        UserError: an empty source, no such layer, or one that does not run exactly once for a batch.
    """
    require(len(source) > 0, "there are no features: the source holds no images")
    name, layer = find_head(model, num_classes, head)
    seen: list[Tensor] = []
    values, predicted = [], []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    hook = layer.register_forward_pre_hook(keep)
    try:
        with evaluation_mode(model), torch.no_grad():  # not inference mode: modules may cache what they compute
            for images, _ in source.batches(batch_size, resolution=resolution):
                seen.clear()
                logits: Tensor = model(images.to(device))
                if len(seen) != 1 or len(seen[0]) != len(images):
                    raise UserError(f"layer {name!r} ran {len(seen)} times for {len(images)} images; name another head")
                values.append(_vectors(seen[0], isinstance(layer, nn.Conv2d)).float().cpu().numpy())
                predicted.append(logits.argmax(1).cpu().numpy())
    finally:
        hook.remove()
    return Features(
        values=np.concatenate(values),
        labels=source.labels.numpy().astype(np.int64),
        predicted=np.concatenate(predicted),
    )


def _vectors(inputs: Tensor, convolution: bool) -> Tensor:
    """`(b, D)`: mean over positions, which stand behind the channels of a convolution and before a linear layer's features."""
    return inputs.flatten(2).mean(2) if convolution else inputs.flatten(1, -2).mean(1) if inputs.ndim > 2 else inputs
