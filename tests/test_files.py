"""Writing whole or not at all, and reading what anybody may have made."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from pathlib import Path

import pytest
from killing import kills
from launching import beside

from hf_prune.data import files
from hf_prune.data.files import DamagedFileError, parse_json, read_json, read_text, reading, sweep, whole


def write_new(folder: Path) -> None:
    """For `kills`: a file and a folder take the place of others."""
    files.write_text(folder / "a.txt", "new" * 1000)
    with whole(folder / "f", folder=True) as temporary:
        (temporary / "x").write_text("new x")
        (temporary / "y").write_text("new y")


def what_is_there(folder: Path) -> list[str]:
    """For `kills`: what readers find after the next writer has swept."""
    sweep(folder)
    there = sorted(p for p in folder.rglob("*") if p.is_file())
    return [f"{p.relative_to(folder)}={p.read_text()[:5]}" for p in there]


@pytest.mark.parametrize("how", ["kill", "full"])
def test_killed_or_full_a_file_is_the_old_or_the_new_one(how, tmp_path):
    start = tmp_path / "start"
    (start / "f").mkdir(parents=True)
    (start / "a.txt").write_text("old")
    (start / "f" / "x").write_text("old x")
    old, new = ["a.txt=old", "f/x=old x"], ["a.txt=newne", "f/x=new x", "f/y=new y"]
    deaths = kills("test_files:write_new", tmp_path / "runs", start=start, then="test_files:what_is_there", how=how)
    assert deaths[-1].after == new and len(deaths) > 15
    seen = [death.after for death in deaths]
    # one after the other, each whole: what was there, the new file beside the old folder, both new
    order = [old, [new[0], old[1]], new]
    assert all(state in order for state in seen), [str(d) for d in deaths if d.after not in order]
    steps = [order.index(state) for state in seen]
    assert steps[0] == 0 and set(steps) == {0, 1, 2} and (how == "full" or steps == sorted(steps))


def test_a_block_that_raises_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(KeyError), whole(path) as temporary:
        temporary.write_text("new")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


WRITER = """
import sys, time
from pathlib import Path
from hf_prune.data.files import whole
with whole(Path(sys.argv[1]) / "a", folder=len(sys.argv) > 2) as temporary:
    (temporary / "x" if len(sys.argv) > 2 else temporary).write_text("half")
    print("there", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", [[], ["folder"]])
def test_what_a_killed_writer_left_is_swept_and_that_of_a_living_one_is_not(kind, tmp_path):
    with beside(WRITER, tmp_path, *kind) as writer:
        assert writer.stdout.readline() == "there\n"
        assert sweep(tmp_path) == 0 and len(list(tmp_path.iterdir())) == 1
    assert sweep(tmp_path) == 1 and list(tmp_path.iterdir()) == []


def test_others_leavings_are_swept_after_a_week_only(tmp_path):
    other = tmp_path / f"a.0123abcd-1-0123abcd{files.TEMPORARY}"
    other.write_text("")
    (tmp_path / "mine.tmp").write_text("")
    assert sweep(tmp_path) == 0
    os.utime(other, (time.time() - files.STALE - 9,) * 2)
    assert sweep(tmp_path) == 1 and [p.name for p in tmp_path.iterdir()] == ["mine.tmp"]
    assert sweep(tmp_path / "missing") == 0


DAMAGED = {
    "cut off": (b'{"a": 1', "JSONDecodeError"),
    "empty": (b"", "JSONDecodeError"),
    "not UTF-8": (b'{"a": "\xff"}', "UnicodeDecodeError"),
    "a list": (b"[1]", "a list, not an object"),
    "a number": (b"3", "a int, not an object"),
    "a key twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' occurs twice"),
    "deep": (b'{"a":' + b"[" * 101 + b"]" * 101 + b"}", "nested too deeply"),
    "very deep": (b'{"a":' + b"[" * 10**6, "nested too deeply"),
    "a long number": (b'{"a": ' + b"1" * 10_000 + b"}", "ValueError"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_json_is_one_kind_of_error(what, tmp_path):
    data, message = DAMAGED[what]
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(DamagedFileError, match=rf"the log .*x\.json is .*{message}.*; record it again$"):
        read_json(tmp_path / "x.json", "log", "record it again")


def test_depth_100_is_read_and_a_name_twice_in_different_objects():
    text = json.dumps({"a": json.loads("[" * 98 + "]" * 98), "b": {"a": 1}})
    assert parse_json(text, "x", "log", "mend it")["b"] == {"a": 1}


def test_what_is_missing_or_too_long_or_no_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="the log .* is missing .*gone.json; record it again"):
        read_json(tmp_path / "gone.json", "log", "record it again")
    (tmp_path / "long").write_bytes(b"x" * 11)
    with pytest.raises(DamagedFileError, match="11 bytes, at most 10 are read"):
        read_text(tmp_path / "long", "log", "cut it", limit=10)
    with pytest.raises(DamagedFileError, match="IsADirectoryError"):
        read_text(tmp_path, "log", "cut it")


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_an_error_of_the_machine_is_not_the_files_fault(number):
    with pytest.raises(OSError) as caught, reading("x", "log", "mend it"):
        raise OSError(number, os.strerror(number), "x")
    assert caught.value.errno == number and not isinstance(caught.value, DamagedFileError)


def test_errors_without_a_common_base_become_one(tmp_path):
    for error in (KeyError("a"), TypeError("b"), RecursionError(), MemoryError(), OSError("c"), FileNotFoundError("d")):
        with pytest.raises(DamagedFileError, match="the log x .*; mend it$"), reading("x", "log", "mend it"):
            raise error
    with pytest.raises(DamagedFileError, match="^as it was$"), reading("x", "log", "mend it"):
        raise DamagedFileError("as it was")


@pytest.mark.parametrize("what", ["pipe", "device"])
def test_what_never_ends_is_not_read(what, tmp_path):
    path = tmp_path / "x.json"
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(DamagedFileError, match="a pipe or a device, not a file.*; record it again"):
        read_json(path, "log", "record it again")
    with pytest.raises(ValueError, match="a pipe or a device"):
        files.file_digest(path)
    assert not files.is_sealed(path)


def test_a_full_or_protected_disk_is_named(tmp_path, monkeypatch):
    """Writing fails without a word on where."""

    def fails(number):
        def write(self, data):
            raise OSError(number, os.strerror(number))

        return write

    for number, reason in ((errno.ENOSPC, "no space"), (errno.EFBIG, "no space"), (errno.EROFS, "not writable")):
        monkeypatch.setattr(Path, "write_bytes", fails(number))
        with pytest.raises(OSError, match=rf"{re.escape(str(tmp_path))} cannot be written: .*{reason}.*; .* another"):
            files.write_text(tmp_path / "a", "text")
    elsewhere = OSError(errno.EACCES, "no", "/other/file")
    with pytest.raises(OSError) as caught, files.placed(tmp_path):
        raise elsewhere
    assert caught.value is elsewhere and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("letter", ["x", "ü", "漢", "\N{GRINNING FACE}"])
def test_names_as_long_as_the_disk_takes_are_written(letter, tmp_path):
    for room in (255, 161, 160, 159, 157, 150):
        name = "ab" + letter * ((room - 2) // len(letter.encode()))
        files.write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"
        (tmp_path / name).unlink()
        left = files.temporary_path(tmp_path / name, ".hf_prune_old")
        dead = left.with_name(left.name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-"))  # no such process
        dead.write_text("old")
        sweep(tmp_path)  # gets its name back, or goes; never another name
        assert [p.name for p in tmp_path.iterdir()] in ([name], [])
        for path in tmp_path.iterdir():
            path.unlink()
