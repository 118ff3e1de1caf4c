"""What a function is given: datasets, streams, splits; one meaning and one kind of message everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict

import hf_prune as hp
from hf_prune.checks import check_dataset, chosen_splits

X = np.eye(6, dtype=np.float32)
COLUMNS = {"text": list("abcdef"), "row_id": list("uvwxyz"), "s": [3.0, 1, 4, 2, 6, 5], "embedding": list(X)}
DS = Dataset.from_dict({**COLUMNS, "label": [0, 1] * 3})
NET = torch.nn.Linear(6, 2)

WHOLE = {
    "with_row_id": lambda ds, path: hp.with_row_id(ds, row_id="other"),
    "with_threshold_samples": lambda ds, path: hp.with_threshold_samples(ds),
    "select_diverse": lambda ds, path: hp.select_diverse(ds, 1, score="s"),
    "train_with_log": lambda ds, path: hp.train_with_log(NET, ds, path / "log", epochs=1, inputs="s"),
    "load_scores": lambda ds, path: hp.load_scores(str(path), ds),
    "score": lambda ds, path: hp.score(ds, hp.Random(seed=1), splits=None),
    "d4": lambda ds, path: hp.d4(ds, k=1),
    "sample_by_targets": lambda ds, path: hp.sample_by_targets(ds, {"s": 1.0}, rows=2),
    "duplicate_pairs": lambda ds, path: hp.duplicate_pairs({"kept": ds, "dropped": ds}, cluster="label"),
    "push_scored": lambda ds, path: hp.save_scored(ds, path / "out", columns=["s"]),
    "a coefficient": lambda ds, path: hp.diversity_coefficient(ds, hp.Probe(NET, column="embedding", head="keep")),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_stream_where_a_dataset_is_needed(name, tmp_path):
    """The message names the function and the next step, and nothing is left behind."""
    with pytest.raises(TypeError, match=rf"{name} needs a Dataset.*IterableDataset"):
        WHOLE[name](DS.to_iterable_dataset(), tmp_path)
    if name == "load_scores":
        with pytest.raises(TypeError, match=f"{name} needs a Dataset.*a stream.*take"):
            WHOLE[name](IterableDatasetDict(train=DS.to_iterable_dataset()), tmp_path)
    if name not in ("score", "push_scored", "a coefficient"):
        with pytest.raises(TypeError, match=f"{name} needs a Dataset, not a list"):
            WHOLE[name]([1, 2], tmp_path)
    assert not list(tmp_path.iterdir())


FITS = {
    "SSLPrototypes.fit": lambda ds: hp.SSLPrototypes.fit(ds, k=2),
    "ExactDedup.fit": lambda ds: hp.ExactDedup.fit(ds),
    "chunk_texts": lambda ds: hp.chunk_texts(ds, words=1),
    "task2vec": lambda ds: hp.task2vec(ds, hp.Probe(NET, column="embedding", head="keep")),
    "with_threshold_samples": lambda ds: hp.with_threshold_samples(ds),
    "train_with_log": lambda ds: hp.train_with_log(NET, ds, "log", epochs=1, inputs="embedding"),
}


@pytest.mark.parametrize("name", FITS)
def test_splits_where_one_dataset_is_needed(name):
    with pytest.raises(TypeError, match=rf"{name} got a DatasetDict; choose a split, as in ds\['test'\]"):
        FITS[name](DatasetDict(test=DS))


SPLIT = {
    "score": lambda ds, splits: hp.score(ds, hp.Random(seed=1), splits=splits),
    "filter_by_score": lambda ds, splits: hp.filter_by_score(ds, "s", rows=2, splits=splits),
    "sample_by_score": lambda ds, splits: hp.sample_by_score(ds, "s", rows=2, splits=splits),
}


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize(
    "splits, meant",
    [
        (None, {"train"}),
        ("dev", {"dev"}),
        (["dev"], {"dev"}),
        (("train", "dev"), {"train", "dev"}),
        ("all", {"train", "dev"}),
        (["train", "train"], {"train"}),
    ],
)
def test_splits_mean_the_same_everywhere(name, splits, meant):
    ds = DatasetDict(train=DS, dev=DS)
    changed = {n for n, part in SPLIT[name](ds, splits).items() if part is not ds[n]}
    assert changed == meant == set(chosen_splits(ds, splits))


@pytest.mark.parametrize("name", [*SPLIT, "split_by_score"])
@pytest.mark.parametrize(
    "splits, error, message",
    [
        ("tset", KeyError, r"no split 'tset'; there are \['dev', 'test'\]: .*splits='all'"),
        (["dev", "x", "y"], ValueError, r"no split 'x', 'y'; there are \['dev', 'test'\]"),
        (None, KeyError, r"no split 'train'; there are \['dev', 'test'\]"),
        ([], ValueError, r"splits=\[\] names no split; there are \['dev', 'test'\]"),
        (3, TypeError, r"splits=3 is neither a name nor names; there are \['dev', 'test'\]"),
        ([3], TypeError, "neither a name nor names"),
    ],
)
def test_splits_that_are_not_there(name, splits, error, message):
    call = SPLIT.get(name, lambda ds, splits: hp.split_by_score(ds, "s", rows=2, splits=splits))
    with pytest.raises(error, match=message) as caught:
        call(DatasetDict(dev=DS, test=DS), splits)
    assert not str(caught.value).startswith("'")
    with pytest.raises(ValueError, match="splits='train' is for a DatasetDict, not a Dataset"):
        call(DS, "train")


def test_a_dataset_is_given_back():
    assert check_dataset(DS, "x") is DS
    stream = DS.to_iterable_dataset()
    assert check_dataset(stream, "x", streams=True) is stream


ONE_CLASS = {
    "SupervisedPrototypes": lambda ds, path: hp.SupervisedPrototypes.fit(ds),
    "Moderate": lambda ds, path: hp.Moderate.fit(ds),
    "QualityClassifier": lambda ds, path: hp.QualityClassifier.fit(ds),
    "EL2N": lambda ds, path: ds.map(hp.EL2N([NET], column="embedding"), batched=True),
    "GraNd": lambda ds, path: hp.GraNd([NET], column="embedding")(ds.with_format("numpy")[:]),
    "with_threshold_samples": lambda ds, path: hp.with_threshold_samples(ds),
    "train_with_log": lambda ds, path: hp.train_with_log(NET, ds, path / "log", epochs=1, inputs="embedding"),
    "a fitted head": lambda ds, path: hp.task2vec(ds, hp.Probe(NET, column="embedding")),
}


@pytest.mark.parametrize("name", ONE_CLASS)
@pytest.mark.parametrize("labels", [[[0.0, 1.0]] * 6, [[0, 1], [1]] * 3])
def test_several_labels_a_row(name, labels, tmp_path):
    """Multi-label data have no one class: told with the column, before anything is written."""
    with pytest.raises(TypeError, match=r"column 'label' (holds|has type).*(several|list.*, not numbers)"):
        ONE_CLASS[name](Dataset.from_dict({**COLUMNS, "label": labels}), tmp_path)
    assert not list(tmp_path.iterdir())
