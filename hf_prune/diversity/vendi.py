"""The Vendi Score: how many distinct rows a dataset is worth, from the eigenvalues of its similarities."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from hf_prune import _arrow, search
from hf_prune.batch import Batch, missing_column
from hf_prune.diversity import kernels

BLOCK = 2048  # rows of one product: they and their Gram matrix stay in the cache
STEP = 4 * BLOCK  # rows read at a time
STRIP = 96  # columns of a product
LARGEST = 16_384  # side of a matrix whose eigenvalues are still taken: 2 GB, some minutes
EPS = float(np.finfo(np.float64).eps)
WELL_ABOVE = 64 * float(np.finfo(np.float32).eps)  # of the largest eigenvalue: past the noise of float32 products
WHO = "vendi_score"


def vendi_score(
    x: Any,
    q: float = 1.0,
    *,
    kernel: Any = "cosine",
    embedding: str = "embedding",
    column: str | None = None,
    weights: Any = None,
) -> float:
    """Effective number of distinct rows: n if all are unlike each other, 1 if all are the same.

    The exponential of the entropy (Renyi's, of order q) of the eigenvalues of K/n, where K holds the similarities. It
    grows with n, so compare sets of one size only.

    For vectors the eigenvalues are those of the smaller of X^T X (d, d) and X X^T (n, n), whichever it is; a dataset
    is read block by block from Arrow's buffers, in O(d^2) memory. Order 2 needs no eigenvalues, and no (n, n) or
    (d, d) matrix either once both sides are past 16 384. Products of float32 rows are taken in float32 and summed in
    float64; again in float64 throughout where q < 1, or where the smallest eigenvalues would drown in the rounding.

    Args:
        x: (n, d) vectors, scaled to length 1 here; a `Dataset` or `IterableDataset`; texts, pictures or anything else
            that the kernel compares; an (n, n) matrix of similarities with kernel="precomputed".
        q: order, 0 to infinity. 0 counts the eigenvalues that are not zero, 1 is Shannon's entropy, 2 is
            n^2 / sum of K_ij^2, infinity is one over the largest eigenvalue. Small orders see rare rows, large ones
            what is common; the score falls with q.
        kernel: "cosine" of vectors; "ngram" of texts and "pixel" of pictures, with the defaults of
            `hf_prune.diversity.kernels`; an `Embedder`, whose vectors are compared by cosine; a function of two items
            with k(a, a) = 1 (n^2 / 2 calls in Python); "precomputed".
        embedding: column of vectors, under "cosine".
        column: of the items, under other kernels; "text" and "image" by default under "ngram" and "pixel".
        weights: (n,) probabilities of the rows, or the name of their column; 1/n each by default.

    Returns:
        A number from 1 to n.

    Raises:
        KeyError: no such column.
        TypeError: a `DatasetDict`; a column of another kind; q is no number.
        ValueError: no rows; a zero vector, or numbers that are not finite; q < 0; weights that are negative or do not
            sum to 1; K not square, not symmetric, or without ones on its diagonal; n and d past 16 384 and q not 2.

    Warns:
        UserWarning: K has negative eigenvalues, so it is no kernel; they are left out, and the others scaled to sum
            to 1. Order 2 does not take eigenvalues and cannot tell.

    Reference: Friedman and Dieng, The Vendi Score, TMLR 2023, arXiv 2210.02410; orders: Pasarkar and Dieng, Cousins of
    the Vendi Score, AISTATS 2024, arXiv 2310.12952.

    >>> round(vendi_score([[1, 0], [0, 2], [3, 0], [0, 4]]), 6)
    2.0
    >>> round(vendi_score([[1, 0], [1, 1], [0, 2], [3, 3]], q=2), 6)
    1.6
    >>> round(vendi_score([0, 0, 10, 10], kernel=lambda a, b: 2.0 ** -abs(a - b), q=float("inf")), 3)
    1.998
    """
    q = _order(q)
    if hasattr(x, "keys"):
        first = next(iter(x), "train")
        raise TypeError(f"{WHO} got a {type(x).__name__}; choose one part, as in x[{first!r}]")
    if isinstance(kernel, str) and kernel == "cosine":
        return _of_rows(_rows(x, embedding, weights), q)
    items, weights = _items(x, column, kernel, weights)
    if isinstance(kernel, str) and kernel == "precomputed":
        return _of_kernel(items, weights, q)
    if isinstance(kernel, str) and kernel == "ngram":
        return _of_kernel(kernels.ngram_kernel(items), weights, q)
    if isinstance(kernel, str) and kernel == "pixel":
        return _of_rows(_rows(kernels.pixel_rows(items), embedding, weights), q)
    if hasattr(kernel, "width") and hasattr(kernel, "column"):
        return _of_rows(_rows(kernels.embedding_rows(items, kernel), embedding, weights), q)
    if not callable(kernel):
        raise ValueError(
            f"kernel={kernel!r} is none of 'cosine', 'ngram', 'pixel', 'precomputed', an Embedder or a function of two"
        )
    return _of_kernel(kernels.pairwise_kernel(items, kernel), weights, q)


def effective_number(eigenvalues: np.ndarray, q: float) -> float:
    """Exponential of the entropy of order q of (m,) eigenvalues >= 0, scaled to sum to 1 here.

    >>> round(effective_number(np.array([0.9, 0.1]), 1.0), 6), effective_number(np.array([0.9, 0.1, 0.0]), 0)
    (1.384145, 2.0)
    """
    p = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    logs = np.log(p)
    if q == 1:
        entropy = -(p * logs).sum()
    elif q == np.inf:
        entropy = -logs.max()
    elif abs(q - 1) < 1e-3:  # both sides of the fraction are near 0
        entropy = np.log1p((p * np.expm1((q - 1) * logs)).sum()) / (1 - q)
    else:  # p**q underflows for large q
        top = logs.max()
        entropy = (q * top + np.log(np.exp(q * (logs - top)).sum())) / (1 - q)
    return max(1.0, float(np.exp(entropy)))


class Gram:
    """The sum of x x^T over unit rows, (d, d) float64: all that a Vendi Score needs to know of any number of rows.

    Sums over batches, shards and machines are merged by adding them.

    Args:
        dtype: of the products of a block, "float64" or "float32"; blocks are summed in float64 in both cases. After
            float32 products, eigenvalues under 8e-6 of the largest count as rounding, as 0.

    >>> one, two = Gram(), Gram()
    >>> one.add(np.array([[1.0, 0.0]]))
    >>> two.add(np.array([[0.0, 3.0], [0.0, 5.0]]))
    >>> one.merge(two)
    >>> one.rows, round(one.score(), 6)
    (3, 1.889882)
    """

    def __init__(self, dtype: str = "float64") -> None:
        self.dtype = np.dtype(dtype)
        self.sums: np.ndarray | None = None
        self.weight = 0.0
        self.rows = 0

    def add(self, x: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Add (b, d) rows, scaled to length 1 here, and their (b,) weights, 1 each by default.

        Raises:
            ValueError: a zero row, numbers that are not finite, another width than before.
        """
        if self.sums is None:
            self.sums = np.zeros((x.shape[1], x.shape[1]))
        elif len(self.sums) != x.shape[1]:
            raise ValueError(f"rows of width {x.shape[1]} after rows of width {len(self.sums)}; all need one width")
        pool = search._threads() if len(x) > 2 * BLOCK else None
        parts = 1 if pool is None else pool._max_workers
        edges = [len(x) * i // parts for i in range(parts + 1)]
        spans = list(zip(edges[:-1], edges[1:], strict=True))
        run = map if pool is None else pool.map
        for part in run(lambda span: self._part(x, weights, *span), spans):
            self.sums += part
        self.rows += len(x)
        self.weight += len(x) if weights is None else float(np.sum(weights, dtype=np.float64))

    def _part(self, x: np.ndarray, weights: np.ndarray | None, start: int, stop: int) -> np.ndarray:
        """The sum over rows from start to stop."""
        total = np.zeros((x.shape[1], x.shape[1]))
        space = np.empty((min(stop - start, BLOCK), x.shape[1]), self.dtype)
        for at in range(start, stop, BLOCK):
            to = min(at + BLOCK, stop)
            some = None if weights is None else weights[at:to]
            total += _gram_of(_unit(x[at:to], self.dtype, some, self.rows + at, space))
        return total

    def merge(self, other: Gram) -> None:
        """Add the rows of another sum."""
        if other.sums is None:
            return
        if self.sums is not None and self.sums.shape != other.sums.shape:
            raise ValueError(
                f"sums of width {len(self.sums)} and {len(other.sums)} do not add up; embed with one model"
            )
        self.sums = other.sums.copy() if self.sums is None else self.sums + other.sums
        self.weight += other.weight
        self.rows += other.rows

    def matrix(self) -> np.ndarray:
        """The mean, (d, d) with trace 1.

        Raises:
            ValueError: no rows were added, or their weights are all zero.
        """
        if self.sums is None or self.weight <= 0:
            raise ValueError(f"{self.rows} rows with weight {self.weight} have no Vendi Score; add rows first")
        return np.asarray(self.sums / self.weight)

    def score(self, q: float = 1.0) -> float:
        """The Vendi Score of all rows added, of order q."""
        mean = self.matrix()
        noise = WELL_ABOVE if self.dtype == np.float32 else max(self.rows, len(mean)) * EPS
        return _of_matrix(mean, _order(q), noise)


class _Block(NamedTuple):
    """Rows that stand together: (b, d) vectors, their weights if any, the number of the first."""

    x: np.ndarray
    weights: np.ndarray | None
    start: int


class _Rows(NamedTuple):
    """Vectors that can be read more than once, and what is known of them beforehand."""

    blocks: Callable[[], Iterator[_Block]]
    n: int | None
    double: bool  # float64 rows, which float32 products would shorten


def _of_rows(rows: _Rows, q: float) -> float:
    first = next((block.x for block in rows.blocks() if len(block.x)), None)
    if first is None:
        raise ValueError(f"{WHO} got no rows; there is nothing to measure")
    n, d = rows.n, first.shape[1]
    if n is not None and min(n, d) > LARGEST:
        if q != 2:
            raise ValueError(
                f"n={n} and d={d} are both past {LARGEST}, too many for eigenvalues; use q=2, which needs none, or a "
                f"random sample of at most {LARGEST} rows"
            )
        return _order_two(rows)
    if n is not None and n < d:
        unit = np.concatenate(list(_unit_blocks(rows, np.dtype(np.float64))))
        return _of_matrix(unit @ unit.T, q, d * EPS)
    if q >= 1 and not rows.double:
        gram = _gram(rows, "float32")
        if q >= 2:
            return gram.score(q)
        values = np.linalg.eigvalsh(gram.matrix())
        if values[0] > WELL_ABOVE * values[-1]:
            return effective_number(values, q)
    return _gram(rows, "float64").score(q)


def _gram(rows: _Rows, dtype: str) -> Gram:
    gram = Gram(dtype)
    for block in rows.blocks():
        gram.add(block.x, block.weights)
    return gram


def _order_two(rows: _Rows) -> float:
    """1 / sum of (sqrt(p_i p_j) u_i . u_j)^2, a pair of blocks at a time."""
    dtype = np.dtype(np.float64 if rows.double else np.float32)
    total = trace = 0.0
    for i, one in enumerate(_unit_blocks(rows, dtype)):
        trace += float(np.vdot(one, one))
        for j, two in enumerate(_unit_blocks(rows, dtype)):
            if j >= i:
                product = one @ two.T
                total += (1 + (j > i)) * float(np.vdot(product, product))
    return max(1.0, trace**2 / total)


def _unit_blocks(rows: _Rows, dtype: np.dtype[Any]) -> Iterator[np.ndarray]:
    for block in rows.blocks():
        for at in range(0, len(block.x), BLOCK):
            some = None if block.weights is None else block.weights[at : at + BLOCK]
            yield _unit(block.x[at : at + BLOCK], dtype, some, block.start + at)


def _of_matrix(matrix: np.ndarray, q: float, noise: float) -> float:
    """Score from a positive semidefinite matrix whose trace need not be 1.

    Args:
        matrix: (m, m).
        q: order.
        noise: share of the largest eigenvalue up to which others are rounding.
    """
    if q == 2:
        return max(1.0, float(np.trace(matrix) ** 2 / np.vdot(matrix, matrix)))
    values = np.linalg.eigvalsh(matrix).astype(np.float64)
    if values[0] < -max(noise, 1e-8) * values[-1]:
        warnings.warn(
            f"the similarities are no kernel: K/n has the eigenvalue {values[0] / np.trace(matrix):.3g}; negative ones "
            "are left out and the others scaled to sum to 1; use a positive semidefinite similarity",
            stacklevel=4,
        )
    return effective_number(np.where(values < noise * values[-1], 0.0, values), q)


def _of_kernel(k: Any, weights: Any, q: float) -> float:
    k = k.toarray() if hasattr(k, "toarray") else _array(k)
    if k.ndim != 2 or k.shape[0] != k.shape[1]:
        raise ValueError(f"K has shape {k.shape}; give one similarity for each pair of rows: (n, n)")
    if not len(k):
        raise ValueError(f"{WHO} got no rows; there is nothing to measure")
    if not np.isfinite(k).all():
        row = int(np.flatnonzero(~np.isfinite(k).all(1))[0])
        raise ValueError(f"K has numbers that are not finite in row {row}; mend the kernel, or drop that row")
    diagonal = np.diagonal(k)
    if np.abs(diagonal - 1).max() > 1e-4:
        row = int(np.abs(diagonal - 1).argmax())
        raise ValueError(
            f"K[{row}, {row}] is {diagonal[row]:.6g}, but a row is as similar to itself as can be, 1; divide K by "
            "np.sqrt(np.outer(np.diag(K), np.diag(K)))"
        )
    uneven = np.abs(k - k.T).max()
    if uneven > 1e-4:
        raise ValueError(f"K is not symmetric: K[i, j] and K[j, i] differ by up to {uneven:.3g}; use (K + K.T) / 2")
    p = _probabilities(weights, len(k))
    if p is not None:
        root = np.sqrt(p).astype(k.dtype)
        k = root[:, None] * k * root
    return _of_matrix(k, q, len(k) * float(np.finfo(k.dtype).eps))


def _rows(x: Any, embedding: str, weights: Any) -> _Rows:
    """What there is to read the vectors, checked as far as can be before reading them."""
    if hasattr(x, "column_names"):
        return _dataset_rows(x, embedding, weights)
    x = _array(x)
    if x.ndim != 2:
        raise ValueError(f"{WHO} got an array of shape {x.shape}, not (n, d) vectors; for anything else name a kernel")
    p = _probabilities(weights, len(x))
    return _Rows(lambda: iter([_Block(x, p, 0)]), len(x), x.dtype == np.float64)


def _dataset_rows(ds: Any, embedding: str, weights: Any) -> _Rows:
    beside = weights if isinstance(weights, str) else None
    names = [embedding] if beside is None else [embedding, beside]
    for name in names:
        if ds.column_names is not None and name not in ds.column_names:
            raise missing_column(name, ds.column_names, WHO)
    n = len(ds) if hasattr(ds, "data") else None
    if n is None and weights is not None and beside is None:
        raise ValueError("weights of a stream are read along with its rows; name their column")
    p = None
    if beside is not None and n is not None:
        p = _probabilities(_arrow.floats_column(ds, beside), n)
    elif beside is None and n is not None:
        p = _probabilities(weights, n)

    def blocks() -> Iterator[_Block]:
        start = 0
        for columns in _columns(ds, names):
            try:
                x = _arrow.matrix(columns[embedding], embedding)
            except ValueError as error:
                raise ValueError(f"{WHO}, counting rows from {start}: {error}") from error
            some = None if p is None else p[start : start + len(x)]
            if beside is not None and n is None:
                some = np.asarray(columns[beside].to_numpy(zero_copy_only=False), np.float64)
            yield _Block(x, some, start)
            start += len(x)

    kind = getattr((ds.features or {}).get(embedding), "feature", None)
    return _Rows(blocks, n, getattr(kind, "dtype", None) == "float64")


def _columns(ds: Any, names: list[str]) -> Iterator[dict[str, Any]]:
    """Columns as Arrow arrays of a few thousand rows; nothing of the size of the dataset is made."""
    if not hasattr(ds, "data"):  # a stream
        for rows in ds.select_columns(names).with_format(None).iter(STEP):
            batch = Batch(rows, WHO)
            yield {name: batch.arrow(name) for name in names}
        return
    table, where = ds.data.table.select(names), _arrow.positions_of(ds)
    if where is not None:
        for part in _arrow.gather(table, where):
            yield {name: part.column(name) for name in names}
        return
    for start in range(0, len(ds), STEP):
        yield {name: _arrow.one(table.column(name).slice(start, STEP)) for name in names}


def _items(x: Any, column: str | None, kernel: Any, weights: Any) -> tuple[Any, Any]:
    """What a kernel other than the cosine compares, and its weights."""
    if not hasattr(x, "column_names"):
        return x, weights
    column = column or {"ngram": "text", "pixel": "image"}.get(kernel if isinstance(kernel, str) else "")
    column = column or getattr(kernel, "column", None)
    if not isinstance(column, str):
        raise ValueError(f"name the column={column!r} of {type(x).__name__} that the kernel compares")
    if x.column_names is not None and column not in x.column_names:
        raise missing_column(column, x.column_names, WHO)
    if isinstance(weights, str):
        weights = [row[weights] for row in x] if not hasattr(x, "data") else _arrow.floats_column(x, weights)
    return [row[column] for row in x.select_columns(column)], weights


def _array(x: Any) -> np.ndarray:
    """Numbers as an array of float32 or float64."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = (x.float() if x.element_size() < 4 else x).numpy()
    try:
        x = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{WHO} got rows of unequal length; all need one width") from error
    if x.dtype.kind not in "biuf":
        raise TypeError(f"{WHO} got {x.dtype}, not numbers; for texts or pictures name a kernel, as kernel='ngram'")
    return np.asarray(x, np.float32 if x.dtype in (np.float16, np.float32) else np.float64)


def _probabilities(weights: Any, n: int) -> np.ndarray | None:
    if weights is None:
        return None
    p = np.asarray(_array(weights), np.float64)
    if p.shape != (n,):
        raise ValueError(f"weights have shape {p.shape}, but there are {n} rows; give one weight a row")
    if not (p >= 0).all():
        row = int(np.flatnonzero(~(p >= 0))[0])
        raise ValueError(f"the weight of row {row} is {p[row]:.6g}; weights are probabilities, 0 or more")
    if abs(p.sum() - 1) > 1e-6:
        raise ValueError(f"the weights sum to {p.sum():.9g}, not to 1; divide them by their sum")
    return p


def _unit(
    x: np.ndarray, dtype: np.dtype[Any], weights: np.ndarray | None, start: int, space: np.ndarray | None = None
) -> np.ndarray:
    """Rows of length 1, times the root of their weight, in `space` if given; a ValueError for one without direction.

    Rows of length 1 already come back as they are.
    """
    x = np.asarray(x, dtype)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.asarray(np.vecdot(x, x), np.float64)
    if weights is None and len(x) and np.abs(squares - 1).max() < 4 * np.finfo(dtype).eps:
        return x
    if not ((squares > 1e-30) & (squares < 1e30)).all():  # a square may have overflowed where the row has not
        largest = np.abs(x).max(1).astype(np.float64)
        if not np.isfinite(largest).all():
            row = start + int(np.flatnonzero(~np.isfinite(largest))[0])
            raise ValueError(f"row {row} has numbers that are not finite; embed it again, or drop such rows first")
        if not largest.all():
            row = start + int(np.flatnonzero(largest == 0)[0])
            raise ValueError(
                f"row {row} is a zero vector, which is similar to nothing, itself included; drop such rows"
            )
        x = x / largest[:, None]
        squares = np.vecdot(x, x)
    scale = 1 / np.sqrt(squares) if weights is None else np.sqrt(weights / squares)
    out = None if space is None else space[: len(x)]
    return np.asarray(np.multiply(x.astype(dtype, copy=False), scale[:, None].astype(dtype), out=out))


def _gram_of(unit: np.ndarray) -> np.ndarray:
    """X^T X of a block, (d, d).

    Where torch is in use already, its products of a strip of columns with those from there on take three quarters of
    the time of NumPy's symmetric product.
    """
    d = unit.shape[1]
    if "torch" not in sys.modules:
        return np.asarray(unit.T @ unit)
    import torch

    out = np.empty((d, d), unit.dtype)
    x, into = torch.from_numpy(unit), torch.from_numpy(out)
    for at in range(0, d, STRIP):
        to = at + STRIP
        torch.mm(x[:, at:to].T, x[:, at:], out=into[at:to, at:])
        out[to:, at:to] = out[at:to, to:].T
    return out


def _order(q: Any) -> float:
    try:
        order = float(q)
    except (TypeError, ValueError):
        raise TypeError(f"q={q!r} is no number; give an order from 0 to infinity, as q=1.0 or q=float('inf')") from None
    if not order >= 0:
        raise ValueError(f"q={q!r} is not an order; use 0 to infinity")
    return order
