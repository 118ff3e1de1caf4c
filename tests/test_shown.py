"""What a terminal may be shown, and what nobody may."""

from __future__ import annotations

import json
import unicodedata

import pytest

from hf_prune.columns import ScoreColumn, sidecar_text
from hf_prune.share.card import published, scrub
from hf_prune.shown import printable, without_tokens

TOKENS = [
    "hf_" + "aB3" * 11 + "x",
    "hf_oauth_" + "eyJhbGciOi.J_FZ-x" * 3,
    "hf_jwt_" + "eyJhbGciOiJFZERTQSJ9.eyJyZWFk_-.c2ln",
    "api_org_" + "aB3" * 11 + "x",
]


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize(
    "around", ["{}", "a {} b", "x={},", "https://me:{}@huggingface.co/a", '"{}"', "Bearer {}", "_{}"]
)
def test_no_token_is_left(token, around):
    text = around.format(token)
    clean = around.format("(token removed)")
    assert without_tokens(text) == clean
    assert without_tokens({text: [text, {"k": (text,)}]}) == {clean: [clean, {"k": [clean]}]}
    assert token[8:] not in scrub(text) and token[8:] not in scrub({text: text}).popitem()[0]
    column = ScoreColumn("q", params={"note": text}, meaning=text, companions={"q_more": text}, model={"name": text})
    for told in (column.to_json(), sidecar_text([column]), published(column).to_json()):
        assert token[8:] not in told and "(token removed)" in told


@pytest.mark.parametrize(
    "text",
    [
        "hf_prune",
        "hf_prune:SSLPrototypes",
        "the hf_xet package",
        "api_organisation",
        "hf_hub_download",
        "shf_" + "a" * 30,
    ],
)
def test_what_is_no_token_stays(text):
    assert without_tokens(text) == text


def test_a_column_is_called_what_it_is_called():
    column = ScoreColumn(TOKENS[0], companions={TOKENS[0] + "_x": "c"})
    assert json.loads(column.to_json())["name"] == TOKENS[0] and TOKENS[0] + "_x" in column.to_dict()["companions"]


def test_nothing_that_a_terminal_obeys_is_left():
    obeyed = [chr(i) for i in range(0x110000) if unicodedata.category(chr(i)) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    obeyed = [c for c in obeyed if c not in "\u200c\u200d"]
    shown = printable("".join(obeyed))
    assert shown.isascii() and shown.isprintable() and len(obeyed) > 200
    assert printable("a\nb\r\x1b]0;x\x07") == "a\\nb\\r\\x1b]0;x\\x07"
    assert printable("a\nb\r", lines=True) == "a\nb\\r"
    assert printable("abc\u202etxt.exe") == "abc\\u202etxt.exe" and printable("\ud800") == "\\ud800"


@pytest.mark.parametrize("text", ["plain", "größe", "متن‌ها", "👩‍👧", "हिन्दी", "12 %", "日本"])
def test_words_of_all_scripts_stay(text):
    assert printable(text) == text
