"""Objects that are values: frozen, equal when their parts are equal, with one pickle for equal parts.

`datasets` names a cached result by the pickle of the function that made it. Whatever a `map` call is
given must therefore pickle to the same bytes in every process, before and after it was called.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import PurePath
from typing import Any, ClassVar, Self

import numpy as np
import xxhash

from hf_prune import store
from hf_prune.fields import check_types
from hf_prune.homes import FORMER, PARTS, PUBLIC, VALUES

_PLAIN = (type(None), bool, int, float, str)
_CODE = "code"
_MARKERS = ("\0array", "\0stored", "\0value")
_NUMBERS = (bool, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
_DTYPES = {
    np.dtype(kind).name: np.dtype(kind) for kind in (*_NUMBERS, np.float16, np.float32, np.float64, np.longdouble)
}


class Value:
    """Base of scorers and models: a frozen dataclass whose pickle is made of its fields and its version.

    A subclass is decorated with `@dataclass(frozen=True, eq=False)`. Its fields hold plain values (None, bool,
    int, float, str, lists, string-keyed dicts), NumPy arrays, or other values. A field whose value names code (a
    function, say) says so: `preprocess: str | None = field(default=None, metadata=names_code())`; what it names is
    imported by `self.named("preprocess")`.
    """

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self.check_fields()

    def check_fields(self) -> None:
        """Raise a ValueError for fields that make no sense, alone or together.

        Called when a value is made, and when one is read from a file that anybody may have written. It looks at
        the fields only: it opens nothing, imports nothing, asks nobody.
        """

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
        classes, text, blob = pack(self, store.put_array)
        # those of this package by name, so that the pickle, which names cached results, does not know of modules
        return unpack, (tuple(class_name(c) if _is_ours(c) else c for c in classes), text, blob)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and pack(self) == pack(other)

    def __hash__(self) -> int:
        return int(self.digest[:15], 16)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that name the value: its class, version, fields and arrays."""
        classes, text, blob = pack(self)
        return packed_digest([class_name(c) for c in classes], text, blob)

    def named(self, name: str) -> Any:
        """Import what the field `name` names; it must be marked by `names_code`.

        Raises:
            TypeError: the field is not marked, so that nobody would be asked whether a file may choose it.
            ValueError: nothing is there.
        """
        if not any(field.name == name and _CODE in field.metadata for field in fields(self)):  # type: ignore[arg-type]
            raise TypeError(f"{type(self).__name__}.{name} names code: write field(..., metadata=names_code())")
        return import_name(getattr(self, name))


def names_code(said: Callable[[Any], str | None] | None = None) -> dict[str, Any]:
    """Metadata of a field whose value names code, which a file must not choose unless the user trusts it.

    Args:
        said: what would be run, told from the object; None if nothing would. By default the value of the field.

    >>> from dataclasses import dataclass, field
    >>> @dataclass(frozen=True, eq=False)
    ... class Prepared(Value):
    ...     preprocess: str | None = field(default=None, metadata=names_code())
    >>> list(code_of([Prepared("string:capwords"), Prepared()])), Prepared("string:capwords").named("preprocess")("a b")
    (['string:capwords'], 'A B')
    """
    return {_CODE: said}


def code_of(item: Any) -> Iterator[str]:
    """What the values in an object would run, in words."""
    if isinstance(item, Value):
        for field in fields(item):  # type: ignore[arg-type]
            own = getattr(item, field.name)
            if _CODE in field.metadata:
                said = field.metadata[_CODE]
                told = (None if own is None else str(own)) if said is None else said(item)
                if told is not None:
                    yield told
            else:
                yield from code_of(own)
    elif isinstance(item, Mapping):
        for part in item.values():
            yield from code_of(part)
    elif isinstance(item, (list, tuple)):
        for part in item:
            yield from code_of(part)


def import_name(name: str) -> Any:
    """Import what `package.module:object` names: what a user typed. A field is imported by `Value.named`.

    Raises:
        ValueError: the name has another form, or nothing is there.
    """
    module_name, _, attribute = name.partition(":")
    if not attribute or module_name == "__main__":
        raise ValueError(f"{name!r} cannot be found by workers; write it as 'package.module:function' of a module")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} cannot be imported: {error}") from error
    return found


