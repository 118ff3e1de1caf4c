"""Wrong labels, for examples that look for them: made on purpose, and a table of which scores find and keep them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

import hf_prune as hp

HARD_IS_LOW = ("aum", "confidence")  # a wrong label shows at the low end; of the other scores at the high end


def spoil(ds: Dataset, label: str, share: float, seed: int = 0) -> Dataset:
    """Add `given`, the label with a share of the rows moved to another class, and `wrong`, which they are."""
    rng = np.random.default_rng(seed)
    true = np.array(ds[label][:])
    classes = ds.features[label].num_classes
    wrong = rng.permutation(len(ds)) < round(share * len(ds))
    given = np.where(wrong, (true + rng.integers(1, classes, len(ds))) % classes, true)
    return ds.add_column("given", given.tolist()).add_column("wrong", wrong.tolist())


def roc_auc(suspicion: np.ndarray, wrong: np.ndarray) -> float:
    """Chance that a wrong row looks more suspicious than a right one; ties count half; NaN if all rows are alike."""
    right = np.sort(suspicion[~wrong])
    below = np.searchsorted(right, suspicion[wrong], "left") + np.searchsorted(right, suspicion[wrong], "right")
    return float(below.mean() / (2 * len(right))) if len(right) and wrong.any() else float("nan")


def print_table(ds: Dataset, columns: Sequence[str], keep: float) -> None:
    """For every score: how well it finds the wrong labels, and how many stay if either end is kept."""
    wrong = np.array(ds["wrong"][:])
    print(f"{wrong.sum()} of {len(ds)} labels are wrong; of those that stay when {keep:.0%} is kept:")
    print(f"{'score':<20} {'ROC-AUC':>8} {'high kept':>10} {'low kept':>10}")
    for name in columns:
        values = np.array(ds[name][:], float)
        kept = [hp.keep_mask(values, keep=keep, prefer=end) for end in ("high", "low")]
        shares = [wrong[mask].mean() for mask in kept]
        auc = roc_auc(-values if name in HARD_IS_LOW else values, wrong)
        print(f"{name:<20} {auc:>8.3f} {shares[0]:>10.1%} {shares[1]:>10.1%}")
