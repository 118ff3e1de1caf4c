"""Labels that stand for none, and labels of every type, wherever classes are read."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch

import hf_prune as hp
from hf_prune.data.labels import check_classes, places_among

N = 24


def vectors(width: int = 3) -> np.ndarray:
    return np.random.default_rng(4).normal(size=(N, width)).astype(np.float32)


def labelled(labels, feature) -> datasets.Dataset:
    features = {"embedding": datasets.List(datasets.Value("float32")), "label": feature}
    return datasets.Dataset.from_dict({"embedding": list(vectors()), "label": labels}, datasets.Features(features))


FITS = {
    "supervised": hp.SupervisedPrototypes.fit,
    "moderate": hp.Moderate.fit,
    "quality": hp.QualityClassifier.fit,
    "head": lambda ds: hp.Probe(torch.nn.Linear(3, 2), column="embedding").fitted(ds),
}


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
@pytest.mark.parametrize("feature", [datasets.ClassLabel(num_classes=4), datasets.Value("int32")], ids=["names", "int"])
@pytest.mark.parametrize("none", [-1, -100])
def test_a_label_that_stands_for_none_is_not_learned(fit, feature, none):
    if none == -100 and isinstance(feature, datasets.ClassLabel):
        feature = datasets.Value("int64")  # such a name cannot be
    labels = [i % 4 for i in range(N)]
    labels[17] = none
    with pytest.raises(ValueError, match=f"'label': row 17 has class {none}, which stands for no label"):
        fit(labelled(labels, feature))
    assert fit(labelled([max(v, 0) for v in labels], feature)) is not None


@pytest.mark.parametrize("name", ["supervised", "moderate"])
def test_a_label_that_stands_for_none_is_not_scored(name):
    scorer = FITS[name](labelled([i % 4 for i in range(N)], datasets.ClassLabel(num_classes=4)))
    with pytest.raises(ValueError, match="row 1 of this batch has class -1"):
        scorer({"embedding": vectors()[:2], "label": [0, -1]})
    with pytest.raises(ValueError, match="null in row 0 of this batch"):
        scorer({"embedding": vectors()[:2], "label": [None, None]})
    with pytest.raises(TypeError, match="holds string, the classes that were fitted are numbers, as 0"):
        scorer({"embedding": vectors()[:2], "label": ["0", "1"]})


@pytest.mark.parametrize("name", ["supervised", "moderate"])
def test_names_may_be_long_strings(name):
    names = [f"kind {i % 3}" for i in range(N)]
    short, long = (labelled(names, datasets.Value(kind)) for kind in ("string", "large_string"))
    one, two = FITS[name](short), FITS[name](long)
    assert one == two and one.classes == ("kind 0", "kind 1", "kind 2")
    scores = [scorer(ds[:])[scorer.name] for scorer in (one, two) for ds in (short, long)]
    assert all((found == scores[0]).all() for found in scores)
    assert (long.map(one, batched=True)[one.name][:] == scores[0]).all()


def test_negative_levels_of_annotations_are_numbers_with_a_fraction():
    labels = [i % 5 - 2 for i in range(N)]
    with pytest.raises(ValueError, match="cast the column to float32"):
        hp.QualityClassifier.fit(labelled(labels, datasets.Value("int8")))
    assert hp.QualityClassifier.fit(labelled(labels, datasets.Value("float32"))).levels == (-2, 2)


def test_places_among_classes():
    assert places_among(pa.array([True, False]), (False, True), "y").tolist() == [1, 0]
    assert places_among(pa.array([3, 9], pa.uint64()), (9, 2**63, 3), "y").tolist() == [2, 0]
    assert places_among(pa.array([], pa.null()), ("a",), "y").tolist() == []
    with pytest.raises(ValueError, match="7 in row 1 of this batch is no class"):  # as a bool it would be one
        places_among(pa.array([0, 7]), (False, True), "y")
    for values in (pa.array([0.5]), pa.array([[1]]), pa.array([b"x"])):
        with pytest.raises(TypeError, match="not classes"):
            check_classes(values, "y")
