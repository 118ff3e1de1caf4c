"""`hf-prune scorers`, and messages in the words of the command line."""

from __future__ import annotations

import inspect
import re

import pytest
from datasets import Dataset
from typer.testing import CliRunner

import hf_prune
from hf_prune.cli import catalog, errors, main
from hf_prune.cli.scorers import QUESTIONS, SCORERS, class_of, maker_of, parameters_of
from hf_prune.scorer import Scorer

APART = {"Scorer", "Embedder"}  # the base, and what has a command of its own


def run(*args):
    return CliRunner().invoke(main.app, [str(a) for a in args], env={"COLUMNS": "80"})


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("catalog") / "rows.jsonl"
    Dataset.from_dict({"review": [f"row {i}" for i in range(9)], "x": [float(i) for i in range(9)]}).to_json(path)
    return path


def test_every_scorer_of_the_package_is_listed():
    public = {name: getattr(hf_prune, name) for name in hf_prune.__all__}
    scorers = {n for n, c in public.items() if isinstance(c, type) and issubclass(c, Scorer)} - APART
    assert {entry.home for entry in SCORERS.values()} == scorers
    assert len(SCORERS) == sum(map(len, QUESTIONS.values()))  # none answers two questions


def test_listing_fits_and_says_what_is_needed():
    shown = run("scorers")
    assert shown.exit_code == 0 and all(len(line) <= 80 for line in shown.output.splitlines())
    for name in SCORERS:
        assert re.search(rf"^  {name} +needs \w", shown.output, re.M), name


@pytest.mark.parametrize("name", SCORERS)
def test_options_of_each(name):
    shown = run("scorers", name)
    maker = maker_of(class_of(SCORERS[name]), SCORERS[name])
    assert shown.exit_code == 0 and all(len(line) <= 80 for line in shown.output.splitlines())
    options = re.findall(r"^  (\w+)  \((?:required|default .*)\)$", shown.output, re.M)
    assert options == list(parameters_of(maker))
    assert not set(inspect.signature(maker).parameters) - set(options) - {"ds", "logged", "fitted_on"}
    about = re.split(r"^  \w+  \(.*\)$", shown.output, flags=re.M)[1:]
    assert not [o for o, text in zip(options, about, strict=True) if not text.strip()], "options without a line"


def test_unknown_scorer():
    shown = run("scorers", "minhas")
    assert shown.exit_code == 1 and "did you mean 'minhash'?" in shown.output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("score", "--scorer", "ssl_proto"), "make one with `hf-prune embed`"),
        (("score", "--scorer", "exact"), "--set text=COLUMN"),
        (("score", "--scorer", "exact", "--set", "text=reviw"), "did you mean --set text=review?"),
        (("score", "--scorer", "mine:Gone"), "cannot be imported"),
        (("filter", "--by", "x", "--keep", "1.5"), "--keep 1.5 is not a fraction"),
        (("filter", "--by", "x", "--rows", "0"), "--rows 0"),
        (("filter", "--by", "x", "--keep", "0.5", "--nulls", "gone"), "--nulls gone"),
        (("filter", "--by", "xx", "--keep", "0.5"), "did you mean 'x'?"),
    ],
)
def test_messages_speak_flags(args, said, rows, tmp_path):
    shown = run(args[0], rows, *args[1:], "-o", tmp_path / "out")
    assert shown.exit_code == 1 and said in shown.output
    assert not re.search(r"\b(keep|rows|nulls)=", shown.output)


@pytest.mark.parametrize("out", ["-", "x.txt", "x.tsv", "x.zip", "x.JSONL", "x.csv.gz", "x.xlsx"])
def test_outputs_that_are_refused(out, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = run("filter", rows, "--by", "x", "--keep", "0.5", "-o", out)
    assert shown.exit_code == 1 and ".parquet, .jsonl, .csv" in shown.output and not list(tmp_path.iterdir())


def test_a_folder_may_have_dots(rows, tmp_path):
    assert run("filter", rows, "--by", "x", "--keep", "0.5", "-o", tmp_path / "kept.v1.2").exit_code == 0


def test_a_scorer_of_the_current_folder(rows, tmp_path, monkeypatch):
    (tmp_path / "my_length.py").write_text(
        "from dataclasses import dataclass\nimport hf_prune as hp\n\n@dataclass(frozen=True, eq=False)\n"
        "class Length(hp.Scorer):\n    text: str = 'review'\n    name: str = 'length'\n\n"
        "    def score(self, batch, rank):\n        return [len(t) for t in batch.texts(self.text)]\n"
    )
    monkeypatch.chdir(tmp_path)
    shown = run("score", rows, "--scorer", "my_length:Length", "-o", "out")
    assert shown.exit_code == 0, shown.output


def test_flags_replace_arguments_only():
    flags = {"keep": "--keep", "overwrite": "--overwrite"}
    assert errors.in_flags("give keep=0.5, or keep='x y'", flags) == "give --keep 0.5, or --keep x y"
    assert errors.in_flags("pass overwrite=True (--overwrite)", flags) == "pass --overwrite"
    assert errors.in_flags("pass keep=...", flags) == "pass --keep ..."
    for text in ("a.keep=1", "--keep=1", "keep is", "row keeps=2", "sort(key=keep)"):
        assert errors.in_flags(text, flags) == text


def test_help_fits():
    for command in ("", "embed", "score", "filter", "push", "scorers", "doctor", "demo"):
        shown = run(*([command] if command else []), "--help")
        assert shown.exit_code == 0 and not [line for line in shown.output.splitlines() if len(line) > 80], command


def test_needs_name_columns():
    assert catalog.needs(SCORERS["supervised_proto"]) == "embeddings, labels"
