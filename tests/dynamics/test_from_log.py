"""Scores out of a training log: the numbers of their papers, an independent loop over stored logits, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
from datasets import ClassLabel, Dataset

import hf_prune as hp
from hf_prune.data.identity import digests
from hf_prune.dynamics.aum import flagged, threshold_rows
from hf_prune.dynamics.cartography import training_map
from hf_prune.dynamics.dual import dual
from hf_prune.dynamics.dynamic_uncertainty import dynamic_uncertainty
from hf_prune.dynamics.forgetting import forgetting_events
from hf_prune.dynamics.from_log import mean_of_epochs
from hf_prune.dynamics.log import TrainingLog
from hf_prune.dynamics.tdds import tdds

T, N, C = 14, 60, 5
IDS = [f"row {i}" for i in range(N)]
LABELS = np.arange(N) % C

MAKERS = {
    "el2n_train": hp.EL2N.from_log,
    "forgetting": hp.Forgetting.from_log,
    "aum": hp.AUM.from_log,
    "variability": hp.Cartography.from_log,
    "dyn_unc": hp.DynamicUncertainty.from_log,
    "tdds": hp.TDDS.from_log,
    "uncertainty_entropy": hp.Uncertainty.from_log,
}


def make_logits(seed):
    """Logits (T, N, C) of rows that are learned at different times, some never."""
    rng = np.random.default_rng(seed)
    pull = np.linspace(0, 1, T)[:, None] * rng.normal(1.5, 2, N)
    logits = rng.normal(size=(T, N, C)) * 1.5
    logits[:, np.arange(N), LABELS] += pull
    return logits.astype(np.float32)


@pytest.fixture(scope="module")
def logits():
    return make_logits(0)


@pytest.fixture(scope="module")
def log(logits, tmp_path_factory):
    return TrainingLog.from_logits(tmp_path_factory.mktemp("log"), IDS, logits, LABELS, divergence=True)


@pytest.fixture(scope="module")
def other_log(tmp_path_factory):
    return TrainingLog.from_logits(tmp_path_factory.mktemp("log"), IDS, make_logits(1), LABELS, divergence=True)


def scored(scorer, ids=IDS):
    return scorer({"row_id": list(ids)})


def by_hand(logits):
    """Every score, from the definitions, row by row."""
    p = scipy.special.softmax(logits.astype(np.float64), axis=2)
    out = {name: np.zeros(N) for name in MAKERS}
    for i in range(N):
        y = LABELS[i]
        trace = p[:, i, y]
        right = logits[:, i].argmax(1) == y
        error = p[:, i].copy()
        error[:, y] -= 1
        out["el2n_train"][i] = np.linalg.norm(error, axis=1).mean()
        events = sum(bool(a and not b) for a, b in zip(right, right[1:], strict=False))
        out["forgetting"][i] = events if right.any() else T
        out["aum"][i] = np.mean([z[y] - max(z[j] for j in range(C) if j != y) for z in logits[:, i].astype(float)])
        out["variability"][i] = trace.std()
        windows = [trace[k : k + 10].std(ddof=1) for k in range(T - 10)]
        out["dyn_unc"][i] = np.mean(windows)
        change = [np.abs(q * (np.log(q + 1e-8) - np.log(r + 1e-8))).sum() for r, q in zip(p[:, i], p[1:, i])]  # noqa: B905
        for k in range(T - 10 + 1):
            window = np.array(change[k : k + 9])
            out["tdds"][i] += np.sqrt(((window - window.mean()) ** 2).sum()) * 0.9 * 0.1 ** (T - 10 - k)
        out["uncertainty_entropy"][i] = -(p[:, i] * np.log(p[:, i])).sum(1).mean()
    return out


def test_dual_vectors(tmp_path):
    p = np.array([[0.2, 0.5, 0.9], [0.4, 0.6, 0.9], [0.7, 0.4, 0.95], [0.6, 0.7, 0.9]])
    np.testing.assert_allclose(dual(p, window=3), [0.10440037, 0.05809638, 0.00240563], atol=5e-9)
    z = np.stack([np.log(p / (1 - p)), np.zeros_like(p)], axis=2)
    log = TrainingLog.from_logits(tmp_path, list("abc"), z, [0] * 3, mode="eval")
    scores = hp.DUAL.from_log(log, window=3)({"row_id": list("abc")})["dual"]
    np.testing.assert_allclose(scores, dual(p, window=3), atol=1e-7)
    np.testing.assert_allclose(dual(p, window=4), p.std(0, ddof=1) * (1 - p.mean(0)), rtol=1e-12)  # all epochs
    with pytest.raises(ValueError, match="a window of 5 epochs needs as many recorded"):
        hp.DUAL.from_log(log, window=5)
    with pytest.raises(ValueError, match="window=1 is no whole number from 2 up"):
        hp.DUAL.from_log(log, window=1)


def test_forgetting_vectors():
    histories = ["111111", "010110", "000000", "000111", "101010", "000001"]
    right = np.array([[c == "1" for c in row] for row in histories])
    events = forgetting_events(right.T)
    assert events.forgotten.tolist() == [0, 2, 0, 0, 3, 0]
    assert events.first_learned.tolist() == [0, 1, -1, 3, 0, 5] and events.presentations == 6
    assert events.forgotten.dtype == np.int32


def test_aum_vectors():
    margins = np.array([[1.26, 1.15], [-3.20, -4.37], [1.77, 0.52]])
    np.testing.assert_allclose(mean_of_epochs(margins.T), [1.205, -3.785, 1.145], atol=1e-12)


def test_cartography_vectors():
    p = np.array([[0.9, 0.95, 0.99], [0.2, 0.6, 0.4], [0.05, 0.1, 0.02]])
    found = training_map((column, column > 0.5) for column in p.T)
    np.testing.assert_allclose(found.confidence, [0.9466666667, 0.4, 0.0566666667], atol=1e-10)
    np.testing.assert_allclose(found.variability, [0.0368178701, 0.1632993162, 0.0329983165], atol=1e-10)
    np.testing.assert_allclose(found.threshold_closeness, found.confidence * (1 - found.confidence))
    variance = p.var(axis=1)
    np.testing.assert_allclose(found.wide_variability, np.sqrt(variance + variance**2 / 2), atol=1e-12)
    assert found.correctness.tolist() == [3, 1, 0]


def test_dynamic_uncertainty_vectors():
    p = np.array([[0.5, 0.6, 0.7, 0.8, 0.9, 0.9], [0.1, 0.9, 0.1, 0.9, 0.1, 0.9], [0.4] * 6])
    np.testing.assert_allclose(dynamic_uncertainty(p.T, 3), [0.1, 0.4618802154, 0], atol=1e-10)
    with pytest.raises(ValueError, match="a window of 6 epochs needs 7 recorded ones or more"):
        dynamic_uncertainty(p.T, 6)


def test_tdds_vector(tmp_path):
    p = np.array([[[0.7, 0.3]], [[0.6, 0.4]], [[0.9, 0.1]], [[0.8, 0.2]]])
    change = [np.abs(q * (np.log(q + 1e-8) - np.log(r + 1e-8))).sum(1) for r, q in zip(p, p[1:])]  # noqa: B905
    np.testing.assert_allclose(tdds(change, 3, 0.9), [0.1911037971], atol=1e-10)
    np.testing.assert_allclose(tdds([np.zeros(2)] * 5, 3), 0)
    log = TrainingLog.from_logits(tmp_path / "log", ["a"], np.log(p), [0], divergence=True)
    found = hp.TDDS.from_log(log, window=3)({"row_id": ["a"]})["tdds"]
    np.testing.assert_allclose(found, [0.1911037971], atol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_equals_a_loop_over_stored_logits(name, log, logits):
    scorer = MAKERS[name](log)
    assert scorer.name == name
    np.testing.assert_allclose(scored(scorer)[name], by_hand(logits)[name], atol=2e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_row_order_and_parts_do_not_matter(name, log, logits, tmp_path):
    writer = TrainingLog.create(tmp_path / "log", ids=IDS[::-1], label="label", classes=C, divergence=True)
    for epoch, z in enumerate(logits):
        order = np.random.default_rng(epoch).permutation(N)
        for batch in np.array_split(order, 7):
            writer.record([IDS[i] for i in batch], z[batch], LABELS[batch])
        writer.end_epoch()
    other = MAKERS[name](TrainingLog(tmp_path / "log"))
    again = np.random.default_rng(9).permutation(N)
    found, expected = scored(other, np.array(IDS)[again].tolist()), scored(MAKERS[name](log))
    for column, values in expected.items():
        np.testing.assert_allclose(found[column], values[again], atol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_several_runs(name, log, other_log):
    one, two = (scored(MAKERS[name](each))[name] for each in (log, other_log))
    both = scored(MAKERS[name]([log, str(other_log.folder)]))[name]
    expected = one + two if name == "forgetting" else (one.astype(float) + two) / 2
    np.testing.assert_allclose(both, expected, atol=1e-6)
    assert MAKERS[name]([log, other_log]).fitted_on["runs"] == 2


def test_cartography_companions(log, logits):
    p = scipy.special.softmax(logits.astype(np.float64), axis=2)[:, np.arange(N), LABELS]
    found = scored(hp.Cartography.from_log(log))
    assert list(found) == ["variability", "confidence", "correctness", "threshold_closeness"]
    np.testing.assert_allclose(found["confidence"], p.mean(0), atol=1e-6)
    assert (found["correctness"] == (logits.argmax(2) == LABELS).sum(0)).all()
    other = scored(hp.Cartography.from_log(log, name="spread", include_ci=True))
    assert "spread_confidence" in other and (other["spread"] >= found["variability"]).all()


def test_chosen_epochs(log, logits):
    scorer = hp.EL2N.from_log(log, epochs=3)
    p = scipy.special.softmax(logits[3].astype(np.float64), axis=1) - np.eye(C)[LABELS]
    np.testing.assert_allclose(scored(scorer)["el2n_train"], np.linalg.norm(p, axis=1), atol=1e-6)
    assert scorer.fitted_on["epochs"] == "3" and scorer.fitted_on["recorded_epochs"] == T
    assert hp.AUM.from_log(log, epochs=[0, 1, 2, 7]).fitted_on["epochs"] == "0-2, 7"
    part = scored(hp.TDDS.from_log(log, epochs=range(2, 7), window=3))["tdds"]
    whole = [log.read("divergence", epoch) for epoch in range(3, 7)]
    np.testing.assert_allclose(part, tdds(whole, 3)[np.argsort(np.argsort(digests(IDS)))], atol=1e-6)


def test_clean_passes_are_el2n_and_training_passes_are_not(logits, log, tmp_path):
    clean = TrainingLog.from_logits(tmp_path / "clean", IDS, logits, LABELS, mode="eval")
    assert hp.EL2N.from_log(clean).name == "el2n" and hp.EL2N.from_log(log).name == "el2n_train"
    assert "not the paper's clean pass" in hp.EL2N.from_log(log).describe().raw
    with pytest.warns(UserWarning, match="epoch 0 begin at initialization"):
        hp.EL2N.from_log(log, epochs=0)
    hp.EL2N.from_log(clean, epochs=0)  # a clean pass comes after the epoch
    with pytest.raises(ValueError, match="log 1 has mode 'train', log 0 has 'eval'"):
        hp.EL2N.from_log([clean, log])


def test_rules_for_the_never_learned(tmp_path):
    right = np.array([[c == "1" for c in row] for row in ["111111", "010110", "000000", "000111"]])
    z = np.where(right.T[:, :, None], [2.0, 0.0], [0.0, 2.0])
    log = TrainingLog.from_logits(tmp_path / "log", list("abcd"), z, [0] * 4)
    rows = {"row_id": list("abcd")}
    found = hp.Forgetting.from_log(log)(rows)
    assert found["forgetting"].tolist() == [0, 2, 6, 0] and found["forgetting"].dtype == np.float32
    assert found["forgetting_first_learned"].tolist() == [0, 1, -1, 3]
    assert found["forgetting_never_learned"].tolist() == [0, 0, 1, 0]
    assert hp.Forgetting.from_log(log, never="inf")(rows)["forgetting"].tolist() == [0, 2, np.inf, 0]
    assert hp.Forgetting.from_log([log, log], never="inf")(rows)["forgetting"].tolist() == [0, 4, np.inf, 0]
    assert hp.Forgetting.from_log(log, never=0)(rows)["forgetting"].tolist() == [0, 2, 0, 0]
    assert hp.Forgetting.from_log([log, log])(rows)["forgetting"].tolist() == [0, 4, 12, 0]
    once = TrainingLog.from_logits(tmp_path / "once", list("abcd"), np.stack([z[0], z[1]]), [0] * 4)
    for never, want in ((2.5, [0, 2, 5, 2.5]), (np.float32(0.25), [0, 2, 0.5, 0.25]), (np.int64(7), [0, 2, 14, 7])):
        both = hp.Forgetting.from_log([log, once], never=never)
        assert both(rows)["forgetting"].tolist() == want, never
        assert hp.Forgetting.from_log(log, never=never)(rows)["forgetting"].tolist() == [0, 2, never, 0]
        assert type(both.never) in (int, float) and str(both.never) in both.raw
    assert hp.Forgetting.from_log(log, never=float("inf"))(rows)["forgetting"].tolist() == [0, 2, np.inf, 0]
    assert sorted(hp.Forgetting.from_log(log)(rows)) == [
        f"forgetting{x}" for x in ("", "_first_learned", "_never_learned")
    ]
    for never in (float("nan"), -0.5, True, None):
        with pytest.raises(ValueError, match="is none of 'epochs', 'inf' or a number"):
            hp.Forgetting.from_log(log, never=never)
    with pytest.raises(ValueError, match="never=2.5 with tie_break='el2n': .* give never=2, or no tie_break"):
        hp.Forgetting.from_log(log, never=2.5, tie_break="el2n")
    for tie_break in ("first_learned", "el2n"):
        fine = hp.Forgetting.from_log([log, log], tie_break=tie_break)(rows)["forgetting"]
        assert np.floor(fine).tolist() == [0, 4, 12, 0] and fine.dtype == np.float64
        assert fine[3] > fine[0]  # learned later, more often wrong: harder among the unforgettable
    with pytest.raises(ValueError, match="never='T' is none of 'epochs', 'inf' or a number"):
        hp.Forgetting.from_log(log, never="T")
    with pytest.raises(ValueError, match="tie_break='x' is not known; choose one of None, 'first_learned', 'el2n'"):
        hp.Forgetting.from_log(log, tie_break="x")


def test_high_aum_means_keep(log):
    column = hp.AUM.from_log(log).describe()
    assert "mislabelled rows are the lowest" in column.meaning and "the column is it" in column.raw
    with pytest.raises(TypeError, match="mode"):
        hp.AUM.from_log(log, mode="prune")


@pytest.mark.parametrize("percentile", [200, -1, float("nan"), "99"])
def test_a_percentile_that_is_none_is_refused_with_and_without_threshold_samples(log, percentile):
    with pytest.raises(ValueError, match="percentile=.* is not 0 or more and up to 100"):
        hp.AUM.from_log(log, percentile=percentile)


def test_threshold_rows_are_disjoint_and_a_function_of_the_ids():
    keys = digests(IDS)
    lots = [threshold_rows(keys, C, run, seed=3) for run in range(C + 1)]
    assert [int(lot.sum()) for lot in lots] == [N // (C + 1)] * (C + 1) and np.sum(lots, axis=0).max() == 1
    order = np.random.default_rng(0).permutation(N)
    assert (threshold_rows(keys[order], C, 1, seed=3) == lots[1][order]).all()
    assert (threshold_rows(keys, C, 0, seed=4) != lots[0]).any()
    with pytest.raises(ValueError, match="4 rows are fewer than 5 classes and one"):
        threshold_rows(keys[:4], C)
    with pytest.raises(ValueError, match="run=6: there are 6 disjoint sets"):
        threshold_rows(keys, C, 6)


def test_with_threshold_samples():
    ds = Dataset.from_dict({"row_id": IDS, "label": LABELS.tolist(), "x": list(range(N))})
    named = ds.cast_column("label", ClassLabel(names=list("abcde")))
    out = hp.with_threshold_samples(named, run=1, seed=3)
    assert out.features["label"].names == [*"abcde", "threshold sample"] and out.column_names == ds.column_names
    changed = np.array(out["label"][:]) != LABELS
    assert (changed == threshold_rows(digests(IDS), C, 1, 3)).all() and set(np.array(out["label"][:])[changed]) == {C}
    assert out["x"][:] == ds["x"][:]
    assert hp.with_threshold_samples(ds, run=1, seed=3)["label"][:] == out["label"][:]
    with pytest.raises(KeyError, match="'y'"):
        hp.with_threshold_samples(ds, label="y")
    with pytest.raises(ValueError, match="has class 4, but classes=3"):
        hp.with_threshold_samples(ds, classes=3)
    with pytest.raises(TypeError, match="'row_id' has type string, not numbers"):
        hp.with_threshold_samples(ds, label="row_id")
    with pytest.raises(ValueError, match="threshold samples need integer classes from 0, without nulls"):
        hp.with_threshold_samples(Dataset.from_dict({"row_id": ["a", "b"], "label": [0, None]}))


def test_threshold_samples_find_planted_errors(tmp_path):
    """Two runs with planted areas: rows below the samples' 99th percentile in both are flagged, and only they."""
    rng = np.random.default_rng(0)
    n, classes = 300, 2
    ids = [str(i) for i in range(n)]
    wrong = np.arange(n) < 20
    logs, margins = [], []
    for run in range(2):
        samples = threshold_rows(digests(ids), classes, run)
        margin = np.where(samples, -3 + rng.normal(0, 0.3, n), np.where(wrong, -4 + rng.normal(0, 0.3, n), 4.0))
        z = np.zeros((1, n, classes + 1))
        labels = np.where(samples, classes, 0)
        z[0, np.arange(n), labels] = margin
        logs.append(TrainingLog.from_logits(tmp_path / f"run{run}", ids, z, labels))
        margins.append((margin, samples))
    found = hp.AUM.from_log(logs, threshold_seed=0)({"row_id": ids})
    assert (found["aum_flagged"] == wrong).all() and found["aum_flagged"].dtype == bool
    in_run = [np.where(samples, np.nan, margin) for margin, samples in margins]
    np.testing.assert_allclose(found["aum"], np.nanmean(in_run, axis=0), atol=1e-5)
    with pytest.raises(ValueError, match="threshold samples need two runs or more"):
        hp.AUM.from_log(logs[0], threshold_seed=0)


