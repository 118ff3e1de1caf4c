"""Models, logs and datasets whose classes have names: they are compared."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Value

import hf_prune as hp
from hf_prune.data.labels import check_class_names, model_classes

NAMES = ["bad", "good", "neither"]  # of the tiny classifier
TEXTS = ["the cat sat", "pay my card", "why not", "the dog ran"]


def data(names):
    ds = Dataset.from_dict({"text": TEXTS, "label": [0, 1, 2, 1], "row_id": list("abcd")})
    return ds.cast_column("label", ClassLabel(names=names))


@pytest.mark.parametrize("ours, theirs", [
    (["neg", "pos"], ["NEGATIVE", "POSITIVE"]), (["not_equivalent", "b"], ["Not Equivalent", "b"]),
    (["a", "b"], ["LABEL_0", "LABEL_1"]), (["0", "1"], ["cat", "dog"]), (["a", "b"], ["a", "b", "more"]),
    (["a", "b", "threshold sample"], ["a", "b"]), (None, ["a"]), (["a"], None),
])  # fmt: skip
def test_names_that_go_together(ours, theirs):
    check_class_names(ours, theirs, "label", "the model")


@pytest.mark.parametrize("ours, theirs", [(["a", "b"], ["b", "a"]), (["pos", "neg"], ["NEGATIVE", "POSITIVE"]),
                                          (["World", "Sports"], ["joy", "anger", "fear"])])  # fmt: skip
def test_names_that_do_not(ours, theirs):
    with pytest.raises(ValueError, match=rf"has the classes 0: '{ours[0]}'.* the model has 0: '{theirs[0]}'"):
        check_class_names(ours, theirs, "label", "the model")


def test_names_in_a_configuration():
    config = type("Config", (), {"id2label": {1: "b", 0: "a"}})
    assert model_classes(config) == ("a", "b") and model_classes(None) is None
    config.id2label = {3: "a", 0: "b"}
    assert model_classes(config) is None


@pytest.mark.parametrize("scorer", [hp.EL2N, hp.GraNd])
def test_a_model_of_other_classes(scorer, tiny_text_classifier_folder, tmp_path):
    made = scorer([tiny_text_classifier_folder])
    right, wrong = data(NAMES), data(["good", "bad", "neither"])
    scores = right.map(made, batched=True)[made.name][:]
    words = r"'label' has the classes 0: 'good', 1: 'bad', 2: 'neither'; .* has 0: 'bad', 1: 'good', 2: 'neither'"
    with pytest.raises(ValueError, match=words):
        wrong.map(made, batched=True)
    with pytest.raises(ValueError, match=words):
        hp.score(wrong, made)
    for same in (wrong.cast_column("label", Value("int64")), data(["LABEL_0", "LABEL_1", "LABEL_2"])):
        np.testing.assert_allclose(same.map(made, batched=True)[made.name][:], scores, atol=1e-6)
    np.testing.assert_allclose(hp.score(right, made)[made.name][:], scores, atol=1e-6)


def test_labels_are_nothing_to_uncertainty(tiny_text_classifier_folder):
    assert data(["x", "y", "z"]).map(hp.Uncertainty(tiny_text_classifier_folder), batched=True).num_rows == 4
    with pytest.raises(TypeError, match="label"):
        hp.Uncertainty(tiny_text_classifier_folder, label="label")


def test_logs_of_other_classes(tmp_path):
    z = np.random.default_rng(0).normal(size=(1, 4, 3))

    def log(name, names, **options):
        facts = {"class_names": names}
        return hp.TrainingLog.from_logits(tmp_path / name, list("abcd"), z, [0, 1, 2, 1], facts=facts, **options)

    one, same, other = log("one", NAMES), log("same", NAMES), log("other", NAMES[::-1])
    assert "class_names" not in hp.AUM.from_log([one, same]).fitted_on
    with pytest.raises(ValueError, match="has the classes 0: 'neither'.* log 0 has 0: 'bad'"):
        hp.AUM.from_log([one, other])
    with pytest.raises(ValueError, match="has the classes 0: 'neither'.* the log in .* has 0: 'bad'"):
        log("one", NAMES[::-1], resume=True)
