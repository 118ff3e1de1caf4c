import itertools

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_prune as hp
from hf_prune.dedup import neighbors, shingles
from hf_prune.dedup._kernels import minima_plain, sign_plain
from hf_prune.dedup._link_kernels import components_plain, jaccard_plain
from hf_prune.dedup.bands import Sketch, band_probability, optimal_bands
from hf_prune.dedup.components import Forest, capped
from hf_prune.dedup.signed import Signed


def corpus(n=300, seed=0):
    """Texts in families: each a copy of a base with a few words changed."""
    rng = np.random.default_rng(seed)
    words = np.array([f"w{i}" for i in range(2000)])
    texts = []
    while len(texts) < n:
        base = rng.choice(words, int(rng.integers(8, 60)))
        for _ in range(int(rng.integers(1, 6))):
            copy = base.copy()
            for at in rng.choice(len(base), int(rng.integers(0, 4)), replace=False):
                copy[at] = rng.choice(words)
            texts.append(" ".join(copy))
    return texts[:n]


def similarity_matrix(texts, ngram):
    sets = [shingles.grams(t, ngram) for t in texts]
    found = np.zeros((len(texts), len(texts)))
    for i, j in itertools.combinations(range(len(texts)), 2):
        found[i, j] = found[j, i] = 1.0 if texts[i] == texts[j] else jaccard_plain(sets[i], sets[j])
    return found


def partition(labels):
    return {tuple(np.flatnonzero(np.asarray(labels) == c)) for c in set(np.asarray(labels).tolist())}


@pytest.fixture(scope="module")
def texts():
    return corpus()


@pytest.fixture(scope="module")
def truth(texts):
    return similarity_matrix(texts, 2)


# numbers of the dossier


@pytest.mark.parametrize(
    ("bands", "rows", "expected"),
    [
        (14, 8, {0.5: 0.0533, 0.6: 0.2111, 0.7: 0.5645, 0.75: 0.7716, 0.8: 0.9235, 0.85: 0.9884, 0.9: 0.9996}),
        (20, 13, {0.7: 0.1769, 0.75: 0.3818, 0.8: 0.6773, 0.85: 0.9240, 0.9: 0.9972}),
        (25, 10, {0.6: 0.1407, 0.7: 0.5115, 0.8: 0.9416, 0.9: 1.0}),
        (450, 20, {0.7: 0.3018, 0.75: 0.7605, 0.8: 0.9946}),
        (9, 13, {0.8: 0.3988, 0.85: 0.6864, 0.9: 0.9286}),
    ],
)
def test_chance_of_a_shared_band(bands, rows, expected):
    for similarity, chance in expected.items():
        assert band_probability(similarity, bands, rows) == pytest.approx(chance, abs=6e-5)


@pytest.mark.parametrize(
    ("threshold", "permutations", "split"),
    [(0.8, 128, (9, 13)), (0.7, 128, (14, 9)), (0.5, 128, (25, 5)), (0.7, 240, (24, 10)), (0.7, 256, (25, 10))],
)
def test_best_split(threshold, permutations, split):
    assert optimal_bands(threshold, permutations) == split


def test_components_of_the_dossier():
    edges = [(4, 5), (1, 3), (3, 4)]
    assert components_plain(6, edges) == [0, 1, 2, 1, 1, 1]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_forest_agrees_with_the_definition(edges):
    forest = Forest(20)
    left, right = (np.array([e[i] for e in edges], np.int64) for i in (0, 1))
    forest.add(left, right)
    assert forest.roots().tolist() == components_plain(20, edges)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.sampled_from([0.8, 0.9])), max_size=30),
    st.integers(1, 5),
    st.randoms(),
)
def test_capped_components(edges, cap, random):
    def run(edges):
        left, right = (np.array([e[i] for e in edges], np.int64) for i in (0, 1))
        return capped(10, left, right, np.array([e[2] for e in edges]), cap)[0].tolist()

    found = run(edges)
    assert max(np.bincount(found)) <= cap
    random.shuffle(edges)
    assert run(edges) == found
    assert run([(b, a, weight) if random.random() < 0.5 else (a, b, weight) for a, b, weight in edges]) == found


# against independent references


