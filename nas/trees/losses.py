"""Tree supervision: losses that train a network for the tree behind it (thesis 5.3, Eqs. 5.3, 5.4).

They are losses of `recipes.trainer.fit`. Targets may be labels or, with mixup and from a teacher, probabilities.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.trees.hierarchy import Hierarchy
from nas.trees.induced import Method, model_hierarchy
from nas.trees.rules import SoftRule
from recipes.trainer import Callback, TrainState
from search_spaces.errors import closest
from search_spaces.serialisation import require, require_finite

logger = logging.getLogger(__name__)

Form = Literal["nll", "xent_on_probs", "hard", "hard_nodes"]
FORMS: tuple[Form, ...] = ("nll", "xent_on_probs", "hard", "hard_nodes")


@dataclass(frozen=True, slots=True)
class Weight:
    """Weight of a loss over training: (1 - t^power) start + t^power end, t the share of training done, in [0, 1).

    Attributes:
        start: at the first step, >= 0.
        end: approached at the last one, >= 0; None for the same.
        power: > 0; 1 is linear (thesis 5.3).
    """

    start: float
    end: float | None = None
    power: float = 1.0

    def __post_init__(self) -> None:
        require_finite(start=self.start, end=self.last, power=self.power)
        require(self.start >= 0 and self.last >= 0, f"a loss's weight must be >= 0, got {self.start} to {self.last}")
        require(self.power > 0, f"power must be > 0, got {self.power}")

    @property
    def last(self) -> float:
        """`end`, or `start` where there is none."""
        return self.start if self.end is None else self.end

    def at(self, progress: float) -> float:
        """The weight at `progress` of the whole run, in [0, 1]."""
        share = float(progress**self.power)
        return (1 - share) * self.start + share * self.last


OMEGA = Weight(0.0, 0.5)  # omega_t of CIFAR-10 and CIFAR-100 (thesis 5.3); 0 to 5 for TinyImageNet and ImageNet
BETA = Weight(1.0, 0.0)  # beta_t in [0, 1] decays linearly (thesis 5.3)


def soft_tree_loss(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """L_soft of Eq. 5.3: -log p(k) of the label, or its mean under soft targets; mean over the batch.

    Args:
        log_probabilities: `(b, k)`, as `SoftRule` gives.
        targets: `(b,)` int64 labels, or `(b, k)` probabilities.
    """
    if targets.is_floating_point():
        return -(targets * log_probabilities).sum(1).mean()
    return functional.nll_loss(log_probabilities, targets)


def xent_on_probs(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """L_soft as the authors' package computes it: a softmax is taken of the probabilities once more.

    A perfect prediction still costs -log(e / (e + K - 1)), and the gradient is 10 to 570 times smaller than that of
    `soft_tree_loss`; the published weights belong to this form. Arguments as there.
    """
    return functional.cross_entropy(log_probabilities.exp(), targets)


def hard_tree_loss(rule: SoftRule, choices: Tensor, targets: Tensor, *, nodes_alike: bool = False) -> Tensor:
    """L_hard of Eq. 5.4: cross entropies of the decisions, summed over the inner nodes, divided by their number N.

    A sample has a label at the nodes on its path only. With each sample's cross entropies summed and the mean taken over
    the batch, they add up to -log p(k): the loss is `soft_tree_loss` / N. With ``nodes_alike`` each node's cross entropy
    is the mean over the samples that have a label there, so that a node that few pass counts as much as the root.

    Args:
        rule: of the tree.
        choices: `(E, b)`, log p(j|i), as `rule.choices` gives.
        targets: `(b,)` int64 labels, or `(b, k)` probabilities.
        nodes_alike: each node's mean instead of each sample's sum.
    """
    inner = len(rule.hierarchy.children)
    if not nodes_alike:
        return soft_tree_loss(rule.along_paths(choices), targets) / inner
    if not targets.is_floating_point():
        targets = functional.one_hot(targets, len(rule.hierarchy.classes))
    share = rule.below(targets.to(choices.dtype))  # (E, b), label's mass below each choice
    mass, cost = (
        choices.new_zeros(inner).index_add(0, rule.parent, values.sum(1)) for values in (share, -share * choices)
    )
    return (cost / mass.clamp(min=torch.finfo(mass.dtype).tiny)).sum() / inner


class Trees(Protocol):
    """Which tree a loss uses when."""

    def rule_at(self, progress: float) -> SoftRule | None:
        """The rule at `progress` of the whole run, in [0, 1); None before there is a tree."""
        ...


class FixedTree:
    """One tree all along."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self.rule = SoftRule(hierarchy)

    def rule_at(self, progress: float) -> SoftRule | None:
        """The one rule."""
        return self.rule


