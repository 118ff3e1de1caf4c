from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pytest
from hub_server import IGNORED, HubServer
from launching import python, run
from typer.testing import CliRunner

from hf_prune.cli import doctor, io, main, scorers
from hf_prune.scorer import Scorer


@dataclass(frozen=True, eq=False)
class Length(Scorer):
    text: str = "text"
    name: str = "length"

    def score(self, batch, rank):
        return [len(t) for t in batch.texts(self.text)]


@dataclass(frozen=True, eq=False)
class Nearest(Scorer):
    target_rows: int
    name: str = "nearest"

    @classmethod
    def fit(cls, ds, target, wide: bool = False, columns: tuple[str, ...] = ()):
        assert isinstance(columns, tuple)
        return cls(len(target))

    def score(self, batch, rank):
        return np.full(batch.n, self.target_rows)


class Result:
    def __init__(self, result):
        self.code, self.out, self.err, self.exception = result.exit_code, result.stdout, result.stderr, result.exception


def hp(*args):
    return Result(CliRunner().invoke(main.app, [str(a) for a in args]))


def ok(*args):
    result = hp(*args)
    assert result.code == 0, result.err
    return result


def fails(*args, code=1):
    """The one line of the error."""
    result = hp(*args)
    lines = [line for line in result.err.splitlines() if line.startswith("hf-prune: error: ")]
    assert result.code == code and len(lines) == 1 and "Traceback" not in result.err, result.err
    return lines[0]


@pytest.fixture(scope="module")
def plain(vectors):
    return vectors.remove_columns("embedding")


@pytest.fixture(scope="module")
def scored(vectors, tmp_path_factory):
    """A folder that `score` wrote, with provenance."""
    folder = tmp_path_factory.mktemp("cli")
    vectors.save_to_disk(folder / "data")
    ok("score", folder / "data", "--scorer", "ssl_proto", "--scorer", "supervised_proto", "--scorer", "random",
       "--k", 4, "--seed", 5, "-o", folder / "scored", "--save-scorers", folder / "saved",
       "--scores-dir", folder / "scores")  # fmt: skip
    return folder


def written(path):
    return io.open_data(str(path)).main


# -- reading and writing ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl", "csv", "tsv", "arrow", "stream.arrow", "saved", "folder"])
def test_every_input_gives_the_same_rows(kind, plain, tmp_path):
    path = tmp_path / f"data.{kind}"
    table = plain.data.table.combine_chunks()
    if kind in ("parquet", "csv", "jsonl", "json"):
        getattr(plain, "to_" + kind.replace("jsonl", "json"))(str(path))
    elif kind == "tsv":
        plain.to_csv(str(path), sep="\t", index=False)
    elif kind == "arrow":
        pa.feather.write_feather(table, str(path), compression="uncompressed")
    elif kind == "stream.arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif kind == "saved":
        plain.save_to_disk(path)
    else:
        path.mkdir()
        plain.select(range(50)).to_parquet(str(path / "a.parquet"))
        plain.select(range(50, 96)).to_parquet(str(path / "b.parquet"))
    out = tmp_path / "out.parquet"
    ok("score", path, "--scorer", f"{__name__}:Length", "-o", out)
    assert written(out)["length"][:] == [float(len(t)) for t in plain["text"]]
    assert written(out)["label"][:] == plain["label"][:]


@pytest.mark.parametrize("name", ["out", "out.parquet", "out.jsonl", "out.csv", "new/deep/out.parquet"])
def test_every_output_holds_the_kept_rows(name, plain, tmp_path):
    plain.to_parquet(str(tmp_path / "data.parquet"))
    out = tmp_path / name
    result = ok("filter", tmp_path / "data.parquet", "--by", "label", "--threshold", "2", "-o", out)
    assert "48 rows kept (50.0%), 48 dropped" in result.out
    assert written(out)["row_id"][:] == [r for r, y in zip(plain["row_id"], plain["label"], strict=True) if y >= 2]
    assert not list(tmp_path.rglob("*.tmp*"))


def test_filter_passes_over_the_best(tmp_path):
    data, out = tmp_path / "data.parquet", tmp_path / "out.parquet"
    datasets.Dataset.from_dict({"s": [5.0, 4.0, 3.0, 2.0, 1.0]}).to_parquet(str(data))
    ok("filter", data, "--by", "s", "--keep", "0.4", "--offset", "0.2", "-o", out)
    assert written(out)["s"][:] == [4.0, 3.0]


