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
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from small_resnet import small_resnet

import hf_prune as hp

HARD_IS_LOW = ("aum", "confidence")  # a wrong label shows at the low end; of the others at the high end


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="name on the Hub, or a Parquet file; scikit-learn's digits by default")
    parser.add_argument("--split", default="train")
    parser.add_argument("--column", default="image")
    parser.add_argument("--label", default="label")
    parser.add_argument("--limit", type=int, help="only so many rows")
    parser.add_argument("--wrong", type=float, default=0.1, help="share of labels to spoil")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--early", type=int, default=10, help="epochs after which EL2N looks at the network")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--keep", type=float, default=0.7)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def load(args: argparse.Namespace) -> Dataset:
    if args.data is None:
        from PIL import Image as Picture
        from sklearn.datasets import load_digits

        digits = load_digits()
        pictures = [Picture.fromarray((pixels * 15).astype(np.uint8)) for pixels in digits.images]
        features = Features({args.column: Image(), args.label: ClassLabel(names=[str(i) for i in range(10)])})
        ds = Dataset.from_dict({args.column: pictures, args.label: digits.target.tolist()}, features)
    elif args.data.endswith(".parquet"):
        ds = load_dataset("parquet", data_files=args.data, split="train")
    else:
        ds = load_dataset(args.data, split=args.split)
    return hp.with_row_id(ds.select(range(min(args.limit or len(ds), len(ds)))))


def spoil(ds: Dataset, label: str, share: float, classes: int) -> Dataset:
    """Add `given`, the label with a share of the rows moved to another class, and `wrong`, which they are."""
    rng = np.random.default_rng(0)
    true = np.array(ds[label][:])
    wrong = rng.permutation(len(ds)) < round(share * len(ds))
    given = np.where(wrong, (true + rng.integers(1, classes, len(ds))) % classes, true)
    return ds.add_column("given", given.tolist()).add_column("wrong", wrong.tolist())


def roc_auc(suspicion: np.ndarray, wrong: np.ndarray) -> float:
    """Chance that a wrong row looks more suspicious than a right one; ties count half."""
    right = np.sort(suspicion[~wrong])
    below = np.searchsorted(right, suspicion[wrong], "left") + np.searchsorted(right, suspicion[wrong], "right")
    return float(below.mean() / (2 * len(right)))


def main() -> None:
    args = parse()
    ds = load(args)
    classes = ds.features[args.label].num_classes
    ds = spoil(ds, args.label, args.wrong, classes)

    torch.manual_seed(0)
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

    wrong = np.array(ds["wrong"][:])
    names = ["aum", "confidence", "forgetting", "el2n_train", "el2n", "variability", "uncertainty_entropy", "random_0"]
    print(f"{wrong.sum()} of {len(ds)} labels are wrong; of those that stay when {args.keep:.0%} is kept:")
    print(f"{'score':<20} {'ROC-AUC':>8} {'high kept':>10} {'low kept':>10}")
    for name in names:
        values = np.array(ds[name][:], float)
        kept = [hp.keep_mask(values, keep=args.keep, prefer=end) for end in ("high", "low")]
        shares = [wrong[mask].mean() for mask in kept]
        auc = roc_auc(-values if name in HARD_IS_LOW else values, wrong)
        print(f"{name:<20} {auc:>8.3f} {shares[0]:>10.1%} {shares[1]:>10.1%}")

    clean = hp.filter_by_score(ds, "aum", keep=args.keep)
    clean.save_to_disk(str(args.output / "kept"))
    print(
        f"kept {len(clean)} rows by AUM in {args.output / 'kept'}, of which {np.mean(clean['wrong'][:]):.1%} are wrong"
    )


if __name__ == "__main__":
    main()
