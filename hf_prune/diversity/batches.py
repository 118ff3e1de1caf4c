"""Random batches of a dataset that share no row, and their Task2Vec embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_choice, check_count, check_dataset
from hf_prune.data import identity
from hf_prune.data.batch import Batch
from hf_prune.data.formats import unformatted
from hf_prune.data.reading import decoded
from hf_prune.fisher.probe import MAX_EXACT_CLASSES, Probe
from hf_prune.networks.inputs import TextCounts

MIN_BATCHES = 8  # fewer leave the jackknife nothing to go by
BATCH_ROWS = 64  # where there are enough

Mix: TypeAlias = Literal["concatenated", "interleaved"]


class Batches(NamedTuple):
    """Embeddings of random batches.

    Attributes:
        vectors: (seeds, M, D) embedding of each batch under each label seed.
        terms: (M,) number of loss terms that each is the mean of.
        batch_rows: number of rows of a batch.
        fisher: whose labels: "exact", "sampled", "empirical" or "published".
        parts: (M,) index of the dataset that each batch is of, where there are several; None: all are alike.
        counts: texts that were read, and that were cut.
    """

    vectors: NDArray[np.float64]
    terms: NDArray[np.int64]
    batch_rows: int
    fisher: str = ""
    parts: NDArray[np.int64] | None = None
    counts: TextCounts = TextCounts()


def embed_batches(
    ds: Any,
    probe: Probe,
    *,
    batches: int,
    batch_rows: int | None,
    seed: int,
    mix: Mix = "concatenated",
    weights: Sequence[float] | None = None,
    noise_floor: bool = True,
    limit: int | None = BATCH_ROWS,
) -> Batches:
    """Embed random batches that share no row, all in one pass of the network.

    Args:
        ds: a dataset, or a list of them.
        probe: a probe with its label seed, of one kind of Fisher: see `decided`.
        batches: number M of batches, 8 or more.
        batch_rows: number of rows of a batch; None: what there is, up to `limit`.
        seed: seed of the batches.
        mix: as of `diversity_coefficient`.
        weights: as of `diversity_coefficient`.
        noise_floor: whether to embed with a second label seed too; True by default.
        limit: largest number of rows of a batch where `batch_rows` is None; 64 by default, None: all rows there are.

    Raises:
        TypeError: no `Dataset`, or a stream.
        ValueError: fewer than 8 batches, or more rows than there are: says how many would do.
    """
    from datasets import concatenate_datasets

    check_choice("mix", mix, get_args(Mix))
    try:
        check_count("batches", batches, MIN_BATCHES)
    except ValueError as error:
        raise ValueError(f"{error}: fewer give no interval worth the name") from None
    check_count("batch_rows", batch_rows, optional=True)
    parts = [_read_columns(part, probe) for part in _listed(ds)]
    if not parts:
        raise ValueError("the list holds no dataset; give one or more")
    shares = _shares(weights, len(parts))
    sizes = [len(part) for part in parts]
    rows = max(1, _fitting(sizes, shares, batches, mix, limit)) if batch_rows is None else batch_rows
    quotas = _quotas(batches, rows, shares, mix)
    for size, need in zip(sizes, quotas.sum(0).tolist(), strict=True):
        if need > size:
            one = f"{rows} row{'s' if rows > 1 else ''}"
            raise ValueError(
                f"{batches} batches of {one} need {need} rows of a dataset that has {size}; batches share no row: "
                f"{_advice(sizes, shares, batches, mix)}"
            )
    picked, groups = [], []
    for part, quota in zip(parts, quotas.T, strict=True):
        picked.append(part.select(_order(part, probe, seed)[: quota.sum()]))
        groups.append(np.repeat(np.arange(batches), quota))
    # exact and empirical Fishers draw no labels, a second seed would give the same again
    seeds = [probe.seed, probe.seed + 1] if noise_floor else [probe.seed]
    embedded = _embed_groups(concatenate_datasets(picked), np.concatenate(groups), batches, probe, seeds)
    owner = quotas.argmax(1) if mix == "concatenated" and len(parts) > 1 else None
    return embedded._replace(batch_rows=rows, parts=owner)


def decided(probe: Probe, *datasets: Any) -> Probe:
    """The probe with one kind of Fisher for all batches of a comparison.

    Where each batch gets a head of its own, `fisher="auto"` would be exact for batches that happen to see 16 classes or
    fewer and sampled for others, which adds label noise to some distances only. The classes of all the data decide.
    """
    if probe.fisher != "auto" or not probe.fits:
        return probe  # one head, one number of classes
    parts = [_read_columns(part, probe) for ds in datasets for part in _listed(ds)]
    classes = {value for part in parts if probe.label in part.column_names for value in part.unique(probe.label)}
    exact = probe.reader().task != "language_model" and len(classes) <= MAX_EXACT_CLASSES
    return replace(probe, fisher="exact" if exact else "sampled")


def _embed_groups(ds: Any, groups: NDArray[np.int64], count: int, probe: Probe, seeds: list[int]) -> Batches:
    """Embed `count` groups of rows, each row's named by `groups` (n,)."""
    from hf_prune.fisher.passes import Runner
    from hf_prune.fisher.published import published_task2vec

    if probe.fits or probe.fisher == "published":
        apart = [ds.select(np.flatnonzero(groups == group)) for group in range(count)]
        if probe.fits:
            alone = [_embed_groups(part, np.zeros(len(part), np.int64), 1, probe.fitted(part), seeds) for part in apart]
            vectors, terms = (np.concatenate([one[i] for one in alone], axis) for i, axis in ((0, 1), (1, 0)))
            return Batches(vectors, terms, 0, alone[0].fisher, None, sum((b.counts for b in alone), TextCounts()))
        every = [[published_task2vec(part, replace(probe, seed=seed)) for part in apart] for seed in seeds]
        vectors = np.array([[embedding.vector for embedding, _ in alike] for alike in every])
        terms, counts = np.array([e.terms for e, _ in every[0]]), sum((c for _, c in every[0]), TextCounts())
        return Batches(vectors, terms, 0, probe.fisher, None, counts)
    runner = Runner(probe)
    sums, terms, start = np.zeros(()), np.zeros(count, np.int64), 0
    for batch in decoded(ds, "task2vec", "Squared gradients"):
        more, more_terms = runner.sums(batch, seeds, groups[start : start + batch.n], count)
        sums, terms, start = sums + more, terms + more_terms, start + batch.n
    vectors = sums / runner.squares.fan_in.numpy() / terms[:, None]
    return Batches(vectors, terms, 0, runner.fisher, None, runner.reader.counts)


