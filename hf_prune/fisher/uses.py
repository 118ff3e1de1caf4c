"""Uses of a parameter, and squared norms of per-example gradients from them, by the cheaper of two ways.

A use is one call of a layer: what went in, and the gradient of the summed loss with respect to what came out. The
gradient of an example is the sum over all uses; rows are its squared norms over each filter (output unit).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IN_CACHE = 1 << 18  # numbers formed at a time: 1 MB in float32
AT_ONCE = 1 << 19  # numbers read and formed, where one call takes several examples


def wide(x: Tensor) -> Tensor:
    """Float32 at least: products of half-precision numbers lose too much before they are summed."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True)
class Product:
    """Gradient `sum_t g_t a_t'`: linear layers.

    Args:
        a: (b, t, in) inputs.
        g: (b, t, out) output gradients.
        transposed: the weight is stored (in, out).
    """

    a: Tensor
    g: Tensor
    transposed: bool = False

    def grads(self, shape: Sequence[int], part: slice) -> Tensor:
        """Gradients of some examples, (n, *shape)."""
        a, g = wide(self.a[part]), wide(self.g[part])
        return (a.mT @ g if self.transposed else g.mT @ a).reshape(-1, *shape)

    def by_position(self) -> Tensor:
        """Squares of each position's gradient, summed over positions, (b, rows)."""
        return (wide(self.g).square() * wide(self.a).square().sum(2, keepdim=True)).sum(1)


