"""Oblique decision trees by randomised hill climbing: OC1 (Murthy, Kasif and Salzberg 1994, arXiv:cs/9408103).

A split is a plane w.x = b. One step of the search adds t r to (w, -b), for a direction r that is one coefficient or random,
and takes the best of all t at once: image j changes sides at t = U_j = -V_j / (r.x_j), where V_j = w.x_j - b (section 2.1 of
the paper, its U_j with the coefficient itself taken off). So the counts on both sides for all t are sums over the sorted U.

Where text and published program (version 3) leave a choice, the program's is taken: order, restarts, jumps, tolerance, at
most 10 moves in a row that gain nothing, oblique splits where a node has more than 2 D images only.

Axes: n images, D features, K classes, C = n + 1 intervals of t.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from nas.trees.baselines.feature_trees import Doubles, FeatureTree, Ints, Values, check_limits, checked, heights_of
from search_spaces.errors import closest
from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import require

Impurity = Literal["entropy", "twoing"]
IMPURITIES: tuple[Impurity, ...] = ("entropy", "twoing")
RESTARTS, JUMPS = 20, 5  # defaults of the published program
TOLERANCE = 1e-4  # of it too: smaller gains do not count as progress
MAX_STAGNANT = 10
IMAGES_PER_FEATURE = 2  # more are needed for an oblique split
SEARCHED = 2000  # images that the climb looks at; ours, the paper's data sets are no larger
NO_GAIN = 1e-12
TWOING_CELLS = 1 << 22  # counts held at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """A plane: images with w.x > threshold are above it.

    Attributes:
        normal: w, `(D,)` float64.
        threshold: between the two nearest images.
        feature: the only one that w has, with weight 1; None for an oblique plane.
        impurity: of the two sides; see `line_search`.
    """

    normal: Doubles
    threshold: float
    feature: int | None
    impurity: float


def oc1_tree(
    values: Values,
    labels: Ints,
    classes: Sequence[str],
    *,
    seed: int,
    max_depth: int | None = None,
    max_leaves: int | None = None,
    min_leaf: int = 1,
    restarts: int = RESTARTS,
    jumps: int = JUMPS,
    impurity: Impurity = "entropy",
    searched: int = SEARCHED,
) -> FeatureTree:
    """An oblique tree over features (Table 5.2, OC1). It is not pruned; the published program prunes on 10 % of the images.

    Args:
        values: `(n, D)` features, compared as float32.
        labels: `(n,)`, in 0..K-1.
        classes: K names.
        seed: of restarts, jumps and samples; each node has its own stream, so limits cut the tree and do not change it.
        max_depth: largest number of decisions; None for any.
        max_leaves: largest number of leaves, best splits first; None for any.
        min_leaf: smallest number of training images in a leaf.
        restarts: climbs a node, the first from the best axis-parallel split, the others from random planes.
        jumps: random directions tried where no coefficient helps.
        impurity: what a split minimises: ``entropy`` (largest information gain, as the other baseline), or ``twoing``, the
            published program's, whose cost grows with K.
        searched: images of a node that the climb looks at, drawn at random; threshold and choice see all of them.

    Raises:
        UserError: features that are not finite, labels of one class only or out of range, or settings below their minimum.
    """
    values, labels = checked(values, labels, len(classes))
    check_limits(seed, max_depth, max_leaves, min_leaf)
    check_search(restarts, jumps, impurity, searched)
    grower = _Grower(values, labels, len(classes), seed, max_depth, min_leaf, restarts, jumps, impurity, searched)
    grower.grow(max_leaves)
    return grower.tree(
        tuple(classes),
        {
            "method": "oc1", "seed": seed, "max_depth": max_depth, "max_leaves": max_leaves, "min_leaf": min_leaf,
            "restarts": restarts, "jumps": jumps, "impurity": impurity, "searched": searched,
        },
    )  # fmt: skip


def best_split(
    values: Values,
    labels: Ints,
    rng: np.random.Generator,
    *,
    min_leaf: int = 1,
    restarts: int = RESTARTS,
    jumps: int = JUMPS,
    impurity: Impurity = "entropy",
    searched: int = SEARCHED,
) -> Split | None:
    """The best plane that OC1 finds between images, or None where features cannot tell any two sides of them.

    The axis-parallel plane that it starts from is that of the largest information gain, whatever the impurity.

    Args:
        values: `(n, D)` float32, finite.
        labels: `(n,)` int64, >= 0.
        rng: draws planes, directions and samples.
        min_leaf: smallest number of images on a side.
        restarts: see `oc1_tree`, as the following.
        jumps: random directions tried where no coefficient helps.
        impurity: what is minimised.
        searched: images that the climb looks at.
    """
    start = axis_split(values, labels, int(rng.integers(2**32)), min_leaf=min_leaf, impurity=impurity)
    count, width = values.shape
    if start is None or count <= IMAGES_PER_FEATURE * width:
        return start
    chosen = np.sort(rng.choice(count, searched, replace=False)) if count > searched else np.arange(count)
    climb = _Climb(values[chosen], labels[chosen], rng, max(1, min_leaf * len(chosen) // count), jumps, impurity)
    best, least = None, np.inf
    for restart in range(restarts):
        plane = climb.scaled(start) if restart == 0 else rng.uniform(-1, 1, width + 1)
        plane, reached, pure = climb.run(plane)
        if reached < least:
            best, least = plane, reached
        if pure:
            break
    oblique = None if best is None else _placed(values, labels, climb.unscaled(best), min_leaf, impurity)
    return oblique if oblique is not None and oblique.impurity < start.impurity else start


def axis_split(
    values: Values, labels: Ints, seed: int, *, min_leaf: int = 1, impurity: Impurity = "entropy"
) -> Split | None:
    """The axis-parallel plane of the largest information gain, by scikit-learn; None where no feature splits the images.

    Args:
        values: `(n, D)` float32, finite.
        labels: `(n,)` int64, >= 0.
        seed: of ties, in 0..2^32 - 1.
        min_leaf: smallest number of images on a side.
        impurity: which one the result states.
    """
    from sklearn.tree import DecisionTreeClassifier  # 1 s to import

    if len(values) < 2 * min_leaf:
        return None
    stump = DecisionTreeClassifier(criterion="entropy", max_depth=1, min_samples_leaf=min_leaf, random_state=seed)
    tree = stump.fit(values, labels).tree_
    if tree.node_count == 1:
        return None
    feature, threshold = int(tree.feature[0]), float(tree.threshold[0])
    normal = np.zeros(values.shape[1])
    normal[feature] = 1.0
    value = impurity_of(values[:, feature].astype(np.float64) > threshold, labels, impurity)
    return Split(normal=normal, threshold=threshold, feature=feature, impurity=value)


def impurity_of(above: npt.NDArray[np.bool_], labels: Ints, impurity: Impurity = "entropy") -> float:
    """Impurity of a split into two sides `above` `(n,)` of images with labels `(n,)`, both not empty; see `line_search`."""
    sides = [np.bincount(labels[side], minlength=int(labels.max()) + 1) for side in (above, ~above)]
    shares = [side.sum() / len(labels) for side in sides]
    if impurity == "entropy":
        return float(shares[0] * _entropy(sides[0]) + shares[1] * _entropy(sides[1]))
    distance = np.abs(sides[0] / sides[0].sum() - sides[1] / sides[1].sum()).sum()
    return float(-shares[0] * shares[1] / 4 * distance**2)


def line_search(
    offsets: Doubles, slopes: Doubles, labels: Ints, *, min_leaf: int = 1, impurity: Impurity = "entropy"
) -> tuple[float, float]:
    """The t for which the split into images with V_j + t s_j > 0 and the others is purest, out of all t.

    Args:
        offsets: V, `(n,)`.
        slopes: s, `(n,)`; images whose slope is 0 never change sides.
        labels: `(n,)` int64.
        min_leaf: smallest number of images on a side.
        impurity: ``entropy``: sum over sides of their share times their entropy in bits, which is the entropy of all
            less the information gain; ``twoing``: minus p_above p_below / 4 (sum_k |p(k|above) - p(k|below)|)^2, from -0.25
            to 0 (Breiman et al. 1984).

    Returns:
        t, half way between the two nearest U_j, and its impurity; (0, inf) where every t leaves a side too small, or all slopes
        are 0.
    """
    return _Sides(labels, min_leaf, impurity).search(offsets, slopes)


def sides_of(values: Values, split: Split) -> npt.NDArray[np.bool_]:
    """`(n,)` whether each image, a row of features `(n, D)`, is above a plane; computed as `FeatureTree` does."""
    if split.feature is not None:
        return values[:, split.feature].astype(np.float64) > split.threshold
    return heights_of(values, split.normal) > split.threshold


def check_search(restarts: int, jumps: int, impurity: str, searched: int) -> None:
    """Raise UserError for settings of the search that it cannot run with."""
    require(restarts >= 1, f"restarts must be >= 1, got {restarts}")
    require(jumps >= 0, f"jumps must be >= 0, got {jumps}")
    require(searched >= 2, f"searched must be >= 2 images, got {searched}")
    require(impurity in IMPURITIES, f"unknown impurity {impurity!r}{closest(impurity, IMPURITIES)}")


class _Sides:
    """Line searches between the same images."""

    def __init__(self, labels: Ints, min_leaf: int, impurity: Impurity) -> None:
        self.labels = np.unique(labels, return_inverse=True)[1].astype(np.int64)
        self.min_leaf, self.impurity = min_leaf, impurity
        self.total = np.bincount(self.labels)
        whole = np.arange(1, len(labels) + 1)
        self.table = np.r_[0.0, whole * np.log2(whole)]  # m log m

    def search(self, offsets: Doubles, slopes: Doubles) -> tuple[float, float]:
        """See `line_search`."""
        moving = np.flatnonzero(slopes)
        if len(moving) == 0:
            return 0.0, np.inf
        turns = -offsets[moving] / slopes[moving]
        order = np.argsort(turns)
        turns, moving = turns[order], moving[order]
        signs, moved = np.where(slopes[moving] > 0, 1, -1), self.labels[moving]
        above = (slopes < 0) | ((slopes == 0) & (offsets > 0))  # at t = -infinity
        first = np.bincount(self.labels[above], minlength=len(self.total))
        count = first.sum() + np.r_[0, np.cumsum(signs)]
        edges = np.r_[turns[0] - max(1.0, abs(turns[0])), turns, turns[-1] + max(1.0, abs(turns[-1]))]
        middles = 0.5 * edges[:-1] + 0.5 * edges[1:]
        allowed = (edges[:-1] < middles) & (middles < edges[1:]) & np.isfinite(middles)
        allowed &= (count >= self.min_leaf) & (len(self.labels) - count >= self.min_leaf)
        if not allowed.any():
            return 0.0, np.inf
        along = self._twoing_along if self.impurity == "twoing" else self._entropy_along
        values = np.where(allowed, along(moved, signs, first, count), np.inf)
        best = int(values.argmin())
        return float(middles[best]), float(values[best])

    def _entropy_along(self, moved: Ints, signs: Ints, first: Ints, count: Ints) -> Doubles:
        """`(C,)`, impurity after each of the first 0..n moves.

        A move changes the counts of one class only; the changes of sum_k n_k log n_k are summed, so K does not matter.

        Args:
            moved: `(n,)`, classes in the order in which their images change sides.
            signs: `(n,)`, 1 for a move to the side above, -1 for one away from it.
            first: `(K,)`, how many of each class are above at first.
            count: `(C,)`, how many images are above.
        """
        table, images = self.table, len(self.labels)
        groups = np.argsort(moved.astype(np.int16 if len(first) < 2**15 else np.int64), kind="stable")  # class by class
        sums, sizes = np.cumsum(signs[groups]), np.bincount(moved, minlength=len(first))
        before_class = np.r_[0, sums][np.cumsum(sizes) - sizes]
        after = np.empty_like(sums)
        after[groups] = sums + np.repeat(first - before_class, sizes)
        before, total = after - signs, self.total[moved]
        change = table[after] - table[before] + table[total - after] - table[total - before]
        inside = np.r_[0.0, np.cumsum(change)] + (table[first] + table[self.total - first]).sum()
        values: Doubles = np.maximum(table[count] + table[images - count] - inside, 0.0) / images
        return values

    def _twoing_along(self, moved: Ints, signs: Ints, first: Ints, count: Ints) -> Doubles:
        """As `_entropy_along`, but in O(n K); some classes at a time, to bound memory.

        With n_k above and N_k in all, p(k|above) - p(k|below) = (n n_k - N_k n_above) / (n_above n_below).
        """
        images, below = len(self.labels), len(self.labels) - count
        distance = np.zeros(len(count))
        step = max(1, TWOING_CELLS // len(count))
        for start in range(0, len(first), step):
            part = np.arange(start, min(start + step, len(first)))[:, None]
            above = np.concatenate([first[part], (moved == part) * signs], 1).cumsum(1)
            distance += np.abs(images * above - self.total[part] * count).sum(0)
        values: Doubles = -(distance**2) / (4.0 * images**2 * np.maximum(count * below, 1))
        return values


class _Climb:
    """Hill climbing over planes `(D + 1,)`, w and -b, between images whose features have mean 0 and deviation 1."""

    def __init__(
        self, values: Values, labels: Ints, rng: np.random.Generator, min_leaf: int, jumps: int, impurity: Impurity
    ) -> None:
        exact = values.astype(np.float64)
        self.mean, self.std = exact.mean(0), exact.std(0)
        self.std[self.std == 0] = 1.0
        self.rows = np.ones((values.shape[1] + 1, len(values)))  # one row a coefficient; the last is that of -b
        self.rows[:-1] = ((exact - self.mean) / self.std).T
        self.sides = _Sides(labels, min_leaf, impurity)
        self.rng, self.jumps = rng, jumps

    def scaled(self, split: Split) -> Doubles:
        """The plane of a split."""
        plane: Doubles = np.r_[split.normal * self.std, split.normal @ self.mean - split.threshold]
        return plane

    def unscaled(self, plane: Doubles) -> Doubles:
        """w `(D,)` of a plane, for features as they are."""
        normal: Doubles = plane[:-1] / self.std
        return normal

    def run(self, plane: Doubles) -> tuple[Doubles, float, bool]:
        """Climb from a plane until neither a coefficient nor a random direction helps.

        Returns:
            Plane, its impurity, and whether no class is on both sides of it.
        """
        plane = plane.copy()
        offsets = plane @ self.rows
        shift, reached = self.sides.search(offsets, self.rows[-1])  # a random plane may have all images on one side
        plane[-1] += shift
        offsets += shift
        stagnant, improved = 0, True
        while improved and not self._pure(offsets):
            improved = False
            for index, row in enumerate(self.rows):  # the program's order: one after the other
                shift, value = self.sides.search(offsets, row)
                gained = value < reached - TOLERANCE
                if not gained and (value > reached + NO_GAIN or stagnant >= MAX_STAGNANT):
                    continue
                stagnant = 0 if gained else stagnant + 1
                improved |= gained
                plane[index] += shift
                offsets += shift * row
                reached = value
            for _ in range(0 if improved else self.jumps):
                direction = self.rng.uniform(-1, 1, len(plane))
                slopes = direction @ self.rows
                shift, value = self.sides.search(offsets, slopes)
                if value < reached - TOLERANCE:
                    plane += shift * direction
                    offsets, reached, improved = offsets + shift * slopes, value, True
                    break
            scale = np.abs(plane).max()
            if improved and scale > 0:
                plane /= scale  # the plane itself is the same
                offsets = plane @ self.rows
        return plane, reached, self._pure(offsets)

    def _pure(self, offsets: Doubles) -> bool:
        sides = [
            np.bincount(self.sides.labels[side], minlength=len(self.sides.total))
            for side in (offsets > 0, offsets <= 0)
        ]
        return not bool(((sides[0] > 0) & (sides[1] > 0)).any()) and min(side.sum() for side in sides) > 0


class _Grower:
    """A tree that grows leaf by leaf, the split that gains most first."""

    def __init__(
        self, values: Values, labels: Ints, num_classes: int, seed: int, max_depth: int | None, min_leaf: int,
        restarts: int, jumps: int, impurity: Impurity, searched: int,
    ) -> None:  # fmt: skip
        self.values, self.labels, self.num_classes = values, labels, num_classes
        self.seed, self.max_depth, self.min_leaf = seed, max_depth, min_leaf
        self.restarts, self.jumps, self.impurity, self.searched = restarts, jumps, impurity, searched
        self.splits: list[Split] = []
        self.children: list[list[int]] = []
        self.leaves: list[Ints] = [np.arange(len(labels))]  # images in each leaf
        self.places: list[tuple[int, int, int, int]] = [(-1, 0, 0, 1)]  # of each: parent, which child, depth, stream
        self.waiting: list[tuple[float, int, Split]] = []  # gain (negative), leaf, split

    def grow(self, max_leaves: int | None) -> None:
        """Split leaves until none can be, or there are enough."""
        self._offer(0)
        while self.waiting and (max_leaves is None or len(self.leaves) < max_leaves):
            _, leaf, split = heapq.heappop(self.waiting)
            images, (parent, side, depth, stream) = self.leaves[leaf], self.places[leaf]
            node = len(self.splits)
            self.splits.append(split)
            if parent >= 0:
                self.children[parent][side] = node
            new = len(self.leaves)
            self.children.append([-1 - leaf, -1 - new])
            above = sides_of(self.values[images], split)
            self.leaves[leaf] = images[~above]
            self.leaves.append(images[above])
            self.places[leaf] = (node, 0, depth + 1, 2 * stream)
            self.places.append((node, 1, depth + 1, 2 * stream + 1))
            self._offer(leaf)
            self._offer(new)

    def tree(self, classes: tuple[str, ...], settings: dict[str, object]) -> FeatureTree:
        """What has grown."""
        oblique = np.array([split.feature is None for split in self.splits], dtype=bool)
        axis = np.array([-1 if split.feature is None else split.feature for split in self.splits], dtype=np.int64)
        normals = [split.normal for split in self.splits if split.feature is None]
        counts = [np.bincount(self.labels[images], minlength=self.num_classes) for images in self.leaves]
        return FeatureTree(
            classes=classes,
            width=self.values.shape[1],
            feature=np.where(oblique, -np.cumsum(oblique), axis).astype(np.int64),
            threshold=np.array([split.threshold for split in self.splits], dtype=np.float64),
            normals=np.array(normals, dtype=np.float64).reshape(len(normals), self.values.shape[1]),
            children=np.array(self.children, dtype=np.int64).reshape(len(self.splits), 2),
            counts=np.array(counts, dtype=np.int64),
            settings=settings,
        )

    def _offer(self, leaf: int) -> None:
        """Put the best split of a leaf on the waiting list, if there is one that gains anything."""
        images, (_, _, depth, stream) = self.leaves[leaf], self.places[leaf]
        labels = self.labels[images]
        if depth == self.max_depth or (labels == labels[0]).all():
            return
        values, rng = self.values[images], numpy_rng(self.seed, "oc1", stream)
        split = best_split(
            values, labels, rng, min_leaf=self.min_leaf, restarts=self.restarts, jumps=self.jumps,
            impurity=self.impurity, searched=self.searched,
        )  # fmt: skip
        if split is not None:
            alone = _entropy(np.bincount(labels)) if self.impurity == "entropy" else 0.0
            gain = len(images) * (alone - split.impurity)
            if gain > NO_GAIN:
                heapq.heappush(self.waiting, (-gain, leaf, split))


def _placed(values: Values, labels: Ints, normal: Doubles, min_leaf: int, impurity: Impurity) -> Split | None:
    """The plane of a normal with the best threshold over all images; None where there is none."""
    if not (np.abs(normal).max() > 0 and np.isfinite(normal).all()):
        return None
    normal = normal / np.abs(normal).max()
    heights = heights_of(values, normal)
    shift, reached = line_search(heights, np.ones(len(heights)), labels, min_leaf=min_leaf, impurity=impurity)
    return Split(normal=normal, threshold=-shift, feature=None, impurity=reached) if np.isfinite(reached) else None


def _entropy(counts: Ints) -> float:
    """Entropy in bits of images counted by class."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
