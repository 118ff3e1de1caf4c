from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_prune.columns import ScoreColumn
from hf_prune.share.report import Table, class_balance, histogram_bars, picture_uri, report

EVIL = '<script>alert("x")</script>&{{ 7 * 7 }}'


class Page(HTMLParser):
    """Elements with their attributes; fails on tags that are not closed."""

    VOID = {"meta", "img", "rect", "line", "br"}

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def png(size=(8, 8), mode="L"):
    stream = io.BytesIO()
    PIL.Image.new(mode, size).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def pictures():
    n = 30
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", EVIL]),
            "score": datasets.Value("float32"),
        }
    )
    image = [{"bytes": png((200, 50)) if i else b"damaged", "path": None} for i in range(n)]
    table = {"image": image, "label": [i % 2 for i in range(n)], "score": [float(i) for i in range(n)]}
    return datasets.Dataset.from_dict(table, features=features)


def test_data_are_escaped():
    ds = datasets.Dataset.from_dict({"text": [EVIL, "b"], "kind": [EVIL, "b"], EVIL: [1.0, 2.0]})
    column = ScoreColumn(EVIL, meaning=EVIL, params={EVIL: EVIL}, paper=EVIL)
    text = report(ds, [column], kept={EVIL: np.array([True, False])}, label="kind", title=EVIL, notes=[EVIL],
                  tables=[Table(EVIL, [EVIL], [[EVIL]])], commands=[EVIL])  # fmt: skip
    page = Page(text)
    assert not page.all("script") and "<script" not in text
    assert "49" not in "".join(page.text)
    assert EVIL in "".join(page.text)


def test_it_stands_alone(pictures):
    text = report(pictures, ["score"], kept={"score": np.arange(30) >= 15})
    page = Page(text)
    assert not re.search(r"https?://|url\(|@import|src=\"(?!data:image/png;base64,)", text)
    assert not page.all("link") and not page.all("script")
    policies = [m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policies[0]["content"]


def test_it_is_accessible(pictures):
    page = Page(report(pictures, ["score"], kept={"score": np.arange(30) >= 15}, examples=4))
    assert ("html", {"lang": "en"}) in page.elements
    alts = [image["alt"] for image in page.all("img")]
    assert len(alts) == 7  # of eight rows one is damaged
    assert alts[0] == f"Row 1, class {EVIL}, score 1"
    svg = page.all("svg")[0]
    assert svg["role"] == "img" and svg["aria-labelledby"] in [t.get("id") for t in page.all("title")]
    assert all("scope" in th for th in page.all("th"))
    assert "prefers-color-scheme: dark" in "".join(page.text)


def test_rows_at_both_ends(pictures):
    page = Page(report(pictures, ["score"], examples=2))
    shown = re.findall(r"row (\d+)", "".join(page.text))
    assert shown == ["0", "1", "29", "28"]
    few = Page(report(pictures.select(range(3)), ["score"], examples=2))
    assert re.findall(r"row (\d+)", "".join(few.text)) == ["0", "1", "2"]  # none is shown twice


def test_numbers_that_are_none():
    values = [1.0, None, float("nan"), float("inf"), 2.0]
    ds = datasets.Dataset.from_dict({"score": values, "text": list("abcde")})
    text = report(ds, ["score"])
    assert "2 NaN or null, 1 infinite" in text
    nothing = datasets.Dataset.from_dict({"score": [None, None]}).cast_column("score", datasets.Value("float32"))
    assert "<svg" not in report(nothing, ["score"])
    assert "<svg" not in report(nothing.select([]), ["score"])


def test_errors(pictures):
    with pytest.raises(KeyError, match="no column 'nope'"):
        report(pictures, ["nope"])
    with pytest.raises(KeyError, match="no column 'kind'"):
        report(pictures, ["score"], label="kind")
    with pytest.raises(ValueError, match="has shape"):
        report(pictures, ["score"], kept={"x": np.ones(3, bool)})
    with pytest.raises(TypeError):
        report(datasets.Dataset.from_dict({"text": ["a"]}), ["text"])
    with pytest.raises(ValueError, match="not classes"):
        class_balance(pictures, "score", {})


def test_histogram_counts():
    rng = np.random.default_rng(0)
    values, kept = rng.normal(size=1000), rng.random(1000) < 0.3
    bars, most = histogram_bars(values, kept, bins=20)
    every, _ = np.histogram(values, bins=20)
    inner, _ = np.histogram(values[kept], bins=20, range=(values.min(), values.max()))
    assert most == every.max()
    np.testing.assert_allclose([b.height for b in bars], every / most * 160, atol=0.01)
    np.testing.assert_allclose([b.kept_height for b in bars], inner / most * 160, atol=0.01)
    for odd in ([1e308, -1e308], [3.0, 3.0], [0.0]):
        bars, most = histogram_bars(np.array(odd), np.ones(len(odd), bool))
        assert sum(b.height > 0 for b in bars) == len(set(odd))


def test_pictures_are_small_and_written_anew():
    import base64

    uri = picture_uri({"bytes": png((4000, 100), "RGBA"), "path": None})
    assert PIL.Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (128, 3)
    assert picture_uri({"bytes": b"<svg onload='x'/>", "path": None}) == ""
    assert picture_uri({"bytes": None, "path": "no/such.png"}) == ""
    assert picture_uri(None) == ""


def test_classes_of_any_kind(pictures):
    found = class_balance(pictures, "label", {"low": np.arange(30) < 10})
    assert found.rows == (15, 15) and found.kept["low"] == (5, 5)
    ds = datasets.Dataset.from_dict({"kind": ["b", "a", None, "a"]})
    found = class_balance(ds, "kind", {"m": np.array([True, True, True, False])})
    assert found.names == ("a", "b", "(no label)") and found.kept["m"] == (1, 1, 1)
