"""Probes from folders that `AutoModel` saved: a head is fitted, and no random number is left in the result."""

from __future__ import annotations

from pathlib import Path

import datasets
import multiprocess
import numpy as np
import pytest
import torch
from PIL import Image as Picture
from tiny_models import WORDS, make_tokenizer, save_image_processor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

import hf_prune as hp
from hf_prune.models import Model, clear_cache

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TEXTS = {"vocab_size": 64, "max_position_embeddings": 48, **SMALL}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
GPT2 = {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40, "eos_token_id": 1}
KINDS = {
    "bert": (BertModel, BertConfig(**TEXTS), BertForSequenceClassification),
    "resnet": (ResNetModel, ResNetConfig(**RESNET), ResNetForImageClassification),
    "vit": (ViTModel, ViTConfig(image_size=24, patch_size=8, **SMALL), ViTForImageClassification),
}


def save(network, folder):
    network.save_pretrained(folder)
    if hasattr(network.config, "vocab_size"):
        make_tokenizer(folder)
    else:
        save_image_processor(folder, 24)
    return str(folder)


def rows_for(kind):
    rng = np.random.default_rng(0)
    labels = [i % 3 for i in range(18)]
    if kind == "bert":
        made = [" ".join(rng.choice(WORDS, 3 + i % 5)) for i in range(18)]
        return datasets.Dataset.from_dict({"text": made, "label": labels})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    made = [Picture.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)) for _ in range(18)]
    return datasets.Dataset.from_dict({"image": made, "label": labels}, features)


def embedded(folder, ds, seed):
    """As a process with that state of its generator sees it: the network is loaded anew."""
    clear_cache()
    torch.manual_seed(seed)
    before = torch.get_rng_state()
    found = hp.task2vec(ds, folder)
    assert torch.equal(before, torch.get_rng_state())
    return found, hp.Probe(folder).fitted(ds).digest


@pytest.mark.filterwarnings("ignore:ViTEmbeddings")  # has a parameter of its own
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_fitted_head_needs_none_in_the_folder(kind, tmp_path, capfd):
    base, config, whole = KINDS[kind]
    torch.manual_seed(0)
    body = base(config)
    folder, ds = save(body, tmp_path / "base"), rows_for(kind)
    capfd.readouterr()
    found, digest = embedded(folder, ds, 1)
    said = capfd.readouterr()
    assert "newly initialized" not in said.out + said.err and "MISSING" not in said.out + said.err
    again, same = embedded(folder, ds, 2)
    np.testing.assert_array_equal(again.vector, found.vector)
    assert digest == same and again == found
    with multiprocess.get_context("fork").Pool(1) as pool:
        elsewhere, other = pool.apply(embedded, (folder, ds, 3))
    np.testing.assert_array_equal(elsewhere.vector, found.vector)
    assert other == digest and elsewhere.merge(found).rows == 36
    # with a head in the folder, which the fitted one replaces as well
    torch.manual_seed(5)
    classifier = whole(config)
    getattr(classifier, base.base_model_prefix).load_state_dict(body.state_dict(), strict=False)
    headed = hp.task2vec(ds, save(classifier, tmp_path / "headed"))
    np.testing.assert_allclose(headed.vector, found.vector, rtol=1e-6)
    assert list(headed.layers) == list(found.layers)
    with pytest.raises(ValueError, match="no weights for the head 'classifier.*head='fit'"):
        hp.task2vec(ds, hp.Probe(folder, head="keep"))
    with pytest.raises(ValueError, match="no weights for the head"):
        hp.EL2N(models=[folder])(ds[:])


def test_what_is_drawn_is_the_same_in_every_process(tmp_path):
    """It is replaced, and must not be a reason for two workers to differ all the same."""
    model, heads = Model(save(BertModel(BertConfig(**TEXTS)), tmp_path / "base")), []
    for seed in (1, 2):
        clear_cache()
        torch.manual_seed(seed)
        network = model.load(head="AutoModelForSequenceClassification", new_head=True)
        assert network.random_head == "classifier"
        heads.append(network.classifier.weight)
    assert torch.equal(*heads) and heads[0].std() > 0
    with pytest.raises(ValueError, match="no weights for the head"):  # in the cache, and refused all the same
        model.load(head="AutoModelForSequenceClassification")


