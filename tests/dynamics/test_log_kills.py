"""Recording killed at every write, sync and rename: what is called again ends as the run that nobody disturbed."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from killing import kills

from hf_prune import TrainingLog, train_with_log
from hf_prune._files import TEMPORARY

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


def train(folder: Path, resume: bool = False, epochs: int = 2) -> dict:
    torch.manual_seed(0)
    net = torch.nn.Linear(2, C)
    ds = Dataset.from_dict({"row_id": IDS, "x": [[i / N, i % 3] for i in range(N)], "label": LABELS})
    options = {"inputs": "x", "batch_size": 5, "divergence": True, "resume": resume}
    log = train_with_log(net, ds, folder / "log", epochs=epochs, **options)
    return summary(log, *(value.numpy().tobytes() for value in net.state_dict().values()))


def again(folder: Path) -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = {p.parent.name for p in folder.glob("log/epoch-*/report.json")}
        found = train(folder, resume=True)
    return found | {"before": len(before)}


def anew(folder: Path) -> dict:
    """The same call again, without `resume`: it works, or says that there is a log."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = train(folder)
        except ValueError as error:
            assert "holds a training log already" in str(error)
            found = train(folder, resume=True)
    return found | {"told": [str(w.message) for w in told if w.category is UserWarning]}


def test_train_with_log_killed_at_every_step(tmp_path):
    deaths = kills("test_log_kills:train", tmp_path, then="test_log_kills:again")
    whole = deaths[-1].after
    assert len(deaths) > 60 and all(death.died for death in deaths[:-1]) and whole["epochs"] == 2 and not whole["left"]
    seen = set()
    for death in deaths:
        assert {**death.after, "before": 0} == {**whole, "before": 0}, str(death)
        seen.add(death.after["before"])
    assert seen == {0, 1, 2}


def test_the_same_call_after_a_kill(tmp_path):
    """Where the first checkpoint was cut off it begins anew with a word, as there is nothing to go on from."""
    deaths = kills("test_log_kills:train", tmp_path, then="test_log_kills:anew")
    whole, told = deaths[-1].after, {}
    for death in deaths:
        assert {**death.after, "told": 0} == {**whole, "told": 0}, str(death)
        told[death.event.split("/", 1)[-1]] = death.after["told"]
    cut = {
        event: words for event, words in told.items() if event.startswith("checkpoint-1.") or "checkpoint-1" == event
    }
    assert cut and all(any("killed while it wrote its first checkpoint" in w for w in words) for words in cut.values())


def resume_from_first(folder: Path) -> dict:
    return train(folder, resume=True, epochs=4)


def test_a_resumed_run_killed_at_every_step(tmp_path):
    """It moves epochs aside, which its checkpoint does not know, and records them again."""
    start = tmp_path / "start"
    train(start, epochs=2)
    for path in (start / "log").glob("checkpoint-*"):
        path.rename(path.with_name("checkpoint-1"))  # of weights that are not those, but the same for all
    (start / "log" / "checkpoint-1").rename(start / "log" / "checkpoint-2")
    deaths = kills(
        "test_log_kills:resume_from_first", tmp_path / "runs", start=start, then="test_log_kills:resume_from_first"
    )
    for death in deaths:
        assert death.after == deaths[-1].after, str(death)
    assert deaths[-1].after["epochs"] == 4


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


def by_hand_again(folder: Path) -> dict:
    return by_hand(folder, resume=True)


@pytest.mark.parametrize("how", ["kill", "full"])
def test_a_log_by_hand_at_every_step(tmp_path, how):
    deaths = kills("test_log_kills:by_hand", tmp_path, then="test_log_kills:by_hand_again", how=how)
    assert len(deaths) > 30
    for death in deaths:
        assert death.after == deaths[-1].after, str(death)
        if how == "full" and death.event != "the end" and "lock" not in death.event:
            assert "No space left" in death.said or "sync" in death.event or "rename" in death.event, str(death)
