from __future__ import annotations

import errno
import importlib.util
import io
import json
import os
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from launching import python
from PIL import Image as PILImage
from run_scorers import Length, Logged, Many, Norm, Widen, calls

from hf_prune import Batch, Embedder, Ledger, Scorer, SSLPrototypes, score, training_flops
from hf_prune.columns import read_sidecar
from hf_prune.run.parts import Plan

N = 2500
TEXTS = [f"{i} " + "x" * (i * 7 % 31) for i in range(N)]
LENGTHS = [float(len(t)) for t in TEXTS]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """2,500 texts, memory-mapped, in two files."""
    folder = tmp_path_factory.mktemp("data")
    ds = Dataset.from_dict({"text": TEXTS, "other": list(range(N))}, split="train")
    ds.save_to_disk(str(folder), num_shards=2)
    return datasets.load_from_disk(str(folder))


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_PRUNE_TEST_LOG", str(tmp_path / "log.txt"))
    monkeypatch.delenv("HF_PRUNE_TEST_FAIL", raising=False)
    return tmp_path / "log.txt"


# what comes back


def test_the_same_columns_as_map(stored, tmp_path):
    out = score(stored, Length(), Many(), output_dir=tmp_path, shard_rows=700, batch_size=128)
    features = Many().features(Length().features(stored.features))
    mapped = stored.map(Length(), batched=True, features=Length().features(stored.features))
    mapped = mapped.map(Many(), batched=True, features=features)
    assert out.features == mapped.features and out.split == "train"
    assert out[:] == mapped[:]
    assert out[1999] == mapped[1999] and out[[3, 2400]] == mapped[[3, 2400]]
    assert len(list(tmp_path.glob("part-*.arrow"))) == 4


def test_later_scorers_read_what_earlier_ones_wrote(stored, tmp_path):
    out = score(stored, Widen(), Norm(), output_dir=tmp_path)
    assert out.features["wide"] == datasets.List(datasets.Value("float32"), length=8)
    want = np.asarray(LENGTHS) * np.linalg.norm(np.arange(8))
    np.testing.assert_allclose(out["norm"][:], want, rtol=1e-6)
    facts = json.loads((tmp_path / "part-00000.json").read_text())
    assert facts["reads"] == ["text"]  # not "wide", which is no input, and not "other"


def test_data_is_not_copied_and_files_are_mapped(stored, tmp_path):
    before = pa.total_allocated_bytes()
    out = score(stored, Length(), output_dir=tmp_path, shard_rows=500)
    assert pa.total_allocated_bytes() - before < 1 << 20
    data = [c["filename"] for c in stored.cache_files]
    assert set(data) < {c["filename"] for c in out.cache_files}
    assert (
        out.data.column("text").chunk(0).buffers()[2].address
        == stored.data.column("text").chunk(0).buffers()[2].address
    )


def test_in_memory_and_a_format(tmp_path):
    ds = Dataset.from_dict({"text": TEXTS}).with_format("numpy", columns=["text"])
    out = score(ds, Length(), output_dir=tmp_path, shard_rows=100)
    assert out.format["type"] == "numpy" and out.format["columns"] == ["text", "length"]
    assert out["length"][:].tolist() == LENGTHS
    # 25 parts do not multiply the table when it is sent to workers
    assert len(pickle.dumps(out)) < 2 * len(pickle.dumps(ds)) + 20_000


@pytest.mark.parametrize("rows", [np.arange(N)[::-1], np.arange(0, N, 3), np.array([7, 7, 3, 2400])])
def test_an_indices_mapping_is_kept(stored, tmp_path, rows):
    ds = stored.select(rows)
    out = score(ds, Length(), Widen(), output_dir=tmp_path, shard_rows=300)
    assert out._indices is ds._indices
    assert out["length"][:] == [LENGTHS[i] for i in rows]
    assert out["wide"][:] == [[LENGTHS[i] * k for k in range(8)] for i in rows]
    left = sorted(set(range(N)) - set(rows.tolist()))
    below = out.data.column("length")
    assert below.null_count == len(left) and all(below[i].as_py() is None for i in left[:50])


def test_a_large_layout_goes_to_a_file(stored, tmp_path, monkeypatch):
    import hf_prune.run.join as module

    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 1000)
    ds = stored.shuffle(seed=1)
    for _ in range(2):
        out = score(ds, Length(), output_dir=tmp_path)
    assert len(list(tmp_path.glob("joined-*.arrow"))) == 1
    assert out["length"][:] == [float(len(t)) for t in ds["text"][:]]
    assert out._indices is ds._indices


