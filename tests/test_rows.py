import hashlib

import numpy as np
import pyarrow as pa
import pytest
from datasets import Array2D, Dataset, DatasetDict, Features, Image, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import python
from scipy import stats

from hf_prune.data.identity import check_unique, digests, occurrence, row_keys, seeded, uniform, with_row_id

COLUMNS = [
    ["a", "", None, "é", "x" * 5000],
    [b"a", None, b"", b"\x00"],
    [1, 2**62, None, -1],
    [1.5, None, -0.25, float("inf")],
    [[1.0, 2.0], [], None, [2.0]],
    [[1, None], [1, 0], [1], [None]],
    [["a", "b"], ["ab"], [], ["a", None], ["a", ""]],
    [[[1.0], [2.0]], [[1.0, 2.0]], [[]], []],
    [{"b": 1, "a": "x"}, None, {"b": 2, "a": "x"}],
    [True, False, None],
    [{"bytes": b"x", "path": None}, {"bytes": None, "path": "x"}],
]


@pytest.mark.parametrize("values", COLUMNS, ids=str)
def test_digests_same_from_list_arrow_and_dataset(values):
    want = digests(values)
    assert want.dtype == np.uint64 and len(set(want.tolist())) == len(values)
    ds = Dataset.from_dict({"x": values})
    order = np.random.default_rng(0).permutation(len(values))
    assert (row_keys(ds, "x") == want).all()
    assert (row_keys(ds.select(order), "x") == want[order]).all()
    assert (digests(ds[:]["x"]) == want).all()
    array = pa.array(values)
    assert (digests(pa.concat_arrays([array, array]).slice(1, len(array))) == np.roll(want, -1)).all()
    assert (digests(pa.chunked_array([array.slice(0, 1), array.slice(1)])) == want).all()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64", "float16", "float32", "float64", "bool"])
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 3), (5, 0)])
def test_digests_of_numpy_arrays(dtype, shape):
    x = (np.random.default_rng(1).random(shape) * 100).astype(dtype)
    want = digests(x.tolist())
    assert (digests(x) == want).all()
    if x.ndim == 1:
        assert (digests(pa.array(x)) == want).all()
    else:
        assert (digests(list(x)) == want).all()
    if x.ndim == 2 and x.size:
        ds = Dataset.from_dict({"x": x.tolist()}, features=Features({"x": List(Value(dtype), length=x.shape[1])}))
        assert (row_keys(ds, "x") == want).all()


def test_digests_small_and_large_ints_text_and_bytes():
    assert digests([1])[0] == digests(np.array([1], np.uint64))[0] == digests([True])[0]
    assert digests([2**63])[0] == digests(np.array([2**63], np.uint64))[0]
    assert digests(["é"])[0] == digests(["é".encode()])[0] == digests(np.array(["é"]))[0]
    assert digests(pa.array(["a"]).dictionary_encode())[0] == digests(["a"])[0]
    assert digests(pa.array([1.5, None, 2.5], pa.float32())).tolist() == digests([1.5, None, 2.5]).tolist()
    assert len(digests([])) == len(digests(np.empty((0, 3)))) == 0
    times = pa.array([1, 2, None], pa.timestamp("s"))
    assert (digests(times) == digests(times.cast(pa.timestamp("us")).to_pylist())).all()


def test_digests_of_array2d_and_images_read_undecoded():
    x = np.arange(12.0).reshape(2, 2, 3)
    ds = Dataset.from_dict({"x": x}, features=Features({"x": Array2D((2, 3), "float64")}))
    assert (row_keys(ds, "x") == digests(x)).all()
    ds = Dataset.from_dict({"x": [{"bytes": b"broken", "path": "p"}]}, features=Features({"x": Image()}))
    assert row_keys(ds, "x")[0] == digests([b"broken"])[0]


def test_digests_refuse_decoded_images_and_objects():
    from PIL import Image as Pillow

    with pytest.raises(TypeError, match=r"cast_column\(c, Image\(decode=False\)\)"):
        digests([None, Pillow.new("L", (1, 1))])
    with pytest.raises(TypeError, match="type object cannot be hashed"):
        digests([object()])
    with pytest.raises(TypeError, match="cannot be hashed; cast"):
        digests(pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.text(max_size=3)), max_size=4)), max_size=8))
def test_digests_tell_lists_apart(values):
    keys = digests(values)
    for i, a in enumerate(values):
        assert [bool(k) for k in keys == keys[i]] == [a == b for b in values]


def test_seeded_and_uniform_are_well_mixed():
    keys = np.arange(200_000, dtype=np.uint64)
    u, v = uniform(keys, 0), uniform(keys, 1)
    assert u.min() > 0 and u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert stats.kstest(uniform(keys << np.uint64(40), 7), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u, v)[0, 1]) < 0.01  # nearby seeds
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.01  # nearby keys
    per_seed = np.array([uniform(keys[:1], s)[0] for s in range(2000)])
    assert stats.kstest(per_seed, "uniform").pvalue > 1e-3
    assert (seeded(keys[::-1], 3) == seeded(keys, 3)[::-1]).all()
    assert len(np.unique(seeded(keys, 5))) == len(keys)
    flipped = seeded(keys, 0) ^ seeded(keys ^ np.uint64(1), 0)
    assert 31.5 < np.bitwise_count(flipped).mean() < 32.5  # avalanche
    assert (seeded(keys[:3], -1) == seeded(keys[:3], 2**64 - 1)).all()
    for bad in (True, 1.0, "0", None):
        with pytest.raises(TypeError, match="not an integer"):
            uniform(keys[:1], bad)


