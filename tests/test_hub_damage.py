"""Scores that were half written, damaged or made by strangers: refused with a word, or as they were, never mixed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import killed_work
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value, load_dataset
from hub_server import IGNORED, HubServer
from killing import flipped, kills
from PIL import Image as PILImage

from hf_prune import load_scores, push_scored, save_scored
from hf_prune.data.files import DamagedFileError
from hf_prune.share.card import markers

pytestmark = pytest.mark.filterwarnings(IGNORED)
REPO = "user/hurt"


@pytest.fixture(autouse=True)
def put_back(monkeypatch):
    for module, name in killed_work.CHANGED:
        monkeypatch.setattr(module, name, getattr(module, name))


def scored(rows: int = 8, seed: int = 0) -> Dataset:
    ids = [f"r{i}" for i in range(rows)]
    return Dataset.from_dict({"row_id": ids, "text": ["x"] * rows, "q": np.random.default_rng(seed).normal(size=rows)})


def saved(folder: Path, **splits: Dataset) -> Path:
    return save_scored(DatasetDict(splits or {"train": scored()}), folder, columns="q")


# names

BAD_NAMES = ["dev-clean", "my split", "all", "../x", "a/b", "", "a..b"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_split_names_that_could_not_be_read_back(tmp_path, name):
    ds = DatasetDict({"train": scored(), name: scored()})
    with pytest.raises(ValueError, match=r"split name .* cannot be read back by datasets; use letters, .* as '\w+'"):
        save_scored(ds, tmp_path / "out", columns="q")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="cannot be read back"):  # before anything is sent
        push_scored(ds, REPO, columns="q")


@pytest.mark.parametrize("name", ["v1.test", "größe", "train2", "Dev_clean"])
def test_split_names_that_can(tmp_path, name):
    saved(tmp_path, **{name: scored(), "train": scored(seed=1)})
    assert load_scores(tmp_path)[name]["q"][:] == scored()["q"][:]
    assert load_dataset(str(tmp_path))[name]["q"][:] == scored()["q"][:]


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "/abs", "data", "default", None])
def test_names_of_configs(tmp_path, name):
    with pytest.raises(ValueError, match="config_name=.* is (no name for a config|the name of the data)"):
        save_scored(scored(), tmp_path / "out", columns="q", config_name=name)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="data_config='../x' is no name for a config"):  # before anything is sent
        push_scored(scored(), REPO, columns="q", data_config="../x")


# half written


def test_save_scored_killed_anywhere(tmp_path):
    """The same scores are there before; then two splits in two parts are to be one, with other scores."""
    killed_work.save_first(tmp_path / "before")
    runs = tmp_path / "runs"
    *killed, whole = kills(
        "killed_work:save_second", runs, start=tmp_path / "before", then="killed_work:saved_again", timeout=300
    )
    old, new = (killed_work.loaded(folder) for folder in (tmp_path / "before", whole.folder))
    assert len(killed) >= 22 and "error" not in old and old != new
    seen = set()
    for death in killed:
        assert death.died and death.after["files"] == whole.after["files"], f"{death}: {death.said}"
        before = death.after["before"]
        kind = "old" if before == old else "new" if before == new else before.get("error", "a mixture")
        assert kind in ("old", "new") or "are not those that its score_columns.json describes" in kind, (
            f"{death} {kind}"
        )
        seen.add(kind[:3])
        assert "words of the owner" in death.after["readme"]
    assert seen > {"old", "new"}


def test_every_flipped_byte_of_saved_scores(tmp_path):
    saved(tmp_path / "whole")
    want = load_scores(tmp_path / "whole", split="train").to_dict()
    refused = 0
    for name in ("scores/train-00000-of-00001.parquet", "score_columns.json"):
        sound = (tmp_path / "whole" / name).read_bytes()
        folder = tmp_path / "flipped"
        shutil.copytree(tmp_path / "whole", folder, dirs_exist_ok=True)
        for place, data in flipped(sound, most=60):
            (folder / name).write_bytes(data)
            try:
                found = load_scores(folder, split="train").to_dict()
            except (ValueError, KeyError) as error:
                assert str(error).strip(), place
                assert isinstance(error, DamagedFileError) or name.endswith("json"), (place, error)
                refused += 1
            else:
                assert found == want and name.endswith("json"), place
        (folder / name).write_bytes(sound)
    assert refused > 60


def test_files_that_the_sidecar_does_not_name(tmp_path):
    saved(tmp_path, train=scored(), test=scored(seed=2))
    part = tmp_path / "scores" / "test-00000-of-00001.parquet"
    shutil.copy(part, tmp_path / "scores" / "dev-00000-of-00001.parquet")
    with pytest.raises(DamagedFileError, match="dev-00000-of-00001.parquet is not named there"):
        load_scores(tmp_path)
    (tmp_path / "scores" / "dev-00000-of-00001.parquet").rename(part.with_name("train-00001-of-00001.parquet"))
    with pytest.raises(DamagedFileError, match="train-00001-of-00001.parquet is not named there"):
        load_scores(tmp_path, split="test")
    part.with_name("train-00001-of-00001.parquet").unlink()
    part.unlink()
    with pytest.raises(DamagedFileError, match="test-00000-of-00001.parquet is missing"):
        load_scores(tmp_path, split="train")


def test_scores_of_the_first_version_have_no_digests_and_load(tmp_path):
    saved(tmp_path)
    path = tmp_path / "score_columns.json"
    facts = json.loads(path.read_text())
    for entry in facts["splits"].values():
        del entry["files"]
    path.write_text(json.dumps(facts))
    assert load_scores(tmp_path, split="train")["q"][:] == scored()["q"][:]
    path.unlink()
    assert load_scores(tmp_path, split="train")["q"][:] == scored()["q"][:]


# strangers


def no_sidecar(folder: Path, table: pa.Table, name: str = "train") -> Path:
    (folder / "scores").mkdir(parents=True)
    pq.write_table(table, folder / "scores" / f"{name}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + b"\x00" * 60 + b"PAR1", b"no parquet" * 40])
def test_what_is_no_parquet(tmp_path, data, caplog):
    no_sidecar(tmp_path, pa.table({"row_id": ["a"], "q": [1.0]}))
    (tmp_path / "scores" / "train-00000-of-00001.parquet").write_bytes(data)
    with pytest.raises(DamagedFileError, match=f"the scores {tmp_path} is damaged .*writes them again"):
        load_scores(tmp_path)
    assert not caplog.records


def test_columns_that_are_no_scores(tmp_path):
    PILImage.new("L", (2, 2)).save(tmp_path / "secret.png")
    there = {"bytes": None, "path": str(tmp_path / "secret.png")}
    ds = Dataset.from_dict(
        {"row_id": ["a"], "q": [there]}, features=Features({"row_id": Value("string"), "q": Image()})
    )
    (tmp_path / "in" / "scores").mkdir(parents=True)
    pq.write_table(ds.data.table, tmp_path / "in" / "scores" / "train-00000-of-00001.parquet")
    with pytest.raises(DamagedFileError, match="column 'q' holds Image, which is no score"):
        load_scores(tmp_path / "in")


@pytest.mark.parametrize(
    ("ids", "words"),
    [(["a", "a"], "occur more than once"), (["a", None], "1 ids .* are null"), ([["a"], ["b"]], "ids cannot be list")],
)
def test_ids_that_are_none(tmp_path, ids, words):
    with pytest.raises(DamagedFileError, match=words):
        load_scores(no_sidecar(tmp_path, pa.table({"row_id": ids, "q": [1.0, 2.0]})))


def test_a_split_that_could_not_be_written_today(tmp_path):
    folder = no_sidecar(tmp_path, pa.table({"row_id": ["a"], "q": [1.0]}), name="all")
    with pytest.raises(DamagedFileError, match="split name 'all' cannot be read.*rename all-00000-of-00001.parquet"):
        load_scores(folder)


@pytest.mark.parametrize(
    "splits",
    [
        [],
        "train",
        {"train": 1},
        {"../x": {"files": {}}},
        {"train": {"files": {"../../etc/passwd": "0"}}},
        {"train": {"files": {"train-00000-of-00001.parquet": 7}}},
        {"train": {"ids": 7}},
        {"train": {"files": ["train-00000-of-00001.parquet"]}},
    ],
)
def test_facts_of_splits_that_are_none(tmp_path, splits):
    saved(tmp_path)
    path = tmp_path / "score_columns.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "splits": splits}))
    if not splits:  # nothing is said
        assert len(load_scores(tmp_path, split="train")) == 8
        return
    with pytest.raises(DamagedFileError, match="save_scored or push_scored writes them again"):
        load_scores(tmp_path)


# the owner's words


def test_a_marker_without_its_counterpart(tmp_path):
    begin, end = markers("scores")
    saved(tmp_path)
    readme = tmp_path / "README.md"
    text = readme.read_text()
    for changed in (
        text.replace(end, "") + "\nwords of the owner\n",  # the closing one is lost
        text.replace(begin, f"{begin}\nwords of the owner\n{begin}"),  # an opening one above
        text.replace(end, f"{end}\nwords of the owner\n{end}"),
        text.replace(begin, f"{end}\nwords of the owner\n{begin}"),
        text + f"\n{begin}\nwords of the owner\n",
    ):
        readme.write_text(changed)
        for _ in range(3):
            saved(tmp_path)
            now = readme.read_text()
            assert "words of the owner" in now and now.count(begin) == now.count(end) == 1, changed
    kept = re.sub(f"{begin}.*{end}", f"{begin}\nold\n{end}", text, flags=re.DOTALL)
    readme.write_text(f"{kept}words below\n")
    saved(tmp_path)
    assert readme.read_text() == f"{text}words below\n"


def test_a_readme_that_is_no_text_stays_and_nothing_is_written(tmp_path):
    (tmp_path / "README.md").write_bytes(b"\xff\xfe words")
    with pytest.raises(DamagedFileError, match="README.* is damaged .*mend it, or name another folder"):
        saved(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]


# the Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer() as server:
        server.patch(monkeypatch, tmp_path / "home")
        yield server


def test_damage_on_the_hub(hub):
    push = {"columns": "q", "token": hub.token, "what": "scores"}
    push_scored(DatasetDict(train=scored()), REPO, **push)
    want = hub.files(REPO)
    hub.add(REPO, {"scores/train-00000-of-00001.parquet": b"PAR1 not any more PAR1"})
    with pytest.raises(DamagedFileError, match="train-00000-of-00001.parquet has another digest"):
        load_scores(REPO)
    hub.add(REPO, {"score_columns.json": b"\xff\xfe"})
    with pytest.raises(DamagedFileError, match="score_columns.json is damaged"):
        load_scores(REPO)
    assert push_scored(DatasetDict(train=scored()), REPO, **push).changed
    assert hub.files(REPO) == want
    hub.add(REPO, {"README.md": b"\xff\xfe words"})
    with pytest.raises(DamagedFileError, match="README.md is damaged .*mend it on the Hub"):
        push_scored(DatasetDict(train=scored(seed=3)), REPO, **push)


@pytest.mark.slow
def test_push_scored_killed_anywhere(tmp_path, monkeypatch):
    """At every write of its own, and before every request."""
    with HubServer() as server:
        for name, value in server.environ(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        *killed, whole = kills("killed_work:push", tmp_path / "runs", then="killed_work:pushed_again", timeout=300)
    assert whole.after["q"] == [float(i) for i in range(6)] and whole.after["left"] == []
    assert len(killed) >= 20 and any("POST main" in death.event for death in killed)
    assert sum(death.died for death in killed) > 0.8 * len(killed)  # what is cached takes fewer requests
    for death in killed:
        assert death.after == whole.after, f"{death}: {death.after} {death.said[-2000:]}"