@pytest.mark.parametrize("shard_rows", [1, 999, 5000])
@pytest.mark.parametrize("batch_size", [1, 7, 5000])
def test_any_batches_and_shards(tmp_path, shard_rows, batch_size):
    ds = Dataset.from_dict({"text": TEXTS[:60]})
    out = score(ds, Length(), output_dir=tmp_path, shard_rows=shard_rows, batch_size=batch_size)
    assert out["length"][:] == LENGTHS[:60]


def test_operations_on_the_result(stored, tmp_path):
    out = score(stored, Length(), Widen(), output_dir=tmp_path, shard_rows=400)
    assert pickle.loads(pickle.dumps(out))[:] == out[:]
    middle = out.select(range(390, 1210))
    again = pickle.loads(pickle.dumps(middle))
    assert again["length"][:] == LENGTHS[390:1210]
    assert again.rename_column("length", "n").remove_columns("wide")["n"][5] == LENGTHS[395]
    assert len(pickle.dumps(out.select(range(10)))) < len(pickle.dumps(out))
    assert out.filter(lambda b: [v > 30 for v in b["length"]], batched=True, num_proc=2).num_rows == sum(
        v > 30 for v in LENGTHS
    )
    cast = out.cast_column("length", datasets.Value("float64"))
    assert pickle.loads(pickle.dumps(cast.select(range(500, 600))))["length"][:] == LENGTHS[500:600]
    out.save_to_disk(str(tmp_path / "copy"))
    assert datasets.load_from_disk(str(tmp_path / "copy"))["length"][:] == LENGTHS
    assert datasets.concatenate_datasets([out, out])["length"][:] == LENGTHS * 2
    assert out.sort("length")["length"][0] == min(LENGTHS)


def test_images_are_not_decoded_unless_read(tmp_path):
    buffer = io.BytesIO()
    PILImage.new("RGB", (4, 4)).save(buffer, "png")
    images = [{"bytes": b"no image at all", "path": None}, {"bytes": buffer.getvalue(), "path": None}]
    ds = Dataset.from_dict(
        {"image": images, "text": ["a", "bb"]},
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )

    @dataclass(frozen=True, eq=False)
    class Bytes(Scorer):
        name: str = "size"

        def score(self, batch, rank):
            return [len(v["bytes"]) for v in batch.arrow("image").to_pylist()]

        def flops(self, batch):
            return float(Batch(batch).n)  # counts rows without looking at them

    out = score(ds, Length(), Bytes(), output_dir=tmp_path)
    assert out["size"][:] == [15.0, float(len(buffer.getvalue()))]
    assert json.loads((tmp_path / "part-00000.json").read_text())["reads"] == ["image", "text"]


def test_two_scorers_share_a_decoded_column(monkeypatch, tmp_path):
    decoded = []
    original = datasets.Image.decode_example
    monkeypatch.setattr(
        datasets.Image, "decode_example", lambda self, *a, **k: decoded.append(1) or original(self, *a, **k)
    )
    ds = Dataset.from_dict(
        {"image": [np.zeros((4, 4), np.uint8)] * 3}, features=datasets.Features({"image": datasets.Image()})
    )

    @dataclass(frozen=True, eq=False)
    class Area(Scorer):
        name: str = "area"

        def score(self, batch, rank):
            assert len(batch.arrow("image")) == batch.n  # stored bytes, though another scorer has decoded it
            return [i.size[0] * i.size[1] for i in batch["image"]]

    out = score(ds, Area(), Area(name="again"), output_dir=tmp_path)
    assert out["again"][:] == [16.0] * 3 and len(decoded) == 3


def test_from_texts_to_prototypes_in_one_call(tiny_bert_folder, tmp_path):
    ds = Dataset.from_dict({"text": ["hello", "the cat sat", "my dog ran", "pay the bank"] * 10})
    embedder = Embedder(tiny_bert_folder)
    embedded = ds.map(embedder, batched=True, features=embedder.features(ds.features))
    prototypes = SSLPrototypes.fit(embedded, k=3)
    out = score(ds, embedder, prototypes, output_dir=tmp_path, shard_rows=7)
    assert out.features["embedding"] == datasets.List(datasets.Value("float32"), length=32)
    mapped = embedded.map(prototypes, batched=True)
    np.testing.assert_allclose(out["ssl_proto"][:], mapped["ssl_proto"][:], atol=1e-6)
    np.testing.assert_allclose(out["embedding"][:], embedded["embedding"][:], atol=1e-6)
    assert Ledger.read(tmp_path).scoring > 0
    assert json.loads((tmp_path / "part-00003.json").read_text())["reads"] == ["text"]


