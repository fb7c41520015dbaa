"""Effective shapes and effective cost (FBNetV2, thesis Eqs. 3.5-3.10).

The cost tables of `search_spaces.tables`, which the exact formulas filled, are summed with Gumbel weights. Where two factors of
Eq. 3.10 hang on the same choice (a layer's input width and its expanded width, which is rounded), the sum runs over their
product, so that the cost is linear in the weights of every channel choice, the others fixed; it is then the expected cost of
independent draws. The resolution enters through effective sides (Eq. 3.6), hence squared. One-hot weights give the exact cost.
"""

import torch
from torch import Tensor, nn

from search_spaces.cost import Cost
from search_spaces.space import SearchSpace, Slot
from search_spaces.tables import SpaceTables
from search_spaces.variables import Variable
from supernets.masking import width_table

Weights = dict[str, Tensor]  # Gumbel weights by variable name, each `(n_options,)`


def pick(weights: Weights, variable: Variable) -> Tensor:
    """Weights `(n_options,)` of a variable; ``[1.]`` for a constant."""
    found = weights.get(variable.name)
    if found is not None:
        return found
    reference = next(iter(weights.values()))
    return reference.new_ones(1)


def joint_widths(weights: Weights, in_width: Variable, out_width: Variable) -> Tensor:
    """`(J, K)` weights of (input width, output width): an outer product of two draws, diagonal where they are one."""
    g_in = pick(weights, in_width)
    if in_width.name == out_width.name:
        return torch.diag(g_in)
    return g_in[:, None] * pick(weights, out_width)


def presence(weights: Weights, slot: Slot) -> Tensor:
    """Weight, in [0, 1], of the slot holding a block."""
    if slot.depth is None:
        return next(iter(weights.values())).new_ones(())
    deep_enough = torch.tensor([depth > slot.position for depth in slot.depth.options])
    g_depth = pick(weights, slot.depth)
    return g_depth[deep_enough.to(g_depth.device)].sum()


def effective_channels(gumbel_weights: Tensor, channels: Tensor) -> Tensor:
    """sum_i g_i C_i (thesis Eq. 3.5), a scalar; ``channels`` `(n,)` are the options' widths."""
    return (gumbel_weights * channels.to(gumbel_weights)).sum()


class EffectiveCost(nn.Module):
    """Differentiable cost of a supergraph as a function of Gumbel weights.

    Args:
        tables: integer tables of the space.
    """

    def __init__(self, tables: SpaceTables) -> None:
        super().__init__()
        self.space = tables.space
        self._add("sides", tables.sides)
        self._add("stem", tables.stem)
        self._add("head", tables.head)
        self.slot_shapes = [table.cost.shape for table in tables.slots]
        for index, table in enumerate(tables.slots):
            self._add(f"slot{index}", table.cost.reshape(len(table.cost), -1))  # 2-d: memory formats leave it alone

    def _add(self, name: str, table: object) -> None:
        self.register_buffer(name, torch.as_tensor(table), persistent=False)  # integers survive `module.half()`

    def _table(self, name: str) -> Tensor:
        return self.get_buffer(name).double()

    def effective_sides(self, weights: Weights) -> Tensor:
        """`(n_slots + 2,)` effective height = width of the image, the stem's map and every slot's map (Eq. 3.6)."""
        g = pick(weights, self.space.resolution)
        return g.double() @ self._table("sides")

    def forward(self, weights: Weights) -> Cost:
        """Effective FLOPs, published parameters and all parameters, float64 scalars."""
        space: SearchSpace = self.space
        weights = {name: g.double() for name, g in weights.items()}
        positions = self.effective_sides(weights) ** 2
        stem = self._table("stem") @ pick(weights, space.stem.width)
        total = _evaluate(stem, positions[0], positions[1])
        for index, slot in enumerate(space.slots):
            coefficients = torch.einsum(
                "ctjek,t,e,jk->c",
                self._table(f"slot{index}").view(self.slot_shapes[index]),
                pick(weights, slot.block),
                pick(weights, slot.expansion),
                joint_widths(weights, space.in_width(index), slot.width),
            )
            block = _evaluate(coefficients, positions[index + 1], positions[index + 2])
            total = total.plus(block.times(presence(weights, slot)))
        head = self._table("head") @ pick(weights, space.slots[-1].width)
        return total.plus(_evaluate(head, positions[-1], positions[-1]))


def _evaluate(coefficients: Tensor, positions_in: Tensor, positions_out: Tensor) -> Cost:
    """Cost from coefficients `(5,)` and effective pixels."""
    flops = coefficients[0] * positions_in + coefficients[1] * positions_out + coefficients[2]
    return Cost(flops, coefficients[3], coefficients[4])


class SlotMasks(nn.Module):
    """Masks of one slot, from its integer tables.

    Args:
        space: the space.
        tables: its tables.
        index: which slot.
    """

    def __init__(self, space: SearchSpace, tables: SpaceTables, index: int) -> None:
        super().__init__()
        self.slot, self.in_width = space.slots[index], space.in_width(index)
        table = tables.slots[index]
        for name, channels in (
            ("mid", table.mid.flatten()),
            ("squeeze", table.squeeze.flatten()),
            ("out", space.built_widths(self.slot.width)),
        ):
            self.register_buffer(name, width_table(torch.as_tensor(channels)), persistent=False)
        self.register_buffer("same", torch.as_tensor(table.same, dtype=torch.float32), persistent=False)

    def forward(self, weights: Weights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Masks of middle, squeeze and output channels, and s, the weight of input and output widths agreeing.

        Middle and squeeze widths are rounded integers that hang on the pair (input width j, expansion i), so their masks are
        sums over g_in(j) g_e(i).
        """
        pairs = (pick(weights, self.in_width)[:, None] * pick(weights, self.slot.expansion)).flatten()
        same = (joint_widths(weights, self.in_width, self.slot.width) * self.get_buffer("same")).sum()
        return (
            pairs @ self.get_buffer("mid"),
            pairs @ self.get_buffer("squeeze"),
            pick(weights, self.slot.width) @ self.get_buffer("out"),
            same,
        )
