"""What a log keeps of a forward pass: all statistics from one masked log-sum-exp of the logits.

With z the logits of a row and y its label, let o = logsumexp over v != y of z_v, d = o - z_y, and q the softmax over
the other classes alone. Then the loss is softplus(d), p_y = sigmoid(-d), 1 - p_y = sigmoid(d), and

    el2n    = ||p - onehot(y)|| = (1 - p_y) sqrt(1 + sum_v q_v^2)
    entropy = p_y loss + (1 - p_y) softplus(-d) + (1 - p_y) H(q)

are products and sums of positive numbers: nothing cancels where the model is sure, and no error vector is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IGNORE = -100  # the label of tokens without a loss, in transformers and in torch
FLOOR = -100.0  # logits this far below the largest count as this far: exp gives 4e-44
CHUNK = {"cpu": 1 << 20, "cuda": 1 << 24}  # logits looked at at once: what a cache holds, what keeps a GPU busy
FLOATS = ("p_label", "margin", "el2n", "loss", "entropy", "p_max", "gap", "p_margin")
BITS = {"float32": ("int32", 0), "bfloat16": ("int16", 16)}  # what the compiled loop reads, and by what it shifts that
EPS = 1e-8  # inside the logarithms of the divergence


def of_rows(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Statistics of n classified rows, each (n,) float32, `correct` bool; NaN and False where the loss is not finite.

    Args:
        logits: (n, C), of any float type; worked on in float32, or float64 if they are that.
        labels: (n,) integers from 0 to C - 1.

    Returns:
        `p_label`; `margin`, z_y less the largest other logit; `el2n`; `loss`; `entropy`; `p_max`; `gap` between the two
        largest probabilities; `p_margin`, p_y less the largest other probability; `correct`: y is the first of the
        largest logits.

    Reference: EL2N: Paul et al. 2021; the margin: Pleiss et al. 2020; the form of EL2N: Marion et al. 2023.

    >>> import torch
    >>> stats = of_rows(torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0]))
    >>> round(stats["el2n"].item(), 6), stats["margin"].item()
    (0.198004, 2.0)
    """
    import torch

    step = max(1, _chunk(logits) // max(1, logits.shape[1]))
    with torch.no_grad():
        parts = [_block(_owned(logits[i : i + step]), labels[i : i + step]) for i in range(0, len(logits), step)]
    if len(parts) == 1:
        return parts[0]
    names = [*FLOATS, "correct"]
    if not parts:
        empty = {name: torch.empty(0, device=logits.device) for name in names}
        return {**empty, "correct": empty["correct"].bool()}
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def of_tokens(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Means over the labelled tokens of n rows, each (n,) float32, and `tokens`, their number (n,) int32.

    Tokens without a label are not looked at; the others are, some at a time, so that no copy of all logits is made. On
    a processor a compiled loop does it, if the logits are float32 or bfloat16.

    Args:
        logits: (n, t, V); those at a position are for the label there, shifted by the caller where need be.
        labels: (n, t) integers, -100 where there is no label.

    Returns:
        Those of `of_rows`, with the mean of `correct` named `accuracy`. NaN in a row without labelled tokens, or with a
        token whose loss is not finite.

    >>> import torch
    >>> p = torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]]])
    >>> stats = of_tokens(p.log(), torch.tensor([[0, 1, 1]]))
    >>> round(stats["el2n"].item(), 6), stats["tokens"].item()
    (0.518176, 3)
    """
    import torch

    labelled = labels != IGNORE
    row, place = labelled.nonzero(as_tuple=True)
    compiled = logits.device.type == "cpu" and str(logits.dtype)[6:] in BITS and logits.stride(2) == 1
    step = max(1, len(row) if compiled else _chunk(logits) // max(1, logits.shape[2]))
    sums = torch.zeros(*labels.shape, len(FLOATS) + 1, device=logits.device)
    wide = torch.promote_types(logits.dtype, torch.float32)
    for i in range(0, len(row), step):
        r, t = row[i : i + step], place[i : i + step]
        with torch.no_grad():  # an index of tensors makes a copy
            part = _compiled(logits, r, t, labels[r, t]) if compiled else _block(logits[r, t].to(wide), labels[r, t])
        right = torch.where(part["loss"].isnan(), part["loss"], part["correct"].float())
        sums[r, t] = torch.stack([*(part[name] for name in FLOATS), right], 1)
    tokens = labelled.sum(1)
    means = (sums.double().sum(1) / tokens[:, None]).float()
    names = [*FLOATS, "accuracy"]
    return {**{name: means[:, i] for i, name in enumerate(names)}, "tokens": tokens.int()}


def divergence(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """TDDS's D (n,) between the probabilities (n, C) of an epoch and of the one before; not a KL divergence.

    Reference: Zhang et al. 2024: sum_c |p'_c (ln(p'_c + 1e-8) - ln(p_c + 1e-8))|.

    >>> import torch
    >>> round(divergence(torch.tensor([[0.6, 0.4]]), torch.tensor([[0.7, 0.3]])).item(), 6)
    0.207563
    """
    return (new * ((new + EPS).log() - (old + EPS).log())).abs().sum(1)


def _chunk(logits: torch.Tensor) -> int:
    return CHUNK["cpu" if logits.device.type == "cpu" else "cuda"]


def _block(z: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Statistics of rows of logits, which are written over: few passes, each over what the cache holds."""
    import torch

    at = labels.long()[:, None]
    z_y = z.gather(1, at)[:, 0]
    rival, where = z.scatter_(1, at, -torch.inf).max(1)  # of equal ones the first
    margin = z_y - rival
    s = (z - rival[:, None]).clamp_(min=FLOOR)
    following = z.scatter_(1, where[:, None], -torch.inf).amax(1)
    e = torch.exp(s, out=z)
    total = e.sum(1)
    squares = (e.norm(dim=1) / total).square()
    first = (margin > 0) | ((margin == 0) & (at[:, 0] < where))
    return _of_sums(margin, torch.maximum(z_y, following) - rival, total, squares, s.mul_(e).sum(1) / total, first)


