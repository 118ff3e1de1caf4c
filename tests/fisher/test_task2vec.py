"""Task2Vec embeddings and their distances: numbers, invariances, bad input."""

from __future__ import annotations

from dataclasses import replace

import datasets
import multiprocess
import numpy as np
import pytest
import torch
from PIL import Image as Picture

import hf_prune as hp
from hf_prune.diversity.intervals import of_cross, of_pairs
from hf_prune.fisher.distance import symmetric
from hf_prune.fisher.passes import Runner, draw_labels
from hf_prune.models import Model
from hf_prune.numerics.logistic import fit_softmax

A, B, C = [1.0, 2, 3], [2.0, 2, 1], [4.0, 1, 1]
WORDS = "the a card pay bank when how my is not why cat dog sat on mat and ran far".split()


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return datasets.Dataset.from_dict({"text": [" ".join(rng.choice(WORDS, 2 + i)) for i in range(16)]})


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    made = [Picture.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(24)]
    return datasets.Dataset.from_dict({"image": made, "label": [i % 4 for i in range(24)]}, features)


def vector_set(seed=0, n=40):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    x = rng.normal(size=(n, 4)) + 2 * np.eye(4)[labels]
    return datasets.Dataset.from_dict({"embedding": x.tolist(), "label": labels.tolist()})


def network(classes=3, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, classes))


def close(a, b, rtol=1e-6):
    np.testing.assert_allclose(a.vector, b.vector, rtol=rtol, atol=rtol * np.abs(b.vector).max())


def test_distances_of_known_vectors():
    d = hp.task2vec_distance
    assert d(A, B) == pytest.approx(0.21098631506186205, rel=1e-14)
    assert d(A, B, metric="cosine") == pytest.approx(0.19821627, abs=5e-9)
    small = np.array(A) * 1e-9, np.array(B) * 1e-9
    assert d(*small, eps=1e-8) == pytest.approx(0.20228333, abs=5e-9)
    assert d(*small) == pytest.approx(0.21098631506186205, rel=1e-12)
    assert d(A, 2 * np.array(A)) == 0 and d(A, A) == 0
    rest = 1 - 475 / (905 * 305) ** 0.5  # to ones, in whole numbers
    assert d(A, B, metric="asymmetric") == pytest.approx(d(A, B) - 0.15 * rest, rel=1e-12)
    assert d(A, B, metric="asymmetric") == pytest.approx(0.19660223463, abs=5e-9)
    assert d(A, C) == pytest.approx(0.38270479, abs=5e-9) and d(B, C) == pytest.approx(0.13793103, abs=5e-9)
    assert d(2 * np.array(A), B) == pytest.approx(0.1947, abs=5e-5)
    assert d(2 * np.array(A), 2 * np.array(B)) == pytest.approx(d(A, B), rel=1e-14)


def test_alignments_of_known_vectors():
    found = 1 - symmetric(np.array([[1.0, 4, 2]]), np.array([[1, 4, 2.2], [4, 1, 2], [2, 2, 2]]))
    np.testing.assert_allclose(found[0], [0.99899218980, 0.61290322581, 0.86206896552], atol=5e-12)


def test_jackknife_of_known_distances():
    d = symmetric(np.array([A, B, C]), np.array([A, B, C]))
    assert of_pairs(d).value == pytest.approx(0.24387404708, abs=5e-12)
    assert of_pairs(d).error == pytest.approx(0.14509652072, abs=5e-12)
    assert d[:2, 2].mean() == pytest.approx(0.26031791309, abs=5e-12)
    same = symmetric(np.array([A] * 9), np.array([A] * 9))
    assert of_pairs(same).value == 0 and of_pairs(same).error == 0 and of_cross(same).error == 0


def test_coordinates_that_are_zero_in_both_count_as_nothing():
    assert hp.task2vec_distance([1, 2, 3, 0], [2, 2, 1, 0]) == pytest.approx(0.21098631506186205, rel=1e-14)
    assert hp.task2vec_distance([0, 0], [0, 0]) == 0


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.ones(3, np.float16), "float16"),
        ([1, np.nan, 1], "not finite"),
        ([1, -1, 1], "negative"),
        (np.ones((3, 1)), "shape"),
        ([1, 2], "different probes or layers"),
    ],
)
def test_distances_refuse(x, words):
    with pytest.raises(ValueError, match=words):
        hp.task2vec_distance(A, x)


