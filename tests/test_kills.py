"""Runs are killed at every write, sync and rename that they make, and files are damaged byte by byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import hf_prune
from hf_prune._files import sweep, temporary_path

sys.path.insert(0, str(Path(__file__).parent))
import killed_work  # noqa: E402
from killing import Death, flipped, kills  # noqa: E402


def same_as_undisturbed(deaths: list[Death], least: int) -> None:
    """Every death but the last one killed, and the next call gave and left what the undisturbed run did."""
    *killed, whole = deaths
    assert len(killed) >= least, len(killed)
    for death in killed:
        assert death.died, str(death)
        assert death.after == whole.after, f"{death}: {death.after} instead of {whole.after}; {death.said}"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(hf_prune.__file__).parents[1])}


# score


def test_score_killed_anywhere_goes_on(tmp_path):
    deaths = kills("killed_work:run_score", tmp_path, then="killed_work:score_again")
    same_as_undisturbed(deaths, least=30)
    assert deaths[-1].after["length"] == [5.0, 3.0, 1.0, 2.0, 4.0]
    names = {name.rpartition("/")[2].partition("-")[0] for name in deaths[-1].after["files"]}
    assert names == {"manifest.json", "part", "joined", "score_columns.json"}


@pytest.mark.slow
def test_score_killed_while_it_overwrites(tmp_path):
    killed_work.score_all(tmp_path / "before")
    deaths = kills(
        "killed_work:overwrite_scores", tmp_path / "runs", start=tmp_path / "before", then="killed_work:score_again"
    )
    same_as_undisturbed(deaths, least=40)


def test_every_flipped_byte_of_a_score_folder(tmp_path, monkeypatch):
    """It is computed again, or refused with a word; nothing else is ever returned."""
    import hf_prune._run.join as module

    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 1)
    want = killed_work.score_again(tmp_path / "whole")
    redone = refused = 0
    for path in sorted((tmp_path / "whole").rglob("*")):
        if path.is_dir():
            continue
        for place, data in flipped(path.read_bytes(), most=25):
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
    assert redone > 80 and refused > 10


# filter


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    killed_work.make_data(folder)
    return folder


def test_a_filter_killed_anywhere_leaves_no_broken_cache(data, tmp_path):
    deaths = kills("killed_work:filter_cached", tmp_path, start=data, then="killed_work:filter_again")
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
    [
        ("folder", 15, ["kept"]),
        pytest.param("files", 25, ["kept.parquet", "kept.jsonl", "kept.csv"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("there", [None, pytest.param(0.5, marks=pytest.mark.slow)])
def test_an_output_killed_anywhere_is_the_old_one_or_the_new_one(data, tmp_path, work, least, names, there):
    """Or, where a folder takes the place of another, for a moment under a name from which it is put back."""
    shutil.copytree(data, tmp_path / "start")
    if there:
        for name in names:
            killed_work.filter_command(tmp_path / "start", name, there)
    deaths = kills(
        f"killed_work:filter_to_{work}", tmp_path / "runs", start=tmp_path / "start", then=f"killed_work:{work}_again"
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
    from hf_prune import _files
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
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], env=environment())
    assert done.returncode == -9 and not (tmp_path / "out").exists()
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
    import hf_prune._layout as layout
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
    env = {**environment(), "TMPDIR": str(tmp_path)}
    for how, left in (("die", 1), ("live", 0)):
        command = [sys.executable, "-c", textwrap.dedent(code), how]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == (-9 if how == "die" else 0), done.stderr
        assert Path(done.stdout.strip()).is_relative_to(tmp_path)
        assert len(list(tmp_path.glob("scratch*"))) == left
