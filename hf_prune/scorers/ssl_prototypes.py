"""Self-supervised prototypes: how far a row is from the nearest centroid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, Self, TypeAlias, get_args

import numpy as np

from hf_prune.checks import check_choice, check_count, warn
from hf_prune.data.batch import Batch
from hf_prune.data.sample import canonical_sample
from hf_prune.data.types import PrototypeMetric, Rows
from hf_prune.models import memo
from hf_prune.numerics import kmeans
from hf_prune.numerics.search import Directions, Points, largest_cosines, nearest_points
from hf_prune.scorer import Scorer
from hf_prune.summary import Summary

Prototype: TypeAlias = Literal["centroids", "batch"]
SEARCHED = 1 << 24  # rows times clusters up to which a k without clusters of one row is looked for: a second or so


def prototype_distance(
    x: np.ndarray, centroids: np.ndarray, *, metric: PrototypeMetric = "cosine"
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each row to its nearest centroid, and which one that is.

    Args:
        x: (n, d) rows.
        centroids: (k, d) centroids; k >= 2 for the margin.
        metric: "cosine": `1 - max cos`, in [0, 2]. "euclidean": `min ||x - c||`. "margin": second largest cosine
            minus the largest, in [-2, 0]: rows between two clusters come first.

    Returns:
        (n,) float64 distances, NaN for zero rows under cosine and margin; (n,) int64 indices of centroids, -1 for
        those.

    >>> x = np.array([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8], [3, 4]])
    >>> distance, cluster = prototype_distance(x, np.eye(2))
    >>> distance.round(6).tolist(), cluster.tolist()
    ([0.0, 0.2, 0.0, 0.2, 0.2], [0, 0, 1, 1, 1])
    """
    if metric == "euclidean":
        nearest, distance = nearest_points(np.asarray(x), Points(centroids))
        return distance, nearest
    return cosine_distance(np.asarray(x), Directions(centroids), metric)


def cosine_distance(
    x: np.ndarray, directions: Directions, metric: PrototypeMetric = "cosine"
) -> tuple[np.ndarray, np.ndarray]:
    """`prototype_distance` for "cosine" and "margin", with centroids that are made ready."""
    nearest, cosine = largest_cosines(x, directions, count=2 if metric == "margin" else 1)
    distance = cosine[:, 1] - cosine[:, 0] if metric == "margin" else np.maximum(1 - cosine[:, 0], 0)
    return distance, nearest[:, 0]


@dataclass(frozen=True, repr=False)
class PrototypesSummary(Summary):
    """What the centroids were learned on.

    Attributes:
        rows: number of rows of the dataset.
        learned_on: number of rows of the sample that was clustered.
        prototypes: number of centroids that distances are taken to.
        smallest: number of rows of the smallest cluster, in the sample.
        median: number of rows of the median cluster.
        largest: number of rows of the largest cluster.
        one_row_clusters: number of clusters of one row, which is its own centroid.
    """

    title: ClassVar[str] = "Self-supervised prototypes"

    rows: int | None
    learned_on: int | None
    prototypes: int
    smallest: int | None
    median: float | None
    largest: int | None
    one_row_clusters: int | None


