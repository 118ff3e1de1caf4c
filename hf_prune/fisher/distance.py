"""Distances between Task2Vec embeddings. Functions of arrays."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_choice, warn
from hf_prune.fisher.embedding import Embedding, as_vector

Metric: TypeAlias = Literal["symmetric", "asymmetric", "cosine"]


def task2vec_distance(
    a: Any,
    b: Any,
    *,
    metric: Metric = "symmetric",
    eps: float = 0.0,
    alpha: float = 0.15,
    trivial: Any = None,
) -> float:
    """Distance between two Task2Vec embeddings.

    The symmetric distance is the cosine distance between shares, coordinate by coordinate:

        d(a, b) = 1 - cos(a / (a + b), b / (a + b))

    Each coordinate counts alike, whatever its scale. It lies in [0, 1] and is 0 for embeddings that are multiples of
    each other. A factor common to both changes nothing, a factor of one does. Label noise adds to it: two estimates of
    one Fisher are about their relative variance apart (`noise_floor` of the coefficients measures that).

    Args:
        a: an embedding, or (D,) numbers of 0 or more.
        b: an embedding of the same probe, or (D,) numbers of 0 or more.
        metric: "symmetric", the default; "asymmetric", from a to b: `d(a, b) - alpha d(a, trivial)`; or "cosine", the
            plain cosine distance, which the few largest coordinates dominate.
        eps: number added to `a + b`, 0 by default: then coordinates that are 0 in both count as 0. The published code
            has 1e-8.
        alpha: weight of the distance to the trivial task in the asymmetric distance; 0.15 by default, as published.
        trivial: embedding of the trivial task, (D,); None, the default: ones.

    Returns:
        The distance; below 0 only for "asymmetric".

    Raises:
        ValueError: embeddings of different probes or lengths; numbers that are negative, not finite, or float16.

    Reference: Achille et al., 2019, arXiv 1902.03545.

    >>> round(task2vec_distance([1, 2, 3], [2, 2, 1]), 8), task2vec_distance([1, 2, 3], [2, 4, 6])
    (0.21098632, 0.0)
    """
    check_choice("metric", metric, get_args(Metric))
    _check_same_probe(a, b)
    x, y = as_vector(a), as_vector(b)
    if x.shape != y.shape:
        raise ValueError(
            f"embeddings of {len(x)} and of {len(y)} numbers come from different probes or layers; embed both datasets "
            "with one probe"
        )
    if metric == "cosine":
        return cosine_distance(x, y)
    if metric == "symmetric":
        return distance(x, y, eps)
    return distance(x, y, eps) - alpha * distance(x, np.ones_like(x) if trivial is None else as_vector(trivial), eps)


def symmetric(a: NDArray[np.float64], b: NDArray[np.float64], eps: float = 0.0) -> NDArray[np.float64]:
    """Symmetric distances (m, k) between (m, D) and (k, D) embeddings.

    >>> symmetric(np.array([[1.0, 4, 2]]), np.array([[4.0, 1, 2], [1, 4, 2]])).round(6).tolist()
    [[0.387097, 0.0]]
    """
    return np.array([[distance(x, y, eps) for y in b] for x in a]).reshape(len(a), len(b))


def distance(x: NDArray[np.float64], y: NDArray[np.float64], eps: float = 0.0) -> float:
    """Symmetric distance of two (D,) embeddings: `1 - cos(x / (x + y + eps), y / (x + y + eps))`.

    >>> round(distance(np.array([1.0, 2, 3]), np.array([2.0, 2, 1])), 8)
    0.21098632
    """
    total = x + y + eps
    inverse = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    return cosine_distance(x * inverse, y * inverse)


def cosine_distance(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """`1 - x.y / (|x| |y|)`, 0 for equal vectors to the last bit; two zero vectors are equal, one is at distance 1.

    >>> cosine_distance(np.array([1.0, 0]), np.array([0.0, 1])), cosine_distance(np.zeros(2), np.ones(2))
    (1.0, 1.0)
    """
    length = np.sqrt((x @ x) * (y @ y))
    if length == 0:
        return 0.0 if not x.any() and not y.any() else 1.0
    cosine = (x @ y) / length
    # rounding alone is no distance: identical embeddings, or multiples, give 0
    return 0.0 if cosine > 1 - 1e-15 * max(4, len(x) ** 0.5) else float(1 - cosine)


def _check_same_probe(a: Any, b: Any) -> None:
    if not (isinstance(a, Embedding) and isinstance(b, Embedding)):
        return
    if a.probe != b.probe:
        raise ValueError(
            f"these embeddings come from different probes ({a.probe} and {b.probe}), their coordinates are not the "
            "same weights; embed both datasets with one probe"
        )
    if {a.facts.get("fisher"), b.facts.get("fisher")} == {"exact", "sampled"}:
        warn(
            "one embedding is of the exact Fisher, the other of sampled labels, so their distance holds the label "
            "noise of one alone; give the probe fisher='exact' or fisher='sampled' for both"
        )
