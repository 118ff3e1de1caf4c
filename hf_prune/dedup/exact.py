"""Exact copies: texts with the same bytes, as they are or without what does not count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, Self, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hf_prune.checks import check_choice, check_parallel
from hf_prune.data import identity
from hf_prune.data.batch import Batch
from hf_prune.data.lookup import find
from hf_prune.data.reading import Texts, text_blocks, texts_of
from hf_prune.data.types import OnBad, Rows
from hf_prune.dedup._reading import cluster_ids, emptied, facts_of, fitted_rows, null_rows
from hf_prune.dedup.duplicates import Duplicates
from hf_prune.dedup.shingles import buffers
from hf_prune.scorer import TextScorer

Ignore: TypeAlias = Literal["unicode", "case", "punctuation", "space"]


def simplified(array: pa.Array, ignore: Sequence[str]) -> pa.Array:
    """Strings without what does not count.

    Args:
        array: strings.
        ignore: any of "unicode" (NFKC), "case" (lower case), "punctuation" (signs and symbols become spaces) and
            "space" (white space becomes one space, none at the ends), done in this order.

    >>> simplified(pa.array([" The  Cat!"]), ["case", "punctuation", "space"])[0].as_py()
    'the cat'
    """
    if "unicode" in ignore:
        array = pc.utf8_normalize(array, "NFKC")
    if "case" in ignore:
        array = pc.utf8_lower(array)
    if "punctuation" in ignore:
        array = pc.replace_substring_regex(array, r"[\pP\pS]+", " ")
    if "space" in ignore:
        array = pc.utf8_trim_whitespace(pc.replace_substring_regex(array, r"[\s\pZ]+", " "))
    return array


@dataclass(frozen=True, eq=False)
class ExactDedup(TextScorer):
    """1 - similarity to the nearest other row: 0 for a row with an exact copy, 1 for any other. High = unique = keep.

    With x_i the text of row i,

        score_i = 1 - max over j != i of [x_i = x_j].

    Which copy stays is decided by pruning: `filter_by_score(ds, "exact", keep=1.0, one_per="exact_cluster")`, or by
    any other score column. All empty texts are copies of each other.

    Args:
        keys: (m,) 64-bit digests of the distinct texts, ascending.
        copies: (m,) number of rows that have the text.
        text: column, list of columns (joined by a space), nested path `column.field`, or column of chats; "text" by
            default.
        ignore: what does not count when texts are compared; any of "unicode", "case", "punctuation", "space". Nothing
            by default.
        reference: whether rows are compared with the rows that were fitted, not with each other (False by default);
            then any text can be scored, and scores 0 if it is among them.
        on_bad: what becomes of a null: "nan" (the default) for NaN, cluster -1 and count 0, or "raise" an error.
        name: score column, "exact" by default; `<name>_cluster` and `<name>_count` stand beside it.
        fitted_on: what it was fitted on.

    Raises:
        ValueError: a text that was not there when fitting, unless `reference`; or a null with on_bad="raise".

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"text": ["a dog", "a cat", "A dog "]})
    >>> {k: v.tolist() for k, v in ExactDedup.fit(ds, ignore=("case", "space"))(ds[:]).items() if "cluster" not in k}
    {'exact': [0.0, 1.0, 0.0], 'exact_count': [2, 1, 2]}
    """

    version: ClassVar[int] = 2
    meaning: ClassVar[str] = "no other row has the same text"
    raw: ClassVar[str] = "1 if another row has the same text, else 0; the column is 1 - it. NaN for a null text"

    keys: np.ndarray
    copies: np.ndarray
    _: KW_ONLY
    text: str | tuple[str, ...] = "text"
    ignore: tuple[str, ...] = ()
    reference: bool = False
    on_bad: OnBad = "nan"
    name: str = "exact"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        super().check_fields()
        check_parallel("ExactDedup", keys=self.keys, copies=self.copies)
        _check_ignore(self.ignore)

    @classmethod
    def fit(
        cls,
        ds: Rows | None,
        *,
        text: str | Sequence[str] = "text",
        reference: Any = None,
        ignore: Ignore | Sequence[Ignore] = (),
        on_bad: OnBad = "nan",
        name: str = "exact",
    ) -> Self:
        """Count the rows that have each text.

        Memory: 33 bytes a row while it runs, beside what a block of rows takes; 12 a distinct text stay.

        Args:
            ds: `Dataset` or `IterableDataset`, read once. Not read if there is a reference.
            text: column, list of columns, nested path, or column of chats; "text" by default.
            reference: dataset to compare with instead (contamination: an evaluation set); None by default.
            ignore: what does not count when texts are compared; any of "unicode", "case", "punctuation", "space".
                Nothing by default.
            on_bad: what becomes of a null: "nan" (the default) or "raise".
            name: score column, "exact" by default.

        Returns:
            The scorer of these rows; `summary()` says what was found.

        Raises:
            MissingColumnError: no such column.
            TypeError: `ignore` is no name and no list of names.
            ValueError: an empty dataset, an unknown name in `ignore`, a null with on_bad="raise", or two different
                texts with one digest, as may be among thousands of millions of them.

        >>> from datasets import Dataset
        >>> ExactDedup.fit(Dataset.from_dict({"text": ["a", "b", "a"]})).copies.sum()
        np.int64(3)
        """
        steps = _check_ignore(ignore)
        digests, checks, nulls = [], [], 0
        for block in text_blocks(ds if reference is None else reference, text, f"{cls.__name__}.fit"):
            array, new = _digests(block, steps)
            digests.append(new[~block.null])
            checks.append(_checks(array)[~block.null])
            nulls += int(block.null.sum())
        keys, copies = counted(digests, checks)
        facts = facts_of(keys, copies, nulls, text, cls.__name__, on_bad if reference is None else "nan")
        return cls(
            keys=keys,
            copies=copies,
            text=text if isinstance(text, str) else tuple(text),
            ignore=steps,
            reference=reference is not None,
            on_bad=on_bad,
            name=name,
            fitted_on=facts,
        )

    def columns(self) -> dict[str, str]:
        return {self.name: "float32", f"{self.name}_cluster": "int64", f"{self.name}_count": "int32"}

    def companions(self) -> dict[str, str]:
        whose = "reference rows" if self.reference else "rows"
        return {
            f"{self.name}_cluster": "id of the text: rows with the same one are copies",
            f"{self.name}_count": f"{whose} that have the text",
        }

    def score(self, batch: Batch, rank: int | None) -> Any:
        texts = texts_of(batch, self.text)
        self.check_bad(null_rows(texts))
        array, digests = _digests(texts, self.ignore)
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
        """1 where rows and rows, two batches of equal length, have the same text, else 0; (p,).

        Args:
            left: p rows, as a dict of columns, an Arrow table or a data frame.
            right: p rows to compare them with, one by one.
        """
        x, y = (texts_of(Batch(rows, type(self).__name__), self.text) for rows in (left, right))
        return np.asarray(_digests(x, self.ignore)[1] == _digests(y, self.ignore)[1], np.float64)

    def summary(self) -> Duplicates:
        """What the fit found: rows, clusters of copies, and what can be removed.

        >>> from datasets import Dataset
        >>> ExactDedup.fit(Dataset.from_dict({"text": ["a", "b", "a", None]})).summary()
        Duplicates
          rows             4
          texts            2
          nulls            1
          clusters         1
          removable        1
          removable share  0.25
          largest cluster  2
        """
        if self.reference:
            return Duplicates.of(self.fitted_on, compared_with="reference")
        found = {"clusters": int((self.copies > 1).sum()), "removable": int(self.copies.sum()) - len(self.copies)}
        return Duplicates.of(self.fitted_on, **found, largest=int(self.copies.max(initial=0)))


def counted(
    digests: list[NDArray[np.uint64]], checks: list[NDArray[np.uint64]]
) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Distinct digests (m,), ascending, and how often each occurs.

    Args:
        digests: digests of rows, some at a time. The list is emptied, so that no two copies of them are held.
        checks: second hashes of the same rows, some at a time. The list is emptied likewise.

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
    total, keys = len(every), every[new]
    del every
    first = np.flatnonzero(new)
    copies = np.full(len(first), total - first[-1], np.int32)
    np.subtract(first[1:], first[:-1], out=copies[:-1], casting="unsafe")
    return keys, copies


def _check_ignore(ignore: Any) -> tuple[str, ...]:
    names = (ignore,) if isinstance(ignore, str) else ignore
    choices = get_args(Ignore)
    if not isinstance(names, (tuple, list)):
        listed = ", ".join(map(repr, choices))
        raise TypeError(f"ignore={ignore!r} is no list of names; give any of {listed}, as in ignore=('case', 'space')")
    for name in names:
        check_choice("ignore", name, choices)
    return tuple(names)


def _digests(texts: Texts, ignore: tuple[str, ...]) -> tuple[pa.Array, NDArray[np.uint64]]:
    """Texts without what does not count, and the digests (n,) by which they are compared."""
    if not ignore:
        return texts.array, texts.digests
    array = simplified(texts.array, ignore)
    return array, identity.digests(array)


def _checks(array: pa.Array) -> NDArray[np.uint64]:
    """A second hash of each text (n,), independent of its digest."""
    from hf_prune.dedup import _kernels

    data, offsets = buffers(array)
    out = np.empty(len(array), np.uint64)
    _kernels.byte_hashes(data, offsets, out)
    return out