@dataclass(frozen=True, eq=False)
class SSLPrototypes(Scorer):
    """Distance to the nearest k-means centroid of the embeddings. High = atypical = hard = keep.

    With centroids c_1 ... c_k of unit vectors:

        score(x) = 1 - max_j <x, c_j> / (||x|| ||c_j||)

    Needs no labels: one embedding column, one clustering, one product a row. Deduplicate first: copies pull a
    centroid to themselves and score near 0. On small data keep the easy rows (`prefer="low"`): far rows are then
    mostly noise to the learner. A row alone in its cluster scores 0: see `min_cluster_size` of `fit`.

    Args:
        centroids: (k, d) centroids.
        embedding: column of vectors.
        metric: distance: "cosine" (the paper's), "euclidean", or "margin" (see `prototype_distance`).
        normalize: whether rows are scaled to length 1 first; matters for "euclidean" only.
        cluster: whether `<name>_cluster` is written, the index of the nearest centroid (-1 for zero vectors).
        name: score column.
        fitted_on: what the centroids were learned on.

    Zero vectors score NaN.

    Raises:
        ValueError: what `Batch.matrix` raises; vectors of another width than the centroids.

    Reference: Sorscher et al., 2022, arXiv 2206.14486. The paper does not say which k-means: spherical here, as in
    the SemDeDup code of the same laboratory.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"embedding": [[1.0, 0.1], [1.0, 0.0], [0.0, 1.0], [0.3, 1.0]]})
    >>> scorer = SSLPrototypes.fit(ds, k=2)
    >>> ds.map(scorer, batched=True)["ssl_proto"][0]
    0.00124...
    >>> scorer.summary().largest
    2
    """

    version: ClassVar[int] = 2  # 1 compared centroids in float32 alone
    paper: ClassVar[str] = "Sorscher et al., Beyond neural scaling laws, NeurIPS 2022, arXiv 2206.14486"
    meaning: ClassVar[str] = "far from every centroid: atypical, hard; low rows are typical or repeated"
    nan_rows: ClassVar[bool] = True

    centroids: np.ndarray
    _: KW_ONLY
    embedding: str = "embedding"
    metric: PrototypeMetric = "cosine"
    normalize: bool = True
    cluster: bool = False
    name: str = "ssl_proto"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        check_choice("metric", self.metric, get_args(PrototypeMetric))
        if np.ndim(self.centroids) != 2 or not np.isfinite(self.centroids).all():
            raise ValueError(f"centroids of shape {np.shape(self.centroids)} are not finite rows of numbers (k, d)")
        if self.metric == "margin" and len(self.centroids) < 2:
            raise ValueError("metric='margin' compares two centroids, there is one; use k=2 or more")

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, by metric."""
        return {
            "cosine": "cosine similarity to the nearest centroid; the column is 1 - similarity, in [0, 2]",
            "euclidean": "Euclidean distance to the nearest centroid; the column is the distance",
            "margin": "largest minus second largest cosine to a centroid; the column is its negative, in [-2, 0]",
        }[self.metric] + "; zero vectors give NaN"

    @classmethod
    def fit(
        cls,
        ds: Rows,
        *,
        k: int | None = None,
        embedding: str = "embedding",
        metric: PrototypeMetric = "cosine",
        prototype: Prototype = "centroids",
        min_cluster_size: int = 1,
        spherical: bool = True,
        normalize: bool = True,
        seed: int = 0,
        max_iter: int = 100,
        sample_rows: int | None = None,
        row_id: str | None = "row_id",
        engine: kmeans.Engine | None = None,
        cluster: bool = False,
        name: str = "ssl_proto",
    ) -> Self:
        """Learn the centroids, on this dataset or on another (a validation set, say) than the one to be scored.

        Args:
            ds: `Dataset` or `IterableDataset` with the embedding column.
            k: number of clusters, best within a factor of ten of the number of kinds of rows; None: the root of the
                number of rows, at most half of those that are distinct.
            embedding: column of vectors.
            metric: distance that the scorer computes: "cosine", "euclidean" or "margin" (see `prototype_distance`).
            prototype: what is learned: "centroids" of k-means; "batch": one, the mean of all rows learned on, as a
                large batch has it.
            min_cluster_size: number of rows below which a cluster is no prototype. A row alone in its cluster is its
                own centroid and scores 0, as if it were typical; with 2 it has the distance to the nearest centroid of
                the others.
            spherical: whether k-means is on the sphere; else Euclidean.
            normalize: whether rows are scaled to length 1 first; False needs `spherical=False`.
            seed: seed of the sample and of the start; with equal content the centroids do not depend on row order.
            max_iter: number of Lloyd iterations, at most.
            sample_rows: number of rows to learn on; None: 256 a centroid, and 65 536 at least. Memory: two such
                samples.
            row_id: column of ids to draw the sample and the start by, if the dataset has it; None: by content.
            engine: library of the k-means, "faiss" or "torch"; None: the faster one here (see `kmeans`).
            cluster: whether the scorer writes the cluster as well.
            name: score column.

        Raises:
            ValueError: an empty dataset, k above the number of (distinct) rows, all-zero or non-finite rows, no cluster
                of `min_cluster_size` rows.

        Warns:
            UserWarning: clusters of one row that are prototypes; it names a k that has none, if one was found.
        """
        check_choice("prototype", prototype, get_args(Prototype))
        check_choice("metric", metric, get_args(PrototypeMetric))
        check_count("k", k, 2 if metric == "margin" else 1, optional=True)
        check_count("min_cluster_size", min_cluster_size)
        check_count("sample_rows", sample_rows, optional=True)
        if spherical and not normalize:
            raise ValueError("normalize=False contradicts spherical=True; pass spherical=False as well")
        if prototype == "batch" and k not in (None, 1):
            raise ValueError(f"prototype='batch' has one centroid, not k={k}; leave k out")
        size = sample_rows if sample_rows is not None or k is None else max(kmeans.POINTS_PER_CENTROID * k, 1 << 16)
        who = f"{cls.__name__}.fit"
        x, facts = canonical_sample(ds, embedding, who, size=size or 1 << 18, seed=seed, row_id=row_id)
        x = kmeans.unit_rows(x) if normalize else x
        fields: dict[str, Any] = {"embedding": embedding, "metric": metric, "normalize": normalize, "cluster": cluster}
        if prototype == "batch":
            return cls(_mean(x, embedding, metric), **fields, name=name, fitted_on=facts | {"prototype": prototype})
        how: dict[str, Any] = {"seed": seed, "spherical": spherical, "max_iter": max_iter, "engine": engine}
        least = 2 if metric == "margin" else 1
        learned = _clustering(x, embedding, k, least, facts["rows"], how)
        if min_cluster_size == 1:
            _warn_of_lone_rows(x, learned, least, how)
        facts |= {"seed": seed, "spherical": spherical, **learned.facts(), **_sizes(learned.sizes)}
        facts |= {"min_cluster_size": min_cluster_size} if min_cluster_size > 1 else {}
        centroids = _prototypes(learned, min_cluster_size, least)
        return cls(centroids, **fields, name=name, fitted_on=facts)

    def columns(self) -> dict[str, str]:
        return {self.name: "float32"} | ({f"{self.name}_cluster": "int32"} if self.cluster else {})

    def companions(self) -> dict[str, str]:
        return {f"{self.name}_cluster": "index of the nearest centroid, -1 for a zero vector"} if self.cluster else {}

    def cost(self, batch: Batch) -> float:
        """One product with all centroids a row, and the row's share of the fit, as one of those it was fitted on."""
        facts, (k, width), fit = self.fitted_on or {}, self.centroids.shape, 0.0
        if "iterations" in facts:
            k = facts.get("k", k)  # those that are too small for prototypes were learned as well
            fit = kmeans.fit_flops(k, width, facts["sampled"], facts["iterations"]) / float(facts["rows"])
        return (2.0 * self.centroids.size + fit) * batch.n

    def score(self, batch: Batch, rank: int | None) -> Any:
        x = batch.matrix(self.embedding, self.centroids.shape[1], "the centroids")
        if self.metric == "euclidean" and self.normalize:
            x = kmeans.unit_rows(x.astype(np.float64))
        if self.metric == "euclidean":
            cluster, distance = nearest_points(x, memo(self, "points", lambda: Points(self.centroids)))
        else:
            directions = memo(self, "directions", lambda: Directions(self.centroids))
            distance, cluster = cosine_distance(x, directions, self.metric)
        return {self.name: distance} | ({f"{self.name}_cluster": cluster} if self.cluster else {})

    def summary(self) -> PrototypesSummary:
        """Count the prototypes and the rows of their clusters, as they were when fitting."""
        facts = self.fitted_on or {}
        sizes = {name: facts.get(f"{name}_cluster") for name in ("smallest", "median", "largest")}
        return PrototypesSummary(
            rows=facts.get("rows"),
            learned_on=facts.get("sampled"),
            prototypes=len(self.centroids),
            one_row_clusters=facts.get("one_row_clusters"),
            **sizes,
        )


