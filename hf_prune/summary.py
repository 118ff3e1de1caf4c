"""`Summary`: what a fitted scorer or a log holds, as a thing to look at."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from hf_prune.shown import printable


@dataclass(frozen=True, repr=False)
class Summary:
    """Base of summaries: a frozen dataclass that prints one line a field, and shows as a table in a notebook.

    A field that is None is left out. A field's `metadata={"unit": ...}` stands behind its value.

    Attributes:
        title: the line above the fields.

    >>> @dataclass(frozen=True, repr=False)
    ... class Duplicates(Summary):
    ...     title: ClassVar[str] = "Near-duplicates"
    ...     rows: int
    ...     removable: int
    ...     threshold: float | None = None
    >>> Duplicates(rows=12000, removable=300)
    Near-duplicates
      rows       12 000
      removable  300
    """

    title: ClassVar[str] = ""

    def lines(self) -> list[tuple[str, str]]:
        """Names and values of the fields, as they are shown."""
        return [
            (f.name.replace("_", " "), _text(value) + (f" {f.metadata['unit']}" if "unit" in f.metadata else ""))
            for f in fields(self)
            if (value := getattr(self, f.name)) is not None
        ]

    def __str__(self) -> str:
        lines = self.lines()
        width = max((len(name) for name, _ in lines), default=0)
        return "\n".join([self.title or type(self).__name__, *(f"  {name:<{width}}  {value}" for name, value in lines)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(n)}</th><td>{html.escape(v)}</td></tr>" for n, v in self.lines())
        return f"<table><caption>{html.escape(self.title or type(self).__name__)}</caption>{rows}</table>"


def _text(value: Any) -> str:
    """A value on one line: digits of whole numbers in groups, four significant digits of others."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{printable(str(k))}: {_text(v)}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_text, value))
    return printable(str(value))
