"""Part files of a score run: a plan of fixed shards, a manifest, and Arrow files that can be checked.

Shard i is the rows [i * shard_rows, (i + 1) * shard_rows). Its part is an Arrow IPC stream, memory-mapped later,
and a small JSON written after it: a part without a JSON that fits is not finished. Nothing here depends on how many
processes write.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from hf_prune.columns import SIDECAR
from hf_prune.data.files import file_digest, remove, write_stream, write_text

FORMAT = 1
MANIFEST = "manifest.json"
_KEYS = set("bytes file flops index input plan process reads rows seconds".split())
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Plan:
    """What a folder holds: scores of `rows` rows by these scorers, in shards of `shard_rows`.

    Args:
        rows: of the dataset.
        shard_rows: of every shard but the last.
        scorers: (class, digest) of each scorer, in their order.
        columns: the columns they write, with their types.
        former: class and digest of each scorer as version 0.1.0 named them; a folder of that time is of this plan too.

    >>> plan = Plan(rows=2500, shard_rows=1000, scorers=(), columns={})
    >>> [plan.shard(i) for i in range(plan.shards)]
    [(0, 1000), (1000, 2000), (2000, 2500)]
    """

    rows: int
    shard_rows: int
    scorers: tuple[tuple[str, str], ...]
    columns: Mapping[str, str]
    former: tuple[tuple[str, str], ...] = ()

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.rows // self.shard_rows)

    def shard(self, index: int) -> tuple[int, int]:
        """First row of a shard, and the row after its last."""
        first = index * self.shard_rows
        return first, min(first + self.shard_rows, self.rows)

    @property
    def digest(self) -> str:
        """Names the plan in every part: a part of another plan is foreign."""
        text = json.dumps([FORMAT, self.rows, self.shard_rows, self.scorers, dict(self.columns)], sort_keys=True)
        return xxhash.xxh3_128_hexdigest(text.encode())

    def to_json(self, versions: Mapping[str, str]) -> str:
        """Text of the manifest."""
        scorers = [{"scorer": name, "digest": digest} for name, digest in self.scorers]
        facts = {"format": FORMAT, "rows": self.rows, "shard_rows": self.shard_rows, "scorers": scorers}
        return json.dumps({**facts, "columns": dict(self.columns), "versions": dict(versions)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a manifest.

        Raises:
            ValueError: it is none, or of a later format.
        """
        try:
            facts = json.loads(text)
            number = int(facts["format"])
            scorers = tuple((str(entry["scorer"]), str(entry["digest"])) for entry in facts["scorers"])
            columns = {str(name): str(dtype) for name, dtype in facts["columns"].items()}
            plan = cls(int(facts["rows"]), int(facts["shard_rows"]), scorers, columns)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise ValueError(f"not a manifest of scores ({error!r})") from error
        if number > FORMAT or plan.shard_rows < 1:
            raise ValueError(f"a manifest of format {number}, this version reads up to {FORMAT}")
        return plan

    def differences(self, other: Plan) -> list[str]:
        """What this plan has and what the other wants, in words; empty where they agree."""
        words = []
        for name in ("rows", "shard_rows", "columns"):
            if getattr(self, name) != getattr(other, name):
                words.append(f"{name} {getattr(self, name)} instead of {getattr(other, name)}")
        if self.scorers != other.scorers:
            ours, theirs = ([f"{name.rpartition(':')[2]} {d[:8]}" for name, d in p.scorers] for p in (self, other))
            words.append(f"scorers {ours} instead of {theirs} (class, then first digits of its digest)")
        return words


