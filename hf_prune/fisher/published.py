"""Task2Vec as both published codes work it out, for comparing with numbers that they gave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_prune.data.reading import decoded
from hf_prune.fisher.embedding import Embedding
from hf_prune.fisher.heads import head_name, with_head
from hf_prune.fisher.passes import row_names, sampled_labels, terms_of
from hf_prune.fisher.probe import Probe
from hf_prune.fisher.squares import check_network
from hf_prune.networks.classifier import next_tokens
from hf_prune.networks.inputs import TextCounts
from hf_prune.networks.statistics import IGNORE, logit_gradient

IMAGES, TEXTS = 64, 8  # rows of a mini-batch, as published
TOGETHER = 1 << 20  # tokens of a pass: mini-batches are not cut


def published_task2vec(ds: Any, probe: Probe) -> tuple[Embedding, TextCounts]:
    """`task2vec` of a probe with `fisher="published"`, and how many texts were cut.

    The gradient of the mean loss of each mini-batch b is squared, and averaged over the B mini-batches and over all
    axes of a weight but the first (which is that of the inputs in GPT-2's linear layers):

        f_o = 1/B sum_b mean over i in o of (d/dw_i mean over (n, t) in b of -log p_w(y | x_nt))^2

    All modules count but the head, whose gradient is part of a tied table's. A position of a text is scored under the
    label drawn for the next one.

    Not as published: there is no dropout, norms keep their statistics, padding has no loss, heads are fitted by this
    library (that of a language model is kept).

    Args:
        ds: dataset or stream with the column that the probe reads.
        probe: a probe with its head.

    Raises:
        ValueError: no rows; a row with nothing to predict.

    Reference: awslabs/aws-cv-task2vec; brando90/beyond-scale-language-data-diversity.
    """
    reader = replace(probe, micro_batch=TOGETHER).reader()
    network, language = reader.network(), reader.task == "language_model"
    weights: dict[str, nn.Parameter] = {}
    total, batches, terms, rows = np.zeros(0), 0, 0, 0
    for batch in decoded(ds, "task2vec", "Squared gradients", TEXTS if language else IMAGES):
        sums: list[Tensor] = []
        count = 0
        for indices, inputs in reader.passes(batch):
            given = inputs(np.arange(len(indices)))
            if not weights:
                head = head_name(reader, network, given)
                if probe.weight is not None:
                    network = with_head(network, head, probe.weight, probe.bias)
                check_network(network)
                weights = weights_of(network, head)
            with _differentiable(list(weights.values())):
                logits = reader.call(network, given)
                labels = _labels(logits.detach().float(), given, row_names(batch, indices, given), probe.seed, language)
                back = logit_gradient(logits.detach(), labels).to(logits.dtype)
                gradients = torch.autograd.grad(logits, list(weights.values()), back, allow_unused=True)
            count += int(terms_of(labels, indices).sum())
            grads = [torch.zeros_like(w) if g is None else g for w, g in zip(weights.values(), gradients, strict=True)]
            sums = grads if not sums else [a + b for a, b in zip(sums, grads, strict=True)]
        means = [(g.float() / count).square().reshape(len(g), -1).mean(1, dtype=torch.float64) for g in sums]
        squares = torch.cat(means).cpu().numpy()
        total = squares if not batches else total + squares
        batches, terms, rows = batches + 1, terms + count, rows + batch.n
    if not rows:
        raise ValueError("task2vec got an empty dataset; give one that has rows")
    layers, start = {}, 0
    for name, weight in weights.items():
        layers[name] = (start, start + len(weight))
        start += len(weight)
    facts = {"model": probe.model.provenance(), "fisher": probe.fisher, "seed": probe.seed}
    if probe.weight is not None:
        facts["head"] = replace(probe, seed=0).digest
    embedding = Embedding(total / batches, layers=layers, terms=terms, rows=rows, probe=probe.key, facts=facts)
    return embedding, reader.counts


def weights_of(network: nn.Module, head: str) -> dict[str, nn.Parameter]:
    """Parameters called `weight` of all modules but the head."""
    weights = {}
    for name, module in network.named_modules():
        if name != head and isinstance(getattr(module, "weight", None), nn.Parameter):
            weights[f"{name}.weight"] = module.weight
    return weights


def _labels(logits: Tensor, given: Any, names: Any, seed: int, language: bool) -> Tensor:
    """Labels drawn from the model, (m,) or (m, t), IGNORE where there is no loss."""
    if not language:
        return sampled_labels(logits, logits.new_zeros(len(logits), dtype=torch.int64), names, seed, 0)
    counts = nn.functional.pad(next_tokens(given), (0, 1), value=IGNORE)
    later = nn.functional.pad(counts[:, :-1], (1, 0), value=IGNORE)  # where the label that a position borrows is drawn
    drawn = sampled_labels(logits, later, names, seed, 0)
    return nn.functional.pad(drawn[:, 1:], (0, 1), value=IGNORE)


@contextmanager
def _differentiable(weights: list[nn.Parameter]) -> Iterator[None]:
    """Let gradients flow to the weights meanwhile: a model that others share comes back as it was."""
    before = [w.requires_grad for w in weights]
    try:
        for w in weights:
            w.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for w, was in zip(weights, before, strict=True):
            w.requires_grad_(was)
