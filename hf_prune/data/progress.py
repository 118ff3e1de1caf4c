"""A bar over rows for what takes more than some seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from hf_prune.shown import printable

T = TypeVar("T")
DELAY = 3.0  # seconds: what is done sooner shows no bar


def shown(blocks: Iterable[T], ds: Any, desc: str, rows: Callable[[T], int]) -> Iterator[T]:
    """The blocks as they come, with a bar of `datasets` (`datasets.disable_progress_bars()` turns it off).

    Args:
        blocks: of rows.
        ds: where they are from; a stream has no length.
        desc: words before the bar.
        rows: how many there are in a block.

    >>> list(shown([[1, 2], [3]], [1, 2, 3], "Reading", len))
    [[1, 2], [3]]
    """
    from datasets.utils import tqdm

    total = len(ds) if hasattr(ds, "__len__") else None
    other = int(os.environ.get("RANK") or 0) > 0  # of the processes of a launch one shows a bar
    with tqdm(total=total, unit=" rows", desc=printable(desc), delay=DELAY, leave=False, disable=other) as bar:
        for block in blocks:
            yield block
            bar.update(rows(block))
