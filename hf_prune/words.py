r"""Words: how every method of this package cuts a text, in every script.

- A **word** is a run of letters, digits, connectors (`_`) and the marks on them: `\w+` of Unicode (UTS 18, annex C),
  with `²` and `½` in it as in Python's `re`. Vowel signs, accents written apart (NFD), points and joiners stay with
  what they stand on; a mark on nothing (behind white space) is a sign.
- Scripts that put no spaces between words are cut by the default rules of Unicode's word boundaries (UAX 29): each
  ideograph, hiragana, Thai, Lao, Khmer or Burmese letter, with its marks, is a word; katakana run together. What a
  reader calls a word there takes a dictionary.
- What is neither word nor white space is a **sign**: punctuation, symbols, emoji, each with its marks.

`tokens` and `spaced_words` are the definitions, by the package `regex`. Compiled kernels read the same classes from
`character_table`.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from typing import Any

import numpy as np
import regex  # type: ignore[import-untyped]
from numpy.typing import NDArray

UNITS = ("word", "token", "char")
RULES = ("unicode", "regex", "re")
SPACE, WORD, SIGN, MARK, ALONE, KATAKANA = range(6)  # classes in the low 3 bits of a character table
DOTTED_I = 0x130  # the only character whose lower case is two: i and a dot above

_LETTER = r"[\w\p{N}]"
_ENGINES = {"regex": _LETTER, "re": r"\w"}
_CLASSES = {  # of the rule "unicode", later ones win
    WORD: _LETTER,
    KATAKANA: r"[\w&&\p{WB=Katakana}]",
    ALONE: r"[\w&&\p{WB=Other}&&[\p{L}\p{Nl}]]",
    MARK: r"[[\p{M}\p{Join_Control}]||[\w&&\p{WB=Extend}]]",
}


def tokens(text: str, unit: str = "word", lower: bool = True) -> list[str]:
    """The tokens of a text: its words ("word"), words and single signs ("token"), or its characters ("char").

    >>> tokens("The cat, 東京タワー!"), tokens("The cat, 東京!", "token", lower=False)
    (['the', 'cat', '東', '京', 'タワー'], ['The', 'cat', ',', '東', '京', '!'])
    >>> tokens("लड़का रोज़ खाता था")
    ['लड़का', 'रोज़', 'खाता', 'था']
    """
    found = list(text) if unit == "char" else _pattern(unit, text).findall(text)
    return ["".join(c.lower()[:1] for c in token) for token in found] if lower else list(found)


def sign_runs(text: str, rule: str = "unicode") -> list[str]:
    r"""Words, and runs of signs between them, of a text as it is; what `\w+|[^\w\s]+` is for.

    Args:
        text: to cut.
        rule: "unicode": words as this module has them. "regex", "re": the pattern by that package, without more: marks
            are word characters in `regex` and signs in Python's `re`, and no script is special.

    >>> sign_runs("don't 東京..."), sign_runs("don't 東京...", "re")
    (['don', "'", 't', '東', '京', '...'], ['don', "'", 't', '東京', '...'])
    """
    return list(_pattern(rule, text).findall(text))


def spaced_spans(text: str) -> list[tuple[int, int]]:
    """Where the words of running text lie: runs of anything but white space, cut further in scripts without spaces.

    Signs stay with the word they touch, so that English words keep their punctuation.

    >>> [(a, b) for a, b in spaced_spans("Well, 東京。")]
    [(0, 5), (6, 7), (7, 9)]
    """
    pattern = _patterns()["spaced"] if _unspaced(text) else _RUN
    return [found.span() for found in pattern.finditer(text)]


def spaced_words(text: str) -> list[str]:
    """The words of `spaced_spans`; `text.split()` but in scripts without spaces.

    >>> spaced_words("Well,  it's so: 東京。")
    ['Well,', "it's", 'so:', '東', '京。']
    """
    return list(_patterns()["spaced"].findall(text)) if _unspaced(text) else text.split()


def graphemes(text: str) -> list[int]:
    r"""Where the characters that a reader sees begin (extended grapheme clusters of UAX 29), and the end of the text.

    >>> graphemes("e\u0301a")
    [0, 2, 3]
    """
    return [*(found.start() for found in _patterns()["grapheme"].finditer(text)), len(text)]


def character_table(rule: str = "unicode") -> NDArray[np.uint32]:
    """For each code point its lower case << 3 | its class (0x110000,): 4.5 MB, made once.

    Classes: SPACE; WORD; SIGN; MARK, which continues what it follows; ALONE, a letter that is a word of its own;
    KATAKANA. The rules "regex" and "re" know the first three. U+0130 has the first half of its lower case.
    """
    return _table(rule)


@lru_cache(maxsize=len(RULES))
def _table(rule: str) -> NDArray[np.uint32]:
    every = np.arange(sys.maxunicode + 1, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    lowered = "".join([every[:DOTTED_I].lower(), "i", every[DOTTED_I + 1 :].lower()])
    points = np.frombuffer(lowered.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = np.full(len(every), SIGN, np.uint32)

    def mark(kind: int, pattern: Any) -> None:
        for found in pattern.finditer(every):
            kinds[found.start() : found.end()] = kind

    if rule == "unicode":
        for kind, members in _CLASSES.items():
            mark(kind, regex.compile(f"{members}+", regex.V1))
        mark(SPACE, re.compile(r"\s+"))
    else:
        engine: Any = {"regex": regex, "re": re}[rule]
        mark(WORD, engine.compile(r"\w+"))
        mark(SPACE, engine.compile(r"\s+"))
    table = points << np.uint32(3) | kinds
    table.flags.writeable = False
    return table


@lru_cache(maxsize=1)
def _patterns() -> dict[str, Any]:
    m, a, k = (_CLASSES[kind] for kind in (MARK, ALONE, KATAKANA))
    space = r"[\s\x1c-\x1f]"  # what Python calls white space
    w = rf"[{_LETTER}--{m}--{a}--{k}]"
    s = rf"[^{_LETTER}{m}{space}]"
    word = rf"{w}[{w}{m}]*+|{k}[{k}{m}]*+|{a}{m}*+"
    spaced = rf"[{s}{m}]*+(?:{a}{m}*+|{k}[{k}{m}]*+)[{s}{m}]*+|[^{a}{k}{space}]++"
    made = {
        "word": word,
        "token": rf"{word}|{s}{m}*+|{m}++",
        "unicode": rf"{word}|[{s}{m}]++",
        "spaced": spaced,
        "grapheme": r"\X",
    }
    return {name: regex.compile(f"(?V1){pattern}") for name, pattern in made.items()} | {
        "regex": regex.compile(r"\w+|[^\w\s]+"),
        "re": re.compile(r"\w+|[^\w\s]+"),
    }


_RUN = re.compile(r"\S+")
_ASCII = {
    name: re.compile(p) for name, p in {"word": r"\w+", "token": r"\w+|[^\w\s]", "unicode": r"\w+|[^\w\s]+"}.items()
}


def _pattern(name: str, text: str) -> Any:
    """A pattern, or the same for ASCII, which is sooner."""
    return _ASCII[name] if name in _ASCII and text.isascii() else _patterns()[name]


def _unspaced(text: str) -> bool:
    """Whether there is a letter of a script without spaces between words."""
    if text.isascii():
        return False
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return bool(((character_table()[points] & np.uint32(7)) >= ALONE).any())
