"""What fields may hold, read from their annotations: the check of values that come out of a file."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import PurePath
from typing import Any

import numpy as np


def check_types(value: Any) -> None:
    """Raise a ValueError if a field of a dataclass holds what its annotation does not allow.

    Annotations of other kinds than plain types, lists, mappings, arrays and classes allow anything.
    """
    cls: Any = type(value)
    for name, hint in _hints(cls).items():
        item = getattr(value, name)
        if not fits(item, hint):
            said = repr(item) if isinstance(item, (str, int, float)) else f"a {type(item).__name__}"
            said = f"an array of {item.dtype}" if isinstance(item, np.ndarray) else said
            raise ValueError(f"{type(value).__name__}.{name} is {said[:100]}, not {_text(hint)}")


@cache
def _hints(cls: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    homes = {
        name: vars(sys.modules.get(base.__module__, types))
        for base in reversed(cls.__mro__)
        for name in inspect.get_annotations(base)
    }
    for field in fields(cls):
        hint: Any = field.type
        if isinstance(hint, str):
            try:
                hint = eval(hint, dict(homes.get(field.name, {})))  # the annotation of a class, not of a file
            except (NameError, TypeError, AttributeError):  # a name for type checkers only
                hint = Any
        found[field.name] = hint
    return found


def fits(item: Any, hint: Any) -> bool:
    """Whether a value that was saved is what an annotation says; lists were saved as tuples, paths as strings.

    >>> fits(("a", "b"), Sequence[str]), fits("ab", Sequence[str]), fits(True, int), fits(1, float)
    (True, False, False, True)
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(item, one) for one in args)
    if origin is typing.Literal:
        return any(type(item) is type(one) and item == one for one in args)
    if origin is typing.Annotated:
        return fits(item, args[0])
    if hint is None or hint is type(None):
        return item is None
    if hint in (int, bool, str):
        return type(item) is hint
    if hint is float:
        return type(item) in (int, float)
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if issubclass(kind, np.ndarray):
        wanted = typing.get_args(args[1])[0] if len(args) == 2 and typing.get_args(args[1]) else None
        known = isinstance(wanted, type) and issubclass(wanted, np.generic)
        return isinstance(item, np.ndarray) and (not known or np.issubdtype(item.dtype, wanted))
    if issubclass(kind, PurePath):
        return isinstance(item, str)
    if kind in (dict, Mapping) or (isinstance(kind, type) and issubclass(kind, Mapping)):
        return isinstance(item, Mapping) and (len(args) != 2 or all(fits(one, args[1]) for one in item.values()))
    if kind is tuple and args and args[-1] is not Ellipsis:
        return isinstance(item, tuple) and len(item) == len(args) and all(map(fits, item, args))
    if kind in (tuple, list, set, frozenset, Sequence, Collection):
        return isinstance(item, tuple) and (not args or all(fits(one, args[0]) for one in item))
    if hasattr(kind, "__dataclass_fields__"):
        return isinstance(item, kind)
    return True


def _text(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(repr, typing.get_args(hint)))}"
    if typing.get_origin(hint) is np.ndarray and len(kinds := typing.get_args(hint)) == 2:
        return f"an array of {getattr((typing.get_args(kinds[1]) or ('numbers',))[0], '__name__', 'numbers')}"
    return "None" if hint is type(None) else hint.__name__ if isinstance(hint, type) else str(hint)
