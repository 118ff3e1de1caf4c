"""Prototype scores against the dossier's vectors, against NumPy, and on bad input."""

from __future__ import annotations

import re
import warnings
from fractions import Fraction

import datasets
import numpy as np
import pytest
from datasets.fingerprint import Hasher

import hf_prune as hp
from hf_prune.scorers.ssl_prototypes import prototype_distance
from hf_prune.scorers.supervised_prototypes import nearest_mean

X = np.array([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8], [3, 4]])
Y = [0, 0, 1, 1, 0]


def dataset(x, **more):
    width = len(x[0])
    features = {"embedding": datasets.List(datasets.Value("float32"), length=width)}
    ds = datasets.Dataset.from_dict({"embedding": [list(map(float, r)) for r in x]}, datasets.Features(features))
    for name, values in more.items():
        ds = ds.add_column(name, values)
    return ds


@pytest.fixture(scope="module")
def big():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 3000)
    x = (rng.normal(size=(5, 24))[labels] + 0.8 * rng.normal(size=(3000, 24))).astype(np.float32)
    return dataset(x, label=labels.tolist(), i=list(range(3000)))


def matrix(ds):
    return np.array(ds["embedding"][:], np.float64)


# self-supervised


def test_vectors_of_the_definition():
    distance, cluster = prototype_distance(X, np.eye(2))
    assert distance == pytest.approx([0, 0.2, 0, 0.2, 0.2]) and cluster.tolist() == [0, 0, 1, 1, 1]
    moved = [[0.9486832981, 0.3162277660], [0, 1]]
    distance, cluster = prototype_distance(X, np.array(moved))
    assert distance == pytest.approx([0.0513167019, 0.0513167019, 0, 0.2, 0.1778078084]) and cluster[4] == 0


def test_equals_numpy_from_the_same_centroids(big):
    scorer = hp.SSLPrototypes.fit(big, k=20, cluster=True)
    out = big.map(scorer, batched=True)
    x, c = matrix(big), scorer.centroids.astype(np.float64)
    cosines = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (c / np.linalg.norm(c, axis=1, keepdims=True)).T
    assert np.abs(1 - cosines.max(1) - out["ssl_proto"][:]).max() < 1e-6
    assert (cosines.argmax(1) == out["ssl_proto_cluster"][:]).all()
    assert out.features["ssl_proto"].dtype == "float32" and out.features["ssl_proto_cluster"].dtype == "int32"


