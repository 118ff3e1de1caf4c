"""Uncertainty: entropy, least confidence, or the gap between the two likeliest classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from hf_prune.data.batch import Batch
from hf_prune.dynamics.from_log import Column, Run, mean_of_epochs, read_runs
from hf_prune.dynamics.from_models import ModelsOrLog

STATISTICS = {"entropy": "entropy", "least_confidence": "p_max", "margin": "gap"}  # measure -> what is averaged
RAW = {
    "entropy": "entropy of softmax(logits) in nats",
    "least_confidence": "1 - largest probability",
    "margin": "1 - (largest probability - second largest)",
}


def oriented(measure: str, statistic: NDArray[Any]) -> NDArray[np.float64]:
    """The score, high = uncertain, of (n,) entropies, largest probabilities or gaps.

    >>> oriented("least_confidence", np.array([0.75])).tolist()
    [0.25]
    """
    value = np.asarray(statistic, np.float64)
    return value if measure == "entropy" else 1 - value


@dataclass(frozen=True, eq=False)
class Uncertainty(ModelsOrLog):
    """How undecided models are about a row, whatever its label. High = uncertain = keep.

    The label is not looked at: a mislabelled row that the network recognises is as certain as its true class, and is
    dropped with the easy ones while the network has not memorised it. What is ambiguous is kept.

    Args:
        models: `Model`s, folders, Hub names or live modules; averaged in float64, all held on the device at once.
        label: not read.
        column: of pictures, texts or vectors; by default `image`, `text` or `embedding`, whichever goes with the model.
        task: "classification", "language_model" (mean over tokens), or "auto" by the head that the folder names.
        kind: of input: "text", "image", "vector" (rows of numbers, for a module of your own), or "auto".
        max_length: tokens after which texts are cut; None for the model's own limit.
        micro_batch: tokens (padding counted) or rows a forward pass; None for what suits the device.
        logged: what `from_log` computed, instead of models.
        fitted_on: facts about the logs.
        preprocess: `package.module:function` for networks of your own: a list of texts or RGB PIL images to tensors.
        measure: "entropy"; "least_confidence": 1 - p_max; "margin": 1 - (p_1 - p_2). The last two are computed from
            float32 probabilities and tie where the models are sure to seven digits.
        name: column, `uncertainty_<measure>` by default.

    Reference: the measures of DeepCore's "Uncertainty" (Guo et al., 2022, arXiv 2204.08499), whose code has the
    opposite sign and keeps the most certain rows unless classes are balanced.

    >>> import datasets, torch
    >>> net = torch.nn.Linear(2, 2, bias=False)
    >>> net.weight = torch.nn.Parameter(torch.eye(2))
    >>> ds = datasets.Dataset.from_dict({"embedding": [[2.0, 0.0], [0.0, 0.0]]})
    >>> Uncertainty(models=[net])(ds[:])["uncertainty_entropy"].round(4)
    array([0.3653, 0.6931], dtype=float32)
    """

    version: ClassVar[int] = 2
    paper: ClassVar[str] = "Guo et al., DeepCore, 2022, arXiv 2204.08499"
    meaning: ClassVar[str] = "the models are undecided about it; the label plays no part, mislabelled rows are anywhere"

    measure: str = "entropy"
    name: str = ""

    def __post_init__(self, preprocess: str | None) -> None:
        _check_measure(self.measure)
        if not self.name:
            object.__setattr__(self, "name", f"uncertainty_{self.measure}")
        super().__post_init__(preprocess)

    def check_fields(self) -> None:
        super().check_fields()
        _check_measure(self.measure)

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, by measure."""
        where = f"epochs and runs of a log ({(self.fitted_on or {}).get('mode')} mode)" if self.logged else "models"
        end = "; NaN where a loss was not finite" if self.logged else ""
        return f"{RAW[self.measure]}, mean over {where}; the column is it{end}"

    @classmethod
    def from_log(
        cls,
        log: Any,
        *,
        measure: str = "entropy",
        epochs: int | Iterable[int] | None = None,
        row_id: str | None = None,
        name: str = "",
    ) -> Self:
        """Average what a log has, over epochs and over independent runs.

        Args:
            log: a `TrainingLog`, its folder, or a list of them.
            measure, name: of the scorer.
            epochs: those that count; all by default.
            row_id: column of ids in the dataset to be scored; the log's own by default.

        Raises:
            ValueError: an unknown measure, an epoch that is not there, logs of other rows or kind.
        """
        _check_measure(measure)
        column = STATISTICS[measure]

        def statistic(run: Run) -> dict[str, Column]:
            return {"score": oriented(measure, mean_of_epochs(value for (value,) in run.each(column)))}

        logged, facts = read_runs(log, epochs, cls.__name__, statistic, [column], row_id)
        return cls(logged=logged.typed(score="float32"), fitted_on=facts, measure=measure, name=name)

    def score(self, batch: Batch, rank: int | None) -> Any:
        values = self.values(batch, rank, STATISTICS[self.measure], None)
        return values if self.logged else oriented(self.measure, values)


def _check_measure(measure: str) -> None:
    if measure not in STATISTICS:
        raise ValueError(f"measure={measure!r} is not one of {', '.join(STATISTICS)}")
