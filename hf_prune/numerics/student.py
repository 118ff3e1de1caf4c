"""Student's t: its distribution, its quantiles, and the confidence interval of a mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGE = 10_000  # degrees of freedom from which the expansion is exact to the last digits


def interval(
    values: Sequence[float] | NDArray[Any], *, confidence: float = 0.95, together: int = 1
) -> tuple[float, float]:
    """Mean and half width of Student's confidence interval.

        mean +- t_{nu, p} s / sqrt(n),    nu = n - 1,    p = 1 - (1 - confidence) / (2 together).

    Args:
        values: (n,) independent numbers, two or more.
        confidence: probability with which the interval holds the expected value; 0.95 by default.
        together: number of intervals that hold at once with that probability (Bonferroni); 1 by default.

    Returns:
        The mean, and how far the interval reaches to either side of it.

    Raises:
        ValueError: fewer than two values, whose spread nothing tells.

    >>> [round(v, 3) for v in interval([1.0, 2.0, 3.0])]
    [2.0, 2.484]
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if n < 2:
        raise ValueError(f"an interval needs two values or more, not {n}; repeat what was measured")
    reach = quantile(1 - (1 - confidence) / (2 * together), n - 1)
    return float(values.mean()), reach * float(values.std(ddof=1)) / math.sqrt(n)


@lru_cache(maxsize=4096)
def quantile(p: float, freedom: float) -> float:
    """The number below which Student's t lies with probability `p`: the root of `F(t) = p`.

    F is concave above 0 and the normal's quantile lies below the root, so Newton's steps from there only go up.

    Args:
        p: probability, above 0 and below 1.
        freedom: degrees of freedom, above 0; need not be whole.

    Raises:
        ValueError: `p` is no probability inside (0, 1), or `freedom` not above 0.

    >>> round(quantile(0.975, 6), 4), round(quantile(0.025, 1), 4), round(quantile(0.975, 10**9), 4)
    (2.4469, -12.7062, 1.96)
    """
    if not 0 < p < 1 or not freedom > 0:
        raise ValueError(f"Student's t has no quantile for p={p!r}, freedom={freedom!r}; give 0 < p < 1, freedom > 0")
    if p < 0.5:
        return -quantile(1 - p, freedom)
    t = statistics.NormalDist().inv_cdf(p)
    if freedom >= LARGE:
        return _expanded(t, freedom)
    for _ in range(200):
        step = (p - distribution(t, freedom)) / _density(t, freedom)
        if step <= 1e-15 * t:
            break
        t += step
    return t


def distribution(t: float, freedom: float) -> float:
    """Probability that Student's t with `freedom` degrees of freedom is at most `t`.

        F(t) = 1 - I_x(freedom / 2, 1 / 2) / 2  for t >= 0,    x = freedom / (freedom + t^2)

    with the regularised incomplete beta function I.

    >>> round(distribution(2.0, 4), 6), distribution(0.0, 3)
    (0.941942, 0.5)
    """
    if t < 0:
        return 1 - distribution(-t, freedom)
    x = freedom / (freedom + t * t)
    # the continued fraction converges fast below the mean of the beta distribution; above it, from the other side
    if x < (freedom / 2 + 1) / (freedom / 2 + 2.5):
        return 1 - _incomplete_beta(x, freedom / 2, 0.5) / 2
    return 0.5 + _incomplete_beta(t * t / (freedom + t * t), 0.5, freedom / 2) / 2


def _density(t: float, freedom: float) -> float:
    log = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    return math.exp(log - (freedom + 1) / 2 * math.log1p(t * t / freedom))


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b) by its continued fraction, worked out from the front (Lentz; DLMF 8.17.22)."""
    if x == 0:
        return 0.0
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            value *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return math.exp(log) * value / a


def _expanded(z: float, freedom: float) -> float:
    """Student's quantile by its expansion about the normal's z (Abramowitz and Stegun, 26.7.5)."""
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
