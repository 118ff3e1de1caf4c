"""Diversity, alignment, data quality; rows scored by them; greedy selection."""

from __future__ import annotations

import re

import datasets
import numpy as np
import pytest
import torch

import hf_prune as hp
from hf_prune.diversity.batches import Batches, _quotas
from hf_prune.diversity.results import (
    Coefficient,
    alignment_of,
    combine,
    cross_diversity_of,
    diversity_as_published,
    diversity_of,
)

WORDS = "the a card pay bank when how my is not why cat dog sat on mat and ran far".split()
A, B, C = [1.0, 2, 3], [2.0, 2, 1], [4.0, 1, 1]


def made(words, n, seed):
    rng = np.random.default_rng(seed)
    return datasets.Dataset.from_dict({"text": [" ".join(rng.choice(words, 12)) for _ in range(n)]})


@pytest.fixture(scope="module")
def banks():
    return made(WORDS[:6], 160, 0)


@pytest.fixture(scope="module")
def cats():
    return made(WORDS[-6:], 160, 1)


@pytest.fixture(scope="module")
def probe(tiny_gpt2_folder):
    return hp.Probe(str(tiny_gpt2_folder), estimator="position", draws=2)


def batches_of(*vectors):
    return Batches(np.array([vectors]), np.ones(len(vectors), np.int64), 1)


def test_known_vectors():
    found = diversity_of(batches_of(A, B, C))
    assert found.value == pytest.approx(0.24387404708, abs=5e-12)
    assert found.error == pytest.approx(0.14509652072, abs=5e-12)
    assert cross_diversity_of(batches_of(A, B), batches_of(C, C)).value == pytest.approx(0.26031791309, abs=5e-12)
    reference = diversity_as_published(batches_of(A, B, C))
    assert reference.error == pytest.approx(0.10259873373, abs=1e-8)  # with 1e-8 in the sums
    same = diversity_of(batches_of(*[A] * 8))
    assert (same.value, same.interval) == (0, (0, 0)) and float(same) == 0
    for candidate, quality in (([1, 4, 2.2], 0.59949609489), ([4, 1, 2], 0.40645161290), ([2, 2, 2], 0.53103448276)):
        aligned = alignment_of(batches_of(*[candidate] * 3), batches_of(*[[1, 4, 2]] * 3))
        found = combine(aligned, _coefficient(0.2), 0.5)
        assert float(found) == pytest.approx(quality, abs=5e-12)


def _coefficient(value):
    return Coefficient(value, (value, value), 0.0, 0.0, np.zeros((8, 8)), 8, 1)


def test_noise_floor_is_the_relative_variance():
    """Two estimates of one vector, R draws each: about 2 / R apart."""
    rng = np.random.default_rng(0)
    truth = rng.lognormal(size=20000)
    for draws, floor in ((16, 0.111), (64, 0.0301)):
        a, b = (truth * rng.chisquare(draws, 20000) / draws for _ in range(2))
        assert hp.task2vec_distance(a, b) == pytest.approx(floor, rel=0.05)


def test_diversity_of_one_kind_of_text_and_of_two(banks, cats, probe):
    kwargs = {"batches": 8, "batch_rows": 16}
    one = hp.diversity_coefficient(banks, probe, **kwargs)
    other = hp.diversity_coefficient(cats, probe, **kwargs)
    apart = hp.cross_diversity_coefficient(banks, cats, probe, **kwargs)
    pooled = hp.diversity_coefficient([banks, cats], probe, **kwargs)
    mixed = hp.diversity_coefficient([banks, cats], probe, mix="interleaved", **kwargs)
    assert one.interval[1] < apart.interval[0] and other.interval[1] < apart.interval[0]
    assert max(one.value, other.value) < pooled.value and mixed.value < pooled.value
    assert 0 < one.noise_floor and one.corrected < one.value and one.distances.shape == (8, 8)
    assert str(one).endswith("8 batches of 16 rows") and f"{float(one):.4f}" in str(one)
    low, high = hp.diversity_bounds(probe, batches=8, batch_rows=16, length=12)
    assert low.value < one.value and low.value < high.value


