"""The processes of `accelerate launch`, or the one process of a plain run, which never touches torch.

Outcomes are exchanged through small files in the common folder, not by collectives: NCCL gives up after ten minutes,
and a process that has no shard left may wait for hours. So nobody hangs when another fails, and all stop early.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hf_prune.data.files import TEMPORARY, remove, write_text

if TYPE_CHECKING:
    from hf_prune.data.lock import Lock

T = TypeVar("T")


class ElsewhereError(RuntimeError):
    """Another process of the run failed; the message is that of its error."""


class World:
    """Which of how many processes this is.

    Raises:
        RuntimeError: launched as one of several, but the script made accelerate's state as if it were alone: all
            processes would write the same files.

    >>> (World().size, World().index, World().rank)
    (1, 0, None)
    """

    def __init__(self) -> None:
        self.size, self.index = 1, 0
        self.rank: int | None = None
        self.state: Any = None
        accelerate = sys.modules.get("accelerate.state")
        known = bool(accelerate and accelerate.PartialState._shared_state)
        launched = int(os.environ.get("WORLD_SIZE") or 1)
        if not known and launched < 2:
            return
        from accelerate.state import PartialState

        if not known:
            import torch

            # without cpu=True a machine without accelerators gives a world of one under torchrun
            accelerator = torch.accelerator.is_available() if hasattr(torch, "accelerator") else False
            self.state = PartialState() if accelerator else PartialState(cpu=True)
        else:
            self.state = PartialState()
        self.size, self.index = int(self.state.num_processes), int(self.state.process_index)
        if self.size == 1 < launched:
            raise RuntimeError(
                f"this is one of {launched} processes, but accelerate was set up for one; without an accelerator make "
                "its state by PartialState(cpu=True) or Accelerator(cpu=True), or leave that to hf_prune"
            )
        self.rank = int(self.state.local_process_index) if self.size > 1 else None

    @property
    def main(self) -> bool:
        """Whether this process speaks for all: it makes folders and shows the bar."""
        return self.index == 0

    def mine(self, shards: int) -> range:
        """Shards of this process."""
        return range(self.index, shards, self.size)

    def barrier(self) -> None:
        """Wait until all are here."""
        if self.size > 1:
            self.state.wait_for_everyone()

    def gather(self, item: T) -> list[T]:
        """Every process's item, on every process."""
        if self.size == 1:
            return [item]
        from accelerate.utils import gather_object

        gathered: list[T] = gather_object([item])
        return gathered

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` gives on the main process, on every process; if it raises, all raise."""
        if self.size == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        box: list[Any] = [None, None]
        error: Exception | None = None
        if self.main:
            try:
                box[0] = make()
            except Exception as caught:
                error = caught
                box[1] = (type(caught).__name__, _text(caught))
        broadcast_object_list(box)
        if error is not None:
            raise error
        if box[1] is not None:
            raise _elsewhere(0, *box[1])
        return box[0]  # type: ignore[no-any-return]

    def each(self, make: Callable[[], T]) -> list[T]:
        """What `make` gives on every process, on every process; if it raises on one, all raise."""
        if self.size == 1:
            return [make()]
        item: T | None = None
        error: Exception | None = None
        try:
            item = make()
        except Exception as caught:
            error = caught
        told = self.gather((item, None if error is None else (type(error).__name__, _text(error))))
        if error is not None:
            raise error
        for index, (_, failure) in enumerate(told):
            if failure is not None:
                raise _elsewhere(index, *failure)
        return [found for found, _ in told]  # type: ignore[misc]


class Outcomes:
    """One small file of each process in the common folder: done, or the error's text.

    Args:
        lock: the hold of the folder that all processes see; its token names this run, for an earlier one may have left
            its files.
    """

    def __init__(self, world: World, lock: Lock) -> None:
        self.world, self.lock = world, lock

    def _path(self, index: int) -> Path:
        return self.lock.folder / f"outcome-{self.lock.token}-{index}{TEMPORARY}"

    @staticmethod
    def sweep(folder: Path) -> None:
        """Remove what killed runs left; call it with the folder held, before there are outcomes of this run."""
        for left in folder.glob(f"outcome-*{TEMPORARY}"):
            remove(left)

    def tell(self, error: BaseException | None) -> None:
        """Say how this process ended."""
        if self.world.size == 1:
            return
        facts = None if error is None else [type(error).__name__, _text(error)]
        write_text(self._path(self.world.index), json.dumps({"error": facts}), sync=False)

    def check(self) -> set[int]:
        """Processes that are done.

        Raises:
            ElsewhereError: one failed.
            LostLockError: the main one has ended without a word, or another run took the folder over.
        """
        done = set()
        for index in range(self.world.size) if self.world.size > 1 else ():
            try:
                facts = json.loads(self._path(index).read_text(encoding="utf-8"))["error"]
            except FileNotFoundError:
                continue
            if facts is not None and facts[0] != ElsewhereError.__name__:
                raise _elsewhere(index, *facts)
            done.add(index)
        self.lock.check()
        return done

    def wait(self) -> None:
        """Return when all are done, raise when one failed."""
        pause = 0.02
        while self.world.size > 1 and len(self.check()) < self.world.size:
            time.sleep(pause)
            pause = min(1.0, pause * 1.5)
        self.world.barrier()
        if self.world.size > 1:
            remove(self._path(self.world.index))


def _text(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return "\n".join([text, *getattr(error, "__notes__", ())])


def _elsewhere(index: int, kind: str, text: str) -> ElsewhereError:
    return ElsewhereError(f"process {index} failed with {kind}: {text}")
