"""Task2Vec: a dataset as the diagonal of the Fisher information of a probe network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_dataset
from hf_prune.data.batch import Batch
from hf_prune.data.formats import unformatted
from hf_prune.data.progress import shown
from hf_prune.fisher.distance import as_vector
from hf_prune.fisher.probe import Probe
from hf_prune.values import Value

if TYPE_CHECKING:
    from hf_prune.fisher.passes import Runner

ROWS = 512  # read at once


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


def task2vec(ds: Any, probe: Any, *, seed: int | None = None) -> Embedding:
    """Embed a dataset: which weights of the probe matter for predicting it.

    The vector is the diagonal of the Fisher information, averaged over filters: labels come from the model, not from
    the data. Squares are those of single rows (single texts), so the size of passes changes nothing. Parts that were
    embedded apart add up (`Embedding.merge`).

    Args:
        ds: `Dataset` or `IterableDataset` with what the probe reads. Labels are drawn by a column `row_id` if there is
            one, else by content: then copies of a row draw the same.
        probe: a `Probe`, or a model, folder or Hub name with its defaults.
        seed: of the labels, instead of the probe's.

    Raises:
        ValueError: no rows; an empty text; one class only; NaN weights or float16; no layer that counts.

    Reference: Achille et al., 2019, arXiv 1902.03545.

    >>> import datasets, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    >>> for layer in net:
    ...     layer.weight = torch.nn.Parameter(torch.eye(2))
    >>> ds = datasets.Dataset.from_dict({"embedding": [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]})
    >>> task2vec(ds, Probe(net, head="keep")).vector.round(6)
    array([0.186098, 0.186098])
    """
    from hf_prune.fisher.passes import Runner

    probe = (Probe.of(probe) if seed is None else Probe.of(probe, seed=seed)).fitted(ds)
    if probe.fisher == "published":
        from hf_prune.fisher.published import published_task2vec

        return published_task2vec(ds, probe)
    runner = Runner(probe)
    total, terms, rows = np.zeros(0), 0, 0
    for batch in batches_of(ds):
        sums, count = runner.sums(batch, [probe.seed], np.zeros(batch.n, np.int64), 1)
        total = sums[0, 0] if not rows else total + sums[0, 0]
        terms, rows = terms + int(count[0]), rows + batch.n
    if not rows:
        raise ValueError("task2vec got an empty dataset; there is nothing to embed")
    return as_embedding(runner, total, terms, rows, probe.seed)


def as_embedding(runner: Runner, sums: NDArray[np.float64], terms: int, rows: int, seed: int) -> Embedding:
    """Sums of squares as an embedding."""
    probe, squares = runner.probe, runner.squares
    layers = {block.name: (block.start, block.stop) for block in squares.blocks}
    facts: dict[str, Any] = {
        "model": probe.model.provenance(),
        "fisher": runner.fisher,
        "draws": probe.draws,
        "seed": seed,
        "estimator": probe.estimator,
    }
    if probe.weight is not None:
        facts["head"] = replace(probe, seed=0).digest
    return Embedding(sums / squares.fan_in.numpy() / terms, layers, terms, rows, probe.key, facts)


def batches_of(ds: Any, size: int = ROWS) -> Iterator[Batch]:
    """Blocks of rows of a `Dataset` or a stream.

    Raises:
        TypeError: a `DatasetDict`.
    """
    check_dataset(ds, "task2vec", streams=True)
    blocks = (Batch(rows, "task2vec") for rows in unformatted(ds).iter(size))
    yield from shown(blocks, ds, "Squared gradients", lambda batch: batch.n)
