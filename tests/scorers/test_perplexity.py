"""Perplexity and KenLM against the dossier's vectors, plain loops, and on bad input."""

from __future__ import annotations

import copy
import math

import datasets
import numpy as np
import pytest

import hf_prune as hp
from hf_prune import models
from hf_prune.networks.causal import window_spans
from hf_prune.scorers.perplexity import bits_per_byte, perplexity

SENTENCES = [
    "the cat sat on the mat",
    "hello",
    "why is the bank not far and the dog ran on the mat and the cat sat " * 6,  # 96 tokens: more than the context
    "my card",
    "the the the the the the the the",
    "pay when how why dog",
    "a dog ran",
    "cat " * 39,
    "cat " * 40,
    "the bank is not my bank and the card is not my card",
]


@pytest.fixture(scope="module")
def folder(tiny_gpt2_folder, tmp_path_factory):
    """The tiny GPT-2 with a BOS token, and sharper: random weights say nearly the same of everything."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path_factory.mktemp("tiny-gpt2-bos")
    network = AutoModelForCausalLM.from_pretrained(tiny_gpt2_folder)
    for weight in network.parameters():
        weight.data *= 6
    network.save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2_folder)
    tokenizer.add_special_tokens({"bos_token": "[CLS]"})
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def ds():
    return datasets.Dataset.from_dict({"text": SENTENCES})


def plain_loop(folder, texts, bos, context=40, stride=20):
    """One text and one window at a time, with the whole matrix of log-probabilities."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    means, counts = [], []
    for text in texts:
        ids = ([tokenizer.bos_token_id] if bos else []) + tokenizer(text, add_special_tokens=False)["input_ids"]
        seen, total = 1, 0.0
        for begin in range(0, len(ids), stride):
            window = torch.tensor([ids[begin : begin + context + 1]])
            with torch.no_grad():
                logs = network(window[:, :-1]).logits.log_softmax(-1)[0].double()
            for place in range(len(logs)):
                if begin + place + 1 >= seen:
                    total += float(logs[place, window[0, place + 1]])
                    seen += 1
            if seen == len(ids):
                break
        means.append(total / (len(ids) - 1))
        counts.append(len(ids) - 1)
    return np.array(means), counts


def test_vectors_of_the_definition():
    nll = -np.log([0.7, 0.8, 0.25])
    assert nll == pytest.approx([0.35667494, 0.22314355, 1.38629436], abs=1e-8)
    assert perplexity(-nll.mean()) == pytest.approx(1.92585678556)
    assert bits_per_byte(-nll.sum(), np.array(10)) == pytest.approx(0.28365012673)


def test_keeping_the_middle_of_the_column_is_the_papers_rule():
    ranks = -np.abs((np.arange(10) + 0.5) / 10 - 0.5)
    assert ranks[:6] == pytest.approx([-0.45, -0.35, -0.25, -0.15, -0.05, -0.05])
    scored = datasets.Dataset.from_dict({"log_likelihood": [float(i) for i in range(10)]})
    assert hp.filter_by_score(scored, "log_likelihood", keep=0.2, prefer="middle")["log_likelihood"][:] == [4, 5]


@pytest.mark.parametrize(
    "length, context, stride", [(2, 4, 2), (5, 4, 4), (6, 4, 1), (100, 7, 3), (1, 4, 2), (8, 4, 4)]
)
def test_windows_predict_each_token_once(length, context, stride):
    spans = window_spans(length, context, stride)
    assert [t for s in spans for t in range(s.first, s.end)] == list(range(1, length))
    assert all(s.end - 1 - s.begin <= context for s in spans)
    assert all(s.first - s.begin >= context - stride + 1 for s in spans[1:])


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("context, stride", [(None, None), (8, 8), (8, 3)])
def test_equals_a_plain_loop(folder, ds, bos, context, stride):
    rows = ds if bos else ds.filter(lambda r: " " in r["text"].strip())
    scorer = hp.Perplexity(folder, bos=bos, context=context, stride=stride, perplexity=True, n_tokens=True)
    found = scorer(rows[:])
    means, counts = plain_loop(folder, rows["text"], bos, context or 40, stride or 20)
    assert found["log_likelihood"] == pytest.approx(means, abs=2e-5)
    assert found["perplexity"] == pytest.approx(np.exp(-means), rel=5e-5)
    assert found["n_tokens"].tolist() == counts and np.std(means) > 0.3


