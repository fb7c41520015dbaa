"""The network without its least important filters: ``nas.prune_filters``, what document 004 asks for as further research.

"It would be interesting to reconstruct a CNN with the pruned features and observe its performance against the original CNN."
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from nas.designs import Design, build_design, design_cost
from nas.lenet import LeNet5
from nas.loading import MODEL, TrainedModel, save_model
from nas.training import default_recipe, train
from nas.trees.filters.channels import filter_group, narrowed
from nas.trees.filters.importance import Method
from nas.trees.filters.ranking import RankBy, rank_filters
from nas.trees.sources import Classifier, load_classifier
from recipes.datasets import Dataset
from recipes.evaluation import Evaluation, evaluate
from recipes.recipe import Recipe, load_recipe
from recipes.trainer import Callback
from search_spaces.architecture import Architecture, Block
from search_spaces.blocks import InvertedResidual, PoolHead
from search_spaces.cost import Cost
from search_spaces.counting import fvcore_cost
from search_spaces.serialisation import require, to_plain, write_json

RESULT, PRUNED, TUNED = "filters.json", "pruned", "tuned"
SLOWER = 0.1  # learning rate of fine-tuning, as a share of the recipe's


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """A narrower network.

    Attributes:
        design: what it is; None for a module that was given as one.
        model: with the weights of the filters that stayed, fine-tuned where that was asked for, in eval mode.
        kept: by layer, numbers of the filters that stayed.
        before: of the network as it was, on the test images.
        pruned: of the narrower one, not trained again.
        tuned: after fine-tuning; None without.
        cost_before: of the network as it was, for an image of the given side.
        cost: of the narrower one.
        out: folder with the results; None where nothing was written.
    """

    design: Design | None
    model: nn.Module
    kept: Mapping[str, tuple[int, ...]]
    before: Evaluation
    pruned: Evaluation
    tuned: Evaluation | None
    cost_before: Cost
    cost: Cost
    out: Path | None


def prune_filters(
    model: str | Path | TrainedModel | nn.Module,
    data: str | Dataset | None = None,
    *,
    keep: Mapping[str, int | float],
    by: RankBy | Method = "tree",
    epochs: int = 0,
    recipe: str | Path | Recipe | None = None,
    lr: float | None = None,
    out: str | Path | None = None,
    pretrained: str | Path | None = None,
    resolution: int | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    command: Sequence[str] = (),
) -> PruneResult:
    """Remove the least important filters of some convolutions from the network, and fine-tune what is left.

    Filters that other layers' channels are added to (a residual), and those of grouped convolutions, cannot be removed. A
    network of a search loses expanded channels of its blocks and is an Architecture again; LeNet-5 gets narrower widths.

    Args:
        model: as `filter_importance` takes.
        data: as `filter_importance` takes.
        keep: by layer, the number of filters that stay (a whole number), or their share (a float in (0, 1)), at least one.
        by: how filters are ranked, all from the network as it is given.
        epochs: of fine-tuning; 0: none. A module given as one is not fine-tuned here; `nas.fit` does that.
        recipe: of fine-tuning; default what suits the data set.
        lr: its learning rate; default a tenth of the recipe's.
        out: new folder: ``pruned`` (before fine-tuning) and ``tuned`` are taken like run folders of `nas train`, filters.json
            says what was done. None writes nothing.
        pretrained: weights of a network given by name.
        resolution: side of the images in pixels; default that of training.
        data_dir: where data sets are.
        seed: of fine-tuning.
        device: ``"cpu"`` or ``"cuda"``.
        resume: continue in ``out``.
        callbacks: of fine-tuning.
        command: recorded.

    Raises:
        UserError: anything wrong with the input, in one line.
    """
    by, folder = RankBy.of(by), None if out is None else Path(out)
    require(bool(keep), "name at least one convolution to remove filters of")
    require(epochs >= 0, f"epochs must be >= 0, got {epochs}")
    free = folder is None or resume or not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    require(free, f"{folder} is there already; choose another folder, or resume")
    found = load_classifier(model, data, pretrained=pretrained, resolution=resolution, data_dir=data_dir, device=device)
    counts = _counts(found.network, keep)
    stated = isinstance(found.design, Architecture | LeNet5)
    require(
        stated or (epochs == 0 and folder is None),
        "only networks of this toolkit and LeNet-5 are fine-tuned and written here: their designs can state other widths",
    )
    rankings = rank_filters(found, list(keep), by, device).layers
    kept = {r.layer: tuple(sorted(r.order[len(r.order) - counts[r.layer] :].tolist())) for r in rankings}
    small = found.network
    for layer, numbers in kept.items():
        small = narrowed(small, layer, numbers)
    design, small = _rebuilt(found, small) if stated else (None, small)
    small = small.to(device).eval()
    side, test = found.resolution, found.dataset.test
    result = PruneResult(
        design=design, model=small, kept=kept, tuned=None, out=folder,
        before=evaluate(found.network, test, resolution=side, device=device),
        pruned=evaluate(small, test, resolution=side, device=device),
        cost_before=_cost(found, found.design, found.network), cost=_cost(found, design, small),
    )  # fmt: skip
    if design is not None and (folder is not None or epochs > 0):
        with tempfile.TemporaryDirectory() if folder is None else nullcontext(str(folder)) as place:
            start = Path(place) / PRUNED
            start.mkdir(parents=True, exist_ok=True)
            save_model(start / MODEL, small.cpu(), design, _facts(found))
            small.to(device)
            if epochs > 0:
                usual = (
                    recipe if isinstance(recipe, Recipe) else load_recipe(recipe or default_recipe(found.dataset.name))
                )
                trained = train(
                    design, found.dataset, recipe=usual, epochs=epochs, lr=usual.lr * SLOWER if lr is None else lr,
                    pretrained=start, out=Path(place) / TUNED, resolution=side, seed=seed, device=device,
                    resume=resume, callbacks=callbacks, command=command,
                )  # fmt: skip
                result = replace(result, model=trained.model, tuned=trained.evaluation)
    if folder is not None:
        _write(folder, result, by, found.dataset.name)
    return result


def _counts(network: nn.Module, keep: Mapping[str, int | float]) -> dict[str, int]:
    """Number of filters that stay, by layer."""
    counts: dict[str, int] = {}
    owners: dict[str, str] = {}
    for layer, wanted in keep.items():
        group = filter_group(network, layer)
        other = owners.setdefault(group.layer, layer)
        require(other == layer, f"{layer} and {other} have the same filters; name one of them")
        if isinstance(wanted, float):
            require(0 < wanted < 1, f"the share of filters to keep of {layer} must be in (0, 1), got {wanted}")
            wanted = max(1, round(wanted * group.filters))
        require(1 <= wanted <= group.filters, f"filters to keep of {layer} must be in 1..{group.filters}, got {wanted}")
        counts[layer] = wanted
    return counts


def _rebuilt(found: Classifier, small: nn.Module) -> tuple[Design, nn.Module]:
    """The narrower network's design, and it built from that."""
    classes, channels = found.dataset.num_classes, found.dataset.in_channels
    design: Design
    if isinstance(found.design, LeNet5):
        widths = [_width(small, name) for name in ("convnet.c1", "convnet.c3", "convnet.c5", "fc.f6")]
        design = LeNet5(tuple(widths))  # type: ignore[arg-type]  # there are four
    else:
        assert isinstance(found.design, Architecture), "checked by the caller"
        design = _narrower(found.design, small, channels)
    made = build_design(design, classes, channels)
    made.load_state_dict(small.state_dict())
    return design, made


