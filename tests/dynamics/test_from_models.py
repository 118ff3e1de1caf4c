"""EL2N and uncertainty by forward passes: the papers' numbers, transformers' own pipelines, and bad input."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import scipy.special
import torch
from datasets import Dataset
from PIL import Image as Picture

import hf_prune as hp
from hf_prune.data.batch import Batch
from hf_prune.dynamics.log import TrainingLog
from hf_prune.networks.classifier import Classifier

LOGITS = [[2, 0, -1], [0, 1, 0], [1, 1, 1], [-2, 3, 0.5]]
LABELS = [0, 2, 1, 0]
TEXTS = ["the cat sat", "how far is the bank", "pay my card", "why not", "the dog ran on and on", "cat"] * 2
MEASURES = ("entropy", "least_confidence", "margin")


def linear(weight):
    """A network that multiplies: the identity hands its input out as logits."""
    weight = torch.tensor(weight, dtype=torch.float32)
    module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = torch.nn.Parameter(weight)
    return module


def rows():
    return {"embedding": [[float(z) for z in row] for row in LOGITS], "label": list(LABELS)}


def el2n(logits, labels):
    p = scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)
    return np.linalg.norm(p - np.eye(p.shape[-1])[labels], axis=-1)


@pytest.fixture(scope="module")
def identity():
    return hp.Model.of(linear(np.eye(3)))


def test_vectors(identity):
    found = hp.EL2N(models=[identity], label="label")(rows())["el2n"]
    np.testing.assert_allclose(found, [0.1980037227, 0.9989324288, 0.8164965809, 1.3553028936], atol=2e-7)
    expected = {
        "entropy": [0.5242666167, 0.9753278292, 1.0986122887, 0.3045105426],
        "least_confidence": [0.1562052655, 0.4238831152, 0.6666666667, 0.0815770332],
        "margin": 1 - np.array([0.7295995351, 0.3641753271, 0, 0.8430342188]),
    }
    for measure, values in expected.items():
        scorer = hp.Uncertainty(models=[identity], statistic=measure)
        np.testing.assert_allclose(scorer(rows())[f"uncertainty_{measure}"], values, atol=3e-7)


def test_models_are_averaged_in_float64(identity):
    other = hp.Model.of(linear(2 * np.eye(3)))
    found = hp.EL2N(models=[identity, other, identity])(rows())["el2n"]
    one, two = el2n(LOGITS, LABELS), el2n(2 * np.array(LOGITS), LABELS)
    np.testing.assert_allclose(found, (2 * one + two) / 3, atol=2e-7)


MADE = []


def make_identity():
    MADE.append(1)
    return linear(np.eye(3))


def test_more_models_than_the_cache_holds_are_loaded_once(monkeypatch):
    from hf_prune import models

    models.clear_cache()
    MADE.clear()
    for k in range(models.CACHE_SIZE + 2):
        monkeypatch.setitem(globals(), f"make_{k}", make_identity)
    scorer = hp.EL2N(models=[f"{__name__}:make_{k}" for k in range(models.CACHE_SIZE + 2)])
    MADE.clear()
    for _ in range(3):
        scorer(rows())
    assert len(MADE) == models.CACHE_SIZE + 2


def test_models_and_a_log_of_their_logits_agree(identity, tmp_path):
    log = TrainingLog.from_logits(tmp_path, list("abcd"), np.array([LOGITS], float), LABELS, mode="eval")
    there = hp.EL2N.from_log(log)({"row_id": list("abcd")})["el2n"]
    np.testing.assert_allclose(hp.EL2N(models=identity)(rows())["el2n"], there, atol=1e-7)
    for measure in MEASURES:
        name = f"uncertainty_{measure}"
        there = hp.Uncertainty.from_log(log, statistic=measure)({"row_id": list("abcd")})[name]
        np.testing.assert_allclose(hp.Uncertainty(identity, statistic=measure)(rows())[name], there, atol=1e-7)


def test_text_classifier_equals_transformers(tiny_text_classifier_folder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network = AutoModelForSequenceClassification.from_pretrained(tiny_text_classifier_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_text_classifier_folder)
    with torch.inference_mode():
        expected = np.stack([network(**tokenizer(t, return_tensors="pt")).logits[0].numpy() for t in TEXTS])
    found = Classifier(hp.Model.of(tiny_text_classifier_folder)).logits(Batch({"text": TEXTS}))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    labels = np.arange(len(TEXTS)) % 3
    scorer = hp.EL2N([tiny_text_classifier_folder], label="label")
    np.testing.assert_allclose(scorer({"text": TEXTS, "label": labels})["el2n"], el2n(expected, labels), atol=1e-5)
    names = [["bad", "good", "neither"][i] for i in labels]
    np.testing.assert_allclose(scorer({"text": TEXTS, "label": names})["el2n"], el2n(expected, labels), atol=1e-5)
    assert scorer.flops({"text": TEXTS}) == pytest.approx(2 * scorer.flops({"text": TEXTS[:6]}), rel=0.1)
    with pytest.raises(ValueError, match=r"'ugly' in row 1 .* \(it knows bad, good, neither\)"):
        scorer({"text": TEXTS[:2], "label": ["bad", "ugly"]})


def test_image_classifier_equals_transformers(tiny_resnet_folder):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    rng = np.random.default_rng(0)
    pictures = [Picture.fromarray(rng.integers(0, 256, (12 + i, 16, 3), np.uint8)) for i in range(9)]
    processor = AutoImageProcessor.from_pretrained(tiny_resnet_folder)
    network = AutoModelForImageClassification.from_pretrained(tiny_resnet_folder).eval()
    with torch.inference_mode():
        expected = network(**processor(images=pictures, return_tensors="pt")).logits.numpy()
    labels = np.arange(9) % 3
    scorer = hp.EL2N(models=[tiny_resnet_folder])
    found = scorer({"image": pictures, "label": labels.tolist()})["el2n"]
    np.testing.assert_allclose(found, el2n(expected, labels), atol=1e-5)
    assert scorer.flops({"image": pictures, "label": labels}) > 0
    with pytest.raises(ValueError, match="column 'image': row 1 of this batch is null"):
        scorer({"image": [pictures[0], None], "label": [0, 1]})


def test_language_model_is_the_mean_over_tokens(tiny_gpt2_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(tiny_gpt2_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2_folder)
    texts = [t for t in TEXTS if " " in t]
    expected, entropy = [], []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits = network(ids).logits[0, :-1].double().numpy()
        expected.append(el2n(logits, ids[0, 1:].numpy()).mean())
        entropy.append(scipy.stats.entropy(scipy.special.softmax(logits, axis=-1), axis=-1).mean())
    np.testing.assert_allclose(hp.EL2N(tiny_gpt2_folder)({"text": texts})["el2n"], expected, atol=1e-5)
    found = hp.Uncertainty(tiny_gpt2_folder)({"text": texts})["uncertainty_entropy"]
    np.testing.assert_allclose(found, entropy, atol=1e-5)
    with pytest.raises(ValueError, match="column 'text': row 1 of this batch has 1 tokens, 2 are needed"):
        hp.EL2N(tiny_gpt2_folder)({"text": ["the cat", "cat"]})


class Sure(torch.nn.Module):
    """A language model that is nearly sure of every next token: p_y = 1 - 1e-4 over 50 000."""

    def forward(self, input_ids, attention_mask=None):
        vocabulary, rest = 50_000, 1e-4
        logits = torch.full((*input_ids.shape, vocabulary), float(np.log(rest / (vocabulary - 1))))
        logits.scatter_(2, input_ids.roll(-1, 1)[..., None], float(np.log(1 - rest)))
        return logits


def tokens(texts):
    ids = [[int(n) for n in text.split()] for text in texts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), len(ids[0]), dtype=torch.int64)}


def test_language_model_does_not_cancel():
    scorer = hp.EL2N(hp.Model.of(Sure(), preprocess=f"{__name__}:tokens"), task="language_model", modality="text")
    found = scorer({"text": ["5 7 9", "1 2 3"]})["el2n"]
    rest = 1e-4
    expected = np.sqrt(rest**2 + rest**2 / 49_999)  # the expanded form gives 0 here in float32
    np.testing.assert_allclose(found, [expected] * 2, rtol=1e-3)


def test_language_model_makes_no_copy_of_its_logits(monkeypatch):
    from torch.utils._python_dispatch import TorchDispatchMode

    from hf_prune.networks import statistics

    made, seen = [], []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            held = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in held:  # no view
                made.append(out.numel())
            return out

    def watched(logits, labels, inner=statistics.of_tokens):
        seen.append(logits.numel())
        with Watch():
            return inner(logits, labels)

    monkeypatch.setattr(statistics, "of_tokens", watched)
    scorer = hp.EL2N(hp.Model.of(Sure(), preprocess=f"{__name__}:tokens"), task="language_model", modality="text")
    scorer({"text": [" ".join(str(i + j) for i in range(12)) for j in range(4)]})
    assert seen == [4 * 11 * 50_000] and max(made) <= statistics.CHUNK["cpu"] < seen[0]


def test_batches_of_a_decoder_without_padding_are_rows(tiny_gpt2_folder, tmp_path):
    from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=40, num_labels=3)
    config.pad_token_id = None
    network = GPT2ForSequenceClassification(config).eval()
    network.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2_folder)
    tokenizer.save_pretrained(tmp_path)
    with torch.inference_mode():
        expected = np.stack([network(**tokenizer(t, return_tensors="pt")).logits[0].numpy() for t in TEXTS])
    np.testing.assert_allclose(Classifier(hp.Model.of(tmp_path)).logits(Batch({"text": TEXTS})), expected, atol=1e-5)


def test_untrained_checkpoints_are_told(tiny_text_classifier_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_text_classifier_folder, folder)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 500}))
    hp.EL2N(folder)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 0}))
    with pytest.warns(UserWarning, match="model@.* is a checkpoint of step 0"):
        hp.EL2N(folder)
    named = tmp_path / "checkpoint-0"
    shutil.copytree(tiny_text_classifier_folder, named)
    (named / "note.txt").write_text("another content, or it would be known by its other name")
    with pytest.warns(UserWarning, match="checkpoint-0@.* is a checkpoint of step 0"):
        hp.EL2N(named)


def test_networks_of_your_own_need_preprocessing_for_what_is_no_vector(identity):
    with pytest.raises(ValueError, match=r"is a network alone: say how rows of 'text' become its input"):
        hp.EL2N(identity)({"text": ["a"], "label": [0]})
    ready = hp.EL2N(identity, preprocess=f"{__name__}:three")
    assert ready({"text": ["abc", "de"], "label": [0, 1]})["el2n"].shape == (2,)
    assert hp.EL2N(identity, column="v")({"v": np.eye(3), "label": [0, 1, 2]})["el2n"].shape == (3,)


def three(texts):
    return torch.tensor([[float(len(t)), 0.0, 1.0] for t in texts])


def test_bad_input(identity, tiny_gpt2_folder, tiny_resnet_folder):
    with pytest.raises(ValueError, match="row 3 of this batch has class 3, Linear@.* knows 3 classes"):
        hp.EL2N(identity)({**rows(), "label": [0, 1, 2, 3]})
    with pytest.raises(ValueError, match="row 1 of this batch has class -1"):
        hp.EL2N(identity)({**rows(), "label": [0, -1, 2, 1]})
    with pytest.raises(ValueError, match="'label' is null in row 2"):
        hp.EL2N(identity)({**rows(), "label": [0, 1, None, 1]})
    with pytest.raises(TypeError, match="'label' holds double, not classes"):
        hp.EL2N(identity)({**rows(), "label": [0.5, 1, 2, 1]})
    with pytest.raises(ValueError, match="has one class only"):
        hp.EL2N(linear(np.ones((1, 3))))(rows())
    with pytest.raises(ValueError, match="models=\\[\\] names no model"):
        hp.EL2N(models=[])
    with pytest.raises(ValueError, match="names no model"):
        hp.EL2N()
    with pytest.raises(
        ValueError, match="task='x' is not known; choose one of 'auto', 'classification', 'language_model'"
    ):
        hp.EL2N(identity, task="x")
    with pytest.raises(KeyError, match="without column=.* reads column 'text or image or embedding'"):
        hp.EL2N(identity)({"x": [1.0], "label": [0]})
    with pytest.raises(ValueError, match="reads no kind='vector'"):
        hp.EL2N(tiny_resnet_folder, modality="vector")
    with pytest.raises(ValueError, match="max_length=128 is more than the 40 positions of .*; lower it"):
        hp.EL2N(tiny_gpt2_folder, max_length=128)  # before a row is scored
    with pytest.raises(ValueError, match="is empty"):
        hp.EL2N(tiny_gpt2_folder)({"text": ["the cat", ""]})
    with pytest.raises(ValueError, match="returned shape .*; for task='classification' return logits of shape"):
        hp.EL2N(torch.nn.Unflatten(1, (3, 1)))(rows())
    with pytest.raises(ValueError, match="statistic='x' is not known"):
        hp.Uncertainty(identity, statistic="x")


def test_an_empty_batch(identity):
    assert hp.EL2N(identity)({"embedding": [], "label": []})["el2n"].shape == (0,)


def test_card_names_every_model(identity):
    other = hp.Model.of(linear(2 * np.eye(3)))
    column = hp.EL2N([identity, other]).describe()
    assert column.model is not None and len(column.model["models"]) == 2
    assert "mean over 2 models" in column.raw and "mislabelled" in column.meaning
    Dataset.from_dict(rows()).map(hp.EL2N([identity, other]), batched=True)
