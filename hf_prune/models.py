"""Models as values, and the per-process cache that loads them on the device of the rank.

A `Model` holds names and digests, never weights: it hashes in microseconds and travels to workers in a few
bytes. Weights are loaded by the process that computes, once, outside of any scorer.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from hf_prune.checks import check_choice, check_digest
from hf_prune.data import files
from hf_prune.store import home
from hf_prune.values import Value, import_name, names_code

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
CACHE_SIZE = 4
LIGHT_SIZE = 64

_cache: OrderedDict[Hashable, Any] = OrderedDict()
_light: OrderedDict[Hashable, Any] = OrderedDict()
_memos: dict[tuple[int, int, str], Any] = {}
_digests: dict[tuple[str, int, int], str] = {}

DTYPES = ("float32", "bfloat16", "float16")
_PICKLE, _PICKLE_DIGEST = "module.pkl", "module.sha256"
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")

# weights in formats that are pickles, or that torch does not read
_NOT_NEEDED = [
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.ot",
    "*.gguf",
    "*.tflite",
    "*.pkl",
]


def cached(key: Hashable, make: Callable[[], T], light: bool = False) -> T:
    """Give what `make` made for `key`, made once per process; the least used of more than four is dropped.

    For scorers of your own: a dict in a notebook would be part of the scorer's hash and change it when it fills.

    Args:
        key: names it; two things must not share one.
        make: makes it.
        light: a tokenizer or a few facts, which must not push weights out: 64 of these are held, apart.

    >>> cached(("demo", 1), lambda: "loaded"), cached(("demo", 1), lambda: "not again")
    ('loaded', 'loaded')
    """
    store, size = (_light, LIGHT_SIZE) if light else (_cache, CACHE_SIZE)
    if key not in store:
        made = make()  # first: `make` may ask the cache itself
        store[key] = made
        while len(store) > size:
            store.popitem(last=False)
    store.move_to_end(key)
    return store[key]  # type: ignore[no-any-return]


def clear_cache() -> None:
    """Drop every model this process holds."""
    _cache.clear()
    _light.clear()


def memo(owner: Value, what: str, make: Callable[[], T]) -> T:
    """Give what follows from the fields of `owner` (scaled centroids, say), computed once in each process it lives in.

    A forked worker computes it anew: what lies on a GPU, or has threads, is of no use to it.
    """
    key = (os.getpid(), id(owner), what)
    if key not in _memos:
        _memos[key] = make()
        weakref.finalize(owner, _memos.pop, key, None)
    return _memos[key]  # type: ignore[no-any-return]


def device_for(rank: int | None = None) -> torch.device:
    """Device of a worker: the rank-th accelerator, else the one of this `accelerate` process, else the CPU.

    Raises:
        RuntimeError: CUDA was started before the workers were forked.
    """
    import torch

    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return torch.device("cpu")
    if torch.cuda.is_available():
        if torch.cuda._is_in_bad_fork():
            raise RuntimeError(
                "CUDA was started in the parent, and a forked worker cannot use it; call "
                'multiprocess.set_start_method("spawn", force=True) first, or use `accelerate launch` with score()'
            )
        local = int(os.environ.get("LOCAL_RANK", "0")) if rank is None else rank
        return torch.device("cuda", local % torch.cuda.device_count())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Model(Value):
    """A network as a value: where its weights are, which ones, and how its input is prepared.

    Args:
        source: a name on the Hub, a folder, or `package.module:factory` (called without arguments, returns an
            `nn.Module`). A folder becomes its content: moving it changes nothing.
        revision: branch, tag or commit on the Hub; pinned to the commit here. For anything else the digest of the
            weights, filled in here.
        preprocess: `package.module:function`, called with a list of raw inputs (texts, PIL images or arrays),
            returns a tensor or a dict of tensors for the network.
        dtype: of weights and activations: "float32", "bfloat16" or "float16".
        trust_remote_code: run code that comes with a Hub model. Off unless you say so.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the Hub has no such model or revision; the dtype is unknown.

    >>> Model("collections:OrderedDict")
    Traceback (most recent call last):
    ...
    TypeError: collections:OrderedDict returned a OrderedDict, not a torch.nn.Module
    """

    version: ClassVar[int] = 1

    source: str = field(metadata=names_code(lambda model: model._runs()))
    revision: str | None = None
    preprocess: str | None = field(default=None, metadata=names_code())
    dtype: str = "float32"
    trust_remote_code: bool = field(
        default=False,
        metadata=names_code(lambda m: f"the code that comes with {m.source}" if m.trust_remote_code else None),
    )

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, DTYPES)
        if self.preprocess is not None:
            self.named("preprocess")
        source, revision = _resolve(str(self.source), self.revision)
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "revision", revision)
        self.check_fields()

    def check_fields(self) -> None:
        check_choice("dtype", self.dtype, DTYPES)
        check_digest(self.revision, 40 if self.kind == "hub" else 64)
        if self.kind == "factory" and not _FUNCTION.fullmatch(self.source):
            raise ValueError(f"{self.source!r} is no package.module:factory")
        if self.kind == "hub" and not _HUB_NAME.fullmatch(self.source):
            raise ValueError(f"{self.source!r} is no name on the Hub")
        if self.preprocess is not None and not _FUNCTION.fullmatch(self.preprocess):
            raise ValueError(f"preprocess={self.preprocess!r} is no package.module:function")

    def _runs(self) -> str | None:
        """What its source would run: a factory, or the pickle of a live network."""
        if self.kind == "live":
            return f"the pickled network {str(self.revision)[:12]}"
        return self.source if self.kind == "factory" else None

    @classmethod
    def of(cls, model: Model | str | os.PathLike[str] | torch.nn.Module, **options: Any) -> Model:
        """Take a `Model`, a name, a folder or a live `nn.Module` (its weights are written to `home()` once)."""
        if isinstance(model, Model):
            if options:
                raise ValueError(f"{sorted(options)} belong to the Model: set them there")
            return model
        if isinstance(model, (str, os.PathLike)):
            return cls(os.fspath(model), **options)
        if "revision" in options:
            raise ValueError("revision= is for models of the Hub; a live network is what it is")
        return cls("live", _store_live(model), **options)

    @property
    def kind(self) -> str:
        """`hub`, `folder`, `live` (a module written to the store) or `factory`."""
        if self.source in ("folder", "live"):
            return self.source
        return "factory" if ":" in self.source else "hub"

    @property
    def label(self) -> str:
        """Name for people: of the Hub, the factory, or the folder (not its path)."""
        if self.kind in ("folder", "live"):
            return f"{pointer(str(self.revision)).get('name', self.kind)}@{str(self.revision)[:12]}"
        return self.source

    def provenance(self) -> dict[str, Any]:
        """What a card says of it: no paths, no tokens."""
        facts = {
            "name": self.label.split("@")[0],
            "kind": self.kind,
            "revision": self.revision,
            "dtype": self.dtype,
        }
        if self.preprocess:
            facts["preprocess"] = self.preprocess
        return facts

    def folder(self) -> Path:
        """Local folder with the files (a Hub model is downloaded, or found in the Hub's cache).

        Raises:
            FileNotFoundError: this machine has no folder with that content.
        """
        if self.kind == "hub":
            # once per process: each call asks the Hub, even for a commit that is here
            return cached(("hub folder", self.source, self.revision), self._download, light=True)
        if self.kind == "factory":
            raise ValueError(f"{self.source} is a function, it has no folder")
        if self.kind == "live":
            return _live_folder(str(self.revision))
        note = pointer(str(self.revision))
        path = Path(note.get("path", ""))
        if not note or not path.is_dir():
            raise FileNotFoundError(
                f"no folder with the model {self.label} here (looked at {path}); make the scorer anew from the "
                "folder's new place, or share HF_PRUNE_HOME between the machines"
            )

        def check() -> bool:
            # sizes and times first: the content of a large model takes seconds to read
            if _stamp(path) != note.get("stamp") and folder_digest(path) != self.revision:
                raise ValueError(
                    f"the folder of the model {self.label} has changed since the scorer was made ({path}); put its "
                    "old content back, or make the scorer anew"
                )
            return True

        cached(("folder is as it was", path, self.revision), check, light=True)
        return path

    def load(
        self,
        rank: int | None = None,
        head: str = "AutoModel",
        subfolder: str = "",
        device: Any = None,
        new_head: bool = False,
    ) -> torch.nn.Module:
        """Network in eval mode on the device of the rank, from the per-process cache.

        Args:
            rank: of the worker; None for the process itself.
            head: class of `transformers` that loads a Hub name or folder, `AutoModelForCausalLM` for example.
            subfolder: where in the folder the network is.
            device: instead of the rank's; "cpu" for a look at the network from a parent, which must not start CUDA.
            new_head: the last linear layer will be replaced, so the files need not have it. The network says in
                `random_head` which one is filled at random, if any.

        Raises:
            ValueError: the files lack weights that `head` needs; filled at random they would mean nothing.
        """
        import torch

        device = device_for(rank) if device is None else torch.device(device)
        # a forked worker inherits the cache: what lies on the CPU is of use to it, what lies on a GPU is not
        owner = 0 if device.type == "cpu" else os.getpid()
        key = ("model", self.digest, head, subfolder, str(device), owner)
        network = cached(key, lambda: self._load(head, subfolder).eval().to(device))
        lacking: Any = getattr(network, "random_head", None)
        if lacking and not new_head:
            fit = "" if head == "AutoModelForCausalLM" else "; or, for a Probe, let one be fitted to labels: head='fit'"
            raise ValueError(
                f"{self.label} has no weights for the head {lacking!r} of {type(network).__name__}, which would be "
                f"random numbers; give a model that was trained for this task{fit}"
            )
        return network

    def processor(self, which: str = "AutoTokenizer", subfolder: str = "") -> Any:
        """Tokenizer (`AutoTokenizer`), image processor (`AutoImageProcessor`) or `AutoProcessor` of the model."""
        import transformers

        loader = getattr(transformers, which)
        return cached(
            ("processor", self.digest, which, subfolder),
            lambda: loader.from_pretrained(self.folder() / subfolder, trust_remote_code=self.trust_remote_code),
            light=True,
        )

    def prepare(self) -> Callable[[list[Any]], Any]:
        """Preprocessing function that `preprocess` names."""
        if self.preprocess is None:
            raise ValueError(
                f"{self.label} names no preprocessing; pass Model(..., preprocess='package.module:function')"
            )
        return self.named("preprocess")  # type: ignore[no-any-return]

    def _download(self) -> Path:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(self.source, revision=self.revision, ignore_patterns=_NOT_NEEDED))

    def _load(self, head: str, subfolder: str = "") -> torch.nn.Module:
        import torch

        dtype = getattr(torch, self.dtype)
        if self.kind == "factory":
            module = _call_factory(self.source, self.named("source"))
            found = weights_digest(module)
            if found != self.revision:
                raise ValueError(
                    f"{self.source} gave other weights than when the Model was made ({found[:12]}, not "
                    f"{str(self.revision)[:12]}); let it load or seed them, so that every worker gets the same"
                )
            return module.to(dtype)
        if self.kind == "live":
            return _load_live(str(self.revision)).to(dtype)
        import transformers

        # what the files lack is drawn under a seed: the same in all workers, and the caller's generator stays as it is
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            module, info = getattr(transformers, head).from_pretrained(
                self.folder() / subfolder,
                dtype=dtype,
                trust_remote_code=self.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
            )
        missing = sorted(info["missing_keys"])
        last = [name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)][-1:]
        in_head = [name for name in missing if name.rpartition(".")[0] in last and head != "AutoModel"]
        # a pooler that the checkpoint lacks (BERT, ViT with another head) is common, and harmless where it is not read:
        # `AutoModel` gives its output beside the states, a classifier reads it
        unread = [name for name in missing if head == "AutoModel" and "pooler" in name.split(".")]
        if lost := [name for name in missing if name not in in_head + unread]:
            shown = ", ".join(lost[:4]) + (f" and {len(lost) - 4} more" if len(lost) > 4 else "")
            raise ValueError(
                f"{self.label} has no weights for {shown} of {type(module).__name__}, which would be random numbers; "
                "give a model that was trained for this task, or a network of your own (a torch.nn.Module or "
                "package.module:factory) that runs the layers there are, pools, and ends in a linear layer"
            )
        module.has_random_pooler = bool(unread)
        module.random_head = last[0] if in_head else None
        return module  # type: ignore[no-any-return]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the bar and the report that transformers prints for each load: what is missing we say ourselves."""
    import transformers.utils.logging

    logging: Any = transformers.utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers, by name."""
    import torch

    state = hashlib.sha256()
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        value = tensor.detach().cpu().contiguous()
        state.update(f"{name}|{value.dtype}|{tuple(value.shape)}".encode())
        state.update(value.reshape(-1).view(torch.uint8).numpy().data)  # as bytes: NumPy knows no bfloat16
    return state.hexdigest()


def folder_digest(path: Path) -> str:
    """SHA-256 of a folder's file names and contents; a file is read again only when its size or time changed."""
    state = hashlib.sha256()
    for name, file in _model_files(path):
        state.update(f"{name}|{file_sha256(file)}\n".encode())
    return state.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read again only when its size or time changed."""
    facts = path.stat()
    key = (str(path.resolve()), facts.st_size, facts.st_mtime_ns)
    if key not in _digests:
        with open(path, "rb") as stream:
            _digests[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _digests[key]


def _model_files(path: Path) -> Iterator[tuple[str, Path]]:
    """Names and paths of the files that are a model: no hidden ones, no weights that are not read."""
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        relative = file.relative_to(path)
        if not any(part.startswith(".") for part in relative.parts) and not any(relative.match(g) for g in _NOT_NEEDED):
            yield relative.as_posix(), file


def _stamp(path: Path) -> str:
    """Digest of the names, sizes and times of a model's files: while it stays, so does their content."""
    facts = [(name, file.stat()) for name, file in _model_files(path)]
    text = "".join(f"{name}|{found.st_size}|{found.st_mtime_ns}\n" for name, found in facts)
    return hashlib.sha256(f"{path}\n{text}".encode()).hexdigest()


def _resolve(source: str, revision: str | None) -> tuple[str, str]:
    """Pin a source to the content it has now."""
    if source in ("folder", "live"):  # dataclasses.replace hands over what was resolved before
        if revision is None:
            raise ValueError(f"source={source!r} needs the digest of its content as revision")
        return source, revision
    path = Path(source).expanduser()
    if path.is_dir():
        digest = folder_digest(path)
        point(digest, path.resolve(), path.resolve().name, _stamp(path.resolve()))
        return "folder", digest
    if path.exists() or source.startswith((".", "~", "/")) or source.count("/") > 1:
        reason = "is a file" if path.exists() else "does not exist"
        raise FileNotFoundError(
            f"model {source!r} {reason}; give a folder, a name on the Hub, or package.module:factory"
        )
    if _FUNCTION.fullmatch(source):
        return source, revision or weights_digest(_call_factory(source, import_name(source)))
    return source, _hub_commit(source, revision)


def _hub_commit(name: str, revision: str | None) -> str:
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return str(HfApi().model_info(name, revision=revision).sha)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"the Hub has no model {name!r} at revision {revision or 'main'!r}, and there is no such folder; "
            "check the name, or log in if it is private"
        ) from error
    except (OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        try:
            local = snapshot_download(name, revision=revision, local_files_only=True)
        except LocalEntryNotFoundError:
            raise ValueError(
                f"model {name!r} is neither a folder here, nor in the Hub's cache, and the Hub cannot be reached "
                f"({type(error).__name__}); check the path, or go online once"
            ) from error
        return Path(local).name


def _call_factory(name: str, factory: Any) -> torch.nn.Module:
    import torch

    module = factory()
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"{name} returned a {type(module).__name__}, not a torch.nn.Module")
    return module


