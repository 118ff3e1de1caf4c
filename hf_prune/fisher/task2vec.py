"""`task2vec`: the embedding of a dataset by the Fisher information of a probe network."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_prune.data.reading import decoded
from hf_prune.data.types import Rows
from hf_prune.fisher.embedding import Embedding
from hf_prune.fisher.probe import Probe

if TYPE_CHECKING:
    from hf_prune.fisher.passes import Runner


def task2vec(ds: Rows, probe: Any, *, seed: int | None = None) -> Embedding:
    """Embed a dataset: which weights of the probe matter for predicting it.

    The vector is the diagonal of the Fisher information, averaged over the filters o of the probe:

        f_o(D) = mean over i in o, (n, t) in D, labels y ~ p_w(. | x_n) of (d log p_w(y | x_nt) / d w_i)^2

    Labels come from the model, not from the data. Squares are those of single rows (single texts), so the size of
    passes changes nothing. Parts that were embedded apart add up (`Embedding.merge`).

    Args:
        ds: `Dataset` or `IterableDataset` with the column that the probe reads. Labels are drawn by a column `row_id`
            if there is one, else by content: then copies of a row draw the same.
        probe: a `Probe`, or a model, folder or Hub name, which is taken as `Probe(model)`.
        seed: seed of the sampled labels; None, the default: the probe's.

    Returns:
        The embedding; its `vector` is (D,) float64.

    Raises:
        MissingColumnError: there is no such column.
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
    from hf_prune.fisher.passes import Runner, warn_of_cuts

    probe = (Probe.of(probe) if seed is None else Probe.of(probe, seed=seed)).fitted(ds)
    if probe.fisher == "published":
        from hf_prune.fisher.published import published_task2vec

        embedding, counts = published_task2vec(ds, probe)
        warn_of_cuts(counts, probe.reader())
        return embedding
    runner = Runner(probe)
    embedding = embed(runner, ds, "task2vec")
    warn_of_cuts(runner.reader.counts, runner.reader)
    return embedding


def embed(runner: Runner, ds: Any, who: str) -> Embedding:
    """Sum the squares of all rows of a dataset, and give their mean as an embedding.

    Raises:
        ValueError: there are no rows; `who` reads them, for the message.
    """
    seed = runner.probe.seed
    total, terms, rows = np.zeros(()), 0, 0
    for batch in decoded(ds, who, "Squared gradients"):
        sums, count = runner.sums(batch, [seed], np.zeros(batch.n, np.int64), 1)
        total, terms, rows = total + sums[0, 0], terms + int(count[0]), rows + batch.n
    if not rows:
        raise ValueError(f"{who} got an empty dataset; give one that has rows")
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
    return Embedding(
        vector=total / squares.fan_in.numpy() / terms,
        layers=layers,
        terms=terms,
        rows=rows,
        probe=probe.key,
        facts=facts,
    )
