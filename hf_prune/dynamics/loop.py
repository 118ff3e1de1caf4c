"""`train_with_log`: a small training loop that writes a `TrainingLog`, to be read from top to bottom.

A global batch is the same rows whatever the number of processes, each of which takes its share; the loss is the mean
over the global batch. So no row is repeated to fill a batch, and two processes train as one does (but for dropout,
augmentation, and batch norm, whose statistics are those of a share). The function is long by its arguments: what it
does is thirty lines, and `_Run` has the rest.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_choice, check_count
from hf_prune.data import arrow
from hf_prune.data.identity import check_seed, seeded
from hf_prune.data.lock import Lock, locked
from hf_prune.dynamics import checkpoints
from hf_prune.dynamics.evaluate import Loss, check_model, cross_entropy, processes
from hf_prune.dynamics.feed import Feed, Inputs, to_device
from hf_prune.dynamics.format import Mode, explained
from hf_prune.dynamics.log import TrainingLog
from hf_prune.dynamics.writer import LogWriter

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from datasets import Dataset

    from hf_prune.data.world import World

Schedule: TypeAlias = Literal["constant", "linear", "cosine"] | Callable[[float], float]
Augment: TypeAlias = "Callable[[Any, torch.Generator], Any]"

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
}


def train_with_log(
    model: torch.nn.Module,
    ds: Dataset,
    log: str | Path,
    *,
    epochs: int,
    inputs: Inputs = "image",
    label: str = "label",
    row_id: str = "row_id",
    batch_size: int = 128,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    schedule: Schedule = "cosine",
    augment: Augment | None = None,
    loss: Loss | None = None,
    mode: Mode = "train",
    divergence: bool = False,
    seed: int = 0,
    resume: bool = False,
    save_every: int = 1,
    workers: int = 0,
    accelerator: Accelerator | None = None,
    on_epoch: Callable[[int, torch.nn.Module], None] | None = None,
) -> TrainingLog:
    """Train a classifier in place, and record what it does with each row in each epoch.

    Call it on all processes of `accelerate launch`. The order of the rows is a function of the seed, the epoch and the
    rows' ids. With `resume=True` a run that was killed goes on from its last checkpoint, and its log too; finished
    epochs that the checkpoint does not know are recorded again, and kept aside until then. A call that is refused
    leaves no folder behind; of two calls on one folder the second waits.

    The network is fed float32 tensors: of a column of images (b, 3, h, w) in RGB, from -1 to 1 (`pixel / 127.5 - 1`),
    whatever the images are; of a column of lists of numbers (b, d) as they are. A network for one channel, or for
    other means and deviations, needs a function as `inputs`. `evaluate_model` reads a test set in the same way.

    Args:
        model: network that gives logits (b, C), or an output with `logits`.
        ds: dataset of n rows with ids, labels and inputs.
        log: folder of the log and the last checkpoint, seen by all processes.
        epochs: number of epochs of the whole run.
        inputs: column of images of one size, or of lists of numbers; or a function of the dict of a batch's columns
            that gives a tensor, or keyword arguments for the model.
        label: column of integers from 0 to C - 1. One output more than there are labels is allowed (threshold samples).
        row_id: column of ids, as `with_row_id` adds it.
        batch_size: number of rows in a forward pass, over all processes: of a step, or of one part of a step where
            `accelerator` accumulates gradients. A step takes the mean over its rows, also where the end of an epoch
            cuts it short.
        optimizer: function that makes an optimizer of the parameters; SGD with rate 0.1, Nesterov momentum 0.9 and
            decay 5e-4 by default.
        schedule: factor on the learning rate as a function of the share of training done; or "constant", "linear",
            "cosine".
        augment: function that changes the inputs of a training step on their device, with a generator seeded by (seed,
            step, process); `crop_and_flip` is one.
        loss: function of logits (b, C) and labels (b,) that gives the losses (b,); cross-entropy by default.
        mode: passes that are recorded: "train", training's own; "eval", one clean pass after each epoch.
        divergence: whether the column `divergence` is recorded too; see `TrainingLog.create`.
        seed: seed of the order, the augmentation and torch's own generators. Weights are yours to make.
        resume: whether to go on with the log in the folder, if there is one. Without it, one that has no finished
            epoch, or whose run was killed while it wrote its first checkpoint, is begun anew, with a warning.
        save_every: number of epochs from checkpoint to checkpoint, 0 for none; the last one is kept.
        workers: number of processes that load rows, 0 for none beside this one.
        accelerator: an `accelerate.Accelerator`, for mixed precision, gradient accumulation and the like.
        on_epoch: function called with the number of the finished epoch and the model, on every process.

    Returns:
        The log.

    Raises:
        KeyError: a column is missing; the message lists those there are.
        ValueError: no epochs, labels out of range, classes of other names than the model's, ids that are null or
            repeated, inputs that the network does not take, a log in the folder and `resume` False, or one of another
            dataset or other labels.
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
    check_count("epochs", epochs)
    check_count("save_every", save_every, 0)
    check_count("workers", workers, 0)
    check_model(model)
    factor = _factor(schedule)
    feed = Feed(ds, inputs=inputs, label=label, row_id=row_id, who="train_with_log")
    feed.check_names(model, f"the network {type(model).__name__}")

    with contextlib.ExitStack() as stack:
        run = _begin(
            stack, model, feed, Path(log).expanduser().absolute(),
            accelerator=accelerator, optimizer=optimizer, epochs=epochs, batch_size=batch_size, seed=seed,
            resume=resume, workers=workers, save_every=save_every, log={"mode": mode, "divergence": divergence},
            facts={"schedule": _name(schedule), "augmented": augment is not None},
        )  # fmt: skip
        for epoch in range(run.begin, epochs):
            run.model.train()
            for x, y, rows, share in run.passes(epoch, factor, augment):
                with run.accumulating():
                    logits = feed.logits(run.model, x)
                    losses = cross_entropy(logits, y) if loss is None else loss(logits, y)
                    mine = len(rows)  # 0 where this process only takes part in the collectives
                    run.accelerator.backward(losses[:mine].sum() * share + losses[mine:].sum() * 0)
                run.optimizer.step()  # these two wait for the last pass of the step
                run.optimizer.zero_grad()
                if mode == "train":
                    run.writer.record_rows(rows, logits[:mine], y[:mine])
            if mode == "eval":
                run.clean_pass()
            run.end_epoch(epoch)
            if on_epoch is not None:
                on_epoch(epoch, run.accelerator.unwrap_model(run.model))
    run.accelerator.unwrap_model(run.model, keep_fp32_wrapper=False)  # the forward pass is the user's own again
    return TrainingLog(run.folder)


