"""MinHash: near-copies by Jaccard similarity of n-gram sets, found through bands of minima.

Memory of a fit, in bytes for each row: 2 * (8 * bands + 48), and 8 * permutations more without verification; with it, 8
for each distinct n-gram of each distinct text that shares a band with another. The fitted scorer holds 28 for each
distinct text. Beside it 25 MB, whatever the number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_prune import rows as row_hashes
from hf_prune.batch import Batch
from hf_prune.checks import check_parallel, check_places
from hf_prune.columns import ScoreColumn
from hf_prune.dedup._reading import blocks, cluster_ids, columns_of, facts_of, fitted_rows, read
from hf_prune.dedup.components import Forest, capped
from hf_prune.dedup.shingles import UNITS, Sets, buffers, character_table, check_grams, gram_sets, pieces, similarities
from hf_prune.lookup import find
from hf_prune.scorer import Scorer
from hf_prune.values import Value

WIDTH = 64  # with how many others of its band a text is compared: beyond it, groups are not compared all with all
BUFFER = 1 << 20  # pairs at a time

Measure = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]


def band_probability(similarity: Any, bands: int, rows: int) -> Any:
    """Chance that two texts of this Jaccard similarity share at least one of `bands` bands of `rows` minima.

    >>> round(band_probability(0.8, bands=14, rows=8), 4)
    0.9235
    """
    return 1 - (1 - similarity**rows) ** bands


def optimal_bands(threshold: float, permutations: int, missed_weight: float = 0.5) -> tuple[int, int]:
    """Bands and rows, bands * rows <= permutations, with the least weighted area of errors.

    The areas are those under the curve of `band_probability` below the threshold (pairs proposed in vain) and over
    it above the threshold (pairs missed).

    Args:
        threshold: Jaccard similarity, in (0, 1].
        permutations: how many minima there are.
        missed_weight: of the missed; the others weigh 1 minus it.

    >>> optimal_bands(0.8, 128), optimal_bands(0.7, 128), optimal_bands(0.5, 128)
    ((9, 13), (14, 9), (25, 5))
    """
    nodes, weights = np.polynomial.legendre.leggauss(128)
    below, above = (nodes + 1) / 2 * threshold, threshold + (nodes + 1) / 2 * (1 - threshold)
    best, found = math.inf, (1, 1)
    for bands in range(1, permutations + 1):
        for rows in range(1, permutations // bands + 1):
            vain = threshold / 2 * float(weights @ band_probability(below, bands, rows))
            missed = (1 - threshold) / 2 * float(weights @ (1 - band_probability(above, bands, rows)))
            error = (1 - missed_weight) * vain + missed_weight * missed
            if error < best:
                best, found = error, (bands, rows)
    return found


@dataclass(frozen=True, eq=False)
class Sketch(Value):
    """How texts become n-grams, minima and band keys.

    Args:
        ngram: tokens in an n-gram; a text of fewer is one n-gram of all it has, one of none has no near-copies.
        unit: "word", "token" or "char": see `tokens`.
        lower: compare in lower case.
        bands, rows: the minima are cut into `bands` bands of `rows`.
        seed: of the permutations.
    """

    ngram: int = 5
    unit: str = "word"
    lower: bool = True
    bands: int = 16
    rows: int = 8
    seed: int = 0

    def check_fields(self) -> None:
        check_grams(self.ngram, self.unit)
        for name, value in (("bands", self.bands), ("rows", self.rows)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} is no number of {name}; give an integer of 1 or more")
        row_hashes.check_seed(self.seed)

    def permutations(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Factors (odd) and terms of x -> a * x + b modulo 2**32, each (bands * rows,)."""
        count = self.bands * self.rows
        drawn = row_hashes.seeded(np.arange(2 * count, dtype=np.uint64), self.seed) >> np.uint64(32)
        return (drawn[:count] | np.uint64(1)).astype(np.uint32), drawn[count:].astype(np.uint32)

    def signature(self, grams: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Minima (bands * rows,) of one set of n-gram hashes, in NumPy: the definition."""
        a, b = self.permutations()
        x = (grams >> np.uint64(32)).astype(np.uint32)
        return np.asarray((a[:, None] * x + b[:, None]).min(axis=1, initial=0xFFFF_FFFF))

    def sign(
        self, array: pa.Array, signatures: bool = False
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint32]]:
        """Band keys (n, bands), numbers of n-grams (n,) and, on request, signatures (n, bands * rows) of texts."""
        from hf_prune._compiled import in_threads
        from hf_prune.dedup import _kernels

        data, offsets = buffers(array)
        n, (a, b) = len(array), self.permutations()
        keys, sizes = np.empty((n, self.bands), np.uint64), np.empty(n, np.int64)
        minima = np.empty((n if signatures else 0, len(a)), np.uint32)
        table, unit = character_table(), UNITS.index(self.unit)
        in_threads(
            lambda piece: _kernels.sign(
                data, offsets, *piece, table, unit, self.lower, self.ngram, a, b, self.rows, keys, sizes, minima
            ),
            pieces(np.diff(offsets)),
        )
        return keys, sizes, minima

    def sets(self, array: pa.Array, chosen: NDArray[np.int64]) -> Sets:
        """Sets of hashed n-grams of some of the texts of an array."""
        return gram_sets(array, chosen, self.ngram, self.unit, self.lower)


class Signed(NamedTuple):
    """What one pass learns, mergeable: distinct texts in the order of their digests.

    Attributes:
        digests: (m,) of the texts.
        copies: (m,) rows that have the text.
        sizes: (m,) n-grams, repeats counted.
        keys: (m, bands).
        signatures: (m, bands * rows), or none.
        nulls: rows without a text.
    """

    digests: NDArray[np.uint64]
    copies: NDArray[np.int64]
    sizes: NDArray[np.int64]
    keys: NDArray[np.uint64]
    signatures: NDArray[np.uint32]
    nulls: int

    @classmethod
    def of(cls, ds: Any, text: str | Sequence[str], sketch: Sketch, who: str, signatures: bool = False) -> Signed:
        """Read a dataset or a shard of one."""
        parts = []
        for block in blocks(ds, text, who):
            keys, sizes, minima = sketch.sign(block.array, signatures)
            some = ~block.null
            part = (block.digests, np.ones(len(sizes), np.int64), sizes, keys, minima)
            if block.null.any():
                part = tuple(p[some] if len(p) == len(some) else p for p in part)  # type: ignore[assignment]
            parts.append(cls(*part, int(block.null.sum())))
        return cls.merge(parts)

    @classmethod
    def merge(cls, parts: Sequence[Signed]) -> Signed:
        """Put shards together; their order does not matter.

        Raises:
            ValueError: two different texts with one digest, which takes thousands of millions of them.
        """
        digests = np.concatenate([p.digests for p in parts])
        known, which = np.unique(digests, return_inverse=True)
        whose = np.split(which, np.cumsum([len(p.digests) for p in parts])[:-1])

        def gathered(name: str) -> NDArray[Any]:
            """One row a text, without a copy of all parts in between."""
            values = [getattr(p, name) for p in parts]
            if not any(len(v) for v in values):
                return values[0]  # type: ignore[no-any-return]
            out = np.empty((len(known), *values[0].shape[1:]), values[0].dtype)
            for at, part in zip(whose, values, strict=True):
                out[at] = part
            if any((out[at] != part).any() for at, part in zip(whose, values, strict=True)):
                raise ValueError("two different texts have the same 64-bit digest; compare the dataset in two parts")
            return out

        copies = np.bincount(which, np.concatenate([p.copies for p in parts]), len(known)).astype(np.int64)
        kept = (gathered(name) for name in ("sizes", "keys", "signatures"))
        return cls(known, copies, *kept, sum(p.nulls for p in parts))  # type: ignore[arg-type, call-arg]

    def runs(self) -> list[NDArray[np.int64]]:
        """For each band, the texts that share its key with another, those with equal keys side by side."""
        some = np.flatnonzero(self.sizes)
        out = []
        for band in range(self.keys.shape[1]):
            keys = np.ascontiguousarray(self.keys[some, band])
            order = np.argsort(keys)
            keys = keys[order]
            same = keys[1:] == keys[:-1]
            out.append(some[order[np.append(same, False) | np.insert(same, 0, False)]] if len(keys) else some)
        return out


def sets_of(ds: Any, text: str | Sequence[str], sketch: Sketch, who: str, wanted: NDArray[np.uint64]) -> Sets:
    """Sets of hashed n-grams of the texts with the digests `wanted` (w,), ascending: a second pass.

    Raises:
        ValueError: the dataset is not what it was in the first pass.
    """
    starts, ends = np.full(len(wanted), -1, np.int64), np.zeros(len(wanted), np.int64)
    parts, total = [np.empty(0, np.uint64)], 0
    for block in blocks(ds, text, who) if len(wanted) else ():
        at = find(wanted, block.digests)
        at[block.null] = -1
        _, first = np.unique(at, return_index=True)
        first = first[at[first] >= 0]
        first = first[starts[at[first]] < 0]
        found = sketch.sets(block.array, first)
        starts[at[first]], ends[at[first]] = found.starts + total, found.ends + total
        parts.append(found.values)
        total += len(found.values)
    if (starts < 0).any():
        raise ValueError(
            f"{who}.fit reads the texts twice, and {int((starts < 0).sum())} were not there the second time; give a "
            "dataset that can be read again, or verify=False, which reads once"
        )
    return Sets(starts, ends, np.concatenate(parts))


@dataclass(frozen=True, eq=False)
class Neighbours(Value):
    """What was found for each distinct text, in the order of their digests.

    Args:
        keys: (m,) digests.
        distance: (m,) 1 - similarity to the most similar other row that was compared; 1 if none was.
        leader: (m,) place of the cluster's text with the lowest digest.
        to_leader: (m,) similarity to that text.
        texts, rows: (m,) distinct texts and rows in the cluster.
    """

    keys: np.ndarray
    distance: np.ndarray
    leader: np.ndarray
    to_leader: np.ndarray
    texts: np.ndarray
    rows: np.ndarray

    def check_fields(self) -> None:
        check_parallel("Neighbours", **{field.name: getattr(self, field.name) for field in fields(self)})
        check_places("Neighbours.leader", self.leader, len(self.keys))


def link(signed: Signed, measure: Measure, accept: float, max_cluster: int | None = None) -> tuple[Neighbours, int]:
    """Compare the texts that share a band, and unite those at `accept` or above.

    Args:
        signed: what the first pass learned.
        measure: similarities (p,) of pairs of texts, by their places.
        accept: least similarity; -1 unites whatever shares a band.
        max_cluster: most distinct texts in a cluster: edges unite from the most similar down.

    Returns:
        What was found, and how many edges the cap refused.
    """
    from hf_prune.dedup import _kernels

    m = len(signed.digests)
    best, forest, edges = np.zeros(m), Forest(m), [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    left, right = np.empty(BUFFER, np.int64), np.empty(BUFFER, np.int64)
    for band, order in enumerate(signed.runs()):
        first, second = 0, 1
        while first < len(order):
            filled, first, second = _kernels.propose(order, signed.keys, band, WIDTH, first, second, left, right)
            pair = left[:filled], right[:filled]
            found = measure(*pair)
            for nodes in pair:
                _kernels.raise_to(nodes, found, best)
            near = found >= accept
            if max_cluster is None:
                forest.add(*pair, near)
            else:
                edges.append((pair[0][near], pair[1][near], found[near]))
    leader, refused = forest.roots(), 0
    if max_cluster is not None:
        nodes_a, nodes_b, weights = (np.concatenate(part) for part in zip(*edges, strict=True))
        leader, refused = capped(m, nodes_a, nodes_b, weights, max_cluster)
    best[signed.copies > 1] = 1
    to_leader, others = np.ones(m), np.flatnonzero(leader != np.arange(m))
    to_leader[others] = measure(others, leader[others])
    texts = np.bincount(leader, minlength=m)[leader]
    members = np.bincount(leader, signed.copies, m)[leader]
    return Neighbours(
        signed.digests, (1 - best).astype(np.float32), leader.astype(np.int32), to_leader.astype(np.float32),
        texts.astype(np.int32), members.astype(np.int32),
    ), refused  # fmt: skip


@dataclass(frozen=True, eq=False)
class Reference(Value):
    """A fixed set of texts to compare with, in the order of their digests.

    Args:
        keys: (m,) digests.
        copies: (m,) rows that have the text.
        band_keys, band_texts: (bands, s) keys in ascending order, and whose they are.
        starts, ends, grams: the sets of n-gram hashes.
    """

    keys: NDArray[np.uint64]
    copies: NDArray[np.int64]
    band_keys: NDArray[np.uint64]
    band_texts: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    grams: NDArray[np.uint64]

    def check_fields(self) -> None:
        check_parallel("Reference", keys=self.keys, copies=self.copies, starts=self.starts, ends=self.ends)
        if np.shape(self.band_keys) != np.shape(self.band_texts) or np.ndim(self.band_keys) != 2:
            raise ValueError(f"Reference: keys {np.shape(self.band_keys)} of texts {np.shape(self.band_texts)}")
        check_places("Reference.band_texts", self.band_texts, len(self.keys))
        for name in ("starts", "ends"):
            check_places(f"Reference.{name}", getattr(self, name), len(self.grams) + 1)

    @classmethod
    def of(cls, signed: Signed, sets: Sets) -> Reference:
        """Index what was read."""
        some = np.flatnonzero(signed.sizes)
        keys = np.ascontiguousarray(signed.keys[some].T)
        order = np.argsort(keys, axis=1, kind="stable")
        return cls(signed.digests, signed.copies, np.take_along_axis(keys, order, 1), some[order], *sets)

    def pairs(self, keys: NDArray[np.uint64], some: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pairs (p, 2) of rows `some` and texts that share a band, each once; of one band at most `WIDTH` a row."""
        found = [np.empty((0, 2), np.int64)]
        for band in range(len(self.band_keys)):
            wanted = keys[some, band]
            first = np.searchsorted(self.band_keys[band], wanted, "left")
            last = np.searchsorted(self.band_keys[band], wanted, "right")
            count = np.minimum(last - first, WIDTH)
            inside = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
            texts = self.band_texts[band][np.repeat(first, count) + inside]
            found.append(np.stack([np.repeat(some, count), texts], axis=1))
        return np.asarray(np.unique(np.concatenate(found), axis=0))


@dataclass(frozen=True, eq=False)
class MinHashDedup(Scorer):
    """1 - Jaccard similarity to the nearest other row, and the cluster of near-copies. High = unlike others = keep.

    Which row of a cluster stays is decided by pruning: `filter_by_score(ds, "minhash", keep=1.0,
    one_per="minhash_cluster")`, or by any other score column. Exact copies have one score (0) and one cluster.

    Texts are compared when they share a band of minima: a near-copy is missed with the chance that
    `band_probability` tells, and a row that shares no band scores 1. Where more than 64 texts share a band each is
    compared with the 64 after it, in the order of digests.

    Args:
        found: what the fit learned.
        text: column, columns (joined by a space), nested path, or chat column.
        threshold: Jaccard similarity from which two texts are near-copies.
        sketch: n-grams and bands.
        verify: near-copies have at least this true Jaccard similarity (of 64-bit hashes of the n-grams), and so has
            the score; else whatever shares a band is a near-copy, and similarities are estimates from the minima.
        name: score column; `<name>_cluster` and `<name>_count` stand beside it.
        fitted_on: what it was fitted on, and what was found.

    A null scores NaN (cluster -1, count 0). A text without a single token has no n-grams: only its exact copies
    are near it. Scoring a text that was not there when fitting is an error, unless there is a `reference`.

    Raises:
        ValueError: a text that was not fitted.

    Reference: Broder, On the resemblance and containment of documents, 1997.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"text": ["the cat sat on the mat", "the cat sat on the rug", "a dog", "a dog"]})
    >>> scorer = MinHashDedup.fit(ds, threshold=0.6, ngram=2)
    >>> {k: v.tolist() for k, v in scorer(ds[:]).items() if k != "minhash_cluster"}
    {'minhash': [0.3333333432674408, 0.3333333432674408, 0.0, 0.0], 'minhash_count': [2, 2, 2, 2]}
    """

    paper: ClassVar[str] = "Broder, On the resemblance and containment of documents, SEQUENCES 1997"
    meaning: ClassVar[str] = "unlike every other text; 0 is an exact copy"
    nan_rows: ClassVar[bool] = True

    found: Neighbours | Reference
    text: str | tuple[str, ...] = "text"
    threshold: float = 0.8
    sketch: Sketch = Sketch()
    verify: bool = True
    name: str = "minhash"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        columns_of(self.text)
        check_threshold(self.threshold)
        if isinstance(self.found, Reference) and len(self.found.band_keys) != self.sketch.bands:
            raise ValueError(f"{len(self.found.band_keys)} bands of the reference, {self.sketch.bands} of the sketch")

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, by how it was measured."""
        what = "similarity" if self.verify else "similarity, estimated from minima,"
        other = "reference row" if isinstance(self.found, Reference) else "other row that shares a band of minima"
        return f"Jaccard {what} of n-gram sets to the nearest {other}; the column is 1 - it. NaN for a null text"

    @classmethod
    def fit(
        cls,
        ds: Any,
        text: str | Sequence[str] = "text",
        threshold: float = 0.8,
        *,
        reference: Any = None,
        ngram: int = 5,
        unit: str = "word",
        lower: bool = True,
        permutations: int = 128,
        bands: int | None = None,
        rows: int | None = None,
        missed_weight: float | None = None,
        verify: bool = True,
        max_cluster: int | None = None,
        seed: int = 0,
        name: str = "minhash",
    ) -> Self:
        """Find the near-copies among the rows of a dataset; the same for any order of them.

        Args:
            ds: `Dataset` or `IterableDataset`, read twice with `verify`, else once. Not read if there is a reference.
            text: column, columns, nested path, or chat column.
            threshold: Jaccard similarity from which two texts are near-copies, in (0, 1].
            reference: dataset to compare with instead (contamination: its rows are those of an evaluation set);
                then any text can be scored, its cluster is that of the nearest reference row at the threshold, its
                count the reference rows there.
            ngram: tokens in an n-gram.
            unit: "word", "token" (punctuation too) or "char": see `tokens`.
            lower: compare in lower case.
            permutations: minima of a signature; the best split of them into bands is taken (`optimal_bands`).
            bands, rows: the split, given; both or neither.
            missed_weight: weight of missed pairs in the choice of the split; 0.95 by default with `verify`, where
                a pair proposed in vain costs time only, 0.5 without.
            verify: compute the true similarity of every pair that shares a band.
            max_cluster: most distinct texts in a cluster; larger ones are cut, the most similar pairs stay together.
            seed: of the permutations.
            name: score column.

        Raises:
            ValueError: a threshold outside (0, 1], an empty dataset, a bad split.
        """
        check_threshold(threshold)
        if (bands is None) != (rows is None):
            raise ValueError(f"bands={bands}, rows={rows}: give both, or neither for the best split of permutations")
        if isinstance(permutations, bool) or not isinstance(permutations, int) or permutations < 1:
            raise ValueError(f"permutations={permutations!r} is no number of permutations; give an integer such as 128")
        if max_cluster is not None and max_cluster < 1:
            raise ValueError(f"max_cluster={max_cluster} leaves no cluster; give 1 or more, or None for no cap")
        if bands is None or rows is None:
            weight = missed_weight if missed_weight is not None else 0.95 if verify else 0.5
            bands, rows = optimal_bands(threshold, permutations, weight)
        sketch, who = Sketch(ngram, unit, lower, bands, rows, seed), cls.__name__
        source = ds if reference is None else reference
        signed = Signed.of(source, text, sketch, who, signatures=not verify and reference is None)
        facts = facts_of(signed.digests, signed.copies, signed.nulls, text)
        found: Neighbours | Reference
        if reference is not None:
            found = Reference.of(signed, sets_of(source, text, sketch, who, signed.digests))
            facts["compared_with"] = "reference"
        else:
            measure = _true(source, text, sketch, who, signed) if verify else _estimated(signed)
            found, refused = link(signed, measure, threshold if verify else -1.0, max_cluster)
            facts |= _summary(found, signed.copies, threshold) | ({"refused_edges": refused} if max_cluster else {})
        return cls(found, text if isinstance(text, str) else tuple(text), threshold, sketch, verify, name, facts)

    def columns(self) -> dict[str, str]:
        return {self.name: "float32", f"{self.name}_cluster": "int64", f"{self.name}_count": "int32"}

    def companions(self) -> dict[str, str]:
        if isinstance(self.found, Reference):
            return {
                f"{self.name}_cluster": "id of the nearest reference row at the threshold, or of the row itself",
                f"{self.name}_count": "reference rows at the threshold",
            }
        return {
            f"{self.name}_cluster": "id of the cluster of near-copies: of its text with the lowest digest",
            f"{self.name}_count": "rows in the cluster",
        }

    def describe(self) -> ScoreColumn:
        column = super().describe()
        told = {name: value for name, value in column.params.items() if name not in ("found", "sketch")}
        how = {field.name: getattr(self.sketch, field.name) for field in fields(self.sketch)}
        return replace(column, params=told | how)

    def score(self, batch: Batch, rank: int | None) -> Any:
        texts = read(batch, self.text)
        if isinstance(self.found, Reference):
            distance, cluster, count = self._compare(texts.array, texts.digests, self.found)
        else:
            found = self.found
            at = fitted_rows(batch, texts, found.keys, self.text)
            distance, count = found.distance[at], found.rows[at]
            cluster = cluster_ids(found.keys[found.leader[at]])
        return {
            self.name: np.where(texts.null, np.nan, distance),
            f"{self.name}_cluster": np.where(texts.null, -1, cluster),
            f"{self.name}_count": np.where(texts.null, 0, count),
        }

    def similarity(self, left: Any, right: Any) -> NDArray[np.float64]:
        """True Jaccard similarity (p,) of rows and rows, two batches of equal length; 1 of equal texts."""
        x, y = (read(Batch(rows, type(self).__name__), self.text) for rows in (left, right))
        every = np.arange(len(x.digests))
        found = similarities(every, every, self.sketch.sets(x.array, every), self.sketch.sets(y.array, every))
        return np.where(x.digests == y.digests, 1.0, found)

    def clusters(self) -> Any:
        """The clusters of more than one distinct text as a `Dataset`, the chains first.

        A chain is a cluster whose ends are not near-copies: a is near b and b near c, but a not near c. Columns:
        "cluster"; "rows" and "texts" in it; "lowest", the lowest similarity of a member to the text with the lowest
        digest; a chain has it below the threshold.

        Raises:
            TypeError: it compares with a reference, which has no clusters.
        """
        from datasets import Dataset

        if isinstance(self.found, Reference):
            raise TypeError("a MinHashDedup with a reference has no clusters; fit without reference=")
        found = self.found
        heads, lowest = _lowest(found)
        order = np.lexsort((found.keys[heads], lowest))
        return Dataset.from_dict(
            {
                "cluster": cluster_ids(found.keys[heads])[order],
                "rows": found.rows[heads][order],
                "texts": found.texts[heads][order],
                "lowest": lowest[order],
            }
        )

    def _compare(self, array: pa.Array, digests: NDArray[np.uint64], reference: Reference) -> tuple[Any, Any, Any]:
        """1 - similarity to the nearest reference text, cluster and count of each of n texts."""
        n = len(array)
        keys, sizes, _ = self.sketch.sign(array)
        pairs = reference.pairs(keys, np.flatnonzero(sizes))
        copy = find(reference.keys, digests)
        pairs = pairs[pairs[:, 1] != copy[pairs[:, 0]]]  # texts without tokens have copies, but no bands
        rows, texts = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
        sets = Sets(reference.starts, reference.ends, reference.grams)
        measured = similarities(rows, texts, self.sketch.sets(array, np.arange(n)), sets)
        same = np.flatnonzero(copy >= 0)
        rows, texts = np.concatenate([rows, same]), np.concatenate([texts, copy[same]])
        measured = np.concatenate([measured, np.ones(len(same))])
        near = measured >= self.threshold if self.verify else np.ones(len(rows), bool)
        count = np.bincount(rows[near], reference.copies[texts[near]], n)
        order = np.lexsort((texts, -measured, rows))
        first = order[np.unique(rows[order], return_index=True)[1]]
        distance, cluster = np.ones(n), cluster_ids(digests)
        distance[rows[first]] = 1 - measured[first]
        first = first[near[first]]
        cluster[rows[first]] = cluster_ids(reference.keys[texts[first]])
        return distance, cluster, count.astype(np.int32)


def check_threshold(threshold: Any) -> None:
    """Raise a ValueError unless a similarity threshold lies in (0, 1]."""
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold!r} is no Jaccard similarity in (0, 1]; give one such as 0.8")


def _true(ds: Any, text: Any, sketch: Sketch, who: str, signed: Signed) -> Measure:
    """Jaccard similarities from the n-gram sets of the texts that share a band."""
    shared = np.zeros(len(signed.digests), bool)
    for order in signed.runs():
        shared[order] = True
    where = np.flatnonzero(shared)
    read = sets_of(ds, text, sketch, who, signed.digests[where])
    starts, ends = np.zeros(len(shared), np.int64), np.zeros(len(shared), np.int64)
    starts[where], ends[where] = read.starts, read.ends
    sets = Sets(starts, ends, read.values)
    return lambda left, right: similarities(left, right, sets, sets)


def _estimated(signed: Signed) -> Measure:
    """Similarities as shares of equal minima."""
    from hf_prune.dedup import _kernels

    def measure(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        out = np.empty(len(left))
        _kernels.agreements(left, right, signed.signatures, 0, len(left), out)
        return out

    return measure


def _lowest(found: Neighbours) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The first texts of clusters of several, and the lowest similarity of a member to them."""
    lowest = np.ones(len(found.keys), np.float32)
    np.minimum.at(lowest, found.leader, found.to_leader)
    heads = np.flatnonzero((found.leader == np.arange(len(found.keys))) & (found.texts > 1))
    return heads, lowest[heads]


def _summary(found: Neighbours, copies: NDArray[np.int64], threshold: float) -> dict[str, int]:
    heads = np.flatnonzero((found.leader == np.arange(len(found.keys))) & (found.rows > 1))
    chained = int((_lowest(found)[1] < np.float32(threshold)).sum())
    return {
        "clusters": len(heads),
        "removable": int((found.rows[heads].astype(np.int64) - 1).sum()),
        "largest": int(found.rows.max(initial=0)),
        "chains": chained,
    }
