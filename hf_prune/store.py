"""The content-addressed folder: models' places, live modules, and arrays too large to travel in a pickle."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import numpy as np
import xxhash

from hf_prune.checks import check_digest
from hf_prune.data import files

LIMIT = 64 << 20  # bytes of an array above which pickles carry its digest

_known: dict[int, str] = {}
_sound: set[tuple[str, int, int, int]] = set()  # files whose content was compared with their names


def home() -> Path:
    """Folder for content-addressed models and arrays: `HF_PRUNE_HOME`, else `hf_prune` under `HF_HOME`."""
    if "HF_PRUNE_HOME" in os.environ:
        return Path(os.environ["HF_PRUNE_HOME"]).expanduser()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "hf_prune"


def array_digest(array: np.ndarray) -> str:
    """Name an array by type, shape and content; of one that cannot be written to, worked out once while it lives."""
    if id(array) in _known:
        return _known[id(array)]
    state = xxhash.xxh3_128(f"{array.dtype.str}{array.shape}".encode())
    state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    digest = state.hexdigest()
    if not array.flags.writeable:
        _remember(array, digest)
    return digest


def _remember(array: np.ndarray, digest: str) -> None:
    _known[id(array)] = digest
    weakref.finalize(array, _known.pop, id(array), None)


def put_array(array: np.ndarray) -> str:
    """Write an array under its digest, if it is not there; return the digest.

    Raises:
        OSError: the folder cannot be written.
    """
    digest = array_digest(array)
    path = _path(digest)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.sweep(path.parent)
            with files.whole(path) as temporary, open(temporary, "wb") as stream:
                np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write {array.nbytes >> 20} MB of fitted state to {path.parent} ({error.strerror}); set "
                "HF_PRUNE_HOME to a folder with room that you may write to",
            ) from error
    return digest


def get_array(digest: str) -> np.ndarray:
    """Memory-map the array of that digest, read-only; its content is compared with the digest once per process.

    Raises:
        FileNotFoundError: it is not on this machine.
        ValueError: that is no digest, or the file is damaged.
    """
    path = _path(digest)
    if not path.exists():
        raise FileNotFoundError(
            f"the fitted state {digest} is not in {path.parent}; share HF_PRUNE_HOME between the machines, or carry "
            "the scorer there with save() and load()"
        )
    with files.reading(path, "fitted state", "delete it, and make the scorer anew or load() it again"):
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        facts = path.stat()
        key = (str(path), facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if key in _sound:
            _remember(array, digest)
        elif array_digest(array) == digest:
            _sound.add(key)
        else:
            raise ValueError("it is not what its digest says")
        return array
    raise AssertionError  # `reading` raises


def _path(digest: str) -> Path:
    return home() / "arrays" / f"{check_digest(digest)}.npy"
