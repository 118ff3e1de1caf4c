from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_prune as hp
from hf_prune.data.words import graphemes, tokens
from hf_prune.dedup import corpus, passages
from hf_prune.dedup._substring_kernels import repeated_spans_plain
from hf_prune.dedup.corpus import Corpus
from hf_prune.dedup.repeats import without

DOSSIER = ["a b c d e f", "x b c d e y", "q r s"]


def spans_of(scorer, rows):
    return [list(zip(v[::2].tolist(), v[1::2].tolist(), strict=True)) for v in scorer(rows)["substring_spans"]]


def has_run(text, run):
    return any(text[i : i + len(run)] == run for i in range(len(text)))


def test_numbers_of_the_dossier():
    ds = Dataset.from_dict({"text": DOSSIER})
    scorer = hp.SubstringDedup.fit(ds, min_tokens=3, spans=True)
    assert spans_of(scorer, ds[:]) == [[(1, 5)], [(1, 5)], []]
    assert scorer(ds[:])["substring"] == pytest.approx([1 - 4 / 6, 1 - 4 / 6, 1])


def test_a_run_within_one_text():
    """banana: "ana" occurs at 1 and at 3, and the two overlap."""
    ds = Dataset.from_dict({"text": ["banana"]})
    scorer = hp.SubstringDedup.fit(ds, min_tokens=3, unit="char", spans=True)
    assert spans_of(scorer, ds[:]) == [[(1, 6)]] == repeated_spans_plain(["banana"], 3)


words = st.lists(st.lists(st.sampled_from("abc"), max_size=14).map(" ".join), min_size=1, max_size=7)


@settings(deadline=None, max_examples=80)
@given(words, st.integers(1, 5))
def test_spans_are_those_of_brute_force(texts, length):
    ds = Dataset.from_dict({"text": texts})
    scorer = hp.SubstringDedup.fit(ds, min_tokens=length, spans=True)
    split = [t.split() for t in texts]
    expected = repeated_spans_plain(split, length)
    assert spans_of(scorer, ds[:]) == expected
    share = [sum(b - a for a, b in s) / max(len(t), 1) for s, t in zip(expected, split, strict=True)]
    assert scorer(ds[:])["substring"] == pytest.approx([1 - x for x in share], abs=1e-6)
    ids = Dataset.from_dict({"text": [[ord(w) for w in t] for t in split] + [[0]]})
    of_ids = hp.SubstringDedup.fit(ids, min_tokens=length, spans=True)
    assert spans_of(of_ids, ids[:])[:-1] == (repeated_spans_plain([*split, ["-"]], length))[:-1]


@settings(deadline=None, max_examples=50)
@given(words, words, st.integers(1, 4))
def test_spans_against_a_reference(reference, texts, length):
    scorer = hp.SubstringDedup.fit(
        None, min_tokens=length, spans=True, reference=Dataset.from_dict({"text": reference})
    )
    known = {tuple(t[i : i + length]) for t in map(str.split, reference) for i in range(len(t) - length + 1)}
    for text, found in zip(texts, spans_of(scorer, {"text": texts}), strict=True):
        split = text.split()
        covered = {
            i + k
            for i in range(len(split) - length + 1)
            if tuple(split[i : i + length]) in known
            for k in range(length)
        }
        assert {i for a, b in found for i in range(a, b)} == covered
        assert all(b < c for (_, b), (c, _) in zip(found, found[1:], strict=False))


@settings(deadline=None, max_examples=50)
@given(words, st.integers(2, 4))
def test_of_what_is_cut_one_occurrence_stays(texts, length):
    texts = list(dict.fromkeys(texts))  # exact copies keep or lose their passages together
    ds = Dataset.from_dict({"text": texts})
    scorer = hp.SubstringDedup.fit(ds, min_tokens=length)
    kept = [t.split() for t in hp.RemoveRepeats(scorer)(ds[:])["text"]]
    runs = Counter(tuple(t[i : i + length]) for t in map(str.split, texts) for i in range(len(t) - length + 1))
    for run in (list(r) for r, count in runs.items() if count > 1):
        assert any(has_run(k, run) for k in kept)
    bare = [t.split() for t in hp.RemoveRepeats(scorer, keep="none")(ds[:])["text"]]
    for row, (text, spans) in enumerate(
        zip(texts, repeated_spans_plain([t.split() for t in texts], length), strict=True)
    ):
        cut = {i for a, b in spans for i in range(a, b)}
        assert bare[row] == [w for i, w in enumerate(text.split()) if i not in cut]