def test_other_metrics_on_the_same_centroids(big):
    x = matrix(big)
    c = hp.SSLPrototypes.fit(big, k=20).centroids.astype(np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    top = np.sort(unit @ c.T, axis=1)
    for metric, want in (
        ("margin", top[:, -2] - top[:, -1]),
        ("euclidean", np.linalg.norm(unit[:, None] - c[None], axis=2).min(1)),
    ):
        got = big.map(hp.SSLPrototypes(c.astype(np.float32), metric=metric), batched=True)["ssl_proto"][:]
        assert np.abs(got - want).max() < 1e-6
    raw = hp.SSLPrototypes.fit(big, k=20, metric="euclidean", spherical=False, normalize=False)
    want = np.linalg.norm(x[:, None] - raw.centroids[None], axis=2).min(1)
    assert np.abs(raw(big[:])["ssl_proto"] - want).max() < 1e-5


def test_a_refit_on_shuffled_rows_is_the_same_value(big):
    shuffled = big.shuffle(seed=1)
    for options in (
        {"k": 7},
        {"k": 7, "sample_rows": 500},
        {"k": None},
        {"k": 5, "spherical": False, "normalize": False},
    ):
        one, two = (hp.SSLPrototypes.fit(ds, **options) for ds in (big, shuffled))
        assert Hasher.hash(one) == Hasher.hash(two)
    stream = hp.SSLPrototypes.fit(big.to_iterable_dataset(), k=7)
    assert Hasher.hash(stream) == Hasher.hash(hp.SSLPrototypes.fit(big, k=7))
    assert Hasher.hash(stream) != Hasher.hash(hp.SSLPrototypes.fit(big, k=7, seed=1))


def test_noise_in_the_last_bits_does_not_change_the_clusters(big):
    """Another number of threads gives embeddings that differ by 1e-7: by content that would be another sample."""
    ids = [f"{i:032x}-0" for i in range(len(big))]
    noise = np.random.default_rng(0).uniform(-2e-7, 2e-7, matrix(big).shape)
    one = big.add_column("row_id", ids)
    two = dataset(matrix(big) + noise).add_column("row_id", ids).shuffle(seed=2)
    for options in ({"k": 9}, {"k": 9, "sample_rows": 600}):
        a, b = (hp.SSLPrototypes.fit(ds, **options) for ds in (one, two))
        assert a.fitted_on["drawn_by"] == "row_id"
        assert np.abs(a.centroids - b.centroids).max() < 1e-6
        assert Hasher.hash(a) == Hasher.hash(hp.SSLPrototypes.fit(one.shuffle(seed=1), **options))
    assert hp.SSLPrototypes.fit(one, k=9, row_id=None).fitted_on["drawn_by"] == "content"


def test_scores_and_selection_do_not_depend_on_batches_workers_or_order(big):
    scorer = hp.SSLPrototypes.fit(big, k=20)
    want = np.array(big.map(scorer, batched=True)["ssl_proto"][:])
    kept = set(hp.filter_by_score(big.map(scorer, batched=True), "ssl_proto", keep=0.5)["i"][:])
    cut = np.sort(want)[-1500]
    shuffled = big.shuffle(seed=3)
    ways = {
        "1": big.map(scorer, batched=True, batch_size=1),
        "7": big.map(scorer, batched=True, batch_size=7),
        "all": big.map(scorer, batched=True, batch_size=None),
        "2 workers": big.map(scorer, batched=True, num_proc=2),
        "shuffled": shuffled.map(scorer, batched=True),
        "stream": datasets.Dataset.from_list(list(big.to_iterable_dataset().map(scorer, batched=True))),
    }
    for how, out in ways.items():
        order = np.argsort(out["i"][:])
        assert np.abs(np.array(out["ssl_proto"][:])[order] - want).max() <= 1e-6, how
        near = set(np.flatnonzero(np.abs(want - cut) <= 1e-6).tolist())
        assert (set(hp.filter_by_score(out, "ssl_proto", keep=0.5)["i"][:]) ^ kept) <= near, how


def test_fitted_on_another_set_than_it_scores(big):
    other = dataset(matrix(big)[:200])
    scorer = hp.SSLPrototypes.fit(other, k=4)
    assert scorer.fitted_on["rows"] == 200 and len(big.map(scorer, batched=True)) == 3000


def test_the_sample_has_the_stated_size(big):
    facts = hp.SSLPrototypes.fit(big, k=4, sample_rows=100).fitted_on
    assert (facts["rows"], facts["sampled"], facts["k"]) == (3000, 100, 4)
    assert facts["engine"].split("-")[0] in ("faiss", "torch")


def test_zero_rows_score_nan_and_are_not_fitted():
    scorer = hp.SSLPrototypes.fit(dataset([*X, [0, 0]]), k=2, cluster=True)
    assert scorer.fitted_on["zero_rows"] == 1
    out = scorer({"embedding": [[0.0, 0.0], [1.0, 0.0]]})
    assert np.isnan(out["ssl_proto"][0]) and not np.isnan(out["ssl_proto"][1])
    assert out["ssl_proto_cluster"][0] == -1


def test_copies_stay_copies():
    scorer = hp.SSLPrototypes.fit(dataset(np.repeat(X, 20, axis=0)), k=4)
    scores = scorer({"embedding": np.repeat(X, 3, axis=0).tolist()})["ssl_proto"].reshape(5, 3)
    assert (scores == scores[:, :1]).all()
    with pytest.raises(ValueError, match="only 5 distinct rows"):
        hp.SSLPrototypes.fit(dataset(np.repeat(X, 20, axis=0)), k=6)


# supervised


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, [0.1362210991, 0.0066542640, 0.0513167019, 0.0513167019, 0.0786358390]),
        ({"normalize": False}, [0.2780117949, 0.0072662180, 0.0513167019, 0.0513167019, 0.0132827863]),
        (
            {"metric": "euclidean", "normalize": False},
            [1.6465452047, 1.2292725943, 0.3162277660, 0.3162277660, 2.8362729848],
        ),
    ],
)
def test_supervised_vectors_of_the_definition(options, want):
    scorer = hp.SupervisedPrototypes.fit(dataset(X, label=Y), **options)
    assert scorer({"embedding": X.tolist(), "label": Y})["supervised_proto"] == pytest.approx(want, abs=1e-7)