def test_rows_are_scored_by_such_a_probe(tmp_path):
    torch.manual_seed(0)
    folder, ds = save(BertModel(BertConfig(**TEXTS)), tmp_path / "base"), rows_for("bert")
    scorer = hp.Task2VecAlignment.fit(ds, folder)
    clear_cache()
    torch.manual_seed(9)
    again = hp.Task2VecAlignment.fit(ds, folder)
    assert again == scorer and scorer.flops(ds[:4]) > 0
    np.testing.assert_array_equal(again(ds[:])["t2v_alignment"], scorer(ds[:])["t2v_alignment"])


@pytest.mark.parametrize(
    ("network", "names"),
    [
        (lambda: BertModel(BertConfig(**TEXTS), add_pooling_layer=False), "bert.pooler.dense.weight"),
        (lambda: RobertaModel(RobertaConfig(**TEXTS)), "classifier.dense.bias, classifier.dense.weight"),
        (
            lambda: DistilBertModel(
                DistilBertConfig(
                    vocab_size=64, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=48
                )
            ),
            "pre_classifier.bias, pre_classifier.weight",
        ),
    ],
)
def test_random_layers_below_the_head_are_refused(network, names, tmp_path):
    folder = save(network(), tmp_path / "base")
    with pytest.raises(ValueError, match=f"{names}.*random numbers.*pools, and ends in a linear layer"):
        hp.task2vec(rows_for("bert"), folder)


class Pooled(torch.nn.Module):
    """The way out that the message names: the mean over tokens, and a linear layer."""

    def __init__(self, folder):
        super().__init__()
        self.body = BertModel.from_pretrained(folder, add_pooling_layer=False)
        self.head = torch.nn.Linear(self.body.config.hidden_size, 2)

    def forward(self, input_ids, attention_mask):
        states = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None]
        return self.head((states * mask).sum(1) / mask.sum(1))


def tokenized(texts):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(tokenized.folder))
    ready = tokenizer(texts, padding=True, return_tensors="pt")
    return {name: ready[name] for name in ("input_ids", "attention_mask")}


def test_a_module_that_pools_is_the_way_out(tmp_path):
    torch.manual_seed(0)
    tokenized.folder = save(BertModel(BertConfig(**TEXTS), add_pooling_layer=False), tmp_path / "base")
    ds = rows_for("bert")
    vectors = []
    for seed in (1, 2):  # of the head that is replaced
        torch.manual_seed(seed)
        model = Model.of(Pooled(tokenized.folder), preprocess=f"{__name__}:tokenized")
        vectors.append(hp.task2vec(ds, hp.Probe(model, modality="text")).vector)
    assert (vectors[0] > 0).mean() > 0.9
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_language_models_without_a_head(tmp_path):
    """A tied head is the table; another one must be in the folder."""
    torch.manual_seed(0)
    tied = GPT2Model(GPT2Config(**GPT2))
    folder, texts = save(tied, tmp_path / "tied"), rows_for("bert").remove_columns("label")
    found = hp.task2vec(texts, hp.Probe(folder, task="language_model"))
    clear_cache()
    again = hp.task2vec(texts, hp.Probe(folder, task="language_model"))
    np.testing.assert_array_equal(again.vector, found.vector)
    network = Model(folder).load(head="AutoModelForCausalLM")
    assert torch.equal(network.lm_head.weight, tied.wte.weight)
    untied = save(GPT2Model(GPT2Config(**GPT2, tie_word_embeddings=False)), tmp_path / "untied")
    for head in ("keep", "fit"):
        with pytest.raises(ValueError, match="no weights for the head 'lm_head' of GPT2LMHeadModel"):
            hp.task2vec(texts, hp.Probe(untied, task="language_model", head=head))
    with pytest.raises(KeyError, match=r"fitted to column 'label'.*task='language_model'"):
        hp.task2vec(texts, folder)
    with pytest.raises(ValueError, match="pools before its head"):
        hp.task2vec(rows_for("bert"), folder)
