"""The Vendi Score against the dossier's vectors, closed forms, the published package, and on bad input."""

from __future__ import annotations

import tracemalloc
import warnings

import datasets
import numpy as np
import pytest
import torch
from PIL import Image as Picture

import hf_prune as hp
from hf_prune.diversity import kernels, vendi
from hf_prune.diversity.vendi import Gram

INF = float("inf")
K = [[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]]
X = [[1, 0], [1, 1], [0, 2], [3, 3]]
TOYS = ["Look, Jane.", "See Spot.", "See Spot run.", "Run, Spot, run.", "Jane sees Spot run."]


def of_kernel(k, q=1.0, **more):
    return hp.vendi_score(k, q=q, kernel="precomputed", **more)


def dataset(x, **more):
    features = {"embedding": datasets.List(datasets.Value(str(x.dtype)), length=x.shape[1])}
    ds = datasets.Dataset.from_dict({"embedding": list(x)}, datasets.Features(features))
    for name, values in more.items():
        ds = ds.add_column(name, values)
    return ds


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return (rng.standard_normal((700, 24)) * np.linspace(0.05, 1, 24)).astype(np.float32)


# vectors


@pytest.mark.parametrize(
    ("q", "want"),
    [(0, 3), (0.5, 2.420348357053285), (1, 2.1573004833739833), (2, 1.9480519480519483), (INF, 1.5789473684210527)],
)
def test_orders_of_a_kernel(q, want):
    assert of_kernel(K, q) == pytest.approx(want, rel=1e-12)


def test_vectors_of_the_definition():
    assert of_kernel(K, weights=[0.5, 0.25, 0.25]) == pytest.approx(2.009882583824147, rel=1e-12)
    assert of_kernel(K, 2, weights=[0.5, 0.25, 0.25]) == pytest.approx(1.7316017316017311, rel=1e-12)
    assert of_kernel(np.eye(2), weights=[0.9, 0.1]) == pytest.approx(1.384145488461686, rel=1e-12)
    assert of_kernel(np.eye(2), 2, weights=[0.9, 0.1]) == pytest.approx(1.2195121951219514, rel=1e-12)
    same = [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert of_kernel(same) == pytest.approx(1.8898815748423097, rel=1e-12)
    assert of_kernel(np.eye(2), weights=[2 / 3, 1 / 3]) == pytest.approx(1.8898815748423097, rel=1e-12)
    for q, want in ((1, 1.7547653506033276), (2, 1.6), (INF, 4 / 3)):
        assert hp.vendi_score(X, q=q) == pytest.approx(want, rel=1e-12)
        assert hp.vendi_score(np.pad(X, ((0, 0), (0, 5))), q=q) == pytest.approx(want, rel=1e-12)  # n < d: (n, n)
    weighted = hp.vendi_score([[1, 0], [0, 1], [1, 0]], weights=[0.5, 0.3, 0.2])
    assert weighted == pytest.approx(1.842022775037313, rel=1e-12)


def test_a_function_of_two_items():
    samples = [0, 0, 10, 10, 20, 20]
    for q, want in ((1, 2.999999995877701), (2, 2.9999999917553857), (INF, 2.9998073936855665)):
        got = hp.vendi_score(samples, q=q, kernel=lambda a, b: np.exp(-abs(a - b)))
        assert got == pytest.approx(want, rel=1e-10)
    by_matrix = kernels.rbf_kernel(np.array(samples, float)[:, None], sigma=3.0)
    by_pairs = kernels.pairwise_kernel(samples, lambda a, b: np.exp(-((a - b) ** 2) / 18))
    assert by_matrix == pytest.approx(by_pairs, abs=1e-12)


def test_ngrams_of_toy_sentences():
    for ns, want in (([1], 3.0928435288213376), ([2], 4.390721136329065), ([1, 2], 3.906574466099576)):
        assert of_kernel(kernels.ngram_kernel(TOYS, ns=ns)) == pytest.approx(want, rel=1e-12)
    averaged = kernels.ngram_kernel(TOYS, ns=[1, 2])
    assert averaged[0] == pytest.approx([1, 0.144338, 0.125, 0.265165, 0.223607], abs=1e-6)


# independent references


def test_ngrams_equal_dense_products():
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(list("abcdefgh"), 12)) for _ in range(60)]
    want = np.zeros((60, 60))
    for m in (1, 2, 3, 4):
        grams = [[tuple(t.split()[i : i + m]) for i in range(13 - m)] for t in texts]
        words = sorted({g for row in grams for g in row})
        counts = np.array([[row.count(w) for w in words] for row in grams], float)
        unit = counts / np.linalg.norm(counts, axis=1, keepdims=True)
        want += unit @ unit.T / 4
    assert kernels.ngram_kernel(texts) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("q", [0, 0.3, 0.9999, 1, 1.0001, 1.5, 2, 3.7, 500, INF])
