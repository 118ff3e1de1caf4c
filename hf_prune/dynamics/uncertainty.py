"""Uncertainty: entropy, least confidence, or the gap between the two likeliest classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_choice
from hf_prune.data.batch import Batch
from hf_prune.dynamics.from_log import Column, Epochs, Logs, Run, mean_of_epochs, read_runs
from hf_prune.dynamics.from_models import ModelsOrLog

Statistic: TypeAlias = Literal["entropy", "least_confidence", "margin"]

AVERAGED = {"entropy": "entropy", "least_confidence": "p_max", "margin": "gap"}  # what is averaged over models, epochs
RAW = {
    "entropy": "entropy of softmax(logits) in nats",
    "least_confidence": "1 - largest probability",
    "margin": "1 - (largest probability - second largest)",
}


def oriented(statistic: Statistic, values: NDArray[Any]) -> NDArray[np.float64]:
    """The score (n,), high = uncertain, of entropies, largest probabilities or gaps (n,).

    >>> oriented("least_confidence", np.array([0.75])).tolist()
    [0.25]
    """
    value = np.asarray(values, np.float64)
    return value if statistic == "entropy" else 1 - value


@dataclass(frozen=True, eq=False, kw_only=True)
class Uncertainty(ModelsOrLog):
    """How undecided models are about a row, whatever its label. High = uncertain = keep.

        entropy            - sum over c of p[c] ln p[c]
        least_confidence   1 - p_1
        margin             1 - (p_1 - p_2)

    with p a model's probabilities, p_1 and p_2 the largest two. The label is not looked at: a mislabelled row that the
    network recognizes is as certain as its true class, and is dropped with the easy ones while the network has not
    memorized it. What is ambiguous is kept.

    Args:
        models: `Model`s, folders, Hub names or live modules; averaged in float64, all held on the device at once.
        column: column of images, texts or vectors; by default `image`, `text` or `embedding`, as the model reads.
        task: "classification", "language_model" (mean over tokens), or "auto" by the head that the folder names.
        modality: what the column holds: "text", "image", "vector" (rows of numbers, for a module of your own), or
            "auto".
        max_length: number of tokens after which a text is cut; None for the model's own limit.
        micro_batch: number of tokens (padding counted) or rows in a forward pass; None for what suits the device.
        logged: score of each row, as `from_log` computed it, instead of models.
        fitted_on: facts about the logs.
        preprocess: `package.module:function` for networks of your own, from a list of texts or RGB PIL images to
            tensors; None if their `Model` names it.
        statistic: "entropy", "least_confidence" or "margin". The last two are computed from float32 probabilities and
            tie where the models are sure to seven digits.
        name: score column; `uncertainty_<statistic>` by default.

    Reference: the statistics of DeepCore's "Uncertainty" (Guo et al., 2022, arXiv 2204.08499), whose code has the
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

    statistic: Statistic = "entropy"
    name: str = ""

    def __post_init__(self, preprocess: str | None) -> None:
        check_choice("statistic", self.statistic, get_args(Statistic))
        if not self.name:
            object.__setattr__(self, "name", f"uncertainty_{self.statistic}")
        super().__post_init__(preprocess)

    def check_fields(self) -> None:
        super().check_fields()
        check_choice("statistic", self.statistic, get_args(Statistic))

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, by statistic."""
        where = f"epochs and runs of a log ({(self.fitted_on or {}).get('mode')} mode)" if self.logged else "models"
        end = "; NaN where a loss was not finite" if self.logged else ""
        return f"{RAW[self.statistic]}, mean over {where}; the column is it{end}"

    @classmethod
    def from_log(
        cls,
        log: Logs,
        *,
        statistic: Statistic = "entropy",
        epochs: Epochs = None,
        row_id: str | None = None,
        name: str = "",
    ) -> Self:
        """Average what a log has, over epochs and over independent runs.

        Args:
            log: a `TrainingLog`, its folder, or a list of them.
            statistic: "entropy", "least_confidence" or "margin".
            epochs: numbers of the epochs that count, from 0; all by default.
            row_id: column of ids in the dataset to be scored; the log's own by default.
            name: score column; `uncertainty_<statistic>` by default.

        Raises:
            ValueError: an unknown statistic, an epoch that is not there, logs of other rows or kind.
        """
        check_choice("statistic", statistic, get_args(Statistic))
        column = AVERAGED[statistic]

        def mean(run: Run) -> dict[str, Column]:
            return {"score": oriented(statistic, mean_of_epochs(value for (value,) in run.each(column)))}

        logged, facts = read_runs(log, mean, who=cls.__name__, needs=[column], epochs=epochs, row_id=row_id)
        return cls(logged=logged.typed(score="float32"), fitted_on=facts, statistic=statistic, name=name)

    def score(self, batch: Batch, rank: int | None) -> Any:
        values = self.values(batch, rank, AVERAGED[self.statistic], None)
        return values if self.logged else oriented(self.statistic, values)
