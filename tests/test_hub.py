import logging

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_dataset
from hub_server import IGNORED, HubServer
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from launching import python

from hf_prune.columns import ScoreColumn, parse_sidecar, sidecar_text
from hf_prune.data.identity import with_row_id
from hf_prune.share import remote
from hf_prune.share.push import load_scores, push_scored

pytestmark = pytest.mark.filterwarnings(IGNORED)
REPO = "user/scored"
PROTO = ScoreColumn(
    "ssl_proto",
    meaning="distance to the nearest prototype",
    scorer="hf_prune.scorers.ssl_prototypes:SSLPrototypes",
    version=1,
    params={"k": 3},
    model={"source": "/home/somebody/secret_folder/net", "digest": "abc"},
    companions={"embedding": "the embedding"},
)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.setattr(remote, "LONGEST", 0.05)
    with HubServer() as server:
        server.patch(monkeypatch, tmp_path / "home")
        yield server


def rows(n=40, seed=0):
    rng = np.random.default_rng(seed)
    features = {
        "text": Value("string"),
        "label": ClassLabel(names=["cat", "dog"]),
    }
    plain = {"text": [f"text {seed} {i}" for i in range(n)], "label": [int(i % 4 == 0) for i in range(n)]}
    ds = with_row_id(Dataset.from_dict(plain, features=Features(features), split="train"))
    features |= {
        "ssl_proto": Value("float32"),
        "embedding": List(Value("float32"), length=4),
        "mystery": Value("float64"),
    }
    new = {"ssl_proto": rng.random(n), "embedding": rng.random((n, 4)), "mystery": rng.random(n)}
    table = pa.table({**{c: ds.data[c] for c in ds.column_names}, **{k: list(v) for k, v in new.items()}})
    features["row_id"] = Value("string")
    features = Features({name: features[name] for name in table.column_names})
    return Dataset(table.cast(features.arrow_schema), info=datasets.DatasetInfo(features=features), split="train")


def by_id(ds, column):
    return dict(zip(ds["row_id"], ds[column], strict=True))


def push(hub, ds, **more):
    return push_scored(ds, REPO, **{"scorers": [PROTO], "columns": "mystery", "token": hub.token, **more})


def readme(hub, repo=REPO, revision="main"):
    text = hub.files(repo, revision)["README.md"].decode()
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def score_commits(hub, repo=REPO):
    return [c for c in hub.commits(repo) if c.title.startswith("Scores")]


# -- a push, and back ---------------------------------------------------------------


def test_scores_only(hub):
    ds = rows()
    done = push(hub, ds, what="scores")
    assert set(hub.files(REPO)) == {
        ".gitattributes", "README.md", "score_columns.json", "scores/train-00000-of-00001.parquet",
    }  # fmt: skip
    assert len(hub.commits(REPO)) == 2 and done.oid == hub.commits(REPO)[0].oid and done.changed
    assert done.columns == ("ssl_proto", "embedding", "mystery") and done.rows == {"train": 40}
    assert done.url == f"{hub.url}/datasets/{REPO}"
    back = load_dataset(REPO, "scores", split="train")
    assert back.column_names == ["row_id", *done.columns]
    for name in back.column_names:
        assert back.data[name].to_pylist() == ds.data[name].to_pylist()
        assert back.features[name] == ds.features[name]
    head, _ = readme(hub)
    assert {c["config_name"]: c.get("default") for c in head["configs"]} == {"scores": None}


def test_both_keeps_scores_out_of_the_data(hub):
    ds = rows()
    push(hub, ds)
    data, scores = load_dataset(REPO, split="train"), load_dataset(REPO, "scores", split="train")
    assert data.column_names == ["text", "label", "row_id"] and data.features["label"] == ds.features["label"]
    assert scores["ssl_proto"][:] == ds["ssl_proto"][:]
    assert [c.title for c in hub.commits(REPO)] == ["Scores: ssl_proto, mystery", "Upload dataset", "initial commit"]
    columns, facts = parse_sidecar(hub.files(REPO)["score_columns.json"].decode())
    assert facts["data"] == {"repo": REPO, "config": "default", "revision": hub.commits(REPO)[1].oid}
    assert facts["splits"]["train"]["rows"] == 40 and facts["row_id"] == "row_id"
    assert columns["ssl_proto"].known and not columns["mystery"].known
    joined = load_scores(REPO, data)
    assert by_id(joined, "ssl_proto") == by_id(ds, "ssl_proto")


