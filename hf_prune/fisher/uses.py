"""Uses of a parameter, and squared norms of per-example gradients from them, by the cheaper of two ways.

A use is one call of a layer: what went in, and the gradient of the summed loss with respect to what came out. The
gradient of an example is the sum over all uses; rows are its squared norms over each filter (output unit).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 22  # numbers formed at a time: 16 MB in float32


def wide(x: Tensor) -> Tensor:
    """Float32 at least: products of half-precision numbers lose too much before they are summed."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True)
class Product:
    """Gradient `sum_t g_t a_t'`: linear layers and convolutions.

    Args:
        a: (b, groups, in, t) inputs, or a view of more dimensions that reshapes to it (windows of a convolution).
        g: (b, groups, out, t) output gradients.
        fan_in: `in`, per group.
        transposed: the weight is stored (in, out).
    """

    a: Tensor
    g: Tensor
    fan_in: int
    transposed: bool = False

    def inputs(self, start: int, stop: int) -> Tensor:
        """Rows of `a`, (n, groups, in, t)."""
        groups, steps = self.g.shape[1], self.g.shape[3]
        return wide(self.a[start:stop]).reshape(-1, groups, self.fan_in, steps)

    def grads(self, shape: Sequence[int]) -> Tensor:
        """Per-example gradients, (b, *shape)."""
        grads = wide(self.g) @ self.inputs(0, len(self.g)).mT
        return (grads.mT if self.transposed else grads).reshape(-1, *shape)

    def by_position(self) -> Tensor:
        """Squares of each position's gradient, summed over positions, (b, rows)."""
        lengths = self.inputs(0, len(self.g)).square().sum(2, keepdim=True)
        return (wide(self.g).square() * lengths).sum(3).flatten(1)


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

    def grads(self, shape: Sequence[int]) -> Tensor:
        """Per-example gradients, (b, *shape)."""
        grads = wide(self.g).new_zeros(len(self.g), *shape)
        return grads.scatter_add_(1, self.ids[..., None].expand_as(self.g), wide(self.g))


@dataclass(frozen=True)
class Vector:
    """Gradient `sum_t g_t * x_t`: scales and shifts (x is None).

    Args:
        g: (b, t, d) output gradients.
        x: (b, t, d) normalised inputs.
    """

    g: Tensor
    x: Tensor | None = None

    def grads(self, shape: Sequence[int]) -> Tensor:
        """Per-example gradients, (b, *shape)."""
        g = wide(self.g)
        return (g if self.x is None else g * self.x).sum(1).reshape(-1, *shape)

    def by_position(self) -> Tensor:
        """Squares of each position's gradient, summed over positions, (b, rows)."""
        g = wide(self.g)
        return (g if self.x is None else g * self.x).square().sum(1)


@dataclass(frozen=True)
class Explicit:
    """Gradients that something else worked out, (b, *shape)."""

    value: Tensor

    def grads(self, shape: Sequence[int]) -> Tensor:
        """Per-example gradients, (b, *shape)."""
        return wide(self.value).reshape(-1, *shape)


Use = Product | Lookup | Vector | Explicit


def filter_rows(uses: Sequence[Use], shape: Sequence[int], axis: int) -> Tensor:
    """Squared norms of the per-example gradients of one parameter, filter by filter.

    Args:
        uses: all uses of the parameter.
        shape: of the parameter.
        axis: its dimension of filters; parameters of one dimension have a filter a number.

    Returns:
        (b, rows).

    >>> a, g = torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([[1.0, 2.0], [3.0, -1.0]])  # position, unit
    >>> filter_rows([Product(a.T[None, None], g.T[None, None], 2)], (2, 2), 0)
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
    grads = uses[0].grads(shape)
    for use in uses[1:]:
        grads = grads + use.grads(shape)
    return grads.square() if len(shape) < 2 else grads.movedim(axis + 1, 1).flatten(2).square().sum(2)


def product_rows(uses: Sequence[Product]) -> Tensor:
    """Squared row norms of `sum_t g_t a_t'` over all uses, (b, groups * out).

    Either through the gradient, or through the (t, t) products of inputs: `g' (a'a) g`. Chosen by operations.
    """
    b, groups, out, _ = uses[0].g.shape
    fan_in, steps = uses[0].fan_in, sum(use.g.shape[3] for use in uses)
    through_inputs = steps * (fan_in + out) < fan_in * out
    formed = groups * (steps * (steps + out) if through_inputs else fan_in * out) + groups * steps * fan_in
    chunk = max(1, CHUNK // formed)
    parts = []
    for start in range(0, b, chunk):
        a = _joined([use.inputs(start, start + chunk) for use in uses])
        g = _joined([wide(use.g[start : start + chunk]) for use in uses])
        if through_inputs:
            parts.append(((g @ (a.mT @ a)) * g).sum(3))
        else:
            parts.append(torch.linalg.vector_norm(g @ a.mT, dim=3).square())
    return torch.cat(parts).flatten(1)


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
            mine = wide(use.g[n, 0])[table.ids[n]]  # (positions of the table, positions of the product)
            inner = wide(table.g[n]) @ use.inputs(n, n + 1)[0, 0]
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


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, 3)