def test_texts_are_cut_at_tokens():
    shared = "the quick, brown fox — jumps."
    ds = Dataset.from_dict({"text": [f"Naïve start: {shared} Énd!", f"東京 {shared}", None, "alone"]})
    scorer = hp.SubstringDedup.fit(ds, min_tokens=5)
    edited = ds.map(hp.RemoveRepeats(scorer, keep="none"), batched=True)
    assert edited["text"][:] == ["Naïve start: Énd!", "東京 ", None, "alone"]
    one = ds.map(hp.RemoveRepeats(scorer), batched=True)["text"][:]
    assert sum(shared in t for t in one if t) == 1
    ids = Dataset.from_dict({"input_ids": [[1, 2, 3, 4], [9, 2, 3, 4, 5], [7]]})
    scorer = hp.SubstringDedup.fit(ids, text="input_ids", min_tokens=3)
    assert hp.RemoveRepeats(scorer, keep="none")(ids[:]) == {"input_ids": [[1], [9, 5], [7]]}


CHARACTERS = ["é", "e\u0301", "東", "カ", "ที่", "ำ", "नि", "❤️", "👍🏽", "👨‍👩‍👧", "🇫🇷", "🇩🇪"]
GLUE = st.lists(
    st.sampled_from(["a", "b", "c", "don't", "-", ".", "…", " ", "  ", "\n\n", "\r\n", *CHARACTERS]), max_size=24
).map("".join)


@settings(deadline=None, max_examples=300)
@given(st.lists(GLUE, min_size=1, max_size=6), st.integers(1, 4), st.sampled_from(["token", "word"]))
def test_what_stays_is_cut_into_the_same_tokens(texts, length, unit):
    """Whatever stands between words: those that stay do not run together, and no character is torn."""
    texts = list(dict.fromkeys(texts))
    ds = Dataset.from_dict({"text": texts})
    scorer = hp.SubstringDedup.fit(ds, min_tokens=length, unit=unit, spans=True)
    split = [tokens(t, unit, lower=False) for t in texts]
    edited = {keep: hp.RemoveRepeats(scorer, keep=keep)(ds[:])["text"] for keep in ("none", "one")}
    for text, found, spans, left in zip(texts, split, spans_of(scorer, ds[:]), edited["none"], strict=True):
        stay = Counter(found)
        stay.subtract(w for a, b in spans for w in found[a:b])
        kept = tokens(left, unit, lower=False)
        assert not stay - Counter(kept), "a token that was to stay is gone"
        whole = {text[a:b] for a, b in zip(graphemes(text), graphemes(text)[1:], strict=False)}
        assert {left[a:b] for a, b in zip(graphemes(left), graphemes(left)[1:], strict=False)} <= whole | {" "}
        doubt = any(len(tokens(c, "token")) > 1 or (c != c.strip() and c.strip()) for c in whole)
        if not doubt:  # every character is one token
            cut = {i for a, b in spans for i in range(a, b)}
            assert kept == [w for i, w in enumerate(found) if i not in cut]
    runs = Counter(tuple(t[i : i + length]) for t in split for i in range(len(t) - length + 1))
    kept = [tokens(t, unit, lower=False) for t in edited["one"]]
    for run in (list(r) for r, count in runs.items() if count > 1):
        assert any(has_run(k, run) for k in kept), "the passage that was to stay once is gone"


