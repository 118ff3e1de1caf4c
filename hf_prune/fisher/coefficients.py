"""Diversity, alignment and data quality: distances between the Task2Vec embeddings of batches of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_prune import rows as rows_of
from hf_prune._formats import unformatted
from hf_prune.batch import Batch
from hf_prune.checks import check_dataset
from hf_prune.fisher.distance import (
    interval,
    jackknife,
    jackknife_cross,
    jackknife_pairs,
    mean_pairs,
    symmetric,
)
from hf_prune.fisher.embedding import batches_of, task2vec
from hf_prune.fisher.probe import Probe

LEAST = 8  # batches: fewer leave the jackknife nothing to go by
ROWS = 64  # a batch, where there are enough
MIXES = ("concatenated", "interleaved")
REFERENCE_EPS = 1e-8


@dataclass(frozen=True, eq=False)
class Coefficient:
    """A number for a dataset, with what is known of its error. `float(x)` is its value.

    Attributes:
        value: the coefficient.
        interval: 95 %, by a jackknife over batches.
        noise_floor: distance between two label seeds on the same data. Distances hold about as much of it; None if it
            was not asked for.
        error: standard error, of the same jackknife.
        distances: between the batches (diversity: (M, M), cross: (M, N)).
        batches, rows: how many batches, of how many rows.
        corrected: the value with the noise floor taken off the distances.
    """

    value: float
    interval: tuple[float, float]
    noise_floor: float | None
    error: float
    distances: NDArray[np.float64]
    batches: int
    rows: int
    sign: int = 1

    def __float__(self) -> float:
        return self.value

    @property
    def corrected(self) -> float:
        """The value with the noise floor taken off the distances."""
        return self.value - self.sign * (self.noise_floor or 0.0)

    def __str__(self) -> str:
        floor = "" if self.noise_floor is None else f", noise floor {self.noise_floor:.4f}"
        low, high = self.interval
        return f"{self.value:.4f} [{low:.4f}, {high:.4f}]{floor}; {self.batches} batches of {self.rows} rows"


@dataclass(frozen=True, eq=False)
class DataQuality:
    """Alignment and diversity together. `float(x)` is the value.

    Attributes:
        value: weighted sum of both.
        interval: 95 %, as if both erred the same way: wide, since they share the source's batches.
        noise_floor: weighted, of both: alignment is too low by its share, diversity too high.
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


class Batches(NamedTuple):
    """Embeddings of batches: (seeds, M, D), the terms that each is the mean of (M,), rows a batch."""

    vectors: NDArray[np.float64]
    terms: NDArray[np.int64]
    rows: int


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

    Batches share no row. Values can be compared for one probe and one number of rows a batch only; beside them,
    `diversity_bounds` says what the probe makes of noise. A probe with `head="fit"` gets its head anew for each batch,
    as published; otherwise all batches go through the network in one pass.

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
    probe = Probe.of(probe, fisher="published") if reference_compat else Probe.of(probe)
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

    Args:
        a, b: datasets; for rows that are in both, labels are drawn apart.
        probe, batches, rows, seed, noise_floor: as of `diversity_coefficient`; `batches` of either.

    Raises:
        ValueError: as `diversity_coefficient`.
    """
    probe = Probe.of(probe)
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

    A head that must be fitted is fitted to the target, once. A dataset and another sample of it have 1 minus the
    noise floor, not 1: read values beside that one.

    Args:
        source, target: datasets.
        probe, batches, seed, noise_floor: as of `diversity_coefficient`.
        rows: a batch; None: all there are with `whole`, else 64.
        whole: distance between the embeddings of all batches together; False: mean over pairs of batches, which is 1
            minus the cross diversity.

    Raises:
        ValueError: as `diversity_coefficient`.
    """
    probe = Probe.of(probe).fitted(target)
    if whole:
        return _alignment(*_two(source, target, probe, batches, rows, seed, noise_floor, most=None))
    found = _cross(*_two(source, target, probe, batches, rows, seed, noise_floor))
    low, high = found.interval
    return replace(found, value=1 - found.value, interval=(1 - high, 1 - low), sign=-1)


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
    probe = Probe.of(probe)
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
    """Both terms weighted."""
    value = alpha * alignment.value + (1 - alpha) * diversity.value
    error = alpha * alignment.error + (1 - alpha) * diversity.error
    floors = alignment.noise_floor, diversity.noise_floor
    floor = None if None in floors else alpha * floors[0] + (1 - alpha) * floors[1]  # type: ignore[operator]
    return DataQuality(value, interval(value, error, diversity.batches), floor, alignment, diversity)


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

    from hf_prune._embed.plan import config_of

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