@pytest.mark.parametrize("what", ["data", "both"])
def test_data_pushed_again_with_other_columns_are_read_as_they_are(hub, what):
    """`push_to_hub` keeps the old columns in the README, and readers find them full of nulls."""
    ds = rows()
    push(hub, ds.add_column("draft", [f"draft {i}" for i in range(len(ds))]), what=what)
    assert "draft" in load_dataset(REPO, split="train").column_names
    done = push(hub, ds, what=what)
    data = load_dataset(REPO, split="train", download_mode="force_redownload")
    assert data.column_names == ["text", "label", "row_id"] and data.features["label"] == ds.features["label"]
    assert data["text"][:] == ds["text"][:] and done.changed and done.oid == hub.commits(REPO)[0].oid
    assert not push(hub, ds, what=what).changed


@pytest.mark.parametrize("what", ["scores", "both"])
def test_a_second_push_changes_nothing(hub, what):
    first = push(hub, rows(), what=what)
    files = hub.files(REPO)
    again = push(hub, rows(), what=what)
    assert not again.changed and again.oid == first.oid and hub.files(REPO) == files
    changed = rows().map(lambda r: {"ssl_proto": -r["ssl_proto"]})
    assert push(hub, changed, what=what).changed and len(score_commits(hub)) == 2
    assert hub.files(REPO).keys() == files.keys()


def test_new_data_gets_a_new_revision(hub):
    push(hub, rows())
    push(hub, rows(50))
    facts = parse_sidecar(hub.files(REPO)["score_columns.json"].decode())[1]
    assert facts["data"]["revision"] == hub.commits(REPO)[1].oid and facts["splits"]["train"]["rows"] == 50
    # somebody edits the text: the data are what they were, and so is their revision
    _, body = readme(hub)
    hub.add(REPO, {"README.md": hub.files(REPO)["README.md"] + b"\nmore\n"})
    assert not push(hub, rows(50)).changed


def test_data_only(hub):
    done = push(hub, rows(), what="data")
    assert load_dataset(REPO, split="train").column_names == ["text", "label", "row_id"]
    assert done.oid == hub.commits(REPO)[0].oid and not any(p.startswith("score") for p in hub.files(REPO))


def test_dataset_dict(hub):
    both = DatasetDict(train=rows(), test=rows(12, seed=1))
    done = push(hub, both)
    assert done.rows == {"train": 40, "test": 12}
    data = load_dataset(REPO)
    joined = load_scores(REPO, DatasetDict(train=data["train"], test=data["test"]))
    assert by_id(joined["test"], "ssl_proto") == by_id(both["test"], "ssl_proto")
    assert set(load_scores(REPO)) == {"train", "test"}
    assert load_scores(REPO, split="test", columns="ssl_proto").column_names == ["row_id", "ssl_proto"]
    with pytest.raises(ValueError, match=r"scores for \['test'\].*DatasetDict with all splits"):
        push(hub, rows(), what="scores")
    with pytest.raises(KeyError, match="splits.*'test', 'train'.*not for 'validation'"):
        load_scores(REPO, split="validation")


def test_another_config_lives_beside_the_first(hub):
    push(hub, rows())
    push(hub, rows(seed=5), what="scores", config_name="scores-v2")
    head, body = readme(hub)
    assert [c["config_name"] for c in head["configs"]] == ["default", "scores", "scores-v2"]
    assert body.count("hf_prune:begin") == 2 and set(head["hf_prune"]) == {"scores", "scores-v2"}
    assert load_scores(REPO, config_name="scores-v2", split="train")["ssl_proto"][:] == rows(seed=5)["ssl_proto"][:]
    assert load_scores(REPO, split="train")["ssl_proto"][:] == rows()["ssl_proto"][:]


