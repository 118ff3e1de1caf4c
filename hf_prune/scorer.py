"""`Scorer`: the one contract. A callable for `Dataset.map(scorer, batched=True)` that adds score columns."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

import numpy as np

from hf_prune.checks import check_choice
from hf_prune.columns import ScoreColumn
from hf_prune.data import arrow, formats
from hf_prune.data.batch import Batch
from hf_prune.data.texts import check_bad, columns_of
from hf_prune.data.types import OnBad
from hf_prune.models import Model
from hf_prune.values import Value, class_name

if TYPE_CHECKING:
    from datasets import Features

_LIST = re.compile(r"(?P<item>\w+)\[(?P<length>\d*)\]")


@dataclass(frozen=True, eq=False)
class Scorer(Value):
    """Callable for `Dataset.map(..., batched=True)`. High means keep.

    A plug-in is one frozen dataclass with a field `name` (its column) and one method, `score`. Settings and
    whatever was learned are fields; nothing is written to `self` after construction.

    Attributes:
        version: raise it when the numbers change; it is part of the hash.
        paper: one line for the card.
        meaning: one line: what a high value says.
        raw: the quantity as its source defines it, and how the column follows from it.
        atol: what "the same score" means from a stored column onwards.
        nan_rows: whether a row that cannot be scored gives NaN (then `raw` says which); else it is an error.
        calibrated_keep: the one fraction at which the score means something; None for a graded score.

    >>> @dataclass(frozen=True, eq=False)
    ... class Length(Scorer):
    ...     text: str = "text"
    ...     name: str = "length"
    ...
    ...     def score(self, batch, rank):
    ...         return [len(t) for t in batch[self.text]]
    >>> Length()({"text": ["a", "abc"]})
    {'length': array([1., 3.], dtype=float32)}
    """

    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    meaning: ClassVar[str] = ""
    raw: ClassVar[str] = ""
    atol: ClassVar[float] = 1e-6
    nan_rows: ClassVar[bool] = False
    calibrated_keep: ClassVar[float | None] = None

    if TYPE_CHECKING:

        @property
        def name(self) -> str:
            """Its column; a field of every subclass."""

    def score(self, batch: Batch, rank: int | None) -> Any:
        """Score the rows of a batch, each alone.

        Args:
            batch: read-only columns; see `Batch` for fast ways to read them.
            rank: of the worker, None for a single process; `models.device_for(rank)` turns it into a device.

        Returns:
            (n,) numbers, or {column: array} for every column that `columns` declares.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method score(self, batch, rank); write it")

    def columns(self) -> dict[str, str]:
        """Columns it writes and their types: `float32`, `int32`, `string`, `float32[384]` (fixed), `int32[]`."""
        return {self.name: "float32"}

    def companions(self) -> dict[str, str]:
        """One line for each column beside the score."""
        return {}

    def cost(self, batch: Batch) -> float:
        """Floating-point operations that scoring these rows takes: what a scorer overrides where it does arithmetic."""
        return 0.0

    def flops(self, batch: Mapping[str, Any]) -> float:
        """What scoring these rows costs, in floating-point operations; 0 where no arithmetic to speak of is done.

        Args:
            batch: rows in any form that `score` takes.
        """
        return float(self.cost(Batch(batch, type(self).__name__)))

    def __call__(self, batch: Any, rank: int | None = None) -> Any:
        """Score a batch as `map` hands it over, in whatever format: Python, NumPy, tensors, Arrow, data frames.

        Returns:
            Only the new columns, as arrays of the declared types. Of an Arrow table or a data frame the whole table, as
            Arrow, with the new columns: `map` keeps nothing else there.

        Raises:
            TypeError: the call is not that of `map(scorer, batched=True)`; the message has the remedy.
            KeyError: a column is missing; the message lists those that are there.
            ValueError: a row cannot be scored.
        """
        who = type(self).__name__
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, (int, np.integer))):
            raise TypeError(
                f"{who} got a {type(rank).__name__} as rank: with_indices=True passes positions there; "
                "call ds.map(scorer, batched=True), with with_rank=True if need be"
            )
        table = formats.as_table(batch, who) if formats.is_table(batch) else None
        view = batch if isinstance(batch, Batch) else Batch(batch if table is None else table, who)
        if len(view) and not view.n:  # of no rows nothing can be read: not the width of a vector, nor a type
            found = {name: _nothing(dtype) for name, dtype in self.columns().items()}
        else:
            written = self.score(view, None if rank is None else int(rank))
            if not isinstance(written, Mapping):
                written = {self.name: written}
            found = self._checked(written, view.n)
        if table is None:
            return found
        new = {name: arrow.to_arrow(found[name], dtype) for name, dtype in self.columns().items()}
        return formats.with_columns(table, new)

    def with_inputs(self, batch: Any) -> Any:
        """Score, and hand the batch back with the new columns: for engines that replace it (Ray Data)."""
        found = self(batch)
        return found if formats.is_table(batch) else {**batch, **found}

    def features(self, ds_features: Any = None) -> Features:
        """Give the full `Features` for `map(features=...)`: the dataset's, then the columns written here.

        Args:
            ds_features: `ds.features`, a dataset, or None (a stream that does not know its own).

        Raises:
            ValueError: a column of that name is there already.
        """
        from datasets import Features

        there = getattr(ds_features, "features", ds_features) or {}
        self.check_clash(there)
        return Features({**there, **{n: feature_of(t) for n, t in self.columns().items()}})

    def check_clash(self, there: Any) -> None:
        """Raise if one of the columns it writes is there already."""
        clash = sorted(set(there) & set(self.columns()))
        if clash:
            raise ValueError(
                f"{type(self).__name__} writes {clash}, which the dataset has already; give the scorer another "
                f"name=..., or drop the old column with ds.remove_columns({clash})"
            )

    def describe(self) -> ScoreColumn:
        """Provenance of the score column, read from the fields."""
        cls = type(self)
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        fitted = parts.pop("fitted_on", None)
        model = next((p for p in parts.values() if isinstance(p, Model)), None)
        return ScoreColumn(
            name=self.name,
            dtype=self.columns()[self.name],
            meaning=self.meaning,
            raw=self.raw,
            scorer=class_name(cls),
            version=self.version,
            params={k: _summary(v) for k, v in parts.items() if k != "name" and not isinstance(v, Model)},
            paper=self.paper,
            model=model.provenance() if model else None,
            fitted_on=dict(fitted) if fitted else None,
            calibrated_keep=self.calibrated_keep,
            companions=self.companions(),
            digest=self.digest,
            packages=package_versions(),
        )

    def save(self, folder: str | Path) -> None:
        """Write `scorer.json` and its arrays as safetensors (no pickle) into a folder, which is made.

        Killed at any moment it leaves the scorer that was there before, or this one.

        Raises:
            ValueError: the class cannot be found again by name, being defined in a notebook or a function; or a field
                holds something else than its annotation says.
            OSError: the disk is full or may not be written.
        """
        from hf_prune import saved

        saved.save(self, folder)

    @classmethod
    def load(cls, folder: str | Path, *, trust_code: bool = False) -> Self:
        """Read a scorer that `save` wrote. Nothing is run, imported or opened elsewhere that the folder names.

        `Scorer.load` finds the classes of this package and of modules that are imported already; for others call
        `load` on the class itself.

        Args:
            folder: what `save` was given.
            trust_code: let it name code that will be run: a function (`package.module:function`), a live network, what
                comes with a model of the Hub.

        Raises:
            ValueError: the files are missing or damaged, of another version, or of another class; or they name code
                and `trust_code` is off.
        """
        from hf_prune import saved

        found: Self = saved.load(folder, cls, trust_code)
        return found

    def _checked(self, written: Mapping[str, Any], n: int) -> dict[str, Any]:
        who, declared = type(self).__name__, self.columns()
        if set(written) != set(declared):
            raise ValueError(f"{who} wrote columns {sorted(written)}, but declares {sorted(declared)}")
        return {name: self._typed(name, written[name], dtype, n) for name, dtype in declared.items()}

    def _typed(self, name: str, values: Any, dtype: str, n: int) -> Any:
        who = type(self).__name__
        if hasattr(values, "detach"):
            values = values.detach().cpu().float().numpy()
        if len(values) != n:
            raise ValueError(f"{who} gave {len(values)} values for {name!r} but {n} rows; every row needs one")
        kind = _LIST.fullmatch(dtype)
        if kind is None and dtype == "string":
            return list(values)
        if kind is not None and not kind["length"]:
            return [np.asarray(v, kind["item"]) for v in values]
        width = () if kind is None else (int(kind["length"]),)
        target = np.dtype(dtype if kind is None else kind["item"])
        array = np.asarray(values)
        if array.dtype.kind not in "biuf" and n:
            raise TypeError(f"{who} gave {name!r} as {array.dtype}, but declares {dtype}; give numbers")
        if array.shape != (n, *width) and n:
            raise ValueError(f"{who} gave {name!r} in shape {array.shape}, but declares {dtype}: {(n, *width)}")
        if target.kind in "iu" and array.dtype.kind == "f":
            raise TypeError(f"{who} gave {name!r} as {array.dtype}, but declares {dtype}; round it, or declare a float")
        if array.dtype.kind == "f" and not self.nan_rows and np.isnan(array).any():
            row = int(np.flatnonzero(np.isnan(array).reshape(n, -1).any(1))[0])
            raise ValueError(f"{who}: row {row} of this batch scored NaN in {name!r}; drop or mend such rows first")
        return array.astype(target, copy=False).reshape(n, *width)