def test_a_network_that_is_run_as_a_whole_gives_the_same(folder, ds):
    expected = hp.Perplexity(folder)(ds[:])["log_likelihood"]
    model = hp.Model(str(folder))
    models.clear_cache()
    models.cached(("causal probe", model.digest), lambda: False, light=True)
    assert hp.Perplexity(model)(ds[:])["log_likelihood"] == pytest.approx(expected, abs=1e-5)
    models.clear_cache()


def test_neither_micro_batches_nor_the_padding_side_matter(folder, ds, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    expected = hp.Perplexity(folder)(ds[:])["log_likelihood"]
    for budget in (1, 50, 100_000):
        found = hp.Perplexity(folder, micro_batch=budget)(ds[:])["log_likelihood"]
        assert found == pytest.approx(expected, abs=1e-5)
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    tokenizer.pad_token = "[PAD]"
    tokenizer.save_pretrained(tmp_path)
    assert hp.Perplexity(tmp_path)(ds[:])["log_likelihood"] == pytest.approx(expected, abs=1e-6)


def test_pieces_of_logits_do_not_matter(folder, ds, monkeypatch):
    from hf_prune.networks import torch_causal

    expected = hp.Perplexity(folder)(ds[:])["log_likelihood"]
    monkeypatch.setitem(torch_causal.NUMBERS, "cpu", 1)
    assert hp.Perplexity(folder)(ds[:])["log_likelihood"] == pytest.approx(expected, abs=1e-5)


def test_other_architectures_equal_a_plain_loop(tiny_gpt2_folder, tmp_path, ds):
    """Rotary positions and grouped heads (Llama); logits capped after the head, so run as a whole (Gemma 2)."""
    import torch
    from tiny_models import make_tokenizer
    from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 40, "head_dim": 8}
    torch.manual_seed(0)
    networks = [LlamaForCausalLM(LlamaConfig(**shape)), Gemma2ForCausalLM(Gemma2Config(**shape, sliding_window=16))]
    networks[1].config.final_logit_softcapping = 0.5
    split = {}
    rows = ds.filter(lambda r: " " in r["text"].strip())
    for network in networks:
        for weight in network.parameters():
            weight.data *= 4
        out = tmp_path / type(network).__name__
        network.save_pretrained(out)
        make_tokenizer(out, pad=False)
        model = hp.Model(str(out))
        found = hp.Perplexity(model, stride=10)(rows[:])["log_likelihood"]
        assert found == pytest.approx(plain_loop(out, rows["text"], False, 40, 10)[0], abs=5e-5)
        split[out.name] = models.cached(("causal probe", model.digest), pytest.fail, light=True)
    assert split == {"LlamaForCausalLM": True, "Gemma2ForCausalLM": False}


def test_bfloat16_is_near(folder, ds):
    full, half = (hp.Perplexity(folder, dtype=d)(ds[:])["log_likelihood"] for d in ("float32", "bfloat16"))
    assert 0 < np.abs(full - half).max() < 0.1


def test_bits_per_byte_count_the_bytes_that_are_predicted(folder):
    texts = ["the cat sat", "cat sat on the mat"]
    found = hp.Perplexity(folder, bits_per_byte=True, n_tokens=True)({"text": texts})
    nats = -found["log_likelihood"].astype(float) * found["n_tokens"]
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / [11, 18], rel=1e-6)
    bare = hp.Perplexity(folder, bos=False, bits_per_byte=True, n_tokens=True)({"text": texts})
    nats = -bare["log_likelihood"].astype(float) * bare["n_tokens"]
    assert bare["n_tokens"].tolist() == [2, 4]
    assert bare["bits_per_byte"] == pytest.approx(nats / math.log(2) / [8, 15], rel=1e-6)  # without "the", "cat"
    cut = hp.Perplexity(folder, max_tokens=2, bits_per_byte=True, n_tokens=True)({"text": texts})
    nats = -cut["log_likelihood"].astype(float) * cut["n_tokens"]
    assert cut["bits_per_byte"] == pytest.approx(nats / math.log(2) / [7, 7], rel=1e-6)


