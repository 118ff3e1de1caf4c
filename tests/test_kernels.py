"""Compiled loops against their plain twins, which are the definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.networks import _kernels as token_kernels
from hf_prune.numerics import _kernels, search

ROUNDING = np.float32(search.ROUNDING)
floats = st.floats(-1e3, 1e3, width=32)
tables = st.integers(1, 6).flatmap(lambda k: st.lists(st.lists(floats, min_size=k, max_size=k), min_size=1, max_size=6))


def settle_plain(table, x, slack, exact, halves, count):
    """Of the columns within twice the slack of the `count`-th largest, those with the largest float64 numbers."""
    found = []
    for i, row in enumerate(table):
        low = np.nextafter(np.sort(row)[-count] - np.float32(2 * slack[i]), np.float32(-np.inf))
        close = [j for j in range(len(row)) if row[j] >= low]
        told = [float(x[i].astype(float) @ exact[j] - halves[j]) for j in close]
        found.append([close[j] for j in sorted(range(len(close)), key=lambda j: (-told[j], j))[:count]])
    return np.array(found)


@settings(deadline=None)  # the first call compiles
@given(tables, st.integers(0, 3), st.sampled_from([1, 2]))
def test_settle(rows, slack, count):
    table = np.array(rows, np.float32) + np.float32(0)  # no negative zeros, which are equal and lower
    n, k = table.shape
    count = min(count, k)
    # rows and directions whose products are a rounded form of the table
    x, exact, halves = np.rint(table).astype(np.float32), np.eye(k), np.arange(k) % 2 * 0.25
    off = np.full(n, float(slack))
    found = np.empty((n, count), np.int64)
    assert _kernels.settle(table.view(np.int32), x, off, exact, halves, k, found)
    assert (found == settle_plain(table, x, off, exact, halves, count)).all()
    wide = np.full(n, 1e9)
    if k > count:  # all come close, more than the crowd that is allowed
        assert not _kernels.settle(table.view(np.int32), x, wide, exact, halves, count - 1, found)


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


def test_unit_rows():
    x = np.random.default_rng(0).normal(size=(40, 37)).astype(np.float32)
    x[3], x[5], x[7] = 0, 3e20, np.inf
    out, squares = np.empty_like(x), np.empty(40, np.float32)
    _kernels.unit(x, out, squares)
    with np.errstate(all="ignore"):
        expected = (x**2).sum(1)
        rows = x / np.sqrt(expected)[:, None]
    np.testing.assert_allclose(squares, expected, rtol=1e-6)
    usual = np.isfinite(expected) & (expected > 0)
    assert usual.sum() == 37
    np.testing.assert_allclose(out[usual], rows[usual], rtol=1e-6)
    assert np.isnan(out[3]).all() and not squares[3] and np.isinf(squares[[5, 7]]).all()


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
    assert _kernels.screen(bfloat16_bits(products), x, length, directions, ROUNDING, k, found)
    assert (found == products.argmax(1)).all()


def test_screen_says_when_it_cannot_tell():
    x = np.ones((2, 4), np.float32)
    length, found = np.full(2, 2, np.float32), np.empty(2, np.int64)
    negative = np.full((2, 3), -1, np.float32)
    directions = np.full((3, 4), 0.5)
    assert not _kernels.screen(bfloat16_bits(negative), x, length, -directions, ROUNDING, 16, found)
    equal = np.full((2, 3), 2, np.float32)
    assert not _kernels.screen(
        bfloat16_bits(equal), x, length, directions, ROUNDING, 2, found
    )  # three candidates a row
    assert _kernels.screen(bfloat16_bits(equal), x, length, directions, ROUNDING, 3, found) and found.tolist() == [0, 0]


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


def plain_tokens(z, y):
    """The definition of `tokens`, for one token."""
    z = z.astype(np.float64)
    others = np.delete(z, y)
    following, rival = np.sort(others)[-2:] if len(others) > 1 else (-np.inf, others[0])
    if np.isnan(z).any() or not np.isfinite([z[y], rival]).all() or not np.isfinite(np.float32(z[y] - rival)):
        return [np.nan] * 7
    s = np.maximum(others - rival, token_kernels.FLOOR)
    e = np.exp(s)
    earlier = z[y] == rival and (z[:y] == rival).any()
    return [z[y], rival, following, earlier, e.sum(), (e * e).sum(), (s * e).sum()]


def run_tokens(z, y, bits):
    shift = 16 if bits == np.int16 else 0
    packed = (z.view(np.int32) >> shift).astype(bits)
    out = np.zeros((len(z), 7))
    starts = np.arange(len(z)) * z.shape[1]
    token_kernels.tokens(packed.reshape(-1), shift, starts, np.asarray(y), z.shape[1], out)
    return out, (packed.astype(np.int32) << shift).view(np.float32)


@pytest.mark.parametrize("bits", [np.int32, np.int16])
@pytest.mark.parametrize("width", [2, 3, 17, 1023, 1024, 1025, 5000])
def test_tokens(width, bits):
    rng = np.random.default_rng(width)
    z = (rng.normal(size=(60, width)) * rng.choice([0.01, 1, 10, 100], (60, 1))).astype(np.float32)
    z[:20] = z[:20].round()  # equal ones
    z[20:30][rng.random((10, width)) < 0.3] = -np.inf
    z[30, :-1] = -0.0
    z[31, :-1] = 0.0
    for row, value in zip(range(32, 37), (np.nan, -np.nan, np.inf, -np.inf, 3e38), strict=True):
        z[row, rng.integers(width)] = value
    z[37] = -np.inf
    y = rng.integers(0, width, 60)
    y[:10] = np.where(rng.random(10) < 0.5, z[:10].argmax(1), z[:10].argsort(1, kind="stable")[:, -1])
    y[38:44] = [0, width - 1, min(1023, width - 1), min(1024, width - 1), 1, 0]
    got, seen = run_tokens(z, y, bits)
    want = np.array([plain_tokens(*pair) for pair in zip(seen, y, strict=True)])
    np.testing.assert_array_equal(got[:, :4], want[:, :4])
    np.testing.assert_allclose(got[:, 4:], want[:, 4:], rtol=1e-5, atol=1e-30)


@settings(deadline=None)  # the first call compiles
@given(tables.filter(lambda rows: len(rows[0]) > 1), st.data())
def test_tokens_of_any_numbers(rows, data):
    z = np.array(rows, np.float32)
    y = data.draw(st.lists(st.integers(0, z.shape[1] - 1), min_size=len(z), max_size=len(z)))
    got, _ = run_tokens(z, y, np.int32)
    want = np.array([plain_tokens(*pair) for pair in zip(z, y, strict=True)])
    np.testing.assert_array_equal(got[:, :4], want[:, :4])
    np.testing.assert_allclose(got[:, 4:], want[:, 4:], rtol=1e-5, atol=1e-30)