@dataclass(frozen=True, eq=False)
class TextScorer(Scorer):
    """A scorer of texts: one with the fields `text` and `on_bad`.

    Attributes:
        text: column, list of columns (joined), nested path `column.field`, or column of chats.
        on_bad: what becomes of a row that cannot be scored: "raise" an error, or "nan" for NaN.
    """

    if TYPE_CHECKING:

        @property
        def text(self) -> str | Sequence[str]:
            """Column or columns; a field of every subclass."""

        @property
        def on_bad(self) -> OnBad:
            """The policy; a field of every subclass."""

    @property
    def nan_rows(self) -> bool:  # type: ignore[override]
        """Whether a row that cannot be scored gives NaN."""
        return self.on_bad == "nan"

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that are read, in order."""
        return columns_of(self.text)

    def check_fields(self) -> None:
        """Raise a ValueError for a `text` that names no column, or another `on_bad`."""
        columns_of(self.text)
        check_choice("on_bad", self.on_bad, get_args(OnBad))

    def check_bad(self, bad: Mapping[int, str]) -> None:
        """Raise a ValueError for rows of a batch that cannot be scored, unless they get NaN.

        Args:
            bad: why, by number of the row in the batch.
        """
        check_bad(bad, self.text, self.on_bad)


def feature_of(dtype: str) -> Any:
    """Turn a declared type into a `datasets` feature.

    >>> feature_of("float32[384]")
    List(Value('float32'), length=384)
    """
    from datasets import List
    from datasets import Value as Scalar

    kind = _LIST.fullmatch(dtype)
    if kind is None:
        return Scalar(dtype)
    return List(Scalar(kind["item"]), length=int(kind["length"] or -1))


def _nothing(dtype: str) -> Any:
    """A column of a declared type without rows."""
    kind = _LIST.fullmatch(dtype)
    if dtype == "string" or (kind is not None and not kind["length"]):
        return []
    return np.empty((0,) if kind is None else (0, int(kind["length"])), dtype if kind is None else kind["item"])


def _summary(item: Any) -> Any:
    """A field as a card shows it: arrays and values by what they are, not by their content."""
    if isinstance(item, np.ndarray):
        return f"{item.dtype}{list(item.shape)}"
    if isinstance(item, Value):
        return item.describe().name if isinstance(item, Scorer) else item.digest
    if isinstance(item, (list, tuple)):
        return [_summary(v) for v in item]
    return item


def package_versions() -> dict[str, str]:
    """Versions of the libraries that scores depend on, of those that are installed."""
    names = ("hf_prune", "datasets", "numpy", "torch", "transformers", "faiss-cpu", "faiss-gpu")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
