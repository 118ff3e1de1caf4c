"""The contract: values, guards against misuse, provenance, save and load."""

from __future__ import annotations

import copy
import json
import pickle
import re
import sys
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import datasets
import numpy as np
import pytest
from datasets.fingerprint import Hasher
from launching import python

import hf_prune as hp
from hf_prune import Scorer
from hf_prune.columns import read_sidecar, sidecar_text
from hf_prune.scorer import feature_of


@dataclass(frozen=True, eq=False)
class Length(Scorer):
    """Letters of a text."""

    text: str = "text"
    table: Any = None
    options: Any = ()
    name: str = "length"
    paper: ClassVar[str] = "none"

    def score(self, batch, rank):
        return [len(t) for t in batch.texts(self.text)]


@dataclass(frozen=True, eq=False)
class Nested(Scorer):
    inner: Any = None
    name: str = "nested"

    def score(self, batch, rank):
        return self.inner(batch.source)[self.inner.name] * 2


ROWS = {"text": ["a", "bbb", ""], "n": [1, 2, 3]}


def test_only_the_new_column_is_written_in_the_declared_type():
    out = Length()(ROWS)
    assert list(out) == ["length"]
    assert out["length"].dtype == np.float32
    assert out["length"].tolist() == [1, 3, 0]


def test_equal_parts_have_equal_pickles_however_they_were_made():
    table = np.arange(6.0).reshape(2, 3)
    one = "ab"
    a = Length(table=table, options=[one, one])
    b = Length(table=np.asfortranarray(table), options=("".join(["a", "b"]), "".join(["a", "b"])))
    assert Hasher.hash(a) == Hasher.hash(b) == Hasher.hash(pickle.loads(pickle.dumps(a)))
    assert a == b and hash(a) == hash(b) and a.digest == b.digest
    assert a != Length(table=table + 1, options=[one, one])
    assert pickle.dumps(Nested(Length(table=table))) == pickle.dumps(Nested(Length(table=table.copy())))


def test_a_field_that_has_no_stable_hash_is_refused():
    for value, what in ((lambda: 0, "function"), (open, "builtin"), (np.array(["x"], object), "array of object")):
        with pytest.raises(TypeError, match=f"Length.table .*{what}"):
            pickle.dumps(Length(table=value))
    with pytest.raises(TypeError, match="keys that are not strings"):
        pickle.dumps(Length(table={1: 2}))


def test_a_scorer_is_frozen():
    with pytest.raises(AttributeError):
        Length().text = "other"


def test_a_class_that_the_hash_cannot_see_is_refused():
    class NoDataclass(Length):
        level: int = 3

    @dataclass(frozen=True)
    class Compared(Length):
        pass

    @dataclass(frozen=True, eq=False)
    class Loose(Length):
        level = 3

    with pytest.raises(TypeError, match="not a dataclass.*frozen=True, eq=False"):
        NoDataclass()
    with pytest.raises(TypeError, match="compared field by field"):
        Compared()
    with pytest.raises(TypeError, match="Loose.level has no annotation"):
        Loose()


MISUSE = {
    "positions": (dict(batched=True, with_indices=True), "with_indices=True passes positions"),
    "rows": (dict(), "got one row; call it as ds.map"),
    "columns": (dict(batched=True, input_columns="text"), "without input_columns"),
}


@pytest.mark.parametrize("how", MISUSE)
def test_misuse_of_map_is_caught(how):
    options, message = MISUSE[how]
    with pytest.raises(TypeError, match=message):
        datasets.Dataset.from_dict(ROWS).map(Length(), **options)


def test_a_missing_column_lists_those_that_are_there():
    with pytest.raises(KeyError, match=r"Length reads column 'words', the rows have \['n', 'text'\]") as caught:
        Length("words")(ROWS)
    assert not str(caught.value).startswith('"')


def test_batches_of_unequal_columns_and_other_types_are_refused():
    with pytest.raises(ValueError, match="unequal lengths"):
        Length()({"text": ["a"], "n": [1, 2]})
    with pytest.raises(TypeError, match="row 1 of this batch is NoneType, not text"):
        Length()({"text": ["a", None]})
    with pytest.raises(TypeError, match="not text"):
        Length("n")(ROWS)


