"""Moderate, k-center and herding: the dossier's vectors, plain loops, rows and copies, bad input."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

import hf_prune as hp
from hf_prune.scorers import k_center as k_center_module
from hf_prune.scorers.herding import herd
from hf_prune.scorers.k_center import k_center


def dataset(x, **columns):
    features = {"embedding": datasets.List(datasets.Value("float32"), length=np.shape(x)[1])}
    rows = {"embedding": list(np.asarray(x, np.float32)), **columns}
    rest = datasets.Dataset.from_dict(columns).features if columns else {}
    return datasets.Dataset.from_dict(rows, datasets.Features({**features, **rest}))


def some(n=300, d=8, seed=0, **columns):
    x = np.random.default_rng(seed).normal(size=(n, d))
    return dataset(x, row_id=[f"r{i}" for i in range(n)], label=[f"class {i % 3}" for i in range(n)], **columns)


# moderate

POINTS = [(0, 0), (2, 0), (4, 0), (10, 0), (0, 1), (0, 3), (0, 5)]
CLASSES = [0, 0, 0, 0, 1, 1, 1]


def test_moderate_vectors():
    ds = dataset(POINTS, label=CLASSES)
    out = ds.map(hp.Moderate.fit(ds), batched=True)
    assert out["moderate_distance"][:] == [3, 1, 1, 7, 2, 0, 2]
    kept = set(np.flatnonzero(hp.keep_mask(np.array(out["moderate"]), rows=2)))
    assert kept == {4, 6}
    assert out["moderate"][1] == out["moderate"][2] > out["moderate"][0] > out["moderate"][3] == out["moderate"][5]
    out = ds.map(hp.Moderate.fit(ds, center="mean"), batched=True)
    assert out["moderate_distance"][:] == [4, 2, 0, 6, 2, 0, 2]
    assert set(np.flatnonzero(hp.keep_mask(np.array(out["moderate"]), rows=3))) == {1, 4, 6}


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("center", ["median", "mean"])
def test_moderate_keeps_the_middle_ranks(center, keep):
    ds = some()
    x, labels = np.asarray(ds["embedding"]), np.array(ds["label"])
    middle = {c: getattr(np, center)(x[labels == c], axis=0) for c in set(labels)}
    order = np.argsort([np.linalg.norm(v - middle[c]) for v, c in zip(x, labels, strict=True)])
    begin, end = round(300 * (0.5 - keep / 2)), round(300 * (0.5 + keep / 2))
    kept = hp.filter_by_score(ds.map(hp.Moderate.fit(ds, center=center), batched=True), "moderate", keep=keep)
    assert set(kept["row_id"]) == {ds["row_id"][int(i)] for i in order[begin:end]}


def test_moderate_does_not_depend_on_the_order_of_rows():
    ds = some()
    turned = ds.select(np.random.default_rng(1).permutation(300))
    for center in ("median", "mean"):
        assert hp.Moderate.fit(turned, center=center) == hp.Moderate.fit(ds.to_iterable_dataset(), center=center)


def test_moderate_drops_mislabelled_rows_first():
    rng = np.random.default_rng(0)
    label = np.arange(300) % 3
    x = 4 * np.eye(3)[label] + 0.5 * rng.normal(size=(300, 3))
    label[:15] = (label[:15] + 1) % 3
    ds = dataset(x, label=label.tolist())
    kept = hp.keep_mask(np.array(ds.map(hp.Moderate.fit(ds), batched=True)["moderate"]), keep=0.8)
    assert not kept[:15].any()


def test_bad_moderate():
    ds = some()
    with pytest.raises(ValueError, match=r"center='mode' is not known; choose one of 'median', 'mean'"):
        hp.Moderate.fit(ds, center="mode")
    with pytest.raises(ValueError, match="'class 9' in row 0 of this batch is no class that was fitted"):
        hp.Moderate.fit(ds)({"embedding": [[0.0] * 8], "label": ["class 9"]})
    with pytest.raises(ValueError, match="width 3, the class centers have 8"):
        hp.Moderate.fit(ds)({"embedding": [[0.0] * 3], "label": ["class 1"]})
    with pytest.raises(TypeError, match="not classes"):
        hp.Moderate.fit(ds, label="embedding")


# k-center


def plain_k_center(x, k, start=0):
    x = x.astype(np.float64)
    order, radii, nearest = [start], [np.inf], np.linalg.norm(x - x[start], axis=1)
    nearest[start] = -1
    while len(order) < k:
        best = int(nearest.argmax())
        order.append(best)
        radii.append(nearest[best])
        nearest = np.minimum(nearest, np.linalg.norm(x - x[best], axis=1))
        nearest[order] = -1
    return order, radii, nearest.clip(0)


def test_k_center_vector():
    cover = k_center(np.array([[0, 0], [1, 0], [0, 5], [6, 0], [6, 1.0]]), 5)
    assert cover.order.tolist() == [0, 4, 2, 1, 3]
    assert cover.radii[1:] == pytest.approx([6.0827625303, 5, 1, 1], abs=1e-10)


@pytest.mark.parametrize("candidates", [1, 7, 64, 10_000])
@pytest.mark.parametrize("kind", ["plain", "grid", "copies", "float64"])
def test_k_center_is_the_plain_loop(kind, candidates, monkeypatch):
    monkeypatch.setattr(k_center_module, "CANDIDATES", candidates)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6)).astype(np.float64 if kind == "float64" else np.float32)
    if kind == "grid":
        x = rng.integers(0, 3, size=(500, 4)).astype(np.float32)
    if kind == "copies":
        x = x[rng.integers(0, 60, 500)]
    for k in (1, 2, 90, 500):
        cover, (order, radii, nearest) = k_center(x, k, start=3), plain_k_center(x, k, start=3)
        if kind in ("copies", "grid"):  # of many rows 0 apart the loop's own rounding decides
            assert cover.order[:50].tolist() == order[:50]
        else:
            assert cover.order.tolist() == order
        assert cover.radii == pytest.approx(radii) and cover.nearest == pytest.approx(nearest)


def test_k_center_covers_within_twice_the_best():
    x = np.repeat(10 * np.eye(5), 20, axis=0) + np.random.default_rng(0).uniform(-1, 1, (100, 5)) / 5**0.5
    cover = k_center(x, 5)
    assert sorted(cover.order // 20) == [0, 1, 2, 3, 4] and cover.nearest.max() <= 2


def test_k_center_column():
    ds = some()
    scorer = hp.KCenter.fit(ds, rows=40)
    out = scorer(ds[:])["k_center"]
    x = np.asarray(ds["embedding"])
    start = int(out.argmax())
    order, _, nearest = plain_k_center(x, 40, start)
    assert np.argsort(-out, kind="stable")[:40].tolist() == order
    rest = np.setdiff1d(np.arange(300), order)
    assert np.argsort(-out[rest]).tolist() == np.argsort(-nearest[rest]).tolist()
    assert out.min() == 0 and out.max() == 299
    unit = hp.KCenter.fit(ds, rows=40, metric="cosine")(ds[:])["k_center"]
    order, _, _ = plain_k_center(x / np.linalg.norm(x, axis=1, keepdims=True), 40, start)
    assert len(set(np.argsort(-unit)[:40]) ^ set(order)) <= 2  # float32 lengths


def test_start_is_seeded_by_the_id():
    ds = some()
    firsts = {int(hp.KCenter.fit(ds, rows=2, seed=seed)(ds[:])["k_center"].argmax()) for seed in range(5)}
    assert len(firsts) > 1


# herding


def plain_herding(x, k, rule):
    mean, order, total = x.mean(0), [], np.zeros(x.shape[1])
    for t in range(1, k + 1):
        goal = t * mean - total
        value = x @ goal if rule == "product" else -np.linalg.norm(goal - x, axis=1)
        value[order] = -np.inf
        order.append(int(value.argmax()))
        total += x[order[-1]]
    return order


def test_herding_vectors():
    x = np.array([(1, 0), (0, 1), (2, 2), (-1, 0.0)])
    assert herd(x, np.array([0.5, 0.75]), 4)[0].tolist() == [2, 3, 0, 1]
    assert herd(x, np.array([0.5, 0.75]), 4, rule="distance")[0].tolist() == [1, 0, 2, 3]


@pytest.mark.parametrize("rule", ["product", "distance"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_herding_is_the_plain_loop(rule, dtype):
    x = np.random.default_rng(0).normal(size=(200, 5)).astype(dtype)
    wide = x.astype(np.float64)
    assert herd(x, wide.mean(0), 120, rule=rule)[0].tolist() == plain_herding(wide, 120, rule)


def test_rules_agree_on_rows_of_one_length():
    ds = some()
    one, two = (
        hp.Herding.fit(ds, rows=50, rule=rule, normalize=True)(ds[:])["herding"] for rule in ("product", "distance")
    )
    assert np.argsort(-one)[:50].tolist() == np.argsort(-two)[:50].tolist()


def test_herding_follows_the_mean_better_than_chance():
    ds = some(n=1000)
    x = np.asarray(ds["embedding"])
    first = np.argsort(-hp.Herding.fit(ds, rows=50)(ds[:])["herding"])[:50]
    error = np.linalg.norm(x[first].mean(0) - x.mean(0))
    chance = [np.linalg.norm(x[np.random.default_rng(i).choice(1000, 50)].mean(0) - x.mean(0)) for i in range(50)]
    assert error < min(chance)


# both


@pytest.mark.parametrize("scorer", [hp.KCenter, hp.Herding])
def test_order_of_rows_does_not_matter(scorer):
    ds = some()
    turned = ds.select(np.random.default_rng(1).permutation(300))
    assert scorer.fit(turned, rows=30) == scorer.fit(ds, rows=30)
    plain = ds.remove_columns("row_id").to_iterable_dataset()
    assert scorer.fit(turned, rows=30, row_id=None) == scorer.fit(plain, rows=30)


@pytest.mark.parametrize("scorer", [hp.KCenter, hp.Herding])
def test_copies(scorer):
    ds = some(n=60)
    twice = datasets.concatenate_datasets([ds, ds]).remove_columns("row_id")
    by_vector = scorer.fit(twice, rows=60)(twice[:])[scorer_name(scorer)]
    assert np.array_equal(by_vector[:60], by_vector[60:]) and len(set(by_vector)) == 60
    named = twice.add_column("row_id", [str(i) for i in range(120)])
    by_id = scorer.fit(named, rows=60)(named[:])[scorer_name(scorer)]
    if scorer is hp.KCenter:  # a copy covers nothing
        assert sorted(by_id)[:61] == [0.0] * 60 + [60.0]
    else:
        assert len(set(by_id)) > 60


def scorer_name(scorer):
    return {hp.KCenter: "k_center", hp.Herding: "herding"}[scorer]


@pytest.mark.parametrize("scorer", [hp.KCenter, hp.Herding])
def test_bad_input(scorer):
    ds = some(n=20)
    with pytest.raises(ValueError, match=r"rows=21 to choose, but there are 20 (distinct )?rows; use rows=20 or less"):
        scorer.fit(ds, rows=21)
    with pytest.raises(ValueError, match=r"rows=0 is no whole number from 1 up"):
        scorer.fit(ds, rows=0)
    with pytest.raises(ValueError, match=r"rows=2 to choose, but there are 1 distinct rows"):
        scorer.fit(dataset(np.ones((5, 3))), rows=2)
    with pytest.raises(ValueError, match="1 id occurs more than once: 'a'"):
        scorer.fit(dataset(np.eye(3), row_id=["a", "b", "a"]), rows=2)
    with pytest.raises(ValueError, match="1 of 1 rows is not in the rows it was fitted on: row_id 'z'"):
        scorer.fit(ds, rows=5)({"row_id": ["z"]})
    with pytest.raises(ValueError, match="not finite|finite"):
        scorer.fit(dataset(np.full((5, 3), np.nan)), rows=2)


def test_bad_options():
    ds = some(n=20)
    with pytest.raises(ValueError, match=r"metric='taxi' is not known"):
        hp.KCenter.fit(ds, rows=2, metric="taxi")
    with pytest.raises(ValueError, match=r"rule='farthest' is not known"):
        hp.Herding.fit(ds, rows=2, rule="farthest")