def test_parquet_is_the_same_bytes_whatever_the_chunks(hub):
    ds = rows(60)
    pieces = datasets.concatenate_datasets([ds.select(range(0, 7)), ds.select(range(7, 60))])
    push_scored(ds, "user/a", scorers=PROTO, token=hub.token, what="scores")
    push_scored(pieces, "user/b", scorers=PROTO, token=hub.token, what="scores")
    name = "scores/train-00000-of-00001.parquet"
    assert hub.files("user/a")[name] == hub.files("user/b")[name]


def test_shards(hub, monkeypatch):
    from hf_prune.share import tables

    monkeypatch.setattr(tables, "SHARD_BYTES", 1000)
    push(hub, rows(), what="scores")
    names = [p for p in hub.files(REPO) if p.endswith(".parquet")]
    assert len(names) > 2
    assert load_dataset(REPO, "scores", split="train")["ssl_proto"][:] == rows()["ssl_proto"][:]
    monkeypatch.setattr(tables, "SHARD_BYTES", 10**9)
    push(hub, rows(), what="scores")
    assert [p for p in hub.files(REPO) if p.endswith(".parquet")] == ["scores/train-00000-of-00001.parquet"]
    assert load_scores(REPO, split="train")["ssl_proto"][:] == rows()["ssl_proto"][:]


# -- other people's cards -----------------------------------------------------------

CARD = """---
license: cc-by-4.0
tags:
- mine
- scores
pretty_name: My Data
own_key:
  nested: [1, 2]
---

# My data

Text with {{ braces }} and a | table.
"""


def test_the_users_card_stays(hub):
    hub.add(REPO, {"README.md": CARD})
    push(hub, rows(), license="mit")
    head, body = readme(hub)
    assert head["license"] == "cc-by-4.0" and head["tags"] == ["mine", "scores", "hf_prune", "data-pruning"]
    assert head["own_key"] == {"nested": [1, 2]} and head["pretty_name"] == "My Data"
    assert body.startswith(CARD.split("---\n", 2)[2].rstrip())
    edited = hub.files(REPO)["README.md"].decode() + "\n## After\n\nAlso mine.\n"
    hub.add(REPO, {"README.md": edited.replace("# My data", "# My own data")})
    push(hub, rows(seed=3), what="scores")
    _, body = readme(hub)
    assert body.count("hf_prune:begin") == 1 and "# My own data" in body and body.endswith("Also mine.\n")
    assert len([c for c in hub.commits(REPO) if c.title == "Scores: ssl_proto, mystery"]) == 2


def test_licence_is_taken_never_invented(hub):
    push_scored(rows(), "user/none", scorers=PROTO, token=hub.token, what="scores")
    assert "license" not in readme(hub, "user/none")[0]
    ds = rows()
    ds.info.license = "apache-2.0"
    push_scored(ds, "user/own", scorers=PROTO, token=hub.token, what="scores", source="org/parent@abc")
    head, _ = readme(hub, "user/own")
    assert head["license"] == "apache-2.0" and head["source_datasets"] == ["org/parent"]


def test_yaml_that_cannot_be_read_is_left_alone(hub):
    hub.add(REPO, {"README.md": "---\ntags: [a\n---\nmine\n"})
    with pytest.raises(ValueError, match="the README of .* is damaged .*; mend its YAML"):
        push(hub, rows(), what="scores")
    assert len(hub.commits(REPO)) == 2


def test_data_found_by_name_are_still_found(hub):
    hub.add(REPO, {"train.csv": "text\na\nb\n", "test.csv": "text\nc\n"})
    assert set(load_dataset(REPO)) == {"train", "test"}
    for changed in (True, False):
        with pytest.warns(UserWarning, match=r"holds \.csv files.*load_scores"):
            assert push(hub, rows(), what="scores").changed is changed
        found = load_dataset(REPO, "default")
        assert found["train"]["text"][:] == ["a", "b"] and found["test"]["text"][:] == ["c"]
        assert len(load_scores(REPO, split="train")) == 40


def test_many_files_found_by_name_are_not_listed(hub, monkeypatch):
    hub.add(REPO, {f"images/{i}.png": b"x" for i in range(5)} | {"images/metadata.jsonl": "{}"})
    monkeypatch.setattr(remote, "LISTED", 4)
    with pytest.raises(ValueError, match="has no configs:.* its 5 data files by name.*declare them"):
        push(hub, rows(), what="scores")
    monkeypatch.setattr(remote, "LISTED", 10)
    with pytest.warns(UserWarning, match=r"holds \.(png|jsonl) files"):
        push(hub, rows(), what="scores")
    (entry,) = readme(hub)[0]["configs"][0]["data_files"]
    assert entry["path"] == [*(f"images/{i}.png" for i in range(5)), "images/metadata.jsonl"]


