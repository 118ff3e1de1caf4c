import gzip
import io
import logging
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyarrow import csv

from hf_prune.released import IMAGENET_ROWS, read_released_scores

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
