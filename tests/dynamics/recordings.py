"""What `test_log_kills` kills and looks at; a module of its own, which has done it once before it is forked."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import warnings
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets import Dataset

from hf_prune import TrainingLog, train_with_log
from hf_prune.data.files import TEMPORARY

N, C = 14, 3
IDS = [f"row {i}" for i in range(N)]
LABELS = (np.arange(N) * 7 % C).tolist()


def summary(log: TrainingLog, *more: bytes) -> dict:
    """What a log says, and what is left in its folder that should not be."""
    read = [log.read(name, epoch).tobytes() for epoch in range(log.epochs) for name in log.columns]
    told = [str(log.report(epoch)) for epoch in range(log.epochs)]
    sums = [hashlib.sha256(part).hexdigest()[:12] for part in (*read, *more, str(told).encode())]
    left = [p.name for p in log.folder.rglob("*") if TEMPORARY in p.name or "replaced" in p.name or "damaged" in p.name]
    kept = sorted(p.name for p in log.folder.glob("[cp]*-*"))
    return {"epochs": log.epochs, "sums": sums, "left": left, "kept": kept}


def train(folder: Path, **options) -> dict:
    torch.manual_seed(0)
    net = torch.nn.Linear(2, C)
    ds = Dataset.from_dict({"row_id": IDS, "x": [[i / N, i % 3] for i in range(N)], "label": LABELS})
    options = {"epochs": 2, "inputs": "x", "batch_size": 5, "divergence": True, **options}
    log = train_with_log(net, ds, folder / "log", **options)
    return summary(log, *(value.numpy().tobytes() for value in net.state_dict().values()))


def again(folder: Path) -> dict:
    """The same call again: with `resume`, and on a copy without, which works or says that there is a log."""
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    log = folder / "log"
    state = {
        "before": len(list(log.glob("epoch-*/report.json"))),
        "cut": bool(list(log.glob(f"checkpoint-1.*{TEMPORARY}"))) and not (log / "checkpoint-2").exists(),
    }
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            anew = train(copy)
        except ValueError as error:
            assert "holds a training log already" in str(error)
            anew = train(copy, resume=True)
            state["refused"] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = train(folder, resume=True)
    words = [str(w.message) for w in told if w.category is UserWarning]
    return {"resumed": found, "anew": anew, "state": state, "told": words}


AHEAD = {"epochs": 6, "save_every": 3, "divergence": False}


def ahead(folder: Path) -> None:
    """A log that is two epochs ahead of its checkpoint."""

    def stop(epoch: int, model: torch.nn.Module) -> None:
        if epoch == 4:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        train(folder, on_epoch=stop, **AHEAD)
    assert TrainingLog(folder / "log").epochs == 5 and (folder / "log" / "checkpoint-3").exists()


def go_on(folder: Path) -> dict:
    return train(folder, resume=True, **AHEAD)


def by_hand(folder: Path, resume: bool = False) -> dict:
    """A loop of the user's own, which keeps what was recorded of half an epoch."""
    z = np.random.default_rng(0).normal(size=(2, N, C)).astype(np.float32)
    made = TrainingLog.create(folder / "log", ids=IDS, labels=LABELS, divergence=True, resume=resume)
    state = folder / "half"
    for epoch in range(made.epoch, 2):
        begin = 0
        if epoch == 1 and resume and state.exists():
            made.load_state([state])
            begin = 6
        if begin == 0:
            made.record(IDS[:6], z[epoch, :6], LABELS[:6])
            if epoch == 1:
                made.save_state(state)
        made.record(IDS[6:], z[epoch, 6:], LABELS[6:])
        made.end_epoch()
    return summary(TrainingLog(folder / "log"))


def one_epoch(folder: Path, resume: bool = False) -> dict:
    """The least that is recorded."""
    made = TrainingLog.create(folder / "log", ids=IDS, labels=LABELS, resume=resume)
    if made.epoch == 0:
        made.record(IDS, np.eye(C, dtype=np.float32)[LABELS], LABELS)
        made.end_epoch()
    return summary(TrainingLog(folder / "log"))


def one_epoch_again(folder: Path) -> dict:
    return one_epoch(folder, resume=True)


def by_hand_again(folder: Path) -> dict:
    return by_hand(folder, resume=True)


datasets.disable_progress_bars()
with tempfile.TemporaryDirectory() as place:  # what is imported on the way is imported once
    train(Path(place))
