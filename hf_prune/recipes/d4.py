"""D4: semantic deduplication, then prototypes of what is left."""

from __future__ import annotations

from typing import Any

from hf_prune.checks import check_dataset
from hf_prune.dedup.semdedup import SemDeDup
from hf_prune.prune.filter import filter_by_score
from hf_prune.run.score import score
from hf_prune.scorers.ssl_prototypes import SSLPrototypes


def d4(
    ds: Any,
    dedup_keep: float = 0.75,
    proto_keep: float = 1 / 3,
    k: int | None = None,
    *,
    embedding: str = "embedding",
    order: str = "hard",
    second: bool = False,
    seed: int = 0,
    row_id: str | None = "row_id",
    one_per: str | None = None,
) -> Any:
    """Drop semantic duplicates, cluster the rest anew, and drop what is nearest to the new centres.

    Duplicates make dense clusters of their own, so centres learned before they go are theirs: hence the second
    clustering. Run it on data without exact and near copies. `dedup_keep * proto_keep` of the rows is left; the paper
    takes 0.75 for the first.

    Args:
        ds: a `Dataset` with the embedding column.
        dedup_keep: fraction of the rows that SemDeDup leaves: floor(dedup_keep * n + 0.5).
        proto_keep: fraction of those that is kept, the rows farthest from their centre.
        k: number of clusters, of both steps; None: the root of the rows of each step.
        embedding: column with the rows' vectors.
        order: of SemDeDup: "hard", "easy" or "random".
        second: SemDeDup compares each row within its two nearest clusters.
        seed: of both clusterings and of ties.
        row_id: column of ids, used if it is there. Without ids, of rows with equal vectors one is kept, and a
            `ShortWarning` says so if fewer than asked for are left.
        one_per: column of cluster ids of an earlier deduplication: at most one row of each is kept.

    Returns:
        The rows that are left, in dataset order, with the columns "semdedup", "semdedup_cluster", "semdedup_group" and
        "ssl_proto".

    Raises:
        TypeError: no `Dataset`.
        ValueError: a fraction that is none, or what SemDeDup, the prototypes and `filter_by_score` refuse.

    Reference: Tirumala et al., 2023, arXiv 2308.12284.

    >>> import numpy as np
    >>> from datasets import Dataset
    >>> angle = np.deg2rad([0, 10, 30, 60, 61])
    >>> ds = Dataset.from_dict({"embedding": np.column_stack([np.cos(angle), np.sin(angle)]), "degrees": angle})
    >>> np.rad2deg(d4(ds, 0.8, 0.5, k=1)["degrees"]).round().tolist()
    [0.0, 61.0]
    """
    check_dataset(ds, "d4")
    for name, value in (("dedup_keep", dedup_keep), ("proto_keep", proto_keep)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise ValueError(f"{name}={value!r} is not a fraction; use 0 < {name} <= 1")
    alike = SemDeDup.fit(ds, k, embedding, order, seed=seed, second=second, row_id=row_id)
    group = one_per or (None if alike.row_id else f"{alike.name}_group")
    how = {"seed": seed, "row_id": row_id, "nulls": "drop"}
    left = filter_by_score(score(ds, alike), alike.name, keep=dedup_keep, one_per=group, **how)  # type: ignore[arg-type]
    near = SSLPrototypes.fit(left, k, embedding, seed, row_id=row_id)
    return filter_by_score(score(left, near), near.name, keep=proto_keep, **how)  # type: ignore[arg-type]
