"""Files: written whole or not at all, and read as if a stranger had made them.

Everything the package writes goes through `whole` (or one of its shorthands): a temporary name beside the target, a
sync, a rename, a sync of the folder. A killed writer leaves a temporary file that carries its host and process id;
`sweep` removes it once that process is gone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

Explain = Callable[[Path], AbstractContextManager[None]]

TEMPORARY = ".hf_prune_tmp"
STALE = 7 * 24 * 3600  # seconds after which what another host left is swept away
MAX_TEXT = 256 << 20  # bytes of a JSON or text file from elsewhere
MAX_DEPTH = 100  # of JSON from elsewhere
_SEAL = b"hf_prune xxh3_128"
_OLD = ".hf_prune_old"  # what a folder was, in the moment before another one takes its place
_WRITER = re.compile(
    rf"\.(?P<host>[0-9a-f]{{8}})-(?P<pid>\d+)-[0-9a-f]{{8}}(?P<end>{re.escape(TEMPORARY)}|{re.escape(_OLD)})$"
)
# errors of the machine, not of the file that is read
_MACHINE = (errno.EACCES, errno.EPERM, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ESTALE)
_NAMED = 160  # characters of a name that a temporary one repeats


class DamagedFileError(ValueError):
    """A file that is not what it should be: cut off, changed, of another kind, or made by a stranger."""


@contextlib.contextmanager
def unexplained(folder: Path) -> Iterator[None]:
    """Leave errors of the disk as they are: the `explained` of writers that need no words of their own."""
    yield


@contextlib.contextmanager
def whole(path: Path, explained: Explain = unexplained, *, sync: bool = True, folder: bool = False) -> Iterator[Path]:
    """Give a temporary path to write to; afterwards it is synced and takes the place of `path` in one step.

    Where the block raises, or the process is killed, `path` stays as it was.

    Args:
        path: the file or folder to be written.
        explained: gives errors of the disk in a folder their reason and the next step.
        sync: False for a small file that may be cut off by a power cut, for readers who notice that.
        folder: make the temporary path, as a folder. Files of a folder are synced too. One that is there is replaced,
            and for a moment lies beside it under another name, from which `sweep` puts it back.

    Raises:
        OSError: the disk is full or may not be written; nothing is left behind.
    """
    temporary = temporary_path(path)
    try:
        if folder:
            with explained(path.parent):
                temporary.mkdir()
        yield temporary
        with explained(path.parent):
            put(temporary, path, sync=sync)
    except BaseException:
        remove(temporary)
        raise


def put(temporary: Path, path: Path, *, sync: bool = True) -> None:
    """Sync a file or folder that is finished, and let it take the place of `path`, on the same disk, in one step."""
    if sync:
        sync_tree(temporary)
    if temporary.is_dir() and path.is_dir():
        _swap(temporary, path)
    else:
        os.replace(temporary, path)
    if sync:
        _sync(path.parent)


def _swap(temporary: Path, path: Path) -> None:
    """Put a folder in the place of another; files in use stay readable, for what is mapped keeps its inode."""
    old = temporary_path(path, _OLD)
    os.rename(path, old)
    try:
        os.rename(temporary, path)
    except BaseException:
        os.rename(old, path)
        raise
    remove(old)


@contextlib.contextmanager
def making(folder: Path) -> Iterator[None]:
    """Make a folder, and those above it, where they are missing; those that stay empty go again."""
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """A folder of this process's own, gone afterwards; those of killed processes are swept first.

    Args:
        parent: where; by default the machine's folder for temporary files.
    """
    where = Path(tempfile.gettempdir()) if parent is None else parent
    sweep(where)
    folder = temporary_path(where / "scratch")
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        remove(folder)


def write_bytes(path: Path, data: bytes, explained: Explain = unexplained, sync: bool = True) -> None:
    """Write a file of bytes, whole or not at all."""
    with whole(path, explained, sync=sync) as temporary, explained(path.parent):
        temporary.write_bytes(data)


def write_text(path: Path, text: str, explained: Explain = unexplained, sync: bool = True) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    write_bytes(path, text.encode(), explained, sync)


def write_stream(
    path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch], explained: Explain, *, seal: bool = False
) -> None:
    """Write an Arrow IPC stream.

    Args:
        path: the file.
        schema: of the batches.
        batches: what to write; what raises while they are made is not the disk's fault.
        explained: gives errors of the disk in a folder their reason and the next step.
        seal: put a digest behind the end of the stream, where readers of Arrow do not look, for `is_sealed`.

    Raises:
        OSError: the disk is full or may not be written; nothing is left behind.
    """
    folder = path.parent
    with whole(path, explained) as temporary:
        with explained(folder):
            sink = pa.OSFile(str(temporary), "wb")
        try:
            with explained(folder):
                writer = pa.ipc.new_stream(sink, schema)
            for batch in batches:
                with explained(folder):
                    writer.write_batch(batch)
            with explained(folder):
                writer.close()
                if seal:
                    sink.flush()
                    sink.write(_SEAL + bytes.fromhex(file_digest(temporary)))
        finally:
            with explained(folder):
                sink.close()


def is_sealed(path: Path) -> bool:
    """Whether the file is there, as `write_stream` with `seal=True` left it; all of it is read."""
    state = xxhash.xxh3_128()
    tail = b""
    try:
        with open(path, "rb") as stream:
            left = os.fstat(stream.fileno()).st_size - len(_SEAL) - state.digest_size
            while left > 0 and (block := stream.read(min(left, 1 << 22))):
                state.update(block)
                left -= len(block)
            tail = stream.read()
    except OSError:
        return False
    return tail == _SEAL + state.digest()


def write_parquet(path: Path, table: pa.Table, explained: Explain) -> None:
    """Write a table of numbers as Parquet, floats with their bytes split: what changes slowly is compressed together.

    Raises:
        OSError: the disk is full or may not be written; nothing is left behind.
    """
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    with whole(path, explained) as temporary, explained(path.parent):
        pq.write_table(table, temporary, compression="zstd", use_dictionary=False, use_byte_stream_split=floats)


def temporary_path(path: Path, end: str = TEMPORARY) -> Path:
    """A name beside `path` that says who writes it; nothing is made."""
    return path.with_name(f"{path.name[:_NAMED]}.{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}{end}")


def remove(path: Path) -> None:
    """Remove a file or a folder of ours, if it is there and can be."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sweep(folder: Path, others: float = STALE) -> int:
    """Remove temporary files and folders in `folder` that killed writers left; return how many.

    Those of this host go when their process is gone, those of others after `others` seconds. A folder that was to be
    replaced, by a writer killed in that moment, gets its name back.
    """
    found = 0
    try:
        names = [name for name in os.listdir(folder) if name.endswith((TEMPORARY, _OLD))]
    except OSError:
        return 0
    for name in names:
        writer = _WRITER.search(name)
        with contextlib.suppress(OSError):
            ours = writer is not None and writer["host"] == _host()
            dead = ours and not is_alive(int(writer["pid"]))  # type: ignore[index]
            if dead or time.time() - (folder / name).lstat().st_mtime > (STALE if ours else others):
                target = folder / name[: writer.start()] if writer else None
                lost = target is not None and not target.exists() and len(target.name) < _NAMED
                if writer and writer["end"] == _OLD and lost:
                    os.rename(folder / name, target)  # type: ignore[arg-type]
                else:
                    remove(folder / name)
                found += 1
    return found