def test_signatures_are_those_of_the_definition(texts):
    sketch = Sketch(ngram=2, bands=4, band_rows=5, seed=3)
    keys, sizes, found = sketch.sign(pa.array(texts[:20]), signatures=True)
    sets = sketch.sets(pa.array(texts[:20]), np.arange(20))
    for i in range(20):
        assert found[i].tolist() == minima_plain(sets[i], *sketch.permutations()).tolist()
        assert keys[i].tolist() == sign_plain(found[i], 4, 5)
    assert sizes.tolist() == [len(t.split()) - 1 for t in texts[:20]]


def test_estimates_are_unbiased():
    """1 024 permutations of sets with J = 0.5: within four standard errors, over several seeds."""
    a, b = (" ".join(f"x{i}" for i in range(*r)) for r in ((0, 300), (100, 400)))
    shares = []
    for seed in range(8):
        _, _, found = Sketch(ngram=1, bands=128, band_rows=8, seed=seed).sign(pa.array([a, b]), signatures=True)
        shares.append((found[0] == found[1]).mean())
    assert np.mean(shares) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(8 * 1024))


@pytest.mark.parametrize("common", [72, 77, 80, 85])
def test_recall_is_that_of_the_formula(common):
    """600 pairs of one known similarity, each of words of its own."""
    pairs, size = 600, 90
    rows = []
    for p in range(pairs):
        for side in "ab":
            own = [f"p{p}{side}{i}" for i in range(size - common)]
            rows.append(" ".join([f"p{p}c{i}" for i in range(common)] + own))
    ds = Dataset.from_dict({"text": rows})
    scorer = hp.MinHashDedup.fit(ds, ngram=1, bands=14, band_rows=8, verify=False)
    clusters = scorer(ds[:])["minhash_cluster"].reshape(-1, 2)
    found = (clusters[:, 0] == clusters[:, 1]).mean()
    chance = band_probability(common / (2 * size - common), 14, 8)
    assert found == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / pairs) + 1e-9)
    assert len(set(clusters.reshape(-1).tolist())) == 2 * pairs - int(found * pairs + 0.5)  # no pair beside these


def test_clusters_and_scores_are_those_of_brute_force_where_nothing_is_missed(texts, truth):
    ds = Dataset.from_dict({"text": texts})
    scorer = hp.MinHashDedup.fit(ds, threshold=0.5, ngram=2, bands=128, band_rows=1)
    found = scorer(ds[:])
    edges = list(zip(*np.nonzero(truth >= 0.5), strict=True))
    assert partition(found["minhash_cluster"]) == partition(components_plain(len(texts), edges))
    near = truth.max(1) > 0.2
    assert found["minhash"][near] == pytest.approx(1 - truth.max(1)[near], abs=1e-6)
    assert found["minhash_count"].tolist() == [
        (found["minhash_cluster"] == c).sum() for c in found["minhash_cluster"].tolist()
    ]


def test_no_false_pair_with_verification(texts, truth):
    """Every cluster hangs together by true near-copies; no score claims more similarity than there is."""
    ds = Dataset.from_dict({"text": texts})
    found = hp.MinHashDedup.fit(ds, threshold=0.7, ngram=2, permutations=64)(ds[:])
    for members in partition(found["minhash_cluster"]):
        inside = truth[np.ix_(members, members)] >= 0.7
        assert set(components_plain(len(members), list(zip(*np.nonzero(inside), strict=True)))) == {0}
    assert (1 - found["minhash"] <= truth.max(1) + 1e-6).all()


def test_reference_is_brute_force_against_it(texts):
    reference, rows = texts[:60], texts[30:120]
    scorer = hp.MinHashDedup.fit(
        None, threshold=0.5, ngram=2, bands=128, band_rows=1, reference=Dataset.from_dict({"text": reference})
    )
    found = scorer({"text": rows})
    ids = dict(
        zip(
            reference,
            hp.ExactDedup.fit(Dataset.from_dict({"text": texts}))({"text": reference})["exact_cluster"],
            strict=True,
        )
    )
    for row, text in enumerate(rows):
        mine = shingles.grams(text, 2)
        truth = [1.0 if t == text else jaccard_plain(mine, shingles.grams(t, 2)) for t in reference]
        if max(truth) > 0.2:
            assert found["minhash"][row] == pytest.approx(1 - max(truth), abs=1e-6)
        assert found["minhash_count"][row] == sum(t >= 0.5 for t in truth)
        if max(truth) >= 0.5:
            nearest = {ids[t] for t, s in zip(reference, truth, strict=True) if s == max(truth)}
            assert found["minhash_cluster"][row] in nearest


