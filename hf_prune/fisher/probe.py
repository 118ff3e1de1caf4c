"""`Probe`: the network whose Fisher information embeds data, and how it is read off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal, Self, TypeAlias, get_args

import numpy as np

from hf_prune.checks import check_choice, check_count, check_number
from hf_prune.data.identity import check_seed
from hf_prune.data.types import Modality, Rows, Side
from hf_prune.models import Model
from hf_prune.networks.classifier import Classifier
from hf_prune.values import Value

MAX_LENGTH = 128  # tokens, as published: attention and logits of more cost more than they tell
MAX_EXACT_CLASSES = 16  # up to which all labels are summed over

Fisher: TypeAlias = Literal["auto", "exact", "sampled", "empirical", "published"]
Head: TypeAlias = Literal["auto", "keep", "fit"]
Estimator: TypeAlias = Literal["sequence", "position"]
Task: TypeAlias = Literal["auto", "classification", "language_model"]
CHOICES = {"fisher": Fisher, "head": Head, "estimator": Estimator, "modality": Modality}


@dataclass(frozen=True, eq=False)
class Probe(Value):
    """A network, what it reads, and how its Fisher information is estimated.

    A dataset D with rows x_n and loss terms t (one a row of a classifier, one a predicted token of a language model)
    is embedded as the Fisher diagonal of the network p_w, one coordinate for each filter o (the weights of one output
    unit of a layer):

        f_o(D) = mean over i in o, (n, t) in D, labels y ~ p_w(. | x_n) of (d log p_w(y | x_nt) / d w_i)^2

    The head, biases and embedding tables are left out (a tied head counts nowhere, as if it had been cloned).

    Args:
        model: a `Model`, folder, Hub name, `package.module:factory` or live module, with a head for classes or a causal
            language model. A live module is stored as it is now. Where a head is fitted to classes, the folder need not
            have one: that of a `BertModel`, `ViTModel` or `ResNetModel` will do, if the last linear layer is all that
            a classifier of its kind has beyond it. Else (RoBERTa, DistilBERT, a BERT without pooler) give a module that
            pools, as a mean over tokens does, and ends in a linear layer.
        column: column that the network reads; by default `text`, `image` or `embedding`, whichever goes with the model.
            A language model reads token ids in a column `input_ids` where there is no `text`.
        label: column of classes, read only to fit a head and for the empirical Fisher; "label" by default.
        layers: names of modules that count, with all below them ("transformer.h.3"); None, the default: all. The
            backward pass stops at the first of them.
        fisher: whose labels the expectation is over. "sampled": the model's, `draws` for each term. "exact": all
            classes, each by its probability, one backward pass a class. "empirical": those of the data, which gives
            another matrix (its mean gradient is not 0). "auto", the default: exact for up to 16 classes, else sampled.
            "published": as both published codes have it, to compare with their numbers (see `published_task2vec`);
            single rows have no score then.
        draws: number of labels sampled for each term; 1 by default.
        seed: seed of the sampled labels, which are a function of (seed, row, position, draw) alone; 0 by default.
        head: "keep" keeps the model's head; "fit" fits a linear one to the data that are embedded (to the target, for a
            scorer); "auto", the default, fits one for classes and keeps that of a language model.
        l2: weight of the penalty of the fitted head, for features scaled to a mean square of 1; 0.01 by default. The
            smaller it is, the surer the head.
        estimator: "sequence", the default, squares the gradient of a whole text. "position" squares each position's by
            itself, for layers after the last mixing of positions only (those of the last block): the same mean with far
            less noise, for language models only.
        tables: whether embedding tables count too, with one coordinate for each token; False by default.
        task: "classification", "language_model", or "auto", the default: by the head that the model's folder names.
        modality: what the column holds: "text", "image", "vector" (rows of numbers, for a module of your own), or
            "auto", the default.
        max_length: number of tokens after which texts are cut; None, the default: 128, or the model's limit if that is
            less.
        truncate: side on which longer texts are cut: "right" keeps their beginning; "left" keeps their end, which in a
            chat holds the answer. None, the default: the side that the tokenizer names, as a rule the right, with a
            warning that counts the texts that were cut.
        micro_batch: number of tokens (padding counted) or rows of a pass; changes nothing but speed and memory. None,
            the default: what suits the device.
        autocast: whether to compute in bfloat16 (squares and sums stay in float32 and float64); False by default.
        weight: weights of a fitted head, (C, d); `fitted` fills in this and the next two.
        bias: bias of a fitted head, (C,).
        classes: labels of a fitted head, C of them.

    Raises:
        ValueError: a choice that is not known; float16, in which squares underflow.

    Reference: Achille et al., 2019, arXiv 1902.03545.

    >>> import torch
    >>> Probe(torch.nn.Linear(3, 2), modality="vector").draws
    1
    """

    model: Any
    column: str | None = None
    label: str = "label"
    _: KW_ONLY
    layers: Sequence[str] | None = None
    fisher: Fisher = "auto"
    draws: int = 1
    seed: int = 0
    head: Head = "auto"
    l2: float = 1e-2
    estimator: Estimator = "sequence"
    tables: bool = False
    task: Task = "auto"
    modality: Modality = "auto"
    max_length: int | None = None
    micro_batch: int | None = None
    autocast: bool = False
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    classes: Sequence[Any] | None = None
    truncate: Side | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", Model.of(self.model))
        if self.layers is not None:
            layers = (self.layers,) if isinstance(self.layers, str) else tuple(self.layers)
            object.__setattr__(self, "layers", layers)
        self.check_fields()
        language = self.reader().task == "language_model"
        if self.estimator == "position" and not language:
            raise ValueError(
                "estimator='position' is for language models, other networks have one label a row; leave estimator out"
            )
        if self.fisher == "exact" and language:
            raise ValueError(
                "fisher='exact' takes a backward pass for each token of the vocabulary; use fisher='sampled'"
            )

    def check_fields(self) -> None:
        if not isinstance(self.model, Model):
            raise ValueError(f"model={self.model!r} is no Model; give a Model, a folder, a Hub name or a module")
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), get_args(choices))
        check_choice("truncate", self.truncate, (*get_args(Side), None))
        check_choice("task", self.task, get_args(Task))
        check_count("draws", self.draws)
        check_count("max_length", self.max_length, optional=True)
        check_count("micro_batch", self.micro_batch, optional=True)
        check_seed(self.seed)
        try:
            check_number("l2", self.l2, 0, open_low=True)
        except ValueError as error:
            raise ValueError(f"{error}: without a penalty a head that fits all labels has no finite weights") from None
        if self.model.dtype == "float16":
            raise ValueError("the probe is float16, in which squared gradients underflow to 0; use bfloat16 or float32")
        if self.fisher == "published" and (self.layers is not None or self.estimator != "sequence"):
            raise ValueError("fisher='published' takes whole networks and texts; leave out layers and estimator")

    @classmethod
    def of(cls, probe: Any, **options: Any) -> Self:
        """A probe as it is, or the probe of a model; `options` replace its fields."""
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
            return f"auto: exact for {MAX_EXACT_CLASSES} classes or fewer"
        classes = config_of(self.model).num_labels if self.weight is None else len(self.weight)
        return "exact" if classes <= MAX_EXACT_CLASSES else "sampled"

    @property
    def fits(self) -> bool:
        """Whether a head has still to be fitted."""
        if self.weight is not None:
            return False
        return self.head == "fit" or (self.head == "auto" and self.reader().task != "language_model")

    def fitted(self, ds: Rows) -> Self:
        """The probe with a linear head fitted to a dataset, on features computed once; as it is if it needs none.

        Args:
            ds: dataset or stream with the column that the network reads and one of classes.

        Raises:
            MissingColumnError: there is no column of classes.
            ValueError: one class only; a label that is null; a model that lacks other weights than those of its head.

        >>> import datasets, torch
        >>> ds = datasets.Dataset.from_dict({"embedding": [[1.0, 0.0], [0.0, 1.0]], "label": ["cat", "dog"]})
        >>> Probe(torch.nn.Linear(2, 5)).fitted(ds).classes
        ('cat', 'dog')
        """
        from hf_prune.fisher.heads import fit_head

        if not self.fits:
            return self
        weight, bias, classes = fit_head(self.reader(), ds, label=self.label, l2=self.l2)
        return replace(self, weight=weight, bias=bias, classes=classes)

    def reader(self, rank: int | None = None) -> Classifier:
        """What runs the network over rows, on the device of a worker's rank."""
        from hf_prune.networks.plan import text_plan

        reader = Classifier(
            self.model, self.column, task=self.task, kind=self.modality, micro_batch=self.micro_batch, rank=rank
        )
        reader.takes_ids, reader.truncate = True, self.truncate
        # a language model's fit begins at its head
        replaced = self.head != "keep" or self.weight is not None
        reader.new_head = replaced and reader.task != "language_model"
        if not reader.own and reader.kind == "text":
            limit = text_plan(self.model, "auto", None, self.max_length, None).max_length
            reader.max_length = min(MAX_LENGTH, limit or MAX_LENGTH) if self.max_length is None else self.max_length
        return reader
