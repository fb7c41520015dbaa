"""Tree regularisation: train a classifier so that a small decision tree mimics it (document 002; Wu et al., arXiv:1711.06178).

The loss gets strength x Omega-hat(W): the path length that a surrogate predicts from the network's weights W. The surrogate
learns while the network trains: every so many epochs trees are fitted for the present weights and for weights around them,
and a new surrogate to the last J of these pairs.

`TreeRegularisation` is a loss and a callback of `recipes.trainer.fit`; in a loop of one's own, `penalty` is added to the loss,
`step_done` called after every step and `epoch_done` after every epoch.
"""
# n inputs, D weights, J stored weight vectors, r directions

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nas.trees.regularisation.path_length import (
    Mimic,
    TreeOptions,
    class_loss,
    fit_tree,
    mimic_outputs,
    path_length_of,
    predicted_classes,
    rows_of,
)
from nas.trees.regularisation.surrogate import Surrogate, SurrogateOptions, fit_surrogate
from recipes.evaluation import evaluation_mode
from recipes.trainer import Callback, TrainState
from search_spaces.errors import UserError, closest, first_line
from search_spaces.seeding import stream_seed
from search_spaces.serialisation import require, require_finite

Perturbation = Literal["trees", "outputs", "weights"]
PERTURBATIONS: tuple[Perturbation, ...] = ("trees", "outputs", "weights")
SMALLER = (1, 2, 3)  # depths of the trees that weights are pulled towards
CHUNK = 512  # inputs that go through the network at a time
MOST_BYTES = 2**30  # of stored weight vectors, in memory and in a checkpoint; a surrogate's fit takes as much again
FLAT = 1e-12  # a layer's gradient below this moves nothing: its squares would vanish
PULLED = 0.03  # of each layer's norm, a step
PROBED = 24  # combinations of outputs whose gradients span the directions of a perturbation
PROBED_INPUTS = 128  # that these combinations take at most
WEAKEST = 0.03  # of the strongest direction's effect on the outputs; weaker ones would need too long a step


