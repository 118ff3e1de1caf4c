"""Pruning: a score column in, rows out. Knows no scorer, decodes no image, imports no torch.

Memory: at most 100 bytes a row of the dataset on top of the columns read (score, cost, groups, clusters), 150
    with groups or clusters, and 64 MB of rows at a time while a contiguous copy is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from hf_prune.checks import chosen_splits
from hf_prune.data.identity import check_seed
from hf_prune.data.layout import check_layout, take_rows
from hf_prune.data.types import AnyDataset, Column, Layout, Nulls, Prefer
from hf_prune.prune.inputs import chunked, clusters_of, costs_of, hashes_of, scores_of
from hf_prune.prune.request import CalibrationWarning, PruneRules, Request
from hf_prune.prune.rule import Rule
from hf_prune.prune.select import Mask, ShortWarning, TieWarning, codes_of, select
from hf_prune.prune.stream import filter_stream

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

__all__ = [
    "CalibrationWarning",
    "ShortWarning",
    "TieWarning",
    "decide",
    "filter_by_score",
    "keep_mask",
    "split_by_score",
]


def filter_by_score(
    ds: AnyDataset,
    column: Column,
    *,
    keep: float | None = None,
    rows: int | None = None,
    threshold: float | None = None,
    budget: float | None = None,
    cost: str | None = None,
    prefer: Prefer = "high",
    seed: int = 0,
    group_by: str | Sequence[str] | None = None,
    group_floor: float | None = None,
    one_per: str | None = None,
    nulls: Nulls = "raise",
    row_id: str | None = "row_id",
    splits: str | Sequence[str] | None = None,
    layout: Layout = "auto",
    calibrated_keep: float | None = None,
    offset: float = 0.0,
) -> AnyDataset:
    """The rows of `ds` that a score column prefers, in dataset order.

    Exactly one of `keep`, `rows`, `threshold` and `budget` says how many. Ties at the cut are decided by a
    seeded hash of the row id (of the position where there is none), never by the id itself; a `TieWarning`
    counts them.

    Args:
        ds: a `Dataset`; a `DatasetDict`, of which only `splits` are pruned; or a stream (`IterableDataset`),
            which can be filtered by `threshold` only.
        column: name of a score column of bools, ints (compared as ints) or floats; its `ScoreColumn`; or its scorer.
            The last two bring their `calibrated_keep`.
        keep: fraction of the whole dataset, nulls included: floor(keep * n + 0.5) rows stay.
        rows: number of rows that stay.
        threshold: score from which on a row stays (up to which, with prefer="low"), compared in the column's own type.
        budget: what the kept rows may cost together: the longest prefix, best first, whose summed `cost` stays within
            it. It ends at the first row that does not fit, so that a larger budget keeps all that a smaller one keeps.
        cost: column of what each row costs: finite, not negative.
        prefer: end of the score that stays: "high"; "low"; "middle": rank by score, keep the ranks nearest to the
            middle one (of two equally near the higher); "random": by the seeded hash alone.
        seed: integer that seeds the hash; 0 by default.
        group_by: column or columns whose groups are protected: each first keeps its own best
            floor(group_floor * k/n * size) rows, then the rest goes by the order of all. With a budget a
            group's floor is its share of the whole cost. Null is a group.
        group_floor: share of its part that each group keeps: 1 (the default with `group_by`) prunes groups alike, 0
            protects none.
        one_per: column of cluster ids: only the best row of each is eligible; null is no cluster. Done before
            the count, which stays a fraction of the whole dataset: if fewer are left, all stay, with a
            `ShortWarning` (without one for keep=1.0, which asks for all there are). A null score that is kept does
            not count against its cluster.
        nulls: what becomes of rows whose score is null or NaN: "raise" an error, "keep" (always, counted as kept) or
            "drop".
        row_id: column of ids; None for positions. Where there is no column "row_id", positions by default.
        splits: which splits of a `DatasetDict` are pruned: a name, names, or "all"; "train" by default. Others come
            back as they are.
        layout: how the kept rows are stored: "contiguous" copies them into an Arrow file in the datasets cache, which
            later passes read at full speed; "indices" maps them and writes nothing; "auto" copies rows of up to 4 kB.
        calibrated_keep: fraction at which the score means something; another `keep` warns.
        offset: fraction of the whole dataset that is passed over first, the best of the preferred end; the next rows
            stay: with noisy labels the hardest rows are often mislabelled. With `group_by` each group passes over its
            own share. Not with a threshold, nor with prefer="middle" or "random".

    Returns:
        The kind of dataset that was given, with the kept rows in their order.

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
    request = Request(
        column=column, keep=keep, rows=rows, threshold=threshold, budget=budget, cost=cost, prefer=prefer, seed=seed,
        group_by=group_by, group_floor=group_floor, one_per=one_per, nulls=nulls, row_id=row_id,
        calibrated_keep=calibrated_keep, offset=offset,
    )  # fmt: skip
    check_layout(layout)
    if is_stream(ds):
        return each(ds, splits, lambda stream: filter_stream(stream, request))
    return each(ds, splits, lambda part: take_rows(part, np.flatnonzero(request.mask(part)), layout))


