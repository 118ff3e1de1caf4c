"""Work that tests kill at each of its writes, and what they look at afterwards; each takes an empty folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict
from run_scorers import Length, Widen

import hf_prune.run.join as join_module
import hf_prune.share.remote as remote_module
import hf_prune.share.tables as tables_module
from hf_prune import filter_by_score, load_scores, push_scored, save_scored, score
from hf_prune.cli import main
from hf_prune.data import lock

datasets.disable_progress_bars()
CHANGED = (
    (join_module, "IN_MEMORY_BYTES"),
    (lock, "PATIENCE"),
    (lock, "UNWRITTEN"),
    (tables_module, "SHARD_BYTES"),
)  # where tests that call these functions themselves put things back
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
    lock.PATIENCE, lock.UNWRITTEN = 0.02, 0.05  # what the dead held is taken over sooner
    out = score(texts(), Length(), Widen(), output_dir=folder / "a" / "scores", shard_rows=3, batch_size=2, **options)
    return {"length": out["length"][:], "wide": out["wide"][:]}


def run_score(folder: Path) -> None:
    score_all(folder)


def score_again(folder: Path) -> dict[str, Any]:
    """What the next call gives, and what it leaves."""
    if (folder / "a" / "scores" / lock.NAME).exists():
        time.sleep(0.05)
    return {**score_all(folder), "files": files_of(folder)}


def few_scores(folder: Path) -> dict[str, Any]:
    """One scorer, two parts, no layout: as small as it can be."""
    lock.PATIENCE, lock.UNWRITTEN = 0.02, 0.05
    ds = Dataset.from_dict({"text": TEXTS[:3]})
    return {"length": score(ds, Length(), output_dir=folder / "scores", shard_rows=2)["length"][:]}


def few_again(folder: Path) -> dict[str, Any]:
    if (folder / "scores" / lock.NAME).exists():
        time.sleep(0.05)
    return {**few_scores(folder), "files": files_of(folder)}


def overwrite_scores(folder: Path) -> None:
    score_all(folder, overwrite=True)


# filter


def make_data(folder: Path) -> None:
    """What the filters work on."""
    rows = 400
    ds = Dataset.from_dict({"text": [f"row {i}" for i in range(rows)], "q": [(i * 37) % rows for i in range(rows)]})
    ds.save_to_disk(str(folder / "data"))


def filter_cached(folder: Path) -> dict[str, Any]:
    ds = datasets.load_from_disk(str(folder / "data"))
    out = filter_by_score(ds, "q", keep=0.3)
    return {"text": out["text"][:], "cached": "cache-prune" in out.cache_files[0]["filename"]}


def filter_again(folder: Path) -> dict[str, Any]:
    return {**filter_cached(folder), "files": files_of(folder)}


def filter_command(folder: Path, name: str, keep: float) -> None:
    command = ["filter", str(folder / "data"), "--by", "q", "--keep", str(keep), "-o", str(folder / "out" / name)]
    main.app([*command, "--overwrite", "--report", str(folder / "out" / "report.html")], standalone_mode=False)


def filter_to_folder(folder: Path) -> None:
    filter_command(folder, "kept", 0.3)


def filter_to_files(folder: Path) -> None:
    filter_command(folder, "kept.parquet", 0.3)
    filter_command(folder, "kept.jsonl", 0.3)
    filter_command(folder, "kept.csv", 0.3)


def read_kept(path: Path) -> int | None:
    """Number of rows of an output; None where there is none."""
    if not path.exists():
        return None
    if path.is_dir():
        return len(datasets.load_from_disk(str(path)))
    if path.suffix == ".parquet":
        return int(pq.read_table(path).num_rows)
    return len(path.read_text().splitlines()) - (path.suffix == ".csv")


def folder_again(folder: Path) -> dict[str, Any]:
    before = [read_kept(folder / "out" / "kept")]
    filter_to_folder(folder)
    found = files_of(folder)
    found.pop("out/kept/state.json")  # datasets puts a number of its own there
    return {"before": before, "files": found}


def files_again(folder: Path) -> dict[str, Any]:
    before = [read_kept(folder / "out" / name) for name in ("kept.parquet", "kept.jsonl", "kept.csv")]
    filter_to_files(folder)
    return {"before": before, "files": files_of(folder)}


# scores in folders and on the Hub


def numbered(first: float, **splits: int) -> DatasetDict:
    """Splits with so many rows, scores counted from `first`."""
    return DatasetDict(
        {
            name: Dataset.from_dict({"row_id": [f"{name}{i}" for i in range(n)], "q": [first + i for i in range(n)]})
            for name, n in splits.items()
        }
    )


def save_first(folder: Path) -> None:
    tables_module.SHARD_BYTES = 60  # so that a split has several files
    save_scored(numbered(0.0, train=4, test=2), folder / "scores", columns="q")
    readme = folder / "scores" / "README.md"
    readme.write_text(readme.read_text() + "\nwords of the owner\n")


def save_second(folder: Path) -> None:
    tables_module.SHARD_BYTES = 500_000_000
    save_scored(numbered(50.0, train=4), folder / "scores", columns="q")


def loaded(folder: Path) -> dict[str, Any]:
    """Scores by split and id, or why not."""
    try:
        found = load_scores(folder / "scores")
    except ValueError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {split: dict(zip(ds["row_id"][:], ds["q"][:], strict=True)) for split, ds in found.items()}


def saved_again(folder: Path) -> dict[str, Any]:
    before = loaded(folder)
    save_second(folder)
    return {"before": before, "files": files_of(folder), "readme": (folder / "scores" / "README.md").read_text()}


def push(folder: Path) -> None:
    """Push to a repo of this run's own; each request is an event too, for it makes a folder before it is sent."""
    tempfile.tempdir = str(folder / "tmp")
    (folder / "tmp").mkdir(exist_ok=True)
    client = remote_module._http.Client
    send = client.send

    def counted(self: Any, request: Any, **more: Any) -> Any:
        os.mkdir(
            folder / "tmp" / f"{len(os.listdir(folder / 'tmp'))} {request.method} {request.url.path.rpartition('/')[2]}"
        )
        return send(self, request, **more)

    client.send = counted
    try:
        push_scored(numbered(0.0, train=6), f"user/run{folder.parent.name}", columns="q")
    finally:
        client.send = send


def pushed_again(folder: Path) -> dict[str, Any]:
    push(folder)
    repo = f"user/run{folder.parent.name}"
    remote = remote_module.Remote(repo)
    head = remote.head()
    files = sorted(p for p in remote.listing("", head) if p != ".gitattributes")
    texts = [remote.text(name, head) or "" for name in ("README.md", "score_columns.json")]
    return {
        "q": load_scores(repo)["train"]["q"][:],
        "files": files,
        "texts": [re.sub(r"\b[0-9a-f]{40}\b", "commit", t.replace(repo.partition("/")[2], "run")) for t in texts],
        "left": [p.name for p in (folder / "tmp").iterdir() if p.name.startswith("scratch")],
    }