def test_class_means_of_the_definition():
    scorer = hp.SupervisedPrototypes.fit(dataset(X, label=Y))
    assert np.allclose(scorer.class_means, [[0.8, 0.4666666667], [-0.3, 0.9]], atol=1e-9)


def test_supervised_equals_numpy(big):
    x, y = matrix(big), np.array(big["label"][:])
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = np.stack([u[y == c].mean(0) for c in range(5)])
    cosines = u @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    own = cosines[np.arange(3000), y]
    others = np.where(np.arange(5)[None] == y[:, None], -np.inf, cosines).max(1)
    out = big.map(hp.SupervisedPrototypes.fit(big, margin=True), batched=True)
    assert np.abs(out["supervised_proto"][:] - (1 - own)).max() < 1e-6
    assert np.abs(out["supervised_proto_margin"][:] - (own - others)).max() < 1e-6
    for options, want in (({"metric": "margin"}, others - own), ({"nearest": True}, 1 - cosines.max(1))):
        got = big.map(hp.SupervisedPrototypes.fit(big, **options), batched=True)["supervised_proto"][:]
        assert np.abs(got - want).max() < 1e-6


def test_supervised_refit_on_shuffled_rows_is_the_same_value(big):
    for options in ({}, {"normalize": False, "metric": "euclidean"}):
        one, two = (hp.SupervisedPrototypes.fit(ds, **options) for ds in (big, big.shuffle(seed=5)))
        assert Hasher.hash(one) == Hasher.hash(two)


def test_labels_of_other_kinds(big):
    names = [f"class {v}" for v in big["label"]]
    named = big.add_column("kind", names)
    want = hp.SupervisedPrototypes.fit(big)(big[:])["supervised_proto"]
    assert (hp.SupervisedPrototypes.fit(named, label="kind")(named[:])["supervised_proto"] == want).all()
    classed = big.cast_column("label", datasets.ClassLabel(names=list("abcde")))
    assert (hp.SupervisedPrototypes.fit(classed)(classed[:])["supervised_proto"] == want).all()


def test_a_flipped_label_scores_high(big):
    labels = np.array(big["label"][:])
    flipped = np.arange(0, 3000, 50)
    labels[flipped] = (labels[flipped] + 1) % 5
    ds = big.remove_columns("label").add_column("label", labels.tolist())
    scores = np.array(ds.map(hp.SupervisedPrototypes.fit(ds), batched=True)["supervised_proto"][:])
    ranks = scores.argsort().argsort()
    assert ranks[flipped].mean() > 0.9 * 3000


def test_a_class_of_one_row_scores_zero_and_is_told():
    with pytest.warns(UserWarning, match="1 of 2 classes have one row only"):
        scorer = hp.SupervisedPrototypes.fit(dataset(X, label=[0, 0, 0, 0, 1]))
    assert scorer({"embedding": [[3.0, 4.0]], "label": [1]})["supervised_proto"] == pytest.approx(0, abs=1e-9)


