"""The same numbers whatever format a dataset is in: every scorer, in `map`, in streams, and while fitting."""

from __future__ import annotations

import importlib.util
import io

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image as Picture
from test_conformance import LOGGED, SCORERS, rows  # noqa: F401

import hf_prune as hp
from hf_prune.data import formats
from hf_prune.data.batch import Batch
from hf_prune.data.identity import digests

# torch, of how `datasets` makes tensors of tensors in a stream
pytestmark = pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
FORMATS = ["numpy", "torch", "arrow", "pandas", "polars", "jax", "tensorflow"]
TABLES = {"arrow", "pandas", "polars"}


@pytest.fixture(params=FORMATS)
def kind(request):
    if importlib.util.find_spec(request.param) is None and request.param not in ("arrow", "numpy"):
        pytest.skip(f"{request.param} is not installed")
    return request.param


def column(values):
    """A column as plain lists, to be compared."""
    values = formats.plain(values)
    return [np.asarray(v).tolist() for v in values]


def same(found, expected, atol, what=""):
    for name, values in expected.items():
        a, b = column(found[name]), column(values)
        if isinstance(b[0], list):
            assert [len(v) for v in a] == [len(v) for v in b], (what, name)
            a, b = (np.concatenate([np.asarray(v, float) for v in x]) for x in (a, b))
        np.testing.assert_allclose(np.array(a, float), np.array(b, float), atol=atol, rtol=0, err_msg=f"{what} {name}")


@pytest.fixture(scope="module")
def fitted(rows, small_log):  # noqa: F811
    """Every scorer of the conformance table with what it gives for unformatted rows."""
    some = rows.select(range(60, 10, -2))  # not as they are stored
    made = [*(make(rows) for make in SCORERS.values()), *(make(small_log) for make in LOGGED.values())]
    return some, [(scorer, scorer(some.with_format(None)[:])) for scorer in made]


def test_every_scorer_reads_every_format(fitted, kind):
    some, made = fitted
    batch = some.with_format(kind)[:]
    for scorer, expected in made:
        found = scorer(batch)
        assert isinstance(found, pa.Table) == (kind in TABLES)
        same(found, expected, scorer.atol, type(scorer).__name__)


def test_every_fit_reads_every_format(rows, kind):  # noqa: F811
    if kind != "torch":
        pytest.skip("fits read what is stored: one format stands for all")
    for name, make in SCORERS.items():
        assert make(rows.with_format(kind)) == make(rows), name


MAPPED = ["SSLPrototypes", "SupervisedPrototypes", "KCenter", "DSIR-targets", "SubstringDedup"]


@pytest.mark.parametrize("name", MAPPED)
def test_map_and_streams_keep_the_rows(rows, kind, name):  # noqa: F811
    """With int ids; what `map` gives back has the old columns as they were, and the new ones."""
    ds = rows.remove_columns("row_id").add_column("row_id", [2**40 * (kind != "jax") + 3 * i for i in range(len(rows))])
    ds = ds.add_column("flag", [i % 3 == 0 for i in range(len(rows))])
    scorer = SCORERS[name](ds)
    some = ds.select(range(70, 10, -3))
    expected = scorer(some[:])
    mapped = some.with_format(kind).map(scorer, batched=True, batch_size=7, keep_in_memory=True)
    assert mapped.format["type"] == kind
    same(mapped.with_format(None)[:], expected, scorer.atol)
    assert mapped.with_format(None).select_columns(ds.column_names).to_list() == some.to_list()
    assert {n: mapped.features[n] for n in ("label", "row_id", "text", "flag")} == {
        n: ds.features[n] for n in ("label", "row_id", "text", "flag")
    }
    stream = some.to_iterable_dataset(num_shards=2).with_format(kind).map(scorer, batched=True, batch_size=7)
    found = list(stream.with_format(None))
    same({n: [row[n] for row in found] for n in expected}, expected, scorer.atol)
    assert [row["text"] for row in found] == some["text"][:]


def picture(pixels, kind="PNG", **options):
    """A picture as a dataset stores it."""
    image = Picture.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    file = io.BytesIO()
    image.save(file, kind, **options)
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    shapes = [(9, 12, 3), (12, 3, 3), (3, 12, 3), (10, 10), (4, 8, 4), (8, 4)]
    made = [picture(rng.integers(0, 256, shape, np.uint8)) for shape in shapes]
    made[-1] = picture(rng.integers(3000, 60000, shapes[-1], np.uint16))
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)}
    return datasets.Dataset.from_dict({"image": made, "label": [0, 1] * 3}, datasets.Features(features))


