"""Supervised prototypes: how far a row is from the mean of its own class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from hf_prune.data import identity
from hf_prune.data.batch import Batch
from hf_prune.data.labels import check_classes, places_among
from hf_prune.data.reading import as_float32, vector_blocks
from hf_prune.models import memo
from hf_prune.numerics import kmeans
from hf_prune.scorer import Scorer

METRICS = ("cosine", "euclidean", "margin")
BITS = 32  # of the fraction; 2**30 rows of numbers up to 1 still fit an int64


class ClassSums:
    """Sums of vectors by class that do not depend on the order of the rows: fixed point in int64.

    Each number is rounded to 2**-32 of a power of two above the largest of them, which costs at most 1.2e-10 of it,
    less on average over many rows. With `largest` every coordinate has a power of its own, and what was rounded off is
    summed as well: 64 bits below the largest, so that one outlier takes nothing from the others.

    Args:
        largest: (d,) largest absolute numbers of each coordinate; None: 1.
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


def class_cosines(x: np.ndarray, unit_means: np.ndarray) -> np.ndarray:
    """Cosine of (n, d) rows to each of (C, d) unit means, (n, C) float64; NaN for zero rows."""
    cosines = kmeans.unit_rows(np.asarray(x, np.float64)) @ unit_means.T
    cosines[~x.any(axis=1)] = np.nan
    return np.asarray(cosines)


