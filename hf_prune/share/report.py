"""`report`: one HTML file on scores: histograms, the rows at both ends, classes before and after pruning."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_prune.columns import ScoreColumn

if TYPE_CHECKING:
    import jinja2

    from hf_prune.share.card import Balance

BINS = 30
TEXT = 300  # characters of a row's text
PIXELS = 128  # of a picture's longer side
WIDTH, HEIGHT = 600, 160  # of a histogram


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram, in the units of its picture."""

    x: float
    width: float
    top: float
    height: float
    kept_top: float
    kept_height: float


@dataclass(frozen=True)
class Example:
    """A row as the report shows it."""

    row: int
    score: str
    label: str
    text: str
    picture: str  # a data URI, or empty


@dataclass(frozen=True)
class Section:
    """What the report says of one score."""

    column: ScoreColumn
    facts: Sequence[tuple[str, str]]
    bars: Sequence[Bar]
    edges: tuple[str, str]
    most: int
    shades: str  # the name of the mask that the darker shade is, or empty
    lowest: Sequence[Example]
    highest: Sequence[Example]


@dataclass(frozen=True)
class Table:
    """A table of texts; the first column names its row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def report(
    ds: Any,
    columns: Sequence[str | ScoreColumn],
    *,
    kept: Mapping[str, np.ndarray] | None = None,
    label: str | None = None,
    show: str | None = None,
    examples: int = 8,
    title: str = "Scores",
    notes: Sequence[str] = (),
    tables: Sequence[Table] = (),
    commands: Sequence[str] = (),
) -> str:
    """One HTML page about the scores of a dataset: self-contained, no script, light and dark.

    Everything that comes from data is escaped; pictures are decoded and written anew as small PNG.

    Args:
        ds: a `Dataset` of n rows.
        columns: score columns, with their provenance where it is known.
        kept: (n,) bool masks by what to call them; one called like a score column shades that histogram, a single one
            shades all.
        label: column of classes, for the balance; the only `ClassLabel` column by default.
        show: column that shows a row: pictures or texts; the first of such by default.
        examples: rows at each end of a score.
        title: of the page.
        notes: paragraphs at the top.
        tables: of the caller's own, after the notes.
        commands: to go on with, at the end.

    Raises:
        KeyError: a column that is not there; the message has those that are.
        TypeError: a score column that holds no numbers.
        ValueError: a mask of another length.

    >>> from datasets import Dataset
    >>> page = report(Dataset.from_dict({"text": ["<b>", "c"], "score": [0.1, 0.9]}), ["score"])
    >>> "&lt;b&gt;" in page, "<b>" in page
    (True, False)
    """
    scores = [c if isinstance(c, ScoreColumn) else ScoreColumn(name=c) for c in columns]
    masks = {name: np.asarray(mask, bool) for name, mask in (kept or {}).items()}
    for what in [c.name for c in scores] + [c for c in (label, show) if c is not None]:
        if what not in ds.column_names:
            raise KeyError(f"no column {what!r} to report on; there are {ds.column_names}")
    for name, mask in masks.items():
        if mask.shape != (len(ds),):
            raise ValueError(f"mask {name!r} has shape {mask.shape}, the dataset {len(ds)} rows")
    label = label or _only_classes(ds)
    show = show or _showable(ds)
    return _template().render(
        title=title,
        notes=notes,
        tables=tables,
        commands=commands,
        rows=len(ds),
        sections=[_section(ds, c, masks, label, show, examples) for c in scores],
        balance=class_balance(ds, label, masks) if label and masks else None,
        width=WIDTH,
        height=HEIGHT,
    )


@cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.jinja")


def _section(
    ds: Any, column: ScoreColumn, masks: Mapping[str, np.ndarray], label: str | None, show: str | None, examples: int
) -> Section:
    from hf_prune.data.arrow import floats_column
    from hf_prune.share.card import strange

    values = floats_column(ds, column.name)
    shades = column.name if column.name in masks else next(iter(masks)) if len(masks) == 1 else ""
    finite = np.flatnonzero(np.isfinite(values))
    order = finite[np.argsort(values[finite], kind="stable")]
    ends = [order[:examples], order[::-1][: min(examples, len(order) - min(examples, len(order)))]]
    low, high = (_examples(ds, rows, values, label, show) for rows in ends)
    bars, most = histogram_bars(values[finite], masks[shades][finite] if shades else np.zeros(len(finite), bool))
    facts = [("Rows", f"{len(values):,}"), ("Not numbers", strange(values))]
    if len(finite):
        quantiles = np.quantile(values[finite], [0, 0.25, 0.5, 0.75, 1])
        facts.append(("Quartiles", ", ".join(f"{q:.4g}" for q in quantiles)))
    facts += [
        ("Says", column.meaning),
        ("Raw quantity", column.raw),
        ("Parameters", ", ".join(f"{k} = {v}" for k, v in sorted(column.params.items()))),
        ("Model", ", ".join(f"{k} = {v}" for k, v in sorted((column.model or {}).items()))),
        ("Source", column.paper),
        ("Written by", column.scorer or "unknown"),
    ]
    edges = (f"{values[order[0]]:.4g}", f"{values[order[-1]]:.4g}") if len(order) else ("", "")
    return Section(column, [f for f in facts if f[1]], bars, edges, most, shades, low, high)


def histogram_bars(values: np.ndarray, kept: np.ndarray, bins: int = BINS) -> tuple[list[Bar], int]:
    """Bars for (n,) finite values, the part that `kept` (n,) is of each, and the rows of the fullest bin.

    >>> bars, most = histogram_bars(np.array([0.0, 1.0, 1.0]), np.array([True, True, False]), bins=2)
    >>> most, [round(b.kept_height / b.height, 1) for b in bars]
    (2, [1.0, 0.5])
    """
    if not len(values):
        return [], 0
    scale = float(np.abs(values).max()) or 1.0  # huge values would overflow high - low
    scaled = values / scale
    low, high = float(scaled.min()), float(scaled.max())
    span = (low, high) if low < high else (low - 0.5, high + 0.5)
    every, _ = np.histogram(scaled, bins=bins, range=span)
    inner, _ = np.histogram(scaled[kept], bins=bins, range=span)
    most, width = int(every.max()), WIDTH / bins
    bars = []
    for i, (count, part) in enumerate(zip(every, inner, strict=True)):
        full, own = (round(HEIGHT * float(c) / most, 2) for c in (count, part))
        bars.append(Bar(round(i * width, 2), round(width - 1, 2), HEIGHT - full, full, HEIGHT - own, own))
    return bars, most


def class_balance(ds: Any, label: str, masks: Mapping[str, np.ndarray]) -> Balance:
    """Class sizes before and after each mask.

    Raises:
        KeyError: no such column.
        ValueError: the column holds no classes.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from hf_prune.data.arrow import column_array
    from hf_prune.share.card import balance

    column = column_array(ds, label)
    names = getattr(ds.features[label], "names", None)
    if names is not None:
        codes = pc.fill_null(column.cast(pa.int64()), -1).to_numpy()
    elif pa.types.is_nested(column.type) or pa.types.is_floating(column.type):
        raise ValueError(f"column {label!r} holds {column.type}, not classes")
    else:
        kinds = pc.unique(column.drop_null())
        kinds = kinds.take(pc.sort_indices(kinds))
        codes = pc.fill_null(pc.index_in(column, value_set=kinds), -1).to_numpy()
        names = [str(k) for k in kinds.to_pylist()]
    share = float(np.mean([mask.mean() for mask in masks.values()])) if masks else 1.0
    return balance("", label, np.asarray(codes), list(names), masks, share)


