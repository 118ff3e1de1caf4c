"""SemDeDup: the dossier's vectors, brute force over all pairs, the published algorithm, and bad input."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

import hf_prune as hp
from hf_prune.dedup import earlier
from hf_prune.dedup.earlier import largest_earlier_of_groups, largest_earlier_plain
from hf_prune.dedup.semdedup import earlier_similarity


def at_angles(*degrees):
    turned = np.deg2rad(degrees)
    return np.column_stack([np.cos(turned), np.sin(turned)])


def dataset(x, **columns):
    features = {"embedding": datasets.List(datasets.Value("float32"), length=np.shape(x)[1])}
    features |= {name: datasets.Value("string") for name in columns}
    rows = {"embedding": list(np.asarray(x, np.float32)), **columns}
    return datasets.Dataset.from_dict(rows, datasets.Features(features))


def scored(ds, **options):
    return ds.map(hp.SemDeDup.fit(ds, **options), batched=True)


def brute_force(x, clusters, similarity, order="hard"):
    """All pairs, one by one."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    sign = {"hard": 1, "easy": -1}[order]
    found = np.zeros(len(x))
    for b in range(len(x)):
        for a in range(len(x)):
            if clusters[a] == clusters[b] and sign * similarity[a] < sign * similarity[b]:
                found[b] = max(found[b], unit[a] @ unit[b])
    return found


def published(unit, centre, eps):
    """The paper's code for one cluster: sort by distance to the centre, whole matrix, upper triangle, largest."""
    near = unit @ centre
    order = np.argsort(near, kind="stable")
    similarity = unit[order] @ unit[order].T
    largest = np.triu(similarity, 1).max(0)
    return set(order[largest > 1 - eps].tolist())


# the dossier's vectors

CLUSTERS = np.array([0, 0, 0, 0, 1, 1])
VECTORS = at_angles(0, 5, 12, 40, 90, 92)
TO_CENTROID = np.cos(np.deg2rad(np.array([0, 5, 12, 40, 90, 92]) - np.array([14.25] * 4 + [90.5] * 2)))


def test_hard_order():
    found, pairs = earlier_similarity(VECTORS, CLUSTERS, TO_CENTROID, np.arange(6))
    assert found == pytest.approx(
        [0.76604444, 0.99619470, 0.99254615, 0, 0, 0.99939083][:4] + [0.99939083, 0], abs=1e-8
    )
    assert pairs == 7
    assert np.flatnonzero(found[:4] > 1 - 0.005).tolist() == [1]
    assert np.flatnonzero(found[:4] > 1 - 0.01).tolist() == [1, 2]
    assert (found[4:] > 1 - 0.001).sum() == 1 and (found[4:] > 1 - 0.0005).sum() == 0


def test_easy_order():
    found, _ = earlier_similarity(VECTORS[:4], CLUSTERS[:4], TO_CENTROID[:4], np.arange(4), keep_first="easy")
    assert found == pytest.approx([0.99619470, 0.99254615, 0, 0.88294759], abs=1e-8)
    assert np.flatnonzero(found > 1 - 0.01).tolist() == [0, 1]


def test_chain_counts_rows_that_are_dropped():
    found, _ = earlier_similarity(at_angles(0, 20, 40), np.zeros(3, int), np.array([0.1, 0.2, 0.3]), np.arange(3))
    assert found == pytest.approx([0, 0.93969262, 0.93969262], abs=1e-8)


def test_random_order_is_by_ties():
    found, _ = earlier_similarity(
        at_angles(0, 20, 40), np.zeros(3, int), np.arange(3.0), np.array([2, 1, 0]), keep_first="random"
    )
    assert found == pytest.approx([0.93969262, 0.93969262, 0], abs=1e-8)


def test_fit_gives_the_vector_of_d4():
    ds = scored(dataset(at_angles(0, 10, 30, 60, 61)), k=1)
    assert 1 - np.array(ds["semdedup"]) == pytest.approx([0, 0.98480775, 0.93969262, 0.9998477, 0.48480962], abs=1e-6)


