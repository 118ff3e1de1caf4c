"""What recording costs: the same training loop bare, with our log, and with a plain dict of lists as peers keep it.

    python tests/benchmarks/bench_dynamics.py            ResNet-8 (He et al.'s for CIFAR, n = 1), 1 024 images, 10 pairs
    python tests/benchmarks/bench_dynamics.py --small    512 images, 3 pairs
    python tests/benchmarks/bench_dynamics.py --device cuda --images 50000 --batch 512

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
    x: torch.Tensor, y: torch.Tensor, epochs: int, batch: int, recorder: Nothing, clock: Callable[[], float]
) -> tuple[torch.Tensor, float]:
    """The weights, and the seconds that went by inside the recorder."""
    inside = 0.0
    torch.manual_seed(0)
    net = resnet8().to(x.device)
    opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            labels = y[rows]
            logits = net(x[rows])
            loss = nn.functional.cross_entropy(logits, labels)
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
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--images", type=int)
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    n = options.images or (512 if options.small else 1024)
    pairs = options.pairs or (3 if options.small else 10)
    if options.device == "cpu":
        torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, 32, 32, generator=generator).to(options.device)
    y = torch.randint(0, 10, (n,), generator=generator).to(options.device)
    ids = [f"image {i}" for i in range(n)]
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    makers: dict[str, Callable[[], Any]] = {"bare": Nothing, "ours": lambda: Ours(ids), "dict": lambda: Dict(ids)}
    times: dict[str, list[float]] = defaultdict(list)
    shares: dict[str, list[float]] = defaultdict(list)
    ends: dict[str, torch.Tensor] = {}
    margins: dict[str, np.ndarray] = {}
    for turn in range(-1, pairs):  # the first is thrown away
        for name in makers if turn % 2 else reversed(makers):
            recorder = makers[name]()
            start = clock()
            ends[name], inside = train(x, y, options.epochs, options.batch, recorder, clock)
            times[name].append(clock() - start)
            shares[name].append(inside / (times[name][-1] - inside))
            if name != "bare" and turn == pairs - 1:
                margins[name] = recorder.margins(ids)
    assert all(torch.equal(end, ends["bare"]) for end in ends.values()), "recording changed the weights"
    np.testing.assert_allclose(margins["ours"], margins["dict"], atol=1e-5)
    print(f"ResNet-8, {n} images, batch {options.batch}, {options.epochs} epochs, {options.device}, {pairs} pairs")
    bare = np.array(times["bare"][1:])
    draws = np.random.default_rng(0).integers(0, pairs, (10_000, pairs))
    for name in ("ours", "dict"):
        whole = np.array(times[name][1:]) / bare - 1
        for what, ratio in (("whole runs against bare ones", whole), ("time inside", np.array(shares[name][1:]))):
            low, high = np.quantile(np.median(ratio[draws], 1), [0.025, 0.975])
            told = f"{np.median(ratio):+.2%} of training time (median, 95 % interval {low:+.2%} to {high:+.2%})"
            print(f"  {name}, {what}: {told}")


if __name__ == "__main__":
    main()