def test_threshold_samples_are_those_of_the_labels(tmp_path):
    """Three runs; what does not go with the order, the seed or the width of the output is refused, and said."""
    rng = np.random.default_rng(5)
    n, classes = 90, 3
    ds = Dataset.from_dict({"row_id": [f"id{i}" for i in range(n)], "label": rng.integers(0, classes, n).tolist()})
    z = rng.normal(size=(2, n, classes + 1))

    def log(name, labels, width=0, **options):
        wide = np.concatenate([z, rng.normal(size=(2, n, width))], axis=2)
        return TrainingLog.from_logits(tmp_path / name, ds["row_id"][:], wide, np.array(labels), **options)

    runs = [log(f"run{run}", hp.with_threshold_samples(ds, run=run, seed=9)["label"][:]) for run in range(3)]

    def score(*logs, seed=9):
        return hp.AUM.from_log(list(logs), threshold_seed=seed)

    assert "aum_flagged" in score(*runs).columns() and "aum_flagged" in score(*runs[:2]).columns()
    words = r"log 0 has .* run 1, log 1 has .* run 2, log 2 has .* run 0; .*: \[logs\[2\], logs\[0\], logs\[1\]\]"
    with pytest.raises(ValueError, match=words):
        score(runs[1], runs[2], runs[0])
    with pytest.raises(ValueError, match="log 1 has those of run 0; give the logs of runs 0 to 1, in this order"):
        score(runs[0], runs[0])
    with pytest.raises(ValueError, match="log 1 has those of run 2; give the logs of runs 0 to 1"):
        score(runs[0], runs[2])
    with pytest.raises(ValueError, match="drawn with seed 8, log 0 has none of them, .* the seed they were drawn with"):
        score(*runs, seed=8)
    plain = log("plain", ds["label"][:])
    with pytest.raises(ValueError, match="log 0 has those of run 0, log 1 has none of them"):
        score(runs[0], plain)
    with pytest.raises(ValueError, match="networks have 4 outputs, .* go to 2: .* or these are no runs with threshold"):
        score(plain, plain)
    wide = [log(f"wide{run}", runs[run].labels[np.searchsorted(runs[0].keys, digests(ds["row_id"][:]))], 1)
            for run in range(2)]  # fmt: skip
    with pytest.raises(ValueError, match="networks have 5 outputs, .* but the labels go to 3: .* train with 4 outputs"):
        score(*wide)
    other = ds.map(lambda row: {"label": (row["label"] + 1) % classes if row["row_id"] == "id7" else row["label"]})
    changed = log("changed", hp.with_threshold_samples(other, run=1, seed=9)["label"][:])
    with pytest.raises(ValueError, match="log 1 has other labels than log 0 in 1 of 90 rows .*, first 'id7'"):
        score(runs[0], changed)
    silent = TrainingLog.create(tmp_path / "silent", ids=ds["row_id"][:])
    for epoch in z:
        silent.record(ds["row_id"][:], epoch, hp.with_threshold_samples(ds, run=1, seed=9)["label"][:])
        silent.end_epoch()
    with pytest.warns(UserWarning, match="log 1 does not know the labels it was trained on"):
        quiet = score(runs[0], tmp_path / "silent")
    assert (quiet.logged.values["flagged"] == score(*runs[:2]).logged.values["flagged"]).all()


