"""Recording killed at every write, sync and rename: what is called again ends as the run that nobody disturbed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from killing import kills


@pytest.mark.slow
def test_train_with_log_killed_at_every_step(tmp_path):
    deaths = kills("recordings:train", tmp_path, then="recordings:again")
    whole = deaths[-1].after
    assert len(deaths) > 60 and all(death.died for death in deaths[:-1]) and whole["epochs"] == 2 and not whole["left"]
    seen = set()
    for death in deaths:
        assert {**death.after, "before": 0} == {**whole, "before": 0}, str(death)
        seen.add(death.after["before"])
    assert seen == {0, 1, 2}


@pytest.mark.slow
def test_the_same_call_after_a_kill(tmp_path):
    """Where the first checkpoint was cut off it begins anew with a word, as there is nothing to go on from."""
    deaths = kills("recordings:train", tmp_path, then="recordings:anew")
    whole, told = deaths[-1].after, {}
    for death in deaths:
        assert {**death.after, "told": 0} == {**whole, "told": 0}, str(death)
        told[death.event.split("/", 1)[-1]] = death.after["told"]
    cut = {
        event: words for event, words in told.items() if event.startswith("checkpoint-1.") or "checkpoint-1" == event
    }
    assert cut and all(any("killed while it wrote its first checkpoint" in w for w in words) for words in cut.values())


@pytest.mark.slow
def test_a_resumed_run_killed_at_every_step(tmp_path):
    """It moves epochs aside, which its checkpoint does not know, and records them again."""
    start = tmp_path / "start"
    script = "import sys; from pathlib import Path; from recordings import *; ahead(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, str(start)], check=True, cwd=Path(__file__).parent)
    deaths = kills("recordings:go_on", tmp_path / "runs", start=start, then="recordings:go_on")
    for death in deaths:
        assert death.after == deaths[-1].after, str(death)
    assert deaths[-1].after["epochs"] == 6


@pytest.mark.parametrize("how", ["kill", pytest.param("full", marks=pytest.mark.slow)])
def test_a_log_by_hand_at_every_step(tmp_path, how):
    deaths = kills("recordings:by_hand", tmp_path, then="recordings:by_hand_again", how=how)
    assert len(deaths) > 30
    for death in deaths:
        assert death.after == deaths[-1].after, str(death)
        if how == "full" and death.event.startswith(("write", "open")):
            assert "No space left" in death.said, str(death)