@settings(deadline=None, max_examples=200)
@given(st.lists(GLUE, min_size=1, max_size=6), st.integers(1, 6))
def test_cuts_of_characters_leave_words_whole(texts, length):
    ds = Dataset.from_dict({"text": texts})
    left = hp.RemoveRepeats(hp.SubstringDedup.fit(ds, min_tokens=length, unit="char"), keep="none")(ds[:])["text"]
    for text, short in zip(texts, left, strict=True):
        assert set(tokens(short, "token", lower=False)) <= set(tokens(text, "token", lower=False))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("We sell shoes|. Order by phone today. |Boots last", "We sell shoes Boots last"),
        ("We sell shoes |by phone.\n\n|Boots last", "We sell shoes\n\nBoots last"),
        ("We sell shoes\n\n|by phone. |Boots last", "We sell shoes\n\nBoots last"),
        ("shoes|, by phone.|Boots", "shoes Boots"),
        ("shoes|-phone-|Boots", "shoes Boots"),
        ("鞋|，电话。|靴", "鞋靴"),
        ("(|by phone|)", "()"),
        ("|by phone |Boots", "Boots"),
        ("shoes |by phone\n|", "shoes "),
        ("कि|, फ़ोन,|ताब", "कि ताब"),
        ("🇫🇷|...|🇩🇪", "🇫🇷🇩🇪"),
    ],
)
def test_white_space_stays_where_there_was_some(text, expected):
    """The stretch between bars is cut."""
    left, gap, right = text.split("|")
    whole, cut = left + gap + right, (len(left), len(left + gap))
    assert without(whole, [cut], np.arange(len(whole) + 1)) == expected


def test_of_two_rows_with_one_notice():
    notice = "Please print this page only if you must, thank you."
    ds = Dataset.from_dict({"text": [f"Meet at noon. {notice} Ann", f"The bill is due! {notice}\n\nBob", notice[:20]]})
    scorer = hp.SubstringDedup.fit(ds, min_tokens=9)
    assert hp.RemoveRepeats(scorer, keep="none")(ds[:])["text"] == [
        "Meet at noon. Ann",
        "The bill is due!\n\nBob",
        notice[:20],
    ]


def test_a_long_text_with_many_cuts():
    text = "".join(f"{'鞋' * 3}{'靴子' if i % 2 else '电话'}{chr(0x5000 + i)}" for i in range(2000))
    ds = Dataset.from_dict({"text": [text, "鞋鞋鞋靴子 鞋鞋鞋电话"]})
    left = hp.RemoveRepeats(hp.SubstringDedup.fit(ds, min_tokens=5), keep="none")(ds[:])["text"]
    assert left == ["".join(chr(0x5000 + i) for i in range(2000)), ""]


def test_units_and_case():
    ds = Dataset.from_dict({"text": ["Hello, big world", "hello big world!"]})
    score = [hp.SubstringDedup.fit(ds, min_tokens=3, **how)(ds[:])["substring"].tolist() for how in (
        {}, {"lower": True}, {"unit": "word", "lower": True})]  # fmt: skip
    assert score == [[1, 1], [1, 1], [0, 0]]


def test_order_shards_and_streams_do_not_matter():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdef"), int(rng.integers(0, 30)))) for _ in range(120)]
    ds = Dataset.from_dict({"text": texts + texts[:9]})
    scorer = hp.SubstringDedup.fit(ds, min_tokens=4)
    order = rng.permutation(len(ds))
    assert hp.SubstringDedup.fit(ds.select(order), min_tokens=4) == scorer
    assert hp.SubstringDedup.fit(ds.to_iterable_dataset(num_shards=4), min_tokens=4) == scorer
    parts = [Corpus.of(ds.shard(3, i), "text", "token", False, "x") for i in (1, 2, 0)]
    merged, whole = Corpus.merge(parts), Corpus.merge([Corpus.of(ds, "text", "token", False, "x")])
    assert (merged.digests == whole.digests).all() and (merged.copies == whole.copies).all()
    marks = [
        {int(d): c.marks(4)[a:b].tolist() for d, a, b in zip(c.digests, c.starts, c.ends, strict=True)}
        for c in (merged, whole)
    ]
    assert marks[0] == marks[1]


