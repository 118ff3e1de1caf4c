"""`ScoreColumn`: who made a column, from what, and how to read it. JSON in, JSON out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hf_prune.data import files
from hf_prune.fields import check_types
from hf_prune.shown import without_tokens

SIDECAR = "score_columns.json"
FORMAT = 1
_WHAT, _REMEDY = "sidecar", "score the data again, or get the file anew"


@dataclass(frozen=True)
class ScoreColumn:
    """Provenance of one column. A scorer writes one with `describe()`; a card and a sidecar are made of them.

    Args:
        name: the column.
        dtype: its type, as in `datasets.Value`, or `list<float32>[384]` for an embedding.
        meaning: one line: what a high value says about a row. High always means keep.
        raw: the quantity as its paper defines it, and how the column follows from it.
        scorer: `package.module:Class` that wrote it; None when nobody knows.
        version: version of that class's numbers.
        params: its plain fields.
        paper: one line for the card.
        model: source, revision and digest of the network, if one was used.
        fitted_on: rows, columns and fingerprint of the data it was fitted on, if it was fitted.
        data: name and revision of the data that was scored, if known.
        calibrated_keep: the one fraction at which the score means something; None for a graded score.
        companions: other columns of the same scorer, by name, with one line each.
        digest: identity of the scorer's value (class, version, fields, arrays).
        packages: versions of the libraries that the numbers depend on.

    >>> ScoreColumn(name="quality").known
    False
    >>> ScoreColumn.from_json(ScoreColumn(name="el2n", version=2).to_json()).version
    2
    """

    name: str
    dtype: str = "float32"
    meaning: str = ""
    raw: str = ""
    scorer: str | None = None
    version: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    model: Mapping[str, Any] | None = None
    fitted_on: Mapping[str, Any] | None = None
    data: Mapping[str, Any] | None = None
    calibrated_keep: float | None = None
    companions: Mapping[str, str] = field(default_factory=dict)
    digest: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether somebody said who made the column."""
        return self.scorer is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, empty entries left out; no tokens but in the names of columns, which stay what they are."""
        found = {k: v for k, v in asdict(self).items() if v not in (None, "", {})}
        clean: dict[str, Any] = {k: v if k in ("name", "companions") else without_tokens(v) for k, v in found.items()}
        if self.companions:
            clean["companions"] = {k: without_tokens(v) for k, v in self.companions.items()}
        return clean

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> ScoreColumn:
        """Read what `to_dict` wrote; entries of a later format that this version does not know are left out.

        Raises:
            ValueError: it is no such thing.
        """
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise ValueError(f"{str(entry)[:200]!r} is not a score column: it has no name")
        known = {f.name for f in fields(cls)}
        found = cls(**{k: v for k, v in entry.items() if k in known})
        check_types(found)
        return found

    @classmethod
    def from_json(cls, text: str) -> ScoreColumn:
        """Read one line of JSON."""
        return cls.from_dict(files.parse_json(text, "the column's provenance", "text", _REMEDY))


def sidecar_text(columns: Iterable[ScoreColumn], **extra: Any) -> str:
    """The text of a sidecar: the columns' provenance, and `extra` facts about the push or the run.

    >>> parse_sidecar(sidecar_text([ScoreColumn("q")], row_id="row_id"))[1]
    {'row_id': 'row_id'}
    """
    entries = sorted((c.to_dict() for c in columns), key=lambda e: e["name"])
    return json.dumps({"format": FORMAT, "columns": entries, **extra}, indent=2, sort_keys=True) + "\n"


def parse_sidecar(text: str, where: str | Path = SIDECAR) -> tuple[dict[str, ScoreColumn], dict[str, Any]]:
    """Read a sidecar's text: columns by name, and the other facts in it; `where` is its name in messages.

    Raises:
        ValueError: the text is not a sidecar, or is of a later format.
    """
    document = files.parse_json(text, where, _WHAT, _REMEDY)
    number = document.get("format")
    if type(number) is int and number > FORMAT:
        raise ValueError(f"{where} has format {number}, this version reads up to {FORMAT}; upgrade hf_prune")
    with files.reading(where, _WHAT, _REMEDY):
        if number != FORMAT or type(number) is not int or not isinstance(document["columns"], list):
            raise ValueError(f"format {number!r} with the keys {', '.join(map(repr, sorted(document)))[:200]}")
        columns = {entry.name: entry for entry in map(ScoreColumn.from_dict, document["columns"])}
        return columns, {k: v for k, v in document.items() if k not in ("format", "columns")}
    raise AssertionError  # `reading` raises


def read_sidecar(path: str | Path) -> tuple[dict[str, ScoreColumn], dict[str, Any]]:
    """Read a sidecar: columns by name, and the other facts in it.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: the file is not a sidecar, or is of a later format.
    """
    return parse_sidecar(files.read_text(Path(path), _WHAT, _REMEDY), path)
