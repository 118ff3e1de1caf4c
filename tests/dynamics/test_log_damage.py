"""Logs with a byte too few, a bit turned, or made by a stranger: named, and nothing sound is lost or taken for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from killing import flipped
from launching import python
from test_log import as_before_digests

import hf_prune as hp
from hf_prune import TrainingLog, train_with_log
from hf_prune.data.files import TEMPORARY, DamagedFileError, file_digest, temporary_path
from hf_prune.dynamics.format import sealed

N, C, T = 30, 3, 4
IDS = [f"row {i}" for i in range(N)]
RNG = np.random.default_rng(7)
LABELS = RNG.integers(0, C, N)
LOGITS = RNG.normal(size=(T, N, C)).astype(np.float32)


def make(folder: Path, epochs: int = T, **options) -> TrainingLog:
    return TrainingLog.from_logits(folder, IDS, LOGITS[:epochs], LABELS, **options)


def contents(log: TrainingLog) -> dict:
    found = {(name, e): log.read(name, e).tobytes() for e in range(log.epochs) for name in log.columns}
    reports = [vars(log.report(e)) for e in range(log.epochs)]
    return found | {"ids": log.ids.to_pylist(), "labels": log.labels.tolist(), "reports": reports, "facts": log.facts}


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "name", ["log.json", "rows.parquet", "epoch-00001/report.json", "epoch-00001/part-00000.parquet"]
)
def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path, name):
    folder = tmp_path / "log"
    want = contents(make(folder, 2))
    path = folder / name
    whole = path.read_bytes()
    for place, data in flipped(whole, most=120):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is damaged|has format") as caught:
            contents(TrainingLog(folder))
        assert str(folder) in str(caught.value), place
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DamagedFileError, match="is damaged"):
            contents(TrainingLog(folder))
    path.write_bytes(whole)
    assert contents(TrainingLog(folder)) == want


def test_a_bit_flipped_between_two_readings_of_one_epoch_of_another(tmp_path):
    """What was compared once is not compared again, but each epoch is once."""
    log = make(tmp_path / "log", 2)
    log.read("loss", 0)
    part = tmp_path / "log" / "epoch-00001" / "part-00000.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 3] ^= 1
    part.write_bytes(data)
    with pytest.raises(DamagedFileError, match="part-00000.parquet has changed since it was recorded"):
        log.read("loss", 1)


def test_scores_do_not_leave_a_damaged_epoch_out_in_silence(tmp_path):
    for name, harm in {
        "report": lambda at: (at / "report.json").write_bytes((at / "report.json").read_bytes()[:-1]),
        "no report": lambda at: (at / "report.json").unlink(),
        "no part": lambda at: (at / "part-00000.parquet").unlink(),
        "no folder": lambda at: shutil.rmtree(at),
    }.items():
        folder = tmp_path / name
        log = make(folder)
        want = hp.AUM.from_log(log, epochs=[0, 2, 3])
        harm(folder / "epoch-00001")
        with pytest.raises(DamagedFileError, match=r"of the 4 epochs in the log, 1 cannot .* out: epochs=\[0, 2, 3\]"):
            hp.AUM.from_log(folder)
        got = hp.AUM.from_log(folder, epochs=[0, 2, 3])
        assert (got.logged.values["score"] == want.logged.values["score"]).all()
        with pytest.raises(DamagedFileError, match="of epoch 1 .* is damaged"):
            hp.Forgetting.from_log(folder, epochs=range(2))
    make(tmp_path / "cut off", 2)
    (tmp_path / "cut off" / "epoch-00001" / "report.json").unlink()  # as a kill in the last epoch leaves it
    assert hp.AUM.from_log(tmp_path / "cut off").fitted_on["recorded_epochs"] == 1


def test_logs_without_digests_are_read_and_gone_on_with(tmp_path):
    want = contents(make(tmp_path / "new"))
    folder = tmp_path / "old"
    make(folder, 2)
    as_before_digests(folder)
    log = TrainingLog(folder)
    assert log.epochs == 2 and log.read("margin", 1).tobytes() == want["margin", 1]
    made = TrainingLog.create(folder, ids=IDS, labels=LABELS, resume=True)
    for z in LOGITS[2:]:
        made.record(IDS, z, LABELS)
        made.end_epoch()
    log = TrainingLog(folder)
    assert [bool(log.report(e).digests) for e in range(4)] == [False, False, True, True]
    got = contents(log)
    assert {k: v for k, v in got.items() if k != "reports"} == {k: v for k, v in want.items() if k != "reports"}
    assert json.loads((folder / "log.json").read_text())["format"] == 3  # earlier versions would not know the reports
    keys = folder / "rows.parquet"  # the manifest has always told of the keys
    make(tmp_path / "keys", 1)
    as_before_digests(tmp_path / "keys")
    table = pq.read_table(keys)
    pq.write_table(table.set_column(0, "key", pa.array(np.sort(RNG.integers(0, 1 << 60, N).astype(np.uint64)))),
                   tmp_path / "keys" / "rows.parquet")  # fmt: skip
    with pytest.raises(DamagedFileError, match="the keys are not those that log.json names"):
        TrainingLog(tmp_path / "keys").keys  # noqa: B018


def test_what_is_recorded_again_is_kept_until_then(tmp_path):
    folder = tmp_path / "log"
    want = contents(make(folder))
    made = TrainingLog.create(folder, ids=IDS, resume=True)
    made.go_to(2)
    assert TrainingLog(folder).epochs == 2
    assert sorted(p.name for p in folder.glob("epoch-*.*")) == ["epoch-00002.replaced-1", "epoch-00003.replaced-1"]
    made = TrainingLog.create(folder, ids=IDS, resume=True)  # the run dies, and is tried again
    made.go_to(1)
    assert len(list(folder.glob("epoch-*.replaced-1"))) == 3
    for z in LOGITS[1:]:
        made.record(IDS, z, LABELS)
        made.end_epoch()
    assert not list(folder.glob("epoch-*.*")) and contents(TrainingLog(folder)) == want


def data() -> Dataset:
    x = np.random.default_rng(0).normal(size=(N, 3)).tolist()
    return Dataset.from_dict({"row_id": IDS, "x": x, "label": LABELS.tolist()})


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(3, C)


def train(folder: Path, epochs: int = 5, **options) -> TrainingLog:
    return train_with_log(net(), data(), folder, epochs=epochs, inputs="x", batch_size=8, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("finished") / "log"
    return folder, contents(train(folder, divergence=True))


@pytest.mark.parametrize("epoch", [0, 1, 4])
def test_a_resumed_run_deletes_nothing_and_says_what_can_be_done(tmp_path, finished, epoch):
    folder = tmp_path / "log"
    shutil.copytree(finished[0], folder)
    report = folder / f"epoch-0000{epoch}" / "report.json"
    whole = report.read_bytes()
    report.write_bytes(whole[:-1])
    before = files_of(folder)
    for _ in range(2):
        words = rf"goes on with epoch 5, and epoch {epoch} of its log is damaged; nothing was changed. Put .* back"
        with pytest.raises(DamagedFileError, match=words):
            train(folder, 6, divergence=True, resume=True)
        assert files_of(folder) == before
    report.write_bytes(whole)
    assert train(folder, 6, divergence=True, resume=True).epochs == 6


def test_a_run_goes_on_from_a_checkpoint_before_the_damage(tmp_path, finished):
    """Epoch 3 is damaged, and there is a copy of the checkpoint of its beginning."""
    folder = tmp_path / "log"

    class Stop(Exception):
        pass

    def keep(epoch, model):
        if epoch == 2:
            shutil.copytree(folder / "checkpoint-3", tmp_path / "kept")

    train(folder, divergence=True, on_epoch=keep)
    part = folder / "epoch-00003" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[::-1])
    shutil.rmtree(folder / "checkpoint-5")
    shutil.copytree(tmp_path / "kept", folder / "checkpoint-3")
    with pytest.raises(ValueError, match="probabilities of epoch 2, .*, are gone"):
        train(folder, divergence=True, resume=True)
    assert TrainingLog(folder).epochs == 5
    shutil.copytree(folder, tmp_path / "plain")
    folder = tmp_path / "plain"
    for path in (folder / "log.json", *folder.glob("epoch-*/report.json")):  # as if nothing needed probabilities
        facts = json.loads(path.read_text())
        facts.pop("digest")
        path.write_text(sealed(facts | ({"divergence": False} if "divergence" in facts else {"probabilities": None})))
    with pytest.warns(UserWarning, match="epoch 3 of the log .* is damaged; it was moved to epoch-00003.damaged-1"):
        log = train(folder, resume=True)
    want = finished[1]
    assert log.epochs == 5 and not log.damaged()
    assert all(log.read(name, e).tobytes() == want[name, e] for name in log.columns for e in range(5))
    assert [p.name for p in folder.glob("epoch-*.*")] == ["epoch-00003.damaged-1"]


def test_a_damaged_checkpoint_is_not_loaded(tmp_path, finished):
    folder = tmp_path / "log"
    shutil.copytree(finished[0], folder)
    checkpoint = folder / "checkpoint-5"
    for path in [p for p in checkpoint.iterdir() if p.is_file()]:
        whole = path.read_bytes()
        for _, data_ in flipped(whole, most=12):
            path.write_bytes(data_)
            before = files_of(folder)
            with pytest.raises(DamagedFileError, match="checkpoint-5 is damaged|contents.json is damaged"):
                train(folder, 6, divergence=True, resume=True)
            assert files_of(folder) == before
        path.write_bytes(whole)
    shutil.copytree(checkpoint, folder / "checkpoint-6")  # of two the sound one is taken
    (folder / "checkpoint-6" / "model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"moved to checkpoint-6.damaged-1, and the run goes on from checkpoint-5"):
        assert train(folder, 6, divergence=True, resume=True).epochs == 6
    assert {p.name for p in folder.glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-6.damaged-1"}


def test_damaged_probabilities_are_noticed(tmp_path, finished):
    folder = tmp_path / "log"
    shutil.copytree(finished[0], folder)
    path = folder / "probabilities-00004.npy"
    whole = path.read_bytes()
    for data_ in (*(d for _, d in flipped(whole, most=20)), whole[:-1], b""):
        path.write_bytes(data_)
        before = files_of(folder)
        with pytest.raises(DamagedFileError, match="file of probabilities .*00004.npy is damaged"):
            train(folder, 6, divergence=True, resume=True)
        assert files_of(folder) == before


def test_a_flipped_bit_in_what_lies_beside_a_checkpoint(tmp_path):
    """What is recorded of an epoch so far, and its probabilities."""
    folder, state = tmp_path / "log", tmp_path / "state"
    made = TrainingLog.create(folder, ids=IDS, labels=LABELS, divergence=True)
    made.record(IDS[:9], LOGITS[0, :9], LABELS[:9])
    made.save_state(state)
    probabilities = folder / "probabilities-00000.npy"
    whole = {path: path.read_bytes() for path in (state, probabilities)}
    want = contents(make(tmp_path / "want", 1, divergence=True))

    def go_on() -> dict:
        made = TrainingLog.create(folder, ids=IDS, labels=LABELS, divergence=True, resume=True)
        made.load_state([state])
        made.record(IDS[9:], LOGITS[0, 9:], LABELS[9:])
        made.recorder.work_out()
        return made.recorder.part().to_pydict()

    right = go_on()
    for path, data_ in whole.items():
        noticed = 0
        for place, changed in flipped(data_, most=60):
            for each, bytes_ in whole.items():
                each.write_bytes(bytes_)
            path.write_bytes(changed)
            try:
                assert str(go_on()) == str(right), place
            except ValueError as error:
                assert "is damaged" in str(error) or "not of epoch" in str(error)
                noticed += 1
        assert noticed > 10
    for path, data_ in whole.items():
        path.write_bytes(data_)
    made = TrainingLog.create(folder, ids=IDS, labels=LABELS, divergence=True, resume=True)
    made.load_state([state])
    made.record(IDS[9:], LOGITS[0, 9:], LABELS[9:])
    made.end_epoch()
    assert contents(TrainingLog(folder))["margin", 0] == want["margin", 0]


def test_what_lost_its_manifest_is_not_begun_anew(tmp_path):
    make(tmp_path / "log", 2)
    (tmp_path / "log" / "log.json").unlink()
    before = files_of(tmp_path / "log")
    for resume in (False, True):
        with pytest.raises(FileNotFoundError, match="holds 2 recorded epochs, and their log.json is missing"):
            TrainingLog.create(tmp_path / "log", ids=IDS, resume=resume)
    assert files_of(tmp_path / "log") == before


def test_refused_logs_leave_nothing(tmp_path):
    for error, options in (
        (ValueError, {"labels": LABELS + C}),
        (ValueError, {"logits": LOGITS[:, :, :1]}),
        (ValueError, {"mode": "test"}),
        (TypeError, {"labels": LABELS + 0.5}),
        (TypeError, {"facts": {"a": object()}}),
    ):
        given = {"logits": LOGITS, "labels": LABELS, **options}
        with pytest.raises(error):
            TrainingLog.from_logits(tmp_path / "a" / "log", IDS, given.pop("logits"), given.pop("labels"), **given)
        assert not list(tmp_path.iterdir()), options
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "note").write_text("mine")
    with pytest.raises(ValueError, match="labels are not in"):
        TrainingLog.from_logits(tmp_path / "own", IDS, LOGITS, LABELS + C)
    assert files_of(tmp_path / "own") == {"note": b"mine"}


def test_temporary_files_of_the_dead_are_swept_and_those_of_the_living_stay(tmp_path):
    folder = tmp_path / "log"
    make(folder, 1)
    script = "import sys; from pathlib import Path; from hf_prune.data.files import temporary_path as t; "
    script += "t(Path(sys.argv[1])/'log.json').touch(); t(Path(sys.argv[1])/'epoch-00000'/'part').mkdir()"
    python(script, folder)
    (folder / f"checkpoint-1.0123abcd-7-0123abcd{TEMPORARY}").mkdir()  # of another host
    living = temporary_path(folder / "mine")
    living.touch()
    assert len(list(folder.rglob(f"*{TEMPORARY}"))) == 4
    TrainingLog.create(folder, ids=IDS, resume=True)
    assert list(folder.rglob(f"*{TEMPORARY}")) == [living]


def hostile(folder: Path, report: dict | None = None, manifest: dict | None = None, **tables: pa.Table) -> None:
    """Change what a log says, with digests that are right."""
    for path, change in ((folder / "epoch-00000" / "report.json", report), (folder / "log.json", manifest)):
        if change is not None:
            facts = json.loads(path.read_text())
            facts.pop("digest")
            path.write_text(sealed(facts | change))
    if "part" in tables:
        path = folder / "epoch-00000" / "part-00000.parquet"
        pq.write_table(tables["part"], path)
        sizes = {path.name: path.stat().st_size}
        hostile(folder, {"parts": sizes, "digests": {path.name: file_digest(path)}})
    if "rows" in tables:
        pq.write_table(tables["rows"], folder / "rows.parquet")
        hostile(folder, manifest={"rows": file_digest(folder / "rows.parquet"), "facts": {}})


def test_logs_of_strangers(tmp_path):
    """Names that lead elsewhere, sizes, types and counts that are not what they say."""
    source = tmp_path / "log"
    make(source, 1)
    secret = tmp_path / "secret.parquet"
    shutil.copy(source / "epoch-00000" / "part-00000.parquet", secret)
    size, digest = secret.stat().st_size, json.loads((source / "epoch-00000" / "report.json").read_text())["digests"]
    digest = next(iter(digest.values()))
    part, rows = pq.read_table(secret), pq.read_table(source / "rows.parquet")
    row = part.column("row").to_numpy()

    def column(table: pa.Table, name: str, values) -> pa.Table:
        return table.set_column(table.schema.get_field_index(name), name, values)

    cases: dict[str, tuple[dict, str]] = {
        "up": ({"report": {"parts": {"../../secret.parquet": size}, "digests": {"../../secret.parquet": digest}}},
               r"'../../secret.parquet' is no name of a file in"),
        "absolute": ({"report": {"parts": {str(secret): size}, "digests": {str(secret): digest}}}, "is no name of a"),
        "size": ({"report": {"parts": {"part-00000.parquet": -1}}}, "part-00000.parquet is -1"),
        "true": ({"report": {"parts": {"part-00000.parquet": True}}}, "part-00000.parquet is True"),
        "no part": ({"report": {"parts": {}, "digests": {}}}, "parts \\[\\]"),
        "digest": ({"report": {"digests": {"part-00000.parquet": "../x"}}}, "'../x' is no digest"),
        "rows": ({"report": {"rows": 10**15}}, "of epoch 0 of 1000000000000000 rows, not of 0 of 30"),
        "epoch": ({"report": {"epoch": 3}}, "it is of epoch 3"),
        "ids": ({"report": {"nan_ids": ["x"] * 9}}, "rows are not finite"),
        "nan": ({"report": {"nan": "1"}}, "nan is '1'"),
        "more": ({"report": {"more": 1}}, "'more' is not known"),
        "mode": ({"manifest": {"mode": "../x"}}, "mode='../x' is not known"),
        "task": ({"manifest": {"task": "x"}}, "task='x' is not known"),
        "classes": ({"manifest": {"classes": "3"}}, "classes is '3'"),
        "facts": ({"manifest": {"facts": []}}, "facts is \\[\\]"),
        "run": ({"manifest": {"run": 3}}, "run is 3"),
        "strange": ({"manifest": {"model": "live"}}, "'model' is not known"),
        "twice": ({"part": column(part, "row", pa.array(np.maximum(row, 1)))}, "rows that are there twice"),
        "outside": ({"part": column(part, "row", pa.array(row - 1))}, "rows that are there twice, or not in the log"),
        "short": ({"part": part.slice(1)}, "29 rows, not 30"),
        "words": ({"part": column(part, "margin", pa.array(["x"] * N))}, "no column 'margin' of type float"),
        "without": ({"part": part.drop_columns(["loss"])}, "no column 'loss'"),
        "nulls": ({"part": column(part, "loss", pa.array([None] * N, pa.float32()))}, "part-00000.parquet has nulls"),
        "unsorted": ({"rows": rows.take(pa.array(np.arange(N)[::-1]))}, "keys that are not ascending"),
        "signed": ({"rows": column(rows, "key", pa.array(np.arange(N)))}, "column 'key' has type int64, not uint64"),
        "float labels": ({"rows": column(rows, "label", pa.array(np.ones(N)))}, "column 'label' has type double"),
        "null ids": ({"rows": column(rows, "id", pa.array([None] * N, pa.string()))}, "column 'id' has nulls"),
        "empty": ({"rows": rows.slice(0, 0)}, "keys that are not ascending"),
    }  # fmt: skip
    for name, (change, words) in cases.items():
        folder = tmp_path / name
        shutil.copytree(source, folder)
        hostile(folder, **change)
        with pytest.raises(DamagedFileError, match=words):
            contents(TrainingLog(folder))
    for text in ("[" * 5000, "[]", '{"format": 2, "format": 2}', "null", "\x00", '{"format": 2}'):
        (source / "log.json").write_text(text)
        with pytest.raises(DamagedFileError, match="is damaged|is nested too deeply"):
            TrainingLog(source)


def test_two_runs_in_one_folder(tmp_path):
    """Without a lock too, what one has recorded is not overwritten by another."""
    one = TrainingLog.create(tmp_path / "log", ids=IDS, labels=LABELS)
    two = TrainingLog.create(tmp_path / "log", ids=IDS, labels=LABELS, resume=True)
    two.record(IDS, LOGITS[0], LABELS)
    two.end_epoch()
    want = contents(TrainingLog(tmp_path / "log"))
    one.record(IDS, LOGITS[1], LABELS)
    with pytest.raises(ValueError, match="another run has recorded epoch 0 in .* since this one began"):
        one.end_epoch()
    assert contents(TrainingLog(tmp_path / "log")) == want
