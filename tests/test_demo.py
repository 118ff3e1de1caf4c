from __future__ import annotations

import builtins
import json
import sys

import datasets
import numpy as np
import pytest

from hf_prune.cli import demo
from hf_prune.columns import read_sidecar

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    said = []
    text = demo.run(out, seeds=2, steps=20, rows=300, say=said.append)
    return out, text, said


def test_the_demo_writes_all_it_promises(done):
    out, text, said = done
    assert sorted(p.name for p in out.iterdir()) == [
        "accuracy.json", "kept", "report.html", "report.md", "scored", "scores",
    ]  # fmt: skip
    assert (out / "report.md").read_text() == text
    scored, kept = datasets.load_from_disk(out / "scored"), datasets.load_from_disk(out / "kept")
    assert len(scored) == 200 and len(kept) == 140
    assert {"ssl_proto", "supervised_proto", "embedding", "row_id"} <= set(scored.column_names)
    columns, _ = read_sidecar(out / "scored" / "score_columns.json")
    assert set(columns) == {"ssl_proto", "supervised_proto"}
    assert "done in" in said[-1]
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_its_page_has_pictures_tables_and_commands(done):
    page = (done[0] / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 48
    assert page.count("<svg") == 2 and "minus random" in page and "hf-prune filter" in page
    assert "Classes before and after" in page


def test_its_table_says_what_was_measured(done):
    out, text, _ = done
    found = json.loads((out / "accuracy.json").read_text())
    assert len(found) == 6 and found["all rows"]["rows"] == 200
    assert {v["rows"] for k, v in found.items() if k != "all rows"} == {140}
    for arm in found.values():
        mean, half = demo.interval(100 * np.array(arm["accuracy"]))
        assert f"{mean:.2f} ± {half:.2f}" in text


def arm(name, *values):
    return demo.Arm(name, 10, np.array(values))


def test_the_verdict_follows_the_intervals():
    arms = [
        arm("all rows", 0.9, 0.91, 0.92),
        arm("random", 0.8, 0.81, 0.82),
        arm("up", 0.9, 0.91, 0.92),
        arm("down", 0.7, 0.71, 0.7201),
        arm("level", 0.7, 0.81, 0.92),
    ]
    text = demo.verdict(arms)
    assert "up: did better than random rows" in text
    assert "down: did worse than random rows" in text
    assert "level: cannot be told from random rows" in text
    assert "All rows minus random rows: +10.00" in text
    head, body = demo.accuracy_table(arms)
    assert body[1][-1] == "" and body[2][-1] == "+10.00 ± 0.00"


def test_interval_by_hand():
    # mean 2, standard deviation 1, t(0.975, 2) = 4.302653
    mean, half = demo.interval([1, 2, 3])
    assert mean == pytest.approx(2) and half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert demo.interval([1, 2, 3], together=5)[1] > half


def test_trainings_are_repeatable():
    train, _ = demo.digits(150)
    x, y = demo.tensors(train)
    one, two, other = (demo.train_network(x, y, 5, seed)(x) for seed in (1, 1, 2))
    assert (one == two).all() and not (one == other).all()


def test_digits_are_pictures_with_labels():
    train, test = demo.digits()
    assert len(train) + len(test) == 1797 and len(test) == demo.TEST_ROWS
    assert train[0]["image"].size == (8, 8) and train.features["label"].names == [str(i) for i in range(10)]
    assert not set(train["row_id"]) & set(test["row_id"])


def test_errors(done, tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match="--overwrite"):
        demo.run(done[0])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("")
    with pytest.raises(FileExistsError, match="did not write"):
        demo.run(tmp_path / "mine", overwrite=True)
    with pytest.raises(ValueError, match="100 pictures"):
        demo.run(tmp_path / "x", rows=10)
    load = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("sklearn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return load(name, *rest, **more)

    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'hf_prune\[demo\]'"):
        demo.run(tmp_path / "x")
    assert not (tmp_path / "x").exists()
