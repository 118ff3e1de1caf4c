import gzip
import io
import logging
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyarrow import csv

from hf_prune.share.released import IMAGENET_ROWS, read_released_scores

IMAGES = ["n01440764/n01440764_10026.JPEG", "n01440764/n01440764_10027.JPEG", "n01443537/n01443537_2.JPEG"]
KEYS = ["n01440764_10026", "n01440764_10027", "n01443537_2"]


@pytest.fixture
def written(tmp_path):
    def write(text, name="some-metric.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def few(path, **more):
    """Read; a small file of ImageNet names is a part of the set, and says so."""
    with pytest.warns(UserWarning, match="rows; ImageNet-1K train has 1,281,167"):
        return read_released_scores(path, **more)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["", "file,influence"])
def test_images_and_scores(written, delimiter, header):
    lines = [header] if header else []
    lines += [f"{name},{score}" for name, score in zip(IMAGES, (0.5, 1e-3, -2), strict=True)]
    path = written("\n".join(lines).replace(",", delimiter) + "\n", "ImageNet-1K_influence-max.csv")
    ds = few(path)
    assert ds.column_names == ["key", "influence_max"]
    assert ds["key"][:] == KEYS and ds["influence_max"][:] == [0.5, 1e-3, -2.0]
    assert ds.features["influence_max"].dtype == "float64"
    kind = {",": "comma", ";": "semicolon", "\t": "tab"}[delimiter]
    assert f"delimiter {kind}" in ds.info.description and "high means keep" in ds.info.description
    assert ("no header" in ds.info.description) is (not header)


def test_names_are_normalised(written):
    odd = ["train/n01440764/N01440764_10026.jpeg", r"x\n01440764_10027.JPG", "n01443537_2"]
    ds = few(written("".join(f"{name},1\n" for name in odd)))
    assert ds["key"][:] == KEYS and ds.column_names[1] == "some_metric"


def test_one_numeric_column_is_in_the_order_of_the_file(written, caplog):
    caplog.set_level(logging.INFO)
    ds = read_released_scores(written("0.25\n0.5\n0.125\n"))
    assert ds["index"][:] == [0, 1, 2] and ds["some_metric"][:] == [0.25, 0.5, 0.125]
    assert "rows in the order of the file" in caplog.text and "none (one column)" in ds.info.description
    named = few(written("score\n0.25\n0.5\n0.125\n"), order=IMAGES)
    assert named["key"][:] == KEYS and "keys from order=" in named.info.description
    with pytest.raises(ValueError, match="order has 2 names, some-metric.csv has 3 rows"):
        read_released_scores(written("1\n2\n3\n"), order=IMAGES[:2])
    with pytest.raises(TypeError, match="not one string"):
        read_released_scores(written("1\n2\n3\n"), order="abc")


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("column", [0, 1])
def test_an_index_column(written, first, column):
    pairs = [(2 + first, 0.5), (0 + first, 0.25), (1 + first, 7)]
    text = "".join(",".join(str(v) for v in (pair if column == 0 else pair[::-1])) + "\n" for pair in pairs)
    ds = read_released_scores(written(text))
    assert ds["index"][:] == [2, 0, 1] and ds["some_metric"][:] == [0.5, 0.25, 7.0]
    named = few(written(text), order=IMAGES)
    assert named["key"][:] == [KEYS[2], KEYS[0], KEYS[1]]


def test_several_candidates_are_not_guessed_among(written):
    path = written("a,b\n0.5,0.25\n1.5,2.5\n")
    with pytest.raises(ValueError, match=r"several numeric columns: \['a', 'b'\].*score_column="):
        read_released_scores(path)
    assert read_released_scores(path, score_column="b")["some_metric"][:] == [0.25, 2.5]
    with pytest.raises(ValueError, match=r"score_column='c' is no numeric column.*\['a', 'b'\]"):
        read_released_scores(path, score_column="c")
    both = written("a,b\n0,1\n1,0\n")  # each may be the index
    with pytest.raises(ValueError, match="several numeric columns"):
        read_released_scores(both)
    ds = read_released_scores(both, score_column="b")
    assert ds["index"][:] == [0, 1] and ds["some_metric"][:] == [1.0, 0.0]


def test_what_is_refused(written):
    with pytest.raises(ValueError, match="1 keys .* more than once, first 'n01440764_1'"):
        read_released_scores(written("n01440764/n01440764_1.JPEG,1\nn01440764_1,2\n"))
    with pytest.raises(ValueError, match="is empty"):
        read_released_scores(written("\n"))
    with pytest.raises(ValueError, match="a header and no rows"):
        read_released_scores(written("file,score\n"))
    with pytest.raises(ValueError, match="no numeric column.*a: string"):
        read_released_scores(written("a,b\nx,y\n"))
    with pytest.raises(ValueError, match="cannot be read as a table.*2 columns"):
        read_released_scores(written("a,1\nb,2,3\n"))
    with pytest.raises(ValueError, match="1 scores of some-metric.csv are empty, first in row 1"):
        read_released_scores(written("n01440764_1,1.5\nn01440764_2,\n"))
    with pytest.raises(ValueError, match="leave order= out"):
        read_released_scores(written("n01440764_1,1.5\n"), order=["a"])