# behaviour


def test_order_shards_and_streams_do_not_matter(texts):
    ds = Dataset.from_dict({"text": texts})
    scorer = hp.MinHashDedup.fit(ds, threshold=0.6, ngram=2)
    order = np.random.default_rng(0).permutation(len(texts))
    assert hp.MinHashDedup.fit(ds.select(order), threshold=0.6, ngram=2) == scorer
    assert hp.MinHashDedup.fit(ds.to_iterable_dataset(num_shards=3), threshold=0.6, ngram=2) == scorer
    nested = Dataset.from_dict({"meta": [{"body": t} for t in texts]})
    assert hp.MinHashDedup.fit(nested, text="meta.body", threshold=0.6, ngram=2).neighbors == scorer.neighbors
    sketch = Sketch(ngram=2)
    whole = Signed.of(ds, "text", sketch, "x")
    parts = [Signed.of(ds.shard(3, i), "text", sketch, "x") for i in (2, 0, 1)]
    for a, b in zip(Signed.merge(parts), whole, strict=True):
        assert np.array_equal(a, b)


def test_two_texts_with_one_digest_are_not_called_copies():
    signed = Signed.of(Dataset.from_dict({"text": ["a b", "c d"]}), "text", Sketch(ngram=1), "x")
    with pytest.raises(ValueError, match="two different texts have the same 64-bit digest"):
        Signed.merge([signed._replace(digests=np.ones(2, np.uint64))])


def test_threads_do_not_matter(texts, monkeypatch):
    ds = Dataset.from_dict({"text": texts})
    monkeypatch.setattr(shingles, "PIECE", 1000)
    found = []
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append(hp.MinHashDedup.fit(ds, threshold=0.6, ngram=2))
    assert found[0] == found[1]


def test_texts_of_every_shape():
    chat = [{"role": "user", "content": "the cat sat on the mat"}]
    ds = Dataset.from_dict({"messages": [chat, chat], "a": ["x y", None], "b": ["z", "x y z"]})
    assert hp.MinHashDedup.fit(ds, text="messages")(ds[:])["minhash"].tolist() == [0, 0]
    assert hp.MinHashDedup.fit(ds, text=["a", "b"])(ds[:])["minhash"].tolist() == [0, 0]


def test_empty_short_null_emoji_and_cjk():
    texts = [
        "",
        "",
        "one",
        "one",
        "two",
        None,
        "😀",
        "😀!",
        "東京都は日本の首都である",
        "東京都は日本の首都でした",
        None,
    ]
    ds = Dataset.from_dict({"text": texts})
    found = hp.MinHashDedup.fit(ds, threshold=0.5, ngram=3)(ds[:])
    score, cluster = found["minhash"], found["minhash_cluster"]
    assert score[:5].tolist() == [0, 0, 0, 0, 1] and cluster[0] == cluster[1] and cluster[2] == cluster[3] != cluster[4]
    assert np.isnan(score[[5, 10]]).all() and cluster[[5, 10]].tolist() == [-1, -1]
    assert found["minhash_count"][[5, 10]].tolist() == [0, 0]
    assert score[6] == score[7] == 1  # neither has a word: only copies would be near
    assert 0 < score[8] < 0.5 and cluster[8] == cluster[9]


def test_one_per_cluster_keeps_one_row_of_each(texts):
    ds = Dataset.from_dict({"text": texts})
    ds = ds.map(hp.MinHashDedup.fit(ds, threshold=0.6, ngram=2), batched=True, batch_size=64)
    clusters = len(set(ds["minhash_cluster"]))
    halves = hp.split_by_score(ds, "minhash", rows=clusters, one_per="minhash_cluster")
    assert len(halves["kept"]) == len(set(halves["kept"]["minhash_cluster"])) == clusters < len(texts)


