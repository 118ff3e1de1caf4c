"""Pruning: a score column in, rows out. Knows no scorer, decodes no image, imports no torch.

Memory: at most 100 bytes a row of the dataset on top of the columns read (score, cost, groups, clusters), 150
    with groups or clusters, and 64 MB of rows at a time while a contiguous copy is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import chosen_splits, warn
from hf_prune.data.arrow import column_array
from hf_prune.data.identity import check_seed, uniform
from hf_prune.data.layout import check_layout, take_rows
from hf_prune.prune.draw import METHODS, Method, ccs
from hf_prune.prune.inputs import chunked, clusters_of, costs_of, draw_keys, hashes_of, ids_of, scores_of
from hf_prune.prune.rule import Rule, check_offset, make_rule
from hf_prune.prune.select import (
    Index,
    Mask,
    Pick,
    ShortWarning,
    TieWarning,
    best,
    best_of,
    choose,
    codes_of,
    oriented,
    select,
)
from hf_prune.prune.stream import filter_stream

__all__ = [
    "CalibrationWarning",
    "ShortWarning",
    "TieWarning",
    "filter_by_score",
    "keep_mask",
    "sample_by_score",
    "split_by_score",
]

CALIBRATION_TOLERANCE = 0.02


class CalibrationWarning(UserWarning):
    """The score means something at one keep fraction only, and another one is used."""


@dataclass(frozen=True)
class _Request:
    """A checked call: the rule, and the columns it reads."""

    column: str
    rule: Rule
    seed: int
    cost: str | None = None
    group_by: tuple[str, ...] = ()
    one_per: str | None = None
    row_id: str | None = None
    calibrated_keep: float | None = None


@dataclass(frozen=True)
class _Cut:
    """The hardest rows, which "ccs" drops first: their fraction, which end they are at, and of which column."""

    beta: float
    hardest: str
    key: str | None


def filter_by_score(
    ds: Any,
    column: Any,
    *,
    keep: float | None = None,
    rows: int | None = None,
    threshold: float | None = None,
    budget: float | None = None,
    cost: str | None = None,
    prefer: str = "high",
    seed: int = 0,
    group_by: str | Sequence[str] | None = None,
    group_floor: float | None = None,
    one_per: str | None = None,
    nulls: str = "raise",
    row_id: str | None = "row_id",
    splits: str | Sequence[str] | None = None,
    layout: str = "auto",
    calibrated_keep: float | None = None,
    offset: float = 0.0,
) -> Any:
    """The rows of `ds` that a score column prefers, in dataset order.

    Exactly one of `keep`, `rows`, `threshold` and `budget` says how many. Ties at the cut are decided by a
    seeded hash of the row id (of the position where there is none), never by the id itself; a `TieWarning`
    counts them.

    Args:
        ds: a `Dataset`; a `DatasetDict`, of which only `splits` are pruned; or a stream (`IterableDataset`),
            which can be filtered by `threshold` only.
        column: a score column of bools, ints (compared as ints) or floats; or something with a `name` and a
            `calibrated_keep`, as what a scorer's `describe()` gives.
        keep: fraction of the whole dataset, nulls included: floor(keep * n + 0.5) rows.
        rows: number of rows.
        threshold: keep score >= threshold (<= with prefer="low"), compared in the column's own type.
        budget: keep the longest prefix, best first, whose summed `cost` stays within it. It ends at the first
            row that does not fit, so that a larger budget keeps all that a smaller one keeps.
        cost: column of what each row costs: finite, not negative.
        prefer: "high"; "low"; "middle": rank by score, keep the ranks nearest to the middle one (of two
            equally near the higher); "random": by the seeded hash alone.
        seed: of the hash.
        group_by: column or columns whose groups are protected: each first keeps its own best
            floor(group_floor * k/n * size) rows, then the rest goes by the order of all. With a budget a
            group's floor is its share of the whole cost. Null is a group.
        group_floor: 1 (the default with `group_by`) prunes groups alike, 0 protects none.
        one_per: column of cluster ids: only the best row of each is eligible; null is no cluster. Done before
            the count, which stays a fraction of the whole dataset: if fewer are left, all stay, with a
            `ShortWarning` (without one for keep=1.0, which asks for all there are). A null score that is kept does
            not count against its cluster.
        nulls: rows whose score is null or NaN: "raise", "keep" (always, counted as kept) or "drop".
        row_id: the id column; None for positions.
        splits: of a `DatasetDict`: a name, names, or "all"; "train" by default. Others come back as they are.
        layout: "contiguous" copies the kept rows into an Arrow file in the datasets cache, which later passes
            read at full speed; "indices" maps them, which writes nothing; "auto" copies rows of up to 4 kB.
        calibrated_keep: the fraction at which the score means something; another `keep` warns.
        offset: pass over this fraction of the whole dataset first, the best of the preferred end, and keep the next:
            with noisy labels the hardest rows are often mislabelled. With `group_by` each group passes over its own
            share. Not with a threshold, nor with prefer="middle" or "random".

    Raises:
        KeyError: a column or split is not there.
        TypeError: an argument or column of the wrong type.
        ValueError: an argument out of range, arguments that contradict each other, an empty dataset, nulls.
    Reference: class-balance floor: Sorscher et al., 2022.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"x": ["a", "b", "c", "d"], "score": [0.1, 0.9, 0.3, 0.7]})
    >>> filter_by_score(ds, "score", keep=0.5)["x"][:]
    ['b', 'd']
    >>> filter_by_score(ds, "score", keep=0.5, offset=0.25)["x"][:]
    ['c', 'd']
    """
    request = request_of(
        column, keep=keep, rows=rows, threshold=threshold, budget=budget, cost=cost, prefer=prefer, seed=seed,
        group_by=group_by, group_floor=group_floor, one_per=one_per, nulls=nulls, row_id=row_id,
        calibrated_keep=calibrated_keep, offset=offset,
    )  # fmt: skip
    check_layout(layout)
    if _is_stream(ds):
        return _each(ds, splits, lambda s: filter_stream(s, request.column, request.rule, request.one_per))
    return _each(ds, splits, lambda part: take_rows(part, np.flatnonzero(mask_of(part, request)), layout))


def split_by_score(
    ds: Any,
    column: Any,
    *,
    keep: float | None = None,
    rows: int | None = None,
    threshold: float | None = None,
    budget: float | None = None,
    cost: str | None = None,
    prefer: str = "high",
    seed: int = 0,
    group_by: str | Sequence[str] | None = None,
    group_floor: float | None = None,
    one_per: str | None = None,
    nulls: str = "raise",
    row_id: str | None = "row_id",
    splits: str | Sequence[str] | None = None,
    layout: str = "auto",
    calibrated_keep: float | None = None,
    offset: float = 0.0,
) -> Any:
    """What `filter_by_score` keeps and drops, as DatasetDict(kept=..., dropped=...), both in dataset order.

    Arguments and errors are those of `filter_by_score`; of a `DatasetDict` one split is split.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"x": ["a", "b", "c"], "score": [1, 3, 2]})
    >>> split_by_score(ds, "score", rows=1)["dropped"]["x"][:]
    ['a', 'c']
    """
    from datasets import DatasetDict

    request = request_of(
        column, keep=keep, rows=rows, threshold=threshold, budget=budget, cost=cost, prefer=prefer, seed=seed,
        group_by=group_by, group_floor=group_floor, one_per=one_per, nulls=nulls, row_id=row_id,
        calibrated_keep=calibrated_keep, offset=offset,
    )  # fmt: skip
    check_layout(layout)
    if _is_stream(ds):
        raise TypeError("a stream cannot be split in one pass; filter_by_score with threshold and prefer='low', 'high'")
    chosen = chosen_splits(ds, splits)
    if len(chosen) > 1:
        raise ValueError(f"splits={list(chosen)}: kept and dropped are told apart in one split at a time; name one")
    (part,) = chosen.values()
    mask = mask_of(part, request)
    halves = {"kept": mask, "dropped": ~mask}
    return DatasetDict({name: take_rows(part, np.flatnonzero(half), layout) for name, half in halves.items()})


def keep_mask(
    scores: Any,
    *,
    keep: float | None = None,
    rows: int | None = None,
    threshold: float | None = None,
    budget: float | None = None,
    cost: Any = None,
    prefer: str = "high",
    seed: int = 0,
    groups: Any = None,
    group_floor: float | None = None,
    one_per: Any = None,
    nulls: str = "raise",
    ids: Any = None,
    offset: float = 0.0,
) -> Mask:
    """The rules of `filter_by_score` on arrays: which of n rows stay, (n,) bools.

    Args:
        scores: (n,) numbers, None or NaN for null.
        keep: and rows, threshold, budget, prefer, seed, group_floor, nulls, offset: as there.
        cost: (n,) with a budget.
        groups: (n,) labels.
        one_per: (n,) cluster ids.
        ids: (n,) ids that tell rows apart; positions by default.

    Raises:
        ValueError: as there, and for arrays of another length.

    >>> keep_mask([5, 4, 3, 2, 1, 0], keep=0.5, groups=[0, 0, 0, 0, 1, 1]).tolist()
    [True, True, False, False, True, False]
    """
    rule = make_rule(
        keep=keep, rows=rows, threshold=threshold, budget=budget, prefer=prefer, nulls=nulls,
        grouped=groups is not None, group_floor=group_floor, costed=cost is not None, offset=offset,
    )  # fmt: skip
    column = chunked("scores", scores, None)
    n = len(column)
    values, null = scores_of(column, "scores", nulls)
    return select(
        values,
        null,
        rule,
        hashes_of(None if ids is None else chunked("ids", ids, n), check_seed(seed)),
        cost=None if cost is None else costs_of(chunked("cost", cost, n), "cost"),
        groups=None if groups is None else codes_of([chunked("groups", groups, n)]),
        clusters=None if one_per is None else clusters_of(chunked("one_per", one_per, n)),
    )


def sample_by_score(
    ds: Any,
    column: Any,
    *,
    keep: float | None = None,
    rows: int | None = None,
    method: str = "gumbel",
    seed: int = 0,
    group_by: str | Sequence[str] | None = None,
    group_floor: float | None = None,
    nulls: str = "raise",
    row_id: str | None = "row_id",
    splits: str | Sequence[str] | None = None,
    layout: str = "auto",
    beta: float | None = None,
    key: str | None = None,
    hardest: str | None = None,
    strata: int | None = None,
) -> Any:
    """A random sample without replacement by a score, in dataset order.

    The noise is a pure function of (seed, row id). Where there is no id column all columns are read, and it is one of
    (seed, content, number of the copy). So shuffled rows give the same sample.

    Args:
        ds: a `Dataset` or a `DatasetDict`, as in `filter_by_score`.
        column: score column, as there; also keep, rows, group_by, group_floor, nulls, row_id, splits and
            layout.
        method: "gumbel": the score is a log-weight; "proportional": the score is a weight >= 0; "ccs": as many rows
            as can be from each of `strata` equal parts of the score's range, the thin parts whole (coverage-centric).
        seed: of the noise.
        beta: of "ccs": drop this fraction of the whole dataset first, the hardest rows, which are often mislabelled;
            with `group_by` each group its share. The paper takes 0 for keep=0.7 to 0.3 for keep=0.1.
        key: of "ccs": the column that says what is hard; None: the score. (The paper's is the area under the margin.)
        hardest: of "ccs", with beta: which end of the key is hard, "high" (EL2N) or "low" (margins).
        strata: of "ccs"; 50 by default.

    Raises:
        ValueError: as there; an unknown method; scores that are no weights; too few rows of positive weight; options
            of another method; beta and keep above 1 together.
    Reference: `hf_prune.prune.draw` names the source of each method.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"x": ["a", "b", "c"], "score": [-900.0, 0.0, -900.0]})
    >>> sample_by_score(ds, "score", rows=1)["x"][:]
    ['b']
    >>> ds = Dataset.from_dict({"x": list("abcdef"), "score": [0.0, 0.1, 0.1, 0.2, 0.9, 5.0]})
    >>> sample_by_score(ds, "score", rows=3, method="ccs", beta=1 / 6, hardest="high", strata=3)["x"][:]
    ['a', 'b', 'e']
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is not known; choose one of {', '.join(map(repr, METHODS))}")
    cut = _cut(method, beta, key, hardest, strata, keep)
    draw = partial(ccs, strata=50 if strata is None else strata) if method == "ccs" else METHODS[method]
    request = request_of(
        column, keep=keep, rows=rows, seed=seed, group_by=group_by, group_floor=group_floor, nulls=nulls,
        row_id=row_id,
    )  # fmt: skip
    check_layout(layout)
    if _is_stream(ds):
        raise TypeError("a sample needs the whole column and ds is a stream; materialise it first")

    def sample(part: Any) -> Any:
        return take_rows(part, np.flatnonzero(_sampled(part, request, draw, cut)), layout)

    return _each(ds, splits, sample)


