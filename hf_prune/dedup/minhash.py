"""MinHash: near-copies by Jaccard similarity of n-gram sets, found through bands of minima.

Memory of a fit, in bytes for each row, at most: 2 * (8 * bands + 48), and 8 * permutations more without verification;
with it, 16 for each distinct n-gram of each distinct text that shares a band with another. While a crowd is searched
(see `crowds`) 1 200 more for each of its texts, 4 * permutations + 200 without verification. The fitted scorer holds 28
for each distinct text. Beside it 25 MB, whatever the number of rows, and 40 more where there are crowds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_prune.checks import check_count, check_number
from hf_prune.columns import ScoreColumn
from hf_prune.data.batch import Batch
from hf_prune.data.lookup import find
from hf_prune.data.reading import texts_of
from hf_prune.data.types import OnBad, Rows
from hf_prune.dedup._reading import cluster_ids, facts_of, fitted_rows, null_rows
from hf_prune.dedup.bands import Sketch, band_probability, optimal_bands
from hf_prune.dedup.duplicates import Duplicates
from hf_prune.dedup.neighbors import Neighbors, Reference, link
from hf_prune.dedup.shingles import Unit, similarities
from hf_prune.dedup.signed import Estimated, Signed, Verified, sets_of
from hf_prune.scorer import TextScorer

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, eq=False)
class MinHashDedup(TextScorer):
    """1 - Jaccard similarity to the nearest other row, and the cluster of near-copies. High = unlike others = keep.

    With A_i the set of n-grams of row i,

        score_i = 1 - max over j != i of J(A_i, A_j),    J(A, B) = |A and B| / |A or B|,

    where only those j count that share a band with i. A random order of all n-grams has the same first one (the
    minimum of its hashes) in A and in B with the chance J(A, B); so two rows share at least one of b bands of r such
    minima with the chance

        1 - (1 - J ** r) ** b,

    which is near 0 far below the threshold and near 1 above it: `band_probability` says with what chance a near-copy
    is missed, and a row that shares no band scores 1. Where a text shares a band with more than 64 others, a crowd
    (boilerplate makes them), it is compared with those whose minima look most like its own: near-copies in crowds of
    any size are missed no more often than the bands miss them (see `crowds`), and the score of a row without
    near-copies may be a little high. Time is linear in the number of rows.

    Which row of a cluster stays is decided by pruning: `filter_by_score(ds, "minhash", keep=1.0,
    one_per="minhash_cluster")`, or by any other score column. Exact copies have one score (0) and one cluster. A text
    without a single token has no n-grams: only its exact copies are near it. Scoring a text that was not there when
    fitting is an error, unless there is a `reference`.

    Args:
        neighbors: what the fit learned: the neighbors of each text, or the reference to compare with.
        text: column, list of columns (joined by a space), nested path `column.field`, or column of chats; "text" by
            default.
        threshold: Jaccard similarity from which two texts are near-copies, in (0, 1]; 0.8 by default.
        sketch: n-grams and bands.
        verify: whether near-copies have at least this true Jaccard similarity (of 64-bit hashes of the n-grams), and
            so has the score (the default); else whatever shares a band is a near-copy, and similarities are estimates
            from the minima.
        on_bad: what becomes of a null: "nan" (the default) for NaN, cluster -1 and count 0, or "raise" an error.
        name: score column, "minhash" by default; `<name>_cluster` and `<name>_count` stand beside it.
        fitted_on: what it was fitted on, and what was found.

    Raises:
        ValueError: a text that was not fitted, or a null with on_bad="raise".

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

    neighbors: Neighbors | Reference
    _: KW_ONLY
    text: str | tuple[str, ...] = "text"
    threshold: float = 0.8
    sketch: Sketch = Sketch()
    verify: bool = True
    on_bad: OnBad = "nan"
    name: str = "minhash"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        super().check_fields()
        check_threshold(self.threshold)
        if isinstance(self.neighbors, Reference) and len(self.neighbors.band_keys) != self.sketch.bands:
            raise ValueError(
                f"{len(self.neighbors.band_keys)} bands of the reference, {self.sketch.bands} of the sketch"
            )

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, by how it was measured."""
        what = "similarity" if self.verify else "similarity, estimated from minima,"
        other = "reference row" if isinstance(self.neighbors, Reference) else "other row that shares a band of minima"
        return f"Jaccard {what} of n-gram sets to the nearest {other}; the column is 1 - it. NaN for a null text"

    @classmethod
    def fit(
        cls,
        ds: Rows | None,
        *,
        text: str | Sequence[str] = "text",
        threshold: float = 0.8,
        reference: Any = None,
        ngram: int = 5,
        unit: Unit = "word",
        lower: bool = True,
        permutations: int = 128,
        bands: int | None = None,
        band_rows: int | None = None,
        missed_weight: float | None = None,
        verify: bool = True,
        max_cluster: int | None = None,
        seed: int = 0,
        on_bad: OnBad = "nan",
        name: str = "minhash",
    ) -> Self:
        """Find the near-copies among the rows of a dataset; the same for any order of them.

        Args:
            ds: `Dataset` or `IterableDataset`, read twice with `verify`, else once. Not read if there is a reference.
            text: column, list of columns, nested path, or column of chats; "text" by default.
            threshold: Jaccard similarity from which two texts are near-copies, in (0, 1]; 0.8 by default.
            reference: dataset to compare with instead (contamination: an evaluation set), None by default. Then any
                text can be scored; its cluster is that of the nearest reference row at the threshold, its count the
                reference rows there, exact but for what the bands miss. Time grows with how many share a band.
            ngram: number of tokens of an n-gram, 5 by default.
            unit: what a token is: "word" (the default), "token" (punctuation too) or "char": see `words.tokens`.
            lower: whether case does not count; True by default.
            permutations: number of minima of a signature, 128 by default.
            bands: number of bands; None, the default, takes the best split of the minima (`optimal_bands`).
            band_rows: number of minima of a band, given with `bands`; None by default.
            missed_weight: weight of missed pairs in the choice of the split, in [0, 1]; by default 0.95 with `verify`,
                where a pair compared in vain costs time only, and 0.5 without.
            verify: whether the true similarity of every pair that shares a band is computed; True by default.
            max_cluster: largest number of distinct texts in a cluster, None (the default) for any; larger ones are
                cut, the most similar pairs stay together.
            seed: integer that the permutations are drawn by, 0 by default.
            on_bad: what becomes of a null: "nan" (the default) or "raise".
            name: score column, "minhash" by default.

        Returns:
            The scorer of these rows; `summary()` says what was found.

        Raises:
            MissingColumnError: no such column.
            ValueError: a threshold outside (0, 1], an empty dataset, a bad split; a null with on_bad="raise".

        >>> from datasets import Dataset
        >>> MinHashDedup.fit(Dataset.from_dict({"text": ["a b c", "a b c", "d"]})).fitted_on["removable"]
        1
        """
        check_threshold(threshold)
        check_count("max_cluster", max_cluster, optional=True)
        b, r = _split(threshold, permutations, bands, band_rows, missed_weight, verify)
        sketch, who = Sketch(ngram=ngram, unit=unit, lower=lower, bands=b, band_rows=r, seed=seed), cls.__name__
        source = ds if reference is None else reference
        signed = Signed.of(source, text, sketch, who, signatures=not verify and reference is None)
        facts = facts_of(signed.digests, signed.copies, signed.nulls, text, who, on_bad if reference is None else "nan")
        neighbors: Neighbors | Reference
        if reference is not None:
            neighbors = Reference.of(signed, sets_of(source, text, sketch, who, signed.digests))
            facts["compared_with"] = "reference"
        else:
            measure = Verified.of(source, text, sketch, who, signed) if verify else Estimated(signed.signatures)
            neighbors, refused = link(signed, measure, threshold if verify else -1.0, max_cluster)
            facts |= neighbors.facts(threshold) | ({"refused_edges": refused} if max_cluster else {})
        return cls(
            neighbors=neighbors,
            text=text if isinstance(text, str) else tuple(text),
            threshold=threshold,
            sketch=sketch,
            verify=verify,
            on_bad=on_bad,
            name=name,
            fitted_on=facts,
        )

    def columns(self) -> dict[str, str]:
        return {self.name: "float32", f"{self.name}_cluster": "int64", f"{self.name}_count": "int32"}

    def companions(self) -> dict[str, str]:
        if isinstance(self.neighbors, Reference):
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
        params = {name: value for name, value in column.params.items() if name not in ("neighbors", "sketch")}
        how = {field.name: getattr(self.sketch, field.name) for field in fields(self.sketch)}
        return replace(column, params=params | how)

    def score(self, batch: Batch, rank: int | None) -> Any:
        texts = texts_of(batch, self.text)
        self.check_bad(null_rows(texts))
        if isinstance(self.neighbors, Reference):
            distance, cluster, count = self._compare(texts.array, texts.digests, self.neighbors)
        else:
            known = self.neighbors
            at = fitted_rows(batch, texts, known.keys, self.text)
            distance, count = known.distance[at], known.n_rows[at]
            cluster = cluster_ids(known.keys[known.leader[at]])
        return {
            self.name: np.where(texts.null, np.nan, distance),
            f"{self.name}_cluster": np.where(texts.null, -1, cluster),
            f"{self.name}_count": np.where(texts.null, 0, count),
        }

    def similarity(self, left: Any, right: Any) -> NDArray[np.float64]:
        """True Jaccard similarity (p,) of rows and rows, two batches of equal length; 1 of equal texts.

        Args:
            left: p rows, as a dict of columns, an Arrow table or a data frame.
            right: p rows to compare them with, one by one.
        """
        x, y = (texts_of(Batch(rows, type(self).__name__), self.text) for rows in (left, right))
        every = np.arange(len(x.digests))
        jaccard = similarities(every, every, self.sketch.sets(x.array, every), self.sketch.sets(y.array, every))
        return np.where(x.digests == y.digests, 1.0, jaccard)

    def clusters(self) -> Dataset:
        """The clusters of more than one distinct text as a `Dataset`, the chains first.

        A chain is a cluster whose ends are not near-copies: a is near b and b near c, but a not near c.

        Returns:
            Columns "cluster"; "rows" and "texts", how many are in it; "lowest", the lowest similarity of a member to
            the text with the lowest digest; a chain has it below the threshold.

        Raises:
            TypeError: it compares with a reference, which has no clusters.
        """
        from datasets import Dataset

        if isinstance(self.neighbors, Reference):
            raise TypeError("a MinHashDedup with a reference has no clusters; fit without reference=")
        known = self.neighbors
        heads = known.heads(known.n_texts)
        lowest = known.lowest(heads)
        order = np.lexsort((known.keys[heads], lowest))
        columns = {
            "cluster": cluster_ids(known.keys[heads]),
            "rows": known.n_rows[heads],
            "texts": known.n_texts[heads],
            "lowest": lowest,
        }
        return Dataset.from_dict({name: values[order] for name, values in columns.items()})

    def summary(self) -> Duplicates:
        """What the fit found: rows, clusters, what can be removed, and what the bands miss.

        >>> from datasets import Dataset
        >>> MinHashDedup.fit(Dataset.from_dict({"text": ["a b c", "a b c", "d"]}), ngram=1).summary()
        Duplicates
          rows                 3
          texts                2
          clusters             1
          removable            1
          removable share      0.3333
          largest cluster      2
          chains               0
          threshold            0.8
          missed at threshold  0.05295
        """
        shared = band_probability(self.threshold, self.sketch.bands, self.sketch.band_rows)
        return Duplicates.of(self.fitted_on, threshold=self.threshold, missed_at_threshold=float(1 - shared))

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
    check_number("threshold", threshold, 0, 1, open_low=True)


def _split(
    threshold: float, permutations: int, bands: int | None, band_rows: int | None, weight: float | None, verify: bool
) -> tuple[int, int]:
    """Number of bands and of minima of each: those given, or the best for a number of permutations."""
    if (bands is None) != (band_rows is None):
        raise ValueError(
            f"bands={bands}, band_rows={band_rows}: give both, or neither for the best split of permutations"
        )
    check_count("permutations", permutations)
    if bands is not None and band_rows is not None:
        return bands, band_rows
    return optimal_bands(threshold, permutations, weight if weight is not None else 0.95 if verify else 0.5)
