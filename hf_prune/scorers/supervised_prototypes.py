"""Supervised prototypes: how far a row is from the mean of its own class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Self, get_args

import numpy as np
import pyarrow as pa

from hf_prune.checks import check_choice, warn
from hf_prune.data.batch import Batch
from hf_prune.data.identity import ContentSum
from hf_prune.data.labels import labelled_blocks, places_among
from hf_prune.data.reading import as_float32, vector_blocks
from hf_prune.data.types import PrototypeMetric, Rows
from hf_prune.models import memo
from hf_prune.numerics import kmeans
from hf_prune.scorer import Scorer
from hf_prune.summary import Summary

BITS = 32  # of the fraction; 2**30 rows of numbers up to 1 still fit an int64


class ClassSums:
    """Sums of vectors by class that do not depend on the order of the rows: fixed point in int64.

    Each number is rounded to 2**-32 of a power of two above the largest of them, which costs at most 1.2e-10 of it,
    less on average over many rows. With `largest` every coordinate has a power of its own, and what was rounded off is
    summed as well: 64 bits below the largest, so that one outlier takes nothing from the others.

    Args:
        largest: (d,) largest absolute number of each coordinate; None: 1.

    >>> sums = ClassSums()
    >>> sums.add(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.5]]), pa.array(["a", "b", "b"]))
    >>> sums.means()
    (['a', 'b'], array([[1.  , 0.  ],
           [0.  , 0.75]]))
    """

    def __init__(self, largest: np.ndarray | None = None) -> None:
        self.parts = 1 if largest is None else 2
        largest = np.ones(1) if largest is None else np.asarray(largest, np.float64)
        self.unit = 2.0**BITS / 2.0 ** np.clip(np.ceil(np.log2(np.where(largest > 0, largest, 1))), -900, 1023)
        self.sums: dict[Any, np.ndarray] = {}
        self.counts: dict[Any, int] = {}

    def add(self, x: np.ndarray, labels: pa.Array) -> None:
        """Add (b, d) rows with their (b,) labels."""
        encoded = labels.dictionary_encode()
        codes = encoded.indices.to_numpy()
        order = np.argsort(codes, kind="stable")
        edges = np.flatnonzero(np.diff(codes[order], prepend=-1))
        counts = np.diff(edges, append=len(codes))
        left = x[order].astype(np.float64, copy=False)
        left *= self.unit
        totals = np.empty((len(counts), self.parts, left.shape[1]), np.int64)
        for part in range(self.parts):
            last = part == self.parts - 1
            whole = np.rint(left, out=left if last else None)
            totals[:, part] = np.add.reduceat(whole.astype(np.int64), edges, axis=0)
            if not last:
                left -= whole
                left *= 2.0**BITS
        for value, total, count in zip(encoded.dictionary.to_pylist(), totals, counts, strict=True):
            self.sums[value] = self.sums[value] + total if value in self.sums else total
            self.counts[value] = self.counts.get(value, 0) + int(count)

    def means(self) -> tuple[list[Any], np.ndarray]:
        """Classes in sorted order, and their (C, d) float64 means."""
        classes = sorted(self.sums)
        weights = 2.0 ** (-BITS * np.arange(self.parts))
        means = [weights @ self.sums[c] / self.counts[c] / self.unit for c in classes]
        return classes, np.stack(means)


def own_cosine(x: np.ndarray, unit_means: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Cosine (n,) float64 of each of (n, d) rows to one of (C, d) unit means, that of index `own`; NaN for zero rows.

    >>> own_cosine(np.array([[3.0, 4.0], [0.0, 2.0]]), np.eye(2), np.array([0, 1])).round(6).tolist()
    [0.6, 1.0]
    """
    cosine = np.vecdot(kmeans.unit_rows(np.asarray(x, np.float64)), unit_means[own])
    cosine[~x.any(axis=1)] = np.nan
    return np.asarray(cosine)


def class_cosines(x: np.ndarray, unit_means: np.ndarray) -> np.ndarray:
    """Cosine (n, C) float64 of (n, d) rows to each of (C, d) unit means; NaN for zero rows."""
    cosines = kmeans.unit_rows(np.asarray(x, np.float64)) @ unit_means.T
    cosines[~x.any(axis=1)] = np.nan
    return np.asarray(cosines)


