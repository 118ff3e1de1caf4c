"""From a raw text corpus to a set to train a language model on, step by step, and what each step took.

    python examples/lm_recipe.py --data corpus.parquet --target legal --model folder --embedder folder --output runs/lm

1. exact copies, 2. near-copies (MinHash, the longest of a cluster stays), 3. the least likely texts of each domain
(perplexity of `--model`, a causal language model), 4. texts unlike the target (DSIR), 5. semantic duplicates (SemDeDup
on vectors of `--embedder`), 6. the most typical texts of each domain. Steps 5 and 6 are D4, which `hp.d4` does in one
call, for all domains alike and with a fraction for the first instead of a similarity.

The corpus is a Parquet file or a name on the Hub with a column of texts and one of domains; `--target` is one of the
domains, of which some rows are set aside to show what is wanted.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, concatenate_datasets, load_dataset
from transformers import AutoTokenizer

import hf_prune as hp


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="name on the Hub, or a Parquet file")
    parser.add_argument("--split", default="train")
    parser.add_argument("--column", default="text")
    parser.add_argument("--domain", default="domain", help="column of domains, names or a ClassLabel")
    parser.add_argument("--limit", type=int, help="only so many rows, drawn with a seed")
    parser.add_argument("--copies", type=float, default=0.0, help="share of rows to repeat, half of them shortened")
    parser.add_argument("--target", required=True, help="the domain that is wanted")
    parser.add_argument("--target-rows", type=int, default=100, help="rows of it to set aside for DSIR")
    parser.add_argument("--model", required=True, help="causal language model: name on the Hub, or a folder")
    parser.add_argument("--max-tokens", type=int, default=256, help="of each text that the model reads")
    parser.add_argument("--embedder", required=True, help="text encoder: name on the Hub, or a folder")
    parser.add_argument("--jaccard", type=float, default=0.8, help="similarity of n-grams that makes a near-copy")
    parser.add_argument("--unlikely", type=float, default=0.1, help="share of each domain that perplexity drops")
    parser.add_argument("--unlike", type=float, default=0.3, help="share of the rows that DSIR drops")
    parser.add_argument("--cosine", type=float, default=0.95, help="similarity that makes a semantic duplicate")
    parser.add_argument("--typical", type=float, default=0.2, help="share of each domain that the prototypes drop")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def load(args: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """The corpus, with ids, copies and names of domains, and the rows that show what is wanted."""
    if args.data.endswith(".parquet"):
        ds = load_dataset("parquet", data_files=args.data, split="train")
    else:
        ds = load_dataset(args.data, split=args.split)
    rng = np.random.default_rng(0)
    ds = ds.select(np.sort(rng.permutation(len(ds))[: args.limit]))
    if isinstance(ds.features[args.domain], ClassLabel):
        names = ds.features[args.domain].names
        numbers = ds[args.domain][:]
        ds = ds.remove_columns(args.domain).add_column(args.domain, [names[i] for i in numbers])

    wanted = np.flatnonzero(np.array(ds[args.domain][:]) == args.target)
    aside = rng.permutation(wanted)[: args.target_rows]
    if len(wanted) <= args.target_rows:
        raise SystemExit(f"--target {args.target}: {len(wanted)} rows, of which {args.target_rows} are to be set aside")
    corpus, target = ds.select(np.setdiff1d(np.arange(len(ds)), aside)), ds.select(np.sort(aside))

    again = corpus.select(rng.permutation(len(corpus))[: round(args.copies * len(corpus))])
    half = len(again) // 2
    shortened = again.select(range(half)).map(lambda row: {args.column: row[args.column].rpartition(" ")[0]})
    corpus = concatenate_datasets([corpus, shortened, again.select(range(half, len(again)))])
    return hp.with_row_id(corpus), target


def print_table(what: str, steps: dict[str, list[Counter[str]]], which: int) -> None:
    """What each step took, by domain: rows (which=0) or tokens (which=1)."""
    names, counts = list(steps), [found[which] for found in steps.values()]
    domains = sorted(counts[0])
    print(f"\n{what:<22}" + "".join(f"{domain[:12]:>13}" for domain in [*domains, "all"]))

    def line(name: str, numbers: Counter[str]) -> None:
        print(f"{name:<22}" + "".join(f"{n:>13,}" for n in [*(numbers[d] for d in domains), numbers.total()]))

    line(names[0], counts[0])
    for name, before, after in zip(names[1:], counts, counts[1:], strict=False):
        line(f"- {name}", before - after)
    line("kept", counts[-1])


def main() -> None:
    args = parse()
    ds, target = load(args)
    tokenizer = AutoTokenizer.from_pretrained(args.model)

    def count(texts: list[str]) -> dict[str, list[int]]:
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return {"tokens": [len(i) for i in ids]}

    ds = ds.map(count, batched=True, input_columns=args.column)
    scorers: list[Any] = []
    steps: dict[str, list[Counter[str]]] = {}

    def score(ds: Dataset, scorer: Any) -> Dataset:
        scorers.append(scorer)
        return hp.score(ds, scorer, output_dir=args.output / "scores" / scorer.name)

    def note(step: str, ds: Dataset) -> None:
        rows, tokens = Counter(ds[args.domain][:]), Counter[str]()
        for domain, number in zip(ds[args.domain][:], ds["tokens"][:], strict=True):
            tokens[domain] += number
        steps[step] = [rows, tokens]

    note("raw", ds)
    ds = score(ds, hp.ExactDedup.fit(ds, text=args.column))
    ds = hp.filter_by_score(ds, "exact", keep=1.0, one_per="exact_cluster")
    note("exact copies", ds)

    ds = score(ds, hp.MinHashDedup.fit(ds, text=args.column, threshold=args.jaccard))
    ds = hp.filter_by_score(ds, "tokens", keep=1.0, one_per="minhash_cluster")
    note("near-copies", ds)

    # by domain: likelihood tells kinds of text apart before it tells good ones from bad ones
    ds = score(ds, hp.Perplexity(args.model, args.column, max_tokens=args.max_tokens, on_bad="nan"))
    ds = hp.filter_by_score(ds, "log_likelihood", keep=1 - args.unlikely, group_by=args.domain, nulls="drop")
    note("unlikely", ds)

    # per n-gram, since the texts are of different lengths; the paper samples equal ones (hp.chunk_texts) by the sums
    dsir = hp.DSIR.fit(ds, target, args.column, normalize="per_ngram", smoothing=1, hash="fast")
    ds = score(ds, dsir)
    ds = hp.filter_by_score(ds, "dsir", keep=1 - args.unlike, nulls="drop")
    note(f"unlike {args.target}", ds)

    ds = score(ds, hp.Embedder(args.embedder, column=args.column, kind="text"))
    ds = score(ds, hp.SemDeDup.fit(ds))
    ds = hp.filter_by_score(ds, "semdedup", threshold=1 - args.cosine, nulls="drop")
    note("semantic duplicates", ds)

    ds = score(ds, hp.SSLPrototypes.fit(ds))
    # by domain again: texts of the target are like each other, and would be the first to go
    ds = hp.filter_by_score(ds, "ssl_proto", keep=1 - args.typical, group_by=args.domain)
    note("typical", ds)

    print_table("rows", steps, 0)
    print_table("tokens", steps, 1)
    ds = ds.remove_columns("embedding")
    ds.save_to_disk(str(args.output / "kept"))
    hp.save_scored(ds, args.output / "card", scorers=scorers)
    print(f"\nkept rows in {args.output / 'kept'}, their scores and the card in {args.output / 'card'}")


if __name__ == "__main__":
    main()
