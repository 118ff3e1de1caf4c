"""k-center greedy: each next row is the one farthest from all that were chosen before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self, get_args

import numpy as np

from hf_prune.checks import check_choice
from hf_prune.data.distinct import read_whole
from hf_prune.data.types import Metric, Rows
from hf_prune.numerics import kmeans
from hf_prune.numerics.search import power_of_two, precision, scaled
from hf_prune.numerics.threads import as_tensor, in_torch_threads
from hf_prune.scorers.placed_rows import PlacedRows, check_rows, rank_scores

CANDIDATES = 384  # farthest rows among which the next centers are looked for
BLOCK = 1 << 12


class Cover(NamedTuple):
    """What k-center chose.

    Attributes:
        order: (k,) int64 indices of the chosen rows, the first one first.
        radii: (k,) float64 distances of each to those chosen before it, inf for the first.
        nearest: (n,) float64 distances of all rows to the nearest chosen one.
    """

    order: np.ndarray
    radii: np.ndarray
    nearest: np.ndarray


def k_center(x: np.ndarray, k: int, *, start: int = 0) -> Cover:
    """Choose k rows greedily, each the farthest (Euclidean) from those before; the lowest of equals.

    Distances to the chosen rows are kept for the rows farthest of all only, until one of the others may be the
    farthest; then all rows meet all new centers in one product. Float32 proposes, float64 decides: what is chosen is
    what the loop over all rows chooses. Time `n * k * d`; memory: 24 bytes a row beside x, and 10 MB a thread.

    Args:
        x: (n, d) float32 or float64 rows.
        k: number of centers, up to n.
        start: index of the first one.

    Returns:
        The centers in their order, and the distances to them.

    Reference: Sener and Savarese, ICLR 2018; Gonzalez, 1985: the largest of the distances is at most twice the
    smallest that k centers can give.

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
    """Lower the squared distances of all rows by those to new centers."""
    import torch

    from hf_prune.scorers._k_center_kernels import lower_by

    centers, center_squares = np.ascontiguousarray(x[new]), squares[new]
    across = as_tensor(np.ascontiguousarray(centers.T.astype(np.float32)))
    error = precision(x.shape[1])

    def block(begin: int) -> None:
        part = slice(begin, begin + BLOCK)
        product = torch.mm(as_tensor(x[part].astype(np.float32, copy=False)), across).numpy()
        lower_by(x[part], centers, product, squares[part], center_squares, error, nearest[part])

    in_torch_threads(block, range(0, len(x), BLOCK))


@dataclass(frozen=True, eq=False, kw_only=True)
class KCenter(PlacedRows):
    """Rank of a row in the k-center greedy order: how many rows come after it. High = covers new ground = keep.

    The t-th row x_t is the farthest from those chosen before it:

        x_t = argmax_x min_{s < t} ||x - x_s||

    Behind the chosen rows stand the others by their distance to the nearest chosen one. Outliers, mislabelled or broken
    rows among them, are chosen first. Copies of a row come last: they cover nothing. Where rows have no ids, copies
    share the score of the one that is chosen; deduplicate them first.

    Made by `fit`; its fields are those of `PlacedRows`. A row that was not there when fitting is an error.

    Reference: Sener and Savarese, Active learning for CNNs: a core-set approach, ICLR 2018, arXiv 1708.00489.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"embedding": [[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [0.0, 3.0]]})
    >>> KCenter.fit(ds, rows=4)(ds[:])["k_center"].tolist()
    [0.0, 1.0, 2.0, 3.0]
    """

    paper: ClassVar[str] = "Sener and Savarese, Active Learning for CNNs, ICLR 2018, arXiv 1708.00489"
    meaning: ClassVar[str] = "far from the rows chosen before it: covers new ground; outliers come first"
    raw: ClassVar[str] = (
        "rank in the greedy order of the farthest row, the rows not chosen behind by their distance; the column is "
        "the number of rows that come after"
    )

    name: str = "k_center"

    @classmethod
    def fit(
        cls,
        ds: Rows,
        rows: int,
        *,
        embedding: str = "embedding",
        metric: Metric = "euclidean",
        seed: int = 0,
        row_id: str | None = "row_id",
        name: str = "k_center",
    ) -> Self:
        """Choose rows; the same for any order of the rows of the dataset.

        Memory: 8 bytes a number of the embedding column while reading, 4 afterwards, 100 bytes a row.

        Args:
            ds: `Dataset` or `IterableDataset` with the embedding column.
            rows: number of rows to choose one by one, as many as will be kept; time grows with it.
            embedding: column of vectors.
            metric: "euclidean": distance of the vectors as they are; "cosine": of the vectors scaled to length 1.
            seed: seed of the hashes of ids; the row with the lowest hash is the first.
            row_id: column of ids, used if the dataset has it; None: rows are known by their vectors.
            name: score column.

        Raises:
            ValueError: an unknown metric, an empty dataset, more rows to choose than there are distinct ones,
                non-finite rows, an id that occurs twice.
        """
        check_choice("metric", metric, get_args(Metric))
        read = read_whole(ds, embedding, cls.__name__, seed=seed, row_id=row_id)
        check_rows(rows, len(read.distinct), "distinct rows")
        x = read.x[read.distinct]
        cover = k_center(kmeans.unit_rows(x) if metric == "cosine" else x, rows)
        position = np.empty(len(read.x), np.int64)
        position[read.distinct] = np.arange(len(x))
        copy = (read.first != np.arange(len(read.x))) & read.by_id
        scores = rank_scores(cover.order, cover.nearest)[position[read.first]] + copy.sum()
        scores[copy] = 0
        radius = round(float(cover.nearest.max()), 6)
        return cls(
            keys=read.keys[read.by_key],
            scores=scores[read.by_key].astype(np.float32),
            embedding=embedding,
            row_id=row_id if read.by_id else None,
            flops_per_row=2.0 * rows * x.shape[1],
            name=name,
            fitted_on=read.facts | {"chosen": rows, "seed": seed, "metric": metric, "radius": radius},
        )
