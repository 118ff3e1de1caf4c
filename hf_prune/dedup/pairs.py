"""Who stands for whom: each dropped row beside a kept row of its cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_prune.checks import check_dataset
from hf_prune.data.arrow import column_array

if TYPE_CHECKING:
    from datasets import Dataset

STEP = 1 << 13  # pairs compared at a time


class Comparing(Protocol):
    """What says how similar rows are to rows."""

    def similarity(self, left: Any, right: Any) -> Any:
        """Similarity (p,) of rows and rows, two batches of equal length."""


def duplicate_pairs(
    halves: Mapping[str, Dataset],
    *,
    cluster: str = "minhash_cluster",
    scorer: Comparing | None = None,
    row_id: str | None = None,
) -> Dataset:
    """For each dropped row, the kept row of its cluster that stands for it.

    Args:
        halves: datasets "kept" and "dropped", as `split_by_score` gives them.
        cluster: column of cluster ids in both, "minhash_cluster" by default; null and -1 are no cluster.
        scorer: what compares the two rows: something with `similarity(rows, rows)`, as `MinHashDedup` and
            `ExactDedup`. None, the default, compares none.
        row_id: column of row ids in both, to be written beside the numbers of the rows. None by default.

    Returns:
        A `Dataset` with a row for each dropped one, in their order: "dropped" and "kept", row numbers in the two
        halves; "cluster"; "dropped_id" and "kept_id" with `row_id`; "similarity" with `scorer`. Where several rows of a
        cluster were kept, the first stands for the others; where none was, "kept" is null.

    Raises:
        MissingColumnError: one of the columns is not there.
        TypeError: "kept" or "dropped" is no `Dataset`.
        ValueError: `halves` are not "kept" and "dropped".

    >>> import hf_prune as hp
    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"text": ["a dog", "a cat", "a dog"]})
    >>> exact = hp.ExactDedup.fit(ds)
    >>> halves = hp.split_by_score(ds.map(exact, batched=True), "exact", rows=2, one_per="exact_cluster")
    >>> duplicate_pairs(halves, cluster="exact_cluster", scorer=exact).remove_columns("cluster")[0]
    {'dropped': 0, 'kept': 1, 'similarity': 1.0}
    """
    from datasets import Dataset

    if not isinstance(halves, Mapping) or not {"kept", "dropped"} <= set(halves):
        there = sorted(halves) if isinstance(halves, Mapping) else type(halves).__name__
        raise ValueError(
            f"duplicate_pairs takes what split_by_score gives, datasets 'kept' and 'dropped'; it got {there}"
        )
    kept, dropped = (check_dataset(halves[name], "duplicate_pairs") for name in ("kept", "dropped"))
    mine, theirs = column_array(dropped, cluster), column_array(kept, cluster)
    at = pc.index_in(mine, value_set=_joined(theirs))  # the first of equal values
    none = pc.fill_null(pc.equal(mine, -1), True) if pa.types.is_signed_integer(mine.type) else pc.is_null(mine)
    at = pc.if_else(none, pa.scalar(None, pa.int32()), at)
    columns = {
        "dropped": pa.array(np.arange(len(dropped))),
        "kept": _joined(at).cast(pa.int64()),
        "cluster": _joined(mine),
    }
    if row_id is not None:
        columns["dropped_id"] = _joined(column_array(dropped, row_id))
        columns["kept_id"] = _joined(column_array(kept, row_id)).take(columns["kept"])
    if scorer is not None:
        pairs = np.flatnonzero(columns["kept"].is_valid().to_numpy(zero_copy_only=False))
        others = columns["kept"].drop_null().to_numpy()
        similarity = np.full(len(dropped), np.nan)
        for start in range(0, len(pairs), STEP):
            part = slice(start, start + STEP)
            left, right = dropped.select(pairs[part]), kept.select(others[part])
            similarity[pairs[part]] = scorer.similarity(left.with_format(None)[:], right.with_format(None)[:])
        columns["similarity"] = pa.array(similarity, mask=np.isnan(similarity))
    return Dataset(pa.table(columns))


def _joined(values: Any) -> Any:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
