"""Base of scores that models give by forward passes, or that a training log has already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, InitVar, dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_prune.columns import ScoreColumn
from hf_prune.data.batch import Batch
from hf_prune.dynamics.from_log import LoggedValues, described
from hf_prune.models import Model
from hf_prune.networks.classifier import Classifier, as_models, mean_statistic, models_facts
from hf_prune.scorer import Scorer

_OF_MODELS = ("models", "label", "column", "task", "kind", "max_length", "micro_batch")


@dataclass(frozen=True, eq=False)
class ModelsOrLog(Scorer):
    """A statistic of logits: averaged over models that are run here, or out of a log that has it.

    Args:
        models: classifiers or language models, averaged in float64; all are held on the device at once.
        label: column of classes, integers or names that the model knows; a language model reads none.
        column: of pictures, texts or vectors; by default `image`, `text` or `embedding`, whichever goes with the model.
        task: "classification", "language_model", or "auto" by the head that the model's folder names.
        kind: of input: "text", "image", "vector", or "auto".
        max_length: tokens after which texts are cut; None for the model's own limit.
        micro_batch: tokens (padding counted) or rows a forward pass; None for what suits the device.
        logged: what `from_log` computed, instead of models.
        fitted_on: facts about the logs.
        preprocess: `package.module:function` for networks of your own, if their `Model` does not name it.
    """

    atol: ClassVar[float] = 1e-5

    models: Any = ()
    label: str = "label"
    column: str | None = None
    _: KW_ONLY
    task: str = "auto"
    kind: str = "auto"
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
        return mean_statistic(self._classifiers(rank), batch, statistic, label)

    def _classifiers(self, rank: int | None) -> list[Classifier]:
        return [
            Classifier(
                model,
                self.column,
                task=self.task,
                kind=self.kind,
                max_length=self.max_length,
                micro_batch=self.micro_batch,
                rank=rank,
            )
            for model in self.models
        ]