def request_of(
    column: Any,
    *,
    keep: Any,
    rows: Any,
    seed: Any,
    group_by: str | Sequence[str] | None,
    group_floor: Any,
    nulls: str,
    row_id: str | None,
    threshold: Any = None,
    budget: Any = None,
    cost: str | None = None,
    prefer: str = "high",
    one_per: str | None = None,
    calibrated_keep: float | None = None,
    offset: float = 0.0,
) -> _Request:
    """Check the arguments of a call; errors as in `filter_by_score`."""
    name, calibrated = _named(column)
    by = () if group_by is None else (group_by,) if isinstance(group_by, str) else tuple(group_by)
    if group_by is not None and not by:
        raise ValueError("group_by=[] names no column; leave it out")
    rule = make_rule(
        keep=keep, rows=rows, threshold=threshold, budget=budget, prefer=prefer, nulls=nulls,
        grouped=bool(by), group_floor=group_floor, costed=cost is not None, offset=offset,
    )  # fmt: skip
    at = calibrated if calibrated_keep is None else calibrated_keep
    return _Request(name, rule, check_seed(seed), cost, by, one_per, row_id, at)


def _named(column: Any) -> tuple[str, float | None]:
    """Name and calibrated fraction of a column name, a record of provenance, or a scorer with `describe`."""
    if isinstance(column, str):
        return column, None
    record = column.describe() if hasattr(column, "describe") else column
    name = getattr(record, "name", None)
    if not isinstance(name, str):
        raise TypeError(f"column={column!r} is neither a column name nor something with one; give the name")
    return name, getattr(record, "calibrated_keep", None)


