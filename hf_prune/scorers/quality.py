"""Quality classifiers: a linear function of embeddings, learned from rows that somebody annotated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeAlias, get_args

import numpy as np
import pyarrow as pa

from hf_prune.checks import check_choice, check_count, check_number
from hf_prune.data import arrow, identity
from hf_prune.data.batch import Batch
from hf_prune.data.labels import check_classes, pair_keys
from hf_prune.data.reading import as_float32, vector_blocks
from hf_prune.data.types import Rows
from hf_prune.numerics.logistic import fit_binary, sigmoid
from hf_prune.scorer import Scorer

Regression: TypeAlias = Literal["ridge", "logistic"]
BITS = 22  # of a number: products of two have 44, and 2**9 of these still add up exactly in float64
ROWS = 1 << 9
HALF = 31
ROOM = 6  # bits that the largest number may be above the typical one before it costs them precision
LIMIT = 4  # parts of a column
FEW = 1024  # rows that tell what is typical
SAMPLE = 100_000


class Grid(NamedTuple):
    """How each of (d + 1,) columns, the features and the target, is rounded to whole numbers.

    Attributes:
        largest: (d + 1,) largest absolute numbers, after `center` is taken off.
        center: (d + 1,) numbers that are taken off first: 0, or the median of a column whose numbers differ by little
            of their size.
        typical: (d + 1,) typical distances of a column's numbers from their median. Where the
            largest is far above it, the column is split into several of 22 bits, the next one holding what the one
            before rounded off.
    """

    largest: np.ndarray
    center: np.ndarray
    typical: np.ndarray

    @classmethod
    def of(cls, low: np.ndarray, high: np.ndarray, some: np.ndarray) -> Grid:
        """The grid of (d + 1,) columns.

        Args:
            low: (d + 1,) smallest numbers.
            high: (d + 1,) largest numbers.
            some: (m, d + 1) rows of them.
        """
        middle = np.median(some, axis=0)
        typical = _median_of_others(np.abs(some - middle))
        typical = np.where(typical > 0, typical, np.maximum(high - middle, middle - low))
        center = np.where(np.abs(middle) > 2.0**ROOM * typical, middle, 0.0)  # all of it where a column is constant
        return cls(largest=np.maximum(high - center, center - low), center=center, typical=typical)


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
            grid = Grid(largest=grid, center=np.zeros(len(grid)), typical=grid)
        self.center = np.append(grid.center, 0.0)  # the last column is the constant
        with np.errstate(divide="ignore", invalid="ignore"):
            exponents = np.where(grid.largest > 0, np.ceil(np.log2(grid.largest)), 0.0)
            above = np.nan_to_num(exponents - np.log2(grid.typical) - ROOM, nan=0.0, posinf=0.0)
        self.scale = np.append(2.0**exponents, 1.0)
        parts = np.append(1 + np.ceil(np.clip(above / BITS, 0, LIMIT - 1)).astype(int), 1)
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
        split = []
        for part, columns in enumerate(self.columns):
            left = left[:, np.isin(self.columns[part - 1], columns)] if part else left
            split.append(np.rint(left))
            left = (left - split[-1]) * 2.0**BITS
        return np.concatenate(split, axis=1)

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

    def solve(self, *, l2: float) -> tuple[np.ndarray, float]:
        """Weights (d,) and intercept that minimize `sum (y - w x - b)**2 + l2 * |w|**2`.

        Raises:
            ValueError: with `l2=0`, features that depend on each other.
        """
        _, mean, centered = self.centered()
        gram = centered[:-1, :-1] + l2 * np.eye(len(centered) - 1)
        if l2 == 0:  # what the rounding of columns leaves of a dependence is no weight to divide by
            size = np.sqrt(np.where(np.diag(gram) > 0, np.diag(gram), 1))
            if len(gram) and not np.linalg.eigvalsh(gram / np.outer(size, size))[0] > 2.0 ** (4 - 2 * BITS):
                raise ValueError("the features depend on each other, so that no weights are best; pass l2 > 0")
        weights = np.linalg.solve(gram, centered[:-1, -1])
        mean = mean + self.center[:-1]
        return weights, float(mean[-1] - mean[:-1] @ weights)

    def centered(self) -> tuple[float, np.ndarray, np.ndarray]:
        """Rows, (d + 1,) means without the center, (d + 1, d + 1) sums of products of what is left after the means."""
        products = self.products()
        n = float(products[-1, -1])
        mean = products[-1, :-1] / n
        return n, mean, products[:-1, :-1] - n * np.outer(mean, mean)


@dataclass(frozen=True, eq=False)
class QualityClassifier(Scorer):
    """What a linear function of the embedding says of a row's quality, learned from annotated rows. High = keep.

    With annotations y of embeddings x:

        ridge      score(x) = <w, x> + b,                       (w, b) = argmin sum (y - <w, x> - b)^2 + l2 ||w||^2
        logistic   score(x) = 1 / (1 + exp(-<w, x> - b)),       the probability of y >= threshold

    It knows what the annotators said and what the embedder sees: many embedders cut texts at 512
    tokens, so score documents in chunks. Compare with random rows at the same number: such filters have done worse.

    Args:
        weights: (d,) weights of the embedding's numbers.
        intercept: constant that is added to their sum.
        regression: kind of regression: "ridge": the column is the predicted annotation. "logistic": the probability of
            a high one.
        levels: lowest and highest annotation.
        embedding: column of vectors, of the embedder that was fitted on.
        int_score: whether `<name>_int` is written, the ridge score rounded and put between the levels.
        name: score column.
        fitted_on: what the weights were learned on.

    Raises:
        ValueError: vectors of another width.

    Reference: Penedo et al., 2024, arXiv 2406.17557 (FineWeb-Edu: annotations 0 to 5, a linear regression, kept from
    3); they train by gradient descent, the closed form is ours.

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
    _: KW_ONLY
    regression: Regression = "ridge"
    levels: tuple[float, float] = (0.0, 5.0)
    embedding: str = "embedding"
    int_score: bool = False
    name: str = "quality"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        check_choice("regression", self.regression, get_args(Regression))
        if np.ndim(self.weights) != 1:
            raise ValueError(f"weights of shape {np.shape(self.weights)} are not one for each number of an embedding")
        if self.int_score and self.regression == "logistic":
            raise ValueError("int_score rounds predicted annotations, a probability is none; pass regression='ridge'")

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, by kind of regression."""
        if self.regression == "ridge":
            return f"ridge regression of the annotation, {self.levels[0]:g} to {self.levels[1]:g}; not clipped"
        return "probability of a high annotation, by logistic regression"

    @classmethod
    def fit(
        cls,
        annotated: Rows,
        *,
        label: str = "label",
        embedding: str = "embedding",
        regression: Regression = "ridge",
        l2: float = 1.0,
        threshold: float | None = None,
        sample_rows: int | None = SAMPLE,
        seed: int = 0,
        int_score: bool = False,
        name: str = "quality",
    ) -> Self:
        """Learn the weights; the same for any order of the rows.

        Ridge regression reads the rows twice (their range, then sums of products) and needs memory for `(d + 2)**2`
        numbers, however many there are. Logistic regression is fitted on a sample of rows, drawn by the hash of their
        content.

        Args:
            annotated: `Dataset` or `IterableDataset` with both columns.
            label: column of annotations: numbers, such as 0 to 5. A ClassLabel counts by its index; of
                whole numbers, negative ones are rows without a label.
            embedding: column of vectors.
            regression: kind of regression, "ridge" or "logistic".
            l2: penalty on the squared weights (not on the intercept), 0 or more.
            threshold: annotation from which on a row is high, for logistic regression; None where there are two
                annotations only.
            sample_rows: number of rows that logistic regression is fitted on, at most; None: all.
            seed: seed of the draw of those rows.
            int_score: whether the scorer writes `<name>_int` as well.
            name: score column.

        Raises:
            ValueError: no rows, an annotation that is null, non-finite or no label, one annotation only, more than two
                without a threshold.
            TypeError: annotations that are not numbers.
        """
        check_choice("regression", regression, get_args(Regression))
        check_number("l2", l2, 0)
        check_count("sample_rows", sample_rows, optional=True)
        if regression == "ridge" and threshold is not None:
            raise ValueError("threshold is for regression='logistic'; ridge regression learns all levels")
        source = _Annotated(annotated, label, embedding, f"{cls.__name__}.fit")
        seen = source.look()
        if regression == "ridge":
            weights, intercept, learned = _ridge(source, seen, l2)
        else:
            limit = _threshold(threshold, seen, label)
            weights, intercept, learned = _logistic(source, seen, l2, limit, sample_rows, seed)
        facts = {"rows": seen.rows, "column": embedding, "label": label, "l2": l2, "content": seen.content}
        return cls(
            weights,
            intercept,
            regression=regression,
            levels=(seen.levels[0], seen.levels[-1]),
            embedding=embedding,
            int_score=int_score,
            name=name,
            fitted_on=facts | learned,
        )

    def columns(self) -> dict[str, str]:
        return {self.name: "float32"} | ({f"{self.name}_int": "int32"} if self.int_score else {})

    def companions(self) -> dict[str, str]:
        line = f"the score rounded, from {self.levels[0]:g} to {self.levels[1]:g}"
        return {f"{self.name}_int": line} if self.int_score else {}

    def cost(self, batch: Batch) -> float:
        return 2.0 * self.weights.size * batch.n

    def score(self, batch: Batch, rank: int | None) -> Any:
        x = batch.matrix(self.embedding, len(self.weights), "the annotated rows")
        z = x.astype(np.float64) @ self.weights + self.intercept
        if self.regression == "logistic":
            return {self.name: sigmoid(z)}
        rounded = np.rint(np.clip(z, *self.levels)).astype(np.int32)
        return {self.name: z} | ({f"{self.name}_int": rounded} if self.int_score else {})


class _Seen(NamedTuple):
    """What a first look at annotated rows tells.

    Attributes:
        rows: number of rows.
        levels: annotations in ascending order; of more than four the first two and the last two.
        grid: how columns are rounded.
        content: digest of the rows, which knows no order.
    """

    rows: int
    levels: list[float]
    grid: Grid
    content: str


class _Annotated:
    """Embeddings and their annotations, as they can be read several times."""

    def __init__(self, ds: Rows, label: str, embedding: str, who: str) -> None:
        self.ds, self.label, self.embedding, self.who = ds, label, embedding, who

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(b, d) features and their (b,) float64 annotations, block by block."""
        for block in vector_blocks(self.ds, self.embedding, self.who, self.label):
            yield block.x, _annotations(block.beside, self.label, block.start)

    def look(self) -> _Seen:
        """Read all rows once.

        Raises:
            ValueError: all annotations are the same.
        """
        rows, levels, content, few = 0, np.zeros(0), identity.ContentSum(), _Lowest(FEW)
        low, high = np.full(1, np.inf), np.full(1, -np.inf)  # of each column, the annotation last
        for x, y in self:
            as_float32(x, self.embedding)  # refused where sums of squares leave float64
            low = np.minimum(low, np.append(x.min(0), y.min()).astype(np.float64))
            high = np.maximum(high, np.append(x.max(0), y.max()).astype(np.float64))
            levels = np.unique(np.concatenate([levels, y]))
            levels = levels if len(levels) <= 4 else levels[[0, 1, -2, -1]]
            keys = pair_keys(x, y)
            few.add(identity.seeded(keys, 0), x, y)
            content.add(keys)
            rows += len(y)
        if len(levels) == 1:
            raise ValueError(f"column {self.label!r} is {levels[0]:g} in all {rows} rows; annotate good and bad ones")
        grid = Grid.of(low, high, np.column_stack([few.x.astype(np.float64), few.y]))
        return _Seen(rows=rows, levels=levels.tolist(), grid=grid, content=content.text)

    def sample(self, size: int | None, seed: int, center: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows with the lowest hashes of their content, in the order of these, without the (d,) center."""
        lowest = _Lowest(size)
        for x, y in self:
            lowest.add(identity.seeded(pair_keys(x, y), seed), (x - center).astype(np.float32), y)
        return lowest.x, lowest.y


def _ridge(source: _Annotated, seen: _Seen, l2: float) -> tuple[np.ndarray, float, dict[str, Any]]:
    """Weights, intercept and what is known of the fit."""
    sums = RidgeSums(seen.grid)
    for x, y in source:
        sums.add(x, y)
    weights, intercept = sums.solve(l2=l2)
    return weights, intercept, {"r2": _explained(sums, weights)}


def _logistic(
    source: _Annotated, seen: _Seen, l2: float, threshold: float, size: int | None, seed: int
) -> tuple[np.ndarray, float, dict[str, Any]]:
    """Weights, intercept and what is known of the fit, on `size` rows."""
    center = seen.grid.center[:-1]
    x, y = source.sample(size, seed, center)
    weights, intercept = fit_binary(x, (y >= threshold).astype(np.float64), l2=l2)
    return weights, intercept - float(center @ weights), {"threshold": threshold, "sampled": len(y)}


def _threshold(given: float | None, seen: _Seen, label: str) -> float:
    """The annotation from which on a row is high."""
    low, high = seen.levels[0], seen.levels[-1]
    if given is None and len(seen.levels) > 2:
        raise ValueError(f"column {label!r} has more than two levels, {low:g} to {high:g}; pass threshold=3, say")
    if given is not None and not low < given <= high:
        raise ValueError(f"threshold={given} leaves one side empty: annotations go from {low:g} to {high:g}")
    return high if given is None else given


def _annotations(values: pa.Array | None, name: str, start: int) -> np.ndarray:
    """A block of the label column as (b,) float64."""
    assert values is not None
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)):
        raise TypeError(f"column {name!r} holds {values.type}, not numbers; annotate with levels such as 0 to 5")
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    numbers, null = arrow.numbers(pa.chunked_array([values]), name)
    marks = np.where(null, np.nan, numbers).astype(np.float64)
    if not np.isfinite(marks).all():
        row = int(np.flatnonzero(~np.isfinite(marks))[0])
        raise ValueError(
            f"column {name!r} is {values[row].as_py()} in row {start + row}; annotate it, or drop such rows"
        )
    if pa.types.is_integer(values.type):
        check_classes(values, name, start, meant="float32")
    return marks


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


def _explained(sums: RidgeSums, weights: np.ndarray) -> float:
    """Share of the annotations' variance that the weights explain on the rows they were fitted on, to 4 digits."""
    _, _, centered = sums.centered()
    left = centered[-1, -1] - 2 * weights @ centered[:-1, -1] + weights @ centered[:-1, :-1] @ weights
    return round(float(1 - left / centered[-1, -1]), 4)
