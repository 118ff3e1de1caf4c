"""Objects that are values: frozen, equal when their parts are equal, with one pickle for equal parts.

`datasets` names a cached result by the pickle of the function that made it. Whatever a `map` call is
given must therefore pickle to the same bytes in every process, before and after it was called.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import PurePath
from typing import Any, ClassVar, Self

import numpy as np
import xxhash

from hf_prune import store

_PLAIN = (type(None), bool, int, float, str)


class Value:
    """Base of scorers and models: a frozen dataclass whose pickle is made of its fields and its version.

    A subclass is decorated with `@dataclass(frozen=True, eq=False)`. Its fields hold plain values (None, bool,
    int, float, str, lists, string-keyed dicts), NumPy arrays, or other values.
    """

    version: ClassVar[int] = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__repr__" not in cls.__dict__:  # or `dataclass` writes one, with all numbers of all arrays
            cls.__repr__ = Value.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        """Fields that differ from their defaults, arrays by type and shape: what a notebook shows."""
        shown = []
        for field in fields(self):  # type: ignore[arg-type]
            item = getattr(self, field.name)
            if not (isinstance(item, _PLAIN) and type(item) is type(field.default) and item == field.default):
                shown.append(f"{field.name}={_short(item)}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        _check_class(cls)
        return super().__new__(cls)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return unpack, pack(self, store.put_array)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and pack(self) == pack(other)

    def __hash__(self) -> int:
        return int(self.digest[:15], 16)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that name the value: its class, version, fields and arrays."""
        classes, text, blob = pack(self)
        names = ",".join(f"{c.__module__}:{c.__qualname__}" for c in classes)
        state = xxhash.xxh3_128(names.encode())
        state.update(text.encode())
        state.update(blob)
        return state.hexdigest()


def pack(
    value: Value, elsewhere: Callable[[np.ndarray], str] | None = store.array_digest
) -> tuple[tuple[type, ...], str, bytes]:
    """Take a value apart: its class and those of the values in it, JSON of all fields, bytes of all arrays.

    One string and one byte string, not many: pickle writes an object that it meets twice as a reference, so
    equal values made of shared and of separate parts would differ.

    Args:
        value: a scorer or a model.
        elsewhere: gives the digest that stands for an array of more than 64 MB; None puts them all into the bytes.
    """
    classes: list[type] = []
    blobs: list[bytes] = []
    start = 0

    def encode(item: Any, where: str) -> Any:
        nonlocal start
        if isinstance(item, np.generic):
            item = item.item()
        if isinstance(item, _PLAIN):
            return item
        if isinstance(item, PurePath):
            return str(item)
        if isinstance(item, np.ndarray):
            if item.dtype.kind not in "biuf":
                raise TypeError(f"{where} is an array of {item.dtype}; use numbers, or a list of strings")
            little = np.ascontiguousarray(item, item.dtype.newbyteorder("<"))
            if elsewhere is not None and item.nbytes > store.LIMIT:
                return {"\0stored": elsewhere(item if little.dtype == item.dtype else little)}
            raw = little.tobytes()
            entry = {"array": item.dtype.name, "shape": list(item.shape), "start": start}
            blobs.append(raw)
            start += len(raw)
            return {"\0array": entry}
        if isinstance(item, Value):
            if type(item) not in classes:
                classes.append(type(item))
            own = type(item).version
            parts = {f.name: encode(getattr(item, f.name), f"{where}.{f.name}") for f in fields(item)}  # type: ignore[arg-type]
            return {"\0value": classes.index(type(item)), "version": own, "fields": parts}
        if isinstance(item, Mapping):
            if not all(isinstance(k, str) for k in item):
                raise TypeError(f"{where} is a dict with keys that are not strings; use string keys")
            return {k: encode(item[k], f"{where}[{k!r}]") for k in sorted(item)}  # arrays have an order in the bytes
        if isinstance(item, (set, frozenset)):
            return [encode(v, where) for v in sorted(item)]
        if isinstance(item, (list, tuple)):
            return [encode(v, f"{where}[{i}]") for i, v in enumerate(item)]
        raise TypeError(
            f"{where} holds a {type(item).__name__}, which has no stable hash; use plain values, arrays, a Model, "
            "or the name of a function as 'package.module:function'"
        )

    text = json.dumps(encode(value, type(value).__name__), sort_keys=True)
    return tuple(classes), text, b"".join(blobs)


def unpack(classes: tuple[type, ...], text: str, blob: bytes) -> Any:
    """Put together what `pack` took apart. Lists come back as tuples, arrays read-only.

    Raises:
        ValueError: a class has another version than the one that was packed: its numbers have changed.
    """

    def decode(item: Any) -> Any:
        if isinstance(item, list):
            return tuple(decode(v) for v in item)
        if not isinstance(item, dict):
            return item
        if "\0stored" in item:
            return store.get_array(item["\0stored"])
        if "\0array" in item:
            entry = item["\0array"]
            dtype = np.dtype(entry["array"])
            count = int(np.prod(entry["shape"], dtype=np.int64))
            return np.frombuffer(blob, dtype, count, entry["start"]).reshape(entry["shape"])
        if "\0value" in item:
            cls = classes[item["\0value"]]
            if item["version"] != cls.version:  # type: ignore[attr-defined]
                raise ValueError(
                    f"{cls.__name__} was made by version {item['version']} of its numbers, version "
                    f"{cls.version} is installed; make it anew, or install the hf_prune that made it"  # type: ignore[attr-defined]
                )
            value: Any = object.__new__(cls)
            for name, part in item["fields"].items():
                object.__setattr__(value, name, decode(part))
            return value
        return {k: decode(v) for k, v in item.items()}

    return decode(json.loads(text))


def _short(item: Any) -> str:
    if isinstance(item, np.ndarray):
        return f"{item.dtype}{list(item.shape)}"
    if isinstance(item, Mapping):
        return "{" + ", ".join(f"{key!r}: {_short(value)}" for key, value in item.items()) + "}"
    if isinstance(item, (list, tuple)):
        inside = ", ".join(_short(value) for value in item[:5]) + (", ..." if len(item) > 5 else "")
        return f"[{inside}]" if isinstance(item, list) else f"({inside})"
    return repr(item)


def _check_class(cls: type) -> None:
    """Refuse a class whose settings the hash would not see."""
    params = cls.__dict__.get("__dataclass_params__")
    if params is None:
        raise TypeError(
            f"{cls.__name__} is not a dataclass, so its fields would be invisible to the cache; "
            f"write @dataclass(frozen=True, eq=False) above `class {cls.__name__}`"
        )
    if params.eq:
        raise TypeError(
            f"{cls.__name__} is compared field by field, which fails for arrays; "
            f"write @dataclass(frozen=True, eq=False) above `class {cls.__name__}`"
        )
    loose = [
        name
        for name, item in vars(cls).items()
        if not name.startswith("_")
        and isinstance(item, (*_PLAIN, list, tuple, dict, set, np.ndarray))
        and not any(name in inspect.get_annotations(base) for base in cls.__mro__)
    ]
    if loose:
        raise TypeError(
            f"{cls.__name__}.{loose[0]} has no annotation, so it is no field and invisible to the cache; "
            f"write `{loose[0]}: {type(vars(cls)[loose[0]]).__name__} = ...`, or ClassVar if it never changes"
        )