def test_splits(plain, tmp_path):
    both = datasets.DatasetDict({"train": plain.select(range(60)), "test": plain.select(range(60, 96))})
    both.save_to_disk(tmp_path / "both")
    ok("filter", tmp_path / "both", "--by", "label", "--rows", "10", "-o", tmp_path / "out")
    out = datasets.load_from_disk(tmp_path / "out")
    assert {name: len(part) for name, part in out.items()} == {"train": 10, "test": 36}
    line = fails("filter", tmp_path / "both", "--by", "label", "--rows", "10", "-o", tmp_path / "out.parquet")
    assert "choose one with --split" in line
    ok("filter", tmp_path / "both", "--split", "test", "--by", "label", "--rows", "9", "-o", tmp_path / "test.parquet")
    assert len(written(tmp_path / "test.parquet")) == 9
    assert "only ['train', 'test']" in fails(
        "filter", tmp_path / "both", "--split", "dev", "--by", "label", "--rows", "9", "-o", tmp_path / "x"
    )
    datasets.DatasetDict({"a": both["train"], "b": both["test"]}).save_to_disk(tmp_path / "ab")
    assert "--split" in fails("filter", tmp_path / "ab", "--by", "label", "--rows", "9", "-o", tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("bad.parquet", b"garbage", "is damaged"),
        ("bad.arrow", b"garbage", "is damaged"),
        ("bad.csv", b"a,b\n1,2\n1,2,3\n", "is damaged"),
        ("bad.jsonl", b'{"a": 1}\n{"a": [', "is damaged"),
        ("bad.txt", b"text", "is no data file"),
        ("bad.json", b"", "is empty; give a file with rows"),
    ],
)
def test_unreadable_files(name, content, expected, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert expected in fails("filter", tmp_path / name, "--by", "a", "--keep", "0.5", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_there(tmp_path):
    args = ("--by", "a", "--keep", "0.5", "-o", tmp_path / "out")
    assert "does not exist" in fails("filter", "missing.parquet", *args)
    assert "does not exist" in fails("filter", tmp_path / "missing", *args)
    assert "neither here nor to be had from the Hub" in fails("filter", "user/missing", *args)
    (tmp_path / "empty").mkdir()
    assert "holds neither" in fails("filter", tmp_path / "empty", *args)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "dataset_info.json").write_text("{")
    assert "is damaged" in fails("filter", tmp_path / "broken", *args)


def test_what_is_there_stays(scored, tmp_path):
    args = ("filter", scored / "scored", "--by", "ssl_proto", "--keep", "0.5")
    for name in ("out", "out.parquet"):
        ok(*args, "-o", tmp_path / name)
        assert "pass --overwrite" in fails(*args, "-o", tmp_path / name)
        ok(*args[:-1], "0.25", "-o", tmp_path / name, "--overwrite")
        assert len(written(tmp_path / name)) == 24
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    assert "did not write" in fails(*args, "-o", tmp_path / "mine", "--overwrite")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out", "out.parquet"]


def test_a_dataset_may_replace_itself_but_not_what_holds_it(scored, tmp_path):
    ds = datasets.load_from_disk(scored / "scored")
    datasets.DatasetDict({"train": ds}).save_to_disk(tmp_path / "all")
    args = ("--by", "ssl_proto", "--keep", "0.5", "--overwrite")
    assert "lies inside" in fails("filter", tmp_path / "all" / "train", *args, "-o", tmp_path / "all")
    ok("filter", tmp_path / "all", *args, "-o", tmp_path / "all")
    assert len(written(tmp_path / "all")) == 48


def test_places_that_cannot_be_written(scored, tmp_path, monkeypatch):
    args = ("filter", scored / "scored", "--by", "ssl_proto", "--keep", "0.5")
    (tmp_path / "file").write_text("")
    assert "is not a folder" in fails(*args, "-o", tmp_path / "file" / "out")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may do anything
    assert "no permission" in fails(*args, "-o", tmp_path / "out")
    assert "files are written as" in fails(*args, "-o", tmp_path / "out.json")


def test_a_report_takes_the_place_of_no_data(scored, tmp_path):
    args = ("filter", scored / "scored", "--by", "ssl_proto", "--keep", "0.5", "--overwrite")
    (tmp_path / "other.parquet").write_text("data")
    for name in ("kept.jsonl", "other.parquet"):
        said = fails(*args, "-o", tmp_path / "kept.jsonl", "--report", tmp_path / name)
        assert f"the report {tmp_path / name} is a page" in said
    assert [p.name for p in tmp_path.iterdir()] == ["other.parquet"]
    assert (tmp_path / "other.parquet").read_text() == "data"


@pytest.mark.parametrize("name", ["out.JSONL", "out.csv.gz", "out.parquet.zst"])
def test_a_file_that_cannot_be_written_is_no_folder(name, scored, tmp_path):
    args = ("filter", scored / "scored", "--by", "ssl_proto", "--keep", "0.5")
    assert "files are written as" in fails(*args, "-o", tmp_path / name)
    ok(*args, "-o", tmp_path / "keep.0.5")
    assert [p.name for p in tmp_path.iterdir()] == ["keep.0.5"]


def test_a_full_disk_is_named(scored, tmp_path, monkeypatch):
    def full(self, path, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("to_parquet", "to_json", "save_to_disk"):
        monkeypatch.setattr(datasets.Dataset, name, full)
    args = ("filter", scored / "scored", "--by", "ssl_proto", "--keep", "0.5")
    for name in ("a.parquet", "a.jsonl", "a"):
        said = fails(*args, "-o", tmp_path / name)
        assert f"{tmp_path} cannot be written: no space left; free some" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOTDIR])
