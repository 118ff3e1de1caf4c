"""As much of a long text as its first tokens depend on: of 5 MB of which 512 tokens are read few are tokenised."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

CHARACTERS = 16  # that a token has at most, as a first guess; where it has more, more of the text is looked at
MARKS = " ▁Ġ"  # what stands for a space in vocabularies
WORDS, GAPS = 3, 2  # that must follow what is kept, within what was looked at

_CONFINED: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def shortened(tokenizer: Any, texts: Sequence[str], most: int | None) -> list[str]:
    """The texts, long ones cut where that changes none of their first `most` tokens.

    A prefix is tokenised, and taken if its first `most` tokens are followed by `WORDS` more words (pieces of the
    pre-tokenizer, which are tokenised apart) and `GAPS` spaces between words: pre-tokenizers and normalizers look no
    farther ahead than to the next word. Where the pre-tokenizer makes one piece of everything (SentencePiece of Llama),
    tokens are confined by spaces if no token of the vocabulary has one inside; else, and where a text has no spaces,
    the whole text is taken.

    Args:
        tokenizer: of transformers or of the package tokenizers.
        texts: the texts.
        most: tokens that are read of each, special ones counted or not; None for all.

    Returns:
        Prefixes of the texts, for the same tokenizer; those that are cut have more than `most` tokens.
    """
    texts = list(texts)
    size = 0 if most is None else CHARACTERS * (most + CHARACTERS)
    if most is None or all(len(text) <= 2 * size for text in texts):
        return texts
    encode = _encoder(tokenizer)
    if encode is None:
        return texts
    waiting = [row for row, text in enumerate(texts) if len(text) > 2 * size]
    while waiting:
        prefixes = [texts[row][:size] for row in waiting]
        found = zip(waiting, prefixes, encode(prefixes), strict=True)
        cut = {row: prefix for row, prefix, tokens in found if _settled(tokenizer, tokens, prefix, most)}
        for row, prefix in cut.items():
            texts[row] = prefix
        size *= 4
        waiting = [row for row in waiting if row not in cut and len(texts[row]) > 2 * size]
    return texts


def _encoder(tokenizer: Any) -> Callable[[list[str]], list[Any]] | None:
    """What gives the tokens of texts with words and places; None where they cannot be had, or are cut elsewhere."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if hasattr(tokenizer, "encode_batch"):
        backend = tokenizer
    if backend is None or getattr(tokenizer, "truncation_side", "right") != "right":
        return None
    if any(re.search(r"\s", token.content) for token in backend.get_added_tokens_decoder().values()):
        return None  # such a token could begin before the cut and end behind it
    if backend is tokenizer:
        return lambda texts: list(tokenizer.encode_batch(texts, add_special_tokens=False))
    return lambda texts: list(tokenizer(texts, add_special_tokens=False, verbose=False).encodings)


def _settled(tokenizer: Any, tokens: Any, prefix: str, most: int) -> bool:
    """Whether the first `most` + 1 tokens of a prefix are those of every text that begins so."""
    words, places = tokens.word_ids, tokens.offsets
    if len(words) <= most:
        return False
    last = most
    while last + 1 < len(words) and words[last + 1] == words[most]:
        last += 1
    if words[-1] - words[most] >= WORDS and len(re.findall(r"\S\s", prefix[places[last][1] :])) >= GAPS:
        return True
    return len(re.findall(r"[^\s▁] ", prefix[places[most][1] :])) >= GAPS and _confined(tokenizer)


def _confined(tokenizer: Any) -> bool:
    """Whether no token of the vocabulary has a space behind something else, so that words are tokenised apart."""
    if tokenizer not in _CONFINED:
        vocabulary = tokenizer.get_vocab()
        alone = any(mark in vocabulary for mark in MARKS)
        _CONFINED[tokenizer] = alone and not any(set(MARKS) & set(piece.lstrip(MARKS)) for piece in vocabulary)
    return _CONFINED[tokenizer]
