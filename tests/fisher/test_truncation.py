"""Texts longer than a probe reads: counted, said once, cut on the side that was asked for; token ids as they are."""

from __future__ import annotations

from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hf_prune as hp
from hf_prune.models import Model

WORDS = "the a card pay bank when how my is not why cat dog sat on mat and ran far".split()


def text(rng, count):
    return " ".join(rng.choice(WORDS, count))


@pytest.fixture(scope="module")
def texts():
    """Of 12 texts, 5 have more than 8 tokens."""
    rng = np.random.default_rng(0)
    return datasets.Dataset.from_dict({"text": [text(rng, 30 if i % 3 == 1 or i == 6 else 8) for i in range(12)]})


@pytest.fixture(scope="module")
def chats():
    """The first is short, the second answers late, the third answers at once."""
    rng = np.random.default_rng(1)
    lengths = [(2, 2), (30, 3), (1, 30)]
    return datasets.Dataset.from_dict(
        {
            "text": [
                [{"role": "user", "content": text(rng, a)}, {"role": "assistant", "content": text(rng, b)}]
                for a, b in lengths
            ]
        }
    )


def test_cut_texts_are_counted_once_a_fit(tiny_gpt2_folder, texts):
    probe = hp.Probe(str(tiny_gpt2_folder), max_length=8)
    pair = datasets.concatenate_datasets([texts, texts])
    few = {"batches": 8, "batch_rows": 3, "noise_floor": False}
    for call, counts in (
        (lambda: hp.task2vec(texts, probe), "5 of 12"),
        (lambda: hp.task2vec(texts, replace(probe, fisher="published")), "5 of 12"),
        (lambda: hp.Task2VecAlignment.fit(texts, probe), "5 of 12"),
        (lambda: hp.Task2VecAlignment.fit(texts, probe, prototype="centroids", k=2), "5 of 12"),
        (lambda: hp.diversity_coefficient(pair, probe, **few), "10 of 24"),
        (lambda: hp.diversity_coefficient(pair, probe, as_published=True, **few), "10 of 24"),
        (lambda: hp.alignment_coefficient(pair, pair, probe, **few), "20 of 48"),
    ):
        with pytest.warns(UserWarning) as said:
            call()
        assert len(said) == 1 and said[0].filename == __file__
        assert f"{counts} texts are longer than the 8 tokens that the probe reads and were" in str(said[0].message)


def test_a_side_that_is_named_is_not_warned_of(tiny_gpt2_folder, texts):
    right = hp.task2vec(texts, hp.Probe(str(tiny_gpt2_folder), max_length=8, truncate="right"))
    with pytest.warns(UserWarning, match="were cut"):
        plain = hp.task2vec(texts, hp.Probe(str(tiny_gpt2_folder), max_length=8))
    np.testing.assert_array_equal(right.vector, plain.vector)
    with pytest.raises(ValueError, match="truncate='middle' is not known"):
        hp.Probe(str(tiny_gpt2_folder), truncate="middle")


def test_the_left_is_cut_off(tiny_gpt2_folder, texts):
    """As if texts began there, but for the draw of labels, which is by what is read."""
    folder = str(tiny_gpt2_folder)
    ends = texts.map(lambda row: {"text": " ".join(row["text"].split()[-8:])})
    left = hp.task2vec(texts, hp.Probe(folder, max_length=8, truncate="left"))
    np.testing.assert_allclose(left.vector, hp.task2vec(ends, hp.Probe(folder)).vector, rtol=1e-6)
    assert left.probe != hp.task2vec(ends, hp.Probe(folder)).probe
    reader = hp.Probe(folder, max_length=8).reader()
    encoder, values, _ = reader.read_texts(hp.Batch(texts[:]), "text")
    assert [len(ids) for ids in encoder.tokens(values)[0]] == [8] * 12 and len(encoder.cut) == 5


def test_chats_without_an_answer_are_counted(tiny_gpt2_folder, chats):
    folder = str(tiny_gpt2_folder)
    with pytest.warns(UserWarning, match="^2 of 3 texts .* 1 of them are chats that were cut before their last answer"):
        hp.task2vec(chats, hp.Probe(folder, max_length=16))
    reader = hp.Probe(folder, max_length=16, truncate="left").reader()
    list(reader.passes(hp.Batch(chats[:])))
    assert tuple(reader.counts) == (3, 2, 0)


def test_scores_say_it_once(tiny_gpt2_folder, texts):
    scorer = hp.Task2VecComplexity(hp.Probe(str(tiny_gpt2_folder), max_length=8))
    with pytest.warns(UserWarning, match="5 of 12 texts") as said:
        scorer(texts[:])
    scorer(texts[:])
    assert len(said) == 1


def test_bits_per_byte_are_of_the_tokens_that_were_read(tiny_gpt2_folder, texts):
    folder = str(tiny_gpt2_folder)
    scorer = hp.Task2VecComplexity(hp.Probe(folder, max_length=8, truncate="left"))
    found = scorer(texts[:])["t2v_complexity_bits_per_byte"]
    tokenizer, network = Model(folder).processor(), Model(folder).load(head="AutoModelForCausalLM")
    for row, value in zip(texts["text"][:], found, strict=True):
        end = " ".join(row.split()[-8:])
        ids = torch.tensor([tokenizer(end)["input_ids"]])
        nats = F.cross_entropy(network(ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
        read = len(end.encode()) - len(end.split()[0].encode())
        assert value == pytest.approx(nats / np.log(2) / read, rel=1e-5)


def test_token_ids_are_read_as_they_are(tiny_gpt2_folder, texts):
    folder = str(tiny_gpt2_folder)
    tokenizer = Model(folder).processor()
    ids = datasets.Dataset.from_dict({"input_ids": [tokenizer(row)["input_ids"] for row in texts["text"][:]]})
    for probe in (hp.Probe(folder), hp.Probe(folder, fisher="published")):
        np.testing.assert_allclose(hp.task2vec(ids, probe).vector, hp.task2vec(texts, probe).vector, rtol=1e-6)
    columns = [hp.Task2VecComplexity(folder)(ds[:]) for ds in (ids, texts)]
    for name, values in columns[0].items():
        np.testing.assert_allclose(values, columns[1][name], rtol=1e-5, err_msg=name)
    with pytest.raises(ValueError, match="row 0 of this batch has 0 tokens"):
        hp.task2vec(datasets.Dataset.from_dict({"input_ids": [None, [3, 4]]}), folder)
