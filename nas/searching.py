"""``nas.search``: from a space, a data set and a budget to an Architecture in a run folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nas.loading import load_space
from recipes.datasets import Dataset, load_dataset
from recipes.run_folder import RunFolder
from search_spaces.limits import Limit, parse_limits
from search_spaces.serialisation import require, to_plain
from search_spaces.space import SearchSpace
from search_spaces.tables import SpaceTables
from supernets.budget import Budget
from supernets.config import SearchConfig, preset
from supernets.search import SearchCallback, SearchResult
from supernets.search import search as search_supergraph


def parse_budgets(flops: str | Limit | None, params: str | Limit | None) -> list[Budget]:
    """Budgets of a search from its two options, of which exactly one is given; several limits are several searches.

    Raises:
        UserError: both or neither, or not the grammar of limits.
    """
    require((flops is None) != (params is None), "give one budget: --flops or --params (for example --flops 6M)")
    quantity, given = ("flops", flops) if flops is not None else ("params", params)
    limits = [given] if isinstance(given, Limit) else parse_limits(str(given))
    return [Budget(quantity, limit) for limit in limits]


def describe_space(space: SearchSpace) -> dict[str, Any]:
    """Name and options of every variable, as recorded in a run's configuration."""
    return {
        "name": space.name,
        "variables": {
            variable.name: [getattr(option, "name", option) for option in variable.options]
            for variable in space.variables
        },
    }


def search(
    space: str | Path | SearchSpace,
    data: str | Dataset,
    *,
    flops: str | Limit | None = None,
    params: str | Limit | None = None,
    out: str | Path | None = None,
    config: SearchConfig | None = None,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    resume: bool = False,
    callbacks: Sequence[SearchCallback] = (),
    command: Sequence[str] = (),
    **changes: Any,
) -> SearchResult:
    """Search a space for the best network inside one budget (DMaskingNAS).

    Args:
        space: name, YAML file, ``module:function``, or a SearchSpace.
        data: name of a data set, or a Dataset.
        flops: limit such as ``"6M"`` or ``"5M:6M"``; give this or ``params``.
        params: limit of the published parameter count.
        out: run folder; None keeps nothing on disk.
        config: how to search; None for what suits the data set.
        data_dir: where data sets are.
        device: ``"cpu"`` or ``"cuda"``.
        resume: continue the search in ``out``.
        callbacks: see `SearchCallback`.
        command: recorded in the run folder.
        **changes: fields of SearchConfig that differ from the preset, for example ``epochs=10``.

    Raises:
        UserError: anything wrong with the input, in one line.
    """
    (budget,) = _single(parse_budgets(flops, params))
    space = load_space(space)
    dataset = data if isinstance(data, Dataset) else load_dataset(data, data_dir)
    config = config or preset(dataset.name, **changes)
    tables = SpaceTables(space, num_classes=dataset.num_classes, in_channels=dataset.in_channels)
    budget.check(tables)
    require(device == "cpu" or torch.cuda.is_available(), f"device {device!r}: no CUDA device here; use --device cpu")

    def run_search(run: RunFolder | None) -> SearchResult:
        return search_supergraph(
            space,
            dataset.train,
            budget,
            config,
            num_classes=dataset.num_classes,
            in_channels=dataset.in_channels,
            run=run,
            callbacks=callbacks,
            device=device,
            resume=resume,
        )

    if out is None:
        require(not resume, "resume needs a run folder")
        return run_search(None)
    recorded = {
        "kind": "search",
        "space": describe_space(space),
        "data": dataset.name,
        "budget": to_plain(budget),
        "search": to_plain(config),
        "device": device,
        "threads": torch.get_num_threads(),
    }
    with RunFolder(out, recorded, seed=config.seed, command=command, resume=resume) as run:
        return run_search(run)


def _single(budgets: list[Budget]) -> list[Budget]:
    require(len(budgets) == 1, f"one search takes one budget, got {len(budgets)}; call search once for each")
    return budgets
