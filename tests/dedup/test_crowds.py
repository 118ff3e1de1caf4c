"""Texts of which more share a band than are compared all with all."""

import itertools
import time

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_prune as hp
from hf_prune.dedup import _crowd_kernels as kernels
from hf_prune.dedup import _kernels, _link_kernels, crowds, shingles
from hf_prune.dedup.bands import Sketch, permutations
from hf_prune.dedup.crowds import sequence
from hf_prune.dedup.neighbors import ALL_PAIRS


def letters(texts, shared, own, changed, forms=1, size=90):
    """Pairs of texts of `size` words: one of some forms, own words, of which the second has `changed` others."""
    out = []
    for pair in range(texts // 2):
        form = [f"form{pair % forms}w{i}" for i in range(size - own)]
        head = [f"all{i}" for i in range(min(shared, size - own))] + form[shared:]
        mine = [f"mine{pair}w{i}" for i in range(own)]
        other = mine[changed:] + [f"other{pair}w{i}" for i in range(changed)]
        out += [" ".join(head + mine), " ".join(head + other)]
    return out


def apart(texts, step=2, **how):
    """Share of neighbours, rows 0 and 1, 2 and 3, ..., that are in two clusters."""
    found = hp.MinHashDedup.fit(Dataset.from_dict({"text": texts}), ngram=1, **how)({"text": texts})
    clusters = found["minhash_cluster"].reshape(-1, step)
    return (clusters != clusters[:, :1]).any(1).mean(), found


@pytest.mark.parametrize(
    ("shared", "own", "forms"),
    [(90, 30, 1), (90, 22, 1), (90, 13, 1), (30, 20, 4), (60, 12, 7), (90, 11, 1)],
    ids=["a half", "six tenths", "three quarters", "forms of a form", "small forms of a form", "just below"],
)
def test_near_copies_are_found_behind_boilerplate(shared, own, forms):
    """J = .93 (3 words of 90 changed): at most one of a thousand is missed, and none is called one that is not."""
    rate, found = apart(letters(2000, shared, own, 3, forms))
    assert rate <= 0.001
    assert np.quantile(found["minhash"], 0.99) == pytest.approx(1 - 87 / 93, abs=1e-6)
    assert set(found["minhash_count"].tolist()) <= {1, 2}


@pytest.mark.parametrize(("own", "changed"), [(22, 7), (14, 7), (30, 9), (11, 8)])
def test_no_more_are_missed_than_by_the_bands(own, changed):
    """Pairs of J = .86, .82 and .84, from the threshold on: those that share a band, be it with all, are found."""
    texts = letters(3000, 90, own, changed)
    keys, _, _ = Sketch(ngram=1, bands=16, band_rows=8).sign(pa.array(texts))
    missed = ~(keys[::2] == keys[1::2]).any(1)
    rate, _ = apart(texts, bands=16, band_rows=8)
    assert rate <= missed.mean() + 0.0005


def test_families_within_a_crowd_are_whole_and_apart():
    """Larger than a group that is compared all with all, with a seventh of their words their own."""
    head = [f"all{i}" for i in range(85)]
    texts = [
        " ".join([*head, *(f"family{f}w{i}" for i in range(14)), f"only{f}_{m}"]) for f in range(14) for m in range(90)
    ]
    rate, found = apart(texts, step=90)
    assert rate == 0 and len(set(found["minhash_cluster"].tolist())) == 14
    assert found["minhash"] == pytest.approx(np.full(len(texts), 1 - 99 / 101), abs=1e-6)


def test_families_that_are_alike_are_one_cluster():
    """Two families in each cluster, tight themselves: those nearest to a text are all of its own family."""
    head = [f"all{i}" for i in range(70)]
    texts = [
        " ".join([*head, *(f"both{f // 2}w{i}" for i in range(22)), *(f"family{f}w{i}" for i in range(5)), f"x{f}_{m}"])
        for f in range(12)
        for m in range(80)
    ]
    rate, found = apart(texts, step=160)
    assert rate == 0 and len(set(found["minhash_cluster"].tolist())) == 6


def test_texts_that_are_all_near_are_one_cluster():
    base = " ".join(f"w{i}" for i in range(60))
    rate, _ = apart([f"{base} x{i}" for i in range(1000)], step=1000)
    same = [f"the same {'!' * i} words" for i in range(500)]
    rate_of_same, found = apart(same, step=500)
    assert rate == rate_of_same == 0
    assert not found["minhash"].any()


HOW = [{}, {"verify": False}, {"max_cluster": 3}, {"threshold": 0.5, "bands": 32, "band_rows": 2}]


@pytest.mark.parametrize("how", HOW)
def test_order_shards_and_threads_do_not_matter(how, monkeypatch):
    ds = Dataset.from_dict({"text": letters(600, 40, 20, 4, 3) + [f"loner {i}" for i in range(50)]})
    scorer = hp.MinHashDedup.fit(ds, ngram=1, **how)
    shuffled = ds.select(np.random.default_rng(0).permutation(len(ds)))
    assert hp.MinHashDedup.fit(shuffled, ngram=1, **how) == scorer
    assert hp.MinHashDedup.fit(ds.to_iterable_dataset(num_shards=3), ngram=1, **how) == scorer
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert hp.MinHashDedup.fit(ds, ngram=1, **how) == scorer


def test_without_verification_the_nearest_is_found_too():
    """All share a band with someone, hence large clusters; the score is that of the pair, as far as it is estimated."""
    texts = letters(1200, 90, 20, 2)
    _, found = apart(texts, verify=False, bands=16, band_rows=8)
    assert np.median(found["minhash"]) == pytest.approx(1 - 88 / 92, abs=0.02)
    assert np.mean(found["minhash"] < 0.2) > 0.99


def test_a_cap_leaves_the_most_similar_together():
    rate, found = apart(letters(1200, 90, 14, 3), threshold=0.6, max_cluster=2)
    assert rate <= 0.002 and found["minhash_count"].max() == 2


def test_reference_rows_in_a_crowd_are_all_counted():
    base = " ".join(f"w{i}" for i in range(60))
    reference = [f"{base} x{i}" for i in range(700)] + [f"{base} x{i}" for i in range(30)] + ["elsewhere"]
    rows = [f"{base} y", f"{base} x650", f"{base} x3", "w1 w2 w3", "elsewhere"]
    scorer = hp.MinHashDedup.fit(None, reference=Dataset.from_dict({"text": reference}), ngram=1)
    found = scorer({"text": rows})
    assert found["minhash_count"].tolist() == [730, 730, 730, 0, 1]
    assert found["minhash"] == pytest.approx([1 - 60 / 62, 0, 0, 1, 0])
    ids = hp.ExactDedup.fit(Dataset.from_dict({"text": reference}))({"text": rows[1:3]})["exact_cluster"]
    assert found["minhash_cluster"][1:3].tolist() == ids.tolist()


def test_nearest_reference_is_found_in_a_crowd():
    known = letters(1200, 90, 20, 2)[::2]
    rows = letters(1200, 90, 20, 2)[1::2]
    scorer = hp.MinHashDedup.fit(None, reference=Dataset.from_dict({"text": known}), ngram=1)
    found = scorer({"text": rows})
    assert found["minhash"] == pytest.approx(np.full(len(rows), 1 - 88 / 92), abs=1e-6)
    assert (found["minhash_count"] == 1).all()


# compiled passes against their definitions


def runs_of(keys, band):
    """Texts that share a key of a band, side by side, in no order within."""
    order = np.argsort(keys[:, band], kind="stable")[::-1].copy()
    same = keys[order, band][1:] == keys[order, band][:-1]
    return order[np.append(same, False) | np.insert(same, 0, False)]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 12), st.booleans(), st.integers(1, 40))
