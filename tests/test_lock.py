from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import SoftFileLease
from hearing import when_said
from launching import beside

from hf_prune.data import lock as _lock
from hf_prune.data.lock import NAME, LostLockError, locked, owner_of

HOLDER = """
import sys
from pathlib import Path
from hf_prune.data.lock import locked
with locked(Path(sys.argv[1]), "scored"):
    print("held", flush=True)
    sys.stdin.readline()
    Path(sys.argv[1], "done").touch()
"""


@contextlib.contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder until it reads a line, and then says in the folder that it is done."""
    with beside(HOLDER, folder) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process


def test_the_second_waits_and_says_for_whom(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(_lock, "PATIENCE", 0.2)
    folder = tmp_path / "a" / "b"
    with holder(folder) as process:

        def done() -> None:
            process.stdin.write("\n")
            process.stdin.flush()

        with caplog.at_level(logging.WARNING, "hf_prune"), when_said("waiting", done), locked(folder, "scored") as lock:
            assert (folder / "done").exists()
            lock.check()
    assert len(caplog.messages) == 1
    assert str(folder) in caplog.text and f"scored by process {process.pid} on " in caplog.text


def test_what_a_dead_process_held_is_taken_over_at_once(tmp_path, caplog):
    with holder(tmp_path) as process:
        pass  # it is killed
    assert owner_of(tmp_path).pid == process.pid
    with caplog.at_level(logging.WARNING, "hf_prune"), locked(tmp_path, "scored"):
        assert owner_of(tmp_path).pid == os.getpid()
    assert not caplog.messages
    assert list(tmp_path.iterdir()) == []


def test_what_another_host_no_longer_refreshes_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(_lock, "LEASE", 0.5)
    monkeypatch.setattr(_lock, "PATIENCE", 1.0)
    other = "filelock/2\nmode=lease\npid=1\nhost=elsewhere\ntoken=0123\nduration=0.5\n"
    (tmp_path / NAME).write_text(other)
    with locked(tmp_path, "scored"):
        pass
    # while it is refreshed, it is not: two leases later we are still told to wait
    (tmp_path / NAME).write_text(other)
    stop = threading.Event()

    def refresh() -> None:
        while not stop.wait(0.1):
            os.utime(tmp_path / NAME)
        refreshed.append(True)

    refreshed: list[bool] = []
    thread = threading.Thread(target=refresh)
    thread.start()
    try:
        with when_said("waiting", stop.set), locked(tmp_path, "scored"):
            thread.join(10)
            assert refreshed
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"what": "x"}', "\xff"])
def test_a_damaged_note_of_the_owner_blocks_nobody(tmp_path, text):
    (tmp_path / f"{NAME}.json").write_bytes(text.encode("latin-1"))
    assert owner_of(tmp_path) is None
    with locked(tmp_path, "scored") as lock:
        lock.check()


@pytest.mark.parametrize("data", [b"", b"filelock/2\nmode=lea", b"\xff\x00"])
def test_a_lock_cut_off_while_it_was_made_goes_after_a_moment(tmp_path, monkeypatch, data):
    monkeypatch.setattr(_lock, "PATIENCE", 0.05)
    monkeypatch.setattr(_lock, "UNWRITTEN", 0.2)
    (tmp_path / NAME).write_bytes(data)
    made = os.stat(tmp_path / NAME).st_mtime
    with locked(tmp_path, "scored"):
        assert time.time() - made >= 0.2
    assert list(tmp_path.iterdir()) == []


def test_a_hold_that_was_lost_is_noticed(tmp_path):
    with locked(tmp_path, "scored") as lock:
        note = tmp_path / f"{NAME}.json"
        facts = json.loads(note.read_text())
        note.write_text(json.dumps({**facts, "token": "another", "pid": 7}))
        with pytest.raises(LostLockError, match=r"lost its hold .* used by scored by process 7 on .*same call goes on"):
            lock.check()
        assert SoftFileLease(tmp_path / NAME).owner.pid == os.getpid()


def test_folders_made_for_nothing_go_again(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "x" / "y", "scored"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "x" / "y", "scored"):
        (tmp_path / "x" / "y" / "kept").touch()
    assert [p.name for p in (tmp_path / "x" / "y").iterdir()] == ["kept"]


def test_threads_of_one_process_take_turns(tmp_path):
    inside: list[int] = []
    done: list[int] = []

    def work() -> None:
        with locked(tmp_path / "f", "scored"):
            inside.append(1)
            time.sleep(0.05)
            assert len(inside) == 1
            inside.pop()
            done.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert inside == [] and done == [1] * 6
    assert not any((tmp_path / "f").glob("*"))
