"""Work that tests kill at each of its writes, and what they look at afterwards; each takes an empty folder."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from run_scorers import Length, Widen

import hf_prune._run.join as join_module
from hf_prune import _lock, score

datasets.disable_progress_bars()
_lock.PATIENCE, _lock.UNWRITTEN = 0.02, 0.05  # what the dead held is taken over sooner
TEXTS = ["a", "bb", "ccc", "dddd", "eeeee"]


def files_of(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder; of JSON without what a clock says."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.suffix == ".json":
            facts = json.loads(data)
            data = json.dumps({k: v for k, v in facts.items() if k not in ("seconds", "check")}).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


# score


def texts() -> Dataset:
    """Five rows behind an indices mapping."""
    return Dataset.from_dict({"text": TEXTS}).select(np.array([4, 2, 0, 1, 3]))


def score_all(folder: Path, **options: Any) -> dict[str, Any]:
    join_module.IN_MEMORY_BYTES = 1  # so that the layout is a file
    out = score(texts(), Length(), Widen(), output_dir=folder / "a" / "scores", shard_rows=3, batch_size=2, **options)
    return {"length": out["length"][:], "wide": out["wide"][:]}


def run_score(folder: Path) -> None:
    score_all(folder)


def score_again(folder: Path) -> dict[str, Any]:
    """What the next call gives, and what it leaves."""
    if (folder / "a" / "scores" / _lock.NAME).exists():
        time.sleep(_lock.UNWRITTEN)
    return {**score_all(folder), "files": files_of(folder)}


def overwrite_scores(folder: Path) -> None:
    score_all(folder, overwrite=True)
