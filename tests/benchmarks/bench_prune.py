"""Pruning against what `datasets` offers, each with one full pass over what is left.

    python tests/benchmarks/bench_prune.py [--small] [--rounds 5] [--switch]

Candidates run in turns on the same memory-mapped dataset, with no cached result; rows are compared.
`--switch` finds the row size at which a contiguous copy stops paying.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_prune.prune.filter import filter_by_score

KEEP = 0.5


def write(folder: Path, n: int, size: int) -> str:
    """`n` rows of id, score and `size` bytes of text, written in batches of 1,000 as `map` does."""
    path = str(folder / f"rows-{n}-{size}.arrow")
    rng = np.random.default_rng(0)
    schema = pa.schema({"id": pa.int64(), "text": pa.string(), "score": pa.float32()})
    filler = "".join(chr(97 + i) for i in rng.integers(0, 26, size + 1000).tolist())
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, n, 1000):
            m = min(1000, n - start)
            texts = [filler[i % 1000 : i % 1000 + size] for i in range(start, start + m)]
            columns = [np.arange(start, start + m), texts, rng.random(m).astype(np.float32)]
            writer.write_batch(pa.record_batch([pa.array(c) for c in columns], schema=schema))
    return path


def candidates(cut: float) -> dict[str, Callable[[Dataset], Dataset]]:
    """Ways to keep the rows whose score is at least `cut`."""

    def select(ds: Dataset) -> Dataset:
        scores = ds.data.column("score").to_numpy()
        return ds.select(np.flatnonzero(scores >= np.float32(cut)))

    return {
        "filter(lambda, input_columns)": lambda ds: ds.filter(lambda s: s >= cut, input_columns="score"),
        "filter(batched, input_columns)": lambda ds: ds.filter(
            lambda s: (np.asarray(s) >= cut).tolist(), input_columns="score", batched=True
        ),
        "select(np.flatnonzero)": select,
        "filter_by_score": lambda ds: filter_by_score(ds, "score", keep=KEEP),
        "filter_by_score(contiguous)": lambda ds: filter_by_score(ds, "score", keep=KEEP, layout="contiguous"),
    }


def arrow_pass(ds: Dataset) -> Iterator[int]:
    """Arrow batches of 1,000."""
    for batch in ds.with_format("arrow").iter(1000):
        yield batch.num_rows


def python_pass(ds: Dataset) -> Iterator[int]:
    """Python batches of 1,000."""
    for batch in ds.iter(1000):
        yield len(batch["id"])


def race(path: str, rounds: int, run: dict[str, Callable[[Dataset], Dataset]], reader: Any) -> dict[str, list[float]]:
    """Seconds of prune + pass for each candidate, in turns; the rows must be the same."""
    seconds: dict[str, list[float]] = {name: [] for name in run}
    expected: Any = None
    for turn in range(rounds):
        for name, prune in run.items():
            ds = Dataset.from_file(path)
            ds._fingerprint = f"{name}-{turn}-{time.time_ns()}"  # a cached result would win every race
            start = time.perf_counter()
            kept = prune(ds)
            rows = sum(reader(kept))
            seconds[name].append(time.perf_counter() - start)
            ids = np.concatenate([b["id"].to_numpy() for b in kept.with_format("arrow").iter(1000)])
            expected = ids if expected is None else expected
            assert rows == len(ids) and np.array_equal(ids, expected), name
            for file in kept.cache_files:
                if file["filename"] != path:
                    Path(file["filename"]).unlink(missing_ok=True)
    return seconds


def report(title: str, seconds: dict[str, list[float]]) -> None:
    """Medians and ratios to ours."""
    ours = statistics.median(seconds["filter_by_score"])
    theirs = {name: statistics.median(s) for name, s in seconds.items()}
    print(f"\n{title}")
    for name, median in theirs.items():
        low, high = min(seconds[name]), max(seconds[name])
        print(f"  {name:32} {median:8.3f} s  ({low:.3f} to {high:.3f})  {median / ours:6.2f} x ours")
    best = min(median for name, median in theirs.items() if not name.startswith("filter_by_score"))
    print(f"  best of the others / ours: {best / ours:.2f}")


def main() -> None:
    """Run the races."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="a tenth of the rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--switch", action="store_true", help="copy against select over row sizes")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    part = 10 if args.small else 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.switch:
            for size in (1000, 2000, 4000, 8000, 16000, 32000):
                path = write(folder, 400_000_000 // size // part, size)
                run = candidates(cut_of(path))
                run = {n: run[n] for n in ("select(np.flatnonzero)", "filter_by_score(contiguous)")}
                for reader in (arrow_pass, python_pass):
                    times = race(path, args.rounds, run, reader)
                    a, b = (statistics.median(s) for s in times.values())
                    print(f"{size:6} B, {reader.__doc__} select / contiguous: {a / b:.2f}", flush=True)
                Path(path).unlink()
            return
        for n, size in ((1_000_000 // part, 84), (10_000 // part, 50_000)):
            path = write(folder, n, size)
            for reader in (arrow_pass, python_pass):
                seconds = race(path, args.rounds, candidates(cut_of(path)), reader)
                report(f"{n:,} rows of {size} B of text, half kept, then {reader.__doc__}", seconds)
            Path(path).unlink()


def cut_of(path: str) -> float:
    """The score of the last row kept, so that the others keep the same rows by comparison."""
    scores = np.sort(Dataset.from_file(path).data.column("score").to_numpy())[::-1]
    k = int(np.floor(KEEP * len(scores) + 0.5))
    while scores[k - 1] == scores[k]:
        sys.exit("the cut falls in a tie; choose another seed for the scores")
    return float(scores[k - 1])


if __name__ == "__main__":
    main()
