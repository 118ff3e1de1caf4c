"""`train_with_log`: a small training loop that writes a `TrainingLog`, to be read from top to bottom.

A global batch is the same rows whatever the number of processes, each of which takes its share; the loss is the mean
over the global batch. So no row is repeated to fill a batch, and two processes train as one does (but for dropout,
augmentation, and batch norm, whose statistics are those of a share).
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_prune.checks import check_choice, check_column, check_dataset, check_inside
from hf_prune.data import arrow
from hf_prune.data.files import (
    TEMPORARY,
    DamagedFileError,
    file_digest,
    read_json,
    reading,
    remove,
    temporary_path,
    whole,
    write_text,
)
from hf_prune.data.formats import unformatted
from hf_prune.data.identity import check_seed, seeded
from hf_prune.data.lock import locked
from hf_prune.dynamics.format import Mode, aside, finished, sealed, unsealed
from hf_prune.dynamics.log import TrainingLog
from hf_prune.dynamics.writer import CHECKPOINT, LogWriter, explained

if TYPE_CHECKING:
    import torch

Inputs = str | Callable[[dict[str, Any]], Any]
Schedule = str | Callable[[float], float]

CONTENTS = "contents.json"  # of a checkpoint: its files, with sizes and digests
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
}


def train_with_log(
    model: torch.nn.Module,
    ds: Any,
    log: str | Path,
    *,
    epochs: int,
    inputs: Inputs = "image",
    label: str = "label",
    id_column: str = "row_id",
    batch_size: int = 128,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    schedule: Schedule = "cosine",
    augment: Callable[[Any, torch.Generator], Any] | None = None,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    record: Mode = "train",
    divergence: bool = False,
    seed: int = 0,
    resume: bool = False,
    save_every: int = 1,
    workers: int = 0,
    accelerator: Any = None,
    on_epoch: Callable[[int, torch.nn.Module], None] | None = None,
) -> TrainingLog:
    """Train a classifier in place, and record what it does with each row in each epoch.

    Call it on all processes of `accelerate launch`. The order of the rows is a function of the seed, the epoch and the
    rows' ids. With `resume=True` a run that was killed goes on from its last checkpoint, and its log too; finished
    epochs that the checkpoint does not know are recorded again, and kept aside until then. A call that is refused
    leaves no folder behind; of two calls on one folder the second waits.

    Args:
        model: gives logits (b, C), or an output with `logits`.
        ds: n rows with ids, labels and inputs.
        log: folder for the log and the last checkpoint, seen by all processes.
        epochs: of the whole run.
        inputs: a column of images, of one size, or of lists of numbers; or what makes a tensor (or keyword arguments
            for the model) of the dict of a batch's columns. Images become (b, 3, h, w) from -1 to 1.
        label: column of integers from 0 to C - 1. One output more than there are labels is allowed (threshold samples).
        id_column: as `with_row_id` adds it.
        batch_size: rows of a forward pass, over all processes: of a step, or of one part of a step where `accelerator`
            accumulates gradients. A step takes the mean over its rows, also where the end of an epoch cuts it short.
        optimizer: made of the parameters; SGD with rate 0.1, Nesterov momentum 0.9 and decay 5e-4 by default.
        schedule: factor on the learning rate as a function of the share of training done; or "constant", "linear",
            "cosine".
        augment: changes the inputs of a training step on their device, with a generator seeded by (seed, step,
            process); `crop_and_flip` is one.
        loss: (b,) of logits and labels; cross-entropy by default.
        record: "train": what training's own forward passes give; "eval": one clean pass after each epoch.
        divergence: record `divergence` too; see `TrainingLog.create`.
        seed: of the order, the augmentation and torch's own generators. Weights are yours to make.
        resume: go on with the log in the folder, if there is one. Without it, one that has no finished epoch, or whose
            run was killed while it wrote its first checkpoint, is begun anew, with a warning.
        save_every: epochs from checkpoint to checkpoint, 0 for none; the last one is kept.
        workers: processes that load rows.
        accelerator: an `accelerate.Accelerator`, for mixed precision, gradient accumulation and the like.
        on_epoch: called with the finished epoch and the model, on every process.

    Returns:
        The log.

    Raises:
        KeyError: a column is missing; the message lists those there are.
        ValueError: no epochs, labels out of range, ids that are null or repeated, a log in the folder and `resume`
            False, or one of another dataset or other labels.
        DamagedFileError: an epoch or the checkpoint to go on from is damaged; the message has the choice.
        TypeError: labels that are not integers, a stream, or a name where the model should be.

    >>> import tempfile, torch
    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"row_id": ["a", "b"], "x": [[0.0, 1.0], [1.0, 0.0]], "label": [0, 1]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = train_with_log(torch.nn.Linear(2, 2), ds, folder, epochs=2, inputs="x")
    ...     log.epochs, log.mode
    (2, 'train')
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs={epochs} and batch_size={batch_size} leave nothing to train; give 1 or more")
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model={model!r} is no torch module; load it first, as with AutoModel...from_pretrained(...)")
    check_dataset(ds, "train_with_log")
    factor = _schedule(schedule)
    labels = _labels(ds, label, id_column)
    make_inputs = inputs if callable(inputs) else _Read(ds, inputs)
    ids = arrow.column_array(ds, id_column)
    accelerator = accelerator or Accelerator()

    from hf_prune.data.world import World  # after the accelerator has made the state of the processes

    world = World()
    set_seed(check_seed(seed) + world.index)
    model, opt = accelerator.prepare(model, (optimizer or _sgd)(model.parameters()))
    rates = [group["lr"] for group in opt.param_groups]
    every = accelerator.gradient_accumulation_steps  # forward passes of a step
    facts = {
        "recorder": "train_with_log",
        "network": type(accelerator.unwrap_model(model)).__name__,
        "batch_size": batch_size * every,
        "learning_rate": rates[0],
        "schedule": schedule if isinstance(schedule, str) else getattr(schedule, "__name__", "own"),
        "augmented": augment is not None,
        "seed": seed,
    }
    folder = Path(log).expanduser().absolute()
    named: dict[str, Any] = {"ids": ids, "labels": labels, "id_column": id_column, "label": label, "mode": record}
    passes = math.ceil(len(ds) / batch_size)
    steps = math.ceil(passes / every)

    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(locked(folder, "recorded", world, explained))
        checkpoint, goes_on = world.from_main(lambda: _where_to_begin(folder, resume))
        writer = TrainingLog.create(folder, **named, divergence=divergence, facts=facts, resume=goes_on, world=world)
        stack.enter_context(writer.leaving_nothing())
        stack.callback(setattr, accelerator, "sync_gradients", True)
        rows = writer.positions(ids)
        data = _Data(ds, make_inputs, labels, rows)
        begin = 0
        if checkpoint is not None:
            accelerator.load_state(str(checkpoint))
            begin = _number(checkpoint)
        writer.go_to(begin)
        if checkpoint is not None:
            world.from_main(lambda: _drop_others(checkpoint))  # a kill may have left the one before
        known = False  # whether the model was seen to fit the labels
        bar = stack.enter_context(_bar(begin * len(ds), epochs * len(ds), world))

        for epoch in range(begin, epochs):
            model.train()
            order = np.argsort(seeded(seeded(writer.keys[rows], seed), epoch), kind="stable")
            batches = [order[i : i + batch_size] for i in range(0, len(ds), batch_size)]
            for number, (x, y, numbers, count) in enumerate(data.shares(batches, world, workers)):
                step, within = divmod(number, every)
                in_step = min(batch_size * every, len(ds) - step * batch_size * every)
                accelerator.sync_gradients = last = within == every - 1 or number == passes - 1
                for group, rate in zip(opt.param_groups, rates, strict=True):
                    group["lr"] = rate * factor((epoch * steps + step) / (steps * epochs))
                x, y = _to(x, accelerator.device), y.to(accelerator.device, non_blocking=True)
                if augment is not None:
                    x = augment(x, _generator(accelerator.device, seed, epoch * passes + number, world.index))
                with contextlib.nullcontext() if last else accelerator.no_sync(model):
                    logits = _forward(model, x)
                    known = known or _check_width(labels, logits, label)
                    each = (
                        torch.nn.functional.cross_entropy(logits.float(), y, reduction="none")
                        if loss is None
                        else (loss(logits, y))
                    )
                    mine = len(numbers)  # 0 where this process only keeps the others company
                    share = world.size * every / in_step  # `backward` divides by `every`
                    accelerator.backward(each[:mine].sum() * share + each[mine:].sum() * 0)
                opt.step()  # these two wait for the last pass of the step
                opt.zero_grad()
                if record == "train":
                    writer.record_rows(numbers, logits[:mine], y[:mine])
                bar.update(count)
            if record == "eval":
                _clean_pass(model, data, writer, batch_size, workers, accelerator)
            world.from_main(lock.check)
            writer.end_epoch()
            if save_every and ((epoch + 1) % save_every == 0 or epoch + 1 == epochs):
                _save(accelerator, folder, epoch + 1, world)
            if on_epoch is not None:
                on_epoch(epoch, accelerator.unwrap_model(model))
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # the forward pass is the user's own again
    return TrainingLog(folder)


