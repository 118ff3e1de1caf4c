"""Task2Vec: a dataset as the diagonal of the Fisher information of a probe network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hf_prune.fisher.distance import as_vector
from hf_prune.values import Value

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False)
class Embedding(Value):
    """What `task2vec` gives.

    Attributes:
        vector: (D,) float64: mean over the filter's weights and over the data's terms of the Fisher diagonal.
        layers: first and last column (exclusive) of each parameter.
        terms: loss terms that it is the mean of: rows, or predicted tokens.
        rows: of data.
        probe: names the coordinates; embeddings of other probes are not comparable.
        facts: model, labels, draws, seed.
    """

    vector: np.ndarray
    layers: Mapping[str, Sequence[int]]
    terms: int
    rows: int
    probe: str
    facts: Mapping[str, Any]

    def check_fields(self) -> None:
        as_vector(self.vector)

    @property
    def complexity(self) -> float:
        """L1 norm: how much the data asks of the probe's weights. For one probe and length of texts only."""
        return float(self.vector.sum())

    @property
    def complexity_by_layer(self) -> dict[str, float]:
        """L1 norm of each parameter's part."""
        return {name: float(self.vector[first:last].sum()) for name, (first, last) in self.layers.items()}

    def merge(self, *others: Embedding) -> Self:
        """The embedding of all the data together, from parts that were embedded apart.

        On other machines, say, or in the processes of `accelerate launch`, each with its share of the rows (`world` is
        accelerate's `PartialState`, `gather_object` is in `accelerate.utils`):

            share = ds.shard(world.num_processes, world.process_index)
            first, *others = gather_object([task2vec(share, probe)])        # probe = probe.fitted(ds) for classes
            whole = first.merge(*others)

        Raises:
            ValueError: parts of different probes, or of heads that were fitted apart.
        """
        parts: list[Embedding] = [self, *others]
        for other in others:
            if (other.probe, other.facts) != (self.probe, self.facts):
                raise ValueError(
                    "parts of different probes, seeds or fitted heads cannot be merged; fit the head once "
                    "(probe.fitted(ds)) and embed all parts with it"
                )
        terms = sum(part.terms for part in parts)
        vector = sum(part.vector * (part.terms / terms) for part in parts)
        return replace(self, vector=np.asarray(vector), terms=terms, rows=sum(part.rows for part in parts))
