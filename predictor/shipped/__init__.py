"""Predictors that come with the toolkit; `benchmarks/results` has the tables of candidates that they were fitted to."""

from importlib import resources
from pathlib import Path

from search_spaces.errors import UserError

SHIPPED = ("fbnetv3-cifar",)  # by joint space


def shipped_predictor(space: str) -> Path:
    """File of the predictor of a joint space.

    Raises:
        UserError: none comes with the toolkit for that space.
    """
    if space not in SHIPPED:
        raise UserError(
            f"no predictor of space {space!r} comes with the toolkit ({', '.join(SHIPPED)} does); give its file"
        )
    return Path(str(resources.files(__name__) / f"{space}.npz"))
