"""The folder of `score`: two runs on one, runs that are refused, files that are damaged, names of splits."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
import time
from dataclasses import dataclass

import pytest
from datasets import Dataset, DatasetDict
from hearing import when_said
from launching import DEADLINE, beside, python
from run_scorers import Length, Logged, Widen, calls

from hf_prune import Scorer, score
from hf_prune.columns import read_sidecar
from hf_prune.data import lock as _lock
from hf_prune.data.files import temporary_path
from hf_prune.data.lock import NAME, Lock, LostLockError, locked
from hf_prune.data.world import ElsewhereError, Outcomes

TEXTS = [f"{i} " + "y" * (i % 17) for i in range(1200)]
LENGTHS = [float(len(t)) for t in TEXTS]
DS = Dataset.from_dict({"text": TEXTS})


@dataclass(frozen=True, eq=False)
class Never(Scorer):
    name: str = "never"

    def score(self, batch, rank):
        raise RuntimeError("told to fail")


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_PRUNE_TEST_LOG", str(tmp_path / "log.txt"))
    return tmp_path / "log.txt"


# two runs

RUN = """
import sys, datasets
from datasets import Dataset
from hf_prune import score
from run_scorers import Logged
datasets.disable_progress_bars()
texts = [f"{i} " + "y" * (i % 17) for i in range(1200)]
print("ready", flush=True)
sys.stdin.readline()
folder = sys.argv[1] or None
for turn in range(3):
    out = score(Dataset.from_dict({"text": texts}), Logged(), output_dir=folder, shard_rows=50, batch_size=25,
                overwrite=turn == 1)
    assert out["logged"][:] == [float(len(t)) for t in texts]
