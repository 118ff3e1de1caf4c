"""Loads what a stranger may have made, in a process that notices whatever is opened, imported or run: a script.

    python hostile.py PLACE

`PLACE/scorers/*` and `PLACE/logs/*` are folders; `PLACE/loads.json` is written: how each load ended, and what was
noticed that is outside of the folder (and of this machine's own store, by a digest).
"""

from __future__ import annotations

import collections
import importlib
import json
import os
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

RUNS = re.compile(
    r"subprocess\.|os\.(exec|fork|forkpty|spawn|posix_spawn|system|startfile|kill|putenv)|socket\.|pickle\.|marshal\."
    r"|ctypes\.|code\.__new__|pty\.|ftplib\.|http\.|urllib\.|webbrowser\.|sqlite3\."
)
CHANGES = re.compile(
    r"os\.(remove|rename|mkdir|rmdir|link|symlink|truncate|chmod|chown|utime|setxattr)|shutil\.|tempfile\."
)
INFO = r"\.(dist|egg)-info/"
LISTS = re.compile(r"os\.(listdir|scandir|walk|chdir)|glob\.")


class Watch:
    """An audit hook that notes what happens outside of one folder."""

    def __init__(self, home: Path) -> None:
        self.folder = ""
        self.on = False
        self.store = re.compile(re.escape(os.path.realpath(home)) + r"/models/[0-9a-f]{64}/location\.json")
        self.noticed: list[str] = []
        self.modules = set(sys.modules)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        self.on = False  # what this does itself
        try:
            if event == "import":
                if args[0] not in self.modules and args[0] not in sys.modules:
                    self.noticed.append(f"import {args[0]}")
            elif event == "exec":
                name = getattr(args[0], "co_filename", "?")
                if not name.startswith("<"):  # dataclasses and namedtuples are made of strings
                    self.noticed.append(f"exec {name}")
            elif event == "open" or CHANGES.match(event) or LISTS.match(event):
                path = args[0]
                if isinstance(path, (str, bytes, os.PathLike)) and not self.allowed(event, args):
                    self.noticed.append(f"{event} {os.fsdecode(path)}")
            elif RUNS.match(event):
                self.noticed.append(f"{event} {args!r}"[:200])
        finally:
            self.on = True

    def allowed(self, event: str, args: tuple[Any, ...]) -> bool:
        path = os.path.realpath(os.fsdecode(args[0]))
        if path == self.folder or path.startswith(self.folder + os.sep):
            return True
        if event != "open" and not LISTS.match(event):
            return False
        places = {os.path.realpath(p or ".") for p in sys.path}  # where packages are looked for
        if event == "open":
            flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
            reads = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) == 0
            # facts about installed packages, for the provenance
            return reads and (path in places or bool(self.store.fullmatch(path) or re.search(INFO, path)))
        return path in places or path.endswith((".dist-info", ".egg-info"))


def warm_up(place: Path) -> Any:
    """Import all that loading and scoring sound ones need."""
    import hf_prune
    from hf_prune.dynamics.log import TrainingLog

    apart = ("__main__", "demo", "doctor", "cli", "_cli")  # what no scorer needs
    for module in pkgutil.walk_packages(hf_prune.__path__, "hf_prune."):
        if module.name.split(".")[1] not in apart:
            importlib.import_module(module.name)
    rows = json.loads((place / "rows.json").read_text())
    for folder in sorted((place / "sound").iterdir()):
        look(folder, rows)
    log = TrainingLog(place / "log")
    log.read("margin", log.epochs - 1)
    return rows


def look(folder: Path, rows: Any) -> str:
    """Load a scorer without trust, and use it; how that ended."""
    from hf_prune import Scorer
    from hf_prune.values import Value

    try:
        scorer = Scorer.load(folder)
    except ValueError as error:
        return f"refused: {error}"
    runs = any(isinstance(v, Value) and type(v).__name__ == "Model" for v in vars(scorer).values())
    models = getattr(scorer, "models", ())
    if getattr(getattr(scorer, "model", None), "kind", "") == "hub" or any(m.kind == "hub" for m in models):
        return "loaded"  # using it would ask the Hub, for files without code
    try:
        str(scorer), scorer.digest, scorer.columns(), scorer.describe().to_json()
        if not runs:
            scorer(rows)
    except Exception as error:
        return f"loaded, then {type(error).__name__}"
    return "loaded"


def look_log(folder: Path) -> str:
    """Open a training log, and read it."""
    from hf_prune.dynamics.log import TrainingLog

    try:
        log = TrainingLog(folder)
        for epoch in range(min(log.epochs, 10)):
            log.read("margin", epoch), log.keys, log.report(epoch)
    except Exception as error:
        return f"refused: {type(error).__name__}"
    return "loaded"


def told(call: Any) -> Any:
    """A reader of compiled code, which tells nobody what it opens, that tells."""

    def telling(*args: Any, **more: Any) -> Any:
        if args and isinstance(args[0], (str, os.PathLike)):
            sys.audit("open", os.fspath(args[0]), "r", 0)
        return call(*args, **more)

    return telling


def main() -> None:
    place = Path(sys.argv[1])
    rows = warm_up(place)
    import pyarrow.parquet as pq

    for name in ("read_table", "ParquetFile", "read_schema", "read_metadata"):
        setattr(pq, name, told(getattr(pq, name)))
    watch = Watch(Path(os.environ["HF_PRUNE_HOME"]))
    sys.addaudithook(watch)
    ended: dict[str, str] = {}
    noticed: dict[str, list[str]] = {}
    for kind, act in (("scorers", lambda f: look(f, rows)), ("logs", look_log), ("baits", lambda f: bait(f))):
        for folder in sorted((place / kind).iterdir()):
            watch.folder, watch.noticed = os.path.realpath(folder), []
            watch.on = True
            how = act(folder)
            watch.on = False
            ended[f"{kind}/{folder.name}"] = how
            if watch.noticed:
                noticed[f"{kind}/{folder.name}"] = watch.noticed
    counts = collections.Counter(how.split(":")[0] for how in ended.values())
    (place / "loads.json").write_text(json.dumps({"ended": ended, "noticed": noticed, "counts": counts}))


def bait(folder: Path) -> str:
    """What a loader must not do: shows that it would be noticed."""
    what = folder.name
    if what == "import":
        __import__("canary_of_hostile")
    elif what == "open":
        (folder.parent.parent / "secret").read_text()
    elif what == "pickle":
        import pickle

        pickle.loads(b"cos\ngetcwd\n.")
    elif what == "run":
        os.system("true")
    elif what == "write":
        (folder.parent / "written").write_text("")
    elif what == "parquet":
        import pyarrow.parquet as pq

        pq.read_table(folder.parent.parent / "log" / "rows.parquet")
    return what


if __name__ == "__main__":
    main()
