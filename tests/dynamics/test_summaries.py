"""Summaries of logs and of scores out of them: their numbers, counted anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hf_prune as hp

IDS = list("abcde")
Z = np.zeros((3, 5, 2))
Z[:, :, 0] = [[2, 1, -1, -1, 3], [2, -1, -2, 1, 3], [1, 1, -1, -1, 2]]  # c is never right


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return hp.TrainingLog.from_logits(tmp_path_factory.mktemp("log"), IDS, Z, [0] * 5)


def test_of_a_log(log):
    found = log.summary()
    assert (found.rows, found.classes, found.mode, found.epochs, found.never_learned) == (5, 2, "train", 3, 1)
    assert (found.first_accuracy, found.final_accuracy) == (0.6, 0.6) and log.accuracy(1) == 0.6
    assert found.damaged is found.not_finite is None
    assert "never learned   1" in str(found) and "<th>final accuracy</th>" in found._repr_html_()


def test_of_a_log_with_a_damaged_epoch_and_rows_that_are_not_finite(tmp_path):
    z = Z.copy()
    z[1, 0] = np.nan
    with pytest.warns(RuntimeWarning, match="not finite"):
        log = hp.TrainingLog.from_logits(tmp_path, IDS, z, [0] * 5)
    assert log.summary().not_finite == 1
    next(tmp_path.glob("epoch-00002/part-*")).write_bytes(b"")
    found = log.summary()
    assert (found.epochs, found.damaged, found.final_accuracy) == (3, 1, 0.4)


def test_of_a_log_of_a_language_model(tmp_path):
    y = np.array([[0, 0], [0, -100]])
    z = np.zeros((1, 2, 2, 3))
    z[0, 0, :, 0], z[0, 1, :, 1] = 1, 1
    found = hp.TrainingLog.from_logits(tmp_path, IDS[:2], z, y).summary()
    assert found.classes is None and found.never_learned is None and found.final_accuracy == 0.5


def test_of_scores(log, tmp_path):
    found = hp.Forgetting.from_log(log).summary()
    assert (found.column, found.rows, found.epochs, found.runs, found.mode) == ("forgetting", 5, "0-2", 1, "train")
    assert (found.final_accuracy, found.never_learned) == (0.6, 1)
    assert (found.smallest, found.median, found.largest) == (0, 1, 3)
    assert hp.Cartography.from_log(log).summary().never_learned == 1
    assert hp.AUM.from_log(log, epochs=[0]).summary().never_learned is None
    other = hp.TrainingLog.from_logits(tmp_path, IDS, -Z, [0] * 5)  # in which c alone is right
    both = hp.Forgetting.from_log([log, other]).summary()
    assert both.never_learned == 0 and both.final_accuracy == pytest.approx((0.6 + 0.4) / 2)
    assert hp.EL2N.from_log(log).summary().column == "el2n_train"


def test_a_scorer_of_models_knows_no_scores():
    with pytest.raises(ValueError, match="this EL2N runs models, row by row, .* EL2N.from_log"):
        hp.EL2N(torch.nn.Linear(2, 2)).summary()
