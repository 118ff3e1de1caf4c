"""Quality heads against closed forms and scikit-learn, and on bad input."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import datasets
import numpy as np
import pytest
from datasets.fingerprint import Hasher

import hf_prune as hp
from hf_prune.numerics.logistic import fit_binary
from hf_prune.scorers.quality import Grid, RidgeSums


def dataset(x, y, label="label"):
    features = {"embedding": datasets.List(datasets.Value("float32"), length=x.shape[1])}
    ds = datasets.Dataset.from_dict({"embedding": list(x)}, datasets.Features(features))
    return ds.add_column(label, list(y))


@pytest.fixture(scope="module")
def made():
    """Annotations 0 to 5 that follow the embedding, with noise; columns of unequal size, one constant."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(3000, 12)) * np.geomspace(1e-3, 30, 12) + 0.5).astype(np.float32)
    x[:, 3] = 0.25
    z = x @ (rng.normal(size=12) / np.geomspace(1e-3, 30, 12))
    y = np.clip(np.rint(2.5 + 1.2 * (z - z.mean()) / z.std() + 0.5 * rng.normal(size=3000)), 0, 5).astype(int)
    return x, y


@pytest.fixture(scope="module")
def ds(made):
    return dataset(*made)


def test_ridge_equals_the_closed_form(made):
    x, y = made[0].astype(np.float64), made[1].astype(np.float64)
    for l2 in (0.5, 100.0):
        mean = x.mean(0)
        weights = np.linalg.solve((x - mean).T @ (x - mean) + l2 * np.eye(12), (x - mean).T @ (y - y.mean()))
        found, intercept = RidgeSums(np.append(np.abs(x).max(0), 5.0)).add(x, y).solve(l2=l2)
        assert x @ found + intercept == pytest.approx((x - mean) @ weights + y.mean(), abs=1e-5)


def test_ridge_equals_scikit_learn(made, ds):
    linear = pytest.importorskip("sklearn.linear_model")
    expected = linear.Ridge(alpha=1.0).fit(*made).predict(made[0].astype(np.float64))
    scorer = hp.QualityClassifier.fit(ds, int_score=True)
    found = scorer(ds[:])
    assert found["quality"] == pytest.approx(expected, abs=2e-5)
    assert found["quality_int"].tolist() == np.rint(np.clip(found["quality"], 0, 5)).tolist()
    assert scorer.fitted_on["r2"] == pytest.approx(linear.Ridge(alpha=1.0).fit(*made).score(*made), abs=1e-4)
    assert np.corrcoef(found["quality"], made[1])[0, 1] > 0.7


def test_sums_merge_over_shards_to_the_same_bits(made):
    x, y = made
    largest = np.append(np.abs(x).max(0), 5.0)
    whole = RidgeSums(largest).add(x, y)
    order = np.random.default_rng(1).permutation(len(x))
    parts = [RidgeSums(largest).add(x[p], y[p]) for p in np.array_split(order, 7)]
    merged = parts[3]
    for part in (*parts[:3], *parts[4:]):
        merged.merge(part)
    assert np.array_equal(whole.products(), merged.products())
    exact = np.column_stack([x, y, np.ones(len(x))]).astype(np.float64)
    assert whole.products() == pytest.approx(exact.T @ exact, rel=1e-5, abs=1e-3)
    with pytest.raises(ValueError, match="other scales"):
        merged.merge(RidgeSums(largest * 8))


@pytest.mark.parametrize("options", [{}, {"regression": "logistic", "threshold": 3, "sample_rows": 500}])
def test_neither_row_order_nor_streaming_changes_the_hash(ds, options):
    scorer = hp.QualityClassifier.fit(ds, **options)
    assert Hasher.hash(hp.QualityClassifier.fit(ds.shuffle(seed=1), **options)) == Hasher.hash(scorer)
    assert hp.QualityClassifier.fit(ds.to_iterable_dataset(), **options) == scorer


def test_logistic_equals_scikit_learn(made):
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = made[0] / np.abs(made[0]).max(0), made[1]
    for level, l2 in ((3, 1.0), (5, 0.1)):
        peer = linear.LogisticRegression(C=1 / l2, tol=1e-10, max_iter=5000).fit(x.astype(float), y >= level)
        ds = dataset(x, y)
        scorer = hp.QualityClassifier.fit(ds, regression="logistic", threshold=level, l2=l2)
        assert scorer(ds[:])["quality"] == pytest.approx(peer.predict_proba(x.astype(float))[:, 1], abs=1e-5)
        assert scorer.fitted_on["threshold"] == level and scorer.fitted_on["sampled"] == 3000


def test_logistic_is_at_its_optimum():
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(400, 3)), (rng.random(400) < 0.3).astype(float)
    weights, intercept = fit_binary(x, t, l2=0.5)
    p = 1 / (1 + np.exp(-(x @ weights + intercept)))
    assert x.T @ (p - t) + 0.5 * weights == pytest.approx(np.zeros(3), abs=1e-6)
    assert p.sum() == pytest.approx(t.sum(), abs=1e-6)


