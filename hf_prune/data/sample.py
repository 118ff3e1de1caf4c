"""Samples to fit on: drawn by hashed content and put in canonical order, so that row order does not matter."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hf_prune.data import identity
from hf_prune.data.reading import as_float32, vector_blocks
from hf_prune.data.types import Rows


class Sample(NamedTuple):
    """Rows to fit on.

    Attributes:
        x: (m, d) float32 rows in canonical order.
        facts: what they were drawn from, for `fitted_on`.
    """

    x: np.ndarray
    facts: dict[str, Any]


def canonical_sample(
    ds: Rows, embedding: str, who: str, *, size: int | None = None, seed: int = 0, row_id: str | None = None
) -> Sample:
    """Draw non-zero rows by seeded hash of their id, or else of their content, in the order of the hash.

    Ids are better where there are any: an embedding computed with another number of threads differs in its last bits,
    and by content that would be another row. Copies of a row weigh as often as they occur. Needs memory for
    `2 * size` rows, whatever the dataset's length.

    Args:
        ds: `Dataset` or `IterableDataset` with the embedding column.
        embedding: column of vectors.
        who: who reads, for the messages, as "SSLPrototypes.fit".
        size: number of rows to draw, at most; None: all.
        seed: seed of the hashes.
        row_id: column of ids, used if the dataset has it; None: the vector is the id.

    Raises:
        ValueError: what `reading.vector_blocks` raises; or all rows are zero vectors.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"embedding": [[1.0], [2.0], [3.0]]})
    >>> drawn = canonical_sample(ds, "embedding", "demo", size=2)
    >>> drawn.x.shape, drawn.facts["rows"], drawn.facts["drawn_by"]
    ((2, 1), 3, 'content')
    >>> bool((drawn.x == canonical_sample(ds.shuffle(seed=0), "embedding", "demo", size=2).x).all())
    True
    """
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    bound, waiting, total, zeros = np.uint64(2**64 - 1), 0, 0, 0
    content = identity.ContentSum()
    by_id = row_id if ds.column_names is not None and row_id in ds.column_names else None
    for block in vector_blocks(ds, embedding, who, by_id):
        keys = identity.digests(block.x)
        content.add(keys)
        hashes = identity.seeded(keys if block.beside is None else identity.digests(block.beside), seed)
        some = np.asarray(block.x.any(axis=1))
        total, zeros = total + len(some), zeros + int((~some).sum())
        some &= hashes <= bound
        parts.append((hashes[some], as_float32(block.x[some], embedding)))
        waiting += int(some.sum())
        if size is not None and waiting > 2 * size:
            parts = [_lowest(parts, size)]
            bound, waiting = parts[0][0][-1], size
    hashes, x = _lowest(parts, size)
    if not len(x):
        raise ValueError(f"{who}: all {total} rows of {embedding!r} are zero vectors; embed them again")
    facts = {"rows": total, "sampled": len(x), "column": embedding, "content": content.text}
    facts["drawn_by"] = by_id or "content"
    return Sample(x=x, facts={**facts, "zero_rows": zeros} if zeros else facts)


def _lowest(parts: list[tuple[np.ndarray, np.ndarray]], size: int | None) -> tuple[np.ndarray, np.ndarray]:
    hashes, x = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
    order = np.argsort(hashes, kind="stable")[:size]
    return hashes[order], x[order]