def test_max_tokens_is_the_score_of_the_first_tokens(folder):
    whole = hp.Perplexity(folder, max_tokens=3, n_tokens=True)({"text": ["the cat sat on the mat"]})
    part = hp.Perplexity(folder, n_tokens=True)({"text": ["the cat sat"]})
    assert whole["log_likelihood"] == pytest.approx(part["log_likelihood"], abs=1e-6) and whole["n_tokens"] == [3]


def test_chats_go_through_the_template_or_become_lines(folder):
    chat = [[{"role": "user", "content": "why is the dog"}, {"role": "assistant", "content": "on the mat"}]]
    rendered = {"messages": ["<user> why is the dog <assistant> on the mat "]}
    lines = {"messages": ["user: why is the dog\nassistant: on the mat"]}
    for how, texts in (("auto", rendered), ("template", rendered), ("plain", lines)):
        scorer = hp.Perplexity(folder, text="messages", chat=how)
        assert scorer({"messages": chat})["log_likelihood"] == pytest.approx(scorer(texts)["log_likelihood"], abs=1e-6)


def test_a_template_that_begins_with_bos_gets_no_second_one(folder, tmp_path, ds):
    import shutil

    from transformers import AutoTokenizer

    shutil.copytree(folder, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "[CLS]{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "m")
    chat = [[{"role": "user", "content": "why is the dog"}]]
    scorer = hp.Perplexity(tmp_path / "m", n_tokens=True)
    found = scorer({"text": chat})
    assert found["n_tokens"] == [4]
    assert found["log_likelihood"] == pytest.approx(scorer({"text": ["why is the dog"]})["log_likelihood"], abs=1e-6)


def test_texts_without_a_token_to_predict(folder):
    texts = ["the cat", "", None, "hello"]
    with pytest.raises(ValueError, match="row 1 of this batch is empty, and 1 more are bad; .* on_bad='nan'"):
        hp.Perplexity(folder)({"text": texts})
    found = hp.Perplexity(folder, on_bad="nan", perplexity=True, bits_per_byte=True, n_tokens=True)({"text": texts})
    for column in ("log_likelihood", "perplexity", "bits_per_byte"):
        assert np.isnan(found[column]).tolist() == [False, True, True, False]
    assert found["n_tokens"].tolist() == [2, 0, 0, 1]
    with pytest.raises(ValueError, match="row 0 of this batch has 1 token, none of which can be predicted"):
        hp.Perplexity(folder, bos=False)({"text": ["hello"]})
    assert hp.Perplexity(folder)({"text": []})["log_likelihood"].shape == (0,)


def test_what_is_not_causal_is_refused(tiny_bert_folder, tmp_path):
    from tiny_models import make_tokenizer
    from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

    with pytest.raises(ValueError, match="is an encoder, which reads in both directions: .* name a causal"):
        hp.Perplexity(tiny_bert_folder)
    T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(tmp_path / "t5")
    make_tokenizer(tmp_path / "t5")
    with pytest.raises(ValueError, match="is an encoder with a decoder"):
        hp.Perplexity(tmp_path / "t5")
    # a network alone says nothing of itself: it is asked
    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = BertForMaskedLM(BertConfig(**shape, intermediate_size=32, max_position_embeddings=48))
    scorer = hp.Perplexity(network, tokenizer=tiny_bert_folder, bos=False)
    with pytest.raises(ValueError, match="changes with the tokens after it"):
        scorer({"text": ["the cat sat"]})


def test_a_live_network_with_a_tokenizer(folder, ds):
    from transformers import AutoModelForCausalLM

    scorer = hp.Perplexity(AutoModelForCausalLM.from_pretrained(folder), tokenizer=folder, context=40)
    expected = hp.Perplexity(folder)
    assert scorer(ds[:])["log_likelihood"] == pytest.approx(expected(ds[:])["log_likelihood"], abs=1e-6)
    assert scorer.flops(ds[:]) == pytest.approx(expected.flops(ds[:]), rel=0.05)


def test_flops_are_those_of_the_passes(folder):
    import torch
    from transformers import AutoModelForCausalLM

    from hf_prune.networks.torch_passes import count_flops

    network = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    expected = count_flops(lambda: network(torch.ones((1, 30), dtype=torch.long)))
    assert hp.Perplexity(folder).flops({"text": ["cat " * 30]}) == pytest.approx(expected, rel=1e-3)
    assert hp.Perplexity(folder).flops({"text": []}) == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"context": 41}, "context=41 is more than the 40 positions"),
        ({"stride": 41}, "stride=41 would skip tokens"),
        ({"stride": 0}, "stride=0 is no positive whole number"),
        ({"chat": "maybe"}, "chat='maybe' is not one of auto, template, plain"),
        ({"on_bad": "drop"}, "on_bad='drop' is not one of raise, nan"),
        ({"text": ""}, "text='': name one column"),
    ],
)
def test_bad_options(folder, options, message):
    with pytest.raises(ValueError, match=message):
        hp.Perplexity(folder, **options)


