"""Hashed n-grams of texts: the definition in plain Python, and the same from Arrow's buffers in one compiled pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hf_prune.data.batch import Batch
from hf_prune.data.texts import NULL, read_column, read_texts
from hf_prune.data.utf8 import string_array
from hf_prune.data.words import character_table, sign_runs

HASHES = ("sha256", "fast")
PIECE = 1 << 19  # bytes of text that one call of the kernel hashes
MOST_BUCKETS = 1 << 28
MOST_ORDERS = 32
_SIGMA = "\u03a3"  # its lower case depends on its neighbours
_WORD_64 = (1 << 64) - 1
_STEP, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

R = TypeVar("R")


def tokens_of(text: str, words: str = "unicode") -> list[str]:
    """Word-punct tokens: words and runs of signs of the lower-cased text, cut by a rule of `words.sign_runs`.

    >>> tokens_of("Don't stop")
    ['don', "'", 't', 'stop']
    """
    return sign_runs(text.lower(), words)


def bucket_of(tokens: Sequence[str], buckets: int, hash: str = "sha256") -> int:
    """Bucket of one n-gram.

    Args:
        tokens: of the n-gram.
        buckets: their number m.
        hash: "sha256": SHA-256 of the tokens joined by one space, a big-endian number modulo m.
            "fast", with constants of splitmix64: a token's UTF-8 with 0x80 behind it and zeros to a multiple of 8 bytes
            is read as little-endian words w; h = (h ^ w) * 0xbf58476d1ce4e5b9, h ^= h >> 32. Tokens are combined as
            c = c * 0x9e3779b97f4a7c15 + h; of c mixed by splitmix64's finalizer, the upper 32 bits times m, shifted
            right by 32.

    >>> bucket_of(["hello"], 10_000), bucket_of(["hello", "world"], 10_000)
    (7620, 1529)
    """
    if hash == "sha256":
        return int.from_bytes(hashlib.sha256(" ".join(tokens).encode()).digest()) % buckets
    combined = 0
    for token in tokens:
        raw, h = token.encode() + b"\x80", 0
        for i in range(0, len(raw), 8):
            h = ((h ^ int.from_bytes(raw[i : i + 8], "little")) * _MIX_1) & _WORD_64
            h ^= h >> 32
        combined = (combined * _STEP + h) & _WORD_64
    x = (combined + _STEP) & _WORD_64
    x = ((x ^ (x >> 30)) * _MIX_1) & _WORD_64
    x = ((x ^ (x >> 27)) * _MIX_2) & _WORD_64
    return ((x ^ (x >> 31)) >> 32) * buckets >> 32


def ngram_buckets(text: str, ngram: int, buckets: int, hash: str = "sha256", words: str = "unicode") -> list[int]:
    """Buckets of all n-grams of orders 1 to `ngram`, in the order of their last tokens: what the kernel computes.

    >>> ngram_buckets("a b", 2, 8)
    [3, 5, 5]
    """
    tokens = tokens_of(text, words)
    return [
        bucket_of(tokens[i - order : i + 1], buckets, hash)
        for i in range(len(tokens))
        for order in range(min(ngram, i + 1))
    ]


class Hashed(NamedTuple):
    """N-grams of some rows: (k,) bucket ids, where those of each row end, and the rows' numbers of tokens."""

    ids: NDArray[np.int32]
    stops: NDArray[np.int64]
    tokens: NDArray[np.int32]


def hash_texts(
    texts: pa.LargeStringArray,
    ngram: int,
    buckets: int,
    hash: str,
    use: Callable[[int, Hashed], R],
    who: str,
    words: str = "unicode",
) -> list[R]:
    """Hash rows piece by piece, in the threads there are, and hand each piece on.

    Args:
        texts: (n,) without nulls.
        ngram, buckets, hash: as in `ngram_buckets`.
        use: called with the first row of a piece and its n-grams, in any thread.
        who: who reads, for the message.
        words: how tokens are cut, as in `tokens_of`.

    Returns:
        What `use` gave, in the order of the rows. A thread holds up to about `(19 + 4 * ngram)` bytes for each byte of
        its piece (half a megabyte, or one row), most of it untouched.

    Raises:
        ValueError: a row is no UTF-8.
    """
    from hf_prune.numerics.compiled import in_threads
    from hf_prune.scorers import _kernels

    texts = _sigmas_lowered(texts)
    data, offsets = _buffers(texts)
    table = character_table(words)
    powers = np.array([pow(2, 32 * (7 - j), buckets) for j in range(8)], np.uint64)

    def one(piece: tuple[int, int]) -> R:
        first, end = piece
        at = offsets[first : end + 1]
        longest, size = int(np.diff(at).max(initial=0)), int(at[-1] - at[0])
        text = np.empty(3 * longest + 64, np.uint8)
        starts, ends = np.empty(longest + 2, np.int64), np.empty(longest + 2, np.int64)
        ids, tokens, stops = (
            np.empty(ngram * size, np.int32),
            np.empty(end - first, np.int32),
            np.empty(end - first, np.int64),
        )
        bad = _kernels.hash_ngrams(
            data, at, table, ngram, np.uint64(buckets), powers, hash == "fast", text, starts, ends, ids, tokens, stops
        )
        if bad >= 0:
            raise ValueError(
                f"{who}: the text of row {first + bad} of this batch is not valid UTF-8; decode the bytes with the "
                "right encoding first"
            )
        return use(first, Hashed(ids[: stops[-1] if len(stops) else 0], stops, tokens))

    return in_threads(one, list(_pieces(offsets)))


def utf8(batch: Batch, columns: Sequence[str]) -> tuple[pa.LargeStringArray, NDArray[np.bool_]]:
    """Rows as UTF-8 without nulls (they become empty), and which were null; a stored text column is not copied.

    Raises:
        TypeError: a row is neither text nor a chat.
        ValueError: a text with half a surrogate pair, which has no UTF-8.
    """
    values = read_column(batch, columns[0]) if len(columns) == 1 else None
    if isinstance(values, pa.Array) and pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if isinstance(values, pa.Array) and _is_text(values.type):
        null = np.asarray(pc.is_null(values).to_numpy(zero_copy_only=False))
        if values.null_count:
            values = values.cast(pa.large_string()).fill_null("")
        return values.cast(pa.large_string()), null
    texts, bad, _ = read_texts(batch, columns)
    null = np.zeros(len(texts), bool)
    null[[row for row, why in bad.items() if why == NULL]] = True
    return string_array(texts, batch.who), null


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _sigmas_lowered(texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """The texts, lower-cased by Python where they hold a capital sigma: at the end of a word it becomes another."""
    held = pc.match_substring(texts, _SIGMA)
    if not pc.any(held).as_py():
        return texts
    return pc.replace_with_mask(texts, held, pa.array([t.lower() for t in texts.filter(held).to_pylist()], texts.type))


def _buffers(texts: pa.LargeStringArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    _, offsets, data = texts.buffers()
    if not len(texts) or data is None:
        return np.zeros(0, np.uint8), np.zeros(len(texts) + 1, np.int64)
    return np.frombuffer(data, np.uint8), np.frombuffer(offsets, np.int64, len(texts) + 1, 8 * texts.offset)


def _pieces(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of rows of about PIECE bytes, at least one row each."""
    first, n = 0, len(offsets) - 1
    while first < n:
        end = max(first + 1, int(np.searchsorted(offsets, offsets[first] + PIECE, "right")) - 1)
        yield first, min(end, n)
        first = end
