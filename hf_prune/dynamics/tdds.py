"""TDDS: how unsteadily a row's predicted distribution moves from epoch to epoch, late epochs counting most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_count, check_number
from hf_prune.dynamics.from_log import Column, Epochs, LoggedScorer, Logs, Run, read_runs


def tdds(changes: Iterable[Any], window: int = 10, decay: float = 0.9) -> NDArray[np.float64]:
    """Decayed sum over windows of the deviation of a row's changes from their mean in the window, (n,).

    Holds `window - 1` arrays at a time: O(n window) memory, whatever the epochs and classes.

    Args:
        changes: T - 1 arrays (n,): D between an epoch and the next, `sum_c |p' (ln(p' + eps) - ln(p + eps))|`.
        window: number of epochs in a window, W, so W - 1 changes; at least 3, at most T.
        decay: weight of the last window, b, above 0 and up to 1; the one before counts `b (1 - b)`, and so on.

    Returns:
        The scores, (n,) float64.

    Raises:
        ValueError: too few epochs, a window without spread, or a decay outside (0, 1].

    Reference: Zhang et al., 2024, arXiv 2311.13613, and its code (the absolute value is inside the sum; deviations are
    summed, not averaged).

    >>> tdds([[0.1], [0.3], [0.1]], window=3, decay=0.5).round(6)
    array([0.106066])
    """
    check_count("window", window, 3)  # two changes or more have a spread
    check_number("decay", decay, 0, 1, open_low=True)
    ring: NDArray[np.float64] | None = None
    score, count = np.zeros(1), 0
    for count, change in enumerate(changes, start=1):
        value = np.asarray(change, np.float64)
        if ring is None:
            ring = np.empty((window - 1, *value.shape))
        ring[count % (window - 1)] = value
        if count >= window - 1:
            deviation = np.sqrt(((ring - ring.mean(0)) ** 2).sum(0))
            score = (1 - decay) * score + decay * deviation
    if count < window - 1:
        raise ValueError(f"a window of {window} epochs needs as many recorded; there are {count + 1}: lower window")
    return score


@dataclass(frozen=True, eq=False, kw_only=True)
class TDDS(LoggedScorer):
    """Temporal dual-depth score: unsteadiness of a row's predictions over windows of epochs. High = keep.

        D_t(i) = sum over c of |p_t[c] (ln(p_t[c] + eps) - ln(p_(t-1)[c] + eps))|
        V_k(i) = sqrt(sum over the W - 1 changes D_t of window k of (D_t(i) - their mean)^2)
        R_k    = b V_k + (1 - b) R_(k-1)            the score is R of the last window

    with p_t the row's predicted distribution in epoch t. Labels are not read: mislabelled rows are spread over the
    whole range, and about their share of them is kept. Under label noise drop rows with a low `AUM` first. The paper
    takes the first 10 to 30 of 200 epochs.

    Args:
        logged: score of each row, as `from_log` computed it.
        window: number of epochs in a window, W.
        decay: weight of the last window, b; with 0.9 hardly another one counts.
        name: score column.
        fitted_on: facts about the logs.

    Reads the column `divergence`: record with `divergence=True`.

    Reference: Zhang et al., 2024, arXiv 2311.13613.

    >>> import tempfile
    >>> from hf_prune import TrainingLog
    >>> z = np.array([[[2.0, 0.0]], [[0.0, 0.0]], [[2.0, 0.0]]])   # 3 epochs, 1 row, 2 classes
    >>> log = TrainingLog.from_logits(tempfile.mkdtemp(), ids=["a"], logits=z, labels=[0], divergence=True)
    >>> TDDS.from_log(log, window=3)({"row_id": ["a"]})["tdds"].shape
    (1,)
    """

    paper: ClassVar[str] = "Zhang et al., Spanning Training Progress: TDDS, CVPR 2024, arXiv 2311.13613"
    meaning: ClassVar[str] = "predictions move unsteadily; the label plays no part, mislabelled rows are anywhere"

    window: int = 10
    decay: float = 0.9
    name: str = "tdds"

    def check_fields(self) -> None:
        check_count("window", self.window, 3)
        check_number("decay", self.decay, 0, 1, open_low=True)

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, with its window and decay."""
        return (
            "root of the summed squared deviations of the change of predictions between epochs, in windows of "
            f"{self.window} epochs, weighted {self.decay:g} (1 - {self.decay:g})^age; mean over runs; the column is "
            "it; NaN where a loss was not finite"
        )

    @classmethod
    def from_log(
        cls,
        log: Logs,
        *,
        window: int = 10,
        decay: float = 0.9,
        epochs: Epochs = None,
        row_id: str | None = None,
        name: str = "tdds",
    ) -> Self:
        """Compute it from one log, or the mean over several independent runs.

        Args:
            log: a `TrainingLog` with divergences, its folder, or a list of them.
            window: number of epochs in a window, W, at least 3 and at most the epochs that count.
            decay: weight of the last window, b, above 0 and up to 1.
            epochs: numbers of the epochs that count, without a gap, as in `range(10)`; all by default.
            row_id: column of ids in the dataset to be scored; the log's own by default.
            name: score column.

        Raises:
            ValueError: no divergences, too few epochs, epochs with a gap, logs of other rows or kind.
        """

        def statistic(run: Run) -> dict[str, Column]:
            first, last = run.epochs[0], run.epochs[-1]
            if last - first + 1 != len(run.epochs):
                raise ValueError(
                    f"{cls.__name__}: epochs={run.epochs} have a gap; changes are between one and the next"
                )
            run.epochs = run.epochs[1:]  # a change is kept with the later of its two epochs
            return {"score": tdds((d for (d,) in run.each("divergence")), window, decay)}

        logged, facts = read_runs(log, statistic, who=cls.__name__, needs=["divergence"], epochs=epochs, row_id=row_id)
        return cls(logged=logged.typed(score="float32"), window=window, decay=decay, name=name, fitted_on=facts)
