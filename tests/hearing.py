"""Waits end when they have been seen: `when_said("waiting", go.set)` acts once the library logs these words."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator


class _Ear(logging.Handler):
    def __init__(self, words: str, action: Callable[[], object]) -> None:
        super().__init__(logging.WARNING)
        self.words, self.action, self.heard = words, action, 0

    def emit(self, record: logging.LogRecord) -> None:
        if self.words in record.getMessage():
            self.heard += 1
            if self.heard == 1:
                self.action()


@contextlib.contextmanager
def when_said(words: str, action: Callable[[], object]) -> Iterator[None]:
    """Act the first time that the library warns with these words, which it must do within the block."""
    ear = _Ear(words, action)
    logger = logging.getLogger("hf_prune")
    logger.addHandler(ear)
    try:
        yield
    finally:
        logger.removeHandler(ear)
    assert ear.heard, f"nobody said {words!r}"
