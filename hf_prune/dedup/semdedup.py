"""SemDeDup: how close a row is to those of its cluster that are kept before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from hf_prune.checks import check_parallel
from hf_prune.data.batch import Batch
from hf_prune.data.distinct import read_whole
from hf_prune.data.lookup import find_rows
from hf_prune.dedup.earlier import largest_earlier_of_groups
from hf_prune.numerics import kmeans
from hf_prune.numerics.search import Directions, largest_cosines
from hf_prune.scorer import Scorer

ORDERS = ("hard", "easy", "random")
QUANTUM = 1e-6  # cosines to the centre that differ by less are a tie: their last digits are chance
EXACT = 1e-12  # a cosine told in float64 that is this close to 1 is 1
BLOCK = 1 << 14


def earlier_similarity(
    x: np.ndarray, clusters: np.ndarray, similarity: np.ndarray, ties: np.ndarray, order: str = "hard"
) -> tuple[np.ndarray, int]:
    """Largest cosine of each row to the rows of its cluster that stand before it, at least 0.

    Args:
        x: (n, d) rows; zero ones belong to no cluster.
        clusters: (n,) numbers from 0, -1 for none; or (n, c), the c clusters that each row belongs to: then it is the
            largest over them.
        similarity: (n,) cosine of each row to its own centre.
        ties: (n,) numbers that decide between rows as far from their centres.
        order: "hard": the rows far from their centres stand first, and so are kept; "easy": the near ones;
            "random": by `ties` alone.

    Returns:
        (n,) float64 similarities, NaN for rows without cluster; how many pairs were compared.

    >>> angle = np.deg2rad([0, 20, 40])
    >>> x = np.column_stack([np.cos(angle), np.sin(angle)])
    >>> found, pairs = earlier_similarity(x, np.zeros(3, int), np.array([0.1, 0.2, 0.3]), np.zeros(3))
    >>> found.round(4).tolist(), pairs
    ([0.0, 0.9397, 0.9397], 3)
    """
    place = {"hard": 1, "easy": -1, "random": 0}[order] * np.rint(similarity / QUANTUM)
    found = np.zeros(len(x))
    pairs = 0
    # one column of clusters at a time would miss pairs for which the same cluster comes in different places
    member, cluster = np.nonzero(clusters.reshape(len(x), -1) >= 0)[0], clusters[clusters >= 0]
    by = np.lexsort((ties[member], place[member], cluster))
    members = member[by]
    starts = np.append(np.flatnonzero(np.diff(cluster[by], prepend=-1)), len(members))
    sizes = np.diff(starts)
    pairs = int((sizes * (sizes - 1) // 2).sum())
    np.maximum.at(found, members, largest_earlier_of_groups(x, members, starts))
    found[found > 1 - EXACT] = 1
    found[clusters.reshape(len(x), -1)[:, 0] < 0] = np.nan
    return found, pairs


@dataclass(frozen=True, eq=False)
class SemDeDup(Scorer):
    """One minus the largest cosine to the rows of its cluster that are kept before it. High = alone = keep.

    Every threshold `eps` is one on the column: `filter_by_score(ds, "semdedup", threshold=eps)` drops the rows whose
    largest cosine to an earlier row is above `1 - eps`. Earlier rows count whether they are kept or not, so of a chain
    of neighbours the first alone stays. The first row of a cluster scores 1. Near copies that k-means puts into two
    clusters are missed; `second=True` finds most of them, `k=1` all.

    Rows are told apart by their ids, or by their vectors where there are no ids. By ids, one of equal vectors has the
    score and the others 0: one stays, whatever the threshold. By vectors, equal rows have equal scores, and
    `one_per="semdedup_group"` leaves one of them.

    Args:
        known: (m,) digests of the ids or vectors, ascending.
        scores: (m,) float32.
        clusters: (m,) int32 nearest centre, -1 for zero vectors.
        groups: (m,) int32, the same for equal vectors.
        embedding: column with the rows' vectors.
        row_id: column with the rows' ids; None: the vector is the id.
        flops_per_row: of the fit.
        name: column; `<name>_cluster` and `<name>_group` are written as well.
        fitted_on: what it was fitted on, and how.

    Zero vectors score NaN. A row that it was not fitted on is an error.

    Reference: Abbas et al., 2023, arXiv 2303.09540. The paper's code drops a row above `1 - eps`, as here.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"embedding": [[3.0, 4.0], [0.0, 1.0], [0.0, 1.01], [1.0, 0.0]]})
    >>> ds = ds.map(SemDeDup.fit(ds, k=1, order="easy"), batched=True)
    >>> [round(score, 3) for score in ds["semdedup"]]
    [1.0, 0.0, 0.2, 0.4]
    """

    paper: ClassVar[str] = "Abbas et al., SemDeDup, 2023, arXiv 2303.09540"
    meaning: ClassVar[str] = "unlike the rows of its cluster that are kept before it; near 0 = a semantic duplicate"
    raw: ClassVar[str] = (
        "largest cosine to the rows of the same cluster that stand before it, at least 0; the column is 1 - cosine, in "
        "[0, 1]; zero vectors give NaN"
    )
    nan_rows: ClassVar[bool] = True

    known: np.ndarray
    scores: np.ndarray
    clusters: np.ndarray
    groups: np.ndarray
    embedding: str = "embedding"
    row_id: str | None = None
    flops_per_row: float = 0.0
    name: str = "semdedup"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        check_parallel("SemDeDup", known=self.known, scores=self.scores, clusters=self.clusters, groups=self.groups)

    @classmethod
    def fit(
        cls,
        ds: Any,
        k: int | None = None,
        embedding: str = "embedding",
        order: str = "hard",
        *,
        seed: int = 0,
        second: bool = False,
        niter: int = 100,
        sample: int | None = None,
        row_id: str | None = "row_id",
        engine: str | None = None,
        name: str = "semdedup",
    ) -> Self:
        """Cluster the rows, and compare those of each cluster with each other.

        The result depends on what the rows are, not on their order. Equal vectors count once when clusters are
        learned. Memory: `8 * n * d` bytes while reading, then `4 * n * d`, 150 bytes a row, and a copy of the largest
        cluster. Time: `n * k * d` for the clusters, `n * n * d / k` for the pairs.

        Args:
            ds: `Dataset` or `IterableDataset` with the embedding column, of text, images or anything else.
            k: number of clusters; None: the root of the number of distinct rows.
            embedding: column of rows of floats.
            order: which rows are kept before others: "hard", those far from their centre (the paper's); "easy", the
                near ones; "random".
            seed: of the clusters, of ties and of the random order.
            second: compare each row within its two nearest clusters.
            niter: Lloyd iterations at most.
            sample: rows to learn the clusters on; None: 256 a cluster, and 65 536 at least.
            row_id: column of ids, used if it is there; None: tell rows apart by their vectors. Ids are better where
                vectors will be computed again: their last bits depend on the number of threads.
            engine: of k-means: "faiss" or "torch"; None takes what is fastest here.
            name: the scorer's column.

        Raises:
            ValueError: an unknown order, an empty dataset, k above the number of distinct rows, all-zero or
                non-finite rows, an id that occurs twice.
        """
        if order not in ORDERS:
            raise ValueError(f"order={order!r} is not known; choose one of {', '.join(map(repr, ORDERS))}")
        if k is not None and (isinstance(k, bool) or int(k) != k or k < 1):
            raise ValueError(f"k={k} is not a number of clusters; use k >= 1, or None for the root of the rows")
        if sample is not None and sample < 1:
            raise ValueError(f"sample={sample} leaves nothing to learn clusters on; use sample >= 1, or None")
        read = read_whole(ds, embedding, cls.__name__, seed, row_id)
        n, some = len(read.x), read.distinct[read.x[read.distinct].any(axis=1)]
        if not len(some):
            raise ValueError(f"{cls.__name__}.fit: all {n} rows of {embedding!r} are zero vectors; embed them again")
        centroids, learned = _clusters(read.x, some, k, seed, sample, niter, engine)
        several = 2 if second and len(centroids) > 1 else 1
        clusters, similarity = np.full((n, several), -1, np.int64), np.zeros(n)
        clusters[some], similarity[some] = _assigned(read.x, some, centroids, several)
        found, pairs = earlier_similarity(read.x, clusters, similarity, read.hashes, order)
        score = (1 - found[read.first]).astype(np.float32)
        if read.by_id:  # a copy stands right behind an equal row
            score[(read.first != np.arange(n)) & ~np.isnan(score)] = 0
        keep, facts = read.by_key, read.facts | learned
        facts |= {"order": order, "second": second, "pairs": pairs}
        return cls(
            read.keys[keep],
            score[keep],
            clusters[read.first[keep], 0].astype(np.int32),
            _numbered(read.first[keep]),
            embedding,
            row_id if read.by_id else None,
            round(_flops(facts, read.x.shape[1]) / n, 1),
            name,
            facts,
        )

    def columns(self) -> dict[str, str]:
        return {self.name: "float32", f"{self.name}_cluster": "int32", f"{self.name}_group": "int32"}

    def companions(self) -> dict[str, str]:
        return {
            f"{self.name}_cluster": "nearest k-means centre, within which rows were compared; -1 for a zero vector",
            f"{self.name}_group": "the same number for rows with equal vectors: what one_per= is for",
        }

    def cost(self, batch: Batch) -> float:
        return self.flops_per_row * batch.n

    def score(self, batch: Batch, rank: int | None) -> Any:
        at = find_rows(batch, self.row_id or self.embedding, self.known, "the rows it was fitted on")
        return {
            self.name: self.scores[at],
            f"{self.name}_cluster": self.clusters[at],
            f"{self.name}_group": self.groups[at],
        }


def _flops(facts: Mapping[str, Any], width: int) -> float:
    """Operations of a fit: learning the clusters, looking for the nearest of each row, comparing pairs."""
    k = int(facts["k"])
    learned = kmeans.fit_flops(k, width, facts["sampled"], facts["iterations"])
    return learned + 2.0 * width * float(k * facts["distinct"] + facts["pairs"])


def _clusters(
    x: np.ndarray, some: np.ndarray, k: int | None, seed: int, sample: int | None, niter: int, engine: str | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Centres (k, d) of the rows `some`, in canonical order, and how they were learned."""
    chosen = k if k is not None else max(1, round(len(some) ** 0.5))
    size = sample if sample is not None else max(kmeans.POINTS_PER_CENTROID * chosen, 1 << 16)
    drawn = kmeans.unit_rows(x[some[:size]])
    if k is None:
        chosen = min(chosen, max(1, len(drawn) // 2))
    if chosen > len(drawn):
        raise ValueError(
            f"k={k} clusters, but {len(drawn)} distinct rows to learn them on; use k={len(drawn)} or less, or a "
            "larger sample"
        )
    # rows that are alike but for their last digits are what is looked for: they must not be parted
    how = {"seed": seed, "niter": niter, "engine": engine, "tell_narrow": False}
    try:
        found = kmeans.kmeans(drawn, chosen, **how)  # type: ignore[arg-type]
    except kmeans.FewRowsError as few:
        if k is not None:
            raise
        found = kmeans.kmeans(drawn, few.distinct, **how)  # type: ignore[arg-type]
    facts = {
        "k": len(found.centroids),
        "seed": seed,
        "sampled": len(drawn),
        "engine": found.engine,
        "iterations": found.iterations,
        "objective": round(found.objective, 6),
    }
    return found.centroids, facts


def _assigned(x: np.ndarray, some: np.ndarray, centroids: np.ndarray, several: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centres (m, several) of the rows `some` (m,), and the cosine (m,) to the nearest."""
    directions = Directions(centroids)
    clusters, similarity = np.empty((len(some), several), np.int64), np.empty(len(some))
    for start in range(0, len(some), BLOCK):  # in canonical order, so that the products are the same
        part = slice(start, start + BLOCK)
        clusters[part], cosine = largest_cosines(x[some[part]], directions, several)
        similarity[part] = cosine[:, 0]
    return clusters, similarity


def _numbered(first: np.ndarray) -> np.ndarray:
    """The place at which each value is met first, (n,) int32."""
    _, place, back = np.unique(first, return_index=True, return_inverse=True)
    return np.asarray(place[back], np.int32)
