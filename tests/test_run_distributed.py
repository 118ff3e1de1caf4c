"""`score` in two real processes; once by `accelerate launch` itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk
from launching import together
from run_scorers import Logged, Norm, Widen, calls

from hf_prune import score

N = 4100
TEXTS = [f"{i} " + "x" * (i * 7 % 31) for i in range(N)]

SCRIPT = """
import atexit, json, os, pathlib, sys
import datasets
import torch
from accelerate.state import PartialState
from hf_prune import score
from run_scorers import Logged, Norm, Widen

data, folder, result, options = sys.argv[1:5]
options = json.loads(options)
mine = pathlib.Path(f"{result}-{os.environ['RANK']}.json")

def tell(**facts):
    mine.write_text(json.dumps(facts))

def run(ds, folder, *scorers, **options):
    out = score(ds, *scorers, output_dir=folder, **options)
    return {"fingerprint": out._fingerprint, **{s.name: out[s.name][:] for s in scorers}}

# runs after those made later; one write a process, or the lines of two of them mix
atexit.register(lambda: os.write(1, f"group at exit: {torch.distributed.is_initialized()}\\n".encode()))
ds = datasets.load_from_disk(data)
if options.pop("state_first", False):
    PartialState(cpu=True)
if options.pop("own_folder", False):
    folder += os.environ["RANK"]
if options.pop("other_length", False) and os.environ["RANK"] == "1":
    ds = ds.select(range(10))
again = options.pop("again", False)
try:
    facts = {"plain": run(ds, folder, Logged(), Widen(), Norm(), **options)}
    if again:
        try:
            run(ds, folder, Norm(embedding="text"))
        except Exception as error:
            facts["clash"] = f"{type(error).__name__}: {error}"
        facts["mapped"] = run(ds.shuffle(seed=3), None, Logged(), shard_rows=500)
except Exception as error:
    tell(error=f"{type(error).__name__}: {error}")
    raise
tell(world=PartialState().num_processes, **facts)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    Dataset.from_dict({"text": TEXTS}).save_to_disk(str(folder))
    return folder


def launch(tmp_path: Path, data: Path, folder: Path, status=0, launcher=False, env=None, **options: object):
    variables = {"HF_PRUNE_TEST_LOG": str(tmp_path / "log.txt"), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    arguments = (data, folder, tmp_path / "result", json.dumps(options))
    return together(SCRIPT, *arguments, env={**variables, **(env or {})}, status=status, launcher=launcher)


def results(tmp_path: Path) -> list[dict]:
    return [json.loads((tmp_path / f"result-{i}.json").read_text()) for i in range(2)]


def parts(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("part-*.arrow")}


def test_two_processes_share_the_shards(tmp_path, data, monkeypatch):
    folder = tmp_path / "out"
    launch(tmp_path, data, folder, launcher=True, state_first=True, again=True)
    first, second = results(tmp_path)
    assert first["world"] == second["world"] == 2
    log = [c for c in calls(tmp_path / "log.txt") if int(c[2]) > 500 or c[3].startswith("4000 ")][:5]
    assert {(c[0], c[1]) for c in log} == {("0", "0"), ("1", "1")}  # process and rank
    assert sum(int(c[2]) for c in log) == N
    assert sorted(int(c[3].split()[0]) // 1000 for c in log if c[0] == "1") == [1, 3]
    monkeypatch.setenv("HF_PRUNE_TEST_LOG", str(tmp_path / "alone.txt"))
    alone = score(load_from_disk(str(data)), Logged(), Widen(), Norm(), output_dir=tmp_path / "alone")
    for one in (first["plain"], second["plain"]):
        assert one["fingerprint"] == alone._fingerprint
        for name in ("logged", "norm"):
            assert one[name] == pytest.approx(alone[name][:], abs=1e-6)
    assert parts(folder) == parts(tmp_path / "alone")
    assert not list(folder.glob("*tmp*"))
    # a folder of another run: the main process sees it, both say so
    assert first["clash"].startswith("ValueError: ") and "overwrite=True" in first["clash"]
    assert second["clash"].startswith("ElsewhereError: process 0 failed with ValueError: ")
    # without a folder the main process chooses one; an indices mapping is kept
    assert first["mapped"] == second["mapped"]
    assert first["mapped"]["logged"] == [float(len(t)) for t in load_from_disk(str(data)).shuffle(seed=3)["text"][:]]
    assert len(list((tmp_path / "cache" / "hf_prune_scores").iterdir())) == 1
    # one process goes on where two stopped
    (folder / "part-00002.json").unlink()
    (tmp_path / "alone.txt").unlink()
    score(load_from_disk(str(data)), Logged(), Widen(), Norm(), output_dir=folder)
    assert [c[3].split()[0] for c in calls(tmp_path / "alone.txt")] == ["2000"]


@pytest.mark.parametrize("failing", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_fails_ends_all(tmp_path, data, failing):
    """Row 100 belongs to process 0, row 1100 to process 1; the other process hears of it from score() itself."""
    fail = f"{failing}100 " if failing else "100 "
    launch(tmp_path, data, tmp_path / "out", status=1, env={"HF_PRUNE_TEST_FAIL": fail}, shard_rows=1000)
    told = [one["error"] for one in results(tmp_path)]
    assert told[failing] == f"RuntimeError: told to fail at {fail}"
    assert told[1 - failing].startswith(f"ElsewhereError: process {failing} failed with RuntimeError: told to fail")
    assert f"shard {failing}" in told[1 - failing]


@pytest.mark.slow
def test_processes_that_were_given_different_things(tmp_path, data):
    launch(tmp_path, data, tmp_path / "out", own_folder=True)  # the main process says where
    assert not (tmp_path / "out1").exists() and len(results(tmp_path)) == 2
    launch(tmp_path, data, tmp_path / "out", status=1, other_length=True)
    assert all("given different scorers, or datasets of different lengths" in one["error"] for one in results(tmp_path))


@pytest.mark.slow
def test_two_launches_on_one_folder(tmp_path, data):
    """The second waits for the first, all of its processes, and computes nothing."""
    from concurrent.futures import ThreadPoolExecutor

    for name in "ab":
        (tmp_path / name).mkdir()
    log = {"HF_PRUNE_TEST_LOG": str(tmp_path / "log.txt")}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda n: launch(tmp_path / n, data, tmp_path / "out", env=log, shard_rows=300), "ab"))
    told = [one["plain"] for name in "ab" for one in results(tmp_path / name)]
    assert all(
        one["logged"] == [float(len(t)) for t in TEXTS] and one["fingerprint"] == told[0]["fingerprint"] for one in told
    )
    assert sum(int(c[2]) for c in calls(tmp_path / "log.txt") if int(c[2]) > 1) == N
    assert not [p.name for p in (tmp_path / "out").iterdir() if "lock" in p.name or "tmp" in p.name]


def test_a_group_that_score_made_is_left_at_the_exit(tmp_path, data):
    """Its threads would now and then abort a process that had done its work."""
    assert launch(tmp_path, data, tmp_path / "out").stdout.count("group at exit: False") == 2
