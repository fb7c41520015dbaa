"""Recipes as a search space, and the joint space of networks and recipes (thesis Table 4.2, last row).

A candidate of a joint space is one row of option indices: the network's columns first, then the recipe's. No torch here.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from recipes.recipe import OPTIMIZERS, RECIPES, Recipe
from search_spaces.architecture import Architecture
from search_spaces.errors import UserError, closest
from search_spaces.serialisation import require
from search_spaces.small import digits, fbnetv3_cifar
from search_spaces.space import SearchSpace
from search_spaces.spaces import SPACES
from search_spaces.tables import SpaceTables
from search_spaces.variables import Choice, Range, Rows, Variable, VariableSet, span

Statistics = dict[str, npt.NDArray[np.int64]]


class RecipeSpace(VariableSet):
    """All recipes of a family: named fields of `Recipe` are searched, the others are those of ``base``.

    Args:
        name: what the space is called.
        base: the recipe around which is searched.
        variables: their names are fields of `Recipe`.
        lr_factors: by optimizer, what the learning rate of a row is multiplied by (thesis Table 4.2: 4 for SGD); 1 where
            none is given. The base's own rate is not multiplied.

    Raises:
        UserError: a variable that is no field, an unknown optimizer, or an option that `Recipe` refuses.
    """

    def __init__(
        self, name: str, base: Recipe, variables: Sequence[Variable], *, lr_factors: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(variables, name=name)
        self.base, self.lr_factors = base, MappingProxyType(dict(lr_factors or {}))
        fields = {field.name for field in dataclasses.fields(Recipe)} - {"name"}
        for variable in self.variables:
            if variable.name not in fields:
                raise UserError(f"recipe space {name}: no recipe has {variable.name!r}{closest(variable.name, fields)}")
        for optimizer in self.lr_factors:
            require(optimizer in OPTIMIZERS, f"recipe space {name}: unknown optimizer {optimizer!r} in lr_factors")
        for column, variable in enumerate(self.variables):  # what a row could not become is refused here
            for option in range(len(variable.options)):
                row = np.zeros(len(self), dtype=np.int64)
                row[column] = option
                try:
                    self.decode(row)
                except UserError as error:
                    raise UserError(f"recipe space {name}: {error}") from error

    def __repr__(self) -> str:
        return f"RecipeSpace({self.name!r}, {len(self)} variables)"

    def decode(self, row: npt.ArrayLike) -> Recipe:
        """The recipe of one row of option indices `(d,)`; it is called after the base.

        The learning rate is the row's times the optimizer's factor. Nesterov's momentum is left out where the optimizer is
        not SGD.

        Raises:
            UserError: a row of the wrong length or an index that does not exist.
        """
        rows = self.check_rows(row)
        require(len(rows) == 1, f"decode takes one row, got {len(rows)}")
        values = self.values(rows[0])
        optimizer = values.get("optimizer", self.base.optimizer)
        if "lr" in values:  # rounded so that 4 x 0.026 reads 0.104
            values["lr"] = round(values["lr"] * self.lr_factors.get(optimizer, 1.0), 12)
        if optimizer != "sgd":
            values["nesterov"] = False
        return self.base.replace(**values)

    def canonical(self, rows: npt.ArrayLike) -> Rows:
        """Checked rows `(n, d)`: two different rows never make the same recipe."""
        return self.check_rows(rows)


class JointSpace(VariableSet):
    """Networks and the recipes that train them; the network's columns come first.

    Args:
        name: what the space is called.
        architecture: the networks; None: the network is fixed (recipe-only search, thesis 4.4).
        recipe: the recipes; None: the recipe is fixed.
        description: one line for listings.

    Raises:
        UserError: neither part, or a name that both parts use.
    """

    def __init__(
        self, name: str, architecture: SearchSpace | None, recipe: RecipeSpace | None, *, description: str = ""
    ) -> None:
        require(architecture is not None or recipe is not None, f"joint space {name} has neither networks nor recipes")
        self.architecture, self.recipe, self.description = architecture, recipe, description
        first = architecture.variables if architecture is not None else ()
        second = recipe.variables if recipe is not None else ()
        both = sorted({v.name for v in first} & {v.name for v in second})
        require(not both, f"joint space {name}: networks and recipes both have a variable {', '.join(both)}")
        super().__init__([*first, *second], name=name)
        self.architecture_columns = len(first)
        self._tables: dict[tuple[int, int], SpaceTables] = {}

    def __repr__(self) -> str:
        return f"JointSpace({self.name!r}, {self.architecture_columns} + {len(self) - self.architecture_columns} variables)"

    def split(self, rows: npt.ArrayLike) -> tuple[Rows, Rows]:
        """Rows of the network part `(n, d_a)` and of the recipe part `(n, d_r)`; a part that is fixed has no columns."""
        array = self.check_rows(rows)
        return array[:, : self.architecture_columns], array[:, self.architecture_columns :]

    def decode(self, row: npt.ArrayLike) -> tuple[Architecture | None, Recipe | None]:
        """Network and recipe of one row `(d,)`; None for the part that is fixed.

        Raises:
            UserError: a row of the wrong length or an index that does not exist.
        """
        first, second = self.split(row)
        require(len(first) == 1, f"decode takes one row, got {len(first)}")
        network = self.architecture.decode(first[0]) if self.architecture is not None else None
        return network, self.recipe.decode(second[0]) if self.recipe is not None else None

    def canonical(self, rows: npt.ArrayLike) -> Rows:
        """Rows that build the same network and train it the same way become the same row `(n, d)`."""
        first, second = self.split(rows)
        if self.architecture is not None:
            first = self.architecture.canonical(first)
        return np.concatenate([first, second], axis=1)

    def tables(self, *, num_classes: int, in_channels: int) -> SpaceTables:
        """Cost tables of the network part, built once.

        Raises:
            UserError: the network is fixed, or a number out of range.
        """
        if self.architecture is None:
            raise UserError(f"joint space {self.name} has no networks to count")
        key = (num_classes, in_channels)
        if key not in self._tables:
            self._tables[key] = SpaceTables(self.architecture, num_classes=num_classes, in_channels=in_channels)
        return self._tables[key]

    def statistics(self, rows: npt.ArrayLike, *, num_classes: int, in_channels: int) -> Statistics:
        """Exact facts of every row's network, int64 `(n,)` each; none where the network is fixed.

        Returns:
            ``flops`` (multiply-adds), ``params`` (published convention), ``params_all`` and ``resolution`` (pixels).
        """
        if self.architecture is None:
            return {}
        first, _ = self.split(rows)
        counted = self.tables(num_classes=num_classes, in_channels=in_channels).cost(first)
        sides = np.array(self.architecture.resolution.options, dtype=np.int64)
        resolution = sides[self.architecture.picked(first, self.architecture.resolution)]
        return {**{k: np.asarray(v) for k, v in counted._asdict().items()}, "resolution": resolution}


# Thesis 4.4: candidates train for 150 epochs, the rate falling by 0.963 an epoch. The rest as in the final recipe.
CANDIDATE = RECIPES["nars"].replace(name="nars-candidate", epochs=150, decay_per_epoch=0.963, decay_epochs=150.0)


def nars_recipes(*, search_ema: bool) -> RecipeSpace:
    """The recipe row of thesis Table 4.2 (reading: d from 0 to 0.31, printed with an impossible unit).

    Args:
        search_ema: whether EMA is searched (recipe-only search) or always on (joint search, thesis 4.4).
    """
    ema: list[Variable] = [Choice("ema", (True, False))] if search_ema else []
    variables: list[Variable] = [
        Range("lr", span(0.020, 0.030, 0.001)),
        Choice("optimizer", ("rmsprop", "sgd")),
        *ema,
        Range("dropout", span(0.01, 0.31, 0.01)),
        Range("stochastic_depth", span(0.0, 0.31, 0.01)),
        Range("mixup", span(0.0, 0.41, 0.01)),
        Range("weight_decay", span(7e-6, 21e-6, 1e-6)),
    ]
    return RecipeSpace("nars", CANDIDATE, variables, lr_factors={"sgd": 4.0})


def cifar_recipes() -> RecipeSpace:
    """The same shape for networks of 2 to 12 MFLOPs on 32x32 images and some 24 epochs.

    SGD's rates are 80 times RMSProp's, 0.08 to 0.48: five epochs on 8,000 images of CIFAR-10 went alike at 0.1 to 0.4 with SGD
    and at 0.0025 to 0.005 with RMSProp, and far worse from 0.02 on.
    """
    base = RECIPES["cifar10-small"].replace(name="cifar10-candidate", ema=True)
    variables: list[Variable] = [
        Range("lr", span(0.001, 0.006, 0.0005)),
        Choice("optimizer", ("rmsprop", "sgd")),
        Range("dropout", span(0.0, 0.30, 0.02)),
        Range("stochastic_depth", span(0.0, 0.20, 0.02)),
        Range("mixup", span(0.0, 0.40, 0.02)),
        Range("weight_decay", span(1e-4, 1e-3, 1e-4)),
    ]
    return RecipeSpace("cifar10", base, variables, lr_factors={"sgd": 80.0})


def digits_recipes() -> RecipeSpace:
    """A few recipes for the digits; SGD's rates are 0.04 to 0.2."""
    base = RECIPES["digits"].replace(name="digits-candidate", ema=True)
    variables: list[Variable] = [
        Range("lr", span(0.002, 0.010, 0.002)),
        Choice("optimizer", ("rmsprop", "sgd")),
        Range("dropout", span(0.0, 0.2, 0.1)),
        Range("mixup", span(0.0, 0.2, 0.1)),
        Range("weight_decay", (1e-4, 5e-4, 1e-3)),
    ]
    return RecipeSpace("digits", base, variables, lr_factors={"sgd": 20.0})


