"""What the README shows is true: its blocks compile, its plug-in conforms, its names exist, its rows are complete."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import hf_prune as hp
from hf_prune.testing import CHECKS, check_scorer

README = Path(__file__).parents[1] / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="the README comes with the repository")


def blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_blocks_compile_and_use_public_names():
    for block in blocks():
        compile(block, "README.md", "exec")
        for name in re.findall(r"\bhp\.(\w+)", block):
            assert name in hp.__all__, name


def test_the_plug_in_conforms(vectors, tmp_path, monkeypatch):
    (block,) = (b for b in blocks() if "class CompressionRatio" in b)
    (tmp_path / "compression_ratio.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    scorer = importlib.import_module("compression_ratio").CompressionRatio()
    assert check_scorer(scorer, vectors) == list(CHECKS)


def test_every_scorer_and_verb_has_its_place():
    text = README.read_text(encoding="utf-8")
    missing = [n for n in hp.PUBLIC if n[0].isupper() and issubclass_of_scorer(getattr(hp, n)) and n not in text]
    assert not missing


def issubclass_of_scorer(item):
    return isinstance(item, type) and issubclass(item, hp.Scorer) and item is not hp.Scorer


def test_the_commands_for_newcomers_are_marked():
    text = README.read_text(encoding="utf-8")
    for mark in ("demo", "test"):
        assert re.search(rf"<!-- ci: {mark} -->\n```bash\n[^\n]+\n```", text)
