"""The ids of a log's rows: one 64-bit key each, in whose order everything lies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_prune.data import identity
from hf_prune.data.lookup import find
from hf_prune.dynamics.format import SHOWN


class RowIds:
    """The ids of n rows and their keys, in ascending order of the keys.

    Args:
        ids: ids of the rows: a list, an array or an Arrow column.
        row_id: column of the dataset that they come from, for messages.

    Attributes:
        keys: digests of the ids, (n,) uint64 in ascending order.
        order: index among `ids` of the row of each key, (n,).

    Raises:
        ValueError: no rows; ids that are null or repeated.

    >>> ids = RowIds(["a", "b"], "row_id")
    >>> [ids.of(row) for row in ids.positions(["b", "a"])]
    ['b', 'a']
    """

    def __init__(self, ids: Any, row_id: str) -> None:
        given = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else _arrow(ids)
        if not len(given):
            raise ValueError("there are no rows to record; give the ids of the dataset")
        if given.null_count:
            raise ValueError(
                f"{counted(given.null_count, 'id')} null in column {row_id!r}; fill it, as with_row_id(ds) does"
            )
        keys = identity.digests(given)
        self.given, self.row_id = given, row_id
        self.order: NDArray[np.int64] = np.argsort(keys, kind="stable")
        self.keys: NDArray[np.uint64] = keys[self.order]
        if (self.keys[1:] == self.keys[:-1]).any():
            identity.check_unique(given)
            raise ValueError(f"two ids of column {row_id!r} have one 64-bit digest; change one of them")

    def __len__(self) -> int:
        return len(self.keys)

    def of(self, row: Any) -> Any:
        """The id of a row of the log."""
        return self.given[int(self.order[int(row)])].as_py()

    def listed(self, rows: Iterable[Any], count: int) -> str:
        """The first ids of `count` rows, for a message."""
        return listed([self.of(row) for row in list(rows)[:SHOWN]], count)

    def positions(self, ids: Any) -> NDArray[np.int64]:
        """Rows of the log (m,) that have these ids.

        Raises:
            ValueError: an id is not in the log; the message lists the first.
        """
        rows = find(self.keys, identity.digests(ids))
        lost = np.flatnonzero(rows < 0)
        if len(lost):
            raise ValueError(
                f"{counted(len(lost), 'id')} not in the log: {listed([ids[int(i)] for i in lost[:SHOWN]], len(lost))}; "
                f"record the dataset that the log was made for, with its column {self.row_id!r}"
            )
        return rows

    def labels(self, labels: Any) -> NDArray[np.int64]:
        """Labels that were given one for each id, (n,) in the order of the keys.

        Raises:
            TypeError: they are not integers.
            ValueError: they are not n.
        """
        values = np.asarray(labels.tolist() if hasattr(labels, "tolist") else labels)
        if values.dtype.kind not in "biu":
            raise TypeError(f"labels of type {values.dtype} are no classes; a log is of hard labels, given as integers")
        if values.shape != (len(self),):
            raise ValueError(f"labels of shape {values.shape} do not go with {len(self)} ids; give one each")
        return values.astype(np.int64)[self.order]

    def table(self, labels: NDArray[np.int64] | None) -> pa.Table:
        """What `rows.parquet` holds."""
        columns = {"key": self.keys, "id": pa.chunked_array(self.given.take(pa.array(self.order)))}
        return pa.table(columns if labels is None else {**columns, "label": labels})


def listed(ids: Sequence[Any], count: int) -> str:
    """Ids in a message, and dots where there are more.

    >>> listed(["a", "b"], 3)
    "'a', 'b', ..."
    """
    return ", ".join(map(repr, ids)) + (", ..." if count > len(ids) else "")


def counted(n: int, what: str) -> str:
    """A count with its verb.

    >>> counted(1, "id"), counted(2, "id")
    ('1 id is', '2 ids are')
    """
    return f"{n} {what} is" if n == 1 else f"{n} {what}s are"


def _arrow(ids: Any) -> pa.ChunkedArray:
    values = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    return pa.chunked_array([pa.array(values)])