def embed_batches(
    ds: Any,
    probe: Probe,
    batches: int,
    rows: int | None,
    seed: int,
    mix: str = "concatenated",
    weights: Sequence[float] | None = None,
    noise_floor: bool = True,
    most: int | None = ROWS,
) -> Batches:
    """Embed random batches that share no row, all in one pass of the network.

    Args:
        ds, batches, rows, seed, mix, weights: as of `diversity_coefficient`.
        probe: with its label seed.
        noise_floor: embed with a second label seed too.
        most: rows a batch, where `rows` is None; None: all.
    """
    from datasets import concatenate_datasets

    if mix not in MIXES:
        raise ValueError(f"mix={mix!r} is not one of {', '.join(MIXES)}")
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < LEAST:
        raise ValueError(
            f"batches={batches!r}: fewer than {LEAST} give no interval worth the name; take {LEAST} or more"
        )
    parts = [_plain(part, probe) for part in (ds if isinstance(ds, (list, tuple)) else [ds])]
    if not parts:
        raise ValueError("there is no dataset in the list")
    shares = _shares(weights, len(parts))
    sizes = [len(part) for part in parts]
    chosen = rows if rows is not None else _fitting(sizes, shares, batches, mix, most)
    quotas = _quotas(batches, chosen, shares, mix)
    for size, need in zip(sizes, quotas.sum(0).tolist(), strict=True):
        if need > size or chosen < 1:
            raise ValueError(
                f"{batches} batches of {chosen} rows need {need} rows of a dataset that has {size}; batches share no "
                "row: use fewer rows, or a larger dataset"
            )
    picked, groups = [], []
    for part, quota in zip(parts, quotas.T, strict=True):
        order = _order(part, probe, seed)[: quota.sum()]
        picked.append(part.select(order))
        groups.append(np.repeat(np.arange(batches), quota))
    drawn, group = concatenate_datasets(picked), np.concatenate(groups)
    # exact and empirical Fishers draw no labels, a second seed would give the same again
    seeds = [probe.seed, probe.seed + 1] if noise_floor else [probe.seed]
    vectors, terms = _embed_groups(drawn, group, batches, probe, seeds)
    return Batches(vectors, terms, chosen)


