"""One pruning request: a rule, and the columns of a dataset that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypedDict

from numpy.typing import NDArray

from hf_prune.checks import warn
from hf_prune.data.arrow import column_array
from hf_prune.data.identity import check_seed
from hf_prune.data.types import Column, Nulls, Prefer
from hf_prune.prune.inputs import clusters_of, costs_of, hashes_of, ids_of, scores_of
from hf_prune.prune.rule import Rule
from hf_prune.prune.select import Index, Mask, codes_of, select

CALIBRATION_TOLERANCE = 0.02


class CalibrationWarning(UserWarning):
    """The score means something at one keep fraction only, and another one is used."""


class PruneRules(TypedDict, total=False):
    """The keywords of `filter_by_score` that say which rows stay; it documents them."""

    keep: float | None
    rows: int | None
    threshold: float | None
    budget: float | None
    cost: str | None
    prefer: Prefer
    seed: int
    group_by: str | Sequence[str] | None
    group_floor: float | None
    one_per: str | None
    nulls: Nulls
    row_id: str | None
    calibrated_keep: float | None
    offset: float


@dataclass(frozen=True, kw_only=True)
class Request(Rule):
    """A rule, and the columns that it reads.

    Args:
        column: name of the score column, its provenance, or its scorer.
        seed: of the hash that decides ties.
        one_per: column of clusters, of each of which one row may stay.
        row_id: column of ids; None for positions.
        calibrated_keep: the fraction at which the score means something; by default what the provenance says.

    >>> Request(column="score", keep=0.5, group_by="label").group_by
    ('label',)
    """

    column: Column
    seed: int = 0
    one_per: str | None = None
    row_id: str | None = "row_id"
    calibrated_keep: float | None = None

    @classmethod
    def of(cls, who: str, column: Column, rules: PruneRules) -> Request:
        """Check keywords that came unnamed.

        Raises:
            TypeError: there is no such keyword; the message lists those there are.

        >>> Request.of("split_by_score", "score", {"kep": 0.5})
        Traceback (most recent call last):
        ...
        TypeError: split_by_score has no argument 'kep'; did you mean 'keep'? There are keep, rows, threshold, ...
        """
        known = list(PruneRules.__annotations__)
        for name in rules:
            if name not in known:
                near = get_close_matches(name, known, 1)
                guess = f"; did you mean {near[0]!r}? There are" if near else "; there are"
                raise TypeError(f"{who} has no argument {name!r}{guess} {', '.join(known)}")
        return cls(column=column, **rules)

    def __post_init__(self) -> None:
        super().__post_init__()
        name, calibrated = _named(self.column)
        at = calibrated if self.calibrated_keep is None else self.calibrated_keep
        for field, value in (("column", name), ("seed", check_seed(self.seed)), ("calibrated_keep", at)):
            object.__setattr__(self, field, value)

    @property
    def name(self) -> str:
        """The score column."""
        return str(self.column)

    def scores(self, ds: Any) -> tuple[NDArray[Any], Mask]:
        """Scores (n,) of a dataset, and which of them are null or NaN (n,)."""
        return scores_of(column_array(ds, self.name), self.name, self.nulls)

    def groups(self, ds: Any) -> Index | None:
        """Group of each row (n,) from 0; None without groups."""
        return codes_of([column_array(ds, name) for name in self.group_by]) if self.group_by else None

    def mask(self, ds: Any) -> Mask:
        """Whether each row of a dataset is kept, (n,)."""
        values, null = self.scores(ds)
        self._check_calibration(len(ds))
        return select(
            values,
            null,
            self,
            hashes_of(ids_of(ds, self.row_id), self.seed),
            cost=None if self.cost is None else costs_of(column_array(ds, self.cost), self.cost),
            groups=self.groups(ds),
            clusters=None if self.one_per is None else clusters_of(column_array(ds, self.one_per)),
        )

    def _check_calibration(self, n: int) -> None:
        if self.calibrated_keep is None or not (self.keep or self.rows):
            return
        share = self.keep or (self.rows or 0) / n
        if abs(share - self.calibrated_keep) > CALIBRATION_TOLERANCE:
            at = f"keep={self.calibrated_keep}"
            warn(f"{self.name!r} means something at {at} only; {share:.3g} is kept", CalibrationWarning)


def _named(column: Any) -> tuple[str, float | None]:
    """Name and calibrated fraction of a column name, a record of provenance, or a scorer with `describe`."""
    if isinstance(column, str):
        return column, None
    record = column.describe() if hasattr(column, "describe") else column
    name = getattr(record, "name", None)
    if not isinstance(name, str):
        raise TypeError(f"column={column!r} is neither a column name nor something with one; give the name")
    return name, getattr(record, "calibrated_keep", None)
