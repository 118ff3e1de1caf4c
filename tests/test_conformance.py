"""Every scorer of the package, through the public conformance suite."""

from __future__ import annotations

import pytest

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
}


@pytest.fixture(scope="session")
def rows(vectors):
    return vectors.add_column("kind", [f"kind {i % 4}" for i in range(len(vectors))])


@pytest.mark.parametrize("name", SCORERS)
def test_conforms(name, rows):
    assert check_scorer(SCORERS[name](rows), rows) == list(CHECKS)
