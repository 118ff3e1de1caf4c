"""The Vendi Score: how many distinct rows a dataset is worth, from the eigenvalues of its similarities."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from hf_prune.checks import warn
from hf_prune.diversity import kernels
from hf_prune.diversity._inputs import WHO, Rows, to_array, to_items, to_probabilities, to_rows
from hf_prune.numerics import search
from hf_prune.numerics.threads import torch_threads

BLOCK = 2048  # rows of one product: they and their Gram matrix stay in the cache
STRIP = 96  # columns of a product
COMPILED = 1024  # rows of a block from which the compiled loop is worth its loading
LARGEST = 16_384  # side of a matrix whose eigenvalues are still taken: 2 GB, some minutes
EPS = float(np.finfo(np.float64).eps)
ALIKE = 1.001  # a score of order 2 up to which the noise of float32 products would show in what is above 1
WELL_ABOVE = 64 * float(np.finfo(np.float32).eps)  # of the largest eigenvalue: past the noise of float32 products


def vendi_score(
    x: Any,
    *,
    q: float = 1.0,
    kernel: Any = "cosine",
    embedding: str = "embedding",
    column: str | None = None,
    weights: Any = None,
) -> float:
    """Effective number of distinct rows: n if all are unlike each other, 1 if all are the same.

    The exponential of the entropy (Renyi's, of order q) of the eigenvalues lambda of K/n, where K holds the
    similarities:

        VS_1 = exp(-sum_i lambda_i log lambda_i),    VS_q = (sum_i lambda_i^q)^(1 / (1 - q))

    It grows with n, so compare sets of one size only.

    For vectors the eigenvalues are those of the smaller of X^T X (d, d) and X X^T (n, n), whichever it is; a dataset
    is read block by block from Arrow's buffers, in O(d^2) memory. Order 2 needs no eigenvalues, and no (n, n) or
    (d, d) matrix either once both sides are past 16 384. Products of float32 rows are taken in float32 and summed in
    float64; again in float64 throughout where q < 1, or where the smallest eigenvalues would drown in the rounding; of
    order 2, which takes none, where the score is under 1.001.

    Args:
        x: (n, d) vectors, scaled to length 1 here; a `Dataset` or `IterableDataset`; texts, images or anything else
            that the kernel compares; an (n, n) matrix of similarities with kernel="precomputed".
        q: order of the entropy, 0 to infinity. 0 counts the eigenvalues that are not zero, 1 is Shannon's entropy, 2 is
            n^2 / sum of K_ij^2, infinity is one over the largest eigenvalue. Small orders see rare rows, large ones
            what is common; the score falls with q.
        kernel: similarity: "cosine" of vectors; "ngram" of texts and "pixel" of images, with the defaults of
            `hf_prune.diversity.kernels`; an `Embedder`, whose vectors are compared by cosine; a function of two items
            with k(a, a) = 1 (n^2 / 2 calls in Python); "precomputed".
        embedding: column of vectors, under "cosine".
        column: column of the items, under other kernels; None: "text" under "ngram" and "image" under "pixel".
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
        return _of_rows(to_rows(x, embedding, weights), q)
    items, weights = to_items(x, column, kernel, weights)
    if isinstance(kernel, str) and kernel == "precomputed":
        return _of_kernel(items, weights, q)
    if isinstance(kernel, str) and kernel == "ngram":
        return _of_kernel(kernels.ngram_kernel(items), weights, q)
    if isinstance(kernel, str) and kernel == "pixel":
        return _of_rows(to_rows(kernels.pixel_rows(items), embedding, weights), q)
    if hasattr(kernel, "width") and hasattr(kernel, "column"):
        return _of_rows(to_rows(kernels.embedding_rows(items, kernel), embedding, weights), q)
    if not callable(kernel):
        raise ValueError(
            f"kernel={kernel!r} is none of 'cosine', 'ngram', 'pixel', 'precomputed', an Embedder or a function of two"
        )
    return _of_kernel(kernels.pairwise_kernel(items, kernel), weights, q)


def effective_number(eigenvalues: np.ndarray, q: float) -> float:
    """Exponential of the entropy of (m,) eigenvalues, scaled to sum to 1 here.

    Args:
        eigenvalues: (m,) numbers, 0 or more, not all 0.
        q: order of the entropy, 0 to infinity.

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
        dtype: type of the products of a block, "float64" or "float32"; blocks are summed in float64 in both cases.
            After float32 products, eigenvalues under 8e-6 of the largest count as rounding, as 0; but not for orders
            above 2, to which they matter by their sum alone, which is the trace.

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
        pool = torch_threads() if len(x) > 2 * BLOCK else None
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

    def score(self, *, q: float = 1.0) -> float:
        """The Vendi Score of all rows added, of order q."""
        mean, q = self.matrix(), _order(q)
        if self.dtype == np.float32 and q > 2:
            return effective_number(np.linalg.eigvalsh(mean), q)
        noise = WELL_ABOVE if self.dtype == np.float32 else max(self.rows, len(mean)) * EPS
        return _of_matrix(mean, q, noise)


def _of_rows(rows: Rows, q: float) -> float:
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
        if q == 2:
            score = gram.score(q=q)
            sure = score > ALIKE
        else:
            values = np.linalg.eigvalsh(gram.matrix())
            score, sure = effective_number(values, q), values[0] > WELL_ABOVE * values[-1]
        if sure:
            return score
    return _gram(rows, "float64").score(q=q)


def _gram(rows: Rows, dtype: str) -> Gram:
    gram = Gram(dtype)
    for block in rows.blocks():
        gram.add(block.x, block.weights)
    return gram


def _order_two(rows: Rows) -> float:
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


def _unit_blocks(rows: Rows, dtype: np.dtype[Any]) -> Iterator[np.ndarray]:
    for block in rows.blocks():
        for at in range(0, len(block.x), BLOCK):
            some = None if block.weights is None else block.weights[at : at + BLOCK]
            yield _unit(block.x[at : at + BLOCK], dtype, some, block.start + at)


def _of_matrix(matrix: np.ndarray, q: float, noise: float) -> float:
    """Score from a positive semidefinite matrix whose trace need not be 1.

    Args:
        matrix: (m, m) matrix.
        q: order of the entropy.
        noise: share of the largest eigenvalue up to which others are rounding.
    """
    if q == 2:
        return max(1.0, float(np.trace(matrix) ** 2 / np.vdot(matrix, matrix)))
    values = np.linalg.eigvalsh(matrix).astype(np.float64)
    if values[0] < -max(noise, 1e-8) * values[-1]:
        warn(
            f"the similarities are no kernel: K/n has the eigenvalue {values[0] / np.trace(matrix):.3g}; negative ones "
            "are left out and the others scaled to sum to 1; use a positive semidefinite similarity"
        )
    return effective_number(np.where(values < noise * values[-1], 0.0, values), q)


def _of_kernel(k: Any, weights: Any, q: float) -> float:
    k = k.toarray() if hasattr(k, "toarray") else to_array(k)
    if k.ndim != 2 or k.shape[0] != k.shape[1]:
        raise ValueError(f"K has shape {k.shape}; give one similarity for each pair of rows: (n, n)")
    if not len(k):
        raise ValueError(f"{WHO} got no rows; there is nothing to measure")
    if not np.isfinite(k).all():
        row = int(np.flatnonzero(~np.isfinite(k).all(1))[0])
        raise ValueError(f"K has numbers that are not finite in row {row}; correct the kernel, or drop that row")
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
    p = to_probabilities(weights, len(k))
    if p is not None:
        root = np.sqrt(p).astype(k.dtype)
        k = root[:, None] * k * root
    return _of_matrix(k, q, len(k) * float(np.finfo(k.dtype).eps))


def _unit(
    x: np.ndarray, dtype: np.dtype[Any], weights: np.ndarray | None, start: int, space: np.ndarray | None = None
) -> np.ndarray:
    """Rows of length 1, times the root of their weight, in `space` if given; a ValueError for one without direction.

    Rows of length 1 already come back as they are.
    """
    x = np.asarray(x, dtype)
    out = None if space is None else space[: len(x)]
    ready = out if weights is None and dtype == np.float32 and len(x) >= COMPILED else None
    if ready is not None:
        squares = search.unit_into(x, ready)
    else:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            squares = np.asarray(np.vecdot(x, x), np.float64)
    if weights is None and len(x) and np.abs(squares - 1).max() < 4 * np.finfo(dtype).eps:
        return x
    if not ((squares > 1e-30) & (squares < 1e30)).all():  # a square may have overflowed where the row has not
        ready = None
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
    if ready is not None:
        return ready
    scale = 1 / np.sqrt(squares) if weights is None else np.sqrt(weights / squares)
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
    x = torch.from_numpy(unit if unit.flags.writeable else unit.copy())  # torch warns of memory it may not write to
    into = torch.from_numpy(out)
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