def _narrower(architecture: Architecture, small: nn.Module, in_channels: int) -> Architecture:
    blocks: list[Block] = []
    entering, entering_before = in_channels, in_channels
    modules = small.get_submodule("blocks")
    for block, module in zip(architecture.blocks, modules.children(), strict=True):
        widths: dict[str, int] = {}
        if isinstance(module, InvertedResidual):
            widths = {"mid_channels": _width(module, "dw.0"), "out_channels": _width(module, "pwl.0")}
        elif isinstance(module, PoolHead):
            widths = {"mid_channels": _width(module, "pw.0"), "out_channels": _width(module, "pwl")}
        elif not isinstance(module, nn.Identity):
            widths = {"out_channels": _width(module, "0")}
        made = replace(block, **widths)  # type: ignore[arg-type]
        added = block.kind in ("ir", "skip")
        require(
            not added or made.keeps_shape(entering) == block.keeps_shape(entering_before),
            f"a {block.kind} block would get {made.out_channels} channels in and out, and with them a residual that it was"
            " not trained with; keep one filter more or fewer",
        )
        blocks.append(made)
        entering, entering_before = made.out_channels, block.out_channels
    name = f"{architecture.name.removesuffix('-narrower')}-narrower"
    return replace(architecture, name=name, blocks=tuple(blocks))


def _width(module: nn.Module, name: str) -> int:
    return int(module.get_parameter(f"{name}.weight").shape[0])


def _cost(found: Classifier, design: Design | None, network: nn.Module) -> Cost:
    channels, side = found.dataset.in_channels, found.resolution
    if design is None:
        return fvcore_cost(network, in_channels=channels, resolution=side)
    return design_cost(design, num_classes=found.dataset.num_classes, in_channels=channels, resolution=side)


def _facts(found: Classifier) -> dict[str, Any]:
    return {
        "data": found.dataset.name,
        "num_classes": found.dataset.num_classes,
        "in_channels": found.dataset.in_channels,
        "class_names": list(found.dataset.class_names),
        "resolution": found.resolution,
    }


def _write(folder: Path, result: PruneResult, by: RankBy, data: str) -> None:
    accuracies = {
        name: {"accuracy": e.accuracy, "standard_error": e.standard_error, "correct": e.correct, "total": e.total}
        for name, e in (("before", result.before), ("pruned", result.pruned), ("tuned", result.tuned))
        if e is not None
    }
    costs = {"cost_before": result.cost_before._asdict(), "cost": result.cost._asdict()}
    kept = {layer: list(numbers) for layer, numbers in result.kept.items()}
    write_json(folder / RESULT, {"data": data, "by": to_plain(by), "kept": kept, **costs, **accuracies})
