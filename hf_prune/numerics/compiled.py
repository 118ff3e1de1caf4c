"""Compiled kernels and the threads that run them. numba is slow to load: import this where a kernel is called."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numba

from hf_prune.numerics import fork

F = TypeVar("F", bound=Callable[..., object])
P = TypeVar("P")
R = TypeVar("R")


def kernel(function: F) -> F:
    """Compile a function over arrays and numbers, once per machine; it runs without the interpreter's lock.

    Never `parallel=True`: its pool does not survive the fork of a `map` worker. Threads come from `in_threads`.
    """
    return _compile(function, {})


def sums(function: F) -> F:
    """`kernel` for sums of floats whose order is free, so that the processor adds several numbers at once."""
    return _compile(function, {"fastmath": {"reassoc", "contract", "nsz"}})


def _compile(function: F, options: dict[str, Any]) -> F:
    options = {"nogil": True, "error_model": "numpy", "boundscheck": False, **options}
    try:
        return cast(F, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # no folder to cache in is writable
        return cast(F, numba.njit(**options)(function))


def thread_count() -> int:
    """Threads this process may use: one in a forked worker, else `OMP_NUM_THREADS` or the processors it may run on."""
    if fork.in_child:
        return 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(function: Callable[[P], R], pieces: Iterable[P]) -> list[R]:
    """Apply a function that gives up the lock (a kernel) to every piece, in the threads there are; results in order.

    >>> in_threads(abs, [-1, 2])
    [1, 2]
    """
    pieces = list(pieces)
    count = min(thread_count(), len(pieces))
    if count < 2:
        return [function(piece) for piece in pieces]
    with ThreadPoolExecutor(count, "hf_prune") as pool:
        return list(pool.map(function, pieces))