@dataclass(frozen=True)
class Convolution:
    """Gradient of a convolution's weight.

    Args:
        x: (b, in, h, w) inputs.
        g: (b, out, h', w') output gradients.
        kernel: height and width.
        stride, padding, dilation, groups: of the layer.
    """

    x: Tensor
    g: Tensor
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def grads(self, shape: Sequence[int], part: slice) -> Tensor:
        """Gradients of some examples, (n, *shape): one convolution in which each example is a group."""
        x, g = wide(self.x[part]), wide(self.g[part])
        n, channels, out = len(x), x.shape[1], g.shape[1]
        weight = x.new_empty(n * out, channels // self.groups, *self.kernel)
        grads = torch.ops.aten.convolution_backward(
            g.reshape(1, n * out, *g.shape[2:]),
            x.reshape(1, n * channels, *x.shape[2:]),
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            (0, 0),
            n * self.groups,
            (False, True, False),
        )[1]
        return grads.reshape(n, *shape)  # type: ignore[no-any-return]

    def rows(self, shape: Sequence[int]) -> Tensor:
        """Squared row norms, (b, out), by the cheaper way: through the gradient, or `g' A g`.

        A are the (t, t) products of windows of the input. They come from the windows, or, where these overlap much,
        from the products of all pixels: each is the sum, over places in the kernel, of products of two pixels.
        """
        (b, channels), (_, out, *space) = self.x.shape[:2], self.g.shape
        pixels = math.prod(size + 2 * pad for size, pad in zip(self.x.shape[2:], self.padding, strict=True))
        steps, places = math.prod(space), math.prod(self.kernel)
        through_windows = steps**2 * channels * places
        through_pixels = pixels**2 * channels + 4 * self.groups * steps**2 * sum(self.kernel)
        products = self._of_windows if through_windows < through_pixels else self._of_pixels
        if min(through_windows, through_pixels) + steps**2 * out >= places * channels // self.groups * steps * out:
            return summed_rows([self], shape, 0)
        chunk = max(1, IN_CACHE // (self.groups * pixels**2))
        parts = []
        for start in range(0, b, chunk):
            a = products(wide(self.x[start : start + chunk]))
            g = wide(self.g[start : start + chunk]).reshape(-1, self.groups, out // self.groups, steps)
            parts.append((g @ a).mul_(g).sum(3).flatten(1))
        return torch.cat(parts)

    def _of_windows(self, x: Tensor) -> Tensor:
        """Products of windows, (n, groups, t, t), from the windows."""
        windows = F.unfold(x, self.kernel, self.dilation, self.padding, self.stride)
        windows = windows.reshape(len(x), self.groups, -1, windows.shape[2])
        return windows.mT @ windows

    def _of_pixels(self, x: Tensor) -> Tensor:
        """Products of windows, (n, groups, t, t), from products of pixels: sums over rows and columns of the kernel."""
        x = F.pad(x, (self.padding[1], self.padding[1], self.padding[0], self.padding[0]))
        (height, width), space = x.shape[2:], self.g.shape[2:]
        x = x.reshape(len(x), self.groups, -1, height * width)
        found = (x.mT @ x).reshape(len(x), self.groups, height, width, height, width)
        for axis in (0, 1):
            size, d, s = space[axis], self.dilation[axis], self.stride[axis]
            total: Tensor | None = None
            for k in range(self.kernel[axis]):
                pick = slice(k * d, k * d + s * (size - 1) + 1, s)
                part = found[:, :, pick, :, pick] if axis == 0 else found[..., pick, :, pick]
                total = part.clone(memory_format=torch.contiguous_format) if total is None else total.add_(part)
            assert total is not None
            found = total
        return found.reshape(len(x), self.groups, math.prod(space), math.prod(space))


@dataclass(frozen=True)
class Lookup:
    """Gradient that adds `g_t` to row `ids_t` of a table: embeddings.

    Args:
        ids: (b, t) rows of the table.
        g: (b, t, d) output gradients.
        size: rows of the table.
    """

    ids: Tensor
    g: Tensor
    size: int

    def grads(self, shape: Sequence[int], part: slice) -> Tensor:
        """Gradients of some examples, (n, *shape)."""
        g = wide(self.g[part])
        return g.new_zeros(len(g), *shape).scatter_add_(1, self.ids[part, :, None].expand_as(g), g)


@dataclass(frozen=True)
class Vector:
    """Gradient `scale * sum_t g_t * x_t`: scales and shifts (x is None).

    Args:
        g: (b, t, d) output gradients.
        x: (b, t, d) what the layer scales.
        scale: (d,) or None for 1.
    """

    g: Tensor
    x: Tensor | None = None
    scale: Tensor | None = None

    def _terms(self, part: slice) -> Tensor:
        g = wide(self.g[part])
        return g if self.x is None else g * self.x[part]

    def grads(self, shape: Sequence[int], part: slice) -> Tensor:
        """Gradients of some examples, (n, *shape)."""
        total = self._terms(part).sum(1)
        return (total if self.scale is None else total * self.scale).reshape(-1, *shape)

    def by_position(self) -> Tensor:
        """Squares of each position's gradient, summed over positions, (b, rows)."""
        total = self._terms(slice(None)).square().sum(1)
        return total if self.scale is None else total * self.scale.square()


@dataclass(frozen=True)
class Explicit:
    """Gradients that something else worked out, (b, *shape)."""

    value: Tensor

    def grads(self, shape: Sequence[int], part: slice) -> Tensor:
        """Gradients of some examples, (n, *shape)."""
        return wide(self.value[part]).reshape(-1, *shape)


Use = Product | Convolution | Lookup | Vector | Explicit


def filter_rows(uses: Sequence[Use], shape: Sequence[int], axis: int) -> Tensor:
    """Squared norms of the per-example gradients of one parameter, filter by filter.

    Args:
        uses: all uses of the parameter.
        shape: of the parameter.
        axis: its dimension of filters; parameters of one dimension have a filter a number.

    Returns:
        (b, rows).

    >>> a, g = torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([[1.0, 2.0], [3.0, -1.0]])  # position, unit
    >>> filter_rows([Product(a[None], g[None])], (2, 2), 0)
    tensor([[58.,  1.]])
    """
    products = [use for use in uses if isinstance(use, Product)]
    lookups = [use for use in uses if isinstance(use, Lookup)]
    plain = len(products) + len(lookups) == len(uses) and len({use.transposed for use in products}) < 2
    if plain and products and not lookups:
        return product_rows(products)
    if plain and lookups and not any(use.transposed for use in products):
        table = Lookup(torch.cat([u.ids for u in lookups], 1), torch.cat([u.g for u in lookups], 1), lookups[0].size)
        rows = lookup_rows(table)
        return rows + product_rows(products) + 2 * cross_rows(products, table) if products else rows
    if len(uses) == 1 and isinstance(uses[0], Convolution):
        return uses[0].rows(shape)
    return summed_rows(uses, shape, axis)


def summed_rows(uses: Sequence[Use], shape: Sequence[int], axis: int) -> Tensor:
    """Squared row norms through the gradients, (b, rows), some examples at a time."""
    first = uses[0]
    g = first.value if isinstance(first, Explicit) else first.g
    b = len(g)
    chunk = max(1, AT_ONCE // (math.prod(shape) + 2 * math.prod(g.shape[1:])))
    parts = []
    for start in range(0, b, chunk):
        part = slice(start, start + chunk)
        total = first.grads(shape, part)
        for use in uses[1:]:
            total = total + use.grads(shape, part)
        parts.append(total.square() if len(shape) < 2 else _squared_norms(total.movedim(axis + 1, 1).flatten(2)))
    return torch.cat(parts)


def product_rows(uses: Sequence[Product]) -> Tensor:
    """Squared row norms of `sum_t g_t a_t'` over all uses, (b, out).

    Either through the gradient, or through the (t, t) products of inputs: `g' (a a') g`. Chosen by operations.
    """
    (b, _, out), fan_in, steps = uses[0].g.shape, uses[0].a.shape[2], sum(use.g.shape[1] for use in uses)
    if steps == 1:
        return uses[0].by_position()
    through_inputs = steps * (fan_in + out) < fan_in * out
    chunk = max(1, IN_CACHE // (steps * (steps + out) if through_inputs else fan_in * out))
    parts = []
    for start in range(0, b, chunk):
        a, g = (
            wide(xs[0] if len(xs) == 1 else torch.cat(xs, 1))
            for xs in ([u.a[start : start + chunk] for u in uses], [u.g[start : start + chunk] for u in uses])
        )
        parts.append(quadratic(a, g) if through_inputs else _squared_norms(g.mT @ a))
    return torch.cat(parts)


def quadratic(a: Tensor, g: Tensor) -> Tensor:
    """Diagonal of `g' (a a') g` for (n, t, in) and (n, t, out), (n, out); half of the symmetric (t, t) is enough."""
    half = a.shape[1] // 2
    if half < 64:
        return ((a @ a.mT) @ g).mul_(g).sum(1)
    early, late = (a[:, :half], g[:, :half]), (a[:, half:], g[:, half:])
    between = ((early[0] @ late[0].mT) @ late[1]).mul_(early[1]).sum(1)
    return quadratic(*early) + quadratic(*late) + 2 * between


def lookup_rows(use: Lookup) -> Tensor:
    """Squared row norms of a table's gradients, (b, size): equal ids of one example are added before squaring."""
    b, steps, width = use.g.shape
    keys = (use.ids + torch.arange(b, device=use.ids.device)[:, None] * use.size).flatten()
    there, place = torch.unique(keys, return_inverse=True)
    sums = wide(use.g).new_zeros(len(there), width).index_add_(0, place, wide(use.g).reshape(b * steps, width))
    rows = sums.new_zeros(b * use.size)
    rows[there] = sums.square().sum(1)
    return rows.reshape(b, use.size)


def cross_rows(products: Sequence[Product], table: Lookup) -> Tensor:
    """Inner products, row by row, of a tied table's two gradients (as output layer, as embedding), (b, size)."""
    b = len(table.ids)
    rows = wide(table.g).new_zeros(b, table.size)
    for use in products:
        for n in range(b):
            mine = wide(use.g[n])[:, table.ids[n]].T  # (positions of the table, positions of the product)
            inner = wide(table.g[n]) @ wide(use.a[n]).T
            rows[n].index_add_(0, table.ids[n], (mine * inner).sum(1))
    return rows


def position_rows(uses: Sequence[Use], name: str) -> Tensor:
    """Squares of each position's gradient summed over positions, (b, rows)."""
    if len(uses) != 1 or not isinstance(uses[0], (Product, Vector)):
        raise ValueError(
            f"{name} is used {len(uses)} times or in a way that has no positions; leave it out of positions="
        )
    return uses[0].by_position()


def count_rows(shape: Sequence[int], axis: int) -> int:
    """Filters of a parameter."""
    return math.prod(shape) if len(shape) < 2 else shape[axis]


def _squared_norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, dim=2)
    return norms.square()
