"""What the README shows is true: its blocks run, its plug-in conforms, its names exist, its rows are complete."""

from __future__ import annotations

import ast
import importlib
import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hub_server import IGNORED, HubServer
from PIL import Image as Picture
from tiny_models import WORDS

import hf_prune as hp
from hf_prune.cli import main

README = Path(__file__).parents[1] / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="the README comes with the repository")

# Blocks run from top to bottom, with the names that those before left, on a Hub of this process. A repo that a block
# reads is put there: names on the left, fixtures on the right. What a statement takes for granted is in `given` below,
# by words of the first that does; what cannot run here is in `CANNOT`, by words of the block and the reason.
MODELS = {
    "facebook/dinov2-small": "tiny_resnet_folder",
    "openai-community/gpt2": "tiny_gpt2_folder",
    "sentence-transformers/all-MiniLM-L6-v2": "tiny_bert_folder",
}
DATASETS = {"uoft-cs/cifar10": "pictures"}
CANNOT: dict[str, str] = {}


def blocks(language: str = "python") -> list[str]:
    """Without those that CI itself runs, which a comment marks."""
    text = README.read_text(encoding="utf-8")
    return [m[2] for m in re.finditer(rf"(<!-- ci: \w+ -->\n)?```{language}\n(.*?)```", text, re.DOTALL) if not m[1]]


@pytest.fixture(scope="module")
def pictures() -> datasets.Dataset:
    """120 noisy squares of four classes, in the columns of CIFAR-10."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 60, (16, 16, 3), np.uint8) + np.uint8(40 * (i % 4)) for i in range(120)]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list("abcd"))})
    table = {"img": [Picture.fromarray(x) for x in noise], "label": [i % 4 for i in range(120)]}
    return datasets.Dataset.from_dict(table, features=features)


@pytest.fixture(scope="module")
def scored() -> datasets.Dataset:
    """1200 texts, some of them twice, with an embedding and the scores of other blocks."""
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, 12)) for _ in range(1200)]
    texts[1100:] = texts[:100]
    table = {"text": texts, "label": rng.integers(0, 4, 1200), "n_tokens": rng.integers(1, 50, 1200)}
    for name in ("ssl_proto", "el2n", "dsir", "dsir_code", "dsir_math", "quality", "t2v_alignment", "semdedup"):
        table[name] = rng.random(1200)
    table["embedding"] = list(rng.normal(size=(1200, 8)).astype(np.float32))
    features = {"embedding": datasets.List(datasets.Value("float32"), length=8)}
    ds = hp.with_row_id(datasets.Dataset.from_dict(table))
    return ds.cast(datasets.Features({**ds.features, **features}))


def classifier() -> Any:
    """Takes "img" and "label" as a Trainer hands them over, and images alone."""
    import torch
    from transformers.modeling_outputs import SequenceClassifierOutput

    class Linear(torch.nn.Linear):
        def forward(self, img, labels=None):
            logits = super().forward(img)
            loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
            return SequenceClassifierOutput(loss=loss, logits=logits)

    return Linear(8, 4)


@pytest.fixture
def given(scored, vectors, tiny_bert_folder) -> dict[str, Callable[[], dict[str, Any]]]:
    def elsewhere():
        return {"ds": hp.with_row_id(datasets.load_dataset("uoft-cs/cifar10", split="train"))}

    def recorded():
        from transformers import TrainingArguments

        args = TrainingArguments("runs/trainer", num_train_epochs=1, use_cpu=True, report_to=[], disable_tqdm=True)
        rows = scored.select(range(64)).select_columns(["embedding", "label", "row_id"])
        return {"model": classifier(), "args": args, "ds": rows.rename_column("embedding", "img")}

    def pruned():
        minhash, substring = hp.MinHashDedup.fit(scored), hp.SubstringDedup.fit(scored, min_tokens=8)
        return {"ds": scored.map(minhash, batched=True), "minhash": minhash, "substring": substring}

    def measured():
        halves = scored.select(range(600)), scored.select(range(600, 1200))
        return {"ds": scored, "target_ds": halves[1], "a": halves[0], "b": halves[1]}

    def run():
        return {"ds": scored.select_columns("text"), "embedder": hp.Embedder(tiny_bert_folder)}

    return {
        "hp.load_scores(": elsewhere,
        "hp.train_with_log(": recorded,
        'hp.filter_by_score(ds, "ssl_proto", keep=0.7)': pruned,
        "hp.vendi_score(": measured,
        "hp.score(ds, embedder": run,
        "hp.d4(": lambda: {"ds": scored.remove_columns(["ssl_proto", "semdedup"])},
        "check_scorer(": lambda: {"ds": vectors},
    }


@pytest.fixture
def hub(monkeypatch, tmp_path, request):
    """The repos that blocks read; what they push goes there too. Relative paths of blocks are below `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with HubServer() as server:
        server.patch(monkeypatch, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", server.token)
        text = README.read_text(encoding="utf-8")
        for name, fixture in MODELS.items():
            if name in text:
                folder = request.getfixturevalue(fixture)
                server.add(name, {path.name: path.read_bytes() for path in folder.iterdir()})
        for name, fixture in DATASETS.items():
            if name in text:
                file = io.BytesIO()
                request.getfixturevalue(fixture).to_parquet(file)
                server.add(name, {"data/train-00000-of-00001.parquet": file.getvalue()})
        yield server


@pytest.mark.filterwarnings(IGNORED, "ignore::UserWarning")
def test_blocks_run(hub, given, tmp_path):
    """A block that defines a class is a module, as the README says, for other processes import it."""
    names: dict[str, Any] = {"__name__": "readme"}
    for number, block in enumerate(blocks()):
        if any(words in block for words in CANNOT):
            continue
        if re.search(r"^class ", block, re.MULTILINE):
            (tmp_path / f"readme_{number}.py").write_text(block)
            names |= vars(importlib.import_module(f"readme_{number}"))
            continue
        for statement in ast.parse(block).body:
            words = ast.get_source_segment(block, statement)
            for mark, make in given.items():
                if mark in words:
                    names |= make()
            tree = ast.Module([statement], [])
            exec(compile(tree, f"README.md, Python block {number}", "exec"), names)
    assert all(any(words in block for block in blocks()) for words in (*given, *CANNOT)), "of a block that is gone"
    assert "you/cifar10-scored" in hub.repos and len(names["kept"]) == 60


@pytest.mark.filterwarnings(IGNORED)
def test_commands_run(hub, scored):
    scored.select_columns("text").select(range(150)).to_parquet("reviews.parquet")
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("hf-prune ")]
    assert {shlex.split(line)[1] for line in commands} >= {"embed", "score", "filter", "push"}
    for line in commands:
        main.app(shlex.split(line)[1:], standalone_mode=False)
    assert "you/reviews-scored" in hub.repos and Path("report.html").exists()
    assert len(datasets.load_dataset("parquet", data_files="kept.parquet", split="train")) == 105


def test_names_are_public():
    for name in re.findall(r"\bhp\.(\w+)", "\n".join(blocks())):
        assert name in hp.__all__, name


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
