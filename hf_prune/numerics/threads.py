"""Threads for blocks of rows that torch multiplies, and the memory of each: shared by all searches of this process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

P = TypeVar("P")

BLOCK = 1024  # rows of a product; memory for more is given back after it

_local = threading.local()
_pool: ThreadPoolExecutor | None = None


def torch_threads() -> ThreadPoolExecutor | None:
    """Threads for blocks, each of which computes with one; None where torch is not in use or has one thread.

    One large region for all blocks: a small one for each product costs more than the product when the machine is busy.
    """
    global _pool
    torch = sys.modules.get("torch")
    if torch is None or torch.get_num_threads() < 2:
        return None
    if _pool is None:
        count = torch.get_num_threads()
        ready = threading.Barrier(count + 1)

        def begin() -> None:
            torch.set_num_threads(1)  # of this thread, but also what threads yet to come begin with
            ready.wait()

        _pool = ThreadPoolExecutor(count, "hf_prune", initializer=begin)
        for _ in range(count):
            _pool.submit(int)
        ready.wait()
        torch.set_num_threads(count)
    return _pool


def in_torch_threads(search: Callable[[P], None], parts: Sequence[P]) -> None:
    """Search every part, in the threads there are, each of which computes with one.

    >>> done = [0, 0]
    >>> in_torch_threads(lambda at: done.__setitem__(at, at + 1), range(2))
    >>> done
    [1, 2]
    """
    pool = torch_threads() if len(parts) > 1 else None
    for _ in map(search, parts) if pool is None else pool.map(search, parts):
        continue


def as_tensor(array: np.ndarray) -> Any:
    """The same memory as a tensor; a copy if it cannot be written to, as torch would warn."""
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy())


def scratch(dtype: Any, rows: int, columns: int) -> Any:
    """A (rows, columns) tensor of this thread to write a product to, the same memory at every call.

    Fresh memory for each product would cost as much as reading it.
    """
    import torch

    size = rows * columns
    if rows > BLOCK:
        return torch.empty(rows, columns, dtype=dtype)
    held = _local.__dict__.setdefault("scratch", {})
    if dtype not in held or held[dtype].numel() < size:
        held[dtype] = torch.empty(size, dtype=dtype)
    return held[dtype][:size].view(rows, columns)


def _forget_threads() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)  # a fork copies no threads
