from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_prune as hp
from hf_prune.dedup import _kernels, exact

values = st.lists(
    st.one_of(st.none(), st.sampled_from(["", "a", "A ", "b", "é", "😀", "東京"])), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=60)
@given(values)
def test_counts_are_those_of_a_counter(texts):
    if all(t is None for t in texts):
        return
    ds = Dataset.from_dict({"text": texts})
    found = hp.ExactDedup.fit(ds)(ds[:])
    counts = Counter(texts)
    for i, text in enumerate(texts):
        if text is None:
            assert np.isnan(found["exact"][i]) and found["exact_cluster"][i] == -1 and found["exact_count"][i] == 0
        else:
            assert found["exact_count"][i] == counts[text] and found["exact"][i] == (counts[text] == 1)
            others = found["exact_cluster"] == found["exact_cluster"][i]
            assert others.tolist() == [t == text for t in texts]


@pytest.mark.parametrize(
    ("steps", "same"),
    [
        ((), []),
        (("case",), [1]),
        (("space",), [2]),
        (("case", "punctuation", "space"), [1, 2, 3]),
        (("unicode",), [4]),
    ],
)
def test_what_does_not_count(steps, same):
    texts = ["the cat", "The Cat", " the\t cat ", "the, cat!", "the ca\uff54"]
    ds = Dataset.from_dict({"text": texts})
    cluster = hp.ExactDedup.fit(ds, ignore=steps)(ds[:])["exact_cluster"]
    assert np.flatnonzero(cluster == cluster[0]).tolist() == [0, *same]


def test_order_and_streams_do_not_matter():
    ds = Dataset.from_dict({"text": [f"t{i % 7}" for i in range(40)]})
    scorer = hp.ExactDedup.fit(ds)
    assert hp.ExactDedup.fit(ds.select(range(39, -1, -1))) == scorer
    assert hp.ExactDedup.fit(ds.to_iterable_dataset(num_shards=3)) == scorer


def test_contamination():
    train = Dataset.from_dict({"text": ["a", "b", "c", "b"]})
    scorer = hp.ExactDedup.fit(train, reference=Dataset.from_dict({"text": ["b", "x", "x"]}))
    found = scorer({"text": ["a", "b", "x", "new"]})
    assert found["exact"].tolist() == [1, 0, 0, 1] and found["exact_count"].tolist() == [0, 1, 2, 0]


def test_copies_leave_and_the_better_one_stays():
    ds = Dataset.from_dict({"text": ["a", "b", "a", "a"], "quality": [0.1, 0.5, 0.9, 0.2]})
    ds = ds.map(hp.ExactDedup.fit(ds), batched=True)
    kept = hp.filter_by_score(ds, "quality", rows=2, one_per="exact_cluster")
    assert kept["quality"][:] == [0.5, 0.9]


@pytest.mark.parametrize("distinct", [200_000, 50_000])
def test_memory_is_what_the_docstring_promises(distinct):
    """33 bytes a row, and a block of rows at a time, of 32 768; without copies and with four of each."""
    import tracemalloc

    n = 200_000
    ds = Dataset.from_dict({"text": [f"row {i % distinct}" for i in range(n)]})
    hp.ExactDedup.fit(ds.select(range(10)))  # compiled
    tracemalloc.start()
    try:
        scorer = hp.ExactDedup.fit(ds)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 33 * n + (1 << 20)
    assert kept < 12 * distinct + (1 << 18)
    assert scorer.copies.sum() == n and len(scorer.keys) == distinct


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=5))
def test_rows_are_counted(parts):
    rows = [row for part in parts for row in part]
    if not rows:
        return
    arrays = [np.array(part, np.uint64) for part in parts]
    keys, copies = exact.counted(list(arrays), [x * np.uint64(7) for x in arrays])
    assert dict(zip(keys.tolist(), copies.tolist(), strict=True)) == Counter(rows) and keys.tolist() == sorted(
        set(rows)
    )


def test_two_texts_with_one_digest_are_not_called_copies(monkeypatch):
    monkeypatch.setattr(exact, "_digests", lambda texts, ignore: (texts.array, np.ones(len(texts.digests), np.uint64)))
    with pytest.raises(ValueError, match="two different texts have the same 64-bit digest"):
        hp.ExactDedup.fit(Dataset.from_dict({"text": ["a", "b"]}))


def test_bad_input():
    ds = Dataset.from_dict({"text": ["a", "b"]})
    for steps in (True, None, 3):
        with pytest.raises(TypeError, match=f"ignore={steps} is no list of names; give any of 'unicode', 'case'"):
            hp.ExactDedup.fit(ds, ignore=steps)
    with pytest.raises(ValueError, match="ignore='lower' is not known; choose one of 'unicode', 'case'"):
        hp.ExactDedup.fit(ds, ignore="lower")
    with pytest.raises(ValueError, match="empty dataset"):
        hp.ExactDedup.fit(ds.select([]))
    with pytest.raises(ValueError, match="was not among the rows it was fitted on"):
        hp.ExactDedup.fit(ds)({"text": ["new"]})
    with pytest.raises(KeyError, match="reads column 'body'"):
        hp.ExactDedup.fit(ds, text="body")


def test_second_hash_sees_every_byte():
    texts = [bytes(range(n)) for n in range(40)]
    texts += [bytes(t[:i]) + bytes([t[i] ^ 128]) + bytes(t[i + 1 :]) for t in texts for i in range(len(t))]
    offsets, found = np.cumsum([0, *map(len, texts)]), np.empty(len(texts), np.uint64)
    _kernels.byte_hashes(np.frombuffer(b"".join(texts), np.uint8), offsets, found)
    assert found.tolist() == [_kernels.byte_hash_plain(t) for t in texts]
    assert len(set(found.tolist())) == len(set(texts)) == len(texts)
    again = np.empty_like(found)
    _kernels.byte_hashes(np.frombuffer(b"xyz" + b"".join(texts), np.uint8), offsets + 3, again)
    assert (again == found).all()


def test_what_was_found_is_shown():
    ds = Dataset.from_dict({"text": ["a", "b", "a", "a", None, "b"]})
    found = hp.ExactDedup.fit(ds).summary()
    assert (found.rows, found.nulls, found.texts) == (6, 1, 2)
    assert (found.clusters, found.removable, found.largest_cluster) == (2, 3, 3)
    against = hp.ExactDedup.fit(None, reference=ds).summary()
    assert against.clusters is None and against.removable is None and against.compared_with == "reference"