def test_a_dataset_dict(stored, tmp_path):
    both = DatasetDict(train=stored, test=stored.select(range(10)))
    out = score(both, Length(), output_dir=tmp_path)
    assert "length" in out["train"].column_names and out["test"] is both["test"]
    assert (tmp_path / "train" / "manifest.json").exists() and not (tmp_path / "test").exists()
    out = score(both, Length(), output_dir=tmp_path, splits=["train", "test"])
    assert out["test"]["length"][:] == LENGTHS[:10]
    assert score(both, Length(), output_dir=tmp_path, splits="test")["train"] is both["train"]
    with pytest.raises(ValueError, match=r"no split 'train'; there are \['a'\].*splits=\[...\]"):
        score(DatasetDict(a=stored), Length())
    with pytest.raises(ValueError, match="no split 'valid'"):
        score(both, Length(), splits=["train", "valid"])
    with pytest.raises(ValueError, match="is for a DatasetDict"):
        score(stored, Length(), splits="train")


def test_sidecar_and_ledger(stored, tmp_path):
    score(stored, Length(), Widen(), output_dir=tmp_path, shard_rows=1000)
    columns, facts = read_sidecar(tmp_path / "score_columns.json")
    assert set(columns) == {"length", "wide"} and columns["length"].digest == Length().digest
    assert facts["rows"] == N and facts["flops"] == 2.0 * N and facts["seconds"] > 0
    ledger = Ledger.read(tmp_path, training=training_flops(params=10, tokens=100 * N))
    assert ledger.fraction == pytest.approx(2 / 6000)
    assert Ledger.from_json(ledger.to_json()) == ledger
    assert "0.033 % of training" in str(ledger)
    assert "train on all of it" in str(Ledger(1, 2.0, training=1.0))
    assert "training" not in str(Ledger(1, 2.0))
    with pytest.raises(FileNotFoundError, match="no score"):
        Ledger.read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="tokens=-1"):
        training_flops(1, -1)


# what is there is not computed again


def test_a_crash_loses_one_shard(stored, tmp_path, log, monkeypatch):
    monkeypatch.setenv("HF_PRUNE_TEST_FAIL", "1700 ")
    with pytest.raises(RuntimeError, match="told to fail") as caught:
        score(stored, Logged(), output_dir=tmp_path / "out", shard_rows=500, batch_size=100)
    assert "rows 1700 to 1799 (shard 3)" in caught.value.__notes__[0]
    assert len(list((tmp_path / "out").glob("part-*.json"))) == 3
    assert not list((tmp_path / "out").glob("*tmp"))
    monkeypatch.delenv("HF_PRUNE_TEST_FAIL")
    log.unlink()
    out = score(stored, Logged(), output_dir=tmp_path / "out", shard_rows=500, batch_size=100)
    assert [int(c[3].split()[0]) for c in calls(log)] == list(range(1500, 2500, 100))
    assert out["logged"][:] == LENGTHS
    log.unlink()
    score(stored, Logged(), output_dir=tmp_path / "out")  # shard_rows of the folder, though the rule says 1000
    assert calls(log) == []


def damage_cut(folder: Path) -> None:
    part = folder / "part-00001.arrow"
    part.write_bytes(part.read_bytes()[:-300])


def damage_flip(folder: Path) -> None:
    part = folder / "part-00001.arrow"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)


def damage_foreign(folder: Path) -> None:
    for tail in ("arrow", "json"):
        (folder / f"part-00001.{tail}").write_bytes((folder / f"part-00002.{tail}").read_bytes())


def damage_no_json(folder: Path) -> None:
    (folder / "part-00001.json").unlink()


def damage_empty_json(folder: Path) -> None:
    (folder / "part-00001.json").write_text("")


def damage_odd_json(folder: Path) -> None:
    (folder / "part-00001.json").write_text("[1]")


def damage_gone(folder: Path) -> None:
    (folder / "part-00001.arrow").unlink()