class MidTrainingTrees(Callback):
    """Trees rebuilt from the network's own weights during training (thesis 5.4, Table 5.4): a callback and its trees.

    Built at the end of epochs start, start + period, ... up to end, counted from 1; each holds until the next. Every tree
    belongs to its epoch, so that a resumed run, which reads them from ``folder``, uses the ones it used before. In a run
    of several processes each needs its own.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        *,
        epochs: int,
        start: int = 67,
        end: int = 120,
        period: int = 10,
        method: Method = "unit-ward",
        head: str | None = None,
        folder: Path | None = None,
    ) -> None:
        """Plan the trees; the defaults are the first row of Table 5.4, of 200 epochs.

        Args:
            classes: names, in the order of the outputs.
            epochs: of the whole recipe.
            start: epochs done when the first tree is built, >= 1.
            end: no tree is built after so many.
            period: epochs between trees, >= 1.
            method: see `induced_hierarchy`.
            head: name of the classifier's last layer, where `find_head` needs it.
            folder: where the trees are kept as ``hierarchy-epochN.json``.
        """
        require(1 <= start <= end, f"trees need 1 <= start <= end, got start {start} and end {end}")
        require(start < epochs, f"the first tree is built after epoch {start} of {epochs}: it would never be used")
        require(period >= 1, f"period must be >= 1, got {period}")
        self.classes, self.epochs, self.method, self.head, self.folder = classes, epochs, method, head, folder
        self.when = range(start, min(end, epochs) + 1, period)
        self.rules: dict[int, SoftRule] = {}
        for done in self.when:
            if folder is not None and self._file(done).is_file():
                self.rules[done] = SoftRule(Hierarchy.load(self._file(done), classes))

    def on_step_end(self, state: TrainState) -> None:
        """Nothing."""

    def on_epoch_end(self, state: TrainState) -> None:
        """Build the tree that is due."""
        done = state.epoch + 1
        if done not in self.when:
            return
        tree = model_hierarchy(state.model, self.classes, self.method, self.head)
        self.rules[done] = SoftRule(tree)
        logger.info("tree rebuilt from the weights after epoch %d", done)
        if self.folder is not None:
            tree.save(self._file(done))

    def rule_at(self, progress: float) -> SoftRule | None:
        """The last tree built before the epoch that `progress` is in."""
        epoch = int(progress * self.epochs + 1e-9)  # the trainer's progress is (epoch + step / steps) / epochs
        return self.rules.get(max((done for done in self.rules if done <= epoch), default=0))

    @property
    def last(self) -> Hierarchy | None:
        """The last tree built."""
        return self.rules[max(self.rules)].hierarchy if self.rules else None

    def _file(self, done: int) -> Path:
        assert self.folder is not None
        return self.folder / f"hierarchy-epoch{done}.json"


class TreeSupervision:
    """beta_t L_original + omega_t L_tree (Eq. 5.3); before there is a tree the cross entropy stands for both."""

    def __init__(
        self,
        trees: Hierarchy | Trees,
        *,
        omega: Weight = OMEGA,
        beta: Weight = BETA,
        form: Form = "nll",
        label_smoothing: float = 0.0,
        teacher: nn.Module | None = None,
        distillation: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        """Configure the loss.

        Args:
            trees: the tree, or trees that change (`MidTrainingTrees`).
            omega: omega_t, weight of the tree's loss.
            beta: beta_t, weight of the network's cross entropy.
            form: ``nll`` -log p(k) (Eq. 5.3), ``xent_on_probs`` as the authors' package, ``hard`` (Eq. 5.4),
                ``hard_nodes`` the same with all nodes alike; see the functions.
            label_smoothing: of the labels, in [0, 1), for both losses.
            teacher: images `(b, c, r, r)` to logits `(b, k)`, in evaluation mode.
            distillation: share of the teacher's probabilities in the targets of both losses, in [0, 1].
            temperature: > 0, the teacher's logits are divided by it.
        """
        require(form in FORMS, f"unknown form {form!r}{closest(form, FORMS)}")
        require(0 <= label_smoothing < 1, f"label_smoothing must be in [0, 1), got {label_smoothing}")
        require(0 <= distillation <= 1, f"distillation must be in [0, 1], got {distillation}")
        require(temperature > 0, f"temperature must be > 0, got {temperature}")
        require(
            (teacher is None) == (distillation == 0), "distillation needs a teacher, and a teacher distillation > 0"
        )
        self.trees: Trees = FixedTree(trees) if isinstance(trees, Hierarchy) else trees
        self.omega, self.beta, self.form = omega, beta, form
        self.label_smoothing, self.teacher = label_smoothing, teacher
        self.distillation, self.temperature = distillation, temperature

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, progress: float, /) -> Tensor:
        """See `recipes.trainer.Loss`."""
        logits: Tensor = model(images)
        targets = self._targets(images, targets, logits.shape[1])
        original = functional.cross_entropy(logits, targets)
        rule = self.trees.rule_at(progress)
        omega, beta = self.omega.at(progress), self.beta.at(progress)
        if rule is None:
            return (beta + omega) * original
        if rule.parent.device != logits.device:
            rule.to(logits.device)
        original = original if beta == 1 else beta * original
        return torch.add(original, self._tree_loss(rule, logits, targets), alpha=omega)

    def _tree_loss(self, rule: SoftRule, logits: Tensor, targets: Tensor) -> Tensor:
        if self.form.startswith("hard"):
            choices = rule.choices(rule.scores(logits))
            return hard_tree_loss(rule, choices, targets, nodes_alike=self.form == "hard_nodes")
        return (soft_tree_loss if self.form == "nll" else xent_on_probs)(rule(logits), targets)

    def _targets(self, images: Tensor, targets: Tensor, classes: int) -> Tensor:
        """Labels as they are, or `(b, k)` probabilities where something softens them."""
        if self.label_smoothing == 0 and self.teacher is None:
            return targets
        soft = targets if targets.is_floating_point() else functional.one_hot(targets, classes).float()
        soft = soft * (1 - self.label_smoothing) + self.label_smoothing / classes
        if self.teacher is not None:
            with torch.no_grad():
                taught = functional.softmax(self.teacher(images).float() / self.temperature, dim=1)
            soft = (1 - self.distillation) * soft + self.distillation * taught
        return soft
