"""`Probe`: the network whose Fisher information embeds data, and how it is read off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Self

import numpy as np

from hf_prune.data.identity import check_seed
from hf_prune.models import Model
from hf_prune.networks.classifier import Classifier
from hf_prune.values import Value

LENGTH = 128  # tokens, as published: attention and logits of more cost more than they tell
FEW = 16  # classes up to which all labels are summed over

FISHERS = ("auto", "exact", "sampled", "empirical", "published")
HEADS = ("auto", "keep", "fit")
ESTIMATORS = ("sequence", "position")


@dataclass(frozen=True, eq=False)
class Probe(Value):
    """A network, what it reads, and how its Fisher information is estimated.

    Coordinates are filters: the mean over the weights of one output unit. The head, biases and tables of embeddings
    are left out (a tied head counts nowhere, as if it had been cloned).

    Args:
        model: a `Model`, folder, Hub name, `package.module:factory` or live module, with a head for classes or a causal
            language model. A live module is stored as it is now. Where a head is fitted to classes, the folder need not
            have one: that of a `BertModel`, `ViTModel` or `ResNetModel` will do, if the last linear layer is all that
            a classifier of its kind has beyond it. Else (RoBERTa, DistilBERT, a BERT without pooler) give a module that
            pools, as a mean over tokens does, and ends in a linear layer.
        column: that it reads; by default `text`, `image` or `embedding`, whichever goes with the model.
        label: column of classes; read only to fit a head and for the empirical Fisher.
        layers: names of modules that count, with all below them ("transformer.h.3"); None: all. The backward pass stops
            at the first of them.
        fisher: whose labels: "sampled" from the model, `draws` for each term; "exact": all classes, each by its
            probability, one backward pass a class; "empirical": those of the data, which is another matrix (its mean
            gradient is not 0). "auto": exact for up to 16 classes, else sampled. "published": as both published codes
            have it, to compare with their numbers: see `published_task2vec`; single rows have no score then.
        draws: sampled labels for each term.
        seed: of the sampled labels, which are a function of (seed, row, position, draw) alone.
        head: "keep" the model's, or "fit" a linear one to the data that is embedded (to the target, for a scorer).
            "auto": fit for classes, keep for a language model.
        l2: weight of the fit's penalty, for features scaled to a mean square of 1: the smaller, the surer the head.
        estimator: "sequence": gradients of a text are squared whole. "position": each position's by itself, for layers
            after the last mixing of positions only (the last block's): the same mean, far less noise, for a language
            model only.
        tables: count tables of embeddings too, a coordinate for each word.
        task, kind, preprocess: see `EL2N`.
        max_length: tokens after which texts are cut; None: 128, or the model's limit.
        micro_batch: tokens (padding counted) or rows a pass; changes nothing but speed and memory.
        autocast: compute in bfloat16 (squares and sums stay in float32 and float64).
        dtype, revision: of the model, if `model` is no `Model`.
        weight, bias, classes: a fitted head, (C, d), (C,) and its labels; `fitted` fills them in.

    Raises:
        ValueError: a word that is none of these; float16, in which squares underflow.

    Reference: Achille et al., 2019, arXiv 1902.03545.

    >>> import torch
    >>> Probe(torch.nn.Linear(3, 2), kind="vector").draws
    1
    """

    model: Any
    column: str | None = None
    label: str = "label"
    _: KW_ONLY
    layers: Sequence[str] | None = None
    fisher: str = "auto"
    draws: int = 1
    seed: int = 0
    head: str = "auto"
    l2: float = 1e-2
    estimator: str = "sequence"
    tables: bool = False
    task: str = "auto"
    kind: str = "auto"
    max_length: int | None = None
    micro_batch: int | None = None
    autocast: bool = False
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    classes: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", Model.of(self.model))
        if self.layers is not None:
            layers = (self.layers,) if isinstance(self.layers, str) else tuple(self.layers)
            object.__setattr__(self, "layers", layers)
        self.check_fields()
        language = self.reader().task == "language_model"
        if self.estimator == "position" and not language:
            raise ValueError("estimator='position' is for language models: other networks have one label a row")
        if self.fisher == "exact" and language:
            raise ValueError("fisher='exact' takes a backward pass for each word of a vocabulary; use fisher='sampled'")

    def check_fields(self) -> None:
        if not isinstance(self.model, Model):
            raise ValueError(f"model={self.model!r} is no Model")
        for what, allowed in (("fisher", FISHERS), ("head", HEADS), ("estimator", ESTIMATORS)):
            if (value := getattr(self, what)) not in allowed:
                raise ValueError(f"{what}={value!r} is not one of {', '.join(allowed)}")
        if isinstance(self.draws, bool) or not isinstance(self.draws, int) or self.draws < 1:
            raise ValueError(f"draws={self.draws!r} is no number of labels; give 1 or more")
        check_seed(self.seed)
        if not self.l2 > 0:
            raise ValueError(f"l2={self.l2!r}: without a penalty a head that fits all labels has no finite weights")
        if self.model.dtype == "float16":
            raise ValueError("the probe is float16, in which squared gradients underflow to 0; use bfloat16 or float32")
        if self.fisher == "published" and (self.layers is not None or self.estimator != "sequence"):
            raise ValueError("fisher='published' takes whole networks and texts; leave out layers and estimator")

    @classmethod
    def of(cls, probe: Any, **options: Any) -> Self:
        """A probe as it is, or a model as a probe."""
        if isinstance(probe, cls):
            return replace(probe, **options) if options else probe
        return cls(probe, **options)

    @property
    def key(self) -> str:
        """Names the coordinates and their scale: embeddings of equal keys can be compared.

        Seeds, numbers of draws, pass sizes, names of columns and the labels of a fitted head change no coordinate.
        """
        plain = {"column": None, "label": "", "draws": 1, "seed": 0, "micro_batch": None}
        plain |= {"weight": None, "bias": None, "classes": None}
        return replace(self, **plain).digest  # type: ignore[arg-type]

    @property
    def labels(self) -> str:
        """Whose labels `fisher` comes to: "exact" or "sampled" in place of "auto" where the head's classes are known.

        They are not for a module of one's own that keeps its head, before a row went through it.
        """
        from hf_prune.networks.plan import config_of

        reader = self.reader()
        if self.fisher != "auto":
            return self.fisher
        if reader.task == "language_model":
            return "sampled"
        if self.weight is None and (reader.own or self.fits):
            return f"auto: exact for {FEW} classes or fewer"
        classes = config_of(self.model).num_labels if self.weight is None else len(self.weight)
        return "exact" if classes <= FEW else "sampled"

    @property
    def fits(self) -> bool:
        """Whether a head has still to be fitted."""
        if self.weight is not None:
            return False
        return self.head == "fit" or (self.head == "auto" and self.reader().task != "language_model")

    def fitted(self, ds: Any) -> Self:
        """The probe with a head fitted to a dataset: linear, on features computed once.

        Raises:
            ValueError: one class only; labels that are null; a model that lacks other weights than those of its head.
        """
        from hf_prune.fisher.heads import fit_head

        if not self.fits:
            return self
        weight, bias, classes = fit_head(self, ds)
        return replace(self, weight=weight, bias=bias, classes=classes)

    def reader(self, rank: int | None = None) -> Classifier:
        """What runs the network over rows."""
        from hf_prune.networks.plan import text_plan

        reader = Classifier(
            self.model, self.column, task=self.task, kind=self.kind, micro_batch=self.micro_batch, rank=rank
        )
        # a language model's fit begins at its head
        replaced = self.head != "keep" or self.weight is not None
        reader.new_head = replaced and reader.task != "language_model"
        if not reader.own and reader.kind == "text":
            limit = text_plan(self.model, "auto", None, self.max_length, None).max_length
            reader.max_length = min(LENGTH, limit or LENGTH) if self.max_length is None else self.max_length
        return reader
