"""What a search learns: the supergraph's weights, alpha and what is decided of it; the network that follows; checkpoints."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from search_spaces.architecture import Architecture
from search_spaces.cost import Cost
from search_spaces.errors import UserError, first_line
from search_spaces.limits import format_quantity
from search_spaces.options import option_text
from search_spaces.sampling import extreme_cost
from search_spaces.serialisation import from_plain, require, to_plain
from search_spaces.variables import Rows
from supernets.budget import DECIDED, Budget, CostWeight, filled, repaired_row
from supernets.config import SearchConfig
from supernets.likeliest import likeliest_row, smoothed
from supernets.progress import Partial
from supernets.result import SearchResult
from supernets.supergraph import Supergraph

# What a residual connection is worth in logits at least. Draws that keep two widths alike by chance are rare, so the supergraph
# learns little of what a network gains by one.
RESIDUAL = 2.0
SCHEMA = 2  # of the checkpoint: 2 has the running statistics of every process, and the number of machines


class Learned:
    """Everything that a search changes, and what follows from it; its steps are in `supernets.search`.

    Attributes:
        supergraph: with the weights and alpha.
        weights_optimizer: SGD on all but alpha.
        alpha_optimizer: Adam on alpha.
        alpha_lr: alpha's rate before the landing.
        cost_weight: the control of lambda.
        current_lambda: of the last step.
        committed: variables that are decided, with their option.
        history: rows of metrics.csv, one an epoch.
        alpha_history: alpha `(sum of options,)` at the end of each epoch, on the CPU.
        partial: how far the present epoch is.
    """

    def __init__(
        self, supergraph: Supergraph, budget: Budget, config: SearchConfig, *, witness: Rows, alpha_steps: int
    ) -> None:
        """Begin a search.

        Args:
            supergraph: fresh, on its device.
            budget: what the derived network must meet.
            config: how to search.
            witness: a row inside the budget.
            alpha_steps: steps of alpha in the whole search.
        """
        self.supergraph, self.budget, self.config, self.witness = supergraph, budget, config, witness
        self.space = supergraph.space
        self.weights_optimizer = self._weights_optimizer()
        self.alpha_lr = config.alpha_lr or min(0.2, max(0.005, 12 / alpha_steps))
        self.alpha_optimizer = torch.optim.Adam([supergraph.alpha], lr=self.alpha_lr, betas=(0.5, 0.99))
        self.cost_weight = CostWeight(
            integral=config.cost_weight, adapt=config.adapt_cost_weight, rate=min(0.2, 16 / alpha_steps)
        )
        self.current_lambda = config.cost_weight
        self.committed: dict[str, int] = {}
        self.history: list[dict[str, float]] = []
        self.alpha_history: list[Tensor] = []
        self.partial = Partial()

    def _weights_optimizer(self) -> torch.optim.Optimizer:
        parameters, config = self.supergraph.network_parameters(), self.config
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)

    @property
    def epochs_done(self) -> int:
        """Whole epochs behind us."""
        return len(self.history)

    def logits(self, variable: str) -> Tensor:
        """View of the logits `(n_options,)` of one variable."""
        parts = torch.split(self.supergraph.alpha.detach(), self.supergraph.option_counts)
        return parts[self.space.column[variable]]

    @property
    def reach(self) -> float:
        """How far apart alpha's steps may bring two logits by chance.

        Two standard deviations of the difference, were all steps at random and as long as the rate; the rate is that before the
        landing, whose few larger steps settle the cost.
        """
        steps = float(self.alpha_optimizer.state.get(self.supergraph.alpha, {}).get("step", 0))
        return 2 * math.sqrt(2 * steps) * self.alpha_lr

    @property
    def residual(self) -> float:
        """What a residual connection is worth in logits."""
        return max(RESIDUAL, self.reach)

    def commit(self, progress: float) -> None:
        """Decide the resolution: it moves the cost of every layer at once, so the finer choices settle after it.

        A larger one than the likeliest is taken where alpha cannot tell the two apart and some network has it inside the
        budget: layers still get narrower, pixels do not come back.
        """
        variable = self.space.resolution
        if variable.name not in self.space.column or variable.name in self.committed:
            return
        if progress >= self.config.commit_resolution:
            logits = self.logits(variable.name)
            near = logits >= logits.max() - self.reach
            likeliest = int(logits.argmax())
            larger = [option for option in range(likeliest + 1, len(logits)) if near[option] and self._fits(option)]
            self.committed[variable.name] = max([likeliest, *larger])

    def _fits(self, resolution: int) -> bool:
        """Whether the smallest network, with this option of the resolution, is inside the budget's upper limit."""
        _, row = extreme_cost(self.supergraph.tables, self.budget.quantity, largest=False)
        row[self.space.column[self.space.resolution.name]] = resolution
        return self.row_cost(row) <= self.budget.limit.high

    def argmax_row(self) -> Rows:
        """The row `(d,)` of the decided options and the likeliest of the others, where a residual connection counts `residual`.

        So a width takes another option than its likeliest only for a residual that this gains.
        """
        return likeliest_row(self.space, self.smoothed_alpha(), residual=self.residual)

    def smoothed_alpha(self) -> npt.NDArray[np.float64]:
        """Logits `(sum of options,)` that the network is derived from: `smoothed`, and what is decided far ahead."""
        logits = smoothed(self.space, self.supergraph.alpha.detach().double().cpu().numpy())
        parts = np.split(logits, np.cumsum(self.space.option_counts)[:-1])
        for name, option in self.committed.items():
            parts[self.space.column[name]][:] = np.where(np.arange(len(self.logits(name))) == option, 0.0, -DECIDED)
        return logits

    def row_cost(self, row: Rows) -> int:
        """Exact cost of a row `(d,)` in the budget's quantity."""
        return int(self.supergraph.tables.cost(row)._asdict()[self.budget.quantity][0])

    def expected_cost(self) -> Tensor:
        """Expected cost of a draw, in the budget's quantity: the effective cost at softmax(alpha), a float64 scalar."""
        return self._expected()._asdict()[self.budget.quantity]  # type: ignore[no-any-return]

    def _expected(self) -> Cost:
        cost: Cost = self.supergraph.cost(self.supergraph.weights(1.0, committed=self.committed))
        return cost

    def costs(self) -> dict[str, float]:
        """Expected cost and cost of the argmax network, for the log."""
        with torch.no_grad():
            cost = self._expected()
        derived = self.supergraph.tables.cost(self.argmax_row())
        return {
            "expected_flops": float(cost.flops),
            "expected_params": float(cost.params),
            "argmax_flops": int(derived.flops[0]),
            "argmax_params": int(derived.params[0]),
        }

    def result(self) -> SearchResult:
        """The derived network: argmax, repaired where that misses the budget; then what is left of the budget is filled."""
        tables, logits = self.supergraph.tables, self.smoothed_alpha()
        argmax = row = self.argmax_row()
        repaired = not self.budget.limit.holds(self.row_cost(argmax))
        if repaired:
            row = repaired_row(tables, self.budget, logits, argmax, self.witness, residual=self.residual)
        row = filled(tables, self.budget, logits, row, reach=self.reach, residual=self.residual)
        canonical = self.space.canonical(row)[0]
        architecture = self.space.decode(canonical)
        cost = Cost(*(int(entry[0]) for entry in tables.cost(canonical)))
        named = Architecture(
            name=f"{self.space.name}-{format_quantity(cost.flops)}",
            resolution=architecture.resolution,
            blocks=architecture.blocks,
        )
        return SearchResult(
            architecture=named,
            cost=cost,
            argmax_cost=Cost(*(int(entry[0]) for entry in tables.cost(argmax))),
            repaired=repaired,
            choices={
                variable.name: option_text(variable.options[index])
                for variable, index in zip(self.space.variables, row, strict=True)
            },
        )

    def checkpoint(self) -> dict[str, Any]:
        """Everything that resuming needs: plain values and tensors."""
        return {
            "schema": SCHEMA,
            "space": self.space.name,
            "supergraph": self.supergraph.state_dict(),
            "weights_optimizer": self.weights_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "cost_weight_integral": self.cost_weight.integral,
            "current_lambda": self.current_lambda,
            "committed": self.committed,
            "history": self.history,
            "alpha_history": torch.stack(self.alpha_history) if self.alpha_history else torch.zeros(0),
            "partial": to_plain(self.partial),
        }

    def restore(self, stored: dict[str, Any], where: str) -> None:
        """Inverse of `checkpoint`.

        Raises:
            UserError: it belongs to another search.
        """
        for key, value in (("schema", SCHEMA), ("space", self.space.name)):
            require(
                stored.get(key) == value,
                f"{where} is of another search: its {key} is {stored.get(key)!r}, not {value!r}",
            )
        try:
            self.supergraph.load_state_dict(stored["supergraph"])
            self.weights_optimizer.load_state_dict(stored["weights_optimizer"])
            self.alpha_optimizer.load_state_dict(stored["alpha_optimizer"])
            self.cost_weight.integral = float(stored["cost_weight_integral"])
            self.current_lambda = float(stored["current_lambda"])
            self.committed = {str(name): int(option) for name, option in stored["committed"].items()}
            self.history = [dict(row) for row in stored["history"]]
            self.alpha_history = list(stored["alpha_history"].unbind())
            self.partial = from_plain(Partial, stored["partial"], "partial")
            self._check_restored()
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{where} does not fit this search: {first_line(error)}") from error

    def _check_restored(self) -> None:
        """Raise ValueError for a checkpoint that is readable but not of a search that went well."""
        tensors = [*self.supergraph.state_dict().values(), *self.alpha_history]
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise ValueError("it holds numbers that are not finite")
        if not (math.isfinite(self.cost_weight.integral) and math.isfinite(self.current_lambda)):
            raise ValueError("its cost weight is not finite")
        if not len(self.history) == len(self.alpha_history) <= self.config.epochs:
            raise ValueError(f"it has {len(self.history)} epochs of {self.config.epochs}")
        if self.partial.phase not in ("weights", "alpha") or self.partial.steps < 0:
            raise ValueError(f"it is at step {self.partial.steps} of phase {self.partial.phase!r}")
        if any(alpha.shape != self.supergraph.alpha.shape for alpha in self.alpha_history):
            raise ValueError("its alpha has another length")
        for optimizer in (self.weights_optimizer, self.alpha_optimizer):
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    if name != "step" and isinstance(value, Tensor) and value.shape != parameter.shape:
                        raise ValueError(f"its optimizer's {name} has another shape")
