"""The measurements for `evaluate`, loaded from their folders without network."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import hf_prune as hp

FOLDERS = Path(__file__).parents[1] / "hub_cards" / "measurements"
NAMES = ("vendi", "diversity", "alignment", "complexity")
TEXTS = [f"the {a} sat on the {b} and saw a {c}" for a in ("cat", "dog") for b in ("mat", "card") for c in "abcdefgh"]

pytestmark = [
    pytest.mark.skipif(not FOLDERS.is_dir(), reason="measurements come with the repository"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of evaluate itself
]


def load(name, tmp_path):
    evaluate = pytest.importorskip("evaluate")
    return evaluate.load(str(FOLDERS / name), module_type="measurement", cache_dir=str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_has_the_files_of_a_space(name):
    folder = FOLDERS / name
    assert {f.name for f in folder.iterdir() if f.is_file()} == {
        "README.md",
        "app.py",
        "requirements.txt",
        f"{name}.py",
    }
    text = (folder / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---")[1])
    assert head["sdk"] == "gradio" and head["app_file"] == "app.py" and {"evaluate", "measurement"} <= set(head["tags"])
    assert {"title", "emoji", "colorFrom", "colorTo", "sdk_version", "pinned", "description"} <= set(head)
    assert "hf_prune" in (folder / "requirements.txt").read_text().split()


def test_vendi(tmp_path):
    vendi = load("vendi", tmp_path)
    x = [[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [3.0, 3.0]]
    assert vendi.compute(data=x) == {"vendi_score": pytest.approx(1.7547653506033276, rel=1e-6), "rows": 4.0}
    assert vendi.compute(data=x, q=2)["vendi_score"] == pytest.approx(1.6, rel=1e-6)
    found = vendi.compute(data=TEXTS)
    assert found["vendi_score"] == pytest.approx(hp.vendi_score(TEXTS, kernel="ngram"))
    assert all(type(v) is float for v in found.values())
    for row in x:
        vendi.add_batch(data=[row])
    assert vendi.compute()["vendi_score"] == pytest.approx(1.7547653506033276, rel=1e-6)


def test_vendi_beside_others(tmp_path):
    evaluate = pytest.importorskip("evaluate")
    both = evaluate.combine([load("vendi", tmp_path)])
    assert both.compute(data=[[1.0, 0.0], [0.0, 1.0]])["vendi_score"] == pytest.approx(2)


@pytest.mark.parametrize("name", ["diversity", "complexity"])
def test_task2vec_of_texts(name, tmp_path, tiny_gpt2_folder):
    found = load(name, tmp_path).compute(data=TEXTS * 4, probe=str(tiny_gpt2_folder))
    assert set(found) == {name} and type(found[name]) is float and found[name] > 0


def test_task2vec_alignment(tmp_path, tiny_gpt2_folder):
    found = load("alignment", tmp_path).compute(
        predictions=TEXTS * 4, references=TEXTS[::-1] * 4, probe=str(tiny_gpt2_folder)
    )
    assert type(found["alignment"]) is float and found["alignment"] <= 1


class Refused(Exception):
    pass


@pytest.mark.parametrize("name", NAMES)
def test_what_a_space_computes(name, tmp_path, tiny_gpt2_folder, monkeypatch):
    """The app with its widgets left out: gradio wants a server."""
    module = load(name, tmp_path)
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path / "app"))
    monkeypatch.setenv("PROBE", str(tiny_gpt2_folder))
    seen = []
    widget = lambda *args, **kwargs: seen.append(kwargs)  # noqa: E731
    stub = SimpleNamespace(Interface=widget, Textbox=widget, Number=widget, JSON=widget, Error=Refused)
    monkeypatch.setitem(sys.modules, "gradio", stub)
    compute = runpy.run_path(str(FOLDERS / name / "app.py"))["compute"]
    assert "Citation" in seen[-1]["article"] and "sdk" not in seen[-1]["article"]
    lines, options = "\n".join([*TEXTS, "  "]), {"probe": str(tiny_gpt2_folder)}
    if name == "vendi":
        assert compute("[1, 0]\n[0, 2]", 1) == {"vendi_score": pytest.approx(2), "rows": 2}
        assert compute(lines, 2) == module.compute(data=TEXTS, q=2)
        with pytest.raises(Refused, match="zero vector"):
            compute("[1, 0]\n[0, 0]")
    elif name == "alignment":
        with pytest.raises(Refused, match="32 texts in the source, 1 in the target"):
            compute(lines, "the cat")
        assert compute(lines, lines) == module.compute(predictions=TEXTS, references=TEXTS, **options)
    else:
        assert compute(lines) == module.compute(data=TEXTS, **options)
    with pytest.raises(Refused, match="there are no"):
        compute(*["", ""] if name == "alignment" else [" "])
