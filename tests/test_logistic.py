"""Logistic regression: two ways to one optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_prune.numerics.logistic import fit_binary, fit_softmax, sigmoid


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5)) * np.linspace(0.5, 2, 5)
    x /= np.sqrt((x**2).mean())  # as fit_softmax scales it
    target = (x @ rng.normal(size=5) + rng.normal(size=400) > 0.4).astype(float)
    return x, target


@pytest.mark.parametrize("l2", [1.0, 0.01])
def test_two_classes_by_either_way(made, l2):
    x, target = made
    weights, intercept = fit_binary(x, target, l2=l2)
    # two weights that differ by w are half of it each, so that they cost half as much
    y = torch.tensor(target).long()
    weight, bias = fit_softmax(torch.tensor(x), y, classes=2, l2=2 * l2 / len(x), steps=2000)
    assert (weight[1] - weight[0]).numpy() == pytest.approx(weights, rel=1e-4)
    assert float(bias[1] - bias[0]) == pytest.approx(intercept, rel=1e-4)


def test_order_and_number_of_pieces_do_not_matter(made, monkeypatch):
    x, target = made
    weights, intercept = fit_binary(x, target, l2=0.5)
    turned = np.random.default_rng(1).permutation(len(x))
    again, there = fit_binary(x[turned], target[turned], l2=0.5)
    assert again == pytest.approx(weights, rel=1e-10) and there == pytest.approx(intercept, rel=1e-10)
    monkeypatch.setattr("hf_prune.numerics.logistic.ROWS", 37)
    assert fit_binary(x, target, l2=0.5)[0] == pytest.approx(weights, rel=1e-10)


def test_a_start_is_what_is_penalized(made):
    x, target = torch.tensor(made[0]), torch.tensor(made[1]).long()
    start = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near, bias = fit_softmax(x, target, classes=2, l2=1e6, start=start)
    assert bias is None and near.numpy() == pytest.approx(start.numpy(), abs=1e-5)
    far, _ = fit_softmax(x, target, classes=2, l2=1e-6, start=start)
    assert (far - start).abs().max() > 0.1


def test_no_logit_overflows():
    with np.errstate(all="raise", under="ignore"):
        assert sigmoid(np.array([-1e4, 1e4])).tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="no optimum in 2 rounds; raise l2=0"):
        rounds = pytest.MonkeyPatch()
        with rounds.context() as patch:
            patch.setattr("hf_prune.numerics.logistic.ROUNDS", 2)
            fit_binary(np.array([[-1.0], [1.0]] * 5), np.array([0.0, 1.0] * 5), l2=0.0)