def test_diversity_does_not_depend_on_order_or_passes(banks, probe):
    from dataclasses import replace

    kwargs = {"batches": 8, "batch_rows": 16, "noise_floor": False}
    found = hp.diversity_coefficient(banks, probe, **kwargs)
    shuffled = hp.diversity_coefficient(banks.shuffle(seed=3), probe, **kwargs)
    small = hp.diversity_coefficient(banks, replace(probe, micro_batch=64), **kwargs)
    assert shuffled.value == pytest.approx(found.value, rel=1e-5) and found.noise_floor is None
    assert small.value == pytest.approx(found.value, rel=1e-5)
    assert hp.diversity_coefficient(banks, probe, seed=1, **kwargs).value != found.value


def test_batches_are_those_of_task2vec(banks, probe):
    """Embedded together as embedded one by one: each batch of one row is one of the rows."""
    from hf_prune.diversity.batches import embed_batches

    few = banks.select(range(8))
    found = embed_batches(few, probe, batches=8, batch_rows=1, seed=0, noise_floor=False)
    alone = np.array([hp.task2vec(few.select([row]), probe).vector for row in range(8)])
    apart = np.abs(found.vectors[0][:, None] / alone - 1).max(-1)
    assert sorted(apart.argmin(1)) == list(range(8)) and apart.min(1).max() < 1e-5


def test_alignment_is_highest_with_itself(banks, cats, probe):
    halves = banks.select(range(80)), banks.select(range(80, 160))
    own = hp.alignment_coefficient(halves[0], halves[1], probe, batches=8)
    other = hp.alignment_coefficient(halves[0], cats, probe, batches=8)
    assert own.interval[0] > other.interval[1] and own.batch_rows == 10
    itself = hp.alignment_coefficient(halves[0], halves[0], probe, batches=8)
    assert itself.plain == pytest.approx(1 - itself.noise_floor, abs=0.02) and itself.plain < 1
    assert own.corrected == own.value > own.plain and own.interval[1] == itself.interval[1] == 1
    pairs = hp.alignment_coefficient(halves[0], cats, probe, batches=8, batch_rows=10, pooled=False)
    assert pairs.value < other.value  # smaller samples, more noise
    quality = hp.data_quality(halves[0], cats, probe, alpha=0.25, batches=8, batch_rows=10, noise_floor=False)
    assert float(quality) == pytest.approx(0.25 * quality.alignment.value + 0.75 * quality.diversity.value)
    assert quality.interval[0] < float(quality) < quality.interval[1] and "alignment" in str(quality)


def test_identical_rows_have_no_diversity(probe):
    same = datasets.Dataset.from_dict({"text": ["the cat sat on mat"] * 32})
    found = hp.diversity_coefficient(same, probe, batches=8, batch_rows=4)
    assert found.value < 1e-6 and np.isfinite(found.interval).all()


def test_classes_get_a_head_for_each_batch():
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 2
    x = rng.normal(size=(96, 4)) + 2 * np.eye(4)[labels]
    ds = datasets.Dataset.from_dict({"embedding": x.tolist(), "label": labels.tolist()})
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    found = hp.diversity_coefficient(ds, hp.Probe(net), batches=8, batch_rows=12)
    assert found.value > 0 and found.noise_floor == 0  # the exact Fisher draws nothing
    assert hp.alignment_coefficient(ds, ds, hp.Probe(net), batches=8).value == pytest.approx(1, abs=1e-6)


def many_classes(classes, n=320, seed=0):
    """Rows of which batches of 20 see 13 to 17 of the classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    x = rng.normal(size=(n, 4)) + 3 * rng.normal(size=(classes, 4))[labels]
    return datasets.Dataset.from_dict({"embedding": x.tolist(), "label": labels.tolist()})


def test_one_kind_of_fisher_for_all_batches():
    """Some batches see 16 classes or fewer, some more: the data's 30 decide, for each of several datasets."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    few, many = many_classes(5), many_classes(30)
    kwargs = {"batches": 8, "batch_rows": 20}
    seen = {len(set(many.shuffle(seed=s)["label"][:20])) for s in range(20)}
    assert min(seen) <= 16 < max(seen)
    probe = hp.Probe(net, l2=0.1)
    mixed = hp.diversity_coefficient(many, probe, **kwargs)
    sampled = hp.diversity_coefficient(many, hp.Probe(net, l2=0.1, fisher="sampled"), **kwargs)
    assert mixed.fisher == "sampled" and "sampled Fisher of 8 batches" in str(mixed)
    np.testing.assert_array_equal(mixed.distances, sampled.distances)
    assert hp.diversity_coefficient(few, probe, **kwargs).fisher == "exact"
    between = hp.cross_diversity_coefficient(few, many, probe, **kwargs)
    matrix = hp.diversity_matrix({"few": few, "many": many}, probe, **kwargs)
    assert {found.fisher for found in (between, *matrix.values())} == {"sampled"}
    quality = hp.data_quality(many, few, probe, **kwargs)  # one head, of the target's five classes
    assert quality.alignment.fisher == quality.diversity.fisher == "exact"


