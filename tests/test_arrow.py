import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value, concatenate_datasets

from hf_prune.data import arrow
from hf_prune.data.arrow import column_array, gather, matrix_column, numeric_column
from hf_prune.data.layout import merged


def on_disk(tmp_path, table, rows=10):
    path = str(tmp_path / "x.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return Dataset.from_file(path)


@pytest.fixture
def ds(tmp_path):
    n = 95
    rng = np.random.default_rng(0)
    vectors = rng.random((n, 4)).astype(np.float32)
    table = pa.table(
        {
            "id": np.arange(n),
            "t": [f"text {i}" * (i % 3) for i in range(n)],
            "big": [2**60 + i if i % 5 else None for i in range(n)],
            "list": pa.array(vectors.tolist(), pa.list_(pa.float32())),
            "fixed": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 4),
        }
    )
    return on_disk(tmp_path, table)


ORDERS = {
    "plain": None,
    "ascending": np.arange(0, 95, 3),
    "shuffled": np.random.default_rng(1).permutation(95),
    "repeated": np.array([5, 5, 90, 2, 2, 2]),
    "none": np.arange(0),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("name", ["t", "big", "fixed"])
def test_column_array_reads_through_the_mapping(ds, order, name, monkeypatch):
    monkeypatch.setattr(arrow, "SLAB_ROWS", 16)
    part = ds if order is None else ds.select(order)
    assert column_array(part, name).to_pylist() == part[name][:]


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_gather_is_take(ds, order, monkeypatch):
    monkeypatch.setattr(arrow, "SLAB_ROWS", 16)
    order = np.arange(95) if order is None else order
    table = ds.data.table
    got = pa.Table.from_batches(merged(gather(table, order), table.schema), schema=table.schema)
    got.validate(full=True)
    assert got.equals(table.take(pa.array(order)))


def test_missing_column_lists_those_there_are(ds):
    with pytest.raises(KeyError, match=r"no column 'score'.*\['big', 'fixed', 'id', 'list', 't'\]"):
        column_array(ds, "score")


def test_numeric_column_keeps_ints_exact(ds):
    values, null = numeric_column(ds, "big")
    assert values.dtype == np.int64 and values[1] == 2**60 + 1
    assert null.tolist() == [i % 5 == 0 for i in range(95)]
    flags, _ = numeric_column(Dataset.from_dict({"x": [True, None, False]}), "x")
    assert flags.tolist() == [1, 0, 0] and flags.dtype == np.uint8
    labels = Dataset.from_dict({"y": [0, 1]}, features=Features({"y": ClassLabel(names=["a", "b"])}))
    assert numeric_column(labels, "y")[0].tolist() == [0, 1]
    with pytest.raises(TypeError, match="column 't' has type string, not numbers"):
        numeric_column(ds, "t")
    with pytest.raises(TypeError, match=r"column 'list' has type list<.*float>, not numbers"):
        numeric_column(ds, "list")


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("name", ["list", "fixed"])
def test_matrix_column(ds, order, name):
    part = ds if order is None else ds.select(order)
    got = matrix_column(part, name)
    assert got.dtype == np.float32 and len(got) == len(part)
    if len(part):
        assert np.array_equal(got, np.array(part[name][:], np.float32))
        rows = np.random.default_rng(2).integers(0, len(part), 30)
        assert np.array_equal(matrix_column(part, name, rows), got[rows])


def test_matrix_column_is_zero_copy_on_one_chunk():
    flat = pa.array(np.arange(12, dtype=np.float64))
    for array in (
        pa.FixedSizeListArray.from_arrays(flat, 3),
        pa.array(np.arange(12.0).reshape(4, 3).tolist()),
    ):
        ds = Dataset(pa.table({"e": array}).slice(1))
        got = matrix_column(ds, "e")
        assert got.tolist() == np.arange(12.0).reshape(4, 3)[1:].tolist()
        child = ds.data.column("e").chunk(0).values.buffers()[1]
        assert child.address <= got.ctypes.data < child.address + child.size


def test_matrix_column_errors_name_the_row(tmp_path):
    rows = [[1.0, 2.0]] * 14 + [[1.0], None, [1.0, None]]
    ds = on_disk(tmp_path, pa.table({"e": pa.array(rows, pa.list_(pa.float32())), "i": [[1]] * 17}))
    with pytest.raises(ValueError, match="ragged: row 14 has 1 values, others have 2"):
        matrix_column(ds.select(range(15)), "e")
    with pytest.raises(ValueError, match="null in row 15"):
        matrix_column(ds, "e")
    with pytest.raises(ValueError, match="null in row 1;"):
        matrix_column(ds.select([0, 15]), "e")
    with pytest.raises(ValueError, match="null value in row 1;"):
        matrix_column(ds.select([0, 16]), "e")
    with pytest.raises(ValueError, match="row 2 has 1 values"):
        matrix_column(ds, "e", rows=np.array([13, 0, 14]))
    assert matrix_column(ds, "e", rows=np.array([13, 0])).shape == (2, 2)  # bad rows elsewhere do not matter
    with pytest.raises(TypeError, match=r"column 'i' has type list<.*int64>, not lists of floats"):
        matrix_column(ds, "i")


def test_columns_beside_one_another_have_other_chunks(ds):
    scores = Dataset.from_dict({"s": list(range(95))})
    both = concatenate_datasets([ds, scores], axis=1)
    table = both.data.table
    got = pa.Table.from_batches(gather(table, np.arange(1, 95, 2)), schema=table.schema)
    assert got["s"].to_pylist() == got["id"].to_pylist() == list(range(1, 95, 2))


def test_no_image_is_decoded():
    cells = [{"bytes": b"broken", "path": None}] * 3
    features = Features({"image": Image(), "s": Value("int64")})
    ds = Dataset.from_dict({"image": cells, "s": [1, 2, 3]}, features=features)
    assert column_array(ds.select([2, 0]), "image").to_pylist() == cells[:2]
