"""`evaluate_model`: accuracy and loss on a dataset, read as `train_with_log` reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from hf_prune.checks import check_count
from hf_prune.dynamics.feed import Feed, Inputs, to_device
from hf_prune.summary import Summary

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from datasets import Dataset

    from hf_prune.data.world import World

Loss: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"


@dataclass(frozen=True, repr=False, kw_only=True)
class Evaluation(Summary):
    """What a model does with a dataset.

    Attributes:
        rows: rows of the dataset.
        accuracy: share of the rows whose label has the largest logit.
        loss: mean loss over the rows.
    """

    rows: int
    accuracy: float
    loss: float


def evaluate_model(
    model: torch.nn.Module,
    ds: Dataset,
    *,
    inputs: Inputs = "image",
    label: str = "label",
    batch_size: int = 128,
    loss: Loss | None = None,
    workers: int = 0,
    accelerator: Accelerator | None = None,
) -> Evaluation:
    """Accuracy and loss of a classifier on a dataset, read as `train_with_log` reads it; in eval mode, in place.

    Under `accelerate launch` all processes call it: each takes a share, and all get the whole result.

    Args:
        model: network that gives logits (b, C), or an output with `logits`; it is left in the mode it was in.
        ds: dataset of n rows with labels and inputs; ids are not needed.
        inputs: column of images of one size, or of lists of numbers; or a function of the dict of a batch's columns
            that gives a tensor, or keyword arguments for the model.
        label: column of integers from 0 to C - 1.
        batch_size: number of rows in a forward pass, over all processes.
        loss: function of logits (b, C) and labels (b,) that gives the losses (b,); cross-entropy by default.
        workers: number of processes that load rows, 0 for none beside this one.
        accelerator: an `accelerate.Accelerator`, for its device and mixed precision.

    Returns:
        Rows, accuracy and loss.

    Raises:
        KeyError: a column is missing; the message lists those there are.
        ValueError: no rows, labels out of range, classes of other names than the model's, or inputs that the network
            does not take.
        TypeError: labels that are not integers, a stream, or a name where the model should be.

    >>> import torch
    >>> from datasets import Dataset
    >>> net = torch.nn.Linear(2, 2, bias=False)
    >>> net.weight = torch.nn.Parameter(torch.eye(2))
    >>> ds = Dataset.from_dict({"x": [[2.0, 0.0], [2.0, 0.0]], "label": [0, 1]})
    >>> evaluate_model(net, ds, inputs="x")
    Evaluation
      rows      2
      accuracy  0.5
      loss      1.127
    """
    import torch

    check_model(model)
    check_count("batch_size", batch_size)
    check_count("workers", workers, 0)
    feed = Feed(ds, inputs=inputs, label=label, who="evaluate_model")
    feed.check_names(model, f"the network {type(model).__name__}")
    accelerator, world = processes(accelerator)
    was = model.training
    model.to(accelerator.device).eval()
    right, total = 0, 0.0
    try:
        with torch.no_grad(), accelerator.autocast():
            for x, y, rows, _ in feed.shares(feed.in_order(batch_size), world, workers):
                y = y.to(accelerator.device)
                logits = feed.logits(model, to_device(x, accelerator.device))
                losses = cross_entropy(logits, y) if loss is None else loss(logits, y)
                right += int((logits.argmax(1) == y)[: len(rows)].sum())
                total += float(losses[: len(rows)].double().sum())
    finally:
        model.train(was)
    parts = world.gather((right, total))
    return Evaluation(
        rows=len(ds), accuracy=sum(p[0] for p in parts) / len(ds), loss=sum(p[1] for p in parts) / len(ds)
    )


def processes(accelerator: Any) -> tuple[Any, World]:
    """The accelerator, a plain one where none is given, and the processes that it knows."""
    from accelerate import Accelerator

    from hf_prune.data.world import World  # after the accelerator has made the state of the processes

    accelerator = accelerator or Accelerator()
    return accelerator, World()


def check_model(model: Any) -> None:
    """Raise a TypeError unless this is a network."""
    import torch

    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model={model!r} is no torch module; load it first, as with AutoModel...from_pretrained(...)")


def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (b,) of logits (b, C) and labels (b,), in float32."""
    import torch

    return torch.nn.functional.cross_entropy(logits.float(), y, reduction="none")