# -- faults -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("/commit/", 503), ("/commit/", 500), ("/commit/", "drop"), ("/commit/", "lost"), ("/commit/", "half"),
        ("/commit/", 409), ("/commit/", 412), ("/preupload/", 503), ("/lfs/", "drop"), ("/lfs/", 503),
        ("/objects/batch", 502), ("validate-yaml", 503), ("api/datasets/user/scored$", "drop"), ("paths-info", 503),
        ("repos/create", "lost"), ("/revision/", 503), ("/tree/", "half"), ("/commit/", "slow"),
    ],
)  # fmt: skip
def test_faults_are_waited_out(hub, pattern, kind):
    hub.fail(pattern, 2, kind)
    push(hub, rows(), what="both" if "commit" in pattern else "scores")
    assert len(score_commits(hub)) == 1 and len(hub.commits(REPO)) == 2 + ("commit" in pattern)
    assert load_dataset(REPO, "scores", split="train")["ssl_proto"][:] == rows()["ssl_proto"][:]


def test_retry_after_is_obeyed(hub, monkeypatch):
    naps = []
    monkeypatch.setattr(remote, "LONGEST", 60.0)
    monkeypatch.setattr(remote.time, "sleep", naps.append)
    hub.fail("/commit/", 1, 429, headers={"Retry-After": "7"})
    push(hub, rows(), what="scores")
    assert 7.0 in naps and len(score_commits(hub)) == 1


