"""Small trained networks that several scripts measure on; each is trained once and then kept in its run folder."""

from pathlib import Path

import nas
from nas.loading import MODEL
from recipes.recipe import Recipe, load_recipe
from search_spaces.architecture import Architecture
from search_spaces.limits import Limit
from search_spaces.sampling import rows_within

SEARCH_EPOCHS = 16
CIFAR_EPOCHS = {"cifar": 4, "fbnetv3_a_low32": 5}  # of 24 in the recipe: enough to see a drop, far from the best


def searched_digits(runs: Path, seed: int = 0) -> Path:
    """Run folder of the network that a search on digits finds within 0.2 MFLOPs; about 3 CPU-minutes."""
    search, folder = runs / "digits-search", runs / "digits"
    if not (folder / MODEL).is_file():
        nas.search("digits", "digits", flops="0.2M", epochs=SEARCH_EPOCHS, out=search, seed=seed, resume=True)
        nas.train(search, "digits", out=folder, seed=seed, resume=True)
    return folder


def sampled_cifar(runs: Path, data_dir: Path | None, seed: int = 0) -> Path:
    """Run folder of a random network of the space cifar with 4 to 6 MFLOPs; about 5 CPU-minutes."""
    space = nas.load_space("cifar")
    tables = nas.SpaceTables(space, num_classes=10, in_channels=3)
    (row,) = rows_within(space, 1, {"flops": Limit(low=4e6, high=6e6)}, tables=tables, seed=seed)
    return _trained(space.decode(row), runs / "cifar", CIFAR_EPOCHS["cifar"], data_dir, seed)


def low_resolution_fbnetv3(runs: Path, data_dir: Path | None, seed: int = 0) -> Path:
    """Run folder of FBNetV3-A's variant for 32 pixels; about 25 CPU-minutes."""
    architecture = nas.load_architecture("fbnetv3_a_low32")
    return _trained(architecture, runs / "fbnetv3", CIFAR_EPOCHS["fbnetv3_a_low32"], data_dir, seed)


def _trained(architecture: Architecture, folder: Path, epochs: int, data_dir: Path | None, seed: int) -> Path:
    if not (folder / MODEL).is_file():
        recipe: Recipe = load_recipe("cifar10-small").with_epochs(epochs)
        nas.train(architecture, "cifar10", recipe=recipe, data_dir=data_dir, out=folder, seed=seed, resume=True)
    return folder