def test_a_cache_that_cannot_be_written_is_not_the_files_fault(number, plain, tmp_path, monkeypatch):
    plain.to_parquet(str(tmp_path / "data.parquet"))
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    where = None if number == errno.ENOSPC else str(cache / "parquet")

    def broken(*args, **options):
        raise OSError(number, os.strerror(number), where)

    monkeypatch.setattr(datasets, "load_dataset", broken)
    said = fails("filter", tmp_path / "data.parquet", "--by", "label", "--rows", "1", "-o", tmp_path / "x")
    assert f"the cache of datasets, {cache}, cannot be written" in said and "set HF_DATASETS_CACHE" in said


def test_files_of_another_kind_are_not_left_out_in_silence(tmp_path):
    (tmp_path / "in").mkdir()
    for name, text in (("a.jsonl", '{"s": 1}\n'), ("b.jsonl", '{"s": 2}\n'), ("c.csv", "s\n3\n")):
        (tmp_path / "in" / name).write_text(text)
    args = ("filter", tmp_path / "in", "--by", "s", "--keep", "1.0", "-o")
    assert "of which those of json are read; left out: c.csv" in ok(*args, tmp_path / "one").err
    (tmp_path / "in" / "c.csv").unlink()
    assert "left out" not in ok(*args, tmp_path / "two").err


def test_help_that_cannot_be_written_is_an_error_in_one_line():
    with open("/dev/full", "w") as full:
        done = python("from hf_prune.cli.main import main; main()", "--help", stdout=full, status=1)
    assert done.stderr == "hf-prune: error: No space left on device\n"


def test_formats_that_cannot_hold_a_column(scored, tmp_path):
    args = ("filter", scored / "scored", "--by", "ssl_proto", "--keep", "0.5")
    assert "'embedding' (List) holds lists" in fails(*args, "-o", tmp_path / "out.csv")
    ok(*args, "-o", tmp_path / "out.jsonl")
    pictures = datasets.Dataset.from_dict({"image": [{"bytes": b"x", "path": None}], "x": [1]})
    pictures = pictures.cast_column("image", datasets.Image(decode=False))
    pictures.save_to_disk(tmp_path / "pictures")
    assert "holds bytes" in fails(
        "filter", tmp_path / "pictures", "--by", "x", "--rows", "1", "-o", tmp_path / "x.jsonl"
    )


def test_an_interruption_leaves_nothing(scored, tmp_path, monkeypatch):
    def interrupted(self, path, **options):
        Path(path).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets.Dataset, "to_parquet", interrupted)
    result = hp(
        "filter", scored / "scored", "--by", "ssl_proto", "--keep", "0.5", "-o", tmp_path / "new" / "out.parquet"
    )
    assert result.code == 130 and "interrupted" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_second_interruption_at_the_exit_shows_no_traceback():
    code = """
import atexit, os, signal
from hf_prune.cli import doctor, main as cli
atexit.register(os.kill, os.getpid(), signal.SIGINT)
def interrupted(*args):
    raise KeyboardInterrupt
doctor.main = interrupted
cli.main()
"""
    done = python(code, "doctor", status=-signal.SIGINT)
    assert done.stderr == "hf-prune: interrupted; nothing was half-written\n"


