"""Ask-LLM against the dossier's vectors, a plain loop, and on bad input."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

import hf_prune as hp
from hf_prune.scorers.ask_llm import yes_probability

WORDS = {"yes": ("the", "The"), "no": ("a", "cat sat"), "prompt": "is {text} on my mat"}


@pytest.fixture(scope="module")
def folder(tiny_gpt2_folder, tmp_path_factory):
    """The tiny GPT-2, sharper; its vocabulary has neither yes nor no, so other words stand for them."""
    import shutil

    from transformers import AutoModelForCausalLM

    out = tmp_path_factory.mktemp("tiny-judge")
    shutil.copytree(tiny_gpt2_folder, out, dirs_exist_ok=True)
    network = AutoModelForCausalLM.from_pretrained(tiny_gpt2_folder)
    for weight in network.parameters():
        weight.data *= 5
    network.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def ds():
    words = "the a card pay bank when how my is not why cat dog sat".split()
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, size)) for size in (1, 5, 9, 3, 12, 30, 60, 2, 5, 7)]
    return datasets.Dataset.from_dict({"text": texts})


def plain_loop(folder, texts, chat, room):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    head, tail = ("<user> is ", " on my mat ") if chat == "template" else ("is ", " on my mat")
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("the", "a"))
    found = []
    for text in texts:
        ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (head, text, tail)]
        with torch.no_grad():
            p = network(torch.tensor([ids[0] + ids[1][:room] + ids[2]])).logits[0, -1].double().softmax(-1)
        found.append((float(p[yes]), float(p[no])))
    return np.array(found)


def test_vectors_of_the_definition():
    logits = np.array([2, 1, 0.5])
    logs = logits - np.log(np.exp(logits).sum())
    assert yes_probability(logs[0], logs[1], "full") == pytest.approx(0.62853172, abs=1e-8)
    assert yes_probability(logs[0], logs[1], "two_way") == pytest.approx(0.73105858, abs=1e-8)


@pytest.mark.parametrize("chat", ["template", "plain"])
def test_equals_a_plain_loop(folder, ds, chat):
    p = plain_loop(folder, ds["text"], chat, room=20)
    full = hp.AskLLM(folder, **WORDS, chat=chat, max_tokens=20, answered=True)(ds[:])
    assert full["ask_llm"] == pytest.approx(p[:, 0], abs=1e-5)
    assert full["ask_llm_answered"] == pytest.approx(p.sum(1), abs=1e-5)
    two = hp.AskLLM(folder, **WORDS, chat=chat, max_tokens=20, normalise="two_way")(ds[:])["ask_llm"]
    assert two == pytest.approx(p[:, 0] / p.sum(1), abs=1e-5) and np.std(two) > 1e-3


def test_neither_micro_batches_nor_the_cache_of_the_prompt_matter(folder, ds, monkeypatch):
    from hf_prune import models
    from hf_prune.networks import torch_causal

    def run(**options):
        return hp.AskLLM(folder, **WORDS, normalise="two_way", **options)(ds[:])["ask_llm"]

    expected = run()
    for budget in (1, 40, 100_000):
        assert run(micro_batch=budget) == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr(torch_causal, "_cache", lambda network, prefix: None)
    assert run() == pytest.approx(expected, abs=1e-5)
    models.clear_cache()
    models.cached(("causal probe", hp.Model(str(folder)).digest), lambda: False, light=True)
    assert run() == pytest.approx(expected, abs=1e-5)
    models.clear_cache()


def test_spellings_are_summed(folder, ds):
    def run(**yes):
        return hp.AskLLM(folder, **(WORDS | yes))(ds[:])["ask_llm"]

    both = run(yes=("the", "card"))
    assert both == pytest.approx(run(yes=("the",)) + run(yes="card"), abs=1e-6)


def test_texts_are_cut_at_what_the_context_leaves(folder):
    scorer = hp.AskLLM(folder, **WORDS, chat="plain")
    room = scorer.describe().params["max_tokens"]
    assert room == 40 - 4
    long, cut = ("cat " * n for n in (500, room))
    found = scorer({"text": [long, cut, "cat " * (room - 1)]})["ask_llm"]
    assert found[0] == pytest.approx(found[1], abs=1e-6) and abs(found[1] - found[2]) > 1e-6


def test_the_prompt_is_in_the_provenance(folder):
    column = hp.AskLLM(folder, **WORDS).describe()
    assert column.params["prompt"] == WORDS["prompt"] and column.params["chat"] == "template"
    assert column.params["yes"] == ["the"] and "whole vocabulary" in column.raw
    assert "p(no))" in hp.AskLLM(folder, **WORDS, normalise="two_way").describe().raw


def test_braces_of_a_prompt_stand_for_themselves(folder):
    assert hp.AskLLM(folder, **(WORDS | {"prompt": "{is} {text} {}"}))({"text": ["the cat"]})["ask_llm"].shape == (1,)


def test_bad_rows(folder):
    rows = {"text": ["the cat", None, ""]}
    with pytest.raises(ValueError, match="row 1 of this batch is null, and 1 more are bad"):
        hp.AskLLM(folder, **WORDS)(rows)
    with pytest.raises(ValueError, match="row 0 of this batch holds .* half of a surrogate pair"):
        hp.AskLLM(folder, **WORDS, on_bad="nan")({"text": ["cat \ud800"]})
    found = hp.AskLLM(folder, **WORDS, on_bad="nan", answered=True)(rows)
    assert np.isnan(found["ask_llm"]).tolist() == np.isnan(found["ask_llm_answered"]).tolist() == [False, True, True]
    assert np.isnan(hp.AskLLM(folder, **WORDS, on_bad="nan")({"text": [""]})["ask_llm"]).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"yes": ("indeed", "dog ran")}, r"none of yes=\['indeed', 'dog ran'\] is one token of the vocabulary"),
        ({"no": "never"}, r"none of no=\['never'\] is one token"),
        ({"no": "the"}, "yes and no share the token 'the'"),
        ({"prompt": "is it?"}, r"the prompt has \{text\} 0 times"),
        ({"prompt": "{text} or {text}"}, r"the prompt has \{text\} 2 times"),
        ({"prompt": "cat " * 50 + "{text}"}, "leaves -1. of the context .* for a text, not 1"),
        ({"max_tokens": 39}, "not 39; shorten it"),
        ({"normalise": "half"}, "normalise='half' is not one of full, two_way"),
    ],
)
def test_bad_options(folder, options, message):
    with pytest.raises(ValueError, match=message):
        hp.AskLLM(folder, **(WORDS | options))


def test_yes_and_no_must_be_in_the_vocabulary(folder):
    with pytest.raises(ValueError, match="none of yes=.* pass yes="):
        hp.AskLLM(folder, prompt="{text}")


def test_an_encoder_is_no_judge(tiny_bert_folder):
    with pytest.raises(ValueError, match="is an encoder, which reads in both directions"):
        hp.AskLLM(tiny_bert_folder, **WORDS)


def test_a_judge_without_a_template(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template, which chat='template' demands"):
        hp.AskLLM(tmp_path / "m", **WORDS, chat="template")
    assert hp.AskLLM(tmp_path / "m", **WORDS).describe().params["chat"] == "plain"