def class_margin(cosines: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Cosine to the own mean minus the largest to another, (n,).

    Args:
        cosines: (n, C) cosines to all means.
        own: (n,) index of the class of each row.

    >>> class_margin(np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]]), np.array([0, 2])).round(6).tolist()
    [0.4, -0.8]
    """
    every = np.arange(len(own))
    others = cosines.copy()
    others[every, own] = -np.inf
    return np.asarray(cosines[every, own] - others.max(1))


def mean_distance(x: np.ndarray, means: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """Euclidean distance (n,) of rows to class means.

    Args:
        x: (n, d) rows.
        means: (C, d) means.
        own: (n,) index of the class of each row; None: the nearest mean.

    >>> mean_distance(np.array([[3.0, 4.0]]), np.array([[0.0, 0.0], [3.0, 0.0]]), np.array([0])).tolist()
    [5.0]
    """
    x = np.asarray(x, np.float64)
    own = nearest_mean(x, means) if own is None else own
    return np.asarray(np.linalg.norm(x - means[own], axis=1))


def nearest_mean(x: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Index (n,) of the nearest of (C, d) means to each of (n, d) float64 rows; the first of equals.

    Products propose, differences decide: they are taken where two means are as near as products can say.
    """
    shift = means.mean(0)  # what all have in common costs digits
    x, means = x - shift, means - shift
    squares = np.einsum("cd,cd->c", means, means)
    products = x @ means.T - squares / 2
    best, longest = products.argmax(1), float(squares.max()) ** 0.5
    slack = (x.shape[1] + 4) * 2.0**-51 * longest * (np.linalg.norm(x, axis=1) + longest)
    rivals = products >= (products.max(1) - slack)[:, None]
    for row in np.flatnonzero(rivals.sum(1) > 1):
        some = np.flatnonzero(rivals[row])
        best[row] = some[np.linalg.norm(x[row] - means[some], axis=1).argmin()]
    return np.asarray(best)


@dataclass(frozen=True, repr=False)
class ClassesSummary(Summary):
    """The classes that prototypes were learned for.

    Attributes:
        rows: number of rows learned on.
        classes: number of classes.
        smallest: number of rows of the smallest class.
        smallest_class: its label.
        largest: number of rows of the largest class.
        largest_class: its label.
        one_row_classes: number of classes of one row, which is its own prototype.
    """

    title: ClassVar[str] = "Class prototypes"

    rows: int | None
    classes: int
    smallest: int | None = None
    smallest_class: str | None = None
    largest: int | None = None
    largest_class: str | None = None
    one_row_classes: int | None = None

    @classmethod
    def of(cls, classes: Any, facts: Mapping[str, Any] | None) -> Self:
        """The summary of a scorer, from its classes and what `class_sizes` wrote."""
        known = facts or {}
        return cls(
            rows=known.get("rows"),
            classes=len(classes),
            smallest=known.get("smallest_class_rows"),
            smallest_class=known.get("smallest_class"),
            largest=known.get("largest_class_rows"),
            largest_class=known.get("largest_class"),
            one_row_classes=known.get("one_row_classes"),
        )


def class_sizes(counts: Mapping[Any, int]) -> dict[str, Any]:
    """Numbers of rows of the classes, for `fitted_on`; of equally large ones the first label.

    >>> class_sizes({"cat": 3, "dog": 1})["largest_class"]
    'cat'
    """
    low, high = (min(sorted(counts), key=lambda c: sign * counts[c]) for sign in (1, -1))
    return {
        "rows": sum(counts.values()),
        "classes": len(counts),
        "smallest_class_rows": counts[low],
        "smallest_class": str(low),
        "largest_class_rows": counts[high],
        "largest_class": str(high),
        "one_row_classes": sum(count == 1 for count in counts.values()),
    }