def test_all_forms_agree(rows, q):
    rows = rows[:150]
    unit = rows.astype(float) / np.linalg.norm(rows.astype(float), axis=1, keepdims=True)
    p = np.linalg.eigvalsh(unit @ unit.T / len(rows))
    p = p[p > 1e-12] / p[p > 1e-12].sum()
    log = {1: -(p * np.log(p)).sum(), INF: -np.log(p.max())}.get(q)
    want = np.exp(np.log((p ** np.longdouble(q)).sum()) / (1 - np.longdouble(q)) if log is None else log)
    ds = dataset(rows)
    parts = [Gram(), Gram()]
    parts[0].add(rows[:13])
    parts[1].add(rows[13:])
    parts[0].merge(parts[1])
    found = {
        "float32": hp.vendi_score(rows, q=q),
        "float64": hp.vendi_score(rows.astype(float), q=q),
        "tensor": hp.vendi_score(torch.from_numpy(rows), q=q),
        "kernel": of_kernel(unit @ unit.T, q),
        "dataset": hp.vendi_score(ds, q=q),
        "shuffled": hp.vendi_score(ds.shuffle(seed=1), q=q),
        "stream": hp.vendi_score(ds.to_iterable_dataset(), q=q),
        "weights": hp.vendi_score(rows, q=q, weights=np.full(150, 1 / 150)),
        "merged": parts[0].score(q=q),
    }
    for how, got in found.items():
        assert got == pytest.approx(float(want), rel=1e-6), how


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the package
def test_agrees_with_the_package_where_it_is_right(rows):
    peer = pytest.importorskip("vendi_score.vendi")
    assert hp.vendi_score(rows) == pytest.approx(peer.score_dual(rows.astype(float)), rel=1e-6)
    for q in (0.5, 1, 2):
        assert of_kernel(K, q) == pytest.approx(peer.score_K(np.array(K), q=q), rel=1e-12)
    # and not where it is wrong: it gives 1.75477, NaN, 3
    assert hp.vendi_score(X, q=2) == pytest.approx(1.6)
    assert of_kernel(K, INF) == of_kernel(K, "inf") == pytest.approx(1.5789473684210527)
    assert of_kernel(np.ones((4, 4)), 0) == 1


def test_sparse_kernels_count_every_row():
    scipy = pytest.importorskip("scipy.sparse")
    assert of_kernel(scipy.csr_matrix(np.eye(20))) == pytest.approx(20)


# properties


def test_bounds_and_orders(rows):
    scores = [hp.vendi_score(rows, q=q) for q in (0, 0.5, 1, 2, 10, INF)]
    assert scores[0] == pytest.approx(24) and all(a >= b for a, b in zip(scores, scores[1:], strict=False))
    assert hp.vendi_score(np.eye(7)) == pytest.approx(7)
    assert hp.vendi_score([[3.0, 4.0]]) == 1.0
    for q in (0, 0.5, 1, 2, INF):
        assert hp.vendi_score(np.tile(rows[0], (5000, 1)), q=q) == pytest.approx(1, abs=1e-9)


def test_rows_told_apart_by_little_are_not_lost_in_float32():
    """Rank 10 in 24 dimensions: float32 products would count their own rounding as directions."""
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((4000, 10)) @ rng.standard_normal((10, 24))).astype(np.float32)
    assert hp.vendi_score(x, q=0) == pytest.approx(10)
    assert hp.vendi_score(x) == pytest.approx(hp.vendi_score(x.astype(float)), rel=1e-9)


@pytest.mark.parametrize("q", [1, 1.5, 2, 2.001, 3, 40, INF])
def test_many_small_eigenvalues_count_by_their_sum(q):
    """A thousandth of the length in each of 40 directions: none is above the rounding, together they are."""
    rng = np.random.default_rng(6)
    x = (np.array([5.0] + [0] * 39) + 0.01 * rng.standard_normal((3000, 40))).astype(np.float32)
    unit = x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    p = np.linalg.eigvalsh(unit.T @ unit / 3000)
    assert (p < 8e-6).sum() == 39
    want = {1: np.exp(-(p * np.log(p)).sum()), INF: 1 / p.max()}.get(q) or (p**q).sum() ** (1 / (1 - q))
    assert hp.vendi_score(x, q=q) - 1 == pytest.approx(want - 1, rel=1e-6)
    assert hp.vendi_score(dataset(x), q=q) == hp.vendi_score(dataset(x).to_iterable_dataset(), q=q)
    gram = Gram("float32")
    gram.add(x)
    if q > 2:
        assert gram.score(q=q) - 1 == pytest.approx(want - 1, rel=1e-2)


