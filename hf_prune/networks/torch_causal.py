"""Forward passes of causal language models: log-likelihoods and last logits, in bounded memory. Needs torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_prune.models import Model, cached
from hf_prune.networks.causal import HEAD, Span
from hf_prune.networks.torch_passes import first_tensor, forward, micro_batches

NUMBERS = {"cpu": 1 << 22}  # logits held at once, in float32: 16 MB stay near the cache of a processor
PROBE = 8


class Network(NamedTuple):
    """A causal network: as a whole, and its body and head where these two are all of it."""

    whole: Any
    body: Any | None
    head: Any | None

    @property
    def device(self) -> torch.device:
        return torch.device(next(self.whole.parameters()).device)


def network_of(model: Model, rank: int | None, vocabulary: int) -> Network:
    """Load a network on the device of the rank, and make sure that it is causal.

    Raises:
        ValueError: what it says of a token changes with the tokens after it.
        TypeError: it returns no logits.
    """
    whole: Any = model.load(rank, HEAD)
    split = cached(("causal probe", model.digest), lambda: _probe(whole, vocabulary, model.label), light=True)
    return Network(whole, whole.base_model, whole.get_output_embeddings()) if split else Network(whole, None, None)


def _probe(whole: Any, vocabulary: int, label: str) -> bool:
    """Whether body and head give the logits of the whole; two rows that differ in the last token only tell on the way.

    Scaled or capped logits (Gemma 2, Cohere) come after the head: such networks are run as a whole.
    """
    device = next(whole.parameters()).device
    ids = (torch.arange(PROBE, device=device) % vocabulary).repeat(2, 1)
    ids[1, -1] = (ids[0, -1] + 1) % vocabulary
    with torch.inference_mode():
        logits = first_tensor(_call(whole, ids), "logits")
        if logits.ndim != 3 or logits.shape[:2] != ids.shape:
            raise TypeError(f"{label} returned shape {tuple(logits.shape)} for tokens (2, {PROBE}), no logits")
        near = 20 * torch.finfo(logits.dtype).eps * float(logits.abs().max())
        if float((logits[0, :-1] - logits[1, :-1]).abs().max()) > near:
            raise ValueError(
                f"{label} is no causal language model: what it says of a token changes with the tokens after it; name "
                "one that reads from left to right, such as GPT-2, Llama or Qwen"
            )
        body = getattr(whole, "base_model", None)
        head = whole.get_output_embeddings() if hasattr(whole, "get_output_embeddings") else None
        if body is None or body is whole or head is None:
            return False
        again = head(first_tensor(_call(body, ids), "last_hidden_state"))
        return again.shape == logits.shape and float((again - logits).abs().max()) <= near


def _call(network: Any, ids: Tensor, **more: Any) -> Any:
    # no mask: rows are padded on the right, and a causal network looks to the left only
    constant = {"use_cache": False} if hasattr(getattr(network, "config", None), "use_cache") else {}
    return network(ids, **(constant | more))


def target_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability (m,) of each target among (m, V) logits, in float32, without the matrix of all of them.

    >>> logits = torch.log(torch.tensor([[0.7, 0.2, 0.1]]))
    >>> round(float(target_log_likelihood(logits, torch.tensor([0]))), 6)
    -0.356675
    """
    logits = logits.float()
    return logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)


