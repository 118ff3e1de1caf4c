"""Runs are killed at every write, sync and rename that they make, and files are damaged byte by byte."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

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
