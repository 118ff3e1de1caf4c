"""Reading a dataset block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hf_prune.checks import check_dataset
from hf_prune.data.batch import Batch
from hf_prune.data.formats import unformatted
from hf_prune.data.progress import shown

ROWS = 512  # read at once


def batches_of(ds: Any, size: int = ROWS) -> Iterator[Batch]:
    """Blocks of rows of a `Dataset` or a stream.

    Raises:
        TypeError: a `DatasetDict`.
    """
    check_dataset(ds, "task2vec", streams=True)
    blocks = (Batch(rows, "task2vec") for rows in unformatted(ds).iter(size))
    yield from shown(blocks, ds, "Squared gradients", lambda batch: batch.n)
