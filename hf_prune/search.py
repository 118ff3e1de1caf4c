"""The largest cosine to a few directions: low precision finds, float64 tells.

On a processor with bfloat16 tiles (AMX) the products of a block are taken in bfloat16. Every direction that the
rounding could have hidden is then compared in float64, so that the answer does not depend on the path.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

BLOCK = 1024  # rows: a block and its products stay in the cache
SCREENED = 128  # directions: with fewer, the product is not what takes the time
ROUNDING = 2.0**-9  # relative, of one number in bfloat16
CROWD = 16  # candidates a row at which comparing them costs more than a float32 product


class Directions(NamedTuple):
    """(k, d) unit vectors made ready for many searches."""

    exact: np.ndarray
    across: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray) -> Directions:
        """Scale (k, d) vectors to length 1."""
        exact = np.asarray(vectors, np.float64)
        lengths = np.sqrt(np.einsum("kd,kd->k", exact, exact))
        exact = exact / np.where(lengths == 0, 1, lengths)[:, None]
        return cls(exact, np.ascontiguousarray(exact.T, np.float32))


def largest_cosines(x: np.ndarray, directions: Directions, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Find the `count` (1 or 2) directions with the largest cosine to each row.

    Args:
        x: (n, d) finite rows, of any length.
        directions: k of them, at least `count`.
        count: how many, the largest first.

    Returns:
        (n, count) int64 indices and (n, count) float64 cosines; -1 and NaN for zero rows.

    >>> found, cosine = largest_cosines(np.array([[3.0, 4.0], [0.0, 0.0]]), Directions.of(np.eye(2)))
    >>> found.tolist(), cosine.round(3).tolist()
    ([[1], [-1]], [[0.8], [nan]])
    """
    found = np.empty((len(x), count), np.int64)
    cosine = np.empty((len(x), count))
    # fresh memory for each block would cost more than the sums in it
    room = np.empty((2, min(BLOCK, len(x)), x.shape[1]))
    with _screen(directions, len(x), count) as screen:
        for start in range(0, len(x), BLOCK):
            part = slice(start, start + BLOCK)
            found[part], cosine[part] = _block(x[part], directions, count, screen, room)
    return found, cosine


def _block(
    x: np.ndarray, directions: Directions, count: int, screen: Screen | None, room: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    wide, near = room[:, : len(x)]
    wide[:] = x
    length = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    zero = length == 0
    length[zero] = 1
    if length.max() > 1e15 or length.min() < 1e-15:  # products would leave the range of float32
        wide /= length[:, None]
        x, length = wide, np.ones_like(length)
    narrow = x.astype(np.float32, copy=False)
    found = None if screen is None else screen.find(narrow, wide, length)
    if found is None:
        found = largest_products(narrow, directions.across, count)
    cosine = np.empty(found.shape)
    for column in range(count):
        np.take(directions.exact, found[:, column], axis=0, out=near, mode="clip")
        cosine[:, column] = np.einsum("nd,nd->n", wide, near) / length
    if count == 2:  # float32 may have put two equals the wrong way round
        turned = cosine[:, 1] > cosine[:, 0]
        cosine[turned], found[turned] = cosine[turned, ::-1], found[turned, ::-1]
    found[zero], cosine[zero] = -1, np.nan
    return found, cosine


def largest_products(x: np.ndarray, across: np.ndarray, count: int = 1) -> np.ndarray:
    """Indices of the largest float32 products of (b, d) rows with (d, k) columns, (b, count); the lowest of equals."""
    product = x @ across
    first = product.argmax(1)
    if count == 1:
        return np.asarray(first[:, None])
    product[np.arange(len(x)), first] = -np.inf
    return np.stack([first, product.argmax(1)], axis=1)


class Screen:
    """Products in bfloat16 tiles, and float64 for whatever comes close to the largest.

    One thread and one tile shape: a tile is done in less time than it takes to wake a second thread on a busy
    machine, and a product of a new shape is compiled anew.
    """

    def __init__(self, directions: Directions) -> None:
        import torch

        self.exact = directions.exact
        self.across = torch.from_numpy(directions.across).bfloat16()
        width, k = directions.across.shape
        self.tile = torch.zeros(BLOCK, width, dtype=torch.bfloat16)
        self.product = torch.empty(BLOCK, k, dtype=torch.bfloat16)
        self.bits = self.product.view(torch.int16)  # of positive numbers in their order; read at twice the speed

    def find(self, x: np.ndarray, wide: np.ndarray, length: np.ndarray) -> np.ndarray | None:
        """Index of the largest product of each row, (n, 1); None where too many directions come close."""
        import torch

        n, k = len(x), self.product.shape[1]
        self.tile[:n] = torch.from_numpy(x)
        torch.mm(self.tile, self.across, out=self.product)
        top = (self.bits[:n].amax(1).to(torch.int32) << 16).view(torch.float32).numpy()
        # |x.v - x'.v'| <= |x| (two roundings, and the sum in float32), then the product's own; for each of two
        bar = top - 2 * (length * (2 * ROUNDING + 1e-4) + np.abs(top) * ROUNDING * 1.01)
        if not bar.min() > 0:
            return None
        low = (bar.astype(np.float32).view(np.int32) >> 16).astype(np.int16)  # rounded down
        row, column = np.divmod(np.flatnonzero(self.bits[:n].numpy() >= low[:, None]), k)
        if len(row) > CROWD * n:
            return None
        first = np.searchsorted(row, np.arange(n))
        found = column[first]
        several = np.repeat(np.diff(first, append=len(row)) > 1, np.diff(first, append=len(row)))
        if several.any():
            row, column = row[several], column[several]
            close = np.einsum("nd,nd->n", wide[row], self.exact[column])
            order = np.lexsort((column, -close, row))
            lead = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
            found[row[lead]] = column[lead]
        return found[:, None]


@contextlib.contextmanager
def _screen(directions: Directions, n: int, count: int) -> Iterator[Screen | None]:
    """Give a screen where it pays: many directions, a processor with tiles, and torch in use already."""
    torch = sys.modules.get("torch")
    if torch is None or count > 1 or n < BLOCK // 2 or directions.across.shape[1] < SCREENED or not _tiles():
        yield None
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield Screen(directions)
    finally:
        torch.set_num_threads(threads)


@cache
def _tiles() -> bool:
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
