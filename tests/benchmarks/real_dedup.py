"""Near-duplicates that people labelled: precision, recall and F1 of MinHash and SemDeDup beside datasketch and rensa.

    python tests/benchmarks/real_dedup.py FOLDER [--embedder MODEL_FOLDER]

FOLDER holds the near_duplicates files (licences, docstrings); with an embedder SemDeDup is measured on the same pairs.

A method gives a similarity of each listed pair (those it does not propose: 0). "Pairs >= 0.8" is measured against the
exact Jaccard similarities of word 5-grams; "labels" against the human licence labels (catch-all labels left out) or the
objects that the docstrings are of, among the listed pairs. Two lines each: at the defaults of the method, and at the
threshold with the best F1.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_prune.dedup.bands import Sketch, optimal_bands
from hf_prune.dedup.shingles import similarities

CATCH_ALL = ("proprietary-license", "other-permissive", "public-domain")
WORD = re.compile(r"\w+")
PERMUTATIONS = 128

Method = Callable[[list[str], np.ndarray, np.ndarray, float], np.ndarray]


def shingles(text: str) -> list[bytes]:
    found = WORD.findall(text.lower())
    return list({" ".join(found[i : i + 5]).encode() for i in range(max(1, len(found) - 4))})


def ours(texts: list[str], left: np.ndarray, right: np.ndarray, threshold: float) -> np.ndarray:
    """True similarity of the pairs that share a band: what `MinHashDedup.fit` computes, for the listed pairs."""
    bands, rows = optimal_bands(threshold, PERMUTATIONS, 0.95)
    sketch, array = Sketch(bands=bands, band_rows=rows), pa.array(texts, pa.large_string())
    keys, sizes, _ = sketch.sign(array)
    proposed = np.zeros(len(left), bool)
    for band in range(bands):
        proposed |= keys[left, band] == keys[right, band]
    at = np.flatnonzero(proposed & (sizes[left] > 0) & (sizes[right] > 0))
    sets = sketch.sets(array, np.arange(len(texts)))
    out = np.zeros(len(left))
    out[at] = similarities(left[at], right[at], sets, sets)
    return out


def estimated(signatures: np.ndarray, left: np.ndarray, right: np.ndarray, threshold: float) -> np.ndarray:
    """Share of equal minima of the pairs that share one of datasketch's bands."""
    bands, rows = optimal_bands(threshold, PERMUTATIONS)
    out = np.zeros(len(left))
    for start in range(0, len(left), 50_000):
        part = slice(start, start + 50_000)
        same = signatures[left[part]] == signatures[right[part]]
        shared = same[:, : bands * rows].reshape(len(same), bands, rows).all(2).any(1)
        out[part] = np.where(shared, np.maximum(same.mean(1), 1e-9), 0)
    return out


def datasketch(texts: list[str], left: np.ndarray, right: np.ndarray, threshold: float) -> np.ndarray:
    from datasketch import MinHash

    signed = MinHash.bulk([shingles(t) for t in texts], num_perm=PERMUTATIONS)
    return estimated(np.stack([m.hashvalues for m in signed]), left, right, threshold)


def rensa(texts: list[str], left: np.ndarray, right: np.ndarray, threshold: float) -> np.ndarray:
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_token_sets(
        [[s.decode() for s in shingles(t)] for t in texts], PERMUTATIONS, 42
    )
    return estimated(np.asarray(matrix.to_rows(), np.uint32), left, right, threshold)


def semdedup(texts: list[str], left: np.ndarray, right: np.ndarray, threshold: float, embedder: str) -> np.ndarray:
    """Cosine of the pairs that are in one cluster: what `SemDeDup.fit` compares."""
    import datasets

    import hf_prune as hp

    ds = datasets.Dataset.from_dict({"text": texts, "row_id": [str(i) for i in range(len(texts))]})
    ds = hp.score(ds, hp.Embedder(embedder, column="text"))
    ds = hp.score(ds, hp.SemDeDup.fit(ds))
    x, cluster = np.asarray(ds["embedding"], np.float64), np.asarray(ds["semdedup_cluster"])
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    out = np.zeros(len(left))
    for start in range(0, len(left), 50_000):
        part = slice(start, start + 50_000)
        out[part] = np.einsum("nd,nd->n", x[left[part]], x[right[part]])
    return np.where(cluster[left] == cluster[right], out.clip(0), 0)


METHODS: dict[str, Method] = {"MinHashDedup": ours, "datasketch": datasketch, "rensa": rensa}
DEFAULT = {"SemDeDup": 0.9}  # of similarity; 0.8 for the others
# whether a pair that is proposed counts as found at the defaults, whatever its similarity (no verification)
UNVERIFIED = ("datasketch", "rensa")


def measure(found: np.ndarray, truth: np.ndarray) -> str:
    hits = int((found & truth).sum())
    precision, recall = hits / max(int(found.sum()), 1), hits / max(int(truth.sum()), 1)
    return f"{precision:.4f} | {recall:.4f} | {2 * precision * recall / max(precision + recall, 1e-12):.4f}"


def best(similarity: np.ndarray, truth: np.ndarray) -> float:
    """The threshold with the highest F1."""
    order = np.argsort(-similarity, kind="stable")
    hits = np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + truth.sum())
    ends = np.append(np.diff(similarity[order]) != 0, True) & (similarity[order] > 0)
    return float(similarity[order][np.flatnonzero(ends)[np.argmax(f1[ends])]])


def collection(folder: Path, name: str) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Texts, pairs, exact similarities, equal labels, and which pairs have labels that mean something."""
    licences = name == "licences"
    docs = pq.read_table(folder / ("licence_texts.parquet" if licences else "docstring_versions_docs.parquet"))
    pairs = pq.read_table(folder / ("licence_pairs.parquet" if licences else "docstring_versions_pairs.parquet"))
    place = {d: i for i, d in enumerate(docs["doc_id"].to_pylist())}
    left, right = (np.array([place[d] for d in pairs[c].to_pylist()]) for c in ("id_a", "id_b"))
    labels = np.array(docs["license"].to_pylist() if licences else docs["cluster"].to_pylist())
    named = ~np.isin(labels, CATCH_ALL) if licences else np.ones(len(labels), bool)
    exact = pairs["jaccard_w5"].to_numpy()
    return docs["text"].to_pylist(), left, right, exact, labels[left] == labels[right], named[left] & named[right]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--embedder", help="folder or Hub name of a text encoder, for SemDeDup")
    args = parser.parse_args()
    folder = args.folder
    if args.embedder:
        METHODS["SemDeDup"] = partial(semdedup, embedder=args.embedder)
    print("| collection | against | method | threshold | precision | recall | F1 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in ("licences", "docstrings"):
        texts, left, right, exact, same, named = collection(folder, name)
        for method, run in METHODS.items():
            default = DEFAULT.get(method, 0.8)
            at_default = run(texts, left, right, default)
            loose = run(texts, left, right, 0.3)  # bands that propose almost all pairs, for the best threshold
            for target, truth, some in (
                ("pairs >= 0.8", exact >= 0.8, np.ones(len(exact), bool)),
                ("labels", same, named),
            ):
                line = f"| {name} | {target} | {method} |"
                found = at_default > 0 if method in UNVERIFIED else at_default >= default
                print(f"{line} {default}, default | {measure(found[some], truth[some])} |", flush=True)
                cut = best(loose[some], truth[some])
                print(f"{line} {cut:.2f}, best | {measure(loose[some] >= cut, truth[some])} |", flush=True)


if __name__ == "__main__":
    main()
