"""What `score` refuses, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_prune.checks import check_dataset, chosen_splits
from hf_prune.scorer import Scorer


def columns_of(scorers: Sequence[Any]) -> dict[str, str]:
    """All columns to be written, with their types."""
    if not scorers:
        raise ValueError("score(ds) got no scorers; pass at least one, as in score(ds, Random())")
    columns: dict[str, str] = {}
    writers: dict[str, str] = {}
    for scorer in scorers:
        if not isinstance(scorer, Scorer):
            raise TypeError(_no_scorer(scorer))
        who = type(scorer).__name__
        for name, dtype in scorer.columns().items():
            if name in columns:
                raise ValueError(
                    f"{writers[name]} and {who} both write column {name!r}; give one of them another name=..."
                )
            columns[name], writers[name] = dtype, who
    return columns


def _no_scorer(item: Any) -> str:
    if isinstance(item, type) and issubclass(item, Scorer):
        how = "fit(ds)" if hasattr(item, "fit") else "from_log(log)" if hasattr(item, "from_log") else ""
        call = f"{item.__name__}.{how}" if how else f"{item.__name__}(...)"
        return f"{item.__name__} is a class, not a scorer; pass {call}"
    if isinstance(item, (list, tuple)):
        return f"scorers came as a {type(item).__name__}; pass them one by one: score(ds, *scorers)"
    name = getattr(item, "__name__", type(item).__name__)
    return (
        f"{name} is no Scorer but a {type(item).__name__}; use ds.map for a function, or make it a Scorer: a frozen "
        "dataclass with a field `name` and a method score(self, batch, rank)"
    )


def splits_of(ds: Any, splits: str | Sequence[str] | None) -> dict[str, Any]:
    """The datasets to score by name of split; "" for a dataset by itself."""
    chosen = chosen_splits(ds, splits)
    for part in chosen.values():
        if hasattr(part, "take") and not hasattr(part, "data"):
            raise TypeError(
                f"score needs a Dataset, which has a length, not a {type(ds).__name__}; "
                "use stream.map(scorer, batched=True)"
            )
        check_dataset(part, "score")
    return chosen


def check_rows(ds: Any, split: str, scorers: Sequence[Scorer]) -> None:
    """Raise a ValueError if there are no rows, or a column to be written is there already."""
    if len(ds) == 0:
        where = f"split {split!r}" if split else "the dataset"
        raise ValueError(f"{where} has no rows, so there is nothing to score")
    for scorer in scorers:
        scorer.check_clash(ds.column_names)
