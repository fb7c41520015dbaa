"""Efficient-network design: search, train, export.

Everything a user calls is here, loaded on first use: ``nas.search``, ``nas.train``, ``nas.export``, ``nas.report``,
``nas.build``, ``nas.cost``, ``nas.load_space``, ``nas.load_architecture``, ``nas.load_dataset``, ``nas.load_recipe`` and the
classes they take and return.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "search": "nas.searching",
    "train": "nas.training",
    "export": "nas.exporting",
    "load": "search_spaces.zoo",
    "load_space": "nas.loading",
    "load_architecture": "nas.loading",
    "load_model": "nas.loading",
    "load_variables": "recipes.loading",
    "fit_predictor": "nas.predictors",
    "Predictor": "predictor.predictor",
    "RunFolder": "recipes.run_folder",
    "evaluate": "recipes.evaluation",
    "fit": "recipes.trainer",
    "load_dataset": "recipes.datasets",
    "split_indices": "recipes.sources",
    "load_recipe": "recipes.recipe",
    "build": "search_spaces.network",
    "build_backbone": "search_spaces.backbone",
    "TorchvisionModel": "nas.designs",
    "build_design": "nas.designs",
    "cost": "search_spaces.cost",
    "create_model": "nas.models",
    "nars": "nas.rounds",
    "nbdt": "nas.trees.wrapping",
    "train_nbdt": "nas.trees.training",
    "NBDT": "nas.trees.nbdt",
    "filter_importance": "nas.trees.filters.ranking",
    "pruning_curves": "nas.trees.filters.pruning",
    "prune_filters": "nas.trees.filters.removal",
    "RankBy": "nas.trees.filters.ranking",
    "LeNet5": "nas.lenet",
    "tree_outputs": "nas.trees.outputs",
    "path_entropy": "nas.trees.analyses",
    "max_similarity": "nas.trees.analyses",
    "traversals": "nas.trees.analyses",
    "posit_hypothesis": "nas.trees.superclasses",
    "node_hypothesis": "nas.trees.superclasses",
    "superclass_accuracy": "nas.trees.superclasses",
    "distill_tree": "nas.trees.soft.distilling",
    "SoftDecisionTree": "nas.trees.soft.tree",
    "SoftTreeLoss": "nas.trees.soft.loss",
    "train_soft_tree": "nas.trees.soft.training",
    "regularise": "nas.trees.regularisation.tasks",
    "parabola_task": "nas.trees.regularisation.tasks",
    "markov_task": "nas.trees.regularisation.tasks",
    "table_task": "nas.trees.regularisation.tasks",
    "RegularisationOptions": "nas.trees.regularisation.training",
    "regularise_images": "nas.trees.regularisation.images",
    "TreePenalty": "nas.trees.regularisation.penalty",
    "TreeRegularisation": "nas.trees.regularisation.penalty",
    "mimic": "nas.trees.regularisation.path_length",
    "average_path_length": "nas.trees.regularisation.path_length",
    "Hierarchy": "nas.trees.hierarchy",
    "induced_hierarchy": "nas.trees.induced",
    "model_hierarchy": "nas.trees.induced",
    "split_hierarchy": "nas.trees.split_hierarchies",
    "features_of": "nas.trees.baselines.features",
    "FeatureTree": "nas.trees.baselines.feature_trees",
    "info_gain_tree": "nas.trees.baselines.feature_trees",
    "oc1_tree": "nas.trees.baselines.oblique",
    "feature_baselines": "nas.trees.baselines.comparison",
    "TreeSupervision": "nas.trees.losses",
    "report": "nas.reporting.report",
    "query": "nas.querying",
    "measure_latency": "nas.latency",
    "measure_space": "nas.latency",
    "LatencyTable": "search_spaces.latency",
    "SpaceLatency": "search_spaces.latency",
    "low_resolution": "search_spaces.scaling",
    "scale": "search_spaces.scaling",
    "rows_within": "search_spaces.sampling",
    "Architecture": "search_spaces.architecture",
    "Block": "search_spaces.architecture",
    "Limit": "search_spaces.limits",
    "Recipe": "recipes.recipe",
    "Row": "search_spaces.rows",
    "SearchConfig": "supernets.config",
    "SearchSpace": "search_spaces.space",
    "SpaceTables": "search_spaces.tables",
    "Supergraph": "supernets.supergraph",
    "UserError": "search_spaces.errors",
    "space_of_rows": "search_spaces.rows",
    "span": "search_spaces.variables",
}

__all__ = sorted(_WHERE)

if TYPE_CHECKING:
    from nas.designs import TorchvisionModel as TorchvisionModel
    from nas.designs import build_design as build_design
    from nas.exporting import export as export
    from nas.latency import measure_latency as measure_latency
    from nas.latency import measure_space as measure_space
    from nas.lenet import LeNet5 as LeNet5
    from nas.loading import load_architecture as load_architecture
    from nas.loading import load_model as load_model
    from nas.loading import load_space as load_space
    from nas.models import create_model as create_model
    from nas.predictors import fit_predictor as fit_predictor
    from nas.querying import query as query
    from nas.reporting.report import report as report
    from nas.rounds import nars as nars
    from nas.searching import search as search
    from nas.training import train as train
    from nas.trees.analyses import max_similarity as max_similarity
    from nas.trees.analyses import path_entropy as path_entropy
    from nas.trees.analyses import traversals as traversals
    from nas.trees.baselines.comparison import feature_baselines as feature_baselines
    from nas.trees.baselines.feature_trees import FeatureTree as FeatureTree
    from nas.trees.baselines.feature_trees import info_gain_tree as info_gain_tree
    from nas.trees.baselines.features import features_of as features_of
    from nas.trees.baselines.oblique import oc1_tree as oc1_tree
    from nas.trees.filters.pruning import pruning_curves as pruning_curves
    from nas.trees.filters.ranking import RankBy as RankBy
    from nas.trees.filters.ranking import filter_importance as filter_importance
    from nas.trees.filters.removal import prune_filters as prune_filters
    from nas.trees.hierarchy import Hierarchy as Hierarchy
    from nas.trees.induced import induced_hierarchy as induced_hierarchy
    from nas.trees.induced import model_hierarchy as model_hierarchy
    from nas.trees.losses import TreeSupervision as TreeSupervision
    from nas.trees.nbdt import NBDT as NBDT
    from nas.trees.outputs import tree_outputs as tree_outputs
    from nas.trees.regularisation.images import regularise_images as regularise_images
    from nas.trees.regularisation.path_length import average_path_length as average_path_length
    from nas.trees.regularisation.path_length import mimic as mimic
    from nas.trees.regularisation.penalty import TreePenalty as TreePenalty
    from nas.trees.regularisation.penalty import TreeRegularisation as TreeRegularisation
    from nas.trees.regularisation.tasks import markov_task as markov_task
    from nas.trees.regularisation.tasks import parabola_task as parabola_task
    from nas.trees.regularisation.tasks import regularise as regularise
    from nas.trees.regularisation.tasks import table_task as table_task
    from nas.trees.regularisation.training import RegularisationOptions as RegularisationOptions
    from nas.trees.soft.distilling import distill_tree as distill_tree
    from nas.trees.soft.loss import SoftTreeLoss as SoftTreeLoss
    from nas.trees.soft.training import train_soft_tree as train_soft_tree
    from nas.trees.soft.tree import SoftDecisionTree as SoftDecisionTree
    from nas.trees.split_hierarchies import split_hierarchy as split_hierarchy
    from nas.trees.superclasses import node_hypothesis as node_hypothesis
    from nas.trees.superclasses import posit_hypothesis as posit_hypothesis
    from nas.trees.superclasses import superclass_accuracy as superclass_accuracy
    from nas.trees.training import train_nbdt as train_nbdt
    from nas.trees.wrapping import nbdt as nbdt
    from predictor.predictor import Predictor as Predictor
    from recipes.datasets import load_dataset as load_dataset
    from recipes.evaluation import evaluate as evaluate
    from recipes.loading import load_variables as load_variables
    from recipes.recipe import Recipe as Recipe
    from recipes.recipe import load_recipe as load_recipe
    from recipes.run_folder import RunFolder as RunFolder
    from recipes.sources import split_indices as split_indices
    from recipes.trainer import fit as fit
    from search_spaces.architecture import Architecture as Architecture
    from search_spaces.architecture import Block as Block
    from search_spaces.backbone import build_backbone as build_backbone
    from search_spaces.cost import cost as cost
    from search_spaces.errors import UserError as UserError
    from search_spaces.latency import LatencyTable as LatencyTable
    from search_spaces.latency import SpaceLatency as SpaceLatency
    from search_spaces.limits import Limit as Limit
    from search_spaces.network import build as build
    from search_spaces.rows import Row as Row
    from search_spaces.rows import space_of_rows as space_of_rows
    from search_spaces.sampling import rows_within as rows_within
    from search_spaces.scaling import low_resolution as low_resolution
    from search_spaces.scaling import scale as scale
    from search_spaces.space import SearchSpace as SearchSpace
    from search_spaces.tables import SpaceTables as SpaceTables
    from search_spaces.variables import span as span
    from search_spaces.zoo import load as load
    from supernets.config import SearchConfig as SearchConfig
    from supernets.supergraph import Supergraph as Supergraph


def _check_siblings() -> None:
    """The toolkit's folders are top-level packages; refuse to run with somebody else's of the same name."""
    beside = Path(__file__).resolve().parent.parent
    for name in ("search_spaces", "recipes", "supernets", "predictor"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if origin is None or origin.parent.parent != beside:
            raise ImportError(
                f"nas needs its own package {name!r} from {beside}, but {origin or 'nothing'} is in the way"
            )


_check_siblings()


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
