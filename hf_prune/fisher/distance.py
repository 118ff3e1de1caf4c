"""Distances between Task2Vec embeddings. Functions of arrays."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hf_prune.fisher.embedding import Embedding

KINDS = ("symmetric", "asymmetric", "cosine")


def task2vec_distance(
    a: Any,
    b: Any,
    kind: str = "symmetric",
    *,
    eps: float = 0.0,
    alpha: float = 0.15,
    trivial: Any = None,
) -> float:
    """Distance between two Task2Vec embeddings.

    "symmetric": cosine distance between `a / (a + b)` and `b / (a + b)`, element by element: each coordinate counts
    alike, whatever its scale. In [0, 1]; 0 for embeddings that are multiples of each other. A factor common to both
    changes nothing, a factor of one does. Label noise adds to it: two estimates of one Fisher are about their relative
    variance apart (`noise_floor` of the coefficients measures that).

    Args:
        a, b: embeddings of the same probe, or (D,) numbers of 0 or more.
        kind: "symmetric"; "asymmetric": from a to b, `symmetric(a, b) - alpha symmetric(a, trivial)`; "cosine": plain,
            dominated by the few largest coordinates.
        eps: added to `a + b`. 0: coordinates where both are 0 count as 0. The published code has 1e-8.
        alpha: of the asymmetric distance.
        trivial: embedding of the trivial task; by default ones.

    Raises:
        ValueError: embeddings of different probes or lengths; numbers that are negative, not finite, or float16.

    Reference: Achille et al., 2019, arXiv 1902.03545.

    >>> round(task2vec_distance([1, 2, 3], [2, 2, 1]), 8), task2vec_distance([1, 2, 3], [2, 4, 6])
    (0.21098632, 0.0)
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    _check_same_probe(a, b)
    x, y = as_vector(a), as_vector(b)
    if x.shape != y.shape:
        raise ValueError(f"embeddings of {len(x)} and of {len(y)} numbers: they come from different probes or layers")
    if kind == "cosine":
        return float(cosine_distance(x, y))
    found = distance(x, y, eps)
    if kind == "asymmetric":
        rest = np.ones_like(x) if trivial is None else as_vector(trivial)
        found -= alpha * distance(x, rest, eps)
    return found


def symmetric(a: NDArray[np.float64], b: NDArray[np.float64], eps: float = 0.0) -> NDArray[np.float64]:
    """Symmetric distances of (m, D) to (k, D) embeddings, (m, k).

    >>> symmetric(np.array([[1.0, 4, 2]]), np.array([[4.0, 1, 2], [1, 4, 2]])).round(6).tolist()
    [[0.387097, 0.0]]
    """
    return np.array([[distance(x, y, eps) for y in b] for x in a]).reshape(len(a), len(b))


def distance(x: NDArray[np.float64], y: NDArray[np.float64], eps: float = 0.0) -> float:
    """Symmetric distance of two (D,) embeddings."""
    total = x + y + eps
    inverse = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    return cosine_distance(x * inverse, y * inverse)


def cosine_distance(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """`1 - cos`, 0 for equal vectors to the last bit; two zero vectors are equal, one is at distance 1."""
    length = np.sqrt((x @ x) * (y @ y))
    if length == 0:
        return 0.0 if not x.any() and not y.any() else 1.0
    cosine = (x @ y) / length
    # rounding alone is no distance: identical embeddings, or multiples, give 0
    return 0.0 if cosine > 1 - 1e-15 * max(4, len(x) ** 0.5) else float(1 - cosine)


def as_vector(x: Any) -> NDArray[np.float64]:
    """The (D,) numbers of an embedding.

    Raises:
        ValueError: float16, another shape, numbers that are negative or not finite.
    """
    found = np.asarray(getattr(x, "vector", x))
    if found.dtype == np.float16:
        raise ValueError("an embedding in float16 has lost its small coordinates; keep it in float32 or float64")
    found = found.astype(np.float64)
    if found.ndim != 1 or not len(found):
        raise ValueError(f"an embedding is a row of numbers, this has shape {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError("an embedding has numbers that are not finite; compute it again")
    if (found < 0).any():
        raise ValueError("an embedding has negative numbers, which no Fisher information has")
    return found


def _check_same_probe(a: Embedding | Any, b: Embedding | Any) -> None:
    keys = [getattr(x, "probe", None) for x in (a, b)]
    if None not in keys and keys[0] != keys[1]:
        raise ValueError(
            f"these embeddings come from different probes ({keys[0]} and {keys[1]}), their coordinates are not the "
            "same weights; embed both datasets with one probe"
        )
    kinds = [getattr(x, "facts", {}).get("fisher") for x in (a, b)]
    if set(kinds) == {"exact", "sampled"}:
        warnings.warn(
            "one embedding is of the exact Fisher, the other of sampled labels, so their distance holds the label "
            "noise of one alone; give the probe fisher='exact' or fisher='sampled' for both",
            stacklevel=3,
        )
