"""Compare the parts of a dataset by Task2Vec: distances between domains or classes, alignment, and single rows.

    python examples/compare_domains.py --data train.parquet --by domain --model openai-community/gpt2 \
        --validation validation.parquet --rows 64 --batches 16

Prints the matrix of (cross) diversities with 95 % intervals and noise floors, the diversity of the union, bounds by
token noise, the alignment of each part with held-out parts, how well single rows find their own part, and what that
costs. `--heat-map matrix.png` draws the matrix if matplotlib is there. Images: name the class column, `--by label`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset

import hf_prune as hp


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="name on the Hub, or a Parquet file")
    parser.add_argument("--validation", help="held-out rows of the same parts")
    parser.add_argument("--split", default="train")
    parser.add_argument("--model", required=True, help="name on the Hub, or a folder")
    parser.add_argument("--by", required=True, help="column that names the part")
    parser.add_argument("--layers", nargs="*", help="modules that count; all by default")
    parser.add_argument("--estimator", default="sequence", choices=("sequence", "position"))
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--rows", type=int, default=48, help="of a batch")
    parser.add_argument("--row-sample", type=int, default=40, help="rows of each part that are scored one by one")
    parser.add_argument("--draws", type=int, default=1, help="labels drawn for each term")
    parser.add_argument("--tables", action="store_true", help="count tables of embeddings: tells bounds from domains")
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--heat-map", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse()
    probe = hp.Probe(
        args.model,
        layers=args.layers,
        estimator=args.estimator,
        draws=args.draws,
        tables=args.tables,
        max_length=args.max_length,
        head="keep",
    )
    parts = parts_of(load(args.data, args.split), args.by)
    sizes = {"batches": args.batches, "batch_rows": args.rows}
    matrix = hp.diversity_matrix(parts, probe, **sizes)
    names = list(parts)
    full = square(matrix, names)
    table("distance between batches: diversity on the diagonal, cross diversity beside it", full, names)
    within, between = [matrix[a, a] for a in names], [c for (a, b), c in matrix.items() if a != b]
    apart = sum(
        max(matrix[a, a].interval[1], matrix[b, b].interval[1]) < c.interval[0]
        for (a, b), c in matrix.items()
        if a != b
    )
    print(f"pairs of parts further apart than either is within itself, intervals apart: {apart} of {len(between)}")
    nearest = full + np.diag([np.inf] * len(names))
    print("nearest other part: " + ", ".join(f"{n}: {names[j]}" for n, j in zip(names, nearest.argmin(1), strict=True)))
    union = hp.diversity_coefficient(list(parts.values()), probe, batches=max(2 * len(names), 8), batch_rows=args.rows)
    print(f"union: {union}\nlargest of one part: {max(within, key=float)}")
    if not probe.reader().own and probe.reader().task == "language_model":
        low, high = hp.diversity_bounds(probe, **sizes)
        print(f"lower bound: {low}\nupper bound: {high}")
    if args.heat_map:
        heat_map(full, names, args.heat_map)
    if args.validation:
        held_out(args, probe, parts, sizes)


def held_out(args: argparse.Namespace, probe: hp.Probe, parts: dict[str, Dataset], sizes: dict[str, int]) -> None:
    names = list(parts)
    targets = parts_of(load(args.validation, "train"), args.by)
    rows = min([args.rows, *(len(ds) // args.batches for ds in targets.values())])
    alignment = hp.alignment_matrix(parts, targets, probe, batches=args.batches, batch_rows=rows)
    found = np.array([[float(alignment[a, b]) for b in names] for a in names])
    table("alignment of the part (row) to a held-out part (column)", found, names)
    own = int((found.argmax(1) == np.arange(len(names))).sum())
    print(f"highest with its own held-out part: {own} of {len(names)}")
    first = alignment[names[0], names[0]]
    print(f"{names[0]} to its own: {first}; corrected {first.corrected:.4f}")
    single_rows(args, parts, targets)


def single_rows(args: argparse.Namespace, parts: dict[str, Dataset], targets: dict[str, Dataset]) -> None:
    """How well a row's alignment tells its part, how far two label seeds agree, and what the score goes with."""
    names = list(parts)
    sample = {name: ds.select(range(min(args.row_sample, len(ds)))) for name, ds in parts.items()}
    print("\nalignment of single rows (last block, position by position)")
    print(f"{'target':>14} {'AUC':>7} {'seeds':>7} {'length':>7} {'log L1':>7}")
    every = []
    for name in names:
        target = targets[name].select(range(min(args.batches * args.rows, len(targets[name]))))
        scorer = hp.Task2VecAlignment.fit(target, args.model, complexity=True)
        scores = {other: scorer(ds[:]) for other, ds in sample.items()}
        mine = scores[name]["t2v_alignment"]
        rest = np.concatenate([scores[other]["t2v_alignment"] for other in names if other != name])
        auc = float((mine[:, None] > rest[None]).mean())
        again = hp.Task2VecAlignment.fit(target, hp.Probe(args.model, estimator="position", seed=1))
        seeds = spearman(mine, again(sample[name][:])["t2v_alignment"])
        length = spearman(mine, [len(text) for text in sample[name]["text"][:]])
        complexity = spearman(mine, scores[name]["t2v_alignment_complexity"])
        print(f"{name:>14} {auc:7.3f} {seeds:7.3f} {length:7.2f} {complexity:7.2f}")
        every.append((auc, seeds))
    print(f"{'mean':>14} {np.mean(every, 0)[0]:7.3f} {np.mean(every, 0)[1]:7.3f}")
    cost(scorer, sample[names[0]])