def test_equal_hashes_are_not_enough(monkeypatch):
    """With every window under one hash the spans are the same: tokens are compared."""
    ds = Dataset.from_dict({"text": DOSSIER})
    expected = hp.SubstringDedup.fit(ds, min_tokens=3).passages
    reference = hp.SubstringDedup.fit(None, min_tokens=3, reference=ds.select([0]))(ds[:])["substring"].tolist()
    for module in (corpus, passages):
        monkeypatch.setattr(module, "windows", lambda tokens, *rest: np.full(len(tokens), 7, np.uint64))
    assert hp.SubstringDedup.fit(ds, min_tokens=3).passages == expected
    again = hp.SubstringDedup.fit(None, min_tokens=3, reference=ds.select([0]))(ds[:])["substring"].tolist()
    assert again == reference


def test_a_million_characters_and_many_copies():
    long = " ".join(f"w{i}" for i in range(150_000))
    passage = " ".join(f"w{i}" for i in range(1000, 1100))
    ds = Dataset.from_dict({"text": [long, f"before {passage} after"] + ["short"] * 1000})
    score = hp.SubstringDedup.fit(ds)(ds[:5])["substring"]
    assert score == pytest.approx([1 - 100 / 150_000, 2 / 102, 1, 1, 1], abs=1e-6)


def test_empty_null_emoji_and_cjk():
    ds = Dataset.from_dict({"text": ["", None, "😀😀😀 x", "東京都は日本", "東京都は遠い", "one"]})
    score = hp.SubstringDedup.fit(ds, min_tokens=3)(ds[:])["substring"]
    assert np.isnan(score[1]) and score[[0, 2, 5]].tolist() == [1, 1, 1]
    assert score[3:5] == pytest.approx([2 / 6, 2 / 6])
    assert tokens("東京都は日本") == list("東京都は日本")


def test_bad_input():
    ds = Dataset.from_dict({"text": ["a b", "c"], "more": ["x", "y"]})
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="is no whole number from 1 up"):
            hp.SubstringDedup.fit(ds, min_tokens=wrong)
    with pytest.raises(ValueError, match="unit='bpe' is not known"):
        hp.SubstringDedup.fit(ds, unit="bpe")
    with pytest.raises(ValueError, match="was not among the rows it was fitted on"):
        hp.SubstringDedup.fit(ds)({"text": ["new"]})
    with pytest.raises(ValueError, match="keep='all' is not known"):
        hp.RemoveRepeats(hp.SubstringDedup.fit(ds), keep="all")
    with pytest.raises(ValueError, match="cut out of one plain column"):
        hp.RemoveRepeats(hp.SubstringDedup.fit(ds, text=["text", "more"]))
    with pytest.raises(ValueError, match="empty dataset"):
        hp.SubstringDedup.fit(ds.select([]))


@pytest.mark.parametrize("kind", [None, "numpy", "torch", "arrow"])
def test_chats_are_not_turned_into_text(kind):
    chats = [[{"role": "user", "content": f"{who} one two three four five"}] for who in "ab"]
    ds = Dataset.from_dict({"text": chats})
    remove = hp.RemoveRepeats(hp.SubstringDedup.fit(ds, min_tokens=4))
    with pytest.raises(TypeError, match="column 'text' holds chats, which would come back as text; write"):
        ds.with_format(kind).map(remove, batched=True)
    with pytest.raises(TypeError, match="column 'text' holds chats"):
        list(ds.to_iterable_dataset().map(remove, batched=True))


def test_nulls_before_the_first_text_are_no_chats():
    ds = Dataset.from_dict({"text": [None, None, "a b c d", "a b c d e"]})
    remove = hp.RemoveRepeats(hp.SubstringDedup.fit(ds, min_tokens=3), keep="none")
    assert ds.map(remove, batched=True, batch_size=2)["text"][:] == [None, None, "", "e"]
    assert remove({"text": ds["text"][:]}) == {"text": [None, None, "", "e"]}