def test_merged_copies_and_blocks(rows):
    twice = hp.vendi_score(np.concatenate([rows[:50], rows[:1]]))
    weights = np.full(50, 1 / 51)
    weights[0] = 2 / 51
    assert twice == pytest.approx(hp.vendi_score(rows[:50], weights=weights), rel=1e-6)
    # mutually dissimilar blocks: exp(entropy of the shares) times the geometric mean of their scores
    one, two = rows[:30].astype(float), rows[30:50].astype(float)
    both = np.zeros((50, 48))
    both[:30, :24], both[30:, 24:] = one, two
    want = np.exp(-0.6 * np.log(0.6) - 0.4 * np.log(0.4)) * hp.vendi_score(one) ** 0.6 * hp.vendi_score(two) ** 0.4
    assert hp.vendi_score(both) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_order_two_by_pairs_of_blocks(rows, monkeypatch, weighted):
    p = np.arange(1, 701) / np.arange(1, 701).sum()
    given = {"weights": p} if weighted else {}
    want = hp.vendi_score(rows, q=2, **given)
    monkeypatch.setattr(vendi, "LARGEST", 8)
    monkeypatch.setattr(vendi, "BLOCK", 100)
    assert hp.vendi_score(rows, q=2, **given) == pytest.approx(want, rel=1e-5)
    ds = dataset(rows, p=p.tolist())
    assert hp.vendi_score(ds, q=2, **({"weights": "p"} if weighted else {})) == pytest.approx(want, rel=1e-5)
    with pytest.raises(ValueError, match=r"n=700 and d=24 are both past 8, too many for eigenvalues; use q=2"):
        hp.vendi_score(rows, q=1)


def test_weights_from_a_column(rows):
    p = np.arange(1, 701) / np.arange(1, 701).sum()
    ds = dataset(rows, p=p.tolist())
    want = hp.vendi_score(rows.astype(float), weights=p)
    for q_ds in (ds, ds.to_iterable_dataset()):
        assert hp.vendi_score(q_ds, weights="p") == pytest.approx(want, rel=1e-6)


def test_a_stream_needs_memory_for_the_matrix_only():
    def batches():
        rng = np.random.default_rng(0)
        for _ in range(50):
            yield rng.standard_normal((2000, 32), np.float32)

    gram = Gram("float32")
    tracemalloc.start()
    for batch in batches():
        gram.add(batch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert gram.rows == 100_000 and peak < 3e6  # the rows are 12.8 MB
    assert gram.score() == pytest.approx(32, rel=1e-3)


def test_large_and_small_numbers(rows):
    want = hp.vendi_score(rows)
    for scale in (1e-25, 1e25):
        assert hp.vendi_score(rows * np.float32(scale)) == pytest.approx(want, rel=1e-6)
    assert hp.vendi_score(rows.astype(float) * 1e-200) == pytest.approx(want, rel=1e-6)


# texts, pictures, models


def test_texts_and_pictures_of_a_dataset():
    ds = datasets.Dataset.from_dict({"text": [t + " And so on and on." for t in TOYS]})
    assert hp.vendi_score(ds, kernel="ngram") == pytest.approx(hp.vendi_score(ds["text"][:], kernel="ngram"))
    texts = ["one", "one"] * 3 + ["two words"]
    assert hp.vendi_score(texts, q=0, kernel=lambda a, b: float(a == b)) == pytest.approx(2)
    with pytest.warns(UserWarning, match="3 of 3 texts are shorter than 4 tokens"):
        assert hp.vendi_score(["one", "one", "two"], q=0, kernel="ngram") == pytest.approx(2)
    rng = np.random.default_rng(0)
    pictures = [Picture.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)) for _ in range(4)]
    ds = datasets.Dataset.from_dict({"image": pictures}, datasets.Features({"image": datasets.Image()}))
    want = hp.vendi_score(np.stack([np.asarray(p.resize((32, 32)), float).reshape(-1) for p in pictures]))
    raw = ds.cast_column("image", datasets.Image(decode=False))
    for given in (pictures, ds, raw, [np.asarray(p) for p in pictures]):
        assert hp.vendi_score(given, kernel="pixel") == pytest.approx(want, rel=1e-6)