def _is_stream(ds: Any) -> bool:
    from datasets import Dataset, IterableDataset, IterableDatasetDict

    if not isinstance(ds, Dataset | dict | IterableDataset):
        raise TypeError(f"ds is a {type(ds).__name__}; give a Dataset, a DatasetDict or an IterableDataset")
    return isinstance(ds, IterableDataset | IterableDatasetDict)


def _each(ds: Any, splits: str | Sequence[str] | None, prune: Any) -> Any:
    chosen = chosen_splits(ds, splits)
    if not isinstance(ds, dict):
        return prune(ds)
    return type(ds)({name: prune(part) if name in chosen else part for name, part in ds.items()})


def mask_of(ds: Any, request: _Request) -> Mask:
    """Whether each row of a dataset is kept, (n,): what `filter_by_score` selects by, for those who need both sides."""
    values, null = _column(ds, request)
    rule = request.rule
    if request.calibrated_keep is not None and (rule.keep or rule.rows):
        share = rule.keep or (rule.rows or 0) / len(ds)
        if abs(share - request.calibrated_keep) > CALIBRATION_TOLERANCE:
            at = f"keep={request.calibrated_keep}"
            warn(f"{request.column!r} means something at {at} only; {share:.3g} is kept", CalibrationWarning)
    return select(
        values,
        null,
        rule,
        hashes_of(ids_of(ds, request.row_id), request.seed),
        cost=None if request.cost is None else costs_of(column_array(ds, request.cost), request.cost),
        groups=_groups(ds, request),
        clusters=None if request.one_per is None else clusters_of(column_array(ds, request.one_per)),
    )