def test_pairs_are_those_of_bands_that_are_no_crowd(seed, most, chained, room):
    keys = np.random.default_rng(seed).integers(0, 4, (30, 4)).astype(np.uint64)
    crowded, crowd = np.zeros((30, 4), bool), np.arange(30)
    left, right = np.empty(room, np.int64), np.empty(room, np.int64)
    found = []
    for band in range(4):
        order, first, second = runs_of(keys, band), 0, 1
        while first < len(order):
            filled, first, second = _link_kernels.propose(
                order, keys, band, most, chained, first, second, crowded, crowd, left, right
            )
            found += zip(*np.sort([left[:filled], right[:filled]], axis=0).tolist(), strict=True)
    size = np.stack([np.bincount(column.astype(int), minlength=4)[column.astype(int)] for column in keys.T], 1)
    assert np.array_equal(crowded, size > most)
    expected, chains = set(), set()
    for i, j in itertools.combinations(range(30), 2):
        if any(keys[i, b] == keys[j, b] and size[i, b] <= most for b in range(4)):
            expected.add((i, j))
    for b, key in itertools.product(range(4), range(4)):
        members = np.flatnonzero(keys[:, b] == key).tolist()
        if len(members) > most:
            chains |= set(itertools.pairwise(members))
            assert len({_link_kernels.root(crowd, i) for i in members}) == 1
    assert set(found) >= expected and set(found) - expected <= (chains if chained else set())
    assert chained or len(found) == len(set(found))
    together = [set(np.flatnonzero(keys[:, b] == key).tolist()) for b in range(4) for key in range(4)]
    if chained:
        forest = np.arange(30)
        edges = np.array(found, np.int64).reshape(-1, 2)
        for i, j in edges.tolist():
            forest[forest == forest[j]] = forest[i]
        assert all(len({int(forest[i]) for i in members}) <= 1 for members in together)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 9), st.sampled_from([2, 3, 40, 2**32]))