def test_two_levels_need_no_threshold(made):
    ds = dataset(made[0], made[1] >= 3)
    scorer = hp.QualityClassifier.fit(ds, regression="logistic")
    found = scorer(ds[:])["quality"]
    assert found[made[1] >= 3].mean() > found[made[1] < 3].mean() + 0.2
    assert 0 <= found.min() and found.max() <= 1


def test_large_sums_carry():
    """Sums past 2**53 of the unit stay exact."""
    x, y = np.ones((5000, 1)), np.ones(5000)
    assert RidgeSums(np.array([1.0, 1.0])).add(x, y).products() == pytest.approx(np.full((3, 3), 5000.0), abs=0)
    assert RidgeSums(np.array([1.0, 1.0])).add(-x, y).products()[0].tolist() == [5000, -5000, -5000]


def test_saved_as_safetensors_and_json(ds, tmp_path):
    scorer = hp.QualityClassifier.fit(ds, int_score=True)
    scorer.save(tmp_path / "q")
    arrays, document = sorted(p.name for p in (tmp_path / "q").iterdir())
    assert document == "scorer.json" and re.fullmatch(r"arrays-[0-9a-f]{32}\.safetensors", arrays)
    again = hp.Scorer.load(tmp_path / "q")
    assert again == scorer and (again(ds[:])["quality"] == scorer(ds[:])["quality"]).all()


@pytest.mark.parametrize(
    "labels, options, error, message",
    [
        (["good"] * 9, {}, TypeError, "holds string, not numbers; annotate with levels"),
        ([1, 2, None] * 3, {}, ValueError, "is None in row 2; annotate it"),
        ([1.0, float("nan"), 2.0] * 3, {}, ValueError, "is nan in row 1; annotate it"),
        ([3] * 9, {}, ValueError, "is 3 in all 9 rows; annotate good and bad ones"),
        ([0, 1, 2] * 3, {"regression": "logistic"}, ValueError, "more than two levels, 0 to 2; pass threshold=3"),
        ([0, 1, 2] * 3, {"regression": "logistic", "threshold": 7}, ValueError, "threshold=7 leaves one side empty"),
        ([0, 1, 2] * 3, {"threshold": 1}, ValueError, "threshold is for regression='logistic'"),
        (
            [0, 1, 2] * 3,
            {"regression": "forest"},
            ValueError,
            "regression='forest' is not known; choose one of 'ridge', 'logistic'",
        ),
        ([0, 1, 2] * 3, {"l2": -1.0}, ValueError, "l2=-1.0 is not 0 or more"),
        ([0, 1, 2] * 3, {"l2": 0.0}, ValueError, "features depend on each other"),
        ([0, 1] * 4 + [1], {"regression": "logistic", "int_score": True}, ValueError, "int_score rounds predicted"),
    ],
)
def test_bad_annotations_and_options(labels, options, error, message):
    x = np.outer(np.arange(9), [1.0, 2.0]).astype(np.float32)
    with pytest.raises(error, match=message):
        hp.QualityClassifier.fit(dataset(x, labels), **options)


def test_bad_embeddings(ds):
    with pytest.raises(ValueError, match="empty dataset"):
        hp.QualityClassifier.fit(ds.select([]))
    with pytest.raises(KeyError, match="no column 'grade'|'grade'"):
        hp.QualityClassifier.fit(ds, label="grade")
    scorer = hp.QualityClassifier.fit(ds)
    with pytest.raises(ValueError, match="has width 2, the annotated rows have 12"):
        scorer({"embedding": [[1.0, 2.0]]})
    assert scorer({"embedding": []})["quality"].shape == (0,)


def test_separable_classes_without_a_penalty_have_no_optimum():
    x, t = np.array([[-1.0], [1.0]] * 5), np.array([0.0, 1.0] * 5)
    assert fit_binary(x, t, l2=1.0)[0][0] > 0


def oracle(x, y, l2):
    """Predictions of the ridge of float64 rows, from columns of length 1 about means that are summed exactly."""
    means = np.array([math.fsum(column) / len(x) for column in x.T])
    rest, target = x - means, y - math.fsum(y) / len(y)
    size = np.sqrt((rest**2).sum(0))
    size[size == 0] = 1
    rows = np.concatenate([rest / size, np.diag(np.sqrt(l2) / size)])
    found = np.linalg.lstsq(rows, np.append(target, np.zeros(x.shape[1])), rcond=1e-15)[0]
    return rest / size @ found + math.fsum(y) / len(y)


def hard(kind, rng, n=400, d=5):
    x = rng.normal(size=(n, d))
    if kind.startswith("offset"):
        x = x + float(kind.split()[1])
    elif kind.startswith("outlier row"):
        x[7] = float(kind.split()[2])
    elif kind.startswith("outlier"):
        x[7, 2] = x[9, 0] = -float(kind.split()[1])
    elif kind.startswith("scale"):
        x = x * float(kind.split()[1])
    elif kind == "mixed":
        x = x * np.array([1e-30, 1e-8, 1.0, 1e8, 1e30]) + np.array([0, 1.0, 1e4, 0, 0])
    elif kind == "both":
        x = x + 1e5
        x[7, 2] = 0
    return x


