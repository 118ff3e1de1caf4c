"""Texts to vectors: what the model's folder says about it, and the encoders for each kind of folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .models import Model, cached, device_for

if TYPE_CHECKING:
    import torch

NO_TOKENS = "has no tokens"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_T5_LIKE = ("t5", "mt5", "umt5", "longt5")


@dataclass(frozen=True)
class TextPlan:
    """How texts become vectors, as the model's folder and the user say it."""

    route: str  # "transformers", "projection" (CLIP and its like), "static", or "package" (sentence_transformers)
    width: int
    pooling: tuple[str, ...]
    steps: tuple[tuple[str, str], ...]  # ("dense", subfolder) or ("normalize", "")
    max_length: int | None
    prompt: str = ""
    lower: bool = False
    subfolder: str = ""

    @property
    def normalized(self) -> bool:
        return bool(self.steps) and self.steps[-1][0] == "normalize"


def text_plan(
    model: Model, pooling: str, normalize: bool | None, max_length: int | None, prompt_name: str | None
) -> TextPlan:
    """Read the plan from the model's folder, once per process.

    Raises:
        ValueError: the model embeds no texts; the length or the prompt is not one of the model's.
        ImportError: the folder needs `sentence_transformers`, which is not installed.
    """
    key = ("text plan", model.digest, pooling, normalize, max_length, prompt_name)
    return cached(key, lambda: _text_plan(model, pooling, normalize, max_length, prompt_name), light=True)


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder can read texts."""
    return (folder / "modules.json").exists() or any((folder / name).exists() for name in _TOKENIZERS)


def config_of(model: Model, subfolder: str = "") -> Any:
    """The transformers config of a folder, once per process."""
    from transformers import AutoConfig

    def read() -> Any:
        return AutoConfig.from_pretrained(model.folder() / subfolder, trust_remote_code=model.trust_remote_code)

    return cached(("config", model.digest, subfolder), read, light=True)


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

    def encode(self, texts: list[str], bad: dict[int, str], special: bool = True) -> np.ndarray:
        import torch

        from ._embed_torch import first_tensor, forward, micro_batches, pool

        model, plan = self.model, self.plan
        device = device_for(self.rank)
        network = _network(model.load(self.rank, subfolder=plan.subfolder), plan)
        if "pooler" in plan.pooling and network.has_random_pooler:
            raise ValueError(f"{model.label} was saved without its pooler; use pooling='mean' or 'cls'")
        ids, types = self._tokens(texts, special)
        lengths = np.array([len(row) for row in ids], np.int64)
        bad.update({int(row): NO_TOKENS for row in np.flatnonzero(lengths == 0) if int(row) not in bad})
        after = [_step(model, step, device) for step in plan.steps]
        constant = {"use_cache": False} if hasattr(network.config, "use_cache") else {}
        pad = _pad(model, plan)

        def run(rows: np.ndarray) -> torch.Tensor:
            width = _rounded(int(lengths[rows].max()), self._multiple(device), plan.max_length)
            tokens = np.full((len(rows), width), pad, np.int64)
            mask = np.zeros((len(rows), width), np.int64)
            for place, row in enumerate(rows):
                tokens[place, : lengths[row]] = ids[row]
                mask[place, : lengths[row]] = 1
            mask_tensor = torch.from_numpy(mask).to(device)
            inputs: dict[str, Any] = {"input_ids": torch.from_numpy(tokens).to(device), "attention_mask": mask_tensor}
            if types is not None:
                kinds = np.zeros_like(tokens)
                for place, row in enumerate(rows):
                    kinds[place, : lengths[row]] = types[row]
                inputs["token_type_ids"] = torch.from_numpy(kinds).to(device)
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
        for group in micro_batches(lengths[good], self._budget(device), self._multiple(device)):
            forward(run, good[group], out)
        return out

    def flops(self, texts: list[str], special: bool = True) -> float:
        from ._embed_torch import micro_batches

        device = device_for(self.rank)
        ids, _ = self._tokens(texts, special)
        lengths = np.array([len(row) for row in ids if len(row)], np.int64)
        linear, square = _flops_of(self.model, self.plan)
        total = 0.0
        for rows in micro_batches(lengths, self._budget(device), self._multiple(device)):
            width = _rounded(int(lengths[rows].max()), self._multiple(device), self.plan.max_length)
            total += len(rows) * (linear * width + square * width * width)
        return total

    def _tokens(self, texts: list[str], special: bool) -> tuple[list[list[int]], list[list[int]] | None]:
        texts = [self.plan.prompt + text if text else text for text in texts]
        if not texts:
            return [], None
        cut = self.plan.max_length is not None
        encoded = tokenizer_of(self.model, self.plan)(
            texts,
            add_special_tokens=special,
            truncation=cut,
            max_length=self.plan.max_length if cut else None,
            return_attention_mask=False,
            verbose=False,
        )
        ids = [row if text else [] for text, row in zip(texts, encoded["input_ids"], strict=True)]
        types = encoded.get("token_type_ids")
        if types is None or not any(any(row) for row in types):  # zeros are what networks assume
            return ids, None
        return ids, types

    def _budget(self, device: torch.device) -> int:
        return self.budget or (2048 if device.type == "cpu" else 32768)

    def _multiple(self, device: torch.device) -> int:
        return 1 if device.type == "cpu" and self.model.dtype == "float32" else 8


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
        from ._embed_torch import count_flops

        texts = sorted((t for t in texts if t), key=len)
        if not texts:
            return 0.0
        return len(texts) * count_flops(lambda: self._encode([texts[len(texts) // 2]]))

    def _encode(self, texts: list[str]) -> np.ndarray:
        network = _package_model(self.model, device_for(self.rank))
        vectors: np.ndarray = network.encode(
            texts,
            prompt=self.plan.prompt or None,
            batch_size=32,
            show_progress_bar=False,
            convert_to_numpy=True,
            normalize_embeddings=self.plan.normalized,
        )
        return vectors


def tokenizer_of(model: Model, plan: TextPlan) -> Any:
    """The tokenizer of a folder; lower-casing, where the folder asks for it, as sentence-transformers does it."""
    tokenizer = model.processor("AutoTokenizer", plan.subfolder)
    if not plan.lower:
        return tokenizer

    def lower() -> Any:
        from tokenizers import normalizers

        own = type(tokenizer).from_pretrained(model.folder() / plan.subfolder)
        backend = own.backend_tokenizer
        if '"lowercase":true' not in backend.to_str().replace(" ", ""):
            there = [] if backend.normalizer is None else [backend.normalizer]
            backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *there])
        return own

    return cached(("lower tokenizer", model.digest, plan.subfolder), lower, light=True)


def _text_plan(
    model: Model, pooling: str, normalize: bool | None, max_length: int | None, prompt_name: str | None
) -> TextPlan:
    folder = model.folder()
    if not has_tokenizer(folder):
        what = "an image model" if (folder / "preprocessor_config.json").exists() else "no model of texts"
        raise ValueError(
            f"{model.label} has no tokenizer: it is {what}; name a text model, or an image column with kind='image'"
        )
    prompt = _prompt(model, folder, prompt_name)
    if (folder / "modules.json").exists():
        plan = _sentence_plan(model, folder, pooling, max_length, prompt)
    else:
        plan = _plain_plan(model, pooling, max_length, prompt)
    if normalize is None:
        return plan
    if plan.route == "package" and not normalize:
        raise ValueError(f"{model.label} runs its own sentence-transformers modules; leave normalize out, or say True")
    steps = plan.steps[:-1] if plan.normalized else plan.steps
    return replace(plan, steps=(*steps, ("normalize", "")) if normalize else steps)


def _plain_plan(model: Model, pooling: str, max_length: int | None, prompt: str) -> TextPlan:
    config = config_of(model)
    tower = config.get_text_config()
    modes = ("mean",) if pooling == "auto" else (pooling,)
    length = _max_length(model, "", max_length)
    if hasattr(config, "projection_dim") and hasattr(config, "vision_config"):
        return TextPlan("projection", int(config.projection_dim), ("projection",), (), length, prompt)
    return TextPlan("transformers", int(tower.hidden_size), modes, (), length, prompt)


def _sentence_plan(model: Model, folder: Path, pooling: str, max_length: int | None, prompt: str) -> TextPlan:
    modules = [(m["type"], m["path"] if m["path"] != "." else "") for m in _json(folder / "modules.json")]
    kinds = [t.rsplit(".", 1)[-1] if t.startswith("sentence_transformers.") else t for t, _ in modules]
    first = modules[0][1]
    steps: list[tuple[str, str]] = []
    modes: tuple[str, ...] = ("mean",)
    rest = 1
    if kinds[0] == "StaticEmbedding" and pooling == "auto":
        width = _static_width(folder / first)
        route, length, lower = "static", max_length, False
    elif kinds[0] == "Transformer" and kinds[1:2] == ["Pooling"] and (own := _transformer(model, folder, first)):
        route, (limit, lower) = "transformers", own
        config = config_of(model, first)
        settings = _json(folder / modules[1][1] / "config.json")
        modes = _pooling_modes(settings) if pooling == "auto" else (pooling,)
        if prompt and not settings.get("include_prompt", True):
            return _package_plan(model, prompt, pooling, max_length)
        length = _max_length(model, first, max_length or limit, tell=max_length is not None)
        width = int(config.get_text_config().hidden_size) * len(modes)
        rest = 2
    else:
        return _package_plan(model, prompt, pooling, max_length)
    for kind, (_, path) in zip(kinds[rest:], modules[rest:], strict=True):
        settings = _json(folder / path / "config.json")
        other_input = settings.get("module_input_name", "sentence_embedding") != "sentence_embedding"
        if kind == "Normalize" and not other_input:
            steps.append(("normalize", ""))
        elif kind == "Dense" and not other_input and not settings.get("use_residual"):
            activation = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
            if not activation.startswith("torch.nn.modules."):
                return _package_plan(model, prompt, pooling, max_length)
            width = int(settings["out_features"])
            steps.append(("dense", path))
        else:
            return _package_plan(model, prompt, pooling, max_length)
    return TextPlan(route, width, modes, tuple(steps), length, prompt, lower, first)


def _transformer(model: Model, folder: Path, subfolder: str) -> tuple[int | None, bool] | None:
    """Length and lower-casing of a Transformer module; None if it does what only the package knows."""
    files = sorted((folder / subfolder).glob("sentence_*_config.json"))
    settings = _json(files[0]) if files else {}
    modality = settings.get("modality_config", {"text": {"method_output_name": "last_hidden_state"}})
    plain = (
        settings.get("transformer_task", "feature-extraction") == "feature-extraction"
        and settings.get("module_output_name", "token_embeddings") == "token_embeddings"
        and list(modality) == ["text"]
        and modality["text"].get("method", "forward") == "forward"
        and modality["text"].get("method_output_name") == "last_hidden_state"
        and not settings.get("processing_kwargs")
        and not settings.get("query_expansion")
    )
    config = config_of(model, subfolder)
    unlike = config.is_encoder_decoder and config.model_type not in _T5_LIKE
    chat = "modality_config" not in settings and bool(model.processor("AutoTokenizer", subfolder).chat_template)
    if not plain or unlike or chat or hasattr(config, "vision_config"):
        return None
    return settings.get("max_seq_length"), bool(settings.get("do_lower_case", False))


def _package_plan(model: Model, prompt: str, pooling: str, max_length: int | None) -> TextPlan:
    if pooling != "auto" or max_length is not None:
        raise ValueError(
            f"{model.label} has sentence-transformers modules of its own, which pool and cut in their own way; "
            "leave pooling and max_length out"
        )
    network = _package_model(model, device_for())
    width = int(network.get_embedding_dimension())
    return TextPlan("package", width, ("own modules",), (), None, prompt)


def _package_model(model: Model, device: Any) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            f"{model.label} has modules that need sentence-transformers; pip install 'hf_prune[st]'"
        ) from error
    import torch

    def load() -> Any:
        return SentenceTransformer(
            str(model.folder()),
            device=str(device),
            trust_remote_code=model.trust_remote_code,
            model_kwargs={"dtype": getattr(torch, model.dtype)},
        ).eval()

    return cached(("sentence_transformers", model.digest, str(device)), load)


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

        from .models import import_name

        folder = model.folder() / path
        settings = _json(folder / "config.json")
        weights = {k.removeprefix("linear."): v for k, v in load_file(folder / "model.safetensors").items()}
        linear = torch.nn.Linear(settings["in_features"], settings["out_features"], settings.get("bias", True))
        linear.load_state_dict(weights)
        name = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
        activation = import_name(":".join(name.rsplit(".", 1)))()
        return torch.nn.Sequential(linear, activation).eval().to(device)

    return cached(("dense", model.digest, path, str(device)), load, light=True)


def _flops_of(model: Model, plan: TextPlan) -> tuple[float, float]:
    """Operations of a row of t tokens are a t + b t^2: both counted on a network without weights, at two lengths."""

    def count() -> tuple[float, float]:
        import torch

        from ._embed_torch import count_flops, without_weights

        whole = without_weights(config_of(model, plan.subfolder))
        network = whole if plan.route == "projection" else _network(whole, plan)
        call = network.get_text_features if plan.route == "projection" else network
        lengths = (8, 24)
        inputs = [torch.ones((1, length), dtype=torch.int64, device="meta") for length in lengths]
        counted = [count_flops(partial(call, input_ids=ids)) for ids in inputs]
        (s, t), (f, g) = lengths, counted
        square = (g / t - f / s) / (t - s)
        return f / s - square * s, square

    return cached(("flops", model.digest, plan.subfolder), count, light=True)


def _max_length(model: Model, subfolder: str, wanted: int | None, tell: bool = True) -> int | None:
    """What is cut where: at what was asked for, else at what tokenizer and positions of the network allow."""
    config = config_of(model, subfolder).get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    limit = int(positions) if isinstance(positions, int) and positions > 0 else None
    if limit and "roberta" in config.model_type or config.model_type in ("camembert", "mpnet"):
        limit = int(limit or 514) - int(config.pad_token_id or 0) - 1  # positions begin after the padding's
    if wanted is not None:
        if limit is not None and wanted > limit and tell:
            raise ValueError(f"max_length={wanted} is more than the {limit} positions of {model.label}; lower it")
        return wanted if limit is None else min(wanted, limit)
    tokenizer = model.processor("AutoTokenizer", subfolder)
    allowed = [n for n in (limit, int(tokenizer.model_max_length)) if n is not None and n < 10**9]
    return min(allowed) if allowed else None


def _pad(model: Model, plan: TextPlan) -> int:
    """The id of padding: masked everywhere, so any will do where the tokenizer has none."""
    found = tokenizer_of(model, plan).pad_token_id
    return 0 if found is None else int(found)


def _rounded(length: int, multiple: int, limit: int | None) -> int:
    rounded = -(-length // multiple) * multiple
    return max(length, min(rounded, limit)) if limit else rounded


def _prompt(model: Model, folder: Path, name: str | None) -> str:
    settings = _json(folder / "config_sentence_transformers.json")
    prompts = settings.get("prompts") or {}
    if name is not None and name not in prompts:
        raise ValueError(f"{model.label} has no prompt {name!r}, only {sorted(prompts)}; leave prompt_name out")
    name = name or settings.get("default_prompt_name")
    return str(prompts.get(name) or "") if name else ""


def _pooling_modes(settings: dict[str, Any]) -> tuple[str, ...]:
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _LEGACY_POOLING.items() if settings.get(key)] or ["mean"]
    return (modes,) if isinstance(modes, str) else tuple(modes)


def _static_width(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as file:
        name = "embedding.weight" if "embedding.weight" in file.keys() else "embeddings"  # noqa: SIM118
        return int(file.get_slice(name).get_shape()[1])


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


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
