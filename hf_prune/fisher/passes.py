"""Rows through a probe: squared gradients under drawn labels, and heads fitted on cached features. Needs torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hf_prune.data import identity
from hf_prune.data.batch import Batch
from hf_prune.data.identity import digests, seeded
from hf_prune.data.labels import places_among
from hf_prune.fisher.heads import head_name, with_head
from hf_prune.fisher.probe import FEW, Probe
from hf_prune.fisher.squares import Squares, position_layers
from hf_prune.networks.classifier import Classifier, next_tokens
from hf_prune.networks.inputs import Inputs
from hf_prune.networks.statistics import IGNORE, logit_gradient

IDS = "input_ids"  # column of token ids, read as they are
BLOCK = 1 << 22  # probabilities whose running sums are held at once


class Part(NamedTuple):
    """Squares of the rows of one pass.

    Attributes:
        places: (m,) of the rows in the batch.
        seed: which of the seeds, counted from 0.
        squares: (m, D) sums over the row's terms, mean over draws.
        terms: (m,) loss terms: 1 for a class, tokens for a language model.
        loss: (m,) summed natural log loss of the data's own tokens; NaN for classes.
    """

    places: NDArray[np.int64]
    seed: int
    squares: Tensor
    terms: NDArray[np.int64]
    loss: NDArray[np.float64]


class Runner:
    """A probe loaded in this process. Its `Squares` are made on the first rows that come."""

    def __init__(self, probe: Probe, rank: int | None = None) -> None:
        if probe.fits:
            raise ValueError("the probe has no head yet; call probe.fitted(ds), or use head='keep'")
        if probe.fisher == "published":
            raise ValueError("fisher='published' squares mini-batches and tells no row from another; leave it out here")
        self.probe, self.reader = probe, probe.reader(rank)
        self.language = self.reader.task == "language_model"
        self._squares: Squares | None = None
        self.width = 0  # classes, or words; known once a row was seen
        self.network = self.reader.network()

    @property
    def squares(self) -> Squares:
        """The squares, once a row was seen."""
        assert self._squares is not None, "no row yet"
        return self._squares

    def sums(
        self, batch: Batch, seeds: Sequence[int], groups: NDArray[np.int64], count: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Squares of all rows summed by group: (seeds, count, D) float64, and the terms of each group (count,)."""
        total: Tensor | None = None
        terms = np.zeros(count, np.int64)
        for part in self.parts(batch, seeds, whole=count == 1):
            if total is None:
                total = torch.zeros(len(seeds), count, self.squares.size, dtype=torch.float64)
            mine = groups[part.places]
            for group in np.unique(mine):
                rows = part.squares if count == 1 else part.squares[torch.from_numpy(mine == group)]
                total[part.seed, group] += rows.sum(0, dtype=torch.float64).cpu()
            if part.seed == 0:
                np.add.at(terms, mine, part.terms)
        if total is None:
            raise ValueError("there are no rows to embed")
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
            batch: the rows.
            seeds: of the drawn labels.
            whole: give the sum over a pass's rows, (1, D), in place of (m, D).

        Raises:
            ValueError: a row in which there is nothing to predict, a label that is no class of the head.
        """
        classes = self._classes(batch) if self.probe.fisher == "empirical" and not self.language else None
        reader = Ids.of(self.reader) if has_ids(self.probe, self.reader, batch) else self.reader
        for places, inputs in reader.passes(batch):
            given = inputs(np.arange(len(places)))
            if self._squares is None:
                self._begin(given)
            with self._autocast(given):
                tap = self.squares.forward(**given) if hasattr(given, "items") else self.squares.forward(given)
            logits = reader.call(lambda *_, tap=tap, **__: tap.output, given)
            known = logits.detach().float()
            if self.language:
                targets = nn.functional.pad(next_tokens(given), (0, 1), value=IGNORE)
            else:
                targets = torch.zeros(len(places), dtype=torch.int64, device=logits.device)
            if classes is not None:
                self.reader.check_classes(classes[places], places, self.probe.label, logits.shape[1])
                targets = torch.from_numpy(classes[places]).to(logits.device)
            terms = terms_of(targets, places)
            loss = self._loss(known, targets)
            names = row_names(batch, places, given)
            self.width = logits.shape[-1]
            # nothing is drawn for the exact and the empirical Fisher: one seed is as good as another
            drawn = seeds[:1] if self.exact() or self.probe.fisher == "empirical" else seeds
            for place, seed in enumerate(drawn):
                squares = torch.zeros(())
                for draw in range(self.passes()):
                    gradient = self._gradient(known, targets, names, seed, draw)
                    last = place == len(drawn) - 1 and draw == self.passes() - 1
                    square = tap.sums if whole else tap.rows
                    squares = squares + square(logits, gradient.to(logits.dtype), keep=not last)
                squares = squares if self.exact() else squares / self.passes()
                for same in range(place, len(seeds) if len(drawn) < len(seeds) else place + 1):
                    yield Part(places, same, squares[None] if whole else squares, terms, loss)

    def exact(self) -> bool:
        """Whether all classes are summed over; known once a row was seen."""
        if self.language:
            return False
        return self.probe.fisher == "exact" or (self.probe.fisher == "auto" and self.width <= FEW)

    @property
    def fisher(self) -> str:
        """Whose labels: "exact", "sampled" or "empirical"; known once a row was seen."""
        return "exact" if self.exact() else "sampled" if self.probe.fisher == "auto" else self.probe.fisher

    @property
    def ready(self) -> bool:
        """Whether a row was seen."""
        return self._squares is not None

    def backward_share(self) -> float:
        """The share of the network that the backward pass goes through, by weights that are multiplied with."""
        first = self.squares.blocks[0].name.rpartition(".")[0]
        names, sizes = [], []
        for name, module in self.network.named_modules():
            if not isinstance(module, nn.Embedding):
                names.append(name)
                sizes.append(sum(p.numel() for p in module.parameters(recurse=False)))
        return sum(sizes[names.index(first) :]) / sum(sizes) if first in names else 1.0

    def passes(self) -> int:
        """Backward passes for one seed."""
        if self.probe.fisher == "empirical":
            return 1
        return self.width if self.exact() else self.probe.draws

    def _gradient(self, logits: Tensor, targets: Tensor, names: NDArray[np.uint64], seed: int, draw: int) -> Tensor:
        """Gradient of the summed loss with respect to the logits, for one draw of labels or one class."""
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
        """Labels of the data as places in the head."""
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


class Ids(Classifier):
    """Reads a column of token ids as they are, for texts that no tokenizer would give (the bounds of diversity)."""

    @classmethod
    def of(cls, reader: Classifier) -> Ids:
        found = copy.copy(reader)
        found.__class__, found.column, found.kind = cls, IDS, "text"
        return found  # type: ignore[return-value]

    def read_texts(self, batch: Batch, column: str) -> Any:
        from hf_prune.networks.plan import text_plan
        from hf_prune.networks.text import TransformerEncoder

        plan = text_plan(self.model, "auto", None, self.max_length, None)
        encoder = TransformerEncoder(self.model, plan, self.rank, self.micro_batch)
        encoder.head = self.head
        encoder.tokens = lambda ids, special=True: (ids, None)  # type: ignore
        return encoder, [list(map(int, row)) for row in batch[column]], False


def row_names(batch: Batch, places: NDArray[np.int64], given: Inputs) -> NDArray[np.uint64]:
    """A 64-bit name (m,) of each row of a pass: by its `row_id`, or else by what the network reads of it."""
    return digests(batch.arrow("row_id"))[places] if "row_id" in batch else input_keys(given)


def terms_of(targets: Tensor, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Loss terms (m,) of each row of a pass.

    Raises:
        ValueError: a row has none.
    """
    terms = (targets >= 0).reshape(len(targets), -1).sum(1).cpu().numpy()
    if not terms.all():
        row = int(places[int((terms == 0).argmax())])
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


def has_ids(probe: Probe, reader: Classifier, batch: Batch) -> bool:
    """Whether a language model is given token ids in place of texts."""
    return reader.task == "language_model" and IDS in batch and "text" not in batch and probe.column is None


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
