"""`score` against `Dataset.map`: a cheap scorer over an embedding column, seconds and peak anonymous memory.

    python tests/benchmarks/bench_run.py --rows 1000000 --width 64

Each arm runs in a process of its own, on the same file, and writes its column to disk. `write` is a scorer that
writes an embedding as wide as the one it reads. Memory is what the arm's process holds beyond its file maps
(RssAnon), sampled every 5 ms, less what it held before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.utils import disable_progress_bars

from hf_prune import Scorer, score


@dataclass(frozen=True, eq=False)
class Norm(Scorer):
    embedding: str = "embedding"
    name: str = "norm"

    def score(self, batch, rank):
        return np.linalg.norm(batch.matrix(self.embedding), axis=1)


@dataclass(frozen=True, eq=False)
class Double(Scorer):
    embedding: str = "embedding"
    width: int = 64
    name: str = "double"

    def columns(self):
        return {self.name: f"float32[{self.width}]"}

    def score(self, batch, rank):
        return 2 * batch.matrix(self.embedding)


def write_data(path: Path, rows: int, width: int) -> None:
    """An Arrow file of `rows` embeddings, in batches of 1,000 rows as `datasets` writes them."""
    rng = np.random.default_rng(0)
    schema = pa.schema({"embedding": pa.list_(pa.float32(), width)})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for first in range(0, rows, 1000):
            block = rng.standard_normal((min(1000, rows - first), width), np.float32)
            column = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), width)
            writer.write_batch(pa.record_batch([column], schema=schema))


def anonymous() -> float:
    """MB of this process that are no file maps."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def run_arm(arm: str, path: Path, folder: Path, width: int) -> None:
    disable_progress_bars()
    ds = Dataset.from_file(str(path))
    scorer = Double(width=width) if arm.endswith("write") else Norm()
    score(Dataset.from_dict({"embedding": [[1.0] * width]}), scorer, output_dir=folder / "warm")  # imports
    before, peak, stop = anonymous(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    if arm.startswith("map"):
        out = ds.map(
            scorer, batched=True, features=scorer.features(ds.features), cache_file_name=str(folder / "m.arrow")
        )
    else:
        out = score(ds, scorer, output_dir=folder / "scores")
    seconds = time.perf_counter() - begin
    stop.set()
    watcher.join()
    column = out.data.column(scorer.name)
    last = column.chunk(column.num_chunks - 1)
    total = float(np.sum(last.flatten().to_numpy() if arm.endswith("write") else last.to_numpy(), dtype=np.float64))
    again = None
    if arm.startswith("score"):
        begin = time.perf_counter()
        score(ds, scorer, output_dir=folder / "scores")
        again = round(time.perf_counter() - begin, 2)
    print(json.dumps({"seconds": round(seconds, 2), "again": again, "mb": round(peak - before, 1), "last": total}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--arm", default=None)
    parser.add_argument("--path", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.arm:
            run_arm(options.arm, options.path, Path(folder), options.width)
            return
        path = Path(folder) / "data.arrow"
        write_data(path, options.rows, options.width)
        found = {}
        for arm in ("map", "score", "map-write", "score-write"):
            command = [sys.executable, __file__, "--arm", arm, "--path", str(path), "--width", str(options.width)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[arm] = json.loads(done.stdout.splitlines()[-1])
            print(f"{arm:12} {found[arm]}", flush=True)
        for tail in ("", "-write"):
            ours, theirs = found["score" + tail], found["map" + tail]
            assert np.isclose(ours["last"], theirs["last"], rtol=1e-6) or tail == "", "the arms disagree"
            print(f"score{tail} takes {ours['seconds'] / theirs['seconds']:.2f} of the time of map{tail}")


if __name__ == "__main__":
    main()