# brute force


KINDS = {
    "plain": lambda rng, n, d: rng.normal(size=(n, d)),
    "one cone": lambda rng, n, d: 3 + rng.normal(size=(n, d)),
    "two ends": lambda rng, n, d: np.sign(rng.normal(size=(n, 1))) * (1 + 0.01 * rng.normal(size=(n, d))),
    "last digits": lambda rng, n, d: 1 + 1e-6 * rng.normal(size=(n, d)),
    "few kinds": lambda rng, n, d: rng.normal(size=(5, d))[rng.integers(0, 5, n)] + 0.01 * rng.normal(size=(n, d)),
    "opposite": lambda rng, n, d: np.where(np.arange(n)[:, None] % 2, 1.0, -1.0) * np.eye(1, d),
}


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_largest_earlier_is_the_definition(kind, tiles, monkeypatch):
    monkeypatch.setattr(earlier, "tiles", lambda: tiles)
    rng = np.random.default_rng(0)
    for n, d in ((1, 3), (2, 5), (63, 16), (300, 17), (1100, 40)):
        x = KINDS[kind](rng, n, d).astype(np.float32)
        found = largest_earlier_of_groups(x, np.arange(n), np.array([0, n]))
        assert found == pytest.approx(largest_earlier_plain(x), abs=1e-13)


def test_groups_large_and_small(monkeypatch):
    monkeypatch.setattr(earlier, "LARGE", 200)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 12))
    members, starts = rng.permutation(1000), np.array([0, 1, 3, 150, 700, 1000])
    found = largest_earlier_of_groups(x, members, starts)
    want = [largest_earlier_plain(x[members[a:b]]) for a, b in zip(starts[:-1], starts[1:], strict=True)]
    assert found == pytest.approx(np.concatenate(want), abs=1e-13)


