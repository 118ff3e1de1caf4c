"""A `RecordingTrainer` for `test_log_kills`; a module of its own, which has trained once before it is forked."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
import warnings
from pathlib import Path

import datasets
from test_trainer import arguments, classifier, pad, texts, weights

from hf_prune import RecordingTrainer, TrainingLog
from hf_prune.data.files import TEMPORARY


def train(folder: Path, checkpoint: bool | None = None) -> dict:
    """Two epochs of three steps, with a checkpoint every other step: at an end and in the middle of epochs."""
    options = arguments(folder / "out", save_strategy="steps", save_steps=2)
    made = RecordingTrainer(
        classifier(), options, train_dataset=texts(10), data_collator=pad, log=folder / "log", divergence=True
    )
    made.train(resume_from_checkpoint=checkpoint)
    log = TrainingLog(folder / "log")
    read = [log.read(name, epoch).tobytes() for epoch in range(log.epochs) for name in log.columns]
    read.append(weights(made).numpy().tobytes())
    left = [p.name for p in log.folder.rglob("*") if TEMPORARY in p.name or "epoch-" in p.name and "." in p.name]
    return {"epochs": log.epochs, "sums": [hashlib.sha256(x).hexdigest()[:12] for x in read], "left": left}


def again(folder: Path) -> dict:
    """Gone on with, or begun anew if nothing was there yet."""
    there = (folder / "log" / "log.json").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train(folder, True if there else None)


datasets.disable_progress_bars()
with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):  # the Trainer prints
    train(Path(place))
