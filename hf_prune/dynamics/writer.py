"""`LogWriter`: what a training loop calls to write a `TrainingLog`, on all its processes."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from hf_prune.checks import warn
from hf_prune.data.files import write_parquet
from hf_prune.data.world import World
from hf_prune.dynamics.epochs import EpochReport
from hf_prune.dynamics.folder import LogFolder
from hf_prune.dynamics.format import Manifest, Mode, Task, epoch_folder, explained
from hf_prune.dynamics.ids import RowIds, counted, listed
from hf_prune.dynamics.recorder import EpochRecorder


class LogWriter:
    """Records the forward passes of a run; `TrainingLog.create` makes one, and says what it takes.

    What it holds grows with the rows of one epoch (52 bytes a row of this process), not with epochs or classes.

    Attributes:
        folder: folder of the log.
        ids: ids of the n rows, and their keys.
        world: the processes that record.
        recorder: what this process has of the epoch so far.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ids: Any,
        labels: Any,
        mode: Mode,
        task: Task | None,
        row_id: str,
        label: str | None,
        classes: int | None,
        divergence: bool,
        facts: Mapping[str, Any] | None,
        resume: bool,
        world: World | None,
    ) -> None:
        self.folder, self.world = folder, world or World()
        self.ids = RowIds(ids, row_id)
        manifest = Manifest(
            mode=mode,
            task=task,
            row_id=row_id,
            label=label,
            classes=classes,
            divergence=divergence,
            facts={
                "rows": len(self.ids),
                "ids": xxhash.xxh3_128_hexdigest(self.ids.keys.tobytes()),
                "mode": mode,
                **(facts or {}),
            },
            run=uuid.uuid4().hex,
        )
        manifest.check_choices()
        self.recorder = EpochRecorder(folder, self.ids, divergence=divergence, world=self.world)
        if classes is not None:
            self.recorder.settle(task, classes)
        self._files = LogFolder(folder, self.ids, manifest)
        self._kept = False  # whether there is a checkpoint that needs the log
        given = None if labels is None else self.ids.labels(labels)
        epoch, found = self.world.from_main(lambda: (self._files.open(given, resume), self._files.manifest))
        self._files.manifest = found
        self.recorder.epoch, self.recorder.task, self.recorder.classes = epoch, found.task, found.classes

    @property
    def epoch(self) -> int:
        """The epoch that is recorded next: the number of finished ones, or the first damaged one."""
        return self.recorder.epoch

    @property
    def held_bytes(self) -> tuple[int, int]:
        """Memory of what waits for its statistics, and of the statistics."""
        return self.recorder.held_bytes

    def positions(self, ids: Any) -> NDArray[np.int64]:
        """Rows of the log (m,) that have these ids.

        Raises:
            ValueError: an id is not in the log; the message lists the first.
        """
        return self.ids.positions(ids)

    def record(self, ids: Any, logits: Any, labels: Any, mask: Any = None) -> None:
        """Record one forward pass.

        Args:
            ids: ids of the b rows.
            logits: tensor or array (b, C); or (b, t, V) of a language model, each position for the label there.
            labels: integers (b,) from 0 to C - 1; or (b, t) with -100 where there is no label.
            mask: whether a token counts, (b, t); all that have a label by default.

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
        recorder, files = self.recorder, self._files
        try:
            self.world.each(recorder.work_out)
            padding = recorder.drop_padding()
            self.world.from_main(lambda: files.make_room(self.epoch))
            self.world.each(self._write_part)
            ends: dict[str, Any] = {"task": recorder.task, "classes": recorder.classes, "padding": padding}
            report = EpochReport(**self.world.from_main(lambda: files.finish(self.epoch, size=self.world.size, **ends)))
        finally:
            recorder.clear()
        recorder.epoch += 1
        if report.nan and self.world.main:
            warn(
                f"epoch {report.epoch}: the loss of {counted(report.nan, 'row')} not finite, {self.ids.row_id} "
                f"{listed(report.nan_ids, report.nan)}; recorded as NaN",
                RuntimeWarning,
            )
        return report

    def _write_part(self) -> None:
        self.recorder.flush()
        at = epoch_folder(self._files.path, self.epoch)
        with explained(at):
            at.mkdir(exist_ok=True)
        write_parquet(at / f"part-{self.world.index:05d}.parquet", self.recorder.part(), explained)

    def discard(self) -> int:
        """Forget what was recorded of an epoch that will not be finished; returns its number of rows."""
        seen = self.recorder.seen
        self.recorder.clear()
        return seen

    def go_to(self, epoch: int, *, partial: bool = False) -> None:
        """Make `epoch` the one that is recorded next: for a run that goes on from a checkpoint. All processes call it.

        Finished epochs from there on are moved aside, and removed when they are finished again.

        Args:
            epoch: number of the epoch, from 0.
            partial: whether `load_state` follows, with the part of it that was recorded before the checkpoint.

        Raises:
            ValueError: the log does not reach so far, or the probabilities that `divergence` needs are gone.
            DamagedFileError: an epoch before this one is damaged, or the probabilities are.
        """
        self.world.from_main(lambda: self._files.check_reach(epoch, self.epoch))
        self.recorder.clear()
        self.recorder.forget_maps()
        self.world.from_main(lambda: self._files.remove_from(epoch, partial=partial))
        self.recorder.epoch = epoch

    def save_state(self, path: Path) -> None:
        """Keep what this process has of the epoch so far in a file beside a checkpoint."""
        self._kept = True
        self.recorder.save(path, self._files.manifest.run)

    def load_state(self, paths: list[Path]) -> None:
        """Go on in the middle of an epoch, with what `save_state` kept.

        Raises:
            ValueError: it is of another epoch, or the probabilities that `divergence` needs are gone.
            DamagedFileError: a file has changed since it was written.
        """
        self.recorder.clear()
        for path in paths:
            self.recorder.load(path, self._files.manifest.run)

    @contextlib.contextmanager
    def leaving_nothing(self) -> Iterator[None]:
        """What is refused while a new log has no epoch, and no checkpoint that needs it, leaves no folder behind."""
        try:
            yield
        except BaseException:
            if not self.epoch and not self._kept:
                self._files.take_back()
            raise