def default_shard_rows(rows: int) -> int:
    """Rows of a shard: about 128 shards, whole thousands, from 1,000 to 100,000; a rule of `rows` alone.

    >>> [default_shard_rows(n) for n in (10, 128_001, 10**9)]
    [1000, 2000, 100000]
    """
    return min(100_000, max(1, -(-rows // 128_000)) * 1000)


def part_paths(folder: Path, index: int) -> tuple[Path, Path]:
    """The part file of a shard, and the JSON beside it."""
    return folder / f"part-{index:05d}.arrow", folder / f"part-{index:05d}.json"


def find_plan(folder: Path, plan: Plan, *, exact: bool) -> Plan | None:
    """The plan of the folder, which is `plan` but, where not `exact`, for its `shard_rows`; None where there is none.

    Raises:
        ValueError: the folder has the scores of another plan; the message says what differs.
    """
    manifest = folder / MANIFEST
    try:
        data = manifest.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = Plan.from_json(data.decode("utf-8"))
    except ValueError as error:
        if not _has_parts(folder):
            return None
        raise ValueError(f"{manifest} is {error}; pass overwrite=True to replace it, or another output_dir") from error
    scorers = plan.former if found.scorers == plan.former else plan.scorers
    wanted = Plan(plan.rows, plan.shard_rows if exact else found.shard_rows, scorers, plan.columns)
    different = found.differences(wanted)
    if different and _has_parts(folder):
        raise ValueError(
            f"{folder} holds scores of another run: {'; '.join(different)}; "
            "pass overwrite=True to replace them, or another output_dir"
        )
    return None if different else found


def open_folder(folder: Path, plan: Plan, *, exact: bool, overwrite: bool, versions: Mapping[str, str]) -> Plan:
    """Make the folder that of the plan, and return the plan: where not `exact`, with the `shard_rows` found there.

    Raises:
        ValueError: the folder has the scores of another plan; the message says what differs.
        OSError: the folder cannot be written.
    """
    with explained(folder):
        if overwrite:
            clear(folder)
        found = find_plan(folder, plan, exact=exact)
        if found is None:
            write_text(folder / MANIFEST, plan.to_json(versions), explained)
    return found or plan


def _has_parts(folder: Path) -> bool:
    return any(name.startswith("part-") for name in os.listdir(folder))


def abandon(folder: Path) -> None:
    """Take the manifest away again where no part came of it: the folder is that of no run."""
    with contextlib.suppress(OSError):
        if not _has_parts(folder):
            remove(folder / MANIFEST)


def clear(folder: Path) -> None:
    """Remove what a run wrote into a folder, and nothing else; the manifest goes last."""
    for pattern in ("part-*.arrow", "part-*.json", "joined-*.arrow", SIDECAR, MANIFEST):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def write_facts(folder: Path, index: int, facts: Mapping[str, Any]) -> None:
    """Write the JSON of a part, which makes it a finished one; unsynced, for it is checked when it is read."""
    text = json.dumps({**facts, "check": _check(facts)}, sort_keys=True)
    write_text(part_paths(folder, index)[1], text, explained, sync=False)


def _check(facts: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(dict(facts), sort_keys=True).encode())


def read_facts(folder: Path, index: int, plan: Plan) -> dict[str, Any] | None:
    """The JSON of a part, if the part is finished, of this plan, and undamaged; None where it must be computed."""
    part, facts_path = part_paths(folder, index)
    first, stop = plan.shard(index)
    try:
        facts = json.loads(facts_path.read_bytes())
        check = facts.pop("check", None)  # parts of version 0.1.0 have none
        sound = (
            (check == _check(facts) or (check is None and set(facts) == _KEYS))
            and facts["plan"] == plan.digest
            and facts["index"] == index
            and facts["rows"] == stop - first
            and facts["bytes"] == part.stat().st_size
            and isinstance(facts["reads"], list)
            and isinstance(facts["input"], str)
            and facts["flops"] >= 0
            and facts["seconds"] >= 0
            and facts["file"] == file_digest(part)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return facts if sound else None


def stamp(folder: Path, index: int) -> tuple[int, ...] | None:
    """Tells whether the files of a part have been replaced since; None where they are not there."""
    try:
        stats = [path.stat() for path in part_paths(folder, index)]
    except OSError:
        return None
    return tuple(number for s in stats for number in (s.st_ino, s.st_size, s.st_mtime_ns))


def write_part(folder: Path, index: int, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> dict[str, Any]:
    """Write the part of a shard under a temporary name, sync it, rename it; return its size and digest.

    Raises:
        OSError: the disk is full or may not be written; the message has the next step, no file is left behind.
    """
    part = part_paths(folder, index)[0]
    write_stream(part, schema, batches, explained)
    return {"bytes": part.stat().st_size, "file": file_digest(part)}


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Give errors of the disk the folder's name and the next step."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            reason, step = "no space left", "free some space there, or copy the folder elsewhere and name it"
        elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
            reason, step = "it is not writable", "make it so, or name another folder as output_dir"
        else:
            reason, step = str(error.strerror or error), "mend it, or name another folder as output_dir"
        message = f"scores cannot be written to {folder}: {reason}; {step}. Finished shards are kept: the same call"
        raise type(error)(error.errno, f"{message} goes on from them") from error
