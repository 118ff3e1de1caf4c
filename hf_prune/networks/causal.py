"""Causal language models for scorers: checks, windows, chats and costs, before any torch is imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hf_prune.models import Model, cached
from hf_prune.networks.plan import config_of, has_tokenizer

HEAD = "AutoModelForCausalLM"
CONTEXT = 2048  # attention grows with the square: what a model could read at once is no good default
CHATS = ("auto", "template", "plain")


class Span(NamedTuple):
    """A window over tokens: the network reads `begin .. end - 2` and predicts `first .. end - 1`."""

    begin: int
    first: int
    end: int


def window_spans(length: int, context: int, stride: int) -> list[Span]:
    """Cut a sequence into windows in which each token but the first is predicted exactly once.

    Window `k` begins at token `k * stride`. The first predicts `context` tokens, each later one the next `stride`,
    from at least `context - stride + 1` tokens before.

    Args:
        length: tokens, the one that starts the text included.
        context: tokens that the network reads at once.
        stride: new tokens a window, 1 to `context`.

    >>> window_spans(8, context=4, stride=2)
    [Span(begin=0, first=1, end=5), Span(begin=2, first=5, end=7), Span(begin=4, first=7, end=8)]
    """
    spans: list[Span] = []
    reached = 1
    while reached < length:
        begin = len(spans) * stride
        spans.append(Span(begin, reached, min(begin + context + 1, length)))
        reached = spans[-1].end
    return spans


def as_model(model: Any, dtype: str | None, revision: str | None) -> Model:
    """Take a `Model`, a name, a folder or a live network, with what was said beside it."""
    given = {name: value for name, value in (("dtype", dtype), ("revision", revision)) if value is not None}
    options: dict[str, Any] = dict(given)
    if isinstance(model, Model):
        return replace(model, **options) if options else model
    return Model.of(model, **options)


def check_options(scorer: Any, counts: Sequence[str]) -> None:
    """Check the options that these scorers share.

    Raises:
        ValueError: an unknown word, or a number that is no count.
    """
    for what in ("model", "tokenizer"):
        if (held := getattr(scorer, what)) is not None and not isinstance(held, Model):
            raise ValueError(f"{what}={held!r} is no Model")
    for what, allowed in (("chat", CHATS), ("on_bad", ("raise", "nan"))):
        if (value := getattr(scorer, what)) not in allowed:
            raise ValueError(f"{what}={value!r} is not one of {', '.join(allowed)}")
    for what in counts:
        number = getattr(scorer, what)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ValueError(f"{what}={number!r} is no positive whole number; leave it out for the model's own")
    if not scorer.text:
        raise ValueError(f"text={scorer.text!r}: name one column, or several")


def tokenizer_of(model: Model, other: Model | None = None) -> Any:
    """The tokenizer of a model, or of the folder that was named for it.

    Raises:
        ValueError: there is none.
    """
    home = other or model
    if home.kind not in ("hub", "folder") or not has_tokenizer(home.folder()):
        raise ValueError(
            f"{home.label} comes without a tokenizer; pass tokenizer='a folder or Hub name' that has the one it was "
            "trained with"
        )
    return home.processor()


def check_causal(model: Model) -> None:
    """Refuse a folder that says itself that it predicts no next token.

    Raises:
        ValueError: an encoder, an encoder with a decoder, or no language model.
    """
    if model.kind not in ("hub", "folder"):
        return
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    config = config_of(model)
    kind = config.model_type
    remote = HEAD in (getattr(config, "auto_map", None) or {})
    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(config, "is_decoder", True) is False
    what = None
    if getattr(config, "is_encoder_decoder", False):
        what = "an encoder with a decoder"
    elif encoder:
        what = "an encoder, which reads in both directions"
    elif kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not remote:
        what = "no language model of the causal kind"
    if what:
        raise ValueError(
            f"{model.label} ({kind}) is {what}: it gives no probability of the next token; name a causal language "
            "model, such as GPT-2, Llama or Qwen"
        )


def context_of(model: Model, tokenizer: Any, wanted: int | None) -> int:
    """Tokens that the network reads at once: what was asked for, else its own limit, at most `CONTEXT`.

    Raises:
        ValueError: more than the network has positions for.
    """
    limits = [int(tokenizer.model_max_length)]
    if model.kind in ("hub", "folder"):
        positions = getattr(config_of(model).get_text_config(), "max_position_embeddings", None)
        limits += [positions] if isinstance(positions, int) and positions > 0 else []
    if wanted is None:
        return min(*limits, CONTEXT)
    if len(limits) > 1 and wanted > limits[1]:
        raise ValueError(f"context={wanted} is more than the {limits[1]} positions of {model.label}; lower it")
    return wanted


def chat_renderer(
    tokenizer: Any, label: str, chat: str, **options: Any
) -> Callable[[list[dict[str, Any]]], str] | None:
    """Renders chats by the tokenizer's template; None where they become lines of `role: content`.

    Raises:
        ValueError: the template is demanded and there is none, or it refuses a chat.
    """
    if chat == "plain" or (chat == "auto" and not tokenizer.chat_template):
        return None
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {label} has no chat template, which chat='template' demands; name a chat model, or "
            "pass chat='plain' for lines of `role: content`"
        )

    def render(turns: list[dict[str, Any]]) -> str:
        from jinja2.exceptions import TemplateError

        try:
            return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
        except TemplateError as error:
            roles = [turn.get("role") for turn in turns]
            raise ValueError(f"the chat template of {label} refuses a chat of the roles {roles}: {error}") from error

    return render


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of each text as they are: nothing put before or after, nothing cut."""
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return list(found["input_ids"])


class Cost(NamedTuple):
    """Operations of a row of t tokens: `linear * t + square * t**2`, and `head` for each place that is predicted."""

    linear: float
    square: float
    head: float

    def of(self, lengths: np.ndarray, predicted: float) -> float:
        """Of rows of these lengths, with so many predicted places among them."""
        t = np.asarray(lengths, np.float64)
        return float(self.linear * t.sum() + self.square * (t * t).sum() + self.head * predicted)


def cost_of(model: Model) -> Cost:
    """Count a model's operations, on a network without weights where the folder describes one."""

    def count() -> Cost:
        import torch

        from hf_prune.networks.torch_passes import count_flops

        if model.kind in ("hub", "folder"):
            import transformers

            build: Any = transformers.AutoModelForCausalLM.from_config
            with torch.device("meta"):
                network = build(
                    config_of(model), attn_implementation="eager", trust_remote_code=model.trust_remote_code
                ).eval()
        else:
            network = model.load(device="cpu")
        device = next(network.parameters()).device
        base = getattr(network, "base_model", network)
        lengths = (8, 24)
        inputs = [torch.ones((1, length), dtype=torch.int64, device=device) for length in lengths]
        (s, t), (f, g) = lengths, [count_flops(partial(base, ids)) for ids in inputs]
        square = (g / t - f / s) / (t - s)
        head = (count_flops(partial(network, inputs[1])) - g) / t
        return Cost(f / s - square * s, square, head)

    return cached(("causal cost", model.digest), count, light=True)
