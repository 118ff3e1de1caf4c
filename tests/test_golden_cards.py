"""The card of each scorer, as it looks on the Hub. HF_PRUNE_UPDATE_GOLDEN=1 python -m pytest tests/test_golden_cards.py
writes them anew."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

import hf_prune as hp

CARDS = Path(__file__).parents[1] / "hub_cards" / "scorers"
SCORERS = {
    "dsir": lambda ds: hp.DSIR.fit(ds, ds.select(range(24)), smoothing=1, tokens=True),
    "random": lambda ds: hp.Random(seed=100),
    "ssl_proto": lambda ds: hp.SSLPrototypes.fit(ds, k=4, cluster=True, engine="torch"),
    "supervised_proto": lambda ds: hp.SupervisedPrototypes.fit(ds, margin=True),
    "text_rules": lambda ds: hp.TextStatistics(statistics=("n_words", "duplicate_line_fraction")),
}

pytestmark = pytest.mark.skipif(not CARDS.parent.is_dir(), reason="cards come with the repository")


@pytest.mark.parametrize("name", SCORERS)
def test_card(name, vectors, tmp_path):
    scorer = SCORERS[name](vectors)
    scored = vectors.map(scorer, batched=True).remove_columns(["embedding", "text"])
    column = scorer.describe()
    # versions and the last bits of what was learned differ between machines; a card is not about them
    fitted = {k: v for k, v in (column.fitted_on or {}).items() if k not in ("objective", "content", "engine")}
    column = replace(column, packages={}, digest=None, fitted_on=fitted or None)
    folder = hp.save_scored(scored, tmp_path / "scored-animals", scorers=[column])
    # sizes of compressed files are not about the scores either
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines(keepends=True)
    text = "".join(line for line in lines if "download_size" not in line)
    golden = CARDS / f"{name}.md"
    if os.environ.get("HF_PRUNE_UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8"), "HF_PRUNE_UPDATE_GOLDEN=1 writes it anew"
