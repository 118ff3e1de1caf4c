"""Prune a set of small pictures by EL2N at an early epoch, and train on what is left.

    python examples/prune_by_el2n.py --data train.parquet --test test.parquet --limit 5000 --output runs/el2n

A few networks are trained for a few epochs; EL2N is the mean length of their error vectors. The highest are the hardest
rows, and with wrong labels (`--wrong 0.1`) the wrong ones: so the window passes over the hardest share (`--offset`) and
keeps the next. The same network is then trained on the window, on the hardest rows, on a random subset of the same
size, and on all rows. The data is Parquet (or a name on the Hub) with pictures of one size and classes; without
`--data` it is scikit-learn's digits, a fifth of them for the test.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from label_noise import spoil
from small_pictures import load
from small_resnet import small_resnet

import hf_prune as hp


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="name on the Hub, or a Parquet file; scikit-learn's digits by default")
    parser.add_argument("--split", default="train")
    parser.add_argument("--test", help="Parquet file of test rows; a fifth of the data by default")
    parser.add_argument("--column", default="image")
    parser.add_argument("--label", default="label")
    parser.add_argument("--limit", type=int, help="only so many rows")
    parser.add_argument("--wrong", type=float, default=0.0, help="share of training labels to spoil")
    parser.add_argument("--networks", type=int, default=3, help="how many EL2N averages over")
    parser.add_argument("--early", type=int, default=5, help="epochs after which EL2N looks at them")
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--offset", type=float, default=0.1, help="share of the rows, the hardest, to pass over")
    parser.add_argument("--epochs", type=int, default=30, help="of the networks that are trained on what is left")
    parser.add_argument("--seeds", type=int, default=1, help="networks trained on each subset")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse()
    ds = load(args.data, args.split, args.column, args.label, args.limit)
    if args.test:
        test = load(args.test, "train", args.column, args.label, None)
    else:
        halves = ds.train_test_split(test_size=0.2, seed=0)
        ds, test = halves["train"], halves["test"]
    ds = spoil(ds, args.label, args.wrong)
    classes = ds.features[args.label].num_classes

    def train(rows: Dataset, log: Path, seed: int, epochs: int, **more: Any) -> tuple[torch.nn.Module, hp.TrainingLog]:
        torch.manual_seed(seed)
        network = small_resnet(classes, args.width)
        augment = hp.crop_and_flip if args.data else None  # a mirrored digit is another one
        common = {"inputs": args.column, "label": "given", "batch_size": 64, "augment": augment, "save_every": 0}
        return network, hp.train_with_log(network, rows, log, epochs=epochs, seed=seed, **common, **more)

    # mode="eval": a clean pass after each epoch, which is what EL2N is defined on
    early = {"epochs": args.early, "mode": "eval", "schedule": "constant"}
    logs = [train(ds, args.output / f"early-{seed}", seed, **early)[1] for seed in range(args.networks)]
    el2n = hp.EL2N.from_log(logs, epochs=args.early - 1)
    ds = hp.score(ds, el2n, output_dir=args.output / "scores")

    subsets = {
        "random": hp.filter_by_score(ds, el2n.name, keep=args.keep, prefer="random"),
        "hardest": hp.filter_by_score(ds, el2n.name, keep=args.keep),
        "window": hp.filter_by_score(ds, el2n.name, keep=args.keep, offset=args.offset),
        "all": ds,
    }
    print(f"{len(ds)} rows, {np.mean(ds['wrong'][:]):.1%} of the labels wrong; EL2N of {args.networks} networks after")
    print(
        f"{args.early} epochs; window: without the hardest {args.offset:.0%}; {args.epochs} epochs, {args.seeds} seeds"
    )
    print(f"{'trained on':<12} {'rows':>6} {'wrong':>7} {'mean EL2N':>10} {'test accuracy':>14}")
    for name, rows in subsets.items():
        found = []
        for seed in range(args.seeds):
            network, _ = train(rows, args.output / f"{name}-{seed}", 100 + seed, args.epochs)
            found.append(hp.evaluate_model(network, test, inputs=args.column, label=args.label).accuracy)
        spread = f" ({min(found):.1%} to {max(found):.1%})" if args.seeds > 1 else ""
        wrong, hard = np.mean(rows["wrong"][:]), np.mean(rows[el2n.name][:])
        print(f"{name:<12} {len(rows):>6} {wrong:>7.1%} {hard:>10.3f} {fmean(found):>14.1%}{spread}")
    subsets["window"].save_to_disk(str(args.output / "kept"))
    print(f"the window's rows are in {args.output / 'kept'}")


if __name__ == "__main__":
    main()