def _cut(method: str, beta: Any, key: str | None, hardest: str | None, strata: Any, keep: Any) -> _Cut | None:
    """The checked cut-off of "ccs"; None where nothing is cut off."""
    options = {"beta": beta, "key": key, "hardest": hardest, "strata": strata}
    given = [name for name, value in options.items() if value is not None]
    if method != "ccs":
        if given:
            raise ValueError(f"{given[0]} is an option of method='ccs', not of {method!r}; leave it out")
        return None
    if strata is not None and (isinstance(strata, bool) or not isinstance(strata, int | np.integer) or strata < 1):
        raise ValueError(f"strata={strata!r} is not a number of strata; use 1 or more")
    if not beta:
        if key is not None or hardest is not None:
            what = "key" if key is not None else "hardest"
            raise ValueError(f"{what} says what beta drops, and beta={beta} drops nothing; give beta, or leave it out")
        return None
    if hardest not in ("high", "low"):
        raise ValueError(
            f"beta={beta} drops the hardest rows, and hardest={hardest!r} does not say which they are; use 'high' for"
            " scores like EL2N, 'low' for margins"
        )
    return _Cut(check_offset("beta", beta, keep), hardest, key)


def _sampled(ds: Any, request: _Request, draw: Method, cut: _Cut | None) -> Mask:
    values, null = _column(ds, request)
    n, groups = len(ds), _groups(ds, request)
    scores = values.astype(np.float64)
    u = uniform(draw_keys(ds, request.row_id), request.seed)

    def pick(at: Index, k: int) -> Pick:
        return Pick(draw(scores[at], u[at], k))

    forced = null if request.rule.nulls == "keep" else np.zeros(n, bool)
    rows = np.flatnonzero(~null)
    if cut is not None:
        keys = values if cut.key is None else scores_of(column_array(ds, cut.key), cut.key, "raise")[0]
        hashes = hashes_of(ids_of(ds, request.row_id), request.seed)

        def hard(at: Index, k: int) -> Pick:
            return best(oriented(keys[at], cut.hardest), k, lambda i: hashes(at[i]))

        d = replace(request.rule, offset=cut.beta).skipped(n, "beta")
        rows = rows[~best_of(hard, rows, d, request.rule, groups, n)]
    mask = forced.copy()
    mask[rows[choose(pick, rows, request.rule, forced, groups).mask]] = True
    return mask


def _column(ds: Any, request: _Request) -> tuple[NDArray[Any], Mask]:
    return scores_of(column_array(ds, request.column), request.column, request.rule.nulls)


def _groups(ds: Any, request: _Request) -> Index | None:
    return codes_of([column_array(ds, name) for name in request.group_by]) if request.group_by else None
