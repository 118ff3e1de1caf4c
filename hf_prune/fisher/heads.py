"""The linear layer that logits come out of: found, replaced, fitted to labels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hf_prune.checks import MissingColumnError
from hf_prune.data.labels import check_classes
from hf_prune.data.reading import decoded
from hf_prune.networks.classifier import Classifier, next_tokens
from hf_prune.networks.inputs import Inputs

if TYPE_CHECKING:
    from hf_prune.fisher.probe import Probe

BLOCK = 1 << 22  # logits held at once


def last_linear(classifier: Classifier, network: nn.Module, given: Inputs) -> str:
    """Name of the linear layer that a network's logits come out of.

    Raises:
        ValueError: no linear layer gives as many numbers as there are logits.
    """
    import torch

    from hf_prune.fisher.layers import conv1d_of_gpt2, formula, linear

    widths: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, given: Any, out: Tensor) -> None:
            widths.pop(name, None)  # in the order of the last calls
            widths[name] = out.shape[-1]

        return hook

    layers = [(n, m) for n, m in network.named_modules() if formula(m) in (linear, conv1d_of_gpt2)]
    handles = [module.register_forward_hook(note(name)) for name, module in layers]
    try:
        with torch.no_grad():
            logits = classifier.call(network, given)
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, width in widths.items() if width == logits.shape[-1]]
    if not names:
        raise ValueError(
            f"{classifier.model.label} has no linear layer that gives its {logits.shape[-1]} logits; "
            "use last_layer=False"
        )
    return names[-1]


def head_name(reader: Classifier, network: nn.Module, given: Inputs) -> str:
    """Name of the linear layer that gives the logits.

    Raises:
        ValueError: there is none; another layer than it is filled at random.
    """
    own: Any = getattr(network, "get_output_embeddings", lambda: None)()
    if reader.task == "language_model" and own is not None:
        return next(str(name) for name, module in network.named_modules() if module is own)
    name = last_linear(reader, network, given)
    if (drawn := getattr(network, "random_head", None)) not in (None, name):
        raise ValueError(
            f"{reader.model.label} has no weights for {drawn!r}, which is not its head {name!r}, and random numbers "
            "would stay in the probe; give a network of your own that ends in a linear layer"
        )
    return name


def with_head(network: nn.Module, name: str, weight: NDArray[Any], bias: NDArray[Any] | None) -> nn.Module:
    """The network with another head; all other weights are shared, nothing of the old network changes."""
    shared = {id(t): t for t in [*network.parameters(), *network.buffers()]}
    found = copy.deepcopy(network, shared)
    first = next(network.parameters())
    # made on "meta", or it would draw numbers that are thrown away, from the caller's generator
    head = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta", dtype=first.dtype)
    head = head.to_empty(device=first.device).eval()
    with torch.no_grad():
        head.weight.copy_(torch.tensor(weight))
        if bias is not None:
            head.bias.copy_(torch.tensor(bias))
    found.set_submodule(name, head)
    return found


def fit_head(probe: Probe, ds: Any) -> tuple[NDArray[Any], NDArray[Any] | None, tuple[Any, ...] | None]:
    """A head fitted to a dataset: weight (C, d), bias, and the labels in its order (None for a language model).

    Raises:
        KeyError: no column of labels.
        ValueError: one class only, a label that is null or negative (none), a head that reads no single vector a row.
    """
    reader = probe.reader()
    network = reader.network()
    language = reader.task == "language_model"
    features: list[Tensor] = []
    labels: list[Any] = []
    start: Tensor | None = None
    name, read = "", 0
    for batch in decoded(ds, "task2vec", "Squared gradients"):
        if not language and probe.label not in batch:
            raise MissingColumnError(
                f"a head is fitted to column {probe.label!r}, the rows have {sorted(batch)}; name it as label=..., or "
                "keep the model's own head: head='keep'; or say task='language_model' where it is one"
            )
        values = None if language else check_classes(batch.arrow(probe.label), probe.label, read).to_pylist()
        read += batch.n
        for places, inputs in reader.passes(batch):
            given = inputs(np.arange(len(places)))
            name = name or head_name(reader, network, given)
            with torch.no_grad():
                x = _head_input(reader, network, network.get_submodule(name), given)
            if language:
                after = next_tokens(given)
                features.append(x[:, :-1][after >= 0].cpu())
                labels += after[after >= 0].tolist()
            elif x.ndim != 2:
                keep = "" if getattr(network, "random_head", None) else "use head='keep', or "
                raise ValueError(
                    f"the head {name!r} reads {tuple(x.shape)}, not one vector a row; {keep}give a network that pools "
                    "before its head"
                )
            else:
                assert values is not None
                features.append(x.cpu())
                labels += [values[place] for place in places]
    if not labels:
        raise ValueError("there are no rows to fit a head to")
    x = torch.cat(features).float()
    if language:
        head: Any = network.get_submodule(name)
        start = head.weight.detach().float().cpu()
        weight, bias = fit_softmax(x, torch.tensor(labels), len(start), probe.l2, start, steps=20)
        return weight.numpy(), None, None
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise ValueError(
            f"column {probe.label!r} has one class only ({classes[0]!r}), which leaves a head nothing to tell apart; "
            "use head='keep' to embed by the model's own classes"
        )
    place = {value: i for i, value in enumerate(classes)}
    y = torch.tensor([place[value] for value in labels])
    weight, bias = fit_softmax(x.double(), y, len(classes), probe.l2)
    return weight.numpy(), None if bias is None else bias.numpy(), classes


def fit_softmax(
    x: Tensor, y: Tensor, count: int, l2: float, start: Tensor | None = None, steps: int = 500
) -> tuple[Tensor, Tensor | None]:
    """Weights (C, d) and bias (C,) of the least mean cross-entropy plus `l2 / 2` times the squared distance to `start`.

    Convex: the answer does not depend on the order or the copies of rows. Features are scaled to a mean square of 1
    for it. With `start` (a language model's head) there is no bias.
    """
    scale = x.pow(2).mean().sqrt().clamp(min=1e-12)
    x = x / scale
    origin = torch.zeros(count, x.shape[1], dtype=x.dtype) if start is None else start.to(x.dtype) * scale
    if start is None:
        x, origin = torch.cat([x, torch.ones_like(x[:, :1])], 1), nn.functional.pad(origin, (0, 1))
    w = nn.Parameter(origin.clone())
    tight = x.dtype == torch.float64
    limits = (1e-12, 1e-16) if tight else (1e-6, 1e-9)
    optimiser = torch.optim.LBFGS(
        [w], 1, steps, None, *limits, history_size=20 if tight else 5, line_search_fn="strong_wolfe"
    )
    step = max(1, BLOCK // count)

    def closure() -> Tensor:
        with torch.no_grad():
            away = w - origin
            if start is None:
                away[:, -1] = 0  # the bias is free
            loss, gradient = l2 / 2 * away.pow(2).sum(), l2 * away
            for first in range(0, len(x), step):
                part, target = x[first : first + step], y[first : first + step, None]
                logp = (part @ w.T).log_softmax(-1)
                loss = loss - logp.gather(1, target).sum() / len(x)
                p = logp.exp_()
                p.scatter_add_(1, target, torch.full_like(target, -1, dtype=p.dtype))
                gradient += p.T @ part / len(x)
            w.grad = gradient
        return loss

    run: Callable[..., Any] = optimiser.step
    run(closure)
    found = w.detach()
    if start is None:
        return found[:, :-1] / scale, found[:, -1]
    return found / scale, None


def _head_input(reader: Classifier, network: nn.Module, head: nn.Module, given: Inputs) -> Tensor:
    """What the head is given."""
    held: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, args: held.append(args[0].detach()))
    try:
        reader.call(network, given)
    finally:
        handle.remove()
    return held[-1]
