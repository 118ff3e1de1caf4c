"""Scorers by their names on the command line, and their options, read from the signatures."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hf_prune.checks import MissingColumnError


@dataclass(frozen=True)
class Entry:
    """A scorer of the command line.

    Args:
        home: public name in `hf_prune`, or `package.module:Class`.
        datasets: arguments of its `fit` that are datasets: their values on the command line are DATA.
        maker: method that makes it; the class itself where it has no such method.
    """

    home: str
    datasets: tuple[str, ...] = ()
    maker: str = "fit"


STATE = ("logged", "fitted_on")  # fields that a fit fills, no options

# a new scorer is one line here; its options are read from the signature of its `fit`, or of its class
QUESTIONS: dict[str, dict[str, Entry]] = {
    "Which rows are duplicates?": {
        "exact": Entry("ExactDedup", ("reference",)),
        "minhash": Entry("MinHashDedup", ("reference",)),
        "substring": Entry("SubstringDedup", ("reference",)),
        "semdedup": Entry("SemDeDup"),
    },
    "Which rows are typical, which unusual?": {
        "ssl_proto": Entry("SSLPrototypes"),
        "supervised_proto": Entry("SupervisedPrototypes"),
        "moderate": Entry("Moderate"),
        "k_center": Entry("KCenter"),
        "herding": Entry("Herding"),
        "vendi": Entry("VendiContribution"),
    },
    "Which rows are mislabelled, which hard?": {
        "aum": Entry("AUM", maker="from_log"),
        "el2n": Entry("EL2N"),
        "el2n_log": Entry("EL2N", maker="from_log"),
        "grand": Entry("GraNd"),
        "forgetting": Entry("Forgetting", maker="from_log"),
        "cartography": Entry("Cartography", maker="from_log"),
        "dyn_unc": Entry("DynamicUncertainty", maker="from_log"),
        "tdds": Entry("TDDS", maker="from_log"),
        "dual": Entry("DUAL", maker="from_log"),
        "uncertainty": Entry("Uncertainty"),
        "uncertainty_log": Entry("Uncertainty", maker="from_log"),
        "t2v_complexity": Entry("Task2VecComplexity"),
    },
    "Which rows are like my target?": {
        "dsir": Entry("DSIR", ("target",)),
        "t2v_alignment": Entry("Task2VecAlignment", ("target",)),
    },
    "Which texts are of quality?": {
        "text_rules": Entry("TextStatistics"),
        "quality": Entry("QualityClassifier", ("annotated",)),
        "ask_llm": Entry("AskLLM"),
        "perplexity": Entry("Perplexity"),
        "kenlm": Entry("KenLM"),
    },
    "What must every method beat?": {
        "random": Entry("Random"),
    },
}
SCORERS = {name: entry for group in QUESTIONS.values() for name, entry in group.items()}


def class_of(entry: Entry) -> Any:
    """The class of a scorer of the command line."""
    import hf_prune

    return _imported(entry.home) if ":" in entry.home else getattr(hf_prune, entry.home)


def find(name: str, trust_code: bool = False) -> tuple[Any, Entry | None]:
    """The class (or the saved scorer) that a name means.

    Raises:
        ValueError: no such scorer; the message lists those that are. Or a saved one that names code, without trust.
    """
    from hf_prune.scorer import Scorer

    folder = Path(name).expanduser()
    if (folder / "scorer.json").is_file():
        return Scorer.load(folder, trust_code=trust_code), None
    if name in SCORERS:
        return class_of(SCORERS[name]), SCORERS[name]
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", name):
        found = _imported(name)
        if not (isinstance(found, type) and issubclass(found, Scorer)):
            raise ValueError(f"{name} is no Scorer class")
        return found, Entry(name)
    if folder.is_dir() or "/" in name:
        raise ValueError(f"{name} holds no saved scorer: {folder / 'scorer.json'} is missing")
    near = get_close_matches(name, SCORERS, 1)
    raise ValueError(
        f"there is no scorer {name!r}; {f'did you mean {near[0]!r}? ' if near else ''}`hf-prune scorers` lists them; a "
        "folder written by scorer.save(), or package.module:Class, will do too"
    )


def _imported(name: str) -> Any:
    """What `module:Class` names; modules of the current folder are found last, so that they hide no other."""
    from hf_prune.values import import_name

    here = os.getcwd()
    sys.path.append(here)
    try:
        return import_name(name)
    finally:
        sys.path.remove(here)


def build(
    names: Sequence[str],
    ds: Any,
    options: Sequence[str],
    flags: Mapping[str, str | None],
    open_dataset: Callable[[str], Any],
    say: Callable[[str], None] = lambda text: None,
    trust_code: bool = False,
) -> list[Any]:
    """Fit (or make, or load) the scorers that were named.

    Args:
        names: of scorers, in the order in which they run.
        ds: what they are fitted on.
        options: `key=value` for every scorer that knows the key, or `scorer.key=value` for one.
        flags: the same by name, None where it was not given.
        open_dataset: opens DATA for arguments that are datasets.
        say: told what is being fitted.
        trust_code: saved scorers may name code that will be run.

    Raises:
        ValueError: an unknown scorer or option, or a value of another type; the message lists what there is.
    """
    found = {name: find(name, trust_code) for name in names}
    if len(found) < len(names):
        raise ValueError(f"--scorer names one scorer twice: {', '.join(names)}")
    makers = {name: maker_of(thing, entry) for name, (thing, entry) in found.items()}
    known = {name: parameters_of(maker) for name, maker in makers.items()}
    given: dict[str, dict[str, Any]] = {name: {} for name in names}
    pairs = [_pair(text) for text in options] + [(k, v) for k, v in flags.items() if v is not None]
    for key, text in pairs:
        takers, plain = _takers(key, known)
        for name in takers:
            entry = found[name][1]
            if entry is not None and plain in entry.datasets:
                given[name][plain] = open_dataset(text)
            else:
                given[name][plain] = parse(plain, text, str(known[name][plain].annotation))
    for name, parameters in known.items():
        missing = [p for p, facts in parameters.items() if facts.default is facts.empty and p not in given[name]]
        if missing:
            raise ValueError(f"{name} needs {missing[0]}: give it with --set {missing[0]}=...")
        _check_columns(name, parameters, given[name], ds)
    made = []
    for name, maker in makers.items():
        if maker is None:
            made.append(found[name][0])
        elif "ds" in inspect.signature(maker).parameters:
            say(f"fitting {name} on {len(ds):,} rows")
            made.append(maker(ds, **given[name]))
        else:
            made.append(maker(**given[name]))
    return made


def _check_columns(name: str, parameters: Mapping[str, Any], given: Mapping[str, Any], ds: Any) -> None:
    """Raise for columns of rows that are not there, with what makes or names them, before anything is computed.

    Raises:
        MissingColumnError: embeddings, texts or labels are missing.
    """
    for what in ("embedding", "text", "label"):
        column = given.get(what, getattr(parameters.get(what), "default", None))
        for one in (column,) if isinstance(column, str) else column or ():
            if isinstance(one, str) and one.split(".")[0] not in ds.column_names:
                near = get_close_matches(one, ds.column_names, 1)
                step = (
                    "make one with `hf-prune embed`" if what == "embedding" else f"name yours with --set {what}=COLUMN"
                )
                guess = f"did you mean --set {what}={near[0]}? Or " if near else ""
                raise MissingColumnError(
                    f"{name} reads column {one!r}, the rows have {sorted(ds.column_names)}; {guess}{step}"
                )


def maker_of(thing: Any, entry: Entry | None) -> Any:
    """What makes the scorer: its `fit` or `from_log`, or its class; None where it is made already."""
    if entry is None:
        return None
    return getattr(thing, entry.maker, thing)


def parameters_of(maker: Any) -> dict[str, inspect.Parameter]:
    """Options of a scorer.

    Args:
        maker: what makes a scorer; None where it is made already.
    """
    if maker is None:
        return {}
    there = inspect.signature(maker).parameters
    return {
        name: p
        for name, p in there.items()
        if name not in ("ds", *STATE) and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {text!r} is not key=value")
    return key.strip(), value


def _takers(key: str, known: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], str]:
    """Scorers that an option is for, and its plain name."""
    scorer, dot, plain = key.rpartition(".")
    if dot and scorer not in known:
        raise ValueError(f"option {key!r} is for {scorer!r}, which --scorer does not name; it names {', '.join(known)}")
    takers = [name for name in ([scorer] if dot else known) if plain in known[name]]
    if not takers:
        there = "; ".join(f"{name} knows {', '.join(options) or 'none'}" for name, options in known.items())
        raise ValueError(f"no scorer that was named has an option {plain!r}: {there}")
    return takers, plain


_NUMBERS: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "None": type(None)}


def parse(name: str, text: str, annotation: str) -> Any:
    """The value of an option, by the annotation of its argument.

    Raises:
        ValueError: the text is no such thing.

    >>> parse("k", "100", "int | None"), parse("spherical", "false", "bool"), parse("label", "1", "str")
    (100, False, '1')
    >>> parse("k", "many", "int | None")
    Traceback (most recent call last):
    ...
    ValueError: k='many' is not int or null
    """
    kinds = [part.strip() for part in annotation.split("|")]
    plain = {"True": "true", "False": "false", "None": "null"}.get(text, text)
    try:
        value = json.loads(plain)
    except json.JSONDecodeError:
        value = text
    for kind in kinds:
        wanted = _NUMBERS.get(kind)
        if wanted is not None and isinstance(value, wanted) and (kind == "bool") == isinstance(value, bool):
            return value
    if "str" in kinds:
        return text
    if all(kind in _NUMBERS for kind in kinds):
        names = " or ".join({"bool": "true or false", "None": "null", "float": "a number"}.get(k, k) for k in kinds)
        raise ValueError(f"{name}={text!r} is not {names}")
    if isinstance(value, str) and any(kind.startswith(("Sequence", "tuple", "list")) for kind in kinds):
        return tuple(part.strip() for part in value.split(","))
    return value


def needs_ids(scorers: Sequence[Any], there: Sequence[str]) -> bool:
    """Whether a scorer reads a `row_id` column that is not there."""
    return "row_id" not in there and any(getattr(s, "row_id", None) == "row_id" for s in scorers)
