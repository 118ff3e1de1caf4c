"""Recording killed at every write, sync and rename: what is called again ends as the run that nobody disturbed."""

from __future__ import annotations

import pytest
from killing import kills
from launching import python


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_train_with_log_killed_at_every_step(tmp_path):
    """Called again it goes on; without `resume` too, with a word, where there is no checkpoint to go on from."""
    deaths = kills("recordings:train", tmp_path, then="recordings:again", timeout=500)
    whole, seen = deaths[-1].after, set()
    assert len(deaths) > 100 and all(death.died for death in deaths[:-1])
    assert whole["resumed"]["epochs"] == 2 and not whole["resumed"]["left"]
    for death in deaths:
        assert death.after["resumed"] == death.after["anew"] == whole["resumed"], str(death)
        killed = any("killed while it wrote its first checkpoint" in words for words in death.after["told"])
        assert killed == death.after["state"]["cut"], str(death)
        seen.add((death.after["state"]["before"], killed, death.after["state"].get("refused", False)))
    assert seen >= {(0, False, False), (1, True, False), (1, False, True), (2, False, True)}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_resumed_run_killed_at_every_step(tmp_path):
    """It moves epochs aside, which its checkpoint does not know, and records them again."""
    start = tmp_path / "start"
    script = "import sys; from pathlib import Path; from recordings import *; ahead(Path(sys.argv[1]))"
    python(script, start)
    deaths = kills("recordings:go_on", tmp_path / "runs", start=start, then="recordings:go_on", timeout=500)
    for death in deaths:
        assert death.after == deaths[-1].after, str(death)
    assert deaths[-1].after["epochs"] == 6


@pytest.mark.parametrize(
    "work, how",
    [
        ("one_epoch", "kill"),
        pytest.param("by_hand", "kill", marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
        pytest.param("by_hand", "full", marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_a_log_by_hand_at_every_step(tmp_path, work, how):
    deaths = kills(f"recordings:{work}", tmp_path, then=f"recordings:{work}_again", how=how, timeout=500)
    assert len(deaths) > 30
    for death in deaths:
        assert death.after == deaths[-1].after and not death.after["left"], str(death)
        if how == "full" and death.event.startswith(("write", "open")):
            assert "No space left" in death.said, str(death)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_trainer_killed_at_every_step(tmp_path):
    deaths = kills("recordings_trainer:train", tmp_path, then="recordings_trainer:again", timeout=900)
    assert len(deaths) > 100 and deaths[-1].after["epochs"] == 2 and not deaths[-1].after["left"]
    for death in deaths:
        assert death.after == deaths[-1].after, str(death)
