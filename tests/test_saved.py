"""Saved scorers: what earlier versions wrote, damage, kills, and what a stranger may have put there."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest

from hf_prune import Scorer

V1 = Path(__file__).parent / "data" / "saved_v1"  # as version 0.1.0 wrote them in format 1, with their scores
EXPECTED = json.loads((V1 / "expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", EXPECTED)
def test_what_format_1_saved_loads_and_scores_the_same(name, tmp_path):
    scorer = Scorer.load(V1 / name, trust_code=True)
    assert scorer.digest == EXPECTED[name]["digest"]
    scorer.save(tmp_path)
    again = Scorer.load(tmp_path, trust_code=True)
    assert again == scorer and again.digest == EXPECTED[name]["digest"]
    if "scores" in EXPECTED[name]:
        rows = datasets.Dataset.from_parquet(str(V1 / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
        found = np.asarray(again(rows[:])[again.name], np.float64).reshape(-1)[:24]
        np.testing.assert_allclose(found, EXPECTED[name]["scores"], rtol=1e-6, atol=type(scorer).atol)
