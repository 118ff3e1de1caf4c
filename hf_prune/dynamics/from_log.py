"""What scores out of a training log share: runs read epoch by epoch, and values looked up by row id."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_parallel, warn
from hf_prune.columns import ScoreColumn
from hf_prune.data.batch import Batch
from hf_prune.data.files import DamagedFileError
from hf_prune.data.labels import check_class_names
from hf_prune.data.lookup import find_rows
from hf_prune.dynamics.summaries import ScoreSummary
from hf_prune.scorer import Scorer
from hf_prune.values import Value

if TYPE_CHECKING:
    from hf_prune.dynamics.log import TrainingLog

Column = NDArray[Any]
Logs: TypeAlias = "TrainingLog | str | Path | Sequence[TrainingLog | str | Path]"
Epochs: TypeAlias = int | Iterable[int] | None


@dataclass(frozen=True, eq=False)
class LoggedValues(Value):
    """Numbers of each row of one or several logs.

    Args:
        keys: digests of the row ids, (n,) in ascending order.
        values: arrays (n,) in the order of `keys`; "score" is the score, the others are its companions.
        row_id: column of ids in the dataset that will be scored.
    """

    keys: NDArray[np.uint64]
    values: Mapping[str, Column]
    _: KW_ONLY
    row_id: str = "row_id"

    def check_fields(self) -> None:
        check_parallel("LoggedValues", keys=self.keys, **self.values)
        if "score" not in self.values:
            raise ValueError(f"LoggedValues has {sorted(self.values)}, no score")

    def find(self, batch: Batch) -> dict[str, Column]:
        """The values of a batch's rows, (b,) each.

        Raises:
            ValueError: a row is not in the log; the message lists the first five.
        """
        at = find_rows(batch, self.row_id, self.keys, "the log")
        return {name: values[at] for name, values in self.values.items()}

    def typed(self, **dtypes: str) -> Self:
        """The same values, those that are named cast to the type that stands beside their name."""
        cast = {name: values.astype(dtypes.get(name, values.dtype)) for name, values in self.values.items()}
        return replace(self, values=cast)


@dataclass(frozen=True, eq=False)
class LoggedScorer(Scorer):
    """Base of scores that only a log can give: they look up what `from_log` computed.

    A subclass is a keyword-only dataclass with a field `name`, and a class method `from_log`.

    Args:
        logged: score and companions of each row, as `from_log` computed them.
        fitted_on: facts about the logs, as `read_runs` gives them.
    """

    nan_rows: ClassVar[bool] = True

    logged: LoggedValues
    _: KW_ONLY
    fitted_on: Mapping[str, Any] | None = None

    @property
    def row_id(self) -> str:
        """Column of ids in the dataset that is scored."""
        return self.logged.row_id

    def describe(self) -> ScoreColumn:
        return described(super().describe(), self.logged)

    def summary(self) -> ScoreSummary:
        """What the logs hold, and how the scores spread."""
        return ScoreSummary.of(self.name, self.logged.values, self.fitted_on)

    def column_of(self, value: str) -> str:
        """The column that a value is written to: companions are named after the score."""
        return self.name if value == "score" else f"{self.name}_{value}"

    def columns(self) -> dict[str, str]:
        values = self.logged.values
        return {self.column_of(name): values[name].dtype.name for name in ["score", *sorted(values.keys() - {"score"})]}

    def score(self, batch: Batch, rank: int | None) -> Any:
        return {self.column_of(name): values for name, values in self.logged.find(batch).items()}


def described(column: ScoreColumn, logged: LoggedValues) -> ScoreColumn:
    """Provenance with the id column in place of the values, which `fitted_on` tells about."""
    params = {name: value for name, value in column.params.items() if name != "logged"}
    return replace(column, params={**params, "row_id": logged.row_id})


class Run:
    """One log, restricted to some of its epochs, that notes which rows had no finite loss there.

    Attributes:
        log: the `TrainingLog` of n rows.
        epochs: numbers of the epochs that count, ascending.
        last: number of the last of them.
        lost: whether a row was NaN in one of the epochs read so far, (n,) bool.
    """

    def __init__(self, log: TrainingLog, epochs: list[int]) -> None:
        self.log, self.epochs, self.last = log, epochs, epochs[-1]
        self.lost = np.zeros(len(log.keys), bool)

    def each(self, *columns: str) -> Iterator[tuple[Column, ...]]:
        """Arrays (n,) of the columns, epoch by epoch; the first column holds floats, and NaN where a row is lost."""
        for epoch in self.epochs:
            found = tuple(self.log.read(column, epoch) for column in columns)
            self.lost |= np.isnan(found[0])
            yield found


def read_runs(
    logs: Logs,
    statistic: Callable[[Run], Mapping[str, Column]],
    *,
    who: str,
    needs: Sequence[str],
    epochs: Epochs = None,
    row_id: str | None = None,
    combine: Callable[[Sequence[Mapping[str, Column]]], Mapping[str, Column]] | None = None,
) -> tuple[LoggedValues, dict[str, Any]]:
    """Compute a statistic of every run and put the runs together.

    Args:
        logs: a `TrainingLog`, its folder, or several of the same rows (independent runs).
        statistic: function of one run that gives {"score": (n,) float64, companion: (n,)}.
        who: name of the scorer, for messages.
        needs: columns of the log that the statistic reads.
        epochs: numbers of the epochs that count, from 0; all finished ones by default.
        row_id: column of ids in the dataset to be scored; the log's own by default.
        combine: function that makes one such dict of those of the runs, be it one; by default the mean, in float64, of
            several runs, and of a single run what the statistic gave.

    Returns:
        The values, and facts about the logs for `fitted_on`.

    Raises:
        ValueError: no log; logs of other rows or of another kind; an epoch that is not there; a column that was not
            recorded.
        DamagedFileError: an epoch that counts is damaged.
    """
    runs = [Run(log, _chosen(log, epochs, who)) for log in open_logs(logs, who)]
    first = runs[0].log
    for run in runs:
        missing = sorted(set(needs) - set(run.log.columns))
        if missing:
            raise ValueError(_not_recorded(run.log, missing, who))
    counted = _spans(runs[0].epochs)
    parts = [statistic(run) for run in runs]
    together = combine or (mean_of_runs if len(parts) > 1 else lambda parts: parts[0])
    values = dict(together(parts))
    lost = np.logical_or.reduce([run.lost for run in runs])
    if lost.any():
        warn(
            f"{who}: {int(lost.sum())} of {len(lost)} rows had no finite loss in an epoch that counts; their score is "
            "NaN, and filter_by_score asks what to do with them (nulls=...). If training diverged, take earlier epochs "
            "with epochs=range(...)"
        )
        values["score"] = np.where(lost, np.nan, values["score"])
    facts: dict[str, Any] = {
        **{name: fact for name, fact in first.facts.items() if name != "class_names"},
        "label": first.label,
        "mode": first.mode,
        "task": first.task,
        "rows": len(first.keys),
        "epochs": counted,
        "recorded_epochs": int(first.epochs),
        "runs": len(runs),
        "accuracy": round(float(np.mean([run.log.accuracy(run.last) for run in runs])), 4),
    }
    if lost.any():
        facts["nan_rows"] = int(lost.sum())
    if first.classes is not None:
        facts["classes"] = int(first.classes)
    return LoggedValues(keys=first.keys, values=values, row_id=row_id or first.row_id), facts


def open_logs(logs: Logs, who: str) -> list[TrainingLog]:
    """One or several logs, opened, of the same rows and kind.

    Raises:
        ValueError: none, or logs that do not go together.
    """
    from hf_prune.dynamics.log import TrainingLog

    several = logs if isinstance(logs, (list, tuple)) else [logs]
    opened: list[Any] = [TrainingLog(log) if isinstance(log, (str, Path)) else log for log in several]
    for number, log in enumerate(opened):
        if not isinstance(log, TrainingLog):
            raise TypeError(
                f"{who}.from_log got a {type(log).__name__}; give a TrainingLog, its folder, or a list of them"
            )
        if log.epochs == 0:
            raise ValueError(f"{who}.from_log: the log has no finished epoch; train at least one, or resume the run")
        for what in ("mode", "task", "classes"):
            ours, theirs = getattr(opened[0], what), getattr(log, what)
            if ours != theirs:
                raise ValueError(
                    f"{who}.from_log: log {number} has {what} {theirs!r}, log 0 has {ours!r}; these are no runs of "
                    "one kind"
                )
        check_class_names(
            log.facts.get("class_names"), opened[0].facts.get("class_names"), log.label, f"{who}.from_log: log 0"
        )
        if not np.array_equal(opened[0].keys, log.keys):
            strange = int((~np.isin(log.keys, opened[0].keys)).sum())
            raise ValueError(
                f"{who}.from_log: log {number} has {len(log.keys)} rows, {strange} of them not among the "
                f"{len(opened[0].keys)} of log 0; runs that go together record the same dataset"
            )
    if not opened:
        raise ValueError(f"{who}.from_log got no log; give a TrainingLog, its folder, or a list of them")
    return opened


def mean_of_runs(parts: Sequence[Mapping[str, Column]]) -> dict[str, Column]:
    """Means (n,) over runs, taken in float64."""
    return {name: np.asarray(np.mean([part[name] for part in parts], axis=0, dtype=np.float64)) for name in parts[0]}


def mean_of_epochs(arrays: Iterable[Column]) -> NDArray[np.float64]:
    """Mean (n,) of arrays that come one by one, summed in float64.

    >>> mean_of_epochs([np.array([1.0, 2.0]), np.array([2.0, 4.0])]).tolist()
    [1.5, 3.0]
    """
    total, count = np.zeros(1), 0
    for array in arrays:
        total, count = total + np.asarray(array, np.float64), count + 1
    if count == 0:
        raise ValueError("there is no epoch to average over")
    return total / count


def windows(arrays: Iterable[Any], size: int) -> Iterator[NDArray[np.float64]]:
    """Each run of `size` arrays (n,) that follow one another, as (size, n) float64; in one buffer, written over.

    The order within a window is not that of the arrays: for what does not depend on it, as means and deviations.

    >>> [sorted(window[:, 0].tolist()) for window in windows([[1.0], [2.0], [4.0]], 2)]
    [[1.0, 2.0], [2.0, 4.0]]
    """
    ring: NDArray[np.float64] | None = None
    for number, array in enumerate(arrays):
        value = np.asarray(array, np.float64)
        if ring is None:
            ring = np.empty((size, *value.shape))
        ring[number % size] = value
        if number >= size - 1:
            yield ring


def _chosen(log: TrainingLog, epochs: Epochs, who: str) -> list[int]:
    if epochs is None:
        if damaged := log.damaged():
            sound = [epoch for epoch in range(log.epochs) if epoch not in damaged]
            raise DamagedFileError(
                f"{who}: of the {log.epochs} epochs in the log, {', '.join(map(str, damaged))} cannot be read; put "
                f"back what is damaged, record the run again, or leave it out: epochs={sound}. What is wrong: "
                f"{next(iter(damaged.values()))}"
            )
        return list(range(log.epochs))
    wanted = [epochs] if isinstance(epochs, (int, np.integer)) else list(epochs)
    if not wanted:
        raise ValueError(f"{who}: epochs=... names none; leave it out for all {log.epochs} of the log")
    for epoch in wanted:
        if isinstance(epoch, bool) or not isinstance(epoch, (int, np.integer)):
            raise TypeError(f"{who}: epoch {epoch!r} is no whole number; count from 0, as in epochs=[9] or range(10)")
        if not 0 <= epoch < log.epochs:
            raise ValueError(
                f"{who}: epoch {epoch} is not in the log, which has {log.epochs} finished ones, counted from 0"
            )
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"{who}: epochs={wanted} names an epoch twice")
    return sorted(int(epoch) for epoch in wanted)


def _not_recorded(log: TrainingLog, missing: list[str], who: str) -> str:
    if log.task == "language_model" and "correct" in missing:
        return f"{who} counts rows that are right or wrong; a language model's log has shares of tokens instead"
    if missing == ["divergence"]:
        return f"{who} reads the column 'divergence', which this log lacks; record the run with divergence=True"
    return f"{who} reads {missing}, the log has {sorted(log.columns)}; record the run anew"


def _spans(epochs: Sequence[int]) -> str:
    """Epochs in short.

    >>> _spans([0, 1, 2, 5])
    '0-2, 5'
    """
    spans: list[list[int]] = []
    for epoch in epochs:
        if spans and epoch == spans[-1][1] + 1:
            spans[-1][1] = epoch
        else:
            spans.append([epoch, epoch])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
