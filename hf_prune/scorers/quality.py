"""Quality classifiers: a linear head on embeddings, learned from rows that somebody annotated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pyarrow as pa

from hf_prune.data import arrow, identity
from hf_prune.data.batch import Batch
from hf_prune.data.labels import check_classes
from hf_prune.data.reading import as_float32, vector_blocks
from hf_prune.scorer import Scorer

HEADS = ("ridge", "logistic")
BITS = 22  # of a number: products of two have 44, and 2**9 of these still add up exactly in float64
ROWS = 1 << 9
HALF = 31
ROOM = 6  # bits that the largest number may be above the typical one before it costs them precision
MOST = 4  # parts of a column
FEW = 1024  # rows that tell what is typical
SAMPLE = 100_000
ROUNDS = 100


class Grid(NamedTuple):
    """How each of (d + 1,) columns, the features and the target, is rounded to whole numbers.

    Attributes:
        largest: absolute numbers, after `center` is taken off.
        center: what is taken off first: 0, or the middle of a column whose numbers differ by little of their size.
        typical: distance of a column's numbers from their middle. Where the largest is far above it, the column is
            split into several of 22 bits, the next one holding what the one before rounded off.
    """

    largest: np.ndarray
    center: np.ndarray
    typical: np.ndarray

    @classmethod
    def of(cls, low: np.ndarray, high: np.ndarray, some: np.ndarray) -> Grid:
        """The grid of columns with these (d + 1,) least and largest numbers; `some` (m, d + 1) are rows of them."""
        middle = np.median(some, axis=0)
        typical = _median_of_others(np.abs(some - middle))
        typical = np.where(typical > 0, typical, np.maximum(high - middle, middle - low))
        center = np.where(np.abs(middle) > 2.0**ROOM * typical, middle, 0.0)  # all of it where a column is constant
        return cls(np.maximum(high - center, center - low), center, typical)


def _median_of_others(x: np.ndarray) -> np.ndarray:
    """Median (d,) of the numbers (m, d) >= 0 that are not 0; 0 where all are."""
    ordered = np.sort(x, axis=0)
    zeros = (ordered == 0).sum(0)
    return np.asarray(ordered[np.minimum((zeros + len(x)) // 2, len(x) - 1), np.arange(x.shape[1])])


class RidgeSums:
    """Sums of products of features and target that do not depend on the order of the rows, nor on how they were split.

    Each column is rounded to 2**-22 of a power of two above its largest number, or finer (see `Grid`); sums of the
    products are whole numbers then, added up exactly in (d + 2)**2 pairs of int64.

    Args:
        grid: the same for all that are merged; or the (d + 1,) largest absolute numbers of the features and the target.

    >>> x, y = np.array([[0.0], [1.0], [2.0]]), np.array([1.0, 3.0, 5.0])
    >>> sums = RidgeSums(np.array([2.0, 5.0])).add(x[:2], y[:2])
    >>> weights, intercept = sums.merge(RidgeSums(np.array([2.0, 5.0])).add(x[2:], y[2:])).solve(l2=0.0)
    >>> weights.round(6).tolist(), round(intercept, 6)
    ([2.0], 1.0)
    """

    def __init__(self, grid: Grid | np.ndarray) -> None:
        if not isinstance(grid, Grid):
            grid = Grid(grid, np.zeros(len(grid)), grid)
        self.center = np.append(grid.center, 0.0)  # the last column is the constant
        with np.errstate(divide="ignore", invalid="ignore"):
            exponents = np.where(grid.largest > 0, np.ceil(np.log2(grid.largest)), 0.0)
            above = np.nan_to_num(exponents - np.log2(grid.typical) - ROOM, nan=0.0, posinf=0.0)
        self.scale = np.append(2.0**exponents, 1.0)
        parts = np.append(1 + np.ceil(np.clip(above / BITS, 0, MOST - 1)).astype(int), 1)
        # first parts of all columns come first, then second ones of those that have some
        self.columns = [np.flatnonzero(parts > part) for part in range(parts.max())]
        self.of = np.concatenate(self.columns)
        units = [self.scale[columns] * 2.0 ** (-BITS * (i + 1)) for i, columns in enumerate(self.columns)]
        self.unit = np.concatenate(units)
        width = len(self.unit)
        self.high = np.zeros((width, width), np.int64)
        self.low = np.zeros((width, width), np.int64)

    def add(self, x: np.ndarray, y: np.ndarray) -> Self:
        """Add (b, d) features with their (b,) targets."""
        for start in range(0, len(x), ROWS):
            some = slice(start, start + ROWS)
            left = np.column_stack([x[some].astype(np.float64), y[some], np.ones(len(y[some]))]) - self.center
            left = left * (2.0**BITS / self.scale)
            fixed = np.rint(left)
            if len(self.columns) > 1:
                fixed = self._split(left)
            products = (fixed.T @ fixed).astype(np.int64)
            self.high += products >> HALF
            self.low += products & ((1 << HALF) - 1)
        return self

    def _split(self, left: np.ndarray) -> np.ndarray:
        """Columns (b, d + 2) in units of their first part, as whole numbers of all parts, (b, w)."""
        found = []
        for part, columns in enumerate(self.columns):
            left = left[:, np.isin(self.columns[part - 1], columns)] if part else left
            found.append(np.rint(left))
            left = (left - found[-1]) * 2.0**BITS
        return np.concatenate(found, axis=1)

    def merge(self, other: RidgeSums) -> Self:
        """Add what another shard has summed."""
        if not all(np.array_equal(getattr(self, name), getattr(other, name)) for name in ("unit", "of", "center")):
            raise ValueError("the shards have other scales; give all of them the grid of the whole")
        self.high += other.high
        self.low += other.low
        return self

    def products(self) -> np.ndarray:
        """The (d + 2, d + 2) sums of products of features, target and a constant 1; without the center."""
        high, low = self.high + (self.low >> HALF), self.low & ((1 << HALF) - 1)
        parts = np.asarray((high * 2.0**HALF + low) * self.unit[:, None] * self.unit)
        if len(self.columns) == 1:
            return parts
        sums = np.zeros((len(self.scale), len(self.scale)))
        np.add.at(sums, (self.of[:, None], self.of), parts)
        return sums

    def solve(self, l2: float) -> tuple[np.ndarray, float]:
        """Weights (d,) and intercept that minimise `sum (y - w x - b)**2 + l2 * |w|**2`.

        Raises:
            ValueError: with `l2=0`, features that depend on each other.
        """
        _, mean, centred = self.centred()
        gram = centred[:-1, :-1] + l2 * np.eye(len(centred) - 1)
        if l2 == 0:  # what the rounding of columns leaves of a dependence is no weight to divide by
            size = np.sqrt(np.where(np.diag(gram) > 0, np.diag(gram), 1))
            if len(gram) and not np.linalg.eigvalsh(gram / np.outer(size, size))[0] > 2.0 ** (4 - 2 * BITS):
                raise ValueError("the features depend on each other, so that no weights are best; pass l2 > 0")
        weights = np.linalg.solve(gram, centred[:-1, -1])
        mean = mean + self.center[:-1]
        return weights, float(mean[-1] - mean[:-1] @ weights)

    def centred(self) -> tuple[float, np.ndarray, np.ndarray]:
        """Rows, (d + 1,) means without the center, (d + 1, d + 1) sums of products of what is left after the means."""
        products = self.products()
        n = float(products[-1, -1])
        mean = products[-1, :-1] / n
        return n, mean, products[:-1, :-1] - n * np.outer(mean, mean)


def fit_logistic(x: np.ndarray, target: np.ndarray, l2: float) -> tuple[np.ndarray, float]:
    """Weights (d,) and intercept that minimise `sum log(1 + exp(-(+-1) (w x + b))) + l2 / 2 * |w|**2`, by Newton.

    Args:
        x: (m, d) features.
        target: (m,) of 0 and 1.
        l2: penalty; the inverse of scikit-learn's C.

    Raises:
        ValueError: no optimum was found: with `l2=0`, classes that a plane separates have none.
    """
    beta = np.zeros(x.shape[1] + 1)
    penalty = np.append(np.full(x.shape[1], float(l2)), 0.0)

    def pieces() -> Any:
        for start in range(0, len(x), 1 << 13):
            part = x[start : start + (1 << 13)].astype(np.float64)
            yield np.column_stack([part, np.ones(len(part))]), target[start : start + (1 << 13)]

    def loss(at: np.ndarray) -> float:
        logits = ((part @ at, t) for part, t in pieces())
        return float(sum((np.logaddexp(0, z) - t * z).sum() for z, t in logits) + (penalty * at * at).sum() / 2)

    best = loss(beta)
    for _ in range(ROUNDS):
        slope, curve = penalty * beta, np.diag(penalty)
        for part, t in pieces():
            p = _sigmoid(part @ beta)
            slope += part.T @ (p - t)
            curve += (part * (p * (1 - p))[:, None]).T @ part
        step = np.linalg.lstsq(curve, slope, rcond=None)[0]
        if slope @ step <= 1e-14 * len(x):
            return beta[:-1], float(beta[-1])
        size = 1.0
        while (found := loss(beta - size * step)) > best - 1e-4 * size * float(slope @ step) and size > 1e-6:
            size /= 2
        if size <= 1e-6:  # nothing is gained any more: rounding
            return beta[:-1], float(beta[-1])
        beta, best = beta - size * step, found
    raise ValueError(f"the logistic head found no optimum in {ROUNDS} rounds; raise l2={l2}")


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(-np.logaddexp(0, -z)))


@dataclass(frozen=True, eq=False)
class QualityClassifier(Scorer):
    """What a linear head on embeddings says of a row's quality, learned from annotated rows. High = keep.

    It knows what the annotators said and what the embedder sees: many embedders cut texts at 512
    tokens, so score documents in chunks. Compare with random rows at the same number: such filters have done worse.

    Args:
        weights: (d,) of the head.
        intercept: of the head.
        head: "ridge": the column is the predicted annotation. "logistic": the probability of a high one.
        levels: lowest and highest annotation.
        embedding: column with the rows' vectors, of the embedder that was fitted on.
        int_score: write `<name>_int`, the ridge score rounded and put between the levels.
        name: column.
        fitted_on: what the head was learned on.

    Raises:
        ValueError: vectors of another width.

    Reference: Penedo et al., 2024, arXiv 2406.17557 (FineWeb-Edu: annotations 0 to 5, a linear head, kept from 3); they
    train by gradient descent, the closed form is ours.

    >>> from datasets import Dataset
    >>> rows = {"embedding": [[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, 0.0]], "label": [0, 1, 2, 3]}
    >>> scorer = QualityClassifier.fit(Dataset.from_dict(rows), l2=0.0, int_score=True)
    >>> scorer({"embedding": [[1.6, 0.5], [9.0, 0.0]]})
    {'quality': array([1.6, 9. ], dtype=float32), 'quality_int': array([2, 3], dtype=int32)}
    """

    paper: ClassVar[str] = "Penedo et al., The FineWeb Datasets, arXiv 2406.17557"
    meaning: ClassVar[str] = "of high quality, as the annotators meant it"

    weights: np.ndarray
    intercept: float
    head: str = "ridge"
    levels: tuple[float, float] = (0.0, 5.0)
    embedding: str = "embedding"
    int_score: bool = False
    name: str = "quality"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        if self.head not in HEADS:
            raise ValueError(f"head={self.head!r} is not one of {', '.join(HEADS)}")
        if np.ndim(self.weights) != 1:
            raise ValueError(f"weights of shape {np.shape(self.weights)} are not one for each number of an embedding")
        if self.int_score and self.head == "logistic":
            raise ValueError("int_score rounds predicted annotations, a probability is none; pass head='ridge'")

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, by head."""
        if self.head == "ridge":
            return f"ridge regression of the annotation, {self.levels[0]:g} to {self.levels[1]:g}; not clipped"
        return "probability of a high annotation, by logistic regression"

    @classmethod
    def fit(
        cls,
        annotated: Any,
        label: str = "label",
        embedding: str = "embedding",
        *,
        head: str = "ridge",
        l2: float = 1.0,
        threshold: float | None = None,
        sample: int | None = SAMPLE,
        seed: int = 0,
        int_score: bool = False,
        name: str = "quality",
    ) -> Self:
        """Learn the head; the same for any order of the rows.

        Ridge reads the rows twice (their range, then sums of products) and needs memory for `(d + 2)**2` numbers,
        however many there are. Logistic is fitted on at most `sample` rows, drawn by the hash of their content.

        Args:
            annotated: `Dataset` or `IterableDataset` with both columns.
            label: column of annotations: numbers, such as 0 to 5. A ClassLabel counts by its index; of
                whole numbers, negative ones are rows without a label.
            embedding: column of rows of floats.
            head: "ridge" or "logistic".
            l2: penalty on the squared weights (not on the intercept).
            threshold: of the logistic head: annotations from here on are high. None for two levels only.
            sample, seed: rows that the logistic head is fitted on, and the draw; None for all.
            int_score, name: of the scorer.

        Raises:
            ValueError: no rows, an annotation that is null, non-finite or no label, one level only, more than two
                without a threshold.
            TypeError: annotations that are not numbers.
        """
        if head not in HEADS:
            raise ValueError(f"head={head!r} is not one of {', '.join(HEADS)}")
        if not l2 >= 0:
            raise ValueError(f"l2={l2!r} is no penalty; give 0 or more")
        who = cls.__name__
        total, content, seen = 0, np.zeros((), np.uint64), np.zeros(0)
        least, most, few = np.zeros(0), np.zeros(0), _Lowest(FEW)
        for block in vector_blocks(annotated, embedding, f"{who}.fit", label):
            as_float32(block.x, embedding)  # refused where sums of squares leave float64
            y = _annotations(block.beside, label, block.start)
            ends = [np.append(end(block.x, axis=0), end(y)).astype(np.float64) for end in (np.min, np.max)]
            least = ends[0] if total == 0 else np.minimum(least, ends[0])
            most = ends[1] if total == 0 else np.maximum(most, ends[1])
            seen = np.unique(np.concatenate([seen, y]))
            seen = seen if len(seen) <= 4 else seen[[0, 1, -2, -1]]
            keys = _keys(block.x, y, 0)
            few.add(keys, block.x, y)
            content += keys.sum(dtype=np.uint64)
            total += len(y)
        grid = Grid.of(least, most, np.column_stack([few.x.astype(np.float64), few.y]))
        low, high = float(seen[0]), float(seen[-1])
        if low == high:
            raise ValueError(f"column {label!r} is {low:g} in all {total} rows; annotate good and bad ones")
        known = {"rows": total, "column": embedding, "label": label, "l2": l2, "content": f"{int(content):016x}"}
        if head == "ridge":
            if threshold is not None:
                raise ValueError("threshold is for head='logistic'; the ridge head learns all levels")
            sums = RidgeSums(grid)
            for block in vector_blocks(annotated, embedding, f"{who}.fit", label):
                sums.add(block.x, _annotations(block.beside, label, block.start))
            weights, intercept = sums.solve(l2)
            known["r2"] = _explained(sums, weights)
        else:
            if threshold is None and len(seen) > 2:
                raise ValueError(
                    f"column {label!r} has more than two levels, {low:g} to {high:g}; pass threshold=3, say"
                )
            if threshold is not None and not low < threshold <= high:
                raise ValueError(
                    f"threshold={threshold} leaves one side empty: annotations go from {low:g} to {high:g}"
                )
            center = grid.center[:-1]
            x, y = _sample(annotated, embedding, label, who, sample, seed, center)
            known |= {"threshold": high if threshold is None else threshold, "sampled": len(y)}
            weights, intercept = fit_logistic(x, (y >= known["threshold"]).astype(np.float64), l2)
            intercept -= float(center @ weights)
        return cls(weights, intercept, head, (low, high), embedding, int_score, name, known)

    def columns(self) -> dict[str, str]:
        return {self.name: "float32"} | ({f"{self.name}_int": "int32"} if self.int_score else {})

    def companions(self) -> dict[str, str]:
        line = f"the score rounded, from {self.levels[0]:g} to {self.levels[1]:g}"
        return {f"{self.name}_int": line} if self.int_score else {}

    def cost(self, batch: Batch) -> float:
        return 2.0 * self.weights.size * batch.n

    def score(self, batch: Batch, rank: int | None) -> Any:
        x = batch.matrix(self.embedding)
        if batch.n and x.shape[1] != len(self.weights):
            raise ValueError(
                f"column {self.embedding!r} has width {x.shape[1]}, the head {len(self.weights)}; embed with the model "
                "that it was fitted on"
            )
        if not batch.n:
            x = np.empty((0, len(self.weights)))
        z = x.astype(np.float64) @ self.weights + self.intercept
        if self.head == "logistic":
            return {self.name: _sigmoid(z)}
        rounded = np.rint(np.clip(z, *self.levels)).astype(np.int32)
        return {self.name: z} | ({f"{self.name}_int": rounded} if self.int_score else {})


