"""DSIR, fit and scores, against data-selection (same buckets) and scikit-learn's HashingVectorizer (its own hash).

    python tests/benchmarks/bench_dsir.py --data FOLDER/lm_domains    nine domains, one of them the target
    python tests/benchmarks/bench_dsir.py [--small]                   made text
    python tests/benchmarks/bench_dsir.py --memory 1000000

One thread each, unless --threads is given. Weights of the published package are compared on texts in ASCII (the
tokenizer of NLTK 3.10 cuts some others differently). Processor time (and wall time), the least of interleaved rounds,
quoted as ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from memory import peak

import hf_prune as hp


def made(n: int) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(0)
    words = np.array(["".join(rng.choice(list("abcdefghijklmnop"), rng.integers(2, 10))) for _ in range(20_000)])
    odds = 1 / np.arange(1, len(words) + 1)
    other = np.roll(odds, 500)

    def texts(n: int, p: np.ndarray) -> list[str]:
        return [" ".join(rng.choice(words, 170, p=p / p.sum())) + "." for _ in range(n)]

    return texts(n, odds + 0.2 * other), texts(n // 10, other)


def real(folder: Path, n: int | None) -> tuple[list[str], list[str]]:
    ds = datasets.load_dataset("parquet", data_files={"train": str(folder / "train.parquet")}, split="train")
    domain = ds.features["domain"].str2int("legal")
    texts, labels = ds["text"][:], np.array(ds["domain"][:])
    pick = [i for i in np.random.default_rng(0).permutation(len(texts)) if texts[i].isascii()][:n]
    return [texts[i] for i in pick], [texts[i] for i in pick if labels[i] == domain][: len(pick) // 10]


def published(folder: Path, raw: list[str], target: list[str]) -> np.ndarray:
    from data_selection import HashedNgramDSIR

    for name, texts in (("raw", raw), ("target", target)):
        (folder / name).write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    peer = HashedNgramDSIR([str(folder / "raw")], [str(folder / "target")], str(folder / "cache"), num_proc=1)
    peer.fit_importance_estimator()
    peer.compute_importance_weights()
    return np.load(folder / "cache" / "log_importance_weights" / "0.npy")


def vectorizer(raw: list[str], target: list[str]) -> np.ndarray:
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(
        n_features=10_000, ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]+", norm=None, alternate_sign=False
    )
    q, p = hashing.transform(raw), hashing.transform(target)
    counts = [np.asarray(x.sum(0)).ravel() for x in (p, q)]
    ratio = np.log(counts[0] / counts[0].sum() + 1e-8) - np.log(counts[1] / counts[1].sum() + 1e-8)
    return np.asarray(q @ ratio)


def rounds(candidates: dict[str, Callable[[], Any]], repeats: dict[str, int]) -> dict[str, tuple[float, float]]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for turn in range(max(repeats.values())):
        for name, run in candidates.items():
            if turn < repeats[name]:
                cpu, wall = time.process_time(), time.perf_counter()
                run()
                times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: (min(t[0] for t in v), min(t[1] for t in v)) for name, v in times.items()}


def memory(n: int) -> None:
    """What fit and `map` hold for n documents of about 1 kB, read from disk; nothing else has been done before."""
    texts, goal = made(500)
    target = datasets.Dataset.from_dict({"text": goal})
    with tempfile.TemporaryDirectory() as folder:
        part = datasets.Dataset.from_dict({"text": texts})
        datasets.concatenate_datasets([part] * (n // 500)).save_to_disk(folder + "/data")
        big = datasets.load_from_disk(folder + "/data")
        scorer = hp.DSIR.fit(part, target)
        part.map(scorer, batched=True)  # compiled, imported
        out = folder + "/out.arrow"
        fit = peak(lambda: hp.DSIR.fit(big, target))[1] / 2**20
        scores = peak(lambda: big.map(scorer, batched=True, remove_columns=["text"], cache_file_name=out))[1] / 2**20
    print(f"{len(big)} documents: above the start, fit holds {fit:.1f} MB at most, map {scores:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=int, default=0, help="measure memory on this many documents, only")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    datasets.disable_progress_bars()
    if args.memory:
        return memory(args.memory)
    texts, goal = real(args.data, args.rows) if args.data else made(args.rows or (300 if args.small else 3000))
    raw, target = datasets.Dataset.from_dict({"text": texts}), datasets.Dataset.from_dict({"text": goal})

    def ours(hash: str) -> np.ndarray:
        scorer = hp.DSIR.fit(raw, target, hash=hash)
        fresh = raw.with_format(None)
        fresh._fingerprint = f"{time.time_ns():016x}"  # not from the cache
        scored = fresh.map(scorer, batched=True, remove_columns=["text"])
        return np.array(scored["dsir"][:])

    with tempfile.TemporaryDirectory() as folder:
        turn = iter(range(10**6))

        def peer() -> np.ndarray:
            here = Path(folder, str(next(turn)))
            here.mkdir()
            return published(here, texts, goal)

        worst = float(np.abs(ours("sha256") - peer()).max())
        print(f"{len(texts)} + {len(goal)} documents, {sum(map(len, texts)) / len(texts):.0f} characters on average")
        print(f"largest difference of a log weight from data-selection: {worst:.1e}")
        assert worst < 1e-9
        likeness = np.corrcoef(ours("fast"), vectorizer(texts, goal))[0, 1]
        print(f"correlation of the fast hash's weights with HashingVectorizer's: {likeness:.3f}")
        names = {
            "ours, sha256": lambda: ours("sha256"),
            "ours, fast": lambda: ours("fast"),
            "data-selection": peer,
            "HashingVectorizer": lambda: vectorizer(texts, goal),
        }
        slow = {"data-selection": max(1, args.repeats // 3)}
        took = rounds(names, {name: slow.get(name, args.repeats) for name in names})
    for i, clock in enumerate(("processor", "wall")):
        for mine in ("ours, sha256", "ours, fast"):
            ratios = {other: took[other][i] / took[mine][i] for other in ("data-selection", "HashingVectorizer")}
            told = ", ".join(f"{r:.1f} times as fast as {other}" for other, r in ratios.items())
            print(f"{clock} time, {mine}: {told}; {len(texts) / took[mine][i]:.0f} documents a second")


if __name__ == "__main__":
    main()