def test_kernels_are_their_definition():
    from hf_prune.dedup._earlier_kernels import SEGMENT, segment_maxima

    rng = np.random.default_rng(0)
    product = rng.normal(size=(64, 128)).astype(np.float32)
    maxima, top = np.zeros((64, 128 // SEGMENT), np.int32), np.zeros(64, np.int32)
    segment_maxima(product.view(np.int32), 100, 64, maxima, top)
    earlier_only = np.where(np.arange(64, 192) < np.arange(100, 164)[:, None], product, 0)
    assert np.array_equal(top.view(np.float32), earlier_only.max(1).clip(0))
    by_segment = earlier_only.reshape(64, -1, SEGMENT).max(2).clip(0)
    for row in range(64):
        seen = -(-min(128, 100 + row - 64) // SEGMENT)
        assert np.array_equal(maxima[row, :seen].view(np.float32), by_segment[row, :seen])


@pytest.mark.parametrize("order", ["hard", "easy"])
def test_column_is_brute_force(order, crowd):
    scorer = hp.SemDeDup.fit(crowd, k=6, keep_first=order)
    out = scorer(crowd[:])
    x = np.asarray(crowd["embedding"], np.float64)
    kmeans_again = hp.SemDeDup.fit(crowd, k=6, keep_first=order)
    assert kmeans_again == scorer
    similarity = centre_cosines(crowd, out["semdedup_cluster"])
    assert out["semdedup"] == pytest.approx(1 - brute_force(x, out["semdedup_cluster"], similarity, order), abs=1e-6)


@pytest.mark.parametrize("eps", [0.001, 0.02, 0.1, 0.3])
def test_removals_are_those_of_the_published_algorithm(crowd, eps):
    out = hp.SemDeDup.fit(crowd, k=6)(crowd[:])
    unit = np.asarray(crowd["embedding"], np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    centroids = centroids_of(crowd)
    removed = set()
    for c in range(6):
        members = np.flatnonzero(out["semdedup_cluster"] == c)
        removed |= {int(members[i]) for i in published(unit[members], centroids[c], eps)}
    kept = hp.keep_mask(out["semdedup"], threshold=eps)
    assert 0 < len(removed) < len(unit)
    assert set(np.flatnonzero(~kept).tolist()) == removed


def test_one_cluster_is_all_pairs_and_second_finds_what_is_cut(crowd):
    whole, cut, both = (
        hp.SemDeDup.fit(crowd, keep_first="random", **options)(crowd[:])["semdedup"]
        for options in ({"k": 1}, {"k": 6}, {"k": 6, "clusters_per_row": 2})
    )
    assert (whole <= both + 1e-6).all() and (both <= cut + 1e-6).all()
    assert (both < cut - 1e-4).any()


# rows and copies


def test_one_of_equal_rows_stays(crowd):
    twice = datasets.concatenate_datasets([crowd, crowd.remove_columns("row_id").add_column("row_id", ids("copy"))])
    out = twice.map(hp.SemDeDup.fit(twice, k=6), batched=True)
    assert len(hp.filter_by_score(out, "semdedup", threshold=1e-6)) == len(
        hp.filter_by_score(scored(crowd, k=6), "semdedup", threshold=1e-6)
    )
    by_vector = twice.remove_columns("row_id")
    out = by_vector.map(hp.SemDeDup.fit(by_vector, k=6), batched=True)
    assert np.array_equal(out["semdedup"][: len(crowd)], out["semdedup"][len(crowd) :])
    assert len(hp.filter_by_score(out, "semdedup", threshold=0.0, one_per="semdedup_group")) == len(crowd)


def test_scaled_copies_are_duplicates():
    x = np.random.default_rng(0).normal(size=(8, 16))
    out = scored(dataset(np.concatenate([x, 3 * x])), k=1)
    assert (np.array(out["semdedup"]) < 1e-6).sum() == 8


def test_order_of_rows_does_not_matter(crowd):
    turned = crowd.select(np.random.default_rng(1).permutation(len(crowd)))
    assert hp.SemDeDup.fit(turned, k=6) == hp.SemDeDup.fit(crowd, k=6)
    plain, back = (ds.remove_columns("row_id") for ds in (crowd, turned))
    assert hp.SemDeDup.fit(back, clusters_per_row=2) == hp.SemDeDup.fit(plain.to_iterable_dataset(), clusters_per_row=2)


def test_last_bits_of_vectors_do_not_move_rows_that_have_ids(crowd):
    shaken = np.asarray(crowd["embedding"], np.float32) * np.float32(1 + 2**-23)
    other = dataset(shaken, row_id=crowd["row_id"][:])
    one, two = (hp.SemDeDup.fit(ds, k=6)(ds[:]) for ds in (crowd, other))
    assert np.array_equal(one["semdedup_cluster"], two["semdedup_cluster"])
    assert one["semdedup"] == pytest.approx(two["semdedup"], abs=1e-6)


def test_all_rows_alike():
    same = dataset(np.ones((50, 8)))
    out = scored(same)
    assert set(out["semdedup"]) == {1.0}
    assert len(hp.filter_by_score(out, "semdedup", threshold=0.5, one_per="semdedup_group")) == 1
    named = dataset(np.ones((50, 8)), row_id=[str(i) for i in range(50)])
    assert sorted(scored(named)["semdedup"]) == [0.0] * 49 + [1.0]
    nearly = dataset(1 + 1e-5 * np.random.default_rng(0).normal(size=(50, 8)))
    assert (np.array(scored(nearly)["semdedup"]) < 1e-6).sum() == 49


def test_zero_rows_score_nan(crowd):
    x = np.asarray(crowd["embedding"], np.float32)
    x[3] = 0
    out = scored(dataset(x), k=3)
    assert np.isnan(out["semdedup"][3]) and out["semdedup_cluster"][3] == -1
    assert np.isfinite(np.delete(np.array(out["semdedup"]), 3)).all()


def test_bad_input(crowd):
    with pytest.raises(ValueError, match="keep_first='far' is not known; choose one of 'hard', 'easy', 'random'"):
        hp.SemDeDup.fit(crowd, keep_first="far")
    with pytest.raises(ValueError, match=r"k=0 is no whole number from 1 up"):
        hp.SemDeDup.fit(crowd, k=0)
    with pytest.raises(ValueError, match=r"k=1000 clusters, but 240 distinct rows .* use k=240 or less"):
        hp.SemDeDup.fit(crowd, k=1000)
    with pytest.raises(ValueError, match=r"k=2 clusters, but 1 distinct rows"):
        hp.SemDeDup.fit(dataset(np.ones((50, 8))), k=2)
    with pytest.raises(ValueError, match=r"all 5 rows of 'embedding' are zero vectors"):
        hp.SemDeDup.fit(dataset(np.zeros((5, 8))))
    with pytest.raises(ValueError, match="1 id occurs more than once: 'a'"):
        hp.SemDeDup.fit(dataset(np.eye(3), row_id=["a", "b", "a"]))
    with pytest.raises(ValueError, match="empty dataset"):
        hp.SemDeDup.fit(crowd.select([]))
    with pytest.raises(KeyError, match="reads column 'vector'"):
        hp.SemDeDup.fit(crowd, embedding="vector")
    with pytest.raises(ValueError, match="not in the rows it was fitted on"):
        hp.SemDeDup.fit(crowd, k=6)({"row_id": ["another"]})


def ids(prefix, n=240):
    return [f"{prefix}-{i}" for i in range(n)]


@pytest.fixture(scope="module")
def crowd():
    """240 rows in 12 dimensions around 6 centroids, many of them near others."""
    rng = np.random.default_rng(0)
    centroids = rng.normal(size=(6, 12))
    x = centroids[np.arange(240) % 6] + 0.5 * rng.normal(size=(240, 12))
    x[120:] = x[:120] + rng.choice([0.003, 0.1, 0.5], size=(120, 1)) * rng.normal(size=(120, 12))
    return dataset(x, row_id=ids("row"))


def centroids_of(ds):
    """The centroids as the fit learns them: k-means on the rows in canonical order."""
    from hf_prune.data import identity
    from hf_prune.numerics import kmeans

    x = np.asarray(ds["embedding"], np.float32)
    order = np.argsort(identity.seeded(identity.digests(ds["row_id"][:]), 0))
    return kmeans.kmeans(kmeans.unit_rows(x[order]), 6, seed=0).centroids.astype(np.float64)


def centre_cosines(ds, clusters):
    x = np.asarray(ds["embedding"], np.float64)
    centroids = centroids_of(ds)
    return (
        np.einsum("nd,nd->n", x, centroids[clusters])
        / np.linalg.norm(x, axis=1)
        / np.linalg.norm(centroids[clusters], axis=1)
    )


def test_summary(crowd):
    scorer = hp.SemDeDup.fit(crowd, k=6)
    seen = scorer.summary()
    sizes = np.bincount(scorer.clusters)
    assert (seen.rows, seen.clusters, seen.largest) == (240, 6, sizes.max())
    assert seen.zero_vectors == seen.equal_vectors == 0
    for eps, removable in seen.removable.items():
        assert removable == 240 - len(hp.filter_by_score(scored(crowd, k=6), "semdedup", threshold=float(eps)))
    assert 0 < seen.removable["0.1"] < 240 and "Semantic duplicates" in str(seen)
    twice = datasets.concatenate_datasets([crowd.select(range(20)), crowd.select(range(20))])
    twice = twice.remove_columns("row_id").add_column("row_id", [str(i) for i in range(40)])
    seen = hp.SemDeDup.fit(twice, k=1).summary()
    assert seen.equal_vectors == 20 and seen.removable["1e-06"] == 20
