"""The largest cosine to a few directions: low precision finds, float64 tells.

On a processor with bfloat16 tiles (AMX) the products of a block are taken in bfloat16. Every direction that the
rounding could have hidden is then compared in float32, so that the answer does not depend on the path.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 1024  # rows of a product; half of that where there are too few for every thread to have one
SCREENED = 64  # directions: with fewer, the product is not what takes the time
CROWD = 16  # candidates a row at which comparing them costs more than a float32 product


class Directions:
    """(k, d) vectors scaled to length 1 and made ready for many searches.

    Attributes:
        exact: (k, d) float64, to tell.
        across: (d, k) float32, to find.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        exact = np.asarray(vectors, np.float64)
        lengths = np.sqrt(np.einsum("kd,kd->k", exact, exact))
        self.exact = exact / np.where(lengths == 0, 1, lengths)[:, None]
        self.across = np.ascontiguousarray(self.exact.T, np.float32)

    @cached_property
    def rounded(self) -> Any:
        """(d, k) in bfloat16, as a tensor."""
        return _tensor(self.across).bfloat16()


def largest_cosines(x: np.ndarray, directions: Directions, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Find the `count` (1 or 2) directions with the largest cosine to each row.

    Args:
        x: (n, d) finite rows, of any length.
        directions: k of them, at least `count`.
        count: how many, the largest first.

    Returns:
        (n, count) int64 indices and (n, count) float64 cosines; -1 and NaN for zero rows.

    >>> found, cosine = largest_cosines(np.array([[3.0, 4.0], [0.0, 0.0]]), Directions(np.eye(2)))
    >>> found.tolist(), cosine.round(3).tolist()
    ([[1], [-1]], [[0.8], [nan]])
    """
    found = np.empty((len(x), count), np.int64)
    cosine = np.empty((len(x), count))
    screened = count == 1 and _screens(directions)

    def search(part: slice) -> None:
        found[part], cosine[part] = _block(x[part], directions, count, screened)

    _each(len(x), search)
    return found, cosine


def nearest_directions(x: np.ndarray, directions: Directions) -> np.ndarray:
    """Find the direction with the largest cosine to each row, (n,) int64, in float32: the first half of the above.

    Args:
        x: (n, d) float32 rows of length 1.
        directions: k of them.
    """
    found = np.empty(len(x), np.int64)
    screened = _screens(directions)

    def search(part: slice) -> None:
        ones = np.ones(len(x[part]), np.float32)
        if not (screened and _screen(x[part], ones, directions, found[part])):
            found[part] = largest_products(x[part], directions.across)[:, 0]

    _each(len(x), search)
    return found


def _screens(directions: Directions) -> bool:
    return directions.across.shape[1] >= SCREENED and "torch" in sys.modules and tiles()


def _each(n: int, search: Callable[[slice], None]) -> None:
    """Search every block of n rows, in the threads there are."""
    pool = _threads() if n > BLOCK // 2 else None
    size = BLOCK if pool is None or n >= BLOCK * pool._max_workers else BLOCK // 2
    parts = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    for _ in map(search, parts) if pool is None else pool.map(search, parts):
        continue


def _block(x: np.ndarray, directions: Directions, count: int, screened: bool) -> tuple[np.ndarray, np.ndarray]:
    from hf_prune import _kernels

    x = np.ascontiguousarray(x)
    narrow = x.astype(np.float32, copy=False)
    rough = np.empty(len(x), np.float32)
    _kernels.lengths(narrow, rough)
    if not (rough.min() > 1e-15 and rough.max() < 1e15):  # products would leave the range of float32
        wide = x.astype(np.float64)
        largest = np.abs(wide).max(axis=1, keepdims=True)
        x = wide / np.where(largest == 0, 1, largest)
        narrow = x.astype(np.float32)
        _kernels.lengths(narrow, rough)
    found = np.empty((len(x), count), np.int64)
    if not (screened and _screen(narrow, rough, directions, found[:, 0])):
        found = largest_products(narrow, directions.across, count)
    cosine = np.empty((count, len(x)))
    for column in range(count):
        _kernels.cosines(x, found[:, column].copy(), directions.exact, cosine[column])
    cosine = cosine.T
    if count == 2:  # float32 may have put two equals the wrong way round
        turned = cosine[:, 1] > cosine[:, 0]
        cosine[turned], found[turned] = cosine[turned, ::-1], found[turned, ::-1]
    found[np.isnan(cosine[:, 0])] = -1
    return found, cosine


def largest_products(x: np.ndarray, across: np.ndarray, count: int = 1) -> np.ndarray:
    """Indices of the largest float32 products of (b, d) rows with (d, k) columns, (b, count); the lowest of equals."""
    torch = sys.modules.get("torch")
    if torch is None:
        product = x @ across
    else:  # it keeps to the threads of whoever calls it; NumPy's library would start its own in every thread
        product = _room(len(x), across.shape[1])
        torch.mm(_tensor(x), _tensor(across), out=torch.from_numpy(product))
    if count > 1:
        first = product.argmax(1)
        product[np.arange(len(x)), first] = -np.inf
        return np.stack([first, product.argmax(1)], axis=1)
    from hf_prune import _kernels

    found = np.empty(len(x), np.int64)
    _kernels.largest(product.view(np.int32), found)
    return found[:, None]


def _screen(x: np.ndarray, length: np.ndarray, directions: Directions, found: np.ndarray) -> bool:
    """Write the index of the largest product of each row, by bfloat16 tiles and float32 for what comes close.

    False where too many directions come close, or where no product is positive.
    """
    import torch

    from hf_prune import _kernels

    n, k = len(x), directions.across.shape[1]
    tile, product = _tile(BLOCK if n > BLOCK // 2 else BLOCK // 2, x.shape[1], k)
    tile[:n] = _tensor(x)
    torch.mm(tile, directions.rounded, out=product)
    bits = product.view(torch.int16)[:n].numpy()
    return _kernels.screen(bits, np.ascontiguousarray(x), length, directions.exact, CROWD, found)


_local = threading.local()
_pool: ThreadPoolExecutor | None = None


def _threads() -> ThreadPoolExecutor | None:
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


def _forget_threads() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)  # a fork copies no threads


def _room(rows: int, k: int) -> np.ndarray:
    """(rows, k) float32 of this thread: fresh memory for each product would cost as much as reading it."""
    if rows > BLOCK:
        return np.empty((rows, k), np.float32)
    room = _local.__dict__.get("room")
    if room is None or len(room) < rows * k:
        room = _local.room = np.empty(rows * k, np.float32)
    return np.asarray(room[: rows * k]).reshape(rows, k)


def _tile(rows: int, width: int, k: int) -> tuple[Any, Any]:
    """Two sizes of product for this thread: each new one is compiled anew."""
    import torch

    tiles_: dict[int, tuple[Any, Any]] = _local.__dict__.setdefault("tiles", {})
    tile = tiles_.get(rows)
    if tile is None or tile[0].shape[1] != width or tile[1].shape[1] != k:
        tile = torch.zeros(rows, width, dtype=torch.bfloat16), torch.empty(rows, k, dtype=torch.bfloat16)
        tiles_[rows] = tile
    return tile


def _tensor(array: np.ndarray) -> Any:
    """The same memory as a tensor; a copy if it cannot be written to, as torch would warn."""
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy())


@cache
def tiles() -> bool:
    """Whether the processor multiplies bfloat16 in tiles."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
