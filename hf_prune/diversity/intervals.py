"""Estimates from batches of embeddings, without bias where that is possible, and their confidence intervals."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_prune.fisher.distance import distance
from hf_prune.numerics.student import quantile

UPPER = 0.975  # of Student's t, for an interval of 95 %
GROUPS = 32  # groups of batches that a second-order jackknife leaves out by two: more hardly sharpen the bias
STEEPEST = 0.7  # ratio of one order of the bias to the order before, beyond which nothing can be extrapolated

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A number estimated from batches, and what is known of its error.

    Attributes:
        value: the number.
        influences: for each set of n batches, (n,) deviations of the jackknife's pseudo-values from their mean: how far
            each batch draws the value from its mean, times n. Empty: the number is known.
        freedom: degrees of freedom of Student's t.
        second: variance of what pairs of batches add. Where single batches hardly move the number (all alike on
            average, two samples of one distribution) it is all there is.
        bias: what may be left of the bias: how much too high and how much too low the value may be.
        reach: minimum distance of the interval's lower and upper end from the value.
    """

    value: float
    influences: tuple[Floats, ...]
    freedom: int
    second: float = 0.0
    bias: tuple[float, float] = (0.0, 0.0)
    reach: tuple[float, float] = (0.0, 0.0)

    @property
    def error(self) -> float:
        """Standard error: of single batches, `sqrt(sum_i p_i^2 / (n (n - 1)))`, or of pairs if that is larger."""
        first = sum(float(p @ p) / (len(p) * (len(p) - 1)) for p in self.influences)
        return float(max(first, self.second) ** 0.5)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval, within [0, 1].

        The union of two: Student's t interval, and what Hall's transformation (1992) makes of it where the influences
        are skewed.
        """
        error, t = self.error, quantile(UPPER, self.freedom)
        below, above = (max(t * error, reach) for reach in self.reach)
        if error > 0:
            skew = sum(_third(p) for p in self.influences) / error**3
            below = max(below, error * _unskewed(t, skew))
            above = max(above, -error * _unskewed(-t, skew))
        low, high = np.clip([self.value - below - self.bias[0], self.value + above + self.bias[1]], 0, 1).tolist()
        return low, high

    def times(self, factor: float, plus: float = 0.0) -> Estimate:
        """`factor` times the number, plus a constant."""
        moved = tuple(factor * p for p in self.influences)
        turn = 1 if factor > 0 else -1
        bias, reach = ((abs(factor) * low, abs(factor) * high) for low, high in (self.bias[::turn], self.reach[::turn]))
        return Estimate(factor * self.value + plus, moved, self.freedom, factor**2 * self.second, bias, reach)

    def plus(self, other: Estimate) -> Estimate:
        """The sum of two numbers that share their batches."""
        small = min([len(p) for p in (*self.influences, *other.influences)], default=0)
        mine, theirs = ([_grouped(p, small) for p in e.influences] for e in (self, other))
        both = [*(a + b for a, b in zip(mine, theirs, strict=False)), *mine[len(theirs) :], *theirs[len(mine) :]]
        bias = self.bias[0] + other.bias[0], self.bias[1] + other.bias[1]
        reach = max(self.reach[0], other.reach[0]), max(self.reach[1], other.reach[1])
        freedom = min(self.freedom, other.freedom)
        return Estimate(self.value + other.value, tuple(both), freedom, self.second + other.second, bias, reach)


def of_pairs(distances: Floats, parts: NDArray[np.int64] | None = None) -> Estimate:
    """The expected distance between two batches, without bias.

        mean over i < j of d_ij

    Its error is the jackknife's: pairs share batches, so their spread over the root of their number would be far too
    small. Distances are skewed where few batches are unlike all others, which few batches do not show: the interval
    reaches up to that of the logarithm at least, with half the degrees of freedom.

    Args:
        distances: (M, M) distances between the batches.
        parts: (M,) part of the data that each batch is of, where the number of each was fixed beforehand: what parts
            differ by is then no error. None, the default: batches are alike.

    >>> d = np.array([[0, 0.21098632, 0.38270479], [0.21098632, 0, 0.13793103], [0.38270479, 0.13793103, 0]])
    >>> estimate = of_pairs(d)
    >>> round(estimate.value, 7), round(estimate.error, 7)
    (0.243874, 0.1450965)
    """
    m = len(distances)
    own = distances.sum(1)
    pairs = m * (m - 1) / 2
    pseudo = (own - own.mean()) * 2 / (m - 2)
    number = np.zeros(m, np.int64) if parts is None else np.unique(parts, return_inverse=True)[1]
    sizes = np.bincount(number)
    if sizes.min() < 2:  # nothing tells how batches of such a part differ
        number, sizes = np.zeros(m, np.int64), np.array([m])
    pseudo = pseudo - (np.bincount(number, pseudo) / sizes)[number]
    pseudo = pseudo * np.sqrt(sizes / (sizes - 1) * (m - 1) / m)[number]
    second = 0.0
    for a in range(len(sizes)):
        for b in range(a, len(sizes)):
            block = distances[np.ix_(number == a, number == b)]
            count = sizes[a] * sizes[b] if a < b else sizes[a] * (sizes[a] - 1) / 2
            second += count * (_unshared(block) if a < b else _unshared_pairs(block))
    value = float(distances[np.triu_indices(m, 1)].mean())
    return _with_logarithm(Estimate(value, (pseudo,), max(m - len(sizes) - 1, 1), second / pairs**2))


def of_cross(distances: Floats) -> Estimate:
    """The expected distance between a batch of one set and one of another, without bias: the mean of (M, N) distances.

    >>> estimate = of_cross(np.array([[0.25, 0.5], [0.5, 0.75], [0.0, 0.25]]))
    >>> round(estimate.value, 7), round(estimate.error, 7)
    (0.375, 0.1909407)
    """
    m, n = distances.shape
    value = float(distances.mean())
    influences = distances.mean(1) - value, distances.mean(0) - value
    return _with_logarithm(Estimate(value, influences, max(min(m, n) - 2, 1), _unshared(distances) / (m * n)))


def of_means(a: Floats, b: Floats, terms_a: NDArray[np.int64], terms_b: NDArray[np.int64]) -> tuple[Estimate, float]:
    """The distance between what batches of two sets are on average, and the distance of the averages as they are.

    The latter is too high, by about the relative variance of the averages: noise in either is a distance. Its bias is
    a series in 1 / n, of which a jackknife of the second order takes off two terms, from the means d_1 and d_2 of the
    distances without one and without two batches of both sets:

        d'' = (n^2 d - 2 (n - 1)^2 d_1 + (n - 2)^2 d_2) / 2

    What is left of the series by extrapolation is kept as `bias`, twice, since it is a guess.

    Errors are the delete-one jackknife's, of the distance with one term taken off. At distance 0 its variance is twice
    what it should be (Efron and Stein), so that intervals of two samples of one distribution are wide.

    Args:
        a: (M, D) embedding of each batch of one set, 3 or more.
        b: (M, D) embedding of each batch of the other, as many.
        terms_a: (M,) number of loss terms that each row of `a` is the mean of.
        terms_b: (M,) number of loss terms that each row of `b` is the mean of.

    Returns:
        The estimate, and the distance of the averages as they are.

    Reference: Schucany, Gray and Owen, 1971 (second order); Efron and Stein, 1981.

    >>> a, b = np.array([[1.0, 3], [3, 1], [2, 2]]), np.array([[1.0, 2], [1, 2], [1, 2]])
    >>> of_means(a, b, np.ones(3, int), np.ones(3, int))[1] == distance(a.mean(0), b.mean(0))
    True
    """
    n = min(len(a), GROUPS)
    sums, weights = [], []
    for vectors, terms in ((a, terms_a), (b, terms_b)):
        group = np.arange(len(vectors)) % n
        weight = np.bincount(group, terms).astype(np.float64)
        held = np.zeros((n, vectors.shape[1]))
        np.add.at(held, group, vectors * terms[:, None])
        sums.append(held)
        weights.append(weight)
    whole, total = [x.sum(0) for x in sums], [w.sum() for w in weights]

    def without(*left: int) -> float:
        x, y = (
            (every - sum(held[i] for i in left)) / (weight.sum() - sum(weight[i] for i in left))
            for every, held, weight in zip(whole, sums, weights, strict=True)
        )
        return distance(np.maximum(x, 0), np.maximum(y, 0))  # what is left of a difference may be -1e-20

    plain = without()
    one = np.array([without(i) for i in range(n)])
    two = np.zeros((n, n))
    for i, j in combinations(range(n), 2):
        two[i, j] = two[j, i] = without(i, j)
    both = two.sum() / (n * (n - 1))
    once = n * plain - (n - 1) * float(one.mean())
    twice = (n**2 * plain - 2 * (n - 1) ** 2 * float(one.mean()) + (n - 2) ** 2 * both) / 2
    corrected = (n - 1) * one - (n - 2) * two.sum(1) / (n - 1)  # with one term taken off, without one batch each
    pseudo = -(n - 1) * (corrected - corrected.mean())
    ratio = min((once - twice) / (plain - once), STEEPEST) if plain > once > twice else 0.0
    beyond = (once - twice) * ratio / (1 - ratio)
    means = [every / size for every, size in zip(whole, total, strict=True)]
    parts = [
        (held - weight[:, None] * mean) / weight.sum() for held, weight, mean in zip(sums, weights, means, strict=True)
    ]
    return Estimate(twice, (pseudo,), max(n - 2, 1), _second(*means, *parts), (2 * beyond, 0.0)), plain


def _with_logarithm(estimate: Estimate) -> Estimate:
    """The interval of a mean of distances reaches up to that of its logarithm at least."""
    if estimate.value <= 0:
        return estimate
    exponent = min(quantile(UPPER, max(estimate.freedom // 2, 1)) * estimate.error / estimate.value, 50)
    return estimate._replace(reach=(0.0, estimate.value * float(np.expm1(exponent))))


def _third(p: Floats) -> float:
    """Third cumulant, without bias, of the mean of (n,) deviations."""
    n = len(p)
    return float((p**3).sum()) / (n * (n - 1) * (n - 2)) if n > 2 else 0.0


def _unskewed(t: float, skew: float) -> float:
    """The studentised mean whose Hall transform is t, for a mean of that skewness."""
    if abs(skew) < 1e-9:
        return t
    return float(3 / skew * (np.cbrt(1 + skew * (t - skew / 6)) - 1))


def _grouped(p: Floats, n: int) -> Floats:
    """Influences (n,) of groups of batches: the mean of those of their batches, grouped as `of_means` does."""
    if len(p) == n:
        return p
    group = np.arange(len(p)) % n
    means = np.bincount(group, p) / np.bincount(group)
    return np.asarray(means - means.mean())


def _unshared(block: Floats) -> float:
    """Variance of an (m, n) matrix beside the effects of its rows and columns."""
    m, n = block.shape
    if min(m, n) < 2:
        return 0.0
    rest = block - block.mean(1, keepdims=True) - block.mean(0) + block.mean()
    return float((rest**2).sum() / ((m - 1) * (n - 1)))


def _unshared_pairs(block: Floats) -> float:
    """The same for the pairs i < j of a symmetric (m, m) matrix."""
    m = len(block)
    if m < 4:
        return 0.0
    mean = block.sum() / (m * (m - 1))
    own = (m - 1) / (m - 2) * (block.sum(1) / (m - 1) - mean)
    rest = block - own[:, None] - own - mean
    return float((np.triu(rest, 1) ** 2).sum() / (m * (m - 3) / 2))


def _second(x: Floats, y: Floats, from_x: Floats, from_y: Floats) -> float:
    """Variance of the distance of two averages, (D,) x and y, that differ by the noise of single batches alone.

    There the distance is twice the variance, over coordinates, of (x - y) / (x + y): a sum over pairs of batches.

    Args:
        x: average of one set.
        y: average of the other.
        from_x: (n, D) how far each batch moves x.
        from_y: (n, D) how far each batch moves y.
    """
    total = x + y
    inverse = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    moves = np.concatenate([2 * y * inverse**2 * from_x, -2 * x * inverse**2 * from_y])
    moves -= moves.mean(1, keepdims=True)
    products = 2 * (moves @ moves.T) / len(x)
    return 2 * float((products**2).sum() - (np.diag(products) ** 2).sum())