def _only_classes(ds: Any) -> str | None:
    found = [name for name, feature in ds.features.items() if hasattr(feature, "names")]
    return found[0] if len(found) == 1 else None


def _showable(ds: Any) -> str | None:
    """The first column of pictures, else of texts (ids are no text worth showing)."""
    pictures = [n for n, f in ds.features.items() if type(f).__name__ == "Image"]
    texts = [n for n, f in ds.features.items() if getattr(f, "dtype", None) in ("string", "large_string")]
    return next(iter([*pictures, *(n for n in texts if n != "row_id")]), None)


def _examples(ds: Any, rows: np.ndarray, values: np.ndarray, label: str | None, show: str | None) -> list[Example]:
    if not len(rows):
        return []
    wanted = [c for c in dict.fromkeys((label, show)) if c is not None]
    names = getattr(ds.features[label], "names", None) if label else None
    taken = ds.with_format(None).select_columns(wanted).select(rows) if wanted else None
    is_picture = show is not None and type(ds.features[show]).__name__ == "Image"
    if is_picture and taken is not None:
        from datasets import Image

        taken = taken.cast_column(show, Image(decode=False))
    found = []
    for i, row in enumerate(rows):
        cells = taken[i] if taken is not None else {}
        own = cells.get(label) if label else None
        name = names[own] if names and isinstance(own, int) and 0 <= own < len(names) else own
        shown = cells.get(show) if show else None
        text = "" if is_picture or shown is None else " ".join(str(shown).split())
        found.append(
            Example(
                int(row),
                f"{values[row]:.4g}",
                "" if name is None else str(name),
                text[:TEXT] + "…" * (len(text) > TEXT),
                picture_uri(shown) if is_picture else "",
            )
        )
    return found


def picture_uri(stored: Any) -> str:
    """A stored picture, made small and written anew as PNG, as a data URI; empty where it cannot be read."""
    from hf_prune.networks.image import upright

    if not stored:
        return ""
    try:
        picture = upright(stored)
    except ValueError:
        return ""
    picture = picture.convert("RGBA" if "A" in picture.getbands() else "RGB")
    picture.thumbnail((PIXELS, PIXELS))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
