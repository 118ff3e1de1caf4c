"""Chats as texts: what a turn says, with its tool calls, tool results, names and pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

TEXT_PARTS = (None, "text", "input_text", "output_text")
# what a turn may say beside `content`, by the names that OpenAI, Anthropic, Cohere and chat templates have for it
SPOKEN = frozenset(
    "name tool_calls tool_call function_call tool_call_id call_id tool_name tool_plan tool_results tool_result "
    "tool_responses tool_response tools functions documents citations reasoning_content reasoning reasoning_details "
    "thinking thinking_blocks refusal image images image_url audio input_audio video videos file files attachments "
    "parts".split()
)


class Turn(NamedTuple):
    """A turn of a chat.

    Attributes:
        role: who speaks.
        said: the text of `content`, and JSON of what else the turn says, a line each; "" where it says nothing.
        for_template: the turn for a chat template: `content` as text, the other keys as they are, without nulls.
    """

    role: str
    said: str
    for_template: dict[str, Any]


def turns_of(value: Any) -> list[Turn]:
    """Read a chat: a list of turns `{"role": ..., "content": ..., ...}`.

    `content` is a text or a list of parts: texts stand as they are, any other part (a picture, a file, a tool call,
    reasoning) as canonical JSON: keys in order, nulls and empty containers left out, as Arrow adds them to rows of
    unlike shape. So do the keys of `SPOKEN`, if they hold anything. Other keys (ids, dates, weights, languages) are
    about the turn, not said in it, and leave the text as it is. A picture that is stored in the row counts by its
    pixels, other bytes by their SHA-256.

    Raises:
        TypeError: something else; or a turn holds an object that has no JSON.

    >>> call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "play", "x": None}}]}
    >>> turns_of([{"role": "user", "content": "hi", "id": 7}, call])[1].said
    '{"tool_calls":[{"function":{"name":"play"}}]}'
    """
    turns = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(turns, (list, tuple)) or not all(
        isinstance(t, Mapping) and "role" in t and ("content" in t or SPOKEN & t.keys()) for t in turns
    ):
        raise TypeError(
            f"is {type(value).__name__}, neither text nor a chat [{{'role': ..., 'content': ...}}]; name a text column"
        )
    return [_turn(turn) for turn in turns]


def _turn(turn: Mapping[str, Any]) -> Turn:
    role, content = str(turn["role"]), _content(turn.get("content"))
    more = {key: plain(turn[key]) for key in turn if key in SPOKEN}
    more = {key: item for key, item in more.items() if not _nothing(item) and item != ""}
    said = "\n".join(line for line in (content, canonical(more) if more else "") if line)
    others = {key: item for key, item in turn.items() if key not in ("role", "content") and item is not None}
    return Turn(role, said, {**{k: _without_nulls(v) for k, v in others.items()}, "role": role, "content": content})


def _content(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, np.ndarray):
        content = content.tolist()
    parts = content if isinstance(content, (list, tuple)) else [content]
    return "\n".join(text for text in map(_part, parts) if text)


def _part(part: Any) -> str:
    if part is None or isinstance(part, str):
        return part or ""
    if not isinstance(part, Mapping):
        return canonical(plain(part))
    kind, text = part.get("type"), part.get("text")
    if kind in TEXT_PARTS and (text is None or isinstance(text, str)):
        others = {key for key, item in part.items() if item is not None} - {"type", "text"}
        if kind is not None or not others:
            return text or ""
    return canonical(plain(part))


def canonical(value: Any) -> str:
    """JSON of a value of `plain`: keys in order, no spaces, letters as they are."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def plain(value: Any) -> Any:
    """A value as JSON knows it, without the nulls and empty containers in its dicts.

    Raises:
        TypeError: it holds an object that has no JSON.
    """
    if value is None or isinstance(value, (str, bool, int, float)) and not isinstance(value, np.generic):
        return value
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim > 1:
        raise TypeError(
            "holds a decoded picture in a turn, whose mode a format does not tell; use ds.with_format(None)"
        )
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        if set(value) == {"bytes", "path"} and isinstance(value["bytes"], bytes):  # as Image and Audio are stored
            return _file(value["bytes"])
        made = {str(key): plain(item) for key, item in value.items()}
        return {key: item for key, item in made.items() if not _nothing(item)}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return f"sha256:{hashlib.sha256(value).hexdigest()}"
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "tobytes") and hasattr(value, "mode"):
        return _pixels(value)
    raise TypeError(
        f"holds a {type(value).__name__} in a turn, which has no JSON; take it out of the chat, or turn its decoding "
        "off, as in ds.decode(False) or cast_column(..., Image(decode=False))"
    )


def _nothing(item: Any) -> bool:
    return item is None or (isinstance(item, (dict, list)) and not item)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, (list, tuple)) else value


def _file(data: bytes) -> str:
    """A stored file: a picture as a stream decodes it, anything else by its bytes."""
    from datasets import Image

    try:
        return _pixels(Image().decode_example({"bytes": data, "path": None}))
    except Exception:  # a sound, a document, a broken picture
        return str(plain(data))


def _pixels(image: Any) -> str:
    state = hashlib.sha256(f"{image.mode} {image.size} {image.getpalette()}".encode())
    state.update(image.tobytes())
    return f"sha256:{state.hexdigest()}"