def test_the_wait_is_told(hub, caplog):
    hub.fail("/commit/", 1, 503)
    push(hub, rows(), what="scores")
    assert [r.levelname for r in caplog.records if "503; trying again in" in r.getMessage()] == ["WARNING"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_offline_mode_is_not_waited_out(wrapped):
    calls = []

    def action():
        calls.append(1)
        if not wrapped:
            raise OfflineModeIsEnabled("offline")
        try:
            raise OfflineModeIsEnabled("offline")
        except OfflineModeIsEnabled as error:
            raise LocalEntryNotFoundError("not in the cache") from error

    with pytest.raises((OfflineModeIsEnabled, LocalEntryNotFoundError)):
        remote.retry(action, "reading")
    assert len(calls) == 1


def test_a_push_that_dies_is_finished_by_the_next(hub, monkeypatch):
    hub.add(REPO, {"README.md": CARD})
    hub.fail("/commit/", 99, 503, after=1)  # the data arrive, the scores do not
    with pytest.raises(HfHubHTTPError) as caught:
        push(hub, rows())
    assert "safe to run the same call again" in "".join(caught.value.__notes__)
    assert [c.title for c in hub.commits(REPO)] == ["Upload dataset", "by hand", "initial commit"]
    hub.faults.clear()
    push(hub, rows())
    assert len(score_commits(hub)) == 1 and len(hub.commits(REPO)) == 4
    head, body = readme(hub)
    assert head["license"] == "cc-by-4.0" and "# My data" in body
    assert load_scores(REPO, load_dataset(REPO, split="train"))["mystery"][:] == rows()["mystery"][:]


def test_a_card_that_cannot_be_read_is_not_taken_for_no_card(hub):
    hub.add(REPO, {"README.md": CARD})
    hub.fail("resolve/.*/README.md", 999, 503)
    with pytest.raises(Exception):  # noqa: B017  whichever error the client makes of it
        push(hub, rows(), what="scores")
    assert hub.files(REPO)["README.md"].decode() == CARD
    hub.faults.clear()
    push(hub, rows(), what="scores")
    assert "# My data" in readme(hub)[1]


def test_what_others_commit_meanwhile_is_kept(hub):
    hub.add(REPO, {"README.md": CARD})
    real, done = remote.Remote.put, []

    def put(self, *args):  # the README changes between our reading and our commit
        if not done:
            done.append(hub.add(REPO, {"README.md": CARD.replace("My data", "Their data"), "other.bin": "x"}))
        return real(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote.Remote, "put", put)
        push(hub, rows(), what="scores")
    assert "# Their data" in readme(hub)[1] and "other.bin" in hub.files(REPO)
    assert any(r.status == 412 for r in hub.requests) and len(score_commits(hub)) == 1


def test_errors_that_waiting_cannot_mend_come_at_once(hub):
    with pytest.raises(HfHubHTTPError, match="401"):
        push(hub, rows(), what="scores", token="hf_wrong")
    assert sum(r.status == 401 for r in hub.requests) == 1


def test_the_token_is_in_no_log_body_or_file(hub, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    hub.fail("/commit/", 1, 503)
    hub.fail("/lfs/", 1, "drop")
    push(hub, rows(), scorers=[ScoreColumn("ssl_proto", scorer="a:B", params={"token": hub.token})])
    load_scores(REPO, token=hub.token)
    out = capfd.readouterr()
    assert hub.token not in caplog.text + out.out + out.err
    for request in hub.requests:
        assert hub.token.encode() not in request.body and hub.token not in request.path
        assert hub.token not in "".join(v for k, v in request.headers.items() if k.lower() != "authorization")
    assert any("authorization" in map(str.lower, r.headers) for r in hub.requests)
    assert not [path for path, content in hub.files(REPO).items() if hub.token.encode() in content]


def test_branch_and_pull_request(hub):
    hub.add(REPO, {"README.md": CARD})
    push(hub, rows(), what="scores", revision="scored")
    assert "scores/train-00000-of-00001.parquet" in hub.files(REPO, "scored")
    assert hub.files(REPO)["README.md"].decode() == CARD
    done = push(hub, rows(), create_pr=True)
    assert done.url.endswith("/discussions/1") and "# My data" in readme(hub, revision="refs/pr/1")[1]
    assert set(hub.files(REPO)) == {".gitattributes", "README.md"}
    assert len(load_scores(REPO, split="train", revision="refs/pr/1")) == 40


def test_private_is_passed_on(hub):
    push(hub, rows(), what="scores", private=True)
    assert hub.repos[REPO].private


# -- joining ------------------------------------------------------------------------


@pytest.fixture
def pushed(hub):
    push(hub, rows(), what="both")
    return load_dataset(REPO, split="train")


def test_shuffled_pruned_and_formatted(pushed):
    truth = by_id(rows(), "ssl_proto")
    some = pushed.shuffle(seed=1).select([5, 3, 30, 3])
    joined = load_scores(REPO, some)
    assert joined["row_id"][:] == some["row_id"][:] and joined["ssl_proto"][:] == [truth[i] for i in some["row_id"]]
    assert joined._indices is not None and joined.split == "train"
    assert joined.features["embedding"] == List(Value("float32"), length=4)
    assert joined.features["label"] == pushed.features["label"]
    shown = load_scores(REPO, pushed.with_format("numpy", columns=["label"]), columns=["ssl_proto"])
    assert shown.format["type"] == "numpy" and shown.format["columns"] == ["label", "ssl_proto"]
    assert shown[3]["ssl_proto"] == np.float32(truth[rows()["row_id"][3]])
    assert load_scores(REPO, some)._fingerprint == joined._fingerprint != some._fingerprint


def test_the_table_is_not_rewritten(pushed):
    joined = load_scores(REPO, pushed)
    assert joined.data["text"].chunk(0).buffers()[2].address == pushed.data["text"].chunk(0).buffers()[2].address


def test_changed_parent_is_refused(pushed):
    other = with_row_id(
        pushed.remove_columns("row_id").map(lambda r, i: {"text": r["text"] + "!" * (i < 2)}, with_indices=True)
    )
    with pytest.raises(ValueError, match=r"2 of 40 rows have no score.*first ids: '[0-9a-f]{32}-0'.*have changed"):
        load_scores(REPO, other)
    sly = pushed.map(lambda r, i: {"text": r["text"] + "!" * (i == 1)}, with_indices=True)  # ids as they were
    assert load_scores(REPO, pushed.shuffle(seed=2), verify=True)
    with pytest.raises(ValueError, match="1 rows are not those.*first row 1"):
        load_scores(REPO, sly, verify=True)


def test_clashes_and_missing_columns(pushed, hub):
    with pytest.raises(ValueError, match="have a column 'mystery' already"):
        load_scores(REPO, pushed.rename_column("text", "mystery"))
    with pytest.raises(ValueError, match="no column 'row_id' to join by; with_row_id"):
        load_scores(REPO, pushed.remove_columns("row_id"))
    with pytest.raises(KeyError, match="no column 'nope'; they have"):
        load_scores(REPO, pushed, columns="nope")
    with pytest.raises(FileNotFoundError, match="has no scores"):
        load_scores(REPO, config_name="other")
    with pytest.raises(ValueError, match="no name for a config"):
        load_scores(REPO, config_name="../up")


def test_a_local_folder(hub, tmp_path):
    push(hub, rows(), what="both")
    for path, content in hub.files(REPO).items():
        (tmp_path / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / path).write_bytes(content)
    served = len(hub.requests)
    joined = load_scores(tmp_path / "copy", rows().remove_columns(["ssl_proto", "embedding", "mystery"]))
    assert by_id(joined, "mystery") == by_id(rows(), "mystery") and len(hub.requests) == served
    file = tmp_path / "copy/scores/train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(file).slice(3), file)
    with pytest.raises(ValueError, match="not those that its score_columns.json describes"):
        load_scores(tmp_path / "copy")
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_scores(tmp_path / "nowhere")


def test_kinds_of_columns_and_ids(hub):
    n = 12
    ds = Dataset.from_dict(
        {
            "number": list(range(n)),
            "label": ["a", "b", None] * 4,
            "flag": [True, False] * 6,
            "count": [None, *range(1, n)],
            "big": [2**62 + i for i in range(n)],
            "word": ["w"] * n,
        }
    )
    done = push_scored(
        ds, REPO, columns=["flag", "count", "big", "word"], row_id="number", label="label", token=hub.token
    )
    assert done.rows == {"train": n}
    body = readme(hub)[1]
    assert "| (no label) | 4 |" in body and "1 NaN or null" in body and "### `word`" in body
    part = load_dataset(REPO, split="train[:25%]")
    joined = load_scores(REPO, part)
    assert joined["big"][:] == [2**62 + i for i in range(3)] and joined["count"][:] == [None, 1, 2]
    assert joined["flag"][:] == [True, False, True]
    asked = len(hub.requests)
    with pytest.raises(KeyError, match="no column 'nope' for label="):
        push_scored(ds, REPO, columns=["flag"], row_id="number", label="nope", token=hub.token)
    assert len(hub.requests) == asked  # found before anything is pushed
    push_scored(load_scores(REPO, part), "user/part", columns=["flag"], row_id="number", token=hub.token)
    assert load_scores("user/part", split="train")["flag"][:] == [True, False, True]


# -- arguments ----------------------------------------------------------------------


class Scorer:
    name = "ssl_proto"

    def describe(self):
        return ScoreColumn(self.name, scorer="tests:Scorer")

    def columns(self):
        return {"ssl_proto": "float32", "embedding": "list<float32>"}


def test_scorers_folders_and_columns_name_the_scores(hub, tmp_path):
    (tmp_path / "score_columns.json").write_text(sidecar_text([PROTO]), encoding="utf-8")
    for scorers in (Scorer(), [Scorer()], tmp_path, str(tmp_path), PROTO):
        done = push_scored(rows(), "user/same", scorers=scorers, token=hub.token, what="scores")
        assert done.columns == ("ssl_proto", "embedding")
    with pytest.raises(ValueError, match="no score columns named.*'text', 'label', 'row_id', 'ssl_proto'"):
        push_scored(rows(), REPO, token=hub.token)
    with pytest.raises(KeyError, match="no column 'nope' to push; the data have"):
        push_scored(rows(), REPO, columns=["nope"], token=hub.token)
    with pytest.raises(FileNotFoundError, match="is no score folder"):
        push_scored(rows(), REPO, scorers=tmp_path / "empty", token=hub.token)
    with pytest.raises(TypeError, match="no scorer, ScoreColumn or score folder"):
        push_scored(rows(), REPO, scorers=[3], token=hub.token)


def test_bad_rows(hub):
    ds = rows()
    with pytest.raises(ValueError, match="no column 'row_id'.*with_row_id"):
        push(hub, ds.remove_columns("row_id"))
    with pytest.raises(ValueError, match="1 ids in column 'row_id'.*occur more than once"):
        push(hub, datasets.concatenate_datasets([ds, ds.select([0])]))
    with pytest.raises(ValueError, match="is empty"):
        push(hub, ds.select([]))
    with pytest.raises(ValueError, match="'mystery' of split 'train' is null in every row"):
        push(hub, ds.map(lambda r: {"mystery": None}, features=ds.features))
    with pytest.raises(TypeError, match="needs a Dataset"):
        push(hub, ds.to_iterable_dataset())
    with pytest.raises(ValueError, match="what='all' is unknown"):
        push(hub, ds, what="all")
    with pytest.raises(ValueError, match="keep=70 is not a fraction"):
        push(hub, ds, keep=70)
    assert not hub.requests


def test_no_path_of_this_machine_is_published(hub, tmp_path):
    push(
        hub,
        rows(),
        scorers=[PROTO, ScoreColumn("mystery", scorer="a:B", fitted_on={"file": str(tmp_path / "fit.bin")})],
    )
    everything = b"".join(hub.files(REPO).values())
    assert b"secret_folder" not in everything and b"somebody" not in everything
    assert str(tmp_path).encode() not in everything and b"fit.bin" in everything


PROCESS = """
import datasets
from datasets import load_dataset
from hf_prune.columns import ScoreColumn
from hf_prune.share.push import load_scores, push_scored
from hf_prune.data.identity import with_row_id

datasets.disable_progress_bars()
ds = with_row_id(datasets.Dataset.from_dict({"x": [1, 2, 3], "label": [0, 1, 0]}))
scored = ds.add_column("s", [0.1, 0.2, 0.3])
push_scored(scored, "user/process", columns="s", label="label")
again = push_scored(scored, "user/process", columns="s", label="label")
assert not again.changed
print(load_scores("user/process", load_dataset("user/process", split="train"))["s"][:])
"""


def test_in_a_process_of_its_own(hub, tmp_path):
    """As users run it: the endpoint and the token come from the environment."""
    done = python(PROCESS, env=hub.environ(tmp_path / "other"))
    assert done.stdout.strip().endswith("[0.1, 0.2, 0.3]") and hub.token not in done.stdout + done.stderr


def test_save_scored_writes_what_load_scores_reads(tmp_path, vectors):
    from datasets import load_dataset

    from hf_prune import SSLPrototypes, load_scores, save_scored

    scorer = SSLPrototypes.fit(vectors, k=3, cluster=True)
    scored = vectors.map(scorer, batched=True)
    folder = tmp_path / "scores of mine"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n\nMy own words.\n")
    assert save_scored(scored, folder, scorers=[scorer]) == folder
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "score_columns.json", "scores"]
    text = (folder / "README.md").read_text()
    assert "My own words." in text and "license: mit" in text and "## Scores for data selection" in text
    back = load_scores(folder, vectors.shuffle(seed=0), split="train").sort("row_id")
    assert back["ssl_proto"][:] == scored.sort("row_id")["ssl_proto"][:]
    assert set(load_dataset(str(folder), "scores", split="train").column_names) >= {"row_id", "ssl_proto_cluster"}
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    save_scored(scored, folder, scorers=[scorer])
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_an_embedder_names_the_model_behind_the_scores(tmp_path, vectors, tiny_bert_folder):
    import json

    from hf_prune import Embedder, SSLPrototypes, save_scored

    embedder = Embedder(tiny_bert_folder, column="text")
    scorer = SSLPrototypes.fit(vectors, k=3)
    scored = vectors.map(scorer, batched=True).remove_columns("embedding")
    save_scored(scored, tmp_path / "out", scorers=[embedder, scorer])
    (column,) = json.loads((tmp_path / "out" / "score_columns.json").read_text())["columns"]
    assert column["name"] == "ssl_proto" and column["model"]["revision"] == embedder.model.revision
    assert str(tiny_bert_folder) not in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(KeyError, match="no column 'embedding' to push"):
        save_scored(scored, tmp_path / "out", scorers=[embedder])
