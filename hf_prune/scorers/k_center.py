"""k-center greedy: each next row is the one farthest from all that were chosen before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from hf_prune.checks import check_parallel
from hf_prune.data.batch import Batch
from hf_prune.data.distinct import read_whole
from hf_prune.data.lookup import find_rows
from hf_prune.numerics import kmeans
from hf_prune.numerics.search import as_tensor, in_blocks, power_of_two, precision, scaled
from hf_prune.scorer import Scorer

METRICS = ("euclidean", "cosine")
CANDIDATES = 384  # farthest rows among which the next centres are looked for
BLOCK = 1 << 12


class Cover(NamedTuple):
    """What k-center chose: rows in their order, how far each was when chosen, and how far each row is at the end."""

    order: np.ndarray
    radii: np.ndarray
    nearest: np.ndarray


def k_center(x: np.ndarray, k: int, start: int = 0) -> Cover:
    """Choose k rows greedily, each the farthest (Euclidean) from those before; the lowest of equals.

    Distances to the chosen rows are kept for the rows farthest of all only, until one of the others may be the
    farthest; then all rows meet all new centres in one product. Float32 finds, float64 tells: what is chosen is what
    the loop over all rows chooses. Time `n * k * d`; memory: 24 bytes a row beside x, and 10 MB a thread.

    Args:
        x: (n, d) float32 or float64 rows.
        k: how many, up to n.
        start: the first row.

    Returns:
        (k,) int64 rows; (k,) distances to the rows before, inf for the first; (n,) distances to the nearest chosen.

    Reference: Sener and Savarese, ICLR 2018; Gonzalez, 1985: the largest of the distances is at most twice the least
    that k centres can give.

    >>> cover = k_center(np.array([[0, 0], [1, 0], [0, 5], [6, 0], [6, 1.0]]), 5)
    >>> cover.order.tolist(), cover.radii.round(4).tolist()
    ([0, 4, 2, 1, 3], [inf, 6.0828, 5.0, 1.0, 1.0])
    """
    from hf_prune.scorers._k_center_kernels import lower_to

    scale = power_of_two(x)  # exact, and no square leaves the range of its type
    x = np.ascontiguousarray(scaled(x, scale))
    n = len(x)
    squares = np.einsum("nd,nd->n", x, x, dtype=np.float64)
    nearest = np.full(n, np.inf)
    order, radii = np.empty(k, np.int64), np.empty(k)
    order[0], radii[0], done = start, np.inf, 1
    _meet(x, squares, order[:1], nearest)
    nearest[start] = -1  # chosen: never again, be its copies as they may
    while done < k:
        if n > CANDIDATES:
            bound = np.partition(nearest, n - CANDIDATES - 1)[n - CANDIDATES - 1]
            near = np.flatnonzero(nearest > bound)
            if not len(near):  # many rows equally far
                near = np.flatnonzero(nearest == nearest.max())[:1]
        else:
            near, bound = np.arange(n), -1.0
        few, left = x[near], nearest[near]
        begin = done
        while done < k:
            next_ = int(left.argmax())
            if done > begin and left[next_] <= bound:
                break  # a row outside may be as far
            order[done], radii[done] = near[next_], left[next_] ** 0.5
            lower_to(few, next_, left)
            left[next_] = -1
            done += 1
        new = order[begin:done]
        _meet(x, squares, new, nearest)
        nearest[new] = -1
    return Cover(order, radii / scale, np.sqrt(nearest.clip(0)) / scale)


def _meet(x: np.ndarray, squares: np.ndarray, new: np.ndarray, nearest: np.ndarray) -> None:
    """Lower the squared distances of all rows by those to new centres."""
    import torch

    from hf_prune.scorers._k_center_kernels import lower_by

    centres, centre_squares = np.ascontiguousarray(x[new]), squares[new]
    across = as_tensor(np.ascontiguousarray(centres.T.astype(np.float32)))
    error = precision(x.shape[1])

    def block(begin: int) -> None:
        part = slice(begin, begin + BLOCK)
        product = torch.mm(as_tensor(x[part].astype(np.float32, copy=False)), across).numpy()
        lower_by(x[part], centres, product, squares[part], centre_squares, error, nearest[part])

    in_blocks(range(0, len(x), BLOCK), block)


def place_score(order: np.ndarray, value: np.ndarray) -> np.ndarray:
    """How many of n rows come after each: the chosen ones in their order, then the others, the largest value first.

    >>> place_score(np.array([2, 0]), np.array([0, 1.0, 0, 3.0, 1.0])).tolist()
    [3.0, 0.0, 4.0, 2.0, 0.0]
    """
    n = len(value)
    rest = np.ones(n, bool)
    rest[order] = False
    score = np.empty(n)
    score[order] = n - 1 - np.arange(len(order))
    score[rest] = np.searchsorted(np.sort(value[rest]), value[rest])
    return score


@dataclass(frozen=True, eq=False)
class KCenter(Scorer):
    """Place of a row in the k-center greedy order: how many rows come after it. High = covers new ground = keep.

    The first k rows are chosen one by one, each the farthest from those before; then come the others by their
    distance to the nearest chosen row. Outliers, mislabelled or broken rows among them, are chosen first. Copies of a
    row come last: they cover nothing. Where rows have no ids, copies share the score of the one that is chosen;
    deduplicate them first.

    Args:
        known: (m,) digests of the ids or vectors, ascending.
        scores: (m,) float32.
        embedding: column with the rows' vectors.
        row_id: column with the rows' ids; None: the vector is the id.
        flops_per_row: of the fit.
        name: column.
        fitted_on: what it was fitted on, and how.

    A row that it was not fitted on is an error.

    Reference: Sener and Savarese, Active learning for CNNs: a core-set approach, ICLR 2018, arXiv 1708.00489.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"embedding": [[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [0.0, 3.0]]})
    >>> KCenter.fit(ds, k=4)(ds[:])["k_center"].tolist()
    [0.0, 1.0, 2.0, 3.0]
    """

    paper: ClassVar[str] = "Sener and Savarese, Active Learning for CNNs, ICLR 2018, arXiv 1708.00489"
    meaning: ClassVar[str] = "far from the rows chosen before it: covers new ground; outliers come first"
    raw: ClassVar[str] = (
        "place in the greedy order of the farthest row, the rows not chosen behind by their distance; the column is "
        "the number of rows that come after"
    )

    known: np.ndarray
    scores: np.ndarray
    embedding: str = "embedding"
    row_id: str | None = None
    flops_per_row: float = 0.0
    name: str = "k_center"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        check_parallel("KCenter", known=self.known, scores=self.scores)

    @classmethod
    def fit(
        cls,
        ds: Any,
        k: int,
        embedding: str = "embedding",
        *,
        seed: int = 0,
        metric: str = "euclidean",
        row_id: str | None = "row_id",
        name: str = "k_center",
    ) -> Self:
        """Choose k rows; the same for any order of the rows.

        Memory: 8 bytes a number of the embedding column while reading, 4 afterwards, 100 bytes a row.

        Args:
            ds: `Dataset` or `IterableDataset` with the embedding column.
            k: rows to choose one by one, as many as will be kept; time grows with it.
            embedding: column of rows of floats.
            seed: the first row is the one with the least hash of (seed, id).
            metric: "euclidean" of the vectors as they are; "cosine": of the vectors scaled to length 1.
            row_id: column of ids, used if it is there; None: tell rows apart by their vectors.
            name: the scorer's column.

        Raises:
            ValueError: an unknown metric, an empty dataset, k above the number of distinct rows, non-finite rows, an
                id that occurs twice.
        """
        if metric not in METRICS:
            raise ValueError(f"metric={metric!r} is not one of {METRICS}")
        read = read_whole(ds, embedding, cls.__name__, seed, row_id)
        check_count(k, len(read.distinct), "distinct rows")
        x = read.x[read.distinct]
        cover = k_center(kmeans.unit_rows(x) if metric == "cosine" else x, k)
        place = np.empty(len(read.x), np.int64)
        place[read.distinct] = np.arange(len(x))
        copy = (read.first != np.arange(len(read.x))) & read.by_id
        score = place_score(cover.order, cover.nearest)[place[read.first]] + copy.sum()
        score[copy] = 0
        keep = read.by_key
        facts = read.facts | {"k": k, "seed": seed, "metric": metric, "radius": round(float(cover.nearest.max()), 6)}
        return cls(
            read.keys[keep],
            score[keep].astype(np.float32),
            embedding,
            row_id if read.by_id else None,
            2.0 * k * x.shape[1],
            name,
            facts,
        )

    def cost(self, batch: Batch) -> float:
        return self.flops_per_row * batch.n

    def score(self, batch: Batch, rank: int | None) -> Any:
        return self.scores[find_rows(batch, self.row_id or self.embedding, self.known, "the rows it was fitted on")]


def check_count(k: Any, n: int, what: str) -> None:
    """Raise a ValueError unless k rows can be chosen of n."""
    if isinstance(k, bool) or int(k) != k or k < 1:
        raise ValueError(f"k={k} is not a number of rows; use k >= 1, as many rows as will be kept")
    if k > n:
        raise ValueError(f"k={k} rows to choose, but there are {n} {what}; use k={n} or less")