KINDS = [f"offset {v:g}" for v in (1e2, 1e4, 1e6, 1e8)] + [f"outlier {v:g}" for v in (1e3, 1e6, 1e9)]
KINDS += ["outlier row 1e6", "scale 1e-30", "scale 1e30", "mixed", "both"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_number_of_a_column_takes_nothing_from_the_others(kind, dtype):
    rng = np.random.default_rng(3)
    plain = hard("", np.random.default_rng(3))
    x = hard(kind, rng).astype(dtype)
    y = (plain @ [1, -2, 0.5, 3, -1] + rng.normal(size=len(x))).astype(np.float32)
    l2 = (
        1e-3 * float(np.median((x.astype(np.float64) - np.median(x, axis=0)) ** 2)) or 1.0
    )  # float32 near 1e8 are equal
    l2 = 0.0 if kind == "mixed" else l2
    features = {"embedding": datasets.List(datasets.Value(dtype)), "label": datasets.Value("float32")}
    ds = datasets.Dataset.from_dict({"embedding": list(x), "label": y}, datasets.Features(features))
    scorer = hp.QualityClassifier.fit(ds, l2=l2)
    want = oracle(x.astype(np.float64), y.astype(np.float64), l2)
    assert np.abs(scorer(ds[:])["quality"] - want).max() < 2e-5 * max(1, np.abs(want).max())
    again = hp.QualityClassifier.fit(ds.shuffle(seed=5), l2=l2)
    assert again == scorer and Hasher.hash(again) == Hasher.hash(scorer)


def test_split_columns_merge_to_the_same_bits():
    rng = np.random.default_rng(0)
    x, y = hard("outlier 1e9", rng), rng.normal(size=400)
    grid = Grid.of(np.append(x.min(0), y.min()), np.append(x.max(0), y.max()), np.column_stack([x, y])[:200])
    whole = RidgeSums(grid).add(x, y)
    assert len(whole.unit) > 7 and len(RidgeSums(grid._replace(typical=grid.largest)).unit) == 7
    order = rng.permutation(400)
    merged = RidgeSums(grid)
    for part in np.array_split(order, 5):
        merged.merge(RidgeSums(grid).add(x[part], y[part]))
    assert np.array_equal(merged.products(), whole.products())
    exact = [[sum(Fraction(a) * Fraction(b) for a, b in zip(u, v, strict=True)) for v in (x[:, 1], y)] for u in x.T]
    found = whole.products()[:5, [1, 5]]
    assert np.abs(found - np.array(exact, float)).max() < 1e-6 * np.abs(x).max()
    assert np.abs(found[1] - np.array(exact[1], float)).max() < 1e-4


def test_a_logistic_head_of_rows_far_from_zero():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 3))
    labels = (x[:, 0] + rng.normal(size=300) > 0).astype(int)
    want = hp.QualityClassifier.fit(dataset(x.astype(np.float32), labels), regression="logistic")
    features = datasets.Features(embedding=datasets.List(datasets.Value("float64")), label=datasets.Value("int64"))
    far = datasets.Dataset.from_dict({"embedding": list(x + 1e7), "label": labels}, features)
    found = hp.QualityClassifier.fit(far, regression="logistic")(far[:])["quality"]
    assert found == pytest.approx(want({"embedding": x})["quality"], abs=1e-5)


@pytest.mark.parametrize("constant", [0.3, 1e3, 1e6, 1e20])
def test_a_constant_column_says_nothing_however_large(constant):
    draw = np.random.default_rng(8)
    x = np.column_stack([draw.normal(size=(60, 3)), np.full(60, constant)]).astype(np.float32)
    y = np.arange(60) % 6
    with_it = datasets.Dataset.from_dict({"embedding": x.tolist(), "label": y})
    without = datasets.Dataset.from_dict({"embedding": x[:, :3].tolist(), "label": y})
    for l2 in (1e-9, 1.0):
        found, expected = (hp.QualityClassifier.fit(ds, l2=l2) for ds in (with_it, without))
        np.testing.assert_allclose(found.weights, [*expected.weights, 0], rtol=1e-9)
        np.testing.assert_allclose(found(with_it[:])["quality"], expected(without[:])["quality"], rtol=1e-6)


@pytest.mark.parametrize("last", [lambda x: x[:, 0] + x[:, 1], lambda x: np.full(60, 1e6), lambda x: 3.7 * x[:, 2]])
def test_features_that_depend_on_each_other_up_to_rounding_have_no_weights(last):
    x = np.random.default_rng(9).normal(size=(60, 3)).astype(np.float32)
    ds = datasets.Dataset.from_dict({"embedding": np.column_stack([x, last(x)]).tolist(), "label": np.arange(60) % 6})
    with pytest.raises(ValueError, match="features depend on each other, .* pass l2 > 0"):
        hp.QualityClassifier.fit(ds, l2=0.0)
