"""Statistics and rules of texts against counts by hand, a brute force, and on bad input."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_prune as hp
from hf_prune.scorers.heuristics import REPEAT_ORDERS, RULES, STATISTICS, TOP_ORDERS, ngram_repeats, text_statistics

GOOD = (
    "The river rises in the hills of the north and runs to the sea, with many towns along its banks that have been "
    "there for centuries. Boats carry grain and timber downstream in spring. In autumn the water is low, so people "
    "walk across at the old ford near the mill. Few visitors come, but those who do tend to stay. A museum shows "
    "how the ferry worked before the bridge was built."
)


def test_counts_by_hand():
    text = "# One two...\n\n• to be\n• to be\nlast line is 42 …\n"
    found = text_statistics(text)
    assert found["n_words"] == 14 and found["n_bytes"] == len(text.encode())
    assert found["hash_ratio"] == 1 / 14 and found["ellipsis_ratio"] == 2 / 14
    assert found["bullet_line_fraction"] == 0.5 and found["ellipsis_line_fraction"] == 0.5
    assert found["alpha_word_fraction"] == 9 / 14 and found["stop_words"] == 2
    assert found["duplicate_line_fraction"] == 0.25 and found["duplicate_paragraph_fraction"] == 0
    assert found["duplicate_line_char_fraction"] == 7 / (12 + 7 + 7 + 17)
    assert found["newline_ratio"] == 5 / 14 and found["short_line_fraction"] == 1
    assert set(found) == set(STATISTICS)


def test_paragraphs_and_placeholders():
    found = text_statistics("Same here. \n \nOther!\n\nSame here.\n\nSame here.")
    assert found["duplicate_paragraph_fraction"] == 0.5 and found["n_sentences"] == 4
    assert text_statistics("Lorem Ipsum dolor")["placeholder"] == text_statistics("a { b")["placeholder"] == 1


def brute_force(words):
    total, out = sum(map(len, words)), {}
    for n in [*TOP_ORDERS, *REPEAT_ORDERS]:
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        if n in TOP_ORDERS:
            most = max(map(grams.count, grams), default=0)
            chars = max((sum(map(len, g)) for g in grams if grams.count(g) == most), default=0)
            out[f"top_{n}gram_char_fraction"] = most * chars / total if most > 1 else 0.0
        else:
            inside = {i + j for i, g in enumerate(grams) if g in grams[:i] for j in range(n)}
            out[f"duplicate_{n}gram_char_fraction"] = sum(len(words[i]) for i in inside) / total if total else 0.0
    return out


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "ccc", "é"]), max_size=40))
def test_repeated_ngrams_equal_a_brute_force(words):
    assert ngram_repeats(words) == pytest.approx(brute_force(words))
    assert ngram_repeats(words * 2) == pytest.approx(brute_force(words * 2))


def test_rules_tell_good_from_bad():
    score = hp.TextStatistics(statistics=())
    bad = ["buy now " * 40, "• a\n" * 60, "# " * 60, "1 2 3 4 5 6 " * 20, "word", ""]
    out = score({"text": [GOOD, *bad]})["text_rules"]
    assert out[0] == 1 and (out[1:] < 1).all() and out[-1] == 0
    for rules in RULES:
        assert hp.TextStatistics(rules=rules)({"text": [GOOD]})["text_rules"][0] == 1
    assert hp.TextStatistics(rules="c4")({"text": ["x { y"]})["text_rules"][0] == 0


def test_nothing_is_dropped_and_bad_input_is_told():
    ds = datasets.Dataset.from_dict({"text": [GOOD, None, "", "漢字 👍", "x" * 1_000_000]})
    out = ds.map(hp.TextStatistics(), batched=True)
    assert len(out) == 5 and np.isnan(out["text_rules"][:][1]) and np.isnan(out["text_rules_n_words"][:][1])
    kept = hp.filter_by_score(out, "text_rules", threshold=1.0, nulls="drop")
    assert kept["text"][:] == [GOOD]
    with pytest.raises(ValueError, match="rules='mine' is not one of"):
        hp.TextStatistics(rules="mine")
    with pytest.raises(ValueError, match="statistics \\['length'\\] are not known"):
        hp.TextStatistics(statistics=("length",))
    with pytest.raises(TypeError, match="row 0 of this batch is bytes"):
        hp.TextStatistics()({"text": [b"x"]})