def log_likelihood_sums(
    network: Network, sequences: Sequence[Sequence[int]], spans: Sequence[tuple[int, Span]], budget: int, multiple: int
) -> np.ndarray:
    """Sum of the log-probabilities of the tokens that each window predicts, (windows,) float64.

    Args:
        network: the model.
        sequences: tokens of each text, with what starts it.
        spans: windows, each with the number of its text.
        budget: tokens a forward pass, padding counted.
        multiple: what lengths are rounded up to.
    """
    device = network.device
    lengths = np.array([span.end - 1 - span.begin for _, span in spans], np.int64)

    def run(rows: np.ndarray) -> Tensor:
        width = -(-int(lengths[rows].max()) // multiple) * multiple
        read = np.zeros((len(rows), width), np.int64)
        wanted = np.full((len(rows), width), -1, np.int64)
        for place, row in enumerate(rows):
            text, span = spans[row]
            ids = sequences[text][span.begin : span.end]
            read[place, : len(ids) - 1] = ids[:-1]
            read[place, len(ids) - 1 :] = ids[-1]  # padding: nothing that is counted looks there
            wanted[place, span.first - 1 - span.begin : len(ids) - 1] = ids[span.first - span.begin :]
        targets = torch.from_numpy(wanted).to(device)
        counted = targets >= 0
        found = _log_likelihoods(network, torch.from_numpy(read).to(device), counted, targets[counted])
        sums = torch.zeros(len(rows), dtype=torch.float64)
        return sums.index_add(0, counted.nonzero()[:, 0].cpu(), found.double().cpu())

    out = np.zeros(len(spans), np.float64)
    for group in micro_batches(lengths, budget, multiple):
        out[group] = forward(run, group)
    return out


def _log_likelihoods(network: Network, ids: Tensor, counted: Tensor, targets: Tensor) -> Tensor:
    """Of the (m,) targets that stand at the counted places, in pieces."""
    if network.body is None:
        rows = first_tensor(_call(network.whole, ids), "logits")[counted]
        head: Callable[[Tensor], Tensor] = torch.nn.Identity()
        width = rows.shape[-1]
    else:
        assert network.head is not None
        rows = first_tensor(_call(network.body, ids), "last_hidden_state")[counted]
        head, width = network.head, network.head.weight.shape[0]
    step = max(1, NUMBERS.get(ids.device.type, 1 << 27) // width)
    parts = zip(torch.split(rows, step), torch.split(targets, step), strict=True)
    return torch.cat([target_log_likelihood(head(part), wanted) for part, wanted in parts])


def answer_log_probabilities(
    network: Network,
    prefix: Sequence[int],
    rows: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    budget: int,
) -> np.ndarray:
    """Log-probability (n, answers) that the next token is one of a set, for each set, after `prefix + row`.

    The prefix is read once a call where the network hands out its cache.

    Args:
        network: the model.
        prefix: tokens that all rows begin with.
        rows: tokens after it, at least one each.
        answers: sets of tokens.
        budget: tokens a forward pass, those of the prefix counted.
    """
    device = network.device
    lengths = np.array([len(row) for row in rows], np.int64)
    before = list(prefix)
    with torch.inference_mode():
        cache = _cache(network, before)
    sets = [torch.tensor(list(ids), device=device) for ids in answers]

    def run(group: np.ndarray) -> Tensor:
        width = int(lengths[group].max())
        ids = np.zeros((len(group), width), np.int64)
        for place, row in enumerate(group):
            ids[place, : lengths[row]] = rows[row]
            ids[place, lengths[row] :] = rows[row][-1]
        tokens = torch.from_numpy(ids).to(device)
        last = torch.from_numpy(lengths[group] - 1).to(device)
        if cache is None:
            tokens = torch.cat([torch.tensor(before, device=device).expand(len(group), -1), tokens], 1).long()
            last = last + len(before)
            more: dict[str, Any] = {}
        else:
            own = copy.deepcopy(cache)  # a forward pass writes into it
            own.batch_repeat_interleave(len(group))
            more = {"past_key_values": own, "use_cache": True}
        every = torch.arange(len(group), device=device)
        if network.body is None:
            logits = first_tensor(_call(network.whole, tokens, **more), "logits")[every, last]
        else:
            assert network.head is not None
            logits = network.head(first_tensor(_call(network.body, tokens, **more), "last_hidden_state")[every, last])
        logits = logits.float()
        chosen = torch.stack([logits[:, ids].logsumexp(-1) for ids in sets], 1)
        return chosen - logits.logsumexp(-1, keepdim=True)

    out = np.zeros((len(rows), len(answers)), np.float64)
    for group in micro_batches(lengths + len(before), budget):
        out[group] = forward(run, group)
    return out


def _cache(network: Network, prefix: list[int]) -> Any:
    """What a network remembers of the prefix; None where it has no cache that rows can share."""
    if not prefix or not hasattr(getattr(network.whole, "config", None), "use_cache"):
        return None
    reader = network.body if network.body is not None else network.whole
    out = reader(torch.tensor([prefix], device=network.device), use_cache=True)
    cache: Any = getattr(out, "past_key_values", None)
    usable = hasattr(cache, "batch_repeat_interleave") and hasattr(cache, "get_seq_length")
    return cache if usable and cache.get_seq_length() == len(prefix) else None
