"""`EpochRecorder`: what one process has of the epoch that is recorded; tensors in, columns out."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from hf_prune.data import identity
from hf_prune.data.files import reading, remove, temporary_path, write_parquet
from hf_prune.data.world import World
from hf_prune.dynamics.epochs import open_probabilities, read_table
from hf_prune.dynamics.format import SHOWN, Task, columns_of, explained, probabilities_path, sealed, unsealed
from hf_prune.dynamics.ids import RowIds
from hf_prune.networks import statistics

BLOCK = 1 << 22  # logits that wait for their statistics, which are worked out together, off the path of training
PIECE = 1 << 24  # probabilities looked at at once
TYPES = {"correct": np.bool_, "tokens": np.int32}
UNITS: dict[str | None, str] = {"classification": "classes", "language_model": "tokens of the vocabulary"}
CHECKPOINT = "go on from another checkpoint, or begin a log in another folder"


class EpochRecorder:
    """Statistics of the rows that this process saw in the epoch so far.

    Args:
        folder: folder of the log.
        ids: ids of the n rows of the log.
        divergence: whether an epoch is compared with the probabilities of the one before.
        world: the processes that record.

    Attributes:
        task: "classification" or "language_model"; None until it is given, or the first logits are seen.
        classes: width of the logits, likewise.
        epoch: number of the epoch that is recorded; whoever owns the recorder counts it on.
    """

    def __init__(self, folder: Path, ids: RowIds, *, divergence: bool, world: World) -> None:
        self.folder, self.ids, self.divergence, self.world = folder, ids, divergence, world
        self.task: Task | None = None
        self.classes: int | None = None
        self.epoch = 0
        self._waiting: list[tuple[Any, dict[str, Any]]] = []  # rows, and tensors on their device
        self._parts: list[dict[str, NDArray[Any]]] = []
        self._size, self._steps = 0, 0
        self._maps: dict[int, np.memmap[Any, np.dtype[np.float32]]] = {}

    @property
    def seen(self) -> int:
        """Number of rows recorded in this epoch."""
        return sum(len(part["row"]) for part in self._parts) + sum(len(rows) for rows, _ in self._waiting)

    @property
    def held_bytes(self) -> tuple[int, int]:
        """Bytes of what waits for its statistics, and of the statistics."""
        waiting = sum(x.nbytes for _, part in self._waiting for x in part.values())
        return waiting, sum(array.nbytes for part in self._parts for array in part.values())

    def settle(self, task: Task | None, width: int) -> None:
        """Fix the task and the width of the logits, as given or as the first logits have them."""
        if width < 2:
            raise ValueError(
                f"logits of {width} class distinguish nothing: every margin is infinite, every loss 0; "
                "give the network an output for each class"
            )
        if self.divergence and task == "language_model":
            raise ValueError("divergence=True keeps all probabilities of an epoch: not for a language model")
        self.task, self.classes = task, width

    def record(self, rows: Any, logits: Any, labels: Any, mask: Any = None) -> None:
        """Record one forward pass; see `LogWriter.record_rows`."""
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
            self.work_out()

    def _check(self, rows: Any, logits: Any, labels: Any) -> None:
        axes = {None: (2, 3), "classification": (2,), "language_model": (3,)}[self.task]
        if logits.ndim == 2 and labels.shape == logits.shape:
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} name several classes a row (multi-label, or soft labels); a "
                "log is of hard labels, one class a row"
            )
        if logits.ndim not in axes or logits.shape[:-1] != labels.shape or len(rows) != len(logits):
            raise ValueError(
                f"{tuple(rows.shape)} ids, logits of shape {tuple(logits.shape)} and labels of shape "
                f"{tuple(labels.shape)} are not of one pass; give (b,), (b, C) and (b,), or for a language model (b,), "
                "(b, t, V) and (b, t)"
            )
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"labels of type {labels.dtype} are no classes; a log is of hard labels, given as integers")
        if self.task is None or self.classes is None:
            self.settle("classification" if logits.ndim == 2 else "language_model", logits.shape[-1])
        if logits.shape[-1] != self.classes:
            raise ValueError(
                f"logits are {logits.shape[-1]} wide, the log is of {self.classes} {UNITS[self.task]}; record one "
                "network in one log"
            )

    def work_out(self) -> None:
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
                self._refuse(outside, labels, rows)
                stats = statistics.of_rows(joined["logits"], labels)
                if self.divergence:
                    stats["divergence"] = self._divergence(rows, joined["logits"])
            else:
                worst, outside = joined.pop("worst"), joined.pop("outside")
                self._refuse(outside, worst, rows)
                stats = joined
            part = {name: value.cpu().numpy() for name, value in stats.items()}
        self._parts.append({"row": rows, "step": np.repeat(np.arange(first, first + len(sizes)), sizes), **part})

    def column(self, name: str) -> NDArray[Any]:
        """One column of what was worked out, in the order in which it was recorded."""
        dtype = np.int64 if name in ("row", "step") else TYPES.get(name, np.float32)
        parts = [part[name] for part in self._parts]
        return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)

    def part(self) -> pa.Table:
        """What a part file holds, by position in the log."""
        order = np.argsort(self.column("row"), kind="stable")
        names = ("row", *columns_of(self.task, self.divergence))
        return pa.table({name: self.column(name)[order] for name in names})

    def drop_padding(self) -> int:
        """Leave out repeats in the last step of several processes; returns how many all of them left out."""
        if self.world.size == 1:
            return 0
        row, step = self.column("row"), self.column("step")
        last = step == self._steps - 1
        ends = self.world.gather(row[last])
        before = np.concatenate(self.world.gather(np.intersect1d(row[~last], np.concatenate(ends))))
        seen = np.concatenate([before, *ends[: self.world.index]])
        mine = row[last]
        again = np.isin(mine, seen) | (identity.occurrence(mine.astype(np.uint64)) > 0)
        keep = np.ones(len(row), bool)
        keep[last] = ~again
        joined = {name: self.column(name)[keep] for name in (self._parts[0] if self._parts else ())}
        self._parts = [joined] if joined else []
        return sum(self.world.gather(int(again.sum())))

    def clear(self) -> None:
        """Forget what was recorded."""
        self._waiting, self._parts = [], []
        self._size, self._steps = 0, 0

    # beside a checkpoint

    def save(self, path: Path, run: str | None) -> None:
        """Keep what there is of the epoch so far."""
        self.work_out()
        self.flush()
        names = ("row", "step", *columns_of(self.task, self.divergence))
        columns = {name: self.column(name) for name in names}
        of = {"epoch": self.epoch, "task": self.task, "classes": self.classes, "run": run, "table": _digest(columns)}
        if self.divergence and len(columns["row"]):
            of["probabilities"] = self._digest_of(columns["row"])
        write_parquet(path, pa.table(columns).replace_schema_metadata({"hf_prune": sealed(of)}), explained)

    def load(self, path: Path, run: str | None) -> None:
        """Add what `save` kept.

        Raises:
            ValueError: it is of another epoch, or the probabilities that `divergence` needs are gone.
            DamagedFileError: the file is.
        """
        of = state_of(path)
        if of["epoch"] != self.epoch:
            raise ValueError(f"{path} is not of epoch {self.epoch}; go on from a checkpoint of the run of this log")
        with reading(path, "state of a recorder", CHECKPOINT):
            task, classes = of["task"], of["classes"]
            names = ("row", "step", *columns_of(task, self.divergence))
            columns = read_table(path, names)
            if "table" in of and _digest(columns) != of["table"]:
                raise ValueError("it has changed since it was written")
        if self.divergence and len(columns["row"]):
            theirs = of.get("run", run) == run and probabilities_path(self.folder, self.epoch).exists()
            if not theirs:
                raise ValueError(
                    f"the probabilities that belong to {path} are gone: the log in {self.folder} was begun anew; go on "
                    "from a checkpoint of the run of this log, or begin a log in a new folder"
                )
        with reading(path, "state of a recorder", CHECKPOINT):
            if len(columns["row"]) and not 0 <= columns["row"].min() <= columns["row"].max() < len(self.ids):
                raise ValueError("rows that are not in the log")
        self.task, self.classes = task, classes
        if "probabilities" in of:
            with reading(probabilities_path(self.folder, self.epoch), "file of probabilities", CHECKPOINT):
                if self._digest_of(columns["row"]) != of["probabilities"]:
                    raise ValueError(f"it is not what {path} was recorded with")
        self._parts.append(columns)
        self._steps = max(self._steps, int(columns["step"].max(initial=-1)) + 1)

    # probabilities: of two epochs, in files that the processes share

    def flush(self) -> None:
        """Write the mapped probabilities to the disk."""
        for array in self._maps.values():
            array.flush()

    def forget_maps(self) -> None:
        """Close the files; for they may be removed."""
        self._maps.clear()

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
        """All probabilities (n, C) of an epoch; the file is made by whoever comes first."""
        if epoch not in self._maps:
            path = probabilities_path(self.folder, epoch)
            if not path.exists():
                temporary = temporary_path(path)
                try:
                    with explained(self.folder):
                        shape = (len(self.ids), self.classes or 0)
                        np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
                        with contextlib.suppress(FileExistsError):
                            os.link(temporary, path)
                finally:
                    remove(temporary)
            self._maps = {k: v for k, v in self._maps.items() if k >= epoch - 1}
            self._maps[epoch] = open_probabilities(path, len(self.ids), self.classes)
        return self._maps[epoch]

    def _digest_of(self, rows: NDArray[np.int64]) -> str:
        """Digest of the probabilities of some rows, in their order."""
        state = xxhash.xxh3_128()
        table, step = self._probabilities(self.epoch), max(1, PIECE // (self.classes or 1))
        for i in range(0, len(rows), step):
            state.update(np.ascontiguousarray(table[rows[i : i + step]]).data)
        return state.hexdigest()

    def _refuse(self, outside: Any, labels: Any, rows: NDArray[np.int64]) -> None:
        """Refuse labels (b,) that are no classes."""
        if not bool(outside.any()):
            return
        which = outside.nonzero()[:, 0].tolist()
        shown = [f"{int(labels[i])} of {self.ids.of(rows[i])!r}" for i in which[:SHOWN]]
        many = f"{len(which)} label is" if len(which) == 1 else f"{len(which)} labels are"
        raise ValueError(
            f"{many} not in 0..{(self.classes or 0) - 1}: {', '.join(shown)}{', ...' if len(which) > SHOWN else ''}; "
            "give the network an output for each class, or drop such rows"
        )


def state_of(path: Path) -> dict[str, Any]:
    """What `EpochRecorder.save` said of a file: its epoch, its run, and what is recorded.

    Raises:
        DamagedFileError: the file is none that it wrote, or has changed.
    """
    with reading(path, "state of a recorder", CHECKPOINT):
        found = json.loads(pq.read_schema(path).metadata[b"hf_prune"])
        return unsealed(found, required="table" in found)
    raise AssertionError  # `reading` raises


def _digest(columns: dict[str, NDArray[Any]]) -> str:
    state = xxhash.xxh3_128()
    for name, values in columns.items():
        state.update(name.encode())
        state.update(np.ascontiguousarray(values).data)
    return state.hexdigest()
