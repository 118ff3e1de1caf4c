"""Rows to logits: one way to run labelled classifiers and language models over a batch, in eval mode.

EL2N, GraNd, uncertainty and the Fisher probe share it. Preprocessing is that of `Embedder`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_prune.batch import Batch, missing_column
from hf_prune.models import Model, cached, device_for
from hf_prune.texts import read_column, read_texts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hf_prune._embed.image import ImageEncoder
    from hf_prune._embed.text import TransformerEncoder

TASKS = ("auto", "classification", "language_model")
KINDS = ("auto", "text", "image", "vector")
COLUMNS = {"text": "text", "image": "image", "vector": "embedding"}  # where nobody names one
LOGITS = {"cpu": 1 << 26, "cuda": 1 << 29}  # numbers of logits that a pass of a language model may give

Inputs = Any  # what a network is called with: a tensor, or a dict of tensors


class Pass(NamedTuple):
    """Rows that go through the network together.

    Attributes:
        rows: (m,) their places in the batch.
        inputs: gives what the network is called with for some of them, named by their places among `rows`.
    """

    rows: NDArray[np.int64]
    inputs: Callable[[NDArray[np.int64]], Inputs]


class Classifier:
    """A network with its preprocessing: rows of a batch in, logits out. Made anew for each batch; weights are cached.

    Args:
        model: a folder or Hub name of `transformers` with a classification or a causal language model head, or a module
            of your own that returns (n, C) logits; for a language model (n, t, V).
        column: that it reads; None for `text`, `image` or `embedding`, whichever goes with the model's kind.
        task: "classification", "language_model", or "auto" by the head that the folder names.
        kind: of input: "text", "image", "vector" (rows of numbers, for a module of your own), or "auto".
        max_length: tokens after which texts are cut; None for the model's own limit.
        micro_batch: tokens (padding counted) or rows a forward pass; None for what suits the device.
        rank: of the worker.

    Raises:
        ValueError: the folder has no such head, or does not read that kind of input.
    """

    def __init__(
        self,
        model: Model,
        column: str | None = None,
        *,
        task: str = "auto",
        kind: str = "auto",
        max_length: int | None = None,
        micro_batch: int | None = None,
        rank: int | None = None,
    ) -> None:
        for what, value, allowed in (("task", task, TASKS), ("kind", kind, KINDS)):
            if value not in allowed:
                raise ValueError(f"{what}={value!r} is not one of {', '.join(allowed)}")
        self.model, self.column, self.rank = model, column, rank
        self.max_length, self.micro_batch = max_length, micro_batch
        self.own = model.kind in ("factory", "live")
        self.task, self.kind = task, kind
        if self.own:
            self.task = "classification" if task == "auto" else task
        else:
            self.task, self.kind = _head_of(model, task, kind)

    @property
    def head(self) -> str:
        """Class of transformers that loads the network."""
        if self.task == "language_model":
            return "AutoModelForCausalLM"
        return "AutoModelForImageClassification" if self.kind == "image" else "AutoModelForSequenceClassification"

    def network(self) -> torch.nn.Module:
        """The network in eval mode, on the device of the rank."""
        return self.model.load(self.rank, self.head)

    def passes(self, batch: Batch) -> Iterator[Pass]:
        """The rows of a batch in groups that fit together, each prepared as the model wants it.

        Raises:
            ValueError: a row cannot be read: an empty text, a damaged picture.
        """
        if batch.n == 0:
            return
        column, kind = self._reads(batch)
        if self.own:
            yield from self._items(batch, column, kind)
        elif kind == "text":
            yield from self._texts(batch, column)
        else:
            yield from self._pictures(batch, column)

    def call(self, network: Callable[..., Any], inputs: Inputs) -> Tensor:
        """Logits of a pass: (m, C), or (m, t, V) of a language model."""
        from hf_prune._embed.torch_passes import first_tensor

        output = first_tensor(network(**inputs) if hasattr(inputs, "items") else network(inputs), "logits")
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
        return output

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
        from hf_prune._embed.torch_passes import forward

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

        from hf_prune.dynamics.statistics import of_rows, of_tokens

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
        values = batch.arrow(label)
        if batch.n == 0:
            return np.empty(0, np.int64)
        if values.null_count:
            row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
            raise ValueError(f"column {label!r} is null in row {row} of this batch; label it, or drop such rows first")
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            return self._named(values.to_pylist(), label)
        if not (pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)):
            raise TypeError(f"column {label!r} holds {values.type}, not classes; name a ClassLabel or integer column")
        classes = np.asarray(values.to_numpy(zero_copy_only=False)).astype(np.int64)
        if len(classes) and classes.min() < 0:
            row = int(classes.argmin())
            raise ValueError(
                f"column {label!r}: row {row} of this batch has class {int(classes.min())}; classes count from 0"
            )
        return classes

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
        from hf_prune._embed.torch_passes import count_flops

        if batch.n == 0:
            return 0.0
        column, kind = self._reads(batch)
        if self.own:
            network = self.network()
            first = next(self._items(batch, column, kind))
            return batch.n * count_flops(lambda: self.call(network, first.inputs(np.array([len(first.rows) // 2]))))
        if kind == "text":
            encoder, texts, rendered = self._read_texts(batch, column)
            return encoder.flops(texts, special=not rendered)
        return self._image_encoder().flops(_plain(batch, column))

    def _named(self, names: Sequence[str], label: str) -> NDArray[np.int64]:
        from hf_prune._embed.plan import config_of

        known = {} if self.own else {str(k): int(v) for k, v in (config_of(self.model).label2id or {}).items()}
        unknown = [row for row, name in enumerate(names) if name not in known]
        if unknown:
            there = ", ".join(sorted(known)[:5]) or "none by name"
            raise ValueError(
                f"column {label!r}: {names[unknown[0]]!r} in row {unknown[0]} of this batch is no class of "
                f"{self.model.label} (it knows {there}); give the classes as its integers"
            )
        return np.array([known[name] for name in names], np.int64)

    def _reads(self, batch: Batch) -> tuple[str, str]:
        """The column that is read and its kind, by the user's word, the model, and what is there."""
        column, kind = self.column, self.kind
        if column is None:
            usual = [COLUMNS[kind]] if kind != "auto" else [name for name in COLUMNS.values() if name in batch]
            if len(usual) != 1:
                raise missing_column(" or ".join(COLUMNS.values()), list(batch), f"{batch.who} without column=...")
            column = usual[0]
        if kind == "auto":
            kind = _kind_of(batch, column)
        if self.own and kind != "vector" and self.model.preprocess is None:
            raise ValueError(
                f"{self.model.label} is a network alone: say how rows of {column!r} become its input with "
                "Model(..., preprocess='package.module:function')"
            )
        return column, kind

    def _read_texts(self, batch: Batch, column: str) -> tuple[TransformerEncoder, list[str], bool]:
        from hf_prune._embed.plan import text_plan
        from hf_prune._embed.text import TransformerEncoder, chat_template

        plan = text_plan(self.model, "auto", None, self.max_length, None)
        encoder = TransformerEncoder(self.model, plan, self.rank, self.micro_batch)
        encoder.head = self.head
        texts, bad, rendered = read_texts(batch, [column], template=chat_template(self.model, plan))
        _refuse(bad, column)
        return encoder, texts, rendered

    def _texts(self, batch: Batch, column: str) -> Iterator[Pass]:
        from hf_prune._embed.plan import config_of
        from hf_prune._embed.torch_passes import micro_batches

        encoder, texts, rendered = self._read_texts(batch, column)
        ids, types = encoder.tokens(texts, special=not rendered)
        lengths = np.array([len(row) for row in ids], np.int64)
        least = 2 if self.task == "language_model" else 1
        _refuse(
            {int(row): f"has {lengths[row]} tokens, {least} are needed" for row in np.flatnonzero(lengths < least)},
            column,
        )
        device = device_for(self.rank)
        budget, multiple, waste = encoder.limits(device)
        config = config_of(self.model)
        if self.task == "language_model":
            vocabulary = int(config.get_text_config().vocab_size)
            budget = min(budget, LOGITS["cpu" if device.type == "cpu" else "cuda"] // vocabulary)
        elif getattr(config, "pad_token_id", None) is None:
            budget = 1  # such a head looks for the last token before the padding, and cannot: row by row there is none
        for rows in micro_batches(lengths, budget, multiple, waste):

            def inputs(places: NDArray[np.int64], rows: Any = rows) -> Inputs:
                return encoder.collate(rows[places], ids, types, device)

            yield Pass(rows, inputs)

    def _image_encoder(self) -> ImageEncoder:
        from hf_prune._embed.image import ImageEncoder

        encoder = ImageEncoder(self.model, "auto", None, self.rank, self.micro_batch)
        encoder.head = self.head
        return encoder

    def _pictures(self, batch: Batch, column: str) -> Iterator[Pass]:
        import torch

        from hf_prune._embed.image import same_shape

        device, dtype = device_for(self.rank), getattr(torch, self.model.dtype)
        bad: dict[int, str] = {}
        size = self.micro_batch or (16 if device.type == "cpu" else 128)
        for rows, pixels in self._image_encoder().prepared(_plain(batch, column), bad, size):
            _refuse(bad, column)
            for group in same_shape(pixels):

                def inputs(places: NDArray[np.int64], group: Any = group, pixels: Any = pixels) -> Inputs:
                    block = np.stack([pixels[place] for place in group[places]])
                    return {"pixel_values": torch.from_numpy(block).to(device, dtype)}

                yield Pass(rows[group], inputs)

    def _items(self, batch: Batch, column: str, kind: str) -> Iterator[Pass]:
        """Rows for a module of your own, through its preprocessing function."""
        import torch

        from hf_prune._embed.image import decode_image
        from hf_prune._embed.torch_passes import moved

        device, dtype = device_for(self.rank), getattr(torch, self.model.dtype)
        matrix = batch.matrix(column) if kind == "vector" else None
        values = batch.texts(column) if kind == "text" else _plain(batch, column) if matrix is None else []
        size = self.micro_batch or (1024 if kind == "vector" else 32 if device.type == "cpu" else 128)
        for start in range(0, batch.n, size):
            rows = np.arange(start, min(start + size, batch.n))
            items: Any = values[start : start + size] if matrix is None else matrix[start : start + size]
            if kind == "image":
                items = _decoded(items, start, column, decode_image)

            def inputs(places: NDArray[np.int64], items: Any = items) -> Inputs:
                chosen = [items[place] for place in places] if matrix is None else items[places]
                ready = chosen if self.model.preprocess is None else self.model.prepare()(list(chosen))
                return moved(ready, device, dtype)

            yield Pass(rows, inputs)


def next_tokens(inputs: Inputs) -> Tensor:
    """Labels (m, t - 1) of a language model's positions but the last: the token that follows, -100 in the padding."""
    from hf_prune.dynamics.statistics import IGNORE

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
    from hf_prune._embed.plan import read_json

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


def _head_of(model: Model, task: str, kind: str) -> tuple[str, str]:
    """Task and kind of a transformers folder, by the head it was saved with and what it can read."""
    from hf_prune._embed.image import has_image_processor
    from hf_prune._embed.plan import config_of, has_tokenizer

    heads = " ".join(getattr(config_of(model), "architectures", None) or [])
    if task == "auto":
        task = "language_model" if "ForCausalLM" in heads or "LMHeadModel" in heads else "classification"
    if kind == "auto":
        folder = model.folder()
        pictures = "ForImageClassification" in heads or (has_image_processor(folder) and not has_tokenizer(folder))
        kind = "image" if pictures else "text"
    if kind == "vector" or (kind == "image" and task == "language_model"):
        raise ValueError(f"{model.label} is a transformers folder, which reads no kind={kind!r} for task={task!r}")
    return task, kind


def _kind_of(batch: Batch, column: str) -> str:
    """Text, image or vector, by what the column holds."""
    from hf_prune.embed import held

    values = read_column(batch, column)
    if isinstance(values, pa.Array):
        t, kind = pa.types, values.type
        if (t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind)) and (
            t.is_floating(kind.value_type) or t.is_integer(kind.value_type)
        ):
            return "vector"
    else:
        first = next((v for v in values if v is not None), None)
        if isinstance(first, (list, tuple, np.ndarray)) and len(first) and np.ndim(first[0]) == 0:
            if isinstance(first[0], (int, float, np.number)):
                return "vector"
    return held(batch, column) or "text"


def _plain(batch: Batch, column: str) -> list[Any]:
    values = read_column(batch, column)
    return values.to_pylist() if isinstance(values, pa.Array) else list(values)


def _decoded(items: Sequence[Any], start: int, column: str, decode: Callable[[Any], Any]) -> list[Any]:
    from hf_prune._embed.image import NULL

    out, bad = [], {}
    for row, item in enumerate(items, start):
        try:
            if item is None:
                raise ValueError(NULL)
            out.append(decode(item))
        except ValueError as error:
            bad[row] = str(error)
    _refuse(bad, column)
    return out


def _refuse(bad: Mapping[int, str], column: str) -> None:
    if bad:
        row = min(bad)
        more = f", and {len(bad) - 1} more are bad" if len(bad) > 1 else ""
        raise ValueError(f"column {column!r}: row {row} of this batch {bad[row]}{more}; drop such rows first")
