"""Running a network with hooks: what layers were given, where the rows of a batch lie, which layers need a fallback."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from hf_prune.fisher.layers import IMAGES, formula, is_rms_norm, rms_norm_alike

Shape = tuple[int, ...]
Shapes = dict[tuple[str, int], tuple[list[Shape], list[Shape]]]  # given and returned, by module and number of call


@dataclass
class Call:
    """One call of a module.

    Args:
        module: its name.
        given: tensors among its arguments, in order.
        args: all its arguments, `(args, kwargs)`.
        given_dims: for each of `given` where the rows of the batch lie; None: nowhere, it is the same for all rows.
        out_dims: the same for each tensor that it returned.
        versions: of `given`, counted up by changes in place.
        grads: what came back so far, by number of the tensor that was returned.
        awaited: how many tensors of those returned have a gradient.
    """

    module: str
    given: list[Tensor]
    args: Any
    given_dims: list[int | None]
    out_dims: list[int]
    versions: list[int] = field(default_factory=list)
    grads: dict[int, Tensor] = field(default_factory=dict)
    awaited: int = 0

    def __post_init__(self) -> None:
        self.versions = [x._version for x in self.given]

    def check_unchanged(self) -> None:
        """Refuse inputs that were overwritten since."""
        if any(x._version != version for x, version in zip(self.given, self.versions, strict=True)):
            raise ValueError(
                f"what {self.module} was given was changed in place afterwards, so its gradient cannot be formed; "
                "write that operation out of place (x = x + y for x += y)"
            )


@dataclass
class Probe:
    """What runs of one row and of two showed.

    Args:
        dims: where rows lie in the tensors that a module was given and in those that it returned, by module and number
            of the call. Modules for which this cannot be told are not among them.
        owners: for parameters that are used outside of a layer with a formula: the module to work them out at.
    """

    dims: dict[tuple[str, int], tuple[list[int | None], list[int | None]]]
    owners: dict[int, str]

    def of(self, name: str, number: int) -> tuple[list[int | None], list[int | None]]:
        """Dimensions in one call; a recurrent layer may be called more often than it was in the probe."""
        if (name, number) in self.dims:
            return self.dims[name, number]
        return self.dims[name, max(index for other, index in self.dims if other == name)]


class _Watch(TorchFunctionMode):
    """Notes which parameters are used by which operations, and inside of which calls."""

    def __init__(self, watched: set[int]) -> None:
        super().__init__()
        self.watched, self.stack = watched, list[str]()
        self.seen: set[tuple[int, tuple[str, ...]]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(x, Tensor) for x in tree_leaves(result)):  # a look at a shape or a dtype is no use
            for x in tree_leaves((args, kwargs)):
                if isinstance(x, Tensor) and id(x) in self.watched:
                    self.seen.add((id(x), tuple(self.stack)))
        return result


def batch_size(args: Any) -> int:
    """First dimension of the first tensor of `(args, kwargs)`."""
    first = next((x for x in tree_leaves(args) if isinstance(x, Tensor) and x.ndim), None)
    if first is None:
        raise ValueError("the network is given no tensor, so there is no batch; pass tensors with rows first")
    if not len(first):
        raise ValueError("the batch has no rows")
    return len(first)


def probe(network: nn.Module, wanted: set[int], args: Any) -> Probe:
    """Run the network on one row of the batch and on two, and watch it.

    Args:
        network: in eval mode.
        wanted: `id` of the parameters that count.
        args: `(args, kwargs)`.

    Raises:
        ValueError: what comes out for a row depends on the other rows, or on chance; what comes out has no rows.
    """
    modules, b = dict(network.named_modules()), batch_size(args)
    watch, without = _Watch(wanted), {name for name, module in modules.items() if formula(module) is None}
    runs: list[Shapes] = []
    outputs = []
    for rows in (1, 2):
        shapes: Shapes = {}
        with _watched(modules, watch, shapes, without), watch, torch.no_grad(), slow_paths():
            one_args, one_kwargs = take_rows(args, b, rows)
            outputs.append(network(*one_args, **one_kwargs))
        runs.append(shapes)
    _check_alone(*outputs)
    dims, unclear = {}, set[str]()
    for key in runs[0].keys() | runs[1].keys():
        if key in runs[0] and key in runs[1] and (found := _dims(runs[0][key], runs[1][key])):
            dims[key] = found
        else:
            unclear.add(key[0])
    if "" in unclear:
        raise ValueError(
            f"the network returned {runs[0]['', 0][1]} for one row and {runs[1]['', 0][1]} for two, so its rows cannot "
            "be told apart; return tensors that have a dimension for the batch alone"
        )
    for layer in unclear:
        without.add(layer)
    shared = {name for name in modules if all(dim is None for (n, _), d in dims.items() if n == name for dim in d[1])}
    return Probe(dims, _owners(modules, watch.seen, without, (unclear | shared) - {""}))


@contextlib.contextmanager
def _watched(modules: Mapping[str, nn.Module], watch: _Watch, shapes: Shapes, without: set[str]) -> Iterator[None]:
    """Note shapes by module and call; layers that only look like an RMSNorm go to `without`."""
    counts = dict.fromkeys(modules, 0)

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: watch.stack.append(name)

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, kwargs: Any, out: Any) -> None:
            tensors = _tensors((given, kwargs))
            shapes[name, counts[name]] = [tuple(x.shape) for x in tensors], [tuple(x.shape) for x in _tensors(out)]
            counts[name] += 1
            if formula(module) is rms_norm_alike and not (len(tensors) == 1 and is_rms_norm(module, tensors[0], out)):
                without.add(name)
            watch.stack.pop()

        return hook

    handles = [m.register_forward_pre_hook(enter(name), prepend=True) for name, m in modules.items()]
    handles += [m.register_forward_hook(leave(name), with_kwargs=True) for name, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _owners(
    modules: Mapping[str, nn.Module], seen: set[tuple[int, tuple[str, ...]]], without: set[str], unfit: set[str]
) -> dict[int, str]:
    """Module at which to work out each parameter that its layer's formula does not cover.

    Args:
        modules: by name.
        seen: uses of parameters that count, with the calls that they were in.
        without: layers without a formula.
        unfit: modules in whose calls the rows cannot be told apart.
    """
    held = {name: {id(p) for p in module.parameters()} for name, module in modules.items()}
    inside: dict[int, set[str]] = {}
    covered: set[int] = set()
    for parameter, stack in seen:
        if stack[-1] not in without and parameter in held[stack[-1]]:
            covered.add(parameter)
        else:
            owner = next(name for name in reversed(stack) if parameter in held[name] and name not in unfit)
            inside.setdefault(parameter, set()).add(owner)
    # used in several ways: the whole network is the one place where all of them add up
    return {p: next(iter(names)) if len(names) == 1 and p not in covered else "" for p, names in inside.items()}


def _check_alone(one: Any, two: Any) -> None:
    """Refuse a network whose output for a row differs when there is another row."""
    for x, y in zip(_tensors(one), _tensors(two), strict=False):
        if x.is_floating_point() and x.ndim and x.shape[0] == 1 and y.shape[0] == 2 and x.shape[1:] == y.shape[1:]:
            tolerance = min(10 * torch.finfo(x.dtype).eps ** 0.5, 0.1)
            error = float((x[0].double() - y[0].double()).abs().max()) if x.numel() else 0.0
            if error > tolerance * float(x.abs().max()):
                raise ValueError(
                    f"the network's output for the first row changes by {error:.2g} when another row is beside it, so "
                    "it mixes rows or draws random numbers; it must treat each row alone (is the batch its first "
                    "dimension?)"
                )


@contextlib.contextmanager
def hooked(
    modules: Mapping[str, nn.Module],
    parameters: Sequence[nn.Parameter],
    layers: Sequence[str],
    known: Probe,
    b: int,
    calls: list[Call],
    arrive: WeakMethod[Callable[[Call], None]],
) -> Iterator[list[Tensor]]:
    """Within it, calls of the named layers are noted in `calls`; gives the tensors at which the graph begins.

    Args:
        modules: of the network, by name.
        parameters: of the network; without gradients meanwhile.
        layers: names of modules with a formula, or of owners.
        known: what the probe showed.
        b: rows in the batch.
        calls: to fill.
        arrive: called with a call when its last gradient came back; weak, since the graph is held by who is called.
    """
    counts, starts = dict.fromkeys(layers, 0), list[Tensor]()

    def note(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, given: Any, kwargs: Any, out: Any) -> Any:
            given_dims, out_dims = known.of(name, counts[name])
            counts[name] += 1
            tensors = _tensors(given[0] if len(given) == 1 and not kwargs else (given, kwargs))
            returned = _tensors(out)
            for x, dim in zip([*tensors, *returned], [*given_dims, *out_dims], strict=True):
                if dim is not None and x.shape[dim] != b:
                    raise ValueError(
                        f"{name}: dimension {dim} of {tuple(x.shape)} holds other rows than the batch of {b}"
                    )
            if given_dims[:1] != [0] and formula(module) in IMAGES:
                raise ValueError(f"{name} was given {tuple(tensors[0].shape)}, in which the batch does not come first")
            call = Call(name, tensors, (given, kwargs), given_dims, [0 if dim is None else dim for dim in out_dims])
            calls.append(call)
            leaves, spec = ([out], None) if isinstance(out, Tensor) else tree_flatten(out)
            place = 0
            for i, leaf in enumerate(leaves):
                if not isinstance(leaf, Tensor):
                    continue
                number, place = place, place + 1
                if not leaf.is_floating_point():
                    continue
                if not leaf.requires_grad:
                    starts.append(leaf.detach().requires_grad_())
                    leaf = starts[-1].clone()  # a leaf itself could not be changed in place
                if out_dims[number] is None:
                    leaf = leaf.expand(b, *leaf.shape[1:]) if leaf.shape[0] == 1 else leaf.expand(b, *leaf.shape)
                leaf.register_hook(_keep(call, number, arrive))  # type: ignore[no-untyped-call]
                call.awaited += 1
                leaves[i] = leaf
            return leaves[0] if spec is None else tree_unflatten(leaves, spec)

        return hook

    return_to = [(p, p.requires_grad) for p in parameters]
    handles = [modules[name].register_forward_hook(note(name), with_kwargs=True) for name in layers]
    try:
        for p, _ in return_to:
            p.requires_grad_(False)
        with torch.enable_grad(), slow_paths():
            yield starts
    finally:
        for handle in handles:
            handle.remove()
        for p, before in return_to:
            p.requires_grad_(before)


def _keep(call: Call, number: int, arrive: WeakMethod[Callable[[Call], None]]) -> Callable[[Tensor], None]:
    def hook(g: Tensor) -> None:
        call.grads[number] = g
        if len(call.grads) == call.awaited and (function := arrive()) is not None:
            function(call)

    return hook


@contextlib.contextmanager
def slow_paths() -> Iterator[None]:
    """Keep attention layers of torch from their fused path, in which no hook fires."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):  # as most often; a walk through the tree takes longer than the call of a small layer
        return [tree]
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def take_rows(tree: Any, b: int, rows: int) -> Any:
    """The first `rows` (1 or 2) of all tensors of b rows; of a batch of one, that row twice."""

    def take(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.ndim or len(x) != b:
            return x
        return x[:rows] if rows <= b else torch.cat([x, x])

    return tree_map(take, tree)


def _dims(
    one: tuple[list[Shape], list[Shape]], two: tuple[list[Shape], list[Shape]]
) -> tuple[list[int | None], list[int | None]] | None:
    """For each shape the dimension that went from 1 to 2; None for all of them if one shape changed in another way."""
    found: tuple[list[int | None], list[int | None]] = ([], [])
    for before, after, dims in zip(one, two, found, strict=True):
        if len(before) != len(after):
            return None
        for x, y in zip(before, after, strict=True):
            changed = [i for i, sizes in enumerate(zip(x, y, strict=False)) if sizes[0] != sizes[1]]
            if len(x) != len(y) or len(changed) > 1 or (changed and (x[changed[0]], y[changed[0]]) != (1, 2)):
                return None
            dims.append(changed[0] if changed else None)
    return found