def test_a_swap_that_fails_puts_the_old_folder_back(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(FileNotFoundError), io.replacing(tmp_path / "out"):
        pass  # nothing was written
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "old"]


# -- score and embed ---------------------------------------------------------------


def test_score_adds_columns_and_says_what_it_costs(scored):
    ds = datasets.load_from_disk(scored / "scored")
    assert ds.column_names[-3:] == ["ssl_proto", "supervised_proto", "random_5"]
    result = ok("score", scored / "data", "--scorer", "ssl_proto", "--set", "k=4", "-o", scored / "again")
    told = re.search(r"ssl_proto: 96 rows, 1 shard, about (\S+) FLOP", result.err)
    scoring = 2 * 4 * 16 * 96  # the products; each round of the fit takes as many
    assert (
        float(told[1]) / scoring == pytest.approx(round(float(told[1]) / scoring), abs=0.01)
        and float(told[1]) > scoring
    )
    assert "█" in result.out and "96 rows written" in result.out
    columns = json.loads((scored / "again" / "score_columns.json").read_text())["columns"]
    assert columns[0]["name"] == "ssl_proto" and columns[0]["scorer"].endswith(":SSLPrototypes")


def test_a_saved_scorer_scores_as_before(scored, tmp_path):
    ok("score", scored / "data", "--scorer", scored / "saved" / "ssl_proto", "-o", tmp_path / "out")
    assert written(tmp_path / "out")["ssl_proto"][:] == written(scored / "scored")["ssl_proto"][:]
    args = ("score", scored / "data", "--scorer", "ssl_proto", "-o", tmp_path / "x", "--save-scorers", scored / "saved")
    assert "exists" in fails(*args)


