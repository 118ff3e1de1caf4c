"""Perplexity: how likely a text is to a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from hf_prune.columns import ScoreColumn
from hf_prune.data.batch import Batch
from hf_prune.data.texts import check_bad, read_texts
from hf_prune.networks import causal
from hf_prune.networks.prefix import shortened
from hf_prune.scorer import Scorer

if TYPE_CHECKING:
    import torch

COMPANIONS = {
    "perplexity": "exp of minus the mean log-likelihood a token",
    "bits_per_byte": "bits a UTF-8 byte of the text that is predicted: comparable across tokenizers",
    "n_tokens": "tokens that are predicted",
}


def perplexity(log_likelihood: np.ndarray) -> np.ndarray:
    """Perplexity of mean natural log-likelihoods a token.

    >>> perplexity(np.log([0.7, 0.8, 0.25]).mean()).round(6)
    np.float64(1.925857)
    """
    return np.asarray(np.exp(-log_likelihood))


def bits_per_byte(log_likelihood_sum: np.ndarray, n_bytes: np.ndarray) -> np.ndarray:
    """Bits a byte from summed natural log-likelihoods.

    >>> bits_per_byte(np.log([0.7, 0.8, 0.25]).sum(), np.array(10)).round(6)
    np.float64(0.28365)
    """
    return np.asarray(-log_likelihood_sum / np.log(2.0) / n_bytes)


class _Texts(NamedTuple):
    """Tokens of each row with what starts them, bytes that are predicted, and rows that cannot be scored."""

    sequences: list[list[int]]
    n_bytes: np.ndarray
    bad: dict[int, str]


@dataclass(frozen=True, eq=False)
class Perplexity(Scorer):
    """Mean natural log-likelihood a token under a causal language model. High = likely = keep.

    Text that repeats itself is very likely too, and short texts scatter: look at both ends, and try
    `filter_by_score(..., prefer="middle")`, which the source found best.

    The start: the tokenizer's BOS token is put before each text that does not begin with it, and is itself not
    predicted. A tokenizer without one leaves the first token of a text as context only. No end token is added. In
    chats through the template all tokens after the first are predicted, those of the template too.

    A text of more tokens than `context` is read in windows, in which each token is predicted exactly once, all but
    the first `context` of them from at least `context - stride + 1` tokens before. The score does not depend on the
    batch, its order or the tokenizer's padding side (float32: to 1e-5; bfloat16 rounds logits to 3 digits and its last
    ones follow the shape of the pass).

    Args:
        model: a `Model`, a name on the Hub, a folder, `package.module:factory`, or a live `nn.Module`.
        text: column of texts or chats (`[{"role", "content"}]`), several columns, or a field as `column.field`.
        context: tokens the network reads at once; None for its own limit, at most 2048.
        stride: new tokens a window; None for half the context. `context` is cheapest, small ones cost
            `context / stride` as much.
        max_tokens: score only so many tokens of each text, the first.
        bos: True, False, or None for "if the tokenizer has one".
        chat: "template", "plain" (lines of `role: content`), or "auto": the template if there is one.
        perplexity: write `perplexity`.
        bits_per_byte: write `bits_per_byte`.
        n_tokens: write `n_tokens`, what `filter_by_score(budget=..., cost="n_tokens")` reads.
        join: between several columns.
        on_bad: "raise", or "nan" for NaN where a text is null, empty, or has no token to predict.
        micro_batch: tokens a forward pass, padding counted; None for what suits the device. Only speed and memory.
        tokenizer: folder or Hub name (or `Model`) of the tokenizer, where the model has none with it.
        name: column. Under another name than the default, the other columns are called `<name>_perplexity` and so on.
        dtype: of weights and activations: "float32", "bfloat16" or "float16"; softmax is in float32 always.
        revision: of a model on the Hub.

    Raises:
        ValueError: a text without a token to predict; a model that is not causal; a missing template or BOS token.

    Reference: Wenzek et al., 2020, arXiv 1911.00359; Marion et al., 2023, arXiv 2309.04564.

    >>> Perplexity("no/such/folder")
    Traceback (most recent call last):
    ...
    FileNotFoundError: model 'no/such/folder' does not exist; give a folder, a name on the Hub, or ...
    """

    version: ClassVar[int] = 2
    paper: ClassVar[str] = "Marion et al., When Less is More, arXiv 2309.04564; Wenzek et al., CCNet, arXiv 1911.00359"
    meaning: ClassVar[str] = "likely to the language model: fluent, familiar, or repetitive"
    atol: ClassVar[float] = 1e-4  # sums of products differ in their last bits with the shape of a pass

    model: Any
    text: str | Sequence[str] = "text"
    _: KW_ONLY
    context: int | None = None
    stride: int | None = None
    max_tokens: int | None = None
    bos: bool | None = None
    chat: str = "auto"
    perplexity: bool = False
    bits_per_byte: bool = False
    n_tokens: bool = False
    join: str = " "
    on_bad: str = "raise"
    micro_batch: int | None = None
    tokenizer: Any = None
    name: str = "log_likelihood"
    dtype: InitVar[str | None] = None
    revision: InitVar[str | None] = None

    def __post_init__(self, dtype: str | None, revision: str | None) -> None:
        model = causal.as_model(self.model, dtype, revision)
        object.__setattr__(self, "model", model)
        if self.tokenizer is not None:
            object.__setattr__(self, "tokenizer", causal.as_model(self.tokenizer, None, None))
        if not isinstance(self.text, str):
            object.__setattr__(self, "text", tuple(self.text))
        self.check_fields()
        causal.check_causal(model)
        tokenizer = causal.tokenizer_of(model, self.tokenizer)
        context = causal.context_of(model, tokenizer, self.context)
        if self.stride is not None and self.stride > context:
            raise ValueError(f"stride={self.stride} would skip tokens: windows have {context}; lower it")
        if self.bos and tokenizer.bos_token_id is None:
            raise ValueError(f"bos=True, but the tokenizer of {model.label} has no BOS token; leave bos out")
        causal.chat_renderer(tokenizer, model.label, self.chat)

    def check_fields(self) -> None:
        causal.check_options(self, ("context", "stride", "max_tokens", "micro_batch"))

    @property
    def nan_rows(self) -> bool:  # type: ignore[override]
        """Whether rows without a token to predict get NaN."""
        return self.on_bad == "nan"

    def columns(self) -> dict[str, str]:
        kinds = {"perplexity": "float32", "bits_per_byte": "float32", "n_tokens": "int32"}
        return {self.name: "float32"} | {self._column(what): kinds[what] for what in self._wanted()}

    def companions(self) -> dict[str, str]:
        return {self._column(what): COMPANIONS[what] for what in self._wanted()}

    def describe(self) -> ScoreColumn:
        bos, context, stride = self._bos(), *self._window()
        tokenizer = self._tokenizer()
        start = "the BOS token, not predicted, comes first" if bos is not None else "the first token is not predicted"
        chats = "the chat template" if self._renderer() else "lines of `role: content`"
        cut = f"; the first {self.max_tokens} tokens" if self.max_tokens else ""
        raw = (
            f"mean over predicted tokens of the natural log of their probability; {start}{cut}; windows of {context} "
            f"tokens, {stride} new in each; chats as {chats}; {self.model.dtype}, softmax in float32; perplexity is "
            "exp(-column)" + ("; NaN where nothing can be predicted" if self.nan_rows else "")
        )
        facts = {"bos_token": None if bos is None else tokenizer.bos_token, "context": context, "stride": stride}
        found = super().describe()
        return replace(found, raw=raw, params={**found.params, **facts})

    def score(self, batch: Batch, rank: int | None) -> Any:
        from hf_prune.networks.torch_causal import log_likelihood_sums, network_of

        texts = self._texts(batch)
        check_bad(texts.bad, self.text, self.on_bad)
        network = network_of(self.model, rank, len(self._tokenizer()))
        spans = self._spans(texts)
        budget, multiple = self._limits(network.device)
        found = log_likelihood_sums(network, texts.sequences, spans, budget, multiple)
        owners = np.array([text for text, _ in spans], np.int64)
        sums = np.bincount(owners, found, minlength=batch.n)[: batch.n]
        counts = np.array([max(len(s) - 1, 0) for s in texts.sequences], np.int64)
        counts[list(texts.bad)] = 0
        lost = np.flatnonzero(~np.isfinite(sums))
        if len(lost):
            raise ValueError(
                f"column {self.text!r}: row {int(lost[0])} of this batch got numbers that are not finite from "
                f"{self.model.label} in {self.model.dtype}; use dtype='float32' or 'bfloat16'"
            )
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(counts > 0, sums, np.nan) / counts
            columns = {
                "perplexity": perplexity(mean),
                "bits_per_byte": bits_per_byte(np.where(counts > 0, sums, np.nan), texts.n_bytes),
                "n_tokens": counts,
            }
        return {self.name: mean} | {self._column(what): columns[what] for what in self._wanted()}

    def cost(self, batch: Batch) -> float:
        """Operations of the forward passes, counted by torch at two lengths and scaled to the windows."""
        spans = [span for _, span in self._spans(self._texts(batch))]
        read = np.array([span.end - 1 - span.begin for span in spans])
        return causal.cost_of(self.model).of(read, sum(span.end - span.first for span in spans))

    def _wanted(self) -> list[str]:
        return [what for what in COMPANIONS if getattr(self, what)]

    def _column(self, what: str) -> str:
        return what if self.name == "log_likelihood" else f"{self.name}_{what}"

    def _tokenizer(self) -> Any:
        return causal.tokenizer_of(self.model, self.tokenizer)

    def _renderer(self) -> Any:
        return causal.chat_renderer(self._tokenizer(), self.model.label, self.chat)

    def _bos(self) -> int | None:
        return None if self.bos is False else self._tokenizer().bos_token_id

    def _window(self) -> tuple[int, int]:
        context = causal.context_of(self.model, self._tokenizer(), self.context)
        return context, self.stride or max(1, context // 2)

    def _spans(self, texts: _Texts) -> list[tuple[int, causal.Span]]:
        context, stride = self._window()
        return [
            (row, span)
            for row, ids in enumerate(texts.sequences)
            if row not in texts.bad
            for span in causal.window_spans(len(ids), context, stride)
        ]

    def _texts(self, batch: Batch) -> _Texts:
        columns = [self.text] if isinstance(self.text, str) else list(self.text)
        texts, bad, _ = read_texts(batch, columns, self.join, self._renderer())
        tokenizer, bos = self._tokenizer(), self._bos()
        texts = shortened(tokenizer, texts, self.max_tokens)
        sequences = causal.token_ids(tokenizer, texts)
        n_bytes = np.zeros(len(texts), np.int64)
        for row, (text, ids) in enumerate(zip(texts, sequences, strict=True)):
            starts = bos is not None and ids[:1] != [bos]
            whole = len(ids)
            del ids[self.max_tokens if self.max_tokens is not None else whole :]
            if self.bits_per_byte:
                n_bytes[row] = predicted_bytes(tokenizer, text, len(ids), whole, 0 if starts else 1)
            if starts:
                assert bos is not None
                ids.insert(0, bos)
            if len(ids) < 2 and row not in bad:
                bad[row] = f"has {len(ids)} token{'s' * (len(ids) != 1)}, none of which can be predicted"
        return _Texts(sequences, n_bytes, bad)

    def _limits(self, device: torch.device) -> tuple[int, int]:
        """Tokens a pass, and what lengths are rounded up to."""
        if device.type != "cpu":
            return self.micro_batch or 16384, 8
        return self.micro_batch or 2048, 1 if self.model.dtype == "float32" else 8


def predicted_bytes(tokenizer: Any, text: str, tokens: int, whole: int, unpredicted: int) -> int:
    """UTF-8 bytes of what is predicted: all of the text, less the first token if it is context, up to where it is cut.

    Raises:
        ValueError: a part of the text is asked for, and the tokenizer does not say where its tokens lie.
    """
    if not unpredicted and tokens == whole or not text or not tokens:
        return len(text.encode())
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not say which bytes its tokens stand for; leave bits_per_byte out, or "
            "leave out max_tokens and use a tokenizer with a BOS token"
        )
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    begin = places[0][1] if unpredicted else 0
    end = len(text) if tokens == whole else places[tokens - 1][1]
    return len(text[begin:end].encode())
