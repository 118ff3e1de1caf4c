"""`Embedder`: one vector a row, from texts or pictures, by any model; the column that geometric scores read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from hf_prune.columns import ScoreColumn
from hf_prune.data.batch import Batch
from hf_prune.data.texts import read_column, read_texts
from hf_prune.models import Model
from hf_prune.scorer import Scorer

if TYPE_CHECKING:
    from hf_prune.networks.plan import TextPlan

_KINDS = ("auto", "text", "image")
_POOLINGS = ("auto", "mean", "cls", "pooler", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@dataclass(frozen=True, eq=False)
class Embedder(Scorer):
    """Writes a fixed-size list of float32 per row; no score, but what geometric scores are computed from.

    A sentence-transformers folder is followed in all it says (pooling, dense layers, normalisation, length, prompt)
    and gives what `SentenceTransformer.encode` gives. A row's vector does not depend on the rows beside it.

    Args:
        model: a `Model`, a name on the Hub, a folder, `package.module:factory`, or a live `nn.Module`. The last two
            need `preprocess`.
        column: of texts, chats (`[{"role", "content"}]`) or pictures; for texts also several columns, joined in this
            order, or a field of a struct as `column.field`. Under `with_format("numpy")` or `"torch"`, `map` hands
            over bare pixels: of a picture with a palette (GIF, some PNG) these are numbers of colors, of CMYK four
            inks, and neither is told from gray or RGBA; embed without a format.
        kind: "text" or "image"; "auto" tells by the model and, where that can do both, by the column.
        pooling: "auto" is what the sentence-transformers folder says, else the mean over tokens; for pictures the
            trained pooler, else the class token. Or "mean", "cls", "pooler", "max", "mean_sqrt_len_tokens",
            "weightedmean", "lasttoken".
        normalize: to unit length; None as the sentence-transformers folder says, else not.
        max_length: tokens after which texts are cut; None for the model's own limit.
        prompt_name: one of the prompts of the sentence-transformers folder, put before each text.
        join: between several columns.
        on_bad: "raise", or "nan" for a row of NaN where a text is empty or a picture damaged.
        micro_batch: tokens (padding counted) or pictures a forward pass; None for what suits the device. Changes
            nothing but speed and memory.
        name: the column it writes.
        dtype: of weights and activations, "float32", "bfloat16" or "float16"; vectors are pooled and stored as float32.
        revision: of a model on the Hub.
        preprocess: `package.module:function` for a module of your own: a list of texts or RGB PIL images to a tensor,
            or to a dict of tensors.

    Raises:
        ValueError: an empty text, a damaged picture, numbers that are not finite, a model that cannot do this.
        TypeError: the column holds something else than the model reads.

    >>> Embedder("no/such/folder")
    Traceback (most recent call last):
    ...
    FileNotFoundError: model 'no/such/folder' does not exist; give a folder, a name on the Hub, or ...
    """

    version: ClassVar[int] = 2
    meaning: ClassVar[str] = "no score: the place of the row in the model's feature space"
    atol: ClassVar[float] = 1e-5

    model: Any
    column: str | Sequence[str] = "text"
    _: KW_ONLY
    kind: str = "auto"
    pooling: str = "auto"
    normalize: bool | None = None
    max_length: int | None = None
    prompt_name: str | None = None
    join: str = " "
    on_bad: str = "raise"
    micro_batch: int | None = None
    name: str = "embedding"
    dtype: InitVar[str | None] = None
    revision: InitVar[str | None] = None
    preprocess: InitVar[str | None] = None

    def __post_init__(self, dtype: str | None, revision: str | None, preprocess: str | None) -> None:
        given = {"dtype": dtype, "revision": revision, "preprocess": preprocess}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if isinstance(self.model, Model):
            model = replace(self.model, **options) if options else self.model
        else:
            model = Model.of(self.model, **options)
        object.__setattr__(self, "model", model)
        if not isinstance(self.column, str):
            object.__setattr__(self, "column", tuple(self.column))
        self.check_fields()

    def check_fields(self) -> None:
        if not isinstance(self.model, Model):
            raise ValueError(f"model={self.model!r} is no Model")
        for what, value, allowed in (
            ("kind", self.kind, _KINDS),
            ("pooling", self.pooling, _POOLINGS),
            ("on_bad", self.on_bad, ("raise", "nan")),
        ):
            if value not in allowed:
                raise ValueError(f"{what}={value!r} is not one of {', '.join(allowed)}")
        for what in ("max_length", "micro_batch"):
            number = getattr(self, what)
            if number is not None and (not isinstance(number, int) or number < 1):
                raise ValueError(f"{what}={number!r} is no positive whole number; leave it out for the model's own")
        if not self.column or (self.kind == "image" and not isinstance(self.column, str)):
            raise ValueError(f"column={self.column!r}: name one column, or several of texts")
        if self.model.kind in ("factory", "live") and self.model.preprocess is None:
            raise ValueError(
                f"{self.model.source} is a network alone: say how rows become its input with "
                "preprocess='package.module:function'"
            )

    @property
    def nan_rows(self) -> bool:  # type: ignore[override]
        """Whether rows without a vector get NaN."""
        return self.on_bad == "nan"

    def columns(self) -> dict[str, str]:
        return {self.name: f"float32[{self.width}]"}

    @property
    def width(self) -> int:
        """Numbers a row; told by the model's configuration, without its weights where that is possible."""
        kinds = [self._kind()] if self._kind() != "auto" else ["image", "text"]
        errors = []
        for kind in kinds:
            try:
                return self._plan().width if self._is_folder_text(kind) else self._encoder(kind, None).width
            except ValueError as error:
                errors.append(error)
        raise errors[0]

    def score(self, batch: Batch, rank: int | None) -> np.ndarray:
        """Embed the rows of a batch; (n, width) float32."""
        kind = self._kind(batch)
        bad: dict[int, str] = {}
        vectors: np.ndarray
        if kind == "text":
            texts, bad, rendered = self._texts(batch)
            if self._is_folder_text(kind):
                vectors = self._text_encoder(rank).encode(texts, bad, special=not rendered)
            else:
                vectors = self._encoder(kind, rank).encode(texts, bad)
        else:
            vectors = self._encoder(kind, rank).encode(self._pictures(batch), bad)
        if bad and self.on_bad == "raise":
            row = min(bad)
            raise ValueError(
                f"column {self.column!r}: row {row} of this batch {bad[row]}"
                + (f", and {len(bad) - 1} more are bad" if len(bad) > 1 else "")
                + "; drop such rows first, or pass on_bad='nan'"
            )
        lost = ~np.isfinite(vectors).all(1)
        lost[list(bad)] = False
        if lost.any():
            raise ValueError(
                f"column {self.column!r}: row {int(np.flatnonzero(lost)[0])} of this batch got numbers that are not "
                f"finite from {self.model.label} in {self.model.dtype}; use dtype='float32' or 'bfloat16'"
            )
        return vectors

    def cost(self, batch: Batch) -> float:
        """Operations of the forward passes, padding counted: measured by torch on one row, scaled by tokens or rows."""
        if batch.n == 0:
            return 0.0
        kind = self._kind(batch)
        if kind == "image":
            return float(self._encoder(kind, None).flops(self._pictures(batch)))
        texts, _, rendered = self._texts(batch)
        if self._is_folder_text(kind):
            return float(self._text_encoder(None).flops(texts, special=not rendered))
        return float(self._encoder(kind, None).flops([t for t in texts if t]))

    def describe(self) -> ScoreColumn:
        kind = self._kind()
        facts: dict[str, Any] = {}
        if kind == "text" and self._is_folder_text(kind):
            plan = self._plan()
            facts = {"pooling": "+".join(plan.pooling), "normalize": plan.normalized, "max_length": plan.max_length}
            facts["route"] = plan.route
            if plan.prompt:
                facts["prompt"] = plan.prompt
            cut = f"cut after {plan.max_length} tokens" if plan.max_length else "not cut"
            chat = "chats through the chat template" if self._template() else "chats as lines of `role: content`"
            raw = f"{facts['pooling']} pooling of the last hidden states; texts {cut}; {chat}"
            unit = plan.normalized
        else:
            mode = self.pooling
            if kind == "image" and self.model.kind in ("hub", "folder"):
                mode = self._encoder(kind, None).mode
            facts = {"kind": kind, "pooling": mode}
            raw = f"{mode} pooling of the network's output; pictures as RGB, turned upright by EXIF"
            unit = bool(self.normalize)
        raw += (
            f"; {'scaled to unit length' if unit else 'not normalised'}; computed in {self.model.dtype}, stored float32"
        )
        raw += "; NaN where a text is empty or a picture damaged" if self.nan_rows else ""
        found = super().describe()
        return replace(found, raw=raw, params={**found.params, **facts})

    def _kind(self, batch: Batch | None = None) -> str:
        """Text or image, by the user's word, the model, and the column; "auto" if nothing told."""
        kind = self.kind
        if kind == "auto" and not isinstance(self.column, str):
            kind = "text"
        if kind == "auto" and self.model.kind in ("hub", "folder"):
            from hf_prune.networks.image import has_image_processor
            from hf_prune.networks.plan import has_tokenizer

            folder = self.model.folder()
            readers = (has_tokenizer(folder), has_image_processor(folder))
            kind = {(True, False): "text", (False, True): "image"}.get(readers, "auto")
            if not any(readers):
                raise ValueError(
                    f"{self.model.label} has neither a tokenizer nor an image processor in its folder; save one there, "
                    "or pass Model('package.module:factory', preprocess='package.module:function')"
                )
        if batch is None or batch.n == 0:
            return kind
        there = held(batch, self.column if isinstance(self.column, str) else self.column[0])
        if there is None:
            return "text" if kind == "auto" else kind
        if kind == "auto":
            return there
        if there != kind and not (kind == "image" and _paths(batch, str(self.column))):
            names = {"text": "texts", "image": "pictures"}
            raise TypeError(
                f"column {self.column!r} holds {names[there]}, but {self.model.label} embeds {names[kind]} here; "
                f"name a column of {names[kind]}, or another model"
            )
        return kind

    def _is_folder_text(self, kind: str) -> bool:
        return kind == "text" and self.model.kind in ("hub", "folder")

    def _plan(self) -> TextPlan:
        from hf_prune.networks.plan import text_plan

        return text_plan(self.model, self.pooling, self.normalize, self.max_length, self.prompt_name)

    def _text_encoder(self, rank: int | None) -> Any:
        from hf_prune.networks.text import text_encoder

        return text_encoder(self.model, self._plan(), rank, self.micro_batch)

    def _encoder(self, kind: str, rank: int | None) -> Any:
        if self.model.kind in ("hub", "folder"):
            from hf_prune.networks.image import ImageEncoder

            return ImageEncoder(self.model, self.pooling, self.normalize, rank, self.micro_batch)
        from hf_prune.networks.module import ModuleEncoder

        return ModuleEncoder(self.model, kind, self.pooling, self.normalize, rank, self.micro_batch)

    def _texts(self, batch: Batch) -> tuple[list[str], dict[int, str], bool]:
        columns = [self.column] if isinstance(self.column, str) else list(self.column)
        return read_texts(batch, columns, self.join, self._template())

    def _template(self) -> Any:
        """Renders a chat by the tokenizer's template, if there is one."""
        if self.model.kind not in ("hub", "folder") or self._plan().route in ("static", "package"):
            return None
        from hf_prune.networks.text import chat_template

        return chat_template(self.model, self._plan())

    def _pictures(self, batch: Batch) -> list[Any]:
        from hf_prune.networks.image import read_pictures

        return read_pictures(batch, str(self.column))


