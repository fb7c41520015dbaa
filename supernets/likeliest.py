"""The network that alpha stands for: the likeliest option of every choice, widths together with the residuals they allow.

Sizes are read by their mean (`smoothed`): after a short search the logits of a choice differ by little more than chance; then
the largest of five is any of them, while their mean is a middling size that moves as far as alpha tells.

A layer has a residual connection where its input and its output are equally wide. The supergraph always has a part of it, the
sum over equal widths of g_in g_out, so its loss hardly tells what a network without it loses; and where every width is taken
for itself, neighbours that alpha does not tell apart fall on different options. The papers do not say how they derive widths.
"""

from collections import Counter

import numpy as np
import numpy.typing as npt

from search_spaces.space import BlockType, SearchSpace, Slot
from search_spaces.variables import Rows, Variable

Floats = npt.NDArray[np.float64]


def smoothed(space: SearchSpace, alpha: npt.ArrayLike) -> Floats:
    """Logits `(sum of options,)` whose largest is, of every size, the option next to the mean of softmax(alpha).

    Of a size (width, expansion, depth, resolution) they are those of the normal distribution with the same mean and variance
    over the options' places in order, plus 1/12 for the breadth of an option; those of block types stay. The less alpha tells
    options apart, the nearer is the mean to the middle one.

    Args:
        space: of alpha.
        alpha: flat logits `(sum of options,)`.

    Raises:
        ValueError: alpha of another length.
    """
    made = []
    for variable, part in zip(space.variables, _parts(space, alpha), strict=True):
        if not isinstance(variable.options[0], BlockType):
            place = np.argsort(np.argsort(variable.options))
            weight = np.exp(part - part.max())
            mean = np.average(place, weights=weight)
            variance = np.average((place - mean) ** 2, weights=weight) + 1 / 12
            part = -((place - mean) ** 2) / (2 * variance)
        made.append(part)
    return np.concatenate(made)


def likeliest_row(space: SearchSpace, alpha: npt.ArrayLike, *, residual: float = 0.0) -> Rows:
    """The row `(d,)` with the largest sum of logits and of ``residual`` for every residual connection.

    A search gives it `smoothed` logits.

    Blocks, expansions, depths and the resolution take their largest logit; given the blocks, widths are the exact optimum by
    dynamic programming along the layers. A width variable that comes back after another one keeps its largest logit. A skip
    between equal widths is the identity: without a block beside it, it is no residual connection.

    Args:
        space: of alpha.
        alpha: flat logits `(sum of options,)`.
        residual: what a residual connection is worth in logits, >= 0; 0 is the plain argmax.

    Raises:
        ValueError: alpha of another length, a ``residual`` that is negative or not finite.
    """
    if not 0 <= residual < np.inf:
        raise ValueError(f"residual must be finite and >= 0, got {residual}")
    parts = _parts(space, alpha)
    row = np.array([part.argmax() for part in parts])
    chain, links = [space.stem.width], list[Floats]()
    for slot in space.slots:
        if slot.width.name != chain[-1].name:
            links.append(residual * _residuals(space, chain[-1], slot, row))
            chain.append(slot.width)
    visits = Counter(variable.name for variable in chain)
    logits = []
    for variable in chain:
        column = space.column.get(variable.name)
        own = np.zeros(1) if column is None else parts[column]
        if column is not None and visits[variable.name] > 1:
            own = np.where(np.arange(len(own)) == row[column], own, -np.inf)
        logits.append(own)
    for variable, option in zip(chain, _best_path(logits, links), strict=True):
        if variable.name in space.column:
            row[space.column[variable.name]] = option
    return row


def _parts(space: SearchSpace, alpha: npt.ArrayLike) -> list[Floats]:
    if np.shape(alpha) != (space.option_counts.sum(),):
        raise ValueError(f"alpha must have {space.option_counts.sum()} logits, got {np.shape(alpha)}")
    return np.split(np.asarray(alpha, dtype=np.float64), np.cumsum(space.option_counts)[:-1])


def count_residuals(space: SearchSpace, rows: Rows) -> npt.NDArray[np.int64]:
    """`(n,)` residual connections of the networks of ``rows`` `(n, d)`."""
    count = np.zeros(len(rows), dtype=np.int64)
    for index, slot in enumerate(space.slots):
        option = space.picked(rows, slot.width)
        entering = space.built_widths(space.in_width(index))[space.picked(rows, space.in_width(index))]
        count += _may_have_one(space, slot, rows) & (entering == space.built_widths(slot.width)[option])
    return count


def _may_have_one(space: SearchSpace, slot: Slot, rows: Rows) -> npt.NDArray[np.bool_]:
    """`(n,)` whether the slot's block has a residual connection where its input is as wide as its output."""
    is_skip = np.array([block.is_skip for block in slot.block_types])[space.picked(rows, slot.block)]
    return np.asarray(space.present(rows, slot) & ~is_skip & (slot.stride == 1))


def _residuals(space: SearchSpace, before: Variable, slot: Slot, row: Rows) -> Floats:
    """`(n_before, n_after)` 1 where the slot's block in ``row`` has a residual connection between these widths, else 0."""
    same = space.built_widths(before)[:, None] == space.built_widths(slot.width)
    return np.asarray(same & _may_have_one(space, slot, row[None]), dtype=np.float64)


def _best_path(nodes: list[Floats], links: list[Floats]) -> list[int]:
    """An option `(n_i,)` of each node: the largest sum of their values and of the links `(n_i, n_i+1)` between neighbours."""
    best, origins = nodes[0], list[npt.NDArray[np.intp]]()
    for link, node in zip(links, nodes[1:], strict=True):
        total = best[:, None] + link
        origins.append(total.argmax(axis=0))
        best = total.max(axis=0) + node
    path = [int(best.argmax())]
    for origin in reversed(origins):
        path.append(int(origin[path[-1]]))
    return path[::-1]
