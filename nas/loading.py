"""Spaces, architectures and trained models by name or path."""

import importlib
import sys
from pathlib import Path
from typing import Any

import torch

from recipes.checkpoint import load_checkpoint
from search_spaces import zoo
from search_spaces.architecture import Architecture
from search_spaces.errors import UserError, closest
from search_spaces.network import Network, build
from search_spaces.serialisation import require
from search_spaces.space import SearchSpace
from search_spaces.spaces import SPACES
from search_spaces.yaml_space import load_yaml_space

MODEL = "model.pt"
MODEL_SCHEMA = 1


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
    if Path(text).suffix in (".yaml", ".yml"):
        return load_yaml_space(text)
    if ":" in text:
        return _space_of_function(text)
    raise UserError(f"unknown space {text!r}{closest(text, SPACES)} (or a .yaml file, or module:function)")


def _space_of_function(text: str) -> SearchSpace:
    module_name, _, function_name = text.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        space = function()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"space {text}: {str(error).splitlines()[0]}") from error
    if not isinstance(space, SearchSpace):
        raise UserError(f"space {text}: the function returned {type(space).__name__}, not a SearchSpace")
    return space


def load_architecture(source: str | Path | Architecture) -> Architecture:
    """An architecture from its JSON file, from the run folder that holds it, or a published one by name (`nas zoo`).

    Raises:
        UserError: missing or damaged file, a run that has not ended, or an unknown name.
    """
    if isinstance(source, Architecture):
        return source
    path = Path(source)
    if not path.exists() and path.name == str(source) and not path.suffix:
        return zoo.load(str(source))
    if path.is_dir():
        require((path / "architecture.json").is_file(), f"{path} holds no architecture.json; has the search ended?")
        path = path / "architecture.json"
    return Architecture.load(path)


def save_model(path: Path, network: Network, architecture: Architecture, facts: dict[str, Any]) -> None:
    """Weights of a trained network with what is needed to use them; see `load_model`."""
    from recipes.checkpoint import save_checkpoint

    save_checkpoint(
        path,
        {"schema": MODEL_SCHEMA, "architecture": architecture.to_json(), **facts, "state": network.state_dict()},
    )


def load_model(source: str | Path) -> tuple[Network, Architecture, dict[str, Any]]:
    """A trained network in eval mode, its architecture, and facts: ``data``, ``num_classes``, ``in_channels``, ``class_names``.

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
    require(stored.get("schema") == MODEL_SCHEMA, f"{path} is no model of nas train: schema {stored.get('schema')!r}")
    try:
        architecture = Architecture.from_json(stored["architecture"], str(path))
        facts = {key: value for key, value in stored.items() if key not in ("schema", "architecture", "state")}
        network = build(architecture, int(facts["num_classes"]), int(facts["in_channels"]))
        network.load_state_dict(stored["state"])
    except (KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    require(
        all(bool(torch.isfinite(p).all()) for p in network.parameters()), f"{path} holds weights that are not finite"
    )
    return network.eval(), architecture, facts
