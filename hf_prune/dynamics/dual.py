"""DUAL: difficulty and uncertainty of a row together, so that a third of the training tells them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_count
from hf_prune.dynamics.from_log import Column, Epochs, LoggedScorer, Logs, Run, read_runs, windows


def dual(probabilities: Iterable[Column], window: int = 10) -> NDArray[np.float64]:
    """Mean over windows of the label probability's deviation (ddof 1) times one minus its mean, (n,) float64.

    Args:
        probabilities: T arrays (n,), one an epoch: probability of the label.
        window: number of epochs in a window, J, from 2 to T.

    Raises:
        ValueError: too few epochs, or a window of one.

    Reference: Cho et al., 2025, arXiv 2502.06905.

    >>> dual([[0.2], [0.4], [0.7], [0.6]], window=3).round(6)
    array([0.1044])
    """
    check_count("window", window, 2)
    total, count = np.zeros(1), 0
    for held in windows(probabilities, window):
        total, count = total + held.std(0, ddof=1) * (1 - held.mean(0)), count + 1
    if count == 0:
        raise ValueError(f"a window of {window} epochs needs as many recorded; lower window, or train for longer")
    return total / count


@dataclass(frozen=True, eq=False, kw_only=True)
class DUAL(LoggedScorer):
    """Uncertainty times difficulty of a row within windows of epochs, averaged. High = uncertain and hard = keep.

        U_k(i)  = standard deviation (ddof 1) of p_k(i), ..., p_(k+J-1)(i);   m_k(i) = their mean
        DUAL(i) = 1/(T - J + 1) sum over k = 1..T-J+1 of U_k(i) (1 - m_k(i))

    with p_t(i) the probability of the row's label in epoch t of T, and J the window. It finds hard rows early: the
    paper takes the first 30 of 200 epochs (CIFAR) or 60 (ImageNet). Mislabelled rows are low while they are not
    learned at all, and high once the network begins to memorize them: under label noise drop rows of low `AUM` first.

    Args:
        logged: score of each row, as `from_log` computed it.
        window: number of epochs in a window, J.
        name: score column.
        fitted_on: facts about the logs.

    Reference: Cho et al., 2025, arXiv 2502.06905, whose code multiplies the deviation by ten, which changes no order.

    >>> import tempfile
    >>> from hf_prune import TrainingLog
    >>> z = np.array([[[2.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [2.0, 0.0]]])   # 2 epochs, 2 rows, 2 classes
    >>> log = TrainingLog.from_logits(tempfile.mkdtemp(), ids=["a", "b"], logits=z, labels=[0, 0])
    >>> DUAL.from_log(log, window=2)({"row_id": ["b", "a"]})["dual"].round(4)
    array([0.2693, 0.    ], dtype=float32)
    """

    paper: ClassVar[str] = "Cho et al., Lightweight Dataset Pruning without Full Training, ICML 2025, arXiv 2502.06905"
    meaning: ClassVar[str] = "hard, and its probability moves early; mislabelled rows too, once they are memorized"

    window: int = 10
    name: str = "dual"

    def check_fields(self) -> None:
        check_count("window", self.window, 2)

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, with its window."""
        return (
            "standard deviation (ddof 1) of the label's probability times one minus its mean, in windows of "
            f"{self.window} epochs, mean over windows and runs; the column is it; NaN where a loss was not finite"
        )

    @classmethod
    def from_log(
        cls, log: Logs, *, window: int = 10, epochs: Epochs = None, row_id: str | None = None, name: str = "dual"
    ) -> Self:
        """Compute it from one log, or the mean over several independent runs.

        Args:
            log: a `TrainingLog`, its folder, or a list of them.
            window: number of epochs in a window, J, from 2 to the epochs that count.
            epochs: numbers of the epochs that count, from 0, as in `range(30)`; all by default.
            row_id: column of ids in the dataset to be scored; the log's own by default.
            name: score column.

        Raises:
            ValueError: too few epochs for the window, logs of other rows or kind.
        """

        def statistic(run: Run) -> dict[str, Column]:
            return {"score": dual((p for (p,) in run.each("p_label")), window)}

        logged, facts = read_runs(log, statistic, who=cls.__name__, needs=["p_label"], epochs=epochs, row_id=row_id)
        return cls(logged=logged.typed(score="float32"), window=window, name=name, fitted_on=facts)