@dataclass(kw_only=True)
class _Run:
    """A run that has begun: what was prepared, and where it goes on."""

    accelerator: Any
    world: World
    model: Any
    optimizer: Any
    rates: list[float]  # learning rates before the schedule
    folder: Path
    lock: Lock
    writer: LogWriter
    feed: Feed
    begin: int
    epochs: int
    batch_size: int
    seed: int
    workers: int
    save_every: int
    bar: Any

    @property
    def every(self) -> int:
        """Forward passes of a step."""
        return int(self.accelerator.gradient_accumulation_steps)

    def passes(
        self, epoch: int, factor: Callable[[float], float], augment: Augment | None
    ) -> Iterator[tuple[Any, Any, Any, float]]:
        """The forward passes of an epoch, with the learning rate set: inputs, labels, rows, weight of a row's loss."""
        n, device = len(self.feed), self.accelerator.device
        keys = self.writer.ids.keys[self.feed.rows]
        order = np.argsort(seeded(seeded(keys, self.seed), epoch), kind="stable")
        batches: list[NDArray[np.int64]] = [order[i] for i in self.feed.in_order(self.batch_size)]
        steps = math.ceil(len(batches) / self.every)
        for number, (x, y, rows, count) in enumerate(self.feed.shares(batches, self.world, self.workers)):
            step, within = divmod(number, self.every)
            in_step = min(self.batch_size * self.every, n - step * self.batch_size * self.every)
            self.accelerator.sync_gradients = within == self.every - 1 or number == len(batches) - 1
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor((epoch * steps + step) / (steps * self.epochs))
            x, y = to_device(x, device), y.to(device, non_blocking=True)
            if augment is not None:
                x = augment(x, _generator(device, self.seed, epoch * len(batches) + number, self.world.index))
            yield x, y, rows, self.world.size * self.every / in_step  # `backward` divides by `every`
            self.bar.update(count)

    def accumulating(self) -> Any:
        """Where a pass is not the last of its step, its gradients wait for those of the others."""
        return contextlib.nullcontext() if self.accelerator.sync_gradients else self.accelerator.no_sync(self.model)

    def clean_pass(self) -> None:
        """Record all rows in eval mode."""
        import torch

        self.model.eval()
        device = self.accelerator.device
        with torch.no_grad():
            for x, y, rows, _ in self.feed.shares(self.feed.in_order(self.batch_size), self.world, self.workers):
                logits = self.feed.logits(self.model, to_device(x, device))
                self.writer.record_rows(rows, logits[: len(rows)], y[: len(rows)].to(device))

    def end_epoch(self, epoch: int) -> None:
        """Finish an epoch of the log, and write a checkpoint where one is due."""
        self.world.from_main(self.lock.check)
        self.writer.end_epoch()
        if self.save_every and ((epoch + 1) % self.save_every == 0 or epoch + 1 == self.epochs):
            checkpoints.save(self.accelerator, self.folder, epoch + 1, self.world)


