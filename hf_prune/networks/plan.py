"""How texts become vectors, as a model's folder says it: sentence-transformers modules, or plain transformers."""

from __future__ import annotations

import importlib.metadata
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_prune.checks import check_inside
from hf_prune.data import files as _files
from hf_prune.models import Model, cached

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ST_VERSION = 6  # of sentence-transformers: earlier ones run what a folder on this machine names
MAX_SETTINGS = 1 << 20  # bytes of a file of settings; longer ones are vocabularies
MODULES = (
    *("Asym", "BoW", "CLIPModel", "CNN", "Dense", "Dropout", "LayerNorm", "LSTM", "Normalize", "Pooling", "Router"),
    *("StaticEmbedding", "Transformer", "WeightedLayerPooling", "WordEmbeddings", "WordWeights"),
)
ACTIVATIONS = (
    *("CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid", "Mish"),
    *("Hardshrink", "LogSoftmax", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softmax", "Softmin", "Softplus"),
    *("Softshrink", "Softsign", "Tanh", "Tanhshrink"),
)
_MODULE = re.compile(
    r"sentence_transformers\.(?:models|base\.modules|sentence_transformer\.modules)(?:\.\w+)?\.(?P<kind>\w+)"
)
_ACTIVATION = re.compile(r"torch\.nn\.(?:modules\.(?:\w+\.)?)?(?P<kind>\w+)")
_TOKENIZER = re.compile(r"sentence_transformers\.(?:models|sentence_transformer\.modules)\.tokenizer(\.\w+)+")
_FOLDER = ("model's file", "get the model anew")
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
    modules = modules_of(folder)
    kinds = [kind_of(module) or module for module, _ in modules]
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
        settings = read_json(folder / modules[1][1] / "config.json")
        modes = _pooling_modes(settings) if pooling == "auto" else (pooling,)
        if prompt and not settings.get("include_prompt", True):
            return _package_plan(model, prompt, pooling, max_length)
        length = _max_length(model, first, max_length or limit, tell=max_length is not None)
        width = int(config.get_text_config().hidden_size) * len(modes)
        rest = 2
    else:
        return _package_plan(model, prompt, pooling, max_length)
    for kind, (_, path) in zip(kinds[rest:], modules[rest:], strict=True):
        settings = read_json(folder / path / "config.json")
        other_input = settings.get("module_input_name", "sentence_embedding") != "sentence_embedding"
        if kind == "Normalize" and not other_input:
            steps.append(("normalize", ""))
        elif kind == "Dense" and not other_input and not settings.get("use_residual"):
            if activation_of(settings) is None:
                return _package_plan(model, prompt, pooling, max_length)
            with _files.reading(folder / path, *_FOLDER):
                width = int(settings["out_features"])
            steps.append(("dense", path))
        else:
            return _package_plan(model, prompt, pooling, max_length)
    return TextPlan(route, width, modes, tuple(steps), length, prompt, lower, first)


def _transformer(model: Model, folder: Path, subfolder: str) -> tuple[int | None, bool] | None:
    """Length and lower-casing of a Transformer module; None if it does what only the package knows."""
    files = sorted((folder / subfolder).glob("sentence_*_config.json"))
    settings = read_json(files[0]) if files else {}
    modality = settings.get("modality_config", {"text": {"method_output_name": "last_hidden_state"}})
    with _files.reading(folder / subfolder, *_FOLDER):
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
    network = package_model(model, "cpu")  # asked by the parent, which must not start CUDA
    width = int(network.get_embedding_dimension())
    return TextPlan("package", width, ("own modules",), (), None, prompt)


def package_model(model: Model, device: Any) -> Any:
    """The whole folder as `sentence_transformers` loads it.

    Raises:
        ImportError: the package is not installed, or too old to load what a stranger made.
        ValueError: the folder names code, and the model does not say `trust_remote_code=True`.
    """
    try:
        from sentence_transformers import SentenceTransformer

        version = importlib.metadata.version("sentence-transformers")
    except ImportError as error:
        raise ImportError(
            f"{model.label} has modules that need sentence-transformers; pip install 'hf_prune[st]'"
        ) from error
    if int(version.split(".")[0]) < ST_VERSION:
        raise ImportError(
            f"sentence-transformers {version} runs code that a model's folder names; pip install "
            f"'sentence-transformers>={ST_VERSION}'"
        )
    import torch

    def load() -> Any:
        if not model.trust_remote_code:
            check_modules(model.folder(), model.label)
        return SentenceTransformer(
            str(model.folder()),
            device=str(device),
            trust_remote_code=model.trust_remote_code,
            model_kwargs={"dtype": getattr(torch, model.dtype)},
        ).eval()

    return cached(("sentence_transformers", model.digest, str(device)), load)


def modules_of(folder: Path) -> list[tuple[str, str]]:
    """Types and subfolders of the modules of a sentence-transformers folder.

    Raises:
        ValueError: `modules.json` lists none, or paths out of the folder.
    """
    path = folder / "modules.json"
    with _files.reading(path, *_FOLDER):
        found = _json(path)
        modules = [(str(m["type"]), m["path"] if m["path"] != "." else "") for m in found]
        for _, below in modules:
            if below:
                check_inside(folder, below)
        if not modules:
            raise ValueError("it lists no modules")
        return modules
    raise AssertionError  # `reading` raises


def kind_of(module: str) -> str | None:
    """Class of a module of sentence-transformers itself; None if the folder brings its own.

    >>> kind_of("sentence_transformers.models.Pooling"), kind_of("os.system")
    ('Pooling', None)
    """
    found = _MODULE.fullmatch(module)
    return found["kind"] if found and found["kind"] in MODULES else None


def activation_of(settings: dict[str, Any]) -> str | None:
    """Class in `torch.nn` of a Dense module's activation; None if it is none of the usual ones.

    >>> activation_of({"activation_function": "torch.nn.modules.activation.GELU"}), activation_of({})
    ('GELU', 'Tanh')
    """
    name = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    found = _ACTIVATION.fullmatch(name) if isinstance(name, str) else None
    return found["kind"] if found and found["kind"] in ACTIVATIONS else None


def check_modules(folder: Path, label: str) -> None:
    """Refuse a sentence-transformers folder that names other code than the package's own modules.

    Raises:
        ValueError: it does; the message says what.
    """
    named = [module for module, _ in modules_of(folder) if kind_of(module) is None]
    for path in sorted(folder.rglob("*.json")):
        settings = _json(path) if path.stat().st_size < MAX_SETTINGS else {}
        if isinstance(settings, dict):
            named += _named(settings)
    if named:
        raise ValueError(
            f"{label} names code that would be run: {', '.join(sorted(set(named)))}; if you trust who made it, pass "
            "Model(..., trust_remote_code=True)"
        )


def _named(settings: dict[str, Any]) -> list[str]:
    """What the settings of a module name that is no part of sentence-transformers, or no usual activation."""
    found = []
    if "activation_function" in settings and activation_of(settings) is None:
        found.append(str(settings["activation_function"]))
    types = settings.get("types")  # of the modules in a Router
    for module in types.values() if isinstance(types, dict) else ():
        if not isinstance(module, str) or kind_of(module) is None:
            found.append(str(module))
    tokenizer = settings.get("tokenizer_class")  # of WordEmbeddings; a name with dots is imported
    if isinstance(tokenizer, str) and "." in tokenizer and not _TOKENIZER.fullmatch(tokenizer):
        found.append(tokenizer)
    return found


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


def _prompt(model: Model, folder: Path, name: str | None) -> str:
    settings = read_json(folder / "config_sentence_transformers.json")
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


def read_json(path: Path) -> dict[str, Any]:
    """What a file of settings says; nothing if it is not there.

    Raises:
        ValueError: it is no JSON, or no object.
    """
    found = _json(path) if path.exists() else {}
    with _files.reading(path, *_FOLDER):
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}, not an object")
    return found


def _json(path: Path) -> Any:
    with _files.reading(path, *_FOLDER):
        return json.loads(_files.read_text(path, *_FOLDER))
    raise AssertionError  # `reading` raises
