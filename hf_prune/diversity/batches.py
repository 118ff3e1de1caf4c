"""Random batches of a dataset that share no row, and their Task2Vec embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_dataset
from hf_prune.data import identity
from hf_prune.data.batch import Batch
from hf_prune.data.formats import unformatted
from hf_prune.data.reading import decoded
from hf_prune.fisher.probe import FEW, Probe
from hf_prune.fisher.task2vec import task2vec

LEAST = 8  # batches: fewer leave the jackknife nothing to go by
ROWS = 64  # a batch, where there are enough
MIXES = ("concatenated", "interleaved")


class Batches(NamedTuple):
    """Embeddings of random batches.

    Attributes:
        vectors: (seeds, M, D).
        terms: (M,) what each is the mean of.
        rows: a batch.
        fisher: whose labels: "exact", "sampled", "empirical" or "published".
        parts: (M,) which of several datasets each batch is of; None: all are alike.
    """

    vectors: NDArray[np.float64]
    terms: NDArray[np.int64]
    rows: int
    fisher: str = ""
    parts: NDArray[np.int64] | None = None


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
        probe: with its label seed; `decided`.
        noise_floor: embed with a second label seed too.
        most: rows a batch, where `rows` is None; None: all.

    Raises:
        ValueError: fewer than 8 batches, or more rows than there are: says how many would do.
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
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise ValueError(f"rows={rows!r} is no number of rows; give 1 or more, or None")
    chosen = max(1, _fitting(sizes, shares, batches, mix, most)) if rows is None else rows
    quotas = _quotas(batches, chosen, shares, mix)
    for size, need in zip(sizes, quotas.sum(0).tolist(), strict=True):
        if need > size:
            one = f"{chosen} row{'s' if chosen > 1 else ''}"
            raise ValueError(
                f"{batches} batches of {one} need {need} rows of a dataset that has {size}; batches share no row: "
                f"{_advice(sizes, shares, batches, mix)}"
            )
    picked, groups = [], []
    for part, quota in zip(parts, quotas.T, strict=True):
        order = _order(part, probe, seed)[: quota.sum()]
        picked.append(part.select(order))
        groups.append(np.repeat(np.arange(batches), quota))
    drawn, group = concatenate_datasets(picked), np.concatenate(groups)
    # exact and empirical Fishers draw no labels, a second seed would give the same again
    seeds = [probe.seed, probe.seed + 1] if noise_floor else [probe.seed]
    vectors, terms, fisher = _embed_groups(drawn, group, batches, probe, seeds)
    owner = quotas.argmax(1) if mix == "concatenated" and len(parts) > 1 else None
    return Batches(vectors, terms, chosen, fisher, owner)


def decided(probe: Probe, *datasets: Any) -> Probe:
    """The probe with one kind of Fisher for all batches of a comparison.

    Where each batch gets a head of its own, `fisher="auto"` would be exact for batches that happen to see 16 classes or
    fewer and sampled for others, which adds label noise to some distances only. The classes of all the data decide.
    """
    if probe.fisher != "auto" or not probe.fits:
        return probe  # one head, one number of classes
    parts = [part for ds in datasets for part in (ds if isinstance(ds, (list, tuple)) else [ds])]
    plain = [_plain(part, probe) for part in parts]
    seen = {value for part in plain if probe.label in part.column_names for value in part.unique(probe.label)}
    exact = probe.reader().task != "language_model" and len(seen) <= FEW
    return replace(probe, fisher="exact" if exact else "sampled")


def _embed_groups(
    ds: Any, groups: NDArray[np.int64], count: int, probe: Probe, seeds: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.int64], str]:
    """Embeddings (seeds, count, D) of groups of rows, the terms of each, and which Fisher it is."""
    from hf_prune.fisher.passes import Runner

    if probe.fits:
        apart = [ds.select(np.flatnonzero(groups == group)) for group in range(count)]
        found = [_embed_groups(part, np.zeros(len(part), np.int64), 1, probe.fitted(part), seeds) for part in apart]
        return np.concatenate([v for v, _, _ in found], 1), np.concatenate([t for _, t, _ in found]), found[0][2]
    if probe.fisher == "published":
        parts = [ds.select(np.flatnonzero(groups == group)) for group in range(count)]
        every = [[task2vec(part, probe, seed=seed) for part in parts] for seed in seeds]
        vectors = np.array([[embedding.vector for embedding in found] for found in every])
        return vectors, np.array([embedding.terms for embedding in every[0]]), probe.fisher
    runner = Runner(probe)
    sums, terms, start = np.zeros(()), np.zeros(count, np.int64), 0
    for batch in decoded(ds, "task2vec", "Squared gradients"):
        mine = groups[start : start + batch.n]
        found_sums, found_terms = runner.sums(batch, seeds, mine, count)
        sums, terms, start = sums + found_sums, terms + found_terms, start + batch.n
    return sums / runner.squares.fan_in.numpy() / terms[:, None], terms, runner.fisher


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
    keys = identity.row_keys(ds, "row_id" if "row_id" in ds.column_names else _column(ds, probe))
    keys = keys + identity.seeded(identity.occurrence(keys).astype(np.uint64), 0)
    return np.asarray(np.argsort(identity.seeded(keys, seed), kind="stable"))


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
    """The most rows a batch that the datasets have enough for; 0: not even one."""
    rows = min(most or max(sizes), sum(sizes) // batches)
    while rows > 0 and (_quotas(batches, rows, shares, mix).sum(0) > sizes).any():
        rows -= 1
    return rows


def _advice(sizes: list[int], shares: NDArray[np.float64], batches: int, mix: str) -> str:
    """What would do instead."""
    if rows := _fitting(sizes, shares, batches, mix, None):
        return f"use rows={rows} or fewer, or more data"
    for fewer in range(batches - 1, LEAST - 1, -1):
        if _fitting(sizes, shares, fewer, mix, None):
            return f"use batches={fewer} or fewer ({LEAST} at least), or more data"
    return f"use more data; {LEAST} batches of one row are the least"
