"""`Duplicates`: what a fit found, as a thing to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from hf_prune.summary import Summary


@dataclass(frozen=True, repr=False)
class Duplicates(Summary):
    """What a scorer of copies found among the rows that it was fitted on.

    Attributes:
        rows: number of rows that were read.
        nulls: number of them without a text; None if there are none.
        texts: number of distinct texts.
        clusters: number of clusters of several rows; None against a reference.
        removable: number of rows that go when one of each cluster stays.
        removable_share: the same as a share of the rows.
        largest_cluster: number of rows in the largest cluster.
        chains: number of clusters with a member below the threshold to their first text.
        refused_edges: number of near-copies that the largest size of a cluster kept apart.
        threshold: similarity from which rows are copies.
        missed_at_threshold: share of the pairs of just that similarity that the bands miss.
        tokens: number of tokens of the distinct texts.
        repeated_tokens: number of them in repeated passages.
        compared_with: "reference" if the rows are those of a reference.
    """

    title: ClassVar[str] = "Duplicates"

    rows: int
    texts: int
    nulls: int | None = None
    clusters: int | None = None
    removable: int | None = None
    removable_share: float | None = None
    largest_cluster: int | None = None
    chains: int | None = None
    refused_edges: int | None = None
    threshold: float | None = None
    missed_at_threshold: float | None = None
    tokens: int | None = None
    repeated_tokens: int | None = None
    compared_with: str | None = None

    @classmethod
    def of(cls, facts: Mapping[str, Any] | None, **more: Any) -> Self:
        """Read what a fit wrote down, and what it did not.

        Args:
            facts: `fitted_on` of the scorer.
            more: further fields.

        Raises:
            ValueError: there are no facts: the scorer was not made by `fit`.
        """
        if facts is None:
            raise ValueError("there is nothing to sum up: the scorer has no fitted_on; make it with .fit(ds)")
        known = {**facts, **more}
        rows, removable = known["rows"], known.get("removable")
        return cls(
            rows=rows,
            texts=known["texts"],
            nulls=known.get("nulls") or None,
            clusters=known.get("clusters"),
            removable=removable,
            removable_share=None if removable is None else removable / rows,
            largest_cluster=known.get("largest"),
            chains=known.get("chains"),
            refused_edges=known.get("refused_edges"),
            threshold=known.get("threshold"),
            missed_at_threshold=known.get("missed_at_threshold"),
            tokens=known.get("tokens"),
            repeated_tokens=known.get("repeated_tokens"),
            compared_with=known.get("compared_with"),
        )
