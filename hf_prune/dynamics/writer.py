"""`LogWriter`: takes what forward passes give, and writes the parts of a `TrainingLog`, an epoch at a time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from hf_prune import rows as row_ids
from hf_prune._files import write_parquet, write_text
from hf_prune._run.world import World
from hf_prune.dynamics import statistics
from hf_prune.dynamics.log import (
    FORMAT,
    MANIFEST,
    REPORT,
    ROWS,
    SHOWN,
    EpochReport,
    Mode,
    Task,
    TrainingLog,
    columns_of,
    epoch_folder,
    read_report,
)
from hf_prune.lookup import find

BLOCK = 1 << 22  # logits that wait for their statistics, which are worked out together, off the path of training
TYPES = {"correct": np.bool_, "tokens": np.int32}
UNITS: dict[str | None, str] = {"classification": "classes", "language_model": "tokens of the vocabulary"}


class LogWriter:
    """Records the forward passes of a run; `TrainingLog.create` makes one.

    What it holds grows with the rows of one epoch (52 bytes a row of this process), not with epochs or classes.
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
        if mode not in ("train", "eval"):
            raise ValueError(f"mode={mode!r} is not a way to record; give 'train' or 'eval'")
        if task not in (None, *UNITS):
            raise ValueError(f"task={task!r} is not known; give 'classification' or 'language_model'")
        self.folder, self.mode, self.task, self.divergence = folder, mode, task, divergence
        self.id_column, self.label, self.facts = id_column, label, dict(facts or {})
        self.world = world or World()
        self.ids = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else _arrow(ids)
        self.keys, self.order = _sorted_keys(self.ids, id_column)
        self.labels = None if labels is None else _integers(labels, len(self.ids))[self.order]
        self.classes: int | None = None
        if classes is not None:
            self._settle(task, classes)
        self._waiting: list[tuple[Any, dict[str, Any]]] = []  # rows, and tensors on their device
        self._parts: list[dict[str, NDArray[Any]]] = []
        self._size, self._steps = 0, 0
        self._maps: dict[int, np.memmap[Any, np.dtype[np.float32]]] = {}
        self.run: str | None = uuid.uuid4().hex  # tells the runs that begin in one folder apart
        self.epoch: int  # finished so far: the one that is recorded
        self.epoch, self.task, self.classes, self.run = self.world.from_main(
            lambda: (self._open(resume), self.task, self.classes, self.run)
        )
        self.labels = None  # they lie in the folder now

    def positions(self, ids: Any) -> NDArray[np.int64]:
        """Rows of the log (m,) that have these ids.

        Raises:
            ValueError: an id is not in the log; the message lists the first.
        """
        found = find(self.keys, row_ids.digests(ids))
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
        import torch

        with torch.no_grad():
            rows, logits, labels = (torch.as_tensor(x).detach() for x in (rows, logits, labels))
            self._check(rows, logits, labels)
            if mask is not None:
                labels = labels.masked_fill(~torch.as_tensor(mask).to(labels.device, torch.bool), statistics.IGNORE)
            if self.task == "language_model":  # their logits are too many to keep
                width = self.classes or 0
                worst = torch.where(labels == statistics.IGNORE, 0, labels)
                outside = ((worst < 0) | (worst >= width)).any(1)
                kept = torch.where(outside[:, None], statistics.IGNORE, labels)
                stats = statistics.of_tokens(logits, kept)
                at = worst.max(1).values if labels.shape[1] else worst.new_zeros(len(labels))
                self._waiting.append((rows, {**stats, "outside": outside, "worst": at}))
                self._size += len(rows) * 64
            else:  # a copy: what runs after this may write into its outputs
                self._waiting.append((rows, {"logits": logits.clone(), "labels": labels.clone()}))
                self._size += logits.numel()
        self._steps += 1
        if self._size >= BLOCK:
            self._work_out()

    def end_epoch(self) -> EpochReport:
        """Check that each id was seen once, write the epoch, and begin the next. All processes call it.

        With several processes, a sampler fills the last batches with rows that were there already; of these the first
        presentation stays.

        Raises:
            ValueError: ids that were not seen, or more than once; the message lists the first.
            OSError: the folder cannot be written.
        """
        self.world.each(self._work_out)
        padding = self._drop_padding()
        self.world.each(self._write_part)
        try:
            facts = self.world.from_main(lambda: self._finish(padding))
        finally:
            self._clear()
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
        seen = sum(len(part["row"]) for part in self._parts) + sum(len(rows) for rows, _ in self._waiting)
        self._clear()
        return seen

    def go_to(self, epoch: int, *, partial: bool = False) -> None:
        """Make `epoch` the one that is recorded next: for a run that goes on from a checkpoint. All processes call it.

        Args:
            epoch: from 0.
            partial: `load_state` follows, with the part of it that was recorded before the checkpoint.

        Raises:
            ValueError: the log does not reach so far, or the probabilities that `divergence` needs are gone.
        """
        if epoch > self.epoch:
            raise ValueError(
                f"the run goes on with epoch {epoch}, but the log in {self.folder} has {self.epoch} finished epochs; "
                "go on from an earlier checkpoint, or begin a log in a new folder"
            )
        if self.divergence and epoch and not _probabilities_path(self.folder, epoch - 1).exists():
            raise ValueError(
                f"the probabilities of epoch {epoch - 1}, with which epoch {epoch} is compared, are gone: they are "
                "kept for the last two finished epochs; go on from a later checkpoint, or begin a log in a new folder"
            )
        self._clear()
        self._maps.clear()
        self.world.from_main(lambda: self._remove(epoch, partial))
        self.epoch = epoch

    def save_state(self, path: Path) -> None:
        """Keep what this process has of the epoch so far, beside a checkpoint."""
        self._work_out()
        for array in self._maps.values():
            array.flush()
        table = self._table().append_column("step", pa.array(self._column("step")))
        of = json.dumps({"epoch": self.epoch, "task": self.task, "classes": self.classes, "run": self.run})
        write_parquet(path, table.replace_schema_metadata({"hf_prune": of}), _explained)

    def load_state(self, paths: list[Path]) -> None:
        """Go on in the middle of an epoch, with what `save_state` kept.

        Raises:
            ValueError: it is of another epoch, or the probabilities that `divergence` needs are gone.
        """
        self._clear()
        for path in paths:
            table = pq.read_table(path)
            of = json.loads(table.schema.metadata[b"hf_prune"])
            if of["epoch"] != self.epoch:
                raise ValueError(f"{path} is not of epoch {self.epoch}; go on from a checkpoint of the run of this log")
            theirs = of.get("run", self.run) == self.run and _probabilities_path(self.folder, self.epoch).exists()
            if self.divergence and table.num_rows and not theirs:
                raise ValueError(
                    f"the probabilities that belong to {path} are gone: the log in {self.folder} was begun anew; go on "
                    "from a checkpoint of the run of this log, or begin a log in a new folder"
                )
            self.task, self.classes = of["task"], of["classes"]
            self._parts.append({name: table.column(name).to_numpy() for name in table.column_names})
            self._steps = max(self._steps, int(self._parts[-1]["step"].max(initial=-1)) + 1)

    # what follows is one process's work, in the order in which it happens

    def _open(self, resume: bool) -> int:
        """Make the folder on the main process; returns the number of finished epochs."""
        if (self.folder / MANIFEST).exists():
            if resume:
                return self._continue(TrainingLog(self.folder))
            if any(self.folder.glob(f"epoch-*/{REPORT}")) or any(self.folder.glob("checkpoint-*[0-9]")):
                raise ValueError(
                    f"{self.folder} holds a training log already; name another folder, go on with it (resume), or "
                    "remove it first"
                )
            warnings.warn(
                f"{self.folder} holds a log without a finished epoch, as a run that failed early leaves it: what there "
                "is of it is removed, and the log begins anew",
                stacklevel=2,
            )
            self._remove(0)
        with _explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        columns = {"key": self.keys, "id": pa.chunked_array(self.ids.take(pa.array(self.order)))}
        if self.labels is not None:
            columns["label"] = self.labels
        write_parquet(self.folder / ROWS, pa.table(columns), _explained)
        self._write_manifest()
        return 0

    def _continue(self, found: TrainingLog) -> int:
        if not np.array_equal(found.keys, self.keys):
            new = int(np.isin(self.keys, found.keys, invert=True).sum())
            raise ValueError(
                f"the log in {self.folder} is of another dataset: it has {len(found.keys)} rows, this one "
                f"{len(self.keys)}, of which {new} are not in it; name another folder"
            )
        differ = []
        for name in ("mode", "id_column", "label", "divergence", "task", "classes"):
            there, wanted = getattr(found, name), getattr(self, name)
            settled = name not in ("task", "classes") or None not in (there, wanted)  # or the first logits will tell
            if settled and there != wanted:
                differ.append(f"{name}={there!r}, not {wanted!r}")
        if differ:
            raise ValueError(f"the log in {self.folder} has {', '.join(differ)}; go on as it began, or elsewhere")
        if found.task != "language_model":  # whose labels are no column
            self._same_labels()
        self.task, self.classes, self.run = found.task or self.task, found.classes or self.classes, self._run_there()
        epochs = found.epochs
        self._remove(epochs, partial=True)
        return epochs

    def _same_labels(self) -> None:
        """Refuse labels that are not those that the log began with, where it knows them."""
        if self.labels is None or "label" not in pq.read_schema(self.folder / ROWS).names:
            return
        there = pq.read_table(self.folder / ROWS, columns=["label"]).column("label").to_numpy()
        changed = np.flatnonzero(there != self.labels)
        if len(changed):
            shown = [f"{self._id(i)!r} has {self.labels[i]}, not {there[i]}" for i in changed[:SHOWN]]
            raise ValueError(
                f"the labels are not those of the log in {self.folder}: {', '.join(shown)}"
                f"{', ...' if len(changed) > SHOWN else ''} ({len(changed)} of {len(there)} rows); go on with the "
                "labels that it began with, or begin a log in another folder"
            )

    def _run_there(self) -> str | None:
        """The run that the log in the folder is of; None of one written before runs had names."""
        found: str | None = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8")).get("run")
        return found

    def _remove(self, epoch: int, partial: bool = False) -> None:
        """Remove this epoch and later ones, the last first, so that a crash leaves no gap; and what was cut off.

        With `partial` the probabilities of this epoch stay: those of the rows before a checkpoint are nowhere else.
        """
        with _explained(self.folder):
            for path in list(self.folder.rglob("*.hf_prune_tmp")):
                if path.is_dir():  # a checkpoint
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            later = [p for p in self.folder.glob("epoch-*") if int(p.name[6:]) >= epoch]
            for path in sorted(later, reverse=True):
                (path / REPORT).unlink(missing_ok=True)
                shutil.rmtree(path)
            for path in self.folder.glob("probabilities-*.npy"):
                if int(path.stem[14:]) >= epoch + partial:
                    path.unlink()

    def _write_manifest(self) -> None:
        facts = {
            "format": FORMAT,
            "run": self.run,
            "mode": self.mode,
            "task": self.task,
            "id_column": self.id_column,
            "label": self.label,
            "classes": self.classes,
            "divergence": self.divergence,
            "columns": columns_of(self.task, self.divergence),
            "facts": {
                "rows": len(self.keys),
                "ids": xxhash.xxh3_128_hexdigest(self.keys.tobytes()),
                "mode": self.mode,
                **self.facts,
            },
        }
        write_text(self.folder / MANIFEST, json.dumps(facts, indent=1), _explained, sync=True)

    def _clear(self) -> None:
        self._waiting, self._parts = [], []
        self._size, self._steps = 0, 0

    def _settle(self, task: Task | None, width: int) -> None:
        """Fix what the log is of, from what was told or from the first logits."""
        if width < 2:
            raise ValueError(
                f"logits of {width} class have nothing to tell apart: every margin is infinite, every loss 0; "
                "give the network an output for each class"
            )
        if self.divergence and task == "language_model":
            raise ValueError("divergence=True keeps all probabilities of an epoch: not for a language model")
        self.task, self.classes = task, width

    def _check(self, rows: Any, logits: Any, labels: Any) -> None:
        axes = {None: (2, 3), "classification": (2,), "language_model": (3,)}[self.task]
        if logits.ndim not in axes or logits.shape[:-1] != labels.shape or len(rows) != len(logits):
            raise ValueError(
                f"{tuple(rows.shape)} ids, logits of shape {tuple(logits.shape)} and labels of shape "
                f"{tuple(labels.shape)} are not of one pass; give (b,), (b, C) and (b,), or for a language model (b,), "
                "(b, t, V) and (b, t)"
            )
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"labels of type {labels.dtype} are no classes; a log is of hard labels, given as integers")
        if self.task is None or self.classes is None:
            self._settle("classification" if logits.ndim == 2 else "language_model", logits.shape[-1])
        if logits.shape[-1] != self.classes:
            raise ValueError(
                f"logits are {logits.shape[-1]} wide, the log is of {self.classes} {UNITS[self.task]}; record one "
                "network in one log"
            )

    def _work_out(self) -> None:
        """Turn what waits into statistics on the host."""
        if not self._waiting:
            return
        import torch

        waiting, self._waiting, self._size = self._waiting, [], 0
        first = self._steps - len(waiting)
        sizes = [len(rows) for rows, _ in waiting]
        rows = torch.cat([rows for rows, _ in waiting]).cpu().numpy().astype(np.int64, copy=False)
        joined = {name: torch.cat([part[name] for _, part in waiting]) for name in waiting[0][1]}
        with torch.no_grad():
            if self.task == "classification":
                labels = joined["labels"]
                outside = (labels < 0) | (labels >= (self.classes or 0))
                _refuse(outside, labels, lambda i: self._id(rows[i]), self.classes)
                stats = statistics.of_rows(joined["logits"], labels)
                if self.divergence:
                    stats["divergence"] = self._divergence(rows, joined["logits"])
            else:
                worst, outside = joined.pop("worst"), joined.pop("outside")
                _refuse(outside, worst, lambda i: self._id(rows[i]), self.classes)
                stats = joined
            part = {name: value.cpu().numpy() for name, value in stats.items()}
        self._parts.append({"row": rows, "step": np.repeat(np.arange(first, first + len(sizes)), sizes), **part})

    def _divergence(self, rows: NDArray[np.int64], logits: Any) -> Any:
        """Compare with the probabilities of the epoch before, which lie in one of two files, and keep the new ones."""
        import torch

        new = logits.float().softmax(1).cpu()
        out = torch.full((len(rows),), torch.nan)
        if self.epoch:
            old = torch.from_numpy(self._probabilities(self.epoch - 1)[rows])
            out = statistics.divergence(new, old)
        self._probabilities(self.epoch)[rows] = new.numpy()
        return out

    def _probabilities(self, epoch: int) -> np.memmap[Any, np.dtype[np.float32]]:
        """All probabilities (n, C) of an epoch, in a file that the processes share; made by whoever comes first."""
        if epoch not in self._maps:
            path = _probabilities_path(self.folder, epoch)
            if not path.exists():
                shape = (len(self.keys), self.classes or 0)
                temporary = path.with_name(f"{path.name}.{self.world.index}.hf_prune_tmp")
                with _explained(self.folder):
                    np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
                    with contextlib.suppress(FileExistsError):
                        os.link(temporary, path)
                    temporary.unlink()
            self._maps = {k: v for k, v in self._maps.items() if k >= epoch - 1}
            self._maps[epoch] = np.lib.format.open_memmap(path, mode="r+")
        return self._maps[epoch]

    def _column(self, name: str) -> NDArray[Any]:
        dtype = np.int64 if name in ("row", "step") else TYPES.get(name, np.float32)
        parts = [part[name] for part in self._parts]
        return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)

    def _table(self) -> pa.Table:
        return pa.table({name: self._column(name) for name in ("row", *columns_of(self.task, self.divergence))})

    def _drop_padding(self) -> int:
        """Leave out repeats in the last step of several processes; returns how many all of them left out."""
        if self.world.size == 1:
            return 0
        row, step = self._column("row"), self._column("step")
        last = step == self._steps - 1
        ends = self.world.gather(row[last])
        before = np.concatenate(self.world.gather(np.intersect1d(row[~last], np.concatenate(ends))))
        seen = np.concatenate([before, *ends[: self.world.index]])
        mine = row[last]
        again = np.isin(mine, seen) | (row_ids.occurrence(mine.astype(np.uint64)) > 0)
        keep = np.ones(len(row), bool)
        keep[last] = ~again
        joined = {name: self._column(name)[keep] for name in (self._parts[0] if self._parts else ())}
        self._parts = [joined] if joined else []
        return sum(self.world.gather(int(again.sum())))

    def _write_part(self) -> None:
        for array in self._maps.values():
            array.flush()
        at = epoch_folder(self.folder, self.epoch)
        with _explained(at):
            at.mkdir(exist_ok=True)
        order = np.argsort(self._column("row"), kind="stable")
        table = pa.table({name: self._column(name)[order] for name in self._table().column_names})
        write_parquet(at / f"part-{self.world.index:05d}.parquet", table, _explained)

    def _finish(self, padding: int) -> dict[str, Any]:
        """Check the union of the parts, and say that the epoch is finished."""
        at = epoch_folder(self.folder, self.epoch)
        if self._run_there() != self.run:
            raise ValueError(
                f"another run has begun a log in {self.folder} since this one did; give each run a folder of its own"
            )
        names = [f"part-{i:05d}.parquet" for i in range(self.world.size)]
        tables = pa.concat_tables([pq.read_table(at / name) for name in names])
        seen = np.bincount(tables.column("row").to_numpy(), minlength=len(self.keys))
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
        nan = np.isnan(tables.column("loss").to_numpy())
        empty = tables.column("tokens").to_numpy() == 0 if "tokens" in tables.column_names else np.zeros(len(nan), bool)
        bad = np.sort(tables.column("row").to_numpy()[nan & ~empty])
        if self.epoch > 1:  # a run may go on from the middle of the epoch just finished
            _probabilities_path(self.folder, self.epoch - 2).unlink(missing_ok=True)
        report = EpochReport(
            epoch=self.epoch,
            rows=len(seen),
            nan=len(bad),
            nan_ids=[_plain(self._id(i)) for i in bad[:SHOWN]],
            empty=int(empty.sum()),
            padding=padding,
            parts={name: (at / name).stat().st_size for name in names},
        )
        if self.epoch == 0:
            self._write_manifest()  # task and classes are known by now
        facts = asdict(report)
        write_text(at / REPORT, json.dumps(facts), _explained, sync=True)
        if read_report(self.folder, self.epoch) is None:
            raise OSError(f"the parts in {at} changed while the epoch was finished; do two runs write there?")
        return facts

    def _id(self, row: Any) -> Any:
        return self.ids[int(self.order[int(row)])].as_py()


