"""Compiled kernels and the threads that run them. numba is slow to load: import this where a kernel is called."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numba
import numpy as np

from hf_prune.numerics import fork

F = TypeVar("F", bound=Callable[..., object])
P = TypeVar("P")
R = TypeVar("R")


def kernel(function: F) -> F:
    """Compile a function over arrays and numbers, once per machine; it runs without the interpreter's lock.

    Never `parallel=True`: its pool does not survive the fork of a `map` worker. Threads come from `in_threads`.
    """
    return _compile(function, {})


def inlined(function: F) -> F:
    """A part of kernels, put into each by numba itself: sooner compiled than a small kernel that kernels call."""
    return _compile(function, {"inline": "always"})


def sums(function: F) -> F:
    """`kernel` for sums of floats whose order is free, so that the processor adds several numbers at once."""
    return _compile(function, {"fastmath": {"reassoc", "contract", "nsz"}})


def _compile(function: F, options: dict[str, Any]) -> F:
    # nobody calls kernels through C: without that wrapper a kernel compiles sooner
    options = {"nogil": True, "error_model": "numpy", "boundscheck": False, "no_cfunc_wrapper": True, **options}
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


def read_only(array: np.ndarray) -> np.ndarray:
    """A view that cannot be written to, as an array from a file cannot: a kernel is compiled for those alone.

    >>> read_only(np.zeros(3)).flags.writeable
    False
    """
    view = array.view()
    view.flags.writeable = False
    return view


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
