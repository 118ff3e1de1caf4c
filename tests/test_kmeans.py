from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from hf_prune.numerics.kmeans import kmeans, unit_rows

ENGINES = ["torch", *(["faiss"] if importlib.util.find_spec("faiss") else [])]
X = np.array([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8], [3, 4]], np.float32)


def blobs(n=600, k=6, d=12, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(k, d))[np.arange(n) % k] * 3 + rng.normal(size=(n, d))).astype(np.float32)


def objective(x, centroids, spherical):
    if spherical:
        return (1 - (x @ centroids.T).max(1)).sum()
    return ((x[:, None] - centroids[None]) ** 2).sum(2).min(1).sum()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("spherical", [True, False])
def test_every_engine_converges_to_a_local_optimum(engine, spherical):
    x = blobs()
    x = unit_rows(x) if spherical else x
    found = kmeans(x, 6, spherical=spherical, tolerance=0, engine=engine)
    assert found.engine.startswith(engine) and found.iterations < 100
    assert found.objective == pytest.approx(objective(x, found.centroids, spherical), rel=1e-4)
    means = np.stack([x[found.labels == j].mean(0) for j in range(6)])
    assert np.allclose(unit_rows(means) if spherical else means, found.centroids, atol=1e-5)
    best = min(kmeans(x, 6, seed=s, spherical=spherical, engine=engine).objective for s in range(1, 6))
    assert found.objective <= 2 * best


def test_one_spherical_step_by_hand():
    x = unit_rows(X)
    found = kmeans(x, 2, start=np.eye(2, dtype=np.float32), max_iter=1, engine="torch")
    assert x.argmax(1).tolist() == [0, 0, 1, 1, 1]
    assert np.allclose(found.centroids, [[0.9486832981, 0.3162277660], [0, 1]], atol=1e-7)


def test_engines_agree():
    pytest.importorskip("faiss")
    x = unit_rows(blobs())
    a, b = kmeans(x, 6, engine="faiss"), kmeans(x, 6, engine="torch")
    assert (a.labels == b.labels).all() and np.allclose(a.centroids, b.centroids, atol=1e-6)


def test_a_seed_decides():
    x = unit_rows(blobs())
    assert (kmeans(x, 5, seed=3).centroids == kmeans(x, 5, seed=3).centroids).all()
    assert (kmeans(x, 5, seed=3).centroids != kmeans(x, 5, seed=4).centroids).any()


def test_no_cluster_stays_empty():
    # two far groups and a start inside one of them: copies leave most clusters empty at first
    x = unit_rows(np.repeat(blobs(40, k=2), 5, axis=0))
    found = kmeans(x, 30, seed=1)
    assert np.bincount(found.labels, minlength=30).min() >= 1


def test_more_clusters_than_distinct_rows():
    x = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    assert len(kmeans(x, 3).centroids) == 3
    with pytest.raises(ValueError, match="k=4 clusters, but only 3 distinct rows; use k=3"):
        kmeans(x, 4)


def test_copies_beyond_the_first_rows_are_seen():
    x = np.concatenate([np.repeat([[1.0, 0.0]], 5000, 0), [[0.0, 1.0]]]).astype(np.float32)
    assert len(np.unique(kmeans(x, 2).labels)) == 2


def test_engine_names(monkeypatch):
    with pytest.raises(ValueError, match="neither 'faiss' nor 'torch'"):
        kmeans(X, 2, engine="numpy")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'hf_prune\[cpu\]'"):
        kmeans(X, 2, engine="faiss")
    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    assert kmeans(X, 2).engine.startswith("torch")


def test_zero_rows_stay_zero():
    assert unit_rows(np.array([[0.0, 0.0], [3.0, 4.0]], np.float32)).tolist() == [[0, 0], pytest.approx([0.6, 0.8])]
