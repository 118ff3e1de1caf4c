"""Words of nineteen scripts, by hand and by Unicode's own rules, and what is computed from them everywhere."""

from __future__ import annotations

import re

import datasets
import numpy as np
import pyarrow as pa
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import SPACED, UNSPACED, WORDS

import hf_prune as hp
from hf_prune.data import words
from hf_prune.data.batch import Batch
from hf_prune.data.reading import texts_of
from hf_prune.dedup._kernels import token_hash_plain
from hf_prune.dedup._substring_kernels import repeated_spans_plain
from hf_prune.dedup.corpus import tokens_of
from hf_prune.scorers import _ngrams
from hf_prune.scorers.heuristics import text_statistics

SCRIPTS = pytest.mark.parametrize("script", WORDS)
MARKS = list("\u0301\u093c\u093f\u094d\u064e\u05b8\u0e31\u0e33\u17d2\u200c\u200d\ufe0f\uff9e\u20e3")
MIXED = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from(MARKS),
        st.sampled_from(list(" \n\u3000_-.,。،ab9²é漢字かカーｶไทยກខក្မလ가अआשת🏽👨❤🇫\u00ad\u200b\u0130Σ\x1c")),
    ),
    max_size=40,
)


def by_uax29(text):
    """Word boundaries of UAX 29 by the package `regex`; the pieces that hold a letter, a digit or a mark."""
    return [piece for piece in regex.split(r"\b", text, flags=regex.V1 | regex.WORD) if regex.match(r"\w", piece)]


def kernel_hashes(texts, unit, lower=False):
    held = texts_of(Batch({"text": texts}), "text")
    starts, ends, found = tokens_of(held, np.arange(len(texts)), unit, lower)
    return [found[a:b].tolist() for a, b in zip(starts, ends, strict=True)]


@SCRIPTS
def test_words_of_a_script(script):
    text, expected = WORDS[script]
    assert words.tokens(text, lower=False) == expected == by_uax29(text)
    if script in SPACED:
        assert regex.findall(r"\w+", text) == expected
    else:
        assert words.spaced_words(text) != text.split()


letters = st.characters(categories=["L", "Nd"], exclude_characters="\u0130")
clusters = st.builds(str.__add__, letters, st.text(st.characters(categories=["Mn", "Mc"]), max_size=2))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(clusters, st.just(" ")), max_size=20).map("".join))
def test_letters_and_marks_of_any_script_are_cut_by_uax29(text):
    assert words.tokens(text, lower=False) == by_uax29(text)


@settings(deadline=None, max_examples=200)
@given(MIXED)
def test_no_letter_is_lost_and_no_word_begins_with_a_mark(text):
    pieces = words.tokens(text, "token", lower=False)
    assert "".join(pieces) == "".join(text.split())
    assert [p for p in pieces if not regex.fullmatch(r"(?V1)[[^\w\p{N}]\p{M}\p{Join_Control}]+", p)] == words.tokens(
        text, lower=False
    )
    assert "".join(words.sign_runs(text)) == "".join(pieces)
    assert "".join(words.spaced_words(text)) == "".join(text.split())
    assert [text[a:b] for a, b in words.spaced_spans(text)] == words.spaced_words(text)
    if not regex.search(r"(?V1)[[\p{WB=Other}&&[\p{L}\p{Nl}]]\p{WB=Katakana}]", text):
        assert words.spaced_words(text) == text.split()


@settings(deadline=None, max_examples=200)
@given(st.lists(MIXED, min_size=1, max_size=4), st.sampled_from(words.UNITS), st.booleans())
def test_kernels_cut_as_the_definition_does(texts, unit, lower):
    expected = [[token_hash_plain(t, unit) for t in words.tokens(text, unit, lower)] for text in texts]
    assert kernel_hashes(texts, unit, lower) == expected
    for rule in words.RULES:
        parts = _ngrams.hash_texts(pa.array(texts, pa.large_string()), 2, 997, "fast", lambda i, x: x, "test", rule)
        found = [ids.tolist() for p in parts for ids in np.split(p.ids, p.stops[:-1])]
        assert found == [_ngrams.ngram_buckets(t, 2, 997, "fast", rule) for t in texts]


