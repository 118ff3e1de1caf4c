"""Perplexity and Ask-LLM of real models on real text: tables, for looking at and for RESULTS.md.

    python tests/benchmarks/real_lm.py --data FOLDER [--judge FOLDER] [--rows 200] [--dtype bfloat16]

FOLDER has `lm_domains/validation.parquet` (columns text, domain) and `models/tiny-gpt2`; the judge is a folder of an
instruct model (SmolLM2-135M-Instruct, converted with `save_pretrained`). What is absent is skipped with a message.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from scipy.stats import rankdata, spearmanr

import hf_prune as hp

# of the small model, by whoever trained it: validation perplexity a token, first 255 tokens of 30 documents a domain
KNOWN = {
    "code": 124.5,
    "encyclopedia": 161.1,
    "instructions": 67.9,
    "legal": 122.1,
    "math": 43.0,
    "news": 235.9,
    "novel": 156.8,
    "speech": 170.3,
    "web": 169.4,
}


def documents(file: Path) -> tuple[list[str], np.ndarray]:
    """Texts and their domains by name."""
    table = pq.read_table(file)
    codes = np.asarray(table["domain"].to_pylist())
    return table["text"].to_pylist(), np.array(sorted(KNOWN))[codes]


def shuffled(texts: list[str]) -> list[str]:
    """The words of each text in another order."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.permutation(text.split())) for text in texts]


def some(texts: list[str], domains: np.ndarray, rows: int, words: int) -> list[str]:
    """The first words of texts that have as many, equally from all domains, white space made plain."""
    chosen = []
    for name in KNOWN:
        own = [texts[i].split() for i in np.flatnonzero(domains == name)]
        own = [w for w in own if len(w) >= words]
        chosen += [" ".join(w[:words]) for w in own[: -(-rows // len(KNOWN))]]
    return chosen[:rows]


def by_domain(model: str, texts: list[str], domains: np.ndarray) -> None:
    scorer = hp.Perplexity(model, max_tokens=255, n_tokens=True)
    print("perplexity of the small model, first 255 tokens of 30 documents a domain")
    found = {}
    for name, known in KNOWN.items():
        out = scorer({"text": [texts[i] for i in np.flatnonzero(domains == name)[:30]]})
        nats = out["log_likelihood"].astype(np.float64) * out["n_tokens"]
        found[name] = float(np.exp(-nats.sum() / out["n_tokens"].sum()))
        print(f"  {name:14s} {found[name]:7.1f}   known {known:7.1f}")
    rho = spearmanr([found[n] for n in KNOWN], [KNOWN[n] for n in KNOWN])[0]
    print(f"  Spearman over domains {rho:.3f} (at least 0.9)")


def worse_when_shuffled(name: str, scorer: Any, texts: list[str]) -> None:
    start = time.perf_counter()
    both = [scorer({"text": rows})["log_likelihood"] for rows in (texts, shuffled(texts))]
    worse = (both[1] < both[0]).mean()
    clean, mixed = (np.exp(-np.median(ll)) for ll in both)
    print(
        f"{name}: words shuffled score worse in {100 * worse:.1f} % of {len(texts)} rows; median perplexity "
        f"{clean:.1f} and {mixed:.1f}; {time.perf_counter() - start:.0f} s"
    )


def auc(good: np.ndarray, bad: np.ndarray) -> float:
    ranks = rankdata(np.concatenate([good, bad]))[: len(good)]
    return float((ranks.sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad)))


def judged(model: str, dtype: str, texts: list[str]) -> None:
    print(f"Ask-LLM: {len(texts)} texts against the same with words shuffled (a model this small is plumbing)")
    for how in ("full", "two_way"):
        scorer = hp.AskLLM(model, normalise=how, dtype=dtype, answered=True)
        clean, mixed = (scorer({"text": rows}) for rows in (texts, shuffled(texts)))
        print(
            f"  {how:8s} AUC {auc(clean['ask_llm'], mixed['ask_llm']):.3f}, medians "
            f"{np.median(clean['ask_llm']):.3f} and {np.median(mixed['ask_llm']):.3f}; "
            f"answered yes or no: {np.median(clean['ask_llm_answered']):.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--words", type=int, default=90)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    file, small = args.data / "lm_domains" / "validation.parquet", args.data / "models" / "tiny-gpt2"
    if not file.exists():
        print(f"skipped: {file} is not there")
        return
    texts, domains = documents(file)
    rows = some(texts, domains, args.rows, args.words)
    if small.is_dir():
        by_domain(str(small), texts, domains)
        worse_when_shuffled("the small model", hp.Perplexity(small), rows)
    else:
        print(f"skipped: {small} is not there")
    if args.judge is None or not args.judge.is_dir():
        print("skipped: no --judge")
        return
    worse_when_shuffled("the instruct model", hp.Perplexity(args.judge, dtype=args.dtype, max_tokens=128), rows)
    judged(str(args.judge), args.dtype, rows[:: max(1, len(rows) // 72)])


if __name__ == "__main__":
    main()
