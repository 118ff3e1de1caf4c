"""The statistics of logits, and the log: what is written, what is refused, what a crash leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from launching import beside, python

import hf_prune as hp
from hf_prune import TrainingLog
from hf_prune.data import identity
from hf_prune.data.files import DamagedFileError
from hf_prune.dynamics import recorder
from hf_prune.dynamics.format import sealed
from hf_prune.networks import statistics

Z = np.array([[2, 0, -1], [0, 1, 0], [1, 1, 1], [-2, 3, 0.5]])
Y = np.array([0, 2, 1, 0])
IDS = ["a", "b", "c", "d"]


def naive(z: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """The definitions, written down in float64 with the error vector built."""
    z = z.astype(np.float64)
    n = np.arange(len(y))
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    error = p.copy()
    error[n, y] -= 1
    others, rest = z.copy(), p.copy()
    others[n, y], rest[n, y] = -np.inf, -np.inf
    sorted_p = np.sort(p, 1)
    return {
        "p_label": p[n, y],
        "margin": z[n, y] - others.max(1),
        "el2n": np.linalg.norm(error, axis=1),
        "loss": -np.log(p[n, y]),
        "entropy": -(p * np.log(p)).sum(1),
        "p_max": p.max(1),
        "gap": sorted_p[:, -1] - sorted_p[:, -2],
        "p_margin": p[n, y] - rest.max(1),
        "correct": z.argmax(1) == y,
    }


def of_rows(z, y, dtype=torch.float32):
    return {k: v.numpy() for k, v in statistics.of_rows(torch.tensor(z, dtype=dtype), torch.tensor(y)).items()}


def in_order(log: TrainingLog, column: str, epoch: int, ids=IDS) -> np.ndarray:
    return log.read(column, epoch)[np.searchsorted(log.keys, identity.digests(ids))]


def test_vectors():
    got = of_rows(Z, Y)
    assert got["el2n"] == pytest.approx([0.1980037227, 0.9989324288, 0.8164965809, 1.3553028936], abs=1e-6)
    assert got["loss"] == pytest.approx([0.1698460196, 1.5514447139, 1.0986122887, 5.0850972464], rel=1e-6)
    assert got["margin"] == pytest.approx([2, -1, 0, -5])
    assert got["p_margin"] == pytest.approx([0.7295995351, -0.3641753271, 0, -0.9122346815], abs=1e-6)
    assert got["entropy"] == pytest.approx([0.5242666167, 0.9753278292, 1.0986122887, 0.3045105426], rel=1e-6)
    assert 1 - got["p_max"] == pytest.approx([0.1562052655, 0.4238831152, 0.6666666667, 0.0815770332], abs=1e-6)
    assert got["gap"] == pytest.approx([0.7295995351, 0.3641753271, 0, 0.8430342188], abs=1e-6)
    assert got["correct"].tolist() == [True, False, False, False]  # of equal logits the first counts


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_against_the_definitions(classes):
    rng = np.random.default_rng(classes)
    z = rng.normal(size=(500, classes)) * rng.choice([0.1, 1, 10, 30], (500, 1))
    y = rng.integers(0, classes, 500)
    y[:100] = z[:100].argmax(1)
    got, want = of_rows(z, y), naive(z.astype(np.float32), y)
    for name, values in want.items():
        tolerance = 1e-5 if name in ("loss", "entropy") else 3e-7
        np.testing.assert_allclose(got[name], values, rtol=tolerance, atol=3e-7, err_msg=name)


def test_nothing_cancels_where_the_model_is_sure():
    """The expanded form p^2 - 2 p_y + 1 gives 0 here, and so does the loss of a float32 log-softmax."""
    z = np.zeros((1, 50_000))
    z[0, 7] = 28.0
    want = naive(z, np.array([7]))
    exact = {**want, "el2n": (1 - want["p_label"]) * np.sqrt(1 + 1 / 49_999), "loss": -np.log1p(want["p_label"] - 1)}
    got = of_rows(z, [7])
    p = torch.tensor(z, dtype=torch.float32).softmax(1).numpy()
    assert float((p**2).sum() - 2 * p[0, 7] + 1) == 0.0
    for name in ("el2n", "loss"):
        assert got[name] == pytest.approx(exact[name], rel=1e-3)  # the definition itself keeps four digits
    wide = of_rows(z, [7], torch.float64)
    for name in ("el2n", "loss", "entropy"):
        assert got[name] == pytest.approx(wide[name], rel=3e-6)


def test_the_logits_stay_as_they_are():
    z = torch.tensor(Z).float().requires_grad_()
    statistics.of_rows(z, torch.tensor(Y))
    statistics.of_tokens(z[None], torch.tensor(Y)[None])
    assert torch.equal(z, torch.tensor(Z).float())


def test_bfloat16_logits_are_worked_on_in_float32():
    z = torch.tensor(Z, dtype=torch.bfloat16)
    got = statistics.of_rows(z, torch.tensor(Y))
    assert got["el2n"].numpy() == pytest.approx(naive(z.float().numpy(), Y)["el2n"], abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_whose_loss_is_not_finite_is_nan_and_alone(value):
    z = Z.copy()
    z[1, 2] = value
    got = of_rows(z, Y)
    for name in statistics.FLOATS:
        assert np.isnan(got[name]).tolist() == [False, True, False, False], name
    assert not got["correct"][1]


def test_masked_classes_have_no_probability():
    z = Z.copy()
    z[0, 2] = -np.inf
    got, want = of_rows(z, Y), naive(Z[:1, :2], Y[:1])
    for name in statistics.FLOATS:
        assert got[name][0] == pytest.approx(want[name][0], abs=1e-6)


def test_tokens(monkeypatch):
    p = np.array([[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]]])
    got = statistics.of_tokens(torch.tensor(np.log(p)).float(), torch.tensor([[0, 1, 1]]))
    assert got["el2n"].item() == pytest.approx(0.51817632, abs=1e-6)
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(6, 11, 37)).astype(np.float32) * 4, rng.integers(0, 37, (6, 11))
    y[rng.random((6, 11)) < 0.3] = -100
    y[4] = -100
    z[2, np.flatnonzero(y[2] >= 0)[0], 0] = np.nan
    for chunk in (1 << 18, 200):  # many pieces, and one
        monkeypatch.setitem(statistics.CHUNK, "cpu", chunk)
        got = statistics.of_tokens(torch.tensor(z), torch.tensor(y))
        assert got["tokens"].tolist() == (y >= 0).sum(1).tolist()
        for i in range(6):
            kept = y[i] >= 0
            want = naive(z[i, kept], y[i, kept]) if kept.any() else {}
            want = {name: np.nan if i in (2, 4) else v.mean() for name, v in want.items()}
            want["accuracy"] = want.pop("correct", np.nan)
            for name, value in want.items():
                assert got[name][i].item() == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), (i, name)


def exact(z: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """Statistics of tokens (m, V) by their definitions, in float64; from logarithms, where 1 - p would cancel."""
    z = z.double()
    n = torch.arange(len(y))
    log_p, mine = z.log_softmax(1), torch.zeros_like(z, dtype=torch.bool)
    mine[n, y] = True
    p = log_p.exp()
    others = z.masked_fill(mine, -torch.inf)
    wrong = p.masked_fill(mine, 0).sum(1)
    out = {
        "loss": (others.logsumexp(1) - z[n, y]).exp().log1p(),
        "margin": z[n, y] - others.max(1).values,
        "el2n": (wrong**2 + p.masked_fill(mine, 0).square().sum(1)).sqrt(),
        "entropy": -torch.where(p > 0, p * log_p, 0).sum(1),
        "p_label": p[n, y],
        "p_max": p.max(1).values,
        "gap": p.topk(2).values[:, 0] - p.topk(2).values[:, 1],
        "p_margin": p[n, y] - p.masked_fill(mine, -torch.inf).max(1).values,
        "accuracy": (z.argmax(1) == y).double(),
    }
    bad = ~out["margin"].isfinite() | z.isnan().any(1)
    return {name: value.masked_fill(bad, torch.nan) for name, value in out.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", ["whole", "shifted", "turned"])
def test_tokens_against_plain_torch(dtype, layout):
    """What is compiled, and what is not: logits of other types, and those that lie across."""
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(6, 9, 3000, generator=rng) * torch.tensor([0.1, 1, 5, 20, 5, 5])[:, None, None]
    z[2].masked_fill_(torch.rand(9, 3000, generator=rng) < 0.2, -torch.inf)
    z[4, 3, 7] = torch.nan
    z = z.to(dtype)
    y = torch.randint(0, 3000, (6, 9), generator=rng)
    top = z.nan_to_num(-9).argmax(2)
    y = torch.where(torch.rand(6, 9, generator=rng) < 0.5, top, y)
    y = torch.where(z.gather(2, y[..., None])[..., 0] == -torch.inf, top, y)
    y[1, 2:5], y[5] = -100, -100
    if layout == "shifted":
        z, y = z[:, :-1], y[:, :-1]
    elif layout == "turned":
        z = z.transpose(1, 2).contiguous().transpose(1, 2)
    kept = z.clone()
    got = statistics.of_tokens(z, y)
    assert torch.equal(z.nan_to_num(5), kept.nan_to_num(5))
    for i in range(6):
        labelled = y[i] >= 0
        assert got["tokens"][i] == labelled.sum()
        for name, values in exact(z[i, labelled], y[i, labelled]).items():
            torch.testing.assert_close(got[name][i].double(), values.mean(), rtol=1e-5, atol=1e-9, equal_nan=True)


def test_tokens_of_a_class_that_does_not_exist():
    for y in (-1, 3):
        with pytest.raises(IndexError, match=r"are not in 0\.\.2"):
            statistics.of_tokens(torch.zeros(1, 1, 3), torch.tensor([[y]]))
    assert statistics.of_tokens(torch.zeros(2, 0, 3), torch.zeros(2, 0, dtype=torch.long))["tokens"].tolist() == [0, 0]


def test_a_log_of_stored_logits(tmp_path):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, 4, 3)).astype(np.float32)
    log = TrainingLog.from_logits(tmp_path / "log", IDS, logits, Y, divergence=True, facts={"network": "none"})
    assert (log.epochs, log.mode, log.task, log.classes) == (3, "train", "classification", 3)
    assert log.facts["network"] == "none" and log.facts["rows"] == 4
    assert (log.keys == np.sort(identity.digests(IDS))).all()
    assert (identity.digests(log.ids) == log.keys).all()
    for epoch, (margin, correct) in enumerate(log.each("margin", "correct")):
        assert margin.dtype == np.float32 and correct.dtype == bool
        assert (margin == log.read("margin", epoch)).all()
        for name, values in naive(logits[epoch], Y).items():
            assert in_order(log, name, epoch) == pytest.approx(values, abs=1e-6)
    assert np.isnan(log.read("divergence", 0)).all()
    p = np.exp(logits.astype(float))
    p /= p.sum(2, keepdims=True)
    for t in (0, 1):
        want = np.abs(p[t + 1] * (np.log(p[t + 1] + 1e-8) - np.log(p[t] + 1e-8))).sum(1)
        assert in_order(log, "divergence", t + 1) == pytest.approx(want, rel=1e-5)
    assert log.report(1).rows == 4 and log.report(1).nan == 0


def test_a_log_of_a_language_model(tmp_path):
    z = np.random.default_rng(0).normal(size=(2, 4, 5, 7)).astype(np.float32)
    y = np.random.default_rng(1).integers(0, 7, (4, 5))
    y[3, 1:] = -100
    y[2] = -100
    log = TrainingLog.from_logits(tmp_path / "log", IDS, z, y)
    assert log.task == "language_model" and "correct" not in log.columns
    assert in_order(log, "tokens", 0).tolist() == [5, 5, 0, 1]
    assert in_order(log, "accuracy", 1)[0] == pytest.approx(naive(z[1, 0], y[0])["correct"].mean())
    assert in_order(log, "el2n", 1)[3] == pytest.approx(naive(z[1, 3, :1], y[3, :1])["el2n"][0], abs=1e-6)
    assert (log.report(0).nan, log.report(0).empty) == (0, 1)
    assert np.isnan(in_order(log, "loss", 0)).tolist() == [False, False, True, False]


def test_a_mask_and_its_labels(tmp_path):
    z = np.random.default_rng(0).normal(size=(4, 5, 7)).astype(np.float32)
    made = TrainingLog.create(tmp_path / "log", ids=IDS)
    made.record(IDS, z, np.zeros((4, 5), int), mask=np.arange(5)[None] < np.array([[1], [2], [3], [4]]))
    made.end_epoch()
    assert in_order(TrainingLog(tmp_path / "log"), "tokens", 0).tolist() == [1, 2, 3, 4]


def test_numbers_as_ids_in_any_container(tmp_path):
    ids = np.array([30, 10, 20, 40])
    made = TrainingLog.create(tmp_path / "log", ids=pa.chunked_array([[30, 10], [20, 40]]))
    for part in ([3, 0], [1, 2]):
        made.record(torch.tensor(ids[part]), torch.tensor(Z[part]), torch.tensor(Y[part]))
    made.end_epoch()
    log = TrainingLog(tmp_path / "log")
    assert in_order(log, "margin", 0, ids.tolist()).tolist() == [2, -1, 0, -5]


def test_one_block_or_many(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    logits, labels, ids = rng.normal(size=(2, 50, 6)), rng.integers(0, 6, 50), [str(i) for i in range(50)]
    once = TrainingLog.from_logits(tmp_path / "a", ids, logits, labels, divergence=True)
    monkeypatch.setattr(recorder, "BLOCK", 60)
    made = TrainingLog.create(tmp_path / "b", ids=ids, divergence=True)
    for epoch in logits:
        for i in range(0, 50, 7):
            made.record(ids[i : i + 7], epoch[i : i + 7], labels[i : i + 7])
        made.end_epoch()
    many = TrainingLog(tmp_path / "b")
    for name in once.columns:
        np.testing.assert_array_equal(once.read(name, 1), many.read(name, 1))


def test_what_is_recorded_may_be_written_over(tmp_path):
    made = TrainingLog.create(tmp_path / "log", ids=IDS)
    z = torch.tensor(Z)
    made.record(IDS, z, torch.tensor(Y))
    z.fill_(0)
    made.end_epoch()
    assert in_order(TrainingLog(tmp_path / "log"), "margin", 0).tolist() == [2, -1, 0, -5]


def full(made, ids=IDS, z=Z, y=Y):
    made.record(ids, z, y)
    return made.end_epoch()


def test_each_id_once_an_epoch(tmp_path):
    made = TrainingLog.create(tmp_path / "log", ids=IDS)
    with pytest.raises(ValueError, match=r"1 id is not in the log: 'z'; record the dataset that the log was made for"):
        made.record(["a", "z"], Z[:2], Y[:2])
    made.record(IDS[:3], Z[:3], Y[:3])
    with pytest.raises(ValueError, match=r"epoch 0: 1 of 4 ids was not seen: 'd'; .*drop_last=False"):
        made.end_epoch()
    made.record(IDS, Z, Y)
    made.record(IDS[1:3], Z[:2], Y[:2])
    with pytest.raises(ValueError, match=r"2 of 4 ids were seen more than once: '[bc]', '[bc]'; .*without replacement"):
        made.end_epoch()
    assert TrainingLog(tmp_path / "log").epochs == 0
    full(made)  # an epoch that failed is gone
    assert TrainingLog(tmp_path / "log").epochs == 1


def test_ids_that_tell_nothing_apart(tmp_path):
    for ids, words in (
        ([], "there are no rows"),
        (["a", None], "1 id is null in column 'row_id'"),
        (["a", "b", "a"], r"1 id occurs more than once: 'a' \(2 times\)"),
    ):
        with pytest.raises(ValueError, match=words):
            TrainingLog.create(tmp_path / "log", ids=ids)
    assert not (tmp_path / "log").exists()


def test_labels_out_of_range(tmp_path):
    made = TrainingLog.create(tmp_path / "log", ids=IDS)
    with pytest.raises(ValueError, match=r"2 labels are not in 0..2: 3 of 'b', -1 of 'd'; give the network an output"):
        full(made, y=np.array([0, 3, 1, -1]))
    made = TrainingLog.create(tmp_path / "text", ids=IDS)
    with pytest.raises(ValueError, match=r"1 label is not in 0..6: 7 of 'c'"):
        full(made, z=np.zeros((4, 5, 7)), y=np.eye(4, 5, dtype=int) * [[0], [-100], [7], [6]])
    with pytest.raises(TypeError, match="hard labels"):
        TrainingLog.create(tmp_path / "soft", ids=IDS).record(IDS, Z, Y.astype(float))


def test_one_class_and_shapes(tmp_path):
    with pytest.raises(ValueError, match="logits of 1 class distinguish nothing"):
        full(TrainingLog.create(tmp_path / "a", ids=IDS), z=Z[:, :1])
    made = TrainingLog.create(tmp_path / "b", ids=IDS)
    with pytest.raises(ValueError, match=r"\(4,\) ids, logits of shape \(4, 3\) and labels of shape \(3,\)"):
        made.record(IDS, Z, Y[:3])
    made.record(IDS[:2], Z[:2], Y[:2])
    with pytest.raises(ValueError, match="logits are 2 wide, the log is of 3 classes"):
        made.record(IDS[2:], Z[2:, :2], Y[2:])
    with pytest.raises(ValueError, match="not for a language model"):
        full(
            TrainingLog.create(tmp_path / "c", ids=IDS, divergence=True), z=np.zeros((4, 2, 3)), y=np.zeros((4, 2), int)
        )
    with pytest.raises(ValueError, match="mode='test'"):
        TrainingLog.create(tmp_path / "d", ids=IDS, mode="test")
    with pytest.raises(ValueError, match="have no epoch"):
        TrainingLog.from_logits(tmp_path / "d", IDS, np.zeros((0, 4, 3)), Y)


def test_threshold_samples_have_the_last_class(tmp_path):
    made = TrainingLog.create(tmp_path / "log", ids=IDS, classes=4)
    full(made, z=np.c_[Z, np.zeros(4)], y=np.array([0, 2, 3, 3]))
    assert in_order(TrainingLog(tmp_path / "log"), "margin", 0).tolist() == [2, -1, -1, -3]


def test_a_loss_that_is_nan_is_recorded_and_reported(tmp_path):
    made = TrainingLog.create(tmp_path / "log", ids=IDS)
    full(made)
    z = Z.copy()
    z[2] = np.nan
    with pytest.warns(RuntimeWarning, match="epoch 1: the loss of 1 row is not finite, row_id 'c'; recorded as NaN"):
        full(made, z=z)
    full(made)
    log = TrainingLog(tmp_path / "log")
    assert [log.report(e).nan for e in range(3)] == [0, 1, 0] and list(log.report(1).nan_ids) == ["c"]
    assert np.isnan(in_order(log, "p_label", 1)).tolist() == [False, False, True, False]


def test_going_on(tmp_path):
    folder = tmp_path / "log"
    full(TrainingLog.create(folder, ids=IDS))
    with pytest.raises(ValueError, match="holds a training log already; name another folder, go on with it"):
        TrainingLog.create(folder, ids=IDS)
    with pytest.raises(ValueError, match="of another dataset: it has 4 rows, this one 4, of which 1 are not in it"):
        TrainingLog.create(folder, ids=["a", "b", "c", "x"], resume=True)
    with pytest.raises(ValueError, match="mode='train', not 'eval'"):
        TrainingLog.create(folder, ids=IDS, mode="eval", resume=True)
    made = TrainingLog.create(folder, ids=IDS[::-1], resume=True)
    assert made.epoch == 1
    with pytest.raises(ValueError, match="logits are 2 wide, the log is of 3 classes"):
        full(made, z=Z[:, :2], y=Y % 2)
    full(made, z=-Z)
    full(made, z=0 * Z)
    log = TrainingLog(folder)
    assert log.epochs == 3 and in_order(log, "margin", 1)[0] == -3
    with pytest.raises(ValueError, match="goes on with epoch 4, but the log .* has 3 finished epochs"):
        made.go_to(4)
    made.go_to(1)
    assert log.epochs == 1
    full(made, z=0 * Z)
    assert in_order(log, "margin", 1)[0] == 0


def test_going_on_in_the_middle_of_an_epoch(tmp_path):
    made = TrainingLog.create(tmp_path / "log", ids=IDS, divergence=True)
    full(made)
    made.record(IDS[:2], -Z[:2], Y[:2])
    made.save_state(tmp_path / "state")
    made = TrainingLog.create(tmp_path / "log", ids=IDS, divergence=True, resume=True)
    made.load_state([tmp_path / "state"])
    made.record(IDS[2:], -Z[2:], Y[2:])
    made.end_epoch()
    whole = TrainingLog.from_logits(tmp_path / "whole", IDS, np.stack([Z, -Z]), Y, divergence=True)
    for name in whole.columns:
        np.testing.assert_array_equal(TrainingLog(tmp_path / "log").read(name, 1), whole.read(name, 1))
    with pytest.raises(ValueError, match="is not of epoch 2"):
        made.load_state([tmp_path / "state"])
    full(made, z=2 * Z)  # is compared with what was recorded before the break, too
    whole = TrainingLog.from_logits(tmp_path / "long", IDS, np.stack([Z, -Z, 2 * Z]), Y, divergence=True)
    np.testing.assert_array_equal(TrainingLog(tmp_path / "log").read("divergence", 2), whole.read("divergence", 2))


def test_an_attempt_without_a_finished_epoch_is_begun_anew(tmp_path):
    folder = tmp_path / "log"
    first = TrainingLog.create(folder, ids=IDS, divergence=True, labels=Y)
    first.record(IDS[:2], Z[:2], Y[:2])
    first.save_state(tmp_path / "state")
    with pytest.warns(UserWarning, match="holds a log without a finished epoch, .* begins anew"):
        made = TrainingLog.create(folder, ids=IDS[:3], divergence=True)
    assert not list(folder.glob("probabilities-*"))
    with pytest.raises(ValueError, match="another run has begun a log in .* since this one did"):
        full(first)
    with pytest.raises(ValueError, match="the probabilities that belong to .*state are gone"):
        made.load_state([tmp_path / "state"])
    full(made, IDS[:3], Z[:3], Y[:3])
    with pytest.raises(ValueError, match="holds a training log already"):
        TrainingLog.create(folder, ids=IDS)
    assert TrainingLog(folder).epochs == 1


def test_a_checkpoint_that_was_cut_off_is_no_hindrance(tmp_path):
    full(TrainingLog.create(tmp_path / "log", ids=IDS))
    half = tmp_path / "log" / "checkpoint-1.hf_prune_tmp"
    half.mkdir()
    (half / "model.safetensors").write_text("half")
    assert TrainingLog.create(tmp_path / "log", ids=IDS, resume=True).epoch == 1 and not half.exists()


def test_labels_are_those_that_the_log_began_with(tmp_path):
    folder = tmp_path / "log"
    full(TrainingLog.create(folder, ids=IDS, labels=Y))
    with pytest.raises(ValueError, match=r"log: 'b' has 1, not 2 \(1 of 4 rows\); go on with the labels"):
        TrainingLog.create(folder, ids=IDS, labels=[0, 1, 1, 0], resume=True)
    TrainingLog.create(folder, ids=IDS[::-1], labels=Y[::-1], resume=True)
    TrainingLog.create(folder, ids=IDS, resume=True)  # not told: not compared
    full(TrainingLog.create(tmp_path / "old", ids=IDS))
    as_before_digests(tmp_path / "old", run=False)  # nor had logs labels and names of runs then
    made = TrainingLog.create(tmp_path / "old", ids=IDS, labels=1 - Y, resume=True)
    full(made)
    assert TrainingLog(tmp_path / "old").epochs == 2
    text = TrainingLog.create(tmp_path / "text", ids=IDS, labels=Y, task="language_model")
    full(text, z=np.zeros((4, 2, 3)), y=np.zeros((4, 2), int))
    TrainingLog.create(tmp_path / "text", ids=IDS, labels=1 - Y, resume=True)
    for labels in ([0, 1], Y[:, None]):
        with pytest.raises(ValueError, match="do not go with 4 ids; give one each"):
            TrainingLog.create(tmp_path / "bad", ids=IDS, labels=labels)
    with pytest.raises(TypeError, match="hard labels"):
        TrainingLog.from_logits(tmp_path / "bad", IDS, Z[None], [0.5] * 4)


def test_divergence_keeps_two_epochs(tmp_path):
    made = TrainingLog.create(tmp_path / "log", ids=IDS, divergence=True)
    for scale in (1, 2, 3, 4):
        full(made, z=Z * scale)
    assert len(list((tmp_path / "log").glob("probabilities-*"))) == 2
    with pytest.raises(ValueError, match="the probabilities of epoch 0, with which epoch 1 is compared, are gone"):
        made.go_to(1)
    made.go_to(3)
    full(made, z=Z * 4)
    whole = TrainingLog.from_logits(
        tmp_path / "whole", IDS, np.stack([Z * s for s in (1, 2, 3, 4)]), Y, divergence=True
    )
    np.testing.assert_array_equal(TrainingLog(tmp_path / "log").read("divergence", 3), whole.read("divergence", 3))


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no training log"):
        TrainingLog(tmp_path)
    made = TrainingLog.create(tmp_path / "log", ids=IDS, classes=3, task="classification")
    log = TrainingLog(tmp_path / "log")
    assert log.epochs == 0
    with pytest.raises(ValueError, match="has no finished epoch; train for one epoch at least"):
        next(log.each("loss"))
    full(made)
    with pytest.raises(KeyError, match="no column 'el3n'; its columns are"):
        log.read("el3n", 0)
    with pytest.raises(IndexError, match="epoch 1 is not in the log; .* has 1 finished epochs, from 0"):
        log.read("el2n", 1)
    manifest = tmp_path / "log" / "log.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(facts | {"format": 9}))
    with pytest.raises(ValueError, match="has format 9, this version reads 1"):
        TrainingLog(tmp_path / "log")
    manifest.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        TrainingLog(tmp_path / "log")


def as_before_digests(folder: Path, run: bool = True) -> None:
    """Turn a log into one of the first format: without digests, and in its beginnings without names of runs."""
    for path in [folder / "log.json", *folder.glob("epoch-*/report.json")]:
        gone = {"digest", "digests", "probabilities", "rows" if path.name == "log.json" else "", "" if run else "run"}
        facts = {name: value for name, value in json.loads(path.read_text()).items() if name not in gone}
        if "format" in facts:
            facts |= {"format": 1, "id_column": facts.pop("row_id")}
        path.write_text(json.dumps(facts))


def test_a_log_of_the_second_format_is_read_and_gone_on_with(tmp_path):
    made = TrainingLog.create(tmp_path, ids=IDS, labels=Y, row_id="key")
    full(made)
    facts = json.loads((tmp_path / "log.json").read_text())
    facts = {n: f for n, f in facts.items() if n not in ("digest", "row_id")} | {"format": 2, "id_column": "key"}
    (tmp_path / "log.json").write_text(sealed(facts))
    log = TrainingLog(tmp_path)
    assert log.row_id == "key" and hp.AUM.from_log(log).row_id == "key"
    full(TrainingLog.create(tmp_path, ids=IDS, labels=Y, row_id="key", resume=True))
    assert log.epochs == 2
    with pytest.raises(ValueError, match="has row_id='key', not 'row_id'"):
        TrainingLog.create(tmp_path, ids=IDS, labels=Y, resume=True)
    (tmp_path / "log.json").write_text(sealed(facts | {"format": 3}))
    with pytest.raises(ValueError, match="no 'row_id'"):
        TrainingLog(tmp_path)


def test_a_truncated_part_is_a_damaged_epoch(tmp_path):
    folder = tmp_path / "log"
    made = TrainingLog.create(folder, ids=IDS)
    full(made), full(made)
    part = folder / "epoch-00001" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    log = TrainingLog(folder)
    assert log.epochs == 2 and list(log.damaged()) == [1] and len(log.read("loss", 0)) == 4
    with pytest.raises(
        DamagedFileError, match=r"recording of epoch 1 .*part-00000.parquet has .* bytes, not .*leave the"
    ):
        log.read("loss", 1)
    made = TrainingLog.create(folder, ids=IDS, resume=True)
    assert made.epoch == 1 and log.epochs == 2  # nothing is touched before there is something better
    with pytest.warns(UserWarning, match=r"epoch 1 of the log .* is damaged; it was moved to epoch-00001.damaged-1"):
        full(made)
    assert log.epochs == 2 and not log.damaged() and (folder / "epoch-00001.damaged-1" / part.name).exists()


KILLED = """
import sys, time
import numpy as np
from hf_prune import TrainingLog
ids = [f"row {i}" for i in range(100)]
z = np.random.default_rng(0).normal(size=(100, 4))
made = TrainingLog.create(sys.argv[1], ids=ids)
for _ in range(2):
    made.record(ids, z, np.zeros(100, int))
    made.end_epoch()