def _listed(ds: Any) -> Sequence[Any]:
    """The datasets of a list, or one as a list."""
    return ds if isinstance(ds, (list, tuple)) else [ds]


def _read_columns(ds: Any, probe: Probe) -> Any:
    """A dataset that can be chosen from, with the columns that are read."""
    check_dataset(ds, "a coefficient")
    if not len(ds):
        raise ValueError("there are no rows in the dataset; give one that has some")
    read = {_column(ds, probe), "row_id"}
    if probe.fits or probe.fisher == "empirical":
        read.add(probe.label)
    return ds.select_columns([name for name in ds.column_names if name in read])


def _column(ds: Any, probe: Probe) -> str:
    return probe.reader().reads(Batch(unformatted(ds)[:1], "this coefficient"))[0]


def _order(ds: Any, probe: Probe, seed: int) -> NDArray[np.int64]:
    """Rows (n,) in an order drawn by their ids, or by their content, whatever order they are in."""
    keys = identity.row_keys(ds, "row_id" if "row_id" in ds.column_names else _column(ds, probe))
    keys = keys + identity.seeded(identity.occurrence(keys).astype(np.uint64), 0)
    return np.asarray(np.argsort(identity.seeded(keys, seed), kind="stable"))


def _shares(weights: Sequence[float] | None, parts: int) -> NDArray[np.float64]:
    shares = np.ones(parts) if weights is None else np.asarray(weights, np.float64)
    if shares.shape != (parts,) or not (shares > 0).all() or not np.isfinite(shares).all():
        raise ValueError(f"weights={weights}: give a positive share for each of the {parts} datasets")
    return np.asarray(shares / shares.sum())


def _quotas(batches: int, rows: int, shares: NDArray[np.float64], mix: Mix) -> NDArray[np.int64]:
    """Number of rows of each of P datasets in each of M batches, (M, P)."""
    if mix == "interleaved":
        return np.tile(_rounded(rows, shares), (batches, 1))
    owner = np.repeat(np.arange(len(shares)), _rounded(batches, shares))
    return np.asarray(rows * (owner[:, None] == np.arange(len(shares))), np.int64)


def _rounded(total: int, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers near `total * shares` that add up to the total: largest remainders first."""
    exact = total * shares
    whole = np.floor(exact + 1e-9).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: total - whole.sum()]] += 1
    return whole


def _fitting(sizes: list[int], shares: NDArray[np.float64], batches: int, mix: Mix, limit: int | None) -> int:
    """The largest number of rows of a batch that the datasets have enough for, up to a limit; 0: not even one."""
    rows = min(limit or max(sizes), sum(sizes) // batches)
    while rows > 0 and (_quotas(batches, rows, shares, mix).sum(0) > sizes).any():
        rows -= 1
    return rows


def _advice(sizes: list[int], shares: NDArray[np.float64], batches: int, mix: Mix) -> str:
    """What would do instead."""
    if rows := _fitting(sizes, shares, batches, mix, None):
        return f"use batch_rows={rows} or fewer, or more data"
    for fewer in range(batches - 1, MIN_BATCHES - 1, -1):
        if _fitting(sizes, shares, fewer, mix, None):
            return f"use batches={fewer} or fewer ({MIN_BATCHES} at least), or more data"
    return f"use more data; {MIN_BATCHES} batches of one row are the minimum"