def test_two_kinds_of_fisher_are_told():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    one, two = (hp.task2vec(many_classes(n), hp.Probe(net)) for n in (9, 19))
    assert (one.facts["fisher"], two.facts["fisher"]) == ("exact", "sampled")
    with pytest.warns(UserWarning, match="fisher='exact' or fisher='sampled' for both"):
        hp.task2vec_distance(one, two)


@pytest.mark.parametrize("n", [1, 9, 13, 31])
def test_advice_for_little_data_works(n, probe):
    few = made(WORDS[:6], n, 0)
    message = f"16 batches of 1 row need 16 rows of a dataset that has {n}|use batch_rows="
    with pytest.raises(ValueError, match=message) as e:
        hp.diversity_coefficient(few, probe, batches=16, batch_rows=None if n < 16 else 2)
    advice = dict(re.findall(r"(batches|batch_rows)=(\d+)", str(e.value)))
    if n < 8:
        assert not advice and "8 batches of one row are the minimum" in str(e.value)
        return
    kwargs = {"batches": 16, "noise_floor": False} | {name: int(value) for name, value in advice.items()}
    assert np.isfinite(hp.diversity_coefficient(few, probe, **kwargs).value)


def test_advice_for_several_datasets_works(probe):
    parts = [made(WORDS[:6], 5, 0), made(WORDS[-6:], 200, 1)]
    with pytest.raises(ValueError, match="need 8 rows of a dataset that has 5.*use batches=10 or fewer"):
        hp.diversity_coefficient(parts, probe, batches=16)
    found = hp.diversity_coefficient(parts, probe, batches=10, noise_floor=False)
    assert found.batch_rows == 1 and found.distances.shape == (10, 10)
    with pytest.raises(ValueError, match="batch_rows=0 is no whole number"):
        hp.diversity_coefficient(parts, probe, batch_rows=0)


def test_quotas():
    shares = np.array([0.75, 0.25])
    assert _quotas(8, 10, shares, "concatenated").tolist() == [[10, 0]] * 6 + [[0, 10]] * 2
    assert _quotas(8, 8, shares, "interleaved").tolist() == [[6, 2]] * 8


