"""D4: semantic deduplication, then prototypes of what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from hf_prune.checks import check_dataset, check_number
from hf_prune.data.types import KeepFirst
from hf_prune.dedup.semdedup import SemDeDup
from hf_prune.prune.filter import filter_by_score
from hf_prune.run.score import score
from hf_prune.scorers.ssl_prototypes import SSLPrototypes

if TYPE_CHECKING:
    from datasets import Dataset


def d4(
    ds: Dataset,
    *,
    dedup_keep: float = 0.75,
    proto_keep: float = 1 / 3,
    k: int | None = None,
    embedding: str = "embedding",
    keep_first: KeepFirst = "hard",
    clusters_per_row: Literal[1, 2] = 1,
    min_cluster_size: int = 1,
    seed: int = 0,
    row_id: str | None = "row_id",
    one_per: str | None = None,
) -> Dataset:
    """Drop semantic duplicates, cluster the rest anew, and drop what is nearest to the new centroids.

    Duplicates make dense clusters of their own, so centroids learned before they go are theirs: hence the second
    clustering. Run it on data without exact and near copies. `dedup_keep * proto_keep` of the rows is left; the paper
    takes 0.75 for the first.

    Args:
        ds: `Dataset` with the embedding column.
        dedup_keep: fraction of the rows that SemDeDup leaves: floor(dedup_keep * n + 0.5) rows.
        proto_keep: fraction of those that is kept, the rows farthest from their centroid.
        k: number of clusters, of both steps; None: the root of the number of rows of each step.
        embedding: column of vectors.
        keep_first: rows that SemDeDup keeps before others: "hard", "easy" or "random".
        clusters_per_row: number of nearest clusters within which SemDeDup compares each row, 1 or 2.
        min_cluster_size: number of rows below which a cluster of the second clustering is no prototype: with 2 a row
            alone in its cluster is far from the others, not at its own centroid.
        seed: seed of both clusterings and of ties.
        row_id: column of ids, used if the dataset has it. Without ids, of rows with equal vectors one is kept, and a
            `ShortWarning` says so if fewer than asked for are left.
        one_per: column of cluster ids of an earlier deduplication: at most one row of each is kept.

    Returns:
        The rows that are left, in dataset order, with the columns "semdedup", "semdedup_cluster", "semdedup_group" and
        "ssl_proto".

    Raises:
        TypeError: no `Dataset`.
        ValueError: a fraction that is none, or whatever SemDeDup, the prototypes and `filter_by_score` refuse.

    Reference: Tirumala et al., 2023, arXiv 2308.12284.

    >>> import numpy as np
    >>> from datasets import Dataset
    >>> angle = np.deg2rad([0, 10, 30, 60, 61])
    >>> ds = Dataset.from_dict({"embedding": np.column_stack([np.cos(angle), np.sin(angle)]), "degrees": angle})
    >>> np.rad2deg(d4(ds, dedup_keep=0.8, proto_keep=0.5, k=1)["degrees"]).round().tolist()
    [0.0, 61.0]
    """
    check_dataset(ds, "d4")
    for name, value in (("dedup_keep", dedup_keep), ("proto_keep", proto_keep)):
        check_number(name, value, 0, 1, open_low=True)
    both: dict[str, Any] = {"embedding": embedding, "seed": seed, "row_id": row_id}
    how: dict[str, Any] = {"seed": seed, "row_id": row_id, "nulls": "drop"}
    alike = SemDeDup.fit(ds, k=k, keep_first=keep_first, clusters_per_row=clusters_per_row, **both)
    group = one_per or (None if alike.row_id else f"{alike.name}_group")
    left: Dataset = filter_by_score(score(ds, alike), alike.name, keep=dedup_keep, one_per=group, **how)
    near = SSLPrototypes.fit(left, k=k, min_cluster_size=min_cluster_size, **both)
    kept: Dataset = filter_by_score(score(left, near), near.name, keep=proto_keep, **how)
    return kept