made.record(ids[:50], z[:50], np.zeros(50, int))
made.save_state(made.folder / "epoch-00002.hf_prune_tmp")  # as a kill in the middle of a write leaves it
print("half", flush=True)
time.sleep(100)
"""


def test_a_kill_in_mid_epoch(tmp_path):
    folder = tmp_path / "log"
    with beside(KILLED, folder) as child:
        assert child.stdout is not None and child.stdout.readline() == "half\n"
    ids = [f"row {i}" for i in range(100)]
    log = TrainingLog(folder)
    assert log.epochs == 2 and len(log.read("loss", 1)) == 100
    made = TrainingLog.create(folder, ids=ids, resume=True)
    assert not list(folder.rglob("*tmp"))
    full(made, ids, np.zeros((100, 4)), np.zeros(100, int))
    assert log.epochs == 3 and log.read("loss", 2) == pytest.approx(np.full(100, np.log(4)))


def test_memory_does_not_grow_with_epochs_or_classes(tmp_path):
    """What the writer holds at the end of an epoch of 20 000 rows: 44 bytes a row, whatever the classes."""
    n, ids = 20_000, np.arange(20_000)
    for classes in (3, 300):
        made = TrainingLog.create(tmp_path / str(classes), ids=ids, classes=classes)
        z = torch.zeros(1000, classes)
        for epoch in range(3):
            for i in range(0, n, 1000):
                made.record_rows(np.arange(i, i + 1000), z, torch.zeros(1000, dtype=torch.long))
            assert made.recorder.held_bytes[0] <= 4 * recorder.BLOCK + z.nbytes + 8 * n
            made.recorder.work_out()
            assert made.recorder.held_bytes[0] == 0 < made.recorder.held_bytes[1] <= 52 * n, epoch
            made.end_epoch()
            assert made.recorder.held_bytes == (0, 0)


def test_importing_the_log_is_light():
    code = "import sys, hf_prune.dynamics.log, hf_prune.dynamics.writer; print('torch' in sys.modules)"
    assert python(code).stdout == "False\n"
