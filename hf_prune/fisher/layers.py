"""Layers whose per-example gradients have a formula: which they are, and the uses of their parameters in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from hf_prune.fisher.uses import Convolution, Explicit, Lookup, Product, Use, Vector, wide

Formula = Callable[[Any, Tensor, Tensor], dict[str, Use]]


def linear(layer: Any, a: Tensor, g: Tensor) -> dict[str, Use]:
    """`nn.Linear`: a (b, ..., in), g (b, ..., out)."""
    a, g = _positions(a), _positions(g)
    return {"weight": Product(a, g), "bias": Vector(g)}


def conv1d_of_gpt2(layer: Any, a: Tensor, g: Tensor) -> dict[str, Use]:
    """`transformers.pytorch_utils.Conv1D`, a linear layer that stores its weight (in, out)."""
    a, g = _positions(a), _positions(g)
    return {"weight": Product(a, g, transposed=True), "bias": Vector(g)}


def convolution(layer: Any, a: Tensor, g: Tensor) -> dict[str, Use]:
    """`nn.Conv1d` and `nn.Conv2d`: a (b, in, h, w), g (b, out, h', w')."""
    kernel, stride, dilation, around = layer.kernel_size, layer.stride, layer.dilation, layer.padding
    if layer.padding_mode != "zeros" or isinstance(around, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        a, around = F.pad(a, layer._reversed_padding_repeated_twice, mode=mode), (0,) * len(kernel)
    bias = Vector(g.flatten(2).mT)
    if a.ndim == 3:
        a, g = a[:, :, None], g[:, :, None]
        kernel, stride, dilation, around = (1, *kernel), (1, *stride), (1, *dilation), (0, *around)
    if kernel == (1, 1) and around == (0, 0) and layer.groups == 1:
        a = a[:, :, :: stride[0], :: stride[1]]
        return {"weight": Product(a.flatten(2).mT, g.flatten(2).mT), "bias": bias}
    return {"weight": Convolution(a, g, kernel, stride, around, dilation, layer.groups), "bias": bias}


def embedding(layer: Any, a: Tensor, g: Tensor) -> dict[str, Use]:
    """`nn.Embedding`: a (b, ...) ids, g (b, ..., d). Its padding row has no gradient, as in autograd."""
    ids, g = a.reshape(len(a), -1), g.reshape(len(a), -1, g.shape[-1])
    if layer.padding_idx is not None:
        g = g.masked_fill((ids == layer.padding_idx)[..., None], 0)
    return {"weight": Lookup(ids, g, layer.num_embeddings)}


def layer_norm(layer: Any, a: Tensor, g: Tensor) -> dict[str, Use]:
    """`nn.LayerNorm`."""
    return _scaled(F.layer_norm(wide(a), layer.normalized_shape, eps=layer.eps), g, len(layer.normalized_shape))


def rms_norm(layer: Any, a: Tensor, g: Tensor) -> dict[str, Use]:
    """`nn.RMSNorm`."""
    eps = torch.finfo(a.dtype).eps if layer.eps is None else layer.eps
    return _scaled(F.rms_norm(wide(a), layer.normalized_shape, eps=eps), g, len(layer.normalized_shape))


def rms_norm_alike(layer: Any, a: Tensor, g: Tensor) -> dict[str, Use]:
    """`LlamaRMSNorm` and its kin; `is_rms_norm` tells them.

    They round on the way (to float32, to the dtype of the input), so they are asked for what they scale: whether they
    scale by w or 1 + w, the difference between w = 1 and w = 0 is exactly that.
    """
    one, zero = torch.ones_like(layer.weight), torch.zeros_like(layer.weight)
    x = functional_call(layer, {"weight": one}, (a,)) - functional_call(layer, {"weight": zero}, (a,))
    return _scaled(wide(x), g, 1)


def batch_norm(layer: Any, a: Tensor, g: Tensor) -> dict[str, Use]:
    """`nn.BatchNorm1d` and `2d` with stored statistics: a (b, c, ...).

    Torch's own backward pass, in which each channel of each example is a channel: it reads its inputs once.
    """
    b, channels = a.shape[:2]
    a, g = (wide(x).reshape(1, b * channels, -1) for x in (a, g))
    mean, variance = (wide(x).repeat(b) for x in (layer.running_mean, layer.running_var))
    wanted = (False, True, True)
    _, scale, shift = torch.ops.aten.native_batch_norm_backward(
        g, a, None, mean, variance, None, None, False, layer.eps, wanted
    )
    return {"weight": Explicit(scale.view(b, channels)), "bias": Explicit(shift.view(b, channels))}


def group_norm(layer: Any, a: Tensor, g: Tensor) -> dict[str, Use]:
    """`nn.GroupNorm`: a (b, c, ...)."""
    x = F.group_norm(wide(a), layer.num_groups, eps=layer.eps)
    x, g = (v.flatten(2).mT for v in (x, g))
    return {"weight": Vector(g, x), "bias": Vector(g)}


FORMULAS: dict[Any, Formula] = {
    nn.Linear.forward: linear,
    nn.Conv1d.forward: convolution,
    nn.Conv2d.forward: convolution,
    nn.Embedding.forward: embedding,
    nn.LayerNorm.forward: layer_norm,
    nn.RMSNorm.forward: rms_norm,
    nn.BatchNorm2d.forward: batch_norm,  # the one of 1d and 3d too
    nn.GroupNorm.forward: group_norm,
}
IMAGES = (convolution, batch_norm, group_norm)  # examples come first in what they take, always


def formula(layer: nn.Module) -> Formula | None:
    """The formula of a layer's own parameters, or None.

    A subclass counts as its parent only where it computes what the parent computes. `rms_norm_alike` is a guess, which
    `is_rms_norm` must confirm on a call.
    """
    own = dict(layer.named_parameters(recurse=False))
    if not own or set(own) - {"weight", "bias"} or parametrize.is_parametrized(layer) or any(layer.children()):
        return None
    found = FORMULAS.get(type(layer).forward)
    if found is None and type(layer).__name__ == "Conv1D" and type(layer).__module__ == "transformers.pytorch_utils":
        return conv1d_of_gpt2
    options: Any = layer
    if found is embedding and (options.max_norm is not None or options.scale_grad_by_freq):
        return None
    if found is batch_norm and options.running_mean is None:
        return None
    if found is None and set(own) == {"weight"} and own["weight"].ndim == 1 and _eps(layer) is not None:
        return rms_norm_alike
    return found


def is_rms_norm(layer: Any, a: Any, out: Any) -> bool:
    """Whether a layer gave `w * x` or `(1 + w) * x` with x its input over its root mean square."""
    if not isinstance(out, Tensor) or not isinstance(a, Tensor) or a.shape != out.shape:
        return False
    if a.shape[-1:] != layer.weight.shape or not a.is_floating_point():
        return False
    x, w = F.rms_norm(a.double(), layer.weight.shape, eps=_eps(layer)), layer.weight.detach().double()
    rough = max(torch.finfo(dtype).eps for dtype in (out.dtype, a.dtype, layer.weight.dtype, torch.float32))
    error = min(float((out.double() - x * scale).abs().max()) for scale in (w, 1 + w))
    return error <= 32 * rough * float(out.abs().max())


def filter_axis(layer: nn.Module) -> int:
    """Dimension of the output units in a layer's weight."""
    return 1 if formula(layer) is conv1d_of_gpt2 else 0


def _eps(layer: Any) -> float | None:
    found = [getattr(layer, name, None) for name in ("variance_epsilon", "eps", "epsilon")]
    return next((value for value in found if isinstance(value, float)), None)


def _positions(x: Tensor) -> Tensor:
    """(b, ..., d) as (b, t, d)."""
    return x.reshape(len(x), -1, x.shape[-1])


def _scaled(x: Tensor, g: Tensor, dims: int) -> dict[str, Use]:
    x, g = (v.flatten(-dims).reshape(len(v), -1, v.shape[-dims:].numel()) for v in (x, g))
    return {"weight": Vector(g, x), "bias": Vector(g)}
