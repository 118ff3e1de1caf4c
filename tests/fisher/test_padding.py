"""Classifiers on top of decoders pool the last token: padding must not pass for it."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from tiny_models import make_tokenizer
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import hf_prune as hp
from hf_prune.models import Model

TEXTS = ["the cat", "a dog ran far", "my card is not", "bank", "when the dog sat on my mat and how", "pay a bank"]
TEXTS += ["why is the cat not on my mat", "the bank is not far"]
LABELS = [0, 2, 1, 1, 0, 2, 2, 0]


def gpt2(**options):
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=40, bos_token_id=1, eos_token_id=1,
                        num_labels=3, **options)  # fmt: skip
    return GPT2ForSequenceClassification(config)


def llama(**options):
    config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=1, num_labels=3,
                         max_position_embeddings=40, **options)  # fmt: skip
    return LlamaForSequenceClassification(config)


def saved(folder, make, **options):
    torch.manual_seed(4)
    make(**options).save_pretrained(folder)
    make_tokenizer(folder, pad=False)
    return str(folder)


def one_by_one(folder):
    """EL2N, the gradient's length and logits of each row alone, by plain autograd; no padding anywhere."""
    network = Model(folder).load(head="AutoModelForSequenceClassification")
    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    for text, label in zip(TEXTS, LABELS, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        hidden = network.base_model(ids).last_hidden_state[:, -1]
        logits = network.score(hidden)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([label]))
        grads = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        length = sum(float(g.double().square().sum()) for g in grads if g is not None) ** 0.5
        el2n = float((logits.detach().softmax(1)[0] - torch.eye(3)[label]).norm())
        found.append((el2n, length))
    return np.array(found)


@pytest.fixture(scope="module", params=[gpt2, llama])
def folder(request, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("no-padding"), request.param)


def test_rows_are_those_of_plain_autograd(folder):
    rows = {"text": TEXTS, "label": LABELS}
    expected = one_by_one(folder)
    np.testing.assert_allclose(hp.EL2N(models=[folder])(rows)["el2n"], expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(hp.GraNd(models=[folder])(rows)["grand"], expected[:, 1], rtol=1e-4)


def test_task2vec_does_not_depend_on_the_batch(folder):
    rows = {"text": TEXTS, "label": LABELS}
    probe = hp.Probe(folder, head="keep")
    complexity, last = hp.Task2VecComplexity(probe), hp.GraNd(models=[folder], last_layer=True)
    for scorer in (complexity, last):
        whole = scorer(rows)[scorer.name]
        alone = [scorer({"text": [t], "label": [y]})[scorer.name][0] for t, y in zip(TEXTS, LABELS, strict=True)]
        np.testing.assert_allclose(whole, alone, rtol=1e-5)
    ds = datasets.Dataset.from_dict({"text": TEXTS})
    parts = [hp.task2vec(ds.select([row]), probe) for row in range(len(TEXTS))]
    np.testing.assert_allclose(hp.task2vec(ds, probe).vector, parts[0].merge(*parts[1:]).vector, rtol=1e-5)


def test_lengths_that_are_rounded_up_do_not_reach_the_last_token(folder):
    """In bfloat16 (and on a GPU) passes are padded to whole eights."""
    rows = {"text": TEXTS, "label": LABELS}
    exact = hp.EL2N(models=[folder])(rows)["el2n"]
    half = hp.EL2N(models=[Model(folder, dtype="bfloat16")])(rows)["el2n"]
    np.testing.assert_allclose(half, exact, atol=0.02)


def test_padding_is_what_the_head_takes_for_it(tmp_path):
    """The configuration names a padding token, the tokenizer none."""
    folder = saved(tmp_path, gpt2, pad_token_id=1)
    rows = {"text": TEXTS, "label": LABELS}
    expected = one_by_one(folder)
    np.testing.assert_allclose(hp.EL2N(models=[folder], micro_batch=256)(rows)["el2n"], expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(hp.GraNd(models=[folder])(rows)["grand"], expected[:, 1], rtol=1e-4)
