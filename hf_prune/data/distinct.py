"""All rows of an embedding column at once, and which are copies: for methods that compare rows with each other."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hf_prune.data import identity
from hf_prune.data.reading import as_float32, batches, vector_blocks
from hf_prune.data.types import Rows


class Whole(NamedTuple):
    """Rows of a dataset and who they are.

    Attributes:
        x: (n, d) float32 rows.
        keys: (n,) uint64 digests of ids, or of the vectors.
        hashes: (n,) uint64 seeded hashes of the keys.
        first: (n,) int64 index of the row with the same vector whose hash is lowest.
        distinct: (m,) int64 indices of the rows that are their own `first`, by hash: a canonical order.
        by_id: whether keys are digests of ids; else rows with equal vectors have equal keys.
        facts: what was read, for `fitted_on`.
    """

    x: np.ndarray
    keys: np.ndarray
    hashes: np.ndarray
    first: np.ndarray
    distinct: np.ndarray
    by_id: bool
    facts: dict[str, Any]

    @property
    def by_key(self) -> np.ndarray:
        """Indices (k,) of one row for each key, in ascending order of keys: what per-row state is kept for."""
        return np.unique(self.keys, return_index=True)[1]


def read_whole(ds: Rows, embedding: str, who: str, *, seed: int = 0, row_id: str | None = None) -> Whole:
    """Read an embedding column into memory: 8 bytes a number while reading, 4 afterwards, and 60 bytes a row.

    Args:
        ds: `Dataset` or `IterableDataset` with the embedding column.
        embedding: column of vectors.
        who: class that reads, for the messages.
        seed: seed of the hashes.
        row_id: column of ids, used if the dataset has it; None: rows are known by their vectors.

    Raises:
        ValueError: what `reading.vector_blocks` raises; an id that occurs twice.

    >>> from datasets import Dataset
    >>> whole = read_whole(Dataset.from_dict({"embedding": [[1.0], [2.0], [1.0]]}), "embedding", "Demo")
    >>> len(whole.distinct), bool(whole.first[0] == whole.first[2]), whole.facts["known_by"]
    (2, True, 'content')
    """
    by_id = row_id is not None and ds.column_names is not None and row_id in ds.column_names
    parts, contents, ids = [], [], []
    for block in vector_blocks(ds, embedding, f"{who}.fit", row_id if by_id else None):
        parts.append(as_float32(block.x, embedding))
        contents.append(identity.digests(block.x))
        if block.beside is not None:
            ids.append(identity.digests(block.beside))
    x = parts[0] if len(parts) == 1 else np.concatenate(parts)
    del parts
    content = np.concatenate(contents)
    keys = np.concatenate(ids) if by_id else content
    if by_id and len(np.unique(keys)) < len(keys):
        identity.check_unique([value for batch in batches(ds, [str(row_id)], who) for value in batch[str(row_id)]])
    hashes = identity.seeded(keys, seed)
    by_hash = np.argsort(hashes, kind="stable")
    _, lead, copy_of = np.unique(content[by_hash], return_index=True, return_inverse=True)
    first = np.empty(len(x), np.int64)
    first[by_hash] = by_hash[lead[copy_of]]
    whole = identity.ContentSum()
    whole.add(content)
    facts = {
        "rows": len(x),
        "distinct": len(lead),
        "column": embedding,
        "content": whole.text,
        "known_by": row_id if by_id else "content",
    }
    return Whole(x=x, keys=keys, hashes=hashes, first=first, distinct=by_hash[np.sort(lead)], by_id=by_id, facts=facts)
