"""`LogFolder`: the folder of a log that is being written, an epoch at a time; what one process does for all.

Nothing sound is removed: an epoch that is recorded again is moved aside first, and goes when its successor is finished.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import warn
from hf_prune.data.files import DamagedFileError, file_digest, remove, sweep, write_parquet, write_text
from hf_prune.data.labels import check_class_names
from hf_prune.dynamics import epochs, format
from hf_prune.dynamics.epochs import EpochReport
from hf_prune.dynamics.format import (
    CHECKPOINT,
    MANIFEST,
    REPORT,
    ROWS,
    SHOWN,
    Manifest,
    epoch_folder,
    epoch_folders,
    explained,
    finished,
    probabilities_path,
)
from hf_prune.dynamics.ids import RowIds

_ALIKE = ("mode", "row_id", "label", "divergence", "task", "classes")  # what a log that is gone on with began with


class LogFolder:
    """The folder of a log that is being written.

    Args:
        path: path of the folder.
        ids: ids of the n rows.
        manifest: what the log is of; replaced by that of a log that is gone on with.

    Attributes:
        damaged: numbers of the finished epochs that cannot be read, and what is wrong with them.
    """

    def __init__(self, path: Path, ids: RowIds, manifest: Manifest) -> None:
        self.path, self.ids, self.manifest = path, ids, manifest
        self.damaged: dict[int, str] = {}
        self._facts = manifest.facts
        self._begun: list[Path] | None = None  # folders that were made for this log, if it began here

    def open(self, labels: NDArray[np.int64] | None, resume: bool) -> int:
        """Make the folder, or look at the one that is there.

        Args:
            labels: classes of the rows, (n,) in the order of the keys; None where they are not known.
            resume: whether a log that is there is gone on with.

        Returns:
            The epoch to go on with.
        """
        if (self.path / MANIFEST).exists():
            if resume:
                return self._go_on(labels)
            self._clear_failed()
        elif there := finished(self.path):
            raise FileNotFoundError(
                f"{self.path} holds {there} recorded epochs, and their {MANIFEST} is missing; put it back from a "
                "copy, or name another folder"
            )
        self._sweep()
        self.remove_from(0)
        self._begun = [p for p in (self.path, *self.path.parents) if not p.exists()]
        try:
            with explained(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            write_parquet(self.path / ROWS, self.ids.table(labels), explained)
            self.manifest = self.manifest.write(self.path, explained)
        except BaseException:
            self.take_back()
            raise
        return 0

    def _clear_failed(self) -> None:
        """Take away a log without a finished epoch.

        Raises:
            ValueError: it has one, or a checkpoint that needs it.
        """
        kept = any(CHECKPOINT.fullmatch(path.name) for path in self.path.glob("checkpoint-*"))
        if kept or finished(self.path):
            raise ValueError(
                f"{self.path} holds a training log already; name another folder, go on with it (resume), or "
                "remove it first"
            )
        warn(
            f"{self.path} holds a log without a finished epoch, as a run that failed early leaves it: what there "
            "is of it is removed, and the log begins anew"
        )
        with explained(self.path):
            (self.path / MANIFEST).unlink()  # first: what is left is no log

    def _go_on(self, labels: NDArray[np.int64] | None) -> int:
        """Look at the log that is there; returns the epoch to go on with."""
        there, mine = Manifest.read(self.path), self.manifest
        format.check_rows(self.path, there)
        self._check_same(there, labels)
        self.manifest = replace(there, task=there.task or mine.task, classes=there.classes or mine.classes)
        self._sweep()
        end = finished(self.path)
        for epoch in range(end):
            try:
                epochs.check_parts(self.path, epochs.read_report(self.path, epoch, len(self.ids)))
            except DamagedFileError as error:
                self.damaged[epoch] = str(error)
        for epoch, path in epoch_folders(self.path).items():
            if epoch >= end:  # cut off
                remove(path)
        for epoch, why, path in format.moved_aside(self.path):
            if why == "replaced" and epoch < end and epoch not in self.damaged:
                remove(path)
        return min(self.damaged, default=end)

    def _check_same(self, there: Manifest, labels: NDArray[np.int64] | None) -> None:
        """Refuse to go on with a log of other rows, of another kind, or of other labels."""
        keys = format.read_keys(self.path, there)
        if not np.array_equal(keys, self.ids.keys):
            new = int(np.isin(self.ids.keys, keys, invert=True).sum())
            raise ValueError(
                f"the log in {self.path} is of another dataset: it has {len(keys)} rows, this one "
                f"{len(self.ids)}, of which {new} are not in it; name another folder"
            )
        differ = []
        for name in _ALIKE:
            theirs, ours = getattr(there, name), getattr(self.manifest, name)
            settled = name not in ("task", "classes") or None not in (theirs, ours)  # or the first logits will tell
            if settled and theirs != ours:
                differ.append(f"{name}={theirs!r}, not {ours!r}")
        if differ:
            raise ValueError(f"the log in {self.path} has {', '.join(differ)}; go on as it began, or elsewhere")
        if labels is None or there.task == "language_model":  # whose labels are no column
            return
        known = format.read_rows(self.path, "label").to_numpy()
        changed = np.flatnonzero(known != labels) if len(known) else np.empty(0, np.int64)
        if len(changed):
            shown = [f"{self.ids.of(i)!r} has {labels[i]}, not {known[i]}" for i in changed[:SHOWN]]
            raise ValueError(
                f"the labels are not those of the log in {self.path}: {', '.join(shown)}"
                f"{', ...' if len(changed) > SHOWN else ''} ({len(changed)} of {len(known)} rows); go on with the "
                "labels that it began with, or begin a log in another folder"
            )
        ours, theirs = (each.facts.get("class_names") for each in (self.manifest, there))
        check_class_names(ours, theirs, self.manifest.label, f"the log in {self.path}")

    def _sweep(self) -> None:
        """Remove the temporary files of killed writers, on whatever host they were."""
        for folder in (self.path, *epoch_folders(self.path).values()):
            sweep(folder, others=0)

    def take_back(self) -> None:
        """Remove what was made for a log that began here; nothing otherwise."""
        if self._begun is None:
            return
        for path in (self.path / MANIFEST, self.path / ROWS, *self.path.glob("probabilities-*")):
            remove(path)
        for path in epoch_folders(self.path).values():
            remove(path)
        self._sweep()
        for path in self._begun:
            with contextlib.suppress(OSError):
                path.rmdir()
        self._begun = None

    # a run that goes on from a checkpoint

    def check_reach(self, epoch: int, reached: int) -> None:
        """Refuse to go on with an epoch to which the log does not reach; nothing is changed.

        Args:
            epoch: number of the epoch that the run goes on with.
            reached: number of the epoch that the log goes on with.
        """
        broken = min(self.damaged, default=epoch)
        if broken < epoch:
            raise DamagedFileError(
                f"the run goes on with epoch {epoch}, and epoch {broken} of its log is damaged; nothing was changed. "
                f"Put {epoch_folder(self.path, broken)} back from a copy, go on from a checkpoint of epoch "
                f"{broken} or before, or begin a log in another folder; scores can leave the epoch out (epochs=...). "
                f"What is wrong: {self.damaged[broken]}"
            )
        if epoch > reached:
            raise ValueError(
                f"the run goes on with epoch {epoch}, but the log in {self.path} has {reached} finished epochs; "
                "go on from an earlier checkpoint, or begin a log in a new folder"
            )
        if self.manifest.divergence and epoch:
            path = probabilities_path(self.path, epoch - 1)
            if not path.exists():
                raise ValueError(
                    f"the probabilities of epoch {epoch - 1}, with which epoch {epoch} is compared, are gone: they are "
                    "kept for the last two finished epochs; go on from a later checkpoint, or begin a log in a new "
                    "folder"
                )
            digest = epochs.read_report(self.path, epoch - 1, len(self.ids)).probabilities
            epochs.open_probabilities(path, len(self.ids), self.manifest.classes, digest)

    def remove_from(self, epoch: int, *, partial: bool = False) -> None:
        """Move this epoch and later ones aside, the last first, so that a crash leaves no gap; drop what was cut off.

        Args:
            epoch: number of the first epoch to go.
            partial: whether the probabilities of this epoch stay: those of the rows before a checkpoint are nowhere
                else.
        """
        with explained(self.path):
            later = {number: path for number, path in epoch_folders(self.path).items() if number >= epoch}
            for number, path in sorted(later.items(), reverse=True):
                if number in self.damaged:
                    at = format.aside(path, "damaged")
                    path.rename(at)
                    warn(
                        f"epoch {number} of the log in {self.path} is damaged; it was moved to {at.name}, and is "
                        f"recorded again. What is wrong: {self.damaged[number]}"
                    )
                elif (path / REPORT).exists():
                    path.rename(format.aside(path, "replaced"))
                else:
                    remove(path)
            self.damaged = {number: why for number, why in self.damaged.items() if number < epoch}
            for path in self.path.glob("probabilities-*.npy"):
                if int(path.stem[14:]) >= epoch + partial:
                    path.unlink()

    # the end of an epoch

    def make_room(self, epoch: int) -> None:
        """See that nobody else records here, before anything of an epoch is written."""
        if Manifest.read(self.path).run != self.manifest.run:
            raise ValueError(
                f"another run has begun a log in {self.path} since this one did; give each run a folder of its own"
            )
        if self.damaged:
            self.remove_from(epoch, partial=True)
        elif finished(self.path) > epoch:
            raise ValueError(
                f"another run has recorded epoch {epoch} in {self.path} since this one began; give each run a "
                "folder of its own"
            )

    def finish(
        self, epoch: int, *, task: format.Task | None, classes: int | None, padding: int, size: int
    ) -> dict[str, Any]:
        """Check the union of the parts of `size` processes, and say that the epoch is finished.

        Returns:
            What its report says.
        """
        at, language = epoch_folder(self.path, epoch), task == "language_model"
        names = [f"part-{i:05d}.parquet" for i in range(size)]
        tables = [epochs.read_table(at / name, ("row", "loss", *(["tokens"] if language else []))) for name in names]
        rows, loss = (np.concatenate([table[name] for table in tables]) for name in ("row", "loss"))
        self._check_seen(epoch, np.bincount(rows, minlength=len(self.ids)))
        for path in at.glob("part-*"):
            if path.name not in names:
                path.unlink()
        nan = np.isnan(loss)
        empty = np.concatenate([table["tokens"] for table in tables]) == 0 if language else np.zeros_like(nan)
        bad = np.sort(rows[nan & ~empty])
        if epoch > 1:  # a run may go on from the middle of the epoch just finished
            probabilities_path(self.path, epoch - 2).unlink(missing_ok=True)
        kept = probabilities_path(self.path, epoch)
        report = EpochReport(
            epoch=epoch,
            rows=len(self.ids),
            nan=len(bad),
            nan_ids=[_plain(self.ids.of(i)) for i in bad[:SHOWN]],
            empty=int(empty.sum()),
            padding=padding,
            parts={name: (at / name).stat().st_size for name in names},
            digests={name: file_digest(at / name) for name in names},
            probabilities=file_digest(kept) if self.manifest.divergence else None,
        )
        known = replace(self.manifest, task=task, classes=classes)
        known = replace(known, facts=self._facts) if epoch == 0 else known
        if known != self.manifest or known.rows is None:
            self.manifest = known.write(self.path, explained)  # task and classes are known by now
        facts = asdict(report)
        write_text(at / REPORT, format.sealed(facts), explained)
        try:
            epochs.read_report(self.path, epoch, len(self.ids))
        except DamagedFileError as error:
            raise OSError(
                f"the parts in {at} changed while the epoch was finished; do two runs write there?"
            ) from error
        for number, why, path in format.moved_aside(self.path):
            if why == "replaced" and number == epoch:
                remove(path)
        return facts

    def _check_seen(self, epoch: int, times: NDArray[np.int64]) -> None:
        """Refuse an epoch in which a row was not seen once; `times` (n,) says how often each was."""
        for wrong, words in ((times == 0, "not seen"), (times > 1, "seen more than once")):
            if n := int(wrong.sum()):
                raise ValueError(
                    f"epoch {epoch}: {n} of {len(times)} ids {'was' if n == 1 else 'were'} {words}: "
                    f"{self.ids.listed(np.flatnonzero(wrong), n)}; each row must be seen once an epoch: use a "
                    "sampler without replacement, and keep the last batch (drop_last=False)"
                )


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else repr(value)
