"""MinHash against rensa, datasketch and datatrove, end to end: a text column goes in, columns of clusters come out.

    python tests/benchmarks/bench_minhash.py                  20 000 documents of 1 kB; the peers, and agreement
    python tests/benchmarks/bench_minhash.py --small          3 000
    python tests/benchmarks/bench_minhash.py --growth         10 k, 100 k, 1 M documents of 300 bytes: time and memory
    python tests/benchmarks/bench_minhash.py --crowds         100, 5 k, 50 k texts behind boilerplate: missed, time

All take word 5-grams in lower case and the same split into bands. What a peer leaves to its caller, shingles and
components, is done here the fastest way its users do it. A peer finds clusters, ours gives scores too: without
verification for the comparison, and with it. Times are medians of interleaved rounds, on the wall and of all threads'
processor time: on a machine that is shared the second is the steadier.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from datasets import Dataset

import hf_prune as hp
from hf_prune.dedup._link_kernels import jaccard_plain
from hf_prune.dedup.components import Forest
from hf_prune.dedup.shingles import grams

BANDS, ROWS, NGRAM = 16, 8, 5
WORD = re.compile(r"\w+")


def corpus(n: int, words: int, seed: int = 0) -> list[str]:
    """Synthetic documents, a fifth of them near-copies of an earlier one with 1 to 8 words changed."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwygpbvk"))
    lengths = rng.integers(2, 10, 50_000)
    vocabulary = ["".join(rng.choice(letters, length)) for length in lengths]
    ranks = np.minimum(rng.zipf(1.2, (n, words)) - 1, 49_999)
    where = rng.permutation(50_000)
    for row in np.flatnonzero(rng.random(n) < 0.2):
        if row:
            ranks[row] = ranks[rng.integers(row)]
            at = rng.choice(words, int(rng.integers(1, 9)), replace=False)
            ranks[row, at] = rng.integers(0, 50_000, len(at))
    return [" ".join([vocabulary[w] for w in row]) for row in where[ranks]]


def shingles(text: str) -> set[str]:
    found = WORD.findall(text.lower())
    return {" ".join(found[i : i + NGRAM]) for i in range(max(1, len(found) - NGRAM + 1))}


def ours(ds: Dataset, verify: bool) -> np.ndarray:
    scorer = hp.MinHashDedup.fit(ds, bands=BANDS, band_rows=ROWS, ngram=NGRAM, verify=verify)
    fresh = Dataset(ds.data.table, fingerprint=f"{time.time_ns():016x}")
    scored = fresh.map(scorer, batched=True, remove_columns=["text"])
    return np.asarray(scored.data.column("minhash_cluster").to_numpy())


def rensa_clusters(ds: Dataset) -> np.ndarray:
    """rensa's digest matrix, its bands as keys of a dict, its duplicates united."""
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_token_sets([shingles(t) for t in ds["text"]], BANDS * ROWS, 42)
    rows = np.asarray(matrix.to_rows(), np.uint32)
    return unite(rows.reshape(len(ds), BANDS, ROWS))


