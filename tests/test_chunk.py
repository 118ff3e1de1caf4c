"""Chunks of equal length: nothing of a text lost or changed but the white space between chunks, and bad input."""

from __future__ import annotations

import datasets
import pytest

import hf_prune as hp

TEXTS = ["one  two\nthree four five", "", "漢字 👍", "a b c d"]


def test_chunks_keep_the_text_and_the_other_columns():
    ds = hp.with_row_id(datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 2, 3]}))
    out = hp.chunk_texts(ds, words=2)
    assert out["text"][:] == ["one  two", "three four", "five", "漢字", "👍", "a b", "c d"]
    assert out["label"][:] == [0, 0, 0, 2, 2, 3, 3] and out["chunk"][:] == [0, 1, 2, 0, 1, 0, 1]
    assert len(set(out["row_id"])) == 7 and out["row_id"][1] == ds["row_id"][0] + "/1"
    assert out.features["chunk"].dtype == "int32"
    stream = list(hp.chunk_texts(ds.to_iterable_dataset(), words=2))
    assert stream == list(out)


def test_whole_chunks_only():
    ds = datasets.Dataset.from_dict({"text": TEXTS})
    assert hp.chunk_texts(ds, words=2, min_words=2)["text"][:] == ["one  two", "three four", "漢字", "a b", "c d"]


def test_bad_input_is_told():
    ds = datasets.Dataset.from_dict({"text": TEXTS, "chunk": [0, 0, 0, 0]})
    with pytest.raises(ValueError, match="a column 'chunk' already"):
        hp.chunk_texts(ds)
    with pytest.raises(KeyError, match="reads column 'body'"):
        hp.chunk_texts(ds, text="body")
    with pytest.raises(ValueError, match="give 1 <= min_words <= words"):
        hp.chunk_texts(ds, words=0)
    with pytest.raises(TypeError, match="choose a split"):
        hp.chunk_texts(datasets.DatasetDict(train=ds))
    with pytest.raises(TypeError, match="row 1 of this batch is NoneType, not text"):
        hp.chunk_texts(datasets.Dataset.from_dict({"text": ["a", None]}))


def test_no_rows_keep_their_columns():
    ds = hp.with_row_id(datasets.Dataset.from_dict({"text": ["a b c"], "n": [1]}))
    assert hp.chunk_texts(ds.select([]), words=2).features == hp.chunk_texts(ds, words=2).features
