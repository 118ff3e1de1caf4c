"""Base of scores that models give by forward passes, or that a training log has already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_choice
from hf_prune.columns import ScoreColumn
from hf_prune.data.batch import Batch
from hf_prune.data.labels import check_class_names, model_classes
from hf_prune.data.types import Modality
from hf_prune.dynamics.from_log import LoggedValues, described
from hf_prune.dynamics.summaries import ScoreSummary
from hf_prune.models import Model
from hf_prune.networks.classifier import Classifier, as_models, mean_statistic, models_facts
from hf_prune.networks.plan import config_of
from hf_prune.scorer import Scorer

Task: TypeAlias = Literal["auto", "classification", "language_model"]

_OF_MODELS = ("models", "label", "column", "task", "modality", "max_length", "micro_batch")


@dataclass(frozen=True, eq=False)
class ModelsOrLog(Scorer):
    """A statistic of logits: averaged over models that are run here, or out of a log that has it.

    Args:
        models: classifiers or language models, averaged in float64; all are held on the device at once.
        column: column of images, texts or vectors; by default `image`, `text` or `embedding`, as the model reads.
        task: "classification", "language_model", or "auto" by the head that the model's folder names.
        modality: what the column holds: "text", "image", "vector" (rows of numbers), or "auto".
        max_length: number of tokens after which a text is cut; None for the model's own limit.
        micro_batch: number of tokens (padding counted) or rows in a forward pass; None for what suits the device.
        logged: score of each row, as `from_log` computed it, instead of models.
        fitted_on: facts about the logs.
        preprocess: `package.module:function` for networks of your own, if their `Model` does not name it.
    """

    atol: ClassVar[float] = 1e-5

    models: Any = ()
    _: KW_ONLY
    column: str | None = None
    task: Task = "auto"
    modality: Modality = "auto"
    max_length: int | None = None
    micro_batch: int | None = None
    logged: LoggedValues | None = None
    fitted_on: Mapping[str, Any] | None = None
    preprocess: InitVar[str | None] = None

    def __post_init__(self, preprocess: str | None) -> None:
        if self.logged is not None:
            return
        models = as_models(self.models)
        if preprocess is not None:
            models = tuple(replace(model, preprocess=preprocess) for model in models)
        object.__setattr__(self, "models", models)
        self.check_fields()
        self._classifiers(None)  # heads and kinds are checked here, not in a worker

    def check_fields(self) -> None:
        check_choice("task", self.task, get_args(Task))
        check_choice("modality", self.modality, get_args(Modality))
        models = self.models
        if not isinstance(models, tuple) or not all(isinstance(model, Model) for model in models):
            raise ValueError(f"models={models!r} are no Models")
        if not models and self.logged is None:
            raise ValueError("there are neither models nor the values of a log")

    @property
    def nan_rows(self) -> bool:  # type: ignore[override]
        """Whether rows without a finite loss in the log get NaN."""
        return self.logged is not None

    @property
    def row_id(self) -> str | None:
        """Column of ids, if the values come out of a log."""
        return self.logged.row_id if self.logged else None

    def summary(self) -> ScoreSummary:
        """What the logs hold, and how the scores spread.

        Raises:
            ValueError: the scorer has models, not values of a log.
        """
        if self.logged is None:
            raise ValueError(
                f"this {type(self).__name__} runs models, row by row, and knows no scores before; make one with "
                f"{type(self).__name__}.from_log, or score a dataset and look at the column"
            )
        return ScoreSummary.of(self.name, self.logged.values, self.fitted_on)

    def cost(self, batch: Batch) -> float:
        return 0.0 if self.logged else sum(c.flops(batch) for c in self._classifiers(None))

    def describe(self) -> ScoreColumn:
        found = super().describe()
        if self.logged is not None:
            own = {name: value for name, value in found.params.items() if name not in _OF_MODELS}
            return described(replace(found, params=own), self.logged)
        params = {name: value for name, value in found.params.items() if name not in ("models", "logged")}
        return replace(found, model=models_facts(self.models), params=params)

    def values(self, batch: Batch, rank: int | None, statistic: str, label: str | None) -> NDArray[Any]:
        """The statistic (n,) of a batch's rows: looked up, or the mean over the models."""
        if self.logged is not None:
            return np.asarray(self.logged.find(batch)["score"])
        classifiers = self._classifiers(rank)
        if label is not None:
            check_names(classifiers, batch, label)
        return mean_statistic(classifiers, batch, statistic, label)

    def _classifiers(self, rank: int | None) -> list[Classifier]:
        return [
            Classifier(
                model,
                self.column,
                task=self.task,
                kind=self.modality,
                max_length=self.max_length,
                micro_batch=self.micro_batch,
                rank=rank,
            )
            for model in self.models
        ]


def check_names(classifiers: Sequence[Classifier], batch: Batch, label: str) -> None:
    """Compare the names of the classes that a column of labels has with those that the models have.

    Raises:
        ValueError: both are named, and differ.
    """
    names = batch.class_names(label)
    for classifier in classifiers if names else ():
        if not classifier.own and classifier.task == "classification":
            check_class_names(names, model_classes(config_of(classifier.model)), label, classifier.model.label)
