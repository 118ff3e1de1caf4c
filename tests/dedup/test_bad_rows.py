"""Nulls: NaN by default, or an error that says where they are."""

import numpy as np
import pytest
from datasets import Dataset

import hf_prune as hp

FITS = pytest.mark.parametrize("fit", [hp.ExactDedup.fit, hp.MinHashDedup.fit, hp.SubstringDedup.fit])
GOOD = Dataset.from_dict({"text": ["a b", "c d", "a b"]})
BAD = Dataset.from_dict({"text": ["a b", None, "c d", None]})


@FITS
def test_nulls_score_nan_by_default(fit):
    scorer = fit(BAD)
    assert scorer.on_bad == "nan" and scorer.nan_rows
    assert np.isnan(scorer(BAD[:])[scorer.name]).tolist() == [False, True, False, True]


@FITS
def test_nulls_are_refused_where_they_are_read(fit):
    with pytest.raises(ValueError, match=r"Dedup.fit: 2 of 4 rows of 'text' are null; drop such rows first, or pass"):
        fit(BAD, on_bad="raise")
    for reference in (None, BAD):  # of a reference nulls do not count
        scorer = fit(GOOD, on_bad="raise", reference=reference)
        assert not scorer.nan_rows and np.isfinite(scorer(GOOD[:])[scorer.name]).all()
        with pytest.raises(ValueError, match="row 1 of this batch is null, and 1 more are bad; drop such rows first"):
            scorer(BAD[:])
    with pytest.raises(ValueError, match="on_bad='skip' is not known; choose one of 'raise', 'nan'"):
        fit(GOOD, on_bad="skip")


@FITS
def test_everything_but_the_dataset_is_named(fit):
    with pytest.raises(TypeError, match="positional argument"):
        fit(GOOD, "text")
