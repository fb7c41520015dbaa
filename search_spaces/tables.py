"""Integer tables of a search space, from which pool cost, effective cost and masks are all read.

For every slot the cost formulas of `search_spaces.cost` are fed with arrays over all options at once. What comes out is exact
for every combination; a pool looks its rows up, a supergraph takes sums weighted by Gumbel weights.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from search_spaces.cost import (
    Cost,
    check_image_and_classes,
    classifier_cost,
    conv_cost,
    ir_cost,
    out_size,
    pool_head_cost,
    skip_cost,
)
from search_spaces.space import SearchSpace

Table = npt.NDArray[np.int64]

# A cost is affine in the pixels that enter and leave a block: its five coefficients, in this order.
COEFFICIENTS = ("flops_per_position_in", "flops_per_position_out", "flops_constant", "params", "params_all")


@dataclass(frozen=True, slots=True)
class SlotTable:
    """What one slot can be. Axes: T block types, J input widths, E expansions, K output widths.

    Attributes:
        mid: `(J, E)` middle channels.
        squeeze: `(J, E)` squeeze channels (of the block types that have any).
        same: `(J, K)` whether input and output widths agree.
        cost: `(5, T, J, E, K)` coefficients in the order of `COEFFICIENTS`.
    """

    mid: Table
    squeeze: Table
    same: npt.NDArray[np.bool_]
    cost: Table


def _coefficients(at_origin: Cost, at_in: Cost, at_out: Cost, shape: tuple[int, ...]) -> Table:
    """Coefficients `(5, *shape)` from a formula evaluated at positions (0, 0), (1, 0) and (0, 1)."""
    constant = at_origin.flops
    entries = (at_in.flops - constant, at_out.flops - constant, constant, at_origin.params, at_origin.params_all)
    return np.stack([np.broadcast_to(np.asarray(entry, dtype=np.int64), shape) for entry in entries])


class SpaceTables:
    """All tables of a space for one image type and number of classes.

    Args:
        space: the space.
        num_classes: outputs of the classifier.
        in_channels: channels of the image.

    Raises:
        UserError: a number of classes or channels out of range.
    """

    def __init__(self, space: SearchSpace, *, num_classes: int, in_channels: int) -> None:
        check_image_and_classes(num_classes, in_channels)
        self.space, self.num_classes, self.in_channels = space, num_classes, in_channels

    @cached_property
    def sides(self) -> Table:
        """`(n_resolutions, n_slots + 2)` sides of the maps: after the image and the stem, then after every slot."""
        sides = [np.array(self.space.resolution.options, dtype=np.int64)]
        for stride in (self.space.stem.stride, *(slot.stride for slot in self.space.slots)):
            sides.append(out_size(sides[-1], stride))  # type: ignore[arg-type]
        return np.stack(sides, axis=1)

    @cached_property
    def stem(self) -> Table:
        """`(5, n_widths)` coefficients of the first convolution."""
        stem, widths = self.space.stem, self.space.built_widths(self.space.stem.width)
        zero, one = (conv_cost(self.in_channels, widths, stem.kernel, n, norm=True) for n in (0, 1))
        return _coefficients(zero, zero, one, widths.shape)

    @cached_property
    def head(self) -> Table:
        """`(5, n_widths)` coefficients of the last stage and the classifier, by the last slot's width."""
        space = self.space
        widths = space.built_widths(space.slots[-1].width)
        mid = np.array([space.head_mid_channels(int(width)) for width in widths], dtype=np.int64)

        def total(positions: int) -> Cost:
            classifier = classifier_cost(space.head.out_channels, self.num_classes, 1)
            return pool_head_cost(widths, mid, space.head.out_channels, positions).plus(classifier)

        return _coefficients(total(0), total(1), total(0), widths.shape)

    @cached_property
    def slots(self) -> list[SlotTable]:
        """One table a slot."""
        return [self._slot(index) for index in range(len(self.space.slots))]

    def _slot(self, index: int) -> SlotTable:
        space, slot = self.space, self.space.slots[index]
        in_widths, out_widths = space.built_widths(space.in_width(index)), space.built_widths(slot.width)
        mid, squeeze = space.middle_tables(index)
        shape = (len(in_widths), len(slot.expansion.options), len(out_widths))
        in_channels, out_channels = in_widths[:, None, None], out_widths[None, None, :]

        def block(kind: int, positions_in: int, positions_out: int) -> Cost:
            block_type = slot.block_types[kind]
            if block_type.is_skip:
                return skip_cost(in_channels, out_channels, stride=slot.stride, positions_out=positions_out)
            return ir_cost(
                in_channels,
                mid[:, :, None],
                squeeze[:, :, None],
                out_channels,
                kernel=block_type.kernel,
                pointwise=slot.pointwise,
                squeeze=block_type.squeeze,
                positions_in=positions_in,
                positions_out=positions_out,
            )

        cost = np.stack(
            [
                _coefficients(block(kind, 0, 0), block(kind, 1, 0), block(kind, 0, 1), shape)
                for kind in range(len(slot.block_types))
            ],
            axis=1,
        )
        return SlotTable(mid=mid, squeeze=squeeze, same=in_widths[:, None] == out_widths, cost=cost)

    def cost(self, rows: npt.ArrayLike) -> Cost:
        """Exact costs of a pool: every entry int64 `(n,)`.

        Args:
            rows: `(n, d)` option indices.
        """
        space, rows = self.space, self.space.check_rows(rows)
        positions = (self.sides**2)[space.picked(rows, space.resolution)]  # (n, n_slots + 2)
        stem = self.stem[:, space.picked(rows, space.stem.width)]
        total = evaluate(stem, positions[:, 0], positions[:, 1])
        for index, slot in enumerate(space.slots):
            coefficients = self.slots[index].cost[
                :,
                space.picked(rows, slot.block),
                space.picked(rows, space.in_width(index)),
                space.picked(rows, slot.expansion),
                space.picked(rows, slot.width),
            ]
            block = evaluate(coefficients, positions[:, index + 1], positions[:, index + 2])
            total = total.plus(block.times(space.present(rows, slot)))
        head = self.head[:, space.picked(rows, space.slots[-1].width)]
        return total.plus(evaluate(head, positions[:, -1], positions[:, -1]))


def evaluate(coefficients: Table, positions_in: Table, positions_out: Table) -> Cost:
    """Cost `(n,)` from coefficients `(5, n)` and pixels, `(n,)` or one number; any shape in place of n."""
    flops = coefficients[0] * positions_in + coefficients[1] * positions_out + coefficients[2]
    return Cost(flops, coefficients[3], coefficients[4])
