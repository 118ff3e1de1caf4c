"""DSIR against the dossier's vectors, the published package, plain Python over any Unicode, and on bad input."""

from __future__ import annotations

import json
import math

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hf_prune as hp
from hf_prune.data.batch import Batch
from hf_prune.data.words import RULES
from hf_prune.scorers import _ngrams, dsir
from hf_prune.scorers._ngrams import HASHES, bucket_of, hash_texts, ngram_buckets, tokens_of, utf8

RAW = ["a b a", "b b b", "c a b", "c c d"]
TARGET = ["a b a b", "a a b"]


def dataset(texts, **more):
    return datasets.Dataset.from_dict({"text": texts, **more}, datasets.Features({"text": datasets.Value("string")})
                                      if not more else None)  # fmt: skip


def counted(text, buckets=8, ngram=2):
    return np.bincount(ngram_buckets(text, ngram, buckets), minlength=buckets).tolist()


def hashed(texts, ngram=2, buckets=997, hash="sha256"):
    parts = hash_texts(pa.array(texts, pa.large_string()), ngram, buckets, hash, lambda first, x: x, "test")
    ids = [part for p in parts for part in np.split(p.ids, p.stops[:-1])]
    return [x.tolist() for x in ids], [int(t) for p in parts for t in p.tokens]


@pytest.fixture(scope="module")
def corpora():
    """Texts of two kinds, in ASCII: what the published package and Python's `re` cut alike."""
    rng = np.random.default_rng(0)
    words = np.array(["".join(rng.choice(list("abcdefghij'-.!"), rng.integers(1, 9))) for _ in range(300)])
    odds = rng.dirichlet(np.full(300, 0.2), 2)

    def texts(n, mix):
        return [" ".join(rng.choice(words, rng.integers(0, 80), p=mix @ odds)) for _ in range(n)]

    raw = texts(120, np.array([0.5, 0.5])) + ["", "One", "Hello, World! " * 40]
    return dataset(raw), dataset(texts(40, np.array([1.0, 0.0])))


# vectors


def test_vectors_of_the_buckets():
    assert bucket_of(["hello"], 10_000) == 7620 and bucket_of(["hello", "world"], 10_000) == 1529
    assert [bucket_of(list(g), 8) for g in ("a", "b", "ab", "ba")] == [3, 5, 5, 4]
    assert counted("a b a") == [0, 0, 0, 2, 1, 2, 0, 0]
    assert counted("Hello, world!") == [0, 1, 1, 1, 2, 0, 0, 2]
    assert counted("Don't stop") == [2, 1, 1, 2, 0, 0, 0, 1]


@pytest.mark.parametrize(
    "smoothing, expected",
    [(0, [0.880152, -33.399342, -15.566448, -35.021203]), (1, [-0.226241, -3.619470, -1.430213, -4.163337])],
)
def test_vectors_of_the_weights(smoothing, expected):
    scorer = hp.DSIR.fit(dataset(RAW), dataset(TARGET), buckets=8, smoothing=smoothing)
    assert scorer.raw_counts.counts.tolist() == [0, 0, 0, 4, 3, 8, 5, 0]
    assert scorer.targets[0].counts.tolist() == [0, 1, 0, 4, 1, 6, 0, 0]
    out = scorer({"text": RAW})
    assert out["dsir"].dtype == np.float64 and out["dsir"] == pytest.approx(expected, abs=1e-6)


def test_vector_of_the_log_ratio():
    found = dsir.log_ratio(np.array([0, 1, 0, 4, 1, 6, 0, 0]), np.array([0, 0, 0, 4, 3, 8, 5, 0]))
    assert found == pytest.approx([0, 15.935774, 0, 0.510826, -0.587787, 0.223144, -17.034386, 0], abs=1e-6)


def test_kl_reduction_of_a_selection():
    scorer = hp.DSIR.fit(dataset(RAW), dataset(TARGET), buckets=8)
    assert scorer.kl_reduction(dataset(RAW)) == 0
    assert scorer.kl_reduction(dataset(TARGET)) > scorer.kl_reduction(dataset(RAW[:1])) > 0


# the published package


def test_equals_the_published_package(corpora, tmp_path):
    peer = pytest.importorskip("data_selection").HashedNgramDSIR
    raw, target = corpora
    for name, ds in zip(("raw", "target"), corpora, strict=True):
        (tmp_path / name).write_text("".join(json.dumps({"text": t}) + "\n" for t in ds["text"]))
    theirs = peer([str(tmp_path / "raw")], [str(tmp_path / "target")], str(tmp_path / "cache"), num_proc=1)
    theirs.fit_importance_estimator()
    theirs.compute_importance_weights()
    weights = np.load(tmp_path / "cache" / "log_importance_weights" / "0.npy")
    lengths = np.load(tmp_path / "cache" / "perexample_metadata" / "0.npy")
    scored = raw.map(hp.DSIR.fit(raw, target, tokens=True), batched=True)
    assert np.abs(np.array(scored["dsir"][:]) - weights).max() < 1e-9
    assert scored["dsir_tokens"][:] == lengths.tolist()


