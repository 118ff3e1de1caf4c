"""Cards. HF_PRUNE_UPDATE_GOLDEN=1 python -m pytest tests/test_card.py writes the golden card anew."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from huggingface_hub import DatasetCard

from hf_prune.columns import ScoreColumn
from hf_prune.share.card import (
    Balance,
    Scores,
    balance,
    code,
    escape,
    histogram,
    merge_readme,
    published,
    python,
    scrub,
)
from hf_prune.share.tables import balances_of, table_of, values_of

GOLDEN = Path(__file__).parents[1] / "hub_cards" / "example_scores.md"
CONFIG = {"config_name": "scores", "data_files": [{"split": "train", "path": "scores/train-*"}]}
INFO = {"config_name": "scores", "features": [{"name": "row_id", "dtype": "string"}]}
NASTY = [
    "a|b",
    "two\nlines",
    "<script>alert(1)</script>",
    "`code`",
    "{{ 7 * 7 }}{% raw %}",
    "<!-- hf_prune:end -->",
    "[x](javascript:1)",
    "# head",
    "\u202eright to left\x00",
    "```",
    "$x$",
]


def example():
    """Scores that are the same on every machine: no random generator, no library version."""
    n = 200
    i = np.arange(n)
    score = ((i * 37) % 101 / 101).astype("float32")
    odd = np.where(i % 50 == 0, np.nan, i % 3).astype("float64")
    ds = Dataset.from_dict(
        {
            "row_id": [f"{k:032x}-0" for k in i],
            "label": (i % 7 == 0).astype("int64") + 2 * (i % 11 == 0) * (i % 7 != 0),
            "ssl_proto": score,
            "mystery": odd,
        },
        features=Features(
            {
                "row_id": Value("string"),
                "label": ClassLabel(names=["cat", "dog", "sea|horse"]),
                "ssl_proto": Value("float32"),
                "mystery": Value("float64"),
            }
        ),
        split="train",
    )
    column = ScoreColumn(
        "ssl_proto",
        meaning="Distance to the nearest of k prototypes; high = far from any prototype = keep.",
        raw="cosine similarity s to the nearest prototype; the column is 1 - s",
        scorer="hf_prune.scorers.ssl_prototypes:SSLPrototypes",
        version=1,
        params={"embedding": "embedding", "k": 3, "seed": 0},
        paper="Sorscher et al., 2022: Beyond neural scaling laws: beating power law scaling via data pruning",
        model={"source": "org/encoder", "revision": "0123abc"},
        fitted_on={"rows": 200, "columns": ["embedding"]},
        digest="5d41402abc4b2a76b9719d911017c592",
        packages={"numpy": "2.4.6"},
    )
    names = ["ssl_proto", "mystery"]
    tables = {"train": table_of(ds, "train", "row_id", names)}
    return ds, Scores(
        repo_id="user/example",
        config_name="scores",
        row_id="row_id",
        columns=[column, ScoreColumn("mystery", dtype="float64")],
        rows={"train": n},
        values=values_of(tables, names),
        balances=balances_of({"train": ds}, tables, names, "row_id", None, 0.7),
        data={"repo": "user/example", "config": "default", "revision": "f" * 40},
    )


def scores(columns=(), **more):
    given = {"repo_id": "u/n", "config_name": "scores", "row_id": "row_id", "rows": {"train": 3}}
    return Scores(**{**given, "columns": columns or [ScoreColumn("s")], **more})


def merged(old=None, what=None, **more):
    return merge_readme(old, what or scores(), config=CONFIG, info=INFO, **more)


def test_golden_card():
    text = merged(None, example()[1], license="apache-2.0")
    if os.environ.get("HF_PRUNE_UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8"), "HF_PRUNE_UPDATE_GOLDEN=1 writes it anew"


def test_class_balance_by_hand():
    ds, card = example()
    (found,) = card.balances
    labels, score = np.array(ds["label"]), np.array(ds["ssl_proto"])
    assert found.rows == tuple(np.bincount(labels)) and sum(found.kept["ssl_proto"]) == 140
    cut = np.sort(score)[::-1][139]
    for k in range(3):  # all above the cut stay, all below it go; ties at the cut may go either way
        of = score[labels == k]
        assert (of > cut).sum() <= found.kept["ssl_proto"][k] <= (of >= cut).sum()
    assert sum(found.kept["mystery"]) == 140


def test_balance_of_missing_labels_and_many_classes():
    found = balance("train", "y", np.array([0, 0, 1, -1]), ["a", "b"], {"s": np.array([1, 0, 1, 0], bool)}, 0.5)
    assert found == Balance("train", "y", 0.5, ("a", "b", "(no label)"), (2, 1, 1), {"s": (1, 1, 0)})
    assert found.table() == [["a", "2", "1 (50%)"], ["b", "1", "1 (100%)"], ["(no label)", "1", "0 (0%)"]]
    labels = np.repeat(np.arange(50), 2)
    mask = np.ones(100, bool)
    mask[84:86] = False
    many = balance("train", "y", labels, [f"c{i}" for i in range(50)], {"s": mask}, 0.98)
    assert len(many.table()) == 30 and many.left_out == 20 and many.table()[0] == ["c42", "2", "0 (0%)"]
    assert "20 more are not" in scores(balances=[many]).section()


def test_histogram():
    lines = histogram(np.array([0.0] * 8 + [1.0]), bins=2, width=8)
    assert lines == ["0 to 0.5  ████████  8", "0.5 to 1  █         1"]
    assert histogram(np.array([np.nan, np.inf])) == ["no finite value"]
    assert histogram(np.array([3.0, 3.0]), width=2) == ["3  ██  2"]
    wide = histogram(np.array([-1e308, 1e308, np.inf, 0.0]))
    assert len(wide) == 10 and sum(int(line.split()[-1]) for line in wide) == 3
    tiny = histogram(np.array([0.0, 5e-324]))
    assert sum(int(line.split()[-1]) for line in tiny) == 2


@pytest.mark.parametrize("text", NASTY)
def test_what_comes_from_data_is_escaped(text):
    column = ScoreColumn(
        text, meaning=text, raw=text, scorer=text, params={text: text}, paper=text, companions={text: text}
    )
    values = {text: np.array([1.0, 2.0, np.nan])}
    found = balance("train", text, np.array([0, 1, 1]), [text, "b"], {text: np.array([1, 1, 0], bool)}, 0.7)
    body = scores([column], values=values, balances=[found], row_id=text, rows={"train": 3}).section()
    outside = re.sub(r"^```.*?^```$", "", body, flags=re.S | re.M)
    assert body.count("\n```") % 2 == 0 and "<" not in outside and "\x00" not in body and "\u202e" not in body
    assert "hf_prune:end" not in outside.replace("--&gt;", "") or "<!--" not in body
    for line in outside.splitlines():
        if line.startswith("|"):
            cells = len(re.findall(r"(?<!\\)\|", line)) - 1
            assert cells in (2, 3), line
    once = merged(what=scores([column], values=values))
    assert merged(once, scores([column], values=values)) == once
    code_block = re.search(r"```python\n(.*?)\n```", body, re.S)
    compile(code_block[1], "card", "exec")


def test_escape_keeps_the_text():
    assert escape("plain text, 1 - s.") == "plain text, 1 - s."
    assert code("ssl_proto") == "`ssl_proto`" and code("a`b") == "a\\`b"
    assert eval(python("it's\n\u20ac")) == "it's\n\u20ac"


@pytest.mark.parametrize(
    ("value", "clean"),
    [
        ("/home/me/models/net", "net"),
        ("~/net", "net"),
        ("./a/b", "b"),
        ("../up/b.bin", "b.bin"),
        (r"C:\Users\me\net", "net"),
        ("file:///home/x/y", "y"),
        ("/data", "data"),
        (Path("/a/b/c"), "c"),
        ("read from /home/me/x.bin today", "read from x.bin today"),
        ({"k": ["/home/me/x", 3]}, {"k": ["x", 3]}),
        ("hf_" + "a" * 30, "(token removed)"),
        # left as they are
        ("org/model", "org/model"),
        ("https://arxiv.org/abs/2206.14486", "https://arxiv.org/abs/2206.14486"),
        ("1/2 and/or a / b", "1/2 and/or a / b"),
        ("package.module:Class", "package.module:Class"),
        (0.5, 0.5),
        (None, None),
    ],
)
def test_paths_and_tokens_are_scrubbed(value, clean):
    assert scrub(value) == clean


def test_published_keeps_names():
    column = published(ScoreColumn("/odd/name", model={"source": "/home/me/net"}, companions={"/a/b": "in /home/me/x"}))
    assert column == ScoreColumn("/odd/name", model={"source": "net"}, companions={"/a/b": "in x"})


def test_unknown_provenance_is_said():
    text = merged(what=scores([ScoreColumn("s"), ScoreColumn("t", scorer="a:B", version=2)]))
    assert text.count("Provenance unknown") == 1
    entry = yaml.safe_load(text.split("---\n")[1])["hf_prune"]["scores"]["columns"]
    assert entry == [
        {"name": "s", "dtype": "float32", "provenance": "unknown"},
        {"name": "t", "dtype": "float32", "scorer": "a:B", "version": 2},
    ]


def test_what_a_card_says():
    column = ScoreColumn("al", scorer="a:B", calibrated_keep=0.8, paper="P", companions={"al_cluster": "where"})
    again = ScoreColumn("bl", scorer="a:B", paper="P")
    body = scores([column, again], values={"al": np.array([1.0, np.nan, np.inf])}, config_name="other").section()
    assert "keep = 0.8" in body and "keep=0.8" in body and "config_name=" in body
    assert "1 NaN or null, 1 infinite" in body and body.count("- P") == 1 and "- `al_cluster`: where" in body


def test_readme_of_nobody_and_of_somebody():
    new = merged()
    assert new.startswith("---\n") and "\n# n\n" in new and new.endswith("<!-- hf_prune:end -->\n")
    text_only = merged("# Mine\n\nno yaml\n")
    assert "# Mine\n\nno yaml\n\n<!-- hf_prune:begin -->" in text_only
    assert merged(text_only) == text_only
    yaml_only = merged("---\nlicense: mit\n---\n")
    assert DatasetCard(yaml_only).data.license == "mit" and merged(yaml_only) == yaml_only


def test_damaged_markers():
    begin, end = "<!-- hf_prune:begin -->", "<!-- hf_prune:end -->"
    lone = merged(f"# Mine\n{begin}\nstart without end\n")
    assert lone.count(begin) == lone.count(end) == 1 and "start without end" in lone
    twice = merged(f"# Mine\n{begin}\nold\n{end}\nbetween\n{begin}\nold\n{end}\nafter\n")
    assert twice.count(begin) == 1 and "old\n" not in twice and "between" in twice and "after" in twice


def test_yaml_of_others_is_kept():
    old = (
        "---\ntags: single\nsource_datasets: original\nconfigs:\n- config_name: zzz\n  data_files: x.csv\n"
        "dataset_info:\n  features:\n  - name: a\n    dtype: string\nhf_prune:\n  other: {a: 1}\n---\ntext\n"
    )
    data = DatasetCard(merged(old, source="u/parent", parquet=False)).data
    assert data["tags"] == ["single", "hf_prune", "data-pruning", "scores"]
    assert data["source_datasets"] == ["original", "u/parent"]
    assert [c["config_name"] for c in data["configs"]] == ["zzz", "scores"]
    assert data["configs"][0] == {"config_name": "zzz", "data_files": "x.csv"}
    assert [i["config_name"] for i in data["dataset_info"]] == ["default", "scores"]
    assert set(data["hf_prune"]) == {"other", "scores"}
    crlf = merged("---\r\nlicense: mit\r\n---\r\n# Mine\r\n")
    assert "license: mit" in crlf and "# Mine" in crlf and merged(crlf) == crlf


@pytest.mark.parametrize(
    "header",
    [
        *(
            "configs: 3",
            "configs: [1]",
            "configs: {config_name: x}",
            "configs: x",
            "dataset_info: [x]",
            "dataset_info: 3",
        ),
        *("tags: 3", "tags: {a: b}", "tags: [[a]]", "source_datasets: [3]", "a: [", "a: !!python/object:os.system x"),
        *("? [a]\n: b", "1: 2", "a: &a [*a]\ntags: *a", "x: " + "[" * 2000, "- a\n- b", "just words", "a: b\n c: d"),
    ],
)
def test_odd_yaml_is_one_kind_of_error(header):
    with pytest.raises(ValueError, match=r"^the README of u/n is (damaged \(.*\)|nested too deeply .*); mend its YAML"):
        merged(f"---\n{header}\n---\n# Mine\n")


@pytest.mark.parametrize(
    "header", ["tags: x", "tags: null", "configs: null", "configs: []", "dataset_info: {features: []}"]
)
def test_yaml_that_is_right_is_taken(header):
    assert "# Mine" in merged(f"---\n{header}\n---\n# Mine\n")
