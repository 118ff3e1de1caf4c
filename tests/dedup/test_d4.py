"""D4: the dossier's vector, the steps by hand, counts, and bad input."""

from __future__ import annotations

import math
import warnings

import datasets
import numpy as np
import pytest

import hf_prune as hp
from hf_prune.prune import filter


def dataset(x, **columns):
    features = {"embedding": datasets.List(datasets.Value("float32"), length=np.shape(x)[1])}
    features |= {name: datasets.Value("string") for name in columns}
    rows = {"embedding": list(np.asarray(x, np.float32)), **columns}
    return datasets.Dataset.from_dict(rows, datasets.Features(features))


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 10))[np.arange(101) % 4] + 0.5 * rng.normal(size=(101, 10))
    x[70:] = x[:31] + 0.05 * rng.normal(size=(31, 10))
    return dataset(x, row_id=[f"r{i}" for i in range(101)])


def test_vector():
    turned = np.deg2rad([0, 10, 30, 60, 61])
    ds = dataset(np.column_stack([np.cos(turned), np.sin(turned)]), name=list("01234"))
    assert hp.d4(ds, dedup_keep=0.8, proto_keep=1.0, k=1)["name"][:] == ["0", "1", "2", "4"]
    left = hp.d4(ds, dedup_keep=0.8, proto_keep=0.5, k=1)
    assert left["name"][:] == ["0", "4"]
    assert left["ssl_proto"][:] == pytest.approx([0.09294706, 0.19202261], abs=1e-6)


def test_is_its_steps(rows):
    alike = rows.map(hp.SemDeDup.fit(rows, k=5, seed=3), batched=True)
    left = hp.filter_by_score(alike, "semdedup", keep=0.7, seed=3)
    near = left.map(hp.SSLPrototypes.fit(left, k=5, seed=3), batched=True)
    want = hp.filter_by_score(near, "ssl_proto", keep=0.4, seed=3)
    got = hp.d4(rows, dedup_keep=0.7, proto_keep=0.4, k=5, seed=3)
    assert got["row_id"][:] == want["row_id"][:]
    assert got.column_names == [*rows.column_names, "semdedup", "semdedup_cluster", "semdedup_group", "ssl_proto"]


@pytest.mark.filterwarnings("ignore:.* one row only")
@pytest.mark.parametrize("dedup_keep, proto_keep", [(0.75, 1 / 3), (0.5, 0.5), (1.0, 0.25), (0.33, 1.0)])
def test_counts(rows, dedup_keep, proto_keep):
    first = math.floor(dedup_keep * 101 + 0.5)
    assert len(hp.d4(rows, dedup_keep=dedup_keep, proto_keep=proto_keep, k=4)) == math.floor(proto_keep * first + 0.5)


def test_copies_go_first(rows):
    plain = rows.remove_columns("row_id")
    twice = datasets.concatenate_datasets([plain, plain])
    with pytest.warns(filter.ShortWarning, match="only 101 of the 152 rows"):
        assert len(hp.d4(twice, dedup_keep=0.75, proto_keep=1.0, k=4)) == 101
    named = twice.add_column("row_id", [str(i) for i in range(202)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", filter.TieWarning)
        left = hp.d4(named, dedup_keep=0.5, proto_keep=1.0, k=4)
    assert len(np.unique(np.asarray(left["embedding"]), axis=0)) == 101


@pytest.mark.filterwarnings("ignore:.* one row only")
def test_order_of_rows_does_not_matter(rows):
    turned = rows.select(np.random.default_rng(1).permutation(101))
    assert set(hp.d4(turned)["row_id"]) == set(hp.d4(rows)["row_id"])


def test_bad_input(rows):
    with pytest.raises(ValueError, match=r"dedup_keep=75 is not above 0 and up to 1"):
        hp.d4(rows, dedup_keep=75)
    with pytest.raises(ValueError, match=r"proto_keep=0 is not above 0"):
        hp.d4(rows, dedup_keep=0.5, proto_keep=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", filter.TieWarning)
        with pytest.raises(ValueError, match=r"k=80 clusters, but 51 rows"):
            hp.d4(rows, dedup_keep=0.5, proto_keep=0.5, k=80)
    with pytest.raises(TypeError, match=r"d4 got a DatasetDict; choose a split, as in ds\['train'\]"):
        hp.d4(datasets.DatasetDict(train=rows))


def test_rows_alone_in_their_cluster(rows):
    with pytest.warns(UserWarning, match="1 cluster holds one row only"):
        lone = hp.d4(rows, k=4, dedup_keep=0.5, proto_keep=1.0)
    assert min(lone["ssl_proto"]) < 1e-6
    left = hp.d4(rows, k=4, dedup_keep=0.5, proto_keep=1.0, min_cluster_size=2)
    assert min(left["ssl_proto"]) > 1e-3
