"""Exact copies: texts with the same bytes, as they are or normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hf_prune.checks import check_parallel
from hf_prune.data import identity
from hf_prune.data.batch import Batch
from hf_prune.data.lookup import find
from hf_prune.data.reading import Texts, text_blocks, texts_of
from hf_prune.data.texts import columns_of
from hf_prune.dedup._reading import cluster_ids, emptied, facts_of, fitted_rows
from hf_prune.dedup.shingles import buffers
from hf_prune.scorer import Scorer

NORMALIZATIONS = ("unicode", "case", "punctuation", "space")


def normalized(array: pa.Array, steps: Sequence[str]) -> pa.Array:
    """Strings without what does not count.

    Args:
        array: of strings.
        steps: any of "unicode" (NFKC), "case" (lower), "punctuation" (signs and symbols become spaces) and "space"
            (white space becomes one space, none at the ends), done in this order.

    >>> normalized(pa.array([" The  Cat!"]), ["case", "punctuation", "space"])[0].as_py()
    'the cat'
    """
    if "unicode" in steps:
        array = pc.utf8_normalize(array, "NFKC")
    if "case" in steps:
        array = pc.utf8_lower(array)
    if "punctuation" in steps:
        array = pc.replace_substring_regex(array, r"[\pP\pS]+", " ")
    if "space" in steps:
        array = pc.utf8_trim_whitespace(pc.replace_substring_regex(array, r"[\s\pZ]+", " "))
    return array


@dataclass(frozen=True, eq=False)
class ExactDedup(Scorer):
    """1 - similarity to the nearest other row: 0 for a row with an exact copy, 1 for any other. High = unique = keep.

    Which copy stays is decided by pruning: `filter_by_score(ds, "exact", keep=1.0, one_per="exact_cluster")`, or by
    any other score column.

    Args:
        keys: (m,) 64-bit digests of the distinct texts, ascending.
        copies: (m,) rows that have the text.
        text: column, columns (joined by a space), nested path, or chat column.
        normalize: what is done to texts before they are compared; any of "unicode", "case", "punctuation", "space".
        reference: compare with the rows that were fitted, not with each other; then any text can be scored, and scores
            0 if it is among them.
        name: score column; `<name>_cluster` and `<name>_count` stand beside it.
        fitted_on: what it was fitted on.

    A null scores NaN (cluster -1, count 0); all empty texts are copies of each other.

    Raises:
        ValueError: a text that was not there when fitting, unless `reference`.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"text": ["a dog", "a cat", "A dog "]})
    >>> {k: v.tolist() for k, v in ExactDedup.fit(ds, normalize=("case", "space"))(ds[:]).items() if "cluster" not in k}
    {'exact': [0.0, 1.0, 0.0], 'exact_count': [2, 1, 2]}
    """

    version: ClassVar[int] = 2
    meaning: ClassVar[str] = "no other row has the same text"
    raw: ClassVar[str] = "1 if another row has the same text, else 0; the column is 1 - it. NaN for a null text"
    nan_rows: ClassVar[bool] = True

    keys: np.ndarray
    copies: np.ndarray
    text: str | tuple[str, ...] = "text"
    normalize: tuple[str, ...] = ()
    reference: bool = False
    name: str = "exact"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        check_parallel("ExactDedup", keys=self.keys, copies=self.copies)
        columns_of(self.text)
        _check_steps(self.normalize)

    @classmethod
    def fit(
        cls,
        ds: Any,
        text: str | Sequence[str] = "text",
        *,
        reference: Any = None,
        normalize: Sequence[str] = (),
        name: str = "exact",
    ) -> Self:
        """Count the rows that have each text.

        Memory: 33 bytes a row while it runs, beside what a block of rows takes; 12 a distinct text stay.

        Args:
            ds: `Dataset` or `IterableDataset`, read once. Not read if there is a reference.
            text, normalize, name: of the scorer.
            reference: dataset to compare with instead (contamination: an evaluation set).

        Raises:
            TypeError: `normalize` is no name and no list of names.
            ValueError: an empty dataset, an unknown normalisation, or two different texts with one digest, which takes
                thousands of millions of them.
        """
        steps = _check_steps(normalize)
        digests, checks, nulls = [], [], 0
        for block in text_blocks(ds if reference is None else reference, text, f"{cls.__name__}.fit"):
            array, found = _digests(block, steps)
            digests.append(found[~block.null])
            checks.append(_checks(array)[~block.null])
            nulls += int(block.null.sum())
        keys, copies = counted(digests, checks)
        facts = facts_of(keys, copies, nulls, text)
        column = text if isinstance(text, str) else tuple(text)
        return cls(keys, copies, column, steps, reference is not None, name, facts)

    def columns(self) -> dict[str, str]:
        return {self.name: "float32", f"{self.name}_cluster": "int64", f"{self.name}_count": "int32"}

    def companions(self) -> dict[str, str]:
        rows_ = "reference rows" if self.reference else "rows"
        return {
            f"{self.name}_cluster": "id of the text: rows with the same one are copies",
            f"{self.name}_count": f"{rows_} that have the text",
        }

    def score(self, batch: Batch, rank: int | None) -> Any:
        texts = texts_of(batch, self.text)
        array, digests = _digests(texts, self.normalize)
        if self.reference:
            at = find(self.keys, digests)
            count = np.where(at < 0, 0, self.copies[at])
        else:
            at = fitted_rows(batch, texts._replace(array=array, digests=digests), self.keys, self.text)
            count = self.copies[at]
        alone = count < (1 if self.reference else 2)
        return {
            self.name: np.where(texts.null, np.nan, alone),
            f"{self.name}_cluster": np.where(texts.null, -1, cluster_ids(digests)),
            f"{self.name}_count": np.where(texts.null, 0, count),
        }

    def similarity(self, left: Any, right: Any) -> NDArray[np.float64]:
        """1 where rows and rows, two batches of equal length, have the same text, else 0; (p,)."""
        x, y = (texts_of(Batch(rows_, type(self).__name__), self.text) for rows_ in (left, right))
        return np.asarray(_digests(x, self.normalize)[1] == _digests(y, self.normalize)[1], np.float64)


def counted(
    digests: list[NDArray[np.uint64]], checks: list[NDArray[np.uint64]]
) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Distinct digests (m,), ascending, and how often each occurs.

    Args:
        digests: of rows, some at a time. The list is emptied, so that no two copies of them are held.
        checks: second hashes of the same rows, likewise.

    Raises:
        ValueError: rows of one digest and different second hashes.
    """
    every = emptied(digests)
    order = np.argsort(every)
    every = every[order]
    check = emptied(checks)[order]
    del order
    new = np.append(True, every[1:] != every[:-1])
    if (check[1:] != check[:-1])[~new[1:]].any():
        raise ValueError("two different texts have the same 64-bit digest; compare the dataset in two parts")
    del check
    rows_, keys = len(every), every[new]
    del every
    first = np.flatnonzero(new)
    copies = np.full(len(first), rows_ - first[-1], np.int32)
    np.subtract(first[1:], first[:-1], out=copies[:-1], casting="unsafe")
    return keys, copies


def _check_steps(steps: Any) -> tuple[str, ...]:
    given = (steps,) if isinstance(steps, str) else steps
    choice = ", ".join(map(repr, NORMALIZATIONS))
    if not isinstance(given, (tuple, list)):
        raise TypeError(f"normalize={steps!r} names no step; give any of {choice}, as in normalize=('case', 'space')")
    if unknown := [s for s in given if s not in NORMALIZATIONS]:
        raise ValueError(f"normalize={unknown[0]!r} is not known; choose any of {choice}")
    return tuple(given)


def _digests(texts: Texts, steps: tuple[str, ...]) -> tuple[pa.Array, NDArray[np.uint64]]:
    if not steps:
        return texts.array, texts.digests
    array = normalized(texts.array, steps)
    return array, identity.digests(array)


def _checks(array: pa.Array) -> NDArray[np.uint64]:
    """A second hash of each text (n,), independent of its digest."""
    from hf_prune.dedup import _kernels

    data, offsets = buffers(array)
    return _kernels.byte_hashes(data, offsets)