def decide(ds: Dataset, column: Column, **rule: Unpack[PruneRules]) -> Mask:
    """Which rows of a dataset `filter_by_score` keeps, for those who need both sides.

    Args:
        ds: a `Dataset` of n rows.
        column: name of the score column, its `ScoreColumn`, or its scorer.
        rule: keywords of `filter_by_score`, but `splits` and `layout`.

    Returns:
        (n,) bools.

    Raises:
        KeyError, TypeError, ValueError: as `filter_by_score`.

    >>> from datasets import Dataset
    >>> decide(Dataset.from_dict({"score": [0.1, 0.9]}), "score", rows=1).tolist()
    [False, True]
    """
    return Request.of("decide", column, rule).mask(ds)


def split_by_score(
    ds: Dataset | DatasetDict,
    column: Column,
    *,
    splits: str | Sequence[str] | None = None,
    layout: Layout = "auto",
    **rule: Unpack[PruneRules],
) -> DatasetDict:
    """What `filter_by_score` keeps and drops, both in dataset order.

    Args:
        ds: a `Dataset`, or a `DatasetDict`, one split of which is split.
        column: name of the score column, its `ScoreColumn`, or its scorer.
        splits: name of the split of a `DatasetDict`; "train" by default.
        layout: how the rows are stored, as in `filter_by_score`.
        rule: keywords of `filter_by_score` that say which rows stay.

    Returns:
        DatasetDict(kept=..., dropped=...).

    Raises:
        TypeError: a keyword that `filter_by_score` does not have; a stream.
        KeyError, ValueError: as `filter_by_score`; several splits.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"x": ["a", "b", "c"], "score": [1, 3, 2]})
    >>> split_by_score(ds, "score", rows=1)["dropped"]["x"][:]
    ['a', 'c']
    """
    from datasets import DatasetDict

    request = Request.of("split_by_score", column, rule)
    check_layout(layout)
    if is_stream(ds):
        raise TypeError("a stream cannot be split in one pass; filter_by_score with threshold and prefer='low', 'high'")
    chosen = chosen_splits(ds, splits)
    if len(chosen) > 1:
        raise ValueError(f"splits={list(chosen)}: kept and dropped are told apart in one split at a time; name one")
    (part,) = chosen.values()
    mask = request.mask(part)
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
    prefer: Prefer = "high",
    seed: int = 0,
    groups: Any = None,
    group_floor: float | None = None,
    one_per: Any = None,
    nulls: Nulls = "raise",
    ids: Any = None,
    offset: float = 0.0,
) -> Mask:
    """The rules of `filter_by_score` on arrays: which of n rows stay, (n,) bools.

    Args:
        scores: (n,) numbers, None or NaN for null.
        keep: fraction of the n rows that stay.
        rows: number of rows that stay.
        threshold: score from which on a row stays (up to which, with prefer="low").
        budget: what the kept rows may cost together.
        cost: (n,) numbers, what each row costs; with a budget.
        prefer: end of the score that stays: "high", "low", "middle" or "random".
        seed: integer that seeds the hash which decides ties; 0 by default.
        groups: (n,) labels of groups that are protected.
        group_floor: share of its part that each group keeps; 1 by default where there are groups.
        one_per: (n,) cluster ids, of each of which the best row is eligible.
        nulls: what becomes of rows without a score: "raise", "keep" or "drop".
        ids: (n,) ids that tell rows apart; positions by default.
        offset: fraction of the n rows that is passed over first.

    Returns:
        (n,) bools.

    Raises:
        TypeError, ValueError: as `filter_by_score`, and for arrays of another length.

    >>> keep_mask([5, 4, 3, 2, 1, 0], keep=0.5, groups=[0, 0, 0, 0, 1, 1]).tolist()
    [True, True, False, False, True, False]
    """
    rule = Rule(
        keep=keep, rows=rows, threshold=threshold, budget=budget, cost=None if cost is None else "cost", prefer=prefer,
        group_by=None if groups is None else "groups", group_floor=group_floor, nulls=nulls, offset=offset,
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


def is_stream(ds: Any) -> bool:
    """Whether it is a stream; a TypeError for what is no dataset."""
    from datasets import Dataset, IterableDataset, IterableDatasetDict

    if not isinstance(ds, Dataset | dict | IterableDataset):
        raise TypeError(f"ds is a {type(ds).__name__}; give a Dataset, a DatasetDict or an IterableDataset")
    return isinstance(ds, IterableDataset | IterableDatasetDict)


def each(ds: Any, splits: str | Sequence[str] | None, prune: Callable[[Any], Any]) -> Any:
    """A dataset pruned, or the chosen splits of several, the others as they are."""
    chosen = chosen_splits(ds, splits)
    if not isinstance(ds, dict):
        return prune(ds)
    return type(ds)({name: prune(part) if name in chosen else part for name, part in ds.items()})
