"""Names and choices: what is let through, and what is not."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest

from hf_prune.checks import (
    check_choice,
    check_digest,
    check_inside,
    check_parallel,
    check_places,
    check_split_name,
)


@pytest.mark.parametrize("name", ["train", "dev_clean", "train.clean.100", "été", "0", "Test2"])
def test_names_of_splits_that_datasets_reads(name, tmp_path):
    assert check_split_name(name) == name
    datasets.DatasetDict({name: datasets.Dataset.from_dict({"x": [1]})}).save_to_disk(str(tmp_path))
    assert list(datasets.load_from_disk(str(tmp_path))) == [name]


@pytest.mark.parametrize(
    "name, better",
    [("dev-clean", "dev_clean"), ("my split", "my_split"), ("../x", "x"), ("a/b", "a_b"), ("all", "everything"),
     ("", "train"), ("a..b", "a_b"), (".a", "a"), ("a\n", "a"), ("\x1b[31m", "31m")],
)  # fmt: skip
def test_names_of_splits_that_nobody_could_read(name, better):
    with pytest.raises(ValueError, match=f"cannot be read back by datasets; .* as '{better}'"):
        check_split_name(name)


@pytest.mark.parametrize(
    "name", ["../a", "/etc/passwd", "a/../../b", "", ".", "..", "a\\b", "C:a", "a\0b", "a\nb", None, 3, ["a"]]
)
def test_names_that_are_no_files_of_a_folder(name):
    with pytest.raises(ValueError, match="is no name of a file in log"):
        check_inside(Path("log"), name)


def test_names_of_files_of_a_folder():
    assert check_inside(Path("log"), "a/b-0.parquet") == Path("log/a/b-0.parquet")
    assert check_inside(Path("log"), "./a..b") == Path("log/a..b")


@pytest.mark.parametrize("text", ["0" * 31, "0" * 33, "A" * 32, "../" + "0" * 29, "0" * 31 + "\n", "g" * 32, None, 7])
def test_what_is_no_digest(text):
    with pytest.raises(ValueError, match="is no digest of 32 hexadecimal digits"):
        check_digest(text)


def test_digests():
    assert check_digest("0af" + "1" * 29) and check_digest("b" * 64, 64) and check_digest("c" * 40, 40)


@pytest.mark.parametrize("value", ["High", "", None, 1, ["high"], "high "])
def test_what_is_no_choice(value):
    with pytest.raises(ValueError, match="prefer=.* is not known; choose one of 'high', 'low'"):
        check_choice("prefer", value, ("high", "low"))


def test_choices_are_told_apart_by_their_type():
    check_choice("threshold", 1, (0, 1))
    with pytest.raises(ValueError, match="threshold=True is not known"):
        check_choice("threshold", True, (0, 1))


def test_arrays_of_rows():
    check_parallel("X", a=np.zeros(3), b=np.zeros(3, bool))
    for other in (np.zeros(2), np.zeros((3, 1)), np.zeros(())):
        with pytest.raises(ValueError, match="X: a, b have shapes"):
            check_parallel("X", a=np.zeros(3), b=other)
    with pytest.raises(ValueError, match="have shapes"):
        check_parallel("X", a=np.zeros((3, 1)))
    check_places("X.at", np.array([], np.int64), 0)
    check_places("X.at", np.array([[0], [4]], np.uint8), 5)
    for places in (np.array([5]), np.array([-1]), np.array([0, 2**60])):
        with pytest.raises(ValueError, match="X.at: .* is no place among 5"):
            check_places("X.at", places, 5)
    with pytest.raises(ValueError, match="holds float64, not whole numbers"):
        check_places("X.at", np.array([np.nan]), 5)