"""


@pytest.mark.parametrize("named", [pytest.param(True, marks=pytest.mark.slow), False])
def test_processes_on_one_folder(tmp_path, log, named):
    """Each scores, overwrites and reads; none dies, and the first round is computed once."""
    env = {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    with contextlib.ExitStack() as stack:
        start = functools.partial(beside, RUN, tmp_path / "out" if named else "", env=env)
        runs = [stack.enter_context(start()) for _ in range(2 + named)]
        for run in runs:
            assert run.stdout.readline() == "ready\n"
        for run in runs:
            run.stdin.write("\n")
            run.stdin.flush()
        for run in runs:
            _, said = run.communicate(timeout=DEADLINE)
            assert run.returncode == 0, said
    folder = tmp_path / "out" if named else next((tmp_path / "cache" / "hf_prune_scores").iterdir())
    assert not [p.name for p in folder.iterdir() if "lock" in p.name or "tmp" in p.name]
    assert len(list(folder.glob("part-*.json"))) == 24
    # at most: once, and again for each that overwrites; the first row is looked at to find what is read
    rows = sum(int(c[2]) for c in calls(log) if int(c[2]) > 1)
    assert 1200 <= rows <= (3 + named) * 1200


def test_the_second_run_waits_and_computes_nothing(tmp_path, log, monkeypatch):
    monkeypatch.setattr(_lock, "PATIENCE", 0.2)
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(tmp_path / "out", "scored"):
            held.set()
            go.wait(60)
            (tmp_path / "done").touch()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    with when_said("is being scored by process", go.set):
        out = score(DS, Logged(), output_dir=tmp_path / "out")
    assert (tmp_path / "done").exists() and out["logged"][:] == LENGTHS
    thread.join(10)
    # what is finished is read, whoever holds the folder: nobody else would ever give it back
    log.unlink()
    with locked(tmp_path / "out", "scored"):
        assert score(DS, Logged(), output_dir=tmp_path / "out")["logged"][:] == LENGTHS and not calls(log)
        with pytest.raises(ValueError, match="holds scores of another run"):
            score(DS, Length(), output_dir=tmp_path / "out")


def test_a_run_that_lost_its_hold_stops(tmp_path, log):
    @dataclass(frozen=True, eq=False)
    class Stolen(Scorer):
        name: str = "stolen"

        def score(self, batch, rank):
            if batch.texts("text")[0].startswith("400 "):
                note = tmp_path / "out" / f"{NAME}.json"
                note.write_text(json.dumps({**json.loads(note.read_text()), "token": "x", "pid": 99, "host": "other"}))
            return [0.0] * batch.n

    with pytest.raises(RuntimeError, match="lost its hold of .*process 99 on other.*the same call goes on"):
        score(DS, Stolen(), output_dir=tmp_path / "out", shard_rows=200, batch_size=100)
    assert len(list((tmp_path / "out").glob("part-*.json"))) == 2


# refused calls


def test_a_refused_call_leaves_nothing(tmp_path):
    for call in (
        lambda: score(DS, Never(), output_dir=tmp_path / "a" / "b"),
        lambda: score(DatasetDict(train=DS, test=DS), Length(), Never(), output_dir=tmp_path / "a", splits=["test"]),
        lambda: score(DS, Length(text="nowhere"), output_dir=tmp_path / "c"),
        lambda: score(DS, Length(name="text"), output_dir=tmp_path / "d"),
    ):
        with pytest.raises((RuntimeError, ValueError, KeyError)):
            call()
        assert list(tmp_path.iterdir()) == []
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(RuntimeError, match="told to fail"):
        score(DS, Never(), output_dir=mine)
    assert [p.name for p in mine.iterdir()] == ["notes.txt"]
    assert score(DS, Length(), output_dir=mine)["length"][:] == LENGTHS  # no word about another run


def test_a_manifest_without_parts_is_that_of_no_run(tmp_path):
    score(DS, Length(), output_dir=tmp_path)
    for part in tmp_path.glob("part-*"):
        part.unlink()
    assert len(score(DS, Widen(), output_dir=tmp_path)["wide"]) == 1200


@pytest.mark.parametrize("name", ["../outside", "/outside", "dev-clean", "all", "a/b", "", "a..b", "tr\nain"])
def test_names_of_splits_that_become_folders(tmp_path, name):
    both = DatasetDict({"train": DS, name: DS})
    with pytest.raises(ValueError, match="split name .* cannot be read back by datasets; use"):
        score(both, Length(), output_dir=tmp_path / "out", splits=["train", name])
    assert list(tmp_path.iterdir()) == []
    assert score(both, Length(), output_dir=tmp_path / "out")["train"]["length"][:] == LENGTHS


# damaged files


@pytest.mark.parametrize("data", [b"\xff\xfe{}", b"", b"[1, 2", b"{}" * 9, b"\x00" * 500])
def test_a_damaged_sidecar_is_written_anew(tmp_path, data, log):
    score(DS, Logged(), output_dir=tmp_path / "out")
    path = tmp_path / "out" / "score_columns.json"
    sound = path.read_bytes()
    path.write_bytes(data)
    log.unlink()
    assert score(DS, Logged(), output_dir=tmp_path / "out")["logged"][:] == LENGTHS
    assert path.read_bytes() == sound and not calls(log)
    read_sidecar(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"format": "one"}',
        "[]",
        "null",
        "[" * 3000,
        '{"format": 1, "rows": 1e400}',
        "\xff",
        '{"format": 1, "rows": []}',
    ],
)
def test_a_damaged_manifest_is_refused_with_a_word(tmp_path, text):
    score(DS, Length(), output_dir=tmp_path)
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="manifest.json is .*overwrite=True to replace it, or another output_dir"):
        score(DS, Length(), output_dir=tmp_path)
    assert score(DS, Length(), output_dir=tmp_path, overwrite=True)["length"][:] == LENGTHS


def test_facts_of_a_part_are_checked_too(tmp_path, log):
    """A changed cost would go into the sidecar; parts of an earlier version have no check and stay."""
    score(DS, Logged(), output_dir=tmp_path / "out", shard_rows=600)
    path = tmp_path / "out" / "part-00001.json"
    facts = json.loads(path.read_text())
    log.unlink()
    path.write_text(json.dumps({k: v for k, v in facts.items() if k != "check"}))
    score(DS, Logged(), output_dir=tmp_path / "out")
    assert not calls(log)
    path.write_text(json.dumps({**facts, "flops": 1e9}))
    score(DS, Logged(), output_dir=tmp_path / "out")
    assert [c[3].split()[0] for c in calls(log)] == ["600"]
    assert json.loads(path.read_text())["flops"] == facts["flops"]


def test_a_damaged_layout_is_written_anew(tmp_path, monkeypatch):
    import hf_prune.run.join as module

    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 1)
    ds = DS.shuffle(seed=2)
    want = score(ds, Length(), output_dir=tmp_path)["length"][:]
    (path,) = tmp_path.glob("joined-*.arrow")
    sound = path.read_bytes()
    for place in (len(sound) // 2, 5, len(sound) - 1):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
        assert score(ds, Length(), output_dir=tmp_path)["length"][:] == want
        assert path.read_bytes() == sound
    path.write_bytes(sound[:-40])
    assert score(ds, Length(), output_dir=tmp_path)["length"][:] == want and path.read_bytes() == sound


def test_what_the_dead_left_is_swept(tmp_path):
    score(DS, Length(), output_dir=tmp_path, shard_rows=400)
    dead = python("import os; print(os.getpid())")
    left = temporary_path(tmp_path / "part-00001.arrow")
    left = left.with_name(left.name.replace(f"-{os.getpid()}-", f"-{dead.stdout.strip()}-"))
    ours = temporary_path(tmp_path / "part-00002.arrow")
    ended = tmp_path / "outcome-0123-1.hf_prune_tmp"
    for path in (left, ours, ended):
        path.write_bytes(b"x" * 1000)
    score(DS, Length(), output_dir=tmp_path)  # finished: reads, and sweeps
    assert not left.exists() and ours.exists()
    (tmp_path / "part-00001.json").unlink()
    score(DS, Length(), output_dir=tmp_path)
    assert not ended.exists() and ours.exists()


def test_a_finished_folder_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    score(DS, Length(), output_dir=tmp_path)
    sidecar = tmp_path / "score_columns.json"
    sidecar.write_bytes(b"\xff")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert score(DS, Length(), output_dir=tmp_path)["length"][:] == LENGTHS
    assert before == {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}


# several processes


class Second:
    """The second of two processes, as far as outcomes go."""

    size, index = 2, 1


def test_a_process_whose_main_one_was_killed_does_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(_lock, "LEASE", 0.3)
    begin = time.monotonic()
    with locked(tmp_path, "scored") as lock:
        outcomes = Outcomes(Second(), Lock(tmp_path, lock.token, None))
        outcomes.tell(None)
        assert outcomes.check() == {1}
    with pytest.raises(LostLockError, match="nobody holds it"):
        outcomes.wait()
    assert time.monotonic() - begin > _lock.LEASE  # before that, the file may only not show
    with locked(tmp_path, "scored"), pytest.raises(LostLockError, match="it is used by scored by process"):
        outcomes.wait()


def test_an_error_of_another_process_is_heard_before_the_lock_is_missed(tmp_path):
    with locked(tmp_path, "scored") as lock:
        outcomes = Outcomes(Second(), Lock(tmp_path, lock.token, None))
        text = json.dumps({"error": ["ValueError", "no weights"]})
        (tmp_path / f"outcome-{lock.token}-0.hf_prune_tmp").write_text(text)
    with pytest.raises(ElsewhereError, match="process 0 failed with ValueError: no weights"):
        outcomes.wait()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_sidecar_of_other_data_is_not_replaced(overwrite, tmp_path):
    """A folder of `save_to_disk` with provenance, or of `save_scored`."""
    DS.save_to_disk(tmp_path / "data")
    (tmp_path / "data" / "score_columns.json").write_text("of the data")
    there = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="holds a score_columns.json of other data, .*; name a folder of its own"):
        score(DS, Length(), output_dir=tmp_path / "data", overwrite=overwrite)
    assert sorted(tmp_path.rglob("*")) == there
    assert (tmp_path / "data" / "score_columns.json").read_text() == "of the data"