@given(st.lists(st.integers(0, 5)))
def test_occurrence_counts_earlier_ones(keys):
    want = [keys[:i].count(k) for i, k in enumerate(keys)]
    assert occurrence(np.array(keys, np.uint64)).tolist() == want


def test_check_unique():
    check_unique(["a", "b"])
    check_unique(pa.array([], pa.string()))
    with pytest.raises(ValueError, match=r"7 ids occur more than once: 0 \(2 times\), .*, \.\.\.; .*with_row_id"):
        check_unique(list(range(7)) * 2)


def test_row_ids_follow_content():
    ds = Dataset.from_dict({"t": ["a", "b", "a", None], "x": [1, 2, 1, None]})
    ids = with_row_id(ds)["row_id"][:]
    assert all(len(i) == 34 and i[32] == "-" for i in ids)
    assert ids[0][:32] == ids[2][:32] and ids[0].endswith("-0") and ids[2].endswith("-1")
    shuffled = with_row_id(ds.select([3, 0, 2, 1]))
    assert sorted(shuffled["row_id"][:]) == sorted(ids)
    assert shuffled._indices is not None and shuffled["t"][:] == ds.select([3, 0, 2, 1])["t"][:]
    assert with_row_id(ds.select_columns(["x", "t"]))["row_id"][:] == ids
    assert with_row_id(Dataset.from_dict({"t": ["1", None], "x": [None, "1"]}))["row_id"][:][0] not in ids
    doubled = with_row_id(ds.select([1, 1, 0]))
    assert doubled["x"][:] == [2, 2, 1] and [i[32:] for i in doubled["row_id"][:]] == ["-0", "-1", "-0"]


def test_row_ids_shapes_of_dataset():
    ds = Dataset.from_dict({"t": ["a", "b"]}, split="train").with_format("numpy", columns=["t"])
    out = with_row_id(ds, row_id="id")
    assert out.split == "train" and out.format["type"] == "numpy" and out.format["columns"] == ["t", "id"]
    both = with_row_id(DatasetDict(train=ds, test=ds.select([0])))
    assert both["train"][0]["row_id"] == both["test"][0]["row_id"]
    empty = with_row_id(ds.select([]))
    assert len(empty) == 0 and empty.features["row_id"] == Value("string")
    with pytest.raises(ValueError, match="has a column 't' already; .*remove_columns"):
        with_row_id(ds, row_id="t")


def test_row_ids_decode_no_image_and_ignore_its_path():
    features = Features({"image": Image()})
    cells = [
        {"bytes": b"broken", "path": "a"},
        {"bytes": b"broken", "path": "b"},
        {"bytes": None, "path": "b"},
    ]
    ids = with_row_id(Dataset.from_dict({"image": cells}, features=features)).data.column("row_id").to_pylist()
    assert ids[0][:32] == ids[1][:32] != ids[2][:32]


def test_row_ids_equal_in_another_process_and_map_hits_its_cache(tmp_path):
    code = """
import sys
from datasets import Dataset
from hf_prune.data.identity import with_row_id
ds = with_row_id(Dataset.from_file(sys.argv[1]))
print(ds._fingerprint, "".join(ds["row_id"][:]))
"""
    path = tmp_path / "x.arrow"
    table = pa.table({"t": [str(i % 50) for i in range(100)], "e": [[i, 2.5] for i in range(100)]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    outs = {python(code, path, env={"PYTHONHASHSEED": "1"}).stdout}
    ds = with_row_id(Dataset.from_file(str(path)))
    outs.add(f"{ds._fingerprint} {''.join(ds['row_id'][:])}\n")
    assert len(outs) == 1
    assert len(set(ds["row_id"][:])) == 100


def test_digest_values_are_pinned():
    values = ["a", None, ""]
    digest = hashlib.sha256(digests(values).tobytes() + digests([[1, 2]]).tobytes()).hexdigest()
    assert digest[:16] == "ca1e01ed9ea491f9"  # ids on disk and in caches depend on it


def test_ids_of_the_rows_own_columns():
    ds = Dataset.from_dict({"text": ["a", "b", "a"], "embedding": [[0.1], [0.2], [0.3]]})
    own = with_row_id(ds.select_columns("text"))
    assert with_row_id(ds, columns=["text"])["row_id"][:] == own["row_id"][:]
    assert with_row_id(ds)["row_id"][:] != own["row_id"][:]
    with pytest.raises(KeyError, match="reads column 'words'"):
        with_row_id(ds, columns=["words"])
    with pytest.raises(ValueError, match="nothing to tell rows apart"):
        with_row_id(ds, columns=[])