def test_the_fisher_by_enumeration():
    """W = I, three inputs: the exact Fisher, and the empirical one with its labels."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    for layer in net:
        layer.weight = torch.nn.Parameter(torch.eye(2))
    ds = datasets.Dataset.from_dict({"embedding": [[1.0, 0], [0, 2], [1, 1]], "label": [0, 1, 1]})
    found = hp.task2vec(ds, hp.Probe(net, head="keep"))
    exact = np.array([[0.14887064, 0.22332478]] * 2)
    np.testing.assert_allclose(found.vector, exact.mean(1), atol=1e-7)
    assert found.complexity == pytest.approx(2 * 0.18609771, rel=1e-6)
    assert found.complexity_by_layer == {"0.weight": pytest.approx(found.complexity)}
    labelled = hp.task2vec(ds, hp.Probe(net, head="keep", fisher="empirical"))
    np.testing.assert_allclose(labelled.vector[0], np.mean([0.10744316, 0.10227912]), atol=1e-7)
    assert found.facts["fisher"] == "exact" and (found.rows, found.terms) == (3, 3)


def test_sampled_labels_have_the_exact_mean():
    ds, net = vector_set(), network()
    exact = hp.task2vec(ds, hp.Probe(net, head="keep"))
    sampled = hp.task2vec(ds, hp.Probe(net, head="keep", fisher="sampled", draws=300))
    np.testing.assert_allclose(sampled.vector, exact.vector, rtol=0.15)
    other = hp.task2vec(ds, hp.Probe(net, head="keep", fisher="sampled", draws=300), seed=1)
    assert not np.allclose(sampled.vector, other.vector)
    assert hp.task2vec_distance(sampled, other) < 0.01  # seeds and draws leave embeddings comparable


def test_draw_labels_follows_the_probabilities():
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).repeat(10000, 1)
    found = draw_labels(logits, torch.rand(10000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    np.testing.assert_allclose(np.bincount(found) / 10000, [0.2, 0.5, 0.3], atol=0.02)


def test_language_model_by_one_backward_pass_a_text(tiny_gpt2_folder, texts):
    """The same labels, every text alone, plain autograd."""
    probe = hp.Probe(str(tiny_gpt2_folder), max_length=12, truncate="right")
    ds = texts.select(range(5))
    runner = Runner(probe)
    labels, sums, terms = [], 0.0, 0
    inside = runner._gradient

    def note(logits, targets, names, seed, draw):
        gradient = inside(logits, targets, names, seed, draw)
        labels.append((gradient.argmin(-1), targets >= 0))
        return gradient

    runner._gradient = note
    for text in range(5):
        one, count = runner.sums(hp.Batch(ds.select([text])[:]), [0], np.zeros(1, np.int64), 1)
        sums, terms = sums + one[0, 0], terms + count[0]
    found = hp.task2vec(ds, probe)
    np.testing.assert_allclose(found.vector, sums / runner.squares.fan_in.numpy() / terms, rtol=1e-4)
    network = Model(str(tiny_gpt2_folder)).load(head="AutoModelForCausalLM")
    block = next(b for b in runner.squares.blocks if b.name == "transformer.h.0.mlp.c_fc.weight")
    weight, total = network.transformer.h[0].mlp.c_fc.weight, 0.0
    tokens = probe.reader().read_texts(hp.Batch(ds[:]), "text")[0].tokens(ds["text"][:])[0]
    for ids, (drawn, there) in zip(tokens, labels, strict=True):
        logits = network(torch.tensor([ids])).logits
        loss = torch.nn.functional.cross_entropy(logits[there], drawn[there], reduction="sum")
        total += torch.autograd.grad(loss, weight)[0].double().pow(2).mean(0)
    np.testing.assert_allclose(found.vector[block.start : block.stop], total / terms, rtol=1e-4)
    assert not any("lm_head" in name or "wte" in name or "bias" in name for name in found.layers)


@pytest.mark.parametrize("estimator", ["sequence", "position"])
def test_passes_order_and_shards_change_nothing(tiny_gpt2_folder, texts, estimator):
    probe = hp.Probe(str(tiny_gpt2_folder), estimator=estimator, max_length=16, truncate="right")
    whole = hp.task2vec(texts, probe)
    close(hp.task2vec(texts, replace(probe, micro_batch=16)), whole)
    close(hp.task2vec(texts.select(np.random.default_rng(0).permutation(16)), probe), whole)
    parts = [hp.task2vec(texts.shard(3, i), probe) for i in range(3)]
    merged = parts[2].merge(*parts[:2])
    close(merged, whole)
    assert (merged.rows, merged.terms) == (whole.rows, whole.terms)
    close(hp.task2vec(texts.to_iterable_dataset(), probe), whole)


def test_two_processes_change_nothing(tiny_gpt2_folder, texts):
    probe = hp.Probe(str(tiny_gpt2_folder), max_length=16, truncate="right")
    with multiprocess.get_context("fork").Pool(2) as pool:
        parts = pool.starmap(hp.task2vec, [(texts.shard(2, i), probe) for i in range(2)])
    close(parts[0].merge(parts[1]), hp.task2vec(texts, probe))


def test_position_estimator_takes_the_layers_after_the_last_mixing(tiny_gpt2_folder, texts):
    found = hp.task2vec(texts, hp.Probe(str(tiny_gpt2_folder), estimator="position"))
    block = "transformer.h.1"
    assert list(found.layers) == [
        f"{block}.attn.c_proj.weight",
        f"{block}.ln_2.weight",
        f"{block}.mlp.c_fc.weight",
        f"{block}.mlp.c_proj.weight",
        "transformer.ln_f.weight",
    ]
    whole = hp.task2vec(texts, hp.Probe(str(tiny_gpt2_folder), layers=["transformer.h.1.mlp"], draws=40))
    alone = hp.task2vec(
        texts,
        hp.Probe(str(tiny_gpt2_folder), layers=["transformer.h.1.mlp"], estimator="position", draws=40),
    )
    assert whole.complexity == pytest.approx(alone.complexity, rel=0.05)  # the same mean
    with pytest.raises(ValueError, match="mixes positions"):
        hp.task2vec(
            texts, hp.Probe(str(tiny_gpt2_folder), layers=["transformer.h.0.attn.c_attn"], estimator="position")
        )


def test_exact_fisher_of_a_doubled_dataset(pictures, tiny_resnet_folder):
    for ds, probe in (
        (pictures, hp.Probe(str(tiny_resnet_folder), head="keep")),
        (vector_set(), hp.Probe(network())),  # with a fitted head
    ):
        found = hp.task2vec(ds, probe)
        twice = hp.task2vec(datasets.concatenate_datasets([ds, ds]), probe)
        close(twice, found)
        assert hp.task2vec_distance(found, twice) < 1e-10


def test_head_is_fitted_to_any_labels(pictures, tiny_resnet_folder):
    """Four classes where the model has three; names for labels."""
    probe = hp.Probe(str(tiny_resnet_folder))
    found = hp.task2vec(pictures, probe)
    assert not any("classifier" in name for name in found.layers)
    fitted = probe.fitted(pictures)
    assert fitted.classes == (0, 1, 2, 3) and fitted.weight.shape == (4, 16) and fitted.key == probe.key
    close(hp.task2vec(pictures, fitted), found)
    named = pictures.remove_columns("label").add_column("label", [f"c{i}" for i in pictures["label"]])
    close(hp.task2vec(named, probe), found)
    shuffled = pictures.select(np.random.default_rng(1).permutation(24))
    close(hp.task2vec(shuffled, probe), found)


def test_fit_softmax_is_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model")
    ds = vector_set()
    x, y = np.array(ds["embedding"][:]), np.array(ds["label"][:])
    scale = np.sqrt((x**2).mean())
    weight, bias = fit_softmax(torch.tensor(x), torch.tensor(y), classes=3, l2=1e-2)
    theirs = linear_model.LogisticRegression(C=1 / (1e-2 * len(x)), tol=1e-12, max_iter=5000).fit(x / scale, y)
    ours = torch.tensor(x) @ weight.T + bias
    np.testing.assert_allclose(ours.softmax(-1), theirs.predict_proba(x / scale), atol=1e-5)


def test_language_head_is_refitted_untied(tiny_gpt2_folder, texts):
    probe = hp.Probe(str(tiny_gpt2_folder), head="fit", l2=1e-3)
    fitted = probe.fitted(texts)
    before, after = (
        sum(part.loss.sum() for part in Runner(p).parts(hp.Batch(texts[:]), [0]))
        for p in (hp.Probe(str(tiny_gpt2_folder)), fitted)
    )
    assert after < before
    table = Model(str(tiny_gpt2_folder)).load(head="AutoModelForCausalLM").transformer.wte.weight
    assert not np.allclose(table.detach().numpy(), fitted.weight)  # a clone was fitted, not the table


def test_value_and_provenance(tiny_gpt2_folder, texts):
    import pickle

    found = hp.task2vec(texts, str(tiny_gpt2_folder))
    assert pickle.loads(pickle.dumps(found)) == found and found.vector.dtype == np.float64
    assert found.facts["draws"] == 1 and found.facts["model"]["kind"] == "folder"


def test_bfloat16_is_near(tiny_gpt2_folder, texts):
    full = hp.task2vec(texts, hp.Probe(str(tiny_gpt2_folder)))
    half = hp.task2vec(texts, hp.Probe(str(tiny_gpt2_folder), autocast=True))
    assert abs(half.complexity / full.complexity - 1) < 0.05


class Sick(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.eye(4)[:3].clone())

    def forward(self, x):
        return x @ self.table.T


def padding_only(texts):
    return {"input_ids": torch.zeros(len(texts), 4).long(), "attention_mask": torch.zeros(len(texts), 4).long()}


def test_refuses_bad_probes(tiny_gpt2_folder, texts):
    folder = str(tiny_gpt2_folder)
    with pytest.raises(ValueError, match="float16"):
        hp.Probe(Model(folder, dtype="float16"))
    with pytest.raises(ValueError, match="exact"):
        hp.Probe(folder, fisher="exact")
    with pytest.raises(ValueError, match="estimator"):
        hp.Probe(network(), estimator="position")
    with pytest.raises(ValueError, match="draws=0"):
        hp.Probe(folder, draws=0)
    with pytest.raises(ValueError, match="no module 'h.9'"):
        hp.task2vec(texts, hp.Probe(folder, layers=["h.9"]))
    broken = network()
    with torch.no_grad():
        broken[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        hp.task2vec(vector_set(), hp.Probe(broken, head="keep"))
    with pytest.raises(ValueError, match="no layer with a formula"):
        hp.task2vec(vector_set(), hp.Probe(torch.nn.Sequential(torch.nn.Linear(4, 3)), head="keep"))


def test_refuses_bad_rows(tiny_gpt2_folder, texts):
    folder = str(tiny_gpt2_folder)
    with pytest.raises(ValueError, match="empty dataset"):
        hp.task2vec(texts.select([]), folder)
    with pytest.raises(ValueError, match="row 1"):
        hp.task2vec(datasets.Dataset.from_dict({"text": ["the cat sat", ""]}), folder)
    with pytest.raises(TypeError, match="choose a split"):
        hp.task2vec(datasets.DatasetDict(train=texts), folder)
    one = vector_set().filter(lambda row: row["label"] == 1)
    with pytest.raises(ValueError, match="one class only"):
        hp.task2vec(one, hp.Probe(network()))
    with pytest.raises(ValueError, match="knows 2 classes"):
        hp.task2vec(vector_set(), hp.Probe(network(2), head="keep", fisher="empirical"))
    fitted = hp.Probe(network(), fisher="empirical").fitted(vector_set())
    with pytest.raises(ValueError, match="none of the 3 classes"):
        hp.task2vec(datasets.Dataset.from_dict({"embedding": [[1.0, 0, 0, 0]], "label": [7]}), fitted)
    single = hp.task2vec(texts.select([3]), folder)
    assert single.rows == 1 and np.isfinite(single.vector).all()
    assert hp.task2vec_distance(single, hp.task2vec(texts.select([3]), folder)) == 0


def test_refuses_a_batch_of_padding_only(tiny_gpt2_folder, texts):
    network = Model(str(tiny_gpt2_folder)).load(head="AutoModelForCausalLM")
    model = Model.of(network, preprocess=f"{__name__}:padding_only")
    with pytest.raises(ValueError, match="all padding"):
        hp.task2vec(texts, hp.Probe(model, modality="text", task="language_model"))


def test_refuses_embeddings_of_other_probes(tiny_gpt2_folder, texts):
    whole, part = (
        hp.task2vec(texts, hp.Probe(str(tiny_gpt2_folder), layers=layers))
        for layers in (["transformer.h.0"], ["transformer.h.1"])
    )
    with pytest.raises(ValueError, match="different probes"):
        hp.task2vec_distance(whole, part)
    with pytest.raises(ValueError, match="cannot be merged"):
        whole.merge(part)
