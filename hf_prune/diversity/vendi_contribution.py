"""What a row adds to the Vendi Score of its set: leave-one-out, exact for the price of a product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Self

import numpy as np

from hf_prune.data import identity
from hf_prune.data.batch import Batch
from hf_prune.data.reading import vector_blocks
from hf_prune.data.types import Rows
from hf_prune.diversity.vendi import effective_number
from hf_prune.models import memo
from hf_prune.scorer import Scorer

BITS = 20  # of a coordinate: products of two are exact, and so are float64 sums of 8192 of them
EXACT = 8192
STEP = 0.55  # of ln t: the trapezoid rule errs by exp(-2 pi^2 / STEP), 3e-16


def grid_rows(x: np.ndarray) -> np.ndarray:
    """Rows of length 1 with coordinates rounded to 2^-20, (n, d) float64; zero rows stay zero."""
    x = np.asarray(x, np.float64)
    largest = np.abs(x).max(1, keepdims=True, initial=0)
    x = x / np.where(largest, largest, 1)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(np.rint(x / np.where(norms, norms, 1) * 2.0**BITS) / 2.0**BITS)


class ExactGram:
    """Sum of x x^T over rows of `grid_rows`, in integers: the same bits for any order, batches and shards.

    Two int64 of 32 bits and the rest, so that no number of rows overflows.

    Args:
        width: number of coordinates of a row.

    >>> gram = ExactGram(2)
    >>> gram.add(grid_rows(np.array([[3.0, 0.0], [0.0, 1.0]])))
    >>> gram.mean().tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """

    def __init__(self, width: int) -> None:
        self.low, self.high = np.zeros((2, width, width), np.int64)
        self.rows = 0

    def add(self, unit: np.ndarray) -> None:
        """Add (b, d) rows."""
        for at in range(0, len(unit), EXACT):
            part = unit[at : at + EXACT]
            self.low += np.rint((part.T @ part) * 2.0 ** (2 * BITS)).astype(np.int64)
            self.high += self.low >> 32
            self.low &= 0xFFFF_FFFF
            self.rows += len(part)

    def mean(self) -> np.ndarray:
        """The sum over the number of rows, (d, d) float64."""
        return (self.high * 2.0**32 + self.low) * 2.0 ** (-2 * BITS) / self.rows


def leave_one_out(squares: np.ndarray, eigenvalues: np.ndarray, *, n: int, q: float = 1.0) -> np.ndarray:
    """How much the Vendi Score falls when one row is taken away, exactly, (b,).

    Taking a row away is a change of rank one, A' = A - r x x^T, whose effect on a sum of f(eigenvalues) is an
    integral of ln(1 - r x^T (A + t)^-1 x) over t. In ln t that integrand is analytic in a strip, so about a hundred
    points of the trapezoid rule give it to rounding: one product of (b, d) with (d, 100), instead of the eigenvalues
    of n matrices.

    Args:
        squares: (b, d) squared coordinates of the rows in the basis of the eigenvectors of S = sum of x x^T / n.
        eigenvalues: (d,) eigenvalues of S.
        n: number of rows in the set, these among them; 2 or more.
        q: order of the score, 1 or 2.

    Returns:
        (b,) float64 differences of scores.

    >>> alone = np.eye(3)  # three rows at right angles: each is worth one
    >>> leave_one_out(alone, np.full(3, 1 / 3), n=3).round(9).tolist()
    [1.0, 1.0, 1.0]
    """
    a, r = n / (n - 1), 1 / (n - 1)
    whole = effective_number(eigenvalues, q)
    length = squares.sum(1)
    trace = float(eigenvalues.sum())
    left = np.maximum(a * trace - r * length, np.finfo(float).tiny)  # trace of A'
    if q == 2:
        power = float(eigenvalues @ eigenvalues)
        rest = a * a * power - 2 * a * r * (squares @ eigenvalues) + (r * length) ** 2
        return np.asarray(whole - np.maximum(left**2 / rest, 1.0))
    t = np.exp(np.arange(np.log(r) - 26, 28, STEP))
    held = np.minimum(r * (squares @ (1 / (a * eigenvalues[:, None] + t))), 1 - 1e-16)
    change = -r * length + STEP * ((-np.log1p(-held) - r * length[:, None] / (1 + t)) @ t)  # of sum of l ln l
    scaled = a * eigenvalues[eigenvalues > 0]
    entropy = -((scaled * np.log(scaled)).sum() + change) / left + np.log(left)
    return np.asarray(-whole * np.expm1(entropy - np.log(whole)))


def first_order(squares: np.ndarray, eigenvalues: np.ndarray, *, n: int, q: float = 1.0) -> np.ndarray:
    """The derivative of the Vendi Score along the removal of a row, (b,), for 0 < q <= infinity.

    With p the eigenvalues scaled to sum to 1, x_j^2 the squared coordinates scaled likewise, and VS the score, for q=1:

        VS / (n - 1) * (-sum_j x_j^2 log p_j - log VS)

    Near the exact difference where many rows share each direction; wrong where a row holds a direction alone: three
    rows at right angles get 0 each, not 1.

    Args:
        squares: (b, d) squared coordinates of the rows in the basis of the eigenvectors.
        eigenvalues: (d,) eigenvalues of the mean of x x^T.
        n: number of rows in the set, these among them; 2 or more.
        q: order of the score, above 0; infinity too.

    Returns:
        (b,) float64 derivatives, in the unit of the score.

    >>> first_order(np.eye(3), np.full(3, 1 / 3), n=3).round(9).tolist()
    [0.0, 0.0, 0.0]
    """
    whole = effective_number(eigenvalues, q)
    p = eigenvalues / eigenvalues.sum()
    squares = squares / squares.sum(1, keepdims=True)
    safe = np.where(p > 0, p, 1.0)  # rows of the set have no share of directions without rows
    if q == 1:
        slope = -squares @ np.log(safe) - np.log(whole)
    elif q == np.inf:
        top = p >= p.max() * (1 - 1e-9)
        slope = 1 - squares[:, top].mean(1) / p.max()
    else:
        slope = q / (1 - q) * (squares @ np.where(p > 0, safe ** (q - 1), 0.0) / (p**q).sum() - 1)
    return np.asarray(whole * slope / (n - 1))


@dataclass(frozen=True, eq=False)
class VendiContribution(Scorer):
    """How much the Vendi Score of the set falls without the row. High = nothing else is like it = keep.

    With VS the Vendi Score of order q of the set X:

        score(x) = VS_q(X) - VS_q(X without x)

    Negative for a row of a crowded kind: without it the set is more even. Cosine kernel of an embedding column. The
    scores are of single removals and do not add up: of two copies each is worth little, though one of them is needed.

    `exact=False` gives the first derivative instead (see `first_order`), for orders that have no exact form: all but 1
    and 2. It ranks rows much as the exact difference does, but its values are off by about their own size, and it
    misses what a row holds alone. It saves little: the products with some 120 points of an integral beside those with d
    eigenvectors, a fifth of the time at d = 384.

    Args:
        gram: (d, d) float64 mean of x x^T over the unit rows of the set.
        n_rows: number of rows of the set.
        embedding: column of vectors.
        q: order of the score: 1 or 2; with `exact=False` any above 0, infinity too.
        exact: whether the row is left out; else the first derivative is taken.
        name: score column.
        fitted_on: what the set was.

    Raises:
        ValueError: another width than the set's, or a zero vector.

    Reference: Friedman and Dieng, TMLR 2023, arXiv 2210.02410; the rank-one integral is ours.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"embedding": [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 1.0]]})
    >>> VendiContribution.fit(ds)(ds[:])["vendi"].round(3)
    array([-0.135, -0.135, -0.135,  0.755], dtype=float32)
    """

    paper: ClassVar[str] = "Friedman and Dieng, The Vendi Score, TMLR 2023, arXiv 2210.02410"
    meaning: ClassVar[str] = "adds directions that no other row has; low or negative: one of a crowd"
    atol: ClassVar[float] = 1e-7

    gram: np.ndarray
    n_rows: int
    _: KW_ONLY
    embedding: str = "embedding"
    q: float = 1.0
    exact: bool = True
    name: str = "vendi"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        if np.ndim(self.gram) != 2 or np.shape(self.gram)[0] != np.shape(self.gram)[1]:
            raise ValueError(f"gram has shape {np.shape(self.gram)}, not (d, d); use VendiContribution.fit")
        if self.n_rows < 2:
            raise ValueError(f"{self.n_rows} row: without it there is no set whose score could fall; give 2 or more")
        if not self.q > 0:
            raise ValueError(f"q={self.q!r}: orders above 0 have a score a row; order 0 only counts directions")
        if self.exact and self.q not in (1, 2):
            raise ValueError(f"q={self.q!r} has no exact form here; use q=1 or q=2, or exact=False")

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, by option."""
        how = "exact" if self.exact else "first order"
        return f"VS(all) - VS(all without the row) of order {self.q:g}, {how}; VS in [1, rows]"

    @classmethod
    def fit(
        cls, ds: Rows, *, embedding: str = "embedding", q: float = 1.0, exact: bool = True, name: str = "vendi"
    ) -> Self:
        """Add up the Gram matrix of the set in one pass, in O(d^2) memory; the same bits for any order of the rows.

        Args:
            ds: `Dataset` or `IterableDataset` with the embedding column.
            embedding: column of vectors.
            q: order of the score: 1 or 2; with `exact=False` any above 0, infinity too.
            exact: whether a row is left out; else the first derivative is taken.
            name: score column.

        Raises:
            ValueError: no rows or one row; a zero, null, ragged or non-finite row.
        """
        total: ExactGram | None = None
        content = identity.ContentSum()
        for block in vector_blocks(ds, embedding, f"{cls.__name__}.fit"):
            zero = np.flatnonzero(~block.x.any(1))
            if len(zero):
                raise ValueError(
                    f"{cls.__name__}.fit: row {block.start + int(zero[0])} of {embedding!r} is a zero vector, which is "
                    "similar to nothing, itself included; drop such rows first"
                )
            total = total or ExactGram(block.x.shape[1])
            total.add(grid_rows(block.x))
            content.add(identity.digests(block.x))
        assert total is not None  # vector_blocks() refuses an empty dataset
        facts = {"column": embedding, "rows": total.rows, "content": content.text}
        return cls(total.mean(), total.rows, embedding=embedding, q=float(q), exact=exact, name=name, fitted_on=facts)

    def cost(self, batch: Batch) -> float:
        """Products with the eigenvectors and with the points of the integral, and with itself when the set was read."""
        d = len(self.gram)
        points = (54 + np.log(self.n_rows)) / STEP if self.exact and self.q == 1 else 1
        return 2.0 * batch.n * d * (2 * d + points)

    def score(self, batch: Batch, rank: int | None) -> np.ndarray:
        x = batch.matrix(self.embedding, len(self.gram), "the rows of the set")
        zero = np.flatnonzero(~x.any(1))
        if len(zero):
            raise ValueError(f"column {self.embedding!r}: row {int(zero[0])} of this batch is a zero vector; drop it")
        values, vectors = memo(self, "eigen", lambda: np.linalg.eigh(np.asarray(self.gram)))
        noise = max(self.n_rows, len(values)) * np.finfo(np.float64).eps * values[-1]
        values = np.where(values < min(noise, 1e-12), 0.0, values)
        squares = (grid_rows(x) @ vectors) ** 2
        return (leave_one_out if self.exact else first_order)(squares, values, n=self.n_rows, q=self.q)
