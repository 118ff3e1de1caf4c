"""How many rows stay, and which: the numbers of a pruning call, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, get_args

import numpy as np

from hf_prune.checks import check_choice
from hf_prune.data.types import Nulls, Prefer


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What to keep of n rows; exactly one of `keep`, `rows`, `threshold` and `budget` says how much.

    Args:
        keep: fraction of the whole dataset, above 0 and up to 1.
        rows: number of rows, from 1 up.
        threshold: the score from which on a row is kept (up to which, under prefer="low").
        budget: what the kept rows may cost together.
        cost: name of what each row costs; with a budget, and only then.
        prefer: which end of the score is kept.
        group_by: names of what groups the rows; a single one may come as text.
        group_floor: share of its part that each group keeps by itself, 0 to 1; 1 where there are groups.
        nulls: what becomes of rows without a score.
        offset: fraction of the whole dataset that is passed over first, the best rows of the preferred end.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, or arguments that contradict each other.

    >>> Rule(keep=0.5).count(3), Rule(keep=0.5, group_by="label").group_floor
    (2, Fraction(1, 1))
    """

    keep: float | None = None
    rows: int | None = None
    threshold: float | None = None
    budget: float | None = None
    cost: str | None = None
    prefer: Prefer = "high"
    group_by: str | Sequence[str] | None = None
    group_floor: float | Fraction | None = None
    nulls: Nulls = "raise"
    offset: float = 0.0

    def __post_init__(self) -> None:
        keep, rows, threshold, budget = self.keep, self.rows, self.threshold, self.budget
        given = {"keep": keep, "rows": rows, "threshold": threshold, "budget": budget}
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1:
            what = f"{' and '.join(named)} were given" if named else "none was given"
            raise ValueError(f"exactly one of keep, rows, threshold and budget says how much stays; {what}")
        check_choice("prefer", self.prefer, get_args(Prefer))
        check_choice("nulls", self.nulls, get_args(Nulls))
        if threshold is not None and self.prefer in ("middle", "random"):
            raise ValueError(f"threshold has no side under prefer={self.prefer!r}; use keep, rows, 'high' or 'low'")
        by = (self.group_by,) if isinstance(self.group_by, str) else tuple(self.group_by or ())
        if self.group_by is not None and not by:
            raise ValueError("group_by=[] names no column; leave it out")
        if threshold is not None and (by or self.group_floor is not None):
            raise ValueError("threshold keeps what passes it and leaves no floor to group_by; use keep or rows")
        if budget is not None and self.cost is None:
            raise ValueError(f"budget={budget} needs cost, what each row costs; for a number of rows use rows")
        if budget is None and self.cost is not None:
            raise ValueError(f"cost counts only against a budget; give budget in place of {named[0]}, or drop cost")
        checked = {
            "keep": None if keep is None else _fraction(keep),
            "rows": None if rows is None else _rows(rows),
            "threshold": None if threshold is None else _number("threshold", threshold),
            "budget": None if budget is None else _budget(budget),
            "group_by": by or None,
            "group_floor": _floor(self.group_floor, by),
            "offset": check_offset("offset", self.offset, keep, threshold, self.prefer),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def floor(self) -> Fraction | None:
        """The share of its part that each group keeps, exactly; None without groups."""
        return None if self.group_floor is None else Fraction(self.group_floor)

    def count(self, n: int) -> int:
        """Rows to keep of `n`: `rows`, or floor(keep * n + 0.5)."""
        if self.rows is not None:
            if self.rows > n:
                raise ValueError(f"rows={self.rows} is more than the {n} there are; use rows={n} or fewer")
            return self.rows
        k = math.floor((self.keep or 0.0) * n + 0.5)
        if k == 0:
            raise ValueError(f"keep={self.keep} of {n} rows is no row at all; use rows=1, or a larger keep")
        return k

    def skipped(self, n: int, name: str = "offset") -> int:
        """Best rows of `n` to pass over: floor(offset * n + 0.5), or fewer where both roundings go up."""
        d = math.floor(self.offset * n + 0.5)
        if self.rows is not None and d + self.rows > n:
            raise ValueError(
                f"{name}={self.offset} passes over {d} of {n} rows, which leaves {n - d}: not rows={self.rows}"
            )
        return d if self.keep is None else min(d, n - self.count(n))


def _number(name: str, value: Any) -> float | int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}={value!r} is not a number")
    if value != value:
        raise ValueError(f"{name} is NaN, which compares with nothing; give a number")
    return int(value) if isinstance(value, int | np.integer) else float(value)


def _fraction(keep: Any) -> float:
    value = _number("keep", keep)
    if not 0 < value <= 1:
        hint = f"rows={int(value)}" if math.isfinite(value) and value >= 1 else "rows=..."
        raise ValueError(f"keep={keep} is not a fraction; use 0 < keep <= 1, or {hint} for a number of rows")
    return float(value)


def check_offset(name: str, offset: Any, keep: Any, threshold: Any = None, prefer: str = "high") -> float:
    """The fraction of best rows to pass over, called `name` in messages."""
    value = float(_number(name, offset))
    if not 0 <= value < 1:
        raise ValueError(f"{name}={offset} is not a fraction; use 0 <= {name} < 1")
    if value and threshold is not None:
        raise ValueError(
            "threshold keeps all that passes it, so there is nothing for offset to pass over; use keep or rows"
        )
    if value and prefer not in ("high", "low"):
        raise ValueError(
            f"offset passes over the best rows, and prefer={prefer!r} has no best end; use 'high' or 'low'"
        )
    if keep is not None and value + keep > 1 + 1e-9:
        raise ValueError(f"{name}={offset} and keep={keep} are more than the whole; use keep={1 - value:.6g} or less")
    return value


def _rows(rows: Any) -> int:
    value = _number("rows", rows)
    if not isinstance(value, int):
        raise TypeError(f"rows={rows!r} is not a whole number; for a fraction use keep={rows!r}")
    if value < 1:
        raise ValueError(f"rows={value} keeps nothing; use rows >= 1")
    return value


def _budget(budget: Any) -> float | int:
    value = _number("budget", budget)
    if not 0 < value < math.inf:
        raise ValueError(f"budget={budget} buys nothing or everything; give a positive, finite cost")
    return value


def _floor(group_floor: Any, by: tuple[str, ...]) -> Fraction | None:
    if group_floor is None:
        return Fraction(1) if by else None
    if not by:
        raise ValueError(f"group_floor={group_floor} needs group_by, the column whose groups it protects")
    # str: 0.1 means one tenth, not the nearest binary fraction
    exact = group_floor if isinstance(group_floor, Fraction) else Fraction(str(_number("group_floor", group_floor)))
    if not 0 <= exact <= 1:
        raise ValueError(f"group_floor={group_floor} is no share: 0 protects no group, 1 prunes all alike")
    return exact
