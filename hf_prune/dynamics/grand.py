"""GraNd: the length of a row's loss gradient, early in training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_prune.data.batch import Batch
from hf_prune.dynamics.from_models import ModelsOrLog, check_names
from hf_prune.models import memo
from hf_prune.networks.classifier import Classifier, networks, next_tokens, warn_if_untrained
from hf_prune.networks.inputs import Inputs
from hf_prune.networks.statistics import logit_gradient

if TYPE_CHECKING:
    from torch import nn

    from hf_prune.fisher.squares import Squares


@dataclass(frozen=True, eq=False, kw_only=True)
class GraNd(ModelsOrLog):
    """Length of the gradient of a row's loss over all parameters. High = moves the weights far = hard = keep.

        GraNd(i) = mean over models of || d/dw cross_entropy(z_w(x_i), y_i) ||

    with w the parameters of a model and z_w its logits. At initialization it says little more than how long the input
    is (Kirsch): take models after some epochs, several of them, from different seeds. Mislabelled rows get the highest
    scores and are kept; under label noise keep the low end or the middle (`prefer=`), or cut off the hardest first.

    One forward and one backward pass give it for all rows together, by `Squares`; no gradient of a row is formed where
    that costs more. The lengths are averaged, not the gradients. For a causal language model the loss is the sum over
    the row's tokens, so that long rows score higher; divide by the number of tokens if that is not meant.

    Args:
        models: `Model`s, folders, Hub names or live modules, run in eval mode, all held on the device at once.
        label: column of classes, integers or names that the model knows; a language model reads none. Where the dataset
            and the model both name their classes, the names are compared.
        last_layer: whether the parameters of the last linear layer count alone (column `grand_last_layer`), for no more
            than a forward pass. With one position that is `||softmax - onehot|| sqrt(1 + ||h||^2)`, where h is the
            input of that layer. A table tied to it does not count.
        column: column of images, texts or vectors; by default `image`, `text` or `embedding`, as the model reads.
        task: "classification", "language_model", or "auto" by the head that the model's folder names.
        modality: what the column holds: "text", "image", "vector" (rows of numbers, for a module of your own), or
            "auto".
        max_length: number of tokens after which a text is cut; None for the model's own limit.
        micro_batch: number of tokens (padding counted) or rows in a forward pass; None for what suits the device.
        preprocess: `package.module:function` for networks of your own, from a list of texts or RGB PIL images to
            tensors; None if their `Model` names it.
        name: score column; `grand` or `grand_last_layer` by default.

    Raises:
        ValueError: a label that is no class of the model, classes of other names, an empty text, a damaged image,
            float16, a network that mixes rows.

    Reference: Paul et al., 2021, arXiv 2107.07075; Kirsch, 2023, arXiv 2303.14753.

    >>> import datasets, torch
    >>> net = torch.nn.Linear(2, 2, bias=False)
    >>> net.weight = torch.nn.Parameter(torch.eye(2))
    >>> ds = datasets.Dataset.from_dict({"embedding": [[2.0, 0.0], [2.0, 0.0]], "label": [0, 1]})
    >>> GraNd(models=[net])(ds[:])["grand"].round(4)
    array([0.3372, 2.4913], dtype=float32)
    """

    version: ClassVar[int] = 2
    paper: ClassVar[str] = "Paul et al., Deep Learning on a Data Diet, NeurIPS 2021, arXiv 2107.07075"
    meaning: ClassVar[str] = "moves the weights far: hard, or mislabelled (such rows are kept)"
    atol: ClassVar[float] = 1e-4  # lengths are not bounded by 1, and sums over positions round by their number

    label: str = "label"
    last_layer: bool = False
    name: str = ""

    def __post_init__(self, preprocess: str | None) -> None:
        self._check_no_log()
        if not self.name:
            object.__setattr__(self, "name", "grand_last_layer" if self.last_layer else "grand")
        super().__post_init__(preprocess)
        warn_if_untrained(self.models, "GraNd")

    def check_fields(self) -> None:
        super().check_fields()
        self._check_no_log()

    def _check_no_log(self) -> None:
        if self.logged is not None or self.fitted_on is not None:
            raise ValueError("GraNd needs gradients, which no log has; give models=")

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity."""
        many = f"mean over {len(self.models)} model{'s' if len(self.models) > 1 else ''} in eval mode"
        what = "last linear layer" if self.last_layer else "parameters"
        return f"Euclidean length of the gradient of a row's cross-entropy over the {what}, {many}; the column is it"

    def cost(self, batch: Batch) -> float:
        return super().cost(batch) * (1 if self.last_layer else 3)  # backward to the activations, and norms

    def score(self, batch: Batch, rank: int | None) -> Any:
        classifiers = self._classifiers(rank)
        check_names(classifiers, batch, self.label)
        total = np.zeros(batch.n)
        if batch.n:
            for number, (one, network) in enumerate(zip(classifiers, networks(classifiers), strict=True)):
                total += self._lengths(one, network, batch, f"squares {number} {rank}")
        return total / len(classifiers)

    def _lengths(self, classifier: Classifier, network: nn.Module, batch: Batch, key: str) -> NDArray[np.float64]:
        """Lengths (n,) of one model's gradients."""
        import torch

        language = classifier.task == "language_model"
        classes = None if language else classifier.labels(batch, self.label)
        lengths = np.empty(batch.n)
        for rows, inputs in classifier.passes(batch):
            given = inputs(np.arange(len(rows)))
            if language:
                given = {"use_cache": False, **given} if classifier.model.kind not in ("factory", "live") else given
            squares = memo(self, key, partial(self._squares, classifier, network, given))
            tap = squares.forward(**given) if hasattr(given, "items") else squares.forward(given)
            logits = classifier.checked(tap.output)
            if language:
                after = next_tokens(given)
                labels = torch.nn.functional.pad(after, (0, 1), value=-100)
            else:
                assert classes is not None
                classifier.check_classes(classes[rows], rows, self.label, logits.shape[1])
                labels = torch.from_numpy(classes[rows]).to(logits.device)
            found = tap.norms(logits, logit_gradient(logits.detach(), labels).to(logits.dtype))
            lengths[rows] = found.sqrt().cpu().numpy()
        return lengths

    def _squares(self, classifier: Classifier, network: nn.Module, given: Inputs) -> Squares:
        from hf_prune.fisher.heads import last_linear
        from hf_prune.fisher.squares import Squares

        layers = [last_linear(classifier, network, given)] if self.last_layer else None
        return Squares(network, layers, biases=True)