def test_orders_are_those_of_the_definition(seed, several, width, values):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 60, several)
    edges, n = np.append(0, np.cumsum(sizes)), int(sizes.sum())
    columns = np.where(rng.random((24, n)) < 0.7, 7, rng.integers(0, values, (24, n))).astype(np.uint32)
    found, expected = (tuple(np.full(n, -1) for _ in range(2)) for _ in range(2))
    kernels.arrange(columns, sequence(seed % 5, 24), edges, width, *found)
    kernels.arrange_plain(columns, sequence(seed % 5, 24), edges, width, *expected)
    assert np.array_equal(found, expected)
    assert sorted(found[0].tolist()) == list(range(n))

    bits, tries = rng.integers(0, 2**6, (n, 2)).astype(np.uint64), rng.integers(0, 2, (n, 2)).astype(np.int32)
    parent = np.minimum(np.arange(2 * n), rng.integers(0, 2 * n, 2 * n))
    members = rng.permutation(2 * n)[:n]
    roots = np.array([_link_kernels.root(parent, i) for i in members])
    nearest, distance = np.full((n, 3), -1, np.int32), np.full((n, 3), 200, np.int32)
    left, right, kinds = (np.empty(2 * n, np.int64) for _ in range(3))
    bars = np.array([7, 5, 3])
    how = (*found, edges, bits)
    filled = kernels.likely(
        *how, members, parent, tries, bars, width, 2, nearest, distance, left, right, kinds
    )  # fmt: skip
    pairs, met = kernels.likely_plain(*how, roots, tries, bars, width, 2, 2)
    assert list(zip(*(x[:filled].tolist() for x in (left, right, kinds)), strict=True)) == pairs
    for i in range(n):
        some = sorted(d for d, _ in met[i])[:3]
        assert [d for d in distance[i].tolist() if d < 200] == some
        assert {(int(d), int(j)) for d, j in zip(distance[i], nearest[i], strict=True) if j >= 0} <= met[i]


