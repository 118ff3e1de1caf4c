"""Herding: rows chosen so that their mean follows the mean of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from hf_prune.checks import check_parallel
from hf_prune.data.batch import Batch
from hf_prune.data.distinct import read_whole
from hf_prune.data.lookup import find_rows
from hf_prune.numerics import kmeans
from hf_prune.numerics.search import power_of_two, scaled
from hf_prune.scorer import Scorer
from hf_prune.scorers.k_center import check_count, place_score

RULES = ("product", "distance")
TINY = 2.0**-100  # below it products of float32 vanish


def herd(x: np.ndarray, mean: np.ndarray, k: int, rule: str = "product") -> tuple[np.ndarray, np.ndarray]:
    """Choose k rows one by one whose sum s follows the mean; the lowest of equals.

    Time `n * k * d`; memory: 16 bytes a row beside x.

    Args:
        x: (n, d) float32 or float64 rows.
        mean: (d,) to follow.
        k: how many, up to n.
        rule: at pick t, "product" takes the largest `<t * mean - s, x>`; "distance" the least `||t * mean - s - x||`.
            They are the same for rows of one length.

    Returns:
        (k,) int64 rows in their order; (n,) float64 what the rule would maximise next, -inf for chosen rows.

    Reference: Welling, Herding dynamical weights, ICML 2009; the variant is that of iCaRL (Rebuffi et al., 2017).

    >>> x = np.array([[1, 0], [0, 1], [2, 2], [-1.0, 0]])
    >>> [herd(x, x.mean(0), 4, rule)[0].tolist() for rule in RULES]
    [[2, 3, 0, 1], [1, 0, 2, 3]]
    """
    scale = power_of_two(x)  # exact, and no square leaves the range of its type
    x, mean = scaled(x, scale), mean * scale
    lengths = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
    half = lengths**2 / 2 if rule == "distance" else np.zeros(len(x))
    free = np.ones(len(x), bool)
    weight, order = mean.astype(np.float64), np.empty(k, np.int64)
    for t in range(k):
        # the product in the rows' own precision finds, float64 tells
        rough = np.where(free, x @ weight.astype(x.dtype) - half, -np.inf)
        eps = float(np.finfo(x.dtype).eps)
        error = 2.0 * (x.shape[1] + 8) * eps * (np.linalg.norm(weight) * lengths + half) + TINY
        close = np.flatnonzero(free & (rough + error >= (rough - error)[free].max()))
        exact = np.einsum("nd,d->n", x[close].astype(np.float64), weight) - half[close]
        order[t] = close[exact.argmax()]
        free[order[t]] = False
        weight += mean - x[order[t]]
    return order, np.where(free, np.einsum("nd,d->n", x, weight) - half, -np.inf)


@dataclass(frozen=True, eq=False)
class Herding(Scorer):
    """Place of a row in the herding order: how many rows come after it. High = brings the mean of the chosen = keep.

    The first k rows are chosen one by one so that their mean stays near the mean of all; then come the others by
    what the rule says next. Typical directions come early, so outliers and mislabelled rows are mostly dropped; with
    unnormalised vectors the long ones are chosen first. Where rows have no ids, copies are one candidate, weigh in
    the mean as often as they occur, and share its score.

    Args:
        known: (m,) digests of the ids or vectors, ascending.
        scores: (m,) float32.
        embedding: column with the rows' vectors.
        row_id: column with the rows' ids; None: the vector is the id.
        flops_per_row: of the fit.
        name: column.
        fitted_on: what it was fitted on, and how.

    A row that it was not fitted on is an error.

    Reference: Welling, Herding dynamical weights to learn, ICML 2009. (DeepCore takes the farthest row instead of the
    nearest, which is the opposite rule.)

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"embedding": [[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [-1.0, 0.0]]})
    >>> Herding.fit(ds, k=4)(ds[:])["herding"].tolist()
    [1.0, 0.0, 3.0, 2.0]
    """

    paper: ClassVar[str] = "Welling, Herding Dynamical Weights to Learn, ICML 2009"
    meaning: ClassVar[str] = "chosen early so that the mean of the chosen is that of all: typical"
    raw: ClassVar[str] = (
        "place in the herding order, the rows not chosen behind by what the rule says next; the column is the number "
        "of rows that come after"
    )

    known: np.ndarray
    scores: np.ndarray
    embedding: str = "embedding"
    row_id: str | None = None
    flops_per_row: float = 0.0
    name: str = "herding"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        check_parallel("Herding", known=self.known, scores=self.scores)

    @classmethod
    def fit(
        cls,
        ds: Any,
        k: int,
        embedding: str = "embedding",
        *,
        rule: str = "product",
        normalize: bool = False,
        seed: int = 0,
        row_id: str | None = "row_id",
        name: str = "herding",
    ) -> Self:
        """Choose k rows; the same for any order of the rows.

        Memory: 8 bytes a number of the embedding column, 100 bytes a row.

        Args:
            ds: `Dataset` or `IterableDataset` with the embedding column.
            k: rows to choose one by one, as many as will be kept; time grows with it.
            embedding: column of rows of floats.
            rule: "product" (Welling's) or "distance" (see `herd`).
            normalize: scale rows to length 1 first.
            seed: of the hash of the id that decides between equals.
            row_id: column of ids, used if it is there; None: tell rows apart by their vectors.
            name: the scorer's column.

        Raises:
            ValueError: an unknown rule, an empty dataset, k above the number of rows, non-finite rows, an id that
                occurs twice.
        """
        if rule not in RULES:
            raise ValueError(f"rule={rule!r} is not one of {RULES}")
        read = read_whole(ds, embedding, cls.__name__, seed, row_id)
        rows = np.argsort(read.hashes, kind="stable") if read.by_id else read.distinct
        check_count(k, len(rows), "rows" if read.by_id else "distinct rows")
        x = read.x[rows]
        x = kmeans.unit_rows(x) if normalize else x
        times = np.bincount(read.first, minlength=len(read.x))[rows] if not read.by_id else np.ones(len(rows))
        mean = np.einsum("nd,n->d", x, times, dtype=np.float64) / times.sum()
        order, value = herd(x, mean, k, rule)
        place = np.empty(len(read.x))
        place[rows] = place_score(order, value)
        keep = read.by_key
        facts = read.facts | {"k": k, "seed": seed, "rule": rule, "normalize": normalize}
        return cls(
            read.keys[keep],
            place[read.first if not read.by_id else slice(None)][keep].astype(np.float32),
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
