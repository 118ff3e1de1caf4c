"""`hf-prune scorers`: which scorers there are, by the question they answer, and the options of one."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

from hf_prune.cli.scorers import QUESTIONS, Entry, class_of, maker_of, parameters_of

WIDTH = 80
# what a parameter says that the user must have; the first ones are said first
NEEDS = {
    "text": "texts",
    "embedding": "embeddings",
    "models": "models",
    "model": "a model",
    "probe": "a probe network",
    "log": "a training log",
    "label": "labels",
    "target": "a target dataset",
    "annotated": "annotated rows",
    "row_id": "row ids",
}
OPTIONAL = {"row_id"}  # used where they are there


def needs(entry: Entry) -> str:
    """What a scorer needs, in words.

    >>> needs(Entry("DSIR")), needs(Entry("SSLPrototypes"))
    ('texts, a target dataset', 'embeddings')
    """
    there = inspect.signature(maker_of(class_of(entry), entry)).parameters
    named = [words for name, words in NEEDS.items() if name in there and name not in OPTIONAL]
    return ", ".join(named) or "row ids"


def listing() -> str:
    """All scorers, by question."""
    lines = []
    for question, group in QUESTIONS.items():
        lines += [question, ""]
        for name, entry in group.items():
            said = _said(class_of(entry), "meaning") or _first_line(class_of(entry))
            lines += [f"  {name:<17} needs {needs(entry)}", *_indented(said, 20), ""]
    lines.append("hf-prune scorers NAME shows the options of one; a high score always means keep.")
    return "\n".join(lines)


def details(name: str) -> str:
    """One scorer: what it says, needs and writes, and its options with their defaults.

    Raises:
        ValueError: there is none of that name.
    """
    from hf_prune.cli.scorers import find

    cls, entry = find(name)
    if entry is None:
        raise ValueError(f"{name} is a saved scorer, whose options are settled; name one of `hf-prune scorers`")
    maker = maker_of(cls, entry)
    about = {**_arguments(cls.__doc__), **_arguments(getattr(maker, "__doc__", None))}
    lines = [*textwrap.wrap(f"{name}: {_first_line(cls)}", WIDTH), ""]
    for what, text in (
        ("High says", _said(cls, "meaning")),
        ("Raw", _said(cls, "raw")),
        ("Needs", needs(entry)),
        ("Paper", _said(cls, "paper")),
        ("Python", f"hf_prune.{cls.__name__}" + ("" if maker is cls else f".{entry.maker}")),
    ):
        if text:
            lines += textwrap.wrap(text, WIDTH, initial_indent=f"{what + ':':<11}", subsequent_indent=" " * 11)
    lines += ["", "Options (--set KEY=VALUE):", ""]
    for option, facts in parameters_of(maker).items():
        default = "required" if facts.default is facts.empty else f"default {_shown(facts.default)}"
        lines.append(f"  {option}  ({default})")
        lines += _indented(about.get(option, ""), 6)
    return "\n".join(lines)


def _first_line(cls: Any) -> str:
    return inspect.cleandoc(cls.__doc__ or cls.__name__).splitlines()[0]


def _said(cls: Any, what: str) -> str:
    """A line of a class; nothing where it depends on the options."""
    text = getattr(cls, what)
    return text if isinstance(text, str) else ""


def _indented(text: str, spaces: int) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" " * spaces, subsequent_indent=" " * spaces)


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else value or "''"
    return text if len(text) <= 40 else text[:37] + "..."


_ARGUMENT = re.compile(r"(?P<names>\*{0,2}\w+(?:, \w+)*)(?: \([^)]*\))?: (?P<text>.*)")


def _arguments(doc: str | None) -> dict[str, str]:
    """Lines of `Args:` and `Attributes:` of a docstring, by name.

    >>> _arguments(parameters_of.__doc__)
    {'maker': 'what makes a scorer; None where it is made already.'}
    """
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in inspect.cleandoc(doc or "").splitlines():
        if not line.startswith(" "):
            inside = line.rstrip(":") in ("Args", "Attributes") if line else inside
            continue
        match = _ARGUMENT.fullmatch(line[4:]) if inside and line[4:5].strip() else None
        if match:
            names = match["names"].split(", ")
            found |= dict.fromkeys(names, match["text"])
        elif inside and line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found