def test_every_character_is_cut_as_the_definition_does():
    texts = ["".join(f"{chr(c)}\u0301x " for c in range(first, first + 4096) if not 0xD800 <= c < 0xE000)
             for first in [*range(0, 0x2_0000, 4096), 0x3_0000, 0xE_0000]]  # fmt: skip
    for unit in ("word", "token"):
        for text, found in zip(texts, kernel_hashes(texts, unit), strict=True):
            assert found == [token_hash_plain(t) for t in words.tokens(text, unit, lower=False)]


def test_what_python_calls_a_word_was_kept():
    """In texts without marks of scripts with spaces nothing is cut otherwise than by `re`."""
    text = "Don't stop_me: ÉCOLE 42, naïve m² ½ Ελλάδα 😀 x—y\x1cz Straße ŒUVRE\u00ad İstanbul Ⅷ"
    assert words.tokens(text, lower=False) == re.findall(r"\w+", text)
    assert words.tokens(text, "token", lower=False) == re.findall(r"\w+|[^\w\s]", text)
    assert words.sign_runs(text) == re.findall(r"\w+|[^\w\s]+", text) == words.sign_runs(text, "re")
    assert words.spaced_words(text) == text.split()


def test_marks_on_signs_and_on_nothing():
    assert words.tokens("❤️ 👨‍👩‍👧 1️⃣ !\u0301a", "token") == ["❤️", "👨‍", "👩‍", "👧", "1️⃣", "!\u0301", "a"]
    assert words.tokens("❤️ 👨‍👩‍👧 1️⃣ !\u0301a \u0301b") == ["1️⃣", "a", "b"]
    assert words.sign_runs("❤️!! \u0301\u0301.a") == ["❤️!!", "\u0301\u0301.", "a"]


# of data-selection 1.0.3, get_ngram_counts(text, 2, 10_000): n-grams, and the sum of their buckets, by NLTK's version
PUBLISHED = {
    "regex": {  # NLTK 3.10.4
        "hindi": (17, 95226), "bengali": (11, 60222), "tamil": (13, 57849), "telugu": (9, 44767), "sinhala": (9, 42724),
        "arabic": (13, 52490), "persian": (11, 59719), "hebrew": (11, 54233), "nfd": (11, 62655),
        "cyrillic": (17, 75559), "greek": (11, 43163), "korean": (9, 42357), "amharic": (9, 49554),
        "chinese": (7, 20900), "japanese": (3, 9297), "thai": (5, 34870), "lao": (1, 3946), "khmer": (1, 6530),
        "burmese": (1, 2475),
    },
    "re": {  # NLTK 3.9.1
        "hindi": (39, 210229), "bengali": (37, 181911), "tamil": (55, 261945), "telugu": (39, 187781),
        "sinhala": (27, 136966), "arabic": (51, 272219), "persian": (19, 106647), "hebrew": (63, 338373),
        "nfd": (27, 147723), "cyrillic": (17, 75559), "greek": (11, 43163), "korean": (9, 42357), "amharic": (9, 49554),
        "chinese": (7, 20900), "japanese": (3, 9297), "thai": (15, 75843), "lao": (7, 44751), "khmer": (17, 98653),
        "burmese": (15, 74792),
    },
}  # fmt: skip


@SCRIPTS
def test_dsir_of_a_script(script):
    text, expected = WORDS[script]
    ds = datasets.Dataset.from_dict({"text": [text]})
    for rule, known in PUBLISHED.items():
        counts = hp.NgramCounts.of(ds, words=rule).counts
        assert (counts.sum(), counts @ np.arange(10_000)) == known[script]
    counts = hp.NgramCounts.of(ds).counts
    if script in SPACED:
        assert (counts.sum(), counts @ np.arange(10_000)) == PUBLISHED["regex"][script]
    bare = datasets.Dataset.from_dict({"text": [" ".join(expected)]})
    other = datasets.Dataset.from_dict({"text": ["plain english words", " ".join(expected[::-1])]})
    scorer = hp.DSIR.fit(other, bare, smoothing=1, buckets=99)
    tokens = [t.lower() for t in expected]
    grams = [tokens[i - n : i] for n in (1, 2) for i in range(n, len(tokens) + 1)]
    by_hand = scorer.weights()[0][[_ngrams.bucket_of(g, 99) for g in grams]].sum()
    assert scorer({"text": [" ".join(expected)]})["dsir"] == pytest.approx(by_hand)


