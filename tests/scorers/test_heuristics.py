"""Statistics and rules of texts against counts by hand, a brute force, and on bad input."""

from __future__ import annotations

import time

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_prune as hp
from hf_prune.scorers.heuristics import (
    REPEAT_ORDERS,
    RULES,
    SOURCES,
    STATISTICS,
    TOP_ORDERS,
    ngram_repeats,
    text_statistics,
)

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
    assert found["newline_ratio"] == 5 / 17 and found["short_line_fraction"] == 1  # the first line has six tokens
    assert set(found) == set(STATISTICS)


def test_paragraphs_and_placeholders():
    found = text_statistics("Same here. \n \nOther!\n\nSame here.\n\nSame here.")
    assert found["duplicate_paragraph_fraction"] == 0.5 and found["n_sentences"] == 4
    for text in ("Lorem Ipsum dolor.", "a b { c."):
        assert text_statistics(text)["c4_paper_placeholder"] == 1 and text_statistics(text)["c4_placeholder"] == 0
        assert text_statistics("so then " + text)["c4_placeholder"] == 1
        assert text_statistics(text[:-1])["c4_paper_placeholder"] == 0  # in a line that is dropped for its end


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
    assert set(SOURCES) == set(RULES)


# lines counted by hand, in the order of the code that made C4: what is cut off, what ends a line, how many words, and
# what drops a page before what drops a line
LINES = {
    "One two three four five.": (1, 1),
    "One two three four.": (0, 1),
    "One two.": (0, 0),
    "One two three four five": (0, 0),
    "One two three four five...": (0, 0),
    "One two. Three four! Five?": (3, 3),
    "One two three v1.5 here.": (1, 1),
    'He said "one two three."': (1, 1),
    "He said 'one two three.'": (0, 1),
    "One two three four[1]five.[edit]": (0, 1),
    "[1] [2] one two three.": (0, 1),
    "one [1] [2].": (0, 1),
    "x" * 1001 + " one two three four.": (0, 0),
    "You need JavaScript for this page.": (0, 0),
    "Read our Privacy Policy on this page.": (0, 0),
    "This site uses cookies, as all do.": (0, 0),
    "   One two three four five. \t": (1, 1),
    'Two sentences stand here. This one ends oddly"': (2, 2),
}


def test_lines_of_c4_by_hand():
    for line, (code, paper) in LINES.items():
        found = text_statistics(line)
        assert (found["c4_sentences"], found["c4_paper_sentences"]) == (code, paper), line
        assert found["c4_placeholder"] == found["c4_paper_placeholder"] == 0
    found = text_statistics("\n".join(LINES))
    assert found["c4_sentences"] == sum(code for code, _ in LINES.values())
    assert found["c4_paper_sentences"] == sum(paper for _, paper in LINES.values())
    # a script's line with a bracket is passed over before brackets are looked for, a policy's is not
    assert text_statistics("No javascript { in this page.")["c4_placeholder"] == 0
    assert text_statistics("The cookie policy { in this page.")["c4_placeholder"] == 1


def kept(rules, text):
    return hp.TextStatistics(rules=rules, statistics=())({"text": [text]})["text_rules"][0] == 1


def test_published_variants_differ_where_they_should():
    three, five = "It was a fine day. " * 3, "It was. " * 5
    assert kept("c4", three) and not kept("c4-paper", three)
    assert kept("c4-paper", five + "\nno end") and not kept("c4", "It was.\n" * 5)
    line = "A line of more than thirty characters, with words."
    # 50 of 1 000 characters twice: 5 % repeated
    lines = [f"{i:02d} {line[3:]}" for i in range(19)]
    assert kept("fineweb-paper", "\n".join([*lines, lines[0]])) and not kept("fineweb", "\n".join([*lines, lines[0]]))
    assert kept("fineweb", "\n".join(lines))
    # one of 8 lines ends in a mark: 12.5 %; one of 9: 11.1 %
    open_ended = [f"{i} this line of many words has no mark at its end" for i in range(8)]
    for rules in ("fineweb", "fineweb-paper"):
        assert kept(rules, "\n".join([line, *open_ended[:7]])) and not kept(rules, "\n".join([line, *open_ended]))
    # 3 of 25 lines: 12 % exactly, which the code keeps and the paper drops
    exact = [f"{i} {line}" for i in range(3)] + [f"{i} this line of many words has no mark at all" for i in range(22)]
    assert kept("fineweb", "\n".join(exact)) and not kept("fineweb-paper", "\n".join(exact))
    # 3 short lines of 4 and blank ones, which are no lines but feeds: 6 of them over 18 tokens
    short = line + "\n\n" + "Short.\n\n" * 2 + "Short too."
    assert not kept("fineweb", short) and not kept("fineweb-paper", short)
    feeds = "Words here, and here.\n\n" + "\n\n".join(f"{i} {line}" for i in range(4))
    assert kept("fineweb", feeds) and not kept("fineweb", feeds.replace("\n", "\n" * 5))
    assert kept("fineweb-paper", feeds.replace("\n", "\n" * 5))
    hindi = "यह एक लंबी पंक्ति है जिसमें बहुत से शब्द हैं।"
    chinese = "這是一個很長的句子，裡面有許多字，用來測試標點符號和行尾的判斷是否正確無誤。"
    assert kept("fineweb", f"{hindi}\n{chinese}")


@pytest.mark.parametrize("unit", [".", "!?", ".'", "\n", "\n ", "[", "[1", "a.", "((", "lorem ", "{", "\u0301", "x"])
def test_time_is_linear_in_any_text(unit):
    """Runs that regular expressions might read again and again: 20 times the length, 60 times the time at most."""

    def seconds(n):
        text = unit * n + "x"
        start = time.process_time()
        text_statistics(text)
        return time.process_time() - start

    seconds(100)
    short, long = zip(*((seconds(2_000), seconds(40_000)) for _ in range(5)), strict=True)
    assert min(long) < 60 * min(short)


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
