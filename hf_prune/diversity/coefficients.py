"""Diversity, alignment and data quality: distances between the Task2Vec embeddings of batches of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_prune.diversity.batches import ROWS, Batches, decided, embed_batches
from hf_prune.diversity.intervals import Estimate, of_cross, of_means, of_pairs
from hf_prune.fisher.distance import distance, symmetric
from hf_prune.fisher.probe import Probe

REFERENCE_EPS = 1e-8


@dataclass(frozen=True, eq=False)
class Coefficient:
    """A number for a dataset, with what is known of its error. `float(x)` is its value.

    What is estimated is the number of the distribution that the rows come from, under this probe: an expectation over
    all batches that might have been drawn, for `alignment_coefficient` the distance of what they are on average.

    Attributes:
        value: the coefficient, its bias taken off where it has one.
        interval: 95 %, by a jackknife over batches. In simulations (`tests/benchmarks/fisher_coverage.py`) it holds
            that number in 97 of 100 cases, in 90 at least under the heaviest tails and in nearly all at an alignment of
            1. It cannot know of a kind of batch that none of those drawn is.
        noise_floor: distance between two label seeds on the same data: how much label noise adds to a distance. None if
            it was not asked for.
        error: standard error, of the same jackknife.
        distances: between the batches (diversity: (M, M), cross: (M, N)).
        batches, rows: how many batches, of how many rows.
        fisher: whose labels, for all batches: "exact", "sampled", "empirical" or "published".
        plain: alignment of whole datasets as it is before its bias is taken off; else None.
        corrected: the value with the noise floor taken off the distances; the value itself where `plain` is.
        estimate: what the interval is made of.
    """

    value: float
    interval: tuple[float, float]
    noise_floor: float | None
    error: float
    distances: NDArray[np.float64]
    batches: int
    rows: int
    sign: int = 1
    fisher: str = ""
    plain: float | None = None
    estimate: Estimate | None = field(default=None, repr=False)

    def __float__(self) -> float:
        return self.value

    @property
    def corrected(self) -> float:
        """The value with the noise floor taken off the distances."""
        return self.value if self.plain is not None else self.value - self.sign * (self.noise_floor or 0.0)

    def __str__(self) -> str:
        floor = "" if self.noise_floor is None else f", noise floor {self.noise_floor:.4f}"
        low, high = self.interval
        which = f"{self.fisher} Fisher of " if self.fisher else ""
        return f"{self.value:.4f} [{low:.4f}, {high:.4f}]{floor}; {which}{self.batches} batches of {self.rows} rows"


@dataclass(frozen=True, eq=False)
class DataQuality:
    """Alignment and diversity together. `float(x)` is the value.

    Attributes:
        value: weighted sum of both.
        interval: 95 %, of the sum: the jackknife leaves a batch out of both.
        noise_floor: the diversity's, by its weight: so much too high is the value. Alignment has its bias taken off.
        alignment, diversity: the two.
    """

    value: float
    interval: tuple[float, float]
    noise_floor: float | None
    alignment: Coefficient
    diversity: Coefficient

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.4f} [{low:.4f}, {high:.4f}]\n  alignment {self.alignment}\n  diversity {self.diversity}"


def diversity_coefficient(
    ds: Any,
    probe: Any,
    *,
    batches: int = 16,
    rows: int | None = None,
    seed: int = 0,
    mix: str = "concatenated",
    weights: Sequence[float] | None = None,
    noise_floor: bool = True,
    reference_compat: bool = False,
) -> Coefficient:
    """Mean distance between the Task2Vec embeddings of random batches: how many kinds of data there are.

    An estimate, without bias, of the expected distance between two batches of so many rows of the distribution that the
    data come from, noise of rows and labels included. Batches share no row. Values can be compared for one probe and
    one number of rows a batch only; beside them, `diversity_bounds` says what the probe makes of noise. A probe with
    `head="fit"` gets its head anew for each batch, as published, and its Fisher is exact for all batches or sampled for
    all, by the number of classes in the data; otherwise all batches go through the network in one pass.

    Args:
        ds: a dataset, or a list of them.
        probe: a `Probe`, or a model, folder or Hub name.
        batches: 8 at least.
        rows: a batch; None: 64, or what there is. Small batches are noisy, and distances grow with the noise.
        seed: of the batches.
        mix: of several datasets: "concatenated": each batch is of one of them, all pairs count; "interleaved": each
            batch mixes them.
        weights: shares of the datasets, in batches or in each batch's rows; None: equal ones.
        noise_floor: embed with a second label seed too, which costs a backward pass more.
        reference_compat: as the published code has it: embeddings of `fisher="published"`, to whose sums 1e-8 is added;
            equal batches are left out, and the "interval" is the spread of pairs. Far larger values: they are mostly
            noise of the labels.

    Raises:
        ValueError: fewer than 8 batches, or more rows than there are.

    Reference: Lee, Miranda et al., 2023, arXiv 2306.13840.
    """
    probe = decided(Probe.of(probe, fisher="published") if reference_compat else Probe.of(probe), ds)
    found = embed_batches(ds, probe, batches, rows, seed, mix, weights, noise_floor and not reference_compat)
    return _diversity(found, reference_compat)


def cross_diversity_coefficient(
    a: Any,
    b: Any,
    probe: Any,
    *,
    batches: int = 16,
    rows: int | None = None,
    seed: int = 0,
    noise_floor: bool = True,
) -> Coefficient:
    """Mean distance between the batches of one dataset and those of another.

    An estimate, without bias, of the expected distance between a batch of the one distribution and one of the other.

    Args:
        a, b: datasets; for rows that are in both, labels are drawn apart.
        probe, batches, rows, seed, noise_floor: as of `diversity_coefficient`; `batches` of either.

    Raises:
        ValueError: as `diversity_coefficient`.
    """
    probe = decided(Probe.of(probe), a, b)
    return _cross(*_two(a, b, probe, batches, rows, seed, noise_floor))


def alignment_coefficient(
    source: Any,
    target: Any,
    probe: Any,
    *,
    batches: int = 16,
    rows: int | None = None,
    seed: int = 0,
    whole: bool = True,
    noise_floor: bool = True,
) -> Coefficient:
    """1 minus the Task2Vec distance between a source and a target: how much training on one is training on the other.

    An estimate of the alignment of the two distributions: 1 minus the distance between what their rows' embeddings are
    on average, 1 for two samples of one. As it is, that distance is too high by the noise of rows and labels in either
    sample; a jackknife of the second order takes that off (`plain` has it still), and where it takes off more than
    there is, the value is 1. Little of it is left unless an embedding of all rows is still mostly noise: an interval
    that reaches far above the value says so. Samples are taken as independent: rows in both make the value too high.

    A head that must be fitted is fitted to the target, once.

    Args:
        source, target: datasets.
        probe, batches, seed, noise_floor: as of `diversity_coefficient`.
        rows: a batch; None: all there are with `whole`, else 64.
        whole: distance between the embeddings of all batches together; False: mean over pairs of batches, which is 1
            minus the cross diversity: an estimate of that of two batches, with the noise of so few rows.

    Raises:
        ValueError: as `diversity_coefficient`.
    """
    probe = Probe.of(probe).fitted(target)
    if whole:
        return _alignment(*_two(source, target, probe, batches, rows, seed, noise_floor, most=None))
    return _cross(*_two(source, target, probe, batches, rows, seed, noise_floor), sign=-1)


def data_quality(
    source: Any,
    target: Any,
    probe: Any,
    *,
    alpha: float = 0.5,
    batches: int = 16,
    rows: int | None = None,
    seed: int = 0,
    noise_floor: bool = True,
) -> DataQuality:
    """`alpha` times the alignment to a target plus `1 - alpha` times the diversity of the source.

    Args:
        source, target: datasets.
        alpha: share of the alignment; nobody knows the best.
        probe, batches, rows, seed, noise_floor: as of `diversity_coefficient`. The alignment is that of all batches
            together.

    Raises:
        ValueError: as `diversity_coefficient`; `alpha` not from 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} is no share; give 0 (diversity alone) to 1 (alignment alone)")
    probe = Probe.of(probe).fitted(target)
    mine, theirs = _two(source, target, probe, batches, rows, seed, noise_floor)
    alignment, diversity = _alignment(mine, theirs), _diversity(mine, False)
    return combine(alignment, diversity, alpha)


