"""What a recipe of one's own is worth (thesis Table 4.6): networks trained with their own, each other's and the base recipe.

The networks are the query's answers for a small and a large range of FLOPs (the thesis takes FBNetV3-B and E), or candidates
of the table by `--ids`. The recipe of each is the best predicted one with the network's variables fixed. A network outside the
space, such as one of the zoo, has no place here: the predictor cannot read it.

    python -m benchmarks.recipe_swap --run runs/nars-cifar10 --data-dir DIR
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.tables import parser, write_table
from benchmarks.trainings import (
    Run,
    Training,
    add_training_options,
    difference,
    new_seeds,
    over_seeds,
    read_run,
    train_by_options,
)
from recipes.recipe import Recipe
from search_spaces.errors import UserError
from search_spaces.limits import Limit, parse_limits
from search_spaces.serialisation import require
from search_spaces.variables import Rows

BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network with the recipe that the predictor finds best for it.

    Attributes:
        name: in the table.
        row: option indices of network and recipe `(d,)`.
        flops: multiply-adds.
        recipe: of the row.
    """

    name: str
    row: Rows
    flops: float
    recipe: Recipe


def with_best_recipe(run: Run, row: npt.ArrayLike, name: str) -> Network:
    """A network of the space `(d,)` and the best predicted recipe for it."""
    values = run.space.values(row)
    assert run.space.architecture is not None, "read_run refuses other spaces"
    fixed = {variable.name: values[variable.name] for variable in run.space.architecture.variables}
    answer = run.ask(run.flops_range, fixed)
    assert answer.recipe is not None, "read_run refuses other spaces"
    return Network(
        name=name, row=np.array(answer.row), flops=answer.quantities["flops"], recipe=answer.recipe
    )  # fmt: skip


def networks_of_budgets(run: Run, budgets: Sequence[Limit]) -> list[Network]:
    """The query's answer for each."""
    return [with_best_recipe(run, run.ask(budget).row, f"answer for {budget}") for budget in budgets]


def networks_of_table(run: Run, ids: Sequence[int]) -> list[Network]:
    """Candidates of the table.

    Raises:
        UserError: an id that is not there.
    """
    known = {trial.id: trial for trial in run.done}
    missing = [id for id in ids if id not in known]
    if missing:
        raise UserError(f"{run.path} has no trained candidate {missing[0]}")
    return [with_best_recipe(run, known[id].row, f"candidate {id}") for id in ids]


def recipes_of(run: Run, networks: Sequence[Network]) -> dict[str, Recipe]:
    """By name, every network's own and the base that the space's recipes vary."""
    assert run.space.recipe is not None, "read_run refuses other spaces"
    return {**{network.name: network.recipe for network in networks}, BASE: run.space.recipe.base}


def trainings_of(run: Run, networks: Sequence[Network], seeds: Sequence[int]) -> dict[tuple[str, str], list[Training]]:
    """One training a seed, by the names of network and recipe."""
    return {
        (network.name, name): [run.training(network.row, seed=seed, recipe=recipe) for seed in seeds]
        for network in networks
        for name, recipe in recipes_of(run, networks).items()
    }


def matrix(measured: Mapping[tuple[str, str], Sequence[float]]) -> list[dict[str, Any]]:
    """A line for every network and recipe: mean and deviation over seeds, and what the network's own recipe gains over it.

    Args:
        measured: accuracies in percent, one a seed and in the same order, by the names of network and recipe; a network's own
            recipe has its name.
    """
    lines = []
    for (network, recipe), found in measured.items():
        gain = difference(measured[network, network], found) if network != recipe else {}
        lines.append(
            {
                "network": network, "recipe": "own" if network == recipe else recipe, **over_seeds(found),
                **{name.replace("difference", "own_minus_this"): value for name, value in gain.items()},
                "seeds": len(found),
            }
        )  # fmt: skip
    return lines


def predictions(run: Run, networks: Sequence[Network]) -> dict[tuple[str, str], float]:
    """Predicted accuracy of every network with every network's recipe, percent."""
    columns = run.space.architecture_columns
    return {
        (a.name, b.name): float(run.predictor.predict(np.concatenate([a.row[:columns], b.row[columns:]])[None])[0])
        for a in networks
        for b in networks
    }


def main() -> None:
    """Train, print and write the table."""
    options = add_training_options(parser(__doc__))
    options.add_argument("--budgets", default="2M:4M,9M:12M", help="ranges of FLOPs, two or more")
    options.add_argument("--ids", default="", help="candidates of the table in their place: 12,180")
    arguments = options.parse_args()
    run = read_run(arguments.run)
    if arguments.ids:
        networks = networks_of_table(run, [int(id) for id in arguments.ids.split(",")])
    else:
        networks = networks_of_budgets(run, parse_limits(arguments.budgets))
    columns = run.space.architecture_columns
    different = len({tuple(network.row[:columns].tolist()) for network in networks})
    require(different == len(networks) >= 2, f"two or more different networks are needed, got {different}")
    trainings = trainings_of(run, networks, new_seeds(run, arguments.seeds))
    results = train_by_options([training for several in trainings.values() for training in several], arguments)
    measured = {key: [results[t.id]["curve"][-1] for t in several] for key, several in trainings.items()}
    predicted, flops = predictions(run, networks), {network.name: int(network.flops) for network in networks}
    lines = [
        {
            **line, "flops": flops[line["network"]], "predicted": predicted.get(key, float("nan")),
            "epochs": trainings[key][0].recipe.epochs,
        }
        for key, line in zip(measured, matrix(measured), strict=True)
    ]  # fmt: skip
    write_table(lines, arguments.out / "recipe_swap.csv")
    recipes = [
        {"recipe": name, **{field: getattr(recipe, field) for field in _searched(run)}}
        for name, recipe in recipes_of(run, networks).items()
    ]
    write_table(recipes, arguments.out / "recipe_swap_recipes.csv")


def _searched(run: Run) -> list[str]:
    """Fields of a recipe that the space searches."""
    assert run.space.recipe is not None, "read_run refuses other spaces"
    return [variable.name for variable in run.space.recipe.variables]


if __name__ == "__main__":
    main()