# plain Python

awkward = st.one_of(
    st.characters(codec="utf-8"),
    st.sampled_from(list(" \n\t\u00a0\u1680_'\u0130\u03a3\u03c3\u0307\u023a\u212a\u1e9e\u00df\u0345\u200d\U0001f600")),
    st.sampled_from(list("aZ09-é漢かπЖ")),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(awkward, max_size=60), max_size=4), st.integers(1, 4), st.sampled_from(HASHES))
@example(["İSTANBUL İİ", "ΟΔΟΣ ΣΑΣ'Σ ΑΣ. Σ", "x" * 55, "y" * 56, "z" * 300 + " " + "é" * 70], 2, "sha256")
@example(["👍🏽👍 family 👨‍👩‍👧", "東京都に住む。", "naïve café", ""], 3, "fast")
def test_any_text_is_hashed_as_plain_python_does(texts, ngram, hash):
    ids, tokens = hashed(texts, ngram, hash=hash)
    assert ids == [ngram_buckets(t, ngram, 997, hash) for t in texts]
    assert tokens == [len(tokens_of(t)) for t in texts]


def test_every_character_is_cut_as_plain_python_does():
    texts = ["".join(f"a{chr(c)}" for c in range(first, first + 4096) if not 0xD800 <= c < 0xE000)
             for first in [*range(0, 0x2_0000, 4096), 0xE_0000, 0x10_F000]]  # fmt: skip
    ids, _ = hashed(texts, 1)
    for text, found in zip(texts, ids, strict=True):
        assert found == ngram_buckets(text, 1, 997)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=12))
@example(b"\xc0\x80")
@example(b"\xed\xa0\x80")
@example(b"\xf4\x90\x80\x80")
@example(b"a\xe2\x82")
def test_bytes_that_are_no_utf8_are_told(raw):
    array = pa.Array.from_buffers(
        pa.large_string(), 1, [None, pa.py_buffer(np.array([0, len(raw)])), pa.py_buffer(raw)]
    )
    try:
        raw.decode()
    except UnicodeDecodeError:
        with pytest.raises(ValueError, match="row 0 of this batch is not valid UTF-8; decode"):
            hash_texts(array, 2, 8, "fast", lambda first, x: None, "DSIR")
    else:
        hash_texts(array, 2, 8, "fast", lambda first, x: None, "DSIR")


def test_pieces_and_threads_change_nothing(corpora, monkeypatch):
    raw, target = corpora
    one = hp.DSIR.fit(raw, target)
    monkeypatch.setattr(_ngrams, "PIECE", 300)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    many = hp.DSIR.fit(raw, target)
    assert many == one and (many(raw[:])["dsir"] == one(raw[:])["dsir"]).all()


# behaviour


def test_fit_knows_no_order_no_shards_and_streams(corpora):
    raw, target = corpora
    whole = hp.DSIR.fit(raw, target, smoothing=1)
    assert hp.DSIR.fit(raw.shuffle(seed=1), target.to_iterable_dataset(), smoothing=1) == whole
    parts = [hp.NgramCounts.of(raw.shard(3, i)) for i in (2, 0, 1)]
    merged = parts[0] + parts[1] + parts[2]
    assert merged == whole.raw_counts
    assert (hp.DSIR(merged, whole.targets, smoothing=1)(raw[:])["dsir"] == whole(raw[:])["dsir"]).all()
    with pytest.raises(ValueError, match="do not add up; count both alike"):
        merged + hp.NgramCounts.of(raw, buckets=8)


def test_what_is_like_the_target_comes_first(corpora):
    _, target = corpora
    other = dataset([t[::-1] for t in target["text"]])
    raw = datasets.concatenate_datasets([target, other])
    for hash in HASHES:
        score = hp.DSIR.fit(raw, target, smoothing=1, hash=hash, normalize="per_ngram")(raw[:])["dsir"]
        words = np.array([len(tokens_of(t)) for t in raw["text"]])
        own, foreign = score[: len(target)][words[: len(target)] > 5], score[len(target) :][words[len(target) :] > 5]
        assert own.min() > foreign.max()


