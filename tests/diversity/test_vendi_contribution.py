"""Leave-one-out of the Vendi Score, against taking each row away."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
from datasets.fingerprint import Hasher

import hf_prune as hp
from hf_prune.diversity.vendi_contribution import ExactGram, first_order, grid_rows, leave_one_out


def brute(x, q):
    return np.array([hp.vendi_score(x, q=q) - hp.vendi_score(np.delete(x, i, 0), q=q) for i in range(len(x))])


def dataset(x):
    features = datasets.Features({"embedding": datasets.List(datasets.Value("float32"), length=x.shape[1])})
    return datasets.Dataset.from_dict({"embedding": list(x.astype(np.float32))}, features)


def made(n, d, copies, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * np.linspace(0.05, 1, d)
    x[:copies] = x[0]
    return x


def test_three_rows_by_hand():
    """[1,0] twice and [0,1]: without the last row the score falls from 3 / 2^(2/3) to 1."""
    scores = hp.VendiContribution.fit(dataset(np.array([[1, 0], [1, 0], [0, 1]])))(
        {"embedding": [[1.0, 0.0], [0.0, 1.0]]}
    )["vendi"]
    whole = 3 / 2 ** (2 / 3)
    assert scores == pytest.approx([whole - 2, whole - 1], abs=1e-6)


@pytest.mark.parametrize("q", [1.0, 2.0])
@pytest.mark.parametrize(("n", "d", "copies"), [(40, 6, 0), (40, 6, 20), (30, 100, 15), (200, 20, 3), (2, 5, 0)])
def test_exact_equals_taking_each_row_away(n, d, copies, q):
    x = made(n, d, copies)
    want = brute(x, q)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(unit.T @ unit / n)
    values = np.where(values < 1e-12, 0, values)
    assert leave_one_out((unit @ vectors) ** 2, values, n=n, q=q) == pytest.approx(want, abs=1e-8)
    ds = dataset(x)
    got = ds.map(hp.VendiContribution.fit(ds, q=q), batched=True)["vendi"][:]
    assert np.array(got) == pytest.approx(want, abs=2e-6)


@pytest.mark.parametrize("q", [0.5, 1.0, 2.0, 3.0, float("inf")])
def test_first_order_is_the_derivative(q):
    x = made(300, 5, 0)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    s = unit.T @ unit / 300
    values, vectors = np.linalg.eigh(s)
    got = first_order((unit @ vectors) ** 2, values, n=300, q=q)
    from hf_prune.diversity.vendi import effective_number

    h = 1e-6  # along S -> S + h (S - u u^T), whose whole step is 1 / (n - 1)
    for i in (0, 7, 123):
        turned = [effective_number(np.linalg.eigvalsh(s + e * (s - np.outer(unit[i], unit[i]))), q) for e in (-h, h)]
        assert got[i] == pytest.approx(-(turned[1] - turned[0]) / (2 * h) / 299, rel=1e-4, abs=1e-9)


def test_a_lone_row_among_copies_comes_first():
    x = made(100, 16, 90)
    ds = dataset(x)
    scored = ds.map(hp.VendiContribution.fit(ds), batched=True)
    assert set(np.argsort(scored["vendi"][:])[-10:]) == set(range(90, 100))
    kept = hp.filter_by_score(scored, "vendi", rows=10)
    drawn = hp.filter_by_score(scored, "vendi", rows=10, prefer="random")
    assert hp.vendi_score(kept) > 2 * hp.vendi_score(drawn)


def test_fits_to_the_same_bits_in_any_order():
    ds = dataset(made(500, 12, 7))
    one = hp.VendiContribution.fit(ds)
    for other in (ds.shuffle(seed=1), ds.to_iterable_dataset()):
        assert Hasher.hash(hp.VendiContribution.fit(other)) == Hasher.hash(one)
    assert Hasher.hash(hp.VendiContribution.fit(ds.select(range(499)))) != Hasher.hash(one)


def test_integer_sums_carry():
    total = ExactGram(1)
    ones = np.ones((8192, 1))
    for _ in range(600):  # 2^40 a row: past 2^62 at 4.2 million rows
        total.add(ones)
    assert total.mean()[0, 0] == 1.0
    assert grid_rows(np.zeros((2, 3))).tolist() == np.zeros((2, 3)).tolist()


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.ones((1, 3)), {}, "1 row: without it there is no set"),
        (np.zeros((3, 2)), {}, "row 0 of 'embedding' is a zero vector"),
        (np.eye(3), {"q": 0}, "order 0 only counts directions"),
        (np.eye(3), {"q": 3}, "no exact form here; use q=1 or q=2, or exact=False"),
        (np.eye(3) * np.nan, {}, "not finite"),
    ],
)
def test_bad_fits(x, options, message):
    with pytest.raises(ValueError, match=message):
        hp.VendiContribution.fit(dataset(x), **options)


def test_bad_rows():
    scorer = hp.VendiContribution.fit(dataset(np.eye(3)))
    with pytest.raises(ValueError, match="width 2, the rows of the set have 3"):
        scorer({"embedding": [[1.0, 0.0]]})
    with pytest.raises(ValueError, match="row 1 of this batch is a zero vector"):
        scorer({"embedding": [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]})
