"""Recording while `transformers.Trainer` trains: a mixin for any Trainer, and the plain one with it.

The stock losses, weights and order of rows stay as they are: the recorder looks at the logits that `compute_loss` has
made, and carries the number of a row beside it through the data loader, so no column of ids meets a collator.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_prune.checks import warn
from hf_prune.data.arrow import column_array
from hf_prune.data.lock import Lock, locked
from hf_prune.data.world import World
from hf_prune.dynamics.format import CHECKPOINT, MANIFEST, Mode, explained, finished
from hf_prune.dynamics.log import TrainingLog
from hf_prune.dynamics.recorder import state_of
from hf_prune.dynamics.trainer_inputs import check, class_names, labels_of, logits_of, stored_labels
from hf_prune.dynamics.writer import LogWriter

NUMBER = "hf_prune_row"  # key of a batch: where in the log its rows are
KEPT = "training_log-{}.parquet"  # beside a checkpoint: what a process has of the epoch so far


if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class RecordingMixin(_Base):
    """Write a `TrainingLog` while a Trainer trains: `class MyTrainer(RecordingMixin, Trainer)`.

    Works with image and text classification, and with language models (means over the labelled tokens; labels are
    shifted for causal ones). Gradient accumulation, mixed precision, several processes and `resume_from_checkpoint` are
    those of the Trainer. An epoch that `max_steps` or a callback cuts off is not logged, and a warning says so.

    A score belongs to a row of `train_dataset`. Where rows are packed (several documents joined, and cut to one length,
    as with `packing=True` of TRL or after `group_texts`), scores are those of packed sequences, not of documents: a
    document gets a score of its own only if it is a row. Padding-free collators, which join the rows of a batch to one,
    are refused.

    Args:
        args, kwargs: arguments of the Trainer. `train_dataset` is a `datasets.Dataset` with a column of ids.
        log: folder of the log, seen by all processes. A new run needs a new one, or one without a finished epoch,
            which it clears; `train(resume_from_checkpoint=...)` goes on with the log that is there.
        row_id: column of ids, as `with_row_id` adds it.
        mode: passes that are recorded: "train", training's own, for free; "eval", one clean pass after each epoch,
            which costs about a third of the epoch.
        clean_dataset: dataset that the clean pass reads, if `train_dataset` augments its rows: the same rows in the
            same order; None for `train_dataset`.
        divergence: whether the column `divergence` is recorded too; see `TrainingLog.create`.
        shift_labels: whether logits are for the next token; None for what the model is: true of causal language models.

    Attributes:
        log_folder: folder of the log, which `TrainingLog` and the scorers' `from_log` take.

    Raises:
        TypeError: `train_dataset` is not a `datasets.Dataset`.
        ValueError: `dataloader_drop_last=True`, `clean_dataset` has other ids, or classes of other names than the
            model's.
        KeyError: no such id column; the message lists those there are.
    """

    def __init__(
        self,
        *args: Any,
        log: str | Path,
        row_id: str = "row_id",
        mode: Mode = "train",
        clean_dataset: Any = None,
        divergence: bool = False,
        shift_labels: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.log_folder, self.row_id, self.mode = Path(log), row_id, mode
        self.divergence, self.shift_labels = divergence, shift_labels
        self.clean_dataset = clean_dataset
        self.train_dataset: Any
        self.data_collator: Any
        self._writer: LogWriter | None = None
        self._lock: Lock
        self._positions: np.ndarray  # in the log, of the rows of the dataset
        self._numbers: torch.Tensor | None = None  # of the micro-batch that is being trained on
        self._checkpoint: Path | None = None
        check(self)
        self.add_callback(_Epochs(self))

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """`Trainer.train`, with the log begun or gone on with.

        `resume_from_checkpoint=True` takes the last checkpoint that was written to its end and that the log reaches:
        if an epoch of the log is damaged, an earlier one. If there is none, since the run was killed before its first
        was whole, the run begins anew, with a warning, and what it had recorded is kept aside until it is recorded
        again. Of two runs that record into one folder the second waits.

        Raises:
            ValueError: there is a log in the folder and no checkpoint to go on from, or it is of another dataset or
                other labels; ids that are null or repeated.
            DamagedFileError: an epoch before the checkpoint is damaged; the message has the choice.
        """
        wanted = resume_from_checkpoint or None
        folder, world = self.log_folder.expanduser().absolute(), World()
        there = world.from_main(lambda: (folder / MANIFEST).exists())
        if wanted is True and not there and not self._checkpoints():
            return super().train(wanted, *args, **kwargs)  # which says that there is none
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(locked(folder, "recorded", world, explained))
            goes_on = world.from_main(lambda: self._goes_on(wanted))
            ids = column_array(self.train_dataset, self.row_id)
            self._writer = writer = TrainingLog.create(
                folder,
                ids=ids,
                labels=stored_labels(self),
                mode=self.mode,
                row_id=self.row_id,
                label=next(iter(self.label_names or ["labels"])),
                divergence=self.divergence,
                facts=_facts(self),
                resume=goes_on,
                world=world,
            )
            stack.enter_context(writer.leaving_nothing())
            self._lock = lock
            self._positions = writer.positions(ids)
            checkpoint = world.from_main(lambda: self._last_checkpoint(writer.epoch)) if wanted is True else wanted
            self._checkpoint = None if checkpoint is None else Path(checkpoint)
            return super().train(checkpoint, *args, **kwargs)

    def _checkpoints(self) -> list[Path]:
        """Folders of checkpoints, whole or not, from the first to the last."""
        found = Path(str(self.args.output_dir)).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        return sorted((p for p in found if CHECKPOINT.fullmatch(p.name)), key=lambda p: int(p.name.rpartition("-")[2]))

    def _goes_on(self, wanted: Any) -> bool:
        """Whether the log that is there is gone on with: from a checkpoint, or from the start if the first was cut."""
        if wanted is not None and wanted is not True:
            return True
        found, epochs = self._checkpoints(), finished(self.log_folder.expanduser())
        whole = any(_share_done(checkpoint) is not None for checkpoint in found)
        if whole and wanted:
            return True
        if whole or (epochs and not wanted and not found):
            if epochs:
                way = (
                    "go on with it by train(resume_from_checkpoint=True)"
                    if whole
                    else "it has no checkpoint to go on from"
                )
                raise ValueError(
                    f"{self.log_folder} holds a training log already; name another folder, or remove it first; {way}"
                )
            return False
        if epochs:
            words = "its first checkpoint was cut off" if found else "there is no checkpoint"
            warn(
                f"the run recorded in {self.log_folder} cannot be gone on with ({words}): it begins anew; what it had "
                "recorded is kept aside until it is recorded again"
            )
        return epochs > 0

    def _last_checkpoint(self, reach: int) -> str | None:
        """The last whole checkpoint that a log of so many sound epochs can follow; the last one if none is.

        A cut-off one is passed over.
        """
        found = [(path, share) for path in self._checkpoints() if (share := _share_done(path)) is not None]
        if not found:
            return None
        for path, share in reversed(found):
            again = share == reach + 1 and (self.mode == "eval" or _kept_epoch(path) == reach)
            if share < reach + 1 or again:
                if path != found[-1][0]:
                    warn(
                        f"the log in {self.log_folder} reaches to epoch {reach} without damage: the run goes on from "
                        f"{path.name}, not from {found[-1][0].name}"
                    )
                return str(path)
        return str(found[-1][0])  # and the writer says why not

    def get_train_dataloader(self) -> Any:
        if self._writer is None:
            return super().get_train_dataloader()
        stock = self.train_dataset, self.data_collator
        self.train_dataset = _Numbered(self._remove_unused_columns(stock[0], description="training"), self._positions)
        self.data_collator = _NumberedCollator(stock[1])
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = stock

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return super()._get_train_sampler(getattr(train_dataset, "rows", train_dataset))

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        numbers = inputs.pop(NUMBER, None)
        self._numbers = numbers if self.mode == "train" else None
        try:
            loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
            return loss
        finally:
            self._numbers = None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        kwargs["num_items_in_batch"] = num_items_in_batch
        if self._numbers is None:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        labels = labels_of(inputs, self.label_names)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        self._record(self._numbers, outputs, labels)
        return (loss, outputs) if return_outputs else loss

    def _record(self, numbers: torch.Tensor, outputs: Any, labels: torch.Tensor) -> None:
        logits = logits_of(outputs)
        if logits.ndim == 3 and self._shifts():
            logits, labels = logits[:, :-1], labels[:, 1:]
        assert self._writer is not None
        self._writer.record_rows(numbers, logits, labels)

    def _shifts(self) -> bool:
        if self.shift_labels is None:
            model = self.accelerator.unwrap_model(self.model)
            model = model.get_base_model() if hasattr(model, "get_base_model") else model
            causal = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
            causal = causal or getattr(model, "loss_type", None) in ("ForCausalLM", "ForConditionalGeneration")
            self.shift_labels = causal and not getattr(model.config, "is_encoder_decoder", False)
        return self.shift_labels

    # what the callback calls, on all processes

    def _train_begins(self) -> None:
        """Put the log where the run goes on."""
        writer, state = self._writer, self.state
        assert writer is not None
        epoch, within = int(state.epoch or 0), bool((state.epoch or 0) % 1)
        if self._checkpoint is None or not state.global_step:
            writer.go_to(0)  # again from the start, if a smaller batch is tried
            return
        if within and not self.args.ignore_data_skip and self.mode == "train":
            writer.go_to(epoch, partial=True)
            writer.load_state(self._kept())
        elif (
            writer.epoch == epoch - 1
            and not within
            and (self.mode == "eval" or _kept_epoch(self._checkpoint) == writer.epoch)
        ):
            if self.mode == "train":  # killed between the last checkpoint of an epoch and its end, or that is damaged
                writer.load_state(self._kept())
            self._finish_epoch()
        else:
            writer.go_to(epoch)

    def _kept(self) -> list[Path]:
        """What the processes kept beside the checkpoint, dealt out to those there are now."""
        assert self._checkpoint is not None and self._writer is not None
        world = self._writer.world
        found = sorted(self._checkpoint.glob(KEPT.format("*")))
        if not found:
            raise ValueError(
                f"{self._checkpoint} lies in the middle of an epoch and has no {KEPT.format('*')}: it was not written "
                "by a recording run; go on from one that was, or from the end of an epoch"
            )
        return found[world.index :: world.size]

    def _epoch_ends(self, batches: int) -> None:
        assert self._writer is not None
        share = (self.state.epoch or 0) % 1
        if not share:
            self._finish_epoch()
            return
        world, args = self._writer.world, self.args  # max_steps, or a callback that stops
        seen = sum(world.gather(self._writer.discard()))
        if self.mode == "eval":
            seen = round(share * batches) * args.train_batch_size * args.world_size
        if world.main:
            warn(
                f"epoch {int(self.state.epoch or 0)} was cut off after {seen} of its {len(self.train_dataset)} rows "
                "and is not in the log: end the run with an epoch, by num_train_epochs or by a max_steps that is a "
                f"multiple of {-(-batches // args.gradient_accumulation_steps)}"
            )

    def _finish_epoch(self) -> None:
        assert self._writer is not None
        if self.mode == "eval":
            self._clean_pass()
        self._writer.world.from_main(self._lock.check)
        self._writer.end_epoch()

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """What is recorded of the epoch so far comes first: what the Trainer writes last says that all is there."""
        if self._writer is not None:
            folder = Path(str(self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            if self._writer.world.main:  # of an earlier try
                (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
            self._writer.save_state(folder / KEPT.format(self._writer.world.index))
        super()._save_checkpoint(*args, **kwargs)

    def _clean_pass(self) -> None:
        """Record all rows in eval mode; no random number of the training is drawn."""
        from datasets.utils import tqdm

        assert self._writer is not None
        world, batch = self._writer.world, self.args.eval_batch_size
        rows = self.train_dataset if self.clean_dataset is None else self.clean_dataset
        mine = np.arange(world.index, len(rows), world.size)
        steps = -(-len(rows) // (world.size * batch))  # the same for all: sharded models need all processes
        order = [mine[i * batch : (i + 1) * batch] for i in range(steps)]
        loader = torch.utils.data.DataLoader(
            _Numbered(self._remove_unused_columns(rows, description="training"), self._positions),
            batch_sampler=[part.tolist() if len(part) else [0] for part in order],
            collate_fn=_NumberedCollator(self.data_collator),
            num_workers=self.args.dataloader_num_workers,
            generator=torch.Generator(),
        )
        model = self.model_wrapped
        to_evaluation = getattr(self.optimizer, "eval", None)
        if callable(to_evaluation):  # optimizers without a schedule have other weights then
            to_evaluation()
        with _same_randomness(), torch.no_grad(), _evaluating(model):
            bar = tqdm(loader, desc="Recording", leave=False, disable=self.args.disable_tqdm or not world.main)
            for part, inputs in zip(order, bar, strict=True):
                inputs = self._prepare_inputs(inputs)
                numbers = inputs.pop(NUMBER)
                with self.compute_loss_context_manager():
                    outputs = model(**inputs)
                if len(part):
                    self._record(numbers, outputs, labels_of(inputs, self.label_names))


class RecordingTrainer(RecordingMixin, Trainer):
    """`transformers.Trainer` that writes a `TrainingLog`; see `RecordingMixin` for what it takes beside.

    trainer = RecordingTrainer(model, args, train_dataset=with_row_id(ds), log="runs/log")
    trainer.train()
    scored = ds.map(AUM.from_log("runs/log"), batched=True)
    """


class _Epochs(TrainerCallback):
    """Tells the recorder where the training is."""

    def __init__(self, trainer: RecordingMixin) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer._train_begins()

    def on_epoch_end(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        self.trainer._epoch_ends(len(train_dataloader))


class _Numbered(torch.utils.data.Dataset[Any]):
    """Pairs of a row and its number in the log: whatever transform makes the row, the number stays with it."""

    def __init__(self, rows: Any, numbers: np.ndarray) -> None:
        self.rows, self.numbers = rows, numbers

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.rows[index], int(self.numbers[index])

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, int]]:
        return list(zip(self.rows.__getitems__(indices), self.numbers[indices].tolist(), strict=True))


class _NumberedCollator:
    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, pairs: list[tuple[Any, int]]) -> Any:
        batch = self.collate([row for row, _ in pairs])
        batch[NUMBER] = torch.tensor([number for _, number in pairs])
        return batch


def _share_done(checkpoint: Path) -> float | None:
    """How many epochs a checkpoint was written after; None where it is cut off: the Trainer's state comes last."""
    try:
        found = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        return float(found["epoch"] or 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _kept_epoch(checkpoint: Path) -> int:
    """The epoch that was recorded when a checkpoint was written."""
    found = sorted(checkpoint.glob(KEPT.format("*")))
    return int(state_of(found[0])["epoch"]) if found else -1


def _facts(trainer: Any) -> dict[str, Any]:
    args = trainer.args
    return {
        "recorder": type(trainer).__name__,
        "network": type(trainer.model).__name__,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        **({"class_names": names} if (names := class_names(trainer.train_dataset)) else {}),
    }


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


@contextlib.contextmanager
def _same_randomness() -> Iterator[None]:
    """Leave the generators of Python, NumPy and torch as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