def test_pictures_in_every_format(pictures, tiny_resnet_folder, kind):
    """Channels first or last, gray, with alpha, of 16 bits: what the network sees is what is stored."""
    scorer = hp.Embedder(tiny_resnet_folder, column="image")
    expected = np.asarray(scorer(pictures[:])["embedding"])
    some = pictures.select(range(5)) if kind == "numpy" else pictures  # that stream gives the sixth as int64: refused
    stream = some.to_iterable_dataset().with_format(kind).map(scorer, batched=True).with_format(None)
    if kind not in TABLES:  # a stream of tables gives stored bytes
        found = scorer(pictures.with_format(kind)[:])["embedding"]
        np.testing.assert_array_equal(found, expected)
    elif kind == "arrow":
        mapped = pictures.with_format(kind).map(scorer, batched=True)
        assert mapped.features["image"] == pictures.features["image"]
        np.testing.assert_array_equal(mapped.with_format("numpy")["embedding"][:], expected)
    elif kind == "pandas":  # decoded, and then no longer what was stored
        with pytest.raises(TypeError, match=r"column 'image' holds PIL.* use ds.with_format\(None\)"):
            pictures.with_format(kind).map(scorer, batched=True)
    np.testing.assert_array_equal([row["embedding"] for row in stream], expected[: len(some)])
    assert hp.vendi_score(pictures.with_format(kind), kernel="pixel") == hp.vendi_score(pictures, kernel="pixel")


def test_chats_and_nested_columns_in_every_format(kind):
    said = [(f"hello {i}", "yes " * i) for i in (0, 1, 2, 1)]
    chats = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in said]
    ds = datasets.Dataset.from_dict({"messages": chats, "meta": [{"t": f"a {i} b", "n": i} for i in range(4)]})
    for scorer in (hp.ExactDedup.fit(ds, text="messages"), hp.TextStatistics(text="meta.t")):
        expected = scorer(ds[:])
        same(scorer(ds.with_format(kind)[:]), expected, 0, type(scorer).__name__)
    edited = hp.RemoveRepeats(
        hp.SubstringDedup.fit(
            texts := datasets.Dataset.from_dict(
                {"text": ["one two three four five", "zero one two three four", "six"], "n": [1, 2, 3]}
            ),
            min_tokens=3,
        )
    )
    mapped = texts.with_format(kind).map(edited, batched=True)
    assert mapped.with_format(None)[:] == texts.map(edited, batched=True)[:]
    assert hp.chunk_texts(texts.with_format(kind), words=2).with_format(None)[:] == hp.chunk_texts(texts, words=2)[:]


def test_pictures_in_chats(kind):
    """Stored or decoded as `datasets` does, they are told apart; as bare pixels they are refused."""
    rng = np.random.default_rng(0)
    parts = [{"image": picture(rng.integers(0, 256, (4, 4, 3), np.uint8))} for _ in range(3)]
    feature = {"role": datasets.Value("string"), "content": datasets.List({"image": datasets.Image()})}
    chats = {"messages": [[{"role": "user", "content": [part]}] for part in parts]}
    ds = datasets.Dataset.from_dict(chats, datasets.Features({"messages": datasets.List(feature)}))
    scorer = hp.ExactDedup.fit(ds, text="messages")
    if kind == "arrow":
        assert scorer(ds.with_format(kind)[:])["exact"].to_pylist() == [1.0, 1.0, 1.0]
    elif kind not in TABLES:
        with pytest.raises(TypeError, match=r"row 0 .* a decoded picture in a turn.*with_format\(None\)"):
            scorer(ds.with_format(kind)[:])


def test_digests_of_every_format(kind):
    """Ids and contents have one digest, whatever holds them."""
    columns = {
        "words": ["a", "", "long " * 9],
        "numbers": [0, -5, 2**31 - 1],
        "floats": [0.5, -0.25, 3.0],
        "flags": [True, False, True],
        "vectors": [[0.5, 1.5], [2.5, -1.0], [0.0, 4.0]],
        "ragged": [[1], [], [2, 3]],
        "grid": [[[1, 2], [3, 4]], [[5, 6], [7, 8]], [[9, 1], [2, 3]]],
        "fields": [{"a": 1, "b": "x"}, {"a": 2, "b": ""}, {"a": 3, "b": "y"}],
    }
    if kind == "tensorflow":
        del columns["ragged"]  # `datasets` makes no tensor of an empty list of ints there
    ds = datasets.Dataset.from_dict(columns)
    batch = Batch(ds.with_format(kind)[:])
    for name in columns:
        expected = digests(ds.data.column(name))
        assert digests(batch.arrow(name)).tolist() == expected.tolist(), name
        assert digests(batch[name]).tolist() == expected.tolist(), name


