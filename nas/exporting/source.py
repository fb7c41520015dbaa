"""What is exported: a trained run, a published network, one of torchvision's, or an architecture file."""

import re
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from nas.designs import TORCHVISION, Design, TorchvisionModel
from nas.loading import TrainedModel, load_design, load_model
from nas.models import build_pretrained
from search_spaces.serialisation import require

CLASSES = 1000  # of a network that was not trained here: ImageNet's
CHANNELS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSource:
    """A network with weights and what is known of it.

    Attributes:
        design: what the network is.
        network: images `(b, in_channels, resolution, resolution)` to logits `(b, num_classes)`, in eval mode.
        num_classes: outputs.
        in_channels: channels of the image.
        resolution: side of the image in pixels.
        weights: where they are from, in words.
        fresh: whether they are as initialised, so that accuracy means nothing.
        stem: of file names.
        folder: where files go by default.
        class_names: None where they are not known.
        data: name of the data set it was trained on; None where that is not known.
    """

    design: Design
    network: nn.Module
    num_classes: int
    in_channels: int
    resolution: int
    weights: str
    fresh: bool = False
    stem: str = "model"
    folder: Path = Path()
    class_names: tuple[str, ...] | None = None
    data: str | None = None


def load_source(
    source: str | Path | TrainedModel,
    *,
    pretrained: str | Path | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
) -> ExportSource:
    """What ``source`` names, in eval mode.

    Args:
        source: run folder of `nas train` or its model.pt; a published network (`nas zoo`), ``torchvision:NAME`` or an
            architecture file, with fresh weights unless ``pretrained`` is given; or a loaded model.
        pretrained: a checkpoint as `nas.create_model` takes, or a run folder; not for a trained network.
        num_classes: outputs, default 1000; not for a trained network.
        in_channels: channels of the image, default 3; not for a trained network.

    Raises:
        UserError: nothing of that name, a missing or damaged file, an option that does not belong to the source.
    """
    path = None if isinstance(source, TrainedModel) else Path(source)
    if path is None or not _is_design(path, str(source)):
        for option, value in (("pretrained", pretrained), ("classes", num_classes), ("in-channels", in_channels)):
            require(value is None, f"--{option} is for networks given by name; {source!s:.80} has been trained")
        return _trained(source, path)
    classes = CLASSES if num_classes is None else num_classes
    channels = CHANNELS if in_channels is None else in_channels
    design, network = build_pretrained(
        load_design(str(source)), num_classes=classes, in_channels=channels, pretrained=pretrained, complete=True
    )
    stem = design.model if isinstance(design, TorchvisionModel) else path.stem
    return ExportSource(
        design=design,
        network=network.eval(),
        num_classes=classes,
        in_channels=channels,
        resolution=design.resolution,
        weights="fresh (seed 0)" if pretrained is None else f"checkpoint {pretrained}",
        fresh=pretrained is None,
        stem=re.sub(r"[^\w.-]", "_", stem),
    )


def _is_design(path: Path, text: str) -> bool:
    """Whether a network without weights is meant, rather than what `nas train` wrote."""
    bare = path.name == text and not path.suffix and not path.exists()
    return text.startswith(TORCHVISION) or path.suffix == ".json" or bare


def _trained(source: str | Path | TrainedModel, path: Path | None) -> ExportSource:
    model = source if isinstance(source, TrainedModel) else load_model(source)
    facts = model.facts
    return ExportSource(
        design=model.design,
        network=model.network.eval(),
        num_classes=facts.num_classes,
        in_channels=facts.in_channels,
        resolution=facts.resolution,
        weights="given in Python" if path is None else "trained by nas train",
        folder=Path() if path is None else (path if path.is_dir() else path.parent),
        class_names=facts.class_names,
        data=facts.data,
    )
