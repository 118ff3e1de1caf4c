"""Score a set of pictures by prototypes, keep the harder 70 %, and write the result with a card.

    python examples/prune_images.py --data train.parquet --model microsoft/resnet-18 --output runs/pictures

Any dataset with a picture column and classes, any model of `transformers` that reads pictures, or a network of
your own as `package.module:factory` with `--preprocess package.module:function`. Several processes:

    accelerate launch --num_processes 4 examples/prune_images.py ...
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

from datasets import load_dataset

import hf_prune as hp


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="name on the Hub, or a Parquet file")
    parser.add_argument("--split", default="train")
    parser.add_argument("--model", required=True, help="name on the Hub, a folder, or package.module:factory")
    parser.add_argument("--preprocess", help="package.module:function, for a network of your own")
    parser.add_argument("--column", default="image")
    parser.add_argument("--label", default="label")
    parser.add_argument("--k", type=int, help="clusters; the root of the rows by default")
    parser.add_argument("--keep", type=float, default=0.7)
    parser.add_argument("--floor", type=float, default=0.5, help="share of its proportional part a class is sure of")
    parser.add_argument("--limit", type=int, help="only so many rows")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.data.endswith(".parquet"):
        ds = load_dataset("parquet", data_files=args.data, split="train")
    else:
        ds = load_dataset(args.data, split=args.split)
    ds = hp.with_row_id(ds.select(range(min(args.limit or len(ds), len(ds)))))
    started = time.perf_counter()

    embedder = hp.Embedder(args.model, column=args.column, kind="image", preprocess=args.preprocess)
    ds = hp.score(ds, embedder, output_dir=args.output / "embedding", batch_size=args.batch_size)
    print(f"{len(ds)} pictures embedded in {time.perf_counter() - started:.0f} s, {embedder.width} numbers each")

    ssl = hp.SSLPrototypes.fit(ds, k=args.k, cluster=True)
    supervised = hp.SupervisedPrototypes.fit(ds, label=args.label, margin=True)
    ds = hp.score(ds, ssl, supervised, output_dir=args.output / "prototypes")

    for column in (ssl.name, supervised.name):
        kept = hp.filter_by_score(ds, column, keep=args.keep, group_by=args.label, group_floor=args.floor)
        counts = Counter(kept[args.label][:])
        print(f"{column}: kept {len(kept)} of {len(ds)}; rows a class {min(counts.values())} to {max(counts.values())}")
        if column == ssl.name:
            kept.remove_columns(embedder.name).save_to_disk(str(args.output / "kept"))
    scored = ds.remove_columns(embedder.name)
    hp.save_scored(scored, args.output / "card", scorers=[embedder, ssl, supervised], label=args.label, keep=args.keep)
    print(f"kept rows in {args.output / 'kept'}, scores and card in {args.output / 'card'}")
    print(f"{time.perf_counter() - started:.0f} s in all; share it with hp.push_scored(ds, 'you/name', scorers=[...])")


if __name__ == "__main__":
    main()
