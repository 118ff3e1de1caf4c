"""GraNd: the paper's numbers, gradients of single rows, and bad input."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hf_prune as hp

LOGITS = [[2, 0, -1], [0, 1, 0], [1, 1, 1], [-2, 3, 0.5]]
HIDDEN = [[1, 0], [0, 2], [3, 4], [0.5, -0.5]]
LABELS = [0, 2, 1, 0]


class Given(nn.Module):
    """A last layer that gives the dossier's logits out of its hidden states (h, z - W h as a first input)."""

    def __init__(self, bias):
        super().__init__()
        self.first = nn.Linear(1, 1)
        self.last = nn.Linear(2, 3, bias=bias)

    def forward(self, x):
        h, z = x[:, :2], x[:, 2:]
        own = self.last(h)
        return own + (z - own).detach()


@pytest.mark.parametrize("bias", [True, False])
def test_vectors_of_the_last_layer(bias):
    rows = {"embedding": np.hstack([HIDDEN, LOGITS]).astype(np.float32), "label": LABELS}
    expected = {
        True: [0.2800195500, 2.2336808158, 4.1633319989, 1.6599002682],
        False: [0.1980037227, 1.9978648577, 4.0824829046, 0.9583438667],
    }
    found = hp.GraNd(models=[Given(bias)], last_layer=True)(rows)["grand_last_layer"]
    np.testing.assert_allclose(found, expected[bias], rtol=2e-7)


def lengths(network, loss, n):
    """One backward pass a row."""
    found = []
    for row in range(n):
        grads = torch.autograd.grad(loss(network, row), list(network.parameters()), allow_unused=True)
        found.append(float(sum(g.double().square().sum() for g in grads if g is not None)) ** 0.5)
    return found


def small(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(True),
        nn.Flatten(),
        nn.Linear(144, 3),
    ).eval()


def test_a_convolutional_network_and_the_mean_of_lengths_over_models():
    x = np.random.default_rng(0).normal(size=(7, 64)).astype(np.float32)
    labels = np.arange(7) % 3
    nets = [small(0), small(1)]
    data = torch.from_numpy(x)
    expected = []
    for net in nets:
        expected.append(
            lengths(
                net, lambda n, r: F.cross_entropy(n(data[r : r + 1]), torch.tensor([labels[r]]), reduction="sum"), 7
            )
        )
    found = hp.GraNd(models=nets)({"embedding": x, "label": labels})["grand"]
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-5)

    parameters = {k: p.detach() for k, p in nets[0].named_parameters()}

    def loss(p, row, label):
        return F.cross_entropy(torch.func.functional_call(nets[0], p, (row[None],)), label[None])

    grads = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, data, torch.from_numpy(labels))
    norms = sum(g.flatten(1).square().sum(1) for g in grads.values()).sqrt()
    np.testing.assert_allclose(hp.GraNd(nets[0])({"embedding": x, "label": labels})["grand"], norms, rtol=1e-5)


TEXTS = ["the cat sat", "how far is the bank", "pay my card", "why not", "the dog ran on and on", "cat and dog"]


def test_a_transformer_with_texts_of_several_lengths(tiny_text_classifier_folder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network = AutoModelForSequenceClassification.from_pretrained(tiny_text_classifier_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_text_classifier_folder)
    labels = np.arange(6) % 3

    def loss(net, row):
        logits = net(**tokenizer(TEXTS[row], return_tensors="pt")).logits
        return F.cross_entropy(logits, torch.tensor([labels[row]]))

    found = hp.GraNd([tiny_text_classifier_folder])({"text": TEXTS, "label": labels})["grand"]
    np.testing.assert_allclose(found, lengths(network, loss, 6), rtol=1e-5)
    hidden = network.classifier if hasattr(network, "classifier") else network.score
    last = hp.GraNd([tiny_text_classifier_folder], last_layer=True)({"text": TEXTS, "label": labels})[
        "grand_last_layer"
    ]
    grads = [torch.autograd.grad(loss(network, row), list(hidden.parameters())) for row in range(6)]
    expected = [float(sum(g.square().sum() for g in row)) ** 0.5 for row in grads]
    np.testing.assert_allclose(last, expected, rtol=1e-5)


def test_a_language_model_sums_its_tokens(tiny_gpt2_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(tiny_gpt2_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2_folder)

    def loss(net, row):
        ids = tokenizer(TEXTS[row], return_tensors="pt")["input_ids"]
        return F.cross_entropy(net(ids).logits[0, :-1], ids[0, 1:], reduction="sum")

    scorer = hp.GraNd(tiny_gpt2_folder)
    np.testing.assert_allclose(scorer({"text": TEXTS})["grand"], lengths(network, loss, 6), rtol=1e-5)
    assert scorer.flops({"text": TEXTS}) > 0


def test_bad_input(tiny_text_classifier_folder, tmp_path):
    net = nn.Linear(2, 2)
    rows = {"embedding": [[1.0, 2.0]], "label": [2]}
    with pytest.raises(ValueError, match="row 0 of this batch has class 2, .* knows 2 classes"):
        hp.GraNd(net)(rows)
    with pytest.raises(ValueError, match="which no log has"):
        hp.GraNd(net, fitted_on={})
    with pytest.raises(ValueError, match="has no linear layer that gives its 2 logits"):
        hp.GraNd(nn.BatchNorm1d(2), last_layer=True)(rows | {"label": [0]})
    broken = nn.Linear(2, 2)
    nn.init.constant_(broken.weight, torch.nan)
    with pytest.raises(ValueError, match="weight has weights that are not finite"):
        hp.GraNd(broken)(rows | {"label": [0]})
    with pytest.raises(ValueError, match="float16"):
        hp.GraNd(hp.Model.of(net, dtype="float16"))(rows | {"label": [0]})
    folder = tmp_path / "checkpoint-0"
    shutil.copytree(tiny_text_classifier_folder, folder)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 0}))
    with pytest.warns(UserWarning, match="GraNd: checkpoint-0@.* is a checkpoint of step 0"):
        hp.GraNd(folder)
    assert len(hp.GraNd(net)({"embedding": [], "label": []})["grand"]) == 0
