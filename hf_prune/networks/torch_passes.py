"""What the embedding encoders share: pooling, steps after it, and forward passes of bounded size. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def pool(hidden: Tensor, mask: Tensor, modes: tuple[str, ...]) -> Tensor:
    """Pool (n, t, d) states of right-padded rows to (n, d * modes), in float32; `mask` is (n, t), 1 at tokens."""
    hidden = hidden.float()
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    counts = weights.sum(1)
    parts = []
    for mode in modes:
        if mode == "cls":
            parts.append(hidden[:, 0])
        elif mode == "max":
            parts.append(hidden.masked_fill(weights == 0, -torch.inf).amax(1))
        elif mode == "mean":
            parts.append((hidden * weights).sum(1) / counts)
        elif mode == "mean_sqrt_len_tokens":
            parts.append((hidden * weights).sum(1) / counts.sqrt())
        elif mode == "weightedmean":
            positions = torch.arange(1, hidden.shape[1] + 1, device=hidden.device, dtype=hidden.dtype)
            weighted = weights * positions[None, :, None]
            parts.append((hidden * weighted).sum(1) / weighted.sum(1))
        elif mode == "lasttoken":
            last = mask.sum(1).long() - 1
            parts.append(hidden[torch.arange(len(hidden), device=hidden.device), last])
        else:
            raise ValueError(f"pooling {mode!r} is not one of {MODES}")
    return torch.cat(parts, 1)


def first_tensor(output: Any, *names: str) -> Tensor:
    """Take the tensor out of what a network returns: itself, or the first of `names` in a dict or ModelOutput."""
    if isinstance(output, Tensor):
        return output
    for name in names:
        found = output.get(name) if hasattr(output, "get") else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    there = sorted(output) if hasattr(output, "keys") else type(output).__name__
    raise TypeError(f"the network returned {there}, in which there is none of {list(names)}")


def flat(states: Tensor, pooling: str, mask: Tensor | None = None) -> Tensor:
    """Turn what a network returned into (n, d) float32: a map's spatial mean, a sequence pooled."""
    if states.ndim == 4:
        return states.float().mean((2, 3))
    if states.ndim == 3:
        if mask is None:
            mask = torch.ones(states.shape[:2], device=states.device)
        return pool(states, mask, ("mean" if pooling in ("auto", "pooler") else pooling,))
    if states.ndim != 2:
        raise ValueError(f"the network returned shape {tuple(states.shape)}; return (n, d), (n, t, d) or (n, d, h, w)")
    return states.float()


def micro_batches(lengths: np.ndarray, budget: int, multiple: int = 1, waste: float = 0.85) -> Iterator[np.ndarray]:
    """Group rows by length, longest first: at most `budget` padded tokens, each row at least `waste` of the longest.

    >>> [rows.tolist() for rows in micro_batches(np.array([3, 10, 9, 3]), budget=20)]
    [[1, 2], [0, 3]]
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = -(-int(lengths[order[start]]) // multiple) * multiple
        rows = order[start : start + max(1, budget // max(longest, 1))]
        near = int(np.searchsorted(-lengths[rows], -waste * (longest - multiple + 1), side="right"))
        rows = rows[: max(1, near)]
        yield rows
        start += len(rows)


def forward(run: Callable[[np.ndarray], Tensor], rows: np.ndarray) -> np.ndarray:
    """Give what `run` gives for `rows` as float32; rows that do not fit on the device together go in halves."""
    try:
        with torch.inference_mode():
            return run(rows).float().cpu().numpy()
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(rows) // 2
    return np.concatenate([forward(run, rows[:half]), forward(run, rows[half:])])


def moved(inputs: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """What a preprocessing function returned, as tensors on the device; numbers with a fraction in `dtype`."""
    if hasattr(inputs, "items"):
        return {name: moved(value, device, dtype) for name, value in inputs.items()}
    if not isinstance(inputs, torch.Tensor):
        inputs = torch.as_tensor(np.asarray(inputs))
    return inputs.to(device, dtype) if inputs.is_floating_point() else inputs.to(device)


def without_weights(config: Any, trust_remote_code: bool = False, head: str = "AutoModel") -> Any:
    """The network of a transformers config on the meta device: shapes and operations, no memory and no numbers."""
    import transformers

    build: Any = getattr(transformers, head).from_config
    with torch.device("meta"):
        return build(config, attn_implementation="eager", trust_remote_code=trust_remote_code).eval()


def count_flops(run: Callable[[], Any]) -> float:
    """Floating-point operations of a call, counted by torch; attention is taken apart so that it is seen."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return float(counter.get_total_flops())
