import numpy as np
import pyarrow as pa
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.data.words import UNITS, tokens
from hf_prune.dedup import _kernels, shingles
from hf_prune.dedup._kernels import gram_hash_plain
from hf_prune.dedup._link_kernels import jaccard_plain

texts = st.lists(st.text(max_size=40), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(texts, st.integers(1, 6), st.sampled_from(UNITS), st.booleans())
def test_compiled_sets_are_those_of_the_definition(values, ngram, unit, lower):
    values = [v.encode("utf-8", "replace").decode() for v in values]
    found = shingles.gram_sets(pa.array(values, pa.string()), np.arange(len(values)), ngram, unit, lower)
    for i, text in enumerate(values):
        expected = {gram_hash_plain(list(g), unit) for g in shingles.grams(text, ngram, unit, lower)}
        assert found[i].tolist() == sorted(expected)


def test_words_are_those_of_unicode():
    text = "Don't stop_me: ÉCOLE 42, naïve\tх́орошо Ελλάδα 😀 x—y\n"
    assert tokens(text) == regex.findall(r"\w+", text.lower())


def test_scripts_without_spaces_and_emoji():
    assert tokens("東京タワー ab") == ["東", "京", "タワー", "ab"]
    assert tokens("😀👍") == []
    assert tokens("a😀, b", "token") == ["a", "😀", ",", "b"]


def test_jaccard_of_the_dossier():
    a, b, c = ("the cat sat on the mat", "the cat sat on the rug", "The cat sat on the mat")
    assert jaccard_plain(shingles.grams(a, 2), shingles.grams(b, 2)) == pytest.approx(2 / 3)
    assert jaccard_plain(shingles.grams(a, 2), shingles.grams(c, 2)) == 1
    sets = shingles.gram_sets(pa.array([a, b, c]), np.arange(3), 2, "word", True)
    left, right = np.array([0, 0]), np.array([1, 2])
    assert shingles.similarities(left, right, sets, sets).tolist() == pytest.approx([2 / 3, 1])


def test_slices_of_arrays_and_both_widths_of_offsets():
    values = ["zero", "one two", "", "three"]
    for kind in (pa.string(), pa.large_string()):
        array = pa.array(values, kind).slice(1)
        found = shingles.gram_sets(array, np.arange(3), 1, "word", True)
        assert [len(found[i]) for i in range(3)] == [2, 0, 1]


def test_bytes_that_are_no_utf8_are_signs():
    """Arrow does not check; nothing is read past the end, and the words around are the same."""
    raw = b"one \xff\xfe two \xe6\x9d|three\xf0\x9f"
    bad = pa.Array.from_buffers(
        pa.large_string(), 1, [None, pa.py_buffer(np.array([0, len(raw)], np.int64)), pa.py_buffer(raw)]
    )
    found = shingles.gram_sets(bad, np.arange(1), 1, "word", True)
    assert set(found[0].tolist()) == {gram_hash_plain([w]) for w in ("one", "two", "three")}


def test_a_million_characters():
    text = "ab cd " * 170_000
    found = shingles.gram_sets(pa.array([text]), np.arange(1), 2, "word", True)
    assert len(found[0]) == 2


@pytest.mark.parametrize(("ngram", "unit", "message"), [(0, "word", "ngram=0"), (2, "words", "unit='words'")])
def test_bad_settings(ngram, unit, message):
    with pytest.raises(ValueError, match=message):
        shingles.check_grams(ngram, unit)


def test_pieces_cover_every_row_once():
    sizes = np.array([5, 0, shingles.PIECE + 1, 3, shingles.PIECE, 0], np.int64)
    found = shingles.pieces(sizes)
    assert [i for a, b in found for i in range(a, b)] == list(range(6))
    assert shingles.pieces(np.zeros(0, np.int64)) == []


def test_kernels_are_compiled_once_whoever_made_the_array():
    """Arrow's bytes can be written to or not, by where they come from; the cache holds one form of the kernel."""
    texts = ["one two", "three"]
    fixed = pa.array(texts, pa.large_string())
    data = np.frombuffer(fixed.buffers()[2], np.uint8).copy()
    free = pa.Array.from_buffers(pa.large_string(), 2, [None, fixed.buffers()[1], pa.py_buffer(data)])
    sets = [shingles.gram_sets(array, np.arange(2), 1, "word", True) for array in (fixed, free)]
    assert sets[0].values.tolist() == sets[1].values.tolist()
    assert not shingles.buffers(free)[0].flags.writeable and not shingles.buffers(fixed)[0].flags.writeable
    assert all(len(k.signatures) == 1 for k in (_kernels.token_hashes, _kernels.gram_hashes, _kernels.gram_sets))


def test_a_text_of_one_token_a_thousand_times():
    """One n-gram fills one bucket of the sort."""
    found = shingles.gram_sets(pa.array(["a " * 5000, "b c"]), np.arange(2), 2, "word", True)
    assert [len(found[i]) for i in range(2)] == [1, 1] and found[0][0] == gram_hash_plain(["a", "a"])
