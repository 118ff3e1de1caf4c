"""Provenance from elsewhere: read right or refused with one kind of message."""

from __future__ import annotations

import json
import random

import pytest
from killing import flipped

from hf_prune import Ledger
from hf_prune.columns import ScoreColumn, parse_sidecar, read_sidecar, sidecar_text
from hf_prune.data.files import DamagedFileError

COLUMN = ScoreColumn(
    "q", meaning="good", scorer="a:B", version=2, params={"k": [1, "x"]}, fitted_on={"rows": 3}, companions={"q_c": "c"}
)
WRONG = [
    *(
        '{"format": 1, "columns": 3}',
        '{"format": "1", "columns": []}',
        '{"format": true, "columns": []}',
        '{"columns": []}',
    ),
    *(
        '{"format": 1, "columns": [3]}',
        '{"format": 1, "columns": [{"name": 3}]}',
        '{"format": 1, "columns": {"name": "q"}}',
    ),
    *(
        '{"format": 1, "columns": [{"name": "q", "params": 3}]}',
        '{"format": 1, "columns": [{"name": "q", "version": "2"}]}',
    ),
    '{"format": 1, "columns": [{"name": "q", "companions": ["x"]}]}',
    '{"format": 1, "columns": [{"name": "q", "companions": {"a": 1}}]}',
    '{"format": 1, "columns": [{"name": "q", "scorer": ["a:B"]}]}',
    '{"format": 1, "columns": [], "columns": []}',
    '{"format": 1, "columns": ' + "[" * 10**5,
    *("\ufeff{}", "null", "3", '"x"'),
]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_sidecar(text, tmp_path):
    (tmp_path / "score_columns.json").write_text(text, encoding="utf-8")
    with pytest.raises(DamagedFileError, match="^the sidecar .*score_columns.json is .*; score the data again"):
        read_sidecar(tmp_path / "score_columns.json")


def test_flipped_bits_give_a_sidecar_or_a_clear_error(tmp_path):
    path = tmp_path / "score_columns.json"
    path.write_text(sidecar_text([COLUMN], row_id="row_id"), encoding="utf-8")
    data = path.read_bytes()
    refused = 0
    for _, changed in flipped(data):
        path.write_bytes(changed)
        try:
            columns, _ = read_sidecar(path)
        except ValueError as error:
            assert "sidecar" in str(error) or "upgrade" in str(error)
            refused += 1
        else:
            for column in columns.values():
                sidecar_text([column])
    assert refused > 100


def test_odd_values_anywhere():
    draw, odd = random.Random(0), [None, True, 3, -1.5, "x", [], {}, [[1]], {"a": {"b": 1}}, "\x1b", "../x"]
    whole = json.loads(sidecar_text([COLUMN], row_id="row_id"))
    read = 0
    for _ in range(500):
        document = json.loads(json.dumps(whole))
        entry = document["columns"][0]
        place = draw.choice([document, entry, entry["params"], entry["companions"], entry["fitted_on"]])
        place[draw.choice([*place, "more"])] = draw.choice(odd)
        try:
            columns, _ = parse_sidecar(json.dumps(document))
        except ValueError as error:
            assert "the sidecar score_columns.json is damaged" in str(error) or "upgrade" in str(error)
        else:
            read += 1
            for column in columns.values():
                assert ScoreColumn.from_json(column.to_json()).name == column.name
    assert 50 < read < 450


def test_a_later_format_and_later_entries():
    with pytest.raises(ValueError, match="format 2, this version reads up to 1; upgrade"):
        parse_sidecar('{"format": 2, "anything": []}')
    columns, facts = parse_sidecar('{"format": 1, "columns": [{"name": "q", "later": 3}], "row_id": "id"}')
    assert columns == {"q": ScoreColumn("q")} and facts == {"row_id": "id"}


@pytest.mark.parametrize(
    "text", ["{}", "[]", "{", '{"rows": 3}', '{"rows": "3", "scoring": 1, "seconds": 0, "training": null}']
)
def test_what_is_no_ledger(text):
    with pytest.raises(DamagedFileError, match="the ledger that was given is damaged"):
        Ledger.from_json(text)
    ledger = Ledger(3, 1.5)
    assert Ledger.from_json(ledger.to_json()) == ledger
