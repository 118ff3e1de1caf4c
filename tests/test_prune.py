import errno
import inspect
import math
import os
import types
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import python
from scipy import stats

from hf_prune.columns import ScoreColumn
from hf_prune.data import files
from hf_prune.data import layout as _layout
from hf_prune.data.identity import digests, seeded, uniform, with_row_id
from hf_prune.prune.draw import METHODS, ccs
from hf_prune.prune.filter import (
    CalibrationWarning,
    ShortWarning,
    TieWarning,
    decide,
    filter_by_score,
    keep_mask,
    split_by_score,
)
from hf_prune.prune.request import PruneRules
from hf_prune.prune.sample import sample_by_score

quiet = pytest.mark.filterwarnings("ignore::UserWarning")


def kept(scores, **rule):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return np.flatnonzero(keep_mask(scores, **rule)).tolist()


def on_disk(path, n=2000, rows=100):
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "id": np.arange(n),
            "text": [f"text {i}" for i in range(n)],
            "label": rng.integers(0, 3, n),
            "score": rng.permutation(n).astype(np.float32),
        }
    )
    features = Features(
        id=Value("int64"),
        text=Value("string"),
        label=ClassLabel(names=["a", "b", "c"]),
        score=Value("float32"),
    )
    table = table.cast(features.arrow_schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return Dataset.from_file(str(path), split="train")


@pytest.fixture
def disk(tmp_path):
    return on_disk(tmp_path / "x.arrow")


@pytest.fixture
def small():
    return Dataset.from_dict({"s": [3.0, 1.0, 2.0, 5.0, 4.0], "g": ["a", "a", "b", "b", None], "c": [1, 1, 2, 2, 9]})


# ---- numbers worked out by hand


def test_floor_vector():
    scores, labels = -np.arange(12.0), [0] * 8 + [1] * 4
    assert kept(scores, rows=6, groups=labels, group_floor=0) == [0, 1, 2, 3, 4, 5]
    assert kept(scores, rows=6, groups=labels, group_floor=0.5) == [0, 1, 2, 3, 4, 8]
    assert kept(scores, rows=6, groups=labels, group_floor=1) == [0, 1, 2, 3, 8, 9]
    assert kept(scores, rows=6, groups=labels) == [0, 1, 2, 3, 8, 9]


def test_floor_is_exact():
    # in floats 22 * (15 / 22) floors to 14, and the last place would go to the other group's better row
    from hf_prune.prune.select import count_floors

    assert count_floors(15, 22, np.array([22]), Fraction(1)) == [15]
    assert count_floors(100, 1000, np.array([300, 700]), Fraction("0.1")) == [3, 7]


def test_count_rounds_half_up():
    for n, keep, k in [(10, 0.25, 3), (10, 0.05, 1), (7, 0.5, 4), (100, 0.29, 29), (3, 1.0, 3), (1, 0.5, 1)]:
        assert keep_mask(np.arange(n), keep=keep).sum() == k == math.floor(keep * n + 0.5)


def test_preferences():
    scores = [10, 40, 20, 50, 30]
    assert kept(scores, rows=2) == [1, 3]
    assert kept(scores, rows=2, prefer="low") == [0, 2]
    assert kept(scores, rows=1, prefer="middle") == [4]
    assert kept(scores, rows=2, prefer="middle") == [1, 4]
    assert kept(scores, rows=3, prefer="middle") == [1, 2, 4]
    assert kept([1, 2, 3, 4], rows=1, prefer="middle") == [2]
    assert kept([1.0, np.inf, -np.inf, 2.0], rows=2) == [1, 3]
    assert kept([1.0, np.inf, -np.inf, 2.0], rows=1, prefer="low") == [2]
    assert kept([True, False, True], rows=2) == [0, 2]


def test_threshold_is_inclusive_in_the_columns_type():
    assert kept(np.array([0.6, 0.7, 0.8], np.float32), threshold=0.7) == [1, 2]
    assert kept(np.array([0.6, 0.7, 0.8]), threshold=0.7, prefer="low") == [0, 1]
    assert kept([1, 2, 3], threshold=1.5) == [1, 2]
    assert kept([1, 2, 3], threshold=1.5, prefer="low") == [0]
    assert kept([1, 2, 3], threshold=9) == []


def test_big_ints_are_exact():
    top = 2**60
    scores = np.array([top, top + 1, -(2**63), 2**63 - 1])
    assert kept(scores, rows=2) == [1, 3]
    assert kept(scores, rows=1, prefer="low") == [2]
    assert kept(scores, threshold=top + 1) == [1, 3]
    assert kept([top, None, top + 1], rows=1, nulls="drop") == [2]
    assert kept(np.array([0, 2**64 - 1, 2**64 - 2], np.uint64), rows=2) == [1, 2]


def test_budget_is_a_prefix():
    scores, cost = [5, 4, 3, 2, 1], [10, 20, 5, 1, 1]
    assert kept(scores, budget=31, cost=cost) == [
        0,
        1,
    ]  # 5 does not fit; the cheap rows after it do not slip in
    assert kept(scores, budget=35, cost=cost) == [0, 1, 2]
    assert kept(scores, budget=1e9, cost=cost) == [0, 1, 2, 3, 4]
    assert kept(scores, budget=2.5, cost=np.ones(5) * 0.5, prefer="low") == [0, 1, 2, 3, 4]
    # half the cost is group 1's, so half the budget buys there first
    assert kept([9, 8, 7, 6], budget=4, cost=[1, 3, 2, 2], groups=[0, 0, 1, 1]) == [0, 2]
    assert kept([9, 8, 7, 6], budget=4, cost=[1, 3, 2, 2], groups=[0, 0, 1, 1], group_floor=0) == [0, 1]


def test_one_per_cluster():
    clusters = [1, 1, 2, None, None]
    assert kept([1, 2, 3, 4, 5], keep=0.8, one_per=clusters) == [1, 2, 3, 4]
    assert kept([1, 2, 3, 4, 5], keep=0.4, one_per=clusters) == [3, 4]
    assert kept([1, 2, 3, 4, 5], threshold=1, one_per=clusters, prefer="high") == [1, 2, 3, 4]
    assert kept([1, 2, 3, 4, 5], rows=1, one_per=[0, 0, 0, 0, 0], prefer="low") == [0]
    with pytest.warns(ShortWarning, match="only 4 of the 5 rows asked for"):
        assert keep_mask([1, 2, 3, 4, 5], rows=5, one_per=clusters).sum() == 4
    assert kept([1, 2, 3, 4, 5], keep=1.0, one_per=clusters) == [1, 2, 3, 4]  # all there are: nothing to warn of
    assert len(kept([7] * 6, rows=2, one_per=list("aabbcc"))) == 2
    assert len(kept([1, 2, 3, 4], rows=2, prefer="random", one_per=[0, 0, 1, 1])) == 2


def test_nulls():
    scores = [1.0, None, 3.0, float("nan"), 5.0]
    assert kept(scores, rows=3, nulls="keep") == [1, 3, 4]
    assert kept(scores, rows=2, nulls="drop") == [2, 4]
    assert kept(scores, keep=0.4, nulls="drop") == [2, 4]  # of five rows, not of three
    assert kept(scores, threshold=2, nulls="keep") == [1, 2, 3, 4]
    assert kept(scores, threshold=2, nulls="drop") == [2, 4]
    with pytest.warns(ShortWarning, match="only 3 of the 4"):
        assert keep_mask(scores, rows=4, nulls="drop").tolist() == [True, False, True, False, True]
    with pytest.raises(ValueError, match="null or NaN in 2 rows, first in row 1; pass nulls='drop'"):
        keep_mask(scores, rows=1)
    with pytest.raises(ValueError, match="'scores' holds no score at all: every one of its 2 rows"):
        keep_mask([None, None], rows=1, nulls="drop")
    with pytest.raises(ValueError, match="2 rows without score are more than the 1 to keep"):
        keep_mask(scores, rows=1, nulls="keep")
    with pytest.raises(ValueError, match="leave 0 places, but the floors of the groups need 1"):
        keep_mask(scores, rows=2, nulls="keep", groups=[0, 1, 0, 1, 0])
    assert kept(scores, rows=3, nulls="keep", groups=[0, 1, 0, 1, 0]) == [1, 3, 4]


# ---- ties


def test_ties_warn_and_are_not_cut_by_position():
    with pytest.warns(TieWarning, match="4 rows tie at the cut and 2 of them are kept") as caught:
        keep_mask([1, 2, 2, 2, 2, 3], rows=3)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kept([1, 2, 2, 3], rows=3) == [1, 2, 3]
        keep_mask([7, 7, 7], rows=1, prefer="random")
    with pytest.warns(TieWarning, match="3 rows tie at the cut and 2"):
        keep_mask([0, 1, 2, 2, 2, 3, 4], rows=2, prefer="middle")
    with pytest.warns(TieWarning, match="4 rows tie"):
        keep_mask([1, 1, 1, 1], rows=2, groups=[0, 0, 1, 1])
    with pytest.warns(TieWarning, match="5 rows tie at the cut and 2"):
        keep_mask([1] * 5, budget=2, cost=[1] * 5)


@quiet
def test_ties_are_balanced_over_sorted_classes():
    n, k = 50_000, 40_000
    labels = np.repeat(np.arange(10), n // 10)
    counts = np.random.default_rng(0).poisson(2, n)
    ids = [f"{label}/{i}" for i, label in enumerate(labels)]
    for rule in ({}, {"ids": ids}, {"prefer": "low"}, {"prefer": "middle"}):
        per_class = np.bincount(labels[keep_mask(counts, rows=k, **rule)])
        assert per_class.sum() == k
        assert np.abs(per_class - 4000).max() < 4 * math.sqrt(5000 * 0.8 * 0.2)
    per_class = np.bincount(labels[keep_mask(counts, rows=k, groups=labels)])
    assert (per_class == 4000).all()


@quiet
def test_seed_changes_ties_only():
    scores = np.repeat([0, 1, 2], 100)
    a, b = keep_mask(scores, rows=150, seed=0), keep_mask(scores, rows=150, seed=1)
    assert (a != b).any() and (a[scores != 1] == b[scores != 1]).all()
    assert (keep_mask(scores, rows=150, seed=0) == a).all()


# ---- a brute force


def brute(scores, k, prefer, seed, groups, beta, ids):
    keys = digests(ids) if ids is not None else np.arange(len(scores), dtype=np.uint64)
    tie = seeded(keys, seed).tolist()

    def order(rows):
        if prefer == "random":
            return sorted(rows, key=lambda i: tie[i])
        if prefer == "middle":
            up = sorted(rows, key=lambda i: (scores[i], tie[i]))
            mid = Fraction(len(up) - 1, 2)
            return [up[r] for r in sorted(range(len(up)), key=lambda r: (abs(r - mid), -r))]
        sign = -1 if prefer == "high" else 1
        return sorted(rows, key=lambda i: (sign * scores[i], tie[i]))

    n, taken = len(scores), []
    if groups is not None:
        for g in set(groups):
            rows = [i for i in range(n) if groups[i] == g]
            taken += order(rows)[: math.floor(Fraction(str(beta)) * k * len(rows) / n)]
    taken += [i for i in order([i for i in range(n) if i not in taken])][: k - len(taken)]
    return sorted(taken)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_mask_is_the_brute_force(data):
    n = data.draw(st.integers(1, 25))
    scores = data.draw(st.lists(st.sampled_from([0, 1, 2, 3, -7, 10**17, 10**17 + 1]), min_size=n, max_size=n))
    k = data.draw(st.integers(1, n))
    prefer = data.draw(st.sampled_from(["high", "low", "middle", "random"]))
    beta = data.draw(st.sampled_from([0, 0.1, 0.5, 0.9, 1]))
    groups = data.draw(st.none() | st.lists(st.sampled_from(["a", "b", None]), min_size=n, max_size=n))
    ids = [f"r{i}" for i in range(n)] if data.draw(st.booleans()) else None
    rule = {} if groups is None else {"groups": groups, "group_floor": beta}
    got = kept(scores, rows=k, prefer=prefer, seed=5, ids=ids, **rule)
    assert got == brute(scores, k, prefer, 5, groups, beta, ids)
    if ids is not None:  # the order of the rows does not matter
        order = data.draw(st.permutations(range(n)))
        rule = {} if groups is None else {"groups": [groups[i] for i in order], "group_floor": beta}
        again = kept([scores[i] for i in order], rows=k, prefer=prefer, seed=5, ids=[ids[i] for i in order], **rule)
        assert sorted(order[i] for i in again) == got


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_more_keeps_all_that_less_keeps(data):
    n = data.draw(st.integers(2, 30))
    scores = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    cost = data.draw(st.lists(st.sampled_from([0.1, 0.2, 0.7, 3.0]), min_size=n, max_size=n))
    prefer = data.draw(st.sampled_from(["high", "low", "middle", "random"]))
    ids = [f"r{i}" for i in range(n)]
    subsets = [kept(scores, rows=k, prefer=prefer) for k in range(1, n + 1)]
    assert [len(s) for s in subsets] == list(range(1, n + 1))
    budgets = [4.0, 6.0, 9.5, 100.0]
    bought = [kept(scores, budget=b, cost=cost, prefer=prefer, ids=ids) for b in budgets]
    for chain in (subsets, bought):
        assert all(set(a) <= set(b) for a, b in zip(chain, chain[1:], strict=False))
    assert all(sum(cost[i] for i in rows) <= b + 1e-9 for rows, b in zip(bought, budgets, strict=True))
    order = data.draw(st.permutations(range(n)))
    moved = [[x[i] for i in order] for x in (scores, cost, ids)]
    again = kept(moved[0], budget=6.0, cost=moved[1], prefer=prefer, ids=moved[2])
    assert sorted(order[i] for i in again) == bought[1]


# ---- datasets


@quiet
@pytest.mark.parametrize("parent", ["plain", "indexed"])
@pytest.mark.parametrize(
    "rule", [{"keep": 0.37}, {"rows": 1}, {"keep": 1.0}, {"keep": 0.5, "group_by": "label"}], ids=str
)
def test_layouts_agree_and_nothing_is_lost(disk, parent, rule):
    ds = disk.shuffle(seed=3) if parent == "indexed" else disk
    ds = ds.with_format("numpy", columns=["id", "score"])
    a = filter_by_score(ds, "score", **rule, layout="contiguous")
    b = filter_by_score(ds, "score", **rule, layout="indices")
    parts = split_by_score(ds, "score", **rule)
    assert a._indices is None or rule == {"keep": 1.0}
    assert a.features == b.features == ds.features and a.split == b.split == ds.split
    assert a.format == b.format == ds.format
    want = ds.with_format(None).to_list()
    rows = a.with_format(None).to_list()
    assert rows == b.with_format(None).to_list() == parts["kept"].with_format(None).to_list()
    assert rows == [row for row in want if row in rows]  # dataset order
    dropped = parts["dropped"].with_format(None).to_list()
    assert sorted(r["id"] for r in rows + dropped) == list(range(len(ds)))
    assert dropped == [row for row in want if row in dropped]
    assert parts["dropped"].features == ds.features


def test_one_range_needs_no_mapping(small):
    out = filter_by_score(small.select([1, 2, 0, 4, 3]), "s", rows=2, layout="indices")
    assert out["s"][:] == [4.0, 5.0]
    plain = Dataset.from_dict({"s": [1, 2, 3]})
    assert filter_by_score(plain, "s", rows=2, layout="indices")._indices is None
    assert len(filter_by_score(plain, "s", threshold=9)) == 0


def test_shuffled_rows_with_ids_give_the_same_subset(disk):
    ds = with_row_id(disk.map(lambda r: {"coarse": int(r["score"]) // 300}))
    with pytest.warns(TieWarning):
        a = filter_by_score(ds, "coarse", keep=0.5)
        b = filter_by_score(ds.shuffle(seed=1), "coarse", keep=0.5)
        c = filter_by_score(ds.shuffle(seed=1), "coarse", keep=0.5, row_id=None)
    assert sorted(a["id"][:]) == sorted(b["id"][:]) != sorted(c["id"][:])
    doubled = Dataset.from_dict({"row_id": ["x", "x", "y"], "s": [1, 1, 1]})
    with pytest.raises(ValueError, match=r"'x' \(2 times\)"):
        filter_by_score(doubled, "s", rows=1)


def test_groups_costs_and_clusters_are_columns(small):
    assert filter_by_score(small, "s", rows=3, group_by="g")["s"][:] == [3.0, 5.0, 4.0]
    assert filter_by_score(small, "s", rows=3, group_by=["g", "c"], group_floor=0.0)["s"][:] == [
        3.0,
        5.0,
        4.0,
    ]
    assert filter_by_score(small, "s", budget=11, cost="c")["s"][:] == [5.0, 4.0]
    assert filter_by_score(small, "s", rows=2, one_per="c", prefer="low")["s"][:] == [1.0, 2.0]


def test_images_are_not_decoded():
    features = Features(image=Image(), s=Value("float64"))
    cells = [{"bytes": b"broken", "path": None}] * 6
    ds = Dataset.from_dict({"image": cells, "s": [1.0, 5.0, 2.0, 4.0, 3.0, 0.0]}, features=features)
    for layout in ("contiguous", "indices"):
        out = filter_by_score(ds, "s", keep=0.5, layout=layout)
        assert out.features == features and out.remove_columns("image")["s"][:] == [5.0, 4.0, 3.0]


def test_auto_copies_short_rows_and_maps_long_ones(tmp_path):
    rows = {"s": [1, 2, 1, 2], "t": ["x" * 9000] * 4}
    assert filter_by_score(Dataset.from_dict(rows), "s", rows=2)._indices is not None
    assert filter_by_score(Dataset.from_dict({**rows, "t": ["x"] * 4}), "s", rows=2)._indices is None


def test_large_rows_in_memory_go_to_a_file(monkeypatch, small):
    monkeypatch.setattr(_layout, "IN_MEMORY_BYTES", 10)
    out = filter_by_score(small, "s", rows=3)
    assert out.cache_files and out["s"][:] == [3.0, 5.0, 4.0]


def test_dataset_dict(small):
    both = DatasetDict(train=small, test=small)
    out = filter_by_score(both, "s", rows=3)
    assert type(out) is DatasetDict and len(out["train"]) == 3 and out["test"] is small
    assert {len(part) for part in filter_by_score(both, "s", rows=3, splits="all").values()} == {3}
    assert len(filter_by_score(both, "s", rows=3, splits="test")["train"]) == 5
    assert len(sample_by_score(both, "s", rows=3, splits=["test"])["test"]) == 3
    assert len(split_by_score(both, "s", rows=3)["dropped"]) == 2
    with pytest.raises(KeyError, match=r"no split 'train'; there are \['test'\]"):
        filter_by_score(DatasetDict(test=small), "s", rows=3)
    with pytest.raises(KeyError, match=r"no split 'dev'; there are \['train', 'test'\]"):
        filter_by_score(both, "s", rows=3, splits=["train", "dev"])
    with pytest.raises(ValueError, match="is for a DatasetDict, not a Dataset"):
        filter_by_score(small, "s", rows=3, splits="train")
    with pytest.raises(ValueError, match="one split at a time"):
        split_by_score(both, "s", rows=3, splits="all")


def test_stream(disk):
    stream = disk.to_iterable_dataset()
    want = filter_by_score(disk, "score", threshold=1500.0)["id"][:]
    assert [row["id"] for row in filter_by_score(stream, "score", threshold=1500)] == want
    f32 = Dataset.from_dict({"s": [0.6, 0.7, None]}, features=Features(s=Value("float32"))).to_iterable_dataset()
    assert len(list(filter_by_score(f32, "s", threshold=0.7, nulls="drop"))) == 1
    assert len(list(filter_by_score(f32, "s", threshold=0.7, prefer="low", nulls="keep"))) == 3
    with pytest.raises(ValueError, match="null or NaN in the stream"):
        list(filter_by_score(f32, "s", threshold=0.7))
    with pytest.raises(ValueError, match="needs the whole column; use threshold=, or materialise"):
        filter_by_score(stream, "score", keep=0.5)
    with pytest.raises(ValueError, match="one_per='label' needs the whole column"):
        filter_by_score(stream, "score", threshold=1, one_per="label")
    with pytest.raises(KeyError, match="no column 'x'"):
        filter_by_score(stream, "x", threshold=1)
    with pytest.raises(TypeError, match="cannot be split"):
        split_by_score(stream, "score", threshold=1)
    with pytest.raises(TypeError, match="needs the whole column"):
        sample_by_score(stream, "score", rows=1)


def test_calibration(small):
    record = types.SimpleNamespace(name="s", calibrated_keep=0.8)
    scorer = types.SimpleNamespace(describe=lambda: record, name="other")
    for column in (record, scorer):
        assert len(filter_by_score(small, column, keep=0.8)) == 4
        with pytest.warns(CalibrationWarning, match="keep=0.8 only; 0.4 is kept"):
            filter_by_score(small, column, keep=0.4)
        assert len(filter_by_score(small, column, keep=0.4, calibrated_keep=0.41)) == 2
    with pytest.warns(CalibrationWarning):
        filter_by_score(small, record, rows=2)
    with pytest.raises(TypeError, match="neither a column name"):
        filter_by_score(small, 3, keep=0.4)


# ---- sampling


def test_gumbel_draws_by_weight():
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    keys = np.arange(4, dtype=np.uint64)
    for method, scores in (("gumbel", np.log(weights)), ("proportional", weights)):
        draws = [METHODS[method](scores, uniform(keys, seed), 1).argmax() for seed in range(3000)]
        assert stats.chisquare(np.bincount(draws, minlength=4), 300 * weights).pvalue > 1e-3
        # without replacement: the pair {0, 1} comes in either order
        pairs = [METHODS[method](scores, uniform(keys, seed), 2)[:2].all() for seed in range(3000)]
        assert abs(np.mean(pairs) - (0.1 * 2 / 9 + 0.2 * 1 / 8)) < 4 * math.sqrt(0.05 / 3000)


@quiet
def test_samples_follow_ids_and_floors(disk):
    ds = with_row_id(disk.map(lambda r: {"w": r["score"] / 500}))
    for method in ("gumbel", "proportional"):
        a = sample_by_score(ds, "w", keep=0.1, method=method, seed=2)
        b = sample_by_score(ds.shuffle(seed=9), "w", keep=0.1, method=method, seed=2)
        assert sorted(a["id"][:]) == sorted(b["id"][:]) and len(a) == 200 and a["id"][:] == sorted(a["id"][:])
        assert a["id"][:] != sample_by_score(ds, "w", keep=0.1, method=method, seed=3)["id"][:]
        whole = np.bincount(ds["label"][:])
        share = np.bincount(sample_by_score(ds, "w", keep=0.1, method=method, group_by="label")["label"][:])
        assert (share >= np.floor(0.1 * whole)).all()


def test_sample_errors(small):
    with pytest.raises(ValueError, match="method='ccs2' is not known; choose one of 'gumbel', 'proportional'"):
        sample_by_score(small, "s", rows=1, method="ccs2")
    bad = Dataset.from_dict({"s": [-1.0, 2.0], "z": [0.0, 1.0], "l": [-np.inf, 0.0], "n": [None, 1.0]})
    with pytest.raises(ValueError, match="finite scores >= 0, and 1 are not"):
        sample_by_score(bad, "s", rows=1, method="proportional")
    with pytest.raises(ValueError, match="only 1 rows have a score above 0, and 2 are wanted"):
        sample_by_score(bad, "z", rows=2, method="proportional")
    with pytest.raises(ValueError, match="only 1 rows have a score above -inf"):
        sample_by_score(bad, "l", rows=2)
    with pytest.raises(ValueError, match="null or NaN in 1 rows"):
        sample_by_score(bad, "n", rows=2)
    assert len(sample_by_score(bad, "n", rows=1, nulls="drop")) == 1
    assert sample_by_score(bad, "n", rows=1, nulls="keep")["n"][:] == [None]


# ---- bad arguments

BAD = [
    ({}, ValueError, "exactly one of keep, rows, threshold and budget .* none was given"),
    ({"keep": 0.5, "rows": 2}, ValueError, "keep and rows were given"),
    ({"keep": 0}, ValueError, "keep=0 is not a fraction; use 0 < keep <= 1"),
    ({"keep": 3.0}, ValueError, r"keep=3.0 is not a fraction; .* or rows=3"),
    ({"keep": -0.1}, ValueError, "not a fraction"),
    ({"keep": math.nan}, ValueError, "keep is NaN"),
    ({"keep": True}, TypeError, "keep=True is not a number"),
    ({"keep": "half"}, TypeError, "keep='half' is not a number"),
    ({"keep": 0.05}, ValueError, "keep=0.05 of 5 rows is no row at all; use rows=1"),
    ({"rows": 6}, ValueError, "rows=6 is more than the 5 there are; use rows=5"),
    ({"rows": 0}, ValueError, "rows=0 keeps nothing"),
    ({"rows": 2.0}, TypeError, "rows=2.0 is not a whole number"),
    ({"rows": True}, TypeError, "rows=True is not a number"),
    ({"threshold": math.nan}, ValueError, "threshold is NaN"),
    ({"threshold": 1, "prefer": "middle"}, ValueError, "threshold has no side under prefer='middle'"),
    ({"threshold": 1, "prefer": "random"}, ValueError, "threshold has no side under prefer='random'"),
    ({"threshold": 1, "group_by": "g"}, ValueError, "leaves no floor to group_by"),
    ({"budget": 3}, ValueError, "budget=3 needs cost"),
    ({"budget": -3, "cost": "c"}, ValueError, "give a positive, finite cost"),
    (
        {"budget": 0.5, "cost": "c"},
        ValueError,
        "budget=0.5 does not buy the best row; .* cheapest row costs 1",
    ),
    ({"rows": 1, "cost": "c"}, ValueError, "cost counts only against a budget; give budget in place of rows"),
    ({"budget": 3, "cost": "neg"}, ValueError, "cost 'neg' is -1 in row 1; a cost must be finite"),
    ({"budget": 3, "cost": "hole"}, ValueError, "cost 'hole' is null in row 1"),
    ({"rows": 1, "prefer": "best"}, ValueError, "prefer='best' is not known; choose one of 'high', 'low'"),
    ({"rows": 1, "nulls": "skip"}, ValueError, "nulls='skip' is not known"),
    ({"rows": 1, "layout": "flat"}, ValueError, "layout='flat' is not known"),
    ({"rows": 1, "seed": 1.5}, TypeError, "seed=1.5 is not an integer"),
    ({"rows": 1, "group_floor": 0.5}, ValueError, "group_floor=0.5 needs group_by"),
    ({"rows": 1, "group_by": "g", "group_floor": 1.5}, ValueError, "group_floor=1.5 is no share"),
    ({"rows": 1, "group_by": "g", "group_floor": math.nan}, ValueError, "group_floor is NaN"),
    ({"rows": 1, "group_by": []}, ValueError, "names no column"),
    ({"rows": 1, "group_by": "v"}, TypeError, "groups cannot be of type list"),
    ({"rows": 1, "group_by": "h"}, KeyError, "no column 'h', there are .*'g'"),
    ({"rows": 1, "one_per": "h"}, KeyError, "no column 'h'"),
    ({"budget": 1, "cost": "h"}, KeyError, "no column 'h'"),
    ({"rows": 1, "row_id": "h"}, KeyError, "no column 'h'"),
    ({"rows": 1, "column": "h"}, KeyError, "no column 'h'"),
    ({"rows": 1, "column": "g"}, TypeError, "column 'g' has type string, not numbers"),
    ({"rows": 1, "column": "v"}, TypeError, "column 'v' has type list<.*>, not numbers"),
    ({"rows": 1, "column": "none"}, ValueError, "'none' holds no score at all: every one of its 5 rows"),
]


@pytest.mark.parametrize(("rule", "error", "message"), BAD, ids=[str(b[0]) for b in BAD])
def test_bad_arguments(small, rule, error, message):
    ds = small.add_column("neg", [1, -1, 1, 1, 1]).add_column("hole", [1, None, 1, 1, 1])
    ds = ds.add_column("v", [[1.0]] * 5).add_column("none", [None] * 5)
    rule = {"column": "s", **rule}
    with pytest.raises(error, match=message):
        filter_by_score(ds, **rule)
    with pytest.raises(error, match=message):
        split_by_score(ds, **rule)


def test_other_bad_inputs(small):
    with pytest.raises(ValueError, match="'s' has no rows"):
        filter_by_score(small.select([]), "s", keep=0.5)
    with pytest.raises(TypeError, match="ds is a list; give a Dataset"):
        filter_by_score([1], "s", keep=0.5)
    with pytest.raises(ValueError, match=r"scores has shape \(2, 2\)"):
        keep_mask(np.ones((2, 2)), rows=1)
    with pytest.raises(ValueError, match="groups has 2 rows and scores has 3"):
        keep_mask([1, 2, 3], rows=1, groups=[0, 1])
    with pytest.raises(ValueError, match=r"'a' \(2 times\)"):
        keep_mask([1, 1, 1], rows=1, ids=["a", "b", "a"])


# ---- one request


def test_the_keywords_of_all_verbs_are_those_of_filter_by_score():
    shown = list(inspect.signature(filter_by_score).parameters)
    rules = [name for name in shown if name not in ("ds", "column", "splits", "layout")]
    assert list(PruneRules.__annotations__) == rules
    ours = list(inspect.signature(keep_mask).parameters)
    # arrays in place of columns: group_by is groups, row_id is ids
    assert [{"groups": "group_by", "ids": "row_id"}.get(name, name) for name in ours] == [
        "scores", *(name for name in rules if name != "calibrated_keep"),
    ]  # fmt: skip


@quiet
def test_both_sides_are_what_filter_keeps(small):
    for column in ("s", ScoreColumn("s")):
        kept = filter_by_score(small, column, keep=0.5, group_by="g")
        mask = decide(small, column, keep=0.5, group_by="g")
        assert mask.dtype == bool and small.select(np.flatnonzero(mask))[:] == kept[:]


@pytest.mark.parametrize("verb", [split_by_score, decide])
def test_a_keyword_that_there_is_not_is_guessed(small, verb):
    with pytest.raises(TypeError, match=r"no argument 'group'; did you mean 'group_by'\? There are keep, rows, "):
        verb(small, "s", rows=1, group="g")
    with pytest.raises(TypeError, match=f"{verb.__name__} has no argument 'x'; there are keep"):
        verb(small, "s", rows=1, x=1)


# ---- files


DOUBLE = """
from pathlib import Path
from datasets import Dataset
from hf_prune.prune.filter import filter_by_score

def double(batch):
    with Path(__file__).with_name("calls").open("a") as file:
        file.write("x")
    return {"y": [2 * s for s in batch["score"]]}

def run(path):
    ds = filter_by_score(Dataset.from_file(path, split="train"), "score", keep=0.5)
    return ds._fingerprint, len(ds.map(double, batched=True, batch_size=5000))
"""


def test_map_on_pruned_rows_hits_its_cache_in_another_process(disk, tmp_path, monkeypatch):
    (tmp_path / "doubling.py").write_text(DOUBLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import doubling

    path = disk.cache_files[0]["filename"]
    here = doubling.run(path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import doubling; print(doubling.run({path!r}))"
    child = python(code, env={"PYTHONHASHSEED": "7"})
    assert child.stdout.strip() == str(here) and here[1] == 1000
    assert (tmp_path / "calls").read_text() == "x"


def test_a_complete_copy_is_used_and_a_broken_one_redone(disk, monkeypatch):
    first = filter_by_score(disk, "score", keep=0.5)
    file = Path(first.cache_files[0]["filename"])
    assert file.parent == Path(disk.cache_files[0]["filename"]).parent
    before, ids = file.stat().st_mtime_ns, first["id"][:]
    assert filter_by_score(disk, "score", keep=0.5)["id"][:] == ids and file.stat().st_mtime_ns == before
    whole = file.read_bytes()
    for part in (whole[: len(whole) // 2], b"", b"not arrow at all"):
        file.unlink()  # the first dataset still maps the old file
        file.write_bytes(part)
        assert filter_by_score(disk, "score", keep=0.5)["id"][:] == ids
        assert file.read_bytes() == whole
    assert [p.name for p in file.parent.iterdir() if "tmp" in p.name] == []


def test_without_caching_nothing_lies_beside_the_parent(disk):
    import datasets

    datasets.disable_caching()
    try:
        out = filter_by_score(disk, "score", keep=0.5)
    finally:
        datasets.enable_caching()
    folder = Path(disk.cache_files[0]["filename"]).parent
    assert len(out) == 1000 and [p.name for p in folder.iterdir()] == ["x.arrow"]


def test_full_disk(disk, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match='no space left in .*layout="indices"') as caught:
        filter_by_score(disk, "score", keep=0.5)
    assert caught.value.errno == errno.ENOSPC
    assert [p.name for p in Path(disk.cache_files[0]["filename"]).parent.iterdir()] == ["x.arrow"]
    assert len(filter_by_score(disk, "score", keep=0.5, layout="indices")) == 1000


def test_no_permission(disk, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.pa, "OSFile", refused)
    with pytest.raises(PermissionError, match='is not writable; make it so, or pass layout="indices"'):
        filter_by_score(disk, "score", keep=0.5)


def test_search_indexes_are_refused(small, monkeypatch):
    monkeypatch.setattr(small, "list_indexes", lambda: ["v"])
    with pytest.raises(ValueError, match=r"search indexes \['v'\]; drop_index"):
        filter_by_score(small, "s", rows=2)


def test_no_torch():
    code = "import sys, hf_prune.prune.filter, hf_prune.data.identity as _; "
    code += "print(sorted({'torch', 'datasets'} & set(sys.modules)))"
    assert python(code).stdout == "[]\n"


@quiet
def test_memory_a_row():
    import tracemalloc

    n = 200_000
    scores = np.random.default_rng(0).random(n)
    for limit, rule in ((100, {}), (100, {"prefer": "middle"}), (150, {"groups": np.arange(n) % 7})):
        tracemalloc.start()
        keep_mask(scores, keep=0.5, **rule)
        peak = tracemalloc.get_traced_memory()[1] / n
        tracemalloc.stop()
        assert peak < limit, f"{peak:.0f} bytes a row"


# ---- windows: the best are passed over


@quiet
@given(st.integers(1, 60), st.floats(0, 0.9), st.floats(0.05, 1), st.integers(0, 3), st.sampled_from(["high", "low"]))
@settings(max_examples=60, deadline=None)
def test_offset_is_a_window_of_the_order(n, offset, keep, levels, prefer):
    scores = np.random.default_rng(n).integers(0, 1 + 5**levels, n)
    if offset + keep > 1 or math.floor(keep * n + 0.5) == 0:
        return
    k = math.floor(keep * n + 0.5)
    d = min(math.floor(offset * n + 0.5), n - k)
    sign = -1 if prefer == "high" else 1
    order = np.lexsort((seeded(np.arange(n, dtype=np.uint64), 0), sign * scores))
    assert kept(scores, keep=keep, offset=offset, prefer=prefer) == sorted(order[d : d + k].tolist())


def test_offset_by_group_passes_over_each_groups_own():
    scores, labels = [9, 8, 7, 6, 3, 2, 1, 0], [0] * 4 + [1] * 4
    assert kept(scores, rows=4, offset=0.25, groups=labels) == [1, 2, 5, 6]
    assert kept(scores, rows=4, offset=0.25, groups=labels, group_floor=0) == [2, 3, 4, 5]


def test_offset_with_budget_clusters_and_nulls():
    assert kept([5, 4, 3, 2, 1], budget=2, cost=[1] * 5, offset=0.2) == [1, 2]
    assert kept([5, 4, 3, 2, 1], rows=2, one_per=[0, 0, 1, 2, 3], offset=0.2) == [2, 3]
    assert kept([None, 4, 3, 2, 1], rows=3, offset=0.2, nulls="keep") == [0, 2, 3]
    assert kept([None, 4, 3, 2, 1], rows=2, offset=0.2, nulls="drop") == [2, 3]


def test_offset_in_the_dataset_functions(small):
    assert filter_by_score(small, "s", keep=0.4, offset=0.2)["s"][:] == [3.0, 4.0]
    both = split_by_score(small, "s", rows=2, offset=0.2)
    assert both["kept"]["s"][:] == [3.0, 4.0] and both["dropped"]["s"][:] == [1.0, 2.0, 5.0]


def test_offset_warns_of_ties_at_both_ends():
    with pytest.warns(TieWarning) as seen:
        keep_mask([1, 1, 1, 0, 0, 0], rows=2, offset=1 / 3)
    assert len(seen) == 2


@pytest.mark.parametrize(
    "rule, message",
    [
        ({"keep": 0.6, "offset": 0.5}, r"offset=0.5 and keep=0.6 are more than the whole; use keep=0.5 or less"),
        ({"rows": 5, "offset": 0.5}, r"offset=0.5 passes over 3 of 6 rows, which leaves 3: not rows=5"),
        ({"keep": 0.5, "offset": 1.0}, r"offset=1.0 is not a fraction; use 0 <= offset < 1"),
        ({"keep": 0.5, "offset": -0.1}, r"offset=-0.1 is not a fraction"),
        ({"threshold": 0.5, "offset": 0.1}, r"nothing for offset to pass over; use keep or rows"),
        ({"keep": 0.5, "offset": 0.1, "prefer": "middle"}, r"prefer='middle' has no best end"),
        ({"keep": 0.5, "offset": 0.1, "prefer": "random"}, r"prefer='random' has no best end"),
    ],
)
def test_bad_offsets(rule, message):
    with pytest.raises(ValueError, match=message):
        keep_mask(np.arange(6), **rule)


# ---- coverage-centric: strata of the score's range

STRATA = np.array([0, 0.1, 0.15, 0.2, 0.3, 0.35, 0.5, 0.55, 0.9, 1])


@pytest.mark.parametrize("k, budget", [(3, [1, 0, 1, 1]), (6, [2, 1, 1, 2]), (8, [2, 2, 2, 2]), (10, [4, 2, 2, 2])])
def test_ccs_vectors(k, budget):
    mask = ccs(STRATA, np.random.default_rng(0).random(10), k, strata=4)
    stratum = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3, 3])
    assert np.bincount(stratum[mask], minlength=4).tolist() == budget


def test_ccs_draws_evenly_within_a_stratum():
    drawn = sum(ccs(STRATA, np.random.default_rng(i).random(10), 6, strata=4) for i in range(2000))
    assert drawn[:4] == pytest.approx(1000, abs=120) and drawn[8:] == pytest.approx(2000)


def test_ccs_of_equal_scores_and_of_none():
    assert ccs(np.ones(5), np.arange(1, 6) / 6, 2).tolist() == [True, True, False, False, False]
    assert ccs(np.zeros(0), np.zeros(0), 0).tolist() == []


def test_ccs_knows_rows_by_their_ids():
    rng = np.random.default_rng(0)
    ds = Dataset.from_dict({"row_id": [f"r{i}" for i in range(200)], "s": rng.exponential(size=200).tolist()})
    turned = ds.select(rng.permutation(200))
    how = {"keep": 0.3, "method": "ccs", "beta": 0.1, "hard_end": "high"}
    one, two = (sample_by_score(d, "s", **how) for d in (ds, turned))
    assert len(one) == 60 and set(one["row_id"]) == set(two["row_id"])
    assert set(one["row_id"]) != set(sample_by_score(ds, "s", seed=1, **how)["row_id"])
    cut = np.sort(ds["s"])[-20]
    assert max(one["s"]) < cut
    # thin strata are kept whole: the largest of what is left stays
    assert max(one["s"]) == np.sort(ds["s"])[-21]


def test_ccs_drops_by_another_column():
    ds = Dataset.from_dict({"s": np.arange(10.0).tolist(), "margin": [5, 4, 3, 2, 1, -9, -8, 7, 8, 9]})
    left = sample_by_score(ds, "s", rows=8, method="ccs", beta=0.2, hardness="margin", hard_end="low")
    assert left["s"][:] == [0, 1, 2, 3, 4, 7, 8, 9]


def test_ccs_by_group():
    ds = Dataset.from_dict({"s": [float(i) for i in range(40)], "g": ["a"] * 20 + ["b"] * 20})
    left = sample_by_score(ds, "s", rows=20, method="ccs", beta=0.1, hard_end="high", group_by="g")
    assert left["g"][:] == ["a"] * 10 + ["b"] * 10
    assert not {18.0, 19.0, 38.0, 39.0} & set(left["s"])


@pytest.mark.parametrize(
    "how, message",
    [
        ({"beta": 0.1}, r"beta is an option of method='ccs', not of 'gumbel'"),
        ({"method": "ccs", "beta": 0.1}, r"hard_end=None does not say which they are; use 'high'"),
        ({"method": "ccs", "beta": 1.0, "hard_end": "low"}, r"beta=1.0 is not a fraction; use 0 <= beta < 1"),
        ({"method": "ccs", "beta": 0.6, "hard_end": "low"}, r"beta=0.6 and keep=0.5 are more than the whole"),
        ({"method": "ccs", "hardness": "c"}, r"hardness says what beta drops, and beta=None drops nothing"),
        ({"method": "ccs", "strata": 0}, r"strata=0 is no whole number from 1 up"),
    ],
)
def test_bad_ccs_options(how, message, small):
    with pytest.raises(ValueError, match=message):
        sample_by_score(small, "s", keep=0.5, **how)


def test_bad_ccs_scores(small):
    with pytest.raises(ValueError, match=r"beta=0.4 passes over 2 of 5 rows, which leaves 3: not rows=4"):
        sample_by_score(small, "s", rows=4, method="ccs", beta=0.4, hard_end="low")
    with pytest.raises(KeyError, match="no column 'margin'"):
        sample_by_score(small, "s", rows=2, method="ccs", beta=0.4, hard_end="low", hardness="margin")
    endless = small.remove_columns("s").add_column("s", [0.0, 1.0, math.inf, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"divides the range of the scores, and 1 are infinite \(one is inf\)"):
        sample_by_score(endless, "s", rows=2, method="ccs")


def test_a_sample_without_ids_is_drawn_by_content():
    """Another order of the rows gives the same sample; copies do not share their luck."""
    rng = np.random.default_rng(0)
    ds = Dataset.from_dict({"x": [f"row {i}" for i in range(400)], "s": rng.normal(size=400)})
    other = ds.select(rng.permutation(400))
    for method in ("gumbel", "proportional"):
        scored = ds if method == "gumbel" else ds.map(lambda row: {"s": abs(row["s"])})
        moved = other if method == "gumbel" else other.map(lambda row: {"s": abs(row["s"])})
        kept = sample_by_score(scored, "s", keep=0.25, method=method, seed=3)
        assert sorted(kept["x"][:]) == sorted(sample_by_score(moved, "s", keep=0.25, method=method, seed=3)["x"][:])
    copies = Dataset.from_dict({"x": ["same"] * 200, "s": [1.0] * 200})
    assert len(sample_by_score(copies, "s", keep=0.5, seed=1)) == 100


def test_masks_of_tensors_and_series():
    import pandas as pd
    import torch

    scores = [3.0, 1.0, 2.0]
    given = [
        torch.tensor(scores),
        torch.tensor(scores).bfloat16(),
        torch.tensor(scores, requires_grad=True),
        [torch.tensor(s) for s in scores],
        pd.Series(scores),
        tuple(scores),
    ]
    for scores_ in given:
        assert kept(scores_, rows=2, groups=torch.tensor([0, 0, 1])) == [0, 2]
    assert kept(pd.Series([1, None, 2], dtype="Int64"), rows=1, nulls="drop") == [2]
    with pytest.raises(ValueError, match="one number a row is needed"):
        kept(torch.zeros(2, 2), rows=1)


@pytest.mark.parametrize(
    "more, error, match",
    [
        ({"scores": [1, "a", 2]}, TypeError, "scores: values of type int are no column"),
        ({"scores": [2**70, 1, 2]}, TypeError, "scores: values of type int are no column"),
        ({"groups": [1, "a", None]}, TypeError, "groups: values of type int are no column"),
        ({"groups": ["a", "\ud800", "b"]}, ValueError, "groups: row 1 of this batch holds .*half of a surrogate pair"),
        ({"ids": ["a", "b", "\udfff"]}, ValueError, "ids: row 2 of this batch holds .*half of a surrogate pair"),
    ],
)
def test_values_that_are_no_column_are_told_by_name(more, error, match):
    with pytest.raises(error, match=match):
        kept(**{"scores": [1.0, 1.0, 2.0], "rows": 2, **more})


@pytest.mark.parametrize("kind", [None, "numpy", "torch", "arrow", "pandas"])
def test_streams_of_every_format_are_filtered_and_keep_it(kind):
    ds = Dataset.from_dict({"x": list(range(6)), "score": [0.5, 2.0, -1.0, 3.0, 0.0, 1.0]})
    stream = ds.to_iterable_dataset(num_shards=2).with_format(kind)
    found = filter_by_score(stream, "score", threshold=1.0)
    assert [row["x"] for row in found.with_format(None)] == [1, 3, 5]
    assert isinstance(next(iter(found)), type(next(iter(stream))))
    assert hasattr(next(iter(found))["x"], "detach") == (kind == "torch")


def test_a_sample_that_no_row_can_be_in_is_told_without_a_number_of_rows():
    with pytest.raises(ValueError, match="only 0 rows have a score above 0, and 1 are wanted; choose another score"):
        sample_by_score(Dataset.from_dict({"s": [0.0, 0.0]}), "s", rows=1, method="proportional")
