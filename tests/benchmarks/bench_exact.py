"""Exact duplicates: every row's group and number of copies, against what people write for it.

    python tests/benchmarks/bench_exact.py            200 000 documents of 1 kB, a fifth of them copies
    python tests/benchmarks/bench_exact.py --small    20 000

The recipe of the Hugging Face course hashes row by row in `map`, counts in a dict, and filters; pandas takes the column
out of the dataset and groups it, and writes nothing. Which rows are first of their text is compared. Times are least of
interleaved rounds of processor time, as ratios; memory is the most anonymous memory beyond the start.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections import Counter

import datasets
import numpy as np
from datasets import Dataset
from memory import peak

import hf_prune as hp


def corpus(n: int, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    words = np.array(["".join(rng.choice(list("etaoinshrdlucmfwygpbvk"), k)) for k in rng.integers(2, 10, 5000)])
    texts = [" ".join(words[rng.integers(0, 5000, 150)]) for _ in range(n - n // 5)]
    texts += [texts[i] for i in rng.integers(0, len(texts), n // 5)]
    return Dataset.from_dict({"text": [texts[i] for i in rng.permutation(n)]})


def ours(ds: Dataset) -> np.ndarray:
    scorer = hp.ExactDedup.fit(ds)
    scored = ds.map(scorer, batched=True, remove_columns=["text"])
    clusters = scored.data.column("exact_cluster").to_numpy()
    return first_of(clusters)


def recipe(ds: Dataset) -> np.ndarray:
    """Hash, count, keep a row the first time that its hash is seen."""
    hashed = ds.map(lambda row: {"hash": hashlib.md5(row["text"].encode()).hexdigest()}, remove_columns=["text"])
    counts = Counter(hashed["hash"][:])
    left = set(counts)

    def first(hash: str) -> bool:
        if hash in left:
            left.remove(hash)
            return True
        return False

    kept = np.zeros(len(ds), bool)
    kept[hashed.add_column("row", np.arange(len(ds))).filter(first, input_columns="hash")["row"][:]] = True
    return kept


def pandas(ds: Dataset) -> np.ndarray:
    column = ds.data.column("text").to_pandas()
    groups = column.groupby(column, sort=False)
    groups.transform("size")
    return first_of(groups.ngroup().to_numpy())


def first_of(groups: np.ndarray) -> np.ndarray:
    kept = np.zeros(len(groups), bool)
    kept[np.unique(groups, return_index=True)[1]] = True
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    datasets.disable_caching()
    n = 20_000 if args.small else 200_000
    ds = corpus(n)
    ours(ds.select(range(100)).flatten_indices())  # compiled
    candidates = {"ours": ours, "recipe of the course": recipe, "pandas": pandas}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    expected = pandas(ds)
    for _ in range(args.repeats):
        for name, run in candidates.items():
            start = time.process_time()
            assert (run(ds) == expected).all(), name
            times[name].append(time.process_time() - start)
    least = min(times["ours"])
    for name, run in candidates.items():
        held = peak(lambda run=run: run(ds))[1] / 1e6  # type: ignore[misc]
        print(f"{name:>22}: {min(times[name]) / least:6.2f} times our time, {held:6.0f} MB more memory")


if __name__ == "__main__":
    main()
