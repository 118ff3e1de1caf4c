"""A second process for the conformance suite: the same scorer, other hash seed, other rows first."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Scores = dict[str, Any]
SecondProcess = Callable[[Any, Sequence[dict[str, Any]], float], tuple[str, list[Scores]]]

_TASK = """
import sys, pickle, dill
from datasets.fingerprint import Hasher
task, answer = sys.argv[1:3]
with open(task, "rb") as stream:
    scorer, batches = dill.load(stream)
found = Hasher.hash(scorer)
scores = [scorer(batch) for batch in batches]
with open(answer, "wb") as stream:
    pickle.dump((found, scores), stream)
"""

_FORKS = """
import os, sys, traceback
import datasets, dill, torch, transformers.modeling_utils, transformers.models.auto.modeling_auto
from datasets.fingerprint import Hasher
code = sys.argv[1]
for line in sys.stdin:
    task, answer, report = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if child == 0:
        sys.argv = ["second", task, answer]
        try:
            exec(code)
        except BaseException:
            open(report, "w").write(traceback.format_exc())
        os._exit(0)
    os.waitpid(child, 0)
    print("done", flush=True)
"""


def fresh_process(scorer: Any, batches: Sequence[dict[str, Any]], seconds: float) -> tuple[str, list[Scores]]:
    """Score batches in a fresh interpreter with another hash seed.

    Args:
        scorer: travels there by dill.
        batches: scored in this order, by one scorer.
        seconds: limit.

    Returns:
        The scorer's hash there, and the columns of each batch.

    Raises:
        RuntimeError: it failed there; the message ends with the last of what was printed.
        subprocess.TimeoutExpired: it did not finish.
    """

    def run(task: Path, answer: Path) -> str:
        command = [sys.executable, "-c", _TASK, str(task), str(answer)]
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=seconds)
        return done.stderr.strip() or f"exit status {done.returncode}" if done.returncode else ""

    return _through_files(scorer, batches, run)


@contextlib.contextmanager
def forking_process() -> Iterator[SecondProcess]:
    """Give `check_scorer(second_process=...)` of a whole suite one process that imports once and forks for each task.

    A new interpreter for each scorer would spend most of its time on imports of torch and transformers.

    Raises:
        OSError: on systems without fork.
    """
    if not hasattr(os, "fork"):
        raise OSError("this system cannot fork; leave second_process out, and a fresh interpreter does it")
    server = subprocess.Popen(
        [sys.executable, "-c", _FORKS, _TASK],
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None and server.stdout is not None
    stdin, stdout = server.stdin, server.stdout

    def run(task: Path, answer: Path) -> str:
        report = task.with_name("report")
        print(task, answer, report, sep="\t", file=stdin, flush=True)
        if stdout.readline() != "done\n":
            return f"the process that forks has ended (exit status {server.poll()})"
        return report.read_text(encoding="utf-8") if report.exists() else ""

    def second(scorer: Any, batches: Sequence[dict[str, Any]], seconds: float) -> tuple[str, list[Scores]]:
        return _through_files(scorer, batches, run)

    try:
        yield second
    finally:
        server.communicate()


def _through_files(
    scorer: Any, batches: Sequence[dict[str, Any]], run: Callable[[Path, Path], str]
) -> tuple[str, list[Scores]]:
    import dill

    with tempfile.TemporaryDirectory() as folder:
        task, answer = Path(folder, "task"), Path(folder, "answer")
        # a class of a script travels as its code, with what that refers to
        task.write_bytes(dill.dumps((scorer, list(batches)), recurse=True))
        failed = run(task, answer)
        if failed or not answer.exists():
            raise RuntimeError(f"it failed in a second process: {failed[-500:] or 'no answer came'}")
        return pickle.loads(answer.read_bytes())  # type: ignore[no-any-return]


def _environment() -> dict[str, str]:
    known = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    return os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": known}
