"""Checkpoints of `train_with_log`: written whole, with digests, and checked before a run goes on from one."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from hf_prune.checks import check_inside, warn
from hf_prune.data.files import (
    TEMPORARY,
    DamagedFileError,
    file_digest,
    read_json,
    reading,
    remove,
    temporary_path,
    whole,
    write_text,
)
from hf_prune.dynamics.format import CHECKPOINT, aside, explained, finished, sealed, unsealed

CONTENTS = "contents.json"  # of a checkpoint: its files, with sizes and digests
REMEDY = "put it back from a copy, or begin a log in another folder"


def save(accelerator: Any, folder: Path, epoch: int, world: Any) -> None:
    """Write the checkpoint of a finished epoch, with the digests of its files; then remove the one before."""
    path = folder / f"checkpoint-{epoch}"
    with contextlib.ExitStack() as stack:
        temporary = world.from_main(lambda: stack.enter_context(whole(path, explained, folder=True)))
        accelerator.save_state(str(temporary))
        world.barrier()
        world.from_main(lambda: _seal(temporary))
        world.from_main(stack.close)
    world.from_main(lambda: drop_others(path))


def _seal(checkpoint: Path) -> None:
    there = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    facts = {path.relative_to(checkpoint).as_posix(): [path.stat().st_size, file_digest(path)] for path in there}
    write_text(checkpoint / CONTENTS, sealed({"files": facts}), explained)


def drop_others(checkpoint: Path) -> None:
    """Remove the other checkpoints of a run."""
    for old in _checkpoints(checkpoint.parent):
        if old != checkpoint:
            gone = temporary_path(old)  # a kill in the middle leaves no half of a checkpoint
            old.rename(gone)
            remove(gone)


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _checkpoints(folder: Path) -> list[Path]:
    """From the first to the last."""
    return sorted((p for p in folder.glob("checkpoint-*") if CHECKPOINT.fullmatch(p.name)), key=_number)


def _check_checkpoint(path: Path) -> None:
    """Compare a checkpoint with the digests of its files; those of earlier versions have none.

    Raises:
        DamagedFileError: a file is missing, cut off or changed.
    """
    with reading(path, "checkpoint", REMEDY):
        if not (path / CONTENTS).is_file():
            return
        for name, (size, digest) in unsealed(read_json(path / CONTENTS, "list of files", REMEDY))["files"].items():
            file = check_inside(path, name)
            if not file.is_file() or file.stat().st_size != size or file_digest(file) != digest:
                raise ValueError(f"{name} is missing or has changed")


def where_to_begin(folder: Path, resume: bool) -> tuple[Path | None, bool]:
    """The checkpoint to go on from, or None for the beginning; and whether the log that is there is gone on with."""
    found = _checkpoints(folder)
    if not resume:
        cut_off = not found and any(folder.glob(f"checkpoint-*{TEMPORARY}"))
        if cut_off and finished(folder):
            warn(
                f"the run in {folder} was killed while it wrote its first checkpoint: there is none to go on from, and "
                "it begins anew; what it had recorded is kept aside until it is recorded again"
            )
            return None, True
        return (found[-1] if found else None), False
    lost: list[tuple[Path, DamagedFileError]] = []
    for checkpoint in reversed(found):
        try:
            _check_checkpoint(checkpoint)
        except DamagedFileError as error:
            lost.append((checkpoint, error))
            continue
        for path, why in lost:
            path.rename(at := aside(path, "damaged"))
            warn(f"{why}. It was moved to {at.name}, and the run goes on from {checkpoint.name}")
        return checkpoint, True
    if lost:
        raise lost[0][1]
    if finished(folder):
        warn(
            f"{folder} has no checkpoint to go on from: the run begins anew; what it had recorded is kept aside until "
            "it is recorded again"
        )
    return None, True


def load(accelerator: Any, checkpoint: Path) -> int:
    """Put a checkpoint's state into what the accelerator has prepared; returns the epoch to go on with.

    Raises:
        DamagedFileError: it is of another network or optimizer, or holds what was never saved by a run.
    """
    try:
        accelerator.load_state(str(checkpoint))
    except OSError:
        raise
    except Exception as error:  # torch and pickle raise of any kind for what is in a file
        why = (str(error).strip().splitlines() or ["no reason given"])[0][:200]
        raise DamagedFileError(
            f"the checkpoint {checkpoint} cannot be loaded into this network and optimizer "
            f"({type(error).__name__}: {why}); go on with "
            f"the network and the optimizer that the run began with, {REMEDY}"
        ) from error
    return _number(checkpoint)