def test_row_ids_are_made_where_they_are_needed(plain, tmp_path):
    plain.remove_columns("row_id").to_parquet(str(tmp_path / "d.parquet"))
    result = ok("score", tmp_path / "d.parquet", "--scorer", "random", "-o", tmp_path / "out")
    assert "adding the column row_id" in result.err
    assert written(tmp_path / "out").column_names[-2:] == ["row_id", "random_100"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--scorer", "ssl_prot"), "did you mean 'ssl_proto'?"),
        (("--scorer", "ssl_prot"), "`hf-prune scorers` lists them"),
        (("--scorer", "ssl_prot"), "no scorer 'ssl_prot'; did you mean"),
        (("--scorer", "ssl_proto", "--set", "foo=1"), "ssl_proto knows k, embedding"),
        (("--scorer", "ssl_proto", "--set", "k"), "is not key=value"),
        (("--scorer", "aum"), "aum needs log: give it with --set log=..."),
        (("--scorer", "aum", "--set", "log=no/such"), "holds no training log"),
        (("--scorer", "ssl_proto", "--k", "many"), "--k many is not int or null"),
        (("--scorer", "ssl_proto", "--set", "normalize=perhaps"), "is not true or false"),
        (("--scorer", "ssl_proto", "--set", "random.seed=1"), "which --scorer does not name"),
        (("--scorer", "ssl_proto", "--scorer", "ssl_proto"), "twice"),
        (("--scorer", "ssl_proto", "--k", "5000"), "--k 5000"),
        (("--scorer", "ssl_proto", "--metric", "taxi"), "--metric taxi"),
        (("--scorer", "ssl_proto", "--embedding", "vectors"), "'vectors'"),
        (("--scorer", "supervised_proto", "--label", "klass"), "'klass'"),
        (("--scorer", "ssl_proto", "--set", "name=text"), "has already"),
        (("--scorer", "json:dumps"), "is no Scorer class"),
        (("--scorer", "no_such_package.x:Y"), "cannot be imported"),
    ],
)
def test_bad_scorers_and_options(options, expected, scored, tmp_path):
    assert expected in fails("score", scored / "data", *options, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_new_scorer_is_one_line(scored, tmp_path, monkeypatch):
    entry = scorers.Entry(f"{__name__}:Nearest", datasets=("target",))
    monkeypatch.setitem(scorers.SCORERS, "nearest", entry)
    out = tmp_path / "out"
    ok("score", scored / "data", "--scorer", "nearest", "--set", f"target={scored / 'scored'}",
       "--set", "nearest.wide=True", "--set", "columns=a,b", "-o", out)  # fmt: skip
    assert set(written(out)["nearest"]) == {96.0}


def test_scores_out_of_a_log(scored, small_log, tmp_path):
    out = tmp_path / "out"
    ok("score", scored / "data", "--scorer", "aum", "--scorer", "forgetting", "--scorer", "el2n_log",
       "--set", f"log={small_log.folder}", "--set", "aum.epochs=[4, 5]",
       "--set", "tie_break=el2n", "-o", out)  # fmt: skip
    found = written(out)
    assert {"aum", "forgetting", "forgetting_first_learned", "el2n_train"} <= set(found.column_names)
    assert np.corrcoef(found["aum"][:], found["el2n_train"][:])[0, 1] < -0.5  # one is high where the other is low


def test_empty_data(plain, tmp_path):
    plain.select([]).to_parquet(str(tmp_path / "none.parquet"))
    assert "no rows" in fails("score", tmp_path / "none.parquet", "--scorer", "random", "-o", tmp_path / "out")


def tiny_network():
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Linear(3, 4)


def lengths(texts):
    import torch

    return torch.tensor([[len(t), t.count("t"), 1.0] for t in texts])


def test_embed(plain, tmp_path):
    plain.to_parquet(str(tmp_path / "d.parquet"))
    args = ("embed", tmp_path / "d.parquet", "--model", f"{__name__}:tiny_network", "-o", tmp_path / "out")
    result = ok(*args, "--column", "text", "--preprocess", f"{__name__}:lengths")
    assert "FLOP" in result.err and "float32[4] in every row" in result.out
    assert np.asarray(written(tmp_path / "out")["embedding"][:]).shape == (96, 4)
    assert "no column 'words'" in fails(*args, "--column", "words", "--overwrite")
    assert "preprocess" in fails(*args, "--overwrite")
    missing = fails("embed", tmp_path / "d.parquet", "--model", "./no/model", "-o", tmp_path / "x")
    assert "does not exist" in missing


# -- filter ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--by", "nope", "--keep", "0.5"), "no column 'nope'"),
        (("--by", "ssl_proto", "--keep", "50"), "--keep 50.0 is not a fraction"),
        (("--by", "ssl_proto"), "exactly one of keep, rows, threshold and budget"),
        (("--by", "ssl_proto", "--keep", "0.5", "--rows", "3"), "exactly one of"),
        (("--by", "ssl_proto", "--keep", "0.5", "--prefer", "best"), "--prefer best"),
        (("--by", "ssl_proto", "--budget", "9"), "needs cost"),
        (("--by", "ssl_proto", "--keep", "0.5", "--group-by", "nope"), "'nope'"),
        (("--by", "text", "--keep", "0.5"), "text"),
        (("--by", "ssl_proto", "--threshold", "9"), "no row of 'ssl_proto' passes"),
        (("--by", "ssl_proto", "--keep", "0.5", "--row-id", "nope"), "'nope'"),
    ],
)
def test_bad_rules(options, expected, scored, tmp_path):
    assert expected in fails("filter", scored / "scored", *options, "-o", tmp_path / "out")


def test_filter_is_filter_by_score(scored, tmp_path):
    from hf_prune import filter_by_score

    ds = datasets.load_from_disk(scored / "scored")
    options = {"keep": 0.4, "prefer": "low", "group_floor": 0.5, "seed": 3}
    flags = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    out = tmp_path / "out"
    result = ok("filter", scored / "scored", "--by", "ssl_proto", *flags, "--group-by", "label", "-o", out,
                "--report", tmp_path / "r.html")  # fmt: skip
    assert written(out)["row_id"][:] == filter_by_score(ds, "ssl_proto", group_by="label", **options)["row_id"][:]
    assert "ant: " in result.out and "of 24" in result.out
    assert "<svg" in (tmp_path / "r.html").read_text()
    assert json.loads((out / "score_columns.json").read_text())["columns"]