def test_columns_of_texts_chats_and_fields():
    turns = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "a"}]
    ds = datasets.Dataset.from_dict(
        {"first": ["a b", "b"], "last": ["a", "b b"], "meta": [{"body": "a b a"}, {"body": "b b b"}],
         "chat": [turns, turns], "text": ["a b a", "b b b"]}
    )  # fmt: skip
    expected = hp.DSIR.fit(ds, dataset(TARGET), buckets=8)(ds[:])["dsir"]
    for text in (["first", "last"], "meta.body"):
        scorer = hp.DSIR.fit(ds, dataset(TARGET), text, buckets=8, target_text="text")
        assert (scorer(ds[:])["dsir"] == expected).all()
        assert ds.map(scorer, batched=True)["dsir"][:] == expected.tolist()
        assert hp.DSIR.fit(ds.to_iterable_dataset(), dataset(TARGET), text, buckets=8, target_text="text") == scorer
    chat = hp.DSIR.fit(ds, ds, "chat", buckets=8)
    assert chat.raw_counts.counts.tolist() == (2 * np.array(counted("user: a b\nassistant: a"))).tolist()


def test_normalised_weights_tokens_and_the_length_filter():
    ds = dataset(["a b a b", "b", "", None])
    plain = hp.DSIR.fit(ds, dataset(TARGET), buckets=8, tokens=True)
    out = plain(ds[:])
    assert out["dsir_tokens"].tolist() == [4, 1, 0, 0]
    assert out["dsir"][2] == 0 and np.isnan(out["dsir"][3])
    mean = hp.DSIR.fit(ds, dataset(TARGET), buckets=8, normalize="per_ngram")(ds[:])["dsir"]
    assert mean[:3] == pytest.approx(out["dsir"][:3] / [7, 1, 1])
    cut = hp.DSIR.fit(ds, dataset(TARGET), buckets=8, min_tokens=2)
    scored = ds.map(cut, batched=True).select(range(3))
    assert scored["dsir"][:][1:] == [-math.inf, -math.inf]
    assert hp.sample_by_score(scored, "dsir", rows=1)["text"][:] == ["a b a b"]
    with pytest.raises(ValueError, match="only 1 rows have a score above -inf"):
        hp.sample_by_score(scored, "dsir", rows=2)


def test_the_key_is_the_sample(corpora):
    raw, target = corpora
    raw = hp.with_row_id(raw)
    scored = raw.map(hp.DSIR.fit(raw, target, smoothing=1, key=3), batched=True)
    sample = hp.sample_by_score(scored, "dsir", rows=20, method="gumbel", seed=3)
    assert hp.filter_by_score(scored, "dsir_key", rows=20)["row_id"][:] == sample["row_id"][:]
    with pytest.raises(ValueError, match="add ids with with_row_id"):
        hp.DSIR.fit(raw, target, key=3)({"text": ["a"]})


def test_several_targets(corpora):
    raw, target = corpora
    parts = {"one": target.shard(2, 0), "two": target.shard(2, 1)}
    several = hp.DSIR.fit(raw, parts, smoothing=0)
    out, pooled = several(raw[:]), hp.DSIR.fit(raw, target)(raw[:])["dsir"]
    assert np.abs(out["dsir"] - pooled).max() < 1e-9  # in proportion to their n-grams: one target of all
    assert np.abs(out["dsir_one"] - hp.DSIR.fit(raw, parts["one"])(raw[:])["dsir"]).max() < 1e-9
    only = hp.DSIR.fit(raw, parts, proportions={"two": 1, "one": 0})(raw[:])
    assert np.abs(only["dsir"] - out["dsir_two"]).max() < 1e-9
    assert set(several.companions()) == {"dsir_one", "dsir_two"}


@pytest.mark.parametrize("smoothing", [0, 1, 10])
def test_without_proportions_they_are_those_of_the_ngrams(corpora, smoothing):
    """Each target is smoothed once, whether its share is given or not."""
    raw, target = corpora
    parts = {"one": target.select(range(4)), "two": target.select(range(4, 40))}
    silent = hp.DSIR.fit(raw, parts, smoothing=smoothing)
    ngrams = {t: c.counts.sum() for t, c in zip(silent.target_names, silent.targets, strict=True)}
    told = hp.DSIR.fit(raw, parts, smoothing=smoothing, proportions=ngrams)
    assert silent(raw[:])["dsir"] == pytest.approx(told(raw[:])["dsir"], abs=1e-9)
    p = [(c.counts + smoothing) / (c.counts + smoothing).sum() for c in silent.targets]
    mixture = (ngrams["one"] * p[0] + ngrams["two"] * p[1]) / sum(ngrams.values())
    assert silent.weights()[0] == pytest.approx(dsir.log_ratio(mixture, silent.raw_counts.counts), abs=1e-9)


