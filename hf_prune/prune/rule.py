"""The arguments of a pruning call, checked: one rule, or an error that says what to write instead."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

PREFER = ("high", "low", "middle", "random")
NULLS = ("raise", "keep", "drop")


@dataclass(frozen=True)
class Rule:
    """What to keep, checked. One of keep, rows, threshold and budget is set."""

    keep: float | None = None
    rows: int | None = None
    threshold: float | int | None = None
    budget: float | int | None = None
    prefer: str = "high"
    group_floor: Fraction | None = None
    nulls: str = "raise"
    offset: float = 0.0

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


def make_rule(
    *,
    keep: Any = None,
    rows: Any = None,
    threshold: Any = None,
    budget: Any = None,
    prefer: str = "high",
    nulls: str = "raise",
    grouped: bool = False,
    group_floor: Any = None,
    costed: bool = False,
    offset: Any = 0.0,
) -> Rule:
    """The arguments of a pruning call, checked; errors name the value, the reason and the next step."""
    given = {"keep": keep, "rows": rows, "threshold": threshold, "budget": budget}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        what = f"{' and '.join(named)} were given" if named else "none was given"
        raise ValueError(f"exactly one of keep, rows, threshold and budget says how much stays; {what}")
    check_choice("prefer", prefer, PREFER)
    check_choice("nulls", nulls, NULLS)
    if threshold is not None and prefer in ("middle", "random"):
        raise ValueError(f"threshold has no side under prefer={prefer!r}; use keep, rows, 'high' or 'low'")
    if threshold is not None and (grouped or group_floor is not None):
        raise ValueError("threshold keeps what passes it and leaves no floor to group_by; use keep or rows")
    if budget is not None and not costed:
        raise ValueError(f"budget={budget} needs cost, what each row costs; for a number of rows use rows")
    if budget is None and costed:
        raise ValueError(f"cost counts only against a budget; give budget in place of {named[0]}, or drop cost")
    return Rule(
        keep=None if keep is None else _fraction(keep),
        rows=None if rows is None else _rows(rows),
        threshold=None if threshold is None else _number("threshold", threshold),
        budget=None if budget is None else _budget(budget),
        prefer=prefer,
        group_floor=_floor(group_floor, grouped),
        nulls=nulls,
        offset=check_offset("offset", offset, keep, threshold, prefer),
    )


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise a ValueError that lists what is known."""
    if value not in known:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(map(repr, known))}")


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


def _floor(group_floor: Any, grouped: bool) -> Fraction | None:
    if group_floor is None:
        return Fraction(1) if grouped else None
    if not grouped:
        raise ValueError(f"group_floor={group_floor} needs group_by, the column whose groups it protects")
    # str: 0.1 means one tenth, not the nearest binary fraction
    number = isinstance(group_floor, Fraction)
    exact = group_floor if number else Fraction(str(_number("group_floor", group_floor)))
    if not 0 <= exact <= 1:
        raise ValueError(f"group_floor={group_floor} is no share: 0 protects no group, 1 prunes all alike")
    return exact
