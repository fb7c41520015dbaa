"""What a search found, and its files in the run folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from recipes.run_folder import ARCHITECTURE, RunFolder
from search_spaces.architecture import Architecture
from search_spaces.cost import Cost
from search_spaces.errors import UserError, first_line
from search_spaces.serialisation import read_json, to_plain, write_json
from supernets.budget import Budget

RESULT = "result.json"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """What a search found.

    Attributes:
        architecture: the network to train.
        cost: its exact cost.
        argmax_cost: exact cost of the argmax network, before any repair.
        repaired: whether a repair was needed to meet the budget.
        choices: option that was taken, by variable, both as `alpha.csv` calls them.
    """

    architecture: Architecture
    cost: Cost
    argmax_cost: Cost
    repaired: bool
    choices: Mapping[str, str]


def write_result(run: RunFolder, result: SearchResult, budget: Budget) -> None:
    """`architecture.json` and, last of all the files of a search, `result.json`."""
    result.architecture.save(run.architecture)
    stored = {
        "schema": SCHEMA,
        "budget": to_plain(budget),
        "cost": result.cost._asdict(),
        "argmax_cost": result.argmax_cost._asdict(),
        "repaired": result.repaired,
        "choices": dict(result.choices),
    }
    write_json(run.path / RESULT, stored)


def read_result(folder: Path) -> SearchResult:
    """What a search that has ended wrote into its run folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    stored = read_json(folder / RESULT)
    try:
        cost, argmax_cost = (
            Cost(**{key: int(value) for key, value in stored[name].items()}) for name in ("cost", "argmax_cost")
        )
        repaired = bool(stored["repaired"])
        choices = {name: str(option) for name, option in stored.get("choices", {}).items()}  # not in the first runs
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / RESULT} is damaged: {first_line(error)}") from error
    architecture = Architecture.load(folder / ARCHITECTURE)
    return SearchResult(
        architecture=architecture, cost=cost, argmax_cost=argmax_cost, repaired=repaired, choices=choices
    )