def test_each_dropped_row_beside_the_row_that_stands_for_it(texts):
    ds = hp.with_row_id(Dataset.from_dict({"text": [*texts, None]}))
    scorer = hp.MinHashDedup.fit(ds, threshold=0.6, ngram=2)
    ds = ds.map(scorer, batched=True)
    clusters = len(set(ds["minhash_cluster"])) - 1
    halves = hp.split_by_score(ds, "minhash", rows=clusters, one_per="minhash_cluster", nulls="drop")
    found = hp.duplicate_pairs(halves, scorer=scorer, row_id="row_id")
    assert len(found) == len(ds) - clusters
    kept, dropped = halves["kept"], halves["dropped"]
    for pair in found:
        mine = dropped[pair["dropped"]]
        assert mine["row_id"] == pair["dropped_id"]
        if mine["text"] is None:
            assert pair["kept"] is None and pair["similarity"] is None
            continue
        other = kept[pair["kept"]]
        assert other["row_id"] == pair["kept_id"] and other["minhash_cluster"] == mine["minhash_cluster"]
        same = mine["text"] == other["text"]
        expected = 1 if same else jaccard_plain(shingles.grams(mine["text"], 2), shingles.grams(other["text"], 2))
        assert pair["similarity"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="takes what split_by_score gives"):
        hp.duplicate_pairs(ds)
    with pytest.raises(KeyError, match="no column 'nope'"):
        hp.duplicate_pairs(halves, cluster="nope")


def chain(links):
    """Each text shares 9 of its 10 words with the next: a cluster whose ends have nothing in common."""
    return [" ".join(f"c{i}" for i in range(k, k + 10)) for k in range(links)]


def test_chains_are_reported_and_capped():
    ds = Dataset.from_dict({"text": [*chain(12), "apart from these", "apart from these"]})
    scorer = hp.MinHashDedup.fit(ds, threshold=0.8, ngram=1, bands=128, band_rows=1)
    assert scorer.fitted_on["chains"] == 1 and scorer.fitted_on["largest"] == 12
    report = scorer.clusters()
    assert report[0]["texts"] == 12 and report[0]["lowest"] < 0.5 and len(report) == 1
    cut = hp.MinHashDedup.fit(ds, threshold=0.8, ngram=1, bands=128, band_rows=1, max_cluster=4)
    assert max(cut.neighbors.n_texts) <= 4 and cut.fitted_on["refused_edges"] > 0
    order = np.random.default_rng(0).permutation(len(ds))
    assert hp.MinHashDedup.fit(ds.select(order), threshold=0.8, ngram=1, bands=128, band_rows=1, max_cluster=4) == cut
    with pytest.raises(TypeError, match="has no clusters"):
        hp.MinHashDedup.fit(None, reference=ds).clusters()


def test_texts_of_one_key_stand_side_by_side_and_ascending():
    keys = np.array([[5, 0], [7, 2], [5, 2], [6, 2], [7, 1], [5, 3]], np.uint64)
    every = np.arange(6)
    signed = Signed(every.astype(np.uint64), np.ones(6, np.int64), np.array([1, 1, 1, 1, 1, 0]), keys, keys[:0], 0)
    assert [order.tolist() for order in signed.runs()] == [[0, 2, 1, 4], [1, 2, 3]]  # the last has no n-gram
    assert [order.tolist() for order in signed._replace(sizes=np.zeros(6, np.int64)).runs()] == [[], []]


def test_what_was_found_is_shown():
    ds = Dataset.from_dict({"text": [*chain(12), "apart from these", "apart from these", None]})
    scorer = hp.MinHashDedup.fit(ds, threshold=0.8, ngram=1, bands=128, band_rows=1)
    found = scorer.summary()
    assert (found.rows, found.nulls, found.texts, found.clusters) == (15, 1, 13, 2)
    assert (found.removable, found.largest_cluster, found.chains, found.threshold) == (12, 12, 1, 0.8)
    assert found.removable_share == 12 / 15 and found.missed_at_threshold == pytest.approx(0, abs=1e-9)
    assert "largest cluster" in str(found) and "<th>chains</th><td>1</td>" in found._repr_html_()
    against = hp.MinHashDedup.fit(None, reference=ds, ngram=1).summary()
    assert against.clusters is None and against.compared_with == "reference" and against.rows == 15
    with pytest.raises(ValueError, match="has no fitted_on; make it with .fit"):
        hp.MinHashDedup(neighbors=scorer.neighbors, sketch=scorer.sketch).summary()


