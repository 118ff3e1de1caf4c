"""The nearest other text of each text, clusters of near-copies, and texts to compare others with."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_parallel, check_places
from hf_prune.dedup import crowds
from hf_prune.dedup.components import Forest, capped, flattened
from hf_prune.dedup.shingles import Ragged
from hf_prune.dedup.signed import Measure, Signed
from hf_prune.values import Value

ALL_PAIRS = 65  # most texts with one key of a band that are compared all with all; more are a crowd
BUFFER = 1 << 20  # pairs at a time


@dataclass(frozen=True, eq=False)
class Neighbors(Value):
    """The nearest other row and the cluster of each distinct text, in the order of their digests.

    Args:
        keys: (m,) digests, ascending.
        distance: (m,) 1 - similarity to the most similar other row that was compared; 1 if none was.
        leader: (m,) index of the text of its cluster with the lowest digest.
        to_leader: (m,) similarity to that text.
        n_texts: (m,) number of distinct texts in the cluster.
        n_rows: (m,) number of rows in the cluster.
    """

    keys: np.ndarray
    distance: np.ndarray
    leader: np.ndarray
    to_leader: np.ndarray
    n_texts: np.ndarray
    n_rows: np.ndarray

    def check_fields(self) -> None:
        check_parallel("Neighbors", **{field.name: getattr(self, field.name) for field in fields(self)})
        check_places("Neighbors.leader", self.leader, len(self.keys))

    @classmethod
    def of(cls, signed: Signed, measure: Measure, best: NDArray[np.float64], leader: NDArray[np.int64]) -> Neighbors:
        """Put together what was compared.

        Args:
            signed: the m texts.
            measure: similarities of pairs.
            best: (m,) largest similarity to another text.
            leader: (m,) index of the first text of its cluster.
        """
        m = len(leader)
        best = np.where(signed.copies > 1, 1.0, best)
        to_leader, others = np.ones(m), np.flatnonzero(leader != np.arange(m))
        to_leader[others] = measure.similarity(others, leader[others])
        return cls(
            keys=signed.digests,
            distance=(1 - best).astype(np.float32),
            leader=leader.astype(np.int32),
            to_leader=to_leader.astype(np.float32),
            n_texts=np.bincount(leader, minlength=m)[leader].astype(np.int32),
            n_rows=np.bincount(leader, signed.copies, m)[leader].astype(np.int32),
        )

    def heads(self, count: NDArray[np.int32]) -> NDArray[np.int64]:
        """Indices of the first texts of the clusters with a `count` (`n_texts` or `n_rows`) of several."""
        return np.flatnonzero((self.leader == np.arange(len(self.keys))) & (count > 1))

    def lowest(self, heads: NDArray[np.int64]) -> NDArray[np.float32]:
        """Lowest similarity of a member of each cluster to its first text."""
        lowest = np.ones(len(self.keys), np.float32)
        np.minimum.at(lowest, self.leader, self.to_leader)
        return lowest[heads]

    def facts(self, threshold: float) -> dict[str, int]:
        """Number of clusters, of rows that can be removed, of rows in the largest cluster, and of chains."""
        heads = self.heads(self.n_rows)
        return {
            "clusters": len(heads),
            "removable": int((self.n_rows[heads].astype(np.int64) - 1).sum()),
            "largest": int(self.n_rows.max(initial=0)),
            "chains": int((self.lowest(self.heads(self.n_texts)) < np.float32(threshold)).sum()),
        }


def link(signed: Signed, measure: Measure, accept: float, max_cluster: int | None = None) -> tuple[Neighbors, int]:
    """Compare the texts that share a band, and unite those at `accept` or above.

    Args:
        signed: what the first pass learned.
        measure: gives the similarities (p,) of pairs of texts, by their indices.
        accept: smallest similarity of near-copies; -1 unites whatever shares a band.
        max_cluster: largest number of distinct texts in a cluster: edges unite from the most similar down. None for
            no cap.

    Returns:
        The neighbors, and how many edges the cap refused.
    """
    from hf_prune.dedup import _link_kernels

    m = len(signed.digests)
    best, forest, edges = np.zeros(m), Forest(m), [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]

    def weigh(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
        similarity = measure.similarity(left, right)
        near = similarity >= accept
        for nodes in (left, right):
            np.maximum.at(best, nodes, similarity)
        forest.add(left, right, near)
        if max_cluster is not None:
            edges.append((left[near], right[near], similarity[near]))
        return near

    left, right = np.empty(BUFFER, np.int64), np.empty(BUFFER, np.int64)
    crowded, crowd = np.zeros(signed.keys.shape, bool), np.arange(m)
    for band, order in enumerate(signed.runs()):
        first, second = 0, 1
        while first < len(order):
            filled, first, second = _link_kernels.propose(
                order, signed.keys, band, ALL_PAIRS, accept < 0, first, second, crowded, crowd, left, right
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
    return Neighbors.of(signed, measure, best, leader), refused


@dataclass(frozen=True, eq=False)
class Reference(Value):
    """A fixed set of texts to compare others with, in the order of their digests.

    Args:
        keys: (m,) digests, ascending.
        copies: (m,) number of rows that have the text.
        band_keys: (bands, s) keys of each band, ascending.
        band_texts: (bands, s) indices of the texts that have them.
        starts: (m,) where the text's set of n-gram hashes begins in `grams`.
        ends: (m,) where it ends.
        grams: (g,) n-gram hashes, set after set.
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
    def of(cls, signed: Signed, sets: Ragged) -> Reference:
        """Index m texts by the keys of their bands; `sets` are theirs."""
        some = np.flatnonzero(signed.sizes)
        keys = np.ascontiguousarray(signed.keys[some].T)
        order = np.argsort(keys, axis=1, kind="stable")
        return cls(
            keys=signed.digests,
            copies=signed.copies,
            band_keys=np.take_along_axis(keys, order, 1),
            band_texts=some[order],
            starts=sets.starts,
            ends=sets.ends,
            grams=sets.values,
        )

    def compare(
        self, keys: NDArray[np.uint64], sets: Ragged, copy: NDArray[np.int64], accept: float
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Compare each of n texts with all those that share a band with it.

        Args:
            keys: (n, bands) keys of the texts' bands; a text with an empty set has no band.
            sets: n sets of n-gram hashes.
            copy: (n,) index of the reference text that is an exact copy, or -1.
            accept: smallest similarity of texts that are counted; -1 counts whatever shares a band.

        Returns:
            Similarity to the nearest (0 if there is none), its index (-1; the first of several), and how many rows
            of the reference are counted; (n,) each.
        """
        from hf_prune.dedup import _link_kernels
        from hf_prune.numerics.compiled import in_threads, read_only, thread_count

        n = len(keys)
        nearest, whose, count = np.zeros(n), np.full(n, -1, np.int64), np.zeros(n, np.int64)
        step = max(1, -(-n // thread_count()))
        band_keys, band_texts, copies = (read_only(array) for array in (self.band_keys, self.band_texts, self.copies))
        known = Ragged(*(read_only(array) for array in (self.starts, self.ends, self.grams)))
        in_threads(
            lambda low: _link_kernels.compare(
                keys, *sets, copy, band_keys, band_texts, *known, copies, accept, low, min(low + step, n),
                nearest, whose, count,
            ),
            range(0, n, step),
        )  # fmt: skip
        return nearest, whose, count
