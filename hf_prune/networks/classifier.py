"""Rows to logits: one way to run labelled classifiers and language models over a batch, in eval mode.

EL2N, GraNd, uncertainty and the Fisher probe share it. Preprocessing is that of `Embedder`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_prune.data.batch import Batch
from hf_prune.data.labels import check_classes, is_text
from hf_prune.models import Model, cached, device_for
from hf_prune.networks.inputs import Inputs, Reader

if TYPE_CHECKING:
    import torch
    from torch import Tensor


NO_PADDING = -1  # an id that no token has


class Classifier(Reader):
    """A network with its preprocessing: rows of a batch in, logits out. Made for each batch; weights are cached."""

    new_head = False  # the head will be replaced by a fitted one: the model's files need not have it

    def network(self) -> torch.nn.Module:
        """The network in eval mode, on the device of the rank."""
        network: Any = self.model.load(self.rank, self.head, new_head=self.new_head)
        if not self.own and self.kind == "text" and self.task == "classification" and self.pad is None:
            # it would refuse two rows at once; ids count from 0, so the last token of each is found, as of one row
            network.config.get_text_config().pad_token_id = NO_PADDING
        return network  # type: ignore[no-any-return]

    def call(self, network: Callable[..., Any], inputs: Inputs) -> Tensor:
        """Logits of a pass: (m, C), or (m, t, V) of a language model."""
        return self.checked(network(**inputs) if hasattr(inputs, "items") else network(inputs))

    def checked(self, output: Any) -> Tensor:
        """The logits of what a network returned.

        Raises:
            ValueError: they have another shape than the task needs, or one class only.
        """
        from hf_prune.networks.torch_passes import first_tensor

        output = first_tensor(output, "logits")
        wanted = ("n", "tokens", "vocabulary") if self.task == "language_model" else ("n", "classes")
        if output.ndim != len(wanted):
            raise ValueError(
                f"{self.model.label} returned shape {tuple(output.shape)}; for task={self.task!r} return logits of "
                f"shape ({', '.join(wanted)})"
            )
        if output.shape[-1] < 2:
            raise ValueError(
                f"{self.model.label} has one class only; where nothing else can be predicted nothing is hard"
            )
        return output  # type: ignore[no-any-return]

    def apply(
        self,
        batch: Batch,
        function: Callable[[Tensor, Inputs, NDArray[np.int64]], Tensor],
        network: torch.nn.Module | None = None,
    ) -> NDArray[np.float32]:
        """Apply a function to the logits of every pass, and put what it gives in the order of the rows.

        Args:
            batch: the rows.
            function: of logits (m, ...), the pass's inputs and its rows' places in the batch; gives (m, ...).
            network: if it is held already.
        """
        from hf_prune.networks.torch_passes import forward

        network = self.network() if network is None else network
        out: NDArray[np.float32] | None = None
        for rows, inputs in self.passes(batch):

            def run(places: NDArray[np.int64], rows: Any = rows, inputs: Any = inputs) -> Tensor:
                given = inputs(places)
                return function(self.call(network, given), given, rows[places])

            part = forward(run, np.arange(len(rows)))
            if out is None:
                out = np.empty((batch.n, *part.shape[1:]), np.float32)
            out[rows] = part
        return np.empty(0, np.float32) if out is None else out

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """Logits (n, C) of a classifier."""
        return self.apply(batch, lambda logits, inputs, rows: logits)

    def statistic(
        self, batch: Batch, name: str, label: str | None = None, network: torch.nn.Module | None = None
    ) -> NDArray[np.float32]:
        """One of the statistics that a log has (`statistics.of_rows`), (n,); of a language model its mean over tokens.

        Args:
            batch: the rows.
            name: "el2n", "entropy", "p_max", ...
            label: column of classes; None for a statistic that does not ask for them.
            network: if it is held already.

        Raises:
            ValueError: a label that is null or no class of the model; a text without a token to predict.
        """
        import torch

        from hf_prune.networks.statistics import of_rows, of_tokens

        if self.task == "language_model":
            return self.apply(
                batch, lambda logits, inputs, _: of_tokens(logits[:, :-1], next_tokens(inputs))[name], network
            )
        classes = None if label is None else self.labels(batch, label)

        def of(logits: Tensor, inputs: Inputs, rows: NDArray[np.int64]) -> Tensor:
            chosen = np.zeros(len(rows), np.int64) if classes is None else classes[rows]
            self.check_classes(chosen, rows, label, logits.shape[1])
            return of_rows(logits, torch.from_numpy(chosen).to(logits.device))[name]

        return self.apply(batch, of, network)

    def labels(self, batch: Batch, label: str) -> NDArray[np.int64]:
        """Classes (n,) as integers; names are looked up in the model's configuration.

        Raises:
            ValueError: a label that is null, negative, or a name that the model does not know.
        """
        values = check_classes(batch.arrow(label), label, of=" of this batch", meant="")
        if is_text(values.type):
            return self._named(values.to_pylist(), label)
        return np.asarray(values.to_numpy(zero_copy_only=False)).astype(np.int64)

    def check_classes(self, classes: NDArray[np.int64], rows: NDArray[np.int64], label: str | None, known: int) -> None:
        """Refuse classes that the model has no logit for.

        Raises:
            ValueError: there is one; names its row.
        """
        if classes.max() >= known:
            row = int(rows[classes.argmax()])
            raise ValueError(
                f"column {label!r}: row {row} of this batch has class {int(classes.max())}, {self.model.label} "
                f"knows {known} classes, counted from 0; name the model's own label column"
            )

    def flops(self, batch: Batch) -> float:
        """Operations of the forward passes: counted on one row of middle size, scaled by tokens or rows."""
        from hf_prune.networks.image import read_pictures
        from hf_prune.networks.torch_passes import count_flops

        if batch.n == 0:
            return 0.0
        column, kind = self.reads(batch)
        if self.own:
            network = self.network()
            first = next(self.items(batch, column, kind))
            return batch.n * count_flops(lambda: self.call(network, first.inputs(np.array([len(first.rows) // 2]))))
        if kind == "text":
            encoder, texts, rendered = self.read_texts(batch, column)
            return encoder.flops(texts, special=not rendered)
        return self.image_encoder().flops(read_pictures(batch, column))

    def _named(self, names: Sequence[str], label: str) -> NDArray[np.int64]:
        from hf_prune.networks.plan import config_of

        known = {} if self.own else {str(k): int(v) for k, v in (config_of(self.model).label2id or {}).items()}
        unknown = [row for row, name in enumerate(names) if name not in known]
        if unknown:
            there = ", ".join(sorted(known)[:5]) or "none by name"
            raise ValueError(
                f"column {label!r}: {names[unknown[0]]!r} in row {unknown[0]} of this batch is no class of "
                f"{self.model.label} (it knows {there}); give the classes as its integers"
            )
        return np.array([known[name] for name in names], np.int64)


def next_tokens(inputs: Inputs) -> Tensor:
    """Labels (m, t - 1) of a language model's positions but the last: the token that follows, -100 in the padding."""
    from hf_prune.networks.statistics import IGNORE

    if not hasattr(inputs, "items") or "input_ids" not in inputs:
        raise ValueError("a language model of your own needs input_ids: let its preprocess return a dict with them")
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    labels: Tensor = ids[:, 1:] if mask is None else ids[:, 1:].masked_fill(mask[:, 1:] * mask[:, :-1] == 0, IGNORE)
    return labels


