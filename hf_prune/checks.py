"""Saying no: names and choices are checked here, where they are made and where they are read."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

_SPLIT = re.compile(r"\w+(\.\w+)*")  # the rule of `datasets`, which refuses to read back any other
_CONFIG = re.compile(r"\w[\w.-]*")
_DIGEST = re.compile(r"[0-9a-f]+")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise a ValueError that lists the choices if `value` is none of them.

    >>> check_choice("prefer", "best", ("high", "low"))
    Traceback (most recent call last):
    ...
    ValueError: prefer='best' is not known; choose one of 'high', 'low'
    """
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(map(repr, choices))}")


def check_count(name: str, value: Any, least: int = 1, *, optional: bool = False) -> None:
    """Raise a ValueError unless `value` is a whole number from `least` up, or None where it is `optional`.

    >>> check_count("k", 0)
    Traceback (most recent call last):
    ...
    ValueError: k=0 is no whole number from 1 up
    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name}={value!r} is no whole number from {least} up{', nor None' if optional else ''}")


def check_number(name: str, value: Any, low: float = -np.inf, high: float = np.inf, *, open_low: bool = False) -> None:
    """Raise a ValueError unless `value` is a finite number from `low` (above it with `open_low`) to `high`.

    >>> check_number("threshold", 1.5, 0, 1, open_low=True)
    Traceback (most recent call last):
    ...
    ValueError: threshold=1.5 is not above 0 and up to 1
    """
    number = not isinstance(value, bool) and isinstance(value, (int, float, np.integer, np.floating))
    if number and np.isfinite(value) and low <= value <= high and not (open_low and value == low):
        return
    ends = [f"above {low:g}" if open_low else f"{low:g} or more"] if low > -np.inf else []
    ends += [f"up to {high:g}"] if high < np.inf else []
    raise ValueError(f"{name}={value!r} is not {' and '.join(ends) or 'a finite number'}")


class MissingColumnError(KeyError):
    """A column that is not there; the message lists those that are."""

    def __str__(self) -> str:
        return str(self.args[0])


def missing_column(name: str, there: Sequence[str], who: str) -> MissingColumnError:
    """Build the error for a column that is not there.

    >>> raise missing_column("txt", ["text"], "DSIR.fit")
    Traceback (most recent call last):
    ...
    hf_prune.checks.MissingColumnError: DSIR.fit reads column 'txt', the rows have ['text']; did you mean 'text'?
    """
    near = get_close_matches(name, list(there), 1)
    step = f"did you mean {near[0]!r}?" if near else "name the right column, or add it first"
    said = f"{who} reads column {name!r}, the rows have" if who else f"there is no column {name!r}, there are"
    return MissingColumnError(f"{said} {sorted(there)}; {step}")


def check_column(ds: Any, name: str, who: str = "") -> None:
    """Raise a MissingColumnError unless the dataset has the column; a stream may not know its columns."""
    if ds.column_names is not None and name not in ds.column_names:
        raise missing_column(name, ds.column_names, who)


def check_columns(ds: Any, names: Sequence[str], who: str) -> list[str]:
    """The columns that must be read for `names`, each once: of a field `column.field` its column.

    Raises:
        MissingColumnError: one is not there.
    """
    there = ds.column_names
    needed = list(dict.fromkeys(n if there is None or n in there else n.split(".")[0] for n in names))
    for name in needed:
        check_column(ds, name, who)
    return needed


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn in the name of the first caller outside this package, however deep the call."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith("hf_prune."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def check_parallel(what: str, **arrays: Any) -> None:
    """Raise a ValueError unless all arrays have one dimension and one length.

    >>> check_parallel("Herding", known=np.arange(3), scores=np.zeros(2))
    Traceback (most recent call last):
    ...
    ValueError: Herding: known, scores have shapes (3,), (2,); they need one number for each row
    """
    shapes = [np.shape(array) for array in arrays.values()]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(
            f"{what}: {', '.join(arrays)} have shapes {', '.join(map(str, shapes))}; they need one number for each row"
        )


def check_places(what: str, places: Any, size: int) -> None:
    """Raise a ValueError unless `places` are whole numbers from 0 to below `size`: they are read without a look.

    >>> check_places("Spans.offsets", np.array([0, 7]), 7)
    Traceback (most recent call last):
    ...
    ValueError: Spans.offsets: 7 is no place among 7
    """
    if places.dtype.kind not in "iu":
        raise ValueError(f"{what} holds {places.dtype}, not whole numbers")
    for bad in places[(places < 0) | (places >= size)].reshape(-1)[:1]:
        raise ValueError(f"{what}: {bad} is no place among {size}")


def check_split_name(name: Any) -> str:
    """Give a split's name back if `datasets` can read it: words, joined by dots; and not "all", which means all.

    Raises:
        ValueError: it could not be read back, or would be a path.

    >>> check_split_name("dev-clean")
    Traceback (most recent call last):
    ...
    ValueError: split name 'dev-clean' cannot be read back by datasets; use letters, digits, '_' and '.', as 'dev_clean'
    """
    text = str(name)
    if text != "all" and _SPLIT.fullmatch(text):
        return text
    better = re.sub(r"\W+", "_", text).strip("_")
    better = "everything" if better == "all" else better or "train"
    raise ValueError(
        f"split name {text!r} cannot be read back by datasets; use letters, digits, '_' and '.', as {better!r}"
    )


def check_config_name(name: Any, taken: Sequence[str] = (), argument: str = "config_name") -> str:
    """Give a config's name back if it can be one, and a folder.

    >>> check_config_name("../other")
    Traceback (most recent call last):
    ...
    ValueError: config_name='../other' is no name for a config; use letters, digits, '_', '-' and '.', as 'scores'
    """
    if isinstance(name, str) and _CONFIG.fullmatch(name) and name not in taken:
        return name
    if name in taken:
        raise ValueError(f"{argument}={name!r} is the name of the data; 'scores' is usual for scores")
    raise ValueError(f"{argument}={name!r} is no name for a config; use letters, digits, '_', '-' and '.', as 'scores'")


def check_digest(text: Any, digits: int = 32) -> str:
    """Give a digest back if it is `digits` lower-case hexadecimal digits: it becomes part of a path.

    >>> check_digest("../secret")
    Traceback (most recent call last):
    ...
    ValueError: '../secret' is no digest of 32 hexadecimal digits
    """
    if isinstance(text, str) and len(text) == digits and _DIGEST.fullmatch(text):
        return text
    raise ValueError(f"{text!r} is no digest of {digits} hexadecimal digits")


def check_inside(folder: Path, name: Any) -> Path:
    """Path of the file `name` below `folder`, for names that were read from a file.

    Raises:
        ValueError: the name is absolute, climbs out of the folder, or is no plain relative path.

    >>> check_inside(Path("log"), "../other/part.parquet")
    Traceback (most recent call last):
    ...
    ValueError: '../other/part.parquet' is no name of a file in log
    """
    if isinstance(name, str) and name and not re.search(r"[\\\x00-\x1f:]", name):
        parts = PurePosixPath(name)
        if not parts.is_absolute() and ".." not in parts.parts and parts.parts:
            return folder / parts
    raise ValueError(f"{name!r} is no name of a file in {folder}")


def check_dataset(ds: Any, who: str, *, streams: bool = False) -> Any:
    """Give a dataset back if it is one whose rows can be counted and chosen; or, with `streams`, read one by one.

    Args:
        ds: what the user gave.
        who: the function it was given to, for the message.
        streams: whether an `IterableDataset` will do.

    Raises:
        TypeError: a `DatasetDict`, a stream, or no dataset at all; the message has the next step.

    >>> check_dataset({"train": ...}, "d4")
    Traceback (most recent call last):
    ...
    TypeError: d4 got a dict; choose a split, as in ds['train']
    """
    kind = type(ds).__name__
    if isinstance(ds, Mapping):
        raise TypeError(f"{who} got a {kind}; choose a split, as in ds[{next(iter(ds), 'train')!r}]")
    if hasattr(ds, "data") and hasattr(ds, "column_names"):
        return ds
    if not hasattr(ds, "take") or not hasattr(ds, "column_names"):
        raise TypeError(f"{who} needs a Dataset, not a {kind}; make one, as with Dataset.from_dict")
    if not streams:
        raise TypeError(
            f"{who} needs a Dataset, whose rows can be counted and chosen, not a stream ({kind}); take rows of a "
            "stream first: Dataset.from_list(list(ds.take(n)))"
        )
    return ds


def check_datasets(ds: Any, who: str) -> Any:
    """`check_dataset` of a dataset, or of each split of a `DatasetDict`."""
    for part in ds.values() if isinstance(ds, Mapping) else [ds]:
        check_dataset(part, who)
    return ds


class MissingSplitError(KeyError, ValueError):
    """A split that is not there; the message lists those that are."""

    def __str__(self) -> str:
        return str(self.args[0])


def chosen_splits(ds: Any, splits: str | Sequence[str] | None) -> dict[str, Any]:
    """The datasets that `splits=` means, by name of split; "" for a dataset by itself.

    One meaning for every function: of a `DatasetDict` a name, names, or "all"; None is "train".

    Raises:
        MissingSplitError: no such split, or no "train" where none is named.
        TypeError: `splits` is neither a name nor names, or a dict holds no datasets.
        ValueError: `splits` for a dataset without splits, or an empty list.
    """
    if not isinstance(ds, Mapping):
        if splits is not None:
            raise ValueError(f"splits={splits!r} is for a DatasetDict, not a {type(ds).__name__}; leave it out")
        return {"": ds}
    if not all(hasattr(part, "column_names") for part in ds.values()):
        raise TypeError(f"this needs a Dataset or a DatasetDict, not a {type(ds).__name__} of something else")
    there = list(ds)
    names = ["train"] if splits is None else there if splits == "all" else splits
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"splits={splits!r} is neither a name nor names; there are {there}, or 'all'")
    missing = [name for name in names if name not in ds]
    if missing:
        raise MissingSplitError(
            f"there is no split {', '.join(map(repr, missing))}; there are {there}: name those meant with "
            "splits=[...], or splits='all'"
        )
    if not names:
        raise ValueError(f"splits={splits!r} names no split; there are {there}")
    return {name: ds[name] for name in names}
