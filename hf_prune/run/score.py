"""`score`: write score columns beside a dataset, shard by shard, resumable, on one process or many."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from hf_prune.checks import check_split_name
from hf_prune.columns import SIDECAR, sidecar_text
from hf_prune.data.files import sweep, write_text
from hf_prune.data.layout import temporary_cache
from hf_prune.data.lock import Lock, locked, tidy
from hf_prune.data.world import Outcomes, World
from hf_prune.run.arguments import check_rows, columns_of, splits_of
from hf_prune.run.join import join, written_schema
from hf_prune.run.parts import (
    MANIFEST,
    Plan,
    abandon,
    default_shard_rows,
    explained,
    find_plan,
    open_folder,
    part_paths,
    read_facts,
    stamp,
    write_facts,
)
from hf_prune.run.shard import Reader, Rows, input_digest, score_rows, score_shard
from hf_prune.scorer import Scorer, package_versions
from hf_prune.values import class_name, former_digest, former_name, pack


def score(
    ds: Any,
    *scorers: Scorer,
    output_dir: str | Path | None = None,
    batch_size: int = 1000,
    shard_rows: int | None = None,
    splits: str | Sequence[str] | None = None,
    overwrite: bool = False,
    desc: str | None = None,
) -> Any:
    """`ds` with the columns that the scorers write; the data itself is neither copied nor rewritten.

    Scores go to part files of fixed shards in a folder, memory-mapped afterwards. What is there and sound is not
    computed again: call it again after a crash, with any number of processes. A part is redone if it is damaged, or if
    the content of a column that the scorers read has changed in its rows (an image stored as a path is its path).
    Under `accelerate launch`, shard i belongs to process i % processes, and every process gets the whole result; call
    it on all of them, not on the main process alone. A call that needs a folder in which another run is at work waits
    for it, and says so; what is finished is read without waiting or writing.

    Args:
        ds: a `Dataset` of n rows, or a `DatasetDict`.
        scorers: called in this order on each batch; one may read what an earlier one wrote.
        output_dir: folder for the parts (one below it for each split of a `DatasetDict`), seen by all processes. By
            default one in the datasets cache, named by the content: of the scorers, and of the columns that they read
            on the first row or name in a field. So an equal call finds its scores there.
        batch_size: rows a scorer gets at a time.
        shard_rows: rows of a part, which is what a crash can lose. By default a rule of n alone: n / 128 in whole
            thousands, from 1,000 to 100,000.
        splits: of a `DatasetDict`; by default `train`. The others come back as they are.
        overwrite: remove the scores that are in the folder first.
        desc: words before the progress bar.

    Returns:
        A dataset of n rows with its features, split, format and indices mapping, and the new columns. Its fingerprint
        is a function of that of `ds` and of the scorers, so a `map` after it finds its cache.

    Raises:
        TypeError: a stream, or something that is no scorer.
        ValueError: no rows, no scorers, a column that would be written twice or is there already, a split that does
            not exist, or a folder with the scores of another run.
        OSError: the folder cannot be written. Finished shards are kept.
        RuntimeError: another process failed; the message is that of its error.

    >>> import tempfile
    >>> from dataclasses import dataclass
    >>> from datasets import Dataset
    >>> @dataclass(frozen=True, eq=False)
    ... class Length(Scorer):
    ...     text: str = "text"
    ...     name: str = "length"
    ...
    ...     def score(self, batch, rank):
    ...         return [len(t) for t in batch.texts(self.text)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     score(Dataset.from_dict({"text": ["a", "abc"]}), Length(), output_dir=folder)["length"][:]
    [1.0, 3.0]
    """
    from datasets import Dataset

    for name, value in (("batch_size", batch_size), ("shard_rows", 1 if shard_rows is None else shard_rows)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} is not a number of rows; give 1 or more")
    columns = columns_of(scorers)
    chosen = splits_of(ds, splits)
    for split, part in chosen.items():
        check_rows(part, split, scorers)
    world = World()
    done = {}
    several = not isinstance(ds, Dataset)
    if several and output_dir is not None:
        for split in chosen:
            check_split_name(split)
    for split, part in chosen.items():
        folder = None if output_dir is None else Path(output_dir).expanduser().absolute() / (split or "")
        words = desc or " ".join(["Scoring", *([split] if split else [])])
        done[split] = _score(part, scorers, columns, folder, batch_size, shard_rows, overwrite, words, world)
    return type(ds)({**ds, **done}) if several else done[""]


def _score(
    ds: Any,
    scorers: Sequence[Scorer],
    columns: dict[str, str],
    folder: Path | None,
    batch_size: int,
    shard_rows: int | None,
    overwrite: bool,
    desc: str,
    world: World,
) -> Any:
    names = tuple((class_name(type(s)), s.digest) for s in scorers)
    former = tuple((former_name(type(s)), former_digest(s)) for s in scorers)
    plan = Plan(len(ds), shard_rows or default_shard_rows(len(ds)), names, columns, former)
    if len({one.digest for one in world.gather(plan)}) > 1:
        raise ValueError(
            "the processes were given different scorers, or datasets of different lengths; fit with a seed, or fit "
            "on the main process and load what it saved"
        )
    from datasets.fingerprint import Hasher

    fingerprint = Hasher.hash([ds._fingerprint, "hf_prune.score", [s.digest for s in scorers]])
    reader = Reader(ds, columns)
    known: dict[tuple[int, tuple[str, ...]], str] = {}
    if folder is None:
        folder = _default_folder(reader, scorers, plan, world, known)
    at, exact = folder, shard_rows is not None
    at = world.from_main(lambda: at)
    done = _Done(reader, at, known)
    whole = None if overwrite else _finished(done, scorers, plan, exact, world)
    if whole is not None:
        out = None
        try:
            out = _joined(ds, at, *whole, columns, fingerprint, world)
        except FileNotFoundError:  # somebody overwrites it
            if world.size > 1:
                raise
        if all(world.gather(out is not None and done.unchanged())):
            if world.main:
                tidy(at)
            return out
    with locked(at, "scored", world, explained) as lock:
        try:
            world.from_main(lambda: (sweep(at), Outcomes.sweep(at)))
            plan = world.from_main(
                lambda: open_folder(at, plan, exact=exact, overwrite=overwrite, versions=package_versions())
            )
            world.each(lambda: _check_shared(at, world))
            outcomes = Outcomes(world, lock)
            try:
                mine = _score_shards(done, scorers, plan, batch_size, desc, world, outcomes, lock)
            except BaseException as error:
                outcomes.tell(error)
                raise
            outcomes.tell(None)
            outcomes.wait()
            facts = _gathered(mine, world)
            world.from_main(lambda: _write_sidecar(at, _sidecar(scorers, plan, facts)))
            return _joined(ds, at, plan, facts, columns, fingerprint, world)
        except BaseException:
            if world.main:
                abandon(at)
            raise


class _Done:
    """Which parts are finished: of this plan, undamaged, and made of what the dataset holds now.

    Args:
        known: digests of the input, by part and columns read.
    """

    def __init__(self, reader: Reader, folder: Path, known: dict[tuple[int, tuple[str, ...]], str]) -> None:
        self.reader, self.folder, self.known = reader, folder, known
        self._seen: dict[tuple[str, int], tuple[Any, dict[str, Any]]] = {}

    def facts(self, plan: Plan, index: int) -> dict[str, Any] | None:
        """The JSON of a part; None where it must be computed. Files that have not been replaced are checked once."""
        key, now = (plan.digest, index), stamp(self.folder, index)
        before, facts = self._seen.get(key, (None, None))
        if facts is None or before != now or now is None:
            facts = self._checked(plan, index)
            if facts is not None:
                self._seen[key] = now, facts
        return facts

    def unchanged(self) -> bool:
        """Whether the files that were checked are those that are there."""
        return all(stamp(self.folder, index) == before for (_, index), (before, _) in self._seen.items())

    def _checked(self, plan: Plan, index: int) -> dict[str, Any] | None:
        facts = read_facts(self.folder, index, plan)
        if facts is None or not set(facts["reads"]) <= set(self.reader.names):
            return None
        key = (index, tuple(facts["reads"]))
        if key not in self.known:
            self.known[key] = input_digest(self.reader, facts["reads"], *plan.shard(index))
        return facts if self.known[key] == facts["input"] else None


def _finished(
    done: _Done, scorers: Sequence[Scorer], plan: Plan, exact: bool, world: World
) -> tuple[Plan, list[dict[str, Any]]] | None:
    """Plan and facts of a folder where nothing is left to do; None where there is. Nothing is written or waited for."""
    folder = done.folder
    found = world.from_main(lambda: find_plan(folder, plan, exact=exact))
    if found is None:
        return None
    mine: dict[int, dict[str, Any]] = {}
    for index in world.mine(found.shards):
        facts = done.facts(found, index)
        if facts is None:
            break
        mine[index] = facts
    if not all(world.gather(len(mine) == len(world.mine(found.shards)))):
        return None
    whole = _gathered(mine, world)

    def is_described() -> bool:
        try:
            there = (folder / SIDECAR).read_bytes()
        except OSError:
            there = b""
        return there == _sidecar(scorers, found, whole).encode() or not os.access(folder, os.W_OK)

    return (found, whole) if world.from_main(is_described) else None


def _gathered(mine: Mapping[int, dict[str, Any]], world: World) -> list[dict[str, Any]]:
    """Facts of all parts, from those of the processes."""
    facts = {index: entry for own in world.gather(mine) for index, entry in own.items()}
    return [facts[index] for index in sorted(facts)]


def _joined(
    ds: Any,
    folder: Path,
    plan: Plan,
    facts: list[dict[str, Any]],
    columns: dict[str, str],
    fingerprint: str,
    world: World,
) -> Any:
    parts = [part_paths(folder, i)[0] for i in range(plan.shards)]
    found = []

    def put() -> None:
        found.append(join(ds, parts, columns, fingerprint, folder, facts))

    if world.size > 1:  # one process writes the layout, if one is needed, the others find it
        world.from_main(put)
    world.each(put)
    return found[-1]


def _score_shards(
    done: _Done,
    scorers: Sequence[Scorer],
    plan: Plan,
    batch_size: int,
    desc: str,
    world: World,
    outcomes: Outcomes,
    lock: Lock,
) -> dict[int, dict[str, Any]]:
    """Compute those shards of this process that are not there; the facts of all of them."""
    from datasets.utils import tqdm

    mine = world.mine(plan.shards)
    found = {i: facts for i in mine if (facts := done.facts(plan, i)) is not None}
    todo = [i for i in mine if i not in found]
    if not todo:
        return found
    rows = {i: stop - first for i in mine for first, stop in [plan.shard(i)]}
    total, left = sum(rows.values()), sum(rows[i] for i in todo)
    schema = written_schema(dict(plan.columns))
    reader, folder = done.reader, done.folder
    if world.size > 1:
        desc = f"{desc} (process {world.index} of {world.size})"
    with tqdm(total=total, initial=total - left, unit=" rows", desc=desc, disable=not world.main) as bar:
        for i in todo:
            outcomes.check()
            facts = score_shard(reader, scorers, schema, folder, i, plan.shard(i), batch_size, world.rank, bar.update)
            facts |= {"plan": plan.digest, "process": world.index}
            lock.check()
            write_facts(folder, i, facts)
            found[i] = facts
    return found


def _sidecar(scorers: Sequence[Scorer], plan: Plan, facts: Sequence[Mapping[str, Any]]) -> str:
    return sidecar_text(
        [s.describe() for s in scorers],
        rows=plan.rows,
        flops=sum(entry["flops"] for entry in facts),
        seconds=round(sum(entry["seconds"] for entry in facts), 3),
    )


def _write_sidecar(folder: Path, text: str) -> None:
    """Write the sidecar, where it is not there as it should be."""
    path = folder / SIDECAR
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text, explained)


def _check_shared(folder: Path, world: World) -> None:
    """All processes need the same folder; a shared file system may take a moment to show it."""
    for _ in range(50):
        if (folder / MANIFEST).exists():
            break
        time.sleep(0.1)
    else:
        raise ValueError(
            f"process {world.index} does not see {folder}, which the main process made; name a folder on a file "
            "system that all machines share as output_dir"
        )


def _default_folder(
    reader: Reader,
    scorers: Sequence[Scorer],
    plan: Plan,
    world: World,
    known: dict[tuple[int, tuple[str, ...]], str],
) -> Path:
    """A folder in the datasets cache, named by the plan and the content of the columns that the scorers read.

    Which they are is known before the scores are: those read on the first row, and those that a field names. A column
    read in later rows only, and named nowhere, is still part of each part's own digest.
    """
    import datasets

    reads = world.from_main(lambda: _probe(reader, scorers, world.rank))

    def digest_mine() -> dict[int, str]:
        return {i: input_digest(reader, reads, *plan.shard(i)) for i in world.mine(plan.shards)}

    digests = {i: text for own in world.each(digest_mine) for i, text in own.items()}
    known.update({(i, reads): text for i, text in digests.items()})
    text = json.dumps([plan.digest, reads, [digests[i] for i in sorted(digests)]])
    if datasets.is_caching_enabled():
        cache = Path(datasets.config.HF_DATASETS_CACHE)
    else:
        cache = temporary_cache()
    return cache / "hf_prune_scores" / xxhash.xxh3_128_hexdigest(text.encode())


def _probe(reader: Reader, scorers: Sequence[Scorer], rank: int | None) -> tuple[str, ...]:
    """Columns that the scorers read on the first row, or that their fields name."""
    rows = Rows(reader, 0, 1)
    score_rows(rows, scorers, rank)
    named: set[str] = set()
    for scorer in scorers:
        named.update(_strings(json.loads(pack(scorer)[1])))
    return tuple(sorted(rows.read | (named & set(reader.names))))


def _strings(item: Any) -> list[str]:
    if isinstance(item, str):
        return [item]
    if isinstance(item, Mapping):
        item = list(item.values())
    return [text for part in item for text in _strings(part)] if isinstance(item, list) else []