def test_unit_rows_of_a_dataset_without_a_warning(rows):
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    unit.flags.writeable = False  # as rows come out of Arrow
    gram = vendi.Gram("float32")
    gram.add(unit)
    np.testing.assert_allclose(gram.sums, unit.T @ unit, rtol=1e-5, atol=1e-5)


def test_an_embedder_as_kernel(tiny_bert_folder):
    embedder = hp.Embedder(tiny_bert_folder, column="text")
    texts = ["the cat sat", "the dog sat", "a card", "the bank of the mat"]
    want = hp.vendi_score(embedder({"text": texts})["embedding"])
    ds = datasets.Dataset.from_dict({"text": texts})
    assert hp.vendi_score(texts, kernel=embedder) == pytest.approx(want, rel=1e-6)
    assert hp.vendi_score(ds, kernel=embedder) == pytest.approx(want, rel=1e-6)
    assert hp.vendi_score(ds.map(embedder, batched=True)) == pytest.approx(want, rel=1e-6)


# bad input


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        ([[1.0, 0.0], [0.0, 0.0]], {}, ValueError, "row 1 is a zero vector"),
        ([[1.0, np.nan], [0.0, 1.0], [1.0, 1.0]], {}, ValueError, "row 0 has numbers that are not finite"),
        (np.empty((0, 3)), {}, ValueError, "no rows"),
        ([[1.0], [1.0, 2.0]], {}, ValueError, "unequal length"),
        ([1.0, 2.0], {}, ValueError, r"shape \(2,\), not \(n, d\)"),
        (["a", "b"], {}, TypeError, "not numbers; for texts or images name a kernel"),
        (X, {"q": -1}, ValueError, "q=-1 is not an order"),
        (X, {"q": float("nan")}, ValueError, "q=nan is not an order"),
        (X, {"q": "two"}, TypeError, "q='two' is no number"),
        (X, {"weights": [0.5, 0.5]}, ValueError, r"shape \(2,\), but there are 4 rows"),
        (X, {"weights": [1, 1, 1, 1]}, ValueError, "sum to 4, not to 1; divide them by their sum"),
        (X, {"weights": [-1, 1, 1, 0]}, ValueError, "weight of row 0 is -1"),
        (X, {"kernel": "rbf"}, ValueError, "kernel='rbf' is none of"),
        (X, {"kernel": "precomputed"}, ValueError, r"K has shape \(4, 2\)"),
        ([[2, 0], [0, 1]], {"kernel": "precomputed"}, ValueError, r"K\[0, 0\] is 2, but a row is as similar"),
        ([[1, 0.5], [0, 1]], {"kernel": "precomputed"}, ValueError, "not symmetric"),
        ([[1, np.nan], [np.nan, 1]], {"kernel": "precomputed"}, ValueError, "not finite in row 0"),
        (["a b", ""], {"kernel": "ngram"}, ValueError, "row 1 has 0 tokens"),
        (["a b", None], {"kernel": "ngram"}, TypeError, "row 1 is NoneType, not text"),
        ({"train": X}, {}, TypeError, r"choose one part, as in x\['train'\]"),
    ],
)
def test_bad_input(x, options, error, message):
    with pytest.raises(error, match=message):
        hp.vendi_score(x, **options)


def test_bad_datasets(rows):
    ds = dataset(rows)
    with pytest.raises(KeyError, match="embedding"):
        hp.vendi_score(ds, embedding="vectors")
    zero = rows.copy()
    zero[600] = 0
    with pytest.raises(ValueError, match="row 600 is a zero vector"):
        hp.vendi_score(dataset(zero))
    with pytest.raises(ValueError, match="no rows"):
        hp.vendi_score(ds.select([]))
    with pytest.raises(ValueError, match="name the column="):
        hp.vendi_score(ds, kernel=lambda a, b: 1.0)
    with pytest.raises(ValueError, match="name their column"):
        hp.vendi_score(ds.to_iterable_dataset(), weights=[1.0])
    one, two = Gram(), Gram()
    one.add(rows)
    two.add(rows[:, :3])
    with pytest.raises(ValueError, match="do not add up"):
        one.merge(two)
    with pytest.raises(ValueError, match="add rows first"):
        Gram().score()


def test_similarities_that_are_no_kernel():
    k = [[1, 0.9, 0.1], [0.9, 1, 0.9], [0.1, 0.9, 1]]
    with pytest.warns(UserWarning, match=r"no kernel: K/n has the eigenvalue -0.0746"):
        got = of_kernel(k)
    p = np.linalg.eigvalsh(np.array(k))
    p = p[p > 0] / p[p > 0].sum()
    assert got == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of_kernel(np.ones((50, 50), np.float32))  # rounding is no defect