def test_missing_parts_are_named(tiny_gpt2_folder, tmp_path, folder):
    from tiny_models import make_tokenizer
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(tiny_gpt2_folder)
    network.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="comes without a tokenizer; pass tokenizer="):
        hp.Perplexity(tmp_path / "bare")
    make_tokenizer(tmp_path / "bare", pad=False)
    with pytest.raises(ValueError, match="has no BOS token"):
        hp.Perplexity(tmp_path / "bare", bos=True)
    with pytest.raises(ValueError, match="has no chat template, which chat='template' demands"):
        hp.Perplexity(tmp_path / "bare", chat="template")
    with pytest.raises(TypeError, match="row 0 of this batch is int, neither text nor a chat"):
        hp.Perplexity(folder)({"text": [3]})
    with pytest.raises(ValueError, match="row 1 of this batch holds .* half of a surrogate pair"):
        hp.Perplexity(folder, on_bad="nan")({"text": ["the dog", "\ud800"]})
    with pytest.raises(KeyError, match="no column 'text'|'text'"):
        hp.Perplexity(folder)({"words": ["a"]})


def test_a_template_that_knows_tools_gets_the_calls(tiny_gpt2_folder, tmp_path):
    from tiny_models import make_tokenizer
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny_gpt2_folder).save_pretrained(tmp_path / "tools")
    template = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %} on {{ c.function.name }} "
        "{{ c.function.arguments.what }}{% endfor %}{% endfor %}"
    )
    make_tokenizer(tmp_path / "tools", pad=False, template=template)
    scorer = hp.Perplexity(tmp_path / "tools", chat="template")
    call = {"function": {"name": "the", "arguments": {"what": "mat", "how": None}}}
    chat = [{"role": "user", "content": "the dog"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    ds = datasets.Dataset.from_dict({"text": [chat, chat[:1]]})
    expected = scorer({"text": ["the dog on the mat", "the dog"]})["log_likelihood"]
    assert ds.map(scorer, batched=True)["log_likelihood"][:] == pytest.approx(expected.tolist(), abs=1e-6)


def test_provenance_says_the_rules(folder):
    column = hp.Perplexity(folder, name="lm", perplexity=True, stride=10).describe()
    assert "the BOS token, not predicted, comes first" in column.raw and "windows of 40 tokens, 10 new" in column.raw
    assert column.params["bos_token"] == "[CLS]" and "lm_perplexity" in column.companions
    bare = hp.Perplexity(folder, bos=False).describe()
    assert "the first token is not predicted" in bare.raw


def test_the_hash_does_not_know_the_path(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "moved")
    assert copy.copy(hp.Perplexity(folder)).digest == hp.Perplexity(tmp_path / "moved").digest
