"""Saved scorers: what earlier versions wrote, damage, kills, and what a stranger may have put there."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from forging import forge
from killing import flipped, kills
from made_scorers import EXPECTED, V1, made, rows
from saving import prototypes

import hf_prune as hp
from hf_prune import Scorer
from hf_prune.values import find_class, former_digest, former_name, packed_digest


def saved_versions(item: Any, classes: list[str]) -> dict[str, int]:
    """Versions of the classes in a saved scorer."""
    found: dict[str, int] = {}
    if isinstance(item, dict):
        if "\0value" in item:
            found[classes[item["\0value"]]] = item["version"]
        for part in item.values():
            found |= saved_versions(part, classes)
    elif isinstance(item, list):
        for part in item:
            found |= saved_versions(part, classes)
    return found


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    return rows(tmp_path_factory.mktemp("rows"))


@pytest.mark.parametrize("name", EXPECTED)
def test_what_format_1_saved_loads_and_scores_the_same_or_says_why_not(name, ds, tmp_path):
    document = json.loads((V1 / name / "scorer.json").read_text(encoding="utf-8"))
    versions = saved_versions(document["value"], document["classes"])
    changed = [c for c, version in versions.items() if find_class(c).version != version]
    if changed:
        with pytest.raises(ValueError, match=r"was made by version 1 of its numbers, version \d is installed"):
            Scorer.load(V1 / name, trust_code=True)
        return
    scorer = Scorer.load(V1 / name, trust_code=True)
    assert former_digest(scorer) == EXPECTED[name]["digest"]
    scorer.save(tmp_path)
    again = Scorer.load(tmp_path, trust_code=True)
    assert again == scorer and again.digest == scorer.digest
    if "scores" in EXPECTED[name]:
        found = np.asarray(again(ds[:])[again.name], np.float64).reshape(-1)[:24]
        np.testing.assert_allclose(found, EXPECTED[name]["scores"], rtol=1e-6, atol=type(scorer).atol)


EARLIER = V1.parent / "saved_earlier"  # in format 2, with fields and a class that have other names now


@pytest.mark.parametrize("name", ["exact", "minhash", "minhash_reference", "substring", "substring_reference"])
def test_what_was_saved_under_other_names_loads_and_scores_the_same(name, ds, tmp_path):
    expected = json.loads((EARLIER / "expected.json").read_text(encoding="utf-8"))[name]
    text = (EARLIER / name / "scorer.json").read_text(encoding="utf-8")
    assert '"found"' in text or '"normalize"' in text
    scorer = Scorer.load(EARLIER / name)
    assert scorer.on_bad == "nan"
    np.testing.assert_allclose(scorer(ds[:])[scorer.name], expected, atol=1e-6)
    scorer.save(tmp_path)
    assert Scorer.load(tmp_path) == scorer


def test_a_class_is_found_by_its_former_name():
    assert find_class("hf_prune:Neighbours") is find_class("hf_prune.dedup.minhash:Neighbours")
    assert find_class("hf_prune:Neighbours") is find_class("hf_prune:Neighbors")
    assert former_name(find_class("hf_prune:Neighbors")) == "hf_prune.dedup.minhash:Neighbours"


# -- one step ---------------------------------------------------------------


@pytest.mark.parametrize(
    "there, how", [("nothing", "kill"), ("format 1", "kill"), ("format 2", "kill"), ("format 2", "full")]
)
def test_killed_at_any_step_one_whole_scorer_is_there(there, how, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    if there != "nothing":
        prototypes(1).save(start)
    if there == "format 1":
        document = json.loads((start / "scorer.json").read_text(encoding="utf-8"))
        (start / f"arrays-{document.pop('arrays')}.safetensors").rename(start / "arrays.safetensors")
        del document["digest"]
        (start / "scorer.json").write_text(json.dumps(document | {"format": 1}), encoding="utf-8")
    deaths = kills("saving:save_second", tmp_path / "runs", start=start, then="saving:look", how=how)
    assert len(deaths) > 10 and deaths[-1].after == ["2", "arrays-*.safetensors", "scorer.json"]
    seen = [death.after[0] for death in deaths]
    before = sum("holds no saved scorer" in who for who in seen) if there == "nothing" else seen.count("1")
    assert seen == seen[:before] + ["2"] * (len(seen) - before)
    assert [death.event for death in deaths].index("replace scorer.json") == before - 1  # one step decides
    for death in deaths:
        assert death.after[1:] == ["arrays-*.safetensors", "scorer.json"], str(death)


def test_a_flipped_bit_anywhere_gives_the_same_scorer_or_a_clear_error(ds, tmp_path):
    scorers = [
        prototypes(1),
        hp.Random(seed=7),
        hp.TextStatistics(),
        made("el2n_factory", ds),
        made("dsir", ds),
    ]
    same = 0
    for number, scorer in enumerate(scorers):
        folder = tmp_path / str(number)
        scorer.save(folder)
        for file in sorted(folder.iterdir()):
            data = file.read_bytes()
            for place, changed in flipped(data, 1500):
                file.write_bytes(changed)
                try:
                    found = Scorer.load(folder, trust_code=True)
                except ValueError as error:
                    assert re.search(r"saved scorer|format|not imported here", str(error)), (file.name, place, error)
                else:
                    assert found == scorer, (file.name, place)
                    same += 1
            for length in {0, 1, len(data) // 2, len(data) - 1}:
                file.write_bytes(data[:length])
                with pytest.raises(ValueError, match="saved scorer"):
                    Scorer.load(folder, trust_code=True)
            file.unlink()
            with pytest.raises(ValueError, match="missing"):
                Scorer.load(folder, trust_code=True)
            file.write_bytes(data)
        assert Scorer.load(folder, trust_code=True) == scorer
    assert same == 0


def test_what_save_would_not_load_it_does_not_write(tmp_path):
    with pytest.raises(ValueError, match="would not load again: SSLPrototypes.normalize is 1, not bool"):
        replace(prototypes(1), normalize=1).save(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_two_scorers_in_turn_leave_one(tmp_path):
    prototypes(1).save(tmp_path)
    hp.Random(seed=1).save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["scorer.json"] and Scorer.load(tmp_path) == hp.Random(seed=1)
    (tmp_path / "arrays.safetensors.txt").write_text("not ours")
    prototypes(1).save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


# -- what a stranger may write ---------------------------------------------------------------


def fields_of(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["value"]["fields"]
    return found


def set_field(**values: Any) -> Any:
    return lambda document: fields_of(document).update(values)


def array(**values: Any) -> Any:
    return lambda document: fields_of(document)["centroids"]["\0array"].update(values)


WRONG = {
    "a type": (set_field(metric=3), "SSLPrototypes.metric is 3, not one of 'cosine', 'euclidean', 'margin'"),
    "a choice": (set_field(metric="nearest"), "SSLPrototypes.metric is 'nearest', not one of 'cosine'"),
    "a truth value": (set_field(normalize="yes"), "SSLPrototypes.normalize is 'yes', not bool"),
    "a number for an array": (set_field(centroids=3), "SSLPrototypes.centroids is 3, not ndarray"),
    "an unknown field": (set_field(extra=1), "SSLPrototypes has no field 'extra'"),
    "a field less": (
        lambda d: fields_of(d).pop("centroids") is None or None,
        "the field 'centroids' of SSLPrototypes is missing",
    ),
    "a negative start": (array(start=-8), "begins at byte -8"),
    "a start inside": (array(start=8, shape=[3, 39]), "is not read once"),
    "bytes that nobody reads": (array(shape=[2, 40]), "960 bytes of arrays, 640 of them read"),
    "a huge shape": (array(shape=[2**40, 2**40]), "is longer than the 960 there are"),
    "another shape": (array(shape=[120]), r"centroids of shape \(120,\)"),
    "a strange dtype": (array(array="O"), "KeyError: 'O'"),
    "a dtype with a shape": (array(array="(2,3)f4"), "KeyError"),
    "an array of the store": (
        lambda d: fields_of(d).update(centroids={"\0stored": "../../secret"}),
        "said to be in the store of another machine",
    ),
    "a value of no class": (lambda d: d["value"].update({"\0value": 9}), "value 9 is of no class"),
    "a value inside": (
        set_field(name={"\0value": 0, "version": hp.SSLPrototypes.version, "fields": {}}),
        "the field 'centroids' of SSLPrototypes",
    ),
    "another key": (lambda d: d.update(more=1), "'more'"),
    "no number of a format": (lambda d: d.update(format="2"), "format '2'"),
    "format 0": (lambda d: d.update(format=0), "format 0"),
    "true as a format": (lambda d: d.update(format=True), "format True"),
    "no classes": (lambda d: d.update(classes=[]), "names no classes"),
    "arrays elsewhere": (lambda d: d.update(arrays="../../../etc/passwd"), "is no digest of 32"),
    "arrays that are not there": (lambda d: d.update(arrays="0" * 32), "is missing"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_forged_scorer_is_refused_with_its_reason(what, tmp_path):
    change, message = WRONG[what]
    hp.SSLPrototypes(np.ones((3, 40))).save(tmp_path)
    forge(tmp_path, change)
    with pytest.raises(ValueError, match="the saved scorer .* is damaged .*save it again") as caught:
        Scorer.load(tmp_path)
    assert re.search(message, str(caught.value)), caught.value


def test_other_versions_say_so(tmp_path, monkeypatch):
    prototypes(1).save(tmp_path)
    forge(tmp_path, lambda d: d.update(format=3))
    with pytest.raises(ValueError, match="has format 3, this version reads up to 2; upgrade hf_prune"):
        Scorer.load(tmp_path)
    prototypes(1).save(tmp_path)
    monkeypatch.setattr(hp.SSLPrototypes, "version", 9)
    with pytest.raises(
        ValueError, match=r"^SSLPrototypes was made by version \d of its numbers, version 9 is installed"
    ):
        Scorer.load(tmp_path)


def test_fields_that_came_later_have_their_defaults(tmp_path):
    scorer = hp.SSLPrototypes(np.ones((2, 3)))
    scorer.save(tmp_path)
    forge(tmp_path, lambda d: fields_of(d).pop("cluster") or None)
    assert Scorer.load(tmp_path) == scorer


def test_a_key_that_stands_for_something_else_is_not_saved():
    with pytest.raises(TypeError, match=r"fitted_on has the key '\\x00stored'"):
        hp.SSLPrototypes(np.ones((2, 3)), fitted_on={"\0stored": "0" * 32}).digest  # noqa: B018


def test_kernels_do_not_read_where_a_file_says(ds, tmp_path):
    """Compiled code looks up places without a look at their bounds."""
    for name, holder, cls, field in (
        ("substring_reference", "passages", "Passages", "places"),
        ("substring", "passages", "Spans", "offsets"),
        ("minhash", "neighbors", "Neighbors", "leader"),
        ("minhash_reference", "neighbors", "Reference", "ends"),
    ):
        scorer = made(name, ds)
        found = getattr(scorer, holder)
        wrong = np.array(getattr(found, field))
        wrong[-1] = 10**6
        forged = object.__new__(type(found))
        for part in dataclass_fields(found):
            object.__setattr__(forged, part.name, wrong if part.name == field else getattr(found, part.name))
        with pytest.raises(ValueError, match=rf"would not load again: {cls}.{field}: 1\d{{6}} is no place"):
            replace_unchecked(scorer, **{holder: forged}).save(tmp_path / name)


def replace_unchecked(value: Any, **changes: Any) -> Any:
    made = object.__new__(type(value))
    for part in dataclass_fields(value):
        object.__setattr__(made, part.name, changes.get(part.name, getattr(value, part.name)))
    return made


# -- no code without trust ---------------------------------------------------------------


def model_fields(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = fields_of(document)["model"]["fields"]
    return found


@pytest.fixture
def hub_embedder(tmp_path):
    folder = tmp_path / "saved"
    made("embedder_hub").save(folder)
    return folder


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"source": "os:getcwd", "revision": "0" * 64, "preprocess": "os:abort"}, "os:abort, os:getcwd"),
        ({"preprocess": "os:abort"}, "os:abort"),
        ({"trust_remote_code": True}, "the code that comes with sentence-transformers/all-MiniLM-L6-v2"),
        (
            {"source": "live", "revision": "a" * 64, "preprocess": "os:abort"},
            "os:abort, the pickled network aaaaaaaaaaaa",
        ),
    ],
)
def test_code_needs_trust_and_is_listed(fields, said, hub_embedder):
    forge(hub_embedder, lambda d: model_fields(d).update(fields))
    with pytest.raises(
        ValueError, match=f"names code that would be run: {said}; if you trust who wrote it, pass trust_code=True"
    ):
        Scorer.load(hub_embedder)
    assert Scorer.load(hub_embedder, trust_code=True).name == "embedding"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"source": "live", "revision": "/elsewhere/place", "preprocess": "a:b"}, "is no digest of 64"),
        ({"source": "live", "revision": "../../../elsewhere/place", "preprocess": "a:b"}, "is no digest of 64"),
        ({"source": "folder", "revision": "../x"}, "is no digest of 64"),
        ({"revision": "main"}, "is no digest of 40"),
        ({"revision": None}, "is no digest of 40"),
        ({"source": "../../etc"}, "is no name on the Hub"),
        ({"source": "a b:c", "revision": "0" * 64}, "is no package.module:factory"),
        ({"preprocess": "no function"}, "is no package.module:function"),
        ({"preprocess": ["a:b"]}, "not str | None"),
        ({"trust_remote_code": 1}, "not bool"),
        ({"dtype": "int8"}, "dtype='int8' is not known"),
        ({"dtype": "load"}, "dtype='load' is not known"),
    ],
)
def test_a_model_from_a_file_is_one_that_can_be(fields, message, hub_embedder):
    forge(hub_embedder, lambda d: model_fields(d).update(fields))
    for trust_code in (False, True):
        with pytest.raises(ValueError, match=f"is damaged .*{message}"):
            Scorer.load(hub_embedder, trust_code=trust_code)


def test_a_live_network_comes_from_this_store_only_and_whole(tmp_path, monkeypatch):
    """The path of a pickle is made from a checked digest; a pickle that was changed is not opened."""
    import torch

    from hf_prune import models

    monkeypatch.setenv("HF_PRUNE_HOME", str(tmp_path / "home"))
    scorer = hp.Embedder(torch.nn.Linear(26, 4), preprocess="embed_modules:letters")
    rows = {"text": ["a cat"]}
    expected = scorer(rows)["embedding"]
    scorer.save(tmp_path / "saved")
    again = Scorer.load(tmp_path / "saved", trust_code=True)
    models.clear_cache()
    assert np.array_equal(again(rows)["embedding"], expected)
    (pickled,) = (tmp_path / "home").rglob("module.pkl")
    data = pickled.read_bytes()
    for place, changed in flipped(data, 40):
        models.clear_cache()
        pickled.write_bytes(changed)
        os.utime(pickled, ns=(place, place))
        with pytest.raises(ValueError, match="the stored network .* is damaged .*its file has changed"):
            again(rows)
    assert np.array_equal(
        hp.Embedder(scorer_network(data), preprocess="embed_modules:letters")(rows)["embedding"], expected
    )
    assert np.array_equal(again(rows)["embedding"], expected)  # written anew
    (pickled.parent / "module.sha256").unlink()
    other = hp.Embedder(torch.nn.Linear(26, 4), preprocess="embed_modules:letters").model.folder() / "module.pkl"
    pickled.write_bytes(other.read_bytes())
    models.clear_cache()
    with pytest.raises(ValueError, match="another network than its name says"):
        again(rows)


def scorer_network(data: bytes) -> Any:
    import dill

    return dill.loads(data)


def test_a_folder_that_changed_is_not_used_for_the_old_one(tiny_bert_folder, tmp_path):
    from hf_prune import models

    shutil.copytree(tiny_bert_folder, tmp_path / "model")
    model = hp.Model(str(tmp_path / "model"))
    assert model.folder() == tmp_path / "model"
    models.clear_cache()
    os.utime(tmp_path / "model" / "config.json", ns=(1, 1))
    assert model.folder() == tmp_path / "model"  # touched, not changed
    models.clear_cache()
    with open(tmp_path / "model" / "config.json", "a") as file:
        file.write(" ")
    with pytest.raises(ValueError, match="has changed since the scorer was made"):
        model.folder()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"path": 3, "name": "x"}', "{}", "\udcff", '{"path": "/tmp"}', "[" * 10_000]
)
def test_a_damaged_note_of_a_place_is_named_and_mended(text, tiny_bert_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_PRUNE_HOME", str(tmp_path))
    model = hp.Model(str(tiny_bert_folder))
    note = tmp_path / "models" / str(model.revision) / "location.json"
    note.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="the note of a model's place .*delete it"):
        model.folder()
    assert hp.Model(str(tiny_bert_folder)).folder() == tiny_bert_folder.resolve()


# -- arrays in the store ---------------------------------------------------------------


def test_an_array_of_the_store_is_what_its_digest_says(tmp_path, monkeypatch):
    from hf_prune import store

    monkeypatch.setenv("HF_PRUNE_HOME", str(tmp_path))
    array = np.arange(200.0).reshape(20, 10)
    digest = store.put_array(array)
    (path,) = (tmp_path / "arrays").iterdir()
    assert path.name == f"{digest}.npy" and np.array_equal(store.get_array(digest), array)
    data = path.read_bytes()
    for place, changed in flipped(data, 300):
        path.write_bytes(changed)
        os.utime(path, ns=(place, place))  # a file with other times is looked at again
        try:
            found = store.get_array(digest)
        except ValueError as error:
            assert re.search(r"the fitted state .* is damaged \(.*\); delete it", str(error))
        else:
            assert place < 128 and np.array_equal(found, array)  # padding of the header
    for wrong in ("../secret", "0" * 31, digest.upper() if digest.upper() != digest else "G" * 32, None, 3):
        with pytest.raises(ValueError, match="is no digest of 32"):
            store.get_array(wrong)
    with pytest.raises(FileNotFoundError, match="is not in"):
        store.get_array("0" * 32)


def test_the_store_is_read_through_once(tmp_path, monkeypatch):
    from hf_prune import store

    monkeypatch.setenv("HF_PRUNE_HOME", str(tmp_path))
    digest = store.put_array(np.arange(100))
    read = []
    real = store.array_digest
    monkeypatch.setattr(store, "array_digest", lambda a: read.append(a) or real(a))
    arrays = [store.get_array(digest) for _ in range(3)]
    assert len(read) == 1 and all(real(a) == digest for a in arrays)


@pytest.mark.slow
def test_the_store_survives_a_kill_at_any_step(tmp_path):
    deaths = kills(
        "storing:store_array",
        tmp_path,
        then="storing:what_the_store_gives",
        environment={"HF_PRUNE_HOME": "{folder}/home"},
    )
    assert len(deaths) > 25 and sum(death.died for death in deaths) > 25
    for death in deaths:
        assert death.after == [True] * 4, str(death)


# -- fields that are no more --------------------------------------------------


def test_areas_whose_sign_was_turned_do_not_load(tmp_path):
    """High means keep in every column since: the numbers of mode="prune" would be read upside down."""
    shutil.copytree(V1 / "aum", tmp_path / "aum")
    file = tmp_path / "aum" / "scorer.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["value"]["fields"]["mode"] == "noise" and Scorer.load(tmp_path / "aum").name == "aum"
    document["value"]["fields"]["mode"] = "prune"
    file.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match=r"mode='prune', which is no more: make AUM anew, .* by prefer='low'"):
        Scorer.load(tmp_path / "aum")


def test_a_field_that_was_not_read_is_let_go(tmp_path, small_log):
    scorer = hp.Uncertainty.from_log(small_log, statistic="margin")
    scorer.save(tmp_path)
    file = tmp_path / "scorer.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    then = document["value"]["fields"]
    then |= {"label": "fine_label", "kind": then.pop("modality"), "measure": then.pop("statistic")}
    arrays = next(tmp_path.glob("arrays-*.safetensors"))
    arrays.rename(tmp_path / "arrays.safetensors")
    kept = {name: part for name, part in document.items() if name not in ("digest", "arrays")}
    file.write_text(json.dumps(kept | {"format": 1}), encoding="utf-8")
    again = Scorer.load(tmp_path)
    assert again == scorer and again.statistic == "margin" and not hasattr(again, "label")


def test_a_probe_of_version_0_1_0_loads(tmp_path, monkeypatch):
    """Its field `modality` was called `kind`, and there was no `truncate`."""
    import torch

    monkeypatch.setenv("HF_PRUNE_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    scorer = hp.Task2VecComplexity(hp.Probe(net, modality="vector", head="keep"))
    scorer.save(tmp_path / "s")

    def then(document: dict[str, Any]) -> None:
        probe = fields_of(document)["probe"]["fields"]
        probe["kind"] = probe.pop("modality")
        del probe["truncate"]

    forge(tmp_path / "s", then)
    assert Scorer.load(tmp_path / "s", trust_code=True) == scorer
    document = json.loads((tmp_path / "s" / "scorer.json").read_text(encoding="utf-8"))
    homes = ("fisher.scorers:Task2VecComplexity", "fisher.probe:Probe", "models:Model")
    by_name = {home.partition(":")[2]: f"hf_prune.{home}" for home in homes}
    classes = [by_name[name.partition(":")[2]] for name in document["classes"]]
    assert former_digest(scorer) == packed_digest(classes, json.dumps(document["value"], sort_keys=True), b"")