def crop_and_flip(x: torch.Tensor, generator: torch.Generator, pad: int = 4) -> torch.Tensor:
    """Augment images (b, c, h, w): a crop of the reflected image, moved by up to `pad` pixels, and a flip for half.

    >>> import torch
    >>> crop_and_flip(torch.zeros(2, 3, 8, 8), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 8, 8])
    """
    import torch

    b, _, h, w = x.shape
    padded = torch.nn.functional.pad(x, (pad,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * pad + 1, (2, b, 1), generator=generator, device=x.device)
    flip = torch.rand(b, 1, generator=generator, device=x.device) < 0.5
    down = top + torch.arange(h, device=x.device)
    across = torch.arange(w, device=x.device).expand(b, w)
    across = left + torch.where(flip, w - 1 - across, across)
    row = torch.arange(b, device=x.device)[:, None, None]
    return padded[row, :, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2).contiguous()


class _Data:
    """Batches of inputs, labels and numbers in the log; what a worker of a `DataLoader` gets."""

    def __init__(self, ds: Any, make_inputs: Callable[[dict[str, Any]], Any], labels: Any, numbers: Any) -> None:
        self.ds, self.make_inputs, self.labels, self.numbers = ds, make_inputs, labels, numbers
        self.shown = make_inputs.read(ds) if isinstance(make_inputs, _Read) else ds

    def __len__(self) -> int:
        return len(self.ds)

    def __getitem__(self, share: tuple[NDArray[np.int64], int]) -> tuple[Any, Any, Any, int]:
        import torch

        where, whole = share
        company = where if len(where) else np.zeros(1, np.int64)  # for the collectives of an empty share
        x = self.make_inputs(self.shown[company])
        return x, torch.from_numpy(self.labels[company]), torch.from_numpy(self.numbers[where]), whole

    def shares(self, batches: list[NDArray[np.int64]], world: Any, workers: int) -> Iterator[Any]:
        """(inputs, labels, numbers, rows of the global batch) of this process, for each global batch."""
        import torch

        mine = [(batch[world.index :: world.size], len(batch)) for batch in batches]
        options: dict[str, Any] = {"sampler": mine, "batch_size": None, "collate_fn": _as_it_is}
        options["generator"] = torch.Generator()  # a loader without one draws from that of the training
        options["pin_memory"] = torch.cuda.is_available()
        yield from torch.utils.data.DataLoader(self, num_workers=workers, **options)  # type: ignore[arg-type]


def _as_it_is(item: Any) -> Any:
    return item


def _clean_pass(model: Any, data: _Data, writer: LogWriter, batch_size: int, workers: int, accelerator: Any) -> None:
    import torch

    model.eval()
    batches = [np.arange(i, min(i + batch_size, len(data))) for i in range(0, len(data), batch_size)]
    with torch.no_grad():
        for x, y, numbers, _ in data.shares(batches, writer.world, workers):
            logits = _forward(model, _to(x, accelerator.device))
            writer.record_rows(numbers, logits[: len(numbers)], y[: len(numbers)].to(accelerator.device))


def _save(accelerator: Any, folder: Path, epoch: int, world: Any) -> None:
    """Write the checkpoint of a finished epoch, with the digests of its files; then remove the one before."""
    path = folder / f"checkpoint-{epoch}"
    with contextlib.ExitStack() as stack:
        temporary = world.from_main(lambda: stack.enter_context(whole(path, explained, folder=True)))
        accelerator.save_state(str(temporary))
        world.barrier()
        world.from_main(lambda: _seal(temporary))
        world.from_main(stack.close)
    world.from_main(lambda: _drop_others(path))


def _seal(checkpoint: Path) -> None:
    found = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    facts = {path.relative_to(checkpoint).as_posix(): [path.stat().st_size, file_digest(path)] for path in found}
    write_text(checkpoint / CONTENTS, sealed({"files": facts}), explained)


def _drop_others(checkpoint: Path) -> None:
    for old in _checkpoints(checkpoint.parent):
        if old != checkpoint:
            gone = temporary_path(old)  # a kill in the middle leaves no half of a checkpoint
            old.rename(gone)
            remove(gone)


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _checkpoints(folder: Path) -> list[Path]:
    """From the first to the last."""
    return sorted((p for p in folder.glob("checkpoint-*") if CHECKPOINT.fullmatch(p.name)), key=_number)


def _check_checkpoint(path: Path) -> None:
    """Compare a checkpoint with the digests of its files; those of earlier versions have none.

    Raises:
        DamagedFileError: a file is missing, cut off or changed.
    """
    remedy = "put it back from a copy, or begin a log in another folder"
    with reading(path, "checkpoint", remedy):
        if not (path / CONTENTS).is_file():
            return
        for name, (size, digest) in unsealed(read_json(path / CONTENTS, "list of files", remedy))["files"].items():
            file = check_inside(path, name)
            if not file.is_file() or file.stat().st_size != size or file_digest(file) != digest:
                raise ValueError(f"{name} is missing or has changed")


def _where_to_begin(folder: Path, resume: bool) -> tuple[Path | None, bool]:
    """The checkpoint to go on from, or None for the beginning; and whether the log that is there is gone on with."""
    found = _checkpoints(folder)
    if not resume:
        cut_off = not found and any(folder.glob(f"checkpoint-*{TEMPORARY}"))
        if cut_off and finished(folder):
            warnings.warn(
                f"the run in {folder} was killed while it wrote its first checkpoint: there is none to go on from, and "
                "it begins anew; what it had recorded is kept aside until it is recorded again",
                stacklevel=3,
            )
            return None, True
        return (found[-1] if found else None), False
    lost: list[tuple[Path, DamagedFileError]] = []
    for checkpoint in reversed(found):
        try:
            _check_checkpoint(checkpoint)
        except DamagedFileError as error:
            lost.append((checkpoint, error))
            continue
        for path, why in lost:
            path.rename(at := aside(path, "damaged"))
            warnings.warn(f"{why}. It was moved to {at.name}, and the run goes on from {checkpoint.name}", stacklevel=3)
        return checkpoint, True
    if lost:
        raise lost[0][1]
    if finished(folder):
        warnings.warn(
            f"{folder} has no checkpoint to go on from: the run begins anew; what it had recorded is kept aside until "
            "it is recorded again",
            stacklevel=3,
        )
    return None, True


def _forward(model: Any, x: Any) -> Any:
    out = model(**x) if isinstance(x, Mapping) else model(x)
    return getattr(out, "logits", out)


def _to(x: Any, device: Any) -> Any:
    if isinstance(x, Mapping):
        return {name: _to(value, device) for name, value in x.items()}
    return x.to(device, non_blocking=True)


class _Read:
    """Columns of images or numbers as tensors; a class, for workers that are spawned."""

    def __init__(self, ds: Any, column: str) -> None:
        check_column(ds, column, "train_with_log")
        self.column = column

    def read(self, ds: Any) -> Any:
        """The column as it is read, whatever the format; a transform of the user's own is kept."""
        shown = unformatted(ds)
        return shown.select_columns([self.column]) if shown.format["type"] is None else shown

    def __call__(self, batch: dict[str, Any]) -> Any:
        import torch

        from hf_prune.networks.image import decode_image

        values = batch[self.column]
        if isinstance(values, torch.Tensor):
            return values
        if any(value is None for value in values):
            raise ValueError(f"column {self.column!r} has null rows, which are no input; drop them first")
        if hasattr(values[0], "convert"):
            values = [decode_image(image) for image in values]
            sizes = {image.size for image in values}
            if len(sizes) > 1:
                raise ValueError(
                    f"column {self.column!r} has images of sizes {sorted(sizes)[:5]} in one batch; give a function as "
                    "inputs= that makes them one size"
                )
            pixels = np.stack([np.asarray(image) for image in values])
            return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        try:
            numbers = np.asarray(values)
        except ValueError as error:  # NumPy makes no array of rows of unequal lengths
            raise ValueError(
                f"column {self.column!r} has rows of unequal lengths in one batch; give a function as inputs= that "
                "makes them one size"
            ) from error
        if numbers.dtype.kind not in "biuf":  # strings would be read as numbers, and nulls as NaN
            raise TypeError(
                f"column {self.column!r} holds something else than numbers (texts, nulls within rows); name a column "
                "of pictures or numbers, or give a function of the batch as inputs="
            )
        return torch.from_numpy(numbers.astype(np.float32, copy=False))


def _labels(ds: Any, label: str, id_column: str) -> NDArray[np.int64]:
    if not len(ds):
        raise ValueError("the dataset has no rows; there is nothing to train on")
    check_column(ds, id_column, "train_with_log")
    check_column(ds, label, "train_with_log")
    if pa.types.is_nested(ds.data.schema.field(label).type):
        raise TypeError(
            f"column {label!r} holds several values a row ({ds.features[label]}), as multi-label data has; a log is of "
            "hard labels, one class a row"
        )
    values, null = arrow.numeric_column(ds, label)
    if values.dtype.kind not in "iu":
        raise TypeError(
            f"column {label!r} holds {values.dtype}, not classes; a log is of hard labels, given as integers"
        )
    wrong = np.flatnonzero(null | (values < 0))
    if len(wrong):
        first = ds.with_format(None).select_columns([id_column, label])[int(wrong[0])]
        raise ValueError(
            f"column {label!r} has {len(wrong)} rows without a class (null or negative), first {id_column} "
            f"{first[id_column]!r}: {first[label]}; drop such rows first"
        )
    return values.astype(np.int64)


def _check_width(labels: NDArray[np.int64], logits: Any, label: str) -> bool:
    if logits.ndim != 2:
        raise ValueError(f"the model gives logits of shape {tuple(logits.shape)}; this loop is for classes: (b, C)")
    if labels.max() >= logits.shape[1]:
        outside = int((labels >= logits.shape[1]).sum())
        raise ValueError(
            f"column {label!r} has {outside} labels that are not in 0..{logits.shape[1] - 1}, up to {labels.max()}; "
            f"give the network {labels.max() + 1} outputs, or drop such rows"
        )
    return True


def _schedule(schedule: Schedule) -> Callable[[float], float]:
    if callable(schedule):
        return schedule
    check_choice("schedule", schedule, sorted(SCHEDULES))
    return SCHEDULES[schedule]


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    import torch

    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)


def _generator(device: Any, seed: int, step: int, process: int) -> torch.Generator:
    import torch

    mixed = seeded(seeded(np.array([step], np.uint64), seed), process)[0]
    return torch.Generator(device).manual_seed(int(mixed >> np.uint64(1)))


def _bar(done: int, total: int, world: Any) -> Any:
    from datasets.utils import tqdm

    return tqdm(initial=done, total=total, unit=" rows", desc="Training", disable=not world.main)
