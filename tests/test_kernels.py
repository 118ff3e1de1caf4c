"""Compiled loops against their plain twins, which are the definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune import _kernels

floats = st.floats(-1e3, 1e3, width=32)
tables = st.integers(1, 6).flatmap(lambda k: st.lists(st.lists(floats, min_size=k, max_size=k), min_size=1, max_size=6))


@given(tables)
def test_largest(rows):
    table = np.array(rows, np.float32) + np.float32(0)  # no negative zeros, which are equal and lower
    found = np.empty(len(table), np.int64)
    _kernels.largest(table.view(np.int32), found)
    assert (found == table.argmax(1)).all()


def test_lengths_and_cosines():
    rng = np.random.default_rng(0)
    x, directions = rng.normal(size=(40, 37)), rng.normal(size=(5, 37))
    x[3] = 0
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    found = rng.integers(0, 5, 40)
    length, cosine = np.empty(40, np.float32), np.empty(40)
    _kernels.lengths(x.astype(np.float32), length)
    _kernels.cosines(x, found, directions, cosine)
    norms = np.linalg.norm(x, axis=1)
    assert np.allclose(length, norms, rtol=1e-6)
    some = norms > 0
    assert np.allclose(cosine[some], (x * directions[found]).sum(1)[some] / norms[some], atol=1e-14)
    assert np.isnan(cosine[3])


def bfloat16_bits(values):
    return (values.astype(np.float32).view(np.int32) >> 16).astype(np.int16)  # towards zero: a rounding that is allowed


@pytest.mark.parametrize("k", [1, 63, 64, 65, 200])
def test_screen_finds_what_rounding_hides(k):
    rng = np.random.default_rng(k)
    base = rng.normal(size=(1, 24))
    directions = base + 0.02 * rng.normal(size=(k, 24))  # cosines that bfloat16 cannot tell apart
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    x = (base + 0.1 * rng.normal(size=(30, 24))).astype(np.float32)
    products = x.astype(np.float64) @ directions.T
    length, found = np.linalg.norm(x, axis=1).astype(np.float32), np.empty(30, np.int64)
    assert _kernels.screen(bfloat16_bits(products), x, length, directions, k, found)
    assert (found == products.argmax(1)).all()


def test_screen_says_when_it_cannot_tell():
    x = np.ones((2, 4), np.float32)
    length, found = np.full(2, 2, np.float32), np.empty(2, np.int64)
    negative = np.full((2, 3), -1, np.float32)
    directions = np.full((3, 4), 0.5)
    assert not _kernels.screen(bfloat16_bits(negative), x, length, -directions, 16, found)
    equal = np.full((2, 3), 2, np.float32)
    assert not _kernels.screen(bfloat16_bits(equal), x, length, directions, 2, found)  # three candidates a row
    assert _kernels.screen(bfloat16_bits(equal), x, length, directions, 3, found) and found.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_add_rows(dtype):
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(50, 6)).astype(dtype), rng.integers(0, 4, 50)
    rows = rng.permutation(50)[:31]
    wanted, sums = np.zeros((4, 6)), np.zeros((4, 6))
    np.add.at(wanted, labels[rows], x[rows])
    for begin, end in ((0, 2), (2, 6)):
        _kernels.add_rows(sums, x, labels, rows, 1.0, begin, end)
    assert np.allclose(sums, wanted, atol=1e-13)
    _kernels.add_rows(sums, x, labels, rows, -1.0, 0, 6)
    assert np.allclose(sums, 0, atol=1e-13)
