"""Closed choices and what goes in and comes out, as types: what an editor offers and a type checker refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset

    from hf_prune.columns import ScoreColumn
    from hf_prune.scorer import Scorer

Prefer: TypeAlias = Literal["high", "low", "middle", "random"]
End: TypeAlias = Literal["high", "low"]
Nulls: TypeAlias = Literal["raise", "keep", "drop"]
Method: TypeAlias = Literal["gumbel", "proportional", "ccs"]
Layout: TypeAlias = Literal["auto", "contiguous", "indices"]
OnBad: TypeAlias = Literal["raise", "nan"]
Metric: TypeAlias = Literal["cosine", "euclidean"]
PrototypeMetric: TypeAlias = Literal["cosine", "euclidean", "margin"]
KeepFirst: TypeAlias = Literal["hard", "easy", "random"]
Modality: TypeAlias = Literal["auto", "text", "image", "vector"]
Side: TypeAlias = Literal["left", "right"]
Chat: TypeAlias = Literal["auto", "template", "plain"]

# a function of these gives back the kind that it was given
AnyDataset = TypeVar("AnyDataset", "Dataset", "DatasetDict", "IterableDataset")
AnySplits = TypeVar("AnySplits", "Dataset", "DatasetDict")
Rows: TypeAlias = "Dataset | IterableDataset"
# how a score column is named: by itself, by its provenance, or by its scorer
Column: TypeAlias = "str | ScoreColumn | Scorer"