def test_flag_is_strictly_more_than_a_percent():
    area = np.array([0.5, 98.5, 99.5, 200.0, *range(1, 101)])  # 100 samples with areas 1 to 100
    samples = np.array([False] * 4 + [True] * 100)
    assert flagged([area], [samples]).tolist()[:4] == [True, True, False, False]


@pytest.mark.filterwarnings("ignore:.*not finite")
def test_nan_rows_are_not_averaged_away(logits, tmp_path):
    broken = logits.copy()
    broken[4, [3, 11]] = np.nan
    log = TrainingLog.from_logits(tmp_path / "log", IDS, broken, LABELS, divergence=True)
    for name, make in MAKERS.items():
        with pytest.warns(UserWarning, match="2 of 60 rows had no finite loss in an epoch that counts"):
            scorer = make(log)
        found = scored(scorer)[name]
        assert np.flatnonzero(np.isnan(found)).tolist() == [3, 11], name
        assert scorer.fitted_on["nan_rows"] == 2
    before = scored(hp.AUM.from_log(log, epochs=range(4)))["aum"]  # no warning: the epochs that count are sound
    assert np.isfinite(before).all()


def test_bad_input(log, tmp_path, logits):
    with pytest.raises(ValueError, match="2 of 3 rows are not in the log: row_id 'x', 'y'"):
        scored(hp.AUM.from_log(log), ["row 1", "x", "y"])
    with pytest.raises(KeyError, match="row_id"):
        hp.AUM.from_log(log)({"id": ["a"]})
    found = hp.AUM.from_log(log, row_id="id")({"id": ["row 1"]})
    assert found["aum"] == scored(hp.AUM.from_log(log), ["row 1"])["aum"]
    with pytest.raises(ValueError, match="AUM: epoch 14 is not in the log, which has 14 finished ones"):
        hp.AUM.from_log(log, epochs=[14])
    with pytest.raises(ValueError, match="names none"):
        hp.AUM.from_log(log, epochs=[])
    with pytest.raises(ValueError, match="names an epoch twice"):
        hp.AUM.from_log(log, epochs=[1, 1])
    with pytest.raises(TypeError, match="epoch 0.5 is no whole number"):
        hp.AUM.from_log(log, epochs=[0.5])
    with pytest.raises(TypeError, match="got a dict; give a TrainingLog"):
        hp.AUM.from_log({})
    with pytest.raises(ValueError, match="AUM.from_log got no log"):
        hp.AUM.from_log([])
    with pytest.raises(ValueError, match="have a gap"):
        hp.TDDS.from_log(log, epochs=[0, 1, 3, 4])
    with pytest.raises(ValueError, match="a window of 20 epochs needs 21"):
        hp.DynamicUncertainty.from_log(log, window=20)
    with pytest.raises(ValueError, match="a window of 20 epochs needs as many recorded; there are 14"):
        hp.TDDS.from_log(log, window=20)
    with pytest.raises(
        ValueError, match="statistic='x' is not known; choose one of 'entropy', 'least_confidence', 'margin'"
    ):
        hp.Uncertainty.from_log(log, statistic="x")
    plain = TrainingLog.from_logits(tmp_path / "plain", IDS, logits, LABELS)
    with pytest.raises(ValueError, match="record the run with divergence=True"):
        hp.TDDS.from_log(plain)
    fewer = TrainingLog.from_logits(tmp_path / "fewer", [*IDS[1:], "new"], logits, LABELS)
    with pytest.raises(ValueError, match="log 1 has 60 rows, 1 of them not among the 60 of log 0"):
        hp.AUM.from_log([plain, fewer])
    TrainingLog.create(tmp_path / "empty", ids=IDS, classes=C)
    with pytest.raises(ValueError, match="the log has no finished epoch"):
        hp.AUM.from_log(tmp_path / "empty")