def test_refuses(banks, probe):
    with pytest.raises(ValueError, match="batches=2"):
        hp.diversity_coefficient(banks, probe, batches=2)
    with pytest.raises(ValueError, match="need 800 rows of a dataset that has 160"):
        hp.diversity_coefficient(banks, probe, batches=8, batch_rows=100)
    with pytest.raises(ValueError, match="need"):
        hp.diversity_coefficient(banks.select([0]), probe)
    with pytest.raises(ValueError, match="no rows"):
        hp.diversity_coefficient(banks.select([]), probe)
    with pytest.raises(ValueError, match="mix='both'"):
        hp.diversity_coefficient([banks, banks], probe, mix="both")
    with pytest.raises(ValueError, match="weights"):
        hp.diversity_coefficient([banks, banks], probe, weights=[1, 0])
    with pytest.raises(TypeError, match="take rows of a stream"):
        hp.diversity_coefficient(banks.to_iterable_dataset(), probe)
    with pytest.raises(ValueError, match="alpha=2"):
        hp.data_quality(banks, banks, probe, alpha=2)
    with pytest.raises(ValueError, match="bounds are made of tokens"):
        hp.diversity_bounds(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("prototype", ["batch", "centroids"])
def test_rows_align_with_their_own_kind(banks, cats, tiny_gpt2_folder, prototype):
    target = banks.select(range(40))
    scorer = hp.Task2VecAlignment.fit(target, str(tiny_gpt2_folder), prototype=prototype, k=3, complexity=True)
    assert scorer.probe.estimator == "position" and len(scorer.prototypes) == (1 if prototype == "batch" else 3)
    mine, others = scorer(banks[100:140]), scorer(cats[:40])
    pairs = mine["t2v_alignment"][:, None] > others["t2v_alignment"][None]
    assert pairs.mean() > 0.65 and (mine["t2v_alignment_complexity"] > 0).all()
    again = hp.Task2VecAlignment.fit(
        target.shuffle(seed=0), str(tiny_gpt2_folder), prototype=prototype, k=3, complexity=True
    )
    np.testing.assert_allclose(again(banks[100:140])["t2v_alignment"], mine["t2v_alignment"], atol=1e-5)


def test_row_scores_are_those_of_task2vec(banks, tiny_gpt2_folder):
    target = banks.select(range(20))
    scorer = hp.Task2VecAlignment.fit(target, str(tiny_gpt2_folder))
    whole = hp.task2vec(target, scorer.probe)
    one = hp.task2vec(banks.select([30]), scorer.probe)
    found = scorer(banks[28:36])["t2v_alignment"][2]
    assert found == pytest.approx(1 - hp.task2vec_distance(one, whole), abs=1e-5)
    complexity = hp.Task2VecComplexity(scorer.probe)(banks[28:36])["t2v_complexity"][2]
    assert complexity == pytest.approx(one.complexity, rel=1e-5)


def test_provenance_says_which_gradients_are_squared(banks, tiny_gpt2_folder):
    """A folder and a Probe of it give other numbers, and say so."""
    folder, target = str(tiny_gpt2_folder), banks.select(range(8))
    named, whole, same = (
        hp.Task2VecAlignment.fit(target, probe)
        for probe in (folder, hp.Probe(folder), hp.Probe(folder, estimator="position"))
    )
    assert named == same and named.prototypes.shape != whole.prototypes.shape
    assert named.describe().raw.endswith("squared by itself, in the layers after the last mixing of positions")
    assert whole.describe().raw.endswith("squared whole, in all layers")
    assert "estimator='position'" in repr(named) and "estimator" not in repr(whole)
    chosen = hp.Task2VecComplexity(hp.Probe(folder, layers=["transformer.h.1.mlp"]))
    assert chosen.describe().raw.endswith("squared whole, in transformer.h.1.mlp")


def test_provenance_says_whose_labels(banks, tiny_gpt2_folder, tiny_resnet_folder):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 20))
    rows = many_classes(20, 40)
    fitted = hp.Task2VecAlignment.fit(rows, hp.Probe(net))
    kept = hp.Task2VecAlignment.fit(rows, hp.Probe(net, head="keep"))
    few = hp.Task2VecAlignment.fit(many_classes(3, 40), hp.Probe(net))
    for scorer, which in (
        (fitted, "sampled"),
        (kept, "sampled"),
        (few, "exact"),
        (hp.Task2VecComplexity(str(tiny_gpt2_folder)), "sampled"),
        (hp.Task2VecComplexity(hp.Probe(str(tiny_resnet_folder), head="keep")), "exact"),
        (hp.Task2VecComplexity(hp.Probe(net, head="keep")), "auto: exact for 16 classes or fewer"),
        (hp.Task2VecComplexity(hp.Probe(net, head="keep", fisher="exact")), "exact"),
    ):
        assert scorer.describe().params["fisher"] == which
    assert few.fitted_on["fisher"] == "exact"


def test_complexity_has_bits_per_byte_beside_it(banks, tiny_gpt2_folder):
    found = hp.Task2VecComplexity(str(tiny_gpt2_folder))(banks[:6])
    theirs = hp.Perplexity(str(tiny_gpt2_folder), bits_per_byte=True, bos=False)(banks[:6])
    np.testing.assert_allclose(found["t2v_complexity_bits_per_byte"], theirs["bits_per_byte"], rtol=1e-4)


def test_scorers_refuse(tiny_gpt2_folder, tiny_resnet_folder, banks):
    with pytest.raises(ValueError, match="no head yet"):
        hp.Task2VecComplexity(str(tiny_resnet_folder))
    with pytest.raises(ValueError, match="prototype='mean'"):
        hp.Task2VecAlignment.fit(banks, str(tiny_gpt2_folder), prototype="mean")
    with pytest.raises(ValueError, match="empty dataset"):
        hp.Task2VecAlignment.fit(banks.select([]), str(tiny_gpt2_folder))
    with pytest.raises(ValueError, match="k=16 centroids, but 3 rows"):
        hp.Task2VecAlignment.fit(banks.select(range(3)), str(tiny_gpt2_folder), prototype="centroids")
    scorer = hp.Task2VecAlignment.fit(banks.select(range(9)), str(tiny_gpt2_folder))
    with pytest.raises(ValueError, match="row 1"):
        scorer({"text": ["the cat sat", ""]})
    assert scorer.flops(banks[:4]) > 0


