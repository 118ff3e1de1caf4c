"""Herding: rows chosen so that their mean follows the mean of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self, TypeAlias, get_args

import numpy as np

from hf_prune.checks import check_choice
from hf_prune.data.distinct import read_whole
from hf_prune.data.types import Rows
from hf_prune.numerics import kmeans
from hf_prune.numerics.search import power_of_two, scaled
from hf_prune.scorers.placed_rows import PlacedRows, check_rows, rank_scores

Rule: TypeAlias = Literal["product", "distance"]
TINY = 2.0**-100  # below it products of float32 vanish


def herd(x: np.ndarray, mean: np.ndarray, rows: int, *, rule: Rule = "product") -> tuple[np.ndarray, np.ndarray]:
    """Choose rows one by one whose sum s follows the mean; the lowest of equals.

    Time `n * rows * d`; memory: 16 bytes a row beside x.

    Args:
        x: (n, d) float32 or float64 rows.
        mean: (d,) mean to follow.
        rows: number of rows to choose, up to n.
        rule: what the t-th row has: "product": the largest `<t * mean - s, x>`; "distance": the smallest
            `||t * mean - s - x||`. They are the same for rows of one length.

    Returns:
        (rows,) int64 indices in the order of choice; (n,) float64 what the rule would maximize next, -inf for chosen
        rows.

    Reference: Welling, Herding dynamical weights, ICML 2009; the variant is that of iCaRL (Rebuffi et al., 2017).

    >>> x = np.array([[1, 0], [0, 1], [2, 2], [-1.0, 0]])
    >>> [herd(x, x.mean(0), 4, rule=rule)[0].tolist() for rule in ("product", "distance")]
    [[2, 3, 0, 1], [1, 0, 2, 3]]
    """
    scale = power_of_two(x)  # exact, and no square leaves the range of its type
    x, mu = scaled(x, scale), mean * scale
    lengths = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
    half = lengths**2 / 2 if rule == "distance" else np.zeros(len(x))
    free = np.ones(len(x), bool)
    w, order = mu.astype(np.float64), np.empty(rows, np.int64)  # w = t * mu - s
    for t in range(rows):
        # the product in the rows' own precision proposes, float64 decides
        rough = np.where(free, x @ w.astype(x.dtype) - half, -np.inf)
        eps = float(np.finfo(x.dtype).eps)
        error = 2.0 * (x.shape[1] + 8) * eps * (np.linalg.norm(w) * lengths + half) + TINY
        close = np.flatnonzero(free & (rough + error >= (rough - error)[free].max()))
        exact = np.einsum("nd,d->n", x[close].astype(np.float64), w) - half[close]
        order[t] = close[exact.argmax()]
        free[order[t]] = False
        w += mu - x[order[t]]
    return order, np.where(free, np.einsum("nd,d->n", x, w) - half, -np.inf)


@dataclass(frozen=True, eq=False, kw_only=True)
class Herding(PlacedRows):
    """Rank of a row in the herding order: how many rows come after it. High = brings the mean of the chosen = keep.

    With mu the mean of all rows, the t-th row x_t is chosen so that the mean of the chosen stays near mu:

        x_t = argmax_x <w_{t-1}, x>,    w_t = w_{t-1} + mu - x_t,    w_0 = mu

    Behind the chosen rows stand the others by what the rule says next. Typical directions come early, so outliers and
    mislabelled rows are mostly dropped; with unnormalized vectors the long ones are chosen first. Where rows have no
    ids, copies are one candidate, weigh in the mean as often as they occur, and share its score.

    Made by `fit`; its fields are those of `PlacedRows`. A row that was not there when fitting is an error.

    Reference: Welling, Herding dynamical weights to learn, ICML 2009. (DeepCore takes the farthest row instead of the
    nearest, which is the opposite rule.)

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"embedding": [[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [-1.0, 0.0]]})
    >>> Herding.fit(ds, rows=4)(ds[:])["herding"].tolist()
    [1.0, 0.0, 3.0, 2.0]
    """

    paper: ClassVar[str] = "Welling, Herding Dynamical Weights to Learn, ICML 2009"
    meaning: ClassVar[str] = "chosen early so that the mean of the chosen is that of all: typical"
    raw: ClassVar[str] = (
        "rank in the herding order, the rows not chosen behind by what the rule says next; the column is the number "
        "of rows that come after"
    )

    name: str = "herding"

    @classmethod
    def fit(
        cls,
        ds: Rows,
        rows: int,
        *,
        embedding: str = "embedding",
        rule: Rule = "product",
        normalize: bool = False,
        seed: int = 0,
        row_id: str | None = "row_id",
        name: str = "herding",
    ) -> Self:
        """Choose rows; the same for any order of the rows of the dataset.

        Memory: 8 bytes a number of the embedding column, 100 bytes a row.

        Args:
            ds: `Dataset` or `IterableDataset` with the embedding column.
            rows: number of rows to choose one by one, as many as will be kept; time grows with it.
            embedding: column of vectors.
            rule: "product" (Welling's) or "distance" (see `herd`).
            normalize: whether rows are scaled to length 1 first.
            seed: seed of the hash of the id that decides between equals.
            row_id: column of ids, used if the dataset has it; None: rows are known by their vectors.
            name: score column.

        Raises:
            ValueError: an unknown rule, an empty dataset, more rows to choose than there are, non-finite rows, an id
                that occurs twice.
        """
        check_choice("rule", rule, get_args(Rule))
        read = read_whole(ds, embedding, cls.__name__, seed=seed, row_id=row_id)
        chosen_from = np.argsort(read.hashes, kind="stable") if read.by_id else read.distinct
        check_rows(rows, len(chosen_from), "rows" if read.by_id else "distinct rows")
        x = read.x[chosen_from]
        x = kmeans.unit_rows(x) if normalize else x
        times = np.ones(len(x)) if read.by_id else np.bincount(read.first, minlength=len(read.x))[chosen_from]
        mean = np.einsum("nd,n->d", x, times, dtype=np.float64) / times.sum()
        scores = np.empty(len(read.x))
        scores[chosen_from] = rank_scores(*herd(x, mean, rows, rule=rule))
        if not read.by_id:
            scores = scores[read.first]
        return cls(
            keys=read.keys[read.by_key],
            scores=scores[read.by_key].astype(np.float32),
            embedding=embedding,
            row_id=row_id if read.by_id else None,
            flops_per_row=2.0 * rows * x.shape[1],
            name=name,
            fitted_on=read.facts | {"chosen": rows, "seed": seed, "rule": rule, "normalize": normalize},
        )
