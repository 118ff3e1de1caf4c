"""Nearest centers, k-means and greedy choices at any scale and offset, against exact float64 loops."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

import hf_prune as hp
from hf_prune.numerics import search
from hf_prune.numerics.kmeans import kmeans, unit_rows
from hf_prune.numerics.search import Directions, Points, largest_cosines, nearest_points
from hf_prune.scorers.herding import herd
from hf_prune.scorers.k_center import k_center

KINDS = ("float16", "float32", "float64")


def rows(seed, n, d, offset=0.0, scale=1.0, dtype="float32"):
    x = np.random.default_rng(seed).standard_normal((n, d))
    x[:, 0] += offset
    return (scale * x).astype(dtype)


def nearest_by_loop(x, c):
    """Distances (n, k) as sums of differences in extended precision, and the cosines."""
    x, c = np.asarray(x, np.longdouble), np.asarray(c, np.longdouble)
    distance = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in c] for a in x])
    unit, direction = (v / np.sqrt((v**2).sum(1, keepdims=True)) for v in (x, c))
    return distance, np.array([[(a * b).sum() for b in direction] for a in unit])


CASES = [
    (offset, scale, dtype)
    for offset in (0.0, 30.0, 1e3, 1e4, 1e6)
    for scale in (1e-30, 1e-12, 1.0, 1e20, 1e32)
    for dtype in ("float32", "float64")
] + [(offset, 1.0, "float16") for offset in (0.0, 30.0, 1e3)]


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize(("offset", "scale", "dtype"), CASES)
def test_nearest_of_any_rows(offset, scale, dtype, tiled, monkeypatch):
    monkeypatch.setattr(search, "tiles", lambda: tiled)
    x, c = rows(0, 90, 5, offset, scale, dtype), rows(1, 70, 5, offset, scale, dtype)
    distance, cosine = nearest_by_loop(x, c)
    found, told = nearest_points(x, Points(c))
    np.testing.assert_allclose(told, distance.min(1).astype(float), rtol=1e-6)
    np.testing.assert_allclose(distance[np.arange(90), found].astype(float), distance.min(1).astype(float), rtol=1e-9)
    for count in (1, 2):
        found, told = largest_cosines(x, Directions(c), count)
        best = -np.sort(-cosine, axis=1)[:, :count].astype(float)
        np.testing.assert_allclose(told, best, rtol=0, atol=1e-15)
        np.testing.assert_allclose(cosine[np.arange(90)[:, None], found].astype(float), best, rtol=0, atol=1e-15)


def test_ties_and_far_rows_and_few_points():
    c = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    assert nearest_points(np.eye(2, dtype=np.float32), Points(c))[0].tolist() == [0, 2]
    assert largest_cosines(np.eye(2, dtype=np.float32), Directions(c), 2)[0].tolist() == [[0, 1], [2, 3]]
    assert nearest_points(np.array([[3e38, 0], [0, -3e38]], np.float32), Points(c))[1].tolist() == pytest.approx(
        [3e38] * 2
    )
    assert nearest_points(np.ones((3, 2)), Points(np.zeros((1, 2))))[0].tolist() == [0, 0, 0]
    assert nearest_points(np.zeros((0, 2)), Points(c))[1].shape == (0,)


def test_lower_precision_of_products_is_accounted_for(monkeypatch):
    torch = pytest.importorskip("torch")
    x, c = rows(2, 300, 32, 5.0), rows(3, 80, 32, 5.0)
    before = nearest_points(x, Points(c)), largest_cosines(x, Directions(c), 2)
    torch.set_float32_matmul_precision("medium")
    try:
        after = nearest_points(x, Points(c)), largest_cosines(x, Directions(c), 2)
    finally:
        torch.set_float32_matmul_precision("highest")
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a[0], b[0])


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1.0, 1e20, 3e38])
def test_unit_rows_of_any_length(scale):
    x = np.array([[3, 4, 0], [0, 0, 0], [1, 1, 1]], np.float64) / 4
    x = (x * scale).astype(np.float32)
    length = np.linalg.norm(unit_rows(x).astype(float), axis=1)
    np.testing.assert_allclose(length, [1, 0, 1], atol=1e-4 if scale < 1e-38 else 3e-7)  # 1e-40 has few digits itself


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize(("offset", "scale"), [(1e3, 1.0), (1e4, 1e-20), (1e5, 1e30), (0.0, 1e30), (0.0, 1e-30)])
def test_clusters_beside_a_large_constant(offset, scale, spherical):
    """Three clusters far apart beside what the rows share are found; before, all rows were one."""
    rng = np.random.default_rng(0)
    truth = np.arange(300) % 3
    x = np.c_[np.full(300, offset), 10 * np.eye(3)[truth] + 0.1 * rng.standard_normal((300, 3))] * scale
    x = x.astype(np.float32)
    given = unit_rows(x) if spherical else x
    for engine in ("faiss", "torch"):
        found = kmeans(given, 3, spherical=spherical, engine=engine)
        assert len({(a, b) for a, b in zip(truth, found.labels, strict=True)}) == 3
        if spherical:
            np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, rtol=1e-6)
        means = np.array([given[found.labels == j].astype(float).mean(0) for j in range(3)])
        means = unit_rows(means) if spherical else means
        np.testing.assert_allclose(found.centroids, means, rtol=2e-6, atol=2e-6 * scale if not spherical else 1e-6)
        if not spherical:
            squares = ((given.astype(float) - means[found.labels]) ** 2).sum()
            assert found.objective == pytest.approx(squares, rel=0.02)


@pytest.mark.parametrize("power", [-100, -60, 60, 120])
def test_greedy_orders_do_not_depend_on_the_unit(power):
    x = rows(4, 500, 6)
    scaled = x * np.float32(2.0**power)
    a, b = k_center(x, 60), k_center(scaled, 60)
    assert a.order.tolist() == b.order.tolist()
    np.testing.assert_array_equal(b.radii[1:], a.radii[1:] * 2.0**power)
    np.testing.assert_array_equal(b.nearest, a.nearest * 2.0**power)
    for rule in ("product", "distance"):
        first, second = (herd(v, v.mean(0, dtype=np.float64), 40, rule=rule)[0] for v in (x, scaled))
        assert first.tolist() == second.tolist()


def test_k_center_beside_a_constant_equals_the_loop():
    x = rows(5, 700, 3, offset=1e4)
    wide, order = x.astype(np.longdouble), [0]
    nearest = ((wide - wide[0]) ** 2).sum(1)
    for _ in range(30):
        order.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((wide - wide[order[-1]]) ** 2).sum(1))
    assert k_center(x, 31).order.tolist() == order


SCORERS = {
    "SSLPrototypes": lambda ds: hp.SSLPrototypes.fit(ds, k=6, cluster=True),
    "SSLPrototypes-margin": lambda ds: hp.SSLPrototypes.fit(ds, k=6, metric="margin"),
    "SupervisedPrototypes": lambda ds: hp.SupervisedPrototypes.fit(ds, margin=True),
    "SemDeDup": lambda ds: hp.SemDeDup.fit(ds, k=4),
    "KCenter": lambda ds: hp.KCenter.fit(ds, 20),
    "Herding": lambda ds: hp.Herding.fit(ds, 20),
    "Moderate": lambda ds: hp.Moderate.fit(ds),
}


def dataset(x, kind):
    """With ids: by content, other numbers are another sample."""
    features = {"embedding": datasets.List(datasets.Value(kind)), "label": datasets.Value("int64")}
    features["row_id"] = datasets.Value("string")
    table = {"embedding": list(x.astype(kind)), "label": [i % 3 for i in range(len(x))]}
    table["row_id"] = [f"row {i}" for i in range(len(x))]
    return datasets.Dataset.from_dict(table, datasets.Features(features))


@pytest.mark.parametrize("name", SCORERS)
def test_scorers_at_any_scale_and_type(name):
    """The angles, orders and ratios of rows are the same for rows times a power of two, in any float type."""
    x = rows(6, 60, 8, dtype="float16").astype(np.float64)  # the same numbers in all types
    plain = dataset(x, "float32")
    expected = SCORERS[name](plain)(plain[:])
    for kind, power in [
        ("float16", 0),
        ("float64", 0),
        ("float32", -75),
        ("float32", 67),
        ("float32", 124),
        ("float64", 100),
    ]:
        ds = dataset(x * 2.0**power, kind)
        found = SCORERS[name](ds)(ds[:])
        for column, values in expected.items():
            want = np.asarray(values, float)
            if name == "Moderate" and column.endswith("distance"):
                want = want * 2.0**power
            np.testing.assert_allclose(found[column], want, rtol=2e-5, atol=2e-6, err_msg=f"{column} {kind} 2^{power}")


def test_numbers_beyond_float32_are_told():
    ds = dataset(rows(7, 30, 3, dtype="float64") * 1e200, "float64")
    for fit in (lambda: hp.SSLPrototypes.fit(ds, k=2), lambda: hp.KCenter.fit(ds, 3)):
        with pytest.raises(ValueError, match="beyond what float32 holds"):
            fit()


@pytest.mark.parametrize("power", [-149, -140])
def test_orders_of_vectors_below_the_ordinary_floats_are_those_of_the_same_vectors_larger(power):
    """Their scale is no float32: multiplied by it in float32, every number was infinite."""
    x = np.random.default_rng(5).integers(-300, 300, (30, 3)).astype(np.float64)
    tiny = np.ldexp(x, power).astype(np.float32)
    for rule in ("product", "distance"):
        order = herd(tiny, tiny.mean(0, dtype=np.float64), 30, rule=rule)[0]
        assert order.tolist() == herd(x, x.mean(0), 30, rule=rule)[0].tolist()
    assert k_center(tiny, 30).order.tolist() == k_center(x, 30).order.tolist()


@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_vectors_that_float32_does_not_hold_are_refused_by_all_that_need_lengths(size):
    x = np.random.default_rng(6).normal(size=(12, 3)) * size
    ds = datasets.Dataset.from_dict({"embedding": x.tolist(), "label": [0, 1] * 6})
    fits = [
        lambda: hp.KCenter.fit(ds, 2),
        lambda: hp.Herding.fit(ds, 2),
        lambda: hp.Moderate.fit(ds),
        lambda: hp.QualityClassifier.fit(ds),
        lambda: hp.SupervisedPrototypes.fit(ds, metric="euclidean", normalize=False),
    ]
    for fit in fits:
        with pytest.raises(ValueError, match=r"numbers up to .*(divide|multiply) them by a constant first"):
            fit()


def test_vectors_without_numbers_are_told():
    features = datasets.Features(
        {"embedding": datasets.List(datasets.Value("float32")), "label": datasets.Value("int64")}
    )
    ds = datasets.Dataset.from_dict({"embedding": [[]] * 4, "label": [0, 1] * 2}, features=features)
    for fit in (lambda: hp.QualityClassifier.fit(ds), lambda: hp.Moderate.fit(ds), lambda: hp.KCenter.fit(ds, 1)):
        with pytest.raises(ValueError, match="hold no numbers at all; embed them again"):
            fit()
