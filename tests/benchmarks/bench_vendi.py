"""The Vendi Score against the package `vendi-score`, on the same input in one run; and a million rows streamed.

    python tests/benchmarks/bench_vendi.py            score_dual at 20 000 x 384, score_X at 5 000, 1 000 000 rows
    python tests/benchmarks/bench_vendi.py --small    2 000, 1 000, 50 000 rows

Outputs are compared; times are minima and medians of interleaved rounds, quoted as ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from memory import peak

import hf_prune as hp
from hf_prune.diversity.vendi import Gram

warnings.simplefilter("ignore", DeprecationWarning)
PAUSE = 0.2  # seconds: threads of BLAS spin on after a product, and would bill the next candidate


def compare(title: str, ours: Callable[[], float], peer: Callable[[], float], repeats: int, tolerance: float) -> None:
    times: list[list[float]] = [[], []]
    values = [0.0, 0.0]
    for _ in range(repeats):
        for i, run in enumerate((ours, peer)):
            time.sleep(PAUSE)
            start = time.perf_counter()
            values[i] = float(run())
            times[i].append(time.perf_counter() - start)
    found, known = values
    assert abs(found / known - 1) < tolerance, values
    low, middle = (how(times[1]) / how(times[0]) for how in (min, statistics.median))
    print(
        f"{title}: {low:.2f} times as fast (minimum of {repeats}), {middle:.2f} (median); {found:.6f} and {known:.6f}"
    )


def million(n: int, d: int, folder: Path) -> None:
    """A dataset on disk, read through Arrow's buffers; and the same rows as they come, nothing stored."""

    def batches() -> Any:
        rng = np.random.default_rng(0)
        for _ in range(0, n, 10_000):
            yield rng.standard_normal((10_000, d), np.float32)

    path = folder / "rows.arrow"
    schema = pa.schema({"embedding": pa.list_(pa.float32(), d)})
    with pa.ipc.new_stream(path, schema) as writer:
        for x in batches():
            writer.write_table(pa.table([pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), d)], schema=schema))
    ds = datasets.Dataset.from_file(str(path))
    hp.vendi_score(ds.select(range(2000)))
    start = time.perf_counter()
    score, grown = peak(lambda: hp.vendi_score(ds))
    took = time.perf_counter() - start

    def pushed() -> float:
        gram = Gram("float32")
        for x in batches():
            gram.add(x)
        return gram.score()

    other, grown_too = peak(pushed)
    assert abs(score / other - 1) < 1e-6
    print(
        f"{n} x {d} ({n * d * 4 / 1e6:.0f} MB) from disk: {took:.1f} s, {grown / 1e6:.0f} MB more memory; {score:.6f}"
    )
    print(
        f"  the same rows one batch after the other: {grown_too / 1e6:.0f} MB; d^2 float64 is {d * d * 8 / 1e6:.1f} MB"
    )


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=["dual", "direct", "stream"], help="one part; score_X takes minutes")
    args = parser.parse_args()
    parts = [args.only] if args.only else ["dual", "direct", "stream"]
    import torch  # noqa: F401  (its products are used where it is in use already, as it is after an embedding)
    from vendi_score import vendi as peer

    rng = np.random.default_rng(0)
    d = 384
    for n in ((2000,) if args.small else (2000, 20_000)) if "dual" in parts else ():
        x = (rng.standard_normal((n, d)) * np.linspace(0.1, 1, d)).astype(np.float32)
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        for kind, rows in (("rows", x), ("unit rows", unit)):
            run = (lambda rows=rows: hp.vendi_score(rows)), (lambda rows=rows: peer.score_dual(rows))
            compare(f"score_dual, {n} x {d} {kind}", *run, args.repeats, 1e-5)
    if "direct" in parts:
        n = 1000 if args.small else 5000
        x = rng.standard_normal((n, d)).astype(np.float32)
        hp.vendi_score(x[:500])
        compare(f"score_X, {n} x {d}", lambda: hp.vendi_score(x), lambda: peer.score_X(x), 2, 1e-4)
    if "stream" in parts:
        with tempfile.TemporaryDirectory() as folder:
            million(50_000 if args.small else 1_000_000, d, Path(folder))


if __name__ == "__main__":
    main()