@pytest.mark.parametrize(
    "damage",
    [damage_cut, damage_flip, damage_foreign, damage_no_json, damage_empty_json, damage_odd_json, damage_gone],
)
def test_a_bad_part_is_redone(stored, tmp_path, log, damage):
    folder = tmp_path / "out"
    score(stored, Logged(), output_dir=folder, shard_rows=500)
    before = {p.name: p.read_bytes() for p in folder.glob("part-*.arrow")}
    damage(folder)
    log.unlink()
    out = score(stored, Logged(), output_dir=folder)
    assert [c[3].split()[0] for c in calls(log)] == ["500"]
    assert out["logged"][:] == LENGTHS
    assert {p.name: p.read_bytes() for p in folder.glob("part-*.arrow")} == before


def test_changed_input_is_redone_where_it_changed(stored, tmp_path, log):
    folder = tmp_path / "out"
    score(stored, Logged(), output_dir=folder, shard_rows=500)
    log.unlink()
    texts = [*TEXTS]
    texts[1234] += " changed"
    other = Dataset.from_dict({"text": texts, "unread": [0] * N})  # another fingerprint, other columns, in memory
    out = score(other, Logged(), output_dir=folder)
    assert [c[3].split()[0] for c in calls(log)] == ["1000"]
    assert out["logged"][1234] == LENGTHS[1234] + 8


def test_the_digest_is_of_content_not_of_layout(stored, tmp_path, log):
    folder = tmp_path / "out"
    score(stored, Logged(), output_dir=folder)
    log.unlink()
    score(Dataset.from_dict({"text": TEXTS}), Logged(), output_dir=folder)
    reverse = Dataset.from_dict({"text": TEXTS[::-1]}).select(range(N - 1, -1, -1))
    score(reverse, Logged(), output_dir=folder)
    assert calls(log) == []


def test_a_folder_of_another_run(stored, tmp_path):
    score(stored, Length(), output_dir=tmp_path, shard_rows=500)
    for call, words in (
        (lambda **k: score(stored, Widen(), output_dir=tmp_path, **k), "scorers .*Length.* instead of .*Widen"),
        (lambda **k: score(stored.select(range(9)), Length(), output_dir=tmp_path, **k), "rows 2500 instead of 9"),
        (lambda **k: score(stored, Length(), output_dir=tmp_path, shard_rows=9, **k), "shard_rows 500 instead of 9"),
        (lambda **k: score(stored, Length(name="n"), output_dir=tmp_path, **k), "columns .*length.* instead of .*n"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "overwrite=True" in str(caught.value) and "another output_dir" in str(caught.value)
    mine = tmp_path / "notes.txt"
    mine.write_text("mine")
    out = score(stored.select(range(9)), Length(), output_dir=tmp_path, overwrite=True)
    assert out["length"][:] == LENGTHS[:9] and mine.exists()
    assert len(list(tmp_path.glob("part-*.arrow"))) == 1
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="is not a manifest of scores.*overwrite=True"):
        score(stored, Length(), output_dir=tmp_path)


def test_without_a_folder_equal_calls_share_one(stored, log):
    first = score(stored, Logged())
    count = len(calls(log))
    second = score(stored, Logged())
    # the columns that are read are found on the first row
    assert [c[2] for c in calls(log)[count:]] == ["1"]
    assert first._fingerprint == second._fingerprint and first.cache_files == second.cache_files
    other = score(Dataset.from_dict({"text": [t + "!" for t in TEXTS]}), Logged())
    assert other["logged"][:] == [v + 1 for v in LENGTHS] and first["logged"][:] == LENGTHS
    assert str(datasets.config.HF_DATASETS_CACHE) in first.cache_files[-1]["filename"]


def test_a_map_after_it_hits_its_cache_in_another_process(stored, tmp_path):
    path = Path(stored.cache_files[0]["filename"]).parent
    code = f"""
    import datasets, hf_prune
    from run_scorers import Length
    from hf_prune import score
    datasets.disable_progress_bars()
    ds = score(datasets.load_from_disk({str(path)!r}), Length(), output_dir={str(tmp_path)!r})
    import run_scorers
    out = ds.map(Length(name="again"), batched=True)
    print(ds._fingerprint, out.cache_files[0]["filename"])
    """
    first = python(code, env={"PYTHONHASHSEED": "1"}).stdout
    name = Path(first.split()[1])
    stamp = name.stat().st_mtime_ns
    assert python(code, env={"PYTHONHASHSEED": "2"}).stdout == first
    assert name.stat().st_mtime_ns == stamp


def test_a_finished_folder_is_read_without_writing(stored, tmp_path, monkeypatch):
    score(stored, Length(), output_dir=tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    monkeypatch.setattr(os, "replace", lambda *a: pytest.fail("wrote"))
    score(stored, Length(), output_dir=tmp_path)
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32(), 3), pa.list_(pa.float32()), pa.int8(), pa.float16(), pa.bool_()]
)
def test_the_digest_of_numbers(kind):
    from hf_prune.run.shard import Reader, input_digest

    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (40, 3) if pa.types.is_nested(kind) else 40).astype(np.float16)
    rows = list(values) if values.ndim == 2 else (values.astype(bool) if kind == pa.bool_() else values)

    def digest(rows, cuts):
        chunks = [pa.array(list(rows[a:b]), kind) for a, b in zip([0, *cuts], [*cuts, 40], strict=True)]
        table = datasets.table.InMemoryTable(pa.table({"x": pa.chunked_array(chunks)}))
        return input_digest(Reader(Dataset(table), {}), ["x"], 3, 37)

    want = digest(rows, [])
    assert digest(rows, [5, 20, 21]) == want
    assert digest([None, *rows[1:]], [7]) == want  # outside of the shard
    for place in (3, 20, 36):
        other = [*rows]
        other[place] = None
        assert digest(other, [9]) == digest(other, [2, 30]) != want
        other[place] = rows[place] == 0 if kind == pa.bool_() else rows[place] + 1
        assert digest(other, [9]) != want
    if kind == pa.list_(pa.float32()):
        ragged = [*rows]
        ragged[10], ragged[11] = rows[10][:2], np.append(rows[10][2:], rows[11])  # the same numbers, cut elsewhere
        assert digest(ragged, []) != want


