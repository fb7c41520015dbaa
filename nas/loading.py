"""Spaces, architectures and trained models by name or path."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas.designs import TORCHVISION, Design, TorchvisionModel, build_design, design_from_json, design_to_json
from nas.lenet import LeNet5, is_lenet5
from recipes.checkpoint import load_checkpoint, save_checkpoint
from search_spaces import zoo
from search_spaces.architecture import MAX_RESOLUTION, Architecture
from search_spaces.cost import check_image_and_classes, cost
from search_spaces.errors import UserError, closest, first_line
from search_spaces.loading import call_by_name
from search_spaces.serialisation import from_plain, require
from search_spaces.space import SearchSpace
from search_spaces.spaces import SPACES
from search_spaces.yaml_space import load_yaml_space

MODEL = "model.pt"
MODEL_SCHEMA = 1
YAML_SUFFIXES = (".yaml", ".yml")  # of a file that describes a space


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What must be known of a trained network besides its architecture and weights."""

    data: str
    num_classes: int
    in_channels: int
    resolution: int  # side of the training images in pixels
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        check_image_and_classes(self.num_classes, self.in_channels)
        require(
            1 <= self.resolution <= MAX_RESOLUTION, f"resolution must be in 1..{MAX_RESOLUTION}, got {self.resolution}"
        )
        require(
            len(self.class_names) == self.num_classes,
            f"class_names must be {self.num_classes} names, got {len(self.class_names)}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """What `nas train` made: a network with weights, in eval mode.

    Attributes:
        design: what the network is: an Architecture, or one of torchvision's by name.
        network: images `(b, in_channels, resolution, resolution)` to logits `(b, num_classes)`.
        facts: the data it was trained on.
    """

    design: Design
    network: nn.Module
    facts: ModelFacts


def load_space(space: str | Path | SearchSpace) -> SearchSpace:
    """A space by name, from a YAML file, or from a function written as ``module:function``.

    Raises:
        UserError: nothing of that name, an invalid file, or a function that returns no space.
    """
    if isinstance(space, SearchSpace):
        return space
    text = str(space)
    if text in SPACES:
        return SPACES[text]()
    if Path(text).suffix in YAML_SUFFIXES:
        return load_yaml_space(text)
    if ":" in text:
        made = call_by_name(text)
        if not isinstance(made, SearchSpace):
            raise UserError(f"space {text}: the function returned {type(made).__name__}, not a SearchSpace")
        return made
    raise UserError(f"unknown space {text!r}{closest(text, SPACES)} (or a .yaml file, or module:function)")


def load_architecture(source: str | Path | Architecture) -> Architecture:
    """An architecture from its JSON file, from the run folder that holds it, or a published one by name (`nas zoo`).

    ``NAME_low32`` is a published network's variant for images of 32 pixels.

    Raises:
        UserError: missing or damaged file, a run that has not ended, or an unknown name.
    """
    if isinstance(source, Architecture):
        return source
    path = Path(source)
    require(not str(source).startswith(TORCHVISION), f"{source} is a torchvision model; an architecture is needed here")
    if not path.exists() and path.name == str(source) and not path.suffix:
        return zoo.load(str(source))
    if path.is_dir():
        require((path / "architecture.json").is_file(), f"{path} holds no architecture.json; has the search ended?")
        path = path / "architecture.json"
    return Architecture.load(path)


def load_design(source: str | Path | Design) -> Design:
    """An architecture file, the run folder that holds it, a published network (`nas zoo`), ``torchvision:NAME`` or ``lenet5``.

    Raises:
        UserError: nothing of that name, a missing or damaged file.
    """
    if isinstance(source, TorchvisionModel | LeNet5):
        return source
    if isinstance(source, str) and is_lenet5(source):
        return LeNet5.parse(source)
    if isinstance(source, str) and source.startswith(TORCHVISION):
        return TorchvisionModel(source.removeprefix(TORCHVISION))
    return load_architecture(source)


def save_architectures(files: Mapping[Path, Architecture]) -> None:
    """Write new files, all or none; their folders are created.

    Raises:
        UserError: a file is there already, or cannot be written.
    """
    made: list[Path] = []  # in the order of making
    try:
        for path, architecture in files.items():
            require(not path.exists(), f"{path} is there already; choose another folder")
            missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
            for folder in reversed(missing):
                folder.mkdir()
                made.append(folder)
            require(path.parent.is_dir(), f"cannot write into {path.parent}: it is not a folder")
            made.append(path)
            architecture.save(path)
    except BaseException as error:
        for place in reversed(made):
            with contextlib.suppress(OSError):
                place.rmdir() if place.is_dir() else place.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {error.filename}: {error.strerror}") from error
        raise


def save_model(path: Path, network: nn.Module, design: Design, facts: Mapping[str, Any]) -> None:
    """Weights of a trained network with what is needed to use them; see `load_model`."""
    stored = {"schema": MODEL_SCHEMA, "architecture": design_to_json(design), **facts, "state": network.state_dict()}
    save_checkpoint(path, stored)


def load_model(source: str | Path) -> TrainedModel:
    """A trained network in eval mode, with its design and facts.

    Args:
        source: run folder of `nas train`, or its model.pt.

    Raises:
        UserError: missing, damaged, or not of this toolkit. Nothing in the file is run.
    """
    path = Path(source)
    if path.is_dir():
        require((path / MODEL).is_file(), f"{path} holds no {MODEL}: train it first (nas train {path})")
        path = path / MODEL
    stored = load_checkpoint(path)
    schema = stored.get("schema")
    known = type(schema) is int and schema == MODEL_SCHEMA  # a tensor compares element-wise
    require(known, f"{path} is no model of nas train: schema must be {MODEL_SCHEMA}, got {_short(schema)}")
    try:
        design = design_from_json(stored["architecture"], "architecture")
        plain = {key: value for key, value in stored.items() if key not in ("schema", "architecture", "state")}
        facts = from_plain(ModelFacts, plain, "facts")
        if isinstance(design, Architecture):
            exact = cost(
                design, num_classes=facts.num_classes, in_channels=facts.in_channels, resolution=facts.resolution
            )
            held = sum(tensor.numel() for tensor in stored["state"].values())
            require(held >= exact.params_all, f"it holds {held} weights, its network has {exact.params_all}")
        network = build_design(design, facts.num_classes, facts.in_channels)
        network.load_state_dict(stored["state"])
    except KeyError as error:
        raise UserError(f"{path} is damaged: key {error} is missing") from error
    except (ValueError, TypeError, RuntimeError, AttributeError, OverflowError, MemoryError) as error:
        raise UserError(f"{path} is damaged: {first_line(error)}") from error
    for name, tensor in network.state_dict().items():
        finite = not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
        require(finite, f"{path} is damaged: {name} holds values that are not finite")
    return TrainedModel(design=design, network=network.eval(), facts=facts)


def trained_folder(model: str | Path) -> Path:
    """The folder that holds model.pt: the one given, or that of the training inside a `nas demo` folder."""
    path = Path(model)
    inside = path / "train"
    return inside if not (path / MODEL).is_file() and (inside / MODEL).is_file() else path


def _short(value: object) -> str:
    """A value for an error message, on one line and not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