# bad input

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("fit", [hp.SSLPrototypes.fit, hp.SupervisedPrototypes.fit], ids=["ssl", "supervised"])
@pytest.mark.parametrize(
    ("ds", "error", "message"),
    [
        (dataset(X).select([]), ValueError, "empty dataset"),
        (datasets.Dataset.from_dict({"x": [1]}), KeyError, r"reads column 'embedding', the rows have \['x'\]"),
        (datasets.Dataset.from_dict({"embedding": ["a"] * 3}), TypeError, "has type string, not lists of floats"),
        (datasets.Dataset.from_dict({"embedding": [1.0] * 3}), TypeError, "not lists of floats"),
        (datasets.Dataset.from_dict({"embedding": [[1.0], [1.0, 2.0]]}), ValueError, "ragged: row 1 has 2"),
        (datasets.Dataset.from_dict({"embedding": [[1.0], None]}), ValueError, "null in row 1"),
        (dataset([*X, [NAN, 1]]), ValueError, "not finite in row 5"),
        (dataset([*X, [1, INF]]), ValueError, "not finite in row 5"),
        (datasets.DatasetDict(train=dataset(X)), TypeError, "choose a split"),
    ],
)
def test_bad_data_to_fit(fit, ds, error, message):
    if not isinstance(ds, datasets.DatasetDict) and "embedding" in ds.column_names:
        ds = ds.add_column("label", [0] * len(ds)) if len(ds) else ds.map(lambda row: {"label": 0})
        if "label" not in ds.column_names:
            ds = datasets.Dataset.from_dict({"embedding": [], "label": []})
    with pytest.raises(error, match=message):
        fit(ds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 6}, "k=6 clusters, but 5 rows to learn on; use k=5"),
        ({"k": 4, "sample_rows": 3}, r"3 rows to learn on of 5 \(see sample_rows\)"),
        ({"k": 0}, "k=0 is no whole number from 1 up"),
        ({"k": 2.5}, "k=2.5 is no whole number"),
        ({"k": 1, "metric": "margin"}, "k=1 is no whole number from 2 up"),
        ({"metric": "manhattan"}, "metric='manhattan' is not known"),
        ({"normalize": False}, "contradicts spherical=True"),
    ],
)
def test_bad_options_of_ssl(options, message):
    with pytest.raises(ValueError, match=message):
        hp.SSLPrototypes.fit(dataset(X), **options)


def test_all_rows_zero():
    with pytest.raises(ValueError, match="all 3 rows of 'embedding' are zero"):
        hp.SSLPrototypes.fit(dataset(np.zeros((3, 2))))
    with pytest.raises(ValueError, match="add up to zero"):
        hp.SupervisedPrototypes.fit(dataset([[1, 0], [-1, 0]], label=[0, 0]))


def test_bad_rows_to_score():
    ssl = hp.SSLPrototypes.fit(dataset(X), k=2)
    supervised = hp.SupervisedPrototypes.fit(dataset(X, label=Y))
    for scorer in (ssl, supervised):
        for rows, message in (
            ([[1.0, 0, 0]] * 2, "width 3, the"),
            ([[1.0, 0], [1.0]], "ragged: row 1"),
            ([[1.0, 0], [NAN, 0]], "not finite in row 1"),
        ):
            with pytest.raises(ValueError, match=message):
                scorer({"embedding": rows, "label": [0, 1]})
        with pytest.raises((TypeError, ValueError), match="row 1 of this batch is null"):
            scorer({"embedding": [[1.0, 0], None], "label": [0, 1]})
    with pytest.raises(ValueError, match="7 in row 1 of this batch is no class that was fitted"):
        supervised({"embedding": X[:2].tolist(), "label": [0, 7]})
    with pytest.raises(ValueError, match="null in row 0"):
        supervised({"embedding": X[:2].tolist(), "label": [None, 1]})
    with pytest.raises(TypeError, match="not classes"):
        supervised({"embedding": X[:2].tolist(), "label": [0.5, 1.0]})


def test_random_is_uniform_and_belongs_to_the_row():
    ds = datasets.Dataset.from_dict({"row_id": [f"row {i}" for i in range(4000)]})
    a, b = (np.array(ds.map(hp.Random(seed=s), batched=True)[f"random_{s}"][:]) for s in (100, 101))
    assert abs(a.mean() - 0.5) < 0.03 and 0 < a.min() and a.max() < 1 and len(set(a)) == 4000
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
    back = ds.shuffle(seed=0).map(hp.Random(seed=100), batched=True).sort("row_id")
    assert back["random_100"][:] == ds.map(hp.Random(seed=100), batched=True).sort("row_id")["random_100"][:]
    with pytest.raises(KeyError, match="with_row_id"):
        hp.Random()({"text": ["a"]})
    with pytest.raises(ValueError, match="every row needs an id"):
        hp.Random()({"row_id": ["a", None]})