def test_rounded_content_is_not_found_and_told_so(kind):
    """Tensors of float64 columns are float32: rows that are known by their content are other rows then."""
    x = np.random.default_rng(0).normal(size=(12, 4))
    ds = datasets.Dataset.from_dict({"embedding": x})
    scorer = hp.KCenter.fit(ds, rows=4, row_id=None)
    if kind in TABLES:
        same(scorer(ds.with_format(kind)[:]), scorer(ds[:]), 0)
    else:
        with pytest.raises(ValueError, match=r"12 of 12 rows are not .*rounded: use ds.with_format\(None\)"):
            scorer(ds.with_format(kind)[:])


def test_tables_of_other_engines():
    """A record batch (Ray, a reader of files), and a data frame with nulls: the rows come back with the scores."""
    table = pa.table({"row_id": ["a", "b"], "n": pa.array([1, None], pa.int32())})
    scorer = hp.Random(seed=3)
    for given in (table, table.to_batches()[0], table.to_pandas()):
        found = scorer.with_inputs(given)
        assert found.column_names == ["row_id", "n", "random_3"] and found["n"].null_count == 1
        assert found["random_3"].to_pylist() == scorer({"row_id": ["a", "b"]})["random_3"].tolist()
    again = scorer(found)
    assert again.column_names == found.column_names and again.schema.field("random_3").type == pa.float64()


@pytest.mark.parametrize("inputs", ["image", "embedding", "ints"])
def test_training_reads_the_same_whatever_the_format(inputs, kind, tmp_path):
    import torch

    rng = np.random.default_rng(1)
    shades = rng.integers(0, 256, (5, 4, 6, 3), np.uint8)
    stored = [*(picture(p) for p in shades[:3]), picture(Picture.fromarray(shades[3]).convert("L"))]
    stored.append(picture(rng.integers(2000, 60000, (4, 6), np.uint16)))
    columns = {"image": stored, "embedding": rng.normal(size=(5, 72)), "ints": rng.integers(0, 9, (5, 72))}
    features = {"image": datasets.Image(), "embedding": datasets.List(datasets.Value("float64"))}
    features["ints"] = datasets.List(datasets.Value("int16"))
    ds = datasets.Dataset.from_dict(columns, datasets.Features(features)).select([4, 2, 0, 1, 3])
    ds = hp.with_row_id(ds.add_column("label", [0, 1, 0, 1, 1]), columns=["embedding"])

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.seen = torch.nn.Linear(72, 2), []

        def forward(self, x):
            self.seen.append(x)
            return self.head(x.flatten(1))

    seen = []
    for name in (None, kind):
        torch.manual_seed(0)
        net = Net()
        hp.train_with_log(net, ds.with_format(name), tmp_path / str(name), epochs=1, inputs=inputs, batch_size=3)
        seen.append(torch.cat(net.seen))
    assert seen[0].dtype == torch.float32 and torch.equal(*seen)
    if inputs == "image":
        assert seen[0].shape == (5, 3, 4, 6) and -1 <= seen[0].min() < -0.8 and 0.8 < seen[0].max() <= 1


def test_a_transform_of_ones_own_is_kept(tmp_path):
    """`with_transform` is no format: what it makes is what is trained on, and scored."""
    import torch

    ds = hp.with_row_id(datasets.Dataset.from_dict({"x": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]}))
    twice = ds.with_transform(lambda batch: {**batch, "x": [[2 * v for v in row] for row in batch["x"]]})
    seen = []
    net = torch.nn.Linear(2, 2)
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    hp.train_with_log(net, twice, tmp_path / "log", epochs=1, inputs="x")
    assert sorted(seen[0].tolist()) == [[2.0, 4.0], [6.0, 8.0]]


def test_half_of_a_surrogate_pair_in_a_label_or_an_id_is_told_with_its_row():
    ds = datasets.Dataset.from_dict(
        {"embedding": [[1.0, 2.0], [2.0, 0.5]] * 2, "label": ["a", "b"] * 2, "row_id": list("abcd")}
    )
    batch = {"embedding": [[1.0, 2.0]] * 2, "label": ["a", "\ud83d"], "row_id": ["a", "\ud83d"]}
    for scorer in (hp.SupervisedPrototypes.fit(ds), hp.Moderate.fit(ds), hp.KCenter.fit(ds, 2), hp.Random()):
        with pytest.raises(ValueError, match=r"row 1 .*half of a surrogate pair, which has no UTF-8; encode it"):
            scorer(batch)
