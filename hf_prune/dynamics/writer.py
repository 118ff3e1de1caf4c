"""`LogWriter`: writes the parts of a `TrainingLog`, an epoch at a time, and knows where a run goes on.

Nothing sound is removed: an epoch that is recorded again is moved aside first, and goes when its successor is finished.
"""

from __future__ import annotations

import contextlib
import re
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from hf_prune.checks import check_choice
from hf_prune.data import identity
from hf_prune.data.files import DamagedFileError, file_digest, remove, sweep, write_parquet, write_text
from hf_prune.data.lookup import find
from hf_prune.data.world import World
from hf_prune.dynamics import format as files
from hf_prune.dynamics.format import (
    MANIFEST,
    MODES,
    REPORT,
    ROWS,
    SHOWN,
    TASKS,
    EpochReport,
    Manifest,
    Mode,
    Task,
    epoch_folder,
    finished,
    probabilities_path,
)
from hf_prune.dynamics.recorder import EpochRecorder

CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class LogWriter:
    """Records the forward passes of a run; `TrainingLog.create` makes one.

    What it holds grows with the rows of one epoch (52 bytes a row of this process), not with epochs or classes.

    Attributes:
        epoch: the one that is recorded next: the number of finished ones, or the first damaged one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ids: Any,
        labels: Any,
        mode: Mode,
        task: Task | None,
        id_column: str,
        label: str | None,
        classes: int | None,
        divergence: bool,
        facts: Mapping[str, Any] | None,
        resume: bool,
        world: World | None,
    ) -> None:
        check_choice("mode", mode, MODES)
        check_choice("task", task, (None, *TASKS))
        self.folder, self.id_column = folder, id_column
        self.world = world or World()
        self.ids = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else _arrow(ids)
        self.keys, self.order = _sorted_keys(self.ids, id_column)
        self.recorder = EpochRecorder(folder, len(self.keys), self._id, divergence, self.world, explained)
        if classes is not None:
            self.recorder.settle(task, classes)
        known = {"rows": len(self.keys), "ids": xxhash.xxh3_128_hexdigest(self.keys.tobytes()), "mode": mode}
        self._manifest = Manifest(
            mode,
            task,
            id_column,
            label,
            self.recorder.classes,
            divergence,
            {**known, **(facts or {})},
            uuid.uuid4().hex,
        )
        self._facts = self._manifest.facts
        self._damaged: dict[int, str] = {}
        self._begun: list[Path] | None = None  # folders that were made for this log, if it began here
        self._kept = False  # whether there is a checkpoint that needs it
        given = None if labels is None else _integers(labels, len(self.ids))[self.order]
        self.epoch, self._manifest = self.world.from_main(lambda: (self._open(given, resume), self._manifest))
        self.recorder.task, self.recorder.classes = self._manifest.task, self._manifest.classes

    @property
    def epoch(self) -> int:
        return self.recorder.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.recorder.epoch = epoch

    def positions(self, ids: Any) -> NDArray[np.int64]:
        """Rows of the log (m,) that have these ids.

        Raises:
            ValueError: an id is not in the log; the message lists the first.
        """
        found = find(self.keys, identity.digests(ids))
        if (found < 0).any():
            lost = [ids[int(i)] for i in np.flatnonzero(found < 0)[:SHOWN]]
            raise ValueError(
                f"{_count(int((found < 0).sum()), 'id')} not in the log: {_listed(lost, int((found < 0).sum()))}; "
                f"record the dataset that the log was made for, with its column {self.id_column!r}"
            )
        return found

    def record(self, ids: Any, logits: Any, labels: Any, mask: Any = None) -> None:
        """Record one forward pass.

        Args:
            ids: of the b rows.
            logits: (b, C), or (b, t, V) of a language model, those at a place for the label there; tensor or array.
            labels: (b,) integers from 0 to C - 1, or (b, t) with -100 where there is no label.
            mask: (b, t), true where a token counts; all that have a label by default.

        Raises:
            ValueError: unknown ids, shapes that do not fit, labels out of range (said when the block is worked out, at
                the end of the epoch at the latest).
            TypeError: labels that are not integers.
        """
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        self.record_rows(self.positions(ids), logits, labels, mask)

    def record_rows(self, rows: Any, logits: Any, labels: Any, mask: Any = None) -> None:
        """`record` for callers that know the rows of the log, (b,) integers; nothing waits for a GPU here."""
        self.recorder.record(rows, logits, labels, mask)

    def end_epoch(self) -> EpochReport:
        """Check that each id was seen once, write the epoch, and begin the next. All processes call it.

        With several processes, a sampler fills the last batches with rows that were there already; of these the first
        presentation stays.

        Raises:
            ValueError: ids that were not seen, or more than once; the message lists the first. Or another run has
                recorded here since this one began.
            OSError: the folder cannot be written.
        """
        try:
            self.world.each(self.recorder.work_out)
            padding = self.recorder.drop_padding()
            self.world.from_main(self._make_room)
            self.world.each(self._write_part)
            facts = self.world.from_main(lambda: self._finish(padding))
        finally:
            self.recorder.clear()
        self.epoch += 1
        report = EpochReport(**facts)
        if report.nan and self.world.main:
            warnings.warn(
                f"epoch {report.epoch}: the loss of {_count(report.nan, 'row')} not finite, {self.id_column} "
                f"{_listed(list(report.nan_ids), report.nan)}; recorded as NaN",
                RuntimeWarning,
                stacklevel=2,
            )
        return report

    def discard(self) -> int:
        """Forget what was recorded of an epoch that will not be finished; returns how many rows it were."""
        seen = self.recorder.seen
        self.recorder.clear()
        return seen

    def go_to(self, epoch: int, *, partial: bool = False) -> None:
        """Make `epoch` the one that is recorded next: for a run that goes on from a checkpoint. All processes call it.

        Finished epochs from there on are moved aside, and removed when they are finished again.

        Args:
            epoch: from 0.
            partial: `load_state` follows, with the part of it that was recorded before the checkpoint.

        Raises:
            ValueError: the log does not reach so far, or the probabilities that `divergence` needs are gone.
            DamagedFileError: an epoch before this one is damaged, or the probabilities are.
        """
        self.world.from_main(lambda: self._check_reach(epoch))
        self.recorder.clear()
        self.recorder.forget_maps()
        self.world.from_main(lambda: self._remove_from(epoch, partial))
        self.epoch = epoch

    def save_state(self, path: Path) -> None:
        """Keep what this process has of the epoch so far, beside a checkpoint."""
        self._kept = True
        self.recorder.save(path, self._manifest.run)

    def load_state(self, paths: list[Path]) -> None:
        """Go on in the middle of an epoch, with what `save_state` kept.

        Raises:
            ValueError: it is of another epoch, or the probabilities that `divergence` needs are gone.
            DamagedFileError: a file has changed since it was written.
        """
        self.recorder.clear()
        for path in paths:
            self.recorder.load(path, self._manifest.run)

    @contextlib.contextmanager
    def leaving_nothing(self) -> Iterator[None]:
        """What is refused while a new log has no epoch, and no checkpoint that needs it, leaves no folder behind."""
        try:
            yield
        except BaseException:
            if self._begun is not None and not self.epoch and not self._kept:
                self._take_back()
            raise

    # what follows is one process's work, in the order in which it happens

    def _open(self, labels: NDArray[np.int64] | None, resume: bool) -> int:
        """Make the folder on the main process, or look at the one that is there; returns the epoch to go on with."""
        if (self.folder / MANIFEST).exists():
            if resume:
                return self._continue(labels)
            if finished(self.folder) or any(
                CHECKPOINT.fullmatch(path.name) for path in self.folder.glob("checkpoint-*")
            ):
                raise ValueError(
                    f"{self.folder} holds a training log already; name another folder, go on with it (resume), or "
                    "remove it first"
                )
            warnings.warn(
                f"{self.folder} holds a log without a finished epoch, as a run that failed early leaves it: what there "
                "is of it is removed, and the log begins anew",
                stacklevel=2,
            )
            with explained(self.folder):
                (self.folder / MANIFEST).unlink()  # first: what is left is no log
        elif there := finished(self.folder):
            raise FileNotFoundError(
                f"{self.folder} holds {there} recorded epochs, and their {MANIFEST} is missing; put it back from a "
                "copy, or name another folder"
            )
        self._sweep()
        self._remove_from(0)
        self._begun = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
        try:
            with explained(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            columns = {"key": self.keys, "id": pa.chunked_array(self.ids.take(pa.array(self.order)))}
            if labels is not None:
                columns["label"] = labels
            write_parquet(self.folder / ROWS, pa.table(columns), explained)
            self._manifest = self._manifest.write(self.folder, explained)
        except BaseException:
            self._take_back()
            raise
        return 0

    def _take_back(self) -> None:
        for path in (self.folder / MANIFEST, self.folder / ROWS, *self.folder.glob("probabilities-*")):
            remove(path)
        for path in files.epoch_folders(self.folder).values():
            remove(path)
        self._sweep()
        for path in self._begun or ():
            with contextlib.suppress(OSError):
                path.rmdir()
        self._begun = None

    def _continue(self, labels: NDArray[np.int64] | None) -> int:
        found = Manifest.read(self.folder)
        files.check_rows(self.folder, found)
        keys = files.read_keys(self.folder, found)
        if not np.array_equal(keys, self.keys):
            new = int(np.isin(self.keys, keys, invert=True).sum())
            raise ValueError(
                f"the log in {self.folder} is of another dataset: it has {len(keys)} rows, this one "
                f"{len(self.keys)}, of which {new} are not in it; name another folder"
            )
        differ = []
        for name in ("mode", "id_column", "label", "divergence", "task", "classes"):
            there, wanted = getattr(found, name), getattr(self._manifest, name)
            settled = name not in ("task", "classes") or None not in (there, wanted)  # or the first logits will tell
            if settled and there != wanted:
                differ.append(f"{name}={there!r}, not {wanted!r}")
        if differ:
            raise ValueError(f"the log in {self.folder} has {', '.join(differ)}; go on as it began, or elsewhere")
        if labels is not None and found.task != "language_model":  # whose labels are no column
            self._same_labels(labels)
        mine = self._manifest
        self._manifest = replace(found, task=found.task or mine.task, classes=found.classes or mine.classes)
        self._sweep()
        end = finished(self.folder)
        for epoch in range(end):
            try:
                files.check_parts(self.folder, files.read_report(self.folder, epoch, len(keys)))
            except DamagedFileError as error:
                self._damaged[epoch] = str(error)
        for epoch, path in files.epoch_folders(self.folder).items():
            if epoch >= end:  # cut off
                remove(path)
        for epoch, why, path in files.moved_aside(self.folder):
            if why == "replaced" and epoch < end and epoch not in self._damaged:
                remove(path)
        return min(self._damaged, default=end)

    def _same_labels(self, labels: NDArray[np.int64]) -> None:
        """Refuse labels that are not those that the log began with, where it knows them."""
        there = files.read_rows(self.folder, "label").to_numpy()
        changed = np.flatnonzero(there != labels) if len(there) else np.empty(0, np.int64)
        if len(changed):
            shown = [f"{self._id(i)!r} has {labels[i]}, not {there[i]}" for i in changed[:SHOWN]]
            raise ValueError(
                f"the labels are not those of the log in {self.folder}: {', '.join(shown)}"
                f"{', ...' if len(changed) > SHOWN else ''} ({len(changed)} of {len(there)} rows); go on with the "
                "labels that it began with, or begin a log in another folder"
            )

    def _sweep(self) -> None:
        """Remove the temporary files of killed writers, on whatever host they were."""
        for folder in (self.folder, *files.epoch_folders(self.folder).values()):
            sweep(folder, others=0)

    def _check_reach(self, epoch: int) -> None:
        """Refuse to go on where the log cannot follow."""
        damaged = min(self._damaged, default=epoch)
        if damaged < epoch:
            raise DamagedFileError(
                f"the run goes on with epoch {epoch}, and epoch {damaged} of its log is damaged; nothing was changed. "
                f"Put {epoch_folder(self.folder, damaged)} back from a copy, go on from a checkpoint of epoch "
                f"{damaged} or before, or begin a log in another folder; scores can leave the epoch out (epochs=...). "
                f"What is wrong: {self._damaged[damaged]}"
            )
        if epoch > self.epoch:
            raise ValueError(
                f"the run goes on with epoch {epoch}, but the log in {self.folder} has {self.epoch} finished epochs; "
                "go on from an earlier checkpoint, or begin a log in a new folder"
            )
        if self._manifest.divergence and epoch:
            path = probabilities_path(self.folder, epoch - 1)
            if not path.exists():
                raise ValueError(
                    f"the probabilities of epoch {epoch - 1}, with which epoch {epoch} is compared, are gone: they are "
                    "kept for the last two finished epochs; go on from a later checkpoint, or begin a log in a new "
                    "folder"
                )
            digest = files.read_report(self.folder, epoch - 1, len(self.keys)).probabilities
            files.open_probabilities(path, len(self.keys), self.recorder.classes, digest)

    def _remove_from(self, epoch: int, partial: bool = False) -> None:
        """Move this epoch and later ones aside, the last first, so that a crash leaves no gap; drop what was cut off.

        With `partial` the probabilities of this epoch stay: those of the rows before a checkpoint are nowhere else.
        """
        with explained(self.folder):
            later = {number: path for number, path in files.epoch_folders(self.folder).items() if number >= epoch}
            for number, path in sorted(later.items(), reverse=True):
                if number in self._damaged:
                    at = files.aside(path, "damaged")
                    path.rename(at)
                    warnings.warn(
                        f"epoch {number} of the log in {self.folder} is damaged; it was moved to {at.name}, and is "
                        f"recorded again. What is wrong: {self._damaged[number]}",
                        stacklevel=2,
                    )
                elif (path / REPORT).exists():
                    path.rename(files.aside(path, "replaced"))
                else:
                    remove(path)
            self._damaged = {number: why for number, why in self._damaged.items() if number < epoch}
            for path in self.folder.glob("probabilities-*.npy"):
                if int(path.stem[14:]) >= epoch + partial:
                    path.unlink()

    def _make_room(self) -> None:
        """See that nobody else records here, before anything is written."""
        if Manifest.read(self.folder).run != self._manifest.run:
            raise ValueError(
                f"another run has begun a log in {self.folder} since this one did; give each run a folder of its own"
            )
        if self._damaged:
            self._remove_from(self.epoch, partial=True)
        elif finished(self.folder) > self.epoch:
            raise ValueError(
                f"another run has recorded epoch {self.epoch} in {self.folder} since this one began; give each run a "
                "folder of its own"
            )

    def _write_part(self) -> None:
        self.recorder.flush()
        at = epoch_folder(self.folder, self.epoch)
        with explained(at):
            at.mkdir(exist_ok=True)
        write_parquet(at / f"part-{self.world.index:05d}.parquet", self.recorder.part(), explained)

    def _finish(self, padding: int) -> dict[str, Any]:
        """Check the union of the parts, and say that the epoch is finished."""
        at, manifest = epoch_folder(self.folder, self.epoch), self._manifest
        names = [f"part-{i:05d}.parquet" for i in range(self.world.size)]
        wanted = ("row", "loss", *(["tokens"] if self.recorder.task == "language_model" else []))
        tables = [files.read_table(at / name, wanted) for name in names]
        rows, loss = (np.concatenate([table[name] for table in tables]) for name in ("row", "loss"))
        seen = np.bincount(rows, minlength=len(self.keys))
        for wrong, words in ((seen == 0, "not seen"), (seen > 1, "seen more than once")):
            if wrong.any():
                which, n = np.flatnonzero(wrong), int(wrong.sum())
                raise ValueError(
                    f"epoch {self.epoch}: {n} of {len(seen)} ids {'was' if n == 1 else 'were'} {words}: "
                    f"{_listed([self._id(i) for i in which[:SHOWN]], n)}; each row must be seen once an epoch: use a "
                    "sampler without replacement, and keep the last batch (drop_last=False)"
                )
        for path in at.glob("part-*"):
            if path.name not in names:
                path.unlink()
        nan = np.isnan(loss)
        empty = np.concatenate([table["tokens"] for table in tables]) == 0 if "tokens" in wanted else np.zeros_like(nan)
        bad = np.sort(rows[nan & ~empty])
        if self.epoch > 1:  # a run may go on from the middle of the epoch just finished
            probabilities_path(self.folder, self.epoch - 2).unlink(missing_ok=True)
        report = EpochReport(
            epoch=self.epoch,
            rows=len(seen),
            nan=len(bad),
            nan_ids=[_plain(self._id(i)) for i in bad[:SHOWN]],
            empty=int(empty.sum()),
            padding=padding,
            parts={name: (at / name).stat().st_size for name in names},
            digests={name: file_digest(at / name) for name in names},
            probabilities=file_digest(probabilities_path(self.folder, self.epoch)) if manifest.divergence else None,
        )
        known = replace(manifest, task=self.recorder.task, classes=self.recorder.classes)
        known = replace(known, facts=self._facts) if self.epoch == 0 else known
        if known != manifest or known.rows is None:
            self._manifest = known.write(self.folder, explained)  # task and classes are known by now
        facts = asdict(report)
        write_text(at / REPORT, files.sealed(facts), explained)
        try:
            files.read_report(self.folder, self.epoch, len(seen))
        except DamagedFileError as error:
            raise OSError(
                f"the parts in {at} changed while the epoch was finished; do two runs write there?"
            ) from error
        for epoch, why, path in files.moved_aside(self.folder):
            if why == "replaced" and epoch == self.epoch:
                remove(path)
        return facts

    def _id(self, row: Any) -> Any:
        return self.ids[int(self.order[int(row)])].as_py()


def _sorted_keys(ids: Any, column: str) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Keys (n,) in ascending order, and the order that sorts them."""
    if not len(ids):
        raise ValueError("there are no rows to record; give the ids of the dataset")
    if ids.null_count:
        raise ValueError(f"{_count(ids.null_count, 'id')} null in column {column!r}; fill it, as with_row_id(ds) does")
    keys = identity.digests(ids)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    if (keys[1:] == keys[:-1]).any():
        identity.check_unique(ids)
        raise ValueError(f"two ids of column {column!r} have one 64-bit digest; change one of them")
    return keys, order


def _arrow(ids: Any) -> pa.ChunkedArray:
    values = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    return pa.chunked_array([pa.array(values)])


def _integers(labels: Any, count: int) -> NDArray[np.int64]:
    values = np.asarray(labels.tolist() if hasattr(labels, "tolist") else labels)
    if values.dtype.kind not in "biu":
        raise TypeError(f"labels of type {values.dtype} are no classes; a log is of hard labels, given as integers")
    if values.shape != (count,):
        raise ValueError(f"labels of shape {values.shape} do not go with {count} ids; give one each")
    return values.astype(np.int64)


def _listed(ids: list[Any], count: int) -> str:
    return ", ".join(repr(i) for i in ids) + (", ..." if count > len(ids) else "")


def _count(n: int, what: str) -> str:
    return f"{n} {what} is" if n == 1 else f"{n} {what}s are"


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else repr(value)


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say of errors of the disk what is kept, and what to do."""
    try:
        yield
    except OSError as error:
        message = f"the log cannot be written to {folder}: {error.strerror or error}; finished epochs are kept"
        raise type(error)(error.errno, f"{message}: make room or name another folder, and resume") from error
