"""SemDeDup: how close a row is to those of its cluster that are kept before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np

from hf_prune.checks import check_choice, check_count
from hf_prune.data.batch import Batch
from hf_prune.data.distinct import read_whole
from hf_prune.data.types import KeepFirst, Rows
from hf_prune.dedup.earlier import largest_earlier_of_groups
from hf_prune.numerics import kmeans
from hf_prune.numerics.search import Directions, largest_cosines
from hf_prune.scorers.placed_rows import PlacedRows
from hf_prune.summary import Summary

QUANTUM = 1e-6  # cosines to the centroid that differ by less are a tie: their last digits are chance
EXACT = 1e-12  # a cosine computed in float64 that is this close to 1 is 1
BLOCK = 1 << 14
THRESHOLDS = (1e-6, 0.01, 0.05, 0.1)  # at which a summary counts


def earlier_similarity(
    x: np.ndarray,
    clusters: np.ndarray,
    similarity: np.ndarray,
    ties: np.ndarray,
    *,
    keep_first: KeepFirst = "hard",
) -> tuple[np.ndarray, int]:
    """Largest cosine of each row to the rows of its cluster that stand before it, at least 0.

    Args:
        x: (n, d) rows; zero ones belong to no cluster.
        clusters: (n,) indices of clusters, -1 for none; or (n, c), the c clusters that each row belongs to: then the
            largest over them is taken.
        similarity: (n,) cosine of each row to its own centroid.
        ties: (n,) numbers that decide between rows as far from their centroids.
        keep_first: "hard": the rows far from their centroids stand first, and so are kept; "easy": the near ones;
            "random": the order is that of `ties` alone.

    Returns:
        (n,) float64 similarities, NaN for rows without cluster; the number of pairs that were compared.

    >>> angle = np.deg2rad([0, 20, 40])
    >>> x = np.column_stack([np.cos(angle), np.sin(angle)])
    >>> largest, pairs = earlier_similarity(x, np.zeros(3, int), np.array([0.1, 0.2, 0.3]), np.zeros(3))
    >>> largest.round(4).tolist(), pairs
    ([0.0, 0.9397, 0.9397], 3)
    """
    rank = {"hard": 1, "easy": -1, "random": 0}[keep_first] * np.rint(similarity / QUANTUM)
    largest = np.zeros(len(x))
    pairs = 0
    # one column of clusters at a time would miss pairs for which the same cluster comes in different columns
    member, cluster = np.nonzero(clusters.reshape(len(x), -1) >= 0)[0], clusters[clusters >= 0]
    by = np.lexsort((ties[member], rank[member], cluster))
    members = member[by]
    starts = np.append(np.flatnonzero(np.diff(cluster[by], prepend=-1)), len(members))
    sizes = np.diff(starts)
    pairs = int((sizes * (sizes - 1) // 2).sum())
    np.maximum.at(largest, members, largest_earlier_of_groups(x, members, starts))
    largest[largest > 1 - EXACT] = 1
    largest[clusters.reshape(len(x), -1)[:, 0] < 0] = np.nan
    return largest, pairs


@dataclass(frozen=True, repr=False)
class SemanticDuplicates(Summary):
    """What SemDeDup found in the rows it was fitted on.

    Attributes:
        rows: number of rows; of those with equal keys one counts.
        clusters: number of k-means clusters that hold rows.
        largest: number of rows of the largest cluster.
        zero_vectors: number of rows that belong to no cluster.
        equal_vectors: number of rows that repeat the vector of another.
        removable: number of rows that `filter_by_score(..., threshold=eps)` drops, by eps.
    """

    title: ClassVar[str] = "Semantic duplicates"

    rows: int
    clusters: int
    largest: int
    zero_vectors: int
    equal_vectors: int
    removable: Mapping[str, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class SemDeDup(PlacedRows):
    """One minus the largest cosine to the rows of its cluster that are kept before it. High = alone = keep.

    Rows are clustered by spherical k-means; within a cluster C they stand in the order of `keep_first`:

        score(x) = 1 - max(0, max {cos(x, y) : y in C(x), y before x})

    Every threshold `eps` is one on the column: `filter_by_score(ds, "semdedup", threshold=eps)` drops the rows whose
    largest cosine to an earlier row is above `1 - eps`. Earlier rows count whether they are kept or not, so of a chain
    of neighbors the first alone stays. The first row of a cluster scores 1. Near copies that k-means puts into two
    clusters are missed; `clusters_per_row=2` finds most of them, `k=1` all.

    Rows are known by their ids, or by their vectors where there are no ids. By ids, one of equal vectors has the
    score and the others 0: one stays, whatever the threshold. By vectors, equal rows have equal scores, and
    `one_per="semdedup_group"` leaves one of them.

    Made by `fit`; other fields are those of `PlacedRows`. Zero vectors score NaN. A row that was not there when fitting
    is an error.

    Args:
        clusters: (m,) int32 index of the nearest centroid, -1 for zero vectors.
        groups: (m,) int32 numbers, the same for equal vectors.
        name: score column; `<name>_cluster` and `<name>_group` are written as well.

    Reference: Abbas et al., 2023, arXiv 2303.09540. The paper's code drops a row above `1 - eps`, as here.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"embedding": [[3.0, 4.0], [0.0, 1.0], [0.0, 1.01], [1.0, 0.0]]})
    >>> scorer = SemDeDup.fit(ds, k=1, keep_first="easy")
    >>> [round(score, 3) for score in ds.map(scorer, batched=True)["semdedup"]]
    [1.0, 0.0, 0.2, 0.4]
    >>> scorer.summary().removable
    {'1e-06': 1, '0.01': 1, '0.05': 1, '0.1': 1}
    """

    paper: ClassVar[str] = "Abbas et al., SemDeDup, 2023, arXiv 2303.09540"
    meaning: ClassVar[str] = "unlike the rows of its cluster that are kept before it; near 0 = a semantic duplicate"
    raw: ClassVar[str] = (
        "largest cosine to the rows of the same cluster that stand before it, at least 0; the column is 1 - cosine, in "
        "[0, 1]; zero vectors give NaN"
    )
    nan_rows: ClassVar[bool] = True

    clusters: np.ndarray
    groups: np.ndarray
    name: str = "semdedup"

    def per_row(self) -> dict[str, np.ndarray]:
        return super().per_row() | {"clusters": self.clusters, "groups": self.groups}

    @classmethod
    def fit(
        cls,
        ds: Rows,
        *,
        k: int | None = None,
        embedding: str = "embedding",
        keep_first: KeepFirst = "hard",
        clusters_per_row: Literal[1, 2] = 1,
        seed: int = 0,
        max_iter: int = 100,
        sample_rows: int | None = None,
        row_id: str | None = "row_id",
        engine: kmeans.Engine | None = None,
        name: str = "semdedup",
    ) -> Self:
        """Cluster the rows, and compare those of each cluster with each other.

        The result depends on what the rows are, not on their order. Equal vectors count once when clusters are
        learned. Memory: `8 * n * d` bytes while reading, then `4 * n * d`, 150 bytes a row, and a copy of the largest
        cluster. Time: `n * k * d` for the clusters, `n * n * d / k` for the pairs.

        Args:
            ds: `Dataset` or `IterableDataset` with the embedding column, of text, images or anything else.
            k: number of clusters; None: the root of the number of distinct rows.
            embedding: column of vectors.
            keep_first: which rows are kept before others: "hard", those far from their centroid (the paper's); "easy",
                the near ones; "random".
            clusters_per_row: number of nearest clusters within which each row is compared, 1 or 2.
            seed: seed of the clusters, of ties and of the random order.
            max_iter: number of Lloyd iterations, at most.
            sample_rows: number of rows to learn the clusters on; None: 256 a cluster, and 65 536 at least.
            row_id: column of ids, used if the dataset has it; None: rows are known by their vectors. Ids are better
                where vectors will be computed again: their last bits depend on the number of threads.
            engine: library of the k-means, "faiss" or "torch"; None: the faster one here.
            name: score column.

        Raises:
            ValueError: an option that is none, an empty dataset, k above the number of distinct rows, all-zero or
                non-finite rows, an id that occurs twice.
        """
        check_choice("keep_first", keep_first, get_args(KeepFirst))
        check_choice("clusters_per_row", clusters_per_row, (1, 2))
        check_count("k", k, optional=True)
        check_count("sample_rows", sample_rows, optional=True)
        read = read_whole(ds, embedding, cls.__name__, seed=seed, row_id=row_id)
        n, some = len(read.x), read.distinct[read.x[read.distinct].any(axis=1)]
        if not len(some):
            raise ValueError(f"{cls.__name__}.fit: all {n} rows of {embedding!r} are zero vectors; embed them again")
        how: dict[str, Any] = {"seed": seed, "max_iter": max_iter, "engine": engine}
        centroids, learned = _clusters(read.x, some, k, sample_rows, how)
        several = min(clusters_per_row, len(centroids))
        clusters, similarity = np.full((n, several), -1, np.int64), np.zeros(n)
        clusters[some], similarity[some] = _assigned(read.x, some, centroids, several)
        largest, pairs = earlier_similarity(read.x, clusters, similarity, read.hashes, keep_first=keep_first)
        scores = (1 - largest[read.first]).astype(np.float32)
        if read.by_id:  # a copy stands right behind an equal row
            scores[(read.first != np.arange(n)) & ~np.isnan(scores)] = 0
        one = read.by_key
        options = {"keep_first": keep_first, "clusters_per_row": clusters_per_row, "pairs": pairs}
        facts = read.facts | learned | options
        return cls(
            keys=read.keys[one],
            scores=scores[one],
            clusters=clusters[read.first[one], 0].astype(np.int32),
            groups=_numbered(read.first[one]),
            embedding=embedding,
            row_id=row_id if read.by_id else None,
            flops_per_row=round(_flops(facts, read.x.shape[1]) / n, 1),
            name=name,
            fitted_on=facts,
        )

    def columns(self) -> dict[str, str]:
        return {self.name: "float32", f"{self.name}_cluster": "int32", f"{self.name}_group": "int32"}

    def companions(self) -> dict[str, str]:
        return {
            f"{self.name}_cluster": "nearest k-means centroid, within which rows were compared; -1 for a zero vector",
            f"{self.name}_group": "the same number for rows with equal vectors: what one_per= is for",
        }

    def score(self, batch: Batch, rank: int | None) -> Any:
        at = self.positions(batch)
        return {
            self.name: self.scores[at],
            f"{self.name}_cluster": self.clusters[at],
            f"{self.name}_group": self.groups[at],
        }

    def summary(self) -> SemanticDuplicates:
        """Count the rows, the clusters and what would be dropped at a few thresholds."""
        sizes = np.bincount(self.clusters[self.clusters >= 0])
        return SemanticDuplicates(
            rows=len(self.keys),
            clusters=int((sizes > 0).sum()),
            largest=int(sizes.max(initial=0)),
            zero_vectors=int((self.clusters < 0).sum()),
            equal_vectors=len(self.groups) - len(np.unique(self.groups)),
            removable={f"{eps:g}": int((self.scores < eps).sum()) for eps in THRESHOLDS},
        )


def _flops(facts: Mapping[str, Any], width: int) -> float:
    """Operations of a fit: learning the clusters, looking for the nearest of each row, comparing pairs."""
    k = int(facts["k"])
    learned = kmeans.fit_flops(k, width, facts["sampled"], facts["iterations"])
    return learned + 2.0 * width * float(k * facts["distinct"] + facts["pairs"])


def _clusters(
    x: np.ndarray, some: np.ndarray, k: int | None, sample_rows: int | None, how: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Centroids (k, d) of the rows `some`, in canonical order, and how they were learned."""
    chosen = k if k is not None else max(1, round(len(some) ** 0.5))
    size = sample_rows if sample_rows is not None else max(kmeans.POINTS_PER_CENTROID * chosen, 1 << 16)
    drawn = kmeans.unit_rows(x[some[:size]])
    if k is None:
        chosen = min(chosen, max(1, len(drawn) // 2))
    if chosen > len(drawn):
        raise ValueError(
            f"k={k} clusters, but {len(drawn)} distinct rows to learn them on; use k={len(drawn)} or less, or more "
            "sample_rows"
        )
    # rows that are alike but for their last digits are what is looked for: they must not be parted
    try:
        learned = kmeans.kmeans(drawn, chosen, **how, split_narrow=False)
    except kmeans.FewRowsError as few:
        if k is not None:
            raise
        learned = kmeans.kmeans(drawn, few.distinct, **how, split_narrow=False)
    return learned.centroids, {"sampled": len(drawn), "seed": how["seed"], **learned.facts()}


def _assigned(x: np.ndarray, some: np.ndarray, centroids: np.ndarray, several: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroids (m, several) of the rows `some` (m,), and the cosine (m,) to the nearest."""
    directions = Directions(centroids)
    clusters, similarity = np.empty((len(some), several), np.int64), np.empty(len(some))
    for start in range(0, len(some), BLOCK):  # in canonical order, so that the products are the same
        part = slice(start, start + BLOCK)
        clusters[part], cosine = largest_cosines(x[some[part]], directions, several)
        similarity[part] = cosine[:, 0]
    return clusters, similarity


def _numbered(first: np.ndarray) -> np.ndarray:
    """The index at which each value is met first, (n,) int32."""
    _, index, back = np.unique(first, return_index=True, return_inverse=True)
    return np.asarray(index[back], np.int32)
