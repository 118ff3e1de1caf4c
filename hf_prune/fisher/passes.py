"""Rows through a probe: squared gradients under labels drawn from the model. Needs torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hf_prune.checks import warn
from hf_prune.data import identity
from hf_prune.data.batch import Batch
from hf_prune.data.identity import digests, seeded
from hf_prune.data.labels import places_among
from hf_prune.fisher.heads import head_name, with_head
from hf_prune.fisher.probe import MAX_EXACT_CLASSES, Probe
from hf_prune.fisher.squares import Squares, position_layers
from hf_prune.networks.classifier import Classifier, next_tokens
from hf_prune.networks.inputs import IDS, Inputs, TextCounts
from hf_prune.networks.statistics import IGNORE, logit_gradient

BLOCK = 1 << 22  # probabilities whose running sums are held at once


class Part(NamedTuple):
    """Squares of the rows of one pass.

    Attributes:
        rows: (m,) indices of the rows in the batch.
        seed: index of the seed of the labels.
        squares: (m, D) squared gradients, summed over the row's terms, mean over draws.
        terms: (m,) numbers of loss terms: 1 for a class, the predicted tokens for a language model.
        loss: (m,) summed natural log loss of the data's own tokens; NaN for classes.
    """

    rows: NDArray[np.int64]
    seed: int
    squares: Tensor
    terms: NDArray[np.int64]
    loss: NDArray[np.float64]


class Runner:
    """A probe loaded in this process. Its `Squares` are made on the first rows that come.

    Args:
        probe: a probe whose head is kept or fitted.
        rank: rank of the worker, which chooses the device; None for the process itself.

    Raises:
        ValueError: the head has still to be fitted; `fisher="published"`, which has no squares of single rows.
    """

    def __init__(self, probe: Probe, rank: int | None = None) -> None:
        if probe.fits:
            raise ValueError("the probe has no head yet; call probe.fitted(ds), or use head='keep'")
        if probe.fisher == "published":
            raise ValueError("fisher='published' squares mini-batches and tells no row from another; leave it out here")
        self.probe, self.reader = probe, probe.reader(rank)
        self.language = self.reader.task == "language_model"
        self._squares: Squares | None = None
        self.width = 0  # classes, or tokens of the vocabulary; known once a row was seen
        self.network = self.reader.network()

    @property
    def squares(self) -> Squares:
        """The squares; made on the first row."""
        assert self._squares is not None, "no row yet"
        return self._squares

    def sums(
        self, batch: Batch, seeds: Sequence[int], groups: NDArray[np.int64], count: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Sum the squares of all rows by group.

        Args:
            batch: n rows.
            seeds: s seeds of the drawn labels.
            groups: (n,) group of each row, from 0 to below `count`.
            count: number of groups.

        Returns:
            Sums (s, count, D) float64, and the number of loss terms of each group, (count,).
        """
        total: Tensor | None = None
        terms = np.zeros(count, np.int64)
        for part in self.parts(batch, seeds, whole=count == 1):
            if total is None:
                total = torch.zeros(len(seeds), count, self.squares.size, dtype=torch.float64)
            group_of = groups[part.rows]
            for group in np.unique(group_of):
                rows = part.squares if count == 1 else part.squares[torch.from_numpy(group_of == group)]
                total[part.seed, group] += rows.sum(0, dtype=torch.float64).cpu()
            if part.seed == 0:
                np.add.at(terms, group_of, part.terms)
        if total is None:
            raise ValueError("there are no rows to embed; give a dataset that has some")
        if not bool(torch.isfinite(total).all()):
            raise ValueError(
                f"{self.reader.model.label} gives gradients that are not finite in {self.reader.model.dtype}; "
                "its weights or these rows are broken"
            )
        return total.numpy(), terms

    def parts(self, batch: Batch, seeds: Sequence[int], whole: bool = False) -> Iterator[Part]:
        """Squares of the rows, pass by pass, for each of the seeds from one forward pass.

        Rows are named by a column `row_id` for the draw of labels, or else by what the network reads.

        Args:
            batch: rows of a dataset.
            seeds: seeds of the drawn labels.
            whole: whether to give the sum over a pass's rows, (1, D), in place of (m, D); False by default.

        Raises:
            ValueError: a row in which there is nothing to predict, a label that is no class of the head.
        """
        classes = self._classes(batch) if self.probe.fisher == "empirical" and not self.language else None
        for rows, inputs in self.reader.passes(batch):
            given = inputs(np.arange(len(rows)))
            if self._squares is None:
                self._begin(given)
            with self._autocast(given):
                tap = self.squares.forward(**given) if hasattr(given, "items") else self.squares.forward(given)
            logits = self.reader.checked(tap.output)
            known = logits.detach().float()
            if self.language:
                targets = nn.functional.pad(next_tokens(given), (0, 1), value=IGNORE)
            else:
                targets = torch.zeros(len(rows), dtype=torch.int64, device=logits.device)
            if classes is not None:
                self.reader.check_classes(classes[rows], rows, self.probe.label, logits.shape[1])
                targets = torch.from_numpy(classes[rows]).to(logits.device)
            terms = terms_of(targets, rows)
            loss = self._loss(known, targets)
            names = row_names(batch, rows, given)
            self.width = logits.shape[-1]
            # nothing is drawn for the exact and the empirical Fisher: one seed is as good as another
            drawn = seeds[:1] if self.exact() or self.probe.fisher == "empirical" else seeds
            for number, seed in enumerate(drawn):
                squares = torch.zeros(())
                for draw in range(self.passes()):
                    gradient = self._gradient(known, targets, names, seed, draw)
                    last = number == len(drawn) - 1 and draw == self.passes() - 1
                    square = tap.sums if whole else tap.rows
                    squares = squares + square(logits, gradient.to(logits.dtype), keep=not last)
                squares = squares if self.exact() else squares / self.passes()
                for same in range(number, len(seeds) if len(drawn) < len(seeds) else number + 1):
                    yield Part(rows, same, squares[None] if whole else squares, terms, loss)

    def exact(self) -> bool:
        """Whether all classes are summed over; known once a row was seen."""
        if self.language:
            return False
        return self.probe.fisher == "exact" or (self.probe.fisher == "auto" and self.width <= MAX_EXACT_CLASSES)

    @property
    def fisher(self) -> str:
        """Whose labels: "exact", "sampled" or "empirical"; known once a row was seen."""
        return "exact" if self.exact() else "sampled" if self.probe.fisher == "auto" else self.probe.fisher

    @property
    def ready(self) -> bool:
        """Whether a row was seen."""
        return self._squares is not None

    def backward_share(self) -> float:
        """Share of the network that the backward pass goes through, by the number of weights, tables left out."""
        first = self.squares.blocks[0].name.rpartition(".")[0]
        names, sizes = [], []
        for name, module in self.network.named_modules():
            if not isinstance(module, nn.Embedding):
                names.append(name)
                sizes.append(sum(p.numel() for p in module.parameters(recurse=False)))
        return sum(sizes[names.index(first) :]) / sum(sizes) if first in names else 1.0

    def passes(self) -> int:
        """Number of backward passes for one seed."""
        if self.probe.fisher == "empirical":
            return 1
        return self.width if self.exact() else self.probe.draws

    def _gradient(self, logits: Tensor, targets: Tensor, names: NDArray[np.uint64], seed: int, draw: int) -> Tensor:
        """Gradient of the summed loss with respect to the logits, of their shape, for one draw of labels or a class."""
        if self.probe.fisher == "empirical":
            return logit_gradient(logits, targets)
        if self.exact():
            labels = torch.full_like(targets, draw)
            return logit_gradient(logits, labels) * logits.softmax(-1)[..., draw : draw + 1].sqrt()
        return logit_gradient(logits, sampled_labels(logits, targets, names, seed, draw))

    def _loss(self, logits: Tensor, targets: Tensor) -> NDArray[np.float64]:
        if not self.language:
            return np.full(len(logits), np.nan)
        own = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        loss = (logits.logsumexp(-1) - own).masked_fill(targets < 0, 0)
        return loss.sum(1, dtype=torch.float64).cpu().numpy()

    def _classes(self, batch: Batch) -> NDArray[np.int64]:
        """Labels of the data as indices of the head's classes, (n,)."""
        if self.probe.classes is None:
            return self.reader.labels(batch, self.probe.label)
        return places_among(batch.arrow(self.probe.label), self.probe.classes, self.probe.label)

    def _autocast(self, given: Inputs) -> Any:
        device = next(self.network.parameters()).device.type
        return torch.autocast(device, torch.bfloat16) if self.probe.autocast else nullcontext()

    def _begin(self, given: Inputs) -> None:
        head = head_name(self.reader, self.network, given)
        if self.probe.weight is not None:
            self.network = with_head(self.network, head, self.probe.weight, self.probe.bias)
        skip = [head]
        if not self.probe.tables:
            skip += [n for n, module in self.network.named_modules() if isinstance(module, nn.Embedding)]
        layers = self.probe.layers
        if self.probe.estimator == "position":
            if layers is None:
                args, named = ((), given) if hasattr(given, "items") else ((given,), {})
                layers = [name for name in position_layers(self.network, *args, **named) if name not in skip]
            self._squares = Squares(self.network, layers, skip, positions=layers)
        else:
            self._squares = Squares(self.network, layers, skip)


