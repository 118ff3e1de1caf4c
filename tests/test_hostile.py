"""A thousand saved scorers and logs that a stranger changed: none makes anything run, open or import anything."""

from __future__ import annotations

import ast
import copy
import json
import os
import pkgutil
import random
import re
import shutil
import sys
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forging import forge
from launching import python
from made_scorers import EXPECTED, made, rows

import hf_prune as hp
from hf_prune import Scorer, homes
from hf_prune.values import Value, class_name, code_of, find_class, pack, packed_digest

HERE = Path(__file__).parent
COUNT, LOGS = 1000, 200

DEEP: Any = "bottom"
for _ in range(120):
    DEEP = [DEEP]
POISON: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        -(2**63),
        2**70,
        1e308,
        float("nan"),
        float("-inf"),
        "",
        "\0",
        "\x1b[31m",
        "a" * 10_000,
    ),
    *("../../../etc/passwd", "/etc/passwd", "~", ".", "canary_of_hostile", "canary_of_hostile:run", "os:system"),
    *("live", "folder", "live:/tmp", "0" * 32, "0" * 40, "0" * 64, "someone/model", "O", "V16", "(9,)f4", "float128"),
    *([], {}, [[]], [-1], [2**40, 2**40], ["os:system"], DEEP),
    *({"\0value": 0}, {"\0value": 1, "version": 1, "fields": {}}, {"\0stored": "../../../etc/passwd"}),
    *({"\0stored": "0" * 32}, {"\0array": {"array": "float64", "shape": [2], "start": -16}}, {"\0array": None}),
    {"\0array": {"array": "object", "shape": [1], "start": 0}},
]
CLASSES = [
    *("canary_of_hostile:Thing", "os:system", "subprocess:Popen", "builtins:eval", "hf_prune.__main__:main"),
    *(
        "hf_prune.cli.demo:run",
        "hf_prune.cli.main:app",
        "hf_prune:SSLPrototypes",
        "hf_prune.cli.doctor:main",
        "hf_prune.models:home",
    ),
    *("hf_prune.models:Model", "hf_prune.scorer:Scorer", "hf_prune.values:Value", "transformers:AutoModel", "", ":"),
    *(
        "hf_prune.scorers.kenlm:KenLM",
        "hf_prune.networks.embedder:Embedder",
        "sklearn.svm:SVC",
        "antigravity:x",
        "this:s",
    ),
]
MODELS: list[dict[str, Any]] = [
    {"source": "canary_of_hostile:run", "revision": "0" * 64},
    {"source": "live", "revision": "{folder}"},
    {"source": "live", "revision": "../../../../{folder}"},
    {"source": "live", "revision": "a" * 64},
    {"source": "live", "revision": "a" * 64, "preprocess": None},
    {"source": "folder", "revision": "a" * 64},
    {"source": "folder", "revision": "{folder}"},
    {"source": "someone/model", "revision": "0" * 40, "trust_remote_code": True},
    {"preprocess": "canary_of_hostile:run"},
    {"source": "../../etc", "revision": "0" * 40},
]