def _probabilities_path(folder: Path, epoch: int) -> Path:
    return folder / f"probabilities-{epoch:05d}.npy"


def _sorted_keys(ids: Any, column: str) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Keys (n,) in ascending order, and the order that sorts them."""
    if not len(ids):
        raise ValueError("there are no rows to record; give the ids of the dataset")
    if ids.null_count:
        raise ValueError(f"{_count(ids.null_count, 'id')} null in column {column!r}; fill it, as with_row_id(ds) does")
    keys = row_ids.digests(ids)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    if (keys[1:] == keys[:-1]).any():
        row_ids.check_unique(ids)
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


def _refuse(outside: Any, labels: Any, id_of: Any, classes: int | None) -> None:
    if not bool(outside.any()):
        return
    which = outside.nonzero()[:, 0].tolist()
    shown = [f"{int(labels[i])} of {id_of(i)!r}" for i in which[:SHOWN]]
    raise ValueError(
        f"{_count(len(which), 'label')} not in 0..{(classes or 0) - 1}: {', '.join(shown)}"
        f"{', ...' if len(which) > SHOWN else ''}; give the network an output for each class, or drop such rows"
    )


def _listed(ids: list[Any], count: int) -> str:
    return ", ".join(repr(i) for i in ids) + (", ..." if count > len(ids) else "")


def _count(n: int, what: str) -> str:
    return f"{n} {what} is" if n == 1 else f"{n} {what}s are"


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else repr(value)


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"the log cannot be written to {folder}: {error.strerror or error}; finished epochs are kept"
        raise type(error)(error.errno, f"{message}: make room or name another folder, and resume") from error