JOINT_SPACES: Mapping[str, Callable[[], JointSpace]] = MappingProxyType(
    {
        "fbnetv3": lambda: JointSpace(
            "fbnetv3",
            SPACES["fbnetv3"](),
            nars_recipes(search_ema=False),
            description="FBNetV3, networks and recipes (thesis Table 4.2)",
        ),
        "fbnetv3-recipe": lambda: JointSpace(
            "fbnetv3-recipe",
            None,
            nars_recipes(search_ema=True),
            description="recipes for one fixed network (thesis Table 4.2 and 4.4)",
        ),
        "fbnetv3-cifar": lambda: JointSpace(
            "fbnetv3-cifar", fbnetv3_cifar(), cifar_recipes(), description="the joint space for 32x32 images"
        ),
        "digits-joint": lambda: JointSpace(
            "digits-joint", digits(), digits_recipes(), description="the joint space for the digits"
        ),
    }
)


def load_joint(name: str | JointSpace) -> JointSpace:
    """A joint space by name; a JointSpace is returned as it is.

    Raises:
        UserError: nothing of that name.
    """
    if isinstance(name, JointSpace):
        return name
    if name not in JOINT_SPACES:
        raise UserError(f"unknown joint space {name!r}{closest(name, JOINT_SPACES)}")
    return JOINT_SPACES[name]()
