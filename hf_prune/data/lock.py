"""One owner at a time for a folder that several runs may write: the others wait, and say for whom.

The lock is a file in the folder with its owner's host and process, kept fresh by the owner (`filelock.SoftFileLease`,
which needs nothing of the file system but exclusive creation). When its process is gone, on the same host, it is taken
over at once; when another host has not refreshed it for `LEASE` seconds, then.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import SoftFileLease, Timeout

from hf_prune.data.files import TEMPORARY, Explain, remove, sweep, temporary_path, unexplained, write_text

if TYPE_CHECKING:
    from hf_prune.data.world import World

logger = logging.getLogger(__name__)

NAME = ".hf_prune_lock"
LEASE = 60.0  # seconds without a sign of life from another host; the owner gives one each third of them
PATIENCE = 1.0  # seconds before a waiting run says whom it waits for
UNWRITTEN = 2.0  # seconds after which a lock without an owner is that of a process killed while it made it
TURN = 20.0  # seconds that the processes of a launch wait between two words with each other


class LostLockError(RuntimeError):
    """Another run took the folder over, as this one had given no sign of life."""


@dataclass(frozen=True)
class Owner:
    """Who holds a folder, as it says itself."""

    what: str
    host: str
    pid: int
    since: float
    token: str

    def __str__(self) -> str:
        age = max(0, round(time.time() - self.since))
        words = f"{age} s" if age < 120 else f"{age // 60} min" if age < 7200 else f"{age // 3600} h"
        return f"{self.what} by process {self.pid} on {self.host}, for {words}"


def owner_of(folder: Path) -> Owner | None:
    """Who holds the folder or held it when it died; None where nobody says so."""
    try:
        facts = json.loads((folder / f"{NAME}.json").read_bytes())
        return Owner(*(kind(facts[name]) for name, kind in _OWNER.items()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


_OWNER: dict[str, Any] = {"what": str, "host": str, "pid": int, "since": float, "token": str}


class Lock:
    """A held folder.

    Args:
        folder: which is held.
        token: names the hold.
        lease: the lock itself, in the process that took it; None in the other processes of a launch.
    """

    def __init__(self, folder: Path, token: str, lease: SoftFileLease | None) -> None:
        self.folder, self.token, self._lease = folder, token, lease
        self._seen = time.monotonic()

    def check(self) -> None:
        """Call before a file is written.

        Raises:
            LostLockError: the folder belongs to somebody else by now, or the process that took it has ended.
        """
        now = owner_of(self.folder)
        if now is not None and now.token == self.token:
            self._seen = time.monotonic()
            lost = self._lease is not None and self._lease.compromise is not None
        else:  # on another host a file may show late
            lost = self._lease is not None or time.monotonic() - self._seen > LEASE
        if lost:
            words = f"it is used by {now}" if now is not None else "nobody holds it"
            raise LostLockError(
                f"this run lost its hold of {self.folder}: {words}; what is finished is kept, and the same call goes on"
            )


@contextlib.contextmanager
def locked(folder: Path, what: str, world: World | None = None, explained: Explain = unexplained) -> Iterator[Lock]:
    """Hold a folder while the block runs; it is made if it is not there, and goes again if nothing is put into it.

    Waits for as long as somebody else holds it, and says after a second who that is: their work may be what is wanted
    here. Of the processes of one launch the main one takes the hold, for all.

    Args:
        folder: where the lock lies.
        what: "scored", "recorded", ...: what the owner says it does with the folder.
        world: the processes of this launch; by default this one.
        explained: gives errors of the disk in a folder their reason and the next step.

    Raises:
        OSError: the folder cannot be made or written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     with locked(Path(place) / "scores", "scored") as lock:
    ...         lock.check()
    ...         print(owner_of(lock.folder).what)
    ...     os.listdir(place)
    scored
    []
    """
    hold = _Hold(folder, what, explained)

    def attempt() -> str | None:
        return hold.attempt(PATIENCE if hold.told is None else TURN)

    try:
        while (token := attempt() if world is None else world.from_main(attempt)) is None:
            pass
        yield Lock(folder, token, hold.lease if world is None or world.main else None)
    finally:
        hold.release()


def tidy(folder: Path) -> None:
    """Remove what killed runs left in a folder: their locks and their temporary files. Waits for nobody."""
    with contextlib.suppress(OSError):
        names = os.listdir(folder)
        if any(name.startswith(NAME) for name in names):
            hold = _Hold(folder, "tidied", unexplained)
            try:
                _ = hold.attempt(0) or hold.attempt(0)  # the first may move an unwritten one away
            finally:
                hold.release()
        if any(name.endswith(TEMPORARY) for name in names):
            sweep(folder)


class _Hold:
    """Taking and giving back, in one process."""

    def __init__(self, folder: Path, what: str, explained: Explain) -> None:
        self.folder, self.what, self.explained = folder, what, explained
        self.made: list[Path] = []
        self.told: str | None = None
        self.lease: SoftFileLease | None = None
        self._unwritten: tuple[tuple[int, int], float] | None = None

    def attempt(self, seconds: float) -> str | None:
        """Wait some time for the folder; the token of the hold, or None."""
        with self.explained(self.folder):
            self.made += [p for p in (self.folder, *self.folder.parents) if not p.exists() and p not in self.made]
            self.folder.mkdir(parents=True, exist_ok=True)
            lease = SoftFileLease(self.folder / NAME, lease_duration=LEASE, thread_local=False)
            try:
                lease.acquire(timeout=seconds, poll_interval=0.05)
            except Timeout:
                if not self._is_unwritten(lease) and seconds:
                    self._tell()
                return None
            except FileNotFoundError:  # its last owner removed the empty folder
                return None
            self.lease = lease
            token = uuid.uuid4().hex
            facts = {"what": self.what, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
            write_text(self.folder / f"{NAME}.json", json.dumps({**facts, "token": token}), sync=False)
        return token

    def _is_unwritten(self, lease: SoftFileLease) -> bool:
        """Whether the lock that is there names no owner; it is moved away when it has been so for a while."""
        path = self.folder / NAME
        try:
            stat = path.stat()
            if lease.owner is not None:
                return False
            now, key = time.monotonic(), (stat.st_ino, stat.st_mtime_ns)
            if self._unwritten is None or self._unwritten[0] != key:
                self._unwritten = key, now
            if max(now - self._unwritten[1], time.time() - stat.st_mtime) >= UNWRITTEN:
                aside = temporary_path(path)
                os.rename(path, aside)
                remove(aside)
        except FileNotFoundError:
            pass
        return True

    def _tell(self) -> None:
        owner = owner_of(self.folder)
        name = "" if owner is None else owner.token
        if name != self.told:
            logger.warning("%s is being %s; waiting", self.folder, owner or "used by another process")
            self.told = name

    def release(self) -> None:
        """Give back what is held, and remove folders that were made for nothing."""
        if self.lease is not None:
            if self.lease.compromise is None:
                remove(self.folder / f"{NAME}.json")
            with contextlib.suppress(OSError):
                self.lease.release()
        for made in self.made:
            with contextlib.suppress(OSError):
                made.rmdir()
