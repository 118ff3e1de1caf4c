"""How well DSIR with one domain as target finds that domain's held-out text, beside length alone and chance.

    python tests/benchmarks/real_dsir.py --data FOLDER/lm_domains [--words 64] [--hash fast]

Fitted on the training split (all of it raw, one domain of it target), measured on the validation split: area under
the ROC curve of the domain against the others, on whole documents and on chunks of equal length.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import datasets
import numpy as np
from sklearn.metrics import roc_auc_score

import hf_prune as hp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--words", type=int, default=64)
    parser.add_argument("--hash", default="sha256")
    parser.add_argument("--smoothing", type=float, default=1.0)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    files = {split: str(args.data / f"{split}.parquet") for split in ("train", "validation")}
    ds = datasets.load_dataset("parquet", data_files=files)
    train, held = ds["train"], ds["validation"]
    chunks = hp.chunk_texts(held, args.words, min_words=args.words)
    random = hp.Random(seed=0)(hp.with_row_id(chunks)[:])["random_0"]
    labels = train.features["domain"].names
    domain = np.array(train["domain"][:])
    raw = hp.NgramCounts.of(train, hash=args.hash)
    print(f"{len(held)} documents, {len(chunks)} chunks of {args.words} words; smoothing {args.smoothing:g}")
    print(
        "| target | chunks: per n-gram | chunks: sum | documents: per n-gram | documents: sum | length alone | random |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    lengths, rows = np.array([len(t) for t in held["text"]]), []
    for d, name in enumerate(labels):
        target = hp.NgramCounts.of(train.select(np.flatnonzero(domain == d)), hash=args.hash)
        found = []
        for part in (chunks, held):
            own = np.array(part["domain"][:]) == d
            for normalize in ("per_ngram", "sum"):
                scorer = hp.DSIR(raw, (target,), smoothing=args.smoothing, normalize=normalize)
                found.append(roc_auc_score(own, scorer({"text": part["text"][:]})["dsir"]))
        length = roc_auc_score(np.array(held["domain"][:]) == d, lengths)
        found += [max(length, 1 - length), roc_auc_score(np.array(chunks["domain"][:]) == d, random)]
        rows.append(found)
        print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in found) + " |")
    print("| mean | " + " | ".join(f"{v:.3f}" for v in np.mean(rows, 0)) + " |")


if __name__ == "__main__":
    main()