def test_no_warning_on_the_main_path(big):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hp.SupervisedPrototypes.fit(big)
        hp.SSLPrototypes.fit(big, k=3)


def test_one_large_batch_for_a_prototype(vectors):
    found = hp.SSLPrototypes.fit(vectors, prototype="batch")
    x = np.array(vectors["embedding"][:], np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(found.centroids, unit.mean(0)[None], atol=1e-6)
    mean = unit.mean(0) / np.linalg.norm(unit.mean(0))
    np.testing.assert_allclose(found(vectors[:])["ssl_proto"], 1 - unit @ mean, atol=1e-5)
    with pytest.raises(ValueError, match="one centroid, not k=4"):
        hp.SSLPrototypes.fit(vectors, k=4, prototype="batch")
    with pytest.raises(ValueError, match="prototype='mean'"):
        hp.SSLPrototypes.fit(vectors, prototype="mean")


# numbers of every size

SPREADS = {
    "offset": lambda x: x + np.array([1e2, 1e4, 1e6, 1e8]),
    "outlier": lambda x: np.concatenate([x, [[1e6, -1e9, 1e12, 3.0]] * 2]),
    "scales": lambda x: x * np.array([1e-30, 1e-3, 1e5, 1e30]),
    "tiny": lambda x: x * 1e-30,
}


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_class_means_are_those_of_exact_sums(spread, dtype):
    x = spread(np.random.default_rng(2).normal(size=(60, 4))).astype(dtype)
    labels = [i % 3 for i in range(len(x))]
    features = {"embedding": datasets.List(datasets.Value(dtype)), "label": datasets.Value("int64")}
    ds = datasets.Dataset.from_dict({"embedding": list(x), "label": labels}, datasets.Features(features))
    scorer = hp.SupervisedPrototypes.fit(ds, metric="euclidean", normalize=False)
    for label, mean in enumerate(scorer.class_means):
        own = x[np.array(labels) == label]
        want = [float(sum(map(Fraction, column.tolist())) / len(own)) for column in own.T]
        error = 2.0**-60 * np.abs(x.astype(np.float64)).max(0) + 2.0**-51 * np.abs(want)
        assert (np.abs(mean - want) <= error).all()
    assert hp.SupervisedPrototypes.fit(ds.shuffle(seed=1), metric="euclidean", normalize=False) == scorer
    wide = x.astype(np.float64)
    far = np.linalg.norm(wide[:, None] - scorer.class_means, axis=2)
    assert scorer(ds[:])["supervised_proto"] == pytest.approx(far[np.arange(len(x)), labels], rel=1e-6)


@pytest.mark.parametrize("offset", [1e2, 1e5, 1e8])
def test_the_nearest_class_mean_far_from_zero(offset):
    rng = np.random.default_rng(5)
    means, x = rng.normal(size=(9, 6)) * 1e-3, rng.normal(size=(300, 6)) * 1e-3
    shift = offset * np.array([1, -1, 0, 0, 1, 0])
    means, x = means + shift, x + shift
    means[:, 3] *= 1e-6  # differences that the other coordinates drown
    means[1, [0, 1, 2, 4, 5]] = means[0, [0, 1, 2, 4, 5]]
    far = np.linalg.norm(x[:, None] - means, axis=2)
    assert (nearest_mean(x, means) == far.argmin(1)).all()
    scorer = hp.SupervisedPrototypes(means, tuple(range(9)), metric="euclidean", normalize=False, nearest=True)
    found = scorer({"embedding": x, "label": [0] * 300})["supervised_proto"]
    assert found == pytest.approx(far.min(1), rel=1e-6)


def test_a_margin_is_of_the_own_class():
    ds = dataset(X, label=Y)
    with pytest.raises(ValueError, match="nearest=True contradicts metric='margin'"):
        hp.SupervisedPrototypes.fit(ds, metric="margin", nearest=True)
    out = hp.SupervisedPrototypes.fit(ds, metric="cosine", nearest=True, margin=True)(ds[:])
    assert out["supervised_proto_margin"] == pytest.approx(
        -hp.SupervisedPrototypes.fit(ds, metric="margin")(ds[:])["supervised_proto"]
    )


# few distinct rows, and what a fit costs

FEW = {
    "seven of 600": lambda x: x[np.random.default_rng(1).integers(0, 7, 600)],
    "two of 90": lambda x: x[np.arange(90) % 2],
    "all equal": lambda x: np.tile(x[:1], (40, 1)),
    "all equal but for length": lambda x: np.outer(1 + np.arange(40), x[0]),
    "one": lambda x: x[:1],
    "two": lambda x: x[:2],
    "three": lambda x: x[:3],
    "one beside zeros": lambda x: np.concatenate([x[:1], np.zeros((9, 6))]),
}


@pytest.mark.filterwarnings("ignore:.*rows tie at the cut")
@pytest.mark.parametrize("few", FEW.values(), ids=FEW)
@pytest.mark.parametrize("engine", [None, "torch"])
@pytest.mark.filterwarnings("ignore:.* one row only")
def test_a_default_k_is_one_that_the_rows_have(few, engine):
    x = few(np.random.default_rng(9).normal(size=(7, 6)))
    ds, distinct = dataset(x), len({tuple((row / max(np.linalg.norm(row), 1e-9)).round(6)) for row in x if row.any()})
    for options in ({}, {"metric": "euclidean", "spherical": False}):
        scorer = hp.SSLPrototypes.fit(ds, engine=engine, **options)
        assert len(scorer.centroids) == scorer.fitted_on["k"] == max(1, min(round(len(x) ** 0.5), distinct // 2))
        assert len(scorer(ds[:])["ssl_proto"]) == len(x)
    if distinct > 1:
        scorer = hp.SSLPrototypes.fit(ds, engine=engine, metric="margin")
        assert len(scorer.centroids) == max(2, min(round(len(x) ** 0.5), distinct // 2))
    else:
        with pytest.raises(
            ValueError, match="compares two centroids, but the rows of 'embedding' are one and the same"
        ):
            hp.SSLPrototypes.fit(ds, engine=engine, metric="margin")
    assert np.nanmin(hp.SemDeDup.fit(ds, engine=engine)(ds[:])["semdedup"]) >= 0
    with pytest.raises(ValueError, match=f"k={distinct + 1} c"):  # whoever asks for too many is told
        hp.SSLPrototypes.fit(ds, k=distinct + 1, engine=engine)
    if len(x) > 8:
        d4 = hp.d4(dataset(x).add_column("row_id", [str(i) for i in range(len(x))]), dedup_keep=1.0, proto_keep=0.5)
        assert len(d4) == int(0.5 * sum(row.any() for row in x) + 0.5)


def test_what_prototypes_cost_holds_the_fit(big):
    scorer = hp.SSLPrototypes.fit(big, k=20)
    rounds = scorer.fitted_on["iterations"]
    # a row meets all centroids in each iteration, for the start (there are fewer than 4096) and for its score
    assert scorer.flops(big[:10]) == 10 * 2 * 20 * 24 * (rounds + 2)
    part = hp.SSLPrototypes.fit(big, k=20, sample_rows=300)
    assert part.flops(big[:10]) == pytest.approx(10 * 2 * 20 * 24 * (1 + 0.1 * (part.fitted_on["iterations"] + 1)))
    assert (
        hp.SSLPrototypes(scorer.centroids).flops(big[:10])
        == hp.SSLPrototypes.fit(big, prototype="batch").flops(big[:10]) * 20
    )
    semdedup = hp.SemDeDup.fit(big, k=20)
    facts = semdedup.fitted_on
    want = 2 * 24 * (20 * (facts["iterations"] + 2) + facts["pairs"] / 3000)
    assert semdedup.flops(big[:1]) == pytest.approx(want, abs=0.1)


# rows alone in their cluster


@pytest.fixture(scope="module")
def crowded():
    """600 rows, the first 8 of which are far from all others."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 12))[np.arange(600) % 6] + 0.4 * rng.normal(size=(600, 12))
    x[:8] = 4 * rng.normal(size=(8, 12))
    return dataset(x)


def test_a_row_alone_in_its_cluster_is_not_typical(crowded):
    with pytest.warns(
        UserWarning, match=r"(\d+) clusters hold one row only \(k=100\).*use k=\d+, which has none, or min_"
    ):
        plain = hp.SSLPrototypes.fit(crowded, k=100, cluster=True)
    out = plain(crowded[:])
    scores = out["ssl_proto"]
    alone = np.flatnonzero(np.bincount(out["ssl_proto_cluster"], minlength=100)[out["ssl_proto_cluster"]] == 1)
    assert len(alone) == plain.summary().one_row_clusters > 0 and (scores[alone] < 1e-6).all()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer = hp.SSLPrototypes.fit(crowded, k=100, min_cluster_size=2, cluster=True)
    assert len(scorer.centroids) == 100 - len(alone) and scorer.fitted_on["min_cluster_size"] == 2
    again = scorer(crowded[:])["ssl_proto"]
    others = np.setdiff1d(np.arange(600), alone)
    assert np.array_equal(again[others], scores[others])  # nobody else had such a centroid as the nearest
    unit = np.array(crowded["embedding"][:])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    nearest = 1 - (unit[alone] @ scorer.centroids.T).max(1)
    assert again[alone] == pytest.approx(nearest, abs=1e-6) and again[alone].min() > np.median(again)


def test_the_k_that_is_named_has_no_cluster_of_one_row(crowded):
    with pytest.warns(UserWarning) as told:
        hp.SSLPrototypes.fit(crowded, k=100)
    better = int(re.search(r"use k=(\d+)", str(told[0].message))[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hp.SSLPrototypes.fit(crowded, k=better).summary().one_row_clusters == 0


def test_no_cluster_is_large_enough():
    with pytest.raises(ValueError, match="0 of 2 clusters have 9 rows or more, the largest has 3; use a smaller k"):
        hp.SSLPrototypes.fit(dataset(X), k=2, min_cluster_size=9)
    with pytest.raises(ValueError, match="min_cluster_size=0 is no whole number from 1 up"):
        hp.SSLPrototypes.fit(dataset(X), k=2, min_cluster_size=0)


# what was learned


def test_summaries(big):
    scorer = hp.SSLPrototypes.fit(big, k=20, sample_rows=1000)
    seen = scorer.summary()
    assert (seen.rows, seen.learned_on, seen.prototypes) == (3000, 1000, 20)
    assert seen.smallest <= seen.median <= seen.largest and seen.one_row_clusters == 0
    assert "rows              3 000" in str(seen) and "prototypes        20" in str(seen)
    bare = hp.SSLPrototypes(np.eye(3, dtype=np.float32)).summary()
    assert bare.prototypes == 3 and "smallest" not in str(bare)

    labels = ["cat"] * 3 + ["dog"] + ["eel"]
    with pytest.warns(UserWarning, match="2 of 3 classes have one row only"):
        supervised = hp.SupervisedPrototypes.fit(dataset(X, label=labels))
    for scorer in (supervised, hp.Moderate.fit(dataset(X, label=labels))):
        seen = scorer.summary()
        assert (seen.rows, seen.classes, seen.one_row_classes) == (5, 3, 2)
        assert (seen.smallest_class, seen.smallest, seen.largest_class, seen.largest) == ("dog", 1, "cat", 3)


# the own class only


def test_only_the_own_class_is_computed(big):
    plain = hp.SupervisedPrototypes.fit(big)
    margin = hp.SupervisedPrototypes.fit(big, margin=True)
    classes = len(plain.classes)
    assert classes > 1 and margin.flops(big[:10]) == classes * plain.flops(big[:10]) == 2 * 24 * classes * 10
    assert np.abs(plain(big[:])["supervised_proto"] - margin(big[:])["supervised_proto"]).max() < 1e-9
    rows = [np.asarray(plain(big[i : i + 1])["supervised_proto"]) for i in range(20)]
    assert np.array_equal(np.concatenate(rows), plain(big[:20])["supervised_proto"])  # alone, to the last bit


def test_zero_rows_have_no_cosine_to_the_own_class():
    scorer = hp.SupervisedPrototypes.fit(dataset(X, label=Y))
    assert np.isnan(scorer({"embedding": [[0.0, 0.0]], "label": [0]})["supervised_proto"]).all()