def class_margin(cosines: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Cosine to the own mean minus the largest to another, (n,).

    >>> class_margin(np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]]), np.array([0, 2])).round(6).tolist()
    [0.4, -0.8]
    """
    every = np.arange(len(own))
    others = cosines.copy()
    others[every, own] = -np.inf
    return np.asarray(cosines[every, own] - others.max(1))


def mean_distance(x: np.ndarray, means: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """Euclidean distance of (n, d) rows to the mean of their class, or to the nearest if `own` is None, (n,)."""
    x = np.asarray(x, np.float64)
    own = nearest_mean(x, means) if own is None else own
    return np.asarray(np.linalg.norm(x - means[own], axis=1))


def nearest_mean(x: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Which of (C, d) means is nearest to each of (n, d) float64 rows, (n,); the first of equals.

    Products find, differences tell: they are taken where two means are as near as products can say.
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


@dataclass(frozen=True, eq=False)
class SupervisedPrototypes(Scorer):
    """Distance to the mean of the row's own class. High = atypical of its class = hard = keep.

    Mislabelled rows get the highest scores and are kept; look at them, or drop the rows with the lowest margin.
    A class of one row scores 0.

    Args:
        class_means: (C, d) means of unit vectors (or of the vectors as they are).
        classes: the C labels, in the order of the means.
        label: column with the rows' classes: ClassLabel, integers or strings.
        embedding: column with the rows' vectors.
        metric: "cosine" (the paper's): `1 - cos to the own mean`. "euclidean": distance to the own mean.
            "margin": `max cos to another mean - cos to the own`, in [-2, 2].
        normalize_before_mean: scale rows to length 1 before the mean; under "euclidean" before the distance too.
        nearest: measure to the nearest class mean instead of the own (it hides mislabelled rows); not of a
            margin, which is the own class's.
        margin: write `<name>_margin`, cosine to the own mean minus the largest to another; low = suspicious.
        name: column.
        fitted_on: what the means were learned on.

    Zero vectors score NaN under cosines.

    Raises:
        ValueError: a label that was not there when fitting, is null or negative (no label); another width than the
            means; `nearest` under metric="margin".

    Reference: Sorscher et al., 2022, arXiv 2206.14486 (`normalize_before_mean` is our choice: the text is silent).

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"embedding": [[1.0, 0.0], [4.0, 3.0], [0.0, 1.0]], "label": [0, 0, 1]})
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     scorer = SupervisedPrototypes.fit(ds)
    >>> scorer(ds[:])
    {'supervised_proto': array([0.0513167, 0.0513167, 0.       ], dtype=float32)}
    """

    paper: ClassVar[str] = "Sorscher et al., Beyond neural scaling laws, NeurIPS 2022, arXiv 2206.14486"
    meaning: ClassVar[str] = "far from the mean of its own class: atypical, hard, or mislabelled"
    nan_rows: ClassVar[bool] = True

    class_means: np.ndarray
    classes: tuple[Any, ...]
    label: str = "label"
    embedding: str = "embedding"
    metric: str = "cosine"
    normalize_before_mean: bool = True
    nearest: bool = False
    margin: bool = False
    name: str = "supervised_proto"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric={self.metric!r} is not one of {METRICS}")
        if np.ndim(self.class_means) != 2 or len(self.class_means) != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes, but means of shape {np.shape(self.class_means)}")
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
        ds: Any,
        label: str = "label",
        embedding: str = "embedding",
        *,
        metric: str = "cosine",
        normalize_before_mean: bool = True,
        nearest: bool = False,
        margin: bool = False,
        name: str = "supervised_proto",
    ) -> Self:
        """Learn one mean a class; a sum over the rows, the same for any order of them.

        Args:
            ds: `Dataset` or `IterableDataset` with both columns.
            label: column of classes.
            embedding: column of rows of floats.
            metric, normalize_before_mean, nearest, margin, name: of the scorer.

        Raises:
            ValueError: an empty dataset, a label that is null or negative (no label), non-finite rows, a class whose
                mean is zero.
        """
        largest = None
        if not normalize_before_mean:
            for block in vector_blocks(ds, embedding, f"{cls.__name__}.fit"):
                tops = np.abs(block.x).max(0)
                largest = tops if largest is None else np.maximum(largest, tops)
        sums, facts = ClassSums(largest), {"column": embedding, "label": label}
        content = identity.ContentSum()
        for block in vector_blocks(ds, embedding, f"{cls.__name__}.fit", label):
            if metric == "euclidean":
                as_float32(block.x, embedding)  # refused where distances are none that float32 can tell
            labels = check_classes(block.beside, label, block.start)
            sums.add(kmeans.unit_rows(block.x.astype(np.float64)) if normalize_before_mean else block.x, labels)
            both = identity.seeded(identity.digests(block.x), 0) ^ identity.seeded(identity.digests(labels), 1)
            content.add(both)
        classes, means = sums.means()
        single = [c for c in classes if sums.counts[c] == 1]
        if single:
            warnings.warn(
                f"{len(single)} of {len(classes)} classes have one row only ({single[0]!r}, ...): such a row is its "
                "own prototype and scores 0",
                stacklevel=2,
            )
        flat = [c for c, mean in zip(classes, means, strict=True) if not mean.any()]
        if flat and metric != "euclidean":
            raise ValueError(f"the vectors of class {flat[0]!r} add up to zero, so no row has an angle to their mean")
        total = sum(sums.counts.values())
        known = {**facts, "rows": total, "classes": len(classes), "single_row_classes": len(single)}
        return cls(
            means,
            tuple(classes),
            label,
            embedding,
            metric,
            normalize_before_mean,
            nearest,
            margin,
            name,
            {**known, "content": content.text},
        )

    def columns(self) -> dict[str, str]:
        return {self.name: "float32"} | ({f"{self.name}_margin": "float32"} if self.margin else {})

    def companions(self) -> dict[str, str]:
        line = "cosine to the own class mean minus the largest to another; low = suspicious"
        return {f"{self.name}_margin": line} if self.margin else {}

    def cost(self, batch: Batch) -> float:
        return 2.0 * self.class_means.size * batch.n

    def score(self, batch: Batch, rank: int | None) -> Any:
        x = batch.matrix(self.embedding)
        if batch.n and x.shape[1] != self.class_means.shape[1]:
            raise ValueError(
                f"column {self.embedding!r} has width {x.shape[1]}, the class means {self.class_means.shape[1]}; "
                "fit on embeddings of the same model"
            )
        own = places_among(batch.arrow(self.label), self.classes, self.label)
        means = memo(self, "unit", lambda: kmeans.unit_rows(np.asarray(self.class_means, np.float64)))
        similarity = class_cosines(x, means)
        if self.metric == "cosine":
            mine = similarity.max(1) if self.nearest else similarity[np.arange(batch.n), own]
            score = np.maximum(1 - mine, 0)
        elif self.metric == "margin":
            score = -class_margin(similarity, own)
        else:
            vectors = kmeans.unit_rows(np.asarray(x, np.float64)) if self.normalize_before_mean else x
            score = mean_distance(vectors, self.class_means, None if self.nearest else own)
        return {self.name: score} | ({f"{self.name}_margin": class_margin(similarity, own)} if self.margin else {})
