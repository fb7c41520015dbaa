"""A classifier whose last step is a decision tree, and what it decided on the way (thesis, chapter 5)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.trees.hierarchy import Hierarchy
from nas.trees.rules import RULES, Rule
from recipes.evaluation import evaluation_mode
from search_spaces.errors import closest
from search_spaces.serialisation import require


@dataclass(frozen=True, slots=True)
class Choice:
    """One step down the tree."""

    node: int
    name: str  # of the node; "" where it has none
    child: int  # the node gone to
    child_name: str
    probability: float  # p(child | node)


@dataclass(frozen=True, slots=True)
class Decision:
    """How one image came to its class: the product of the choices' probabilities is the class's (Eq. 5.1)."""

    predicted: int
    class_name: str
    probability: float
    choices: tuple[Choice, ...]  # from the root to the leaf


class NBDT(nn.Module):
    """A classifier that decides by a tree over its own logits; its weights are the network's, unchanged.

    The output is log-probabilities `(B, K)`, good as logits: their softmax is the tree's distribution, and the largest the
    prediction of the rule.

    Attributes:
        model: images to logits `(B, K)`.
        rule: logits to log-probabilities; holds the hierarchy.
    """

    def __init__(self, model: nn.Module, hierarchy: Hierarchy, rule: Rule = "soft") -> None:
        """Put a tree behind a classifier.

        Args:
            model: anything that gives logits `(B, K)`; it is not copied.
            hierarchy: its leaves are the classes in the order of the logits.
            rule: ``soft`` (Eq. 5.2) or ``hard``.
        """
        super().__init__()
        require(rule in RULES, f"unknown rule {rule!r}{closest(rule, RULES)}")
        self.model = model
        self.rule = RULES[rule](hierarchy)
        first = next(model.parameters(), None)
        if first is not None:
            self.rule.to(first.device)

    @property
    def hierarchy(self) -> Hierarchy:
        """The tree."""
        return self.rule.hierarchy

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities `(B, K)` of the images' classes."""
        logits = self.model(images)
        if not isinstance(logits, Tensor):
            raise TypeError(f"the model must give logits as one tensor, got {type(logits).__name__}")
        log_probabilities: Tensor = self.rule(logits)
        return log_probabilities

    @torch.no_grad()
    def decisions(self, images: Tensor) -> list[Decision]:
        """The way of each image to the class that the rule predicts, in evaluation mode.

        Args:
            images: whatever the model takes, B of them.

        Returns:
            B decisions.
        """
        with evaluation_mode(self):
            logits = self.model(images)
            predicted = self.rule(logits).argmax(1)
        choices = self.rule.choices(self.rule.scores(logits)).exp().T
        paths = self.rule.path_choices[predicted]
        probabilities = choices.gather(1, paths.clamp(min=0)).tolist()
        return [self._decision(leaf, steps) for leaf, steps in zip(predicted.tolist(), probabilities, strict=True)]

    def _decision(self, leaf: int, probabilities: list[float]) -> Decision:
        tree, product, choices = self.hierarchy, 1.0, []
        path = [int(node) for node in tree.paths[leaf] if node >= 0]
        for node, child, probability in zip(path, path[1:], probabilities, strict=False):
            choices.append(Choice(node, tree.name_of(node), child, tree.name_of(child), probability))
            product *= probability
        return Decision(leaf, tree.classes[leaf], product, tuple(choices))
