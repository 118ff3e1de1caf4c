"""KenLM scores against the dossier's vector, the package's own perplexity, and on bad input."""

from __future__ import annotations

import pickle
import shutil
import sys

import numpy as np
import pytest

import hf_prune as hp
from hf_prune.scorers.kenlm import kenlm_log_likelihood

UNIGRAM = {"<unk>": -3.0, "<s>": 0.0, "</s>": -2.0, "the": -2.0, "cat": -2.0, "sat": -1.5}
ARPA = (
    "\\data\\\nngram 1=6\nngram 2=2\n\n\\1-grams:\n{unigrams}\n\n\\2-grams:\n-0.5\tthe cat\n-0.25\tcat sat\n\n\\end\\\n"
)


@pytest.fixture(scope="module")
def arpa(tmp_path_factory):
    path = tmp_path_factory.mktemp("kenlm") / "toy.arpa"
    path.write_text(ARPA.format(unigrams="\n".join(f"{v}\t{k}\t0" for k, v in UNIGRAM.items())))
    return path


def lower(text):
    return text.lower()


def test_vector_of_the_definition():
    assert 10 ** -kenlm_log_likelihood(["a line of five words"], lambda line: -12.0) == pytest.approx(100)
    lines = ["two words", "", "three words here", "  "]
    assert kenlm_log_likelihood(lines, lambda line: -2.0 * len(line.split())) == pytest.approx(-10 / 7)
    assert np.isnan(kenlm_log_likelihood([""], lambda line: -1.0))


def test_by_hand_and_as_the_package_says(arpa):
    kenlm = pytest.importorskip("kenlm")
    texts = ["the cat sat", "sat the", "the dog", "the cat\n\nsat"]
    found = hp.KenLM(str(arpa), perplexity=True)({"text": texts})
    by_hand = np.array([-(2 + 0.5 + 0.25 + 2) / 4, -(1.5 + 2 + 2) / 3, -(2 + 3 + 2) / 3, -(2 + 0.5 + 2 + 1.5 + 2) / 5])
    assert found["kenlm"] == pytest.approx(by_hand, abs=1e-6)
    assert found["kenlm_perplexity"] == pytest.approx(10**-by_hand, rel=1e-5)
    own = [kenlm.Model(str(arpa)).perplexity(text) for text in texts[:3]]
    assert found["kenlm_perplexity"][:3] == pytest.approx(own, rel=1e-5)


def test_preparation_is_a_named_function(arpa):
    pytest.importorskip("kenlm")
    plain = hp.KenLM(str(arpa))
    lower = hp.KenLM(str(arpa), preprocess=f"{__name__}:lower")
    assert lower({"text": ["THE Cat"]})["kenlm"] == plain({"text": ["the cat"]})["kenlm"]
    assert lower.digest != plain.digest


def test_texts_without_words(arpa):
    pytest.importorskip("kenlm")
    rows = {"text": ["the", " \n ", None, ""]}
    with pytest.raises(ValueError, match="row 1 of this batch has no words, and 2 more are bad"):
        hp.KenLM(str(arpa))(rows)
    with pytest.raises(ValueError, match="row 0 of this batch holds .* half of a surrogate pair"):
        hp.KenLM(str(arpa), on_bad="nan")({"text": ["the \udfff"]})
    found = hp.KenLM(str(arpa), on_bad="nan")(rows)["kenlm"]
    assert np.isnan(found).tolist() == [False, True, True, True]


def test_a_file_is_its_content(arpa, tmp_path):
    moved = tmp_path / "toy.arpa"
    shutil.copy(arpa, moved)
    scorer = hp.KenLM(str(arpa))
    assert scorer == hp.KenLM(str(moved)) and pickle.loads(pickle.dumps(scorer)) == scorer
    moved.write_text(moved.read_text().replace("-0.5", "-0.6"))
    changed = hp.KenLM(str(moved))
    assert changed != scorer
    moved.unlink()
    with pytest.raises(FileNotFoundError, match="is not on this machine"):
        changed({"text": ["the"]})


def test_no_file_no_model_no_package(arpa, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no file 'nowhere.arpa'"):
        hp.KenLM("nowhere.arpa")
    with pytest.raises(ValueError, match="on_bad='drop' is not known; choose one of 'raise', 'nan'"):
        hp.KenLM(str(arpa), on_bad="drop")
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_prune\[kenlm\]'"):
        hp.KenLM(str(arpa))({"text": ["the"]})
    monkeypatch.undo()
    pytest.importorskip("kenlm")
    wrong = tmp_path / "wrong.arpa"
    wrong.write_text("no model")
    with pytest.raises(ValueError, match="wrong.arpa is no KenLM model"):
        hp.KenLM(str(wrong))({"text": ["the"]})