def _begin(
    stack: contextlib.ExitStack,
    model: torch.nn.Module,
    feed: Feed,
    folder: Path,
    *,
    accelerator: Accelerator | None,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None,
    resume: bool,
    log: dict[str, Any],
    facts: dict[str, Any],
    **given: Any,
) -> _Run:
    """Prepare a run, open its log and put it where it goes on; `stack` undoes what does not outlive the call."""
    from accelerate.utils import set_seed

    check_count("batch_size", given["batch_size"])
    accelerator, world = processes(accelerator)
    set_seed(check_seed(given["seed"]) + world.index)
    model, opt = accelerator.prepare(model, (optimizer or _sgd)(model.parameters()))
    rates = [group["lr"] for group in opt.param_groups]
    facts = {
        "recorder": "train_with_log",
        "network": type(accelerator.unwrap_model(model)).__name__,
        "batch_size": given["batch_size"] * accelerator.gradient_accumulation_steps,
        "learning_rate": rates[0],
        **facts,
        "seed": given["seed"],
        **({"class_names": feed.class_names} if feed.class_names else {}),
    }
    ids = arrow.column_array(feed.ds, feed.row_id)
    lock = stack.enter_context(locked(folder, "recorded", world, explained))
    checkpoint, goes_on = world.from_main(lambda: checkpoints.where_to_begin(folder, resume))
    writer = TrainingLog.create(
        folder, ids=ids, labels=feed.labels, row_id=feed.row_id, label=feed.label, facts=facts, resume=goes_on,
        world=world, **log,
    )  # fmt: skip
    stack.enter_context(writer.leaving_nothing())
    stack.callback(setattr, accelerator, "sync_gradients", True)
    feed.rows = writer.positions(ids)
    begin = 0 if checkpoint is None else checkpoints.load(accelerator, checkpoint)
    writer.go_to(begin)
    if checkpoint is not None:
        world.from_main(lambda: checkpoints.drop_others(checkpoint))  # a kill may have left the one before
    bar = stack.enter_context(_bar(begin * len(feed), given["epochs"] * len(feed), world))
    return _Run(
        accelerator=accelerator, world=world, model=model, optimizer=opt, rates=rates, folder=folder, lock=lock,
        writer=writer, feed=feed, begin=begin, bar=bar, **given,
    )  # fmt: skip


def _factor(schedule: Schedule) -> Callable[[float], float]:
    if callable(schedule):
        return schedule
    check_choice("schedule", schedule, sorted(SCHEDULES))
    return SCHEDULES[schedule]


def _name(schedule: Schedule) -> str:
    return schedule if isinstance(schedule, str) else getattr(schedule, "__name__", "own")


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