@dataclass(frozen=True, eq=False)
class SupervisedPrototypes(Scorer):
    """Distance to the mean of the row's own class. High = atypical of its class = hard = keep.

    With m_y the mean of the unit vectors of class y:

        score(x, y) = 1 - <x, m_y> / (||x|| ||m_y||)

    Mislabelled rows get the highest scores and are kept; look at them, or drop the rows with the lowest margin.
    A class of one row scores 0.

    Args:
        class_means: (C, d) means of unit vectors (or of the vectors as they are).
        classes: labels of the C classes, in the order of the means.
        label: column of classes: ClassLabel, integers or strings.
        embedding: column of vectors.
        metric: distance: "cosine" (the paper's): `1 - cos to the own mean`. "euclidean": distance to the own mean.
            "margin": `max cos to another mean - cos to the own`, in [-2, 2].
        normalize: whether rows are scaled to length 1 before the mean; under "euclidean" before the distance too.
        nearest: whether the distance is to the nearest class mean instead of the own (it hides mislabelled rows); not
            of a margin, which is the own class's.
        margin: whether `<name>_margin` is written, cosine to the own mean minus the largest to another; low =
            suspicious.
        name: score column.
        fitted_on: what the means were learned on.

    Zero vectors score NaN under cosines.

    Raises:
        ValueError: a label that was not there when fitting, is null or negative (no label); another width than the
            means; `nearest` under metric="margin".

    Reference: Sorscher et al., 2022, arXiv 2206.14486 (`normalize` is our choice: the text is silent).

    >>> from datasets import Dataset
    >>> rows = [[1.0, 0.0], [4.0, 3.0], [0.0, 1.0], [0.0, 2.0]]
    >>> ds = Dataset.from_dict({"embedding": rows, "label": [0, 0, 1, 1]})
    >>> scorer = SupervisedPrototypes.fit(ds)
    >>> scorer(ds[:])
    {'supervised_proto': array([0.0513167, 0.0513167, 0.       , 0.       ], dtype=float32)}
    >>> scorer.summary().classes
    2
    """

    paper: ClassVar[str] = "Sorscher et al., Beyond neural scaling laws, NeurIPS 2022, arXiv 2206.14486"
    meaning: ClassVar[str] = "far from the mean of its own class: atypical, hard, or mislabelled"
    nan_rows: ClassVar[bool] = True

    class_means: np.ndarray
    classes: tuple[Any, ...]
    _: KW_ONLY
    label: str = "label"
    embedding: str = "embedding"
    metric: PrototypeMetric = "cosine"
    normalize: bool = True
    nearest: bool = False
    margin: bool = False
    name: str = "supervised_proto"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        check_choice("metric", self.metric, get_args(PrototypeMetric))
        check_class_rows("class_means", self.class_means, self.classes)
        if self.nearest and self.metric == "margin":
            raise ValueError(
                "nearest=True contradicts metric='margin', which compares the own class with the nearest other; leave "
                "one out"
            )
        if len(self.classes) < 2 and (self.metric == "margin" or self.margin):
            raise ValueError(f"a margin compares two classes, there is only {self.classes[0]!r}")

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, by metric."""
        mean = "nearest class mean" if self.nearest else "own class mean"
        return {
            "cosine": f"cosine similarity to the {mean}; the column is 1 - similarity, in [0, 2]",
            "euclidean": f"Euclidean distance to the {mean}; the column is the distance",
            "margin": "cosine to the own class mean minus the largest to another; the column is its negative",
        }[self.metric]

    @classmethod
    def fit(
        cls,
        ds: Rows,
        *,
        label: str = "label",
        embedding: str = "embedding",
        metric: PrototypeMetric = "cosine",
        normalize: bool = True,
        nearest: bool = False,
        margin: bool = False,
        name: str = "supervised_proto",
    ) -> Self:
        """Learn one mean a class; a sum over the rows, the same for any order of them.

        Args:
            ds: `Dataset` or `IterableDataset` with both columns.
            label: column of classes: ClassLabel, integers or strings.
            embedding: column of vectors.
            metric: distance that the scorer computes: "cosine", "euclidean" or "margin".
            normalize: whether rows are scaled to length 1 before the mean.
            nearest: whether the distance is to the nearest class mean instead of the own.
            margin: whether the scorer writes `<name>_margin` as well.
            name: score column.

        Raises:
            ValueError: an empty dataset, a label that is null or negative (no label), non-finite rows, a class whose
                mean is zero.

        Warns:
            UserWarning: classes of one row.
        """
        who, largest = f"{cls.__name__}.fit", None
        if not normalize:
            tops = [np.abs(block.x).max(0) for block in vector_blocks(ds, embedding, who)]
            largest = np.max(tops, axis=0)
        sums, content = ClassSums(largest), ContentSum()
        for block in labelled_blocks(ds, embedding, label, who):
            if metric == "euclidean":
                as_float32(block.x, embedding)  # refused where distances are none that float32 can tell
            sums.add(kmeans.unit_rows(block.x.astype(np.float64)) if normalize else block.x, block.labels)
            content.add(block.keys)
        classes, means = sums.means()
        flat = [c for c, mean in zip(classes, means, strict=True) if not mean.any()]
        if flat and metric != "euclidean":
            raise ValueError(f"the vectors of class {flat[0]!r} add up to zero, so no row has an angle to their mean")
        _warn_of_lone_rows(sums.counts)
        return cls(
            means,
            tuple(classes),
            label=label,
            embedding=embedding,
            metric=metric,
            normalize=normalize,
            nearest=nearest,
            margin=margin,
            name=name,
            fitted_on={"column": embedding, "label": label, **class_sizes(sums.counts), "content": content.text},
        )

    def columns(self) -> dict[str, str]:
        return {self.name: "float32"} | ({f"{self.name}_margin": "float32"} if self.margin else {})

    def companions(self) -> dict[str, str]:
        line = "cosine to the own class mean minus the largest to another; low = suspicious"
        return {f"{self.name}_margin": line} if self.margin else {}

    def cost(self, batch: Batch) -> float:
        """A product with the mean of the own class, or with all where the row is compared with others."""
        classes, width = self.class_means.shape
        others = self.nearest or self.margin or self.metric == "margin"
        return float(2 * width * (classes if others else 1) * batch.n)

    def score(self, batch: Batch, rank: int | None) -> Any:
        x = batch.matrix(self.embedding, self.class_means.shape[1], "the class means")
        own = places_among(batch.arrow(self.label), self.classes, self.label)
        means = memo(self, "unit", lambda: kmeans.unit_rows(np.asarray(self.class_means, np.float64)))
        margin = None
        if self.margin or self.metric == "margin":
            margin = class_margin(class_cosines(x, means), own)
        if self.metric == "margin":
            score = -np.asarray(margin)
        elif self.metric == "cosine":
            cosine = class_cosines(x, means).max(1) if self.nearest else own_cosine(x, means, own)
            score = np.maximum(1 - cosine, 0)
        else:
            vectors = kmeans.unit_rows(np.asarray(x, np.float64)) if self.normalize else x
            score = mean_distance(vectors, self.class_means, None if self.nearest else own)
        return {self.name: score} | ({f"{self.name}_margin": margin} if self.margin else {})

    def summary(self) -> ClassesSummary:
        """Count the classes and their rows, as they were when fitting."""
        return ClassesSummary.of(self.classes, self.fitted_on)


def check_class_rows(name: str, rows: Any, classes: tuple[Any, ...]) -> None:
    """Raise a ValueError unless the array `rows` has one vector for each class.

    >>> check_class_rows("class_means", np.zeros(2), ("cat", "dog"))
    Traceback (most recent call last):
    ...
    ValueError: 2 classes, but class_means of shape (2,); give (2, d)
    """
    if np.ndim(rows) != 2 or len(rows) != len(classes):
        raise ValueError(f"{len(classes)} classes, but {name} of shape {np.shape(rows)}; give ({len(classes)}, d)")


def _warn_of_lone_rows(counts: Mapping[Any, int]) -> None:
    single = sorted(c for c, count in counts.items() if count == 1)
    if single:
        warn(
            f"{len(single)} of {len(counts)} classes have one row only ({single[0]!r}, ...): such a row is its own "
            "prototype and scores 0"
        )
