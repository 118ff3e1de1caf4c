"""The card of a scores config: what is rendered, and how it joins a README that somebody else owns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from huggingface_hub import DatasetCard

from hf_prune.columns import ScoreColumn
from hf_prune.data import files
from hf_prune.shown import without_tokens

TAGS = ("hf_prune", "data-pruning", "scores")
KEY = "hf_prune"
BLOCKS = " ▏▎▍▌▋▊▉█"
BINS, WIDTH, CLASSES = 10, 24, 30

# a path of a machine: two or more components after a root, a home, or a dot; not a Hub name, a URL or a quotient
_PATH = re.compile(r"(?:file:/*)?(?<![\w)\]/:.~])(?:~|\.{1,2})?/[\w.@+-]+(?:/[\w.@+ -]*[\w.@+-])+/?")
_WHOLE = re.compile(r"(?:file:|/|~[\\/]|\.{1,2}[\\/]|[A-Za-z]:[\\/]|\\\\)(?!\s)[^\n]*")
_WINDOWS = re.compile(r"(?<!\w)[A-Za-z]:[\\/][\w.@+-]+(?:[\\/][\w.@+-]+)*")


# -- what may be published ---------------------------------------------------------------


def published(column: ScoreColumn) -> ScoreColumn:
    """The column without paths of this machine (their last component stays) and without tokens.

    >>> published(ScoreColumn("q", params={"model": "/home/me/models/net", "k": 3})).params
    {'model': 'net', 'k': 3}
    """
    names = ("name", "companions")  # columns stay what they are called
    clean = {f.name: scrub(getattr(column, f.name)) for f in fields(column) if f.name not in names}
    return replace(column, **clean, companions={k: scrub(v) for k, v in column.companions.items()})


def scrub(value: Any) -> Any:
    """Any JSON value without machine paths and tokens; keys are scrubbed, too."""
    if isinstance(value, str):
        if _WHOLE.fullmatch(value):
            return without_tokens(_base(value))
        text = _PATH.sub(lambda m: _base(m[0]), without_tokens(value))  # first: a token may hold a slash
        return _WINDOWS.sub(lambda m: _base(m[0]), text)
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Mapping):
        return {scrub(k): scrub(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrub(v) for v in value]
    return value


def _base(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/ "))[-1]


# -- Markdown ---------------------------------------------------------------


class Markdown(str):
    """Text that is Markdown already; everything else is escaped when it is rendered."""


def escape(value: object) -> Markdown:
    r"""Text from data as one line of Markdown that shows itself and does nothing.

    >>> print(escape("a|b <!-- x --> `c`\n{{d}}"))
    a\|b &lt;\!-- x --&gt; \`c\` \{\{d\}\}
    """
    if isinstance(value, Markdown):
        return value
    text = "".join(c if c.isprintable() else " " for c in str(value))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markdown(re.sub(r"([\\`*_{}\[\]#!|~$])", r"\\\1", text))


def code(value: object) -> Markdown:
    """A name in backticks where it is plain, escaped text where it is not."""
    text = str(value)
    return Markdown(f"`{text}`") if re.fullmatch(r"[\w.:/@+=,\[\]()-]+", text) else escape(text)


def python(value: object) -> Markdown:
    """A Python literal for a fenced block: on one line, and no HTML comment in it."""
    return Markdown(ascii(value).replace("<!--", "<\\x21--").replace("```", "\\x60\\x60\\x60"))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        finalize=escape,
        autoescape=False,  # `finalize` escapes for Markdown, which covers HTML
    )
    environment.filters.update(code=code, py=python)
    return environment.get_template("scores_card.md.jinja")


# -- what the card says ---------------------------------------------------------------