def diversity_matrix(
    parts: Mapping[str, Any],
    probe: Any,
    *,
    batches: int = 16,
    rows: int | None = None,
    seed: int = 0,
    noise_floor: bool = True,
) -> dict[tuple[str, str], Coefficient]:
    """Diversity of each of several datasets, and cross diversity of each two: every batch is embedded once.

    Args:
        parts: datasets by name.
        probe, batches, rows, seed, noise_floor: as of `diversity_coefficient`.

    Returns:
        By both names, in the order given; the first before the second.
    """
    probe = decided(Probe.of(probe), *parts.values())
    found = {
        name: embed_batches(ds, replace(probe, seed=probe.seed + 2 * i), batches, rows, seed, noise_floor=noise_floor)
        for i, (name, ds) in enumerate(parts.items())
    }
    out = {}
    for i, a in enumerate(found):
        out[a, a] = _diversity(found[a], False)
        for b in list(found)[i + 1 :]:
            out[a, b] = _cross(found[a], found[b])
    return out


def alignment_matrix(
    sources: Mapping[str, Any],
    targets: Mapping[str, Any],
    probe: Any,
    *,
    batches: int = 16,
    rows: int | None = None,
    seed: int = 0,
    noise_floor: bool = True,
) -> dict[tuple[str, str], Coefficient]:
    """Alignment of each source to each target, of all batches together: every batch is embedded once.

    Args:
        sources, targets: datasets by name.
        probe: whose head is kept, or fitted already.
        batches, rows, seed, noise_floor: as of `alignment_coefficient`.

    Returns:
        By the names of source and target.

    Raises:
        ValueError: as `diversity_coefficient`; a head that would have to be fitted to each target.
    """
    probe = Probe.of(probe)
    if probe.fits:
        raise ValueError("a head fitted to each target would make columns incomparable; use probe.fitted(ds) first")
    both = []
    for start, parts in ((0, sources), (2, targets)):
        labels = replace(probe, seed=probe.seed + start)
        both.append(
            {
                name: embed_batches(ds, labels, batches, rows, seed + start, noise_floor=noise_floor, most=None)
                for name, ds in parts.items()
            }
        )
    return {(a, b): _alignment(x, y) for a, x in both[0].items() for b, y in both[1].items()}


