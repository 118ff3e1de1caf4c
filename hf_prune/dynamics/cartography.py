"""Dataset cartography: mean and spread over training of the probability that a network gives a row's label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from hf_prune.dynamics.from_log import Column, Epochs, LoggedScorer, Logs, Run, read_runs


class Map(NamedTuple):
    """Coordinates of rows, (n,) each.

    Attributes:
        confidence: mean over epochs of the label's probability.
        variability: standard deviation over epochs of the label's probability, the population's (ddof 0).
        correctness: number of epochs in which the row was right.
        epochs: number of epochs, T.
    """

    confidence: NDArray[np.float64]
    variability: NDArray[np.float64]
    correctness: NDArray[np.float64]
    epochs: int

    @property
    def threshold_closeness(self) -> NDArray[np.float64]:
        """`confidence * (1 - confidence)`, (n,)."""
        return self.confidence * (1 - self.confidence)

    @property
    def wide_variability(self) -> NDArray[np.float64]:
        """The reference's `include_ci`: `sqrt(var + var^2 / (T - 1))`, wider where there are few epochs, (n,)."""
        variance = self.variability**2
        return np.asarray(np.sqrt(variance + variance**2 / max(self.epochs - 1, 1)))


def training_map(epochs: Iterable[tuple[Any, Any]]) -> Map:
    """Coordinates from epochs that come one by one, by Welford's recurrence in float64.

    Args:
        epochs: T pairs of arrays (n,): probability of the label, and whether the row was right.

    Returns:
        The map of the n rows.

    Raises:
        ValueError: no epoch.

    Reference: Swayamdipta et al., 2020, arXiv 2009.10795; Welford, 1962.

    >>> training_map([([0.2], [False]), ([0.6], [True]), ([0.4], [True])]).variability.round(6)
    array([0.163299])
    """
    mean, squares, right, count = np.zeros(1), np.zeros(1), np.zeros(1), 0
    for probability, correct in epochs:
        value = np.asarray(probability, np.float64)
        count += 1
        step = value - mean
        mean = mean + step / count
        squares = squares + step * (value - mean)
        right = right + np.asarray(correct, np.float64)
    if count == 0:
        raise ValueError("there is no epoch to make a map of")
    return Map(mean, np.sqrt(np.maximum(squares, 0) / count), right, count)


@dataclass(frozen=True, eq=False, kw_only=True)
class Cartography(LoggedScorer):
    """Spread over epochs of the label's probability. High = ambiguous, learned now and not then = keep.

        mu_i    = 1/T sum over t of p_t(y_i | x_i)                        confidence
        sigma_i = sqrt(1/T sum over t of (p_t(y_i | x_i) - mu_i)^2)       variability, the score

    Mislabelled rows have low confidence, and low variability where they are never learned: so they are mostly dropped
    with the easy ones, unless the network has begun to memorize them. To find them sort by `confidence`, low first.

    Args:
        logged: score and companions of each row, as `from_log` computed them.
        include_ci: whether the variability is widened, as the reference's `include_ci` does, to
            `sqrt(sigma^2 + sigma^4 / (T - 1))`.
        name: score column.
        fitted_on: facts about the logs.

    Writes beside it `confidence` (high = easy), `correctness` (number of epochs in which the row was right) and
    `threshold_closeness`; under another `name` they are named `<name>_confidence` and so on. They are the paper's raw
    quantities: hard-to-learn rows are `filter_by_score(ds, "confidence", prefer="low")`.

    Reference: Swayamdipta et al., 2020, arXiv 2009.10795. Few epochs make it coarse.

    >>> import tempfile
    >>> from hf_prune import TrainingLog
    >>> z = np.array([[[2.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [0.0, 0.0]]])   # 2 epochs, 2 rows, 2 classes
    >>> log = TrainingLog.from_logits(tempfile.mkdtemp(), ids=["a", "b"], logits=z, labels=[0, 0])
    >>> Cartography.from_log(log)({"row_id": ["b", "a"]})["variability"].round(4)
    array([0.1904, 0.    ], dtype=float32)
    """

    paper: ClassVar[str] = "Swayamdipta et al., Dataset Cartography, EMNLP 2020, arXiv 2009.10795"
    meaning: ClassVar[str] = "learned now and not then: ambiguous; rows never learned, mislabelled ones too, are low"

    include_ci: bool = False
    name: str = "variability"

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity."""
        text = "population standard deviation over epochs of the label's probability"
        text += ", widened to sqrt(var + var^2/(T-1))" if self.include_ci else ""
        return text + "; mean over runs; the column is it; NaN where a loss was not finite"

    @classmethod
    def from_log(
        cls,
        log: Logs,
        *,
        include_ci: bool = False,
        epochs: Epochs = None,
        row_id: str | None = None,
        name: str = "variability",
    ) -> Self:
        """Draw the map of one log, or the mean of several independent runs' maps.

        Args:
            log: a `TrainingLog`, its folder, or a list of them.
            include_ci: whether the variability is widened to `sqrt(sigma^2 + sigma^4 / (T - 1))`.
            epochs: numbers of the epochs that count, from 0; all by default.
            row_id: column of ids in the dataset to be scored; the log's own by default.
            name: score column.

        Raises:
            ValueError: logs of other rows or kind, or an epoch that is not there.
        """

        def statistic(run: Run) -> dict[str, Column]:
            right = "correct" if "correct" in run.log.columns else "accuracy"  # of language models: share of tokens
            found = training_map((p, correct) for p, correct in run.each("p_label", right))
            return {
                "score": found.wide_variability if include_ci else found.variability,
                "confidence": found.confidence,
                "correctness": found.correctness,
                "threshold_closeness": found.threshold_closeness,
            }

        logged, facts = read_runs(log, statistic, who=cls.__name__, needs=["p_label"], epochs=epochs, row_id=row_id)
        logged = logged.typed(**dict.fromkeys(logged.values, "float32"))
        return cls(logged=logged, include_ci=include_ci, name=name, fitted_on=facts)

    def column_of(self, value: str) -> str:
        return value if value != "score" and self.name == "variability" else super().column_of(value)

    def companions(self) -> dict[str, str]:
        lines = {
            "confidence": "mean over epochs of the label's probability; low = hard or mislabelled",
            "correctness": "number of epochs in which it was right, mean over runs; 0 = never learned",
            "threshold_closeness": "confidence * (1 - confidence); high = ambiguous",
        }
        return {self.column_of(value): line for value, line in lines.items()}
