"""Coverage of the coefficients' 95 % intervals, and the bias of alignment before and after its correction.

    python tests/benchmarks/fisher_coverage.py --repeats 400
    python tests/benchmarks/fisher_coverage.py --repeats 400 --only networks

Batches are drawn from the families of `tests/diversity/families.py`, and from pools of rows that went through tiny
networks, one by one: the pool is the population. Prints for 4, 8, 16 and 32 batches the share of intervals that hold
the population's value. The library refuses fewer than 8.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "diversity"))
from families import FAMILIES, SHIFTS, alignments, covered, crosses, diversities, expected_distance, moved, qualities

import hf_prune as hp
from hf_prune.fisher.distance import distance
from hf_prune.fisher.passes import Runner
from hf_prune.fisher.scorers import row_embeddings

BATCHES = (4, 8, 16, 32)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))


def text_network() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=24, bos_token_id=1, eos_token_id=1)
    return GPT2LMHeadModel(config).eval()


def as_ids(texts: list[str]) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[int(word) for word in text.split()] for text in texts])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}


def pool(probe: hp.Probe, rows: dict[str, list]) -> np.ndarray:
    """Embeddings of single rows, (n, D)."""
    runner, found = Runner(probe), []
    rows = {**rows, "row_id": [str(row) for row in range(len(next(iter(rows.values()))))]}
    for part in runner.parts(hp.Batch(rows), [0]):
        found.append(row_embeddings(runner, part).double().numpy())
    return np.concatenate(found)


def pools(n: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rows of a source and of a target."""
    rng, out = np.random.default_rng(0), {}
    vectors = {
        "normal": lambda shift: rng.normal(size=(n, 8)) + shift,
        "lognormal": lambda shift: rng.normal(size=(n, 8)) * rng.lognormal(0, 1, (n, 1)) + shift,
        "t3": lambda shift: rng.standard_t(3, (n, 8)) + shift,
    }
    for fisher in ("exact", "sampled"):
        probe = hp.Probe(network(), column="embedding", head="keep", fisher=fisher)
        for name, make in vectors.items():
            for shift in (0.0, 0.5):
                both = [pool(probe, {"embedding": make(s).astype(np.float32).tolist()}) for s in (0.0, shift)]
                out[f"network, {fisher}, {name}, shift {shift}"] = both[0], both[1]
    model = hp.Model.of(text_network(), preprocess=f"{Path(__file__).stem}:as_ids")
    probe = hp.Probe(model, column="text", modality="text", task="language_model")
    for shift in (0, 20):
        words = [rng.zipf(1.5, (n // 4, 12)) % 40 + start for start in (0, shift)]
        both = [pool(probe, {"text": [" ".join(map(str, row)) for row in w]}) for w in words]
        out[f"language model, words moved by {shift}"] = both[0], both[1]
    return out


def report(what: str, name: str, truth: float, cells: list[str]) -> None:
    print(f"{what:>9} {name:<45} {truth:7.4f}  " + "  ".join(cells), flush=True)


def cell(estimates: list, truth: float) -> str:
    share, value, width = covered(estimates, truth)
    return f"{share:.3f} ({value - truth:+.4f}, {width:.3f})"


def family_tables(repeats: int) -> None:
    for name, (draw, mu) in FAMILIES.items():
        truth = expected_distance(draw)
        report("diversity", name, truth, [cell(diversities(draw, m, repeats), truth) for m in BATCHES])
        if mu is None:
            continue
        for shift in SHIFTS:
            other, apart = moved(draw, mu, shift)
            label = f"{name}, shift {shift}"
            between = expected_distance(draw, other)
            report("cross", label, between, [cell(crosses(draw, other, m, repeats), between) for m in BATCHES])
            aligned(label, draw, other, apart, repeats)
            quality = 0.5 * (1 - apart) + 0.5 * truth
            report("quality", label, quality, [cell(qualities(draw, other, m, repeats), quality) for m in BATCHES])


def aligned(label: str, draw, other, apart: float, repeats: int) -> None:
    cells, plain = [], []
    for m in BATCHES:
        found, raw = alignments(draw, other, m, repeats)
        cells.append(cell(found, apart))
        plain.append(f"{np.mean(raw) - apart:+.4f}")
    report("alignment", f"{label} (1 - it)", apart, cells)
    print(f"{'':>9} {'bias without correction':<45} {'':7}  " + "  ".join(plain))


def network_tables(repeats: int, rows: int) -> None:
    for name, (source, target) in pools(4000).items():

        def drawn(x: np.ndarray):
            return lambda rng, *size: x[rng.integers(0, len(x), (*size, rows))].mean(-2)

        a, b = drawn(source), drawn(target)
        truth = expected_distance(a)
        report("diversity", name, truth, [cell(diversities(a, m, repeats), truth) for m in BATCHES])
        aligned(name, a, b, distance(source.mean(0), target.mean(0)), repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--rows", type=int, default=16, help="of a batch, for networks")
    parser.add_argument("--only", choices=("families", "networks"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"share of {args.repeats} intervals that hold the value (bias of the mean, width), for {BATCHES} batches")
    if args.only != "networks":
        family_tables(args.repeats)
    if args.only != "families":
        network_tables(args.repeats, args.rows)


if __name__ == "__main__":
    main()
