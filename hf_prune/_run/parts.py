"""Part files of a score run: a plan of fixed shards, a manifest, and Arrow files that can be checked.

Shard i is the rows [i * shard_rows, (i + 1) * shard_rows). Its part is an Arrow IPC stream, memory-mapped later,
and a small JSON written after it: a part without a JSON that fits is not finished. Nothing here depends on how many
processes write.
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from hf_prune._files import write_stream, write_text

FORMAT = 1
MANIFEST = "manifest.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Plan:
    """What a folder holds: scores of `rows` rows by these scorers, in shards of `shard_rows`.

    Args:
        rows: of the dataset.
        shard_rows: of every shard but the last.
        scorers: (class, digest) of each scorer, in their order.
        columns: the columns they write, with their types.

    >>> plan = Plan(rows=2500, shard_rows=1000, scorers=(), columns={})
    >>> [plan.shard(i) for i in range(plan.shards)]
    [(0, 1000), (1000, 2000), (2000, 2500)]
    """

    rows: int
    shard_rows: int
    scorers: tuple[tuple[str, str], ...]
    columns: Mapping[str, str]

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
            number = facts["format"]
            scorers = tuple((entry["scorer"], entry["digest"]) for entry in facts["scorers"])
            plan = cls(int(facts["rows"]), int(facts["shard_rows"]), scorers, dict(facts["columns"]))
        except (ValueError, KeyError, TypeError) as error:
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


def open_folder(folder: Path, plan: Plan, *, exact: bool, overwrite: bool, versions: Mapping[str, str]) -> Plan:
    """Make the folder that of the plan, and return the plan: where not `exact`, with the `shard_rows` found there.

    Raises:
        ValueError: the folder has the scores of another plan; the message says what differs.
        OSError: the folder cannot be made or written.
    """
    manifest = folder / MANIFEST
    with explained(folder):
        if overwrite:
            clear(folder)
        if manifest.exists():
            try:
                found = Plan.from_json(manifest.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(
                    f"{manifest} is {error}; pass overwrite=True to replace it, or another output_dir"
                ) from error
            wanted = plan if exact else Plan(plan.rows, found.shard_rows, plan.scorers, plan.columns)
            different = found.differences(wanted)
            if different:
                raise ValueError(
                    f"{folder} holds scores of another run: {'; '.join(different)}; "
                    "pass overwrite=True to replace them, or another output_dir"
                )
            return found
        folder.mkdir(parents=True, exist_ok=True)
        write_text(manifest, plan.to_json(versions), explained, sync=True)
    return plan


def clear(folder: Path) -> None:
    """Remove what a run wrote into a folder, and nothing else; the manifest goes last."""
    for pattern in ("part-*.arrow", "part-*.json", "joined-*.arrow", "*.hf_prune_tmp", "score_columns.json", MANIFEST):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def read_facts(folder: Path, index: int, plan: Plan) -> dict[str, Any] | None:
    """The JSON of a part, if the part is finished, of this plan, and undamaged; None where it must be computed."""
    part, facts_path = part_paths(folder, index)
    first, stop = plan.shard(index)
    try:
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
        sound = (
            facts["plan"] == plan.digest
            and facts["index"] == index
            and facts["rows"] == stop - first
            and facts["bytes"] == part.stat().st_size
            and isinstance(facts["reads"], list)
            and isinstance(facts["input"], str)
            and facts["flops"] >= 0
            and facts["seconds"] >= 0
            and facts["file"] == file_digest(part)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if sound else None


def write_part(folder: Path, index: int, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> dict[str, Any]:
    """Write the part of a shard under a temporary name, sync it, rename it; return its size and digest.

    Raises:
        OSError: the disk is full or may not be written; the message has the next step, no file is left behind.
    """
    part, facts = part_paths(folder, index)
    with explained(folder):
        facts.unlink(missing_ok=True)
    write_stream(part, schema, batches, explained)
    return {"bytes": part.stat().st_size, "file": file_digest(part)}


def file_digest(path: Path) -> str:
    """xxh3_128 of a file, 4 MB at a time."""
    state = xxhash.xxh3_128()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            state.update(block)
    return state.hexdigest()


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