def _paths(batch: Batch, path: str) -> bool:
    """Whether the strings of a column are places of files."""
    values = read_column(batch, path)
    values = values.to_pylist() if isinstance(values, pa.Array) else values
    first = next((v for v in values if isinstance(v, str)), "")
    return "://" in first or os.path.isfile(first)


def held(batch: Batch, path: str) -> str | None:
    """Whether a column holds texts (chats too) or pictures; None if all its rows are null."""
    values = read_column(batch, path)
    if isinstance(values, pa.Array):
        kind = values.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return "text"
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return "image"
        if pa.types.is_struct(kind) and {"bytes", "path"} <= {f.name for f in kind}:
            return "image"
        if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
            return "text"
        values = values.to_pylist()
    first = next((v for v in values if v is not None), None)
    if first is None:
        return None
    if isinstance(first, str):
        return "text"
    if isinstance(first, (list, tuple, np.ndarray)) and (len(first) == 0 or isinstance(first[0], Mapping)):
        return "text"
    is_array = getattr(first, "ndim", 1) >= 2 or isinstance(first, list)
    if isinstance(first, (bytes, Mapping)) or hasattr(first, "convert") or is_array:
        return "image"
    raise TypeError(f"column {path!r} holds {type(first).__name__}, neither texts nor pictures; name another column")