def test_minima_and_sketches_are_those_of_the_definition():
    rng = np.random.default_rng(1)
    sets = [np.unique(rng.integers(0, 2**63, k).astype(np.uint64)) for k in rng.integers(1, 50, 40)]
    ends = np.cumsum([len(s) for s in sets])
    chosen = rng.permutation(40)[:37]
    a, b = permutations(70, seed=4, first=9)
    columns = np.empty((70, 37), np.uint32)
    starts, values = ends - [len(s) for s in sets], np.concatenate(sets)
    for low, high in ((0, 20), (20, 37)):
        kernels.set_minima(chosen, starts, ends, values, a, b, low, high, columns)
    assert np.array_equal(columns.T, [_kernels.minima_plain(sets[i], a, b) for i in chosen])
    bits = np.empty((37, 2), np.uint64)
    kernels.sketch(columns, bits)
    expected = columns.astype(object) * 0x9E3779B1 % 2**32 // 2**31
    assert [[int(bits[i, p // 64]) >> (p % 64) & 1 for p in range(70)] for i in range(37)] == expected.T.tolist()
    mine = Sketch(bands=5, band_rows=7, seed=4).permutations()
    assert not set(mine[0].tolist()) & set(permutations(crowds.MINIMA, 4, 70)[0].tolist())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=80), st.integers(1, 50))
def test_mixed_numbers_are_sorted(numbers, repeats):
    x = np.array(numbers * repeats, np.uint64)
    out = np.empty(len(x), np.uint64)
    _kernels.sort_mixed(x, len(x), out, np.empty(2 * len(x) + 2, np.int64))
    assert np.array_equal(out, np.sort(x))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sets(st.integers(0, 12)), st.sets(st.integers(0, 12))), max_size=7))
def test_similarities_are_those_of_the_definition(pairs):
    """An even number of pairs and an odd one: two are looked at together."""

    def packed(sets):
        ends = np.cumsum([len(s) for s in sets], dtype=np.int64)
        values = np.array([x for s in sets for x in sorted(s)], np.uint64)
        return shingles.Ragged(ends - [len(s) for s in sets], ends, values)

    at = np.arange(len(pairs))
    found = shingles.similarities(at, at, packed([a for a, _ in pairs]), packed([b for _, b in pairs]))
    assert found.tolist() == [_link_kernels.jaccard_plain(a, b) for a, b in pairs]


# large


@pytest.mark.slow
@pytest.mark.parametrize("texts", [100, 5_000, 50_000])
@pytest.mark.parametrize("own", [30, 22, 13], ids=["a half", "six tenths", "three quarters"])
def test_large_crowds(texts, own):
    """J = .91; time is that of the same texts, each pair behind a form of its own, and as much again."""
    times = {}
    for forms in (1, texts):
        rows = letters(texts, 0, own, 4, forms)
        ds = Dataset.from_dict({"text": rows})
        took = []
        for _ in range(3):
            start = time.process_time()
            scorer = hp.MinHashDedup.fit(ds, ngram=1)
            took.append(time.process_time() - start)
        times[forms] = min(took)
        clusters = scorer({"text": rows})["minhash_cluster"].reshape(-1, 2)
        assert (clusters[:, 0] != clusters[:, 1]).mean() < 0.001
    assert times[1] < 2 * times[texts] + 0.05


def test_a_crowd_is_more_than_what_is_compared_all_with_all():
    """The limit is exact: one text more, and the search takes over."""
    base = " ".join(f"w{i}" for i in range(60))
    for texts in (ALL_PAIRS, ALL_PAIRS + 1):
        rate, found = apart([f"{base} x{i}" for i in range(texts)], step=texts)
        assert rate == 0
        assert found["minhash"] == pytest.approx(np.full(texts, 1 - 60 / 62), abs=1e-6)
