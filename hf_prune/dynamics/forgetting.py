"""Forgetting: how often a row that was right is wrong at its next presentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_choice
from hf_prune.dynamics.from_log import Column, Epochs, LoggedScorer, Logs, Run, mean_of_epochs, read_runs

TieBreak: TypeAlias = Literal["first_learned", "el2n"]
Never: TypeAlias = Literal["epochs", "inf"] | float


class Events(NamedTuple):
    """What a history of right and wrong says of each row.

    Attributes:
        forgotten: number of presentations that were wrong after one that was right, (n,) int32.
        first_learned: index of the first presentation that was right, (n,) int32 from 0; -1 if none was.
        presentations: number of presentations, T.
    """

    forgotten: NDArray[np.int32]
    first_learned: NDArray[np.int32]
    presentations: int


def forgetting_events(history: Iterable[Any]) -> Events:
    """Count forgetting events while the history goes by: nine bytes of state a row, whatever T.

    Args:
        history: T arrays (n,) of bools, one a presentation: whether the row was right.

    Returns:
        The counts of the n rows.

    Raises:
        ValueError: no presentation.

    Reference: Toneva et al., 2019, arXiv 1812.05159.

    >>> forgetting_events(np.array([[0, 1, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]], bool).T)[:2]
    (array([2, 0], dtype=int32), array([1, 3], dtype=int32))
    """
    count = first = before = None
    epoch = -1
    for epoch, correct in enumerate(history):
        correct = np.asarray(correct, bool)
        if count is None or first is None or before is None:
            count, first = np.zeros(correct.shape, np.int32), np.full(correct.shape, -1, np.int32)
            before = np.zeros(correct.shape, bool)  # nothing can be forgotten at the first presentation
        count += before & ~correct
        first[correct & (first < 0)] = epoch
        before = correct
    if count is None or first is None:
        raise ValueError("there is no presentation to count in")
    return Events(count, first, epoch + 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Forgetting(LoggedScorer):
    """Number of times a row was forgotten in training. High = often forgotten, or never learned = keep.

        F(i) = number of t = 2..T with acc_(t-1)(i) = 1 and acc_t(i) = 0;    T, if acc_t(i) = 0 for all t

    with acc_t(i) whether the row was right at its presentation in epoch t of T. Mislabelled rows are never learned, or
    learned late and forgotten, so they get the highest scores and are kept. Under label noise keep the low end or the
    middle (`prefer=`), cut off the hardest first (`filter_by_score(offset=)`), or find them with `AUM`.

    Args:
        logged: score and companions of each row, as `from_log` computed them.
        never: count of a row that was never right in a run: "epochs" is the number T of epochs (Toneva's rule), "inf"
            is infinity (data_diet), or a number (cartography has 1000; 0, as in DeepCore and CCS, would call it
            unforgettable). It is added for each such run: 2.5 and two runs in which it was never right give 5.
        tie_break: what is added to the counts, which have many ties; None adds nothing. "first_learned" or "el2n" adds
            a fraction below 1 that grows with the epoch in which the row was first right, or with its mean EL2N (the
            mean over the runs); the column is float64 then, and `never` a whole number, for the fraction to break ties
            and nothing else.
        name: score column.
        fitted_on: facts about the logs.

    Writes `<name>_first_learned` (number of the epoch, from 0; the latest over the runs; -1 where the row was never
    right in one of them) and `<name>_never_learned` (number of runs in which it was never right).

    Reference: Toneva et al., 2019, arXiv 1812.05159. Counts of clean passes (an eval-mode log) are smaller than the
    paper's, which come from the training passes themselves.

    >>> import tempfile
    >>> from hf_prune import TrainingLog
    >>> z = np.array([[[2.0, 0.0], [0.0, 2.0]], [[0.0, 2.0], [0.0, 2.0]]])   # 2 epochs, 2 rows, 2 classes
    >>> log = TrainingLog.from_logits(tempfile.mkdtemp(), ids=["a", "b"], logits=z, labels=[0, 0])
    >>> Forgetting.from_log(log)({"row_id": ["b", "a"]})["forgetting"]
    array([2., 1.], dtype=float32)
    """

    paper: ClassVar[str] = "Toneva et al., An Empirical Study of Example Forgetting, ICLR 2019, arXiv 1812.05159"
    meaning: ClassVar[str] = "often forgotten or never learned in training: hard, or mislabelled (such rows are kept)"

    never: Never = "epochs"
    tie_break: TieBreak | None = None
    name: str = "forgetting"

    def check_fields(self) -> None:
        check_choice("tie_break", self.tie_break, (None, *get_args(TieBreak)))
        _check_never(self.never, self.tie_break)

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, by the rule for rows that were never learned."""
        rule = {"epochs": "the number of epochs", "inf": "infinity"}.get(str(self.never), str(self.never))
        text = f"wrong after right, counted over epochs, summed over runs; {rule} for a run in which it was never right"
        if self.tie_break:
            text += f"; plus a fraction below 1 that grows with its {self.tie_break}"
        return text + "; the column is the count; NaN where a loss was not finite"

    @classmethod
    def from_log(
        cls,
        log: Logs,
        *,
        never: Never = "epochs",
        tie_break: TieBreak | None = None,
        epochs: Epochs = None,
        row_id: str | None = None,
        name: str = "forgetting",
    ) -> Self:
        """Count in one log, or in several of independent runs, whose counts are added.

        Args:
            log: a `TrainingLog`, its folder, or a list of them.
            never: count of a row that was never right in a run: "epochs", "inf" or a number that is not negative.
            tie_break: "first_learned" or "el2n" adds a fraction below 1 to the counts; None adds nothing.
            epochs: numbers of the epochs that count, from 0; all by default.
            row_id: column of ids in the dataset to be scored; the log's own by default.
            name: score column.

        Raises:
            ValueError: a log of a language model, logs of other rows, an unknown rule.
        """
        check_choice("tie_break", tie_break, (None, *get_args(TieBreak)))
        never = _check_never(never, tie_break)

        def statistic(run: Run) -> dict[str, Column]:
            # p_label is read along, for NaN: a row without a loss is neither right nor wrong
            events = forgetting_events(correct for _, correct in run.each("p_label", "correct"))
            never_learned = events.first_learned < 0
            count = np.where(
                never_learned, events.presentations if never == "epochs" else float(never), events.forgotten
            )
            fraction = np.zeros(len(count))
            if tie_break == "first_learned":
                last = np.where(never_learned, events.presentations, events.first_learned)
                fraction = last / (events.presentations + 1)
            elif tie_break == "el2n":
                fraction = mean_of_epochs(error for (error,) in run.each("el2n")) / 2  # EL2N is below 1.42
            return {
                "score": count.astype(np.float64),
                "fraction": fraction,
                "first_learned": events.first_learned,
                "never_learned": never_learned.astype(np.int32),
            }

        needs = ["p_label", "correct", *(["el2n"] if tie_break == "el2n" else [])]
        logged, facts = read_runs(
            log, statistic, who=cls.__name__, needs=needs, epochs=epochs, row_id=row_id, combine=_sum_of_runs
        )
        logged = logged.typed(score="float64" if tie_break else "float32")
        return cls(logged=logged, never=never, tie_break=tie_break, name=name, fitted_on=facts)

    def companions(self) -> dict[str, str]:
        first = "epoch, from 0, in which it was first right (the latest of several runs); -1 if never"
        return {
            f"{self.name}_first_learned": first,
            f"{self.name}_never_learned": "runs in which it was never right",
        }


def _check_never(never: Any, tie_break: TieBreak | None) -> Never:
    """The rule for rows that were never right, as it is stored: "epochs", "inf" or a number."""
    if isinstance(never, str) and never in ("epochs", "inf"):
        return never  # type: ignore[return-value]
    number = isinstance(never, int | float | np.integer | np.floating) and not isinstance(never, bool)
    if not number or not never >= 0:
        raise ValueError(f"never={never!r} is none of 'epochs', 'inf' or a number that is not negative")
    if never == np.inf:
        return "inf"
    if tie_break and never != int(never):
        raise ValueError(
            f"never={never!r} with tie_break={tie_break!r}: a fraction breaks ties between whole numbers only; "
            f"give never={round(never)}, or no tie_break"
        )
    return int(never) if isinstance(never, int | np.integer) else float(never)


def _sum_of_runs(parts: Sequence[Mapping[str, Column]]) -> dict[str, Column]:
    """Counts are added, fractions that break ties averaged; of first times the latest, -1 being the latest of all."""
    first = np.stack([part["first_learned"] for part in parts])
    fraction = np.mean([part["fraction"] for part in parts], axis=0)
    return {
        "score": np.sum([part["score"] for part in parts], axis=0) + fraction,
        "first_learned": np.where((first < 0).any(0), -1, first.max(0)).astype(np.int32),
        "never_learned": np.sum([part["never_learned"] for part in parts], axis=0, dtype=np.int32),
    }
