"""Distances between Task2Vec embeddings, complexity, and jackknife errors. Functions of arrays."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hf_prune.fisher.embedding import Embedding

KINDS = ("symmetric", "asymmetric", "cosine")
CONFIDENCE = 0.95


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
    distance = float(symmetric(x[None], y[None], eps)[0, 0])
    if kind == "asymmetric":
        rest = np.ones_like(x) if trivial is None else as_vector(trivial)
        distance -= alpha * float(symmetric(x[None], rest[None], eps)[0, 0])
    return distance


def symmetric(a: NDArray[np.float64], b: NDArray[np.float64], eps: float = 0.0) -> NDArray[np.float64]:
    """Symmetric distances of (m, D) to (k, D) embeddings, (m, k).

    >>> symmetric(np.array([[1.0, 4, 2]]), np.array([[4.0, 1, 2], [1, 4, 2]])).round(6).tolist()
    [[0.387097, 0.0]]
    """
    out = np.empty((len(a), len(b)))
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            total = x + y + eps
            inverse = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
            out[i, j] = cosine_distance(x * inverse, y * inverse)
    return out


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


def mean_pairs(distances: NDArray[np.float64]) -> float:
    """Mean over the pairs i < j of an (M, M) matrix."""
    return float(distances[np.triu_indices(len(distances), 1)].mean())


def jackknife_pairs(distances: NDArray[np.float64]) -> float:
    """Standard error of the mean over pairs, by leaving out one batch at a time.

    Pairs share batches: the spread of pairs divided by the root of their number would be far too small.

    >>> d = np.array([[0, 0.21098632, 0.38270479], [0.21098632, 0, 0.13793103], [0.38270479, 0.13793103, 0]])
    >>> round(mean_pairs(d), 7), round(jackknife_pairs(d), 7)
    (0.243874, 0.1450965)
    """
    m = len(distances)
    total, own = distances.sum() / 2, distances.sum(1)
    return jackknife((total - own) / ((m - 1) * (m - 2) / 2))


def jackknife_cross(distances: NDArray[np.float64]) -> float:
    """Standard error of the mean of an (M, N) matrix between two sets of batches, by leaving out one of either."""
    m, n = distances.shape
    total = distances.sum()
    rows = (total - distances.sum(1)) / ((m - 1) * n)
    columns = (total - distances.sum(0)) / (m * (n - 1))
    return float(np.hypot(jackknife(rows), jackknife(columns)))


def jackknife(values: NDArray[np.float64]) -> float:
    """Standard error from the values without one batch each."""
    m = len(values)
    return float(np.sqrt((m - 1) / m * ((values - values.mean()) ** 2).sum()))


def interval(value: float, error: float, batches: int) -> tuple[float, float]:
    """95 % confidence interval, by Student's t with one degree of freedom less than there are batches."""
    half = student(batches - 1) * error
    return value - half, value + half


def student(freedom: int) -> float:
    """The 97.5 % point of Student's t, by its expansion about the normal's; 1e-3 off at most from 7 degrees on.

    >>> round(student(7), 2), round(student(10**9), 2)
    (2.36, 1.96)
    """
    z = statistics.NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def _check_same_probe(a: Embedding | Any, b: Embedding | Any) -> None:
    keys = [getattr(x, "probe", None) for x in (a, b)]
    if None not in keys and keys[0] != keys[1]:
        raise ValueError(
            f"these embeddings come from different probes ({keys[0]} and {keys[1]}), their coordinates are not the "
            "same weights; embed both datasets with one probe"
        )


def stack(embeddings: Sequence[Embedding]) -> NDArray[np.float64]:
    """Embeddings of one probe as (M, D)."""
    for other in embeddings[1:]:
        _check_same_probe(embeddings[0], other)
    return np.stack([as_vector(e) for e in embeddings])
