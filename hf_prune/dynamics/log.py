"""`TrainingLog`: what a training run did to each row in each epoch, in Parquet, read one epoch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_prune.data.files import DamagedFileError
from hf_prune.dynamics import epochs as files
from hf_prune.dynamics.epochs import EpochReport
from hf_prune.dynamics.format import Manifest, Mode, Task, check_rows, columns_of, finished, read_keys, read_rows
from hf_prune.dynamics.summaries import LogSummary

if TYPE_CHECKING:
    from hf_prune.data.world import World
    from hf_prune.dynamics.writer import LogWriter


class TrainingLog:
    """Statistics of each row in each finished epoch of a training run.

    Made by `train_with_log`, by a `RecordingTrainer`, by hand with `TrainingLog.create`, or from stored logits. Reading
    takes the memory of one epoch of the columns asked for; an epoch that a crash cut off is not seen. What is read is
    compared with its digest first, if the log was written by a version that records digests.

    Args:
        folder: folder with `log.json`, `rows.parquet` (ids, their keys, and labels where the recorder knew them) and a
            folder of parts for each epoch.

    Attributes:
        mode: passes that were recorded; "train": the forward passes of training itself, with augmentation and dropout,
            before each update; "eval": one clean pass after each epoch.
        task: "classification", or "language_model" (means over the labelled tokens).
        row_id: column of the dataset that the ids came from.
        label: column of the dataset that the labels came from.
        classes: width of the logits; None for a language model.
        divergence: whether the column `divergence` was recorded.
        facts: facts about the run, for the provenance of a score.

    Raises:
        FileNotFoundError: there is no log in the folder.
        ValueError: it was written by another version of the format.
        DamagedFileError: it is damaged (a ValueError).

    >>> import tempfile
    >>> logits = np.array([[[2.0, 0.0], [0.0, 1.0]]] * 3)  # three epochs of two rows
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = TrainingLog.from_logits(folder, ids=["a", "b"], logits=logits, labels=[0, 0])
    ...     log.epochs, log.read("margin", 2)[np.argsort(log.ids.to_pylist())].tolist()
    (3, [2.0, -1.0])
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self._manifest = of = Manifest.read(self.folder)
        self.mode: Mode = of.mode
        self.task: Task | None = of.task
        self.row_id: str = of.row_id
        self.label: str | None = of.label
        self.classes: int | None = of.classes
        self.divergence: bool = of.divergence
        self.facts: dict[str, Any] = dict(of.facts)
        self._checked: set[tuple[str, ...]] = set()  # digests of the epochs that were compared with their files

    def __repr__(self) -> str:
        return f"TrainingLog({str(self.folder)!r}, mode={self.mode!r}, epochs={self.epochs})"

    @property
    def epochs(self) -> int:
        """Number of finished epochs, damaged ones too."""
        return finished(self.folder)

    def damaged(self) -> dict[int, str]:
        """Finished epochs that cannot be read, and what is wrong with them; what their parts hold is not looked at.

        The other epochs can be read, and scored by `from_log(epochs=...)`.
        """
        broken = {}
        for epoch in range(self.epochs):
            try:
                files.read_report(self.folder, epoch, len(self.keys))
            except DamagedFileError as error:
                broken[epoch] = str(error)
        return broken

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """Digests of the ids, (n,) in ascending order: the order of everything that is read."""
        check_rows(self.folder, self._manifest)
        return read_keys(self.folder, self._manifest)

    @property
    def ids(self) -> pa.ChunkedArray:
        """The ids, (n,), in the order of `keys`."""
        check_rows(self.folder, self._manifest)
        return read_rows(self.folder, "id")

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The labels, (n,), in the order of `keys`; None where the recorder did not know them."""
        check_rows(self.folder, self._manifest)
        known: NDArray[np.int64] = read_rows(self.folder, "label").to_numpy()
        return known if len(known) else None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names that `read` takes."""
        return columns_of(self.task, self.divergence)

    def accuracy(self, epoch: int) -> float:
        """Share of the rows that were right in an epoch; of a language model, mean over rows of the share of tokens.

        Raises:
            IndexError: no such finished epoch.
            DamagedFileError: the epoch was finished, and is damaged.
        """
        right = self.read("correct" if "correct" in self.columns else "accuracy", epoch)
        return float(np.nanmean(right, dtype=np.float64)) if not np.isnan(right).all() else float("nan")

    def summary(self) -> LogSummary:
        """What the run did to its rows; reads all sound epochs, one at a time.

        >>> import tempfile
        >>> logits = np.array([[[2.0, 0.0], [0.0, 1.0]]] * 3)  # three epochs of two rows
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     TrainingLog.from_logits(folder, ids=["a", "b"], logits=logits, labels=[0, 0]).summary()
        Training log
          rows            2
          classes         2
          mode            train
          epochs          3
          first accuracy  0.5
          final accuracy  0.5
          never learned   1
        """
        broken = self.damaged()
        sound = [epoch for epoch in range(self.epochs) if epoch not in broken]
        ever = np.zeros(len(self.keys), bool)
        if "correct" in self.columns:
            for epoch in sound:
                ever |= self.read("correct", epoch)
        nan = max((self.report(epoch).nan for epoch in sound), default=0)
        return LogSummary(
            rows=len(self.keys),
            classes=None if self.task == "language_model" else self.classes,
            mode=self.mode,
            epochs=self.epochs,
            damaged=len(broken) or None,
            first_accuracy=self.accuracy(sound[0]) if sound else None,
            final_accuracy=self.accuracy(sound[-1]) if sound else None,
            never_learned=int((~ever).sum()) if sound and "correct" in self.columns else None,
            not_finite=nan or None,
        )

    def report(self, epoch: int) -> EpochReport:
        """How many rows of an epoch had a loss that was not finite, and what else is worth knowing of it.

        Raises:
            IndexError: no such finished epoch.
            DamagedFileError: the epoch was finished, and is damaged.
        """
        epochs = self.epochs
        if not 0 <= epoch < epochs:
            raise IndexError(f"epoch {epoch} is not in the log; {self.folder} has {epochs} finished epochs, from 0")
        return files.read_report(self.folder, epoch, len(self.keys))

    def read(self, column: str, epoch: int) -> NDArray[Any]:
        """One column of one epoch.

        Args:
            column: name of the column, one of `columns`.
            epoch: number of the epoch, from 0.

        Returns:
            Values (n,) in the order of `keys`: float32; of `correct` bool, of `tokens` int32.

        Raises:
            KeyError: no such column; the message lists those there are.
            IndexError: no such finished epoch.
            DamagedFileError: the epoch was finished, and is damaged.
        """
        return self._read((column,), epoch)[0]

    def each(self, *columns: str) -> Iterator[tuple[NDArray[Any], ...]]:
        """Columns (n,) in the order of `keys`, epoch by epoch.

        Args:
            columns: names of the columns, each one of `columns`.

        Raises:
            KeyError: no such column.
            ValueError: no epoch was finished.
            DamagedFileError: an epoch is damaged.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = TrainingLog.from_logits(folder, ids=["a"], logits=np.zeros((2, 1, 3)), labels=[0])
        ...     [round(float(loss[0]), 3) for (loss,) in log.each("loss")]
        [1.099, 1.099]
        """
        epochs = self.epochs
        if not epochs:
            raise ValueError(f"the log in {self.folder} has no finished epoch; train for one epoch at least")
        for epoch in range(epochs):
            yield self._read(columns, epoch)

    def _read(self, columns: Sequence[str], epoch: int) -> tuple[NDArray[Any], ...]:
        for column in columns:
            if column not in self.columns:
                raise KeyError(f"the log has no column {column!r}; its columns are {list(self.columns)}")
        report = self.report(epoch)
        known = tuple(report.digests.values())
        if known not in self._checked:
            files.check_parts(self.folder, report)
            self._checked.add(known)
        parts = files.read_parts(self.folder, report, columns)
        return tuple(parts[column] for column in columns)

    @staticmethod
    def create(
        folder: str | Path,
        *,
        ids: Any,
        labels: Any = None,
        mode: Mode = "train",
        task: Task | None = None,
        row_id: str = "row_id",
        label: str | None = "label",
        classes: int | None = None,
        divergence: bool = False,
        facts: Mapping[str, Any] | None = None,
        resume: bool = False,
        world: World | None = None,
    ) -> LogWriter:
        """Begin a log, or go on with one: the writer whose `record` and `end_epoch` a training loop calls.

        Under `accelerate launch` all processes call it, with the same arguments.

        Args:
            folder: folder of the log, seen by all processes.
            ids: ids of the dataset's n rows: a list, an array or an Arrow column.
            labels: classes of the rows, (n,) integers, for a classifier: kept, so that a resumed run with other labels
                is refused; None where they are not known.
            mode: passes that will be recorded: "train", those of training itself, or "eval", clean ones.
            task: "classification" or "language_model"; None for what the first logits are.
            row_id: column of the dataset that the ids come from, for those who read the log.
            label: column of the dataset that the labels come from, for those who read the log.
            classes: width of the logits; None for that of the first.
            divergence: whether the column `divergence` is recorded too; keeps the probabilities of two epochs,
                (n, classes) float32 each, in files of the folder.
            facts: facts about the run, for the provenance; `class_names`, a list, are the names of the classes.
            resume: whether to go on after the last finished epoch of the log that is there, if one is; if an epoch is
                damaged, with that one (the writer's `epoch`): it and those after it are moved aside when it is recorded
                again. Without it, a log that has no finished epoch is begun anew, with a warning.
            world: the processes that record; None for those of `accelerate launch`.

        Returns:
            The writer, whose `record` and `end_epoch` are called by the loop.

        Raises:
            ValueError: there is a log in the folder and `resume` is False, or it is one of another dataset or other
                labels; no rows; ids that are null or repeated; one class.
            DamagedFileError: the log that is there has a damaged manifest or list of rows.
            TypeError: labels that are not integers.
            OSError: the folder cannot be written.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = TrainingLog.create(folder, ids=["a", "b"], classes=2)
        ...     writer.record(["a"], np.array([[2.0, 0.0]]), np.array([0]))
        ...     writer.record(["b"], np.array([[0.0, 1.0]]), np.array([0]))
        ...     writer.end_epoch().rows
        2
        """
        from hf_prune.dynamics.writer import LogWriter

        return LogWriter(
            Path(folder).expanduser().absolute(),
            ids=ids,
            labels=labels,
            mode=mode,
            task=task,
            row_id=row_id,
            label=label,
            classes=classes,
            divergence=divergence,
            facts=facts,
            resume=resume,
            world=world,
        )

    @classmethod
    def from_logits(
        cls, folder: str | Path, ids: Any, logits: Any, labels: Any, *, mode: Mode = "train", **options: Any
    ) -> TrainingLog:
        """A log of logits that were stored already.

        Args:
            folder: folder of the log, which is made.
            ids: ids of the n rows.
            logits: array, memory map or tensor (T, n, C), or (T, n, t, V) of a language model.
            labels: integers (n,), or (n, t) with -100 where there is no label, each for the logits at its position.
            mode: passes that the logits came from: "train" or "eval".
            options: further arguments of `create`.

        Returns:
            The log of T epochs.

        Raises:
            ValueError: there is no epoch, or what `create` and `record` refuse.
        """
        if not len(logits):
            raise ValueError(f"logits of shape {tuple(logits.shape)} have no epoch; give (epochs, rows, classes)")
        known = labels if np.ndim(labels) == 1 and "labels" not in options else options.pop("labels", None)
        writer = cls.create(folder, ids=ids, labels=known, mode=mode, **options)
        with writer.leaving_nothing():
            for epoch in logits:
                writer.record(ids, epoch, labels)
                writer.end_epoch()
        return cls(folder)
