"""All rows of an embedding column at once, told apart: for methods that compare rows with each other."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hf_prune.data import identity
from hf_prune.data.reading import as_float32, batches, vector_blocks


class Whole(NamedTuple):
    """Rows of a dataset and who they are.

    Attributes:
        x: (n, d) float32.
        keys: (n,) digests of ids, or of the vectors.
        hashes: (n,) seeded hashes of the keys.
        first: (n,) for each row that of the rows with its vector whose hash is least.
        distinct: rows that are their own `first`, by hash: a canonical order.
        by_id: whether keys are of ids; else rows with equal vectors have equal keys.
        facts: what was read.
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
        """One row for each key, in ascending order of keys: what per-row state is kept for."""
        return np.unique(self.keys, return_index=True)[1]


def read_whole(ds: Any, embedding: str, who: str, seed: int = 0, row_id: str | None = None) -> Whole:
    """Read an embedding column into memory: 8 bytes a number while reading, 4 afterwards, and 60 bytes a row.

    Args:
        ds: `Dataset` or `IterableDataset`.
        embedding: column of rows of floats.
        who: who reads, for the messages.
        seed: of the hashes.
        row_id: column of ids, used if it is there; else the vectors tell rows apart.

    Raises:
        ValueError: as `reading.vector_blocks`; an id that occurs twice.
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
        "told_apart_by": row_id if by_id else "content",
    }
    return Whole(x, keys, hashes, first, by_hash[np.sort(lead)], by_id, facts)
