"""Give some pictures wrong labels, train once, and see which scores find them and which keep them.

    python examples/find_wrong_labels.py --data train.parquet --limit 3000 --output runs/wrong_labels

The data is a Parquet file (or a name on the Hub) with small pictures of one size and classes; without `--data` it is
scikit-learn's digits. One recorded run gives every score; a clean pass of an early checkpoint gives EL2N.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from label_noise import print_table, spoil
from small_pictures import load
from small_resnet import small_resnet

import hf_prune as hp


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="name on the Hub, or a Parquet file; scikit-learn's digits by default")
    parser.add_argument("--split", default="train")
    parser.add_argument("--column", default="image")
    parser.add_argument("--label", default="label")
    parser.add_argument("--limit", type=int, help="only so many rows")
    parser.add_argument("--wrong", type=float, default=0.1, help="share of labels to spoil")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--early", type=int, default=10, help="epochs after which EL2N looks at the network")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--keep", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0, help="of the wrong labels, the weights and the order")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse()
    ds = spoil(load(args.data, args.split, args.column, args.label, args.limit), args.label, args.wrong, args.seed)
    classes = ds.features[args.label].num_classes

    torch.manual_seed(args.seed)
    network = small_resnet(classes, args.width)
    early: list[torch.nn.Module] = []

    def on_epoch(epoch: int, model: torch.nn.Module) -> None:
        if epoch + 1 == min(args.early, args.epochs):
            early.append(copy.deepcopy(model))

    log = hp.train_with_log(
        network,
        ds,
        args.output / "log",
        epochs=args.epochs,
        inputs=args.column,
        label="given",
        batch_size=64,
        schedule="constant",  # a rate that drops lets the network memorise wrong labels
        augment=hp.crop_and_flip if args.data else None,  # a mirrored digit is another one
        on_epoch=on_epoch,
        seed=args.seed,
    )

    scorers: list[Any] = [
        hp.AUM.from_log(log),
        hp.Cartography.from_log(log),
        hp.Forgetting.from_log(log, tie_break="first_learned"),
        hp.EL2N.from_log(log),
        hp.EL2N(early, label="given", column=args.column, preprocess="small_resnet:to_input"),
        hp.Uncertainty.from_log(log),
        hp.Random(seed=0),
    ]
    ds = hp.score(ds, *scorers, output_dir=args.output / "scores")

    names = ["aum", "confidence", "forgetting", "el2n_train", "el2n", "variability", "uncertainty_entropy", "random_0"]
    print_table(ds, names, args.keep)

    clean = hp.filter_by_score(ds, "aum", keep=args.keep)
    clean.save_to_disk(str(args.output / "kept"))
    print(
        f"kept {len(clean)} rows by AUM in {args.output / 'kept'}, of which {np.mean(clean['wrong'][:]):.1%} are wrong"
    )


if __name__ == "__main__":
    main()
