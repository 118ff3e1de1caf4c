"""Scorers that the tests of `score` use; a module, so that other processes find them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hf_prune import Scorer


@dataclass(frozen=True, eq=False)
class Length(Scorer):
    text: str = "text"
    name: str = "length"

    def score(self, batch, rank):
        return [len(t) for t in batch.texts(self.text)]

    def flops(self, batch):
        return 2.0 * len(batch[self.text])


@dataclass(frozen=True, eq=False)
class Widen(Scorer):
    """Like an embedder: eight numbers made of the length of a text."""

    text: str = "text"
    name: str = "wide"

    def columns(self):
        return {self.name: "float32[8]"}

    def score(self, batch, rank):
        return np.asarray([len(t) for t in batch[self.text]], np.float32)[:, None] * np.arange(8, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Norm(Scorer):
    embedding: str = "wide"
    name: str = "norm"

    def score(self, batch, rank):
        return np.linalg.norm(batch.matrix(self.embedding), axis=1)


@dataclass(frozen=True, eq=False)
class Many(Scorer):
    """One column of each kind."""

    text: str = "text"
    name: str = "many"

    def columns(self):
        kinds = {"": "float64", "_int": "int32", "_words": "string", "_list": "int32[]", "_bool": "bool"}
        return {self.name + tail: dtype for tail, dtype in kinds.items()}

    def score(self, batch, rank):
        texts = batch[self.text]
        n = np.array([len(t) for t in texts])
        out: dict[str, Any] = {"": n / 3, "_int": n, "_words": [t[:2] for t in texts], "_bool": n % 2 == 0}
        out["_list"] = [np.arange(i % 3) for i in n]
        return {self.name + tail: values for tail, values in out.items()}


@dataclass(frozen=True, eq=False)
class Logged(Scorer):
    """Length; notes process and rows in a file, whose place the hash must not see, and fails where it is told to."""

    text: str = "text"
    name: str = "logged"
    where: ClassVar[str] = "HF_PRUNE_TEST_LOG"
    fail: ClassVar[str] = "HF_PRUNE_TEST_FAIL"

    def score(self, batch, rank):
        texts = batch.texts(self.text)
        fail = os.environ.get(self.fail)
        if fail is not None and any(t.startswith(fail) for t in texts):
            raise RuntimeError(f"told to fail at {fail}")
        with open(os.environ[self.where], "a", encoding="utf-8") as stream:
            stream.write(f"{os.environ.get('RANK', '-')} {rank} {len(texts)} {texts[0]}\n")
        return [len(t) for t in texts]


def calls(path: str | Path) -> list[list[str]]:
    """What `Logged` noted: process, rank, rows, first words; the single row is how `score` finds what is read."""
    path = Path(path)
    return [line.split(" ", 3) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
