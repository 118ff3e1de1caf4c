"""Cost to equal variance of a Task2Vec embedding: per-row squares against squared mean gradients of mini-batches.

    python tests/benchmarks/bench_task2vec.py --network resnet --rows 256 --repeats 6
    python tests/benchmarks/bench_task2vec.py --network gpt2 --rows 64 --length 32 --repeats 6
    python tests/benchmarks/bench_task2vec.py --network gpt2 --size full --rows 16 --length 128 --repeats 4
    python tests/benchmarks/bench_task2vec.py --network gpt2 --peer SRC     the published code itself

Both published procedures are written anew, step by step as they are in what costs time and makes variance: the gradient
of the mean loss of a mini-batch (AWS: 64 pictures; Beyond-Scale: 8 texts) is formed for every parameter, squared weight
by weight, and averaged over filters at the end; Beyond-Scale's forward pass also works out a loss that nobody reads.
Dropout is off and labels belong to their positions, which is better than published. `--peer` takes the folder
`src` of brando90/beyond-scale-language-data-diversity and runs that instead. Same network, rows and number of
draws, in turns. What counts is the variance of the embedding over label seeds, relative to its square, mean over
coordinates, times the processor time.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, ResNetConfig, ResNetForImageClassification

from hf_prune.fisher.squares import Squares
from hf_prune.networks.statistics import logit_gradient

BATCH = {"resnet": 64, "gpt2": 8}
WORDS = {"small": 8192, "full": 50257}


def network(name: str, size: str) -> tuple[nn.Module, str]:
    torch.manual_seed(0)
    if name == "resnet":
        widths = [64, 128, 256, 512] if size == "full" else [32, 64, 128]
        depths = [3, 4, 6, 3] if size == "full" else [1, 1, 1]  # full: ResNet-34
        config = ResNetConfig(
            embedding_size=widths[0], hidden_sizes=widths, depths=depths, layer_type="basic", num_labels=10
        )
        return ResNetForImageClassification(config).eval(), "classifier.1"
    more = (
        {"n_embd": 768, "n_layer": 12, "n_head": 12} if size == "full" else {"n_embd": 192, "n_layer": 4, "n_head": 4}
    )
    config = GPT2Config(
        vocab_size=WORDS[size], n_positions=128, bos_token_id=0, eos_token_id=0,
        attn_pdrop=0, embd_pdrop=0, resid_pdrop=0, **more,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval(), "lm_head"


def inputs(name: str, size: str, rows: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if name == "resnet":
        return torch.randn(rows, 3, 48, 48, generator=generator)
    return torch.randint(0, WORDS[size], (rows, length), generator=generator)


def gradient_of(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gradient of the summed loss under drawn labels; the last position of a text has no label."""
    flat = logits.detach().reshape(-1, logits.shape[-1])
    labels = torch.multinomial(flat.softmax(-1), 1, generator=generator).reshape(logits.shape[:-1])
    if logits.ndim == 3:
        labels[:, -1] = -100
    return logit_gradient(logits.detach(), labels)


def ours(net: nn.Module, squares: Squares, x: torch.Tensor, seed: int, batch: int) -> np.ndarray:
    generator, total, terms = torch.Generator().manual_seed(seed), 0.0, 0
    for part in x.split(batch):
        tap = squares.forward(part)
        logits = tap.output.logits
        total = total + tap.sums(logits, gradient_of(logits, generator))
        terms += len(part) * (part.shape[1] - 1 if part.ndim == 2 else 1)
    return (total / terms / squares.fan_in).numpy()


def theirs(net: nn.Module, squares: Squares, x: torch.Tensor, seed: int, batch: int) -> np.ndarray:
    """The mean gradient of each mini-batch, squared, for every parameter."""
    torch.manual_seed(seed)
    for p in net.parameters():
        p.squared, p.batches = torch.zeros_like(p), 0
    for part in x.split(batch):
        if part.ndim == 2:
            logits = net(part, attention_mask=torch.ones_like(part), labels=part).logits
            labels = torch.stack([torch.multinomial(row.softmax(-1), 1)[:, 0] for row in logits.detach()])
            loss = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, :-1])
        else:
            logits = net(part).logits
            loss = F.cross_entropy(logits, torch.multinomial(logits.detach().softmax(-1), 1)[:, 0])
        net.zero_grad()
        loss.backward()
        for p in net.parameters():
            if p.grad is not None:
                p.squared += p.grad**2
                p.batches += 1
    return filter_means(net, squares, x, batch, {name: p.squared / p.batches for name, p in net.named_parameters()})


