"""Squared gradients of single examples, from one forward and one backward pass over a batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from hf_prune.fisher.layers import filter_axis, formula
from hf_prune.fisher.trace import Call, Probe, batch_size, hooked, probe, slow_paths, take_rows
from hf_prune.fisher.uses import Explicit, Use, count_rows, filter_rows, position_rows


@dataclass(frozen=True)
class Block:
    """Columns of one parameter.

    Args:
        name: of the parameter.
        start, stop: its columns.
        fan_in: numbers in each of its filters.
    """

    name: str
    start: int
    stop: int
    fan_in: int


class Squares:
    """Squared norms of per-example gradients, filter by filter.

    A filter is what belongs to one output unit: a row of a linear layer's or convolution's weight, a row of a table of
    embeddings, one number of a norm's scale or of a bias. No weight gradient is formed where a (t, t) product of inputs
    costs less. Parameters that are used in several places count with the sum of their gradients.

    Layers with a formula: Linear, GPT-2's Conv1D, Conv1d, Conv2d, Embedding, LayerNorm, RMSNorm and its kin in
    transformers, BatchNorm, GroupNorm. Parameters of others are worked out by `torch.func` at the module that uses
    them, with a warning.

    Args:
        network: in eval mode, float32, bfloat16 or float64; left as it is.
        layers: names of modules that count, with all below them; None: all. The graph begins at the first of them.
        skip: names of modules that do not count. A tied table counts with its other uses, as if it were untied.
        biases: count biases and the shifts of norms too.
        positions: names of modules, all after the last mixing of positions, for which squares of each position's
            gradient are added up instead of the square of their sum. Under labels drawn from the model both have the
            same mean, and this one varies less. Checked on the first batch.

    Raises:
        ValueError: no layer with a formula, a name that does not exist, train mode, float16, weights that are not
            finite.

    Reference: Goodfellow, 2015, arXiv 1510.01799 (norms from one backward pass); Achille et al., 2019,
    arXiv 1902.03545 (filters).

    >>> network = nn.Linear(2, 2, bias=False).eval()
    >>> squares = Squares(network)
    >>> tap = squares.forward(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> tap.rows(tap.output, torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
    tensor([[ 5.,  5.],
            [ 0., 36.]])
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Iterable[str] | None = None,
        skip: Iterable[str] = (),
        biases: bool = False,
        positions: Iterable[str] = (),
    ) -> None:
        modules = dict(network.named_modules())
        layers, skip, positions = None if layers is None else list(layers), list(skip), list(positions)
        for name in [*(layers or []), *skip, *positions]:
            if name not in modules:
                raise ValueError(f"the network has no module {name!r}; it has {', '.join(list(modules)[1:9])}, ...")
        check_network(network)
        self.network, self.modules, self._parameters = network, modules, list(network.parameters())
        chosen = [
            name
            for name in modules
            if (layers is None or any(_below(name, top) for top in layers))
            and not any(_below(name, top) for top in skip)
        ]
        self.blocks: tuple[Block, ...] = ()
        self._of: dict[int, Block] = {}
        self._shape: dict[int, tuple[tuple[int, ...], int]] = {}
        self._layers: dict[str, dict[str, int]] = {}  # parameters that count, by layer
        self._by_position: set[int] = set()
        self._formulas = {name: formula(modules[name]) for name in chosen}
        start, supported = 0, False
        for name in chosen:
            for own, p in modules[name].named_parameters(recurse=False):
                if "bias" in own and not biases:
                    continue
                self._layers.setdefault(name, {})[own] = id(p)
                supported |= self._formulas[name] is not None
                if any(_below(name, top) for top in positions):
                    self._by_position.add(id(p))
                if id(p) in self._of:
                    continue
                axis = filter_axis(modules[name])
                count = count_rows(p.shape, axis)
                block = Block(f"{name}.{own}".lstrip("."), start, start + count, p.numel() // max(count, 1))
                self._of[id(p)], self._shape[id(p)], start = block, (tuple(p.shape), axis), block.stop
        if not supported:
            where = "the network" if layers is None else f"{layers}"
            raise ValueError(
                f"{where} has no layer with a formula (linear, convolution, norm, embedding) left to take squares of"
            )
        self.blocks, self.size = tuple(self._of.values()), start
        self._positions = positions
        self._probe: Probe | None = None

    @property
    def fan_in(self) -> Tensor:
        """Numbers in each filter, (D,) float64: rows divided by it are means over the filter."""
        counts = [torch.full((block.stop - block.start,), block.fan_in, dtype=torch.float64) for block in self.blocks]
        return torch.cat(counts)

    def forward(self, *args: Any, **kwargs: Any) -> Tap:
        """Call the network and keep what the squares need.

        Args:
            args, kwargs: of the network; tensors whose first dimension is the batch.

        Raises:
            ValueError: train mode, autocast to float16, an empty batch, rows that cannot be told apart.
        """
        check_mode(self.modules, self._parameters)
        b = batch_size((args, kwargs))
        if self._probe is None:
            self._begin(args, kwargs)
        assert self._probe is not None
        tap = Tap(self, b)
        layers = list(dict.fromkeys([*self._taps, *self._owned]))
        arrive: WeakMethod[Callable[[Call], None]] = WeakMethod(tap._arrive)
        with hooked(self.modules, self._parameters, layers, self._probe, b, tap._calls, arrive) as starts:
            tap.output = self.network(*args, **kwargs)
        tap._begin(starts)
        return tap

    def _begin(self, args: Any, kwargs: Any) -> None:
        """Look at the network once, on the first batch."""
        found = probe(self.network, set(self._of), (args, kwargs))
        self._taps: dict[str, dict[str, int]] = {}  # parameters by the layer whose formula covers them
        for name, own in self._layers.items():
            if covered := {key: p for key, p in own.items() if p not in found.owners}:
                self._taps[name] = covered
        self._owned: dict[str, dict[str, int]] = {}  # the others, by the module to work them out at
        for p, owner in found.owners.items():
            name = next(name for name, q in self.modules[owner].named_parameters() if id(q) == p)
            self._owned.setdefault(owner, {})[name] = p
        for owner, names in self._owned.items():
            kind = type(self.modules[owner]).__name__
            warnings.warn(
                f"{kind} {owner!r} uses {', '.join(names)} in a way that has no formula here: their gradients are "
                "formed by torch.func, one an example, which costs time and memory; skip= leaves a module out",
                stacklevel=4,
            )
        if self._positions:
            able = set(position_layers(self.network, *args, **kwargs))
            for name in self._taps:
                if any(_below(name, top) for top in self._positions) and name not in able:
                    raise ValueError(
                        f"positions: after {name} the network still mixes positions, so squares of single positions "
                        "are biased there; name later modules (position_layers lists them)"
                    )
            if owned := {p for own in self._owned.values() for p in own.values()} & self._by_position:
                raise ValueError(
                    f"positions: {self._of[owned.pop()].name} has no formula, so its positions are not told apart"
                )
        self._probe = found


class Tap:
    """One forward pass of `Squares`, for one or several backward passes.

    Args of its methods:
        outputs: the SUMMED loss of the batch, or a tensor that the network returned.
        gradient: of the summed loss with respect to `outputs`, where that is no scalar.
        keep: keep the graph for another call: other labels, another class.
    """

    def __init__(self, squares: Squares, b: int) -> None:
        self.output: Any = None
        self._squares, self._b = squares, b
        self._calls: list[Call] = []
        self._starts: list[Tensor] = []
        self._expected: dict[int, int] = {}
        self._uses: dict[int, list[Use]] = {}
        self._sink: Callable[[Block, Tensor], None] | None = None
        self._keep = False

    def rows(self, outputs: Tensor, gradient: Tensor | None = None, keep: bool = False) -> Tensor:
        """Squared norm of each filter's gradient by example, (b, D) float32 (float64 of a float64 network)."""
        total: list[Tensor] = []

        def sink(block: Block, rows: Tensor) -> None:
            if not total:
                total.append(rows.new_zeros(self._b, self._squares.size))
            total[0][:, block.start : block.stop] = rows

        self._backward(outputs, gradient, keep, sink)
        return total[0] if total else torch.zeros(self._b, self._squares.size)

    def sums(self, outputs: Tensor, gradient: Tensor | None = None, keep: bool = False) -> Tensor:
        """`rows` summed over the examples, (D,) float64."""
        total = torch.zeros(self._squares.size, dtype=torch.float64, device=outputs.device)

        def sink(block: Block, rows: Tensor) -> None:
            total[block.start : block.stop] = rows.sum(0, dtype=torch.float64)

        self._backward(outputs, gradient, keep, sink)
        return total

    def norms(self, outputs: Tensor, gradient: Tensor | None = None, keep: bool = False) -> Tensor:
        """Squared norm of the whole gradient by example, (b,) float64."""
        total = torch.zeros(self._b, dtype=torch.float64, device=outputs.device)

        def sink(block: Block, rows: Tensor) -> None:
            total.add_(rows.sum(1, dtype=torch.float64))

        self._backward(outputs, gradient, keep, sink)
        return total

    def _begin(self, starts: list[Tensor]) -> None:
        self._starts = starts
        for call in self._calls:
            for p in self._squares._taps.get(call.module, {}).values():
                self._expected[p] = self._expected.get(p, 0) + 1

    def _backward(
        self, outputs: Tensor, gradient: Tensor | None, keep: bool, sink: Callable[[Block, Tensor], None]
    ) -> None:
        if not outputs.requires_grad:
            raise ValueError(
                "outputs do not depend on any layer that counts; take them from tap.output, without detaching"
            )
        self._sink, self._keep = sink, keep
        try:
            with (
                torch.autocast(outputs.device.type, enabled=False),
                torch.no_grad(),
            ):  # torch hands it on to its threads
                torch.autograd.grad(outputs, self._starts, gradient, retain_graph=keep, allow_unused=True)
                self._without_formula()
                for p in list(self._uses):  # a layer that was called more often than it matters for these outputs
                    self._reduce(p)
        finally:
            self._sink = None
            self._uses.clear()
            for call in self._calls:
                call.grads.clear()
            if not keep:
                self._calls.clear()

    def _arrive(self, call: Call) -> None:
        """Take the gradient of one call, and square once all calls that share the parameter have theirs."""
        wanted = self._squares._taps.get(call.module, {})
        if self._sink is None or not wanted:
            return
        call.check_unchanged()
        layer: Any = self._squares.modules[call.module]
        known = self._squares._formulas[call.module]
        assert known is not None
        a, g = (
            _rows_first(call.given[0], call.given_dims[0], self._b),
            _rows_first(call.grads[0], call.out_dims[0], self._b),
        )
        uses = known(layer, a, g)
        for own, p in wanted.items():
            self._uses.setdefault(p, []).append(uses[own])
            if len(self._uses[p]) == self._expected[p]:
                self._reduce(p)
        if call.module not in self._squares._owned:
            call.grads.clear()
            if not self._keep:
                call.given, call.versions, call.args = [], [], None

    def _reduce(self, p: int) -> None:
        block, (shape, axis) = self._squares._of[p], self._squares._shape[p]
        uses = self._uses.pop(p)
        assert self._sink is not None
        position = p in self._squares._by_position
        rows = position_rows(uses, block.name) if position else filter_rows(uses, shape, axis)
        self._sink(block, rows)

    def _without_formula(self) -> None:
        """Gradients that no formula covers."""
        for call in self._calls:
            own = self._squares._owned.get(call.module, {})
            if own and call.grads:
                call.check_unchanged()
                for name, value in per_example_grads(self._squares.modules[call.module], own, call, self._b).items():
                    self._uses.setdefault(own[name], []).append(Explicit(value))


def per_example_grads(module: nn.Module, names: Iterable[str], call: Call, b: int) -> dict[str, Tensor]:
    """Gradients of a module's parameters, for each example of one call, by `torch.func`, {name: (b, *shape)}.

    By `vmap`; where the module has an operation that `vmap` does not know, one example after the other.
    """
    found = dict(module.named_parameters())
    parameters = {name: found[name].detach() for name in names}
    leaves, spec = tree_flatten(call.args)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    given = [x.detach() for x in call.given]
    grads = [call.grads.get(i) for i in range(len(call.out_dims))]
    numbers = [i for i, g in enumerate(grads) if g is not None]
    backs = [call.grads[i] for i in numbers]

    def inner(parameters: dict[str, Tensor], given: list[Tensor], backs: list[Tensor]) -> Tensor:
        filled = list(leaves)
        for place, x, dim in zip(places, given, call.given_dims, strict=True):
            filled[place] = x if dim is None else x.unsqueeze(dim)
        args, kwargs = tree_unflatten(filled, spec)
        out = [x for x in tree_leaves(functional_call(module, parameters, args, kwargs)) if isinstance(x, Tensor)]
        total = sum((out[i] * g.unsqueeze(call.out_dims[i])).sum() for i, g in zip(numbers, backs, strict=True))
        assert isinstance(total, Tensor)
        return total

    dims = (None, list(call.given_dims), [call.out_dims[i] for i in numbers])
    device = backs[0].device.type
    plain = sdpa_kernel(SDPBackend.MATH)  # of the operations that attention is made of, for which vmap has rules
    with torch.autocast(device, enabled=False), torch.enable_grad(), slow_paths(), plain, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        try:
            return vmap(grad(inner), in_dims=dims, chunk_size=16)(parameters, given, backs)  # type: ignore[no-any-return]
        except (RuntimeError, ValueError):
            rows = []
            for n in range(b):
                mine = [x if dim is None else x.select(dim, n) for x, dim in zip(given, call.given_dims, strict=True)]
                back = [g.select(call.out_dims[i], n) for i, g in zip(numbers, backs, strict=True)]
                rows.append(grad(inner)(parameters, mine, back))
            return {name: torch.stack([row[name] for row in rows]) for name in parameters}


def position_layers(network: nn.Module, *args: Any, **kwargs: Any) -> list[str]:
    """Layers after which the network no longer mixes positions, found by gradients of one row.

    For each bit of a position's number, the output at positions that have it (and then at those that lack it) is
    differentiated; a layer passes if nothing comes back to the other positions. Some bit tells any two positions apart.

    Args:
        network: in eval mode; returns (b, t, ...) or an object with such `logits`.
        args, kwargs: of the network, with rows of at least two positions.
    """
    b = batch_size((args, kwargs))
    args, kwargs = take_rows((args, kwargs), b, 1)
    squares = Squares(network, biases=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tap = squares.forward(*args, **kwargs)
    out = tap.output if isinstance(tap.output, Tensor) else getattr(tap.output, "logits", None)
    if out is None or out.ndim < 3 or out.shape[1] < 2:
        raise ValueError(
            "positions: the network must return (b, t, ...) with t > 1, or an object with such logits; it returned "
            f"{type(tap.output).__name__ if out is None else tuple(out.shape)}"
        )
    steps = out.shape[1]
    every = torch.arange(steps, device=out.device)
    noise = torch.linspace(0.5, 1.5, out[0, 0].numel(), device=out.device).view(1, 1, *out.shape[2:]).to(out.dtype)
    able = {call.module for call in tap._calls}
    for bit in range((steps - 1).bit_length()):
        for value in (0, 1):
            chosen = (every >> bit & 1) == value
            for call in tap._calls:
                call.grads.clear()
            back = (noise * chosen.view(1, -1, *[1] * (out.ndim - 2)).to(out.dtype)).expand_as(out)
            torch.autograd.grad(out, tap._starts, back, retain_graph=True, allow_unused=True)
            for call in tap._calls:
                g = call.grads.get(0)
                alone = g is not None and g.ndim >= 3 and g.shape[:2] == (1, steps) and not g[:, ~chosen].any()
                if not alone and call.module in able:
                    able.remove(call.module)
    return [name for name in squares._taps if name in able]


def check_network(network: nn.Module) -> None:
    """Refuse a network whose squares would be wrong.

    Raises:
        ValueError: float16, weights that are not finite, no parameters, a compiled or scripted network.
    """
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
            raise ValueError(
                f"{name or 'the network'} is compiled, and hooks do not see into it; give the plain module"
            )
    for name, p in network.named_parameters():
        if p.dtype == torch.float16:
            raise ValueError(f"{name} is float16, in which squared gradients underflow to 0; use bfloat16 or float32")
        if p.is_floating_point() and not bool(torch.isfinite(p).all()):
            raise ValueError(f"{name} has weights that are not finite; the network is broken, load another checkpoint")


def check_mode(modules: Mapping[str, nn.Module], parameters: Iterable[nn.Parameter]) -> None:
    """Refuse train mode and autocast to float16.

    Raises:
        ValueError: either.
    """
    for name, module in modules.items():
        if module.training:
            why = "mixes the rows of a batch" if "BatchNorm" in type(module).__name__ else "may drop units at random"
            raise ValueError(
                f"{type(module).__name__} {name!r} is in train mode, in which it {why}; call network.eval()"
            )
    for device in {p.device.type for p in parameters}:
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
            raise ValueError("autocast to float16: squared gradients underflow to 0; use torch.bfloat16")


def _rows_first(x: Tensor, dim: int | None, b: int) -> Tensor:
    """Batch first; what all rows share is repeated."""
    if dim is not None:
        return x.movedim(dim, 0) if dim else x
    return x.expand(b, *x.shape[1:]) if x.ndim and x.shape[0] == 1 else x.expand(b, *x.shape)


def _below(name: str, top: str) -> bool:
    return not top or name == top or name.startswith(f"{top}.")
