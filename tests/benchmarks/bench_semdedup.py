"""SemDeDup's pairs against the published algorithm and faiss range search, on the same clusters in one run.

    python tests/benchmarks/bench_semdedup.py             16 clusters of 1 000, 8 of 8 000 rows; 384 wide
    python tests/benchmarks/bench_semdedup.py --small      8 clusters of 200
    python tests/benchmarks/bench_semdedup.py --growth    10 k, 100 k and 1 M rows of 128, whole fit

The rows removed are compared; times are medians of interleaved rounds, quoted as ratios.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

EPS = 0.05


def rows_near_each_other(n: int, d: int, k: int, seed: int = 0) -> np.ndarray:
    """Unit rows around k centres, a fifth of them near copies of others."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((k, d), np.float32)[rng.integers(0, k, n)] + rng.standard_normal((n, d), np.float32)
    some = rng.choice(n, n // 5, replace=False)
    x[some] = x[rng.integers(0, n, len(some))] + np.float32(0.2) * rng.standard_normal((len(some), d), np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def published(x: np.ndarray, members: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The paper's core: a cluster's whole matrix, its upper triangle, the largest of each column."""
    import torch

    removed = np.zeros(len(members), bool)
    for begin, end in zip(starts[:-1], starts[1:], strict=True):
        rows = torch.from_numpy(x[members[begin:end]])
        similarity = torch.triu(rows @ rows.T, diagonal=1)
        removed[begin:end] = (similarity.max(dim=0)[0] > 1 - EPS).numpy()
    return removed


def range_search(x: np.ndarray, members: np.ndarray, starts: np.ndarray) -> np.ndarray:
    import faiss

    removed = np.zeros(len(members), bool)
    for begin, end in zip(starts[:-1], starts[1:], strict=True):
        rows = x[members[begin:end]]
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(rows)
        limits, _, other = index.range_search(rows, 1 - EPS)
        row = np.repeat(np.arange(len(rows)), np.diff(limits.astype(np.int64)))
        removed[begin + np.unique(row[other < row])] = True
    return removed


def ours(x: np.ndarray, members: np.ndarray, starts: np.ndarray) -> np.ndarray:
    from hf_prune.dedup.earlier import largest_earlier_of_groups

    return np.asarray(largest_earlier_of_groups(x, members, starts) > 1 - EPS)


def rounds(candidates: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median wall and processor seconds of each."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    for _ in range(repeats):
        for name, run in candidates.items():
            start = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {name: tuple(statistics.median(t) for t in zip(*v, strict=True)) for name, v in times.items()}  # type: ignore[misc]


def bench_pairs(groups: int, size: int, d: int, repeats: int) -> None:
    from hf_prune.dedup import earlier

    n = groups * size
    x = rows_near_each_other(n, d, groups)
    members, starts = np.random.default_rng(1).permutation(n), np.arange(groups + 1) * size

    def plain() -> np.ndarray:
        tiles, earlier.tiles = earlier.tiles, lambda: False
        try:
            return ours(x, members, starts)
        finally:
            earlier.tiles = tiles

    names = {
        "ours": lambda: ours(x, members, starts),
        "ours, without bfloat16 tiles": plain,
        "published": lambda: published(x, members, starts),
        "faiss range search": lambda: range_search(x, members, starts),
    }
    removed = {name: run() for name, run in names.items()}
    for name, rows in removed.items():
        assert np.array_equal(rows, removed["ours"]), f"{name} removes other rows"
    took = rounds(names, repeats)
    print(f"{groups} clusters of {size} x {d}, {removed['ours'].sum()} rows removed by each")
    for us in ("ours", "ours, without bfloat16 tiles"):
        for peer in ("published", "faiss range search"):
            wall, cpu = (a / b for a, b in zip(took[peer], took[us], strict=True))
            print(f"  {us}: {wall:.1f} times as fast as {peer} (processor time {cpu:.1f})")


def one_fit(n: int, d: int) -> None:
    """Fit n rows and print seconds and megabytes; in a process of its own."""
    import datasets
    import pyarrow as pa

    import hf_prune as hp

    small = datasets.Dataset.from_dict({"embedding": rows_near_each_other(200, d, 4)})
    hp.SemDeDup.fit(small)
    x = rows_near_each_other(n, d, max(4, round(n**0.5) // 4))
    table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), d)})
    ds = datasets.Dataset(table)
    del x
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = peak()
    start, used = time.perf_counter(), time.process_time()
    facts = hp.SemDeDup.fit(ds).fitted_on
    wall, cpu = time.perf_counter() - start, time.process_time() - used
    assert facts is not None
    print(n, wall, cpu, peak() - before, facts["pairs"], facts["k"])


def peak() -> float:
    """Largest memory of this process, in MB."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def growth(sizes: list[int], d: int) -> None:
    last = None
    for n in sizes:
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(n), "--width", str(d)], capture_output=True, text=True, check=True
        )
        _, wall, cpu, memory, pairs, k = (float(v) for v in done.stdout.split()[-6:])
        power = "" if last is None else f", time grows as n^{math.log(cpu / last[1]) / math.log(n / last[0]):.2f}"
        copy = 4 * n * d / 2**20
        print(
            f"{n:>9,} rows x {d}: {wall:.1f} s ({cpu:.1f} of processors), {int(k)} clusters, {pairs:.2e} pairs, "
            f"{memory:.0f} MB more at the peak ({copy:.0f} MB is one copy of the vectors){power}"
        )
        last = n, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--one", type=int)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if args.one:
        one_fit(args.one, args.width)
    elif args.growth:
        growth([10_000, 100_000, 1_000_000], args.width)
    elif args.small:
        bench_pairs(8, 200, 384, args.repeats)
    else:
        bench_pairs(16, 1000, 384, args.repeats)
        bench_pairs(8, 8000, 384, min(args.repeats, 3))


if __name__ == "__main__":
    main()