def nodes(item: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all parts of a document."""
    inside = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    return [path, *(below for key, part in inside for below in nodes(part, (*path, key)))]


def put(document: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = copy.deepcopy(value)


def get(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def mutate(document: Any, draw: random.Random, folder: Path) -> Any:
    """One change of the structure."""
    paths = [path for path in nodes(document) if path and path[0] != "digest"]
    path = draw.choice(paths)
    kind = draw.randrange(8)
    if kind < 3:
        put(document, path, draw.choice(POISON))
    elif kind == 3:
        put(document, path, get(document, draw.choice(paths)))
    elif kind == 4:
        parent = get(document, path[:-1])
        del parent[path[-1]]
    elif kind == 5:
        parent = get(document, path[:-1])
        if isinstance(parent, dict):
            key = draw.choice(["extra", "\0value", "\0stored", "\0array", "__class__", "fields"])
            parent[key] = copy.deepcopy(draw.choice(POISON))
    elif kind == 6 and isinstance(document.get("classes"), list) and document["classes"]:
        document["classes"][draw.randrange(len(document["classes"]))] = draw.choice(CLASSES)
    else:
        models = [p for p in paths if p[-1] == "fields" and "trust_remote_code" in (get(document, p) or ())]
        if models:
            change = draw.choice(MODELS)
            get(document, draw.choice(models)).update(json.loads(json.dumps(change).replace("{folder}", str(folder))))
    return document


def spoil(folder: Path, draw: random.Random) -> None:
    """Flip or cut some bytes of a file in a folder."""
    file = draw.choice([f for f in sorted(folder.rglob("*")) if f.is_file()])
    data = bytearray(file.read_bytes())
    if not data:
        return
    for _ in range(draw.choice([1, 1, 3, 30])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(bytes(data) if draw.random() < 0.8 else bytes(data[: draw.randrange(len(data))]))


@pytest.fixture(scope="module")
def loads(tmp_path_factory, small_log):
    """What a watched process notices while it loads a thousand scorers and some logs that were changed."""
    place = tmp_path_factory.mktemp("hostile")
    sound = place / "sound"
    ds = rows(place / "cache")
    for name in EXPECTED:
        made(name, ds).save(sound / name)
    shutil.copytree(small_log.folder, place / "log")
    (place / "secret").write_text("secret")
    (place / "modules").mkdir()
    (place / "modules" / "canary_of_hostile.py").write_text("def run(*a): raise SystemExit('it was called')\n")
    (place / "rows.json").write_text(json.dumps(ds.select(range(6))[:]))
    draw = random.Random(0)
    names = sorted(p.name for p in sound.iterdir())
    for number in range(COUNT):
        folder = place / "scorers" / f"{number:04d}-{names[number % len(names)]}"
        shutil.copytree(sound / names[number % len(names)], folder)
        # what a pickle or a pointer beside the document would be found by
        (folder / "module.pkl").write_bytes(b"ccanary_of_hostile\nrun\n(tR.")
        (folder / "location.json").write_text(json.dumps({"path": str(folder), "name": "net"}))
        if number % 5 == 0:
            spoil(folder, draw)
            continue
        for _ in range(draw.choice([1, 1, 1, 2, 4])):
            forged = draw.random() < 0.9
            document = json.loads((folder / "scorer.json").read_text())
            try:
                mutate(document, draw, folder)
            except (TypeError, KeyError, IndexError, AttributeError):
                continue
            (folder / "scorer.json").write_text(json.dumps(document))
            if forged and isinstance(document, dict):
                forge(folder, lambda d: None)
        if number % 50 == 1:
            text = (folder / "scorer.json").read_text()
            (folder / "scorer.json").write_text(text.replace('"value":', '"value": ' + "[" * 100_000 + ",", 1))
    for number in range(LOGS):
        folder = place / "logs" / f"{number:04d}"
        shutil.copytree(small_log.folder, folder)
        if number % 2:
            spoil(folder, draw)
            continue
        file = draw.choice(sorted(folder.rglob("*.json")))
        document = json.loads(file.read_text())
        mutate(document, draw, folder)
        file.write_text(json.dumps(document))
    for bait in ("import", "open", "pickle", "run", "write", "parquet"):
        (place / "baits" / bait).mkdir(parents=True)
    variables = {
        "PYTHONPATH": os.pathsep.join([*(p for p in sys.path if p), str(place / "modules")]),
        "PYTHONWARNINGS": "ignore",
        "HF_PRUNE_HOME": str(place / "home"),
    }
    python(HERE / "hostile.py", place, env=variables)
    return json.loads((place / "loads.json").read_text())


def test_the_watch_sees_what_it_should(loads):
    baits = {name: told for name, told in loads["noticed"].items() if name.startswith("baits/")}
    assert {name.split("/")[1]: told[0].split(" ")[0] for name, told in baits.items()} == {
        "import": "import",
        "open": "open",
        "pickle": "pickle.find_class",
        "run": "os.system",
        "write": "open",
        "parquet": "open",
    }


def test_nothing_that_a_stranger_wrote_runs_opens_or_imports_anything(loads):
    assert {name: told for name, told in loads["noticed"].items() if not name.startswith("baits/")} == {}
    scorers = [how for name, how in loads["ended"].items() if name.startswith("scorers/")]
    assert len(scorers) == COUNT and sum(name.startswith("logs/") for name in loads["ended"]) == LOGS
    refused = [how for how in scorers if how.startswith("refused")]
    assert COUNT * 0.6 < len(refused) < COUNT  # some changes are harmless: another name of a column
    kinds = (
        r"the saved scorer .* is (damaged \(.*\)|nested too deeply to be one|missing .*); save it again",
        r".* holds no saved scorer",
        r".* names code that would be run: .*; if you trust who wrote it, pass trust_code=True",
        r"the saved scorer is a .*, which is not imported here",
        r"\w+ was made by version .* of its numbers, version \d+ is installed",
        r".* has format \d+, this version reads up to 2; upgrade",
        r".* holds a \w+, not a Scorer",
    )
    strange = [how for how in refused if not any(re.match(f"refused: {kind}", how, re.DOTALL) for kind in kinds)]
    assert strange == []


# -- naming code is a property of a field ---------------------------------------------------------------


def value_classes() -> list[type[Value]]:
    """All of the package, bases left out."""
    for module in pkgutil.walk_packages(hp.__path__, "hf_prune."):
        if not module.name.endswith("__main__"):
            import_module(module.name)

    def below(cls: type[Value]) -> list[type[Value]]:
        return [found for sub in cls.__subclasses__() for found in (sub, *below(sub))]

    return sorted({c for c in below(Value) if c.__module__.startswith("hf_prune.")}, key=class_name)


BASES = {"Scorer", "LoggedScorer", "ModelsOrLog", "TextScorer", "_ProbeScorer", "PlacedRows"}
APART = {"_Chunker", "RemoveRepeats", "Embedding"}  # no scorer, and in none


def test_the_table_of_classes_is_complete():
    classes = [c for c in value_classes() if c.__name__ not in BASES | APART]
    assert sorted(homes.VALUES) == sorted(c.__qualname__ for c in classes)  # so no name stands for two
    for cls in classes:
        assert class_name(cls) == f"hf_prune:{cls.__qualname__}" and find_class(class_name(cls)) is cls
        assert find_class(f"hf_prune.some.place:{cls.__qualname__}") is cls


def made_up(cls: type[Value]) -> Any:
    """An object of a class with something in every field."""
    found = object.__new__(cls)
    for field in fields(cls):  # type: ignore[arg-type]
        default = field.default if field.default is not MISSING else None
        if field.name in ("model", "probe") and cls.__name__ != "KenLM":
            default = made("embedder_hub").model  # type: ignore[attr-defined]
        elif "ndarray" in str(field.type) and default is None:
            default = np.zeros(3)
        elif field.type == "str" and default is None:
            default = "text"
        object.__setattr__(found, field.name, default)
    return found


CODE = "canary_of_gate:run"


def try_to_run(scorer: Any, batch: Any) -> None:
    for use in ("describe", "columns", "companions", "flops", "__call__"):
        try:
            call = getattr(scorer, use)
            call(batch) if use in ("flops", "__call__") else call()
        except Exception:
            continue


@pytest.fixture
def canary(tmp_path, monkeypatch):
    (tmp_path / "canary_of_gate.py").write_text("import torch\ndef run(*a): return torch.nn.Linear(2, 2)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda: "canary_of_gate" in sys.modules
    sys.modules.pop("canary_of_gate", None)


def write(value: Value, folder: Path) -> None:
    """As `save` does, without its checks."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    classes, text, blob = pack(value, elsewhere=None)
    names = [class_name(c) for c in classes]
    document = {"format": 2, "classes": names, "value": json.loads(text), "arrays": None}
    if blob:
        document["arrays"] = "0" * 32
        save_file({"blob": np.frombuffer(blob, np.uint8)}, folder / f"arrays-{'0' * 32}.safetensors")
    document["digest"] = packed_digest(names, text, blob)
    (folder / "scorer.json").write_text(json.dumps(document))


def plant(scorer: Any, name: str) -> Any:
    made = object.__new__(type(scorer))
    for field in fields(scorer):
        object.__setattr__(made, field.name, CODE if field.name == name else getattr(scorer, field.name))
    return made


def test_no_field_of_any_value_imports_what_it_says(canary, tmp_path):
    """A name of code in each field of each class that a file can hold; unmarked fields must not lead to an import."""
    batch = {"text": ["a"] * 3, "embedding": np.ones((3, 6), np.float32), "label": [0, 1, 2], "row_id": ["a", "b", "c"]}
    ds = rows(tmp_path / "cache")
    sound = [made(name, ds) for name in EXPECTED]
    covered = {type(s) for s in sound}
    others = [c for c in value_classes() if issubclass(c, Scorer) and c not in covered and c.__name__ not in BASES]
    tried, number = set(), 0
    for scorer in [*sound, *(made_up(c) for c in others)]:
        for field in fields(scorer):
            number += 1
            planted = plant(scorer, field.name)
            tried.add((type(scorer).__name__, field.name))
            write(planted, tmp_path / str(number))
            try:
                found = Scorer.load(tmp_path / str(number))
            except ValueError:
                assert not canary(), f"{type(scorer).__name__}.{field.name} was imported by load()"
                continue
            assert CODE not in list(code_of(found))
            try_to_run(found, batch)
            assert not canary(), f"{type(scorer).__name__}.{field.name} names code: mark it with names_code()"
    assert len(tried) > 200
    # inside of values
    for number, (path, name) in enumerate([("model", f.name) for f in fields(hp.Model)]):  # type: ignore[arg-type]
        embedder = made("embedder_factory")
        object.__setattr__(embedder, path, plant(getattr(embedder, path), name))
        write(embedder, tmp_path / f"inside{number}")
        with pytest.raises(ValueError):
            Scorer.load(tmp_path / f"inside{number}")
        assert not canary()


@dataclass(frozen=True, eq=False)
class Careless(Scorer):
    """Imports what a field says, which is not marked."""

    helper: str = "operator:neg"
    name: str = "careless"

    def score(self, batch, rank):
        from hf_prune.values import import_name

        return import_name(self.helper)(np.zeros(batch.n))


def test_the_search_finds_a_careless_field_and_named_refuses_it(canary, tmp_path):
    write(plant(Careless(), "helper"), tmp_path / "c")
    found = Scorer.load(tmp_path / "c")
    try_to_run(found, {"text": ["a"]})
    assert canary()
    with pytest.raises(TypeError, match=r"Careless.helper names code: write field\(..., metadata=names_code\(\)\)"):
        found.named("helper")


def test_code_is_imported_in_few_places():
    """`import_name` of what a user typed, `named` of a marked field, and the table of our own classes: nothing else."""
    calls: dict[str, set[str]] = {}
    for file in sorted(Path(hp.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if re.search(r"(^|\.)(import_name|import_module|__import__|eval|exec|loads?)$", name) and not re.search(
                    r"json\.loads|np\.load|Scorer\.load|^(evaluate|self|model|image|builder|network|whole)\b|\.eval$",
                    name,
                ):
                    calls.setdefault(name, set()).add(file.relative_to(Path(hp.__file__).parent).as_posix())
                for keyword in node.keywords:
                    if keyword.arg == "trust_remote_code":
                        said = ast.unparse(keyword.value)
                        assert re.fullmatch(r"((self|model)\.)?(model\.)?trust_remote_code", said), (file, said)
    assert calls["import_name"] == {"values.py", "models.py", "cli/scorers.py"}
    assert calls["importlib.import_module"] == {"__init__.py", "values.py"}
    assert "__import__" not in calls and calls["eval"] == {"fields.py"}
    assert calls["dill.load"] == {"models.py"} and "pickle.load" not in calls and "pickle.loads" in calls
    assert (
        calls["pickle.loads"] <= {"testing.py", "second_process.py"}
        and "torch.load" not in calls
        and "exec" not in calls
    )
