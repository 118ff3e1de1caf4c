"""What a log, or a score out of one, holds: a few numbers to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from hf_prune.summary import Summary


@dataclass(frozen=True, repr=False, kw_only=True)
class LogSummary(Summary):
    """What a training run did to its rows.

    Attributes:
        rows: rows of the log.
        classes: width of the logits; None for a language model.
        mode: "train" or "eval"; see `TrainingLog`.
        epochs: finished epochs.
        damaged: finished epochs that cannot be read; None if there is none.
        first_accuracy: share of the rows (of the labelled tokens) that were right in the first epoch.
        final_accuracy: the same in the last epoch.
        never_learned: rows that were right in no epoch; None for a language model.
        not_finite: rows whose loss was not finite in an epoch; None if there is none.
    """

    title: ClassVar[str] = "Training log"

    rows: int
    classes: int | None
    mode: str
    epochs: int
    damaged: int | None = None
    first_accuracy: float | None = None
    final_accuracy: float | None = None
    never_learned: int | None = None
    not_finite: int | None = None


@dataclass(frozen=True, repr=False, kw_only=True)
class ScoreSummary(Summary):
    """What a score out of logs was made from, and how it spreads.

    Attributes:
        column: score column.
        rows: rows of the logs.
        classes: width of the logits; None for a language model.
        mode: "train" or "eval"; see `TrainingLog`.
        epochs: epochs that count, from 0, in short ("0-9").
        runs: logs that were put together.
        final_accuracy: share of the rows (of the labelled tokens) that were right in the last epoch that counts, mean
            over runs.
        never_learned: rows that were right in no epoch of any run, where the scorer counts them.
        flagged: rows that look mislabelled, where the scorer flags them.
        not_finite: rows without a score, whose loss was not finite; None if there is none.
        smallest, median, largest: of the scores.
    """

    title: ClassVar[str] = "Score out of a training log"

    column: str
    rows: int
    classes: int | None = None
    mode: str | None = None
    epochs: str | None = None
    runs: int | None = None
    final_accuracy: float | None = None
    never_learned: int | None = None
    flagged: int | None = None
    not_finite: int | None = None
    smallest: float | None = None
    median: float | None = None
    largest: float | None = None

    @classmethod
    def of(cls, column: str, values: Mapping[str, NDArray[Any]], facts: Mapping[str, Any] | None) -> Self:
        """The summary of values (n,) by name, "score" among them, and of what is known of their logs."""
        score, facts = values["score"], facts or {}
        there = score[~np.isnan(score)]
        spread = [float(x) for x in np.quantile(there, [0, 0.5, 1], method="lower")] if len(there) else [None] * 3
        never = {"correctness": 0, "never_learned": facts.get("runs")}  # what a row has that was right in no epoch
        return cls(
            column=column,
            rows=len(score),
            classes=facts.get("classes"),
            mode=facts.get("mode"),
            epochs=facts.get("epochs"),
            runs=facts.get("runs"),
            final_accuracy=facts.get("accuracy"),
            never_learned=next((int((values[name] == n).sum()) for name, n in never.items() if name in values), None),
            flagged=int(values["flagged"].sum()) if "flagged" in values else None,
            not_finite=len(score) - len(there) or None,
            smallest=spread[0],
            median=spread[1],
            largest=spread[2],
        )
