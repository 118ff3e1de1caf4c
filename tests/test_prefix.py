"""Long texts are cut before they are tokenised, and no token that is read is another."""

from __future__ import annotations

import functools
import random
import time

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import hf_prune as hp
from hf_prune.networks.prefix import shortened

ODD = ["1234567", "3.14", "x=1;", "don't", "<s>", "<|end|>", "!!!", "e\u0301\u0302", "👩\u200d👧", "ΣΑΣ", "▁"]
LETTERS = "aaabcdeeghiilmnoorsttuyéßüжд漢字かé"


def words(rng: random.Random, characters: int) -> str:
    """Words of one to forty letters, long runs, numbers, marks of several kinds, white space of several kinds."""
    parts: list[str] = []
    length = 0
    while length < characters:
        kind = rng.random()
        if kind < 0.8:
            part = "".join(rng.choices(LETTERS, k=rng.randint(1, 9)))
        elif kind < 0.9:
            part = rng.choice(ODD)
        elif kind < 0.97:
            part = "".join(rng.choices(LETTERS + "0123456789-_", k=rng.randint(20, 60)))
        else:
            part = rng.choice("ab1.") * rng.choice([30, 300])
        parts += [part, rng.choice([" ", " ", " ", " ", "  ", "\n", "\n\n  ", "\t", "", "\u3000", " \r\n"])]
        length += len(part) + 1
    return "".join(parts)


CORPUS = [words(random.Random(i), 1500) for i in range(5)]
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
FROM_THE_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))| ?[^\s\p{N}]+|\s+(?!\S)|\s+"


def trained(model: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    model.train_from_iterator(CORPUS, trainer)
    return model


def byte_level(pattern: str) -> Tokenizer:
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(model, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))


def word_piece() -> Tokenizer:
    model = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=50))
    model.normalizer = normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    return trained(model, trainer)


def unigram(split: bool) -> Tokenizer:
    model = Tokenizer(models.Unigram())
    model.normalizer = normalizers.NFKC()
    model.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    trainer = trainers.UnigramTrainer(vocab_size=250, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    model = trained(model, trainer)
    model.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    return model


def llama() -> Tokenizer:
    """BPE over the whole text, as of SentencePiece: there is no pre-tokenizer."""
    model = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=False))
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
    model = trained(model, trainer)
    model.pre_tokenizer = None
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return model


def over_spaces() -> Tokenizer:
    """BPE whose tokens reach over spaces: nothing confines them."""
    model = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False, max_token_length=9)
    return trained(model, trainer)


TOKENIZERS = {
    "gpt2": lambda: byte_level(GPT2),
    "cl100k": lambda: byte_level(CL100K),
    "digits from the right": lambda: byte_level(FROM_THE_RIGHT),
    "bert": word_piece,
    "t5": lambda: unigram(True),
    "unigram in one piece": lambda: unigram(False),
    "llama": llama,
    "over spaces": over_spaces,
}


@functools.cache
def written(name: str) -> str:
    return TOKENIZERS[name]().to_str()


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    """Anew for each test, for some change it."""
    found = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(written(request.param)))
    found.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": [AddedToken("<|end|>", rstrip=True)]})
    return request.param, found


def test_the_first_tokens_are_those_of_the_whole_text(tokenizer):
    name, fast = tokenizer
    rng = random.Random(1)
    texts = [words(rng, 6000) for _ in range(9)]
    texts += ["a" * 5000, "1" * 4000 + " " + words(rng, 2000), words(rng, 60) + "ab" * 4000, " " * 5000, "漢字" * 2500]
    texts += ["short", ""]
    for most in (1, 4, 40):
        cut = shortened(fast, texts, most)
        assert all(text.startswith(part) for text, part in zip(texts, cut, strict=True))
        found, whole = (fast(t, add_special_tokens=False, verbose=False)["input_ids"] for t in (cut, texts))
        assert [ids[: most + 1] for ids in found] == [ids[: most + 1] for ids in whole]
        options = {"truncation": True, "max_length": most + 2, "verbose": False}
        assert fast(cut, **options)["input_ids"] == fast(texts, **options)["input_ids"]
        short = [len(part) < len(text) / 2 for text, part in zip(texts[:9], cut[:9], strict=True)]
        assert sum(short) >= (0 if name == "over spaces" else 8), (most, sum(short))
    raw = fast.backend_tokenizer
    raw.no_truncation()
    assert shortened(raw, texts, 4) == shortened(fast, texts, 4)
    assert shortened(fast, texts, None) == texts


def test_what_cannot_be_cut_is_not(tokenizer):
    name, fast = tokenizer
    text = words(random.Random(2), 6000)
    fast.truncation_side = "left"
    assert shortened(fast, [text], 4) == [text]
    fast.truncation_side = "right"
    if name != "over spaces":
        assert shortened(fast, [text], 4) != [text]
    fast.add_tokens([AddedToken("two words")])
    assert shortened(fast, [text], 4) == [text]
    assert shortened(lambda texts: None, [text], 4) == [text]  # a slow tokenizer


def test_scorers_read_long_texts_as_they_did(tiny_bert_folder, tiny_gpt2_folder, monkeypatch):
    """Cut or not, the same columns; and a text a hundred times as long does not take a hundred times as long."""
    from hf_prune.networks import text as texts
    from hf_prune.scorers import ask_llm, perplexity

    vocabulary = "the a card pay bank when how my is not why cat dog sat on mat and ran far".split()
    long = " ".join(np.random.default_rng(0).choice(vocabulary, 400_000))
    rows = {"text": [long[:20_000], "the cat sat", long[7:40_000]]}
    scorers = [
        hp.Embedder(tiny_bert_folder),
        hp.Perplexity(tiny_gpt2_folder, max_tokens=12, bits_per_byte=True, n_tokens=True),
        hp.AskLLM(tiny_gpt2_folder, prompt="is {text} not far", yes="the", no="a"),
        hp.Uncertainty(tiny_gpt2_folder, max_length=20),
    ]
    found = [scorer(rows) for scorer in scorers]
    for scorer in scorers:
        seconds = []
        for text in (long[:20_000], long):
            begin = time.process_time()
            scorer({"text": [text] * 3})
            seconds.append(time.process_time() - begin)
        assert seconds[1] < 10 * seconds[0], (type(scorer).__name__, seconds)
    for module in (texts, perplexity, ask_llm):
        monkeypatch.setattr(module, "shortened", lambda tokenizer, texts, most: texts)
    for scorer, columns in zip(scorers, found, strict=True):
        for name, values in scorer(rows).items():
            np.testing.assert_array_equal(values, columns[name])
