"""Runs are killed at every write, sync and rename that they make, and files are damaged byte by byte."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import killed_work
import pytest
from killing import Death, flipped, kills
from launching import python

from hf_prune.data.files import scratch, sweep, temporary_path


@pytest.fixture(autouse=True)
def put_back(monkeypatch):
    for module, name in killed_work.CHANGED:
        monkeypatch.setattr(module, name, getattr(module, name))


def same_as_undisturbed(deaths: list[Death], least: int) -> None:
    """Every death but the last one killed, and the next call gave and left what the undisturbed run did."""
    *killed, whole = deaths
    assert len(killed) >= least, len(killed)
    for death in killed:
        assert death.died, str(death)
        assert death.after == whole.after, f"{death}: {death.after} instead of {whole.after}; {death.said}"


# score


def test_score_killed_anywhere_goes_on(tmp_path):
    deaths = kills("killed_work:few_scores", tmp_path, then="killed_work:few_again", timeout=300)
    same_as_undisturbed(deaths, least=25)
    assert deaths[-1].after["length"] == [1.0, 2.0, 3.0]


@pytest.mark.slow
def test_score_of_two_scorers_with_a_layout_killed_anywhere(tmp_path):
    deaths = kills("killed_work:run_score", tmp_path, then="killed_work:score_again", timeout=300)
    same_as_undisturbed(deaths, least=30)
    assert deaths[-1].after["length"] == [5.0, 3.0, 1.0, 2.0, 4.0]
    names = {name.rpartition("/")[2].partition("-")[0] for name in deaths[-1].after["files"]}
    assert names == {"manifest.json", "part", "joined", "score_columns.json"}


@pytest.mark.slow
def test_score_killed_while_it_overwrites(tmp_path):
    killed_work.score_all(tmp_path / "before")
    deaths = kills(
        "killed_work:overwrite_scores",
        tmp_path / "runs",
        start=tmp_path / "before",
        then="killed_work:score_again",
        timeout=300,
    )
    same_as_undisturbed(deaths, least=40)


def test_every_flipped_byte_of_a_score_folder(tmp_path):
    """It is computed again, or refused with a word; nothing else is ever returned."""
    want = killed_work.score_again(tmp_path / "whole")
    redone = refused = 0
    for path in sorted((tmp_path / "whole").rglob("*")):
        if path.is_dir():
            continue
        for place, data in flipped(path.read_bytes(), most=12):
            folder = tmp_path / "flipped"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(tmp_path / "whole", folder)
            (folder / path.relative_to(tmp_path / "whole")).write_bytes(data)
            try:
                found = killed_work.score_again(folder)
            except ValueError as error:
                assert path.name == "manifest.json" and "overwrite=True" in str(error), (path, place, error)
                refused += 1
                continue
            if path.name == "manifest.json":  # the versions in it are for people
                found["files"].pop(str(path.relative_to(tmp_path / "whole")))
                assert found["files"].items() < want["files"].items()
                found["files"] = want["files"]
            assert found == want, (path, place)
            redone += 1
    assert redone > 40 and refused > 5


# filter


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    killed_work.make_data(folder)
    return folder


def test_a_filter_killed_anywhere_leaves_no_broken_cache(data, tmp_path):
    deaths = kills("killed_work:filter_cached", tmp_path, start=data, then="killed_work:filter_again", timeout=300)
    same_as_undisturbed(deaths, least=8)
    assert deaths[-1].after["cached"] and len(deaths[-1].after["text"]) == 120


def test_every_flipped_byte_of_a_cached_filter(data, tmp_path):
    shutil.copytree(data, tmp_path / "run")
    want = killed_work.filter_again(tmp_path / "run")
    (cache,) = (tmp_path / "run" / "data").glob("cache-prune-*.arrow")
    sound = cache.read_bytes()
    for place, changed in flipped(sound, most=80):
        cache.unlink()
        cache.write_bytes(changed)
        assert killed_work.filter_again(tmp_path / "run") == want, place


@pytest.mark.parametrize(
    ("work", "least", "names"),
    [("folder", 15, ["kept"]), pytest.param("files", 25, ["kept.parquet", "kept.jsonl", "kept.csv"])],
)
@pytest.mark.parametrize("there", [None, 0.5])
@pytest.mark.slow
def test_an_output_killed_anywhere_is_the_old_one_or_the_new_one(data, tmp_path, work, least, names, there):
    """Or, where a folder takes the place of another, for a moment under a name from which it is put back."""
    shutil.copytree(data, tmp_path / "start")
    if there:
        for name in names:
            killed_work.filter_command(tmp_path / "start", name, there)
    deaths = kills(
        f"killed_work:filter_to_{work}",
        tmp_path / "runs",
        start=tmp_path / "start",
        then=f"killed_work:{work}_again",
        timeout=300,
    )
    *killed, whole = deaths
    assert len(killed) >= least
    old = 200 if there else None
    for death in killed:
        assert death.died and death.after["files"] == whole.after["files"], f"{death}: {death.after} {death.said}"
        allowed = {120, old, None} if work == "folder" and "rename" in death.event else {120, old}
        assert set(death.after["before"]) <= allowed, f"{death}: {death.after['before']}"


def test_a_folder_killed_while_it_is_replaced_gets_its_name_back(tmp_path):
    code = """
    import os, signal, sys
    from pathlib import Path
    from hf_prune.data import files as _files
    rename = os.rename
    def killed(old, new):
        if str(old).endswith(_files.TEMPORARY):
            os.kill(os.getpid(), signal.SIGKILL)
        rename(old, new)
    os.rename = killed
    with _files.whole(Path(sys.argv[1]) / "out", folder=True) as temporary:
        (temporary / "new").touch()
    """
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("precious")
    python(code, tmp_path, status=-9)
    assert not (tmp_path / "out").exists()
    assert sweep(tmp_path) == 2
    assert [p.relative_to(tmp_path) for p in tmp_path.rglob("*")] == [Path("out"), Path("out/old")]
    # where the new one is there, the old one goes
    (tmp_path / "out" / "old").rename(tmp_path / "old")
    old = temporary_path(tmp_path / "out", ".hf_prune_old")
    old = old.with_name(old.name.replace(f"-{os.getpid()}-", "-2147483647-"))
    old.mkdir()
    assert sweep(tmp_path) == 1 and sorted(os.listdir(tmp_path)) == ["old", "out"]


def test_the_temporary_cache_of_a_killed_process_is_swept(tmp_path):
    """Rows of a dataset in memory that are too many to be copied there lie in a folder of the process."""
    code = """
    import os, signal, sys
    import hf_prune.data.layout as layout
    from datasets import Dataset
    from hf_prune import filter_by_score
    layout.IN_MEMORY_BYTES = 1
    ds = Dataset.from_dict({"q": [(i * 7) % 100 for i in range(100)]})
    out = filter_by_score(ds, "q", keep=0.5)
    assert out["q"][:] == [q for q in ds["q"] if q >= 50]
    print(out.cache_files[0]["filename"])
    sys.stdout.flush()
    if sys.argv[1] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = python(code, "die", env={"TMPDIR": str(tmp_path)}, status=-9)
    (left,) = tmp_path.glob("scratch*")
    assert Path(done.stdout.strip()).is_relative_to(left)
    with scratch(tmp_path) as ours:
        assert not left.exists() and list(tmp_path.iterdir()) == [ours]
    assert list(tmp_path.iterdir()) == []


# a full disk


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "then", "words"),
    [
        ("run_score", "score_again", "scores cannot be written to .*no space left; free some space there"),
        ("save_second", "saved_again", "scores cannot be saved in .*no space left; free some, or name another folder"),
        ("filter_cached", "filter_again", 'no space left in .* pass layout="indices"'),
        ("filter_to_folder", "folder_again", "(?i)no space left"),
    ],
)
def test_a_disk_that_is_full_from_some_moment_on(data, tmp_path, work, then, words):
    """It is said, nothing half-written stays, and with space again the same call gives what it would have given."""
    start = tmp_path / "start"
    shutil.copytree(data, start)
    killed_work.save_first(start)
    *full, whole = kills(
        f"killed_work:{work}", tmp_path / "runs", start=start, then=f"killed_work:{then}", how="full", timeout=300
    )
    want = {key: value for key, value in whole.after.items() if key != "before"}
    told = 0
    for death in full:
        assert {key: value for key, value in death.after.items() if key != "before"} == want, f"{death}: {death.said}"
        told += re.search(words, death.said) is not None
        assert not [p for p in death.folder.rglob("*") if p.name.endswith(("_tmp", "_old"))], str(death)
    assert told > 0.6 * len(full)
