"""Batches of embeddings with a known population, to see whether intervals cover it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hf_prune.diversity.intervals import of_cross, of_means, of_pairs
from hf_prune.fisher.distance import distance, symmetric

SHIFTS = (0.0, 0.25, 1.0)  # of the target's mean embedding: standard deviation of logarithms


def means(d=60, seed=0):
    """A mean embedding, whose coordinates are as unlike as those of networks."""
    return np.random.default_rng(seed).lognormal(0, 1.5, d)


def gamma(shape, d=60):
    """Every coordinate varies alone: relative variance 1 / shape."""
    mu = means(d)
    return (lambda rng, *size: mu * rng.gamma(shape, 1 / shape, (*size, d))), mu


def factor(kind, scale, d=60):
    """All coordinates move together with one number, whose distribution is `kind`; only distances are known."""
    mu, load = means(d), np.random.default_rng(1).normal(size=d)

    def draw(rng, *size):
        shape = (*size, 1)
        z = {
            "normal": lambda: rng.standard_normal(shape),
            "t5": lambda: rng.standard_t(5, shape) * 0.6**0.5,
            "exponential": lambda: rng.exponential(1, shape) - 1,
        }[kind]()
        return mu * np.exp(scale * z * load) * rng.gamma(50, 1 / 50, (*size, d))

    return draw, None


def mixture(tail, rows=16, shares=(0.4, 0.3, 0.2, 0.1), d=60):
    """Batches of rows of several kinds; the rows' sizes are heavy-tailed, by `tail`."""
    kinds = means(d) * np.exp(0.8 * np.random.default_rng(2).normal(size=(len(shares), d)))

    def draw(rng, *size):
        kind = rng.choice(len(shares), (*size, rows), p=shares)
        heavy = sizes(rng, (*size, rows), tail)
        weights = np.stack([(heavy * (kind == k)).mean(-1) for k in range(len(shares))], -1)
        return weights @ kinds * rng.gamma(2 * rows, 1 / (2 * rows), (*size, d))

    return draw, np.array(shares) @ kinds


def rows(tail, count=16, d=60):
    """Every coordinate of every row is heavy-tailed, and the row's size is too."""
    mu = means(d)

    def draw(rng, *size):
        total = 0.0
        for _ in range(count):
            total = total + sizes(rng, (*size, d), tail) * sizes(rng, (*size, 1), tail)
        return mu * total / count

    return draw, mu


def sizes(rng, shape, tail):
    """Positive numbers of mean 1: lognormal, or Pareto's (Lomax) of finite variance."""
    kind, value = tail
    if kind == "lognormal":
        return rng.lognormal(-(value**2) / 2, value, shape)
    return rng.pareto(value, shape) * (value - 1)


FAMILIES: dict[str, tuple[Callable, np.ndarray | None]] = {
    "gamma 4": gamma(4),
    "gamma 0.5": gamma(0.5),
    "factor normal": factor("normal", 0.4),
    "factor t5": factor("t5", 0.4),
    "factor exponential": factor("exponential", 0.5),
    "mixture lognormal 1": mixture(("lognormal", 1.0)),
    "mixture lognormal 1.5": mixture(("lognormal", 1.5)),
    "mixture Pareto 2.5": mixture(("pareto", 2.5)),
    "rows lognormal 1": rows(("lognormal", 1.0)),
    "rows Pareto 2.5": rows(("pareto", 2.5)),
}


def expected_distance(draw, other=None, count=10_000, seed=99):
    """Expected distance of two batches, by many pairs of them."""
    rng, blocks = np.random.default_rng(seed), count // 200
    pairs = ((draw(rng, 200), (other or draw)(rng, 200)) for _ in range(blocks))
    return float(np.mean([distance(x, y) for xs, ys in pairs for x, y in zip(xs, ys, strict=True)]))


def moved(draw, mu, shift):
    """Another dataset: the same, but for another mean; its distance to the first."""
    scale = np.exp(shift * np.random.default_rng(3).normal(size=len(mu)))
    return (lambda rng, *size: scale * draw(rng, *size)), distance(mu, mu * scale)


def covered(estimates, truth):
    """Share of the intervals that hold the truth, mean of the values, mean width."""
    limits = np.array([e.interval for e in estimates])
    inside = (limits[:, 0] <= truth + 1e-12) & (truth <= limits[:, 1] + 1e-12)
    return inside.mean(), np.mean([e.value for e in estimates]), (limits[:, 1] - limits[:, 0]).mean()


def diversities(draw, m, repeats, seed=0):
    rng = np.random.default_rng([seed, m])
    return [of_pairs(symmetric(x, x)) for x in (draw(rng, m) for _ in range(repeats))]


def crosses(draw, other, m, repeats, seed=0):
    rng = np.random.default_rng([seed, m])
    return [of_cross(symmetric(draw(rng, m), other(rng, m))) for _ in range(repeats)]


def alignments(draw, other, m, repeats, seed=0):
    """Distances of the average embeddings, and those without the correction."""
    rng, terms = np.random.default_rng([seed, m]), np.ones(m, np.int64)
    both = [of_means(draw(rng, m), other(rng, m), terms, terms) for _ in range(repeats)]
    return [e for e, _ in both], [plain for _, plain in both]


def qualities(draw, other, m, repeats, seed=0):
    """Half the alignment and half the diversity, of the same batches."""
    rng, terms, out = np.random.default_rng([seed, m]), np.ones(m, np.int64), []
    for _ in range(repeats):
        x, y = draw(rng, m), other(rng, m)
        out.append(of_means(x, y, terms, terms)[0].times(-0.5, 0.5).plus(of_pairs(symmetric(x, x)).times(0.5)))
    return out
