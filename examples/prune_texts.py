"""Score a set of texts by prototypes, keep the harder 70 %, and write the result with a card.

    python examples/prune_texts.py --data train.parquet --model sentence-transformers/all-MiniLM-L6-v2 --output runs/x

Any dataset with a text column; with `--label` the classes' own prototypes are scored too. Two processes on a machine
without a GPU (each scores half of the shards, both see the result):

    ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 examples/prune_texts.py ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import Accelerator
from datasets import load_dataset

import hf_prune as hp


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="name on the Hub, or a Parquet file")
    parser.add_argument("--split", default="train")
    parser.add_argument("--model", required=True, help="name on the Hub, or a folder")
    parser.add_argument("--column", default="text")
    parser.add_argument("--label", help="column of classes")
    parser.add_argument("--k", type=int, help="clusters; the root of the rows by default")
    parser.add_argument("--keep", type=float, default=0.7)
    parser.add_argument("--limit", type=int, help="only so many rows")
    parser.add_argument("--shard-rows", type=int, help="rows of a shard, the unit that processes share out")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse()
    state = Accelerator()
    if args.data.endswith(".parquet"):
        ds = load_dataset("parquet", data_files=args.data, split="train")
    else:
        ds = load_dataset(args.data, split=args.split)
    ds = hp.with_row_id(ds.select(range(min(args.limit or len(ds), len(ds)))))

    embedder = hp.Embedder(args.model, column=args.column, kind="text")
    ds = hp.score(ds, embedder, output_dir=args.output / "embedding", shard_rows=args.shard_rows)
    scorers: list[hp.Scorer] = [hp.SSLPrototypes.fit(ds, k=args.k)]
    if args.label:
        scorers.append(hp.SupervisedPrototypes.fit(ds, label=args.label, margin=True))
    ds = hp.score(ds, *scorers, output_dir=args.output / "prototypes", shard_rows=args.shard_rows)

    if state.is_main_process:
        kept = hp.filter_by_score(
            ds, scorers[0].name, keep=args.keep, group_by=args.label, group_floor=0.5 if args.label else None
        )
        kept.remove_columns(embedder.name).save_to_disk(str(args.output / "kept"))
        scored = ds.remove_columns(embedder.name)
        hp.save_scored(scored, args.output / "card", scorers=[embedder, *scorers], label=args.label, keep=args.keep)
        order = sorted(zip(ds[scorers[0].name], ds[args.column], strict=True))
        print("most typical: ", *(f"  {score:.3f}  {text}" for score, text in order[:3]), sep="\n")
        print("least typical:", *(f"  {score:.3f}  {text}" for score, text in order[-3:]), sep="\n")
        print(f"kept {len(kept)} of {len(ds)} in {args.output / 'kept'}, scores and card in {args.output / 'card'}")
    print(f"process {state.process_index} of {state.num_processes} is done")


if __name__ == "__main__":
    main()
