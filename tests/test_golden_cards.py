"""The card of each scorer, as it looks on the Hub. HF_PRUNE_UPDATE_GOLDEN=1 python -m pytest tests/test_golden_cards.py
writes them anew."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest

import hf_prune as hp
from hf_prune.dynamics.log import TrainingLog

CARDS = Path(__file__).parents[1] / "hub_cards" / "scorers"
SCORERS = {
    "herding": lambda ds: hp.Herding.fit(ds, rows=20),
    "k_center": lambda ds: hp.KCenter.fit(ds, rows=20),
    "moderate": lambda ds: hp.Moderate.fit(ds),
    "dsir": lambda ds: hp.DSIR.fit(ds, ds.select(range(24)), smoothing=1, tokens=True),
    "random": lambda ds: hp.Random(seed=100),
    "el2n": lambda ds: hp.EL2N.from_log(log_of(ds, "eval")),
    "grand": lambda ds: hp.GraNd(one_layer(), column="embedding"),
    "forgetting": lambda ds: hp.Forgetting.from_log(log_of(ds)),
    "aum": lambda ds: hp.AUM.from_log(log_of(ds)),
    "cartography": lambda ds: hp.Cartography.from_log(log_of(ds)),
    "dual": lambda ds: hp.DUAL.from_log(log_of(ds), window=3),
    "dyn_unc": lambda ds: hp.DynamicUncertainty.from_log(log_of(ds), window=3),
    "tdds": lambda ds: hp.TDDS.from_log(log_of(ds), window=3),
    "uncertainty": lambda ds: hp.Uncertainty.from_log(log_of(ds, "eval")),
    "semdedup": lambda ds: hp.SemDeDup.fit(ds, k=4, engine="torch"),
    "quality": lambda ds: hp.QualityClassifier.fit(ds, int_score=True),
    "ssl_proto": lambda ds: hp.SSLPrototypes.fit(ds, k=4, cluster=True, engine="torch"),
    "supervised_proto": lambda ds: hp.SupervisedPrototypes.fit(ds, margin=True),
    "vendi": lambda ds: hp.VendiContribution.fit(ds),
    "exact": lambda ds: hp.ExactDedup.fit(ds),
    "minhash": lambda ds: hp.MinHashDedup.fit(ds, ngram=2),
    "substring": lambda ds: hp.SubstringDedup.fit(ds, min_tokens=4, spans=True),
    "t2v_alignment": lambda ds: hp.Task2VecAlignment.fit(ds, probe=vector_probe()),
    "t2v_complexity": lambda ds: hp.Task2VecComplexity(probe=vector_probe()),
    "text_rules": lambda ds: hp.TextStatistics(statistics=("n_words", "duplicate_line_fraction")),
}

pytestmark = pytest.mark.skipif(not CARDS.parent.is_dir(), reason="cards come with the repository")


def log_of(ds, mode="train"):
    """Six epochs of four classes learned at different times, the same on every machine."""
    labels = np.array(ds["label"][:])
    rows = np.arange(len(labels))
    logits = np.stack([np.cos(rows[:, None] * np.arange(1, 5) + e) for e in range(6)])
    logits[:, rows, labels] += np.linspace(0, 2, 6)[:, None] * (rows % 5 - 1)
    return TrainingLog.from_logits(tempfile.mkdtemp(), ds["row_id"][:], logits, labels, mode=mode, divergence=True)


def vector_probe():
    return hp.Probe(two_layers(), modality="vector", head="keep")


def one_layer():
    """A network with the same weights on every machine."""
    import torch

    network = torch.nn.Linear(16, 4)
    torch.nn.init.eye_(network.weight)
    torch.nn.init.zeros_(network.bias)
    return network


def two_layers():
    import torch

    first = torch.nn.Linear(16, 16)
    torch.nn.init.eye_(first.weight)
    torch.nn.init.zeros_(first.bias)
    return torch.nn.Sequential(first, torch.nn.Tanh(), one_layer())


@pytest.mark.parametrize("name", SCORERS)
def test_card(name, vectors, tmp_path):
    scorer = SCORERS[name](vectors)
    scored = vectors.map(scorer, batched=True).remove_columns(["embedding", "text"])
    column = scorer.describe()
    # versions and the last bits of what was learned differ between machines; a card is not about them
    fitted = {k: v for k, v in (column.fitted_on or {}).items() if k not in ("objective", "content", "engine")}
    column = replace(column, packages={}, digest=None, fitted_on=fitted or None)
    folder = hp.save_scored(scored, tmp_path / "scored-animals", scorers=[column])
    compare(folder, name)


def compare(folder, name):
    # sizes of compressed files are not about the scores
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines(keepends=True)
    text = "".join(line for line in lines if "download_size" not in line)
    # the last digits of what was learned depend on the processor
    text = re.sub(r"\d+\.\d{9,}", lambda found: f"{float(found[0]):.8g}", text)
    golden = CARDS / f"{name}.md"
    if os.environ.get("HF_PRUNE_UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8"), "HF_PRUNE_UPDATE_GOLDEN=1 writes it anew"


def test_cards_of_language_models(tiny_gpt2_folder, tmp_path):
    """What their cards say comes from the model and the tokenizer too."""
    ds = datasets.Dataset.from_dict({"row_id": list("abcdefgh"), "text": ["the cat sat on the mat"] * 8})
    for scorer in (
        hp.Perplexity(tiny_gpt2_folder, perplexity=True, n_tokens=True),
        hp.AskLLM(tiny_gpt2_folder, prompt="is {text} far", yes="the", no="a"),
    ):
        column = scorer.describe()
        # the folder's name and the digest of its weights are those of this run
        column = replace(column, packages={}, digest=None, model={"name": "tiny-gpt2", "kind": "folder"})
        folder = hp.save_scored(ds.map(scorer, batched=True).remove_columns("text"), tmp_path / "s", scorers=[column])
        compare(folder, scorer.name)
