"""Diversity, alignment and data quality: distances between the Task2Vec embeddings of batches of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hf_prune.checks import check_count, check_number
from hf_prune.diversity.batches import BATCH_ROWS, Batches, Mix, decided, embed_batches
from hf_prune.diversity.results import (
    Coefficient,
    DataQuality,
    alignment_of,
    combine,
    cross_diversity_of,
    diversity_as_published,
    diversity_of,
)
from hf_prune.fisher.probe import Probe
from hf_prune.networks.inputs import TextCounts

if TYPE_CHECKING:
    from datasets import Dataset


class _Drawn(NamedTuple):
    """A dataset, and what is added to the seeds of its labels and of its batches, so that two are drawn apart."""

    ds: Any
    labels: int = 0
    batches: int = 0


class _Sampling(NamedTuple):
    """How batches are drawn: the arguments that all coefficients have in common."""

    batches: int
    batch_rows: int | None
    seed: int
    noise_floor: bool
    limit: int | None = BATCH_ROWS

    def embed(self, probe: Probe, *drawn: _Drawn, **mixing: Any) -> list[Batches]:
        """Embed the batches of each dataset; one warning says how many texts of all of them were cut."""
        from hf_prune.fisher.passes import warn_of_cuts

        embedded = [
            embed_batches(
                ds,
                replace(probe, seed=probe.seed + labels),
                batches=self.batches,
                batch_rows=self.batch_rows,
                seed=self.seed + batches,
                noise_floor=self.noise_floor,
                limit=self.limit,
                **mixing,
            )
            for ds, labels, batches in drawn
        ]
        warn_of_cuts(sum((one.counts for one in embedded), TextCounts()), probe.reader())
        return embedded


def diversity_coefficient(
    ds: Dataset | Sequence[Dataset],
    probe: Any,
    *,
    batches: int = 16,
    batch_rows: int | None = None,
    seed: int = 0,
    mix: Mix = "concatenated",
    weights: Sequence[float] | None = None,
    noise_floor: bool = True,
    as_published: bool = False,
) -> Coefficient:
    """Mean distance between the Task2Vec embeddings of random batches: how many kinds of data there are.

        div(D) = E d(f(B), f(B'))  over batches B, B' of D,    d(a, b) = 1 - cos(a / (a + b), b / (a + b))

    An estimate, without bias, of the expected distance between two batches of so many rows of the distribution that the
    data come from, noise of rows and labels included. Batches share no row. Values can be compared for one probe and
    one number of rows of a batch only; beside them, `diversity_bounds` says what the probe makes of noise. A probe with
    `head="fit"` gets its head anew for each batch, as published, and its Fisher is exact for all batches or sampled for
    all, by the number of classes in the data; otherwise all batches go through the network in one pass.

    Args:
        ds: a dataset, or a list of them.
        probe: a `Probe`, or a model, folder or Hub name.
        batches: number of random batches, 8 or more; 16 by default.
        batch_rows: number of rows of a batch; None, the default: 64, or what there is. Small batches
            are noisy, and distances grow with the noise.
        seed: seed of the batches; 0 by default.
        mix: how several datasets are mixed. "concatenated", the default: each batch is of one of them, all pairs count;
            "interleaved": each batch holds rows of all.
        weights: shares of the datasets, in batches or in each batch's rows; None, the default: equal ones.
        noise_floor: whether to embed with a second label seed too, which costs a backward pass more; True by default.
        as_published: whether to do as the published code does: embeddings of `fisher="published"`, to whose sums 1e-8
            is added; equal batches are left out, and the "interval" is the spread of pairs. Values are far larger: they
            are mostly noise of the labels. False by default.

    Returns:
        The coefficient, with its 95 % interval and the (M, M) distances.

    Raises:
        MissingColumnError: a dataset lacks the column that the probe reads.
        TypeError: a stream, or no dataset.
        ValueError: fewer than 8 batches, or more rows than there are.

    Reference: Lee, Miranda et al., 2023, arXiv 2306.13840.

    >>> import datasets, torch
    >>> ds = datasets.Dataset.from_dict({"embedding": np.random.default_rng(0).normal(size=(64, 2)).tolist()})
    >>> probe = Probe(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)), head="keep")
    >>> diversity_coefficient(ds, probe, batches=8).distances.shape
    (8, 8)
    """
    probe = decided(Probe.of(probe, fisher="published") if as_published else Probe.of(probe), ds)
    sampling = _Sampling(batches, batch_rows, seed, noise_floor and not as_published)
    (embedded,) = sampling.embed(probe, _Drawn(ds), mix=mix, weights=weights)
    return diversity_as_published(embedded) if as_published else diversity_of(embedded)


def cross_diversity_coefficient(
    a: Dataset,
    b: Dataset,
    probe: Any,
    *,
    batches: int = 16,
    batch_rows: int | None = None,
    seed: int = 0,
    noise_floor: bool = True,
) -> Coefficient:
    """Mean distance between the batches of one dataset and those of another.

        cross(A, B) = E d(f(X), f(Y))  over batches X of A, Y of B

    An estimate, without bias, of the expected distance between a batch of the one distribution and one of the other.

    Args:
        a: a dataset.
        b: another dataset; for rows that are in both, labels are drawn apart.
        probe: a `Probe`, or a model, folder or Hub name.
        batches: number of random batches of either, 8 or more; 16 by default.
        batch_rows: number of rows of a batch; None, the default: 64, or what there is.
        seed: seed of the batches; 0 by default.
        noise_floor: whether to embed with a second label seed too, which costs a backward pass more; True by default.

    Returns:
        The coefficient, with its 95 % interval and the (M, M) distances.

    Raises:
        MissingColumnError: a dataset lacks the column that the probe reads.
        TypeError: a stream, or no dataset.
        ValueError: fewer than 8 batches, or more rows than there are.

    Reference: Lee, Miranda et al., 2023, arXiv 2306.13840.

    >>> import datasets, torch
    >>> ds = datasets.Dataset.from_dict({"embedding": np.random.default_rng(0).normal(size=(64, 2)).tolist()})
    >>> probe = Probe(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)), head="keep")
    >>> cross_diversity_coefficient(ds, ds.select(range(32)), probe, batches=8, batch_rows=4).distances.shape
    (8, 8)
    """
    sampling = _Sampling(batches, batch_rows, seed, noise_floor)
    mine, theirs = sampling.embed(decided(Probe.of(probe), a, b), *_apart(a, b))
    return cross_diversity_of(mine, theirs)


def alignment_coefficient(
    source: Dataset,
    target: Dataset,
    probe: Any,
    *,
    batches: int = 16,
    batch_rows: int | None = None,
    seed: int = 0,
    pooled: bool = True,
    noise_floor: bool = True,
) -> Coefficient:
    """1 minus the Task2Vec distance between a source and a target: how much training on one is training on the other.

        align(S, T) = 1 - d(E f(B), E f(C))  over batches B of S, C of T

    An estimate of the alignment of the two distributions: 1 minus the distance between what their rows' embeddings are
    on average, 1 for two samples of one. As it is, that distance is too high by the noise of rows and labels in either
    sample; a jackknife of the second order takes that off (`plain` has it still), and where it takes off more than
    there is, the value is 1. Little of it is left unless an embedding of all rows is still mostly noise: an interval
    that reaches far above the value says so. Samples are taken as independent: rows in both make the value too high.

    A head that must be fitted is fitted to the target, once.

    Args:
        source: dataset that might be trained on.
        target: dataset of what the model is meant for.
        probe: a `Probe`, or a model, folder or Hub name.
        batches: number of random batches of either, 8 or more; 16 by default.
        batch_rows: number of rows of a batch; None, the default: all there are if `pooled`, else 64.
        seed: seed of the batches; 0 by default.
        pooled: whether to take the distance between the embeddings of all batches together, the default; False: the
            mean over pairs of batches, which is 1 minus the cross diversity: an estimate of that of two batches, with
            the noise of so few rows.
        noise_floor: whether to embed with a second label seed too, which costs a backward pass more; True by default.

    Returns:
        The coefficient, with its 95 % interval and the (M, M) distances.

    Raises:
        MissingColumnError: a dataset lacks the column that the probe reads.
        TypeError: a stream, or no dataset.
        ValueError: fewer than 8 batches, or more rows than there are.

    Reference: Lee, Miranda et al., 2023, arXiv 2306.13840.

    >>> import datasets, torch
    >>> ds = datasets.Dataset.from_dict({"embedding": np.random.default_rng(0).normal(size=(64, 2)).tolist()})
    >>> probe = Probe(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)), head="keep")
    >>> float(alignment_coefficient(ds.select(range(32)), ds.select(range(32, 64)), probe, batches=8)) > 0.8
    True
    """
    probe = Probe.of(probe).fitted(target)
    sampling = _Sampling(batches, batch_rows, seed, noise_floor, limit=None if pooled else BATCH_ROWS)
    mine, theirs = sampling.embed(probe, *_apart(source, target))
    return alignment_of(mine, theirs) if pooled else cross_diversity_of(mine, theirs, sign=-1)


def data_quality(
    source: Dataset,
    target: Dataset,
    probe: Any,
    *,
    alpha: float = 0.5,
    batches: int = 16,
    batch_rows: int | None = None,
    seed: int = 0,
    noise_floor: bool = True,
) -> DataQuality:
    """Alignment to a target and diversity of the source as one number.

        quality(S, T) = alpha align(S, T) + (1 - alpha) div(S)

    Args:
        source: dataset that might be trained on.
        target: dataset of what the model is meant for.
        probe: a `Probe`, or a model, folder or Hub name.
        alpha: weight of the alignment, 0 to 1; 0.5 by default. Nobody knows the best.
        batches: number of random batches of either, 8 or more; 16 by default.
        batch_rows: number of rows of a batch; None, the default: 64, or what there is.
        seed: seed of the batches; 0 by default.
        noise_floor: whether to embed with a second label seed too, which costs a backward pass more; True by default.

    Returns:
        The weighted sum with its 95 % interval, and both coefficients; the alignment is that of all batches together.

    Raises:
        MissingColumnError: a dataset lacks the column that the probe reads.
        TypeError: a stream, or no dataset.
        ValueError: fewer than 8 batches, or more rows than there are; `alpha` not from 0 to 1.

    Reference: Lee, Miranda et al., 2023, arXiv 2306.13840.

    >>> import datasets, torch
    >>> ds = datasets.Dataset.from_dict({"embedding": np.random.default_rng(0).normal(size=(64, 2)).tolist()})
    >>> probe = Probe(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)), head="keep")
    >>> quality = data_quality(ds, ds, probe, batches=8, alpha=0.25)
    >>> abs(float(quality) - 0.25 * quality.alignment.value - 0.75 * quality.diversity.value) < 1e-9
    True
    """
    check_number("alpha", alpha, 0, 1)
    sampling = _Sampling(batches, batch_rows, seed, noise_floor)
    mine, theirs = sampling.embed(Probe.of(probe).fitted(target), *_apart(source, target))
    return combine(alignment_of(mine, theirs), diversity_of(mine), alpha)


def diversity_matrix(
    parts: Mapping[str, Dataset],
    probe: Any,
    *,
    batches: int = 16,
    batch_rows: int | None = None,
    seed: int = 0,
    noise_floor: bool = True,
) -> dict[tuple[str, str], Coefficient]:
    """Diversity of each of several datasets, and cross diversity of each two: every batch is embedded once.

    Args:
        parts: datasets by name.
        probe: a `Probe`, or a model, folder or Hub name.
        batches: number of random batches of each dataset, 8 or more; 16 by default.
        batch_rows: number of rows of a batch; None, the default: 64, or what there is.
        seed: seed of the batches; 0 by default.
        noise_floor: whether to embed with a second label seed too, which costs a backward pass more; True by default.

    Returns:
        Coefficients by both names, in the order given, the first before the second.

    Raises:
        MissingColumnError: a dataset lacks the column that the probe reads.
        TypeError: a stream, or no dataset.
        ValueError: fewer than 8 batches, or more rows than there are.

    >>> import datasets, torch
    >>> ds = datasets.Dataset.from_dict({"embedding": np.random.default_rng(0).normal(size=(64, 2)).tolist()})
    >>> probe = Probe(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)), head="keep")
    >>> list(diversity_matrix({"a": ds, "b": ds}, probe, batches=8))
    [('a', 'a'), ('a', 'b'), ('b', 'b')]
    """
    sampling = _Sampling(batches, batch_rows, seed, noise_floor)
    drawn = [_Drawn(ds, labels=2 * i) for i, ds in enumerate(parts.values())]
    embedded = dict(zip(parts, sampling.embed(decided(Probe.of(probe), *parts.values()), *drawn), strict=True))
    out = {}
    for i, a in enumerate(embedded):
        out[a, a] = diversity_of(embedded[a])
        for b in list(embedded)[i + 1 :]:
            out[a, b] = cross_diversity_of(embedded[a], embedded[b])
    return out


def alignment_matrix(
    sources: Mapping[str, Dataset],
    targets: Mapping[str, Dataset],
    probe: Any,
    *,
    batches: int = 16,
    batch_rows: int | None = None,
    seed: int = 0,
    noise_floor: bool = True,
) -> dict[tuple[str, str], Coefficient]:
    """Alignment of each source to each target, of all batches together: every batch is embedded once.

    Args:
        sources: datasets that might be trained on, by name.
        targets: datasets of what models are meant for, by name.
        probe: a `Probe` whose head is kept, or fitted already.
        batches: number of random batches of each dataset, 8 or more; 16 by default.
        batch_rows: number of rows of a batch; None, the default: all there are.
        seed: seed of the batches; 0 by default.
        noise_floor: whether to embed with a second label seed too, which costs a backward pass more; True by default.

    Returns:
        Coefficients by the names of source and target.

    Raises:
        MissingColumnError: a dataset lacks the column that the probe reads.
        TypeError: a stream, or no dataset.
        ValueError: fewer than 8 batches, or more rows than there are; a head that would have to be
            fitted to each target.

    >>> import datasets, torch
    >>> ds = datasets.Dataset.from_dict({"embedding": np.random.default_rng(0).normal(size=(64, 2)).tolist()})
    >>> probe = Probe(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)), head="keep")
    >>> list(alignment_matrix({"a": ds, "b": ds}, {"target": ds}, probe, batches=8, noise_floor=False))
    [('a', 'target'), ('b', 'target')]
    """
    probe = Probe.of(probe)
    if probe.fits:
        raise ValueError("a head fitted to each target would make columns incomparable; use probe.fitted(ds) first")
    sampling = _Sampling(batches, batch_rows, seed, noise_floor, None)
    drawn = [_Drawn(ds) for ds in sources.values()] + [_Drawn(ds, labels=2, batches=2) for ds in targets.values()]
    embedded = sampling.embed(probe, *drawn)
    mine, theirs = embedded[: len(sources)], embedded[len(sources) :]
    return {
        (a, b): alignment_of(x, y)
        for a, x in zip(sources, mine, strict=True)
        for b, y in zip(targets, theirs, strict=True)
    }


def diversity_bounds(
    probe: Any, *, batches: int = 16, batch_rows: int = BATCH_ROWS, length: int | None = None, seed: int = 0
) -> tuple[Coefficient, Coefficient]:
    """Diversity of the least and of the most diverse tokens, as a language model sees them.

    The least diverse: one token throughout, except that each may be the end of text, with probability 1 over the size
    of the vocabulary. The most diverse: every token at random.

    Random tokens are alike in all but which tokens occur, and that shows in the embedding tables: take a probe with
    `tables=True`, and compare with datasets under the same probe, or the upper bound need not lie above them.

    Args:
        probe: a `Probe` of a transformers language model, or its folder or Hub name.
        batches: number of random batches, 8 or more; 16 by default.
        batch_rows: number of rows of a batch; 64 by default.
        seed: seed of the batches; 0 by default.
        length: number of tokens of a row; None, the default: the probe's limit.

    Returns:
        The lower and the upper bound.

    Raises:
        ValueError: the probe is no language model in a folder or on the Hub.

    Reference: Lee, Miranda et al., 2023, arXiv 2306.13840.

    >>> low, high = diversity_bounds("openai-community/gpt2", length=32)  # doctest: +SKIP
    """
    from datasets import Dataset

    from hf_prune.networks.plan import config_of

    check_count("length", length, optional=True)
    probe = Probe.of(probe)
    reader = probe.reader()
    if reader.own or reader.task != "language_model":
        raise ValueError(f"{probe.model.label}: bounds are made of tokens, for language models of transformers only")
    vocabulary = int(config_of(probe.model).get_text_config().vocab_size)
    tokenizer = probe.model.processor()
    special = set(tokenizer.all_special_ids)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(special, default=0)
    rng = np.random.default_rng(seed)
    shape = (batches * batch_rows, length or reader.max_length)
    plain = np.array([token for token in range(vocabulary) if token not in special])
    lower = np.where(rng.random(shape) < 1 / vocabulary, end, rng.choice(plain))
    upper = rng.integers(0, vocabulary, shape)
    bounds = []
    for tokens in (lower, upper):
        # ids of their own: rows of equal tokens must not draw equal labels
        ds = Dataset.from_dict({"input_ids": list(tokens), "row_id": [str(row) for row in range(len(tokens))]})
        bounds.append(diversity_coefficient(ds, probe, batches=batches, batch_rows=batch_rows, seed=seed))
    return bounds[0], bounds[1]


def _apart(a: Any, b: Any) -> tuple[_Drawn, _Drawn]:
    """Two datasets whose labels are drawn apart: a dataset beside itself is a distance of two estimates."""
    return _Drawn(a), _Drawn(b, labels=2, batches=1)