def test_warnings_are_one_line(scored, tmp_path):
    result = ok("filter", scored / "scored", "--by", "label", "--keep", "0.4", "-o", tmp_path / "out")
    found = [line for line in result.err.splitlines() if "warning" in line]
    assert len(found) == 1 and found[0].startswith("hf-prune: warning: 24 rows tie at the cut")


# -- push ---------------------------------------------------------------


@pytest.mark.filterwarnings(IGNORED)
def test_push(scored, monkeypatch, tmp_path):
    with HubServer() as hub:
        hub.patch(monkeypatch, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", hub.token)
        result = ok("push", scored / "scored", "user/scored")
        assert "user/scored" in result.out and "commit" in result.out
        files = hub.files("user/scored")
        assert any(name.startswith("scores/") for name in files)
        assert b"ssl_proto" in files["README.md"] and b"random_5" in files["README.md"]
        assert "nothing to change" in ok("push", scored / "scored", "user/scored", "--scorers", scored / "scores").out
        bare = datasets.load_from_disk(scored / "scored").remove_columns("row_id")
        bare.save_to_disk(tmp_path / "bare")
        assert "row_id" in fails("push", tmp_path / "bare", "user/other")
        assert "--what all" in fails("push", scored / "scored", "user/scored", "--what", "all")


def test_push_without_scores(plain, tmp_path):
    plain.save_to_disk(tmp_path / "d")
    assert "no score columns named" in fails("push", tmp_path / "d", "user/x")


# -- doctor ---------------------------------------------------------------

WHOLE = {"file": "faiss/__init__.py", "version": "1.15.1", "gpus": 0}


@pytest.mark.parametrize(
    ("wheels", "found", "state", "words"),
    [
        (["faiss-cpu"], WHOLE, "ok", "1.15.1"),
        (["faiss-cpu", "faiss-gpu"], WHOLE, "broken", "pip uninstall -y faiss-cpu faiss-gpu"),
        (["faiss-gpu"], {**WHOLE, "file": None}, "broken", "empty folder"),
        (["faiss-gpu"], {"error": "module 'faiss' has no attribute 'get_num_gpus'"}, "broken", "empty folder"),
        (["faiss-gpu"], {"error": "RuntimeError: nvidia-cuda-runtime-cu12 is missing"}, "broken", "hf_prune[gpu]"),
        (["faiss-gpu"], WHOLE, "note", "no GPU"),
        (["faiss-cpu"], {"error": "the process ended with -11"}, "broken", "-11"),
        ([], {"error": "No module named 'faiss'"}, "note", "hf_prune[cpu]"),
        ([], WHOLE, "ok", "not from a wheel"),
    ],
)
def test_doctor_on_faiss(wheels, found, state, words):
    (finding,) = doctor.check_faiss(wheels, found)
    assert finding.state == state and words in str(finding)


def test_doctor_on_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secretsecretsecret")
    lines = [str(f) for f in doctor.check_hub({"HF_HUB_OFFLINE": "1"})]
    assert "offline by HF_HUB_OFFLINE" in lines[0] and "a token is present" in lines[1]
    assert "secret" not in "".join(lines)
    (tmp_path / "file").write_text("")
    assert [f.state for f in doctor.check_caches({"HF_HOME": tmp_path / "file" / "x"})] == ["broken"]
    assert [f.state for f in doctor.check_caches({"HF_HOME": tmp_path / "new"})] == ["ok"]
    gpu = {"cuda": ["H100"], "mps": False, "cuda_build": "13.0", "threads": 2}
    assert doctor.check_devices(gpu)[0].text == "1 CUDA: H100"
    assert doctor.check_processes(gpu)[-1].remedy.startswith("accelerate launch")
    assert doctor.check_devices({**gpu, "cuda": []})[0].state == "note"
    assert doctor.check_devices({"error": "no"})[0].state == "broken"
    packages = {"torch": (None, ">=2.6", True), "numpy": ("2.0", ">=2.0", True), "faiss-cpu": (None, None, False)}
    assert [f.state for f in doctor.check_packages(packages)] == ["ok", "broken"]


def test_doctor_exit_codes(monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("x", "broken", "is broken", "mend it")])
    result = hp("doctor", "--json")
    assert result.code == 1 and json.loads(result.out)["healthy"] is False
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("x", "ok", "fine")])
    assert "nothing is broken" in ok("doctor").out