def unite(bands: np.ndarray) -> np.ndarray:
    """Components of rows with an equal band."""
    n = len(bands)
    forest = Forest(n)
    factors = np.random.default_rng(0).integers(1, 2**63, bands.shape[2], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    for band in range(bands.shape[1]):
        _, first, which = np.unique(bands[:, band].astype(np.uint64) @ factors, return_index=True, return_inverse=True)
        forest.add(np.arange(n), first[which])
    return forest.roots()


def datasketch_clusters(ds: Dataset) -> np.ndarray:
    from datasketch import MinHash

    sets = [[s.encode() for s in shingles(t)] for t in ds["text"]]
    signed = MinHash.bulk(sets, num_perm=BANDS * ROWS)
    return unite(np.stack([m.hashvalues for m in signed]).reshape(len(ds), BANDS, ROWS))


def datatrove_clusters(ds: Dataset) -> np.ndarray:
    """Its signature step with its own arithmetic and sha1; words are split by us, as its tokenizer needs spaCy."""
    from datatrove.pipeline.dedup import minhash
    from datatrove.utils.hashing import HashConfig

    minhash.load_word_tokenizer = lambda language: SimpleNamespace(word_tokenize=WORD.findall)
    config = minhash.MinhashConfig(
        n_grams=NGRAM, num_buckets=BANDS, hashes_per_bucket=ROWS, hash_config=HashConfig(precision=64, hash_fc="sha1")
    )
    with tempfile.TemporaryDirectory() as folder:
        step = minhash.MinhashDedupSignature(folder, config=config)
    signed = [step.get_signature(step.get_shingles(t)) for t in ds["text"]]
    return unite(np.array(signed, np.uint64))


def rounds(
    candidates: dict[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, tuple[float, float]], dict[str, Any]]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    found: dict[str, Any] = {}
    for _ in range(repeats):
        for name, run in candidates.items():
            wall, busy = time.perf_counter(), time.process_time()
            found[name] = run()
            times[name].append((time.perf_counter() - wall, time.process_time() - busy))
    medians = {name: tuple(statistics.median(t[i] for t in taken) for i in (0, 1)) for name, taken in times.items()}
    return medians, found  # type: ignore[return-value]


def compare(n: int, repeats: int) -> None:
    texts = corpus(n, 150)
    ds = Dataset.from_dict({"text": texts})
    ours(ds.select(range(100)).flatten_indices(), True), ours(ds.select(range(100)).flatten_indices(), False)
    candidates: dict[str, Callable[[], Any]] = {
        "ours, unverified": lambda: ours(ds, False),
        "ours, verified": lambda: ours(ds, True),
        "rensa": lambda: rensa_clusters(ds),
        "datasketch": lambda: datasketch_clusters(ds),
    }
    try:
        import datatrove  # noqa: F401

        candidates["datatrove"] = lambda: datatrove_clusters(ds)
    except ImportError:
        print("datatrove is not installed: left out")
    took, found = rounds(candidates, repeats)
    print(f"{n} documents of {np.mean([len(t) for t in texts]):.0f} bytes, {BANDS} bands of {ROWS}, word {NGRAM}-grams")
    print("| method | documents/s | times its wall / processor time of ours, unverified | verified | clusters |")
    print("| --- | --- | --- | --- | --- |")
    for name, (wall, busy) in took.items():
        ratios = [
            f"{wall / took[f'ours, {how}'][0]:.1f} / {busy / took[f'ours, {how}'][1]:.1f}"
            for how in ("unverified", "verified")
        ]
        print(f"| {name} | {n / wall:.0f} | {ratios[0]} | {ratios[1]} | {len(np.unique(found[name]))} |")
    pairs = sample_pairs(found)
    exact = np.array([jaccard_plain(grams(texts[i], NGRAM), grams(texts[j], NGRAM)) for i, j in pairs])
    print(f"on {len(pairs)} pairs that at least one puts together, of exact Jaccard similarity >= 0.8 and < 0.6:")
    for name, labels in found.items():
        together = labels[pairs[:, 0]] == labels[pairs[:, 1]]
        high, low = together[exact >= 0.8].mean(), together[exact < 0.6].mean() if (exact < 0.6).any() else 0.0
        print(f"  {name}: {high:.4f} of {int((exact >= 0.8).sum())} together, {low:.4f} of {int((exact < 0.6).sum())}")


def crowd(n: int, similarity: float, forms: int, words: int = 200, changed: int = 10) -> list[str]:
    """Pairs of J = .905 behind boilerplate: any two texts behind one form are alike by `similarity`."""
    own = round(words * (1 - similarity) / (1 + similarity))
    texts = []
    for pair in range(n // 2):
        head = [f"form{pair % forms}w{i}" for i in range(words - own)]
        mine = [f"mine{pair}w{i}" for i in range(own)]
        other = mine[changed:] + [f"other{pair}w{i}" for i in range(changed)]
        texts += [" ".join(head + mine), " ".join(head + other)]
    return texts


def crowds(repeats: int) -> None:
    """Crowds against the same pairs without one, each behind a form of its own; crowds of 100 are fifty at a time."""
    print("| crowds | J of any two | missed pairs of J = .905 | without crowds | microseconds a row | without crowds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size, several in ((100, 50), (5_000, 1), (50_000, 1)):
        for similarity in (0.5, 0.6, 0.74):
            n = size * several
            data = [Dataset.from_dict({"text": crowd(n, similarity, forms)}) for forms in (several, n)]

            def fit(ds: Dataset) -> np.ndarray:
                return np.asarray(hp.MinHashDedup.fit(ds, ngram=1)(ds[:])["minhash_cluster"])

            candidates: dict[str, Callable[[], Any]] = {
                name: lambda ds=ds: hp.MinHashDedup.fit(ds, ngram=1)  # type: ignore[misc]
                for name, ds in zip(("crowds", "none"), data, strict=True)
            }
            missed = [f"{(c[::2] != c[1::2]).mean():.5f}" for c in map(fit, data)]
            took, _ = rounds(candidates, repeats)
            busy = [f"{took[name][1] / n * 1e6:.1f}" for name in ("crowds", "none")]
            print(f"| {several} of {size} | {similarity} | {' | '.join(missed)} | {' | '.join(busy)} |", flush=True)


def sample_pairs(found: dict[str, np.ndarray], most: int = 4000) -> np.ndarray:
    """Pairs of rows next to each other in the clusters of any method."""
    pairs = set()
    for labels in found.values():
        order = np.argsort(labels, kind="stable")
        same = np.flatnonzero(labels[order][1:] == labels[order][:-1])
        pairs.update(zip(order[same].tolist(), order[same + 1].tolist(), strict=True))
    every = np.array(sorted(pairs))
    return every[np.random.default_rng(0).permutation(len(every))[:most]]


def growth(sizes: list[int]) -> None:
    """Each fit in a process of its own, so that its peak of memory is its own."""
    print("| documents | seconds, unverified | verified | processor seconds | | peak, bytes a document | |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    busy = []
    with tempfile.TemporaryDirectory() as folder:
        for n in sizes:
            Dataset.from_dict({"text": corpus(n, 45)}).save_to_disk(folder)
            took = []
            for verify in ("0", "1"):
                done = subprocess.run(
                    [sys.executable, __file__, "--one", folder, verify], capture_output=True, text=True
                )
                took.append([float(v) for v in done.stdout.split()[-3:]])
            cells = [f"{took[v][i] / (n if i == 2 else 1):.{0 if i == 2 else 2}f}" for i in range(3) for v in (0, 1)]
            print(f"| {n} | {' | '.join(cells)} |", flush=True)
            busy.append([t[1] for t in took])
    slope = np.polyfit(np.log(sizes), np.log(busy), 1)[0]
    print(f"exponent of processor time against n: {slope[0]:.2f} unverified, {slope[1]:.2f} verified")


def one(folder: str, verify: bool) -> None:
    """Wall and processor seconds of a fit, and the bytes that its memory grew by at its peak."""
    from datasets import load_from_disk

    ds = load_from_disk(folder)
    ours(Dataset.from_dict({"text": ds[:100]["text"]}), verify)
    peak, done, start = [0], threading.Event(), anonymous()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, busy = time.perf_counter(), time.process_time()
    hp.MinHashDedup.fit(ds, bands=BANDS, band_rows=ROWS, verify=verify)
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    done.set()
    watcher.join()
    print(wall, busy, peak[0])


def anonymous() -> int:
    """Bytes of memory that are not those of a mapped file (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--crowds", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    import datasets

    datasets.disable_progress_bars()
    if args.one:
        one(args.one[0], args.one[1] == "1")
    elif args.crowds:
        crowds(args.repeats)
    elif args.growth:
        growth([10_000, 100_000, 1_000_000])
    else:
        compare(3000 if args.small else 20_000, args.repeats)


if __name__ == "__main__":
    main()