def test_rows_that_are_not_images(written):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = read_released_scores(io.BytesIO(b"\xef\xbb\xbf0.5\n0.25\n"))
    assert ds.column_names == ["index", "score"] and ds["score"][:] == [0.5, 0.25]


def test_compressed(tmp_path):
    path = tmp_path / "ImageNet-1K_EL2N-20-models.csv.gz"
    path.write_bytes(gzip.compress(b"1.5\n2.5\n"))
    assert few(path).column_names == ["index", "el2n_20_models"]


def test_the_whole_of_imagenet_is_quick_and_quiet(tmp_path):
    n = IMAGENET_ROWS
    path = tmp_path / "ImageNet-1K_self-supervised-prototypes.csv"
    folder = pc.binary_join_element_wise("n", pc.cast(pa.array(10_000_000 + np.arange(n) // 1300), pa.string()), "")
    number = pa.array(np.arange(n)).cast(pa.string())
    name = pc.binary_join_element_wise(folder, "/", folder, "_", number, ".JPEG", "")
    csv.write_csv(pa.table({"image": name, "score": np.arange(n) / n}), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = read_released_scores(path)
    assert len(ds) == n and ds[n - 1]["key"] == f"{folder[n - 1]}_{n - 1}"
    assert ds.column_names == ["key", "self_supervised_prototypes"]


# what could be misread


def read(text, **options):
    """Rows of a file that is no ImageNet, as (key or index, score)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the file has .* rows; ImageNet")
        ds = read_released_scores(io.BytesIO(text if isinstance(text, bytes) else text.encode()), **options)
    return list(zip(*(ds[name][:] for name in ds.column_names), strict=True)), ds.info.description


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("header", [None, "bild;wert"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_decimal_commas(delimiter, header, quote):
    numbers = ["0,125", "-3,5", "7", "1,5e-3", ",25"] if not quote else ["0,125", "-3,5", "7,0", "1,5e-3", "0,25"]
    lines = [header] if header else []
    lines += [f"n01440764_{i};{quote}{n}{quote}" for i, n in enumerate(numbers)]
    found, said = read("\r\n".join(lines).replace(";", delimiter))
    assert [v for _, v in found] == [0.125, -3.5, 7.0, 0.0015, 0.25] and found[0][0] == "n01440764_0"
    assert "decimal comma" in said


def test_decimal_commas_in_a_file_cut_at_commas_and_in_an_index_file():
    assert read('a,"0,5"\nb,"12,25"\n')[0] == [("a", 0.5), ("b", 12.25)]
    assert read("1;0,5\n0;12,25\n")[0] == [(1, 0.5), (0, 12.25)]
    # late in the file, after many whole numbers
    rows = "".join(f"x{i};{i}\n" for i in range(9000)) + "y;0,5\n"
    assert read(rows)[0][-2:] == [("x8999", 8999.0), ("y", 0.5)]


@pytest.mark.parametrize("text", ["a;1.234,5\nb;0,25\n", "a;0,5\nb;0.25\n", "a;1'234\nb;2\n", "0,53\n0,21\n0,05\n"])
def test_decimals_that_cannot_be_told_are_refused(text):
    with pytest.raises(ValueError, match="decimal point|[Dd]ecimals with commas"):
        read(text)


def test_the_score_may_stand_before_the_name():
    want = [("n01440764_5", 0.5), ("n01440764_7", 0.25), ("n01440764_6", 4.0)]
    body = "0.5,n01440764/n01440764_5.JPEG\n0.25,n01440764/n01440764_7.JPEG\n4,n01440764/n01440764_6.JPEG\n"
    found, said = read(body)
    assert found == want and "no header" in said
    found, said = read("wert,bild\n" + body)
    assert found == want and "header wert, bild" in said
    assert read("0.5,cat-1\n0.25,cat-2\n")[0] == [("cat-1", 0.5), ("cat-2", 0.25)]


def test_headers_that_pandas_writes():
    """`Series.to_csv()` calls its column 0, and its index nothing."""
    pandas = pytest.importorskip("pandas")
    values = pandas.Series([0.5, 0.25, 0.75, 0.0])
    assert read(values.to_csv())[0] == [(0, 0.5), (1, 0.25), (2, 0.75), (3, 0.0)]
    assert read(values.sort_values().to_csv())[0] == [(3, 0.0), (1, 0.25), (0, 0.5), (2, 0.75)]
    names = pandas.Series(values.to_numpy(), index=[f"n0144_{i}" for i in range(4)])
    assert read(names.to_csv())[0] == [(f"n0144_{i}", v) for i, v in enumerate(values)]
    images = pandas.Series([0.5, 0.25], index=["n01440764_1", "n01440764_2"])
    assert read(images.to_csv())[0] == [("n01440764_1", 0.5), ("n01440764_2", 0.25)]
    alone = values.to_csv(index=False)
    with pytest.raises(ValueError, match="first row of the file, '0', may be a header .*header=True or header=False"):
        read(alone)
    assert read(alone, header=True)[0] == [(0, 0.5), (1, 0.25), (2, 0.75), (3, 0.0)]
    assert len(read(alone, header=False)[0]) == 5
    frame = pandas.DataFrame([["a", 0.5], ["b", 0.25]])
    with pytest.raises(ValueError, match="header=True or header=False"):
        read(frame.to_csv(index=False))
    assert read(frame.to_csv(index=False), header=True)[0] == [("a", 0.5), ("b", 0.25)]
    frame = pandas.DataFrame({"file": ["n01440764_2", "n01440764_1"], "score": [0.5, 0.25]}, index=[1, 0])
    found, said = read(frame.to_csv())
    assert found == [("n01440764_2", 0.5), ("n01440764_1", 0.25)] and "left out column_0" in said
    # whole numbers after a 0 are scores
    assert read("0\n3\n1\n")[0] == [(0, 0.0), (1, 3.0), (2, 1.0)]


def test_a_permuted_index_and_what_looks_like_one():
    found, said = read("index,score\n2,0.5\n0,0.25\n1,0.1\n")
    assert found == [(2, 0.5), (0, 0.25), (1, 0.1)] and "rows in another order: join by it" in said
    assert "another order" not in read("index,score\n0,0.5\n1,0.25\n2,0.1\n")[1]
    # a rank is no index, and the order of the file is not to be had from it
    with pytest.raises(ValueError, match=r"several numeric columns: \['rank', 'aum'\]"):
        read("rank,aum\n0,0.9\n2,0.1\n1,0.3\n")
    found, said = read("rank,aum\n0,0.9\n2,0.1\n1,0.3\n", score_column="aum")
    assert [i for i, _ in found] == [0, 1, 2] and "left out rank" in said
    found = read("index,order\n1,2\n0,0\n2,1\n")[0]
    assert found == [(1, 2.0), (0, 0.0), (2, 1.0)]
    with pytest.raises(ValueError, match="several numeric columns"):
        read("index,score\n5,0.5\n3,0.25\n")  # a part of a set: no row numbers of it
    assert read("index,score\n5,0.5\n3,0.25\n", key_column="index")[0] == [("5", 0.5), ("3", 0.25)]


def test_ids_of_another_kind_are_kept_as_they_are():
    ids = ["ILSVRC2012_val_00000001.JPEG", "train/img 7.png", "Ünïcode", "0007"]
    found, said = read("".join(f"{i},{k}.5\n" for k, i in enumerate(ids)))
    assert found == [(i, k + 0.5) for k, i in enumerate(ids)] and "ids in 'column_0'" in said
    with pytest.raises(ValueError, match="mixes names of ImageNet's images with others .* 'cat.png' in row 1"):
        read("n01440764_1,0.5\ncat.png,0.25\n")
    with pytest.raises(ValueError, match=r"several columns that may be ids: \['file', 'kind'\].*key_column="):
        read("file,kind,score\na,x,0.5\nb,x,0.25\n")
    assert read("file,kind,score\na,x,0.5\nb,x,0.25\n", key_column="file")[0] == [("a", 0.5), ("b", 0.25)]
    with pytest.raises(ValueError, match="1 keys .* more than once.*key_column=False"):
        read("kind,score\nx,0.5\nx,0.25\n")
    found, said = read("kind,score\nx,0.5\nx,0.25\n", key_column=False)
    assert found == [(0, 0.5), (1, 0.25)] and "left out kind" in said
    with pytest.raises(ValueError, match="key_column='nope' is no column"):
        read("a,1\n", key_column="nope")


@pytest.mark.parametrize("text", ["a,1\nb,2\n".encode("utf-16"), b"caf\xe9,1\nb,2\n"])
def test_other_encodings_are_refused(text):
    with pytest.raises(ValueError, match="is no text in UTF-8 .*convert it"):
        read(text)


def test_a_name_in_the_first_row_is_no_header():
    with pytest.raises(ValueError, match="1 scores of the file are empty, first in row 0"):
        read("n01440764_1,NA\nn01440764_2,0.5\n")
