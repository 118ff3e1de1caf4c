"""Length and repetition heuristics of Gopher, C4 and FineWeb: statistics of a text, the share of rules it passes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import regex

from hf_prune.data.batch import Batch
from hf_prune.data.texts import NULL, read_texts
from hf_prune.data.words import spaced_words, tokens
from hf_prune.scorer import Scorer

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("•", "‣", "▪", "●", "-", "*")
ELLIPSES = ("...", "…")
TOP_ORDERS, REPEAT_ORDERS = range(2, 5), range(5, 11)
_PARAGRAPH = re.compile(r"\n\s*\n")
# begins at the first mark of a run and gives nothing back, so that a run of marks is read once, not once a mark
_SENTENCE = re.compile(r"(?<![.!?])[.!?]++[\"'”’)\]]*+(?=\s|$)")
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
LONG_WORD = 1000  # characters from which C4 takes a word for no word

STATISTICS: dict[str, str] = {
    "n_bytes": "length in bytes of UTF-8",
    "n_words": "number of words: runs of anything but white space, cut further in scripts without spaces",
    "mean_word_length": "characters a word",
    "hash_ratio": "number of # over words",
    "ellipsis_ratio": "number of ... and … over words",
    "bullet_line_fraction": "share of lines that begin with a bullet, - or *; lines are those that are not blank",
    "ellipsis_line_fraction": "share of lines that end with ... or …",
    "alpha_word_fraction": "share of words with a letter in them",
    "stop_words": "how many of the, be, to, of, and, that, have, with occur",
    "duplicate_line_fraction": "share of lines that repeat an earlier one",
    "duplicate_line_char_fraction": "share of the lines' characters in such lines",
    "duplicate_paragraph_fraction": "share of paragraphs (parted by blank lines) that repeat an earlier one",
    "duplicate_paragraph_char_fraction": "share of the paragraphs' characters in such paragraphs",
    **{
        f"top_{n}gram_char_fraction": f"share of the words' characters in the commonest {n}-gram, its length times its "
        "count; 0 if none occurs twice"
        for n in TOP_ORDERS
    },
    **{
        f"duplicate_{n}gram_char_fraction": f"share of the words' characters in words of {n}-grams that repeat an "
        "earlier one, each word once"
        for n in REPEAT_ORDERS
    },
    "n_sentences": "number of runs of . ! ? before white space or the end",
    "c4_sentences": "sentences in the lines that the code of C4 keeps: five words, an end mark, no policy or script",
    "c4_placeholder": "1 where such a line has 'lorem ipsum' or an opening curly bracket",
    "c4_paper_sentences": "sentences in the lines that the paper on C4 keeps: three words, an end mark",
    "c4_paper_placeholder": "1 where such a line has 'lorem ipsum' or an opening curly bracket",
    "terminal_line_fraction": "share of lines that end with a mark that ends sentences in some script; lines are what "
    "line feeds part, blank ones left out",
    "short_line_fraction": "share of such lines of 30 characters or fewer",
    "repeated_line_char_fraction": "characters of such lines that repeat an earlier one, over all but line feeds",
    "newline_ratio": "number of line feeds over tokens: words and punctuation marks",
}

Rule = tuple[str, Callable[[float], bool]]


def _at_most(limit: float) -> Callable[[float], bool]:
    return lambda value: value <= limit


def _at_least(limit: float) -> Callable[[float], bool]:
    return lambda value: value >= limit


RULES: dict[str, tuple[Rule, ...]] = {
    "gopher": (
        ("n_words", lambda value: 50 <= value <= 100_000),
        ("mean_word_length", lambda value: 3 <= value <= 10),
        ("hash_ratio", _at_most(0.1)),
        ("ellipsis_ratio", _at_most(0.1)),
        ("bullet_line_fraction", _at_most(0.9)),
        ("ellipsis_line_fraction", _at_most(0.3)),
        ("alpha_word_fraction", _at_least(0.8)),
        ("stop_words", _at_least(2)),
        ("duplicate_line_fraction", _at_most(0.3)),
        ("duplicate_paragraph_fraction", _at_most(0.3)),
        ("duplicate_line_char_fraction", _at_most(0.2)),
        ("duplicate_paragraph_char_fraction", _at_most(0.2)),
        *(
            (f"top_{n}gram_char_fraction", _at_most(limit))
            for n, limit in zip(TOP_ORDERS, (0.2, 0.18, 0.16), strict=True)
        ),
        *(
            (f"duplicate_{n}gram_char_fraction", _at_most(limit))
            for n, limit in zip(REPEAT_ORDERS, (0.15, 0.14, 0.13, 0.12, 0.11, 0.1), strict=True)
        ),
    ),
    "c4": (
        ("c4_sentences", _at_least(3)),
        ("c4_placeholder", _at_most(0)),
    ),
    "c4-paper": (
        ("c4_paper_sentences", _at_least(5)),
        ("c4_paper_placeholder", _at_most(0)),
    ),
    "fineweb": (
        ("terminal_line_fraction", _at_least(0.12)),
        ("repeated_line_char_fraction", _at_most(0.01)),
        ("short_line_fraction", _at_most(0.67)),
        ("newline_ratio", _at_most(0.3)),
    ),
    "fineweb-paper": (
        ("terminal_line_fraction", lambda value: value > 0.12),
        ("repeated_line_char_fraction", lambda value: value < 0.1),
        ("short_line_fraction", lambda value: value < 0.67),
    ),
}
SOURCES: dict[str, str] = {
    "gopher": "Rae et al., Scaling Language Models (Gopher), 2021, arXiv 2112.11446, section A.1.1 and table A1",
    "c4": "tensorflow_datasets, text/c4_utils.py, clean_page (without its list of bad words), which made C4",
    "c4-paper": "Raffel et al., 2020, section 2.2, as in C4QualityFilter of datatrove 0.10.1",
    "fineweb": "FineWebQualityFilter of datatrove 0.10.1, which made FineWeb",
    "fineweb-paper": "Penedo et al., 2024, arXiv 2406.17557, section 3.6",
}


def repeated_chars(parts: Sequence[str]) -> int:
    """Characters in the parts that equal an earlier one.

    >>> repeated_chars(["ab", "c", "ab", "ab"])
    4
    """
    seen: set[str] = set()
    return sum(len(part) for part in parts if part in seen or seen.add(part))  # type: ignore[func-returns-value,misc]


def repeats(parts: Sequence[str]) -> tuple[float, float]:
    """Share of the parts that equal an earlier one, and share of all characters that are in them.

    >>> repeats(["ab", "c", "ab", "ab"])
    (0.5, 0.5714285714285714)
    """
    seen: set[str] = set()
    again = [part for part in parts if part in seen or seen.add(part)]  # type: ignore[func-returns-value]
    total = sum(map(len, parts))
    return (len(again) / len(parts) if parts else 0.0), (sum(map(len, again)) / total if total else 0.0)


def ngram_repeats(words: Sequence[str]) -> dict[str, float]:
    """Shares of characters in the commonest n-gram (n = 2..4) and in n-grams that occurred before (n = 5..10).

    >>> found = ngram_repeats("to be or not to be".split())
    >>> found["top_2gram_char_fraction"], found["top_3gram_char_fraction"]
    (0.6153846153846154, 0.0)
    """
    lengths = np.array([len(word) for word in words], np.int64)
    total, ends = int(lengths.sum()), np.append(0, np.cumsum(lengths))
    top = {f"top_{n}gram_char_fraction": 0.0 for n in TOP_ORDERS}
    repeated = {f"duplicate_{n}gram_char_fraction": 0.0 for n in REPEAT_ORDERS}
    _, single = np.unique(np.array(words, object), return_inverse=True) if words else (None, np.zeros(0, np.int64))
    ids = single.astype(np.int64)
    for n in range(2, REPEAT_ORDERS.stop):
        # an n-gram is the (n - 1)-gram it begins with and its last word, both as numbers
        pairs = ids[:-1] * len(words) + single[n - 1 :]
        _, first, ids, counts = np.unique(pairs, return_index=True, return_inverse=True, return_counts=True)
        if len(first) == len(pairs):
            break  # none occurs twice, so none of a higher order does
        if n in TOP_ORDERS:
            most = first[counts == counts.max()]
            top[f"top_{n}gram_char_fraction"] = int((ends[most + n] - ends[most]).max()) * int(counts.max()) / total
        else:
            later = np.flatnonzero(first[ids] != np.arange(len(pairs)))
            covered = np.zeros(len(words) + 1, np.int64)
            np.add.at(covered, later, 1)
            np.add.at(covered, later + n, -1)
            repeated[f"duplicate_{n}gram_char_fraction"] = int(lengths[np.cumsum(covered[:-1]) > 0].sum()) / total
    return top | repeated


def c4_page(text: str, words: int, marks: tuple[str, ...], with_citations: bool = False) -> tuple[int, bool]:
    r"""Sentences in the lines of a page that C4 keeps, and whether one of them makes it drop the page.

    A line is kept with an end mark (no ellipsis), enough words, none of them of over 1 000 characters, no notice on
    JavaScript or policies; "lorem ipsum" and curly brackets count in lines that have an end mark and enough words.

    Args:
        text: the page.
        words: least number in a line.
        marks: what lines may end with.
        with_citations: count `[1]` and its like as words; they are removed in any case.

    >>> c4_page("One two three. Four!\nno mark here\n[1] Too short.\nA line has { inside it.", 3, (".", "!"))
    (3, True)
    """
    sentences, dropped = 0, False
    for line in map(str.strip, text.splitlines()):
        if not line.endswith((*marks, "]")):
            continue  # most lines, and quickly; what ends in a citation is looked at
        parts = line.split()
        if len(line) > LONG_WORD and any(len(part) > LONG_WORD for part in parts):
            continue
        if "[" in line:
            line = _CITATION.sub("", line)
            parts = parts if with_citations else line.split()
        if len(parts) < words or not line.endswith(marks) or line.endswith("..."):
            continue
        low = line.lower()
        dropped |= "lorem ipsum" in low
        if "javascript" in low:
            continue
        dropped |= "{" in line
        if not any(policy in low for policy in POLICIES):
            ends = [found.end() for found in _SENTENCE.finditer(line)]
            sentences += len(ends) + (ends[-1:] != [len(line)])
    return sentences, dropped


@functools.lru_cache(maxsize=4096)
def ends_sentence(mark: str) -> bool:
    """Whether a character ends sentences in some script (Unicode's property Sentence_Terminal)."""
    return regex.fullmatch(r"\p{Sentence_Terminal}", mark) is not None


def text_statistics(text: str) -> dict[str, float]:
    r"""All `STATISTICS` of a text; those of an empty one are 0.

    >>> found = text_statistics("Hello world.\n- Hello world.")
    >>> found["n_words"], found["bullet_line_fraction"], round(found["mean_word_length"], 2)
    (5.0, 0.5, 4.6)
    """
    words = spaced_words(text)
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    if not words:
        return {**dict.fromkeys(STATISTICS, 0.0), "n_bytes": float(len(text.encode(errors="surrogatepass")))}
    n, many = len(words), len(lines)
    duplicate_lines, duplicate_line_chars = repeats(lines)
    duplicate_paragraphs, duplicate_paragraph_chars = repeats([p.strip() for p in _PARAGRAPH.split(text.strip())])
    hanging = [line.endswith(ELLIPSES) for line in lines]
    code, code_drops = c4_page(text, 5, (".", "?", "!", '"'))
    paper, paper_drops = c4_page(text, 3, (".", "?", "!", '"', "'"), with_citations=True)
    fed = [line for line in text.split("\n") if line.strip()]
    return {
        "n_bytes": float(len(text.encode(errors="surrogatepass"))),
        "n_words": float(n),
        "mean_word_length": sum(map(len, words)) / n,
        "hash_ratio": text.count("#") / n,
        "ellipsis_ratio": sum(map(text.count, ELLIPSES)) / n,
        "bullet_line_fraction": sum(line.startswith(BULLETS) for line in lines) / many,
        "ellipsis_line_fraction": sum(hanging) / many,
        "alpha_word_fraction": sum(any(map(str.isalpha, word)) for word in words) / n,
        "stop_words": float(len(STOP_WORDS.intersection(map(str.lower, words)))),
        "duplicate_line_fraction": duplicate_lines,
        "duplicate_line_char_fraction": duplicate_line_chars,
        "duplicate_paragraph_fraction": duplicate_paragraphs,
        "duplicate_paragraph_char_fraction": duplicate_paragraph_chars,
        **ngram_repeats(words),
        "n_sentences": float(len(_SENTENCE.findall(text))),
        "c4_sentences": float(code),
        "c4_placeholder": float(code_drops),
        "c4_paper_sentences": float(paper),
        "c4_paper_placeholder": float(paper_drops),
        "terminal_line_fraction": sum(ends_sentence(line[-1]) for line in fed) / len(fed),
        "short_line_fraction": sum(len(line) <= 30 for line in fed) / len(fed),
        "repeated_line_char_fraction": repeated_chars(fed) / (len(text) - text.count("\n")),
        "newline_ratio": text.count("\n") / len(tokens(text, "token", lower=False)),
    }


def pass_fraction(statistics: dict[str, float], rules: str = "gopher") -> float:
    """Share of a set of rules that a text's statistics pass; 0 for a text without words."""
    if not statistics["n_words"]:
        return 0.0
    chosen = RULES[rules]
    return sum(passes(statistics[name]) for name, passes in chosen) / len(chosen)


@dataclass(frozen=True, eq=False)
class TextStatistics(Scorer):
    """Share of published length and repetition rules that a text passes, and what they are made of. High = keep.

    The published filters drop a text that fails one rule:
    `filter_by_score(ds, "text_rules", threshold=1.0)` keeps what they keep. Where the code that made a dataset and the
    paper on it differ, both are here (`SOURCES` names each file and version):

    - "gopher" (the paper; its authors published no code): 50 to 100 000 words; 3 to 10 characters a word; at most 0.1
      hashes and 0.1 ellipses a word; at most 90 % of lines begin with a bullet, 30 % end with an ellipsis; 80 % of
      words hold a letter; two of eight English stop words; and the thirteen limits on repetition of its table A1 (0.3
      duplicate lines, ..., 0.1 of characters in duplicate 10-grams).
    - "c4" (the code): three sentences in the lines it keeps, which have five words and an end mark, no word of over
      1 000 characters, nothing on JavaScript or policies; no curly bracket or "lorem ipsum" in such lines.
    - "c4-paper": five sentences in lines of three words.
    - "fineweb" (the code): at least 12 % of lines end in punctuation; at most 1 % of characters in repeated lines; at
      most 67 % of lines of at most 30 characters; at most 0.3 line feeds a token.
    - "fineweb-paper": more than 12 %, less than 10 %, less than 67 %, no limit on line feeds.

    Words are parted by white space, and in scripts without spaces by Unicode's word boundaries (`hf_prune.data.words`):
    there most words are one letter, and the rules on their length, made for English, fail. The authors of Gopher do not
    say how they cut words; for C4 only white space parts them. A sentence ends at . ! ? before white space, where C4
    takes NLTK's model of English: on 1 994 texts of nine domains "c4" decides 18 otherwise than datatrove's filter with
    the same limits, "c4-paper" 7, "fineweb-paper" 1, "fineweb" none. A duplicate is what equals an earlier one. A text
    without words scores 0, a null NaN.

    Args:
        text: column, columns, nested path or chat column.
        rules: "gopher", "c4", "c4-paper", "fineweb" or "fineweb-paper".
        statistics: of `hf_prune.scorers.heuristics.STATISTICS`, written to `<name>_<statistic>`; () for none.
        name: column.

    Reference: Rae et al., 2021, arXiv 2112.11446, A.1.1; Raffel et al., 2020, section 2.2; Penedo et al., 2024,
        arXiv 2406.17557.

    >>> TextStatistics(statistics=("n_words",))({"text": ["the cat and the dog " * 20, "#"]})
    {'text_rules': array([0.5714286, 0.7619048], dtype=float32),
     'text_rules_n_words': array([100.,   1.], dtype=float32)}
    """

    version: ClassVar[int] = 2
    meaning: ClassVar[str] = "passes many rules on length, symbols and repetition"
    nan_rows: ClassVar[bool] = True

    text: str | tuple[str, ...] = "text"
    rules: str = "gopher"
    statistics: tuple[str, ...] = tuple(STATISTICS)
    name: str = "text_rules"

    def check_fields(self) -> None:
        if self.rules not in RULES:
            raise ValueError(f"rules={self.rules!r} is not one of {tuple(RULES)}")
        unknown = sorted(set(self.statistics) - set(STATISTICS))
        if unknown:
            raise ValueError(f"statistics {unknown} are not known; choose from {list(STATISTICS)}")

    @property
    def paper(self) -> str:  # type: ignore[override]
        """Where the rules are from."""
        return SOURCES[self.rules]

    @property
    def raw(self) -> str:  # type: ignore[override]
        """What the share is of."""
        return f"share of the {len(RULES[self.rules])} rules of {self.rules} that pass; NaN for null texts"

    def columns(self) -> dict[str, str]:
        return {self.name: "float32", **{f"{self.name}_{s}": "float32" for s in self.statistics}}

    def companions(self) -> dict[str, str]:
        return {f"{self.name}_{s}": STATISTICS[s] for s in self.statistics}

    def score(self, batch: Batch, rank: int | None) -> Any:
        paths = (self.text,) if isinstance(self.text, str) else self.text
        texts, bad, _ = read_texts(batch, paths)
        found = [text_statistics(text) for text in texts]
        out = {f"{self.name}_{s}": np.array([f[s] for f in found], np.float32) for s in self.statistics}
        out[self.name] = np.array([pass_fraction(f, self.rules) for f in found], np.float32)
        null = [row for row, why in bad.items() if why == NULL]
        for values in out.values():
            values[null] = np.nan
        return out