@dataclass(frozen=True, kw_only=True, slots=True)
class TreePenalty:
    """Everything that decides the penalty.

    Attributes:
        strength: lambda, weight of the path length in the loss, >= 0; the loss is a mean over inputs.
        ramp: epochs after the warm-up over which the strength grows from 0 to its full value, linearly, >= 0: a strong
            penalty all at once leaves one class.
        warmup: epochs without penalty, >= 1; no surrogate is fitted before their end.
        every: epochs between surrogates, >= 1: the amortised schedule.
        stored: J, weight vectors that a surrogate is fitted to: the last ones, >= 2.
        perturbed: weight vectors around the present ones that are added each time; 0 for those after each step alone.
        perturbation: ``trees`` goes some steps towards what smaller trees predict, of depth 1 to 3; ``outputs`` moves the
            weights where the network's outputs depend on them most, all such directions changing the outputs alike;
            ``weights`` adds Gaussian noise to all weights. The last two in mirrored pairs.
        scale: largest change of ``outputs`` and ``weights``, of each relative to its root mean square, > 0.
        tree: how trees are grown.
        surrogate: how the surrogate is fitted.
    """

    strength: float = 0.1
    warmup: int = 50
    ramp: int = 80
    every: int = 2
    stored: int = 128
    perturbed: int = 16
    perturbation: Perturbation = "trees"
    scale: float = 0.5
    tree: TreeOptions = field(default_factory=TreeOptions)
    surrogate: SurrogateOptions = field(default_factory=SurrogateOptions)

    def __post_init__(self) -> None:
        require_finite(strength=self.strength, scale=self.scale)
        require(self.strength >= 0, f"strength must be >= 0, got {self.strength}")
        for name, least in {"warmup": 1, "ramp": 0, "every": 1, "stored": 2, "perturbed": 0}.items():
            require(getattr(self, name) >= least, f"{name} must be >= {least}, got {getattr(self, name)}")
        require(self.scale > 0, f"scale must be > 0, got {self.scale}")
        require(
            self.perturbation in PERTURBATIONS,
            f"unknown perturbation {self.perturbation!r}{closest(self.perturbation, PERTURBATIONS)}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What is known after an epoch.

    Attributes:
        epoch: counted from 1.
        path_length: of the tree that mimics the network, over the inputs.
        predicted: what the surrogate in use said; it has not seen these weights. NaN before there is one.
        nodes: of the tree.
        fidelity: share of the inputs on which tree and network agree, in [0, 1].
    """

    epoch: int
    path_length: float
    predicted: float
    nodes: int
    fidelity: float


@dataclass(kw_only=True)
class Costs:
    """CPU seconds that the penalty took besides the training itself, and for what.

    Attributes:
        trees: seconds of predictions and trees.
        surrogates: seconds of fitting surrogates.
        penalties: seconds of the penalty's forward pass in the loss.
        fitted_trees: their number.
        fitted_surrogates: their number.
    """

    trees: float = 0.0
    surrogates: float = 0.0
    penalties: float = 0.0
    fitted_trees: int = 0
    fitted_surrogates: int = 0


class TreeRegularisation(Callback):
    """Penalty on the path length of the tree that mimics a classifier, with a surrogate that learns as training goes on.

    Attributes:
        config: see `TreePenalty`.
        history: an observation an epoch.
        costs: see there.
        surrogate: in use; None before the warm-up's end.
        surrogate_error: its root mean squared error on what it was fitted to, in decisions.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        config: TreePenalty | None = None,
        *,
        seed: int,
        layers: Sequence[str] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        """Watch a classifier.

        Args:
            model: inputs to logits `(n,)`, `(n, k)` or of a series `(n, T, k)`; k = 1 for two classes. It, or the part of a
                larger network whose path length is meant: in a residual network, the residual.
            inputs: `(n, ...)`, on the model's device: what the tree is fitted to; the training inputs, or a part of them.
            config: see `TreePenalty`.
            seed: of perturbations and surrogates.
            layers: names of the layers whose weights the surrogate sees and the penalty moves; None for all.
            loss: of outputs and targets, as a loss of `fit`; default the negative log-likelihood of labels.

        Raises:
            UserError: a layer that is not there, outputs of another shape, or no weights that could be trained.
        """
        self.model, self.inputs, self.config, self.seed = model, inputs, config or TreePenalty(), seed
        self.loss = loss or class_loss
        self.parameters = penalised_parameters(model, layers)
        if self.config.strength > 0:
            require_few_weights(self.parameters, self.config)
        self.history: list[Observation] = []
        self.costs = Costs()
        self.surrogate: Surrogate | None = None
        self.surrogate_error = math.nan
        self._weights: list[Tensor] = []
        self._lengths: list[float] = []
        self._passed: list[Tensor] = []  # weights after the steps since the last surrogate
        self._known: dict[bytes, float] = {}
        outputs = self._outputs(self.weights().detach())
        predicted_classes(outputs)
        self._rows = rows_of(inputs, outputs)

    def weights(self) -> Tensor:
        """The flattened weights `(D,)`, with their gradient."""
        return torch.cat([parameter.flatten() for parameter in self.parameters.values()])

    def penalty(self) -> Tensor:
        """strength x Omega-hat(W), a scalar; 0 before there is a surrogate. Within the ramp a part of it."""
        if self.surrogate is None or self.config.strength == 0:
            return next(iter(self.parameters.values())).new_zeros(())
        started = time.process_time()
        share = min(1.0, (len(self.history) - self.config.warmup + 1) / (self.config.ramp + 1))
        with torch.autocast(self.inputs.device.type, enabled=False):  # few bits would lose what the weights differ in
            penalty: Tensor = self.config.strength * share * self.surrogate(self.weights())
        self.costs.penalties += time.process_time() - started
        return penalty

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, progress: float, /) -> Tensor:
        """See `recipes.trainer.Loss`."""
        return self.loss(model(images), targets) + self.penalty()

    def on_step_end(self, state: TrainState) -> None:
        """`step_done`."""
        self.step_done()

    def on_epoch_end(self, state: TrainState) -> None:
        """`epoch_done`."""
        self.epoch_done()

    def step_done(self) -> None:
        """Remember the weights after a step: the next surrogate learns what became of the last one's promises."""
        if self.config.strength > 0 and len(self.history) + 1 > self.config.warmup - self.config.every:
            self._passed = [*self._passed, self.weights().detach().clone()][-self.config.stored // 2 :]

    def epoch_done(self) -> Observation:
        """Store the present weights and their path length; fit a new surrogate where one is due."""
        started = time.process_time()
        weights = self.weights().detach().clone()
        epoch, seen = len(self.history) + 1, self.mimic()
        if self.config.strength > 0 and epoch > self.config.warmup - self.config.every:
            self._store(weights, seen.path_length)  # earlier ones only tell that untrained networks have no tree
        self.costs.fitted_trees += 1
        self.costs.trees += time.process_time() - started
        observation = Observation(
            epoch=epoch, path_length=seen.path_length, nodes=seen.nodes, fidelity=seen.fidelity,
            predicted=math.nan if self.surrogate is None else float(self.surrogate(weights)),
        )  # fmt: skip
        self.history.append(observation)
        done = epoch - self.config.warmup
        if self.config.strength > 0 and done >= 0 and done % self.config.every == 0:
            self._refit(weights, epoch)
        return observation

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, at the end of an epoch: plain values and tensors.

        What is known of predictions already seen is not kept: every surrogate begins by forgetting it.
        """
        return {
            "weights": torch.stack(self._weights) if self._weights else None,
            "lengths": list(self._lengths),
            "passed": torch.stack(self._passed) if self._passed else None,
            "history": [asdict(seen) for seen in self.history],
            "costs": asdict(self.costs),
            "surrogate": None if self.surrogate is None else dict(self.surrogate.state_dict()),
            "surrogate_error": self.surrogate_error,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            UserError: the state of another network, or damaged.
        """
        try:
            weights, passed = self._rows_of_state(state["weights"]), self._rows_of_state(state["passed"])
            lengths = [float(length) for length in state["lengths"]]
            require(len(weights) == len(lengths), f"{len(weights)} stored weights have {len(lengths)} path lengths")
            history = [Observation(**seen) for seen in state["history"]]
            costs, error, stored = Costs(**state["costs"]), float(state["surrogate_error"]), state["surrogate"]
            surrogate = None if stored is None else Surrogate.restored(stored, self.weights().device)
            if surrogate is not None:
                surrogate(self.weights().detach())  # of as many weights as this network has
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as problem:
            raise UserError(f"the state of a tree penalty is damaged: {first_line(problem)}") from problem
        self._weights, self._passed, self._lengths, self._known = weights, passed, lengths, {}
        self.history, self.costs, self.surrogate, self.surrogate_error = history, costs, surrogate, error

    def _rows_of_state(self, stored: Tensor | None) -> list[Tensor]:
        """Weight vectors, each in memory of its own as they were: where a vector begins may decide a sum's last bits."""
        if stored is None:
            return []
        own = self.weights()
        require(
            stored.ndim == 2 and stored.shape[1] == len(own),
            f"stored weights must be (n, {len(own)}), got {tuple(stored.shape)}",
        )
        return [row.to(own.device).clone() for row in stored]

    def mimic(self) -> Mimic:
        """The tree that mimics the network as it is."""
        return mimic_outputs(self.inputs, self._outputs(self.weights().detach()), self.config.tree)

    def add(self, weights: Tensor) -> float:
        """Store other weights `(D,)`, as those of another run, for the next surrogate; returns their path length."""
        length = self.path_length(weights)
        self._store(weights.detach().clone(), length)
        return length

    def path_length(self, weights: Tensor) -> float:
        """Of the tree that mimics the network with other weights `(D,)`; equal predictions are not fitted twice."""
        classes = predicted_classes(self._outputs(weights))
        key = classes.tobytes()
        if key not in self._known:
            self._known[key] = path_length_of(self._rows, classes, self.config.tree)
            self.costs.fitted_trees += 1
        return self._known[key]

    def _store(self, weights: Tensor, length: float) -> None:
        self._weights, self._lengths = (
            [*self._weights, weights][-self.config.stored :],
            [*self._lengths, length][-self.config.stored :],
        )

    @torch.no_grad()
    def _outputs(self, weights: Tensor) -> Tensor:
        named = self._named(weights)
        with evaluation_mode(self.model):
            return torch.cat([functional_call(self.model, named, (part,)) for part in torch.split(self.inputs, CHUNK)])

    def _named(self, weights: Tensor) -> dict[str, Tensor]:
        parts = torch.split(weights, [parameter.numel() for parameter in self.parameters.values()])
        return {
            name: part.view_as(parameter)
            for (name, parameter), part in zip(self.parameters.items(), parts, strict=True)
        }

    def _refit(self, weights: Tensor, epoch: int) -> None:
        started = time.process_time()
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "tree regularisation", epoch))
        self._known.clear()
        for moved in [*self._passed, *self._perturbed(weights, generator)]:
            self._store(moved, self.path_length(moved))
        self._passed.clear()
        ready = time.process_time()
        stored = torch.stack(self._weights)
        lengths = torch.tensor(self._lengths, dtype=stored.dtype, device=stored.device)
        self.surrogate, self.surrogate_error = fit_surrogate(stored, lengths, self.config.surrogate, generator)
        self.costs.trees += ready - started
        self.costs.surrogates += time.process_time() - ready
        self.costs.fitted_surrogates += 1

    def _perturbed(self, weights: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Weights around the present ones: on the ways to smaller trees, or in pairs on both sides."""
        if self.config.perturbed == 0:
            return []
        if self.config.perturbation == "trees":
            return self._pulled(weights)
        pairs, found = (self.config.perturbed + 1) // 2, []
        directions = self._output_directions(weights, generator) if self.config.perturbation == "outputs" else None
        for _ in range(pairs):
            reach = self.config.scale * float(torch.rand((), generator=generator))
            if directions is None:
                noise = torch.randn(weights.shape, generator=generator).to(weights)
                step = reach * noise * self._layer_sizes(weights)
            else:
                mixed = torch.randn(len(directions), generator=generator).to(weights)
                step = reach * (mixed / mixed.norm()) @ directions
            found += [weights + step, weights - step]
        return found[: self.config.perturbed]

    def _pulled(self, weights: Tensor) -> list[Tensor]:
        """Weights on the ways that a few steps lead towards the predictions of smaller trees.

        Each step follows the gradient of the loss against the tree's classes, layer by layer scaled to a share of the
        layer's norm, so that no learning rate has to be chosen.
        """
        classes, ways = predicted_classes(self._outputs(weights)), []
        steps = -(-self.config.perturbed // len(SMALLER))
        for depth in SMALLER:
            tree = fit_tree(self._rows, classes, replace(self.config.tree, max_depth=depth))
            wanted = torch.from_numpy(tree.predict(self._rows)).to(self.inputs.device)
            moved, way = weights, []
            for _ in range(steps):
                gradient = self._gradient(moved, wanted)
                sizes, slopes = self._layer_sizes(moved), self._layer_sizes(gradient)
                moved = moved - PULLED * sizes * gradient / slopes.clamp(min=FLAT)
                way.append(moved)
            ways.append(way)
        return [moved for together in zip(*ways, strict=True) for moved in together][: self.config.perturbed]

    def _gradient(self, weights: Tensor, wanted: Tensor) -> Tensor:
        """Of the loss against classes `(n,)`, of series `(n * T,)`, in the weights: `(D,)`."""
        weights = weights.detach().requires_grad_()
        steps = len(wanted) // len(self.inputs)  # T
        total = torch.zeros_like(weights)
        for inputs, classes in zip(torch.split(self.inputs, CHUNK), torch.split(wanted, CHUNK * steps), strict=True):
            with torch.enable_grad(), evaluation_mode(self.model):
                loss = class_loss(functional_call(self.model, self._named(weights), (inputs,)), classes)
                (gradient,) = torch.autograd.grad(loss, weights)
            total = total + gradient * (len(inputs) / len(self.inputs))
        return total

    def _layer_sizes(self, weights: Tensor) -> Tensor:
        """Root mean square of each layer's weights, for each weight: `(D,)`."""
        parts = self._named(weights).values()
        sizes: Tensor = torch.cat([part.square().mean().sqrt().expand(part.numel()) for part in parts])
        return sizes

    def _output_directions(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        """Steps `(r, D)` that change the outputs on the inputs by their root mean square, to first order.

        The leading right singular vectors of the Jacobian of the outputs, estimated from the gradients of random
        combinations of outputs, and divided by their singular values.
        """
        parameters = weights.clone().requires_grad_()
        chosen = torch.randperm(len(self.inputs), generator=generator)[:PROBED_INPUTS].to(self.inputs.device)
        with torch.enable_grad(), evaluation_mode(self.model):
            outputs = functional_call(self.model, self._named(parameters), (self.inputs[chosen],)).flatten()
            probes = torch.randn(PROBED, len(outputs), generator=generator).to(outputs)
            gradients = [
                torch.autograd.grad(outputs, parameters, probe, retain_graph=index + 1 < PROBED)[0]
                for index, probe in enumerate(probes)
            ]
        _, effects, directions = torch.linalg.svd(torch.stack(gradients) / PROBED**0.5, full_matrices=False)
        kept = effects > WEAKEST * effects[0].clamp(min=torch.finfo(effects.dtype).tiny)
        size = outputs.detach().square().sum().sqrt()  # a step of 1 / effect changes the outputs by norm 1
        steps: Tensor = directions[kept] / effects[kept, None] * size
        return steps


def stored_bytes(weights: int, config: TreePenalty) -> int:
    """Bytes of the weight vectors that a penalty keeps at most, at four a weight.

    Args:
        weights: D.
        config: of the penalty.
    """
    return 4 * weights * (config.stored + config.stored // 2 + config.surrogate.directions)


def require_few_weights(parameters: Mapping[str, nn.Parameter], config: TreePenalty) -> None:
    """Refuse more weights than can be stored so many times.

    Args:
        parameters: penalised, by name.
        config: of the penalty.

    Raises:
        UserError: too many; the message says how many there may be, and which layers come last.
    """
    count = sum(parameter.numel() for parameter in parameters.values())
    if (needed := stored_bytes(count, config)) > MOST_BYTES:
        most = MOST_BYTES * count // needed
        layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in parameters))
        raise UserError(
            f"{count:,} penalised weights are too many: {config.stored} stored copies of them take {needed / 1e9:.1f} GB,"
            f" {most:,} weights at most; name some layers only (the last ones are {', '.join(layers[-3:])})"
            " or store fewer copies"
        )


def penalised_parameters(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """Trainable parameters by name, of all layers or of those named.

    Args:
        model: any module.
        layers: names of modules or parameters, as ``named_modules`` and ``named_parameters`` have them; None for all.

    Raises:
        UserError: an unknown layer, or none with trainable weights.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if layers is not None:
        known = {name for name, _ in model.named_modules() if name} | {name for name, _ in model.named_parameters()}
        for layer in layers:
            if layer not in known:
                raise UserError(f"the network has no layer {layer!r}{closest(layer, known)}")
        trainable = {
            name: parameter
            for name, parameter in trainable.items()
            if any(name == layer or name.startswith(f"{layer}.") for layer in layers)
        }
    require(len(trainable) > 0, f"{'the network has' if layers is None else 'these layers have'} no trainable weights")
    return trainable
