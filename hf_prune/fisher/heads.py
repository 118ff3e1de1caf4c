"""The linear layer that gives the logits: its name, its replacement, its fit to labels."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hf_prune.checks import MissingColumnError
from hf_prune.data.batch import Batch
from hf_prune.data.labels import check_classes
from hf_prune.data.reading import decoded
from hf_prune.networks.classifier import Classifier, next_tokens
from hf_prune.networks.inputs import Inputs
from hf_prune.numerics.logistic import fit_softmax


def last_linear(classifier: Classifier, network: nn.Module, given: Inputs) -> str:
    """Name of the linear layer that gives a network's logits, by its width and the order of calls.

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
    """Name of the head: a language model's own, or else the last linear layer as wide as the logits.

    Raises:
        ValueError: there is none; the model's files lack the weights of another layer, which would be random.
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
    other = copy.deepcopy(network, shared)
    first = next(network.parameters())
    # made on "meta", or it would draw numbers that are thrown away, from the caller's generator
    head = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta", dtype=first.dtype)
    head = head.to_empty(device=first.device).eval()
    with torch.no_grad():
        head.weight.copy_(torch.tensor(weight))
        if bias is not None:
            head.bias.copy_(torch.tensor(bias))
    other.set_submodule(name, head)
    return other


class Features(NamedTuple):
    """What a head reads of a dataset.

    Attributes:
        x: (n, d) float32 input of the head for each loss term.
        labels: (n,) label of each term: a class, or the token that follows.
        head: name of the head's layer.
    """

    x: Tensor
    labels: list[Any]
    head: str


def fit_head(
    reader: Classifier, ds: Any, *, label: str, l2: float
) -> tuple[NDArray[Any], NDArray[Any] | None, tuple[Any, ...] | None]:
    """Fit a head to a dataset: of classes from scratch, of a language model from the head that it has.

    Args:
        reader: what runs the network.
        ds: dataset or stream.
        label: column of classes; a language model reads none.
        l2: weight of the penalty, see `fit_softmax`.

    Returns:
        Weight (C, d), bias (C,), and the C labels in its order; bias and labels are None for a language model.

    Raises:
        MissingColumnError: there is no column of classes.
        ValueError: one class only, a label that is null or negative (none), a head that reads no single vector a row.
    """
    features = head_features(reader, ds, label)
    if reader.task == "language_model":
        own: Any = reader.network().get_submodule(features.head)
        start = own.weight.detach().float().cpu()
        weight, bias = fit_softmax(
            features.x, torch.tensor(features.labels), classes=len(start), l2=l2, start=start, steps=20
        )
        return weight.numpy(), None, None
    classes = tuple(sorted(set(features.labels)))
    if len(classes) < 2:
        raise ValueError(
            f"column {label!r} has one class only ({classes[0]!r}), which leaves a head nothing to tell apart; "
            "use head='keep' to embed by the model's own classes"
        )
    index = {value: i for i, value in enumerate(classes)}
    y = torch.tensor([index[value] for value in features.labels])
    weight, bias = fit_softmax(features.x.double(), y, classes=len(classes), l2=l2)
    return weight.numpy(), None if bias is None else bias.numpy(), classes


def head_features(reader: Classifier, ds: Any, label: str) -> Features:
    """Run a dataset through a network up to its head, once.

    Raises:
        MissingColumnError: there is no column of classes.
        ValueError: no rows; a label that is null or negative (none); a head that reads no single vector a row.
    """
    network, language = reader.network(), reader.task == "language_model"
    x: list[Tensor] = []
    labels: list[Any] = []
    name, read = "", 0
    for batch in decoded(ds, "task2vec", "Squared gradients"):
        classes = [] if language else _classes(batch, label, read)
        read += batch.n
        for rows, inputs in reader.passes(batch):
            given = inputs(np.arange(len(rows)))
            name = name or head_name(reader, network, given)
            with torch.no_grad():
                states = _head_input(reader, network, network.get_submodule(name), given)
            if language:
                after = next_tokens(given)
                x.append(states[:, :-1][after >= 0].cpu())
                labels += after[after >= 0].tolist()
            else:
                x.append(_vectors(states, name, network).cpu())
                labels += [classes[row] for row in rows]
    if not labels:
        raise ValueError("there are no rows to fit a head to; give a dataset that has some")
    return Features(torch.cat(x).float(), labels, name)


def _classes(batch: Batch, label: str, start: int) -> list[Any]:
    """Labels (n,) of a batch whose first row has the number `start`."""
    if label not in batch:
        raise MissingColumnError(
            f"a head is fitted to column {label!r}, the rows have {sorted(batch)}; name it as label=..., or "
            "keep the model's own head: head='keep'; or say task='language_model' where it is one"
        )
    return check_classes(batch.arrow(label), label, start).to_pylist()  # type: ignore[no-any-return]


def _vectors(states: Tensor, name: str, network: nn.Module) -> Tensor:
    """The input of a head, (m, d), if it is that of a classifier."""
    if states.ndim == 2:
        return states
    keep = "" if getattr(network, "random_head", None) else "use head='keep', or "
    raise ValueError(
        f"the head {name!r} reads {tuple(states.shape)}, not one vector a row; {keep}give a network that pools "
        "before its head"
    )


def _head_input(reader: Classifier, network: nn.Module, head: nn.Module, given: Inputs) -> Tensor:
    """What the head is given."""
    held: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, args: held.append(args[0].detach()))
    try:
        reader.call(network, given)
    finally:
        handle.remove()
    return held[-1]
