"""``nas.search``: from a space, a data set and a budget to an Architecture in a run folder."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nas.loading import load_space
from nas.reporting.live import shown_live
from recipes.datasets import Dataset, load_dataset
from recipes.distributed import own_device, process_group, ranks
from recipes.run_folder import RunFolder
from recipes.trainer import checked_device
from search_spaces.limits import Limit, format_quantity, parse_limits
from search_spaces.serialisation import require, to_plain
from search_spaces.space import SearchSpace
from search_spaces.tables import SpaceTables
from supernets.budget import Budget
from supernets.config import SearchConfig, preset
from supernets.progress import SearchCallback
from supernets.result import SearchResult
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


def budget_label(budget: Budget) -> str:
    """Short text of a budget that can be part of a folder's name, for example ``6M-flops`` or ``5M-6M-flops``."""
    low = f"{format_quantity(budget.limit.low)}-" if budget.limit.low else ""
    return f"{low}{format_quantity(budget.limit.high)}-{budget.quantity}"


def run_folders(out: Path | None, name: str, budgets: Sequence[Budget]) -> list[Path]:
    """One folder a budget: ``out`` itself for a single one, folders inside it for several; default below ``runs``.

    Raises:
        UserError: two budgets with the same label.
    """
    labels = [budget_label(budget) for budget in budgets]
    require(len(set(labels)) == len(labels), f"two budgets are alike: {', '.join(labels)}")
    plain = "".join(c if c.isalnum() or c in ".-_" else "-" for c in name).strip(".-") or "run"
    if len(budgets) == 1:
        return [out or Path("runs") / f"{plain}-{labels[0]}"]
    return [(out or Path("runs") / plain) / label for label in labels]


def describe_space(space: SearchSpace) -> dict[str, Any]:
    """Everything that makes the space what it is, constants and strides included, as recorded in a run's configuration."""
    return {
        "name": space.name,
        "resolution": to_plain(space.resolution),
        "stem": to_plain(space.stem),
        "slots": {f"layer{index}": to_plain(slot) for index, slot in enumerate(space.slots, start=1)},
        "head": to_plain(space.head),
        "squeeze": space.squeeze,
        "round_widths": space.round_widths,
    }


def search(
    space: str | Path | SearchSpace,
    data: str | Dataset,
    *,
    flops: str | Limit | None = None,
    params: str | Limit | None = None,
    out: str | Path | None = None,
    config: SearchConfig | None = None,
    classes: int | None = None,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    resume: bool = False,
    checkpoint_minutes: float = 10.0,
    callbacks: Sequence[SearchCallback] = (),
    command: Sequence[str] = (),
    **changes: Any,
) -> SearchResult:
    """Search a space for the best network inside one budget (DMaskingNAS).

    Under `torchrun` the processes search together (`recipes.distributed`): each calls this with the same arguments, process 0
    writes, all return the same.

    Args:
        space: name, YAML file, ``module:function``, or a SearchSpace.
        data: name of a data set, or a Dataset.
        flops: limit such as ``"6M"`` or ``"5M:6M"``; give this or ``params``.
        params: limit of the published parameter count.
        out: run folder; None keeps nothing on disk.
        config: how to search; None for what suits the data set.
        classes: search on so many of the classes, chosen by the seed (the thesis takes a tenth of ImageNet's); the budget
            counts the classifier of all.
        data_dir: where data sets are.
        device: ``"cpu"`` or ``"cuda"``.
        resume: continue the search in ``out``.
        checkpoint_minutes: between checkpoints at most.
        callbacks: see `SearchCallback`.
        command: recorded in the run folder.
        **changes: fields of SearchConfig that differ from the preset, for example ``epochs=10``.

    Raises:
        UserError: anything wrong with the input, in one line.
        Stopped: a SIGTERM came; the search goes on with ``resume``.
    """
    prepared = prepare(
        space, data, flops=flops, params=params, config=config, classes=classes, data_dir=data_dir, device=device, **changes
    )  # fmt: skip
    place = ranks()
    chosen = own_device(checked_device(device), place)
    require(not resume or out is not None, "resume needs a run folder")
    dataset, config = prepared.dataset, prepared.config
    folder: RunFolder | nullcontext[None] = nullcontext()
    if out is not None and place.main:
        folder = RunFolder(out, prepared.recorded, seed=config.seed, command=command, resume=resume)
    with folder as run, process_group(chosen, place), shown_live(None if run is None else run.path) as shown:
        return search_supergraph(
            prepared.space,
            dataset.train,
            prepared.budget,
            config,
            num_classes=dataset.num_classes,
            in_channels=dataset.in_channels,
            counted_classes=prepared.counted_classes,
            run=run,
            callbacks=[*callbacks, *shown] if place.main else [],
            device=chosen,
            resume=resume,
            checkpoint_minutes=checkpoint_minutes,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """Checked input of a search.

    Attributes:
        space: what can be chosen.
        dataset: with the classes that are searched on.
        counted_classes: of the classifier that the budget counts.
        budget: what the derived network must meet; some network of the space does.
        config: how to search.
        recorded: configuration of the run folder.
    """

    space: SearchSpace
    dataset: Dataset
    counted_classes: int
    budget: Budget
    config: SearchConfig
    recorded: dict[str, Any]


def prepare(
    space: str | Path | SearchSpace,
    data: str | Dataset,
    *,
    flops: str | Limit | None,
    params: str | Limit | None,
    config: SearchConfig | None,
    classes: int | None,
    data_dir: str | Path | None,
    device: str,
    **changes: Any,
) -> Prepared:
    """Load and check what a search is given; see `search`.

    Raises:
        UserError: anything wrong with it.
    """
    (budget,) = _single(parse_budgets(flops, params))
    loaded = load_space(space)
    dataset = data if isinstance(data, Dataset) else load_dataset(data, data_dir)
    require(config is None or not changes, f"give config or single settings, not both: {', '.join(changes)}")
    config = config or preset(dataset.name, **changes)
    counted = dataset.num_classes
    if classes is not None:
        dataset = dataset.of_classes(classes, config.seed)
    budget.witness(SpaceTables(loaded, num_classes=counted, in_channels=dataset.in_channels))
    recorded = {
        "kind": "search",
        "space": describe_space(loaded),
        "data": dataset.name,
        "classes": classes,
        "budget": to_plain(budget),
        "search": to_plain(config),
        "device": device,
        "threads": torch.get_num_threads(),
    }
    return Prepared(
        space=loaded, dataset=dataset, counted_classes=counted, budget=budget, config=config, recorded=recorded
    )


def _single(budgets: list[Budget]) -> list[Budget]:
    require(len(budgets) == 1, f"one search takes one budget, got {len(budgets)}; call search once for each")
    return budgets