# -- errors, help ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(13, "Permission denied", "x.parquet"), "Permission denied: x.parquet"),
        (MemoryError("cannot allocate"), "--batch-size"),
        (ModuleNotFoundError("No module named 'sentence_transformers'", name="sentence_transformers"), "hf_prune[st]"),
        (ModuleNotFoundError("No module named 'x'", name="x.y"), "pip install x"),
        (ValueError("two\nlines"), "two lines"),
        (ZeroDivisionError("division"), "ZeroDivisionError: division (--debug shows where)"),
        (ValueError(), "ValueError"),
    ],
)
def test_errors_are_one_line(error, expected, scored, tmp_path, monkeypatch):
    def broken(*args, **more):
        raise error

    monkeypatch.setattr(io, "open_data", broken)
    args = ("filter", scored / "scored", "--by", "ssl_proto", "--keep", "0.5", "-o", tmp_path / "out")
    assert expected in fails(*args)
    for debug in (("--debug", *args), (*args, "--debug")):
        assert hp(*debug).exception is error


def test_usage_errors():
    for args in (("filter",), ("score", "x", "-o", "y"), ("nope",), ("score", "x", "--nope"), ("demo", "--seeds", "1")):
        result = hp(*args)
        assert result.code == 2 and "Traceback" not in result.err, args


def test_help_has_examples():
    for command in ("demo", "embed", "score", "filter", "push", "doctor"):
        assert f"hf-prune {command}" in ok(command, "--help").out.split("Examples:")[1]
    assert "ssl_proto" in ok("score", "--help").out
    assert ok("--version").out.startswith("hf-prune ")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from hf_prune.cli import main as cli\n"
        "try: cli.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'datasets', 'transformers', 'pyarrow', 'faiss', 'numpy'} & set(sys.modules)))"
    )
    assert python(code).stdout.endswith("[]\n")

    def seconds(*command):  # of the processor, which a busy machine does not stretch
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run([sys.executable, *command])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    bare = min(seconds("-c", "import typer") for _ in range(3))
    assert min(seconds("-m", "hf_prune.cli.main", "--help") for _ in range(3)) < 5 * bare


def test_a_process_fails_in_one_line(tmp_path):
    command = ("filter", str(tmp_path / "x.parquet"), "--by", "a", "--keep", "0.5", "-o", str(tmp_path / "out"))
    done = run([sys.executable, "-m", "hf_prune.cli.main", *command], status=1)
    assert done.stdout == ""
    assert done.stderr.startswith("hf-prune: error: ") and done.stderr.count("\n") == 1


# -- what is shown, trusted and escaped ---------------------------------------------------------------


EVIL = "na\x1b[31mme\u202e\u2066\n=x"


def test_what_a_terminal_obeys_is_shown(tmp_path):
    """Names of columns, classes and scorers; in results, in errors and in what was typed."""
    features = datasets.Features(
        {EVIL: datasets.Value("float32"), "label": datasets.ClassLabel(names=["a", "b\x1b]0;x\x07\nforged: 9 of 9"])}
    )
    ds = datasets.Dataset.from_dict({EVIL: [0.1, 0.2, 0.3, 0.4], "label": [0, 1, 0, 1]}, features=features)
    ds.save_to_disk(str(tmp_path / "data"))
    done = ok("filter", tmp_path / "data", "--by", EVIL, "--keep", "0.5", "--group-by", "label", "-o", tmp_path / "o")
    assert "na\\x1b[31mme\\u202e\\u2066\\n=x: 2 rows kept" in done.out
    assert "\n    b\\x1b]0;x\\x07\\nforged: 9 of 9: 1 (50%) of 2\n" in done.out
    assert not [c for c in done.out + done.err if c != "\n" and not c.isprintable()]
    for args in (
        ("filter", tmp_path / "data", "--by", "\x1b[2J", "--keep", "0.5", "-o", tmp_path / "p"),
        ("filter", tmp_path / "data", "--by", EVIL, "--keep", "0.5", "--\x1b[2J", "-o", tmp_path / "p"),
        ("filter", tmp_path / "data", "--by", EVIL, "--keep", "1", "--prefer", "\x1b[2J", "-o", tmp_path / "p"),
        ("\x1b[2J",),
        ("--\x1b[2J",),
    ):
        failed = hp(*args)
        assert failed.code in (1, 2) and "\\x1b[2J" in failed.err, args
        assert not [c for c in failed.err if c in "\x1b\u202e"]