def _compiled(
    logits: torch.Tensor, row: torch.Tensor, place: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """`_block` of the logits (n, t, V) at some places, which are read where they lie."""
    import torch

    from hf_prune.networks import _kernels
    from hf_prune.numerics.compiled import in_threads

    width = logits.shape[2]
    if int(labels.min()) < 0 or int(labels.max()) >= width:
        raise IndexError(f"labels from {int(labels.min())} to {int(labels.max())} are not in 0..{width - 1}")
    extent = 1 + sum((size - 1) * stride for size, stride in zip(logits.shape, logits.stride(), strict=True))
    flat = logits.detach().as_strided((extent,), (1,), logits.storage_offset())
    name, shift = BITS[str(logits.dtype)[6:]]
    bits = flat.view(getattr(torch, name)).numpy()
    starts = (row * logits.stride(0) + place * logits.stride(1)).numpy()
    classes, out = labels.long().numpy(), np.empty((len(row), 7))
    pieces = np.array_split(np.arange(len(row)), torch.get_num_threads())
    spans = [slice(int(piece[0]), int(piece[-1]) + 1) for piece in pieces if len(piece)]
    in_threads(lambda at: _kernels.tokens(bits, shift, starts[at], classes[at], width, out[at]), spans)
    z_y, rival, following, earlier, total, squares, inner = torch.from_numpy(out).unbind(1)
    first = (z_y > rival) | ((z_y == rival) & (earlier == 0))
    lead = torch.maximum(z_y, following) - rival
    return _of_sums(z_y - rival, lead, total, squares / total.square(), inner / total, first)


def _of_sums(
    margin: torch.Tensor,
    lead: torch.Tensor,
    total: torch.Tensor,
    squares: torch.Tensor,
    mean: torch.Tensor,
    first: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """The statistics, each (n,).

    Args:
        margin: z_y - r, where r is the largest logit of the other classes v.
        lead: the larger of z_y and of what follows r among the others, less r.
        total: sum over v of e^s, where s = z_v - r.
        squares: sum of q_v^2.
        mean: sum of q_v s_v.
        first: whether y is the first of the largest.
    """
    import torch
    from torch.nn.functional import logsigmoid

    log_total = total.log()
    inner = log_total - mean  # the entropy of q: two terms, neither of them negative
    d = log_total - margin
    right, wrong, loss = d.neg().sigmoid(), d.sigmoid(), -logsigmoid(-d)
    p_rival = wrong / total
    ahead = margin >= 0
    p_max = torch.where(ahead, right, p_rival)
    p_margin = p_max * -torch.expm1(-margin.abs()) * torch.where(ahead, 1.0, -1.0)
    stats = {
        "p_label": right,
        "margin": margin,
        "el2n": wrong * (1 + squares).sqrt(),
        "loss": loss,
        "entropy": right * loss + wrong * (inner - logsigmoid(d)),
        "p_max": p_max,
        "gap": torch.where(ahead, p_margin, -p_rival * torch.expm1(lead)),
        "p_margin": p_margin,
    }
    bad = ~margin.isfinite()
    out = {name: value.float().masked_fill_(bad, torch.nan) for name, value in stats.items()}
    return {**out, "correct": first & ~bad}


def _owned(logits: torch.Tensor) -> torch.Tensor:
    import torch

    return logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)


def logit_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the summed cross-entropy with respect to logits (..., C): `softmax - onehot`, 0 at labels of -100.

    At the label it is minus the sum of the others: `p - 1` would lose the digits of a confident model.

    >>> import torch
    >>> logit_gradient(torch.tensor([[0.0, 40.0]]), torch.tensor([1])).tolist()
    [[4.248354...e-18, -4.248354...e-18]]
    """
    there = labels >= 0
    place = labels.clamp(min=0).unsqueeze(-1)
    others = logits.float().softmax(-1).scatter(-1, place, 0)
    found = others.scatter(-1, place, -others.sum(-1, keepdim=True))
    return found.masked_fill_(~there.unsqueeze(-1), 0)