def combine(alignment: Coefficient, diversity: Coefficient, alpha: float) -> DataQuality:
    """Both terms weighted; a coefficient without an `estimate` counts as known."""
    parts = [(alignment, alpha), (diversity, 1 - alpha)]
    estimates = [
        (Estimate(part.value, (), part.batches) if part.estimate is None else part.estimate).times(weight)
        for part, weight in parts
    ]
    floor = None if diversity.noise_floor is None else (1 - alpha) * diversity.noise_floor
    value = sum(weight * part.value for part, weight in parts)
    return DataQuality(value, estimates[0].plus(estimates[1]).interval, floor, alignment, diversity)


def diversity_bounds(
    probe: Any, *, batches: int = 16, rows: int = ROWS, length: int | None = None, seed: int = 0
) -> tuple[Coefficient, Coefficient]:
    """Diversity of the least and of the most diverse tokens, as a language model sees them.

    The least: one token, the same in all of it, but for the end of text at odds of one in the vocabulary. The most:
    every token at random.

    Random tokens are alike in all but which words occur, and that shows in the tables of embeddings: take a probe with
    `tables=True`, and compare with datasets under the same probe, or the upper bound need not lie above them.

    Args:
        probe: of a transformers language model.
        batches, rows, seed: as of `diversity_coefficient`.
        length: tokens a row; None: the probe's limit.

    Returns:
        The lower and the upper bound.

    Raises:
        ValueError: the probe is no language model in a folder or on the Hub.

    Reference: Lee, Miranda et al., 2023, arXiv 2306.13840.
    """
    from datasets import Dataset

    from hf_prune.networks.plan import config_of

    probe = Probe.of(probe)
    reader = probe.reader()
    if reader.own or reader.task != "language_model":
        raise ValueError(f"{probe.model.label}: bounds are made of tokens, for language models of transformers only")
    vocabulary = int(config_of(probe.model).get_text_config().vocab_size)
    tokenizer = probe.model.processor()
    special = set(tokenizer.all_special_ids)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(special, default=0)
    rng = np.random.default_rng(seed)
    shape = (batches * rows, length or reader.max_length)
    plain = np.array([token for token in range(vocabulary) if token not in special])
    least = np.where(rng.random(shape) < 1 / vocabulary, end, rng.choice(plain))
    most = rng.integers(0, vocabulary, shape)
    found = []
    for tokens in (least, most):
        # ids of their own: rows of equal tokens must not draw equal labels
        ds = Dataset.from_dict({"input_ids": list(tokens), "row_id": [str(row) for row in range(len(tokens))]})
        found.append(diversity_coefficient(ds, probe, batches=batches, rows=rows, seed=seed))
    return found[0], found[1]


