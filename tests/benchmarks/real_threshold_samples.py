"""AUM with threshold samples on labels of which some were flipped: what lies below the threshold, and who ranks best.

    python tests/benchmarks/real_threshold_samples.py FOLDER/trec/train.parquet --embedder MODEL_FOLDER

Of each seed come the flips, the threshold samples, the weights and the order of the rows. Two runs with threshold
samples (C + 1 outputs) flag rows; one plain run (C outputs) gives the other scores. A small network on embeddings that
stay as they are, at a constant rate. Means and standard deviations are over seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from sklearn.metrics import roc_auc_score

import hf_prune as hp
from hf_prune.dynamics.aum import PERCENTILE, threshold_rows


def spoil(ds: datasets.Dataset, share: float, seed: int) -> tuple[datasets.Dataset, np.ndarray]:
    """A dataset with that share of its labels replaced by another class, and which (n,)."""
    rng = np.random.default_rng(seed)
    classes, labels = ds.features["label"].num_classes, np.array(ds["label"][:])
    flipped = np.zeros(len(ds), bool)
    flipped[rng.permutation(len(ds))[: round(share * len(ds))]] = True
    given = np.where(flipped, (labels + rng.integers(1, classes, len(ds))) % classes, labels)
    return ds.remove_columns("label").add_column("label", given, feature=ds.features["label"]), flipped


def train(ds: datasets.Dataset, outputs: int, folder: Path, seed: int, options: argparse.Namespace) -> hp.TrainingLog:
    torch.manual_seed(seed)
    width = len(ds[0]["embedding"])
    network = torch.nn.Sequential(
        torch.nn.Linear(width, options.hidden), torch.nn.ReLU(), torch.nn.Linear(options.hidden, outputs)
    )
    return hp.train_with_log(
        network, ds, folder, epochs=options.epochs, inputs="embedding", batch_size=options.batch, schedule="constant",
        optimizer=lambda p: torch.optim.AdamW(p, lr=options.rate), seed=seed, save_every=0,
    )  # fmt: skip


def measure(clean: datasets.Dataset, seed: int, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    ds, flipped = spoil(clean, options.flip, seed)
    classes, ids = ds.features["label"].num_classes, {"row_id": ds["row_id"][:]}
    logs = [
        train(hp.with_threshold_samples(ds, run=run, seed=seed), classes + 1, folder / f"{seed}-{run}", seed, options)
        for run in (0, 1)
    ]
    aum = hp.AUM.from_log(logs, threshold_seed=seed, percentile=options.percentile)(ids)
    low = aum["aum_flagged"]
    thresholds = []
    for run, log in enumerate(logs):
        area = np.mean([margin for (margin,) in log.each("margin")], 0)
        thresholds.append(np.percentile(area[threshold_rows(log.keys, classes, run, seed)], options.percentile))
    plain = train(ds, classes, folder / f"{seed}-plain", seed, options)
    cartography = hp.Cartography.from_log(plain)(ids)
    ranks: dict[str, Any] = {
        "aum, two runs with threshold samples": -aum["aum"],
        "aum, one plain run": -hp.AUM.from_log(plain)(ids)["aum"],
        "confidence": -cartography["confidence"],
        "el2n_train": hp.EL2N.from_log(plain)(ids)["el2n_train"],
        "forgetting": hp.Forgetting.from_log(plain)(ids)["forgetting"],
        "random": hp.Random(seed=seed)(ids)[f"random_{seed}"],
    }
    return {
        "threshold": float(np.mean(thresholds)),
        "rows below it": float(low.sum()),
        "precision": float(flipped[low].mean()) if low.any() else float("nan"),
        "recall": float(low[flipped].mean()),
        "precision and recall of as many rows as were flipped": float(
            flipped[aum["aum"].argsort()[: flipped.sum()]].mean()
        ),
        **{f"ROC-AUC, {name}": float(roc_auc_score(flipped, values)) for name, values in ranks.items()},
        "plain run, accuracy on given labels, last epoch": float(plain.read("correct", plain.epochs - 1).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--embedder", required=True, help="folder or Hub name of a text encoder")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--flip", type=float, default=0.1)
    parser.add_argument("--percentile", type=float, default=PERCENTILE)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    ds = datasets.Dataset.from_parquet(str(options.data))
    ds = hp.with_row_id(ds.select(range(min(options.rows, len(ds)))).select_columns(["text", "label"]))
    ds = hp.score(ds, hp.Embedder(options.embedder, column="text"))
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(ds, seed, Path(folder), options) for seed in range(options.seeds)]
    print(f"{len(ds)} rows, {options.flip:.0%} flipped, {options.epochs} epochs, {options.seeds} seeds")
    seeds = " | ".join(f"seed {seed}" for seed in range(options.seeds))
    print(f"| figure | mean | standard deviation | {seeds} |\n| --- |{' --- |' * (2 + options.seeds)}")
    for name in found[0]:
        values = np.array([one[name] for one in found])
        shown = " | ".join(f"{v:.4g}" for v in (values.mean(), values.std(ddof=1), *values))
        print(f"| {name} | {shown} |")


if __name__ == "__main__":
    main()
