"""Ask-LLM: a language model is asked whether a text is worth training on; the score is how likely it says yes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from hf_prune.columns import ScoreColumn
from hf_prune.data.batch import Batch
from hf_prune.data.texts import check_bad, read_texts
from hf_prune.networks import causal
from hf_prune.networks.prefix import shortened
from hf_prune.scorer import Scorer

NORMALISE = ("full", "two_way")
YES = ("yes", "Yes", "YES", " yes", " Yes", " YES")
NO = ("no", "No", "NO", " no", " No", " NO")
MARK = "HFPRUNEPLACEOFTHETEXT"
PROMPT = (
    "Judge whether a text is worth training a language model on. A good text is well written, says something that can "
    "be learned about the world, and is not hateful or harmful.\n\nText:\n###\n{text}\n###\n\nIs this text worth "
    "training on? Answer with one word, yes or no."
)


def yes_probability(log_yes: np.ndarray, log_no: np.ndarray, normalise: str = "full") -> np.ndarray:
    """Probability of yes from log-probabilities over the whole vocabulary, each summed over its spellings.

    Args:
        log_yes, log_no: (n,).
        normalise: "full": `p_yes`. "two_way": `p_yes / (p_yes + p_no)`.

    >>> logits = np.array([2.0, 1.0, 0.5])
    >>> log_p = logits - np.log(np.exp(logits).sum())
    >>> [round(float(yes_probability(log_p[0], log_p[1], how)), 8) for how in NORMALISE]
    [0.62853172, 0.73105858]
    """
    return np.asarray(np.exp(log_yes) if normalise == "full" else 1 / (1 + np.exp(log_no - log_yes)))


class _Prompt(NamedTuple):
    """The question as tokens around a text, how many of the text fit, and the answers' tokens."""

    before: list[int]
    after: list[int]
    room: int
    yes: tuple[int, ...]
    no: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class AskLLM(Scorer):
    """Probability that an instruction-tuned model answers yes when asked about the text. High = yes = keep.

    The score is as good as the judge. Small models (SmolLM2-135M, say) answer much the same whatever they are shown:
    with these it shows that the plumbing works. Read the top and the bottom of the list before trusting it.

    The prompt is part of the score and of its provenance. It is cut at `{text}`; both halves and the text become
    tokens apart, so that the text can be cut by tokens and the first half is read once a batch (key-value cache).
    With a chat template the prompt is the user's turn and the answer begins the assistant's; without one the
    tokenizer's BOS token, if any, comes first and the answer follows the prompt.

    Args:
        model: a `Model`, a name on the Hub, a folder, `package.module:factory`, or a live `nn.Module`.
        text: column of texts or chats (as lines of `role: content`), several columns, or `column.field`.
        prompt: the question, with `{text}` once; other braces stand for themselves.
        normalise: "full": `p(yes)` over the whole vocabulary, as the source has it; low where the model would rather
            say something else. "two_way": `p(yes) / (p(yes) + p(no))`. The ranks differ.
        yes, no: spellings whose probabilities are added up; those that are not one token are left out.
        max_tokens: texts are cut after so many; None for what the context leaves.
        context: tokens for prompt and text; None for the model's own limit, at most 2048.
        chat: "template", "plain", or "auto": the template if there is one.
        answered: write `<name>_answered`, `p(yes) + p(no)`: near 0 the model did not answer the question.
        join: between several columns.
        on_bad: "raise", or "nan" for NaN where a text is null or empty.
        micro_batch: tokens a forward pass; None for what suits the device. Only speed and memory.
        tokenizer: folder or Hub name (or `Model`) of the tokenizer, where the model has none with it.
        name: column.
        dtype: "float32", "bfloat16" or "float16"; softmax is in float32 always.
        revision: of a model on the Hub.

    Raises:
        ValueError: an empty text; a prompt without `{text}` or too long; no spelling of yes or no that is one token; a
            model that is not causal; a missing template.

    Reference: Sachdeva et al., 2024, arXiv 2402.09668 (the idea and "full"; the prompt is worded by us).

    >>> AskLLM("no/such/folder")
    Traceback (most recent call last):
    ...
    FileNotFoundError: model 'no/such/folder' does not exist; give a folder, a name on the Hub, or ...
    """

    version: ClassVar[int] = 2
    paper: ClassVar[str] = "Sachdeva et al., How to Train Data-Efficient LLMs, arXiv 2402.09668"
    meaning: ClassVar[str] = "the judge says that the text is worth training on"
    atol: ClassVar[float] = 1e-5  # sums of products differ in their last bits with the shape of a pass

    model: Any
    text: str | Sequence[str] = "text"
    prompt: str = PROMPT
    normalise: str = "full"
    _: KW_ONLY
    yes: Sequence[str] = YES
    no: Sequence[str] = NO
    max_tokens: int | None = None
    context: int | None = None
    chat: str = "auto"
    answered: bool = False
    join: str = " "
    on_bad: str = "raise"
    micro_batch: int | None = None
    tokenizer: Any = None
    name: str = "ask_llm"
    dtype: InitVar[str | None] = None
    revision: InitVar[str | None] = None

    def __post_init__(self, dtype: str | None, revision: str | None) -> None:
        object.__setattr__(self, "model", causal.as_model(self.model, dtype, revision))
        if self.tokenizer is not None:
            object.__setattr__(self, "tokenizer", causal.as_model(self.tokenizer, None, None))
        if not isinstance(self.text, str):
            object.__setattr__(self, "text", tuple(self.text))
        for what in ("yes", "no"):
            given = getattr(self, what)
            object.__setattr__(self, what, (given,) if isinstance(given, str) else tuple(given))
        self.check_fields()
        causal.check_causal(self.model)
        self._prompt()

    def check_fields(self) -> None:
        causal.check_options(self, ("context", "max_tokens", "micro_batch"))
        if self.normalise not in NORMALISE:
            raise ValueError(f"normalise={self.normalise!r} is not one of {', '.join(NORMALISE)}")
        if self.prompt.count("{text}") != 1:
            raise ValueError(f"the prompt has {{text}} {self.prompt.count('{text}')} times; put it where the text goes")

    @property
    def nan_rows(self) -> bool:  # type: ignore[override]
        """Whether rows without text get NaN."""
        return self.on_bad == "nan"

    @property
    def raw(self) -> str:  # type: ignore[override]
        """What is computed, by the options."""
        how = "p(yes) over the whole vocabulary" if self.normalise == "full" else "p(yes) / (p(yes) + p(no))"
        nan = "; NaN where a text is empty" if self.nan_rows else ""
        return f"{how} at the first place of the answer, summed over spellings that are one token{nan}"

    def columns(self) -> dict[str, str]:
        return {self.name: "float32"} | ({f"{self.name}_answered": "float32"} if self.answered else {})

    def companions(self) -> dict[str, str]:
        line = "p(yes) + p(no) over the whole vocabulary; near 0 the model said something else"
        return {f"{self.name}_answered": line} if self.answered else {}

    def describe(self) -> ScoreColumn:
        found, ask, tokenizer = super().describe(), self._prompt(), self._tokenizer()
        facts = {
            "max_tokens": ask.room,
            "chat": "template" if self._templated() else "plain",
            "yes": [tokenizer.decode([i]) for i in ask.yes],
            "no": [tokenizer.decode([i]) for i in ask.no],
        }
        return replace(found, params={**found.params, **facts})

    def score(self, batch: Batch, rank: int | None) -> Any:
        from hf_prune.networks.torch_causal import answer_log_probabilities, network_of

        rows, bad, ask = self._rows(batch)
        check_bad(bad, self.text, self.on_bad)
        network = network_of(self.model, rank, len(self._tokenizer()))
        good = [row for row in range(batch.n) if row not in bad]
        both = np.full((batch.n, 2), np.nan)
        if good:
            budget = self.micro_batch or (2048 if network.device.type == "cpu" else 16384)
            both[good] = answer_log_probabilities(
                network, ask.before, [rows[row] for row in good], (ask.yes, ask.no), budget
            )
        if np.isnan(both[good]).any():
            row = good[int(np.flatnonzero(np.isnan(both[good]).any(1))[0])]
            raise ValueError(
                f"column {self.text!r}: row {row} of this batch got numbers that are not finite from "
                f"{self.model.label} in {self.model.dtype}; use dtype='float32' or 'bfloat16'"
            )
        score = yes_probability(both[:, 0], both[:, 1], self.normalise)
        return {self.name: score} | ({f"{self.name}_answered": np.exp(both).sum(1)} if self.answered else {})

    def cost(self, batch: Batch) -> float:
        """Operations of the forward passes, counted by torch at two lengths; the first half of the prompt once."""
        rows, bad, ask = self._rows(batch)
        lengths = np.array([len(row) for i, row in enumerate(rows) if i not in bad], np.int64)
        if not len(lengths):
            return 0.0
        cost, shared = causal.cost_of(self.model), np.array([len(ask.before)])
        return cost.of(lengths + shared, len(lengths)) - (len(lengths) - 1) * cost.of(shared, 0)

    def _tokenizer(self) -> Any:
        return causal.tokenizer_of(self.model, self.tokenizer)

    def _templated(self) -> bool:
        return causal.chat_renderer(self._tokenizer(), self.model.label, self.chat) is not None

    def _rows(self, batch: Batch) -> tuple[list[list[int]], dict[int, str], _Prompt]:
        columns = [self.text] if isinstance(self.text, str) else list(self.text)
        texts, bad, _ = read_texts(batch, columns, self.join)
        ask, tokenizer = self._prompt(), self._tokenizer()
        texts = shortened(tokenizer, texts, ask.room)
        return [ids[: ask.room] + ask.after for ids in causal.token_ids(tokenizer, texts)], bad, ask

    def _prompt(self) -> _Prompt:
        tokenizer, label = self._tokenizer(), self.model.label
        head, tail = self.prompt.split("{text}")
        render = causal.chat_renderer(tokenizer, label, self.chat, add_generation_prompt=True)
        if render is not None:
            parts = render([{"role": "user", "content": f"{head}{MARK}{tail}"}]).split(MARK)
            if len(parts) != 2:
                raise ValueError(
                    f"the chat template of {label} does not repeat the user's turn once; pass chat='plain'"
                )
            head, tail = parts
        before, after = causal.token_ids(tokenizer, [head, tail])
        bos = tokenizer.bos_token_id
        if bos is not None and before[:1] != [bos]:
            before = [bos, *before]
        room = causal.context_of(self.model, tokenizer, self.context) - len(before) - len(after)
        if room < max(1, self.max_tokens or 1):
            raise ValueError(
                f"the prompt has {len(before) + len(after)} tokens and leaves {room} of the context of {label} for a "
                f"text, not {self.max_tokens or 1}; shorten it, raise context, or lower max_tokens"
            )
        yes, no = (self._answers(tokenizer, what) for what in ("yes", "no"))
        if both := set(yes) & set(no):
            raise ValueError(f"yes and no share the token {tokenizer.decode([min(both)])!r}; spell them apart")
        return _Prompt(before, after, min(room, self.max_tokens or room), yes, no)

    def _answers(self, tokenizer: Any, what: str) -> tuple[int, ...]:
        spellings = list(getattr(self, what))
        found = {ids[0] for ids in causal.token_ids(tokenizer, spellings) if len(ids) == 1}
        found.discard(tokenizer.unk_token_id)
        if not found:
            raise ValueError(
                f"none of {what}={spellings} is one token of the vocabulary of {self.model.label}; pass {what}=(...) "
                "with a word that is, and ask for it in the prompt"
            )
        return tuple(sorted(found))
