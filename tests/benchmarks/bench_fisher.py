"""Per-example squared gradients against `vmap(grad)`, one backward pass an example, and one plain forward and backward.

    python tests/benchmarks/bench_fisher.py            ResNet-18 (32 pictures of 32 x 32), GPT-2 of 4 x 256 (48 rows of
                                                       32 tokens; 8 rows of 128), small CNN (256 pictures of 8 x 8)
    python tests/benchmarks/bench_fisher.py --small    smaller networks and batches
    python tests/benchmarks/bench_fisher.py --only resnet --width 32
    python tests/benchmarks/bench_fisher.py --only gpt2 --passes 4

Outputs are compared. Times are processor time, least of interleaved rounds; memory is the most that torch held in the
call beyond what it held before; both are quoted as ratios.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler talks

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from transformers import GPT2Config, GPT2LMHeadModel

from hf_prune.fisher.squares import Squares


class Block(nn.Module):
    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        same = stride == 1 and into == out
        self.down = nn.Identity() if same else nn.Sequential(nn.Conv2d(into, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.down(x))


def resnet18(width: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    into = width
    for i in range(4):
        for j in range(2):
            layers.append(Block(into, width * 2**i, 2 if i and not j else 1))
            into = width * 2**i
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, 10)).eval()


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10),
    ).eval()  # fmt: skip


class LanguageModel(nn.Module):
    """GPT-2 with an untied head, called with ids alone."""

    def __init__(self, layers: int, width: int, vocabulary: int, length: int) -> None:
        super().__init__()
        config = GPT2Config(
            vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=4, n_positions=length, bos_token_id=1,
            eos_token_id=1, tie_word_embeddings=False,
        )  # fmt: skip
        self.net = GPT2LMHeadModel(config)

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(ids, use_cache=False).logits


def summed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")


def filters(squares: Squares) -> list[tuple[str, bool]]:
    """Names of the parameters that count, and whether their filters lie along the second axis."""
    found = []
    for block in squares.blocks:
        module = squares.network.get_submodule(block.name.rpartition(".")[0])
        found.append((block.name, type(module).__name__ == "Conv1D" and block.fan_in > 1))
    return found


def rows(g: Tensor, transposed: bool) -> Tensor:
    """Filter-wise squares of (b, *shape) gradients."""
    g = g.mT if transposed else g
    return g.square() if g.ndim == 2 else g.square().flatten(2).sum(2)


class Peers:
    def __init__(self, network: nn.Module, x: Tensor, y: Tensor, biases: bool, passes: int) -> None:
        self.network, self.x, self.y = network, x, y
        self.ours = Squares(network, biases=biases)
        self.filters = filters(self.ours)
        self.names = [name for name, _ in self.filters]
        step = -(-len(x) // passes)
        self.pieces = [slice(start, start + step) for start in range(0, len(x), step)]

    def squares(self) -> Tensor:
        tap = self.ours.forward(self.x)
        return tap.sums(summed(tap.output, self.y))

    def norms(self) -> Tensor:
        tap = self.ours.forward(self.x)
        return tap.norms(summed(tap.output, self.y))

    def pieces_squares(self) -> Tensor:
        return sum(Peers.of(self, part).squares() for part in self.pieces)

    def pieces_norms(self) -> Tensor:
        return torch.cat([Peers.of(self, part).norms() for part in self.pieces])

    @staticmethod
    def of(peers: Peers, part: slice) -> Peers:
        """The same for some of the rows."""
        found = copy.copy(peers)
        found.x, found.y = peers.x[part], peers.y[part]
        return found

    def autocast(self) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            tap = self.ours.forward(self.x)
        return tap.sums(summed(tap.output.float(), self.y))

    def vmap(self, chunk: int | None = None) -> dict[str, Tensor]:
        parameters = {name: p.detach() for name, p in self.network.named_parameters() if name in self.names}

        def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return summed(functional_call(self.network, parameters, (x[None],)), y[None])

        return vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=chunk)(parameters, self.x, self.y)

    def vmap_squares(self) -> Tensor:
        found = self.vmap()
        return torch.cat([rows(found[name], t).sum(0, dtype=torch.float64) for name, t in self.filters])

    def vmap_norms(self) -> Tensor:
        return sum(g.flatten(1).square().sum(1, dtype=torch.float64) for g in self.vmap().values())

    def each(self) -> Iterator[list[Tensor]]:
        parameters = dict(self.network.named_parameters())
        wanted = [parameters[name] for name in self.names]
        for n in range(len(self.x)):
            yield list(torch.autograd.grad(summed(self.network(self.x[n : n + 1]), self.y[n : n + 1]), wanted))

    def loop_squares(self) -> Tensor:
        total = torch.zeros(self.ours.size, dtype=torch.float64)
        for grads in self.each():
            total += torch.cat([rows(g[None], t)[0] for g, (_, t) in zip(grads, self.filters, strict=True)])
        return total

    def loop_norms(self) -> Tensor:
        return torch.stack([sum(g.square().sum(dtype=torch.float64) for g in grads) for grads in self.each()])

    def plain(self) -> None:
        self.network.zero_grad()
        summed(self.network(self.x), self.y).backward()

    def forward(self) -> None:
        with torch.no_grad():
            self.network(self.x)


def peak(run: Callable[[], Any]) -> float:
    """Megabytes that torch held at most during a call, above what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    held = highest = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest / 2**20


