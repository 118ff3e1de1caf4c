"""Fresh processes that tests start: a Python, one that runs beside the test, or two that work together.

    said = python("import hf_prune; print(hf_prune.__version__)").stdout
    done = python(EXAMPLES / "prune_texts.py", "--data", path, env={"HF_PRUNE_HOME": str(home)})
    with beside(HOLDER, folder) as process:  # killed at the end of the block, if it still runs
        assert process.stdout.readline() == "held\\n"
    done = together(SCRIPT, folder)  # the script in two processes of one group, on the CPU

Each imports what the test can import, keeps to one thread, and has the caches of the run. What ends otherwise than
`status` says fails with what it wrote; what is not done by its deadline is killed with everything that it started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import psutil

DEADLINE = 150  # seconds, of a machine that does much else; no test waits for it
LEAVES = """
import atexit, sys

@atexit.register  # first, to be done last: threads of a group that is there at the end may abort the process
def leave_the_group():
    torch = sys.modules.get("torch")
    if torch and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

"""


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables of a process that imports what this one does, without a GPU, and caches where this one does."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "1",
        **(more or {}),
    }


def command(code: str | Path, *arguments: object) -> list[str]:
    """A Python with that script, or with that code."""
    script = [str(code)] if isinstance(code, Path) else ["-c", textwrap.dedent(code)]
    return [sys.executable, *script, *map(str, arguments)]


def python(code: str | Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script, or code, to its end; options as for `run`."""
    return run(command(code, *arguments), **options)


def run(
    *commands: Sequence[str],
    env: Mapping[str, str] | Sequence[Mapping[str, str]] = (),
    cwd: Path | None = None,
    input: bytes = b"",
    stdout: Any = None,
    status: int | None = 0,
    deadline: float = DEADLINE,
    patience: float = 30,
) -> subprocess.CompletedProcess[str]:
    """Run a command, or several at once, to the end; what several said comes one after the other.

    Args:
        env: variables on top of those of `environment`; a mapping for each of several.
        input: what each reads.
        stdout: a file that takes the output instead.
        status: what each must end with; of None, any will do, and the returned one is the first that is not 0.
        deadline: seconds for all together.
        patience: seconds that the others have once one of several has failed; then they are killed.
    """
    each = [env or {}] * len(commands) if isinstance(env, Mapping) or not env else env
    running: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        files = [[stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)] for _ in commands]
        try:
            for one, more, (read, out, err) in zip(commands, each, files, strict=True):
                read.write(input)
                read.seek(0)
                streams = {"stdin": read, "stdout": stdout or out, "stderr": err}
                running.append(subprocess.Popen(one, env=environment(more), cwd=cwd, start_new_session=True, **streams))
            late = _wait(running, deadline, patience)
        finally:
            for process in running:
                kill(process)
        said = [[file.seek(0) or file.read().decode(errors="replace") for file in three[1:]] for three in files]
    ended = [process.returncode for process in running]
    whole = ["".join(part) for part in zip(*said, strict=True)]
    done = subprocess.CompletedProcess(list(commands[0]), next((code for code in ended if code), 0), *whole)
    told = f"{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    assert not late, f"not done after {deadline} s: {commands[0]}\n{told}"
    assert status is None or ended == [status] * len(ended), f"ended with {ended}, not {status}: {told}"
    return done


def _wait(running: list[subprocess.Popen[bytes]], deadline: float, patience: float) -> bool:
    end = time.monotonic() + deadline
    failed = False
    while None in (codes := [process.poll() for process in running]):
        if not failed and any(codes):
            failed, end = True, min(end, time.monotonic() + patience)
        if time.monotonic() > end:
            return not failed
        time.sleep(0.01)
    return False


def kill(process: subprocess.Popen[Any]) -> None:
    """End a process, whatever it started (in sessions of their own too), and the rest of its group."""
    if process.poll() is None:
        below = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for one in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(below, 5)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def beside(
    code: str | Path, *arguments: object, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A Python that runs while the block does; the block reads its output by line, and may write to it."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(
        command(code, *arguments), env=environment(env), text=True, start_new_session=True, **pipes
    )
    try:
        yield process
    finally:
        kill(process)
        process.communicate()


def together(
    code: str | Path, *arguments: object, launcher: bool = False, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a script, or code, in two processes of one group on the CPU; options as for `run`.

    Args:
        launcher: by `accelerate launch`, which costs a Python more, mixes the lines of the two and ends both when
            one fails; else as it would start them: the variables of a rank each, and a store that they meet at.
    """
    code = code if isinstance(code, Path) else LEAVES + textwrap.dedent(code)
    if not launcher:
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        group = {
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # rank 0 would else open the port itself, if it still can
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        ranks = [{**group, "RANK": rank, "LOCAL_RANK": rank, **(env or {})} for rank in "01"]
        return run(*[command(code, *arguments)] * 2, env=ranks, **options)
    with tempfile.TemporaryDirectory() as folder:
        script = code if isinstance(code, Path) else Path(folder) / "script.py"
        if not isinstance(code, Path):
            script.write_text(code)
        # `accelerate launch --cpu --num_processes 2` would quietly start one
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
        launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", str(script)]
        return run([sys.executable, *launch, *map(str, arguments)], env=env or {}, **options)
