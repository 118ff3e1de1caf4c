"""Task2Vec in two real processes, and on pictures in other orders and passes."""

from __future__ import annotations

import json
from dataclasses import replace

import datasets
import numpy as np
import pytest
from launching import together
from PIL import Image as Picture

import hf_prune as hp

WORDS = "the a card pay bank when how my is not why cat dog sat on mat and ran far".split()

SCRIPT = """
import sys
import datasets
import numpy as np
from accelerate.state import PartialState
from accelerate.utils import gather_object

data, result = sys.argv[1:]
import hf_prune as hp
from test_task2vec_processes import probes, scored

world = PartialState(cpu=True)  # without it each would be a world of one where there is no GPU
texts, pictures = (datasets.load_from_disk(f"{data}/{name}") for name in ("texts", "pictures"))
arrays = {}
for name, (ds, probe) in probes(texts, pictures, data).items():
    share = ds.shard(world.num_processes, world.process_index)
    first, *others = gather_object([hp.task2vec(share, probe)])
    whole = first.merge(*others)
    arrays[name] = whole.vector
    arrays[f"{name}_counts"] = [whole.rows, whole.terms, len(share)]
ds = scored(texts, pictures, data, f"{result}-scores")
arrays |= {name: ds[name][:] for name in ds.column_names if name.startswith("t2v")}
np.savez(f"{result}-{world.process_index}.npz", world=world.num_processes, **arrays)
"""


def probes(texts, pictures, data):
    """Datasets and probes by name; heads are fitted to all of the data, in each process anew."""
    gpt2, resnet = f"{data}/gpt2", f"{data}/resnet"
    return {
        "sequence": (texts, hp.Probe(gpt2)),
        "position": (texts, hp.Probe(gpt2, estimator="position", draws=2)),
        "keep": (pictures, hp.Probe(resnet, head="keep")),
        "fit": (pictures, hp.Probe(resnet, fisher="sampled").fitted(pictures)),
    }


def scored(texts, pictures, data, folder):
    """Rows of both kinds, scored: `score` shares the shards among the processes."""
    target = texts.select(range(8))
    scorers = [
        hp.Task2VecAlignment.fit(target, f"{data}/gpt2", complexity=True),
        hp.Task2VecComplexity(f"{data}/gpt2"),
    ]
    found = hp.score(texts, *scorers, output_dir=f"{folder}-texts", shard_rows=7)
    of_pictures = hp.Task2VecAlignment.fit(pictures, f"{data}/resnet", name="t2v_pictures")
    seen = hp.score(pictures, of_pictures, output_dir=f"{folder}-pictures", shard_rows=7)
    return found.add_column("t2v_pictures", seen["t2v_pictures"][:])


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return datasets.Dataset.from_dict({"text": [" ".join(rng.choice(WORDS, 3 + i % 13)) for i in range(24)]})


@pytest.fixture(scope="module")
def pictures():
    """24 handwritten digits, of three classes."""
    digits = pytest.importorskip("sklearn.datasets").load_digits(n_class=3)
    made = [Picture.fromarray((16 * x).clip(0, 255).astype(np.uint8)).convert("RGB") for x in digits.images[:24]]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": made, "label": digits.target[:24].tolist()}, features)


@pytest.fixture(scope="module")
def data(texts, pictures, tiny_gpt2_folder, tiny_resnet_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    texts.save_to_disk(str(folder / "texts"))
    pictures.save_to_disk(str(folder / "pictures"))
    (folder / "gpt2").symlink_to(tiny_gpt2_folder)
    (folder / "resnet").symlink_to(tiny_resnet_folder)
    return folder


def same(found, expected, rtol=1e-6):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def test_two_processes_are_one(texts, pictures, data, tmp_path):
    """Each embeds its share and the parts are merged; each scores its shards."""
    together(SCRIPT, data, tmp_path / "result")
    one, two = (np.load(tmp_path / f"result-{i}.npz") for i in range(2))
    assert one["world"] == two["world"] == 2
    for name, (ds, probe) in probes(texts, pictures, data).items():
        whole = hp.task2vec(ds, probe)
        for found in (one, two):
            same(found[name], whole.vector)
            assert found[f"{name}_counts"].tolist() == [24, whole.terms, 12]
    alone = scored(texts, pictures, data, str(tmp_path / "alone"))
    columns = [name for name in alone.column_names if name.startswith("t2v")]
    assert len(columns) == 5
    for name in columns:
        for found in (one, two):
            same(found[name], np.array(alone[name][:]))
    parts = [json.loads(p.read_text()) for p in (tmp_path / "result-scores-texts").glob("part-*.json")]
    assert {part["process"] for part in parts} == {0, 1} and sum(part["rows"] for part in parts) == 24


def test_workers_batches_and_order_of_row_scores(texts, pictures, data):
    """To the last digits of float32; the conformance suite looks at more, less closely."""
    target, order = texts.select(range(8)), np.random.default_rng(0).permutation(24)
    for ds, scorer in (
        (texts, hp.Task2VecAlignment.fit(target, f"{data}/gpt2", complexity=True)),
        (texts, hp.Task2VecComplexity(f"{data}/gpt2")),
        (pictures, hp.Task2VecAlignment.fit(pictures, f"{data}/resnet")),
    ):
        whole = scorer(ds[:])
        workers = ds.map(scorer, batched=True, batch_size=5, num_proc=2)
        shuffled = [scorer(ds[int(i) : int(i) + 1]) for i in order]
        for name in scorer.columns():
            same(np.array(workers[name][:]), whole[name])
            same(np.concatenate([one[name] for one in shuffled])[np.argsort(order)], whole[name])


@pytest.mark.parametrize("name", ["keep", "fit"])
def test_passes_order_and_shards_of_pictures(texts, pictures, data, name):
    ds, probe = probes(texts, pictures, data)[name]
    whole = hp.task2vec(ds, probe)
    for size in (1, 5, 24):
        same(hp.task2vec(ds, replace(probe, micro_batch=size)).vector, whole.vector)
    same(hp.task2vec(ds.select(np.random.default_rng(0).permutation(24)), probe).vector, whole.vector)
    first, *others = (hp.task2vec(ds.shard(3, i), probe) for i in range(3))
    merged = first.merge(*others)
    same(merged.vector, whole.vector)
    assert (merged.rows, merged.terms) == (24, 24)


def test_shares_with_heads_of_their_own_are_refused(pictures, data):
    first, second = (hp.task2vec(pictures.shard(2, i), f"{data}/resnet") for i in range(2))
    with pytest.raises(ValueError, match=r"probe\.fitted"):
        first.merge(second)
