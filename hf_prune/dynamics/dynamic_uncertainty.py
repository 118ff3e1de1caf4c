"""Dyn-Unc: how much the probability of a row's label moves within windows of epochs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_count
from hf_prune.dynamics.from_log import Column, Epochs, LoggedScorer, Logs, Run, read_runs, windows


def dynamic_uncertainty(probabilities: Iterable[Any], window: int = 10) -> NDArray[np.float64]:
    """Mean over windows of the label probability's standard deviation (ddof 1), (n,).

    The last of the `T - window + 1` windows is left out, as in the authors' code. Holds `window` arrays at a time.

    Args:
        probabilities: T arrays (n,), one an epoch: probability of the label.
        window: number of epochs in a window, J, at least 2 and less than T.

    Returns:
        The mean deviations, (n,) float64.

    Raises:
        ValueError: too few epochs, or a window of one.

    Reference: He et al., 2023, arXiv 2306.05175.

    >>> dynamic_uncertainty([[p] for p in (0.5, 0.6, 0.7, 0.8, 0.9, 0.9)], window=3).round(6)
    array([0.1])
    """
    check_count("window", window, 2)
    total, last, count = np.zeros(1), np.zeros(1), -1
    for held in windows(probabilities, window):
        total, last, count = total + last, held.std(0, ddof=1), count + 1  # a window counts when another one follows
    if count < 1:
        raise ValueError(
            f"a window of {window} epochs needs {window + 1} recorded ones or more; lower window, or train for longer"
        )
    return total / count


@dataclass(frozen=True, eq=False, kw_only=True)
class DynamicUncertainty(LoggedScorer):
    """Standard deviation of the label's probability within sliding windows of epochs, averaged. High = keep.

        U_k(i) = standard deviation (ddof 1) of p_k(i), ..., p_(k+J-1)(i)
        U(i)   = 1/(T - J) sum over k = 1..T-J of U_k(i)

    with p_t(i) the probability of the row's label in epoch t of T, and J the window. Rows that are learned at once, and
    rows that are never learned, are low. Mislabelled rows are low, and dropped, while the network withstands them;
    where training goes on until it memorizes them they move, and may be kept.

    Args:
        logged: score of each row, as `from_log` computed it.
        window: number of epochs in a window, J.
        name: score column.
        fitted_on: facts about the logs.

    Reference: He et al., 2023, arXiv 2306.05175, whose code leaves out the last window, and so do we; it also
    multiplies by ten, which changes no order. Clean passes are meant: an eval-mode log.

    >>> import tempfile
    >>> from hf_prune import TrainingLog
    >>> z = np.array([[[2.0, 0.0]], [[0.0, 0.0]], [[2.0, 0.0]]])   # 3 epochs, 1 row, 2 classes
    >>> log = TrainingLog.from_logits(tempfile.mkdtemp(), ids=["a"], logits=z, labels=[0])
    >>> DynamicUncertainty.from_log(log, window=2)({"row_id": ["a"]})["dyn_unc"].round(4)
    array([0.2693], dtype=float32)
    """

    paper: ClassVar[str] = "He et al., Large-scale Dataset Pruning with Dynamic Uncertainty, 2023, arXiv 2306.05175"
    meaning: ClassVar[str] = (
        "its probability moves from epoch to epoch; mislabelled rows are low until they are memorized"
    )

    window: int = 10
    name: str = "dyn_unc"

    def check_fields(self) -> None:
        check_count("window", self.window, 2)

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, with its window."""
        return (
            f"standard deviation (ddof 1) of the label's probability in windows of {self.window} epochs, mean over all "
            "windows but the last, and over runs; the column is it; NaN where a loss was not finite"
        )

    @classmethod
    def from_log(
        cls,
        log: Logs,
        *,
        window: int = 10,
        epochs: Epochs = None,
        row_id: str | None = None,
        name: str = "dyn_unc",
    ) -> Self:
        """Compute it from one log, or the mean over several independent runs.

        Args:
            log: a `TrainingLog`, its folder, or a list of them.
            window: number of epochs in a window, J, at least 2 and less than the epochs that count.
            epochs: numbers of the epochs that count, from 0; all by default.
            row_id: column of ids in the dataset to be scored; the log's own by default.
            name: score column.

        Raises:
            ValueError: too few epochs for the window, logs of other rows or kind.
        """

        def statistic(run: Run) -> dict[str, Column]:
            return {"score": dynamic_uncertainty((p for (p,) in run.each("p_label")), window)}

        logged, facts = read_runs(log, statistic, who=cls.__name__, needs=["p_label"], epochs=epochs, row_id=row_id)
        return cls(logged=logged.typed(score="float32"), window=window, name=name, fitted_on=facts)
