"""Classic decision trees over a network's features, the baselines of Table 5.2 (thesis 5.3, 5.4), and their files.

The thesis builds "a classic decision tree ... over neural features" (Info Gain) and "an oblique decision tree built over
neural features" (OC1). Both are classifiers of features, not trees over classes: column Info Gain of Table 5.2 is row DT of
Table 5.1 to the last digit, and section 5.3 calls it "running a classic decision tree on neural features". A class may have
many leaves. Trees over classes from the same splits are in `split_hierarchies`.

Axes: n images, D features, J inner nodes, L = J + 1 leaves, K classes.
"""

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recipes.evaluation import Evaluation
from search_spaces.errors import UserError, first_line
from search_spaces.seeding import stream_seed
from search_spaces.serialisation import require

Values = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
SCHEMA = 1
HEADER = "header"
ARRAYS = ("feature", "threshold", "normals", "children", "counts")
MAX_FILE_BYTES = 1 << 30
ROWS = 4096  # images at a time on their way down


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureTree:
    """A binary decision tree over features: to the second child where a feature, or w.x, exceeds the threshold.

    The root is inner node 0, or leaf 0 where there is no inner node; children have larger numbers than their parents.

    Attributes:
        classes: K names.
        width: D, number of features.
        feature: `(J,)` int64; f >= 0: the feature that is compared; otherwise row -1 - f of ``normals`` is w.
        threshold: `(J,)` float64.
        normals: `(R, D)` float64, w of the oblique nodes.
        children: `(J, 2)` int64; c >= 0 is an inner node, otherwise leaf -1 - c.
        counts: `(L, K)` int64, training images of each class in each leaf; its largest is the prediction.
        settings: what it was grown with, plain values.

    Raises:
        UserError: arrays that are no such tree.
    """

    classes: tuple[str, ...]
    width: int
    feature: Ints
    threshold: Doubles
    normals: Doubles
    children: Ints
    counts: Ints
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        inner, leaves = len(self.feature), len(self.counts)
        shapes = {
            "feature": (inner,), "threshold": (inner,), "normals": (len(self.normals), self.width),
            "children": (inner, 2), "counts": (inner + 1, len(self.classes)),
        }  # fmt: skip
        for name, shape in shapes.items():
            array = getattr(self, name)
            dtype = np.dtype(np.float64 if name in ("threshold", "normals") else np.int64)
            require(
                array.shape == shape and array.dtype == dtype,
                f"{name} must be {dtype} {shape}, got {array.dtype} {array.shape}",
            )
        require(bool(np.isfinite(self.threshold).all() and np.isfinite(self.normals).all()), "splits must be finite")
        require(
            bool(((self.feature >= -len(self.normals)) & (self.feature < self.width)).all()),
            f"feature must be in {-len(self.normals)}..{self.width - 1}",
        )
        wanted = np.r_[np.arange(-leaves, 0), np.arange(1, inner)] if inner else np.array([], dtype=np.int64)
        met = np.array_equal(np.sort(self.children.ravel()), wanted)
        later = (self.children < 0) | (self.children > np.arange(inner)[:, None])
        require(met and bool(later.all()), "children must name each node but the root once, after its parent")
        require(bool((self.counts >= 0).all() and (self.counts.sum(1) > 0).all()), "every leaf needs images")

    @property
    def leaves(self) -> int:
        """L."""
        return len(self.counts)

    @cached_property
    def depth(self) -> int:
        """Edges from the root to the deepest leaf."""
        depth, level = 0, np.arange(min(1, len(self.feature)))
        while len(level):
            depth += 1
            below = self.children[level].ravel()
            level = below[below >= 0]
        return depth

    def leaf_of(self, values: Values) -> Ints:
        """Leaf `(n,)` that each row of features `(n, D)` comes to.

        Raises:
            UserError: another number of features, or one that is not finite.
        """
        values = _checked_values(values)
        require(
            values.shape[1] == self.width, f"the tree is over {self.width} features, the values have {values.shape[1]}"
        )
        starts = range(0, len(values), ROWS)
        return np.concatenate([self._leaf_of(values[start : start + ROWS]) for start in starts])

    def predict(self, values: Values) -> Ints:
        """Class `(n,)` of each row of features `(n, D)`: the most frequent one of its leaf, the first among equals."""
        most: Ints = self.counts.argmax(1)
        return most[self.leaf_of(values)]

    def probabilities(self, values: Values) -> Doubles:
        """`(n, K)`, shares of the classes in the leaf with one more image of each (Laplace), so that none is 0."""
        shares: Doubles = (self.counts + 1) / (self.counts + 1).sum(1, keepdims=True)
        return shares[self.leaf_of(values)]

    def evaluate(self, values: Values, labels: Ints) -> Evaluation:
        """Accuracy, and cross entropy of `probabilities`, on features `(n, D)` with labels `(n,)`."""
        checked = _checked_labels(labels, len(values), len(self.classes))
        leaf = self.leaf_of(values)
        own = (self.counts[leaf, checked] + 1) / (self.counts[leaf].sum(1) + len(self.classes))
        correct = int((self.counts.argmax(1)[leaf] == checked).sum())
        return Evaluation(correct=correct, total=len(checked), loss=float(-np.log(own).mean()))

    def save(self, path: str | Path) -> None:
        """Write one ``.npz`` of arrays and a JSON header, whole or not at all; no pickle.

        Raises:
            UserError: a folder that cannot be written to.
        """
        header = {"schema": SCHEMA, "classes": self.classes, "width": self.width, "settings": dict(self.settings)}
        text = json.dumps(header, allow_nan=False).encode()
        content = {name: getattr(self, name) for name in ARRAYS}
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **{HEADER: np.frombuffer(text, np.uint8), **content})
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        finally:
            with contextlib.suppress(OSError):  # gone after the rename, or never there
                temporary.unlink()

    @staticmethod
    def load(path: str | Path) -> "FeatureTree":
        """What `save` wrote, bit for bit; nothing in the file is run.

        Raises:
            UserError: a missing, damaged or foreign file.
        """
        path = Path(path)
        parts = _parts(path)
        try:
            header = json.loads(parts[HEADER].tobytes().decode())
            require(header.get("schema") == SCHEMA, f"schema must be {SCHEMA}, got {header.get('schema')!r:.40}")
            require(all(isinstance(name, str) for name in header["classes"]), "class names must be text")
            require(isinstance(header["settings"], dict), "settings must be a mapping")
            return FeatureTree(
                classes=tuple(header["classes"]), width=int(header["width"]), settings=header["settings"],
                **{name: parts[name] for name in ARRAYS},
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except Exception as error:  # a foreign header may raise anything at all
            raise UserError(f"{path} is damaged or no tree over features ({first_line(error)})") from error

    def _leaf_of(self, values: Values) -> Ints:
        exact = values.astype(np.float64)
        at = np.full(len(values), -1 if len(self.feature) == 0 else 0, dtype=np.int64)
        while len(rows := np.flatnonzero(at >= 0)):
            node = at[rows]
            feature = self.feature[node]
            compared = exact[rows, np.maximum(feature, 0)]
            if (oblique := feature < 0).any():
                compared[oblique] = heights_of(exact[rows[oblique]], self.normals[-1 - feature[oblique]])
            at[rows] = self.children[node, (compared > self.threshold[node]).astype(np.int64)]
        return -1 - at


def info_gain_tree(
    values: Values,
    labels: Ints,
    classes: Sequence[str],
    *,
    seed: int,
    max_depth: int | None = None,
    max_leaves: int | None = None,
    min_leaf: int = 1,
) -> FeatureTree:
    """The classic tree of axis-parallel splits by information gain (Table 5.2, Info Gain; Table 5.1, DT).

    scikit-learn's ``DecisionTreeClassifier(criterion="entropy")``. The thesis states no limits: by default it grows until
    leaves are pure, and is not pruned.

    Args:
        values: `(n, D)` features, compared as float32.
        labels: `(n,)`, in 0..K-1.
        classes: K names.
        seed: breaks ties between equally good features.
        max_depth: largest number of decisions; None for any.
        max_leaves: largest number of leaves, best splits first; None for any.
        min_leaf: smallest number of training images in a leaf.

    Raises:
        UserError: features that are not finite, labels of one class only or out of range, or limits below 1 (leaves: 2).
    """
    from sklearn.tree import DecisionTreeClassifier  # 1 s to import

    values, labels = checked(values, labels, len(classes))
    check_limits(seed, max_depth, max_leaves, min_leaf)
    grown = DecisionTreeClassifier(
        criterion="entropy", max_depth=max_depth, max_leaf_nodes=max_leaves, min_samples_leaf=min_leaf,
        random_state=stream_seed(seed, "info-gain") % 2**32,
    ).fit(values, labels).tree_  # fmt: skip
    inner = grown.children_left >= 0
    number = np.where(inner, np.cumsum(inner) - 1, -np.cumsum(~inner))
    leaf = np.cumsum(~inner)[grown.apply(values)] - 1
    counts = np.zeros((int((~inner).sum()), len(classes)), dtype=np.int64)
    np.add.at(counts, (leaf, labels), 1)
    return FeatureTree(
        classes=tuple(classes),
        width=values.shape[1],
        feature=grown.feature[inner].astype(np.int64),
        threshold=grown.threshold[inner].astype(np.float64),
        normals=np.zeros((0, values.shape[1])),
        children=number[np.stack([grown.children_left, grown.children_right], 1)[inner]].astype(np.int64),
        counts=counts,
        settings={
            "method": "info-gain", "seed": seed, "max_depth": max_depth, "max_leaves": max_leaves, "min_leaf": min_leaf,
        },
    )  # fmt: skip


def heights_of(values: Values, normals: Doubles) -> Doubles:
    """w.x `(n,)` in float64 of features `(n, D)`, with one w for all `(D,)` or each its own `(n, D)`; bit for bit the same."""
    heights: Doubles = np.einsum("nd,nd->n", values.astype(np.float64), np.broadcast_to(normals, values.shape))
    return heights


def checked(values: Values, labels: Ints, num_classes: int) -> tuple[npt.NDArray[np.float32], Ints]:
    """Features `(n, D)` as float32 and labels `(n,)` as int64, of at least two classes.

    Raises:
        UserError: other shapes, numbers that are not finite, or labels that are not two or more of 0..K-1.
    """
    values = _checked_values(values)
    labels = _checked_labels(labels, len(values), num_classes)
    require(len(np.unique(labels)) >= 2, "a decision tree needs images of at least 2 classes, got 1")
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(values, dtype=np.float32)
    require(bool(np.isfinite(single).all()), "features must be finite in float32")
    return single, labels


def check_limits(seed: int, max_depth: int | None, max_leaves: int | None, min_leaf: int) -> None:
    """Raise UserError for a negative seed or a limit that no tree can keep."""
    require(seed >= 0, f"seed must be >= 0, got {seed}")
    require(max_depth is None or max_depth >= 1, f"max_depth must be >= 1, got {max_depth}")
    require(max_leaves is None or max_leaves >= 2, f"max_leaves must be >= 2, got {max_leaves}")
    require(min_leaf >= 1, f"min_leaf must be >= 1 image, got {min_leaf}")


def _checked_values(values: Values) -> Values:
    values = np.asarray(values)
    require(
        values.ndim == 2 and min(values.shape) > 0, f"features must be (images, features), got shape {values.shape}"
    )
    require(np.issubdtype(values.dtype, np.floating), f"features must be floating-point numbers, got {values.dtype}")
    require(bool(np.isfinite(values).all()), "features must be finite; there are NaN or infinite ones")
    return values


def _checked_labels(labels: Ints, count: int, num_classes: int) -> Ints:
    labels = np.asarray(labels)
    require(
        labels.shape == (count,) and np.issubdtype(labels.dtype, np.integer),
        f"labels must be {count} integers, got {labels.dtype} {labels.shape}",
    )
    outside = labels[(labels < 0) | (labels >= num_classes)]
    require(len(outside) == 0, f"labels must be in 0..{num_classes - 1}, got {outside[0] if len(outside) else ''}")
    return labels.astype(np.int64)


def _parts(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Arrays of a file by name."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        require(size <= MAX_FILE_BYTES, f"{path} unpacks to {size} bytes; at most {MAX_FILE_BYTES} are read")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in (HEADER, *ARRAYS)}
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile file may raise anything at all
        raise UserError(f"{path} is damaged or no tree over features ({type(error).__name__})") from error
