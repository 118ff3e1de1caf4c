"""Models as values: digests, pins, the store, the cache."""

from __future__ import annotations

import gc
import json
import multiprocessing
import pickle
import shutil
import statistics
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher
from forging import forge

from hf_prune import Embedder, Model, models


def test_a_folder_is_its_content(tiny_bert_folder: Path, tmp_path: Path) -> None:
    here = Model(str(tiny_bert_folder))
    shutil.copytree(tiny_bert_folder, tmp_path / "else")
    there = Model(str(tmp_path / "else"))
    assert here == there and here.kind == "folder" and Hasher.hash(here) == Hasher.hash(there)
    assert str(tiny_bert_folder) not in pickle.dumps(here).decode("latin1")
    (tmp_path / "else" / "config.json").write_text((tmp_path / "else" / "config.json").read_text() + " ")
    assert Model(str(tmp_path / "else")) != here
    shutil.rmtree(tmp_path / "else")
    lost = Model("folder", revision="0" * 64)
    with pytest.raises(FileNotFoundError, match="make the scorer anew from the folder's new place"):
        lost.folder()


def test_names_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; give a folder"):
        Model("./nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="is a file"):
        Model(str(tmp_path / "file"))
    with pytest.raises(ValueError, match="choose one of 'float32', 'bfloat16', 'float16'"):
        Model("org/name", dtype="int8")
    with pytest.raises(ValueError, match="cannot be imported"):
        Model("embed_modules:nothing")
    with pytest.raises(TypeError, match="returned a int, not a torch.nn.Module"):
        Model("embed_modules:no_module")
    with pytest.raises(ValueError, match="neither a folder here, nor in the Hub's cache"):
        Model("some-org/some-model")
    with pytest.raises(TypeError, match="list is no model"):
        Model.of([1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="belong to the Model"):
        Model.of(Model("embed_modules:linear"), dtype="bfloat16")


def test_a_hub_name_is_pinned_to_its_commit(
    tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--org--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots").mkdir()
    shutil.copytree(tiny_bert_folder, repo / "snapshots" / commit)
    import huggingface_hub

    real = huggingface_hub.snapshot_download  # its own default for the cache was read at import
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: real(*a, **k, cache_dir=str(tmp_path)))
    model = Model("org/tiny")
    assert model.revision == commit and model.kind == "hub"
    assert model == Model("org/tiny", revision=commit) == Model("org/tiny", revision="main")
    embedder = Embedder("org/tiny")
    assert embedder.columns() == {"embedding": "float32[32]"}
    same = Embedder(tiny_bert_folder)({"text": ["the cat"]})["embedding"]
    np.testing.assert_allclose(embedder({"text": ["the cat"]})["embedding"], same, atol=1e-6)
    facts = embedder.describe().model
    assert facts is not None and facts["revision"] == commit and facts["name"] == "org/tiny"


def test_weights_that_are_missing_are_an_error(tiny_bert_folder: Path) -> None:
    with pytest.raises(ValueError, match="has no weights for .* would be random numbers"):
        Model(str(tiny_bert_folder)).load(head="AutoModelForSequenceClassification")


def test_tied_weights_are_not_missing(tiny_gpt2_folder: Path) -> None:
    network = Model(str(tiny_gpt2_folder)).load(head="AutoModelForCausalLM")
    assert network(torch.tensor([[1, 2]])).logits.shape == (1, 2, 64) and not network.training


def test_the_cache_keeps_few_weights_and_many_tokenizers(
    tiny_bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.clear_cache()
    model = Model(str(tiny_bert_folder))
    network = model.load()
    assert model.load() is network and model.processor() is model.processor()
    for i in range(models.CACHE_SIZE):
        models.cached(("other", i), object)
    for i in range(models.CACHE_SIZE):  # all are there still, so the network is not
        models.cached(("other", i), pytest.fail)
    dropped, tokenizer = weakref.ref(network), model.processor()
    del network
    gc.collect()
    assert dropped() is None
    models.cached(("one", "more"), object)
    assert model.processor() is tokenizer


def embed_in_a_fresh_process(embedder: Embedder, texts: list[str], queue: object) -> None:
    torch.set_num_threads(1)
    queue.put((Hasher.hash(embedder), embedder({"text": texts})["embedding"]))  # type: ignore[attr-defined]


@pytest.mark.timeout(120)
def test_a_live_module_reaches_a_spawned_process() -> None:
    torch.manual_seed(11)
    network = torch.nn.Sequential(torch.nn.Linear(26, 4), torch.nn.Tanh())
    embedder = Embedder(network, preprocess="embed_modules:letters")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=embed_in_a_fresh_process, args=(embedder, ["the cat", "a dog"], queue))
    worker.start()
    digest, found = queue.get(timeout=90)
    worker.join(timeout=30)
    assert digest == Hasher.hash(embedder)
    np.testing.assert_allclose(found, embedder({"text": ["the cat", "a dog"]})["embedding"], atol=1e-6)
    with torch.no_grad():
        network[0].weight.add_(1)
    assert Embedder(network, preprocess="embed_modules:letters") != embedder


def test_the_hash_does_not_read_the_weights(tmp_path: Path) -> None:
    took = []
    for size in (1, 400 * 2**20):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        with open(folder / "model.safetensors", "wb") as file:
            file.truncate(size)  # sparse
        embedder = Embedder(folder)
        Hasher.hash(embedder)
        times = []
        for _ in range(21):
            start = time.process_time()
            Hasher.hash(embedder)
            times.append(time.process_time() - start)
        took.append(statistics.median(times))
    assert took[1] < 10 * took[0]  # reading them takes two hundred times as long
    assert len(pickle.dumps(embedder)) < 2000


def test_a_saved_scorer_does_not_choose_what_is_called(tmp_path):
    """A folder from somebody else could name any function: nothing is imported or called unless the user says so."""
    from hf_prune import Embedder, Scorer

    scorer = Embedder("embed_modules:conv", preprocess="embed_modules:pixels", column="image")
    scorer.save(tmp_path)
    assert Scorer.load(tmp_path, trust_code=True) == scorer
    forge(tmp_path, lambda d: json.loads(json.dumps(d).replace("embed_modules:pixels", "subprocess:run")))
    with pytest.raises(ValueError, match="names code that would be run: embed_modules:conv, subprocess:run; if you"):
        Scorer.load(tmp_path)


def test_a_memo_is_of_one_process(monkeypatch):
    from hf_prune import Random, models

    scorer, made = Random(seed=5), []
    for pid in (1, 1, 2, 1):
        monkeypatch.setattr(models.os, "getpid", lambda pid=pid: pid)
        models.memo(scorer, "what", lambda: made.append(1))
    assert len(made) == 2
