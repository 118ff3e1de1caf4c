"""The most memory that a call takes, for the benchmarks (Linux)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def anonymous() -> int:
    """Bytes of this process that are not pages of a file."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def peak(run: Callable[[], T]) -> tuple[T, int]:
    """What a call returns, and by how many bytes it raised the memory of the process, looked at every 2 ms."""
    before, highest, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            highest[0] = max(highest[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return run(), max(0, highest[0] - before)
    finally:
        done.set()
        watcher.join()
