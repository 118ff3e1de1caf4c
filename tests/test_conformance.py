"""Every scorer of the package, through the public conformance suite."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
from PIL import Image as Picture

import hf_prune as hp
from hf_prune.testing import CHECKS, check_scorer

SCORERS = {
    "Random": lambda ds: hp.Random(seed=100),
    "SSLPrototypes": lambda ds: hp.SSLPrototypes.fit(ds, k=4, cluster=True),
    "SSLPrototypes-torch": lambda ds: hp.SSLPrototypes.fit(ds, k=4, engine="torch"),
    "SSLPrototypes-euclidean": lambda ds: hp.SSLPrototypes.fit(
        ds, k=4, metric="euclidean", spherical=False, normalize=False
    ),
    "SSLPrototypes-margin": lambda ds: hp.SSLPrototypes.fit(ds, k=4, metric="margin"),
    "SupervisedPrototypes": lambda ds: hp.SupervisedPrototypes.fit(ds, margin=True),
    "SupervisedPrototypes-euclidean": lambda ds: hp.SupervisedPrototypes.fit(
        ds, metric="euclidean", normalize_before_mean=False
    ),
    "SupervisedPrototypes-strings": lambda ds: hp.SupervisedPrototypes.fit(ds, label="kind", metric="margin"),
    "ExactDedup": lambda ds: hp.ExactDedup.fit(ds, normalize=("case", "space")),
    "ExactDedup-reference": lambda ds: hp.ExactDedup.fit(ds, reference=ds.select(range(20))),
    "MinHashDedup": lambda ds: hp.MinHashDedup.fit(ds, ngram=2, threshold=0.5, max_cluster=3),
    "MinHashDedup-estimated": lambda ds: hp.MinHashDedup.fit(ds, ngram=2, threshold=0.5, verify=False),
    "MinHashDedup-reference": lambda ds: hp.MinHashDedup.fit(ds, ngram=2, reference=ds.select(range(20))),
    "SubstringDedup": lambda ds: hp.SubstringDedup.fit(ds, min_tokens=4, spans=True),
    "SubstringDedup-reference": lambda ds: hp.SubstringDedup.fit(ds, min_tokens=3, reference=ds.select(range(20))),
}


@pytest.fixture(scope="session")
def rows(vectors):
    return vectors.add_column("kind", [f"kind {i % 4}" for i in range(len(vectors))])


@pytest.mark.parametrize("name", SCORERS)
def test_conforms(name, rows):
    assert check_scorer(SCORERS[name](rows), rows) == list(CHECKS)


def test_embedder_of_texts_conforms(tiny_bert_folder, vectors):
    texts = [f"the {animal} sat on {'mat ' * (i % 4 + 1)}" for i, animal in enumerate("cat dog card bank".split() * 3)]
    ds = vectors.select(range(12)).remove_columns("text").add_column("text", texts)
    ds = ds.remove_columns("embedding")
    assert check_scorer(hp.Embedder(tiny_bert_folder, column="text"), ds) == list(CHECKS)


def test_embedder_of_pictures_conforms(tiny_resnet_folder):
    rng = np.random.default_rng(0)
    pictures = [Picture.fromarray(rng.integers(0, 256, (12 + i, 16, 3), np.uint8)) for i in range(9)]
    ds = datasets.Dataset.from_dict({"image": pictures}, datasets.Features({"image": datasets.Image()}))
    assert check_scorer(hp.Embedder(tiny_resnet_folder, column="image"), ds) == list(CHECKS)
