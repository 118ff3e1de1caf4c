"""Logistic regression with a penalty: of two classes, and of any number.

Both minimize a convex function, so that their answers do not depend on the order of the rows but for rounding:

    two classes   sum_i log(1 + exp(-s_i (<w, x_i> + b))) + l2 / 2 * ||w||^2,                  s_i = -1 or 1
    C classes     mean_i -log softmax(W x_i + b)[y_i] + l2 / 2 * ||W - W_0||^2

Two classes are solved by Newton's method, to rounding. Its matrix of curvature has (C d)^2 numbers, which no memory
holds for the head of a language model: C classes are solved by L-BFGS, on tensors of any device. It stops
short of rounding, where Newton's method reaches it in a few rounds: two classes keep their own solver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

ROUNDS = 100
ROWS = 1 << 13  # made float64 at once
LOGITS = 1 << 22  # held at once


def sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-z)), (n,) float64; no z overflows.

    >>> sigmoid(np.array([-1e9, 0.0, 1e9])).tolist()
    [0.0, 0.5, 1.0]
    """
    return np.asarray(np.exp(-np.logaddexp(0, -z)))


def fit_binary(x: np.ndarray, target: np.ndarray, *, l2: float) -> tuple[np.ndarray, float]:
    """Weights and intercept of two classes, by Newton's method with step halving.

    Args:
        x: (m, d) features.
        target: (m,) numbers 0 and 1.
        l2: penalty on the squared weights, not on the intercept; the inverse of scikit-learn's C.

    Returns:
        (d,) float64 weights, and the intercept.

    Raises:
        ValueError: no optimum was found: with `l2=0`, classes that a plane separates have none.

    >>> weights, intercept = fit_binary(np.array([[-1.0], [0.0], [1.0]]), np.array([0.0, 1.0, 1.0]), l2=1.0)
    >>> weights.round(4).tolist(), round(intercept, 4)
    ([0.7016], 0.7476)
    """
    beta = np.zeros(x.shape[1] + 1)
    penalty = np.append(np.full(x.shape[1], float(l2)), 0.0)

    def pieces() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(x), ROWS):
            part = x[start : start + ROWS].astype(np.float64)
            yield np.column_stack([part, np.ones(len(part))]), target[start : start + ROWS]

    def loss(at: np.ndarray) -> float:
        logits = ((part @ at, t) for part, t in pieces())
        return float(sum((np.logaddexp(0, z) - t * z).sum() for z, t in logits) + (penalty * at * at).sum() / 2)

    best = loss(beta)
    for _ in range(ROUNDS):
        slope, curve = penalty * beta, np.diag(penalty)
        for part, t in pieces():
            p = sigmoid(part @ beta)
            slope += part.T @ (p - t)
            curve += (part * (p * (1 - p))[:, None]).T @ part
        step = np.linalg.lstsq(curve, slope, rcond=None)[0]
        if slope @ step <= 1e-14 * len(x):
            return beta[:-1], float(beta[-1])
        size = 1.0
        while (reached := loss(beta - size * step)) > best - 1e-4 * size * float(slope @ step) and size > 1e-6:
            size /= 2
        if size <= 1e-6:  # nothing is gained any more: rounding
            return beta[:-1], float(beta[-1])
        beta, best = beta - size * step, reached
    raise ValueError(f"logistic regression found no optimum in {ROUNDS} rounds; raise l2={l2}")


def fit_softmax(
    x: Tensor, y: Tensor, *, classes: int, l2: float, start: Tensor | None = None, steps: int = 500
) -> tuple[Tensor, Tensor | None]:
    """Weights and bias of any number of classes, by L-BFGS.

    Args:
        x: (m, d) features, float32 or float64; they are scaled to a mean square of 1 for the penalty.
        y: (m,) integer classes from 0.
        classes: number of classes C.
        l2: penalty on the squared distance of the weights to `start`, not on the bias.
        start: (C, d) weights to start from, those of a language model's head, which has no bias; None: zeros.
        steps: number of iterations, at most.

    Returns:
        (C, d) weights; (C,) bias, None with `start`.

    >>> import torch
    >>> x, y = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64), torch.tensor([0, 1, 1])
    >>> weight, bias = fit_softmax(x, y, classes=2, l2=0.1)
    >>> (x @ weight.T + bias).argmax(1).tolist()
    [0, 1, 1]
    """
    import torch
    from torch import nn

    scale = x.pow(2).mean().sqrt().clamp(min=1e-12)
    x = x / scale
    origin = torch.zeros(classes, x.shape[1], dtype=x.dtype) if start is None else start.to(x.dtype) * scale
    if start is None:
        x, origin = torch.cat([x, torch.ones_like(x[:, :1])], 1), nn.functional.pad(origin, (0, 1))
    w = nn.Parameter(origin.clone())
    tight = x.dtype == torch.float64
    limits = (1e-12, 1e-16) if tight else (1e-6, 1e-9)
    optimizer = torch.optim.LBFGS(
        [w], 1, steps, None, *limits, history_size=20 if tight else 5, line_search_fn="strong_wolfe"
    )
    step = max(1, LOGITS // classes)

    def closure() -> Tensor:
        with torch.no_grad():
            away = w - origin
            if start is None:
                away[:, -1] = 0  # the bias is free
            loss, gradient = l2 / 2 * away.pow(2).sum(), l2 * away
            for first in range(0, len(x), step):
                part, target = x[first : first + step], y[first : first + step, None]
                logp = (part @ w.T).log_softmax(-1)
                loss = loss - logp.gather(1, target).sum() / len(x)
                p = logp.exp_()
                p.scatter_add_(1, target, torch.full_like(target, -1, dtype=p.dtype))
                gradient += p.T @ part / len(x)
            w.grad = gradient
        return loss

    run: Callable[..., Any] = optimizer.step
    run(closure)
    fitted = w.detach()
    if start is None:
        return fitted[:, :-1] / scale, fitted[:, -1]
    return fitted / scale, None
