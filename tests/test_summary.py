"""Summaries: what is printed and what a notebook shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from hf_prune.summary import Summary


@dataclass(frozen=True, repr=False)
class Sizes(Summary):
    title: ClassVar[str] = "Sizes <of> clusters"
    rows: int
    share: float = field(metadata={"unit": "of all"})
    largest: tuple[int, ...] = ()
    names: dict[str, float] | None = None
    label: str | None = None


def test_lines():
    shown = Sizes(rows=1234567, share=1 / 3, largest=(3000, 2), names={"a\x1b[31m": 0.5}, label="x\ny")
    assert str(shown) == repr(shown)
    assert str(shown).split("\n") == [
        "Sizes <of> clusters",
        "  rows     1 234 567",
        "  share    0.3333 of all",
        "  largest  3 000, 2",
        f"  names    {shown.lines()[3][1]}",
        f"  label    {shown.lines()[4][1]}",
    ]
    assert "\x1b" not in str(shown) and shown.lines()[3][1].endswith(": 0.5")


def test_what_is_none_is_left_out_and_html_is_escaped():
    page = Sizes(rows=1, share=0.5, label="<script>")._repr_html_()
    assert "names" not in page and "&lt;script&gt;" in page and "&lt;of&gt;" in page and "<script>" not in page


def test_frozen():
    with pytest.raises(AttributeError):
        Sizes(rows=1, share=0.5).rows = 2  # type: ignore[misc]