def class_name(cls: type) -> str:
    """The name by which a class is known: `hf_prune:DSIR`, wherever its file is; `module:Class` for those of others."""
    return f"hf_prune:{cls.__qualname__}" if _is_ours(cls) else f"{cls.__module__}:{cls.__qualname__}"


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "hf_prune" and cls.__qualname__ in VALUES


def former_name(cls: type) -> str:
    """`class_name` of version 0.1.0, when it was made of modules."""
    return f"{FORMER[cls.__qualname__].module}:{cls.__qualname__}" if _is_ours(cls) else class_name(cls)


def former_digest(value: Value) -> str:
    """The digest of a value in version 0.1.0."""
    classes, text, blob = pack(value)

    def former(item: Any) -> Any:
        if isinstance(item, list):
            return [former(part) for part in item]
        if not isinstance(item, dict):
            return item
        item = {key: former(part) for key, part in item.items()}
        if "\0value" in item:
            item["fields"] = _as_written(classes[item["\0value"]], item["fields"])
        return item

    return packed_digest([former_name(c) for c in classes], json.dumps(former(json.loads(text)), sort_keys=True), blob)


def _as_written(cls: type, now: dict[str, Any]) -> dict[str, Any]:
    """Fields as version 0.1.0 wrote them."""
    then = FORMER.get(cls.__qualname__) if _is_ours(cls) else None
    if then is None:
        return now
    kept = {name: value for name, value in now.items() if name not in then.added}
    return {then.fields.get(n, n): then.values[n].get(_key(v), v) if n in then.values else v for n, v in kept.items()}


def _as_today(cls: type, written: dict[str, Any]) -> dict[str, Any]:
    """Fields as they are called today, from those that version 0.1.0 wrote."""
    then = FORMER.get(cls.__qualname__) if _is_ours(cls) else None
    if then is None:
        return written
    names = {old: new for new, old in then.fields.items() if new not in written}
    today = {names.get(name, name): value for name, value in written.items()}
    for old, new in names.items():
        if old in written and new in then.values:
            back = {_key(before): now for now, before in then.values[new].items()}
            today[new] = back.get(_key(today[new]), today[new])
    return today


def _key(value: Any) -> Any:
    """What a table of values is asked for: JSON has lists."""
    return tuple(value) if isinstance(value, list) else value if isinstance(value, _PLAIN) else None


def find_class(name: str) -> type[Value]:
    """Find a class by the name that a file gives: in this package, or in modules that are imported already.

    Raises:
        ValueError: there is none of that name.
    """
    module_name, _, qualname = name.partition(":")
    if module_name.partition(".")[0] == "hf_prune":  # with its module before 0.1.0 was over
        found: Any = None
        if qualname in VALUES:
            found = importlib.import_module(f"hf_prune.{PUBLIC.get(qualname) or PARTS[qualname]}")
    else:
        found = sys.modules.get(module_name)
    for part in qualname.split("."):  # not by getattr: a lazy module imports what it is asked for
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    if not (isinstance(found, type) and issubclass(found, Value)):
        raise ValueError(
            f"the saved scorer is a {name[:200]!r}, which is not imported here; if it is yours, import "
            f"{module_name[:100]!r} first"
        )
    return found


def packed_digest(names: list[str], text: str, blob: Any) -> str:
    """32 hexadecimal digits that name what `pack` gave: names of classes, JSON, bytes."""
    state = xxhash.xxh3_128(",".join(names).encode())
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
            if taken := [k for k in item if k in _MARKERS]:
                raise TypeError(f"{where} has the key {taken[0]!r}, which stands for something else; rename it")
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


def unpack(classes: tuple[type | str, ...], text: str, blob: Any) -> Any:
    """Put together what `pack` took apart. Lists come back as tuples, arrays read-only.

    Raises:
        ValueError: a class has another version than the one that was packed: its numbers have changed.
    """
    known = tuple(find_class(cls) if isinstance(cls, str) else cls for cls in classes)
    return rebuild(known, json.loads(text), blob, foreign=False)


