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
import regex
from numpy.typing import NDArray

UNITS = ("word", "token", "char")
RULES = ("unicode", "regex", "re")
SPACE, WORD, SIGN, MARK, ALONE, KATAKANA = range(6)  # classes in the low 3 bits of a character table
DOTTED_I = 0x130  # the only character whose lower case is two: i and a dot above

_LETTER = r"[\w\p{N}]"
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
    return [found.span() for found in _pattern("spaced", text).finditer(text)]


def spaced_words(text: str) -> list[str]:
    """The words of `spaced_spans`; `text.split()` but in scripts without spaces.

    >>> spaced_words("Well,  it's so: 東京。")
    ['Well,', "it's", 'so:', '東', '京。']
    """
    return text.split() if _is_plain(text) else list(_patterns()["spaced"].findall(text))


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
    every = _every()
    lowered = "".join([every[:DOTTED_I].lower(), "i", every[DOTTED_I + 1 :].lower()])
    points = np.frombuffer(lowered.encode("utf-32-le", "surrogatepass"), np.uint32)
    return points << np.uint32(3) | _classes(rule)


def _every() -> str:
    return np.arange(sys.maxunicode + 1, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")


def _classes(rule: str) -> NDArray[np.uint8]:
    """Class of each code point."""
    if rule == "unicode":
        members = [(kind, regex.compile(f"{known}+", regex.V1)) for kind, known in _CLASSES.items()]
        members.append((SPACE, re.compile(r"\s+")))
    else:
        engine: Any = {"regex": regex, "re": re}[rule]
        members = [(WORD, engine.compile(r"\w+")), (SPACE, engine.compile(r"\s+"))]
    every = _every()
    kinds = np.full(len(every), SIGN, np.uint8)
    for kind, pattern in members:
        for found in pattern.finditer(every):
            kinds[found.start() : found.end()] = kind
    return kinds


@lru_cache(maxsize=1)
def _special() -> NDArray[np.bool_]:
    """Which code points Python's `re` does not see as this module does: marks, letters without spaces, a few more."""
    return np.asarray(_classes("unicode") != _classes("re"))


def _is_plain(text: str) -> bool:
    """Whether `re` cuts a text as this module does, and sooner."""
    if text.isascii():
        return True
    return not _special()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)].any()


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


_PLAIN = {
    name: re.compile(pattern)
    for name, pattern in {
        "word": r"\w+",
        "token": r"\w+|[^\w\s]",
        "unicode": r"\w+|[^\w\s]+",
        "spaced": r"\S+",
    }.items()
}


def _pattern(name: str, text: str) -> Any:
    return _PLAIN[name] if name in _PLAIN and _is_plain(text) else _patterns()[name]
