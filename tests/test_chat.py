"""Chats as texts: whatever a turn says counts, what Arrow adds and what is about the turn does not."""

from __future__ import annotations

import io
import json

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Features, Image, Json, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_prune as hp
from hf_prune.data import chat
from hf_prune.data.batch import Batch
from hf_prune.data.texts import read_texts


def png(seed):
    data = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)).save(data, "PNG")
    return {"bytes": data.getvalue(), "path": None}


def user(content, **more):
    return [{"role": "user", "content": content, **more}]


def called(**more):
    return [{"role": "user", "content": "do it"}, {"role": "assistant", "content": None, **more}]


def function(name, arguments):
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}


# pairs of chats that say different things in one place only
DIFFER = {
    "tool calls": [called(tool_calls=[function(n, "{}")]) for n in ("open_door", "shut_door")],
    "arguments as an object": [called(tool_calls=[function("turn", {"degrees": d})]) for d in (90, 180)],
    "a function call": [called(function_call={"name": "turn", "arguments": a}) for a in ('{"d":1}', '{"d":2}')],
    "the result of which call": [
        [*called(tool_calls=[function("f", "{}")]), {"role": "tool", "content": "ok", "tool_call_id": i}] for i in "ab"
    ],
    "a result in parts": [
        user([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": t}]}]) for t in "12"
    ],
    "a tool use in parts": [
        [{"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"q": q}}]}]
        for q in "xy"
    ],
    "names": [user("hello", name=n) for n in ("Ann", "Bob")],
    "reasoning": [called(reasoning_content=t) for t in ("first add", "first subtract")],
    "thinking in parts": [
        [{"role": "assistant", "content": [{"type": "thinking", "thinking": t}, {"type": "text", "text": "42"}]}]
        for t in ("six times seven", "a book says so")
    ],
    "a refusal": [called(refusal=t) for t in ("I will not.", "I cannot.")],
    "paths of pictures": [user([{"type": "image", "path": f"{i}.png"}, {"type": "text", "text": "?"}]) for i in "12"],
    "addresses of pictures": [user([{"type": "image_url", "image_url": {"url": f"https://x.org/{i}"}}]) for i in "12"],
    "how many pictures": [user([{"type": "image"}] * n + [{"type": "text", "text": "what?"}]) for n in (1, 2)],
    "stored pictures": [user([{"type": "image", "image": png(i)}]) for i in (1, 2)],
    "bytes of a file": [user([{"type": "file", "file": {"data": bytes([i]) * 9, "name": "a.pdf"}}]) for i in (1, 2)],
    "a part of no known type": [user([{"type": "poll", "options": ["tea", o]}]) for o in ("milk", "rum")],
    "a part that is a text": [user(["one", t]) for t in ("two", "three")],
    "content that is one part": [user({"type": "audio", "url": f"{i}.wav"}) for i in "12"],
    "content that is JSON": [user({"parts": [t]}) for t in ("tea", "rum")],
}  # fmt: skip


@pytest.mark.parametrize("what", DIFFER)
def test_rows_that_differ_in_what_they_say_are_no_copies(what):
    one, two = DIFFER[what]
    ds = Dataset.from_dict({"messages": [one, two, one]}, on_mixed_types="use_json")
    for stored in (ds, ds.to_iterable_dataset()):
        exact = hp.ExactDedup.fit(stored, text="messages")
        assert exact(ds[:])["exact"].tolist() == [0, 1, 0]
        assert [row["exact"] for row in stored.map(exact, batched=True)] == [0, 1, 0]
    texts, bad, _ = read_texts(Batch({"messages": [one, two]}), ["messages"])
    assert not bad and texts[0] != texts[1]
    assert ds.map(lambda b: {"t": read_texts(Batch(b), ["messages"])[0]}, batched=True)["t"][:] == [*texts, texts[0]]


ABSENT = st.sampled_from([None, [], {}, ""])
EXTRAS = st.dictionaries(st.sampled_from(["name", "tool_calls", "function_call", "reasoning_content"]), ABSENT)


@settings(deadline=None, max_examples=60)
@given(EXTRAS, st.sampled_from(["plain", [{"type": "text", "text": "plain", "path": None, "image": None}], ["plain"]]))
def test_nothing_said_is_nothing(extras, content):
    texts, _, _ = read_texts(Batch({"c": [user(content, **extras)]}), ["c"])
    assert texts == ["user: plain"]


def test_what_arrow_adds_does_not_count():
    """Rows of unlike shape get each other's keys, with nulls: a text stays what it was alone."""
    rows = [
        called(tool_calls=[function("f", {"city": "Rome"})]),
        called(tool_calls=[function("f", {})]),
        user("hi"),
        [{"role": "tool", "content": "ok", "tool_call_id": "c1", "name": "f"}],
    ]
    alone = read_texts(Batch({"m": rows}), ["m"])[0]
    together = Dataset.from_dict({"m": rows})
    assert read_texts(Batch(together[:]), ["m"])[0] == alone
    assert alone[1] == (
        'user: do it\nassistant: {"tool_calls":[{"function":{"name":"f"},"id":"c1","type":"function"}]}'
    )
    assert alone[2:] == ["user: hi", 'tool: ok\n{"name":"f","tool_call_id":"c1"}']


def test_what_is_about_a_turn_is_not_said():
    about = {"timestamp": "2026-01-01", "hashed_ip": "a1", "language": "English", "weight": 1.0, "id": 7}
    one, two = read_texts(Batch({"m": [user("hi"), user("hi", **about)]}), ["m"])[0]
    assert one == two == "user: hi"


def test_a_chat_of_calls_or_pictures_alone_is_not_empty():
    calls = [{"role": "assistant", "tool_calls": [function("f", "{}")]}]  # without content at all
    nothing = [{"role": "assistant", "content": [], "tool_calls": []}]
    texts, bad, _ = read_texts(Batch({"m": [calls, user([{"type": "image"}]), nothing, user(None)]}), ["m"])
    assert bad == {2: "is empty", 3: "is empty"} and texts[1] == 'user: {"type":"image"}'


def test_json_is_canonical():
    one = called(tool_calls=[{"b": 1, "a": {"y": "é", "x": np.float32(0.5)}}])
    two = called(tool_calls=[{"a": {"x": 0.5, "y": "é"}, "b": np.int64(1), "c": None}])
    assert chat.turns_of(one)[1].said == chat.turns_of(two)[1].said == '{"tool_calls":[{"a":{"x":0.5,"y":"é"},"b":1}]}'
    assert json.loads(chat.turns_of(one)[1].said)["tool_calls"][0]["b"] == 1


def test_a_picture_counts_by_its_pixels():
    """The same from the stored bytes, from a stream that decodes them, and under another name."""
    part = {"type": Value("string"), "image": Image()}
    features = Features({"m": List({"role": Value("string"), "content": List(part)})})
    named = {**png(1), "path": "a.png"}
    rows = [user([{"type": "image", "image": p}]) for p in (png(1), png(2), named)]
    ds = Dataset.from_dict({"m": rows}, features=features)
    scorer = hp.ExactDedup.fit(ds, text="m")
    assert ds.map(scorer, batched=True)["exact"][:] == [0, 1, 0]
    assert [row["exact"] for row in ds.to_iterable_dataset().map(scorer, batched=True)] == [0, 1, 0]


def test_json_columns_are_chats():
    rows = [called(tool_calls=[function("f", {"q": q})]) for q in (1, "two", None)]
    turn = {"role": Value("string"), "content": Value("string"), "tool_calls": List(Json())}
    expected = read_texts(Batch({"m": rows}), ["m"])[0]
    for features in (Features({"m": Json()}), Features({"m": List(turn)})):
        ds = Dataset.from_dict({"m": rows}, features=features)
        for held in (ds, ds.to_iterable_dataset()):
            found = held.map(lambda b: {"t": read_texts(Batch(b), ["m"])[0]}, batched=True)
            assert [row["t"] for row in found] == expected


def test_the_template_gets_the_turns():
    seen = []

    def template(turns):
        seen.extend(turns)
        return "rendered"

    rows = [[
        {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image"}], "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [function("f", {"q": None})], "mood": "calm"},
    ]]  # fmt: skip
    texts, _, rendered = read_texts(Batch({"m": rows}), ["m"], template=template)
    assert texts == ["rendered"] and rendered
    assert seen == [
        {"role": "user", "content": 'look\n{"type":"image"}'},
        {"role": "assistant", "content": "", "mood": "calm", "tool_calls": [function("f", {})]},
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([{"role": "user"}], "row 0 of this batch is list, neither text nor a chat"),
        ({"role": "user", "content": "x"}, "row 0 of this batch is dict, neither text nor a chat"),
        (user([object()]), r"column 'm': row 0 of this batch holds a object in a turn, .* ds.decode\(False\)"),
    ],
)
def test_what_is_no_chat_is_told(row, message):
    with pytest.raises(TypeError, match=message):
        read_texts(Batch({"m": [row]}), ["m"])


def test_bytes_that_are_no_text_are_told():
    import pyarrow as pa

    raw = b"fine\xff\xfe"
    bad = pa.Array.from_buffers(
        pa.large_string(), 2, [None, pa.py_buffer(np.array([0, 4, 6], np.int64)), pa.py_buffer(raw)]
    )
    ds = Dataset(datasets.table.InMemoryTable(pa.table({"text": bad})))
    with pytest.raises(ValueError, match="the text of row 1 of this batch is not valid UTF-8"):
        ds.map(hp.TextStatistics(), batched=True)
