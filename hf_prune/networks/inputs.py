"""Rows to a network's inputs: texts, pictures and vectors, prepared as `Embedder` prepares them, in passes that fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_prune.checks import missing_column
from hf_prune.data.batch import Batch
from hf_prune.data.chat import turns_of
from hf_prune.data.texts import read_column, read_texts
from hf_prune.data.types import Side
from hf_prune.models import Model, device_for

if TYPE_CHECKING:
    from hf_prune.networks.image import ImageEncoder
    from hf_prune.networks.text import TransformerEncoder

TASKS = ("auto", "classification", "language_model")
KINDS = ("auto", "text", "image", "vector")
COLUMNS = {"text": "text", "image": "image", "vector": "embedding"}  # where nobody names one
IDS = "input_ids"  # column of token ids
ANSWERS = ("assistant", "gpt", "model", "bot")  # roles of a chat that answer
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


class TextCounts(NamedTuple):
    """How many texts were read, were cut at the limit, and are chats that were cut before their last answer began."""

    read: int = 0
    cut: int = 0
    unanswered: int = 0

    def __add__(self, other: TextCounts) -> TextCounts:  # type: ignore[override]
        return TextCounts(*map(sum, zip(self, other, strict=True)))


class Reader:
    """What a model reads, and how: its task, its kind of input, and passes of rows that fit on the device.

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
        ValueError: the folder has no such head, does not read that kind of input, or not texts of that length.
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
        self.takes_ids = False  # a language model reads token ids as they are, where there are no texts
        self.truncate: Side | None = None  # side of a text that is cut off; None: as the tokenizer has it
        self.counts = TextCounts()
        self.task, self.kind = task, kind
        if self.own:
            self.task = "classification" if task == "auto" else task
        else:
            self.task, self.kind = _head_of(model, task, kind)
            if self.kind == "text" and max_length is not None:
                from hf_prune.networks.plan import text_plan

                text_plan(model, "auto", None, max_length, None)  # a length that is too much is told here, not in a job

    @property
    def head(self) -> str:
        """Class of transformers that loads the network."""
        if self.task == "language_model":
            return "AutoModelForCausalLM"
        return "AutoModelForImageClassification" if self.kind == "image" else "AutoModelForSequenceClassification"

    @property
    def pad(self) -> int | None:
        """What a classifier of texts takes for padding: heads of decoders look for the last token that is not it.

        None: it knows none, so that it would take padding for the text's end.
        """
        from hf_prune.networks.plan import config_of

        found = getattr(config_of(self.model).get_text_config(), "pad_token_id", None)
        return None if found is None else int(found)

    def passes(self, batch: Batch) -> Iterator[Pass]:
        """The rows of a batch in groups that fit together, each prepared as the model wants it.

        Raises:
            ValueError: a row cannot be read: an empty text, a damaged picture.
        """
        if batch.n == 0:
            return
        column, kind = self.reads(batch)
        if self.own:
            yield from self.items(batch, column, kind)
        elif kind == "text":
            yield from self._texts(batch, column)
        else:
            yield from self._pictures(batch, column)

    def reads(self, batch: Batch) -> tuple[str, str]:
        """The column that is read and its kind, by the user's word, the model, and what is there."""
        column, kind = self.column, self.kind
        if column is None and self.takes_ids and not self.own and self.task == "language_model":
            column = IDS if IDS in batch and COLUMNS["text"] not in batch else None
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

    def read_texts(self, batch: Batch, column: str) -> tuple[TransformerEncoder, list[Any], bool]:
        """What encodes the texts of a batch, the texts (or lists of token ids), and whether a template made them."""
        from hf_prune.networks.plan import text_plan
        from hf_prune.networks.text import TransformerEncoder, chat_template

        plan = text_plan(self.model, "auto", None, self.max_length, None)
        encoder = TransformerEncoder(self.model, plan, self.rank, self.micro_batch)
        encoder.head = self.head
        if self.task == "classification":
            encoder.pad, encoder.equal = self.pad, self.pad is None
        if self.takes_ids and column == IDS:
            encoder.ids = True
            return encoder, batch[column], False
        encoder.truncate = self.truncate
        texts, bad, rendered = read_texts(batch, [column], template=chat_template(self.model, plan))
        _refuse(bad, column)
        return encoder, texts, rendered

    def _texts(self, batch: Batch, column: str) -> Iterator[Pass]:
        from hf_prune.networks.plan import config_of
        from hf_prune.networks.torch_passes import micro_batches

        encoder, texts, rendered = self.read_texts(batch, column)
        ids, types = encoder.tokens(texts, special=not rendered)
        self.counts += TextCounts(len(texts), len(encoder.cut), _unanswered(batch, column, texts, encoder.cut))
        lengths = np.array([len(row) for row in ids], np.int64)
        least = 2 if self.task == "language_model" else 1
        _refuse(
            {int(row): f"has {lengths[row]} tokens, {least} are needed" for row in np.flatnonzero(lengths < least)},
            column,
        )
        device = device_for(self.rank)
        budget, multiple, waste = encoder.limits(device)
        if self.task == "language_model":
            vocabulary = int(config_of(self.model).get_text_config().vocab_size)
            budget = min(budget, LOGITS["cpu" if device.type == "cpu" else "cuda"] // vocabulary)
        constant = {"use_cache": False} if self.task == "language_model" else {}
        for rows in micro_batches(lengths, budget, multiple, waste):

            def inputs(places: NDArray[np.int64], rows: Any = rows) -> Inputs:
                return {**encoder.collate(rows[places], ids, types, device), **constant}

            yield Pass(rows, inputs)

    def image_encoder(self) -> ImageEncoder:
        from hf_prune.networks.image import ImageEncoder

        encoder = ImageEncoder(self.model, "auto", None, self.rank, self.micro_batch)
        encoder.head = self.head
        return encoder

    def _pictures(self, batch: Batch, column: str) -> Iterator[Pass]:
        import torch

        from hf_prune.networks.image import read_pictures, same_shape

        device, dtype = device_for(self.rank), getattr(torch, self.model.dtype)
        bad: dict[int, str] = {}
        size = self.micro_batch or (16 if device.type == "cpu" else 128)
        for rows, pixels in self.image_encoder().prepared(read_pictures(batch, column), bad, size):
            _refuse(bad, column)
            for group in same_shape(pixels):

                def inputs(places: NDArray[np.int64], group: Any = group, pixels: Any = pixels) -> Inputs:
                    block = np.stack([pixels[place] for place in group[places]])
                    return {"pixel_values": torch.from_numpy(block).to(device, dtype)}

                yield Pass(rows[group], inputs)

    def items(self, batch: Batch, column: str, kind: str) -> Iterator[Pass]:
        """Rows for a module of your own, through its preprocessing function."""
        import torch

        from hf_prune.networks.image import decode_image, read_pictures
        from hf_prune.networks.torch_passes import moved

        device, dtype = device_for(self.rank), getattr(torch, self.model.dtype)
        matrix = batch.matrix(column) if kind == "vector" else None
        values = batch.texts(column) if kind == "text" else read_pictures(batch, column) if matrix is None else []
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


def _head_of(model: Model, task: str, kind: str) -> tuple[str, str]:
    """Task and kind of a transformers folder, by the head it was saved with and what it can read."""
    from hf_prune.networks.image import has_image_processor
    from hf_prune.networks.plan import config_of, has_tokenizer

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
    from hf_prune.networks.embedder import held

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


def _unanswered(batch: Batch, column: str, texts: Sequence[str], cut: Mapping[int, slice]) -> int:
    """How many of the texts that were cut are chats whose last answer lies behind the cut."""
    if not cut:
        return 0
    lost, rows = 0, batch[column] if column in batch else ()
    for row, kept in cut.items():
        if row < len(rows) and not isinstance(rows[row], str):
            answers = [turn.said.strip() for turn in turns_of(rows[row]) if turn.role in ANSWERS]
            start = texts[row].rfind(answers[-1]) if answers and answers[-1] else -1
            lost += kept.stop is not None and start >= kept.stop
    return lost


def _decoded(items: Sequence[Any], start: int, column: str, decode: Callable[[Any], Any]) -> list[Any]:
    from hf_prune.networks.image import NULL

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
