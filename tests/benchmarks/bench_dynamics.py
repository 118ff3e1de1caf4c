"""What recording costs: the same training loop bare, with our log, and with a plain dict of lists as peers keep it.

    python tests/benchmarks/bench_dynamics.py            ResNet-8 (He et al.'s for CIFAR, n = 1), 1 024 images, 10 pairs
    python tests/benchmarks/bench_dynamics.py --small    512 images, 3 pairs
    python tests/benchmarks/bench_dynamics.py --device cuda --images 50000 --batch 512
    python tests/benchmarks/bench_dynamics.py --network gpt2    GPT-2 of 4 layers, width 256, 50 257 words; 8 texts of
                                                                128 tokens a step (no peer keeps a dict of tokens)

Runs are interleaved; a pair is a bare and a recorded run after each other. Times are CPU seconds of the process on a
CPU (steadier than the clock on a busy machine), seconds on a GPU; all that recording does counts, checks and files too.
"time inside" is what goes by in calls of the recorder: steady where the noise of whole runs hides it. Weights must
come out equal to the last bit, and the recorders must agree.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import hf_prune as hp

VOCABULARY = 50_257


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        stride = c_out // c_in
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out),
        )  # fmt: skip
        self.short = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.short(x))


class GPT2(nn.Module):
    """Logits for the next tokens, (b, 127, V)."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.body = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=256, n_layer=4, n_head=4, n_positions=128))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(input_ids=x).logits[:, :-1]


def resnet8(classes: int = 10) -> nn.Module:
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [Block(16, 16), Block(16, 32), Block(32, 64)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


class Nothing:
    def step(self, rows: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None: ...

    def end(self) -> None: ...


class Ours(Nothing):
    def __init__(self, ids: list[str]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.log = hp.TrainingLog.create(Path(self.folder.name) / "log", ids=ids)
        self.positions = torch.from_numpy(self.log.positions(ids))

    def step(self, rows: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self.log.record_rows(self.positions[rows], logits, labels)

    def end(self) -> None:
        self.log.end_epoch()

    def margins(self, ids: list[str]) -> np.ndarray:
        log = hp.TrainingLog(self.log.folder)
        return np.stack([log.read("margin", e) for e in range(log.epochs)])[:, self.positions]


class Dict(Nothing):
    """Loss, margin and correctness of each row appended to lists by id, as scripts for forgetting events do."""

    def __init__(self, ids: list[str]) -> None:
        self.ids, self.kept = ids, defaultdict(lambda: [[], [], []])

    def step(self, rows: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        logits = logits.detach()
        loss = nn.functional.cross_entropy(logits, labels, reduction="none")
        right = logits.argmax(1) == labels
        for i, row in enumerate(rows.tolist()):
            loss_list, right_list, margins = self.kept[self.ids[row]]
            z, y = logits[i], int(labels[i])
            top, at = z.topk(2)
            loss_list.append(loss[i].item())
            right_list.append(right[i].item())
            margins.append((z[y] - (top[1] if int(at[0]) == y else top[0])).item())

    def margins(self, ids: list[str]) -> np.ndarray:
        return np.array([self.kept[i][2] for i in ids]).T


def train(
    make: Callable[[], nn.Module],
    x: torch.Tensor,
    y: torch.Tensor,
    epochs: int,
    batch: int,
    recorder: Nothing,
    clock: Callable[[], float],
) -> tuple[torch.Tensor, float]:
    """The weights, and the seconds that went by inside the recorder."""
    inside = 0.0
    torch.manual_seed(0)
    net = make().to(x.device)
    opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            labels = y[rows]
            logits = net(x[rows])
            loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
            start = clock()
            recorder.step(rows, logits, labels)
            inside += clock() - start
            opt.zero_grad()
            loss.backward()
            opt.step()
        start = clock()
        recorder.end()
        inside += clock() - start
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()]).cpu(), inside


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", choices=["resnet8", "gpt2"], default="resnet8")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--images", type=int)
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    text = options.network == "gpt2"
    n = options.images or ((16 if options.small else 32) if text else (512 if options.small else 1024))
    epochs, batch = options.epochs or (1 if text else 2), options.batch or (8 if text else 128)
    pairs = options.pairs or (3 if options.small else 10)
    if options.device == "cpu":
        torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    if text:
        x = torch.randint(0, VOCABULARY, (n, 128), generator=generator).to(options.device)
        y = x[:, 1:]
    else:
        x = torch.randn(n, 3, 32, 32, generator=generator).to(options.device)
        y = torch.randint(0, 10, (n,), generator=generator).to(options.device)
    ids = [f"row {i}" for i in range(n)]
    make = GPT2 if text else resnet8
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    makers: dict[str, Callable[[], Any]] = {"bare": Nothing, "ours": lambda: Ours(ids)}
    if not text:
        makers["dict"] = lambda: Dict(ids)
    times: dict[str, list[float]] = defaultdict(list)
    shares: dict[str, list[float]] = defaultdict(list)
    ends: dict[str, torch.Tensor] = {}
    margins: dict[str, np.ndarray] = {}
    for turn in range(-1, pairs):  # the first is thrown away
        for name in makers if turn % 2 else reversed(makers):
            recorder = makers[name]()
            start = clock()
            ends[name], inside = train(make, x, y, epochs, batch, recorder, clock)
            times[name].append(clock() - start)
            shares[name].append(inside / (times[name][-1] - inside))
            if name != "bare" and turn == pairs - 1:
                margins[name] = recorder.margins(ids)
    assert all(torch.equal(end, ends["bare"]) for end in ends.values()), "recording changed the weights"
    if not text:
        np.testing.assert_allclose(margins["ours"], margins["dict"], atol=1e-5)
    what = f"GPT-2, {n} texts" if text else f"ResNet-8, {n} images"
    print(f"{what}, batch {batch}, {epochs} epochs, {options.device}, {pairs} pairs")
    bare = np.array(times["bare"][1:])
    draws = np.random.default_rng(0).integers(0, pairs, (10_000, pairs))
    for name in list(makers)[1:]:
        whole = np.array(times[name][1:]) / bare - 1
        for what, ratio in (("whole runs against bare ones", whole), ("time inside", np.array(shares[name][1:]))):
            low, high = np.quantile(np.median(ratio[draws], 1), [0.025, 0.975])
            told = f"{np.median(ratio):+.2%} of training time (median, 95 % interval {low:+.2%} to {high:+.2%})"
            print(f"  {name}, {what}: {told}")


if __name__ == "__main__":
    main()