def _annotations(values: pa.Array | None, name: str, start: int) -> np.ndarray:
    """A block of the label column as (b,) float64."""
    assert values is not None
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)):
        raise TypeError(f"column {name!r} holds {values.type}, not numbers; annotate with levels such as 0 to 5")
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    numbers, null = arrow.numbers(pa.chunked_array([values]), name)
    found = np.where(null, np.nan, numbers).astype(np.float64)
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found))[0])
        raise ValueError(
            f"column {name!r} is {values[row].as_py()} in row {start + row}; annotate it, or drop such rows"
        )
    if pa.types.is_integer(values.type):
        check_classes(values, name, start, meant="float32")
    return found


def _keys(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    both = identity.seeded(identity.digests(x), 0) ^ identity.seeded(identity.digests(y), 1)
    return identity.seeded(both, seed)


class _Lowest:
    """Rows with the lowest keys, in the order of these: a sample that no order of the rows changes."""

    def __init__(self, size: int | None) -> None:
        self.size = size
        self.keys, self.x, self.y = np.zeros(0, np.uint64), np.zeros((0, 0), np.float32), np.zeros(0)

    def add(self, keys: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
        """Offer (b,) keys with their (b, d) features and (b,) targets."""
        if self.size is not None and len(self.keys) == self.size:
            some = keys < self.keys[-1]
            keys, x, y = keys[some], x[some], y[some]
        keys = np.concatenate([self.keys, keys])
        order = np.argsort(keys, kind="stable")[: self.size]
        self.x = np.concatenate([self.x.reshape(-1, x.shape[1]), x])[order]
        self.keys, self.y = keys[order], np.concatenate([self.y, y])[order]


def _sample(
    ds: Any, embedding: str, label: str, who: str, size: int | None, seed: int, center: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows with the lowest hashes of their content, in the order of these, without the center."""
    lowest = _Lowest(size)
    for block in vector_blocks(ds, embedding, f"{who}.fit", label):
        own = _annotations(block.beside, label, block.start)
        lowest.add(_keys(block.x, own, seed), (block.x - center).astype(np.float32), own)
    return lowest.x, lowest.y


def _explained(sums: RidgeSums, weights: np.ndarray) -> float:
    """Share of the annotations' variance that the head explains on the rows it was fitted on, to 4 digits."""
    _, _, centred = sums.centred()
    left = centred[-1, -1] - 2 * weights @ centred[:-1, -1] + weights @ centred[:-1, :-1] @ weights
    return round(float(1 - left / centred[-1, -1]), 4)