def test_memory_does_not_grow_with_rows(tmp_path):
    """12.8 MB of embeddings are read and written, then 128 MB; what is held stays."""
    bench = Path(__file__).parent / "benchmarks" / "bench_run.py"
    spec = importlib.util.spec_from_file_location("bench_run", bench)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_run"] = module
    spec.loader.exec_module(module)
    held = []
    for rows in (50_000, 500_000):
        path = tmp_path / f"{rows}.arrow"
        module.write_data(path, rows, 64)
        done = python(bench, "--arm", "score-write", "--path", path)
        held.append(json.loads(done.stdout.splitlines()[-1])["mb"])
    assert max(held) < 25 and held[1] < held[0] + 12, held


def test_the_bar(stored, tmp_path, capsys):
    datasets.enable_progress_bars()
    try:
        score(stored, Length(), output_dir=tmp_path, shard_rows=1000, desc="Length of texts")
        (tmp_path / "part-00001.json").unlink()
        score(DatasetDict(train=stored), Length(), output_dir=tmp_path.parent / f"{tmp_path.name}-dict")
        shown = capsys.readouterr().err
        assert "Length of texts: 100%" in shown and "2500/2500" in shown and "rows/s" in shown
        assert "Scoring train" in shown
    finally:
        datasets.disable_progress_bars()
    score(stored, Length(), output_dir=tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("slab", [1, 100, 1 << 16])
def test_gathering_ahead_changes_nothing(stored, tmp_path, monkeypatch, slab):
    import hf_prune.run.shard as module

    monkeypatch.setattr(module, "SLAB_ROWS", slab)
    ds = stored.shuffle(seed=5)
    out = score(ds, Length(), Many(), output_dir=tmp_path, shard_rows=600, batch_size=70)
    assert out["length"][:] == [float(len(t)) for t in ds["text"][:]]
    assert out["many_words"][:] == [t[:2] for t in ds["text"][:]]


# what is refused


@dataclass(frozen=True, eq=False)
class Fitted(Length):
    @classmethod
    def fit(cls, ds):
        return cls()


@pytest.mark.parametrize(
    ("scorers", "kind", "words"),
    [
        ([], ValueError, "got no scorers"),
        ([Length], TypeError, r"Length is a class, not a scorer; pass Length\(...\)"),
        ([Fitted], TypeError, r"pass Fitted.fit\(ds\)"),
        ([len], TypeError, "len is no Scorer but a builtin_function_or_method; use ds.map"),
        ([[Length()]], TypeError, "pass them one by one"),
        ([Length(), Length(text="other")], ValueError, "Length and Length both write column 'length'"),
        ([Length(name="other")], ValueError, r"writes \['other'\], which the dataset has already"),
        ([Length(text="nowhere")], KeyError, "'nowhere'.*'other', 'text'"),
    ],
)
def test_scorers_that_are_none(stored, tmp_path, scorers, kind, words):
    with pytest.raises(kind, match=words):
        score(stored, *scorers, output_dir=tmp_path / "out")
    assert not list((tmp_path / "out").glob("part-*"))


def test_rows_that_are_none(stored, tmp_path):
    with pytest.raises(TypeError, match=r"stream.map\(scorer, batched=True\)"):
        score(stored.to_iterable_dataset(), Length())
    with pytest.raises(TypeError, match="needs a Dataset.*not a dict"):
        score({"text": TEXTS}, Length())
    with pytest.raises(ValueError, match="the dataset has no rows"):
        score(stored.select([]), Length())
    with pytest.raises(ValueError, match="split 'test' has no rows"):
        score(DatasetDict(train=stored, test=stored.select([])), Length(), splits=["train", "test"])
    for size in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="batch_size="):
            score(stored, Length(), batch_size=size)
    with pytest.raises(ValueError, match="shard_rows=0"):
        score(stored, Length(), shard_rows=0)


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "no space left; free some"), (errno.EACCES, "not writable; make it so")]
)
def test_a_disk_that_fails(stored, tmp_path, log, monkeypatch, code, words):
    original, count = os.fsync, []

    def fsync(handle):
        count.append(handle)
        if len(count) == 7:  # the manifest, two parts, each with its folder, and then
            raise OSError(code, os.strerror(code))
        original(handle)

    folder = tmp_path / "out"
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=words) as caught:
        score(stored, Logged(), output_dir=folder, shard_rows=500)
    assert str(folder) in str(caught.value) and caught.value.errno == code
    assert len(list(folder.glob("part-*.json"))) == 2 and not list(folder.glob("*tmp"))
    monkeypatch.undo()
    os.environ["HF_PRUNE_TEST_LOG"] = str(log)
    log.unlink()
    assert score(stored, Logged(), output_dir=folder)["logged"][:] == LENGTHS
    assert [c[3].split()[0] for c in calls(log)] == ["1000", "1500", "2000"]


