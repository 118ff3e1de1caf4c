"""Random samples by a score: a log-weight, a weight, or a range to be covered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import numpy as np

from hf_prune.checks import check_choice, check_count
from hf_prune.data.arrow import column_array
from hf_prune.data.identity import uniform
from hf_prune.data.layout import check_layout, take_rows
from hf_prune.data.types import AnySplits, Column, End, Layout, Method, Nulls
from hf_prune.prune.draw import METHODS, Draw, ccs
from hf_prune.prune.filter import each, is_stream
from hf_prune.prune.inputs import draw_keys, hashes_of, ids_of, scores_of
from hf_prune.prune.request import Request
from hf_prune.prune.rule import check_offset
from hf_prune.prune.select import Index, Mask, Pick, best, best_of, choose, oriented

STRATA = 50


@dataclass(frozen=True)
class _Cut:
    """The hardest rows, which "ccs" drops first: their fraction, which end they are at, and of which column."""

    beta: float
    hard_end: str
    hardness: str | None


def sample_by_score(
    ds: AnySplits,
    column: Column,
    *,
    keep: float | None = None,
    rows: int | None = None,
    method: Method = "gumbel",
    seed: int = 0,
    group_by: str | Sequence[str] | None = None,
    group_floor: float | None = None,
    nulls: Nulls = "raise",
    row_id: str | None = "row_id",
    splits: str | Sequence[str] | None = None,
    layout: Layout = "auto",
    beta: float | None = None,
    hardness: str | None = None,
    hard_end: End | None = None,
    strata: int | None = None,
) -> AnySplits:
    """A random sample without replacement by a score, in dataset order.

    The noise is a pure function of (seed, row id). Where there is no id column all columns are read, and it is one of
    (seed, content, number of the copy). So shuffled rows give the same sample.

    Args:
        ds: a `Dataset`, or a `DatasetDict`, of which only `splits` are sampled.
        column: name of the score column, its `ScoreColumn`, or its scorer.
        keep: fraction of the whole dataset that is drawn, nulls included: floor(keep * n + 0.5) rows.
        rows: number of rows that are drawn.
        method: what the score is: "gumbel": a log-weight; "proportional": a weight >= 0; "ccs": a range to be covered,
            by as many rows as can be from each of `strata` equal parts of it, the thin parts whole (coverage-centric).
        seed: integer that seeds the noise; 0 by default.
        group_by: column or columns whose groups are protected, as in `filter_by_score`.
        group_floor: share of its part that each group keeps; 1 by default where there are groups.
        nulls: what becomes of rows whose score is null or NaN: "raise", "keep" or "drop".
        row_id: column of ids; None for content and number of the copy.
        splits: which splits of a `DatasetDict` are sampled: a name, names, or "all"; "train" by default.
        layout: how the rows are stored, as in `filter_by_score`.
        beta: fraction of the whole dataset that "ccs" drops first: the hardest rows, which are often mislabelled; with
            `group_by` each group its share. The paper takes 0 for keep=0.7 to 0.3 for keep=0.1.
        hardness: column that says what is hard, for `beta`; None for the score itself. (The paper's is the area under
            the margin.)
        hard_end: end of `hardness` that is hard, for `beta`: "high" (EL2N) or "low" (margins).
        strata: number of parts of the score's range under "ccs"; 50 by default.

    Returns:
        The kind of dataset that was given, with the drawn rows in their order.

    Raises:
        KeyError: a column or split that is not there.
        TypeError: a stream, or an argument of the wrong type.
        ValueError: as `filter_by_score`; an unknown method; scores that are no weights; too few rows of positive
            weight; options of another method; beta and keep above 1 together.
    Reference: `hf_prune.prune.draw` names the source of each method.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"x": ["a", "b", "c"], "score": [-900.0, 0.0, -900.0]})
    >>> sample_by_score(ds, "score", rows=1)["x"][:]
    ['b']
    >>> ds = Dataset.from_dict({"x": list("abcdef"), "score": [0.0, 0.1, 0.1, 0.2, 0.9, 5.0]})
    >>> sample_by_score(ds, "score", rows=3, method="ccs", beta=1 / 6, hard_end="high", strata=3)["x"][:]
    ['a', 'b', 'e']
    """
    check_choice("method", method, get_args(Method))
    cut = _cut(method, beta, hardness, hard_end, strata, keep)
    draw = partial(ccs, strata=STRATA if strata is None else strata) if method == "ccs" else METHODS[method]
    request = Request(
        column=column, keep=keep, rows=rows, seed=seed, group_by=group_by, group_floor=group_floor, nulls=nulls,
        row_id=row_id,
    )  # fmt: skip
    check_layout(layout)
    if is_stream(ds):
        raise TypeError("a sample needs the whole column and ds is a stream; materialise it first")
    return each(ds, splits, lambda part: take_rows(part, np.flatnonzero(_sampled(part, request, draw, cut)), layout))


def _cut(
    method: str, beta: float | None, hardness: str | None, hard_end: End | None, strata: int | None, keep: float | None
) -> _Cut | None:
    """The checked cut-off of "ccs"; None where nothing is cut off."""
    options = {"beta": beta, "hardness": hardness, "hard_end": hard_end, "strata": strata}
    given = [name for name, value in options.items() if value is not None]
    if method != "ccs":
        if given:
            raise ValueError(f"{given[0]} is an option of method='ccs', not of {method!r}; leave it out")
        return None
    check_count("strata", strata, optional=True)
    if not beta:
        what = next((name for name in given if name.startswith("hard")), None)
        if what is not None:
            raise ValueError(f"{what} says what beta drops, and beta={beta} drops nothing; give beta, or leave it out")
        return None
    if hard_end is None or hard_end not in get_args(End):
        raise ValueError(
            f"beta={beta} drops the hardest rows, and hard_end={hard_end!r} does not say which they are; use 'high' for"
            " scores like EL2N, 'low' for margins"
        )
    return _Cut(check_offset("beta", beta, keep), hard_end, hardness)


def _sampled(ds: Any, request: Request, draw: Draw, cut: _Cut | None) -> Mask:
    """Whether each row is drawn, (n,)."""
    values, null = request.scores(ds)
    n, groups = len(ds), request.groups(ds)
    scores = values.astype(np.float64)
    u = uniform(draw_keys(ds, request.row_id), request.seed)

    def pick(at: Index, k: int) -> Pick:
        return Pick(draw(scores[at], u[at], k))

    forced = null if request.nulls == "keep" else np.zeros(n, bool)
    rows = np.flatnonzero(~null)
    if cut is not None:
        hardness = (
            values if cut.hardness is None else scores_of(column_array(ds, cut.hardness), cut.hardness, "raise")[0]
        )
        hashes = hashes_of(ids_of(ds, request.row_id), request.seed)

        def hard(at: Index, k: int) -> Pick:
            return best(oriented(hardness[at], cut.hard_end), k, lambda i: hashes(at[i]))

        d = replace(request, offset=cut.beta).skipped(n, "beta")
        rows = rows[~best_of(hard, rows, d, request, groups, n)]
    mask = forced.copy()
    mask[rows[choose(pick, rows, request, forced, groups).mask]] = True
    return mask
