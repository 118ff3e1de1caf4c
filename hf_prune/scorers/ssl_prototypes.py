"""Self-supervised prototypes: how far a row is from the nearest cluster centre of its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from hf_prune.data.batch import Batch
from hf_prune.data.sample import canonical_sample
from hf_prune.models import memo
from hf_prune.numerics import kmeans
from hf_prune.numerics.search import Directions, Points, largest_cosines, nearest_points
from hf_prune.scorer import Scorer

METRICS = ("cosine", "euclidean", "margin")
PROTOTYPES = ("centroids", "batch")


def prototype_distance(x: np.ndarray, centroids: np.ndarray, metric: str = "cosine") -> tuple[Any, Any]:
    """Distance of each row to its nearest centroid, and which one that is.

    Args:
        x: (n, d) rows.
        centroids: (k, d); k >= 2 for the margin.
        metric: "cosine": `1 - max cos`, in [0, 2]. "euclidean": `min ||x - c||`. "margin": second largest cosine
            minus the largest, in [-2, 0]: rows between two clusters come first.

    Returns:
        (n,) float64 distances, NaN for zero rows under cosine and margin; (n,) int64 centroids, -1 for those.

    >>> x = np.array([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8], [3, 4]])
    >>> distance, cluster = prototype_distance(x, np.eye(2))
    >>> distance.round(6).tolist(), cluster.tolist()
    ([0.0, 0.2, 0.0, 0.2, 0.2], [0, 0, 1, 1, 1])
    """
    if metric == "euclidean":
        return euclidean_distance(np.asarray(x), np.asarray(centroids))
    return cosine_distance(np.asarray(x), Directions(centroids), metric)


def cosine_distance(x: np.ndarray, directions: Directions, metric: str) -> tuple[Any, Any]:
    """As `prototype_distance` for "cosine" and "margin", with centroids that are made ready."""
    found, cosine = largest_cosines(x, directions, count=2 if metric == "margin" else 1)
    distance = cosine[:, 1] - cosine[:, 0] if metric == "margin" else np.maximum(1 - cosine[:, 0], 0)
    return distance, found[:, 0]


def euclidean_distance(x: np.ndarray, centroids: np.ndarray) -> tuple[Any, Any]:
    """As `prototype_distance` for "euclidean"."""
    found, distance = nearest_points(x, Points(centroids))
    return distance, found


@dataclass(frozen=True, eq=False)
class SSLPrototypes(Scorer):
    """Distance to the nearest k-means centre of the embeddings. High = atypical = hard = keep.

    Needs no labels: one embedding column, one clustering, one product a row. Deduplicate first: copies pull a
    centre to themselves and score near 0. On small data keep the easy rows (`prefer="low"`): far rows are then
    mostly noise to the learner.

    Args:
        centroids: (k, d) centres.
        embedding: column with the rows' vectors.
        metric: "cosine" (the paper's), "euclidean", or "margin" (see `prototype_distance`).
        normalize: scale rows to length 1 first; matters for "euclidean" only.
        cluster: write `<name>_cluster`, the nearest centre, as well (-1 for zero rows).
        name: column.
        fitted_on: what the centres were learned on.

    Zero vectors score NaN. Errors: see `Batch.matrix`, and embeddings of another width than the centres.

    Reference: Sorscher et al., 2022, arXiv 2206.14486. The paper does not say which k-means: spherical here, as in
    the SemDeDup code of the same laboratory.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"embedding": [[1.0, 0.1], [1.0, 0.0], [0.0, 1.0], [0.3, 1.0]]})
    >>> ds.map(SSLPrototypes.fit(ds, k=2), batched=True)["ssl_proto"][0]
    0.00124...
    """

    version: ClassVar[int] = 2  # 1 told centers apart in float32 alone
    paper: ClassVar[str] = "Sorscher et al., Beyond neural scaling laws, NeurIPS 2022, arXiv 2206.14486"
    meaning: ClassVar[str] = "far from every cluster centre: atypical, hard; low rows are typical or repeated"
    nan_rows: ClassVar[bool] = True

    centroids: np.ndarray
    embedding: str = "embedding"
    metric: str = "cosine"
    normalize: bool = True
    cluster: bool = False
    name: str = "ssl_proto"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric={self.metric!r} is not one of {METRICS}")
        if np.ndim(self.centroids) != 2 or not np.isfinite(self.centroids).all():
            raise ValueError(f"centroids of shape {np.shape(self.centroids)} are not finite rows of numbers (k, d)")
        if self.metric == "margin" and len(self.centroids) < 2:
            raise ValueError("metric='margin' compares two centroids, there is one; use k=2 or more")

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, by metric."""
        return {
            "cosine": "cosine similarity to the nearest centre; the column is 1 - similarity, in [0, 2]",
            "euclidean": "Euclidean distance to the nearest centre; the column is the distance",
            "margin": "largest minus second largest cosine to a centre; the column is its negative, in [-2, 0]",
        }[self.metric] + "; zero vectors give NaN"

    @classmethod
    def fit(
        cls,
        ds: Any,
        k: int | None = None,
        embedding: str = "embedding",
        seed: int = 0,
        *,
        prototype: str = "centroids",
        metric: str = "cosine",
        spherical: bool = True,
        normalize: bool = True,
        niter: int = 100,
        sample: int | None = None,
        row_id: str | None = "row_id",
        engine: str | None = None,
        cluster: bool = False,
        name: str = "ssl_proto",
    ) -> Self:
        """Learn the centres, on this dataset or on another (a validation set, say) than the one to be scored.

        Args:
            ds: `Dataset` or `IterableDataset` with the embedding column.
            k: number of centres, best within a factor of ten of the number of kinds; None: the root of the rows, at
                most half of those that are distinct.
            embedding: column of rows of floats.
            seed: of the sample and the start; with equal content the centres do not depend on row order.
            prototype: "centroids" of k-means; "batch": one, the mean of all rows learned on, as a large batch has it.
            metric: what the scorer will compute.
            spherical: k-means on the sphere; False: Euclidean.
            normalize: scale rows to length 1 first; False needs `spherical=False`.
            niter: Lloyd iterations at most.
            row_id: column of ids to draw the sample and the start by, if there is one; else by content.
            sample: rows to learn on; None: 256 a centre, and 65 536 at least. Memory: two such samples.
            engine: "faiss" or "torch"; None takes faiss, unless torch has an accelerator that faiss has not.
            cluster: the scorer writes the cluster as well.
            name: the scorer's column.

        Raises:
            ValueError: an empty dataset, k above the number of (distinct) rows, all-zero or non-finite rows.
        """
        if spherical and not normalize:
            raise ValueError("normalize=False contradicts spherical=True; pass spherical=False as well")
        if k is not None and (isinstance(k, bool) or int(k) != k or k < 1):
            raise ValueError(f"k={k} is not a number of centres; use k >= 1, or None for the root of the rows")
        if prototype not in PROTOTYPES:
            raise ValueError(f"prototype={prototype!r} is not one of {', '.join(PROTOTYPES)}")
        if prototype == "batch" and k not in (None, 1):
            raise ValueError(f"prototype='batch' has one centre, not k={k}; leave k out")
        size = sample if sample is not None or k is None else max(kmeans.POINTS_PER_CENTROID * k, 1 << 16)
        drawn = canonical_sample(ds, embedding, f"{cls.__name__}.fit", size or 1 << 18, seed, row_id)
        x, facts = drawn
        if prototype == "batch":
            centre = (kmeans.unit_rows(x) if normalize else x).mean(0, dtype=np.float64)[None].astype(np.float32)
            if metric == "cosine" and not centre.any():
                raise ValueError(f"the rows of {embedding!r} add up to zero, so no row has an angle to their mean")
            return cls(centre, embedding, metric, normalize, cluster, name, {**facts, "prototype": prototype})
        least = 2 if metric == "margin" else 1
        chosen = k or max(least, min(round(facts["rows"] ** 0.5), len(x) // 2))
        if chosen > len(x) and k is not None:
            raise ValueError(
                f"k={k} centres, but {len(x)} rows to learn on"
                + (f" (sample={sample})" if sample is not None and sample < facts["rows"] else "")
                + f"; use k={len(x)} or less"
            )
        x = kmeans.unit_rows(x) if normalize else x
        how: dict[str, Any] = {"seed": seed, "spherical": spherical, "niter": niter, "engine": engine}
        try:
            found = kmeans.kmeans(x, chosen, **how)
        except kmeans.FewRowsError as few:
            if k is not None:
                raise
            if few.distinct < least:
                raise ValueError(
                    f"metric='margin' compares two centroids, but the rows of {embedding!r} are one and the same; use "
                    "another metric"
                ) from few
            chosen = max(least, few.distinct // 2)  # as of few rows: with a centre for each, all would score 0
            found = kmeans.kmeans(x, chosen, **how)
        facts |= {
            "k": chosen,
            "seed": seed,
            "spherical": spherical,
            "engine": found.engine,
            "iterations": found.iterations,
            "objective": round(found.objective, 6),
        }
        return cls(found.centroids, embedding, metric, normalize, cluster, name, facts)

    def columns(self) -> dict[str, str]:
        return {self.name: "float32"} | ({f"{self.name}_cluster": "int32"} if self.cluster else {})

    def companions(self) -> dict[str, str]:
        return {f"{self.name}_cluster": "nearest centre, -1 for a zero vector"} if self.cluster else {}

    def cost(self, batch: Batch) -> float:
        """One product with all centres a row, and the row's share of the fit, as one of those it was fitted on."""
        facts, (k, width), fit = self.fitted_on or {}, self.centroids.shape, 0.0
        if "iterations" in facts:
            fit = kmeans.fit_flops(k, width, facts["sampled"], facts["iterations"]) / float(facts["rows"])
        return (2.0 * self.centroids.size + fit) * batch.n

    def score(self, batch: Batch, rank: int | None) -> Any:
        x = batch.matrix(self.embedding)
        if batch.n and x.shape[1] != self.centroids.shape[1]:
            raise ValueError(
                f"column {self.embedding!r} has width {x.shape[1]}, the centroids {self.centroids.shape[1]}; "
                "fit on embeddings of the same model"
            )
        if self.metric == "euclidean" and self.normalize:
            x = kmeans.unit_rows(x.astype(np.float64))
        if self.metric == "euclidean":
            cluster, distance = nearest_points(x, memo(self, "points", lambda: Points(self.centroids)))
        else:
            directions = memo(self, "directions", lambda: Directions(self.centroids))
            distance, cluster = cosine_distance(x, directions, self.metric)
        return {self.name: distance} | ({f"{self.name}_cluster": cluster} if self.cluster else {})
