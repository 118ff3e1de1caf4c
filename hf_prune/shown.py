"""What may be shown: text from data without what a terminal obeys, and any text without tokens."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

REMOVED = "(token removed)"
# of users, OAuth applications, jobs and organisations; in their old and new forms
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_(?:oauth|jwt)_[\w.~+/=-]{8,}|hf_[A-Za-z0-9]{16,}(?![A-Za-z0-9_])|api_org_[A-Za-z0-9]{8,})"
)
_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # part of words and of emoji


def printable(text: object, lines: bool = False) -> str:
    r"""Text in which control characters, and those that turn the direction of writing, are shown and not obeyed.

    Args:
        text: from data, or from anywhere.
        lines: ends of lines stay: for text of several lines that is ours.

    >>> print(printable("a\x1b[31mb\u202ec\n"))
    a\x1b[31mb\u202ec\n
    """
    found = str(text)
    if found.isascii() and found.isprintable():
        return found
    return "".join(_shown(c) if not (lines and c == "\n") else c for c in found)


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _OBEYED or character in _JOINERS:
        return character
    return character.encode("unicode_escape").decode()


def without_tokens(value: Any) -> Any:
    """Any JSON value without access tokens of the Hub; keys are looked at, too.

    >>> without_tokens({"url": "https://me:hf_abcdefghijklmnopqrst@huggingface.co", "k": 3})
    {'url': 'https://me:(token removed)@huggingface.co', 'k': 3}
    """
    if isinstance(value, str):
        return _TOKEN.sub(REMOVED, value)
    if isinstance(value, Mapping):
        return {without_tokens(k): without_tokens(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_tokens(v) for v in value]
    return value
