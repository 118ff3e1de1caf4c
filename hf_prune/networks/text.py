"""Texts to vectors: an encoder for each kind of plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_prune.data.files import reading
from hf_prune.data.types import Side
from hf_prune.models import Model, cached, device_for
from hf_prune.networks.plan import TextPlan, activation_of, config_of, package_model, read_json
from hf_prune.networks.prefix import shortened

if TYPE_CHECKING:
    import torch

NO_TOKENS = "has no tokens"


def text_encoder(model: Model, plan: TextPlan, rank: int | None, budget: int | None) -> TextEncoder:
    """The encoder of a plan; weights come from the per-process cache."""
    kind = {"static": StaticEncoder, "package": PackageEncoder}.get(plan.route, TransformerEncoder)
    return kind(model, plan, rank, budget)


class TextEncoder:
    """Base: what an encoder is made of."""

    def __init__(self, model: Model, plan: TextPlan, rank: int | None = None, budget: int | None = None) -> None:
        self.model, self.plan, self.rank, self.budget = model, plan, rank, budget
        self.width = plan.width

    def encode(self, texts: list[str], bad: dict[int, str], special: bool = True) -> np.ndarray:
        """Give (n, width) float32; rows in `bad` are left NaN, and rows without tokens are put there."""
        raise NotImplementedError

    def flops(self, texts: list[str], special: bool = True) -> float:
        """What `encode` costs for these texts."""
        raise NotImplementedError


class TransformerEncoder(TextEncoder):
    """A transformers folder, or a sentence-transformers one of Transformer, Pooling, Dense, Normalize."""

    head = "AutoModel"  # class of transformers that loads it
    pad: int | None = None  # id of padding; None: the tokenizer's
    equal = False  # only rows of one length go together, so that there is no padding
    ids = False  # texts are lists of token ids, taken as they are
    truncate: Side | None = None  # side of a text that is cut off where it is too long; None: as the tokenizer has it
    cut: Mapping[int, slice] = {}  # of the last texts: the characters that are kept of those that were cut, by row

    def encode(self, texts: list[str], bad: dict[int, str], special: bool = True) -> np.ndarray:

        from hf_prune.networks.torch_passes import first_tensor, forward, micro_batches, pool

        model, plan = self.model, self.plan
        device = device_for(self.rank)
        network = _network(model.load(self.rank, subfolder=plan.subfolder), plan)
        if "pooler" in plan.pooling and network.has_random_pooler:
            raise ValueError(f"{model.label} was saved without its pooler; use pooling='mean' or 'cls'")
        ids, types = self.tokens(texts, special)
        lengths = np.array([len(row) for row in ids], np.int64)
        bad.update({int(row): NO_TOKENS for row in np.flatnonzero(lengths == 0) if int(row) not in bad})
        after = [_step(model, step, device) for step in plan.steps]
        constant = {"use_cache": False} if hasattr(network.config, "use_cache") else {}
        budget, multiple, waste = self.limits(device)

        def run(rows: np.ndarray) -> torch.Tensor:
            inputs = self.collate(rows, ids, types, device)
            mask_tensor = inputs["attention_mask"]
            if plan.route == "projection":
                vectors = first_tensor(network.get_text_features(**inputs), "pooler_output").float()
            elif plan.pooling == ("pooler",):
                vectors = first_tensor(network(**inputs, **constant), "pooler_output").float()
            else:
                states = first_tensor(network(**inputs, **constant), "last_hidden_state")
                vectors = pool(states, mask_tensor, plan.pooling)
            for step in after:
                vectors = step(vectors)
            return vectors

        out = np.full((len(texts), self.width), np.nan, np.float32)
        good = np.array([row for row in range(len(texts)) if row not in bad], np.int64)
        for group in micro_batches(lengths[good], budget, multiple, waste):
            out[good[group]] = forward(run, good[group])
        return out

    def flops(self, texts: list[str], special: bool = True) -> float:
        from hf_prune.networks.torch_passes import micro_batches

        device = device_for(self.rank)
        ids, _ = self.tokens(texts, special)
        lengths = np.array([len(row) for row in ids if len(row)], np.int64)
        linear, square = _flops_of(self.model, self.plan, self.head)
        total = 0.0
        budget, multiple, waste = self.limits(device)
        for rows in micro_batches(lengths, budget, multiple, waste):
            width = _rounded(int(lengths[rows].max()), multiple, self.plan.max_length)
            total += len(rows) * (linear * width + square * width * width)
        return total

    def tokens(self, texts: list[Any], special: bool = True) -> tuple[list[list[int]], list[list[int]] | None]:
        """Token ids of each text, and their types where they say something."""
        if self.ids:
            return [[] if row is None else list(map(int, row)) for row in texts], None
        texts = [self.plan.prompt + text if text else text for text in texts]
        if not texts:
            return [], None
        cut = self.plan.max_length is not None
        tokenizer = tokenizer_of(self.model, self.plan, self.truncate)
        encoded = tokenizer(
            shortened(tokenizer, texts, self.plan.max_length),
            add_special_tokens=special,
            truncation=cut,
            max_length=self.plan.max_length if cut else None,
            return_attention_mask=False,
            verbose=False,
        )
        ids = [row if text else [] for text, row in zip(texts, encoded["input_ids"], strict=True)]
        self.cut = _cut(ids, encoded.encodings, self.plan.max_length)
        types = encoded.get("token_type_ids")
        if types is None or not any(any(row) for row in types):  # zeros are what networks assume
            return ids, None
        return ids, types

    def collate(
        self, rows: np.ndarray, ids: list[list[int]], types: list[list[int]] | None, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """Tensors (rows, longest) of some of the texts, padded on the right."""
        import torch

        lengths = [len(ids[row]) for row in rows]
        width = _rounded(max(lengths), self.limits(device)[1], self.plan.max_length)
        pad = _pad(self.model, self.plan) if self.pad is None else self.pad
        tokens = np.full((len(rows), width), pad, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        kinds = np.zeros_like(tokens)
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            tokens[place, :length] = ids[row]
            mask[place, :length] = 1
            if types is not None:
                kinds[place, :length] = types[row]
        inputs = {"input_ids": tokens, "attention_mask": mask}
        if types is not None:
            inputs["token_type_ids"] = kinds
        return {name: torch.from_numpy(values).to(device) for name, values in inputs.items()}

    def limits(self, device: torch.device) -> tuple[int, int, float]:
        """Tokens a pass, what lengths are rounded up to, and how much shorter than the longest a row may be."""
        if device.type != "cpu":
            budget, multiple, waste = self.budget or 32768, 8, 0.6
        elif self.model.dtype == "float32":  # arithmetic is all: pad as little as can be
            budget, multiple, waste = self.budget or 2048, 1, 0.85
        else:  # a new shape costs a kernel: few lengths
            budget, multiple, waste = self.budget or 4096, 8, 0.95
        return (budget, 1, 1.0) if self.equal else (budget, multiple, waste)


class StaticEncoder(TextEncoder):
    """One vector a token, averaged (model2vec, potion): no network."""

    def encode(self, texts: list[str], bad: dict[int, str], special: bool = True) -> np.ndarray:
        import torch

        device = device_for(self.rank)
        table = self._table(device)
        ids = self._tokens(texts)
        bad.update({row: NO_TOKENS for row, tokens in enumerate(ids) if not len(tokens) and row not in bad})
        after = [_step(self.model, step, device) for step in self.plan.steps]
        out = np.full((len(texts), self.width), np.nan, np.float32)
        good = [row for row in range(len(texts)) if row not in bad]
        if good:
            flat = np.concatenate([ids[row] for row in good])
            starts = np.cumsum([0, *(len(ids[row]) for row in good[:-1])])
            with torch.inference_mode():
                vectors = torch.nn.functional.embedding_bag(
                    torch.from_numpy(flat).to(device), table, torch.from_numpy(starts).to(device), mode="mean"
                ).float()
                for step in after:
                    vectors = step(vectors)
            out[good] = vectors.cpu().numpy()
        return out

    def flops(self, texts: list[str], special: bool = True) -> float:
        return float(sum(len(row) for row in self._tokens(texts))) * self.width

    def _tokens(self, texts: list[str]) -> list[np.ndarray]:
        from tokenizers import Tokenizer

        def load() -> Any:
            tokenizer = Tokenizer.from_file(str(self.model.folder() / self.plan.subfolder / "tokenizer.json"))
            tokenizer.no_padding()
            return tokenizer

        tokenizer = cached(("static tokenizer", self.model.digest), load, light=True)
        texts = [self.plan.prompt + text if text else text for text in texts]
        texts = shortened(tokenizer, texts, self.plan.max_length)
        rows = tokenizer.encode_batch(texts, add_special_tokens=False)
        return [np.array(row.ids[: self.plan.max_length], np.int64) for row in rows]

    def _table(self, device: torch.device) -> torch.Tensor:
        import torch

        key = ("static", self.model.digest, str(device))
        dtype = getattr(torch, self.model.dtype)
        return cached(key, lambda: _static_table(self.model, self.plan).to(device, dtype))


class PackageEncoder(TextEncoder):
    """Any other sentence-transformers folder, through that package."""

    def encode(self, texts: list[str], bad: dict[int, str], special: bool = True) -> np.ndarray:
        out = np.full((len(texts), self.width), np.nan, np.float32)
        good = [row for row in range(len(texts)) if row not in bad]
        if good:
            out[good] = self._encode([texts[row] for row in good])
        return out

    def flops(self, texts: list[str], special: bool = True) -> float:
        from hf_prune.networks.torch_passes import count_flops

        texts = sorted((t for t in texts if t), key=len)
        if not texts:
            return 0.0
        return len(texts) * count_flops(lambda: self._encode([texts[len(texts) // 2]]))

    def _encode(self, texts: list[str]) -> np.ndarray:
        network = package_model(self.model, device_for(self.rank))
        vectors: np.ndarray = network.encode(
            texts,
            prompt=self.plan.prompt or None,
            batch_size=32,
            show_progress_bar=False,
            convert_to_numpy=True,
            normalize_embeddings=self.plan.normalized,
        )
        return vectors


def _cut(ids: list[list[int]], encodings: list[Any] | None, most: int | None) -> dict[int, slice]:
    """The characters that are kept of each text that was cut, by row; of a slow tokenizer nobody knows which."""
    kept = {}
    for row, tokens in enumerate(ids):
        if most is None or len(tokens) < most or (encodings and not encodings[row].overflowing):
            continue
        spans = [(start, end) for start, end in encodings[row].offsets if end] if encodings else []
        kept[row] = slice(min(start for start, _ in spans), max(end for _, end in spans)) if spans else slice(None)
    return kept


def tokenizer_of(model: Model, plan: TextPlan, truncate: Side | None = None) -> Any:
    """The tokenizer of a folder; lower-casing, where the folder asks for it, as sentence-transformers does it."""
    tokenizer = model.processor("AutoTokenizer", plan.subfolder)
    side = truncate or tokenizer.truncation_side
    folder = model.folder() / plan.subfolder

    def load() -> Any:
        return type(tokenizer).from_pretrained(folder, truncation_side=side)

    if not plan.lower:
        key = ("tokenizer", side, model.digest, plan.subfolder)
        return tokenizer if side == tokenizer.truncation_side else cached(key, load, light=True)

    def lower() -> Any:
        from tokenizers import normalizers

        own = load()
        backend = own.backend_tokenizer
        if '"lowercase":true' not in backend.to_str().replace(" ", ""):
            there = [] if backend.normalizer is None else [backend.normalizer]
            backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *there])
        return own

    return cached(("lower tokenizer", side, model.digest, plan.subfolder), lower, light=True)


def chat_template(model: Model, plan: TextPlan) -> Callable[[list[dict[str, Any]]], str] | None:
    """Renders a chat by the tokenizer's template, if there is one."""
    tokenizer = tokenizer_of(model, plan)
    if not tokenizer.chat_template:
        return None
    return lambda turns: str(tokenizer.apply_chat_template(turns, tokenize=False))