def test_a_folder_that_cannot_be_made(stored, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written to .*name another folder"):
        score(stored, Length(), output_dir=tmp_path / "file" / "out")


def test_a_disk_that_is_full_indeed(tmp_path):
    """A limit on the size of a file stands in for a full disk: the error comes from Arrow's own writes."""
    code = f"""
    import resource, signal
    from datasets import Dataset
    from hf_prune import score
    from run_scorers import Widen
    ds = Dataset.from_dict({{"text": ["x"] * 20_000}})
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    try:
        score(ds, Widen(), output_dir={str(tmp_path / "out")!r}, shard_rows=15_000)
    except OSError as error:
        print(error)
    """
    said = python(code).stdout
    assert "no space left; free some" in said and str(tmp_path) in said
    assert not (tmp_path / "out").exists()


def test_errors_of_a_scorer_stay_its_own(stored, tmp_path):
    @dataclass(frozen=True, eq=False)
    class Lost(Scorer):
        name: str = "lost"

        def score(self, batch, rank):
            raise FileNotFoundError(errno.ENOENT, "no weights", "model.safetensors")

    with pytest.raises(FileNotFoundError, match="no weights") as caught:
        score(stored, Lost(), output_dir=tmp_path)
    assert caught.value.filename == "model.safetensors"


def test_plain_runs_touch_neither_torch_nor_a_process_group(tmp_path):
    code = f"""
    import sys
    from datasets import Dataset
    from hf_prune import score
    from run_scorers import Length
    score(Dataset.from_dict({{"text": ["a"]}}), Length(), output_dir={str(tmp_path)!r})
    state = sys.modules.get("accelerate.state")
    assert not (state and state.PartialState._shared_state)
    torch = sys.modules.get("torch")
    assert not (torch and torch.distributed.is_initialized())
    """
    python(code)


def test_a_plan_reads_itself():
    plan = Plan(2500, 1000, (("a:B", "0" * 32),), {"x": "float32"})
    assert Plan.from_json(plan.to_json({})) == plan
    with pytest.raises(ValueError, match="format 9"):
        Plan.from_json(plan.to_json({}).replace('"format": 1', '"format": 9'))


def test_one_of_several_that_accelerate_takes_for_alone(monkeypatch):
    from accelerate.state import PartialState

    from hf_prune.data.world import World

    monkeypatch.setattr(PartialState, "_shared_state", {})
    PartialState(cpu=True)
    assert World().size == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"one of 2 processes, but accelerate was set up for one"):
        World()
