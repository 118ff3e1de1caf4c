"""Task2Vec as published: against torch's own losses and backward passes, and its relation to the Fisher."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hf_prune as hp
from hf_prune.fisher.passes import input_keys, sampled_labels

WORDS = "the a card pay bank when how my is not why cat dog sat on mat and ran far".split()


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return datasets.Dataset.from_dict({"text": [" ".join(rng.choice(WORDS, rng.integers(6, 14))) for _ in range(21)]})


def test_texts_against_losses_of_torch(tiny_gpt2_folder, texts):
    probe = hp.Probe(str(tiny_gpt2_folder), fisher="published", seed=3)
    found = hp.task2vec(texts, probe)
    network, tokenizer = probe.model.load(head="AutoModelForCausalLM"), probe.model.processor()
    flags = [p.requires_grad for p in network.parameters()]
    expected: dict[str, torch.Tensor] = {}
    for start in range(0, len(texts), 8):
        losses = []
        for text in texts["text"][start : start + 8]:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            logits = network(ids).logits
            mask = torch.ones_like(ids)
            names = input_keys({"input_ids": ids, "attention_mask": mask})
            drawn = sampled_labels(logits.detach().float(), mask, names, 3, 0)
            losses.append(F.cross_entropy(logits[0, :-1], drawn[0, 1:], reduction="none"))
        names = [name for name, _ in network.named_parameters() if name.endswith("weight")]
        grads = torch.autograd.grad(torch.cat(losses).mean(), [network.get_parameter(name) for name in names])
        for name, g in zip(names, grads, strict=True):
            value = (g**2).reshape(len(g), -1).mean(1) / 3  # mini-batches
            expected[name] = expected[name] + value if name in expected else value
    assert [p.requires_grad for p in network.parameters()] == flags
    for name, (first, last) in found.layers.items():
        np.testing.assert_allclose(found.vector[first:last], expected[name].numpy(), rtol=2e-4, atol=1e-12)
    assert list(found.layers)[0] == "transformer.wte.weight"  # the tied head's gradient is in it
    assert "lm_head.weight" not in found.layers and found.rows == 21


def test_classes_against_losses_of_torch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
    x = torch.randn(100, 6)
    ds = datasets.Dataset.from_dict({"embedding": x.tolist()})
    found = hp.task2vec(ds, hp.Probe(net, head="keep", fisher="published", seed=1))
    expected = torch.zeros(5)
    for part in (x[:64], x[64:]):
        logits = net(part)
        labels = sampled_labels(logits.detach(), torch.zeros(len(part), dtype=torch.int64), input_keys(part), 1, 0)
        assert len(labels.unique()) == 4
        (g,) = torch.autograd.grad(F.cross_entropy(logits, labels), [net[0].weight])
        expected += g.square().mean(1) / 2
    np.testing.assert_allclose(found.vector, expected.numpy(), rtol=1e-4)
    assert dict(found.layers) == {"0.weight": (0, 5)} and (found.terms, found.rows) == (100, 100)


def test_mini_batches_give_the_fisher_over_their_rows_on_average():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).eval()
    for layer in net:
        nn.init.eye_(layer.weight)
    rows = {"embedding": [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], "row_id": ["a", "b", "c"]}
    ds = datasets.Dataset.from_dict(rows)
    exact = hp.task2vec(ds, hp.Probe(net, head="keep")).vector
    np.testing.assert_allclose(exact, [0.18609771, 0.18609771], atol=1e-8)
    published = hp.Probe(net, head="keep", fisher="published")
    values = [hp.task2vec(ds, published, seed=seed).vector for seed in range(400)]
    error = np.std(values, 0) / 20
    assert (np.abs(3 * np.mean(values, 0) - exact) < 3 * 3.5 * error).all()
    assert error.max() < 0.02


def test_more_noise_and_larger_distances(tiny_gpt2_folder, texts):
    many = datasets.concatenate_datasets([texts] * 4).add_column("row_id", [str(i) for i in range(84)])
    plain = hp.diversity_coefficient(many, hp.Probe(str(tiny_gpt2_folder), tables=True), batches=8, batch_rows=10)
    published = hp.diversity_coefficient(many, str(tiny_gpt2_folder), batches=8, batch_rows=10, as_published=True)
    assert float(published) > 1.2 * float(plain) and published.noise_floor is None
    low, high = published.interval
    assert high - float(published) == pytest.approx(published.error) and low < high


def test_what_has_no_rows_is_refused(tiny_gpt2_folder, texts):
    probe = hp.Probe(str(tiny_gpt2_folder), fisher="published")
    with pytest.raises(ValueError, match="tells no row from another"):
        hp.Task2VecAlignment.fit(texts, probe)(texts[:])
    with pytest.raises(ValueError, match="leave out layers"):
        hp.Probe(str(tiny_gpt2_folder), fisher="published", layers="transformer.h.1")
    with pytest.raises(ValueError, match="row 1 of this batch has 1 tokens"):
        hp.task2vec(datasets.Dataset.from_dict({"text": ["my dog sat", "a"]}), probe)
    with pytest.raises(ValueError, match="empty dataset"):
        hp.task2vec(texts.select([]), probe)