def _mean(x: np.ndarray, embedding: str, metric: PrototypeMetric) -> np.ndarray:
    """The mean (1, d) float32 of all rows (m, d)."""
    mean: np.ndarray = x.mean(0, dtype=np.float64)[None].astype(np.float32)
    if metric == "cosine" and not mean.any():
        raise ValueError(f"the rows of {embedding!r} add up to zero, so no row has an angle to their mean")
    return mean


def _clustering(
    x: np.ndarray, embedding: str, k: int | None, least: int, rows: int, how: Mapping[str, Any]
) -> kmeans.Clustering:
    """K-means of the (m, d) rows of a sample; where k is None, with at least `least` clusters.

    Args:
        x: (m, d) rows in canonical order.
        embedding: column they come from, for the message.
        k: number of clusters; None: the root of `rows`.
        least: smallest number of clusters that the metric can work with.
        rows: number of rows of the whole dataset.
        how: options of `kmeans`.
    """
    chosen = k or max(least, min(round(rows**0.5), len(x) // 2))
    if k is not None and k > len(x):
        raise ValueError(
            f"k={k} clusters, but {len(x)} rows to learn on"
            + (f" of {rows} (see sample_rows)" if len(x) < rows else "")
            + f"; use k={len(x)} or less"
        )
    try:
        return kmeans.kmeans(x, chosen, **how)
    except kmeans.FewRowsError as few:
        if k is not None:
            raise
        if few.distinct < least:
            raise ValueError(
                f"metric='margin' compares two centroids, but the rows of {embedding!r} are one and the same; "
                "use another metric"
            ) from few
        # as of few rows: with a centroid for each, all would score 0
        return kmeans.kmeans(x, max(least, few.distinct // 2), **how)


def _prototypes(learned: kmeans.Clustering, size: int, least: int) -> np.ndarray:
    """Centroids (k, d) of the clusters of at least `size` rows; all of them where `size` is 1."""
    centroids = learned.centroids if size == 1 else learned.centroids[learned.sizes >= size]
    if len(centroids) < least:
        raise ValueError(
            f"{len(centroids)} of {len(learned.centroids)} clusters have {size} rows or more, the largest has "
            f"{learned.sizes.max()}; use a smaller k, or a smaller min_cluster_size"
        )
    return centroids


def _sizes(sizes: np.ndarray) -> dict[str, Any]:
    """Numbers of rows of the clusters, for `fitted_on`."""
    return {
        "smallest_cluster": int(sizes.min()),
        "median_cluster": float(np.median(sizes)),
        "largest_cluster": int(sizes.max()),
        "one_row_clusters": int((sizes == 1).sum()),
    }


def _warn_of_lone_rows(x: np.ndarray, learned: kmeans.Clustering, least: int, how: Mapping[str, Any]) -> None:
    """Warn of clusters of one row, with a k that has none: halved until that is so, where it takes no time to speak of.

    Args:
        x: (m, d) rows learned on.
        learned: their clustering.
        least: smallest number of clusters that the metric can work with.
        how: options of `kmeans`.
    """
    sizes, k = learned.sizes, len(learned.centroids)
    lone = int((sizes == 1).sum())
    if not lone or len(x) == 1:
        return
    ways, better = [], k // 2 if len(x) * k <= SEARCHED else 0
    while better >= least and (kmeans.kmeans(x, better, **how).sizes == 1).any():
        better //= 2
    if better >= least:
        ways = [f"k={better}, which has none"]
    elif len(x) * k > SEARCHED:
        ways = ["a smaller k"]
    if (sizes > 1).sum() >= least:
        ways.append("min_cluster_size=2, by which such rows have the distance to the nearest other centroid")
    many = "1 cluster holds" if lone == 1 else f"{lone} clusters hold"
    warn(
        f"{many} one row only (k={k}), which is its own centroid and scores 0, as if it were typical; use "
        f"{', or '.join(ways) or 'more rows'}"
    )