def _embed_groups(
    ds: Any, groups: NDArray[np.int64], count: int, probe: Probe, seeds: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from hf_prune.fisher.passes import Runner

    if probe.fits:
        apart = [ds.select(np.flatnonzero(groups == group)) for group in range(count)]
        found = [_embed_groups(part, np.zeros(len(part), np.int64), 1, probe.fitted(part), seeds) for part in apart]
        return np.concatenate([v for v, _ in found], 1), np.concatenate([t for _, t in found])
    if probe.fisher == "published":
        parts = [ds.select(np.flatnonzero(groups == group)) for group in range(count)]
        every = [[task2vec(part, probe, seed=seed) for part in parts] for seed in seeds]
        vectors = np.array([[embedding.vector for embedding in found] for found in every])
        return vectors, np.array([embedding.terms for embedding in every[0]])
    runner = Runner(probe)
    sums, terms, start = np.zeros(()), np.zeros(count, np.int64), 0
    for batch in batches_of(ds):
        mine = groups[start : start + batch.n]
        found_sums, found_terms = runner.sums(batch, seeds, mine, count)
        sums, terms, start = sums + found_sums, terms + found_terms, start + batch.n
    return sums / runner.squares.fan_in.numpy() / terms[:, None], terms


def _diversity(found: Batches, reference_compat: bool) -> Coefficient:
    vectors, m = found.vectors, len(found.terms)
    if reference_compat:
        distances = symmetric(vectors[0], vectors[0], REFERENCE_EPS)
        pairs = distances[np.triu_indices(m, 1)]
        pairs = pairs[pairs > 0] if pairs.any() else pairs
        value, spread = float(pairs.mean()), float(pairs.std())
        return Coefficient(value, (value - spread, value + spread), None, spread, distances, m, found.rows)
    distances = symmetric(vectors[0], vectors[0])
    value, error = mean_pairs(distances), jackknife_pairs(distances)
    return Coefficient(value, interval(value, error, m), _floor(found), error, distances, m, found.rows)


def _cross(a: Batches, b: Batches) -> Coefficient:
    distances = symmetric(a.vectors[0], b.vectors[0])
    value, error, m = float(distances.mean()), jackknife_cross(distances), min(distances.shape)
    return Coefficient(value, interval(value, error, m), _mean(_floor(a), _floor(b)), error, distances, m, a.rows)


def _alignment(a: Batches, b: Batches) -> Coefficient:
    def distance(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        return float(symmetric(x[None], y[None])[0, 0])

    (x, y), m = (_together(a), _together(b)), len(a.terms)
    value = 1 - distance(x[0], y[0])
    without_a = [1 - distance(_together(a, leave)[0], y[0]) for leave in range(m)]
    without_b = [1 - distance(x[0], _together(b, leave)[0]) for leave in range(m)]
    error = float(np.hypot(jackknife(np.array(without_a)), jackknife(np.array(without_b))))
    floor = None if len(x) < 2 else (distance(*x) + distance(*y)) / 2
    matrix = symmetric(a.vectors[0], b.vectors[0])
    return Coefficient(value, interval(value, error, m), floor, error, matrix, m, a.rows, -1)


def _together(found: Batches, leave: int | None = None) -> NDArray[np.float64]:
    """Embeddings (seeds, D) of all batches as one, or of all but one."""
    terms = found.terms.astype(np.float64)
    if leave is not None:
        terms[leave] = 0
    return np.asarray(np.einsum("smd,m->sd", found.vectors, terms / terms.sum()))


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


def _plain(ds: Any, probe: Probe) -> Any:
    """The columns that matter, of a dataset that can be chosen from."""
    check_dataset(ds, "a coefficient")
    if not len(ds):
        raise ValueError("there are no rows in the dataset")
    wanted = {_column(ds, probe), "row_id"}
    if probe.fits or probe.fisher == "empirical":
        wanted.add(probe.label)
    return ds.select_columns([name for name in ds.column_names if name in wanted])


def _column(ds: Any, probe: Probe) -> str:
    if "input_ids" in ds.column_names and probe.column is None and "text" not in ds.column_names:
        return "input_ids"
    return probe.reader().reads(Batch(unformatted(ds)[:1], "this coefficient"))[0]


def _order(ds: Any, probe: Probe, seed: int) -> NDArray[np.int64]:
    """Rows in an order drawn by their ids, or by their content, whatever order they are in."""
    keys = rows_of.row_keys(ds, "row_id" if "row_id" in ds.column_names else _column(ds, probe))
    keys = keys + rows_of.seeded(rows_of.occurrence(keys).astype(np.uint64), 0)
    return np.asarray(np.argsort(rows_of.seeded(keys, seed), kind="stable"))


def _shares(weights: Sequence[float] | None, parts: int) -> NDArray[np.float64]:
    shares = np.ones(parts) if weights is None else np.asarray(weights, np.float64)
    if shares.shape != (parts,) or not (shares > 0).all() or not np.isfinite(shares).all():
        raise ValueError(f"weights={weights}: give a positive share for each of the {parts} datasets")
    return np.asarray(shares / shares.sum())


def _quotas(batches: int, rows: int, shares: NDArray[np.float64], mix: str) -> NDArray[np.int64]:
    """Rows (M, P) of each dataset in each batch."""
    if mix == "interleaved":
        return np.tile(_rounded(rows, shares), (batches, 1))
    owner = np.repeat(np.arange(len(shares)), _rounded(batches, shares))
    return np.asarray(rows * (owner[:, None] == np.arange(len(shares))), np.int64)


def _rounded(total: int, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers near `total * shares` that add up to the total: largest remainders first."""
    exact = total * shares
    found = np.floor(exact + 1e-9).astype(np.int64)
    found[np.argsort(found - exact, kind="stable")[: total - found.sum()]] += 1
    return found


def _fitting(sizes: list[int], shares: NDArray[np.float64], batches: int, mix: str, most: int | None) -> int:
    """The most rows a batch that the datasets have enough for."""
    rows = min(most or max(sizes), sum(sizes) // batches)
    while rows > 1 and (_quotas(batches, rows, shares, mix).sum(0) > sizes).any():
        rows -= 1
    return rows