def test_select_diverse_by_brute_force():
    rng = np.random.default_rng(0)
    x, score = rng.normal(size=(60, 5)), rng.normal(size=60)
    score[7] = np.nan
    ds = datasets.Dataset.from_dict({"embedding": x.tolist(), "t2v_alignment": score.tolist()})
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    rank = np.argsort(np.argsort(np.where(np.isnan(score), -9, score))) - 1
    chosen = []
    for _ in range(20):
        left = [i for i in range(60) if i not in chosen and i != 7]
        near = [max((unit[i] @ unit[j] for j in chosen), default=-1) for i in left]
        chosen.append(left[int(np.argmax([0.7 * rank[i] / 58 - 0.3 * c for i, c in zip(left, near, strict=True)]))])
    found = hp.select_diverse(ds, 20, diversity=0.3)
    assert found.tolist() == chosen
    assert hp.select_diverse(ds, 5, diversity=0).tolist() == np.argsort(-np.nan_to_num(score, nan=-9))[:5].tolist()
    assert set(hp.select_diverse(ds, 5, diversity=1, pool=10)) <= set(np.argsort(-np.nan_to_num(score, nan=-9))[:10])
    with pytest.raises(ValueError, match="rows=60"):
        hp.select_diverse(ds, 60)
    with pytest.raises(ValueError, match="diversity=2"):
        hp.select_diverse(ds, 6, diversity=2)


def chosen_by_brute_force(x, score, k, diversity, pool=None):
    there = [i for i in range(len(x)) if not np.isnan(score[i])]
    values = sorted({score[i] for i in there})
    rank = {i: values.index(score[i]) / max(len(values) - 1, 1) for i in there}
    left, chosen = sorted(there, key=lambda i: -score[i])[:pool], []
    unit = [np.array(v, float) / max(np.abs(v)) for v in x]
    unit = [v / np.linalg.norm(v) for v in unit]
    for _ in range(k):
        gain = [
            (1 - diversity) * rank[i] - diversity * max((unit[i] @ unit[j] for j in chosen), default=-1) for i in left
        ]
        chosen.append(left.pop(int(np.argmax(gain))))
    return chosen


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e20, 1e30])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_select_diverse_from_a_pool(scale, dtype):
    rng = np.random.default_rng(8)
    x, score = rng.normal(size=(40, 4)) * (scale if dtype != "float16" else 2.0), rng.normal(size=40).round(1)
    score[3] = np.nan
    features = {"embedding": datasets.List(datasets.Value(dtype)), "s": datasets.Value("float64")}
    ds = datasets.Dataset.from_dict({"embedding": list(x.astype(dtype)), "s": score}, datasets.Features(features))
    for pool in (9, 25, 39, 100, None):
        found = hp.select_diverse(ds, 9, score="s", diversity=0.4, pool=pool)
        assert found.tolist() == chosen_by_brute_force(x.astype(dtype), score, 9, 0.4, pool)


def test_bad_rows_and_pools_of_select_diverse():
    x, score = np.eye(6), np.arange(6.0)
    x[1, 2], x[4, 0], score[1] = np.nan, np.inf, np.nan
    ds = datasets.Dataset.from_dict({"embedding": x.tolist(), "s": score})
    with pytest.raises(ValueError, match="not finite in row 4, of 1 such rows that have a 's'"):
        hp.select_diverse(ds, 2, score="s")
    assert hp.select_diverse(ds, 1, score="s", pool=1).tolist() == [5]  # nobody looks at row 4
    for options, message in (
        ({"rows": 3, "pool": 2}, "pool=2 is fewer than the rows=3"),
        ({"rows": 1, "pool": 0}, "pool=0 is no whole number"),
        ({"rows": 1, "pool": 2.5}, "pool=2.5 is no whole number"),
        ({"rows": True}, "rows=True is no whole number"),
        ({"rows": -1}, "rows=-1 is no whole number"),
        ({"rows": 6}, "rows=6, but 5 rows can be chosen"),
    ):
        with pytest.raises(ValueError, match=message):
            hp.select_diverse(ds, score="s", **options)
