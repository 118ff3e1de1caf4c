"""Prototype scoring against faiss's own search, and k-means against faiss's own, on the same input in one run.

    python tests/benchmarks/bench_prototypes.py            200 000 x 384, 1 000 centroids
    python tests/benchmarks/bench_prototypes.py --small    20 000 x 64, 128 centroids

Outputs are compared; times are medians of interleaved rounds, quoted as ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

import hf_prune as hp
from hf_prune.numerics import search
from hf_prune.numerics.kmeans import kmeans, unit_rows


def rounds(candidates: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    for _ in range(repeats):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def bench_score(x: np.ndarray, k: int, repeats: int, batch: int) -> None:
    scorer = hp.SSLPrototypes(unit_rows(x[:k].copy()))
    unit = unit_rows(x)
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(scorer.centroids)

    def ours() -> np.ndarray:
        parts = [scorer({"embedding": x[i : i + batch]})["ssl_proto"] for i in range(0, len(x), batch)]
        return np.concatenate(parts)

    def plain() -> np.ndarray:
        tiles, search.tiles = search.tiles, lambda: False
        try:
            return ours()
        finally:
            search.tiles = tiles

    def peer() -> np.ndarray:
        return 1 - index.search(unit, 1)[0][:, 0]  # its rows are scaled beforehand, ours in the call

    worst = max(np.abs(ours() - peer()).max(), np.abs(plain() - peer()).max())
    assert worst < 2e-6, worst
    names = {"ours": ours, "ours, without bfloat16 tiles": plain, "faiss search": peer}
    took = rounds(names, repeats)
    print(f"score {len(x)} x {x.shape[1]} against {k} centroids, batches of {batch}; largest difference {worst:.1e}")
    for name in ("ours", "ours, without bfloat16 tiles"):
        print(f"  {name}: {took['faiss search'] / took[name]:.2f} times as fast as faiss's search")


def bench_kmeans(x: np.ndarray, k: int, repeats: int, max_iter: int) -> None:
    unit = unit_rows(x)
    first = unit[np.random.default_rng(0).choice(len(unit), k, replace=False)]
    options = {"niter": max_iter, "spherical": True, "max_points_per_centroid": len(x), "min_points_per_centroid": 1}
    goals: dict[str, float] = {}

    def ours(name: str, **how: Any) -> Callable[[], None]:
        def run() -> None:
            goals[name] = kmeans(unit, k, **how).objective

        return run

    def peer() -> None:
        engine = faiss.Kmeans(unit.shape[1], k, **options)
        engine.train(unit, init_centroids=first)
        goals["faiss"] = float((1 - engine.index.search(unit, 1)[0]).sum())

    same = "ours, same start and rounds"
    whole = "ours, k-means++ and until 0.01 % move"
    took = rounds(
        {
            same: ours(same, start=first, max_iter=max_iter + 1, tolerance=0),
            whole: ours(whole),
            "faiss": peer,
        },
        repeats,
    )
    print(f"k-means of {len(x)} x {x.shape[1]} into {k}, {max_iter} rounds")
    for name in (same, whole):
        speed, goal = took["faiss"] / took[name], goals[name] / goals["faiss"]
        print(f"  {name}: {speed:.2f} times as fast as faiss, objective {goal:.4f} of its")
    assert abs(goals[same] / goals["faiss"] - 1) < 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    import torch  # noqa: F401  (the bfloat16 path is taken where torch is in use already, as it is after an embedding)

    rng = np.random.default_rng(0)
    n, d, k = (20_000, 64, 128) if args.small else (200_000, 384, 1000)
    centres = rng.standard_normal((k, d))
    x = (centres[rng.integers(0, k, n)] + 1.5 * rng.standard_normal((n, d))).astype(np.float32)
    for batch in (1000, 10_000):
        bench_score(x, k, args.repeats, batch)
    for part, clusters in ((x[: n // 12], max(k // 10, 8)), (x[: n // 12], k)):
        bench_kmeans(part, clusters, args.repeats, max_iter=10)


if __name__ == "__main__":
    main()