def test_what_score_returns_is_checked():
    @dataclass(frozen=True, eq=False)
    class Two(Length):
        def score(self, batch, rank):
            return np.zeros((batch.n, 2))

    @dataclass(frozen=True, eq=False)
    class Words(Length):
        def score(self, batch, rank):
            return ["x"] * batch.n

    @dataclass(frozen=True, eq=False)
    class Nothing(Scorer):
        name: str = "nothing"

    with pytest.raises(ValueError, match=r"shape \(3, 2\)"):
        Two()(ROWS)
    with pytest.raises(TypeError, match="give numbers"):
        Words()(ROWS)
    with pytest.raises(NotImplementedError, match="Nothing has no method score"):
        Nothing()(ROWS)


def test_other_declared_types():
    @dataclass(frozen=True, eq=False)
    class Many(Length):
        def columns(self):
            return {self.name: "float64", "spans": "int32[]", "vector": "float32[2]", "why": "string"}

        def score(self, batch, rank):
            n = batch.n
            return {self.name: [0.1] * n, "spans": [[1], [], [2, 3]], "vector": np.ones((n, 2)), "why": ["x"] * n}

    ds = datasets.Dataset.from_dict(ROWS)
    out = ds.map(Many(), batched=True, features=Many().features(ds))
    assert out.features["vector"] == feature_of("float32[2]") == datasets.List(datasets.Value("float32"), length=2)
    assert out["spans"][:] == [[1], [], [2, 3]] and out["why"][0] == "x" and out["length"][0] == 0.1


def test_features_name_every_column_and_refuse_a_clash():
    ds = datasets.Dataset.from_dict(ROWS)
    assert set(Length().features(ds)) == {"text", "n", "length"}
    assert set(Length().features(None)) == {"length"}
    with pytest.raises(ValueError, match=r"writes \['n'\], which the dataset has already"):
        Length(name="n").features(ds.features)


def test_a_cached_result_is_found_again_also_by_another_process(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        """
import sys, os
from dataclasses import dataclass
from pathlib import Path
import datasets
from hf_prune import Scorer, filter_by_score
@dataclass(frozen=True, eq=False)
class Counted(Scorer):
    name: str = "counted"
    def score(self, batch, rank):
        with open(os.environ["CALLS"], "a") as f: f.write("x")
        return range(batch.n)
ds = datasets.load_from_disk(os.environ["DATA"])
out = ds.map(Counted(), batched=True)
print(out["counted"][3])
small = filter_by_score(out, "counted", rows=5)
print(len(small.map(Counted(name="again"), batched=True)))
"""
    )
    data, calls = tmp_path / "data", tmp_path / "calls"
    datasets.Dataset.from_dict({"x": list(range(20))}).save_to_disk(str(data))
    variables = {"DATA": str(data), "CALLS": str(calls), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    for seed in ("0", "7"):
        done = python(script, env={**variables, "PYTHONHASHSEED": seed})
        assert done.stdout.split() == ["3.0", "5"]
        assert calls.read_text() == "xx"  # one call each for the whole and the pruned set, in the first process


def test_provenance_is_read_from_the_fields(tmp_path):
    scorer = Length(table=np.zeros((2, 3)), options=("a", 1))
    column = scorer.describe()
    assert column.scorer == "test_scorer:Length" and column.version == 1 and column.digest == scorer.digest
    assert column.params == {"text": "text", "table": "float64[2, 3]", "options": ["a", 1]}
    assert column.packages["numpy"] == np.__version__
    (tmp_path / "score_columns.json").write_text(sidecar_text([column], rows=3), encoding="utf-8")
    columns, facts = read_sidecar(tmp_path / "score_columns.json")
    assert columns["length"].to_json() == column.to_json() and facts == {"rows": 3}


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1}', "[]"])
def test_what_is_no_sidecar_is_refused(tmp_path, text):
    (tmp_path / "score_columns.json").write_text(text)
    with pytest.raises(ValueError, match="the sidecar .*score_columns.json is damaged"):
        read_sidecar(tmp_path / "score_columns.json")
    (tmp_path / "score_columns.json").write_text('{"format": 99, "columns": []}')
    with pytest.raises(ValueError, match="format 99.*upgrade"):
        read_sidecar(tmp_path / "score_columns.json")


