"""Names without places: a value is the same wherever its file is."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher
from launching import python
from test_hostile import APART, BASES, made_up, value_classes

import hf_prune as hp
from hf_prune.homes import VALUES
from hf_prune.run.parts import Plan, find_plan
from hf_prune.values import class_name, former_digest, former_name

DIGESTS = Path(__file__).parent / "data" / "digests.json"
CLASSES = [c for c in value_classes() if c.__name__ not in BASES | APART]


def test_digests_do_not_change_when_files_move():
    """One value of each class; a digest that changes makes saved scorers and caches of the class worthless."""
    found = {class_name(c): [made_up(c).digest, Hasher.hash(made_up(c))] for c in CLASSES}
    assert set(found) == {f"hf_prune:{name}" for name in VALUES}
    if os.environ.get("HF_PRUNE_UPDATE_GOLDEN"):
        DIGESTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    known = json.loads(DIGESTS.read_text(encoding="utf-8"))
    changed = sorted(name for name in found | known if found.get(name) != known.get(name))
    assert not changed, f"{changed}: HF_PRUNE_UPDATE_GOLDEN=1 writes them anew, where a class has changed indeed"


def test_pickles_name_no_modules():
    for cls in CLASSES:
        data = pickle.dumps(made_up(cls))
        assert cls.__module__.encode() not in data and pickle.loads(data) == made_up(cls)
    assert hp.Random().describe().scorer == "hf_prune:Random"


def test_plug_ins_are_known_by_their_module(vectors):
    from test_testing import Good

    assert class_name(Good) == former_name(Good) == "test_testing:Good"
    assert pickle.loads(pickle.dumps(Good())) == Good() and former_digest(Good()) == Good().digest


def test_a_class_of_this_package_is_found_by_a_pickle_that_comes_first():
    code = "import pickle, sys; found = pickle.load(sys.stdin.buffer); print(type(found).__name__, found.digest)"
    scorer = hp.SSLPrototypes(np.eye(3, dtype=np.float32))
    assert python(code, input=pickle.dumps(scorer)).stdout.split() == ["SSLPrototypes", scorer.digest]


def test_a_score_folder_of_version_0_1_0_is_gone_on_with(tmp_path):
    ds = Dataset.from_dict({"row_id": [f"r{i}" for i in range(9)]})
    scorer = hp.Random(seed=3)
    hp.score(ds, scorer, output_dir=tmp_path, shard_rows=4)
    # what that version wrote: the module in the name, and in the digest
    former = former_name(type(scorer)), former_digest(scorer)
    assert former[0] == "hf_prune.scorers.random:Random" and former[1] != scorer.digest
    plan = Plan(9, 4, (former,), {"random_3": "float64"})
    (tmp_path / "manifest.json").write_text(plan.to_json({}))
    for part in tmp_path.glob("part-*.json"):
        facts = json.loads(part.read_text())
        facts = {k: v for k, v in facts.items() if k != "check"} | {"plan": plan.digest}
        part.write_text(json.dumps(facts))
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("part-*")}
    again = hp.score(ds, scorer, output_dir=tmp_path)
    assert again["random_3"][:] == ds.map(scorer, batched=True)["random_3"][:]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("part-*")} == stamps  # nothing was computed
    with pytest.raises(ValueError, match="scores of another run"):
        find_plan(tmp_path, Plan(9, 4, (("hf_prune:Random", "0" * 32),), {"random_3": "float64"}), exact=True)
