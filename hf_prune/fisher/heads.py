"""The linear layer that logits come out of: found, replaced, fitted to labels."""

from __future__ import annotations

import copy
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
from hf_prune.numerics.logistic import fit_softmax

if TYPE_CHECKING:
    from hf_prune.fisher.probe import Probe


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
        weight, bias = fit_softmax(x, torch.tensor(labels), classes=len(start), l2=probe.l2, start=start, steps=20)
        return weight.numpy(), None, None
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise ValueError(
            f"column {probe.label!r} has one class only ({classes[0]!r}), which leaves a head nothing to tell apart; "
            "use head='keep' to embed by the model's own classes"
        )
    place = {value: i for i, value in enumerate(classes)}
    y = torch.tensor([place[value] for value in labels])
    weight, bias = fit_softmax(x.double(), y, classes=len(classes), l2=probe.l2)
    return weight.numpy(), None if bias is None else bias.numpy(), classes


def _head_input(reader: Classifier, network: nn.Module, head: nn.Module, given: Inputs) -> Tensor:
    """What the head is given."""
    held: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, args: held.append(args[0].detach()))
    try:
        reader.call(network, given)
    finally:
        handle.remove()
    return held[-1]