def test_a_hundred_thousand_identical_rows():
    ds = Dataset.from_dict({"text": ["all rows are the same as this one here"] * 100_000 + ["but not this one"]})
    scorer = hp.MinHashDedup.fit(ds)
    found = scorer(ds[99_990:])
    assert found["minhash"].tolist() == [0] * 10 + [1]
    assert found["minhash_count"].tolist() == [100_000] * 10 + [1]


def test_a_large_group_of_near_copies_is_one_cluster():
    """More than are compared all with all."""
    base = " ".join(f"w{i}" for i in range(60))
    ds = Dataset.from_dict({"text": [f"{base} x{i}" for i in range(3000)]})
    scorer = hp.MinHashDedup.fit(ds, ngram=2)
    assert scorer.fitted_on["largest"] == 3000 and scorer.fitted_on["chains"] == 0


def test_a_buffer_that_is_full_is_emptied_and_filled_again(texts, monkeypatch):
    ds = Dataset.from_dict({"text": texts})
    whole = hp.MinHashDedup.fit(ds, threshold=0.6, ngram=2)
    monkeypatch.setattr(neighbors, "BUFFER", 3)
    assert hp.MinHashDedup.fit(ds, threshold=0.6, ngram=2) == whole


def test_the_card_says_how_texts_were_compared():
    column = hp.MinHashDedup.fit(Dataset.from_dict({"text": ["a b c", "d"]}), threshold=0.7, ngram=3).describe()
    assert column.params == {
        "text": "text", "threshold": 0.7, "verify": True, "ngram": 3, "unit": "word", "lower": True, "bands": 21,
        "band_rows": 6, "seed": 0, "on_bad": "nan",
    }  # fmt: skip
    assert column.fitted_on["rows"] == 2


def test_all_rows_the_same():
    ds = Dataset.from_dict({"text": ["same"] * 8})
    found = hp.MinHashDedup.fit(ds)(ds[:])
    assert found["minhash"].tolist() == [0] * 8 and len(set(found["minhash_cluster"].tolist())) == 1


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01, float("nan"), True, "0.8"])
def test_thresholds_outside_are_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold=.* is not above 0 and up to 1"):
        hp.MinHashDedup.fit(Dataset.from_dict({"text": ["a"]}), threshold=threshold)


def test_bad_input():
    ds = Dataset.from_dict({"text": ["a b", "c"], "n": [1, 2], "raw": [b"x", b"y"]})
    fit = hp.MinHashDedup.fit
    with pytest.raises(KeyError, match="reads column 'body', the rows have"):
        fit(ds, text="body")
    with pytest.raises(TypeError, match="neither text nor a chat"):
        fit(ds, text="n")
    with pytest.raises(TypeError, match="neither text nor a chat"):
        fit(ds, text="raw")
    with pytest.raises(TypeError, match="choose a split"):
        fit(DatasetDict(train=ds))
    with pytest.raises(ValueError, match="empty dataset"):
        fit(ds.select([]))
    with pytest.raises(ValueError, match="all 2 rows of 'text' are null"):
        fit(Dataset.from_dict({"text": [None, None]}))
    with pytest.raises(ValueError, match="give both, or neither"):
        fit(ds, bands=3)
    with pytest.raises(ValueError, match="band_rows=0 is no whole number from 1 up"):
        fit(ds, bands=3, band_rows=0)
    with pytest.raises(ValueError, match="permutations=0"):
        fit(ds, permutations=0)
    with pytest.raises(ValueError, match="max_cluster=0 is no whole number from 1 up"):
        fit(ds, max_cluster=0)
    with pytest.raises(ValueError, match="names no column"):
        fit(ds, text=[])
    with pytest.raises(ValueError, match=r"1 of 2 rows was not among the rows it was fitted on: text 'new'.*reference"):
        fit(ds)({"text": ["a b", "new"]})