def test_save_and_load(tmp_path, monkeypatch):
    scorer = Nested(Length(table=np.arange(3), options=("a", ("b", 2.5))))
    scorer.save(tmp_path)
    arrays, document = sorted(p.name for p in tmp_path.iterdir())
    assert document == "scorer.json" and re.fullmatch(r"arrays-[0-9a-f]{32}\.safetensors", arrays)
    assert Nested.load(tmp_path) == Scorer.load(tmp_path) == scorer
    with pytest.raises(ValueError, match="holds a Nested, not a Length"):
        Length.load(tmp_path)
    monkeypatch.setattr(Nested, "version", 2)
    with pytest.raises(ValueError, match="made by version 1 of its numbers, version 2"):
        Nested.load(tmp_path)


def test_a_damaged_or_foreign_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no saved scorer"):
        Scorer.load(tmp_path)
    Length().save(tmp_path)
    document = json.loads((tmp_path / "scorer.json").read_text())
    for name in ("os:path", "not_imported_anywhere:Thing", "hf_prune.models:home"):
        (tmp_path / "scorer.json").write_text(json.dumps(document | {"classes": [name]}))
        with pytest.raises(ValueError, match="not imported here"):
            Scorer.load(tmp_path)
    assert "not_imported_anywhere" not in sys.modules
    (tmp_path / "scorer.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        Scorer.load(tmp_path)


def test_a_class_inside_a_function_cannot_be_saved(tmp_path):
    @dataclass(frozen=True, eq=False)
    class Local(Length):
        pass

    with pytest.raises(ValueError, match="inside a function"):
        Local().save(tmp_path)


def test_replace_and_copies_are_equal():
    scorer = Length(table=np.arange(3))
    assert copy.copy(scorer) == scorer == copy.deepcopy(scorer)
    assert replace(scorer, text="b").text == "b"
    assert scorer != Nested()


def test_the_package_imports_no_torch():
    python("import sys, hf_prune; assert 'torch' not in sys.modules; sorted(hf_prune.__all__)")


def test_every_public_name_can_be_imported():
    for name in hp.__all__:
        assert getattr(hp, name) is not None
    assert set(hp.__all__) <= set(dir(hp))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hp.nothing


def test_empty_batches_pass():
    assert len(Length()({"text": []})["length"]) == 0


def test_large_state_travels_as_its_digest(tmp_path, monkeypatch):
    from hf_prune import store

    monkeypatch.setenv("HF_PRUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "LIMIT", 1000)
    table = np.arange(500, dtype=np.float32).reshape(50, 10)
    scorer = Length(table=table)
    assert scorer.digest and not (tmp_path / "home").exists()  # naming it writes nothing
    raw = pickle.dumps(scorer)
    assert len(raw) < 1000
    again = pickle.loads(raw)
    assert isinstance(again.table, np.memmap) and (again.table == table).all() and again == scorer
    assert Hasher.hash(again) == Hasher.hash(scorer) == Hasher.hash(Length(table=np.asfortranarray(table)))
    assert Hasher.hash(Length(table=table + 1)) != Hasher.hash(scorer)
    assert len(list((tmp_path / "home" / "arrays").iterdir())) == 2

    scorer.save(tmp_path / "saved")  # carries the numbers, for another machine
    monkeypatch.setenv("HF_PRUNE_HOME", str(tmp_path / "other"))
    assert (Length.load(tmp_path / "saved").table == table).all()
    with pytest.raises(FileNotFoundError, match="share HF_PRUNE_HOME between the machines"):
        pickle.loads(raw)


def test_large_state_on_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    from hf_prune import store

    monkeypatch.setenv("HF_PRUNE_HOME", str(tmp_path))
    monkeypatch.setattr(store, "LIMIT", 1000)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left.*set HF_PRUNE_HOME"):
        pickle.dumps(Length(table=np.zeros(500)))
    assert not list((tmp_path / "arrays").iterdir())


def test_a_large_read_only_array_is_named_once():
    from hf_prune.store import array_digest

    table = np.zeros(1000)
    table.setflags(write=False)
    assert array_digest(table) == array_digest(table.copy())
    assert array_digest(table) != array_digest(table.astype(np.float32)) != array_digest(table.reshape(10, 100))


def test_a_notebook_shows_settings_and_shapes_not_numbers(vectors):
    scorer = hp.SSLPrototypes.fit(vectors, k=4, seed=3)
    text = repr(scorer)
    assert text.startswith("SSLPrototypes(centroids=float32[4, ") and "metric" not in text and len(text) < 600
    assert repr(hp.Random(seed=7)) == "Random(seed=7, name='random_7')"