def cost(scorer: Any, ds: Dataset) -> None:
    """Selecting must be cheaper than training."""
    probe = scorer.probe.model.load(head="AutoModelForCausalLM")
    params = sum(p.numel() for p in probe.parameters())
    tokenizer, longest = scorer.probe.model.processor(), scorer.probe.reader().max_length
    tokens = sum(map(len, tokenizer(ds["text"][:], truncation=True, max_length=longest)["input_ids"]))
    scoring = scorer.flops(ds[:])
    print("\ncost of scoring rows, against one epoch of training on them")
    for what, size in (("the probe", params), ("a model 10 times as large", 10 * params)):
        share = scoring / hp.training_flops(size, tokens)
        print(f"  {what} ({size / 1e6:.1f} M parameters): {100 * share:.1f} %")


def spearman(a: Any, b: Any) -> float:
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def load(name: str, split: str) -> Dataset:
    if name.endswith(".parquet"):
        return load_dataset("parquet", data_files=name, split="train")
    return load_dataset(name, split=split)


def parts_of(ds: Dataset, by: str) -> dict[str, Dataset]:
    values = np.array(ds[by][:])
    label = ds.features[by]
    return {
        label.int2str(int(v)) if hasattr(label, "int2str") else str(v): ds.select(np.flatnonzero(values == v))
        for v in np.unique(values)
    }


def square(matrix: dict[tuple[str, str], Any], names: list[str]) -> np.ndarray:
    return np.array([[float(matrix[(a, b) if (a, b) in matrix else (b, a)]) for b in names] for a in names])


def table(title: str, values: np.ndarray, names: list[str]) -> None:
    print(f"\n{title}\n{'':>14} " + " ".join(f"{name[:8]:>8}" for name in names))
    for name, row in zip(names, values, strict=True):
        print(f"{name:>14} " + " ".join(f"{value:8.4f}" for value in row))


def heat_map(values: np.ndarray, names: list[str], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no heat-map: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(1 + 0.7 * len(names),) * 2)
    axes.imshow(values, cmap="viridis")
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    figure.tight_layout()
    figure.savefig(path)
    print(f"heat-map: {path}")


if __name__ == "__main__":
    main()
