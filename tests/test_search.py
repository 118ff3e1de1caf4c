from __future__ import annotations

import numpy as np
import pytest

from hf_prune.numerics import search
from hf_prune.numerics.search import Directions, largest_cosines, largest_products


def data(n, k, d, noise, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(k, d))
    x = centres[rng.integers(0, k, n)] + noise * rng.normal(size=(n, d))
    return x.astype(np.float32), centres


def brute(x, centres, count):
    x, c = x.astype(np.float64), centres / np.linalg.norm(centres, axis=1, keepdims=True)
    cosines = x @ c.T / np.linalg.norm(x, axis=1, keepdims=True)
    found = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return found, np.take_along_axis(cosines, found, 1)


@pytest.fixture(params=["float32", "bfloat16"])
def path(request, monkeypatch):
    """Both paths, wherever the test runs: without tiles a bfloat16 product is slow, but right."""
    import torch  # noqa: F401

    monkeypatch.setattr(search, "tiles", lambda: request.param == "bfloat16")
    return request.param


@pytest.mark.parametrize("noise", [0.3, 1.0, 30.0])
@pytest.mark.parametrize("count", [1, 2])
def test_equals_brute_force(path, noise, count):
    x, centres = data(2500, 200, 48, noise)
    found, cosine = largest_cosines(x, Directions(centres), count)
    want, value = brute(x, centres, count)
    assert (found == want).mean() > 0.999  # float32 may confuse two that differ by 1e-8
    assert np.abs(cosine - value).max() < 1e-7


def test_near_ties_are_told_apart(path):
    """Directions that bfloat16 cannot tell from each other."""
    x, centres = data(1024, 50, 32, 0.5)
    close = np.repeat(centres, 4, axis=0) + 1e-3 * np.random.default_rng(1).normal(size=(200, 32))
    found, cosine = largest_cosines(x, Directions(close))
    want, value = brute(x, close, 1)
    assert (found == want).mean() > 0.999 and np.abs(cosine - value).max() < 1e-7


def test_copies_of_a_direction_give_the_lowest_index(path):
    x, centres = data(1024, 64, 16, 0.5)
    found, _ = largest_cosines(x, Directions(np.concatenate([centres] * 3)))
    assert found.max() < 64


def test_negative_cosines_and_extreme_lengths(path):
    x, centres = data(1500, 150, 24, 0.5)
    everywhere = np.abs(centres)
    rows = -np.abs(x)
    for scale in (1.0, 1e-25, 1e25):
        found, cosine = largest_cosines(rows * np.float32(scale), Directions(everywhere))
        want, value = brute(rows, everywhere, 1)
        assert (found == want).mean() > 0.999 and np.abs(cosine - value).max() < 1e-6


def test_zero_rows_and_no_rows(path):
    _, centres = data(1, 150, 8, 1)
    found, cosine = largest_cosines(np.zeros((600, 8), np.float32), Directions(centres), 2)
    assert (found == -1).all() and np.isnan(cosine).all()
    assert largest_cosines(np.zeros((0, 8)), Directions(centres))[0].shape == (0, 1)


def test_screening_leaves_the_threads_as_they_were(path):
    import torch

    before = torch.get_num_threads()
    x, centres = data(1100, 150, 8, 1)
    largest_cosines(x, Directions(centres))
    assert torch.get_num_threads() == before


def test_products_and_their_ties():
    assert largest_products(np.ones((3, 2), np.float32), Directions(np.ones((4, 2))), 2).tolist() == [[0, 1]] * 3
