"""Values in folders: `scorer.json` and arrays beside it, written in one step and read as if by a stranger."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from hf_prune.checks import check_digest
from hf_prune.data import files
from hf_prune.values import Value, check_version, class_name, code_of, find_class, pack, packed_digest, rebuild

DOCUMENT = "scorer.json"
FORMAT = 2
_KEYS = {1: {"format", "classes", "value"}, 2: {"format", "classes", "value", "arrays", "digest"}}
_WHAT, _REMEDY = "saved scorer", "save it again, or get the folder anew"
_ARRAYS = re.compile(r"arrays(-[0-9a-f]{32})?\.safetensors")
_ORPHANED = 3600.0  # seconds: younger arrays may belong to a writer that has not come to its `scorer.json`


def save(value: Value, folder: str | Path) -> None:
    """Write a value into a folder, which is made: arrays under a name of their own, then `scorer.json` in one step.

    Raises:
        ValueError: a class cannot be found again by name, or a field holds what its annotation does not allow.
        OSError: the disk is full or may not be written; what was there before is still there.
    """
    from safetensors.numpy import save as packed

    classes, text, blob = pack(value, elsewhere=None)
    names = [class_name(c) for c in classes]
    lost = [n for n in names if "<locals>" in n]
    if lost:
        raise ValueError(f"{lost[0]} is defined inside a function and cannot be found again; move it to a module")
    try:
        rebuild(classes, json.loads(text), blob)
    except ValueError as error:  # a plug-in that holds something else than its annotations say
        raise ValueError(f"{type(value).__name__} would not load again: {error}") from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    arrays = xxhash.xxh3_128_hexdigest(blob) if blob else None
    document = {
        "format": FORMAT,
        "classes": names,
        "value": json.loads(text),
        "arrays": arrays,
        "digest": packed_digest(names, text, blob),
    }
    before, now = None, _arrays_of(document)
    with contextlib.suppress(OSError, ValueError, KeyError):
        before = _arrays_of(files.read_json(folder / DOCUMENT, _WHAT, _REMEDY))
    if now is not None:
        files.write_bytes(folder / now, packed({"blob": np.frombuffer(blob, np.uint8)}))
    files.write_text(folder / DOCUMENT, json.dumps(document, indent=2, sort_keys=True))
    _remove_arrays(folder, before, now)


def load(folder: str | Path, cls: type[Value], trust_code: bool) -> Any:
    """Read what `save` wrote, or an earlier version of it.

    Args:
        folder: may come from anybody.
        cls: what it should be; this class itself need not be known here otherwise.
        trust_code: it may name functions that will be called.

    Raises:
        ValueError: the files are missing or damaged, of another version, or of another class; or they name code and
            `trust_code` is off.
    """
    folder = Path(folder)
    path = folder / DOCUMENT
    try:
        document = files.read_json(path, _WHAT, _REMEDY)
    except FileNotFoundError as error:
        raise files.DamagedFileError(f"{folder} holds no saved scorer: {path} is missing") from error
    number = document.get("format")
    if type(number) is int and number > FORMAT:
        raise ValueError(f"{folder} has format {number}, this version reads up to {FORMAT}; upgrade hf_prune")
    with files.reading(path, _WHAT, _REMEDY):
        if number not in _KEYS or set(document) != _KEYS[number]:
            raise ValueError(f"format {number!r} with the keys {', '.join(map(repr, sorted(document)))[:200]}")
        names = document["classes"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
            raise ValueError("it names no classes")
    known = {class_name(cls): cls}
    classes = tuple(known.get(name) or find_class(name) for name in names)
    with files.reading(path, _WHAT, _REMEDY):
        arrays = _arrays_of(document)
        blob = b"" if arrays is None else _read_arrays(folder / arrays)
        text = json.dumps(document["value"], sort_keys=True)
        if number > 1 and packed_digest(names, text, blob) != document["digest"]:
            raise ValueError("it is not what its digest says")
    _check_versions(document["value"], classes)
    with files.reading(path, _WHAT, _REMEDY):
        found = rebuild(classes, document["value"], blob)
    called = sorted(set(code_of(found)))
    if called and not trust_code:
        raise ValueError(
            f"{folder} names code that would be run: {', '.join(called)}; if you trust who wrote it, pass "
            "trust_code=True (--trust-code)"
        )
    if not isinstance(found, cls):
        raise ValueError(
            f"{folder} holds a {type(found).__name__}, not a {cls.__name__}; call {type(found).__name__}.load"
        )
    return found


def _check_versions(item: Any, classes: tuple[type, ...]) -> None:
    """Versions first, for their own message; what is malformed is found later."""
    if isinstance(item, list):
        for part in item:
            _check_versions(part, classes)
    elif isinstance(item, dict):
        place = item.get("\0value")
        if type(place) is int and 0 <= place < len(classes):
            check_version(classes[place], item.get("version"))
        for part in item.values():
            _check_versions(part, classes)


def _read_arrays(path: Path) -> Any:
    from safetensors.numpy import load as unpacked

    if not path.is_file():
        raise ValueError(f"{path.name} is missing")
    tensors = unpacked(path.read_bytes())
    if set(tensors) != {"blob"} or tensors["blob"].dtype != np.uint8 or tensors["blob"].ndim != 1:
        raise ValueError(f"{path.name} holds other arrays than a scorer's")
    blob: Any = tensors["blob"]
    return memoryview(blob).toreadonly()


def _arrays_name(digest: str) -> str:
    return f"arrays-{digest}.safetensors"


def _arrays_of(document: dict[str, Any]) -> str | None:
    """Name of the file with the arrays; None where there are none."""
    if document.get("format") == 1:
        return "arrays.safetensors"
    return None if document["arrays"] is None else _arrays_name(check_digest(document["arrays"]))


def _remove_arrays(folder: Path, before: str | None, now: str | None) -> None:
    """Remove the arrays of the scorer that was here, and those that killed writers left."""
    for path in folder.glob("arrays*.safetensors"):
        with contextlib.suppress(OSError):
            old = path.name == before or time.time() - path.stat().st_mtime > _ORPHANED
            if old and path.name != now and _ARRAYS.fullmatch(path.name):
                path.unlink()