def rebuild(classes: tuple[type, ...], document: Any, blob: Any, foreign: bool = True) -> Any:
    """Put together what `pack` took apart, from the object that its JSON stands for.

    Args:
        classes: of the values.
        document: what was in the JSON.
        blob: the bytes of all arrays.
        foreign: it may be from anybody. Then the fields must be those of the classes (what is missing has its default),
            hold what their annotations say and pass `check_fields`; and nothing is taken from the store.

    Raises:
        ValueError, KeyError, TypeError: it is not what `pack` gives.
    """
    taken: list[tuple[int, int]] = []

    def decode(item: Any) -> Any:
        if isinstance(item, list):
            return tuple(decode(v) for v in item)
        if not isinstance(item, dict):
            return item
        if "\0array" in item:
            _only(item, "\0array")
            return array(item["\0array"])
        if "\0value" in item:
            return value(item)
        if "\0stored" in item:
            if foreign:
                raise ValueError("an array is said to be in the store of another machine")
            return store.get_array(item["\0stored"])
        return {k: decode(v) for k, v in item.items()}

    def array(entry: Any) -> np.ndarray:
        _only(entry, "array", "shape", "start")
        dtype, shape, start = _DTYPES[entry["array"]], entry["shape"], entry["start"]
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in [start, *shape]):
            raise ValueError(f"an array of shape {shape} begins at byte {start}")
        count = math.prod(shape)
        if start + count * dtype.itemsize > len(blob):
            raise ValueError(f"an array of shape {shape} at byte {start} is longer than the {len(blob)} there are")
        taken.append((start, count * dtype.itemsize))
        raw = np.frombuffer(blob, np.uint8, count * dtype.itemsize, start) if count else np.empty(0, np.uint8)
        if foreign and dtype.kind == "b" and count and raw.max() > 1:
            raise ValueError("a truth value is neither 0 nor 1")
        found: np.ndarray = raw.view(dtype).reshape(shape)
        found.flags.writeable = False
        return found

    def value(item: dict[str, Any]) -> Any:
        _only(item, "\0value", "version", "fields")
        place = item["\0value"]
        if type(place) is not int or not 0 <= place < len(classes):
            raise ValueError(f"value {place!r} is of no class, there are {len(classes)}")
        cls: Any = classes[place]
        check_version(cls, item["version"])
        if not isinstance(item["fields"], dict):
            raise ValueError(f"the fields of a {cls.__name__} are {item['fields']!r}")
        made, given = object.__new__(cls), _as_today(cls, item["fields"]) if foreign else item["fields"]
        for name, part in given.items():
            object.__setattr__(made, name, decode(part))
        if foreign:
            _complete(made, given)
            check_types(made)
            made.check_fields()
        return made

    found = decode(document)
    if foreign:
        end = 0
        for start, length in sorted(taken):
            if start != end:
                raise ValueError(f"byte {min(start, end)} of the arrays is not read once")
            end = start + length
        if end != len(blob):
            raise ValueError(f"{len(blob)} bytes of arrays, {end} of them read")
    return found


def check_version(cls: Any, version: Any) -> None:
    """Refuse a value whose class gives other numbers now than when it was packed."""
    if version != cls.version:
        raise ValueError(
            f"{cls.__name__} was made by version {version} of its numbers, version {cls.version} is installed; make it "
            "anew, or install the hf_prune that made it"
        )


def _only(entry: Any, *keys: str) -> None:
    if not isinstance(entry, dict) or set(entry) != set(keys):
        raise ValueError(f"{str(entry)[:100]} does not have the keys {', '.join(map(repr, keys))}")


def _complete(made: Any, given: Mapping[str, Any]) -> None:
    """Fields that were not written have their defaults: those that a later version added."""
    known = {field.name: field for field in fields(made)}
    if strange := sorted(set(given) - set(known)):
        raise ValueError(f"{type(made).__name__} has no field {strange[0]!r}")
    for name, field in known.items():
        if name in given:
            continue
        if field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"the field {name!r} of {type(made).__name__} is missing")
        object.__setattr__(
            made, name, field.default_factory() if field.default_factory is not MISSING else field.default
        )


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
