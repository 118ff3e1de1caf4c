"""Kills a piece of work at every write, sync and rename that it makes: a tool for tests.

    for death in kills("some_module:work", tmp_path, then="some_module:look"):
        assert death.after == ...  # what `look` gave for the folder that the killed `work` left

`work(folder)` runs once undisturbed, in a process that counts what it does to files below `folder`; then once for
each of these events, in a process of its own and on a folder of its own, which dies by SIGKILL just before the event
or, for bytes that are written, after half of them. One process imports everything and forks the others, so that a
death costs milliseconds. Bytes are counted where Python writes them (a few bytes more, right after others to the same
file, are not an event of their own); what compiled code writes by itself (Parquet, safetensors, `torch.save`) counts
as one event: before it, and with half of the file.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import importlib
import io
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FEW = 256  # bytes
COMPILED = (
    "pyarrow.parquet.write_table",
    "safetensors.numpy.save_file",
    "safetensors.torch.save_file",
    "torch.save",
)


@dataclass(frozen=True)
class Death:
    """How one run ended.

    Args:
        event: what was about to happen: "rename scorer.json", "write report.json", ...
        half: half of the bytes were written before the end.
        died: False where the work made fewer steps this time and ended by itself.
        folder: what is left.
        after: what `then` returned for that folder, or {"error": "ValueError: ..."}.
        said: what the work printed.
    """

    event: str
    half: bool
    died: bool
    folder: Path
    after: Any
    said: str

    def __str__(self) -> str:
        return f"{'half-way in' if self.half else 'before'} {self.event} ({self.folder})"


def kills(
    work: str,
    place: Path,
    *,
    start: Path | None = None,
    then: str | None = None,
    how: str = "kill",
    environment: dict[str, str] | None = None,
    timeout: float = 120,
) -> list[Death]:
    """End `work` at each of its events on files, and look at what it leaves.

    Args:
        work: `module:function`, of a module that tests can import; called with a folder.
        place: an empty folder; each run gets a folder `place/<number>/files`.
        start: the folder is a copy of this one; else empty.
        then: `module:function`, called with the folder after the death, in a fresh process that is not disturbed;
            returns what JSON can hold. The death of the undisturbed run is the last of the list, so compare with it.
        how: "kill" by SIGKILL, or "full": the disk is full from the event on, and `work` may catch the OSError.
        environment: variables for the runs; "{folder}" in a value stands for the folder.
        timeout: seconds for all runs together.
    """
    order = {
        "work": work,
        "place": str(place),
        "start": str(start) if start else None,
        "then": then,
        "how": how,
        "environment": environment or {},
        "path": [path for path in sys.path if path],
    }
    from launching import python

    more = {"PYTHONWARNINGS": "ignore"}
    done = python(Path(__file__), input=json.dumps(order).encode(), env=more, deadline=timeout)
    return [
        Death(**{**json.loads(line), "folder": Path(json.loads(line)["folder"])}) for line in done.stdout.splitlines()
    ]


def flipped(data: bytes, most: int = 1000) -> Iterator[tuple[int, bytes]]:
    """Copies of `data` with one bit flipped: in each byte, or in `most` bytes of longer data, ends included."""
    count = min(most, len(data))
    for i in range(count):
        place = i if count == len(data) else round(i * (len(data) - 1) / max(1, count - 1))
        changed = bytearray(data)
        changed[place] ^= 1 << (place * 5 + i) % 8
        yield place, bytes(changed)


# -- inside of the processes ---------------------------------------------------------------


class Shim:
    """Counts the events on files below a folder, and ends the process at one of them."""

    def __init__(self, folder: Path, at: int = -1, half: bool = False, how: str = "kill") -> None:
        self.folder, self.at, self.half, self.how = os.path.realpath(folder), at, half, how
        self.events: list[tuple[str, bool]] = []  # what, and whether it can be cut in half
        self.busy = False
        self.last = ("", "")

    def event(self, what: str, path: Any, cut: Callable[[], None] | None = None, size: int = FEW) -> None:
        """Note an event on `path`, and end here if it is its turn: after `cut` did half of it, if so asked."""
        where = os.path.realpath(path)
        if self.busy or not where.startswith(self.folder + os.sep):
            return
        before, self.last = self.last, (what, where)
        if size < FEW and before == self.last:
            return
        self.events.append((f"{what} {os.path.relpath(where, self.folder)}", cut is not None))
        here = len(self.events) - 1
        if here == self.at or (self.how == "full" and 0 <= self.at <= here and what in ("write", "open", "mkdir")):
            if self.half and cut is not None and here == self.at:
                cut()
            if self.how == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Put itself between Python and the files."""
        for name in ("rename", "replace", "link", "symlink"):
            self._two(name)
        for name in ("unlink", "remove", "mkdir", "rmdir", "truncate"):
            self._one(name)
        for name in ("fsync", "fdatasync", "ftruncate"):
            self._handle(name)
        write = os.write

        def counted_write(fd: int, data: Any) -> int:
            self.event("write", _path_of(fd), lambda: write(fd, bytes(data)[: len(data) // 2]) and None, len(data))
            return write(fd, data)

        os.write = counted_write
        shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined]
        plain = builtins.open
        counted = functools.partial(self._open, plain)
        builtins.open = io.open = counted  # type: ignore[assignment]
        sys.modules["_io"].open = counted  # type: ignore[attr-defined]
        if "pyarrow" in sys.modules:
            import pyarrow

            osfile = pyarrow.OSFile

            def os_file(path: Any, mode: str = "r", **options: Any) -> Any:
                if "w" in mode or "a" in mode:
                    return pyarrow.PythonFile(self._open(plain, path, mode, buffering=0), mode="w")
                return osfile(path, mode, **options)

            pyarrow.OSFile = os_file
        for name in COMPILED:
            module, _, function = name.rpartition(".")
            if module in sys.modules:
                self._compiled(sys.modules[module], function)

    def _one(self, name: str) -> None:
        call = getattr(os, name)

        @functools.wraps(call)
        def counted(path: Any, *rest: Any, **more: Any) -> Any:
            self.event(name, _path_of(path, more.get("dir_fd")))
            return call(path, *rest, **more)

        setattr(os, name, counted)

    def _two(self, name: str) -> None:
        call = getattr(os, name)

        @functools.wraps(call)
        def counted(source: Any, target: Any, **more: Any) -> Any:
            self.event(name, target)
            return call(source, target, **more)

        setattr(os, name, counted)

    def _handle(self, name: str) -> None:
        call = getattr(os, name)

        @functools.wraps(call)
        def counted(fd: Any, *rest: Any) -> Any:
            self.event(name, _path_of(fd))
            return call(fd, *rest)

        setattr(os, name, counted)

    def _open(
        self,
        plain: Any,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if not set(mode) & set("wax+"):
            return plain(file, mode, buffering, encoding, errors, newline, closefd, opener)
        shim = self
        path = _path_of(file)
        if not isinstance(file, int):
            self.event("open", path)

        class Counted(io.FileIO):
            def write(self, data: Any) -> int:
                view = bytes(data)
                shim.event("write", path, lambda: io.FileIO.write(self, view[: len(view) // 2]) and None, len(view))
                return super().write(view)

        text = "b" not in mode
        raw = Counted(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0 and not text:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        wrapped: Any = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
        if not text:
            return wrapped
        wrapped = io.TextIOWrapper(wrapped, encoding, errors, newline, buffering == 1)
        wrapped.mode = mode
        return wrapped

    def _compiled(self, module: Any, function: str) -> None:
        call = getattr(module, function)

        @functools.wraps(call)
        def counted(*args: Any, **more: Any) -> Any:
            given = [a for a in (*args, *more.values()) if isinstance(a, (str, os.PathLike))]
            if not given:
                return call(*args, **more)
            path = os.fspath(given[0])

            def cut() -> None:
                call(*args, **more)
                os.truncate(path, os.path.getsize(path) // 2)

            def quiet() -> None:
                self.busy = True
                try:
                    cut()
                finally:
                    self.busy = False

            self.event("write", path, quiet)
            return call(*args, **more)

        setattr(module, function, counted)


def _path_of(file: Any, folder: int | None = None) -> str:
    if isinstance(file, int):
        try:
            return os.readlink(f"/proc/self/fd/{file}")
        except OSError:
            return ""
    path = os.fsdecode(file)
    return os.path.join(_path_of(folder), path) if isinstance(folder, int) else path


def _function(name: str) -> Callable[[Path], Any]:
    module, _, function = name.partition(":")
    found: Callable[[Path], Any] = getattr(importlib.import_module(module), function)
    return found


def _forked(run: Callable[[], Any], log: Path) -> tuple[int, Any]:
    """Run in a process of its own; give how it ended and what it returned."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        os.setsid()
        with open(log, "ab", buffering=0) as sink:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
        code = 0
        try:
            found = run()
        except BaseException as error:
            traceback.print_exc()
            found, code = {"error": f"{type(error).__name__}: {error}"}, 1
        data = json.dumps(found).encode()
        with contextlib.suppress(OSError):
            while data:
                data = data[_WRITE(write, data) :]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    os.close(write)
    with open(read, "rb") as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(text) if text else None


_WRITE = os.write


def _main() -> None:
    order: dict[str, Any] = json.load(sys.stdin)
    work = _function(order["work"])
    then = _function(order["then"]) if order["then"] else None
    place = Path(order["place"])
    place.mkdir(parents=True, exist_ok=True)

    def once(number: str, at: int, half: bool) -> tuple[int, list[tuple[str, bool]], Path, Any]:
        run = place / number
        folder = run / "files"
        if order["start"]:
            shutil.copytree(order["start"], folder, symlinks=True)
        else:
            folder.mkdir(parents=True)

        def named() -> None:
            os.environ.update({k: v.replace("{folder}", str(folder)) for k, v in order["environment"].items()})

        def disturbed() -> Any:
            named()
            shim = Shim(folder, at, half, order["how"])
            shim.install()
            work(folder)
            return shim.events

        def look() -> Any:
            named()
            return then(folder) if then is not None else None

        code, events = _forked(disturbed, run / "log")
        after = _forked(look, run / "log")[1] if then is not None else None
        return code, events or [], folder, after

    def report(event: str, half: bool, died: bool, folder: Path, after: Any) -> None:
        said = (folder.parent / "log").read_text(errors="replace")
        facts = {"event": event, "half": half, "died": died, "folder": str(folder), "after": after, "said": said}
        print(json.dumps(facts), flush=True)

    code, events, whole, last = once("whole", -1, False)
    if code != 0 or isinstance(events, dict):
        raise SystemExit(f"the undisturbed work failed: {(whole.parent / 'log').read_text(errors='replace')}")
    points: Sequence[tuple[int, bool]] = [
        (at, half) for at, (_, can) in enumerate(events) for half in ((False, True) if can else (False,))
    ]
    for number, (at, half) in enumerate(points):
        code, _, folder, after = once(str(number), at, half)
        report(events[at][0], half, code == -signal.SIGKILL or order["how"] == "full", folder, after)
    report("the end", False, False, whole, last)


if __name__ == "__main__":
    _main()
