"""Intervals cover the population's value; alignment has its bias taken off."""

from __future__ import annotations

import numpy as np
import pytest
from families import (
    FAMILIES,
    alignments,
    covered,
    crosses,
    diversities,
    expected_distance,
    gamma,
    means,
    moved,
    qualities,
)
from scipy import stats

from hf_prune.diversity.intervals import GROUPS, Estimate, of_cross, of_means, of_pairs
from hf_prune.fisher.distance import distance, symmetric

REPEATS = 250
LEAST, MOST = 0.88, 0.997  # of 0.90 to 0.99, give or take what so few repetitions do


CASES = [(name, 8) for name in ("gamma 4", "factor normal", "factor t5", "mixture lognormal 1.5", "rows Pareto 2.5")]


@pytest.mark.parametrize(("name", "m"), [*CASES, ("factor exponential", 8), ("factor exponential", 16)])
def test_diversity_is_covered(name, m):
    draw, _ = FAMILIES[name]
    truth = expected_distance(draw, count=6000)
    found = diversities(draw, m, REPEATS)
    share, value, _ = covered(found, truth)
    assert LEAST <= share <= MOST
    spread = np.std([e.value for e in found]) / REPEATS**0.5
    assert value == pytest.approx(truth, abs=4 * spread)  # no bias


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("name", ["gamma 4", "gamma 0.5", "mixture lognormal 1.5", "mixture Pareto 2.5"])
def test_alignment_is_covered_and_has_its_bias_taken_off(name, shift):
    draw, mu = FAMILIES[name]
    other, apart = moved(draw, mu, shift)
    found, plain = alignments(draw, other, 8, REPEATS)
    share, value, width = covered(found, apart)
    assert LEAST <= share and (share <= MOST or shift == 0)  # at the edge of what there is only one end can miss
    assert width < 5 * np.mean(plain)
    assert abs(value - apart) < 0.25 * (np.mean(plain) - apart)
    if shift == 0:
        t = stats.t.ppf(0.975, 7)
        before = [abs(p) <= t * e.error for p, e in zip(plain, found, strict=True)]
        assert np.mean(before) < share  # an interval about the plain distance misses 0 more often


def test_cross_diversity_and_quality_are_covered():
    draw, mu = FAMILIES["mixture Pareto 2.5"]
    other, apart = moved(draw, mu, 0.5)
    between = expected_distance(draw, other, count=4000)
    assert LEAST <= covered(crosses(draw, other, 8, REPEATS), between)[0] <= MOST
    truth = 0.5 * (1 - apart) + 0.5 * expected_distance(draw, count=4000)
    assert LEAST <= covered(qualities(draw, other, 8, REPEATS), truth)[0] <= MOST


def test_parts_are_no_error():
    """Of two unlike parts half the batches each: only what differs within parts errs."""
    (draw, mu), m = gamma(8), 12
    other, _ = moved(draw, mu, 1.5)
    parts, rng = np.repeat([0, 1], m // 2), np.random.default_rng(0)
    found, blind = [], []
    for _ in range(REPEATS):
        x = np.concatenate([draw(rng, m // 2), other(rng, m // 2)])
        found.append(of_pairs(symmetric(x, x), parts))
        blind.append(of_pairs(symmetric(x, x)))
    pairs = m // 2 * (m // 2 - 1) / 2
    within = expected_distance(draw, count=4000) + expected_distance(other, count=4000)
    truth = (pairs * within + (m // 2) ** 2 * expected_distance(draw, other, count=4000)) / (m * (m - 1) / 2)
    share, value, width = covered(found, truth)
    assert LEAST <= share <= MOST and value == pytest.approx(truth, rel=0.01)
    assert width < 0.6 * covered(blind, truth)[2]
    lonely = of_pairs(symmetric(x, x), np.array([0] * (m - 1) + [1]))  # nothing tells how the last part varies
    assert lonely.error == pytest.approx(blind[-1].error) and lonely.value == blind[-1].value


def test_mean_distance_of_noise_is_taken_off_by_hand():
    """Where the distance is a square of means, the jackknife takes off exactly what sampling adds."""
    rng = np.random.default_rng(1)
    mu, m = means(), 10
    x, y = (mu * (1 + 1e-3 * rng.normal(size=(m, len(mu)))) for _ in range(2))
    found, plain = of_means(x, y, np.ones(m, int), np.ones(m, int))
    r = (x.mean(0) - y.mean(0)) / (x.mean(0) + y.mean(0))
    assert plain == pytest.approx(2 * r.var(), rel=1e-3)  # the distance of nearly equal embeddings
    e = (x / mu - y / mu) / 2
    noise = (e.var(0, ddof=1).mean() - e.mean(1).var(ddof=1)) / m
    assert found.value == pytest.approx(2 * (r.var() - noise), abs=2e-3 * plain)


def test_terms_weigh_batches():
    rng, draw = np.random.default_rng(2), gamma(50)[0]
    x, y = draw(rng, 9), 1.5 * draw(rng, 9)
    terms, ones = rng.integers(1, 9, 9), np.ones(9, int)
    assert of_means(x, y, terms, ones)[1] == distance(terms @ x / terms.sum(), y.mean(0))
    assert of_means(x, y, 3 * ones, 5 * ones)[0].value == pytest.approx(of_means(x, y, ones, ones)[0].value, abs=1e-12)


def test_many_batches_are_grouped():
    draw, rng, m = gamma(2)[0], np.random.default_rng(3), 3 * GROUPS + 5
    x, y, ones = draw(rng, m), draw(rng, m), np.ones(m, int)
    found, plain = of_means(x, y, ones, ones)
    assert plain == pytest.approx(distance(x.mean(0), y.mean(0)), abs=1e-14) and len(found.influences[0]) == GROUPS
    assert abs(found.value) < 0.15 * plain and found.interval[0] == 0
    both = found.times(-0.5, 0.5).plus(of_pairs(symmetric(x, x)).times(0.5))
    assert len(both.influences[0]) == GROUPS and both.interval[0] < both.value < both.interval[1]


def test_estimates_add_up():
    rng = np.random.default_rng(4)
    p, q = rng.normal(size=(2, 12))
    p, q = p - p.mean(), q - q.mean()
    a, b = Estimate(0.5, (p,), 10, bias=(0.1, 0.0)), Estimate(0.2, (q,), 8)
    total = a.times(-1, 1).plus(b)
    assert total.value == pytest.approx(0.7) and total.freedom == 8 and total.bias == (0.0, 0.1)
    assert total.error == pytest.approx(np.std(q - p, ddof=1) / 12**0.5)
    known = Estimate(0.3, (), 8)
    assert known.interval == (0.3, 0.3) and known.plus(b).error == b.error
    gone = a.plus(a.times(-1))
    assert gone.error == pytest.approx(0, abs=1e-15)


def test_equal_embeddings_have_no_error():
    same = np.tile(means(), (8, 1))
    for found in (of_pairs(symmetric(same, same)), of_cross(symmetric(same, same))):
        assert found.interval == (0, 0)
    found, plain = of_means(same, same, np.ones(8, int), np.ones(8, int))
    assert (plain, found.value) == (0, 0) and found.interval == pytest.approx((0, 0), abs=1e-20)
