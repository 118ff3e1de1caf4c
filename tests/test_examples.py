"""Each example runs on a slice: the text job as a user would start it, alone and in two processes, the others here."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value, load_from_disk
from launching import python, together

from hf_prune import TrainingLog

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="examples come with the repository, not with the package")


def example(script: str, *options: object) -> str:
    """What the example prints, run in this process: a new one would first import torch and transformers."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), warnings.catch_warnings():
        patch.syspath_prepend(EXAMPLES)
        patch.setattr(sys, "argv", [script, *map(str, options)])
        warnings.simplefilter("ignore")
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return said.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    from PIL import Image as Picture

    def png(pixels):
        stream = io.BytesIO()
        Picture.fromarray((pixels * 15).astype(np.uint8)).save(stream, "png")
        return {"bytes": stream.getvalue(), "path": None}

    rows = {"image": [png(p) for p in digits.images[:120]], "label": digits.target[:120].tolist()}
    features = Features({"image": Image(), "label": ClassLabel(names=[str(i) for i in range(10)])})
    path = tmp_path_factory.mktemp("pictures") / "train.parquet"
    Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    words = "the card pay bank when how my is not why cat dog sat mat ran far".split()
    rng = np.random.default_rng(0)
    rows = {
        "text": [" ".join(rng.choice(words, rng.integers(3, 12))) for _ in range(400)],
        "label": [i % 4 for i in range(400)],
    }
    features = Features({"text": Value("string"), "label": ClassLabel(names=list("abcd"))})
    path = tmp_path_factory.mktemp("texts") / "train.parquet"
    Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return path


def test_prune_images(pictures, tiny_resnet_folder, tmp_path):
    out = tmp_path / "out"
    command = ["prune_images.py", "--data", str(pictures)]
    said = example(*command, "--model", str(tiny_resnet_folder), "--k", "8", "--output", str(out))
    assert "120 pictures embedded" in said and said.count("kept 84 of 120") == 2
    kept = load_from_disk(str(out / "kept"))
    counts = np.bincount(kept["label"][:], minlength=10)
    assert len(kept) == 84 and (counts >= 3).all()  # half of what each class of 12 would keep: 4.2, rounded down
    card = (out / "card" / "README.md").read_text()
    assert "ssl_proto" in card and "Class balance" in card or "class" in card.lower()
    assert str(tmp_path) not in card
    # again: nothing is computed, and the result is the same
    before = {p: p.stat().st_mtime_ns for p in out.rglob("part-*.arrow")}
    example(*command, "--model", str(tiny_resnet_folder), "--k", "8", "--output", str(out))
    assert {p: p.stat().st_mtime_ns for p in out.rglob("part-*.arrow")} == before


def test_find_wrong_labels(pictures, tmp_path):
    command = ["find_wrong_labels.py", "--data", str(pictures), "--width", "4"]
    said = example(*command, "--epochs", "3", "--early", "2", "--output", str(tmp_path / "out"))
    assert "12 of 120 labels are wrong" in said and "kept 84 rows by AUM" in said
    table = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.count("%") == 2}
    assert set(table) >= {"aum", "confidence", "forgetting", "el2n_train", "el2n", "random_0"}
    assert float(table["aum"][0]) > 0.5  # three epochs of a network of four channels
    assert len(load_from_disk(str(tmp_path / "out" / "kept"))) == 84


def test_prune_texts_in_two_processes_equals_one(texts, tiny_bert_folder, tmp_path):
    options = ["--data", str(texts), "--model", str(tiny_bert_folder)]
    options += ["--label", "label", "--k", "6", "--shard-rows", "50"]
    script = EXAMPLES / "prune_texts.py"
    python(script, *options, "--output", tmp_path / "one")
    said = together(script, *options, "--output", tmp_path / "two", launcher=True).stdout
    assert set(re.findall(r"process (\d) of (\d) is done", said)) == {("0", "2"), ("1", "2")}
    facts = [json.loads(p.read_text()) for p in (tmp_path / "two" / "embedding").glob("part-*.json")]
    assert {f["process"] for f in facts} == {0, 1} and sum(f["rows"] for f in facts) == 400

    one, two = (load_from_disk(str(tmp_path / name / "kept")) for name in ("one", "two"))
    assert one["row_id"][:] == two["row_id"][:]
    for column in ("ssl_proto", "supervised_proto", "supervised_proto_margin"):
        assert np.abs(np.array(one[column][:]) - two[column][:]).max() <= 1e-6