def test_counts_of_other_words_do_not_fit(corpora):
    raw, target = corpora
    one, two = hp.NgramCounts.of(raw), hp.NgramCounts.of(target, words="re")
    with pytest.raises(ValueError, match="'words': 'unicode'} and .*'words': 're'} do not add up"):
        one + two
    with pytest.raises(ValueError, match="target 'target' counts .*'re'}, the raw corpus .*'unicode'}"):
        hp.DSIR(one, (two,))
    hindi = dataset(["लड़की पढ़ती है", "a b"])
    scores = {rule: hp.DSIR.fit(hindi, hindi.select([0]), words=rule, tokens=True)(hindi[:]) for rule in RULES}
    assert {rule: out["dsir_tokens"][0] for rule, out in scores.items()} == {"unicode": 3, "regex": 3, "re": 10}
    kept = hp.DSIR.fit(hindi, hindi.select([0]), words="re")
    assert kept.kl_reduction(hindi) == 0


def test_sample_by_targets_takes_each_share_from_what_is_left():
    n = 400
    ds = datasets.Dataset.from_dict({"row_id": [str(i) for i in range(n)], "p": [float(i) for i in range(n)],
                                     "q": [float(n - i) for i in range(n)]})  # fmt: skip
    sample = hp.sample_by_targets(ds, {"p": 3, "q": 1}, rows=40)
    high = np.array(sample["p"][:]) > n / 2
    assert len(sample) == 40 and high.sum() == 30
    again = hp.sample_by_targets(ds.shuffle(seed=0), {"p": 3, "q": 1}, rows=40)
    assert sorted(again["row_id"]) == sorted(sample["row_id"])
    both = hp.sample_by_targets(ds, {"p": 1, "q": 1}, keep=1.0)
    assert both["row_id"][:] == ds["row_id"][:]


# bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"buckets": 0}, "buckets=0; give an integer from 1"),
        ({"buckets": 2**40}, "give an integer from 1 to"),
        ({"ngram": 0}, "ngram=0 is no order"),
        ({"hash": "md5"}, "hash='md5' is not one of"),
        ({"words": "nltk"}, "words='nltk' is not one of"),
        ({"smoothing": -1}, "smoothing=-1.0 is no pseudo-count"),
        ({"normalize": "mean"}, "normalize='mean' is not one of"),
        ({"proportions": [1, 2]}, "proportions=.* for 1 targets"),
        ({"target": dataset([])}, "empty dataset"),
        ({"target": dataset(["", None, " "])}, "target has 3 rows but no n-gram"),
        ({"ds": dataset(["", ""])}, "the raw corpus has 2 rows but no n-gram"),
        ({"target": {}}, "names no target"),
        ({"target": {"a": dataset(TARGET)}, "proportions": {"b": 1}}, "but the targets are"),
    ],
)
def test_wrong_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        hp.DSIR.fit(**{"ds": dataset(RAW), "target": dataset(TARGET), "buckets": 8, **arguments})


def test_wrong_columns():
    with pytest.raises(KeyError, match="DSIR.* reads column 'body'"):
        hp.DSIR.fit(dataset(RAW), dataset(TARGET), "body")
    with pytest.raises(TypeError, match="choose a split"):
        hp.DSIR.fit(datasets.DatasetDict(train=dataset(RAW)), dataset(TARGET))
    raw = datasets.Dataset.from_dict({"text": [b"caf\xe9", b"b"]})
    with pytest.raises(TypeError, match="row 0 of this batch is bytes"):
        hp.DSIR.fit(raw, dataset(TARGET))
    with pytest.raises(ValueError, match="row 1 of this batch holds .* half of a surrogate pair"):
        utf8(Batch({"text": ["a", "b\ud800"]}, "DSIR"), ["text"])


def test_no_ngram_in_common_is_warned_of():
    with pytest.warns(UserWarning, match="share no n-gram"):
        scorer = hp.DSIR.fit(dataset(["a b", "c"]), dataset(["x", "y z"]))
    assert (scorer({"text": ["a b", "c"]})["dsir"] < -10).all()


def test_strange_corpora():
    same = dataset(["the same text"] * 20)
    assert np.ptp(hp.DSIR.fit(same, same)(same[:])["dsir"]) == 0
    long = "word and word. " * 70_000
    out = hp.DSIR.fit(dataset([long, "x"]), dataset([long]), tokens=True)({"text": [long, "é👍漢"]})
    assert out["dsir_tokens"].tolist() == [280_000, 3] and np.isfinite(out["dsir"]).all()
    nothing = hp.DSIR.fit(same, same)({"text": []})
    assert nothing["dsir"].shape == (0,)