@SCRIPTS
def test_minhash_of_a_script(script):
    """Sentences that differ in one word: the similarity is that of their sets of words, and no copy is seen in them."""
    text, expected = WORDS[script]
    changed = [*expected[:-1], expected[-2]]
    ds = datasets.Dataset.from_dict({"text": [text, " ".join(changed)]})
    score = hp.MinHashDedup.fit(ds, ngram=1, threshold=0.1)(ds[:])["minhash"]
    one, two = ({w.lower() for w in side} for side in (expected, changed))
    assert score == pytest.approx([1 - len(one & two) / len(one | two)] * 2)


@SCRIPTS
def test_substring_of_a_script(script):
    text, expected = WORDS[script]
    tail = expected[1:]
    ds = datasets.Dataset.from_dict({"text": [text, "other " + " ".join(tail)]})
    scorer = hp.SubstringDedup.fit(ds, min_tokens=2, unit="word")
    spans = repeated_spans_plain([expected, ["other", *tail]], 2)
    share = [sum(b - a for a, b in s) / len(t) for s, t in zip(spans, (expected, ["other", *tail]), strict=True)]
    assert scorer(ds[:])["substring"] == pytest.approx([1 - x for x in share], abs=1e-6)
    left = hp.RemoveRepeats(scorer, keep="none")(ds[:])["text"]
    cut = [{i for a, b in s for i in range(a, b)} for s in spans]
    if script == "khmer":  # the first two words are one character to the eye
        assert left[0] == "ឆ្មា"
    else:
        assert words.tokens(left[0], lower=False) == [w for i, w in enumerate(expected) if i not in cut[0]]
    assert words.tokens(left[1]) == ["other"]


@SCRIPTS
def test_chunks_and_statistics_of_a_script(script):
    text, expected = WORDS[script]
    ds = datasets.Dataset.from_dict({"text": [text]})
    chunks = hp.chunk_texts(ds, words=1)["text"][:]
    assert [words.tokens(c, lower=False) for c in chunks] == [[w] for w in expected]
    found = text_statistics(text)
    assert found["n_words"] == len(expected) and found["alpha_word_fraction"] == sum(
        any(map(str.isalpha, w)) for w in expected
    ) / len(expected)


def test_a_vowel_sign_is_never_parted_from_its_letter():
    stem = "".join(UNSPACED["thai"][0].split()) + "น้ำ"
    ds = datasets.Dataset.from_dict({"text": [f"ก{stem}", f"ค{stem[3:]}", "กำแพงดี", "คำแพงดี"]})
    for unit in words.UNITS:
        left = hp.RemoveRepeats(hp.SubstringDedup.fit(ds, min_tokens=3, unit=unit), keep="none")(ds[:])["text"]
        assert left[2:] == ["กำ", "คำ"]  # the token that repeats first is the vowel: it stays with its letter


# texts that have no UTF-8


HALF = {"text": ["fine", "half \ud83d of a pair", None]}


@pytest.mark.parametrize(
    "make",
    [
        lambda good: hp.MinHashDedup.fit(good),
        lambda good: hp.ExactDedup.fit(good),
        lambda good: hp.SubstringDedup.fit(good),
        lambda good: hp.DSIR.fit(good, good),
        lambda good: hp.TextStatistics(),
        lambda good: hp.TextStatistics(text=["text", "text"]),
        lambda good: lambda batch: hp.RemoveRepeats(hp.SubstringDedup.fit(good))(batch),
    ],
)
def test_half_a_surrogate_pair_is_told(make):
    scorer = make(datasets.Dataset.from_dict({"text": ["fine", "whole"]}))
    with pytest.raises(
        ValueError, match=r"text of row 1 of this batch holds '\\ud83d', half of a surrogate pair, .*decode"
    ):
        scorer(HALF)


def test_half_a_surrogate_pair_in_streams_chunks_and_chats():
    def rows():
        yield {"text": "half \udc00", "chat": [{"role": "user", "content": None, "name": "\udc00"}]}

    stream = datasets.IterableDataset.from_generator(rows)
    for fit in (hp.MinHashDedup.fit, hp.ExactDedup.fit, hp.SubstringDedup.fit):
        for text in ("text", "chat"):
            with pytest.raises(ValueError, match="row 0 of this batch holds .* half of a surrogate pair"):
                fit(stream, text=text)
    with pytest.raises(ValueError, match="chunk_texts: the text of row 0 of this batch holds"):
        texts = datasets.Features({"text": datasets.Value("string")})
        stream = datasets.IterableDataset.from_generator(lambda: iter([{"text": "half \udc00"}]), features=texts)
        next(iter(hp.chunk_texts(stream, words=1)))
