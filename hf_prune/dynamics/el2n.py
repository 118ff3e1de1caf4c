"""EL2N: the length of a classifier's error vector, early in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from hf_prune.checks import warn
from hf_prune.data.batch import Batch
from hf_prune.dynamics.from_log import Column, Epochs, Logs, Run, mean_of_epochs, read_runs
from hf_prune.dynamics.from_models import ModelsOrLog
from hf_prune.networks.classifier import warn_if_untrained


@dataclass(frozen=True, eq=False, kw_only=True)
class EL2N(ModelsOrLog):
    """Length of a classifier's error vector, early in training. High = far from right = hard = keep.

        EL2N(i) = mean over models of || softmax(z(x_i)) - onehot(y_i) ||

    with z the logits of a model. Mislabelled rows get the highest scores and are kept. Under label noise keep
    the low end or the middle (`prefer=`), cut off the hardest first (`filter_by_score(offset=)`), or find them with
    `AUM`.

    Give several models, trained a few epochs (20 of 200 in the paper) from different seeds: the score of one is noisy.
    They are run in eval mode on the rows as they are; no onehot or error vector is built. For a causal language model
    the score is the mean over the text's tokens (Marion et al. keep the middle).

    Args:
        models: `Model`s, folders, Hub names or live modules; averaged in float64, all held on the device at once.
        label: column of classes, integers or names that the model knows; a language model reads none. Where the dataset
            and the model both name their classes, the names are compared.
        column: column of images, texts or vectors; by default `image`, `text` or `embedding`, as the model reads.
        task: "classification", "language_model", or "auto" by the head that the model's folder names.
        modality: what the column holds: "text", "image", "vector" (rows of numbers, for a module of your own), or
            "auto".
        max_length: number of tokens after which a text is cut; None for the model's own limit.
        micro_batch: number of tokens (padding counted) or rows in a forward pass; None for what suits the device.
        logged: score of each row, as `from_log` computed it, instead of models.
        fitted_on: facts about the logs.
        preprocess: `package.module:function` for networks of your own, from a list of texts or RGB PIL images to
            tensors; None if their `Model` names it.
        name: score column; a log of training passes gives `el2n_train`.

    Raises:
        ValueError: a label that is no class of the model, classes of other names, an empty text, a damaged image.

    Reference: Paul et al., 2021, arXiv 2107.07075; for text Marion et al., 2023, arXiv 2309.04564.

    >>> import datasets, torch
    >>> net = torch.nn.Linear(2, 2, bias=False)
    >>> net.weight = torch.nn.Parameter(torch.eye(2))
    >>> ds = datasets.Dataset.from_dict({"embedding": [[2.0, 0.0], [2.0, 0.0]], "label": [0, 1]})
    >>> EL2N(models=[net], label="label")(ds[:])["el2n"].round(4)
    array([0.1686, 1.2456], dtype=float32)
    """

    version: ClassVar[int] = 2
    paper: ClassVar[str] = "Paul et al., Deep Learning on a Data Diet, NeurIPS 2021, arXiv 2107.07075"
    meaning: ClassVar[str] = "far from its label early in training: hard, or mislabelled (such rows are kept)"

    label: str = "label"
    name: str = "el2n"

    def __post_init__(self, preprocess: str | None) -> None:
        super().__post_init__(preprocess)
        if self.logged is None:
            warn_if_untrained(self.models, "EL2N")

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, and where it comes from."""
        if self.logged is None:
            where = f"mean over {len(self.models)} model{'s' if len(self.models) > 1 else ''} in eval mode"
        elif (self.fitted_on or {}).get("mode") == "train":
            where = (
                "of training passes (augmented, weights moving): not the paper's clean pass; mean over epochs and runs"
            )
        else:
            where = "of clean passes, mean over epochs and runs"
        end = "; NaN where a loss was not finite" if self.logged else ""
        return f"Euclidean length of softmax(logits) - onehot(label), {where}; the column is it{end}"

    @classmethod
    def from_log(
        cls,
        log: Logs,
        *,
        epochs: Epochs = None,
        row_id: str | None = None,
        name: str | None = None,
    ) -> Self:
        """Average the error lengths that a log has, over epochs and over independent runs.

        A log of clean passes (eval mode) gives `el2n`. One of training passes gives `el2n_train`, which is another
        number: the network moves while it is recorded, and sees augmented rows.

        Args:
            log: a `TrainingLog`, its folder, or a list of them.
            epochs: numbers of the epochs that count, from 0; the paper takes one early epoch, as in `epochs=19`; all by
                default.
            row_id: column of ids in the dataset to be scored; the log's own by default.
            name: score column; `el2n` or `el2n_train` by default.

        Raises:
            ValueError: an epoch that is not there, logs of other rows or kind.
        """

        def statistic(run: Run) -> dict[str, Column]:
            if run.epochs == [0] and run.log.mode == "train":
                warn(
                    f"{cls.__name__}: the training passes of epoch 0 begin at initialization, where this score says "
                    "little more than how long the input is (Kirsch, arXiv 2303.14753); take a later epoch, or more"
                )
            return {"score": mean_of_epochs(error for (error,) in run.each("el2n"))}

        logged, facts = read_runs(log, statistic, who=cls.__name__, needs=["el2n"], epochs=epochs, row_id=row_id)
        if name is None:
            name = "el2n_train" if facts["mode"] == "train" else "el2n"
        return cls(logged=logged.typed(score="float32"), fitted_on=facts, name=name)

    def score(self, batch: Batch, rank: int | None) -> Any:
        return self.values(batch, rank, "el2n", self.label)