def histogram(values: np.ndarray, bins: int = BINS, width: int = WIDTH) -> list[str]:
    r"""Lines of a text histogram over the finite values of (n,) numbers; bars are scaled to the fullest bin.

    >>> print("\n".join(histogram(np.array([0.0, 1.0, 1.0, 2.0]), bins=2, width=4)))
    0 to 1  █▍    1
    1 to 2  ████  3
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return ["no finite value"]
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        return [f"{low:.4g}  {'█' * width}  {len(finite):,}"]
    with np.errstate(over="ignore"):
        scale = max(abs(low), abs(high))  # huge values would overflow high - low
        counts, edges = np.histogram(finite / scale, bins=bins, range=(low / scale, high / scale))
    edges = edges * scale
    names = [f"{a:.4g} to {b:.4g}" for a, b in zip(edges[:-1], edges[1:], strict=True)]
    left, right = max(map(len, names)), max(len(f"{c:,}") for c in counts)
    top = counts.max()
    bars = [_bar(count / top * width if top else 0.0, width) for count in counts]
    return [f"{n:<{left}}  {b}  {c:>{right},}" for n, b, c in zip(names, bars, counts, strict=True)]


def _bar(length: float, width: int) -> str:
    eighths = max(round(length * 8), 1 if length else 0)
    return ("█" * (eighths // 8) + BLOCKS[eighths % 8].strip()).ljust(width)


def strange(values: np.ndarray) -> str:
    """How many values are not finite, in words; empty if all are.

    >>> strange(np.array([1.0, np.nan, -np.inf]))
    '1 NaN or null, 1 infinite'
    """
    nan, inf = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    return ", ".join(f"{n:,} {word}" for n, word in ((nan, "NaN or null"), (inf, "infinite")) if n)


@dataclass(frozen=True)
class Balance:
    """Class sizes before and after pruning, per score: `kept[score]` is parallel to `rows`."""

    split: str
    label: str
    keep: float
    names: tuple[str, ...]
    rows: tuple[int, ...]
    kept: Mapping[str, tuple[int, ...]]

    def table(self) -> list[list[Any]]:
        """Rows of the table; of many classes those that lose most come first, and the rest is left out."""
        share = [min(k[i] / r for k in self.kept.values()) if r else 2.0 for i, r in enumerate(self.rows)]
        order = list(range(len(self.rows)))
        if len(order) > CLASSES:
            order = sorted(order, key=lambda i: (share[i], i))[:CLASSES]
        return [
            [self.names[i], f"{self.rows[i]:,}", *(_of(kept[i], self.rows[i]) for kept in self.kept.values())]
            for i in order
        ]

    @property
    def left_out(self) -> int:
        """Classes that the table does not show."""
        return max(0, len(self.rows) - CLASSES)


def _of(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.0%})" if whole else "0"


def balance(
    split: str,
    label: str,
    labels: np.ndarray,
    names: Sequence[str],
    masks: Mapping[str, np.ndarray],
    keep: float,
) -> Balance:
    """Count (n,) integer `labels` before and after each (n,) boolean mask; a row without label is its own class."""
    known = np.where((labels < 0) | (labels >= len(names)), len(names), labels)
    size = len(names) + int((known == len(names)).any())

    def count(rows: np.ndarray) -> tuple[int, ...]:
        return tuple(int(c) for c in np.bincount(rows, minlength=size)[:size])

    shown = (*names, "(no label)")[:size]
    return Balance(split, label, keep, shown, count(known), {k: count(known[m]) for k, m in masks.items()})


@dataclass(frozen=True)
class Scores:
    """All that the card says of one scores config."""

    repo_id: str
    config_name: str
    row_id: str
    columns: Sequence[ScoreColumn]
    rows: Mapping[str, int]
    values: Mapping[str, np.ndarray] = field(default_factory=dict)  # scalar columns, all splits together
    balances: Sequence[Balance] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    keep: float = 0.7

    def facts(self, column: ScoreColumn) -> list[tuple[str, Markdown | str]]:
        """Label and text of each thing that is known about a column."""

        def listed(mapping: Mapping[str, Any] | None) -> str | Markdown:
            return Markdown(", ".join(f"{escape(k)} = {escape(_plain(v))}" for k, v in sorted((mapping or {}).items())))

        found: list[tuple[str, Markdown | str]] = [
            ("Raw quantity", column.raw),
            ("Type", column.dtype),
            ("Written by", code(column.scorer) if column.scorer else ""),
            ("Version", str(column.version or "")),
            ("Parameters", listed(column.params)),
            ("Model", listed(column.model)),
            ("Fitted on", listed(column.fitted_on)),
            ("Scored data", listed(column.data or self.data)),
            ("Digest", code(column.digest) if column.digest else ""),
            ("Packages", listed(column.packages)),
        ]
        return [(label, text) for label, text in found if text]

    def section(self) -> str:
        """The Markdown between our two markers, without them."""
        views = [
            {
                "column": column,
                "facts": self.facts(column),
                "bars": [Markdown(line) for line in histogram(self.values[column.name])]
                if column.name in self.values
                else None,
                "strange": strange(self.values[column.name]) if column.name in self.values else "",
            }
            for column in self.columns
        ]
        graded = [c for c in self.columns if c.name in self.values]
        papers = list(dict.fromkeys(c.paper for c in self.columns if c.paper))
        first = (graded or [*self.columns])[0]
        split = "train" if "train" in self.rows else next(iter(self.rows))
        return _template().render(s=self, views=views, papers=papers, first=first, split=split)

    def summary(self) -> dict[str, Any]:
        """The provenance in small, for the YAML of the card."""
        columns: list[dict[str, Any]] = []
        for c in self.columns:
            entry: dict[str, Any] = {"name": c.name, "dtype": c.dtype}
            if c.known:
                entry |= {"scorer": c.scorer, "version": c.version, "digest": c.digest}
                entry |= {"model": dict(c.model) if c.model else None}
            else:
                entry["provenance"] = "unknown"
            columns.append({k: v for k, v in entry.items() if v is not None})
        found = {
            "columns": columns,
            "row_id": self.row_id,
            "rows": dict(self.rows),
            "data": dict(sorted(self.data.items())),
        }
        return {k: v for k, v in found.items() if v}


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_plain(v)}" for k, v in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return str(value)


# -- the README ---------------------------------------------------------------


def markers(config_name: str) -> tuple[str, str]:
    """The two HTML comments around the section of one scores config."""
    of = "" if config_name == "scores" else f" {config_name}"
    return f"<!-- hf_prune:begin{of} -->", f"<!-- hf_prune:end{of} -->"


def with_features(readme: str, repo_id: str, config: str, features: Any) -> str:
    """The README with these features in the `dataset_info:` entry of a config, if it has one with others."""
    with files.reading(repo_id, "README of", "mend its YAML, then push again"):
        card = DatasetCard(readme, ignore_metadata_errors=False)
        _check_header(card.data)
    infos = card.data.get("dataset_info") or []
    entries = infos if isinstance(infos, list) else [infos]
    stale = [
        e for e in entries if e.get("config_name", "default") == config and e.get("features", features) != features
    ]
    if not stale:
        return readme
    for entry in stale:
        entry["features"] = features
    return "---\n" + card.data.to_yaml(line_break="\n") + "\n---\n" + card.text.lstrip("\n")


def merge_readme(
    old: str | None,
    scores: Scores,
    *,
    config: Mapping[str, Any],
    info: Mapping[str, Any],
    license: str | None = None,
    source: str | None = None,
    others: Callable[[], Iterable[Mapping[str, Any]]] = tuple,
    parquet: bool = True,
) -> str:
    """The README with our section and our YAML entries in it; everything else stays as it was.

    Args:
        old: the README now, or None.
        scores: what to render.
        config: the `configs:` entry of the scores (with its `config_name`).
        info: the `dataset_info:` entry of the scores (with its `config_name`).
        license: goes in where the card has none.
        source: the `source_datasets:` entry to add.
        others: gives `configs:` entries for data that a card without `configs:` left to be found by file names.
        parquet: whether the other configs are Parquet. If not, ours comes last: `load_dataset` chooses the reader of a
            whole repo by the first config. If so, configs are sorted, as `push_to_hub` does.

    Raises:
        ValueError: the YAML of the README cannot be read.
    """
    with files.reading(scores.repo_id, "README of", "mend its YAML, then push again"):
        # an empty block where there is none: the client would log a warning about what is no fault
        has_yaml = (old or "").lstrip().startswith("---")
        card = DatasetCard(old if has_yaml and old else "---\n{}\n---\n" + (old or ""), ignore_metadata_errors=False)
        _check_header(card.data)
    data, name = card.data, scores.config_name
    data["tags"] = _with(data.get("tags"), TAGS)
    if license and not data.get("license"):
        data["license"] = license
    if source:
        data["source_datasets"] = _with(data.get("source_datasets"), (source,))
    configs = [c for c in (data.get("configs") or others()) if c.get("config_name") != name]
    if parquet:
        data["configs"] = sorted([*configs, dict(config)], key=lambda c: str(c.get("config_name")))
    else:
        data["configs"] = [*configs, dict(config)]
    infos = data.get("dataset_info") or []
    infos = [{"config_name": "default", **i} for i in (infos if isinstance(infos, list) else [infos])]
    infos = [i for i in infos if i["config_name"] != name]
    data["dataset_info"] = sorted([*infos, dict(info)], key=lambda i: str(i["config_name"]))
    ours = data.get(KEY)
    data[KEY] = {**(ours if isinstance(ours, Mapping) else {}), name: scores.summary()}
    text = card.text if card.text.strip() else f"\n# {escape(scores.repo_id.split('/')[-1])}\n"
    head = "---\n" + data.to_yaml(line_break="\n") + "\n---\n"
    return head + _replace(text, *markers(name), scores.section())


def _check_header(data: Any) -> None:
    """Refuse YAML that is not what the Hub reads, in the entries that we add to.

    Raises:
        ValueError: it is not.
    """
    for key in ("configs", "dataset_info"):
        entries = data.get(key) or []
        if key == "dataset_info" and isinstance(entries, Mapping):
            entries = [entries]
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise ValueError(f"{key} is no list of configs")
    for key in ("tags", "source_datasets"):
        listed = data.get(key) or []
        if not isinstance(listed, str) and not (isinstance(listed, list) and all(isinstance(x, str) for x in listed)):
            raise ValueError(f"{key} is no list of words")


def _with(now: Any, more: Iterable[str]) -> list[Any]:
    kept = [now] if isinstance(now, str) else list(now or [])
    return kept + [item for item in more if item not in kept]


def _replace(text: str, begin: str, end: str, section: str) -> str:
    """Put the section between the markers; text after a marker that has lost its counterpart is the owner's."""
    block = f"{begin}\n{section.strip()}\n{end}"
    ours = re.compile(f"{re.escape(begin)}(?:(?!{re.escape(begin)}).)*?{re.escape(end)}", re.DOTALL)
    first, *rest = (
        "".join(line for line in part.splitlines(keepends=True) if line.strip() not in (begin, end))
        for part in ours.split(text)
    )
    return f"{first}{block}{''.join(rest)}" if rest else f"{first.rstrip()}\n\n{block}\n"
