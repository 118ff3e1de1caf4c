"""MinHash: near-copies by Jaccard similarity of n-gram sets, found through bands of minima.

Memory of a fit, in bytes for each row, at most: 2 * (8 * bands + 48), and 8 * permutations more without verification;
with it, 16 for each distinct n-gram of each distinct text that shares a band with another. While a crowd is searched
(see `crowds`) 1 200 more for each of its texts, 4 * permutations + 200 without verification. The fitted scorer holds 28
for each distinct text. Beside it 25 MB, whatever the number of rows, and 40 more where there are
crowds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_prune.checks import check_parallel, check_places
from hf_prune.columns import ScoreColumn
from hf_prune.data import identity
from hf_prune.data.batch import Batch
from hf_prune.data.lookup import find
from hf_prune.data.reading import texts_of
from hf_prune.data.texts import columns_of
from hf_prune.dedup import crowds
from hf_prune.dedup._reading import cluster_ids, facts_of, fitted_rows
from hf_prune.dedup.bands import band_probability as band_probability
from hf_prune.dedup.bands import minima, optimal_bands, permutations
from hf_prune.dedup.components import Forest, capped, flattened
from hf_prune.dedup.shingles import UNITS, Sets, buffers, character_table, check_grams, gram_sets, pieces, similarities
from hf_prune.dedup.signed import Estimated, Measure, Signed, Verified, sets_of
from hf_prune.scorer import Scorer
from hf_prune.values import Value

MOST = 65  # texts that are compared all with all because they share a band; more are a crowd
BUFFER = 1 << 20  # pairs at a time


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
        identity.check_seed(self.seed)

    def permutations(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Factors (odd) and terms of x -> a * x + b modulo 2**32, each (bands * rows,)."""
        return permutations(self.bands * self.rows, self.seed)

    def signature(self, grams: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Minima (bands * rows,) of one set of n-gram hashes, in NumPy: the definition."""
        return minima(grams, *self.permutations())

    def sign(
        self, array: pa.Array, signatures: bool = False
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint32]]:
        """Band keys (n, bands), numbers of n-grams (n,) and, on request, signatures (n, bands * rows) of texts."""
        from hf_prune.dedup import _kernels
        from hf_prune.numerics.compiled import in_threads

        data, offsets = buffers(array)
        n, (a, b) = len(array), self.permutations()
        keys, sizes = np.empty((n, self.bands), np.uint64), np.empty(n, np.int64)
        signed = np.empty((n if signatures else 0, len(a)), np.uint32)
        table, unit = character_table(), UNITS.index(self.unit)
        in_threads(
            lambda piece: _kernels.sign(
                data, offsets, *piece, table, unit, self.lower, self.ngram, a, b, self.rows, keys, sizes, signed
            ),
            pieces(np.diff(offsets)),
        )
        return keys, sizes, signed

    def sets(self, array: pa.Array, chosen: NDArray[np.int64]) -> Sets:
        """Sets of hashed n-grams of some of the texts of an array."""
        return gram_sets(array, chosen, self.ngram, self.unit, self.lower)


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
    from hf_prune.dedup import _link_kernels

    m = len(signed.digests)
    best, forest, edges = np.zeros(m), Forest(m), [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]

    def weigh(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
        found = measure.similarity(left, right)
        near = found >= accept
        for nodes in (left, right):
            _link_kernels.raise_to(nodes, found, best)
        forest.add(left, right, near)
        if max_cluster is not None:
            edges.append((left[near], right[near], found[near]))
        return near

    left, right = np.empty(BUFFER, np.int64), np.empty(BUFFER, np.int64)
    crowded, crowd = np.zeros(signed.keys.shape, bool), np.arange(m)
    for band, order in enumerate(signed.runs()):
        first, second = 0, 1
        while first < len(order):
            filled, first, second = _link_kernels.propose(
                order, signed.keys, band, MOST, accept < 0, first, second, crowded, crowd, left, right
            )
            weigh(left[:filled], right[:filled])
    members = np.flatnonzero(crowded.any(axis=1))
    del crowded
    for some, borders in crowds.blocks(flattened(crowd), members):
        crowds.search(some, borders, measure.minima(some), accept, forest.parent, weigh)
    leader, refused = forest.roots(), 0
    if max_cluster is not None:
        nodes_a, nodes_b, weights = (np.concatenate(part) for part in zip(*edges, strict=True))
        leader, refused = capped(m, nodes_a, nodes_b, weights, max_cluster)
    best[signed.copies > 1] = 1
    to_leader, others = np.ones(m), np.flatnonzero(leader != np.arange(m))
    to_leader[others] = measure.similarity(others, leader[others])
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

    def compare(
        self, keys: NDArray[np.uint64], sets: Sets, copy: NDArray[np.int64], accept: float
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Compare each of n texts with all those that share a band with it.

        Args:
            keys, sets: (n, bands) and n of the texts; an empty set has no band.
            copy: (n,) place of the reference text that is an exact copy, or -1.
            accept: least similarity of those that are counted; -1 counts whatever shares a band.

        Returns:
            Similarity to the nearest (0 if there is none), its place (-1; the first of several), and how many rows
            of the reference are counted; (n,) each.
        """
        from hf_prune.dedup import _link_kernels
        from hf_prune.numerics.compiled import in_threads, thread_count

        n = len(keys)
        nearest, whose, count = np.zeros(n), np.full(n, -1, np.int64), np.zeros(n, np.int64)
        step = max(1, -(-n // thread_count()))
        in_threads(
            lambda low: _link_kernels.compare(
                keys, *sets, copy, self.band_keys, self.band_texts, self.starts, self.ends, self.grams, self.copies,
                accept, low, min(low + step, n), nearest, whose, count,
            ),
            range(0, n, step),
        )  # fmt: skip
        return nearest, whose, count


@dataclass(frozen=True, eq=False)
class MinHashDedup(Scorer):
    """1 - Jaccard similarity to the nearest other row, and the cluster of near-copies. High = unlike others = keep.

    Which row of a cluster stays is decided by pruning: `filter_by_score(ds, "minhash", keep=1.0,
    one_per="minhash_cluster")`, or by any other score column. Exact copies have one score (0) and one cluster.

    Texts are compared when they share a band of minima: a near-copy is missed with the chance that
    `band_probability` tells, and a row that shares no band scores 1. Where a text shares a band with more than 64
    others, a crowd (boilerplate makes them), it is compared with those whose minima look most like its own: near-copies
    in crowds of any size are missed no more often than the bands miss them (see `crowds`), and the score of a row
    without near-copies may be a little high. Time is linear in the number of rows.

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
    version: ClassVar[int] = 2
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
                count the reference rows there. A text is compared with all that share a band with it, so counts are
                exact but for what the bands miss, and time grows with how many share one.
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
            measure = Verified.of(source, text, sketch, who, signed) if verify else Estimated(signed.signatures)
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
        texts = texts_of(batch, self.text)
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
        x, y = (texts_of(Batch(rows, type(self).__name__), self.text) for rows in (left, right))
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
        keys, _, _ = self.sketch.sign(array)
        sets = self.sketch.sets(array, np.arange(len(array)))
        accept = self.threshold if self.verify else -1.0
        nearest, whose, count = reference.compare(keys, sets, find(reference.keys, digests), accept)
        near = (whose >= 0) & (nearest >= accept)
        cluster = cluster_ids(np.where(near, reference.keys[whose], digests))
        return 1 - nearest, cluster, count.astype(np.int32)


def check_threshold(threshold: Any) -> None:
    """Raise a ValueError unless a similarity threshold lies in (0, 1]."""
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold!r} is no Jaccard similarity in (0, 1]; give one such as 0.8")


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
