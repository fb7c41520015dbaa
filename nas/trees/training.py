"""``nas.train_nbdt``: train a network with tree supervision (thesis 5.3)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nas.designs import Design
from nas.loading import load_design, load_model, trained_folder
from nas.models import build_pretrained
from nas.training import TrainResult, default_recipe, train
from nas.trees.hierarchy import Hierarchy
from nas.trees.induced import METHODS
from nas.trees.losses import BETA, OMEGA, Form, MidTrainingTrees, TreeSupervision, Weight
from nas.trees.sources import require_same_classes
from nas.trees.wrapping import TREE, synsets_of, tree_of
from recipes.datasets import Dataset, load_dataset
from recipes.distributed import ranks
from recipes.recipe import Recipe, load_recipe
from recipes.trainer import Callback, Loss
from search_spaces.errors import UserError
from search_spaces.serialisation import require, to_plain


def train_nbdt(
    network: str | Path | Design,
    data: str | Dataset,
    *,
    tree: str | Path | Hierarchy | None = None,
    synsets: str | Path | Mapping[str, str | None] | None = None,
    head: str | None = None,
    rebuild: tuple[int, int, int] | None = None,
    omega: Weight = OMEGA,
    beta: Weight = BETA,
    form: Form = "nll",
    recipe: str | Path | Recipe | None = None,
    pretrained: str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> TrainResult:
    """Train a network so that a tree over its classes decides well: beta_t L_original + omega_t L_tree (Eq. 5.3).

    Args:
        network: as `nas.train` takes.
        data: name of a data set, or a Dataset.
        tree: run folder of a trained network: the tree that it was trained for, or that of its weights; a hierarchy file;
            ``wordnet``, ``random``, ``flat``; or a Hierarchy. Default: of ``pretrained``.
        synsets: of classes whose names do not tell, for ``wordnet``: a file as `read_synsets` takes, or by class.
        head: name of the last layer of the network that gives the tree, where `find_head` needs it.
        rebuild: instead of a tree: (start, end, period) in epochs of trees from the network's own weights (Table 5.4).
        omega: omega_t, weight of the tree's loss.
        beta: beta_t, weight of the network's cross entropy.
        form: of the tree's loss; see `TreeSupervision`.
        recipe: name, file or Recipe; None for what suits the data set.
        pretrained: weights to start from.
        out: run folder; None keeps nothing on disk.
        seed: of all randomness.
        data_dir: where data sets are.
        callbacks: see `recipes.trainer.Callback`.
        **options: of `nas.train`, and fields of the recipe that differ. A ``teacher`` softens the targets of both losses.

    Raises:
        UserError: anything wrong with the input, in one line.
    """
    dataset = data if isinstance(data, Dataset) else load_dataset(data, data_dir)
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe or default_recipe(dataset.name)))
    if options.get("epochs") is not None:
        recipe = recipe.with_epochs(options.pop("epochs"))
    require(tree is None or rebuild is None, "give a tree or rebuild, not both")
    most = max(omega.start, omega.last, beta.start, beta.last)
    require(most > 0, "omega and beta are 0 throughout: there is nothing to learn from")
    recorded: dict[str, Any] = {"form": form, "omega": to_plain(omega), "beta": to_plain(beta)}
    if rebuild is not None:
        start, end, period = rebuild
        trees = MidTrainingTrees(
            dataset.class_names, epochs=recipe.epochs, start=start, end=end, period=period,
            folder=None if out is None else Path(out),
        )  # fmt: skip
        fixed: Hierarchy | None = None
        recorded["rebuild"] = list(rebuild)
    else:
        if tree is not None:
            fixed = _given_tree(tree, dataset, synsets=synsets, head=head, seed=seed)
        else:
            fixed = _tree_of_weights(network, pretrained, dataset, head)
        recorded["tree"] = fixed.to_json()

    def loss(recipe: Recipe, teacher: nn.Module | None) -> Loss:
        return TreeSupervision(
            trees if fixed is None else fixed, omega=omega, beta=beta, form=form,
            label_smoothing=recipe.label_smoothing, teacher=teacher, distillation=recipe.distillation,
            temperature=recipe.distillation_temperature,
        )  # fmt: skip

    result = train(
        network, dataset, recipe=recipe, pretrained=pretrained, out=out, seed=seed, callbacks=callbacks, loss=loss,
        loss_callbacks=[trees] if fixed is None else [], recorded_loss=recorded, **options,
    )  # fmt: skip
    used = trees.last if fixed is None else fixed
    if out is not None and used is not None and ranks().main:
        used.save(Path(out) / TREE)
    return result


def _given_tree(
    tree: str | Path | Hierarchy,
    dataset: Dataset,
    *,
    synsets: str | Path | Mapping[str, str | None] | None,
    head: str | None,
    seed: int,
) -> Hierarchy:
    """The tree that ``tree`` names: of a run folder the one that it was trained for, or else that of its weights."""
    classes, folder = dataset.class_names, None if isinstance(tree, Hierarchy) else trained_folder(tree)
    if folder is None or not folder.is_dir():
        return tree_of(tree, classes, synsets=synsets_of(synsets, classes), seed=seed)
    if (folder / TREE).is_file():
        return tree_of(folder / TREE, classes)
    trained = load_model(folder)
    require_same_classes(trained.facts.class_names, dataset)
    return tree_of(METHODS[0], classes, trained.network, head=head)


def _tree_of_weights(
    network: str | Path | Design, pretrained: str | Path | None, dataset: Dataset, head: str | None
) -> Hierarchy:
    """The tree of the weights that training starts from."""
    if pretrained is None:
        raise UserError("a tree is needed: a trained network's run folder, a hierarchy file, wordnet, or rebuild")
    if trained_folder(pretrained).is_dir():
        return _given_tree(pretrained, dataset, synsets=None, head=head, seed=0)
    _, model = build_pretrained(
        load_design(network), num_classes=dataset.num_classes, in_channels=dataset.in_channels, pretrained=pretrained,
        complete=True,
    )  # fmt: skip
    return tree_of(METHODS[0], dataset.class_names, model, head=head)