def _network(network: Any, plan: TextPlan) -> Any:
    """The part that reads texts: of an encoder with a decoder, the encoder."""
    if plan.route == "transformers" and network.config.is_encoder_decoder:
        encoder = network.get_encoder()
        encoder.has_random_pooler = False
        return encoder
    return network


def _step(model: Model, step: tuple[str, str], device: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    kind, path = step
    if kind == "normalize":
        return lambda x: torch.nn.functional.normalize(x, dim=-1)

    def load() -> torch.nn.Module:
        from safetensors.torch import load_file

        folder = model.folder() / path
        settings = read_json(folder / "config.json")
        with reading(folder, "model's file", "get the model anew"):
            weights = {k.removeprefix("linear."): v for k, v in load_file(folder / "model.safetensors").items()}
            linear = torch.nn.Linear(settings["in_features"], settings["out_features"], settings.get("bias", True))
            linear.load_state_dict(weights)
            activation = getattr(torch.nn, str(activation_of(settings)))()
        return torch.nn.Sequential(linear, activation).eval().to(device)

    return cached(("dense", model.digest, path, str(device)), load, light=True)


def _flops_of(model: Model, plan: TextPlan, head: str) -> tuple[float, float]:
    """Operations of a row of t tokens are a t + b t^2: both counted on a network without weights, at two lengths."""

    def count() -> tuple[float, float]:
        import torch

        from hf_prune.networks.torch_passes import count_flops, without_weights

        whole = without_weights(config_of(model, plan.subfolder), model.trust_remote_code, head)
        encodes = head == "AutoModel" and plan.route != "projection"
        network = _network(whole, plan) if encodes else whole
        call = network.get_text_features if plan.route == "projection" else network
        lengths = (8, 24)
        inputs = [torch.ones((1, length), dtype=torch.int64, device="meta") for length in lengths]
        counted = [count_flops(partial(call, input_ids=ids)) for ids in inputs]
        (s, t), (f, g) = lengths, counted
        square = (g / t - f / s) / (t - s)
        return f / s - square * s, square

    return cached(("flops", model.digest, plan.subfolder, head), count, light=True)


def _pad(model: Model, plan: TextPlan) -> int:
    """The id of padding: masked everywhere, so any will do where the tokenizer has none."""
    found = tokenizer_of(model, plan).pad_token_id
    return 0 if found is None else int(found)


def _rounded(length: int, multiple: int, limit: int | None) -> int:
    rounded = -(-length // multiple) * multiple
    return max(length, min(rounded, limit)) if limit else rounded


def _static_table(model: Model, plan: TextPlan) -> torch.Tensor:
    from safetensors.torch import load_file

    weights = load_file(model.folder() / plan.subfolder / "model.safetensors")
    if "embedding.weight" in weights:
        return weights["embedding.weight"].float()
    table = weights["embeddings"].float()
    if "mapping" in weights:
        table = table[weights["mapping"].long()]
    if "weights" in weights:
        table = table * weights["weights"].float()[:, None]
    return table
