"""Student's t against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hf_prune.numerics.student import LARGE, distribution, interval, quantile

FREEDOMS = (0.5, 1, 2, 2.7, 3, 5, 10, 31, 100, 999, LARGE - 1, LARGE, 10**6, 10**12)


@pytest.mark.parametrize("freedom", FREEDOMS)
def test_quantiles(freedom):
    for p in (0.5, 0.6, 0.9, 0.975, 0.999, 1 - 1e-6, 0.4, 0.025, 1e-4):
        assert quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("freedom", [f for f in FREEDOMS if f < LARGE])
def test_probabilities(freedom):
    for t in (0.0, 1e-3, 0.5, 1.0, 2.0, 9.0, 300.0, -0.7, -4.0):
        assert distribution(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), rel=1e-9, abs=1e-13)


def test_intervals():
    values = np.random.default_rng(0).normal(size=7)
    for confidence, together in ((0.95, 1), (0.9, 1), (0.95, 5)):
        mean, half = interval(values, confidence=confidence, together=together)
        low, high = stats.t.interval(1 - (1 - confidence) / together, 6, values.mean(), stats.sem(values))
        assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-10)


def test_refuses():
    for p, freedom in ((0, 3), (1, 3), (0.5, 0), (float("nan"), 3), (0.9, float("nan"))):
        with pytest.raises(ValueError, match="give 0 < p < 1"):
            quantile(p, freedom)
    with pytest.raises(ValueError, match="two values or more, not 1"):
        interval([3.0])
