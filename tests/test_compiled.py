import os

import numpy as np
import pytest

from hf_prune.numerics import compiled, fork


def total(x):
    s = 0.0
    for i in range(len(x)):
        s += x[i]
    return s


def test_a_kernel_computes_what_its_python_says():
    x = np.arange(5.0)
    assert compiled.kernel(total)(x) == total(x) == 10


def test_a_kernel_compiles_where_nothing_can_be_cached(monkeypatch):
    njit = compiled.numba.njit

    def refuses(**options):
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(compiled.numba, "njit", refuses)
    assert compiled.kernel(total)(np.ones(3)) == 3


def test_threads_keep_order_and_hand_on_errors():
    assert compiled.in_threads(lambda i: i * i, range(20)) == [i * i for i in range(20)]
    with pytest.raises(ZeroDivisionError):
        compiled.in_threads(lambda i: 1 // i, [1, 0, 2])


def test_thread_count_follows_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert compiled.thread_count() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert compiled.thread_count() >= 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_uses_one_thread(monkeypatch):
    import multiprocessing

    assert not fork.in_child
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(compiled.thread_count) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_that_knows_numba_has_one_thread_of_torch():
    """numba.set_num_threads in the child once started its threads, and torch then waited for threads it had not."""
    import multiprocessing

    import torch

    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(torch.get_num_threads) == 1