def _store_live(module: torch.nn.Module) -> str:
    """Write a live module under its digest; spawned workers and Ray actors find it there."""
    import torch

    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"{type(module).__name__} is no model; give a name, a folder, a Model, or a torch.nn.Module")
    digest = _live_digest(module)
    target = _live_folder(digest)
    if not _is_sound(target):
        import dill

        with _explained(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with files.whole(target, _explained, folder=True) as temporary:
                with open(temporary / _PICKLE, "wb") as stream:
                    on_cpu = next(module.parameters(), torch.empty(0)).device.type == "cpu"
                    # a copy: `module.cpu()` would take the caller's network off its GPU
                    dill.dump(module if on_cpu else copy.deepcopy(module).cpu(), stream)
                (temporary / _PICKLE_DIGEST).write_text(file_sha256(temporary / _PICKLE), encoding="utf-8")
        except OSError:
            if not _is_sound(target):  # else another process was first
                raise
    point(digest, target, type(module).__name__)
    return digest


def _live_digest(module: torch.nn.Module) -> str:
    # not repr() alone: two networks may print alike and differ in their code
    kinds = sorted({f"{type(m).__module__}:{type(m).__qualname__}" for m in module.modules()})
    text = "\n".join([weights_digest(module), repr(module), *kinds])
    return hashlib.sha256(text.encode()).hexdigest()


def _live_folder(digest: str) -> Path:
    return home() / "models" / check_digest(digest, 64) / "files"


def _is_sound(folder: Path) -> bool:
    """Whether the pickle in a folder of the store is the one that was written there."""
    try:
        return (folder / _PICKLE_DIGEST).read_text(encoding="utf-8") == file_sha256(folder / _PICKLE)
    except (OSError, UnicodeDecodeError):
        return False


def _load_live(digest: str) -> torch.nn.Module:
    """Load a live module out of this machine's own store: what is there was written by `_store_live`."""
    import dill

    folder = _live_folder(digest)
    what, remedy = "stored network", "make the scorer anew from the network, or share HF_PRUNE_HOME with its machine"
    with files.reading(folder, what, remedy):
        if (folder / _PICKLE_DIGEST).exists() and not _is_sound(folder):  # earlier versions wrote none
            raise ValueError("its file has changed")
        with open(folder / _PICKLE, "rb") as stream:
            module: torch.nn.Module = dill.load(stream)
        if _live_digest(module) != digest:
            raise ValueError("it is another network than its name says")
    return module


def point(digest: str, path: Path, name: str, stamp: str | None = None) -> None:
    """Note where content is: scorers carry the digest only, workers look here for the path."""
    note = {"path": str(path), "name": name} | ({"stamp": stamp} if stamp else {})
    if pointer(digest, careful=False) == note:
        return
    folder = _note(digest).parent
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files.sweep(folder)
    files.write_text(_note(digest), json.dumps(note), _explained)


def pointer(digest: str, careful: bool = True) -> dict[str, str]:
    """The note that `point` made; empty if there is none."""
    note, what = _note(digest), "note of a model's place"
    try:
        found = files.read_json(note, what, remedy := "delete it, and make the scorer anew from the model")
        with files.reading(note, what, remedy):
            if not all(isinstance(text, str) for text in found.values()) or not {"path", "name"} <= set(found):
                raise ValueError("it names no place")
    except FileNotFoundError:
        return {}
    except files.DamagedFileError:
        if careful:
            raise
        return {}
    return found


def _note(digest: str) -> Path:
    return home() / "models" / check_digest(digest, 64) / "location.json"


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot note the model in {folder} ({error.strerror}); set HF_PRUNE_HOME to a folder with room that you "
            "may write to",
        ) from error