def _diversity(found: Batches, reference_compat: bool) -> Coefficient:
    vectors, m = found.vectors, len(found.terms)
    if reference_compat:
        distances = symmetric(vectors[0], vectors[0], REFERENCE_EPS)
        pairs = distances[np.triu_indices(m, 1)]
        pairs = pairs[pairs > 0] if pairs.any() else pairs
        value, spread = float(pairs.mean()), float(pairs.std())
        limits = value - spread, value + spread
        return Coefficient(value, limits, None, spread, distances, m, found.rows, fisher=found.fisher)
    distances = symmetric(vectors[0], vectors[0])
    return _coefficient(of_pairs(distances, found.parts), distances, found, _floor(found))


def _cross(a: Batches, b: Batches, sign: int = 1) -> Coefficient:
    """Mean distance, or 1 minus it for sign -1."""
    distances = symmetric(a.vectors[0], b.vectors[0])
    found = of_cross(distances)
    return _coefficient(found if sign > 0 else found.times(-1, 1), distances, a, _mean(_floor(a), _floor(b)), sign)


def _alignment(a: Batches, b: Batches) -> Coefficient:
    matrix = symmetric(a.vectors[0], b.vectors[0])
    found, plain = of_means(a.vectors[0], b.vectors[0], a.terms, b.terms)
    x, y = _together(a), _together(b)
    floor = None if len(x) < 2 else (distance(*x) + distance(*y)) / 2
    return replace(_coefficient(found.times(-1, 1), matrix, a, floor, -1), plain=1 - plain)


def _coefficient(
    found: Estimate, distances: NDArray[np.float64], batches: Batches, floor: float | None, sign: int = 1
) -> Coefficient:
    value, m = float(np.clip(found.value, 0, 1)), min(distances.shape)
    return Coefficient(
        value, found.interval, floor, found.error, distances, m, batches.rows, sign, batches.fisher, estimate=found
    )


def _together(found: Batches) -> NDArray[np.float64]:
    """Embeddings (seeds, D) of all batches as one."""
    return np.asarray(np.einsum("smd,m->sd", found.vectors, found.terms / found.terms.sum()))


def _two(
    a: Any,
    b: Any,
    probe: Probe,
    batches: int,
    rows: int | None,
    seed: int,
    noise_floor: bool,
    most: int | None = ROWS,
) -> tuple[Batches, Batches]:
    """Batches of two datasets. Labels are drawn apart: a dataset beside itself is a distance of two estimates."""
    first = embed_batches(a, probe, batches, rows, seed, noise_floor=noise_floor, most=most)
    other = replace(probe, seed=probe.seed + 2)
    return first, embed_batches(b, other, batches, rows, seed + 1, noise_floor=noise_floor, most=most)


def _floor(found: Batches) -> float | None:
    """Mean distance of the batches' embeddings under two label seeds."""
    if len(found.vectors) < 2:
        return None
    pairs = zip(found.vectors[0], found.vectors[1], strict=True)
    return float(np.mean([symmetric(x[None], y[None])[0, 0] for x, y in pairs]))


def _mean(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else (a + b) / 2
