"""Similarities for the Vendi Score: n-grams of texts, pixels of images, a model, a function of two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from hf_prune.checks import warn
from hf_prune.data.words import tokens as tokens_of


def words(text: str) -> list[str]:
    """Words and single punctuation marks, case kept.

    >>> words("Jane sees Spot run.")
    ['Jane', 'sees', 'Spot', 'run', '.']
    """
    return tokens_of(text, "token", lower=False)


def ngram_kernel(
    texts: Sequence[str], *, ns: Sequence[int] = (1, 2, 3, 4), tokenize: Callable[[str], list[str]] = words
) -> np.ndarray:
    """Cosines of n-gram counts, the mean over the orders `ns`, (n, n) float64.

    A text of fewer than m tokens has no m-grams: the mean is scaled so that its similarity to itself is 1 all the
    same, and a warning says how many there are.

    Args:
        texts: n texts.
        ns: orders of the n-grams, 1 or more each.
        tokenize: function that splits a text into words; the published package uses NLTK's `word_tokenize`, which parts
            "don't" into two.

    Raises:
        TypeError: a row is no text.
        ValueError: a text without any token; an order below 1.

    >>> ngram_kernel(["See Spot.", "See Spot run."], ns=[1]).round(6).tolist()
    [[1.0, 0.866025], [0.866025, 1.0]]
    """
    if not len(ns) or any(m < 1 for m in ns):
        raise ValueError(f"ns={list(ns)!r} are not orders of n-grams; give whole numbers from 1")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"row {row} is {type(text).__name__}, not text; kernel='ngram' compares texts")
    tokens = [tokenize(text) for text in texts]
    empty = [row for row, found in enumerate(tokens) if len(found) < min(ns)]
    if empty:
        raise ValueError(
            f"row {empty[0]} has {len(tokens[empty[0]])} tokens ({texts[empty[0]][:40]!r}) and so no n-grams of orders "
            f"{list(ns)}, as {len(empty)} of {len(tokens)} rows; drop such rows, or add order 1"
        )
    k = np.zeros((len(tokens), len(tokens)))
    for m in ns:
        _add_cosines(k, [Counter(zip(*(row[i:] for i in range(m)), strict=False)) for row in tokens])
    short = sum(len(row) < max(ns) for row in tokens)
    if short:
        warn(
            f"{short} of {len(tokens)} texts are shorter than {max(ns)} tokens and have no n-grams of that order; "
            "their similarities are means over fewer orders"
        )
    root = np.sqrt(np.diagonal(k))
    return np.asarray(k / np.outer(root, root))


def pixel_rows(images: Sequence[Any], *, size: int = 32) -> np.ndarray:
    """Images as RGB of `size` x `size` pixels, (n, 3 * size^2) float32.

    Args:
        images: n images, stored, or decoded in one of the ways that `decode_image` takes.
        size: number of pixels a side.

    Raises:
        ValueError: a row that is no readable image.
    """
    from hf_prune.networks.image import NULL, decode_image

    rows = np.empty((len(images), 3 * size * size), np.float32)
    for i, image in enumerate(images):
        try:
            if image is None:
                raise ValueError(NULL)
            rows[i] = np.asarray(decode_image(image).resize((size, size)), np.float32).reshape(-1)
        except ValueError as error:
            raise ValueError(f"row {i} {error}; kernel='pixel' compares images: drop such rows first") from error
    return rows


def embedding_rows(items: Sequence[Any], embedder: Any, *, batch_size: int = 256) -> np.ndarray:
    """Vectors (n, d) of an `Embedder`.

    Args:
        items: n texts or images.
        embedder: `Embedder` of one column.
        batch_size: number of items that are embedded at once.
    """
    if not isinstance(embedder.column, str):
        raise ValueError(
            f"the embedder reads {embedder.column}; embed the dataset first, then name its embedding column"
        )
    parts = [
        embedder({embedder.column: list(items[i : i + batch_size])})[embedder.name]
        for i in range(0, len(items), batch_size)
    ]
    return np.concatenate(parts) if parts else np.empty((0, embedder.width), np.float32)


def rbf_kernel(x: np.ndarray, *, sigma: float) -> np.ndarray:
    """exp(-||x_i - x_j||^2 / 2 sigma^2) of (n, d) rows, (n, n) float64.

    Args:
        x: (n, d) rows.
        sigma: width of the kernel, in the unit of the rows.

    >>> rbf_kernel(np.array([[0.0], [2.0]]), sigma=1.0).round(6).tolist()
    [[1.0, 0.135335], [0.135335, 1.0]]
    """
    if not sigma > 0:
        raise ValueError(f"sigma={sigma!r} is no width; give a number above 0, in the unit of the rows")
    x = np.asarray(x, np.float64)
    x = x - x.mean(0)
    squares = np.einsum("nd,nd->n", x, x)
    k = np.exp(-np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0) / (2 * sigma**2))
    np.fill_diagonal(k, 1.0)
    return np.asarray(k)


def pairwise_kernel(items: Sequence[Any], k: Callable[[Any, Any], float]) -> np.ndarray:
    """A symmetric function of two items for every pair, (n, n) float64.

    >>> pairwise_kernel([0, 1], lambda a, b: 2.0 ** -abs(a - b)).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    out = np.empty((len(items), len(items)))
    for i, item in enumerate(items):
        out[i, i] = k(item, item)
    for i, j in combinations(range(len(items)), 2):
        out[i, j] = out[j, i] = k(items[i], items[j])
    return out


def _add_cosines(k: np.ndarray, counts: Sequence[Mapping[Any, int]]) -> None:
    """Add the cosines of sparse rows of counts to (n, n)."""
    from hf_prune.diversity._kernels import add_products

    codes: dict[Any, int] = {}
    column = np.array([codes.setdefault(gram, len(codes)) for row in counts for gram in row], np.int64)
    ends = np.cumsum([0] + [len(row) for row in counts])
    value = np.array([count for row in counts for count in row.values()], np.float64)
    row = np.repeat(np.arange(len(counts)), np.diff(ends))
    value /= np.sqrt(np.bincount(row, value**2, len(counts)))[row]
    order = np.argsort(column, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(column, minlength=len(codes)))])
    add_products(ends, column, value, starts, row[order], value[order], k)