def rounds(candidates: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: min(values) for name, values in times.items()}


def bench(what: str, network: nn.Module, x: Tensor, y: Tensor, repeats: int, passes: int) -> None:
    """Print a table; `passes`: that a batch is cut into, for less memory."""
    print(what)
    warnings.filterwarnings("ignore", "There is a performance drop")
    for title, biases, kind in (("filter-wise sums", False, "squares"), ("norms of whole gradients", True, "norms")):
        peers = Peers(network, x, y, biases, passes)
        candidates = {name: getattr(peers, f"{name}_{kind}") for name in ("vmap", "loop")}
        candidates |= {"ours": getattr(peers, kind), f"ours in {passes} passes": getattr(peers, f"pieces_{kind}")}
        candidates |= {"plain forward and backward": peers.plain}
        if kind == "squares":
            candidates |= {"ours under bfloat16 autocast": peers.autocast}
        exact = candidates["ours"]()  # and warm
        worst = max(
            float(((run().detach() - exact) / exact.mean()).abs().max())
            for name, run in candidates.items()
            if name in ("vmap", "loop", f"ours in {passes} passes")
        )
        assert worst < 1e-3, worst
        peers.plain()
        took = rounds(candidates, repeats)
        memory = {name: peak(run) for name, run in candidates.items()}
        print(f"  {title}; largest difference {worst:.1e} of the mean")
        for name in candidates:
            ratio, space = took[name] / took["ours"], memory[name] / memory["ours"]
            print(
                f"    {name:30} {1000 * took[name]:7.0f} ms {ratio:6.2f} x ours; {memory[name]:7.1f} MB {space:6.2f} x"
            )
        if kind == "squares":
            error = peers.autocast() - exact
            by_block = [
                float((error[b.start : b.stop].sum() / exact[b.start : b.stop].sum()).abs()) for b in peers.ours.blocks
            ]
            relative = float(error.abs().sum() / exact.sum())
            print(
                f"    bfloat16: mean error of a filter {relative:.1%}, of a layer's total at most {max(by_block):.1%}"
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--only", choices=["resnet", "gpt2", "cnn"])
    parser.add_argument("--width", type=int, default=64, help="of the ResNet-18's first stage")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    width, size, images, layers, hidden = (8, 16, 8, 2, 64) if args.small else (args.width, 32, 32, 4, 256)
    if args.only in (None, "resnet"):
        x, y = torch.randn(images, 3, size, size), torch.randint(10, (images,))
        bench(
            f"ResNet-18 of width {width}, {images} pictures of {size} x {size}",
            resnet18(width),
            x,
            y,
            args.repeats,
            args.passes,
        )
    if args.only in (None, "gpt2"):
        for texts, length in [(8, 16), (4, 32)] if args.small else [(48, 32), (8, 128)]:
            ids = torch.randint(4000, (texts, length + 1))
            network = LanguageModel(layers, hidden, 4000, length).eval()
            what = f"GPT-2 {layers} x {hidden}, {texts} rows of {length} tokens"
            bench(what, network, ids[:, :-1], ids[:, 1:], args.repeats, args.passes)
    if args.only in (None, "cnn"):
        x, y = torch.randn(256, 1, 8, 8), torch.randint(10, (256,))
        bench("small convolutional network, 256 pictures of 8 x 8", small_cnn(), x, y, args.repeats, args.passes)


if __name__ == "__main__":
    main()