def warn_of_cuts(counts: TextCounts, reader: Classifier) -> None:
    """Warn, with their number, about texts that are longer than what a probe reads, unless it says where to cut."""
    if not counts.cut or reader.truncate is not None:
        return
    lost = ""
    if counts.unanswered:
        lost = f"; {counts.unanswered} of them are chats that were cut before their last answer began"
    warn(
        f"{counts.cut} of {counts.read} texts are longer than the {reader.max_length} tokens that the probe reads and "
        f"were cut{lost}; read more with Probe(..., max_length=...), or say which side is cut off: truncate='left' "
        "keeps the end, truncate='right' the beginning"
    )


def row_names(batch: Batch, rows: NDArray[np.int64], given: Inputs) -> NDArray[np.uint64]:
    """A 64-bit name (m,) of each row of a pass: by its `row_id`, or else by what the network reads of it."""
    return digests(batch.arrow("row_id"))[rows] if "row_id" in batch else input_keys(given)


def terms_of(targets: Tensor, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of loss terms of each row of a pass, (m,).

    Raises:
        ValueError: a row has none.
    """
    terms = (targets >= 0).reshape(len(targets), -1).sum(1).cpu().numpy()
    if not terms.all():
        row = int(rows[int((terms == 0).argmax())])
        raise ValueError(
            f"row {row} of this batch has nothing to predict: it is all padding, or one token; drop such rows first"
        )
    return np.asarray(terms)


def sampled_labels(logits: Tensor, targets: Tensor, names: NDArray[np.uint64], seed: int, draw: int) -> Tensor:
    """Labels drawn from the model where targets are 0 or more, IGNORE elsewhere: the shape of targets.

    A function of (seed, name of the row, position, draw) and of the logits alone.
    """
    flat = targets.reshape(len(targets), -1)
    keys = np.asarray(seeded(names, seed)[:, None] + np.arange(flat.shape[1], dtype=np.uint64), np.uint64)
    uniform = torch.from_numpy(identity.uniform(keys.reshape(-1), draw).reshape(keys.shape)).to(logits.device)
    there = flat >= 0
    labels = torch.full_like(flat, IGNORE)
    labels[there] = draw_labels(logits.reshape(*flat.shape, -1)[there], uniform[there])
    return labels.reshape(targets.shape)


def draw_labels(logits: Tensor, uniform: Tensor) -> Tensor:
    """Labels (m,) by the inverse of the cumulative probabilities of (m, C) logits at one uniform number each.

    >>> draw_labels(torch.log(torch.tensor([[0.2, 0.5, 0.3]] * 3)), torch.tensor([0.1, 0.6, 0.71])).tolist()
    [0, 1, 2]
    """
    step = max(1, BLOCK // logits.shape[-1])
    out = []
    for start in range(0, len(logits), step):
        running = logits[start : start + step].float().softmax(-1).cumsum(-1, dtype=torch.float64)
        at = uniform[start : start + step].to(running)[:, None] * running[:, -1:]
        out.append(torch.searchsorted(running, at, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1))
    return torch.cat(out)


def input_keys(given: Inputs) -> NDArray[np.uint64]:
    """A 64-bit name (m,) of each row by what the network reads of it, padding left out."""
    if not hasattr(given, "items"):
        return digests(given.detach().float().cpu().flatten(1).numpy())
    mask = given.get("attention_mask")
    if IDS in given:
        ids = given[IDS].cpu().numpy()
        there = np.ones(ids.shape, bool) if mask is None else mask.cpu().numpy() > 0
        return digests([row[keep].tolist() for row, keep in zip(ids, there, strict=True)])
    tensors = [value for _, value in sorted(given.items()) if isinstance(value, Tensor)]
    return digests(torch.cat([t.detach().float().cpu().flatten(1) for t in tensors], 1).numpy())