def test_a_token_in_an_error_is_not_shown(tmp_path):
    token = "hf_jwt_" + "eyJhbGciOi" * 4
    failed = hp("filter", f"{tmp_path}/{token}.parquet", "--by", "a", "--keep", "0.5", "-o", tmp_path / "o")
    assert failed.code == 1 and "(token removed)" in failed.err and "eyJ" not in failed.err


def test_a_saved_scorer_that_names_code_needs_trust(tmp_path):
    from hf_prune import Embedder

    Embedder("embed_modules:linear", preprocess="embed_modules:letters").save(tmp_path / "saved")
    datasets.Dataset.from_dict({"text": ["a cat", "b"]}).to_parquet(str(tmp_path / "d.parquet"))
    args = ("score", tmp_path / "d.parquet", "--scorer", tmp_path / "saved", "-o", tmp_path / "o.parquet")
    message = "names code that would be run: embed_modules:letters, embed_modules:linear; .*--trust-code"
    assert re.search(message, fails(*args))
    assert not (tmp_path / "o.parquet").exists()
    ok(*args, "--trust-code")
    assert len(datasets.Dataset.from_parquet(str(tmp_path / "o.parquet"))["embedding"][0]) == 5
    pushed = ("push", tmp_path / "d.parquet", "user/x", "--scorers", tmp_path / "saved")
    assert re.search(message, fails(*pushed))


def test_safe_csv_escapes_formulas_and_nothing_else(tmp_path):
    texts = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\n=1", "＝1", "plain", " =1", "'=1", "", None, 'a"b,c\nd']
    table = {"=name": texts, "n": list(range(-6, 8)), "score": [i / 7 for i in range(14)]}
    datasets.Dataset.from_dict(table).save_to_disk(str(tmp_path / "data"))
    args = ("filter", tmp_path / "data", "--by", "score", "--keep", "1.0", "-o")
    ok(*args, tmp_path / "plain.csv")
    ok(*args, tmp_path / "safe.csv", "--safe-csv")
    options = {"keep_default_na": False, "dtype": str}
    plain, safe = (pd.read_csv(tmp_path / name, lineterminator="\n", **options) for name in ("plain.csv", "safe.csv"))
    assert list(plain) == ["=name", "n", "score"] and list(safe) == ["'=name", "n", "score"]
    assert (plain[["n", "score"]] == safe[["n", "score"]]).all().all()
    expected = ["'" + text if text[:1] in tuple("=+-@\t\r\n＝＋－＠") and text else text for text in plain["=name"]]
    assert safe["'=name"].tolist() == expected and expected[:8] == ["'" + text for text in texts[:8]]


def test_row_ids_do_not_depend_on_what_scorers_wrote(plain, tmp_path):
    """An embedding computed elsewhere differs in its last bits; the ids must not."""
    from hf_prune import with_row_id

    bare = plain.remove_columns("row_id")
    bare.to_parquet(str(tmp_path / "d.parquet"))
    network = ("--model", f"{__name__}:tiny_network", "--preprocess", f"{__name__}:lengths", "--column", "text")
    ok("embed", tmp_path / "d.parquet", *network, "-o", tmp_path / "embedded")
    ok("score", tmp_path / "embedded", "--scorer", "ssl_proto", "--k", 2, "--row-id", "-o", tmp_path / "scored")
    assert written(tmp_path / "scored")["row_id"][:] == with_row_id(bare)["row_id"][:]


def test_names_that_would_be_paths(plain, scored, tmp_path):
    plain.to_parquet(str(tmp_path / "data.parquet"))
    there = sorted(p.name for p in tmp_path.iterdir())
    for split in ("../x", "dev-clean", "all"):
        args = ("filter", tmp_path / "data.parquet", "--by", "label", "--keep", "0.5", "-o", tmp_path / "out")
        assert "cannot be read back by datasets" in fails(*args, "--split", split)
    args = ("score", scored / "data", "--scorer", "ssl_proto", "--set", "name=../up", "--set", "k=3", "-o")
    said = fails(*args, tmp_path / "out", "--save-scorers", tmp_path / "saved" / "here")
    assert "'../up' is no name of a file in" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == there
