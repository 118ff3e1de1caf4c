"""TDDS: how unsteadily a row's predicted distribution moves from epoch to epoch, late epochs counting most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from hf_prune.dynamics.from_log import Column, LoggedScorer, Run, read_runs


def tdds(changes: Iterable[Any], window: int = 10, decay: float = 0.9) -> NDArray[np.float64]:
    """Decayed sum over windows of the deviation of a row's changes from their mean in the window, (n,).

    Holds `window - 1` arrays at a time: O(n window) memory, whatever the epochs and classes.

    Args:
        changes: T - 1 arrays (n,): D between an epoch and the next, `sum_c |p' (ln(p' + eps) - ln(p + eps))|`.
        window: W epochs, so W - 1 changes; at least 3, at most T.
        decay: b: the last window counts b, the one before `b (1 - b)`, and so on.

    Raises:
        ValueError: too few epochs, a window without spread, or a decay outside (0, 1].
    Reference: Zhang et al., 2024, arXiv 2311.13613, and its code (the absolute value is inside the sum; deviations are
    summed, not averaged).

    >>> tdds([[0.1], [0.3], [0.1]], window=3, decay=0.5).round(6)
    array([0.106066])
    """
    if window < 3:
        raise ValueError(f"window={window} holds {max(window - 1, 0)} changes, which have no spread; give 3 or more")
    if not 0 < decay <= 1:
        raise ValueError(f"decay={decay} is not in (0, 1]; the paper's is 0.9")
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


@dataclass(frozen=True, eq=False)
class TDDS(LoggedScorer):
    """Temporal dual-depth score: unsteadiness of a row's predictions over windows of epochs. High = keep.

    Mislabelled rows are unsteady while the network is about to memorise them, so many of them are kept; take the first
    epochs only (the paper takes 10 to 30 of 200), and drop rows with a low `AUM` first under label noise.

    Args:
        logged: what `from_log` computed.
        window: epochs of a window, W.
        decay: weight b of the last window; with 0.9 hardly another one counts.
        name: column.
        fitted_on: facts about the logs.

    Reads the column `divergence`: record with `divergence=True`.

    Reference: Zhang et al., 2024, arXiv 2311.13613.

    >>> import tempfile
    >>> from hf_prune import TrainingLog
    >>> z = np.array([[[2.0, 0.0]], [[0.0, 0.0]], [[2.0, 0.0]]])   # 3 epochs, 1 row, 2 classes
    >>> log = TrainingLog.from_logits(tempfile.mkdtemp(), ["a"], z, labels=[0], divergence=True)
    >>> TDDS.from_log(log, window=3)({"row_id": ["a"]})["tdds"].shape
    (1,)
    """

    paper: ClassVar[str] = "Zhang et al., Spanning Training Progress: TDDS, CVPR 2024, arXiv 2311.13613"
    meaning: ClassVar[str] = (
        "predictions move unsteadily; mislabelled rows that are being memorised too (they are kept)"
    )

    window: int = 10
    decay: float = 0.9
    name: str = "tdds"
    fitted_on: Mapping[str, Any] | None = None

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
        log: Any,
        *,
        window: int = 10,
        decay: float = 0.9,
        epochs: int | Iterable[int] | None = None,
        row_id: str | None = None,
        name: str = "tdds",
    ) -> Self:
        """Compute it from one log, or the mean over several independent runs.

        Args:
            log: a `TrainingLog` with divergences, its folder, or a list of them.
            window, decay, name: of the scorer.
            epochs: those that count, without a gap, as in `range(10)`; all by default.
            row_id: column of ids in the dataset to be scored; the log's own by default.

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

        logged, facts = read_runs(log, epochs, cls.__name__, statistic, ["divergence"], row_id)
        return cls(logged.typed(score="float32"), window, decay, name, facts)
