"""Task2Vec: a dataset as the diagonal of the Fisher information of a probe network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hf_prune.values import Value


@dataclass(frozen=True, eq=False)
class Embedding(Value):
    """The Task2Vec embedding of a dataset.

    Attributes:
        vector: (D,) float64, the Fisher diagonal: its mean over each filter's weights and over the loss terms.
        layers: first and last column (exclusive) of each parameter.
        terms: number of loss terms that it is the mean of: rows, or predicted tokens.
        rows: number of rows of the dataset.
        probe: digest that names the coordinates; embeddings of other probes are not comparable.
        facts: model, whose labels, draws, seed and the head that was fitted.

    >>> half = Embedding(np.array([1.0, 3]), {"0.weight": (0, 2)}, terms=1, rows=1, probe="p", facts={})
    >>> rest = Embedding(np.array([4.0, 0]), {"0.weight": (0, 2)}, terms=2, rows=2, probe="p", facts={})
    >>> half.merge(rest).vector, half.complexity
    (array([3., 1.]), 4.0)
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
        """L1 norm: how much the data ask of the probe's weights. Comparable for one probe and length of texts only."""
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

        Args:
            others: embeddings of the other parts, of any number.

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


def as_vector(x: Any) -> NDArray[np.float64]:
    """The (D,) numbers of an embedding, or of what is given in its place.

    Raises:
        ValueError: float16, another shape, numbers that are negative or not finite.

    >>> as_vector([1, 2])
    array([1., 2.])
    """
    vector = np.asarray(getattr(x, "vector", x))
    if vector.dtype == np.float16:
        raise ValueError("an embedding in float16 has lost its small coordinates; keep it in float32 or float64")
    vector = vector.astype(np.float64)
    if vector.ndim != 1 or not len(vector):
        raise ValueError(f"an embedding is a row of numbers, (D,), this has shape {vector.shape}; pass one row")
    if not np.isfinite(vector).all():
        raise ValueError("an embedding has numbers that are not finite; compute it again")
    if (vector < 0).any():
        raise ValueError("an embedding has negative numbers, which no Fisher information has; pass what task2vec gives")
    return vector