def published(folder: str) -> Callable[..., np.ndarray]:
    """The method of Beyond-Scale's own code."""
    sys.path.insert(0, folder)
    module = importlib.import_module("diversity.task2vec")

    def run(net: nn.Module, squares: Squares, x: torch.Tensor, seed: int, batch: int) -> np.ndarray:
        torch.manual_seed(seed)
        embedder = module.Task2Vec(net, loader_opts={"batch_size": batch}, _deep_copy=False)
        rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in x]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            embedder.montecarlo_fisher_autoregressive(rows)
        net.eval()
        return filter_means(net, squares, x, batch, {name: p.grad2_acc for name, p in net.named_parameters()})

    return run


def filter_means(
    net: nn.Module, squares: Squares, x: torch.Tensor, batch: int, found: dict[str, torch.Tensor]
) -> np.ndarray:
    """Squares of mean gradients times the terms of a mini-batch: an estimate of the same Fisher, filter by filter."""
    out, terms = [], batch * (x.shape[1] - 1 if x.ndim == 2 else 1)
    for block in squares.blocks:
        conv1d = type(net.get_submodule(block.name.rpartition(".")[0])).__name__ == "Conv1D"
        value = found[block.name]
        flat = value.t() if conv1d else value.reshape(len(value), -1)
        out.append((flat.reshape(block.stop - block.start, -1).mean(1) * terms).numpy())
    return np.concatenate(out)


def measure(run: Callable[[int], Any], seeds: range) -> tuple[list[np.ndarray], list[float]]:
    found, times = [], []
    for seed in seeds:
        start = time.process_time()
        found.append(run(seed))
        times.append(time.process_time() - start)
    return found, times


def spread(found: list[np.ndarray]) -> float:
    """Variance relative to the square of the mean, mean over coordinates."""
    x = np.stack(found)
    mean = x.mean(0)
    return float((x.var(0, ddof=1)[mean > 0] / mean[mean > 0] ** 2).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("resnet", "gpt2"), default="resnet")
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", help="folder src of the published code, for gpt2")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    other = published(args.peer) if args.peer else theirs
    net, head = network(args.network, args.size)
    tables = [name for name, module in net.named_modules() if isinstance(module, nn.Embedding)]
    squares = Squares(net, skip=[head, *tables])
    x, batch = inputs(args.network, args.size, args.rows, args.length), BATCH[args.network]
    ours(net, squares, x[:batch], 0, batch)  # the first call looks at the network
    mine, peer, both = [], [], ([], [])
    for seed in range(args.repeats):
        for place, (run, kept) in enumerate(((ours, mine), (other, peer))):
            found, seconds = measure(lambda s, run=run: run(net, squares, x, s, batch), range(seed, seed + 1))
            kept += found
            both[place].extend(seconds)
    times = [float(np.median(seconds)) for seconds in both]
    variances = [spread(mine), spread(peer)]
    ratio = np.mean(mine, 0).sum() / np.mean(peer, 0).sum()
    print(f"{args.network} {args.size}, {args.rows} rows, mini-batches of {batch}, {args.repeats} label seeds")
    for what, seconds, variance in zip(("per-row squares", "squared means"), times, variances, strict=True):
        print(f"  {what:>16}: {seconds:7.2f} s CPU, relative variance {variance:.4f}")
    print(f"  same mean: L1 ratio {ratio:.3f}")
    gain = variances[1] * times[1] / (variances[0] * times[0])
    print(f"  time x{times[1] / times[0]:.2f}, variance x{variances[1] / variances[0]:.2f}, cost x{gain:.2f}")


if __name__ == "__main__":
    main()