def networks(classifiers: Sequence[Classifier]) -> tuple[torch.nn.Module, ...]:
    """The networks of several models, held together: one by one they would push each other out of the cache."""
    device = device_for(classifiers[0].rank)
    owner = 0 if device.type == "cpu" else os.getpid()
    key = ("networks", *((c.model.digest, c.head) for c in classifiers), str(device), owner)
    return cached(key, lambda: tuple(c.network() for c in classifiers))


def mean_statistic(
    classifiers: Sequence[Classifier], batch: Batch, name: str, label: str | None
) -> NDArray[np.float64]:
    """Mean (n,) over models, in float64, of a statistic of their logits."""
    total = np.zeros(batch.n)
    for classifier, network in zip(classifiers, networks(classifiers), strict=True):
        total += classifier.statistic(batch, name, label, network)
    return total / len(classifiers)


def as_models(models: Any) -> tuple[Model, ...]:
    """One model or several, as `Model`s.

    Raises:
        ValueError: there is none.
    """
    several = models if isinstance(models, (list, tuple)) else [models]
    if not several:
        raise ValueError("models=[] names no model; give one or more, or use from_log")
    return tuple(Model.of(model) for model in several)


def warn_if_untrained(models: Sequence[Model], who: str) -> None:
    """Warn about checkpoints of step 0, where the folder says so (`trainer_state.json` of the Trainer, or its name)."""
    from hf_prune.networks.plan import read_json

    for model in models:
        if model.kind != "folder":
            continue
        state = read_json(model.folder() / "trainer_state.json")
        if model.label.startswith("checkpoint-0@") or state.get("global_step", 1) == 0:
            warnings.warn(
                f"{who}: {model.label} is a checkpoint of step 0. At initialisation these scores say little more than "
                "how long the input is (Kirsch, arXiv 2303.14753); take one after some epochs",
                stacklevel=4,
            )


def models_facts(models: Sequence[Model]) -> Mapping[str, Any]:
    """What a card says of the models."""
    first = models[0].provenance()
    return first if len(models) == 1 else {**first, "models": [model.provenance() for model in models]}