def test_language_model_logs(tmp_path):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(3, 2, 4, 6)), rng.integers(0, 6, (2, 4))
    y[1, 2:] = -100
    log = TrainingLog.from_logits(tmp_path / "log", ["a", "b"], z, y, label=None)
    rows = {"row_id": ["a", "b"]}
    p = scipy.special.softmax(z, axis=-1)
    error = np.linalg.norm(p - np.eye(6)[np.maximum(y, 0)], axis=-1)
    np.testing.assert_allclose(
        hp.EL2N.from_log(log)(rows)["el2n_train"], [error[:, 0].mean(), error[:, 1, :2].mean()], atol=1e-6
    )
    assert set(hp.Cartography.from_log(log)(rows)) > {"variability", "confidence"}
    with pytest.raises(ValueError, match="Forgetting counts rows that are right or wrong"):
        hp.Forgetting.from_log(log)


def test_planted_errors_end_where_the_docstrings_say():
    """Rows whose logits favour another class than their label: lowest AUM, highest EL2N and forgetting."""
    rng = np.random.default_rng(0)
    wrong = np.arange(N) < 6
    z = rng.normal(size=(T, N, C))
    z[:, np.arange(N), np.where(wrong, (LABELS + 1) % C, LABELS)] += 4
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        log = TrainingLog.from_logits(folder, IDS, z, LABELS)
        for maker, low in ((hp.AUM, True), (hp.EL2N, False), (hp.Forgetting, False)):
            scorer = maker.from_log(log)
            values = scored(scorer)[scorer.name]
            assert set(np.argsort(values if low else -values, kind="stable")[:6]) == set(range(6))