def is_alive(pid: int) -> bool:
    """Whether a process of this host runs; a number that could be none counts as gone."""
    if not 0 < pid < 1 << 31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user, so it is there
        return True
    return True


def _host() -> str:
    """Names where process ids mean the same: a machine, or a container of it."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{socket.gethostname()}|{space}".encode()).hexdigest()[:8]


def sync_tree(path: Path) -> None:
    """Sync a file, or all files of a folder and the folders themselves."""
    if path.is_dir():
        for below in sorted(path.iterdir()):
            sync_tree(below)
    _sync(path)


def _sync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # some file systems do not open folders
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(handle)


def file_digest(path: Path) -> str:
    """xxh3_128 of a file, 4 MB at a time: tells damage and changes, not attacks."""
    state = xxhash.xxh3_128()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            state.update(block)
    return state.hexdigest()


@contextlib.contextmanager
def reading(path: Path | str, what: str, remedy: str) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into one kind of message.

    Args:
        path: the file, for the message.
        what: "saved scorer", "training log", ...: what it should be.
        remedy: what to do about it, after a semicolon.

    Raises:
        FileNotFoundError: it is not there.
        DamagedFileError: it is there, and is not what it should be.
        OSError: it may not be read, or the machine cannot: no fault of the file.
    """
    try:
        yield
    except DamagedFileError:
        raise
    except FileNotFoundError as error:
        if error.filename is None:  # said by a library, of a part of it
            raise _damaged(what, path, error, remedy) from error
        raise FileNotFoundError(error.errno, f"the {what} {path} is missing {error.filename}; {remedy}") from error
    except OSError as error:
        if error.errno in _MACHINE:
            raise
        raise _damaged(what, path, error, remedy) from error
    except RecursionError as error:
        raise DamagedFileError(f"the {what} {path} is nested too deeply to be one; {remedy}") from error
    except MemoryError as error:
        raise DamagedFileError(f"the {what} {path} asks for more memory than there is; {remedy}") from error
    except Exception as error:  # json, Arrow, safetensors, YAML and key errors share no base
        raise _damaged(what, path, error, remedy) from error


def _damaged(what: str, path: Path | str, error: Exception, remedy: str) -> DamagedFileError:
    said = str(error).strip().splitlines() or [""]
    reason = f"{type(error).__name__}: {said[0][:200]}".rstrip(": ")
    return DamagedFileError(f"the {what} {path} is damaged ({reason}); {remedy}")


def read_text(path: Path, what: str, remedy: str, limit: int = MAX_TEXT) -> str:
    """Read a text file in UTF-8 that may come from anywhere; the errors are those of `reading`."""
    with reading(path, what, remedy):
        size = path.stat().st_size
        if size > limit:
            raise ValueError(f"{size} bytes, at most {limit} are read")
        return path.read_bytes().decode("utf-8")
    raise AssertionError  # `reading` raises


def read_json(path: Path, what: str, remedy: str, limit: int = MAX_TEXT) -> dict[str, Any]:
    """Read a JSON object from a file that may come from anywhere; the errors are those of `reading`."""
    return parse_json(read_text(path, what, remedy, limit), path, what, remedy)


def parse_json(text: str, where: Path | str, what: str, remedy: str) -> dict[str, Any]:
    """Read a JSON object from text that may come from anywhere: one object, no key twice, nested 100 deep at most.

    >>> parse_json('{"a": 1, "a": 2}', "log.json", "training log", "record it again")
    Traceback (most recent call last):
    ...
    hf_prune.data.files.DamagedFileError: the training log log.json is damaged (ValueError: key 'a' occurs twice); ...
    """
    with reading(where, what, remedy):
        found = json.loads(text, object_pairs_hook=_once)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}, not an object")
        _check_depth(found)
        return found
    raise AssertionError  # `reading` raises


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} occurs twice")
    return found


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(MAX_DEPTH):
        level = [
            part
            for item in level
            for part in (item.values() if isinstance(item, dict) else item)
            if isinstance(part, (dict, list))
        ]
        if not level:
            return
    raise RecursionError
