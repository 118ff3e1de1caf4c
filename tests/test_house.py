"""The plan of the house: rooms in their order, and who may import from whom.

A module imports from its own room and from those above it in `ROOMS`; what is imported inside functions counts too.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import hf_prune
from hf_prune import homes

PACKAGE = Path(hf_prune.__file__).parent
CONTRACT = "contract"  # the modules at the root
ROOMS = [
    ("numerics", "fast arithmetic and its threads"),
    ("data", "datasets in and out"),  # on one floor with the contract, which reads batches
    (CONTRACT, "Scorer, Value, Model, ScoreColumn: what every file fulfils"),
    ("networks", "rows through networks"),
    ("scorers", "one method, one file"),
    ("dedup", "copies as scores"),
    ("fisher", "squared gradients"),
    ("dynamics", "what one training run tells"),
    ("diversity", "numbers for a whole dataset"),
    ("prune", "a score column in, rows out"),
    ("run", "score() over processes"),
    ("recipes", "several scorers and rules as one"),
    ("share", "the Hub, cards, pages"),
    ("cli", "hf-prune"),
]
PLACE = {room: place for place, (room, _) in enumerate(ROOMS)} | {"data": 2}


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def room_of(module: str) -> str:
    first = module.split(".")[0]
    return first if first in PLACE else CONTRACT


def imports(tree: ast.Module) -> list[tuple[str, str]]:
    """(module of ours, name taken from it or "") of every import, those that only type checkers see left out."""
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found += [(a.name.removeprefix("hf_prune."), "") for a in node.names if a.name.startswith("hf_prune.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hf_prune":
            source = str(node.module).removeprefix("hf_prune").lstrip(".")
            for a in node.names:
                inner = f"{source}.{a.name}".lstrip(".")
                found.append((inner, "") if inner in MODULES else (source, a.name))
    return [(module, name) for module, name in found if module]


def test_imports_go_one_way():
    wrong = [
        f"{module} ({room_of(module)}) imports {source} ({room_of(source)})"
        for module, tree in MODULES.items()
        if module not in ("", "__main__")
        for source, _ in imports(tree)
        if PLACE[room_of(source)] > PLACE[room_of(module)]
    ]
    assert not wrong, "against the order of the rooms:\n" + "\n".join(wrong)


def test_no_circles():
    edges = {module: {s for s, _ in imports(tree)} for module, tree in MODULES.items() if module}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "circle: " + " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for source in sorted(edges.get(module, ())):
                visit(source, (*path, module))
            done.add(module)

    for module in sorted(edges):
        visit(module, ())


def private(tree: ast.Module) -> list[str]:
    """Names with a leading underscore that are imported from the package, or read of what is imported from it."""
    nodes = list(ast.walk(tree))
    bound, found = set(), []
    for node in nodes:
        if isinstance(node, ast.Import):
            bound |= {a.asname or "hf_prune" for a in node.names if a.name.split(".")[0] == "hf_prune"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hf_prune":
            bound |= {a.asname or a.name for a in node.names}
            given = [f"{node.module}.{a.name}" for a in node.names if re.match("_[^_]", a.name)]
            found += [name for name in given if name.removeprefix("hf_prune.") not in MODULES]
    for node in nodes:
        if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in bound:
                found.append(ast.unparse(node))
    return found


def test_private_names_stay_in_their_module():
    wrong = [
        f"{module} imports {source}.{name}"
        for module, tree in MODULES.items()
        for source, name in imports(tree)
        if name.startswith("_") and not name.startswith("__")
    ]
    wrong += [
        f"{module} imports {source}"
        for module, tree in MODULES.items()
        for source, _ in imports(tree)
        if source.split(".")[-1].startswith("_") and room_of(source) != room_of(module)
    ]
    wrong += [f"{module} reads {name}" for module, tree in MODULES.items() for name in private(tree)]
    assert not wrong, "\n".join(wrong)


def test_tests_look_at_what_is_public():
    """But for formulas of coefficients, on vectors by hand where users hand in datasets; and the client's `_http`."""
    known = re.compile(r"\._(quotas|alignment|cross|diversity|http)$")
    wrong = []
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        found = private(ast.parse(path.read_text(encoding="utf-8")))
        wrong += [f"{path.name}: {name}" for name in found if not known.search(name)]
    assert not wrong, "\n".join(wrong)


def test_every_room_is_in_the_plan():
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert rooms == set(PLACE) - {CONTRACT}


def test_type_checkers_see_every_export():
    """`homes.PUBLIC` is the one list; HF_PRUNE_UPDATE_GOLDEN=1 writes the block for type checkers out of it."""
    path = PACKAGE / "__init__.py"
    head, mark, _ = path.read_text(encoding="utf-8").rpartition("if TYPE_CHECKING:\n")
    lines = sorted(f"    from hf_prune.{home} import {name} as {name}\n" for name, home in homes.PUBLIC.items())
    wanted = head + mark + "".join(sorted(lines, key=lambda line: line.split()[1]))
    if os.environ.get("HF_PRUNE_UPDATE_GOLDEN"):
        path.write_text(wanted, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == wanted
