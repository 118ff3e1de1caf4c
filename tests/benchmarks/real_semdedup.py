"""SemDeDup on near-duplicates that people labelled: which rows it would remove, at eps 0.1 and at the best threshold.

    python tests/benchmarks/real_semdedup.py FOLDER --embedder MODEL_FOLDER

FOLDER holds the near_duplicates files (licences, docstrings). A removed row is right if a row of its label is kept;
removable are all rows but one a label. The best threshold is chosen on the data that it is measured on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import datasets
import numpy as np

import hf_prune as hp

CATCH_ALL = ("proprietary-license", "other-permissive", "public-domain")
FITS: dict[str, dict[str, Any]] = {
    "default": {},
    "clusters_per_row=2": {"clusters_per_row": 2},
    "k=1": {"k": 1},
    'keep_first="easy"': {"keep_first": "easy"},
}


def collection(folder: Path, name: str) -> tuple[datasets.Dataset, np.ndarray]:
    """Texts with ids, and their labels as numbers; catch-all labels left out."""
    licences = name == "licences"
    file = folder / ("licence_texts.parquet" if licences else "docstring_versions_docs.parquet")
    label = "license" if licences else "cluster"
    ds = datasets.Dataset.from_parquet(str(file))
    ds = ds.select(np.flatnonzero(~np.isin(np.array(ds[label][:]), CATCH_ALL)))
    ids = [str(i) for i in ds["doc_id"][:]]
    return ds.select_columns(["text"]).add_column("row_id", ids), np.unique(ds[label][:], return_inverse=True)[1]


def removals(score: np.ndarray, labels: np.ndarray, eps: float) -> tuple[float, float, float, float]:
    """Threshold, precision, recall and F1 of the rows that score below it."""
    removed = score < eps
    kept_labels = np.zeros(labels.max() + 1, bool)
    kept_labels[labels[~removed]] = True
    right = int((removed & kept_labels[labels]).sum())
    precision = right / max(1, int(removed.sum()))
    recall = right / (len(labels) - len(np.unique(labels)))
    return eps, precision, recall, 2 * precision * recall / max(precision + recall, 1e-12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--embedder", required=True, help="folder or Hub name of a text encoder")
    args = parser.parse_args()
    print("| data | fit | eps 0.1: P, R, F1 | best: eps, P, R, F1 |\n| --- | --- | --- | --- |")
    for name in ("licences", "docstrings"):
        ds, labels = collection(args.folder, name)
        ds = hp.score(ds, hp.Embedder(args.embedder, column="text"))
        for how, options in FITS.items():
            score = np.nan_to_num(np.asarray(hp.score(ds, hp.SemDeDup.fit(ds, **options))["semdedup"]), nan=1.0)
            cuts = np.unique(np.quantile(score, np.linspace(0.01, 0.99, 200)))
            best = max((removals(score, labels, float(eps)) for eps in cuts), key=lambda row: row[3])
            _, *default = removals(score, labels, 0.1)
            shown = [" ".join(f"{value:.3f}" for value in values) for values in (default, best)]
            print(f"| {name} ({len(ds)} rows) | {how} | {shown[0]} | {shown[1]} |", flush=True)


if __name__ == "__main__":
    main()
