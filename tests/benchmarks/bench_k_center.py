"""k-center greedy against the plain loop with one distance vector, on the same rows in one run.

    python tests/benchmarks/bench_k_center.py            50 000 x 384, 1 000 centers
    python tests/benchmarks/bench_k_center.py --small     5 000 x 64, 200 centers

The rows chosen are compared; times are medians of interleaved rounds, quoted as ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from hf_prune.scorers.k_center import k_center


def plain(x: np.ndarray, k: int) -> np.ndarray:
    """A pass over all rows for each centre; float32, one distance a row."""
    order = np.empty(k, np.int64)
    order[0] = 0
    squares = np.einsum("nd,nd->n", x, x)
    nearest = np.full(len(x), np.inf, np.float32)
    for t in range(1, k):
        last = x[order[t - 1]]
        np.minimum(nearest, squares - 2 * (x @ last) + last @ last, out=nearest)
        order[t] = nearest.argmax()
    return order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    import torch  # noqa: F401

    n, d, k = (5_000, 64, 200) if args.small else (50_000, 384, 1000)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, d), np.float32)[rng.integers(0, 50, n)] + rng.standard_normal((n, d), np.float32)
    same = int((k_center(x, k).order == plain(x, k)).sum())
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "plain": []}
    for _ in range(args.repeats):
        for name, run in (("ours", lambda: k_center(x, k)), ("plain", lambda: plain(x, k))):
            start = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    wall, cpu = (
        statistics.median(t[i] for t in times["plain"]) / statistics.median(t[i] for t in times["ours"]) for i in (0, 1)
    )
    print(f"k-center {n} x {d}, {k} centers, {same} chosen at the same place by both")
    print(f"  ours: {wall:.1f} times as fast as the plain loop (processor time {cpu:.1f})")


if __name__ == "__main__":
    main()