def test_prune_by_el2n(pictures, tmp_path):
    out = tmp_path / "out"
    command = ["prune_by_el2n.py", "--data", str(pictures), "--width", "4"]
    command += ["--networks", "2", "--early", "2", "--epochs", "1", "--wrong", "0.1", "--offset", "0.25"]
    said = example(*command, "--output", str(out))
    table = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.count("%") == 2 and "." in line}
    assert {name: line[0] for name, line in table.items() if name != "96"} == {
        "random": "48", "hardest": "48", "window": "48", "all": "96",
    }  # fmt: skip
    means = {name: float(table[name][2]) for name in ("hardest", "window", "all")}
    assert means["hardest"] > means["window"] and means["hardest"] > means["all"]

    kept = load_from_disk(str(out / "kept"))
    logs = [TrainingLog(out / f"early-{seed}") for seed in (0, 1)]
    assert [(log.epochs, log.mode) for log in logs] == [(2, "eval")] * 2
    mean = np.mean([log.read("el2n", 1) for log in logs], axis=0)
    middle = np.argsort(-mean)[24 : 24 + 48]  # without the hardest quarter
    assert sorted(kept["row_id"][:]) == sorted(logs[0].ids[int(i)].as_py() for i in middle)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Texts whose first words tell their class."""
    words = [line.split() for line in ("card pay bank", "cat dog sat", "how why not")]
    rng = np.random.default_rng(1)
    label = rng.integers(0, 3, 240)
    rows = {
        "text": [" ".join([*rng.choice(words[c], 2), *rng.choice(["the", "a", "my", "on"], 3)]) for c in label],
        "label": label.tolist(),
    }
    features = Features({"text": Value("string"), "label": ClassLabel(names=list("abc"))})
    path = tmp_path_factory.mktemp("questions") / "train.parquet"
    Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return path


def test_prune_by_training_run(questions, tiny_bert_folder, tmp_path):
    out = tmp_path / "out"
    command = ["prune_by_training_run.py", "--data", str(questions)]
    command += ["--model", str(tiny_bert_folder), "--flip", "0.1", "--epochs", "4", "--early", "3"]
    said = example(*command, "--learning-rate", "3e-3", "--output", str(out))
    assert "24 of 240 labels are wrong" in said and "kept 168 of 240 rows by AUM" in said
    table = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.count("%") == 2}
    assert set(table) == {"aum", "confidence", "forgetting", "el2n_train", "el2n", "variability", "random_0"}
    assert float(table["aum"][0]) > 0.9 and float(table["el2n"][0]) > 0.9
    assert abs(float(table["random_0"][0]) - 0.5) < 0.2
    kept = load_from_disk(str(out / "kept"))
    assert f"{np.mean(kept['wrong'][:]):.1%}" == table["aum"][1]
    assert TrainingLog(out / "log").label == "labels" and TrainingLog(out / "log").epochs == 4
    assert "el2n_train" in (out / "card" / "README.md").read_text()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Texts of three domains with words of their own."""
    words = {
        "bank": "card pay bank my when how",
        "farm": "cat dog sat on mat ran",
        "talk": "user hello system is not why",
    }
    rng = np.random.default_rng(2)
    domains = [*words] * 40
    rows = {
        "text": [" ".join(rng.choice([*words[d].split(), "the", "a"], rng.integers(12, 30))) for d in domains],
        "domain": [list(words).index(d) for d in domains],
    }
    features = Features({"text": Value("string"), "domain": ClassLabel(names=list(words))})
    path = tmp_path_factory.mktemp("corpus") / "train.parquet"
    Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return path


def test_lm_recipe(corpus, tiny_gpt2_folder, tiny_bert_folder, tmp_path):
    out = tmp_path / "out"
    command = ["lm_recipe.py", "--data", str(corpus), "--target", "farm"]
    command += ["--model", str(tiny_gpt2_folder), "--embedder", str(tiny_bert_folder), "--target-rows", "20"]
    said = example(*command, "--copies", "0.2", "--max-tokens", "30", "--output", str(out))
    tables = {}
    for block in said.split("\n\n"):
        lines = [re.split(r"\s{2,}", line.strip()) for line in block.strip().splitlines()]
        if lines[0][0] in ("rows", "tokens"):
            assert lines[0][1:] == ["bank", "farm", "talk", "all"]
            tables[lines[0][0]] = {name: [int(n.replace(",", "")) for n in numbers] for name, *numbers in lines[1:]}
    assert set(tables) == {"rows", "tokens"}
    for table in tables.values():  # what the steps took and what was kept is what there was
        assert (np.sum([n for name, n in table.items() if name != "raw"], axis=0) == table["raw"]).all()
        assert all(sum(numbers[:3]) == numbers[3] for numbers in table.values())
    rows = tables["rows"]
    assert rows["raw"][3] == 120 and rows["- exact copies"][3] == 10 and rows["- near-copies"][3] == 10
    assert rows["- unlike farm"][1] == 0 < rows["- unlike farm"][3]  # farm texts are what the target looks like

    kept = load_from_disk(str(out / "kept"))
    assert len(kept) == rows["kept"][3] and sum(kept["tokens"][:]) == tables["tokens"]["kept"][3]
    assert len(set(kept["text"][:])) == len(kept) and "embedding" not in kept.column_names
    card = (out / "card" / "README.md").read_text()
    assert all(name in card for name in ("exact", "minhash", "log_likelihood", "dsir", "semdedup", "ssl_proto"))


def test_compare_domains(tmp_path, tiny_gpt2_folder):
    rng = np.random.default_rng(0)
    words = "the card pay bank when how my is not why cat dog sat mat ran far".split()
    texts, kinds = [], []
    for i in range(80):
        texts.append(" ".join(rng.choice(words[8 * (i % 2) :][:8], rng.integers(6, 12))))
        kinds.append(i % 2)
    features = Features({"text": Value("string"), "domain": ClassLabel(names=["bank", "cat"])})
    ds = Dataset.from_dict({"text": texts, "domain": kinds}, features=features)
    for name, part in (("train", ds.select(range(64))), ("held_out", ds.select(range(48, 80)))):
        part.to_parquet(str(tmp_path / f"{name}.parquet"))
    command = ["compare_domains.py", "--data", str(tmp_path / "train.parquet")]
    command += ["--validation", str(tmp_path / "held_out.parquet"), "--by", "domain", "--model", str(tiny_gpt2_folder)]
    command += ["--batches", "8", "--rows", "4", "--row-sample", "6", "--max-length", "16"]
    out = example(*command)
    for line in ("nearest other part: bank: cat, cat: bank", "union: ", "lower bound: ", "alignment of single rows"):
        assert line in out
    share = re.findall(r"the probe .* parameters\): ([\d.]+) %", out)
    assert 0 < float(share[0]) < 200
